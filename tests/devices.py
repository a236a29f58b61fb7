"""A second device for tests: numbers that lie beside the CPU's own, and refuse to meet those as a GPU's do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dynamo import trace_rules
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = torch.device("lazy")  # a device that torch knows and this build of it has no use for
MOVES = ("aten._to_copy.default", "aten.copy_.default", "aten.index.Tensor")
"""What may read both devices: a GPU as well takes the places to look up from the CPU."""


_HAS_FLOAT64: ContextVar[bool] = ContextVar("has_float64", default=True)


class FarTensor(Tensor):
    """A tensor that says it is on `FAR`; its numbers are `near`, on the CPU."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> FarTensor:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device=FAR
        )
        made.near = near
        return made

    def __init__(self, near: Tensor) -> None:
        """Leave all to `__new__`."""

    def __getitem__(self, rows: Any) -> Any:
        """Look up places, those in a list as well."""
        return super().__getitem__(torch.tensor(rows) if isinstance(rows, list) else rows)

    def storage(self) -> Any:
        """Return where they lie, for safetensors."""
        return self.near.storage()

    def data_ptr(self) -> int:
        """Return where the numbers are."""
        return self.near.data_ptr()

    def tolist(self) -> Any:
        """Return the numbers, as a tensor of a GPU does."""
        return self.near.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Let files hold the numbers."""
        return self.near.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Compute with the numbers, unless tensors of both devices meet."""
        return _computed(func, args, kwargs or {})


class _Far(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    far = [each for each in given if isinstance(each, FarTensor)]
    near = [each for each in given if not isinstance(each, FarTensor) and each.ndim]  # bare numbers go anywhere
    if far and near and str(func) not in MOVES:
        raise RuntimeError(f"{func} of tensors on two devices: {[(each.device, list(each.shape)) for each in given]}")
    goes_far = isinstance(given[0], FarTensor) if str(func) in MOVES else bool(far)
    if kwargs.get("device") is not None:
        goes_far, kwargs = torch.device(kwargs["device"]) == FAR, {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(lambda each: each.near if isinstance(each, FarTensor) else each, (args, kwargs))
    made = func(*args, **kwargs)
    if not goes_far:
        return made
    if not _HAS_FLOAT64.get() and any(
        isinstance(each, Tensor) and each.dtype == torch.float64 for each in tree_leaves(made)
    ):
        raise TypeError(f"{func} in float64, which this device does not have")
    known = {id(each.near): each for each in far}  # what works in place gives what came
    return tree_map(lambda each: known.get(id(each), FarTensor(each)) if isinstance(each, Tensor) else each, made)


@contextmanager
def far_device(*, has_float64: bool = True) -> Iterator[torch.device]:
    """Give a device to move networks to; within the block all that runs on it is checked.

    Args:
        has_float64: whether it computes in float64, which a GPU of Apple does not.

    Four things of torch go past every mode of Python, and are led back to it: tensors made of plain numbers, inference
    mode (here `no_grad`), the question whether autocast is on, and the way in which `Module.to` moves parameters.
    """
    trace_rules.get_torch_obj_rule_map()  # tracing learns torch's functions once: before they are replaced
    tensor, knows_autocast = torch.tensor, torch.is_autocast_enabled

    def made_tensor(data: Any, *, device: Any = None, **about: Any) -> Tensor:
        made = tensor(data, **about)
        return made if device is None else made.to(device)

    led_back = {
        "tensor": made_tensor,
        "inference_mode": lambda mode=True: torch.no_grad() if mode else nullcontext(),
        "is_autocast_enabled": lambda *kind: kind != (FAR.type,) and knows_autocast(*kind),
    }
    token = _HAS_FLOAT64.set(has_float64)
    replaces = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with patch.multiple(torch, **led_back), _Far():
            yield FAR
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(replaces)
        _HAS_FLOAT64.reset(token)
