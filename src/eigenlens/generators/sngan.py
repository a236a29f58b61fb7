"""SNGAN: the residual generator of Miyato et al. (ICLR 2018, arXiv 1802.05957, appendix B).

GANLatentDiscovery stores it as a folder of `args.json` and `generator.pt`; widths and depth are read from the tensors.
Space: `z`, one slot, which enters the first linear layer alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codes import Codes, Part, Space
from ..errors import UserError, unknown_name
from ..frozen import computed_in, doubled_convolved, in_precision, normed
from ..generator import Generator, Layer, Layout, State, StyleMatrix, needs
from .ops import read_into

OPTIONS = ("bn_eps",)


@dataclass(frozen=True)
class SNGANConfig:
    """What fixes the shape of an SNGAN."""

    z_dim: int
    """Length of z."""
    base: int
    """Height and width of the first features in pixels."""
    widths: tuple[int, ...]
    """Channels before each block, and after the last."""
    bypass: tuple[bool, ...]
    """Whether the shortcut of each block has a convolution."""
    channels: int = 3
    """Channels of an image."""
    bn_eps: float = 1e-5
    """Added to the variance in batch normalisation."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "bypass", tuple(self.bypass))

    @property
    def resolution(self) -> int:
        """Height and width of an image."""
        return self.base * 2 ** len(self.bypass)


class Block(nn.Module):
    """Norm, ReLU, doubling, 3x3 convolution, norm, ReLU, 3x3 convolution; and a doubled shortcut."""

    def __init__(self, before: int, after: int, *, has_bypass: bool, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before, eps), nn.BatchNorm2d(after, eps)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.bypass = nn.Conv2d(before, after, 3, padding=1) if has_bypass else None

    def forward(self, x: Tensor) -> Tensor:
        """Return features of twice the size."""
        h = self.conv1(_doubled(F.relu(self.norm1(x))))
        h = self.conv2(F.relu(self.norm2(h)))
        x = _doubled(x)
        return h + (x if self.bypass is None else self.bypass(x))


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def advanced(block: Block, x: Tensor) -> Tensor:
    """Return what a frozen block gives: doubling and the second norm are in the kernel of the first convolution."""
    h = F.relu(doubled_convolved(block.conv1, F.relu(normed(block.norm1, x), inplace=True), block.norm2), inplace=True)
    h = F.conv2d(h, in_precision(block.conv2.weight, computed_in(h)), block.conv2.bias, padding=1)
    return h + (_doubled(x) if block.bypass is None else doubled_convolved(block.bypass, x))


class SNGANNetwork(nn.Module):
    """The network."""

    def __init__(self, config: SNGANConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.z_dim, config.widths[0] * config.base**2)
        self.blocks = nn.ModuleList(
            Block(config.widths[i], config.widths[i + 1], has_bypass=has_bypass, eps=config.bn_eps)
            for i, has_bypass in enumerate(config.bypass)
        )
        self.norm = nn.BatchNorm2d(config.widths[-1], config.bn_eps)
        self.rgb = nn.Conv2d(config.widths[-1], config.channels, 3, padding=1)


class SNGAN(Generator):
    """An SNGAN with the layers `base`, `block1` ..., `rgb`."""

    family: ClassVar[str] = "sngan"
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "anvoynov/GANLatentDiscovery",
            ("weights", "generator", "state_dict", ""),
            needs("model.0.weight", "model.2.conv1.weight", "model.2.model.0.running_mean", "model.2.model.4.weight"),
        ),
    )
    network: SNGANNetwork

    def __init__(self, network: SNGANNetwork, *, name: str, **about: Any) -> None:
        config = network.config
        layers = [Layer("base", config.base, config.widths[0], 0)]
        for number, width in enumerate(config.widths[1:], start=1):
            layers.append(Layer(f"block{number}", config.base * 2**number, width))
        layers.append(Layer("rgb", config.resolution, config.channels))
        super().__init__(
            network,
            name=name,
            spaces={"z": Space("z", 1, config.z_dim, (Part("all", 0, 0, 0, config.z_dim, ("base",)),))},
            layers=layers,
            resolution=config.resolution,
            channels=config.channels,
            config=asdict(config),
            **about,
        )
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], **about: Any) -> SNGAN:
        """Rebuild an SNGAN from our own files."""
        made = SNGANConfig(**config)
        return cls(read_into(lambda: SNGANNetwork(made), tensors), **about)  # type: ignore[arg-type]

    @classmethod
    def from_foreign(
        cls, layout: str, tensors: dict[str, Tensor], checkpoint: Any, options: Mapping[str, Any], **about: Any
    ) -> SNGAN:
        """Read the tensors of `generator.pt`; the one option is `bn_eps` (1e-5)."""
        unknown = [option for option in options if option not in OPTIONS]
        if unknown:
            raise unknown_name("option of an SNGAN file", unknown[0], OPTIONS)
        try:
            eps = float(options.get("bn_eps", 1e-5))
        except ValueError as error:
            raise UserError(f"bn_eps {options['bn_eps']!r} is not a number; give one such as 1e-5") from error
        try:
            config, ours = _from_discovery(tensors, eps)
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise UserError(f"{about.get('name')}: the file lacks {error} of the layout {layout}") from error
        told = checkpoint.sidecar.get("latent_dim", config["z_dim"])
        if told != config["z_dim"]:
            raise UserError(f"args.json says latent_dim {told}, but the weights take {config['z_dim']}; mend args.json")
        return cls.from_config(config, ours, **about)

    def _inputs(self, codes: Codes) -> Tensor:
        return codes.latent[:, 0]

    def _layer(self, index: int, state: State, inputs: Tensor) -> State:
        config = self.network.config
        if index == 0:
            h = self.network.linear(inputs).unflatten(1, (-1, config.base, config.base))
            return State(1, h.contiguous(memory_format=torch.channels_last))
        assert state.features is not None
        if index <= len(config.bypass):
            return State(index + 1, advanced(self.network.blocks[index - 1], state.features))  # type: ignore[arg-type]
        return State(index + 1, torch.tanh(self.network.rgb(F.relu(normed(self.network.norm, state.features)))))

    def style_matrices(self, layers: str = "all") -> dict[str, StyleMatrix]:
        """Return the matrix of the first linear layer, [width * base², z_dim]."""
        (part,) = self.spaces["z"].picked(layers)
        return {"base": StyleMatrix(self.network.linear.weight, part)}


def _from_discovery(tensors: Mapping[str, Tensor], eps: float) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn their names into ours: `model` is a Sequential of Linear, Reshape, blocks, norm, ReLU, convolution, tanh.

    Each convolution of a block stands in the file twice, as `conv1` and as `model.3`.
    """
    numbers = sorted(int(key.split(".")[1]) for key in tensors if key.endswith(".conv1.weight"))
    norm, rgb = f"model.{numbers[-1] + 1}", f"model.{numbers[-1] + 3}"
    widths = [tensors[f"model.{number}.conv1.weight"].shape[1] for number in numbers]
    widths.append(tensors[f"model.{numbers[-1]}.conv1.weight"].shape[0])
    linear = tensors["model.0.weight"]
    bypass = tuple(f"model.{number}.bypass.1.weight" in tensors for number in numbers)
    config = {
        "z_dim": linear.shape[1],
        "base": math.isqrt(linear.shape[0] // widths[0]),
        "widths": tuple(widths),
        "bypass": bypass,
        "channels": tensors[f"{rgb}.weight"].shape[0],
        "bn_eps": eps,
    }
    pairs = [("model.0", "linear"), (rgb, "rgb")]
    norms = [(norm, "norm")]
    for i, number in enumerate(numbers):
        theirs, ours = f"model.{number}", f"blocks.{i}"
        pairs += [(f"{theirs}.conv1", f"{ours}.conv1"), (f"{theirs}.conv2", f"{ours}.conv2")]
        pairs += [(f"{theirs}.bypass.1", f"{ours}.bypass")] if bypass[i] else []
        norms += [(f"{theirs}.model.0", f"{ours}.norm1"), (f"{theirs}.model.4", f"{ours}.norm2")]
    renamed = {
        f"{new}.{leaf}": tensors[f"{old}.{leaf}"].float() for old, new in pairs + norms for leaf in ("weight", "bias")
    }
    for old, new in norms:
        renamed[f"{new}.running_mean"] = tensors[f"{old}.running_mean"].float()
        renamed[f"{new}.running_var"] = tensors[f"{old}.running_var"].float()
        renamed[f"{new}.num_batches_tracked"] = torch.tensor(0)
    return config, renamed
