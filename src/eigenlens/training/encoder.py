"""Training an encoder on a generator's own samples: no data are needed, and every sample has its code.

Step t draws its samples from (seed, t) alone, so a resumed run repeats the uninterrupted one.

Source:
    Zhu, Shen, Zhao, Zhou, In-Domain GAN Inversion, ECCV 2020, section 3.1, for learning codes and images of samples
    together; here the codes are compared in σ (whitened), and the images on several scales.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from .. import __version__, runtime
from ..distance import pixel_distance
from ..encoder import Encoder, EncoderConfig, EncoderNetwork, fit_resolution, read_encoder
from ..errors import UserError, check_ranges
from ..files import differing_keys, refuse_existing, written_beside
from ..generator import Generator
from .run import clock, to_stderr

STATE_FORMAT = "eigenlens.encoder-training/1"


@dataclass(frozen=True)
class EncoderTraining:
    """What fixes the training of an encoder, apart from its generator."""

    kimg: float = 200.0
    """Length in thousands of samples."""
    batch: int = 32
    """Samples a step."""
    seed: int = 0
    """Fixes the initial weights and the samples."""
    learning_rate: float = 5e-4
    """Learning rate of Adam; it rises over the first 2 % and falls to 0 over the last 40 %."""
    code_weight: float = 0.05
    """Weight of the mean squared error of the whitened code, beside the distance of the images, which has weight 1."""
    noise: float = 0.05
    """Standard deviation of the noise put on what the encoder sees: photos are not as smooth as samples."""
    resolution: int = 64
    """Pixels that the encoder looks at; at most those of the generator."""
    width: int = 64
    """Channels of the encoder's first feature map."""
    tick_kimg: float = 4.0
    """How often in kimg a line is told."""
    save_seconds: float = 60.0
    """How often in seconds the state is saved."""

    def __post_init__(self) -> None:
        lowest = {
            "kimg": 1e-3, "batch": 1, "seed": 0, "learning_rate": 0, "code_weight": 0, "noise": 0, "resolution": 8,
            "width": 1, "tick_kimg": 1e-3, "save_seconds": 0,
        }  # fmt: skip
        check_ranges(self, {name: (low, math.inf) for name, low in lowest.items()})

    @property
    def n_steps(self) -> int:
        """How many steps the training has."""
        return math.ceil(1000 * self.kimg / self.batch - 1e-9)


FREE_ON_RESUME = ("kimg", "tick_kimg", "save_seconds")
"""Fields that a resumed run may change; a longer run also decays its learning rate later."""


class Training:
    """Everything that a step changes: the encoder and its optimiser."""

    def __init__(self, config: EncoderTraining, generator: Generator, *, precision: str = "fp32") -> None:
        self.config, self.generator = config, generator
        self.is_mixed = precision == "bf16"
        self.step = 0
        self.begun_with: dict[str, str] = {}
        space = generator.spaces.get("w") or generator.spaces[generator.prior]
        resolution = 8
        while 2 * resolution <= min(config.resolution, generator.resolution):
            resolution *= 2
        shape = EncoderConfig(space.name, space.slots, space.dim, generator.channels, resolution, config.width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = EncoderNetwork(shape)
        self.space = space
        self.network.to(device=generator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        fused = generator.device.type in ("cpu", "cuda")
        self.optimiser = torch.optim.Adam(self.network.parameters(), config.learning_rate, (0.9, 0.99), fused=fused)

    @property
    def kimg(self) -> float:
        """Thousands of samples so far."""
        return self.step * self.config.batch / 1000

    def start_from(self, path: str | Path) -> None:
        """Take over the weights of an encoder's file, whatever generator it is of.

        Raises:
            UserError: where the file is none, or of another shape.
        """
        network, generator, _ = read_encoder(path)
        theirs, ours = (dataclasses.asdict(each.config) for each in (network, self.network))
        if keys := differing_keys(theirs, ours):
            apart = ", ".join(f"{key} ({theirs[key]}, here {ours[key]})" for key in keys)
            raise UserError(f"{path} is of another shape: {apart}; give another --start, or settings that fit it")
        self.network.load_state_dict(network.state_dict())
        self.begun_with = {"from": str(path), **generator}

    def take_step(self) -> tuple[float, float]:
        """Learn from the next samples; return the distance of the images, and the error of the whitened codes."""
        config, generator = self.config, self.generator
        first = self.step * config.batch
        label = "random" if generator.label_names else None
        codes = generator.sample(config.batch, seed=config.seed, start=first, space=self.space.name, label=label).to(
            generator.device
        )
        with torch.no_grad():
            goals = generator(codes)
        seen = fit_resolution(goals, self.network.config.resolution)
        if config.noise:
            draws = runtime.generator_for(config.seed, "encoder noise", self.step).standard_normal(
                tuple(seen.shape), "float32"
            )
            seen = seen + config.noise * torch.from_numpy(draws).to(seen)
        with self._mixed():
            whitened = self.network(seen.contiguous(memory_format=torch.channels_last)).float()
        images = generator(codes.with_latent(self.space.colour(whitened)))
        distance = pixel_distance(images, goals).mean()
        error = F.mse_loss(whitened, self.space.whiten(codes.latent).expand_as(whitened))
        self.optimiser.zero_grad(set_to_none=True)
        (distance + config.code_weight * error).backward()
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * schedule(self.step / config.n_steps)
        self.optimiser.step()
        self.step += 1
        return float(distance.detach()), float(error.detach())

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self.generator.device.type, torch.bfloat16, enabled=self.is_mixed)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, plain tensors and numbers."""
        return {"step": self.step, "network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])


def schedule(done: float) -> float:
    """Return the share of the learning rate when a share `done` of the steps is over.

    Example:
        >>> [round(schedule(done), 3) for done in (0.0, 0.01, 0.3, 0.8, 1.0)]
        [0.01, 0.5, 1.0, 0.5, 0.0]
    """
    falling = min(1.0, (1.0 - done) / 0.4)
    return min(1.0, max(0.01, done / 0.02)) * 0.5 * (1.0 - math.cos(math.pi * falling))


def train_encoder(
    generator: Generator,
    config: EncoderTraining,
    *,
    out: str | Path,
    start: str | Path | None = None,
    resume: bool = True,
    precision: runtime.Precision = "auto",
    force: bool = False,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Train an encoder on samples of `generator`, and write it to `out`.

    It starts at once: nothing is rendered beforehand. Ctrl-C saves the encoder as it is, and the same call goes on.

    Args:
        generator: any; its samples are the data.
        config: the settings.
        out: the encoder's file. The state for going on lies beside it, with the suffix `.state.pt`.
        start: an encoder of another generator of the same shape, such as this one before it was trained further, whose
            weights a new training begins with; one that goes on has its own.
        resume: go on where a state lies beside `out`.
        precision: of the encoder's forward and backward pass; the generator runs as it is.
        force: replace an encoder that exists, and begin anew.
        log: is given each line that is told; by default they go to stderr.

    Returns:
        `out`.

    Raises:
        UserError: where `out` exists without a state to go on from, the state has other settings, `start` is of
            another shape, or the training diverges.
    """
    tell, out = log or to_stderr, Path(out)
    state_file = out.with_suffix(".state.pt")
    goes_on = resume and not force and state_file.is_file()
    if not goes_on:
        refuse_existing(out, force=force)
    if generator.device.type == "cpu":
        runtime.keep_freed_memory()
    training = Training(config, generator, precision=runtime.resolve_precision(precision, generator.device))
    figures = [math.nan, math.nan]
    if not goes_on and start is not None:
        training.start_from(start)
    elif goes_on:
        state = _read_state(state_file, config, generator)
        training.load_state_dict(state)
        figures = state.get("figures", figures)  # of the last line; states of version 0.1.0 do not tell
        begun_with = state.get("start", {})
        if start is not None and begun_with.get("from") != str(start):
            was = begun_with.get("from", "drawn weights")
            raise UserError(f"{state_file} began with {was}; give the same --start, or another --out")
        training.begun_with = begun_with
    n = sum(p.numel() for p in training.network.parameters())
    what = f"going on at {training.kimg:.1f} kimg" if goes_on else "training"
    tell(f"{what}: an encoder of {n:,} parameters for {generator.name}, space {training.space.name}, to {out}")
    begun = saved = time.monotonic()
    first = training.kimg
    recent: list[tuple[float, float]] = []
    with runtime.stop_requested() as stop:
        while training.step < config.n_steps and not stop.is_set():
            recent.append(training.take_step())
            if not math.isfinite(sum(recent[-1])):
                raise UserError(
                    f"the loss became NaN in step {training.step}; the last good state is {state_file}; "
                    "start again with a smaller --learning-rate, or --precision fp32"
                )
            before = (training.step - 1) * config.batch / 1000
            if training.step == config.n_steps or training.kimg // config.tick_kimg > before // config.tick_kimg:
                figures = [sum(column) / len(column) for column in zip(*recent, strict=True)]
                recent.clear()
                seconds = time.monotonic() - begun
                left = max(0.0, config.kimg - training.kimg) * seconds / max(training.kimg - first, 1e-9)
                tell(
                    f"{training.kimg:8.1f} kimg  {clock(seconds)}  {clock(left)} left  "
                    f"distance {figures[0]:.4f}  code {figures[1]:.3f}"
                )
            if time.monotonic() - saved > config.save_seconds:
                _save(training, out, state_file, figures)
                saved = time.monotonic()
    _save(training, out, state_file, figures)
    done = "done" if training.step >= config.n_steps else "stopped; the same command goes on"
    tell(f"{training.kimg:8.1f} kimg  {done}; the encoder is {out}")
    return out


def _save(training: Training, out: Path, state_file: Path, figures: list[float]) -> None:
    about = {
        "kimg": training.kimg,
        "distance": figures[0] if math.isfinite(figures[0]) else None,
        "code_error": figures[1] if math.isfinite(figures[1]) else None,
        "config": dataclasses.asdict(training.config),
        "version": __version__,
    } | ({"start": training.begun_with} if training.begun_with else {})
    state = training.state_dict() | {
        "format": STATE_FORMAT,
        "config": json.dumps(dataclasses.asdict(training.config)),
        "generator": training.generator.weight_hash,
        "figures": figures,
        "start": training.begun_with,
    }
    with written_beside(state_file, force=True) as beside:
        torch.save(state, beside)
    network = EncoderNetwork(training.network.config)
    network.load_state_dict(training.network.state_dict())
    Encoder(network, training.generator, about).save(out, force=True)


def _read_state(file: Path, config: EncoderTraining, generator: Generator) -> dict[str, Any]:
    """Read what `_save` wrote, without unpickling objects.

    Raises:
        UserError: where it is no such file, or belongs to other settings or another generator.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        is_ours = state["format"] == STATE_FORMAT
        then, now = json.loads(state["config"]), dataclasses.asdict(config)
    except Exception as error:  # the reader of foreign bytes raises nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} cannot be read: {reason}; remove it, or give another --out") from error
    if not is_ours or state["generator"] != generator.weight_hash:
        raise UserError(f"{file} is no state of an encoder of {generator.name}; give another --out")
    differing = [key for key in now if then.get(key) != now[key] and key not in FREE_ON_RESUME]
    if differing:
        listed = ", ".join(f"{key} (was {then.get(key)}, now {now[key]})" for key in differing)
        raise UserError(f"{file} has other settings: {listed}; give the same ones, or another --out")
    return state
