"""Teach an EigenGAN to mend its faces: `python tools/toonfaces/relearn.py toonfaces --pairs pairs.npz --run new/`.

`redraw.py` made the pairs, a code and the clean face that belongs to it. The generator learns to draw the one for the
other, but only in faces and below them and only where both differ clearly; everywhere else it keeps to what it drew
before. So a beard that is half there goes, and what was sharp stays sharp: to learn all of the clean face would blur
whatever the code does not settle. Codes and axes keep what they mean. Run the same command again and it goes on where
it stopped; when done, `new/last` is the averaged generator, as `eigenlens train` leaves it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eigenlens.files import written_beside
from eigenlens.generator import load_generator
from eigenlens.generators.eigengan import EigenGAN
from eigenlens.images import from_uint8
from eigenlens.readers.toonfaces import MIDDLE
from eigenlens.runtime import keep_freed_memory, set_threads
from eigenlens.training.data import batch_indices
from eigenlens.training.eigengan import orthogonality_penalty

BATCH = 32
WARMUP_KIMG = 1.0
HALF_LIFE_KIMG = 3.0
"""Of the average of the weights."""
ASIDE, ABOVE = 13.0, 10.0
"""How far from the middle of a face mending goes above it, in pixels of 64 of a face upright at its usual size; below,
where beards, hair behind and clothes are, it goes to the border."""
SOFT = 2.0
"""Pixels over which it begins."""
LEAST, CLEAR = 0.1, 0.25
"""Differences of values in [-1, 1], averaged over 3x3 pixels, from which on mending begins and is whole."""
HELD_OUT = 400
"""Pairs at the end of the file that only measure."""
TICK_KIMG = 4.0


def placed(pose: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return how far right of and below the middle of its face each pixel lies, [batch, size, size] each.

    Args:
        pose: rotation, scale, shift_x and shift_y of each face, [batch, 4].
        size: pixels a side.
    """
    rotation, scale, shift_x, shift_y = pose[:, :, None, None].unbind(1)  # each [batch, 1, 1]
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    x, y = x - MIDDLE[0] - size * shift_x, y - MIDDLE[1] - size * shift_y
    cosine, sine = rotation.deg2rad().cos() / scale, rotation.deg2rad().sin() / scale
    return x * cosine + y * sine, y * cosine - x * sine


def mended(drawn: Tensor, clean: Tensor, pose: Tensor) -> Tensor:
    """Return drawn images [batch, 3, 64, 64] with what is clearly otherwise in the face, or below it, as in clean ones.

    Args:
        drawn, clean: [batch, 3, 64, 64] in [-1, 1].
        pose: of the faces; see `placed`.
    """
    right, down = placed(pose, drawn.shape[-1])
    beside, above, below = ((each / SOFT).clamp(0, 1) for each in (ASIDE - right.abs(), down + ABOVE, down))
    apart = F.avg_pool2d(clean - drawn, 3, 1, 1).abs().amax(1)  # [batch, 64, 64]
    share = ((apart - LEAST) / (CLEAR - LEAST)).clamp(0, 1) * torch.maximum(beside * above, below)
    share = F.avg_pool2d(F.max_pool2d(share[:, None], 3, 1, 1), 3, 1, 1)  # grown by a pixel, and no edge of its own
    return drawn + share * (clean - drawn)


def difference(drawn: Tensor, meant: Tensor) -> Tensor:
    """Return how far drawn images [batch, 3, h, w] are from those meant: of values, of edges, and at half and a quarter
    of the size, mean absolute differences each."""
    off = drawn - meant
    edges = off.diff(dim=2).abs().mean() + off.diff(dim=3).abs().mean()
    return off.abs().mean() + edges + sum(F.avg_pool2d(off, size).abs().mean() for size in (2, 4))


def rate(step: int, n_steps: int, most: float) -> float:
    """Return the learning rate of a step: it rises in a straight line, then falls along half a cosine."""
    warm = min(1.0, (step + 1) * BATCH / 1000 / WARMUP_KIMG)
    return most * warm * 0.5 * (1 + math.cos(math.pi * step / n_steps))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generator", help="what opens it: a name, or a folder")
    parser.add_argument("--pairs", type=Path, required=True, help="what redraw.py wrote of this generator")
    parser.add_argument("--run", type=Path, required=True, help="folder of the training")
    parser.add_argument("--kimg", type=float, default=44.0, help="length in thousands of images (default: 44)")
    parser.add_argument("--learning-rate", type=float, default=4e-4, help="the most that it is (default: 4e-4)")
    parser.add_argument("--threads", type=int, help="of the CPU; by default one a core")
    args = parser.parse_args()
    set_threads(args.threads)
    keep_freed_memory()
    with np.load(args.pairs, allow_pickle=False) as file:
        codes, pose, images = torch.from_numpy(file["codes"]), torch.from_numpy(file["pose"]), file["images"]
    n = len(codes) - HELD_OUT

    generator = load_generator(args.generator, device="cpu")
    teacher = generator.network.float().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    network = copy.deepcopy(teacher).train().requires_grad_()
    averaged = copy.deepcopy(teacher)
    optimiser = torch.optim.Adam(network.parameters(), args.learning_rate, (0.9, 0.99), fused=True)
    parts = {"network": network, "averaged": averaged, "optimiser": optimiser}
    n_steps, step, state = math.ceil(1000 * args.kimg / BATCH), 0, args.run / "state.pt"
    if state.exists():
        kept = torch.load(state, weights_only=True)
        step = kept["step"]
        for name, each in parts.items():
            each.load_state_dict(kept[name])
    args.run.mkdir(parents=True, exist_ok=True)

    def meant(rows: np.ndarray) -> Tensor:
        with torch.no_grad():
            return mended(teacher(codes[rows]), from_uint8(images[rows]), pose[rows])

    def held_out() -> float:
        with torch.no_grad():
            chunks = np.array_split(np.arange(n, len(codes)), 8)
            return float(np.mean([float(difference(averaged(codes[rows]), meant(rows))) for rows in chunks]))

    losses, begun = [], time.monotonic()
    decay = 0.5 ** (BATCH / 1000 / HALF_LIFE_KIMG)
    while step < n_steps:
        rows = batch_indices(n, BATCH, step, seed=0)
        loss = difference(network(codes[rows]), meant(rows))
        optimiser.zero_grad(set_to_none=True)
        (loss + orthogonality_penalty(network, "half-sum")).backward()
        for group in optimiser.param_groups:
            group["lr"] = rate(step, n_steps, args.learning_rate)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 1 - decay)
        step += 1
        losses.append(float(loss.detach()))
        if step * BATCH % (1000 * TICK_KIMG) >= BATCH and step < n_steps:
            continue
        line = {"kimg": step * BATCH / 1000, "difference": float(np.mean(losses)), "held_out": held_out()}
        with open(args.run / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line, f"{time.monotonic() - begun:.0f} s", flush=True)
        losses.clear()
        with written_beside(state, force=True) as beside:
            torch.save({"step": step} | {name: each.state_dict() for name, each in parts.items()}, beside)
        EigenGAN(averaged, name=generator.name).save(args.run / "last", force=True)


if __name__ == "__main__":
    main()
