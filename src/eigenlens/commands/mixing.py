"""`interpolate` and `mix`: what lies between images, and images made of two."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from tyro.conf import Positional

from .. import images as pictures
from ..codes import Codes, concatenate
from ..errors import UserError
from ..film import Easing, eased
from ..generator import Generator
from ..mixture import Way
from ..mixture import interpolate as between
from ..mixture import mix as mixed
from .words import (
    HERE,
    Machine,
    check_picture,
    command_again,
    is_film,
    parse_seeds,
    refuse_beside,
    rows_of,
    sample_seeds,
)


def interpolate(
    generator: Positional[str],
    /,
    *,
    seeds: str = "0-3",
    codes: Path | None = None,
    labels: str | None = None,
    out: Path = Path("interpolation.png"),
    space: str | None = None,
    way: Way = "auto",
    steps: int = 9,
    easing: Easing = "linear",
    fps: float = 24,
    loop: bool = False,
    truncation: float | None = None,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Go from image to image: a strip for each pair, or a film for .gif, .webp and .mp4.

    Args:
        generator: a name, a folder, a file, or package.module:function.
        seeds: the images to go through, such as 0-3 or 3,5,8.
        codes: a .safetensors file of codes, whose rows --seeds then names.
        labels: indices or names of classes with commas between, one for all, or one an image; with one seed, the way
            goes through the classes.
        out: the picture or film to write.
        space: where the way leads; by default the generator's own choice.
        way: auto, linear or spherical; auto is spherical where codes are drawn normally.
        steps: images of each pair, both ends included.
        easing: linear, or smooth, which slows down at each image.
        fps: film: frames a second.
        loop: go back from the last image to the first.
        truncation: of the images; 1 by default.
        machine: how the generator is opened.
        force: replace a file that exists.
    """
    again = command_again("interpolate", interpolate, locals())
    check_picture(out, films=True, force=force)
    refuse_beside("--codes", codes, {"--labels": labels, "--truncation": truncation})
    g = machine.open(generator)
    keys, names = _keys(g, parse_seeds(seeds), codes, labels, space, 1.0 if truncation is None else truncation)
    order = [*range(len(keys)), *([0] if loop else [])]
    if len(order) < 2:
        raise UserError("one image leads nowhere; give two or more seeds, or two or more labels")
    shares = eased(steps, easing)
    about = {"version": 1, "command": again}
    pairs = list(itertools.pairwise(order))
    if is_film(out):
        film = (
            g.render(between(keys[a], keys[b], [share], way=way))
            for number, (a, b) in enumerate(pairs)
            for share in (shares if not number else shares[1:])
        )
        pictures.save_animation(pictures.frames(film), out, fps=fps, recipe=about, force=force)
    else:
        rows = [g.render(between(keys[a], keys[b], shares, way=way)) for a, b in pairs]
        picture = pictures.grid(
            torch.cat(rows), columns=steps, row_labels=[f"{names[a]} to {names[b]}" for a, b in pairs], title=g.name
        )
        pictures.save(picture, out, recipe=about, force=force)
    print(out)


def mix(
    generator: Positional[str],
    /,
    *,
    layers: str,
    seeds: str = "0-3",
    others: str = "4-8",
    labels: str | None = None,
    other_labels: str | None = None,
    out: Path = Path("mix.png"),
    space: str | None = None,
    truncation: float = 1.0,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Give images what some layers read of others: a table of every pair.

    Args:
        generator: a name, a folder, a file, or package.module:function.
        layers: what is taken from the others, in the numbers that `info` prints, such as 0-3.
        seeds: the images that get it, one a row.
        others: the images that it is taken from, one a column.
        labels: indices or names of the rows' classes, one for all or one each.
        other_labels: of the columns' classes; by default the rows' own.
        out: the picture to write.
        space: whose layers they are; by default the widest one that repeats the generator's own choice. In a BigGAN's
            `zy` the last part is the class.
        truncation: of all images.
        machine: how the generator is opened.
        force: replace a file that exists.
    """
    again = command_again("mix", mix, locals())
    check_picture(out, force=force)
    g = machine.open(generator)
    where = g.space(space or _widest(g))
    rows, row_names = _keys(g, parse_seeds(seeds), None, labels, where.name, truncation)
    columns, column_names = _keys(g, parse_seeds(others), None, other_labels or labels, where.name, truncation)
    made = [mixed(concatenate([row] * len(columns)), concatenate(columns), layers) for row in rows]
    blank = torch.ones(1, g.channels, g.resolution, g.resolution)
    tiles = [blank, g.render(concatenate(columns))]
    for row, several in zip(rows, made, strict=True):
        tiles += [g.render(row), g.render(several)]
    taken = ", ".join(part.name for part in where.picked(layers))
    picture = pictures.grid(
        torch.cat(tiles),
        columns=len(columns) + 1,
        row_labels=["", *row_names],
        column_labels=["", *column_names],
        title=f"{g.name}: {taken} from the column" if len(taken) < 60 else f"{g.name}: layers {layers} from the column",
    )
    pictures.save(picture, out, recipe={"version": 1, "command": again}, force=force)
    print(out)


def _widest(g: Generator) -> str:
    """Return the space with a slot a layer that repeats the default one, where there is one."""
    default = g.spaces[g.default_space]
    return next((each.name for each in g.spaces.values() if each.broadcast_of == default.name), default.name)


def _keys(
    g: Generator, numbers: list[int], file: Path | None, labels: str | None, space: str | None, truncation: float
) -> tuple[list[Codes], list[str]]:
    """Return the codes that seeds and labels name, one each, with what to call them."""
    classes = [each.strip() for each in labels.split(",")] if labels else [None]
    if len(numbers) == 1 and len(classes) > 1:
        numbers = numbers * len(classes)
    if len(classes) not in (1, len(numbers)):
        raise UserError(f"{len(classes)} labels came for {len(numbers)} seeds; give one, or one each")
    classes = classes * len(numbers) if len(classes) == 1 else classes
    if file is not None:
        rows = rows_of(file, g, numbers)
        rows = rows if space is None else g.lift(rows, space)
        return [rows[i] for i in range(len(numbers))], [f"row {number}" for number in numbers]
    where = space or g.default_space
    keys = [
        sample_seeds(g, [number], space=where, truncation=truncation, label=label)
        for number, label in zip(numbers, classes, strict=True)
    ]
    if len(set(classes)) == 1:
        return keys, [f"seed {number}" for number in numbers]
    called = [f"class {label}" if label.isdecimal() else label for label in classes if label is not None]
    if len(set(numbers)) == 1:
        return keys, called
    return keys, [f"{label}, seed {number}" for number, label in zip(numbers, called, strict=True)]
