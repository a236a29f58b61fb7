"""StyleGAN (Karras, Laine, Aila, CVPR 2019, arXiv 1812.04948): genforce's and rosinality's files.

A constant of 4x4 pixels passes one convolution after another; after each come noise, bias, leaky ReLU, instance
normalisation, and AdaIN: x becomes gamma x + beta, with (gamma, beta) an affine function of w.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..frozen import doubling, kept, summed_taps
from ..generator import Layer, Layout, State, needs
from .ops import (
    MappingNetwork,
    StyleBased,
    StyleInput,
    StyleInputs,
    check_alpha,
    check_options,
    levels_used,
    noise_maps,
    read_into,
    rgb_levels,
)

SLOPE = 0.2  # of every leaky ReLU
BASE = 4  # pixels of the constant
GENFORCE, ROSINALITY = "genforce/genforce (StyleGAN)", "rosinality/style-based-gan-pytorch"


@dataclass(frozen=True)
class StyleGAN1Config:
    """What fixes the shape of a StyleGAN, and the constants that its weights do not carry."""

    widths: tuple[int, ...]
    """Channels at 4, 8, 16, ... pixels; the last level gives the image."""
    mapping_widths: tuple[int, ...]
    """Outputs of the mapping network's layers; the last is the length of w."""
    z_dim: int = 512
    """Length of z."""
    n_labels: int = 0
    """Classes of a conditional mapping network."""
    channels: int = 3
    """Channels of an image."""
    fused_from: int | None = 128
    """Resolution from which doubling the size is part of the convolution; None: nowhere."""
    norm_eps: float = 1e-8
    """What instance normalisation adds to the variance."""
    blurs_bias: bool = False
    """Whether an up-convolution's bias stands before its blur, not after the noise."""
    shares_noise: bool = False
    """Whether both layers of a level read the same noise."""
    alpha: float = 1.0
    """Share of the last level in the image; the level before gives the rest."""
    has_w_avg: bool = True
    """Whether the average w is stored; else it is the mean of many mapped codes."""

    def __post_init__(self) -> None:
        for name in ("widths", "mapping_widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_alpha(self.alpha, len(self.widths))

    @property
    def resolution(self) -> int:
        """Height and width of an image in pixels."""
        return BASE * 2 ** (len(self.widths) - 1)

    @property
    def w_dim(self) -> int:
        """Length of w."""
        return self.mapping_widths[-1]


class StyledLayer(nn.Module):
    """The constant or a convolution, then noise, bias, leaky ReLU, instance normalisation and AdaIN.

    Args:
        in_channels: of the features that come; None makes the constant.
        channels, resolution: of the features that it gives.
        doubles: whether it doubles the size, and blurs.
        config: the constants.
    """

    def __init__(
        self, in_channels: int | None, channels: int, resolution: int, *, doubles: bool, config: StyleGAN1Config
    ) -> None:
        super().__init__()
        self.is_fused = doubles and config.fused_from is not None and resolution >= config.fused_from
        self.doubles, self.eps, self.blurs_bias = doubles, config.norm_eps, doubles and config.blurs_bias
        if in_channels is None:
            self.const = nn.Parameter(torch.zeros(1, channels, resolution, resolution))
        else:
            shape = (in_channels, channels, 4, 4) if self.is_fused else (channels, in_channels, 3, 3)
            self.weight = nn.Parameter(torch.zeros(shape))
        self.blur: Tensor
        if doubles:
            taps = torch.tensor([0.25, 0.5, 0.25])
            self.register_buffer("blur", torch.outer(taps, taps))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.noise_weight = nn.Parameter(torch.zeros(channels))
        self.register_buffer("noise", torch.zeros(1, 1, resolution, resolution))

    def convolved(self, x: Tensor | None, batch: int) -> Tensor:
        """Return the constant, or the convolution of x at the layer's resolution."""
        if x is None:
            return self.const.expand(batch, -1, -1, -1)
        bias = self.bias if self.blurs_bias else None
        if self.is_fused:
            x = F.conv_transpose2d(x, self.weight, bias, stride=2, padding=1)
        elif self.doubles:
            weight = self.weight
            kernel = kept(weight, "doubling", lambda: doubling(weight).contiguous(), weight)
            x = F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
        else:
            x = F.conv2d(x, self.weight, bias, padding=1)
        if self.doubles:
            channels = x.shape[1]
            x = F.conv2d(x, self.blur.expand(channels, 1, 3, 3), padding=1, groups=channels)
        return x

    def forward(self, x: Tensor | None, style: Tensor, noise: Tensor | None) -> Tensor:
        """Return features [batch, channels, r, r] for x, styles [batch, 2 * channels] and noise [.., 1, r, r]."""
        x = self.convolved(x, len(style))
        if noise is not None:
            x = x + noise * self.noise_weight.view(1, -1, 1, 1)
        if not self.blurs_bias:
            x = x + self.bias.view(1, -1, 1, 1)
        x = F.leaky_relu(x, SLOPE)
        x = x - x.mean((2, 3), keepdim=True)
        x = x * (x.square().mean((2, 3), keepdim=True) + self.eps).rsqrt()
        gamma, beta = style[:, :, None, None].chunk(2, dim=1)
        return gamma * x + beta


class StyleGAN1Network(nn.Module):
    """The mapping network, the layers at 4, 4, 8, 8, ... pixels, and the last 1x1 convolutions to RGB."""

    def __init__(self, config: StyleGAN1Config) -> None:
        super().__init__()
        self.config = config
        self.mapping = MappingNetwork(config.z_dim, config.mapping_widths, config.n_labels)
        self.register_buffer("w_avg", torch.zeros(config.w_dim) if config.has_w_avg else None)
        layers: list[StyledLayer] = []
        for level, width in enumerate(config.widths):
            before, size = (config.widths[level - 1] if level else None), BASE * 2**level
            layers.append(StyledLayer(before, width, size, doubles=level > 0, config=config))
            layers.append(StyledLayer(width, width, size, doubles=False, config=config))
        self.layers = nn.ModuleList(layers)
        self.affines = nn.ModuleList(nn.Linear(config.w_dim, 2 * len(layer.bias)) for layer in layers)
        self.rgb = nn.Conv2d(config.widths[-1], config.channels, 1)
        self.rgb_before = nn.Conv2d(config.widths[-2], config.channels, 1) if config.alpha < 1.0 else None


class StyleGAN1(StyleBased):
    """A StyleGAN as a Generator with the spaces z, w, w+ (one slot a layer, two a resolution) and s.

    Truncation pulls w to the stored average; rosinality's files hold none, so it is the mean of 20,000 mapped codes of
    seed 0. They hold no noise either: the stored noise is drawn once from a fixed seed. A file that stopped in the
    midst of growing gives images of the resolution, and with the blend, that it had reached.
    """

    family: ClassVar[str] = "stylegan1"
    has_noise: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            GENFORCE,
            ("models.generator_smooth", "generator_smooth", "models.generator", "generator", ""),
            needs(
                "mapping.dense0.weight",
                "synthesis.layer0.const",
                "synthesis.layer1.style.weight",
                "synthesis.layer1.apply_noise.weight",
            ),
        ),
        Layout(
            ROSINALITY,
            ("g_running", "", "generator"),
            needs(
                "style.1.linear.weight_orig",
                "generator.progression.0.conv1.input",
                "generator.progression.0.adain1.style.linear.weight_orig",
                "generator.to_rgb.0.conv.weight_orig",
            ),
        ),
    )
    network: StyleGAN1Network

    def __init__(self, network: StyleGAN1Network, *, name: str, **about: Any) -> None:
        config = network.config
        layers = [
            Layer(f"b{BASE * 2**level}.{piece}", BASE * 2**level, width, 2 * level + half)
            for level, width in enumerate(config.widths)
            for half, piece in enumerate(("conv0" if level else "const", "conv1"))
        ]
        super().__init__(
            network,
            styles=[StyleInput(layer.name, slot, 2 * layer.channels) for slot, layer in enumerate(layers)],
            n_slots=len(layers),
            z_dim=config.z_dim,
            name=name,
            layers=[*layers, Layer(f"b{config.resolution}.torgb", config.resolution, config.channels)],
            resolution=config.resolution,
            channels=config.channels,
            label_names=[str(label) for label in range(config.n_labels)],
            config=asdict(config),
            **about,
        )
        # means over channels-last pixels round ten times worse, and instance normalisation passes that on
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], **about: Any) -> StyleGAN1:
        """Rebuild a StyleGAN from our own files."""
        made = StyleGAN1Config(**config)
        return cls(read_into(lambda: StyleGAN1Network(made), tensors), **about)  # type: ignore[arg-type]

    @classmethod
    def from_foreign(
        cls, layout: str, tensors: dict[str, Tensor], checkpoint: Any, options: Mapping[str, Any], **about: Any
    ) -> StyleGAN1:
        """Read genforce's or rosinality's tensors.

        Args:
            layout: which of the two.
            tensors: their state dict.
            checkpoint: not read: the tensors tell all.
            options: `resolution` (by default the last one that training reached) and `alpha` (the blend of that level;
                rosinality's files do not tell it: 1), and of genforce's `fused_from` (128; None: no fused
                convolutions).
            about: name and origin.
        """
        read = {GENFORCE: _from_genforce, ROSINALITY: _from_rosinality}[layout]
        check_options(options, ("resolution", "alpha", "fused_from")[: 3 if layout == GENFORCE else 2], layout)
        try:
            config, ours = read(tensors, options)
        except KeyError as error:
            raise UserError(f"this file of {layout} lacks the tensor {error}; get a whole one") from error
        return cls.from_config(config, {key: value.float().contiguous() for key, value in ours.items()}, **about)

    def _noise(self, index: int, inputs: StyleInputs) -> Tensor | None:
        """Return the noise of a layer, [batch or 1, 1, r, r]; None where no row wants any."""
        layer, seeds = self.network.layers[index], inputs.noise_seeds
        if seeds is None:
            return layer.noise  # type: ignore[return-value]
        if all(seed < 0 for seed in seeds):
            return None
        stream = index - index % 2 if self.network.config.shares_noise else index
        return noise_maps(seeds, stream, self.layers[index].resolution).to(inputs.styles[0])

    def _layer(self, index: int, state: State, inputs: StyleInputs) -> State:
        network = self.network
        if index < len(network.layers):
            x = network.layers[index](state.features, inputs.styles[index], self._noise(index, inputs))
            before = network.rgb_before if index == len(network.layers) - 3 else None
            return State(index + 1, x, state.image if before is None else before(x))
        assert state.features is not None
        image = network.rgb(state.features)
        if state.image is not None:
            small = F.interpolate(state.image, scale_factor=2, mode="nearest")
            image = small.lerp(image, network.config.alpha)
        return State(index + 1, image)


# --- foreign files ----------------------------------------------------------------------------------------------------


def _linear(ours: dict[str, Tensor], name: str, weight: Tensor, bias: Tensor, gain: float, *, lr: float = 1.0) -> None:
    """Put an equalised linear layer or convolution with its factors applied: gain / sqrt(fan_in), learning rate."""
    ours[f"{name}.weight"] = weight * (gain * lr / math.sqrt(weight[0].numel()))
    ours[f"{name}.bias"] = bias * lr


def _from_genforce(theirs: dict[str, Tensor], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn genforce's names into ours.

    Convolutions have gain sqrt(2), styles 1; the mapping network learns at a hundredth; 1 is added to gamma.
    """
    n_levels = sum(f"synthesis.output{level}.weight" in theirs for level in range(20))
    n_dense = sum(f"mapping.dense{i}.weight" in theirs for i in range(64))
    lod = float(theirs.get("synthesis.lod", torch.zeros(())))
    used = levels_used(n_levels, n_levels - int(lod), options)
    blend = (1.0 - lod % 1.0) if used == n_levels - int(lod) else 1.0
    w_avg = theirs["truncation.w_avg"]
    w_dim = theirs["synthesis.layer0.style.weight"].shape[1]
    if w_avg.shape != (w_dim,) or theirs["synthesis.layer0.apply_noise.noise"].shape[1:] != (1, BASE, BASE):
        raise UserError("this StyleGAN maps z to w+ at once, or has noise by channel; w and spatial noise are read")
    config: dict[str, Any] = {
        "widths": [len(theirs[f"synthesis.layer{2 * level}.bias"]) for level in range(used)],
        "mapping_widths": [len(theirs[f"mapping.dense{i}.weight"]) for i in range(n_dense)],
        "z_dim": theirs["mapping.dense0.weight"].shape[1] // (2 if "mapping.label_weight" in theirs else 1),
        "n_labels": len(theirs["mapping.label_weight"]) if "mapping.label_weight" in theirs else 0,
        "channels": len(theirs["synthesis.output0.bias"]),
        "fused_from": options.get("fused_from", 128),
        "norm_eps": 1e-8,
        "alpha": options.get("alpha", blend),
    }
    ours = {"w_avg": w_avg}
    if config["n_labels"]:
        ours["mapping.label_rows"] = theirs["mapping.label_weight"]
    for i in range(n_dense):
        weight, bias = theirs[f"mapping.dense{i}.weight"], theirs[f"mapping.dense{i}.bias"]
        _linear(ours, f"mapping.layers.{i}", weight, bias, math.sqrt(2.0), lr=0.01)
    for index in range(2 * used):
        source, name = f"synthesis.layer{index}.", f"layers.{index}"
        if index == 0:
            ours["layers.0.const"], ours["layers.0.bias"] = theirs[source + "const"], theirs[source + "bias"]
        else:
            _linear(ours, name, theirs[source + "weight"], theirs[source + "bias"], math.sqrt(2.0))
        if index and index % 2 == 0:
            ours[f"{name}.blur"] = theirs[source + "blur.kernel"][0, 0]
            if config["fused_from"] is not None and BASE * 2 ** (index // 2) >= config["fused_from"]:
                ours[f"{name}.weight"] = summed_taps(ours[f"{name}.weight"].transpose(0, 1))
        ours[f"{name}.noise"] = theirs[source + "apply_noise.noise"]
        ours[f"{name}.noise_weight"] = theirs[source + "apply_noise.weight"]
        _linear(ours, f"affines.{index}", theirs[source + "style.weight"], theirs[source + "style.bias"], 1.0)
        ours[f"affines.{index}.bias"] = ours[f"affines.{index}.bias"] + _ones_for_gamma(config["widths"][index // 2])
    for name, level in rgb_levels(used, config["alpha"]):
        source = f"synthesis.output{level}."
        _linear(ours, name, theirs[source + "weight"], theirs[source + "bias"], 1.0)
    return config, ours


def _ones_for_gamma(width: int) -> Tensor:
    return torch.cat([torch.ones(width), torch.zeros(width)])


def _from_rosinality(theirs: dict[str, Tensor], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn rosinality's names into ours.

    Every weight, the noise's too, has gain sqrt(2); biases have none. Whatever the training reached, a file holds all
    levels that the code knows; what no training touched still has the zero bias that it began with.
    """
    n_levels = sum(f"generator.to_rgb.{level}.conv.bias" in theirs for level in range(20))
    trained = [i for i in range(n_levels) if theirs[f"generator.to_rgb.{i}.conv.bias"].any()]
    used = levels_used(n_levels, max(trained, default=n_levels - 1) + 1, options)
    dense = [i for i in range(1, 128, 2) if f"style.{i}.linear.weight_orig" in theirs]
    is_fused = [f"generator.progression.{level}.conv1.0.weight" in theirs for level in range(used)]
    config: dict[str, Any] = {
        "widths": [len(theirs[f"generator.progression.{level}.conv2.conv.bias"]) for level in range(used)],
        "mapping_widths": [len(theirs[f"style.{i}.linear.bias"]) for i in dense],
        "z_dim": theirs["style.1.linear.weight_orig"].shape[1],
        "channels": len(theirs["generator.to_rgb.0.conv.bias"]),
        "fused_from": BASE * 2 ** is_fused.index(True) if any(is_fused) else None,
        "norm_eps": 1e-5,
        "blurs_bias": True,
        "shares_noise": True,
        "alpha": options.get("alpha", 1.0),
        "has_w_avg": False,
    }
    gain = math.sqrt(2.0)
    ours: dict[str, Tensor] = {}
    for i, key in enumerate(dense):
        weight, bias = theirs[f"style.{key}.linear.weight_orig"], theirs[f"style.{key}.linear.bias"]
        _linear(ours, f"mapping.layers.{i}", weight, bias, gain)
    for index in range(2 * used):
        level, half = divmod(index, 2)
        source, name, half = f"generator.progression.{level}.", f"layers.{index}", half + 1
        if index == 0:
            const = theirs[source + "conv1.input"]
            ours["layers.0.const"], ours["layers.0.bias"] = const, torch.zeros(const.shape[1])
        elif half == 1 and is_fused[level]:
            weight = theirs[source + "conv1.0.weight"]  # [in, out, 3, 3]
            scale = gain / math.sqrt(weight[:, 0].numel())
            ours[f"{name}.weight"] = summed_taps(weight * scale) / 4
            ours[f"{name}.bias"] = theirs[source + "conv1.0.bias"]
            ours[f"{name}.blur"] = theirs[source + "conv1.1.weight"][0, 0]
        else:
            conv = source + ("conv1.1.conv." if half == 1 else "conv2.conv.")
            _linear(ours, name, theirs[conv + "weight_orig"], theirs[conv + "bias"], gain)
            if half == 1:
                ours[f"{name}.blur"] = theirs[source + "conv1.2.weight"][0, 0]
        noise = theirs[source + f"noise{half}.weight_orig"].flatten()
        ours[f"{name}.noise_weight"] = noise * (gain / math.sqrt(len(noise)))
        ours[f"{name}.noise"] = noise_maps([0], 2 * level, BASE * 2**level)
        affine = source + f"adain{half}.style.linear."
        _linear(ours, f"affines.{index}", theirs[affine + "weight_orig"], theirs[affine + "bias"], gain)
    for name, level in rgb_levels(used, config["alpha"]):
        source = f"generator.to_rgb.{level}.conv."
        _linear(ours, name, theirs[source + "weight_orig"], theirs[source + "bias"], gain)
    return config, ours
