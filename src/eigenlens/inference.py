"""Inference on arrays: the bootstrap of crossed measurements, p-values against a null, agreement of raters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from . import runtime
from .errors import UserError

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with the interval of a bootstrap; NaN at both ends where nothing was drawn more than once."""

    mean: float
    """Mean of means, so that a member with more values weighs no more."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    levels: tuple[int, ...]
    """How many members of each factor have a value."""

    @property
    def excludes_zero(self) -> bool:
        """Tell whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0  # false for NaN


def crossed_bootstrap(values: np.ndarray, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0) -> Interval:
    """Bound the mean of crossed measurements: every network with every method seed, and both with every code seed.

    Members are drawn with replacement once for each factor, and what is drawn counts in all members of the others: a
    code seed that suits one network suits all of them, so its part in the mean must not be averaged away. A factor with
    one member adds nothing, so the interval is then conditional on that member.

    An interval between percentiles is narrow where members are few: the true mean of five normal measurements lies in
    that of "95 %" about 83 times in a hundred.

    Args:
        values: one axis a factor; NaN where a measurement is missing.
        draws: of the bootstrap.
        level: of the interval, which runs between its percentiles.
        seed: of the draws.

    Raises:
        UserError: where no value is finite.

    Source:
        Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007, section 3. Deviation: the mean is one
        of means, so that where values are missing a member with more of them weighs no more.

    Example:
        >>> crossed_bootstrap(np.array([[1.0, 3.0], [5.0, np.nan]])).mean
        3.5
    """
    known = _known(values)
    mean = _mean(known)
    if max(known.shape) == 1:
        return Interval(mean, math.nan, math.nan, known.shape)
    random = runtime.generator_for(seed, "bootstrap")
    low, high = np.nanquantile(_drawn(known, random, draws), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), known.shape)


def bootstrap_difference(
    first: np.ndarray, second: np.ndarray, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Bound the difference of two means of crossed measurements that have no member in common.

    Args:
        first, second: as `crossed_bootstrap` takes them; each is drawn by itself.
        draws: of the bootstrap.
        level: of the interval.
        seed: of the draws.

    Raises:
        UserError: where either has no finite value.

    Example:
        >>> bootstrap_difference(np.array([3.0, 3.0]), np.array([1.0, 1.0])).low
        2.0
    """
    a, b = _known(first), _known(second)
    mean = _mean(a) - _mean(b)
    levels = tuple(min(pair) for pair in zip(a.shape, b.shape, strict=True))
    if 1 in (max(a.shape), max(b.shape)):
        return Interval(mean, math.nan, math.nan, levels)
    random = runtime.generator_for(seed, "bootstrap")
    drawn = _drawn(a, random, draws) - _drawn(b, random, draws)
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), levels)


def _known(values: np.ndarray) -> np.ndarray:
    """Return the values without the members of which nothing is finite."""
    values = np.asarray(values, float)
    is_known = np.isfinite(values)
    if not is_known.any():
        raise UserError("no finite value came, so there is no mean to bound")
    axes = range(values.ndim)
    kept = [np.flatnonzero(is_known.any(tuple(each for each in axes if each != axis))) for axis in axes]
    return np.where(is_known, values, math.nan)[np.ix_(*kept)]


def _mean(values: np.ndarray) -> float:
    """Return the mean over the first axis of the means over the next, and so on, of what is known."""
    return float(_weighted(values, [np.ones((size, 1)) for size in values.shape])[0])


def _drawn(values: np.ndarray, random: np.random.Generator, n: int) -> np.ndarray:
    """Return n means of members drawn with replacement, [n]; NaN where nothing known was drawn."""
    weights = []
    for size in values.shape:
        picked = random.integers(size, size=(n, size))
        counts = np.zeros((size, n))
        np.add.at(counts, (picked, np.arange(n)[:, None]), 1)
        weights.append(counts)
    return _weighted(values, weights)


def _weighted(values: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Return means [n] of means, innermost first, where the members of axis i weigh weights[i], [members, n]."""
    means = values[..., None]
    for weight in reversed(weights):
        is_known = np.isfinite(means)
        total = np.einsum("...mn,mn->...n", np.where(is_known, means, 0.0), weight)
        count = np.einsum("...mn,mn->...n", is_known.astype(float), weight)
        means = np.divide(total, count, out=np.full(total.shape, math.nan), where=count > 0)
    return means


def p_value(value: float, null: Sequence[float] | np.ndarray) -> float:
    """Return how often chance does at least as well: (1 + #{null >= value}) / (1 + n); NaN without a null.

    Example:
        >>> p_value(3.0, [1.0, 2.0, 4.0])
        0.5
    """
    finite = np.asarray(null, float)
    finite = finite[np.isfinite(finite)]
    if not len(finite) or not math.isfinite(value):
        return math.nan
    return float((1 + (finite >= value).sum()) / (1 + len(finite)))


# --- raters -----------------------------------------------------------------------------------------------------------


def krippendorff_alpha(ratings: np.ndarray, scale: Literal["nominal", "ordinal", "interval"] = "ordinal") -> float:
    """Measure how far raters agree: 1 where they always do, 0 where they agree as often as by chance.

    Args:
        ratings: [raters, items], NaN where a rater did not rate.
        scale: how far apart two ratings are.

    Returns:
        α; NaN where fewer than two ratings of one item exist, or where all ratings are the same.

    Raises:
        UserError: on another scale.

    Source:
        Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, sections D and E.
    """
    ratings = np.asarray(ratings, float)
    values = np.unique(ratings[np.isfinite(ratings)])
    counts = np.stack([(ratings == value).sum(0) for value in values], axis=1) if len(values) else np.zeros((0, 0))
    counts = counts[counts.sum(1) >= 2] if counts.size else counts  # [items, values]
    if not counts.size:
        return math.nan
    rated = counts.sum(1)[:, None, None]
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(values))
    observed = (pairs / (rated - 1)).sum(0)  # coincidences, [values, values]
    totals = observed.sum(1)
    expected = (totals[:, None] * totals[None, :] - np.diag(totals)) / (totals.sum() - 1)
    distance = _distances(values, totals, scale)
    disagreement = (expected * distance).sum()
    return float(1 - (observed * distance).sum() / disagreement) if disagreement > 0 else math.nan


def _distances(values: np.ndarray, totals: np.ndarray, scale: str) -> np.ndarray:
    """Return the squared distance of each pair of values."""
    if scale == "nominal":
        return 1.0 - np.eye(len(values))
    if scale == "interval":
        return (values[:, None] - values[None, :]) ** 2
    if scale == "ordinal":
        places = np.cumsum(totals) - totals / 2  # ranks up to the middle of each value
        return (places[:, None] - places[None, :]) ** 2
    raise UserError(f"scale {scale!r} is not known; allowed: nominal, ordinal, interval")
