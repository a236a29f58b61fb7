"""Names for directions, proposed from what they change and left out where nothing explains them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .directions import Directions
from .errors import UserError
from .inference import p_value
from .method import METHODS
from .profile import Profile, Strengths
from .reader import EXTRACTORS, FunctionReader, Reader, factor_of

MOVED = 0.5
"""Standard deviations that an attribute must change from one side to the other to be worth a name."""
ERRORS = 3.0
"""Standard errors that a change must be above 0."""
PURE = 0.6
"""Share of all change from which on one attribute names a direction."""
JOINT = 0.7
"""Share of all change from which on a few attributes together name a direction."""
PART = 0.3
"""Share of all change that an attribute needs for a place in a joint name."""
MOST_PARTS = 3
"""Attributes in a joint name at most."""
CHANCE = 0.05
"""A direction that random ones match more often than this stays unnamed; with few random ones, one that any matches."""
_AUTOMATIC = re.compile(r"[a-z]+\d*-\d+|L\d+D\d+|L\d+-(?:injected|image)-\d+")


@dataclass(frozen=True)
class Part:
    """One factor that a direction changes."""

    attribute: str
    """The attribute of the factor that changes most."""
    change: float
    """By how much, from one side to the other, signed, in standard deviations among samples."""
    share: float
    """Of the sum of squared changes of all factors."""
    is_sure: bool
    """Whether the change is large enough, and larger than its error."""


@dataclass(frozen=True)
class Proposal:
    """A name for a direction, and why."""

    direction: str
    """The name it had."""
    name: str
    """The name proposed; the old one where nothing explains it, or where someone gave it."""
    evidence: str
    """What speaks for the name, or why there is none."""
    parts: tuple[Part, ...]
    """What it changes, the most first."""
    p: float
    """How often random directions are as pure at the same change of images; NaN where not known."""
    is_named: bool
    """Whether the name is a new one."""


def parts_of(profile: Profile, which: int, sigma: float) -> tuple[Part, ...]:
    """Return what a direction changes from -σ to +σ: one part a factor, the most changed first.

    Shares are of squared changes, so that one large change counts for more than many small ones. What a change owes to
    chance (its squared standard error) is taken from it first.
    """
    moved, error = profile.moved(which, sigma), profile.moved_error(which, sigma)
    sure = np.sqrt(np.clip(moved**2 - error**2, 0, None))
    best: dict[str, int] = {}
    for i, name in enumerate(profile.attributes):
        factor = factor_of(name)
        if factor not in best or sure[i] > sure[best[factor]]:
            best[factor] = i
    total = max(sum(sure[i] ** 2 for i in best.values()), 1e-12)
    parts = [
        Part(
            profile.attributes[i],
            float(moved[i]),
            float(sure[i] ** 2 / total),
            bool(abs(moved[i]) >= MOVED and abs(moved[i]) >= ERRORS * error[i]),
        )
        for i in best.values()
    ]
    return tuple(sorted(parts, key=lambda part: -part.share))


def text_reader(texts: Sequence[str]) -> Reader:
    """Return a reader whose attributes are texts: how near CLIP holds an image to each, from weights of your own.

    Raises:
        UserError: where no weights are at hand, or there are no texts.
    """
    if not texts:
        raise UserError("no texts came; give some, such as 'a smiling face'")
    clip = EXTRACTORS["clip"]()
    wanted = clip.texts(list(texts))  # [texts, dim]
    return FunctionReader(lambda images: clip(images) @ wanted.T, tuple(re.sub(r"\s+", "-", each) for each in texts))


def purities(profile: Profile, strengths: Strengths) -> list[float]:
    """Return the share of the factor that each direction changes most, 0 where no change is sure.

    This is what p-values are counted on: a share, since how many standard deviations come with an equal change of
    images tells how much of a picture an attribute covers, not how good a direction is.
    """
    found = [parts_of(profile, k, float(strengths.sigma[k])) for k in range(len(profile))]
    return [max((part.share for part in parts if part.is_sure), default=0.0) for parts in found]


def propose(
    directions: Directions, profile: Profile, strengths: Strengths, *, null: Sequence[float] = ()
) -> list[Proposal]:
    """Propose a name for every direction.

    Args:
        directions: those to name; a name that someone gave (anything but `sefa-3` or `L2D1`) is kept.
        profile: of the same directions.
        strengths: at which their changes are compared, equal image change as a rule.
        null: `purities` of random directions.
    """
    pure = purities(profile, strengths)
    made: list[Proposal] = []
    taken = {name for name in directions.names if not is_automatic(name)}
    for k, old in enumerate(directions.names):
        parts = parts_of(profile, k, float(strengths.sigma[k]))
        p = p_value(pure[k], null) if len(null) else math.nan
        name, evidence = _explained(parts, p, max(CHANCE, 1 / (1 + len(null))))
        if not is_automatic(old):
            made.append(Proposal(old, old, f"given; {evidence}", parts, p, False))
        elif not name:
            made.append(Proposal(old, old, evidence, parts, p, False))
        else:
            name = _free(name, taken)
            made.append(Proposal(old, name, evidence, parts, p, True))
        taken.add(made[-1].name)
    return made


def is_automatic(name: str) -> bool:
    """Tell whether a name is one that a method numbers its directions by, also with what `concatenate` puts before it.

    Example:
        >>> is_automatic("sefa-3"), is_automatic("L2D1"), is_automatic("eigen-L2D1"), is_automatic("smile")
        (True, True, True, False)
    """
    before, _, rest = name.partition("-")
    is_put_before = before.isdecimal() or all(each in METHODS for each in before.split("+"))
    return bool(_AUTOMATIC.fullmatch(name) or (is_put_before and _AUTOMATIC.fullmatch(rest)))


def _explained(parts: Sequence[Part], p: float, chance: float) -> tuple[str, str]:
    """Return a name, empty where nothing explains the direction, and the evidence."""
    sure = [part for part in parts if part.is_sure]
    if not sure:
        most = f"; most {_worded(parts[0])}" if parts and parts[0].share else ""
        return "", f"changes no attribute by {MOVED:g} standard deviations beyond doubt{most}"
    if p > chance:  # false for NaN
        return "", f"{_worded(sure[0])}, but random directions are as pure in {100 * p:.0f} % of cases"
    first = sure[0]
    if first.share >= PURE:
        return f"{first.attribute}{_sign(first)}", f"{first.attribute} {_sign(first)}, {first.share:.2f} pure"
    joint = [part for part in sure[:MOST_PARTS] if part.share >= PART]
    listed = " + ".join(_worded(part) for part in joint or sure[:MOST_PARTS])
    if len(joint) < 2 or sum(part.share for part in joint) < JOINT:
        return "", f"changes many things, most {listed}"
    return ",".join(f"{part.attribute}{_sign(part)}" for part in joint), listed


def _worded(part: Part) -> str:
    return f"{part.attribute}{'' if part.change > 0 else ' -'} {100 * part.share:.0f} %"


def _sign(part: Part) -> str:
    return "+" if part.change > 0 else "-"


def _free(name: str, taken: set[str]) -> str:
    """Return a name that is not taken: the name itself, or with a number."""
    number, free = 2, name
    while free in taken:
        free, number = f"{name}{number}", number + 1
    return free


def renamed(directions: Directions, proposals: Sequence[Proposal]) -> Directions:
    """Return the directions under their proposed names; where they come from also tells the evidence for each."""
    named = directions.renamed([each.name for each in proposals])
    evidence = {each.name: each.evidence for each in proposals}
    arguments = {**named.provenance.arguments, "evidence": evidence}
    return replace(named, provenance=replace(named.provenance, arguments=arguments))
