"""What the studio has open: generators, the least recently used of which give way, and sets of directions."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..directions import Directions
from ..edit import Edit
from ..effect import with_known_figures
from ..errors import UserError, unknown_name
from ..files import confined
from ..generator import Generator
from ..method import METHODS, find_directions
from ..preview import Preview

AT_ONCE = ("axes", "eigen", "random", "sefa")
"""Methods that answer at once and may stand in an Edit by name; the others run as jobs that leave a file."""
MOST_LETTERS = 1000
"""Letters of a path."""
N_SETS = 128
"""Sets of directions that are kept in memory."""


class Shelf:
    """Opens what requests name, and nothing else.

    Args:
        sources: the generators that may be opened; requests choose among them.
        files: files outside the workspace that may be read: those of the command line.
        workspace: the folder that everything else is read from and written to.
        load: opens a generator.
        most_bytes: weights that are kept in memory; the generator in use always is.
    """

    def __init__(
        self,
        sources: Sequence[str],
        *,
        workspace: Path,
        load: Callable[[str], Generator],
        files: Sequence[Path] = (),
        most_bytes: int = 4 << 30,
    ) -> None:
        self.sources = tuple(dict.fromkeys(sources))
        self.workspace = Path(workspace)
        self.files = {str(Path(path)): Path(path).resolve() for path in files}
        self.most_bytes = most_bytes
        self._load = load
        self._open: OrderedDict[str, Preview] = OrderedDict()
        self._sets: OrderedDict[tuple[str, str, int], Directions] = OrderedDict()
        self._lock = threading.RLock()

    def preview(self, source: str) -> Preview:
        """Return the renderer of a generator, opening it where need be.

        Raises:
            UserError: where it is not one of ours, or cannot be opened.
        """
        if source not in self.sources:
            raise unknown_name("generator of this studio", source, self.sources)
        with self._lock:
            if source not in self._open:
                self._open[source] = Preview(self._load(source), lambda name: self.directions(source, name))
                self._make_room(source)
            self._open.move_to_end(source)
            return self._open[source]

    def generator(self, source: str) -> Generator:
        """Return a generator, opened."""
        return self.preview(source).generator

    def _make_room(self, keep: str) -> None:
        while len(self._open) > 1 and sum(each.n_bytes for each in self._open.values()) > self.most_bytes:
            oldest = next(name for name in self._open if name != keep)
            del self._open[oldest]

    @property
    def opened(self) -> Mapping[str, int]:
        """Bytes of weights of each generator in memory, the least recently used first."""
        with self._lock:
            return {name: each.n_bytes for name, each in self._open.items()}

    def path(self, text: str) -> Path:
        """Return the path that a request names, as the command line would write it.

        Raises:
            UserError: where it is neither in the workspace nor a file that the command line named.
        """
        if text in self.files:
            return Path(text)
        try:
            inside = confined(self.workspace, Path(text).absolute() if len(text) <= MOST_LETTERS else text)
        except (UserError, ValueError) as error:
            raise UserError(f"{text[:200]!r} is not in the workspace {self.workspace}; put the file there") from error
        return self.workspace / inside.relative_to(self.workspace.resolve())

    def directions(self, generator: str, source: str) -> Directions:
        """Return the set of directions that `source` names for a generator, from memory where it has been read.

        Raises:
            UserError: where it is neither a file of ours nor a method that answers at once.
        """
        is_method = source in METHODS
        if is_method and source not in AT_ONCE:
            raise UserError(f"{source!r} takes a while; run it under Discover, and use the file that it gives")
        path = None if is_method else self.path(source)
        if path is not None and not path.is_file():
            raise UserError(f"{source!r} is no file of directions, nor a method that answers at once: {AT_ONCE}")
        key = (generator, source, 0 if path is None else path.stat().st_mtime_ns)
        with self._lock:
            if key in self._sets:
                self._sets.move_to_end(key)
                return self._sets[key]
        found = find_directions(
            source if path is None else str(path), self.generator(generator), foreign=True, measured=False
        )
        g = self.generator(generator)
        found = with_known_figures(g, found.with_figures(sigma=found.known_sigma(g.space(found.space))))
        with self._lock:
            self._sets[key] = found
            while len(self._sets) > N_SETS:
                self._sets.popitem(last=False)
        return found

    def edit(self, value: Any) -> Edit:
        """Read an Edit that a request brought, and see that all it names is ours.

        Raises:
            UserError: where it is none, or names a generator or a file that is not.
        """
        edit = Edit.from_json(value)
        if edit.generator not in self.sources:
            raise unknown_name("generator of this studio", edit.generator, self.sources)
        if edit.codes.file is not None:
            self.path(edit.codes.file)
        return edit

    def folder(self, generator: str) -> Path:
        """Return the folder of the workspace that holds what belongs to a generator."""
        from ..files import file_stem

        name = self.generator(generator).name
        folder = self.workspace / file_stem(name, default="generator")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
