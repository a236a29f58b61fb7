"""The attribute matrix: perfect, useless, mixed and duplicated directions on known factors, and hand-made walks."""

from __future__ import annotations

import math

import pytest
import torch

from eigenlens import UserError
from eigenlens.metrics import attributes
from eigenlens.metrics.attributes import AttributeMatrix, Walks, figures, mean_change, own_spread
from eigenlens.metrics.features import read_samples
from eigenlens.reader import Attribute
from toy_factors import DUPLICATED, MIXED, PERFECT, USELESS, Squares, factor_toy

METRIC = AttributeMatrix(Squares(), n=16, n_samples=128)


def test_perfect_directions_are_pure_and_cover_all() -> None:
    score = METRIC.score(factor_toy(), PERFECT)
    found = score.details
    assert score.value == pytest.approx(1, abs=1e-5)
    assert found["main"] == ["size", "turn", "hue", "tone"]
    assert found["completeness"] == pytest.approx([1] * 4, abs=1e-5)
    assert found["coverage"] == pytest.approx({"1": 0.25, "2": 0.5, "3": 0.75, "4": 1.0}, abs=1e-5)
    assert found["linearity"] == pytest.approx([1] * 4, abs=1e-5)
    assert found["monotonicity"] == pytest.approx([1] * 4)
    assert found["side_effects"] == pytest.approx([0] * 4, abs=1e-5)
    spread = found["scale"][2]
    assert found["change"][2] == pytest.approx([0, 0, 2 / spread, 0], abs=1e-4)  # ±2 σ, half the difference is 2
    assert found["by_group"]["geometry"]["share"] == pytest.approx([1, 1, 0, 0], abs=1e-5)


def test_useless_directions_change_nothing() -> None:
    score = METRIC.score(factor_toy(), USELESS)
    assert score.value == 0
    assert score.details["main"] == [None, None]
    assert score.details["coverage"]["2"] == 0
    assert score.details["linearity"] == [None, None]


def test_mixed_directions_are_impure() -> None:
    found = METRIC.score(factor_toy(), MIXED).details
    assert found["purity"] == pytest.approx([0.25] * 4, abs=0.04)
    assert all(each == pytest.approx(1.5, abs=0.4) for each in found["side_effects"])  # three others move alike


def test_duplicates_are_pure_and_cover_little() -> None:
    found = METRIC.score(factor_toy(), DUPLICATED).details
    assert found["purity"] == pytest.approx([1] * 4, abs=1e-5)
    assert found["coverage"]["4"] == pytest.approx(0.25, abs=1e-5)
    assert found["completeness"][0] == pytest.approx(0.25, abs=1e-5)  # four share one factor
    assert found["completeness"][1:] == [0, 0, 0]


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    g = factor_toy()
    whole = METRIC.score(g, MIXED, seed=3)
    monkeypatch.setattr(type(g), "batch_size", property(lambda self: 3))
    assert METRIC.score(g, MIXED, seed=3).details["change"] == [
        pytest.approx(row, abs=1e-5) for row in whole.details["change"]
    ]


def test_samples_are_read_once_for_all_sets_of_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    g, calls = factor_toy(), []
    monkeypatch.setattr(
        attributes, "read_samples", lambda *a, **how: calls.append(how["seed"]) or read_samples(*a, **how)
    )
    named = AttributeMatrix("toy_factors:Squares", n=16, n_samples=128)
    for metric, some, seed in ((named, PERFECT, 0), (named, MIXED, 0), (named, PERFECT, 1), (METRIC, PERFECT, 1)):
        score = metric.score(g, some, seed=seed)
    assert calls == [0, 1, 1]  # a reader without a name is not known again
    assert named.score(g, PERFECT, seed=1).details | {"settings": 0} == score.details | {"settings": 0}
    assert named.score(g, MIXED).details == named.score(factor_toy(), MIXED).details


def test_limits_and_strengths_bound_the_walk() -> None:
    short = PERFECT.with_figures(limits=torch.tensor([[-1.0, 5.0]] * 4))
    assert METRIC.score(factor_toy(), short).details["strength"] == [1.0] * 4
    metric = AttributeMatrix(Squares(), n=8, n_samples=64, strengths=(1.0, 2.0, 0.5, 3.0))
    score = metric.score(factor_toy(), short)
    assert score.details["strength"] == [1, 2, 0.5, 3]
    assert score.details["settings"]["strengths"] == (1.0, 2.0, 0.5, 3.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"n_steps": 4}, "an odd number from 3"), ({"strengths": (1.0,)}, "1 strengths came for 4 directions")],
)
def test_mistakes_are_told(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        AttributeMatrix(Squares(), n=4, n_samples=16, **settings).score(factor_toy(), PERFECT)


# --- hand-made walks --------------------------------------------------------------------------------------------------


def walks_of(scores: torch.Tensor, names: tuple[str, ...], certain: torch.Tensor | None = None) -> Walks:
    certain = torch.ones_like(scores, dtype=torch.bool) if certain is None else certain
    steps = torch.linspace(-2, 2, scores.shape[2]).double().expand(len(scores), -1)
    attributes = tuple(Attribute(name, "truth" if "=" in name else "number") for name in names)
    return Walks(attributes, scores.double(), certain, steps, torch.ones(len(names)).double())


def test_a_swap_of_two_values_counts_once() -> None:
    scores = torch.zeros(1, 8, 5, 3)
    scores[..., 0] = torch.linspace(0, 1, 5)  # one hair style turns into another, and nothing else happens
    scores[..., 1] = 1 - scores[..., 0]
    found = figures(walks_of(scores, ("hair=bun", "hair=short", "size")))
    assert found["factors"] == ["hair", "size"]
    assert found["moved"] == [[pytest.approx(0.5), 0.0]]
    assert found["purity"] == [1.0]


def test_chance_is_no_change() -> None:
    scores = torch.randn(4, 12, 5, 6, generator=torch.Generator().manual_seed(0))  # pure noise of one σ
    found = figures(walks_of(scores, tuple("abcdef")))
    noisy = torch.tensor(found["change"]).abs().mean()
    assert torch.tensor(found["moved"]).mean() < 0.6 * noisy


def test_a_step_is_monotonous_but_not_linear() -> None:
    scores = torch.zeros(1, 8, 5, 1)
    scores[:, :, 3:] = 1.0
    found = figures(walks_of(scores, ("size",)))
    assert found["linearity"][0] == pytest.approx(0.75)  # squared correlation of (0, 0, 0, 1, 1) with its place
    assert 0.8 < found["monotonicity"][0] < 0.9
    assert found["consistency"] == [1.0]


def test_abstentions_are_left_out_and_counted() -> None:
    scores = torch.zeros(1, 8, 3, 2)
    scores[:, :, 2, 0] = 2.0
    scores[0, 0, 2, 0] = 1e6  # a reading that the reader does not stand by
    certain = torch.ones_like(scores, dtype=torch.bool)
    certain[0, 0, 2, 0] = False
    found = figures(walks_of(scores, ("size", "tone"), certain))
    assert found["change"][0] == [1.0, 0.0]
    assert found["abstained"] == [pytest.approx(1 / 48, rel=1e-4)]
    few = certain.clone()
    few[:, 3:] = False
    change, _ = mean_change(scores.double(), few, torch.ones(2).double())
    assert math.isnan(change[0, 0])


def test_what_does_not_vary_has_no_scale() -> None:
    scores = torch.stack([torch.linspace(0, 1, 32), torch.zeros(32), torch.linspace(0, 0.01, 32)], 1)
    certain = torch.ones_like(scores, dtype=torch.bool)
    scale = own_spread(scores, certain, torch.tensor([math.nan, math.nan, 0.5]))
    assert scale[0] > 0.2
    assert scale[1:].tolist() == [0, 0]  # constant; below the reader's own error
    assert own_spread(scores[:6], certain[:6], torch.zeros(3)).tolist() == [0, 0, 0]
