"""`export` and `hub`: a generator as ONNX, as a page that needs no server, and on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional, UseAppendAction

from ..encoder import Encoder, find_encoder
from ..explorer import export_explorer, make_explorer, page_path
from ..export import export_onnx
from ..hub import pull, push
from .words import HERE, Machine, default_directions, find


def export(
    what: Positional[Literal["onnx", "explorer"]],
    generator: Positional[str],
    /,
    *,
    out: Path | None = None,
    space: str | None = None,
    half: bool = False,
    directions: str | None = None,
    which: str | None = None,
    count: int = 64,
    seed: int = 0,
    truncation: float = 0.7,
    encoder: Path | None = None,
    title: str = "",
    label: str | None = None,
    foreign: bool = False,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Write a generator for others: as `onnx`, checked against torch, or as an `explorer`, a page that runs it.

    Args:
        what: onnx or explorer.
        generator: a name, a folder, a file, or package.module:function.
        out: the file to write; by default the generator's name.
        space: onnx: of the latents that the network takes; by default the one in which codes are drawn.
        half: onnx: store weights in float16; a page always does.
        directions: explorer: a file of directions or a method; by default an EigenGAN's own axes, SeFa elsewhere.
        which: explorer: names or indices of directions with commas between; all by default.
        count: explorer: codes to start from.
        seed: explorer: of those codes.
        truncation: explorer: of those codes.
        encoder: explorer: a file that reads the codes of photos dropped into the page; by default the one that lies
            beside the generator, where there is one.
        title: explorer: above the page.
        label: index or name of a class to build in.
        foreign: take directions made for another generator.
        machine: how the generator is opened.
        force: replace a file that exists.
    """
    g = machine.open(generator)
    if what == "onnx":
        path = out or Path(f"{g.name}.onnx")
        made = export_onnx(g, path, space=space, label=label, half=half, force=force)
        print(made.path)
        for name, shape in made.inputs.items():
            print(f"  {name} {list(shape)}")
        print(f"  images {list(made.output)}")
        print(f"{made.bytes / 1e6:.1f} MB; differs from torch by at most {made.error:.1e} standard deviations")
        return
    path = page_path(out or Path(f"{g.name}.html"), force=force)
    found = find(directions, g, foreign=foreign)
    reader = encoder or find_encoder(g)
    if which is not None:
        found = found[[each.strip() for each in which.split(",")]]
    page = make_explorer(
        g, found, source=directions or default_directions(g), address=generator, count=count, seed=seed,
        truncation=truncation, label=label, encoder=Encoder.load(reader, g) if reader else None, title=title,
    )  # fmt: skip
    print(export_explorer(page, path, force=force))
    photos = "takes photos" if reader else "takes no photos: no encoder"
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    print(f"{size}, {len(found)} sliders, {count} codes to start from, {photos}; open it in a browser")


def hub(
    action: Positional[Literal["push", "pull"]],
    source: Positional[str],
    target: Positional[str],
    /,
    *,
    directions: UseAppendAction[tuple[Path, ...]] = (),
    license: str = "",
    half: bool = False,
    private: bool = False,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Send a generator to the Hugging Face Hub or to a folder, or fetch one from there.

    Args:
        action: push or pull.
        source: push: a generator; pull: hf://user/repo or a folder.
        target: push: hf://user/repo or a folder; pull: the folder to write.
        directions: push: a file of directions that travels along; repeat it for more.
        license: push: of the weights, as the Hub abbreviates it, such as mit.
        half: push: store weights in float16.
        private: push: make the repository private.
        machine: how the generator is opened.
        force: replace files that exist.
    """
    if action == "pull":
        print(f"{pull(source, target, force=force)!r}\n{target}")
        return
    found = push(
        machine.open(source), target, directions=directions, license=license, half=half, private=private, force=force
    )
    print(found)
