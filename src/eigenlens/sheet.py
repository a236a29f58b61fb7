"""Strips of several directions, each over its limits, in one labelled picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from . import runtime
from .codes import Codes
from .directions import Directions
from .effect import traverse
from .errors import UserError
from .generator import Generator
from .images import grid


def spread(directions: Directions, which: int | str, n: int) -> list[float]:
    """Return `n` strengths over the limits of a direction, with 0 in the middle.

    Example:
        >>> d = Directions(torch.eye(3)[:1, None], "z", ("a",), limits=torch.tensor([[-2.0, 4.0]]))
        >>> spread(d, "a", 5)
        [-2.0, -1.0, 0.0, 2.0, 4.0]

    Raises:
        UserError: where `n` is even, or below 3.
    """
    if n < 3 or n % 2 == 0:
        raise UserError(f"{n} steps came; give an odd number from 3, so that the middle one is the code itself")
    low, high = directions.span(which)
    half = n // 2
    return [low * (half - i) / half for i in range(half)] + [high * i / half for i in range(half + 1)]


def sheet(
    generator: Generator,
    directions: Directions,
    codes: Codes,
    *,
    which: Sequence[int | str] | None = None,
    steps: int | Sequence[float] = 7,
    title: str = "",
) -> Image.Image:
    """Draw the strips of several directions as one labelled grid: a row for each direction and code.

    Args:
        generator: the generator.
        directions: with limits, which the strips span; ±3 where they are not known.
        codes: those to move, in any space that leads to the directions'.
        which: indices or names; all by default.
        steps: how many columns, an odd number; or the strengths themselves, the same for all rows.
        title: a line above.

    Returns:
        A picture; each row's label is the direction's name with the strengths at both ends.
    """
    chosen = [directions.index(each) for each in (range(len(directions)) if which is None else which)]
    if not chosen or not len(codes):
        raise UserError("a sheet without directions or codes was asked for; give at least one of each")
    is_given = not isinstance(steps, int)
    rows, labels = [], []
    for k in runtime.progress(chosen, what="sheet"):
        strengths = list(steps) if not isinstance(steps, int) else spread(directions, k, steps)
        rows.append(traverse(generator, codes, directions, k, strengths).flatten(0, 1))
        ends = "" if is_given else f"  {strengths[0]:+.1f} … {strengths[-1]:+.1f}"
        labels += [directions.names[k] + ends] + [""] * (len(codes) - 1)
    columns = list(steps) if not isinstance(steps, int) else []
    return grid(
        torch.cat(rows),
        columns=len(rows[0]) // len(codes),
        row_labels=labels,
        column_labels=[f"{step:+g}" if step else "0" for step in columns],
        title=title,
    )
