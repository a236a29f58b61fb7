"""A judge: a second discriminator, which does not look at all pixels alike; the files beside are in `judges/`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..registry import Registry

JUDGES = Registry(
    "judge",
    {
        "features": "eigenlens.training.judges.features:Features",
        "toonfaces": "eigenlens.training.judges.toonfaces:ToonFaces",
    },
)
"""Name -> the judge. One of your own: `JUDGES.table["mine"] = "package.module:Name"`."""

WIDTH = 64
"""Channels of what a critic computes."""
SMALLEST = 4
"""A critic halves its maps for as long as so many pixels a side are left."""
SLOPE = 0.2


class Judge(nn.Module):
    """Scores of images, of several parts or in several ways. It is built without arguments; what it knows beforehand
    and does not learn is no parameter of it, nor part of its state."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return scores [batch, places] in each way, for images [batch, channels, height, width] in [-1, 1]."""
        raise NotImplementedError


def critic(channels: int, size: int) -> nn.Sequential:
    """Return a small discriminator of maps `size` pixels a side: [batch, channels, h, w] -> [batch, 1, about 4, 4].

    Spectral norms (Miyato 2018) hold it back, in the place of R1.
    """
    layers: list[nn.Module] = []
    if channels != WIDTH:
        layers += [spectral_norm(nn.Conv2d(channels, WIDTH, 3, 1, 1)), nn.LeakyReLU(SLOPE)]
    while size // 2 >= SMALLEST:
        layers += [spectral_norm(nn.Conv2d(WIDTH, WIDTH, 4, 2, 1)), nn.LeakyReLU(SLOPE)]
        size //= 2
    layers += [spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(WIDTH, 1, 1)))
