"""Baselines: the axes of the latent space, and random directions. Any method must beat them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from .. import runtime
from ..codes import Space
from ..directions import Directions, standard_deviation, unit_norm
from ..errors import UserError
from ..generator import Generator
from ..method import check_count, chosen_space, provenance

USUAL = 10
"""Directions where none were asked for and the space has room."""


def count_in(dim: int, asked: int | None) -> int:
    """Return how many directions to make in a space of `dim` dimensions.

    Raises:
        UserError: where more were asked for than it has, or none.
    """
    if asked is None:
        return min(USUAL, dim)
    check_count(asked, dim)
    return asked


def in_turn(space: Space) -> list[int]:
    """Return the coordinates of a slot in an order that goes round its parts: the first of each, then the second.

    Example:
        >>> from eigenlens.codes import Part
        >>> in_turn(Space("z", 1, 5, (Part("eps", 0, 0, 0, 3), Part("layer1", 1, 0, 3, 5))))
        [0, 3, 1, 4, 2]
    """
    stretches = dict.fromkeys((part.start, part.stop) for part in space.parts)  # slots of one layout have one
    rounds = itertools.zip_longest(*(range(start, stop) for start, stop in stretches))
    ordered = dict.fromkeys(i for each in rounds for i in each if i is not None)
    return [*ordered, *(i for i in range(space.dim) if i not in ordered)]


@dataclass(frozen=True)
class Axes:
    """Coordinate axes of the space: the first ones; where a code has parts, the first of each, then the second.

    An EigenGAN's code begins with its noise eps, as long as all of its layers together: the first ten coordinates would
    say nothing about the rest. A space of one part is walked from its first coordinate on.
    """

    n_directions: int | None = None
    """How many; by default 10, or as many as the space has dimensions."""
    space: str | None = None
    """The space; by default the generator's own default."""
    name: ClassVar[str] = "axes"

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Return the axes, each named after its coordinate; `seed` changes nothing."""
        space = chosen_space(generator, self.space)
        n = count_in(space.dim, self.n_directions)
        chosen = in_turn(space)[:n]
        vectors = torch.eye(space.dim)[chosen, None, :]
        return Directions(
            vectors,
            space.name,
            tuple(f"axis-{i}" for i in chosen),
            sigma=standard_deviation(vectors, space),
            provenance=provenance(self, generator, seed),
        )


@dataclass(frozen=True)
class Random:
    """Random directions: what finding nothing looks like."""

    n_directions: int | None = None
    """How many; by default 10, or as many as the space has dimensions."""
    space: str | None = None
    """The space; by default the generator's own default."""
    law: Literal["orthonormal", "covariance"] = "orthonormal"
    """`orthonormal`: uniform among orthonormal frames (Haar). `covariance`: each drawn from N(0, Σ) with the covariance
    of the space, so that directions along which codes vary come more often."""
    name: ClassVar[str] = "random"

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Draw the directions that `seed` fixes; the first k do not depend on how many are drawn."""
        space = chosen_space(generator, self.space)
        n = count_in(space.dim, self.n_directions)
        drawn = torch.from_numpy(runtime.draw(n, space.dim, seed=seed, stream="method/random"))
        if self.law == "orthonormal":
            basis, triangle = torch.linalg.qr(drawn.T)
            vectors = (basis * triangle.diagonal().sign()).T  # [k, dim]; the sign makes it Gram-Schmidt, hence Haar
        elif self.law == "covariance":
            values, frame = torch.linalg.eigh(space.covariance)
            vectors = drawn * values.clamp(min=0).sqrt() @ frame.T  # [k, dim]
        else:
            raise UserError(f"law {self.law!r} is not known; allowed: orthonormal, covariance")
        vectors = unit_norm(vectors[:, None, :])
        return Directions(
            vectors,
            space.name,
            tuple(f"random-{i}" for i in range(n)),
            sigma=standard_deviation(vectors, space),
            provenance=provenance(self, generator, seed),
        )
