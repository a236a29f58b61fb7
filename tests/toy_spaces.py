"""Generators whose effects, limits and coordinates are known, for tests of directions, edits and what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eigenlens.codes import Codes, Part, Space
from eigenlens.generator import Generator, Layer, State


class Weights(nn.Module):
    """Holds one tensor, so that a toy has weights to hash."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.float())


class FunctionToy(Generator):
    """Images are `function` of a normal z [batch, dim]; one layer."""

    family = "toy"

    def __init__(self, function: Callable[[Tensor], Tensor], dim: int, name: str = "toy") -> None:
        shape = function(torch.zeros(1, dim)).shape
        super().__init__(
            Weights(function(torch.ones(1, dim))),
            name=name,
            spaces={"z": Space("z", 1, dim, (Part("all", 0, 0, 0, dim, ("rgb",)),))},
            layers=[Layer("rgb", shape[-1], shape[1], 0)],
            resolution=shape[-1],
            channels=shape[1],
        )
        self.function = function

    def _inputs(self, codes: Codes) -> Tensor:
        return codes.latent[:, 0]

    def _layer(self, index: int, state: State, inputs: Tensor) -> State:
        return State(index + 1, self.function(inputs))


class SlotToy(Generator):
    """z, w = M z + mean, and w+ with one slot a layer; layer s adds A_s w_s to the image: all is affine.

    Args:
        slots: of w+.
        dim: of z and w.
        scale: of the image, small enough that nothing is clamped.
        seed: of all matrices.
        resolutions: of the layers, as they claim it.
    """

    family = "toy"

    def __init__(
        self,
        slots: int = 4,
        dim: int = 5,
        *,
        scale: float = 0.01,
        seed: int = 0,
        mean: float = 1.0,
        resolutions: tuple[int, ...] | None = None,
        **about: Any,
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        self.mixing = torch.randn(dim, dim, generator=random) / dim**0.5
        self.maps = scale * torch.randn(slots, 3 * 16 * 16, dim, generator=random)
        self.centre = mean * torch.linspace(-1, 1, dim)
        self.runs: list[int] = []
        moments = lambda: (self.centre, self.mixing @ self.mixing.T)  # noqa: E731
        parts = tuple(Part(f"slot{i}", i, i, 0, dim, (f"layer{i}",)) for i in range(slots))
        law = "mapped from z"
        spaces = {
            "z": Space("z", 1, dim),
            "w": Space("w", 1, dim, law=law, moments=moments),
            "w+": Space("w+", slots, dim, parts, law=law, moments=moments, broadcast_of="w"),
        }
        sizes = resolutions or (16,) * slots
        layers = [Layer(f"layer{i}", sizes[i], 3, i) for i in range(slots)]
        super().__init__(
            Weights(self.maps),
            name=f"slots-{seed}",
            spaces=spaces,
            layers=layers,
            resolution=16,
            default_space="w",
            **about,
        )

    def _inputs(self, codes: Codes) -> Tensor:
        return codes.latent.expand(-1, self.spaces["w+"].slots, -1)

    def _layer(self, index: int, state: State, inputs: Tensor) -> State:
        self.runs.append(index)
        added = (inputs[:, index] @ self.maps[index].T).view(-1, 3, 16, 16)
        return State(index + 1, added if state.features is None else state.features + added)

    def _lift(self, codes: Codes, target: Space, *, truncation: float, cutoff: int | None) -> Codes:
        latent = codes.latent
        if codes.space.name == "z":
            latent = latent @ self.mixing.T + self.centre
        elif codes.space.name != "w" or target.name == "z":
            return super()._lift(codes, target, truncation=truncation, cutoff=cutoff)
        latent = self.centre + truncation * (latent - self.centre)
        return codes.with_latent(latent.expand(-1, target.slots, -1), target)
