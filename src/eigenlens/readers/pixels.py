"""Attributes of any image that need no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pixels:
    """Brightness, contrast, warmth, saturation, sharpness and left-right symmetry.

    All lie in units of the [0, 1] pixel range; symmetry is 1 for a picture that equals its mirror image.
    """

    name: ClassVar[str] = "pixels"
    attributes: ClassVar[tuple[str, ...]] = ("brightness", "contrast", "warmth", "saturation", "sharpness", "symmetry")

    def __call__(self, images: Tensor) -> Tensor:
        """Return scores [batch, 6] for images [batch, 1 or 3, height, width] in [-1, 1]."""
        rgb = (images.clamp(-1, 1) + 1) / 2
        rgb = rgb.expand(-1, 3, -1, -1)
        weights = torch.tensor([0.299, 0.587, 0.114], dtype=rgb.dtype, device=rgb.device)  # luma of Rec. 601
        grey = torch.einsum("bchw,c->bhw", rgb, weights)
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
