"""How close what directions do to images comes to the principal components of the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..directions import Directions
from ..effect import sample_for
from ..errors import UserError
from ..generator import Generator
from ..metric import Score, make_score
from .features import collect, ends, in_sigma, plain, spans


@dataclass(frozen=True)
class PrincipalCloseness:
    """Mean over directions of the largest |cos| between a direction's effect and any leading principal component.

    The effect is the mean over codes of the difference of images at +s and -s, as a vector of pixels; the components
    are those of the generator's own images, the most varying first. 1: every direction moves images along one
    principal component. A direction that changes nothing counts 0. High is not good by itself: principal components of
    pixels are seldom one attribute each. Two directions may lie along the same component; `distinct` counts each once.

    Source:
            EigenGAN, whose linear case is principal component analysis; PCA in pixels, Turk and Pentland, 1991.
    """

    n: int = 32
    """Codes that are moved."""
    n_samples: int = 1024
    """Images whose components are computed."""
    n_components: int = 10
    """Leading components that are compared with."""
    strength: float = 1.0
    """How far each way, in σ; less where limits are nearer. A calibration sets what 2 σ are, so that a comparison walks
    half of the strengths that it records."""
    name: ClassVar[str] = "principal_closeness_v1"

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Render samples and effects and compare them.

        Raises:
            UserError: where there are not more samples than components.
        """
        if self.n_samples <= self.n_components:
            raise UserError(f"{self.n_samples} samples came for {self.n_components} components; take more samples")
        directions = in_sigma(generator, directions)
        samples = sample_for(generator, directions, self.n_samples, seed=seed + 1)
        images = collect(generator, samples, lambda x: x.flatten(1).float())
        codes, reach = sample_for(generator, directions, self.n, seed=seed), spans(directions, self.strength)
        effects = []
        for k in range(len(directions)):
            below, above = ends(generator, codes, directions, k, (-reach[k], reach[k])).unbind(1)
            effects.append((above - below).mean(0).flatten())
        cosines = closeness(torch.stack(effects), principal_components(images, self.n_components))
        best = cosines.amax(1)
        which = cosines.argmax(1)
        found = {
            "closeness": best,
            "component": which + 1,
            "within": cosines.square().sum(1),
            "distinct": len(set(which[best > 0].tolist())),
            "names": list(directions.names),
        }
        return make_score(self, generator, directions, float(best.mean()), n=self.n, seed=seed, **plain(found))


def principal_components(rows: Tensor, k: int) -> Tensor:
    """Return the k leading principal components of rows [n, dim], of unit norm, [k, dim]."""
    centred = (rows - rows.mean(0)).double()
    _, vectors = torch.linalg.eigh(centred @ centred.T)  # ascending; n is less than the pixels are
    return torch.nn.functional.normalize(vectors[:, -k:].flip(1).T @ centred)


def closeness(effects: Tensor, components: Tensor) -> Tensor:
    """Return |cos| of effects [k, dim] and components [m, dim] of unit norm, [k, m]; 0 where an effect is none."""
    flat = effects.double()
    sizes = flat.norm(dim=1, keepdim=True)
    return (torch.where(sizes > 1e-6, flat / sizes.clamp(min=1e-12), 0.0) @ components.double().T).abs().clamp(max=1)
