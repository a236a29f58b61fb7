"""SeFa: what changes a layer's input most, from its weights alone (Shen & Zhou, CVPR 2021, arXiv 2007.06600)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import runtime
from ..codes import Space
from ..directions import Directions, standard_deviation, unit_norm
from ..errors import UserError
from ..generator import Generator, StyleMatrix
from ..method import provenance
from .linalg import eigen_descending, gram, matched_cosines, one_thread


@dataclass(frozen=True)
class SeFa:
    """Eigenvectors of AᵀA, where A stacks the matrices by which the latent enters the chosen layers.

    The defaults are those of the authors' code. Published variants: `normalise="none", to_rgb="first"` is rosinality's
    closed_form_factorization; `normalise="none", to_rgb="none"` is MMGeneration's. The authors call `eig`, which gives
    no order; these come by `eigh`, largest eigenvalue first.

    Layers fed by different slots of w+ are stacked; layers fed by different coordinates (EigenGAN, hierarchical z) keep
    to their own, so that each direction lies in one part. `importance` is the share of an eigenvalue in the sum of all;
    `agreement` compares the directions of two random halves of the output channels.

    Source:
        SeFa, section 3.2, equations 5 to 8.
    """

    n_directions: int = 10
    """How many at most; layers that see fewer coordinates give one for each."""
    layers: str = "all"
    """Layer range to factorise, and to edit."""
    normalise: Literal["column", "layer", "none"] = "column"
    """`column`: each output channel has norm 1, so that all count alike (the authors' code). `layer`: each layer does.
    `none`: the weights as they are."""
    to_rgb: Literal["last", "all", "none", "first"] = "last"
    """Which of the layers that make the image count: of several ToRGB the last one (the authors' code), all, none, or
    the first."""
    agreement_draws: int = 10
    """Random halves to draw for `agreement`; 0 leaves it out."""
    name: ClassVar[str] = "sefa"

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Factorise the weights; `seed` only draws the halves for `agreement`.

        Raises:
            Unsupported: where no layer of the generator is known to be linear in its latent.
        """
        if self.n_directions < 1:
            raise UserError(f"{self.n_directions} directions were asked for; give 1 or more")
        space = generator.style_space
        matrices = chosen_matrices(generator, self.layers, self.to_rgb)
        slots = _own_slots(generator, space)
        blocks = normalised(matrices, self.normalise, slot_dim=space.dim if slots > 1 else 0)
        with one_thread():
            values, vectors = factorise(blocks, slots * space.dim, self.n_directions)  # [k], [k, slots * dim]
            agreement = self._agreement(vectors, blocks, seed)
        final = unit_norm(vectors.float().unflatten(1, (slots, space.dim)))
        return Directions(
            final,
            space.broadcast_of or space.name,
            tuple(f"sefa-{i}" for i in range(len(final))),
            layers=(self.layers,) * len(final),
            sigma=standard_deviation(final, space),
            importance=values / sum(float(weight.square().sum()) for _, weight in blocks),
            agreement=agreement,
            fields={"eigenvalue": values.float()},
            provenance=provenance(self, generator, seed),
        )

    def _agreement(self, vectors: Tensor, blocks: list[Block], seed: int) -> Tensor:
        if self.agreement_draws < 1:
            return torch.full((len(vectors),), math.nan)
        cosines = []
        for draw in range(self.agreement_draws):
            chance = runtime.generator_for(seed, "sefa/halves", draw)
            orders = [torch.from_numpy(chance.permutation(len(weight))) for _, weight in blocks]
            halves = []
            for side in (0, 1):
                half = [
                    (start, weight[order[side::2]].float())
                    for (start, weight), order in zip(blocks, orders, strict=True)
                ]
                halves.append(factorise(half, vectors.shape[1], len(vectors))[1])
            cosines.append(matched_cosines(vectors, *halves))
        return torch.stack(cosines).mean(0)


Block = tuple[int, Tensor]
"""Where in a flat latent a matrix begins, and the matrix [out, columns]."""


def chosen_matrices(generator: Generator, layers: str, to_rgb: str) -> dict[str, StyleMatrix]:
    """Return the style matrices of a layer range, with those of its ToRGB layers that `to_rgb` keeps.

    Raises:
        UserError: where nothing is left.
    """
    if to_rgb not in ("last", "all", "none", "first"):
        raise UserError(f"to_rgb {to_rgb!r} is not known; allowed: last, all, none, first")
    picked = generator.style_matrices(layers)
    makes_image = [name for name in generator.style_matrices("all") if _is_to_rgb(name)]
    kept = {"all": makes_image, "none": [], "last": makes_image[-1:], "first": makes_image[:1]}[to_rgb]
    chosen = {name: matrix for name, matrix in picked.items() if name in kept or name not in makes_image}
    if not chosen:
        raise UserError(
            f"the layers {layers!r} of {generator.name} hold no matrix to factorise with to_rgb {to_rgb!r}; "
            f"those with one: {', '.join(generator.style_matrices('all'))}"
        )
    return chosen


def _is_to_rgb(layer: str) -> bool:
    return "rgb" in layer.rsplit(".", 1)[-1].lower()


def normalised(matrices: dict[str, StyleMatrix], normalise: str, *, slot_dim: int) -> list[Block]:
    """Normalise the matrices and say where in a flat latent each begins.

    Args:
        matrices: by layer.
        normalise: see `SeFa`.
        slot_dim: distance of two slots in the flat latent; 0 where one slot stands for all, so that layers of different
            slots see the same coordinates.
    """
    if normalise not in ("column", "layer", "none"):
        raise UserError(f"normalise {normalise!r} is not known; allowed: column, layer, none")
    blocks = []
    for matrix in matrices.values():
        weight = matrix.weight.detach().cpu().double()
        if normalise == "column":
            weight = torch.nn.functional.normalize(
                weight, dim=1
            )  # an output channel is a column of the authors' matrix
        elif normalise == "layer":
            weight = weight / weight.norm()
        blocks.append((matrix.part.start + matrix.part.slot * slot_dim, weight))
    return blocks


def factorise(blocks: list[Block], dim: int, k: int) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvalues and eigenvectors of the sum of all AᵀA, each at its place.

    Matrices that see no coordinate in common are decomposed apart, so that no eigenvector mixes them.

    Args:
        blocks: see `normalised`.
        dim: length of a flat latent.
        k: how many at most; those that change nothing are left out.

    Returns:
        [k] and [k, dim], largest first.
    """
    groups: list[list[Block]] = []
    reach = 0
    for block in sorted(blocks, key=lambda each: each[0]):
        if not groups or block[0] >= reach:
            groups.append([])
        groups[-1].append(block)
        reach = max(reach, block[0] + block[1].shape[1])
    found_values, found_vectors = [], []
    for group in groups:
        values, vectors = _factorise_together(group, k)
        start = group[0][0]
        found_values.append(values)
        found_vectors.append(torch.nn.functional.pad(vectors, (start, dim - start - vectors.shape[1])))
    values, vectors = torch.cat(found_values), torch.cat(found_vectors)
    order = values.argsort(descending=True, stable=True)[:k]
    order = order[values[order] > 1e-6 * values.max()]
    return values[order], vectors[order]


def _factorise_together(group: list[Block], k: int) -> tuple[Tensor, Tensor]:
    low = group[0][0]
    width = max(start + weight.shape[1] for start, weight in group) - low
    places: dict[tuple[int, int], list[Tensor]] = {}
    for start, weight in group:
        places.setdefault((start - low, start - low + weight.shape[1]), []).append(weight)
    total = torch.zeros(width, width, dtype=group[0][1].dtype)
    for (start, stop), weights in places.items():
        total[start:stop, start:stop] += gram(torch.cat(weights))
    return eigen_descending(total, min(k, width))


def _own_slots(generator: Generator, space: Space) -> int:
    """Return how many slots of the space differ from one another in its codes: 1 where one stands for all."""
    if space.slots == 1 or space.broadcast_of:
        return 1
    label = 0 if generator.label_names else None
    return generator.sample(1, space=space.name, label=label).latent.shape[1]
