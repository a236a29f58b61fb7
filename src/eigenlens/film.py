"""Films: which step of which direction each frame shows, and the images of one frame at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import runtime
from .codes import Codes
from .directions import Directions
from .effect import moved_parts
from .errors import UserError
from .generator import Generator, State

Easing = Literal["linear", "smooth"]


@dataclass(frozen=True)
class Shot:
    """What one frame shows."""

    which: str
    """The direction that is moved."""
    strength: float
    """How far."""


def eased(n: int, easing: Easing = "smooth") -> list[float]:
    """Return `n` shares from 0 to 1, evenly, or slowly at both ends (half a cosine).

    Example:
        >>> [round(share, 2) for share in eased(5)]
        [0.0, 0.15, 0.5, 0.85, 1.0]

    Raises:
        UserError: for fewer than two, and for an unknown easing.
    """
    if n < 2:
        raise UserError(f"{n} {'step' if n == 1 else 'steps'} came; from one end to the other takes 2 or more")
    shares = [i / (n - 1) for i in range(n)]
    if easing == "linear":
        return shares
    if easing != "smooth":
        raise UserError(f"unknown easing {easing!r}; allowed: linear, smooth")
    return [(1 - math.cos(math.pi * share)) / 2 for share in shares]


def sweep(which: str, low: float, high: float, n: int, easing: Easing = "smooth") -> list[Shot]:
    """Return `n` shots of one direction from `low` to `high`."""
    return [Shot(which, low + (high - low) * share) for share in eased(n, easing)]


def in_turn(names: Sequence[str], low: float, high: float, n: int, easing: Easing = "smooth") -> list[Shot]:
    """Return shots of several directions one after the other, `n` each: from 0 to `high`, to `low`, and back to 0.

    Example:
        >>> [shot.strength for shot in in_turn(["a"], -1.0, 1.0, 9, "linear")]
        [0.0, 0.5, 1.0, 0.5, 0.0, -0.5, -1.0, -0.5, 0.0]

    Raises:
        UserError: for a range of nothing, and for fewer shots than reach its ends and lead back.
    """
    shots = []
    for name in names:
        legs = [(a, b) for a, b in itertools.pairwise([0.0, high, low, 0.0]) if a != b]
        if not legs:
            raise UserError(f"a film of {name} from {low:g} to {high:g} shows nothing; give a range")
        if n <= len(legs):
            raise UserError(f"{n} frames came; from 0 to {high:g}, to {low:g} and back takes {len(legs) + 1} or more")
        whole = sum(abs(b - a) for a, b in legs)
        shots.append(Shot(name, 0.0))
        at, gone = 0, 0.0
        for left, (a, b) in zip(reversed(range(len(legs))), legs, strict=True):
            gone += abs(b - a)
            until = min(max(round((n - 1) * gone / whole), at + 1), n - 1 - left)  # each leg has its frames
            shots += [Shot(name, a + (b - a) * share) for share in eased(until - at + 1, easing)[1:]]
            at = until
    return shots


def walk(
    generator: Generator,
    codes: Codes,
    directions: Directions,
    shots: Sequence[Shot],
    *,
    layers: str | None = None,
    absolute: bool = False,
) -> Iterator[Tensor]:
    """Give the images of every code at one shot after the other; no more than one frame is held.

    What lies before the first layer that a direction feeds is computed once a code for all shots of it in a row.

    Args:
        generator: the generator.
        codes: [batch, ...]; lifted to the directions' space where need be.
        directions: those that the shots name.
        shots: one a frame.
        layers: layer range; by default each direction's own.
        absolute: whether strengths are coordinates to reach instead of distances.

    Yields:
        Images [batch, channels, height, width] on the CPU.
    """
    at: str | None = None
    hosted, states = codes, list[tuple[Codes, State]]()
    for shot in shots:
        with torch.inference_mode():
            if shot.which != at:
                at = shot.which
                chosen = layers or directions.layers[directions.index(at)]
                hosted = directions.host(generator, codes, layers=chosen)
                first = generator.first_layer_fed(moved_parts(directions, at, hosted.space, chosen), hosted.space)
                rows = [hosted[a:b] for a, b in runtime.batches(len(hosted), generator.batch_size)]
                states = [(some, generator.start(some, first)) for some in rows]
            images = torch.cat(
                [
                    generator.finish(
                        directions.walk(some, at, [shot.strength], layers=layers, absolute=absolute), state
                    ).cpu()
                    for some, state in states
                ]
            )
        yield images
