"""How far two images are from each other: what fitting minimises, and the figures that people read; and two sets.

The former take images `[batch, channels, height, width]`, nominally in [-1, 1], and their goals, and return one number
a row; row i depends on row i alone. The latter take features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 8  # pixels of the coarsest scale


def pixel_distance(images: Tensor, goals: Tensor) -> Tensor:
    """Return the mean squared difference, averaged over scales that halve down to 8 pixels: [batch].

    The coarse scales see where a thing lies long before the fine ones overlap.
    """
    difference = images - goals
    scales = [difference.square().mean((1, 2, 3))]
    while min(difference.shape[2:]) >= 2 * SMALLEST:
        difference = F.avg_pool2d(difference, 2)
        scales.append(difference.square().mean((1, 2, 3)))
    return torch.stack(scales).mean(0)


def psnr(images: Tensor, goals: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, [batch]; images are clamped to [-1, 1], whose range is the peak.

    Example:
        >>> psnr(torch.full((1, 3, 8, 8), 0.2), torch.zeros(1, 3, 8, 8)).round(decimals=3).tolist()
        [20.0]
    """
    error = (images.clamp(-1, 1) - goals.clamp(-1, 1)).square().mean((1, 2, 3))
    return 10 * torch.log10(4.0 / error.clamp(min=1e-12))


def ssim(images: Tensor, goals: Tensor) -> Tensor:
    """Return the structural similarity of the channels, averaged: [batch]; 1 for equal images.

    Source:
        Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004: a Gaussian window of 11 pixels and σ 1.5, K₁ 0.01, K₂ 0.03,
        population variances; only windows that lie inside the image count, and images below 11 pixels are one window.
    """
    size = min(11, *images.shape[2:])
    precise = torch.float64 if images.device.type == "cpu" else torch.float32  # variances are small differences
    places = torch.arange(size, dtype=precise, device=images.device) - (size - 1) / 2
    line = torch.exp(-places.square() / (2 * 1.5**2))
    line = line / line.sum()

    def local(x: Tensor) -> Tensor:
        planes = x.flatten(0, 1)[:, None]  # [batch * channels, 1, height, width]: the window is the same for all
        planes = F.conv2d(F.conv2d(planes, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))
        return planes.view(*x.shape[:2], *planes.shape[2:])

    x, y = ((each.to(precise).clamp(-1, 1) + 1) / 2 for each in (images, goals))
    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean((1, 2, 3)).float()


def feature_scale(features: Tensor, *, is_alike: bool) -> Tensor:
    """Return what features [n, dim] are divided by before a kernel distance: a standard deviation each, or one for all.

    Args:
        features: of a set of images.
        is_alike: whether they share a unit, as those of a network do: then one that hardly ever fires in this set
            is not blown up where it does in another.
    """
    deviation = features.std(0)
    if is_alike:
        deviation = deviation.square().mean().sqrt().expand_as(deviation)
    return deviation.clamp(min=1e-6)


def squared_mmd(a: Tensor, b: Tensor) -> float:
    """Return the squared maximum mean discrepancy of two sets of features, unbiased, so that chance alone gives 0.

    Args:
        a, b: [n, dim] and [m, dim], two rows or more each.

    Source:
        Bińkowski et al., Demystifying MMD GANs, ICLR 2018, equation 4, with the kernel of its section 4: the KID.
    """
    return kernel_mean(a) + kernel_mean(b) - 2 * float(kernel(a, b).mean())


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return (x·y / dim + 1)³ of every row of a [n, dim] with every row of b [m, dim]: [n, m]."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def kernel_mean(a: Tensor) -> float:
    """Return the mean kernel of two different rows of a [n, dim]."""
    values = kernel(a, a)
    return float((values.sum() - values.diagonal().sum()) / (len(a) * (len(a) - 1)))


def kernel_spread(a: Tensor) -> float:
    """Return half the mean squared distance that two rows of a [n, dim] have under the kernel.

    It is the discrepancy between those rows and one of them, repeated without end, mean over which one.
    """
    return float(kernel(a, a).diagonal().mean()) - kernel_mean(a)
