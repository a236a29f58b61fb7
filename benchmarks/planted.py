"""Whether learned directions find what was planted: `python -m benchmarks.planted`.

A renderer draws a blob whose x, y, size, hue and angle live in a rotated subspace of its latent (`tests/blobs.py`).

`span`: `voynov` in 32 dimensions, in three rounds; `--rounds 1,3` adds one, of equal directions and steps. The
figures are the principal angles between the factors' subspace and the span of the directions, beside those of random
frames, each factor's angle to that span, and its largest |cos| with one direction; the loss leaves rotations free, so
that these need not be 1.

`bent`: the factors turn into each other along the way, in 12 dimensions. `voynov` and `warped` take equal steps; the
figure is `recovery`, a fresh network's accuracy.

A cell that the results file holds under the same settings and steps is taken up from there. The runs of the others are
kept in the work folder: the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
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

Cell = dict[str, Any]
Key = tuple[str, str, int, int]
"""Part, what, steps, seed."""
RESULTS = Path(__file__).parent / "results" / "planted.json"
COMMON: dict[str, Any] = {"learning_rate": 3e-3, "shift": 3.0, "learn_in": "fp32", "patience": 0}
SPAN = COMMON | {"n_directions": 12, "shift_weight": 1.0, "noise": 0.5, "body": "resnet", "width": 0.25}
SPAN_STEPS = 4500
BENT = COMMON | {"n_directions": 5, "noise": 0.2, "body": "lenet", "width": 2.0}
BENT_STEPS = 1500
N_DIPOLES = 8
SCORE = Recovery(n_codes=150, n_moves=8, n_tests=200, n_epochs=8)
BEND = 0.5
"""Radians per σ."""
FRAMES = 200
"""Random frames beside which angles are told."""


def measure(vectors: Tensor, axes: Tensor) -> dict[str, Any]:
    """Compare directions [k, dim] with the factors' axes [5, dim]."""
    cosines = torch.nn.functional.normalize(vectors, dim=1) @ axes.T  # [k, 5]
    largest = cosines.abs().amax(0).tolist()
    apart = [float(principal_angles(axis[None], vectors)) for axis in axes]
    return {
        "angles": principal_angles(vectors, axes).tolist(),
        "factor_angles": dict(zip(FACTORS, apart, strict=True)),
        "largest_cos": dict(zip(FACTORS, largest, strict=True)),
    }


def run_span(rounds: int, seed: int, run: Path, steps: int) -> dict[str, Any]:
    """Fit one set, and say where it stands."""
    g, axes = blobs()
    found = Voynov(n_steps=steps, rounds=rounds, **SPAN).fit(g, seed=seed, run=run)
    return measure(found.vectors[:, 0], axes)


def run_bent(kind: str, seed: int, run: Path, steps: int) -> dict[str, Any]:
    """Fit one set where axes are bent, and score it."""
    g, _ = blobs(bend=BEND, resolution=16, dim=12)
    method = Voynov(n_steps=steps, **BENT) if kind == "voynov" else Warped(n_steps=steps, n_dipoles=N_DIPOLES, **BENT)
    found = method.fit(g, seed=seed, run=run)
    score = SCORE.score(g, found, seed=seed)
    return {"recovery": score.value, "random": score.details["random"], "held_out": float(found.importance.mean())}


def run_cell(part: str, what: Any, seed: int, work: Path, steps: int) -> Cell:
    """Run one cell."""
    cpu = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of duplicates, which the figures tell
        run = work / f"{part}-{what}-{seed}-{steps}"
        figures = (run_span if part == "span" else run_bent)(what, seed, run, steps)
    cell = {"part": part, "what": what, "seed": seed, "steps": steps, **figures}
    return cell | {"cpu_s": time.process_time() - cpu, "settings": settings_of(part), "machine": machine()}


def settings_of(part: str) -> dict[str, Any]:
    """Return what fixes a cell beside what it is of, its seed and its steps."""
    return SPAN if part == "span" else BENT | {"n_dipoles": N_DIPOLES, "bend": BEND}


def key_of(cell: Cell) -> Key:
    """Return what tells cells apart, in the order in which they are listed."""
    return cell["part"], str(cell["what"]), cell["steps"], cell["seed"]


def taken_up(path: Path) -> dict[Key, Cell]:
    """Read the cells of a results file that were measured by the settings of now."""
    cells = json.loads(path.read_text("utf-8"))["cells"] if path.exists() else []
    return {key_of(cell): cell for cell in cells if cell["settings"] == settings_of(cell["part"])}


def chance() -> list[float]:
    """Return the mean angles of random frames of as many directions."""
    axes = blobs()[1]
    n = SPAN["n_directions"]
    frames = [LearnedFrame(n, axes.shape[1], "orthonormal", seed)().detach() for seed in range(FRAMES)]
    return torch.stack([principal_angles(frame, axes) for frame in frames]).mean(0).tolist()


def by_factor(figures: dict[str, float], form: str) -> str:
    """Return a figure of each factor, in their order."""
    return ", ".join(form.format(figures[name]) for name in FACTORS)


def print_tables(cells: list[Cell], by_chance: list[float]) -> None:
    """Print what was found, a line a cell."""
    names = ", ".join(FACTORS)
    print(f"\n| voynov | seed | span, degrees | of it {names}, degrees | largest \\|cos\\| of {names} |")
    print("|---" * 5 + "|")
    for cell in (each for each in cells if each["part"] == "span"):
        angles = ", ".join(f"{angle:.1f}" for angle in cell["angles"])
        apart = by_factor(cell["factor_angles"], "{:.1f}") if "factor_angles" in cell else ""
        rounds = f"{cell['what']} round{'s' * (cell['what'] > 1)} of {cell['steps'] // cell['what']} steps"
        print(f"| {rounds} | {cell['seed']} | {angles} | {apart} | {by_factor(cell['largest_cos'], '{:.2f}')} |")
    print(f"| random frames | mean of {FRAMES} | {', '.join(f'{angle:.0f}' for angle in by_chance)} | | |")
    bent = {(cell["what"], (cell["steps"], cell["seed"])): cell for cell in cells if cell["part"] == "bent"}
    print("\n| bent, steps | seed | voynov | warped | difference | random |")
    print("|---" * 6 + "|")
    gaps = []
    for steps, seed in sorted(key for what, key in bent if what == "voynov" and ("warped", key) in bent):
        straight, curved = (bent[what, (steps, seed)] for what in ("voynov", "warped"))
        gaps.append(curved["recovery"] - straight["recovery"])
        figures = f"{straight['recovery']:.3f} | {curved['recovery']:.3f} | {gaps[-1]:+.3f} | {straight['random']:.3f}"
        print(f"| {steps} | {seed} | {figures} |")
    if len(gaps) > 1:
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        print(f"\nwarped - voynov: {statistics.mean(gaps):+.3f}, standard error {error:.3f}, {len(gaps)} pairs")


def main() -> None:
    """Run cells, write the results, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="span,bent")
    parser.add_argument("--span-seeds", default="0-4")
    parser.add_argument("--bent-seeds", default="0-2")
    parser.add_argument("--rounds", default="3")
    parser.add_argument("--span-steps", type=int, default=SPAN_STEPS)
    parser.add_argument("--bent-steps", type=int, default=BENT_STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/planted"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    runtime.set_threads(options.threads)
    cells = taken_up(options.out)
    by_chance = chance()
    for part, whats, seeds, steps in (
        ("span", [int(each) for each in options.rounds.split(",")], options.span_seeds, options.span_steps),
        ("bent", ["voynov", "warped"], options.bent_seeds, options.bent_steps),
    ):
        for seed, what in itertools.product(parse_seeds(seeds), whats):
            key = key_of({"part": part, "what": what, "seed": seed, "steps": steps})
            if part in options.parts.split(",") and key not in cells:
                cells[key] = run_cell(part, what, seed, options.work, steps)
                in_order = [cells[each] for each in sorted(cells)]
                write_json(options.out, {"random_frames": by_chance, "cells": in_order}, force=True)
    print_tables([cells[each] for each in sorted(cells)], by_chance)


if __name__ == "__main__":
    main()
