"""A generator whose factors are known exactly, a reader that reads them exactly, and directions of every quality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eigenlens import Directions
from eigenlens.reader import Attribute
from toy_spaces import FunctionToy

FACTORS = ("size", "turn", "hue", "tone")
IDLE = 2
"""Coordinates of z that change nothing."""
STEP = 0.1
"""Grey value by which one σ of a factor changes its square."""


def paint(z: Tensor) -> Tensor:
    """Paint factor j, which is coordinate j of z, as the grey value of square j of 2 x 2: [batch, 3, 16, 16]."""
    squares = (STEP * z[:, : len(FACTORS)]).view(-1, 1, 2, 2)
    return squares.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)


def factor_toy() -> FunctionToy:
    """Make the generator: six coordinates, of which four are factors."""
    return FunctionToy(paint, len(FACTORS) + IDLE, name="factors")


@dataclass(frozen=True)
class Squares:
    """Read the four factors back, in σ."""

    name: ClassVar[str] = "squares"
    attributes: ClassVar[tuple[str, ...]] = FACTORS

    def __call__(self, images: Tensor) -> Tensor:
        """Return [batch, 4]."""
        return images[:, 0, 4::8, 4::8].flatten(1) / STEP

    def describe(self) -> tuple[Attribute, ...]:
        """Say what they are."""
        groups = ("geometry", "geometry", "colour", "colour")
        return tuple(Attribute(name, "number", group, "σ", 1e-3) for name, group in zip(FACTORS, groups, strict=True))


def along(*rows: list[float]) -> Directions:
    """Make directions of these coordinates, normalised."""
    vectors = torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32))[:, None]
    names = tuple(f"d{i}" for i in range(len(rows)))
    return Directions(vectors, "z", names, sigma=torch.ones(len(rows)))


def unit(j: int) -> list[float]:
    """Return coordinate axis j of z."""
    return [float(i == j) for i in range(len(FACTORS) + IDLE)]


PERFECT = along(*[unit(j) for j in range(4)])
DUPLICATED = along(unit(0), unit(0), unit(0), unit(0))
USELESS = along(unit(4), unit(5))
MIXED = along([1, 1, 1, 1, 0, 0], [1, -1, 1, -1, 0, 0], [1, 1, -1, -1, 0, 0], [1, -1, -1, 1, 0, 0])
