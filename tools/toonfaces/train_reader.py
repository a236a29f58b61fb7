"""Train the toon-face reader: `python tools/toonfaces/train_reader.py --data toonfaces40k.npz --run reader/`.

The networks see rendered faces alone, degraded in ways that leave the factors readable (noise, blur, half the
resolution, slight warps) and in ways that do not (two faces blended, parts of another face, strong warps, blur and
noise): of the latter they learn only that they are none. The networks of the second look see windows of faces placed by
their true pose, off by as much as the first look errs. Run the same command again and it goes on where it stopped.
When all are trained, their errors on faces that none saw calibrate the confidence, and all is written to --out. The
reader opens once `train_judge.py` has put its judge beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from eigenlens.readers.toonfaces import (
    LOOKS,
    POSE,
    Answer,
    Heads,
    Look,
    LookNetwork,
    ReaderNetwork,
    ask,
    networks_of,
    to_reader_size,
)

BATCH = 128
HELD_OUT = 4000
"""Faces at the end of the data that no member sees: the first half calibrates, the second half is scored."""
RATE = 3e-3
FACE = 0.05
"""Probability of being a face below which the reader abstains from everything. Half of what a small generator makes
lies below 0.6 and is a face all the same; noise, strong blur and most strong warps lie below 0.05."""
HALF_LIFE = 500
"""Steps of the average of the weights."""
POSE_ERROR = (1.5, 0.016, 0.006, 0.005)
"""Standard errors of the pose by which windows are placed in training, about those of the first look, in the units of
`POSE`."""
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
    for column, guess in enumerate(logits.values()):
        wanted = torch.where(is_face, codes[:, column], -1)
        loss = F.cross_entropy(guess, wanted, ignore_index=-1, reduction="sum") / len(wanted)
        total = total + 0.3 * loss
    return total + 0.1 * F.binary_cross_entropy_with_logits(face, is_face.float())


Lesson = Callable[[nn.Module, np.ndarray, torch.Generator], Tensor]
"""Network, rows of the data and random numbers -> loss."""


def whole_lesson(heads: Heads, images: np.ndarray, numbers: Tensor, codes: Tensor) -> Lesson:
    """Teach the first look: everything, and what is no face."""

    def lesson(network: nn.Module, rows: np.ndarray, random: torch.Generator) -> Tensor:
        batch, is_face = make_batch(images, rows, random)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(batch)
        return loss_of(heads, outputs, is_face, numbers[rows], codes[rows])

    return lesson


def look_lesson(look: Look, heads: Heads, images: np.ndarray, factors: Mapping[str, np.ndarray]) -> Lesson:
    """Teach a second look: cross entropies of its factors where they show."""
    pose = torch.from_numpy(np.stack([factors[name] for name in POSE], 1)).float()
    codes = torch.from_numpy(np.stack([factors[name] for name in look.classes], 1)).long()
    sizes = [len(heads.classes[name]) for name in look.classes]

    def lesson(network: nn.Module, rows: np.ndarray, random: torch.Generator) -> Tensor:
        batch = degraded(as_seen_at(images[rows], 64), random).clamp(-1, 1)
        error = torch.tensor(POSE_ERROR) * torch.randn(len(rows), len(POSE), generator=random)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(look.window.view(batch, pose[rows] + error))
        each = outputs.float().split(sizes, dim=1)
        losses = [
            F.cross_entropy(guess, codes[rows, column], ignore_index=-1, reduction="sum") / len(rows)
            for column, guess in enumerate(each)
        ]
        return torch.stack(losses).sum()

    return lesson


def train(network: nn.Module, lesson: Lesson, n: int, epochs: float, *, seed: int, done: Path) -> Path:
    """Train a network on `n` faces, going on from its last state; return the file of its averaged weights, `done`."""
    state_file = done.with_suffix(".state.pt")
    if done.exists():
        return done
    network = network.to(memory_format=torch.channels_last)
    average = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.02, betas=(0.9, 0.99))
    first, steps = 0, int(epochs * n / BATCH)
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = state["average"], state["step"]
    began, spent = time.time(), time.process_time()
    for step in range(first, steps):
        random = torch.Generator().manual_seed(step * 1000 + seed)
        epoch, place = divmod(step * BATCH, n - n % BATCH)
        rows = np.random.default_rng([seed, epoch]).permutation(n)[place : place + BATCH]
        warm = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = RATE * warm * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-6
        loss = lesson(network, rows, random)
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
            figures = f"{done.stem} step {step + 1}/{steps} loss {loss.item():.4f}"
            sys.stderr.write(f"{figures}  {time.time() - began:.0f} s, {seconds:.0f} CPU s\n")
    save(average, done)
    return done


def train_all(args: argparse.Namespace, heads: Heads, images: np.ndarray, factors: Mapping[str, np.ndarray]) -> None:
    """Train what is missing of every member.

    The first network of the whole picture begins at random weights. Each further one begins at the first's, with the
    rate risen again: it leaves for another minimum at a fifth of the cost (Huang et al., Snapshot ensembles, ICLR
    2017). The networks of the second look are small, and one of each serves all members.
    """
    n = len(images) - HELD_OUT
    lesson = whole_lesson(heads, images, *pack_targets(heads, factors))
    for member in range(args.members):
        torch.manual_seed(1000 + member)
        network = ReaderNetwork(heads.n_outputs)
        if member > 0:
            network.load_state_dict(torch.load(args.run / "member0.pt", weights_only=True))
        epochs = args.snapshot_epochs if member else args.epochs
        train(network, lesson, n, epochs, seed=member, done=args.run / f"member{member}.pt")
    for place, (name, look) in enumerate(LOOKS.items(), 1):
        torch.manual_seed(1000 + 100 * place)
        network = LookNetwork(look, heads.classes)
        lesson = look_lesson(look, heads, images, factors)
        train(network, lesson, n, args.look_epochs, seed=100 * place, done=args.run / f"{name}.pt")


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write beside and rename."""
    beside = path.with_suffix(".part")
    torch.save(dict(state), beside)
    os.replace(beside, path)


# --- calibration ------------------------------------------------------------------------------------------------------


def as_seen_at(images: np.ndarray, resolution: int) -> Tensor:
    """Return images uint8 [n, 64, 64, 3] as tensors [n, 3, resolution, resolution] in [-1, 1], reduced by area."""
    full = torch.from_numpy(images).float().div_(127.5).sub_(1).permute(0, 3, 1, 2)
    return F.avg_pool2d(full, full.shape[-1] // resolution)


def joined(batches: Sequence[list[Answer]]) -> list[Answer]:
    """Join the answers to several batches into one of each member."""
    found = []
    for own in zip(*batches, strict=True):  # the answers of one member
        mean, spread, face = (torch.cat([each[i] for each in own]) for i in (0, 1, 3))
        found.append((mean, spread, {name: torch.cat([each[2][name] for each in own]) for name in own[0][2]}, face))
    return found


def calibrate(heads: Heads, parts: list[Answer], numbers: Tensor, codes: Tensor) -> dict[str, Any]:
    """Fit what makes the answers honest on faces that no member saw.

    Args:
        parts: the answers of each member to n faces.
        numbers, codes: the truth; see `pack_targets`.

    Returns:
        `variance`: for each number the mean of squared error over predicted variance. `temperature`: of each class
        factor, the one of 30 with the best likelihood. `face`: see `FACE`.
    """
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
    tensors: dict[str, Tensor] = {}
    for file in [*sorted(run.glob("member?.pt")), *(run / f"{name}.pt" for name in LOOKS)]:
        weights = {key: value for key, value in torch.load(file, weights_only=True).items() if "num_batches" not in key}
        tensors |= {f"{file.stem}.{key}": value.half().contiguous() for key, value in weights.items()}
    members, looks = networks_of(tensors, heads)
    with torch.inference_mode():
        found = [
            ask(members, looks, heads, to_reader_size(some))
            for resolution in (64, 32)
            for some in as_seen_at(images[half], resolution).split(250)
        ]
    fitted = calibrate(heads, joined(found), numbers[half].repeat(2, 1), codes[half].repeat(2, 1))
    table = meta["factors"]
    parents = {
        n: [row["applies_to"]["factor"], row["applies_to"]["categories"]]
        for n, row in table.items()
        if "applies_to" in row
    }
    parents |= {f"{SHOWN_END}_{axis}": parents["background2_L"] for axis in "Lab"}
    units = {name: table.get(name, {}).get("unit", "CIELAB") for name in heads.numbers}
    config = {
        "format": "eigenlens.toonfaces_reader/3",
        "members": len(members),
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
    parser.add_argument("--look-epochs", type=float, default=4, help="passes of the networks of the second look")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    images, heads, factors = load_targets(args.data)
    train_all(args, heads, images, factors)
    if args.out is not None:
        meta = json.loads(np.load(args.data, allow_pickle=False)["meta"].item())
        write_asset(args.run, args.out, (images, *pack_targets(heads, factors)), heads, meta)


if __name__ == "__main__":
    main()
