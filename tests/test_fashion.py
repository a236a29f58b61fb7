"""The second bundled generator: small, grey, honest about itself, and its named axes do what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eigenlens
from eigenlens.cli import main
from eigenlens.directions import Directions
from eigenlens.effect import rms_change
from eigenlens.generator import Generator

FOLDER = Path(eigenlens.__file__).parent / "assets" / "fashion"


@pytest.fixture(scope="module")
def fashion() -> Generator:
    return eigenlens.load_generator("fashion", device="cpu")


@pytest.fixture(scope="module")
def axes(fashion: Generator) -> Directions:
    return Directions.load(FOLDER / "axes.safetensors", generator=fashion)


def test_it_is_small_and_says_where_it_is_from(fashion: Generator) -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 3e6
    assert (fashion.resolution, fashion.channels) == (32, 1)
    card = (FOLDER / "README.md").read_text("utf-8")
    assert "Zalando" in card
    assert "MIT" in card
    log = [json.loads(line) for line in (FOLDER / "metrics.jsonl").read_text("utf-8").splitlines()]
    told = json.loads((FOLDER / "config.json").read_text("utf-8"))["training"]
    assert log[-1]["kimg"] == told["kimg"] == 240


def test_clothes_lie_on_black_and_differ(fashion: Generator) -> None:
    images = fashion.render(fashion.sample(64, seed=0))
    assert float(images[:, :, :4, [0, 1, 2, 29, 30, 31]].mean()) < -0.9  # the corners are ground
    assert float(images[:, :, 8:24, 8:24].mean()) > -0.5
    assert float(rms_change(images[:-1], images[1:]).mean()) > 0.4


def test_named_axes_do_what_they_say(fashion: Generator, axes: Directions) -> None:
    codes = fashion.sample(48, seed=2)

    def ends(words: str) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = (fashion.render(axes.move(codes, axes.index(words), by=by)) for by in (-2.0, 2.0))
        return low, high

    low, high = ends("bright")
    assert float((high - low).mean()) > 0.1
    low, high = ends("tall")  # shoes are wider than tall; trousers and dresses the other way round
    shape = [((x > 0).any(2).float().sum((1, 2)) - (x > 0).any(3).float().sum((1, 2))).mean() for x in (low, high)]
    assert float(shape[0]) > float(shape[1]) + 8
    low, high = ends("long sleeves")  # sleeves hang left and right of the middle
    sides = [x[:, :, 12:24, 3:9].mean() + x[:, :, 12:24, 23:29].mean() for x in (low, high)]
    assert float(sides[1]) > float(sides[0]) + 0.3


def test_its_axes_are_those_of_the_file(fashion: Generator, axes: Directions) -> None:
    fresh = eigenlens.METHODS["eigen"]().fit(fashion)
    assert fresh.names == axes.names
    torch.testing.assert_close(fresh.effect, axes.effect, rtol=0.01, atol=1e-4)
    assert int((axes.effect > 0.05 * axes.effect.max()).sum()) >= 13


def test_what_an_edit_changes_is_shown_beside_a_grey_image(tmp_path: Path) -> None:
    out = tmp_path / "edit.png"
    assert main(["edit", "fashion", "--move", "tall by 2", "--before", "--difference", "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert (picture.mode, picture.width) == ("RGB", 3 * 192 + 2 * 2)
        grey = np.asarray(picture)[-192:, : 2 * 192 + 2].astype(int)
    assert not np.ptp(grey, axis=2).any()  # the two images stay grey beside the map
