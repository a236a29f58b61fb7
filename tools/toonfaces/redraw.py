"""Draw a generator's faces again, cleanly: `python tools/toonfaces/redraw.py toonfaces --n 40000 --out pairs.npz`.

The bundled reader says of each generated face what it shows; the drawing program draws just that, and the ground behind
it is the generator's own, made smooth. So to every code belongs the clean face that was meant, and `relearn.py` teaches
the generator to draw it. Numbers depend on --seed, the generator and --n, not on --workers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the renderers share
from render import CHUNK, HERE, render_avatars
from rendering import RequestError, check_drawing, parse, write_npz
from toonface_factors import ABSENT_CODE, FACTORS, Category, applies

from eigenlens.errors import UserError
from eigenlens.generator import Generator, load_generator
from eigenlens.images import from_uint8, to_uint8
from eigenlens.reader import open_reader
from eigenlens.readers.toonfaces import POSE
from eigenlens.runtime import generator_for, set_threads

FARTHEST = 4.0
"""How far, in σ, an axis may stand in those codes that were edited."""
NEVER = 2.0
"""No probability."""
SIZE = 64
"""Pixels a side of what is drawn again."""
LEAST = 0.01
"""Share of the avatar in a pixel above which it tells nothing of the ground."""


def codes_of(generator: Generator, n: int, *, edited: float, seed: int) -> Tensor:
    """Draw codes [n, dim]; in a share of them one axis of a subspace is uniform on ±`FARTHEST` instead of normal."""
    config = generator.network.config
    rng = generator_for(seed, "redrawn codes")
    codes = rng.standard_normal((n, config.dim), np.float32)
    rows = np.flatnonzero(rng.random(n) < edited)
    axes = rng.integers(config.noise_dim, config.dim, len(rows))
    codes[rows, axes] = rng.uniform(-FARTHEST, FARTHEST, len(rows))
    return torch.from_numpy(codes)


def factors_of(scores: Mapping[str, np.ndarray], *, least: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Return the factors that the drawing program takes, for what the reader says of n faces.

    Args:
        scores: attribute of the reader -> scores [n].
        least: probability from which on what may be absent is there, by factor; 0.5 where it names none.
    """
    factors: dict[str, np.ndarray] = {}
    for factor in FACTORS:
        if factor.name.startswith("background"):
            continue
        if not isinstance(factor, Category):
            factors[factor.name] = scores[factor.name].astype(np.float32)
        elif factor.is_presence:
            factors[factor.name] = (scores[factor.name] >= least.get(factor.name, 0.5)).astype(np.int16)
        else:
            each = np.stack([scores[f"{factor.name}={category}"] for category in factor.categories])
            factors[factor.name] = each.argmax(0).astype(np.int16)
    factors["skin_tone"] = factors["skin_tone"].clip(0.0, 1.0)
    for factor in FACTORS:
        if isinstance(factor, Category) and factor.name in factors:
            factors[factor.name][~applies(factor, factors)] = ABSENT_CODE
    return factors


def redrawn(images: np.ndarray, factors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draw faces of these factors over the grounds of images, uint8 [n, resolution, resolution, 3]."""
    resolution = images.shape[1]
    avatars = render_avatars(factors, resolution=resolution)
    alpha = avatars[..., 3:]
    picture = avatars[..., :3] + (1.0 - alpha) * grounds(images / 255.0, alpha[..., 0])
    return np.clip(np.rint(picture * 255.0), 0, 255).astype(np.uint8)


def grounds(images: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return the grounds of images in [0, 1], [n, r, r, 3]: the planes that fit best where there is no avatar.

    Args:
        images: [n, r, r, 3].
        alpha: share of the avatar in each pixel, [n, r, r].
    """
    n, resolution = images.shape[:2]
    places = (np.arange(resolution) + 0.5) / resolution - 0.5
    y, x = np.meshgrid(places, places, indexing="ij")
    basis = np.stack([np.ones_like(x), x, y], axis=-1).reshape(-1, 3)  # [pixels, 3]
    values = images.reshape(n, -1, 3)
    weight = (alpha.reshape(n, -1) < LEAST).astype(np.float64)
    for _ in range(3):  # what lies far off the plane, hair or an ear, counts less from round to round
        gram = np.einsum("nw,wi,wj->nij", weight, basis, basis) + 1e-6 * np.eye(3)
        plane = np.linalg.solve(gram, np.einsum("nw,wi,nwc->nic", weight, basis, values))
        fitted = basis @ plane  # [n, pixels, 3]
        off = np.abs(values - fitted).max(-1)
        weight = (alpha.reshape(n, -1) < LEAST) / np.maximum(off, 0.01)
    return fitted.reshape(images.shape).clip(0.0, 1.0)


def make_pairs(
    generator: Generator,
    n: int,
    *,
    edited: float = 0.2,
    least: Mapping[str, float] | None = None,
    seed: int = 0,
    workers: int = 1,
) -> dict[str, np.ndarray]:
    """Return `codes` float32 [n', dim], `images` uint8 [n', r, r, 3] and `pose` float32 [n', 4], as `POSE` has it.

    They are those n' of n whose pictures the reader takes for faces.
    """
    reader = open_reader("toonfaces")
    codes = codes_of(generator, n, edited=edited, seed=seed)
    kept, poses, drawn, waiting = [], [], [], list[Future[np.ndarray]]()

    def read() -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        for start in range(0, n, CHUNK):
            with torch.inference_mode():
                seen = to_uint8(generator.network(codes[start : start + CHUNK]))
            reading = reader.read(from_uint8(seen))
            is_face = reading.certain[:, reader.attributes.index(POSE[0])].numpy()
            scores = {name: reading.scores[is_face, i].numpy() for i, name in enumerate(reader.attributes)}
            factors = factors_of(scores, least=least or {})
            kept.append(is_face)
            poses.append(np.stack([factors[name] for name in POSE], axis=1))
            yield seen[is_face], factors

    with ThreadPoolExecutor(workers) as pool:
        for images, factors in read():
            waiting.append(pool.submit(redrawn, images, factors))
            if len(waiting) > workers:
                drawn.append(waiting.pop(0).result())
        drawn += [each.result() for each in waiting]
    chosen = codes.numpy()[np.concatenate(kept)]
    return {"codes": chosen, "images": np.concatenate(drawn), "pose": np.concatenate(poses)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        args = _read_arguments(argv)
        check_drawing(HERE)
        generator = load_generator(args.generator, device="cpu")
        _check(generator)
    except (RequestError, UserError) as error:
        sys.stderr.write(f"redraw.py: {error}\n")
        return 2
    set_threads(args.threads)
    choices = {
        "edited": args.edited,
        "least": dict.fromkeys(args.without, NEVER),
        "seed": args.seed,
        "workers": args.workers,
    }
    pairs = make_pairs(generator, args.n, **choices)
    size = write_npz(args.out, pairs)
    sys.stderr.write(f"{args.out}: {len(pairs['codes'])} pairs of {args.n}, {size / 1e6:.2f} MB\n")
    return 0


def _check(generator: Generator) -> None:
    """Raise `RequestError` where a generator cannot be one of toon faces that can be read."""
    if generator.family != "eigengan":
        raise RequestError(f"{generator.name} is of the family {generator.family}; give an EigenGAN of toon faces")
    config = generator.network.config
    if (config.channels, config.resolution) != (3, SIZE):
        came = f"{config.resolution} px with {config.channels} channel{'s' if config.channels > 1 else ''}"
        raise RequestError(f"{generator.name} draws {came}; give an EigenGAN of toon faces, {SIZE} px with 3 channels")


def _read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generator", help="an EigenGAN of toon faces: a name, or a folder")
    parser.add_argument("--n", type=int, default=26000, help="codes to draw (default: 26000)")
    parser.add_argument("--seed", type=int, default=0, help="of the codes (default: 0)")
    parser.add_argument("--edited", type=float, default=0.2, help="share of codes with one axis far out (default: 0.2)")
    presences = [factor.name for factor in FACTORS if isinstance(factor, Category) and factor.is_presence]
    parser.add_argument(
        "--without", action="append", default=[], choices=presences, help="what no face is to have; may be given twice"
    )
    parser.add_argument("--threads", type=int, help="of the CPU; by default one a core")
    parser.add_argument("--workers", type=int, default=1, help="drawing processes at a time (default: 1)")
    parser.add_argument("--out", type=Path, required=True, help="path of the .npz file to write")
    return parse(parser, argv, n=(1, 10**7), workers=(1, 64))


if __name__ == "__main__":
    sys.exit(main())
