"""Training an EigenGAN: the settings, the discriminator, the losses and the step; `run.py` has the loop.

Source:
    He, Kan, Shan, EigenGAN, ICCV 2021 (arXiv 2104.12476), and the authors' code; where that and the ports disagree,
    `TrainConfig` has a field.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from .. import images, runtime
from ..directions import Directions
from ..effect import measure_effect, traverse
from ..errors import unknown_name
from ..generator import Generator
from ..generators.eigengan import BASE, SLOPE, EigenGAN, EigenGANConfig, EigenGANNetwork, he_normal_
from ..method import METHODS
from .adversaries import Adversaries, RunConfig, overridden, r1_penalty
from .judge import JUDGES, Judge
from .run import conduct
from .widen import widened

EFFECT_SAMPLES = 16  # of each measurement while training
AUGMENTATIONS = ("color", "translation", "cutout")
FLOOR_STRIDE = 4  # one image in so many is generated again to see what a layer does


# --- settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """What fixes a training run, apart from its data."""

    model: EigenGANConfig = field(default_factory=EigenGANConfig)
    """The shape of the generator; the discriminator follows from it."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Decay of Adam's two moments."""
    r1_interval: int = 3
    """Steps from one R1 to the next; 0 leaves it out."""
    ema_half_life: float = 44.33
    """Half-life in kimg of the averaged copy of the generator, which is the one that is kept."""
    flip: bool = True
    """Whether real images are mirrored at random."""
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
    r1_scaled: bool = True
    """Whether R1 is multiplied by its interval, so that its mean weight does not depend on it (the authors' code)."""
    judge: str = "none"
    """A second discriminator: `features` of EfficientNet-Lite0 in place of pixels, or `toonfaces`, which looks at parts
    of toon faces, upright and at their usual size. `none`, as published, has none."""
    judge_weight: float = 0.05
    """Weight of its scores in the generator's loss."""
    judge_from_kimg: float = 0.0
    """When it begins."""
    judge_until_kimg: float = 0.0
    """When it ceases, so that the first has the last word on texture; 0: never."""
    augment: tuple[str, ...] = ()
    """Differentiable augmentations of what the discriminator sees: `color`, `translation`, `cutout`; for small sets."""

    least: ClassVar[dict[str, float]] = RunConfig.least | {
        "orthogonality_weight": 0, "effect_floor": 0, "information_weight": 0, "r1_weight": 0,
        "judge_weight": 0, "judge_from_kimg": 0, "judge_until_kimg": 0,
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "augment", tuple(self.augment))
        for name, allowed in (
            ("generator_loss", ("hinged", "linear", "non-saturating")),
            ("orthogonality_reduction", ("half-sum", "mean", "mean-of-layers")),
            ("judge", ("none", *JUDGES)),
        ):
            if getattr(self, name) not in allowed:
                raise unknown_name(name, getattr(self, name), allowed)
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise unknown_name("augmentation", name, AUGMENTATIONS)


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
    made: TrainConfig = overridden(PRESETS[preset], **overrides)
    return made


# --- the discriminator ------------------------------------------------------------------------------------------------


class Discriminator(nn.Module):
    """The published discriminator: convolutions and leaky ReLUs down to 4x4, then two linear layers; no normalisation.

    Args:
        config: of the generator; both have the same widths.
        reads_codes: whether it also reads the z of all layers off images, as InfoGAN's does.
        judge: name of a second one in `JUDGES`, or `none`.

    Source:
        The authors' code: 7x7; at each resolution a 3x3 and a 3x3 of stride 2; 3x3; a linear layer as wide as the
        deepest feature map, and one that gives the score.
    """

    def __init__(self, config: EigenGANConfig, *, reads_codes: bool = False, judge: str = "none") -> None:
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
        self.second: Judge | None = None if judge == "none" else JUDGES[judge]()

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
    means = torch.stack([error / max(q, 1) ** 2 for error, q in zip(errors, network.config.bases, strict=True)])
    return means.sum() if reduction == "mean" else means.mean()


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


class Training(Adversaries):
    """Everything that a step changes: both networks, their optimisers, the averaged generator.

    Several processes average their gradients by hand, in one flat buffer: with two updates that share one batch of
    generated images and a lazy R1, that is shorter than the wrapper's rules, and as fast at these sizes.

    Args:
        config: the settings.
        device: where to train.
        precision: `fp32`, or `bf16` for the convolutions and matrix products of all but R1.
        compiled: whether to compile both networks (R1 needs second derivatives and is never compiled).
    """

    family = "eigengan"
    joining = ("second.", "code.")
    widths = ("base_channels", "max_channels", "widths")
    config: TrainConfig
    generator: EigenGANNetwork
    discriminator: Discriminator
    averaged: EigenGANNetwork

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
            self.discriminator = Discriminator(
                config.model, reads_codes=config.information_weight > 0, judge=config.judge
            )
        for network in (self.generator, self.discriminator):
            network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.generator).eval().requires_grad_(False)
        fused = device.type in ("cpu", "cuda")
        self.generator_optimiser, self.discriminator_optimiser = (
            torch.optim.Adam(network.parameters(), config.learning_rate, config.betas, fused=fused)
            for network in (self.generator, self.discriminator)
        )
        self.generate: Callable[[Tensor], Tensor] = self.generator
        self.discriminate: Callable[[Tensor], tuple[Tensor, Tensor | None]] = self.discriminator.judged
        if compiled:
            self.generate = torch.compile(self.generator)
            self.discriminate = torch.compile(self.discriminator.judged)

    def latents(self) -> Tensor:
        """Draw this process's share of the latents of this step, [batch / processes, dim]."""
        return self.drawn(self.config.model.dim)

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
            scores, guess = self.discriminate(seen)
        of_real, of_fake = _at_least_float(scores).chunk(2)
        loss = discriminator_loss(of_real, of_fake, config.generator_loss)
        total = loss
        for judged in self._judged(seen):
            judged_real, judged_fake = judged.chunk(2)
            total = total + discriminator_loss(judged_real, judged_fake, config.generator_loss)
        if guess is not None:
            total = total + self._misreading(guess[len(real) :], latent)
        total.backward()
        r1 = loss.new_full((), math.nan)
        if config.r1_interval and self.step % config.r1_interval == 0:
            r1 = r1_penalty(self.discriminator, seen[: len(real)])
            (r1 * config.r1_weight * (config.r1_interval if config.r1_scaled else 1)).backward()
        runtime.average([p.grad for p in self.discriminator.parameters() if p.grad is not None])
        self.advance(self.discriminator_optimiser)

        self.generator_optimiser.zero_grad(set_to_none=True)
        self.discriminator.requires_grad_(False)
        seen = self._augmented(fake, "generator")
        with self._mixed():
            scores, guess = self.discriminate(seen)
        g_loss = generator_loss(_at_least_float(scores), config.generator_loss)
        total = g_loss
        for judged in self._judged(seen):
            total = total + config.judge_weight * generator_loss(judged, config.generator_loss)
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
        self.advance(self.generator_optimiser)

        self.follow()
        self.step += 1
        return figures

    def _judged(self, images: Tensor) -> list[Tensor]:
        """Return the scores [batch, places] of the second discriminator in each of its ways; none while it rests."""
        until = self.config.judge_until_kimg or math.inf
        if self.discriminator.second is None or not self.config.judge_from_kimg <= self.kimg < until:
            return []
        with self._mixed():
            scores = self.discriminator.second(images)
        return [_at_least_float(each) for each in scores]

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
        moved[:, start : start + model.bases[layer]] = self.drawn(model.bases[layer], "floor")[::FLOOR_STRIDE]
        with torch.no_grad():  # it mostly lies above the floor, where no gradient is asked for
            over_all = self._change(fake, moved)
        runtime.average([over_all])  # one process or many: the same side of the floor
        if over_all >= self.config.effect_floor:
            return fake.new_zeros(())
        return 1 - self._change(fake, moved) / self.config.effect_floor

    def _change(self, fake: Tensor, moved: Tensor) -> Tensor:
        """Return how far images of latents `moved` are from every fourth of `fake`: root mean square, their mean."""
        with self._mixed():
            other = self.generate(moved)
        difference = _at_least_float(other) - _at_least_float(fake[::FLOOR_STRIDE])
        return difference.square().mean((1, 2, 3)).add(1e-8).sqrt().mean()  # a root has no slope at 0

    def _augmented(self, images: Tensor, whose: str) -> Tensor:
        if not self.config.augment:
            return images
        rng = runtime.generator_for(self.config.seed, f"augment/{whose}", self.step)
        n = self.config.batch
        draws = rng.random((len(images) * runtime.world_size() // n, n, 7), np.float32)  # reals and fakes: two sets
        return augmented(images, self.config.augment, torch.from_numpy(draws[:, runtime.share(n)]).flatten(0, 1))

    def as_generator(self, name: str) -> EigenGAN:
        """Return the averaged network as a Generator."""
        return EigenGAN(self.averaged, name=name)

    def widened(self, weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
        """Return weights for `network`, one of the two as drawn, that compute what narrower ones do."""
        return widened(weights, network)

    @torch.no_grad()
    def figures(self) -> dict[str, Any]:
        """Return L and ‖UᵀU − I‖² of each subspace."""
        subspaces = self.generator.subspaces()
        return {
            "importance": [subspace.importance.tolist() for subspace in subspaces],
            "orthogonality_error": [float(subspace.orthogonality_error()) for subspace in subspaces],
        }

    def show(self, generator: Generator, run: Path, place: str) -> tuple[dict[str, Any], list[str]]:
        """Draw traversals and importances; return the effect of each axis, and a warning for each collapsed layer."""
        if not any(self.config.model.bases):
            return {}, []
        axes, layers = METHODS["eigen"](measured=False).fit(generator), generator.own_axes().layers
        effects = measure_effect(generator, axes, n=EFFECT_SAMPLES)
        images.save(traversals(generator, axes), run / "traversals" / f"{place}.png", force=True)
        bars = {"share of |L||u|": axes.fields["importance"], "at the start": axes.fields["importance_at_init"]}
        chart = importance_chart(axes.names, bars | {"measured effect": effects})
        images.save(chart, run / "traversals" / f"{place}-importance.png", force=True)
        warning = "WARNING: the subspace of {} does next to nothing: every axis under 1 % of the strongest"
        told = [warning.format(layer) for layer in collapsed_layers(effects, layers)]
        return {"effect": dict(zip(axes.names, effects.tolist(), strict=True))}, told


def _at_least_float(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype == torch.bfloat16 else scores


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


def strongest_of(effects: Tensor, layers: Sequence[str]) -> dict[str, float]:
    """Return the strongest effect of each layer, for effects [k] of axes and the layer of each."""
    return {layer: float(effects[[one == layer for one in layers]].max()) for layer in dict.fromkeys(layers)}


def collapsed_layers(effects: Tensor, layers: Sequence[str]) -> list[str]:
    """Return the layers all of whose axes do less than 1 % of what the strongest axis does.

    Example:
        >>> collapsed_layers(torch.tensor([0.2, 0.1, 0.001, 0.0005]), ["layer1", "layer1", "layer2", "layer2"])
        ['layer2']
    """
    return [layer for layer, effect in strongest_of(effects, layers).items() if effect < 0.01 * float(effects.max())]


# --- the loop ---------------------------------------------------------------------------------------------------------


def train(config: TrainConfig, *, data: str | Path, compile: bool = False, **how: Any) -> Path:
    """Train an EigenGAN.

    Args:
        config: the settings; see `PRESETS` and `configure`.
        data: training images; see `data.open_dataset`.
        compile: whether to compile the networks.
        how: `run`, `resume`, `runs`, `start`, `start_discriminator`, `device`, `precision`, `threads`, `tensorboard`,
            `log`, as `run.conduct` takes them.

    Returns:
        The run's folder; its `last/` is the averaged generator, for `load_generator`.

    Raises:
        UserError: on settings, data or states that do not fit, and where the training diverges.
    """

    def make(device: torch.device, precision: str) -> Training:
        return Training(config, device=device, precision=precision, compiled=compile)

    return conduct(make, config, family=Training.family, data=data, **how)
