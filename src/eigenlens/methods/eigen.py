"""EigenGAN's own axes as directions: what the network learnt to tell apart while it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from ..directions import Directions
from ..effect import measure_effect
from ..generator import Generator
from ..method import provenance


@dataclass(frozen=True)
class Eigen:
    """The dimensions `LiDj` of an EigenGAN: layer i from 1, the deepest, dimension j from 1, as stored.

    The paper ranks the dimensions of a layer by |L_j|. Since |L| hardly leaves its initial value, and a convolution
    follows, three importances stand side by side in `fields`: `importance`, the share of |L_j|·‖u_j‖ in the layer;
    `importance_at_init`, that share before training; and `effect_share`, the measured effect's share in the layer, with
    `effect_share_all`, its share over all layers. `rank` is the place by the first.

    Source:
        EigenGAN, section 3.1.
    """

    measured: bool = True
    """Whether to measure the effects (64 samples of seed 0)."""
    name: ClassVar[str] = "eigen"
    needs: ClassVar[tuple[str, ...]] = ("own_axes",)

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Read the axes out of the network.

        Raises:
            Unsupported: where it is not an EigenGAN.
        """
        own = generator.own_axes()
        directions = Directions(
            own.vectors,
            own.space.name,
            tuple(generator.axis_names.get(name, name) for name in own.names),
            sigma=torch.ones(len(own.names)),
            importance=own.fields["importance"],
            fields=own.fields,
            provenance=provenance(self, generator, seed),
        )
        if not self.measured:
            return directions
        effect = measure_effect(generator, directions)
        layer_total = torch.stack([effect[[each == layer for each in own.layers]].sum() for layer in own.layers])
        shares = {"effect_share": effect / layer_total, "effect_share_all": effect / effect.sum()}
        return directions.with_figures(effect=effect, fields={**own.fields, **shares})
