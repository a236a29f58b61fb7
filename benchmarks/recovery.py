"""How well a network that never saw them can tell a method's directions apart: `python -m benchmarks.recovery`.

    python -m benchmarks.recovery --generators toonfaces --methods voynov,sefa --seeds 0-2
    python -m benchmarks.recovery --table      # prints what is there

Every cell (generator, method, seed) fits directions and scores them with the metric; the seed fixes the fit and the
measurement. All methods that train take the same number of steps, and the metric is the small one, so that two cores
are done with everything in hours. The results file holds all cells, each with its settings, weights and machine, and
the table is made from it. A cell that stands there under the settings of now is taken up; one of others is measured
anew and takes its place. What was fitted is kept in the work folder, that of methods that train with its run, so that
the command goes on where it was stopped; a sheet of each method's strips (seed 0) is drawn there.

The MNIST DCGAN is not part of the project: its file is found through EIGENLENS_REFERENCE.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import machine
from eigenlens import images, runtime
from eigenlens.commands.words import parse_seeds
from eigenlens.directions import Directions
from eigenlens.effect import equal_change, traverse
from eigenlens.errors import Unsupported, UserError
from eigenlens.files import write_json
from eigenlens.generator import Generator, load_generator
from eigenlens.method import METHODS, provenance
from eigenlens.metric import METRICS
from eigenlens.metrics.recovery import BASELINES, FRACTION
from eigenlens.sheet import sheet

Cell = dict[str, Any]
Key = tuple[str, str, int]
"""Generator, method, seed."""
RESULTS = Path(__file__).parent / "results" / "recovery.json"
K = 24
STEPS = 1200
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


def settings_of(method: Any, generator: Generator) -> dict[str, Any]:
    """Return the fields of a method as results hold them."""
    return json.loads(json.dumps(dict(provenance(method, generator, 0).arguments)))


def is_current(cell: Cell, method: Any, generator: Generator) -> bool:
    """Return whether a cell is of this method and these weights.

    The oldest cells say no weights, and lack fields of methods that came later, which had their defaults.
    """
    known = settings_of(type(method)(), generator) | cell["arguments"]
    return (
        known == settings_of(method, generator) and cell.get("weights", generator.weight_hash) == generator.weight_hash
    )


def run_cell(generator: Generator, name: str, method: Any, seed: int, metric: str, work: Path) -> Cell:
    """Fit and score one cell, going on from what the work folder holds of it.

    Raises:
        UserError: where that is of other settings.
    """
    place = work / f"{name}-{method.name}-{seed}"
    file, scored, fit = (place / each for each in ("directions.safetensors", f"{metric}.json", "fit.json"))
    if file.exists():
        found = Directions.load(file, generator=generator)
    else:
        start, cpu = time.perf_counter(), time.process_time()
        found = method.fit(generator, seed=seed, run=place / "run")
        taken = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu, "machine": machine()}
        write_json(fit, taken)
        found.save(file)
    if not scored.exists():
        write_json(scored, METRICS[metric]().score(generator, found, seed=seed).to_json())
    cell = cell_of(name, json.loads(scored.read_text("utf-8")), json.loads(fit.read_text("utf-8")))
    if not is_current(cell, method, generator):
        raise UserError(f"{place} holds {method.name} of other settings; remove it, or give another --work")
    return cell


def cell_of(generator: str, score: dict[str, Any], fit: dict[str, Any]) -> Cell:
    """Return what the results file holds of one score and its fit."""
    details, directions = score["details"], score["directions"]
    return {
        "generator": generator, "method": directions["method"], "seed": score["seed"], "recovery": score["value"],
        "interval": details["interval"], "chance": details["chance"],
        **{name: details[name] for name in BASELINES}, "k": directions["k"],
        "at_chance": len(details["at_chance"]), "alike": len(details["alike"]), "reached": sum(details["reached"]),
        "fit_cpu_seconds": fit["cpu_seconds"], "arguments": directions["arguments"],
        "weights": score["generator"]["weights"], "machine": fit["machine"],
    }  # fmt: skip


def taken_up(path: Path, metric: str) -> dict[Key, Cell]:
    """Read the cells of a results file.

    Raises:
        UserError: where they were scored by another metric.
    """
    if not path.exists():
        return {}
    kept = json.loads(path.read_text("utf-8"))
    if kept["metric"] != metric:
        raise UserError(f"{path} holds cells of {kept['metric']}, not of {metric}; give another --out")
    return {(cell["generator"], cell["method"], cell["seed"]): cell for cell in kept["cells"]}


def in_order(cells: Iterable[Cell]) -> list[Cell]:
    """Sort cells by generator, method as listed, and seed."""
    methods = [*LEARNED, *CLOSED]
    return sorted(cells, key=lambda cell: (cell["generator"], methods.index(cell["method"]), cell["seed"]))


def baselines_of(cells: Iterable[Cell]) -> list[Cell]:
    """Return cells of the baselines: every score of K directions holds both, and the seed alone fixes them.

    Runs round differently, so that one seed may have several; the mean counts.
    """
    found: dict[Key, list[float]] = {}
    chance = {}
    for cell in (each for each in cells if each["k"] == K):
        chance[cell["generator"]] = cell["chance"]
        for name in [each for each in BASELINES if each in cell]:
            found.setdefault((cell["generator"], name, cell["seed"]), []).append(cell[name])
    return [
        {
            "generator": generator, "method": name, "seed": seed, "recovery": statistics.mean(set(values)), "k": K,
            "chance": chance[generator],
        }
        for (generator, name, seed), values in found.items()
    ]  # fmt: skip


def found_at_equal_change(generator: Generator, name: str, method: str, work: Path, n: int) -> Directions | None:
    """Return the first directions of the fit of seed 0, with limits of equal image change; None where there is none."""
    file = work / f"{name}-{method}-0" / "directions.safetensors"
    if not file.exists():
        return None
    found = Directions.load(file, generator=generator)[:n]
    strength = equal_change(generator, found, FRACTION).strength[:, None]
    return found.with_figures(limits=torch.cat([-strength, strength], dim=1))


def draw_sheets(generator: Generator, name: str, methods: list[str], work: Path) -> None:
    """Draw the first directions of each method, from -s to s of equal image change."""
    for method in methods:
        picture = work / f"{name}-{method}.png"
        if picture.exists():
            continue
        found = found_at_equal_change(generator, name, method, work, SHOWN)
        if found is not None:
            images.save(sheet(generator, found, generator.sample(2, seed=7), title=f"{name}  {method}"), picture)


def draw_picture(generator: Generator, name: str, methods: list[str], work: Path, picture: Path) -> None:
    """Draw one row a method: a sample, and both ends of its first directions."""
    codes = generator.sample(1, seed=7)
    rows, labels = [], []
    for method in methods:
        found = found_at_equal_change(generator, name, method, work, SHOWN // 2)
        if found is not None:
            ends = [traverse(generator, codes, found, k, found.span(k))[0] for k in range(len(found))]
            rows.append(torch.cat([generator(codes), *ends]))
            labels.append(method)
    if rows:
        images.save(images.grid(torch.cat(rows), columns=len(rows[0]), row_labels=labels), picture, force=True)


def print_table(cells: list[Cell]) -> None:
    """Print means over seeds, best first."""
    for generator in dict.fromkeys(cell["generator"] for cell in cells):
        mine = [cell for cell in cells if cell["generator"] == generator]
        by_method = [[cell for cell in mine if cell["method"] == name] for name in {c["method"] for c in mine}]
        names = ("at_chance", "alike", "fit_cpu_seconds")
        print(
            f"\n| {generator} | k | recovery of seeds | mean | above random | of random's errors | at chance | alike | "
            "fit, CPU s |"
        )
        print("|---" * 9 + "|")
        for some in sorted(by_method, key=lambda each: -mean_of(each, "recovery")):
            some = sorted(some, key=lambda cell: cell["seed"])
            seeds = ", ".join(f"{cell['seed']}: {cell['recovery']:.3f}" for cell in some)
            above, share = "", ""
            if "random" in some[0]:
                gain = mean_of(some, "recovery") - mean_of(some, "random")
                above, share = f"{gain:+.3f}", f"{-gain / (1 - mean_of(some, 'random')):+.0%}"
            figures = [f"{mean_of(some, name):.1f}" if name in some[0] else "" for name in names]
            told = [str(some[0]["k"]), seeds, f"{mean_of(some, 'recovery'):.3f}", above, share, *figures]
            print(f"| `{some[0]['method']}` | {' | '.join(told)} |")
        print(f"\nchance {mine[0]['chance']:.3f}")


def mean_of(cells: list[Cell], name: str) -> float:
    """Return the mean of a figure over cells."""
    return statistics.mean(cell[name] for cell in cells)


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
    parser.add_argument("--picture", type=Path, help="NAME.png: all methods in one, as NAME-GENERATOR.png")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    runtime.set_threads(arguments.threads)
    cells = taken_up(arguments.out, arguments.metric)
    methods = {name: make_method(name, arguments.steps) for name in arguments.methods.split(",")}
    for name in [] if arguments.table else arguments.generators.split(","):
        generator = open_generator(name)
        for (method, settings), seed in itertools.product(methods.items(), parse_seeds(arguments.seeds)):
            known = cells.get((name, method, seed))
            if known is not None and is_current(known, settings, generator):
                continue
            try:
                cell = run_cell(generator, name, settings, seed, arguments.metric, arguments.work)
            except Unsupported as reason:
                print(f"{name} {method}: n/a ({reason})")
                continue
            cells[name, method, seed] = cell
            write_json(arguments.out, {"metric": arguments.metric, "cells": in_order(cells.values())}, force=True)
        draw_sheets(generator, name, list(methods), arguments.work)
        if arguments.picture:
            picture = arguments.picture.with_stem(f"{arguments.picture.stem}-{name}")
            draw_picture(generator, name, list(methods), arguments.work, picture)
    print_table([*cells.values(), *baselines_of(cells.values())])


if __name__ == "__main__":
    main()
