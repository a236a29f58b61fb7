"""Hostile, broken and foreign files: one clear line each, and nothing runs, explodes or hangs."""

from __future__ import annotations

import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_safetensors

import hostile
from eigenlens.checkpoint import read_checkpoint
from eigenlens.errors import UserError

PATIENCE = 10.0  # seconds of the processor for one file


def refused(path: Path) -> str:
    """Return the one line with which a file is refused."""
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    line = str(caught.value)
    assert time.process_time() - start < PATIENCE
    assert line.isprintable(), line  # one line, and nothing in it that moves a terminal's cursor
    assert path.name in line
    assert len(line) < 600
    return line


def reads_or_refuses(path: Path, data: bytes) -> bool:
    """Read a damaged file; anything but a checkpoint or a `UserError` fails the test that asks."""
    path.write_bytes(data)
    start, line = time.process_time(), None
    try:
        read_checkpoint(path)
    except UserError as error:
        line = str(error)
    assert time.process_time() - start < PATIENCE
    assert line is None or line.isprintable()
    return line is None


# --- nothing runs -----------------------------------------------------------------------------------------------------


def test_the_hostile_pickles_are_live(tmp_path: Path) -> None:
    # Otherwise the next test would pass with a reader that runs everything.
    for name in ("reduce", "reduce-exec", "getattr-chain", "memo-indirection", "partial-chain", "instance", "object"):
        canary = tmp_path / name
        pickle.loads(hostile.whole(hostile.live_bodies(canary)[name], 4))
        assert canary.exists(), name


@pytest.mark.parametrize("container", hostile.CONTAINERS)
@pytest.mark.parametrize("group", ["live_bodies", "asking_bodies", "odd_bodies"])
def test_no_pickle_runs_anything_in_any_container(tmp_path: Path, container: str, group: str) -> None:
    canary = tmp_path / "canary"
    bodies = hostile.live_bodies(canary) if group == "live_bodies" else getattr(hostile, group)()
    for name, body in bodies.items():
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(hostile.CONTAINERS[container](body))
        refused(path)
        assert not canary.exists(), name
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pkl"] * len(bodies)  # no patch file, no canary


def test_the_refusal_says_what_the_file_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(hostile.whole(hostile.live_bodies(tmp_path / "x")["reduce"], 4))
    line = refused(path)
    assert line.startswith(f"cannot read {path}: it asks for os.system, and nothing but weights and settings is read")
    assert "safetensors or a plain state dict" in line


def test_a_reader_never_imports_what_a_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for container in hostile.CONTAINERS.values():
        (tmp_path / "a.pkl").write_bytes(container(hostile.called(hostile.named("planted_module", "f"))))
        refused(tmp_path / "a.pkl")
    assert "planted_module" not in sys.modules


def test_something_after_the_end_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hostile_part = hostile.whole(hostile.live_bodies(canary)["reduce"], 4)
    honest = {"weight": torch.ones(3)}
    files = {
        "pickle": hostile.nvidia_pickle(), "legacy": hostile.torch_file(honest, legacy=True),
        "zip": hostile.torch_file(honest), "inner": hostile.whole(hostile.table(G=hostile.inner_storage(
            hostile.torch_legacy(hostile.storage_id(1, view=b"N"), {"0": (1, bytes(4))}) + hostile_part)), 4),
    }  # fmt: skip
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data + (hostile_part if name != "inner" else b""))
        refused(path)
    assert not canary.exists()


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", hostile.false_tensors())
def test_tensors_stay_inside_their_storage(tmp_path: Path, name: str) -> None:
    refused_by = []
    for none, write in ((b"", hostile.torch_zip), (b"N", hostile.torch_legacy)):
        body = hostile.false_tensors(none)[name]
        storage = {"0": bytes(64) if write is hostile.torch_zip else (16, bytes(64))}
        path = tmp_path / f"{write.__name__}.pt"
        path.write_bytes(write(body, storage))  # type: ignore[operator]
        refused_by.append(refused(path))
    assert not any("torch refuses" in line for line in refused_by)  # known before torch allocates


def test_the_false_tensors_differ_from_a_true_one_in_their_claims_alone(tmp_path: Path) -> None:
    shape, stride = hostile.numbers(4, 4), hostile.numbers(4, 1)
    body = hostile.tensor_in(hostile.storage_id(16), 0, shape, stride)
    old = hostile.tensor_in(hostile.storage_id(16, view=b"N"), 0, shape, stride)
    numbers = np.arange(16, dtype=np.float32).tobytes()
    assert reads_or_refuses(tmp_path / "a.pt", hostile.torch_zip(body, {"0": numbers}))
    assert reads_or_refuses(tmp_path / "b.pt", hostile.torch_legacy(old, {"0": (16, numbers)}))
    view = hostile.tupled(hostile.text("v"), hostile.number(8), hostile.number(8))
    part = hostile.tensor_in(hostile.storage_id(16, view=view), 0, hostile.numbers(8), hostile.numbers(1))
    assert reads_or_refuses(tmp_path / "c.pt", hostile.torch_legacy(part, {"0": (16, numbers)}))
    assert read_checkpoint(tmp_path / "c.pt").content[""].tolist() == list(range(8, 16))


BOMB_READER = """
import resource, sys, time, torch
from pathlib import Path
from eigenlens.checkpoint import read_checkpoint
from eigenlens.errors import UserError
torch.set_num_threads(1)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
folder = Path(sys.argv[1])
read_checkpoint(folder / "honest")
for path in sorted(folder.iterdir()):
    before, start = peak(), time.process_time()
    try:
        read_checkpoint(path)
        print(path.name, "READ", peak() - before, time.process_time() - start)
    except UserError:
        print(path.name, "REFUSED", peak() - before, time.process_time() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is in other units elsewhere")
def test_bombs_cost_little_memory_and_time(tmp_path: Path) -> None:
    # In a process of its own: a bomb that works may end it, and the peak of memory never falls again.
    (tmp_path / "honest").write_bytes(hostile.nvidia_pickle())
    for name, body in hostile.bombs().items():
        (tmp_path / f"{name}.pickle").write_bytes(hostile.CONTAINERS["pickle"](body))
        if len(body) < 10_000 or name.startswith("repeated"):
            (tmp_path / f"{name}.zip").write_bytes(hostile.torch_zip(body))
    (tmp_path / "laughs.xml").write_bytes(XMLS["billion-laughs"])
    (tmp_path / "laughs.bin").write_bytes(b"0000")
    (tmp_path / "deflated.pt").write_bytes(deflated_bomb())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", BOMB_READER, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == len(list(tmp_path.iterdir()))
    for name, verdict, megabytes, seconds in lines:
        assert verdict == ("READ" if name == "honest" else "REFUSED"), name
        assert float(megabytes) < 64, name  # the files have less than 1 MB each
        assert float(seconds) < PATIENCE, name


# --- archives ---------------------------------------------------------------------------------------------------------


def deflated_bomb() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        size = 1 << 24
        body = hostile.tensor_in(hostile.storage_id(size // 4), 0, hostile.numbers(size // 4), hostile.numbers(1))
        archive.writestr("archive/data.pkl", hostile.whole(body))
        archive.writestr("archive/data/0", bytes(size))
    return buffer.getvalue()


def archive_of(*members: tuple[str, bytes]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def changed(data: bytes, old: bytes, new: bytes) -> bytes:
    """Replace one occurrence from the end, in the directory of an archive, keeping all offsets."""
    assert len(old) == len(new)
    at = data.rindex(old)
    return data[:at] + new + data[at + len(new) :]


def with_flags(data: bytes, flags: int) -> bytes:
    at = data.index(b"PK\x01\x02") + 8
    return data[:at] + struct.pack("<H", flags) + data[at + 2 :]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_two_readers_could_read_differently_are_refused(tmp_path: Path) -> None:
    honest = hostile.torch_file({"w": torch.ones(3)})
    pickled, evil = hostile.whole(b"}"), hostile.whole(hostile.live_bodies(tmp_path / "canary")["reduce"])
    files = {
        "second data.pkl": archive_of(("a/data.pkl", pickled), ("a/data.pkl", evil)),
        "second folder": archive_of(("a/data.pkl", pickled), ("b/data.pkl", evil)),
        "no data.pkl": archive_of(("word/document.xml", b"<w/>")),
        "npz": archive_of(("arr_0.npy", b"\x93NUMPY")),
        "torchscript": archive_of(("m/data.pkl", pickled), ("m/constants.pkl", pickled), ("m/code/a.py", b"")),
        "deflated": deflated_bomb(),
        "encrypted": with_flags(honest, 0x809),
        "something before": b"PK\x03\x04" + bytes(60) + honest,
        "something after": honest + bytes(8),
        "two names": changed(honest, b"archive/data.pkl", b"archive/data.pkx"),
        "empty archive": b"PK\x03\x04" + bytes(10) + b"PK\x05\x06" + bytes(18),
    }
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        line = refused(path)
        assert "torch refuses" not in line, name
    assert not (tmp_path / "canary").exists()


# --- files of other kinds ---------------------------------------------------------------------------------------------

FOREIGN = {
    "empty": (b"", "it is empty"),
    "photo.pt": (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(100), "a JPEG picture"),
    "picture.png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG picture"),
    "notes.txt": (b"just some text, nothing else", "no known kind"),
    "bytes": (bytes(1000), "no known kind"),
    "keras.h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5 file"),
    "net.onnx": (b"\x08\x07\x12\x07pytorch" + bytes(50), "ONNX graph"),
    "renamed": (b"\x08\x07\x12\x07pytorch" + bytes(50), "ONNX graph"),
    "packed.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "a 7z archive; unpack it"),
    "packed.gz": (b"\x1f\x8b\x08" + bytes(100), "a gzip archive; unpack it"),
    "array.npy": (b"\x93NUMPY\x01\x00" + bytes(100), "a numpy array"),
    "page.pt": (b"<!doctype html><html>", "a web page in place of the file"),
    "pointer.pt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "old.pkl": (b"cos\nsystem\n(S'true'\ntR.", "no known kind"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_kinds_are_named(tmp_path: Path, name: str) -> None:
    data, said = FOREIGN[name]
    (tmp_path / name).write_bytes(data)
    assert said in refused(tmp_path / name)


def test_tar_files_pipes_devices_and_missing_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    assert "a tar archive; unpack it" in refused(tmp_path / "a.tar")
    assert "No such file" in refused(tmp_path / "missing.pt")
    with pytest.raises(UserError, match="not a path of a file"):
        read_checkpoint(f"{tmp_path}/a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pt")
        assert "a pipe or a device" in refused(tmp_path / "pipe.pt")
        assert "a pipe or a device" in refused(Path(os.devnull))


def test_a_bin_file_of_a_network_leads_to_its_xml(tmp_path: Path) -> None:
    (tmp_path / "net.xml").write_bytes(hostile.network_xml())
    assert "its numbers are missing: net.bin" in refused(tmp_path / "net.xml")
    (tmp_path / "net.bin").write_bytes(hostile.network_bin())
    assert "net.xml" in refused(tmp_path / "net.bin")


def test_settings_that_are_not_a_table_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(hostile.torch_file({"w": torch.ones(2)}))
    for settings in (b"[1]", b"{", b"\xff\xfe", b'{"a":' * 100_000, b"1" * 10_000):
        (tmp_path / "x_config.json").write_bytes(settings)
        assert "x_config.json" in refused(path)


# --- safetensors and XML ----------------------------------------------------------------------------------------------


def entry(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}}


SAFETENSORS = {
    "offsets-outside": hostile.safetensors_bytes(entry(shape=[8], data_offsets=[0, 32]), bytes(16)),
    "offsets-negative": hostile.safetensors_bytes(entry(data_offsets=[-16, 0]), bytes(16)),
    "offsets-turned": hostile.safetensors_bytes(entry(data_offsets=[16, 0]), bytes(16)),
    "shape-terabytes": hostile.safetensors_bytes(entry(shape=[1 << 40]), bytes(16)),
    "shape-overflow": hostile.safetensors_bytes(entry(shape=[1 << 47] * 4, data_offsets=[0, 0]), bytes(16)),
    "shape-of-text": hostile.safetensors_bytes(entry(shape="4"), bytes(16)),
    "no-shape": hostile.safetensors_bytes({"a": {}}, bytes(16)),
    "type-unknown": hostile.safetensors_bytes(entry(dtype="PICKLE"), bytes(16)),
    "type-list": hostile.safetensors_bytes(entry(dtype=[]), bytes(16)),
    "a-gap": hostile.safetensors_bytes(entry(data_offsets=[16, 32]), bytes(32)),
    "metadata-numbers": hostile.safetensors_bytes({**entry(), "__metadata__": {"n": 3}}, bytes(16)),
    "deep": hostile.safetensors_bytes(b'{"a":' * 100_000),
    "not-json": hostile.safetensors_bytes(b"{'a': 3}"),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_broken_safetensors(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.safetensors").write_bytes(SAFETENSORS[name])
    refused(tmp_path / f"{name}.safetensors")


LAUGHS = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(10))
XMLS = {
    "billion-laughs": f'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY l0 "ha">{LAUGHS}]><net>&l10;</net>'.encode(),
    "external-entity": b'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd">]><net>&x;</net>',
    "utf-16-doctype": '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE net [<!ENTITY a "b">]><net/>'.encode("utf-16"),
    "doctype-alone": b'<?xml version="1.0"?><!DOCTYPE net SYSTEM "http://127.0.0.1/x.dtd"><net/>',
    "other-root": b'<?xml version="1.0"?><svg/>',
    "deep": b"<net>" + b"<a>" * 100_000,
    "cut": hostile.network_xml()[:200],
    "no-id": hostile.network_xml().replace(b'layer id="0"', b"layer"),
    "id-not-a-number": hostile.network_xml().replace(b'layer id="0"', b'layer id="x"'),
    "offset-outside": hostile.network_xml(offset=8),
    "offset-negative": hostile.network_xml(offset=-4),
    "offset-huge": hostile.network_xml(offset=1 << 70),
    "size-wrong": hostile.network_xml(size=20),
    "shape-terabytes": hostile.network_xml(size=4 << 50).replace(b"2, 3", b"1125899906842624"),
    "shape-negative": hostile.network_xml().replace(b"2, 3", b"-2, -3"),
    "type-unknown": hostile.network_xml().replace(b'"f32" shape="2', b'"u4" shape="2'),
}


@pytest.mark.parametrize("name", XMLS)
def test_broken_and_hostile_networks(tmp_path: Path, name: str) -> None:
    (tmp_path / "net.xml").write_bytes(XMLS[name])
    (tmp_path / "net.bin").write_bytes(hostile.network_bin())
    line = refused(tmp_path / "net.xml")
    assert ("document type" in line) == ("DOCTYPE" in XMLS[name].decode("utf-16" if "utf-16" in name else "latin-1"))


def test_many_constants_of_one_place_are_not_copied_without_end(tmp_path: Path) -> None:
    place = b'<data element_type="u8" shape="65536" offset="0" size="65536"/>'
    layer = b'<layer id="1" name="w" type="Const">' + place + b"</layer>"
    (tmp_path / "net.xml").write_bytes(b"<net><layers>" + layer * 1000 + b"</layers></net>")
    (tmp_path / "net.bin").write_bytes(bytes(1 << 16))
    assert "more bytes than it holds" in refused(tmp_path / "net.xml")


# --- cuts and flips ---------------------------------------------------------------------------------------------------


def small_tree() -> dict[str, object]:
    weights = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(3)}
    return {"g_ema": weights, "loss": np.float64(3), "step": 4}


SMALL: dict[str, Callable[[], bytes]] = {
    "nvidia": hostile.nvidia_pickle,
    "tensorflow": hostile.tf_pickle,
    "torch-zip": lambda: hostile.torch_file(small_tree()),
    "torch-legacy": lambda: hostile.torch_file(small_tree(), legacy=True),
    "safetensors": lambda: save_safetensors({"a": torch.arange(64.0), "b": torch.ones(3, 2)}),
    "net.xml": hostile.network_xml,
}


@pytest.mark.parametrize("name", SMALL)
def test_cuts_and_flips_of_small_files(tmp_path: Path, name: str) -> None:
    data = SMALL[name]()
    (tmp_path / "net.bin").write_bytes(hostile.network_bin())
    path = tmp_path / name
    assert reads_or_refuses(path, data)
    for length in range(0, len(data), 64):
        assert not reads_or_refuses(path, data[:length]), length
    source = random.Random(0)
    for _ in range(300):
        flipped = bytearray(data)
        for _ in range(source.choice((1, 1, 2, 8))):
            flipped[source.randrange(len(data))] ^= 1 << source.randrange(8)
        reads_or_refuses(path, bytes(flipped))
    assert {file.name for file in tmp_path.iterdir()} == {name, "net.bin"}


def test_cuts_and_flips_of_large_files(tmp_path: Path) -> None:
    if "EIGENLENS_REFERENCE" not in os.environ:
        pytest.skip("EIGENLENS_REFERENCE names no folder with reference files")
    folder = Path(os.environ["EIGENLENS_REFERENCE"]) / "goldens"
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".pkl", ".pt", ".pth", ".bin", ".model")]
    source = random.Random(0)
    n_of = {file: 13 if file.suffix == ".pkl" else 27 for file in files}  # pickles of hundreds of storages take longest
    assert sum(n_of.values()) >= 300
    for file in files:
        data = file.read_bytes()
        path = tmp_path / file.name
        for turn in range(n_of[file]):
            if turn % 3 == 0:
                assert not reads_or_refuses(path, data[: source.randrange(len(data))]), file
                continue
            flipped = bytearray(data)
            edge = min(len(data), 20_000) if turn % 3 == 1 else len(data)  # what is structure stands at an edge
            for _ in range(3):
                position = source.randrange(edge)
                flipped[position if source.random() < 0.5 else len(data) - 1 - position] ^= 1 << source.randrange(8)
            reads_or_refuses(path, bytes(flipped))
        path.unlink()
    assert not list(tmp_path.iterdir())
