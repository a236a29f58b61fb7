"""Anyone's own network as a Generator: `from_module` runs it once, and reads its anatomy off that run.

A decoder of a VAE, a GAN of one's own, a one-step model: whatever maps a Gaussian or uniform code to an image, the
same image for the same code. Space: `z`, one slot.

Layers are the modules that run once and give a tensor, by their names. Where the network is a chain (a Sequential, or a
module that hands its code to a Sequential and returns what that gives), a partial synthesis runs what is left of
it. Elsewhere its State keeps the code in place of features, and `finish` runs the whole network on that code: the image
is the same, only nothing is saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .. import runtime
from ..codes import Codes, Part, Space
from ..errors import Unsupported, UserError
from ..generator import Generator, Layer, State, StyleMatrix, resize_mask

LINEAR = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
TOLERANCE = 1e-3  # of an image's spread, for what should be the same image
ROUNDINGS = 16  # of the network's own precision, which an image may be off as well: batches are summed in other orders


def from_module(
    module: nn.Module,
    *,
    latent_dim: int | None = None,
    latent_shape: Sequence[int] | None = None,
    name: str = "custom",
    law: Literal["normal", "uniform"] = "normal",
    output_range: tuple[float, float] = (-1.0, 1.0),
) -> Generator:
    """Wrap a network that maps codes to images.

    The module itself is used, not a copy: it is set to evaluation and its weights are frozen.

    Args:
        module: called with codes [batch, *latent_shape] in the precision of its weights, it returns images [batch, 1 or
            3, size, size]. Our own codes, images and features are float32 all the same.
        latent_dim: length of a code.
        latent_shape: what the module takes for one code, such as `(64,)`, `(64, 1, 1)` or `(4, 8, 8)`; by default
            the first two are tried.
        name: what provenance and files call it.
        law: of codes: `"normal"`, N(0, 1), or `"uniform"` on [-1, 1].
        output_range: what the module's images run from and to; (0, 1) for one that ends in a sigmoid.

    Raises:
        UserError: where the module does not run on such codes, gives no square images, gives different images for
            the same code, or lets codes of a batch meet.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 3 * 16 * 16), nn.Tanh(), nn.Unflatten(1, (3, 16, 16)))
        >>> from_module(net, latent_dim=8, name="tiny").resolution
        16
    """
    if law not in ("normal", "uniform"):
        raise UserError(f"law {law!r} is not known; allowed: normal, uniform")
    low, high = (float(end) for end in output_range)
    if not low < high:
        raise UserError(f"output_range {tuple(output_range)} came; give the lowest and the highest value, as (0, 1)")
    module = module.eval().requires_grad_(False)
    shape = _found_shape(module, _candidates(latent_dim, latent_shape))
    return Custom(module, shape, name=name, law=law, output_range=(low, high))


def _candidates(latent_dim: int | None, latent_shape: Sequence[int] | None) -> list[tuple[int, ...]]:
    if latent_shape is not None:
        shape = tuple(int(size) for size in latent_shape)
        if latent_dim not in (None, math.prod(shape)) or min(shape, default=0) < 1:
            raise UserError(f"latent_shape {shape} does not hold latent_dim {latent_dim} numbers; give one of them")
        return [shape]
    if latent_dim is None or latent_dim < 1:
        raise UserError("say how long a code is: latent_dim=64, or latent_shape=(4, 8, 8)")
    return [(latent_dim,), (latent_dim, 1, 1)]


def _found_shape(module: nn.Module, candidates: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the first shape of a code that the module takes."""
    refusals = []
    for shape in candidates:
        try:
            with torch.inference_mode():
                images = module(_probe(module, shape))
        except Exception as error:  # a stranger's module may raise anything; what it said goes into the message
            reason = str(error).strip() or type(error).__name__
            refusals.append(f"on {['batch', *shape]}: {reason.splitlines()[0][:160]}")
            continue
        if problem := _problem(images, 2):
            refusals.append(f"on {['batch', *shape]}: {problem}")
            continue
        return shape
    raise UserError(
        f"{type(module).__name__} makes no images: {'; '.join(refusals)}. It shall take one tensor and return images "
        "[batch, 1 or 3, size, size]; give latent_shape=, or wrap it in a module that fixes its other inputs"
    )


def _probe(module: nn.Module, shape: Sequence[int], n: int = 2) -> Tensor:
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    rows = runtime.draw(n, math.prod(shape), seed=0, stream="codes/probe")
    return torch.from_numpy(rows).reshape(n, *shape).to(like)


def _problem(images: Any, n: int) -> str:
    """Say what is wrong with what a module gave; empty where it is a batch of images."""
    if not isinstance(images, Tensor):
        return f"it gives a {type(images).__name__}, not a tensor"
    shape = list(images.shape)
    if len(shape) != 4 or shape[0] != n or shape[1] not in (1, 3):
        return f"it gives {shape}, not [{n}, 1 or 3, size, size]"
    if shape[2] != shape[3]:
        return f"it gives images of {shape[2]} x {shape[3]} pixels; only square ones are used here"
    return "" if torch.isfinite(images).all() else "its images hold NaN or infinity"


# --- reading the anatomy ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    name: str
    module: nn.Module
    given: Tensor | None  # its first argument
    made: Tensor


@contextmanager
def _listening(module: nn.Module, heard: Callable[[str, nn.Module, tuple, Any], None]) -> Iterator[None]:
    hooks = []
    for name, each in module.named_modules():
        if name:

            def hook(m: nn.Module, given: tuple, made: Any, name: str = name) -> None:
                heard(name, m, given, made)

            hooks.append(each.register_forward_hook(hook))
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def _calls(module: nn.Module, codes: Tensor) -> tuple[list[_Call], Tensor]:
    """Run the module; return the modules in it that gave tensors, in the order in which they ended, and the images."""
    calls: list[_Call] = []

    def heard(name: str, m: nn.Module, given: tuple, made: Any) -> None:
        first = given[0] if given and isinstance(given[0], Tensor) else None
        if isinstance(made, Tensor) and made.ndim >= 2 and len(made) == len(codes):
            calls.append(_Call(name, m, first, made))

    with torch.no_grad(), _listening(module, heard):
        images = module(codes)
    return calls, images


def _chain(module: nn.Module, calls: Sequence[_Call], codes: Tensor, images: Tensor) -> tuple[str, nn.Module] | None:
    """Return the name and the module of the Sequential that is the whole network; None where there is none."""
    if type(module) is nn.Sequential:
        return "", module
    for call in reversed(calls):
        is_all = type(call.module) is nn.Sequential and call.made is images and call.given is not None
        if is_all and _are_same(call.given, codes):
            return call.name, call.module
    return None


def _links(prefix: str, chain: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules of a Sequential and of those inside it, with their names, in order."""
    found = []
    for name, child in chain.named_children():
        path = f"{prefix}.{name}" if prefix else name
        found += _links(path, child) if type(child) is nn.Sequential else [(path, child)]
    return found


def _are_same(given: Tensor | None, codes: Tensor) -> bool:
    """Tell whether a tensor holds the codes, in whatever shape."""
    return given is not None and given.shape[:1] == codes.shape[:1] and torch.equal(given.flatten(1), codes.flatten(1))


# --- the family -------------------------------------------------------------------------------------------------------


class Custom(Generator):
    """Anyone's own network; see `from_module`, which makes it."""

    family: ClassVar[str] = "custom"

    def __init__(
        self,
        module: nn.Module,
        latent_shape: tuple[int, ...],
        *,
        name: str,
        law: str = "normal",
        output_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        codes, dim = _probe(module, latent_shape), math.prod(latent_shape)
        calls, images = _calls(module, codes)
        _check_purity(module, codes, images, name)
        chain = _chain(module, calls, codes, images)
        self.latent_shape, self.law, self.output_range = latent_shape, law, output_range
        self._module_dtype = codes.dtype
        self._links = _links(*chain) if chain else []
        taken = [call.given for call in calls if chain and call.name == chain[0] and call.given is not None]
        self._given_shape = taken[0].shape[1:] if taken else torch.Size(latent_shape)
        layers = _named_layers(calls, [name for name, _ in self._links])
        self._feeding = [c.name for c in calls if isinstance(c.module, LINEAR) and _are_same(c.given, codes)]
        fed = tuple(layer.name for layer in layers if layer.name in self._feeding) or (layers[0].name,)
        is_normal = law == "normal"
        space = Space(
            "z", 1, dim, (Part("all", 0, 0, 0, dim, fed),), "N(0, 1)" if is_normal else "U(-1, 1)",
            None if is_normal else lambda: (torch.zeros(dim), torch.eye(dim) / 3),
        )  # fmt: skip
        super().__init__(
            module,
            name=name,
            spaces={"z": space},
            layers=[
                Layer(each.name, each.resolution, each.channels, 0 if each.name in fed else None) for each in layers
            ],
            resolution=images.shape[-1],
            channels=images.shape[1],
            config={"latent_shape": list(latent_shape), "law": law, "output_range": list(output_range)},
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], **about: Any) -> Generator:
        """Refuse: a file of weights does not hold the code of the network."""
        raise Unsupported(
            f"{about.get('name')} is a network of someone's own, whose code no file holds; "
            "build it in Python and wrap it: eigenlens.from_module(module, latent_dim=...)"
        )

    def save(self, folder: str | Path, **_: Any) -> Path:
        """Refuse: a file of weights does not hold the code of the network."""
        raise Unsupported(
            f"{self.name} is a network of your own, whose code no file can hold; save its state_dict and wrap it again "
            "with from_module, or open it as 'package.module:function', a function that wraps it"
        )

    def _draw(self, n: int, *, seed: int, start: int, truncation: float) -> Tensor:
        if self.law == "normal":
            return super()._draw(n, seed=seed, start=start, truncation=truncation)
        rows = runtime.draw(n, self.spaces["z"].dim, seed=seed, stream="codes/z", start=start, law="uniform")
        return (2 * torch.from_numpy(rows)[:, None] - 1) * truncation

    def _inputs(self, codes: Codes) -> Tensor:
        return codes.latent[:, 0].reshape(-1, *self.latent_shape).to(self._module_dtype)

    def _run(self, codes: Codes, state: State, stop: int) -> State:
        if stop <= state.next:
            return state
        begun = self._inputs(self._here(codes)) if state.features is None else state.features
        if self._links:
            x = begun if state.next else begun.reshape(-1, *self._given_shape)
            x = x.clone()  # the next module may work in place, and a state serves many times
            with self._arithmetic():
                for _, link in self._links[state.next : stop]:
                    x = link(x)
            return State(stop, x)
        return State(stop, begun)  # the code itself; see the text of this module

    def finish(self, codes: Codes, state: State) -> Tensor:
        """Run the layers from where `state` stands, and return images in [-1, 1]."""
        made = self._run(codes, state, len(self.layers)).features
        assert made is not None
        with self._arithmetic():
            images = (made if self._links else self.network(made)).float()
        low, high = self.output_range
        return images if (low, high) == (-1.0, 1.0) else (images - low) * (2 / (high - low)) - 1

    def blend(self, outside: Codes, inside: Codes, mask: Tensor) -> Tensor:
        """Return images of `outside` that show `inside` where the mask is 1: where features lie is not known here."""
        below, above = self(outside), self(inside)
        mask = mask.expand(len(outside), *mask.shape[-2:])[:, None]  # [batch, 1, height, width]
        return torch.lerp(below, above, resize_mask(mask, above.shape[-2:]).to(above))

    def features(self, codes: Codes, layer: str) -> Tensor:
        """Return what a named module gives, [batch, channels, ...] as it comes."""
        stop = self.layer_index(layer) + 1
        if self._links:
            made = self._run(codes, State(), stop).features
            assert made is not None
            return made.float()
        kept: list[Tensor] = []
        hook = self.network.get_submodule(layer).register_forward_hook(lambda m, given, made: kept.append(made.clone()))
        try:
            self.finish(codes, State())
        finally:
            hook.remove()
        return kept[0].float()

    def style_matrices(self, layers: str = "all") -> dict[str, StyleMatrix]:
        """Return the matrix of each linear layer that takes the code itself, [numbers that it gives, dim].

        Raises:
            Unsupported: where none does, as where the code is normalised or squashed first.
        """
        (part,) = self.spaces["z"].picked(layers)
        if not self._feeding:
            raise Unsupported(
                f"{self.name} has no Linear or convolution that takes its code as it is; to use methods that read "
                "weights, give from_module the part of the network after what comes before its first such layer"
            )
        matrices = {}
        for name in self._feeding:
            module = self.network.get_submodule(name)
            shape = self._input_shapes()[name]
            basis = torch.eye(part.stop, dtype=self._module_dtype, device=self.device).reshape(-1, *shape)
            with torch.inference_mode():
                columns = (module(basis) - module(torch.zeros_like(basis[:1]))).flatten(1)  # [dim, out]
            matrices[name] = StyleMatrix(columns.T.float().clone(), part)
        return matrices

    def _input_shapes(self) -> dict[str, torch.Size]:
        calls, _ = _calls(self.network, _probe(self.network, self.latent_shape))
        return {call.name: call.given.shape[1:] for call in calls if call.given is not None}


def _named_layers(calls: Sequence[_Call], links: Sequence[str]) -> list[Layer]:
    """Return the links of a chain, or all modules that ran once and gave a tensor of their own."""
    names = [call.name for call in calls]
    layers, seen = [], set[int]()
    for call in calls:
        is_new = id(call.made) not in seen  # a container gives what its last module gave
        seen.add(id(call.made))
        if call.name in links or (not links and is_new and names.count(call.name) == 1):
            layers.append(Layer(call.name, call.made.shape[-1] if call.made.ndim == 4 else 1, call.made.shape[1]))
    if links and [layer.name for layer in layers] != list(links):
        raise UserError(f"the modules of the chain {', '.join(links)} do not run once each, in order, giving tensors")
    if not layers:
        raise UserError("the network has no modules inside, so that there is nothing to look at; build it of modules")
    return layers


def _check_purity(module: nn.Module, codes: Tensor, images: Tensor, name: str) -> None:
    """Raise UserError unless the same code is the same image, again and in a batch of its own."""
    with torch.no_grad():
        again, alone = module(codes), module(codes[:1])
    share = max(TOLERANCE, ROUNDINGS * torch.finfo(codes.dtype).eps)
    bound = share * float(images.float().std().clamp(min=1e-6))
    if (again - images).abs().max() > bound:
        raise UserError(
            f"{name} gives another image for the same code each time: it draws noise in its forward; fix that noise "
            "(keep it in a buffer), or make it part of the code"
        )
    if (alone - images[:1]).abs().max() > bound:
        raise UserError(
            f"{name} gives a code another image in another batch: the codes of a batch meet, as in a batch "
            "normalisation without running statistics; wrap a network where they do not"
        )
