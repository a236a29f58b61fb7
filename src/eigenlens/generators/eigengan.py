"""EigenGAN: a generator with a linear subspace in every layer (He, Kan, Shan, ICCV 2021, arXiv 2104.12476).

In layer i the latent z_i moves a point inside a subspace of feature maps, φ_i = U_i L_i z_i + μ_i, with orthonormal U_i
[height, width, channels, q], importances L_i [q] and an offset μ_i. Only the base is fed by noise, eps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codes import Codes, Part, Space
from ..errors import Unsupported, UserError
from ..frozen import in_precision, kept
from ..generator import Generator, Layer, Layout, OwnAxes, State, StyleMatrix, needs
from .ops import read_into

SLOPE = 0.2  # of every leaky ReLU
BASE = 4  # pixels of the first feature map


@dataclass(frozen=True)
class EigenGANConfig:
    """What fixes the shape of an EigenGAN."""

    resolution: int = 256
    """Height and width of an image in pixels: a power of two from 16 to 1024."""
    channels: int = 3
    """Channels of an image: 1 (grey) or 3 (RGB)."""
    noise_dim: int = 512
    """Length of eps, which enters at the base alone."""
    n_basis: int | tuple[int, ...] = 6
    """Dimensions of the subspaces: one number, or one for each layer from the deepest. 0 leaves a layer its offset
    alone; 0 for all is the same network without subspaces, fed by eps only."""
    base_channels: int = 16
    """Channels of the last feature map where `widths` is relative."""
    max_channels: int = 512
    """Most channels of any feature map."""
    widths: Literal["absolute", "relative"] = "absolute"
    """`absolute`: by resolution, 4096 / resolution up to the maximum, as published (256 px ends with 16 channels, 64 px
    with 64). `relative`: doubled with each halving from `base_channels` at the output."""
    injection: Literal["conv", "add"] = "conv"
    """`conv`, as published: φ enters twice, through a 1x1 and through a 3x3 convolution of its own. `add`: as it is,
    once, before the first convolution."""
    importance_init: Literal["descending", "equal", "ascending"] = "descending"
    """Initial L: 3q, ..., 6, 3, as published; all their root mean square; or 3, 6, ..., 3q."""
    orthogonality: Literal["penalty", "hard"] = "penalty"
    """Whether U is held orthonormal by a penalty on the loss (published default) or by Gram-Schmidt in the forward."""

    def __post_init__(self) -> None:
        levels = self.resolution.bit_length() - 1
        if self.resolution != 2**levels or not 4 <= levels <= 10:
            raise UserError(f"resolution {self.resolution} is not possible; allowed: 16, 32, 64, 128, 256, 512, 1024")
        if self.channels not in (1, 3):
            raise UserError(f"channels {self.channels} is not possible; allowed: 1, 3")
        if isinstance(self.n_basis, Sequence):
            object.__setattr__(self, "n_basis", tuple(self.n_basis))
            if len(self.bases) != self.n_layers:
                raise UserError(
                    f"n_basis has {len(self.bases)} entries; {self.resolution} px has {self.n_layers} layers"
                )
        if min(self.bases) < 0 or self.noise_dim < 1 or self.base_channels < 1 or self.max_channels < 1:
            raise UserError("noise_dim, base_channels and max_channels are whole numbers from 1, and n_basis from 0")
        for name, allowed in (
            ("widths", ("absolute", "relative")),
            ("injection", ("conv", "add")),
            ("importance_init", ("descending", "equal", "ascending")),
            ("orthogonality", ("penalty", "hard")),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} {getattr(self, name)!r} is not known; allowed: {', '.join(allowed)}")

    @property
    def n_layers(self) -> int:
        """How many layers carry a subspace: log2(resolution / 4)."""
        return int(math.log2(self.resolution // BASE))

    @property
    def bases(self) -> tuple[int, ...]:
        """Dimension of each layer's subspace, deepest first."""
        return self.n_basis if isinstance(self.n_basis, tuple) else (self.n_basis,) * self.n_layers

    @property
    def dim(self) -> int:
        """Length of a whole code: eps, then z of each layer."""
        return self.noise_dim + sum(self.bases)

    def width(self, resolution: int) -> int:
        """Channels of a feature map of this resolution, in the generator and in its discriminator."""
        if self.widths == "absolute":
            return min(4096 // resolution, self.max_channels)
        return min(self.base_channels * self.resolution // resolution, self.max_channels)


def he_normal_(weight: Tensor, fan_in: float) -> Tensor:
    """Fill `weight` with N(0, 2 / ((1 + slope²) fan_in)): the scale passes a leaky ReLU unchanged (He 2015, eq. 15)."""
    return nn.init.normal_(weight, std=math.sqrt(2.0 / ((1.0 + SLOPE**2) * fan_in)))


def convolution(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    """Make a convolution of stride 1 that keeps the size, He-initialised, biases 0."""
    layer = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    he_normal_(layer.weight, in_channels * kernel**2)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def up_convolution(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """Make the 3x3 transposed convolution of stride 2 that doubles the size, He-initialised, biases 0."""
    layer = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
    he_normal_(layer.weight, in_channels * 9 / 4)  # a pixel of the output meets a quarter of the taps
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class Subspace(nn.Module):
    """A linear subspace model: φ = U L z + μ.

    Args:
        shape: of a point; feature maps are (height, width, channels), so that φ is channels-last as it comes.
        n_basis: dimension q of the subspace.
        importance_init, orthogonality: see `EigenGANConfig`.

    Source:
        EigenGAN, section 3.1; initial L as in the authors' code.
    """

    def __init__(
        self,
        shape: Sequence[int],
        n_basis: int,
        *,
        importance_init: str = "descending",
        orthogonality: str = "penalty",
    ) -> None:
        super().__init__()
        if n_basis > math.prod(shape):
            raise UserError(f"a subspace of {n_basis} dimensions does not fit into {math.prod(shape)}")
        self.shape = tuple(shape)
        self.is_hard = orthogonality == "hard"
        basis = torch.empty(n_basis, math.prod(shape))
        self.basis = nn.Parameter((nn.init.orthogonal_(basis) if n_basis else basis).view(n_basis, *shape))
        self.importance = nn.Parameter(initial_importance(n_basis, importance_init))
        self.offset = nn.Parameter(torch.zeros(*shape))

    def orthonormal_basis(self) -> Tensor:
        """Return U, [q, *shape]; Gram-Schmidt has made its rows orthonormal where orthogonality is hard."""
        if not self.is_hard:
            return self.basis
        rows = self.basis.flatten(1)  # [q, d]
        # Gram-Schmidt is Uᵀ R⁻¹ with R from the Cholesky factor of the q x q Gram matrix: no loop over long vectors
        factor = torch.linalg.cholesky(rows @ rows.T)
        return torch.linalg.solve_triangular(factor, rows, upper=False).view_as(self.basis)

    def maps(self) -> Tensor:
        """Return L_j u_j for each j, then μ: [q + 1, *shape], so that φ = [z, 1] @ maps."""
        scaled = self.orthonormal_basis() * self.importance.view(-1, *[1] * len(self.shape))
        return torch.cat([scaled, self.offset[None]])

    def forward(self, z: Tensor) -> Tensor:
        """Return φ [batch, *shape] for z [batch, q]."""
        return combine(z, self.maps())

    def orthogonality_error(self) -> Tensor:
        """Return ‖UᵀU − I‖², the squared Frobenius norm."""
        rows = self.basis.flatten(1)
        return (rows @ rows.T - torch.eye(len(rows), device=rows.device, dtype=rows.dtype)).square().sum()


def combine(z: Tensor, maps: Tensor) -> Tensor:
    """Return Σ_j z_j maps_j + maps_q: [batch, *shape] for z [batch, q] and maps [q + 1, *shape]."""
    return torch.addmm(maps[-1].flatten(), z.to(maps.dtype), maps[:-1].flatten(1)).view(len(z), *maps.shape[1:])


def initial_importance(n_basis: int, law: str) -> Tensor:
    """Return the initial L, [q]: 3q, ..., 6, 3 for `descending`, as published."""
    descending = torch.arange(n_basis, 0, -1) * 3.0
    if law == "equal":
        # by plain numbers: a network that is read from a file is first made without any
        mean_square = sum((3.0 * j) ** 2 for j in range(1, n_basis + 1)) / max(n_basis, 1)
        return torch.full((n_basis,), math.sqrt(mean_square))
    return descending if law == "descending" else descending.flip(0)


class Block(nn.Module):
    """One layer: two convolutions, the first of which doubles the size, and a subspace that feeds them.

    A convolution of φ is the same combination of the convolved maps, so the injections run on the q + 1 maps of the
    subspace instead of on a batch of φ.
    """

    def __init__(self, config: EigenGANConfig, level: int) -> None:
        super().__init__()
        size = BASE * 2**level
        width, next_width = config.width(size), config.width(2 * size)
        self.subspace = Subspace(
            (size, size, width),
            config.bases[level],
            importance_init=config.importance_init,
            orthogonality=config.orthogonality,
        )
        self.is_direct = config.injection == "add"
        if not self.is_direct:
            self.inject1 = convolution(width, width, 1)
            self.inject2 = up_convolution(width, next_width)
        self.conv1 = up_convolution(width, next_width)
        self.conv2 = convolution(next_width, next_width, 3)

    def injections(self) -> tuple[Tensor, Tensor | None]:
        """Return the maps that z combines before each convolution, [q + 1, height, width, channels] each."""
        maps = self.subspace.maps()
        if self.is_direct:
            return maps, None
        planes = maps.permute(0, 3, 1, 2)  # [q + 1, c, h, w], channels last
        return _with_bias(self.inject1, planes), _with_bias(self.inject2, planes)

    def forward(self, h: Tensor, z: Tensor, injections: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """Return the next features [batch, c', 2h, 2w] for features h [batch, c, h, w] and z [batch, q]."""
        first, second = injections or self.injections()
        h = h + combine(z, first).permute(0, 3, 1, 2)
        h = self.conv1(F.leaky_relu(h, SLOPE))  # [batch, c', 2h, 2w]
        if second is not None:
            h = h + combine(z, second).permute(0, 3, 1, 2)
        return self.conv2(F.leaky_relu(h, SLOPE))


def _with_bias(layer: nn.Conv2d | nn.ConvTranspose2d, planes: Tensor) -> Tensor:
    """Apply a linear layer to the maps of a subspace; its bias belongs to the offset alone."""
    assert layer.bias is not None
    if isinstance(layer, nn.Conv2d):
        out = F.conv2d(planes, layer.weight, padding=layer.padding)
    else:
        out = F.conv_transpose2d(planes, layer.weight, None, 2, 1, 1)
    out = out.permute(0, 2, 3, 1)  # [q + 1, h, w, c]
    return torch.cat([out[:-1], out[-1:] + layer.bias])


class EigenGANNetwork(nn.Module):
    """The network that is trained: a code [batch, dim] = (eps, z_1, ..., z_n) becomes an image.

    Source:
        EigenGAN, section 3.2 and figure 3, and the authors' code: pre-activation leaky ReLU, no normalisation,
        7x7 convolution and tanh at the end.
    """

    def __init__(self, config: EigenGANConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width(BASE)
        self.base = nn.Linear(config.noise_dim, BASE * BASE * width)
        he_normal_(self.base.weight, config.noise_dim)
        nn.init.zeros_(self.base.bias)
        self.blocks = nn.ModuleList(Block(config, level) for level in range(config.n_layers))
        self.rgb = convolution(config.width(config.resolution), config.channels, 7)

    def split(self, latent: Tensor) -> tuple[Tensor, ...]:
        """Cut codes [batch, dim] into eps and z of each layer."""
        return latent.split([self.config.noise_dim, *self.config.bases], dim=1)

    def from_noise(self, eps: Tensor) -> Tensor:
        """Return the base features [batch, c, 4, 4] for eps [batch, noise_dim]."""
        return self.base(eps).view(len(eps), BASE, BASE, -1).permute(0, 3, 1, 2)

    def to_image(self, h: Tensor) -> Tensor:
        """Return images in [-1, 1] for the last features."""
        return torch.tanh(self.rgb(F.leaky_relu(h, SLOPE)))

    def forward(self, latent: Tensor) -> Tensor:
        """Return images [batch, channels, resolution, resolution] in [-1, 1] for codes [batch, dim]."""
        eps, *zs = self.split(latent)
        h = self.from_noise(eps)
        for block, z in zip(self.blocks, zs, strict=True):
            h = block(h, z)
        return self.to_image(h)

    def subspaces(self) -> list[Subspace]:
        """Return the subspace of each layer, deepest first."""
        return [block.subspace for block in self.blocks]  # type: ignore[misc]


# --- the frozen network -----------------------------------------------------------------------------------------------


def advanced(block: Block, h: Tensor, z: Tensor) -> Tensor:
    """Return what `block` makes of features h [batch, c, h, w] and z [batch, q].

    The same as its `forward`, but for frozen weights: the convolved maps of the subspace are kept, each injection is
    one matrix product that adds as it goes, and what nobody reads again is overwritten.
    """
    first, second = kept(block, f"injections {h.dtype}", lambda: _maps(block, h.dtype), *block.parameters())
    z = torch.cat([z, z.new_ones(len(z), 1)], dim=1).to(h.dtype)  # [batch, q + 1]: the offset goes with the rest
    h = _injected(torch.addmm(_flat(h), z, first), h)
    weight, bias = _weights(block.conv1, h.dtype)
    h = F.conv_transpose2d(F.leaky_relu(h, SLOPE, inplace=True), weight, bias, 2, 1, 1)  # [batch, c', 2h, 2w]
    if second is not None:
        rows = _flat(h)
        # autocast leaves what works in place alone
        h = _injected(rows.addmm_(z.to(rows), second.to(rows)), h)
    weight, bias = _weights(block.conv2, h.dtype)
    return F.conv2d(F.leaky_relu(h, SLOPE, inplace=True), weight, bias, padding=1)


def _maps(block: Block, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    first, second = block.injections()
    return first.flatten(1).to(dtype), None if second is None else second.flatten(1).to(dtype)  # [q + 1, h * w * c]


def _weights(layer: nn.Conv2d | nn.ConvTranspose2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    assert layer.bias is not None
    return in_precision(layer.weight, dtype), in_precision(layer.bias, dtype)


def _flat(h: Tensor) -> Tensor:
    """Return features [batch, c, h, w] as rows [batch, h * w * c], a view where they are channels-last."""
    return h.permute(0, 2, 3, 1).flatten(1)


def _injected(rows: Tensor, like: Tensor) -> Tensor:
    """Return rows [batch, h * w * c] as features of the shape of `like`, channels-last."""
    return rows.view(len(rows), *like.shape[2:], -1).permute(0, 3, 1, 2)


def painted(rgb: nn.Conv2d, h: Tensor) -> Tensor:
    """Return tanh(rgb(leaky ReLU(h))), images [batch, channels, r, r] for the last features [batch, c, r, r].

    Three outputs would fill three of sixteen lanes of a processor. So one place of a convolution of stride 2 makes the
    four pixels of a square at once; columns come in pairs, which channels-last memory holds as channels already.
    """
    kernel, bias = kept(rgb, f"squares {h.dtype}", lambda: _in_squares(rgb, h.dtype), *rgb.parameters())
    edge = rgb.weight.shape[-1] // 2
    rows = F.leaky_relu(F.pad(h.permute(0, 2, 3, 1), (0, 0, edge, edge, edge, edge)), SLOPE, inplace=True)
    pairs = rows.unflatten(2, (-1, 2)).flatten(3).permute(0, 3, 1, 2)  # [batch, 2c, r + 2 edge, (r + 2 edge) / 2]
    squares = F.conv2d(pairs, kernel, bias, stride=(2, 1))  # [batch, 4 channels, r / 2, r / 2]
    return torch.tanh(F.pixel_shuffle(squares, 2).float())


def _in_squares(rgb: nn.Conv2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return kernel [4 channels, 2c, k + 1, (k + 1) / 2] and bias of a convolution that makes squares of 2x2 pixels."""
    assert rgb.bias is not None
    weight = rgb.weight  # [channels, c, k, k]
    placed = [F.pad(weight, (x, 1 - x, y, 1 - y)) for y in (0, 1) for x in (0, 1)]  # each square's pixel reads its own
    kernel = torch.stack(placed, dim=1).flatten(0, 1)  # [4 channels, c, k + 1, k + 1]
    kernel = kernel.unflatten(3, (-1, 2)).permute(0, 4, 1, 2, 3).flatten(1, 2).to(dtype)
    return kernel.contiguous(memory_format=torch.channels_last), rgb.bias.repeat_interleave(4).to(dtype)


# --- the family -------------------------------------------------------------------------------------------------------


class EigenGAN(Generator):
    """An EigenGAN, ours or a port's, as a Generator with one space, `z`: eps (part 0), then layer1 (deepest) ..."""

    family: ClassVar[str] = "eigengan"
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "bryandlee/eigengan-pytorch",
            ("g_ema", "g", ""),
            needs("fc.weight", "blocks.0.projection.U", "blocks.0.subspace_conv2.0.weight", "to_rgb.0.1.weight"),
        ),
    )
    network: EigenGANNetwork

    def __init__(self, network: EigenGANNetwork, *, name: str, **about: Any) -> None:
        config = network.config
        sizes = [BASE * 2**level for level in range(config.n_layers + 1)]
        layers = [Layer("base", BASE, config.width(BASE), 0)]
        layers += [
            Layer(f"layer{i}", sizes[i], config.width(sizes[i]), i if q else None)
            for i, q in enumerate(config.bases, start=1)
        ]
        layers += [Layer("rgb", config.resolution, config.channels)]
        parts, start = [Part("eps", 0, 0, 0, config.noise_dim, ("base",))], config.noise_dim
        for number, q in enumerate(config.bases, start=1):
            if q:  # a layer without a subspace reads no part of the code
                parts.append(Part(f"layer{number}", number, 0, start, start + q, (f"layer{number}",)))
            start += q
        super().__init__(
            network,
            name=name,
            spaces={"z": Space("z", 1, config.dim, tuple(parts))},
            layers=layers,
            resolution=config.resolution,
            channels=config.channels,
            config=asdict(config),
            **about,
        )
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], **about: Any) -> EigenGAN:
        """Rebuild an EigenGAN from our own files."""
        made = EigenGANConfig(**config)
        return cls(read_into(lambda: EigenGANNetwork(made), tensors), **about)  # type: ignore[arg-type]

    @classmethod
    def from_foreign(
        cls, layout: str, tensors: dict[str, Tensor], checkpoint: Any, options: Mapping[str, Any], **about: Any
    ) -> EigenGAN:
        """Read the port's tensors; all its shapes are in them."""
        if options:
            raise UserError(f"an EigenGAN file tells all itself; leave the options {', '.join(options)} out")
        return cls.from_config(*_from_port(tensors), **about)

    def _inputs(self, codes: Codes) -> tuple[Tensor, ...]:
        return self.network.split(codes.latent[:, 0])

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return nullcontext()  # layers compute in the precision of the first features

    def _layer(self, index: int, state: State, inputs: tuple[Tensor, ...]) -> State:
        if index == 0:
            return State(1, self.network.from_noise(inputs[0]).to(self._dtype))
        assert state.features is not None
        if index == len(self.layers) - 1:
            return State(index + 1, painted(self.network.rgb, state.features))
        return State(index + 1, advanced(self.network.blocks[index - 1], state.features, inputs[index]))  # type: ignore[arg-type]

    def style_matrices(self, layers: str = "all") -> dict[str, StyleMatrix]:
        """Return U diag(L) of each chosen layer, [height * width * channels, q].

        Eps has none beside subspaces. Without any it has the weight of the base, by which all of the code then enters.
        """
        picked = self.space("z").picked(layers)
        if not any(self.network.config.bases):
            return {part.name: StyleMatrix(self.network.base.weight, part) for part in picked}
        matrices = {}
        for part in [each for each in picked if each.number > 0]:
            subspace = self.network.subspaces()[part.number - 1]
            weight = subspace.maps()[:-1].flatten(1).T  # [h * w * c, q]
            matrices[part.name] = StyleMatrix(weight, part)
        return matrices

    def injected_matrices(self, layers: str = "all") -> dict[str, StyleMatrix]:
        """Return (both injections) ∘ U diag(L) of each chosen layer, without offsets; eps has none.

        [height * width * channels + 4 height * width * next channels, q]; of `add` injection U diag(L) alone.
        """
        matrices = {}
        for part in self.space("z").picked(layers):
            if part.number == 0:
                continue
            block: Block = self.network.blocks[part.number - 1]  # type: ignore[assignment]
            added = [maps[:-1].flatten(1) for maps in block.injections() if maps is not None]  # [q, outputs] each
            matrices[part.name] = StyleMatrix(torch.cat(added, dim=1).T, part)
        return matrices

    def axis_weights(self, layers: str = "all", *, with_injection: bool = False) -> tuple[str, ...]:
        """Return U, L and μ of each chosen layer, and both injections where asked for; eps has none."""
        starts = []
        for part in self.space("z").picked(layers):
            block = f"blocks.{part.number - 1}."
            starts += [f"{block}subspace."] if part.number else []
            starts += [f"{block}inject1.", f"{block}inject2."] if part.number and with_injection else []
        return tuple(name for name in self.network.state_dict() if name.startswith(tuple(starts)))

    def holds_axes(self, weight: str) -> bool:
        """Tell whether a weight belongs to a subspace."""
        return ".subspace." in weight

    def own_axes(self) -> OwnAxes:
        """Return every dimension j of every layer i as axis `LiDj`, in stored order.

        `rank` is the place of |L_j|·‖u_j‖ within the layer, from 1; `importance` its share of the layer (what papers
        print) and `importance_at_init` that same share when training began: it seldom moves far from there.

        Raises:
            Unsupported: where no layer has a subspace.
        """
        space, law = self.spaces["z"], self.network.config.importance_init
        if not any(self.network.config.bases):
            raise Unsupported(f"{self.name} was trained without subspaces, so it has no axes of its own")
        vectors, names, layers = [], [], []
        shares, shares_at_init, ranks = [], [], []
        for part in space.parts[1:]:
            subspace, q = self.network.subspaces()[part.number - 1], part.stop - part.start
            vectors.append(torch.eye(space.dim)[part.start : part.stop])
            names += [f"L{part.number}D{j}" for j in range(1, q + 1)]
            layers += [part.name] * q
            scale = (subspace.importance.abs() * subspace.orthonormal_basis().flatten(1).norm(dim=1)).cpu()
            shares.append(scale / scale.sum())
            at_init = initial_importance(q, law)
            shares_at_init.append(at_init / at_init.sum())
            ranks.append(scale.argsort(descending=True, stable=True).argsort() + 1.0)
        return OwnAxes(
            space,
            torch.cat(vectors)[:, None, :],
            tuple(names),
            tuple(layers),
            {
                "importance": torch.cat(shares),
                "importance_at_init": torch.cat(shares_at_init),
                "rank": torch.cat(ranks),
            },
        )


def _from_port(tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn the port's names and layouts into ours.

    Its maps are channels first and flat; its second feature convolution is a transposed one of stride 1, which is a
    convolution with the kernel turned round and its channels swapped.
    """
    n_layers = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks."))
    widths = [tensors[f"blocks.{i}.subspace_conv1.0.weight"].shape[0] for i in range(n_layers)]
    last = tensors["to_rgb.0.1.weight"].shape[1]
    config = {
        "resolution": BASE * 2**n_layers,
        "channels": tensors["to_rgb.0.1.weight"].shape[0],
        "noise_dim": tensors["fc.weight"].shape[1],
        "n_basis": tuple(len(tensors[f"blocks.{i}.projection.L"]) for i in range(n_layers)),
        "base_channels": last,
        "max_channels": max(widths),
        "widths": "relative",
    }

    def maps(flat: Tensor, width: int) -> Tensor:  # [..., c * h * w] -> [..., h, w, c]
        size = math.isqrt(flat.shape[-1] // width)
        return flat.unflatten(-1, (width, size, size)).movedim(-3, -1).contiguous()

    ours = {
        "base.weight": maps(tensors["fc.weight"].T, widths[0]).flatten(1).T.contiguous(),
        "base.bias": maps(tensors["fc.bias"], widths[0]).flatten(),
        "rgb.weight": tensors["to_rgb.0.1.weight"],
        "rgb.bias": tensors["to_rgb.0.1.bias"],
    }
    for i, width in enumerate(widths):
        theirs, block = f"blocks.{i}.", f"blocks.{i}."
        ours[block + "subspace.basis"] = maps(tensors[theirs + "projection.U"], width)
        ours[block + "subspace.importance"] = tensors[theirs + "projection.L"]
        ours[block + "subspace.offset"] = maps(tensors[theirs + "projection.mu"], width)
        ours[block + "inject1.weight"] = tensors[theirs + "subspace_conv1.0.weight"].transpose(0, 1).contiguous()
        ours[block + "inject2.weight"] = tensors[theirs + "subspace_conv2.0.weight"]
        ours[block + "conv1.weight"] = tensors[theirs + "feature_conv1.1.weight"]
        ours[block + "conv2.weight"] = (
            tensors[theirs + "feature_conv2.1.weight"].transpose(0, 1).flip(2, 3).contiguous()
        )
        for name, key in (
            ("inject1", "subspace_conv1.0"),
            ("inject2", "subspace_conv2.0"),
            ("conv1", "feature_conv1.1"),
            ("conv2", "feature_conv2.1"),
        ):
            ours[f"{block}{name}.bias"] = tensors[f"{theirs}{key}.bias"]
    return config, {key: value.float() for key, value in ours.items()}
