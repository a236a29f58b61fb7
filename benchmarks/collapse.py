"""Why subspaces collapse: what each part of the code does while an EigenGAN learns: `python -m benchmarks collapse`.

    python -m benchmarks collapse --data toon32.npz --recipes published,floor --seed 0
    python -m benchmarks collapse --table      # prints what is there

Trains recipes of `python -m benchmarks recipes`, stops at some lengths and looks at the generator, the one that learns:

- share: how much of the variance of images one part of the code makes (eps, z of a layer), found by drawing it anew
  alone (the total effect index of Sobol); shares may sum to more than 1;
- variance: of images over codes, the mean of all pixels;
- scale: the spread of what z adds at a layer over the spread of the features that it is added to, both over codes;
- pull: the norm of the gradient of the generator's loss by L of a layer, as a share of that of all layers.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._machine import machine
from benchmarks.recipes import BASE, RECIPES, chosen
from eigenlens import runtime
from eigenlens.files import write_json
from eigenlens.generators.eigengan import EigenGANNetwork, combine
from eigenlens.training.data import open_dataset
from eigenlens.training.eigengan import Training, configure

RESULTS = Path(__file__).parent / "results" / "collapse.json"
MARKS = (0.0, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0)
"""Lengths in kimg at which the generator is looked at."""


@torch.no_grad()
def looked_at(network: EigenGANNetwork, *, n: int = 256, seed: int = 0) -> dict[str, Any]:
    """Measure what each part of the code does to images, and the scale of what each layer adds."""
    rng = np.random.default_rng(seed)
    first, second = (torch.from_numpy(rng.standard_normal((n, network.config.dim), np.float32)) for _ in range(2))
    images = network(first)
    variance = float((images - network(second)).square().mean()) / 2
    sizes = [network.config.noise_dim, *network.config.bases]
    edges = np.cumsum([0, *sizes])
    shares = []
    for start, end in pairwise(edges):
        other = first.clone()
        other[:, start:end] = second[:, start:end]
        shares.append(float((images - network(other)).square().mean()) / 2 / variance)
    return {"variance": variance, "share": shares, "scale": scales(network, first)}


def scales(network: EigenGANNetwork, latent: Tensor) -> list[float]:
    """Return, for each layer, the spread over codes of what z adds, over that of the features before."""
    eps, *zs = network.split(latent)
    h, found = network.from_noise(eps), []
    for block, z in zip(network.blocks, zs, strict=True):
        added = combine(z, block.injections()[0]).permute(0, 3, 1, 2)
        found.append(float(spread(added) / spread(h)))
        h = block(h, z)
    return found


def spread(features: Tensor) -> Tensor:
    """Return the standard deviation over the batch, root mean square over all entries."""
    return features.var(0).mean().sqrt()


def course(recipe: str, data: Path, *, seed: int, marks: tuple[float, ...] = MARKS) -> list[dict[str, Any]]:
    """Train to the last mark; return what was seen at each."""
    config = configure("cpu-64", **(BASE | RECIPES[recipe]), kimg=marks[-1], seed=seed)
    device = torch.device("cpu")
    training = Training(config, device=device, precision=runtime.resolve_precision("auto", device))
    model, cache = config.model, Path("runs/data")
    images = open_dataset(data, resolution=model.resolution, channels=model.channels, cache=cache)
    seen: list[dict[str, Any]] = []
    pulls: list[list[float]] = []
    for mark in marks:
        while training.kimg < mark:
            training.take_step(training.reals(images), training.latents())
            slopes = [each.importance.grad for each in training.generator.subspaces()]
            pulls.append([float(each.norm()) if each is not None else 0.0 for each in slopes])
        seen.append({"kimg": training.kimg, **looked_at(training.generator)})
        if pulls:
            mean = np.mean(pulls, axis=0)
            seen[-1]["pull"] = (mean / mean.sum()).tolist()
        pulls = []
    return seen


def table(courses: dict[str, list[dict[str, Any]]]) -> str:
    """Return the courses as Markdown."""
    lines = []
    for recipe, seen in courses.items():
        layers = len(seen[0]["scale"])
        head = ["kimg", "variance", "share of eps", *(f"of layer {i + 1}" for i in range(layers))]
        head += [f"scale, layer {i + 1}" for i in range(layers)] + [f"pull, layer {i + 1}" for i in range(layers)]
        lines += [f"{recipe}:", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for each in seen:
            pull = [f"{value:.2f}" for value in each["pull"]] if "pull" in each else ["-"] * layers
            figures = [f"{each['kimg']:.3g}", f"{each['variance']:.3f}", *(f"{value:.3f}" for value in each["share"])]
            lines.append("| " + " | ".join([*figures, *(f"{value:.2f}" for value in each["scale"]), *pull]) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Train, look, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="toon faces of 32 px; without it the results file is printed")
    parser.add_argument("--recipes", default="published,floor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--marks", type=float, nargs="+", default=list(MARKS), help="kimg")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the results file alone")
    args = parser.parse_args()
    runtime.set_threads(args.threads)
    if args.table or args.data is None:
        print(table(json.loads(args.out.read_text("utf-8"))["courses"]))
        return
    names, marks = chosen(parser, args.recipes), tuple(args.marks)
    courses = {name: course(name, args.data, seed=args.seed, marks=marks) for name in names}
    write_json(args.out, {"machine": machine(), "seed": args.seed, "courses": courses}, force=True)
    print(table(courses))


if __name__ == "__main__":
    main()
