"""A renderer whose factors are known: x, y, size, hue and angle of a blob live in a rotated subspace of the latent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eigenlens.generator import Generator
from toy_spaces import FunctionToy
from toys import orthonormal_rows

FACTORS = ("x", "y", "size", "hue", "angle")


def blobs(*, dim: int = 32, resolution: int = 24, seed: int = 0, bend: float = 0.0) -> tuple[Generator, Tensor]:
    """Make a generator of one coloured blob on black, and the factors' axes [5, dim], orthonormal rows.

    Args:
        dim: of z; all but five of its dimensions do nothing.
        resolution: of the images in pixels.
        seed: of the rotation.
        bend: how much axes are bent: each factor's coordinate turns by this many radians per σ of the next one, so that
            what changes one factor alone runs along arcs.
    """
    axes = orthonormal_rows(5, dim, seed).float()
    ticks = (torch.arange(resolution) + 0.5) / resolution * 2 - 1

    def render(z: Tensor) -> Tensor:
        factors = z @ axes.to(z).T  # [batch, 5]
        if bend:
            turn = bend * factors
            x, y, s, h, a = factors.unbind(1)
            x, y = x * turn[:, 1].cos() - y * turn[:, 1].sin(), x * turn[:, 1].sin() + y * turn[:, 1].cos()
            s, h = s * turn[:, 3].cos() - h * turn[:, 3].sin(), s * turn[:, 3].sin() + h * turn[:, 3].cos()
            factors = torch.stack([x, y, s, h, a], dim=1)
        x, y, size, hue, angle = torch.tanh(0.5 * factors)[:, :, None, None].unbind(1)  # [batch, 1, 1] each
        u, v = ticks.to(z)[None, None, :] - 0.5 * x, ticks.to(z)[None, :, None] - 0.5 * y
        turn = 0.25 * math.pi * angle  # ±45°: at ±90° both ends would look the same
        along, across = u * turn.cos() + v * turn.sin(), v * turn.cos() - u * turn.sin()
        radius = 0.25 * torch.exp(0.6 * size)
        blob = torch.exp(-((along / (2 * radius)) ** 2) - (across / (0.8 * radius)) ** 2)  # [batch, h, w]
        phase = 2.0 * hue + torch.tensor([0.0, 2.1, 4.2]).to(z)  # [batch, 1, 3]
        colour = (0.5 + 0.5 * phase[:, 0].cos())[:, :, None, None]
        return 2 * colour * blob[:, None] - 1

    return FunctionToy(render, dim, name="blobs"), axes
