"""Which directions are good? Train generators on toon faces and compare what methods find in them.

    npm ci --prefix tools/toonfaces
    python tools/toonfaces/render.py --n 40000 --seed 0 --resolution 32 --out toon32.npz
    python -m benchmarks.result --data toon32.npz --runs runs/result --seeds 0-4

trains, on one thread and with as many kimg each, EigenGANs, the same network without subspaces (`twin`, fed by as many
numbers at its base) and small StyleGAN2s; `--correlated` and `--rare` name further sets, and each trains EigenGANs of
its own. What is there is used, what was stopped goes on, and without `--data` nothing is trained. Then every method is
compared in every family at equal strengths (`eigenlens compare`, cell by cell, resumable), and `docs/results/` gets
`results.jsonl.gz` (every number, with the command that gives it again), `tables.md` and `figures.json`.

Two controls have to come out bad: `shuffled`, the first EigenGAN with the entries of every weight put in random order,
and `duplicated`, one random direction ten times over.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from eigenlens import images, runtime
from eigenlens.commands.words import parse_seeds
from eigenlens.compare import Comparison, Grid, Summary, cell_text, claims, claims_text, markdown, summarise, tables
from eigenlens.directions import Directions
from eigenlens.files import write_json, write_text
from eigenlens.generator import Generator, load_generator
from eigenlens.method import METHODS, provenance
from eigenlens.metric import METRICS
from eigenlens.training import eigengan, stylegan2

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
    "stylegan2": (stylegan2, "stylegan2-32", LENGTH, "data"),
    "twin": (eigengan, "cpu-64", TWIN, "data"),
    "correlated": (eigengan, "cpu-64", SHAPE, "correlated"),
    "rare": (eigengan, "cpu-64", SHAPE, "rare"),
}
"""Group -> what trains it, its preset, what is changed in that, and which data it learns from."""
FEATURES = ["ganspace(at={at},n_samples=2000)", "ganspace(at={at},n_samples=2000,rotation=ica)"]
SUPERVISED = "supervised(n_samples=2000)"
LEARNED = [
    "voynov(n_steps=300,batch=16,learning_rate=0.001,width=0.5)",
    "warped(n_steps=300,batch=16,learning_rate=0.001,width=0.5,n_dipoles=8)",
    "contrastive(n_steps=300,batch=6,learning_rate=0.005)",
]
"""Learned methods at one small budget, 300 steps."""
JUDGES = [
    "attribute_matrix_toonfaces_v1",
    "attribute_matrix_pixels_v1",
    "principal_closeness_v1",
    "effect_orthogonality_v1",
]
AT_CHANGE = {"principal_closeness_v1": ["change"], "effect_orthogonality_v1": ["change"]}


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


def trained_kimg(folder: Path) -> float:
    """Return how long a network was trained, in kimg; 0 where there is none."""
    config = folder / "last" / "config.json"
    return float(json.loads(config.read_text("utf-8"))["training"]["kimg"]) if config.exists() else 0.0


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
                family.train(config, data=source, run=folder, threads=1)


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


def grids(
    runs: Path, seeds: Sequence[int], kimg: float, *, most: int | None = None, brief: bool = False
) -> Iterator[tuple[str, Grid]]:
    """Give the comparisons that the networks in `runs` allow, most telling first.

    Args:
        runs: holds the networks.
        seeds: of the networks.
        kimg: that a network must have been trained for.
        most: methods of each grid; by default all.
        brief: compare at equal change of images alone, with strengths read off 4 codes instead of 16.
    """
    changed: dict[str, Any] = {"calibrations": ("change",), "at": {}, "profile_codes": 4} if brief else {}
    for name, grid in _all_grids(runs, seeds, kimg):
        yield name, dataclasses.replace(grid, methods=grid.methods[:most], **changed)


def _all_grids(runs: Path, seeds: Sequence[int], kimg: float) -> Iterator[tuple[str, Grid]]:
    found = {group: networks(runs, group, seeds, kimg) for group in FAMILIES}
    plain = {"metrics": JUDGES, "at": AT_CHANGE, "reader": "pixels", "k": K, "null": 0}
    pca, ica = (each.format(at="layer3") for each in FEATURES)
    rest = ["jacobian(n_samples=8)", "random(law=covariance)"]
    if found["eigengan"]:
        methods = ["eigen", "random", "sefa", pca, SUPERVISED, "axes", "duplicated", ica, *rest]
        yield "eigengan", Grid.from_dict({"generators": {"eigengan": found["eigengan"]}, "methods": methods} | plain)
    if found["stylegan2"]:
        of_w = ["ganspace(n_samples=20000)", "ganspace(n_samples=20000,rotation=ica)"]
        methods = ["sefa", "random", of_w[0], SUPERVISED, "axes", "duplicated", of_w[1], *rest]
        yield "stylegan2", Grid.from_dict({"generators": {"stylegan2": found["stylegan2"]}, "methods": methods} | plain)
    if found["twin"]:
        methods = ["sefa", "random", pca, SUPERVISED, "axes", "duplicated", ica, *rest]
        yield "twin", Grid.from_dict({"generators": {"twin": found["twin"]}, "methods": methods} | plain)
    if found["eigengan"]:
        broken = str(shuffled(found["eigengan"][0], runs / "shuffled-32-seed0"))
        methods = ["eigen", "random", "sefa", pca]
        yield "shuffled", Grid.from_dict({"generators": {"shuffled": [broken]}, "methods": methods} | plain)
        learned = {
            "generators": {"eigengan": found["eigengan"][:1]},
            "methods": ["random", "eigen", "sefa", *LEARNED, pca, "duplicated"],
            "metrics": [*JUDGES, "recovery_200_v1"],
        }
        yield "learned", Grid.from_dict(plain | learned)
    for group in ("correlated", "rare"):
        if found[group]:
            methods = ["eigen", "sefa", "random", pca, SUPERVISED]
            yield group, Grid.from_dict({"generators": {group: found[group]}, "methods": methods} | plain)


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
    names = {f"coverage {K}": "coverage", "mean linearity": "linearity", "mean monotonicity": "monotonicity"}
    told = {title: f"{summary.further[name]:.3f}" for name, title in names.items() if name in summary.further}
    return {"generator": summary.group, "method": summary.method} | dict.fromkeys(names.values(), "-") | told


def best_shares(lines: Sequence[Mapping[str, Any]], calibration: str = "change") -> list[dict[str, str]]:
    """Return a row a factor: the largest share that it has in what any direction of a method changes.

    Args:
        lines: of `results.jsonl`; those of attribute matrices are read.
        calibration: at which strengths.
    """
    best: dict[str, dict[str, float]] = {}
    methods: list[str] = []
    for line in lines:
        cell = line["cell"]
        is_matrix = cell["metric"].startswith("attribute_matrix") and line["status"] == "done"
        if not is_matrix or cell["calibration"] != calibration:
            continue
        methods.append(cell["method"])
        details = line["details"]
        for i, factor in enumerate(details["factors"]):
            shares = [0.0]
            for row in details["moved"]:
                if row[i] is not None and row[i] >= MOVED:
                    shares.append(row[i] / sum(each or 0.0 for each in row))
            best.setdefault(factor, {})[cell["method"]] = max(shares)
    methods.sort()
    return [{"attribute": name} | {m: f"{row.get(m, 0.0):.2f}" for m in methods} for name, row in sorted(best.items())]


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


def write(out: Path, done: Mapping[str, Comparison], seconds: float, bad: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write the tables and figures of all comparisons."""
    pages = ["# Tables\n\nMade by `python -m benchmarks.result`; [README.md](README.md) says what they mean.\n"]
    rows, lines = [], []
    for name, comparison in done.items():
        found = summarise(comparison)
        rows += [{"grid": name} | row(each) for each in found]
        pages.append(f"## {name}\n")
        for (group, metric), table in tables(found).items():
            pages.append(f"### {metric} on {group}\n\n{markdown(table)}")
        matrix = [each for each in found if each.metric.startswith("attribute_matrix") and each.interval is not None]
        at_change = [beyond(each) for each in matrix if each.calibration == "change"]
        if at_change:
            pages.append(f"### further figures at equal change of images\n\n{markdown(at_change)}")
        pages.append(f"### what can be said of order\n\n{claims_text(claims(found))}")
        lines += [json.dumps({"grid": name} | each, sort_keys=True) for each in comparison.results.latest().values()]
    if bad:
        pages.append(CONTROLS + told(bad))
    write_text(out / "tables.md", "\n".join(pages), force=True)
    about = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "seconds": seconds}
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
    which = "only these: eigengan, stylegan2, twin, shuffled, learned, ...; none, with --controls: the controls alone"
    parser.add_argument("--grids", nargs="*", help=which)
    parser.add_argument("--methods", type=int, help="only the first so many of each grid")
    parser.add_argument("--brief", action="store_true", help="only at equal change of images, read off 4 codes")
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
    METHODS.table["duplicated"] = "benchmarks.result:Duplicated"
    runtime.set_threads(1)
    began = time.monotonic()
    data = {"data": args.data, "correlated": args.correlated, "rare": args.rare}
    seeds = parse_seeds(args.seeds)
    train_networks(args.runs, data, args.groups, seeds, args.kimg)
    kept = args.runs / "controls.json"
    if args.controls:
        write_json(kept, controls(args.runs), force=True)
    if args.grids == ["none"] and args.controls:
        rewrite_controls(args.out, json.loads(kept.read_text("utf-8")))
        return
    bad = json.loads(kept.read_text("utf-8")) if kept.exists() else []
    done: dict[str, Comparison] = {}
    for name, grid in grids(args.runs, seeds, args.kimg, most=args.methods, brief=args.brief):
        comparison = Comparison(grid, args.runs / "grids" / name, device="cpu", log=print)
        is_asked = not args.grids or name in args.grids
        if is_asked and time.monotonic() - began < 60 * args.minutes:
            comparison.run()
        if comparison.results.path.exists():
            done[name] = comparison
            write(args.out, done, time.monotonic() - began, bad)
    contact_sheet(args.runs, list(FAMILIES), seeds, args.kimg, args.out)


if __name__ == "__main__":
    main()
