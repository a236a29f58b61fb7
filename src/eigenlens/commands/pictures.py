"""`sample`, `traverse` and `edit`: pictures and films."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import torch
from tyro.conf import Positional, UseAppendAction

from .. import images as pictures
from .. import runtime
from ..directions import Directions
from ..edit import Edit, Move, Start, move_codes, start_codes
from ..effect import traverse as walk_images
from ..errors import UserError
from ..files import refuse_existing, write_json
from ..method import find_directions
from .words import (
    HERE,
    Machine,
    command_line,
    default_directions,
    find,
    is_film,
    parse_range,
    parse_seeds,
    sample_seeds,
    write_walk,
)


def sample(
    generator: Positional[str],
    /,
    *,
    out: Path = Path("samples.png"),
    n: int = 16,
    seed: int = 0,
    truncation: float = 1.0,
    cutoff: int | None = None,
    label: str | None = None,
    noise: Literal["stored", "random", "none"] = "stored",
    columns: int | None = None,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Draw images in a grid.

    Args:
        generator: a name, a folder, a file, or package.module:function.
        out: the picture to write: .png, .jpg or .webp.
        n: how many.
        seed: image i is fixed by (seed, i).
        truncation: 1 is the law of training, less is closer to the mean. EigenGAN: σ of all codes.
        cutoff: truncate only so many slots of w+.
        label: index or name of the class, or `random`.
        noise: stored, random or none.
        columns: tiles in a row.
        machine: how the generator is opened.
        force: replace a file that exists.
    """
    refuse_existing(out, force=force)
    g = machine.open(generator)
    codes = g.sample(n, seed=seed, truncation=truncation, cutoff=cutoff, label=label, noise=noise)
    again = command_line(
        "sample", generator, n=n, seed=seed, truncation=truncation, cutoff=cutoff, label=label, noise=noise, out=out
    )
    picture = pictures.grid(g.render(codes, what="images"), columns=columns)
    pictures.save(picture, out, recipe={"version": 1, "command": again}, force=force)
    print(out)


def traverse(
    generator: Positional[str],
    /,
    *,
    axis: str,
    out: Path = Path("strip.png"),
    directions: str | None = None,
    range: str = "-4:4",
    steps: int = 9,
    seeds: str = "0-7",
    layers: str | None = None,
    truncation: float = 1.0,
    label: str | None = None,
    absolute: bool = False,
    foreign: bool = False,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Show what axes do to several images: a strip or a sheet, or a film for .gif, .webp and .mp4.

    Args:
        generator: a name, a folder, a file, or package.module:function.
        axis: name or index of the direction; several with commas between, or `all`.
        out: the picture or film to write.
        directions: a file of directions or a method; by default an EigenGAN's own axes, SeFa elsewhere.
        range: LOW:HIGH in the directions' unit, σ.
        steps: pictures in a row; a film has four times as many frames.
        seeds: one image each, such as 0-7 or 3,5,8.
        layers: layer range to act on, such as 4-7; by default the direction's own.
        truncation: of the images that are moved.
        label: index or name of the class.
        absolute: move to the coordinates of the range instead of by them (as EigenGAN's authors do).
        foreign: take directions made for another generator.
        machine: how the generator is opened.
        force: replace a file that exists.
    """
    refuse_existing(out, force=force)
    strengths = parse_range(range, steps * 4 if is_film(out) else steps)
    numbers = parse_seeds(seeds)
    g = machine.open(generator)
    found = find(directions, g, foreign=foreign)
    chosen = (
        list(found.names) if axis == "all" else [found.names[found.index(each.strip())] for each in axis.split(",")]
    )
    codes = sample_seeds(g, numbers, space=found.space, truncation=truncation, label=label)
    images = [
        walk_images(g, codes, found, each, strengths, layers=layers, absolute=absolute)
        for each in runtime.progress(chosen, what="axes")
    ]
    again = command_line(
        "traverse", generator, axis=axis, directions=directions, range=range, steps=steps, seeds=seeds, layers=layers,
        truncation=truncation, label=label, absolute=absolute, foreign=foreign, out=out,
    )  # fmt: skip
    seeds_named = [f"seed {number}" for number in numbers]
    if len(chosen) == 1:
        labels, title = seeds_named, f"{g.name}  {chosen[0]}"
    else:
        labels = [f"{each} {seed}" if len(numbers) > 1 else each for each in chosen for seed in seeds_named]
        title = f"{g.name}  {', '.join(seeds_named)}"
    write_walk(torch.cat(images), out, labels=labels, steps=strengths, title=title, command=again, force=force)
    print(out)


def parse_move(text: str, directions: str) -> Move:
    """Read a move such as `smile by 2 layers 4-7`, `age to 1.5` or `sefa:3 by -1`.

    Raises:
        UserError: where it is none.
    """
    words = shlex.split(text)
    usage = f"{text!r} is no move; write 'NAME by 2', 'NAME to 1.5' or 'NAME by 2 layers 4-7'"
    if len(words) not in (3, 5) or words[1] not in ("by", "to") or (len(words) == 5 and words[3] != "layers"):
        raise UserError(usage)
    try:
        strength = float(words[2])
    except ValueError as error:
        raise UserError(usage) from error
    source, colon, name = words[0].rpartition(":")
    return Move(
        source if colon else directions,
        name,
        by=strength if words[1] == "by" else None,
        to=strength if words[1] == "to" else None,
        layers=words[4] if len(words) == 5 else None,
    )


def edit(
    generator: Positional[str | None] = None,
    /,
    *,
    out: Path = Path("edit.png"),
    edit: Path | None = None,
    move: UseAppendAction[tuple[str, ...]] = (),
    directions: str | None = None,
    codes: Path | None = None,
    seed: int = 0,
    index: int = 0,
    truncation: float = 1.0,
    label: str | None = None,
    before: bool = False,
    save_edit: Path | None = None,
    foreign: bool = False,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Move one image along directions.

    Args:
        generator: a name, a folder, a file, or package.module:function; not needed with --edit.
        out: the picture to write.
        edit: an Edit as JSON, instead of the flags below.
        move: 'NAME by 2', 'NAME to 1.5', 'NAME by 2 layers 4-7'; repeat it for more. FILE_OR_METHOD:NAME names a
            direction of another set.
        directions: a file of directions or a method; by default an EigenGAN's own axes, SeFa elsewhere.
        codes: a .safetensors file of codes to start from, instead of a seed.
        seed: of the image to move.
        index: number of the image within its seed, or row of the file of codes.
        truncation: of the image to move.
        label: index or name of the class.
        before: show the image as it was beside it.
        save_edit: write the Edit as JSON, for --edit.
        foreign: take directions made for another generator.
        machine: how the generator is opened.
        force: replace files that exist.
    """
    for path in filter(None, (out, save_edit)):
        refuse_existing(path, force=force)
    if edit is not None and (move or generator):
        raise UserError("--edit says all itself; leave the generator and --move out")
    if edit is None and (generator is None or not move):
        raise UserError("name a generator and at least one --move 'NAME by 2', or give --edit FILE")
    if edit is not None:
        wanted = Edit.load(edit)
        g = machine.open(wanted.generator)
    else:
        assert generator is not None
        g = machine.open(generator)
        source = directions or default_directions(g)
        start = Start(seed=seed, index=index, truncation=truncation, label=label, file=str(codes) if codes else None)
        wanted = Edit(generator, start, tuple(parse_move(each, source) for each in move))
    start_code = start_codes(g, wanted.codes)
    cache: dict[str, Directions] = {}
    moved = move_codes(
        g,
        start_code,
        wanted.moves,
        lambda name: cache.setdefault(name, find_directions(name, g, foreign=foreign, measured=False)),
    )
    after = g.render(moved)
    shown = torch.cat([g.render(start_code), after]) if before else after
    labels = ("before", "after") if before else ()
    picture = pictures.grid(shown, columns=len(shown), column_labels=labels) if before else pictures.to_pil(after[0])
    recipe = {"version": 1, "edit": wanted.to_json(), "command": _edit_again(wanted, out)}
    pictures.save(picture, out, recipe=recipe, force=force)
    if save_edit is not None:
        write_json(save_edit, wanted.to_json(), force=force)
    print(out)


def _edit_again(wanted: Edit, out: Path) -> str:
    start = wanted.codes
    words = command_line(
        "edit", wanted.generator, seed=start.seed or None, index=start.index or None,
        truncation=None if start.truncation == 1.0 else start.truncation, label=start.label, codes=start.file,
    )  # fmt: skip
    for move in wanted.moves:
        how = f"by {move.by:g}" if move.by is not None else f"to {move.to:g}"
        layers = f" layers {move.layers}" if move.layers else ""
        words += " --move " + shlex.quote(f"{move.directions}:{move.name} {how}{layers}")
    return f"{words} --out {shlex.quote(str(out))}"
