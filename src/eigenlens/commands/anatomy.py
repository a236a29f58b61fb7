"""`anatomy` and `graft`: what the layers of an EigenGAN hold, and moving them into another one."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from .. import graft as grafting
from ..anatomy import compare_runs, examine
from ..anatomy_page import warnings_of, write_page
from ..errors import UserError
from ..files import refuse_existing
from ..generator import CONFIG
from ..training.run import STATE
from .words import HERE, Machine, as_table, command_again


def anatomy(
    generator: Positional[str],
    runs: Positional[tuple[str, ...]] = (),
    /,
    *,
    out: Path,
    reader: str | None = None,
    seed: int = 0,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Write a page about the axes of an EigenGAN: what each does, how much, where it sits, whether it is found again.

    Args:
        generator: an EigenGAN: a name, a folder or a file.
        runs: further EigenGANs, say of other seeds: are the same axes found there?
        out: the page to write, one .html that needs no other file.
        reader: of attributes; by default the labels of toon faces where they fit, else pixels.
        seed: of all samples.
        machine: how the generators are opened.
        force: replace a page that exists.
    """
    command = command_again("anatomy", anatomy, locals())
    refuse_existing(out, force=force)
    examined = [examine(machine.open(each), reader=reader, seed=seed) for each in (generator, *runs)]
    stability = compare_runs(examined, seed=seed) if runs else None
    print(write_page(examined, out, command=command, stability=stability, force=force))
    for each in warnings_of(examined[0]):
        print(f"WARNING: {each}")


def graft(
    host: Positional[str],
    donor: Positional[str],
    /,
    *,
    out: Path,
    layers: str = "all",
    with_injection: bool = False,
    tune: float = 0.0,
    data: Path | None = None,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Set the axes of some layers of one EigenGAN into another of the same shape: its U, L and μ.

    Args:
        host: a generator that keeps all else.
        donor: a generator that gives its axes.
        out: the folder to write, an ordinary generator.
        layers: layer range, such as 3-4; 1 is the deepest.
        with_injection: take the convolutions by which z enters the features along.
        tune: thousands of images to train the result on for, in --out/tuning; the host is then the `last` folder of
            a run, whose discriminator goes on.
        data: the images that the host learnt from, for --tune.
        machine: how the generators are opened.
        force: replace what is in the folder.
    """
    refuse_existing(out / CONFIG, force=force)
    if tune and data is None:
        raise UserError("--tune needs the images that the host learnt from; give --data")
    a, b = machine.open(host), machine.open(donor)
    made = grafting.graft(a, b, layers=layers, with_injection=with_injection)
    if tune and data is not None:
        name = made.name
        made = grafting.tune(made, Path(host) / STATE, data=data, kimg=tune, run=out / "tuning")
        made.name = name
    about = grafting.provenance(a, b, layers=layers, with_injection=with_injection, tuned=tune)
    print(made.save(out, force=force, about=about))
    kept = grafting.compare_graft(a, b, made, layers=layers)
    rows = [
        {
            "axis": name,
            "|cos| of its change with the donor's": f"{cosine:.2f}",
            "length over the donor's": f"{size:.2f}",
        }
        for name, cosine, size in zip(kept.names, kept.cosine.tolist(), kept.effect.tolist(), strict=True)
    ]
    print(as_table(rows))
    print(f"images of the same codes are {kept.distance:.2f} of the distance of two samples from the host's")
