"""The course of an Edit: the way from where codes start to where moves lead, and its bounds: until, keep, region."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import runtime
from .codes import Codes
from .directions import Directions
from .errors import UserError, unknown_name
from .generator import Generator
from .move import Move, move_codes
from .reader import READERS, Reader

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a region, as shares of the image's width and height."""

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


class Course:
    """The way from where codes start to where moves lead; `at(share)` gives the code on it.

    Without `keep`, `by` moves are carried out in proportion, and what `to` moves add to them as well. With `keep`, that
    way is walked in `KEEP_STEPS` parts. Of each part d the change is taken out that would alter the kept attributes to
    first order: d' = d - C Jᵀ (J C Jᵀ)⁻¹ (J d + r), where J holds the slopes of the attributes at the start of the
    part, r is how far they have drifted by then, and C is the covariance of the space: of all corrections this is the
    most likely one. It may lie on any layer, unless every move names its layers; then it lies on those.

    Args:
        generator: the generator.
        codes: where it starts.
        moves: what is done: all `by` first, then all `to` together.
        find: gives the Directions that a move names.
        keep: attributes that shall stay as they are.
        region: where the image may change; everywhere where None.
    """

    def __init__(
        self,
        generator: Generator,
        codes: Codes,
        moves: tuple[Move, ...],
        find: Callable[[str], Directions],
        *,
        keep: tuple[str, ...] = (),
        region: Box | None = None,
    ) -> None:
        self.generator, self.codes, self.moves, self.find, self.region = generator, codes, moves, find, region
        self.kept = {name: find_attribute(name) for name in keep}
        self.how = ""
        self.end = move_codes(generator, codes, moves, find)
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
        moves = tuple(dataclasses.replace(move, by=share * move.by) for move in self.moves if move.by is not None)
        return self.generator.lift(move_codes(self.generator, self.codes, moves, self.find), self.end.space.name)

    def _scores(self, codes: Codes, readings: Sequence[Reading]) -> Tensor:
        """Return scores [batch, readings] of codes on the way."""
        before = self.start.repeat(len(codes)) if self.region else codes
        images = show(self.generator, before, codes, self.region)
        return torch.stack([reader(images)[:, column] for reader, column in readings], dim=1)

    def _walk(self) -> list[Tensor]:
        """Return the latents at the ends of all parts of the bent way, the start first."""
        space = self.end.space
        straight = []
        for i in range(KEEP_STEPS + 1):
            here = self._by(i / KEEP_STEPS).latent + i / KEEP_STEPS * self._rest
            straight.append(here.expand(-1, space.slots, -1))  # [1, slots, dim]
        ranges = [move.layers for move in self.moves if move.layers is not None]
        mask = space.mask(",".join(ranges) if len(ranges) == len(self.moves) else "all").to(straight[0])
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
            scores = [self._scores(codes.with_latent(latent), [each])[0, 0].to(latent.device) for each in readings]
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


def search(course: Course, goal: Goal) -> tuple[float, float, bool]:
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
    # on the CPU: not every device has float64
    wanted, straight, drift = slopes.cpu().double(), step.cpu().double(), torch.as_tensor(drift).cpu().double()
    mask = mask.cpu()
    likely = (wanted * mask) @ covariance.cpu().double() * mask  # C Jᵀ, [scores, slots, dim]
    lengths = (wanted * likely).sum((1, 2)).clamp(min=1e-30).sqrt()
    wanted, likely = wanted / lengths[:, None, None], likely / lengths[:, None, None]
    gram = torch.einsum("isd,jsd->ij", wanted, likely)
    change = torch.einsum("isd,sd->i", wanted, straight) + drift / lengths
    amounts = torch.linalg.pinv(gram, rtol=1e-6, hermitian=True) @ change
    return (straight - torch.einsum("i,isd->sd", amounts, likely)).to(step)
