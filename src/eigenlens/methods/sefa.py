"""SeFa: what changes a layer's input most, from its weights alone (Shen & Zhou, CVPR 2021, arXiv 2007.06600)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from .. import runtime
from ..codes import Space
from ..directions import Directions, standard_deviation, unit_norm
from ..errors import UserError
from ..generator import Generator, StyleMatrix
from ..method import provenance
from .linalg import eigen_descending, gram, leading_of_several, matched_cosines, one_thread


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
    needs: ClassVar[tuple[str, ...]] = ("style_matrices",)

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
        dim, k = slots * space.dim, self.n_directions
        with one_thread():
            stretches = parted(blocks)
            totals = [each.total for each in stretches]
            leading = [eigen_descending(total, min(2 * k, len(total))) for total in totals]
            values, vectors = strongest(stretches, leading, dim, k)  # [k], [k, slots * dim]
            agreement = self._agreement(vectors, stretches, [frame for _, frame in leading], seed)
        final = unit_norm(vectors.float().unflatten(1, (slots, space.dim)))
        return Directions(
            final,
            space.broadcast_of or space.name,
            tuple(f"sefa-{i}" for i in range(len(final))),
            layers=(self.layers,) * len(final),
            sigma=standard_deviation(final, space),
            importance=values / sum(float(total.trace()) for total in totals),
            agreement=agreement,
            fields={"eigenvalue": values.float()},
            provenance=provenance(self, generator, seed),
        )

    def _agreement(self, vectors: Tensor, stretches: list[Stretch], guesses: list[Tensor], seed: int) -> Tensor:
        k, dim = vectors.shape
        if self.agreement_draws < 1:
            return torch.full((k,), math.nan)
        chance = runtime.generator_for(seed, "sefa/halves")
        sides = np.zeros((self.agreement_draws, 2, PARTS), np.float32)
        for draw in range(self.agreement_draws):
            chosen = chance.permutation(PARTS)
            sides[draw, 0, chosen[: PARTS // 2]] = sides[draw, 1, chosen[PARTS // 2 :]] = 1.0
        found = []
        for stretch, guess in zip(stretches, guesses, strict=True):
            halves = torch.from_numpy(sides).flatten(0, 1) @ stretch.parts.flatten(1)  # [2 * draws, width * width]
            found.append(leading_of_several(halves.view(-1, stretch.width, stretch.width), guess.float()))
        ours = [strongest(stretches, [(v[i], f[i]) for v, f in found], dim, k)[1] for i in range(2 * len(sides))]
        return torch.stack([matched_cosines(vectors, *ours[i : i + 2]) for i in range(0, len(ours), 2)]).mean(0)


PARTS = 20
"""Random parts of the output channels; each draw for `agreement` gives ten of them to either half."""
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
        weight = matrix.weight.detach().cpu().float()
        if normalise == "column":
            weight = torch.nn.functional.normalize(
                weight, dim=1
            )  # an output channel is a column of the authors' matrix
        elif normalise == "layer":
            weight = weight / weight.norm()
        blocks.append((matrix.part.start + matrix.part.slot * slot_dim, weight))
    return blocks


@dataclass(frozen=True)
class Stretch:
    """Coordinates that some matrices see and no others do, with AᵀA of parts of these matrices' output channels."""

    start: int
    parts: Tensor
    """[PARTS, width, width]."""

    @property
    def width(self) -> int:
        """Number of coordinates."""
        return self.parts.shape[1]

    @property
    def total(self) -> Tensor:
        """AᵀA of all channels, float64 [width, width]."""
        return self.parts.sum(0, dtype=torch.float64)


def parted(blocks: list[Block]) -> list[Stretch]:
    """Group the matrices by the coordinates that they share, and deal the output channels of each into PARTS at random.

    Args:
        blocks: see `normalised`.
    """
    groups: list[list[Block]] = []
    reach = 0
    for block in sorted(blocks, key=lambda each: each[0]):
        if not groups or block[0] >= reach:
            groups.append([])
        groups[-1].append(block)
        reach = max(reach, block[0] + block[1].shape[1])
    return [_stretch(group) for group in groups]


def _stretch(group: list[Block]) -> Stretch:
    low = group[0][0]
    width = max(start + weight.shape[1] for start, weight in group) - low
    places: dict[tuple[int, int], list[Tensor]] = {}
    for start, weight in group:
        places.setdefault((start - low, start - low + weight.shape[1]), []).append(weight)
    parts = torch.zeros(PARTS, width, width)
    for (start, stop), weights in places.items():
        dealt = np.concatenate([_deal(len(weight), i) for i, weight in enumerate(weights)])
        rows = torch.cat(weights)[torch.from_numpy(dealt.argsort(kind="stable"))]
        for part, some in enumerate(rows.split(np.bincount(dealt, minlength=PARTS).tolist())):
            parts[part, start:stop, start:stop] += gram(some)
    return Stretch(low, parts)


def _deal(n: int, index: int) -> np.ndarray:
    """Return the part of each of n channels; no seed of the user's, so that it never changes the directions."""
    return runtime.generator_for(0, "sefa/parts", index).permutation(n) % PARTS


def strongest(
    stretches: list[Stretch], leading: list[tuple[Tensor, Tensor]], dim: int, k: int
) -> tuple[Tensor, Tensor]:
    """Return the strongest eigenvectors of all stretches, each at its place, so that none mixes two of them.

    Args:
        stretches: see `parted`.
        leading: of each, eigenvalues [some] and eigenvectors [some, width].
        dim: length of a flat latent.
        k: how many at most; those that change nothing are left out.

    Returns:
        [k] and [k, dim], largest first.
    """
    values = torch.cat([values for values, _ in leading])
    vectors = torch.cat([
        torch.nn.functional.pad(frame, (each.start, dim - each.start - each.width))
        for each, (_, frame) in zip(stretches, leading, strict=True)
    ])  # fmt: skip
    order = values.argsort(descending=True, stable=True)[:k]
    order = order[values[order] > 1e-6 * values.max()]
    return values[order], vectors[order]


def _own_slots(generator: Generator, space: Space) -> int:
    """Return how many slots of the space differ from one another in its codes: 1 where one stands for all."""
    if space.slots == 1 or space.broadcast_of:
        return 1
    label = 0 if generator.label_names else None
    return generator.sample(1, space=space.name, label=label).latent.shape[1]
