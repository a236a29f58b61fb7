"""Published edits by component and layer range, replayed against a file of components.

A file of presets is JSON:

    {"format": "eigenlens.presets/1", "components": "<the file that they were made with>", "space": "w", "slots": 18,
     "resolution": 1024, "truncation": 0.7, "source": "...",
     "presets": [{"name": "wrinkles", "component": 20, "layers": [6, 7], "sigma": -18}, ...]}

`layers` is half-open, as published; everywhere else in this package ranges are inclusive. A preset may also say
`"absolute": false`, a distance instead of the coordinate to reach; `"invert": true`, to the other side of the mean
from where the code is; and `"group"`, which figure it is from. The signs and indices of components belong to one file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .directions import Directions
from .errors import UserError, unknown_name
from .generator import Generator
from .move import Move

FORMAT = "eigenlens.presets/1"
FOLDER = Path(__file__).parent / "assets" / "presets"


@dataclass(frozen=True)
class Preset:
    """One published edit."""

    name: str
    """What it does, as published."""
    component: int
    """Index in the file of components."""
    layers: str
    """Inclusive layer range, in the slots of the network that it was made with."""
    sigma: float
    """Strength in σ of the component."""
    is_absolute: bool = True
    """Whether the strength is the coordinate to reach, or else a distance."""
    is_inverted: bool = False
    """Whether it leads to the other side of the mean from where the code is."""
    group: str = ""
    """Which figure or list it is from."""
    slots: int = 18
    """Slots of the network that it was made with."""

    def move(self, directions: str, *, layers: str | None = None, coordinate: float | None = None) -> Move:
        """Return the Move of an Edit that replays it.

        Args:
            directions: the file of components, as the Edit shall name it.
            layers: layer range; by default its own. See `fitted_layers` for networks with other slots.
            coordinate: where the code stands along the component; only an inverted preset needs it.

        Raises:
            UserError: where an inverted preset lacks the coordinate.
        """
        strength, where = self.sigma, layers or self.layers
        if self.is_inverted:
            if coordinate is None:
                raise UserError(
                    f"preset {self.name!r} leads to the other side of the mean; pass the code's coordinate along "
                    f"component {self.component}"
                )
            strength = -math.copysign(abs(self.sigma), coordinate)
        if self.is_absolute or self.is_inverted:
            return Move(directions, self.component, to=strength, layers=where, unit="sigma")
        return Move(directions, self.component, by=strength, layers=where, unit="sigma")


def bundled_presets() -> list[str]:
    """Return the names of the files of presets that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_presets(source: str | Path) -> list[Preset]:
    """Read a file of presets.

    Args:
        source: a JSON file, or the name of a bundled one, such as `ffhq_ganspace`.

    Raises:
        UserError: where it is not there, or not of this format.
    """
    bundled = bundled_presets()
    path = FOLDER / f"{source}.json" if str(source) in bundled else Path(source)
    if not path.is_file():
        raise unknown_name("file of presets", str(source), bundled)
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no file of presets: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise UserError(f"{path} is in format {found!r}; this version reads {FORMAT!r}")
    slots, listed = content.get("slots"), content.get("presets")
    if not isinstance(slots, int) or slots < 1 or not isinstance(listed, list):
        raise UserError(f"{path} lacks 'slots', a whole number, or 'presets', a list")
    presets = [_preset(entry, slots, path) for entry in listed]
    names = [preset.name for preset in presets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path} has two presets called {twice[0]!r}; rename one")
    return presets


_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,), "component": (int,), "layers": (list,), "sigma": (int, float), "absolute": (bool,),
    "invert": (bool,), "group": (str,),
}  # fmt: skip


def _preset(entry: Any, slots: int, path: Path) -> Preset:
    """Check one entry, and make its half-open range inclusive."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise UserError(f"{path}: a preset is a JSON object with a name; {str(entry)[:60]} came")
    what = f"{path}: preset {entry['name']!r}"
    unknown = sorted(set(entry) - set(_KINDS))
    if unknown:
        raise UserError(f"{what} has no {unknown[0]!r}; it takes {', '.join(_KINDS)}")
    for key in ("component", "layers", "sigma"):
        if key not in entry:
            raise UserError(f"{what} lacks {key!r}")
    for key, given in entry.items():
        if type(given) not in _KINDS[key]:  # not isinstance: True is an int
            raise UserError(f"{what} has {key} {given!r}; {_KINDS[key][-1].__name__} is wanted")
    ends = entry["layers"]
    if not (len(ends) == 2 and all(type(end) is int for end in ends) and 0 <= ends[0] < ends[1] <= slots):
        raise UserError(f"{what} has layers {ends}; they are [start, end) within 0-{slots}, end left out")
    if entry["component"] < 0 or not math.isfinite(entry["sigma"]):
        raise UserError(f"{what} has component {entry['component']} and sigma {entry['sigma']}; neither can be so")
    first, last = ends[0], ends[1] - 1
    return Preset(
        entry["name"],
        entry["component"],
        f"{first}-{last}" if last > first else str(first),
        float(entry["sigma"]),
        entry.get("absolute", True),
        entry.get("invert", False),
        entry.get("group", ""),
        slots,
    )


def named_directions(presets: Sequence[Preset], components: Directions, generator: Generator) -> Directions:
    """Return one direction a preset, under its name and with its layer range, from a file of components.

    Args:
        presets: what to name.
        components: the directions whose indices the presets mean.
        generator: the one to use them with; ranges are translated to its slots by `fitted_layers`.

    Returns:
        Directions with the field `published`, the published strength of each.

    Raises:
        UserError: where a component is missing.
    """
    components.check_straight("a published edit")
    rows = [components.index(preset.component) for preset in presets]
    blank = torch.full((len(rows),), math.nan)
    return replace(
        components,
        vectors=components.vectors[rows],
        names=tuple(preset.name for preset in presets),
        layers=tuple(fitted_layers(preset.layers, preset.slots, generator) for preset in presets),
        sigma=components.sigma[rows],
        effect=blank,
        limits=torch.full((len(rows), 2), math.nan),
        importance=components.importance[rows],
        split_half=components.split_half[rows],
        agreement=components.agreement[rows],
        fields={"published": torch.tensor([preset.sigma for preset in presets])},
    )


def fitted_layers(layers: str, slots: int, generator: Generator) -> str:
    """Translate a layer range of a StyleGAN2 with `slots` slots to a generator whose slots are other ones.

    Slots correspond by resolution: each network's share of a resolution's two convolutions. A slot of StyleGAN2 counts
    to the larger resolution that it feeds; slots that feed nothing have no part in it.

    Args:
        layers: inclusive range of slots.
        slots: of the network it was made with.
        generator: the one to translate to.

    Raises:
        UserError: where the generator has no slot at those resolutions.
    """
    layered = [space for space in generator.spaces.values() if space.broadcast_of is not None]
    if not layered:
        raise UserError(
            f"{generator.name} takes one code for all layers, so no edit of layers {layers} can be replayed"
        )
    space = layered[0]
    if space.slots == slots:
        return layers
    first, _, last = layers.partition("-")
    low, high = _depth(int(first), slots) - (0.5 if int(first) else 1.0), _depth(int(last or first), slots)
    sizes = {layer.name: layer.resolution for layer in generator.layers}
    levels: dict[int, list[int]] = {}
    for part in space.parts:
        fed = [sizes[name] for name in part.layers if name in sizes]
        if fed:
            levels.setdefault(int(math.log2(max(fed) / 4)), []).append(part.number)
    fitting = [
        str(number)
        for level, numbers in levels.items()
        for place, number in enumerate(numbers)
        if low < level - 1 + (place + 0.5) / len(numbers) < high
    ]
    if not fitting:
        raise UserError(f"{generator.name} has no slots where layers {layers} of a network with {slots} slots are")
    return ",".join(fitting)


def _depth(slot: int, slots: int) -> float:
    """Return where a slot of StyleGAN2 ends: 0 at 4 px, then ½ for each convolution; the last slot is an image's."""
    return min(slot, slots - 2) / 2
