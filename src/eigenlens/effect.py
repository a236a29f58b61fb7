"""What a step along a direction does to images: its effect, its limits, and equal change."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import runtime
from .codes import Codes, Space
from .directions import Directions
from .errors import UserError
from .frozen import kept
from .generator import Generator

EFFECT_SAMPLES = 64
EFFECT_SEED = 0

LIMIT_SAMPLES = 512
"""Samples that tell the generator's own range: one half fits it, the other sets its edge."""
LIMIT_CODES = 8
"""Codes that are walked out of it, drawn after those samples."""
LIMIT_SEED = 0
LIMIT_DENSITY = 0.99
"""Share of the generator's own samples that lies inside."""
LIMIT_CAP = 30.0
"""σ at which every walk ends."""
LIMIT_RATIO = 1.6
"""Ratio of neighbouring steps of a walk."""
LIMIT_STEPS = 9
"""Steps of a walk: 0.70, 1.12, 1.79, ..., 18.75, 30 σ."""
LIMIT_CHUNK = 3
"""Steps that are rendered at once; a walk ends after the chunk that leaves the range."""
SATURATION = 0.05
"""An effect saturates where the further change per σ falls below this share of the change per σ near 0."""

FEATURE_CELLS = 8
"""Rows and columns of the area-pooled pixels among the features of an image."""
ENERGY_CELLS = 2
"""Rows and columns of the pooled energies of each level of the Laplacian pyramid."""
ENERGY_FLOOR = 1e-5
"""Added before the logarithm: below it, an energy is rounding."""

EQUAL_SAMPLES = 64
"""Samples whose mean distance is the yardstick of equal change."""
EQUAL_CODES = 8
"""Codes that are moved until they have changed by the wanted share of it."""
EQUAL_TOLERANCE = 0.02
"""Relative error of the change at which the search ends."""
EQUAL_TRIALS = 12
"""Strengths that the search tries at most."""


def sample_for(
    generator: Generator, directions: Directions, n: int, *, seed: int = 0, start: int = 0, truncation: float = 1.0
) -> Codes:
    """Draw codes that these directions can move: in their space, with one slot a layer where they pick layers.

    Labels are uniform where the generator has some.
    """
    label = "random" if generator.label_names else None
    codes = generator.sample(n, seed=seed, start=start, space=directions.space, truncation=truncation, label=label)
    return directions.host(generator, codes)


def traverse(
    generator: Generator,
    codes: Codes,
    directions: Directions,
    which: int | str,
    steps: Sequence[float],
    *,
    layers: str | None = None,
    absolute: bool = False,
) -> Tensor:
    """Render every code at each of `steps` along one direction.

    What lies before the first layer that the direction feeds is computed once a code.

    Args:
        codes: [batch, ...]; lifted to the directions' space where need be.
        which: index or name of the direction.
        steps: strengths in the directions' unit.
        layers: layer range; by default the direction's own.
        absolute: whether steps are coordinates to reach instead of distances.

    Returns:
        Images [batch, steps, channels, height, width] on the CPU.
    """
    chosen = layers or directions.layers[directions.index(which)]
    codes = directions.host(generator, codes, layers=chosen)
    first = generator.first_layer_fed(moved_parts(directions, which, codes.space, chosen), codes.space)
    rows = max(1, generator.batch_size // len(steps))
    pieces = []
    with torch.inference_mode():
        for start, stop in runtime.batches(len(codes), rows):
            some = codes[start:stop]
            state = generator.start(some, first)
            walked = directions.walk(some, which, steps, layers=chosen, absolute=absolute)
            for low, high in runtime.batches(len(walked), generator.batch_size):
                owners = torch.arange(low, high) // len(steps)
                pieces.append(generator.finish(walked[low:high], state.rows(owners)).cpu())
    images = torch.cat(pieces)
    return images.unflatten(0, (len(codes), len(steps)))


def moved_parts(directions: Directions, which: int | str, space: Space, layers: str | None = None) -> str:
    """Return the layer range of the parts where a direction is not zero: an axis of one layer moves that alone.

    Args:
        directions: of `space`.
        which: index or name of the direction.
        space: whose parts they are.
        layers: layer range to look in; by default the direction's own.
    """
    row = directions.index(which)
    vector = directions.vectors[row].expand(space.slots, -1)
    chosen = layers or directions.layers[row]
    moved = [p.name for p in space.picked(chosen) if vector[p.slot, p.start : p.stop].any()]
    return ",".join(moved) or chosen


def rms_change(before: Tensor, after: Tensor) -> Tensor:
    """Return the root mean square pixel change of each image, in [-1, 1] units as shown (clamped): [batch]."""
    return (before.clamp(-1, 1) - after.clamp(-1, 1)).square().mean((1, 2, 3)).sqrt()


def measure_effect(
    generator: Generator, directions: Directions, *, n: int = EFFECT_SAMPLES, seed: int = EFFECT_SEED
) -> Tensor:
    """Measure the effect of each direction: RMS pixel change from -½σ to +½σ, mean of `n` samples of `seed`: [k].

    For directions in raw units σ is taken from the space all the same, so that effects compare.
    """
    directions = directions.in_sigma(generator.space(directions.space))

    def measure() -> Tensor:
        codes = sample_for(generator, directions, n, seed=seed)
        effects = []
        for k in runtime.progress(range(len(directions)), what="effect"):
            images = traverse(generator, codes, directions, k, (-0.5, 0.5))
            effects.append(rms_change(images[:, 0], images[:, 1]).mean())
        return torch.stack(effects) if effects else torch.empty(0)

    content = _content(directions)
    if content is None:
        return measure()
    return _remembered(generator, "effects", (*content, n, seed), measure).clone()


def mean_changes(
    generator: Generator, directions: Directions, *, n: int = EFFECT_SAMPLES, seed: int = EFFECT_SEED
) -> Tensor:
    """Return the mean signed change of images from -1σ to +1σ along each direction, [k, channels, height, width].

    It says what a direction does wherever the code is, so that directions of generators that share nothing but their
    kind of images can be compared: by |cos|, since the sign of a direction means nothing.
    """
    directions = directions.in_sigma(generator.space(directions.space))
    codes = sample_for(generator, directions, n, seed=seed)
    means = []
    for k in runtime.progress(range(len(directions)), what="changes"):
        below, above = traverse(generator, codes, directions, k, (-1.0, 1.0)).clamp(-1, 1).unbind(1)
        means.append((above - below).mean(0))
    return torch.stack(means)


REMEMBERED = 16
"""How many effects, and how many ranges, a generator remembers."""


def _content(directions: Directions) -> tuple[Any, ...] | None:
    """Return all that directions hold but their provenance, to compare; None where they hold more than numbers."""
    content: list[Any] = []
    for each in fields(directions):
        value = getattr(directions, each.name)
        if each.name == "provenance":
            continue
        pairs = value.items() if isinstance(value, Mapping) else [("", value)]
        for name, item in pairs:
            if isinstance(item, Tensor):
                content.append((each.name, name, item.shape, item.detach().cpu().contiguous().numpy().tobytes()))
            elif item is None or isinstance(item, str | tuple):
                content.append((each.name, name, item))
            else:
                return None
    return tuple(content)


def _remembered(generator: Generator, what: str, key: tuple[Any, ...], measure: Callable[[], Any]) -> Any:
    """Return what was measured of this generator under the same key before, while its weights stay as they are."""
    network = generator.network
    lately: OrderedDict[Any, Any] = kept(network, what, OrderedDict, *network.parameters(), *network.buffers())
    key = (*key, generator.precision)
    if key not in lately:
        lately[key] = measure()
    lately.move_to_end(key)
    while len(lately) > REMEMBERED:
        lately.popitem(last=False)
    return lately[key]


# --- the generator's own range ----------------------------------------------------------------------------------------


def image_features(images: Tensor) -> Tensor:
    """Describe images coarsely, without weights: what is where, and how much detail.

    Args:
        images: [batch, channels, height, width], clamped to [-1, 1].

    Returns:
        [batch, features] in float64: the pixels area-pooled to 8x8, and of each level of the Laplacian pyramid from
        full resolution down to 16 px the logarithm of its energy in 2x2 cells.
    """
    level = images.clamp(-1, 1)
    features = [F.adaptive_avg_pool2d(level, FEATURE_CELLS).flatten(1)]
    while min(level.shape[-2:]) >= 2 * FEATURE_CELLS:
        lower = F.avg_pool2d(level, 2)
        band = level - F.interpolate(lower, size=level.shape[-2:], mode="bilinear", align_corners=False)
        energy = F.adaptive_avg_pool2d(band.square().mean(1, keepdim=True), ENERGY_CELLS)
        features.append((energy + ENERGY_FLOOR).log().flatten(1))
        level = lower
    return torch.cat(features, dim=1).double()


@dataclass(frozen=True, eq=False)
class Range:
    """The generator's own range in a space of features: an ellipsoid that holds a known share of its samples."""

    mean: Tensor
    """[features]."""
    scale: Tensor
    """Standard deviation of each feature, [features]."""
    factor: Tensor
    """Lower Cholesky factor of the shrunk correlation matrix, [features, features]."""
    edge: float
    """Squared Mahalanobis distance of the edge."""

    @classmethod
    def fit(cls, features: Tensor, density: float = LIMIT_DENSITY) -> Range:
        """Fit a Gaussian to the first half of the rows; its edge holds the share `density` of the second half.

        The correlation matrix is shrunk towards the identity, since there may be more features than samples.

        Source:
            Chen, Wiesel, Eldar, Hero, Shrinkage algorithms for MMSE covariance estimation, 2010, eq. 23 (OAS).
        """
        half = len(features) // 2
        if half < 2:
            raise UserError(f"{len(features)} samples came to fit the generator's range; give at least 4")
        fitted = features[:half]
        mean, scale = fitted.mean(0), fitted.std(0).clamp(min=1e-6)
        standard = (fitted - mean) / scale
        correlation = standard.T @ standard / half  # [f, f]
        n, dim = half, features.shape[1]
        trace, trace_of_square = correlation.trace(), correlation.square().sum()
        wanted = (1 - 2 / dim) * trace_of_square + trace.square()
        possible = (n + 1 - 2 / dim) * (trace_of_square - trace.square() / dim)
        shrinkage = float((wanted / possible.clamp(min=1e-30)).clamp(1e-6, 1))
        identity = torch.eye(dim, dtype=features.dtype)
        factor = torch.linalg.cholesky((1 - shrinkage) * correlation + shrinkage * trace / dim * identity)
        unbounded = cls(mean, scale, factor, math.inf)
        edge = float(unbounded.distance(features[half:]).quantile(density))
        return cls(mean, scale, factor, edge)

    def distance(self, features: Tensor) -> Tensor:
        """Return the squared Mahalanobis distance of each row: [batch]."""
        standard = (features - self.mean) / self.scale
        return torch.linalg.solve_triangular(self.factor, standard.T, upper=False).square().sum(0)


def own_range(generator: Generator, directions: Directions, *, n: int = LIMIT_SAMPLES, seed: int = LIMIT_SEED) -> Range:
    """Fit the range of a generator's own samples, at truncation 1, in the features of `image_features`."""

    def measure() -> Range:
        codes = sample_for(generator, directions, n, seed=seed)
        with torch.inference_mode():
            return Range.fit(torch.cat([image_features(each) for each in generator.stream(codes, what="own range")]))

    return _remembered(generator, "ranges", (directions.space, n, seed), measure)


def measure_limits(
    generator: Generator,
    directions: Directions,
    *,
    n: int = LIMIT_SAMPLES,
    n_codes: int = LIMIT_CODES,
    seed: int = LIMIT_SEED,
    cap: float = LIMIT_CAP,
) -> Tensor:
    """Measure how far each way, in σ, a direction stays within what the generator makes by itself.

    The protocol: `n` samples of `seed` at truncation 1 are described by `image_features`. A shrunk Gaussian is fitted
    to one half of them; the 99 % quantile of the squared Mahalanobis distance of the other half is the edge. The next
    `n_codes` codes of the same seed are walked outwards in steps whose ratio is 1.6, up to `cap`. The limit is where
    the median of their squared distances crosses the edge, interpolated linearly over σ², or, if that comes first,
    where the effect saturates: where the further change (RMS of pixels) per σ, taken at the middle of each step and
    interpolated over its logarithm, falls below 5 % of what it is in the first step. A walk that does neither ends at
    `cap`. A direction that changes no pixel has no limits: NaN.

    It costs `n` images, and for each direction and side about 6 `n_codes` images (9 `n_codes` at most); what comes
    before the first layer that moves is computed once a chunk of 3 steps. With n=96 and n_codes=2, which a generator
    of seconds an image can bear, limits scatter by a quarter or more.

    Args:
        generator: whose range it is.
        directions: raw ones are measured in σ all the same.
        n: samples that tell the range, 4 or more.
        n_codes: codes that are walked.
        seed: of the samples and codes.
        cap: σ at which every walk ends.

    Returns:
        [k, 2]: the lower limit, negative, and the upper one.
    """
    directions = directions.in_sigma(generator.space(directions.space))
    if not len(directions):
        return torch.empty(0, 2)
    inside = own_range(generator, directions, n=n, seed=seed)
    codes = sample_for(generator, directions, n_codes, seed=seed, start=n)
    limits = [
        [side * _walk_out(generator, codes, directions, k, side, inside, cap) for side in (-1, 1)]
        for k in runtime.progress(range(len(directions)), what="limits")
    ]
    return torch.tensor(limits)


def _walk_out(
    generator: Generator, codes: Codes, directions: Directions, which: int, side: int, inside: Range, cap: float
) -> float:
    """Return the σ, positive, at which the codes leave the range or stop changing on one side."""
    sigmas = [cap / LIMIT_RATIO**power for power in reversed(range(LIMIT_STEPS))]
    done, distances, rates = [0.0], [], []
    before = None
    for start, stop in runtime.batches(len(sigmas), LIMIT_CHUNK):
        chunk = sigmas[start:stop]
        steps = [side * sigma for sigma in (chunk if start else [0.0, *chunk])]
        images = traverse(generator, codes, directions, which, steps)  # [codes, steps, c, h, w]
        for image in images.unbind(1):
            distances.append(float(inside.distance(image_features(image)).median()))
            if before is not None:
                sigma = sigmas[len(done) - 1]
                rates.append(float(rms_change(before, image).mean()) / (sigma - done[-1]))
                done.append(sigma)
            before = image
        if rates[0] <= 0:
            return math.nan
        limit = min(crossing(done, distances, inside.edge), saturation(done, rates))
        if limit < done[-1]:
            return limit
    return cap


def crossing(sigmas: Sequence[float], distances: Sequence[float], edge: float) -> float:
    """Return the first σ at which squared distances, interpolated linearly over σ², exceed `edge`; inf if none does.

    Example:
        >>> crossing([0.0, 1.0, 2.0], [10.0, 11.0, 14.0], edge=12.25)
        1.5
    """
    for i, distance in enumerate(distances):
        if distance > edge:
            if i == 0:
                return sigmas[0]
            share = (edge - distances[i - 1]) / (distance - distances[i - 1])
            low, high = sigmas[i - 1] ** 2, sigmas[i] ** 2
            return math.sqrt(low + share * (high - low))
    return math.inf


def saturation(sigmas: Sequence[float], rates: Sequence[float], share: float = SATURATION) -> float:
    """Return the first σ at which the change per σ falls below `share` of the first one; inf if it never does.

    Args:
        sigmas: [n + 1], from 0 on.
        rates: [n], change per σ between neighbours; it belongs to the middle of its step.
        share: of the first rate.
    """
    middles = [(low + high) / 2 for low, high in itertools.pairwise(sigmas)]
    wanted = share * rates[0]
    for i in range(1, len(rates)):
        if rates[i] < wanted:
            fall = math.log(rates[i - 1]) - math.log(max(rates[i], 1e-12))
            done = (math.log(rates[i - 1]) - math.log(wanted)) / fall
            return middles[i - 1] + done * (middles[i] - middles[i - 1])
    return math.inf


def calibrate(
    generator: Generator,
    directions: Directions,
    *,
    limits: bool = True,
    n: int = EFFECT_SAMPLES,
    seed: int = EFFECT_SEED,
    limit_samples: int = LIMIT_SAMPLES,
    limit_codes: int = LIMIT_CODES,
) -> Directions:
    """Return the directions with σ, effect and limits measured where they are not known yet.

    Args:
        generator: the generator that they are used with.
        directions: they keep their unit; limits are in it.
        limits: whether to measure limits, the dearer part; see `measure_limits`.
        n: samples of the effect.
        seed: of the effect.
        limit_samples, limit_codes: `n` and `n_codes` of `measure_limits`.
    """
    space = generator.space(directions.space)
    directions = directions.with_figures(sigma=directions.known_sigma(space))
    if not directions.effect.isfinite().all():
        directions = directions.with_figures(effect=measure_effect(generator, directions, n=n, seed=seed))
    if limits and not directions.limits.isfinite().all():
        measured = measure_limits(generator, directions, n=limit_samples, n_codes=limit_codes)
        directions = directions.with_figures(limits=measured * directions.units_per_sigma(space)[:, None])
    return directions


KNOWN = "axes.safetensors"
"""File beside a generator's own that holds its axes with figures measured before."""


def with_known_figures(generator: Generator, directions: Directions) -> Directions:
    """Return directions with effects and limits that lie measured beside the generator, for the same vectors.

    Such a file is what `eigenlens discover GENERATOR --method eigen --out axes.safetensors` writes. Directions whose
    figures are measured already, of another generator, or of other vectors, come back as they are.
    """
    path = Path(generator.origin.source) / KNOWN
    if directions.effect.isfinite().all() or not path.is_file():
        return directions
    known = Directions.load(path)
    same = known.vectors.shape == directions.vectors.shape and torch.allclose(known.vectors, directions.vectors)
    if not same or known.provenance.generator.get("weights") != generator.weight_hash or known.unit != directions.unit:
        return directions
    return directions.with_figures(effect=known.effect, limits=known.limits)


# --- equal change -----------------------------------------------------------------------------------------------------


def image_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the multi-scale pixel distance of each pair of images: [batch].

    It is the mean over scales (full size, then halved by area down to 8 px) of the root mean square difference in
    [-1, 1] units as shown (clamped), so that a shifted texture counts less than a changed shape.

    Args:
        a, b: [batch, channels, height, width].
    """
    difference = a.clamp(-1, 1) - b.clamp(-1, 1)
    scales = [difference.square().mean((1, 2, 3)).sqrt()]
    while min(difference.shape[-2:]) >= 2 * FEATURE_CELLS:
        difference = F.avg_pool2d(difference, 2)
        scales.append(difference.square().mean((1, 2, 3)).sqrt())
    return torch.stack(scales).mean(0)


def sample_distance(
    generator: Generator, directions: Directions, *, n: int = EQUAL_SAMPLES, seed: int = EFFECT_SEED
) -> float:
    """Return the mean `image_distance` between two samples of the generator at truncation 1, over `n` pairs."""
    if n < 2:
        raise UserError(f"{n} samples came for the mean distance between samples; give at least 2")
    codes = sample_for(generator, directions, n, seed=seed)
    distances, first, before = [], None, None
    with torch.inference_mode():
        for start, stop in runtime.batches(n, generator.batch_size):
            images = generator(codes[start:stop]).cpu()
            first = images[:1] if first is None else first
            chain = images if before is None else torch.cat([before, images])
            distances.append(image_distance(chain[:-1], chain[1:]))
            before = images[-1:]
        assert first is not None
        assert before is not None
        distances.append(image_distance(before, first))
    return float(torch.cat(distances).mean())


@dataclass(frozen=True, eq=False)
class EqualChange:
    """The strengths at which directions change images equally."""

    fraction: float
    """The wanted change, as a share of the mean distance between two samples."""
    strength: Tensor
    """Strength of each direction in its unit, [k]; where it is not reached, the cap."""
    reached: Tensor
    """Whether the wanted change is reached within the limits, [k]."""
    change: Tensor
    """The change at that strength, as a share of the mean distance between two samples, [k]."""
    distance: float
    """The mean distance between two samples."""


def equal_change(
    generator: Generator,
    directions: Directions,
    fraction: float,
    *,
    n: int = EQUAL_SAMPLES,
    n_codes: int = EQUAL_CODES,
    seed: int = EFFECT_SEED,
) -> EqualChange:
    """Find the strength at which each direction changes images by a given share of the distance between two samples.

    The change is the mean `image_distance` between a code's image and its images at +s and -s, over `n_codes` codes
    of `seed`. The search keeps s between two strengths that bracket the wanted change (regula falsi with the Illinois
    rule) until it is met within 2 %. It goes no further than the nearer of a direction's two limits, or 30 σ where
    limits are not known. It costs `n` images, and 2 `n_codes` for each strength tried, about 3 a direction where
    effects are known, which tell where to begin.

    Args:
        generator: the generator.
        directions: with limits where they shall bound the search; see `calibrate`.
        fraction: of the mean distance between two samples, above 0.
        n: samples that tell that distance.
        n_codes: codes that are moved.
        seed: of both.

    Raises:
        UserError: on a fraction that is not above 0.
    """
    if not 0 < fraction < math.inf:
        raise UserError(f"fraction {fraction} came; give a number above 0, such as 0.2")
    space = generator.space(directions.space)
    distance = sample_distance(generator, directions, n=n, seed=seed)
    if not distance > 0:
        raise UserError(f"all samples of {generator.name} look the same, so no share of their distance means anything")
    codes = sample_for(generator, directions, n_codes, seed=seed)
    in_sigma = directions.in_sigma(space)
    found = []
    for k in runtime.progress(range(len(directions)), what="equal change"):
        low, high = in_sigma.span(k, LIMIT_CAP)
        effect = float(in_sigma.effect[k])
        guess = fraction * distance / effect if effect > 0 else 1.0  # false for NaN as well
        found.append(_search(_change(generator, codes, in_sigma, k, distance), fraction, guess, min(-low, high)))
    strengths, changes = torch.tensor(found).reshape(-1, 2).unbind(1)
    return EqualChange(
        fraction,
        strengths * directions.units_per_sigma(space),
        (changes / fraction - 1).abs() <= EQUAL_TOLERANCE,
        changes,
        distance,
    )


def _change(
    generator: Generator, codes: Codes, directions: Directions, which: int, distance: float
) -> Callable[[float], float]:
    """Return the function that gives the change at ±σ as a share of `distance`."""

    here = traverse(generator, codes, directions, which, (0.0,))[:, 0]

    def change(sigma: float) -> float:
        below, above = traverse(generator, codes, directions, which, (-sigma, sigma)).unbind(1)
        return float((image_distance(here, below) + image_distance(here, above)).mean() / (2 * distance))

    return change


def _search(change: Callable[[float], float], wanted: float, guess: float, cap: float) -> tuple[float, float]:
    """Return (s, change(s)) with change(s) = wanted within the tolerance, or s = cap where it stays below."""
    low, low_miss, high = 0.0, -wanted, min(guess, cap)
    high_miss = change(high) - wanted
    trials = 1
    while high_miss < 0 and high < cap and trials < EQUAL_TRIALS:
        low, low_miss = high, high_miss
        # a linear change needs this factor; the bounds keep a flat start and rounding from stalling the search
        high = min(cap, high * min(8.0, max(1.25, 1.02 * wanted / max(high_miss + wanted, 1e-12))))
        high_miss = change(high) - wanted
        trials += 1
    best, miss, kept = high, high_miss, 0
    while abs(miss) > EQUAL_TOLERANCE * wanted and high_miss > 0 and trials < EQUAL_TRIALS:
        best = low - low_miss * (high - low) / (high_miss - low_miss)
        miss = change(best) - wanted
        trials += 1
        if miss < 0:
            low, low_miss = best, miss
            high_miss, kept = (high_miss / 2, -1) if kept == -1 else (high_miss, -1)  # the Illinois rule
        else:
            high, high_miss = best, miss
            low_miss, kept = (low_miss / 2, 1) if kept == 1 else (low_miss, 1)
    return best, miss + wanted
