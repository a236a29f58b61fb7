"""What the axes of an EigenGAN are: how much each does, what it changes, whether it is the layer's own and found again.

The figures behind `eigenlens anatomy`, and behind the measurements of `docs/eigengan.md`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from . import runtime
from .algebra import match, matched_null
from .directions import Directions
from .effect import mean_changes, sample_for
from .errors import UserError
from .generator import Generator
from .method import METHODS
from .metric import METRICS
from .reader import Reader, open_reader, read

SILENT = 0.01
"""Share of the strongest effect below which a layer's strongest axis makes it a silent layer: it has collapsed."""
FAINT = 0.05
"""The same for a faint one; axes below it are not matched."""
FOUND = 0.5
"""Standard deviations by which an axis must change a factor, more than all others, for the factor to be found."""
LABELLED = "toonfaces"
"""The reader of labels, where it knows the pictures."""
PIXELS = "pixels"
"""The reader otherwise."""
BASES = ("stored", "injected", "image")


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What is known of all axes of one EigenGAN, k of them, deepest layer first."""

    generator: Generator
    """Whose."""
    bases: dict[str, Directions]
    """Basis -> axes; those that are stored carry the measured effect."""
    layers: tuple[str, ...]
    """For each axis its layer."""
    turning: Tensor
    """How much the path of images bends along each stored axis, degrees per σ, [k]; NaN where nothing changes."""
    reader: str
    """What read the images."""
    factors: tuple[str, ...]
    """What the reader tells of them."""
    moved: Tensor
    """How much each stored axis changes each factor from its middle to ±2σ, in standard deviations, [k, factors]."""
    main: tuple[str | None, ...]
    """The factor that each stored axis changes most; None where it changes none."""

    @property
    def stored(self) -> Directions:
        """The axes as they are stored."""
        return self.bases["stored"]

    @property
    def names(self) -> tuple[str, ...]:
        """Layer names, deepest first."""
        return tuple(dict.fromkeys(self.layers))

    def rows(self, layer: str) -> list[int]:
        """Return the places of a layer's axes."""
        return [k for k, each in enumerate(self.layers) if each == layer]

    @cached_property
    def is_alive(self) -> Tensor:
        """Whether an axis does more than `FAINT` of what the strongest does, bool [k]."""
        return self.stored.effect > FAINT * self.stored.effect.max()

    @cached_property
    def found(self) -> tuple[str, ...]:
        """The factors that some axis changes more than any other, by `FOUND` or more."""
        at = {name: i for i, name in enumerate(self.factors)}
        return tuple(
            name
            for name in self.factors
            if any(main == name and float(self.moved[k, at[name]]) >= FOUND for k, main in enumerate(self.main))
        )

    def strength_of(self, layer: str) -> float:
        """Return the strongest effect in a layer as a share of the strongest of all."""
        effect = self.stored.effect
        return float(effect[self.rows(layer)].max() / effect.max().clamp(min=1e-12))

    def agreement(self, a: str, b: str, layer: str) -> float:
        """Return the mean matched |cos| of two bases of a layer."""
        rows = self.rows(layer)
        cosines = (self.bases[a].vectors[rows, 0] @ self.bases[b].vectors[rows, 0].T).abs().numpy()
        return float(np.mean([cosines[pair] for pair in match(-cosines)]))

    def chance(self, layer: str) -> float:
        """Return what random orthonormal axes of a layer agree by chance."""
        q = len(self.rows(layer))
        return matched_null(q, q, q)[0]


def examine(generator: Generator, *, reader: str | Reader | None = None, n: int = 24, seed: int = 0) -> Anatomy:
    """Measure all axes of an EigenGAN.

    It costs about 450 images an axis.

    Args:
        generator: an EigenGAN.
        reader: of attributes; by default the one of toon faces where it knows at least half of 64 samples, else pixels.
        n: codes that are walked.
        seed: of all codes.

    Raises:
        Unsupported: where it is no EigenGAN.
        UserError: where no layer has a subspace.
    """
    own = generator.own_axes()
    if not own.names:
        raise UserError(f"{generator.name} is an EigenGAN without subspaces; it has no axes to look at")
    bases = {name: METHODS["eigen"](basis=name, measured=name == "stored").fit(generator, seed=seed) for name in BASES}
    chosen = reader or fitting_reader(generator, bases["stored"])
    turned = METRICS["path_turning_v1"](n=n).score(generator, bases["stored"], seed=seed)
    attributes = METRICS["attribute_matrix_pixels_v1"](reader=chosen, n=n)
    seen = attributes.score(generator, bases["stored"], seed=seed).details
    turning = [float("nan") if each is None else each for each in turned.details["turning"]]
    return Anatomy(
        generator,
        bases,
        own.layers,
        torch.tensor(turning),
        str(seen["reader"]),
        tuple(seen["factors"]),
        torch.tensor([[each or 0.0 for each in row] for row in seen["moved"]], dtype=torch.float64),  # None: not known
        tuple(seen["main"]),
    )


def fitting_reader(generator: Generator, directions: Directions, *, n: int = 64) -> str:
    """Return the reader of labels where it stands by half of what it says of samples or more, else that of pixels."""
    if generator.channels != 3:
        return PIXELS
    reader = open_reader(LABELLED)
    codes = sample_for(generator, directions, n)
    with torch.inference_mode():
        reading = read(reader, generator.render(codes).clamp(-1, 1))
    return LABELLED if float(reading.certain.float().mean()) >= 0.5 else PIXELS


def spearman(a: Tensor, b: Tensor) -> float:
    """Return the rank correlation of two figures [k], ties sharing their mean rank; NaN where one does not vary.

    Example:
        >>> round(spearman(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0.0, 3.0, 4.0])), 6)
        1.0
    """
    ranked = []
    for values in (a.double(), b.double()):
        below = (values[None] < values[:, None]).sum(1) + ((values[None] == values[:, None]).sum(1) - 1) / 2
        ranked.append(below - below.mean())
    size = ranked[0].norm() * ranked[1].norm()
    return float(ranked[0] @ ranked[1] / size) if size > 0 else float("nan")


def spearman_within(a: Tensor, b: Tensor, layers: Sequence[str]) -> float:
    """Return the mean over layers of the rank correlation of two figures [k] within each."""
    values = []
    for layer in dict.fromkeys(layers):
        rows = [k for k, each in enumerate(layers) if each == layer]
        values.append(spearman(a[rows], b[rows]))
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


# --- several runs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stability:
    """Whether several EigenGANs hold the same axes, by what the axes do to images."""

    names: tuple[str, ...]
    """Of the runs."""
    matched: Tensor
    """Mean |cos| of matched axes for each pair of runs, [runs, runs]; 1 on the diagonal."""
    null: Tensor
    """The same with the axes of the second run turned at random within their layers, mean of the draws."""
    found: dict[str, int]
    """Factor -> in how many runs some axis changes it most."""

    @property
    def mean(self) -> float:
        """Mean over pairs of runs."""
        return _mean_off_diagonal(self.matched)

    @property
    def null_mean(self) -> float:
        """Mean of the null over pairs of runs."""
        return _mean_off_diagonal(self.null)


def _mean_off_diagonal(square: Tensor) -> float:
    return float(square[~torch.eye(len(square), dtype=torch.bool)].mean())


def compare_runs(anatomies: Sequence[Anatomy], *, draws: int = 2, n: int = 64, seed: int = 0) -> Stability:
    """Match the axes of several runs one to one by |cos| of the mean change of images along them.

    The change is from -1σ to +1σ, mean over `n` codes, so that what depends on the code averages out. Axes that do less
    than `FAINT` of their run's strongest are left out. The null turns the axes of one run at random within each layer:
    what is above it is owed to the axes, not to what a layer's span can do.

    Args:
        anatomies: of generators of the same resolution and kind of images, two or more.
        draws: random turns behind the null.
        n: codes.
        seed: of codes and turns.
    """
    if len(anatomies) < 2:
        raise UserError(f"{len(anatomies)} run came; stability takes two or more")
    sizes = {(each.generator.resolution, each.generator.channels) for each in anatomies}
    if len(sizes) > 1:
        raise UserError(f"the runs make images of different sizes and channels: {sorted(sizes)}; give runs of one kind")
    changes = [_unit_changes(each.generator, each.stored[_alive(each)], n, seed) for each in anatomies]
    turned = [
        [
            _unit_changes(each.generator, turned_within_layers(each, seed=seed + draw)[_alive(each)], n, seed)
            for draw in range(draws)
        ]
        for each in runtime.progress(anatomies, what="null")
    ]
    runs = len(anatomies)
    matched, null = torch.eye(runs, dtype=torch.float64), torch.eye(runs, dtype=torch.float64)
    for i, j in itertools.permutations(range(runs), 2):
        matched[i, j] = matched_mean(changes[i], changes[j])
        null[i, j] = sum(matched_mean(changes[i], each) for each in turned[j]) / draws
    found = Counter(name for each in anatomies for name in each.found)
    factors = dict.fromkeys(name for each in anatomies for name in each.factors)
    names = tuple(f"{i}: {each.generator.name}" for i, each in enumerate(anatomies))
    return Stability(names, matched, null, {name: found[name] for name in factors})


def turned_within_layers(anatomy: Anatomy, *, seed: int) -> Directions:
    """Return the stored axes turned at random within each layer (a Haar rotation of its z)."""
    vectors = anatomy.stored.vectors.clone()
    for layer in anatomy.names:
        rows = anatomy.rows(layer)
        drawn = runtime.generator_for(seed, f"anatomy/turn/{layer}").standard_normal((len(rows), len(rows)))
        turn = torch.linalg.qr(torch.from_numpy(drawn))[0].to(vectors)
        vectors[rows, 0] = turn @ vectors[rows, 0]
    return replace(anatomy.stored, vectors=vectors)


def matched_mean(a: Tensor, b: Tensor) -> float:
    """Return the mean |cos| of unit rows a [k, dim] and b [m, dim], matched one to one."""
    cosines = (a @ b.T).abs().numpy()
    return float(np.mean([cosines[pair] for pair in match(-cosines)]))


def _alive(anatomy: Anatomy) -> list[int]:
    return anatomy.is_alive.nonzero()[:, 0].tolist()


def _unit_changes(generator: Generator, directions: Directions, n: int, seed: int) -> Tensor:
    changes = mean_changes(generator, directions, n=n, seed=seed).flatten(1).double()
    return changes / changes.norm(dim=1, keepdim=True).clamp(min=1e-12)
