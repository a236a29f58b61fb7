"""MobileStyleGAN (Belousov 2021, arXiv 2104.04767), read from its OpenVINO networks.

A StyleGAN2 distilled into depthwise convolutions: sizes double by an inverse Haar transform, demodulation is a constant
inside the weights, and one last layer gives the wavelets of the image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..frozen import in_precision, is_traced
from ..generator import Layer, Layout, State
from .ops import MappingNetwork, StyleBased, StyleInput, StyleInputs, check_options, noise_maps, read_into

SLOPE = 0.2  # of every leaky ReLU
BASE = 4  # pixels of the constant
LAYOUT = "bes-dev/MobileStyleGAN.pytorch (OpenVINO)"


@dataclass(frozen=True)
class MobileStyleGANConfig:
    """What fixes the shape of a MobileStyleGAN."""

    widths: tuple[int, ...]
    """Channels at 4, 8, 16, ... pixels; all but the last are divisible by 4."""
    mapping_widths: tuple[int, ...]
    """Outputs of the mapping network's layers; the last is the length of w."""
    z_dim: int = 512
    """Length of z."""
    channels: int = 3
    """Channels of an image."""

    def __post_init__(self) -> None:
        for name in ("widths", "mapping_widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if any(width % 4 for width in self.widths[:-1]):
            raise UserError(f"widths {list(self.widths)} are not possible; all but the last are divisible by 4")

    @property
    def resolution(self) -> int:
        """Height and width of an image in pixels: twice those of the last features."""
        return BASE * 2 ** len(self.widths)

    @property
    def n_slots(self) -> int:
        """Slots of w+ of the StyleGAN2 of this resolution."""
        return 2 * len(self.widths) + 2


def from_haar(bands: Tensor) -> Tensor:
    """Return twice the inverse Haar transform [batch, c, 2h, 2w] of bands [batch, 4c, h, w].

    Args:
        bands: c low-pass channels, then c each with differences down, across, and both. The transform proper halves
            their sums; here the styles have done so.
    """
    low, down, across, both = bands.permute(0, 2, 3, 1).chunk(4, dim=3)  # [n, h, w, c] each: channels last
    even, odd = low + down, low - down
    even_step, odd_step = across + both, across - both
    n, h, w, c = low.shape
    if is_traced() or (bands.requires_grad and torch.is_grad_enabled()):
        top = torch.stack([even + even_step, even - even_step], dim=3)  # [n, h, w, 2, c]
        bottom = torch.stack([odd + odd_step, odd - odd_step], dim=3)
        return torch.stack([top, bottom], dim=2).view(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
    pixels = bands.new_empty(n, h, 2, w, 2, c)  # every sum is written where it belongs
    for row, (mean, step) in enumerate(((even, even_step), (odd, odd_step))):
        torch.add(mean, step, out=pixels[:, :, row, :, 0])
        torch.sub(mean, step, out=pixels[:, :, row, :, 1])
    return pixels.view(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


class MobileLayer(nn.Module):
    """A modulated convolution, depthwise and pointwise (at 4 px a full one), then noise, bias and leaky ReLU.

    Args:
        in_channels, channels: of the features; where the size doubles, those after the inverse transform.
        resolution: of the features that it gives.
        doubles: whether the features that come are wavelets.
    """

    def __init__(self, in_channels: int, channels: int, resolution: int, *, doubles: bool) -> None:
        super().__init__()
        self.doubles = doubles
        is_full = resolution == BASE
        self.depth = None if is_full else nn.Parameter(torch.zeros(in_channels, 1, 3, 3))
        self.weight = nn.Parameter(torch.zeros(channels, in_channels, *((3, 3) if is_full else (1, 1))))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("noise", torch.zeros(1, 1, resolution, resolution))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        """Return features [batch, channels, r, r]; `style` is that of the wavelets, where they come, then the other."""
        channels = self.weight.shape[1]
        depth: Tensor | None = self.depth
        bias = in_precision(self.bias, x.dtype)
        if self.doubles:
            bands, own = style[:, : 4 * channels], style[:, 4 * channels :]
            # the transform is linear in each channel: both styles act on the small features, and so does its half
            low, steps = (0.5 * bands * own.repeat(1, 4)).split([channels, 3 * channels], dim=1)
            x = from_haar(x * torch.cat([low, steps], dim=1).to(x.dtype)[:, :, None, None])
        elif depth is not None and not is_traced() and len(x) == 1:
            depth = depth * style.view(-1, 1, 1, 1)  # far smaller than the features
        else:
            x = x * style.to(x.dtype)[:, :, None, None]
        if depth is None:
            x = F.conv2d(x, in_precision(self.weight, x.dtype), bias, padding=1)
        else:
            x = F.conv2d(x, in_precision(depth, x.dtype), padding=1, groups=channels)
            x = F.conv2d(x, in_precision(self.weight, x.dtype), bias)
        x = x if noise is None else x.add_(noise.to(x.dtype))  # in place: no gradient needs what a convolution gave
        return F.leaky_relu(x, SLOPE, inplace=True)


class MobileStyleGANNetwork(nn.Module):
    """The mapping network, the constant, the layers at 4, 8, 8, 16, ... pixels, and the wavelets of the image."""

    def __init__(self, config: MobileStyleGANConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.mapping = MappingNetwork(config.z_dim, config.mapping_widths)
        self.register_buffer("w_avg", None)
        self.const = nn.Parameter(torch.zeros(1, widths[0], BASE, BASE))
        layers = [MobileLayer(widths[0], widths[0], BASE, doubles=False)]
        for level, width in enumerate(widths[1:], start=1):
            size = BASE * 2**level
            layers.append(MobileLayer(widths[level - 1] // 4, width, size, doubles=True))
            layers.append(MobileLayer(width, width, size, doubles=False))
        self.layers = nn.ModuleList(layers)
        self.image = nn.Conv2d(widths[-1], 4 * config.channels, 1)
        self.affines = nn.ModuleList(nn.Linear(config.mapping_widths[-1], length) for length in style_lengths(config))


def style_lengths(config: MobileStyleGANConfig) -> list[int]:
    """Return how long the style of each layer is: at a doubling, that of the wavelets and that of what they become."""
    lengths = [config.widths[0]]
    for before, width in itertools.pairwise(config.widths):
        lengths += [before + before // 4, width]
    return [*lengths, config.widths[-1]]


class MobileStyleGAN(StyleBased):
    """A MobileStyleGAN as a Generator with the spaces z, w, w+ and s.

    Its w is that of the StyleGAN2 that taught it, and w+ is numbered as that network's, so that published directions
    and layer ranges mean the same resolutions: slot 0 feeds the convolution at 4 px, slots 2k - 1 and 2k the two
    convolutions at 4 * 2^k px, and the last slot the image, as the last torgb. At 1024 px these are slots 0 to 14 and
    17 of 18. Slots 15 and 16 feed convolutions at 1024 px that this network lacks: they change nothing.

    In the authors' own numbering (23 indices at 1024 px) slot 0 is index 0, slots 2k - 1 and 2k are 3k - 2 and 3k - 1,
    and the last slot is 21, the image of the last level; the images of the other levels were left out of the network.

    The file holds each layer's noise times its strength: drawn noise has the root mean square of the stored one. It
    holds no average w, so truncation pulls to the mean of 20,000 mapped codes of seed 0.
    """

    family: ClassVar[str] = "mobilestylegan"
    has_noise: ClassVar[bool] = True
    network: MobileStyleGANNetwork

    @staticmethod
    def _missing(tensors: Mapping[str, Tensor]) -> list[str]:
        wanted = ("MappingNetwork", "SynthesisNetwork")
        return [f"{name}.xml" for name in wanted if not any(key.startswith(f"{name}.layers.") for key in tensors)]

    layouts: ClassVar[tuple[Layout, ...]] = (Layout(LAYOUT, ("weights",), _missing),)

    def __init__(self, network: MobileStyleGANNetwork, *, name: str, **about: Any) -> None:
        config = network.config
        layers = [Layer("b4.conv1", BASE, config.widths[0], 0)]
        for level, width in enumerate(config.widths[1:], start=1):
            size = BASE * 2**level
            layers.append(Layer(f"b{size}.conv0", size, width, 2 * level - 1))
            layers.append(Layer(f"b{size}.conv1", size, width, 2 * level))
        layers.append(Layer(f"b{config.resolution}.torgb", config.resolution, config.channels, config.n_slots - 1))
        lengths = style_lengths(config)
        styles = [StyleInput(layer.name, layer.part or 0, n) for layer, n in zip(layers, lengths, strict=True)]
        super().__init__(
            network,
            styles=styles,
            n_slots=config.n_slots,
            z_dim=config.z_dim,
            name=name,
            layers=layers,
            resolution=config.resolution,
            channels=config.channels,
            config=asdict(config),
            **about,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], **about: Any) -> MobileStyleGAN:
        """Rebuild a MobileStyleGAN from our own files."""
        made = MobileStyleGANConfig(**config)
        return cls(read_into(lambda: MobileStyleGANNetwork(made), tensors), **about)  # type: ignore[arg-type]

    @classmethod
    def from_foreign(
        cls, layout: str, tensors: dict[str, Tensor], checkpoint: Any, options: Mapping[str, Any], **about: Any
    ) -> MobileStyleGAN:
        """Read a folder with MappingNetwork.xml and SynthesisNetwork.xml, their numbers beside them."""
        check_options(options, (), layout)
        networks = checkpoint.content["weights"]
        try:
            config, ours = _from_graphs(Graph(networks["MappingNetwork"]), Graph(networks["SynthesisNetwork"]))
        except (KeyError, IndexError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{checkpoint.path} holds OpenVINO networks, but no MobileStyleGAN that is known: {error}; "
                "those of the package random_face are read"
            ) from error
        return cls.from_config(config, {key: value.float().contiguous() for key, value in ours.items()}, **about)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return nullcontext()  # layers compute in the precision of the first features, styles in float32

    def _noise(self, index: int, inputs: StyleInputs) -> Tensor | None:
        """Return the noise of a layer with its strength, [batch or 1, 1, r, r]; None where no row wants any."""
        stored: Tensor = self.network.layers[index].noise  # type: ignore[assignment]
        seeds = inputs.noise_seeds
        if seeds is None:
            return stored
        if all(seed < 0 for seed in seeds):
            return None
        return noise_maps(seeds, index, stored.shape[-1]).to(stored) * stored.square().mean().sqrt()

    def _layer(self, index: int, state: State, inputs: StyleInputs) -> State:
        network, style = self.network, inputs.styles[index]
        x = state.features if index else network.const.to(self._dtype).expand(len(style), -1, -1, -1)
        assert x is not None
        if index < len(network.layers):
            return State(index + 1, network.layers[index](x, style, self._noise(index, inputs)))
        assert network.image.bias is not None
        weight, bias = 0.5 * network.image.weight, (0.5 * network.image.bias).to(x.dtype)
        if is_traced():
            return State(index + 1, from_haar(F.conv2d(x * style[:, :, None, None], weight, bias)))
        kernels = weight * style[:, None, :, None, None]  # [n, 4 channels, c, 1, 1]: far smaller than the features
        bands = [F.conv2d(row, kernel.to(x.dtype), bias) for row, kernel in zip(x.split(1), kernels, strict=True)]
        return State(index + 1, from_haar((bands[0] if len(bands) == 1 else torch.cat(bands)).float()))


# --- OpenVINO networks ------------------------------------------------------------------------------------------------


class Graph:
    """The layers of an OpenVINO network, and which reads which.

    Args:
        network: `layers` and `edges`, as `checkpoint` reads them.
    """

    def __init__(self, network: Mapping[str, Any]) -> None:
        self.layers: dict[int, dict[str, Any]] = {layer["id"]: layer for layer in network["layers"]}
        self.named = {layer["name"]: number for number, layer in self.layers.items()}
        self.inputs: dict[int, list[int]] = {number: [] for number in self.layers}
        self.readers: dict[int, list[int]] = {number: [] for number in self.layers}
        for edge in sorted(network["edges"], key=lambda edge: edge["to_port"]):
            self.inputs[edge["to_layer"]].append(edge["from_layer"])
            self.readers[edge["from_layer"]].append(edge["to_layer"])

    def of_type(self, kind: str) -> list[int]:
        """Return the layers of a type, in the order of the file."""
        return [number for number, layer in self.layers.items() if layer["type"] == kind]

    def only(self, numbers: Sequence[int], kind: str, after: int) -> int:
        """Return the one among `numbers` that is of a type."""
        found = [number for number in numbers if self.layers[number]["type"] == kind]
        if len(found) != 1:
            raise UserError(
                f"{len(found)} layers of type {kind} are next to {self.layers[after]['name']}, where 1 should"
            )
        return found[0]

    def reader(self, number: int, kind: str) -> int:
        """Return the one layer of a type that reads layer `number`."""
        return self.only(self.readers[number], kind, number)

    def source(self, number: int, kind: str) -> int:
        """Return the one layer of a type that layer `number` reads."""
        return self.only(self.inputs[number], kind, number)

    def constant(self, number: int) -> Tensor | None:
        """Return the constant that a layer reads, perhaps reshaped; None where it reads none."""
        for source in self.inputs[number]:
            while self.layers[source]["type"] == "Reshape":
                source = self.inputs[source][0]
            if self.layers[source]["tensor"] is not None:
                return self.layers[source]["tensor"]
        return None

    def tensor(self, name: str) -> Tensor:
        """Return the constant called `name`."""
        return self.layers[self.named[name]]["tensor"]

    def affine(self, product: int, then: str) -> tuple[Tensor, Tensor]:
        """Return weight [out, in] and bias [out] of an affine layer with the constant factor that follows on it.

        Args:
            product: the matrix product.
            then: type of the layer between its sum and its factor.
        """
        total = self.reader(product, "Add")
        weight, bias = self.constant(product), self.constant(total)
        if weight is None or bias is None:
            raise UserError(f"{self.layers[product]['name']} has no constant weight and bias")
        if self.layers[product]["attributes"].get("transpose_b") != "true":
            weight = weight.T
        factor = self.constant(self.reader(self.reader(total, then), "Multiply"))
        gain = 1.0 if factor is None else float(factor)
        return weight * gain, bias.flatten() * gain


def _from_graphs(mapping: Graph, synthesis: Graph) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn the constants of both networks into ours; the config is read from their shapes."""
    n_levels = 1 + sum(f"m.layers.{level}.up.modulation.weight" in synthesis.named for level in range(20))
    _check_constants(mapping, synthesis)
    ours: dict[str, Tensor] = {"const": synthesis.tensor("m.input.input")}
    for i, product in enumerate(mapping.of_type("MatMul")):
        ours[f"mapping.layers.{i}.weight"], ours[f"mapping.layers.{i}.bias"] = mapping.affine(product, "PReLU")

    def style(name: str) -> tuple[Tensor, Tensor]:
        product = synthesis.reader(synthesis.named[f"{name}.modulation.weight"], "MatMul")
        return synthesis.affine(product, "Reshape")

    names = ["m.conv1"] + [f"m.layers.{level}.conv{k}" for level in range(n_levels - 1) for k in (1, 2)]
    for index, name in enumerate(names):
        weight, noise = _convolution(synthesis, name)
        pieces = {"weight": weight, "bias": synthesis.tensor(f"{name}.bias").flatten(), "noise": noise}
        if index:
            pieces["depth"] = synthesis.tensor(f"{name}.conv.weight_dw").flatten(1, 2)
        affine = style(f"{name}.conv")
        if index % 2:
            bands = [_by_band(each) for each in style(f"{name.removesuffix('.conv1')}.up")]
            affine = torch.cat([bands[0], affine[0]]), torch.cat([bands[1], affine[1]])
        elif index < len(names) - 1:  # its features are wavelets
            pieces |= {key: _by_band(pieces[key]) for key in ("weight", "bias")}
        ours |= {f"layers.{index}.{key}": value for key, value in pieces.items()}
        ours[f"affines.{index}.weight"], ours[f"affines.{index}.bias"] = affine
    last = f"m.layers.{n_levels - 2}.to_img"
    ours["image.weight"] = _by_band(synthesis.tensor(f"{last}.conv.weight"))
    ours["image.bias"] = _by_band(synthesis.tensor(f"{last}.bias").flatten())
    ours[f"affines.{len(names)}.weight"], ours[f"affines.{len(names)}.bias"] = style(f"{last}.conv")
    config = {
        "widths": [ours["const"].shape[1]] + [len(ours[f"layers.{2 * i}.bias"]) for i in range(1, n_levels)],
        "mapping_widths": [len(ours[f"mapping.layers.{i}.bias"]) for i in range(len(mapping.of_type("MatMul")))],
        "z_dim": ours["mapping.layers.0.weight"].shape[1],
        "channels": len(ours["image.bias"]) // 4,
    }
    return config, ours


def _check_constants(mapping: Graph, synthesis: Graph) -> None:
    """Refuse other activations and wavelets than those that the architecture has."""
    for graph in (mapping, synthesis):
        for number in graph.of_type("PReLU"):
            slope = graph.constant(number)
            if slope is None or not torch.allclose(slope, torch.full_like(slope, SLOPE)):
                raise UserError(f"{graph.layers[number]['name']} has slope {slope}, where {SLOPE} is known")
    for number in synthesis.of_type("GroupConvolutionBackpropData"):
        taps = synthesis.constant(number)
        if (
            taps is None
            or taps[0].numel() != 2
            or not torch.allclose(taps.abs(), torch.full_like(taps, math.sqrt(0.5)))
        ):
            raise UserError(f"{synthesis.layers[number]['name']} is no Haar filter, which alone is known")


def _convolution(graph: Graph, name: str) -> tuple[Tensor, Tensor]:
    """Return kernel and noise [1, 1, r, r] of the convolution before the bias called `name`.bias."""
    with_bias = graph.reader(graph.named[f"{name}.bias"], "Add")
    with_noise = graph.source(with_bias, "Add")
    kernel, noise = graph.constant(graph.source(with_noise, "Convolution")), graph.constant(with_noise)
    if kernel is None or noise is None:
        raise UserError(f"{name} has no constant kernel and noise")
    return kernel, noise


def _by_band(channels: Tensor) -> Tensor:
    """Bring 4c rows, c low-pass ones and then c of three bands each, into the order of bands, c of each."""
    low, steps = channels.split([len(channels) // 4, len(channels) - len(channels) // 4])
    return torch.cat([low, *(steps[band::3] for band in range(3))])
