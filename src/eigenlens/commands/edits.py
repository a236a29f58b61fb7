"""`edit`: one image moved along directions, within bounds."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch
from tyro.conf import Positional, UseAppendAction

from .. import images as pictures
from ..codes import save_codes as write_codes
from ..directions import Directions
from ..edit import Box, Edit, Edited, Goal, Move, Start, edit_codes, start_codes
from ..errors import UserError
from ..files import refuse_existing, write_json
from ..method import default_directions, find_directions
from ..recipe import shell
from .words import HERE, Machine, check_picture, refuse_beside, said


def parse_move(text: str, directions: str) -> Move:
    """Read a move such as `smile by 2 layers 4-7`, `fair hair to 1.5` or `sefa:3 by -1`.

    Raises:
        UserError: where it is none.
    """
    usage = f"{text!r} is no move; write 'NAME by 2', 'NAME to 1.5' or 'NAME by 2 layers 4-7'"
    try:
        words = shlex.split(text)
    except ValueError as error:  # a quotation without an end
        raise UserError(f"{usage}; a quotation mark of a name wants a backslash before it") from error
    layers = words.pop() if words[-2:-1] == ["layers"] else None
    words = words[:-1] if layers else words
    if len(words) < 3 or words[-2] not in ("by", "to"):
        raise UserError(usage)
    *named, way, strength = words
    try:
        length = float(strength)
    except ValueError as error:
        raise UserError(usage) from error
    source, colon, name = " ".join(named).rpartition(":")
    return Move(
        source if colon else directions,
        name,
        by=length if way == "by" else None,
        to=length if way == "to" else None,
        layers=layers,
    )


def parse_region(text: str) -> Box:
    """Read a region such as `0.2,0.5,0.8,1`: left, top, right, bottom.

    Raises:
        UserError: where it is none.
    """
    try:
        left, top, right, bottom = (float(each) for each in text.split(","))
    except ValueError as error:
        raise UserError(
            f"{text!r} is no region; write left,top,right,bottom as shares of the image, such as 0.2,0.5,0.8,1"
        ) from error
    return left, top, right, bottom


def edit(
    generator: Positional[str | None] = None,
    /,
    *,
    out: Path = Path("edit.png"),
    edit: Path | None = None,
    move: UseAppendAction[tuple[str, ...]] = (),
    until: str | None = None,
    keep: str | None = None,
    region: str | None = None,
    directions: str | None = None,
    codes: Path | None = None,
    seed: int | None = None,
    index: int | None = None,
    truncation: float | None = None,
    label: str | None = None,
    before: bool = False,
    difference: bool = False,
    save_edit: Path | None = None,
    save_codes: Path | None = None,
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
        until: go no further than until a reader says so, such as 'pixels:brightness>0.6'; where it says so already,
            nothing is done.
        keep: attributes that shall stay as they are, with commas between, such as pixels:contrast,pixels:warmth.
        region: left,top,right,bottom as shares of the image; what lies outside keeps every pixel.
        directions: a file of directions or a method; by default an EigenGAN's own axes, SeFa elsewhere.
        codes: a .safetensors file of codes to start from, instead of a seed.
        seed: of the image to move; 0 by default.
        index: number of the image within its seed, or row of the file of codes; 0 by default.
        truncation: of the image to move; 1 by default.
        label: index or name of the class.
        before: show the image as it was beside it.
        difference: show a map of what has changed beside it.
        save_edit: write the Edit as JSON, for --edit.
        save_codes: write the code that it led to, for --codes.
        foreign: take directions made for another generator.
        machine: how the generator is opened.
        force: replace files that exist.
    """
    check_picture(out, force=force)
    for path in filter(None, (save_edit, save_codes)):
        refuse_existing(path, force=force)
    of_codes = {"--seed": seed, "--truncation": truncation, "--label": label}
    of_edit = {
        "the generator": generator, "--move": move or None, "--until": until, "--keep": keep, "--region": region,
        "--directions": directions, "--codes": codes, "--index": index, **of_codes,
    }  # fmt: skip
    refuse_beside("--edit", edit, of_edit)
    refuse_beside("--codes", codes, of_codes)
    if edit is None and (generator is None or not move):
        raise UserError("name a generator and at least one --move 'NAME by 2', or give --edit FILE")
    if save_codes is not None and region is not None:
        raise UserError("an image that is changed in a region has no code of its own; leave --save-codes out")
    if edit is not None:
        wanted = Edit.load(edit)
        g = machine.open(wanted.generator)
    else:
        assert generator is not None
        g = machine.open(generator)
        source = directions or default_directions(g)
        wanted = Edit(
            generator,
            Start(
                seed=seed or 0,
                index=index or 0,
                truncation=1.0 if truncation is None else truncation,
                label=label,
                file=str(codes) if codes else None,
            ),
            tuple(parse_move(each, source) for each in move),
            until=Goal.parse(until) if until else None,
            keep=tuple(each.strip() for each in keep.split(",")) if keep else (),
            region=parse_region(region) if region else None,
        )
    cache: dict[str, Directions] = {}
    done = edit_codes(
        g,
        start_codes(g, wanted.codes),
        wanted,
        lambda name: cache.setdefault(name, find_directions(name, g, foreign=foreign, measured=False)),
    )
    shown = ["before"] * before + ["after"] + ["difference"] * difference
    first, second = done.images(g)
    tiles = {"before": first, "after": second, "difference": pictures.difference(first, second)}
    picture = pictures.to_pil(second)
    if len(shown) > 1:
        side_by_side = torch.broadcast_tensors(*(tiles[each] for each in shown))  # a map of grey images has colours
        picture = pictures.grid(torch.stack(side_by_side), columns=len(shown), column_labels=shown, min_tile=192)
    flags = {"before": before, "difference": difference, "foreign": foreign}
    words = [f"--{flag}" for flag, given in flags.items() if given] + said(machine, HERE)
    command = " ".join([shell(wanted, str(out)), *map(shlex.quote, words)])
    recipe = {"version": 1, "edit": wanted.to_json(), "command": command}
    pictures.save(picture, out, recipe=recipe, force=force)
    if save_edit is not None:
        write_json(save_edit, wanted.to_json(), force=force)
    if save_codes is not None:
        write_codes(done.after, save_codes, g, force=force)
    print(out)
    for line in outcome(wanted, done):
        print(line)


def outcome(wanted: Edit, done: Edited) -> list[str]:
    """Return what there is to say of an Edit's bounds, a line each."""
    lines = []
    if wanted.until is not None:
        says = f"{wanted.until.attribute} is {done.score:.3g}"
        if done.share == 0:
            lines.append(f"{wanted.until}: so already ({says}); nothing was done")
        elif done.is_met:
            lines.append(f"{wanted.until}: met after {done.share:.1%} of the moves ({says})")
        else:
            lines.append(f"{wanted.until}: not met; after all moves {says}: move further")
    lines += [f"kept {name}: {was:.3g} -> {now:.3g} (by {done.how})" for name, (was, now) in done.kept.items()]
    return lines
