"""What several metrics share: walking along directions, reading what is seen, and plain statistics of it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import runtime
from ..codes import Codes
from ..directions import Directions
from ..effect import LIMIT_CAP, sample_for, traverse
from ..errors import UserError
from ..generator import Generator
from ..reader import Reader, Reading, read


def require(module: str, *, extra: str = "metrics") -> Any:
    """Import a package of an extra.

    Raises:
        UserError: where it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise UserError(f"this needs {package}, which is not installed; pip install 'eigenlens[{extra}]'") from error


def spans(directions: Directions, strength: float, strengths: Sequence[float] | None = None) -> list[float]:
    """Return how far each direction is walked either way, in σ.

    Args:
        directions: in σ. Where limits are known, a walk stays within the nearer one.
        strength: of all, where `strengths` are not given.
        strengths: one each, kept as they are.

    Raises:
        UserError: where there is not one strength for each direction.
    """
    if strengths is not None:
        if len(strengths) != len(directions):
            raise UserError(f"{len(strengths)} strengths came for {len(directions)} directions; give one each")
        return [float(each) for each in strengths]
    reach = [directions.span(k, LIMIT_CAP) for k in range(len(directions))]
    return [min(strength, -low, high) for low, high in reach]


def in_sigma(generator: Generator, directions: Directions) -> Directions:
    """Return the directions in σ of their space."""
    return directions.in_sigma(generator.space(directions.space))


def ends(generator: Generator, codes: Codes, directions: Directions, which: int, steps: Sequence[float]) -> Tensor:
    """Render codes [batch] at each of `steps` along one direction, in [-1, 1]: [batch, steps, c, h, w]."""
    return traverse(generator, codes, directions, which, steps).clamp(-1, 1)


def read_walk(
    generator: Generator,
    codes: Codes,
    directions: Directions,
    which: int,
    steps: Sequence[float],
    reader: Reader,
) -> Reading:
    """Read every code at each of `steps` along one direction: scores [batch, steps, attributes], and so on."""
    pieces = []
    rows = max(1, generator.batch_size // len(steps))
    for start, stop in runtime.batches(len(codes), rows):
        images = ends(generator, codes[start:stop], directions, which, steps)
        with torch.inference_mode():
            pieces.append(read(reader, images.flatten(0, 1)))
    shape = (len(codes), len(steps))
    join = lambda name: torch.cat([getattr(piece, name) for piece in pieces]).unflatten(0, shape)  # noqa: E731
    return Reading(join("scores"), join("error"), join("certain"))


def read_samples(
    generator: Generator, directions: Directions, reader: Reader, n: int, *, seed: int = 0
) -> tuple[Codes, Reading]:
    """Draw codes in the directions' space, and read their images [n, attributes]."""
    codes = sample_for(generator, directions, n, seed=seed)
    return codes, read_codes(generator, codes, reader)


def read_codes(generator: Generator, codes: Codes, reader: Reader) -> Reading:
    """Read the images of codes: scores [n, attributes], and so on."""
    pieces = []
    with torch.inference_mode():
        for images in generator.stream(codes, what="reading"):  # the next batch is made meanwhile, on a GPU
            pieces.append(read(reader, images.clamp(-1, 1)))
    join = lambda name: torch.cat([getattr(piece, name) for piece in pieces])  # noqa: E731
    return Reading(join("scores"), join("error"), join("certain"))


def collect(
    generator: Generator, codes: Codes, function: Callable[[Tensor], Tensor], *, what: str = "features"
) -> Tensor:
    """Apply a function of images to the images of all codes, batch by batch: [n, ...]."""
    pieces = []
    with torch.inference_mode():
        for images in generator.stream(codes, what=what):
            pieces.append(function(images.clamp(-1, 1)))
    return torch.cat(pieces)


def plain(values: Any) -> Any:
    """Turn tensors and floats into plain JSON values of 6 digits, with None for what is not finite."""
    if isinstance(values, Tensor):
        return plain(values.tolist())
    if isinstance(values, float):
        return float(f"{values:.6g}") if math.isfinite(values) else None
    if isinstance(values, (list, tuple)):
        return [plain(each) for each in values]
    if isinstance(values, dict):
        return {key: plain(each) for key, each in values.items()}
    return values


def ranks(values: Tensor) -> Tensor:
    """Return the rank of each entry along the last dimension, ties sharing their mean rank."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    same = (values[..., None, :] == values[..., :, None]).sum(-1)
    return below + (same - 1) / 2.0


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation over the last dimension; 0 where one of the two does not vary."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    size = a.square().sum(-1) * b.square().sum(-1)
    return (a * b).sum(-1) / size.sqrt().clamp(min=1e-30) * (size > 1e-24)
