"""What the renderers share: numbers of a placed picture, the drawing program, the .npz file, the command line."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

NUMBERS = {
    "rotation": (-12.0, 12.0),  # degrees, clockwise
    "scale": (0.9, 1.1),
    "shift_x": (-0.06, 0.06),  # of the picture, right is positive
    "shift_y": (-0.04, 0.04),  # down is positive
    "background_red": (0.35, 0.9),  # sRGB
    "background_green": (0.35, 0.9),
    "background_blue": (0.35, 0.9),
}
"""Numeric factors of cats and personas, and the range over which each is uniform."""


class RequestError(ValueError):
    """A request that cannot be met; the text says what came, what is allowed and what to do."""


def as_numbers(drawn: np.ndarray) -> dict[str, np.ndarray]:
    """Spread draws from [0, 1), [n, len(NUMBERS)], over the ranges: float32 [n] for each of `NUMBERS`."""
    return {name: np.float32(low + (high - low) * drawn[:, k]) for k, (name, (low, high)) in enumerate(NUMBERS.items())}


def drawing_command(folder: Path, size: int) -> list[str]:
    """Return the command of a folder's drawing program: JSON lines in, RGBA of `size` x `size` pixels out."""
    return [shutil.which("node") or "node", str(folder / "render.mjs"), str(size)]


def draw_looks(folder: Path, looks: Iterable[Mapping[str, object]], *, size: int) -> np.ndarray:
    """Draw on a transparent ground by a folder's drawing program: uint8 [n, size, size, 4], colours premultiplied."""
    lines = "".join(json.dumps(look) + "\n" for look in looks)
    finished = subprocess.run(drawing_command(folder, size), input=lines.encode(), capture_output=True, check=False)
    if finished.returncode != 0:
        last_line = (finished.stderr.decode(errors="replace").strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"the drawing program ended with code {finished.returncode}: {last_line}")
    return np.frombuffer(finished.stdout, np.uint8).reshape(-1, size, size, 4)


def check_drawing(folder: Path) -> None:
    """Raise `RequestError` where a folder's drawing program cannot run."""
    if shutil.which("node") is None:
        raise RequestError("no 'node' program was found; install Node.js 18 or newer and try again")
    if not (folder / "node_modules").is_dir():
        raise RequestError(f"the drawing packages are missing; run: npm ci --prefix {folder}")


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> int:
    """Write an .npz file whose bytes depend on the arrays alone, and return its size in bytes.

    It is written beside `path` and renamed, so that what stands there is whole.
    """
    partial = path.with_name(path.name + ".part")
    with zipfile.ZipFile(partial, "w") as archive:
        for name, values in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
            with archive.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, values, allow_pickle=False)
    partial.replace(path)
    return path.stat().st_size


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise RequestError(f"{message}; run with --help for all options")


def parser_of(what: str, *, one: str, n: int, resolution: int, side: str = "side in pixels") -> argparse.ArgumentParser:
    """Return a parser with the options of every renderer.

    Args:
        what: is rendered, such as "labelled toon faces".
        one: of them, such as "face".
        n: how many by default.
        resolution: by default.
        side: what there is to say of the resolution.
    """
    parser = _Parser(prog="render.py", description=f"Render {what} into one .npz file.")
    parser.add_argument("--n", type=int, default=n, help=f"number of {one}s (default: {n})")
    parser.add_argument("--seed", type=int, default=0, help=f"{one} i depends on the seed and i only (default: 0)")
    parser.add_argument("--resolution", type=int, default=resolution, help=f"{side} (default: {resolution})")
    parser.add_argument("--out", type=Path, required=True, help="path of the .npz file to write")
    return parser


def add_compress(parser: argparse.ArgumentParser) -> None:
    """Add the option of a smaller file."""
    parser.add_argument("--compress", action="store_true", help="write a smaller file that takes longer to open")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None, **limits: tuple[int, int]) -> argparse.Namespace:
    """Parse what `parser_of` gave, and check it.

    Args:
        parser: the parser.
        argv: the words; those of the command line where None.
        limits: least and largest value of each option that is a whole number, beside those of the seed.

    Raises:
        RequestError: on words that do not fit.
    """
    args = parser.parse_args(argv)
    for name, (low, high) in {**limits, "seed": (0, 2**64 - 1)}.items():
        value = getattr(args, name)
        if not low <= value <= high:
            raise RequestError(f"--{name} {value} is out of range; choose a whole number from {low} to {high}")
    if args.out.suffix != ".npz":
        raise RequestError(f"--out {args.out} does not end in .npz; try --out {args.out.with_suffix('.npz')}")
    return args
