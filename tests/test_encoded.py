"""FactorVAE and beta-VAE scores: perfect, useless and duplicated codes of pictures whose factors are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eigenlens import UserError
from eigenlens.metrics.encoded import (
    BetaVae,
    FactorVae,
    beta_vae_differences,
    cut,
    draw_groups,
    factor_vae_votes,
    fit_encoder,
    linear_accuracy,
    majority_accuracy,
    votes_score,
)
from toy_factors import DUPLICATED, FACTORS, PERFECT, USELESS, factor_toy, paint

ARITHMETIC = [(factor_vae_votes, majority_accuracy), (beta_vae_differences, linear_accuracy)]


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1500, 4)).astype(np.float32)


@pytest.mark.parametrize(("describe", "accuracy"), ARITHMETIC)
def test_codes_in_threes(truth: np.ndarray, describe: object, accuracy: object) -> None:
    factors = {name: cut(column) for name, column in zip(FACTORS, truth.T, strict=True)}
    codes = torch.from_numpy(truth).double()
    noise = torch.randn(1500, 4, generator=torch.Generator().manual_seed(0)).double()
    value = lambda each: votes_score(each, factors, describe, accuracy, 400, 200, 0)["value"]  # type: ignore[arg-type]  # noqa: E731
    assert value(codes) > 0.98
    assert value(noise) < 0.45  # chance is 0.25
    assert value(codes[:, :1].expand(-1, 4) + 1e-3 * noise) < 0.75  # one factor of four can be told
    assert value(torch.zeros(1500, 4).double()) == 0.25  # nothing varies: nobody votes


@pytest.mark.parametrize("kind", [FactorVae, BetaVae])
def test_rendered_pictures_through_the_encoder(truth: np.ndarray, kind: type, tmp_path: Path) -> None:
    images = ((paint(torch.from_numpy(truth)) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    table = {name: {"type": "number", "low": -3, "high": 3} for name in FACTORS}
    arrays = {f"factor/{name}": column for name, column in zip(FACTORS, truth.T, strict=True)}
    np.savez(tmp_path / "faces.npz", images=images, meta=np.array(json.dumps({"factors": table})), **arrays)
    metric = kind(str(tmp_path / "faces.npz"), n_samples=300, n_train=300, n_test=150)
    perfect, useless, duplicated = (metric.score(factor_toy(), each) for each in (PERFECT, USELESS, DUPLICATED))
    assert perfect.value > 0.9
    assert min(perfect.details["encoder_r2"]) > 0.99
    assert useless.value == 0.25  # nobody votes
    assert max(useless.details["encoder_r2"]) < 0.2  # what does not show cannot be read
    assert duplicated.value < 0.75
    with pytest.raises(UserError, match=r"render\.py writes some"):
        kind(str(tmp_path / "nothing.npz")).score(factor_toy(), PERFECT)


def test_groups_share_one_factor(truth: np.ndarray) -> None:
    factors = {"a": np.array([0, 0, 1, 1, -1, -1]), "b": np.array([0, 1, 0, 1, 0, 1])}
    rows, which = draw_groups(factors, 50, seed=0, stream="test", group=8)
    for row, choice in zip(rows, which, strict=True):
        values = factors["ab"[choice]][row]
        assert (values == values[0]).all()
        assert values[0] >= 0  # where a factor does not apply, nothing is shared
    assert set(which) == {0, 1}


def test_encoder_recovers_a_linear_map() -> None:
    rows = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)).double() * 3 + 1
    places = rows @ torch.arange(12.0).view(6, 2).double() + 5
    offset, weights = fit_encoder(rows, places, penalty=1e-9)
    assert torch.allclose(offset + rows @ weights, places, atol=1e-4)
