"""What several families share: normalisation, truncation, noise inputs, the moments of mapped spaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import runtime
from ..codes import Codes, Part, Space
from ..errors import UserError, unknown_name
from ..generator import Generator

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
            w = generator.lift(codes.to(generator.device), "w").latent[:, 0].cpu()
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
    kept: list[tuple[Tensor, Tensor]] = []

    def once() -> tuple[Tensor, Tensor]:
        if not kept:
            kept.append(moments())
        return kept[0]

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


class MappingNetwork(nn.Module):
    """The fully connected layers, leaky ReLU after each, that turn a normalised z into w (Karras 2019, section 2).

    Learning-rate and activation gains are already in the weights: a leaky ReLU passes positive factors through.

    Args:
        z_dim: length of z.
        widths: outputs of each layer; the last is the length of w.
        n_labels: where above 0, the row of a label, of length `z_dim`, is put behind z before it is normalised.
    """

    def __init__(self, z_dim: int, widths: Sequence[int], n_labels: int = 0) -> None:
        super().__init__()
        inputs = [z_dim * (2 if n_labels else 1), *widths[:-1]]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(inputs, widths, strict=True))
        self.label_rows = nn.Parameter(torch.zeros(n_labels, z_dim)) if n_labels else None

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return w [batch, dim] for z [batch, z_dim] and rows of labels [batch, n_labels]."""
        if self.label_rows is not None:
            if labels is None:
                raise UserError("codes without labels came, and this generator maps z by label; sample with a label")
            z = torch.cat([z, labels.to(z) @ self.label_rows], dim=1)
        w = pixel_norm(z)
        for layer in self.layers:
            w = F.leaky_relu(layer(w), 0.2)
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
    if source not in ("z", "w", "w+") or order.index(target.name) < order.index(source):
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
        raise UserError(f"the weights do not fit the network: {str(error).splitlines()[1].strip()}") from error
    return network
