"""Train the toon-face reader: `python tools/toonfaces/train_reader.py --data toonfaces40k.npz --run reader/`.

The networks see rendered faces alone, degraded in ways that leave the factors readable (noise, blur, half the
resolution, slight warps) and in ways that do not (two faces blended, parts of another face, strong warps, blur and
noise): of the latter they learn only that they are none. Run the same command again and it goes on where it stopped.
When the members are trained, their errors on faces that none saw calibrate the confidence, and all is written to --out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from eigenlens.readers.toonfaces import Heads, ReaderNetwork, to_reader_size

BATCH = 128
HELD_OUT = 4000
"""Faces at the end of the data that no member sees: the first half calibrates, the second half is scored."""
RATE = 3e-3
FACE = 0.05
"""Probability of being a face below which the reader abstains from everything. Half of what a small generator makes
lies below 0.6 and is a face all the same; noise, strong blur and most strong warps lie below 0.05."""
HALF_LIFE = 500
"""Steps of the average of the weights."""
WEIGHTS = {"mouth": 4.0, "eyebrows": 2.0, "eyes": 1.5}
"""Weights of the smallest parts in the loss: a mouth is six pixels that differ by a tenth of the range."""
SHOWN_END = "background_end"
"""The colour that a background ends in: background2 and its strength show only as this mixture."""
NOT_GIVEN = (
    "background2_L", "background2_a", "background2_b", "background_strength",
    "background_end_L", "background_end_a", "background_end_b",
)  # fmt: skip
"""Factors that no picture tells (only the mixture of the second colour by its strength shows), and that mixture, which
moves whenever the first colour does. They are learned, so that their score can be stated, and not given."""


def load_targets(path: Path) -> tuple[np.ndarray, Heads, dict[str, np.ndarray]]:
    """Read a rendered data set: images uint8 [n, 64, 64, 3], heads, and factors [n] with the colours that show."""
    data = np.load(path, allow_pickle=False)
    table = json.loads(data["meta"].item())["factors"]
    factors = {name: data[f"factor/{name}"] for name in table}
    ranges = {name: (row["low"], row["high"]) for name, row in table.items() if row["type"] == "number"}
    for axis in "Lab":
        first, second = factors[f"background_{axis}"], factors[f"background2_{axis}"]
        factors[f"{SHOWN_END}_{axis}"] = first + factors["background_strength"] * (second - first)
        ranges[f"{SHOWN_END}_{axis}"] = ranges[f"background_{axis}"]
    numbers = tuple(ranges)
    classes = {name: tuple(row["categories"]) for name, row in table.items() if row["type"] == "category"}
    heads = Heads(numbers, tuple(r[0] for r in ranges.values()), tuple(r[1] for r in ranges.values()), classes)
    return data["images"], heads, factors


def pack_targets(heads: Heads, factors: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return numbers [n, numbers] with ranges scaled to [-1, 1], NaN where absent, and classes [n, factors], or -1."""
    low, high = np.array(heads.low), np.array(heads.high)
    numbers = np.stack([factors[name] for name in heads.numbers], 1)
    scaled = 2 * (numbers - low) / (high - low) - 1
    codes = np.stack([factors[name] for name in heads.classes], 1)
    return torch.from_numpy(scaled.astype(np.float32)), torch.from_numpy(codes.astype(np.int64))


# --- what the networks see --------------------------------------------------------------------------------------------


def warped(images: Tensor, amplitude: Tensor, random: torch.Generator) -> Tensor:
    """Move pixels by a smooth random field of about `amplitude` pixels, [batch]."""
    n, _, size, _ = images.shape
    coarse = torch.randn(n, 2, 5, 5, generator=random)
    field = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
    field = field * (2 * amplitude / size)[:, None, None, None]
    line = (torch.arange(size) + 0.5) * 2 / size - 1
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
    return F.grid_sample(images, grid + field.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


def blurred(images: Tensor, times: int) -> Tensor:
    """Blur with the binomial filter [1, 2, 1] / 4 both ways, `times` times."""
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = torch.outer(kernel, kernel).expand(3, 1, 3, 3)
    for _ in range(times):
        images = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    return images


def degraded(images: Tensor, random: torch.Generator) -> Tensor:
    """Degrade images in ways that leave the factors readable."""
    n = len(images)
    images = images.clone()
    cut = torch.randperm(n, generator=random)
    half, soft, bent = cut[: n // 3], cut[n // 3 : n // 2], cut[n // 2 : 2 * n // 3]
    small = F.avg_pool2d(images[half], 2)
    images[half] = F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
    images[soft] = blurred(images[soft], 1)
    images[bent] = warped(images[bent], 0.6 * torch.rand(len(bent), generator=random), random)
    strength = 0.06 * torch.rand(n, generator=random) * (torch.rand(n, generator=random) < 0.4)
    return images + strength[:, None, None, None] * torch.randn(images.shape, generator=random)


def spoilt(images: Tensor, random: torch.Generator) -> Tensor:
    """Spoil images in ways after which their factors cannot be said: none of the results is a toon face."""
    n, _, size, _ = images.shape
    images, kind = images.clone(), torch.arange(n) % 5
    other = images[torch.randperm(n, generator=random)]
    place = lambda rows: torch.randint(0, size - 16, (len(rows), 2), generator=random)  # noqa: E731
    for row, (top, left) in zip((kind == 0).nonzero()[:, 0], place((kind == 0).nonzero()), strict=True):
        side = int(torch.randint(16, 44, (1,), generator=random))
        images[row, :, top : top + side, left : left + side] = other[row, :, top : top + side, left : left + side]
    images[kind == 1] = warped(
        images[kind == 1], 3.0 + 5 * torch.rand(int((kind == 1).sum()), generator=random), random
    )
    images[kind == 2] = blurred(images[kind == 2], 24)
    noise = torch.randn(images[kind == 3].shape, generator=random)
    images[kind == 3] = images[kind == 3] * 0.5 + 0.7 * noise
    share = (0.3 + 0.4 * torch.rand(int((kind == 4).sum()), generator=random))[:, None, None, None]
    images[kind == 4] = share * images[kind == 4] + (1 - share) * other[kind == 4]
    return images


def make_batch(images: np.ndarray, rows: np.ndarray, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return degraded images [batch, 3, 64, 64] and whether each is a face; the last fifth is spoilt."""
    batch = torch.from_numpy(images[rows]).float().div_(127.5).sub_(1).permute(0, 3, 1, 2)
    whole = len(batch) - len(batch) // 5
    is_face = torch.arange(len(batch)) < whole
    batch = torch.cat([degraded(batch[:whole], random), spoilt(batch[whole:], random)])
    return batch.clamp(-1, 1).contiguous(memory_format=torch.channels_last), is_face


# --- training ---------------------------------------------------------------------------------------------------------


def loss_of(heads: Heads, outputs: Tensor, is_face: Tensor, numbers: Tensor, codes: Tensor) -> Tensor:
    """Huber loss of numbers, likelihood of their errors, cross entropy of classes and of `face`."""
    mean, spread, logits, face = heads.split(outputs.float())
    shown = numbers.isfinite() & is_face[:, None]
    errors = (mean - numbers.nan_to_num())[shown]
    likelihood = 0.5 * (spread[shown] + errors.detach().square() * (-spread[shown]).exp())
    total = 4 * F.smooth_l1_loss(errors, torch.zeros_like(errors), beta=0.2) + 0.1 * likelihood.mean()
    total = total * 2
    for column, (name, guess) in enumerate(logits.items()):
        wanted = torch.where(is_face, codes[:, column], -1)
        loss = F.cross_entropy(guess, wanted, ignore_index=-1, reduction="sum") / len(wanted)
        total = total + 0.3 * WEIGHTS.get(name, 1.0) * loss
    return total + 0.1 * F.binary_cross_entropy_with_logits(face, is_face.float())


def train_member(member: int, data: tuple[np.ndarray, Tensor, Tensor], heads: Heads, steps: int, run: Path) -> Path:
    """Train one member, going on from its last state; return the file of its averaged weights.

    The first member begins at random weights. Each further one begins at the first's, with the rate risen again: it
    leaves for another minimum at a fifth of the cost (Huang et al., Snapshot ensembles, ICLR 2017).
    """
    images, numbers, codes = data
    done, state_file = run / f"member{member}.pt", run / f"member{member}.state.pt"
    if done.exists():
        return done
    torch.manual_seed(1000 + member)
    network = ReaderNetwork(heads.n_outputs).to(memory_format=torch.channels_last)
    if member > 0:
        network.load_state_dict(torch.load(run / "member0.pt", weights_only=True))
    average = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.02, betas=(0.9, 0.99))
    first = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = state["average"], state["step"]
    n = len(images) - HELD_OUT
    began, spent = time.time(), time.process_time()
    for step in range(first, steps):
        random = torch.Generator().manual_seed(step * 10 + member)
        epoch, place = divmod(step * BATCH, n - n % BATCH)
        order = np.random.default_rng([member, epoch]).permutation(n)
        rows = order[place : place + BATCH]
        batch, is_face = make_batch(images, rows, random)
        warm = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = RATE * warm * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-6
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(batch)
        loss = loss_of(heads, outputs, is_face, numbers[rows], codes[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        keep = min(0.5 ** (1 / HALF_LIFE), (step + 1) / (step + 10))
        with torch.no_grad():
            for key, value in network.state_dict().items():
                if value.is_floating_point():
                    average[key].lerp_(value, 1 - keep)
                else:
                    average[key] = value.clone()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            save(state | {"step": step + 1}, state_file)
            seconds = time.process_time() - spent
            figures = f"member {member} step {step + 1}/{steps} loss {loss.item():.4f}"
            sys.stderr.write(f"{figures}  {time.time() - began:.0f} s, {seconds:.0f} CPU s\n")
    save(average, done)
    return done


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write beside and rename."""
    beside = path.with_suffix(".part")
    torch.save(dict(state), beside)
    os.replace(beside, path)


# --- calibration ------------------------------------------------------------------------------------------------------


def answers_of(network: ReaderNetwork, images: Tensor) -> Tensor:
    """Return outputs [n, n_outputs] of one member."""
    with torch.inference_mode():
        return torch.cat([network(some).float() for some in images.split(250)])


def as_seen_at(images: np.ndarray, resolution: int) -> Tensor:
    """Return images uint8 [n, 64, 64, 3] as tensors [n, 3, resolution, resolution] in [-1, 1], reduced by area."""
    full = torch.from_numpy(images).float().div_(127.5).sub_(1).permute(0, 3, 1, 2)
    return F.avg_pool2d(full, full.shape[-1] // resolution)


def calibrate(heads: Heads, outputs: list[Tensor], numbers: Tensor, codes: Tensor) -> dict[str, Any]:
    """Fit what makes the answers honest on faces that no member saw.

    Args:
        outputs: of each member, [n, n_outputs].
        numbers, codes: the truth; see `pack_targets`.

    Returns:
        `variance`: for each number the mean of squared error over predicted variance. `temperature`: of each class
        factor, the one of 30 with the best likelihood. `face`: see `FACE`.
    """
    parts = [heads.split(each) for each in outputs]
    means = torch.stack([part[0] for part in parts])
    predicted = torch.stack([part[1] for part in parts]).exp().mean(0) + means.var(0, unbiased=False)
    ratio = (means.mean(0) - numbers).square() / predicted
    variance = [ratio[:, i][ratio[:, i].isfinite()].mean().item() for i in range(ratio.shape[1])]
    temperature = {}
    for column, name in enumerate(heads.classes):
        shown = codes[:, column] >= 0
        logits = torch.stack([part[2][name][shown] for part in parts])
        losses = {}
        for candidate in np.geomspace(0.5, 4.0, 30):
            chance = (logits / candidate).softmax(2).mean(0).clamp(min=1e-9)
            losses[float(candidate)] = F.nll_loss(chance.log(), codes[shown, column]).item()
        temperature[name] = min(losses, key=losses.__getitem__)
    return {"variance": variance, "temperature": temperature, "face": FACE}


def write_asset(run: Path, out: Path, data: tuple[np.ndarray, Tensor, Tensor], heads: Heads, meta: Mapping) -> None:
    """Calibrate the members in `run`, and write `config.json` and `model.safetensors` in half precision."""
    images, numbers, codes = data
    half = slice(len(images) - HELD_OUT, len(images) - HELD_OUT // 2)
    tensors, outputs = {}, {64: [], 32: []}
    for number, file in enumerate(sorted(run.glob("member?.pt"))):
        weights = {key: value for key, value in torch.load(file, weights_only=True).items() if "num_batches" not in key}
        tensors |= {f"member{number}.{key}": value.half().contiguous() for key, value in weights.items()}
        network = ReaderNetwork(heads.n_outputs).eval()
        network.load_state_dict({key: value.half().float() for key, value in weights.items()}, strict=False)
        for resolution, found in outputs.items():
            found.append(answers_of(network, to_reader_size(as_seen_at(images[half], resolution))))
    both = [torch.cat([outputs[64][i], outputs[32][i]]) for i in range(len(outputs[64]))]
    fitted = calibrate(heads, both, numbers[half].repeat(2, 1), codes[half].repeat(2, 1))
    table = meta["factors"]
    parents = {
        n: [row["applies_to"]["factor"], row["applies_to"]["categories"]]
        for n, row in table.items()
        if "applies_to" in row
    }
    parents |= {f"{SHOWN_END}_{axis}": parents["background2_L"] for axis in "Lab"}
    units = {name: table.get(name, {}).get("unit", "CIELAB") for name in heads.numbers}
    config = {
        "format": "eigenlens.toonfaces_reader/1",
        "members": len(outputs[64]),
        "numbers": {
            name: {"low": low, "high": high, "unit": units[name]}
            for name, low, high in zip(heads.numbers, heads.low, heads.high, strict=True)
        },
        "classes": {name: list(categories) for name, categories in heads.classes.items()},
        "parents": parents,
        "given": [name for name in (*heads.numbers, *heads.classes) if name not in NOT_GIVEN],
        "calibration": fitted | {"error": {}},
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Train the members that are missing, and write the reader."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="faces of render.py, 64 px")
    parser.add_argument("--run", type=Path, required=True, help="folder of the training's state")
    parser.add_argument("--out", type=Path, help="folder to write the reader into, once all members are trained")
    parser.add_argument("--members", type=int, default=2, help="networks of the ensemble")
    parser.add_argument("--epochs", type=float, default=13, help="passes over the data of the first member")
    parser.add_argument("--snapshot-epochs", type=float, default=2.5, help="passes of each further member")
    parser.add_argument("--only", type=int, help="train this member alone, beside other processes that train others")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    images, heads, factors = load_targets(args.data)
    numbers, codes = pack_targets(heads, factors)
    for member in range(args.members) if args.only is None else [args.only]:
        epochs = args.snapshot_epochs if member else args.epochs
        steps = int(epochs * (len(images) - HELD_OUT) / BATCH)
        train_member(member, (images, numbers, codes), heads, steps, args.run)
    if args.out is not None and args.only is None:
        meta = json.loads(np.load(args.data, allow_pickle=False)["meta"].item())
        write_asset(args.run, args.out, (images, numbers, codes), heads, meta)


if __name__ == "__main__":
    main()
