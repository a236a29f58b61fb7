"""Curved directions along the gradients of radial potentials (WarpedGANSpace, ICCV 2021, arXiv 2109.13357)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import runtime
from ..curves import Dipoles
from ..directions import Directions
from ..errors import check_ranges
from ..generator import Generator
from ..reconstructor import accuracies
from .learning import (
    ReconstructionGame,
    ReconstructionSettings,
    Scene,
    channels_last,
    learned_directions,
    walked,
    warn_of_confusion,
)


@dataclass(frozen=True)
class Warped(ReconstructionSettings):
    """Learn potentials whose gradients a reconstructor can tell apart, so that each direction may bend.

    Direction k follows the gradient of a sum of dipoles, pairs of radial functions of opposite sign. Codes are walked
    in small arcs, in training as in use, and strength is the length of arc in σ. Poles and widths are learned.

    Source:
        Tzelepis et al. 2021, section 3. The authors take one step of fixed length along the gradient at the start, with
        69 % of shifts positive; here the path is walked, and signs are balanced.
    """

    n_dipoles: int = 32
    """Dipoles of each direction."""
    shift: float = 3.0
    """Largest shift in σ of arc."""
    name: ClassVar[str] = "warped"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {**ReconstructionSettings.presets["cpu"], "n_dipoles": 16},
    }
    """Settings for two cores."""

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Learn the directions; with a run folder, going on from where it stands there.

        Raises:
            UserError: on settings that do not fit, and where the folder holds another run.
            KeyboardInterrupt: after Ctrl-C, once the state is saved.
        """
        self.check()
        check_ranges(self, {"n_dipoles": (1, math.inf)})
        with channels_last(generator.to(runtime.join_processes(generator.device)).network):
            game = self.game(generator, seed)
            game.play(self.n_steps, run)
            counts, errors = game.test()
        accuracy = accuracies(counts)
        found = learned_directions(
            game.scene, game.mover.curve(), self, seed, importance=accuracy, fields={"shift_error": errors}
        )
        order = accuracy.argsort(descending=True, stable=True).tolist()
        warn_of_confusion(found, counts[order][:, order], run)
        return found

    def game(self, generator: Generator, seed: int) -> ReconstructionGame:
        """Return dipoles and a reconstructor that have learned nothing yet."""
        scene = self.scene(generator, seed)
        return ReconstructionGame(self, scene, DipoleMover(scene, self.n_directions, self.n_dipoles, seed), seed)


class DipoleMover(nn.Module):
    """Walk codes along the gradients of sums of dipoles.

    Poles start in random ways at one to four standard deviations from the centre, and γ at one over the mean squared
    distance of codes from it, as published.

    Args:
        scene: where codes live.
        n: how many directions.
        n_dipoles: of each.
        seed: of the poles.
    """

    def __init__(self, scene: Scene, n: int, n_dipoles: int, seed: int) -> None:
        super().__init__()
        self.scene = scene
        space = scene.space
        variance = float(space.covariance.diagonal().mean())
        rng = runtime.generator_for(seed, "warped/poles")
        drawn = torch.from_numpy(rng.standard_normal((n * n_dipoles, len(scene.free)), dtype="float32"))
        ways = torch.nn.functional.normalize(drawn, dim=1).unflatten(0, (n, n_dipoles))
        radii = torch.linspace(1.0, 4.0, n_dipoles) * math.sqrt(variance)
        self.poles = nn.Parameter(ways * radii[:, None])  # [n, dipoles, free]
        self.log_gammas = nn.Parameter(torch.full((n, n_dipoles), -math.log(len(scene.free) * variance)))

    def curve(self) -> Dipoles:
        """Return the dipoles as they are now."""
        scene, (n, n_dipoles) = self.scene, self.log_gammas.shape
        poles = scene.shaped(self.poles.flatten(0, 1)).unflatten(0, (n, n_dipoles))
        return Dipoles(
            poles=poles,
            weights=torch.ones_like(self.log_gammas),
            gammas=self.log_gammas.exp(),
            centre=scene.space.mean.to(poles),
            mask=scene.moves.to(poles),
        )

    def forward(self, latent: Tensor, which: Tensor, amount: Tensor) -> Tensor:
        """Walk each code along its direction."""
        return walked(self.curve(), self.scene, latent, which, amount)
