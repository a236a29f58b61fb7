"""How well a network that never saw them can tell a method's directions apart: `python -m benchmarks.recovery`.

    python -m benchmarks.recovery --generators toonfaces --methods voynov,random --seeds 0-2
    python -m benchmarks.recovery --table      # prints what is there

Every cell (generator, method, seed) fits directions and scores them with the metric; the seed fixes the fit and the
measurement. All methods that train take the same number of steps, few enough that two cores are done with three seeds
of everything in an hour; the metric is the small one for the same reason. Cells are kept in the work folder as they are
finished, those of methods that train with their run, so that the command goes on where it was stopped. The results file
holds all cells; the table is made from it. A sheet of each method's strips (seed 0) is drawn beside it.

The MNIST DCGAN is not part of the project: its file is found through EIGENLENS_REFERENCE.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import machine
from eigenlens import images, runtime
from eigenlens.commands.words import parse_seeds
from eigenlens.directions import Directions
from eigenlens.effect import equal_change
from eigenlens.errors import Unsupported
from eigenlens.files import write_json
from eigenlens.generator import Generator, load_generator
from eigenlens.method import METHODS
from eigenlens.metric import METRICS
from eigenlens.sheet import sheet

RESULTS = Path(__file__).parent / "results" / "recovery.json"
K = 24
STEPS = 400
"""Steps of the methods that train."""
LEARNED: dict[str, dict[str, Any]] = {
    "voynov": {},
    "warped": {"n_dipoles": 16},
    "pairs": {},
    "contrastive": {"batch": 6, "learning_rate": 5e-3},
}
CLOSED: dict[str, dict[str, Any]] = {
    "sefa": {"agreement_draws": 0},
    "ganspace": {"n_samples": 10_000},
    "jacobian": {"n_samples": 8, "iterations": 2},
    "eigen": {"measured": False},
}
SHOWN = 10
"""Directions on a sheet."""


def open_generator(name: str) -> Generator:
    """Open one of the two generators."""
    if name == "mnist":
        folder = Path(os.environ["EIGENLENS_REFERENCE"])
        return load_generator(folder / "checkpoints/mnist_dcgan.pth", activation="relu")
    return load_generator(name)


def make_method(name: str, steps: int) -> Any:
    """Build a method with the settings of this comparison."""
    kind = METHODS[name]
    if name in CLOSED:
        settings = dict(CLOSED[name])
        return kind(**settings) if name == "eigen" else kind(n_directions=K, **settings)
    settings = dict(kind.presets["cpu"]) | {"n_directions": K, "n_steps": steps, "patience": 0}
    return kind(**(settings | LEARNED[name]))


def run_cell(generator: Generator, name: str, method: str, seed: int, metric: str, work: Path, steps: int) -> None:
    """Fit and score one cell, unless it is there."""
    place = work / f"{name}-{method}-{seed}"
    scored = place / f"{metric}.json"
    if scored.exists():
        return
    start, cpu = time.perf_counter(), time.process_time()
    file = place / "directions.safetensors"
    if file.exists():
        found, taken = Directions.load(file, generator=generator), None
    else:
        found = make_method(method, steps).fit(generator, seed=seed, run=place / "run")
        taken = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        found.save(file)
        write_json(place / "fit.json", taken)
    score = METRICS[metric]().score(generator, found, seed=seed)
    write_json(scored, score.to_json())


def draw_sheets(generator: Generator, name: str, methods: list[str], work: Path) -> None:
    """Draw the first directions of each method, from -s to s of equal image change."""
    for method in methods:
        file, picture = work / f"{name}-{method}-0" / "directions.safetensors", work / f"{name}-{method}.png"
        if not file.exists() or picture.exists():
            continue
        found = Directions.load(file, generator=generator)[:SHOWN]
        strength = equal_change(generator, found, 0.3).strength[:, None]
        spans = found.with_figures(limits=torch.cat([-strength, strength], dim=1))
        images.save(sheet(generator, spans, generator.sample(2, seed=7), title=f"{name}  {method}"), picture)


def collect(work: Path, metric: str) -> list[dict[str, Any]]:
    """Read every finished cell."""
    cells = []
    baselines: dict[tuple[str, str, int, int], dict[str, Any]] = {}
    for scored in sorted(work.glob(f"*/{metric}.json")):
        generator, _, rest = scored.parent.name.partition("-")
        method, _, seed = rest.rpartition("-")
        score, fit = json.loads(scored.read_text("utf-8")), scored.parent / "fit.json"
        details = score["details"]
        cells.append(
            {
                "generator": generator, "method": method, "seed": int(seed), "recovery": score["value"],
                "interval": details["interval"], "chance": details["chance"], "random": details["random"],
                "axes": details["axes"], "k": score["directions"]["k"], "at_chance": len(details["at_chance"]),
                "alike": len(details["alike"]), "reached": sum(details["reached"]),
                "fit_cpu_seconds": json.loads(fit.read_text("utf-8"))["cpu_seconds"] if fit.exists() else None,
                "arguments": score["directions"]["arguments"],
            }
        )  # fmt: skip
        if cells[-1]["k"] == K:  # every score measures both baselines of its size and seed
            for name in ("random", "axes"):
                baselines[generator, name, int(seed), K] = {
                    "generator": generator, "method": name, "seed": int(seed), "recovery": details[name], "k": K,
                    "chance": details["chance"],
                }  # fmt: skip
    return cells + list(baselines.values())


def print_table(cells: list[dict[str, Any]]) -> None:
    """Print means over seeds, best first."""
    for generator in dict.fromkeys(cell["generator"] for cell in cells):
        rows = []
        mine = [cell for cell in cells if cell["generator"] == generator]
        for method in dict.fromkeys(cell["method"] for cell in mine):
            some = [cell for cell in mine if cell["method"] == method]
            values = [cell["recovery"] for cell in some]
            rows.append((statistics.mean(values), min(values), max(values), method, some))
        print(f"\n| {generator} | k | seeds | recovery | range | at chance | alike | fit, CPU s |")
        print("|---" * 8 + "|")
        for mean, low, high, method, some in sorted(rows, key=lambda row: -row[0]):
            figures = [
                "" if any(cell.get(name) is None for cell in some) else f"{statistics.mean(c[name] for c in some):.1f}"
                for name in ("at_chance", "alike", "fit_cpu_seconds")
            ]
            print(
                f"| {method} | {some[0]['k']} | {len(some)} | {mean:.3f} | {low:.3f} to {high:.3f} | "
                f"{' | '.join(figures)} |"
            )
        print(f"\nchance {mine[0]['chance']:.3f}")


def main() -> None:
    """Run cells, write the results, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generators", default="toonfaces,mnist")
    parser.add_argument("--methods", default=",".join([*LEARNED, *CLOSED]))
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--metric", default="recovery_200_v1")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the methods that train")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--work", type=Path, default=Path("runs/recovery"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    runtime.set_threads(arguments.threads)
    methods = arguments.methods.split(",")
    for name in [] if arguments.table else arguments.generators.split(","):
        generator = open_generator(name)
        for method in methods:
            for seed in parse_seeds(arguments.seeds):
                try:
                    run_cell(generator, name, method, seed, arguments.metric, arguments.work, arguments.steps)
                except Unsupported as reason:
                    print(f"{name} {method}: n/a ({reason})")
        draw_sheets(generator, name, methods, arguments.work)
    cells = collect(arguments.work, arguments.metric)
    about = {"command": "python -m benchmarks.recovery", "metric": arguments.metric, "machine": machine()}
    if cells:
        print_table(cells)
        write_json(arguments.out, {"about": about, "cells": cells}, force=True)


if __name__ == "__main__":
    main()
