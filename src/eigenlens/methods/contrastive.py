"""Directions whose changes of features are alike at every code and unlike each other (LatentCLR, ICCV 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .. import runtime
from ..curves import Curve, NetworkField
from ..directions import Directions
from ..errors import UserError, check_ranges, unknown_name
from ..generator import Generator
from ..reconstructor import ShiftLaw, draw_shifts
from .learning import (
    LearnedFrame,
    Learner,
    Scene,
    StraightMover,
    about_fit,
    channels_last,
    check_share,
    learn,
    learned_directions,
    of_all,
    twins,
    walked,
    warn_of,
)

TEST_CODES = 32
"""Held-out codes of the figures that directions carry."""


@dataclass(frozen=True)
class Contrastive:
    """Learn directions by the changes that they make in a layer: alike for one direction, unlike for two.

    Every code is moved along every direction, and only the layers up to `at` run: no image is made and no second
    network learns, which makes it the cheapest of the learned methods on a CPU. `conditional` directions are what a
    small network says of the code, and curved: they are walked in arcs.

    `importance` is, on codes that no step saw, the mean |cos| of a direction's changes at two codes less the mean |cos|
    with other directions' changes; `fields` has both parts.

    Source:
        Yüksel, Simsar, Er & Yanardag, LatentCLR, ICCV 2021 (arXiv 2104.00820), equation 3, with |cos| as in the
        authors' code. Shifts are in σ.
    """

    n_directions: int = 32
    """How many."""
    directions: Literal["linear", "conditional"] = "linear"
    """`linear`: vectors of norm 1. `conditional`: a network of the code for each."""
    at: str | None = None
    """Layer whose features are compared; by default the middle one."""
    n_steps: int = 10_000
    """Steps."""
    batch: int = 8
    """Codes a step, over all processes; each is moved along all directions, and compared with those of its process."""
    learning_rate: float = 1e-3
    """Of Adam."""
    weight_decay: float = 1e-3
    """Of Adam, for networks of the code."""
    temperature: float = 0.5
    """|cos| are divided by it."""
    shift: float = 3.0
    """Largest shift in σ."""
    least_shift: float = 0.5
    """Least size of a shift in σ."""
    hidden: int = 64
    """Hidden units of a conditional direction."""
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
    learn_in: runtime.Precision = "auto"
    """Of the network: fp32, bf16, or auto, the faster one."""
    name: ClassVar[str] = "contrastive"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {"n_directions": 24, "n_steps": 1000, "batch": 6, "learning_rate": 5e-3},
    }
    """Settings for two cores."""

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Learn the directions; with a run folder, going on from where it stands there.

        Raises:
            UserError: on settings that do not fit, and where the folder holds another run.
            KeyboardInterrupt: after Ctrl-C, once the state is saved.
        """
        if self.directions not in ("linear", "conditional"):
            raise unknown_name("kind of directions", self.directions, ("linear", "conditional"))
        limits = dict.fromkeys(("learning_rate", "n_steps", "patience", "weight_decay"), (0.0, math.inf))
        check_ranges(self, limits | {"temperature": (1e-3, math.inf), "hidden": (1, math.inf)})
        check_share(self.batch)
        if self.n_directions < 2 or self.batch < 2 * runtime.world_size():
            raise UserError("there is nothing to contrast: give 2 or more directions, and 2 or more codes a process")
        with channels_last(generator.to(runtime.join_processes(generator.device)).network):
            contrast = Contrast(self, generator, seed)
            about = about_fit(self, generator, seed)
            about["arguments"] |= {"learn_in": contrast.scene.precision}
            learn(
                contrast.learner,
                n_steps=self.n_steps,
                patience=self.patience,
                about=about,
                run=run,
                device=generator.device,
            )
            same, other = contrast.test()
        figures = {"same": same, "other": other}
        found = learned_directions(
            contrast.scene, contrast.learned(), self, seed, importance=same - other, fields=figures
        )
        dead = [i for i in range(len(found)) if not found.importance[i] > 0]
        warn_of(found.names, dead=dead, same=twins(found.vectors), run=run)
        return found


class NetworkMover(nn.Module):
    """Walk codes along what networks of one hidden layer say of them.

    Args:
        scene: where codes live.
        n: how many directions.
        hidden: units of each.
        seed: of the initial weights.
    """

    def __init__(self, scene: Scene, n: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.scene = scene
        dim = scene.moves.numel()
        rng = runtime.generator_for(seed, "contrastive/networks")
        draw = lambda *shape: torch.from_numpy(rng.standard_normal(shape, dtype="float32"))  # noqa: E731
        self.inner = nn.Parameter(draw(n, hidden, dim) / math.sqrt(dim))
        self.inner_bias = nn.Parameter(torch.zeros(n, hidden))
        self.outer = nn.Parameter(0.5 * draw(n, dim, hidden) / math.sqrt(hidden))
        self.outer_bias = nn.Parameter(draw(n, dim))  # at the start a random way that bends a little

    def curve(self) -> NetworkField:
        """Return the networks as they are now."""
        space = self.scene.space
        scale = space.covariance.diagonal().mean().sqrt().to(self.inner)
        return NetworkField(
            self.inner, self.inner_bias, self.outer, self.outer_bias,
            space.mean.to(self.inner), scale, self.scene.moves.to(self.inner),
        )  # fmt: skip

    def forward(self, latent: Tensor, which: Tensor, amount: Tensor) -> Tensor:
        """Walk each code along its direction."""
        return walked(self.curve(), self.scene, latent, which, amount)


class Contrast:
    """Directions, and the contrast between the changes that they make.

    Args:
        method: the settings.
        generator: whose features.
        seed: of weights, codes and shifts.
    """

    def __init__(self, method: Contrastive, generator: Generator, seed: int) -> None:
        self.method, self.seed, self.k = method, seed, method.n_directions
        at = method.at or generator.layers[len(generator.layers) // 2].name
        self.scene = Scene(
            generator, space=method.space, layers=method.layers, at=at, label=method.label,
            truncation=method.truncation, precision=method.learn_in, seed=seed, stream="contrastive/codes",
        )  # fmt: skip
        self.mover: Any
        if method.directions == "linear":
            self.mover = StraightMover(self.scene, LearnedFrame(self.k, len(self.scene.free), "unit", seed))
        else:
            self.mover = NetworkMover(self.scene, self.k, method.hidden, seed)
        self.mover.to(generator.device)
        decay = 0.0 if method.directions == "linear" else method.weight_decay
        self.learner = Learner(
            {"directions": self.mover}, self.loss, ("same", "other"), learning_rate=method.learning_rate,
            weight_decay=decay,
        )  # fmt: skip

    def learned(self) -> Tensor | Curve:
        """Return the vectors, or the curve."""
        return self.mover.frame() if self.method.directions == "linear" else self.mover.curve()

    def changes(self, codes: Any, amount: Tensor) -> Tensor:
        """Return the change of features of every code along every direction, at length 1: [k, batch, features].

        Args:
            codes: [batch].
            amount: how far each goes, [k, batch].
        """
        n, k = len(codes), len(amount)
        which = torch.arange(k, device=amount.device).repeat_interleave(n)  # [k * batch], one direction after the other
        many = codes[list(range(n)) * k]
        moved = self.mover(many.latent, which, amount.flatten())
        g, at = self.scene.generator, self.scene.at
        with self.scene.mixed():
            with torch.no_grad():
                before = g.features(codes, at).float()
            after = g.features(many.with_latent(moved), at).float()
        change = after.unflatten(0, (k, n)) - before
        return torch.nn.functional.normalize(change.flatten(2), dim=2)

    def loss(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the loss of one step, and the mean |cos| of changes of the same direction and of others."""
        rng = runtime.generator_for(self.seed, "contrastive/shifts", step)
        law = ShiftLaw(self.method.least_shift, self.method.shift)
        n = self.method.batch
        amount = draw_shifts(self.k * n, 1, law, rng)[1].view(self.k, n)[:, runtime.share(n)]
        changes = self.changes(self.scene.batch(n, step), amount.to(self.scene.generator.device))
        return contrast(of_all(changes, n, dim=1), self.method.temperature)

    @torch.no_grad()
    def test(self) -> tuple[Tensor, Tensor]:
        """Return the mean |cos| of each direction's changes, and of its and others' changes, on held-out codes: [k]."""
        half, pieces = self.method.shift / 2, []
        for low, high in runtime.batches(TEST_CODES, self.method.batch):
            amount = torch.full((self.k, high - low), half, device=self.scene.generator.device)
            pieces.append(self.changes(self.scene.held_out(high - low, low), amount).cpu())
        changes = torch.cat(pieces, dim=1)  # [k, codes, features]
        cosines = torch.einsum("kif,ljf->klij", changes, changes).abs().mean((2, 3))  # [k, k]
        n = TEST_CODES
        same = (cosines.diagonal() * n * n - n) / (n * (n - 1))  # without each code with itself
        other = (cosines.sum(1) - cosines.diagonal()) / (self.k - 1)
        return same, other


def contrast(changes: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return -log(mean exp(|cos| / τ) of one direction at two codes / that of two directions), and both mean |cos|.

    Args:
        changes: of unit length, [k, batch, features].
        temperature: τ.
    """
    k, n = changes.shape[:2]
    flat = changes.flatten(0, 1)
    cosines = (flat @ flat.T).abs()  # [k * batch, k * batch]
    owner = torch.arange(k, device=flat.device).repeat_interleave(n)
    same = owner[:, None] == owner
    other = ~same
    same = same & ~torch.eye(k * n, dtype=torch.bool, device=flat.device)
    heat = (cosines / temperature).exp()
    loss = -(heat[same].mean() / heat[other].mean()).log()
    return loss, torch.stack([cosines[same].mean(), cosines[other].mean()])
