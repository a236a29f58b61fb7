"""DCGAN and its kin: any plain stack of Linear, ConvTranspose2d and Conv2d with BatchNorm (Radford et al., ICLR 2016,
arXiv 1511.06434), under whatever names its author gave.

A file of weights tells kernels and channels; strides, paddings and upsampling follow from the size that the image must
have. Three conventions are tried, the first that reaches a usual resolution holds:

1. each transposed convolution doubles the size (the first one, on a single pixel, gives its own kernel's size), or
   keeps it; convolutions keep it, or double it by upsampling before them where nothing else does;
2. nothing is padded, and strides are 1 or 2;
3. any mixture, where one is simpler than all others by far; else the error says which there are.

What no file can tell has an option: `activation` (relu; one for all hidden layers or one each), `output` (tanh), `law`
(normal), `bn_eps` (1e-5), `upsample_mode` (nearest); and what may be told better than inferred: `resolution`,
`strides`, `paddings`, `output_paddings`, `upsample` (one number a convolution, in order).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import runtime
from ..codes import Codes, Part, Space
from ..errors import UserError, unknown_name
from ..frozen import computed_in, kept, scale_and_shift, with_norm
from ..generator import Generator, Layer, Layout, State, StyleMatrix, names_several_networks
from .ops import read_into

OPTIONS = (
    "activation", "output", "law", "bn_eps", "upsample_mode", "resolution", "strides", "paddings", "output_paddings",
    "upsample",
)  # fmt: skip
ACTIVATIONS = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "leaky_relu_0.01": lambda x: F.leaky_relu(x, 0.01),
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "none": lambda x: x,
}
OUTPUTS = {
    "tanh": torch.tanh,
    "sigmoid": lambda x: 2 * torch.sigmoid(x) - 1,  # a sigmoid's images are in [0, 1]
    "none": lambda x: x,
}
MAX_KERNEL = 32
MAX_OPEN = 8  # weights of which both kinds of convolution are tried
MAX_READINGS = 1024
Kind = Literal["linear", "deconv", "conv"]


@dataclass(frozen=True)
class Step:
    """One layer: what it takes, its geometry, and what follows it."""

    kind: Kind
    """`linear`, `deconv` (a transposed convolution) or `conv`."""
    before: int
    """Channels or features that it takes."""
    after: int
    """Channels or features that it gives."""
    kernel: int = 1
    """Height and width of its kernel."""
    stride: int = 1
    """Its stride."""
    padding: int = 0
    """Its padding."""
    output_padding: int = 0
    """Rows and columns added at one side, of a transposed convolution."""
    upsample: int = 1
    """By how much its input is enlarged first."""
    has_bias: bool = True
    """Whether it has a bias."""
    norm: int = 0
    """Width of the batch normalisation after it; 0 for none."""
    activation: str = "relu"
    """What is applied last."""
    size: int = 1
    """Height and width of what it gives; for a linear layer, of the maps that its output is cut into."""

    def grown(self, size: int) -> int:
        """Return the height and width of what it makes of maps of `size`."""
        size *= self.upsample
        if self.kind == "deconv":
            return (size - 1) * self.stride - 2 * self.padding + self.kernel + self.output_padding
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class DCGANConfig:
    """What fixes a plain stack."""

    steps: tuple[Step, ...]
    """Its layers."""
    output: str = "tanh"
    """What makes an image of the last layer: tanh, sigmoid, none."""
    law: Literal["normal", "uniform"] = "normal"
    """Law of z: N(0, 1), or uniform on [-1, 1]."""
    upsample_mode: str = "nearest"
    """How maps are enlarged: nearest or bilinear."""
    bn_eps: float = 1e-5
    """Added to the variance in batch normalisation."""

    def __post_init__(self) -> None:
        steps = tuple(step if isinstance(step, Step) else Step(**step) for step in self.steps)
        object.__setattr__(self, "steps", steps)
        for step in steps:
            if step.activation not in ACTIVATIONS:
                raise unknown_name("activation", step.activation, ACTIVATIONS)
        for name, allowed in (
            ("output", tuple(OUTPUTS)), ("law", ("normal", "uniform")), ("upsample_mode", ("nearest", "bilinear")),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise unknown_name(name, getattr(self, name), allowed)

    @property
    def resolution(self) -> int:
        """Height and width of an image."""
        return self.steps[-1].size

    @property
    def channels(self) -> int:
        """Channels of an image."""
        last = self.steps[-1]
        return last.after // last.size**2 if last.kind == "linear" else last.after

    @property
    def z_dim(self) -> int:
        """Length of z."""
        return self.steps[0].before


# --- the network ------------------------------------------------------------------------------------------------------


class Stage(nn.Module):
    """One layer with its batch normalisation and activation."""

    def __init__(self, step: Step, config: DCGANConfig) -> None:
        super().__init__()
        self.step, self.mode = step, config.upsample_mode
        self.layer = _module(step)
        norm = nn.BatchNorm1d if step.norm == step.after and step.kind == "linear" else nn.BatchNorm2d
        self.norm = norm(step.norm, config.bn_eps) if step.norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Return features [batch, after, size, size] for features of the layer before, or z [batch, before, 1, 1]."""
        step = self.step
        if step.kind == "linear":
            x = self.layer(x.flatten(1))
            if self.norm is not None and step.norm == step.after:
                return ACTIVATIONS[step.activation](self.norm(x)).unflatten(1, (-1, step.size, step.size))
            x = x.unflatten(1, (-1, step.size, step.size))
        else:
            if step.upsample > 1:
                x = F.interpolate(x, scale_factor=step.upsample, mode=self.mode)
            x = self.layer(x)
        return ACTIVATIONS[step.activation](x if self.norm is None else self.norm(x))


def _module(step: Step) -> nn.Module:
    if step.kind == "linear":
        return nn.Linear(step.before, step.after, bias=step.has_bias)
    if step.kind == "conv":
        return nn.Conv2d(step.before, step.after, step.kernel, step.stride, step.padding, bias=step.has_bias)
    return nn.ConvTranspose2d(
        step.before, step.after, step.kernel, step.stride, step.padding, step.output_padding, bias=step.has_bias
    )


def advanced(stage: Stage, x: Tensor) -> Tensor:
    """Return what a frozen stage gives: batch normalisation in its weights, and one pixel as a vector."""
    step, dtype = stage.step, computed_in(x)
    is_vector = step.kind == "linear" or (step.kind == "deconv" and x.shape[2:] == (1, 1) and step.upsample == 1)
    sources = [*stage.parameters(), *stage.buffers()]
    weight, bias = kept(stage, f"folded {dtype} {is_vector}", lambda: _folded(stage, is_vector, dtype), *sources)
    if is_vector:
        x = F.linear(x.flatten(1), weight, bias).unflatten(1, (step.size, step.size, -1)).permute(0, 3, 1, 2)
        return ACTIVATIONS[step.activation](x)
    if step.upsample > 1:
        x = F.interpolate(x, scale_factor=step.upsample, mode=stage.mode)
    if step.kind == "conv":
        x = F.conv2d(x, weight, bias, step.stride, step.padding)
    else:
        x = F.conv_transpose2d(x, weight, bias, step.stride, step.padding, step.output_padding)
    return ACTIVATIONS[step.activation](x)


def _folded(stage: Stage, is_vector: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias with the norm in them; as a vector [size * size * channels, before], channels last."""
    step, norm, layer = stage.step, stage.norm, stage.layer
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    if step.kind == "linear":
        pixels = step.size**2
        weight = weight.view(-1, pixels, step.before) if norm is None or step.norm != step.after else weight
        if weight.ndim == 2:  # the norm has numbers of its own for every pixel
            weight, bias = with_norm(weight, bias, norm)
            weight, norm = weight.view(-1, pixels, step.before), None
        rows = None if bias is None else bias.view(-1, pixels)
        if norm is not None:
            scale, shift = scale_and_shift(norm)
            weight = weight * scale[:, None, None]
            rows = shift[:, None].expand(-1, pixels) if rows is None else rows * scale[:, None] + shift[:, None]
        weight = weight.transpose(0, 1).flatten(0, 1)
        return weight.to(dtype), None if rows is None else rows.T.flatten().to(dtype)
    weight, bias = with_norm(weight, bias, norm, axis=1 if step.kind == "deconv" else 0)
    if is_vector:  # each tap of the kernel is one place of the output
        stop = step.padding + step.size
        if stop > step.kernel:  # rows that the output's padding adds at one side
            weight = F.pad(weight, (0, stop - step.kernel, 0, stop - step.kernel))
        inside = slice(step.padding, stop)
        weight = weight[:, :, inside, inside].permute(2, 3, 1, 0).flatten(0, 2)
        return weight.to(dtype), None if bias is None else bias.repeat(step.size**2).to(dtype)
    weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    return weight, None if bias is None else bias.to(dtype)


class DCGANNetwork(nn.Module):
    """The stack."""

    def __init__(self, config: DCGANConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(Stage(step, config) for step in config.steps)


# --- the family -------------------------------------------------------------------------------------------------------


def _not_plain(tensors: Mapping[str, Tensor]) -> list[str]:
    """Name the modules of a file that are no plain layers, or the networks where there are several."""
    modules = _modules(tensors)
    if networks := _networks(modules):
        return [f"one network alone in place of {', '.join(networks)}: save the generator's state_dict by itself"]
    foreign = [key for key, leaves in modules.items() if _kind_of(leaves) is None]
    layers = [leaves for leaves in modules.values() if _kind_of(leaves) in ("linear", "convolution")]
    if len(layers) < 2:
        foreign.append("the rest")
    return [f"a plain layer (Linear, ConvTranspose2d, Conv2d, BatchNorm) in place of {key!r}" for key in foreign]


def _networks(modules: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Return the names of the networks that a file holds where these are several, which may follow each other as one.

    Their names tell it, or an image between two of them.
    """
    pieces = [key.split(".") for key in modules]
    depth = 0
    while len({path[depth] for path in pieces if len(path) > depth}) == 1 and all(len(p) > depth + 1 for p in pieces):
        depth += 1
    layers: dict[str, list[Tensor]] = {}
    for path, leaves in zip(pieces, modules.values(), strict=True):
        if _kind_of(leaves) in ("linear", "convolution"):
            layers.setdefault(path[depth], []).append(leaves["weight"])
    names = list(layers)
    ends_in_image = any(
        len(layers[one]) > 1 and len(layers[other]) > 1 and _channels(layers[one][-1]) & _channels(layers[other][0])
        for one, other in itertools.pairwise(names)
    )
    return names if ends_in_image or names_several_networks(names) else []


def _channels(weight: Tensor) -> set[int]:
    """Return which numbers of channels of an image a convolution may take or give."""
    return {1, 3} & set(weight.shape[:2]) if weight.ndim == 4 else set()


class DCGAN(Generator):
    """A plain stack with the layers `linear1`, `deconv2`, `conv3` ... and the space `z`, which feeds the first."""

    family: ClassVar[str] = "dcgan"
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "plain stack",
            (
                "g_ema", "G_ema", "netG_ema", "generator_ema", "ema", "netG_state_dict", "generator_state_dict",
                "G_state_dict", "g_state_dict", "gen_state_dict", "netG", "generator", "gen", "G", "g",
                "model_state_dict", "state_dict", "model", "weights", "",
            ),
            _not_plain,
        ),
    )  # fmt: skip
    network: DCGANNetwork

    def __init__(self, network: DCGANNetwork, *, name: str, **about: Any) -> None:
        config, dim = network.config, network.config.z_dim
        names = [f"{step.kind}{number}" for number, step in enumerate(config.steps, start=1)]
        widths = [s.after // s.size**2 if s.kind == "linear" else s.after for s in config.steps]
        layers = [
            Layer(name, step.size, width, 0 if i == 0 else None)
            for i, (name, step, width) in enumerate(zip(names, config.steps, widths, strict=True))
        ]
        is_normal = config.law == "normal"
        space = Space(
            "z", 1, dim, (Part("all", 0, 0, 0, dim, (names[0],)),), "N(0, 1)" if is_normal else "U(-1, 1)",
            None if is_normal else lambda: (torch.zeros(dim), torch.eye(dim) / 3),
        )  # fmt: skip
        super().__init__(
            network,
            name=name,
            spaces={"z": space},
            layers=layers,
            resolution=config.resolution,
            channels=config.channels,
            config=asdict(config),
            **about,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], **about: Any) -> DCGAN:
        """Rebuild a stack from our own files."""
        made = DCGANConfig(**config)
        return cls(read_into(lambda: DCGANNetwork(made), tensors), **about)  # type: ignore[arg-type]

    @classmethod
    def from_foreign(
        cls, layout: str, tensors: dict[str, Tensor], checkpoint: Any, options: Mapping[str, Any], **about: Any
    ) -> DCGAN:
        """Infer the stack from its tensors and the options that this module's text names."""
        unknown = [option for option in options if option not in OPTIONS]
        if unknown:
            raise unknown_name("option of a DCGAN file", unknown[0], OPTIONS)
        numbers = {"bn_eps": float, "resolution": int}
        try:
            options = {key: numbers[key](value) if key in numbers else value for key, value in options.items()}
        except ValueError as error:
            raise UserError(f"the options {dict(options)} cannot be read: {error}; give numbers") from error
        found = read_stack(tensors, options, name=str(about.get("name")), is_ordered=checkpoint.is_ordered)
        config = DCGANConfig(
            tuple(layer.step for layer in found),
            output=str(options.get("output", "tanh")),
            law=options.get("law", "normal"),
            upsample_mode=str(options.get("upsample_mode", "nearest")),
            bn_eps=options.get("bn_eps", 1e-5),
        )
        ours: dict[str, Tensor] = {}
        for i, layer in enumerate(found):
            ours |= {f"stages.{i}.layer.{leaf}": value.float() for leaf, value in layer.leaves.items()}
            ours |= {f"stages.{i}.norm.{leaf}": value for leaf, value in _norm_of(layer.norm).items()}
        return cls.from_config(asdict(config), ours, **about)

    def _draw(self, n: int, *, seed: int, start: int, truncation: float) -> Tensor:
        if self.network.config.law == "normal":
            return super()._draw(n, seed=seed, start=start, truncation=truncation)
        dim = self.spaces["z"].dim
        rows = runtime.draw(n, dim, seed=seed, stream="codes/z", start=start, law="uniform")
        return (2 * torch.from_numpy(rows)[:, None] - 1) * truncation

    def _inputs(self, codes: Codes) -> Tensor:
        return codes.latent[:, 0, :, None, None]

    def _layer(self, index: int, state: State, inputs: Tensor) -> State:
        x = inputs if state.features is None else state.features
        return State(index + 1, advanced(self.network.stages[index], x))  # type: ignore[arg-type]

    def _image(self, state: State) -> Tensor:
        assert state.features is not None
        return OUTPUTS[self.network.config.output](state.features)

    def style_matrices(self, layers: str = "all") -> dict[str, StyleMatrix]:
        """Return the matrix of the first layer, [channels * places, z_dim]."""
        stage: Any = self.network.stages[0]
        step, weight = stage.step, stage.layer.weight
        if step.kind == "deconv":  # on a single pixel each tap of the kernel is one place of the output
            inside = slice(step.padding, step.kernel - step.padding or None)
            weight = weight[:, :, inside, inside].flatten(1).T
        name = self.layers[0].name
        (part,) = self.spaces["z"].picked(layers)
        return {name: StyleMatrix(weight.flatten(1), part)}


# --- what a file tells ------------------------------------------------------------------------------------------------


@dataclass
class _Found:
    """A layer of a file: its tensors, the batch normalisation after it, and what is known of it so far."""

    key: str
    leaves: dict[str, Tensor]
    norm: dict[str, Tensor] | None = None
    last_key: str = ""
    step: Step = Step("linear", 1, 1)


def _modules(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Gather the tensors of each module, in the order of the file, which is that in which they were made."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        module, _, leaf = key.rpartition(".")
        modules.setdefault(module, {})[leaf] = value
    return {key: _without_spectral_norm(leaves) for key, leaves in modules.items()}


def _without_spectral_norm(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace W_orig, u and v by W = W_orig / (uᵀ W_orig v)."""
    if not {"weight_orig", "weight_u", "weight_v"} <= set(leaves):
        return leaves
    kept = {leaf: value for leaf, value in leaves.items() if not leaf.startswith("weight")}
    weight, u, v = leaves["weight_orig"], leaves["weight_u"], leaves["weight_v"]
    # torch lays a transposed convolution's matrix out by its second axis; where both fit, u and v belong to the one
    # that they are singular vectors of
    matrices = [rows.flatten(1) for rows in (weight, weight.transpose(0, 1)) if len(rows) == len(u)]
    sigma = max((u @ rows @ v for rows in matrices if rows.shape[1] == len(v)), default=torch.ones(()))
    return {"weight": weight / sigma, **kept}


def _kind_of(leaves: Mapping[str, Tensor]) -> str | None:
    names, weight = set(leaves), leaves.get("weight")
    if "running_mean" in names and names <= {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}:
        return "norm"
    if weight is None or not names <= {"weight", "bias"} or weight.numel() == 0:
        return None
    if weight.ndim == 4:
        return "convolution" if weight.shape[2] == weight.shape[3] <= MAX_KERNEL else None
    return "linear" if weight.ndim == 2 else None


def _norm_of(norm: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the tensors of a batch normalisation, with gain 1 and bias 0 where it has none."""
    if norm is None:
        return {}
    mean = norm["running_mean"].float()
    return {
        "weight": norm.get("weight", torch.ones_like(mean)).float(),
        "bias": norm.get("bias", torch.zeros_like(mean)).float(),
        "running_mean": mean,
        "running_var": norm["running_var"].float(),
        "num_batches_tracked": torch.tensor(0),
    }


def read_stack(
    tensors: Mapping[str, Tensor], options: Mapping[str, Any], *, name: str, is_ordered: bool = True
) -> list[_Found]:
    """Infer kinds, norms, geometry and activations of a plain stack.

    Args:
        tensors: by key, in the order in which the layers run.
        options: those of this module's text.
        name: what errors call the stack.
        is_ordered: whether the order is that of the author, and not that of the names.

    Raises:
        UserError: where channels do not follow each other, or no usual resolution is reached; it names the options.
    """
    modules = _modules(tensors)
    layers = [_Found(key, leaves, last_key=key) for key, leaves in modules.items() if _kind_of(leaves) != "norm"]
    order = list(modules)
    norms = [(order.index(key), leaves) for key, leaves in modules.items() if _kind_of(leaves) == "norm"]
    readings = list(itertools.islice(_readings(layers), MAX_READINGS))
    if not readings:
        shapes = ", ".join(f"{layer.key} {list(layer.leaves['weight'].shape)}" for layer in layers[:8])
        lost = (
            "This format keeps no order of layers, and their names tell none: open the network's .pt if there is one. "
        )
        raise UserError(
            f"{name}: the layers do not follow each other as those of a generator from z to an image of 1 or 3 "
            f"channels: {shapes}. {'' if is_ordered else lost}A discriminator, an encoder or a network with labels or "
            "branches cannot be read so; build it in Python and wrap it: eigenlens.from_module(module, latent_dim=...)"
        )
    solved: list[tuple[float, tuple[Step, ...], list[dict[str, Tensor] | None]]] = []
    for kinds in readings:
        steps = [_bare_step(layer, kind) for layer, kind in zip(layers, kinds, strict=True)]
        placed = _place_norms(layers, steps, norms, order)
        if placed is not None:
            widths = [len(norm["running_mean"]) if norm else 0 for norm in placed]
            steps = [replace(step, norm=width) for step, width in zip(steps, widths, strict=True)]
            solved += [(way.cost + _kind_cost(steps), way.steps, placed) for way in _solve(steps, options)]
    solved.sort(key=lambda each: each[0])
    if not solved or (len(solved) > 1 and solved[0][0] >= _MIXED and solved[1][0] - solved[0][0] < _MARGIN):
        raise UserError(_unclear(name, steps, [sized for _, sized, _ in solved[:2]]))
    _, sized, placed = solved[0]
    for layer, step, norm in zip(layers, sized, placed, strict=True):
        layer.step, layer.norm = step, norm
        if norm is not None:
            layer.last_key = next(key for key, leaves in modules.items() if leaves is norm)
    _name_activations(layers, options.get("activation"))
    return layers


def _readings(layers: Sequence[_Found], before: tuple[Kind, ...] = ()) -> Iterator[tuple[Kind, ...]]:
    """Yield the kinds that the layers may be, such that each takes what the one before gives."""
    if len(before) == len(layers):
        yield before
        return
    is_open = sum(_is_square(layer) for layer in layers) <= MAX_OPEN
    for kind in _kinds(layers[len(before)], is_open=is_open):
        if _fits(layers, (*before, kind)):
            yield from _readings(layers, (*before, kind))


def _is_square(layer: _Found) -> bool:
    shape = layer.leaves["weight"].shape
    return len(shape) == 4 and shape[0] == shape[1]


def _kinds(layer: _Found, *, is_open: bool) -> tuple[Kind, ...]:
    """Return what a weight may be: the two kinds of convolution differ in the order of their channels alone.

    Where as many channels come as go both fit; unless `is_open`, an odd kernel is then a convolution, an even one not.
    """
    weight, bias = layer.leaves["weight"], layer.leaves.get("bias")
    if weight.ndim == 2:
        return ("linear",)
    if _is_square(layer) and not is_open:
        return ("conv",) if weight.shape[2] % 2 else ("deconv",)
    both: tuple[tuple[Kind, int], ...] = (("deconv", weight.shape[1]), ("conv", weight.shape[0]))
    return tuple(kind for kind, after in both if bias is None or len(bias) == after)


def _bare_step(layer: _Found, kind: Kind) -> Step:
    shape = layer.leaves["weight"].shape
    after, before = (shape[1], shape[0]) if kind == "deconv" else (shape[0], shape[1])
    kernel = shape[2] if kind != "linear" else 1
    return Step(kind, before, after, kernel, has_bias="bias" in layer.leaves)


def _fits(layers: Sequence[_Found], kinds: Sequence[Kind]) -> bool:
    """Tell whether the last of `kinds` takes what the one before gives, and the last of all gives 1 or 3 channels."""
    i = len(kinds) - 1
    step = _bare_step(layers[i], kinds[i])
    if i + 1 == len(layers) and not (_channels_of_flat(step.after) if step.kind == "linear" else step.after in (1, 3)):
        return False
    if i == 0:
        return step.kind != "conv" and step.before >= 2
    one = _bare_step(layers[i - 1], kinds[i - 1])
    if one.kind == "linear" and step.kind != "linear":
        return _side(one.after, step.before) > 0
    return one.after == step.before and (step.kind != "linear" or one.kind == "linear")


def _side(features: int, channels: int) -> int:
    """Return the side of the square maps that `features` numbers make; 0 where they make none."""
    side = math.isqrt(features // channels)
    return side if side * side * channels == features else 0


def _channels_of_flat(features: int) -> int:
    return next((channels for channels in (3, 1) if _side(features, channels) >= 8), 0)


def _place_norms(
    layers: Sequence[_Found], steps: Sequence[Step], norms: Sequence[tuple[int, dict]], order: list[str]
) -> list[dict[str, Tensor] | None] | None:
    """Give each batch normalisation to the layer that it follows in the file, or else to the next of its width.

    Authors list modules in the order of use, or all convolutions first and then all norms.
    """
    widths = [{step.after} for step in steps]
    for i, (one, other) in enumerate(itertools.pairwise(steps)):
        if one.kind == "linear" and other.kind != "linear":
            widths[i].add(other.before)  # after the vector is cut into maps
    places = [order.index(layer.key) for layer in layers]
    placed: list[dict[str, Tensor] | None] = [None] * len(layers)
    for place, norm in norms:
        owner = max((i for i, at in enumerate(places) if at < place), default=-1)
        if owner < 0 or placed[owner] is not None or len(norm["running_mean"]) not in widths[owner]:
            break
        placed[owner] = norm
    else:
        return placed
    placed, owner = [None] * len(layers), -1
    for _, norm in norms:
        owner = next((i for i in range(owner + 1, len(layers)) if len(norm["running_mean"]) in widths[i]), -1)
        if owner < 0:
            return None
        placed[owner] = norm
    return placed


def _kind_cost(steps: Sequence[Step]) -> float:
    """Prefer, where a weight is as good a convolution as a transposed one, the kind of the others with its kernel."""
    cost = 0.0
    for step in steps:
        if step.before == step.after and step.kind != "linear":
            sure = {other.kind for other in steps if other.kernel == step.kernel and other.before != other.after}
            natural = "conv" if step.kernel % 2 else "deconv"
            cost += 0.0 if sure == {step.kind} else 0.1 if step.kind == natural else 0.3
    return cost


# --- geometry ---------------------------------------------------------------------------------------------------------

_USUAL = {
    1: {28: 0.0, 32: 0.5, 64: 0.5, 128: 0.6, 256: 0.6, 512: 0.8, 16: 1.5},
    3: {32: 0.0, 64: 0.0, 128: 0.0, 256: 0.0, 512: 0.3, 1024: 0.3, 28: 1.5, 16: 1.5, 48: 1.5, 96: 1.5},
}
"""How surprising a resolution is, by the channels of the image."""
_MIXED = 20.0
"""What a mixture of conventions costs; there the next best must be dearer by `_MARGIN`."""
_MARGIN = 3.0
_SAME = 1.0  # cost of a layer that keeps the size where doubling is the rule


@dataclass(frozen=True)
class _Way:
    cost: float
    steps: tuple[Step, ...]


def _solve(steps: Sequence[Step], options: Mapping[str, Any]) -> list[_Way]:
    """Find the geometries that reach a usual resolution, or the one that `options` give, cheapest first."""
    last, wanted = steps[-1], options.get("resolution")
    if last.kind == "linear":
        side = _side(last.after, _channels_of_flat(last.after))
        sized = (*(replace(step, size=1) for step in steps[:-1]), replace(last, size=side))
        return [_Way(0.0, sized)] if wanted is None or wanted == side else []
    told = _told(steps, options)
    usual = _USUAL[last.after]
    for convention, base in ((_doubling, 0.0), (_unpadded, 10.0), (_any, _MIXED)):
        ways = _ways(steps, convention, told)
        goals = {size: cost for size, cost in usual.items() if convention is not _any or cost < 1.0}
        if wanted is not None:
            goals = {wanted: 0.0}
        elif told["stride"] is not None and told["padding"] is not None:
            goals = dict.fromkeys(ways, 0.0)  # nothing is left to infer
        reached = [
            _Way(base + way.cost + goals[size], way.steps)
            for size, found in ways.items() if size in goals for way in found
        ]  # fmt: skip
        if reached:
            return sorted(reached, key=lambda way: way.cost)[: 2 if convention is _any else 1]
    return []


def _unclear(name: str, steps: Sequence[Step], candidates: Sequence[Sequence[Step]]) -> str:
    """Say that the geometry is not clear, with the options that make it so."""
    kernels = [step.kernel for step in steps if step.kind != "linear"]
    said = []
    for candidate in candidates:
        convolutions = [step for step in candidate if step.kind != "linear"]
        fields = (("strides", "stride"), ("paddings", "padding"), ("output_paddings", "output_padding"))
        numbers = [f"{option}={','.join(str(getattr(s, field)) for s in convolutions)}" for option, field in fields]
        said.append(f"{' '.join(numbers)} ({candidate[-1].size} px)")
    found = f"lead to an image in several ways, such as {' or '.join(said)}" if said else "lead to no usual resolution"
    return (
        f"{name}: convolutions with kernels {kernels} {found}; say resolution=, or strides= and paddings= (and "
        f"output_paddings=, upsample=) with one number for each of the {len(kernels)} convolutions"
    )


def _told(steps: Sequence[Step], options: Mapping[str, Any]) -> dict[str, list[int] | None]:
    """Return the numbers that the user gave for each convolution, by the name of the field."""
    n = sum(step.kind != "linear" for step in steps)
    told: dict[str, list[int] | None] = {}
    for option, field in (
        ("strides", "stride"), ("paddings", "padding"), ("output_paddings", "output_padding"), ("upsample", "upsample"),
    ):  # fmt: skip
        numbers = _listed(options.get(option))
        if numbers is not None and len(numbers) != n:
            raise UserError(f"{option} has {len(numbers)} numbers; give one for each of the {n} convolutions")
        try:
            told[field] = None if numbers is None else [int(number) for number in numbers]
        except ValueError as error:
            raise UserError(f"{option} {options[option]!r} are not whole numbers; write them as 1,2,2") from error
    return told


def _listed(value: Any) -> list[Any] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return [piece.strip() for piece in value.split(",")]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _ways(steps: Sequence[Step], convention: Any, told: Mapping[str, list[int] | None]) -> dict[int, list[_Way]]:
    """Return for each size that the image may have the two cheapest geometries that lead there."""
    ways = {1: [_Way(0.0, ())]}
    index = -1
    for i, step in enumerate(steps):
        index += step.kind != "linear"
        reached: dict[int, list[_Way]] = {}
        for size, found in ways.items():
            for cost, bare in _choices(steps, i, size, convention, told, index):
                grown = bare.size if bare.kind == "linear" else bare.grown(size)
                if 1 <= grown <= 2048:
                    chosen = replace(bare, size=grown)
                    reached.setdefault(grown, []).extend(_Way(w.cost + cost, (*w.steps, chosen)) for w in found)
        ways = {size: sorted(found, key=lambda way: way.cost)[:2] for size, found in reached.items()}
    return ways


def _choices(
    steps: Sequence[Step], i: int, size: int, convention: Any, told: Mapping[str, list[int] | None], index: int
) -> Iterator[tuple[float, Step]]:
    step = steps[i]
    if step.kind == "linear":
        is_last = i + 1 == len(steps) or steps[i + 1].kind == "linear"
        yield 0.0, replace(step, size=1 if is_last else _side(step.after, steps[i + 1].before))
        return
    forced = {field: numbers[index] for field, numbers in told.items() if numbers is not None}
    if forced:
        convention = _any  # what is told need not look like any convention
    if {"stride", "padding"} <= set(forced):
        geometry: dict[str, Any] = {"output_padding": 0, "upsample": 1, **forced}
        yield 0.0, replace(step, **geometry)
        return
    for cost, bare in convention(steps, i, size):
        if all(getattr(bare, field) == number for field, number in forced.items()):
            yield cost, bare


def _doubling(steps: Sequence[Step], i: int, size: int) -> Iterator[tuple[float, Step]]:
    """Each layer doubles the size or keeps it; see the text of this module."""
    step, is_last = steps[i], i == len(steps) - 1
    k, half = step.kernel, (step.kernel - 1) // 2
    early = 0.02 * i  # layers that keep the size come early where nothing else decides
    if step.kind == "conv":
        if k % 2 == 0:
            return
        keeps = replace(step, padding=half)
        only = all(other.kind != "deconv" for other in steps)
        yield (0.0 if is_last or not only else _SAME + early), keeps
        yield (0.0 if only and not is_last else 1.0 if only else 3.0), replace(keeps, upsample=2)
        return
    if size == 1 and i == 0:
        yield 0.0, replace(step, stride=1)
        return
    if k % 2 == 0:
        yield 0.0, replace(step, stride=2, padding=half)
        return
    later_kernels = {other.kernel % 2 for j, other in enumerate(steps) if j not in (0, i) and other.kind == "deconv"}
    if k > 1:
        yield 0.0, replace(step, stride=2, padding=half, output_padding=1)
    if later_kernels == {0}:  # one odd kernel among even ones is there to reach an odd size, as 4 -> 7 -> 14 -> 28
        yield 0.25, replace(step, stride=2, padding=half)
    yield (0.0 if k == 1 else _SAME + early), replace(step, padding=half)


def _unpadded(steps: Sequence[Step], i: int, size: int) -> Iterator[tuple[float, Step]]:
    """Nothing is padded; strides are 1 or 2."""
    step = steps[i]
    if step.kind == "conv":
        yield 0.0, step
    else:
        yield 0.0, replace(step, stride=2)
        if size > 1:
            yield 0.5 + 0.02 * i, step


def _any(steps: Sequence[Step], i: int, size: int) -> Iterator[tuple[float, Step]]:
    """Every geometry that is not odd in itself, the usual ones cheapest."""
    step, k = steps[i], steps[i].kernel
    if step.kind == "conv":
        for padding, upsample in itertools.product(range((k + 1) // 2 + 1), (1, 2)):
            yield abs(padding - (k - 1) / 2) + (upsample > 1), replace(step, padding=padding, upsample=upsample)
        return
    if size == 1 and i == 0:
        for padding in range((k + 1) // 2):
            yield 3.0 * padding, replace(step, stride=1, padding=padding)
        return
    for stride, padding, extra in itertools.product((1, 2, 3, 4), range(k), (0, 1)):
        if extra < stride:
            shape = replace(step, stride=stride, padding=padding, output_padding=extra)
            growth = abs(shape.grown(size) - (2 if stride == 2 else stride) * size)
            odd = {1: 0.6, 2: 0.0, 3: 4.0, 4: 2.0}[stride]
            yield odd + growth + 0.3 * padding * (growth > 0) + 0.1 * extra * (growth > 0), shape


# --- activations ------------------------------------------------------------------------------------------------------


def _name_activations(layers: Sequence[_Found], told: Any) -> None:
    """Set the activation of each hidden layer: as told, or relu; none where the file's numbering has no room for one.

    In a Sequential the numbers skip modules without weights, so that neighbours without a gap have nothing between.
    """
    names = _listed(told) or ["relu"]
    n_hidden = len(layers) - 1
    if len(names) not in (1, n_hidden):
        raise UserError(f"activation has {len(names)} names; give one, or one for each of the {n_hidden} hidden layers")
    each = names if len(names) == n_hidden else names * n_hidden
    for i, layer in enumerate(layers):
        if i == n_hidden:
            layer.step = replace(layer.step, activation="none")
            continue
        has_room = len(names) == n_hidden or _has_room(layer, layers[i + 1])
        layer.step = replace(layer.step, activation=each[i] if has_room else "none")


def _has_room(one: _Found, other: _Found) -> bool:
    """Tell whether a module without weights may stand between two layers, beside those that must."""
    first, second = _place(one.key), _place(other.key)
    n_between = int(one.norm is not None) + (other.step.upsample > 1)
    n_between += one.step.kind == "linear" and other.step.kind != "linear"  # what cuts the vector into maps
    if first[0] != second[0]:  # perhaps only the norm is a sibling
        first, n_between = _place(one.last_key), int(other.step.upsample > 1)
    if first[0] != second[0] or first[1] < 0 or second[1] <= first[1]:
        return True
    return second[1] - first[1] - 1 > n_between


def _place(key: str) -> tuple[str, int]:
    """Return the Sequential that a module stands in, and its number there; -1 where it has none."""
    parent, _, number = key.rpartition(".")
    return parent, int(number) if number.isdecimal() else -1
