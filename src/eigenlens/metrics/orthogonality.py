"""How far directions point apart, in the latent space and in what they do to images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .. import runtime
from ..directions import Directions
from ..effect import sample_for
from ..generator import Generator
from ..metric import Score, make_score
from .features import ends, in_sigma, plain, spans


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
    directions.check_straight("an angle between directions")
    flat = torch.nn.functional.normalize(directions.vectors.flatten(1).double())
    if len(flat) < 2:
        return 1.0, 0.0
    cosines = (flat @ flat.T).abs()[~torch.eye(len(flat), dtype=torch.bool)]
    return float(1 - cosines.mean()), float(cosines.max())


@dataclass(frozen=True)
class EffectOrthogonality:
    """One minus the mean |cos| between what different directions do to the same image: 1 where all do different things.

    Of each code the differences between its images at +s and -s are compared as vectors of pixels; the mean is over
    codes. Directions that change nothing have no cosine and are left out. It judges neither sense nor purity: random
    directions in many dimensions can score well.
    """

    n: int = 16
    """Codes."""
    strength: float = 1.0
    """How far each way, in σ; less where limits are nearer. A calibration sets what 2 σ are, so that a comparison walks
    half of the strengths that it records."""
    name: ClassVar[str] = "effect_orthogonality_v1"

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Render the effects and compare them."""
        directions = in_sigma(generator, directions)
        codes = sample_for(generator, directions, self.n, seed=seed)
        reach = spans(directions, self.strength)
        total = torch.zeros(len(directions), len(directions), dtype=torch.float64)
        for start, stop in runtime.batches(self.n, 4):  # the effects of all directions stand in memory at once
            effects = []
            for k in range(len(directions)):
                below, above = ends(generator, codes[start:stop], directions, k, (-reach[k], reach[k])).unbind(1)
                effects.append((above - below).flatten(1))
            total += effect_cosines(torch.stack(effects)).sum(0)
        cosines = total / self.n
        value, worst = one_minus_mean(cosines)
        found = {"cosine": cosines, "largest": worst, "names": list(directions.names)}
        return make_score(self, generator, directions, value, n=self.n, seed=seed, **plain(found))


def effect_cosines(effects: torch.Tensor) -> torch.Tensor:
    """Return |cos| between the effects [k, codes, pixels] of each two directions, code by code: [codes, k, k]."""
    flat = effects.transpose(0, 1).double()
    sizes = flat.norm(dim=2, keepdim=True)
    units = torch.where(sizes > 1e-6, flat / sizes.clamp(min=1e-12), 0.0)
    return (units @ units.mT).abs().clamp(max=1)


def one_minus_mean(cosines: torch.Tensor) -> tuple[float, float]:
    """Return 1 - the mean, and the largest, of the entries [k, k] of different live directions; (1, 0) below two.

    A direction is live where its own entry on the diagonal is not 0.
    """
    live = cosines.diagonal() > 0
    pairs = live[:, None] & live[None] & ~torch.eye(len(cosines), dtype=torch.bool)
    if not pairs.any():
        return 1.0, 0.0
    return float(1 - cosines[pairs].mean()), float(cosines[pairs].max())
