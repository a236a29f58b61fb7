"""What a step of `voynov` costs beside the published way: `python -m benchmarks.learned`.

The published way runs the networks operation by operation, as the authors' code does, sends gradients into the
generator's own weights, where they are computed and dropped, and keeps a graph on both images. Ours freezes the
generator, whose batch norms thereby become fixed affine maps, and lets the moved image alone carry a graph; then comes
channels-last; then bfloat16 (autocast). All on the widths of the 32 px SNGAN that the authors used (4 x 256 channels),
random weights, K = 64, LeNet, batch 128. The ways take steps in turn on one thread, and CPU seconds are compared, so
that other work on the machine slows all alike. In the first step all have the same weights, codes and shifts: their
losses say whether they compute the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import machine
from benchmarks.synthesis import eager
from eigenlens import runtime
from eigenlens.generators.sngan import SNGAN, SNGANConfig, SNGANNetwork
from eigenlens.methods.learning import ReconstructionGame, channels_last, seeded
from eigenlens.methods.voynov import Voynov
from eigenlens.reconstructor import draw_shifts, reconstruction_loss

RESULTS = Path(__file__).parent / "results" / "learned.json"
BARS = {"frozen": 0.56, "channels-last": 0.45, "bf16": 0.25}
"""Largest share of the published way's CPU seconds."""
LAID_OUT = ("channels-last", "bf16")
"""The ways that lay kernels out channels-last."""


def make_generator(width: int) -> SNGAN:
    """Make the SNGAN of 32 px with random weights, one channel and z of 128 numbers."""
    config = SNGANConfig(128, 4, (width,) * 4, (False,) * 3, channels=1)
    return SNGAN(seeded(0, lambda: SNGANNetwork(config)), name="sngan-32")  # type: ignore[arg-type]


def make_game(generator: SNGAN, batch: int, precision: runtime.Precision) -> ReconstructionGame:
    """Make directions and reconstructor, the same whenever they are made."""
    return Voynov(n_directions=64, batch=batch, learn_in=precision).game(generator, "orthonormal", seed=0)


def published_loss(game: ReconstructionGame, step: int) -> torch.Tensor:
    """Return the same loss, computed plainly: gradients into the generator's weights, a graph on both images."""
    network: Any = game.scene.generator.network.requires_grad_(True)
    reconstructor = game.reconstructor
    try:
        rng = runtime.generator_for(game.seed, "voynov/shifts", step)
        which, amount = draw_shifts(game.method.batch, game.k, game.law, rng)
        codes = game.scene.batch(game.method.batch, step)
        moved = game.mover(codes.latent, which, amount)
        before, after = (eager(game.scene.generator, each) for each in (codes, codes.with_latent(moved)))
        features = reconstructor.body(torch.cat([before, after], dim=1))
        loss = reconstruction_loss(reconstructor.which(features), reconstructor.amount(features)[:, 0], which, amount)
        loss.backward()
        return loss
    finally:
        for weight in network.requires_grad_(False).parameters():
            weight.grad = None


def measure(width: int, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Let all ways take steps in turn; return the median CPU seconds of a step and the loss of the first."""
    generators = {name: make_generator(width) for name in ("published", *BARS)}
    games = {
        name: make_game(generator, batch, "bf16" if name == "bf16" else "fp32")
        for name, generator in generators.items()
    }
    for module in (generators["published"].network, games["published"].reconstructor):
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    seconds: dict[str, list[float]] = {name: [] for name in games}
    losses: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, game in games.items():
            with channels_last(generators[name].network) if name in LAID_OUT else nullcontext():
                start = time.process_time()
                if name == "published":
                    game.learner.optimiser.zero_grad()
                    loss = float(published_loss(game, game.learner.step).detach())
                    game.learner.optimiser.step()
                    game.learner.step += 1
                else:
                    loss = float(game.learner.take_step()[0])
                taken = time.process_time() - start
            if number == 0:  # the first round warms up
                losses[name] = loss
            else:
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: {
            "cpu_seconds": medians[name],
            "share": medians[name] / medians["published"],
            "loss": losses[name],
            "loss_difference": abs(losses[name] - losses["published"]),
        }
        for name in games
    }


def main() -> None:
    """Measure, print a table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=256, help="channels of every block")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    runtime.set_threads(1)
    found = measure(arguments.width, arguments.batch, arguments.rounds)
    for name, row in found.items():
        bar = f"bar {BARS[name]:.2f}" if name in BARS else ""
        print(
            f"{name:14}{row['cpu_seconds']:8.2f} CPU s {row['share']:6.3f}  {bar:8}  loss {row['loss']:.6f} "
            f"({row['loss_difference']:.1e})"
        )
    about = {
        "command": "python -m benchmarks.learned",
        "width": arguments.width, "batch": arguments.batch, "rounds": arguments.rounds, "threads": 1,
        "machine": machine(),
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"about": about, "ways": found, "bars": BARS}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
