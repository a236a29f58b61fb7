"""Comparing, changing, combining and taking apart, on sets whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from eigenlens import algebra
from eigenlens.codes import Part, Space
from eigenlens.directions import Directions, Provenance, shared_space, standard_deviation, unit_norm
from eigenlens.errors import UserError
from toy_spaces import SlotToy


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep small matrices on one thread: on a busy machine the threads of a pool wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(vectors: torch.Tensor, space: str = "w", **more: object) -> Directions:
    if vectors.ndim == 2:
        vectors = vectors[:, None]
    names = more.pop("names", None) or tuple(f"d{i}" for i in range(len(vectors)))
    return Directions(unit_norm(vectors), space, names, **more)  # type: ignore[arg-type]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frame(k: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(normal(dim, k, seed=seed).double())[0].T.float()


# --- compare ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 5), (7, 4), (4, 7), (12, 12)])
def test_match_is_the_best_of_all(shape: tuple[int, int]) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(8):
        cost = np.random.default_rng(seed).standard_normal(shape)
        cost = cost.round() if seed % 2 else cost  # with ties
        pairs = algebra.match(cost)
        assert len(pairs) == min(shape)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
        rows, columns = optimize.linear_sum_assignment(cost)
        assert sum(cost[pair] for pair in pairs) == pytest.approx(cost[rows, columns].sum(), abs=1e-9)


def test_match_beats_every_permutation() -> None:
    import itertools

    cost = np.random.default_rng(5).standard_normal((5, 5))
    best = min(sum(cost[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(5)))
    assert sum(cost[pair] for pair in algebra.match(cost)) == pytest.approx(best)


def test_similarity_sees_through_order_and_sign() -> None:
    vectors = frame(4, 9)
    shuffled = vectors[[2, 0, 3, 1]] * torch.tensor([1.0, -1, -1, 1])[:, None]
    found = algebra.similarity(made(vectors), made(shuffled), draws=8)
    assert sorted(found.pairs) == [(0, 1), (1, 3), (2, 0), (3, 2)]
    assert found.mean == pytest.approx(1, abs=1e-5)
    assert float(found.angles.abs().max()) < 1e-3
    assert found.cosines.shape == (4, 4)


def test_principal_angles_are_those_that_were_planted() -> None:
    basis, angles = frame(6, 9).double(), torch.tensor([1e-4, 10.0, 45.0, 89.999]).double()
    first = basis[:3]
    turned = torch.stack([
        torch.cos(torch.deg2rad(angle)) * basis[i] + torch.sin(torch.deg2rad(angle)) * basis[3 + i]
        for i, angle in enumerate(angles[:3])
    ])  # fmt: skip
    mix = normal(3, 3, seed=4).double()
    assert algebra.principal_angles(mix @ first, turned).tolist() == pytest.approx(angles[:3].tolist(), rel=1e-3)
    right = torch.stack([basis[0], basis[1]])
    assert algebra.principal_angles(right, basis[1:4]).tolist() == pytest.approx([0, 90], abs=1e-4)
    assert len(algebra.principal_angles(torch.stack([basis[0], basis[0]]), first)) == 1  # dependent rows add nothing


def test_sets_of_w_compare_where_their_layer_ranges_are() -> None:
    g = SlotToy(slots=4, dim=6)
    whole, some = made(frame(3, 6)), made(frame(3, 6, seed=1), layers=("1-2",) * 3)
    assert shared_space(g, [whole, whole]).name == "w"
    assert shared_space(g, [whole, some]).name == shared_space(g, [made(normal(2, 4, 6), "w+"), whole]).name == "w+"
    found = algebra.similarity(some, some, space=shared_space(g, [some, some]))
    assert found.mean == pytest.approx(1, abs=1e-6)
    # one vector in two slots has 6 dimensions to lie in, not 12
    assert found.null == algebra.matched_null(6, 3, 3)[0]
    rows = made(normal(3, 4, 6), "w+", layers=("1-2",) * 3)
    assert algebra.similarity(rows, rows, space=g.space("w+")).null == algebra.matched_null(12, 3, 3)[0]


def test_the_null_is_what_random_frames_give() -> None:
    mean, high, pair = algebra.matched_null(64, 6, 9, draws=60, seed=0)
    values = [
        algebra.similarity(made(frame(6, 64, seed=i)), made(frame(9, 64, seed=99 + i)), draws=1) for i in range(16)
    ]
    means = np.array([each.mean for each in values])
    assert mean == pytest.approx(means.mean(), rel=0.08)
    assert (means > high).mean() < 0.3
    assert mean < high < pair
    assert algebra.matched_null(64, 6, 9, draws=60, seed=0) == (mean, high, pair)
    assert algebra.matched_null(64, 6, 9, draws=60, seed=1) != (mean, high, pair)


def test_w_and_w_plus_compare() -> None:
    rows = frame(3, 8)
    wide = made(rows[:, None].expand(-1, 4, -1), "w+")
    assert algebra.similarity(made(rows), wide, draws=4).mean == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match=r"different widths came: w \[1, 8\], w \[1, 7\]"):
        algebra.similarity(made(rows), made(frame(3, 7)))
    with pytest.raises(UserError, match="different spaces"):
        algebra.similarity(made(rows), made(rows, "z"))


def test_layer_ranges_count_where_the_space_is_known() -> None:
    space = Space("w+", 4, 8, broadcast_of="w")
    rows = frame(1, 8)
    low, high = made(rows, layers=("0-1",)), made(rows, layers=("2-3",))
    assert algebra.similarity(low, high, draws=4).mean == pytest.approx(1, abs=1e-5)
    assert algebra.similarity(low, high, space=space, draws=4).mean == pytest.approx(0, abs=1e-6)
    both = algebra.similarity(low, made(rows, layers=("1-2",)), space=space, draws=4)
    assert both.mean == pytest.approx(0.5, abs=1e-5)


def test_covariance_makes_cosines_correlations_of_coordinates() -> None:
    toy = SlotToy(dim=5)
    a, b = made(normal(2, 5, seed=1)), made(normal(3, 5, seed=2))
    space = toy.space("w")
    a, b = (each.with_figures(sigma=standard_deviation(each.vectors, space)) for each in (a, b))
    codes = toy.sample(20_000)
    read = [torch.stack([each.coordinates(codes, k) for k in range(len(each))]) for each in (a, b)]
    correlation = torch.corrcoef(torch.cat(read))[:2, 2:].abs()
    found = algebra.similarity(a, b, covariance=space.covariance, draws=4)
    assert torch.allclose(found.cosines, correlation, atol=0.02)


# --- change -----------------------------------------------------------------------------------------------------------


def test_orthogonalise_among_themselves() -> None:
    directions = made(normal(4, 9), sigma=torch.ones(4), provenance=Provenance({"name": "g"}, "sefa", {"n": 4}, 3))
    result = algebra.orthogonalise(directions)
    rows = result.vectors[:, 0]
    assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-5)
    assert torch.allclose(rows[0], directions.vectors[0, 0], atol=1e-6)
    assert torch.isnan(result.sigma).all()
    assert result.provenance.method == "orthogonalise"
    assert result.provenance.generator == {"name": "g"}
    assert result.provenance.arguments["of"] == {"method": "sefa", "arguments": {"n": 4}, "seed": 3}


def test_orthogonalise_against_others_leaves_their_coordinates_alone() -> None:
    toy = SlotToy(dim=6)
    directions, against = made(normal(2, 6)), made(normal(3, 6, seed=7), sigma=torch.ones(3))
    result = algebra.orthogonalise(directions, against=against).in_sigma(toy.space("w"))
    codes = toy.sample(2)
    moved = result.move(codes, 1, by=3.0)
    for k in range(3):
        assert torch.allclose(against.coordinates(moved, k), against.coordinates(codes, k), atol=1e-4)
    with pytest.raises(UserError, match="'d0' lies in the span of the others"):
        algebra.orthogonalise(made(against.vectors[:1] + against.vectors[1:2]), against=against)
    with pytest.raises(UserError, match="'d1' lies in the span"):
        algebra.orthogonalise(made(torch.cat([directions.vectors[:1], directions.vectors[:1]])))


def test_orthogonalise_by_covariance_uncorrelates_coordinates() -> None:
    toy = SlotToy(dim=6)
    result = algebra.orthogonalise(made(normal(3, 6)), covariance=toy.space("w").covariance)
    assert torch.allclose(result.sigma, standard_deviation(result.vectors, toy.space("w")), rtol=1e-4)
    codes = toy.sample(20_000)
    read = torch.stack([result.coordinates(codes, k) for k in range(3)])
    assert torch.allclose(torch.corrcoef(read), torch.eye(3), atol=0.03)


def test_compose_is_the_moves_one_after_the_other() -> None:
    toy = SlotToy(dim=5)
    vectors = unit_norm(normal(3, 1, 5))
    directions = made(vectors, sigma=standard_deviation(vectors, toy.space("w")), names=("age", "smile", "pose"))
    codes = toy.sample(2)
    happy = algebra.compose(directions, {"smile": 2.0, "age": -1.5}, "happy")
    want = directions.move(directions.move(codes, "smile", by=2.0), "age", by=-1.5)
    assert torch.allclose(happy.move(codes, "happy", by=1.0).latent, want.latent, atol=1e-5)
    assert happy.provenance.arguments["weights"] == {"age": -1.5, "smile": 2.0}
    listed = algebra.compose(directions, [-1.5, 2.0, 0.0], "happy")
    assert torch.equal(listed.vectors, happy.vectors)
    in_sigma = happy.in_sigma(toy.space("w"))
    strength = float(1 / happy.units_per_sigma(toy.space("w")))
    assert torch.allclose(in_sigma.move(codes, 0, by=strength).latent, want.latent, atol=1e-5)
    known = algebra.compose(directions, [-1.5, 2.0, 0.0], "happy", space=toy.space("w")).in_sigma(toy.space("w"))
    assert float(known.fields["recipe"]) == pytest.approx(strength, rel=1e-5)


def test_compose_over_layers() -> None:
    toy = SlotToy(dim=5)
    directions = made(normal(2, 5), sigma=torch.ones(2), layers=("0-1", "2-3"))
    with pytest.raises(UserError, match="pass space="):
        algebra.compose(directions, [1.0, 1.0], "both")
    both = algebra.compose(directions, [1.0, -2.0], "both", space=toy.space("w+"))
    codes = toy.lift(toy.sample(1), "w+")
    want = directions.move(directions.move(codes, 0, by=1.0), 1, by=-2.0)
    assert torch.allclose(both.move(codes, 0, by=1.0).latent, want.latent, atol=1e-6)
    assert algebra.compose(directions, [0.0, 1.0], "one").layers == ("2-3",)
    for weights, message in (([1.0], "1 weights came for 2"), ([0.0, 0.0], "all weights are zero")):
        with pytest.raises(UserError, match=message):
            algebra.compose(directions, weights, "none")
    with pytest.raises(UserError, match="σ of 'd0' is not known"):
        algebra.compose(made(normal(2, 5)), [1.0, 1.0], "none")


def test_decompose_finds_the_recipe_that_compose_used() -> None:
    toy = SlotToy(dim=12)
    vectors = unit_norm(frame(8, 12)[:, None] + 0.1 * normal(8, 1, 12))
    parts = made(vectors, sigma=standard_deviation(vectors, toy.space("w")))
    whole = algebra.compose(parts, {"d2": 3.0, "d5": -2.0}, "whole")
    found = algebra.decompose(whole, into=parts, k=3)
    assert found.recipe() == {"d2": pytest.approx(3, rel=1e-3), "d5": pytest.approx(-2, rel=1e-3), **{
        name: pytest.approx(0, abs=1e-2) for name in found.recipe() if name not in ("d2", "d5")
    }}  # fmt: skip
    assert found.share[0, 1:].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert float(found.share[0, 0]) < 0.99
    assert algebra.decompose(parts, into=parts, k=1).recipe(4) == {"d4": pytest.approx(1, rel=1e-5)}
    with pytest.raises(UserError, match="allowed are 1-8"):
        algebra.decompose(whole, into=parts, k=9)


def test_pursuit_stays_finite_when_parts_are_the_same() -> None:
    row = torch.nn.functional.normalize(normal(1, 4).double())
    chosen, amounts, share = algebra.pursue(row, torch.cat([row, -row, row]), 3)
    assert sorted(chosen[0].tolist()) == [0, 1, 2]
    assert amounts.isfinite().all()
    assert share[0, 0] == pytest.approx(1)


# --- what many sets share ---------------------------------------------------------------------------------------------


def noisy_sets(n_sets: int = 4, dim: int = 24) -> tuple[torch.Tensor, list[Directions]]:
    """Make sets that hold 5 common axes, turned by some 10 degrees, with any sign and order, and one of their own."""
    common, random, sets = frame(5, dim), np.random.default_rng(0), []
    for i in range(n_sets):
        rows = common[random.permutation(5)] * torch.tensor(random.choice([-1.0, 1.0], (5, 1)), dtype=torch.float32)
        rows = torch.cat([rows + 0.035 * normal(5, dim, seed=20 + i), normal(1, dim, seed=50 + i)])
        sets.append(made(rows, provenance=Provenance({}, f"method-{i}")))
    return common, sets


def test_codebook_finds_what_sets_share() -> None:
    common, sets = noisy_sets()
    book = algebra.codebook(sets, 9, seed=0)
    shared = book[:5]
    found = algebra.similarity(shared, made(common), draws=4)
    assert float(found.matched.min()) > 0.97
    assert book.fields["sets"].tolist() == [4] * 5 + [1] * 4
    assert book.fields["members"].tolist() == [4] * 5 + [1] * 4
    assert float(book.importance.sum()) == pytest.approx(1, abs=0.05)
    assert (book.importance[:-1] >= book.importance[1:]).all()
    assert [each["method"] for each in book.provenance.arguments["sets"]] == [f"method-{i}" for i in range(4)]
    assert torch.equal(book.vectors, algebra.codebook(sets, 9, seed=0).vectors)


def test_a_sparser_codebook_explains_sums_of_primitives() -> None:
    atoms, random = frame(6, 20), np.random.default_rng(1)
    pairs = [random.choice(6, 2, replace=False) for _ in range(60)]
    rows = torch.stack([atoms[i] * random.uniform(0.5, 1) + atoms[j] * random.uniform(-1, 1) for i, j in pairs])
    book = algebra.codebook([made(rows[:30]), made(rows[30:])], 6, sparsity=2, iterations=60)
    assert float(algebra.similarity(book, made(atoms), draws=4).matched.min()) > 0.98
    assert float(book.importance.sum()) > 0.99
    alone = algebra.codebook([made(rows)], 6, sparsity=1)
    assert float(alone.importance.sum()) < 0.9


def test_codebook_limits() -> None:
    sets = [made(normal(3, 5))]
    for n, sparsity, message in ((4, 1, "allowed are 1-3"), (0, 1, "allowed are 1-3"), (2, 3, "allowed are 1-2")):
        with pytest.raises(UserError, match=message):
            algebra.codebook(sets, n, sparsity=sparsity)
    whole = algebra.codebook(sets, 3)
    assert float(algebra.similarity(whole, sets[0], draws=2).matched.min()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="at least one"):
        algebra.codebook([], 1)


def test_a_direction_that_its_layers_make_zero_is_named() -> None:
    space = Space("z", 1, 6, (Part("a", 0, 0, 0, 3), Part("b", 1, 0, 3, 6)))
    directions = made(torch.eye(6)[:2], "z", layers=("a", "b"))
    with pytest.raises(UserError, match="direction 1 is zero here"):
        algebra.similarity(directions, directions, space=space)
    assert math.isfinite(algebra.similarity(directions[:1], directions[:1], space=space, draws=2).null)
