"""`saliency`: masks of the object in pictures, learnt from a direction that changes the background."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from tyro.conf import Positional

from .. import images as pictures
from .. import runtime
from ..errors import UserError
from ..files import refuse_existing
from ..saliency import (
    MaskRule,
    Segmenter,
    background_changes,
    choose_background,
    mask_sheet,
    pure_background,
    sample_masks,
    score_masks,
)
from ..training.segmenter import SegmenterTraining, train_segmenter
from .words import Machine, as_table, command_again, find

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MASK = ".mask.png"
"""What follows the stem of a picture in the name of its mask."""


def train(
    action: Positional[Literal["train"]],
    generator: Positional[str],
    /,
    *,
    out: Path = Path("segmenter.safetensors"),
    directions: str | None = None,
    background: str | None = None,
    as_is: bool = False,
    sheet: Path | None = None,
    resume: Literal["auto", "none"] = "auto",
    rule: MaskRule = MaskRule(),  # noqa: B008  frozen
    settings: SegmenterTraining = SegmenterTraining(),  # noqa: B008  frozen
    machine: Machine = Machine(precision="auto"),  # noqa: B008  frozen
    foreign: bool = False,
    force: bool = False,
) -> None:
    """Learn masks from a generator: what its background directions leave alone is the object.

    No image and no mask of yours is needed. Ctrl-C saves what has been learnt; the same command goes on.

    Args:
        action: train.
        generator: a name, a folder, a file, or package.module:function.
        out: the segmenter's file. Its training state lies beside it.
        directions: a file of directions or the name of a method; by default the generator's own axes, else SeFa.
        background: names or indices of those that change the background, with commas between, which are taken as they
            are; by default those that change the border of images most and the centre least, which are told.
        as_is: take the directions that were chosen as they are. By default they are combined with the others, so that
            the object changes less.
        sheet: a picture of some samples with their masks, to look at before the training.
        resume: `auto` goes on where a state lies beside --out.
        rule: how masks follow from directions.
        settings: of the training.
        machine: how the generator is opened; the precision is that of the network's training.
        foreign: take directions made for another generator.
        force: replace files that exist, and begin anew.
    """
    again = command_again("saliency", train, locals())
    goes_on = resume == "auto" and not force and out.with_suffix(".state.pt").is_file()
    if not goes_on:
        refuse_existing(out, force=force)
    if sheet is not None:
        refuse_existing(sheet, force=force)
    g = dataclasses.replace(machine, precision="fp32").open(generator)
    known = find(directions, g, foreign=foreign)
    if background is not None:
        names = [word.strip() for word in background.split(",")]
        chosen = known[[known.index(int(name) if name.isdecimal() else name) for name in names]]
    else:
        changes = background_changes(g, known)
        rows = choose_background(changes)
        chosen, told = known[rows], changes[rows]
        if known.is_straight and not as_is:
            chosen = pure_background(g, known, rows, rule, seed=settings.seed)
            told = torch.cat([told, background_changes(g, chosen)])
        names = [*(known.names[k] for k in rows), *chosen.names][: len(told)]
        table = [
            {"direction": name, "border": f"{border:.3f}", "centre": f"{centre:.3f}"}
            for name, (border, centre) in zip(names, told.tolist(), strict=True)
        ]
        print(as_table(table))
    if sheet is not None:
        shown = sample_masks(g, chosen, rule, 12, seed=settings.seed)
        picture = mask_sheet(list(shown.images[:, 0]), list(shown.masks.numpy()), title=f"{g.name}: samples and masks")
        pictures.save(picture, sheet, recipe={"version": 1, "command": again}, force=force)
        print(sheet)
    print(
        train_segmenter(
            g, chosen, settings, out=out, rule=rule, resume=resume == "auto", precision=machine.precision, force=force
        )
    )


def predict(
    action: Positional[Literal["predict"]],
    segmenter: Positional[Path],
    photos: Positional[tuple[Path, ...]],
    /,
    *,
    out: Path | None = None,
    soft: bool = False,
    threads: int | None = None,
    force: bool = False,
) -> None:
    """Write the mask of each picture, at its own size, as NAME.mask.png beside it: white is the object.

    Args:
        action: predict.
        segmenter: the file that `train` wrote.
        photos: pictures, or folders of them; they are not changed.
        out: the folder for the masks; by default each lies beside its picture.
        soft: write probabilities as grey instead of black and white.
        threads: of the CPU.
        force: replace masks that exist.
    """
    again = command_again("saliency", predict, locals())
    runtime.set_threads(threads)
    network = Segmenter.load(segmenter)
    paths = _pictures(photos)
    places = [(out or path.parent) / f"{path.stem}{MASK}" for path in paths]
    twice = {place for place in places if places.count(place) > 1}
    if twice:
        raise UserError(f"two pictures would have the mask {sorted(twice)[0]}; rename one, or give them one at a time")
    for place in places:
        refuse_existing(place, force=force)
    for path, place in runtime.progress(list(zip(paths, places, strict=True)), what="masks", unit="picture"):
        likely = network(pictures.open_image(path))
        levels = likely if soft else likely >= 0.5
        mask = Image.fromarray((levels * 255.0).round().astype(np.uint8))
        pictures.save(mask, place, recipe={"version": 1, "command": again}, force=force)
        print(place)


def score(
    action: Positional[Literal["score"]],
    masks: Positional[Path],
    truth: Positional[Path],
    /,
    *,
    segmenter: Path | None = None,
    out: Path | None = None,
    force: bool = False,
) -> None:
    """Compare masks with true ones: max-Fβ, IoU, accuracy and mean absolute error, each a mean over images.

    Args:
        action: score.
        masks: a folder of masks (NAME.mask.png, white or bright is the object), or with --segmenter one of pictures.
        truth: a folder of true masks: NAME.png, or NAME.mask.png.
        segmenter: predict the masks of the pictures with it, unrounded, instead of reading them.
        out: a .json file for the figures.
        force: replace a file that exists.
    """
    from ..files import write_json

    if out is not None:
        refuse_existing(out, force=force)
    network = Segmenter.load(segmenter) if segmenter is not None else None
    true = _by_stem(_pictures((truth,), masks=True))
    found = _by_stem(_pictures((masks,), masks=network is None))
    pairs = [(path, true[stem]) for stem, path in found.items() if stem in true]
    if not pairs:
        raise UserError(f"{masks} and {truth} share no name; a mask belongs to the true mask of the same name")
    if len(pairs) < len(true):
        sys.stderr.write(f"eigenlens saliency score: {len(true) - len(pairs)} of {len(true)} true masks have no mate\n")
    likely, wanted = [], []
    for path, mate in runtime.progress(pairs, what="score", unit="mask"):
        picture = pictures.open_image(path)
        likely.append(network(picture) if network else np.asarray(picture.convert("L"), np.float32) / 255)
        wanted.append(np.asarray(pictures.open_image(mate).convert("L")) >= 128)
    figures = dataclasses.asdict(score_masks(likely, wanted))
    print(as_table([{name: value if name == "n" else f"{value:.4f}" for name, value in figures.items()}]))
    if out is not None:
        print(write_json(out, figures, force=force))


def _pictures(sources: tuple[Path, ...], *, masks: bool = False) -> list[Path]:
    """Return the pictures that are named or lie in folders that are; masks in folders are no pictures to mask."""
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
            found += [path for path in inside if masks or not path.name.endswith(MASK)]
        else:
            found.append(source)
    if not found:
        raise UserError(f"no pictures came in {', '.join(map(str, sources)) or 'nothing'}; name files or folders")
    return found


def _by_stem(paths: list[Path]) -> dict[str, Path]:
    """Return masks by the name of what they belong to; the picture that lies beside its NAME.mask.png is none."""
    found: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: not path.name.endswith(MASK)):
        other = found.setdefault(_stem(path), path)
        if other != path and not other.name.endswith(MASK):
            raise UserError(f"{other} and {path} have one name; keep the mask of the two there")
    return found


def _stem(path: Path) -> str:
    return path.name.removesuffix(MASK) if path.name.endswith(MASK) else path.stem


def saliency(action: Positional[Literal["train", "predict", "score"]], /) -> None:
    """Masks of the object in pictures, learnt from a generator alone; ACTION --help explains each.

    Args:
        action: train a segmenter, predict masks with it, or score masks against true ones.
    """


_ACTIONS = {"train": train, "predict": predict, "score": score}


def _with_action(words: list[str]) -> Any:
    return _ACTIONS.get(words[0] if words else "", saliency)


saliency.specialise = _with_action  # type: ignore[attr-defined]
