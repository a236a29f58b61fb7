"""Directions that a reconstructor can tell apart (Voynov & Babenko, ICML 2020, arXiv 2002.03754)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .. import runtime
from ..directions import Directions
from ..errors import unknown_name
from ..generator import Generator
from ..reconstructor import (
    SHIFT_WEIGHT,
    Body,
    Reconstructor,
    ShiftLaw,
    accuracies,
    confusion,
    draw_shifts,
    duplicates,
    pooled,
    reconstruction_loss,
    unrecognised,
)
from .learning import (
    Frame,
    LearnedFrame,
    Learner,
    Scene,
    about_fit,
    channels_last,
    check_share,
    learn,
    seeded,
    straight_directions,
    twins,
    warn_of,
)

TRIAL_SHARE = 10
"""A tenth of the steps tells which frame `auto` goes on with."""
TESTS_A_DIRECTION = 40
"""Held-out pairs a direction, of the accuracies that the directions carry."""
FIGURES = ("accuracy", "shift_error")


@dataclass(frozen=True)
class Voynov:
    """Learn directions together with a network that sees both images and tells which one moved, and how far.

    The generator is frozen and only the moved image carries a graph. A shift keeps the code's labels and noise, and
    strengths are σ, so that w and z are treated alike. Each direction carries what the reconstructor made of it on
    codes that it never saw: `importance` is the share of right answers, by which they are ordered, and `shift_error`
    in `fields` the mean error in how far. Those at chance are warned of, and those that are taken for each other.

    Source:
        Voynov & Babenko 2020, section 3; the defaults are those of the authors' code.
    """

    n_directions: int = 64
    """How many."""
    frame: Literal["orthonormal", "unit", "free", "auto"] = "orthonormal"
    """`orthonormal`: a K-frame of the whole space. `unit`: norm 1. `free`: any norm. `auto`: a tenth of the steps with
    each of the first two, and the better one to the end."""
    n_steps: int = 100_000
    """Steps; the published number is for a GPU."""
    batch: int = 32
    """Pairs a step, over all processes."""
    learning_rate: float = 1e-4
    """Of Adam, for directions and reconstructor."""
    shift: float = 6.0
    """Largest shift in σ."""
    least_shift: float = 0.5
    """Least size of a shift in σ."""
    shift_weight: float = SHIFT_WEIGHT
    """Weight of the error in how far, beside the cross-entropy of which."""
    at: str = "image"
    """What the reconstructor sees: the image, or the features of a layer."""
    see: int | None = None
    """Resolution in pixels to which images are averaged before it sees them; as they are where None."""
    body: Body = "auto"
    """Of the reconstructor: `lenet`, `resnet` (ResNet-18), or by the resolution, the LeNet up to 32 px."""
    width: float = 1.0
    """Multiplies the published channels of the body."""
    layers: str = "all"
    """Layer range in which the directions act."""
    space: str | None = None
    """Space of the directions; by default the generator's own default."""
    label: int | str | None = None
    """Class to draw codes of; by default all classes, mixed."""
    truncation: float = 1.0
    """Of the codes."""
    patience: int = 40
    """Ticks of 50 steps without an improvement of 1 % after which it ends; 0: never."""
    precision: runtime.Precision = "auto"
    """Of the networks: fp32, bf16, or auto, the faster one."""
    name: ClassVar[str] = "voynov"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {"n_directions": 24, "n_steps": 3000, "learning_rate": 1e-3, "see": 32, "width": 2.0},
    }
    """Settings for two cores: fewer directions and steps, larger ones, and images averaged to 32 px."""

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Learn the directions; with a run folder, going on from where it stands there.

        Raises:
            UserError: on settings that do not fit, and where the folder holds another run.
            KeyboardInterrupt: after Ctrl-C, once the state is saved.
        """
        if self.frame not in ("orthonormal", "unit", "free", "auto"):
            raise unknown_name("frame", self.frame, ("orthonormal", "unit", "free", "auto"))
        check_share(self.batch)
        with runtime.process_group(generator.device) as device, channels_last(generator.to(device).network):
            frame, place = self.frame, run
            if frame == "auto":
                frame, place = self._better(generator, seed, run)
            game = self._play(generator, frame, seed, place, self.n_steps)
            counts, errors = game.test()
        rows = game.rows().detach()
        accuracy = accuracies(counts)
        found = straight_directions(
            game.scene,
            rows,
            self,
            seed,
            importance=accuracy,
            fields={"shift_error": errors, "length": rows.norm(dim=1)},
        )
        order = accuracy.argsort(descending=True, stable=True).tolist()
        warn_of_confusion(found, counts[order][:, order], run)
        return found

    def _better(self, generator: Generator, seed: int, run: Path | None) -> tuple[Frame, Path | None]:
        """Try both frames for a while; return the one whose directions are told apart better, and its folder."""
        frames: tuple[Frame, ...] = ("orthonormal", "unit")
        places = {each: None if run is None else run / each for each in frames}
        scores = {}
        for each in frames:
            counts, _ = self._play(generator, each, seed, places[each], self.n_steps // TRIAL_SHARE).test()
            scores[each] = float(counts.diagonal().sum() / counts.sum())
        best = max(frames, key=lambda each: scores[each])
        return best, places[best]

    def _play(
        self, generator: Generator, frame: Frame, seed: int, run: Path | None, n_steps: int
    ) -> ReconstructionGame:
        scene = Scene(
            generator, space=self.space, layers=self.layers, at=self.at, label=self.label, truncation=self.truncation,
            precision=self.precision, seed=seed, stream="voynov/codes",
        )  # fmt: skip
        game = ReconstructionGame(self, scene, frame, seed)
        about = about_fit(self, generator, seed) | {"precision": scene.precision}
        about["arguments"] = {**about["arguments"], "frame": frame, "precision": scene.precision}
        learn(game.learner, n_steps=n_steps, patience=self.patience, about=about, run=run, device=generator.device)
        return game


def warn_of_confusion(found: Directions, counts: Tensor, run: Path | None) -> None:
    """Warn of directions at chance and of duplicates, given their `confusion` in their order."""
    same = sorted({*twins(found.vectors), *duplicates(counts)})
    warn_of(found.names, dead=unrecognised(counts), same=same, run=run)


class ReconstructionGame:
    """A frame of directions and the reconstructor that is to tell them apart.

    Args:
        method: the settings.
        scene: codes and images.
        frame: kind of frame.
        seed: of weights and shifts.
    """

    def __init__(self, method: Voynov, scene: Scene, frame: Frame, seed: int) -> None:
        self.method, self.scene, self.seed = method, scene, seed
        self.law = ShiftLaw(method.least_shift, method.shift)
        self.k = method.n_directions
        device = scene.generator.device
        channels, resolution = scene.shape
        self.see = method.see if method.at == "image" else None
        self.rows = LearnedFrame(self.k, len(scene.free), frame, seed).to(device)
        self.reconstructor = seeded(
            seed,
            lambda: Reconstructor(
                self.k,
                channels=channels,
                resolution=min(resolution, self.see or resolution),
                body=method.body,
                width=method.width,
            ),
        ).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        modules = {"frame": self.rows, "reconstructor": self.reconstructor}
        self.learner = Learner(modules, self.loss, FIGURES, learning_rate=method.learning_rate)

    def answers(self, codes: Any, which: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the reconstructor says of codes [batch] moved along `which` by `amount` σ."""
        steps = self.scene.steps(self.rows())  # [k, slots, dim]
        moved = codes.latent + amount[:, None, None] * steps[which]
        before, after = self.scene.see(codes, moved)
        with self.scene.mixed():
            logits, guessed = self.reconstructor(pooled(before, self.see), pooled(after, self.see))
        return logits.float(), guessed.float()

    def loss(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the loss of one step, and accuracy and mean shift error of its batch."""
        rng = runtime.generator_for(self.seed, "voynov/shifts", step)
        mine, device = runtime.share(self.method.batch), self.scene.generator.device
        which, amount = (each[mine].to(device) for each in draw_shifts(self.method.batch, self.k, self.law, rng))
        logits, guessed = self.answers(self.scene.batch(self.method.batch, step), which, amount)
        loss = reconstruction_loss(logits, guessed, which, amount, shift_weight=self.method.shift_weight)
        is_right = (logits.argmax(1) == which).float().mean()
        return loss, torch.stack([is_right, (guessed - amount).abs().mean()])

    @torch.no_grad()
    def test(self) -> tuple[Tensor, Tensor]:
        """Return the `confusion` on codes that no step saw, [k, k], and the mean shift error of each direction, [k]."""
        scene = self.scene
        n = TESTS_A_DIRECTION * self.k
        rng = runtime.generator_for(self.seed, "voynov/test")
        _, amount = draw_shifts(n, self.k, self.law, rng)
        which = torch.arange(n) % self.k
        counts, errors = torch.zeros(self.k, self.k), torch.zeros(self.k)
        self.reconstructor.eval()
        for low, high in runtime.batches(n, max(32, self.method.batch)):
            codes = scene.held_out(high - low, low)
            some = which[low:high].to(scene.generator.device)
            logits, guessed = self.answers(codes, some, amount[low:high].to(some.device))
            counts += confusion(logits.cpu(), which[low:high])
            errors.index_add_(0, which[low:high], (guessed.cpu() - amount[low:high]).abs())
        self.reconstructor.train()
        return counts, errors / TESTS_A_DIRECTION
