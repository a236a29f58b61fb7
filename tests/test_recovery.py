"""Recovery in threes: perfect, useless and duplicated directions of a renderer whose factors are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blobs import blobs
from eigenlens import Directions, Unsupported
from eigenlens.generator import Generator
from eigenlens.method import METHODS
from eigenlens.metrics import recovery
from eigenlens.metrics.recovery import Measured, Recovery, RecoveryQuick, bootstrap_interval, make_pairs

SMALL = Recovery(n_codes=150, n_moves=8, n_tests=100, n_epochs=8)


def directions(rows: torch.Tensor) -> Directions:
    vectors = torch.nn.functional.normalize(rows, dim=1)[:, None]
    return Directions(vectors, "z", tuple(f"d{i}" for i in range(len(rows))), sigma=torch.ones(len(rows)))


@pytest.fixture(scope="module")
def scene() -> tuple[Generator, torch.Tensor]:
    return blobs(resolution=16, dim=12)


@pytest.mark.slow
def test_perfect_useless_and_duplicated_directions(scene) -> None:
    g, axes = scene
    nothing = torch.linalg.svd(axes)[2][5:9]
    perfect = SMALL.score(g, directions(axes[[0, 1, 3, 4]]))
    useless = SMALL.score(g, directions(nothing))
    doubled = SMALL.score(g, directions(axes[[0, 3, 3, 4]] + 1e-3 * nothing))
    assert perfect.value > 0.8
    assert not perfect.details["at_chance"]
    assert useless.details["interval"][0] < 0.25 < useless.details["interval"][1]
    assert not any(useless.details["reached"])
    assert perfect.value - 0.35 < doubled.value < perfect.value - 0.1  # two of four are one: half of their answers
    assert ("d1", "d2") in doubled.details["alike"]
    assert ("d0", "d3") not in doubled.details["alike"]
    assert perfect.details["chance"] == 0.25
    assert perfect.n == 200
    low, high = doubled.details["interval"]
    assert low < doubled.value < high
    assert perfect.details["random"] > 0.5  # five factors of twelve dimensions: random directions are distinct too


def test_what_was_measured_before_does_not_move_the_pairs(scene) -> None:
    g, axes = scene
    d = directions(axes[:3])
    known = d.with_figures(effect=torch.ones(3), limits=torch.tensor([[-0.1, 0.1]] * 3))
    plain, bounded = (Recovery(4, 2, 4, 0)._measure(g, each, 0)[2] for each in (d, known))
    assert torch.equal(plain, bounded)


def test_pairs_are_balanced_and_differ_by_their_move_alone(scene) -> None:
    g, axes = scene
    d = directions(axes[:3])
    strength = torch.tensor([1.0, 2.0, 0.5])
    pairs = make_pairs(g, d, strength, 12, 4, seed=1, stream="test")
    assert torch.bincount(pairs.which).tolist() == [16, 16, 16]
    assert float(pairs.side.sum()) == 0
    assert torch.bincount(pairs.owner).tolist() == [4] * 12
    from eigenlens import runtime

    codes = g.sample(12, seed=runtime.seed_apart(1, "test"))
    for row in (0, 17, 47):
        k, owner = int(pairs.which[row]), int(pairs.owner[row])
        moved = d.move(codes[owner], k, by=float(pairs.side[row] * strength[k]))
        assert torch.allclose(g(moved)[0].clamp(-1, 1), pairs.after[row], atol=1e-5)
        assert torch.allclose(g(codes[owner])[0].clamp(-1, 1), pairs.before[owner], atol=1e-5)
    other = make_pairs(g, d, strength, 12, 4, seed=2, stream="test")
    assert not torch.allclose(pairs.before, other.before)


def test_what_came_before_is_not_measured_again(scene, monkeypatch) -> None:
    g, axes = scene
    calls = []
    measure = Recovery._measure

    def counted(self, generator, directions, seed):
        calls.append(directions.provenance.method)
        return Measured(torch.eye(3), torch.ones(4, 2), torch.ones(3), torch.ones(3, dtype=torch.bool))

    monkeypatch.setattr(Recovery, "_measure", counted)
    for some in (axes[:3], axes[1:4], axes[:3]):
        score = RecoveryQuick().score(g, directions(some), seed=5)
    assert calls == ["", "random", "axes", ""]
    RecoveryQuick().score(g, METHODS["axes"](n_directions=3).fit(g, seed=5), seed=5)  # a baseline among the rows
    RecoveryQuick().score(g, directions(axes[:3]), seed=6)
    assert calls == ["", "random", "axes", "", "", "random", "axes"]
    assert score.details["axes"] == 1.0
    assert measure is not counted


def test_interval_covers_the_mean_of_codes() -> None:
    rng = np.random.default_rng(0)
    hits = (rng.random((400, 2)) < 0.3).astype(float)
    low, high = bootstrap_interval(hits, seed=0)
    assert low < hits.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 800), rel=0.25)
    assert bootstrap_interval(np.ones((10, 2)), seed=0) == (1.0, 1.0)


def test_one_direction_has_nothing_to_be_told_from(scene) -> None:
    g, axes = scene
    with pytest.raises(Unsupported, match="two or more"):
        RecoveryQuick().score(g, directions(axes[:1]))
    assert recovery.BASELINES == ("random", "axes")
