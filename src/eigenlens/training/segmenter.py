"""Training a segmenter on masks that a generator's background directions give: no person draws one.

Samples and their masks are made once, at the start; step t draws its batch from (seed, t) alone, so that a resumed run
repeats the uninterrupted one.
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

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import __version__, runtime
from ..directions import Directions
from ..errors import UserError, check_ranges
from ..files import refuse_existing, written_beside
from ..generator import Generator
from ..saliency import MaskRule, Segmenter, SegmenterConfig, UNet, fill_holes, sample_masks
from .run import clock, to_stderr

STATE_FORMAT = "eigenlens.segmenter-training/1"
SURE = 0.8
"""Probability from which the network's own labels are taken as known."""
VIEWS = 3
"""Views of a sample that are kept: as it is, and two of those that were moved along background directions."""


@dataclass(frozen=True)
class SegmenterTraining:
    """What fixes the training of a segmenter, apart from its generator and the background directions."""

    kimg: float = 20.0
    """Length in thousands of images."""
    n_samples: int = 2000
    """Samples that are drawn; those whose object has an unlikely area are left out."""
    batch: int = 32
    """Images a step."""
    seed: int = 0
    """Fixes the samples, the initial weights and the batches."""
    learning_rate: float = 2e-3
    """Learning rate of Adam; it falls to 0 along half a cosine."""
    grounds: float = 0.5
    """Share of the images whose background is replaced by a drawn one (colours, slopes, waves, stripes), so that the
    network learns the object and not the few backgrounds that a generator makes."""
    n_relabels: int = 2
    """How often, at even distances, the network labels the samples anew, by the mean over their views and the mirror
    images of these, and learns from that: what a rule misses in one sample it finds in others. 0 leaves it out."""
    tint: float = 0.25
    """Largest change of the gain and the offset of each colour: real images vary more than samples."""
    resolution: int = 64
    """Pixels that the network looks at, a multiple of 8; at most those of the generator."""
    width: int = 16
    """Channels of the network's first level."""
    tick_kimg: float = 2.0
    """How often in kimg a line is told."""
    save_seconds: float = 60.0
    """How often in seconds the state is saved."""

    def __post_init__(self) -> None:
        limits = {
            "kimg": (1e-3, math.inf), "n_samples": (1, 1e7), "batch": (1, 1e5), "seed": (0, math.inf),
            "learning_rate": (0, 1), "grounds": (0, 1), "n_relabels": (0, 100), "tint": (0, 1),
            "tick_kimg": (1e-3, math.inf), "save_seconds": (0, math.inf),
        }  # fmt: skip
        check_ranges(self, limits)
        SegmenterConfig(self.resolution, self.width)

    @property
    def n_steps(self) -> int:
        """How many steps the training has."""
        return math.ceil(1000 * self.kimg / self.batch - 1e-9)


FREE_ON_RESUME = ("tick_kimg", "save_seconds")
"""Fields that a resumed run may change."""


@dataclass(frozen=True, eq=False)
class Pool:
    """What the network learns from."""

    images: Tensor
    """uint8 [n, VIEWS, 3, resolution, resolution]."""
    masks: Tensor
    """bool [n, resolution, resolution]."""
    known: Tensor
    """bool [n, resolution, resolution]: where masks are beyond doubt."""
    n_drawn: int
    """Samples that were drawn for it."""


def make_pool(
    generator: Generator, directions: Directions, rule: MaskRule, config: SegmenterTraining, resolution: int
) -> Pool:
    """Draw the samples and make their masks.

    Raises:
        UserError: where no sample has a mask of a likely area.
    """
    pieces = []
    chance = runtime.generator_for(config.seed, "segmenter/views")
    size = max(1, generator.batch_size)
    steps = list(runtime.batches(config.n_samples, size))
    for low, high in runtime.progress(steps, what="samples and masks", unit="batch"):
        made = sample_masks(generator, directions, rule, high - low, seed=config.seed, start=low)
        others = np.argsort(chance.random((high - low, made.images.shape[1] - 1)), axis=1)[:, : VIEWS - 1] + 1
        views = torch.from_numpy(np.concatenate([np.zeros((high - low, 1), int), others], axis=1))
        images = made.images[torch.arange(high - low)[:, None], views]  # [b, VIEWS, c, h, w]
        images = images.expand(-1, -1, 3, -1, -1).flatten(0, 1)
        labels = torch.stack([made.masks, made.known], dim=1).float()  # [b, 2, h, w]
        if images.shape[-1] != resolution:
            images, labels = (F.interpolate(x, (resolution,) * 2, mode="area") for x in (images, labels))
        levels = ((images + 1) * 127.5).round().byte().unflatten(0, (-1, views.shape[1]))
        pieces.append((levels[made.kept], *(labels[made.kept] >= 0.5).unbind(1)))
    images, masks, known = (torch.cat(each) for each in zip(*pieces, strict=True))
    if not len(images):
        raise UserError(
            f"not one of {config.n_samples} samples has a mask that takes {rule.least:.0%} to {rule.most:.0%} of the "
            "image; look at what the directions change, and try another --threshold or --strength"
        )
    return Pool(images, masks, known, config.n_samples)


class Training:
    """Everything that a step changes: the network and its optimiser."""

    def __init__(self, config: SegmenterTraining, pool: Pool, *, precision: str = "fp32") -> None:
        self.config, self.pool, self.is_mixed = config, pool, precision == "bf16"
        self.step = 0
        self.shape = SegmenterConfig(pool.images.shape[-1], config.width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = UNet(self.shape)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.Adam(self.network.parameters(), config.learning_rate, fused=True)

    @property
    def kimg(self) -> float:
        """Thousands of images so far."""
        return self.step * self.config.batch / 1000

    def draw_batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the images [batch, 3, h, w] of this step, their masks, and where these are known, [batch, h, w]."""
        config, pool = self.config, self.pool
        chance = runtime.generator_for(config.seed, "segmenter/batch", self.step)
        rows = torch.from_numpy(chance.integers(len(pool.images), size=config.batch))
        views = torch.from_numpy(chance.integers(pool.images.shape[1], size=config.batch))
        images = pool.images[rows, views].float() / 127.5 - 1
        masks, known = pool.masks[rows].float(), pool.known[rows].float()
        replaced = torch.from_numpy(chance.random(config.batch) < config.grounds)
        grounds = torch.from_numpy(np.stack([draw_ground(images.shape[-1], chance) for _ in range(config.batch)]))
        soft = F.avg_pool2d(F.pad(masks[:, None], (1,) * 4, mode="replicate"), 3, 1)  # a hard seam would tell on it
        images = torch.where(replaced[:, None, None, None], soft * images + (1 - soft) * grounds, images)
        known = torch.where(replaced[:, None, None], 1.0, known)  # what was in doubt is background now
        turned = torch.from_numpy(chance.random(config.batch) < 0.5)
        images = torch.where(turned[:, None, None, None], images.flip(-1), images)
        masks, known = (torch.where(turned[:, None, None], each.flip(-1), each) for each in (masks, known))
        gain, offset = (torch.from_numpy(chance.uniform(-1, 1, (2, config.batch, 3, 1, 1))) * config.tint).float()
        return (images * (1 + gain) + offset).clamp(-1, 1), masks, known

    def take_step(self) -> float:
        """Learn from the next batch; return the loss."""
        if self.step in self.relabel_steps:
            self.relabel()
        images, masks, known = self.draw_batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_mixed):
            logits = self.network(images.contiguous(memory_format=torch.channels_last)).float()
        loss = F.binary_cross_entropy_with_logits(logits, masks, known, reduction="sum") / known.sum().clamp(min=1)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimiser.param_groups:
            done = self.step / self.config.n_steps
            group["lr"] = self.config.learning_rate * (0.5 + 0.5 * math.cos(math.pi * done))
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    @property
    def relabel_steps(self) -> list[int]:
        """The steps before which the samples are labelled anew."""
        parts = self.config.n_relabels + 1
        return [max(1, round(self.config.n_steps * part / parts)) for part in range(1, parts)]

    def relabel(self) -> None:
        """Label the samples by what the network makes of their views, in the mean; what is near neither is unknown."""
        self.network.eval()
        images, masks, known = self.pool.images, [], []
        with torch.inference_mode():
            for low, high in runtime.batches(len(images), self.config.batch):
                some = images[low:high].flatten(0, 1).float() / 127.5 - 1
                some = torch.cat([some, some.flip(-1)]).contiguous(memory_format=torch.channels_last)
                with torch.autocast("cpu", torch.bfloat16, enabled=self.is_mixed):
                    straight, mirrored = self.network(some).float().sigmoid().chunk(2)
                likely = ((straight + mirrored.flip(-1)) / 2).unflatten(0, (high - low, -1)).mean(1)
                masks.append(fill_holes(likely >= 0.5))
                known.append((likely - 0.5).abs() >= SURE - 0.5)
        self.network.train()
        self.pool = dataclasses.replace(self.pool, masks=torch.cat(masks), known=torch.cat(known))

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, plain tensors and numbers."""
        state = {"step": self.step, "network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}
        is_relabelled = any(step < self.step for step in self.relabel_steps)
        return state | ({"labels": torch.stack([self.pool.masks, self.pool.known])} if is_relabelled else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        if "labels" in state:
            self.pool = dataclasses.replace(self.pool, masks=state["labels"][0], known=state["labels"][1])


def draw_ground(resolution: int, chance: np.random.Generator) -> np.ndarray:
    """Draw a background, float32 [3, resolution, resolution] in [-1, 1]: two colours mixed along a slope or a wave."""
    low, high = chance.uniform(-1, 1, (2, 3)).astype(np.float32)
    angle, turns, phase = chance.uniform(0, math.pi), chance.uniform(0.2, 8), chance.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:resolution, 0:resolution].astype(np.float32) / resolution
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kind = chance.integers(4)
    wave = np.sin(2 * math.pi * turns * along + phase)
    if kind == 0:
        wave = 2 * (along - along.min()) / (along.max() - along.min()) - 1  # a slope
    elif kind == 1:
        wave = np.sign(wave)  # stripes
    elif kind == 2:
        wave = np.sign(wave * np.sin(2 * math.pi * turns * across))  # a chequerboard
    share = (0.5 + 0.5 * wave * chance.uniform(0, 1)).astype(np.float32)
    return low[:, None, None] * (1 - share) + high[:, None, None] * share


def train_segmenter(
    generator: Generator,
    directions: Directions,
    config: SegmenterTraining,
    *,
    out: str | Path,
    rule: MaskRule = MaskRule(),  # noqa: B008  frozen
    resume: bool = True,
    precision: runtime.Precision = "auto",
    force: bool = False,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Train a segmenter on samples of `generator` whose masks background directions give, and write it to `out`.

    Ctrl-C saves the network as it is, and the same call goes on.

    Args:
        generator: any; its samples are the data.
        directions: those that change the background, and no others; see `saliency.choose_background`.
        config: the settings.
        out: the segmenter's file. The state for going on lies beside it, with the suffix `.state.pt`.
        rule: how masks follow from the directions.
        resume: go on where a state lies beside `out`.
        precision: of the network's forward and backward passes.
        force: replace a segmenter that exists, and begin anew.
        log: is given each line that is told; by default they go to stderr.

    Returns:
        `out`.

    Raises:
        UserError: where `out` exists without a state to go on from, the state has other settings, no sample has a
            mask, or the training diverges.
    """
    tell, out = log or to_stderr, Path(out)
    state_file = out.with_suffix(".state.pt")
    fixed = _fixed(generator, directions, config, rule)
    goes_on = resume and not force and state_file.is_file()
    if not goes_on:
        refuse_existing(out, force=force)
    state = _read_state(state_file, fixed) if goes_on else None
    runtime.keep_freed_memory()
    resolution = min(config.resolution, generator.resolution // 8 * 8)
    tell(f"masks from {', '.join(directions.names)} of {generator.name}, {config.n_samples} samples")
    pool = make_pool(generator, directions, rule, config, resolution)
    area = float(pool.masks.float().mean())
    tell(f"{len(pool.images)} of {pool.n_drawn} masks have a likely area; the object takes {area:.0%} of them")
    training = Training(config, pool, precision=runtime.resolve_precision(precision, torch.device("cpu")))
    if state is not None:
        training.load_state_dict(state)
        tell(f"going on at {training.kimg:.1f} kimg")
    begun = saved = time.monotonic()
    first, losses = training.kimg, []
    with runtime.stop_requested() as stop:
        while training.step < config.n_steps and not stop.is_set():
            before = training.kimg
            losses.append(training.take_step())
            if not math.isfinite(losses[-1]):
                raise UserError(
                    f"the loss became NaN in step {training.step}; what was saved before stays; "
                    "start again with a smaller --learning-rate, or --precision fp32"
                )
            if training.step == config.n_steps or training.kimg // config.tick_kimg > before // config.tick_kimg:
                seconds = time.monotonic() - begun
                left = (config.kimg - training.kimg) * seconds / max(training.kimg - first, 1e-9)
                mean = sum(losses) / len(losses)
                losses.clear()
                tell(f"{training.kimg:8.1f} kimg  {clock(seconds)}  {clock(left)} left  loss {mean:.4f}")
            if time.monotonic() - saved > config.save_seconds:
                _save(training, out, state_file, fixed)
                saved = time.monotonic()
    _save(training, out, state_file, fixed)
    done = "done" if training.step >= config.n_steps else "stopped; the same command goes on"
    tell(f"{training.kimg:8.1f} kimg  {done}; the segmenter is {out}")
    return out


def _fixed(generator: Generator, directions: Directions, config: SegmenterTraining, rule: MaskRule) -> dict[str, Any]:
    """Return what a resumed run must share with the one that it goes on from, plain JSON."""
    vectors = directions.vectors.detach().cpu().double()
    return {
        "generator": generator.identity(),
        "directions": {"names": list(directions.names), "space": directions.space, "sum": float(vectors.abs().sum())},
        "rule": dataclasses.asdict(rule),
        "training": dataclasses.asdict(config),
    }


def _save(training: Training, out: Path, state_file: Path, fixed: dict[str, Any]) -> None:
    state = training.state_dict() | {"format": STATE_FORMAT, "fixed": json.dumps(fixed)}
    with written_beside(state_file, force=True) as beside:
        torch.save(state, beside)
    network = UNet(training.shape)
    network.load_state_dict(training.network.state_dict())
    about = fixed | {"kimg": training.kimg, "n_masks": len(training.pool.images), "version": __version__}
    Segmenter(network, training.shape, about).save(out, force=True)


def _read_state(file: Path, fixed: dict[str, Any]) -> dict[str, Any]:
    """Read what `_save` wrote, without unpickling objects.

    Raises:
        UserError: where it is no such file, or belongs to other settings, another generator or other directions.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        is_ours = state["format"] == STATE_FORMAT
        then = json.loads(state["fixed"])
        told = {key: then["training"].get(key) for key in FREE_ON_RESUME}
    except Exception as error:  # the reader of foreign bytes raises nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} cannot be read: {reason}; remove it, or give another --out") from error
    now = fixed | {"training": fixed["training"] | told}
    differing = [key for key in now if then.get(key) != now[key]]
    if not is_ours or differing:
        raise UserError(
            f"{file} belongs to another training ({', '.join(differing) or 'its format'} differ); "
            "give the same settings, another --out, or --force"
        )
    return state
