"""Directions that a reconstructor can tell apart (Voynov & Babenko, ICML 2020, arXiv 2002.03754)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from .. import runtime
from ..directions import Directions
from ..errors import unknown_name
from ..generator import Generator
from ..reconstructor import accuracies
from .learning import (
    Frame,
    LearnedFrame,
    ReconstructionGame,
    ReconstructionSettings,
    StraightMover,
    channels_last,
    check_share,
    learned_directions,
    warn_of_confusion,
)

TRIAL_SHARE = 10
"""A tenth of the steps tells which frame `auto` goes on with."""


@dataclass(frozen=True)
class Voynov(ReconstructionSettings):
    """Learn directions together with a network that sees both images and tells which one moved, and how far.

    The generator is frozen and only the moved image carries a graph. A shift keeps the code's labels and noise, and
    strengths are σ, so that w and z are treated alike. Each direction carries what the reconstructor made of it on
    codes that it never saw: `importance` is the share of right answers, by which they are ordered, and `shift_error`
    in `fields` the mean error in how far. Those at chance are warned of, and those that are taken for each other.

    Source:
        Voynov & Babenko 2020, section 3; the defaults are those of the authors' code.
    """

    frame: Literal["orthonormal", "unit", "free", "auto"] = "orthonormal"
    """`orthonormal`: a K-frame of the whole space. `unit`: norm 1. `free`: any norm. `auto`: a tenth of the steps with
    each of the first two, and the better one to the end."""
    name: ClassVar[str] = "voynov"

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
            game = self.game(generator, frame, seed)
            game.play(self.n_steps, place, frame=frame)
            counts, errors = game.test()
            rows = game.mover.frame().detach()
        accuracy = accuracies(counts)
        figures = {"shift_error": errors, "length": rows.norm(dim=1)}
        found = learned_directions(game.scene, rows, self, seed, importance=accuracy, fields=figures)
        order = accuracy.argsort(descending=True, stable=True).tolist()
        warn_of_confusion(found, counts[order][:, order], run)
        return found

    def game(self, generator: Generator, frame: Frame, seed: int) -> ReconstructionGame:
        """Return a frame and a reconstructor that have learned nothing yet."""
        scene = self.scene(generator, seed)
        mover = StraightMover(scene, LearnedFrame(self.n_directions, len(scene.free), frame, seed))
        return ReconstructionGame(self, scene, mover, seed)

    def _better(self, generator: Generator, seed: int, run: Path | None) -> tuple[Frame, Path | None]:
        """Try both frames for a while; return the one whose directions are told apart better, and its folder."""
        frames: tuple[Frame, ...] = ("orthonormal", "unit")
        places = {each: None if run is None else run / each for each in frames}
        scores = {}
        for each in frames:
            game = self.game(generator, each, seed)
            game.play(self.n_steps // TRIAL_SHARE, places[each], frame=each)
            counts, _ = game.test()
            scores[each] = float(counts.diagonal().sum() / counts.sum())
        best = max(frames, key=lambda each: scores[each])
        return best, places[best]
