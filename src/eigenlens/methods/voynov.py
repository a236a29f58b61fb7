"""Directions that a reconstructor can tell apart (Voynov & Babenko, ICML 2020, arXiv 2002.03754)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import runtime
from ..directions import Directions
from ..errors import check_ranges, unknown_name
from ..generator import Generator
from ..reconstructor import accuracies
from .learning import (
    Frame,
    LearnedFrame,
    ReconstructionGame,
    ReconstructionSettings,
    StraightMover,
    channels_last,
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
    rounds: int = 1
    """Learn the directions in so many rounds, each with its share of directions and steps, and at right angles to those
    before. Directions of one round turn to the plainest changes, and may all pass a fainter one over; a later round
    meets it alone. The published form has one."""
    name: ClassVar[str] = "voynov"

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Learn the directions; with a run folder, going on from where it stands there.

        Raises:
            UserError: on settings that do not fit, and where the folder holds another run.
            KeyboardInterrupt: after Ctrl-C, once the state is saved.
        """
        if self.frame not in ("orthonormal", "unit", "free", "auto"):
            raise unknown_name("frame", self.frame, ("orthonormal", "unit", "free", "auto"))
        self.check()
        check_ranges(self, {"rounds": (1, self.n_directions)})
        with channels_last(generator.to(runtime.join_processes(generator.device)).network):
            frame, place = self.frame, run
            if frame == "auto":
                frame, place = self._better(generator, seed, run)
            rounds: list[Round] = []
            for i, size in enumerate(shares(self.n_directions, self.rounds)):
                method = dataclasses.replace(self, n_directions=size)
                before = torch.cat([each.rows for each in rounds]) if rounds else None
                game = method.game(generator, frame, seed if i == 0 else runtime.seed_apart(seed, f"round/{i}"), before)
                game.play(self.n_steps // self.rounds, self._folder(place, i), frame=frame)
                rounds.append(Round(game.mover.frame().detach(), *game.test()))
        rows, accuracy, errors = (
            torch.cat(parts)
            for parts in zip(*[(each.rows, accuracies(each.counts), each.errors) for each in rounds], strict=True)
        )
        figures = {"shift_error": errors, "length": rows.norm(dim=1)}
        found = learned_directions(game.scene, rows, self, seed, importance=accuracy, fields=figures)
        order = accuracy.argsort(descending=True, stable=True).tolist()
        start = 0
        for each in rounds:  # directions were told from those of their own round
            mine = [i for i in order if start <= i < start + len(each.rows)]
            inner = [i - start for i in mine]
            warn_of_confusion(found[[order.index(i) for i in mine]], each.counts[inner][:, inner], run)
            start += len(each.rows)
        return found

    def game(self, generator: Generator, frame: Frame, seed: int, beside: Tensor | None = None) -> ReconstructionGame:
        """Return a frame and a reconstructor that have learned nothing yet.

        Args:
            generator: whose.
            frame: its kind.
            seed: of all that is drawn.
            beside: rows [m, free] to which the directions stay at right angles.
        """
        scene = self.scene(generator, seed)
        rows = LearnedFrame(self.n_directions, len(scene.free), frame, seed, beside)
        return ReconstructionGame(self, scene, StraightMover(scene, rows), seed)

    def _folder(self, place: Path | None, i: int) -> Path | None:
        """Return the run folder of round i."""
        return place / f"round-{i + 1}" if place is not None and self.rounds > 1 else place

    def _better(self, generator: Generator, seed: int, run: Path | None) -> tuple[Frame, Path | None]:
        """Try both frames for a while; return the one whose directions are told apart better, and its folder."""
        frames: tuple[Frame, ...] = ("orthonormal", "unit")
        places = {each: None if run is None else run / each for each in frames}
        scores = {}
        for each in frames:
            method = dataclasses.replace(self, n_directions=shares(self.n_directions, self.rounds)[0])
            game = method.game(generator, each, seed)
            game.play(self.n_steps // self.rounds // TRIAL_SHARE, self._folder(places[each], 0), frame=each)
            counts, _ = game.test()
            scores[each] = float(counts.diagonal().sum() / counts.sum())
        best = max(frames, key=lambda each: scores[each])
        return best, places[best]


@dataclass(frozen=True, eq=False)
class Round:
    """What one round learned."""

    rows: Tensor
    """Free coordinates of its directions, [k, free]."""
    counts: Tensor
    """Its `confusion`, [k, k]."""
    errors: Tensor
    """Mean shift errors, [k]."""


def shares(n: int, parts: int) -> list[int]:
    """Share n out as evenly as may be, the larger parts first.

    Example:
        >>> shares(8, 3)
        [3, 3, 2]
    """
    return [n // parts + (i < n % parts) for i in range(parts)]
