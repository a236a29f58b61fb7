"""Every factor of a toon face, read by a small ensemble of networks that abstains where it is not sure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..reader import Attribute, Group, Reading

ASSET = Path(__file__).parent.parent / "assets" / "toonfaces_reader"
RESOLUTION = 64
"""Pixels a side that the networks see; other sizes are resized to it."""


@dataclass(frozen=True)
class Heads:
    """What the networks answer: one number or one class a factor, and whether the picture is a toon face at all."""

    numbers: tuple[str, ...]
    """Names of the numbers."""
    low: tuple[float, ...]
    """Lower end of each number's range."""
    high: tuple[float, ...]
    """Upper end."""
    classes: Mapping[str, tuple[str, ...]]
    """Factor -> its categories."""

    @property
    def n_outputs(self) -> int:
        """Mean and logarithm of the variance of each number, logits of all classes, and one logit for `face`."""
        return 2 * len(self.numbers) + sum(map(len, self.classes.values())) + 1

    def split(self, outputs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
        """Take outputs [batch, n_outputs] apart.

        Returns:
            Means [batch, numbers] and log variances [batch, numbers] on a scale where each range is [-1, 1], logits
            [batch, categories] by factor, and the logit of `face` [batch].
        """
        n = len(self.numbers)
        sizes = [n, n, *map(len, self.classes.values()), 1]
        mean, spread, *logits, face = outputs.split(sizes, dim=1)
        return mean, spread.clamp(-10, 2), dict(zip(self.classes, logits, strict=True)), face[:, 0]


class Block(nn.Module):
    """Convolution, batch norm, ReLU; added to the input where shapes allow."""

    def __init__(self, before: int, after: int, stride: int = 1, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(after)
        self.is_residual = before == after and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, before, h, w] to [batch, after, h / stride, w / stride]."""
        y = F.relu(self.norm(self.conv(x)))
        return x + y if self.is_residual else y


class ReaderNetwork(nn.Sequential):
    """One member of the ensemble: images [batch, 3, 64, 64] in [-1, 1] -> outputs [batch, n_outputs]."""

    def __init__(self, n_outputs: int, *, width: int = 24, hidden: int = 96) -> None:
        super().__init__(
            Block(3, width, 2, 4),  # 32 px
            Block(width, 2 * width, 2),  # 16 px
            *(Block(2 * width, 2 * width) for _ in range(2)),
            Block(2 * width, 4 * width, 2),  # 8 px
            *(Block(4 * width, 4 * width) for _ in range(2)),
            Block(4 * width, 4 * width, 2),  # 4 px
            nn.Flatten(),
            nn.Linear(16 * 4 * width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, n_outputs),
        )


def to_reader_size(images: Tensor) -> Tensor:
    """Resize images to the 64 px of the networks: by area where they are larger, bilinearly where they are smaller."""
    images = images.clamp(-1, 1).expand(-1, 3, -1, -1)
    if images.shape[-1] > RESOLUTION:
        return F.interpolate(images, size=(RESOLUTION, RESOLUTION), mode="area")
    if images.shape[-1] < RESOLUTION:
        return F.interpolate(images, size=(RESOLUTION, RESOLUTION), mode="bilinear", align_corners=False)
    return images


# --- the reader -------------------------------------------------------------------------------------------------------


GEOMETRY = ("rotation", "scale", "shift_x", "shift_y", "background_angle", "background_frequency")


@dataclass(frozen=True)
class Calibration:
    """What turns the networks' answers into honest ones, fitted on faces that no network saw."""

    variance: tuple[float, ...]
    """Factor on the predicted variance of each number."""
    temperature: Mapping[str, float]
    """Divisor of the logits of each class factor."""
    face: float
    """Probability of being a face below which the reader abstains from everything."""
    error: Mapping[str, float]
    """Standard error of each attribute on rendered faces."""


@dataclass(frozen=True)
class Ensemble:
    """The networks with their heads and their calibration."""

    heads: Heads
    parents: Mapping[str, tuple[str, tuple[str, ...]]]
    """Factor that shows only under some -> the factor that decides it, and under which of its categories it shows."""
    units: Mapping[str, str]
    """Of numbers."""
    members: tuple[nn.Module, ...]
    calibration: Calibration
    given: tuple[str, ...]
    """Factors that the reader gives: those that it reads well enough."""

    def answer(self, images: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Ask all members, and join what they say.

        Returns:
            Means and standard deviations of the numbers in their units [batch, numbers]; by class factor the
            probabilities [batch, categories] and how far the members are apart in them [batch]; and the probability
            of being a face [batch].
        """
        seen = to_reader_size(images).contiguous(memory_format=torch.channels_last)
        answers = [self.heads.split(member(seen).float()) for member in self.members]
        means = torch.stack([each[0] for each in answers])  # [members, batch, numbers]
        spread = torch.stack([each[1] for each in answers]).exp().mean(0) + means.var(0, unbiased=False)
        low, high = torch.tensor(self.heads.low), torch.tensor(self.heads.high)
        value = low + (means.mean(0) + 1) / 2 * (high - low)
        deviation = (spread * torch.tensor(self.calibration.variance)).sqrt() * (high - low) / 2
        chances, apart = {}, {}
        for name in self.heads.classes:
            each = torch.stack([(a[2][name] / self.calibration.temperature[name]).softmax(1) for a in answers])
            chances[name] = each.mean(0)
            apart[name] = (each - each.mean(0)).abs().amax((0, 2))
        face = torch.stack([each[3] for each in answers]).sigmoid().mean(0)
        face = torch.where(seen.flatten(2).std(2).amax(1) >= FLATTEST, face, 0.0)
        return value, deviation, chances, apart, face


@lru_cache(maxsize=2)
def load_ensemble(folder: Path = ASSET) -> Ensemble:
    """Load the networks from a folder with `config.json` and `model.safetensors`."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text("utf-8"))
    heads = Heads(
        tuple(config["numbers"]),
        tuple(row["low"] for row in config["numbers"].values()),
        tuple(row["high"] for row in config["numbers"].values()),
        {name: tuple(categories) for name, categories in config["classes"].items()},
    )
    tensors = load_file(folder / "model.safetensors")
    members = []
    for number in range(config["members"]):
        member = ReaderNetwork(heads.n_outputs).eval().requires_grad_(False)
        prefix = f"member{number}."
        mine = {key.removeprefix(prefix): value.float() for key, value in tensors.items() if key.startswith(prefix)}
        counters = {key: value for key, value in member.state_dict().items() if key.endswith("num_batches_tracked")}
        member.load_state_dict(counters | mine)
        members.append(member)
    return Ensemble(
        heads,
        {name: (parent, tuple(shown)) for name, (parent, shown) in config["parents"].items()},
        {name: row["unit"] for name, row in config["numbers"].items()},
        tuple(members),
        Calibration(**config["calibration"]),
        tuple(config["given"]),
    )


@lru_cache(maxsize=2)
def _digest(folder: Path = ASSET) -> str:
    both = b"".join((folder / name).read_bytes() for name in ("config.json", "model.safetensors"))
    return hashlib.sha256(both).hexdigest()[:12]


@dataclass(frozen=True)
class ToonFaces:
    """Every factor of a toon face that can be seen: numbers in their own units, and a probability for each part.

    A factor with categories gives one truth each (`hair_style=bun`); one that is there or not gives one (`beard`). What
    shows only under another factor (the style of a beard) is the probability that both hold, and the reader abstains
    from it where the other is not there. It abstains from everything where the picture does not look like a toon
    face, from a number where the expected error is above half of the number's spread, and from truths on which the
    networks are more than 0.3 apart. docs/readers.md has its scores on faces that it never saw.
    """

    name: ClassVar[str] = "toonfaces"

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the scores."""
        return tuple(each.name for each in self.describe())

    @property
    def weights(self) -> str:
        """A short digest of the networks and their calibration, by which results tell one training from another."""
        return _digest()

    def describe(self) -> tuple[Attribute, ...]:
        """Say what each score means and how far it may be off."""
        ensemble = load_ensemble()
        error = ensemble.calibration.error
        found = []
        for name in ensemble.given:
            if name in ensemble.heads.numbers:
                found.append(Attribute(name, "number", group_of(name), ensemble.units[name], error[name]))
            else:
                truths = truths_of(name, ensemble.heads.classes[name])
                found += [Attribute(each, "truth", "part", "", error[each]) for each in truths]
        return tuple(found)

    def __call__(self, images: Tensor) -> Tensor:
        """Return scores [batch, attributes] for images [batch, 1 or 3, height, width] in [-1, 1]."""
        return self.read(images).scores

    def read(self, images: Tensor) -> Reading:
        """Return scores, expected errors and abstentions, [batch, attributes] each."""
        ensemble = load_ensemble()
        with torch.inference_mode():
            value, deviation, chances, apart, face = ensemble.answer(images.cpu())
        is_face = face >= ensemble.calibration.face
        columns = []
        for name in ensemble.given:
            there = torch.ones(len(images))
            if name in ensemble.parents:
                parent, shown = ensemble.parents[name]
                categories = ensemble.heads.classes[parent]
                there = sum((chances[parent][:, categories.index(each)] for each in shown), torch.zeros(len(images)))
            stands = is_face & (there >= 0.5)
            if name in ensemble.heads.numbers:
                i = ensemble.heads.numbers.index(name)
                spread = (ensemble.heads.high[i] - ensemble.heads.low[i]) / math.sqrt(12)
                columns.append((value[:, i], deviation[:, i], stands & (deviation[:, i] <= LARGEST_ERROR * spread)))
                continue
            stands = stands & (apart[name] <= FARTHEST_APART)
            some = chances[name][:, 1:] if is_presence(ensemble.heads.classes[name]) else chances[name]
            for chance in (some * there[:, None]).T:
                columns.append((chance, (chance * (1 - chance)).sqrt(), stands))
        scores, error, certain = (torch.stack(each, dim=1) for each in zip(*columns, strict=True))
        return Reading(scores.clone(), error.clone(), certain.clone())  # not inference tensors


FLATTEST = 0.05
"""Standard deviation of the liveliest channel below which a picture is no face; the flattest of 4,000 has 0.09."""
LARGEST_ERROR = 0.5
"""Expected error of a number, as a share of its standard deviation over faces, above which the reader abstains."""
FARTHEST_APART = 0.3
"""Distance of the networks' probabilities from their mean above which the reader abstains."""


def is_presence(categories: tuple[str, ...]) -> bool:
    """Tell whether a factor is one that is there or not."""
    return categories == ("absent", "present")


def truths_of(name: str, categories: tuple[str, ...]) -> list[str]:
    """Name the truths of a class factor."""
    return [name] if is_presence(categories) else [f"{name}={category}" for category in categories]


def group_of(name: str) -> Group:
    """Return what sort of change a number is about."""
    return "geometry" if name in GEOMETRY else "colour"
