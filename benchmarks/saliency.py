"""Masks that a generator's background directions teach, against the true masks of unseen toon faces.

    npm ci --prefix tools/toonfaces        # once: the renderer of the faces
    python -m benchmarks.saliency          # trains (about five CPU minutes), predicts, scores

The segmenter learns from samples of `toonfaces` and its own axes alone, with the defaults of `eigenlens saliency
train`. The faces are rendered anew with a seed that the generator has not seen; their true masks are read once, after
the training, to score. Beside it stand four ways that need no training. Faces, segmenter and its training state are
kept in the work folder: Ctrl-C saves, the same command goes on, and nothing that is there is made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks._machine import machine
from benchmarks._training import end_if_stopped
from eigenlens.files import write_json

RESULTS = Path(__file__).parent / "results" / "saliency.json"
RENDERER = Path(__file__).parents[1] / "tools" / "toonfaces" / "render.py"
UNSEEN_SEED = 1
N_FACES = 1000


# --- ways that need no training: a picture [h, w, 3] in [0, 1] -> how likely each pixel is the object -----------------


def all_object(picture: np.ndarray) -> np.ndarray:
    """Call everything the object."""
    return np.ones(picture.shape[:2])


def centre_box(picture: np.ndarray) -> np.ndarray:
    """Call the box in the centre, of half the image's area, the object."""
    mask = np.zeros(picture.shape[:2])
    rows, columns = (round((1 - 0.5**0.5) / 2 * side) for side in mask.shape)
    mask[rows : mask.shape[0] - rows, columns : mask.shape[1] - columns] = 1.0
    return mask


def otsu(picture: np.ndarray) -> np.ndarray:
    """Cut the grey levels in two (Otsu, 1979); the part that takes less of the border is the object."""
    grey = picture.mean(2)
    mask = grey > otsu_threshold(grey)
    return (~mask if mask[border(grey.shape)].mean() > 0.5 else mask).astype(float)


def border_colour(picture: np.ndarray) -> np.ndarray:
    """Call what differs from the median colour of the border the object, as far as it does; Otsu's cut lies at 0.5."""
    usual = np.median(picture[border(picture.shape[:2])], axis=0)
    distance = np.linalg.norm(picture - usual, axis=2)
    cut = max(otsu_threshold(distance), 1e-6)
    return np.clip(distance / (2 * cut), 0, 1)


def border(shape: tuple[int, ...]) -> np.ndarray:
    """Return the outermost sixteenth of an image, bool [h, w]."""
    mask = np.ones(shape, bool)
    rows, columns = (max(1, side // 16) for side in shape)
    mask[rows:-rows, columns:-columns] = False
    return mask


def otsu_threshold(values: np.ndarray) -> float:
    """Return the cut that separates values into two classes of least variance."""
    counts, edges = np.histogram(values, 256)
    middles, share = (edges[:-1] + edges[1:]) / 2, counts / counts.sum()
    below = share.cumsum()
    mean = (share * middles).cumsum()
    between = (mean[-1] * below - mean) ** 2 / np.maximum(below * (1 - below), 1e-12)
    return float(middles[between.argmax()])


WAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "all object": all_object,
    "box in the centre": centre_box,
    "Otsu": otsu,
    "distance to the border's colour": border_colour,
}


# --- faces ------------------------------------------------------------------------------------------------------------


def render(folder: Path, n: int, seed: int) -> Path:
    """Render unseen faces, unless they are there."""
    out = folder / f"unseen-{seed}-{n}.npz"
    if out.exists():
        return out
    subprocess.run([sys.executable, str(RENDERER), "--n", str(n), "--seed", str(seed), "--out", str(out)], check=True)
    return out


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images uint8 [n, h, w, 3], true masks bool [n, h, w], and whether the background has a pattern, [n]."""
    with np.load(path) as file:
        images, packed, kinds = file["images"], file["masks"], file["factor/background_kind"]
        names = json.loads(str(file["meta"]))["factors"]["background_kind"]["categories"]
    masks = np.unpackbits(packed, axis=1)[:, : images.shape[1] * images.shape[2]].astype(bool)
    return images, masks.reshape(images.shape[:3]), kinds != names.index("plain")


# --- the run ----------------------------------------------------------------------------------------------------------


def train(folder: Path, generator_name: str, seed: int) -> tuple[Path, dict[str, Any]]:
    """Train a segmenter with the defaults, or go on where it stopped; return its file and what it cost.

    Raises:
        SystemExit: after Ctrl-C or SIGTERM, once the state is saved.
    """
    import eigenlens
    from eigenlens.method import find_directions
    from eigenlens.saliency import Segmenter, background_changes, choose_background, pure_background
    from eigenlens.training.segmenter import SegmenterTraining, train_segmenter

    out, costs = folder / "segmenter.safetensors", folder / "costs.json"
    about = json.loads(costs.read_text("utf-8")) if costs.exists() else {"cpu_s": 0.0, "wall_s": 0.0}
    config = SegmenterTraining(seed=seed)
    if out.exists() and Segmenter.load(out).about["kimg"] >= config.kimg:
        return out, about
    began, cpu = time.perf_counter(), time.process_time()
    generator = eigenlens.load_generator(generator_name)
    axes = find_directions("eigen", generator, measured=False)
    chosen = choose_background(background_changes(generator, axes))
    pure = pure_background(generator, axes, chosen, seed=seed)
    weights = pure.vectors.flatten(1) @ axes.vectors.flatten(1).T  # axes are unit vectors
    made_of = {
        name: {axes.names[k]: round(float(row[k]), 3) for k in row.abs().argsort(descending=True)[:6]}
        for name, row in zip(pure.names, weights, strict=True)
    }
    train_segmenter(generator, pure, config, out=out)
    spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - began}
    about = {name: about[name] + taken for name, taken in spent.items()} | {
        "chosen": [axes.names[k] for k in chosen],
        "made_of": made_of,
    }
    write_json(costs, about, force=True)
    end_if_stopped(Segmenter.load(out).about["kimg"], config.kimg)
    return out, about


def main() -> None:
    """Train, predict, score, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=N_FACES, help="unseen faces")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--generator", default="toonfaces", help="that teaches: a name or a folder")
    parser.add_argument("--work", type=Path, default=Path("runs/saliency"), help="what is made on the way")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--faces", type=Path, help="faces that render.py wrote, instead of rendering them")
    parser.add_argument("--segmenter", type=Path, help="a segmenter to score, instead of training one")
    parser.add_argument("--sheet", type=Path, help="a picture of the first faces with their masks")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()

    from eigenlens import runtime
    from eigenlens.images import from_uint8
    from eigenlens.saliency import Segmenter, mask_sheet, score_masks

    runtime.set_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {}
    segmenter = options.segmenter
    if segmenter is None:
        segmenter, about = train(options.work, options.generator, options.seed)
    network = Segmenter.load(segmenter)
    images, truth, patterned = read(options.faces or render(options.work, options.n, UNSEEN_SEED))
    likely = {way: [function(image / 255.0) for image in images] for way, function in WAYS.items()}
    likely["eigenlens saliency"] = [network(Image.fromarray(image)) for image in images]
    rows = []
    for ground, chosen in (("patterned", patterned), ("plain", ~patterned)):
        places = np.flatnonzero(chosen)
        for way, masks in likely.items():
            scores = score_masks([masks[i] for i in places], [truth[i] for i in places])
            rows.append({"background": ground, "way": way, **dataclasses.asdict(scores)})
            print(
                f"{ground:10} {way:32} max-Fβ {scores.max_f_beta:.3f}  IoU {scores.iou:.3f}  "
                f"accuracy {scores.accuracy:.3f}  MAE {scores.mae:.3f}  n {scores.n}",
                flush=True,
            )
    if options.sheet:
        some = np.flatnonzero(patterned)[:12]
        pictures = [from_uint8(images[i]) for i in some]
        mask_sheet(pictures, [likely["eigenlens saliency"][i] for i in some]).save(options.sheet)
    told = ("generator", "directions", "rule", "training", "kimg", "n_masks")
    training = {key: network.about.get(key) for key in told} | about
    written = {"unseen_seed": UNSEEN_SEED, "training": training, "machine": machine(), "results": rows}
    write_json(options.out, written, force=True)


if __name__ == "__main__":
    main()
