"""What directions do at every strength within their limits, and the strengths at which they do equally much.

Methods measure strength in σ, and one σ shows little on one direction and much on another. A comparison at one strength
therefore compares strengths before it compares directions. Four calibrations stand side by side:

- `native`: 2 σ, or the target.
- `change`: the strength at which images change equally (`effect.image_distance`, as a share of the mean distance
  between two samples).
- `attribute`: that at which the attribute that a direction moves most changes equally, from -s to +s, in standard
  deviations of the attribute among samples.
- `realism`: that at which images have gone an equal part of the way to the edge of the generator's own range
  (`effect.Range`, the measure behind the limits).

Two more may be asked for by name, which measure realism by a kernel distance, as KID does, instead of by the range:

- `kid_pixels`, `kid_efficientnet`: that at which the images of edits lie equally far from the generator's own, in the
  features that the name carries; the latter needs a package.

None goes beyond the nearer of a direction's two limits; one that does not get there within them is called dead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from . import runtime
from .directions import Directions
from .distance import feature_scale, kernel_spread, squared_mmd
from .effect import (
    LIMIT_RATIO,
    LIMIT_SAMPLES,
    Range,
    image_distance,
    image_features,
    sample_distance,
    sample_for,
    traverse,
)
from .errors import UserError
from .generator import Generator
from .reader import EXTRACTORS, Reader, describe, read

Calibration = Literal["native", "change", "attribute", "realism", "kid_pixels", "kid_efficientnet"]
CALIBRATIONS: tuple[Calibration, ...] = ("native", "change", "attribute", "realism")
"""Those that every comparison makes unless it is told otherwise."""
REFERENCE = 2.0
"""σ of the native calibration, and units of strength that a calibrated direction needs to do what is wanted."""
TARGETS: Mapping[str, float] = {
    "native": REFERENCE, "change": 0.25, "attribute": 1.0, "realism": 0.5, "kid_pixels": 0.1,
    "kid_efficientnet": 0.02,
}  # fmt: skip
"""What each calibration wants: σ; a share of the distance of two samples; standard deviations; a share of the way; and
shares of half the mean squared distance of two samples under the kernel."""
KERNELS: Mapping[Calibration, str | None] = {"kid_pixels": None, "kid_efficientnet": "efficientnet_lite0"}
"""Calibration by kernel distance -> the extractor of its features; None stands for `effect.image_features`."""

SIDE_STEPS = 8
"""Strengths on each side; the ratio of neighbours is `effect.LIMIT_RATIO`, and the last is the limit."""
FEWEST = 8
"""Samples in which an attribute must be read for its spread to be known."""
FEWEST_CODES = 4
"""Codes at which an attribute must be read for its change to count."""
PROFILE_CODES = 16
PROFILE_SEED = 0
FORMAT = "eigenlens.profile/1"
_FIGURES = ("strengths", "change", "cost", "attribute", "error")


@dataclass(frozen=True, eq=False)
class Kernel:
    """The generator's own samples as a kernel distance sees them."""

    extract: Callable[[Tensor], Tensor]
    """Images [batch, channels, height, width] -> features [batch, dim]."""
    mean: Tensor
    """Of the features of its samples, [dim]."""
    scale: Tensor
    """What features are divided by, [dim]; see `distance.feature_scale`."""
    own: Tensor
    """Standardised features of its samples, [n, dim]."""
    spread: float
    """Half the mean squared distance of two samples under the kernel: how far a set would be that repeats one image."""

    @classmethod
    def of(cls, name: Calibration, images: Tensor) -> Kernel:
        """Look at samples [n, channels, height, width] as the calibration `name` does.

        Raises:
            UserError: where the package of its extractor is missing.
        """
        extractor = KERNELS[name]
        extract = EXTRACTORS[extractor]() if extractor else image_features
        described = _in_batches(extract, images).double()
        mean, scale = described.mean(0), feature_scale(described, is_alike=extractor is not None)
        own = (described - mean) / scale
        return cls(extract, mean, scale, own, kernel_spread(own))

    def excess(self, images: Tensor) -> Tensor:
        """Return how much farther the images of each step lie from its samples than those of the middle one, as a share
        of the spread: [steps], for images [codes, steps, ...].

        The same codes stand behind every step, so that what is special about them drops out.
        """
        n, steps = images.shape[:2]
        described = (_in_batches(self.extract, images.flatten(0, 1)).double() - self.mean) / self.scale
        far = torch.tensor([squared_mmd(each, self.own) for each in described.unflatten(0, (n, steps)).unbind(1)])
        return (far - far[steps // 2]) / max(self.spread, 1e-12)


def _in_batches(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([function(images[start:stop]) for start, stop in runtime.batches(len(images), 64)])


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What the changes of a generator's images are measured against: its own samples."""

    inside: Range
    """The generator's own range."""
    typical: float
    """Median squared distance of its samples from their mean, in that range."""
    distance: float
    """Mean `image_distance` of two samples."""
    attributes: tuple[str, ...]
    """Names of what the reader reads."""
    spread: Tensor
    """Standard deviation of each attribute among samples, [attributes]; NaN where it varies no more than the reader
    errs, or is seldom read."""
    kernels: Mapping[Calibration, Kernel] = field(default_factory=dict)
    """Calibration by kernel distance -> what it measures with."""


def measure_yardstick(
    generator: Generator,
    directions: Directions,
    reader: Reader,
    *,
    n: int = LIMIT_SAMPLES,
    seed: int = PROFILE_SEED,
    kernels: Sequence[Calibration] = (),
) -> Yardstick:
    """Look at `n` samples of a generator, at truncation 1, in the space of `directions`.

    Args:
        generator: the generator.
        directions: whose space it is.
        reader: of attributes.
        n: samples.
        seed: of the samples.
        kernels: names of `KERNELS` that profiles shall have as well.
    """
    codes = sample_for(generator, directions, n, seed=seed)
    kept, features, scores = [], [], []
    with torch.inference_mode():
        for start, stop in runtime.batches(n, generator.batch_size):
            images = generator(codes[start:stop]).cpu()
            features.append(image_features(images))
            scores.append(scores_of(reader, images))
            kept += [images] if kernels else []
    described = torch.cat(features)
    inside = Range.fit(described)
    read_off = torch.cat(scores)
    spread = _nan_std(read_off)
    floor = torch.tensor([each.error for each in describe(reader)]).nan_to_num().clamp(min=1e-6)
    is_known = (read_off.isfinite().sum(0) >= FEWEST) & (spread > floor)
    return Yardstick(
        inside,
        float(inside.distance(described).median()),
        sample_distance(generator, directions, seed=seed),
        tuple(reader.attributes),
        torch.where(is_known, spread, math.nan),
        {name: Kernel.of(name, torch.cat(kept)) for name in kernels},
    )


def scores_of(reader: Reader, images: Tensor) -> Tensor:
    """Read images: float64 [batch, attributes], NaN where the reader abstains."""
    reading = read(reader, images)
    return torch.where(reading.certain, reading.scores, math.nan).double()


def _nan_std(scores: Tensor) -> Tensor:
    return (scores - scores.nanmean(0)).square().nanmean(0).sqrt()


@dataclass(frozen=True, eq=False)
class Profile:
    """What each of k directions does at each of some strengths, mean over the same codes."""

    names: tuple[str, ...]
    """Of the directions."""
    attributes: tuple[str, ...]
    """What the reader reads."""
    strengths: Tensor
    """σ, ascending from the lower limit over 0 to the upper one, [k, steps]."""
    change: Tensor
    """`image_distance` from the image at 0, as a share of the mean distance of two samples, [k, steps]."""
    cost: Tensor
    """How far the squared distance in the generator's own range has gone from what it was at 0 to the edge, median
    over codes, [k, steps]: 0 at 0, 1 at the edge."""
    attribute: Tensor
    """Change of each attribute from 0, in its standard deviations among samples, [k, steps, attributes]; 0 for one
    that never varies or is read at too few codes."""
    error: Tensor
    """Standard error of that mean over codes, [k, steps, attributes]."""
    kernels: Mapping[Calibration, Tensor] = field(default_factory=dict)
    """Calibration by kernel distance -> how much farther from the generator's samples edits are than at 0, as a share
    of `Kernel.spread`, [k, steps]; empty where it was not asked for."""

    def __len__(self) -> int:
        return len(self.names)

    def cap(self, which: int) -> float:
        """Return the nearer limit of a direction, in σ."""
        return float(min(-self.strengths[which, 0], self.strengths[which, -1]))

    def at(self, figure: Literal["change", "cost", "attribute", "error"], which: int, sigma: float) -> np.ndarray:
        """Return a figure of one direction at a strength, interpolated linearly: [] or [attributes]."""
        places = self.strengths[which].numpy()
        values = getattr(self, figure)[which].numpy()
        high = int(np.clip(np.searchsorted(places, sigma), 1, len(places) - 1))
        share = np.clip((sigma - places[high - 1]) / max(places[high] - places[high - 1], 1e-12), 0.0, 1.0)
        return values[high - 1] + share * (values[high] - values[high - 1])

    def moved(self, which: int, sigma: float) -> np.ndarray:
        """Return how much each attribute changes from -σ to +σ, in standard deviations: [attributes]."""
        return self.at("attribute", which, sigma) - self.at("attribute", which, -sigma)

    def moved_error(self, which: int, sigma: float) -> np.ndarray:
        """Return the standard error of `moved`: [attributes]."""
        return np.hypot(self.at("error", which, sigma), self.at("error", which, -sigma))

    def strengths_at(self, calibration: Calibration, target: float | None = None) -> Strengths:
        """Return the strengths at which every direction does what a calibration wants.

        Args:
            calibration: which one.
            target: what it wants; by default that of `TARGETS`.

        Raises:
            UserError: on a calibration that is not known, or a target that is not above 0.
        """
        check_calibration(calibration)
        if calibration in KERNELS and calibration not in self.kernels:
            needed = KERNELS[calibration]
            how = f", for which {needed} has to be installed (docs/readers.md)" if needed else ""
            raise UserError(f"the profile was measured without {calibration}; measure it anew with it{how}")
        target = TARGETS[calibration] if target is None else target
        if not 0 < target < math.inf:
            raise UserError(f"target {target} came for {calibration}; give a number above 0")
        found = [self._strength(k, calibration, target) for k in range(len(self))]
        return Strengths(
            calibration,
            target,
            torch.tensor([strength for strength, _ in found]),
            torch.tensor([is_reached for _, is_reached in found], dtype=torch.bool),
        )

    def _strength(self, which: int, calibration: Calibration, target: float) -> tuple[float, bool]:
        cap = self.cap(which)
        if not cap > 0:  # false for NaN as well: a direction that changes nothing has no limits
            return REFERENCE, False
        if calibration == "native":
            return min(target, cap), True
        sigmas = np.concatenate([[0.0], cap * LIMIT_RATIO ** np.linspace(1 - SIDE_STEPS, 0, 40 * SIDE_STEPS)])
        places = self.strengths[which].numpy()
        if calibration == "attribute":
            values = self.attribute[which, :, self.wanted(which)].numpy()
            done = np.abs(np.interp(sigmas, places, values) - np.interp(-sigmas, places, values))
        else:
            figures = {"change": self.change, "realism": self.cost, **self.kernels}
            values = figures[calibration][which].numpy()
            done = (np.interp(sigmas, places, values) + np.interp(-sigmas, places, values)) / 2
        reached = np.flatnonzero(done >= target)
        if not len(reached):
            return cap, False
        high = int(reached[0])
        share = (target - done[high - 1]) / (done[high] - done[high - 1]) if high else 0.0
        return float(sigmas[high - 1] + share * (sigmas[high] - sigmas[high - 1])), True

    def wanted(self, which: int) -> int:
        """Return the attribute that a direction moves most at the strength of equal image change."""
        sigma, _ = self._strength(which, "change", TARGETS["change"])
        return int(np.abs(self.moved(which, sigma)).argmax())

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write one `.safetensors` file."""
        from safetensors.torch import save_file

        from .files import written_beside

        header = {"format": FORMAT, "names": list(self.names), "attributes": list(self.attributes)}
        with written_beside(path, force=force) as beside:
            tensors = {name: getattr(self, name) for name in _FIGURES} | dict(self.kernels)
            tensors = {name: values.contiguous() for name, values in tensors.items()}
            save_file(tensors, beside, metadata={"eigenlens": json.dumps(header, ensure_ascii=False)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a file that `save` wrote.

        Raises:
            UserError: where it is none.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("eigenlens", "{}"))
                if header.get("format") != FORMAT:
                    raise UserError(f"{path} is in format {header.get('format')!r}; this version reads {FORMAT!r}")
                tensors = {name: file.get_tensor(name) for name in _FIGURES}
                kernels = {name: file.get_tensor(name) for name in KERNELS if name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(f"{path} is no profile of directions: {error}") from error
        return cls(tuple(header["names"]), tuple(header["attributes"]), **tensors, kernels=kernels)


@dataclass(frozen=True, eq=False)
class Strengths:
    """The strengths at which directions do equally much."""

    calibration: Calibration
    """What is equal."""
    target: float
    """How much of it."""
    sigma: Tensor
    """Strength of each direction in σ, [k]; where it is not reached, the nearer limit."""
    reached: Tensor
    """Whether it is reached within the limits, [k]; one where it is not is dead."""

    @property
    def n_dead(self) -> int:
        """How many directions do not get there."""
        return int((~self.reached).sum())


def check_calibration(name: str) -> None:
    """Raise UserError unless `name` is a calibration."""
    if name not in TARGETS:
        raise UserError(f"calibration {name!r} is not known; allowed: {', '.join(TARGETS)}")


def recalibrated(directions: Directions, strengths: Strengths) -> Directions:
    """Return the same directions in a unit of their own: `REFERENCE` units are what the calibration found.

    A metric that measures at ±2 σ then measures where every direction does equally much. Their `sigma` is the unit's
    length, no longer the standard deviation of the space.

    Args:
        directions: in σ.
        strengths: of the same directions.
    """
    if directions.unit != "sigma":
        raise UserError("directions in raw units came to be recalibrated; turn them into σ first (in_sigma)")
    if strengths.calibration == "native" and strengths.target == REFERENCE:
        return directions
    units = (strengths.sigma / REFERENCE).to(directions.sigma)
    return replace(
        directions,
        sigma=directions.sigma * units,
        limits=directions.limits / units[:, None],
        effect=torch.full((len(directions),), math.nan),
    )


def measure_profile(
    generator: Generator,
    directions: Directions,
    reader: Reader,
    yardstick: Yardstick,
    *,
    n_codes: int = PROFILE_CODES,
    seed: int = PROFILE_SEED,
) -> Profile:
    """Walk `n_codes` codes along every direction to both limits, and look at the images.

    It costs `n_codes` x 17 images a direction. The codes are drawn after those of the yardstick.

    Args:
        generator: the generator.
        directions: in σ, with limits; a direction without is walked to ±`REFERENCE`.
        reader: of attributes.
        yardstick: of the generator; see `measure_yardstick`.
        n_codes: codes that are walked.
        seed: of the codes.
    """
    codes = sample_for(generator, directions, n_codes, seed=seed, start=LIMIT_SAMPLES)
    sides = LIMIT_RATIO ** torch.arange(1 - SIDE_STEPS, 1, dtype=torch.float64)  # [steps of a side], up to 1
    rows = []
    kernels: dict[Calibration, list[Tensor]] = {name: [] for name in yardstick.kernels}
    for k in runtime.progress(range(len(directions)), what="profile"):
        low, high = (float(end) for end in directions.limits[k])
        ends = (low, high) if math.isfinite(low) and math.isfinite(high) else (-REFERENCE, REFERENCE)
        steps = torch.cat([ends[0] * sides.flip(0), torch.zeros(1, dtype=torch.float64), ends[1] * sides])
        images = traverse(generator, codes, directions, k, steps.tolist())  # [codes, steps, c, h, w]
        row = _looked_at(images, reader, yardstick)
        for name, seen in yardstick.kernels.items():
            kernels[name].append(seen.excess(images))
        rows.append((steps if math.isfinite(low) else torch.full_like(steps, math.nan), *row))
    strengths, change, cost, attribute, error = (torch.stack(column).float() for column in zip(*rows, strict=True))
    far = {name: torch.stack(each).float() for name, each in kernels.items()}
    return Profile(directions.names, yardstick.attributes, strengths, change, cost, attribute, error, far)


def _looked_at(images: Tensor, reader: Reader, yardstick: Yardstick) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return change [steps], cost [steps], attribute and error [steps, attributes] of images [codes, steps, ...]."""
    n, steps = images.shape[:2]
    middle = steps // 2
    here = images[:, middle : middle + 1].expand_as(images).flatten(0, 1)
    flat = images.flatten(0, 1)
    change = image_distance(here, flat).unflatten(0, (n, steps)).mean(0) / yardstick.distance
    distance = yardstick.inside.distance(image_features(flat)).unflatten(0, (n, steps)).median(0).values
    way = max(yardstick.inside.edge - float(distance[middle]), 1e-6)
    scores = torch.cat([scores_of(reader, flat[start:stop]) for start, stop in runtime.batches(len(flat), 64)])
    scores = scores.unflatten(0, (n, steps))
    moved = (scores - scores[:, middle : middle + 1]) / yardstick.spread  # [codes, steps, attributes]
    counted = moved.isfinite().sum(0)
    moved = torch.where(counted >= FEWEST_CODES, moved, math.nan)
    error = _nan_std(moved) / counted.clamp(min=1).sqrt()
    return change, (distance - distance[middle]) / way, moved.nanmean(0).nan_to_num(), error.nan_to_num()
