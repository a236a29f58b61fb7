"""Whether a direction changes one place of the picture or all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import runtime
from ..directions import Directions
from ..effect import sample_for
from ..generator import Generator
from ..metric import Score, make_score
from .features import ends, in_sigma, plain, spans

CELLS = 8
"""Rows and columns into which a picture is cut."""


@dataclass(frozen=True)
class Locality:
    """How concentrated the change is: 1 where it lies in one of 8 x 8 cells, 0 where all cells change alike.

    It is 1 less the entropy, over its maximum, of how the squared change from -s to +s is shared out over cells, mean
    over codes. The value is the mean over directions; those that change nothing score 0. `details` has for each
    direction its score, the centre of its change and the mean map of shares.

    Ours; no published score.
    """

    n: int = 32
    """Codes."""
    strength: float = 2.0
    """How far each way, in σ; less where limits are nearer."""
    name: ClassVar[str] = "locality_v1"

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Edit, render and compare."""
        directions = in_sigma(generator, directions)
        codes = sample_for(generator, directions, self.n, seed=seed)
        values, centres, maps = [], [], []
        for k, reach in enumerate(runtime.progress(spans(directions, self.strength), what="locality")):
            pieces = []
            for start, stop in runtime.batches(len(codes), max(1, generator.batch_size // 2)):
                below, above = ends(generator, codes[start:stop], directions, k, (-reach, reach)).unbind(1)
                pieces.append(change_shares(below, above))
            shares = torch.cat(pieces)  # [codes, cells, cells]
            values.append(float(concentration(shares).mean()))
            centres.append(centre(shares.mean(0)))
            maps.append(shares.mean(0))
        value = sum(values) / max(len(values), 1)
        found = {"locality": values, "centre": centres, "map": maps, "names": list(directions.names)}
        return make_score(self, generator, directions, value, n=self.n, seed=seed, **plain(found))


def change_shares(before: Tensor, after: Tensor) -> Tensor:
    """Return the share of the squared change in each cell, [batch, cells, cells]; zeros where nothing changed."""
    squared = (before - after).square().mean(1, keepdim=True)
    cells = F.adaptive_avg_pool2d(squared, CELLS)[:, 0].double()
    total = cells.sum((1, 2), keepdim=True)
    return torch.where(total > 1e-9, cells / total.clamp(min=1e-30), 0.0)


def concentration(shares: Tensor) -> Tensor:
    """Return 1 less the entropy over its maximum of shares [batch, rows, columns]; 0 where all are zero: [batch]."""
    flat = shares.flatten(1)
    entropy = -(flat * flat.clamp(min=1e-30).log()).sum(1)
    return torch.where(flat.sum(1) > 0, 1 - entropy / math.log(flat.shape[1]), 0.0)


def centre(shares: Tensor) -> tuple[float, float]:
    """Return where the change lies on the whole: parts of the width and of the height from the upper left corner."""
    places = (torch.arange(len(shares), dtype=shares.dtype) + 0.5) / len(shares)
    total = shares.sum().clamp(min=1e-30)
    return float((shares.sum(0) * places).sum() / total), float((shares.sum(1) * places).sum() / total)
