"""Whether a network that never saw the directions before can learn to tell them apart (reconstructor accuracy, RCA)."""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import runtime
from ..codes import Codes
from ..directions import Directions
from ..effect import equal_change
from ..errors import Unsupported
from ..generator import Generator
from ..method import METHODS
from ..metric import Score, make_score
from ..reconstructor import (
    Reconstructor,
    accuracies,
    balanced_signs,
    confusion,
    duplicates,
    pooled,
    reconstruction_loss,
    unrecognised,
)

FRACTION = 0.3
"""Every direction changes images by this share of the mean distance between two samples."""
SEEN = 32
"""Resolution in pixels to which images are averaged."""
WIDTH = 2.0
"""Times the published channels of the LeNet."""
TEST_MOVES = 2
"""Pairs of each held-out code."""
BATCH = 64
LEARNING_RATE = 3e-3
"""At the start; it falls to 0 along half a cosine."""
DRAWS = 2000
"""Of the bootstrap over held-out codes."""
BASELINES = ("random", "axes")


class Measured(NamedTuple):
    """What a reconstructor got right."""

    confusion: Tensor
    """[k, k]."""
    hits: Tensor
    """[tests, moves], 0 or 1."""
    strength: Tensor
    """How far each direction was moved, in σ, [k]."""
    reached: Tensor
    """Whether images then change by `FRACTION`, [k]."""


_KNOWN: weakref.WeakKeyDictionary[Generator, dict[tuple, Measured]] = weakref.WeakKeyDictionary()
"""What straight directions of a generator got: the baselines are shared by every set of the same size and space."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images before and after a move, and which direction it was."""

    before: Tensor
    """[codes, channels, size, size]."""
    after: Tensor
    """[pairs, channels, size, size]."""
    owner: Tensor
    """The code of each pair, [pairs]."""
    which: Tensor
    """The direction of each pair, [pairs]."""
    side: Tensor
    """+1 or -1, [pairs]."""


@dataclass(frozen=True)
class Recovery:
    """The share of right answers of a fresh reconstructor on codes that it never saw: which direction moved this pair?

    A new LeNet learns from pairs of the finished, frozen directions: 2000 codes, each moved eight times along
    directions drawn at random, four times over. It is tested on 500 other codes, two moves each. Every move goes as
    far as changes images by 0.3 of the mean distance between two samples (`effect.equal_change`, up to 30 σ), either
    way equally often; images are averaged to 32 px. Adam, batches of 64, learning rate 3e-3 falling along a cosine.

    This is `voynov`'s own objective: a diagnostic of whether directions are distinct, not a ranking of how good they
    are. Directions that mean something may look alike, and recognisable ones may mean nothing. It falls with the number
    of directions, so compare sets of one size; `details` has chance, the baselines `random` and `axes` of the same
    number in the same space under the same budget, the 95 % interval over held-out codes, the accuracy of each
    direction, those at chance, and pairs taken for each other.

    Source:
        Voynov & Babenko 2020, section 4.2 (RCA), who test the reconstructor that the directions were learned with.
    """

    n_codes: int = 2000
    """Codes that are learned from."""
    n_moves: int = 8
    """Pairs of each."""
    n_tests: int = 500
    """Held-out codes."""
    n_epochs: int = 4
    """How often every pair is learned from."""
    name: ClassVar[str] = "recovery_2k_v1"
    uses_strength: ClassVar[bool] = False  # it finds the strengths itself

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Train and test; `seed` fixes the codes, the moves and the network.

        Raises:
            Unsupported: for fewer than two directions.
        """
        if len(directions) < 2:
            raise Unsupported("one direction cannot be told from others; recovery needs two or more")
        counts, hits, strength, reached = self._measured(generator, directions, seed)
        low, high = bootstrap_interval(hits.numpy(), seed=seed)
        return make_score(
            self,
            generator,
            directions,
            float(hits.mean()),
            n=hits.numel(),
            seed=seed,
            interval=(low, high),
            chance=1 / len(directions),
            **{name: self._baseline(generator, directions, name, seed) for name in BASELINES},
            accuracy=[round(each, 4) for each in accuracies(counts).tolist()],
            at_chance=[directions.names[i] for i in unrecognised(counts)],
            alike=[(directions.names[i], directions.names[j]) for i, j in duplicates(counts)],
            strength=[round(each, 4) for each in strength.tolist()],
            reached=reached.tolist(),
            fraction=FRACTION,
        )

    def _baseline(self, generator: Generator, directions: Directions, name: str, seed: int) -> float:
        """Return what directions that nobody looked for get; NaN where the space has not room for as many."""
        space, k = directions.space, len(directions)
        if k > generator.space(space).dim:
            return math.nan
        baseline = METHODS[name](n_directions=k, space=space).fit(generator, seed=seed)
        return float(self._measured(generator, baseline, seed).hits.mean())

    def _measured(self, generator: Generator, directions: Directions, seed: int) -> Measured:
        """Return what `_measure` finds; of straight directions that came before, what it found then."""
        plain = directions.in_sigma(generator.space(directions.space))
        if not plain.is_straight:
            return self._measure(generator, plain, seed)
        known, told = _KNOWN.setdefault(generator, {}), hashlib.sha256(plain.vectors.contiguous().numpy().tobytes())
        key = (self, plain.space, plain.layers, told.digest(), seed)
        if key not in known:
            known[key] = self._measure(generator, plain, seed)
        return known[key]

    def _measure(self, generator: Generator, directions: Directions, seed: int) -> Measured:
        """Train and test on directions, of whatever unit."""
        # what was measured before must not move the number: the search starts from scratch, without limits
        blank = {name: torch.full_like(getattr(directions, name), math.nan) for name in ("effect", "limits")}
        plain = directions.in_sigma(generator.space(directions.space)).with_figures(**blank)
        found = equal_change(generator, plain, FRACTION)
        render = partial(make_pairs, generator, plain, found.strength, seed=seed)
        seen = render(self.n_codes, self.n_moves, stream="recovery/learn")
        network = train(seen, len(plain), n_epochs=self.n_epochs, seed=seed, device=generator.device)
        tests = render(self.n_tests, TEST_MOVES, stream="recovery/test")
        counts, hits = test(network, tests, len(plain))
        return Measured(counts, hits.unflatten(0, (self.n_tests, TEST_MOVES)), found.strength, found.reached)


@dataclass(frozen=True)
class RecoveryQuick(Recovery):
    """The same with 200 codes, moved 16 times each and learned from eight times over; 200 are tested. For a quick look.

    So small a budget tells strong differences only: all values are lower than under `recovery_2k_v1`.
    """

    n_codes: int = 200
    """Codes that are learned from."""
    n_moves: int = 16
    """Pairs of each."""
    n_tests: int = 200
    """Held-out codes."""
    n_epochs: int = 8
    """How often every pair is learned from."""
    name: ClassVar[str] = "recovery_200_v1"


def make_pairs(
    generator: Generator, directions: Directions, strength: Tensor, n: int, moves: int, *, seed: int, stream: str
) -> Pairs:
    """Render `n` codes and `moves` moves of each, along directions as equally often as can be, in random order.

    Args:
        generator, directions: whose.
        strength: how far each direction goes, [k], in its unit; either way.
        n, moves: how many codes, and pairs of each.
        seed, stream: fix codes and moves.
    """
    label = "random" if generator.label_names else None
    codes = generator.sample(n, seed=runtime.seed_apart(seed, stream), space=directions.space, label=label)
    codes = directions.host(generator, codes)
    rng = runtime.generator_for(seed, stream)
    which = torch.from_numpy(rng.permutation(np.resize(np.arange(len(directions)), n * moves)))
    side = torch.from_numpy(balanced_signs(n * moves, rng)).float()
    owner = torch.arange(n).repeat_interleave(moves)
    after = torch.empty(n * moves, 0)
    for k in runtime.progress(range(len(directions)), what="pairs"):
        for sign in (-1.0, 1.0):
            rows = ((which == k) & (side == sign)).nonzero()[:, 0]
            if not len(rows):
                continue
            moved = directions.move(codes[owner[rows].tolist()], k, by=sign * float(strength[k]))
            images = _seen(generator, moved)
            after = images.new_empty(n * moves, *images.shape[1:]) if after.shape[1] == 0 else after
            after[rows] = images
    return Pairs(_seen(generator, codes), after, owner, which, side)


def _seen(generator: Generator, codes: Codes) -> Tensor:
    """Render codes as the reconstructor sees them, without keeping full-size images."""
    pieces = []
    with torch.inference_mode():
        for low, high in runtime.batches(len(codes), generator.batch_size):
            pieces.append(pooled(generator(codes[low:high]).clamp(-1, 1), SEEN).cpu())
    return torch.cat(pieces).clone()  # tensors of inference mode cannot be learned from


def _batches(n: int, rng: np.random.Generator) -> Iterator[Tensor]:
    order = torch.from_numpy(rng.permutation(n))
    for low, high in runtime.batches(n, BATCH):
        if high - low > 1:  # a norm needs two
            yield order[low:high]


def train(pairs: Pairs, k: int, *, n_epochs: int, seed: int, device: torch.device) -> Reconstructor:
    """Train a fresh reconstructor on pairs, `n_epochs` times over."""
    channels, size = pairs.before.shape[1], pairs.before.shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Reconstructor(k, channels=channels, resolution=size, width=WIDTH)
    network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    n_steps = n_epochs * math.ceil(len(pairs.which) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, n_steps))
    for epoch in runtime.progress(range(n_epochs), what="reconstructor"):
        for rows in _batches(len(pairs.which), runtime.generator_for(seed, "recovery/order", epoch)):
            before, after = pairs.before[pairs.owner[rows]].to(device), pairs.after[rows].to(device)
            optimiser.zero_grad(set_to_none=True)
            logits, side = network(before, after)
            loss = reconstruction_loss(logits, side, pairs.which[rows].to(device), pairs.side[rows].to(device))
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def test(network: Reconstructor, pairs: Pairs, k: int) -> tuple[Tensor, Tensor]:
    """Return the `confusion` of the answers, [k, k], and which are right, [pairs], 0 or 1."""
    device = next(network.parameters()).device
    answers = []
    for low, high in runtime.batches(len(pairs.which), 4 * BATCH):
        before, after = pairs.before[pairs.owner[low:high]].to(device), pairs.after[low:high].to(device)
        answers.append(network(before, after)[0].cpu())
    logits = torch.cat(answers)
    return confusion(logits, pairs.which), (logits.argmax(1) == pairs.which).float()


def bootstrap_interval(hits: np.ndarray, *, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean of hits [codes, moves] when codes are drawn again."""
    by_code = hits.mean(1)
    drawn = runtime.generator_for(seed, "recovery/bootstrap").integers(0, len(by_code), (DRAWS, len(by_code)))
    low, high = np.quantile(by_code[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)
