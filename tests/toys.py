"""Generators whose singular vectors, spectra and Jacobians are known, for tests with planted answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eigenlens.codes import Codes, Part, Space
from eigenlens.generator import Generator, Layer, State, StyleMatrix


def orthonormal_rows(n: int, dim: int, seed: int) -> Tensor:
    """Return n random orthonormal rows, float64 [n, dim]."""
    drawn = torch.randn(dim, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].T


def planted(values: Tensor, out: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a matrix [out, dim] of these singular values, and its right singular vectors, one a row."""
    left, right = orthonormal_rows(len(values), out, seed), orthonormal_rows(len(values), dim, seed + 1)
    return left.T * values.double() @ right, right


class Network(nn.Module):
    """Holds the matrices of a toy, so that it has weights to hash and to move."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(tensor.float()))


class Toy(Generator):
    """A function of one latent as a generator: `features`, then `image`, which is the same reshaped.

    Args:
        function: latents [batch, slots, dim] -> features [batch, channels, height, width]; 3 channels.
        space: where its codes live.
        matrices: what `style_matrices` gives.
    """

    family = "toy"

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        space: Space,
        *,
        matrices: dict[str, StyleMatrix] | None = None,
        spaces: dict[str, Space] | None = None,
        **about: Any,
    ) -> None:
        shape = function(torch.zeros(1, space.slots, space.dim)).shape
        tensors = {name: matrix.weight for name, matrix in (matrices or {}).items()}
        super().__init__(
            Network(**tensors),
            name="toy",
            spaces=spaces or {space.name: space},
            layers=[Layer("first", shape[-1], shape[1], 0), Layer("rgb", shape[-1], shape[1])],
            resolution=shape[-1],
            channels=shape[1],
            default_space=space.name,
            **about,
        )
        self.function, self.matrices = function, matrices or {}

    def _inputs(self, codes: Codes) -> Tensor:
        return codes.latent.expand(-1, self.spaces[self.default_space].slots, -1)

    def _layer(self, index: int, state: State, inputs: Tensor) -> State:
        return State(index + 1, self.function(inputs) if index == 0 else state.features)

    def style_matrices(self, layers: str = "all") -> dict[str, StyleMatrix]:
        """Return the matrices of the chosen parts."""
        picked = self.style_space.picked(layers)
        return {name: matrix for name, matrix in self.matrices.items() if matrix.part in picked}


def linear_toy(matrix: Tensor, shape: tuple[int, int, int], *, offset: float = 0.3, bend: bool = False) -> Toy:
    """Make the generator x = A z + offset with A [out, dim], whose Jacobian is A; `bend` puts a leaky ReLU after it."""
    space = Space("z", 1, matrix.shape[1])

    def function(latent: Tensor) -> Tensor:
        rows = latent[:, 0] @ matrix.to(latent).T + offset
        rows = torch.nn.functional.leaky_relu(rows, 0.2) if bend else rows
        return rows.unflatten(1, shape)

    return Toy(function, space, matrices={"first": StyleMatrix(matrix.float(), space.parts[0])})


class MappedToy(Toy):
    """A toy with w = M z + m, mapped from z, whose covariance is M Mᵀ, and w+ of several slots that repeat it."""

    def __init__(self, mixing: Tensor, *, slots: int = 3, sources: Callable[[Tensor], Tensor] | None = None) -> None:
        dim = len(mixing)
        mean = torch.linspace(-1.0, 1.0, dim)
        moments = lambda: (mean, (mixing @ mixing.T).float())  # noqa: E731
        w = Space("w", 1, dim, law="mapped from z", moments=moments)
        parts = tuple(Part(f"slot{i}", i, i, 0, dim, ("first",)) for i in range(slots))
        wide = Space("w+", slots, dim, parts, law="mapped from z", moments=moments, broadcast_of="w")
        spaces = {"z": Space("z", 1, mixing.shape[1]), "w": w, "w+": wide}
        super().__init__(
            lambda latent: latent.mean(1)[:, : dim - dim % 3].unflatten(1, (3, 1, -1)).expand(-1, -1, dim // 3, -1),
            w,
            spaces=spaces,
        )
        self.mixing, self.mean, self.sources = mixing, mean, sources

    def _inputs(self, codes: Codes) -> Tensor:
        return codes.latent

    def _lift(self, codes: Codes, target: Space, *, truncation: float, cutoff: int | None) -> Codes:
        z = codes.latent[:, 0] if self.sources is None else self.sources(codes.latent[:, 0])
        w = self.mean + truncation * (z.double() @ self.mixing.T).float()
        return codes.with_latent(w[:, None].expand(-1, target.slots, -1), target)
