"""The errors that a user can cause, so that every door can tell them from faults of the program."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping


class UserError(ValueError):
    """Report a mistake that the user can mend: what came, what is allowed, what to do.

    At the shell it becomes one line on stderr and exit code 2.
    """


class UnknownName(UserError, KeyError):
    """Report a name that no table holds, with the nearest one that it does."""

    def __str__(self) -> str:  # KeyError would print the repr, quotes and all
        return str(self.args[0])


class Unsupported(UserError):
    """Report an organ that a family of generators lacks, and why."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownName:
    """Build the error for a `name` that is not among the `known` ones of this `kind`."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(known[:40]) + (f", and {len(known) - 40} more" if len(known) > 40 else "")
    return UnknownName(f"unknown {kind} {str(name)!r}.{hint} Known: {listed or 'none'}")


def check_ranges(settings: object, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raise UserError unless each field named in `limits` is a finite number from its low to its high end."""
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not math.isfinite(value) or not low <= value <= high:
            upwards = f" to {high:g}" if math.isfinite(high) else ""
            raise UserError(f"{name} {value} is not possible; it is a number from {low:g}{upwards}")
