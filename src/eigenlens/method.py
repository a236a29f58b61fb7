"""What a method is, the table of methods, and the one way to name directions from a file or a method."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from . import __version__
from .codes import Space
from .directions import Directions, Provenance
from .errors import UserError, unknown_name
from .generator import Generator
from .registry import Registry

METHODS = Registry(
    "method",
    {
        "axes": "eigenlens.methods.baselines:Axes",
        "eigen": "eigenlens.methods.eigen:Eigen",
        "random": "eigenlens.methods.baselines:Random",
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
    """Return what directions remember of the fit that made them."""
    return Provenance(generator.identity(), method.name, dataclasses.asdict(method), seed, __version__)


def chosen_space(generator: Generator, name: str | None) -> Space:
    """Return the space a method works in: `name`, or the generator's default."""
    return generator.space(name or generator.default_space)


def find_directions(source: str, generator: Generator, *, foreign: bool = False) -> Directions:
    """Return the directions that `source` names for `generator`.

    Args:
        source: a `.safetensors` file, or the name of a method, which is run with its defaults and seed 0.
        generator: the generator to use them with.
        foreign: whether directions of another generator are welcome.

    Raises:
        UserError: where it is neither, or the file belongs to another generator.
    """
    path = Path(source)
    if path.suffix or path.exists():
        return Directions.load(path, generator=generator, foreign=foreign)
    if source not in METHODS:
        raise unknown_name("method or file of directions", source, METHODS)
    return METHODS[source]().fit(generator, seed=0)


def check_count(n_directions: int, dim: int) -> None:
    """Raise UserError unless 1 <= n_directions <= dim."""
    if not 1 <= n_directions <= dim:
        raise UserError(f"{n_directions} directions were asked for; this space has room for 1-{dim}")
