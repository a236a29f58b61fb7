"""How much faster a training step is than the plain one: `python -m benchmarks.train_step`.

The plain step is the published arithmetic written down as it stands: float32, contiguous layout, φ computed for each
image and convolved, images generated anew for each of the two updates, real and generated images in two passes, Adam
and the average of the weights tensor by tensor. Each runs in a process of its own and they take steps in turn, so that
a busy machine slows all; medians of steps with and without R1 are taken apart and joined at their rates.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import platform
import statistics
import time
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._machine import instructions
from eigenlens import runtime
from eigenlens.generators.eigengan import SLOPE, EigenGANNetwork
from eigenlens.training.data import gather
from eigenlens.training.eigengan import (
    Training,
    configure,
    discriminator_loss,
    generator_loss,
    orthogonality_penalty,
    r1_penalty,
)


def plain_generate(network: EigenGANNetwork, latent: Tensor) -> Tensor:
    """Run the generator as published: φ of every image, [batch, c, h, w], goes through both convolutions."""
    eps, *zs = network.split(latent)
    h = network.from_noise(eps).contiguous()
    for block, z in zip(network.blocks, zs, strict=True):
        phi = block.subspace(z).permute(0, 3, 1, 2).contiguous()  # [batch, c, h, w]
        if block.is_direct:
            h = block.conv1(F.leaky_relu(h + phi, SLOPE))
        else:
            h = block.conv1(F.leaky_relu(h + block.inject1(phi), SLOPE))
            h = h + block.inject2(phi)
        h = block.conv2(F.leaky_relu(h, SLOPE))
    return network.to_image(h)


class PlainTraining:
    """The same two networks and losses, trained plainly."""

    def __init__(self, like: Training) -> None:
        self.config = like.config
        self.step = 0
        self.generator, self.discriminator, self.averaged = (
            copy.deepcopy(network).to(memory_format=torch.contiguous_format)
            for network in (like.generator, like.discriminator, like.averaged)
        )
        self.generator_optimiser, self.discriminator_optimiser = (
            torch.optim.Adam(
                network.parameters(), self.config.learning_rate, self.config.betas, fused=False, foreach=False
            )
            for network in (self.generator, self.discriminator)
        )

    def take_step(self, real: Tensor, latent: Tensor, other_latent: Tensor) -> Tensor:
        """Update both networks and the average; return the two losses and R1, [3]."""
        config = self.config
        with torch.no_grad():
            fake = plain_generate(self.generator, latent)
        self.discriminator_optimiser.zero_grad()
        loss = discriminator_loss(self.discriminator(real), self.discriminator(fake), config.generator_loss)
        r1 = loss.new_full((), torch.nan)
        total = loss
        if config.r1_interval and self.step % config.r1_interval == 0:
            r1 = r1_penalty(self.discriminator, real)
            total = loss + r1 * config.r1_weight * (config.r1_interval if config.r1_scaled else 1)
        total.backward()
        self.discriminator_optimiser.step()

        self.generator_optimiser.zero_grad()
        scores = self.discriminator(plain_generate(self.generator, other_latent))
        g_loss = generator_loss(scores, config.generator_loss)
        total = g_loss
        if config.model.orthogonality == "penalty":
            penalty = orthogonality_penalty(self.generator, config.orthogonality_reduction)
            total = g_loss + config.orthogonality_weight * penalty
        total.backward()
        self.generator_optimiser.step()
        with torch.no_grad():
            for mean, new in zip(self.averaged.parameters(), self.generator.parameters(), strict=True):
                mean.mul_(config.ema_decay).add_(new, alpha=1 - config.ema_decay)
        self.step += 1
        return torch.stack([loss, g_loss, r1]).detach()


VARIANTS = ("default", "default in fp32", "plain")


def serve(variant: str, preset: str, threads: int | None, pipe: Connection) -> None:
    """Train one variant in a process of its own: a step for each `with R1?` that comes, and its seconds back."""
    device = torch.device("cpu")
    runtime.set_threads(threads)
    config = configure(preset)
    precision = runtime.resolve_precision("auto" if variant == "default" else "fp32", device)
    training = Training(config, device=device, precision=precision)
    plain = PlainTraining(training) if variant == "plain" else None
    if plain is None:
        runtime.keep_freed_memory()
    size, channels = config.model.resolution, config.model.channels
    bytes_of = torch.randint(0, 256, (config.batch, size, size, channels), dtype=torch.uint8).numpy()
    rows = torch.arange(config.batch).numpy()
    while (with_r1 := pipe.recv()) is not None:
        step = 0 if with_r1 else 1
        start = time.perf_counter()
        real = gather(bytes_of, rows)
        if plain:
            plain.step = step
            latents = torch.randn(2, config.batch, config.model.dim)
            plain.take_step(real.contiguous(), latents[0], latents[1])
        else:
            training.step = step
            training.take_step(real, training.latents())
        pipe.send(time.perf_counter() - start)


def seconds_a_step(preset: str, *, rounds: int, threads: int | None) -> dict[str, float]:
    """Let every variant take steps in turn, one with R1 and four without a round; return seconds a mean step."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for variant in VARIANTS:
        pipes[variant], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(variant, preset, threads, theirs), daemon=True))
        processes[-1].start()
    times: dict[tuple[str, bool], list[float]] = {(name, r1): [] for name in VARIANTS for r1 in (True, False)}
    for number in range(rounds + 1):
        for with_r1 in (True, False, False, False, False):
            for variant, pipe in pipes.items():
                pipe.send(with_r1)
                seconds = pipe.recv()
                if number > 0:  # the first round warms up
                    times[variant, with_r1].append(seconds)
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join()
    interval = configure(preset).r1_interval
    median = {key: statistics.median(values) for key, values in times.items()}
    return {name: (median[name, True] + (interval - 1) * median[name, False]) / interval for name in VARIANTS}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="cpu-64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    config, threads = configure(arguments.preset), runtime.set_threads(arguments.threads)
    seconds = seconds_a_step(arguments.preset, rounds=arguments.rounds, threads=arguments.threads)
    precision = runtime.resolve_precision("auto", torch.device("cpu"))
    print(
        f"{arguments.preset}: {config.model.resolution} px, batch {config.batch}, R1 every {config.r1_interval} steps"
    )
    able = ", ".join(instructions()) or "unknown"
    print(f"{platform.machine()}, {threads} threads, torch {torch.__version__}; bf16 and vectors: {able}")
    for name, value in seconds.items():
        shown = f"{name} ({precision})" if name == "default" else name
        rate = config.batch / value
        print(f"{shown:18}{1e3 * value:8.0f} ms {rate:8.1f} images/s {seconds['plain'] / value:6.2f} x")


if __name__ == "__main__":
    main()
