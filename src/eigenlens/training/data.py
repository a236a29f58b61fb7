"""Training images: folders, zips, NumPy arrays and idx files, decoded once into a memory-mapped array of bytes.

Foreign files are data: arrays are read without unpickling, and zips are never unpacked to disk.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import runtime
from ..errors import UserError
from ..files import write_json, written_beside
from ..images import centre_crop_resize, open_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
IDX_FILES = ("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte", "train-images.idx3-ubyte")
ALLOWED = "allowed: a folder or zip of images, .npz or .npy with uint8 [n, height, width, channels], idx(.gz) of images"
LARGEST_FILE = 1 << 28  # bytes of one image in a zip, unpacked
LARGEST_SIDE = 1 << 14  # pixels of an image in an array
CACHE_FORMAT = "eigenlens.data/1"
HEADER = 128  # bytes before the images in the cache, for every number of images


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training images, decoded."""

    images: np.ndarray
    """uint8 [n, resolution, resolution, channels], mapped from a file."""
    name: str
    """What runs are called after: the name of the file or folder."""
    sha256: str
    """Of the images' bytes: what a resumed run compares."""
    skipped: tuple[str, ...] = ()
    """Images that could not be read, with the reason."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class _Source:
    """A source that has been looked at but not decoded."""

    n: int
    items: Callable[[], Iterator[tuple[str, np.ndarray | Exception]]]
    """Gives name and uint8 [resolution, resolution, channels] of each image, or why it could not be read."""


def open_dataset(
    source: str | Path,
    *,
    resolution: int,
    channels: int,
    cache: str | Path,
    log: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Open training images, decoding them into `cache` unless an unchanged source has been decoded there before.

    Images are cut to their centred square and resized without aliasing; smaller ones are enlarged.

    Args:
        source: a folder (nested ones too) or a zip of images; `.npz` with an array `images`, or with one array that can
            be images; `.npy`; an idx file of images, also gzipped, or the folder of MNIST that holds one.
        resolution: side of the images in pixels.
        channels: 1 (grey) or 3 (RGB).
        cache: folder for the decoded images; one file for each source, resolution and channels.
        log: is told of broken images, which are skipped.

    Raises:
        UserError: where the source is missing, empty, unreadable or of another kind, or holds one image only.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist; {ALLOWED}")
    name = path.absolute().name.split(".")[0] or "data"  # a link is called as the user calls it
    path = path.resolve()
    path = next((path / file for file in IDX_FILES if path.is_dir() and (path / file).is_file()), path)
    place = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    file = Path(cache) / f"{name}-{place}-{resolution}px-{channels}c.npy"
    files = _image_files(path) if path.is_dir() else [path]
    key = _fingerprint(path, files)
    about = _read_about(file)
    if about.get("key") != key:
        about = _decode_all(_look_at(path, files, resolution, channels), file, (resolution, resolution, channels), log)
        about["key"] = key
        write_json(_about_file(file), about, force=True)
    images = np.load(file, mmap_mode="r", allow_pickle=False)
    return Dataset(images, name, about["sha256"], tuple(about["skipped"]))


def batch_indices(n: int, batch: int, step: int, *, seed: int) -> np.ndarray:
    """Return which images step `step` sees, [batch]: every epoch is a permutation that (seed, epoch) fixes.

    A batch may end one epoch and begin the next. Nothing depends on what was drawn before, so a resumed run and a run
    on more processes see the same images.

    Example:
        >>> sorted(int(i) for step in range(3) for i in batch_indices(6, 2, step, seed=0))
        [0, 1, 2, 3, 4, 5]
    """
    places = np.arange(step * batch, (step + 1) * batch)
    epochs, offsets = np.divmod(places, n)
    indices = np.empty(batch, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        order = runtime.generator_for(seed, "data", epoch).permutation(n)
        here = epochs == epoch
        indices[here] = order[offsets[here]]
    return indices


def gather(images: np.ndarray, indices: np.ndarray, flips: np.ndarray | None = None) -> Tensor:
    """Return images `indices` as float32 [batch, channels, height, width] in [-1, 1], channels-last in memory.

    Args:
        images: uint8 [n, height, width, channels].
        indices: [batch].
        flips: bool [batch]: which to mirror.
    """
    chosen = images[indices]  # [batch, height, width, channels]
    if flips is not None:
        chosen[flips] = chosen[flips, :, ::-1]
    return torch.from_numpy(chosen).float().mul_(1 / 127.5).sub_(1).permute(0, 3, 1, 2)


# --- the cache --------------------------------------------------------------------------------------------------------


def _about_file(file: Path) -> Path:
    return file.with_suffix(".json")


def _read_about(file: Path) -> dict[str, Any]:
    """Return what stands beside a cached array; nothing where either is missing or was cut off."""
    try:
        about = json.loads(_about_file(file).read_text("utf-8"))
        size = HEADER + math.prod(about["shape"])
        return about if about["format"] == CACHE_FORMAT and file.stat().st_size == size else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _fingerprint(path: Path, files: list[Path]) -> str:
    """Return a digest that changes where a file is added, removed, renamed, resized or written again."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        line = f"{file.relative_to(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the header of a `.npy` of bytes, as long for every shape, so that the count may be written last."""
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape})
    body = text.ljust(HEADER - 11).encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


def _decode_all(source: _Source, file: Path, shape: tuple[int, ...], log: Callable[[str], None]) -> dict[str, Any]:
    """Decode a source into `file`, whole or not at all, and return what to write beside it."""
    digest, skipped, n = hashlib.sha256(), [], 0
    _about_file(file).unlink(missing_ok=True)
    with written_beside(file, force=True) as beside, open(beside, "wb") as out:
        out.write(_npy_header((0, *shape)))
        for name, image in runtime.progress(source.items(), total=source.n, what="decoding", unit="image"):
            if isinstance(image, Exception):
                reason = " ".join(str(image).split()) or type(image).__name__
                skipped.append(reason if reason.startswith(name) else f"{name}: {reason}")
                log(f"skipped {skipped[-1]}")
                continue
            raw = np.ascontiguousarray(image).tobytes()
            digest.update(raw)
            out.write(raw)
            n += 1
        if skipped:
            log(f"skipped {len(skipped)} of {source.n} images that could not be read")
        if n < 2:
            first = f"; the first reason: {skipped[0]}" if skipped else ""
            raise UserError(f"{n} readable images are too few to learn from; give 2 or more, better thousands{first}")
        out.seek(0)
        out.write(_npy_header((n, *shape)))
        out.flush()
    return {"format": CACHE_FORMAT, "shape": [n, *shape], "sha256": digest.hexdigest(), "skipped": skipped}


# --- the kinds of sources ---------------------------------------------------------------------------------------------


def _look_at(path: Path, files: list[Path], resolution: int, channels: int) -> _Source:
    """Find out what a path holds."""
    if path.is_dir():
        if not files:
            raise UserError(f"{path} holds no images ({', '.join(SUFFIXES)}), nor do its folders; {ALLOWED}")
        names = [str(file.relative_to(path)) for file in files]
        return _encoded(names, lambda i: files[i].read_bytes(), resolution, channels)
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"\x93NUMPY"):
        return _array(path, lambda: open(path, "rb"), resolution, channels)
    if start.startswith(b"PK"):
        return _zip(path, resolution, channels)
    if start.startswith((b"\x1f\x8b", b"\0\0\x08")):
        return _idx(path, resolution, channels)
    if path.suffix.lower() in SUFFIXES:
        raise UserError(f"{path} is one single image, too few to learn from; give its folder; {ALLOWED}")
    raise UserError(f"{path} is of no known kind; {ALLOWED}")


def _image_files(folder: Path) -> list[Path]:
    """Return the images in a folder and below it, sorted; hidden ones are left out."""
    files = sorted(folder.rglob("*"))
    return [f for f in files if _is_image(f.relative_to(folder).as_posix()) and f.is_file()]


def _is_image(name: str) -> bool:
    """Tell whether a file is an image by its name; hidden files and what macOS adds to zips are none."""
    hidden = any(piece.startswith((".", "__MACOSX")) and piece != ".." for piece in name.split("/"))
    return Path(name).suffix.lower() in SUFFIXES and not hidden


def _encoded(names: list[str], read: Callable[[int], bytes], resolution: int, channels: int) -> _Source:
    """Read image files, several at a time."""

    def one(i: int) -> tuple[str, np.ndarray | Exception]:
        try:
            picture = open_image(names[i], read(i))
            return names[i], centre_crop_resize(picture, resolution, channels)
        except Exception as error:  # decoders of broken bytes raise nearly anything
            return names[i], error

    def items() -> Iterator[tuple[str, np.ndarray | Exception]]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without the interpreter's lock
            for start, stop in runtime.batches(len(names), 256):
                yield from pool.map(one, range(start, stop))

    return _Source(len(names), items)


def _zip(path: Path, resolution: int, channels: int) -> _Source:
    """Read a zip: of arrays (`.npz`) or of images."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is a broken zip: {error}; make or fetch it again") from error
    members = [m for m in archive.infolist() if not m.is_dir()]
    if path.suffix.lower() == ".npz" or (members and all(m.filename.endswith(".npy") for m in members)):
        member = _array_member(path, archive, members)
        return _array(path, lambda: archive.open(member), resolution, channels)
    members = sorted((m for m in members if _is_image(m.filename)), key=lambda m: m.filename)
    if not members:
        raise UserError(f"{path} holds no images ({', '.join(SUFFIXES)}); {ALLOWED}")

    def read(i: int) -> bytes:
        if members[i].file_size > LARGEST_FILE:
            raise UserError(f"it claims {members[i].file_size:,} bytes, more than {LARGEST_FILE:,}")
        with archive.open(members[i]) as file:
            return file.read(LARGEST_FILE)

    return _encoded([m.filename for m in members], read, resolution, channels)


def _array_member(path: Path, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    """Choose the array of an `.npz` that holds the images: `images`, or the only one that can."""
    found, headers = [], {}
    for member in members:
        with archive.open(member) as file:
            headers[member.filename] = _array_header(path, file)
        shape, dtype = headers[member.filename]
        if member.filename == "images.npy":
            return member
        if dtype == np.uint8 and len(shape) in (3, 4):
            found.append(member)
    if len(found) == 1:
        return found[0]
    held = ", ".join(f"{name.removesuffix('.npy')} {dtype} {list(shape)}" for name, (shape, dtype) in headers.items())
    raise UserError(
        f"{path} must hold one array `images`, uint8 [n, height, width, channels]; it holds {held or 'none'}"
    )


def _array_header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Read shape and type of a `.npy` stream, and leave it at the first value."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:  # a broken header fails in the decompressor, the tokenizer or the parser
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is no readable array: {reason}; save it with numpy.save") from error
    if fortran and len(shape) > 1:
        raise UserError(f"{path} stores its array in Fortran order; save numpy.ascontiguousarray(images)")
    return shape, dtype


def _array(path: Path, opened: Callable[[], IO[bytes]], resolution: int, channels: int) -> _Source:
    """Read an array of images from a stream, image by image."""
    with opened() as file:
        shape, dtype = _array_header(path, file)
    if dtype.hasobject:
        raise UserError(f"{path} holds Python objects, which may run code and are never loaded; save a uint8 array")
    if dtype != np.uint8:
        raise UserError(f"{path} holds {dtype}; images are uint8 from 0 to 255: convert them and save again")
    planes = shape[3] if len(shape) == 4 else 1
    if len(shape) not in (3, 4) or planes not in (1, 3):
        raise UserError(
            f"{path} holds an array of shape {list(shape)}; images are [n, height, width] or [n, height, width, 1 or 3]"
        )

    def after_header() -> IO[bytes]:
        file = opened()
        _array_header(path, file)
        return file

    return _frames(path, after_header, (*shape[:3], planes), resolution, channels)


def _idx(path: Path, resolution: int, channels: int) -> _Source:
    """Read an idx file, the format of MNIST and its kin: big-endian sizes, then bytes."""

    def opened() -> IO[bytes]:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        return gzip.open(path, "rb") if zipped else open(path, "rb")  # type: ignore[return-value]

    try:
        with opened() as file:
            magic, *shape = struct.unpack(">4i", file.read(16))
    except (OSError, EOFError, struct.error) as error:
        raise UserError(f"{path} is no readable idx file: {error}; {ALLOWED}") from error
    if magic == 0x801:
        raise UserError(f"{path} holds labels; give the file of images, such as {IDX_FILES[0]}")
    if magic != 0x803 or min(shape) < 0:
        raise UserError(f"{path} is no idx file of images (it begins with {magic:#010x}, not 0x00000803); {ALLOWED}")

    def after_header() -> IO[bytes]:
        file = opened()
        file.read(16)
        return file

    return _frames(path, after_header, (shape[0], shape[1], shape[2], 1), resolution, channels)


def _frames(
    path: Path, opened: Callable[[], IO[bytes]], shape: tuple[int, ...], resolution: int, channels: int
) -> _Source:
    """Cut a stream of bytes into images of `shape[1:]`, (height, width, planes)."""
    n, height, width, planes = shape
    if not (0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE):
        raise UserError(f"{path} holds images of {height} x {width} pixels; allowed: 1 to {LARGEST_SIDE} a side")

    def items() -> Iterator[tuple[str, np.ndarray | Exception]]:
        with opened() as file:
            for i in range(n):
                raw = file.read(height * width * planes)
                if len(raw) < height * width * planes:
                    raise UserError(f"{path} ends in image {i} of {n}; it was cut off, make or fetch it again")
                frame = np.frombuffer(raw, np.uint8).reshape(height, width, planes)
                if (height, width, planes) != (resolution, resolution, channels):
                    picture = Image.fromarray(frame[..., 0] if planes == 1 else frame)
                    frame = centre_crop_resize(picture, resolution, channels)
                yield f"image {i}", frame

    return _Source(n, items)
