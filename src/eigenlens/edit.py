"""An Edit: which directions, how far, on which layers; plain JSON that the shell, the studio and pictures share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .codes import Codes
from .course import Box, Course, Goal, search, show
from .directions import Directions
from .errors import UserError
from .generator import Generator
from .move import Move

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
    cutoff: int | None = None
    """Slots of w+ to truncate; all where None."""


@dataclass(frozen=True)
class Edit:
    """Which code of which generator is moved along which directions, how far, and within what bounds."""

    generator: str
    """Anything that `load_generator` opens."""
    codes: Start = Start()
    """Where it starts."""
    moves: tuple[Move, ...] = ()
    """What is done: all `by` first, then all `to` together."""
    until: Goal | None = None
    """Carry out no more of the moves than this needs."""
    keep: tuple[str, ...] = ()
    """Attributes, `READER:NAME`, that shall stay as they are: the moves are bent so that, to first order, they do."""
    region: Box | None = None
    """Where the image may change; everywhere where None."""

    def __post_init__(self) -> None:
        if self.region is not None:
            left, top, right, bottom = self.region
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):  # false for NaN as well
                raise UserError(
                    f"the region {', '.join(f'{each:g}' for each in self.region)} is none; give left, top, right, "
                    "bottom as shares of the image, such as 0.2,0.5,0.8,1"
                )

    def to_json(self) -> dict[str, Any]:
        """Return the Edit as plain JSON, without what is at its default."""
        start = {key: value for key, value in dataclasses.asdict(self.codes).items() if value is not None}
        moves = [
            {key: value for key, value in dataclasses.asdict(move).items() if value is not None} for move in self.moves
        ]
        bounds = {
            "until": None if self.until is None else str(self.until),
            "keep": list(self.keep),
            "region": None if self.region is None else list(self.region),
        }
        return {"version": VERSION, "generator": self.generator, "codes": start, "moves": moves} | {
            key: value for key, value in bounds.items() if value
        }

    @classmethod
    def from_json(cls, value: Any) -> Edit:
        """Read an Edit from plain JSON.

        Raises:
            UserError: on unknown keys, another version, or values of the wrong kind.
        """
        _check_keys(value, {"version", "generator", "codes", "moves", "until", "keep", "region"}, "an edit")
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
            *_bounds(value),
        )

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read an Edit from a JSON file, with or without the byte order mark that editors on Windows set.

        Raises:
            UserError: where it is not there, or no Edit.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text("utf-8-sig")))
        except FileNotFoundError as error:
            raise UserError(f"{path} is no edit: it does not exist; --save-edit writes one") from error
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path} is no edit: {error}") from error


def _bounds(value: Mapping[str, Any]) -> tuple[Goal | None, tuple[str, ...], Box | None]:
    """Read `until`, `keep` and `region` of an Edit."""
    until, keep, region = value.get("until"), value.get("keep") or [], value.get("region")
    if not isinstance(until, str | None):
        raise UserError(f"'until' of an edit is {until!r}; a text such as 'beard>0.5' is wanted")
    if not isinstance(keep, list) or not all(isinstance(each, str) and each for each in keep):
        raise UserError(f"'keep' of an edit is {keep!r}; a list of attributes is wanted")
    is_box = isinstance(region, list) and len(region) == 4 and all(type(each) in (int, float) for each in region)
    if region is not None and not is_box:
        raise UserError(f"'region' of an edit is {region!r}; a list of left, top, right, bottom is wanted")
    return None if until is None else Goal.parse(until), tuple(keep), None if region is None else tuple(region)


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
        cutoff=start.cutoff,
        label=start.label,
        noise=start.noise or "stored",
    )


@dataclass(frozen=True, eq=False)
class Edited:
    """What an Edit led to."""

    before: Codes
    """Where it started, in the space where it ended."""
    after: Codes
    """Where it ended; with a region, what the image shows inside."""
    region: Box | None = None
    """Where the image changes; everywhere where None."""
    share: float = 1.0
    """How much of the moves was carried out; less than 1 where `until` was met before."""
    score: float | None = None
    """What the reader of `until` says of the result."""
    is_met: bool = True
    """Whether `until` is met; where not, the moves were carried out whole."""
    kept: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """For each attribute of `keep` its score before and after."""
    how: str = ""
    """How `keep` found the readers' slopes: `gradients`, or `central differences`."""

    def images(self, generator: Generator) -> Tensor:
        """Return the image before and the one after, [2, channels, height, width]."""
        before, after = self.before, self.after
        with torch.inference_mode():
            state = generator.start(before, generator.first_layer_moved(before, after))  # what they share, once
            whole = self.region is None
            second = generator.finish(after, state) if whole else show(generator, before, after, self.region)
            return torch.cat([generator.finish(before, state), second]).cpu()


def apply(edit: Edit, generator: Generator, find: Callable[[str], Directions]) -> Edited:
    """Carry out an Edit.

    Args:
        edit: what to do.
        generator: the generator that it names, opened.
        find: gives the Directions that a move names.

    Raises:
        UserError: where a direction does not fit, moves contradict each other, or no reader knows an attribute.
    """
    return edit_codes(generator, start_codes(generator, edit.codes), edit, find)


def edit_codes(generator: Generator, codes: Codes, edit: Edit, find: Callable[[str], Directions]) -> Edited:
    """Carry out the moves of an Edit on codes, whatever it says of where they start; `until` and `keep` take one code.

    Raises:
        UserError: as `apply` does, and for several codes where readers decide how far each goes.
    """
    if len(codes) != 1 and (edit.until or edit.keep):
        raise UserError(f"{len(codes)} codes came; a reader decides over one at a time: give them one by one")
    course = Course(generator, codes, edit.moves, find, keep=edit.keep, region=edit.region)
    share, score, is_met = (1.0, None, True) if edit.until is None else search(course, edit.until)
    before, after = course.at(0.0), course.at(share)
    kept = {
        name: (course.score(before, reading), course.score(after, reading)) for name, reading in course.kept.items()
    }
    return Edited(before, after, edit.region, share, score, is_met, kept, course.how)
