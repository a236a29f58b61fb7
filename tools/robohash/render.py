"""Render labelled painted cats into one .npz file: `python render.py --n 40000 --seed 0 --out cats.npz`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the renderers share
from rendering import NUMBERS, RequestError, add_compress, as_numbers, parse, parser_of, write_npz

FORMAT = "cats_v1"
OVERSAMPLING = 4
"""Cats are put together at this multiple of the resolution and averaged."""

PARTS = ("body", "fur", "eyes", "mouth", "accessories")
"""Layers of a cat from the back to the front: the folders of the set, in the order of their numbers."""

ATTRIBUTION = (
    "Cats: the Cat Avatar Generator by David Revoy "
    "(https://www.peppercarrot.com/extras/html/2016_cat-generator/), licensed under CC BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/), set 4 of the PyPI package robohash. "
    "Changed: parts combined at random, turned, scaled and moved, and put on plain backgrounds."
)


def sample_factors(n: int, *, seed: int, n_parts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Draw the factors of `n` cats, all independent; cat i depends on (seed, i) alone.

    Returns:
        int16 [n] for each part, float32 [n] for each number.
    """
    drawn = np.stack([np.random.default_rng([seed, i]).random(len(PARTS) + len(NUMBERS)) for i in range(n)])
    factors = {part: np.int16(drawn[:, k] * n_parts[part]) for k, part in enumerate(PARTS)}
    return factors | as_numbers(drawn[:, len(PARTS) :])


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


def find_parts() -> Path:
    """Return the folder of the cats' parts inside the installed package robohash, which is not imported."""
    found = importlib.util.find_spec("robohash")
    if found is None or found.origin is None or not found.submodule_search_locations:  # a mere folder has no origin
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
    arrays["meta"] = np.array([json.dumps(meta, sort_keys=True)])  # [1], as cats_v1 has it
    args.out.parent.mkdir(parents=True, exist_ok=True)
    size = write_npz(args.out, arrays, compress=args.compress)
    sys.stderr.write(f"{args.out}: {args.n} cats, {size / 1e6:.2f} MB\n")
    return 0


def _read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of("labelled painted cats", one="cat", n=40000, resolution=32)
    parser.add_argument("--parts", type=Path, help="folder `sets/set4` of robohash (default: the installed package's)")
    add_compress(parser)
    return parse(parser, argv, n=(1, 10**6), resolution=(16, 256))


if __name__ == "__main__":
    sys.exit(main())
