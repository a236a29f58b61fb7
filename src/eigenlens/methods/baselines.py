"""Baselines: the axes of the latent space, and random directions. Any method must beat them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from .. import runtime
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


@dataclass(frozen=True)
class Axes:
    """The coordinate axes of the space, the first ones first."""

    n_directions: int | None = None
    """How many; by default 10, or as many as the space has dimensions."""
    space: str | None = None
    """The space; by default the generator's own default."""
    name: ClassVar[str] = "axes"

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Return the first axes of the space."""
        space = chosen_space(generator, self.space)
        n = count_in(space.dim, self.n_directions)
        vectors = torch.eye(space.dim)[:n, None, :]
        return Directions(
            vectors,
            space.name,
            tuple(f"axis-{i}" for i in range(n)),
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
