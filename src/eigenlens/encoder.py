"""An Encoder reads codes off images in one pass: where a projection starts, or all that a page can afford."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codes import Codes
from .errors import UserError
from .files import network_file, written_beside
from .generator import Generator

ENCODER_FORMAT = "eigenlens.encoder/1"
FILE = "encoder.safetensors"
"""What a generator's folder calls its encoder."""
SLOPE = 0.2
BASE = 4  # pixels of the last feature map


@dataclass(frozen=True)
class EncoderConfig:
    """What fixes the shape of an encoder."""

    space: str
    """Space of the codes that it reads."""
    slots: int
    """Slots of a code."""
    dim: int
    """Length of a slot."""
    channels: int = 3
    """Channels of an image."""
    resolution: int = 64
    """Pixels of the images that it looks at, 8 times a power of two or 4 times one; others are brought to that size."""
    width: int = 64
    """Channels of the first feature map, which has half the resolution; they grow by `width` with each halving."""

    def __post_init__(self) -> None:
        levels = self.resolution // BASE
        if self.resolution < 2 * BASE or self.resolution != BASE * levels or levels & (levels - 1):
            raise UserError(f"an encoder of {self.resolution} px is not possible; allowed: 8, 16, 32, 64, 128, 256")
        if min(self.slots, self.dim, self.width) < 1 or self.channels not in (1, 3):
            raise UserError("slots, dim and width of an encoder are whole numbers from 1, its channels 1 or 3")


class Residual(nn.Module):
    """Two 3x3 convolutions beside the identity, pre-activation leaky ReLUs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # begins as the identity: no normalisation is needed

    def forward(self, h: Tensor) -> Tensor:
        """Return features of the same shape."""
        return h + self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(h, SLOPE)), SLOPE))


class EncoderNetwork(nn.Module):
    """Convolutions and leaky ReLUs down to 4x4, two linear layers; codes come out whitened.

    Pixels are first folded two by two into channels, which costs a quarter of a convolution at full size.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, size = config.width, config.resolution // 2
        self.stem = nn.Conv2d(4 * config.channels, width, 3, padding=1)
        blocks: list[nn.Module] = []
        while size > BASE:
            blocks += [Residual(width), nn.LeakyReLU(SLOPE), nn.Conv2d(width, width + config.width, 3, 2, 1)]
            width, size = width + config.width, size // 2
        self.blocks = nn.Sequential(*blocks)
        self.hidden = nn.Linear(width * BASE * BASE, 256)
        self.out = nn.Linear(256, config.slots * config.dim)

    def forward(self, images: Tensor) -> Tensor:
        """Return whitened codes [batch, slots, dim] for images [batch, channels, resolution, resolution]."""
        h = self.blocks(self.stem(F.pixel_unshuffle(images, 2)))
        h = F.leaky_relu(self.hidden(F.leaky_relu(h, SLOPE).flatten(1)), SLOPE)
        return self.out(h).unflatten(1, (self.config.slots, self.config.dim))


def fit_resolution(images: Tensor, resolution: int) -> Tensor:
    """Return images [batch, c, h, w] at `resolution` pixels a side: averaged where they are larger."""
    if images.shape[-2:] == (resolution, resolution):
        return images
    shrinks = min(images.shape[-2:]) >= resolution
    if shrinks and all(size % resolution == 0 for size in images.shape[-2:]):
        return F.adaptive_avg_pool2d(images, resolution)
    return F.interpolate(images, (resolution, resolution), mode="bilinear", antialias=shrinks, align_corners=False)


class Encoder:
    """A trained network that reads codes of one generator off images.

    Args:
        network: gives whitened codes.
        generator: the one whose codes it reads.
        about: what is remembered of its training, plain JSON.
    """

    def __init__(self, network: EncoderNetwork, generator: Generator, about: dict[str, Any] | None = None) -> None:
        self.network = network.eval().requires_grad_(False).to(generator.device)
        self.space = generator.space(network.config.space)
        self.identity = generator.identity()
        self.about = dict(about or {})

    def __call__(self, images: Tensor) -> Codes:
        """Return the codes of images [batch, channels, height, width] in [-1, 1], of any size."""
        config = self.network.config
        fitted = fit_resolution(images.to(next(self.network.parameters()).device), config.resolution)
        with torch.no_grad():
            return Codes(self.space, self.space.colour(self.network(fitted)))

    def save(self, path: str | Path, *, half: bool = True, force: bool = False) -> Path:
        """Write the encoder, in float16 unless `half` is false, with the generator that it belongs to."""
        from safetensors.torch import save_file

        tensors = {key: value.detach().cpu().contiguous() for key, value in self.network.state_dict().items()}
        if half:
            tensors = {key: value.half() for key, value in tensors.items()}
        header = {
            "format": ENCODER_FORMAT,
            "config": dataclasses.asdict(self.network.config),
            "generator": self.identity,
            "about": self.about,
        }
        with written_beside(path, force=force) as beside:
            save_file(tensors, beside, metadata={"eigenlens": json.dumps(header)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, generator: Generator) -> Encoder:
        """Read an encoder of `generator`.

        Raises:
            UserError: where the file is none, or belongs to another generator.
        """
        network, theirs, about = read_encoder(path)
        mine = generator.identity()
        if theirs["weights"] != mine["weights"]:
            raise UserError(
                f"{path} reads codes of {theirs['name']} (weights {theirs['weights']}), not of {mine['name']} "
                f"({mine['weights']}); make one with: eigenlens encoder train, which takes this one as --start"
            )
        return cls(network, generator, about)


def read_encoder(path: str | Path) -> tuple[EncoderNetwork, dict[str, str], dict[str, Any] | None]:
    """Read an encoder's network, the `name` and `weights` of its generator, and what is told about it.

    Raises:
        UserError: where the file is none.
    """
    with network_file(path, "encoder", ENCODER_FORMAT, make="eigenlens encoder train GENERATOR") as (header, tensors):
        network = EncoderNetwork(EncoderConfig(**header["config"]))
        network.load_state_dict(tensors)
        return network, {key: header["generator"][key] for key in ("name", "weights")}, header.get("about")


def find_encoder(generator: Generator) -> Path | None:
    """Return the encoder that lies beside a generator's own files, where there is one."""
    source = Path(generator.origin.source)
    place = source / FILE if source.is_dir() else source.with_name(f"{source.stem}.{FILE}")
    return place if generator.origin.source != "memory" and place.is_file() else None
