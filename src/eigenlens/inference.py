"""Inference on arrays: the nested bootstrap, p-values against a null, agreement of raters."""

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
    """The most members at each level, outermost first."""

    @property
    def excludes_zero(self) -> bool:
        """Tell whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0  # false for NaN


def nested_bootstrap(values: np.ndarray, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0) -> Interval:
    """Bound the mean of nested measurements: generator seeds, within them method seeds, within them code seeds.

    Members are drawn with replacement at the outermost level, then within each drawn member at the next, and so on. A
    level with one member adds nothing, so the interval is then conditional on that member.

    Args:
        values: one axis a level, outermost first; NaN where a measurement is missing.
        draws: of the bootstrap.
        level: of the interval, which runs between its percentiles.
        seed: of the draws.

    Raises:
        UserError: where no value is finite.

    Source:
        Davison & Hinkley, Bootstrap Methods and their Application, 1997, section 3.8 (hierarchical data, resampling
        with replacement at every level).

    Example:
        >>> nested_bootstrap(np.array([[1.0, 3.0], [5.0, np.nan]])).mean
        3.5
    """
    tree = _some(values)
    mean = _mean(tree)
    levels = _widths(tree)
    if max(levels) == 1:
        return Interval(mean, math.nan, math.nan, levels)
    random = runtime.generator_for(seed, "bootstrap")
    low, high = np.quantile(_drawn(tree, random, draws), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), levels)


def bootstrap_difference(
    first: np.ndarray, second: np.ndarray, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Bound the difference of two means of nested measurements that have no member in common.

    Args:
        first, second: as `nested_bootstrap` takes them; each is drawn by itself.
        draws: of the bootstrap.
        level: of the interval.
        seed: of the draws.

    Raises:
        UserError: where either has no finite value.

    Example:
        >>> bootstrap_difference(np.array([3.0, 3.0]), np.array([1.0, 1.0])).low
        2.0
    """
    a, b = _some(first), _some(second)
    mean = _mean(a) - _mean(b)
    levels = tuple(min(pair) for pair in zip(_widths(a), _widths(b), strict=True))
    if 1 in (max(_widths(a)), max(_widths(b))):
        return Interval(mean, math.nan, math.nan, levels)
    random = runtime.generator_for(seed, "bootstrap")
    drawn = _drawn(a, random, draws) - _drawn(b, random, draws)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), levels)


Tree = list  # of trees, or of numbers


def _some(values: np.ndarray) -> Tree:
    """Return the nested lists of what is finite."""
    tree = _tree(np.asarray(values, float))
    if not isinstance(tree, list):
        raise UserError("no finite value came, so there is no mean to bound")
    return tree


def _tree(values: np.ndarray) -> Tree | float | None:
    """Return nested lists without what is missing; None where nothing is left."""
    if values.ndim == 0:
        return float(values) if math.isfinite(values) else None
    kept = [each for each in map(_tree, values) if each is not None]
    return kept or None


def _mean(tree: Tree | float) -> float:
    return float(np.mean([_mean(each) for each in tree])) if isinstance(tree, list) else tree


def _widths(tree: Tree | float) -> tuple[int, ...]:
    """Return the most members at each level."""
    if not isinstance(tree, list):
        return ()
    below = [_widths(each) for each in tree]
    return (len(tree), *(max(widths) for widths in zip(*below, strict=True)))


def _drawn(tree: Tree | float, random: np.random.Generator, n: int) -> np.ndarray:
    """Return n means of members drawn with replacement, [n]; each time a member is drawn, so are its own members."""
    if not isinstance(tree, list):
        return np.full(n, tree)
    picked = random.integers(len(tree), size=(n, len(tree)))
    means = np.empty(picked.shape)
    for i, member in enumerate(tree):
        is_picked = picked == i
        means[is_picked] = _drawn(member, random, int(is_picked.sum()))
    return means.mean(1)


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
