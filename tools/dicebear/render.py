"""Render avatars of a second style into one .npz file: `python render.py --n 20000 --seed 0 --out personas.npz`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the renderers share
from rendering import NUMBERS, RequestError, as_numbers, check_drawing, draw_looks, parse, parser_of, write_npz

HERE = Path(__file__).resolve().parent
FORMAT = "personas_v1"
OVERSAMPLING = 4
"""Avatars are drawn at this multiple of the resolution and averaged."""
CHUNK = 500
ATTRIBUTION = (
    "Avatars: Personas by Draftbit (https://personas.draftbit.com/), licensed under CC BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/), drawn by DiceBear. "
    "Changed: turned, scaled and moved at random, and put on plain backgrounds."
)


def sample_numbers(n: int, *, seed: int) -> dict[str, np.ndarray]:
    """Draw the numeric factors of `n` avatars, float32 [n] each; avatar i depends on (seed, i) alone."""
    return as_numbers(np.stack([np.random.default_rng([seed, i]).random(len(NUMBERS)) for i in range(n)]))


def looks(numbers: dict[str, np.ndarray], start: int, *, seed: int) -> list[dict[str, object]]:
    """Return what DiceBear is asked for: avatar `start`, `start + 1`, ..., one for each entry of the numbers."""
    return [
        {
            "seed": f"{seed}-{start + i}",  # decides parts and colours
            "rotate": float(numbers["rotation"][i]) % 360,
            "scale": 100 * float(numbers["scale"][i]),
            "translateX": 100 * float(numbers["shift_x"][i]),
            "translateY": 100 * float(numbers["shift_y"][i]),
        }
        for i in range(len(numbers["rotation"]))
    ]


def on_grounds(avatars: np.ndarray, numbers: dict[str, np.ndarray]) -> np.ndarray:
    """Average avatars down by `OVERSAMPLING` and put them on plain grounds: uint8 [n, resolution, resolution, 3]."""
    n, size = avatars.shape[:2]
    resolution = size // OVERSAMPLING
    avatars = avatars.reshape(n, resolution, OVERSAMPLING, resolution, OVERSAMPLING, 4).mean((2, 4), np.float64)
    ground = np.stack([numbers[f"background_{colour}"] for colour in ("red", "green", "blue")], axis=1)
    picture = avatars[..., :3] + (255.0 - avatars[..., 3:]) * ground[:, None, None, :]
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        parser = parser_of("avatars", one="avatar", n=20000, resolution=32)
        args = parse(parser, argv, n=(1, 10**6), resolution=(16, 256))
        check_drawing(HERE)
    except RequestError as error:
        sys.stderr.write(f"render.py: {error}\n")
        return 2
    numbers = sample_numbers(args.n, seed=args.seed)
    pieces = []
    for start in range(0, args.n, CHUNK):
        part = {name: values[start : start + CHUNK] for name, values in numbers.items()}
        avatars = draw_looks(HERE, looks(part, start, seed=args.seed), size=args.resolution * OVERSAMPLING)
        pieces.append(on_grounds(avatars, part))
    meta = {
        "format": FORMAT, "n": args.n, "seed": args.seed, "resolution": args.resolution, "numbers": NUMBERS,
        "attribution": ATTRIBUTION, "licence": "CC BY 4.0",
        "versions": json.loads((HERE / "package.json").read_text("utf-8"))["dependencies"],
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"images": np.concatenate(pieces), "meta": np.array(json.dumps(meta, sort_keys=True))}
    size = write_npz(args.out, arrays | {f"factor/{name}": values for name, values in numbers.items()})
    sys.stderr.write(f"{args.out}: {args.n} avatars, {size / 1e6:.2f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
