"""The network that sees an image before and after a shift and tells which direction moved it, and how far.

The shifts it learns from, its loss and what is counted of its answers stand here too, as functions of arrays.

Source:
    Voynov & Babenko, Unsupervised discovery of interpretable directions in the GAN latent space, ICML 2020
    (arXiv 2002.03754), section 3.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import runtime
from .errors import UserError

LENET_SIDE = 32
"""Images up to this many pixels are seen by the LeNet; it fills smaller ones up to this size."""
SHIFT_WEIGHT = 0.25
"""Published weight of the error in how far, beside the cross-entropy of which."""
SIGNIFICANCE = 2.0
"""Standard errors above chance from which on answers count as more than chance."""


# --- shifts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShiftLaw:
    """How far training shifts go: uniform on [-high, high], what is below `low` in size raised to it (published)."""

    low: float = 0.5
    """Least size of a shift in σ."""
    high: float = 6.0
    """Largest size of a shift in σ."""

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise UserError(f"shifts of {self.low} to {self.high} σ are not possible; give 0 < low <= high")


def draw_shifts(n: int, n_directions: int, law: ShiftLaw, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw which direction moves each of `n` pairs, and how far.

    Returns:
        Indices [n], uniform, and amounts [n] in σ. Of an even number of amounts exactly half are positive.
    """
    which = rng.integers(0, n_directions, n)
    sizes = np.maximum(rng.random(n) * law.high, law.low)
    return torch.from_numpy(which), torch.from_numpy(sizes * balanced_signs(n, rng)).float()


def balanced_signs(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return n signs in random order, as many + as -; of an odd number the last one is drawn."""
    signs = np.resize([1.0, -1.0], n)
    if n % 2:
        signs[-1] = rng.choice([1.0, -1.0])
    return rng.permutation(signs)


# --- the network ------------------------------------------------------------------------------------------------------


class Norm(nn.BatchNorm2d):
    """Batch normalisation over the batch of all processes together."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise features [batch, channels, height, width]."""
        if runtime.world_size() == 1 or not self.training:
            return super().forward(x)
        from torch.distributed.nn.functional import all_reduce

        assert self.running_mean is not None
        assert self.running_var is not None
        n = runtime.world_size() * x.numel() // x.shape[1]
        mean = all_reduce(x.float().sum((0, 2, 3))) / n
        centred = x - mean[:, None, None]
        variance = all_reduce(centred.float().square().sum((0, 2, 3))) / n
        with torch.no_grad():
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
            share = 1 / int(self.num_batches_tracked or 1) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * n / (n - 1), share)
        scale = (variance + self.eps).rsqrt() * self.weight
        return centred * scale[:, None, None] + self.bias[:, None, None]


class LeNet(nn.Module):
    """Three 5x5 convolutions of 6, 16 and 120 channels, times `width`, and a mean over places: [batch, out].

    Unlike the authors' they have no biases, which the norms behind them would take away again.

    Args:
        channels: of what it sees.
        width: multiplies the published numbers of channels.
    """

    def __init__(self, channels: int, width: float = 1.0) -> None:
        super().__init__()
        first, second, self.out = (round(width * n) for n in (6, 16, 120))
        self.layers = nn.Sequential(
            nn.Conv2d(channels, first, 5, bias=False), Norm(first), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, bias=False), Norm(second), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(second, self.out, 5, bias=False), Norm(self.out), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return features [batch, out] of images [batch, channels, height, width]."""
        height, width = (max(0, LENET_SIDE - size) for size in x.shape[2:])
        if height or width:  # MNIST's digits too were put into a frame of 32 pixels
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2), mode="replicate")
        return self.layers(x).mean((2, 3))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where shapes differ."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm1, self.norm2 = Norm(after), Norm(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), Norm(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the size over the stride."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-18 (He et al. 2016, table 1) without its last layer: [batch, out].

    Args:
        channels: of what it sees.
        width: multiplies the published 64, 128, 256 and 512 channels.
    """

    def __init__(self, channels: int, width: float = 1.0) -> None:
        super().__init__()
        widths = [round(width * n) for n in (64, 128, 256, 512)]
        self.out = widths[-1]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 7, 2, padding=3, bias=False), Norm(widths[0]), nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        )  # fmt: skip
        blocks = []
        for i, after in enumerate(widths):
            before = widths[max(0, i - 1)]
            blocks += [ResidualBlock(before, after, 2 if i else 1), ResidualBlock(after, after, 1)]
        self.blocks = nn.Sequential(*blocks)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return features [batch, out] of images [batch, channels, height, width]."""
        return self.blocks(self.stem(x)).mean((2, 3))


Body = Literal["auto", "lenet", "resnet"]


class Reconstructor(nn.Module):
    """See an image before and after a shift; say which direction moved it, and how far.

    Args:
        n_directions: how many there are.
        channels: of an image, or of the features that take its place.
        resolution: height and width of what is seen, in pixels.
        body: `lenet`, `resnet`, or by the resolution: the LeNet up to 32 px, ResNet-18 above.
        width: multiplies the published numbers of channels.

    Source:
        Voynov & Babenko, section 4; the authors' code for both bodies and their heads.
    """

    def __init__(
        self, n_directions: int, *, channels: int, resolution: int, body: Body = "auto", width: float = 1.0
    ) -> None:
        super().__init__()
        if body not in ("auto", "lenet", "resnet") or not width > 0:
            raise UserError(f"body {body!r} of width {width} is not possible; allowed: auto, lenet, resnet, above 0")
        is_small = body == "lenet" or (body == "auto" and resolution <= LENET_SIDE)
        least = 0.1 if is_small else 0.01
        if width < least:
            raise UserError(f"width {width} leaves a layer without channels; give {least} or more")
        self.body = (LeNet if is_small else ResNet)(2 * channels, width)
        self.which = self._head(n_directions, is_small)
        self.amount = self._head(1, is_small)

    def _head(self, out: int, is_small: bool) -> nn.Module:
        features = int(self.body.out)
        if not is_small:
            return nn.Linear(features, out)
        hidden = max(1, round(features * 84 / 120))
        return nn.Sequential(
            nn.Linear(features, features), nn.ReLU(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, out)
        )

    def forward(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Answer for pairs of images.

        Args:
            before, after: [batch, channels, height, width].

        Returns:
            Logits of which direction, [batch, n_directions], and how far in σ, [batch].
        """
        seen = torch.cat([before, after], dim=1).contiguous(memory_format=torch.channels_last)
        features = self.body(seen)
        return self.which(features), self.amount(features)[:, 0]


@contextlib.contextmanager
def settled(network: nn.Module, batches: Iterable[Callable[[], object]]) -> Iterator[None]:
    """Measure the statistics of all norms anew by running some batches, and evaluate with them inside the context.

    Running averages lag behind weights that still move: a ResNet that tells four pairs in five while it learns may
    tell one in four when it is evaluated with them.

    Args:
        network: in training mode, which it is again afterwards.
        batches: each runs the network once.

    Source:
        Wu & Johnson, Rethinking "batch" in BatchNorm, 2021 (arXiv 2105.07576), section 3, "precise" statistics.
    """
    norms = [each for each in network.modules() if isinstance(each, Norm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean of all that follows
        with torch.no_grad():
            for run in batches:
                run()
        network.eval()
        yield
    finally:
        network.train()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def pooled(images: Tensor, resolution: int | None) -> Tensor:
    """Return images averaged over areas to `resolution` pixels, where they are larger."""
    if resolution is None or images.shape[-1] <= resolution:
        return images
    return F.adaptive_avg_pool2d(images, resolution)


# --- loss and counts --------------------------------------------------------------------------------------------------


def reconstruction_loss(
    logits: Tensor, guessed: Tensor, which: Tensor, amount: Tensor, *, shift_weight: float = SHIFT_WEIGHT
) -> Tensor:
    """Return the cross-entropy of which direction, plus `shift_weight` times the mean absolute error in how far.

    Source:
        Voynov & Babenko, equation 1; weight 0.25 as published.
    """
    return F.cross_entropy(logits.float(), which) + shift_weight * (guessed.float() - amount).abs().mean()


def confusion(logits: Tensor, which: Tensor) -> Tensor:
    """Count answers: [k, k], row = the direction that moved, column = the one that was named."""
    k = logits.shape[1]
    return torch.bincount(which * k + logits.argmax(1), minlength=k * k).reshape(k, k)


def accuracies(counts: Tensor) -> Tensor:
    """Return the share of right answers for each direction, [k], from its `confusion`; NaN where it never moved."""
    return counts.diagonal() / counts.sum(1)


def unrecognised(counts: Tensor) -> list[int]:
    """Return the directions that are named right no more often than by chance.

    Chance is 1/k; what counts is the share of right answers, two standard errors of chance taken off.

    Example:
        >>> unrecognised(torch.tensor([[90, 10], [50, 50]]))
        [1]
    """
    k = len(counts)
    n = counts.sum(1).clamp(min=1)
    edge = 1 / k + SIGNIFICANCE * ((1 / k) * (1 - 1 / k) / n).sqrt()
    return [] if k == 1 else (counts.diagonal() / n <= edge).nonzero()[:, 0].tolist()


def duplicates(counts: Tensor) -> list[tuple[int, int]]:
    """Return pairs of directions that are taken for each other more often than a coin could tell them apart.

    Where i and j are two names of one thing, each is called by the other's name as often as by its own. A pair counts
    where the mutual errors reach two thirds of the right answers, and lie two standard errors above chance, 2/k.

    Example:
        >>> duplicates(torch.tensor([[50, 45, 5], [52, 40, 8], [4, 6, 90]]))
        [(0, 1)]
    """
    k = len(counts)
    n = counts.sum(1, keepdim=True).clamp(min=1)
    shares = counts / n
    edge = 2 / k + SIGNIFICANCE * (2 / k / n.float().mean()).sqrt()
    wrong, right = shares + shares.T, shares.diagonal()[:, None] + shares.diagonal()
    is_pair = (wrong >= 2 / 3 * right) & (wrong > edge) & (k > 2)
    return [(i, j) for i, j in is_pair.triu(1).nonzero().tolist()]
