"""Intervals, p-values and agreement on hand-made arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eigenlens.errors import UserError
from eigenlens.inference import bootstrap_difference, crossed_bootstrap, krippendorff_alpha, p_value

NAN = math.nan


def test_the_mean_is_a_mean_of_means() -> None:
    values = np.array([[[1.0, 1.0, 1.0], [3.0, NAN, NAN]], [[NAN, NAN, NAN], [8.0, 8.0, 8.0]]])
    found = crossed_bootstrap(values)
    assert found.mean == 5.0  # (mean of 1 and 3, then 8), not the mean of seven values
    assert found.levels == (2, 2, 3)


def test_a_single_value_has_no_interval() -> None:
    found = crossed_bootstrap(np.array([[[0.4]]]))
    assert found.mean == 0.4
    assert math.isnan(found.low)
    assert not found.excludes_zero


def test_no_value_is_an_error() -> None:
    with pytest.raises(UserError, match="no finite value"):
        crossed_bootstrap(np.full((2, 2), NAN))


def test_one_level_is_the_ordinary_bootstrap() -> None:
    values = np.random.default_rng(0).normal(size=200)
    found = crossed_bootstrap(values, draws=4000)
    wanted = 1.96 * values.std() / math.sqrt(200)
    assert found.high - found.mean == pytest.approx(wanted, rel=0.1)
    assert found.mean - found.low == pytest.approx(wanted, rel=0.1)


def test_a_difference_has_the_variance_of_both_sides() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(1, 1, size=100), random.normal(0, 2, size=50)
    found = bootstrap_difference(first, second, draws=4000)
    wanted = 1.96 * math.sqrt(first.var() / 100 + second.var() / 50)
    assert found.mean == pytest.approx(first.mean() - second.mean())
    assert found.high - found.mean == pytest.approx(wanted, rel=0.1)
    assert math.isnan(bootstrap_difference(first, second[:1]).low)  # one network on a side carries no interval
    with pytest.raises(UserError, match="no finite value"):
        bootstrap_difference(first, np.full(3, NAN))


def test_the_outermost_level_carries_its_own_variance() -> None:
    """Ten code seeds of each of two generators that differ are two measurements, not twenty."""
    values = np.array([0.0, 1.0])[:, None] + np.zeros((2, 10))
    nested = crossed_bootstrap(values)
    flat = crossed_bootstrap(values.flatten())
    assert (nested.low, nested.high) == (0.0, 1.0)
    assert flat.high - flat.low < 0.5


def test_a_member_shared_by_all_is_no_new_measurement_in_each() -> None:
    """Five codes that do the same to each of four generators are five measurements, not twenty."""
    codes = np.linspace(-1, 1, 5)
    found = crossed_bootstrap(np.tile(codes, (4, 1)))
    alone = crossed_bootstrap(codes)
    assert found.mean == pytest.approx(0)
    assert found.high == pytest.approx(alone.high, rel=0.1)
    assert found.low == pytest.approx(alone.low, rel=0.1)


def nested(values: np.ndarray, random: np.random.Generator, n: int) -> np.ndarray:
    """Draw members within each drawn member anew, which is right for nested measurements alone."""
    if values.ndim == 0:
        return np.full(n, float(values))
    picked = random.integers(len(values), size=(n, len(values)))
    means = np.empty(picked.shape)
    for i, member in enumerate(values):
        means[picked == i] = nested(member, random, int((picked == i).sum()))
    return means.mean(1)


@pytest.mark.parametrize(
    ("shape", "spreads"),
    [
        ((8, 1, 8), (0.1, 0.0, 1.0, 0.3)),  # code seeds that suit all networks or none
        ((8, 8, 4), (0.1, 1.0, 0.1, 0.3)),  # method seeds that do
        ((10, 20), (0.3, 1.0, 0.5)),  # strips that please all raters or none
    ],
)
def test_the_interval_of_crossed_measurements_holds_the_mean(
    shape: tuple[int, ...], spreads: tuple[float, ...]
) -> None:
    random = np.random.default_rng(0)
    held, held_nested, n = 0, 0, 200
    for _ in range(n):
        values = spreads[-1] * random.normal(size=shape)
        for axis, size in enumerate(shape):
            effect = spreads[axis] * random.normal(size=size)
            values += effect.reshape([-1 if each == axis else 1 for each in range(len(shape))])
        found = crossed_bootstrap(values, draws=400)
        held += found.low <= 0 <= found.high
        low, high = np.quantile(nested(values, random, 400), [0.025, 0.975])
        held_nested += low <= 0 <= high
    assert held / n >= 0.85
    assert held_nested / n < 0.75


def test_what_is_missing_weighs_nothing_in_what_is_drawn() -> None:
    values = np.array([[2.0, NAN, NAN], [NAN, 2.0, NAN]])
    found = crossed_bootstrap(values)
    assert (found.mean, found.low, found.high, found.levels) == (2.0, 2.0, 2.0, (2, 2))


def test_the_bootstrap_depends_on_its_seed_alone() -> None:
    values = np.random.default_rng(1).normal(size=(3, 4))
    assert crossed_bootstrap(values, seed=2) == crossed_bootstrap(values, seed=2)
    assert crossed_bootstrap(values, seed=2) != crossed_bootstrap(values, seed=3)


def test_p_values_count_the_null() -> None:
    assert p_value(5.0, [1.0, 2.0, 3.0]) == 0.25
    assert p_value(1.0, [1.0, 2.0, 3.0]) == 1.0
    assert p_value(5.0, [1.0, NAN, 3.0]) == pytest.approx(1 / 3)
    assert math.isnan(p_value(5.0, []))
    assert math.isnan(p_value(NAN, [1.0]))


CODERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)
"""Krippendorff 2011, section C: four observers, twelve units."""


@pytest.mark.parametrize(("scale", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_the_published_one(scale: str, alpha: float) -> None:
    assert krippendorff_alpha(CODERS, scale) == pytest.approx(alpha, abs=5e-4)  # type: ignore[arg-type]


def test_alpha_of_perfect_useless_and_empty_ratings() -> None:
    same = np.tile([1.0, 3.0, 5.0, 2.0], (3, 1))
    assert krippendorff_alpha(same) == 1.0
    noise = np.random.default_rng(0).integers(1, 6, size=(5, 400)).astype(float)
    assert abs(krippendorff_alpha(noise)) < 0.05
    opposed = np.array([[1.0, 5.0, 1.0, 5.0], [5.0, 1.0, 5.0, 1.0]])
    assert krippendorff_alpha(opposed) < -0.5
    assert math.isnan(krippendorff_alpha(np.array([[1.0, NAN], [NAN, 2.0]])))
    assert math.isnan(krippendorff_alpha(np.full((3, 4), 2.0)))
    with pytest.raises(UserError, match="scale 'ratio' is not known"):
        krippendorff_alpha(same, "ratio")  # type: ignore[arg-type]
