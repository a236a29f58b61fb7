"""A judge of toon faces, which looks at parts of them upright and at their usual size.

An eye is four pixels that may be anywhere, turned and scaled; a discriminator of the whole picture learns late what a
clean one is. Where the bundled reader says how a face stands, every eye lies at the same place.

Source:
    Wang, Li, Zhang, Shan, GFPGAN, CVPR 2021 (arXiv 2101.04061), section 3.4, has discriminators of the parts of a face,
    cut out along landmarks. Here the reader's pose places them. No gradient goes through what it reads.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ...readers.toonfaces import POSE, Window, load_ensemble, to_reader_size
from ..judge import Judge, critic

WINDOWS = {"face": Window(-10, -9, 10, 13, 2), "bust": Window(-22, -20, 22, 26, 1)}
"""What is looked at: eyes to mouth, and hair to shoulders."""
GAIN = 3.0
"""Factor that brings the values of a window, less their mean, to a standard deviation near 1."""


class ToonFaces(Judge):
    """Critics of windows of toon faces, placed by the first look of the bundled reader."""

    def __init__(self) -> None:
        super().__init__()
        # drawn first: the reader, which is loaded once a process, draws weights before it has its own
        self.critics = nn.ModuleDict({name: critic(3, min(window.shape)) for name, window in WINDOWS.items()})
        ensemble = load_ensemble()
        # in a tuple, since it is no part of what learns or is kept
        self.reader = (copy.deepcopy(ensemble.members[0]), ensemble.heads)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return scores [batch, places] of the face and of the bust, for images [batch, 3, height, width]."""
        images = to_reader_size(images.float())
        pose = self._pose(images.detach())
        return [self.critics[name](GAIN * window.view(images, pose)).flatten(1) for name, window in WINDOWS.items()]

    @torch.no_grad()
    def _pose(self, images: Tensor) -> Tensor:
        network, heads = self.reader
        means = heads.split(network.to(images.device)(images).float())[0]
        return heads.in_units(means)[:, [heads.numbers.index(name) for name in POSE]]
