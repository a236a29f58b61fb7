"""Supervised directions against attributes whose normals are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from eigenlens.directions import Directions
from eigenlens.errors import UserError
from eigenlens.methods.supervised import PENALTIES, Supervised, fit_logistic, fit_ridge, held
from toys import MappedToy, linear_toy, orthonormal_rows

AXES = orthonormal_rows(12, 12, seed=7)
TOY = linear_toy(torch.eye(12), (3, 2, 2), offset=0.0)  # the image is the code


def cosines(directions: Directions, truth: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(directions.vectors.flatten(1).double(), truth.double(), dim=1)


def score(k: int) -> object:
    return lambda images: images.flatten(1) @ AXES[k].float()


def test_numbers_point_where_they_grow() -> None:
    reader = {"a": score(0), "minus_b": lambda images: -2 * score(1)(images) + 5, "bent": lambda i: score(2)(i).exp()}  # type: ignore[operator]
    found = Supervised(reader, n_samples=3000).fit(TOY, seed=1)
    assert found.names == ("a", "minus_b", "bent")
    assert cosines(found, torch.stack([AXES[0], -AXES[1], AXES[2]])).min() > 0.98  # signs and all
    assert found.fields["held_out"][:2].min() > 0.999
    assert 0.3 < found.fields["held_out"][2] < 0.9
    assert found.split_half[:2].min() > 0.999
    assert torch.allclose(found.sigma, torch.ones(3))
    assert torch.equal(found.fields["chance"], torch.zeros(3))


def test_truths_and_classes_are_told_apart() -> None:
    reader = {
        "is_large": lambda images: score(3)(images) > 0.5,  # type: ignore[operator]
        "kind": lambda images: (score(4)(images) > 0).long() + (score(4)(images) > 1).long(),  # type: ignore[operator]
    }
    found = Supervised(reader, n_samples=3000).fit(TOY)
    assert found.names == ("is_large", "kind=0", "kind=1", "kind=2")
    truth = torch.stack([AXES[3], -AXES[4], AXES[4], AXES[4]])
    assert cosines(found, truth)[[0, 1, 3]].min() > 0.99
    assert found.fields["held_out"][[0, 1, 3]].min() > 0.97
    assert (found.fields["chance"] < 0.9).all()
    assert 0.6 < found.fields["chance"][0] < 0.75  # 69 % are not above half a σ


def test_noise_is_not_learnt() -> None:
    chance = torch.Generator().manual_seed(0)
    noise = Supervised(lambda images: torch.randn(len(images), generator=chance), n_samples=600).fit(TOY)
    assert noise.names == ("attribute-0",)
    assert noise.fields["held_out"].max() < 0.05
    assert noise.importance.max() < 0.05


def test_others_are_held_in_the_metric_of_the_codes(tmp_path: Path) -> None:
    stdev = torch.linspace(3.0, 0.3, 6).double()
    axes = orthonormal_rows(6, 6, seed=2)
    toy = MappedToy(axes.T * stdev)
    normals = torch.nn.functional.normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    reader = {f"n{k}": (lambda images, k=k: images[:, :, 0, :].flatten(1) @ normals[k]) for k in range(3)}
    plain, conditional = (Supervised(reader, n_samples=2000, hold=hold).fit(toy) for hold in ("none", "others"))
    assert plain.space == "w"
    assert cosines(plain, normals).min() > 0.999
    change = conditional.vectors[:, 0] @ normals.T  # [direction, prediction]
    off = change - change.diagonal().diag()
    assert off.abs().max() < 0.01
    assert (change.diagonal() > 0.05).all()
    assert (plain.vectors[:, 0] @ normals.T - torch.eye(3)).abs().max() > 0.1
    covariance = (toy.mixing @ toy.mixing.T).float()
    rivals = conditional.vectors[:, 0] + 0.1 * torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    rivals = (
        rivals
        - rivals @ torch.linalg.pinv(normals) @ normals
        + change.diagonal()[:, None] * torch.linalg.pinv(normals).T
    )
    length = lambda rows: torch.einsum("ki,ij,kj->k", rows, torch.linalg.inv(covariance), rows)  # noqa: E731
    assert (length(conditional.vectors[:, 0]) < length(rivals)).all()  # the shortest in σ that does the same
    conditional.save(tmp_path / "d.safetensors")


def test_readers_by_name_and_chosen_attributes() -> None:
    found = Supervised("pixels", attributes=("warmth", "brightness"), n_samples=400).fit(TOY)
    assert found.names == ("warmth", "brightness")
    assert found.provenance.arguments["reader"] == "pixels"
    images = TOY.sample(1, seed=3)
    brighter = found.move(images, "brightness", by=1.0)
    assert (TOY(brighter) - TOY(images)).mean() > 0
    with pytest.raises(UserError, match="gives no 'smile'"):
        Supervised("pixels", attributes=("smile",), n_samples=50).fit(TOY)
    with pytest.raises(UserError, match="unknown reader"):
        Supervised("pixel", n_samples=50).fit(TOY)


def test_what_cannot_be_fitted_is_told() -> None:
    with pytest.raises(UserError, match="is 1 in all 50 samples"):
        Supervised({"alike": lambda images: torch.ones(len(images))}, n_samples=50).fit(TOY)
    with pytest.raises(UserError, match="NaN"):
        Supervised({"broken": lambda images: images.flatten(1)[:, 0].log()}, n_samples=50).fit(TOY)
    with pytest.raises(UserError, match="follows from the others"):
        held(torch.eye(3).double()[[0, 1, 0]], torch.randn(50, 3).double())


# --- solvers ----------------------------------------------------------------------------------------------------------


def test_ridge_equals_its_normal_equations() -> None:
    chance = torch.Generator().manual_seed(3)
    rows = torch.randn(60, 5, generator=chance).double() @ torch.diag(torch.tensor([3.0, 1, 1, 0.5, 2])).double() + 4
    target = rows @ torch.tensor([1.0, -1, 0, 2, 0]).double() + torch.randn(60, generator=chance).double()
    offset, normal, penalty = fit_ridge(rows, target, 0.1)
    centred = rows - rows.mean(0)
    products = centred.T @ centred
    strength = 0.1 * products.diagonal().mean()
    exact = torch.linalg.solve(products + strength * torch.eye(5).double(), centred.T @ (target - target.mean()))
    assert torch.allclose(normal, exact, rtol=1e-8)
    assert offset == pytest.approx(float(target.mean() - rows.mean(0) @ exact))
    assert penalty == 0.1


def test_cross_validation_shrinks_noise_more_than_signal() -> None:
    chance = torch.Generator().manual_seed(3)
    rows = torch.randn(200, 20, generator=chance).double()
    noise = torch.randn(200, generator=chance).double()
    assert fit_ridge(rows, noise)[2] > 10 * fit_ridge(rows, rows[:, 0] + 0.1 * noise)[2]


@pytest.mark.parametrize(("n", "dim"), [(199, 200), (150, 200), (50, 64), (16, 600)])
def test_cross_validation_is_near_the_best_penalty_with_fewer_rows_than_coordinates(n: int, dim: int) -> None:
    chance = torch.Generator().manual_seed(n)
    rows = torch.randn(n + 500, dim, generator=chance).double()
    target = rows[:, :4].sum(1) + 3 * torch.randn(n + 500, generator=chance).double()

    def held_out(penalty: float | None) -> float:
        offset, normal, _ = fit_ridge(rows[:n], target[:n], penalty)
        truth = target[n:]
        return 1 - float((truth - offset - rows[n:] @ normal).square().sum() / (truth - truth.mean()).square().sum())

    assert held_out(None) > max(held_out(float(penalty)) for penalty in PENALTIES[::2]) - 0.1


def test_logistic_regression_is_at_its_minimum() -> None:
    chance = torch.Generator().manual_seed(4)
    rows = torch.randn(300, 4, generator=chance).double() + 2
    truth = torch.rand(300, generator=chance) < torch.sigmoid(rows[:, 0] - 2 * rows[:, 1] + 2).float()
    offset, normal, _ = fit_logistic(rows, truth, 0.01)
    weights = torch.cat([normal, torch.tensor([offset]).double()]).requires_grad_()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        rows @ weights[:4] + weights[4], truth.double(), reduction="sum"
    )
    strength = 0.01 * float((rows - rows.mean(0)).square().mean()) * 300
    (loss + 0.5 * strength * weights[:4].square().sum()).backward()
    assert weights.grad is not None
    assert weights.grad.abs().max() < 1e-3
    separable = fit_logistic(rows, rows[:, 0] > 2)[1]
    assert torch.isfinite(separable).all()
    assert separable[0] > 5 * separable[1:].abs().max()


def test_a_reader_may_know_its_attributes_only_once_it_is_open(eigengan) -> None:
    found = Supervised("toonfaces", n_samples=40, attributes=("skin_tone", "hair_L")).fit(eigengan)
    assert found.names == ("skin_tone", "hair_L")


def test_importance_is_what_a_fit_adds_to_guessing() -> None:
    """An answer that is nearly always the same is easily guessed, and a direction for it is worth little."""
    reader = {"rare": lambda images: score(0)(images).abs() > 2.2, "a": score(1)}  # type: ignore[operator]
    found = Supervised(reader, n_samples=1000).fit(TOY, seed=2)
    assert found.fields["held_out"][0] > 0.95
    assert found.importance[0] < found.importance[1]
