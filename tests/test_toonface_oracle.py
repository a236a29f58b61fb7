"""The renderer as a generator: perfect directions, the ceiling of a comparison."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from eigenlens import Codes, load_generator
from eigenlens.images import to_uint8

TOOL = Path(__file__).resolve().parents[1] / "tools" / "toonfaces"


@pytest.fixture(scope="module")
def oracle() -> Iterator[ModuleType]:
    sys.path.insert(0, str(TOOL))
    yield importlib.import_module("toonface_oracle")
    sys.path.remove(str(TOOL))


def test_codes_have_the_law_of_the_data(oracle: ModuleType) -> None:
    rng = np.random.default_rng(0)
    factors = oracle.factors_of(rng.standard_normal((4000, len(oracle.coordinates()))))
    data = oracle.drawing.sample_factors(4000, seed=1)
    assert set(factors) == set(data)
    for factor in oracle.FACTORS:
        drawn, wanted = factors[factor.name], data[factor.name][np.isfinite(data[factor.name])]
        if isinstance(factor, oracle.Number):
            assert drawn.min() >= factor.low
            assert drawn.max() <= factor.high
            assert drawn.mean() == pytest.approx(wanted.mean(), abs=0.05 * (factor.high - factor.low))
        else:
            shares = np.bincount(drawn) / len(drawn)
            assert shares == pytest.approx(np.full(len(factor.categories), 1 / len(factor.categories)), abs=0.03)


def test_a_coordinate_changes_its_own_factor_alone(oracle: ModuleType) -> None:
    codes = np.random.default_rng(1).standard_normal((50, len(oracle.coordinates())))
    before = oracle.factors_of(codes)
    for place, (name, category) in enumerate(oracle.coordinates()):
        moved = codes.copy()
        moved[:, place] += 6.0
        after = oracle.factors_of(moved)
        changed = [each for each in after if not np.array_equal(after[each], before[each])]
        assert changed in ([name], [])  # none where all 50 were there already
        if category is not None:
            assert (after[name] == category).all()


def test_pictures_are_those_of_the_renderer(oracle: ModuleType) -> None:
    if shutil.which("node") is None or not (TOOL / "node_modules").is_dir():
        pytest.skip("node or the drawing packages are missing; run: npm ci --prefix tools/toonfaces")
    g = load_generator("toonface_oracle:renderer")
    codes = g.sample(5, seed=2)
    images = g(codes)
    drawn, _ = oracle.drawing.render_faces(oracle.factors_of(codes.latent[:, 0].numpy()), resolution=64)
    assert np.array_equal(np.asarray(to_uint8(images)), drawn)
    again = g(Codes(codes.space, codes.latent[3:4]))
    assert torch.equal(again, images[3:4])
