"""What any image, and any pair of images, tells without weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..reader import Attribute

LUMA = (0.299, 0.587, 0.114)  # Rec. 601
SMALLEST = 16
"""Pixels a side of the coarsest level on which two images are laid over each other."""
ITERATIONS = 12
"""Steps of Gauss and Newton at each level."""


@dataclass(frozen=True)
class Pixels:
    """Brightness, contrast, warmth, saturation, sharpness and left-right symmetry.

    All lie in units of the [0, 1] pixel range; symmetry is 1 for a picture that equals its mirror image.
    """

    name: ClassVar[str] = "pixels"
    attributes: ClassVar[tuple[str, ...]] = ("brightness", "contrast", "warmth", "saturation", "sharpness", "symmetry")

    def __call__(self, images: Tensor) -> Tensor:
        """Return scores [batch, 6] for images [batch, 1 or 3, height, width] in [-1, 1]."""
        rgb = ((images.clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1)
        grey = _grey(rgb)[:, 0]  # [batch, height, width]
        columns = (grey[:, :, 1:] - grey[:, :, :-1]).abs().mean((1, 2))
        rows = (grey[:, 1:] - grey[:, :-1]).abs().mean((1, 2))
        return torch.stack(
            [
                grey.mean((1, 2)),
                grey.flatten(1).std(1),
                (rgb[:, 0] - rgb[:, 2]).mean((1, 2)),
                (rgb.amax(1) - rgb.amin(1)).mean((1, 2)),
                columns + rows,
                1 - (grey - grey.flip(2)).abs().mean((1, 2)),
            ],
            dim=1,
        )

    def describe(self) -> tuple[Attribute, ...]:
        """Say what each score means; their error is 0, since each is its own definition."""
        groups = {"brightness": "colour", "warmth": "colour", "saturation": "colour", "symmetry": "geometry"}
        unit = "of the pixel range"
        return tuple(Attribute(name, "number", groups.get(name, "other"), unit, 0.0) for name in self.attributes)  # type: ignore[arg-type]


def _grey(rgb: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, dtype=rgb.dtype, device=rgb.device)
    return torch.einsum("bchw,c->bhw", rgb.expand(-1, 3, -1, -1), weights)[:, None]


# --- between two images -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Displacement:
    """The shift, zoom and rotation that lay one image on another, and what they leave unexplained: [batch] each."""

    shift_x: Tensor
    """Part of the width by which the content of the first image moved right."""
    shift_y: Tensor
    """Part of the height by which it moved down."""
    zoom: Tensor
    """Factor by which it grew about the centre."""
    rotation: Tensor
    """Degrees by which it turned clockwise about the centre."""
    explained: Tensor
    """Share of the squared grey-value change that this displacement explains; near 0 where the change is none of
    place, and the four figures above mean nothing."""


def displacement(before: Tensor, after: Tensor) -> Displacement:
    """Estimate how the content of `before` was shifted, zoomed and turned to give `after`.

    Grey values are matched by least squares over a similarity, coarse to fine, with steps of Gauss and Newton. Reliable
    for changes within about a tenth of the picture and 15 degrees.

    Args:
        before, after: [batch, 1 or 3, size, size] in [-1, 1].

    Raises:
        UserError: where shapes differ, or pictures are smaller than 16 px.

    Source:
        Lucas and Kanade, 1981; Baker and Matthews, Lucas-Kanade 20 years on, IJCV 2004, section 2.
    """
    if before.shape != after.shape or min(before.shape[-2:]) < SMALLEST:
        raise UserError(
            f"images of shapes {list(before.shape)} and {list(after.shape)} came; give pairs of one shape, "
            f"{SMALLEST} px or more a side"
        )
    first, second = _grey(before.clamp(-1, 1)).double(), _grey(after.clamp(-1, 1)).double()
    levels = [(first, second)]
    while min(levels[-1][0].shape[-2:]) >= 2 * SMALLEST:
        levels.append((F.avg_pool2d(levels[-1][0], 2), F.avg_pool2d(levels[-1][1], 2)))
    motion = torch.zeros(len(first), 4, dtype=torch.float64, device=first.device)  # shift x, y, log zoom, angle
    for one, other in reversed(levels):
        motion = _align(one, other, motion)
    left = (_moved(first, motion) - second).square().mean((1, 2, 3))
    there = (first - second).square().mean((1, 2, 3))
    explained = (1 - left / there.clamp(min=1e-12)).clamp(0, 1) * (there > 1e-9)
    shift_x, shift_y, growth, angle = motion.unbind(1)
    return Displacement(shift_x / 2, shift_y / 2, growth.exp(), angle * 180 / math.pi, explained)


def _moved(images: Tensor, motion: Tensor) -> Tensor:
    """Show images [batch, 1, h, w] after a motion [batch, 4], whose shifts are in half pictures."""
    shift, zoom, angle = motion[:, :2], motion[:, 2].exp(), motion[:, 3]
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    turn = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)  # [batch, 2, 2], the inverse
    matrix = torch.cat([turn, -turn @ shift[:, :, None]], dim=2)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _align(first: Tensor, second: Tensor, motion: Tensor) -> Tensor:
    """Improve a motion [batch, 4] at one level."""
    height, width = first.shape[-2:]
    y = ((torch.arange(height, dtype=torch.float64, device=first.device) + 0.5) * 2 / height - 1)[:, None]
    x = ((torch.arange(width, dtype=torch.float64, device=first.device) + 0.5) * 2 / width - 1)[None]
    for _ in range(ITERATIONS):
        seen = _moved(first, motion)[:, 0]
        along_y, along_x = torch.gradient(seen, dim=(1, 2))
        along_x, along_y = along_x * width / 2, along_y * height / 2
        right, down = x - motion[:, 0, None, None], y - motion[:, 1, None, None]  # from where the centre now lies
        slopes = [-along_x, -along_y, -(along_x * right + along_y * down), -(along_y * right - along_x * down)]
        jacobian = torch.stack(slopes, -1).flatten(1, 2)  # [batch, pixels, 4]
        missing = (second[:, 0] - seen).flatten(1)
        normal = jacobian.mT @ jacobian
        normal = (
            normal + 1e-6 * torch.eye(4).to(normal) * (normal.diagonal(dim1=1, dim2=2).sum(1) + 1e-9)[:, None, None]
        )
        step = torch.linalg.solve(normal, (jacobian.mT @ missing[:, :, None]))[:, :, 0]
        motion = motion + step.clamp(-0.2, 0.2)
    return motion


def change_map(before: Tensor, after: Tensor, cells: int = 8) -> Tensor:
    """Say where two images differ: the share of the squared change in each cell, [batch, cells, cells].

    The shares of a picture sum to 1; a picture that did not change has zeros.

    Args:
        before, after: [batch, channels, height, width] in [-1, 1].
        cells: rows and columns.
    """
    squared = (before.clamp(-1, 1) - after.clamp(-1, 1)).square().mean(1, keepdim=True)
    energy = F.adaptive_avg_pool2d(squared, cells)[:, 0]  # [batch, cells, cells]
    return energy / energy.sum((1, 2), keepdim=True).clamp(min=1e-12)
