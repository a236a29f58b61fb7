"""StyleGAN3 (Karras et al., NeurIPS 2021, arXiv 2106.12423), configurations T and R: NVIDIA's files.

Features are band-limited signals on a canvas with margins. The input is a set of Fourier features that w turns and
shifts; every layer is a modulated convolution, then a leaky ReLU that runs at a higher sampling rate between an
up-sampling and a down-sampling filter. T and R are one network: R has 1x1 kernels and radial down-sampling filters.
The network here holds finished weights; see `stylegan2`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import PersistentModule
from ..errors import UserError
from ..generator import Layer, Layout, State
from .ops import (
    MappingNetwork,
    StyleBased,
    StyleInput,
    StyleInputs,
    bounded,
    check_options,
    demodulation,
    modulated,
    read_into,
    upfirdn,
)

NVIDIA = "NVlabs/stylegan3"
LAYER = re.compile(r"synthesis\.(L(\d+)_(\d+)_(\d+))\.weight")
MARGIN = 10  # pixels of canvas around the image
FILTER_SIZE = 6  # taps of a filter per pixel of the lower sampling rate


@dataclass(frozen=True)
class LayerConfig:
    """What fixes one layer."""

    name: str
    """NVIDIA's, such as `L3_36_512`: number, size, channels."""
    inputs: int
    """Channels that it reads."""
    width: int
    """Channels that it gives."""
    size: int
    """Height and width that it gives, margins included."""
    kernel: int
    """Size of its convolution: 3 in T, 1 in R and in the last layer."""
    up: int
    """How many times denser the pixels are between the filters."""
    down: int
    """How many times sparser they are after."""
    padding: tuple[int, int, int, int]
    """Left, right, top, bottom: pixels to pad before the up-sampling filter."""
    up_taps: tuple[int, ...]
    """Shape of the up-sampling filter; empty where there is none."""
    down_taps: tuple[int, ...]
    """Shape of the down-sampling filter: one number where it is separable, two where it is radial."""
    gain: float
    """Factor on the leaky ReLU."""
    slope: float
    """Of the leaky ReLU; 1 in the last layer, which has none."""
    is_demodulated: bool
    """Whether outputs are brought back to unit variance: all but the last layer's."""
    clamp: float | None
    """Bound on every activation."""

    def __post_init__(self) -> None:
        for name in ("padding", "up_taps", "down_taps"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True)
class StyleGAN3Config:
    """What fixes the shape of a StyleGAN3, and the constants that its weights do not carry."""

    resolution: int
    """Height and width of an image in pixels."""
    input_size: int
    """Height and width of the canvas of Fourier features."""
    input_width: int
    """How many Fourier features there are."""
    sampling_rate: float
    """Pixels of that canvas to the unit of length, which is the image's side."""
    bandwidth: float
    """Highest frequency that passes unchanged, in cycles to the unit of length."""
    layers: tuple[LayerConfig, ...]
    """Every layer, in order."""
    mapping_widths: tuple[int, ...]
    """Outputs of the mapping network's layers; the last is the length of w."""
    z_dim: int = 512
    """Length of z."""
    n_labels: int = 0
    """Length of a label; 0 for an unconditional generator."""
    embed_dim: int = 0
    """Length that labels are embedded in."""
    output_scale: float = 0.25
    """Factor on the last layer's output."""
    has_w_avg: bool = True
    """Whether the weights hold the mean of w."""

    def __post_init__(self) -> None:
        layers = [each if isinstance(each, LayerConfig) else LayerConfig(**each) for each in self.layers]
        object.__setattr__(self, "layers", tuple(layers))
        object.__setattr__(self, "mapping_widths", tuple(self.mapping_widths))

    @property
    def w_dim(self) -> int:
        """Length of w."""
        return self.mapping_widths[-1]

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.layers[-1].width


class FourierInput(nn.Module):
    """The first layer: Fourier features, turned and shifted as w says.

    Source:
        StyleGAN3, section 3.1 and appendix F.
    """

    def __init__(self, config: StyleGAN3Config) -> None:
        super().__init__()
        self.config = config
        width = config.input_width
        self.weight = nn.Parameter(torch.empty(width, width))
        self.affine = nn.Linear(config.w_dim, 4)
        self.register_buffer("transform", torch.empty(3, 3))
        self.register_buffer("freqs", torch.empty(width, 2))
        self.register_buffer("phases", torch.empty(width))
        self.register_buffer("grid", None, persistent=False)

    transform: Tensor
    freqs: Tensor
    phases: Tensor
    grid: Tensor

    def prepare(self) -> None:
        """Compute the places (x, y) of the pixels, [size * size, 2]; the image is the square of side 1 around 0."""
        size = self.config.input_size
        line = (torch.arange(size, device=self.weight.device) - (size - 1) / 2) / self.config.sampling_rate
        self.grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).flatten(0, 1).to(self.weight)

    def forward(self, style: Tensor) -> Tensor:
        """Return features [batch, width, size, size] for (cos, sin, x, y) [batch, 4]; (cos, sin) has any length."""
        cos, sin, x, y = (style / style[:, :2].norm(dim=1, keepdim=True)).unbind(1)  # [batch] each
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        turn = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1).unflatten(1, (3, 3))
        shift = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], 1).unflatten(1, (3, 3))
        transform = turn @ shift @ self.transform  # [batch, 3, 3]
        phases = self.phases + (self.freqs @ transform[:, :2, 2:]).squeeze(2)  # [batch, width]
        freqs = self.freqs @ transform[:, :2, :2]  # [batch, width, 2]
        bandwidth, nyquist = self.config.bandwidth, self.config.sampling_rate / 2
        amplitudes = (1 - (freqs.norm(dim=2) - bandwidth) / (nyquist - bandwidth)).clamp(0, 1)
        waves = torch.sin(
            (self.grid @ freqs.transpose(1, 2) + phases[:, None]) * (2 * math.pi)
        )  # [batch, pixels, width]
        features = (waves * amplitudes[:, None]) @ self.weight.T
        size = self.config.input_size
        return features.unflatten(1, (size, size)).permute(0, 3, 1, 2)  # channels last, as the layers like it


class FilteredLayer(nn.Module):
    """A modulated convolution, bias, and a leaky ReLU between two filters.

    Source:
        StyleGAN3, section 3.2 and figure 4b.
    """

    up_filter: Tensor | None
    down_filter: Tensor | None
    input_gain: Tensor
    energy: Tensor

    def __init__(self, config: LayerConfig, w_dim: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.width, config.inputs, config.kernel, config.kernel))
        self.bias = nn.Parameter(torch.empty(config.width))
        self.affine = nn.Linear(w_dim, config.inputs)
        self.register_buffer("input_gain", torch.empty(()))
        self.register_buffer("up_filter", torch.empty(config.up_taps) if config.up_taps else None)
        self.register_buffer("down_filter", torch.empty(config.down_taps) if config.down_taps else None)
        self.register_buffer("energy", None, persistent=False)  # squared weights summed over the kernel

    def prepare(self) -> None:
        """Compute what the frozen weights fix."""
        self.energy = self.weight.detach().square().sum((2, 3))  # [width, inputs]

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return [batch, width, size, size] for features x and style [batch, inputs]."""
        config = self.config
        factor = self.input_gain.expand(len(x), config.width)
        if config.is_demodulated:
            # within the row: a mean over the batch, as in training, would let rows see each other
            style = style * style.square().mean(1, keepdim=True).rsqrt()
            factor = factor * demodulation(style, self.energy)
        x = modulated(x, style, self.weight, factor=factor, bias=self.bias, padding=config.kernel - 1)
        precision = x.dtype
        x = filtered_leaky_relu(
            x.float(),  # filters of single channels are slow in bfloat16
            self.up_filter,
            self.down_filter,
            up=config.up,
            down=config.down,
            padding=config.padding,
            gain=config.gain,
            slope=config.slope,
            clamp=config.clamp,
        )
        return x.to(precision)


def filtered_leaky_relu(
    x: Tensor,
    up_filter: Tensor | None,
    down_filter: Tensor | None,
    *,
    up: int = 1,
    down: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    gain: float = math.sqrt(2.0),
    slope: float = 0.2,
    clamp: float | None = None,
) -> Tensor:
    """Apply a leaky ReLU at a higher sampling rate, so that what it adds above the band can be filtered away.

    Args:
        x: [batch, channels, height, width].
        up_filter, down_filter: taps, [k] or [k, k]; None leaves the signal as it is.
        up, down: factors of the sampling rate.
        padding: as of `upfirdn`.
        gain, slope: of the leaky ReLU.
        clamp: bound on its output.

    Source:
        StyleGAN3, appendix D.
    """
    one = torch.ones(1, device=x.device, dtype=x.dtype)
    x = upfirdn(x, one if up_filter is None else up_filter, up=up, padding=padding, gain=gain * up * up)
    x = bounded(F.leaky_relu(x, slope, inplace=True), clamp)  # what a filter gave is nobody else's
    return x if down_filter is None else upfirdn(x, down_filter, down=down)


class StyleGAN3Network(nn.Module):
    """The frozen network: `mapping` turns z into w, `input` and the layers turn styles into an image."""

    def __init__(self, config: StyleGAN3Config) -> None:
        super().__init__()
        self.config = config
        self.mapping = MappingNetwork(config.z_dim, config.mapping_widths, config.n_labels, embed_dim=config.embed_dim)
        self.register_buffer("w_avg", torch.empty(config.w_dim) if config.has_w_avg else None)
        self.input = FourierInput(config)
        self.layers = nn.ModuleDict({each.name: FilteredLayer(each, config.w_dim) for each in config.layers})

    @property
    def affines(self) -> list[nn.Linear]:
        """The affine map of the input and of every layer, in order."""
        return [self.input.affine, *(layer.affine for layer in self.layers.values())]  # type: ignore[list-item]

    def prepare(self) -> None:
        """Compute what the frozen weights fix."""
        self.input.prepare()
        for layer in self.layers.values():
            layer.prepare()  # type: ignore[operator]


# --- the family -------------------------------------------------------------------------------------------------------


def _lacks(tensors: Mapping[str, Tensor]) -> list[str]:
    wanted = ("mapping.fc0.weight", "synthesis.input.freqs", "synthesis.input.phases", "synthesis.input.affine.weight")
    missing = [key for key in wanted if key not in tensors]
    return missing if any(LAYER.fullmatch(key) for key in tensors) else [*missing, "synthesis.L0_*.weight"]


class StyleGAN3(StyleBased):
    """A StyleGAN3-T or -R as a Generator with the spaces z, w, w+ and s.

    w+ has one slot for the input, which it turns and shifts, and one for each layer: 16 at every resolution. Layers
    carry NVIDIA's names: number, size with margins, channels. There is no noise.
    """

    family: ClassVar[str] = "stylegan3"
    layouts: ClassVar[tuple[Layout, ...]] = (Layout(NVIDIA, ("G_ema", "g_ema", "G", "state_dict", ""), _lacks),)
    network: StyleGAN3Network

    def __init__(self, network: StyleGAN3Network, *, name: str, **about: Any) -> None:
        config = network.config
        styles = [StyleInput("input", 0, 4)]
        styles += [StyleInput(each.name, slot, each.inputs) for slot, each in enumerate(config.layers, start=1)]
        layers = [Layer("input", config.input_size, config.input_width, 0)]
        layers += [Layer(each.name, each.size, each.width, slot) for slot, each in enumerate(config.layers, start=1)]
        super().__init__(
            network,
            styles=styles,
            n_slots=len(styles),
            z_dim=config.z_dim,
            name=name,
            layers=layers,
            resolution=config.resolution,
            channels=config.channels,
            label_names=[str(label) for label in range(config.n_labels)],
            config=asdict(config),
            **about,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], **about: Any) -> StyleGAN3:
        """Rebuild a StyleGAN3 from our own files."""
        made = StyleGAN3Config(**config)
        return cls(read_into(lambda: StyleGAN3Network(made), tensors), **about)  # type: ignore[arg-type]

    @classmethod
    def from_foreign(
        cls, layout: str, tensors: dict[str, Tensor], checkpoint: Any, options: Mapping[str, Any], **about: Any
    ) -> StyleGAN3:
        """Read NVIDIA's tensors; its constants are the attributes of the pickled modules.

        A bare state dict has none: then they follow from names and shapes as NVIDIA's defaults have them.

        Args:
            layout: NVIDIA's.
            tensors: its state dict.
            checkpoint: the whole file.
            options: none.
            about: name and origin.
        """
        check_options(options, (), layout)
        content = checkpoint.content
        for piece in about["origin"].entry.split(".") if about["origin"].entry else []:
            content = content[piece]
        source = content.get("") if set(content) == {""} else content
        try:
            read = _Pickled(source) if isinstance(source, PersistentModule) else _Bare(tensors)
            config, ours = _finished(tensors, read)
        except KeyError as error:
            raise UserError(f"this file of {layout} lacks {error}; get a whole one") from error
        return cls.from_config(config, ours, **about)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return nullcontext()  # layers compute in the precision of the first features, styles in float32

    def _layer(self, index: int, state: State, inputs: StyleInputs) -> State:
        if index == 0:
            return State(1, self.network.input(inputs.styles[0]).to(self._dtype))
        layer = self.network.layers[self.layers[index].name]
        return State(index + 1, layer(state.features, inputs.styles[index]))

    def _image(self, state: State) -> Tensor:
        assert state.features is not None
        return state.features.float() * self.network.config.output_scale

    def _margin(self, size: int) -> int:
        config = self.network.config
        return 0 if size == self.resolution else round(config.input_size - config.sampling_rate) // 2


# --- NVIDIA's files ---------------------------------------------------------------------------------------------------


class _Pickled:
    """The constants that a pickled network says."""

    def __init__(self, source: PersistentModule) -> None:
        self.source = source
        self.synthesis = source["_modules"]["synthesis"]
        modules = self.synthesis["_modules"]
        self.resolution = int(self.synthesis["img_resolution"])
        self.output_scale = float(self.synthesis["output_scale"])
        first = modules["input"]
        self.input_size = _side(first["size"])
        self.sampling_rate, self.bandwidth = float(first["sampling_rate"]), float(first["bandwidth"])

    def mapping_gains(self, name: str, weight: Tensor) -> tuple[float, float]:
        """Return the factors on weight and bias of a layer of the mapping network."""
        layer = self.source["_modules"]["mapping"]["_modules"][name]
        expected = "linear" if name == "embed" else "lrelu"
        if layer.get("activation", expected) != expected:
            raise UserError(f"this file's activation {layer['activation']!r} is not supported; allowed: {expected}")
        return float(layer["weight_gain"]), float(layer["bias_gain"])

    def affine_gain(self, name: str, weight: Tensor) -> tuple[float, float]:
        """Return the factors on weight and bias of a layer's affine map."""
        affine = self.synthesis["_modules"][name]["_modules"]["affine"]
        return float(affine["weight_gain"]), float(affine["bias_gain"])

    def layer(self, name: str) -> dict[str, Any]:
        """Return what is not in the tensors of a layer's config."""
        layer = self.synthesis["_modules"][name]
        clamp = layer["conv_clamp"]
        return {
            "size": _side(layer["out_size"]),
            "up": int(layer["up_factor"]),
            "down": int(layer["down_factor"]),
            "padding": tuple(int(each) for each in layer["padding"]),
            "is_torgb": bool(layer["is_torgb"]),
            "clamp": None if clamp is None else float(clamp),
        }


class _Bare:
    """The constants of a bare state dict: NVIDIA's defaults, at the sizes that names and filters tell."""

    output_scale = 0.25
    bandwidth = 2.0

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.names = _layer_names(tensors)
        self.sizes = [int(name.split("_")[1]) for name in self.names]
        self.resolution, self.input_size = self.sizes[-1], self.sizes[0]
        self.sampling_rate = float(self.input_size - 2 * MARGIN)

    def mapping_gains(self, name: str, weight: Tensor) -> tuple[float, float]:
        """Return the factors on weight and bias of a layer of the mapping network."""
        lr = 1.0 if name == "embed" else 0.01
        return lr / math.sqrt(weight.shape[1]), lr

    def affine_gain(self, name: str, weight: Tensor) -> tuple[float, float]:
        """Return the factors on weight and bias of a layer's affine map."""
        return 1.0 / math.sqrt(weight.shape[1]), 1.0

    def layer(self, name: str) -> dict[str, Any]:
        """Return what is not in the tensors of a layer's config."""
        number = self.names.index(name)
        is_last = number == len(self.names) - 1
        up, down = (self._factor(f"synthesis.{name}.{kind}_filter") for kind in ("up", "down"))
        size, before = self.sizes[number], self.sizes[max(number - 1, 0)]
        taps = sum(factor * FILTER_SIZE if factor > 1 else 1 for factor in (up, down))
        kernel = self.tensors[f"synthesis.{name}.weight"].shape[-1]
        total = (size - 1) * down + 1 - (before + kernel - 1) * up + taps - 2
        low = (total + up) // 2
        return {
            "size": size,
            "up": up,
            "down": down,
            "padding": (low, total - low) * 2,
            "is_torgb": is_last,
            "clamp": 256.0,
        }

    def _factor(self, key: str) -> int:
        return len(self.tensors[key]) // FILTER_SIZE if key in self.tensors else 1


def _side(size: Any) -> int:
    """Return the one number of a size, which files hold as a pair of equal ones.

    Raises:
        UserError: where they differ.
    """
    sides = {int(each) for each in torch.as_tensor(size).flatten().tolist()}
    if len(sides) != 1:
        raise UserError(f"this StyleGAN3 has a canvas of {sorted(sides)} pixels; only square ones are read")
    return sides.pop()


def _layer_names(tensors: Mapping[str, Tensor]) -> list[str]:
    found = [match for key in tensors if (match := LAYER.fullmatch(key))]
    return [match[1] for match in sorted(found, key=lambda match: int(match[2]))]


def _finished(theirs: Mapping[str, Tensor], read: _Pickled | _Bare) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn NVIDIA's tensors into finished weights: config and state of `StyleGAN3Network`."""
    ours: dict[str, Tensor] = {}

    def linear(name: str, key: str, gains: tuple[float, float], factor: float = 1.0) -> None:
        for kind, gain in zip(("weight", "bias"), gains, strict=True):
            ours[f"{name}.{kind}"] = theirs[f"{key}.{kind}"].double() * (gain * factor)

    widths: list[int] = []
    while f"mapping.fc{len(widths)}.weight" in theirs:
        name = f"fc{len(widths)}"
        gains = read.mapping_gains(name, theirs[f"mapping.{name}.weight"])
        linear(f"mapping.layers.{len(widths)}", f"mapping.{name}", gains, math.sqrt(2.0))
        widths.append(len(theirs[f"mapping.{name}.bias"]))
    embed_dim, n_labels = 0, 0
    if "mapping.embed.weight" in theirs:
        embed_dim, n_labels = theirs["mapping.embed.weight"].shape
        linear("mapping.embed", "mapping.embed", read.mapping_gains("embed", theirs["mapping.embed.weight"]))
    if "mapping.w_avg" in theirs:
        ours["w_avg"] = theirs["mapping.w_avg"]
    key = "synthesis.input"
    ours["input.weight"] = theirs[f"{key}.weight"].double() / math.sqrt(theirs[f"{key}.weight"].shape[1])
    for name in ("transform", "freqs", "phases"):
        ours[f"input.{name}"] = theirs[f"{key}.{name}"]
    linear("input.affine", f"{key}.affine", read.affine_gain("input", theirs[f"{key}.affine.weight"]))
    layers = []
    for name in _layer_names(theirs):
        key, said = f"synthesis.{name}", read.layer(name)
        layers.append(_layer_config(name, theirs, said))
        linear(f"layers.{name}.affine", f"{key}.affine", read.affine_gain(name, theirs[f"{key}.affine.weight"]))
        ours |= {f"layers.{name}.{part}": value for part, value in _layer_weights(key, theirs, said).items()}
    config = {
        "resolution": read.resolution,
        "input_size": read.input_size,
        "input_width": len(theirs["synthesis.input.phases"]),
        "sampling_rate": read.sampling_rate,
        "bandwidth": read.bandwidth,
        "layers": layers,
        "mapping_widths": widths,
        "z_dim": theirs["mapping.fc0.weight"].shape[1] - embed_dim,
        "n_labels": n_labels,
        "embed_dim": embed_dim,
        "output_scale": read.output_scale,
        "has_w_avg": "w_avg" in ours,
    }
    return config, {name: value.float().contiguous() for name, value in ours.items()}


def _layer_config(name: str, theirs: Mapping[str, Tensor], said: Mapping[str, Any]) -> LayerConfig:
    key = f"synthesis.{name}"
    width, inputs, kernel, _ = theirs[f"{key}.weight"].shape
    filters = [theirs.get(f"{key}.{kind}_filter") for kind in ("up", "down")]
    up_taps, down_taps = (tuple(each.shape) if each is not None else () for each in filters)
    is_torgb = said["is_torgb"]
    return LayerConfig(
        name=name,
        inputs=inputs,
        width=width,
        size=said["size"],
        kernel=kernel,
        up=said["up"],
        down=said["down"],
        padding=said["padding"],
        up_taps=up_taps,
        down_taps=down_taps,
        gain=1.0 if is_torgb else math.sqrt(2.0),
        slope=1.0 if is_torgb else 0.2,
        is_demodulated=not is_torgb,
        clamp=said["clamp"],
    )


def _layer_weights(key: str, theirs: Mapping[str, Tensor], said: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a layer's weights: unit mean square for each output where there is demodulation, else 1 / sqrt(fan-in)."""
    weight = theirs[f"{key}.weight"].double()
    if said["is_torgb"]:
        weight = weight / math.sqrt(weight[0].numel())
    else:
        weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
    ours = {
        "weight": weight,
        "bias": theirs[f"{key}.bias"],
        "input_gain": theirs[f"{key}.magnitude_ema"].double().rsqrt(),
    }
    for kind in ("up_filter", "down_filter"):
        if f"{key}.{kind}" in theirs:
            ours[kind] = theirs[f"{key}.{kind}"]
    return ours
