"""A judge of features of a pretrained network.

Source:
    Sauer, Chitta, Müller, Geiger, Projected GANs Converge Faster, NeurIPS 2021 (arXiv 2111.01007): features of an
    EfficientNet at four depths, mixed across channels and depths by random convolutions that never learn (section 3.2),
    and one small discriminator a depth. Kumari, Zhang, Shechtman, Zhu, Ensembling Off-the-shelf Models for GAN
    Training, CVPR 2022 (arXiv 2112.09130): such a discriminator beside the usual one, once that has learnt something.
    Here nothing is normalised over the batch, since the critics see real and generated images in one.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...readers.efficientnet import CHANNELS, RESOLUTION, EfficientNet, resized
from ..judge import WIDTH, Judge, critic

SPREADS = (15.0, 9.2, 4.8, 1.7)
"""Standard deviations of the pretrained network's maps on noise, to which they are brought down."""


class Features(Judge):
    """Critics of the features of EfficientNet-Lite0 at four depths, mixed at random, of images enlarged to 128 px.

    Raises:
        UserError: where the package with the weights is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pretrained = EfficientNet()
        self.across_channels = nn.ModuleList(_Random(channels, WIDTH, 1) for channels in CHANNELS)
        self.across_depths = nn.ModuleList(_Random(WIDTH, WIDTH, 3) for _ in CHANNELS)
        self.critics = nn.ModuleList(critic(WIDTH, RESOLUTION >> (2 + depth)) for depth in range(len(CHANNELS)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return scores [batch, 16] of each depth, finest first, for images [batch, 1 or 3, height, width]."""
        scores: list[Tensor] = []
        deeper: Tensor | None = None
        maps = self.pretrained.maps(resized(images))
        for depth in reversed(range(len(maps))):
            h = self.across_channels[depth](maps[depth] / SPREADS[depth])
            if deeper is not None:
                h = h + F.interpolate(deeper, size=h.shape[-2:], mode="bilinear", align_corners=False)
            deeper = self.across_depths[depth](h)
            scores.insert(0, self.critics[depth](deeper).flatten(1))
        return scores


class _Random(nn.Module):
    """A convolution that keeps the scale of its input and never learns."""

    weight: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        weight = nn.Conv2d(in_channels, out_channels, kernel, bias=False).weight.detach()
        self.register_buffer("weight", nn.init.kaiming_normal_(weight, nonlinearity="linear"))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2)
