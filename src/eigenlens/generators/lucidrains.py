"""The StyleGAN2 of lucidrains/stylegan2-pytorch, which is a network of its own.

It differs from NVIDIA's nearly everywhere: all layers of a resolution read one slot of w+; convolutions follow bilinear
up-sampling; one image of noise, uniform on [0, 1], is cropped for every layer and enters through an affine map, whose
bias is the layer's only one; images are in [0, 1] and perhaps transparent; blocks may have linear attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import runtime
from ..codes import Codes
from ..errors import UserError
from ..generator import Layer, Layout, State, needs
from .ops import (
    MappingNetwork,
    OnDemand,
    StyleBased,
    StyleInput,
    StyleInputs,
    check_options,
    demodulation,
    modulated,
    read_into,
    upfirdn,
)

BASE = 4  # pixels of the first block
SLOPE = 0.2  # of every leaky ReLU
HEADS = 8  # of every attention
LUCIDRAINS = "lucidrains/stylegan2-pytorch"


@dataclass(frozen=True)
class LucidrainsConfig:
    """What fixes the shape of lucidrains' network."""

    widths: tuple[int, ...]
    """Channels at 4, 8, 16, ... pixels."""
    w_dim: int
    """Length of z and of w."""
    mapping_layers: int
    """Layers of the mapping network."""
    input_width: int
    """Channels of the first feature map."""
    channels: int = 3
    """Channels that the network gives: 4 where images are transparent; they are shown on white."""
    has_const: bool = True
    """Whether the first feature map is a constant; else it is a linear map of the mean of w+ over its slots."""
    attention: tuple[int, ...] = ()
    """Inner channels of the attention before each block; 0 where there is none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "attention", tuple(self.attention) or (0,) * len(self.widths))

    @property
    def resolution(self) -> int:
        """Height and width of an image in pixels."""
        return BASE * 2 ** (len(self.widths) - 1)

    def styles(self) -> list[StyleInput]:
        """Return every place where w enters: three layers a block, which share its slot."""
        before = self.input_width
        found = [] if self.has_const else [StyleInput("input", 0, before * BASE * BASE)]
        for slot, width in enumerate(self.widths):
            name = f"b{BASE * 2**slot}"
            found += [StyleInput(f"{name}.conv1", slot, before)]
            found += [StyleInput(f"{name}.{layer}", slot, width) for layer in ("conv2", "torgb")]
            before = width
        return found


class NoisyConvolution(nn.Module):
    """A modulated 3x3 convolution with demodulation, noise and leaky ReLU."""

    energy: Tensor

    def __init__(self, w_dim: int, inputs: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, inputs, 3, 3))
        self.affine = nn.Linear(w_dim, inputs)
        self.noise = nn.Linear(1, width)
        self.register_buffer("energy", None, persistent=False)  # squared weights summed over the kernel

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """Return [batch, width, size, size] for features x, styles [batch, inputs] and an image of noise."""
        factor = demodulation(style, self.energy)[:, :, None, None]
        cropped = noise[:, : x.shape[2], : x.shape[3]].transpose(1, 2)  # the original swaps height and width
        added = self.noise(cropped[..., None].to(x)).permute(0, 3, 1, 2)
        return F.leaky_relu(torch.addcmul(added, modulated(x, style, self.weight, padding=1), factor), SLOPE)


class ToRGB(nn.Module):
    """A modulated 1x1 convolution without demodulation or bias."""

    def __init__(self, w_dim: int, width: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width, 1, 1))
        self.affine = nn.Linear(w_dim, width)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return [batch, channels, height, width]."""
        return modulated(x, style, self.weight)


class ChannelNorm(nn.Module):
    """Normalise the channels of every pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.empty(1, width, 1, 1))
        self.b = nn.Parameter(torch.empty(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        centred = x - x.mean(1, keepdim=True)
        return centred * (centred.square().mean(1, keepdim=True) + 1e-5).rsqrt() * self.g + self.b


class Attention(nn.Module):
    """Linear attention, then two 1x1 convolutions, each with a residual branch.

    Source:
        Shen 2021, Efficient Attention (arXiv 1812.01243), equation 3, with the scale on the queries.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(width), ChannelNorm(width)
        self.query = nn.Conv2d(width, inner, 1, bias=False)
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.key_value = nn.Conv2d(width, 2 * inner, 1, bias=False)
        self.out = nn.Conv2d(inner, width, 1)
        self.widen, self.narrow = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        size, normed = x.shape[2:], self.norm1(x)
        keys, values = self.key_value(self.around(normed)).chunk(2, dim=1)
        heads = (each.flatten(2).unflatten(1, (HEADS, -1)) for each in (self.query(normed), keys, values))
        q, k, v = heads  # [batch, heads, dim, pixels] each
        q = q.softmax(2) * q.shape[2] ** -0.5
        context = k.softmax(3) @ v.transpose(2, 3)  # [batch, heads, dim, dim]
        found = (context.transpose(2, 3) @ q).flatten(1, 2).unflatten(2, size)
        x = x + self.out(F.gelu(found))
        return x + self.narrow(F.leaky_relu(self.widen(self.norm2(x)), SLOPE))


class Block(nn.Module):
    """The layers of one resolution."""

    def __init__(self, config: LucidrainsConfig, level: int) -> None:
        super().__init__()
        inputs = config.widths[level - 1] if level else config.input_width
        width, inner = config.widths[level], config.attention[level]
        self.attention = Attention(inputs, inner) if inner else None
        self.conv1 = NoisyConvolution(config.w_dim, inputs, width)
        self.conv2 = NoisyConvolution(config.w_dim, width, width)
        self.torgb = ToRGB(config.w_dim, width, config.channels)


class FirstMap(nn.Module):
    """The first feature map: a constant, or a linear map of w; and a convolution of it."""

    def __init__(self, config: LucidrainsConfig) -> None:
        super().__init__()
        width = config.input_width
        self.const = nn.Parameter(torch.empty(width, BASE, BASE)) if config.has_const else None
        self.affine = None if config.has_const else nn.Linear(config.w_dim, width * BASE * BASE)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, styles: tuple[Tensor, ...]) -> Tensor:
        """Return [batch, width, 4, 4]."""
        if self.const is not None:
            return self.conv(self.const.expand(len(styles[0]), -1, -1, -1))
        return self.conv(styles[0].unflatten(1, (-1, BASE, BASE)))


class LucidrainsNetwork(nn.Module):
    """The frozen network: `mapping` turns z into w, the blocks turn styles and noise into an image."""

    w_avg: None = None  # no file holds the mean of w

    def __init__(self, config: LucidrainsConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = MappingNetwork(config.w_dim, (config.w_dim,) * config.mapping_layers)
        self.input = FirstMap(config)
        for level in range(len(config.widths)):
            self.add_module(f"b{BASE * 2**level}", Block(config, level))

    @property
    def affines(self) -> list[nn.Linear]:
        """The affine map of every style, in order."""
        return [self.get_submodule(f"{each.layer}.affine") for each in self.config.styles()]  # type: ignore[misc]

    def prepare(self) -> None:
        """Compute what the frozen weights fix."""
        for module in self.modules():
            if isinstance(module, NoisyConvolution):
                module.energy = module.weight.detach().square().sum((2, 3))  # [width, inputs]


def enlarged(rgb: Tensor) -> Tensor:
    """Double an image bilinearly and blur it, as the rgb path does."""
    rgb = F.interpolate(rgb, scale_factor=2, mode="bilinear", align_corners=False)
    return upfirdn(F.pad(rgb, (1, 1, 1, 1), mode="reflect"), torch.tensor([0.25, 0.5, 0.25]))


# --- the family -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoisyInputs(StyleInputs):
    """Styles, and the image of noise that all layers share."""

    noise: Tensor
    """[batch or 1, resolution, resolution]."""

    def row(self, row: int) -> NoisyInputs:
        """Return what the layers read for one row, as a batch."""
        one = super().row(row)
        noise = self.noise if len(self.noise) == 1 else self.noise[row : row + 1]
        return NoisyInputs(one.styles, one.noise_seeds, one.batch, noise)


class Lucidrains(StyleBased):
    """A StyleGAN2 of lucidrains as a Generator with the spaces z, w, w+ (one slot a resolution) and s.

    No file holds a mean of w or noise: truncation pulls to the mean of 20,000 mapped codes of seed 0, and the stored
    noise is that of seed 0. The features of a `torgb` layer are the running image, in the network's own [0, 1].
    """

    family: ClassVar[str] = "lucidrains"
    has_noise: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            LUCIDRAINS,
            ("GAN", "weights.GAN", ""),
            needs("SE.net.0.weight", "GE.initial_conv.weight", "GE.blocks.0.to_style1.weight"),
        ),
    )
    network: LucidrainsNetwork

    def __init__(self, network: LucidrainsNetwork, *, name: str, **about: Any) -> None:
        config = network.config
        layers = [Layer("input", BASE, config.input_width, None if config.has_const else 0)]
        for level, width in enumerate(config.widths):
            size = BASE * 2**level
            layers += [Layer(f"b{size}.{each}", size, width, level) for each in ("conv1", "conv2")]
            layers += [Layer(f"b{size}.torgb", size, config.channels, level)]
        super().__init__(
            network,
            styles=config.styles(),
            n_slots=len(config.widths),
            z_dim=config.w_dim,
            shared=() if config.has_const else ("input",),
            name=name,
            layers=layers,
            resolution=config.resolution,
            config=asdict(config),
            **about,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], **about: Any) -> Lucidrains:
        """Rebuild a network of lucidrains from our own files."""
        made = LucidrainsConfig(**config)
        return cls(read_into(lambda: LucidrainsNetwork(made), tensors), **about)  # type: ignore[arg-type]

    @classmethod
    def from_foreign(
        cls, layout: str, tensors: dict[str, Tensor], checkpoint: Any, options: Mapping[str, Any], **about: Any
    ) -> Lucidrains:
        """Read the averaged networks of a training file.

        Args:
            layout: lucidrains'.
            tensors: the state dict of all its networks.
            checkpoint: the whole file; the `.config.json` beside it says the learning rate of the mapping network.
            options: `lr_mlp`, where that file is missing (0.1).
            about: name and origin.
        """
        check_options(options, ("lr_mlp",), layout)
        lr_mlp = options.get("lr_mlp", checkpoint.sidecar.get("lr_mlp", 0.1))
        try:
            config, ours = _finished(tensors, float(lr_mlp))
        except KeyError as error:
            raise UserError(f"this file of {layout} lacks {error}; get a whole one") from error
        return cls.from_config(config, ours, **about)

    def _read(self, latent: Tensor) -> Sequence[Tensor]:
        styles, first = super()._read(latent), self.network.input.affine
        if first is None:
            return styles
        return OnDemand(len(styles), lambda i: styles[i] if i else first(latent.mean(1)))

    def _inputs(self, codes: Codes) -> NoisyInputs:
        inputs = super()._inputs(codes)
        seeds = (0,) if codes.noise_seeds is None else codes.noise_seeds
        return NoisyInputs(
            inputs.styles, inputs.noise_seeds, inputs.batch, _noise_images(seeds, self.resolution).to(codes.latent)
        )

    def style_matrices(self, layers: str = "all") -> dict[str, Any]:
        """Return the weights [channels, dim] of the affine maps; the input's, which reads all slots, is left out."""
        matrices = super().style_matrices(layers)
        return {name: matrix for name, matrix in matrices.items() if name != "input"}

    def _layer(self, index: int, state: State, inputs: NoisyInputs) -> State:
        if index == 0:
            return State(1, self.network.input(inputs.styles))
        name = self.layers[index].name
        block: Any = self.network.get_submodule(name.partition(".")[0])
        style = inputs.styles[index - 1 if self.network.config.has_const else index]
        x, image = state.features, state.image
        assert x is not None
        if name.endswith("torgb"):
            rgb = block.torgb(x, style)
            return State(index + 1, x, rgb if image is None else rgb + enlarged(image))
        if name.endswith("conv2"):
            return State(index + 1, block.conv2(x, style, inputs.noise), image)
        x = x if block.attention is None else block.attention(x)
        if index > 1:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return State(index + 1, block.conv1(x, style, inputs.noise), image)

    def _image(self, state: State) -> Tensor:
        assert state.image is not None
        rgb = state.image[:, :3]
        if state.image.shape[1] == 4:
            opacity = state.image[:, 3:].clamp(0, 1)
            rgb = rgb * opacity + (1 - opacity)
        return rgb * 2 - 1

    def features(self, codes: Codes, layer: str) -> Tensor:
        """Return the features of a named layer, [batch, channels, height, width]; of a `torgb`, the running image."""
        if not layer.endswith(".torgb"):
            return super().features(codes, layer)
        image = self._run(codes, State(), self.layer_index(layer) + 1).image
        assert image is not None
        return image


def _noise_images(seeds: tuple[int, ...], resolution: int) -> Tensor:
    """Draw one image a seed from U(0, 1), [batch, resolution, resolution]; a seed of -1 gives zeros."""
    shape = (resolution, resolution)
    rows = [
        torch.zeros(shape)
        if seed < 0
        else torch.from_numpy(runtime.generator_for(seed, "noise/image").random(shape, dtype="float32"))
        for seed in seeds
    ]
    return torch.stack(rows)


# --- foreign files ----------------------------------------------------------------------------------------------------


def _finished(theirs: Mapping[str, Tensor], lr_mlp: float) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn lucidrains' names into ours, and finish the weights.

    The mapping network has no factor but its learning rate, on weights and biases alike; it divides z by its length,
    ours by its root mean square; the 1 that is added to every style moves into the bias.
    """
    n_mapping, n_levels = (
        _count(theirs, pattern, step) for pattern, step in (("SE.net.{}.weight", 2), ("GE.blocks.{}.conv1.weight", 1))
    )
    ours: dict[str, Tensor] = {}
    w_dim = theirs["SE.net.0.weight"].shape[1]
    for i in range(n_mapping):
        scale = lr_mlp / (math.sqrt(w_dim) if i == 0 else 1.0)
        ours[f"mapping.layers.{i}.weight"] = theirs[f"SE.net.{2 * i}.weight"].double() * scale
        ours[f"mapping.layers.{i}.bias"] = theirs[f"SE.net.{2 * i}.bias"].double() * lr_mlp
    for kind in ("weight", "bias"):
        ours[f"input.conv.{kind}"] = theirs[f"GE.initial_conv.{kind}"]
    has_const = "GE.initial_block" in theirs
    if has_const:
        ours["input.const"] = theirs["GE.initial_block"][0]
    else:
        grown = theirs["GE.to_initial_block.weight"]  # [w, channels, 4, 4] of a transposed convolution of one pixel
        ours["input.affine.weight"] = grown.flatten(1).T
        ours["input.affine.bias"] = torch.zeros(grown[0].numel())
    attention = []
    for level in range(n_levels):
        block, name = f"GE.blocks.{level}", f"b{BASE * 2**level}"
        for number in ("1", "2"):
            ours[f"{name}.conv{number}.weight"] = theirs[f"{block}.conv{number}.weight"]
            ours |= _style(f"{name}.conv{number}.affine", theirs, f"{block}.to_style{number}")
            for kind in ("weight", "bias"):
                ours[f"{name}.conv{number}.noise.{kind}"] = theirs[f"{block}.to_noise{number}.{kind}"]
        ours[f"{name}.torgb.weight"] = theirs[f"{block}.to_rgb.conv.weight"]
        ours |= _style(f"{name}.torgb.affine", theirs, f"{block}.to_rgb.to_style")
        inner = _attention(ours, f"{name}.attention", theirs, f"GE.attns.{level}")
        attention.append(inner)
    config = {
        "widths": [len(theirs[f"GE.blocks.{level}.conv1.weight"]) for level in range(n_levels)],
        "w_dim": w_dim,
        "mapping_layers": n_mapping,
        "input_width": len(theirs["GE.initial_conv.bias"]),
        "channels": len(theirs["GE.blocks.0.to_rgb.conv.weight"]),
        "has_const": has_const,
        "attention": attention,
    }
    return config, {key: value.float().contiguous() for key, value in ours.items()}


def _count(tensors: Mapping[str, Tensor], pattern: str, step: int) -> int:
    count = 0
    while pattern.format(step * count) in tensors:
        count += 1
    return count


def _style(name: str, theirs: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    return {f"{name}.weight": theirs[f"{key}.weight"], f"{name}.bias": theirs[f"{key}.bias"] + 1.0}


def _attention(ours: dict[str, Tensor], name: str, theirs: Mapping[str, Tensor], key: str) -> int:
    """Copy the attention before a block, where there is one; return its inner channels, else 0."""
    if not any(each.startswith(f"{key}.") for each in theirs):
        return 0
    places = {
        "norm1": "0.fn.norm",
        "query": "0.fn.fn.to_q",
        "around": "0.fn.fn.to_kv.net.0",
        "key_value": "0.fn.fn.to_kv.net.1",
        "out": "0.fn.fn.to_out",
        "norm2": "1.fn.norm",
        "widen": "1.fn.fn.0",
        "narrow": "1.fn.fn.2",
    }
    for mine, place in places.items():
        for kind in ("g", "b") if mine.startswith("norm") else ("weight", "bias"):
            if f"{key}.{place}.{kind}" in theirs:
                ours[f"{name}.{mine}.{kind}"] = theirs[f"{key}.{place}.{kind}"]
    return len(theirs[f"{key}.0.fn.fn.to_q.weight"])
