"""Train a tiny VAE on pictures of one disc, wrap its decoder in one call, and find what its code controls.

Run: python examples/wrap_a_vae_decoder.py (about ten seconds on a laptop); it writes vae.png, one row a direction.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eigenlens
from eigenlens import images
from eigenlens.effect import traverse

SIZE, DIM = 16, 4


def discs(n: int, generator: torch.Generator) -> Tensor:
    """Draw pictures in [0, 1] of one bright disc whose place and size vary, [n, 1, SIZE, SIZE]."""
    x, y, radius = (torch.rand(n, 1, 1, generator=generator) for _ in range(3))
    grid = torch.arange(SIZE) + 0.5
    distance = ((grid[None, None, :] - 4 - 8 * x).square() + (grid[None, :, None] - 4 - 8 * y).square()).sqrt()
    return torch.sigmoid(2 * (2 + 3 * radius - distance))[:, None]


def train(steps: int) -> nn.Module:
    """Train a VAE and return its decoder, which maps codes [n, DIM] to pictures in [0, 1]."""
    torch.manual_seed(0)
    chance = torch.Generator().manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, 128), nn.ReLU(), nn.Linear(128, 2 * DIM))
    decoder = nn.Sequential(
        nn.Linear(DIM, 128), nn.ReLU(), nn.Linear(128, SIZE**2), nn.Sigmoid(), nn.Unflatten(1, (1, SIZE, SIZE))
    )
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    for _ in range(steps):
        pictures = discs(128, chance)
        mean, log_variance = encoder(pictures).chunk(2, dim=1)
        z = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=chance)
        misfit = F.binary_cross_entropy(decoder(z), pictures, reduction="sum") / len(pictures)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        optimiser.zero_grad()
        (misfit + divergence).backward()
        optimiser.step()
    return decoder


def main(path: str | Path = "vae.png", *, steps: int = 1500) -> Tensor:
    """Train, wrap, find directions, and save a strip of each: [directions, 5, 1, SIZE, SIZE]."""
    generator = eigenlens.from_module(train(steps), latent_dim=DIM, name="disc-vae", output_range=(0, 1))
    directions = eigenlens.METHODS["sefa"](n_directions=DIM).fit(generator, seed=0)
    codes = generator.sample(1, seed=1, truncation=0.0)
    strips = [traverse(generator, codes, directions, k, (-2, -1, 0, 1, 2)) for k in range(len(directions))]
    strip = torch.cat(strips)
    images.save(
        images.grid(
            strip.flatten(0, 1), columns=5, row_labels=directions.names, column_labels=["-2σ", "-1σ", "0", "+1σ", "+2σ"]
        ),
        path,
        force=True,
    )
    return strip


if __name__ == "__main__":
    main()
