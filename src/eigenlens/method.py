"""What a method is, the table of methods, and the one way to name directions from a file or a method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from . import __version__
from .codes import Space
from .directions import Directions, Provenance
from .errors import Unsupported, UserError, unknown_name
from .exchange import import_directions
from .generator import Generator
from .registry import Registry

METHODS = Registry(
    "method",
    {
        "axes": "eigenlens.methods.baselines:Axes",
        "eigen": "eigenlens.methods.eigen:Eigen",
        "ganspace": "eigenlens.methods.ganspace:GANSpace",
        "jacobian": "eigenlens.methods.jacobian:Jacobian",
        "random": "eigenlens.methods.baselines:Random",
        "sefa": "eigenlens.methods.sefa:SeFa",
        "supervised": "eigenlens.methods.supervised:Supervised",
        "voynov": "eigenlens.methods.voynov:Voynov",
    },
)
"""Name -> the method. A new one is one file under `methods/` and one line here."""


@runtime_checkable
class Method(Protocol):
    """A way to find directions: a frozen dataclass of hyper-parameters, and `fit`."""

    name: ClassVar[str]
    """The name in the table."""

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Find directions in `generator`.

        Args:
            generator: any generator; a family that lacks what the method needs raises `Unsupported`.
            seed: fixes the result.
            run: a folder for progress and for resuming, for methods that train.

        Returns:
            Directions with σ and provenance; effect and limits are measured by `effect.calibrate`.
        """
        ...


def provenance(method: Any, generator: Generator, seed: int) -> Provenance:
    """Return what directions remember of the fit that made them; a function among the fields by its name."""
    arguments = {field.name: _plain(getattr(method, field.name)) for field in dataclasses.fields(method)}
    return Provenance(generator.identity(), method.name, arguments, seed, __version__)


def _plain(value: Any) -> Any:
    """Return a field of a method as it goes into JSON."""
    if dataclasses.is_dataclass(value) and not callable(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(value):
        return getattr(value, "name", None) or getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return value


def chosen_space(generator: Generator, name: str | None) -> Space:
    """Return the space a method works in: `name`, or the generator's default."""
    return generator.space(name or generator.default_space)


def find_directions(source: str, generator: Generator, *, foreign: bool = False, measured: bool = True) -> Directions:
    """Return the directions that `source` names for `generator`.

    Args:
        source: a file of directions, ours or another tool's, or the name of a method, which is run with its defaults
            and seed 0.
        generator: the generator to use them with.
        foreign: whether directions of another generator are welcome.
        measured: whether a method that can do without shall measure figures on images, which takes seconds.

    Raises:
        UserError: where it is neither, or the file belongs to another generator.
    """
    path = Path(source)
    if path.suffix or path.exists():
        if path.suffix == ".safetensors":
            return Directions.load(path, generator=generator, foreign=foreign)
        return import_directions(path, generator)
    if source not in METHODS:
        raise unknown_name("method or file of directions", source, METHODS)
    kind = METHODS[source]
    can_skip = any(each.name == "measured" for each in dataclasses.fields(kind))
    return (kind(measured=measured) if can_skip else kind()).fit(generator, seed=0)


def default_directions(generator: Generator) -> str:
    """Return the directions that a generator has without asking: its own axes, else SeFa."""
    try:
        generator.own_axes()
    except Unsupported:
        return "sefa"
    return "eigen"


def check_count(n_directions: int, dim: int) -> None:
    """Raise UserError unless 1 <= n_directions <= dim."""
    if not 1 <= n_directions <= dim:
        raise UserError(f"{n_directions} directions were asked for; this space has room for 1-{dim}")


def check_layers(generator: Generator, space: Space, layers: str) -> None:
    """Raise UserError unless codes of `space`, or of the space that repeats them in every slot, have these layers."""
    wider = [each for each in generator.spaces.values() if each.broadcast_of == space.name]
    (wider[0] if wider and layers != "all" else space).picked(layers)
