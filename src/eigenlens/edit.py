"""An Edit: which directions, how far, on which layers; plain JSON that the shell, the studio and pictures share."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from . import runtime
from .codes import Codes
from .directions import Directions
from .errors import UserError, unknown_name
from .generator import Generator
from .reader import READERS, Reader

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
class Goal:
    """What a reader shall say of an image: `toonfaces:beard>0.5`."""

    attribute: str
    """`READER:NAME`, or a name that one reader alone knows."""
    threshold: float
    """In the reader's unit."""
    is_above: bool = True
    """Whether the score shall be above the threshold, or below."""

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Read a goal such as `beard>0.5` or `pixels:brightness < 0.3`.

        Raises:
            UserError: where it is none.

        Example:
            >>> Goal.parse("pixels:brightness < 0.3")
            Goal(attribute='pixels:brightness', threshold=0.3, is_above=False)
        """
        attribute, sign, number = text.rpartition(">") if ">" in text else text.rpartition("<")
        try:
            threshold = float(number)
        except ValueError:
            threshold = math.nan
        if not sign or not attribute.strip() or not math.isfinite(threshold):
            raise UserError(f"{text!r} is no goal; write ATTRIBUTE>NUMBER or ATTRIBUTE<NUMBER, such as 'beard>0.5'")
        return cls(attribute.strip(), threshold, sign == ">")

    def __str__(self) -> str:
        return f"{self.attribute}{'>' if self.is_above else '<'}{self.threshold:.12g}"

    def is_met(self, score: float) -> bool:
        """Tell whether a score meets it."""
        return score > self.threshold if self.is_above else score < self.threshold


Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a region, as shares of the image's width and height."""


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
        """Read an Edit from a JSON file.

        Raises:
            UserError: where it is not there, or no Edit.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text("utf-8")))
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


def show(generator: Generator, before: Codes, after: Codes, region: Box | None) -> Tensor:
    """Return images of `after` inside the region, and of `before` outside: [batch, channels, height, width]."""
    if region is None:
        return generator(after)
    return generator.blend(before, after, region_mask(region, generator.resolution))


def region_mask(region: Box, resolution: int) -> Tensor:
    """Return the mask of a region, [resolution, resolution]: 1 inside, rising from 0 along its edges, and 0 outside.

    The rim is a tenth of the shorter side wide.
    """
    ramps = []
    rim = 0.1 * min(region[2] - region[0], region[3] - region[1]) * resolution
    for low, high in ((region[1], region[3]), (region[0], region[2])):
        centres = torch.arange(resolution) + 0.5
        depth = torch.minimum(centres - low * resolution, high * resolution - centres)  # into the region, in pixels
        ramps.append((depth / max(rim, 1.0) + 0.5).clamp(0, 1) * (depth > 0))
    return ramps[0][:, None] * ramps[1]


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
    course = Course(generator, codes, edit, find)
    share, score, is_met = (1.0, None, True) if edit.until is None else _search(course, edit.until)
    before, after = course.at(0.0), course.at(share)
    kept = {
        name: (course.score(before, reading), course.score(after, reading)) for name, reading in course.kept.items()
    }
    return Edited(before, after, edit.region, share, score, is_met, kept, course.how)


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


# --- bounds: until, keep, region --------------------------------------------------------------------------------------

Reading = tuple[Reader, int]
"""A reader, and which of its scores is meant."""

UNTIL_STEPS = 8
"""Equal parts of the moves in which the search looks for the first that meets the goal."""
UNTIL_HALVINGS = 8
"""How often it halves that part: the share is the least within 1/2048."""
KEEP_STEPS = 8
"""Equal parts in which bent moves are walked; readers' slopes are taken anew at the start of each."""
KEEP_NUDGE = 0.1
"""Standard deviations to either side at which central differences are taken."""


def find_attribute(text: str) -> Reading:
    """Return the reader of an attribute, and which of its scores it is.

    Args:
        text: `READER:NAME`, or a name that one reader alone knows.

    Raises:
        UnknownName: where no reader knows it.
        UserError: where several do.
    """
    source, colon, name = text.rpartition(":")
    readers: dict[str, Reader] = {}
    for each in [source] if colon else READERS:
        try:
            readers[each] = READERS[each]()
        except UserError:  # what it needs is not installed
            if colon:
                raise
    known = [each for each, reader in readers.items() if name in reader.attributes]
    if not known:
        names = {f"{each}:{attribute}" for each, reader in readers.items() for attribute in reader.attributes}
        raise unknown_name("attribute", text, names if colon else {each.partition(":")[2] for each in names})
    if len(known) > 1:
        raise UserError(f"{', '.join(known)} all read {name!r}; say which: {known[0]}:{name}")
    return readers[known[0]], list(readers[known[0]].attributes).index(name)


class Course:
    """The way from where an Edit starts to where its moves lead; `at(share)` gives the code on it.

    Without `keep`, `by` moves are carried out in proportion, and what `to` moves add to them as well. With `keep`, that
    way is walked in `KEEP_STEPS` parts. Of each part d the change is taken out that would alter the kept attributes to
    first order: d' = d - C Jᵀ (J C Jᵀ)⁻¹ (J d + r), where J holds the slopes of the attributes at the start of the
    part, r is how far they have drifted by then, and C is the covariance of the space: of all corrections this is the
    most likely one. It may lie on any layer, unless every move names its layers; then it lies on those.

    Args:
        generator: the generator.
        codes: where it starts.
        edit: what to do.
        find: gives the Directions that a move names.
    """

    def __init__(self, generator: Generator, codes: Codes, edit: Edit, find: Callable[[str], Directions]) -> None:
        self.generator, self.codes, self.edit, self.find = generator, codes, edit, find
        self.kept = {name: find_attribute(name) for name in edit.keep}
        self.how = ""
        self.end = move_codes(generator, codes, edit.moves, find)
        self.start = self._by(0.0)
        self._rest = self.end.latent - self._by(1.0).latent  # what the `to` moves add
        self._bent = self._walk() if self.kept else None

    def at(self, share: float) -> Codes:
        """Return the code after a share of the moves, 0 to 1."""
        if self._bent is None:
            here = self._by(share)
            return here.with_latent(here.latent + share * self._rest)
        place = min(int(share * KEEP_STEPS), KEEP_STEPS - 1)
        latent = torch.lerp(self._bent[place], self._bent[place + 1], share * KEEP_STEPS - place)
        return self.end.with_latent(latent)

    def score(self, codes: Codes, reading: Reading) -> float:
        """Return what a reader says of the image of one code, seen through the region."""
        with torch.inference_mode():
            return float(self._scores(codes, [reading])[0, 0])

    def _by(self, share: float) -> Codes:
        moves = tuple(dataclasses.replace(move, by=share * move.by) for move in self.edit.moves if move.by is not None)
        return self.generator.lift(move_codes(self.generator, self.codes, moves, self.find), self.end.space.name)

    def _scores(self, codes: Codes, readings: Sequence[Reading]) -> Tensor:
        """Return scores [batch, readings] of codes on the way."""
        before = self.start.repeat(len(codes)) if self.edit.region else codes
        images = show(self.generator, before, codes, self.edit.region)
        return torch.stack([reader(images)[:, column] for reader, column in readings], dim=1)

    def _walk(self) -> list[Tensor]:
        """Return the latents at the ends of all parts of the bent way, the start first."""
        space = self.end.space
        straight = []
        for i in range(KEEP_STEPS + 1):
            here = self._by(i / KEEP_STEPS).latent + i / KEEP_STEPS * self._rest
            straight.append(here.expand(-1, space.slots, -1))  # [1, slots, dim]
        ranges = [move.layers for move in self.edit.moves if move.layers is not None]
        mask = space.mask(",".join(ranges) if len(ranges) == len(self.edit.moves) else "all").to(straight[0])
        walked, wanted = [straight[0]], None
        for start, stop in [*itertools.pairwise(straight), (straight[-1], straight[-1])]:
            scores, slopes = self._slopes(self.end.with_latent(walked[-1]), mask)
            wanted = scores if wanted is None else wanted
            step = without_change((stop - start)[0], slopes, space.covariance, mask, drift=scores - wanted)
            walked.append(walked[-1] + step)
        return [*walked[:-2], walked[-1]]  # the last step corrects what the one before it left

    def _slopes(self, codes: Codes, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of all kept attributes at one code, and their slopes: [attributes, slots, dim]."""
        readings = list(self.kept.values())
        with torch.inference_mode(False), torch.enable_grad():
            latent = codes.latent.clone().requires_grad_()
            scores = [self._scores(codes.with_latent(latent), [each])[0, 0] for each in readings]
            if all(each.requires_grad for each in scores):
                self.how = "gradients"
                slopes = torch.stack([torch.autograd.grad(each, latent)[0][0] for each in scores])
                return torch.stack(scores).detach(), slopes
        self.how = "central differences"
        return torch.stack(scores).detach(), self._differences(codes, readings, mask)

    def _differences(self, codes: Codes, readings: Sequence[Reading], mask: Tensor) -> Tensor:
        deviation = codes.space.covariance.diagonal().sqrt().to(mask)  # [dim]
        nudges = (KEEP_NUDGE * deviation * mask).flatten()  # [slots * dim]
        places = nudges.nonzero()[:, 0]
        slopes = torch.zeros(len(readings), len(nudges), device=mask.device)
        rows = max(1, self.generator.batch_size // 2)
        steps = list(runtime.batches(len(places), rows))
        for start, stop in runtime.progress(steps, what="slopes of readers", unit="batch"):
            some = places[start:stop]
            offsets = torch.zeros(len(some), len(nudges), device=mask.device)
            offsets[torch.arange(len(some)), some] = nudges[some]
            latents = codes.latent + torch.cat([offsets, -offsets]).unflatten(1, mask.shape)
            with torch.inference_mode():
                scores = self._scores(codes.repeat(len(latents)).with_latent(latents), readings)
            above, below = scores.cpu().chunk(2)
            slopes[:, some] = ((above - below).T / (2 * nudges[some].cpu())).to(slopes)
        return slopes.unflatten(1, mask.shape)


def without_change(
    step: Tensor, slopes: Tensor, covariance: Tensor, mask: Tensor, *, drift: Tensor | float = 0.0
) -> Tensor:
    """Return the step without what changes some scores, to first order.

    Args:
        step: [slots, dim].
        slopes: of the scores, [scores, slots, dim].
        covariance: of a slot, [dim, dim]: corrections are the smallest in its Mahalanobis norm.
        mask: where corrections may lie, [slots, dim].
        drift: by how much each score is off already, [scores]: the step takes that back as well.

    Returns:
        [slots, dim], with ⟨slopes, step⟩ = -drift for every score that the mask can correct.
    """
    wanted = slopes.double()
    likely = (wanted * mask) @ covariance.double().to(wanted.device) * mask  # C Jᵀ, [scores, slots, dim]
    lengths = (wanted * likely).sum((1, 2)).clamp(min=1e-30).sqrt()
    wanted, likely = wanted / lengths[:, None, None], likely / lengths[:, None, None]
    gram = torch.einsum("isd,jsd->ij", wanted, likely)
    change = torch.einsum("isd,sd->i", wanted, step.double()) + torch.as_tensor(drift).double() / lengths
    amounts = torch.linalg.pinv(gram, rtol=1e-6, hermitian=True) @ change
    return (step.double() - torch.einsum("i,isd->sd", amounts, likely)).to(step)


def _search(course: Course, goal: Goal) -> tuple[float, float, bool]:
    """Return the least share of the moves at which a goal is met, the score there, and whether it is met at all."""
    reading = find_attribute(goal.attribute)
    score = lambda share: course.score(course.at(share), reading)  # noqa: E731
    low, high, found = 0.0, 0.0, score(0.0)
    while not goal.is_met(found) and high < 1:
        low, high = high, high + 1 / UNTIL_STEPS
        found = score(high)
    if high == 0 or not goal.is_met(found):
        return high, found, high == 0
    for _ in range(UNTIL_HALVINGS):
        middle = (low + high) / 2
        there = score(middle)
        if goal.is_met(there):
            high, found = middle, there
        else:
            low = middle
    return high, found, True
