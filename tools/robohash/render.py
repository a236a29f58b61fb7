"""Render labelled painted cats into one .npz file: `python render.py --n 40000 --seed 0 --out cats.npz`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FORMAT = "cats_v1"
OVERSAMPLING = 4
"""Cats are put together at this multiple of the resolution and averaged."""

PARTS = ("body", "fur", "eyes", "mouth", "accessories")
"""Layers of a cat from the back to the front: the folders of the set, in the order of their numbers."""
NUMBERS = {
    "rotation": (-12.0, 12.0),  # degrees, clockwise
    "scale": (0.9, 1.1),
    "shift_x": (-0.06, 0.06),  # of the picture, right is positive
    "shift_y": (-0.04, 0.04),  # down is positive
    "background_red": (0.35, 0.9),  # sRGB
    "background_green": (0.35, 0.9),
    "background_blue": (0.35, 0.9),
}
"""Numeric factors and the range over which each is uniform."""

ATTRIBUTION = (
    "Cats: the Cat Avatar Generator by David Revoy "
    "(https://www.peppercarrot.com/extras/html/2016_cat-generator/), licensed under CC BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/), set 4 of the PyPI package robohash. "
    "Changed: parts combined at random, turned, scaled and moved, and put on plain backgrounds."
)


class RequestError(ValueError):
    """What was asked for cannot be done; the text says what can."""


def sample_factors(n: int, *, seed: int, n_parts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Draw the factors of `n` cats, all independent; cat i depends on (seed, i) alone.

    Returns:
        int16 [n] for each part, float32 [n] for each number.
    """
    drawn = np.stack([np.random.default_rng([seed, i]).random(len(PARTS) + len(NUMBERS)) for i in range(n)])
    factors = {part: np.int16(drawn[:, k] * n_parts[part]) for k, part in enumerate(PARTS)}
    for k, (name, (low, high)) in enumerate(NUMBERS.items(), start=len(PARTS)):
        factors[name] = np.float32(low + (high - low) * drawn[:, k])
    return factors


def read_parts(folder: Path, *, size: int) -> dict[str, list[Image.Image]]:
    """Read the pictures of each part, RGBA of `size` x `size` pixels."""
    parts: dict[str, list[Image.Image]] = {}
    for name in PARTS:
        places = sorted(folder.glob(f"*#*{name}"))
        if len(places) != 1:
            raise RequestError(f"{folder} has no folder of the part {name!r}; allowed: `sets/set4` of robohash 2.0")
        pictures = (Image.open(file).convert("RGBA") for file in sorted(places[0].glob("*.png")))
        parts[name] = [each.resize((size, size), Image.Resampling.BOX) for each in pictures]
    return parts


def render_cats(factors: Mapping[str, np.ndarray], parts: Mapping[str, list[Image.Image]]) -> np.ndarray:
    """Draw the cats, uint8 [n, resolution, resolution, 3], from parts at `OVERSAMPLING` times the resolution."""
    size = parts[PARTS[0]][0].width
    images = []
    for i in range(len(factors["rotation"])):
        number = {name: float(factors[name][i]) for name in NUMBERS}
        cat = Image.new("RGBA", (size, size))
        for part in PARTS:
            cat.alpha_composite(parts[part][int(factors[part][i])])
        cat = cat.transform((size, size), Image.Transform.AFFINE, _back(number, size), Image.Resampling.BILINEAR)
        cat = cat.reduce(OVERSAMPLING)  # as the transform, weighs colours by alpha
        ground = tuple(round(255 * number[f"background_{colour}"]) for colour in ("red", "green", "blue"))
        picture = Image.new("RGBA", cat.size, (*ground, 255))
        picture.alpha_composite(cat)
        images.append(np.asarray(picture)[..., :3])
    return np.stack(images)


def _back(number: Mapping[str, float], size: int) -> tuple[float, ...]:
    """Return where a pixel comes from when a cat is turned about the picture's middle, scaled and moved."""
    angle, scale = np.deg2rad(number["rotation"]), number["scale"]
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    x, y = (0.5 + number["shift_x"]) * size, (0.5 + number["shift_y"]) * size
    return (cos, sin, size / 2 - cos * x - sin * y, -sin, cos, size / 2 + sin * x - cos * y)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> int:
    """Write an .npz file whose bytes depend on the arrays alone, and return its size in bytes."""
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    partial = path.with_name(path.name + ".part")
    with zipfile.ZipFile(partial, "w") as archive:
        for name, values in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = kind
            with archive.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(values), allow_pickle=False)
    partial.replace(path)
    return path.stat().st_size


def find_parts() -> Path:
    """Return the folder of the cats' parts inside the installed package robohash, which is not imported."""
    found = importlib.util.find_spec("robohash")
    if found is None or not found.submodule_search_locations:
        raise RequestError("the package robohash is missing; run `pip install robohash==2.0`, or name its set: --parts")
    return Path(next(iter(found.submodule_search_locations))) / "sets" / "set4"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        args = _read_arguments(argv)
        parts = read_parts(args.parts or find_parts(), size=args.resolution * OVERSAMPLING)
    except RequestError as error:
        sys.stderr.write(f"render.py: {error}\n")
        return 2
    factors = sample_factors(args.n, seed=args.seed, n_parts={name: len(each) for name, each in parts.items()})
    meta = {
        "format": FORMAT, "n": args.n, "seed": args.seed, "resolution": args.resolution,
        "parts": {name: len(each) for name, each in parts.items()}, "numbers": NUMBERS,
        "attribution": ATTRIBUTION, "licence": "CC BY 4.0",
    }  # fmt: skip
    arrays = {"images": render_cats(factors, parts), **{f"factor/{name}": each for name, each in factors.items()}}
    arrays["meta"] = np.array(json.dumps(meta, sort_keys=True))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    size = write_npz(args.out, arrays, compress=args.compress)
    sys.stderr.write(f"{args.out}: {args.n} cats, {size / 1e6:.2f} MB\n")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise RequestError(f"{message}; run with --help for all options")


def _read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="render.py", description="Render labelled painted cats into one .npz file.")
    parser.add_argument("--n", type=int, default=40000, help="number of cats (default: 40000)")
    parser.add_argument("--seed", type=int, default=0, help="cat i depends on the seed and i only (default: 0)")
    parser.add_argument("--resolution", type=int, default=32, help="side in pixels (default: 32)")
    parser.add_argument("--out", type=Path, required=True, help="path of the .npz file to write")
    parser.add_argument("--parts", type=Path, help="folder `sets/set4` of robohash (default: the installed package's)")
    parser.add_argument("--compress", action="store_true", help="write a smaller file that takes longer to open")
    args = parser.parse_args(argv)
    limits = {"n": (1, 10**6), "seed": (0, 2**64 - 1), "resolution": (16, 256)}
    for name, (low, high) in limits.items():
        value = getattr(args, name)
        if not low <= value <= high:
            raise RequestError(f"--{name} {value} is out of range; choose a whole number from {low} to {high}")
    if args.out.suffix != ".npz":
        raise RequestError(f"--out {args.out} does not end in .npz; try --out {args.out.with_suffix('.npz')}")
    return args


if __name__ == "__main__":
    sys.exit(main())
