"""Photos: whatever the file holds, its square is right side up; FFHQ's framing."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eigenlens.errors import UserError
from eigenlens.photo import (
    can_find_landmarks,
    cut,
    ffhq_square,
    find_landmarks,
    open_photo,
    parse_landmarks,
)

FACE = [[40.0, 50.0], [60.0, 50.0], [50.0, 62.0], [43.0, 72.0], [57.0, 72.0]]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Give a landscape of 120 x 100 whose every place has its own colour."""
    y, x = np.mgrid[0:100, 0:120]
    return Image.fromarray(np.stack([2 * x, 2 * y, (x + y) % 256], 2).astype(np.uint8))


def test_square_of_the_centre(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    photo = open_photo(tmp_path / "a.png", 100)
    assert photo.corners == ((10, 0), (10, 100), (110, 100), (110, 0))
    assert np.array_equal(np.asarray(photo.square), np.asarray(picture)[:, 10:110])
    assert photo.notes == ()
    assert photo.pixels().shape == (3, 100, 100)
    assert photo.pixels(1).shape == (1, 100, 100)


def variants(picture: Image.Image) -> dict[str, tuple[Image.Image, str, dict]]:
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera lay on its side
    sixteen = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    return {
        "exif": (picture.transpose(Image.Transpose.ROTATE_90), "jpg", {"exif": turned, "quality": 98}),
        "alpha": (picture.convert("RGBA"), "png", {}),
        "palette": (picture.quantize(256), "png", {}),
        "grey": (picture.convert("L"), "png", {}),
        "16 bit": (sixteen, "png", {}),
        "cmyk": (picture.convert("CMYK"), "jpg", {"quality": 98}),
        "animated": (picture, "gif", {"save_all": True, "append_images": [Image.new("RGB", picture.size)]}),
        "webp": (picture, "webp", {"lossless": True}),
    }


@pytest.mark.parametrize("kind", ["exif", "alpha", "palette", "grey", "16 bit", "cmyk", "animated", "webp"])
def test_any_file_shows_the_same_square(picture: Image.Image, tmp_path: Path, kind: str) -> None:
    image, suffix, options = variants(picture)[kind]
    image.save(tmp_path / f"a.{suffix}", **options)
    before = (tmp_path / f"a.{suffix}").read_bytes()
    shown = np.asarray(open_photo(tmp_path / f"a.{suffix}", 50).square).astype(float)
    picture.save(tmp_path / "b.png")
    wanted = open_photo(tmp_path / "b.png", 50).square
    wanted = wanted.convert("L").convert("RGB") if kind in ("grey", "16 bit") else wanted
    assert np.abs(shown - np.asarray(wanted)).mean() < 6
    assert (tmp_path / f"a.{suffix}").read_bytes() == before


def test_small_photos_are_told_and_tiny_ones_refused(tmp_path: Path) -> None:
    Image.new("RGB", (20, 30)).save(tmp_path / "small.png")
    assert open_photo(tmp_path / "small.png", 64).notes == ("only 20 pixels across for 64; fine detail is guessed",)
    Image.new("RGB", (2, 30)).save(tmp_path / "tiny.png")
    with pytest.raises(UserError, match="2 x 30 pixels; a photo needs 8"):
        open_photo(tmp_path / "tiny.png", 64)


def test_unreadable_files_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_text("no picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:300])
    Image.new("L", (64, 64)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name, message in (("a", "not an image"), ("none", "does not exist"), ("huge", "more than 1,000 pixels")):
        with pytest.raises(UserError, match=message) as raised:
            open_photo(tmp_path / f"{name}.png", 64)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError):
        open_photo(tmp_path / "cut.jpg", 64)


def test_ffhq_square_of_an_upright_face() -> None:
    # eyes 20 apart and 22 above the mouth: across (20 + 22, 0), scaled to the longer of 2 x 20 and 1.8 x 22
    corners = np.array(ffhq_square(np.array(FACE)))
    assert np.allclose(corners, [[10, 12.2], [10, 92.2], [90, 92.2], [90, 12.2]])


def test_ffhq_square_turns_and_grows_with_the_face() -> None:
    points = np.array(FACE)
    angle = math.radians(30)
    turn = 1.7 * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turned = np.array(ffhq_square(points @ turn.T + [5, 9]))
    assert np.allclose(turned, np.array(ffhq_square(points)) @ turn.T + [5, 9])


def test_cut_of_an_upright_square_is_a_crop(picture: Image.Image) -> None:
    corners = ((30, 20), (30, 84), (94, 84), (94, 20))
    assert np.abs(np.asarray(cut(picture, corners, 64)).astype(int) - np.asarray(picture)[20:84, 30:94]).max() <= 3


def test_cut_follows_a_turned_picture(picture: Image.Image) -> None:
    corners = ((30, 20), (30, 84), (94, 84), (94, 20))
    turned = picture.transpose(Image.Transpose.ROTATE_270)  # x -> 100 - y, y -> x
    moved = tuple((100 - y, x) for x, y in corners)
    apart = np.abs(np.asarray(cut(turned, moved, 64)).astype(int) - np.asarray(picture)[20:84, 30:94])
    assert np.median(apart) <= 2


def test_aligned_photo_beyond_its_border(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    points = [[x - 20, y - 25] for x, y in FACE]  # the square begins 10 pixels left of and 12.8 above the picture
    photo = open_photo(tmp_path / "a.png", 80, landmarks=points)
    shown = np.asarray(photo.square).astype(int)
    wanted = np.asarray(picture)[2:60, 2:65].astype(int)
    assert np.abs(shown[15:73, 12:75] - wanted).mean() < 4
    assert shown.min() >= 0
    assert shown[0].std() < 80  # mirrored and blurred, not black
    assert photo.outline(96).size == (96, 96)


def test_alignment_shrinks_large_photos_without_aliasing(tmp_path: Path) -> None:
    fine = np.indices((800, 800)).sum(0) % 2 * 255
    Image.fromarray(fine.astype(np.uint8)).save(tmp_path / "checks.png")
    photo = open_photo(tmp_path / "checks.png", 16, landmarks=(np.array(FACE) * 6 + 60).tolist())
    assert np.asarray(photo.square).astype(float).std() < 8  # all grey


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (FACE[:4], "have shape"),
        ([["a", "b"]] * 5, "are no points"),
        ([[1e3, 50.0], *FACE[1:]], "lies outside its 120 x 100 pixels"),
        ([FACE[1], FACE[0], *FACE[2:]], "make no face"),
    ],
)
def test_landmarks_that_do_not_fit(picture: Image.Image, tmp_path: Path, points: list, message: str) -> None:
    picture.save(tmp_path / "a.png")
    with pytest.raises(UserError, match=message):
        open_photo(tmp_path / "a.png", 64, landmarks=points)


def test_landmarks_by_hand(tmp_path: Path) -> None:
    assert parse_landmarks("1,2 3,4 5,6 7,8 9,10.5") == {"": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10.5]]}
    (tmp_path / "marks.json").write_text('{"a.png": [[1, 2]]}', encoding="utf-8-sig")
    assert parse_landmarks(str(tmp_path / "marks.json")) == {"a.png": [[1, 2]]}
    for text in ("1,2 3,4", "a,b c,d e,f g,h i,j", "1 2 3 4 5", str(tmp_path / "none.json")):
        with pytest.raises(UserError, match="landmarks"):
            parse_landmarks(text)


def test_dlib_finds_the_landmarks_of_aligned_celebrities(reference: Path, tmp_path: Path) -> None:
    if not can_find_landmarks() or not (reference / "data" / "celeba10k.zip").is_file():
        pytest.skip("the extra 'faces' or celeba10k.zip is not here")
    template = np.array([[34.5, 55.5], [54.0, 55.5], [44.0, 68.0], [36.5, 76.0], [52.5, 76.0]])  # of half CelebA's size
    with zipfile.ZipFile(reference / "data" / "celeba10k.zip") as photos:
        for name in ("000010.jpg", "000012.jpg"):
            (tmp_path / name).write_bytes(photos.read(name))
            found = np.array(find_landmarks(tmp_path / name))
            assert np.abs(found - template)[[0, 1, 3, 4]].max() < 4  # the nose is its base here, its tip there
    Image.new("RGB", (200, 200), "blue").save(tmp_path / "none.png")
    with pytest.raises(UserError, match="no face was found in"):
        find_landmarks(tmp_path / "none.png")
