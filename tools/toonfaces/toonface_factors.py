"""Factors of the toon-face data set: what they are, how they are drawn, and how they become colours.

Every factor takes one uniform number. Sample i reads its numbers from a Philox stream keyed on (seed, i), so it
depends on nothing else: not on how many samples are drawn, nor on the order of drawing. Options change one factor's
rule and leave the numbers of all the others as they were.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the renderers share
from rendering import RequestError

ABSENT_CODE = -1
"""Code of a categorical factor that does not apply to a sample, such as the beard style where there is no beard."""


@dataclass(frozen=True)
class Number:
    """A factor with a uniform distribution over [low, high]."""

    name: str
    low: float
    high: float
    unit: str
    applies_to: tuple[str, tuple[str, ...]] | None = None
    """Categorical factor and the categories under which this factor shows; None where it always shows."""


@dataclass(frozen=True)
class Category:
    """A factor that takes one of several named values; its code is the position of the name."""

    name: str
    categories: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    """Probability of each category; None gives all the same."""
    applies_to: tuple[str, tuple[str, ...]] | None = None

    @property
    def is_presence(self) -> bool:
        """True for a yes-or-no factor."""
        return self.categories == ("absent", "present")


PRESENCE = ("absent", "present")
GRADED = ("background_kind", ("gradient", "stripes", "dots"))
REPEATED = ("background_kind", ("stripes", "dots"))

# The colour boxes lie wholly inside sRGB, so L, a and b are independent of each other and no colour is clipped.
# New factors go at the end: a factor's place in this table fixes which random numbers it reads.
FACTORS: tuple[Number | Category, ...] = (
    Number("rotation", -15.0, 15.0, "degrees, clockwise"),
    Number("scale", 0.85, 1.15, "1 is the usual size"),
    Number("shift_x", -0.08, 0.08, "part of the picture, right is positive"),
    Number("shift_y", -0.05, 0.05, "part of the picture, down is positive"),
    Category("background_kind", ("plain", "gradient", "stripes", "dots")),
    Number("background_L", 45.0, 80.0, "CIELAB"),
    Number("background_a", -15.0, 20.0, "CIELAB"),
    Number("background_b", -20.0, 30.0, "CIELAB"),
    Number("background2_L", 45.0, 80.0, "CIELAB", applies_to=GRADED),
    Number("background2_a", -15.0, 20.0, "CIELAB", applies_to=GRADED),
    Number("background2_b", -20.0, 30.0, "CIELAB", applies_to=GRADED),
    Number("background_strength", 0.3, 0.7, "weight of the second colour", applies_to=GRADED),
    # 80 degrees in all: dots repeat after 90, so no two angles give the same picture and the ends never meet.
    Number("background_angle", -40.0, 40.0, "degrees, clockwise", applies_to=GRADED),
    Number("background_frequency", 3.0, 6.0, "cycles per picture", applies_to=REPEATED),
    Number("skin_tone", 0.0, 1.0, "0 lightest, 1 darkest"),
    Number("hair_L", 22.0, 72.0, "CIELAB"),
    Number("hair_a", 0.0, 13.0, "CIELAB"),
    Number("hair_b", 4.0, 28.0, "CIELAB"),
    Number("clothes_L", 40.0, 70.0, "CIELAB"),
    Number("clothes_a", -15.0, 40.0, "CIELAB"),
    Number("clothes_b", -20.0, 40.0, "CIELAB"),
    Category("hair_style", ("sideComed", "undercut", "spiky", "bun")),
    Category("rear_hair", PRESENCE),
    Category(
        "rear_hair_style",
        ("longStraight", "longWavy", "shoulderHigh", "neckHigh"),
        applies_to=("rear_hair", ("present",)),
    ),
    Category("eyes", ("happy", "wide", "bow", "humble", "wink")),
    Category("eyebrows", ("raised", "angry", "happy", "sad", "neutral")),
    Category("mouth", ("laugh", "angry", "agape", "smile", "sad")),
    Category("beard", PRESENCE),
    Category(
        "beard_style",
        ("moustacheTwirl", "fullBeard", "chin", "chinMoustache", "longBeard"),
        applies_to=("beard", ("present",)),
    ),
    Category("clothes_style", ("turtleNeck", "openJacket", "dress", "shirt", "tShirt")),
)

SKIN_RAMP = ("f6d5c0", "dfae8e", "b67d5b", "8a563c", "63402f")
"""Colours that the skin tone runs through, evenly spaced from 0 to 1; between them it goes straight in CIELAB."""


def factor_named(name: str) -> Number | Category:
    """Return the factor called `name`."""
    for factor in FACTORS:
        if factor.name == name:
            return factor
    raise RequestError(_unknown("factor", name, [factor.name for factor in FACTORS]))


def parse_correlation(text: str) -> tuple[str, str, float]:
    """Read `A:B=R` into (A, B, R)."""
    names, _, number = text.partition("=")
    first, _, second = names.partition(":")
    strength = _number_in(number, -1.0, 1.0, f"--correlate {text}", "--correlate beard:rear_hair=0.7")
    if not first or not second:
        raise RequestError(f"--correlate {text}: two factors are needed; write it as --correlate beard:rear_hair=0.7")
    return factor_named(first).name, factor_named(second).name, strength


def parse_rarity(text: str) -> tuple[str, str, float]:
    """Read `FACTOR=P` or `FACTOR.CATEGORY=P` into (factor, category, P)."""
    target, _, number = text.partition("=")
    name, _, category = target.partition(".")
    factor = factor_named(name)
    if isinstance(factor, Number):
        known = ", ".join(factor.name for factor in FACTORS if isinstance(factor, Category))
        raise RequestError(f"--rare {text}: {name} is a number and has no categories; choose one of: {known}")
    category = category or ("present" if factor.is_presence else "")
    if not category:
        example = f"--rare {name}.{factor.categories[0]}=0.02"
        raise RequestError(
            f"--rare {text}: {name} has the categories {', '.join(factor.categories)}; name one, as in {example}"
        )
    if category not in factor.categories:
        raise RequestError(_unknown(f"category of {name}", category, factor.categories))
    return name, category, _number_in(number, 0.0, 1.0, f"--rare {text}", "--rare beard=0.02")


def sample_factors(
    n: int,
    *,
    seed: int = 0,
    start: int = 0,
    correlations: Sequence[tuple[str, str, float]] = (),
    rarities: Sequence[tuple[str, str, float]] = (),
) -> dict[str, np.ndarray]:
    """Draw the factors of samples start .. start + n - 1.

    Args:
        n: number of samples.
        seed: seed of the data set, from 0 up to 2**64 - 1.
        start: index of the first sample.
        correlations: (A, B, r): with probability |r|, B's uniform number is A's own (r > 0) or 1 - A's (r < 0), and
            otherwise B's own. B's distribution stays exactly what it was. The two uniform numbers then have
            correlation r, so two numbers have Pearson correlation r, and two yes-or-no factors of the same
            probability have r too (for r > 0, or at probability 0.5 for either sign).
        rarities: (factor, category, probability): that category gets this probability and the others of the factor
            share what is left in their old proportions.

    Returns:
        One array [n] per factor, float32 (numbers) or int16 (codes), in the order of `FACTORS`. Where a factor does
        not apply, numbers are NaN and codes are -1.

    Raises:
        RequestError: an unknown name, a factor tied twice or in a circle, or probabilities that add up to over 1.
    """
    uniforms = _uniforms(n, seed, start)
    _tie(uniforms, correlations)
    weights = _weights(rarities)
    factors: dict[str, np.ndarray] = {}
    for column, factor in enumerate(FACTORS):
        u = uniforms[:, column, 0]
        if isinstance(factor, Number):
            values = (factor.low + (factor.high - factor.low) * u).astype(np.float32)
        else:
            steps = np.cumsum(weights[factor.name])[:-1]
            values = np.searchsorted(steps, u, side="right").astype(np.int16)
        factors[factor.name] = values
    for factor in FACTORS:
        if factor.applies_to is not None:
            blank = np.nan if isinstance(factor, Number) else ABSENT_CODE
            factors[factor.name][~applies(factor, factors)] = blank
    return factors


def applies(factor: Number | Category, factors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return, per sample, whether `factor` shows in the picture [n]."""
    if factor.applies_to is None:
        return np.ones(len(factors[factor.name]), dtype=bool)
    parent_name, shown_under = factor.applies_to
    parent = factor_named(parent_name)
    assert isinstance(parent, Category)
    return np.isin(factors[parent_name], [parent.categories.index(name) for name in shown_under])


def describe_factors(
    rarities: Sequence[tuple[str, str, float]] = (),
) -> dict[str, dict[str, object]]:
    """Return the factor table as plain values for the `meta` entry of a data set."""
    weights = _weights(rarities)
    table: dict[str, dict[str, object]] = {}
    for factor in FACTORS:
        if isinstance(factor, Number):
            row: dict[str, object] = {"type": "number", "low": factor.low, "high": factor.high, "unit": factor.unit}
        else:
            row = {
                "type": "category",
                "categories": list(factor.categories),
                "probabilities": [float(weight) for weight in weights[factor.name]],
            }
        if factor.applies_to is not None:
            row["applies_to"] = {"factor": factor.applies_to[0], "categories": list(factor.applies_to[1])}
        table[factor.name] = row
    return table


def _uniforms(n: int, seed: int, start: int) -> np.ndarray:
    """Return uniform numbers [n, factors, 2]: one that decides the factor, one that decides whether a tie holds."""
    uniforms = np.empty((n, len(FACTORS), 2))
    for row in range(n):
        key = np.array([seed, start + row], dtype=np.uint64)
        uniforms[row] = np.random.Generator(np.random.Philox(key=key)).random((len(FACTORS), 2))
    return uniforms


def _tie(uniforms: np.ndarray, correlations: Sequence[tuple[str, str, float]]) -> None:
    """Tie the deciding numbers of factors in place, leaders before followers."""
    columns = {factor.name: column for column, factor in enumerate(FACTORS)}
    leaders: dict[str, tuple[str, float]] = {}
    for first, second, strength in correlations:
        factor_named(first), factor_named(second)
        if second in leaders:
            raise RequestError(f"{second} is tied twice, to {leaders[second][0]} and {first}; keep one of the two")
        leaders[second] = (first, strength)
    pending = dict(leaders)
    while pending:
        ready = [name for name, (leader, _) in pending.items() if leader not in pending]
        if not ready:
            raise RequestError(f"the ties run in a circle: {', '.join(pending)}; remove one of them")
        for name in ready:
            leader, strength = pending.pop(name)
            tied = uniforms[:, columns[name], 1] < abs(strength)
            source = uniforms[:, columns[leader], 0]
            source = source if strength > 0 else 1.0 - source
            uniforms[:, columns[name], 0] = np.where(tied, source, uniforms[:, columns[name], 0])


def _weights(rarities: Sequence[tuple[str, str, float]]) -> dict[str, np.ndarray]:
    """Return the probability of each category of each categorical factor."""
    asked: dict[str, dict[str, float]] = {}
    for name, category, probability in rarities:
        asked.setdefault(name, {})[category] = probability
    weights: dict[str, np.ndarray] = {}
    for factor in FACTORS:
        if not isinstance(factor, Category):
            continue
        size = len(factor.categories)
        plain = np.array(factor.weights if factor.weights is not None else [1.0 / size] * size)
        wanted = asked.get(factor.name, {})
        fixed = np.array([category in wanted for category in factor.categories])
        total = sum(wanted.values())
        if total > 1.0 or (fixed.all() and total != 1.0):
            raise RequestError(
                f"the probabilities asked for {factor.name} add up to {total:g}; they may reach 1 at most "
                "(and must reach it where every category is named): change them"
            )
        if not fixed.all():
            plain = np.where(fixed, 0.0, plain)
            plain = plain * ((1.0 - total) / plain.sum())
        weights[factor.name] = np.array(
            [wanted.get(category, weight) for category, weight in zip(factor.categories, plain, strict=True)]
        )
    return weights


# sRGB primaries and the D65 white point (IEC 61966-2-1).
_XYZ_TO_RGB = np.array(
    [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
_BEND = 6.0 / 29.0


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """Convert CIELAB (D65) [..., 3] to sRGB in [0, 1] [..., 3].

    Source: CIE 15:2004 for CIELAB, IEC 61966-2-1 for sRGB.
    """
    lightness, a, b = np.moveaxis(np.asarray(lab, dtype=np.float64), -1, 0)
    middle = (lightness + 16.0) / 116.0
    roots = np.stack([middle + a / 500.0, middle, middle - b / 200.0], axis=-1)
    xyz = np.where(roots > _BEND, roots**3, 3.0 * _BEND**2 * (roots - 4.0 / 29.0)) * _WHITE
    linear = np.clip(xyz @ _XYZ_TO_RGB.T, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1.0 / 2.4) - 0.055)


def srgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB in [0, 1] [..., 3] to CIELAB (D65) [..., 3]."""
    rgb = np.asarray(rgb, dtype=np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratio = (linear @ np.linalg.inv(_XYZ_TO_RGB).T) / _WHITE
    roots = np.where(ratio > _BEND**3, np.cbrt(ratio), ratio / (3.0 * _BEND**2) + 4.0 / 29.0)
    x, y, z = np.moveaxis(roots, -1, 0)
    return np.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1)


def skin_lab(tone: np.ndarray) -> np.ndarray:
    """Return the skin colour in CIELAB [n, 3] for tones in [0, 1] [n]."""
    anchors = srgb_to_lab(np.array([[int(color[i : i + 2], 16) / 255.0 for i in (0, 2, 4)] for color in SKIN_RAMP]))
    places = np.linspace(0.0, 1.0, len(anchors))
    return np.stack([np.interp(tone, places, anchors[:, channel]) for channel in range(3)], axis=-1)


def lab_factor(factors: Mapping[str, np.ndarray], prefix: str) -> np.ndarray:
    """Gather the three factors of one colour into CIELAB [n, 3]."""
    return np.stack([factors[f"{prefix}_{axis}"] for axis in "Lab"], axis=-1).astype(np.float64)


def _number_in(text: str, low: float, high: float, where: str, example: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise RequestError(f"{where}: {text!r} is not a number from {low:g} to {high:g}; write it as {example}")
    return value


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}"
