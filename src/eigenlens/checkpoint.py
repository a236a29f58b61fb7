"""Foreign model files read as data: what container a file is, and the plain tree of values and tensors inside.

Nothing in a file is executed or imported. Pickles run in the closed machine of `unpickle`; a torch file passes that
machine first, which checks every name, shape and length, and only then goes to `torch.load(weights_only=True)`. What a
file makes us allocate is bounded by a small multiple of its own size.

What `Checkpoint.content` holds, by container:

- `torch-zip`, `torch-legacy`, `nvidia-pickle`, `pickle`, `safetensors`: the file's own dictionary. A bare tensor,
  list or other value stands under the key `""`.
- `nvidia-tf-pickle`: `{"G": TFNetwork, "D": TFNetwork, "Gs": TFNetwork}`.
- `openvino-ir`: `{"name", "version", "layers": [...], "edges": [...]}`, see `_read_network`.
- `folder`: `{"config": {...}, "args": {...}, "weights": tree}`; `weights` is the content of its weights file, or
  of each network by name where the folder holds OpenVINO networks.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import stat
import struct
import threading
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from .errors import UserError
from .unpickle import (
    NVIDIA_NAMES,
    STAND_INS,
    TORCH_NAMES,
    Budget,
    Machine,
    Malformed,
    PersistentModule,
    Storage,
    StorageType,
    TFNetwork,
    check_tree,
    plain,
    shown,
)

__all__ = ["Checkpoint", "PersistentModule", "TFNetwork", "read_checkpoint", "state_dict"]

_MAX_JSON = 4 << 20
_MAX_XML = 32 << 20
_MAX_HEADER = 64 << 20  # of safetensors
_COPIES = 2  # how often the bytes of a file may be copied out of it: some files share a storage between tensors


@dataclass(frozen=True)
class Checkpoint:
    """A foreign model file, read."""

    path: Path
    """The file or folder."""
    container: str
    """`torch-zip`, `torch-legacy`, `nvidia-pickle`, `nvidia-tf-pickle`, `pickle`, `safetensors`, `openvino-ir`,
    `folder`."""
    content: dict[str, Any]
    """Its plain tree; the module's text says what it holds for each container."""
    sha256: str
    """Of the file's bytes; of several files (a folder, a network and its weights): of their names and bytes."""
    sidecar: dict[str, Any] = field(default_factory=dict)
    """The settings in the JSON file that belongs to it by a known rule of naming; empty where there is none."""
    metadata: dict[str, str] = field(default_factory=dict)
    """The text entries in the header of a safetensors file."""
    is_ordered: bool = True
    """Whether its keys stand as their author made them; a safetensors file keeps no order, and has them by name."""

    def entry(self, *names: str) -> tuple[str, Any] | None:
        """Return the first of `names` that the content has at its top level, with its value; None where it has none."""
        return next(((name, self.content[name]) for name in names if name in self.content), None)

    def describe(self, limit: int = 12) -> str:
        """Return the first `limit` tensors' keys and shapes in one line, for messages about unknown files."""
        parts: list[str] = []
        n_more = 0
        for key, value in _leaves(self.content):
            if not isinstance(value, Tensor):
                continue
            if len(parts) < limit:
                parts.append(f"{shown(key) or 'a bare tensor'} {list(value.shape)}")
            else:
                n_more += 1
        if not parts:
            keys = ", ".join(shown(str(key)) for key in list(self.content)[:limit])
            return f"{self.container} without tensors; keys: {keys or 'none'}"
        return f"{self.container} with {', '.join(parts)}" + (f", and {n_more} more tensors" if n_more else "")


def state_dict(tree: Any) -> dict[str, Tensor]:
    """Flatten the tensors of a module stub, or of nested dicts and lists, into dotted keys.

    A `PersistentModule` gives what `torch.nn.Module.state_dict` would have: its parameters, its persistent buffers
    and those of its modules. A `TFNetwork` gives its variables, then those of its components by their names:
    `mapping.Dense0/weight`. Everything that is not a tensor is left out.

    Example:
        >>> import torch
        >>> state_dict({"mapping": {"w_avg": torch.zeros(4)}, "version": "1.9"})
        {'mapping.w_avg': tensor([0., 0., 0., 0.])}
    """
    return {key: value for key, value in _leaves(tree) if isinstance(value, Tensor)}


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in _members(tree):
        key = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, dict | list | tuple):
            yield from _leaves(value, key)
        else:
            yield key, value


def _members(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, PersistentModule):
        passing = tree.get("_non_persistent_buffers_set") or ()
        for organ in ("_parameters", "_buffers", "_modules"):
            for name, value in (tree.get(organ) or {}).items():
                if value is not None and not (organ == "_buffers" and name in passing):
                    yield name, value
    elif isinstance(tree, TFNetwork):
        for pair in tree.get("variables") or ():
            if isinstance(pair, list | tuple) and len(pair) == 2:
                name, value = pair  # TensorFlow gives numbers without a shape as plain scalars
                yield name, torch.tensor(float(value)) if isinstance(value, int | float) else value
        yield from dict(tree.get("components") or {}).items()
    elif isinstance(tree, dict):
        yield from tree.items()
    elif isinstance(tree, list | tuple):
        yield from enumerate(tree)


# --- the door ---------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a foreign model file or folder without executing anything in it.

    Args:
        path: a torch file, an NVIDIA pickle, a safetensors file, the XML of an OpenVINO network (its .bin beside it),
            or a folder that holds one of these with its `config.json` or `args.json`.

    Raises:
        UserError: where it is missing, of an unknown kind, damaged, or asks for anything but plain data.
    """
    path = Path(path)
    try:
        return _read_folder(path) if path.is_dir() else _read_file(path)
    except Malformed as error:
        advice = "Get the file again, or ask its author for the weights as safetensors or a plain state dict"
        raise UserError(f"cannot read {path}: {error}. {advice}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check its name and its rights") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {shown(str(path))}: that is not a path of a file") from error
    except MemoryError as error:
        raise UserError(f"cannot read {path}: it does not fit into the memory of this machine") from error


def _read_file(path: Path) -> Checkpoint:
    data = _bytes_of(path)
    container = _sniff(data, path)
    names = {path.name: data}
    metadata: dict[str, str] = {}
    if container == "torch-zip":
        tree = _read_torch_zip(data)
    elif container == "torch-legacy":
        tree = _read_torch_legacy(data)
    elif container == "pickle":
        container, tree = _read_pickle(data)
    elif container == "safetensors":
        tree, metadata = _read_safetensors(data)
    else:
        weights = _bytes_of(_weights_of_network(path))
        names[path.with_suffix(".bin").name] = weights
        tree = _read_network(data, weights)
    content = tree if isinstance(tree, dict) and not isinstance(tree, PersistentModule | TFNetwork) else {"": tree}
    is_ordered = container != "safetensors"
    return Checkpoint(path, container, content, _sha256(names), _sidecar(path), metadata, is_ordered)


def _bytes_of(path: Path, limit: int | None = None) -> bytes:
    """Read a regular file once; a pipe would wait for ever and a device never ends."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"cannot read {path}: it is a folder, a pipe or a device; give a file")
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"cannot read {path}: it is a pipe or a device; give a file")
        if limit is not None and status.st_size > limit:
            raise Malformed(f"it has {status.st_size:,} bytes where at most {limit:,} are read")
        return file.read(status.st_size)


def _sha256(files: dict[str, bytes]) -> str:
    """Hash one file's bytes, or the names and bytes of several in the order of their names."""
    if len(files) == 1:
        return hashlib.sha256(*files.values()).hexdigest()
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode("utf-8", "surrogateescape"))
        digest.update(files[name])
    return digest.hexdigest()


# --- what a file is ---------------------------------------------------------------------------------------------------

_TORCH_MAGIC = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", re.DOTALL)
_FOREIGN = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras); no generator that is read here comes in it. Save its weights as"
     " safetensors"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"\x93NUMPY", "a numpy array, which holds no network"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file; fetch the file with `git lfs pull`"),
    (b"<!DOCTYPE html", "a web page in place of the file; download the file itself"),
    (b"<html", "a web page in place of the file; download the file itself"),
)  # fmt: skip
_KNOWN = "torch files, NVIDIA pickles, safetensors and OpenVINO networks (.xml with its .bin) are read"


def _sniff(data: bytes, path: Path) -> str:
    """Return the container that the first bytes tell: names say little about files from the wild."""
    if not data:
        raise UserError(f"cannot read {path}: it is empty; download it again")
    if data.startswith(b"PK\x03\x04"):
        return "torch-zip"
    if _TORCH_MAGIC.match(data):
        return "torch-legacy"
    if data[0] == 0x80:
        return "pickle"
    if data[8:9] == b"{" and 2 <= int.from_bytes(data[:8], "little") <= len(data) - 8:
        return "safetensors"
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<?xml", b"<net")) or data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "openvino-ir"
    for magic, what in _FOREIGN:
        if data[: len(magic)].lower() == magic.lower():
            raise UserError(f"cannot read {path}: it is {what}. Known: {_KNOWN}")
    if data[257:262] == b"ustar":
        raise UserError(f"cannot read {path}: it is a tar archive; unpack it first. Known: {_KNOWN}")
    if path.suffix == ".onnx" or re.match(rb"\x08[\x03-\x10]\x12.{1,64}", data):
        raise UserError(
            f"cannot read {path}: it is an ONNX graph, whose folded operations no longer say which network it was; "
            f"use the file that it was exported from. Known: {_KNOWN}"
        )
    if path.suffix == ".bin" and path.with_suffix(".xml").exists():
        raise UserError(f"cannot read {path}: these are the bare numbers of a network; give {path.with_suffix('.xml')}")
    raise UserError(f"cannot read {path}: it is of no known kind; {_KNOWN}")


# --- torch files ------------------------------------------------------------------------------------------------------

_LOADING = threading.Lock()  # the allow-list of torch belongs to the whole process


def _load_torch(data: bytes | memoryview) -> Any:
    """Give a file that has passed the machine to torch's own restricted loader."""
    allowed: list[Any] = [(stub, name) for name, stub in STAND_INS.items()]
    try:
        with _LOADING, torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about its own older formats
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (Malformed, MemoryError):
        raise
    except Exception as error:  # the loader raises a dozen kinds, and each of them means the same here
        if "Unsupported operand" in str(error):
            raise Malformed(
                "it was saved with another pickle protocol than 2, which torch does not read safely"
            ) from error
        raise Malformed(f"torch refuses it: {shown(str(error).split('. ')[0].strip(), 160)}") from error


def _storage_claim(identity: Any, claims: dict[str, Storage], *, length: int) -> Storage:
    """Read the persistent id of a storage: `("storage", type, key, location, n_items)`, in old files also `view`."""
    is_known = isinstance(identity, tuple) and len(identity) == length and isinstance(identity[0], str)
    if not is_known or identity[0] != "storage" or not isinstance(identity[1], StorageType):
        raise Malformed("its pickle refers to something that is not a storage")
    _, kind, key, location, n_items = identity[:5]
    if type(key) is not str or type(location) is not str or type(n_items) is not int or n_items < 0:
        raise Malformed("its pickle refers to a storage without a key or a length")
    claim = Storage(kind.dtype, n_items)
    if claims.setdefault(key, claim) != claim:
        raise Malformed(f"it describes the storage {shown(key)} in two ways")
    return _view_claim(claim, identity[5]) if length == 6 and identity[5] is not None else claim


def _view_claim(storage: Storage, view: Any) -> Storage:
    """Read a part of a storage, as torch wrote them before its version 0.4: `(key, offset, n_items)`."""
    is_known = isinstance(view, tuple) and len(view) == 3 and type(view[0]) is str
    if not is_known or not all(type(number) is int and number >= 0 for number in view[1:]):
        raise Malformed("its pickle refers to a part of a storage in an unknown way")
    if view[1] + view[2] > storage.n_items:
        raise Malformed("it claims a part of a storage that lies outside it")
    return Storage(storage.dtype, view[2])


def _read_torch_zip(data: bytes) -> Any:
    records = _zip_records(data)
    order = records.get("byteorder", memoryview(b"little"))
    if order not in (b"little", b"big"):
        raise Malformed("its order of bytes is neither little nor big")
    budget, claims = Budget(_COPIES * len(data)), dict[str, Storage]()

    def storage(identity: Any) -> Storage:
        claim = _storage_claim(identity, claims, length=5)
        record = records.get(f"data/{identity[2]}")
        if record is None or len(record) != claim.n_items * claim.dtype.itemsize:
            raise Malformed(f"it claims {claim.n_items:,} numbers in the storage {shown(identity[2])}, which differs")
        return claim

    tree, end = Machine(records["data.pkl"], TORCH_NAMES, budget, storage).load()
    if end != len(records["data.pkl"]):
        raise Malformed("something follows its pickle")
    check_tree(tree)
    return plain(_load_torch(data), budget)


def _zip_records(data: bytes) -> dict[str, memoryview]:
    """Return the records of a torch archive by their names without the common folder.

    The archive must be as torch writes it: stored, one folder, no member over another, nothing before or after. So
    the two readers that look at it, this one and torch's, cannot see different things.
    """
    if data[-22:-18] != b"PK\x05\x06":
        raise Malformed("it is cut off or something follows it: the end of its archive is missing")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OverflowError, EOFError) as error:
        raise Malformed(f"its archive is damaged ({shown(str(error))})") from error
    names = [member.orig_filename.partition("/")[2] for member in members]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise Malformed("it is a TorchScript program, which would have to be run")
    is_torch = len({member.orig_filename.partition("/")[0] for member in members}) == 1
    if not is_torch or names.count("data.pkl") != 1 or len(set(names)) != len(names):
        raise Malformed("it is a zip archive, but not one that torch.save wrote")
    records, free = {}, 0
    for member, name in zip(members, names, strict=True):
        if member.header_offset < free or (free == 0 and member.header_offset):
            raise Malformed("its archive is damaged: something lies before a member, or another member over it")
        records[name], free = _zip_record(data, member)
    return records


def _zip_record(data: bytes, member: zipfile.ZipInfo) -> tuple[memoryview, int]:
    """Return the bytes of a member and where they end, by the header that stands before them."""
    is_stored = member.compress_type == zipfile.ZIP_STORED and member.file_size == member.compress_size
    if not is_stored or member.flag_bits & 0x41:
        raise Malformed("its archive is compressed or encrypted, and torch writes neither")
    start = member.header_offset
    header = data[start : start + 30]
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise Malformed("its archive is damaged: a member is missing")
    name_length, extra_length = struct.unpack("<HH", header[26:])
    begin = start + 30 + name_length + extra_length
    encoding = "utf-8" if member.flag_bits & 0x800 else "cp437"
    if data[start + 30 : start + 30 + name_length] != member.orig_filename.encode(encoding, "replace"):
        raise Malformed("its archive is damaged: a member has two names")
    end = begin + member.file_size
    if end > len(data):
        raise Malformed("its archive is cut off")
    return memoryview(data)[begin:end], end


def _read_torch_legacy(data: bytes) -> Any:
    budget = Budget(_COPIES * len(data))
    check_tree(_check_legacy(memoryview(data), budget))
    return plain(_load_torch(data), budget)


def _check_legacy(data: memoryview, budget: Budget) -> Any:
    """Run the pickles of a torch file before version 1.6 and check its storages; return its tree of claims.

    The file is five pickles (magic number, version, machine, tree, keys of storages), then each storage: its length and
    its numbers.
    Source: torch.serialization, `_legacy_load`.
    """
    claims: dict[str, Storage] = {}
    machine = Machine(data, TORCH_NAMES, budget, lambda identity: _storage_claim(identity, claims, length=6))
    _, end = machine.load()
    version, end = machine.load(end)
    system, end = machine.load(end)
    if type(version) is not int or version != 1001 or not isinstance(system, dict):
        raise Malformed("it is a torch file of an unknown version")
    if system.get("little_endian") is not True:
        raise Malformed("it was written on a big-endian machine")
    tree, end = machine.load(end)
    keys, end = machine.load(end)
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(claims):
        raise Malformed("its storages are not those that its tensors name")
    for key in keys:
        claim = claims[key]
        n_items = int.from_bytes(data[end : end + 8], "little", signed=True)
        end += 8 + claim.n_items * claim.dtype.itemsize
        if n_items != claim.n_items or end > len(data):
            raise Malformed(f"it claims {claim.n_items:,} numbers in the storage {shown(key)}, which differs")
    if end != len(data):
        raise Malformed("something follows its numbers")
    return tree


# --- NVIDIA pickles ---------------------------------------------------------------------------------------------------


def _read_pickle(data: bytes) -> tuple[str, Any]:
    budget = Budget(_COPIES * len(data))

    def load_from_bytes(payload: Any) -> Storage:
        """Stand for `torch.storage._load_from_bytes`: a torch file of one storage inside the pickle."""
        if not isinstance(payload, bytes | memoryview):
            raise Malformed("it holds a storage without bytes")
        budget.copy(len(payload))
        view = memoryview(payload)
        if not _TORCH_MAGIC.match(view):
            raise Malformed("it holds a storage that is not a torch file")
        claim = _check_legacy(view, budget)
        if not isinstance(claim, Storage):
            raise Malformed("it holds a torch file where a storage belongs")
        storage = _load_torch(view)._untyped_storage
        if storage.nbytes() != claim.n_items * claim.dtype.itemsize:
            raise Malformed("it holds a storage that is longer or shorter than it says")
        return Storage(claim.dtype, claim.n_items, storage)

    names = {**NVIDIA_NAMES, "torch.storage._load_from_bytes": load_from_bytes}
    tree, end = Machine(memoryview(data), names, budget).load()
    if end != len(data):
        raise Malformed("something follows its pickle")
    check_tree(tree)
    tree = plain(tree, budget)
    if isinstance(tree, tuple) and len(tree) == 3 and all(isinstance(network, TFNetwork) for network in tree):
        return "nvidia-tf-pickle", dict(zip(("G", "D", "Gs"), tree, strict=True))
    values = list(tree.values()) if isinstance(tree, dict) else []
    is_nvidia = isinstance(tree, PersistentModule) or any(isinstance(value, PersistentModule) for value in values)
    return "nvidia-pickle" if is_nvidia else "pickle", tree


# --- safetensors ------------------------------------------------------------------------------------------------------

_SAFE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4,
    "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


def _read_safetensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Check the header, then let the library read the tensors, in the order of their names with numbers as numbers.

    The library gives them in another order in every process, and the file has them by type and name.
    """
    length = int.from_bytes(data[:8], "little")
    if length > _MAX_HEADER:
        raise Malformed(f"its header has {length:,} bytes")
    header = _json(data[8 : 8 + length], "its header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Malformed("its header's metadata are not text")
    numbers = len(data) - 8 - length
    for name, entry in header.items():
        if not _is_safe_entry(entry, numbers):
            raise Malformed(f"its header describes {shown(name)} in a way that its numbers do not match")
    try:
        tensors = load_safetensors(data)
        return {name: tensors[name] for name in sorted(tensors, key=_by_name)}, metadata
    except Exception as error:  # the library raises its own kind, which it does not export for good
        raise Malformed(f"safetensors refuses it: {shown(str(error), 160)}") from error


def _by_name(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return what sorts names as people do: `blocks.2` before `blocks.10`."""
    pieces = [piece.lstrip("0") if number % 2 else piece for number, piece in enumerate(re.split("([0-9]+)", name))]
    return [(len(piece) if number % 2 else 0, piece) for number, piece in enumerate(pieces)], name


def _is_safe_entry(entry: Any, numbers: int) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str) or entry["dtype"] not in _SAFE_BYTES:
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list):
        return False
    if not all(type(value) is int and 0 <= value < 1 << 48 for value in shape + offsets):
        return False
    if len(shape) > 64 or len(offsets) != 2 or math.prod(filter(None, shape)) >= 1 << 60:
        return False
    begin, end = offsets
    return begin <= end <= numbers and end - begin == math.prod(shape) * _SAFE_BYTES[entry["dtype"]]


# --- OpenVINO networks ------------------------------------------------------------------------------------------------

_IR_TYPES = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32, "i16": np.int16,
    "i8": np.int8, "u64": np.uint64, "u32": np.uint32, "u16": np.uint16, "u8": np.uint8, "boolean": np.bool_,
    "bf16": np.int16,
}  # fmt: skip
_MAX_XML_DEPTH = 32


def _weights_of_network(path: Path) -> Path:
    weights = path.with_suffix(".bin")
    if not weights.exists():
        raise Malformed(f"its numbers are missing: {weights.name} belongs beside it")
    return weights


def _read_network(text: bytes, weights: bytes) -> dict[str, Any]:
    """Read an OpenVINO network: its layers, its edges and its constants.

    Returns:
        `name`, `version`; `layers`, each with `id` (int), `name`, `type`, `attributes` (text by name), `outputs`
        (`port`, `shape`, `names`) and `tensor` (of a constant; else None); `edges`, each with `from_layer`,
        `from_port`, `to_layer` and `to_port`.
    """
    graph = _Graph()
    graph.read(text)
    budget = Budget(_COPIES * len(weights))
    for layer in graph.layers:
        layer["tensor"] = _constant(layer, weights, budget) if layer["type"] == "Const" else None
    return {"name": graph.name, "version": graph.version, "layers": graph.layers, "edges": graph.edges}


class _Graph:
    """Collect the layers and edges of a network while its XML passes by; no tree of it is ever built.

    A document type or an entity, which could name other files or blow up, ends the reading.
    """

    def __init__(self) -> None:
        self.name, self.version = "", ""
        self.layers: list[dict[str, Any]] = []
        self.edges: list[dict[str, int]] = []
        self.path: list[str] = []
        self.text: list[str] = []

    def read(self, text: bytes) -> None:
        if len(text) > _MAX_XML:
            raise Malformed(f"its XML has {len(text):,} bytes where at most {_MAX_XML:,} are read")
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = _refuse_entities
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self.text.append
        try:
            parser.Parse(text, True)
        except (expat.ExpatError, KeyError, ValueError, IndexError) as error:
            raise Malformed(f"its XML is damaged ({shown(str(error))})") from error

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self.path.append(tag)
        self.text.clear()
        if len(self.path) > _MAX_XML_DEPTH:
            raise Malformed("its XML is nested without end")
        if self.path[0] != "net":
            raise Malformed(f"it is XML, but no OpenVINO network: it begins with <{shown(tag)}>")
        where = "/".join(self.path[1:])
        if not where:
            self.name, self.version = attributes.get("name", ""), attributes.get("version", "")
        elif where == "layers/layer":
            layer = {"id": int(attributes["id"]), "name": attributes["name"], "type": attributes["type"]}
            self.layers.append({**layer, "attributes": {}, "outputs": []})
        elif where == "layers/layer/data":
            self.layers[-1]["attributes"].update(attributes)
        elif where == "layers/layer/output/port":
            port = {"port": int(attributes["id"]), "shape": [], "names": attributes.get("names", "")}
            self.layers[-1]["outputs"].append(port)
        elif where == "edges/edge":
            names = ("from-layer", "from-port", "to-layer", "to-port")
            self.edges.append({name.replace("-", "_"): int(attributes[name]) for name in names})

    def _end(self, tag: str) -> None:
        if "/".join(self.path[1:]) == "layers/layer/output/port/dim":
            self.layers[-1]["outputs"][-1]["shape"].append(int("".join(self.text)))
        self.path.pop()
        self.text.clear()


def _refuse_entities(*_: Any) -> None:
    raise Malformed("its XML declares a document type or entities, which no network needs")


def _constant(layer: dict[str, Any], weights: bytes, budget: Budget) -> Tensor:
    attributes, name = layer["attributes"], shown(layer["name"])
    kind = attributes.get("element_type", "")
    if kind not in _IR_TYPES:
        raise Malformed(f"its constant {name} is of type {shown(kind)}, which is not read")
    try:
        shape = [int(size) for size in attributes["shape"].split(",") if size.strip()]
        begin, length = int(attributes["offset"]), int(attributes["size"])
    except (KeyError, ValueError) as error:
        raise Malformed(f"its constant {name} does not say where its numbers are") from error
    dtype = np.dtype(_IR_TYPES[kind])
    is_shape = len(shape) <= 16 and all(0 <= size < 1 << 40 for size in shape)
    if not is_shape or begin < 0 or length < 0 or length != math.prod(shape) * dtype.itemsize:
        raise Malformed(f"its constant {name} has {length} bytes for the shape {shown(shape)}")
    if begin + length > len(weights):
        raise Malformed(f"its constant {name} lies behind the end of its .bin file")
    budget.copy(length)
    array = np.frombuffer(weights, dtype, count=math.prod(shape), offset=begin)
    tensor = torch.from_numpy(array.reshape(shape).copy())
    return tensor.view(torch.bfloat16) if kind == "bf16" else tensor


# --- folders, and the settings beside a file --------------------------------------------------------------------------

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "generator.pt")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".pkl", ".ckpt", ".model", ".bin")
_SETTINGS = {"model.safetensors": "config.json", "pytorch_model.bin": "config.json", "generator.pt": "args.json"}
_NUMBERED = re.compile(r"model_(\d{1,9})\.pt")


def _sidecar(path: Path) -> dict[str, Any]:
    """Return the settings that belong to a file: `<name>.config.json`, `<name>_config.json`, or its family's file.

    Hugging Face has `config.json` beside `pytorch_model.bin`, as our own folders beside `model.safetensors`; SNGAN has
    `args.json` beside `generator.pt`; lucidrains has `.config.json` beside `model_<n>.pt`.
    """
    names = [f"{path.stem}.config.json", f"{path.stem}_config.json"]
    names += [_SETTINGS[path.name]] if path.name in _SETTINGS else []
    names += [".config.json"] if _NUMBERED.fullmatch(path.name) else []
    return next((_settings(path.with_name(name)) for name in names if path.with_name(name).is_file()), {})


def _settings(path: Path) -> dict[str, Any]:
    return _json(_bytes_of(path, _MAX_JSON), path.name)


def _json(text: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} is not valid JSON") from error
    if not isinstance(value, dict):
        raise Malformed(f"{what} is JSON, but not a table of names and values")
    return value


def _read_folder(path: Path) -> Checkpoint:
    """Read a folder: the weights in it, and its settings."""
    files = {file.name: file for file in sorted(path.iterdir()) if file.is_file()}
    config = next((name for name in ("config.json", ".config.json") if name in files), None)
    settings = [name for name in (config, "args.json") if name in files and name is not None]
    read = {name: _settings(files[name]) for name in settings}
    networks = [name for name in files if name.endswith(".xml") and Path(name).with_suffix(".bin").name in files]
    chosen = _weights_in(path, files)
    parts = {name: _read_file(files[name]) for name in ([chosen] if chosen else networks)}
    if not parts:
        raise UserError(f"cannot read the folder {path}: it holds no weights; {_KNOWN}")
    weights = parts[chosen].content if chosen else {Path(name).stem: part.content for name, part in parts.items()}
    config_value = read[config] if config else {}
    arguments = read.get("args.json", {})
    content = {"config": config_value, "args": arguments, "weights": weights}
    digests = {name: part.sha256.encode() for name, part in parts.items()}
    digests |= {name: files[name].read_bytes() for name in settings}
    metadata = parts[chosen].metadata if chosen else {}
    is_ordered = all(part.is_ordered for part in parts.values())
    return Checkpoint(path, "folder", content, _sha256(digests), config_value or arguments, metadata, is_ordered)


def _weights_in(path: Path, files: dict[str, Path]) -> str | None:
    """Return the name of the one file with weights in a folder; None where it holds OpenVINO networks or nothing."""
    known = next((name for name in _WEIGHTS if name in files), None)
    if known:
        return known
    numbered = [name for name in files if _NUMBERED.fullmatch(name)]
    if numbered:  # a training folder; the last one is the furthest
        return max(numbered, key=lambda name: int(name[len("model_") : -len(".pt")]))
    names = [name for name, file in files.items() if file.suffix in _SUFFIXES]
    names = [name for name in names if Path(name).with_suffix(".xml").name not in files]
    if len(names) > 1:
        listed = ", ".join(shown(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")
        raise UserError(f"the folder {path} holds {len(names)} files with weights; give one of them: {listed}")
    return names[0] if names else None
