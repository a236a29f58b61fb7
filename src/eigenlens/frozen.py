"""Arithmetic of frozen networks: what weights fix is computed once, and a convolution chooses its algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")


def kept(holder: Any, name: str, make: Callable[[], T], *sources: Tensor) -> T:
    """Return what `make` computes of frozen weights, kept with `holder` until one of them changes.

    Weights that gradients flow to are never cached: what a training step reads is computed from them each time.

    Args:
        holder: the module or parameter that it is kept with, outside of its state.
        name: of what is kept; there is one of each.
        make: computes it.
        sources: all tensors that it reads.
    """
    if any(each.requires_grad for each in sources):
        return make()
    if is_traced():  # a graph has no addresses to compare; what a module keeps becomes a constant of it
        found = {} if isinstance(holder, Tensor) else holder.__dict__.get("_kept", {})
        return found[name][1] if name in found else make()
    stamp = tuple((each.data_ptr(), 0 if each.is_inference() else each._version) for each in sources)
    cache: dict[str, tuple[Any, Any]] = holder.__dict__.setdefault("_kept", {})
    if name not in cache or cache[name][0] != stamp:
        # kept for good, so never as tensors of inference mode, which no gradient may pass
        with torch.inference_mode(False), torch.no_grad():
            cache[name] = (stamp, make())
    return cache[name][1]


def is_traced() -> bool:
    """Tell whether a graph is being made of this run, for another runtime.

    Then batches stay whole, whatever their size, nothing is looked up by its content, and convolutions stay as they
    are: the other runtime chooses its algorithms itself.
    """
    return torch.compiler.is_compiling()


def in_precision(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight in another precision; a frozen parameter keeps that copy."""
    if weight.dtype == dtype:
        return weight
    if isinstance(weight, torch.nn.Parameter):
        return kept(weight, f"{dtype}", lambda: weight.to(dtype), weight)
    return weight.to(dtype)


def computed_in(x: Tensor) -> torch.dtype:
    """Return the precision in which a convolution of x computes: its own, or that of autocast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


# --- batch normalisation ----------------------------------------------------------------------------------------------


def scale_and_shift(norm: torch.nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """Return what batch normalisation with stored statistics multiplies channels with, and then adds: [channels]."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def normed(norm: torch.nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """Return x [batch, channels, h, w] after batch normalisation, in one pass."""
    scale, shift = kept(norm, "affine", lambda: scale_and_shift(norm), *norm.parameters(), *norm.buffers())
    return torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])


# --- convolutions -----------------------------------------------------------------------------------------------------

FEW = 16
"""Pixels of features that one matrix product serves better than a transposed convolution."""


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, up: int = 1, padding: int = 0) -> Tensor:
    """Convolve in the precision of x, by the algorithm that is fastest for its size.

    Args:
        x: [batch, in, height, width], channels-last.
        weight: [out, in, k, k] in float32; a parameter keeps what is made of it.
        bias: [out].
        up: 2 is a transposed convolution of stride 2, whose kernel is not turned round, and which pads nothing.
        padding: of an ordinary convolution.
    """
    bias = None if bias is None else bias.to(x.dtype)
    fixed = isinstance(weight, torch.nn.Parameter) and not weight.requires_grad
    if up == 1:
        if fixed and suits_winograd(x, weight):
            tiles = kept(weight, "winograd", lambda: winograd_weight(weight), weight)
            return winograd(x, tiles, bias, padding=padding)
        return F.conv2d(x, in_precision(weight, x.dtype), bias, padding=padding)
    if x.shape[2] * x.shape[3] <= FEW and not is_traced():
        return _transposed_by_product(x, weight, bias, fixed)

    def laid_out() -> Tensor:
        return weight.transpose(0, 1).to(x.dtype).contiguous(memory_format=torch.channels_last)

    turned = kept(weight, f"transposed {x.dtype}", laid_out, weight) if fixed else laid_out()
    return F.conv_transpose2d(x, turned, bias, stride=2)


def _transposed_by_product(x: Tensor, weight: Tensor, bias: Tensor | None, fixed: bool) -> Tensor:
    def in_columns() -> Tensor:
        return weight.permute(1, 0, 2, 3).flatten(1).to(x.dtype)  # [in, out * k * k]

    n, (width, inputs, size, _) = len(x), weight.shape
    kernels = kept(weight, f"columns {x.dtype}", in_columns, weight) if fixed else in_columns()
    columns = (x.permute(0, 2, 3, 1).reshape(-1, inputs) @ kernels).view(n, -1, width * size * size)
    sides = (2 * x.shape[2] + size - 2, 2 * x.shape[3] + size - 2)
    out = F.fold(columns.transpose(1, 2), sides, size, stride=2)
    return out if bias is None else out + bias[:, None, None]


def doubling(weight: Tensor) -> Tensor:
    """Turn a 3x3 convolution that follows on repeating every pixel into a transposed one, with 4 products for 9.

    Args:
        weight: [out, in, 3, 3], of padding 1.

    Returns:
        [in, out, 4, 4], of stride 2 and padding 1.
    """
    return summed_taps(weight.flip(2, 3).transpose(0, 1)).contiguous(memory_format=torch.channels_last)


def summed_taps(weight: Tensor) -> Tensor:
    """Turn a 3x3 kernel [in, out, 3, 3] into the 4x4 one of a stride-2 transposed convolution that repeats pixels."""
    taps = [F.pad(weight, (x, 1 - x, y, 1 - y)) for x in (0, 1) for y in (0, 1)]
    return torch.stack(taps).sum(0)


def doubled_convolved(conv: torch.nn.Conv2d, x: Tensor, norm: torch.nn.BatchNorm2d | None = None) -> Tensor:
    """Repeat every pixel of x twice in each direction, convolve by 3x3, and normalise where a norm follows."""
    dtype = computed_in(x)

    def made() -> tuple[Tensor, Tensor | None]:
        weight, bias = with_norm(conv.weight, conv.bias, norm)
        return doubling(weight).to(dtype), None if bias is None else bias.to(dtype)

    sources = [*conv.parameters(), *(() if norm is None else (*norm.parameters(), *norm.buffers()))]
    weight, bias = kept(conv, f"doubling {dtype}", made, *sources)
    return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)


def with_norm(
    weight: Tensor, bias: Tensor | None, norm: torch.nn.modules.batchnorm._BatchNorm | None, *, axis: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Fold batch normalisation into the weights before it, whose outputs lie along `axis`."""
    if norm is None:
        return weight, bias
    scale, shift = scale_and_shift(norm)
    shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
    return weight * scale.view(shape), shift if bias is None else bias * scale + shift


# --- Winograd's algorithm ---------------------------------------------------------------------------------------------

# F(4, 3) by Toom and Cook at 0, 1, -1, 1/2, -2 and infinity, points that round better than the usual ones: a
# correlation of six numbers d with three weights g is four numbers outputs @ ((kernels @ g) * (inputs @ d)).
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)


def _toom_cook() -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs [6, 6], kernels [6, 3] and outputs [4, 6], float64."""
    n = len(_POINTS)
    inputs, kernels, outputs = (
        torch.zeros(shape, dtype=torch.float64) for shape in ((n + 1, n + 1), (n + 1, 3), (4, n + 1))
    )

    def product(roots: list[float]) -> Tensor:
        """Return the coefficients of the polynomial with these roots, the constant first."""
        coefficients = torch.ones(1, dtype=torch.float64)
        for root in roots:
            coefficients = F.pad(coefficients, (1, 0)) - root * F.pad(coefficients, (0, 1))
        return coefficients

    for j, point in enumerate(_POINTS):
        others = [other for other in _POINTS if other != point]
        powers = point ** torch.arange(4, dtype=torch.float64)
        outputs[:, j] = powers
        kernels[j] = powers[:3] / product(others)[:n].dot(point ** torch.arange(n, dtype=torch.float64))
        inputs[j, :n] = product(others)
    inputs[n] = product(list(_POINTS))
    kernels[n, 2] = outputs[3, n] = 1.0
    return inputs, kernels, outputs


def suits_winograd(x: Tensor, weight: Tensor) -> bool:
    """Tell whether Winograd's algorithm is the faster one for this 3x3 convolution, and as exact as it should be.

    It saves three multiplications in four and moves the features four times more often, so it pays on a CPU where
    channels are many, and fewer are enough where a batch shares the weights; in bfloat16 its sums would lose a digit;
    and its gradient is slow.
    """
    n, inputs, height, width = x.shape
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not is_traced()
        and weight.shape[2:] == (3, 3)
        and min(inputs, weight.shape[0]) >= (256 if n == 1 else 128)
        and height * width >= 256
        and not (torch.is_grad_enabled() and x.requires_grad)
    )


def winograd_weight(weight: Tensor) -> Tensor:
    """Return the transform of a kernel [out, in, 3, 3]: [36, in, out]."""
    _, kernels, _ = _toom_cook()
    return (
        torch.einsum("ay,oiyx,bx->abio", kernels, weight.double(), kernels).flatten(0, 1).to(weight.dtype).contiguous()
    )


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: int = 1) -> Tensor:
    """Return the 3x3 convolution of x [batch, in, h, w]: [batch, out, h + 2 padding - 2, w + 2 padding - 2].

    Args:
        x: channels-last.
        weight: of `winograd_weight`.
        bias: [out].
        padding: of the convolution.

    Source:
        Lavin and Gray 2016 (arXiv 1509.09308), section 4.
    """
    inputs, _, outputs = (torch.kron(each, each).to(x.dtype) for each in _toom_cook())
    n, c = x.shape[:2]
    height, width = (side + 2 * padding - 2 for side in x.shape[2:])
    down, across = -(-height // 4), -(-width // 4)  # tiles of 4x4 pixels; the last ones may reach beyond the edge
    edges = (0, 0, padding, padding + 4 * across - width, padding, padding + 4 * down - height)
    padded = F.pad(x.permute(0, 2, 3, 1), edges)  # [n, 4 down + 2, 4 across + 2, c]
    image, row, column, _ = padded.stride()
    tiles = padded.as_strided((6, 6, n, down, across, c), (row, column, image, 4 * row, 4 * column, 1))
    spectra = (inputs @ tiles.reshape(36, -1)).view(36, -1, c)  # [36, tiles, in]
    products = torch.bmm(spectra, weight)  # [36, tiles, out]
    out = (outputs @ products.view(36, -1)).view(4, 4, n, down, across, -1)
    out = out.permute(2, 3, 0, 4, 1, 5).reshape(n, 4 * down, 4 * across, -1)[:, :height, :width].permute(0, 3, 1, 2)
    return out if bias is None else out.add_(bias[:, None, None])
