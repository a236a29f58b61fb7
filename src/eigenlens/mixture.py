"""Between images: ways from one code to another, and codes whose layers come from two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .codes import Codes
from .errors import UserError

Way = Literal["auto", "linear", "spherical"]


def interpolate(first: Codes, second: Codes, shares: Sequence[float], *, way: Way = "auto") -> Codes:
    """Return codes on the way from each row of `first` to that of `second`.

    Labels go linearly, so that classes mix; noise and truncation are those of `first`.

    Args:
        first: [batch, ...].
        second: as many codes of the same space.
        shares: of the way, 0 to 1.
        way: `linear`; `spherical`, along a great circle with the length interpolated, slot by slot: halfway between two
            codes of N(0, I) a straight line is closer to the mean than any code drawn; or `auto`, spherical where codes
            are drawn normally and linear elsewhere.

    Returns:
        [batch * shares, ...]; those of the first row come first.

    Raises:
        UserError: where the two do not fit, or the way is not known.

    Source:
        White, Sampling generative networks, 2016 (arXiv 1609.04468), section 2.1.
    """
    if first.space.name != second.space.name or len(first) != len(second):
        raise UserError(
            f"{len(first)} codes of {first.space.name!r} and {len(second)} of {second.space.name!r} came; a way leads "
            "between as many codes of one space"
        )
    if way not in ("auto", "linear", "spherical"):
        raise UserError(f"unknown way {way!r}; allowed: auto, linear, spherical")
    if (first.labels is None) != (second.labels is None):
        raise UserError("codes with labels and codes without came; a way needs both or neither")
    slots = max(first.latent.shape[1], second.latent.shape[1])
    a, b = (each.latent.expand(-1, slots, -1).repeat_interleave(len(shares), 0) for each in (first, second))
    t = torch.tensor(list(shares), dtype=a.dtype, device=a.device).repeat(len(first))  # [batch * shares]
    is_normal = "N(0, 1)" in first.space.law
    latent = (
        _slerp(a, b, t) if way == "spherical" or (way == "auto" and is_normal) else torch.lerp(a, b, t[:, None, None])
    )
    codes = first.repeat(len(shares)).with_latent(latent)
    if codes.labels is None or second.labels is None:
        return codes
    labels = torch.lerp(codes.labels, second.labels.repeat_interleave(len(shares), 0), t[:, None].to(second.labels))
    return Codes(codes.space, latent, labels, codes.noise_seeds, codes.truncation)


def _slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return points on great circles, [n, slots, dim], with lengths interpolated; straight where both point alike."""
    lengths = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    one, other = a / lengths[0].clamp(min=1e-12), b / lengths[1].clamp(min=1e-12)
    angle = (one * other).sum(-1, keepdim=True).clamp(-1, 1).acos()  # [n, slots, 1]
    t = t[:, None, None]
    sine = angle.sin()
    on_circle = ((1 - t) * angle).sin() / sine.clamp(min=1e-6) * one + (t * angle).sin() / sine.clamp(min=1e-6) * other
    direction = torch.where(sine > 1e-4, on_circle, torch.lerp(one, other, t.expand_as(one)))
    return direction * torch.lerp(*lengths, t.expand_as(lengths[0]))


def mix(first: Codes, second: Codes, layers: str) -> Codes:
    """Return the codes of `first` with what the chosen layers read taken from `second`.

    Args:
        first: [batch, ...], in a space whose parts are layers (w+, an EigenGAN's z, a BigGAN's zy).
        second: as many codes of the same space.
        layers: a layer range of that space.

    Raises:
        UserError: where the two do not fit, or the range is none.

    Source:
        Karras, Laine, Aila, A style-based generator architecture, 2019, section 3.1 (style mixing).
    """
    if first.space.name != second.space.name or len(first) != len(second):
        raise UserError(
            f"{len(first)} codes of {first.space.name!r} and {len(second)} of {second.space.name!r} came; codes are "
            "mixed row by row in one space"
        )
    mask = first.space.mask(layers).to(first.latent)  # [slots, dim]
    a, b = (each.latent.expand(-1, first.space.slots, -1) for each in (first, second))
    return first.with_latent(torch.lerp(a, b, mask.expand_as(a)))
