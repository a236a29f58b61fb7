"""EigenGAN's own axes as directions: what the network learnt to tell apart while it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import runtime
from ..codes import Codes, Part
from ..directions import Directions
from ..effect import measure_effect
from ..errors import UserError
from ..generator import Generator, OwnAxes, State
from ..method import provenance
from .linalg import eigen_descending, gram, matched_cosines


@dataclass(frozen=True)
class Eigen:
    """The axes of each layer of an EigenGAN, layer 1 the deepest.

    `stored`: its dimensions `LiDj` as they are stored. Since convolutions follow a subspace, U and L are not
    identifiable alone: another U and L with other convolutions is the same network. The two other bases of a layer's z
    do not depend on that. `injected`: the right singular vectors of all that z adds to features, A = (both injections)
    ∘ U diag(L), from its q x q Gram matrix; the linear part of the layer. `image`: the eigenvectors of the mean of JᵀJ
    over codes, with J the derivative of the image by this layer's z; what z does in the end. Both are ranked by
    singular value, the largest first. In a linear network with isometric convolutions all three are the principal
    components.

    The paper ranks the stored dimensions of a layer by |L_j|. Since |L| hardly leaves its initial value, several
    importances stand side by side in `fields`. Stored: `importance`, the share of |L_j|·‖u_j‖ in the layer, and
    `importance_at_init`, that share before training. The others: `importance`, the singular value's share in the layer;
    `singular_value`, of `image` the RMS pixel change per σ; and `stored_cosine`, |cos| with the nearest stored
    dimension. All: `rank` by importance; and `effect_share`, the measured effect's share in the layer, with
    `effect_share_all`, its share over all layers. `split_half` of `image` compares even with odd codes.

    Source:
        EigenGAN, section 3.1; `injected` and `image` are ours.
    """

    basis: Literal["stored", "injected", "image"] = "stored"
    """Which axes of each layer's z."""
    n_samples: int = 32
    """Codes in the mean of `image`."""
    measured: bool = True
    """Whether to measure the effects (64 samples of seed 0)."""
    name: ClassVar[str] = "eigen"
    needs: ClassVar[tuple[str, ...]] = ("own_axes",)

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Read the axes out of the network; `seed` draws the codes of `image`.

        Raises:
            UserError: on an unknown basis, or no samples.
            Unsupported: where it is not an EigenGAN.
        """
        if self.basis not in ("stored", "injected", "image"):
            raise UserError(f"basis {self.basis!r} is not known; allowed: stored, injected, image")
        if self.n_samples < 2:
            raise UserError(f"{self.n_samples} samples came; the mean of JᵀJ and its halves take 2 or more")
        own = generator.own_axes()
        if self.basis == "stored":
            directions = Directions(
                own.vectors,
                own.space.name,
                tuple(" ".join([name, *generator.axis_names.get(name, "").split()]) for name in own.names),
                sigma=torch.ones(len(own.names)),
                importance=own.fields["importance"],
                fields=own.fields,
                provenance=provenance(self, generator, seed),
            )
        else:
            directions = self._rotated(generator, own, seed)
        if not self.measured:
            return directions
        effect = measure_effect(generator, directions)
        layer_total = torch.stack([effect[[each == layer for each in own.layers]].sum() for layer in own.layers])
        shares = {"effect_share": effect / layer_total, "effect_share_all": effect / effect.sum()}
        return directions.with_figures(effect=effect, fields={**directions.fields, **shares})

    def _rotated(self, generator: Generator, own: OwnAxes, seed: int) -> Directions:
        """Return the axes of another basis, in the layers' order."""
        parts = [part for part in own.space.parts if part.name in own.layers]
        vectors = torch.zeros(len(own.names), own.space.dim, dtype=torch.float64)
        found: dict[str, list[Tensor]] = {name: [] for name in ("importance", "singular_value", "rank", "split_half")}
        names: list[str] = []
        for part in runtime.progress(parts, what=f"{self.basis} axes"):
            q, start = part.stop - part.start, len(names)
            halves = self._grams(generator, part, seed)
            values, rows = eigen_descending(halves.mean(0))
            vectors[start : start + q, part.start : part.stop] = rows
            size = values.sqrt()
            found["singular_value"].append(size)
            found["importance"].append(size / size.sum().clamp(min=1e-30))
            found["rank"].append(torch.arange(1.0, q + 1))
            found["split_half"].append(matched_cosines(rows, *(eigen_descending(half)[1] for half in halves)))
            names += [f"L{part.number}-{self.basis}-{j}" for j in range(1, q + 1)]
        figures = {name: torch.cat(each).float() for name, each in found.items()}
        split_half = figures.pop("split_half")
        return Directions(
            vectors.float()[:, None, :],
            own.space.name,
            tuple(names),
            sigma=torch.ones(len(names)),
            importance=figures["importance"],
            split_half=split_half if self.basis == "image" else None,  # type: ignore[arg-type]  # weights have no halves
            fields={**figures, "stored_cosine": vectors.abs().amax(1).float()},
            provenance=provenance(self, generator, seed),
        )

    def _grams(self, generator: Generator, part: Part, seed: int) -> Tensor:
        """Return the Gram matrix of a layer's z in this basis, from even and from odd codes: float64 [2, q, q]."""
        if self.basis == "injected":
            weight = generator.injected_matrices(part.name)[part.name].weight.detach().cpu().double()
            return gram(weight).expand(2, -1, -1)
        label = "random" if generator.label_names else None
        codes = generator.sample(self.n_samples, seed=seed, space=generator.own_axes().space.name, label=label)
        return image_grams(generator, codes, part)


def image_grams(generator: Generator, codes: Codes, part: Part) -> Tensor:
    """Return the mean of JᵀJ over even codes and over odd ones, with J the derivative of the image by one part of z.

    J is taken column by column, in forward mode, from the first layer that the part feeds on; what lies before is
    computed once a code, and only q x q numbers are kept.

    Args:
        codes: [n, 1, dim].
        part: of their space.

    Returns:
        Float64 [2, q, q], in squared RMS pixel change per unit of z.
    """
    q = part.stop - part.start
    first = generator.first_layer_fed(part.name, codes.space)
    totals = torch.zeros(2, q, q, dtype=torch.float64)
    tangents = torch.zeros(q, *codes.latent.shape[1:])
    tangents[:, part.slot, part.start : part.stop] = torch.eye(q)
    for start, stop in runtime.batches(len(codes), max(1, generator.batch_size // q)):
        some = codes[start:stop]
        owners = torch.arange(stop - start).repeat_interleave(q)
        with torch.no_grad():
            state = generator.start(some, first).rows(owners)
            pushed = _pushed(generator, state, some[owners.tolist()], tangents)
        columns = pushed.flatten(1).cpu().double().unflatten(0, (stop - start, q))  # [codes, q, pixels]
        products = columns @ columns.mT / columns.shape[2]
        parity = torch.arange(start, stop) % 2
        totals.index_add_(0, parity, products)
    n = len(codes)
    return totals / torch.tensor([(n + 1) // 2, n // 2], dtype=torch.float64)[:, None, None]


def _pushed(generator: Generator, state: State, codes: Codes, tangents: Tensor) -> Tensor:
    """Return J t at each code for its tangent t; tangents [q, slots, dim] repeat over the codes."""
    moves = tangents.to(codes.latent).repeat(len(codes) // len(tangents), 1, 1)
    with forward_ad.dual_level():
        latent = forward_ad.make_dual(codes.latent.clone(), moves)
        image, tangent = forward_ad.unpack_dual(generator.finish(codes.with_latent(latent), state))
        return torch.zeros_like(image) if tangent is None else tangent.clone()
