"""BigGAN and BigGAN-deep: residual generators with classes (Brock, Donahue, Simonyan, ICLR 2019, arXiv 1809.11096).

Files of two homes are read: ajbrock/BigGAN-PyTorch (`G_ema.pth`, hierarchical or flat z, plain or deep) and
huggingface/pytorch-pretrained-BigGAN (deep; batch statistics stored for 51 truncations). Spectral normalisation is
divided out at loading, conditions are put in the order (z, y), and first features in the order (channel, row, column).

Spaces: `z`, cut into one slot a layer where the network takes chunks of it; `z+`, one slot a layer, where every layer
takes the whole z; and `zy`, z followed by the embedding of the class, for mixing classes and moving between them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import runtime
from ..codes import Codes, Part, Space
from ..errors import UserError, unknown_name
from ..frozen import computed_in, doubled_convolved, in_precision
from ..generator import Generator, Layer, Layout, State, StyleMatrix, needs
from .ops import read_into

BOUND = 2.0  # where the prior is cut, in standard deviations
OPTIONS = {"bn_eps": float, "sn_eps": float, "depth": int, "law": str, "label_names": list}
BLOCK_DEPTH = 2  # residual blocks a resolution of BigGAN-deep, as published
SN_EPS = 1e-8  # the training default of ajbrock's code; it only bounds the norms of vectors from below


@dataclass(frozen=True)
class BigGANConfig:
    """What fixes the shape of a BigGAN."""

    is_deep: bool
    """Whether blocks are the bottlenecks of BigGAN-deep."""
    z_dim: int
    """Length of the whole z."""
    n_chunks: int
    """Chunks that z is cut into, one for the base and one a block; 1 where it stays whole."""
    is_fed_everywhere: bool
    """Whether z enters every block; else the base alone."""
    y_dim: int
    """Length of the class embedding."""
    n_classes: int
    """Number of classes; 1 is an unconditional generator."""
    base: int
    """Height and width of the first features in pixels."""
    widths: tuple[int, ...]
    """Channels before each block, and after the last."""
    hidden: tuple[int, ...]
    """Channels inside each block."""
    upsample: tuple[bool, ...]
    """Whether each block doubles the size."""
    attention: tuple[int, ...]
    """Numbers of the blocks, from 1, that self-attention follows."""
    channels: int = 3
    """Channels of an image."""
    n_stats: int = 1
    """For how many truncations, evenly from 0 to 1, batch statistics are stored; 1: the same for all."""
    bn_eps: float = 1e-5
    """Added to the variance in batch normalisation."""
    law: Literal["truncated", "normal"] = "truncated"
    """Law of z: N(0, 1) cut at ±2, the law of sampling, or uncut, that of training."""

    def __post_init__(self) -> None:
        for name in ("widths", "hidden", "upsample", "attention"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.law not in ("truncated", "normal"):
            raise UserError(f"law {self.law!r} is not known; allowed: truncated, normal")

    @property
    def n_blocks(self) -> int:
        """How many residual blocks there are."""
        return len(self.hidden)

    @property
    def resolution(self) -> int:
        """Height and width of an image."""
        return self.base * 2 ** sum(self.upsample)

    @property
    def base_dim(self) -> int:
        """Length of what the base is made of."""
        return self.z_dim // self.n_chunks + (self.y_dim if self.is_deep else 0)

    @property
    def condition_dim(self) -> int:
        """Length of what conditions the blocks."""
        return (self.z_dim // self.n_chunks if self.is_fed_everywhere else 0) + self.y_dim


# --- the network ------------------------------------------------------------------------------------------------------


class Norm(nn.Module):
    """Batch normalisation with stored statistics; gain and bias are learnt, or linear in a condition.

    Source:
        BigGAN, appendix B; gain = 1 + linear(condition).
    """

    mean: Tensor
    var: Tensor

    def __init__(self, width: int, config: BigGANConfig, *, is_conditional: bool = True) -> None:
        super().__init__()
        shape = (width, config.condition_dim) if is_conditional else (width,)
        self.is_conditional, self.eps = is_conditional, config.bn_eps
        self.gain = nn.Parameter(torch.zeros(shape) if is_conditional else torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        self.register_buffer("mean", torch.zeros(config.n_stats, width))
        self.register_buffer("var", torch.ones(config.n_stats, width))

    def forward(self, x: Tensor, condition: Tensor, truncation: float) -> Tensor:
        """Normalise x [batch, width, h, w] under a condition [batch, condition_dim]."""
        gain, bias = self.gain[None], self.bias[None]
        if self.is_conditional:
            gain, bias = 1 + condition @ self.gain.T, condition @ self.bias.T  # [batch, width]
        scale = (between(self.var, truncation) + self.eps).rsqrt() * gain
        shift = bias - between(self.mean, truncation) * scale
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])


def between(rows: Tensor, truncation: float) -> Tensor:
    """Return statistics [width] for a truncation, from `rows` [n, width] stored for even steps from 0 to 1.

    The weights of the two neighbours are the wrong way round for an interpolation; the published images were made so.
    """
    if len(rows) == 1:
        return rows[0]
    rest, below = math.modf(truncation / (1.0 / (len(rows) - 1)))
    if rest == 0.0:
        return rows[int(below)]
    above = min(int(below) + 1, len(rows) - 1)
    return rows[int(below)] * rest + rows[above] * (1 - rest)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or in BigGAN-deep a bottleneck of 1x1, 3x3, 3x3, 1x1, each after a conditional norm.

    The shortcut is a 1x1 convolution, or in BigGAN-deep the first channels as they are.

    Source:
        BigGAN, figures 15b and 16b.
    """

    def __init__(self, config: BigGANConfig, index: int) -> None:
        super().__init__()
        before, after, hidden = config.widths[index], config.widths[index + 1], config.hidden[index]
        widths = [before, hidden, hidden, hidden, after] if config.is_deep else [before, hidden, after]
        kernels = [1, 3, 3, 1] if config.is_deep else [3, 3]
        self.norms = nn.ModuleList(Norm(width, config) for width in widths[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], kernel, padding=kernel // 2) for i, kernel in enumerate(kernels)
        )
        self.shortcut = None if config.is_deep else nn.Conv2d(before, after, 1)
        self.after, self.factor = after, 2 if config.upsample[index] else 1
        self.grows_at = 1 if config.is_deep else 0

    def forward(self, x: Tensor, condition: Tensor, truncation: float) -> Tensor:
        """Return the next features of x under a condition."""
        h = x
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            h = F.relu(norm(h, condition, truncation))
            h = conv(_grown(h, self.factor) if i == self.grows_at else h)
        # a 1x1 convolution and nearest neighbours commute, so that the shortcut is made small
        x = x[:, : self.after] if self.shortcut is None else self.shortcut(x)
        return h + _grown(x, self.factor)


def advanced(block: ResidualBlock, x: Tensor, condition: Tensor, truncation: float) -> Tensor:
    """Return what a frozen block gives: doubling is in the kernel of the convolution that follows."""
    h = x
    layers: Any = zip(block.norms, block.convs, strict=True)
    for i, (norm, conv) in enumerate(layers):
        h = F.relu(norm(h, condition, truncation), inplace=True)
        if i == block.grows_at and block.factor == 2:
            h = doubled_convolved(conv, h)
        else:
            h = F.conv2d(h, in_precision(conv.weight, computed_in(h)), conv.bias, padding=conv.padding)
    x = x[:, : block.after] if block.shortcut is None else block.shortcut(x)
    return h + _grown(x, block.factor)


def _grown(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="nearest") if factor > 1 else x


class Attention(nn.Module):
    """Self-attention over places, with keys and values pooled by two (SAGAN, as BigGAN uses it)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        query_width, value_width = width // 8, width // 2
        self.query = nn.Conv2d(width, query_width, 1, bias=False)
        self.key = nn.Conv2d(width, query_width, 1, bias=False)
        self.value = nn.Conv2d(width, value_width, 1, bias=False)
        self.out = nn.Conv2d(value_width, width, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + gain · attended, of the shape of x."""
        query = self.query(x).flatten(2).transpose(1, 2)  # [batch, places, query_width]
        key = F.max_pool2d(self.key(x), 2).flatten(2)  # [batch, query_width, places / 4]
        value = F.max_pool2d(self.value(x), 2).flatten(2).transpose(1, 2)
        attended = torch.softmax(query @ key, dim=-1) @ value  # [batch, places, value_width]
        return x + self.gain * self.out(attended.transpose(1, 2).unflatten(2, x.shape[2:]))


class BigGANNetwork(nn.Module):
    """The network, with spectral normalisation divided out."""

    embedding: Tensor

    def __init__(self, config: BigGANConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.zeros(config.n_classes, config.y_dim))
        self.linear = nn.Linear(config.base_dim, config.widths[0] * config.base**2)
        self.blocks = nn.ModuleList(ResidualBlock(config, i) for i in range(config.n_blocks))
        self.attention = nn.ModuleDict({str(n): Attention(config.widths[n]) for n in config.attention})
        self.norm = Norm(config.widths[-1], config, is_conditional=False)
        self.rgb = nn.Conv2d(config.widths[-1], config.channels, 3, padding=1)

    def to_base(self, condition: Tensor) -> Tensor:
        """Return the first features, [batch, width, base, base]."""
        return self.linear(condition).unflatten(1, (-1, self.config.base, self.config.base))

    def to_image(self, h: Tensor, truncation: float) -> Tensor:
        """Return images in [-1, 1] for the last features."""
        return torch.tanh(self.rgb(F.relu(self.norm(h, h, truncation))))


# --- the family -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Inputs:
    conditions: tuple[Tensor, ...]  # of the base, then of each block
    truncation: float


class BigGAN(Generator):
    """A BigGAN; layer 0 is the base, layer k the k-th residual block, the last number of `zy` the class."""

    family: ClassVar[str] = "biggan"
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "ajbrock/BigGAN-PyTorch",
            ("G_ema", "g_ema", "generator_ema", "G", "state_dict", "weights", ""),
            needs("linear.weight", "blocks.0.0.conv1.weight", "blocks.0.0.bn1.gain.weight", "output_layer.2.weight"),
        ),
        Layout(
            "huggingface/pytorch-pretrained-BigGAN",
            ("weights", "state_dict", ""),
            needs(
                "embeddings.weight", "generator.gen_z.weight_orig", "generator.layers.0.bn_0.scale.weight_orig",
                "generator.bn.running_means",
            ),
        ),
    )  # fmt: skip
    network: BigGANNetwork

    def __init__(self, network: BigGANNetwork, *, name: str, label_names: Sequence[str] = (), **about: Any) -> None:
        config = network.config
        layers = _layers(config)
        self._embedding_moments: tuple[Tensor, Tensor] | None = None
        is_conditional = config.n_classes > 1
        names = tuple(label_names) or tuple(str(i) for i in range(config.n_classes))
        super().__init__(
            network,
            name=name,
            spaces=self._make_spaces(network),
            layers=layers,
            resolution=config.resolution,
            channels=config.channels,
            label_names=names if is_conditional else (),
            config=asdict(config),
            **about,
        )
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if is_conditional and len(names) != config.n_classes:
            raise UserError(f"{len(names)} label names came for {config.n_classes} classes; give one each")

    @staticmethod
    def _make_spaces(network: BigGANNetwork) -> dict[str, Space]:
        config = network.config
        dim, n_chunks, law = config.z_dim // config.n_chunks, config.n_chunks, config.law
        said = "N(0, 1)" if law == "normal" else f"N(0, 1) cut at ±{BOUND:g}"
        variance = 1.0 if law == "normal" else truncated_variance()

        def moments() -> tuple[Tensor, Tensor]:
            return torch.zeros(dim), torch.eye(dim) * variance

        def moments_with_class() -> tuple[Tensor, Tensor]:
            embedding = network.embedding.detach().cpu().double()
            covariance = torch.block_diag(torch.eye(config.z_dim).double() * variance, embedding.T.cov(correction=0))
            return torch.cat([torch.zeros(config.z_dim), embedding.mean(0).float()]), covariance.float()

        fed = _fed(config)
        by_slot = tuple(Part(f"slot{k}", k, k, 0, dim, names) for k, names in enumerate(fed))
        every = tuple(name for names in fed for name in names)
        from_class = tuple(name for names in fed[0 if config.is_deep else 1 :] for name in names)
        chunks = tuple(Part(f"slot{k}", k, 0, k * dim, (k + 1) * dim, fed[k]) for k in range(n_chunks))
        if n_chunks > 1:
            spaces = {"z": Space("z", n_chunks, dim, by_slot, said, moments)}
        else:
            layers = every if config.is_fed_everywhere else fed[0]
            chunks = (Part("z", 0, 0, 0, dim, layers),)
            spaces = {"z": Space("z", 1, dim, (Part("all", 0, 0, 0, dim, layers),), said, moments)}
            if config.is_fed_everywhere:
                spaces["z+"] = Space("z+", len(fed), dim, by_slot, said, moments, broadcast_of="z")
        if config.n_classes > 1:
            length = config.z_dim + config.y_dim
            label = Part("y", len(chunks), 0, config.z_dim, length, from_class)
            spaces["zy"] = Space("zy", 1, length, (*chunks, label), "z, and the class embedding", moments_with_class)
        return spaces

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], **about: Any) -> BigGAN:
        """Rebuild a BigGAN from our own files."""
        made = BigGANConfig(**config)
        return cls(read_into(lambda: BigGANNetwork(made), tensors), **about)  # type: ignore[arg-type]

    @classmethod
    def from_foreign(
        cls, layout: str, tensors: dict[str, Tensor], checkpoint: Any, options: Mapping[str, Any], **about: Any
    ) -> BigGAN:
        """Read a file of either home; all shapes are in its tensors.

        Args:
            layout: one of `layouts`.
            tensors: of the generator, by their keys.
            checkpoint: the file; settings beside it may give `eps`.
            options: `bn_eps` (1e-5 for ajbrock's files, 1e-4 for Hugging Face's), `sn_eps`, `depth` (blocks a
                resolution of BigGAN-deep), `law` (`truncated` or `normal`), `label_names`.
            about: `name` and `origin`.
        """
        unknown = [option for option in options if option not in OPTIONS]
        if unknown:
            raise unknown_name("option of a BigGAN file", unknown[0], OPTIONS)
        try:
            given: dict[str, Any] = {key: OPTIONS[key](value) for key, value in options.items() if key != "label_names"}
        except ValueError as error:
            raise UserError(f"the options {dict(options)} cannot be read: {error}; give numbers") from error
        names = options.get("label_names", ())
        about["label_names"] = tuple(names.split(",") if isinstance(names, str) else names)
        read = _from_ajbrock if layout == "ajbrock/BigGAN-PyTorch" else _from_hugging_face
        tensors = {key: value.float() for key, value in tensors.items() if value.is_floating_point()}
        try:
            config, ours = read(tensors, given, checkpoint.sidecar)
        except (KeyError, IndexError) as error:
            raise UserError(f"{about.get('name')}: the file lacks {error} of the layout {layout}") from error
        except (RuntimeError, ZeroDivisionError) as error:
            raise UserError(f"{about.get('name')}: the file's tensors do not fit each other: {error}") from error
        return cls.from_config(asdict(config), ours, **about)

    # codes

    @property
    def keeps_statistics(self) -> bool:
        """Whether batch statistics depend on the truncation, which then travels inside Codes."""
        return self.network.config.n_stats > 1

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        space: str | None = None,
        truncation: float = 1.0,
        cutoff: int | None = None,
        label: Any = None,
        noise: str = "stored",
        start: int = 0,
    ) -> Codes:
        """Draw codes; code i depends on (seed, start + i) alone.

        z is drawn from a normal law cut at ±2 and then multiplied by `truncation` (BigGAN, section 3.1 and appendix
        E: the truncation trick as published with the models). Where batch statistics are stored by truncation, it
        also travels in the codes. Other arguments are those of every generator.
        """
        self._check_truncation(truncation)
        codes = super().sample(
            n, seed=seed, space=space, truncation=truncation, cutoff=cutoff, label=label, noise=noise, start=start
        )
        if codes.space.name == self.prior and self.keeps_statistics:
            return replace(codes, truncation=truncation)
        return codes

    def _check_truncation(self, truncation: float) -> None:
        if self.keeps_statistics and not 0.0 <= truncation <= 1.0:
            raise UserError(
                f"truncation {truncation} came; {self.name} keeps statistics for truncations from 0 to 1: stay between"
            )

    def _draw(self, n: int, *, seed: int, start: int, truncation: float) -> Tensor:
        config, space = self.network.config, self.spaces[self.prior]
        if config.law == "normal":
            return super()._draw(n, seed=seed, start=start, truncation=truncation)
        rows = runtime.draw(n, config.z_dim, seed=seed, stream=f"codes/{space.name}", start=start, law="uniform")
        low = torch.special.ndtr(torch.tensor(-BOUND, dtype=torch.float64))
        share = low + (1 - 2 * low) * torch.from_numpy(rows).double()
        cut = torch.special.ndtri(share).clamp(-BOUND, BOUND).float()
        return cut.reshape(n, space.slots, space.dim) * truncation

    def _lift(self, codes: Codes, target: Space, *, truncation: float, cutoff: int | None) -> Codes:
        self._check_truncation(truncation)
        config, source = self.network.config, codes.space.name
        if source != target.name and (source != self.prior or target.name not in ("z+", "zy")):
            return super()._lift(codes, target, truncation=truncation, cutoff=cutoff)
        latent = codes.latent
        if target.name == "z+":
            latent = latent.expand(-1, target.slots, -1)
        if target.name == "zy" and source != "zy":
            embedded = self._labels(codes) @ self.network.embedding.to(latent.device)
            whole = latent.expand(-1, config.n_chunks, -1).flatten(1)
            latent = torch.cat([whole, embedded], dim=1)[:, None]
            codes = replace(codes, labels=None)  # they are in the latent now
        if truncation != 1.0:
            latent = latent * self._pull(target, truncation, cutoff).to(latent)
        kept = codes.truncation * truncation if self.keeps_statistics else codes.truncation
        return replace(codes.with_latent(latent, target), truncation=kept)

    def _pull(self, space: Space, truncation: float, cutoff: int | None) -> Tensor:
        """Return what truncation multiplies codes with, [slots, dim]: z alone, in its first `cutoff` parts."""
        factor = torch.ones(space.slots, space.dim)
        for part in [part for part in space.parts if part.name != "y"][:cutoff]:
            factor[part.slot, part.start : part.stop] = truncation
        return factor

    def _labels(self, codes: Codes) -> Tensor:
        n_classes = self.network.config.n_classes
        if n_classes == 1:
            return codes.latent.new_ones(len(codes), 1)
        if codes.labels is None:
            raise UserError(
                f"{self.name} is conditional, but these codes of space {codes.space.name!r} have no labels; "
                "sample with label=, or give Codes(..., labels=) of shape [batch, classes]"
            )
        if codes.labels.shape[1] != n_classes:
            raise UserError(
                f"labels of shape {list(codes.labels.shape)} came; {self.name} takes [batch, {n_classes}] weights"
            )
        return codes.labels.to(codes.latent)

    # running

    def _inputs(self, codes: Codes) -> _Inputs:
        config = self.network.config
        self._check_truncation(codes.truncation)
        if codes.space.name == "zy":
            z, y = codes.latent[:, 0].split([config.z_dim, config.y_dim], dim=1)
            z = z.unflatten(1, (config.n_chunks, -1))
        else:
            z, y = codes.latent, self._labels(codes) @ self.network.embedding
        n_slots = config.n_blocks + 1 if config.is_fed_everywhere else 1
        chunks = z.expand(-1, n_slots, -1).unbind(1)
        base = torch.cat([chunks[0], y], dim=1) if config.is_deep else chunks[0]
        if not config.is_fed_everywhere:
            return _Inputs((base, *[y] * config.n_blocks), codes.truncation)
        return _Inputs((base, *(torch.cat([chunk, y], dim=1) for chunk in chunks[1:])), codes.truncation)

    def _layer(self, index: int, state: State, inputs: _Inputs) -> State:
        layer, h = self.layers[index].name, state.features
        if layer == "base":
            base = self.network.to_base(inputs.conditions[0])
            return State(index + 1, base.contiguous(memory_format=torch.channels_last))
        assert h is not None
        if layer == "rgb":
            return State(index + 1, self.network.to_image(h, inputs.truncation))
        number = layer.removeprefix("block").removesuffix(".attention")
        if layer.endswith(".attention"):
            return State(index + 1, self.network.attention[number](h))
        block = self.network.blocks[int(number) - 1]
        return State(index + 1, advanced(block, h, inputs.conditions[int(number)], inputs.truncation))  # type: ignore[arg-type]

    # organs

    @property
    def style_space(self) -> Space:
        """`z+` where every layer takes the whole z, else `z`."""
        return self.spaces.get("z+", self.spaces["z"])

    def style_matrices(self, layers: str = "all") -> dict[str, StyleMatrix]:
        """Return the columns of z in what it enters: the base's matrix, and the gains and biases of each block."""
        dim = self.spaces["z"].dim
        matrices = {}
        for part in self.style_space.picked(layers):
            if part.number == 0:
                matrices["base"] = StyleMatrix(self.network.linear.weight[:, :dim], part)
                continue
            norms: Any = self.network.blocks[part.number - 1].norms
            rows = [weight[:, :dim] for norm in norms for weight in (norm.gain, norm.bias)]
            matrices[f"block{part.number}"] = StyleMatrix(torch.cat(rows), part)
        return matrices


def truncated_variance(bound: float = BOUND) -> float:
    """Return the variance of N(0, 1) cut at ±bound."""
    density = math.exp(-(bound**2) / 2) / math.sqrt(2 * math.pi)
    return 1 - 2 * bound * density / math.erf(bound / math.sqrt(2))


def _layers(config: BigGANConfig) -> list[Layer]:
    layers, size = [Layer("base", config.base, config.widths[0], 0)], config.base
    for number in range(1, config.n_blocks + 1):
        size *= 2 if config.upsample[number - 1] else 1
        width = config.widths[number]
        layers.append(Layer(f"block{number}", size, width, number if config.is_fed_everywhere else None))
        if number in config.attention:
            layers.append(Layer(f"block{number}.attention", size, width))
    return [*layers, Layer("rgb", size, config.channels)]


def _fed(config: BigGANConfig) -> tuple[tuple[str, ...], ...]:
    """Return for the base and each block the names of the layers whose condition it reads."""
    return (("base",), *((f"block{number}",) for number in range(1, config.n_blocks + 1)))


# --- foreign files ----------------------------------------------------------------------------------------------------


def _one_step(tensors: Mapping[str, Tensor], key: str, eps: float) -> Tensor:
    """Return a weight of ajbrock's over its largest singular value, as one step of power iteration from u0 gives it."""
    weight, u = tensors[f"{key}.weight"], tensors.get(f"{key}.u0")
    if u is None:  # trained without spectral normalisation
        return weight
    matrix = weight.flatten(1)
    v = F.normalize(u @ matrix, eps=eps)  # [1, in]
    image = v @ matrix.T  # [1, out]
    sigma = (image * F.normalize(image, eps=eps)).sum()
    return weight / sigma


def _stored(tensors: Mapping[str, Tensor], key: str) -> Tensor:
    """Return W / (uᵀ W v), as torch's spectral_norm evaluates it; the weight itself where it has none."""
    if f"{key}.weight" in tensors:
        return tensors[f"{key}.weight"]
    weight = tensors[f"{key}.weight_orig"]
    sigma = tensors[f"{key}.weight_u"] @ weight.flatten(1) @ tensors[f"{key}.weight_v"]
    return weight / sigma


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    numbers = [key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)]
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def _statistics(tensors: Mapping[str, Tensor], key: str) -> tuple[Tensor, Tensor]:
    """Find the statistics of one norm, [1, width] each, under the names of ajbrock's three kinds of norm."""
    for pair in (
        ("stored_mean", "stored_var"),
        ("bn.stored_mean", "bn.stored_var"),
        ("bn.running_mean", "bn.running_var"),
    ):
        if f"{key}.{pair[0]}" in tensors:
            return tensors[f"{key}.{pair[0]}"][None], tensors[f"{key}.{pair[1]}"][None]
    raise KeyError(f"{key}.stored_mean")


def _from_ajbrock(
    tensors: Mapping[str, Tensor], given: Mapping[str, Any], sidecar: Mapping[str, Any]
) -> tuple[BigGANConfig, dict[str, Tensor]]:
    is_deep = "blocks.0.0.conv4.weight" in tensors
    n_convs, n_blocks = 4 if is_deep else 2, _count(tensors, "blocks.")
    has_embedding = "shared.weight" in tensors
    eps = given.get("sn_eps", SN_EPS)
    gain = tensors["blocks.0.0.bn1.gain.weight"]
    # without a shared embedding each norm has a table of its own, which is linear in one-hot labels
    embedding = tensors["shared.weight"] if has_embedding else torch.eye(gain.shape[0])
    y_dim, condition_dim = embedding.shape[1], gain.shape[1] if has_embedding else gain.shape[0]
    widths = [tensors[f"blocks.{i}.0.conv1.weight"].shape[1] for i in range(n_blocks)]
    linear = _one_step(tensors, "linear", eps)
    chunk = linear.shape[1] - (y_dim if is_deep else 0)
    is_fed_everywhere = condition_dim > y_dim
    n_chunks = n_blocks + 1 if is_fed_everywhere and not is_deep else 1
    widths.append(tensors[f"blocks.{n_blocks - 1}.0.conv{n_convs}.weight"].shape[0])
    hidden = tuple(tensors[f"blocks.{i}.0.conv1.weight"].shape[0] for i in range(n_blocks))
    rgb = _one_step(tensors, "output_layer.2", eps)[:3]  # older BigGAN-deep files have more channels, and use three
    config = BigGANConfig(
        is_deep=is_deep,
        z_dim=chunk * n_chunks,
        n_chunks=n_chunks,
        is_fed_everywhere=is_fed_everywhere,
        y_dim=y_dim,
        n_classes=len(embedding),
        base=math.isqrt(linear.shape[0] // widths[0]),
        widths=tuple(widths),
        hidden=hidden,
        upsample=_growth(widths, given.get("depth")) if is_deep else (True,) * n_blocks,
        attention=tuple(i + 1 for i in range(n_blocks) if f"blocks.{i}.1.theta.weight" in tensors),
        channels=rgb.shape[0],
        bn_eps=given.get("bn_eps", 1e-5),
        law=given.get("law", "truncated"),
    )

    def z_first(weight: Tensor) -> Tensor:  # their conditions are (y, z)
        return torch.cat([weight[:, y_dim:], weight[:, :y_dim]], dim=1)

    def conditioning(key: str) -> Tensor:
        return z_first(_one_step(tensors, key, eps)) if has_embedding else tensors[f"{key}.weight"].T

    ours = {
        "embedding": embedding,
        "linear.weight": z_first(linear) if is_deep else linear,
        "linear.bias": tensors["linear.bias"],
        "rgb.weight": rgb,
        "rgb.bias": tensors["output_layer.2.bias"][:3],
        "norm.gain": tensors["output_layer.0.gain"],
        "norm.bias": tensors["output_layer.0.bias"],
    }
    ours["norm.mean"], ours["norm.var"] = _statistics(tensors, "output_layer.0")
    for i in range(n_blocks):
        theirs, block = f"blocks.{i}.0.", f"blocks.{i}."
        for j in range(n_convs):
            norm = f"{block}norms.{j}."
            ours[f"{block}convs.{j}.weight"] = _one_step(tensors, f"{theirs}conv{j + 1}", eps)
            ours[f"{block}convs.{j}.bias"] = tensors[f"{theirs}conv{j + 1}.bias"]
            ours[norm + "gain"] = conditioning(f"{theirs}bn{j + 1}.gain")
            ours[norm + "bias"] = conditioning(f"{theirs}bn{j + 1}.bias")
            ours[norm + "mean"], ours[norm + "var"] = _statistics(tensors, f"{theirs}bn{j + 1}")
        if not is_deep:
            ours[block + "shortcut.weight"] = _one_step(tensors, theirs + "conv_sc", eps)
            ours[block + "shortcut.bias"] = tensors[theirs + "conv_sc.bias"]
    for number in config.attention:
        theirs, mine = f"blocks.{number - 1}.1.", f"attention.{number}."
        for part, key in (("query", "theta"), ("key", "phi"), ("value", "g"), ("out", "o")):
            ours[f"{mine}{part}.weight"] = _one_step(tensors, theirs + key, eps)
        ours[mine + "gain"] = tensors[theirs + "gamma"].reshape(())
    return config, {key: value.contiguous() for key, value in ours.items()}


def _growth(widths: Sequence[int], depth: int | None) -> tuple[bool, ...]:
    """Return which blocks of a BigGAN-deep double the size: the last of every `depth`.

    Widths change at those blocks alone, so they tell the depth; where they leave it open it is 2, as published.
    """
    n_blocks = len(widths) - 1
    changes = [i for i in range(n_blocks) if widths[i] != widths[i + 1]]
    fitting = [d for d in range(1, n_blocks + 1) if n_blocks % d == 0 and all((i + 1) % d == 0 for i in changes)]
    if depth is None:
        depth = BLOCK_DEPTH if BLOCK_DEPTH in fitting else max(fitting)
    if depth not in fitting:
        allowed = ", ".join(map(str, fitting))
        raise UserError(f"depth {depth} does not fit {n_blocks} blocks of widths {list(widths)}; allowed: {allowed}")
    return tuple((i + 1) % depth == 0 for i in range(n_blocks))


def _from_hugging_face(
    tensors: Mapping[str, Tensor], given: Mapping[str, Any], sidecar: Mapping[str, Any]
) -> tuple[BigGANConfig, dict[str, Tensor]]:
    places = [f"generator.layers.{i}." for i in range(_count(tensors, "generator.layers."))]
    blocks = [place for place in places if f"{place}conv_0.bias" in tensors]
    attention, n_before = [], 0
    for place in places:
        n_before += place in blocks
        attention += [] if place in blocks else [(n_before, place)]
    embedding = tensors["embeddings.weight"].T  # [classes, y_dim]
    linear = _stored(tensors, "generator.gen_z")
    widths = [tensors[f"{place}bn_0.running_means"].shape[1] for place in blocks]
    widths.append(tensors["generator.bn.weight"].shape[0])
    base = math.isqrt(linear.shape[0] // widths[0])
    told = sidecar.get("layers")
    growth = tuple(bool(layer[0]) for layer in told) if told else _growth(widths, given.get("depth"))
    if len(growth) != len(blocks):
        raise UserError(f"config.json describes {len(growth)} blocks, but the weights have {len(blocks)}; mend it")
    config = BigGANConfig(
        is_deep=True,
        z_dim=linear.shape[1] - embedding.shape[1],
        n_chunks=1,
        is_fed_everywhere=True,
        y_dim=embedding.shape[1],
        n_classes=len(embedding),
        base=base,
        widths=tuple(widths),
        hidden=tuple(len(tensors[f"{place}conv_0.bias"]) for place in blocks),
        upsample=growth,
        attention=tuple(number for number, _ in attention),
        n_stats=len(tensors["generator.bn.running_means"]),
        bn_eps=given.get("bn_eps", float(sidecar.get("eps", 1e-4))),
        law=given.get("law", "truncated"),
    )

    def channels_first(rows: Tensor) -> Tensor:  # theirs lie (row, column, channel)
        return rows.unflatten(0, (base, base, -1)).movedim(2, 0).flatten(0, 2)

    ours = {
        "embedding": embedding,
        "linear.weight": channels_first(linear),
        "linear.bias": channels_first(tensors["generator.gen_z.bias"]),
        "rgb.weight": _stored(tensors, "generator.conv_to_rgb")[:3],  # it has more channels, of which three are shown
        "rgb.bias": tensors["generator.conv_to_rgb.bias"][:3],
        "norm.gain": tensors["generator.bn.weight"],
        "norm.bias": tensors["generator.bn.bias"],
        "norm.mean": tensors["generator.bn.running_means"],
        "norm.var": tensors["generator.bn.running_vars"],
    }
    for i, place in enumerate(blocks):
        for j in range(4):
            norm = f"blocks.{i}.norms.{j}."
            ours[f"blocks.{i}.convs.{j}.weight"] = _stored(tensors, f"{place}conv_{j}")
            ours[f"blocks.{i}.convs.{j}.bias"] = tensors[f"{place}conv_{j}.bias"]
            ours[norm + "gain"] = _stored(tensors, f"{place}bn_{j}.scale")
            ours[norm + "bias"] = _stored(tensors, f"{place}bn_{j}.offset")
            ours[norm + "mean"] = tensors[f"{place}bn_{j}.running_means"]
            ours[norm + "var"] = tensors[f"{place}bn_{j}.running_vars"]
    for number, place in attention:
        for part, key in (("query", "theta"), ("key", "phi"), ("value", "g"), ("out", "o_conv")):
            ours[f"attention.{number}.{part}.weight"] = _stored(tensors, f"{place}snconv1x1_{key}")
        ours[f"attention.{number}.gain"] = tensors[f"{place}gamma"].reshape(())
    return config, {key: value.contiguous() for key, value in ours.items()}
