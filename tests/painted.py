"""A generator whose axes each change one thing that a reader sees, directions that are bad on purpose, and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from eigenlens.codes import Space
from eigenlens.directions import Directions, standard_deviation
from eigenlens.generator import Generator
from eigenlens.method import provenance
from toys import Toy

SIZE = 16
DIM = 6


def patterns() -> Tensor:
    """Return what each coordinate adds to a picture, [6, 3, 16, 16]: light in a region of its own, less and less."""
    drawn = torch.zeros(DIM, 3, SIZE, SIZE)
    for k in range(DIM):
        row, column = divmod(k, 3)
        drawn[k, :, 8 * row : 8 * row + 8, 5 * column : 5 * column + 5] = 0.5 - 0.08 * k
    return drawn


class Regions:
    """Reads the light of each region."""

    name: ClassVar[str] = "regions"
    attributes = tuple(f"region-{k}" for k in range(DIM))

    def __call__(self, images: Tensor) -> Tensor:
        """Return scores [batch, 6]."""
        weights = (patterns() > 0).float()
        return torch.einsum("bchw,dchw->bd", images, weights / weights.sum((1, 2, 3), keepdim=True))


def _toy(drawn: Tensor, name: str) -> Generator:
    toy = Toy(lambda latent: torch.tanh(torch.einsum("bd,dchw->bchw", latent[:, 0], drawn) - 0.1), Space("z", 1, DIM))
    toy.network.register_parameter("patterns", torch.nn.Parameter(drawn, requires_grad=False))
    toy.name = name
    return toy


def painter() -> Generator:
    """Make the generator."""
    return _toy(patterns(), "painter")


def shuffled() -> Generator:
    """Make the same with all its weights in another order: every coordinate changes a bit of everything."""
    drawn = patterns().flatten()
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(1))
    return _toy(drawn[order].reshape(DIM, 3, SIZE, SIZE), "shuffled")


@dataclass(frozen=True)
class Copies:
    """The first axis, again and again."""

    n_directions: int = 4
    """How many."""
    name: ClassVar[str] = "copies"

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Return the copies."""
        space = generator.space("z")
        vectors = torch.eye(space.dim)[:1, None].repeat(self.n_directions, 1, 1)
        names = tuple(f"copy-{i}" for i in range(self.n_directions))
        sigma = standard_deviation(vectors, space)
        return Directions(vectors, "z", names, sigma=sigma, provenance=provenance(self, generator, seed))


@dataclass(frozen=True)
class Broken:
    """A method that always breaks."""

    name: ClassVar[str] = "broken"

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Break."""
        raise ZeroDivisionError("nothing to divide by")


class Texts:
    """Image and text features that agree on regions: the third text is of the third region."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [batch, 6]."""
        return Regions()(images)

    def texts(self, sentences: list[str]) -> Tensor:
        """Return features [sentences, 6]."""
        return torch.eye(DIM)[: len(sentences)]


def pictures() -> torch.Tensor:
    """Draw three pictures of 64 px by formula, in [-1, 1]: rings, stripes, and the rings with a grid over them."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    rings = torch.stack([(9 * (x**2 + y**2) + c).sin() for c in (0.0, 1.0, 2.0)])
    stripes = torch.stack([(6 * x + 3 * y * c).cos() for c in (1.0, -1.0, 0.5)])
    grid = (rings + 0.5 * ((32 * x).sin() * (32 * y).sin())).clamp(-1, 1)
    return torch.stack([rings, stripes, grid])
