"""Render avatars of a second style into one .npz file: `python render.py --n 20000 --seed 0 --out personas.npz`."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
FORMAT = "personas_v1"
OVERSAMPLING = 4
"""Avatars are drawn at this multiple of the resolution and averaged."""
CHUNK = 500
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
    "Avatars: Personas by Draftbit (https://personas.draftbit.com/), licensed under CC BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/), drawn by DiceBear. "
    "Changed: turned, scaled and moved at random, and put on plain backgrounds."
)


class RequestError(ValueError):
    """What was asked for cannot be done; the text says what can."""


def sample_numbers(n: int, *, seed: int) -> dict[str, np.ndarray]:
    """Draw the numeric factors of `n` avatars, float32 [n] each; avatar i depends on (seed, i) alone."""
    drawn = np.stack([np.random.default_rng([seed, i]).random(len(NUMBERS)) for i in range(n)])
    return {name: np.float32(low + (high - low) * drawn[:, k]) for k, (name, (low, high)) in enumerate(NUMBERS.items())}


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


def draw(asked: list[dict[str, object]], *, size: int) -> np.ndarray:
    """Draw avatars on a transparent ground, uint8 [n, size, size, 4], colours premultiplied."""
    node = [shutil.which("node") or "node", str(HERE / "render.mjs"), str(size)]
    lines = "\n".join(map(json.dumps, asked)).encode()
    finished = subprocess.run(node, input=lines, capture_output=True, check=False)
    if finished.returncode:
        last_line = (finished.stderr.decode(errors="replace").strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"the drawing program ended with code {finished.returncode}: {last_line}")
    return np.frombuffer(finished.stdout, np.uint8).reshape(len(asked), size, size, 4)


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
    parser = argparse.ArgumentParser(prog="render.py", description="Render avatars into one .npz file.")
    parser.add_argument("--n", type=int, default=20000, help="number of avatars (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, help="avatar i depends on the seed and i only (default: 0)")
    parser.add_argument("--resolution", type=int, default=32, help="side in pixels (default: 32)")
    parser.add_argument("--out", type=Path, required=True, help="path of the .npz file to write")
    args = parser.parse_args(argv)
    try:
        if args.n < 1 or not 16 <= args.resolution <= 256:
            raise RequestError(f"--n {args.n} --resolution {args.resolution}; choose n >= 1 and 16 to 256 pixels")
        if args.out.suffix != ".npz":
            raise RequestError(f"--out {args.out} does not end in .npz; try --out {args.out.with_suffix('.npz')}")
        if not (HERE / "node_modules").is_dir():
            raise RequestError(f"the drawing packages are missing; run: npm ci --prefix {HERE}")
    except RequestError as error:
        sys.stderr.write(f"render.py: {error}\n")
        return 2
    numbers = sample_numbers(args.n, seed=args.seed)
    pieces = []
    for start in range(0, args.n, CHUNK):
        part = {name: values[start : start + CHUNK] for name, values in numbers.items()}
        avatars = draw(looks(part, start, seed=args.seed), size=args.resolution * OVERSAMPLING)
        pieces.append(on_grounds(avatars, part))
    meta = {
        "format": FORMAT, "n": args.n, "seed": args.seed, "resolution": args.resolution, "numbers": NUMBERS,
        "attribution": ATTRIBUTION, "licence": "CC BY 4.0",
        "versions": json.loads((HERE / "package.json").read_text("utf-8"))["dependencies"],
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    factors = {f"factor/{name}": values for name, values in numbers.items()}
    np.savez(args.out, images=np.concatenate(pieces), meta=np.array(json.dumps(meta, sort_keys=True)), **factors)
    sys.stderr.write(f"{args.out}: {args.n} avatars\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
