"""Directions along which a discriminator knows an edited pair from two random samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import runtime
from ..codes import Codes
from ..directions import Directions
from ..errors import UserError
from ..generator import Generator
from ..reconstructor import draw_shifts
from .learning import (
    TESTS_A_DIRECTION,
    Frame,
    LearnedFrame,
    ReconstructionGame,
    ReconstructionSettings,
    StraightMover,
    channels_last,
    learned_directions,
    of_all,
    twins,
    warn_of,
)

FLOOR = 1e-6
"""Added under the root of a mean square change, whose slope is infinite at 0."""


@dataclass(frozen=True)
class Pairs(ReconstructionSettings):
    """Learn directions whose edits a discriminator tells from pairs of two random samples.

    The discriminator sees two images and answers, with one output for each direction, whether the second is an edit of
    the first along it. Directions and discriminator have one aim: that edits are known. An edit that changes nothing
    would be known best of all, so changes smaller than `change` (at the largest shift, proportionally less at smaller
    ones, in shares of the distance of two samples) are charged. What is found are large changes that leave the image
    recognisable as the same one.

    `importance` is the share of right answers on codes that no step saw, edits and random pairs equally often.

    Source:
        Our own formulation of the idea, with the networks and shifts of `voynov`.
    """

    frame: Frame = "orthonormal"
    """`orthonormal`: a K-frame of the whole space. `unit`: norm 1. `free`: any norm."""
    change: float = 0.5
    """Least change that the largest shift is to make, as a share of the root mean square distance of two samples."""
    name: ClassVar[str] = "pairs"

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Learn the directions; with a run folder, going on from where it stands there.

        Raises:
            UserError: on settings that do not fit, and where the folder holds another run.
            KeyboardInterrupt: after Ctrl-C, once the state is saved.
        """
        self.check()
        if self.batch < 2 * runtime.world_size():
            raise UserError(f"a batch of {self.batch} has no other samples to compare; give 2 or more codes a process")
        with channels_last(generator.to(runtime.join_processes(generator.device)).network):
            scene = self.scene(generator, seed)
            mover = StraightMover(scene, LearnedFrame(self.n_directions, len(scene.free), self.frame, seed))
            game = PairGame(self, scene, mover, seed)
            game.play(self.n_steps, run)
            right = game.right_answers()
            rows = game.mover.frame().detach()
        found = learned_directions(scene, rows, self, seed, importance=right, fields={"length": rows.norm(dim=1)})
        dead = [i for i in range(len(found)) if found.importance[i] <= 0.5]
        warn_of(found.names, dead=dead, same=twins(found.vectors), run=run)
        return found


class PairGame(ReconstructionGame):
    """Directions, and the discriminator that knows their edits."""

    method: Pairs
    figures: ClassVar[tuple[str, ...]] = ("accuracy", "change")

    def _scores(self, before: Tensor, after: Tensor, which: Tensor) -> Tensor:
        """Return how surely each pair, as it is looked at, is an edit along `which`, as logits: [batch]."""
        with self.scene.mixed():
            logits, _ = self.reconstructor(before, after)
        return logits.float().gather(1, which[:, None])[:, 0]

    def _looks(self, codes: Codes, before: Tensor, after: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is seen of codes, of their edits, and of other samples."""
        return self.look(before, codes, "before"), self.look(after, codes, "after"), self.look(others, codes, "other")

    def loss(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the loss of one step, and the accuracy and the mean change of its batch."""
        rng = runtime.generator_for(self.seed, "pairs/shifts", step)
        n, device = self.method.batch, self.scene.generator.device
        which, amount = (each[runtime.share(n)].to(device) for each in draw_shifts(n, self.k, self.law, rng))
        codes = self.scene.batch(n, step)
        before, after = self.scene.see(codes, self.mover(codes.latent, which, amount))
        samples = of_all(before, n)
        others = samples.roll(1, 0)  # the next code's image is a sample that has nothing to do with this one
        distance = (samples - others).square().mean().sqrt()
        # both kinds in one batch: norms over batches of one kind would tell which it is
        first, second, third = self._looks(codes, before, after, others[runtime.share(n)])
        edits, strangers = self._scores(
            torch.cat([first, first]), torch.cat([second, third]), torch.cat([which, which])
        ).chunk(2)
        change = ((before - after).square().mean((1, 2, 3)) + FLOOR).sqrt() / distance
        wanted = self.method.change * amount.abs() / self.law.high
        loss = F.softplus(-edits).mean() + F.softplus(strangers).mean() + F.relu(1 - change / wanted).mean()
        right = torch.cat([edits > 0, strangers <= 0]).float().mean()
        return loss, torch.stack([right, change.mean()])

    @torch.no_grad()
    def right_answers(self) -> Tensor:
        """Return the share of right answers for each direction on held-out codes, [k]."""
        n = TESTS_A_DIRECTION * self.k
        _, amount = draw_shifts(n, self.k, self.law, runtime.generator_for(self.seed, "pairs/test"))
        which, right = torch.arange(n) % self.k, torch.zeros(self.k)
        with self.settled():
            for low, high in runtime.batches(n, max(32, self.method.batch)):
                codes = self.scene.held_out(high - low, low)
                some = which[low:high].to(codes.latent.device)
                moved = self.mover(codes.latent, some, amount[low:high].to(codes.latent.device))
                before, after = self.scene.see(codes, moved)
                first, second, third = self._looks(codes, before, after, before.roll(1, 0))
                is_right = (self._scores(first, second, some) > 0).float()
                is_right += (self._scores(first, third, some) <= 0).float()
                right.index_add_(0, which[low:high], is_right.cpu() / 2)
        return right / TESTS_A_DIRECTION
