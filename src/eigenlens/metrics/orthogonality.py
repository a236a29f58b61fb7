"""How far directions point apart in the latent space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..directions import Directions
from ..generator import Generator
from ..metric import Score, make_score


@dataclass(frozen=True)
class LatentOrthogonality:
    """One minus the mean |cos| between different directions: 1 where all are orthogonal, 0 where all are the same.

    A single direction scores 1. The latent's geometry is not that of images; two orthogonal directions may do the same.
    """

    name: ClassVar[str] = "latent_orthogonality_v1"
    uses_strength: ClassVar[bool] = False

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Compute the score from the vectors alone; `seed` changes nothing."""
        value, worst = latent_orthogonality(directions)
        return make_score(self, generator, directions, value, n=len(directions), seed=seed, largest_cosine=worst)


def latent_orthogonality(directions: Directions) -> tuple[float, float]:
    """Return 1 - mean |cos| and the largest |cos| over all pairs of different directions."""
    flat = torch.nn.functional.normalize(directions.vectors.flatten(1).double())
    if len(flat) < 2:
        return 1.0, 0.0
    cosines = (flat @ flat.T).abs()[~torch.eye(len(flat), dtype=torch.bool)]
    return float(1 - cosines.mean()), float(cosines.max())
