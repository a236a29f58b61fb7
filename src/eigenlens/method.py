"""What a method is, the table of methods, and the one way to name directions from a file or a method."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

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
        "contrastive": "eigenlens.methods.contrastive:Contrastive",
        "eigen": "eigenlens.methods.eigen:Eigen",
        "ganspace": "eigenlens.methods.ganspace:GANSpace",
        "jacobian": "eigenlens.methods.jacobian:Jacobian",
        "pairs": "eigenlens.methods.pairs:Pairs",
        "random": "eigenlens.methods.baselines:Random",
        "sefa": "eigenlens.methods.sefa:SeFa",
        "supervised": "eigenlens.methods.supervised:Supervised",
        "voynov": "eigenlens.methods.voynov:Voynov",
        "warped": "eigenlens.methods.warped:Warped",
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


def lacking(kind: Any, generator: Generator) -> str:
    """Return why a method cannot run on a generator, as far as its anatomy tells; empty where it can.

    A method that needs an organ names it in `needs`.
    """
    for organ in getattr(kind, "needs", ()):
        try:
            getattr(generator, organ)()
        except Unsupported as error:
            return str(error)
    return ""


@dataclass(frozen=True)
class Setting:
    """One field of a method, as forms show it."""

    name: str
    """Of the field."""
    kind: str
    """int, float, bool, str, choice, or other."""
    default: Any
    """Plain JSON."""
    choices: tuple[str, ...] = ()
    """Of a choice."""
    is_optional: bool = False
    """Whether it may be left empty."""
    is_list: bool = False
    """Whether it may be a list."""


def settings(kind: Any) -> list[Setting]:
    """Return the fields of a method that JSON can give, with their kinds and defaults.

    Example:
        >>> [each.name for each in settings(METHODS["random"])][:1]
        ['n_directions']
    """
    hints, found = typing.get_type_hints(kind), []
    for each in dataclasses.fields(kind):
        hint = hints[each.name]
        options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        plain = [option for option in options if option is not type(None)]
        choices = typing.get_args(plain[0]) if typing.get_origin(plain[0]) is Literal else ()
        names = {int: "int", float: "float", bool: "bool", str: "str"}
        known = [names[option] for option in plain if option in names]
        word = "choice" if choices else "str" if "str" in known else known[0] if known else "other"
        is_list = any(typing.get_origin(option) is tuple for option in plain)
        default = None if each.default is dataclasses.MISSING else _plain(each.default)
        found.append(Setting(each.name, word, default, tuple(map(str, choices)), len(plain) < len(options), is_list))
    return found


def make_method(name: str, given: Mapping[str, Any]) -> Any:
    """Build a method from plain JSON.

    Raises:
        UserError: on an unknown method or field, or a value of another kind.
    """
    kind = METHODS[name]
    known = {each.name: each for each in settings(kind)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise unknown_name(f"setting of {name}", key, known)
        setting = known[key]
        allowed = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str, int)}.get(
            setting.kind, (object,)
        )
        fits = isinstance(value, allowed) and isinstance(value, bool) == (setting.kind == "bool")
        fits = value in setting.choices if setting.kind == "choice" else fits
        fits = setting.is_list if isinstance(value, list) else fits
        fits = fits and not (isinstance(value, float) and not math.isfinite(value))
        if not (fits or (value is None and setting.is_optional)):
            wanted = " or ".join(setting.choices) or setting.kind
            raise UserError(f"{key!r} of {name} is {value!r}; {wanted} is wanted")
        values[key] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def check_count(n_directions: int, dim: int) -> None:
    """Raise UserError unless 1 <= n_directions <= dim."""
    if not 1 <= n_directions <= dim:
        raise UserError(f"{n_directions} directions were asked for; this space has room for 1-{dim}")


def check_layers(generator: Generator, space: Space, layers: str) -> None:
    """Raise UserError unless codes of `space`, or of the space that repeats them in every slot, have these layers."""
    wider = [each for each in generator.spaces.values() if each.broadcast_of == space.name]
    (wider[0] if wider and layers != "all" else space).picked(layers)
