"""Wrap a one-step model, which maps a whole picture of Gaussian noise to an image, and find directions in its noise.

The model here is small and made on the spot: a residual network on noise [1, 16, 16], trained so that its pictures have
the distribution of pictures of one disc (energy distance). A distilled diffusion model is wrapped in the same way.

Run: python examples/wrap_a_one_step_model.py (half a minute on a laptop); it writes one_step.png, one row a direction.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import eigenlens
from eigenlens import images
from eigenlens.effect import traverse

SIZE = 16


class OneStep(nn.Module):
    """A network from noise [n, 1, SIZE, SIZE] to pictures in [-1, 1] of the same shape."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.mix = nn.Conv2d(1, width, SIZE)  # sees all of the noise at once
        self.deepen = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1))
        self.draw = nn.ConvTranspose2d(width, 1, SIZE)

    def forward(self, noise: Tensor) -> Tensor:
        """Return pictures for noise."""
        h = self.mix(noise)
        return torch.tanh(self.draw(torch.relu(h + self.deepen(h))))


def discs(n: int, generator: torch.Generator) -> Tensor:
    """Draw pictures in [-1, 1] of one bright disc whose place and size vary, [n, 1, SIZE, SIZE]."""
    x, y, radius = (torch.rand(n, 1, 1, generator=generator) for _ in range(3))
    grid = torch.arange(SIZE) + 0.5
    distance = ((grid[None, None, :] - 4 - 8 * x).square() + (grid[None, :, None] - 4 - 8 * y).square()).sqrt()
    return torch.tanh(2 + 3 * radius - distance)[:, None]


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 2 E|a - b| - E|a - a'| - E|b - b'|, which is 0 only where both have one distribution."""
    a, b = a.flatten(1), b.flatten(1)
    return 2 * torch.cdist(a, b).mean() - _within(a) - _within(b)


def _within(a: Tensor) -> Tensor:
    return torch.cdist(a, a).sum() / (len(a) * (len(a) - 1))


def train(steps: int) -> nn.Module:
    """Train the model."""
    torch.manual_seed(0)
    chance = torch.Generator().manual_seed(0)
    model = OneStep()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        noise = torch.randn(128, 1, SIZE, SIZE, generator=chance)
        loss = energy_distance(model(noise), discs(128, chance))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def main(path: str | Path = "one_step.png", *, steps: int = 2000) -> Tensor:
    """Train, wrap, find directions, and save a strip of each: [directions, 5, 1, SIZE, SIZE]."""
    generator = eigenlens.from_module(train(steps), latent_shape=(1, SIZE, SIZE), name="one-step-discs")
    directions = eigenlens.METHODS["sefa"](n_directions=4).fit(generator, seed=0)
    codes = generator.sample(1, seed=1)
    strips = [traverse(generator, codes, directions, k, (-3, -1.5, 0, 1.5, 3)) for k in range(len(directions))]
    strip = torch.cat(strips)
    images.save(
        images.grid(
            strip.flatten(0, 1),
            columns=5,
            row_labels=directions.names,
            column_labels=["-3σ", "-1.5σ", "0", "+1.5σ", "+3σ"],
        ),
        path,
        force=True,
    )
    return strip


if __name__ == "__main__":
    main()
