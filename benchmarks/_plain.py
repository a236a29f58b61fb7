"""The published ways to run StyleGAN2 and 3, written down plainly, on the weights of our networks.

Weights are modulated for each sample and convolved in groups; filters are two-dimensional (in StyleGAN3 separable where
they are), after zeros are put between the pixels; every operation makes a tensor of its own (Karras 2020, section 2.2;
2021, appendix D; NVIDIA's own code where no CUDA is at hand does the same).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from eigenlens.generators.stylegan2 import StyleGAN2Network
from eigenlens.generators.stylegan3 import StyleGAN3Network


def upfirdn(x: Tensor, taps: Tensor, up: int, down: int, padding: tuple[int, int, int, int], gain: float) -> Tensor:
    """Put zeros between the pixels, pad or crop, filter, and keep every `down`-th pixel."""
    n, c, h, w = x.shape
    x = F.pad(x.reshape(n, c, h, 1, w, 1), [0, up - 1, 0, 0, 0, up - 1]).reshape(n, c, h * up, w * up)
    x = F.pad(x, padding)
    if taps.ndim == 2:
        x = F.conv2d(x, (taps * gain).flip(0, 1)[None, None].repeat(c, 1, 1, 1), groups=c)
    else:
        x = F.conv2d(x, (taps * gain**0.5).flip(0)[None, None, None].repeat(c, 1, 1, 1), groups=c)
        x = F.conv2d(x, (taps * gain**0.5).flip(0)[None, None, :, None].repeat(c, 1, 1, 1), groups=c)
    return x[:, :, ::down, ::down]


def modulated(x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool, doubles: bool, padding: int) -> Tensor:
    """Convolve every sample with weights of its own, in one grouped convolution."""
    n, (width, inputs, k, _) = len(x), weight.shape
    weights = weight[None] * style[:, None, :, None, None]
    if demodulate:
        weights = weights * (weights.square().sum([2, 3, 4]) + 1e-8).rsqrt()[:, :, None, None, None]
    x = x.reshape(1, -1, *x.shape[2:])
    if doubles:
        turned = weights.transpose(1, 2).reshape(n * inputs, width, k, k)
        x = F.conv_transpose2d(x, turned, stride=2, groups=n)
    else:
        x = F.conv2d(x, weights.reshape(-1, inputs, k, k), padding=padding, groups=n)
    return x.reshape(n, -1, *x.shape[2:])


def stylegan2(network: StyleGAN2Network, w: Tensor) -> Tensor:
    """Return images of a StyleGAN2 with skip connections for w [batch, dim], stored noise."""
    config = network.config
    taps = torch.outer(torch.tensor(config.taps), torch.tensor(config.taps))
    x, image = network.b4.const[None].repeat(len(w), 1, 1, 1), None
    for level in range(len(config.widths)):
        block = getattr(network, f"b{4 * 2**level}")
        for kind in ("conv0", "conv1") if level else ("conv1",):
            layer = getattr(block, kind)
            doubles = kind == "conv0"
            x = modulated(x, layer.weight, layer.affine(w), demodulate=True, doubles=doubles, padding=1)
            x = upfirdn(x, taps, 1, 1, (1, 1, 1, 1), 4.0) if doubles else x
            x = x + (layer.noise * layer.strength)[None, None]
            x = F.leaky_relu(x + layer.bias.reshape(1, -1, 1, 1), config.slope) * config.gain
        rgb = block.torgb
        new = modulated(x, rgb.weight, rgb.affine(w), demodulate=False, doubles=False, padding=0)
        new = new + rgb.bias.reshape(1, -1, 1, 1)
        image = new if image is None else upfirdn(image, taps, 2, 1, (2, 1, 2, 1), 4.0) + new
    return image


def stylegan3(network: StyleGAN3Network, w: Tensor) -> Tensor:
    """Return images of a StyleGAN3 for w [batch, dim]."""
    x = network.input(network.input.affine(w)).contiguous()
    for layer in network.layers.values():
        config, style = layer.config, layer.affine(w)
        if config.is_demodulated:
            style = style * style.square().mean(1, keepdim=True).rsqrt()
        weight = layer.weight
        x = modulated(x, weight, style, demodulate=config.is_demodulated, doubles=False, padding=config.kernel - 1)
        x = x * layer.input_gain + layer.bias.reshape(1, -1, 1, 1)
        up = torch.ones(1) if layer.up_filter is None else layer.up_filter
        x = upfirdn(x, up, config.up, 1, config.padding, float(config.up**2))
        x = F.leaky_relu(x, config.slope) * config.gain
        x = x if config.clamp is None else x.clamp(-config.clamp, config.clamp)
        x = x if layer.down_filter is None else upfirdn(x, layer.down_filter, 1, config.down, (0, 0, 0, 0), 1.0)
    return x * network.config.output_scale
