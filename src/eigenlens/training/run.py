"""A training run: its folder, its state, what is told and shown of it, and its loop; for every family that trains.

Everything random in step t is drawn from (seed, t): the latents, which images, how they are mirrored and augmented. So
there is no state of a random generator to keep, a resumed run repeats the uninterrupted one bit for bit, and a run on
several processes, each of which takes its share of the same batch, repeats the run on one to rounding.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import __version__, images, runtime
from ..errors import UserError
from ..files import write_text, written_beside
from ..generator import Generator, load_generator
from .adversaries import FIGURES, Adversaries, RunConfig
from .data import Dataset, gather, open_dataset
from .distance import has_stopped_improving, multiscale_distance
from .start import start_from

STATE = "state.pt"
STATE_FORMAT = "eigenlens.training/1"

FREE_ON_RESUME = (
    "kimg", "cooldown_kimg", "tick_kimg", "watch_kimg", "distance_images", "patience", "stop_when_flat", "save_seconds",
)  # fmt: skip
"""Fields that a resumed run may change: none of them touches a step that was taken. (A cooldown ties the learning rate
to the end: once it has begun, neither may move; see `read_state`.)"""

# --- the run's folder -------------------------------------------------------------------------------------------------


def new_run(runs: str | Path, name: str) -> Path:
    """Make the next free folder of `runs`, such as `runs/00012-eigengan-toonfaces`."""
    runs = Path(runs)
    numbers = [int(match[1]) for place in runs.glob("*") if (match := re.match(r"(\d{5})-", place.name))]
    run = runs / f"{max(numbers, default=-1) + 1:05d}-{name}"
    run.mkdir(parents=True)
    return run


def save_state(training: Adversaries, run: Path, *, data: Dataset, past: Past) -> None:
    """Write `last/`: the averaged generator, and `state.pt` for resuming; each whole or not at all.

    Raises:
        UserError: where a weight is not a number; what was saved before stays.
    """
    check_finite(training, (), run)
    state = training.state_dict() | {
        "format": STATE_FORMAT,
        "version": __version__,
        "config": json.dumps(dataclasses.asdict(training.config)),
        "data": data.sha256,
        "seconds": past.seconds,
        "distances": past.distances,
        "start": past.start,
    }
    with written_beside(run / "last" / STATE, force=True) as beside:
        torch.save(state, beside)
    export(training, run / "last", data=data, start=past.start)


def export(training: Adversaries, folder: Path, *, data: Dataset, start: dict[str, str] | None = None) -> Path:
    """Write the averaged generator in the library's own format, with what it learnt from and began with."""
    about = {"training": {"kimg": training.kimg, "data": data.name, "data_sha256": data.sha256, "version": __version__}}
    about["training"] |= {"config": dataclasses.asdict(training.config)} | ({"start": start} if start else {})
    return training.as_generator(data.name).save(folder, force=True, about=about)


def load_state(file: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, without unpickling objects; `file` may also be the folder of a run.

    Raises:
        UserError: where it is no such file.
    """
    file = find_state(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of foreign bytes raises nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} cannot be read: {reason}; give another state") from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise UserError(f"{file} is no training state in format {STATE_FORMAT}; give another state")
    return state


def find_state(path: Path, *, also: str = "") -> Path:
    """Return the state that a path names: the file itself, or that of a run's folder or of its `last`.

    Args:
        path: what was given.
        also: what else is allowed there, for the error.

    Raises:
        UserError: where there is none.
    """
    for place in (path, path / STATE, path / "last" / STATE):
        if place.is_file():
            return place
    raise UserError(f"{path} holds no {STATE}; give {also}a run's folder or a state file")


def read_state(file: Path, config: RunConfig, data: Dataset) -> dict[str, Any]:
    """Read what `save_state` wrote, for the same config and the same data.

    Raises:
        UserError: where it is no such file, or belongs to another config or other data; it names what differs.
    """
    state = load_state(file)
    # a setting that the state does not know came later, with a default that changes nothing
    then, now = _settings(type(config)()) | _flat(json.loads(state["config"])), _settings(config)
    differing = [key for key in now if then.get(key) != now[key] and key not in FREE_ON_RESUME]
    past = dataclasses.replace(config, kimg=then["kimg"], cooldown_kimg=then["cooldown_kimg"])
    if any(each.pace(state["step"] - 1) < 1 for each in (past, config)):  # its rates hang on where the end was to be
        differing += [key for key in ("kimg", "cooldown_kimg") if then[key] != now[key]]
    if differing:
        listed = ", ".join(f"{key} (was {then.get(key)}, now {now[key]})" for key in differing)
        raise UserError(
            f"the run at {file.parent.parent} has other settings: {listed}; give the same ones "
            f"({', '.join(FREE_ON_RESUME)} may change), or another --run"
        )
    if state["data"] != data.sha256:
        raise UserError(
            f"the run at {file.parent.parent} learnt from other images; give the same --data, or another --run"
        )
    return state


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return settings as a state gives them back: flat, and through JSON, which has lists for tuples."""
    return _flat(json.loads(json.dumps(dataclasses.asdict(config))))


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "model"} | config["model"]


def data_distance(generator: Generator, data: Dataset, n: int) -> dict[int, float]:
    """Return the multi-scale sliced Wasserstein distance of `n` samples to as many images of the data."""
    n = min(n, len(data))
    chosen = runtime.generator_for(0, "distance").permutation(len(data))[:n]
    real = gather(data.images, np.sort(chosen)).contiguous()
    return multiscale_distance(real, generator.render(generator.sample(n, seed=1)))


# --- the loop ---------------------------------------------------------------------------------------------------------


def conduct(
    make: Callable[[torch.device, str], Adversaries],
    config: RunConfig,
    *,
    family: str,
    data: str | Path,
    run: str | Path | None = None,
    resume: str = "auto",
    runs: str | Path = "runs",
    start: str | Path | None = None,
    start_discriminator: str | Path | None = None,
    device: str = "auto",
    precision: runtime.Precision = "auto",
    threads: int | None = None,
    tensorboard: bool = False,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Train what `make` makes for a device and a precision, from its first step or from where it was.

    Args:
        make: gives the networks.
        config: the settings.
        family: of the generator, for the name of a new folder.
        data: training images; see `data.open_dataset`.
        run: folder of the run; by default the next free one in `runs`.
        resume: `auto` goes on where the run's folder holds a state; `none` starts anew and wants a fresh folder; a
            state file or the folder of a run: goes on from there.
        runs: where new runs go, and the decoded images, which runs share.
        start: a generator, as `load_generator` takes it, whose weights a new run begins with; one that goes on has its
            own. See `start.start_from`.
        start_discriminator: a state or the folder of a run, whose discriminator a new run begins with, too.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `auto`, `fp32` or `bf16`; `auto` is bf16 where that is faster. R1 and the losses stay in fp32.
        threads: of the CPU; by default one a core.
        tensorboard: whether to write TensorBoard's files too.
        log: is given each line that is told; by default they go to stderr. `log.txt` holds them in any case.

    Returns:
        The run's folder; its `last/` is the averaged generator, for `load_generator`.

    Raises:
        UserError: on settings, data or states that do not fit, and where the training diverges.
    """
    tell = log or to_stderr
    where = runtime.join_processes(device)
    runtime.set_threads(threads)
    if where.type == "cpu":
        runtime.keep_freed_memory()
    if start is not None and resume not in ("auto", "none"):
        raise UserError(f"--start {start} begins a run and --resume {resume} goes on with one; give one of the two")
    if start is None and start_discriminator is not None:
        raise UserError(f"--start-discriminator {start_discriminator} needs a generator to judge: give --start too")
    n = runtime.world_size()
    if config.batch % n:
        raise UserError(f"a batch of {config.batch} cannot be shared by {n} processes; give a multiple of {n}")
    folder = None if run is None else Path(run)
    precision = runtime.resolve_precision(precision, where)
    training = make(where, precision)
    past = Past(start=_told(start, start_discriminator))
    if start is not None and not (folder and (folder / "last" / STATE).exists()):  # before anything is made
        source = load_generator(start, device="cpu")
        start_from(training, source, None if start_discriminator is None else load_state(Path(start_discriminator)))
        past.start |= source.identity()
    images_of = _open_on_all(
        Path(data), config.model, cache=(folder.parent if folder else Path(runs)) / "data", tell=tell
    )
    folder, state_file = _choose_run(folder, resume, Path(runs), f"{family}-{images_of.name}")
    if state_file:
        state = read_state(state_file, config, images_of)
        begun = state.get("start", {})
        if any(begun.get(key) != value for key, value in past.start.items()):
            raise UserError(
                f"the run at {folder} began otherwise: {begun or 'drawn'}; give the same --start, or another --run"
            )
        training.load_state_dict(state)
        past = Past(state["seconds"], state["distances"], begun)
    journal = None
    if runtime.rank() == 0:
        journal = _Journal(folder, tell, training, tensorboard=tensorboard)
        about = {"device": str(where), "precision": precision, "threads": torch.get_num_threads()}
        journal.begin(images_of, Path(data), machine=about, start=past.start, is_resumed=state_file is not None)
    with runtime.stop_requested() as stop:
        _loop(training, images_of, folder, journal, past, stop)
    return folder


def _told(start: str | Path | None, discriminator: str | Path | None) -> dict[str, str]:
    """Return what a run tells of where it was asked to begin; nothing where all is drawn."""
    return {} if start is None else {"from": str(start), "discriminator": str(discriminator or "drawn")}


@dataclass
class Past:
    """What a resumed run knows of the time before."""

    seconds: float = 0.0
    distances: list[float] = field(default_factory=list)
    """Every distance to the data so far."""
    start: dict[str, str] = field(default_factory=dict)
    """What it began with, where that was not drawn: `from`, what tells that generator, and `discriminator`."""


def _loop(
    training: Adversaries, data: Dataset, run: Path, journal: _Journal | None, past: Past, stop: threading.Event
) -> None:
    """Take steps until the end or until asked to stop; the first process (with a journal) tells, shows and saves."""
    config, n_before = training.config, training.step
    begun = saved = time.monotonic()
    figures: list[Tensor] = []
    while training.step < config.n_steps and not runtime.any_process(stop.is_set(), training.device):
        figures.append(training.take_step(training.reals(data), training.latents()))
        is_last = training.step == config.n_steps
        is_tick = is_last or _crosses(training.step, config.batch, config.tick_kimg)
        is_watch = is_last or bool(config.watch_kimg and _crosses(training.step, config.batch, config.watch_kimg))
        if is_tick or is_watch or training.device.type == "cpu":  # elsewhere reading a figure waits for the device
            check_finite(training, figures[-1].tolist(), run, weights=is_tick or is_watch)
        seconds = past.seconds + time.monotonic() - begun
        if journal and is_tick:
            speed = (training.step - n_before) * config.batch / 1000 / (time.monotonic() - begun)
            journal.tick(torch.stack(figures).nanmean(0).tolist(), seconds=seconds, speed=speed)
        if is_tick:
            figures.clear()
        if journal and is_watch:
            found = journal.watch(data, past.distances)
            past.distances += found if config.warmth(training.step - 1) else []  # it has not moved yet
            if config.stop_when_flat and has_stopped_improving(past.distances, patience=config.patience):
                stop.set()
        if journal and time.monotonic() - saved > config.save_seconds:
            save_state(training, run, data=data, past=dataclasses.replace(past, seconds=seconds))
            saved = time.monotonic()
    if journal:
        past.seconds += time.monotonic() - begun
        save_state(training, run, data=data, past=past)
        journal.end()


def check_finite(training: Adversaries, figures: Sequence[float], run: Path, *, weights: bool = True) -> None:
    """Raise UserError where a figure or a weight is not a number, naming what to do and the last good state."""
    named = zip(FIGURES, figures, strict=False)
    wrong = [name for name, value in named if math.isinf(value) or (math.isnan(value) and name != "r1")]
    if not wrong and (not weights or training.is_finite()):
        return
    what = f"the {wrong[0].replace('_', ' ')}" if wrong else "a weight"
    last = run / "last" / STATE
    good = f"the last good state is {last}" if last.exists() else "nothing had been saved yet"
    raise UserError(
        f"{what} became NaN or infinite in step {training.step} ({training.kimg:.1f} kimg); {good}; "
        "start again with a smaller --learning-rate or --r1-weight, or --precision fp32"
    )


def _open_on_all(path: Path, model: Any, *, cache: Path, tell: Callable[[str], None]) -> Dataset:
    """Open the data on every process; the first decodes while the others wait."""
    if runtime.rank() > 0:
        dist.barrier()
    data = open_dataset(path, resolution=model.resolution, channels=model.channels, cache=cache, log=tell)
    if runtime.rank() == 0 and runtime.world_size() > 1:
        dist.barrier()
    return data


def _crosses(step: int, batch: int, every_kimg: float) -> bool:
    """Tell whether step number `step` reached another multiple of `every_kimg`."""
    before, after = ((n * batch / 1000 / every_kimg + 1e-9) // 1 for n in (step - 1, step))
    return after > before


def to_stderr(line: str) -> None:
    """Tell the user a line."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _choose_run(run: Path | None, resume: str, runs: Path, name: str) -> tuple[Path, Path | None]:
    """Settle the run's folder and the state to go on from, the same on all processes."""
    state = None
    if resume not in ("auto", "none"):
        state = find_state(Path(resume), also="auto, none, ")
        if run is None and state.parent.name == "last":
            run = state.parent.parent
    if run is None:
        chosen = [str(new_run(runs, name)) if runtime.rank() == 0 else ""]
        if runtime.world_size() > 1:
            dist.broadcast_object_list(chosen)
        run = Path(chosen[0])
    own = run / "last" / STATE
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; choose a folder for the run")
    if own.exists() and resume == "none":
        raise UserError(f"{run} holds a run already; choose another --run, or pass --resume auto to go on")
    if own.exists() and state and own.resolve() != state.resolve():
        raise UserError(f"{run} holds another run already; choose another --run to go on from {state}")
    return run, state or (own if own.exists() else None)


class _Journal:
    """Write what one sees of a run: lines, `metrics.jsonl`, pictures; on the first process."""

    def __init__(self, run: Path, tell: Callable[[str], None], training: Adversaries, *, tensorboard: bool) -> None:
        self.run, self.training, self._tell = run, training, tell
        self.config = training.config
        run.mkdir(parents=True, exist_ok=True)
        self.bar: Any = None
        self.board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError("TensorBoard needs the extra 'logging': pip install 'eigenlens[logging]'") from error
            self.board = SummaryWriter(str(run))

    @property
    def kimg(self) -> float:
        """Thousands of images so far."""
        return self.training.kimg

    def tell(self, line: str) -> None:
        """Say a line to the user, and keep it in `log.txt`."""
        with open(self.run / "log.txt", "a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self.bar is not None:
            self.bar.clear()
        self._tell(line)

    def begin(
        self, data: Dataset, path: Path, *, machine: dict[str, Any], start: dict[str, str], is_resumed: bool
    ) -> None:
        """Write `config.yaml`, and cut from `metrics.jsonl` what came after the state that is resumed."""
        import yaml

        about = {
            "config": json.loads(json.dumps(dataclasses.asdict(self.config))),
            "data": {"path": str(path), "name": data.name, "n": len(data), "sha256": data.sha256},
            "machine": machine | {"processes": runtime.world_size()},
            "version": __version__,
        } | ({"start": start} if start else {})
        write_text(self.run / "config.yaml", yaml.safe_dump(about, sort_keys=False, allow_unicode=True), force=True)
        for leftover in (self.run / "last").glob(f".{Path(STATE).stem}-*"):
            leftover.unlink()  # of a process that was killed while writing
        metrics = self.run / "metrics.jsonl"
        if metrics.exists():
            kept = [line for line in metrics.read_text("utf-8").splitlines() if _kimg_of(line) <= self.kimg]
            write_text(metrics, "".join(line + "\n" for line in kept), force=True)
        sizes = [
            sum(p.numel() for p in network.parameters())
            for network in (self.training.generator, self.training.discriminator)
        ]
        what = f"going on at {self.kimg:.1f} kimg" if is_resumed else "training"
        what += f" from {start['from']}" if start and not is_resumed else ""
        self.tell(
            f"{what} in {self.run}: {len(data):,} images of {data.name}, {self.config.model.resolution} px; "
            f"{sizes[0]:,} + {sizes[1]:,} parameters; {machine['device']}, {machine['precision']}, "
            f"batch {self.config.batch}, to {self.config.kimg:g} kimg"
        )
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=self.config.kimg, initial=self.kimg, unit="kimg", dynamic_ncols=True, leave=False)

    def tick(self, means: Sequence[float], *, seconds: float, speed: float) -> None:
        """Write the mean figures since the last tick, and say how long it will take."""
        figures = {name: mean for name, mean in zip(FIGURES, means, strict=True) if math.isfinite(mean)}
        norms = [_gradient_norm(network) for network in (self.training.discriminator, self.training.generator)]
        line = {
            "kimg": round(self.kimg, 3),
            "seconds": round(seconds, 2),
            **figures,
            "discriminator_gradient": norms[0],
            "generator_gradient": norms[1],
            **self.training.figures(),
        }
        self.write(line)
        left = (self.config.kimg - self.kimg) / max(speed, 1e-9)
        losses = f"D {figures['discriminator_loss']:.3f}  G {figures['generator_loss']:.3f}"
        losses += f"  R1 {figures['r1']:.4f}" if "r1" in figures else ""
        text = f"{self.kimg:8.1f} kimg  {clock(seconds)}  {speed:.3f} kimg/s  {clock(left)} left  {losses}"
        if self.bar is not None:
            self.bar.n = self.kimg
            self.bar.set_postfix_str(losses)
        self.tell(text)

    def watch(self, data: Dataset, distances: list[float]) -> list[float]:
        """Draw samples and what the family shows, measure the distance to the data; return its mean, in a list."""
        # the averaged weights change under a Generator, which keeps what it computed from them: a new one each time
        generator = self.training.as_generator(data.name)
        place = f"{self.kimg:08.1f}"
        for sigma in (0.5, 1.0):
            tiles = generator.render(generator.sample(48, seed=0, truncation=sigma))
            images.save(images.grid(tiles, columns=8), self.run / "samples" / f"{place}-sigma{sigma}.png", force=True)
        figures, told = self.training.show(generator, self.run, place)
        line = {"kimg": round(self.kimg, 3), **figures}
        for each in told:
            self.tell(each)
        found: list[float] = []
        if self.config.distance_images:
            levels = data_distance(generator, data, self.config.distance_images)
            found = [sum(levels.values()) / len(levels)]
            line["sliced_wasserstein"] = {str(size): value for size, value in levels.items()} | {"mean": found[0]}
            shown = "  ".join(f"{size} px {value:.1f}" for size, value in levels.items())
            self.tell(f"{self.kimg:8.1f} kimg  sliced Wasserstein x 1e3: {shown}  mean {found[0]:.1f}")
            if has_stopped_improving(distances + found, patience=self.config.patience):
                self.tell(f"{self.kimg:8.1f} kimg  the distance has been flat for {self.config.patience} measurements")
        self.write(line)
        return found

    def write(self, line: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`, and its numbers to TensorBoard."""
        with open(self.run / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in _scalars(line):
                self.board.add_scalar(name, value, round(1000 * self.kimg))

    def end(self) -> None:
        """Say where the result is, and how to go on."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        is_done = self.training.step >= self.config.n_steps
        done = "done" if is_done else f"stopped; to go on, give the same command with --run {self.run} --resume auto"
        self.tell(f"{self.kimg:8.1f} kimg  {done}; the generator is in {self.run / 'last'}")
        if self.board is not None:
            self.board.close()


def _kimg_of(line: str) -> float:
    try:
        return float(json.loads(line)["kimg"])
    except (ValueError, KeyError, TypeError):  # cut off when the process was killed
        return math.inf


def _scalars(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Walk a nested line of figures as (path, number)."""
    for key, value in line.items():
        for name, leaf in _scalars(dict(enumerate(value, start=1))) if isinstance(value, list) else [("", value)]:  # type: ignore[arg-type]
            if isinstance(leaf, dict):
                yield from _scalars(leaf, f"{prefix}{key}/")
            else:
                yield f"{prefix}{key}{'/' + name if name else ''}", float(leaf)


def _gradient_norm(network: nn.Module) -> float:
    return float(torch.stack(torch._foreach_norm([p.grad for p in network.parameters() if p.grad is not None])).norm())


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds, such as `1:02:03`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
