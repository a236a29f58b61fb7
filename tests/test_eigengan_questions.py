"""The questions about EigenGAN's axes: every one is answered of small runs, once, and the tables say the same."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from eigenlens.reader import open_reader
from eigenlens.training.eigengan import configure, train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def questions() -> ModuleType:
    return importlib.import_module("benchmarks.eigengan_questions")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small runs of the plain group, and their twins without subspaces."""
    folder = tmp_path_factory.mktemp("runs")
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    np.save(folder / "data.npy", images)
    for group, basis in (("toon-published", 3), ("toon-no-subspaces", 0)):
        for seed in (0, 1):
            config = configure("tiny-16", kimg=0.008, seed=seed, n_basis=basis)
            run = folder / f"{group}-seed{seed}"
            train(config, data=folder / "data.npy", run=run, precision="fp32", log=lambda line: None)
    (folder / "toon-published-seed9").mkdir()  # a run that has not come to an end
    return folder


def test_a_group_that_grew_counts_once(questions: ModuleType) -> None:
    def line(weights: list[str] | str, **more: object) -> dict:
        return {"cell": {"question": 3, "group": "toon-floor", "weights": weights} | more, "figures": {}}

    few, more, other, single = line(["a", "b"]), line(["b", "a", "c"]), line(["a"], what="rare"), line("a")
    assert questions.whole_groups([few, more, other, single]) == [more, other, single]


def test_small_runs_are_asked_everything_once(
    questions: ModuleType, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(questions, "GRAFTED", ("2",))
    monkeypatch.setattr(questions, "labels_without_abstention", lambda: open_reader("pixels"))  # minutes of networks
    monkeypatch.setattr(questions, "_of_bundled", lambda lines, asked: None)
    words = ["", "--runs", str(runs), "--data", str(runs / "data.npy"), "--samples", "200", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    questions.main()
    lines = [json.loads(text) for text in (tmp_path / "results.jsonl").read_text("utf-8").splitlines()]
    asked = sorted(line["cell"]["question"] for line in lines)
    assert asked == [1] * 2 + [2] * 2 + [3] * 3 + [4] * 2 + [5] * 2 * 2 * 3 + [6] * 4
    text = (tmp_path / "tables.md").read_text("utf-8")
    for number in range(1, 7):
        assert text.count(f"\n## {number}. ") == 1
    assert "| axes, 1 kimg of tuning |" in text
    first = next(line["figures"] for line in lines if line["cell"]["question"] == 1)
    assert set(first["layers"]) == {"layer1", "layer2"}
    assert first["rank_correlation"]["|L| and start"] == 1  # eight images of training change no order
    control = [line["figures"]["cosine"] for line in lines if line["cell"].get("axes") == "random U"]
    assert 0 <= min(control) <= max(control) <= 1
    capsys.readouterr()
    questions.main()  # all is known
    assert capsys.readouterr().err == ""
    assert len((tmp_path / "results.jsonl").read_text("utf-8").splitlines()) == len(lines)


def test_runs_are_found_by_name_and_only_when_whole(questions: ModuleType, runs: Path) -> None:
    found = questions.find_runs([runs])
    assert {group: sorted(seeds) for group, seeds in found.items()} == {
        "toon-no-subspaces": [0, 1],
        "toon-published": [0, 1],
    }


def test_intervals_by_hand(questions: ModuleType) -> None:
    assert questions.interval([1.0, 2.0, 3.0]) == "2.00 ± 2.48 (n 3)"  # 4.303 / √3
    assert questions.interval([1.5, None]) == "1.50 (n 1)"
    assert questions.interval([]) == "-"
