"""Questions about EigenGAN's axes, answered by runs of several seeds.

    python -m benchmarks recipes --data toon=toon32.npz --recipes "published,floor,no subspaces" --seeds 0-4
    python -m benchmarks eigengan_questions --runs runs/recipes --data toon32.npz

The folder holds runs of `python -m benchmarks recipes`, DATA-RECIPE-seedK; what stands before `-seedK` is a group.
These are asked, as far as they are there:

- `toon-published`, and with another initial L `toon-ascending-L` and `toon-equal-L`; `toon-floor`;
- `rare2-floor`, `rare5-floor`, `rare20-floor`: beard and rear hair in so many per cent of the data;
- `personas-published` (`tools/dicebear`) and `cats-published` (`tools/robohash`), whose axes move;
- `toon-no-subspaces`.

Each measurement is one line of `results.jsonl`; what stands there for the same weights is not measured again, and
`tables.md` is made from the lines. Question 7, why subspaces collapse, has its own: `recipes` and `collapse`.

1. Is |L| an importance?           4. Are the axes closer to PCA?
2. Is the hierarchy real?          5. Can axes move house?
3. Do the axes depend on the seed? 6. What does the structure cost?
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

PLAIN, FLOOR, TWIN = "toon-published", "toon-floor", "toon-no-subspaces"
STARTS = (PLAIN, "toon-ascending-L", "toon-equal-L")
RARE = {"rare2-floor": 0.02, "rare5-floor": 0.05, "rare20-floor": 0.2, FLOOR: 0.5}
"""Group -> share of faces with a beard, and with rear hair, in its data."""
RARE_FACTORS = ("beard", "rear_hair")
FACES = (*STARTS, *RARE)
"""Groups of toon faces: those of questions 1 and 3."""
DONORS = {"another style": "personas-published", "cats": "cats-published"}
"""What gives axes in question 5, beside the next seed of the same data."""
BUNDLED = "toonfaces"
GRAFTED = ("3",)
"""Layers that question 5 moves: the last, which does most."""
HEAD = """# EigenGAN's axes: the figures

Made by `python -m benchmarks eigengan_questions` from `results.jsonl`. Means over seeds with 95 % intervals
(Student's t).
"""
T_95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t at 97.5 % by degrees of freedom, from 0."""


# --- runs and lines ---------------------------------------------------------------------------------------------------


def find_runs(folders: Iterable[Path]) -> dict[str, dict[int, Path]]:
    """Return group -> seed -> generator folder of the runs that have come as far as the longest of their group."""
    groups: dict[str, dict[int, Path]] = {}
    for path in sorted((path for folder in folders for path in folder.glob("*-seed*")), key=lambda path: path.name):
        match = re.fullmatch(r"(.+)-seed(\d+)", path.name)
        if match and (path / "last" / "model.safetensors").is_file():
            groups.setdefault(match[1], {})[int(match[2])] = path / "last"
    for group, found in groups.items():
        longest = max(map(kimg_of, found.values()))
        groups[group] = {seed: path for seed, path in found.items() if kimg_of(path) > longest - 0.5}
    return groups


def kimg_of(generator: Path) -> float:
    """Return for how many thousands of images a generator has been trained."""
    return float(json.loads((generator / "config.json").read_text("utf-8"))["training"]["kimg"])


def start_of(generator: Path) -> tuple[int, Any]:
    """Return the seed of a generator's training, and the network as it was before the first step."""
    import torch

    from eigenlens.generators.eigengan import EigenGANConfig, EigenGANNetwork

    config = json.loads((generator / "config.json").read_text("utf-8"))["training"]["config"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        return config["seed"], EigenGANNetwork(EigenGANConfig(**config["model"]))


def last_distance(run: Path) -> tuple[float, float] | None:
    """Return kimg and mean sliced Wasserstein distance at the last measurement of a run; None where there is none."""
    found = None
    if (run / "metrics.jsonl").is_file():
        for text in (run / "metrics.jsonl").read_text("utf-8").splitlines():
            line = json.loads(text)
            if "sliced_wasserstein" in line:
                found = (float(line["kimg"]), float(line["sliced_wasserstein"]["mean"]))
    return found


class Lines:
    """Measurements that are kept: each is made once for the same generators."""

    def __init__(self, folder: Path) -> None:
        from eigenlens.compare import Results

        self.results = Results(folder)
        self.known = self.results.latest()

    def measured(self, question: int, what: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> Any:
        """Return the figures of a measurement, from the file or made now."""
        import eigenlens
        from eigenlens.compare import address_key, plain_json

        cell = plain_json({"question": question, **what})
        key = address_key(cell)
        if key not in self.known:
            began = time.process_time()
            figures = plain_json(rounded(measure()))
            line = {
                "cell": cell, "figures": figures, "cpu_seconds": round(time.process_time() - began, 1),
                "version": eigenlens.__version__,
            }  # fmt: skip
            self.results.append(line)
            self.known[key] = line
            sys.stderr.write(f"question {question}: {json.dumps({k: v for k, v in cell.items() if k != 'weights'})}\n")
        return self.known[key]["figures"]


def rounded(value: Any) -> Any:
    """Return figures to four significant digits."""
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    if hasattr(value, "tolist"):
        return rounded(value.tolist())
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


# --- measuring --------------------------------------------------------------------------------------------------------


def axes_of(anatomy: Any) -> dict[str, Any]:
    """Return the figures of questions 1 and 2 of one generator."""
    from eigenlens.anatomy import spearman_within
    from eigenlens.effect import measure_effect

    stored, layers = anatomy.stored, anatomy.layers
    at_start = stored.fields["importance_at_init"]
    found: dict[str, Any] = {
        "share": stored.importance,
        "share_at_start": at_start,
        "effect": stored.effect,
        "rank_correlation": {
            "|L| and effect": spearman_within(stored.importance, stored.effect, layers),
            "start and effect": spearman_within(at_start, stored.effect, layers),
            "|L| and start": spearman_within(stored.importance, at_start, layers),
        },
    }
    for basis in ("injected", "image"):
        axes = anatomy.bases[basis]
        effect = measure_effect(anatomy.generator, axes)
        found["rank_correlation"][f"{basis}: singular value and effect"] = spearman_within(
            axes.importance, effect, layers
        )
    found["agreement"] = {
        layer: {
            f"{a}-{b}": anatomy.agreement(a, b, layer)
            for a, b in itertools.combinations(("stored", "injected", "image"), 2)
        }
        | {"chance": anatomy.chance(layer)}
        for layer in anatomy.names
    }
    found["layers"] = {
        layer: {
            "strongest_effect": anatomy.strength_of(layer),
            "turning": float(anatomy.turning[anatomy.rows(layer)].nanmean()),
            "moved": dict(zip(anatomy.factors, anatomy.moved[anatomy.rows(layer)].amax(0).tolist(), strict=True)),
        }
        for layer in anatomy.names
    }
    found["found"] = list(anatomy.found)
    return found


def against_start(generator: Any, start: Any) -> dict[str, Any]:
    """Return how near U of each layer still is to what it was before training: mean |cos| of each u_j with itself.

    By chance it is about 1 / √(height x width x channels): 0.02 in layer 1 and less in the others.
    """
    from torch.nn.functional import cosine_similarity

    pairs = zip(generator.network.subspaces(), start.subspaces(), strict=True)
    cosines = [cosine_similarity(a.basis.detach().flatten(1), b.basis.detach().flatten(1)).abs() for a, b in pairs]
    return {f"layer{i}": float(each.mean()) for i, each in enumerate(cosines, start=1)}


def against_components(anatomy: Any, *, n: int) -> dict[str, Any]:
    """Return how near each layer's axes are to principal directions, and what random ones are.

    `own φ`: eigenvectors of the covariance of φ = U L z + μ, in z. `features`: GANSpace at the layer's features, which
    eps and all z up to there reach, carried back to the code; the best matching in the whole code.
    """
    import torch

    from eigenlens.algebra import similarity
    from eigenlens.method import METHODS

    g, stored, found = anatomy.generator, anatomy.stored, {}
    for layer in anatomy.names:
        rows = anatomy.rows(layer)
        weight = g.style_matrices(layer)[layer].weight.double()
        columns = torch.linalg.eigh(weight.T @ weight)[1]
        features = METHODS["ganspace"](at=layer, n_directions=len(rows), n_samples=n).fit(g)
        alike = similarity(stored[rows], features)
        found[layer] = {
            "own φ": matched(columns.T.abs()),
            "own φ by chance": anatomy.chance(layer),
            "features": alike.mean,
            "features by chance": alike.null,
            "features 95 % by chance": alike.null_95,
        }
    return found


def matched(cosines: Any) -> float:
    """Return the mean of the best one-to-one matching of |cos| [k, k]."""
    from eigenlens.algebra import match

    values = cosines.numpy()
    return float(np.mean([values[pair] for pair in match(-values)]))


def grafted(host: Any, donor: Any, layers: str, *, with_injection: bool, control: int | None) -> dict[str, float]:
    """Return what a graft keeps, untuned."""
    from eigenlens.graft import compare_graft, graft, scrambled

    giver = donor if control is None else scrambled(donor, layers=layers, seed=control)
    made = graft(host, giver, layers=layers, with_injection=with_injection)
    return kept_figures(compare_graft(host, donor, made, layers=layers))


def tuned(host_folder: Path, donor: Any, layers: str, *, with_injection: bool, data: Path) -> dict[str, float]:
    """Return what a graft keeps after one kimg of tuning."""
    from eigenlens import load_generator
    from eigenlens.graft import compare_graft, graft, tune

    host = load_generator(host_folder)
    made = graft(host, donor, layers=layers, with_injection=with_injection)
    with tempfile.TemporaryDirectory() as folder:
        tuned_one = tune(made, host_folder / "state.pt", data=data, kimg=1.0, run=Path(folder) / "run")
        return kept_figures(compare_graft(host, donor, tuned_one, layers=layers))


def kept_figures(kept: Any) -> dict[str, float]:
    """Return a graft's figures as numbers; an axis counts by how much it does in the donor."""
    return {
        "cosine": float(kept.cosine.mean()),
        "effect": float(kept.effect.log().mean().exp()),
        "distance": kept.distance,
    }


def labels_without_abstention() -> Any:
    """Return the reader of toon faces as one that always answers: most samples of short trainings are no faces to it.

    On rendered faces of 32 px its numbers correlate with the truth by 0.99.
    """
    from eigenlens.reader import open_reader

    inner = open_reader("toonfaces")
    return open_reader(lambda images: inner(images), inner.attributes)


# --- tables -----------------------------------------------------------------------------------------------------------


def interval(values: Iterable[float | None]) -> str:
    """Return mean and 95 % interval (Student's t) of figures, and how many there are."""
    known = [each for each in values if each is not None and math.isfinite(each)]
    if not known:
        return "-"
    mean = float(np.mean(known))
    if len(known) < 2:
        return f"{mean:.2f} (n 1)"
    half = T_95[min(len(known) - 1, len(T_95) - 1)] * float(np.std(known, ddof=1)) / math.sqrt(len(known))
    return f"{mean:.2f} ± {half:.2f} (n {len(known)})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, ["---"] * len(head), *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def tables(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return all tables, in Markdown, from the lines of `results.jsonl`."""
    by_question: dict[int, list[Mapping[str, Any]]] = {}
    for line in whole_groups(lines):
        by_question.setdefault(line["cell"]["question"], []).append(line)
    pieces = [HEAD]
    makers = {1: _first, 2: _second, 3: _third, 4: _fourth, 5: _fifth, 6: _sixth}
    pieces += [make(by_question[number]) for number, make in makers.items() if number in by_question]
    return "\n".join(pieces)


def whole_groups(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave out what was measured of some runs of a group where the same was measured of those and more."""
    kept = list(lines)
    runs: dict[str, list[set[str]]] = {}
    for line in kept:
        if isinstance(line["cell"].get("weights"), list):
            runs.setdefault(_apart_from_weights(line), []).append(set(line["cell"]["weights"]))
    return [
        line
        for line in kept
        if not isinstance(line["cell"].get("weights"), list)
        or not any(set(line["cell"]["weights"]) < more for more in runs[_apart_from_weights(line)])
    ]


def _apart_from_weights(line: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in line["cell"].items() if key != "weights"}, sort_keys=True)


def _grouped(lines: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for line in lines:
        groups.setdefault(key(line["cell"]), []).append(line["figures"])
    return groups


def _group(cell: Mapping[str, Any]) -> str:
    """Return the name of a group in a table; groups of different length stand apart."""
    return str(cell["group"]) + (f", {cell['kimg']:.0f} kimg" if "kimg" in cell else "")


def _first(lines: list[Mapping[str, Any]]) -> str:
    groups = _grouped(lines, _group)
    names = list(next(iter(groups.values()))[0]["rank_correlation"])
    rows = [
        [group, *(interval(each["rank_correlation"][name] for each in found) for name in names)]
        for group, found in groups.items()
    ]
    text = "## 1. Is |L| an importance?\n\nRank correlation within layers.\n\n" + table(["group", *names], rows)
    places = []
    for group, found in groups.items():
        shares = [np.array(each["effect"]) for each in found]
        layers = len(found[0]["layers"])
        within = [
            (each.reshape(layers, -1) / each.reshape(layers, -1).sum(1, keepdims=True)).mean(0) for each in shares
        ]
        places.append([group, *(interval(each[j] for each in within) for j in range(len(within[0])))])
    head = ["group", *(f"D{j + 1}" for j in range(len(places[0]) - 1))]
    return f"{text}\nShare of the measured effect within a layer by place, mean over layers.\n\n{table(head, places)}"


def _second(lines: list[Mapping[str, Any]]) -> str:
    pieces = ["## 2. Is the hierarchy real?\n"]
    for group, found in _grouped(lines, _group).items():
        layers = list(found[0]["layers"])
        factors = list(found[0]["layers"][layers[0]]["moved"])
        rows = [
            [
                "strongest effect, share",
                *(interval(e["layers"][name]["strongest_effect"] for e in found) for name in layers),
            ],
            ["turning, degrees per σ", *(interval(e["layers"][name]["turning"] for e in found) for name in layers)],
        ]
        rows += [
            [factor, *(interval(each["layers"][name]["moved"].get(factor) for each in found) for name in layers)]
            for factor in factors
        ]
        pieces.append(f"{group}: the most that an axis of a layer changes each factor, in standard deviations.\n\n")
        pieces.append(table(["", *layers], rows))
    return "\n".join(pieces)


def _third(lines: list[Mapping[str, Any]]) -> str:
    rows, finds = [], []
    starts = _grouped((line for line in lines if "seed" in line["cell"]), _group)
    for line in lines:
        if "matched" not in line["figures"]:
            continue
        group, figures = line["cell"]["group"], line["figures"]
        runs = len(figures["matched"])
        pairs = list(itertools.combinations(range(runs), 2))
        mean = float(np.mean([figures["matched"][i][j] for i, j in pairs]))
        null = float(np.mean([(figures["null"][i][j] + figures["null"][j][i]) / 2 for i, j in pairs]))
        apart = [figures["matched"][i][j] - (figures["null"][i][j] + figures["null"][j][i]) / 2 for i, j in pairs]
        rows.append(
            [group, str(runs), f"{mean:.3f}", f"{null:.3f}", f"{sum(each > 0 for each in apart)} of {len(pairs)}"]
        )
        listed = sorted(figures["found"].items(), key=lambda item: -item[1])
        finds.append([group, ", ".join(f"{name} {count}/{runs}" for name, count in listed if count) or "-"])
    head = ["group", "runs", "matched |cos|", "axes turned at random within layers", "pairs above their null"]
    counts = table(["group", "factors that were found, in how many runs"], finds)
    names = list(dict.fromkeys(name for found in starts.values() for each in found for name in each))
    kept = [[group, *(interval(e.get(name) for e in found) for name in names)] for group, found in starts.items()]
    drawn = table(["group: |cos| of each u with its start", *names], kept) if kept else ""
    return f"## 3. Do the axes depend on the seed?\n\n{table(head, rows)}\n{counts}\n{drawn}\n{_rarity(lines)}"


def _rarity(lines: list[Mapping[str, Any]]) -> str:
    """Return how much of what is rare in the data samples show, and axes change."""
    rows = []
    for line in lines:
        group, figures = line["cell"]["group"], line["figures"]
        if "drawn" in figures:
            share = f"{RARE[group]:.0%}"
            rows += [
                [share, factor, interval(figures["drawn"][factor]), interval(figures["changed"][factor])]
                for factor in figures["drawn"]
            ]
    head = [
        "share of the data",
        "factor",
        "of samples, by the reader",
        "most that an axis changes it, standard deviations",
    ]
    return table(head, sorted(rows, key=lambda row: (row[1], float(row[0][:-1])))) if rows else ""


def _fourth(lines: list[Mapping[str, Any]]) -> str:
    groups = _grouped(lines, _group)
    figures = next(iter(groups.values()))[0]["layer1"]
    rows = [
        [group, layer, *(interval(each[layer][name] for each in found) for name in found[0][layer])]
        for group, found in groups.items()
        for layer in found[0]
    ]
    head = ["group", "layer", *figures]
    return f"## 4. Are the axes closer to PCA?\n\nMean matched |cos|.\n\n{table(head, rows)}"


def _fifth(lines: list[Mapping[str, Any]]) -> str:
    key = lambda cell: tuple(cell[name] for name in ("donors", "start", "layers", "with_injection", "axes"))  # noqa: E731
    rows = [
        [
            donors,
            start,
            layers,
            "yes" if injected else "no",
            axes,
            *(interval(e[name] for e in found) for name in found[0]),
        ]
        for (donors, start, layers, injected, axes), found in sorted(_grouped(lines, key).items(), key=str)
    ]
    head = [
        "axes from",
        "initial weights",
        "layers",
        "injections",
        "what moved",
        "|cos| with the donor's",
        "length",
        "distance",
    ]
    return f"""## 5. Can axes move house?

Of the mean change of images along an axis: |cos| with, and length over, what it is in the donor. The distance is that
of images from the host's at the same codes, over that of two samples.

{table(head, rows)}"""


def _sixth(lines: list[Mapping[str, Any]]) -> str:
    longest = max(line["cell"]["kimg"] for line in lines)
    by_seed: dict[int, dict[str, float]] = {}
    for line in lines:
        if line["cell"]["kimg"] > longest - 0.5:
            by_seed.setdefault(line["cell"]["seed"], {})[line["cell"]["group"]] = line["figures"]["distance"]
    both = {seed: each for seed, each in by_seed.items() if PLAIN in each and TWIN in each}
    if not both:
        return "## 6. What does the structure cost?\n\nNo twin without subspaces has come as far as its run.\n"
    rows = [[f"seed {seed}", f"{each[PLAIN]:.1f}", f"{each[TWIN]:.1f}"] for seed, each in sorted(both.items())]
    rows += [["mean", *(interval(each[group] for each in both.values()) for group in (PLAIN, TWIN))]]
    rows += [["difference", interval(each[PLAIN] - each[TWIN] for each in both.values()), ""]]
    return "## 6. What does the structure cost?\n\nSliced Wasserstein distance x 1e3 at equal kimg.\n\n" + table(
        ["", "with subspaces", "all z at the base"], rows
    )


# --- the run ----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure what is not known yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, nargs="*", default=[], help="folders of the runs; without any: the bundled generator alone"
    )
    parser.add_argument("--data", type=Path, help="question 5: the hosts' images, for grafts tuned by one kimg")
    parser.add_argument("--questions", default="1,2,3,4,5,6", help="which, with commas between")
    parser.add_argument("--samples", type=int, default=4000, help="question 4: samples of GANSpace")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("docs/results/eigengan"))
    options = parser.parse_args()

    from eigenlens import runtime

    runtime.set_threads(options.threads)
    lines = Lines(options.out)
    asked = {int(each) for each in options.questions.split(",")}
    groups = find_runs(options.runs)
    if options.runs and not groups:
        parser.error(f"{', '.join(map(str, options.runs))} hold no runs called NAME-seedK")
    answer(lines, groups, asked, options)
    known = sorted(lines.known.values(), key=lambda line: json.dumps(line["cell"], sort_keys=True))
    (options.out / "tables.md").write_text(tables(known), encoding="utf-8")
    print(options.out / "tables.md")


class Bench:
    """Generators and their anatomies, opened and examined once."""

    def __init__(self) -> None:
        self.open = cache(self._open)
        self.examine = cache(self._examine)
        self.reader = labels_without_abstention()

    def _open(self, path: Path) -> Any:
        from eigenlens import load_generator

        return load_generator(path)

    def _examine(self, path: Path) -> Any:
        from eigenlens.anatomy import examine

        return examine(self.open(path), reader=self.reader)


LABELS = {"reader": "toonfaces, all answers"}


def answer(
    lines: Lines, groups: Mapping[str, Mapping[int, Path]], asked: set[int], options: argparse.Namespace
) -> None:
    """Measure what the asked questions need."""
    bench = Bench()
    for group, runs in groups.items():
        for seed, path in runs.items():
            _of_one(lines, bench, {"group": group, "seed": seed}, path, asked, options.samples)
        if 3 in asked and group in FACES and len(runs) > 1:
            at = {"group": group, "weights": [bench.open(path).weight_hash for path in runs.values()], **LABELS}
            lines.measured(3, at, partial(stability, bench, list(runs.values())))
        if 3 in asked and group in RARE:
            at = {"group": group, "what": "rare", "weights": [bench.open(path).weight_hash for path in runs.values()]}
            lines.measured(3, {**at, **LABELS}, partial(rarities, bench, list(runs.values())))
    if asked & {1, 2}:
        _of_bundled(lines, asked)
    if 5 in asked:
        _of_grafts(lines, bench, groups, options)


def _of_one(lines: Lines, bench: Bench, name: Mapping[str, Any], path: Path, asked: set[int], samples: int) -> None:
    """Measure questions 1, 2, 4 and 6 of one run."""
    group, distance = name["group"], last_distance(path.parent)
    if 6 in asked and group in (PLAIN, TWIN) and distance is not None:
        lines.measured(6, {**name, "kimg": distance[0]}, lambda: {"distance": distance[1]})
    if group not in FACES or not asked & {1, 2, 3, 4}:
        return
    at = {**name, "kimg": kimg_of(path), "weights": bench.open(path).weight_hash}
    if 1 in asked:
        lines.measured(1, at, lambda: axes_of(bench.examine(path)))
    if 2 in asked and group in (PLAIN, FLOOR):
        lines.measured(2, {**at, **LABELS}, lambda: axes_of(bench.examine(path)))
    if 3 in asked:
        lines.measured(3, at, lambda: against_start(bench.open(path), start_of(path)[1]))
    if 4 in asked and group in (PLAIN, FLOOR):
        lines.measured(4, {**at, "samples": samples}, lambda: against_components(bench.examine(path), n=samples))


def _of_bundled(lines: Lines, asked: set[int]) -> None:
    """Measure questions 1 and 2 of the bundled generator: trained longer, of 64 px, and faces to the reader."""
    from eigenlens import load_generator
    from eigenlens.anatomy import examine

    bundled = load_generator(BUNDLED)
    at = {"group": f"{BUNDLED} (bundled)", "seed": 0, "weights": bundled.weight_hash}
    whole = cache(lambda: axes_of(examine(bundled, reader="toonfaces")))
    for question in sorted(asked & {1, 2}):
        lines.measured(question, at | ({"reader": "toonfaces"} if question == 2 else {}), whole)


def stability(bench: Bench, paths: Sequence[Path]) -> dict[str, Any]:
    """Return the figures of question 3."""
    from eigenlens.anatomy import compare_runs

    found = compare_runs([bench.examine(path) for path in paths])
    return {"matched": found.matched, "null": found.null, "found": found.found}


def rarities(bench: Bench, paths: Sequence[Path], *, n: int = 256) -> dict[str, Any]:
    """Return, for each rare factor and run, its mean score over samples, and the most that an axis changes it."""
    anatomies, columns = [bench.examine(path) for path in paths], list(bench.reader.attributes)
    scores = [bench.reader(each.generator.render(each.generator.sample(n, seed=0)).clamp(-1, 1)) for each in anatomies]
    factors = [name for name in RARE_FACTORS if name in columns]
    return {
        "drawn": {name: [float(each[:, columns.index(name)].mean()) for each in scores] for name in factors},
        "changed": {
            name: [float(each.moved[:, each.factors.index(name)].max()) for each in anatomies] for name in factors
        },
    }


def _of_grafts(
    lines: Lines, bench: Bench, groups: Mapping[str, Mapping[int, Path]], options: argparse.Namespace
) -> None:
    """Measure question 5 for every host of the plain group: donors of the next seed, and of other data."""
    hosts = dict(groups.get(PLAIN, {}))
    following = dict(zip(hosts, [*list(hosts)[1:], *list(hosts)[:1]], strict=True))
    for seed, folder in hosts.items():
        givers = [("the same data, next seed", hosts[following[seed]])] if len(hosts) > 1 else []
        givers += [(what, path) for what, group in DONORS.items() for path in list(groups.get(group, {}).values())[:1]]
        for (donors, path), layers, injected in itertools.product(givers, GRAFTED, (False, True)):
            host, donor = bench.open(folder), bench.open(path)
            is_alike = start_of(folder)[0] == start_of(path)[0]
            what = {
                "donors": donors, "start": "the same" if is_alike else "another", "host": host.weight_hash,
                "donor": donor.weight_hash, "layers": layers, "with_injection": injected,
            }  # fmt: skip
            ways: dict[str, Callable[[], Mapping[str, Any]]] = {
                "axes": partial(grafted, host, donor, layers, with_injection=injected, control=None),
                "random U": partial(grafted, host, donor, layers, with_injection=injected, control=seed),
            }
            if options.data:
                ways["axes, 1 kimg of tuning"] = partial(
                    tuned, folder, donor, layers, with_injection=injected, data=options.data
                )
            for axes, measure in ways.items():
                lines.measured(5, {**what, "axes": axes}, measure)


if __name__ == "__main__":
    main()
