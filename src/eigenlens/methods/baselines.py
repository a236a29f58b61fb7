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


@dataclass(frozen=True)
class Axes:
    """The coordinate axes of the space, the first ones first."""

    n_directions: int = 10
    """How many."""
    space: str | None = None
    """The space; by default the generator's own default."""
    name: ClassVar[str] = "axes"

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Return the first axes of the space."""
        space = chosen_space(generator, self.space)
        check_count(self.n_directions, space.dim)
        vectors = torch.eye(space.dim)[: self.n_directions, None, :]
        return Directions(
            vectors,
            space.name,
            tuple(f"axis-{i}" for i in range(self.n_directions)),
            sigma=standard_deviation(vectors, space),
            provenance=provenance(self, generator, seed),
        )


@dataclass(frozen=True)
class Random:
    """Random directions: what finding nothing looks like."""

    n_directions: int = 10
    """How many."""
    space: str | None = None
    """The space; by default the generator's own default."""
    law: Literal["orthonormal", "covariance"] = "orthonormal"
    """`orthonormal`: uniform among orthonormal frames (Haar). `covariance`: each drawn from N(0, Σ) with the covariance
    of the space, so that directions along which codes vary come more often."""
    name: ClassVar[str] = "random"

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Draw the directions that `seed` fixes; the first k do not depend on how many are drawn."""
        space = chosen_space(generator, self.space)
        check_count(self.n_directions, space.dim)
        drawn = torch.from_numpy(runtime.draw(self.n_directions, space.dim, seed=seed, stream="method/random"))
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
            tuple(f"random-{i}" for i in range(self.n_directions)),
            sigma=standard_deviation(vectors, space),
            provenance=provenance(self, generator, seed),
        )
