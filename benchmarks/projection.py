"""How far the inversion of an EigenGAN goes: the bundled generator on toon faces that it never saw.

    npm ci --prefix tools/toonfaces && python -m benchmarks.projection       # 200 faces of seed 1
    python -m benchmarks.projection --n 20 --out few.json                    # fewer, as a check

Rows: the mean image; the nearest of 10,000 samples; the encoder alone; eps and all z, from the best of 512 samples and
from the encoder; then all of φ too, the features that an EigenGAN's subspaces give, without any prior: what the layers
above could show at best, far off any subspace and so past editing; and pivotal tuning of each face by itself. Then
edits: for each attribute of a reader the axis that changes it most surely on samples, and what it does to projected
faces.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eigenlens import METHODS, __version__, images, load_generator, runtime
from eigenlens.codes import Codes
from eigenlens.distance import pixel_distance, psnr, ssim
from eigenlens.encoder import Encoder, find_encoder
from eigenlens.files import write_json
from eigenlens.generator import Generator
from eigenlens.generators.eigengan import EigenGANNetwork
from eigenlens.project import Projection, distance_to, project, tune
from eigenlens.reader import READERS

RESULTS = Path(__file__).parent / "results" / "projection.json"
SAMPLES = 10_000
STEPS, PHI_STEPS, TUNE_STEPS = 60, 60, 60
SHIFT = 2.0  # σ of an edit


def rendered(n: int) -> Tensor:
    """Draw the first `n` toon faces of seed 1; the generator learnt those of seed 0: [n, 3, 64, 64]."""
    tool = Path(__file__).parent.parent / "tools" / "toonfaces" / "render.py"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "faces.npz"
        subprocess.run([sys.executable, str(tool), "--n", str(n), "--seed", "1", "--out", str(out)], check=True)
        return images.from_uint8(np.load(out)["images"])


def nearest_of(generator: Generator, goals: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the mean image of `n` samples, and for each goal the sample of the least mean squared error."""
    best = torch.full((len(goals),), torch.inf)
    chosen, total = torch.zeros_like(goals), torch.zeros_like(goals[:1])
    for a, b in runtime.batches(n, 1000):
        made = generator.render(generator.sample(b - a, seed=0, start=a))
        total += made.sum(0, keepdim=True)
        flat, wanted = made.flatten(1), goals.flatten(1)
        apart = wanted.square().sum(1, keepdim=True) - 2 * wanted @ flat.T + flat.square().sum(1)
        value, place = apart.min(1)
        closer = value < best
        best[closer], chosen[closer] = value[closer], made[place[closer]]
    return total / n, chosen


def with_free_features(network: EigenGANNetwork, start: Tensor, goals: Tensor, steps: int) -> Tensor:
    """Optimise eps and every φ as free features, from those of codes [batch, dim]; return the best images."""
    eps, *zs = network.split(start)
    with torch.no_grad():
        phis = [block.subspace(z).permute(0, 3, 1, 2) for block, z in zip(network.blocks, zs, strict=True)]
    free = [eps.clone().requires_grad_(), *(phi.clone().requires_grad_() for phi in phis)]
    groups = [{"params": [each], "lr": 0.05 * float(each.detach().std())} for each in free]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
    best, best_images = torch.full((len(goals),), torch.inf), torch.zeros_like(goals)
    for _ in range(steps):
        h = network.from_noise(free[0])
        for block, phi in zip(network.blocks, free[1:], strict=True):
            h = block.conv1(F.leaky_relu(h + block.inject1(phi), 0.2))
            h = block.conv2(F.leaky_relu(h + block.inject2(phi), 0.2))
        made = network.to_image(h)
        loss = pixel_distance(made, goals)
        closer = loss.detach() < best
        best[closer], best_images[closer] = loss.detach()[closer], made.detach()[closer]
        optimiser.zero_grad(set_to_none=True)
        loss.sum().backward()
        optimiser.step()
    return best_images


def tuned_one_by_one(generator: Generator, found: Projection, n: int) -> tuple[Tensor, list[Generator]]:
    """Tune the generator for each of the first `n` faces by itself; return their images and the generators."""
    shown, tuned = [], []
    for row in range(n):
        one = Projection(
            found.codes[row], found.goals[row : row + 1], found.images[row : row + 1], {}, ((),), found.steps
        )
        tuning, after = tune(generator, one, steps=TUNE_STEPS)
        shown.append(after.images)
        tuned.append(generator.moved_by(tuning.deltas()))
    return torch.cat(shown), tuned


def likeness(made: Tensor, goals: Tensor) -> dict[str, Any]:
    """Return mean and standard deviation over faces of PSNR, SSIM and LPIPS."""
    lpips = torch.cat(
        [distance_to(goals[a:b], ["lpips_vgg"])(made[a:b]).detach() for a, b in runtime.batches(len(goals), 20)]
    )
    columns = {"psnr": psnr(made, goals), "ssim": ssim(made, goals), "lpips_vgg": lpips}
    return {"n": len(goals)} | {
        name: {"mean": round(float(each.mean()), 4), "sd": round(float(each.std()), 4)}
        for name, each in columns.items()
    }


def edits(generator: Generator, reader: str, codes: Codes, tuned: list[Generator]) -> list[dict[str, Any]]:
    """Return for each attribute of a reader the axis that changes it most, and what it does to projected faces.

    Change is that of the score from -1 σ to +1 σ about a code, along the axis.
    """
    read, axes = READERS[reader](), METHODS["eigen"](measured=False).fit(generator)
    names = [getattr(each, "name", each) for each in read.attributes]

    def change(which: int, codes: Codes, show: Callable[[Codes], Tensor]) -> Tensor:
        ends = [show(axes.move(codes, which, by=by * SHIFT / 2)) for by in (-1.0, 1.0)]
        return read(ends[1]) - read(ends[0])  # [batch, attributes]

    samples = generator.sample(64, seed=0)
    on_samples = torch.stack([change(k, samples, generator.render) for k in range(len(axes))])  # [k, 64, attributes]
    clarity = on_samples.mean(1) / on_samples.std(1).clamp(min=1e-6)  # how surely the axis changes the attribute
    rows = []
    for a, name in enumerate(names):
        k = int(clarity[:, a].abs().nan_to_num().argmax())
        mean = float(on_samples[k, :, a].nanmean())
        on_faces = change(k, codes, generator.render)[:, a]
        row = {
            "attribute": name, "axis": axes.names[k], "samples": round(mean, 4),
            "projected": round(float(on_faces.nanmean()), 4), "same_sign_samples": _share(on_samples[k, :, a], mean),
            "same_sign_projected": _share(on_faces, mean),
        }  # fmt: skip
        if tuned:
            on_tuned = torch.cat([change(k, codes[i], each.render)[:, a] for i, each in enumerate(tuned)])
            row |= {"tuned": round(float(on_tuned.nanmean()), 4), "same_sign_tuned": _share(on_tuned, mean)}
        rows.append(row)
    return rows


def _share(changes: Tensor, mean: float) -> float:
    known = changes[changes.isfinite()]
    return round(float((known.sign() == np.sign(mean)).float().mean()), 3) if len(known) else float("nan")


def main() -> None:
    """Measure all rows, and write each as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="faces")
    parser.add_argument("--tuned", type=int, default=20, help="faces that are tuned")
    parser.add_argument("--reader", default="pixels", help="what edits are read with")
    parser.add_argument("--encoder", type=Path, help="another encoder than the bundled one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = load_generator("toonfaces", device="cpu")
    place = args.encoder or find_encoder(generator)
    if place is None:
        raise SystemExit("toonfaces has no encoder here; give one with --encoder")
    encoder = Encoder.load(place, generator)
    goals = rendered(args.n)
    report: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.projection", *sys.argv[1:]]),
        "generator": generator.identity(),
        "encoder": encoder.about,
        "faces": {"n": args.n, "seed": 1},
        "rows": [],
        "version": __version__,
        "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {args.threads} thread(s)",
    }

    def add(name: str, made: Tensor, seconds: float, *, wanted: Tensor = goals, sigma: Tensor | None = None) -> None:
        row = {"row": name, **likeness(made, wanted), "cpu_seconds_each": round(seconds / len(wanted), 4)}
        row |= {"sigma": round(float(sigma.mean()), 3)} if sigma is not None else {}
        report["rows"].append(row)
        write_json(args.out, report, force=True)  # what is measured stays, whatever comes after
        figures = "  ".join(f"{key} {row[key]['mean']:.3f}" for key in ("psnr", "ssim", "lpips_vgg"))
        sys.stderr.write(f"{name:<44} n {row['n']:<4} {figures}  {row['cpu_seconds_each']} CPU s\n")

    def add_projection(name: str, **how: Any) -> Projection:
        begun = time.process_time()
        found = project(generator, goals, **how)
        add(name, found.images, time.process_time() - begun, sigma=found.figures["sigma"])
        return found

    begun = time.process_time()
    mean, nearest = nearest_of(generator, goals, SAMPLES)
    add("mean image", mean.expand_as(goals), 0.0)
    add(f"nearest of {SAMPLES:,} samples", nearest, time.process_time() - begun)
    add_projection("encoder alone", start=encoder, steps=0)
    found = add_projection("eps and z from the encoder", start=encoder, steps=STEPS)
    report["faces"]["noted"] = sum(map(bool, found.notes))
    report["edits"] = {"reader": args.reader, "shift": SHIFT, "axes": edits(generator, args.reader, found.codes, [])}
    begun = time.process_time()
    pieces = [
        with_free_features(generator.network, found.codes.latent[a:b, 0], goals[a:b], PHI_STEPS)  # type: ignore[arg-type]
        for a, b in runtime.batches(len(goals), 32)
    ]
    add("then all of phi", torch.cat(pieces), time.process_time() - begun)
    add_projection("eps and z from the best of 512 samples", start="samples", n_samples=512, steps=STEPS)
    begun, n_tuned = time.process_time(), min(args.tuned, len(goals))
    shown, tuned = tuned_one_by_one(generator, found, n_tuned)
    report["edits"]["axes"] = edits(generator, args.reader, found.codes, tuned)
    add("eps and z, then weights tuned", shown, time.process_time() - begun, wanted=goals[:n_tuned])
    add_projection("eps and z from the encoder, no prior", start=encoder, steps=STEPS, prior=0.0)


if __name__ == "__main__":
    main()
