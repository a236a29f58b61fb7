"""Multi-scale sliced Wasserstein distance: how far generated images are from real ones, without any network.

Source:
    Karras, Aila, Laine, Lehtinen, Progressive Growing of GANs, ICLR 2018, section 5: 7x7 patches of each level of the
    Laplacian pyramid, normalised a channel, projected on random directions; the distance of two sorted projections is
    the mean of their absolute differences, and all is given times 1e3. Their 16384 images and 512 projections are by
    default fewer here, to take seconds on a CPU; so only figures of equal counts compare.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import runtime
from ..errors import UserError

PATCH = 7  # pixels a side
PATCHES = 128  # of each image and level
PROJECTIONS = 128
SMALLEST = 16  # pixels of the coarsest level


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Return the levels of the Laplacian pyramid of images [n, c, h, h], finest first, down to 16 px.

    Source:
        Burt and Adelson 1983: the binomial filter [1, 4, 6, 4, 1] / 16 both ways, with mirrored borders.
    """
    levels = []
    while images.shape[-1] >= 2 * SMALLEST:
        smaller = _blurred(images)[..., ::2, ::2]  # [n, c, h / 2, h / 2]
        spread = torch.zeros_like(images)
        spread[..., ::2, ::2] = 4.0 * smaller
        levels.append(images - _blurred(spread))
        images = smaller
    return [*levels, images]


def _blurred(images: Tensor) -> Tensor:
    channels = images.shape[1]
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]).to(images) / 16
    kernel = torch.outer(line, line).expand(channels, 1, 5, 5)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=channels)


def descriptors(level: Tensor, *, seed: int, stream: str) -> Tensor:
    """Cut random patches out of each image of a level, and normalise each channel over all of them.

    Args:
        level: [n, channels, height, width].
        seed, stream: fix the places.

    Returns:
        [n * 128, channels * 49], each channel of mean 0 and variance 1.
    """
    n, _, height, width = level.shape
    places = runtime.generator_for(seed, stream).integers(0, (height - PATCH + 1, width - PATCH + 1), (n * PATCHES, 2))
    top, left = torch.from_numpy(places).T
    offsets = torch.arange(PATCH)
    rows = (top[:, None] + offsets)[:, :, None]  # [n * 128, 7, 1]
    columns = (left[:, None] + offsets)[:, None, :]  # [n * 128, 1, 7]
    owners = torch.arange(n).repeat_interleave(PATCHES)[:, None, None]
    patches = level.movedim(1, -1)[owners, rows, columns]  # [n * 128, 7, 7, c]
    mean, std = patches.mean((0, 1, 2)), patches.std((0, 1, 2))
    return ((patches - mean) / std.clamp(min=1e-8)).flatten(1)


def sliced_wasserstein(a: Tensor, b: Tensor, *, seed: int, projections: int = PROJECTIONS) -> float:
    """Return the mean over random directions of the Wasserstein-1 distance of two projected sets.

    Args:
        a, b: [n, dim], as many rows each.
        seed: fixes the directions.
        projections: how many directions.

    Example:
        >>> points = torch.arange(6.0).reshape(3, 2)
        >>> sliced_wasserstein(points, points.flip(0), seed=0)
        0.0
    """
    if a.shape != b.shape:
        raise UserError(f"sets of shapes {list(a.shape)} and {list(b.shape)} came; give as many rows of each")
    drawn = runtime.generator_for(seed, "projections").standard_normal((a.shape[1], projections), np.float32)
    directions = F.normalize(torch.from_numpy(drawn), dim=0)
    distances = []
    for some in directions.split(16, dim=1):  # few at a time: the projections of all would fill the memory
        ordered = [(rows @ some).T.contiguous().sort(dim=1).values for rows in (a, b)]
        distances.append((ordered[0] - ordered[1]).abs().mean(1))
    return float(torch.cat(distances).mean())


def multiscale_distance(real: Tensor, fake: Tensor, *, seed: int = 0) -> dict[int, float]:
    """Return 1e3 x the sliced Wasserstein distance of two sets of images at each level of the Laplacian pyramid.

    Args:
        real, fake: [n, channels, height, height], float in [-1, 1], as many each.
        seed: fixes patches and projections.

    Returns:
        Level in pixels, finest first -> distance; below 7 px there is none.

    Raises:
        UserError: where the two sets differ in shape, or are smaller than a patch.
    """
    if real.shape != fake.shape or real.shape[-1] != real.shape[-2] or real.shape[-1] < PATCH:
        raise UserError(
            f"images of shapes {list(real.shape)} and {list(fake.shape)} came; give as many real as generated ones, "
            f"square, of {PATCH} px or more"
        )
    distances = {}
    for level_real, level_fake in zip(laplacian_pyramid(real), laplacian_pyramid(fake), strict=True):
        size = level_real.shape[-1]
        a = descriptors(level_real, seed=seed, stream=f"patches/real/{size}")
        b = descriptors(level_fake, seed=seed, stream=f"patches/fake/{size}")
        distances[size] = 1e3 * sliced_wasserstein(a, b, seed=seed)
    return distances


def has_stopped_improving(history: list[float], *, patience: int, margin: float = 0.01) -> bool:
    """Tell whether the best of the last `patience` values is not better than the best before them by `margin`.

    Example:
        >>> has_stopped_improving([9.0, 5.0, 5.1, 5.2], patience=2)
        True
        >>> has_stopped_improving([9.0, 5.0, 4.0, 5.2], patience=2)
        False
    """
    if len(history) <= patience:
        return False
    return min(history[-patience:], default=math.inf) > (1.0 - margin) * min(history[:-patience])
