"""Benchmarks run, go on where they were stopped, and the docs print what they measured."""

from __future__ import annotations

import copy
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from eigenlens.generator import Generator
from eigenlens.generators.eigengan import EigenGANConfig, EigenGANNetwork
from eigenlens.training.eigengan import Training

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def synthesis():
    return importlib.import_module("benchmarks.synthesis")


def test_the_plain_stylegan2_makes_our_images(synthesis) -> None:
    g = synthesis.stylegan2(64, 1024, most=128)  # wide enough for Winograd's algorithm, large enough for rows
    codes = g.sample(2)
    assert synthesis.difference(g(codes), synthesis._plain.stylegan2(g.network, codes.latent[:, 0])) <= 1e-4
    assert abs(float(g(codes).std()) - 0.5) < 0.1
    assert synthesis.psnr(g, codes) >= 36


@pytest.mark.parametrize("kind", ["T", "R"])
def test_the_plain_stylegan3_makes_our_images(synthesis, kind: str) -> None:
    g = synthesis.stylegan3(kind, 32, n_layers=6, channel_base=512, most=32)
    codes = g.sample(2)
    assert synthesis.difference(g(codes), synthesis._plain.stylegan3(g.network, codes.latent[:, 0])) <= 1e-4
    assert synthesis.psnr(g, codes) >= 36


@pytest.mark.parametrize("family", ["dcgan", "sngan", "proggan", "biggan"])
def test_folded_networks_make_the_images_of_their_modules(synthesis, family: str) -> None:
    sizes = {
        "dcgan": {"widths": (16, 16, 8, 8)}, "sngan": {"width": 16}, "proggan": {"most": 16, "levels": 3},
        "biggan": {"width": 8},
    }  # fmt: skip
    g = getattr(synthesis, family)(**sizes[family])
    for norm in (each for each in g.network.modules() if isinstance(each, torch.nn.modules.batchnorm._BatchNorm)):
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 2.0)
    codes = synthesis.sample(g, 3)
    before = g.weight_hash
    exact = copy.deepcopy(g)
    exact.network.double()
    expected = synthesis.eager(exact, codes.with_latent(codes.latent.double()))
    plain, ours = (synthesis.difference(images, expected) for images in (synthesis.eager(g, codes), g(codes)))
    assert ours <= 3 * plain + 1e-6  # they round differently, and as little
    assert ours <= 1e-3
    del g.weight_hash  # computed anew: what is kept beside the weights is no part of them
    assert g.weight_hash == before


def test_the_command_writes_its_table(tmp_path: Path) -> None:
    words = ["synthesis", "--toy", "--parts", "peak", "partial", "--threads", "1", "--out", str(tmp_path / "a.json")]
    ran = subprocess.run([sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "a.json").read_text())["results"]
    assert {row["part"] for row in rows} == {"peak", "partial"}
    assert "| case |" in ran.stdout
    about = rows[0]["machine"]
    assert (about["torch"], about["threads"]) == (torch.__version__, 1)
    assert about["processor"]
    unknown = subprocess.run([sys.executable, "-m", "benchmarks", "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "synthesis" in unknown.stderr


def test_recipes_are_trained_measured_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    recipes = importlib.import_module("benchmarks.recipes")
    monkeypatch.setattr(recipes, "BASE", recipes.BASE | {"resolution": 16, "noise_dim": 4, "base_channels": 4})
    data = tmp_path / "noise.npy"
    np.save(data, np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8))
    out = tmp_path / "recipes.json"
    words = [
        "recipes",
        "--data",
        f"noise={data}",
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(out),
        "--threads",
        "1",
    ]
    words += ["--recipes", "published, q = 3", "--kimg", "0.064"]
    for seeds in ("0", "0-1"):  # the second call finds what the first one did
        monkeypatch.setattr(sys, "argv", [*words, "--seeds", seeds])
        recipes.main()
    cells = json.loads(out.read_text("utf-8"))["cells"]
    assert [(cell["recipe"], cell["seed"]) for cell in cells] == [
        ("published", 0), ("published", 1), ("q = 3", 0), ("q = 3", 1),
    ]  # fmt: skip
    assert [len(cell["effects"]) for cell in cells] == [12, 12, 6, 6]
    assert cells[0]["distance"] != cells[1]["distance"]
    assert "| noise | q = 3 | 2 |" in capsys.readouterr().out


def test_a_stopped_training_ends_the_command_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = importlib.import_module("benchmarks.recipes")
    monkeypatch.setattr(recipes, "BASE", recipes.BASE | {"resolution": 16, "noise_dim": 4, "base_channels": 4})
    data, runs, out = tmp_path / "noise.npy", tmp_path / "runs", tmp_path / "recipes.json"
    np.save(data, np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8))
    words = ["recipes", "--data", f"noise={data}", "--runs", str(runs), "--out", str(out), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--recipes", "published", "--seeds", "0-1", "--kimg", "0.064"])
    step = Training.take_step

    def stopped(self: Training, *batch: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *batch)

    monkeypatch.setattr(Training, "take_step", stopped)
    with pytest.raises(SystemExit, match=r"stopped at 0\.032 of 0\.064 kimg; the same command goes on"):
        recipes.main()
    assert not out.exists()  # half a training was not measured
    assert [path.name for path in runs.glob("*-seed*")] == ["noise-published-seed0"]  # nor the next one begun
    monkeypatch.setattr(Training, "take_step", step)
    recipes.main()
    assert len(json.loads(out.read_text("utf-8"))["cells"]) == 2


def test_the_course_of_a_training_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    collapse = importlib.import_module("benchmarks.collapse")
    monkeypatch.setattr(collapse, "BASE", collapse.BASE | {"resolution": 16, "noise_dim": 4, "base_channels": 4})
    monkeypatch.chdir(tmp_path)
    np.save("noise.npy", np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8))
    words = ["collapse", "--data", "noise.npy", "--recipes", "published", "--marks", "0", "0.064", "--out", "out.json"]
    monkeypatch.setattr(sys, "argv", [*words, "--threads", "1"])
    collapse.main()
    before, after = json.loads(Path("out.json").read_text("utf-8"))["courses"]["published"]
    assert "pull" not in before
    assert sum(after["pull"]) == pytest.approx(1)
    assert [len(after[name]) for name in ("share", "scale", "pull")] == [3, 2, 2]
    assert before["share"] != after["share"]
    assert "| 0.064 |" in capsys.readouterr().out


def test_the_share_of_a_part_is_what_it_does() -> None:
    collapse = importlib.import_module("benchmarks.collapse")
    network = EigenGANNetwork(EigenGANConfig(resolution=16, noise_dim=4, n_basis=2, base_channels=4))
    with torch.no_grad():
        network.base.weight.zero_()  # eps does nothing
        network.blocks[1].subspace.importance.zero_()  # the second layer neither: all is the first's
    seen = collapse.looked_at(network, n=64)
    assert seen["share"][0] == seen["share"][2] == 0
    assert seen["share"][1] == pytest.approx(1, abs=0.3)
    assert seen["scale"][1] == 0


def test_the_docs_print_the_measured_recipes() -> None:
    recipes = importlib.import_module("benchmarks.recipes")
    page = (ROOT / "docs" / "results" / "eigengan" / "recipes.md").read_text("utf-8")
    cells = json.loads(recipes.RESULTS.read_text("utf-8"))["cells"]
    assert recipes.table(cells) in page, "python -m benchmarks recipes --table prints it"


@pytest.fixture
def projection():
    return importlib.import_module("benchmarks.projection")


def test_the_docs_print_the_measured_projections(projection) -> None:
    page = (ROOT / "docs" / "projection.md").read_text("utf-8")
    found = sorted((ROOT / "benchmarks" / "results").glob("projection*.json"))
    assert found
    for file in found:
        assert projection.table(json.loads(file.read_text("utf-8"))) in page, f"python -m {file.stem} --table prints it"


def test_projections_go_on_row_by_row(
    projection, eigengan: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    for name in ("SAMPLES", "MEAN_SAMPLES", "START_SAMPLES"):
        monkeypatch.setattr(projection, name, 8)
    for name in ("STEPS", "PHI_STEPS", "TUNE_STEPS"):
        monkeypatch.setattr(projection, name, 2)
    model, photos, out = eigengan.save(tmp_path / "mine"), tmp_path / "unseen.npz", tmp_path / "out.json"
    size = eigengan.resolution
    np.savez(photos, images=np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8))
    words = ["projection", "--generator", str(model), "--photos", str(photos), "--n", "3", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)

    def stopped(case: object, n: int) -> None:
        raise KeyboardInterrupt

    last = list(projection.ROWS)[-1]
    with monkeypatch.context() as stopping:
        stopping.setitem(projection.ROWS, last, projection.Row(stopped))
        with pytest.raises(KeyboardInterrupt):
            projection.main()
    assert not out.exists()
    partial = tmp_path / "out.partial.json"
    before = json.loads(partial.read_text("utf-8"))["rows"]
    projection.main()
    found = json.loads(out.read_text("utf-8"))
    assert found["rows"][:-1] == before, "rows that were there are not measured again"
    assert [row["row"] for row in found["rows"]] == [
        name for name, row in projection.ROWS.items() if row.needs != "encoder"
    ]
    assert {row["n"] for row in found["rows"]} == {3}
    assert found["generator"] == eigengan.identity()
    assert found["edits"]["reader"] == "pixels"
    assert not partial.exists()
    assert projection.table(found) in capsys.readouterr().out


def test_planted_directions_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    planted = importlib.import_module("benchmarks.planted")
    axes = planted.blobs()[1]
    turned = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))[0] @ axes
    perfect, rotated, useless = (
        planted.measure(rows, axes) for rows in (3 * axes, turned, torch.linalg.svd(axes)[2][5:10])
    )
    assert max(perfect["angles"] + rotated["angles"]) < 0.1
    assert min(useless["angles"]) > 89.9
    assert perfect["largest_cos"]["hue"] == pytest.approx(1.0, abs=1e-5)
    assert rotated["largest_cos"]["hue"] < 0.99
    assert max(useless["largest_cos"].values()) < 1e-5
    cell = {"steps": 1, "random": 0.5}
    cells = [
        {"part": "bent", "what": kind, "seed": seed, "recovery": value, **cell}
        for kind, values in (("voynov", (0.9, 0.8)), ("warped", (0.8, 0.9)))
        for seed, value in enumerate(values)
    ]
    planted.print_tables([{"part": "span", "what": 3, "seed": 0, "steps": 900, **perfect}, *cells], [10.0, 20.0])
    told = capsys.readouterr().out
    zeros, ones = (", ".join([each] * 5) for each in ("0.0", "1.00"))
    assert f"| 3 rounds of 300 steps | 0 | {zeros} | {zeros} | {ones} |" in told
    assert "| 1 | 1 | 0.800 | 0.900 | +0.100 | 0.500 |" in told
    assert "warped - voynov: +0.000, standard error 0.100, 2 pairs" in told


def test_planted_cells_are_taken_up_by_settings_and_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    planted = importlib.import_module("benchmarks.planted")
    monkeypatch.setattr(planted, "SPAN", planted.SPAN | {"n_directions": 4, "batch": 4})
    monkeypatch.setattr(planted, "FRAMES", 2)
    out = tmp_path / "planted.json"
    words = ["planted", "--parts", "span", "--span-seeds", "0", "--work", str(tmp_path / "runs"), "--out", str(out)]

    def cells(*more: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", [*words, *more])
        planted.main()
        return json.loads(out.read_text("utf-8"))["cells"]

    first = cells("--rounds", "1", "--span-steps", "2")
    assert [cell["what"] for cell in first] == [1]
    second = cells("--rounds", "1,2", "--span-steps", "2")
    assert second[0] == first[0], "taken up, with the seconds of the first time"
    assert [(cell["what"], cell["steps"]) for cell in second] == [(1, 2), (2, 2)]
    assert [cell["steps"] for cell in cells("--rounds", "1", "--span-steps", "3")] == [2, 3, 2]
    monkeypatch.setattr(planted, "SPAN", planted.SPAN | {"noise": 0.1})
    assert planted.taken_up(out) == {}


def test_recovery_cells_are_taken_up_by_settings_and_weights(
    eigengan: Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    recovery = importlib.import_module("benchmarks.recovery")
    voynov, longer, sefa = (recovery.make_method(*each) for each in (("voynov", 30), ("voynov", 31), ("sefa", 30)))
    cell = {
        "generator": "toy", "method": "voynov", "seed": 0, "recovery": 0.9, "chance": 0.04, "random": 0.5, "axes": 0.2,
        "k": recovery.K, "at_chance": 1, "alike": 0, "fit_cpu_seconds": 2.0,
        "arguments": recovery.settings_of(voynov, eigengan), "weights": eigengan.weight_hash,
    }  # fmt: skip
    assert recovery.is_current(cell, voynov, eigengan)
    assert not recovery.is_current(cell, longer, eigengan)
    assert not recovery.is_current(cell | {"weights": "other"}, voynov, eigengan)
    assert not recovery.is_current(cell, sefa, eigengan)
    del cell["arguments"]["rounds"]
    assert recovery.is_current(cell, voynov, eigengan), "before there were rounds, there was one"
    out = tmp_path / "recovery.json"
    cells = [cell, cell | {"method": "sefa", "recovery": 0.5, "random": 0.6}]
    out.write_text(json.dumps({"metric": "recovery_200_v1", "cells": cells}), "utf-8")
    assert list(recovery.taken_up(out, "recovery_200_v1")) == [("toy", "voynov", 0), ("toy", "sefa", 0)]
    with pytest.raises(recovery.UserError, match="recovery_200_v1, not of recovery_2k_v1"):
        recovery.taken_up(out, "recovery_2k_v1")
    monkeypatch.setattr(sys, "argv", ["recovery", "--table", "--out", str(out)])
    recovery.main()
    told = capsys.readouterr().out
    assert "| `voynov` | 24 | 0: 0.900 | 0.900 | +0.400 | -80% | 1.0 | 0.0 | 2.0 |" in told
    assert "| `random` | 24 | 0: 0.550 | 0.550 |  |  |  |  |  |" in told


def test_the_docs_quote_the_measured_page_and_films() -> None:
    read = lambda name: json.loads((ROOT / "benchmarks" / "results" / name).read_text("utf-8"))  # noqa: E731
    page, films = read("explorer.json"), read("film.json")["films"]
    rate = f"{page['page_bytes'] / 1e6:.0f} MB and {page['frames_per_second']['median']:.0f} frames a second"
    assert rate in (ROOT / "docs" / "export.md").read_text("utf-8")
    assert page["page_bytes"] <= page["page_bytes_allowed"]
    text = (ROOT / "docs" / "edits.md").read_text("utf-8")
    for film in films:
        assert f"{film['peak_mb']} MB for {film['frames']} frames" in text
