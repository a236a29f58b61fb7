"""Compare methods fairly: a grid of generators, methods, metrics and seeds, measured at four equal strengths.

Each finished cell is a line of `results.jsonl`; a run that was stopped goes on where it was, and processes share the
fits out, each taking the next that is free. Tables and pages are made from that file and never typed in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
import os
import re
import shlex
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from . import __version__, runtime
from .directions import Directions
from .effect import calibrate
from .errors import Unsupported, UserError
from .files import claim, lock, write_text
from .generator import Generator, load_generator
from .inference import Interval, nested_bootstrap
from .method import METHODS
from .metric import METRICS, Score
from .profile import (
    CALIBRATIONS,
    KERNELS,
    PROFILE_CODES,
    TARGETS,
    Calibration,
    Profile,
    Yardstick,
    check_calibration,
    measure_profile,
    measure_yardstick,
    recalibrated,
)
from .reader import EXTRACTORS, digest_of, open_reader

RESULTS = "results.jsonl"
CLAIMS = ".claims"
"""File in the folder of a comparison by which processes tell each other what they are at."""
POLL = 0.5
"""Seconds until a process that others leave nothing to do looks again."""
MAX_PROCESSES = 4
"""Processes that a comparison starts unless it is told otherwise: each holds the network."""
NULL_SEED = 1_000
"""Of the random directions that p-values are counted against, which no row of a grid is likely to have."""
ORACLE = "oracle"
"""Method of the oracle's row: the coordinate axes of a generator whose coordinates are the true factors."""
ORACLE_LIMITS = (-4.0, 4.0)
"""σ within which an oracle's directions are walked: whatever it draws is real, so it has no edge to measure."""
MIN_REPLICATES = 5
"""Networks, or else method seeds, below which no claim of order is made: with fewer, all of them fall on one side by
chance more often than one time in sixteen. Those that give the same numbers again, as a method does that has no use for
a seed, count once."""


# --- what is asked for ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A method or a metric with some of its arguments, under a name of its own."""

    name: str
    """Name in the table."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that are not the defaults."""

    def __str__(self) -> str:
        inside = ",".join(f"{key}={json.dumps(value).strip(chr(34))}" for key, value in self.arguments.items())
        return f"{self.name}({inside})" if inside else self.name

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Read `sefa` or `ganspace(at=layer3,n_samples=1500)`.

        Raises:
            UserError: where it is neither.

        Example:
            >>> Entry.parse("random(law=covariance,n_directions=5)").arguments
            {'law': 'covariance', 'n_directions': 5}
        """
        found = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", text)
        pairs = [pair for pair in _split(found[2] or "") if pair.strip()] if found else []
        if not found or not all("=" in pair for pair in pairs):
            raise UserError(f"{text!r} is no name with arguments; write sefa, or ganspace(at=layer3,n_samples=1500)")
        arguments = {}
        for pair in pairs:
            key, _, value = pair.partition("=")
            try:
                arguments[key.strip()] = json.loads(value)
            except ValueError:
                arguments[key.strip()] = value.strip()
        return cls(found[1], arguments)

    def make(self, table: Mapping[str, Any], **defaults: Any) -> Any:
        """Return the thing of `table` with these arguments, and those of `defaults` that it knows.

        Raises:
            UserError: on an unknown name or argument.
        """
        kind = table[self.name]
        known = {each.name for each in dataclasses.fields(kind)}
        unknown = sorted(set(self.arguments) - known)
        if unknown:
            raise UserError(f"{self.name} has no argument {unknown[0]!r}; it has {', '.join(sorted(known)) or 'none'}")
        given = {key: tuple(v) if isinstance(v, list) else v for key, v in self.arguments.items()}
        return kind(**{key: value for key, value in defaults.items() if key in known} | given)


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotes."""
    pieces, depth, quoted = [""], 0, False
    for char in text:
        quoted ^= char == '"'
        depth += (char in "[{(") - (char in ")}]") if not quoted else 0
        if char == "," and depth == 0 and not quoted:
            pieces.append("")
        else:
            pieces[-1] += char
    return pieces


@dataclass(frozen=True)
class Grid:
    """What is compared with what: every generator with every method, metric and seed."""

    generators: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"toonfaces": ("toonfaces",)})
    """Name -> the sources of networks that differ in their training seed alone."""
    methods: tuple[Entry, ...] = (Entry("random"), Entry("axes"))
    """What finds directions."""
    metrics: tuple[Entry, ...] = (Entry("latent_orthogonality_v1"),)
    """What judges them."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the methods."""
    code_seeds: tuple[int, ...] = (0,)
    """Seeds of the metrics."""
    calibrations: tuple[Calibration, ...] = CALIBRATIONS
    """The strengths at which metrics measure; see `eigenlens.profile`."""
    at: Mapping[str, tuple[Calibration, ...]] = field(default_factory=dict)
    """Metric -> the calibrations of that metric alone, where it is too dear to be measured at all of them."""
    k: int = 10
    """Directions of each method: those it finds most important."""
    reader: str = "pixels"
    """Reads attributes, for the calibration by attribute, passports and names."""
    oracle: str | None = None
    """A generator whose coordinates are the true factors, such as `toonface_oracle:renderer`: the ceiling."""
    targets: Mapping[str, float] = field(default_factory=lambda: dict(TARGETS))
    """What each calibration wants."""
    profile_codes: int = PROFILE_CODES
    """Codes of a profile."""
    null: int = 39
    """Random directions that p-values are counted against."""

    def __post_init__(self) -> None:
        if not self.generators or not self.methods or not self.metrics or not self.seeds or not self.code_seeds:
            raise UserError("a comparison needs at least one generator, method, metric and seed of each kind")
        if min(self.k, self.profile_codes) < 1 or self.null < 0:
            raise UserError("k and profile_codes are whole numbers from 1, and null from 0")
        asked = (*self.calibrations, *self.targets, *(each for some in self.at.values() for each in some))
        for calibration in asked:
            check_calibration(calibration)
        for table, entries in ((METHODS, self.methods), (METRICS, self.metrics)):
            for entry in entries:
                entry.make(table)
            labels = [str(entry) for entry in entries]
            if len(set(labels)) < len(labels):
                raise UserError(f"a {table.kind} came twice: {', '.join(labels)}")
        strange = sorted(set(self.at) - {str(each) for each in self.metrics})
        if strange:
            raise UserError(
                f"at names {strange[0]!r}, which is no metric of the grid: {', '.join(map(str, self.metrics))}"
            )
        open_reader(self.reader)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Grid:
        """Read a grid out of plain data, as a YAML file holds it.

        Raises:
            UserError: on a key that is not known, or a value of the wrong kind.
        """
        known = {each.name for each in dataclasses.fields(cls)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise UserError(f"a grid has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
        values = dict(given)
        try:
            if "generators" in values:
                values["generators"] = _groups(values["generators"])
            for name in ("methods", "metrics"):
                if name in values:
                    values[name] = tuple(_entry(each) for each in values[name])
            for name in ("seeds", "code_seeds"):
                if name in values:
                    values[name] = tuple(int(each) for each in values[name])
            if "calibrations" in values:
                values["calibrations"] = tuple(values["calibrations"])
            if "at" in values:
                values["at"] = {str(metric): tuple(some) for metric, some in values["at"].items()}
            if "targets" in values:
                values["targets"] = dict(TARGETS) | {key: float(each) for key, each in values["targets"].items()}
            return cls(**values)
        except (TypeError, AttributeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"the grid cannot be read: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` reads."""
        plain = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        plain["generators"] = {name: list(sources) for name, sources in self.generators.items()}
        plain |= {name: [str(each) for each in plain[name]] for name in ("methods", "metrics")}
        plain |= {name: list(plain[name]) for name in ("seeds", "code_seeds", "calibrations")}
        plain["at"] = {metric: list(some) for metric, some in self.at.items()}
        return plain | {"targets": {name: float(each) for name, each in self.targets.items()}}

    def fits(self) -> Iterator[Fit]:
        """Give every fit of the grid: the groups of cells that share their directions."""
        for group, sources in self.generators.items():
            for source in sources:
                for seed in self.seeds:
                    for method in self.methods:
                        yield Fit(group, source, method, seed)
            if self.oracle is not None:
                yield Fit(group, self.oracle, Entry("axes"), self.seeds[0], is_oracle=True)

    def cells(self, fit: Fit) -> Iterator[Cell]:
        """Give the cells of a fit: one a metric, calibration and seed of codes."""
        for metric in self.metrics:
            applies = getattr(METRICS[metric.name], "uses_strength", True)
            chosen = self.at.get(str(metric), self.calibrations)
            for calibration in chosen if applies else ("native",):
                for seed in self.code_seeds:
                    yield Cell(fit, metric, calibration, seed)


def _groups(given: Any) -> dict[str, tuple[str, ...]]:
    if isinstance(given, str):
        given = [given]
    if isinstance(given, Mapping):
        return {str(name): (each,) if isinstance(each, str) else tuple(map(str, each)) for name, each in given.items()}
    sources = list(map(str, given))
    short = [Path(each).name if "/" in each else each for each in sources]
    named = zip(short, sources, strict=True) if len(set(short)) == len(short) else zip(sources, sources, strict=True)
    return {name: (source,) for name, source in named}


def _entry(given: Any) -> Entry:
    if isinstance(given, Mapping):
        name = given.get("name")
        if not isinstance(name, str):
            raise UserError(f"{given!r} has no name; write {{name: sefa, n_directions: 5}} or sefa(n_directions=5)")
        return Entry(name, {key: value for key, value in given.items() if key != "name"})
    return Entry.parse(str(given))


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        "generators": ["toonfaces"],
        "methods": [
            "eigen", "sefa", "ganspace(at=layer3,n_samples=1500)", "jacobian(n_samples=4)",
            "random", "random(law=covariance)", "axes", "supervised(n_samples=1500)",
        ],
        "metrics": [
            "attribute_matrix_toonfaces_v1", "effect_orthogonality_v1", "latent_orthogonality_v1", "recovery_200_v1",
        ],
        "reader": "toonfaces",
        "oracle": "toonface_oracle:renderer",
    },
}  # fmt: skip
"""Name -> a grid. `quick` takes no method that is trained, and one seed."""


def load_grid(preset: str | None = None, file: Path | None = None, **changes: Any) -> Grid:
    """Return a grid from a preset, a YAML file over it, and changes over both; those at None or empty change nothing.

    Raises:
        UserError: on an unknown preset, or a file that holds no grid.
    """
    given: dict[str, Any] = {}
    if preset is not None:
        if preset not in PRESETS:
            raise UserError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
        given |= PRESETS[preset]
    if file is not None:
        try:
            held = yaml.safe_load(Path(file).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
        if not isinstance(held, dict):
            raise UserError(f"{file} holds no grid; write generators:, methods:, metrics: and the rest, as in docs")
        given |= held
    changes = {key: value for key, value in changes.items() if value not in (None, ())}
    if "calibrations" in changes or "metrics" in changes:  # what is asked for outright, not what was set before
        given["at"] = {}
    return Grid.from_dict(given | changes)


# --- fits and cells ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """One method run once on one network."""

    group: str
    """The generator's name in the grid."""
    source: str
    """Where the network is opened."""
    method: Entry
    """What finds the directions."""
    seed: int
    """Of the method."""
    is_oracle: bool = False
    """Whether this is the ceiling, of which the group's own network takes no part."""

    @property
    def label(self) -> str:
        """The method's name in tables."""
        return ORACLE if self.is_oracle else str(self.method)

    def reads(self, reader: str) -> dict[str, str]:
        """Return the grid's reader by name where the method takes it, since it then is part of what is found."""
        takes_it = any(each.name == "reader" for each in dataclasses.fields(METHODS[self.method.name]))
        return {"method_reader": edition(reader)} if takes_it and "reader" not in self.method.arguments else {}

    def key(self, reader: str, **more: Any) -> str:
        """Return a short name for files, which tells everything that the fit depends on."""
        told = json.dumps([self.source, str(self.method), self.seed, more | self.reads(reader)], sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        plain = re.sub(r"[^\w.-]+", "-", f"{self.group}--{self.label}--{self.seed}").strip("-")
        return f"{plain[:80]}--{digest}"


@dataclass(frozen=True)
class Cell:
    """One number of the comparison."""

    fit: Fit
    """Whose directions are judged."""
    metric: Entry
    """By what."""
    calibration: Calibration
    """At which strengths."""
    seed: int
    """Of the metric."""

    def address(self, grid: Grid) -> dict[str, Any]:
        """Return everything that its number depends on but the network's weights."""
        about: dict[str, Any] = {
            "group": self.fit.group,
            "source": self.fit.source,
            "method": self.fit.label,
            "method_seed": self.fit.seed,
            "metric": str(self.metric),
            "calibration": self.calibration,
            "seed": self.seed,
            "k": grid.k,
        } | self.fit.reads(grid.reader)
        fixed = getattr(self.metric.make(METRICS), "reader", None)
        if isinstance(fixed, str) and digest_of(fixed):
            about["metric_reader"] = edition(fixed)
        if self.calibration != "native":
            about |= {
                "target": grid.targets[self.calibration],
                "reader": edition(grid.reader),
                "profile_codes": grid.profile_codes,
            }
        return about

    def command(self, grid: Grid, out: Path) -> str:
        """Return the command that gives this number again."""
        if self.fit.is_oracle:
            chosen = ["--oracle", self.fit.source]
        else:
            chosen = ["--methods", str(self.fit.method)]
        is_plain = dict(grid.targets) == dict(TARGETS) and grid.profile_codes == PROFILE_CODES
        rest = [] if is_plain else ["--config", str(out / "grid.yaml")]
        words = [
            "eigenlens", "compare", *rest, "--generators", self.fit.source, *chosen, "--metrics", str(self.metric),
            "--seeds", str(self.fit.seed), "--code-seeds", str(self.seed), "--calibrations", self.calibration,
            "--k", str(grid.k), "--reader", grid.reader, "--out", str(out),
        ]  # fmt: skip
        return shlex.join(words)


class Results:
    """The lines of `results.jsonl`: appended one by one, by several processes at once, and never rewritten."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / RESULTS

    def read(self) -> list[dict[str, Any]]:
        """Return every whole line; a line that a stopped process left unfinished is passed over."""
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text("utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("cell"), dict):
                lines.append(line)
        return lines

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line at the end, whole, whoever else writes."""
        text = json.dumps(plain_json(line), ensure_ascii=False, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            lock(file)
            if file.tell() and not _ends_a_line(file):
                text = "\n" + text  # what a stopped process left unfinished stays a line of its own
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def latest(self) -> dict[str, dict[str, Any]]:
        """Return the last line of every cell, by its address."""
        return {address_key(line["cell"]): line for line in self.read()}


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def edition(reader: str) -> str:
    """Return a reader's name with the digest of its weights, where it has any: learnt anew, it reads other numbers."""
    digest = digest_of(reader)
    return f"{reader}@{digest}" if digest else reader


def address_key(address: Mapping[str, Any]) -> str:
    """Return an address as one text, to find it by."""
    return json.dumps(address, sort_keys=True)


def plain_json(value: Any) -> Any:
    """Return JSON's own kinds; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(each) for each in value]
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return plain_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


# --- running ----------------------------------------------------------------------------------------------------------


def _tell_nobody(line: str) -> None:
    """Say nothing."""


@dataclass
class Comparison:
    """A grid, and the folder that holds what is known of it.

    Args:
        grid: what is compared.
        folder: results.jsonl, directions/, profiles/, tables/ and report/.
        device: of the networks.
        log: is told what happens, a line a time.
    """

    grid: Grid
    """What is compared."""
    folder: Path
    """Where everything lies."""
    device: str = "auto"
    """Of the networks."""
    log: Callable[[str], None] = _tell_nobody
    """Is told what happens."""

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        self.results = Results(self.folder)
        self.open = functools.lru_cache(maxsize=2)(self._open)
        self.yardstick = functools.lru_cache(maxsize=2)(self._yardstick)

    def run(self, processes: int | None = 1) -> None:
        """Fill every cell that is empty, and measure the random directions that the report counts p-values against.

        A cell whose metric or method lacks an organ in this family becomes `n/a`, one that fails becomes `failed`, both
        with the reason; a later run tries the failed ones again. Whoever runs the same comparison at the same time,
        under torchrun or by hand, takes what is free, so that nothing is done twice, and ends when nothing is left.

        Args:
            processes: how many share the work, this one among them; None: one for each thread of a CPU, at most 4, and
                one on a GPU or under torchrun. They also share the threads. Where there are several, a script needs
                `if __name__ == "__main__":`, as all that start processes do, and `log` has to be a function that can be
                pickled.

        Raises:
            UserError: where a network has other weights than those that the folder's numbers were measured on, or
                processes is below 1.
        """
        if processes is not None and processes < 1:
            raise UserError(f"{processes} processes came; give 1 or more")
        self._check_weights()
        if runtime.rank() == 0:
            text = yaml.safe_dump(self.grid.to_dict(), sort_keys=False, allow_unicode=True)
            write_text(self.folder / "grid.yaml", text, force=True)
        since = len(self.results.read())
        threads = torch.get_num_threads()
        count = self._fitting(threads) if processes is None else processes
        about = (self.grid, self.folder, self.device, self.log, max(1, threads // count), since)
        helpers = [multiprocessing.get_context("spawn").Process(target=_help, args=about) for _ in range(count - 1)]
        for each in helpers:
            each.daemon = True  # none outlives this process
            each.start()
        torch.set_num_threads(max(1, threads // count))
        try:
            self._take(since)
            for each in helpers:
                each.join()
        finally:
            torch.set_num_threads(threads)

    def _fitting(self, threads: int) -> int:
        is_one = runtime.resolve_device(self.device).type != "cpu" or runtime.world_size() > 1
        return 1 if is_one else min(threads, MAX_PROCESSES, len(self.cells()))

    def _take(self, since: int) -> None:
        """Do what nobody else is at, until all is done; what was tried after line `since` is not tried again."""
        fits = sorted(self.grid.fits(), key=lambda fit: not fit.is_oracle)  # what takes longest comes first
        firsts = dict.fromkeys(sources[0] for sources in self.grid.generators.values())
        if runtime.resolve_device(self.device).type == "cpu":
            runtime.keep_freed_memory()  # getting it again from the system costs a seventh of all seconds
        with runtime.alone():
            for source in firsts:
                with self._claimed(f"null {source}") as is_ours, contextlib.suppress(Exception):
                    if is_ours:  # where it fails, the report says why
                        self.null(source, self.open(source).default_space)
            while left := [fit for fit in fits if self._empty(fit, since)]:
                moves = [self._advance(fit, since) for fit in left]
                if not any(moves):
                    time.sleep(POLL)  # others are at all that is left: one of them may be stopped

    def _claimed(self, name: str) -> contextlib.AbstractContextManager[bool]:
        return claim(self.folder / CLAIMS, place_of(name))

    def _advance(self, fit: Fit, since: int) -> bool:
        """Find the directions of a fit, and judge them, as far as nobody else is at it; tell whether anything was."""
        has_moved, path = False, self.directions_file(fit)
        if not path.exists() or not self._profile_file(path.stem).exists():
            with self._claimed(path.stem) as is_ours:
                if not is_ours:
                    return False
                self._find(fit, since)
                has_moved = True
        for metric in dict.fromkeys(str(cell.metric) for cell in self._empty(fit, since)):
            with self._claimed(f"{path.stem} {metric}") as is_ours:
                has_moved |= is_ours and self._judge(fit, metric, since)
        return has_moved

    def null(self, source: str, space: str) -> Profile | None:
        """Return the profile of the random directions that p-values are counted against; None where `null` is 0."""
        if not self.grid.null:
            return None
        count = min(self.grid.null, self.open(source).space(space).dim)
        entry = Entry("random", {"n_directions": count, "law": "covariance", "space": space})
        return self.found(Fit("null", source, entry, NULL_SEED), k=count)[2]

    def _check_weights(self) -> None:
        measured: dict[str, set[str]] = {}
        for line in self.results.latest().values():
            if line["status"] == "done":
                measured.setdefault(line["cell"]["source"], set()).add(line["generator"]["weights"])
        for source in {fit.source for fit in self.grid.fits()} & set(measured):
            now = self.open(source).weight_hash
            if measured[source] != {now}:
                raise UserError(
                    f"{source} has weights {now} now, and numbers in {self.folder} were measured on "
                    f"{', '.join(sorted(measured[source] - {now}))}; choose another folder with --out"
                )

    def is_complete(self) -> bool:
        """Tell whether every cell has been tried, by whichever process."""
        known = self.results.latest()
        return all(address_key(cell.address(self.grid)) in known for cell in self.cells())

    def cells(self) -> list[Cell]:
        """Return all cells of the grid."""
        return [cell for fit in self.grid.fits() for cell in self.grid.cells(fit)]

    def _settled(self, since: int) -> set[str]:
        """Return the addresses of cells that have a number or cannot have one, or were tried after line `since`."""
        lines = self.results.read()
        latest = {address_key(line["cell"]): line["status"] for line in lines}
        tried = {address_key(line["cell"]) for line in lines[since:]}
        return tried | {address for address, status in latest.items() if status in ("done", "n/a")}

    def _empty(self, fit: Fit, since: int) -> list[Cell]:
        settled = self._settled(since)
        return [cell for cell in self.grid.cells(fit) if address_key(cell.address(self.grid)) not in settled]

    def _find(self, fit: Fit, since: int) -> None:
        began = time.monotonic()
        try:
            directions = self.found(fit)[1]
        except Exception as error:  # whatever a method raises belongs into its cells, and the others go on
            for cell in self._empty(fit, since):
                self._note_failure(cell, error)
            return
        spent = time.monotonic() - began
        self.log(f"{fit.group}  {fit.label}  seed {fit.seed}: {len(directions)} directions, {spent:.0f} s")

    def _judge(self, fit: Fit, metric: str, since: int) -> bool:
        """Fill the cells of one metric of a fit whose directions are found; tell whether any was empty."""
        empty = [cell for cell in self._empty(fit, since) if str(cell.metric) == metric]
        if not empty:
            return False
        generator, directions, profile = self.found(fit)
        twin = self._twin(fit, directions, self.grid.k)
        for cell in empty:
            if twin is None or not self._copy_cell(cell, twin[0]):
                self._run_cell(cell, generator, directions, profile)
        return True

    def _copy_cell(self, cell: Cell, first: Fit) -> bool:
        """Take the number of the same directions, found with the first seed; tell whether there was one."""
        own = dataclasses.replace(cell, fit=first).address(self.grid)
        line = self.results.latest().get(address_key(own))
        if line is None or line["status"] != "done":
            return False
        copied = {key: value for key, value in line.items() if key not in ("cell", "status", "command")}
        self._note(cell, "done", **copied, same_as={"method_seed": first.seed})
        return True

    def _run_cell(self, cell: Cell, generator: Generator, directions: Directions, profile: Profile) -> None:
        began = time.monotonic(), time.process_time()
        try:
            strengths = profile.strengths_at(cell.calibration, self.grid.targets[cell.calibration])
            metric = cell.metric.make(METRICS)
            score: Score = metric.score(generator, recalibrated(directions, strengths), seed=cell.seed)
        except Exception as error:  # whatever a metric raises belongs into its cell, and the others go on
            self._note_failure(cell, error)
            return
        self._note(
            cell,
            "done" if math.isfinite(score.value) else "n/a",
            **({} if math.isfinite(score.value) else {"reason": str(score.details.get("reason", "no number"))}),
            **score.to_json(),
            protocol=score.metric,
            dead=strengths.n_dead,
            strengths=[round(each, 4) for each in strengths.sigma.tolist()],
            names=list(directions.names),
            seconds=round(time.monotonic() - began[0], 2),
            cpu_seconds=round(time.process_time() - began[1], 2),
            device=str(generator.device),
        )
        self.log(f"  {cell.fit.label}  {cell.metric}  {cell.calibration}  seed {cell.seed}: {score.value:.4g}")

    def _note_failure(self, cell: Cell, error: Exception) -> None:
        lacks = isinstance(error, Unsupported)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        reason = f"{kind}{' '.join(str(error).split())}"[:500]
        self._note(cell, "n/a" if lacks else "failed", reason=reason, version=__version__)
        self.log(f"  {cell.fit.label}  {cell.metric}  {cell.calibration}: {'n/a' if lacks else 'failed'}: {reason}")

    def _note(self, cell: Cell, status: str, **more: Any) -> None:
        line = {"cell": cell.address(self.grid), "status": status, "command": cell.command(self.grid, self.folder)}
        self.results.append(line | more)

    # what cells share

    def _open(self, source: str) -> Generator:
        where = runtime.resolve_device(self.device)
        if where.type == "cuda" and where.index is None:
            where = torch.device("cuda", runtime.local_rank())  # one GPU a process
        try:
            return load_generator(source, device=str(where))
        except UserError as error:
            if source == self.grid.oracle:
                raise Unsupported(f"there is no oracle here: {error}") from error
            raise

    def _yardstick(self, source: str, space: str) -> Yardstick:
        generator = self.open(source)
        width = generator.space(space).dim
        any_direction = Directions(torch.eye(width)[:1, None], space, ("any",))
        return measure_yardstick(generator, any_direction, open_reader(self.grid.reader), kernels=self.kernels)

    @functools.cached_property
    def kernels(self) -> tuple[Calibration, ...]:
        """Return the calibrations by kernel distance that are asked for and whose extractor is installed."""
        asked = {*self.grid.calibrations, *(each for some in self.grid.at.values() for each in some)}
        found = []
        for name, extractor in KERNELS.items():
            if name in asked:
                try:
                    if extractor:
                        EXTRACTORS[extractor]()(torch.zeros(1, 3, 32, 32))
                    found.append(name)
                except UserError as error:  # its cells will say so
                    self.log(f"{name} is left out: {error}")
        return tuple(found)

    def directions_file(self, fit: Fit, *, k: int | None = None) -> Path:
        """Return where the directions of a fit lie."""
        return self.folder / "directions" / f"{fit.key(self.grid.reader, k=k or self.grid.k)}.safetensors"

    def found(self, fit: Fit, *, k: int | None = None) -> tuple[Generator, Directions, Profile]:
        """Return a fit's network, its directions with σ, effect and limits, and their profile; made once, then read.

        Args:
            fit: which.
            k: how many directions to keep; by default as the grid says.
        """
        k = k or self.grid.k
        generator, path = self.open(fit.source), self.directions_file(fit, k=k)
        if path.exists():
            directions = Directions.load(path, generator=generator)
        else:
            room = generator.space(fit.method.arguments.get("space") or generator.default_space).dim
            method = fit.method.make(METHODS, n_directions=min(k, room), reader=self.grid.reader, measured=False)
            run = self.folder / "runs" / path.stem
            run.mkdir(parents=True, exist_ok=True)
            began = time.process_time()
            found = method.fit(generator, seed=fit.seed, run=run)
            cost = time.process_time() - began
            with contextlib.suppress(OSError):  # most methods leave nothing behind
                run.rmdir()
            found = most_important(found.in_sigma(generator.space(found.space)), k)
            twin = self._twin(fit, found, k)
            if twin is not None:
                directions = dataclasses.replace(twin[1], provenance=found.provenance)
                twin[2].save(self._profile_file(path.stem), force=True)
            else:
                if fit.is_oracle:
                    found = found.with_figures(limits=torch.tensor([ORACLE_LIMITS] * len(found)))
                directions = calibrate(generator, found)
            fields = {**directions.fields, "fit_cpu_seconds": torch.full((len(directions),), cost)}
            directions = directions.with_figures(fields=fields)
            directions.save(path, force=True)
        return generator, directions, self.profile(path.stem, fit.source, directions)

    def _twin(self, fit: Fit, found: Directions, k: int) -> tuple[Fit, Directions, Profile] | None:
        """Return what the grid's first seed found, where it is the same: many methods have no use for a seed."""
        first = dataclasses.replace(fit, seed=self.grid.seeds[0])
        path = self.directions_file(first, k=k)
        if fit.seed == first.seed or not path.exists() or not self._profile_file(path.stem).exists():
            return None
        directions = Directions.load(path)
        is_same = directions.vectors.shape == found.vectors.shape and torch.equal(directions.vectors, found.vectors)
        is_same &= directions.is_straight
        return (first, directions, Profile.load(self._profile_file(path.stem))) if is_same else None

    def _profile_file(self, key: str) -> Path:
        reader = re.sub(r"[^\w.-]+", "-", edition(self.grid.reader))
        more = "".join(f"-{name}" for name in self.kernels)
        return self.folder / "profiles" / f"{key}--{reader}-{self.grid.profile_codes}{more}.safetensors"

    def profile(self, key: str, source: str, directions: Directions) -> Profile:
        """Return the profile of some directions, read from its file or measured."""
        path = self._profile_file(key)
        if path.exists():
            return Profile.load(path)
        generator = self.open(source)
        profile = measure_profile(
            generator,
            directions,
            open_reader(self.grid.reader),
            self.yardstick(source, directions.space),
            n_codes=self.grid.profile_codes,
        )
        profile.save(path, force=True)
        return profile


def place_of(name: str) -> int:
    """Return the place in the file of claims that stands for a piece of work."""
    return zlib.crc32(name.encode()) >> 3


def _help(grid: Grid, folder: Path, device: str, log: Callable[[str], None], threads: int, since: int) -> None:
    """Take part in a comparison that another process runs."""
    torch.set_num_threads(threads)
    with contextlib.suppress(KeyboardInterrupt):  # of which the other one tells
        Comparison(grid, folder, device, log)._take(since)


def most_important(directions: Directions, k: int) -> Directions:
    """Return the k directions that their method holds most important, in its own order."""
    if len(directions) <= k:
        return directions
    importance = directions.importance if directions.importance.isfinite().all() else directions.effect
    if not importance.isfinite().all():
        return directions[:k]
    return directions[sorted(importance.argsort(descending=True, stable=True)[:k].tolist())]


# --- summaries --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Summary:
    """What is known of one method by one metric at one calibration, over all seeds."""

    group: str
    """Name of the generator in the grid."""
    method: str
    """The method's label."""
    metric: str
    """The metric's label."""
    calibration: str
    """At which strengths; `any` for a metric that no strength enters."""
    values: np.ndarray
    """[networks, method seeds, code seeds], NaN where there is none."""
    interval: Interval | None
    """Mean and interval; None where there is no number."""
    dead: float
    """Directions that do not reach the calibrated change, mean over seeds."""
    k: float
    """Directions judged, mean over seeds."""
    chance: float
    """What chance gives, where the metric says so; else NaN."""
    status: str
    """`done`, `n/a`, `failed`, or `missing`."""
    reason: str
    """Why there is no number."""
    command: str
    """What gives the first of the values again."""
    further: Mapping[str, float]
    """Further figures of the metric, mean over seeds."""

    @property
    def points(self) -> list[float]:
        """Every value that there is."""
        return [float(each) for each in self.values.flat if math.isfinite(each)]


def summarise(comparison: Comparison) -> list[Summary]:
    """Gather the cells of a grid: one summary for each generator, method, metric and calibration, in that order."""
    grid, known = comparison.grid, comparison.results.latest()
    cells: dict[tuple[str, str, str, str], list[tuple[tuple[int, int, int], Cell]]] = {}
    for cell in comparison.cells():
        fit = cell.fit
        place = (
            0 if fit.is_oracle else grid.generators[fit.group].index(fit.source),
            grid.seeds.index(fit.seed),
            grid.code_seeds.index(cell.seed),
        )
        is_free = not getattr(METRICS[cell.metric.name], "uses_strength", True)
        where = (fit.group, fit.label, str(cell.metric), "any" if is_free else cell.calibration)
        cells.setdefault(where, []).append((place, cell))
    return [_summary(where, group, grid, known, comparison.folder) for where, group in cells.items()]


def _summary(
    where: tuple[str, str, str, str],
    cells: Sequence[tuple[tuple[int, int, int], Cell]],
    grid: Grid,
    known: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> Summary:
    values = np.full((len(grid.generators[where[0]]), len(grid.seeds), len(grid.code_seeds)), math.nan)
    lines = [(place, known.get(address_key(cell.address(grid)))) for place, cell in cells]
    commands = {place: cell.command(grid, folder) for place, cell in cells}
    done = [(place, line) for place, line in lines if line is not None and line["status"] == "done"]
    for place, line in done:
        values[place] = line["value"]
    others = [line for _, line in lines if line is not None and line["status"] != "done"]
    first = done[0][1] if done else (others[0] if others else {})
    mean = lambda numbers: float(np.mean(numbers)) if numbers else math.nan  # noqa: E731
    further: dict[str, list[float]] = {}
    for _, line in done:
        for name, value in further_figures(line).items():
            further.setdefault(name, []).append(value)
    return Summary(
        *where,
        values,
        nested_bootstrap(values) if done else None,
        mean([line["dead"] for _, line in done]),
        mean([line["directions"]["k"] for _, line in done]),
        mean([chance for _, line in done if math.isfinite(chance := chance_of(line))]),
        "done" if done else first.get("status", "missing"),
        first.get("reason", "" if done else "not computed yet"),
        commands[done[0][0] if done else cells[0][0]],
        {name: mean(numbers) for name, numbers in further.items()},
    )


def chance_of(line: Mapping[str, Any]) -> float:
    """Return what chance gives by a score's own account: its `chance` or `null`; NaN where it has none."""
    told = [line["details"].get(name) for name in ("chance", "null")]
    return next((float(each) for each in told if _is_number(each)), math.nan)


def further_figures(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among the details of a score: those that stand alone, and means of one a direction."""
    figures, k = {}, line["directions"]["k"]
    for name, value in line["details"].items():
        if _is_number(value):
            figures[name] = float(value)
        elif isinstance(value, list) and len(value) == k and all(each is None or _is_number(each) for each in value):
            finite = [each for each in value if each is not None]
            if finite:
                figures[f"mean {name}"] = float(np.mean(finite))
        elif isinstance(value, Mapping) and value and all(_is_number(each) for each in value.values()):
            last = list(value)[-1]
            figures[f"{name} {last}"] = float(value[last])
    return figures


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# --- claims of order --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What the comparison says of the order of two methods by one metric."""

    group: str
    """Name of the generator in the grid."""
    metric: str
    """The metric's label."""
    first: str
    """The method with the higher values, where the order holds."""
    second: str
    """The other."""
    verdict: str
    """`higher`: the order holds under all four calibrations. `depends on calibration`: under some alone. `not shown`:
    under none. `too few seeds`, `too few calibrations`: nothing can be claimed."""
    differences: Mapping[str, Interval]
    """Calibration -> first less second, paired by generator and seeds."""


def claims(
    summaries: Sequence[Summary], *, least: int = MIN_REPLICATES, calibrations: Sequence[str] = CALIBRATIONS
) -> list[Claim]:
    """Compare every two methods by every metric; an order is claimed only where it holds under all calibrations.

    It holds under one where the bootstrap interval of the paired difference lies on one side of 0. The oracle takes no
    part: it is another generator.

    Args:
        summaries: of one comparison.
        least: networks, or method seeds on one network, below which nothing is claimed.
        calibrations: those under which an order must hold.
    """
    made = []
    by_metric: dict[tuple[str, str], dict[str, dict[str, Summary]]] = {}
    for each in summaries:
        if each.interval is not None and each.method != ORACLE:
            methods = by_metric.setdefault((each.group, each.metric), {})
            methods.setdefault(each.method, {})[each.calibration] = each
    for (group, metric), methods in by_metric.items():
        names = list(methods)
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                made.append(_claim(group, metric, first, second, methods[first], methods[second], least, calibrations))
    return made


def _claim(
    group: str,
    metric: str,
    first: str,
    second: str,
    a: Mapping[str, Summary],
    b: Mapping[str, Summary],
    least: int,
    calibrations: Sequence[str],
) -> Claim:
    differences, paired = {}, []
    for calibration in a:
        if calibration in b:
            difference = a[calibration].values - b[calibration].values
            if np.isfinite(difference).any():
                differences[calibration] = nested_bootstrap(difference)
                paired.append(difference)
    if not paired or min(map(_replicates, paired)) < least:
        return Claim(group, metric, first, second, "too few seeds", differences)
    if "any" not in a and not set(calibrations) <= set(a) | set(b):
        return Claim(group, metric, first, second, "too few calibrations", differences)
    signs = [math.copysign(1, each.mean) if each.excludes_zero else 0.0 for each in differences.values()]
    is_whole = set(a) == set(b) == set(differences)
    if is_whole and abs(sum(signs)) == len(signs):
        if signs[0] > 0:
            return Claim(group, metric, first, second, "higher", differences)
        turned = {name: Interval(-each.mean, -each.high, -each.low, each.levels) for name, each in differences.items()}
        return Claim(group, metric, second, first, "higher", turned)
    return Claim(group, metric, first, second, "depends on calibration" if any(signs) else "not shown", differences)


def _replicates(values: np.ndarray) -> int:
    """Return how many networks, or else method seeds, gave numbers of their own: [networks, method seeds, codes]."""
    networks, seeds = (np.round(np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1), 9) for axis in (0, 1))
    return max(len({row.tobytes() for row in rows if np.isfinite(row).any()}) for rows in (networks, seeds))


def in_words(claim: Claim) -> str:
    """Say what a claim says.

    Example:
        >>> in_words(Claim("faces", "mig_v1", "sefa", "random", "not shown", {}))
        'faces, mig_v1: no order of sefa and random is shown'
    """
    where = f"{claim.group}, {claim.metric}: "
    if claim.verdict == "higher":
        widest = "; ".join(
            f"{name} {each.mean:+.3g} [{each.low:.3g}, {each.high:.3g}]" for name, each in claim.differences.items()
        )
        return f"{where}{claim.first} is higher than {claim.second} ({widest})"
    if claim.verdict.startswith("too few"):
        return f"{where}{claim.verdict} for an order of {claim.first} and {claim.second}"
    if claim.verdict == "not shown":
        return f"{where}no order of {claim.first} and {claim.second} is shown"
    return f"{where}the order of {claim.first} and {claim.second} depends on calibration"


# --- tables -----------------------------------------------------------------------------------------------------------


def shown(value: float | None, digits: int = 3) -> str:
    """Write a number for a table; a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def cell_text(summary: Summary) -> str:
    """Write the number of a summary with its interval and the count of values and dead directions."""
    if summary.interval is None:
        return summary.status
    text = shown(summary.interval.mean)
    if math.isfinite(summary.interval.low):
        text += f" [{shown(summary.interval.low)}, {shown(summary.interval.high)}]"
    if len(summary.points) > 1:
        text += f" n={len(summary.points)}"
    return text + (f" ({summary.dead:.3g} dead)" if summary.dead else "")


def tables(summaries: Sequence[Summary]) -> dict[tuple[str, str], list[dict[str, str]]]:
    """Return a table for every generator and metric: a row a method, a column a calibration."""
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for each in summaries:
        rows = found.setdefault((each.group, each.metric), {})
        row = rows.setdefault(each.method, {"method": each.method, "k": shown(each.k, 0)})
        row[each.calibration] = cell_text(each)
    for (group, metric), rows in found.items():
        chances = [e.chance for e in summaries if (e.group, e.metric) == (group, metric) and math.isfinite(e.chance)]
        if chances:
            columns = [name for name in next(iter(rows.values())) if name not in ("method", "k")]
            rows["chance"] = {"method": "chance", "k": "-"} | {name: shown(float(np.mean(chances))) for name in columns}
    return {where: list(rows.values()) for where, rows in found.items()}


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Write a table in Markdown."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([row.get(name, "-") for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


_COLUMNS = (
    "generator", "method", "metric", "calibration", "status", "mean", "low", "high", "points", "dead", "k", "chance",
    "reason", "command",
)  # fmt: skip


def long_table(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Return one row a summary, all numbers in full, for a .csv file."""
    rows = []
    for each in summaries:
        numbers = each.interval or Interval(math.nan, math.nan, math.nan, ())
        figures = (numbers.mean, numbers.low, numbers.high)
        points = " ".join(f"{point:.6g}" for point in each.points)
        values = (
            each.group, each.method, each.metric, each.calibration, each.status, *figures, points, each.dead, each.k,
            each.chance, each.reason, each.command,
        )  # fmt: skip
        cells = ("" if isinstance(v, float) and not math.isfinite(v) else v for v in values)
        rows.append(dict(zip(_COLUMNS, cells, strict=True)))
    return rows


def write_tables(comparison: Comparison) -> list[Path]:
    """Write `tables/`: one Markdown and one .csv of all numbers, a Markdown a metric, and the claims in words."""
    summaries = summarise(comparison)
    folder = comparison.folder / "tables"
    again = f"`{comparison_command(comparison)}`"
    pages = []
    whole = [f"# Comparison\n\nMade by {again} with eigenlens {__version__}.\n"]
    for (group, metric), rows in tables(summaries).items():
        text = f"## {metric} on {group}\n\n{markdown(rows)}"
        whole.append(text)
        name = re.sub(r"[^\w.-]+", "-", f"{group}--{metric}").strip("-")
        pages.append(write_text(folder / f"{name}.md", f"{text}\nMade by {again}.\n", force=True))
    told = claims_text(claims(summaries))
    whole.append(f"## What can be said of order\n\n{told}")
    pages.append(write_text(folder / "all.md", "\n".join(whole), force=True))
    pages.append(write_text(folder / "all.csv", _csv(long_table(summaries)), force=True))
    return pages


_ORDER = {
    "depends on calibration": "the order depends on the calibration for",
    "not shown": "no order is shown of",
}


def claims_text(made: Sequence[Claim]) -> str:
    """Write the claims as a list in Markdown: orders that hold first, then the pairs that cannot be told apart."""
    lines = [f"- {in_words(claim)}" for claim in made if claim.verdict == "higher"]
    for verdict in ("depends on calibration", "not shown"):
        pairs: dict[tuple[str, str], list[str]] = {}
        for each in made:
            if each.verdict == verdict:
                pairs.setdefault((each.group, each.metric), []).append(f"{each.first} and {each.second}")
        lines += [
            f"- {group}, {metric}: {_ORDER[verdict]} {'; '.join(both)}" for (group, metric), both in pairs.items()
        ]
    few = sum(claim.verdict.startswith("too few") for claim in made)
    if few:
        lines.append(
            f"- Of {few} pairs nothing is said: an order is claimed from {MIN_REPLICATES} networks or method seeds on, "
            "and only where it holds under all four calibrations."
        )
    return "\n".join(lines or ["- Nothing was compared."]) + "\n"


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    import csv
    import io

    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def comparison_command(comparison: Comparison) -> str:
    """Return the command that makes the whole comparison again, from the grid that it wrote."""
    return shlex.join(
        ["eigenlens", "compare", "--config", str(comparison.folder / "grid.yaml"), "--out", str(comparison.folder)]
    )
