"""Every factor of a toon face, read by a small ensemble of networks that abstains where it is not sure.

They look twice: at the whole picture, and then, where they found a face, at its parts, upright and at their usual size.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
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

    def in_units(self, means: Tensor) -> Tensor:
        """Return numbers [batch, numbers] in their own units, from the scale where each range is [-1, 1]."""
        low, high = (torch.tensor(ends, device=means.device) for ends in (self.low, self.high))
        return low + (means + 1) / 2 * (high - low)


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
    """The first look: images [batch, 3, 64, 64] in [-1, 1] -> outputs [batch, n_outputs]."""

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


# --- the second look --------------------------------------------------------------------------------------------------


POSE = ("rotation", "scale", "shift_x", "shift_y")
"""Numbers that say how a face stands: degrees clockwise, and parts of the usual size and of the picture."""
MIDDLE = (32.0, 428 / 12)
"""Where the middle of a face lies in a picture of 64 px at zero shift, x and y: what it turns about and grows from."""


@dataclass(frozen=True)
class Window:
    """A part of the face as it would stand upright at its usual size: pixels of 64 right of and below its middle."""

    left: int
    top: int
    right: int
    bottom: int
    density: int
    """Samples a pixel, each way."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of what is seen."""
        return (self.bottom - self.top) * self.density, (self.right - self.left) * self.density

    def view(self, images: Tensor, pose: Tensor) -> Tensor:
        """Sample the window where it lies in each picture, less its mean colour.

        Args:
            images: [batch, 3, 64, 64].
            pose: rotation, scale, shift_x and shift_y of each face, [batch, 4].

        Returns:
            [batch, 3, rows, columns].
        """
        rows, columns = self.shape
        down, right = torch.meshgrid(
            self.top + (torch.arange(rows, device=images.device) + 0.5) / self.density,
            self.left + (torch.arange(columns, device=images.device) + 0.5) / self.density,
            indexing="ij",
        )
        rotation, scale, shift_x, shift_y = pose[:, :, None, None].unbind(1)  # each [batch, 1, 1]
        cosine, sine = scale * rotation.deg2rad().cos(), scale * rotation.deg2rad().sin()
        x = (MIDDLE[0] + right * cosine - down * sine) / RESOLUTION + shift_x  # [batch, rows, columns]
        y = (MIDDLE[1] + right * sine + down * cosine) / RESOLUTION + shift_y
        grid = torch.stack([x, y], dim=-1) * 2 - 1
        seen = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return (seen - seen.mean((2, 3), keepdim=True)).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Look:
    """What is read off a window once the first look has told how the face stands."""

    window: Window
    """Where."""
    classes: tuple[str, ...]
    """Factors."""


LOOKS: Mapping[str, Look] = {
    "face": Look(Window(-10, -9, 10, 13, 2), ("eyes", "eyebrows", "mouth", "beard", "beard_style")),
    "bust": Look(Window(-22, -6, 22, 26, 1), ("rear_hair", "rear_hair_style", "clothes_style")),
}
"""Small parts, which a network of the whole picture would have to know at every place, turn and size: a mouth is six
pixels that differ by a tenth of the range."""
JUDGE = "judge"
"""Name of the network that only tells whether there is a face at all."""


def judge_network() -> ReaderNetwork:
    """Build the judge: images [batch, 3, 64, 64] in [-1, 1] -> the logit that there is a face at all [batch, 1].

    It is apart from the members, which know faces and spoilt faces and answer anything on pictures far from both.
    """
    return ReaderNetwork(1, width=16, hidden=32)


class LookNetwork(nn.Sequential):
    """A window [batch, 3, rows, columns] -> logits of all categories of its factors."""

    def __init__(
        self, look: Look, classes: Mapping[str, tuple[str, ...]], *, width: int = 24, hidden: int = 96
    ) -> None:
        rows, columns = (math.ceil(side / 8) for side in look.window.shape)
        super().__init__(
            Block(3, width, 2),
            Block(width, 2 * width, 2),
            Block(2 * width, 2 * width),
            Block(2 * width, 2 * width, 2),
            nn.Flatten(),
            nn.Linear(rows * columns * 2 * width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, sum(len(classes[name]) for name in look.classes)),
        )


Answer = tuple[Tensor, Tensor, dict[str, Tensor], Tensor]
"""Means and log variances of numbers, logits by factor, and the logit of `face`; see `Heads.split`."""


def ask(members: Sequence[nn.Module], looks: Mapping[str, nn.Module], heads: Heads, seen: Tensor) -> list[Answer]:
    """Let every member look at pictures [batch, 3, 64, 64], and look again at the parts of the faces that it found.

    The networks of the second look are the same for all, but each member places the windows by its own reading of how
    the face stands: where that decides an answer, members differ.
    """
    answers = [heads.split(member(seen).float()) for member in members]
    columns = [heads.numbers.index(name) for name in POSE]
    for mean, _, logits, _ in answers:
        pose = heads.in_units(mean)[:, columns]
        for name, look in LOOKS.items():
            found = looks[name](look.window.view(seen, pose)).float()
            sizes = [len(heads.classes[each]) for each in look.classes]
            logits |= zip(look.classes, found.split(sizes, dim=1), strict=True)
    return answers


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
    judge: float
    """Logit of the judge below which there is no face at all."""
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
    """Networks of the whole picture."""
    looks: Mapping[str, nn.Module]
    """Networks of the second look, by the names of `LOOKS`."""
    judge: nn.Module
    """The network that tells whether there is a face at all."""
    calibration: Calibration
    given: tuple[str, ...]
    """Factors that the reader gives: those that it reads well enough."""

    def answer(self, images: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Ask all members, and join what they say.

        Returns:
            Means and standard deviations of the numbers in their units [batch, numbers]; by class factor the
            probabilities [batch, categories] and how far the members are apart in them [batch]; and the probability
            of being a face [batch], which is 0 where the judge sees none.
        """
        seen = to_reader_size(images).contiguous(memory_format=torch.channels_last)
        answers = ask(self.members, self.looks, self.heads, seen)
        means = torch.stack([each[0] for each in answers])  # [members, batch, numbers]
        spread = torch.stack([each[1] for each in answers]).exp().mean(0) + means.var(0, unbiased=False)
        value = self.heads.in_units(means.mean(0))
        reach = (torch.tensor(self.heads.high) - torch.tensor(self.heads.low)) / 2
        deviation = (spread * torch.tensor(self.calibration.variance)).sqrt() * reach
        chances, apart = {}, {}
        for name in self.heads.classes:
            each = torch.stack([(a[2][name] / self.calibration.temperature[name]).softmax(1) for a in answers])
            chances[name] = each.mean(0)
            apart[name] = (each - each.mean(0)).abs().amax((0, 2))
        face = torch.stack([each[3] for each in answers]).sigmoid().mean(0)
        is_there = self.judge(seen)[:, 0] >= self.calibration.judge
        is_there &= seen.flatten(2).std(2).amax(1) >= FLATTEST
        return value, deviation, chances, apart, torch.where(is_there, face, 0.0)


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
    members, looks = networks_of(tensors, heads)
    return Ensemble(
        heads,
        {name: (parent, tuple(shown)) for name, (parent, shown) in config["parents"].items()},
        {name: row["unit"] for name, row in config["numbers"].items()},
        members,
        looks,
        judge_of(tensors),
        Calibration(**config["calibration"]),
        tuple(config["given"]),
    )


def filled(network: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Fill a network from the tensors called `name.*`, for answering alone."""
    prefix = f"{name}."
    mine = {key.removeprefix(prefix): value.float() for key, value in tensors.items() if key.startswith(prefix)}
    counters = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    network.load_state_dict(counters | mine)
    return network.eval().requires_grad_(False)


def networks_of(tensors: Mapping[str, Tensor], heads: Heads) -> tuple[tuple[nn.Module, ...], dict[str, nn.Module]]:
    """Build the members from tensors called `member0.*`, `member1.*`, ..., and the looks from `face.*`, `bust.*`."""
    names = sorted({key.partition(".")[0] for key in tensors} - {*LOOKS, JUDGE})
    looks = {name: filled(LookNetwork(look, heads.classes), name, tensors) for name, look in LOOKS.items()}
    return tuple(filled(ReaderNetwork(heads.n_outputs), name, tensors) for name in names), looks


def judge_of(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build the judge from tensors called `judge.*`."""
    return filled(judge_network(), JUDGE, tensors)


@lru_cache(maxsize=2)
def _digest(folder: Path = ASSET) -> str:
    both = b"".join((folder / name).read_bytes() for name in ("config.json", "model.safetensors"))
    return hashlib.sha256(both).hexdigest()[:12]


@dataclass(frozen=True)
class ToonFaces:
    """Every factor of a toon face that can be seen: numbers in their own units, and a probability for each part.

    A factor with categories gives one truth each (`hair_style=bun`); one that is there or not gives one (`beard`). What
    shows only under another factor (the style of a beard) is the probability that both hold, and the reader abstains
    from it where the other is not there. It abstains from everything where its judge sees no face at all or its members
    hold the picture for a spoilt one, from a number where the expected error is above half of the number's spread, and
    from truths on which the networks are more than 0.3 apart. docs/readers.md has its scores on faces that none saw.
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
