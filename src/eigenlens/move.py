"""A Move: one direction, how far or to where, and on which layers; what moves do to codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from .codes import Codes
from .directions import Directions
from .errors import UserError
from .generator import Generator


@dataclass(frozen=True)
class Move:
    """One step of an Edit."""

    directions: str
    """A file of directions, or the name of a method."""
    name: str | int
    """Name or index of the direction."""
    by: float | None = None
    """Distance from where the code is; exactly one of `by` and `to` is given."""
    to: float | None = None
    """Coordinate to reach."""
    layers: str | None = None
    """Layer range; the direction's own where None."""
    unit: Literal["sigma", "raw"] | None = None
    """Unit of the strength; the directions' own where None."""

    def __post_init__(self) -> None:
        if (self.by is None) == (self.to is None):
            raise UserError(
                f"the move along {self.name!r} needs either 'by', a distance, or 'to', a coordinate; give one of them"
            )
        if not math.isfinite(self.by if self.to is None else self.to):  # type: ignore[arg-type]
            raise UserError(f"the move along {self.name!r} is not finite; give a number")
        if self.unit not in (None, "sigma", "raw"):
            raise UserError(f"unit {self.unit!r} of the move along {self.name!r} is not known; allowed: sigma, raw")


def move_codes(generator: Generator, codes: Codes, moves: tuple[Move, ...], find: Callable[[str], Directions]) -> Codes:
    """Move codes: all `by` one after the other, then all `to` together, so that each coordinate is reached.

    Raises:
        UserError: where the `to` moves contradict each other, or a direction does not fit.
    """
    for move in moves:
        if move.by is not None:
            directions = _in_unit(find(move.directions), move, generator)
            codes = directions.host(generator, codes, layers=move.layers or _own_layers(directions, move))
            codes = directions.move(codes, move.name, by=move.by, layers=move.layers)
    wanted = [(m, _in_unit(find(m.directions), m, generator)) for m in moves if m.to is not None]
    for move, directions in wanted:
        codes = directions.host(generator, codes, layers=move.layers or _own_layers(directions, move))
    return _reach(codes, wanted) if wanted else codes


def _own_layers(directions: Directions, move: Move) -> str:
    return directions.layers[directions.index(move.name)]


def _in_unit(directions: Directions, move: Move, generator: Generator) -> Directions:
    if move.unit == "sigma":
        return directions.in_sigma(generator.space(directions.space))
    return directions.in_raw() if move.unit == "raw" else directions


def _reach(codes: Codes, wanted: list[tuple[Move, Directions]]) -> Codes:
    """Solve for the amounts along all `to` directions that bring every code to all their coordinates."""
    now = torch.stack([d.coordinates(codes, m.name, layers=m.layers) for m, d in wanted], dim=1)  # [batch, m]
    steps = torch.stack([d.unit_step(codes.space, m.name, m.layers) for m, d in wanted]).to(
        codes.latent
    )  # [m, slots, dim]
    flat = steps.flatten(1).cpu().double()  # [m, slots * dim]; on the CPU, as not every device has float64
    lengths = flat.norm(dim=1)
    unit = flat / lengths[:, None].clamp(min=1e-30)
    cosines = unit @ unit.T  # [m, m]: what a step of length 1 along j moves the code along i
    if torch.linalg.cond(cosines) > 1e6:
        names = ", ".join(str(move.name) for move, _ in wanted)
        raise UserError(
            f"the moves to coordinates of {names} contradict each other: their directions depend on one another"
        )
    goal = torch.tensor([float(m.to) for m, _ in wanted if m.to is not None], dtype=torch.float64)
    # [batch, m]: in lengths, so that a small σ beside a large one does no harm
    missing = (goal - now.cpu().double()) * lengths
    amounts = (torch.linalg.solve(cosines, missing.T).T / lengths).to(codes.latent)  # [batch, m]
    change = torch.einsum("bm,msd->bsd", amounts, steps)
    if codes.latent.shape[1] == 1 and bool((steps == steps[:, :1]).all()):
        change = change[:, :1]
    return codes.with_latent(codes.latent + change)
