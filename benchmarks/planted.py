"""Whether learned directions find what was planted: `python -m benchmarks.planted`.

A renderer draws a blob whose x, y, size, hue and angle live in a rotated subspace of its latent (`tests/blobs.py`).

`span`: `voynov` in 32 dimensions, in three rounds; `--rounds 1,3` adds one, of equal directions and steps. The
figures are the principal angles between the factors' subspace and the span of the directions, beside those of random
frames, and each factor's largest |cos| with one direction; the loss leaves rotations free, so that these need not be 1.

`bent`: the factors turn into each other along the way, in 12 dimensions. `voynov` and `warped` take equal steps; the
figure is `recovery`, a fresh network's accuracy.

Cells and their runs are kept in the work folder: the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._machine import machine
from eigenlens import runtime
from eigenlens.algebra import principal_angles
from eigenlens.commands.words import parse_seeds
from eigenlens.files import write_json
from eigenlens.methods.learning import LearnedFrame
from eigenlens.methods.voynov import Voynov
from eigenlens.methods.warped import Warped
from eigenlens.metrics.recovery import Recovery

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from blobs import FACTORS, blobs

RESULTS = Path(__file__).parent / "results" / "planted.json"
COMMON: dict[str, Any] = {"learning_rate": 3e-3, "shift": 3.0, "learn_in": "fp32", "patience": 0}
SPAN = COMMON | {"n_directions": 12, "shift_weight": 1.0, "noise": 0.5, "body": "resnet", "width": 0.25}
SPAN_STEPS = 3000
BENT = COMMON | {"n_directions": 5, "noise": 0.2, "body": "lenet", "width": 2.0}
BENT_STEPS = 1500
SCORE = Recovery(n_codes=150, n_moves=8, n_tests=200, n_epochs=8)
BEND = 0.5
"""Radians per σ."""
FRAMES = 200
"""Random frames beside which angles are told."""


def measure(vectors: Tensor, axes: Tensor) -> dict[str, Any]:
    """Compare directions [k, dim] with the factors' axes [5, dim]."""
    cosines = torch.nn.functional.normalize(vectors, dim=1) @ axes.T  # [k, 5]
    largest = cosines.abs().amax(0).tolist()
    return {"angles": principal_angles(vectors, axes).tolist(), "largest_cos": dict(zip(FACTORS, largest, strict=True))}


def run_span(rounds: int, seed: int, run: Path, steps: int) -> dict[str, Any]:
    """Fit one set, and say where it stands."""
    g, axes = blobs()
    found = Voynov(n_steps=steps, rounds=rounds, **SPAN).fit(g, seed=seed, run=run)
    return measure(found.vectors[:, 0], axes)


def run_bent(kind: str, seed: int, run: Path, steps: int) -> dict[str, Any]:
    """Fit one set where axes are bent, and score it."""
    g, _ = blobs(bend=BEND, resolution=16, dim=12)
    method = Voynov(n_steps=steps, **BENT) if kind == "voynov" else Warped(n_steps=steps, n_dipoles=8, **BENT)
    found = method.fit(g, seed=seed, run=run)
    score = SCORE.score(g, found, seed=seed)
    return {"recovery": score.value, "random": score.details["random"], "held_out": float(found.importance.mean())}


def run_cell(part: str, what: Any, seed: int, work: Path, steps: int) -> None:
    """Run one cell, unless it is there."""
    place = work / f"{part}-{what}-{seed}"
    if (place / "cell.json").exists():
        return
    cpu = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of duplicates, which the figures tell
        figures = (run_span if part == "span" else run_bent)(what, seed, place / "run", steps)
    cell = {"part": part, "what": what, "seed": seed, "steps": steps, **figures}
    write_json(place / "cell.json", cell | {"cpu_s": time.process_time() - cpu}, force=True)


def chance() -> list[float]:
    """Return the mean angles of random frames of as many directions."""
    axes = blobs()[1]
    n = SPAN["n_directions"]
    frames = [LearnedFrame(n, axes.shape[1], "orthonormal", seed)().detach() for seed in range(FRAMES)]
    return torch.stack([principal_angles(frame, axes) for frame in frames]).mean(0).tolist()


def print_tables(cells: list[dict[str, Any]], by_chance: list[float]) -> None:
    """Print what was found, a line a cell."""
    print("\n| voynov | seed | span, degrees | largest \\|cos\\| of " + ", ".join(FACTORS) + " |\n|---|---|---|---|")
    for cell in (each for each in cells if each["part"] == "span"):
        angles = ", ".join(f"{angle:.0f}" for angle in cell["angles"])
        cosines = ", ".join(f"{cell['largest_cos'][name]:.2f}" for name in FACTORS)
        print(f"| {cell['what']} round{'s' * (cell['what'] > 1)} | {cell['seed']} | {angles} | {cosines} |")
    print(f"| random frames | mean of {FRAMES} | {', '.join(f'{angle:.0f}' for angle in by_chance)} | |")
    bent = {(cell["what"], cell["seed"]): cell for cell in cells if cell["part"] == "bent"}
    seeds = sorted({seed for kind, seed in bent if {("voynov", seed), ("warped", seed)} <= set(bent)})
    print("\n| bent, seed | voynov | warped | difference | random |\n|---|---|---|---|---|")
    gaps = [bent["warped", seed]["recovery"] - bent["voynov", seed]["recovery"] for seed in seeds]
    for seed, gap in zip(seeds, gaps, strict=True):
        straight, curved = (bent[kind, seed] for kind in ("voynov", "warped"))
        figures = f"{straight['recovery']:.3f} | {curved['recovery']:.3f} | {gap:+.3f} | {straight['random']:.3f}"
        print(f"| {seed} | {figures} |")
    if len(gaps) > 1:
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        print(f"\nwarped - voynov: {statistics.mean(gaps):+.3f}, standard error {error:.3f}, {len(gaps)} seeds")


def main() -> None:
    """Run cells, write the results, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="span,bent")
    parser.add_argument("--span-seeds", default="0-2")
    parser.add_argument("--bent-seeds", default="0-2")
    parser.add_argument("--rounds", default="3")
    parser.add_argument("--span-steps", type=int, default=SPAN_STEPS)
    parser.add_argument("--bent-steps", type=int, default=BENT_STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/planted"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    runtime.set_threads(options.threads)
    if "span" in options.parts.split(","):
        for rounds in map(int, options.rounds.split(",")):
            for seed in parse_seeds(options.span_seeds):
                run_cell("span", rounds, seed, options.work, options.span_steps)
    if "bent" in options.parts.split(","):
        for seed in parse_seeds(options.bent_seeds):
            for kind in ("voynov", "warped"):
                run_cell("bent", kind, seed, options.work, options.bent_steps)
    cells = [json.loads(path.read_text("utf-8")) for path in sorted(options.work.glob("*/cell.json"))]
    settings = {"span": SPAN, "bent": BENT | {"n_dipoles": 8, "bend": BEND}}
    about = {"machine": machine(), "settings": settings}
    by_chance = chance()
    print_tables(cells, by_chance)
    write_json(options.out, {"about": about, "random_frames": by_chance, "cells": cells}, force=True)


if __name__ == "__main__":
    main()
