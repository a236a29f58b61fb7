"""`sample`, `traverse` and `edit`: pictures and films."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tyro.conf import Positional

from .. import images as pictures
from .. import runtime
from ..effect import traverse as walk_images
from ..film import Easing, sweep
from ..film import in_turn as shots_in_turn
from ..film import walk as walk_frames
from .words import (
    HERE,
    Machine,
    check_picture,
    command_again,
    find,
    is_film,
    parse_range,
    parse_seeds,
    refuse_beside,
    rows_of,
    sample_seeds,
    write_film,
    write_walk,
)


def sample(
    generator: Positional[str],
    /,
    *,
    out: Path = Path("samples.png"),
    n: int = 16,
    seed: int = 0,
    seeds: str | None = None,
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
        seeds: one image a seed instead, such as 0-63: the faces that --seeds shows elsewhere.
        truncation: 1 is the law of training, less is closer to the mean. EigenGAN: σ of all codes.
        cutoff: truncate only so many slots of w+.
        label: index or name of the class, or `random`.
        noise: stored, random or none.
        columns: tiles in a row.
        machine: how the generator is opened.
        force: replace a file that exists.
    """
    again = command_again("sample", sample, locals())
    check_picture(out, force=force)
    g = machine.open(generator)
    how: dict[str, Any] = {"truncation": truncation, "cutoff": cutoff, "label": label, "noise": noise}
    codes = sample_seeds(g, parse_seeds(seeds), **how) if seeds else g.sample(n, seed=seed, **how)
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
    codes: Path | None = None,
    layers: str | None = None,
    truncation: float | None = None,
    label: str | None = None,
    absolute: bool = False,
    in_turn: bool = False,
    easing: Easing = "smooth",
    once: bool = False,
    frames: int | None = None,
    fps: float | None = None,
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
        steps: pictures in a row; without --frames a film has four times as many.
        seeds: one image each, such as 0-7 or 3,5,8.
        codes: a .safetensors file of codes, such as `project` writes, whose rows --seeds then names.
        layers: layer range to act on, such as 4-7; by default the direction's own.
        truncation: of the images that are moved; 1 by default.
        label: index or name of the class.
        absolute: move to the coordinates of the range instead of by them (as EigenGAN's authors do).
        in_turn: film: one axis after the other, each from 0 to both ends and back, instead of all at once.
        easing: film: smooth slows down at the ends; linear does not.
        once: film: play it forward alone, instead of forward and back.
        frames: film: how many, of each axis with --in-turn.
        fps: film: frames a second; by default it takes two seconds one way.
        foreign: take directions made for another generator.
        machine: how the generator is opened.
        force: replace a file that exists.
    """
    again = command_again("traverse", traverse, locals())
    check_picture(out, films=True, force=force)
    refuse_beside("--codes", codes, {"--truncation": truncation, "--label": label})
    strengths = parse_range(range, steps)
    numbers = parse_seeds(seeds)
    g = machine.open(generator)
    found = find(directions, g, foreign=foreign)
    chosen = (
        list(found.names) if axis == "all" else [found.names[found.index(each.strip())] for each in axis.split(",")]
    )
    if codes is None:
        share = 1.0 if truncation is None else truncation
        moved = sample_seeds(g, numbers, space=found.space, truncation=share, label=label)
    else:
        moved = rows_of(codes, g, numbers)
    if is_film(out):
        ends, count = (strengths[0], strengths[-1]), frames or 4 * steps
        if in_turn:
            courses = [shots_in_turn(chosen, *ends, count, easing)]
        else:
            courses = [sweep(each, *ends, count, easing) for each in chosen]
        films = [walk_frames(g, moved, found, each, layers=layers, absolute=absolute) for each in courses]
        captions = [shot.which for shot in courses[0]] if in_turn and len(chosen) > 1 else []
        shown = pictures.frames((torch.cat(rows) for rows in zip(*films, strict=True)), captions)
        write_film(shown, out, count=count, fps=fps, pingpong=not (once or in_turn), command=again, force=force)
        print(out)
        return
    images = [
        walk_images(g, moved, found, each, strengths, layers=layers, absolute=absolute)
        for each in runtime.progress(chosen, what="axes")
    ]
    seeds_named = [f"{'row' if codes else 'seed'} {number}" for number in numbers]
    if len(chosen) == 1:
        labels, title = seeds_named, f"{g.name}  {chosen[0]}"
    else:
        labels = [f"{each} {seed}" if len(numbers) > 1 else each for each in chosen for seed in seeds_named]
        title = f"{g.name}  {', '.join(seeds_named)}"
    write_walk(torch.cat(images), out, labels=labels, steps=strengths, title=title, command=again, force=force)
    print(out)
