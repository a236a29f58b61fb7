"""How far the inversion of an EigenGAN goes: the bundled generator on toon faces that it never saw.

    npm ci --prefix tools/toonfaces && python -m benchmarks.projection       # 200 faces of seed 1
    python -m benchmarks.projection --parts edits --reader pixels            # one part anew; the others stay
    python -m benchmarks.projection --n 20 --out few.json                    # fewer, as a check

Rows: the mean image; the nearest of 10,000 samples; the encoder alone; eps and all z, from the best of 512 samples and
from the encoder; then all of φ too, the features that an EigenGAN's subspaces give, without any prior: what the layers
above could show at best, far off any subspace and so past editing; and pivotal tuning of each face by itself. Then
edits: for each attribute of a reader the axis that changes it most surely on samples, and what it does to projected
faces.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
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
SURE = 0.9  # share of samples that an axis changes the same way, for the change to be the axis's
PARTS = ("baselines", "codes", "phi", "tuning", "edits")


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


def tuned_one_by_one(generator: Generator, found: Projection, n: int) -> Tensor:
    """Tune the generator for each of the first `n` faces by itself; return their images."""
    shown = []
    for row in range(n):
        one = Projection(
            found.codes[row], found.goals[row : row + 1], found.images[row : row + 1], {}, ((),), found.steps
        )
        shown.append(tune(generator, one, steps=TUNE_STEPS)[1].images)
    return torch.cat(shown)


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


def edits(generator: Generator, reader: str, codes: Codes) -> dict[str, Any]:
    """Return what axes do to attributes of a reader, on samples and on projected faces.

    For each attribute the axis that changes it most surely is taken; change is that of the score from -1 σ to +1 σ
    about a code. Attributes that no axis changes the same way in nine samples of ten are counted, not shown.
    """
    read, axes = READERS[reader](), METHODS["eigen"](measured=False).fit(generator)
    names = [getattr(each, "name", each) for each in read.attributes]

    def change(which: int, codes: Codes) -> Tensor:
        low, high = (read(generator.render(axes.move(codes, which, by=by * SHIFT / 2))) for by in (-1.0, 1.0))
        return high - low  # [batch, attributes]

    samples = generator.sample(64, seed=0)
    on_samples = torch.stack([change(k, samples) for k in range(len(axes))])  # [k, 64, attributes]
    clarity = on_samples.mean(1) / on_samples.std(1).clamp(min=1e-6)  # how surely the axis changes the attribute
    rows = []
    for a, name in enumerate(names):
        k = int(clarity[:, a].abs().nan_to_num().argmax())
        mean = float(on_samples[k, :, a].nanmean())
        on_faces = change(k, codes)[:, a]
        row = {"attribute": name, "axis": axes.names[k]}
        row |= {"samples": round(mean, 4), "projected": round(float(on_faces.nanmean()), 4)}
        row |= {"same_sign_samples": _share(on_samples[k, :, a], mean), "same_sign_projected": _share(on_faces, mean)}
        rows.append(row)
    sure = [row for row in rows if row["same_sign_samples"] >= SURE]
    return {
        "reader": reader, "n": len(codes), "shift_sigma": SHIFT, "attributes": len(rows), "sure": len(sure),
        "least_same_sign_projected": min((row["same_sign_projected"] for row in sure), default=None), "axes": sure,
    }  # fmt: skip


def _share(changes: Tensor, mean: float) -> float:
    known = changes[changes.isfinite()]
    return round(float((known.sign() == np.sign(mean)).float().mean()), 3) if len(known) else float("nan")


class Report:
    """The results so far, in their file: a part that is measured anew replaces its own rows alone."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        before = json.loads(path.read_text("utf-8")) if path.exists() else {}
        fits = all(before.get(key) == about[key] for key in ("generator", "encoder", "version"))
        self.content: dict[str, Any] = {**(before if fits else {"rows": []}), **about}

    def add(self, name: str, made: Tensor, goals: Tensor, seconds: float, **more: Any) -> None:
        """Add the row of some reconstructions, and write the file."""
        row = {"row": name, **likeness(made, goals), "cpu_seconds_each": round(seconds / len(goals), 4), **more}
        rows = [each for each in self.content["rows"] if each["row"] != name]
        self.content["rows"] = sorted([*rows, row], key=lambda each: ROWS.index(each["row"]))
        self.write()
        figures = "  ".join(f"{key} {row[key]['mean']:.3f}" for key in ("psnr", "ssim", "lpips_vgg"))
        sys.stderr.write(f"{name:<44} n {row['n']:<4} {figures}  {row['cpu_seconds_each']} CPU s\n")

    def write(self) -> None:
        """Write all, whole or not at all: what is measured stays, whatever comes after."""
        write_json(self.path, self.content, force=True)


ROWS = (
    MEAN := "mean image",
    NEAREST := f"nearest of {SAMPLES:,} samples",
    ENCODER := "encoder alone",
    FROM_ENCODER := "eps and z from the encoder",
    FROM_SAMPLES := "eps and z from the best of 512 samples",
    NO_PRIOR := "eps and z from the encoder, no prior",
    PHI := "then all of phi",
    TUNED := "eps and z, then weights tuned",
)
"""Rows, in their order."""


def main() -> None:
    """Measure the parts, and write each row as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="faces")
    parser.add_argument("--tuned", type=int, default=20, help="faces that are tuned")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--reader", default="toonfaces", help="what edits are read with")
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
    machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {args.threads} thread(s)"
    about = {"generator": generator.identity(), "encoder": encoder.about, "version": __version__, "machine": machine}
    report = Report(args.out, about)

    def add_projection(name: str, goals: Tensor, **how: Any) -> Projection:
        begun = time.process_time()
        found = project(generator, goals, **how)
        sigma = round(float(found.figures["sigma"].mean()), 3)
        warned = sum(map(bool, found.notes))
        report.add(name, found.images, goals, time.process_time() - begun, sigma=sigma, warned=warned)
        return found

    if "baselines" in args.parts:
        begun = time.process_time()
        mean, nearest = nearest_of(generator, goals, SAMPLES)
        report.add(MEAN, mean.expand_as(goals), goals, 0.0)
        report.add(NEAREST, nearest, goals, time.process_time() - begun)
        add_projection(ENCODER, goals, start=encoder, steps=0)
    how = {"start": encoder, "steps": STEPS}
    found = add_projection(FROM_ENCODER, goals, **how) if "codes" in args.parts else project(generator, goals, **how)
    if "edits" in args.parts:
        report.content["edits"] = edits(generator, args.reader, found.codes)
        report.write()
    if "phi" in args.parts:
        begun = time.process_time()
        pieces = [
            with_free_features(generator.network, found.codes.latent[a:b, 0], goals[a:b], PHI_STEPS)  # type: ignore[arg-type]
            for a, b in runtime.batches(len(goals), 32)
        ]
        report.add(PHI, torch.cat(pieces), goals, time.process_time() - begun)
    if "codes" in args.parts:
        add_projection(FROM_SAMPLES, goals, start="samples", n_samples=512, steps=STEPS)
        add_projection(NO_PRIOR, goals, prior=0.0, **how)
    if "tuning" in args.parts:
        begun, n = time.process_time(), min(args.tuned, len(goals))
        shown = tuned_one_by_one(generator, found, n)
        report.add(TUNED, shown, goals[:n], time.process_time() - begun)


if __name__ == "__main__":
    main()
