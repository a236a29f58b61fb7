"""Readers: the protocol, and what pixels alone tell of one image and of two."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eigenlens import UserError
from eigenlens.reader import READERS, Attribute, Reader, describe, open_reader, read
from eigenlens.readers.pixels import Pixels, change_map, displacement


def blobs(n: int = 3, size: int = 64) -> torch.Tensor:
    """Paint smooth random pictures [n, 3, size, size]."""
    coarse = torch.rand(n, 3, 7, 7, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True).clamp(-1, 1)


def test_any_function_is_a_reader() -> None:
    reader = open_reader(lambda images: images.mean((1, 2, 3)), ["brightness"])
    assert isinstance(reader, Reader)
    assert reader(torch.ones(2, 3, 8, 8)).tolist() == [[1.0], [1.0]]
    assert describe(reader) == (Attribute("brightness"),) or describe(reader)[0].name == "brightness"
    nameless = open_reader(lambda images: images.mean((2, 3)))
    assert nameless.attributes == ("score-0", "score-1", "score-2")


def test_a_function_has_a_name_for_each_score() -> None:
    with pytest.raises(UserError, match="a function gave 3 scores an image, and has 1 names: brightness"):
        open_reader(lambda images: images.mean((2, 3)), ["brightness"])(torch.zeros(2, 3, 8, 8))

    def measured(images: torch.Tensor) -> np.ndarray:
        return images.numpy().mean((2, 3))

    measured.attributes = ("red", "green", "blue")  # type: ignore[attr-defined]
    reader = open_reader(measured)
    assert reader.attributes == ("red", "green", "blue")
    assert reader(torch.ones(2, 3, 8, 8)).tolist() == [[1.0] * 3] * 2


def test_a_path_of_your_own_and_one_line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_reader("toy_factors:Squares").attributes == ("size", "turn", "hue", "tone")
    monkeypatch.setitem(READERS.table, "squares", "toy_factors:Squares")
    assert open_reader("squares")(torch.zeros(1, 3, 16, 16)).shape == (1, 4)


@pytest.mark.parametrize("wrong", ["toy_factors:Nothing", "no.such.module:Name", "..x:Name", ":Name", 3])
def test_what_is_no_reader_is_told(wrong: object) -> None:
    with pytest.raises(UserError, match="reader"):
        open_reader(wrong)  # type: ignore[arg-type]


def test_a_reader_without_abstention_stands_by_finite_scores() -> None:
    reader = open_reader(lambda images: torch.log(images.mean((1, 2, 3))), ["log"])
    images = torch.stack([torch.ones(3, 4, 4), -torch.ones(3, 4, 4)])
    reading = read(reader, images)
    assert reading.certain.tolist() == [[True], [False]]
    assert torch.isnan(reading.error).all()


def test_pixels_by_hand() -> None:
    half = torch.full((1, 3, 8, 8), -1.0)
    half[..., 4:] = 1.0  # left black, right white
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    names = Pixels.attributes
    first, second = (dict(zip(names, Pixels()(each)[0].tolist(), strict=True)) for each in (half, red))
    assert first["brightness"] == pytest.approx(0.5)
    assert first["symmetry"] == pytest.approx(0)
    assert first["sharpness"] == pytest.approx(1 / 7)  # one edge among seven columns
    assert second["saturation"] == second["warmth"] == pytest.approx(1)
    assert second["symmetry"] == pytest.approx(1)
    assert {each.error for each in describe(Pixels())} == {0.0}


def test_displacement_finds_shift_zoom_and_rotation() -> None:
    size, wide = 64, blobs(2, 128)
    angle, zoom, right, down = 7.0, 1.06, 0.04, -0.03  # of the picture
    before = wide[:, :, 32:96, 32:96]
    cos, sin = np.cos(np.radians(angle)) / zoom, np.sin(np.radians(angle)) / zoom
    places = (torch.arange(size) + 0.5) * 2 / size - 1
    y, x = torch.meshgrid(places, places, indexing="ij")
    x, y = x - 2 * right, y - 2 * down
    source = torch.stack([cos * x + sin * y, -sin * x + cos * y], -1) / 2  # the wide picture spans twice as much
    after = torch.nn.functional.grid_sample(wide, source.float().expand(2, -1, -1, -1), align_corners=False)
    found = displacement(before, after)
    assert found.rotation.tolist() == pytest.approx([angle] * 2, abs=0.2)
    assert found.zoom.tolist() == pytest.approx([zoom] * 2, abs=0.005)
    assert found.shift_x.tolist() == pytest.approx([right] * 2, abs=0.002)
    assert found.shift_y.tolist() == pytest.approx([down] * 2, abs=0.002)
    assert (found.explained > 0.95).all()


def test_a_change_of_colour_is_no_displacement() -> None:
    images = blobs()
    other = blobs(6)[3:]
    assert (displacement(images, images).explained == 0).all()
    assert (displacement(images, other).explained < 0.7).all()
    with pytest.raises(UserError, match="pairs of one shape"):
        displacement(images, images[:, :, :32])


def test_change_map_says_where() -> None:
    images = blobs()
    changed = images.clone()
    changed[:, :, 8:16, 40:48] += 0.5
    where = change_map(images, changed.clamp(-1, 1))
    assert where[:, 1, 5].tolist() == pytest.approx([1.0] * 3)
    assert where.sum((1, 2)).tolist() == pytest.approx([1.0] * 3)
    assert change_map(images, images).sum() == 0
