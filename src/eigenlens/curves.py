"""Fields of unit tangents on a latent space: the curved directions, whose step depends on where the code is.

A `Curve` holds the tensors of k fields and gives the tangent of a field at a code. Walking along it in small arcs, each
of which is measured in σ as a straight step would be, gives a curved path. Two kinds are known: gradients of radial
potentials (`dipoles`) and small networks of the code (`network`). Curves are plain tensors, so that files hold them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from .errors import UserError

ARC = 0.25
"""Longest arc in σ that is walked in one step of the midpoint rule."""
TINY = 1e-12


class Curve(Protocol):
    """K fields of tangents."""

    kind: ClassVar[str]
    """Its name in files."""

    def __len__(self) -> int:
        """Return how many fields there are."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Slots and length of the codes that it sees; one slot: each slot of a code is seen by itself."""
        ...

    def tangents(self, latent: Tensor, which: Tensor) -> Tensor:
        """Return the field `which` [batch] at each code: [batch, slots, dim], rows of root mean square norm 1."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return all of its tensors by name; the first axis of each but `centre`, `scale` and `mask` is k."""
        ...


SHARED = ("centre", "scale", "mask")
"""Tensors that all fields of a curve have in common."""


@dataclass(frozen=True, eq=False)
class Dipoles:
    """Gradients of potentials f(w) = Σ_i a_i (exp(-γ_i‖w - c - s_i‖²) - exp(-γ_i‖w - c + s_i‖²)), at length 1.

    Source:
        Tzelepis, Tzimiropoulos & Patras, WarpedGANSpace, ICCV 2021, equations 3 and 4, with the poles of a dipole at
        ±s about the centre of the space.
    """

    poles: Tensor
    """s, [k, dipoles, slots, dim]."""
    weights: Tensor
    """a, with the sign of the way that counts as forward, [k, dipoles]."""
    gammas: Tensor
    """γ, above 0, [k, dipoles]."""
    centre: Tensor
    """c, [dim]."""
    mask: Tensor
    """1 where a code may move, [slots, dim]."""
    kind: ClassVar[str] = "dipoles"

    def __len__(self) -> int:
        return len(self.poles)

    @property
    def shape(self) -> tuple[int, int]:
        """Slots and length of the codes that it sees."""
        return self.poles.shape[2], self.poles.shape[3]

    def tangents(self, latent: Tensor, which: Tensor) -> Tensor:
        """Return the unit gradient of potential `which` at each code, [batch, slots, dim]."""
        at = (latent - self.centre) * self.mask
        poles = self.poles[which] * self.mask  # [batch, dipoles, slots, dim]
        squares = at.square().sum((1, 2))[:, None] + poles.square().sum((2, 3))  # [batch, dipoles]
        across = 2 * torch.einsum("bsd,bmsd->bm", at, poles)
        gammas, weights = self.gammas[which], self.weights[which]
        # the largest exponent is taken out: only the way of the gradient counts, and far out all terms are tiny
        near, far = -gammas * (squares - across), -gammas * (squares + across)
        peak = torch.maximum(near, far).amax(1, keepdim=True)
        plus, minus = (weights * gammas * (power - peak).exp() for power in (near, far))
        to_poles = torch.einsum("bm,bmsd->bsd", plus + minus, poles)
        return _unit(to_poles - (plus - minus).sum(1)[:, None, None] * at)

    def tensors(self) -> dict[str, Tensor]:
        """Return all of its tensors by name."""
        return {name: getattr(self, name) for name in ("poles", "weights", "gammas", "centre", "mask")}


@dataclass(frozen=True, eq=False)
class NetworkField:
    """What a network of one hidden layer says of the code, at length 1: V relu(U (w - c) / s + u) + v.

    Source:
        Yüksel et al., LatentCLR, ICCV 2021, section 3.2: directions conditioned on the code.
    """

    inner: Tensor
    """U, [k, hidden, slots * dim]."""
    inner_bias: Tensor
    """u, [k, hidden]."""
    outer: Tensor
    """V, with the sign of the way that counts as forward, [k, slots * dim, hidden]."""
    outer_bias: Tensor
    """v, with that sign, [k, slots * dim]."""
    centre: Tensor
    """c, [dim]."""
    scale: Tensor
    """s, what brings coordinates to about 1, []."""
    mask: Tensor
    """1 where a code may move, [slots, dim]."""
    kind: ClassVar[str] = "network"

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def shape(self) -> tuple[int, int]:
        """Slots and length of the codes that it sees."""
        return self.mask.shape[0], self.mask.shape[1]

    def tangents(self, latent: Tensor, which: Tensor) -> Tensor:
        """Return the answer of network `which` at each code, at length 1: [batch, slots, dim]."""
        at = ((latent - self.centre) / self.scale * self.mask).flatten(1)
        hidden = torch.relu(torch.einsum("bi,bhi->bh", at, self.inner[which]) + self.inner_bias[which])
        answer = torch.einsum("bh,boh->bo", hidden, self.outer[which]) + self.outer_bias[which]
        return _unit(answer.unflatten(1, self.shape) * self.mask)

    def tensors(self) -> dict[str, Tensor]:
        """Return all of its tensors by name."""
        names = ("inner", "inner_bias", "outer", "outer_bias", "centre", "scale", "mask")
        return {name: getattr(self, name) for name in names}


def _unit(vectors: Tensor) -> Tensor:
    """Scale [batch, slots, dim] so that the rows that are not zero have root mean square norm 1."""
    active = (vectors.detach().abs().amax(2) > 0).sum(1).clamp(min=1)  # [batch]
    length = vectors.flatten(1).norm(dim=1).clamp(min=TINY)
    return vectors * (active.sqrt() / length)[:, None, None]


KINDS: dict[str, type[Dipoles] | type[NetworkField]] = {kind.kind: kind for kind in (Dipoles, NetworkField)}
"""Name in files -> the curve."""


def tangents_of(curve: Curve, latent: Tensor, which: Tensor) -> Tensor:
    """Return tangents at codes [batch, slots, dim]; a curve of one slot sees each slot of a code by itself."""
    slots = latent.shape[1]
    if curve.shape[0] == slots:
        return curve.tangents(latent, which)
    rows = latent.flatten(0, 1)[:, None]  # [batch * slots, 1, dim]
    return curve.tangents(rows, which.repeat_interleave(slots)).unflatten(0, (-1, slots))[:, :, 0]


def advance(curve: Curve, latent: Tensor, which: Tensor, arc: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Move codes along one arc by the midpoint rule.

    Args:
        curve: the fields.
        latent: [batch, slots, dim].
        which: the field of each code, [batch].
        arc: signed length of the arc of each code in σ, [batch].
        measure: unit tangents [batch, slots, dim] -> the step of one σ along them, of the same shape.
    """
    arcs = arc[:, None, None]
    middle = latent + arcs / 2 * measure(tangents_of(curve, latent, which))
    return latent + arcs * measure(tangents_of(curve, middle, which))


def path(
    curve: Curve, latent: Tensor, which: Tensor, steps: Sequence[float], measure: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return codes at each of `steps` σ of arc from where they are: [batch, steps, slots, dim].

    Arcs lie on a fixed grid and only the last one is shorter, so a point does not depend on which others are asked for.
    """
    found: list[Tensor] = [latent] * len(steps)
    for side in (1.0, -1.0):
        at, done = latent, 0
        for place in sorted((i for i in range(len(steps)) if steps[i] * side > 0), key=lambda i: abs(steps[i])):
            whole = math.floor(abs(steps[place]) / ARC + 1e-9)
            for _ in range(whole - done):
                at = advance(curve, at, which, at.new_full((len(at),), side * ARC), measure)
            done = whole
            rest = abs(steps[place]) - whole * ARC
            is_there = rest <= 1e-9
            found[place] = at if is_there else advance(curve, at, which, at.new_full((len(at),), side * rest), measure)
    return torch.stack(found, dim=1)


def change_tensors(curve: Curve, change: Callable[[str, Tensor], Tensor]) -> Curve:
    """Return a curve of the same kind whose tensors have gone through `change(name, tensor)`."""
    return type(curve)(**{name: change(name, tensor) for name, tensor in curve.tensors().items()})


def pick(curve: Curve, rows: Sequence[int]) -> Curve:
    """Return the fields of these rows."""
    index = list(rows)
    return change_tensors(curve, lambda name, tensor: tensor if name in SHARED else tensor[index])


def flip(curve: Curve, signs: Tensor) -> Curve:
    """Return the same fields, turned round where `signs` [k] is -1."""
    turned = ("weights", "outer", "outer_bias")

    def change(name: str, tensor: Tensor) -> Tensor:
        return tensor * signs.view(-1, *[1] * (tensor.ndim - 1)).to(tensor) if name in turned else tensor

    return change_tensors(curve, change)


def join(curves: Sequence[Curve]) -> Curve:
    """Return all fields of curves of one kind and size.

    Raises:
        UserError: where kinds, sizes or the spaces that they see differ.
    """
    first, tensors = curves[0], [curve.tensors() for curve in curves]
    for curve, theirs in zip(curves, tensors, strict=True):
        same = curve.kind == first.kind and all(
            torch.equal(theirs[name], each) if name in SHARED else theirs[name].shape[1:] == each.shape[1:]
            for name, each in tensors[0].items()
        )
        if not same:
            raise UserError("curved directions of different kinds or sizes came; keep them in files of their own")
    return change_tensors(
        first, lambda name, tensor: tensor if name in SHARED else torch.cat([theirs[name] for theirs in tensors])
    )


def read_curve(kind: str, tensors: Mapping[str, Tensor]) -> Curve:
    """Build a curve from the tensors of a file.

    Raises:
        UserError: on an unknown kind, or tensors that are missing, not finite or do not fit each other.
    """
    if kind not in KINDS:
        raise UserError(f"curves of kind {kind!r} are not known; this version reads {', '.join(KINDS)}")
    names = {each.name for each in fields(KINDS[kind])}
    if set(tensors) != names:
        raise UserError(f"a curve of kind {kind!r} has the tensors {', '.join(sorted(names))}; {sorted(tensors)} came")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{name!r} of a curve is not made of finite numbers")
    curve: Curve = KINDS[kind](**{name: tensor.float() for name, tensor in tensors.items()})
    try:
        slots, dim = tensors["mask"].shape
        fits = curve.shape == (slots, dim) and tensors["centre"].shape == (dim,)
        at = torch.zeros(len(curve), slots, dim)
        fits = fits and tangents_of(curve, at, torch.arange(len(curve))).shape == at.shape
    except (RuntimeError, ValueError, IndexError):
        fits = False
    if not fits:
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise UserError(f"the tensors of a curve do not fit each other: {shapes}")
    return curve
