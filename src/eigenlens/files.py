"""Writing that loses nothing: a file appears whole or not at all, and never over another unasked."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError


def refuse_existing(path: str | Path, *, force: bool = False) -> Path:
    """Return `path` if it may be written, which is asked before the work and not after it.

    Raises:
        UserError: where it exists and `force` is false, is a folder, or where its folder is a file or lets nobody
            write.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; choose another name for the file")
    if path.exists() and not force:
        raise UserError(f"{path} exists already; choose another name, or pass --force to replace it")
    folder = next(each for each in path.absolute().parents if each.exists())
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another place for {path.name}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder} lets you write nothing; choose another place for {path.name}")
    return path


@contextmanager
def written_beside(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` once the block ends without an error.

    The temporary name keeps the suffix, for writers that choose the format by it.

    Raises:
        UserError: where `path` exists and `force` is false, or cannot be made.
    """
    path = refuse_existing(path, force=force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; choose another place") from error
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)  # mkstemp makes it private; an ordinary file is not
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


_FAR = 1 << 30


def lock(file: Any) -> None:
    """Wait until no other process has `file`, which is open for writing, and hold it until it is closed."""
    try:
        import fcntl
    except ImportError:  # Windows locks bytes, here one that lies beyond all files, so that they can still be read
        import msvcrt

        windows: Any = msvcrt
        place = file.tell()
        file.seek(_FAR)
        windows.locking(file.fileno(), windows.LK_LOCK, 1)
        file.seek(place)
    else:
        fcntl.flock(file, fcntl.LOCK_EX)


@contextmanager
def claim(path: str | Path, work: str) -> Iterator[bool]:
    """Try to become the one process that is at a piece of work, and give whether this one is.

    It is let go when the block ends, or the process does, however it ends. Within one process a claim keeps nobody out.

    Args:
        path: a file that those who share the work know; it stays empty.
        work: name of the piece.
    """
    path = Path(path)
    place = zlib.crc32(work.encode()) >> 3  # a byte of the file: below 2³⁰, which Windows asks for
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        try:
            _claim_byte(file, place)
        except (BlockingIOError, PermissionError):
            yield False
        else:
            yield True


def _claim_byte(file: Any, place: int) -> None:
    """Lock one byte of a file until it is closed; it need not be there."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        windows: Any = msvcrt
        file.seek(place)
        windows.locking(file.fileno(), windows.LK_NBLCK, 1)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)


def write_text(path: str | Path, text: str, *, force: bool = False) -> Path:
    """Write `text` as UTF-8, whole or not at all."""
    with written_beside(path, force=force) as beside:
        beside.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value: Any, *, force: bool = False) -> Path:
    """Write `value` as indented JSON, whole or not at all."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", force=force)


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values would differ in JSON, where a tuple is a list; a missing one is None.

    Example:
        >>> differing_keys({"n": 6, "taps": (1, 3)}, {"n": 6, "taps": [1, 3], "kind": "conv"})
        ['kind']
    """
    plain = [json.loads(json.dumps(dict(each))) for each in (one, other)]
    return [key for key in {**one, **other} if plain[0].get(key) != plain[1].get(key)]


def header_of(path: str | Path) -> dict[str, Any]:
    """Return what a `.safetensors` file of ours says of itself, its `format` first of all; nothing for another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {}).get("eigenlens", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


@contextmanager
def network_file(path: str | Path, kind: str, file_format: str, *, make: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """Give header and tensors of a network that we wrote, to build it from: what fails in the body is the file's fault.

    Args:
        path: a `.safetensors` file.
        kind: what it holds, for errors: `encoder`.
        file_format: its `format`.
        make: the command that makes one, for where there is none.

    Raises:
        UserError: where the file is none of this kind, or the body cannot build what it says.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; make {'an' if kind[0] in 'aeiou' else 'a'} {kind} with: {make}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("eigenlens", "{}"))
            if not isinstance(header, dict) or header.get("format") != file_format:
                raise UserError(f"{path} is no {kind} of format {file_format!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        yield header, tensors
    except UserError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OSError, RecursionError) as error:
        raise UserError(f"{path} is no {kind} that can be read: {' '.join(str(error).split())}") from error


def confined(folder: str | Path, relative: str | Path) -> Path:
    """Return the path of `relative` within `folder`, wherever its links lead.

    Raises:
        UserError: where it lies outside: through `..`, an absolute path, or a symbolic link.

    Example:
        >>> confined("/srv", "a/b.png").as_posix()
        '/srv/a/b.png'
        >>> confined("/srv", "../etc/passwd")
        Traceback (most recent call last):
        ...
        eigenlens.errors.UserError: '../etc/passwd' lies outside the folder srv; give a path within it
    """
    outside = UserError(f"{str(relative)[:200]!r} lies outside the folder {Path(folder).name}; give a path within it")
    if "\0" in str(relative) or len(str(relative)) > 4096:
        raise outside
    root = Path(folder).resolve()
    try:
        path = (root / relative).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links, a name too long
        raise outside from error
    if path != root and root not in path.parents:
        raise outside
    return path


def file_stem(name: str, *, default: str = "untitled") -> str:
    """Return a file name, without suffix, for what a person calls `name`: no separators, no leading dot, not long.

    Example:
        >>> file_stem("../Skin tone?"), file_stem("***")
        ('Skin-tone', 'untitled')
    """
    kept = "".join(char if char.isalnum() or char in "-_+" else "-" for char in name)
    while "--" in kept:
        kept = kept.replace("--", "-")
    return kept.strip("-")[:60] or default
