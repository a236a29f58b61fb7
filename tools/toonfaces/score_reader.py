"""Score the toon-face reader: `python tools/toonfaces/score_reader.py --data toonfaces40k.npz`.

On faces that no network saw: R² and errors of numbers, accuracy of classes, at 64 and at 32 px, how often it abstains
there and on what is no toon face. On freshly rendered pairs that differ in one factor: how much every reading changes,
in standard deviations that it has over faces (the cross-talk). It writes `scores.json`, the standard errors in
`config.json`, and the tables in the reader's card and in docs/readers.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import no_faces
import numpy as np
import torch
import train_judge
import train_reader
from render import render_faces
from toonface_factors import ABSENT_CODE, FACTORS, Category, Number, applies, sample_factors
from torch import Tensor

from eigenlens.generator import Generator, load_generator
from eigenlens.generators.eigengan import EigenGAN, EigenGANConfig, EigenGANNetwork
from eigenlens.generators.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Network
from eigenlens.reader import factor_of
from eigenlens.readers import toonfaces
from eigenlens.readers.toonfaces import ToonFaces, truths_of

DOCS = Path(__file__).resolve().parents[2] / "docs" / "readers.md"
BEGIN, END = "<!-- scores: tools/toonfaces/score_reader.py -->", "<!-- end of scores -->"
PAIRS = 60
SIZES = (64, 32)


def read_all(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores and certainty [n, attributes]."""
    readings = [ToonFaces().read(some) for some in images.split(250)]
    return torch.cat([each.scores for each in readings]), torch.cat([each.certain for each in readings])


def held_out_scores(images: np.ndarray, factors: Mapping[str, np.ndarray], size: int) -> dict[str, dict[str, Any]]:
    """Score every factor on faces that no network saw."""
    ensemble = toonfaces.load_ensemble()
    with torch.inference_mode():
        answers = [ensemble.answer(some) for some in train_reader.as_seen_at(images, size).split(250)]
    value, deviation = torch.cat([each[0] for each in answers]), torch.cat([each[1] for each in answers])
    _, certain = read_all(train_reader.as_seen_at(images, size))
    names = ToonFaces().attributes
    found: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(ensemble.heads.numbers):
        truth = torch.from_numpy(factors[name].astype(np.float32))
        shown = truth.isfinite()
        error = (value[:, i] - truth)[shown]
        row = {"r2": 1 - float(error.square().mean() / truth[shown].var()), "rmse": float(error.square().mean().sqrt())}
        row["calibration"] = float((error / deviation[shown, i]).square().mean())
        if name in names:
            row["abstains"] = 1 - float(certain[shown, names.index(name)].float().mean())
            kept = certain[shown, names.index(name)]
            row["r2_where_certain"] = 1 - float(error[kept].square().mean() / truth[shown][kept].var())
        found[name] = row
    for name, categories in ensemble.heads.classes.items():
        chances = torch.cat([each[2][name] for each in answers])
        truth = torch.from_numpy(factors[name].astype(np.int64))
        shown = truth >= 0
        right = chances[shown].argmax(1) == truth[shown]
        row = {
            "accuracy": float(right.float().mean()),
            "chance": float(torch.bincount(truth[shown]).max() / shown.sum()),
        }
        columns = [names.index(each) for each in truths_of(name, categories)]
        row["abstains"] = 1 - float(certain[shown][:, columns].all(1).float().mean())
        sure = chances[shown].amax(1) >= 0.8
        row["accuracy_where_above_0.8"] = float(right[sure].float().mean())
        row["above_0.8"] = float(sure.float().mean())
        found[name] = row
    return found


def standard_errors(images: np.ndarray, factors: Mapping[str, np.ndarray], rows: Mapping[str, Any]) -> dict[str, float]:
    """Return the standard error of each attribute: RMSE of numbers; of truths, the share of wrong answers."""
    ensemble = toonfaces.load_ensemble()
    scores, _ = read_all(train_reader.as_seen_at(images, 64))
    errors = {}
    for column, name in enumerate(ToonFaces().attributes):
        factor = factor_of(name)
        if factor in ensemble.heads.numbers:
            errors[name] = rows[factor]["rmse"]
            continue
        categories = ensemble.heads.classes[factor]
        wanted = categories.index(name.partition("=")[2]) if "=" in name else 1
        truth = torch.from_numpy(factors[factor]) == wanted
        errors[name] = float(((scores[:, column] > 0.5) != truth).float().mean())
    return errors


def cross_talk(seed: int) -> tuple[list[str], list[str], np.ndarray]:
    """Render pairs that differ in one factor, and return how much each factor's reading changes, in its spread.

    Returns:
        Factors that differ, factors read, and root mean square changes [differing, read] over the pairs.
    """
    base = sample_factors(2 * PAIRS, seed=seed)
    read_names = list(dict.fromkeys(factor_of(each) for each in ToonFaces().attributes))
    members = [[i for i, each in enumerate(ToonFaces().attributes) if factor_of(each) == name] for name in read_names]
    spread_images, _ = render_faces(sample_factors(1000, seed=seed + 1), resolution=64)
    scores, certain = read_all(train_reader.as_seen_at(spread_images, 64))
    spread = torch.stack([scores[certain[:, i], i].std() for i in range(scores.shape[1])])
    rows = []
    for factor in FACTORS:
        first = {name: values[:PAIRS].copy() for name, values in base.items()}
        if factor.applies_to is not None:  # the factor must show on both sides
            parent = next(each for each in FACTORS if each.name == factor.applies_to[0])
            assert isinstance(parent, Category)
            first[parent.name][:] = parent.categories.index(factor.applies_to[1][-1])
            fill_conditionals(first, seed)
        second = {name: values.copy() for name, values in first.items()}
        random = np.random.default_rng(seed)
        if isinstance(factor, Number):
            first[factor.name][:] = factor.low + 0.15 * (factor.high - factor.low)
            second[factor.name][:] = factor.low + 0.85 * (factor.high - factor.low)
        else:
            n = len(factor.categories)
            second[factor.name] = ((first[factor.name] + random.integers(1, n, PAIRS)) % n).astype(np.int16)
            fill_conditionals(first, seed)
            fill_conditionals(second, seed)
        before, after = (
            read_all(train_reader.as_seen_at(render_faces(each, resolution=64)[0], 64)) for each in (first, second)
        )
        known = before[1] & after[1]
        change = torch.where(known, (after[0] - before[0]) / spread, 0.0)
        mean = (change.square().sum(0) / known.sum(0).clamp(min=1)).sqrt()
        rows.append([float(mean[some].square().sum().sqrt() / (2**0.5 if len(some) > 1 else 1)) for some in members])
    return [each.name for each in FACTORS], read_names, np.array(rows)


def fill_conditionals(factors: dict[str, np.ndarray], seed: int) -> None:
    """Give every factor that shows a value, the same for every call, and blank those that do not."""
    for factor in FACTORS:
        if factor.applies_to is None:
            continue
        shown = applies(factor, factors)
        values = factors[factor.name]
        random = np.random.default_rng([seed, sum(map(ord, factor.name))])
        if isinstance(factor, Number):
            drawn = random.uniform(factor.low, factor.high, len(values)).astype(np.float32)
            values[shown] = np.where(np.isnan(values[shown]), drawn[shown], values[shown])
            values[~shown] = np.nan
        else:
            drawn = random.integers(len(factor.categories), size=len(values)).astype(np.int16)
            values[shown] = np.where(values[shown] < 0, drawn[shown], values[shown])
            values[~shown] = ABSENT_CODE


def off_the_manifold(images: np.ndarray, taught: np.ndarray) -> dict[str, dict[str, float]]:
    """Return how often the reader abstains from everything, and how often its judge alone makes it, by kind of picture.

    Args:
        images: faces that no network saw, uint8 [n, 64, 64, 3].
        taught: faces from which the components of roughened ones come.
    """
    faces = train_reader.as_seen_at(images, 64)
    random = torch.Generator().manual_seed(0)
    spoilt = train_reader.spoilt(faces, random)
    kinds = ("another face's part", "warped 3-8 px", "blurred 24 times", "noise", "two faces blended")
    sets = {"faces": faces, "faces with sensor noise": (faces + 0.04 * torch.randn(faces.shape, generator=random))}
    basis, none = train_judge.components(train_reader.as_seen_at(taught, 64)), no_faces.no_faces(faces, random)
    sets["roughened faces"] = train_judge.roughened(faces, basis, none, random)
    sets |= {kind: spoilt[i::5] for i, kind in enumerate(kinds)}
    generator = load_generator("toonfaces")
    for truncation in (1.0, 0.5):
        name = f"samples of the bundled generator, truncation {truncation:g}"
        sets[name] = generator.render(generator.sample(500, truncation=truncation))
    sets["uniform noise"] = torch.rand(500, 3, 64, 64, generator=random) * 2 - 1
    sets["one colour"] = (torch.rand(500, 3, 1, 1, generator=random) * 2 - 1).expand(-1, -1, 64, 64)
    for name, kind in no_faces.KINDS.items():
        sets[f"no faces: {name}"] = torch.cat([kind(some, random) for some in faces[:320].split(16)])
    for name, networks in UNTAUGHT.items():
        drawn = [each.render(each.sample(40)) for each in map(networks, range(8))]
        sets[f"{name} (the judge was taught none)"] = torch.cat(drawn)
    judge, threshold = toonfaces.load_ensemble().judge, toonfaces.load_ensemble().calibration.judge
    found = {}
    for name, some in sets.items():
        with torch.inference_mode():
            seen = [judge(toonfaces.to_reader_size(each))[:, 0] >= threshold for each in some.split(250)]
        reads = read_all(some)[1].any(1)
        found[name] = {
            "abstains": 1 - float(reads.float().mean()),
            "by_the_judge": 1 - float(torch.cat(seen).float().mean()),
        }
    return found


# --- networks that learnt nothing -------------------------------------------------------------------------------------


def shuffled_generator(seed: int) -> Generator:
    """Return the bundled generator with the entries of every weight in random order, each tensor by itself."""
    generator, random = load_generator("toonfaces"), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in generator.network.parameters():
            weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=random)].view_as(weight))
    return generator


def untrained_eigengan(seed: int) -> Generator:
    """Return an EigenGAN of 64 px as it is before training."""
    torch.manual_seed(seed)
    return EigenGAN(EigenGANNetwork(EigenGANConfig(64, noise_dim=32, base_channels=8)).eval(), name="untrained")


def untrained_stylegan2(seed: int) -> Generator:
    """Return a StyleGAN2 of 64 px whose weights are all random."""
    torch.manual_seed(seed)
    network = StyleGAN2Network(StyleGAN2Config((32, 32, 32, 16, 16), (32, 32), z_dim=32)).eval()
    with torch.no_grad():
        for each in (*network.parameters(), *network.buffers()):
            each.normal_(std=max(1, each[0].numel()) ** -0.5 if each.ndim > 1 else 0.2)
    return StyleGAN2(network, name="untrained")


UNTAUGHT = {
    "the bundled generator, its weights shuffled": shuffled_generator,
    "untrained EigenGANs": untrained_eigengan,
    "untrained StyleGAN2s": untrained_stylegan2,
}
"""Networks of kinds that the judge never saw, by seed."""


# --- the card ---------------------------------------------------------------------------------------------------------


def tables(scores: Mapping[str, Any]) -> str:
    """Return the scores as Markdown."""
    lines = [
        "| number | R² at 64 px | at 32 px | RMSE at 64 px | abstains | R² where it does not |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in scores["held_out"]["64"].items():
        if "r2" not in row:
            continue
        small = scores["held_out"]["32"][name]
        given = f"{row['abstains']:.1%} | {row['r2_where_certain']:.3f}" if "abstains" in row else "not given | "
        mark = "" if row["r2"] >= 0.95 else " (below 0.95)"
        lines.append(f"| {name} | {row['r2']:.3f}{mark} | {small['r2']:.3f} | {row['rmse']:.3g} | {given} |")
    lines += [
        "",
        "| class | accuracy at 64 px | at 32 px | guessing | sure (above 0.8) | accuracy where sure |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in scores["held_out"]["64"].items():
        if "accuracy" not in row:
            continue
        small = scores["held_out"]["32"][name]
        mark = "" if row["accuracy"] >= 0.95 else " (below 95 %)"
        lines.append(
            f"| {name} | {row['accuracy']:.1%}{mark} | {small['accuracy']:.1%} | {row['chance']:.0%} | "
            f"{row['above_0.8']:.0%} | {row['accuracy_where_above_0.8']:.1%} |"
        )
    lines += ["", "| pictures | abstains from everything | by the judge alone |", "|---|---|---|"]
    for name, row in scores["off_the_manifold"].items():
        lines.append(f"| {name} | {row['abstains']:.1%} | {row['by_the_judge']:.1%} |")
    lines += [
        "",
        "| factor that differs | its reading changes | readings that change most beside it |",
        "|---|---|---|",
    ]
    talk = np.array(scores["cross_talk"]["change"])
    read_names = scores["cross_talk"]["read"]
    for name, row in zip(scores["cross_talk"]["differs"], talk, strict=True):
        own = read_names.index(name) if name in read_names else None
        order = [i for i in np.argsort(-row) if i != own][:3]
        beside = ", ".join(f"{read_names[i]} {row[i]:.2f}" for i in order)
        lines.append(f"| {name} | {'not given' if own is None else f'{row[own]:.2f}'} | {beside} |")
    return "\n".join(lines)


def main() -> None:
    """Score the reader in its folder, and write what was found beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="the faces that it was trained on; the last 2,000 score it"
    )
    parser.add_argument("--seed", type=int, default=1_000_003, help="of the rendered pairs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, _, factors = train_reader.load_targets(args.data)
    last = slice(len(images) - train_reader.HELD_OUT // 2, len(images))
    some, truth = images[last], {name: values[last] for name, values in factors.items()}
    config_file = toonfaces.ASSET / "config.json"
    config = json.loads(config_file.read_text("utf-8"))
    names = [
        each
        for name in config["given"]
        for each in truths_of(name, tuple(config["classes"].get(name, ("absent", "present"))))
    ]
    config["calibration"]["error"] = dict.fromkeys(names, 0.0)  # so that the reader opens
    config_file.write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    rows = {str(size): held_out_scores(some, truth, size) for size in SIZES}
    config["calibration"]["error"] = standard_errors(some, truth, rows["64"])
    config_file.write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    differs, read_names, change = cross_talk(args.seed)
    talk = {"differs": differs, "read": read_names, "change": [[round(float(v), 4) for v in row] for row in change]}
    scores = {"held_out": rows, "off_the_manifold": off_the_manifold(some[:1000], images[:4000]), "cross_talk": talk}
    (toonfaces.ASSET / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", "utf-8")
    for page in (toonfaces.ASSET / "README.md", DOCS):
        head, _, rest = page.read_text("utf-8").partition(BEGIN)
        _, _, tail = rest.partition(END)
        page.write_text(f"{head}{BEGIN}\n\n{tables(scores)}\n\n{END}{tail}", "utf-8")


if __name__ == "__main__":
    main()
