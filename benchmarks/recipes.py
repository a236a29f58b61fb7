"""What each recipe of an EigenGAN does, at equal length: `python -m benchmarks recipes --data toon=toon32.npz`.

    python -m benchmarks recipes --data toon=toon32.npz --data cats=cats32.npz --recipes published,floor --seeds 0-2
    python -m benchmarks recipes --table      # prints what is there

Every cell (data, recipe, seed) is a training of `--kimg` at 32 px, in its own run folder of `--runs`, where a stopped
one goes on; what was finished is not trained again. Then the averaged generator is measured: its sliced Wasserstein
distance to the data, and the effect of each axis. The results file holds all cells, the table is made from it.

The data are those of the tools: `tools/toonfaces/render.py --n 40000 --seed 0` at 32 px, and `tools/robohash`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from benchmarks._machine import machine
from benchmarks._training import train_whole
from eigenlens import runtime
from eigenlens.commands.words import parse_seeds
from eigenlens.effect import measure_effect
from eigenlens.files import write_json
from eigenlens.generator import Generator, load_generator
from eigenlens.method import METHODS
from eigenlens.training.data import open_dataset
from eigenlens.training.eigengan import configure, strongest_of, train
from eigenlens.training.run import data_distance

RESULTS = Path(__file__).parent / "results" / "recipes.json"
BASE: dict[str, Any] = {
    "resolution": 32, "noise_dim": 64, "base_channels": 16, "batch": 32, "learning_rate": 4e-4, "distance_images": 1024,
    "watch_kimg": 20,
}  # fmt: skip
"""Beside the preset `cpu-64`: small and quick."""
FLOOR = {"effect_floor": 0.15}
RECIPES: dict[str, dict[str, Any]] = {
    "published": {},
    "floor": FLOOR,
    "no subspaces": {"n_basis": 0, "noise_dim": 82},
    "information": {"information_weight": 1.0},
    "floor and information": FLOOR | {"information_weight": 1.0},
    "equal L": {"importance_init": "equal"},
    "ascending L": {"importance_init": "ascending"},
    "hard orthogonality": FLOOR | {"orthogonality": "hard"},
    "add injection": FLOOR | {"injection": "add"},
    "q = 3": FLOOR | {"n_basis": 3},
    "q = 12": FLOOR | {"n_basis": 12},
    "R1 1": FLOOR | {"r1_weight": 1.0},
    "R1 scaled": FLOOR | {"r1_scaled": True},
    "EMA 20 kimg": FLOOR | {"ema_half_life": 20.0},
    "DiffAugment": FLOOR | {"augment": ("color", "translation", "cutout")},
    "batch 64 rate 2e-4": FLOOR | {"batch": 64, "learning_rate": 2e-4},
    "widths x 2": FLOOR | {"base_channels": 32},
}
"""Name -> what it changes. `no subspaces` has as many numbers, eps' 64 and 3 layers of 6, all at the base."""
DEAD = 0.05
"""Share of the strongest axis's effect below which an axis counts as dead."""


def folder_of(runs: Path, data: str, recipe: str, seed: int) -> Path:
    """Return the run folder of a cell."""
    return runs / f"{data}-{recipe.replace(' ', '-')}-seed{seed}"


def measured(run: Path, data: Path) -> dict[str, Any]:
    """Measure the averaged generator of a finished run."""
    generator = load_generator(run / "last")
    about = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    images = open_dataset(data, resolution=generator.resolution, channels=generator.channels, cache=run.parent / "data")
    levels = data_distance(generator, images, BASE["distance_images"])
    ticks = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    found = {
        "kimg": about["config"]["kimg"],
        "distance": sum(levels.values()) / len(levels),
        "seconds": max(tick["seconds"] for tick in ticks if "seconds" in tick),
    }
    return found | (of_axes(generator) if any(generator.network.config.bases) else {})


def of_axes(generator: Generator) -> dict[str, Any]:
    """Measure what the axes of a generator do."""
    axes = METHODS["eigen"](measured=False).fit(generator)
    effects = measure_effect(generator, axes, n=64, seed=1)
    strongest = strongest_of(effects, generator.own_axes().layers).values()
    return {
        "effects": dict(zip(axes.names, effects.tolist(), strict=True)),
        "weakest_layer": min(strongest) / max(strongest),
        "dead_axes": int((effects < DEAD * effects.max()).sum()),
        "axes": len(axes),
    }


def in_order(cells: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort cells by data, recipe as listed, and seed."""
    return sorted(cells, key=lambda cell: (cell["data"], list(RECIPES).index(cell["recipe"]), cell["seed"]))


def table(cells: list[dict[str, Any]]) -> str:
    """Return the cells as Markdown, a row for each data and recipe: means over seeds, with the range of each."""
    lines = [
        "| data | recipe | seeds | distance | strongest axis of the weakest layer, share of the strongest | "
        f"axes under {DEAD:.0%} |",
        "|---|---|---|---|---|---|",
    ]
    for data, recipe in dict.fromkeys((cell["data"], cell["recipe"]) for cell in cells):
        same = [cell for cell in cells if (cell["data"], cell["recipe"]) == (data, recipe)]
        distance, weakest, dead = spread([cell["distance"] for cell in same], "{:.1f}"), "-", "-"
        if "axes" in same[0]:
            weakest = spread([cell["weakest_layer"] for cell in same], "{:.2f}")
            dead = spread([cell["dead_axes"] for cell in same], "{:.0f}") + f" of {same[0]['axes']}"
        lines.append(f"| {data} | {recipe} | {len(same)} | {distance} | {weakest} | {dead} |")
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    """Return a mean, with the least and the largest behind it where there are several."""
    mean = form.format(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def chosen(parser: argparse.ArgumentParser, text: str) -> list[str]:
    """Return the recipes that a text names, with commas between; one that is not known ends the command."""
    names = [name.strip() for name in text.split(",")]
    if unknown := set(names) - set(RECIPES):
        parser.error(f"unknown recipes: {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    return names


def main() -> None:
    """Train what is missing, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--kimg", type=float, default=40.0)
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the results file alone")
    args = parser.parse_args()
    kept = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {"cells": []}
    cells = {(cell["data"], cell["recipe"], cell["seed"]): cell for cell in kept["cells"]}
    recipes = [] if args.table else chosen(parser, args.recipes)
    runtime.set_threads(args.threads)
    for seed in parse_seeds(args.seeds):
        for recipe in recipes:
            for name, _, path in (each.partition("=") for each in args.data):
                if (name, recipe, seed) in cells:
                    continue
                run = folder_of(args.runs, name, recipe, seed)
                config = configure("cpu-64", **(BASE | RECIPES[recipe]), kimg=args.kimg, seed=seed)
                train_whole(train, config, data=path, run=run, threads=args.threads)
                cell = {"data": name, "recipe": recipe, "seed": seed} | measured(run, Path(path))
                cells[name, recipe, seed] = cell
                write_json(args.out, {"machine": machine(), "cells": in_order(cells.values())}, force=True)
    print(table(in_order(cells.values())))


if __name__ == "__main__":
    main()
