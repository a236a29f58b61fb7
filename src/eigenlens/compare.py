"""Compare methods fairly: a grid of generators, methods, metrics and seeds, measured at four equal strengths.

Each finished cell is a line of `results.jsonl`; a run that was stopped goes on where it was, and processes share the
work out, each taking the next piece that is free. Tables and pages are made from that file and never typed in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
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
from .grid import Cell, Entry, Fit, Grid, edition
from .method import METHODS
from .metric import METRICS, Score
from .profile import KERNELS, Calibration, Profile, Yardstick, measure_profile, measure_yardstick, recalibrated
from .reader import EXTRACTORS, open_reader

RESULTS = "results.jsonl"
CLAIMS = ".claims"
"""File in the folder of a comparison by which processes tell each other what they are at."""
POLL = 0.5
"""Seconds until a process that others leave nothing to do looks again."""
MAX_PROCESSES = 4
"""Processes that a comparison starts unless it is told otherwise: each holds the network."""
NULL_SEED = 1_000
"""Of the random directions that p-values are counted against, which no row of a grid is likely to have."""
ORACLE_LIMITS = (-4.0, 4.0)
"""σ within which an oracle's directions are walked: whatever it draws is real, so it has no edge to measure."""


# --- results ----------------------------------------------------------------------------------------------------------


class Results:
    """The lines of `results.jsonl`: appended one by one, by several processes at once, and never rewritten."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / RESULTS

    def read(self) -> list[dict[str, Any]]:
        """Return every whole line; a line that a stopped process left unfinished is passed over."""
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_bytes().split(b"\n"):  # splitlines() would also end a line within a name
            try:
                line = json.loads(text)
            except ValueError:  # no JSON, or cut off within a character
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
        share = max(1, threads // count)
        about = (self.grid, self.folder, self.device, self.log, share, since)
        helpers = [multiprocessing.get_context("spawn").Process(target=_help, args=about) for _ in range(count - 1)]
        for each in helpers:
            each.daemon = True  # none outlives this process
            each.start()
        torch.set_num_threads(share)
        try:
            self._take(since)
            for each in helpers:
                each.join()
        finally:
            for each in helpers:
                each.terminate()  # those that have ended do not mind
            torch.set_num_threads(threads)

    def _fitting(self, threads: int) -> int:
        is_one = runtime.resolve_device(self.device).type != "cpu" or runtime.world_size() > 1
        return 1 if is_one else min(threads, MAX_PROCESSES, len(self.cells()))

    def _take(self, since: int) -> None:
        """Do what nobody else is at, until all is done; what was tried after line `since` is not tried again."""
        fits = sorted(self.grid.fits(), key=lambda fit: not fit.is_oracle)  # what takes longest comes first
        firsts = dict.fromkeys(sources[0] for sources in self.grid.generators.values()) if self.grid.null else ()
        if runtime.resolve_device(self.device).type == "cpu":
            runtime.keep_freed_memory()  # getting it again from the system costs a seventh of all seconds
        with runtime.alone():
            for source in firsts:
                with self._claimed(f"null {source}") as is_ours, contextlib.suppress(Exception):
                    if is_ours:  # where it fails, the report says why
                        self.null(source, self.open(source).default_space)
            while True:
                settled = self._settled(since)
                left = [fit for fit in fits if self._empty(fit, settled)]
                if not left:
                    return
                moves = [self._advance(fit, since) for fit in left]
                if not any(moves):
                    time.sleep(POLL)  # others are at all that is left: one of them may be stopped

    def _claimed(self, work: str) -> contextlib.AbstractContextManager[bool]:
        return claim(self.folder / CLAIMS, work)

    def _empty(self, fit: Fit, settled: Set[str]) -> list[Cell]:
        return [cell for cell in self.grid.cells(fit) if address_key(cell.address(self.grid)) not in settled]

    def _advance(self, fit: Fit, since: int) -> bool:
        """Find the directions of a fit, and judge them, as far as nobody else is at it; tell whether anything was."""
        has_moved, key = False, self.directions_file(fit).stem
        if not self._is_found(fit):
            with self._claimed(key) as is_ours:
                if not is_ours:
                    return False
                has_moved = self._find(fit, since)
        for metric in dict.fromkeys(str(cell.metric) for cell in self._empty(fit, self._settled(since))):
            with self._claimed(f"{key} {metric}") as is_ours:
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

    def _is_found(self, fit: Fit) -> bool:
        path = self.directions_file(fit)
        return path.exists() and self._profile_file(path.stem).exists()

    def _find(self, fit: Fit, since: int) -> bool:
        """Find the directions of a fit, unless another process has or has failed to; tell whether it had to be done."""
        empty = self._empty(fit, self._settled(since))
        if self._is_found(fit) or not empty:
            return False
        began = time.monotonic()
        made = self._found_or_noted(fit, empty)
        if made is not None:
            spent = time.monotonic() - began
            self.log(f"{fit.group}  {fit.label}  seed {fit.seed}: {len(made[1])} directions, {spent:.0f} s")
        return True

    def _judge(self, fit: Fit, metric: str, since: int) -> bool:
        """Fill the cells of one metric of a fit; tell whether any was empty."""
        empty = [cell for cell in self._empty(fit, self._settled(since)) if str(cell.metric) == metric]
        made = self._found_or_noted(fit, empty) if empty else None
        if made is not None:
            twin = self._twin(fit, made[1], self.grid.k)
            for cell in empty:
                if twin is None or not self._copy_cell(cell, twin[0]):
                    self._run_cell(cell, *made)
        return bool(empty)

    def _found_or_noted(self, fit: Fit, empty: Sequence[Cell]) -> tuple[Generator, Directions, Profile] | None:
        """Return what `found` does; None where it fails, which the empty cells then say."""
        try:
            return self.found(fit)
        except Exception as error:  # whatever a method raises belongs into its cells, and the others go on
            for cell in empty:
                self._note_failure(cell, error)
            return None

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
