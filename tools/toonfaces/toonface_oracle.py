"""The renderer as a generator: its coordinates are the true factors, so its axes are perfect directions.

In a comparison it is the ceiling, the row `oracle`: what a metric gives to directions that each change one factor and
nothing else. With this folder on PYTHONPATH, `toonface_oracle:renderer` opens it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping

import numpy as np
import render as drawing
import torch
from rendering import RequestError, check_drawing, drawing_command
from toonface_factors import FACTORS, Category, Number, factor_named

from eigenlens.codes import Part, Space
from eigenlens.errors import UserError
from eigenlens.generator import Generator, Layer, State

FIRST = (
    "skin_tone", "hair_L", "background_L", "clothes_L", "rotation", "beard", "rear_hair", "scale", "shift_x", "shift_y",
)  # fmt: skip
"""Factors whose coordinates come first, of every kind; the others follow in the order of the table."""
AT_ONCE = 64
"""Faces that are asked for at once: their description has to fit into a pipe while nobody reads it."""


def coordinates() -> list[tuple[str, int | None]]:
    """Return what each coordinate of a code means: a number or a presence (factor, None), or (factor, category)."""
    ordered = [factor_named(name) for name in FIRST] + [each for each in FACTORS if each.name not in FIRST]
    found: list[tuple[str, int | None]] = []
    for factor in ordered:
        if isinstance(factor, Category) and not factor.is_presence:
            found += [(factor.name, code) for code in range(len(factor.categories))]
        else:
            found.append((factor.name, None))
    return found


def factors_of(codes: np.ndarray) -> dict[str, np.ndarray]:
    """Turn codes N(0, 1) [n, coordinates] into factors of the law that the data set has.

    A number lies where its coordinate does among all codes, something is present where its coordinate is positive, and
    of several categories the one with the largest coordinate is taken, which gives all the same chance.
    """
    names = coordinates()
    found: dict[str, np.ndarray] = {}
    for factor in FACTORS:
        columns = [i for i, (name, _) in enumerate(names) if name == factor.name]
        z = codes[:, columns].astype(np.float64)
        if isinstance(factor, Number):
            share = torch.special.ndtr(torch.from_numpy(z[:, 0])).numpy()
            found[factor.name] = (factor.low + (factor.high - factor.low) * share).astype(np.float32)
        else:
            found[factor.name] = (z[:, 0] > 0 if factor.is_presence else z.argmax(1)).astype(np.int16)
    return found


class Renderer(Generator):
    """Draws toon faces of given factors; see the text of this module."""

    family = "toonface-renderer"

    def __init__(self, resolution: int) -> None:
        dim = len(coordinates())
        network = torch.nn.Module()  # no weights, but the ranges tell one law of the factors from another
        network.register_buffer("ranges", torch.tensor([[f.low, f.high] for f in FACTORS if isinstance(f, Number)]))
        super().__init__(
            network,
            name="toonface-renderer",
            spaces={"z": Space("z", 1, dim, (Part("factors", 0, 0, 0, dim, ("picture",)),))},
            layers=[Layer("picture", resolution, 3, 0)],
            resolution=resolution,
        )
        self._process: subprocess.Popen[bytes] | None = None

    def _inputs(self, codes: object) -> np.ndarray:
        return codes.latent[:, 0].numpy()  # type: ignore[attr-defined]

    def _layer(self, index: int, state: State, inputs: np.ndarray) -> State:
        pieces = [self._drawn(factors_of(inputs[i : i + AT_ONCE])) for i in range(0, len(inputs), AT_ONCE)]
        pixels = np.concatenate(pieces).transpose(0, 3, 1, 2)  # [n, 3, resolution, resolution]
        return State(index + 1, torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1)

    def _drawn(self, factors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Draw at most `AT_ONCE` faces as `render_faces` does, by a process that stays: uint8 [n, h, w, 3]."""
        n, size = len(factors["rotation"]), self.resolution * drawing.OVERSAMPLING
        if self._process is None or self._process.poll() is not None:
            command = drawing_command(drawing.HERE, size)
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("".join(json.dumps(look) + "\n" for look in drawing._looks(factors)).encode())
        self._process.stdin.flush()
        raw = self._process.stdout.read(n * size * size * 4)
        if len(raw) < n * size * size * 4:
            raise RuntimeError("the drawing program has ended early; what it said stands above")
        avatars = drawing.averaged(np.frombuffer(raw, dtype=np.uint8), n, self.resolution)
        images, _ = drawing.composed(avatars, factors, resolution=self.resolution)
        return images


def renderer(resolution: int = 64) -> Renderer:
    """Open the renderer.

    Raises:
        UserError: where Node.js or the drawing packages are missing.
    """
    try:
        check_drawing(drawing.HERE)
    except RequestError as error:
        raise UserError(str(error)) from error
    return Renderer(resolution)
