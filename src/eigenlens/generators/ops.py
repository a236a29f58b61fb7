"""What several families share: normalisation, truncation, noise, filters, modulation, and the spaces of StyleGANs."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import runtime
from ..codes import Codes, Part, Space
from ..errors import UserError, unknown_name
from ..frozen import convolved, is_traced, kept, suits_winograd
from ..generator import Generator, State, StyleMatrix

MAPPED_SAMPLES = 20_000


def pixel_norm(x: Tensor, *, dim: int = -1, eps: float = 1e-8) -> Tensor:
    """Divide by the root mean square along `dim` (Karras 2018, section 4.2)."""
    return x * (x.square().mean(dim, keepdim=True) + eps).rsqrt()


def truncated(w: Tensor, mean: Tensor, psi: float, cutoff: int | None) -> Tensor:
    """Pull w [batch, slots, dim] towards `mean` [dim] by psi, in the first `cutoff` slots (Karras 2019, appendix B)."""
    if psi == 1.0:
        return w
    pulled = mean.to(w) + psi * (w - mean.to(w))
    if cutoff is None or cutoff >= w.shape[1]:
        return pulled
    return torch.cat([pulled[:, :cutoff], w[:, cutoff:]], dim=1)


def noise_maps(seeds: Sequence[int], layer: int, resolution: int) -> Tensor:
    """Draw one noise map a row from (its seed, layer): [batch, 1, resolution, resolution]; a seed of -1 gives zeros."""
    shape = (resolution, resolution)
    rows = [
        torch.zeros(shape)
        if seed < 0
        else torch.from_numpy(runtime.generator_for(seed, f"noise/{layer}").standard_normal(shape, dtype="float32"))
        for seed in seeds
    ]
    return torch.stack(rows)[:, None]


def mapped_moments(generator: Generator, *, n: int = MAPPED_SAMPLES) -> tuple[Tensor, Tensor]:
    """Return mean [dim] and covariance [dim, dim] of w over `n` mapped codes of seed 0, labels uniform."""
    label = "random" if generator.label_names else None
    total = torch.zeros(())
    products = torch.zeros(())
    shift: Tensor | None = None
    with torch.inference_mode():
        for start, stop in runtime.batches(n, 4096):
            codes = generator.sample(stop - start, seed=0, start=start, space=generator.prior, label=label)
            w = generator.lift(codes, "w").latent[:, 0]
            shift = w.mean(0) if shift is None else shift  # float32 products of centred rows keep their digits
            centred = w - shift
            total = total + centred.sum(0).double()
            products = products + (centred.T @ centred).double()
    assert shift is not None
    mean = total / n
    covariance = (products - n * torch.outer(mean, mean)) / (n - 1)
    return (shift.double() + mean).float(), covariance.float()


def w_spaces(
    n_slots: int, dim: int, moments: Callable[[], tuple[Tensor, Tensor]], fed: Sequence[tuple[str, ...]]
) -> dict[str, Space]:
    """Return the spaces `w` and `w+` of a StyleGAN.

    Args:
        n_slots: slots of w+.
        dim: length of w.
        moments: gives mean and covariance of w; asked once, for both spaces.
        fed: for each slot the names of the layers that it feeds.
    """
    found: list[tuple[Tensor, Tensor]] = []

    def once() -> tuple[Tensor, Tensor]:
        if not found:
            found.append(moments())
        return found[0]

    every = tuple(dict.fromkeys(name for names in fed for name in names))
    parts = tuple(Part(f"slot{slot}", slot, slot, 0, dim, tuple(fed[slot])) for slot in range(n_slots))
    return {
        "w": Space("w", 1, dim, (Part("all", 0, 0, 0, dim, every),), law="mapped from z", moments=once),
        "w+": Space("w+", n_slots, dim, parts, law="mapped from z", moments=once, broadcast_of="w"),
    }


def stored_noise_off(codes: Codes) -> bool:
    """Tell whether all rows ask for no noise at all."""
    return codes.noise_seeds is not None and all(seed < 0 for seed in codes.noise_seeds)


def check_options(options: Mapping[str, Any], allowed: Sequence[str], layout: str) -> None:
    """Refuse options that a layout of files does not read.

    Raises:
        UnknownName: on the first that is not `allowed`.
    """
    for name in options:
        if name not in allowed:
            raise unknown_name(f"option of {layout} files", name, allowed)


MAPPED_AT_ONCE = 512
"""Rows that pass the mapping network together on a CPU, so that they stay in its cache from layer to layer."""


class MappingNetwork(nn.Module):
    """The fully connected layers, leaky ReLU after each, that turn a normalised z into w (Karras 2019, section 2).

    Learning-rate and activation gains are already in the weights: a leaky ReLU passes positive factors through.

    Args:
        z_dim: length of z.
        widths: outputs of each layer; the last is the length of w.
        n_labels: where above 0, the row of a label, of length `z_dim`, is put behind z before it is normalised.
        embed_dim: where above 0, labels pass an affine map to this length instead, are normalised by themselves, and
            are put behind the normalised z (StyleGAN2-ADA, appendix F).
        slope: of the leaky ReLU.
    """

    def __init__(
        self, z_dim: int, widths: Sequence[int], n_labels: int = 0, *, embed_dim: int = 0, slope: float = 0.2
    ) -> None:
        super().__init__()
        self.slope = slope
        inputs = [z_dim + (embed_dim or z_dim if n_labels else 0), *widths[:-1]]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(inputs, widths, strict=True))
        self.label_rows = nn.Parameter(torch.zeros(n_labels, z_dim)) if n_labels and not embed_dim else None
        self.embed = nn.Linear(n_labels, embed_dim) if n_labels and embed_dim else None

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return w [batch, dim] for z [batch, z_dim] and rows of labels [batch, n_labels]."""
        if labels is None and (self.label_rows is not None or self.embed is not None):
            raise UserError("codes without labels came, and this generator maps z by label; sample with a label")
        if z.device.type != "cpu" or len(z) <= MAPPED_AT_ONCE:
            return self._map(z, labels)
        rows = [slice(*ends) for ends in runtime.batches(len(z), MAPPED_AT_ONCE)]
        return torch.cat([self._map(z[some], None if labels is None else labels[some]) for some in rows])

    def _map(self, z: Tensor, labels: Tensor | None) -> Tensor:
        if self.label_rows is not None and labels is not None:
            z = torch.cat([z, labels.to(z) @ self.label_rows], dim=1)
        w = pixel_norm(z)
        if self.embed is not None and labels is not None:
            w = torch.cat([w, pixel_norm(self.embed(labels.to(z)))], dim=1)
        for layer in self.layers:
            w = F.leaky_relu(layer(w), self.slope, inplace=True)
        return w


def lift_to_w(
    generator: Generator,
    codes: Codes,
    target: Space,
    *,
    to_w: Callable[[Codes], Tensor],
    mean: Callable[[], Tensor],
    truncation: float,
    cutoff: int | None,
) -> Codes:
    """Lift codes in z, w or w+ to w or w+, truncated there.

    Args:
        generator: theirs; its spaces stand in the order of lifting.
        codes, target, truncation, cutoff: as `Generator.lift` takes them.
        to_w: maps codes in z to w [batch, 1, dim].
        mean: gives the w that truncation pulls to, [dim].

    Raises:
        UserError: where no way leads there, or a cutoff cannot be kept in a single slot.
    """
    order = list(generator.spaces)
    source = codes.space.name
    is_way = target.name in ("w", "w+") and order.index(target.name) >= order.index(source)
    if source not in ("z", "w", "w+") or not is_way:
        raise UserError(
            f"there is no way from space {source!r} to {target.name!r} with truncation {truncation:g}; "
            f"codes go {' -> '.join(order)}, and are truncated in w or w+"
        )
    latent = to_w(codes) if source == generator.prior else codes.latent
    slots = generator.spaces["w+"].slots
    if target.name == "w" and truncation != 1.0 and cutoff is not None and cutoff < slots:
        raise UserError(f"cutoff {cutoff} truncates the first slots of w+, and space 'w' has one; ask for space 'w+'")
    if target.name == "w+":
        latent = latent.expand(-1, slots, -1)
    if truncation != 1.0:
        latent = truncated(latent, mean(), truncation, cutoff)
    return codes.with_latent(latent, target)


def style_channels(w: Space, parts: Sequence[tuple[str, str, nn.Linear]]) -> Space:
    """Return the space `s` of all style channels in one slot (Wu, Lischinski, Shechtman 2021).

    Args:
        w: the space that the affine layers read; its moments give those of `s`.
        parts: name, fed layer and affine layer of each part, in order.
    """
    sizes = [affine.out_features for *_, affine in parts]
    stops = torch.tensor(sizes).cumsum(0).tolist()
    made = tuple(
        Part(name, number, 0, stop - size, stop, (layer,))
        for number, ((name, layer, _), size, stop) in enumerate(zip(parts, sizes, stops, strict=True))
    )

    def moments() -> tuple[Tensor, Tensor]:
        weight = torch.cat([affine.weight for *_, affine in parts]).cpu()
        bias = torch.cat([affine.bias for *_, affine in parts]).cpu()
        return weight @ w.mean + bias, weight @ w.covariance @ weight.T

    return Space("s", 1, sum(sizes), made, law="mapped from z", moments=moments)


def read_into(make: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Make a network around its tensors, without drawing or copying weights first.

    Raises:
        UserError: where names or shapes differ from what the network has.
    """
    with torch.device("meta"):
        network = make()
    try:
        network.load_state_dict(dict(tensors), assign=True)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit the config: {str(error).splitlines()[1].strip()}") from error
    return network


# --- files of networks that grew level by level -----------------------------------------------------------------------


def levels_used(n_levels: int, reached: int, options: Mapping[str, Any]) -> int:
    """Return how many levels (4, 8, 16, ... px) to use: up to the option `resolution`, by default those `reached`.

    Raises:
        UserError: where the file has no such resolution.
    """
    resolution = options.get("resolution", 4 * 2 ** (reached - 1))
    allowed = [4 * 2**level for level in range(n_levels)]
    if resolution not in allowed:
        raise UserError(f"resolution {resolution} is not in this file; it has {', '.join(map(str, allowed))}")
    return allowed.index(resolution) + 1


def check_alpha(alpha: float, n_levels: int) -> None:
    """Refuse a blend of levels that there cannot be.

    Raises:
        UserError: where it is no share, or of a level that there is not.
    """
    if not 0.0 <= alpha <= 1.0 or (alpha < 1.0 and n_levels == 1):
        raise UserError(f"alpha {alpha:g} is not possible; it is a share from 0 to 1, and below 1 only from 8 px on")


def rgb_levels(used: int, alpha: float) -> list[tuple[str, int]]:
    """Return `rgb`, and `rgb_before` where the last level is blended in, with the levels that they read."""
    check_alpha(alpha, used)
    return [("rgb", used - 1)] + ([("rgb_before", used - 2)] if alpha < 1.0 else [])


# --- filters ----------------------------------------------------------------------------------------------------------


def upfirdn(
    x: Tensor, taps: Tensor, *, up: int = 1, down: int = 1, padding: Sequence[int] = (0, 0, 0, 0), gain: float = 1.0
) -> Tensor:
    """Put zeros between the pixels, pad or crop, convolve with a filter, and keep every `down`-th pixel.

    Args:
        x: [batch, channels, height, width].
        taps: [k] of a separable filter, or [k, k] of one that is not.
        up: every pixel becomes `up` in each direction, all but the first zero.
        down: keep every `down`-th.
        padding: left, right, top, bottom, of the image with its zeros; negative crops.
        gain: factor on the result.

    Source:
        Karras et al. 2021 (arXiv 2106.12423), appendix; the operation that NVIDIA calls upfirdn2d.
    """
    left, right, top, bottom = padding
    taps = taps.to(x)
    if taps.ndim == 2:
        return _filtered(x, taps * gain, (up, up), (down, down), (left, right, top, bottom))
    x = _filtered(x, taps[:, None], (up, 1), (down, 1), (0, 0, top, bottom))
    return _filtered(x, taps[None] * gain, (1, up), (1, down), (left, right, 0, 0))


def _filtered(
    x: Tensor, kernel: Tensor, up: tuple[int, int], down: tuple[int, int], padding: tuple[int, int, int, int]
) -> Tensor:
    """Apply one kernel [kh, kw] to every channel; `up` and `down` are (rows, columns)."""
    channels, (height, width) = x.shape[1], kernel.shape
    left, right, top, bottom = padding
    if up == (1, 1):
        weight = kernel.flip(0, 1).expand(channels, 1, -1, -1)  # a convolution turns the filter round; conv2d does not
        if left == right >= 0 and top == bottom >= 0:
            return F.conv2d(x, weight, stride=down, padding=(top, left), groups=channels)
        return F.conv2d(F.pad(x, padding), weight, stride=down, groups=channels)
    full = F.conv_transpose2d(x, kernel.expand(channels, 1, -1, -1), stride=up, groups=channels)
    crop = (width - 1 - left, width - up[1] - right, height - 1 - top, height - up[0] - bottom)
    return F.pad(full, [-each for each in crop])[..., :: down[0], :: down[1]]


def separated(kernel: Tensor) -> Tensor:
    """Return the taps [k], of sum 1, whose outer product is the filter `kernel` [k, k] up to its scale.

    Raises:
        UserError: where it is no such product.
    """
    kernel = kernel.double()
    kernel = kernel.reshape(kernel.shape[-2:]) if kernel.ndim > 2 else kernel
    kernel = kernel / kernel.sum()
    taps = kernel if kernel.ndim == 1 else kernel.sum(1)
    if kernel.ndim == 2 and not torch.allclose(torch.outer(taps, kernel.sum(0)), kernel, rtol=1e-4, atol=1e-6):
        raise UserError(f"the resampling filter {list(kernel.shape)} is not a product of two; such files are not known")
    return taps.float()


def doubled(x: Tensor, taps: Tensor) -> Tensor:
    """Double height and width with a low-pass filter: what skip connections of StyleGAN2 do."""
    k = len(taps)
    before, after = (k + 1) // 2, (k - 2) // 2
    return upfirdn(x, taps, up=2, padding=(before, after, before, after), gain=4.0)


# --- modulation -------------------------------------------------------------------------------------------------------


def demodulation(style: Tensor, energy: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Return the factors [batch, out] that give each output of a modulated convolution unit variance.

    Args:
        style: [batch, in].
        energy: squared weights summed over the kernel, [out, in].

    Source:
        Karras et al. 2020 (StyleGAN2), equation 3.
    """
    return (style.square() @ energy.T + eps).rsqrt()


def modulated(
    x: Tensor,
    style: Tensor,
    weight: Tensor,
    *,
    factor: Tensor | None = None,
    bias: Tensor | None = None,
    up: int = 1,
    padding: int = 0,
    taps: Tensor | None = None,
) -> Tensor:
    """Convolve with weights whose inputs are scaled by the style, and their outputs by a factor (demodulation).

    Where the weights are fewer than the features, each row gets weights of its own. Where they are more, features are
    scaled instead, which is the same and lets one convolution with unchanged weights serve the whole batch.

    Args:
        x: [batch, in, height, width], whose precision is that of the convolution.
        style: [batch, in].
        weight: [out, in, k, k].
        factor: [batch, out].
        bias: [out], added last.
        up: 2 doubles the size: a transposed convolution, then the filter `taps`.
        padding: of the ordinary convolution.
        taps: [n], of sum 1.
    """
    width, inputs = weight.shape[:2]
    numbers = x.shape[2] * x.shape[3] * (inputs + width * up * up)
    is_lighter = 3 * weight.numel() < numbers  # new weights are scaled twice and laid out anew
    needs_fixed = up == 1 and suits_winograd(x, weight)
    if is_lighter and not needs_fixed and not is_traced() and (len(x) == 1 or x.device.type == "cpu"):
        kernels = weight * style[:, None, :, None, None]
        kernels = kernels if factor is None else kernels * factor[:, :, None, None, None]
        rows = [
            _resized(convolved(row, kernel, None if up == 2 else bias, up=up, padding=padding), bias, up, weight, taps)
            for row, kernel in zip(x.split(1), kernels, strict=True)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)
    x = convolved(x * style.to(x.dtype)[:, :, None, None], weight, up=up, padding=padding)
    x = _resized(x, None, up, weight, taps)
    if factor is None:
        return x if bias is None else x + bias.to(x.dtype)[:, None, None]
    scale = factor.to(x.dtype)[:, :, None, None]
    return x * scale if bias is None else torch.addcmul(bias.to(x.dtype)[:, None, None], x, scale)


def _resized(x: Tensor, bias: Tensor | None, up: int, weight: Tensor, taps: Tensor | None) -> Tensor:
    """Filter and crop what a transposed convolution gave, and add the bias; leave what another gave as it is."""
    if up == 1:
        return x
    assert taps is not None
    k, size, width = len(taps), weight.shape[-1], x.shape[1]
    before, after = size // 2 + (k + 1) // 2 - (size - 1), size // 2 + (k - 2) // 2 - (size - 2)
    kernel = (4.0 * torch.outer(taps, taps).flip(0, 1)).to(x).expand(width, 1, -1, -1)  # 16 taps in one pass
    bias = None if bias is None else bias.to(x.dtype)
    if before == after >= 0:
        return F.conv2d(x, kernel, bias, padding=before, groups=width)
    return F.conv2d(F.pad(x, (before, after, before, after)), kernel, bias, groups=width)


def bounded(x: Tensor, clamp: float | None, gain: float = 1.0) -> Tensor:
    """Clamp to ±`clamp` times `gain`, where there is a bound; in place, except where a gradient needs what was."""
    if clamp is None:
        return x
    bound = clamp * gain
    return x.clamp(-bound, bound) if x.requires_grad else x.clamp_(-bound, bound)


def noise_input(seeds: Sequence[int] | None, stored: Tensor | None, layer: int, resolution: int) -> Tensor | None:
    """Return the noise of a layer, [batch or 1, 1, resolution, resolution]; None where no row wants any.

    Args:
        seeds: of `Codes`: None is the stored noise, or seed 0 where none is stored; -1 turns a row off.
        stored: [resolution, resolution].
        layer: number of the layer.
        resolution: in pixels.
    """
    if seeds is None:
        return noise_maps((0,), layer, resolution) if stored is None else stored[None, None]
    return None if all(seed < 0 for seed in seeds) else noise_maps(seeds, layer, resolution)


# --- style-based generators -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StyleInput:
    """One place where w enters a network, through an affine map of its own."""

    layer: str
    """Name of the layer."""
    slot: int
    """Slot of w+ that it reads."""
    channels: int
    """Length of the style that the affine map gives."""


class OnDemand(Sequence[Tensor]):
    """Tensors that are computed when they are first asked for: an edit of late layers needs the styles of few.

    Args:
        n: how many.
        make: computes one by its number.
    """

    def __init__(self, n: int, make: Callable[[int], Tensor]) -> None:
        self.made: list[Tensor | None] = [None] * n
        self.make = make

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, number: Any) -> Any:
        """Return one of them."""
        made = self.made[number]
        if made is None:
            made = self.made[number] = self.make(number)
        return made


@dataclass(frozen=True)
class StyleInputs:
    """What the layers of a style-based network read."""

    styles: Sequence[Tensor]
    """The style of every `StyleInput`, [batch, channels]."""
    noise_seeds: tuple[int, ...] | None
    """Of `Codes`."""
    batch: int
    """How many rows."""

    def row(self, row: int) -> StyleInputs:
        """Return what the layers read for one row, as a batch."""
        styles = OnDemand(len(self.styles), lambda number: self.styles[number][row : row + 1])
        seeds = None if self.noise_seeds is None else self.noise_seeds[row : row + 1]
        return replace(self, styles=styles, noise_seeds=seeds, batch=1)


ROWS_FROM = 64
"""Pixels from which on a CPU runs every row of a batch by itself: larger batches of features leave its caches."""
MAPPED_BATCHES = 16
"""Batches of codes whose w is remembered."""
MAPPED_ROWS = 64
"""The largest of them."""


class StyleBased(Generator):
    """A generator whose layers read w through affine maps, with the spaces `z`, `w`, `w+` and `s` (StyleSpace).

    Args:
        network: gives `mapping` (such as `MappingNetwork`), `affines` (an `nn.Linear` for each of `styles`) and `w_avg`
            ([dim], the truncation centre; None where the file held none); its `prepare`, which computes what frozen
            weights fix, is called once where it has one.
        styles: every place where w enters, in the order in which the layers run.
        n_slots: slots of w+.
        z_dim: length of z.
        shared: layers that every slot feeds.
        about: as of `Generator`.

    Source:
        w+: Abdal 2019; StyleSpace: Wu 2021 (arXiv 2011.12799), section 3.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        styles: Sequence[StyleInput],
        n_slots: int,
        z_dim: int,
        shared: Sequence[str] = (),
        **about: Any,
    ) -> None:
        self.styles = tuple(styles)
        affines: list[nn.Linear] = list(network.affines)  # type: ignore[arg-type]
        fed = [
            tuple(dict.fromkeys([*shared, *(each.layer for each in self.styles if each.slot == slot)]))
            for slot in range(n_slots)
        ]
        spaces = {"z": Space("z", 1, z_dim)}
        spaces |= w_spaces(n_slots, affines[0].in_features, lambda: mapped_moments(self), fed)
        named = [(each.layer, each.layer, affine) for each, affine in zip(self.styles, affines, strict=True)]
        spaces["s"] = style_channels(spaces["w"], named)
        super().__init__(network, spaces=spaces, default_space="w", **about)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if hasattr(network, "prepare"):
            with torch.inference_mode(False):  # inference tensors could not pass gradients later
                network.prepare()  # type: ignore[operator]

    @property
    def truncation_centre(self) -> Tensor:
        """What truncation pulls towards, [dim]: the mean of w that the file holds, or else that of many codes."""
        stored: Tensor | None = self.network.w_avg  # type: ignore[assignment]
        return self.spaces["w"].mean if stored is None else stored

    @property
    def style_space(self) -> Space:
        """The space whose codes the style matrices multiply: w+."""
        return self.spaces["w+"]

    def style_matrices(self, layers: str = "all") -> dict[str, StyleMatrix]:
        """Return the weights [channels, dim] of the affine maps, gains and all, in the chosen slots of w+."""
        parts = {part.slot: part for part in self.style_space.picked(layers)}
        return {
            each.layer: StyleMatrix(affine.weight, parts[each.slot])
            for each, affine in zip(self.styles, self._affines(), strict=True)
            if each.slot in parts
        }

    def _affines(self) -> list[nn.Linear]:
        return list(self.network.affines)  # type: ignore[arg-type]

    def _draw(self, n: int, *, seed: int, start: int, truncation: float) -> Tensor:
        if truncation != 1.0:
            raise UserError(
                f"truncation {truncation:g} came for space 'z', but {self.family} truncates w, and its mapping undoes "
                "any scale of z; sample in space 'w' or 'w+'"
            )
        return super()._draw(n, seed=seed, start=start, truncation=1.0)

    def _lift(self, codes: Codes, target: Space, *, truncation: float, cutoff: int | None) -> Codes:
        stop = self.style_space if target.name == "s" else target
        lifted = lift_to_w(
            self,
            codes,
            stop,
            to_w=self._map,
            mean=lambda: self.truncation_centre,
            truncation=truncation,
            cutoff=cutoff,
        )
        if stop is target:
            return lifted
        return lifted.with_latent(torch.cat(list(self._read(lifted.latent)), dim=1)[:, None], target)

    def _map(self, codes: Codes) -> Tensor:
        """Return w [batch, 1, dim] for codes in z; that of batches that came lately is remembered."""
        if self.label_names and codes.labels is None:
            self.encode_labels(None, len(codes))  # says which labels there are
        mapping, z, labels = self.network.mapping, codes.latent[:, 0], codes.labels
        weights: list[Tensor] = list(mapping.parameters())  # type: ignore[union-attr]
        needs_gradient = torch.is_grad_enabled() and any(each.requires_grad for each in (z, *weights))
        if is_traced() or len(codes) > MAPPED_ROWS or needs_gradient or self.device.type != "cpu":
            return self._mapped(z, labels)
        lately: OrderedDict[bytes, Tensor] = kept(mapping, "mapped", OrderedDict, *weights)
        content = [each.detach().contiguous().numpy().tobytes() for each in (z, labels) if each is not None]
        key = hashlib.blake2b(b"".join(content)).digest()
        w = lately.pop(key, None)
        if w is None:
            with torch.inference_mode(False), torch.no_grad():
                w = self._mapped(z.clone(), labels)
        lately[key] = w
        while len(lately) > MAPPED_BATCHES:
            lately.popitem(last=False)
        return w

    def _mapped(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Run the mapping network in float32, whatever layers compute in: its w are codes, and are remembered."""
        kind = self.device.type
        exact = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
        with exact:
            return self.network.mapping(z, labels)[:, None]  # type: ignore[operator]

    def _read(self, latent: Tensor) -> Sequence[Tensor]:
        """Return every style for w+ [batch, slots or 1, dim]."""
        one, affines = latent.shape[1] == 1, self._affines()
        return OnDemand(len(affines), lambda i: affines[i](latent[:, 0 if one else self.styles[i].slot]))

    def _inputs(self, codes: Codes) -> StyleInputs:
        latent = codes.latent
        styles: Sequence[Tensor]
        if codes.space.name == "s":
            styles = latent[:, 0].split([each.channels for each in self.styles], dim=1)
        else:
            styles = self._read(self._map(codes) if codes.space.name == "z" else latent)
        return StyleInputs(styles, codes.noise_seeds, len(codes))

    # large features, row by row

    def _first_large(self) -> int:
        """Return the number of the first layer whose features a CPU computes for each row by itself."""
        sizes = [layer.resolution for layer in self.layers]
        return next((i for i, size in enumerate(sizes) if size >= ROWS_FROM), len(sizes))

    def _by_rows(self, state: State, inputs: StyleInputs, stop: int) -> tuple[State, list[tuple[State, StyleInputs]]]:
        """Run the layers that serve the batch together; return where they end, and the rows that go on alone."""
        if is_traced() or inputs.batch == 1 or self.device.type != "cpu":
            return super()._advanced(state, inputs, stop), []
        state = super()._advanced(state, inputs, min(stop, self._first_large()))
        if state.next >= stop:
            return state, []
        return state, [(state.rows([row]), inputs.row(row)) for row in range(inputs.batch)]

    def _advanced(self, state: State, inputs: StyleInputs, stop: int) -> State:
        state, rows = self._by_rows(state, inputs, stop)
        return State.joined([super(StyleBased, self)._advanced(*row, stop) for row in rows]) if rows else state

    def _painted(self, state: State, inputs: StyleInputs) -> Tensor:
        stop = len(self.layers)
        state, rows = self._by_rows(state, inputs, stop)
        if not rows:
            return self._image(state)
        return torch.cat([self._image(super(StyleBased, self)._advanced(*row, stop)) for row in rows])
