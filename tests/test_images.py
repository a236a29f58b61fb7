"""Bytes, grids, pictures and films: exact where they can be, whole or absent on disk, and deaf to hostile files."""

from __future__ import annotations

import base64
import builtins
import io
import json
import struct
import tracemalloc
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eigenlens import images
from eigenlens.errors import UserError

WHITE, RED = (255, 255, 255), (255, 0, 0)
SUFFIXES = [".gif", ".webp", ".mp4"]


def test_every_byte_survives_the_round_trip() -> None:
    array = np.arange(256 * 3, dtype=np.int64).reshape(16, 16, 3).astype(np.uint8)
    floats = images.from_uint8(array)
    assert floats.shape == (3, 16, 16)
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(images.to_uint8(floats), array)


def test_from_uint8_takes_read_only_and_reversed_arrays_and_copies() -> None:
    array = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    reversed_array = array[:, ::-1]
    reversed_array.flags.writeable = False
    floats = images.from_uint8(reversed_array)
    expected = reversed_array.copy()
    array[:] = 0
    np.testing.assert_array_equal(images.to_uint8(floats), expected)


@pytest.mark.parametrize(("value", "level"), [(-5, 0), (-1, 0), (0, 128), (1, 255), (1.01, 255), (float("inf"), 255)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_to_uint8_clamps_and_rounds(value: float, level: int, dtype: torch.dtype) -> None:
    assert (images.to_uint8(torch.full((1, 2, 3), value, dtype=dtype)) == level).all()


def test_to_uint8_rounds_to_the_nearest_level_not_down() -> None:
    just_below, just_above = 2 * 99.9 / 255 - 1, 2 * 100.1 / 255 - 1
    assert images.to_uint8(torch.tensor([just_below, just_above]).reshape(1, 1, 2)).ravel().tolist() == [100, 100]


def test_to_uint8_keeps_leading_axes_and_puts_channels_last() -> None:
    batch = torch.zeros(2, 5, 3, 4, 6)
    batch[1, 2, 0, 3, 5] = 1
    array = images.to_uint8(batch)
    assert array.shape == (2, 5, 4, 6, 3)
    assert array[1, 2, 3, 5].tolist() == [255, 128, 128]


def test_to_uint8_takes_images_that_carry_a_gradient() -> None:
    assert images.to_uint8(torch.zeros(1, 1, 1, requires_grad=True)).item() == 128


def test_nan_is_refused_by_name_and_number() -> None:
    broken = torch.zeros(1, 3, 2, 2)
    broken[0, 1, 0, :] = float("nan")
    with pytest.raises(UserError, match="2 of 12 image values are NaN"):
        images.to_uint8(broken)


@pytest.mark.parametrize(
    ("function", "value", "message"),
    [
        (images.to_uint8, torch.zeros(3, 3), "channels, height, width"),
        (images.to_uint8, torch.zeros(3, 3, 3, dtype=torch.uint8), "torch.uint8"),
        (images.from_uint8, np.zeros((3, 3), np.uint8), "height, width, channels"),
        (images.from_uint8, np.zeros((3, 3, 3)), "float64"),
        (images.to_pil, torch.zeros(1, 3, 2, 2), r"\[1, 3, 2, 2\]"),
        (images.to_pil, torch.zeros(2, 4, 4), r"\[2, 4, 4\]"),
    ],
)
def test_wrong_shapes_and_types_are_refused(function: Callable[[Any], Any], value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        function(value)


def test_to_pil_is_grey_or_rgb() -> None:
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 2, 5)
    assert images.to_pil(red).getpixel((4, 1)) == RED
    assert (images.to_pil(red).size, images.to_pil(red[:1]).mode) == ((5, 2), "L")


def halves(mode: str = "RGB") -> Image.Image:
    """A picture of 8 x 4 pixels: its left half is red, or black, its right half white."""
    picture = Image.new("RGB", (8, 4), "white")
    picture.paste("red", (0, 0, 4, 4))
    return picture.convert(mode)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    halves().save(tmp_path / "turned.png", exif=exif)
    upright = images.open_image(tmp_path / "turned.png")
    assert upright.size == (4, 8)
    assert (upright.getpixel((1, 0)), upright.getpixel((1, 7))) == (RED, WHITE)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 51), (204, 204, 204)),
        ("LA", (7, 255), (7, 7, 7)),
        ("L", 7, (7, 7, 7)),
        ("1", 1, WHITE),
        ("1", 0, (0, 0, 0)),
        ("I;16", 0, (0, 0, 0)),
        ("I;16", 128 * 257, (128, 128, 128)),
        ("I;16", 250 * 257, (250, 250, 250)),
        ("I;16", 65535, WHITE),
    ],
)
def test_every_mode_of_png_becomes_rgb_over_white(tmp_path: Path, mode: str, colour: Any, expected: Any) -> None:
    Image.new(mode, (3, 2), colour).save(tmp_path / "x.png")
    picture = images.open_image(tmp_path / "x.png")
    assert (picture.mode, picture.size, picture.getpixel((1, 1))) == ("RGB", (3, 2), expected)


def test_a_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "x.png", transparency=1)
    opened = images.open_image(tmp_path / "x.png")
    assert (opened.getpixel((0, 0)), opened.getpixel((1, 0))) == (RED, WHITE)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.tif")
    assert images.open_image(tmp_path / "x.tif").getpixel((0, 0)) == RED


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(
        tmp_path / "x.gif", save_all=True, append_images=[Image.new("RGB", (4, 4), "blue")]
    )
    assert images.open_image(tmp_path / "x.gif").getpixel((0, 0)) == RED


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    Image.new("F", (2, 2), 0.5).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif .*no known range"):
        images.open_image(tmp_path / "x.tif")


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"0")) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def encoded(picture: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.png", b"not a picture at all", "not an image in a known format"),
        ("empty.png", b"", "not an image in a known format"),
        ("cut.png", encoded(NOISE, "PNG")[:3000], "cannot be read"),
        ("cut.jpg", encoded(NOISE, "JPEG")[:1500], "cannot be read"),
        ("large.png", png_that_claims(10_000, 10_000), "claims more than"),
        ("vast.png", png_that_claims(2_000_000_000, 2_000_000_000), "claims more than"),
        ("program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
    ],
)
def test_bad_files_are_one_line_that_names_them(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    readers: list[Callable[[Path], Any]] = [images.open_image]
    if name != "cut.jpg":  # a JPEG's recipe is read without its pixels
        readers.append(images.read_recipe)
    for read in readers:
        with pytest.raises(UserError, match=message) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.png does not exist"):
        images.open_image(tmp_path / "absent.png")
    with pytest.raises(UserError, match="is a folder; name the pictures in it"):
        images.open_image(tmp_path)


def test_centre_crop_takes_the_middle_of_either_orientation() -> None:
    wide = Image.new("RGB", (30, 10), "white")
    wide.paste("red", (10, 0, 20, 10))
    for picture in (wide, wide.transpose(Image.Transpose.ROTATE_90)):
        square = images.centre_crop_resize(picture, 5)
        assert square.shape == (5, 5, 3)
        assert square.dtype == np.uint8
        assert (square == RED).all()


def test_resizing_does_not_alias() -> None:
    stripes = Image.fromarray((np.arange(64) % 2 * 255).astype(np.uint8)[None].repeat(64, 0))
    inner = images.centre_crop_resize(stripes, 16, channels=1)[2:-2, 2:-2]
    assert inner.shape == (12, 12, 1)
    assert np.abs(inner.astype(int) - 128).max() <= 3  # nearest or bilinear sampling would keep 0 or 255


def test_centre_crop_lays_transparency_over_white() -> None:
    assert (images.centre_crop_resize(Image.new("RGBA", (9, 9), (0, 0, 0, 0)), 3, channels=1) == 255).all()


@pytest.mark.parametrize(("resolution", "channels", "message"), [(0, 3, "resolution of 0"), (4, 2, "2 channels")])
def test_centre_crop_refuses(resolution: int, channels: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        images.centre_crop_resize(halves(), resolution, channels)


def noise(*shape: int) -> torch.Tensor:
    levels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)  # [n, height, width, channels]
    return images.from_uint8(levels)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_tile_stands_at_its_place_enlarged_by_a_whole_factor(channels: int) -> None:
    batch = noise(5, 6, 8, channels)
    picture = np.asarray(images.grid(batch, columns=3, min_tile=17, gap=4, background="#010203"))
    height, width = 6 * 3, 8 * 3  # the shorter side of 6 needs a factor of 3 to reach 17
    assert picture.shape == (2 * height + 4, 3 * width + 8, 3)
    expected = np.broadcast_to(np.array([1, 2, 3], np.uint8), picture.shape).copy()
    for index, tile in enumerate(images.to_uint8(batch)):
        y, x = index // 3 * (height + 4), index % 3 * (width + 4)
        expected[y : y + height, x : x + width] = tile.repeat(3, 0).repeat(3, 1)
    np.testing.assert_array_equal(picture, expected)


def test_labels_move_the_tiles_and_leave_them_whole() -> None:
    batch = noise(4, 64, 64, 3)
    plain = np.asarray(images.grid(batch, columns=2))
    labelled = np.asarray(images.grid(batch, row_labels=["a", "b"], column_labels=["c", "d"], title="e"))
    height, width = plain.shape[:2]
    np.testing.assert_array_equal(labelled[-height:, -width:], plain)


def border_has_ink(region: np.ndarray) -> bool:
    edges = (region[0], region[-1], region[:, 0], region[:, -1])
    return any((edge != 255).any() for edge in edges)


ROWS = ["L2D1  effect 0.19", "|ÅÉgjpqy| (a long one, with more than the others)", "L1D3"]
COLUMNS = ["-4σ", "−2σ", "0", "+2σ", "+4σ"]


@pytest.mark.parametrize("resolution", [8, 28, 64, 300, 1024])
def test_no_label_is_cut_off(resolution: int) -> None:
    batch = torch.ones(15, 1, 1, 1).expand(15, 1, resolution, resolution)  # white, so that all ink is lettering
    picture = np.asarray(images.grid(batch, row_labels=ROWS, column_labels=COLUMNS, title="A title", min_tile=8))
    assert not border_has_ink(picture)
    plain = np.asarray(images.grid(batch, columns=5, min_tile=8))
    tile = resolution * max(1, -(-19 // resolution))
    left, top = picture.shape[1] - (5 * (tile + 2) - 2), picture.shape[0] - (3 * (tile + 2) - 2)
    assert (picture[top:, left:] == 255).all(), "lettering runs into the tiles"
    assert plain.shape[1] <= picture.shape[1]
    for row in range(3):
        assert (picture[top + row * (tile + 2) :][:tile, :left] < 128).any(), f"row label {row} is missing"
    for column in range(5):
        above = picture[top // 2 : top, left + column * (tile + 2) :][:, :tile]
        assert (above < 128).any(), f"column label {column} is missing"


def test_accents_behind_their_letters_are_left_out_like_others() -> None:
    image = torch.zeros(1, 3, 8, 8)
    titles = [unicodedata.normalize(form, "été à Zürich") for form in ("NFC", "NFD")]
    assert titles[0] != titles[1]
    assert images.grid(image, title=titles[0]).tobytes() == images.grid(image, title=titles[1]).tobytes()


def test_the_margin_is_as_wide_as_the_longest_row_label() -> None:
    batch = torch.zeros(2, 3, 64, 64)
    short = images.grid(batch, row_labels=["a", "b"]).width
    long = images.grid(batch, row_labels=["a", "b" * 50]).width
    assert long - short > 49 * 5


def test_neighbouring_column_labels_never_touch() -> None:
    batch = torch.ones(3, 3, 64, 64)
    picture = np.asarray(images.grid(batch, column_labels=["a label wider than its tile", "another such one", "c"]))
    labels = picture[:-64]
    assert not border_has_ink(labels)
    for gap in (64, 130):
        assert (labels[:, gap : gap + 2] == 255).all()


def test_a_long_title_is_wrapped_not_cut() -> None:
    batch = torch.ones(2, 3, 64, 64)
    one = images.grid(batch, title="short")
    many = images.grid(batch, title="short words that need more than one line over two small tiles")
    assert (many.width, one.width) == (130, 130)
    assert many.height > one.height + 20
    assert not border_has_ink(np.asarray(many))


@pytest.mark.parametrize("word", ["w" * 60, "hair_style=" * 8, "ffhq-mobile:4-7"])
def test_a_word_too_long_for_a_line_is_broken_not_cut(word: str) -> None:
    batch = torch.ones(2, 3, 64, 64)
    picture = images.grid(batch, title="a " + word)
    assert picture.width == 130
    assert not border_has_ink(np.asarray(picture))
    pieces = images._broken(word, 17, 130)
    assert "".join(pieces) == word
    assert all(images._text(piece, 17).width <= 130 for piece in pieces)
    assert all(piece.endswith(("_", "=", "-", ":")) for piece in pieces[:-1]) or word.isalnum()


@pytest.mark.parametrize("character", ["σ", "−", "é", "α", "×", "笑"])
def test_a_character_beyond_the_bundled_font_is_drawn(character: str) -> None:
    def lettering(text: str) -> np.ndarray:
        picture = images.grid(torch.ones(1, 1, 64, 64), row_labels=[text])
        return np.asarray(picture)[:, : picture.width - 64]

    drawn = lettering(character)
    assert drawn.min() < 128
    assert np.array_equal(drawn, lettering("\u0378")) == (character == "笑")  # Chinese stays an empty box
    if character == "σ":
        ring = lettering("o")
        assert (drawn[:, : ring.shape[1]] <= ring).all(), "σ holds the whole of an o"
        assert (drawn[:, : ring.shape[1]] < ring).any(), "and a bar"


def test_ink_is_legible_on_any_background() -> None:
    for background, extreme in (("black", 255), ("white", 0), ("yellow", 0), ("navy", 255)):
        picture = np.asarray(images.grid(torch.zeros(1, 3, 64, 64), title="HHH", background=background))
        letters = picture[: picture.shape[0] - 64]
        assert (letters == extreme).all(axis=-1).any(), background


@pytest.mark.parametrize(
    ("n", "settings", "message"),
    [
        (0, {}, r"\[0, 3, 8, 8\]"),
        (4, {"columns": 0}, "0 columns"),
        (4, {"columns": 2, "row_labels": ["a"]}, "1 row labels for 2 rows"),
        (4, {"columns": 2, "column_labels": ["a", "b", "c"]}, "3 column labels for 2 columns"),
        (4, {"columns": 2, "row_labels": "ab"}, "a single text"),
        (4, {"background": "octarine"}, "unknown colour 'octarine'"),
        (4, {"gap": -1}, "gap of -1"),
    ],
)
def test_grid_refuses(n: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        images.grid(torch.zeros(n, 3, 8, 8), **settings)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (3, 2)),
        ({"row_labels": ["a", "b", "c"]}, (2, 3)),
        ({"column_labels": ["a"]}, (1, 6)),
        ({"columns": 6}, (6, 1)),
    ],
)
def test_columns_follow_the_labels(settings: dict[str, Any], size: tuple[int, int]) -> None:
    picture = images.grid(torch.zeros(6, 3, 64, 64), gap=0, **settings)
    assert (picture.width // 64, picture.height // 64) >= size
    tiles = (np.asarray(picture) == 128).all(axis=-1)
    assert (tiles.any(axis=0).sum() // 64, tiles.any(axis=1).sum() // 64) == size


RECIPE = {"version": 1, "name": "Lächeln 笑 σ", "by": -2.5, "layers": None, "path": "odd\udcff", "moves": [{"a": 1}]}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_a_recipe_survives_in_every_picture_format(tmp_path: Path, suffix: str) -> None:
    path = images.save(halves(), tmp_path / "new" / f"x{suffix}", recipe=RECIPE)
    assert images.read_recipe(path) == RECIPE
    assert images.open_image(path).size == (8, 4)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_no_recipe_reads_as_none(tmp_path: Path, suffix: str) -> None:
    assert images.read_recipe(images.save(halves(), tmp_path / f"x{suffix}")) is None


def test_the_recipe_lies_in_a_png_text_chunk_of_our_name(tmp_path: Path) -> None:
    with Image.open(images.save(NOISE, tmp_path / "x.png", recipe={"a": 1})) as picture:
        assert json.loads(picture.info["eigenlens"]) == {"a": 1}
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(NOISE))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "is a list"),
        ('{"by": NaN}', "NaN is not JSON"),
        ("[" * 200_000, "not JSON"),
        ('{"a": ' + "1" * 10_000 + "}", "not JSON"),
        ('{"a": "' + "b" * (1 << 20) + '"}', "limit is|cannot be read"),
    ],
)
def test_hostile_recipes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    chunks = PngInfo()
    chunks.add_text("eigenlens", text)
    halves().save(tmp_path / "x.png", pnginfo=chunks)
    with pytest.raises(UserError, match=message) as caught:
        images.read_recipe(tmp_path / "x.png")
    assert "x.png" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_compressed_bomb_in_a_chunk_is_refused(tmp_path: Path) -> None:
    chunks = PngInfo()
    chunks.add_text("eigenlens", "a" * 50_000_000, zip=True)
    halves().save(tmp_path / "x.png", pnginfo=chunks)
    assert (tmp_path / "x.png").stat().st_size < 100_000
    with pytest.raises(UserError, match=r"x\.png"):
        images.read_recipe(tmp_path / "x.png")


@pytest.mark.parametrize("recipe", [{"by": float("nan")}, {"what": object()}])
def test_a_recipe_that_is_not_json_is_not_written(tmp_path: Path, recipe: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="not JSON"):
        images.save(halves(), tmp_path / "x.png", recipe=recipe)
    assert list(tmp_path.iterdir()) == []


def test_save_refuses_to_overwrite_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        images.save(halves(), path)
    assert path.read_text() == "precious"
    images.save(halves(), path, force=True)
    assert images.open_image(path).size == (8, 4)


def test_a_failed_save_leaves_nothing_and_spares_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_text("precious")
    with pytest.raises(OSError, match="mode F"):
        images.save(Image.new("F", (4, 4)), path, force=True)  # PNG has no such mode
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    assert path.read_text() == "precious"


def test_save_names_the_allowed_suffixes_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'\.bmp'; pictures are \.png, \.jpg, \.jpeg, \.webp"):
        images.save(halves(), tmp_path / "x.bmp")
    with pytest.raises(UserError, match="WEBP ends at 16383"):
        images.save(Image.new("L", (16384, 1)), tmp_path / "x.webp")
    with pytest.raises(UserError, match="does not fit into a JPEG"):
        images.save(halves(), tmp_path / "x.jpg", recipe={"a": "b" * 70_000})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("format", "kind"), [("png", "png"), ("jpg", "jpeg"), ("webp", "webp")])
def test_data_url_holds_the_picture(format: str, kind: str) -> None:
    smooth = NOISE.resize((4, 4)).resize((64, 64), Image.Resampling.BICUBIC)
    head, _, body = images.data_url(smooth, format).partition(",")
    assert head == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(body, validate=True))) as picture:
        assert picture.format == kind.upper()
        error = np.abs(np.asarray(picture.convert("RGB")).astype(int) - np.asarray(smooth))
        assert error.mean() < (1e-9 if format == "png" else 3)


def test_data_url_refuses_other_formats() -> None:
    with pytest.raises(UserError, match="unknown format 'tiff'; known: png, jpg, jpeg, webp"):
        images.data_url(halves(), "tiff")


def film(n: int, side: int = 16) -> Iterator[np.ndarray]:
    """A gradient of many colours that stands still, before which a white square moves."""
    y, x = np.mgrid[:side, :side] / side
    still = np.stack([200 * x + 30, 150 * y + 60, 120 * (1 - x * y) + 80], axis=-1).round().astype(np.uint8)
    for index in range(n):
        frame = still.copy()
        frame[2:5, index % (side - 3) : index % (side - 3) + 3] = 255
        yield frame


def decoded(path: Path) -> tuple[list[np.ndarray], list[int]]:
    """All frames `[height, width, 3]` as a viewer shows them, and their durations in milliseconds."""
    frames, durations = [], []
    with Image.open(path) as picture:
        for index in range(picture.n_frames):
            picture.seek(index)
            frames.append(np.asarray(picture.convert("RGB")))
            durations.append(picture.info["duration"])
    return frames, durations


def mp4_frames(path: Path) -> list[np.ndarray]:
    av = pytest.importorskip("av", reason="needs the extra: pip install 'eigenlens[video]'")
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def skip_without_video(suffix: str) -> None:
    if suffix == ".mp4":
        pytest.importorskip("av", reason="needs the extra: pip install 'eigenlens[video]'")


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_film_has_its_frames_times_size_and_loop(tmp_path: Path, suffix: str) -> None:
    path = images.save_animation(film(7), tmp_path / f"x{suffix}", fps=30, min_size=40)
    frames, durations = decoded(path)
    assert [frame.shape for frame in frames] == [(48, 48, 3)] * 7
    assert abs(sum(durations) - 7 * 1000 / 30) <= 5
    assert max(durations) - min(durations) <= (10 if suffix == ".gif" else 1)
    with Image.open(path) as picture:
        assert picture.info["loop"] == 0
    for frame, original in zip(frames, film(7), strict=True):
        assert np.abs(frame.astype(int) - original.repeat(3, 0).repeat(3, 1)).mean() < 8


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_equal_frames_keep_their_time(tmp_path: Path, suffix: str) -> None:
    a, b = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)
    path = images.save_animation([a, a, a, b, a, a], tmp_path / f"x{suffix}", fps=10, min_size=1)
    shown = [
        round(float(frame.mean()) / 200) for frame, time in zip(*decoded(path), strict=True) for _ in range(time // 100)
    ]
    assert shown == [0, 0, 0, 1, 0, 0]


def test_pingpong_shows_no_end_twice(tmp_path: Path) -> None:
    steps = [np.full((8, 8), 50 * index, np.uint8) for index in range(4)]
    frames, _ = decoded(images.save_animation(iter(steps), tmp_path / "x.gif", pingpong=True, min_size=1))
    assert [int(frame.max()) // 50 for frame in frames] == [0, 1, 2, 3, 2, 1]


def test_a_gif_of_few_colours_is_exact(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    steps = [np.roll(ramp, 16 * index) for index in range(3)]
    frames, _ = decoded(images.save_animation(steps, tmp_path / "x.gif", min_size=1))
    for frame, step in zip(frames, steps, strict=True):
        np.testing.assert_array_equal(frame, step[..., None].repeat(3, -1))


def test_a_gif_does_not_shimmer_where_nothing_moves(tmp_path: Path) -> None:
    frames, _ = decoded(images.save_animation(film(10, side=64), tmp_path / "x.gif", min_size=1))
    still = np.stack([frame[6:] for frame in frames])  # below the square's path
    assert len(np.unique(next(film(1, side=64)).reshape(-1, 3), axis=0)) > 256, "the film must need a palette"
    assert (still == still[0]).all()


def test_the_palette_of_a_gif_keeps_the_mean_colour(tmp_path: Path) -> None:
    y, x = np.mgrid[:128, :128] / 128
    smooth = np.stack([255 * x, 255 * y, 127 * (x + 1 - y)], axis=-1).round().astype(np.uint8)
    frames, _ = decoded(images.save_animation([smooth], tmp_path / "x.gif", min_size=1))
    difference = frames[0].astype(float) - smooth
    blocks = difference.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
    assert np.abs(blocks[1:-1, 1:-1]).mean() < 0.8
    assert np.abs(difference).mean() < 5


@pytest.mark.parametrize("level", [102, 110, 120, 130, 138])
def test_between_two_colours_of_the_palette_the_dither_mixes_them(level: int) -> None:
    palette = np.array([[100] * 3, [140] * 3], np.uint8)
    flat = np.full((24, 20, 3), level, np.uint8)
    mixed = images._indexed(flat, palette, np.array([40.0, 40.0])).convert("RGB")
    assert np.asarray(mixed)[:16, :16].mean() == pytest.approx(level, abs=2)


def test_one_frame_is_a_film_too(tmp_path: Path) -> None:
    for suffix in (".gif", ".webp"):
        path = images.save_animation([torch.zeros(1, 8, 8)], tmp_path / f"x{suffix}", min_size=1)
        assert images.open_image(path).getpixel((3, 3)) == (128, 128, 128)


def test_frames_of_every_kind_are_the_same_film(tmp_path: Path) -> None:
    array = next(film(1))
    kinds = [array, images.from_uint8(array), Image.fromarray(array), Image.fromarray(array).convert("RGBA")]
    frames, _ = decoded(images.save_animation(kinds, tmp_path / "x.gif", min_size=1, fps=10))
    assert len(frames) == 1  # equal frames are one, shown for longer
    np.testing.assert_array_equal(frames[0], array)


def test_a_caller_may_reuse_its_buffer(tmp_path: Path) -> None:
    def filled() -> Iterator[np.ndarray]:
        buffer = np.zeros((8, 8, 3), np.uint8)
        for level in (0, 100, 200):
            buffer[:] = level
            yield buffer

    frames, _ = decoded(images.save_animation(filled(), tmp_path / "x.gif", min_size=1))
    assert [int(frame.max()) for frame in frames] == [0, 100, 200]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_film_keeps_its_recipe(tmp_path: Path, suffix: str) -> None:
    path = images.save_animation(film(3), tmp_path / f"x{suffix}", recipe=RECIPE)
    assert images.read_recipe(path) == RECIPE


def test_an_mp4_has_its_frames_even_sides_and_colours(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="needs the extra: pip install 'eigenlens[video]'")
    y, x = np.mgrid[:15, :17]
    steps = [np.stack([y * 16, x * 15, np.full_like(x, 40 * index)], axis=-1).astype(np.uint8) for index in range(5)]
    path = images.save_animation(steps, tmp_path / "x.mp4", fps=25, min_size=31, pingpong=True, recipe={"a": 1})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.codec_context.pix_fmt) == (25, "yuv420p")
        assert container.metadata["comment"] == 'eigenlens {"a": 1}'
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 8
    assert frames[0].shape == (46, 52, 3)  # 45 x 51, made even
    for frame, step in zip(frames[:5], steps, strict=True):
        difference = frame[:45, :51].astype(int) - step.repeat(3, 0).repeat(3, 1)
        assert np.abs(difference.mean(axis=(0, 1))).max() < 5


def test_an_mp4_is_written_as_the_frames_come(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs the extra: pip install 'eigenlens[video]'")
    n, side = 60, 192
    tracemalloc.start()
    try:
        images.save_animation(film(n, side), tmp_path / "x.mp4", min_size=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n * side * side * 3 / 2
    assert len(mp4_frames(tmp_path / "x.mp4")) == n


def test_an_mp4_without_pyav_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_av(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(UserError, match=r"pip install 'eigenlens\[video\]'"):
        images.save_animation(film(2), tmp_path / "x.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_film_that_breaks_off_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    skip_without_video(suffix)

    def breaks_off() -> Iterator[np.ndarray]:
        yield from film(5)
        raise RuntimeError("the generator ran out of memory")

    path = tmp_path / f"x{suffix}"
    path.write_text("precious")
    with pytest.raises(RuntimeError, match="out of memory"):
        images.save_animation(breaks_off(), path, force=True)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "precious"


def test_an_existing_film_is_refused_before_a_frame_is_made(tmp_path: Path) -> None:
    (tmp_path / "x.gif").write_text("precious")
    frames = film(3)
    with pytest.raises(UserError, match="exists already"):
        images.save_animation(frames, tmp_path / "x.gif")
    assert len(list(frames)) == 3
    assert (tmp_path / "x.gif").read_text() == "precious"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("frames", "settings", "message"),
    [
        ([], {}, "without frames"),
        ([np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8)], {}, "frame 1 has 9 x 8 pixels, the first 8 x 8"),
        ([np.zeros((8, 8, 3))], {}, "float64"),
        ([torch.full((3, 8, 8), float("nan"))], {}, "NaN"),
        ([np.zeros((8, 8, 3), np.uint8)], {"fps": 0}, "0 frames a second"),
        ([np.zeros((8, 8, 3), np.uint8)], {"fps": float("nan")}, "nan frames a second"),
    ],
)
def test_bad_films_are_refused(
    tmp_path: Path, suffix: str, frames: list[Any], settings: dict[str, Any], message: str
) -> None:
    skip_without_video(suffix)
    with pytest.raises(UserError, match=message):
        images.save_animation(frames, tmp_path / f"x{suffix}", **settings)
    assert list(tmp_path.iterdir()) == []


def test_unknown_suffixes_and_speeds_name_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'\.avi'; films are \.gif, \.webp, \.mp4"):
        images.save_animation(film(2), tmp_path / "x.avi")
    with pytest.raises(UserError, match="a GIF has at most 50"):
        images.save_animation(film(2), tmp_path / "x.gif", fps=60)
