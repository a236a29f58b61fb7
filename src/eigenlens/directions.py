"""K ways to move inside a Space, and what is known of each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from . import curves
from .codes import Codes, Space
from .curves import Curve
from .errors import Unsupported, UserError, unknown_name

FORMAT = "eigenlens.directions/1"
CURVED_FORMAT = "eigenlens.directions/2"
"""Of files with curved directions, which older versions must not take for straight ones."""
FIGURES = ("sigma", "effect", "importance", "split_half", "agreement")
"""Figures that every direction may carry, [k] each, NaN where it does not apply or was not measured."""


@dataclass(frozen=True)
class Provenance:
    """Where directions come from."""

    generator: Mapping[str, str] = field(default_factory=dict)
    """Name, family and weight hash of the generator they belong to; empty where unknown."""
    method: str = ""
    """Name of the method, or of the foreign format."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Every field of the method."""
    seed: int = 0
    """Seed of the fit."""
    version: str = ""
    """Version of eigenlens that made them."""


@dataclass(frozen=True, eq=False)
class Directions:
    """K ways to move inside a Space, straight or curved. A file of them is never changed: operations give a new one.

    Curved ones have a `curve`: their step depends on where the code is, and strength is the length of arc in σ. They
    are moved, walked, measured, saved and picked like straight ones; what needs one vector for the whole space
    (coordinates, `to=`, algebra, other tools' files) raises `Unsupported`.

    Args:
        vectors: [k, slots, dim], or [k, 1, dim], which broadcasts over the slots. In σ, rows that are not zero have
            root mean square norm 1 (`unit_norm`), so that a broadcast vector and its copies in every slot are the
            same direction; raw vectors have the length that they were published with. Of curved directions, their
            tangents at the mean of the space.
        space: name of the space they live in.
        names: one each, all different.
        layers: the layer range that each acts on by default.
        unit: of strengths: `"sigma"`, the standard deviation of the space along the direction, or `"raw"`, multiples
            of the vector itself (published strengths of foreign files).
        sigma: standard deviation of the space along each, [k]; see `standard_deviation`.
        effect: RMS pixel change in [-1, 1] units from -½σ to +½σ, [k].
        limits: how far each way, in units, samples stay within the generator's own range, [k, 2].
        importance: the method's own measure, [k], by which it orders them.
        split_half: of sampled methods, |cos| of each with its match from two disjoint halves of the samples, [k].
        agreement: of the others, |cos| over random halves of the output channels, [k].
        fields: further figures of the method by name, [k] each.
        provenance: where they come from.
        curve: the fields of curved directions; None where they are straight.
    """

    vectors: Tensor
    space: str
    names: tuple[str, ...]
    layers: tuple[str, ...] = ()
    unit: Literal["sigma", "raw"] = "sigma"
    sigma: Tensor = None  # type: ignore[assignment]
    effect: Tensor = None  # type: ignore[assignment]
    limits: Tensor = None  # type: ignore[assignment]
    importance: Tensor = None  # type: ignore[assignment]
    split_half: Tensor = None  # type: ignore[assignment]
    agreement: Tensor = None  # type: ignore[assignment]
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    curve: Curve | None = None

    def __post_init__(self) -> None:
        if self.vectors.ndim != 3 or not self.vectors.is_floating_point():
            raise UserError(
                f"vectors of shape {list(self.vectors.shape)} and type {self.vectors.dtype} came; "
                "directions are floating-point [k, slots, dim], or [k, 1, dim] to broadcast"
            )
        k, shape = len(self.vectors), self.vectors.shape[1:]
        if not torch.isfinite(self.vectors.float()).all():  # some types of 8 bits know no isfinite
            raise UserError("some vectors hold NaN or infinity; a direction is finite")
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731  the dataclass is frozen
        put("vectors", self.vectors.float())  # codes are float32, whatever precision a method worked in
        put("names", tuple(self.names))
        put("layers", tuple(self.layers) or ("all",) * k)
        for name in FIGURES:
            given = getattr(self, name)
            put(name, torch.full((k,), math.nan) if given is None else torch.as_tensor(given, dtype=torch.float32))
        given = self.limits
        put("limits", torch.full((k, 2), math.nan) if given is None else torch.as_tensor(given, dtype=torch.float32))
        for name in ("names", "layers"):
            if len(getattr(self, name)) != k:
                raise UserError(f"{len(getattr(self, name))} {name} came for {k} directions; give one each")
            if not all(isinstance(each, str) and each for each in getattr(self, name)):
                raise UserError(f"the {name} of directions are texts that are not empty; {getattr(self, name)} came")
        figures = {name: getattr(self, name) for name in FIGURES} | dict(self.fields)
        for name, figure in figures.items():
            if tuple(figure.shape) != (k,):
                raise UserError(f"{name} of shape {list(figure.shape)} came for {k} directions; give one number each")
        if tuple(self.limits.shape) != (k, 2):
            raise UserError(f"limits of shape {list(self.limits.shape)} came for {k} directions; give two numbers each")
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise UserError(f"the name {twice[0]!r} stands for more than one direction; rename one of them")
        if self.unit not in ("sigma", "raw"):
            raise UserError(f"unit {self.unit!r} is not known; allowed: sigma, raw")
        if self.curve is not None and (self.unit != "sigma" or (len(self.curve), *self.curve.shape) != (k, *shape)):
            raise UserError(
                f"a curve of {len(self.curve)} fields on {list(self.curve.shape)} came for {k} directions on "
                f"{list(shape)} in {self.unit}; curved directions have a field each, and strengths in sigma"
            )

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:6]) + (", ..." if len(self) > 6 else "")
        made = f" by {self.provenance.method}" if self.provenance.method else ""
        bent = "" if self.is_straight else "curved "
        return f"<{len(self)} {bent}directions in {self.space}{made}: {shown}>"

    @property
    def is_straight(self) -> bool:
        """Whether a step is the same at every code."""
        return self.curve is None

    def check_straight(self, what: str) -> None:
        """Raise Unsupported where the directions are curved, since `what` needs one vector for the whole space."""
        if self.curve is not None:
            raise Unsupported(
                f"{what} needs straight directions, and these are curved: their step depends on where the code is; "
                "move by a distance (by=), or choose straight ones"
            )

    # which

    def index(self, which: int | str) -> int:
        """Return the place of a direction given by its index, its name, or the first or last words of one name alone.

        So `L4D5 hair colour` answers to `L4D5` and to `hair colour`.

        Raises:
            UserError: where there is none, or words that several names have.
        """
        if isinstance(which, str):
            is_number = which not in self.names and which.removeprefix("-").isdecimal()
            which = int(which) if is_number else self.names.index(self._full_name(which))
        if not -len(self) <= which < len(self):
            raise UserError(f"direction {which} came; there are {len(self)}, numbered 0-{len(self) - 1}")
        return which % len(self)

    def _full_name(self, words: str) -> str:
        if words in self.names:
            return words
        meant = [name for name in self.names if name.startswith(f"{words} ") or name.endswith(f" {words}")]
        if len(meant) > 1:
            raise UserError(f"{words!r} may be {' or '.join(map(repr, meant))}; give more of the name")
        if not meant:
            raise unknown_name("direction", words, self.names)
        return meant[0]

    def __getitem__(self, which: int | str | slice | Sequence[int | str]) -> Directions:
        """Return the directions chosen by index, name, slice or a sequence of them, in that order."""
        if isinstance(which, slice):
            rows = list(range(len(self))[which])
        elif isinstance(which, (int, str)):
            rows = [self.index(which)]
        else:
            rows = [self.index(each) for each in which]
        return replace(
            self,
            vectors=self.vectors[rows],
            names=tuple(self.names[row] for row in rows),
            layers=tuple(self.layers[row] for row in rows),
            limits=self.limits[rows],
            fields={name: figure[rows] for name, figure in self.fields.items()},
            curve=None if self.curve is None else curves.pick(self.curve, rows),
            **{name: getattr(self, name)[rows] for name in FIGURES},
        )

    # moving

    def unit_step(self, space: Space, which: int | str, layers: str | None = None) -> Tensor:
        """Return what one unit of strength adds to a code of `space`: [slots, dim], zero outside the layer range.

        Raises:
            UserError: where the directions live in another space or have another width.
            Unsupported: where they are curved.
        """
        self.check_straight("a step that holds everywhere")
        row = self.index(which)
        self.check_space(space)
        mask = space.mask(layers or self.layers[row]).to(self.vectors)
        step = self.vectors[row] * mask  # [slots, dim]
        if self.unit == "raw":
            return step
        sigma = float(self.sigma[row])
        if not math.isfinite(sigma):
            raise UserError(
                f"the σ of {self.names[row]!r} is not known; measure it with effect.calibrate(generator, directions)"
            )
        return step * sigma

    def check_space(self, space: Space) -> None:
        """Raise UserError unless these directions act on codes of `space`, naming both."""
        slots, dim = self.vectors.shape[1:]
        if not space.accepts(self.space) or dim != space.dim or slots not in (1, space.slots):
            raise UserError(
                f"directions of space {self.space!r} [{slots}, {dim}] came for codes of space {space.name!r} "
                f"[{space.slots}, {space.dim}]; lift the codes to {self.space!r}, or find directions in {space.name!r}"
            )

    def host(self, generator: Any, codes: Codes, *, layers: str | None = None) -> Codes:
        """Lift codes of `generator` to where these directions act: to their space, and from w to w+ for layer ranges.

        Args:
            generator: the generator that the codes belong to.
            codes: in any of its spaces.
            layers: the layer range to come; by default those that the directions carry.
        """
        if not codes.space.accepts(self.space):
            codes = generator.lift(codes, self.space)
        picks_layers = any(each != "all" for each in ([layers] if layers else self.layers))
        picks_layers |= self.vectors.shape[1] > codes.space.slots
        wider = [space.name for space in generator.spaces.values() if space.broadcast_of == codes.space.name]
        return generator.lift(codes, wider[0]) if picks_layers and wider else codes

    def known_sigma(self, space: Space) -> Tensor:
        """Return σ of each direction, computed from the covariance of `space` where it is not known: [k]."""
        if self.sigma.isfinite().all():
            return self.sigma
        computed = standard_deviation(unit_norm(self.vectors), space).to(self.sigma)
        return torch.where(self.sigma.isfinite(), self.sigma, computed)

    def units_per_sigma(self, space: Space) -> Tensor:
        """Return how many units of strength one σ is, [k]: ones, except for raw directions."""
        if self.unit == "sigma":
            return torch.ones(len(self))
        return self.known_sigma(space) / row_norm(self.vectors).to(self.sigma)

    def in_sigma(self, space: Space) -> Directions:
        """Return the same directions with strengths, limits included, in σ of `space`."""
        if self.unit == "sigma":
            return replace(self, sigma=self.known_sigma(space))
        return replace(
            self,
            vectors=unit_norm(self.vectors),
            unit="sigma",
            sigma=self.known_sigma(space),
            limits=self.limits / self.units_per_sigma(space)[:, None],
        )

    def in_raw(self) -> Directions:
        """Return the same directions with strengths, limits included, in multiples of the vectors."""
        self.check_straight("a raw strength")
        if self.unit == "raw":
            return self
        return replace(self, unit="raw", limits=self.limits * self.sigma[:, None])

    def move(
        self,
        codes: Codes,
        which: int | str,
        *,
        by: float | None = None,
        to: float | None = None,
        layers: str | None = None,
    ) -> Codes:
        """Move every code along one direction.

        Args:
            codes: in the directions' space.
            which: index or name.
            by: strength from where each code is, in `unit`.
            to: the coordinate that each code shall have, (⟨code - mean, v⟩ / σ).
            layers: layer range; by default the direction's own.

        Returns:
            The moved codes; labels and noise stay.

        Raises:
            UserError: unless exactly one of `by` and `to` is given, and where the space does not fit.
        """
        if (by is None) == (to is None):
            raise UserError("give either by=, a distance from where the code is, or to=, a coordinate to reach")
        if self.curve is not None:
            if by is None:
                self.check_straight("a coordinate to reach (to=)")
            assert by is not None
            return codes.with_latent(self._path(codes, which, [by], layers)[:, 0])
        step = self.unit_step(codes.space, which, layers).to(codes.latent)  # [slots, dim]
        if by is not None:
            return codes.with_latent(codes.latent + by * _narrow(step, codes))
        assert to is not None
        missing = to - self.coordinates(codes, which, layers=layers)  # [batch]
        return codes.with_latent(codes.latent + missing[:, None, None] * _narrow(step, codes))

    def coordinates(self, codes: Codes, which: int | str, *, layers: str | None = None) -> Tensor:
        """Return where each code stands along one direction, ⟨code - mean, v⟩ / σ, in `unit`: [batch]."""
        step = self.unit_step(codes.space, which, layers).to(codes.latent)
        offset = codes.latent - codes.space.mean.to(codes.latent)  # [batch, slots or 1, dim]
        return (offset * step).sum((1, 2)) / _positive(step.square().sum())

    def walk(
        self,
        codes: Codes,
        which: int | str,
        steps: Sequence[float],
        *,
        layers: str | None = None,
        absolute: bool = False,
    ) -> Codes:
        """Move every code by each of `steps` along one direction.

        Args:
            codes: [batch, ...] in the directions' space.
            which: index or name.
            steps: strengths in `unit`.
            layers: layer range; by default the direction's own.
            absolute: whether steps are coordinates to reach instead of distances.

        Returns:
            Codes [batch * steps, ...]; the steps of the first code come first.
        """
        walked = codes.repeat(len(steps))
        if self.curve is not None:
            if absolute:
                self.check_straight("a coordinate to reach")
            return walked.with_latent(self._path(codes, which, steps, layers).flatten(0, 1))
        step = self.unit_step(codes.space, which, layers).to(codes.latent)
        amount = torch.tensor(list(steps), dtype=codes.latent.dtype, device=codes.latent.device).repeat(len(codes))
        if absolute:
            amount = amount - self.coordinates(walked, which, layers=layers)
        return walked.with_latent(walked.latent + amount[:, None, None] * _narrow(step, codes))

    def _path(self, codes: Codes, which: int | str, steps: Sequence[float], layers: str | None) -> Tensor:
        """Return codes at each of `steps` σ of arc along one curved direction: [batch, steps, slots, dim]."""
        assert self.curve is not None
        row, space = self.index(which), codes.space
        self.check_space(space)
        mask = space.mask(layers or self.layers[row]).to(codes.latent)  # [slots, dim]
        latent = codes.latent
        if latent.shape[1] == 1 and not bool((mask == mask[:1]).all()):
            latent = latent.expand(-1, space.slots, -1)
        mask = mask if latent.shape[1] == len(mask) else mask[:1]
        curve = curves.change_tensors(self.curve, lambda name, tensor: tensor.to(latent))

        def measure(tangents: Tensor) -> Tensor:
            return tangents * standard_deviation(tangents, space).to(tangents)[:, None, None] * mask

        which_field = torch.full((len(latent),), row, device=latent.device)
        unit = self._arc(row, space)
        return curves.path(curve, latent, which_field, [step * unit for step in steps], measure)

    def _arc(self, row: int, space: Space) -> float:
        """Return the length of arc, in σ, of one unit of strength: 1, unless `sigma` was replaced by another unit."""
        own = float(standard_deviation(self.vectors[row : row + 1], space)[0])
        unit = float(self.sigma[row])
        return unit / own if math.isfinite(unit) and own > 0 else 1.0

    def span(self, which: int | str, default: float = 3.0) -> tuple[float, float]:
        """Return the limits of one direction, or ±`default` where they are not known."""
        low, high = self.limits[self.index(which)].tolist()
        return (low if math.isfinite(low) else -default, high if math.isfinite(high) else default)

    def table(self) -> list[dict[str, Any]]:
        """Return one row a direction of what is known of it, plain data for tables and JSON; None where it is not.

        Returns:
            Rows of `index`, `name`, `layers`, `sigma`, `effect`, `low` and `high` (the limits), `importance`, and
            `quality`, which is `split_half`, or `agreement` where that is not known.
        """
        quality = torch.where(self.split_half.isfinite(), self.split_half, self.agreement)
        columns = {
            "sigma": self.sigma,
            "effect": self.effect,
            "low": self.limits[:, 0],
            "high": self.limits[:, 1],
            "importance": self.importance,
            "quality": quality,
        }
        plain = {
            name: [each if math.isfinite(each) else None for each in column.tolist()]
            for name, column in columns.items()
        }
        return [
            {"index": row, "name": self.names[row], "layers": self.layers[row]}
            | {name: column[row] for name, column in plain.items()}
            for row in range(len(self))
        ]

    # changing

    def renamed(self, names: Mapping[str, str] | Sequence[str]) -> Directions:
        """Return the same directions under other names: old -> new, or one for each."""
        if isinstance(names, Mapping):
            places = {self.index(old): new for old, new in names.items()}
            names = [places.get(row, name) for row, name in enumerate(self.names)]
        return replace(self, names=tuple(names))

    def flipped(self, which: Sequence[int | str]) -> Directions:
        """Return the same directions with some turned round, limits and all."""
        signs, limits = torch.ones(len(self)), self.limits.clone()  # [k], [k, 2]
        for each in which:
            signs[self.index(each)] = -1.0
            limits[self.index(each)] = -self.limits[self.index(each)].flip(0)
        curve = None if self.curve is None else curves.flip(self.curve, signs)
        return replace(self, vectors=self.vectors * signs[:, None, None], limits=limits, curve=curve)

    def with_figures(self, **figures: Any) -> Directions:
        """Return the same directions with some of their figures replaced."""
        return replace(self, **figures)

    # files

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write one `.safetensors` file: tensors, and all else as JSON in its header.

        Raises:
            UserError: where the file exists and `force` is false.
        """
        from safetensors.torch import save_file

        from .files import written_beside

        path = Path(path)
        if path.suffix != ".safetensors":
            raise UserError(f"{path.name} has another suffix; directions are saved as .safetensors")
        tensors = {name: getattr(self, name) for name in ("vectors", "limits", *FIGURES)}
        tensors |= {f"fields/{name}": figure for name, figure in self.fields.items()}
        if self.curve is not None:
            tensors |= {f"curve/{name}": tensor for name, tensor in self.curve.tensors().items()}
        header = {
            "format": FORMAT if self.is_straight else CURVED_FORMAT,
            "space": self.space,
            "names": list(self.names),
            "layers": list(self.layers),
            "unit": self.unit,
            "generator": dict(self.provenance.generator),
            "method": self.provenance.method,
            "arguments": dict(self.provenance.arguments),
            "seed": self.provenance.seed,
            "version": self.provenance.version,
        }
        if self.curve is not None:
            header["curve"] = self.curve.kind
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        with written_beside(path, force=force) as beside:
            save_file(plain, beside, metadata={"eigenlens": json.dumps(header, ensure_ascii=False, default=str)})
        return path

    @classmethod
    def load(cls, path: str | Path, *, generator: Any = None, foreign: bool = False) -> Directions:
        """Read a file that `save` wrote.

        Args:
            path: the file.
            generator: where given, the generator that they are to be used with.
            foreign: whether directions of another generator are welcome.

        Raises:
            UserError: where the file is not of this kind, or belongs to another generator.
        """
        path = Path(path)
        header, tensors = _read_file(path)
        try:
            directions = cls(
                vectors=tensors["vectors"],
                space=header["space"],
                names=tuple(header["names"]),
                layers=tuple(header["layers"]),
                unit=header["unit"],
                limits=tensors["limits"],
                fields={
                    key.removeprefix("fields/"): value for key, value in tensors.items() if key.startswith("fields/")
                },
                provenance=Provenance(
                    header["generator"], header["method"], header["arguments"], header["seed"], header["version"]
                ),
                curve=_read_curve(header, tensors),
                **{name: tensors[name] for name in FIGURES},
            )
        except KeyError as error:
            raise UserError(f"{path} lacks {error.args[0]!r}; it was not written whole") from error
        except UserError as error:
            raise UserError(f"{path} holds no usable directions: {error}") from error
        if generator is not None:
            directions.check_generator(generator, foreign=foreign, source=str(path))
        return directions

    def check_generator(self, generator: Any, *, foreign: bool = False, source: str = "these directions") -> None:
        """Raise UserError where the directions belong to another generator and `foreign` is false."""
        mine, theirs = self.provenance.generator, generator.identity()
        if foreign or not mine.get("weights") or mine["weights"] == theirs["weights"]:
            return
        raise UserError(
            f"{source}: made for {mine.get('name')} ({mine['weights']}), not for {theirs['name']} "
            f"({theirs['weights']}); load them with foreign=True (--foreign) to use them all the same"
        )


_HEADER = {
    "space": str, "names": list, "layers": list, "unit": str, "generator": dict, "method": str, "arguments": dict,
    "seed": int, "version": str, "curve": str,
}  # fmt: skip


def _read_curve(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Curve | None:
    if header["format"] != CURVED_FORMAT:
        return None
    begin = "curve/"
    return curves.read_curve(
        header["curve"], {key.removeprefix(begin): each for key, each in tensors.items() if key.startswith(begin)}
    )


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the header and the tensors of a file that `Directions.save` wrote, and check the header's kinds."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path} does not exist; give a .safetensors file of directions")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("eigenlens", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, ValueError, OSError, RecursionError) as error:  # brackets nested a hundred thousand deep
        raise UserError(f"{path} is no file of directions: {error}") from error
    if not isinstance(header, dict) or header.get("format") not in (FORMAT, CURVED_FORMAT):
        found = header.get("format") if isinstance(header, dict) else None
        raise UserError(f"{path} is in format {found!r}; this version reads {FORMAT!r} and {CURVED_FORMAT!r}")
    for key, kind in _HEADER.items():
        if key in header and not isinstance(header[key], kind):
            raise UserError(f"{path} holds a {type(header[key]).__name__} as {key!r} where a {kind.__name__} belongs")
    return header, tensors


def _narrow(step: Tensor, codes: Codes) -> Tensor:
    """Return `step` for the slots that the latent has; one slot stands for all only where all move alike."""
    if codes.latent.shape[1] == step.shape[0] or step.shape[0] == 1:
        return step
    if bool((step == step[:1]).all()):
        return step[:1]
    return step


def _positive(value: Tensor) -> Tensor:
    if not value > 0:
        raise UserError(
            "this direction is zero on the chosen layers, so no code has a coordinate there; choose other layers"
        )
    return value


# --- making -----------------------------------------------------------------------------------------------------------


def row_norm(vectors: Tensor) -> Tensor:
    """Return the root mean square norm of the rows of each direction that are not zero: [k].

    Raises:
        UserError: on a direction that is zero.
    """
    norms = vectors.norm(dim=2)  # [k, slots]
    active = (norms > 0).sum(1)
    if (active == 0).any():
        raise UserError(f"direction {int((active == 0).nonzero()[0])} is zero; it leads nowhere")
    return (norms.square().sum(1) / active).sqrt()


def unit_norm(vectors: Tensor) -> Tensor:
    """Scale each direction so that its non-zero rows have root mean square norm 1: [k, slots, dim].

    Raises:
        UserError: on a direction that is zero.
    """
    return vectors / row_norm(vectors)[:, None, None]


def fixed_signs(vectors: Tensor) -> Tensor:
    """Turn each direction so that its entry of largest magnitude is positive: the sign of an eigenvector is free."""
    flat = vectors.flatten(1)
    largest = flat.gather(1, flat.abs().argmax(1, keepdim=True))  # [k, 1]
    return vectors * torch.where(largest < 0, -1.0, 1.0)[:, :, None].to(vectors)


def standard_deviation(vectors: Tensor, space: Space) -> Tensor:
    """Return σ of each direction: the standard deviation of the space along it, in multiples of the vector, [k].

    With one slot it is √(vᵀCv). Where all slots of a code hold the same w (w+), it is the root mean square of that
    over the rows v_s that are not zero. Where slots are drawn one by one (a z in chunks), it is √(aᵀCa) with the
    whole code's covariance and a the whole vector at length 1: √(Σ v_sᵀCv_s) over the number of rows.
    In all cases a broadcast vector's coordinate ⟨code - mean, v⟩ / σ has standard deviation 1.

    Args:
        vectors: [k, slots or 1, dim], of unit norm as `unit_norm` has it.
        space: where they live.
    """
    is_drawn_by_slot = space.slots > 1 and space.broadcast_of is None
    if is_drawn_by_slot:
        vectors = vectors.expand(-1, space.slots, -1)
    variance = torch.einsum("ksd,de,kse->ks", vectors, space.covariance.to(vectors), vectors)
    active = (vectors.abs().amax(2) > 0).sum(1).clamp(min=1)
    total = variance.sum(1).clamp(min=0)
    return total.sqrt() / active if is_drawn_by_slot else (total / active).sqrt()


def shared_space(generator: Any, sets: Sequence[Directions]) -> Space:
    """Return the space in which sets of directions compare: w, or w+ where any has layer ranges or rows of its own.

    Args:
        generator: the generator that they belong to.
        sets: of one space; w and w+ go together.

    Raises:
        UserError: where the generator has no such space.
    """
    space = generator.space(sets[0].space)
    wider = [each for each in generator.spaces.values() if each.broadcast_of == space.name]
    is_narrow = all(
        each.space == space.name and each.vectors.shape[1] <= space.slots and set(each.layers) <= {"all"}
        for each in sets
    )
    return space if is_narrow or not wider else wider[0]


def concatenate(pieces: Sequence[Directions]) -> Directions:
    """Return all directions of `pieces`, which share space, unit and width; names that clash get their method in front.

    Raises:
        UserError: where they do not.
    """
    first = pieces[0]
    slots = max(piece.vectors.shape[1] for piece in pieces)
    for piece in pieces:
        if (piece.space, piece.unit, piece.vectors.shape[2]) != (first.space, first.unit, first.vectors.shape[2]):
            raise UserError(
                f"directions of {piece.space} in {piece.unit} [{piece.vectors.shape[2]}] came beside some of "
                f"{first.space} in {first.unit} [{first.vectors.shape[2]}]; only one kind can stand in a file"
            )
    bent = [piece.curve for piece in pieces if piece.curve is not None]
    if bent and len(bent) < len(pieces):
        raise UserError("straight and curved directions came; keep them in files of their own")
    names = [name for piece in pieces for name in piece.names]
    if len(set(names)) < len(names):
        names = [
            f"{piece.provenance.method or number}-{name}" for number, piece in enumerate(pieces) for name in piece.names
        ]
    if len(set(names)) < len(names):
        raise UserError("the same directions came twice; leave one set out, or rename it")
    common = set.intersection(*(set(piece.fields) for piece in pieces))
    same = all(piece.provenance == first.provenance for piece in pieces)
    methods = "+".join(dict.fromkeys(piece.provenance.method for piece in pieces))
    return Directions(
        vectors=torch.cat([piece.vectors.expand(-1, slots, -1) for piece in pieces]),
        space=first.space,
        names=tuple(names),
        layers=tuple(layers for piece in pieces for layers in piece.layers),
        unit=first.unit,
        limits=torch.cat([piece.limits for piece in pieces]),
        fields={name: torch.cat([piece.fields[name] for piece in pieces]) for name in sorted(common)},
        provenance=first.provenance if same else replace(first.provenance, method=methods, arguments={}),
        curve=curves.join(bent) if bent else None,
        **{name: torch.cat([getattr(piece, name) for piece in pieces]) for name in FIGURES},
    )
