"""`project` and `encoder`: codes of photos, and the network that reads them off at a glance."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from tyro.conf import Positional, UseAppendAction

from .. import __version__, runtime
from .. import images as pictures
from ..codes import save_codes
from ..encoder import Encoder
from ..errors import UserError
from ..files import refuse_existing
from ..photo import Photo, can_find_landmarks, find_landmarks, open_photo, parse_landmarks
from ..project import Progress, Projection, projection_sheet
from ..project import project as project_images
from ..project import tune as tune_weights
from ..training.encoder import EncoderTraining, train_encoder
from .words import HERE, Machine, check_picture, command_again


def project(
    photos: Positional[tuple[Path, ...]],
    /,
    *,
    generator: str,
    out: Path = Path("codes.safetensors"),
    report: Path | None = None,
    space: str | None = None,
    layers: str = "all",
    steps: int = 200,
    seed: int = 0,
    start: Literal["auto", "encoder", "samples", "mean"] = "auto",
    encoder: Path | None = None,
    samples: int | None = None,
    distance: UseAppendAction[tuple[str, ...]] = (),
    prior: float = 1e-3,
    learning_rate: float = 0.1,
    label: str | None = None,
    tune: int = 0,
    tune_noise: bool = False,
    align: Literal["auto", "ffhq", "none"] = "auto",
    landmarks: str | None = None,
    machine: Machine = HERE,
    force: bool = False,
) -> int:
    """Find codes of photos, for `edit --codes`. Ctrl-C ends it early and keeps the best so far.

    Args:
        photos: pictures in any common format; they are not changed.
        generator: a name, a folder, a file, or package.module:function.
        out: the file of codes to write.
        report: a picture of photos, reconstructions and differences; by default beside the codes, as .projection.png.
        space: of the codes; by default w+ where there is one, else that of the prior.
        layers: layer range of what is optimised.
        steps: how often each image is compared with its photo; 0 gives what it starts from.
        seed: fixes the result.
        start: the encoder that lies beside the generator's files, the best of many samples, or the mean; auto is the
            first of these that there is.
        encoder: an encoder's file to start from, instead.
        samples: how many samples the best is chosen from.
        distance: what to minimise beside pixels, such as lpips_vgg; repeat it for more.
        prior: weight that keeps codes where edits work; less comes closer to the photo.
        learning_rate: in standard deviations a step.
        label: index or name of the class.
        tune: steps of pivotal tuning, 0 for none; the weights' change is a file of its own beside the codes, as
            .tuning.safetensors, which opens as a generator; 100 do much.
        tune_noise: with --tune, let the stored noise maps move too.
        align: cut faces as FFHQ does (needs --landmarks, or the extra `faces`); auto does so where it can, for
            generators that want it.
        landmarks: 'x,y x,y x,y x,y x,y' of the left eye, right eye, nose, left and right corner of the mouth as one
            sees them, or a .json file of name -> five points.
        machine: how the generator is opened.
        force: replace files that exist; never a photo.
    """
    again = command_again("project", project, locals())
    report, tuned = report or out.with_suffix(".projection.png"), out.with_suffix(".tuning.safetensors")
    for path in (out, report, *([tuned] if tune else [])):
        if any(path.resolve() == photo.resolve() for photo in photos):
            raise UserError(f"{path} is one of the photos, which are never replaced; choose another name")
        refuse_existing(path, force=force)
    check_picture(report, force=force)
    if not photos:
        raise UserError("no photos came; name one or more")
    g = machine.open(generator)
    cuts = _cut_all(photos, g.resolution, align=align, landmarks=landmarks, wants_faces=_wants_faces(generator, g.name))
    goals = torch.stack([photo.pixels(g.channels) for photo in cuts])
    found = project_images(
        g, goals, space=space, layers=layers, steps=steps, seed=seed,
        start=Encoder.load(encoder, g) if encoder else start, n_samples=samples, distances=distance, prior=prior,
        learning_rate=learning_rate, label=label, callback=_bar(),
    )  # fmt: skip
    after = found
    if tune and not found.is_stopped:
        tuning, after = tune_weights(g, found, steps=tune, noise=tune_noise, distances=distance, seed=seed)
        tuning.save(tuned, force=force)
    rows = _rows(cuts, found, after)
    about = {"photos": rows, "steps": found.steps, "command": again, "version": __version__}
    save_codes(found.codes, out, g, about=about, force=force)
    sheet = projection_sheet(cuts, after, [row["notes"] for row in rows])
    pictures.save(sheet, report, recipe={"version": 1, "command": again}, force=force)
    for row in rows:
        print(_line(row))
    print(out, report, *([tuned] if after is not found else []), sep="\n")
    if found.is_stopped:
        sys.stderr.write(f"eigenlens project: stopped after {found.steps} steps; the best so far is in {out}\n")
        return 130
    return 0


def _rows(cuts: list[Photo], found: Projection, after: Projection) -> list[dict[str, Any]]:
    """Return what is remembered of each photo: figures, those after tuning where there was any, and warnings."""
    rows: list[dict[str, Any]] = []
    for cut, figures, tuned, notes in zip(cuts, found.table(), after.table(), after.notes, strict=True):
        row: dict[str, Any] = {"photo": cut.name, **{name: round(value, 4) for name, value in figures.items()}}
        row["notes"] = [*cut.notes, *notes]
        if after is not found:
            row |= {f"tuned_{name}": round(tuned[name], 4) for name in ("psnr", "ssim")}
        rows.append(row)
    return rows


def _line(row: dict[str, Any]) -> str:
    """Return what the shell says of one photo."""
    shown = f"{row['photo']}: {row['psnr']:.1f} dB, SSIM {row['ssim']:.2f}, {row['explained']:.0%} explained"
    if "tuned_psnr" in row:
        shown += f"; tuned {row['tuned_psnr']:.1f} dB, SSIM {row['tuned_ssim']:.2f}"
    return "; ".join([shown, *row["notes"]])


def _cut_all(
    paths: tuple[Path, ...], resolution: int, *, align: str, landmarks: str | None, wants_faces: bool
) -> list[Photo]:
    """Read all photos; FFHQ's framing where it is asked for, or wanted and possible, a warning where it is not."""
    given = parse_landmarks(landmarks) if landmarks is not None else {}
    if "" in given and len(paths) > 1:
        raise UserError(f"one set of landmarks came for {len(paths)} photos; give a .json file of name -> five points")
    if align == "none" and given:
        raise UserError("landmarks came with --align none; leave one of them out")
    cuts = []
    for path in paths:
        points = given.get(path.name, given.get(""))
        if given and points is None:
            raise UserError(f"the landmarks name no {path.name}; they name {', '.join(sorted(given)[:5])}")
        if points is None and (align == "ffhq" or (align == "auto" and wants_faces and can_find_landmarks())):
            points = find_landmarks(path)
        cuts.append(open_photo(path, resolution, landmarks=points))
    if wants_faces and align == "auto" and not given and not can_find_landmarks():
        sys.stderr.write(
            "eigenlens project: this generator knows faces in FFHQ's framing alone; the centre of the photo is taken. "
            "For a better fit give --landmarks, or pip install 'eigenlens[faces]'\n"
        )
    return cuts


def _wants_faces(*names: str) -> bool:
    """Tell whether a generator's names say that it learnt FFHQ's faces."""
    return any("ffhq" in name.lower() for name in names)


def _bar() -> Callable[[Progress], None] | None:
    """Return what shows progress on stderr, where a person watches it."""
    if runtime.rank() != 0 or not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    bar = tqdm(desc="project", unit="step", leave=False, dynamic_ncols=True)

    def show(progress: Progress) -> None:
        bar.total, bar.n = progress.n_steps, progress.step
        bar.set_postfix_str(f"loss {float(progress.losses.mean()):.4f}")
        if progress.step == progress.n_steps:
            bar.close()

    return show


def encoder(
    action: Positional[Literal["train"]],
    generator: Positional[str],
    /,
    *,
    out: Path = Path("encoder.safetensors"),
    start: Path | None = None,
    resume: Literal["auto", "none"] = "auto",
    settings: EncoderTraining = EncoderTraining(),  # noqa: B008  frozen
    machine: Machine = Machine(precision="auto"),  # noqa: B008  frozen
    force: bool = False,
) -> None:
    """Train an encoder on a generator's own samples: it reads codes off photos, and projections start from it.

    It begins at once and needs no data. Ctrl-C saves what it has learnt; the same command goes on.

    Args:
        action: train.
        generator: a name, a folder, a file, or package.module:function.
        out: the encoder's file; `project` finds it as encoder.safetensors in a generator's folder, or as
            NAME.encoder.safetensors beside NAME.pkl. Its training state lies beside it.
        start: an encoder of a generator of the same shape, such as this one before it was trained further, to begin
            with.
        resume: `auto` goes on where a state lies beside --out.
        settings: of the training.
        machine: how the generator is opened; the precision is that of the encoder's training.
        force: replace an encoder that exists, and begin anew.
    """
    g = replace(machine, precision="fp32").open(generator)
    goes_on, precision = resume == "auto", machine.precision
    print(train_encoder(g, settings, out=out, start=start, resume=goes_on, precision=precision, force=force))
