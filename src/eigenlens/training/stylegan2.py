"""Training a small StyleGAN2: the settings, the discriminator and the step; `run.py` has the loop.

The network that is trained is the one that is read: finished weights, without the run-time factors of equalised
learning rates. A weight that is c times a raw one moves, under Adam, by c times the raw one's step, so equalised
learning rates are learning rates of their own, one a tensor. That is the same but for Adam's epsilon.

Source:
    Karras et al., StyleGAN2, CVPR 2020 (arXiv 1912.04958), and its small configuration for 32 px in StyleGAN2-ADA
    (2020, arXiv 2006.06676): non-saturating loss, lazy R1, no mixing of styles, no path lengths, two mapping layers.
    Here the discriminator halves with strides and averages instead of a 4-tap filter, which is faster on a CPU.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import runtime
from ..errors import UserError, unknown_name
from ..generators.ops import demodulation, doubled, upfirdn
from ..generators.stylegan2 import BASE, StyledConvolution, StyleGAN2, StyleGAN2Config, StyleGAN2Network
from .adversaries import Adversaries, RunConfig, overridden, r1_penalty
from .run import conduct

SLOPE, GAIN = 0.2, math.sqrt(2.0)  # of every leaky ReLU
GROUP = 4  # images whose spread the discriminator sees together
W_AVG_DECAY = 0.995  # of the mean of w, a step


# --- settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmallStyleGAN2:
    """The shape of a StyleGAN2 and of its discriminator."""

    resolution: int = 32
    """Height and width of an image in pixels: a power of two from 8 to 1024."""
    channels: int = 3
    """Channels of an image: 1 (grey) or 3 (RGB)."""
    channel_base: int = 512
    """Channels of a feature map are this by its resolution ..."""
    channel_max: int = 64
    """... and at most these."""
    z_dim: int = 64
    """Length of z."""
    w_dim: int = 64
    """Length of w, and width of the mapping network."""
    n_mapping: int = 2
    """Layers of the mapping network."""

    def __post_init__(self) -> None:
        levels = self.resolution.bit_length() - 1
        if self.resolution != 2**levels or not 3 <= levels <= 10:
            raise UserError(f"resolution {self.resolution} is not possible; allowed: 8, 16, 32, 64, 128, ..., 1024")
        if self.channels not in (1, 3):
            raise UserError(f"channels {self.channels} is not possible; allowed: 1, 3")
        whole = (self.channel_max, self.z_dim, self.w_dim, self.n_mapping, self.channel_base // self.resolution)
        if min(whole) < 1:
            raise UserError(
                "channel_max, z_dim, w_dim and n_mapping are whole numbers from 1, and channel_base from the resolution"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at 4, 8, 16, ... pixels."""
        sizes = [BASE * 2**level for level in range(int(math.log2(self.resolution // BASE)) + 1)]
        return tuple(min(self.channel_base // size, self.channel_max) for size in sizes)

    def generator(self) -> StyleGAN2Config:
        """Return the config of the generator."""
        mapping = (self.w_dim,) * self.n_mapping
        return StyleGAN2Config(self.widths, mapping, z_dim=self.z_dim, channels=self.channels)


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """What fixes a training run, apart from its data."""

    model: SmallStyleGAN2 = field(default_factory=SmallStyleGAN2)
    """The shape of both networks."""
    learning_rate: float = 2.5e-3
    """Learning rate of Adam before it is equalised, for both networks."""
    mapping_rate: float = 0.01
    """Factor on the learning rate of the mapping network."""
    r1_gamma: float = 0.1
    """Weight of R1, ½ γ times the mean of ‖∇D(x)‖² over real images, times `r1_interval`."""

    least: ClassVar[dict[str, float]] = RunConfig.least | {"r1_gamma": 0, "mapping_rate": 0}


PRESETS: dict[str, TrainConfig] = {
    "stylegan2-32": TrainConfig(),
    "stylegan2-tiny-8": TrainConfig(
        model=SmallStyleGAN2(8, channel_base=32, channel_max=8, z_dim=4, w_dim=6),
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

    Raises:
        UserError: on an unknown preset or field, or a value that is not possible.

    Example:
        >>> configure("stylegan2-32", kimg=60, w_dim=32).model.w_dim
        32
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    made: TrainConfig = overridden(PRESETS[preset], **overrides)
    return made


# --- the networks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensors:
    """How a tensor begins and learns."""

    parameter: nn.Parameter
    """The tensor."""
    spread: float
    """Standard deviation at the start."""
    mean: float
    """Mean at the start."""
    rate: float
    """Factor on the learning rate: what equalised learning rates multiply the raw tensor with."""


def of_generator(network: StyleGAN2Network, mapping_rate: float) -> Iterator[Tensors]:
    """Say how every tensor of a generator begins and learns (StyleGAN2, appendix B; Karras 2018, section 4.1)."""
    for name, parameter in network.named_parameters():
        if name.startswith("mapping."):
            scale = GAIN / math.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else GAIN
            yield Tensors(parameter, scale if parameter.ndim > 1 else 0.0, 0.0, mapping_rate * scale)
        elif name.endswith("const"):
            yield Tensors(parameter, 1.0, 0.0, 1.0)
        elif name.endswith("affine.bias"):
            yield Tensors(parameter, 0.0, 1.0, 1.0)
        elif parameter.ndim > 1:
            yield _weight(parameter)
        else:
            yield Tensors(parameter, 0.0, 0.0, 1.0)  # biases and strengths of noise


def of_discriminator(network: nn.Module) -> Iterator[Tensors]:
    """Say how every tensor of a discriminator begins and learns."""
    for parameter in network.parameters():
        yield _weight(parameter) if parameter.ndim > 1 else Tensors(parameter, 0.0, 0.0, 1.0)


def _weight(parameter: nn.Parameter) -> Tensors:
    scale = 1.0 / math.sqrt(parameter[0].numel())
    return Tensors(parameter, scale, 0.0, scale)


@torch.no_grad()
def begin(tensors: Sequence[Tensors]) -> None:
    """Draw the initial weights."""
    for each in tensors:
        each.parameter.normal_(each.mean, each.spread)


def equalised_adam(tensors: Sequence[Tensors], rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """Make an Adam with the learning rate of each tensor."""
    groups: dict[float, list[nn.Parameter]] = {}
    for each in tensors:
        groups.setdefault(each.rate * rate, []).append(each.parameter)
    fused = tensors[0].parameter.device.type in ("cpu", "cuda")
    return torch.optim.Adam([{"params": p, "lr": lr} for lr, p in groups.items()], betas=betas, fused=fused)


def synthesise(network: StyleGAN2Network, w: Tensor, noise: Sequence[Tensor]) -> Tensor:
    """Return images [batch, channels, r, r] for w [batch, w_dim]: what the frozen network gives, with gradients.

    Args:
        network: of architecture `skip`.
        w: from `network.mapping`.
        noise: [batch or 1, 1, resolution, resolution] for each convolution, in order.
    """
    taps = w.new_tensor(network.config.taps)
    maps = iter(noise)
    x: Tensor | None = None
    image: Tensor | None = None
    for each in network.config.layers():
        layer: Any = network.get_submodule(each.layer)
        style = layer.affine(w).float()
        if not isinstance(layer, StyledConvolution):
            assert x is not None
            rgb = F.conv2d(x * style[:, :, None, None].to(x.dtype), layer.weight, layer.bias).float()
            image = rgb if image is None else doubled(image, taps) + rgb
            continue
        if x is None:
            const: Any = network.get_submodule("b4").const
            x = const.expand(len(w), -1, -1, -1)
        x = x * style[:, :, None, None].to(x.dtype)
        if layer.doubles:
            x = F.conv_transpose2d(x, layer.weight.transpose(0, 1), stride=2)
            x = upfirdn(x, taps, padding=(1, 1, 1, 1), gain=4.0)
        else:
            x = F.conv2d(x, layer.weight, padding=1)
        factor = demodulation(style, layer.weight.square().sum((2, 3)))
        x = torch.addcmul(layer.bias[:, None, None].to(x.dtype), x, factor[:, :, None, None].to(x.dtype))
        assert layer.strength is not None
        x = F.leaky_relu(x + (next(maps) * layer.strength).to(x.dtype), SLOPE) * GAIN
    assert image is not None
    return image


class Discriminator(nn.Module):
    """A residual discriminator that sees the spread of a few images together.

    Args:
        config: of both networks.

    Source:
        StyleGAN2, figure 7c; spread of a group: Karras 2018, section 3.
    """

    def __init__(self, config: SmallStyleGAN2) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.from_rgb = nn.Conv2d(config.channels, widths[0], 1)
        pairs = list(itertools.pairwise(widths))
        self.same = nn.ModuleList(nn.Conv2d(before, before, 3, padding=1) for before, _ in pairs)
        self.down = nn.ModuleList(nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairs)
        self.skip = nn.ModuleList(nn.Conv2d(before, after, 1, bias=False) for before, after in pairs)
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.hidden = nn.Linear(BASE * BASE * widths[-1], widths[-1])
        self.score = nn.Linear(widths[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores [batch] for images [batch, channels, resolution, resolution]; real ones are to score high.

        A group is every (batch / `GROUP`)-th image; a batch that `GROUP` does not divide is one group.
        """
        h = _activated(self.from_rgb(images))
        for same, down, skip in zip(self.same, self.down, self.skip, strict=True):
            h = (_activated(down(_activated(same(h)))) + skip(F.avg_pool2d(h, 2))) * math.sqrt(0.5)
        h = torch.cat([h, _spread(h)], dim=1)
        h = _activated(self.last(h)).permute(0, 2, 3, 1).flatten(1)
        return self.score(_activated(self.hidden(h))).squeeze(1)


def _activated(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE) * GAIN


def _spread(h: Tensor) -> Tensor:
    """Return the mean standard deviation within each image's group, as a channel [batch, 1, height, width]."""
    size = GROUP if len(h) % GROUP == 0 else len(h)
    groups = h.float().unflatten(0, (size, -1))
    deviation = (groups.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))  # [groups]
    return deviation.repeat(size)[:, None, None, None].expand(-1, 1, *h.shape[2:]).to(h.dtype)


# --- one step ---------------------------------------------------------------------------------------------------------


class Training(Adversaries):
    """Everything that a step changes: both networks, their optimisers, the averaged generator and its mean of w.

    Args:
        config: the settings.
        device: where to train.
        precision: `fp32`, or `bf16` for the convolutions and matrix products of all but R1.
    """

    family = "stylegan2"
    config: TrainConfig
    generator: StyleGAN2Network
    averaged: StyleGAN2Network

    def __init__(self, config: TrainConfig, *, device: torch.device, precision: str = "fp32") -> None:
        self.config, self.device, self.is_mixed, self.step = config, device, precision == "bf16", 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.generator = StyleGAN2Network(config.model.generator())
            self.discriminator = Discriminator(config.model)
            begin(list(of_generator(self.generator, config.mapping_rate)))
            begin(list(of_discriminator(self.discriminator)))
            for layer in self._noisy():
                assert layer.noise is not None
                layer.noise.normal_()
        assert isinstance(self.generator.w_avg, Tensor)
        self.generator.w_avg.zero_()
        for network in (self.generator, self.discriminator):
            network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.generator).eval().requires_grad_(False)
        lazy = config.r1_interval / (config.r1_interval + 1) if config.r1_interval else 1.0  # StyleGAN2, appendix B
        beta1, beta2 = config.betas
        self.generator_optimiser = equalised_adam(
            list(of_generator(self.generator, config.mapping_rate)), config.learning_rate, config.betas
        )
        self.discriminator_optimiser = equalised_adam(
            list(of_discriminator(self.discriminator)), config.learning_rate * lazy, (beta1**lazy, beta2**lazy)
        )

    def _noisy(self) -> list[StyledConvolution]:
        return [layer for layer in self.generator.modules() if isinstance(layer, StyledConvolution)]

    @property
    def mine(self) -> slice:
        """Which rows of a batch belong to this process: every n-th, for whole groups of the discriminator."""
        return slice(runtime.rank(), None, runtime.world_size())

    def latents(self) -> Tensor:
        """Draw this process's share of the z of this step, [batch / processes, z_dim]."""
        return self.drawn(self.config.model.z_dim)

    def _noise(self) -> list[Tensor]:
        """Draw the noise of this step, [batch / processes, 1, r, r] a convolution."""
        sizes = [layer.resolution for layer in self._noisy()]
        rows = self.drawn(sum(size**2 for size in sizes), "noise").split([size**2 for size in sizes], dim=1)
        return [row.view(-1, 1, size, size) for row, size in zip(rows, sizes, strict=True)]

    def take_step(self, real: Tensor, latent: Tensor) -> Tensor:
        """Update the discriminator, the generator, its average and the mean of w on one batch.

        One batch of images serves both updates; the generator's sees the discriminator that has just been updated.

        Args:
            real: [batch, channels, resolution, resolution] in [-1, 1].
            latent: z [batch, z_dim].

        Returns:
            The means named in `adversaries.FIGURES`, [5], over all processes; R1 is NaN where it was left out.
        """
        config = self.config
        w = self.generator.mapping(latent)
        with self._mixed():
            fake = synthesise(self.generator, w, self._noise())

        self.discriminator_optimiser.zero_grad(set_to_none=True)
        with self._mixed():  # apart, since the discriminator looks at several images together
            of_real, of_fake = self.discriminator(real).float(), self.discriminator(fake.detach()).float()
        loss = F.softplus(-of_real).mean() + F.softplus(of_fake).mean()
        loss.backward()
        r1 = loss.new_full((), math.nan)
        if config.r1_interval and self.step % config.r1_interval == 0:
            r1 = r1_penalty(self.discriminator, real)
            (r1 * (0.5 * config.r1_gamma * config.r1_interval)).backward()
        runtime.average([p.grad for p in self.discriminator.parameters() if p.grad is not None])
        self.advance(self.discriminator_optimiser)

        self.generator_optimiser.zero_grad(set_to_none=True)
        self.discriminator.requires_grad_(False)
        with self._mixed():
            scores = self.discriminator(fake).float()
        g_loss = F.softplus(-scores).mean()
        g_loss.backward()
        self.discriminator.requires_grad_(True)
        figures = torch.stack([loss, g_loss, r1, of_real.mean(), of_fake.mean()]).detach()
        mean_w = w.detach().mean(0)
        runtime.average([*[p.grad for p in self.generator.parameters() if p.grad is not None], figures, mean_w])
        self.advance(self.generator_optimiser)

        self.follow()
        with torch.no_grad():
            assert isinstance(self.averaged.w_avg, Tensor)
            self.averaged.w_avg.lerp_(mean_w, 1.0 - W_AVG_DECAY)
        self.step += 1
        return figures

    def as_generator(self, name: str) -> StyleGAN2:
        """Return a copy of the averaged network as a Generator, which prepares what it is given."""
        return StyleGAN2(copy.deepcopy(self.averaged), name=name)


# --- the loop ---------------------------------------------------------------------------------------------------------


def train(config: TrainConfig, *, data: str | Path, compile: bool = False, **how: Any) -> Path:
    """Train a StyleGAN2.

    Args:
        config: the settings; see `PRESETS` and `configure`.
        data: training images; see `data.open_dataset`.
        compile: is refused: second derivatives and noise leave little to compile.
        how: `run`, `resume`, `runs`, `start`, `start_discriminator`, `device`, `precision`, `threads`, `tensorboard`,
            `log`, as `run.conduct` takes them.

    Returns:
        The run's folder; its `last/` is the averaged generator, for `load_generator`.

    Raises:
        UserError: on settings, data or states that do not fit, and where the training diverges.
    """
    if compile:
        raise UserError("a StyleGAN2 is trained without compiling; leave --compile out")
    make: Callable[[torch.device, str], Training] = lambda device, precision: Training(  # noqa: E731
        config, device=device, precision=precision
    )
    return conduct(make, config, family=Training.family, data=data, **how)
