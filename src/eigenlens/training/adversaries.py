"""Two networks that train each other, and the settings that the training of every family has; `run.py` conducts it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .. import runtime
from ..errors import UserError, check_ranges, unknown_name
from ..generator import Generator
from .data import Dataset, batch_indices, gather

Config = TypeVar("Config", bound="RunConfig")

FIGURES = ("discriminator_loss", "generator_loss", "r1", "score_real", "score_fake")
"""What `Adversaries.take_step` returns, in order."""


# --- settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunConfig:
    """The settings that the training of every family has; a family adds its own, and the shape of its networks."""

    model: Any = None
    """The shape of the networks."""
    kimg: float = 300.0
    """Length of the training in thousands of images shown to the discriminator."""
    batch: int = 64
    """Images a step, over all processes."""
    seed: int = 0
    """Fixes the initial weights, latents, order of the images and augmentations."""
    learning_rate: float = 1e-4
    """Learning rate of Adam, for both networks."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Decay of Adam's two moments."""
    cooldown_kimg: float = 0.0
    """Over so many kimg, at the end, the learning rates fall in a straight line to nothing; 0: they stay."""
    generator_from_kimg: float = 0.0
    """When the generator begins to learn. Until then the discriminator learns alone, which a start from a generator
    that it does not know asks for."""
    warmup_kimg: float = 0.0
    """Over so many kimg from then on the generator's learning rate rises in a straight line; 0: it is whole at once."""
    r1_interval: int = 16
    """Steps from one R1 to the next; 0 leaves it out."""
    ema_half_life: float = 5.0
    """Half-life in kimg of the averaged copy of the generator, which is the one that is kept."""
    flip: bool = False
    """Whether real images are mirrored at random."""
    tick_kimg: float = 4.0
    """How often in kimg figures are written."""
    watch_kimg: float = 20.0
    """How often in kimg samples, traversals and the distance to the data are made; 0: at the end alone."""
    distance_images: int = 512
    """Images, real and generated, of the sliced Wasserstein distance; 0 leaves it out."""
    patience: int = 5
    """After how many measurements without an improvement of 1 % the distance is said to be flat."""
    stop_when_flat: bool = False
    """Whether the training ends there."""
    save_seconds: float = 60.0
    """How often in seconds the state is saved."""

    least: ClassVar[dict[str, float]] = {
        "kimg": 1e-3, "batch": 1, "seed": 0, "learning_rate": 0, "cooldown_kimg": 0,
        "generator_from_kimg": 0, "warmup_kimg": 0, "r1_interval": 0, "ema_half_life": 0, "tick_kimg": 1e-3,
        "watch_kimg": 0, "distance_images": 0, "patience": 1, "save_seconds": 0,
    }  # fmt: skip
    """Numbers among the settings, and the least of each."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))  # Adam refuses a mixed (0, 0.99)
        check_ranges(self, {name: (low, math.inf) for name, low in self.least.items()})
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas {self.betas} are not possible; give two numbers from 0 to below 1")
        if self.stop_when_flat and not (self.watch_kimg and self.distance_images):
            raise UserError("stop_when_flat needs distances on the way; give watch_kimg and distance_images above 0")

    @property
    def n_steps(self) -> int:
        """How many steps the training has."""
        return self._steps(self.kimg)

    @property
    def ema_decay(self) -> float:
        """Share of the averaged weights that one step keeps."""
        return 0.5 ** (self.batch / (1000 * self.ema_half_life)) if self.ema_half_life > 0 else 0.0

    def pace(self, step: int) -> float:
        """Return the share of the learning rate that step `step`, from 0, takes: 1 until the cooldown begins.

        Then it falls in a straight line, to one part in as many as the cooldown has steps at the last.
        """
        steps = self._steps(self.cooldown_kimg)
        return min(1.0, (self.n_steps - step) / steps) if steps else 1.0

    def warmth(self, step: int) -> float:
        """Return the share of its learning rate that the generator takes in step `step`, from 0, but for the cooldown.

        It is 0 while the discriminator learns alone; then it rises in a straight line to 1.
        """
        taken = step + 1 - self._steps(self.generator_from_kimg)
        return min(1.0, max(0, taken) / max(1, self._steps(self.warmup_kimg)))

    def _steps(self, kimg: float) -> int:
        return math.ceil(1000 * kimg / self.batch - 1e-9)


def overridden(config: Config, **overrides: Any) -> Config:
    """Return settings with some of their fields, or of their model's, replaced; None leaves a field as it is.

    Raises:
        UserError: on a field that neither has, or a value that is not possible.
    """
    of_model, of_run = ({f.name for f in dataclasses.fields(each)} for each in (config.model, config))
    given = {name: value for name, value in overrides.items() if value is not None}
    for name in given:
        if name not in of_model | of_run:
            raise unknown_name("training setting", name, (of_model | of_run) - {"model"})
    model = dataclasses.replace(
        given.pop("model", config.model), **{name: given.pop(name) for name in list(given) if name in of_model}
    )
    return dataclasses.replace(config, model=model, **given)


# --- what a run trains ------------------------------------------------------------------------------------------------


class Adversaries:
    """A generator and a discriminator that train each other, their optimisers, and the averaged generator.

    A family's `Training` builds them and takes the steps; what it shares with the others stands here.
    """

    family: ClassVar[str]
    """Name of the family, which new folders carry."""
    joining: ClassVar[tuple[str, ...]] = ()
    """How the names of those weights of its discriminator begin that another run's may lack; see `start`."""
    widths: ClassVar[tuple[str, ...]] = ()
    """Settings of its shape that may give more channels than those of what it starts from has; see `widened`."""
    config: RunConfig
    """The settings."""
    device: torch.device
    """Where it trains."""
    is_mixed: bool
    """Whether convolutions and matrix products run in bfloat16."""
    step: int
    """Steps taken so far."""
    generator: nn.Module
    """Learns to draw."""
    discriminator: nn.Module
    """Learns to tell drawn images from real ones."""
    averaged: nn.Module
    """The averaged copy of the generator, which is the one that is kept."""
    generator_optimiser: torch.optim.Optimizer
    """Of the generator."""
    discriminator_optimiser: torch.optim.Optimizer
    """Of the discriminator."""

    @property
    def kimg(self) -> float:
        """Thousands of images so far."""
        return float(self.step * self.config.batch / 1000)

    @property
    def mine(self) -> slice:
        """Which rows of a batch belong to this process."""
        return runtime.share(self.config.batch)

    def drawn(self, dim: int, what: str = "latents") -> Tensor:
        """Draw this process's share of N(0, 1) rows of this step, [batch / processes, dim]."""
        rng = runtime.generator_for(self.config.seed, what, self.step)
        rows = rng.standard_normal((self.config.batch, dim), np.float32)
        return torch.from_numpy(rows[self.mine]).to(self.device)

    def reals(self, data: Dataset) -> Tensor:
        """Return this process's share of the real images of this step, [batch / processes, c, h, w]."""
        batch, mine = self.config.batch, self.mine
        indices = batch_indices(len(data), batch, self.step, seed=self.config.seed)
        flips = runtime.generator_for(self.config.seed, "flips", self.step).random(batch) < 0.5
        return gather(data.images, indices[mine], flips[mine] if self.config.flip else None).to(self.device)

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_mixed)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the averaged generator towards the one that has just learnt."""
        torch._foreach_lerp_(
            list(self.averaged.parameters()), list(self.generator.parameters()), 1.0 - self.config.ema_decay
        )

    def advance(self, optimiser: torch.optim.Optimizer) -> None:
        """Let an optimiser take its step, at the share of its learning rates that this step of the training takes.

        At a share of 0 no weight moves, and the moments are learnt.
        """
        share = self.config.pace(self.step)
        if optimiser is self.generator_optimiser:
            share *= self.config.warmth(self.step)
        full = [group["lr"] for group in optimiser.param_groups]
        for group, rate in zip(optimiser.param_groups, full, strict=True):
            group["lr"] = rate * share
        optimiser.step()
        for group, rate in zip(optimiser.param_groups, full, strict=True):
            group["lr"] = rate

    def latents(self) -> Tensor:
        """Draw this process's share of the latents of this step."""
        raise NotImplementedError

    def take_step(self, real: Tensor, latent: Tensor) -> Tensor:
        """Update all networks on one batch; return the means named in `FIGURES`, [5], over all processes."""
        raise NotImplementedError

    def as_generator(self, name: str) -> Generator:
        """Return the averaged network as a Generator, for samples and for files."""
        raise NotImplementedError

    def widened(self, weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
        """Return weights for `network`, one of its two as drawn, that compute what narrower ones do."""
        raise NotImplementedError

    def figures(self) -> dict[str, Any]:
        """Return what a line of `metrics.jsonl` tells beside losses and gradients."""
        return {}

    def show(self, generator: Generator, run: Path, place: str) -> tuple[dict[str, Any], list[str]]:
        """Draw what this family shows beside samples, into files of `run` called `place`.

        Returns:
            Figures for `metrics.jsonl`, and lines to tell the user.
        """
        return {}, []

    def is_finite(self) -> bool:
        """Tell whether every weight of both networks is a number."""
        weights = [p.detach() for network in (self.generator, self.discriminator) for p in network.parameters()]
        return bool(torch.stack(torch._foreach_norm(weights)).isfinite().all())

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, plain tensors and numbers."""
        return {"step": self.step} | {name: getattr(self, name).state_dict() for name in _KEPT}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        self.step = state["step"]
        for name in _KEPT:
            getattr(self, name).load_state_dict(state[name])


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Return the mean of ‖∇D(x)‖² over real images, differentiable (Mescheder 2018, eq. 9, without γ/2)."""
    real = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


_KEPT = ("generator", "discriminator", "averaged", "generator_optimiser", "discriminator_optimiser")
