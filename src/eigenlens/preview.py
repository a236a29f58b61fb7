"""Edit after Edit of one generator as images, at the pace of a hand: what two of them share is computed once."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .codes import Codes, concatenate
from .course import Course, show
from .directions import Directions
from .edit import Edit, Start, edit_codes, start_codes
from .effect import traverse
from .errors import UserError
from .generator import Generator, State
from .move import move_codes

N_STARTS = 512
"""Starting codes that are kept."""
FULL_UP_TO = 128
"""Pixels up to which images are always rendered in full precision."""


@dataclass(frozen=True, eq=False)
class Held:
    """A synthesis that stands before a layer, for codes that agree with `codes` in all that comes before it."""

    codes: Codes
    layer: int
    """Index of the layer that runs next."""
    state: State


class Preview:
    """Renders Edits of one generator, each beginning where its codes first differ from those before.

    A slider of layer 3 is dragged: what lies before layer 3 is computed in the first frame of the drag alone. Nothing
    has to be told; the codes of two requests are compared. Images are those that the generator gives, bit for bit.

    Args:
        generator: opened.
        find: gives the Directions that a move names.
    """

    def __init__(self, generator: Generator, find: Callable[[str], Directions]) -> None:
        self.generator = generator
        self.find = find
        self._starts: OrderedDict[tuple[Start, float], Codes] = OrderedDict()
        self._quick = generator
        if generator.resolution > FULL_UP_TO:
            self._quick = copy.copy(generator)  # the same weights, in another arithmetic
            self._quick.precision = "auto"
        self._last: dict[str, tuple[Codes, Tensor]] = {}
        self._held: dict[str, Held] = {}
        self._lock = threading.RLock()

    @property
    def n_bytes(self) -> int:
        """Memory of the generator's weights."""
        return sum(t.numel() * t.element_size() for t in self.generator.network.state_dict().values())

    def starts(self, start: Start, n: int = 1) -> Codes:
        """Return the codes that an Edit starts from and its n - 1 neighbours: the next seeds, or rows of the file."""
        return concatenate([self._start(each) for each in neighbours(start, n)])

    def _start(self, start: Start) -> Codes:
        changed = Path(start.file).stat().st_mtime if start.file and Path(start.file).is_file() else 0.0
        key = (start, changed)
        with self._lock:
            if key not in self._starts:
                self._starts[key] = start_codes(self.generator, start)
                while len(self._starts) > N_STARTS:
                    self._starts.popitem(last=False)
            self._starts.move_to_end(key)
            return self._starts[key]

    def codes(self, edit: Edit, n: int = 1) -> Codes:
        """Return the codes that an Edit, and the same done to its n - 1 neighbours, leads to."""
        return self._edited(edit, n)[1]

    def _edited(self, edit: Edit, n: int) -> tuple[Codes, Codes]:
        """Return the codes before and after."""
        starts = self.starts(edit.codes, n)
        if not (edit.until or edit.keep):
            return starts, move_codes(self.generator, starts, edit.moves, self.find)
        done = [edit_codes(self.generator, starts[i], edit, self.find) for i in range(n)]
        return concatenate([each.before for each in done]), concatenate([each.after for each in done])

    def images(self, edit: Edit, n: int = 1, *, quick: bool = False) -> Tensor:
        """Render an Edit, and the same done to its n - 1 neighbours: [n, channels, height, width] on the CPU.

        Args:
            edit: what to render.
            n: how many neighbours, itself included.
            quick: whether bfloat16 will do, where that is faster and images are large: for frames while a hand moves.
        """
        with self._lock, torch.inference_mode():
            generator = self._quick if quick else self.generator
            key = generator.precision
            before, codes = self._edited(edit, n)
            if edit.region is not None:
                return show(generator, generator.lift(before, codes.space.name), codes, edit.region).cpu()
            last = self._last.get(key)
            if last is not None and is_same(last[0], codes):
                return last[1]
            layer = 0 if last is None else self._first_difference(last[0], codes)
            images = self._from(generator, codes, layer).float().cpu()
            self._last[key] = (codes, images)
            return images

    def _first_difference(self, a: Codes, b: Codes) -> int:
        return self.generator.layer_index(self.generator.first_layer_moved(a, b))

    def _from(self, generator: Generator, codes: Codes, layer: int) -> Tensor:
        """Render codes that agree with those before up to `layer`."""
        key = generator.precision
        if layer == 0:
            self._held.pop(key, None)
            return generator.render(codes)
        held = self._held.get(key)
        if held is None or held.layer < layer or self._first_difference(held.codes, codes) < held.layer:
            held = Held(codes, layer, generator.start(codes, generator.layers[layer].name))
            self._held[key] = held
        return generator.finish(codes, held.state)

    def strip(self, edit: Edit, directions: str, name: str | int, steps: Sequence[float], layers: str | None) -> Tensor:
        """Render what one direction does to the Edit's image: [steps, channels, height, width] on the CPU.

        Moves of the Edit along the same direction are left out: each step stands in for them.
        """
        found = self.find(directions)
        with self._lock:
            codes = self.codes(self.without(edit, directions, name))
            return traverse(self.generator, codes, found, found.index(name), steps, layers=layers)[0]

    def without(self, edit: Edit, directions: str, name: str | int) -> Edit:
        """Return an Edit less its moves along one direction."""
        found = self.find(directions)
        index = found.index(name)
        others = [m for m in edit.moves if m.directions != directions or found.index(m.name) != index]
        return dataclasses.replace(edit, moves=tuple(others))

    def morph(self, edit: Edit, n: int) -> Tensor:
        """Render the way from where an Edit starts to where it leads: [n, channels, height, width] on the CPU."""
        with self._lock, torch.inference_mode():
            codes = self.starts(edit.codes)
            course = Course(self.generator, codes, edit.moves, self.find, keep=edit.keep, region=edit.region)
            way = concatenate([course.at(k / max(1, n - 1)) for k in range(n)])
            if edit.region is None:
                return self.generator.render(way)
            return show(self.generator, course.at(0.0).repeat(n), way, edit.region).cpu()

    def coordinates(self, edit: Edit, directions: str) -> list[float]:
        """Return where the code of an Edit stands along each direction of a set: what `to` would be compared with.

        Raises:
            Unsupported: for curved directions, which have no coordinate: they move by a distance alone.
        """
        found = self.find(directions)
        with self._lock, torch.inference_mode():
            codes = found.host(self.generator, self.codes(edit))
            return [float(found.coordinates(codes, k)[0]) for k in range(len(found))]

    def forget(self) -> None:
        """Drop what is kept of the last images."""
        with self._lock:
            self._last.clear()
            self._held.clear()


def neighbours(start: Start, n: int) -> list[Start]:
    """Return a start and the n - 1 that follow it: the next seeds, or the next rows of its file.

    Raises:
        UserError: unless 1 <= n.

    Example:
        >>> [each.seed for each in neighbours(Start(seed=7), 3)]
        [7, 8, 9]
    """
    if n < 1:
        raise UserError(f"{n} images were asked for; give 1 or more")
    step = "index" if start.file is not None else "seed"
    return [dataclasses.replace(start, **{step: getattr(start, step) + i}) for i in range(n)]


def is_same(a: Codes, b: Codes) -> bool:
    """Tell whether two batches of codes make the same images."""
    same = a.space is b.space and a.latent.shape == b.latent.shape and a.noise_seeds == b.noise_seeds
    same &= a.truncation == b.truncation and (a.labels is None) == (b.labels is None)
    if not same or (a.labels is not None and b.labels is not None and not torch.equal(a.labels, b.labels)):
        return False
    return torch.equal(a.latent, b.latent)
