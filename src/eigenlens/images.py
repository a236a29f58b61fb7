"""Pictures in and out: the only place that knows [-1, 1], uint8 and layouts; grids, PNG, GIF, WebP and MP4.

Everywhere else an image is a float tensor `[channels, height, width]`, nominally in [-1, 1], RGB or grey.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import re
import tempfile
import unicodedata
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .errors import UserError
from .files import written_beside

Frame: TypeAlias = Tensor | Image.Image | np.ndarray
"""One frame of a film: `[channels, height, width]` in [-1, 1], a picture, or uint8 `[height, width, channels]`."""

FILM_SIDE = 192
"""Pixels that the shorter side of a film has at least."""

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
PICTURES = tuple(_FORMATS)
"""Suffixes of pictures that are written."""
FILMS = (".gif", ".webp", ".mp4")
"""Suffixes of films that are written."""
_LONGEST_SIDE = {"JPEG": 65535, "WEBP": 16383, "GIF": 65535}  # what the format's own size field holds
_READABLE = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")  # EPS would run a program
_RECIPE = "eigenlens"
_LONGEST_RECIPE = 1 << 20  # characters; an Edit has a few thousand


def to_uint8(images: Tensor) -> np.ndarray:
    """Turn float images into bytes, clamped to [-1, 1] and rounded to the nearest level.

    Args:
        images: `[..., channels, height, width]`, float, nominally in [-1, 1], on any device.

    Returns:
        uint8 `[..., height, width, channels]`.

    Raises:
        UserError: for fewer than three axes, for integers, and for values that are not numbers.

    Example:
        >>> to_uint8(torch.tensor([-2.0, -1.0, 0.0, 1.0]).reshape(1, 1, 4)).ravel().tolist()
        [0, 0, 128, 255]
    """
    if images.ndim < 3:
        raise UserError(f"images of shape {list(images.shape)}; they need [..., channels, height, width]")
    if not images.is_floating_point():
        raise UserError(f"images of type {images.dtype}; they need floats in [-1, 1] (from_uint8 makes them of bytes)")
    images = images.detach()
    if n_bad := int(images.isnan().sum()):
        raise UserError(
            f"{n_bad} of {images.numel()} image values are NaN; a weight, a code or the precision is at fault "
            "(try float32, or a smaller strength)"
        )
    levels = images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return levels.movedim(-3, -1).contiguous().cpu().numpy()  # [..., height, width, channels]


def from_uint8(array: np.ndarray) -> Tensor:
    """Turn bytes into float images: 0 becomes -1, 255 becomes 1.

    Args:
        array: uint8 `[..., height, width, channels]`.

    Returns:
        float32 `[..., channels, height, width]` in [-1, 1]; `to_uint8` gives back the same bytes.

    Raises:
        UserError: for fewer than three axes, and for any type but uint8.

    Example:
        >>> from_uint8(np.array([0, 51, 255], np.uint8).reshape(1, 3, 1)).flatten().tolist()
        [-1.0, -0.6000000238418579, 1.0]
    """
    if array.ndim < 3:
        raise UserError(f"an array of shape {list(array.shape)}; it needs [..., height, width, channels]")
    if array.dtype != np.uint8:
        raise UserError(f"an array of type {array.dtype}; it needs uint8 in 0..255")
    levels = torch.from_numpy(np.array(array, order="C"))  # a copy: torch refuses negative strides, read-only memory
    return levels.movedim(-1, -3).contiguous().float().div(127.5).sub(1)  # [..., channels, height, width]


def to_pil(image: Tensor) -> Image.Image:
    """Turn one image `[channels, height, width]` into a picture: grey for one channel, RGB for three.

    Raises:
        UserError: for any other shape, and as `to_uint8` does.

    Example:
        >>> to_pil(torch.zeros(3, 4, 6))
        <PIL.Image.Image image mode=RGB size=6x4...>
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UserError(f"an image of shape {list(image.shape)}; one picture is [1 or 3, height, width]")
    levels = to_uint8(image)
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def difference(before: Tensor, after: Tensor) -> Tensor:
    """Return a map of what has changed between two images: black where nothing has, through red and yellow to white.

    The brightest colour stands for a change of half the range of pixels (1 of 2), mean over channels, and more.

    Args:
        before, after: `[channels, height, width]`, nominally in [-1, 1].

    Returns:
        `[3, height, width]` in [-1, 1].

    Example:
        >>> difference(torch.zeros(1, 1, 1), torch.ones(1, 1, 1)).flatten().tolist()
        [1.0, 1.0, 1.0]
    """
    change = (before.clamp(-1, 1) - after.clamp(-1, 1)).abs().mean(0)  # [height, width], 0 to 2
    heat = 3 * change.clamp(0, 1)
    return torch.stack([heat, heat - 1, heat - 2]).clamp(0, 1) * 2 - 1


def open_image(path: str | Path, content: bytes | None = None) -> Image.Image:
    """Read a picture as RGB, upright, whatever its file holds.

    The camera's rotation is applied, transparency is laid over white, 16-bit grey is scaled, and of an
    animation the first frame counts.

    Args:
        path: the file, which errors name.
        content: its bytes, where they have been read already.

    Raises:
        UserError: in one line that names the file: missing, no image, broken, or too large to be safe.
    """
    with _opened(path, content) as image:
        sixteen_bit = image.format in ("PNG", "PPM")  # their mode I means 16 bits, in any release of Pillow
        return _rgb(ImageOps.exif_transpose(image), sixteen_bit=sixteen_bit)


def centre_crop_resize(image: Image.Image, resolution: int, channels: int = 3) -> np.ndarray:
    """Cut the largest centred square out of a picture and resize it without aliasing (Lanczos).

    Args:
        image: a picture of any mode; transparency is laid over white.
        resolution: side of the result in pixels.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 `[resolution, resolution, channels]`.

    Raises:
        UserError: for a resolution below 1, and for any other number of channels.

    Example:
        >>> centre_crop_resize(Image.new("L", (30, 20), 7), 4).shape
        (4, 4, 3)
    """
    if resolution < 1:
        raise UserError(f"a resolution of {resolution}; it needs 1 pixel or more")
    if channels not in (1, 3):
        raise UserError(f"{channels} channels; an image has 1 (grey) or 3 (RGB)")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = _rgb(image.crop((left, top, left + side, top + side)))
    if channels == 1:
        square = square.convert("L")
    resized = square.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return np.array(resized).reshape(resolution, resolution, channels)


@contextmanager
def _opened(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open a picture for a block in which every failure of a decoder becomes one line for the user."""
    try:
        Image.init()  # fills Image.OPEN: AVIF is missing from older releases
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            source = path if content is None else io.BytesIO(content)
            image = Image.open(source, formats=[name for name in _READABLE if name in Image.OPEN])
        with image:
            yield image
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the name and the folder") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; name the pictures in it") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"{Image.MAX_IMAGE_PIXELS or 0:,}"
        raise UserError(f"{path} claims more than {limit} pixels, which may be an attack; make it smaller") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image in a known format; known: {', '.join(_READABLE)}") from error
    except Exception as error:  # decoders of hostile bytes raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as an image: {reason}") from error


def _rgb(image: Image.Image, *, sixteen_bit: bool = False) -> Image.Image:
    """Bring a picture of any mode to RGB; `sixteen_bit` says that its mode I spans 0..65535."""
    if image.mode.startswith("I;16") or (image.mode == "I" and sixteen_bit):
        levels = np.asarray(image).astype(np.float64) / 257  # Pillow would clip or truncate
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(f"pixels of mode {image.mode} have no known range; save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def grid(
    images: Tensor,
    *,
    columns: int | None = None,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    min_tile: int = 64,
    gap: int = 2,
    background: str = "white",
) -> Image.Image:
    """Lay images out in rows and columns, with labels that are never cut off.

    Small images are enlarged by a whole factor, so that a pixel stays a square. Without labels and title, tile
    (row, column) begins at `row * (tile height + gap)`, `column * (tile width + gap)`, and there is no border.
    Column labels that are wider than a tile are turned upright, all of them.

    Args:
        images: `[n, 1 or 3, height, width]`, float, nominally in [-1, 1], row by row; the last row may be short.
        columns: how many a row; without it as the labels say, else nearly square.
        row_labels: one text a row, left of it, or none at all.
        column_labels: one text a column, above it, or none at all.
        title: a text above all; a long one is wrapped.
        min_tile: the shorter side of a tile in pixels is at least this.
        gap: pixels between tiles.
        background: a colour's name or `#rrggbb`; the ink is black or white, whichever is legible.

    Returns:
        An RGB picture.

    Raises:
        UserError: where there is no image, or labels, columns, colour or sizes do not fit.

    Example:
        >>> grid(torch.zeros(6, 3, 32, 32), columns=3).size
        (196, 130)
    """
    if images.ndim != 4 or not images.numel() or images.shape[1] not in (1, 3):
        shape = list(images.shape)
        raise UserError(f"images of shape {shape}; a grid needs [n, 1 or 3, height, width], none of them 0")
    if gap < 0:
        raise UserError(f"a gap of {gap} pixels; it needs 0 or more")
    n_rows, n_columns = _shape_of_grid(len(images), columns, row_labels, column_labels)
    colour = _colour(background)

    height, width = images.shape[-2:]
    line = _line_height(_LABEL_SIZE) if row_labels or column_labels else 1  # a label must not outgrow its tile
    factor = _whole_factor(height, width, max(min_tile, line))
    height, width = height * factor, width * factor

    tiles = Image.new("RGB", (n_columns * (width + gap) - gap, n_rows * (height + gap) - gap), colour)
    for index, tile in enumerate(images):
        row, column = divmod(index, n_columns)
        tiles.paste(Image.fromarray(_enlarged(_bytes(tile), factor)), (column * (width + gap), row * (height + gap)))
    return _lettered(tiles, (width + gap, height + gap), (width, height), row_labels, column_labels, title, colour)


def _shape_of_grid(
    n: int, columns: int | None, row_labels: Sequence[str], column_labels: Sequence[str]
) -> tuple[int, int]:
    """Settle rows and columns for `n` images, and refuse labels that do not fit them."""
    if isinstance(row_labels, str) or isinstance(column_labels, str):
        raise UserError("labels are a list of texts, one a row or column; a single text came")
    if columns is None:
        columns = len(column_labels) or math.ceil(n / len(row_labels) if row_labels else math.sqrt(n))
    if columns < 1:
        raise UserError(f"{columns} columns; a grid needs 1 or more")
    rows = math.ceil(n / columns)
    for kind, labels, count in (("row", row_labels, rows), ("column", column_labels, columns)):
        if labels and len(labels) != count:
            raise UserError(f"{len(labels)} {kind} labels for {count} {kind}s; give one each, or none")
    return rows, columns


def _colour(name: str) -> tuple[int, ...]:
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise UserError(f"unknown colour {name!r}; give a name such as white, or #rrggbb") from error


def _whole_factor(height: int, width: int, least: int) -> int:
    """Return the smallest whole factor that brings the shorter side to `least` pixels."""
    return max(1, math.ceil(least / min(height, width)))


def _enlarged(levels: np.ndarray, factor: int) -> np.ndarray:
    """Repeat each pixel of `[height, width, channels]` `factor` times both ways."""
    return levels.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else levels


# Pillow's bundled font is the same everywhere, but it has little beyond ASCII: no σ, no minus sign.

_LABEL_SIZE = 14  # pixels; below this the bundled font is hard to read
_SPELLED = {"−": "-", "–": "-", "—": "-", "×": "x", "→": "->", "←": "<-", "µ": "u", "≤": "<=", "≥": ">=", "≈": "~"}


def _lettered(
    tiles: Image.Image,
    pitch: tuple[int, int],
    tile: tuple[int, int],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str,
    colour: tuple[int, ...],
) -> Image.Image:
    """Put labels and title around the tiles, on a canvas that grows with them."""
    size = max(_LABEL_SIZE, min(tile) // 16)
    beside = [_text(label, size) for label in row_labels]
    above = [_text(label, size) for label in column_labels]
    if any(text.width > tile[0] for text in above):
        above = [text.transpose(Image.Transpose.ROTATE_90) for text in above]
    left = max((text.width for text in beside), default=0)
    below_title = max((text.height for text in above), default=0)
    lines = _wrapped(title, size + size // 4, left + tiles.width)
    width = max([left + tiles.width, *(line.width for line in lines)])  # a tile may be narrower than one letter
    top = sum(line.height for line in lines) + below_title

    canvas = Image.new("RGB", (width, top + tiles.height), colour)
    canvas.paste(tiles, (left, top))
    luminance = (299 * colour[0] + 587 * colour[1] + 114 * colour[2]) / 1000
    ink = (0, 0, 0) if luminance > 127 else (255, 255, 255)
    y = 0
    for line in lines:
        canvas.paste(ink, (0, y), line)
        y += line.height
    for row, text in enumerate(beside):
        canvas.paste(ink, (0, top + row * pitch[1] + (tile[1] - text.height) // 2), text)
    for column, text in enumerate(above):
        canvas.paste(ink, (left + column * pitch[0] + (tile[0] - text.width) // 2, top - text.height), text)
    return canvas


def _text(text: str, size: int) -> Image.Image:
    """Draw one line as a grey mask, with a margin of a third of its size left and right."""
    font = _font(size)
    runs = [run for run in re.split("(σ)", _drawable(text)) if run]
    margin = max(2, size // 3)
    widths = [font.getlength("o" if run == "σ" else run) + (margin / 2 if run == "σ" else 0) for run in runs]
    mask = Image.new("L", (2 * margin + math.ceil(sum(widths)), _line_height(size)))
    draw = ImageDraw.Draw(mask)
    x: float = margin
    for run, width in zip(runs, widths, strict=True):
        if run == "σ":
            _draw_sigma(draw, round(x), size)
        else:
            draw.text((x, 0), run, 255, font=font)
        x += width
    return mask


def _draw_sigma(draw: ImageDraw.ImageDraw, x: int, size: int) -> None:
    """Draw σ as the bundled font's "o" with a bar that leaves its top to the right."""
    font = _font(size)
    left, top, right, _ = font.getbbox("o")
    draw.text((x, 0), "o", 255, font=font)
    stroke = max(1, round(size * 0.08))
    draw.rectangle((x + (left + right) // 2, top, x + right + max(1, size // 10), top + stroke - 1), 255)


def _wrapped(text: str, size: int, width: int) -> list[Image.Image]:
    """Draw a text in lines of at most `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _text(longer, size).width <= width:
            lines[-1] = longer
        else:
            lines += _broken(word, size, width)
    return [_text(line, size) for line in lines]


def _broken(word: str, size: int, width: int) -> list[str]:
    """Cut a word into pieces that fit `width` pixels, behind a sign such as _ or = where there is one."""
    pieces = []
    while _text(word, size).width > width and len(word) > 1:
        n = next((n for n in range(len(word) - 1, 1, -1) if _text(word[:n], size).width <= width), 1)
        signs = [i + 1 for i, character in enumerate(word[:n]) if not character.isalnum()]
        n = signs[-1] if signs else n
        pieces.append(word[:n])
        word = word[n:]
    return [*pieces, word]


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise UserError("this Pillow is built without FreeType and draws no labels; pip install --upgrade pillow")
    return font


def _line_height(size: int) -> int:
    return sum(_font(size).getmetrics()) + max(2, size // 5)


def _drawable(text: str) -> str:
    """Replace what the bundled font lacks by what it has: spelled out, without accents, or Greek by name."""
    return "".join(_drawable_character(character) for character in re.sub(r"\s", " ", text))


@lru_cache(maxsize=1024)
def _drawable_character(character: str) -> str:
    if character == "σ" or _has_glyph(character):
        return character
    if character in _SPELLED:
        return _SPELLED[character]
    plain = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    if all(map(_has_glyph, plain)):  # nothing of an accent that stands behind its letter, as in file names of macOS
        return plain
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(plain[:1] or character, ""))
    if greek:
        return greek[2].lower() if greek[1] == "SMALL" else greek[2].capitalize()
    return character  # the font's own empty box says that something is missing


def _has_glyph(character: str) -> bool:
    font = _font(_LABEL_SIZE)
    glyph, missing = font.getmask(character), font.getmask("\u0378")  # a code point that is not assigned
    return (glyph.size, bytes(glyph)) != (missing.size, bytes(missing))


def save(image: Image.Image, path: str | Path, *, recipe: dict | None = None, force: bool = False) -> Path:
    """Write a picture whole or not at all: PNG, JPEG or WebP, as the suffix says.

    Args:
        image: a picture.
        path: where to; folders on the way are made.
        recipe: JSON that says how to make the picture again; kept in the file, `read_recipe` reads it.
        force: replace a file that exists.

    Returns:
        The path.

    Raises:
        UserError: for another suffix, a file that exists, or a picture or recipe too large for the format.
    """
    path = Path(path)
    format = _FORMATS.get(path.suffix.lower())
    if format is None:
        raise UserError(f"cannot write {path}: unknown suffix {path.suffix!r}; pictures are {', '.join(PICTURES)}")
    _refuse_oversize(path, image.width, image.height, format)
    options = _options(format) | _recipe_options(format, recipe)
    if format == "JPEG":
        image = _rgb(image)
    with written_beside(path, force=force) as beside:
        image.save(beside, format=format, **options)
    return path


def data_url(image: Image.Image, format: str = "png", *, quality: int | None = None) -> str:
    """Pack a picture into a `data:` URL, for a page that needs no other file.

    Args:
        image: a picture.
        format: png, jpg, jpeg or webp.
        quality: of jpg and webp, from 1 to 100; by default that of files.

    Raises:
        UserError: for a format other than png, jpg, jpeg and webp.

    Example:
        >>> data_url(Image.new("RGB", (1, 1)))[:30]
        'data:image/png;base64,iVBORw0K'
    """
    name = _FORMATS.get(f".{format.lower()}")
    if name is None:
        raise UserError(f"unknown format {format!r}; known: {', '.join(suffix[1:] for suffix in _FORMATS)}")
    buffer = io.BytesIO()
    options = _options(name) | ({} if quality is None else {"quality": quality})
    (_rgb(image) if name == "JPEG" else image).save(buffer, format=name, **options)
    return f"data:image/{name.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def encode(
    images: Tensor | Sequence[Tensor],
    *,
    columns: int | None = None,
    largest: int | None = None,
    format: str = "png",
    quality: int = 90,
) -> bytes:
    """Pack images, edge to edge, into the bytes of one picture, quickly: what a viewer sends for each frame.

    Args:
        images: [batch, 1 or 3, height, width] in [-1, 1], or several such batches.
        columns: tiles in a row; by default all in one row. Places that are left over are black.
        largest: tiles larger than this many pixels are made smaller by a whole factor (area means).
        format: png (lossless, at the quickest level), jpeg or webp.
        quality: of jpeg and webp.

    Raises:
        UserError: for another format, and for no images.
    """
    if format not in ("png", "jpeg", "webp"):
        raise UserError(f"unknown format {format!r}; known: png, jpeg, webp")
    images = images if isinstance(images, Tensor) else torch.cat([each.cpu() for each in images])
    if not len(images):
        raise UserError("no images came to encode; give at least one")
    if largest is not None:
        factor = images.shape[-1] // max(1, largest)
        images = torch.nn.functional.avg_pool2d(images.float().clamp(-1, 1), factor) if factor > 1 else images
    tiles = to_uint8(images)  # [batch, height, width, channels]
    n, height, width, channels = tiles.shape
    columns = min(columns or n, n)
    rows = -(-n // columns)
    if rows * columns > n:
        tiles = np.concatenate([tiles, np.zeros((rows * columns - n, height, width, channels), np.uint8)])
    levels = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    levels = levels.reshape(rows * height, columns * width, channels)
    picture = Image.fromarray(levels[..., 0] if channels == 1 else levels)
    buffer = io.BytesIO()
    options: dict[str, dict[str, Any]] = {
        "png": {"compress_level": 1},
        "jpeg": {"quality": quality, "subsampling": 0},
        "webp": {"quality": quality, "method": 0},
    }
    picture.save(buffer, format=format.upper(), **options[format])
    return buffer.getvalue()


def read_recipe(path: str | Path) -> dict | None:
    """Read the recipe that `save` or `save_animation` put into a picture or a film; None where there is none.

    Raises:
        UserError: where the file is no image, or what it holds as a recipe is not one.
    """
    if Path(path).suffix.lower() == ".mp4":
        text = _recipe_of_film(path)
    else:
        with _opened(path) as image:
            text = _embedded_recipe(image)
    if text is None:
        return None
    if len(text) > _LONGEST_RECIPE:
        raise UserError(f"the recipe in {path} has {len(text):,} characters; the limit is {_LONGEST_RECIPE:,}")
    try:
        recipe = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested a hundred thousand deep
        raise UserError(f"the recipe in {path} is not JSON that can be read: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"the recipe in {path} is a {type(recipe).__name__}; it needs to be a JSON object")
    return recipe


def _embedded_recipe(image: Image.Image) -> str | None:
    if image.format == "PNG":
        text: dict[str, str] = image.text  # type: ignore[attr-defined]  # PNG alone has it
        return text.get(_RECIPE)
    found = image.info.get("comment") if image.format == "GIF" else image.getexif().get(_DESCRIPTION)
    if isinstance(found, bytes):
        found = found.decode("ascii", errors="replace")
    if isinstance(found, str) and found.startswith(_RECIPE + " "):
        return found.removeprefix(_RECIPE + " ").rstrip("\0")
    return None


def _recipe_of_film(path: str | Path) -> str | None:
    av = _need_av()
    try:
        with av.open(str(path)) as container:
            found = container.metadata.get("comment", "")
    except (OSError, ValueError) as error:  # PyAV's own errors are of these kinds
        raise UserError(f"{path} cannot be read as a film: {' '.join(str(error).split())}") from error
    return found.removeprefix(_RECIPE + " ") if found.startswith(_RECIPE + " ") else None


def _need_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError("MP4 needs PyAV; pip install 'eigenlens[video]', or use .gif or .webp") from error
    return av


_DESCRIPTION = 0x010E  # EXIF's ImageDescription


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _recipe_text(recipe: dict) -> str:
    try:
        text = json.dumps(recipe, allow_nan=False)  # ASCII, so that file names of any bytes survive
    except (TypeError, ValueError) as error:
        raise UserError(f"a recipe that is not JSON: {error}; it holds texts, finite numbers, lists, objects") from None
    if len(text) > _LONGEST_RECIPE:
        raise UserError(f"a recipe of {len(text):,} characters; the limit is {_LONGEST_RECIPE:,}")
    return text


def _recipe_options(format: str, recipe: dict | None) -> dict[str, Any]:
    """Return what Pillow's writer of this format takes to keep the recipe."""
    if recipe is None:
        return {}
    text = _recipe_text(recipe)
    if format == "PNG":
        chunk = PngInfo()
        chunk.add_text(_RECIPE, text)
        return {"pnginfo": chunk}
    marked = f"{_RECIPE} {text}"
    if format == "GIF":
        return {"comment": marked.encode("ascii")}
    if format == "JPEG" and len(marked) > 60_000:  # one segment holds 64 KiB
        raise UserError(f"a recipe of {len(marked):,} characters does not fit into a JPEG; write a PNG")
    exif = Image.Exif()
    exif[_DESCRIPTION] = marked
    return {"exif": exif}


def _options(format: str) -> dict[str, Any]:
    """Return the quality settings of a format; chroma keeps its full resolution where the format can."""
    return {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}.get(format, {})


def _refuse_oversize(path: Path, width: int, height: int, format: str) -> None:
    limit = _LONGEST_SIDE.get(format)
    if limit is not None and max(width, height) > limit:
        raise UserError(f"cannot write {path}: {width} x {height} pixels, and {format} ends at {limit}; write a PNG")


def save_animation(
    frames: Iterable[Frame],
    path: str | Path,
    *,
    fps: float = 20,
    pingpong: bool = False,
    min_size: int = FILM_SIDE,
    recipe: dict | None = None,
    force: bool = False,
) -> Path:
    """Write a film whole or not at all: GIF, WebP or MP4, as the suffix says; GIF and WebP loop for ever.

    The frames are taken one by one. An MP4 is written as they come and needs memory for one; with `pingpong` they wait
    in a temporary file for the way back. GIF and WebP keep them all: their one palette must suit the whole film, and
    their writer takes no other.

    Args:
        frames: all of one size: tensors `[1 or 3, height, width]` in [-1, 1], pictures, or uint8 arrays
            `[height, width]` or `[height, width, 1 or 3]`.
        path: where to; folders on the way are made.
        fps: frames a second; a GIF has at most 50.
        pingpong: play it forward, then back, without showing an end twice.
        min_size: the shorter side in pixels is at least this; small frames are enlarged by a whole factor.
        recipe: JSON that says how to make the film again, kept in the file.
        force: replace a file that exists.

    Returns:
        The path.

    Raises:
        UserError: for another suffix, a file that exists, no frames, frames of several sizes, a speed that the
            format lacks, and for an MP4 without PyAV.
    """
    path = Path(path)
    if path.suffix.lower() not in FILMS:
        raise UserError(f"cannot write {path}: unknown suffix {path.suffix!r}; films are {', '.join(FILMS)}")
    write = {".gif": _write_gif, ".webp": _write_webp, ".mp4": _write_mp4}[path.suffix.lower()]
    if not 0.1 <= fps <= 1000:  # false for NaN as well
        raise UserError(f"{fps} frames a second; give 0.1 to 1000")
    checked = _film(frames)
    with written_beside(path, force=force) as beside:
        write(_and_back(checked) if pingpong else checked, beside, fps, min_size, recipe)
    return path


def frames(batches: Iterable[Tensor], captions: Sequence[str] = ()) -> Iterator[Image.Image]:
    """Lay out the images of each frame of a film, one frame at a time: up to four in a row, under a caption.

    Args:
        batches: for each frame its images `[n, 1 or 3, height, width]`.
        captions: for each frame the text above it; all frames get the size that the largest caption needs.
    """
    size = (0, 0)
    for index, images in enumerate(batches):
        columns = min(len(images), 4)
        if not captions:
            yield grid(images, columns=columns)
            continue
        tile = FILM_SIDE * columns // len(images)  # as large as the film: letters enlarged later are rough
        if not index:
            texts = dict.fromkeys(captions)
            sizes = [grid(images, columns=columns, title=text, min_tile=tile).size for text in texts]
            size = max(width for width, _ in sizes), max(height for _, height in sizes)
        laid = grid(images, columns=columns, title=captions[index], min_tile=tile)
        canvas = Image.new("RGB", size, "white")
        canvas.paste(laid, (0, size[1] - laid.height))
        yield canvas


def _film(frames: Iterable[Frame]) -> Iterator[np.ndarray]:
    """Yield each frame as uint8 RGB `[height, width, 3]`; refuse an empty film and a change of size."""
    shape: tuple[int, ...] | None = None
    for index, frame in enumerate(frames):
        levels = _bytes(frame)
        if shape is None:
            shape = levels.shape
        if levels.shape != shape:
            raise UserError(
                f"frame {index} has {levels.shape[1]} x {levels.shape[0]} pixels, the first {shape[1]} x {shape[0]}; "
                "a film has one size"
            )
        yield levels
    if shape is None:
        raise UserError("a film without frames; give at least one")


def _bytes(frame: Frame) -> np.ndarray:
    """Bring one frame of any accepted kind to uint8 RGB `[height, width, 3]`."""
    if isinstance(frame, Tensor):
        frame = to_pil(frame)
    if isinstance(frame, np.ndarray):
        if frame.ndim == 2:
            frame = frame[..., None]
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] not in (1, 3):
            raise UserError(
                f"a frame of type {frame.dtype} and shape {list(frame.shape)}; "
                "an array needs uint8 [height, width] or [height, width, 1 or 3]"
            )
        return np.array(np.broadcast_to(frame, (*frame.shape[:2], 3)))  # a copy: the caller may reuse its buffer
    return np.asarray(_rgb(frame))


def _and_back(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield all frames, then those between the ends backwards; they wait in a temporary file, not in memory."""
    with tempfile.TemporaryFile() as waiting:
        places, shape = [], (0, 0, 0)
        for frame in frames:
            packed = zlib.compress(frame.tobytes(), 1)
            places.append((waiting.tell(), len(packed)))
            waiting.write(packed)
            shape = frame.shape
            yield frame
        for place, length in places[-2:0:-1]:
            waiting.seek(place)
            yield np.frombuffer(zlib.decompress(waiting.read(length)), np.uint8).reshape(shape)


def _durations(fps: float, *, unit: int) -> Iterator[int]:
    """Yield whole durations whose sum never strays from the true time by more than half of `1 / unit` seconds.

    Example:
        >>> list(itertools.islice(_durations(30, unit=100), 6))
        [3, 4, 3, 3, 4, 3]
    """
    ends = (round(unit * index / fps) for index in itertools.count())
    return (end - start for start, end in itertools.pairwise(ends))


def _write_gif(frames: Iterator[np.ndarray], path: Path, fps: float, min_size: int, recipe: dict | None) -> None:
    """Write a GIF with one palette for all frames and a dither that stands still."""
    if fps > 50:  # viewers slow a delay below 2/100 s down to 1/10 s
        raise UserError(f"{fps} frames a second; a GIF has at most 50: write .webp or .mp4, or lower fps")
    options = _recipe_options("GIF", recipe)
    film = list(frames)
    height, width = film[0].shape[:2]
    factor = _whole_factor(height, width, min_size)
    _refuse_oversize(path, width * factor, height * factor, "GIF")
    colours = _few_colours(film)
    palette, steps = (colours, None) if colours is not None else _palette(film)
    indexed = (_indexed(_enlarged(frame, factor), palette, steps) for frame in film)
    durations = [10 * hundredths for hundredths in itertools.islice(_durations(fps, unit=100), len(film))]
    next(indexed).save(
        path, format="GIF", save_all=True, append_images=indexed, duration=durations, loop=0, disposal=1, **options
    )


def _few_colours(film: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return all colours of the film, uint8 `[n, 3]` sorted, where a GIF can hold them; else None."""
    seen = np.zeros(0, np.uint32)
    for frame in film:
        seen = np.union1d(seen, _packed(frame))
        if len(seen) > 256:
            return None
    return np.stack([seen >> 16, seen >> 8 & 255, seen & 255], axis=1).astype(np.uint8)


def _packed(levels: np.ndarray) -> np.ndarray:
    """Pack RGB `[..., 3]` into one number a pixel."""
    return levels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)


def _palette(film: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Choose 255 colours for the whole film from some 65,000 pixels, spread evenly over it.

    The 256th stays free for transparency, with which unchanged pixels cost nothing.

    Returns:
        The colours, uint8 `[n, 3]`, and how wide a dither each needs to reach its neighbours, in levels `[n]`.
    """
    pixels = film[0].shape[0] * film[0].shape[1]
    every = max(1, len(film) * pixels // (1 << 16))
    # Each frame begins at another pixel, so that a short stride cannot always meet the same columns.
    sample = np.concatenate([frame.reshape(-1, 3)[index % every :: every] for index, frame in enumerate(film)])
    chosen = Image.fromarray(sample[None]).quantize(255, method=Image.Quantize.MEDIANCUT, kmeans=1)
    palette = np.array(chosen.getpalette(), np.uint8).reshape(-1, 3)[:255]
    indices = np.asarray(chosen).ravel()
    error = np.square(palette[indices].astype(np.float64) - sample).mean(axis=1)
    n_pixels = np.bincount(indices, minlength=len(palette))
    error = np.bincount(indices, error, minlength=len(palette)) / np.maximum(n_pixels, 1)
    # Rounding to a step s errs by s / √12 = s / 3.5; a little less has less grain and the same mean colour.
    return palette, 2.5 * np.sqrt(error)


def _indexed(levels: np.ndarray, palette: np.ndarray, steps: np.ndarray | None) -> Image.Image:
    """Map RGB `[height, width, 3]` to the palette: exactly without `steps`, else with an ordered dither that wide.

    Error diffusion would look better on one frame, but its grain crawls when the frames run; a Bayer pattern stays
    in its place.
    """
    if steps is None:
        indexed = Image.fromarray(np.searchsorted(_packed(palette), _packed(levels)).astype(np.uint8))
        indexed.putpalette(palette.tobytes())
        return indexed
    carrier = Image.new("P", (1, 1))
    carrier.putpalette(palette.tobytes())
    height, width = levels.shape[:2]
    pattern = np.tile(_bayer(), (math.ceil(height / 8), math.ceil(width / 8)))[:height, :width]
    nearest = Image.fromarray(levels).quantize(palette=carrier, dither=Image.Dither.NONE)
    shift = steps[np.asarray(nearest)] * pattern + 1.5  # Pillow looks up cells of 4 levels by their lowest corner
    dithered = (levels + shift[..., None]).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(dithered).quantize(palette=carrier, dither=Image.Dither.NONE)


def _bayer() -> np.ndarray:
    """Return the 8 x 8 threshold pattern: its 64 values lie evenly between -½ and +½."""
    pattern = np.zeros((1, 1))
    for _ in range(3):
        pattern = np.block([[4 * pattern, 4 * pattern + 2], [4 * pattern + 3, 4 * pattern + 1]])
    return (pattern + 0.5) / 64 - 0.5


def _write_webp(frames: Iterator[np.ndarray], path: Path, fps: float, min_size: int, recipe: dict | None) -> None:
    options = _recipe_options("WEBP", recipe)
    first = next(frames)
    height, width = first.shape[:2]
    factor = _whole_factor(height, width, min_size)
    _refuse_oversize(path, width * factor, height * factor, "WEBP")
    film = [Image.fromarray(_enlarged(frame, factor)) for frame in itertools.chain([first], frames)]
    durations = list(itertools.islice(_durations(fps, unit=1000), len(film)))
    film[0].save(
        path, format="WEBP", save_all=True, append_images=film[1:], duration=durations, loop=0, quality=90, **options
    )


def _write_mp4(frames: Iterator[np.ndarray], path: Path, fps: float, min_size: int, recipe: dict | None) -> None:
    """Write H.264 that every browser plays, one frame at a time."""
    av = _need_av()
    first = next(frames)
    factor = _whole_factor(first.shape[0], first.shape[1], min_size)
    height, width = (side * factor + side * factor % 2 for side in first.shape[:2])  # yuv420p halves both sides
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        if recipe is not None:
            container.metadata["comment"] = f"{_RECIPE} {_recipe_text(recipe)}"
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # Untagged, players guess the matrix by the picture's size, and colours drift.
        tags = "colorprim=bt709:transfer=bt709:colormatrix=bt709:fullrange=off"
        stream.options = {"crf": "16", "preset": "medium", "x264-params": tags}
        for frame in itertools.chain([first], frames):
            levels = _enlarged(frame, factor)
            levels = np.pad(levels, ((0, height - levels.shape[0]), (0, width - levels.shape[1]), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(levels), format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode())
