"""Where codes live (Space, Part) and what fixes a batch of images (Codes)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError


@dataclass(frozen=True)
class Part:
    """A stretch of one slot that feeds certain layers: what a layer range picks."""

    name: str
    """Name, such as `layer2` or `eps`."""
    number: int
    """The number that `info` prints and that layer ranges use."""
    slot: int
    """The slot that holds it."""
    start: int
    """First coordinate."""
    stop: int
    """One past the last coordinate."""
    layers: tuple[str, ...] = ()
    """Names of the generator's layers that it feeds."""


@dataclass(frozen=True, eq=False)
class Space:
    """One place where codes live.

    Args:
        name: `z`, `w`, `w+`, `s`, `y` ...
        slots: slots of a code; a code with one slot broadcasts over all of them.
        dim: length of a slot.
        parts: what layer ranges pick, in order; by default one part, numbered 0, over all of a one-slot space, and
            one part a slot, numbered from 0, elsewhere.
        law: how a code is drawn: `"N(0, 1)"`, `"U(-1, 1)"`, `"truncated N(0, 1)"`, or `"mapped from z"`.
        moments: gives (mean [dim], covariance [dim, dim]) of a slot at truncation 1, labels uniform; by default
            those of N(0, 1). It runs once, when first asked.
        broadcast_of: on `w+`, the name of the one-slot space whose codes and directions it takes as they are.
    """

    name: str
    slots: int
    dim: int
    parts: tuple[Part, ...] = ()
    law: str = "N(0, 1)"
    moments: Callable[[], tuple[Tensor, Tensor]] | None = field(default=None, repr=False)
    broadcast_of: str | None = None

    def __post_init__(self) -> None:
        if not self.parts:
            names = ("all",) if self.slots == 1 else tuple(f"slot{slot}" for slot in range(self.slots))
            parts = tuple(Part(name, slot, slot, 0, self.dim) for slot, name in enumerate(names))
            object.__setattr__(self, "parts", parts)

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):  # they are kept, and gradients may pass what is computed with them
            if self.moments is None:
                return torch.zeros(self.dim), torch.eye(self.dim)
            return self.moments()

    @property
    def mean(self) -> Tensor:
        """Mean of a slot, [dim]."""
        return self._moments[0]

    @property
    def covariance(self) -> Tensor:
        """Covariance of a slot, [dim, dim]."""
        return self._moments[1]

    @cached_property
    def _scales(self) -> tuple[Tensor, Tensor] | None:
        """Standard deviations [dim] along the principal axes [dim, dim], one a column; None for those of N(0, 1)."""
        if self.moments is None:
            return None
        values, axes = torch.linalg.eigh(self.covariance.double())
        floor = 1e-10 * values[-1].clamp(min=1e-20)  # an axis that codes never leave keeps a scale to divide by
        return values.clamp(min=float(floor)).sqrt().float(), axes.float()

    def whiten(self, latent: Tensor) -> Tensor:
        """Return latents [batch, slots, dim] in σ along the principal axes of the space, about its mean.

        The mean square of the result is the squared Mahalanobis distance to the mean, for each dimension.
        """
        if self._scales is None:
            return latent
        scales, axes = (part.to(latent) for part in self._scales)
        return (latent - self.mean.to(latent)) @ axes / scales

    def colour(self, whitened: Tensor) -> Tensor:
        """Return the latents [batch, slots, dim] that `whiten` brings to these."""
        if self._scales is None:
            return whitened
        scales, axes = (part.to(whitened) for part in self._scales)
        return self.mean.to(whitened) + (whitened * scales) @ axes.T

    def accepts(self, name: str) -> bool:
        """Tell whether directions or codes of the space called `name` work here as they are."""
        return name in (self.name, self.broadcast_of)

    def picked(self, layers: str) -> tuple[Part, ...]:
        """Return the parts that a layer range picks.

        Args:
            layers: `"all"`, or inclusive ranges and names: `"4-7"`, `"2,5"`, `"4-"`, `"-3"`, `"eps"`, `"layer2,4"`.

        Raises:
            UserError: on a range that is none, is empty, or leaves the space.
        """
        numbers = {part.number: part for part in self.parts}
        names = {part.name: part for part in self.parts}
        first, last = min(numbers), max(numbers)
        allowed = f"this space ({self.name}) has {first}-{last}" + ("" if len(names) > 30 else f": {', '.join(names)}")
        wanted: set[int] = set()
        for word in (piece.strip() for piece in str(layers).split(",")):
            if word == "all":
                wanted.update(numbers)
            elif word in names:
                wanted.add(names[word].number)
            else:
                low, dash, high = word.partition("-")
                if not all(end.strip().isdecimal() for end in (low, high) if end) or not (low or high):
                    raise UserError(f"{layers!r} is not a layer range; write 'all', '4-7' or '2,5'; {allowed}")
                start = int(low) if low else first
                stop = (int(high) if high else last) if dash else start
                if start > stop or start not in numbers or stop not in numbers:
                    raise UserError(f"layers {word!r} are not in range; {allowed}")
                wanted.update(number for number in numbers if start <= number <= stop)
        return tuple(part for part in self.parts if part.number in wanted)

    def mask(self, layers: str = "all") -> Tensor:
        """Return the mask [slots, dim] of 0 and 1 that a layer range means; see `picked`."""
        mask = torch.zeros(self.slots, self.dim)
        for part in self.picked(layers):
            mask[part.slot, part.start : part.stop] = 1.0
        return mask


@dataclass(frozen=True, eq=False)
class Codes:
    """All that fixes a batch of images.

    Args:
        space: where the latent lives.
        latent: [batch, slots, dim], or [batch, 1, dim], which broadcasts.
        labels: [batch, n_labels], one row of label weights each (one-hot for a class); None for an unconditional
            generator.
        noise_seeds: one seed a row for the generator's noise inputs; None is the stored noise, or where none is
            stored, a fixed seed. `-1` turns the noise off.
        truncation: only where a network's own forward reads it (Hugging Face's BigGAN); else 1.
    """

    space: Space
    latent: Tensor
    labels: Tensor | None = None
    noise_seeds: tuple[int, ...] | None = None
    truncation: float = 1.0

    def __post_init__(self) -> None:
        shape = tuple(self.latent.shape)
        if len(shape) != 3 or shape[1] not in (1, self.space.slots) or shape[2] != self.space.dim:
            raise UserError(
                f"a latent of shape {list(shape)} is no batch of codes in space {self.space.name!r}, which takes "
                f"[batch, {self.space.slots}, {self.space.dim}]; one slot may stand for all"
            )
        if not self.latent.is_floating_point():
            raise UserError(f"a latent of {self.latent.dtype} came; codes are floating-point numbers")
        for name in ("labels", "noise_seeds"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != shape[0]:
                raise UserError(f"{len(rows)} rows of {name} came for {shape[0]} codes; give one each")

    def __len__(self) -> int:
        return self.latent.shape[0]

    def __getitem__(self, rows: int | slice | Sequence[int]) -> Codes:
        """Return the codes of these rows, as a batch."""
        if isinstance(rows, int):
            rows = [rows]
        index = range(len(self))[rows] if isinstance(rows, slice) else [range(len(self))[row] for row in rows]
        index = list(index)
        seeds = self.noise_seeds
        return replace(
            self,
            latent=self.latent[index],
            labels=None if self.labels is None else self.labels[index],
            noise_seeds=None if seeds is None else tuple(seeds[row] for row in index),
        )

    def with_latent(self, latent: Tensor, space: Space | None = None) -> Codes:
        """Return codes that differ in their latent, and perhaps its space, alone."""
        return replace(self, latent=latent, space=space or self.space)

    def repeat(self, times: int) -> Codes:
        """Return each row `times` times in a row: [batch * times, slots, dim]."""
        rows = [row for row in range(len(self)) for _ in range(times)]
        return self[rows]

    def to(self, device: torch.device | str) -> Codes:
        """Return the codes on `device`."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, latent=self.latent.to(device), labels=labels)


def concatenate(pieces: Sequence[Codes]) -> Codes:
    """Return one batch of all `pieces`, which share a space.

    Raises:
        UserError: where they do not, or some have labels or noise seeds and others none.
    """
    first = pieces[0]
    for piece in pieces:
        same = (piece.labels is None) == (first.labels is None)
        same &= (piece.noise_seeds is None) == (first.noise_seeds is None)
        if piece.space.name != first.space.name or piece.truncation != first.truncation or not same:
            raise UserError("codes of different spaces, truncations, labels or noise came; they make no single batch")
    slots = max(piece.latent.shape[1] for piece in pieces)
    latents = [piece.latent.expand(-1, slots, -1) for piece in pieces]
    labels = None if first.labels is None else torch.cat([p.labels for p in pieces if p.labels is not None])
    seeds = None if first.noise_seeds is None else tuple(s for p in pieces for s in p.noise_seeds or ())
    return replace(first, latent=torch.cat(latents), labels=labels, noise_seeds=seeds)


def cross(a: Codes, b: Codes, fresh: Codes, *, seed: int = 0, mutation: float = 0.15) -> Codes:
    """Return children of two codes: each coordinate comes from one parent or the other, and is then changed a little.

    A child takes whole slots where codes have several (styles of a layer stay together), else single coordinates; the
    mutation m keeps the law of the space: mean + √(1 - m²) (child - mean) + m (fresh - mean).

    Args:
        a, b: the parents, one code each, of one space.
        fresh: codes of that space, one a child, drawn anew.
        seed: fixes who inherits what.
        mutation: 0 mixes alone, 1 forgets the parents.

    Returns:
        As many codes as `fresh`, with the labels and the noise of `a`.

    Raises:
        UserError: where the spaces differ, a parent is not one code, or mutation leaves 0-1.
    """
    from . import runtime

    if len(a) != 1 or len(b) != 1:
        raise UserError(f"parents of {len(a)} and {len(b)} codes came; give one code each")
    if not (a.space.name == b.space.name == fresh.space.name):
        raise UserError(f"codes of {a.space.name!r}, {b.space.name!r} and {fresh.space.name!r} came; lift them to one")
    if not 0 <= mutation <= 1:
        raise UserError(f"mutation {mutation} came; it lies between 0 and 1")
    slots = max(each.latent.shape[1] for each in (a, b, fresh))
    shape = (len(fresh), slots, 1 if slots > 1 else a.space.dim)
    drawn = runtime.draw(len(fresh), shape[1] * shape[2], seed=seed, stream="cross", law="uniform")
    is_first = torch.from_numpy(drawn).reshape(shape).to(a.latent.device) < 0.5
    mixed = torch.where(is_first, a.latent.expand(-1, slots, -1), b.latent.to(a.latent).expand(-1, slots, -1))
    mean = a.space.mean.to(mixed)
    latent = mean + (1 - mutation**2) ** 0.5 * (mixed - mean) + mutation * (fresh.latent.to(mixed) - mean)
    return replace(a.repeat(len(fresh)), latent=latent)


# --- files ------------------------------------------------------------------------------------------------------------

CODES_FORMAT = "eigenlens.codes/1"


def save_codes(
    codes: Codes,
    path: str | Path,
    generator: Any,
    *,
    about: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Write codes to a `.safetensors` file that remembers their space and generator, and `about`, plain JSON."""
    from safetensors.torch import save_file

    from .files import written_beside

    tensors = {"latent": codes.latent.detach().cpu().contiguous()}
    if codes.labels is not None:
        tensors["labels"] = codes.labels.detach().cpu().contiguous()
    header = {
        "format": CODES_FORMAT,
        "space": codes.space.name,
        "generator": generator.identity(),
        "noise_seeds": codes.noise_seeds,
        "truncation": codes.truncation,
    }
    header |= {"about": dict(about)} if about else {}
    with written_beside(path, force=force) as beside:
        save_file(tensors, beside, metadata={"eigenlens": json.dumps(header)})
    return Path(path)


def load_codes(path: str | Path, generator: Any) -> Codes:
    """Read codes of `generator` that `save_codes` wrote, as float32.

    Raises:
        UserError: where the file is none, is damaged, or belongs to another generator.
    """
    header, tensors = _read_codes(path)
    mine, theirs = header["generator"], generator.identity()
    if mine.get("weights") != theirs["weights"]:
        raise UserError(f"{path} holds codes of {mine.get('name')}, not of {theirs['name']}")
    latent, labels = tensors["latent"], tensors.get("labels")
    seeds, truncation = header["noise_seeds"], float(header.get("truncation", 1.0))
    wide = [len(latent), len(generator.label_names)]
    if labels is not None and list(labels.shape) != wide:
        raise UserError(f"{path} holds labels of shape {list(labels.shape)}; {theirs['name']} takes {wide}")
    latent = latent.float() if latent.is_floating_point() else latent  # whatever precision it was written in
    labels = None if labels is None else labels.float()
    if not (math.isfinite(truncation) and all(each.isfinite().all() for each in (latent, labels) if each is not None)):
        raise UserError(f"{path} holds codes with NaN or infinity; a code is finite")
    try:
        space = generator.space(header["space"])
        return Codes(space, latent, labels, None if seeds is None else tuple(seeds), truncation)
    except UserError as error:
        raise UserError(f"{path} holds no usable codes: {error}") from error


def read_codes_header(path: str | Path) -> dict[str, Any]:
    """Return what a file of codes says about itself: space, generator, how many, and what `save_codes` was given.

    Raises:
        UserError: where the file is none.
    """
    header, tensors = _read_codes(path)
    return header | {"codes": len(tensors["latent"])}


def _read_codes(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; give a .safetensors file of codes")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("eigenlens", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is no file of codes: {error}") from error
    kinds = {"generator": dict, "space": str, "noise_seeds": (list, type(None)), "truncation": (int, float)}
    is_whole = isinstance(header, dict) and header.get("format") == CODES_FORMAT
    is_whole = is_whole and all(isinstance(header.get(key, 1.0), kind) for key, kind in kinds.items())  # type: ignore[arg-type]
    is_whole = is_whole and all(type(seed) is int for seed in header["noise_seeds"] or ())
    if not is_whole or "latent" not in tensors or not tensors["latent"].ndim:
        raise UserError(f"{path} is no file of codes of format {CODES_FORMAT!r}")
    return header, tensors
