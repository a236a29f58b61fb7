"""Render labelled toon faces into one .npz file: `python render.py --n 40000 --seed 0 --out toonfaces.npz`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the renderers share
from rendering import RequestError, add_compress, check_drawing, draw_looks, parse, parser_of, write_npz
from toonface_factors import (
    FACTORS,
    SKIN_RAMP,
    Category,
    applies,
    describe_factors,
    lab_factor,
    lab_to_srgb,
    parse_correlation,
    parse_rarity,
    sample_factors,
    skin_lab,
)

HERE = Path(__file__).resolve().parent
FORMAT = "toonfaces_v1"
CHUNK = 500
OVERSAMPLING = 2
"""Avatars are drawn at this multiple of the resolution and averaged: seams between touching shapes vanish."""

ATTRIBUTION = (
    "Faces: the design 'ToonHead' by Johan Melin (https://www.johanmelin.com), "
    "https://www.figma.com/community/file/1589627891082866389, licensed under CC BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/), in the DiceBear package @dicebear/toon-head. "
    "Changed: parts combined at random, recoloured, moved, continued at the lower edge, "
    "and put on drawn backgrounds."
)


def render_avatars(factors: Mapping[str, np.ndarray], *, resolution: int) -> np.ndarray:
    """Draw the avatars alone, on a transparent ground.

    Returns:
        RGBA with premultiplied alpha in [0, 1], [n, resolution, resolution, 4].
    """
    n = len(factors["rotation"])
    size = resolution * OVERSAMPLING
    return averaged(draw_looks(HERE, _looks(factors), size=size), n, resolution)


def averaged(pixels: np.ndarray, n: int, resolution: int) -> np.ndarray:
    """Average what the drawing program gave down to the resolution: [n, resolution, resolution, 4] in [0, 1]."""
    blocks = pixels.reshape(n, resolution, OVERSAMPLING, resolution, OVERSAMPLING, 4)
    return blocks.mean(axis=(2, 4), dtype=np.float64) / 255.0


def draw_backgrounds(factors: Mapping[str, np.ndarray], *, resolution: int) -> np.ndarray:
    """Draw the backgrounds, sRGB in [0, 1], [n, resolution, resolution, 3]."""
    kind_factor = next(factor for factor in FACTORS if factor.name == "background_kind")
    assert isinstance(kind_factor, Category)
    kinds = factors["background_kind"]
    first_lab = lab_factor(factors, "background")
    strength = np.nan_to_num(factors["background_strength"].astype(np.float64))[:, None]
    second_lab = first_lab + strength * (np.nan_to_num(lab_factor(factors, "background2")) - first_lab)
    angle = np.deg2rad(np.nan_to_num(factors["background_angle"].astype(np.float64)))[:, None, None]
    turn = 2.0 * np.pi * np.nan_to_num(factors["background_frequency"].astype(np.float64))[:, None, None]

    places = (np.arange(resolution) + 0.5) / resolution - 0.5
    x, y = places[None, None, :], places[None, :, None]
    across = x * np.cos(angle) + y * np.sin(angle)  # [n, resolution, resolution]
    down = y * np.cos(angle) - x * np.sin(angle)
    reach = np.abs(np.cos(angle)) + np.abs(np.sin(angle))  # from one corner to the opposite one

    weight = np.zeros(across.shape)
    patterns = {
        "gradient": down / reach + 0.5,
        "stripes": 0.5 + 0.5 * np.clip(2.5 * np.cos(turn * down), -1.0, 1.0),
        "dots": 0.5 + 0.5 * np.clip(2.0 * (np.cos(turn * across) + np.cos(turn * down) - 0.7), -1.0, 1.0),
    }
    for name, pattern in patterns.items():
        chosen = kinds == kind_factor.categories.index(name)
        weight[chosen] = pattern[chosen]
    first = lab_to_srgb(first_lab)[:, None, None, :]
    second = lab_to_srgb(second_lab)[:, None, None, :]
    return first + weight[..., None] * (second - first)


def render_faces(factors: Mapping[str, np.ndarray], *, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw faces over their backgrounds.

    Returns:
        Images uint8 [n, resolution, resolution, 3] and masks bool [n, resolution, resolution], True where the avatar
        covers at least half of a pixel.
    """
    return composed(render_avatars(factors, resolution=resolution), factors, resolution=resolution)


def composed(
    avatars: np.ndarray, factors: Mapping[str, np.ndarray], *, resolution: int
) -> tuple[np.ndarray, np.ndarray]:
    """Put avatars over their backgrounds; see `render_faces`."""
    alpha = avatars[..., 3:]
    picture = avatars[..., :3] + (1.0 - alpha) * draw_backgrounds(factors, resolution=resolution)
    images = np.clip(np.rint(picture * 255.0), 0, 255).astype(np.uint8)
    return images, alpha[..., 0] >= 0.5


def render_dataset(
    factors: Mapping[str, np.ndarray], *, resolution: int, workers: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Draw all faces in chunks; the result does not depend on `workers`.

    Returns:
        Images uint8 [n, resolution, resolution, 3] and masks packed eight pixels to the byte,
        uint8 [n, resolution * resolution / 8].
    """
    n = len(factors["rotation"])
    images = np.empty((n, resolution, resolution, 3), dtype=np.uint8)
    masks = np.empty((n, resolution * resolution // 8), dtype=np.uint8)

    def draw(start: int) -> None:
        part = slice(start, min(start + CHUNK, n))
        chunk = {name: values[part] for name, values in factors.items()}
        images[part], full_masks = render_faces(chunk, resolution=resolution)
        masks[part] = np.packbits(full_masks.reshape(len(full_masks), -1), axis=1)

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(draw, range(0, n, CHUNK)):
            pass
    return images, masks


def pack_dataset(
    images: np.ndarray, masks: np.ndarray, factors: Mapping[str, np.ndarray], meta: Mapping[str, object]
) -> dict[str, np.ndarray]:
    """Name the arrays as they stand in the .npz file."""
    arrays = {"images": images, "masks": masks}
    arrays.update({f"factor/{name}": values for name, values in factors.items()})
    arrays["meta"] = np.array(json.dumps({**meta, "n": len(images)}, sort_keys=True))
    return arrays


def describe_dataset(args: argparse.Namespace) -> dict[str, object]:
    """Return the `meta` entry: everything needed to draw the set again, and whom to credit."""
    return {
        "format": FORMAT,
        "seed": args.seed,
        "resolution": args.resolution,
        "correlate": [list(tie) for tie in args.correlate],
        "rare": [list(rarity) for rarity in args.rare],
        "factors": describe_factors(args.rare),
        "absent": "codes are -1 and numbers NaN where a factor does not apply (see applies_to)",
        "skin_ramp": list(SKIN_RAMP),
        "masks": "np.unpackbits(masks, axis=1).reshape(-1, resolution, resolution) is 1 where the avatar covers "
        "half of a pixel or more",
        "attribution": ATTRIBUTION,
        "licence": "CC BY 4.0",
        "versions": renderer_versions(),
    }


def renderer_versions() -> dict[str, str]:
    """Return the pinned versions of the drawing packages."""
    return json.loads((HERE / "package.json").read_text(encoding="utf-8"))["dependencies"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        args = _read_arguments(argv)
        check_drawing(HERE)
        _check_folder(args.out.parent)
        factors = sample_factors(args.n, seed=args.seed, correlations=args.correlate, rarities=args.rare)
    except RequestError as error:
        sys.stderr.write(f"render.py: {error}\n")
        return 2
    images, masks = render_dataset(factors, resolution=args.resolution, workers=args.workers)
    arrays = pack_dataset(images, masks, factors, describe_dataset(args))
    size = write_npz(args.out, arrays, compress=args.compress)
    sys.stderr.write(f"{args.out}: {args.n} faces, {size / 1e6:.2f} MB\n")
    return 0


def _looks(factors: Mapping[str, np.ndarray]) -> Iterator[dict[str, object]]:
    """Give what the drawing program needs, face by face: placement, part names and colours."""
    parts = [f for f in FACTORS if isinstance(f, Category) and not f.is_presence and f.name != "background_kind"]
    shown = {part.name: applies(part, factors) for part in parts}
    colors = {
        "skin": skin_lab(factors["skin_tone"].astype(np.float64)),
        "hair": lab_factor(factors, "hair"),
        "clothes": lab_factor(factors, "clothes"),
    }
    codes = {name: np.rint(lab_to_srgb(lab) * 255.0).astype(int) for name, lab in colors.items()}
    for row in range(len(factors["rotation"])):
        look: dict[str, object] = {
            name: round(float(factors[name][row]), 6) for name in ("rotation", "scale", "shift_x", "shift_y")
        }
        for part in parts:
            look[part.name] = part.categories[factors[part.name][row]] if shown[part.name][row] else None
        for name, rgb in codes.items():
            look[f"{name}_color"] = "".join(f"{channel:02x}" for channel in rgb[row])
        yield look


def _check_folder(folder: Path) -> None:
    """Find out before the long part whether the result can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out: the folder {folder} cannot be made ({error.strerror}); choose another") from error
    if not os.access(folder, os.W_OK):
        raise RequestError(f"--out: the folder {folder} cannot be written to; choose another")


def _read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    side = "side in pixels, a multiple of 8"
    parser = parser_of("labelled toon faces", one="face", n=40000, resolution=64, side=side)
    parser.add_argument("--correlate", action="append", default=[], metavar="A:B=R", help="tie B to A, -1 <= R <= 1")
    parser.add_argument(
        "--rare", action="append", default=[], metavar="F=P", help="probability of F (beard=0.02, hair_style.bun=0.02)"
    )
    parser.add_argument("--workers", type=int, default=1, help="drawing processes at a time (default: 1)")
    add_compress(parser)
    args = parse(parser, argv, n=(1, 10**7), resolution=(16, 1024), workers=(1, 64))
    if args.resolution % 8:
        nearest = 8 * round(args.resolution / 8)
        raise RequestError(f"--resolution {args.resolution} is not a multiple of 8; try --resolution {nearest}")
    args.correlate = [parse_correlation(text) for text in args.correlate]
    args.rare = [parse_rarity(text) for text in args.rare]
    return args


if __name__ == "__main__":
    sys.exit(main())
