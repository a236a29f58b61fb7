"""Training images: every kind of source, the cache, hostile and broken files, and the order in which images come."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eigenlens.errors import UserError
from eigenlens.training import data as training_data
from eigenlens.training.data import batch_indices, gather, open_dataset


def pictures(n: int = 5, size: int = 16, channels: int = 3) -> np.ndarray:
    """Make n flat pictures that differ from each other, uint8 [n, size, size, channels]."""
    values = np.random.default_rng(0).integers(0, 256, (n, 1, 1, channels), np.uint8)
    return np.broadcast_to(values, (n, size, size, channels)).copy()


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(file, "PNG")
    return file.getvalue()


def idx(array: np.ndarray) -> bytes:
    return struct.pack(">4i", 0x803, *array.shape[:3]) + array.tobytes()


def write_folder(place: Path, images: np.ndarray) -> Path:
    for i, image in enumerate(images):
        file = place / f"part{i % 2}" / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
    return place


def opened(source: Path, cache: Path, **options):
    return open_dataset(source, resolution=16, channels=3, cache=cache, **options)


@pytest.mark.parametrize("kind", ["folder", "zip", "npz", "npz-only-array", "npz-packed", "npy"])
def test_every_kind_gives_the_same_images(kind, tmp_path):
    images = pictures()
    source = tmp_path / f"set.{kind[:3]}"
    if kind == "folder":
        source = write_folder(tmp_path / "set", images)
        (source / "labels.csv").write_text("not an image")
        (source / ".hidden.png").write_bytes(b"junk")
    elif kind == "zip":
        with zipfile.ZipFile(source, "w") as archive:
            for i, image in enumerate(images):
                archive.writestr(f"deep/{i}.png", png(image))
            archive.writestr("__MACOSX/deep/._0.png", b"junk")
    elif kind == "npz-only-array":
        np.savez(source, pixels=images, labels=np.arange(5))
    elif kind == "npz-packed":
        np.savez_compressed(source, images=images, masks=images)
    elif kind == "npz":
        np.savez(source, masks=images, images=images)
    else:
        np.save(source, images)
    data = opened(source, tmp_path / "cache")
    assert sorted(map(bytes, data.images[:, 0, 0])) == sorted(map(bytes, images[:, 0, 0]))
    assert data.images.shape == (5, 16, 16, 3)
    assert data.name == "set"
    assert isinstance(data.images, np.memmap)


@pytest.mark.parametrize("where", ["file", "gz", "folder"])
def test_idx_is_enlarged_to_the_resolution(where, tmp_path):
    digits = np.zeros((3, 28, 28), np.uint8)
    digits[1, :, 14:] = 255
    (tmp_path / "mnist").mkdir()
    name = "train-images-idx3-ubyte" + ("" if where == "file" else ".gz")
    file = tmp_path / "mnist" / name
    file.write_bytes(idx(digits) if where == "file" else gzip.compress(idx(digits)))
    data = open_dataset(file.parent if where == "folder" else file, resolution=32, channels=1, cache=tmp_path / "cache")
    assert data.images.shape == (3, 32, 32, 1)
    assert data.images[1, 16, 2, 0] == 0
    assert data.images[1, 16, 29, 0] == 255
    assert not data.images[0].any()
    assert data.name == ("mnist" if where == "folder" else "train-images-idx3-ubyte")


def test_pictures_are_cut_to_their_centred_square(tmp_path):
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 200
    (tmp_path / "set").mkdir()
    for i in range(2):
        (tmp_path / "set" / f"{i}.png").write_bytes(png(wide))
    assert (opened(tmp_path / "set", tmp_path / "cache").images == 200).all()


def test_unchanged_source_is_not_decoded_again_and_a_changed_one_is(tmp_path, monkeypatch):
    decoded = []
    real = training_data._decode_all
    monkeypatch.setattr(training_data, "_decode_all", lambda *given: decoded.append(1) or real(*given))
    source = write_folder(tmp_path / "set", pictures())
    first = opened(source, tmp_path / "cache")
    before = first.images.copy()
    again = opened(source, tmp_path / "cache")
    assert (len(decoded), again.sha256) == (1, first.sha256)

    (source / "part0" / "004.png").write_bytes(png(pictures(6)[5]))
    os.utime(source / "part0" / "004.png", ns=(0, 12345))
    changed = opened(source, tmp_path / "cache")
    assert len(decoded) == 2
    assert changed.sha256 != first.sha256
    assert [i for i in range(5) if (changed.images[i] != before[i]).any()] == [2]  # part0/004.png comes third
    np.testing.assert_array_equal(first.images, before)  # the old map still reads its own bytes

    (source / "part0" / "004.png").unlink()
    assert len(opened(source, tmp_path / "cache")) == 4
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


@pytest.mark.parametrize("fault", ["array cut", "note missing"])
def test_half_written_cache_is_decoded_again(fault, tmp_path):
    source = write_folder(tmp_path / "set", pictures())
    first = opened(source, tmp_path / "cache")
    file = next((tmp_path / "cache").glob("*.npy"))
    if fault == "array cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        file.with_suffix(".json").unlink()
    assert opened(source, tmp_path / "cache").sha256 == first.sha256


def test_pictures_are_read_as_everywhere_else(tmp_path, monkeypatch):
    """No program is run for one, whatever it is called, and 16 bits are 16 bits."""
    source = write_folder(tmp_path / "set", pictures(2))
    (source / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n")
    wide = np.repeat(np.array([[0, 31611, 65535]], ">u2"), 3, axis=0)
    (source / "z.pgm").write_bytes(b"P5 3 3 65535\n" + wide.tobytes())
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: pytest.fail("a program was run"))
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: pytest.fail("a program was run"))
    data = open_dataset(source, resolution=3, channels=1, cache=tmp_path / "cache")
    assert len(data) == 3
    assert data.skipped[0].startswith("x.png is not an image in a known format")
    assert data.images[-1][0, :, 0].tolist() == [0, 123, 255]


def test_broken_images_are_named_skipped_and_counted(tmp_path):
    source = write_folder(tmp_path / "set", pictures(4))
    (source / "broken.png").write_bytes(png(pictures(1)[0])[:40])
    (source / "text.jpg").write_text("no image")
    said: list[str] = []
    data = opened(source, tmp_path / "cache", log=said.append)
    assert len(data) == 4
    assert any("broken.png" in line for line in said)
    assert any("text.jpg" in line for line in said)
    assert said[-1] == "skipped 2 of 6 images that could not be read"
    assert len(opened(source, tmp_path / "cache").skipped) == 2  # the cache remembers


def fortran(place: Path) -> Path:
    np.save(place / "a.npy", np.asfortranarray(pictures()))
    return place / "a.npy"


def objects(place: Path) -> Path:
    np.save(place / "a.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    return place / "a.npy"


def objects_npz(place: Path) -> Path:
    np.savez(place / "a.npz", images=np.array([{"a": 1}], dtype=object))
    return place / "a.npz"


def saved(array: np.ndarray):
    def make(place: Path) -> Path:
        np.save(place / "a.npy", array)
        return place / "a.npy"

    return make


def written(name: str, content: bytes):
    def make(place: Path) -> Path:
        (place / name).write_bytes(content)
        return place / name

    return make


def empty_folder(place: Path) -> Path:
    (place / "empty").mkdir()
    return place / "empty"


def bomb(place: Path) -> Path:
    """Write a zip whose image claims more bytes than any image has."""
    with zipfile.ZipFile(place / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * 5000)
        archive.writestr("b.png", b"\0" * 5000)
    return place / "a.zip"


BAD = {
    "wrong path": (lambda place: place / "nowhere", "does not exist"),
    "empty folder": (empty_folder, "holds no images"),
    "one image": (written("a.png", png(pictures(1)[0])), "one single image"),
    "one image in a folder": (lambda place: write_folder(place / "one", pictures(1)), "too few"),
    "all broken": (lambda place: written("x.png", b"junk")(place).parent, "too few to learn from.*x.png"),
    "unknown kind": (written("a.txt", b"hello, this is text"), "no known kind"),
    "objects": (objects, "Python objects"),
    "objects in npz": (objects_npz, "Python objects"),
    "floats": (saved(np.zeros((4, 16, 16, 3))), "float64.*uint8"),
    "channels first": (saved(np.zeros((4, 3, 16, 16), np.uint8)), r"\[4, 3, 16, 16\]"),
    "fortran order": (fortran, "ascontiguousarray"),
    "npy header broken": (written("a.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': __import__"), "no readable array"),
    "zip broken": (written("a.zip", b"PK\x03\x04junk"), "broken zip"),
    "zip bomb": (bomb, "claims 5,000 bytes"),
    "idx labels": (written("a", struct.pack(">2i", 0x801, 4) + bytes(12)), "holds labels"),
    "idx cut off": (written("a", struct.pack(">4i", 0x803, 9, 16, 16) + bytes(256 * 3)), "ends in image 3 of 9"),
    "idx of monsters": (written("a", struct.pack(">4i", 0x803, 9, 2**30, 2**30)), "1073741824 x 1073741824"),
    "gzip broken": (written("a.gz", b"\x1f\x8b\x08junkjunkjunk"), "no readable idx"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sources_are_one_line(case, tmp_path, monkeypatch):
    monkeypatch.setattr(training_data, "LARGEST_FILE", 4000)
    make, expected = BAD[case]
    source = make(tmp_path)
    with pytest.raises(UserError, match=expected) as caught:
        opened(source, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*.npy*"))  # nothing half-made stays


def test_two_arrays_that_could_be_images_are_not_guessed_between(tmp_path):
    np.savez(tmp_path / "a.npz", day=pictures(), night=pictures())
    with pytest.raises(UserError, match=r"must hold one array `images`.*day uint8 \[5, 16, 16, 3\]"):
        opened(tmp_path / "a.npz", tmp_path / "cache")


def test_zip_members_never_reach_the_disk(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i, image in enumerate(pictures(3)):
            archive.writestr(f"../../escaped{i}.png", png(image))
    before = set(tmp_path.rglob("*"))
    assert len(opened(tmp_path / "a.zip", tmp_path / "cache")) == 3
    made = set(tmp_path.rglob("*")) - before
    assert {p.suffix for p in made if p.is_file()} == {".npy", ".json"}


# --- order ------------------------------------------------------------------------------------------------------------


def test_each_epoch_shows_every_image_once_in_another_order():
    shown = np.concatenate([batch_indices(10, 4, step, seed=3) for step in range(5)])
    epochs = shown.reshape(2, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()
    other = np.concatenate([batch_indices(10, 4, step, seed=4) for step in range(5)])
    assert (shown != other).any()


def test_batches_larger_than_the_set_go_round():
    assert np.bincount(batch_indices(3, 7, 0, seed=0), minlength=3).min() >= 2


def test_gather_gives_floats_and_mirrors_where_asked():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[:, :, 0] = 255
    batch = gather(images, np.array([1, 0]), np.array([True, False]))
    assert (batch.shape, batch.dtype) == ((2, 3, 4, 4), torch.float32)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert batch[0, 0, 0].tolist() == [-1, -1, -1, 1]
    assert batch[1, 0, 0].tolist() == [1, -1, -1, -1]
    assert images[:, :, 0].min() == 255  # the source is left alone
