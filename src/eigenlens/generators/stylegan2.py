"""StyleGAN2 (Karras et al., CVPR 2020, arXiv 1912.04958): NVIDIA's, rosinality's and genforce's files.

Every convolution's inputs are scaled by a style, an affine function of w, and its outputs are brought back to unit
variance. The network here holds finished weights: what a file leaves to its code (equalised learning rates, gains,
offsets of styles) is multiplied in when the file is read, and the few constants that remain stand in the config.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import PersistentModule
from ..errors import UserError
from ..frozen import convolved
from ..generator import Layer, Layout, State, needs
from .ops import (
    MappingNetwork,
    StyleBased,
    StyleInput,
    StyleInputs,
    bounded,
    check_options,
    demodulation,
    doubled,
    modulated,
    noise_input,
    read_into,
    separated,
)

BASE = 4  # pixels of the constant
NVIDIA, NVIDIA_TF = "NVlabs/stylegan2-ada-pytorch", "NVlabs/stylegan2 (TensorFlow)"
ROSINALITY, GENFORCE = "rosinality/stylegan2-pytorch", "genforce/genforce (StyleGAN2)"
SLOPES = {"lrelu": 0.2, "relu": 0.0, "linear": 1.0}  # activation -> slope below zero
GAINS = {"lrelu": math.sqrt(2.0), "relu": math.sqrt(2.0), "linear": 1.0}  # ... and the gain that goes with it


@dataclass(frozen=True)
class StyleGAN2Config:
    """What fixes the shape of a StyleGAN2, and the constants that its weights do not carry."""

    widths: tuple[int, ...]
    """Channels at 4, 8, 16, ... pixels."""
    mapping_widths: tuple[int, ...]
    """Outputs of the mapping network's layers; the last is the length of w."""
    z_dim: int = 512
    """Length of z."""
    n_labels: int = 0
    """Length of a label; 0 for an unconditional generator."""
    embed_dim: int = 0
    """Length that labels are embedded in; 0 puts a row of each label behind z (genforce)."""
    channels: int = 3
    """Channels of an image."""
    architecture: str = "skip"
    """`skip`: the image is a sum over resolutions; `resnet`: blocks have a residual branch; `orig`: neither."""
    taps: tuple[float, ...] = (0.125, 0.375, 0.375, 0.125)
    """The separable low-pass filter of every doubling, of sum 1."""
    slope: float = 0.2
    """Of the leaky ReLU in the synthesis network."""
    mapping_slope: float = 0.2
    """Of the leaky ReLU in the mapping network."""
    gain: float = math.sqrt(2.0)
    """Factor on every activation of the synthesis network."""
    clamp: float | None = None
    """Bound on every activation of networks trained in half precision; it holds in single precision too."""
    has_w_avg: bool = True
    """Whether the weights hold the mean of w."""
    noise: str = "stored"
    """`stored`: the weights hold a noise map for each layer; `drawn`: they hold its strength alone; `none`."""

    def __post_init__(self) -> None:
        for name in ("widths", "mapping_widths", "taps"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, allowed in (("architecture", ("skip", "resnet", "orig")), ("noise", ("stored", "drawn", "none"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} {getattr(self, name)!r} is not known; allowed: {', '.join(allowed)}")

    @property
    def w_dim(self) -> int:
        """Length of w."""
        return self.mapping_widths[-1]

    @property
    def resolution(self) -> int:
        """Height and width of an image in pixels."""
        return BASE * 2 ** (len(self.widths) - 1)

    def layers(self) -> list[StyleInput]:
        """Return every layer in order: `b4.conv1`, `b4.torgb`, `b8.conv0` ..., and the slot of w+ that it reads."""
        found, slot = [], 0
        for level, width in enumerate(self.widths):
            name, is_last = f"b{BASE * 2**level}", level == len(self.widths) - 1
            if level:
                found.append(StyleInput(f"{name}.conv0", slot, self.widths[level - 1]))
                slot += 1
            found.append(StyleInput(f"{name}.conv1", slot, width))
            slot += 1
            if is_last or self.architecture == "skip":
                found.append(StyleInput(f"{name}.torgb", slot, width))  # the next block's conv0 reads this slot too
        return found


class StyledConvolution(nn.Module):
    """A modulated 3x3 convolution with demodulation, noise, bias and leaky ReLU.

    Source:
        StyleGAN2, section 2.2 and figure 2c.
    """

    energy: Tensor
    noise: Tensor | None

    def __init__(self, config: StyleGAN2Config, inputs: int, width: int, resolution: int, *, doubles: bool) -> None:
        super().__init__()
        self.config, self.resolution, self.doubles = config, resolution, doubles
        self.weight = nn.Parameter(torch.empty(width, inputs, 3, 3))
        self.bias = nn.Parameter(torch.empty(width))
        self.affine = nn.Linear(config.w_dim, inputs)
        self.strength = nn.Parameter(torch.empty(())) if config.noise != "none" else None
        self.register_buffer("noise", torch.empty(resolution, resolution) if config.noise == "stored" else None)
        self.register_buffer("energy", None, persistent=False)  # squared weights summed over the kernel

    def prepare(self) -> None:
        """Compute what the frozen weights fix."""
        self.energy = self.weight.detach().square().sum((2, 3))  # [width, inputs]

    def forward(self, x: Tensor, style: Tensor, taps: Tensor, noise: Tensor | None, gain: float = 1.0) -> Tensor:
        """Return features [batch, width, resolution, resolution].

        Args:
            x: [batch, inputs, ...].
            style: [batch, inputs].
            taps: the low-pass filter.
            noise: [batch or 1, 1, resolution, resolution].
            gain: further factor, on the bound as well.
        """
        gain = gain * self.config.gain  # positive, and so is what the leaky ReLU passes on unchanged
        factor, bias = demodulation(style, self.energy) * gain, self.bias * gain
        up = 2 if self.doubles else 1
        x = modulated(x, style, self.weight, factor=factor, bias=bias, up=up, padding=1, taps=taps)
        if noise is not None and self.strength is not None:
            x = x.add_((noise * (self.strength * gain)).to(x))  # in place: nobody else reads what a convolution gave
        return bounded(F.leaky_relu(x, self.config.slope, inplace=True), self.config.clamp, gain / self.config.gain)


class ToRGB(nn.Module):
    """A modulated 1x1 convolution without demodulation that gives an image."""

    def __init__(self, config: StyleGAN2Config, width: int) -> None:
        super().__init__()
        self.clamp = config.clamp
        self.weight = nn.Parameter(torch.empty(config.channels, width, 1, 1))
        self.bias = nn.Parameter(torch.empty(config.channels))
        self.affine = nn.Linear(config.w_dim, width)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return [batch, channels, height, width]."""
        return bounded(modulated(x, style, self.weight, bias=self.bias).float(), self.clamp)


class Block(nn.Module):
    """The layers of one resolution."""

    def __init__(self, config: StyleGAN2Config, level: int) -> None:
        super().__init__()
        resolution, width = BASE * 2**level, config.widths[level]
        if level:
            inputs = config.widths[level - 1]
            self.conv0 = StyledConvolution(config, inputs, width, resolution, doubles=True)
        else:
            self.const = nn.Parameter(torch.empty(width, BASE, BASE))
        self.conv1 = StyledConvolution(config, width, width, resolution, doubles=False)
        if config.architecture == "skip" or level == len(config.widths) - 1:
            self.torgb = ToRGB(config, width)
        self.skip = (
            nn.Parameter(torch.empty(width, inputs, 1, 1)) if level and config.architecture == "resnet" else None
        )


class StyleGAN2Network(nn.Module):
    """The frozen network: `mapping` turns z into w, the blocks turn styles into an image."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.mapping = MappingNetwork(
            config.z_dim,
            config.mapping_widths,
            config.n_labels,
            embed_dim=config.embed_dim,
            slope=config.mapping_slope,
        )
        self.register_buffer("w_avg", torch.empty(config.w_dim) if config.has_w_avg else None)
        for level in range(len(config.widths)):
            self.add_module(f"b{BASE * 2**level}", Block(config, level))

    def prepare(self) -> None:
        """Compute what the frozen weights fix."""
        for module in self.modules():
            if isinstance(module, StyledConvolution):
                module.prepare()

    @property
    def affines(self) -> list[nn.Linear]:
        """The affine map of every layer, in order."""
        return [self.get_submodule(f"{each.layer}.affine") for each in self.config.layers()]  # type: ignore[misc]


# --- the family -------------------------------------------------------------------------------------------------------


class StyleGAN2(StyleBased):
    """A StyleGAN2 as a Generator with the spaces z, w, w+ (slots as NVIDIA numbers them) and s.

    The features of a `torgb` layer are the running image.
    """

    family: ClassVar[str] = "stylegan2"
    has_noise: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            NVIDIA,
            ("G_ema", "g_ema", "G", "state_dict", ""),
            needs("mapping.fc0.weight", "synthesis.b4.const", "synthesis.b4.conv1.affine.weight"),
        ),
        Layout(
            NVIDIA_TF,
            ("Gs", "G", ""),
            needs("mapping.Dense0/weight", "synthesis.4x4/Const/const", "synthesis.4x4/Conv/mod_weight"),
        ),
        Layout(
            ROSINALITY,
            ("g_ema", "g", ""),
            needs("style.1.weight", "input.input", "conv1.conv.modulation.weight", "to_rgb1.conv.weight"),
        ),
        Layout(
            GENFORCE,
            ("models.generator_smooth", "generator_smooth", "models.generator", "generator", ""),
            needs("mapping.dense0.weight", "synthesis.early_layer.const", "synthesis.layer0.style.weight"),
        ),
    )
    network: StyleGAN2Network

    def __init__(self, network: StyleGAN2Network, *, name: str, **about: Any) -> None:
        config = network.config
        styles = config.layers()
        layers = []
        for number, each in enumerate(styles):
            resolution = int(each.layer.partition(".")[0][1:])
            width = config.widths[int(math.log2(resolution // BASE))]
            layers.append(
                Layer(each.layer, resolution, config.channels if each.layer.endswith("torgb") else width, number)
            )
        super().__init__(
            network,
            styles=styles,
            n_slots=styles[-1].slot + 1,
            z_dim=config.z_dim,
            name=name,
            layers=layers,
            resolution=config.resolution,
            channels=config.channels,
            label_names=[str(label) for label in range(config.n_labels)],
            config=asdict(config),
            **about,
        )
        self._taps = torch.tensor(config.taps)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], **about: Any) -> StyleGAN2:
        """Rebuild a StyleGAN2 from our own files."""
        made = StyleGAN2Config(**config)
        return cls(read_into(lambda: StyleGAN2Network(made), tensors), **about)  # type: ignore[arg-type]

    @classmethod
    def from_foreign(
        cls, layout: str, tensors: dict[str, Tensor], checkpoint: Any, options: Mapping[str, Any], **about: Any
    ) -> StyleGAN2:
        """Read the tensors of one of the layouts.

        Args:
            layout: whose they are.
            tensors: their state dict.
            checkpoint: the whole file, for constants that stand beside the tensors.
            options: of files that do not say them: `lr_mlp` (0.01), the learning rate of the mapping network, and
                `clamp` (none), the bound on activations.
            about: name and origin.
        """
        source = _subtree(checkpoint.content, about["origin"].entry) if "origin" in about else checkpoint.content
        knows_all = isinstance(source, PersistentModule) or layout == NVIDIA_TF
        check_options(options, () if knows_all else ("lr_mlp", "clamp"), layout)
        try:
            raw = READERS[layout](tensors, source, checkpoint.content)
            config, ours = _finished(raw, options)
        except KeyError as error:
            raise UserError(f"this file of {layout} lacks {error}; get a whole one") from error
        return cls.from_config(config, ours, **about)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return nullcontext()  # layers compute in the precision of the first features; styles and the image in float32

    def _layer(self, index: int, state: State, inputs: StyleInputs) -> State:
        name, style = self.layers[index].name, inputs.styles[index]
        block_name, _, kind = name.partition(".")
        block: Any = self.network.get_submodule(block_name)
        taps = self._taps.to(style)
        x, image, branch = state.features, state.image, state.branch
        if kind == "torgb":
            assert x is not None
            rgb = block.torgb(x, style)
            return State(index + 1, x, rgb if image is None else doubled(image, taps) + rgb)
        if index == 0:
            x = block.const.to(self._dtype).expand(inputs.batch, -1, -1, -1)
        assert x is not None
        is_residual = block.skip is not None
        gain = math.sqrt(0.5) if is_residual else 1.0
        if kind == "conv0" and is_residual:
            branch = doubled(convolved(x, block.skip), taps) * gain
        layer: StyledConvolution = getattr(block, kind)
        noise = noise_input(inputs.noise_seeds, layer.noise, index, layer.resolution)
        noise = None if noise is None else noise.to(style.device)
        x = layer(x, style, taps, noise, gain if kind == "conv1" else 1.0)
        if kind == "conv1" and branch is not None:
            x, branch = branch + x, None
        return State(index + 1, x, image, branch)

    def _image(self, state: State) -> Tensor:
        assert state.image is not None
        return state.image

    def features(self, codes: Any, layer: str) -> Tensor:
        """Return the features of a named layer, [batch, channels, height, width]; of a `torgb`, the running image."""
        if not layer.endswith(".torgb"):
            return super().features(codes, layer)
        image = self._run(codes, State(), self.layer_index(layer) + 1).image
        assert image is not None
        return image


# --- foreign files ----------------------------------------------------------------------------------------------------


@dataclass
class Raw:
    """A foreign file under NVIDIA's names, with the constants that its own code would have used."""

    tensors: dict[str, Tensor]
    activation: str = "lrelu"
    gain: float = math.sqrt(2.0)
    mapping_activation: str = "lrelu"
    lr_mlp: float = 0.01
    clamp: float | None = None
    gains: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Factors on weight and bias of a layer by name, where the file says them."""


def _subtree(content: Any, entry: str) -> Any:
    """Return what stands at a dotted path; a module that is the whole file stands under the key `""`."""
    for piece in entry.split(".") if entry else []:
        content = content[piece]
    return content[""] if set(content) == {""} else content


def _finished(raw: Raw, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn raw tensors into finished weights: config and state of `StyleGAN2Network`."""
    theirs = raw.tensors
    lr_mlp, clamp = float(options.get("lr_mlp", raw.lr_mlp)), options.get("clamp", raw.clamp)
    for activation in (raw.activation, raw.mapping_activation):
        if activation not in SLOPES:
            raise UserError(f"this file's activation {activation!r} is not supported; allowed: {', '.join(SLOPES)}")
    n_fc = _count(theirs, "mapping.fc{}.weight")
    n_levels = _count(theirs, "synthesis.b{}.conv1.weight", lambda level: BASE * 2**level)
    if f"synthesis.b{BASE * 2**n_levels}.conv0.weight" in theirs or not n_fc:
        raise UserError("this StyleGAN2 has a gap in its layers; get a whole file")
    ours: dict[str, Tensor] = {}

    def linear(name: str, key: str, gain: float = 1.0, lr: float = 1.0) -> None:
        weight, bias = theirs[f"{key}.weight"], theirs[f"{key}.bias"]
        weight_gain, bias_gain = raw.gains.get(key, (lr / math.sqrt(weight.shape[1]), lr))
        ours[f"{name}.weight"] = weight.double() * (weight_gain * gain)
        ours[f"{name}.bias"] = bias.double() * (bias_gain * gain)

    config: dict[str, Any] = _shape(theirs, n_levels, n_fc)
    for i in range(n_fc):
        linear(f"mapping.layers.{i}", f"mapping.fc{i}", GAINS[raw.mapping_activation], lr_mlp)
    if "mapping.embed.weight" in theirs:
        linear("mapping.embed", "mapping.embed")
    for name in ("mapping.label_rows", "mapping.w_avg"):
        if name in theirs:
            ours[name.replace("mapping.w_avg", "w_avg")] = theirs[name]
    ours["b4.const"] = theirs["synthesis.b4.const"]
    for each in StyleGAN2Config(**config).layers():
        key = f"synthesis.{each.layer}"
        linear(f"{each.layer}.affine", f"{key}.affine")
        weight = theirs[f"{key}.weight"].double()
        if each.layer.endswith("torgb"):
            weight = weight * raw.gains.get(key, (1.0 / math.sqrt(weight[0].numel()), 1.0))[0]
        ours[f"{each.layer}.weight"], ours[f"{each.layer}.bias"] = weight, theirs[f"{key}.bias"]
        for mine, their in (("strength", "noise_strength"), ("noise", "noise_const")):
            if f"{key}.{their}" in theirs:
                ours[f"{each.layer}.{mine}"] = theirs[f"{key}.{their}"]
    for level in range(1, n_levels if config["architecture"] == "resnet" else 0):
        key = f"synthesis.b{BASE * 2**level}.skip"
        weight = theirs[f"{key}.weight"].double()
        gain = raw.gains.get(key, (1.0 / math.sqrt(weight[0].numel()), 1.0))[0]
        ours[f"b{BASE * 2**level}.skip"] = weight * gain
    config |= {
        "slope": SLOPES[raw.activation],
        "mapping_slope": SLOPES[raw.mapping_activation],
        "gain": raw.gain,
        "clamp": None if clamp is None else float(clamp),
    }
    return config, {key: value.float().contiguous() for key, value in ours.items()}


def _shape(theirs: Mapping[str, Tensor], n_levels: int, n_fc: int) -> dict[str, Any]:
    """Read from names and shapes what they tell of the config."""
    blocks = [f"synthesis.b{BASE * 2**level}" for level in range(n_levels)]
    labels, embed_dim = 0, 0
    if "mapping.embed.weight" in theirs:
        embed_dim, labels = theirs["mapping.embed.weight"].shape
    elif "mapping.label_rows" in theirs:
        labels = len(theirs["mapping.label_rows"])
    kernel = theirs.get(f"{blocks[-1]}.conv0.resample_filter", torch.tensor([1.0, 3.0, 3.0, 1.0]))
    behind = embed_dim or (theirs["mapping.label_rows"].shape[1] if labels else 0)
    is_noisy = f"{blocks[0]}.conv1.noise_strength" in theirs
    return {
        "widths": [len(theirs[f"{block}.conv1.bias"]) for block in blocks],
        "mapping_widths": [len(theirs[f"mapping.fc{i}.bias"]) for i in range(n_fc)],
        "z_dim": theirs["mapping.fc0.weight"].shape[1] - behind,
        "n_labels": labels,
        "embed_dim": embed_dim,
        "channels": len(theirs[f"{blocks[-1]}.torgb.bias"]),
        "architecture": (
            "resnet"
            if f"{blocks[-1]}.skip.weight" in theirs
            else "skip"
            if f"{blocks[0]}.torgb.weight" in theirs
            else "orig"
        ),
        "taps": separated(kernel).tolist(),
        "has_w_avg": "mapping.w_avg" in theirs,
        "noise": ("none" if not is_noisy else "stored" if f"{blocks[0]}.conv1.noise_const" in theirs else "drawn"),
    }


def _count(tensors: Mapping[str, Tensor], pattern: str, number: Callable[[int], int] = lambda i: i) -> int:
    """Return how many of `pattern`, filled with number(0), number(1) ..., are there without a gap."""
    count = 0
    while pattern.format(number(count)) in tensors:
        count += 1
    return count


def _from_nvidia(tensors: dict[str, Tensor], source: Any, content: Any) -> Raw:
    """Take NVIDIA's tensors as they are, and its constants from the attributes of the pickled modules.

    A bare state dict has no attributes; then the constants are those of the architecture.
    """
    raw = Raw(tensors)
    if not isinstance(source, PersistentModule):
        return raw
    for key in tensors:
        name = key.rpartition(".")[0]
        module = _module(source, name)
        if key.endswith(".weight") and "weight_gain" in module:
            raw.gains[name] = (float(module["weight_gain"]), float(module.get("bias_gain", 1.0)))
    first = _module(source, "synthesis.b4.conv1")
    raw.activation, raw.gain = first["activation"], float(first["act_gain"])
    raw.mapping_activation = _module(source, "mapping.fc0")["activation"]
    raw.clamp = _same_clamp(source, tensors)
    return raw


def _module(source: Any, path: str) -> Mapping[str, Any]:
    for name in path.split(".") if path else []:
        source = source["_modules"][name]
    return source


def _same_clamp(source: Any, tensors: Mapping[str, Tensor]) -> float | None:
    """Return the bound that all layers share.

    Raises:
        UserError: where they differ, which no training code does.
    """
    layers = [key.removesuffix(".affine.weight") for key in tensors if key.endswith(".affine.weight")]
    clamps = {_module(source, layer)["conv_clamp"] for layer in layers}
    if len(clamps) > 1:
        raise UserError(f"the layers of this StyleGAN2 have different bounds ({clamps}); such files are not known")
    return next(iter(clamps))


def _from_tensorflow(tensors: dict[str, Tensor], source: Any, content: Any) -> Raw:
    """Turn the TensorFlow names and layouts into NVIDIA's own later ones.

    Kernels are [height, width, in, out], and those of transposed convolutions lie turned round; matrices are
    [in, out]; a style's offset of 1 stands in the code.
    """
    settings = source.get("static_kwargs", {})
    ours: dict[str, Tensor] = {}
    if "mapping.LabelConcat/weight" in tensors:
        ours["mapping.label_rows"] = tensors["mapping.LabelConcat/weight"]
    if "dlatent_avg" in tensors:
        ours["mapping.w_avg"] = tensors["dlatent_avg"]
    for i in range(_count(tensors, "mapping.Dense{}/weight")):
        ours[f"mapping.fc{i}.weight"] = tensors[f"mapping.Dense{i}/weight"].T
        ours[f"mapping.fc{i}.bias"] = tensors[f"mapping.Dense{i}/bias"]
    if "mapping.LabelEmbed/weight" in tensors:
        ours["mapping.embed.weight"] = tensors["mapping.LabelEmbed/weight"].T
        ours["mapping.embed.bias"] = tensors["mapping.LabelEmbed/bias"]
    ours["synthesis.b4.const"] = tensors["synthesis.4x4/Const/const"][0]
    n_levels = 1 + _count(tensors, "synthesis.{0}x{0}/Conv1/weight", lambda level: 2 * BASE * 2**level)
    for level in range(n_levels):
        size = BASE * 2**level
        names = (
            {"Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb"} if level else {"Conv": "conv1", "ToRGB": "torgb"}
        )
        for theirs, mine in names.items():
            key, name = f"synthesis.{size}x{size}/{theirs}/", f"synthesis.b{size}.{mine}"
            if theirs == "ToRGB" and f"{key}weight" not in tensors:
                key = f"synthesis.ToRGB_lod{n_levels - 1 - level}/"
                if f"{key}weight" not in tensors or level < n_levels - 1:
                    continue
            weight = tensors[f"{key}weight"]
            weight = weight.flip(0, 1) if mine == "conv0" else weight
            ours[f"{name}.weight"] = weight.permute(3, 2, 0, 1)
            ours[f"{name}.bias"] = tensors[f"{key}bias"]
            ours[f"{name}.affine.weight"] = tensors[f"{key}mod_weight"].T
            ours[f"{name}.affine.bias"] = tensors[f"{key}mod_bias"] + 1.0
            if f"{key}noise_strength" in tensors:
                ours[f"{name}.noise_strength"] = tensors[f"{key}noise_strength"]
                number = 2 * level - (1 if mine == "conv0" else 0)
                ours[f"{name}.noise_const"] = tensors[f"synthesis.noise{number}"][0, 0]
        if f"synthesis.{size}x{size}/Skip/weight" in tensors:
            skip = tensors[f"synthesis.{size}x{size}/Skip/weight"]
            ours[f"synthesis.b{size}.skip.weight"] = skip.flip(0, 1).permute(3, 2, 0, 1)
    kernel = settings.get("resample_kernel") or [1, 3, 3, 1]
    ours[f"synthesis.b{BASE * 2 ** (n_levels - 1)}.conv0.resample_filter"] = torch.as_tensor(kernel).float()
    activation = settings.get("nonlinearity") or "lrelu"
    return Raw(
        ours,
        activation=activation,
        gain=GAINS.get(activation, 1.0),
        mapping_activation=settings.get("mapping_nonlinearity") or "lrelu",
        lr_mlp=float(settings.get("mapping_lrmul", 0.01)),
        clamp=settings.get("conv_clamp"),
    )


def _from_rosinality(tensors: dict[str, Tensor], source: Any, content: Any) -> Raw:
    """Turn rosinality's names into NVIDIA's; the mean of w stands beside the generator in converted files."""
    ours = {"synthesis.b4.const": tensors["input.input"][0]}
    for i in range(_count(tensors, "style.{}.weight", lambda i: i + 1)):
        for kind in ("weight", "bias"):
            ours[f"mapping.fc{i}.{kind}"] = tensors[f"style.{i + 1}.{kind}"]
    w_avg = content.get("latent_avg")
    if isinstance(w_avg, Tensor):
        ours["mapping.w_avg"] = w_avg.flatten()
    names = {"conv1": "b4.conv1", "to_rgb1": "b4.torgb"}
    for i in range(_count(tensors, "convs.{}.conv.weight")):
        names[f"convs.{i}"] = f"b{2 * BASE * 2 ** (i // 2)}.conv{i % 2}"
    for i in range(_count(tensors, "to_rgbs.{}.conv.weight")):
        names[f"to_rgbs.{i}"] = f"b{2 * BASE * 2**i}.torgb"
    numbers = {name: i for i, name in enumerate(["conv1", *[name for name in names if name.startswith("convs.")]])}
    for theirs, mine in names.items():
        key = f"synthesis.{mine}"
        ours[f"{key}.weight"] = tensors[f"{theirs}.conv.weight"][0]
        for kind in ("weight", "bias"):
            ours[f"{key}.affine.{kind}"] = tensors[f"{theirs}.conv.modulation.{kind}"]
        if theirs not in numbers:
            ours[f"{key}.bias"] = tensors[f"{theirs}.bias"].flatten()
            continue
        ours[f"{key}.bias"] = tensors[f"{theirs}.activate.bias"]
        ours[f"{key}.noise_strength"] = tensors[f"{theirs}.noise.weight"].reshape(())
        if f"noises.noise_{numbers[theirs]}" in tensors:
            ours[f"{key}.noise_const"] = tensors[f"noises.noise_{numbers[theirs]}"][0, 0]
        if f"{theirs}.conv.blur.kernel" in tensors:
            ours[f"{key}.resample_filter"] = tensors[f"{theirs}.conv.blur.kernel"]
    return Raw(ours)


def _from_genforce(tensors: dict[str, Tensor], source: Any, content: Any) -> Raw:
    """Turn genforce's names into NVIDIA's.

    A style's offset of 1 stands in the code; kernels of transposed convolutions lie turned round, as in TensorFlow.
    """
    if any("skip_layer" in key for key in tensors):
        raise UserError("genforce's StyleGAN2 with residual blocks is not read; its released ones have none")
    ours = {"synthesis.b4.const": tensors["synthesis.early_layer.const"][0]}
    w_dim = tensors["synthesis.layer0.style.weight"].shape[1]
    if "truncation.w_avg" in tensors:
        ours["mapping.w_avg"] = tensors["truncation.w_avg"]
        if ours["mapping.w_avg"].shape != (w_dim,):
            raise UserError("this StyleGAN2 maps z to w+ at once; only those that map z to one w are read")
    if "mapping.label_weight" in tensors:
        ours["mapping.label_rows"] = tensors["mapping.label_weight"]
    for i in range(_count(tensors, "mapping.dense{}.weight")):
        for kind in ("weight", "bias"):
            ours[f"mapping.fc{i}.{kind}"] = tensors[f"mapping.dense{i}.{kind}"]
    n_layers = _count(tensors, "synthesis.layer{}.weight")
    names = {f"layer{i}": f"b{BASE * 2 ** ((i + 1) // 2)}.conv{1 - i % 2}" for i in range(n_layers)}
    for level in range(n_layers // 2 + 1):
        if f"synthesis.output{level}.weight" in tensors:
            names[f"output{level}"] = f"b{BASE * 2**level}.torgb"
    for theirs, mine in names.items():
        source_key, key = f"synthesis.{theirs}", f"synthesis.{mine}"
        for kind in ("weight", "bias"):
            ours[f"{key}.{kind}"] = tensors[f"{source_key}.{kind}"]
        if mine.endswith("conv0"):
            ours[f"{key}.weight"] = ours[f"{key}.weight"].flip(2, 3)
        ours[f"{key}.affine.weight"] = tensors[f"{source_key}.style.weight"]
        ours[f"{key}.affine.bias"] = tensors[f"{source_key}.style.bias"] + 1.0
        if f"{source_key}.noise_strength" in tensors:
            ours[f"{key}.noise_strength"] = tensors[f"{source_key}.noise_strength"].reshape(())
            ours[f"{key}.noise_const"] = tensors[f"{source_key}.noise"][0, 0]
        if f"{source_key}.filter.kernel" in tensors:
            ours[f"{key}.resample_filter"] = tensors[f"{source_key}.filter.kernel"]
    return Raw(ours)


READERS: dict[str, Callable[[dict[str, Tensor], Any, Any], Raw]] = {
    NVIDIA: _from_nvidia,
    NVIDIA_TF: _from_tensorflow,
    ROSINALITY: _from_rosinality,
    GENFORCE: _from_genforce,
}
