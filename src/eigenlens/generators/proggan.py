"""ProgGAN (Karras, Aila, Laine, Lehtinen, ICLR 2018, arXiv 1710.10196): genforce's and the GAN zoo's files.

Convolutions with leaky ReLU, two a resolution, of features whose pixels are normalised over the channels; sizes double
by repeating pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codes import Codes, Part, Space
from ..errors import UserError
from ..frozen import doubled_convolved, summed_taps
from ..generator import Generator, Layer, Layout, State, StyleMatrix, needs
from .ops import check_alpha, check_options, levels_used, pixel_norm, read_into, rgb_levels

BASE = 4  # pixels of the first feature map
GENFORCE, ZOO = "genforce/genforce (PGGAN)", "facebookresearch/pytorch_GAN_zoo (PGAN)"


@dataclass(frozen=True)
class ProgGANConfig:
    """What fixes the shape of a ProgGAN, and the constants that its weights do not carry."""

    widths: tuple[int, ...]
    """Channels at 4, 8, 16, ... pixels; the last level gives the image."""
    z_dim: int = 512
    """Length of z."""
    channels: int = 3
    """Channels of an image."""
    slope: float = 0.2
    """Of the leaky ReLUs, for negative values."""
    is_fused: bool = False
    """Whether doubling the size is part of a transposed convolution."""
    ends_with_tanh: bool = False
    """Whether a tanh bounds the image."""
    alpha: float = 1.0
    """Share of the last level in the image; the level before gives the rest."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        check_alpha(self.alpha, len(self.widths))

    @property
    def resolution(self) -> int:
        """Height and width of an image in pixels."""
        return BASE * 2 ** (len(self.widths) - 1)


class ProgGANNetwork(nn.Module):
    """The first linear layer, the convolutions at 4, 8, 8, ... pixels, and the last 1x1 convolutions to RGB."""

    def __init__(self, config: ProgGANConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.base = nn.Linear(config.z_dim, widths[0] * BASE * BASE)
        convs: list[nn.Module] = [nn.Conv2d(widths[0], widths[0], 3, padding=1)]
        for before, width in itertools.pairwise(widths):
            fused = nn.ConvTranspose2d(before, width, 4, stride=2, padding=1)
            convs.append(fused if config.is_fused else nn.Conv2d(before, width, 3, padding=1))
            convs.append(nn.Conv2d(width, width, 3, padding=1))
        self.convs = nn.ModuleList(convs)
        self.rgb = nn.Conv2d(widths[-1], config.channels, 1)
        self.rgb_before = nn.Conv2d(widths[-2], config.channels, 1) if config.alpha < 1.0 else None

    def from_latent(self, z: Tensor) -> Tensor:
        """Return the first features [batch, c, 4, 4] for z [batch, z_dim]."""
        x = self.base(pixel_norm(z)).view(len(z), -1, BASE, BASE)
        return F.leaky_relu(x, self.config.slope)

    def advanced(self, index: int, x: Tensor) -> Tensor:
        """Return the same as `convolved`, for frozen weights: doubling is in the kernel."""
        conv, x = self.convs[index], pixel_norm(x, dim=1)
        if index % 2 and not self.config.is_fused:
            return F.leaky_relu(doubled_convolved(conv, x), self.config.slope, inplace=True)  # type: ignore[arg-type]
        return F.leaky_relu(conv(x), self.config.slope, inplace=True)

    def convolved(self, index: int, x: Tensor) -> Tensor:
        """Return the features after convolution `index`, which doubles the size where it is odd."""
        x = pixel_norm(x, dim=1)
        if index % 2 and not self.config.is_fused:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.leaky_relu(self.convs[index](x), self.config.slope)

    def to_image(self, x: Tensor, before: Tensor | None) -> Tensor:
        """Return images for the last features, blended with the smaller image of the level before."""
        image = self.rgb(pixel_norm(x, dim=1))
        if before is not None:
            image = F.interpolate(before, scale_factor=2, mode="nearest").lerp(image, self.config.alpha)
        return torch.tanh(image) if self.config.ends_with_tanh else image


class ProgGAN(Generator):
    """A ProgGAN as a Generator with one space, z, of one slot, which is normalised before it enters `layer0`.

    A file that stopped in the midst of growing gives images of the resolution, and with the blend, that it had reached.
    """

    family: ClassVar[str] = "proggan"
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            GENFORCE,
            ("models.generator_smooth", "generator_smooth", "models.generator", "generator", ""),
            needs("layer0.weight", "layer0.bias", "layer1.weight", "output0.weight", "output0.bias"),
        ),
        Layout(
            ZOO,
            ("avgG", "netG", ""),
            needs("formatLayer.module.weight", "groupScale0.0.module.weight", "toRGBLayers.0.module.weight"),
        ),
    )
    network: ProgGANNetwork

    def __init__(self, network: ProgGANNetwork, *, name: str, **about: Any) -> None:
        config = network.config
        layers = [
            Layer(f"layer{2 * level + half}", BASE * 2**level, width, None if level or half else 0)
            for level, width in enumerate(config.widths)
            for half in (0, 1)
        ]
        part = Part("all", 0, 0, 0, config.z_dim, ("layer0",))
        super().__init__(
            network,
            name=name,
            spaces={"z": Space("z", 1, config.z_dim, (part,))},
            layers=[*layers, Layer("rgb", config.resolution, config.channels)],
            resolution=config.resolution,
            channels=config.channels,
            config=asdict(config),
            **about,
        )
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], **about: Any) -> ProgGAN:
        """Rebuild a ProgGAN from our own files."""
        made = ProgGANConfig(**config)
        return cls(read_into(lambda: ProgGANNetwork(made), tensors), **about)  # type: ignore[arg-type]

    @classmethod
    def from_foreign(
        cls, layout: str, tensors: dict[str, Tensor], checkpoint: Any, options: Mapping[str, Any], **about: Any
    ) -> ProgGAN:
        """Read genforce's or the GAN zoo's tensors.

        Args:
            layout: which of the two.
            tensors: their state dict.
            checkpoint: of the GAN zoo's files `config` is read, where it is there.
            options: `resolution` (by default the last one that training reached), `alpha` (the blend of that level)
                and, of genforce's, `fused_scale` (False).
            about: name and origin.
        """
        known = ("resolution", "alpha", "fused_scale") if layout == GENFORCE else ("resolution", "alpha")
        check_options(options, known, layout)
        try:
            if layout == GENFORCE:
                config, ours = _from_genforce(tensors, options)
            else:
                settings = checkpoint.content.get("config")
                config, ours = _from_zoo(tensors, settings if isinstance(settings, Mapping) else {}, options)
        except KeyError as error:
            raise UserError(f"this file of {layout} lacks the tensor {error}; get a whole one") from error
        return cls.from_config(config, {key: value.float().contiguous() for key, value in ours.items()}, **about)

    def _inputs(self, codes: Codes) -> Tensor:
        return codes.latent[:, 0]

    def _layer(self, index: int, state: State, inputs: Tensor) -> State:
        network = self.network
        if index == 0:
            return State(1, network.from_latent(inputs).contiguous(memory_format=torch.channels_last))
        assert state.features is not None
        if index == len(self.layers) - 1:
            return State(index + 1, network.to_image(state.features, state.image))
        x = network.advanced(index - 1, state.features)
        before = network.rgb_before if index == len(self.layers) - 4 else None
        return State(index + 1, x, state.image if before is None else before(pixel_norm(x, dim=1)))

    def style_matrices(self, layers: str = "all") -> dict[str, StyleMatrix]:
        """Return the first layer as a matrix [channels * 16, z_dim]; it multiplies the normalised z."""
        (part,) = self.style_space.picked(layers)
        return {"layer0": StyleMatrix(self.network.base.weight, part)}


# --- foreign files ----------------------------------------------------------------------------------------------------


def _from_genforce(theirs: dict[str, Tensor], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn genforce's names into ours; its factors, sqrt(2 / fan_in) and at the output 1, are put into the weights.

    `layer0` is a convolution of one pixel with padding 3, that is, its 4x4 kernel turned round.
    """
    n_levels = sum(f"output{level}.weight" in theirs for level in range(20))
    lod = float(theirs.get("lod", torch.zeros(())))
    reached = n_levels - int(lod)
    used = levels_used(n_levels, reached, options)
    first = theirs["layer0.weight"]
    config = {
        "widths": [len(theirs[f"layer{2 * level}.bias"]) for level in range(used)],
        "z_dim": first.shape[1],
        "channels": len(theirs["output0.bias"]),
        "is_fused": bool(options.get("fused_scale", False)),
        "alpha": options.get("alpha", 1.0 - lod % 1.0 if used == reached else 1.0),
    }
    scaled = {
        "base.weight": first.flip(2, 3).movedim(1, 3).flatten(0, 2) * math.sqrt(2 / (16 * first.shape[1])),
        "base.bias": theirs["layer0.bias"].repeat_interleave(BASE * BASE),
    }
    for index in range(1, 2 * used):
        weight, is_up = theirs[f"layer{index}.weight"], index % 2 == 0
        if is_up and config["is_fused"]:  # [in, out, 3, 3]
            scaled[f"convs.{index - 1}.weight"] = summed_taps(weight * math.sqrt(2 / (9 * len(weight))))
        else:
            scaled[f"convs.{index - 1}.weight"] = weight * math.sqrt(2 / weight[0].numel())
        scaled[f"convs.{index - 1}.bias"] = theirs[f"layer{index}.bias"]
    for name, level in rgb_levels(used, config["alpha"]):
        weight = theirs[f"output{level}.weight"]
        scaled[f"{name}.weight"] = weight / math.sqrt(weight[0].numel())
        scaled[f"{name}.bias"] = theirs[f"output{level}.bias"]
    return config, scaled


def _from_zoo(
    theirs: dict[str, Tensor], settings: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn the GAN zoo's names into ours; its factor sqrt(2 / fan_in) multiplies weights and biases, the output's too.

    It normalises after each leaky ReLU, which is before each convolution; its alpha is the share of the level before.
    """
    if settings.get("categoryVectorDim"):
        raise UserError("this GAN zoo file is conditional (AC-GAN); unconditional ones are read")
    n_levels = sum(f"toRGBLayers.{level}.module.weight" in theirs for level in range(20))
    used = levels_used(n_levels, n_levels, options)
    base = theirs["formatLayer.module.weight"]
    blend = float(settings.get("alpha") or 0.0) if used == n_levels > 1 else 0.0
    names = {"base": "formatLayer", "convs.0": "groupScale0.0"}
    for level in range(1, used):
        for half in (0, 1):
            names[f"convs.{2 * level - 1 + half}"] = f"scaleLayers.{level - 1}.{half}"
    config = {
        "widths": [len(base) // BASE**2] + [len(theirs[f"scaleLayers.{i}.0.module.bias"]) for i in range(used - 1)],
        "z_dim": base.shape[1],
        "channels": len(theirs["toRGBLayers.0.module.bias"]),
        "slope": float(settings.get("leakyReluLeak", 0.2)),
        "ends_with_tanh": settings.get("lossCriterion", "WGANGP") in ("MSE", "DCGAN"),
        "alpha": options.get("alpha", 1.0 - blend),
    }
    names |= {name: f"toRGBLayers.{level}" for name, level in rgb_levels(used, config["alpha"])}
    ours = {}
    for name, source in names.items():
        weight, bias = theirs[f"{source}.module.weight"], theirs[f"{source}.module.bias"]
        gain = math.sqrt(2 / weight[0].numel()) if settings.get("equalizedlR", True) else 1.0
        ours[f"{name}.weight"], ours[f"{name}.bias"] = weight * gain, bias * gain
    return config, ours
