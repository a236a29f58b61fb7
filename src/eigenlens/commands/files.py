"""`list`, `info` and `convert`: what there is, what a file is, and our own format of it."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from .. import images as pictures
from ..codes import read_codes_header
from ..directions import Directions
from ..errors import UserError
from ..files import header_of
from ..generator import GENERATORS, NAMED, Generator
from ..method import METHODS
from ..metric import METRICS
from ..reader import EXTRACTORS, READERS
from ..registry import Registry
from .words import HERE, Machine, as_text

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4")
"""Suffixes of files that may carry a recipe."""


def list_names() -> None:
    """List the names that commands take, those that take weights from elsewhere with their licences."""
    from ..training import eigengan, stylegan2

    rows = {
        "generators": NAMED,
        "families": GENERATORS,
        "methods": METHODS,
        "metrics": METRICS,
        "readers": [_licensed(READERS, name) for name in READERS],
        "features": [_licensed(EXTRACTORS, name) for name in EXTRACTORS],
        "presets": [*eigengan.PRESETS, *stylegan2.PRESETS],
    }
    width = max(map(len, rows))
    for kind, names in rows.items():
        print(f"{kind:<{width}}  {', '.join(names)}")


def _licensed(table: Registry, name: str) -> str:
    licence = getattr(table[name], "licence", "")
    return f"{name} ({licence})" if licence else name


def info(source: Positional[str], /, *, json: bool = False, machine: Machine = HERE) -> None:
    """Tell what a generator, a file of directions, codes, an encoder or a segmenter, or a picture made by eigenlens is.

    Args:
        source: a generator (a name, a folder or a file), a .safetensors file of ours, or a picture or film of ours.
        json: print JSON instead of text.
        machine: how the generator is opened.
    """
    path = Path(source)
    if path.suffix.lower() in PICTURES and path.exists():
        recipe = pictures.read_recipe(path)
        if recipe is None:
            raise UserError(f"{path} carries no recipe; only pictures that eigenlens wrote do")
        print(json_format.dumps(recipe, indent=2) if json else recipe.get("command", json_format.dumps(recipe)))
        return
    header = header_of(path) if path.suffix == ".safetensors" and path.is_file() else {}
    kind = str(header.get("format", "")).partition("/")[0]
    if kind == "eigenlens.directions":
        about = describe_directions(Directions.load(path))
    elif kind == "eigenlens.codes":
        about = describe_codes(path)
    elif kind == "eigenlens.encoder":
        about = describe_encoder(header)
    elif kind == "eigenlens.segmenter":
        about = describe_segmenter(header)
    else:
        about = describe_generator(machine.open(source))
    print(json_format.dumps(about, indent=2, ensure_ascii=False) if json else as_text(about))


def convert(
    source: Positional[str],
    out: Positional[Path],
    /,
    *,
    half: bool = False,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Write any generator that opens as a folder of ours: config.json, model.safetensors and a card.

    Args:
        source: a name, a folder, a file, or package.module:function.
        out: the folder to write.
        half: store the weights in float16.
        machine: how the generator is opened.
        force: replace what is in the folder.
    """
    generator = machine.open(source)
    print(generator.save(out, half=half, force=force))


def describe_generator(generator: Generator) -> dict[str, Any]:
    """Return what `info` tells of a generator, as plain JSON."""
    weights = sum(tensor.numel() for tensor in generator.network.state_dict().values())
    return {
        "name": generator.name,
        "family": generator.family,
        "resolution": generator.resolution,
        "channels": generator.channels,
        "numbers": f"{weights:,}",
        "labels": len(generator.label_names) or "none",
        "layout": generator.origin.layout + (f", entry {generator.origin.entry}" if generator.origin.entry else ""),
        "container": generator.origin.container or "memory",
        "sha256": generator.origin.sha256 or "-",
        "weights": generator.weight_hash,
        "spaces": [
            {
                "name": space.name,
                "slots": space.slots,
                "dim": space.dim,
                "law": space.law,
                "parts": [f"{part.number} {part.name} [{part.start}:{part.stop}]" for part in space.parts],
            }
            for space in generator.spaces.values()
        ],
        "layers": [
            {"name": layer.name, "resolution": layer.resolution, "channels": layer.channels, "part": layer.part}
            for layer in generator.layers
        ],
    }


def describe_directions(directions: Directions) -> dict[str, Any]:
    """Return what `info` tells of directions, as plain JSON."""
    made = directions.provenance
    return {
        "directions": len(directions),
        "space": directions.space,
        "unit": directions.unit,
        "method": made.method,
        "arguments": dict(made.arguments),
        "seed": made.seed,
        "generator": dict(made.generator),
        "version": made.version,
        "table": directions.table(),
    }


def describe_codes(path: Path) -> dict[str, Any]:
    """Return what `info` tells of a file of codes, as plain JSON; of projected photos a row each, with figures."""
    header = read_codes_header(path)
    about = {name: header[name] for name in ("codes", "space", "generator", "noise_seeds", "truncation")}
    made = header.get("about", {})
    rest = {name: value for name, value in made.items() if name != "photos"}
    return about | rest | {"photos": made.get("photos", [])}


def describe_encoder(header: dict[str, Any]) -> dict[str, Any]:
    """Return what `info` tells of an encoder, as plain JSON."""
    shape, made = header.get("config", {}), header.get("about", {})
    return {
        "encoder": f"reads space {shape.get('space')} off images of {shape.get('resolution')} px",
        "generator": header.get("generator"),
        **{name: made.get(name) for name in ("kimg", "distance", "code_error", "version")},
    }


def describe_segmenter(header: dict[str, Any]) -> dict[str, Any]:
    """Return what `info` tells of a segmenter, as plain JSON."""
    shape, made = header.get("config", {}), header.get("about", {})
    return {
        "segmenter": f"masks pictures at {shape.get('resolution')} px",
        "generator": made.get("generator"),
        "directions": ", ".join(made.get("directions", {}).get("names", ())),
        **{name: made.get(name) for name in ("rule", "kimg", "n_masks", "version")},
    }
