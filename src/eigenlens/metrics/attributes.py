"""Which attributes each direction changes, by how much, how evenly, and what else changes with them."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import runtime
from ..directions import Directions
from ..effect import sample_for
from ..errors import UserError
from ..generator import Generator
from ..metric import Score, make_score
from ..reader import GROUPS, Attribute, Reader, Reading, describe, factor_of, open_reader
from .features import correlation, in_sigma, plain, ranks, read_codes, read_samples, read_walk, spans

MOVED = 0.1
"""Standard deviations by which a factor must change for a direction to count as moving it."""
WANTED = 0.5
"""Standard deviations of the wanted factor at which side effects are compared."""
FEWEST = 6
"""Codes whose readings are certain, below which a change is not known."""


@dataclass(frozen=True)
class AttributeMatrix:
    """How much each direction changes each attribute, in standard deviations that the attribute has in samples.

    Codes of the seed are walked from -s to +s along each direction and read. A change is half the mean difference of
    the two ends, signed. Values of one factor (`hair_style=bun`) are joined by their root sum of squares over √2, so
    that a swap counts once. What a change owes to chance (its squared standard error) is taken from it.

    The value is the mean purity: the share of its most changed factor in all that a direction changes, 0 for
    directions that change nothing. `details` has the matrix and all other figures; see `figures`.

    Source:
        The rescoring of Shen et al., InterFaceGAN, TPAMI 2020, section 4.2, signed, standardised and with errors;
        purity and completeness as the largest shares of rows and columns, cf. Eastwood and Williams, 2018.
    """

    reader: str | Reader | Callable[[Tensor], Tensor] = "pixels"
    """Name of a reader, `package.module:function`, or a reader itself."""
    n: int = 48
    """Codes that are walked."""
    n_samples: int = 256
    """Samples that tell how much each attribute varies by itself."""
    strength: float = 2.0
    """How far each way, in σ; less where a direction's limits are nearer."""
    strengths: tuple[float, ...] | None = None
    """How far each way for each direction, in σ, where they shall differ."""
    n_steps: int = 5
    """Places along each walk, both ends included; an odd number."""
    name: ClassVar[str] = "attribute_matrix_pixels_v1"

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Walk, read and compute.

        Raises:
            UserError: where the number of steps is even or below 3, or there are no directions.
        """
        if self.n_steps < 3 or self.n_steps % 2 == 0:
            raise UserError(f"n_steps {self.n_steps} came; give an odd number from 3, such as 5")
        if not len(directions):
            raise UserError("no directions came; there is nothing to score")
        reader = open_reader(self.reader)
        walks = walk_and_read(
            generator,
            directions,
            reader,
            known_as=self.reader if isinstance(self.reader, str) else None,
            n=self.n,
            n_samples=self.n_samples,
            strength=self.strength,
            strengths=self.strengths,
            n_steps=self.n_steps,
            seed=seed,
        )
        found = figures(walks)
        found["names"] = list(directions.names)
        value = sum(each or 0.0 for each in found["purity"]) / len(directions)
        return make_score(self, generator, directions, value, n=self.n, seed=seed, reader=reader.name, **found)


@dataclass(frozen=True)
class AttributeMatrixToonFaces(AttributeMatrix):
    """The same with the reader of toon faces."""

    reader: str | Reader | Callable[[Tensor], Tensor] = "toonfaces"
    """Name of a reader, `package.module:function`, or a reader itself."""
    name: ClassVar[str] = "attribute_matrix_toonfaces_v1"


# --- drawing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Walks:
    """What a reader saw along directions: all that the figures are computed from."""

    attributes: tuple[Attribute, ...]
    scores: Tensor
    """[k, codes, steps, attributes]."""
    certain: Tensor
    """Whether the reader stands by a score, bool, of the same shape."""
    steps: Tensor
    """Strengths in σ, from the lowest, [k, steps]."""
    scale: Tensor
    """Standard deviation of each attribute over samples, [attributes]; 0 where it does not vary beyond its error."""


_KNOWN: weakref.WeakKeyDictionary[Generator, dict[tuple, tuple[Reading, Reading]]] = weakref.WeakKeyDictionary()
"""What a reader given by name saw without any move: every set of directions of one space shares it."""


def walk_and_read(
    generator: Generator,
    directions: Directions,
    reader: Reader,
    *,
    known_as: str | None,
    n: int,
    n_samples: int,
    strength: float,
    strengths: Sequence[float] | None,
    n_steps: int,
    seed: int,
) -> Walks:
    """Draw samples and walks, and read them; what a reader with a name saw before any move is read once."""
    directions = in_sigma(generator, directions)
    codes = sample_for(generator, directions, n, seed=seed)
    known = _KNOWN.setdefault(generator, {}) if known_as else {}
    key = (directions.space, known_as, n, n_samples, seed)
    if key not in known:
        known[key] = (
            read_samples(generator, directions, reader, n_samples, seed=seed)[1],
            read_codes(generator, codes, reader),
        )
    reading, still = known[key]
    attributes = describe(reader)
    scale = own_spread(reading.scores, reading.certain, torch.tensor([each.error for each in attributes]))
    unit = torch.linspace(-1, 1, n_steps)
    steps = torch.stack([reach * unit for reach in spans(directions, strength, strengths)])  # [k, steps]
    before, after = steps[:, : n_steps // 2], steps[:, n_steps // 2 + 1 :]
    readings = [
        read_walk(generator, codes, directions, k, [*before[k].tolist(), *after[k].tolist()], reader)
        for k in runtime.progress(range(len(directions)), what="attributes")
    ]
    scores, certain = (
        torch.stack([around(getattr(each, name), getattr(still, name)) for each in readings])
        for name in ("scores", "certain")
    )
    return Walks(attributes, scores.double(), certain, steps.double(), scale)


def around(ends: Tensor, middle: Tensor) -> Tensor:
    """Put readings of the codes themselves [codes, attributes] between both halves of [codes, steps, attributes]."""
    before, after = ends.chunk(2, dim=1)
    return torch.cat([before, middle[:, None], after], dim=1)


def own_spread(scores: Tensor, certain: Tensor, error: Tensor) -> Tensor:
    """Return the standard deviation of each attribute over samples [n, attributes] where the reader is certain.

    It is 0 where fewer than 8 readings are certain, or where the spread is no larger than the reader's own error.
    """
    known = certain.double()
    count = known.sum(0)
    values = torch.where(certain, scores, 0).double()
    mean = values.sum(0) / count.clamp(min=1)
    variance = ((values - mean).square() * known).sum(0) / (count - 1).clamp(min=1)
    floor = torch.where(error.isfinite(), error, torch.zeros_like(error)).double().square().clamp(min=1e-12)
    return torch.where((count >= 8) & (variance > floor), variance.sqrt(), torch.zeros_like(variance))


# --- arithmetic -------------------------------------------------------------------------------------------------------


def figures(walks: Walks) -> dict[str, Any]:
    """Compute all figures of walks, as plain JSON values with None where something is not known.

    Returns:
        `attributes`, `kinds`, `groups`, `factors`: names; what each attribute is.
        `scale` [attributes]: its standard deviation over samples, None where it does not vary.
        `names`: of the directions. `strength` [k]: how far each way the walks went, in σ.
        `change`, `change_error` [k][attributes]: half the mean difference of the two ends, signed, in `scale`, and
        its standard error.
        `moved` [k][factors]: the change of each factor, without sign, less what it owes to chance.
        `main` [k]: the factor that each direction changes most; None where it changes none by 0.1.
        `purity` [k]: the share of `main` in the sum of a row of `moved`.
        `completeness` [factors]: the share of the strongest direction in the sum of a column.
        `coverage`: {how many first directions: mean over factors of the best share that a factor has in a row}.
        `linearity` [k]: squared correlation of the strength with the attribute of `main` that changes most, within
        codes. `monotonicity` [k]: Spearman's correlation of the two, mean over codes, without sign. `consistency` [k]:
        the share of codes in which that attribute changes with the sign of the mean.
        `side_effects` [k]: sum of the changes of all other factors at the strength where `main` has changed by half a
        standard deviation; None where it never does.
        `by_group`: purity and moved factors of geometry, colour, part and other attributes apart.
        `abstained` [k]: share of readings that the reader did not stand by.
    """
    attributes = walks.attributes
    varies = walks.scale > 0
    change, error = mean_change(walks.scores, walks.certain, walks.scale)
    factors = list(dict.fromkeys(factor_of(each.name) for each in attributes))
    member = torch.tensor([[factor_of(each.name) == factor for each in attributes] for factor in factors])
    moved = join_factors(change, error, member)  # [k, factors]
    exists = (member & varies).any(1)
    moved[:, ~exists] = 0
    main = moved.argmax(1)
    dead = moved.amax(1) < MOVED
    lead = (change.nan_to_num().abs() * member[main]).argmax(1)  # [k], the attribute of the main factor
    purity = torch.where(dead, 0.0, moved.amax(1) / moved.sum(1).clamp(min=1e-12))
    evenness = [evenness_of(walks, k, int(lead[k])) for k in range(len(moved))]
    names = [None if dead[k] else factors[main[k]] for k in range(len(moved))]
    found = {
        "attributes": [each.name for each in attributes],
        "kinds": [each.kind for each in attributes],
        "groups": [each.group for each in attributes],
        "factors": factors,
        "scale": torch.where(varies, walks.scale, math.nan),
        "strength": walks.steps[:, -1],
        "change": change,
        "change_error": error,
        "moved": torch.where(exists, moved, math.nan),
        "main": names,
        "purity": purity,
        "completeness": torch.where(exists, shares(moved.T), math.nan),
        "coverage": {str(k): value for k, value in coverage(moved[:, exists]).items()},
        "linearity": [None if dead[k] else each[0] for k, each in enumerate(evenness)],
        "monotonicity": [None if dead[k] else each[1] for k, each in enumerate(evenness)],
        "consistency": [None if dead[k] else each[2] for k, each in enumerate(evenness)],
        "side_effects": [None if dead[k] else side_effects(walks, k, int(main[k]), member) for k in range(len(moved))],
        "by_group": by_group(moved, attributes, factors, exists),
        "abstained": 1 - walks.certain.double().mean((1, 2, 3)),
    }
    return plain(found)


def mean_change(scores: Tensor, certain: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return half the mean difference of the two ends and its standard error, [k, attributes], in `scale`.

    Codes at either of whose ends the reader abstains are left out; NaN where fewer than 6 are left, or `scale` is 0.

    Args:
        scores, certain: [k, codes, steps, attributes].
        scale: [attributes].
    """
    both = certain[:, :, 0] & certain[:, :, -1]  # [k, codes, attributes]
    half = torch.where(both, (scores[:, :, -1] - scores[:, :, 0]) / 2, 0.0)
    count = both.sum(1)
    mean = half.sum(1) / count.clamp(min=1)
    spread = ((half - mean[:, None]).square() * both).sum(1) / (count - 1).clamp(min=1)
    known = (count >= FEWEST) & (scale > 0)
    unit = torch.where(scale > 0, scale, 1.0)
    value = torch.where(known, mean / unit, math.nan)
    error = torch.where(known, (spread / count.clamp(min=1)).sqrt() / unit, math.nan)
    return value, error


def join_factors(change: Tensor, error: Tensor, member: Tensor) -> Tensor:
    """Return how much each factor changed, [k, factors]: attributes of one factor joined, chance taken off.

    Args:
        change, error: [k, attributes]; NaN counts as no change.
        member: which attributes belong to each factor, bool [factors, attributes].
    """
    squared = (change.square() - error.square()).clamp(min=0).nan_to_num()  # [k, attributes]
    joined = squared @ member.double().T  # [k, factors]
    swap = torch.where(member.sum(1) > 1, 2.0, 1.0)  # a swap of two values shows in both
    return (joined / swap).sqrt()


def shares(moved: Tensor) -> Tensor:
    """Return the largest share of each row, 0 where a row holds nothing above 0.1."""
    largest = moved.amax(1)
    return torch.where(largest >= MOVED, largest / moved.sum(1).clamp(min=1e-12), 0.0)


def coverage(moved: Tensor) -> dict[int, float]:
    """Return, for each number of first directions, the mean over factors of the best share a factor has in a row.

    Only changes of 0.1 or more count. Directions come in the method's own order; repeating one adds nothing.

    Args:
        moved: [k, factors].

    Example:
        >>> coverage(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
        {1: 0.5, 2: 0.5, 3: 1.0}
    """
    share = torch.where(moved >= MOVED, moved / moved.sum(1, keepdim=True).clamp(min=1e-12), 0.0)
    best = share.cummax(0).values.mean(1) if moved.shape[1] else torch.zeros(len(moved))
    return {k + 1: float(value) for k, value in enumerate(best)}


def evenness_of(walks: Walks, k: int, attribute: int) -> tuple[float | None, float | None, float | None]:
    """Return linearity, monotonicity and consistency of one attribute along one direction."""
    whole = walks.certain[k, :, :, attribute].all(1)
    if int(whole.sum()) < FEWEST:
        return None, None, None
    scores = walks.scores[k, whole, :, attribute]  # [codes, steps]
    steps = walks.steps[k].expand_as(scores)
    within = scores - scores.mean(1, keepdim=True)
    linear = float(correlation(within.flatten(), (steps - steps.mean(1, keepdim=True)).flatten()).square())
    spearman = correlation(ranks(scores), ranks(steps))
    ends = scores[:, -1] - scores[:, 0]
    agree = float((ends.sign() == ends.mean().sign()).double().mean())
    return linear, float(spearman.mean().abs()), agree


def side_effects(walks: Walks, k: int, main: int, member: Tensor) -> float | None:
    """Return the summed change of all other factors where `main` has changed by half a standard deviation.

    The strength at which it has is interpolated between the pairs of steps -t, +t of the walk.
    """
    middle = walks.steps.shape[1] // 2
    rows = [torch.zeros(len(member), dtype=torch.float64)]
    for reach in range(1, middle + 1):
        pair = [middle - reach, middle + reach]
        change, error = mean_change(walks.scores[k : k + 1, :, pair], walks.certain[k : k + 1, :, pair], walks.scale)
        rows.append(join_factors(change, error, member)[0])
    for before, after in itertools.pairwise(rows):
        low, high = float(before[main]), float(after[main])
        if low < WANTED <= high:
            there = before + (WANTED - low) / (high - low) * (after - before)
            return float(there.sum() - there[main])
    return None


def by_group(
    moved: Tensor, attributes: Sequence[Attribute], factors: Sequence[str], exists: Tensor
) -> dict[str, dict[str, Any]]:
    """Return for each group of attributes how pure directions are within it and how much of all change it holds."""
    group_of = {factor_of(each.name): each.group for each in attributes}
    total = moved.sum(1).clamp(min=1e-12)
    found: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        inside = torch.tensor([group_of[factor] == group for factor in factors]) & exists
        if not inside.any():
            continue
        part = moved[:, inside]
        found[group] = {
            "factors": [factor for factor, is_in in zip(factors, inside, strict=True) if is_in],
            "purity": shares(part),
            "share": torch.where(moved.amax(1) >= MOVED, part.sum(1) / total, 0.0),
            "coverage": list(coverage(part).values())[-1],
        }
    return found
