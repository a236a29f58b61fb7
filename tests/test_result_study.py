"""The study of `benchmarks.result`: its grids, its controls and what it writes."""

from __future__ import annotations

import gzip
import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from eigenlens.compare import Comparison
from eigenlens.generator import load_generator
from eigenlens.generators.eigengan import EigenGAN, EigenGANConfig, EigenGANNetwork
from eigenlens.grid import Grid
from eigenlens.inference import crossed_bootstrap
from eigenlens.method import METHODS
from eigenlens.verdict import Summary

result = importlib.import_module("benchmarks.result")


@pytest.fixture(autouse=True)
def control(monkeypatch):
    """Put the control into the table of methods, as the study does."""
    monkeypatch.setitem(METHODS.table, "duplicated", "benchmarks.result:Duplicated")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Give a folder with one small EigenGAN of 60 kimg and one that was stopped at 12."""
    folder = tmp_path_factory.mktemp("runs")
    config = EigenGANConfig(16, noise_dim=6, n_basis=3, base_channels=4, max_channels=8, widths="relative")
    for seed, kimg in ((0, 60.0), (1, 12.0)):
        torch.manual_seed(seed)
        network = EigenGAN(EigenGANNetwork(config), name="toon32")
        network.save(result.place(folder, "eigengan", seed) / "last", about={"training": {"kimg": kimg}})
    return folder


def test_only_networks_that_are_there_are_compared(runs) -> None:
    names = dict(result.grids(runs, (0, 1), 60.0))
    assert list(names) == ["eigengan"]
    assert names["eigengan"].generators == {"eigengan": (str(runs / "eigengan-32-seed0" / "last"),)}
    assert result.trained_kimg(result.place(runs, "eigengan", 1)) == 12


def test_shuffling_keeps_the_numbers_and_loses_their_places(runs, tmp_path) -> None:
    source = result.place(runs, "eigengan", 0) / "last"
    before = load_generator(str(source))
    after = load_generator(str(result.shuffled(str(source), tmp_path / "shuffled")))
    weights = zip(before.network.parameters(), after.network.parameters(), strict=True)
    for a, b in weights:
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
    assert not torch.allclose(before(before.sample(2, seed=0)), after(after.sample(2, seed=0)), atol=0.01)


def test_duplicated_directions_come_out_bad_and_everything_is_written(runs, tmp_path) -> None:
    source = str(result.place(runs, "eigengan", 0) / "last")
    grid = Grid.from_dict(
        {
            "generators": {"toy": [source]},
            "methods": ["axes(n_directions=4)", "duplicated(n_directions=4)"],
            "metrics": ["attribute_matrix_pixels_v1", "effect_orthogonality_v1"],
            "calibrations": ["change"],
            "null": 0,
            "k": 4,
            "profile_codes": 2,
        }
    )
    comparison = Comparison(grid, tmp_path / "grid", device="cpu")
    comparison.run()
    result.write(tmp_path, {"toy": comparison}, 1.0)
    rows = json.loads((tmp_path / "figures.json").read_text("utf-8"))["rows"]
    apart = {each["method"]: each["mean"] for each in rows if each["metric"] == "effect_orthogonality_v1"}
    assert apart["duplicated(n_directions=4)"] == pytest.approx(0, abs=1e-3)
    assert apart["axes(n_directions=4)"] > 0.1
    tables = (tmp_path / "tables.md").read_text("utf-8")
    assert "| duplicated(n_directions=4) |" in tables
    assert "effect_orthogonality_v1 on toy" in tables
    lines = gzip.decompress((tmp_path / "results.jsonl.gz").read_bytes()).decode().splitlines()
    assert len(lines) == 4
    assert all(json.loads(line)["command"].startswith("eigenlens compare") for line in lines)


def test_groups_are_compared_in_effects_alone(runs) -> None:
    def summary(method: str, values: list[float], calibration: str = "change") -> Summary:
        array = np.array(values)[:, None, None]
        return Summary(
            "toy",
            method,
            result.PURITY,
            calibration,
            array,
            crossed_bootstrap(array),
            0,
            10,
            math.nan,
            "done",
            "",
            "",
            {},
        )

    own = [0.30, 0.31, 0.32]
    found = {
        "eigengan": [summary("eigen", own), summary("eigen", [9.0], "native"), summary("random", [0.1, 0.2])],
        "stylegan2": [summary("sefa", [0.20, 0.21]), summary("random", [0.15])],
    }
    apart, not_apart = result.across(found, result.PURITY)
    assert apart["first"] == "eigengan eigen"
    assert apart["second"] == "stylegan2 sefa"
    assert apart["difference"].startswith("+0.105")
    assert apart[""] == "apart"
    assert not_apart["difference"].startswith("+0.000")
    assert not_apart[""] == "-"  # one network carries no interval
    assert result.across(found, "another") == []


def test_controls_are_rewritten_alone(tmp_path) -> None:
    before = "# Tables\n\n## eigengan\n\nsome\n\n" + result.CONTROLS + "\n\n| network |\n"
    (tmp_path / "tables.md").write_text(before, "utf-8")
    (tmp_path / "figures.json").write_text(json.dumps({"rows": [1], "controls": [{"network": "old"}]}), "utf-8")
    result.rewrite_controls(tmp_path, [{"network": "new", "coverage": 0.5}])
    tables = (tmp_path / "tables.md").read_text("utf-8")
    assert tables.startswith(before.partition(result.CONTROLS)[0] + result.CONTROLS)
    assert "| new | 0.5 |" in tables
    found = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert found == {"rows": [1], "controls": [{"network": "new", "coverage": 0.5}]}


def test_what_tables_leave_out_is_told(tmp_path) -> None:
    details = {
        "names": ["L1D1", "L2D1"],
        "main": ["beard", None],
        "purity": [0.75, 0.0],
        "monotonicity": [0.5, None],
        "side_effects": [None, None],
        "abstained": [0.25, 0.75],
        "by_group": {"part": {"share": [0.875, 0.0]}, "colour": {"share": [0.125, 0.0]}},
    }
    cell = {"metric": "attribute_matrix_toonfaces_v1", "method": "eigen"}
    other = {"metric": "effect_orthogonality_v1", "method": "sefa", "calibration": "change"}
    lines = [
        {"cell": cell | {"calibration": "native"}, "status": "done", "details": details},
        {"cell": cell | {"calibration": "change"}, "status": "done", "details": details},
        {"cell": other, "status": "done", "details": {}},
    ]
    assert result.evenness(lines) == [
        {
            "method": "eigen",
            "monotonicity at 2 σ": "0.50",
            "at change": "0.50",
            "side effects": "-",
            "main attributes": "1",
            "abstained": "0.50",
        }
    ]
    assert result.groups_of(lines) == [
        {"direction": "L1D1", "main": "beard", "purity": "0.75", "part": "0.88", "colour": "0.12"},
        {"direction": "L2D1", "main": "-", "purity": "0.00", "part": "0.00", "colour": "0.00"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "results.jsonl").write_text(text, "utf-8")
    assert "| eigen | 0.50 | 0.50 | - | 1 | 0.50 |" in result.told_further(tmp_path)


def test_the_best_share_of_an_attribute_is_that_of_its_purest_direction() -> None:
    def line(method: str, moved: list[list[float | None]], calibration: str = "change") -> dict:
        cell = {"metric": "attribute_matrix_pixels_v1", "method": method, "calibration": calibration}
        return {"cell": cell, "status": "done", "details": {"factors": ["hue", "size"], "moved": moved}}

    lines = [line("sefa", [[1.0, 1.0], [3.0, 1.0], [0.05, 0.0]]), line("axes", [[0.0, None]])]
    rows = result.best_shares([*lines, line("axes", [[1.0, 0.0]], "native")])
    assert rows == [
        {"attribute": "hue", "axes": "0.00", "sefa": "0.75"},
        {"attribute": "size", "axes": "0.00", "sefa": "0.50"},
    ]
    another = result.best_shares([*lines, line("sefa", [[1.0, 3.0]])])  # of a second network
    assert another[0]["sefa"] == "0.50"
