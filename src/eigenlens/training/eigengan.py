"""Training an EigenGAN: the settings, the discriminator, the losses and the loop.

Everything random in step t is drawn from (seed, t): the latents, which images, how they are mirrored and augmented. So
there is no state of a random generator to keep, a resumed run repeats the uninterrupted one bit for bit, and a run on
several processes, each of which takes its share of the same batch, repeats the run on one to rounding.

Source:
    He, Kan, Shan, EigenGAN, ICCV 2021 (arXiv 2104.12476), and the authors' code; where that and the ports disagree,
    `TrainConfig` has a field.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from .. import __version__, images, runtime
from ..directions import Directions
from ..effect import measure_effect, traverse
from ..errors import UserError, unknown_name
from ..files import write_text, written_beside
from ..generator import Generator
from ..generators.eigengan import BASE, SLOPE, EigenGAN, EigenGANConfig, EigenGANNetwork, he_normal_
from ..method import METHODS
from .data import Dataset, batch_indices, gather, open_dataset
from .distance import has_stopped_improving, multiscale_distance

STATE = "state.pt"
STATE_FORMAT = "eigenlens.training/1"
EFFECT_SAMPLES = 16  # of each measurement while training
AUGMENTATIONS = ("color", "translation", "cutout")
FLOOR_STRIDE = 4  # one image in so many is generated again to see what a layer does


# --- settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainConfig:
    """What fixes a training run, apart from its data."""

    model: EigenGANConfig = field(default_factory=EigenGANConfig)
    """The shape of the generator; the discriminator follows from it."""
    kimg: float = 300.0
    """Length of the training in thousands of images shown to the discriminator."""
    batch: int = 64
    """Images a step, over all processes."""
    seed: int = 0
    """Fixes the initial weights, latents, order of the images and augmentations."""
    generator_loss: Literal["hinged", "linear", "non-saturating"] = "hinged"
    """With the hinge loss of the discriminator: `hinged`, max(0, 1 - D(G)), as in the authors' code, or `linear`,
    -D(G). `non-saturating`: softplus(-D(G)), with the logistic loss of the discriminator."""
    orthogonality_weight: float = 1.0
    """Weight of the penalty that holds each U orthonormal; without effect where orthogonality is hard."""
    orthogonality_reduction: Literal["half-sum", "mean", "mean-of-layers"] = "half-sum"
    """Penalty of one layer and how layers are joined. `half-sum`: ½‖UᵀU - I‖², summed (the authors' code). `mean`:
    ‖UᵀU - I‖² / q², summed, which is 18 times weaker at q = 6. `mean-of-layers`: the same, averaged."""
    effect_floor: float = 0.0
    """Least change of an image (root mean square over its values in [-1, 1], mean over images) that drawing the z of
    one layer anew must make; the share that is missing is added to the generator's loss. 0, as published, has none,
    and deep layers tend to fall silent; 0.15 keeps them all alive."""
    information_weight: float = 0.0
    """Weight of InfoGAN's term (Chen 2016, eq. 6, fixed unit variance): the discriminator also reads all z off
    generated images, and both networks lower its mean squared error. 0, as published, has none."""
    r1_weight: float = 10.0
    """Weight of R1, the mean of ‖∇D(x)‖² over real images, without the ½ that some write before it."""
    r1_interval: int = 3
    """Steps from one R1 to the next; 0 leaves it out."""
    r1_scaled: bool = True
    """Whether R1 is multiplied by its interval, so that its mean weight does not depend on it (the authors' code)."""
    learning_rate: float = 1e-4
    """Learning rate of Adam, for both networks."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Decay of Adam's two moments."""
    ema_half_life: float = 44.33
    """Half-life in kimg of the averaged copy of the generator, which is the one that is kept."""
    augment: tuple[str, ...] = ()
    """Differentiable augmentations of what the discriminator sees: `color`, `translation`, `cutout`; for small sets."""
    flip: bool = True
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))  # Adam refuses a mixed (0, 0.99)
        object.__setattr__(self, "augment", tuple(self.augment))
        for name, allowed in (
            ("generator_loss", ("hinged", "linear", "non-saturating")),
            ("orthogonality_reduction", ("half-sum", "mean", "mean-of-layers")),
        ):
            if getattr(self, name) not in allowed:
                raise unknown_name(name, getattr(self, name), allowed)
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise unknown_name("augmentation", name, AUGMENTATIONS)
        for name, low in (
            ("kimg", 1e-3), ("batch", 1), ("seed", 0), ("orthogonality_weight", 0), ("effect_floor", 0),
            ("information_weight", 0), ("r1_weight", 0), ("r1_interval", 0), ("learning_rate", 0),
            ("ema_half_life", 0), ("tick_kimg", 1e-3), ("watch_kimg", 0), ("distance_images", 0), ("patience", 1),
            ("save_seconds", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not math.isfinite(value) or value < low:
                raise UserError(f"{name} {value} is not possible; it is a number from {low:g}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas {self.betas} are not possible; give two numbers from 0 to below 1")

    @property
    def n_steps(self) -> int:
        """How many steps the training has."""
        return math.ceil(1000 * self.kimg / self.batch - 1e-9)

    @property
    def ema_decay(self) -> float:
        """Share of the averaged weights that one step keeps."""
        return 0.5 ** (self.batch / (1000 * self.ema_half_life)) if self.ema_half_life > 0 else 0.0


FREE_ON_RESUME = (
    "kimg", "tick_kimg", "watch_kimg", "distance_images", "patience", "stop_when_flat", "save_seconds",
)  # fmt: skip
"""Fields that a resumed run may change: none of them touches a step."""

_SMALL = TrainConfig(
    model=EigenGANConfig(64, noise_dim=128, base_channels=16, widths="relative"),
    generator_loss="linear",
    r1_interval=16,
    r1_scaled=False,
    learning_rate=2e-4,
    betas=(0.0, 0.99),
    ema_half_life=5.0,
    flip=False,
)

PRESETS: dict[str, TrainConfig] = {
    # the authors' defaults: 160 epochs of CelebA, decay 0.999
    "paper-256": TrainConfig(kimg=16200, tick_kimg=16, watch_kimg=200),
    # the known reproduction at 64 px, widths as published
    "celeba-64": TrainConfig(
        model=EigenGANConfig(64, noise_dim=128),
        kimg=10000,
        generator_loss="linear",
        orthogonality_reduction="mean",
        r1_weight=5.0,
        r1_interval=1,
        tick_kimg=16,
        watch_kimg=200,
    ),
    # a quarter of the published widths, for two cores
    "cpu-64": _SMALL,
    "fashion-32": dataclasses.replace(
        _SMALL, model=EigenGANConfig(32, channels=1, noise_dim=64, base_channels=16, widths="relative")
    ),
    "tiny-16": dataclasses.replace(
        _SMALL,
        model=EigenGANConfig(16, noise_dim=8, n_basis=3, base_channels=4, max_channels=8, widths="relative"),
        kimg=0.5,
        batch=8,
        r1_interval=4,
        tick_kimg=0.08,
        watch_kimg=0.24,
        distance_images=16,
    ),
}
"""Name -> settings that belong together."""


def configure(preset: str, **overrides: Any) -> TrainConfig:
    """Return a preset with some of its fields, or of its model's, replaced.

    Args:
        preset: a name in `PRESETS`.
        overrides: fields of `TrainConfig` or of `EigenGANConfig` by name; None leaves a field as it is.

    Raises:
        UserError: on an unknown preset or field, or a value that is not possible.

    Example:
        >>> configure("cpu-64", kimg=480, n_basis=8).model.n_basis
        8
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    config = PRESETS[preset]
    of_model = {f.name for f in dataclasses.fields(EigenGANConfig)}
    of_run = {f.name for f in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in overrides.items() if value is not None}
    for name in given:
        if name not in of_model | of_run:
            raise unknown_name("training setting", name, (of_model | of_run) - {"model"})
    model = dataclasses.replace(
        given.pop("model", config.model), **{name: given.pop(name) for name in list(given) if name in of_model}
    )
    return dataclasses.replace(config, model=model, **given)


# --- the discriminator ------------------------------------------------------------------------------------------------


class Discriminator(nn.Module):
    """The published discriminator: convolutions and leaky ReLUs down to 4x4, then two linear layers; no normalisation.

    Args:
        config: of the generator; both have the same widths.
        reads_codes: whether it also reads the z of all layers off images, as InfoGAN's does.

    Source:
        The authors' code: 7x7; at each resolution a 3x3 and a 3x3 of stride 2; 3x3; a linear layer as wide as the
        deepest feature map, and one that gives the score.
    """

    def __init__(self, config: EigenGANConfig, *, reads_codes: bool = False) -> None:
        super().__init__()
        resolution, width = config.resolution, config.width
        layers = [_convolution(config.channels, width(resolution), 7)]
        while resolution > BASE:
            layers.append(_convolution(width(resolution), width(resolution), 3))
            layers.append(_convolution(width(resolution), width(resolution // 2), 3, stride=2))
            resolution //= 2
        layers.append(_convolution(width(BASE), width(BASE), 3))
        self.convolutions = nn.ModuleList(layers)
        self.hidden = nn.Linear(BASE * BASE * width(BASE), width(BASE))
        self.score = nn.Linear(width(BASE), 1)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                he_normal_(layer.weight, layer.weight[0].numel())
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.code: nn.Linear | None = None
        if reads_codes:
            self.code = nn.Linear(self.hidden.in_features, sum(config.bases))
            nn.init.normal_(self.code.weight, std=0.01)  # it begins with a guess near 0, the mean of every z
            nn.init.zeros_(self.code.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores [batch] for images [batch, channels, resolution, resolution]; real ones are to score high."""
        return self.judged(images)[0]

    def judged(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scores [batch] and, where it reads codes, its guess of all z, [batch, sum of q]."""
        h = images
        for layer in self.convolutions:
            h = F.leaky_relu(layer(h), SLOPE, inplace=True)
        h = h.permute(0, 2, 3, 1).flatten(1)  # [batch, 16 c]: as it lies in memory, so nothing is copied
        scores = self.score(F.leaky_relu(self.hidden(h), SLOPE)).squeeze(1)
        return scores, None if self.code is None else self.code(h)


def _convolution(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)


# --- losses -----------------------------------------------------------------------------------------------------------


def discriminator_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """Return the loss of scores [batch] of real and generated images: hinge, or logistic for `non-saturating`."""
    if kind == "non-saturating":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()


def generator_loss(fake: Tensor, kind: str) -> Tensor:
    """Return the generator's loss of scores [batch] of its images; see `TrainConfig.generator_loss`."""
    if kind == "hinged":
        return F.relu(1.0 - fake).mean()
    return -fake.mean() if kind == "linear" else F.softplus(-fake).mean()


def orthogonality_penalty(network: EigenGANNetwork, reduction: str) -> Tensor:
    """Return how far the subspaces' bases are from orthonormal; see `TrainConfig.orthogonality_reduction`."""
    errors = [subspace.orthogonality_error() for subspace in network.subspaces()]
    if reduction == "half-sum":
        return 0.5 * torch.stack(errors).sum()
    means = torch.stack([error / q**2 for error, q in zip(errors, network.config.bases, strict=True)])
    return means.sum() if reduction == "mean" else means.mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Return the mean of ‖∇D(x)‖² over real images, differentiable (Mescheder 2018, eq. 9, without γ/2)."""
    real = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def augmented(images: Tensor, kinds: Sequence[str], draws: Tensor) -> Tensor:
    """Augment images in a way that lets gradients through.

    Args:
        images: [batch, channels, height, width].
        kinds: of `AUGMENTATIONS`; they are applied in this order.
        draws: uniform on [0, 1), [batch, 7]: three for colour, two for translation, two for the cut-out square.

    Source:
        Zhao et al. 2020, DiffAugment: brightness ±0.5, saturation 0 to 2, contrast 0.5 to 1.5; shifts of up to an
        eighth, filled with 0; a square of half the side set to 0.
    """
    size = images.shape[-1]
    column = lambda i: draws[:, i].view(-1, 1, 1, 1).to(images)  # noqa: E731
    for kind in kinds:
        if kind == "color":
            images = images + (column(0) - 0.5)
            mean = images.mean(1, keepdim=True)
            images = (images - mean) * (2 * column(1)) + mean
            mean = images.mean((1, 2, 3), keepdim=True)
            images = (images - mean) * (column(2) + 0.5) + mean
        places = torch.arange(size, device=images.device)
        if kind == "translation":
            reach = size // 8
            shifts = (draws[:, 3:5] * (2 * reach + 1)).long().to(images.device)  # [batch, 2], 0 .. 2 reach
            padded = F.pad(images, (reach,) * 4).permute(0, 2, 3, 1)
            owners = torch.arange(len(images), device=images.device)[:, None, None]
            rows, columns = (places + shifts[:, :1])[:, :, None], (places + shifts[:, 1:])[:, None, :]
            images = padded[owners, rows, columns].permute(0, 3, 1, 2)
        if kind == "cutout":
            centres = (draws[:, 5:7] * size).long().to(images.device)  # [batch, 2]
            inside = (places - centres[..., None]).abs() <= size // 4  # [batch, 2, size]
            hole = inside[:, 0, :, None] & inside[:, 1, None, :]
            images = images * ~hole[:, None]
    return images


# --- one step ---------------------------------------------------------------------------------------------------------


class Training:
    """Everything that a step changes: both networks, their optimisers, the averaged generator.

    Several processes average their gradients by hand, in one flat buffer: with two updates that share one batch of
    generated images and a lazy R1, that is shorter than the wrapper's rules, and as fast at these sizes.

    Args:
        config: the settings.
        device: where to train.
        precision: `fp32`, or `bf16` for the convolutions and matrix products of all but R1.
        compiled: whether to compile both networks (R1 needs second derivatives and is never compiled).
    """

    def __init__(
        self, config: TrainConfig, *, device: torch.device, precision: str = "fp32", compiled: bool = False
    ) -> None:
        self.config = config
        self.device = device
        self.is_mixed = precision == "bf16"
        self.step = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.generator = EigenGANNetwork(config.model)
            self.discriminator = Discriminator(config.model, reads_codes=config.information_weight > 0)
        for network in (self.generator, self.discriminator):
            network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.generator).eval().requires_grad_(False)
        fused = device.type in ("cpu", "cuda")
        self.generator_optimiser, self.discriminator_optimiser = (
            torch.optim.Adam(network.parameters(), config.learning_rate, config.betas, fused=fused)
            for network in (self.generator, self.discriminator)
        )
        self.generate: Callable[[Tensor], Tensor] = self.generator
        self.judge: Callable[[Tensor], tuple[Tensor, Tensor | None]] = self.discriminator.judged
        if compiled:
            self.generate, self.judge = torch.compile(self.generator), torch.compile(self.discriminator.judged)

    @property
    def kimg(self) -> float:
        """Thousands of images so far."""
        return self.step * self.config.batch / 1000

    def latents(self) -> Tensor:
        """Draw this process's share of the latents of this step, [batch / processes, dim]."""
        rng = runtime.generator_for(self.config.seed, "latents", self.step)
        drawn = rng.standard_normal((self.config.batch, self.config.model.dim), np.float32)
        return torch.from_numpy(drawn[runtime.share(self.config.batch)]).to(self.device)

    def reals(self, data: Dataset) -> Tensor:
        """Return this process's share of the real images of this step, [batch / processes, c, h, w]."""
        batch, mine = self.config.batch, runtime.share(self.config.batch)
        indices = batch_indices(len(data), batch, self.step, seed=self.config.seed)
        flips = runtime.generator_for(self.config.seed, "flips", self.step).random(batch) < 0.5
        return gather(data.images, indices[mine], flips[mine] if self.config.flip else None).to(self.device)

    def take_step(self, real: Tensor, latent: Tensor) -> Tensor:
        """Update the discriminator, the generator and its average on one batch.

        One batch of images is generated for both updates; the generator's sees the discriminator that has just been
        updated. That gives the same gradients as generating the batch again, since the generator has not changed.

        Args:
            real: [batch, channels, resolution, resolution] in [-1, 1].
            latent: [batch, dim].

        Returns:
            The means named in `FIGURES`, [5], over all processes; R1 is NaN where it was left out.
        """
        config = self.config
        with self._mixed():
            fake = self.generate(latent)

        self.discriminator_optimiser.zero_grad(set_to_none=True)
        seen = self._augmented(torch.cat([real, fake.detach().to(real.dtype)]), "discriminator")
        with self._mixed():
            scores, guess = self.judge(seen)
        of_real, of_fake = _at_least_float(scores).chunk(2)
        loss = discriminator_loss(of_real, of_fake, config.generator_loss)
        (loss if guess is None else loss + self._misreading(guess[len(real) :], latent)).backward()
        r1 = loss.new_full((), math.nan)
        if config.r1_interval and self.step % config.r1_interval == 0:
            r1 = r1_penalty(self.discriminator, seen[: len(real)])
            (r1 * config.r1_weight * (config.r1_interval if config.r1_scaled else 1)).backward()
        runtime.average([p.grad for p in self.discriminator.parameters() if p.grad is not None])
        self.discriminator_optimiser.step()

        self.generator_optimiser.zero_grad(set_to_none=True)
        self.discriminator.requires_grad_(False)
        seen = self._augmented(fake, "generator")
        with self._mixed():
            scores, guess = self.judge(seen)
        g_loss = generator_loss(_at_least_float(scores), config.generator_loss)
        total = g_loss
        if config.model.orthogonality == "penalty":
            penalty = orthogonality_penalty(self.generator, config.orthogonality_reduction)
            total = total + config.orthogonality_weight * penalty
        if guess is not None:
            total = total + self._misreading(guess, latent)
        if config.effect_floor:
            total = total + self._missing_effect(fake, latent)
        total.backward()
        self.discriminator.requires_grad_(True)
        figures = torch.stack([loss, g_loss, r1, of_real.mean(), of_fake.mean()]).detach()
        runtime.average([*[p.grad for p in self.generator.parameters() if p.grad is not None], figures])
        self.generator_optimiser.step()

        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averaged.parameters()), list(self.generator.parameters()), 1.0 - config.ema_decay
            )
        self.step += 1
        return figures

    def _misreading(self, guess: Tensor, latent: Tensor) -> Tensor:
        """Return the weighted mean squared error of a reading of all z, [batch, sum of q], of generated images."""
        z = latent[:, self.config.model.noise_dim :]
        return self.config.information_weight * F.mse_loss(_at_least_float(guess), z)

    def _missing_effect(self, fake: Tensor, latent: Tensor) -> Tensor:
        """Return the share of `effect_floor` by which the z of this step's layer does too little.

        Layers take turns. A quarter of the images is generated again with another z there.
        """
        model, step = self.config.model, self.step
        alive = [number for number, q in enumerate(model.bases) if q]
        if not alive:
            return fake.new_zeros(())
        layer = alive[step % len(alive)]
        start = model.noise_dim + sum(model.bases[:layer])
        moved = latent[::FLOOR_STRIDE].clone()
        drawn = runtime.generator_for(self.config.seed, "floor", step).standard_normal(
            (self.config.batch, model.bases[layer]), np.float32
        )
        mine = torch.from_numpy(drawn[runtime.share(self.config.batch)][::FLOOR_STRIDE])
        moved[:, start : start + model.bases[layer]] = mine.to(moved)
        with self._mixed():
            other = self.generate(moved)
        difference = _at_least_float(other) - _at_least_float(fake[::FLOOR_STRIDE])
        change = difference.square().mean((1, 2, 3)).add(1e-8).sqrt().mean()  # a root has no slope at 0
        over_all = change.detach().clone()
        runtime.average([over_all])  # one process or many: the same side of the floor
        return (1 - change / self.config.effect_floor) * (over_all < self.config.effect_floor)

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_mixed)

    def _augmented(self, images: Tensor, whose: str) -> Tensor:
        if not self.config.augment:
            return images
        rng = runtime.generator_for(self.config.seed, f"augment/{whose}", self.step)
        n = self.config.batch
        draws = rng.random((len(images) * runtime.world_size() // n, n, 7), np.float32)  # reals and fakes: two sets
        return augmented(images, self.config.augment, torch.from_numpy(draws[:, runtime.share(n)]).flatten(0, 1))

    def is_finite(self) -> bool:
        """Tell whether every weight of both networks is a number."""
        weights = [p.detach() for network in (self.generator, self.discriminator) for p in network.parameters()]
        return bool(torch.stack(torch._foreach_norm(weights)).isfinite().all())

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, plain tensors and numbers."""
        return {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "averaged": self.averaged.state_dict(),
            "generator_optimiser": self.generator_optimiser.state_dict(),
            "discriminator_optimiser": self.discriminator_optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        self.step = state["step"]
        for name in ("generator", "discriminator", "averaged", "generator_optimiser", "discriminator_optimiser"):
            getattr(self, name).load_state_dict(state[name])


FIGURES = ("discriminator_loss", "generator_loss", "r1", "score_real", "score_fake")
"""What `Training.take_step` returns, in order."""


def _at_least_float(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype == torch.bfloat16 else scores


# --- the run's folder -------------------------------------------------------------------------------------------------


def new_run(runs: str | Path, name: str) -> Path:
    """Make the next free folder of `runs`, such as `runs/00012-eigengan-toonfaces`."""
    runs = Path(runs)
    numbers = [int(match[1]) for place in runs.glob("*") if (match := re.match(r"(\d{5})-", place.name))]
    run = runs / f"{max(numbers, default=-1) + 1:05d}-eigengan-{name}"
    run.mkdir(parents=True)
    return run


def save_state(training: Training, run: Path, *, data: Dataset, past: Past) -> None:
    """Write `last/`: the averaged generator, and `state.pt` for resuming; each whole or not at all.

    Raises:
        UserError: where a weight is not a number; what was saved before stays.
    """
    check_finite(training, (), run)
    state = training.state_dict() | {
        "format": STATE_FORMAT,
        "version": __version__,
        "config": json.dumps(dataclasses.asdict(training.config)),
        "data": data.sha256,
        "seconds": past.seconds,
        "distances": past.distances,
    }
    with written_beside(run / "last" / STATE, force=True) as beside:
        torch.save(state, beside)
    export(training, run / "last", data=data)


def export(training: Training, folder: Path, *, data: Dataset) -> Path:
    """Write the averaged generator in the library's own format."""
    about = {"training": {"kimg": training.kimg, "data": data.name, "data_sha256": data.sha256, "version": __version__}}
    about["training"] |= {"config": dataclasses.asdict(training.config)}
    return EigenGAN(training.averaged, name=data.name).save(folder, force=True, about=about)


def read_state(file: Path, config: TrainConfig, data: Dataset) -> dict[str, Any]:
    """Read what `save_state` wrote, without unpickling objects.

    Raises:
        UserError: where it is no such file, or belongs to another config or other data; it names what differs.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of foreign bytes raises nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{file} cannot be read: {reason}; give another state with --resume, or another --run"
        ) from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise UserError(
            f"{file} is no training state in format {STATE_FORMAT}; give another --resume, or another --run"
        )
    then, now = (_flat(json.loads(text)) for text in (state["config"], json.dumps(dataclasses.asdict(config))))
    differing = [key for key in now if then.get(key) != now[key] and key not in FREE_ON_RESUME]
    if differing:
        listed = ", ".join(f"{key} (was {then.get(key)}, now {now[key]})" for key in differing)
        raise UserError(
            f"the run at {file.parent.parent} has other settings: {listed}; give the same ones "
            f"({', '.join(FREE_ON_RESUME)} may change), or another --run"
        )
    if state["data"] != data.sha256:
        raise UserError(
            f"the run at {file.parent.parent} learnt from other images; give the same --data, or another --run"
        )
    return state


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "model"} | config["model"]


# --- what one sees ----------------------------------------------------------------------------------------------------


def traversals(generator: Generator, axes: Directions) -> Image.Image:
    """Draw one sample with each axis set to -4 ... 4 σ: a row an axis."""
    codes, steps = generator.sample(1, seed=0, truncation=0.7), range(-4, 5)
    rows = [traverse(generator, codes, axes, k, steps, absolute=True)[0] for k in range(len(axes))]
    labels = [f"{step:+d}σ" if step else "0" for step in steps]
    return images.grid(torch.cat(rows), columns=len(labels), row_labels=axes.names, column_labels=labels)


def importance_chart(names: Sequence[str], figures: dict[str, Tensor]) -> Image.Image:
    """Draw figures [k] of each axis as bars, one colour a figure, each scaled to its largest."""
    colours = ("#1f77b4", "#bbbbbb", "#ff7f0e", "#2ca02c")
    bar, left, width = 7, 60, 360
    pitch = bar * len(figures) + 6
    chart = Image.new("RGB", (left + width + 10, pitch * len(names) + 20 * len(figures) + 10), "white")
    draw = ImageDraw.Draw(chart)
    for row, (figure, values) in enumerate(figures.items()):
        draw.rectangle((left, 20 * row + 6, left + 10, 20 * row + 16), fill=colours[row])
        draw.text((left + 16, 20 * row + 5), f"{figure} (full bar: {float(values.max()):.3g})", fill="black")
    for row, name in enumerate(names):
        top = 20 * len(figures) + pitch * row + 6
        draw.text((6, top + pitch / 2 - 9), name, fill="black")
        for i, values in enumerate(figures.values()):
            share = float(values[row] / values.max().clamp(min=1e-12))
            draw.rectangle((left, top + bar * i, left + width * share, top + bar * (i + 1) - 2), fill=colours[i])
    return chart


def collapsed_layers(effects: Tensor, layers: Sequence[str]) -> list[str]:
    """Return the layers all of whose axes do less than 1 % of what the strongest axis does.

    Example:
        >>> collapsed_layers(torch.tensor([0.2, 0.1, 0.001, 0.0005]), ["layer1", "layer1", "layer2", "layer2"])
        ['layer2']
    """
    strongest = {layer: float(effects[[one == layer for one in layers]].max()) for layer in dict.fromkeys(layers)}
    return [layer for layer, effect in strongest.items() if effect < 0.01 * float(effects.max())]


def data_distance(generator: EigenGAN, data: Dataset, n: int) -> dict[int, float]:
    """Return the multi-scale sliced Wasserstein distance of `n` samples to as many images of the data."""
    n = min(n, len(data))
    chosen = runtime.generator_for(0, "distance").permutation(len(data))[:n]
    real = gather(data.images, np.sort(chosen)).contiguous()
    return multiscale_distance(real, generator.render(generator.sample(n, seed=1)))


# --- the loop ---------------------------------------------------------------------------------------------------------


def train(
    config: TrainConfig,
    *,
    data: str | Path,
    run: str | Path | None = None,
    resume: str = "auto",
    runs: str | Path = "runs",
    device: str = "auto",
    precision: runtime.Precision = "auto",
    compile: bool = False,
    threads: int | None = None,
    tensorboard: bool = False,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Train an EigenGAN.

    Args:
        config: the settings; see `PRESETS` and `configure`.
        data: training images; see `data.open_dataset`.
        run: folder of the run; by default the next free one in `runs`.
        resume: `auto` goes on where the run's folder holds a state; `none` starts anew and wants a fresh folder; a
            state file or the folder of a run: goes on from there.
        runs: where new runs go, and the decoded images, which runs share.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `auto`, `fp32` or `bf16`; `auto` is bf16 where that is faster. R1 and the losses stay in fp32.
        compile: whether to compile the networks.
        threads: of the CPU; by default one a core.
        tensorboard: whether to write TensorBoard's files too.
        log: is given each line that is told; by default they go to stderr. `log.txt` holds them in any case.

    Returns:
        The run's folder; its `last/` is the averaged generator, for `load_generator`.

    Raises:
        UserError: on settings, data or states that do not fit, and where the training diverges.
    """
    tell = log or to_stderr
    with runtime.process_group(device) as where:
        runtime.set_threads(threads)
        if where.type == "cpu":
            runtime.keep_freed_memory()
        n = runtime.world_size()
        if config.batch % n:
            raise UserError(f"a batch of {config.batch} cannot be shared by {n} processes; give a multiple of {n}")
        folder = None if run is None else Path(run)
        images_of = _open_on_all(
            Path(data), config.model, cache=(folder.parent if folder else Path(runs)) / "data", tell=tell
        )
        folder, state_file = _choose_run(folder, resume, Path(runs), images_of.name)
        precision = runtime.resolve_precision(precision, where)
        training = Training(config, device=where, precision=precision, compiled=compile)
        past = Past()
        if state_file:
            state = read_state(state_file, config, images_of)
            training.load_state_dict(state)
            past = Past(state["seconds"], state["distances"])
        journal = None
        if runtime.rank() == 0:
            journal = _Journal(folder, tell, training, tensorboard=tensorboard)
            about = {"device": str(where), "precision": precision, "threads": torch.get_num_threads()}
            journal.begin(images_of, Path(data), machine=about, is_resumed=state_file is not None)
        with runtime.stop_requested() as stop:
            _loop(training, images_of, folder, journal, past, stop)
        return folder


@dataclass
class Past:
    """What a resumed run knows of the time before."""

    seconds: float = 0.0
    distances: list[float] = field(default_factory=list)
    """Every distance to the data so far."""


def _loop(
    training: Training, data: Dataset, run: Path, journal: _Journal | None, past: Past, stop: threading.Event
) -> None:
    """Take steps until the end or until asked to stop; the first process (with a journal) tells, shows and saves."""
    config, n_before = training.config, training.step
    begun = saved = time.monotonic()
    figures: list[Tensor] = []
    while training.step < config.n_steps and not runtime.any_process(stop.is_set(), training.device):
        figures.append(training.take_step(training.reals(data), training.latents()))
        is_last = training.step == config.n_steps
        is_tick = is_last or _crosses(training.step, config.batch, config.tick_kimg)
        is_watch = is_last or bool(config.watch_kimg and _crosses(training.step, config.batch, config.watch_kimg))
        if is_tick or is_watch or training.device.type == "cpu":  # elsewhere reading a figure waits for the device
            check_finite(training, figures[-1].tolist(), run, weights=is_tick or is_watch)
        seconds = past.seconds + time.monotonic() - begun
        if journal and is_tick:
            speed = (training.step - n_before) * config.batch / 1000 / (time.monotonic() - begun)
            journal.tick(torch.stack(figures).nanmean(0).tolist(), seconds=seconds, speed=speed)
        if is_tick:
            figures.clear()
        if journal and is_watch:
            past.distances += journal.watch(data, past.distances)
            if config.stop_when_flat and has_stopped_improving(past.distances, patience=config.patience):
                stop.set()
        if journal and time.monotonic() - saved > config.save_seconds:
            save_state(training, run, data=data, past=dataclasses.replace(past, seconds=seconds))
            saved = time.monotonic()
    if journal:
        past.seconds += time.monotonic() - begun
        save_state(training, run, data=data, past=past)
        journal.end()


def check_finite(training: Training, figures: Sequence[float], run: Path, *, weights: bool = True) -> None:
    """Raise UserError where a figure or a weight is not a number, naming what to do and the last good state."""
    named = zip(FIGURES, figures, strict=False)
    wrong = [name for name, value in named if math.isinf(value) or (math.isnan(value) and name != "r1")]
    if not wrong and (not weights or training.is_finite()):
        return
    what = f"the {wrong[0].replace('_', ' ')}" if wrong else "a weight"
    last = run / "last" / STATE
    good = f"the last good state is {last}" if last.exists() else "nothing had been saved yet"
    raise UserError(
        f"{what} became NaN or infinite in step {training.step} ({training.kimg:.1f} kimg); {good}; "
        "start again with a smaller --learning-rate or --r1-weight, or --precision fp32"
    )


def _open_on_all(path: Path, model: EigenGANConfig, *, cache: Path, tell: Callable[[str], None]) -> Dataset:
    """Open the data on every process; the first decodes while the others wait."""
    if runtime.rank() > 0:
        dist.barrier()
    data = open_dataset(path, resolution=model.resolution, channels=model.channels, cache=cache, log=tell)
    if runtime.rank() == 0 and runtime.world_size() > 1:
        dist.barrier()
    return data


def _crosses(step: int, batch: int, every_kimg: float) -> bool:
    """Tell whether step number `step` reached another multiple of `every_kimg`."""
    before, after = ((n * batch / 1000 / every_kimg + 1e-9) // 1 for n in (step - 1, step))
    return after > before


def to_stderr(line: str) -> None:
    """Tell the user a line."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _choose_run(run: Path | None, resume: str, runs: Path, name: str) -> tuple[Path, Path | None]:
    """Settle the run's folder and the state to go on from, the same on all processes."""
    state = None
    if resume not in ("auto", "none"):
        state = Path(resume)
        state = next((place for place in (state, state / STATE, state / "last" / STATE) if place.is_file()), None)
        if state is None:
            raise UserError(f"{resume} holds no {STATE}; give auto, none, a run's folder or a state file")
        if run is None and state.parent.name == "last":
            run = state.parent.parent
    if run is None:
        chosen = [str(new_run(runs, name)) if runtime.rank() == 0 else ""]
        if runtime.world_size() > 1:
            dist.broadcast_object_list(chosen)
        run = Path(chosen[0])
    own = run / "last" / STATE
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; choose a folder for the run")
    if own.exists() and resume == "none":
        raise UserError(f"{run} holds a run already; choose another --run, or pass --resume auto to go on")
    if own.exists() and state and own.resolve() != state.resolve():
        raise UserError(f"{run} holds another run already; choose another --run to go on from {state}")
    return run, state or (own if own.exists() else None)


class _Journal:
    """Write what one sees of a run: lines, `metrics.jsonl`, pictures; on the first process."""

    def __init__(self, run: Path, tell: Callable[[str], None], training: Training, *, tensorboard: bool) -> None:
        self.run, self.training, self._tell = run, training, tell
        self.config = training.config
        run.mkdir(parents=True, exist_ok=True)
        self.bar: Any = None
        self.board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError("TensorBoard needs the extra 'logging': pip install 'eigenlens[logging]'") from error
            self.board = SummaryWriter(str(run))

    @property
    def kimg(self) -> float:
        """Thousands of images so far."""
        return self.training.kimg

    def tell(self, line: str) -> None:
        """Say a line to the user, and keep it in `log.txt`."""
        with open(self.run / "log.txt", "a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self.bar is not None:
            self.bar.clear()
        self._tell(line)

    def begin(self, data: Dataset, path: Path, *, machine: dict[str, Any], is_resumed: bool) -> None:
        """Write `config.yaml`, and cut from `metrics.jsonl` what came after the state that is resumed."""
        import yaml

        about = {
            "config": json.loads(json.dumps(dataclasses.asdict(self.config))),
            "data": {"path": str(path), "name": data.name, "n": len(data), "sha256": data.sha256},
            "machine": machine | {"processes": runtime.world_size()},
            "version": __version__,
        }
        write_text(self.run / "config.yaml", yaml.safe_dump(about, sort_keys=False, allow_unicode=True), force=True)
        for leftover in (self.run / "last").glob(f".{Path(STATE).stem}-*"):
            leftover.unlink()  # of a process that was killed while writing
        metrics = self.run / "metrics.jsonl"
        if metrics.exists():
            kept = [line for line in metrics.read_text("utf-8").splitlines() if _kimg_of(line) <= self.kimg]
            write_text(metrics, "".join(line + "\n" for line in kept), force=True)
        sizes = [
            sum(p.numel() for p in network.parameters())
            for network in (self.training.generator, self.training.discriminator)
        ]
        what = f"going on at {self.kimg:.1f} kimg" if is_resumed else "training"
        self.tell(
            f"{what} in {self.run}: {len(data):,} images of {data.name}, {self.config.model.resolution} px; "
            f"{sizes[0]:,} + {sizes[1]:,} parameters; {machine['device']}, {machine['precision']}, "
            f"batch {self.config.batch}, to {self.config.kimg:g} kimg"
        )
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=self.config.kimg, initial=self.kimg, unit="kimg", dynamic_ncols=True, leave=False)

    def tick(self, means: Sequence[float], *, seconds: float, speed: float) -> None:
        """Write the mean figures since the last tick, and say how long it will take."""
        figures = {name: mean for name, mean in zip(FIGURES, means, strict=True) if math.isfinite(mean)}
        subspaces = self.training.generator.subspaces()
        norms = [_gradient_norm(network) for network in (self.training.discriminator, self.training.generator)]
        with torch.no_grad():
            line = {
                "kimg": round(self.kimg, 3),
                "seconds": round(seconds, 2),
                **figures,
                "discriminator_gradient": norms[0],
                "generator_gradient": norms[1],
                "importance": [subspace.importance.tolist() for subspace in subspaces],
                "orthogonality_error": [float(subspace.orthogonality_error()) for subspace in subspaces],
            }
        self.write(line)
        left = (self.config.kimg - self.kimg) / max(speed, 1e-9)
        losses = f"D {figures['discriminator_loss']:.3f}  G {figures['generator_loss']:.3f}"
        losses += f"  R1 {figures['r1']:.4f}" if "r1" in figures else ""
        text = f"{self.kimg:8.1f} kimg  {clock(seconds)}  {speed:.3f} kimg/s  {clock(left)} left  {losses}"
        if self.bar is not None:
            self.bar.n = self.kimg
            self.bar.set_postfix_str(losses)
        self.tell(text)

    def watch(self, data: Dataset, distances: list[float]) -> list[float]:
        """Draw samples, traversals and importances, measure the distance to the data; return its mean, in a list."""
        # the averaged weights change under an EigenGAN, which keeps what it computed from them: a new one each time
        generator = EigenGAN(self.training.averaged, name=data.name)
        place = f"{self.kimg:08.1f}"
        for sigma in (0.5, 1.0):
            tiles = generator.render(generator.sample(48, seed=0, truncation=sigma))
            images.save(images.grid(tiles, columns=8), self.run / "samples" / f"{place}-sigma{sigma}.png", force=True)
        axes, layers = METHODS["eigen"](measured=False).fit(generator), generator.own_axes().layers
        effects = measure_effect(generator, axes, n=EFFECT_SAMPLES)
        images.save(traversals(generator, axes), self.run / "traversals" / f"{place}.png", force=True)
        bars = {"share of |L||u|": axes.fields["importance"], "at the start": axes.fields["importance_at_init"]}
        chart = importance_chart(axes.names, bars | {"measured effect": effects})
        images.save(chart, self.run / "traversals" / f"{place}-importance.png", force=True)
        effect_of = dict(zip(axes.names, effects.tolist(), strict=True))
        line: dict[str, Any] = {"kimg": round(self.kimg, 3), "effect": effect_of}
        for layer in collapsed_layers(effects, layers):
            self.tell(f"WARNING: the subspace of {layer} does next to nothing: every axis under 1 % of the strongest")
        found: list[float] = []
        if self.config.distance_images:
            levels = data_distance(generator, data, self.config.distance_images)
            found = [sum(levels.values()) / len(levels)]
            line["sliced_wasserstein"] = {str(size): value for size, value in levels.items()} | {"mean": found[0]}
            shown = "  ".join(f"{size} px {value:.1f}" for size, value in levels.items())
            self.tell(f"{self.kimg:8.1f} kimg  sliced Wasserstein x 1e3: {shown}  mean {found[0]:.1f}")
            if has_stopped_improving(distances + found, patience=self.config.patience):
                self.tell(f"{self.kimg:8.1f} kimg  the distance has been flat for {self.config.patience} measurements")
        self.write(line)
        return found

    def write(self, line: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`, and its numbers to TensorBoard."""
        with open(self.run / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in _scalars(line):
                self.board.add_scalar(name, value, round(1000 * self.kimg))

    def end(self) -> None:
        """Say where the result is, and how to go on."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        is_done = self.training.step >= self.config.n_steps
        done = "done" if is_done else f"stopped; to go on, give the same command with --run {self.run} --resume auto"
        self.tell(f"{self.kimg:8.1f} kimg  {done}; the generator is in {self.run / 'last'}")
        if self.board is not None:
            self.board.close()


def _kimg_of(line: str) -> float:
    try:
        return float(json.loads(line)["kimg"])
    except (ValueError, KeyError, TypeError):  # cut off when the process was killed
        return math.inf


def _scalars(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Walk a nested line of figures as (path, number)."""
    for key, value in line.items():
        for name, leaf in _scalars(dict(enumerate(value, start=1))) if isinstance(value, list) else [("", value)]:  # type: ignore[arg-type]
            if isinstance(leaf, dict):
                yield from _scalars(leaf, f"{prefix}{key}/")
            else:
                yield f"{prefix}{key}{'/' + name if name else ''}", float(leaf)


def _gradient_norm(network: nn.Module) -> float:
    return float(torch.stack(torch._foreach_norm([p.grad for p in network.parameters() if p.grad is not None])).norm())


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds, such as `1:02:03`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
