"""Which directions are good? Train generators on toon faces and compare what methods find in them.

    npm ci --prefix tools/toonfaces
    python tools/toonfaces/render.py --n 40000 --seed 0 --resolution 32 --out toon32.npz
    python -m benchmarks.result --data toon32.npz --runs runs/result --seeds 0-4

trains, on one thread and with as many kimg each, EigenGANs, the same with a floor on effects (`floor`), the same
network without subspaces (`twin`, fed by as many numbers at its base) and small StyleGAN2s; `--correlated` and `--rare`
name further sets, and each trains EigenGANs of its own. What is there is used, what was stopped goes on, and without
`--data` nothing is trained. Then every method is compared in every group at equal strengths (`eigenlens compare`, cell
by cell, resumable), and `docs/results/` gets `results.jsonl.gz` (every number, with the command that gives it again),
`tables.md` and `figures.json`.

Two controls of the bundled generator have to come out bad: `shuffled`, its weights with their entries in random order,
and `duplicated`, one random direction ten times over.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import platform
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks._training import train_whole, trained_kimg
from eigenlens import images, runtime
from eigenlens.commands.words import parse_seeds
from eigenlens.compare import Comparison
from eigenlens.directions import Directions
from eigenlens.files import write_json, write_text
from eigenlens.generator import Generator, load_generator
from eigenlens.grid import Grid
from eigenlens.inference import bootstrap_difference
from eigenlens.method import METHODS, provenance
from eigenlens.metric import METRICS
from eigenlens.reader import open_reader, read
from eigenlens.training import eigengan, stylegan2
from eigenlens.verdict import Summary, cell_text, claims, claims_text, markdown, summarise, tables

OUT = Path(__file__).parents[1] / "docs" / "results"
K = 10
CONTROLS = "## controls on the bundled generator, read as faces, at 2 σ"
"""Heading of their table, the last."""
MOVED = 0.1
"""Standard deviations below which an attribute counts as not moved, as in the metric."""
LENGTH: dict[str, Any] = {"batch": 32, "cooldown_kimg": 40.0, "watch_kimg": 20.0, "distance_images": 1024}
SHAPE: dict[str, Any] = LENGTH | {"learning_rate": 4e-4, "resolution": 32, "noise_dim": 64, "base_channels": 16}
TWIN: dict[str, Any] = SHAPE | {"noise_dim": 82, "n_basis": 0}
"""As many numbers as eps and all z of `SHAPE` have, 64 + 3 * 6, all at the base."""
FAMILIES: dict[str, tuple[Any, str, dict[str, Any], str]] = {
    "eigengan": (eigengan, "cpu-64", SHAPE, "data"),
    "floor": (eigengan, "cpu-64", SHAPE | {"effect_floor": 0.15}, "data"),
    "stylegan2": (stylegan2, "stylegan2-32", LENGTH, "data"),
    "twin": (eigengan, "cpu-64", TWIN, "data"),
    "correlated": (eigengan, "cpu-64", SHAPE, "correlated"),
    "rare": (eigengan, "cpu-64", SHAPE, "rare"),
}
"""Group -> what trains it, its preset, what is changed in that, and which data it learns from."""
FEATURES = ["ganspace(at={at},n_samples=2000)", "ganspace(at={at},n_samples=2000,rotation=ica)"]
SUPERVISED = "supervised(n_samples=2000)"
JACOBIAN = "jacobian(n_samples=8)"
LEARNED = [
    "voynov(n_steps=600,batch=16,learning_rate=0.001,width=0.5)",
    "warped(n_steps=600,batch=16,learning_rate=0.001,width=0.5,n_dipoles=8)",
    "contrastive(n_steps=600,batch=6,learning_rate=0.005)",
]
"""Learned methods at one budget, 600 steps: about as many CPU seconds as all else together."""
PURITY = "attribute_matrix_toonfaces_v1(n_steps=3)"
"""The metric that is measured at all four calibrations; the others at equal change of images alone. Three steps, both
ends and the middle, are all that purity needs."""
CLOSENESS = "principal_closeness_v1"
BESIDE = ["attribute_matrix_pixels_v1(n_steps=3)", CLOSENESS, "effect_orthogonality_v1"]
PAIRS = [
    (("eigengan", "eigen"), ("stylegan2", "sefa")),
    (("eigengan", "eigen"), ("stylegan2", "ganspace(n_samples=20000)")),
    (("eigengan", "eigen"), ("twin", "sefa")),
    (("eigengan", "sefa"), ("stylegan2", "sefa")),
    (("eigengan", "random"), ("stylegan2", "random")),
    (("eigengan", "supervised(n_samples=2000)"), ("stylegan2", "supervised(n_samples=2000)")),
    (("floor", "eigen"), ("eigengan", "eigen")),
    (("correlated", "eigen"), ("eigengan", "eigen")),
    (("rare", "eigen"), ("eigengan", "eigen")),
]
"""What is compared across networks that have nothing in common but their data."""


@dataclass(frozen=True)
class Duplicated:
    """A control: one random direction, many times over; no honest metric calls that good."""

    n_directions: int = K
    """How many times."""
    name: ClassVar[str] = "duplicated"

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Draw one direction and repeat it."""
        one = METHODS["random"](n_directions=1).fit(generator, seed=seed)
        names = tuple(f"copy-{i}" for i in range(self.n_directions))
        vectors = one.vectors.expand(self.n_directions, -1, -1).clone()
        return Directions(vectors, one.space, names, provenance=provenance(self, generator, seed))


# --- networks ---------------------------------------------------------------------------------------------------------


def place(runs: Path, group: str, seed: int) -> Path:
    """Return the run's folder of a network."""
    return runs / f"{group}-32-seed{seed}"


def train_networks(
    runs: Path, data: Mapping[str, Path | None], groups: Sequence[str], seeds: Sequence[int], kimg: float
) -> None:
    """Train every network of some groups whose data is given and that is not there yet."""
    for seed in seeds:
        for group in groups:
            family, preset, changed, which = FAMILIES[group]
            source, folder = data[which], place(runs, group, seed)
            if source is not None and trained_kimg(folder) < kimg - 0.1:
                config = family.configure(preset, kimg=kimg, seed=seed, **changed)
                train_whole(family.train, config, data=source, run=folder, threads=1)


def shuffled(source: str, folder: Path) -> Path:
    """Write a network whose weights have their entries in random order, each tensor by itself."""
    if not (folder / "config.json").exists():
        generator = load_generator(source)
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in generator.network.parameters():
                order = torch.randperm(weight.numel(), generator=rng)
                weight.copy_(weight.flatten()[order].view_as(weight))
        generator.save(folder, force=True)
    return folder


def networks(runs: Path, group: str, seeds: Sequence[int], kimg: float) -> list[str]:
    """Return the trained networks of a group that are there."""
    folders = [place(runs, group, seed) for seed in seeds]
    return [str(each / "last") for each in folders if trained_kimg(each) >= kimg - 0.1]


# --- grids ------------------------------------------------------------------------------------------------------------


def grids(runs: Path, seeds: Sequence[int], kimg: float) -> Iterator[tuple[str, Grid]]:
    """Give the comparisons that the networks in `runs` allow, by group.

    Args:
        runs: holds the networks.
        seeds: of the networks.
        kimg: that a network must have been trained for.
    """
    pca, ica = (each.format(at="layer3") for each in FEATURES)
    of_w = ["ganspace(n_samples=20000)", "ganspace(n_samples=20000,rotation=ica)"]
    few = ["eigen", "sefa", "random", pca, SUPERVISED]
    methods = {
        "eigengan": ["eigen", "random", "sefa", pca, SUPERVISED, "axes", JACOBIAN, ica, *LEARNED],
        "stylegan2": ["sefa", "random", of_w[0], SUPERVISED, "axes", JACOBIAN, of_w[1]],
        "twin": ["sefa", "random", pca, SUPERVISED, "axes", JACOBIAN, ica],
        "floor": few,
        "correlated": few,
        "rare": few,
    }
    common = {"metrics": [PURITY, *BESIDE], "at": {name: ["change"] for name in BESIDE}, "reader": "toonfaces"}
    for group, chosen in methods.items():
        if found := networks(runs, group, seeds, kimg):
            yield group, Grid.from_dict(common | {"generators": {group: found}, "methods": chosen, "k": K, "null": 0})


def controls(runs: Path) -> list[dict[str, Any]]:
    """Score what has to come out bad, read as faces: the bundled generator's axes once its weights are shuffled, and
    one direction ten times over."""
    whole = load_generator("toonfaces")
    broken = load_generator(str(shuffled("toonfaces", runs / "shuffled-toonfaces")))
    asked = [
        ("toonfaces", whole, METHODS["eigen"](measured=False)),
        ("shuffled", broken, METHODS["eigen"](measured=False)),
        ("toonfaces", whole, Duplicated()),
    ]
    rows = []
    for label, generator, method in asked:
        directions = method.fit(generator, seed=0)[:K]
        row: dict[str, Any] = {"network": label, "directions": method.name}
        for name in ("attribute_matrix_toonfaces_v1", "effect_orthogonality_v1"):
            score = METRICS[name]().score(generator, directions, seed=0)
            row[name] = round(score.value, 4)
            if "coverage" in score.details:
                row["coverage"] = round(score.details["coverage"][str(K)], 4)
                row["abstained"] = round(sum(score.details["abstained"]) / K, 4)
        rows.append(row)
    return rows


# --- what is written --------------------------------------------------------------------------------------------------


def row(summary: Summary) -> dict[str, Any]:
    """Return the figures of a summary for `figures.json`."""
    interval = summary.interval
    return {
        "group": summary.group,
        "method": summary.method,
        "metric": summary.metric,
        "calibration": summary.calibration,
        "text": cell_text(summary),
        "mean": interval.mean if interval else None,
        "points": [round(each, 4) for each in summary.points],
        "dead": summary.dead,
        "further": {name: round(value, 4) for name, value in summary.further.items()},
        "reason": summary.reason,
    }


def beyond(summary: Summary) -> dict[str, str]:
    """Return the row of a table of further figures of an attribute matrix."""
    names = {f"coverage {K}": "coverage", "mean consistency": "consistency", "mean abstained": "abstained"}
    told = {title: f"{summary.further[name]:.3f}" for name, title in names.items() if name in summary.further}
    return {"method": summary.method} | dict.fromkeys(names.values(), "-") | told


def across(found: Mapping[str, Sequence[Summary]], metric: str) -> list[dict[str, str]]:
    """Return a row for each of `PAIRS`: a metric of two methods on two groups of networks at equal change of images.

    Args:
        found: group -> its summaries.
        metric: which; it has to see effects on images alone, for codes of two networks have nothing in common.
    """
    at_change = {
        (group, each.method): each
        for group, summaries in found.items()
        for each in summaries
        if (each.metric, each.calibration) == (metric, "change") and each.interval is not None
    }
    rows = []
    for first, second in PAIRS:
        if first in at_change and second in at_change:
            a, b = at_change[first], at_change[second]
            apart = bootstrap_difference(a.values, b.values)
            verdict = "-" if not math.isfinite(apart.low) else "apart" if apart.excludes_zero else "not apart"
            difference = f"{apart.mean:+.3f} [{apart.low:.3f}, {apart.high:.3f}]"
            row = {"first": " ".join(first), "second": " ".join(second), "of first": cell_text(a)}
            rows.append(row | {"of second": cell_text(b), "difference": difference, "": verdict})
    return rows


def about_networks(runs: Path, seeds: Sequence[int], kimg: float) -> list[dict[str, str]]:
    """Return a row a network: how far its samples are from the data, and from how many the reader of faces abstains."""
    rows = []
    reader = open_reader("toonfaces")
    for group in FAMILIES:
        for source in networks(runs, group, seeds, kimg):
            generator = load_generator(source)
            lines = [
                json.loads(line) for line in (Path(source).parent / "metrics.jsonl").read_text("utf-8").splitlines()
            ]
            distance = [line["sliced_wasserstein"]["mean"] for line in lines if "sliced_wasserstein" in line][-1]
            certain = read(reader, generator.render(generator.sample(256, seed=0))).certain
            faces = certain.any(1).double().mean()
            rows.append({"network": Path(source).parent.name, "distance": f"{distance:.1f}", "read": f"{faces:.2f}"})
    return rows


def best_shares(lines: Iterable[Mapping[str, Any]], calibration: str = "change") -> list[dict[str, str]]:
    """Return a row a factor: the largest share that it has in what any direction of a method changes.

    Of several networks the mean is given.

    Args:
        lines: of `results.jsonl`; those of attribute matrices are read.
        calibration: at which strengths.
    """
    best: dict[str, dict[str, list[float]]] = {}
    methods: set[str] = set()
    for line in lines:
        cell = line["cell"]
        is_matrix = cell["metric"].startswith("attribute_matrix") and line["status"] == "done"
        if not is_matrix or cell["calibration"] != calibration:
            continue
        methods.add(cell["method"])
        details = line["details"]
        for i, factor in enumerate(details["factors"]):
            shares = [0.0]
            for row in details["moved"]:
                if row[i] is not None and row[i] >= MOVED:
                    shares.append(row[i] / sum(each or 0.0 for each in row))
            best.setdefault(factor, {}).setdefault(cell["method"], []).append(max(shares))
    return [
        {"attribute": name} | {method: f"{statistics.mean(row.get(method, [0.0])):.2f}" for method in sorted(methods)}
        for name, row in sorted(best.items())
    ]


def evenness(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return a row a method: how evenly its directions change what they change most, and what changes beside it.

    Means over the directions of which the figure is known, at equal change of images, monotonicity also at 2 σ.

    Args:
        lines: of `results.jsonl`; those of attribute matrices are read.
    """
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        cell = line["cell"]
        if not cell["metric"].startswith("attribute_matrix") or line["status"] != "done":
            continue
        row, details = rows.setdefault(cell["method"], {"method": cell["method"]}), line["details"]
        if cell["calibration"] == "native":
            row["monotonicity at 2 σ"] = mean_text(details["monotonicity"])
        if cell["calibration"] == "change":
            row["at change"] = mean_text(details["monotonicity"])
            row["side effects"] = mean_text(details["side_effects"])
            row["main attributes"] = str(len({each for each in details["main"] if each is not None}))
            row["abstained"] = mean_text(details["abstained"])
    return list(rows.values())


def mean_text(values: Sequence[float | None]) -> str:
    """Return the mean of the values that are known, as text."""
    known = [each for each in values if each is not None]
    return f"{sum(known) / len(known):.2f}" if known else "-"


def groups_of(lines: Sequence[Mapping[str, Any]], method: str = "eigen") -> list[dict[str, str]]:
    """Return a row a direction of one method: its main attribute, its purity, and the share of change by group.

    Args:
        lines: of `results.jsonl`; the attribute matrix at equal change of images is read.
        method: whose directions.
    """
    rows = []
    for line in lines:
        cell = line["cell"]
        is_matrix = cell["metric"].startswith("attribute_matrix") and line["status"] == "done"
        if not is_matrix or cell["calibration"] != "change" or cell["method"] != method:
            continue
        details = line["details"]
        for i, name in enumerate(details["names"]):
            shares = {group: f"{each['share'][i]:.2f}" for group, each in details["by_group"].items()}
            main = details["main"][i] or "-"
            rows.append({"direction": name, "main": main, "purity": f"{details['purity'][i]:.2f}"} | shares)
    return rows


def fitting_costs(folder: Path) -> list[dict[str, str]]:
    """Return a row a method: the CPU seconds that its directions took, from a comparison's folder."""
    found = [Directions.load(file) for file in sorted((folder / "directions").glob("*.safetensors"))]
    told = [each for each in found if "fit_cpu_seconds" in each.fields]
    return [
        {
            "method": each.provenance.method,
            "seed": str(each.provenance.seed),
            "CPU seconds": f"{float(each.fields['fit_cpu_seconds'][0]):.2f}",
        }
        for each in told
    ]


def told_further(folder: Path) -> str:
    """Return what a comparison's tables do not hold, as Markdown."""
    file = folder / "results.jsonl"
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    parts = {
        "Evenness, side effects for half a standard deviation of the main attribute, main attributes": evenness(lines),
        "EigenGAN's own axes at equal change of images": groups_of(lines),
        "What finding the directions took": fitting_costs(folder),
    }
    return "\n".join(f"## {title}\n\n{markdown(rows)}" for title, rows in parts.items() if rows)


def write(
    out: Path,
    done: Mapping[str, Comparison],
    seconds: float,
    bad: Sequence[Mapping[str, Any]] = (),
    trained: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write the tables and figures of all comparisons."""
    pages = ["# Tables\n\nMade by `python -m benchmarks.result`; [README.md](README.md) says what they mean.\n"]
    if trained:
        pages.append(f"## networks\n\n{markdown(trained)}")
    rows, lines = [], []
    summaries = {name: summarise(comparison) for name, comparison in done.items()}
    for metric in (PURITY, CLOSENESS):
        if pairs := across(summaries, metric):
            pages.append(f"## {metric} across networks, at equal change of images\n\n{markdown(pairs)}")
    for name, comparison in done.items():
        found = summaries[name]
        rows += [{"grid": name} | row(each) for each in found]
        pages.append(f"## {name}\n")
        for (group, metric), table in tables(found).items():
            pages.append(f"### {metric} on {group}\n\n{markdown(table)}")
        matrix = [each for each in found if each.metric.startswith("attribute_matrix_toonfaces") and each.interval]
        at_change = [beyond(each) for each in matrix if each.calibration == "change"]
        if at_change:
            pages.append(f"### further figures at equal change of images\n\n{markdown(at_change)}")
        faces = (line for line in comparison.results.latest().values() if line["cell"]["metric"] == PURITY)
        if shares := best_shares(faces):
            pages.append(
                f"### largest share of each attribute in a direction, mean over networks\n\n{markdown(shares)}"
            )
        pages.append(f"### what can be said of order\n\n{claims_text(claims(found))}")
        lines += [json.dumps({"grid": name} | each, sort_keys=True) for each in comparison.results.latest().values()]
    if bad:
        pages.append(CONTROLS + told(bad))
    write_text(out / "tables.md", "\n".join(pages), force=True)
    about = {
        "networks": list(trained),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "seconds": seconds,
    }
    write_json(out / "figures.json", {"about": about, "rows": rows, "controls": list(bad)}, force=True)
    packed = gzip.compress("".join(line + "\n" for line in lines).encode(), mtime=0)
    (out / "results.jsonl.gz").write_bytes(packed)


def told(bad: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the controls."""
    return f"\n\n{markdown([{name: str(value) for name, value in each.items()} for each in bad])}"


def rewrite_controls(out: Path, bad: Sequence[Mapping[str, Any]]) -> None:
    """Put controls into tables and figures that are there, and leave the rest of both as it is."""
    figures = json.loads((out / "figures.json").read_text("utf-8"))
    write_json(out / "figures.json", figures | {"controls": list(bad)}, force=True)
    head, _, _ = (out / "tables.md").read_text("utf-8").partition(CONTROLS)  # they come last
    write_text(out / "tables.md", head + CONTROLS + told(bad), force=True)


def contact_sheet(runs: Path, groups: Sequence[str], seeds: Sequence[int], kimg: float, out: Path) -> None:
    """Draw eight samples of the first network of each group, a row each."""
    rows, labels = [], []
    for group in groups:
        for source in networks(runs, group, seeds, kimg)[:1]:
            generator = load_generator(source)
            rows.append(generator.render(generator.sample(8, seed=0)))
            labels.append(group)
    if rows:
        sheet = images.grid(torch.cat(rows), columns=8, row_labels=labels)
        images.save(sheet, out / "samples.png", force=True)


def main() -> None:
    """Train what is missing, fill the grids, write the tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.result", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/result"), help="holds the networks and the grids")
    parser.add_argument("--data", type=Path, help="toon faces of 32 px; without it nothing is trained on them")
    parser.add_argument("--correlated", type=Path, help="toon faces with two pairs of factors tied together")
    parser.add_argument("--rare", type=Path, help="toon faces with a rare attribute")
    parser.add_argument("--seeds", default="0-4", help="of the networks (default: 0-4)")
    parser.add_argument("--kimg", type=float, default=100.0, help="of every training (default: 100)")
    parser.add_argument("--groups", nargs="*", default=list(FAMILIES), choices=FAMILIES, help="train only these")
    which = "only these: eigengan, stylegan2, twin, ...; none: train alone, or with --controls the controls alone"
    parser.add_argument("--grids", nargs="*", help=which)
    parser.add_argument("--controls", action="store_true", help="score the controls on the bundled generator too")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further grid after so many")
    parser.add_argument("--out", type=Path, default=OUT, help="for the tables (default: docs/results)")
    parser.add_argument("--found", type=Path, help="print who finds which attribute by a results.jsonl, and end")
    parser.add_argument(
        "--further", type=Path, help="print what the tables of a comparison's folder leave out, and end"
    )
    args = parser.parse_args()
    if args.found:
        lines = [json.loads(line) for line in args.found.read_text("utf-8").splitlines()]
        print(markdown(best_shares(lines)), end="")
        return
    if args.further:
        print(told_further(args.further), end="")
        return
    runtime.set_threads(1)
    began = time.monotonic()
    data = {"data": args.data, "correlated": args.correlated, "rare": args.rare}
    seeds = parse_seeds(args.seeds)
    train_networks(args.runs, data, args.groups, seeds, args.kimg)
    if args.grids == ["none"] and not args.controls:
        return
    kept = args.runs / "controls.json"
    if args.controls:
        write_json(kept, controls(args.runs), force=True)
    if args.grids == ["none"]:
        rewrite_controls(args.out, json.loads(kept.read_text("utf-8")))
        return
    bad = json.loads(kept.read_text("utf-8")) if kept.exists() else []
    trained = about_networks(args.runs, seeds, args.kimg)
    done: dict[str, Comparison] = {}
    for name, grid in grids(args.runs, seeds, args.kimg):
        comparison = Comparison(grid, args.runs / "grids" / name, device="cpu", log=print)
        is_asked = not args.grids or name in args.grids
        if is_asked and time.monotonic() - began < 60 * args.minutes:
            comparison.run()
        if comparison.results.path.exists():
            done[name] = comparison
            write(args.out, done, time.monotonic() - began, bad, trained)
    contact_sheet(args.runs, list(FAMILIES), seeds, args.kimg, args.out)


if __name__ == "__main__":
    main()
