"""An Edit: which directions, how far, on which layers; plain JSON that the shell, the studio and pictures share."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .codes import Codes
from .directions import Directions
from .errors import UserError
from .generator import Generator

VERSION = 1


@dataclass(frozen=True)
class Start:
    """The code that an Edit starts from: drawn, or row `index` of a file of codes."""

    space: str | None = None
    """Space to draw in; the generator's default where None."""
    seed: int = 0
    """Seed of the draw."""
    index: int = 0
    """Number of the code within the seed, or row of the file."""
    truncation: float = 1.0
    """As the family defines it."""
    label: int | str | None = None
    """Index or name of the class, for a conditional generator."""
    noise: str | None = None
    """`stored` (None), `random` or `none`."""
    file: str | None = None
    """A `.safetensors` file of codes, instead of a draw."""


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


@dataclass(frozen=True)
class Edit:
    """Which code of which generator is moved along which directions, and how far."""

    generator: str
    """Anything that `load_generator` opens."""
    codes: Start = Start()
    """Where it starts."""
    moves: tuple[Move, ...] = ()
    """What is done: all `by` first, then all `to` together."""

    def to_json(self) -> dict[str, Any]:
        """Return the Edit as plain JSON, without what is at its default."""
        start = {key: value for key, value in dataclasses.asdict(self.codes).items() if value is not None}
        moves = [
            {key: value for key, value in dataclasses.asdict(move).items() if value is not None} for move in self.moves
        ]
        return {"version": VERSION, "generator": self.generator, "codes": start, "moves": moves}

    @classmethod
    def from_json(cls, value: Any) -> Edit:
        """Read an Edit from plain JSON.

        Raises:
            UserError: on unknown keys, another version, or values of the wrong kind.
        """
        _check_keys(value, {"version", "generator", "codes", "moves"}, "an edit")
        if value.get("version") != VERSION:
            raise UserError(f"an edit of version {value.get('version')!r} came; this one reads version {VERSION}")
        if not isinstance(value.get("generator"), str):
            raise UserError("an edit names its generator: for instance 'generator': 'toonfaces'")
        moves = value.get("moves", [])
        if not isinstance(moves, list):
            raise UserError("the moves of an edit are a list of objects")
        return cls(
            value["generator"],
            _build(Start, value.get("codes", {}), "codes"),
            tuple(_build(Move, m, "a move") for m in moves),
        )

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read an Edit from a JSON file.

        Raises:
            UserError: where it is not there, or no Edit.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text("utf-8")))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path} is no edit: {error}") from error


def _check_keys(value: Any, known: set[str], what: str) -> None:
    if not isinstance(value, Mapping):
        raise UserError(f"{what} is a JSON object; a {type(value).__name__} came")
    unknown = sorted(set(value) - known)
    if unknown:
        raise UserError(f"{what} has no {unknown[0]!r}; it takes {', '.join(sorted(known))}")


_LARGEST = 2**53  # whole numbers up to here survive every JSON reader
_KINDS = {"float": (int, float), "int": (int,), "str": (str,)}


def _build(kind: Any, value: Any, what: str) -> Any:
    """Make a dataclass of `kind` from JSON, checking keys and the kinds of values."""
    fields = {each.name: each for each in dataclasses.fields(kind)}
    _check_keys(value, set(fields), what)
    for name, given in value.items():
        annotation = str(fields[name].type)
        allowed = tuple(k for word, kinds in _KINDS.items() if word in annotation for k in kinds)
        allowed += (str,) if "Literal" in annotation else ()
        fits = (given is None and "None" in annotation) or (isinstance(given, allowed) and not isinstance(given, bool))
        if not fits or (isinstance(given, int | float) and not abs(given) <= _LARGEST):  # NaN is not, either
            raise UserError(f"{name!r} of {what} is {given!r}; {annotation.replace(' | None', '')} is wanted")
    missing = [f.name for f in fields.values() if f.default is dataclasses.MISSING and f.name not in value]
    if missing:
        raise UserError(f"{what} lacks {missing[0]!r}")
    return kind(**value)


def start_codes(generator: Generator, start: Start) -> Codes:
    """Return the one code that an Edit starts from."""
    if start.file is not None:
        from .codes import load_codes

        codes = load_codes(start.file, generator)
        if not 0 <= start.index < len(codes):
            raise UserError(f"row {start.index} of {start.file} was asked for; it has rows 0-{len(codes) - 1}")
        return codes[start.index]
    return generator.sample(
        1,
        seed=start.seed,
        start=start.index,
        space=start.space,
        truncation=start.truncation,
        label=start.label,
        noise=start.noise or "stored",
    )


def apply(edit: Edit, generator: Generator, find: Callable[[str], Directions]) -> Codes:
    """Return the code that an Edit leads to.

    Args:
        edit: what to do.
        generator: the generator that it names, opened.
        find: gives the Directions that a move names.
    """
    return move_codes(generator, start_codes(generator, edit.codes), edit.moves, find)


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
    now = torch.stack([d.coordinates(codes, m.name, layers=m.layers) for m, d in wanted], dim=1).double()  # [batch, m]
    steps = torch.stack([d.unit_step(codes.space, m.name, m.layers) for m, d in wanted]).to(
        codes.latent
    )  # [m, slots, dim]
    flat = steps.flatten(1).double()  # [m, slots * dim]
    lengths = flat.norm(dim=1)
    unit = flat / lengths[:, None].clamp(min=1e-30)
    cosines = unit @ unit.T  # [m, m]: what a step of length 1 along j moves the code along i
    if torch.linalg.cond(cosines) > 1e6:
        names = ", ".join(str(move.name) for move, _ in wanted)
        raise UserError(
            f"the moves to coordinates of {names} contradict each other: their directions depend on one another"
        )
    goal = torch.tensor([float(m.to) for m, _ in wanted if m.to is not None], dtype=torch.float64, device=now.device)
    missing = (goal - now) * lengths  # [batch, m]: in lengths, so that a small σ beside a large one does no harm
    amounts = (torch.linalg.solve(cosines, missing.T).T / lengths).to(codes.latent)  # [batch, m]
    change = torch.einsum("bm,msd->bsd", amounts, steps)
    if codes.latent.shape[1] == 1 and bool((steps == steps[:, :1]).all()):
        change = change[:, :1]
    return codes.with_latent(codes.latent + change)
