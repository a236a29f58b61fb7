"""The reader of toon faces: what its card claims, on labelled faces; where it abstains; and what its files hold."""

from __future__ import annotations

import importlib
import json
import math
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eigenlens.generator import load_generator
from eigenlens.reader import describe, factor_of, open_reader, read
from eigenlens.readers.toonfaces import (
    ASSET,
    MIDDLE,
    ToonFaces,
    Window,
    load_ensemble,
    to_reader_size,
    truths_of,
)

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[1] / "tools" / "toonfaces"))
    NO_FACES = importlib.import_module("no_faces")  # no part of the package
LABELLED = 400
READABLE = ("background_L", "hair_b", "clothes_a", "skin_tone", "rotation", "scale", "shift_x", "shift_y")


@pytest.fixture(scope="module")
def labelled() -> tuple[Tensor, dict[str, np.ndarray]]:
    file = resources.files("eigenlens") / "assets" / "toonfaces.npz"
    with file.open("rb") as stream:
        data = np.load(stream)
        images = torch.from_numpy(data["images"][:LABELLED]).permute(0, 3, 1, 2).float() / 127.5 - 1
        names = [key for key in data.files if key.startswith("factor/")]
        return images, {key.removeprefix("factor/"): data[key][:LABELLED] for key in names}


@pytest.fixture(scope="module")
def scores(labelled: tuple[Tensor, dict[str, np.ndarray]]) -> Tensor:
    return ToonFaces()(labelled[0])


def column(name: str) -> int:
    return ToonFaces().attributes.index(name)


@pytest.mark.parametrize("name", READABLE)
def test_numbers_are_read(name: str, labelled: tuple[Tensor, dict[str, np.ndarray]], scores: Tensor) -> None:
    truth = torch.from_numpy(labelled[1][name])
    error = scores[:, column(name)] - truth
    assert error.square().mean() / truth.var() < 0.05  # R² above 0.95, the bar of the card


def right(name: str, scores: Tensor, factors: dict[str, np.ndarray]) -> float:
    """Return the share of faces whose part is read rightly, among those that have it."""
    columns = [column(each) for each in truths_of(name, load_ensemble().heads.classes[name])]
    guess = scores[:, columns].argmax(1) if len(columns) > 1 else scores[:, columns[0]] > 0.5
    truth = torch.from_numpy(factors[name])
    return float((guess == truth)[truth >= 0].float().mean())


PARTS = (
    "hair_style",
    "beard",
    "beard_style",
    "rear_hair",
    "rear_hair_style",
    "clothes_style",
    "eyes",
    "eyebrows",
    "mouth",
)


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_read(name: str, labelled: tuple[Tensor, dict[str, np.ndarray]], scores: Tensor) -> None:
    assert right(name, scores, labelled[1]) > 0.95


def test_small_parts_are_read_at_half_the_resolution(labelled: tuple[Tensor, dict[str, np.ndarray]]) -> None:
    small = ToonFaces()(F.avg_pool2d(labelled[0], 2))
    for name in ("eyes", "eyebrows", "mouth"):
        assert right(name, small, labelled[1]) > 0.9


def test_windows_lie_where_the_face_is() -> None:
    """In a picture whose colours are places, a window shows where it looks."""
    line = torch.arange(64) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    places = torch.stack([x, y, torch.zeros_like(x)])[None]
    window = Window(-6, -4, 6, 8, 2)
    pose = torch.tensor([[0.0, 1.0, 0.0, 0.0], [10.0, 0.9, 0.05, -0.03]])
    seen = window.view(places.expand(2, -1, -1, -1), pose)
    assert seen.shape == (2, 3, *window.shape) == (2, 3, 24, 24)
    for row, (degrees, scale, right_by, down_by) in enumerate(pose.tolist()):
        for i, j in ((0, 0), (5, 20), (23, 11)):
            ahead, below = -6 + (j + 0.5) / 2, -4 + (i + 0.5) / 2  # px right of and below the middle, upright
            turn = scale * complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
            there = complex(*MIDDLE) + 64 * complex(right_by, down_by) + complex(ahead, below) * turn
            middle = complex(*MIDDLE) + 64 * complex(right_by, down_by) + complex(0, 2) * turn  # of the window
            assert seen[row, :, i, j].tolist() == pytest.approx(
                [(there - middle).real, (there - middle).imag, 0], abs=1e-3
            )


def test_a_second_look_follows_a_face_that_is_moved(labelled: tuple[Tensor, dict[str, np.ndarray]]) -> None:
    """Shifted by whole pixels, a face shows the same parts."""
    before = ToonFaces()(labelled[0][:100])
    after = ToonFaces()(labelled[0][:100].roll((1, -1), (2, 3)))
    for name in ("eyes", "eyebrows", "mouth"):
        columns = [column(each) for each in truths_of(name, load_ensemble().heads.classes[name])]
        same = before[:, columns].argmax(1) == after[:, columns].argmax(1)
        assert same.float().mean() > 0.9, name


def test_half_the_resolution_reads_alike(labelled: tuple[Tensor, dict[str, np.ndarray]], scores: Tensor) -> None:
    small = ToonFaces()(F.avg_pool2d(labelled[0], 2))
    for name in READABLE:
        spread = scores[:, column(name)].std()
        assert (small - scores)[:, column(name)].square().mean().sqrt() < 0.25 * spread, name


def test_what_does_not_apply_is_abstained_from(labelled: tuple[Tensor, dict[str, np.ndarray]]) -> None:
    reading = read(ToonFaces(), labelled[0])
    bearded = torch.from_numpy(labelled[1]["beard"]) == 1
    styles = [i for i, each in enumerate(ToonFaces().attributes) if factor_of(each) == "beard_style"]
    assert reading.certain[bearded][:, styles].float().mean() > 0.9
    assert reading.certain[~bearded][:, styles].float().mean() < 0.05
    joint = reading.scores[:, styles].sum(1)  # the probabilities that there is a beard, and of which style
    assert torch.allclose(joint, reading.scores[:, column("beard")], atol=1e-4)


def test_it_abstains_from_what_is_no_face(labelled: tuple[Tensor, dict[str, np.ndarray]]) -> None:
    random = torch.Generator().manual_seed(0)
    for pictures in (
        torch.rand(16, 3, 64, 64, generator=random) * 2 - 1,
        torch.zeros(4, 3, 64, 64),
        F.interpolate(F.avg_pool2d(labelled[0][:16], 16), size=(64, 64), mode="bilinear"),
    ):
        assert read(ToonFaces(), pictures).certain.float().mean() < 0.1
    assert read(ToonFaces(), labelled[0]).certain.any(1).float().mean() > 0.97


@pytest.mark.parametrize("seed", range(6))
def test_it_abstains_from_what_shuffled_weights_draw(seed: int) -> None:
    """A negative control: the bundled generator with the entries of each weight in random order."""
    generator, random = load_generator("toonfaces"), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in generator.network.parameters():
            weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=random)].view_as(weight))
    assert not read(ToonFaces(), generator.render(generator.sample(32))).certain.any()


@pytest.mark.parametrize("kind", NO_FACES.KINDS)
def test_it_abstains_from_pictures_that_are_no_faces(kind: str, labelled: tuple[Tensor, dict[str, np.ndarray]]) -> None:
    random = torch.Generator().manual_seed(11)  # others than it was taught
    pictures = torch.cat([NO_FACES.KINDS[kind](some, random) for some in labelled[0][:48].split(16)])
    assert pictures.shape == (48, 3, 64, 64)
    assert pictures.isfinite().all()
    assert read(ToonFaces(), pictures).certain.any(1).float().mean() < 0.05


def test_the_judge_knows_mirrored_small_and_soft_faces(labelled: tuple[Tensor, dict[str, np.ndarray]]) -> None:
    """It knows faces by their form, not by the pixels of those that it was taught."""
    ensemble, faces = load_ensemble(), labelled[0]
    soft = F.interpolate(F.avg_pool2d(faces, 4), size=(64, 64), mode="bilinear")
    for name, some in {
        "mirrored": faces.flip(3),
        "small": F.avg_pool2d(faces, 2),
        "a quarter of the pixels": soft,
    }.items():
        logits = ensemble.judge(to_reader_size(some))[:, 0]
        assert (logits >= ensemble.calibration.judge).float().mean() > 0.98, name


def test_errors_are_calibrated(labelled: tuple[Tensor, dict[str, np.ndarray]]) -> None:
    reading = read(ToonFaces(), labelled[0])
    for name in READABLE:
        error = reading.scores[:, column(name)] - torch.from_numpy(labelled[1][name])
        assert 0.3 < (error / reading.error[:, column(name)]).square().mean() < 2, name


def test_the_protocol() -> None:
    reader = open_reader("toonfaces")
    kinds = {each.name: each for each in describe(reader)}
    assert kinds["rotation"].group == "geometry"
    assert kinds["rotation"].unit == "degrees, clockwise"
    assert kinds["hair_L"].group == "colour"
    assert kinds["hair_style=bun"].kind == "truth"
    assert kinds["beard"].group == "part"
    assert all(0 <= each.error < 20 for each in kinds.values())
    images = torch.rand(3, 1, 20, 20) * 2 - 1  # grey, and of any size
    assert reader(images).shape == (3, len(kinds))
    assert to_reader_size(torch.zeros(1, 3, 128, 128)).shape == (1, 3, 64, 64)


def test_the_files() -> None:
    assert sum(file.stat().st_size for file in ASSET.iterdir()) <= 4e6
    scores = json.loads((ASSET / "scores.json").read_text("utf-8"))
    held_out = scores["held_out"]
    pictures = scores["off_the_manifold"]  # made of faces that no network saw
    assert pictures["faces"]["abstains"] < 0.01
    assert pictures["roughened faces"]["by_the_judge"] < 0.02
    assert pictures["the bundled generator, its weights shuffled (the judge was taught none)"]["by_the_judge"] > 0.99
    errors = load_ensemble().calibration.error
    assert errors["rotation"] == pytest.approx(held_out["64"]["rotation"]["rmse"])
    card = (ASSET / "README.md").read_text("utf-8")
    for name, row in held_out["64"].items():
        figure = f"{row['r2']:.3f}" if "r2" in row else f"{row['accuracy']:.1%}"
        assert f"| {name} | {figure}" in card
