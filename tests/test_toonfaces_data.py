"""The toon-face data set: the drawing of its factors, its renderer, and the subset that ships."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "toonfaces"
SUBSET = ROOT / "src" / "eigenlens" / "assets" / "toonfaces.npz"


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    """The sampling module of the renderer, which is no part of the package."""
    sys.path.insert(0, str(TOOL))
    yield importlib.import_module("toonface_factors")
    sys.path.remove(str(TOOL))


@pytest.fixture(scope="module")
def drawn(tool) -> dict[str, np.ndarray]:
    return tool.sample_factors(4000, seed=5)


@pytest.fixture(scope="module")
def subset() -> dict[str, np.ndarray]:
    with np.load(SUBSET, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def render(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL / "render.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.astype(float), second.astype(float))[0, 1])


# Sampling


def test_a_sample_depends_on_seed_and_index_only(tool):
    whole = tool.sample_factors(12, seed=3)
    part = tool.sample_factors(4, seed=3, start=7)
    other = tool.sample_factors(12, seed=4)
    for name, values in whole.items():
        np.testing.assert_array_equal(values[7:11], part[name])
    assert not np.any(whole["rotation"] == other["rotation"])


def test_numbers_are_uniform_over_their_range(tool, drawn):
    for factor in tool.FACTORS:
        if isinstance(factor, tool.Number):
            values = np.sort(drawn[factor.name][tool.applies(factor, drawn)])
            places = (values - factor.low) / (factor.high - factor.low)
            gap = np.abs(places - (np.arange(len(places)) + 0.5) / len(places)).max()
            assert gap < 2.0 / np.sqrt(len(places)), factor.name  # Kolmogorov distance, far beyond chance


def test_categories_are_equally_likely(tool, drawn):
    for factor in tool.FACTORS:
        if isinstance(factor, tool.Category):
            codes = drawn[factor.name][tool.applies(factor, drawn)]
            shares = np.bincount(codes, minlength=len(factor.categories)) / len(codes)
            assert np.abs(shares - 1.0 / len(factor.categories)).max() < 0.05, factor.name


def test_a_factor_that_does_not_apply_is_marked(tool, drawn):
    for factor in tool.FACTORS:
        values = drawn[factor.name]
        blank = np.isnan(values) if isinstance(factor, tool.Number) else values == tool.ABSENT_CODE
        np.testing.assert_array_equal(blank, ~tool.applies(factor, drawn), err_msg=factor.name)
    assert np.all(drawn["beard_style"][drawn["beard"] == 0] == -1)


def test_colour_boxes_lie_inside_srgb(tool):
    factors = {factor.name: factor for factor in tool.FACTORS}
    for prefix in ("background", "background2", "hair", "clothes"):
        axes = [np.linspace(factors[f"{prefix}_{axis}"].low, factors[f"{prefix}_{axis}"].high, 9) for axis in "Lab"]
        lab = np.array(list(itertools.product(*axes)))
        np.testing.assert_allclose(tool.srgb_to_lab(tool.lab_to_srgb(lab)), lab, atol=1e-6, err_msg=prefix)


def test_skin_gets_steadily_darker(tool):
    assert np.all(np.diff(tool.skin_lab(np.linspace(0.0, 1.0, 101))[:, 0]) < 0)


def test_correlate_gives_its_number_and_keeps_the_margins(tool, drawn):
    ties = [("beard", "rear_hair", 0.7), ("skin_tone", "scale", -0.5)]
    tied = tool.sample_factors(4000, seed=5, correlations=ties)
    assert correlation(tied["beard"], tied["rear_hair"]) == pytest.approx(0.7, abs=0.04)
    assert correlation(tied["skin_tone"], tied["scale"]) == pytest.approx(-0.5, abs=0.05)
    assert tied["rear_hair"].mean() == pytest.approx(0.5, abs=0.03)
    assert tied["scale"].mean() == pytest.approx(1.0, abs=0.006)
    for name in set(drawn) - {"rear_hair", "rear_hair_style", "scale"}:
        np.testing.assert_array_equal(tied[name], drawn[name])


def test_ties_form_chains_in_any_order(tool):
    ties = [("scale", "shift_x", 1.0), ("skin_tone", "scale", 1.0)]
    tied = tool.sample_factors(50, correlations=ties)
    assert correlation(tied["skin_tone"], tied["shift_x"]) > 0.999


def test_rare_sets_one_probability_and_leaves_other_factors(tool, drawn):
    rare = tool.sample_factors(4000, seed=5, rarities=[("beard", "present", 0.02), ("hair_style", "bun", 0.1)])
    assert rare["beard"].mean() == pytest.approx(0.02, abs=0.008)
    shares = np.bincount(rare["hair_style"]) / 4000
    np.testing.assert_allclose(shares, [0.3, 0.3, 0.3, 0.1], atol=0.03)
    assert set(np.flatnonzero(rare["beard"])) <= set(np.flatnonzero(drawn["beard"]))
    np.testing.assert_array_equal(rare["mouth"], drawn["mouth"])
    gone = tool.sample_factors(200, rarities=[("beard", "present", 0.0)])
    assert not gone["beard"].any()
    assert np.all(gone["beard_style"] == -1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--correlate", "bread:rear_hair=0.7"], "unknown factor 'bread'. Did you mean 'beard'?"),
        (["--correlate", "beard:rear_hair=7"], "'7' is not a number from -1 to 1"),
        (["--correlate", "beard=0.5"], "two factors are needed"),
        (["--rare", "mouth=0.1"], "name one, as in --rare mouth.laugh=0.02"),
        (["--rare", "scale=0.1"], "scale is a number and has no categories"),
        (["--resolution", "50"], "not a multiple of 8; try --resolution 48"),
        (["--n", "0"], "--n 0 is out of range"),
        (["--n", "many"], "invalid int value: 'many'"),
    ],
)
def test_a_users_mistake_is_one_line_and_code_2(tool, capsys, options, message):
    program = importlib.import_module("render")
    assert program.main([*options, "--out", "faces.npz"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"correlations": [("beard", "scale", 0.5), ("eyes", "scale", 0.5)]}, "scale is tied twice"),
        ({"correlations": [("beard", "eyes", 0.5), ("eyes", "beard", 0.5)]}, "run in a circle"),
        ({"rarities": [("eyes", "bow", 0.7), ("eyes", "wink", 0.6)]}, "add up to 1.3"),
    ],
)
def test_contradictory_requests_are_refused(tool, wrong, message):
    with pytest.raises(tool.RequestError, match=message):
        tool.sample_factors(2, **wrong)


# The shipped subset


def test_subset_is_small_and_holds_no_objects(subset):
    assert SUBSET.stat().st_size <= 9_500_000
    assert all(values.dtype != object for values in subset.values())
    assert subset["meta"].shape == ()
    n = len(subset["images"])
    assert n >= 1500
    assert subset["images"].shape == (n, 64, 64, 3)
    assert subset["images"].dtype == np.uint8
    assert subset["masks"].shape == (n, 64 * 64 // 8)
    assert subset["masks"].dtype == np.uint8


def test_subset_labels_are_those_of_its_seed(tool, subset):
    meta = json.loads(subset["meta"].item())
    expected = tool.sample_factors(meta["n"], seed=meta["seed"])
    assert meta["factors"] == json.loads(json.dumps(tool.describe_factors()))
    assert {name for name in subset if name.startswith("factor/")} == {f"factor/{name}" for name in expected}
    for name, values in expected.items():
        assert subset[f"factor/{name}"].dtype == values.dtype
        np.testing.assert_array_equal(subset[f"factor/{name}"], values, err_msg=name)
    assert "Johan Melin" in meta["attribution"]
    assert "CC BY 4.0" in meta["attribution"]


def test_subset_factors_are_in_range_and_independent(tool, subset):
    drawn = {factor.name: subset[f"factor/{factor.name}"] for factor in tool.FACTORS}
    for factor in tool.FACTORS:
        shown = drawn[factor.name][tool.applies(factor, drawn)].astype(float)
        low, high = (factor.low, factor.high) if isinstance(factor, tool.Number) else (0, len(factor.categories) - 1)
        assert shown.min() >= low - 1e-6
        assert shown.max() <= high + 1e-6
    for first, second in itertools.combinations(tool.FACTORS, 2):
        both = tool.applies(first, drawn) & tool.applies(second, drawn)
        columns = [drawn[factor.name][both].astype(float) for factor in (first, second)]
        if min(column.std() for column in columns) > 0:  # a presence does not vary where its style shows
            found = correlation(*columns)
            assert abs(found) < 4.5 / np.sqrt(both.sum()), (first.name, second.name, found)


def test_subset_masks_show_one_bust_each(subset):
    masks = np.unpackbits(subset["masks"], axis=1).reshape(-1, 64, 64).astype(bool)
    area = masks.mean(axis=(1, 2))
    assert area.min() > 0.15
    assert area.max() < 0.65
    assert masks[:, -1].sum(axis=1).min() > 16, "a bust does not reach the lower border"
    assert masks[:, :40, [0, -1]].mean() < 0.01, "heads are cut at the sides"
    assert masks[:, 0].any(axis=1).mean() < 0.08, "heads are cut at the top"


def test_subset_plain_background_has_its_recorded_colour(tool, subset):
    plain = np.flatnonzero(subset["factor/background_kind"] == 0)[:50]
    lab = np.stack([subset[f"factor/background_{axis}"][plain] for axis in "Lab"], axis=-1)
    corner = subset["images"][plain, 0, 0] / 255.0
    np.testing.assert_allclose(corner, tool.lab_to_srgb(lab), atol=0.004)


def test_subset_placement_moves_the_mask(subset):
    masks = np.unpackbits(subset["masks"], axis=1).reshape(-1, 64, 64)[:, :40]  # heads only
    middle = (masks * (np.arange(64) + 0.5)).sum(axis=(1, 2)) / masks.sum(axis=(1, 2)) / 64.0
    assert correlation(middle, subset["factor/shift_x"]) > 0.8
    assert correlation(masks.mean(axis=(1, 2)), subset["factor/scale"]) > 0.4


# Rendering


@pytest.fixture(scope="module")
def can_render() -> None:
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    if not (TOOL / "node_modules").is_dir():
        pytest.skip("the drawing packages are missing; run: npm ci --prefix tools/toonfaces")


def test_rendering_again_gives_the_same_bytes(can_render, tmp_path, subset):
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    finished = render("--n", "4", "--out", os.fspath(first))
    assert finished.returncode == 0, finished.stderr
    render("--n", "4", "--workers", "2", "--out", os.fspath(second))
    assert first.read_bytes() == second.read_bytes()
    with np.load(first, allow_pickle=False) as again:
        # Another processor may round a few pixels differently.
        np.testing.assert_allclose(again["images"].astype(int), subset["images"][:4].astype(int), atol=2)
        assert np.unpackbits(again["masks"] ^ subset["masks"][:4]).sum() <= 8
