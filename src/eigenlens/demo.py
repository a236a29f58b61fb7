"""The first run: what the bundled generator's axes do, in pictures, films and one page that says how each was made."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import images as pictures
from . import runtime
from .algebra import similarity
from .commands.words import as_table, command_line, figures, sample_seeds, write_film, write_walk
from .directions import Directions, concatenate
from .effect import calibrate, traverse
from .files import refuse_existing, write_text
from .film import sweep, walk
from .generator import Generator, load_generator
from .method import METHODS, find_directions
from .page import code_block, escape, page, table
from .sheet import sheet

GENERATOR = "toonfaces"
N_FILMS = 5
RANGE, STEPS, FRAMES = (-4.0, 4.0), 9, 17
DISCOVERED: Mapping[str, Mapping[str, Any]] = {
    "sefa": {"n_directions": 6},
    "ganspace": {"at": "layer3", "n_samples": 1500, "n_directions": 6},
    "jacobian": {"n_samples": 4, "n_directions": 6},
}
"""Methods that look for directions in the same network, with settings that take seconds."""
FILES = ("index.html", "mixed.safetensors", "methods.png", "samples.png", "axes.png")
"""What is written beside the films and a picture of each method."""
SEED = 27


def film_of(axis: str) -> str:
    """Return the name of the film of an axis."""
    return f"{axis}.gif"


@dataclass(frozen=True)
class Section:
    """One picture on the page, with the command that makes it again."""

    title: str
    file: str
    command: str
    rows: tuple[dict[str, Any], ...] = ()


def demo(*, out: Path = Path("demo"), threads: int | None = None, force: bool = False) -> None:
    """Show what the bundled generator can do: samples, its axes, films, and what other methods find in it.

    Args:
        out: the folder to write.
        threads: of the CPU.
        force: replace what is in the folder.
    """
    for file in (*FILES, *(f"{name}.png" for name in DISCOVERED)):
        refuse_existing(out / file, force=force)
    began = time.monotonic()
    runtime.set_threads(threads)
    runtime.keep_freed_memory()
    generator = load_generator(GENERATOR)
    print(f"{generator.name}: an EigenGAN of {generator.resolution} px; its own axes, the deepest layer first:\n")
    axes = find_directions("eigen", generator)
    for name in axes.names:
        refuse_existing(out / film_of(name), force=force)
    print(as_table(_short(axes)))
    found = {name: _discover(generator, name) for name in DISCOVERED}
    alike = _alike({"eigen": axes, **found})
    print(
        f"\nhow alike are the methods' directions (mean matched |cos|, beside what chance gives)?\n\n{as_table(alike)}"
    )
    sections = [
        _side_by_side(generator, axes, found, out),
        _samples(generator, out),
        _sheet(generator, axes, out),
        *_films(generator, axes, out),
        *(_strips(generator, name, directions, out) for name, directions in found.items()),
    ]
    write_text(out / "index.html", _page(generator, axes, sections, alike), force=True)
    print(f"\n{out / 'index.html'} shows it all ({time.monotonic() - began:.0f} s). Next:")
    print('  eigenlens traverse toonfaces --axis "fair hair" --out strip.png     one axis on eight faces')
    print('  eigenlens edit toonfaces --seed 44 --move "smaller by 3" --before   one face, moved')
    print("  eigenlens discover toonfaces --method sefa --sheet sefa.png         directions of another method")
    print("  eigenlens train --data FOLDER_OF_IMAGES --preset cpu-64             an EigenGAN of your own images")


def _short(axes: Directions) -> list[dict[str, Any]]:
    """Return the rows of the table that a newcomer reads: name, effect, shares."""
    rows = []
    for k, row in enumerate(figures(axes)):
        fields = {name: round(float(each[k]), 3) for name, each in axes.fields.items()}
        rows.append(
            {
                "axis": row["name"],
                "effect": row["effect"],
                "share of effect": fields["effect_share"],
                "share of |L|": fields["importance"],
                "at init": fields["importance_at_init"],
                "rank": int(fields["rank"]),
            }
        )
    return rows


def _discover(generator: Generator, name: str) -> Directions:
    found = METHODS[name](**DISCOVERED[name]).fit(generator, seed=0)
    return calibrate(generator, found, n=32, limit_samples=256, limit_codes=8)


def _alike(sets: Mapping[str, Directions]) -> list[dict[str, Any]]:
    """Return the rows of a matrix: for each pair of methods the mean matched |cos|, and what chance gives."""
    rows = []
    for a, one in sets.items():
        row: dict[str, Any] = {"": a}
        for b, other in sets.items():
            if a == b:
                row[b] = "-"
            else:
                result = similarity(one, other)
                row[b] = f"{result.mean:.2f} ({result.null:.2f})"
        rows.append(row)
    return rows


def _side_by_side(generator: Generator, axes: Directions, found: Mapping[str, Directions], out: Path) -> Section:
    """Show the two strongest axes of each method on one face."""
    two = [each[each.effect.argsort(descending=True)[:2].tolist()] for each in (axes, *found.values())]
    plain = [each.with_figures(fields={}) for each in two]
    mixed = concatenate(plain)
    mixed.save(out / "mixed.safetensors", force=True)
    command = command_line(
        "traverse", GENERATOR, axis="all", directions=out / "mixed.safetensors", seeds=SEED, out=out / "methods.png"
    )
    images, steps = _walked(generator, mixed)
    title = f"{generator.name}, seed {SEED}: the two strongest axes of each method"
    write_walk(
        images, out / "methods.png", labels=list(mixed.names), steps=steps, title=title, command=command, force=True
    )
    return Section("Axes of four methods on one face", "methods.png", command)


def _walked(generator: Generator, directions: Directions) -> tuple[torch.Tensor, list[float]]:
    steps = torch.linspace(*RANGE, STEPS).tolist()
    codes = sample_seeds(generator, [SEED])
    return torch.cat([traverse(generator, codes, directions, name, steps) for name in directions.names]), steps


def _samples(generator: Generator, out: Path) -> Section:
    command = command_line("sample", GENERATOR, n=48, columns=12, truncation=0.7, out=out / "samples.png")
    picture = pictures.grid(generator.render(generator.sample(48, seed=0, truncation=0.7)), columns=12)
    pictures.save(picture, out / "samples.png", recipe={"version": 1, "command": command}, force=True)
    return Section("Samples", "samples.png", command)


def _sheet(generator: Generator, axes: Directions, out: Path) -> Section:
    command = command_line("traverse", GENERATOR, axis="all", seeds=SEED, out=out / "axes.png")
    images, steps = _walked(generator, axes)
    title = f"{generator.name}  seed {SEED}"
    write_walk(images, out / "axes.png", labels=list(axes.names), steps=steps, title=title, command=command, force=True)
    return Section("Every axis of its own, -4σ to +4σ", "axes.png", command)


def _films(generator: Generator, axes: Directions, out: Path) -> list[Section]:
    strongest = [axes.names[k] for k in axes.effect.argsort(descending=True)[:N_FILMS].tolist()]
    codes = sample_seeds(generator, list(range(8)))
    sections = []
    for name in strongest:
        file = film_of(name)
        command = command_line("traverse", GENERATOR, axis=name, frames=FRAMES, out=out / file)
        frames = pictures.frames(walk(generator, codes, axes, sweep(name, *RANGE, FRAMES)))
        write_film(frames, out / file, count=FRAMES, fps=None, pingpong=True, command=command, force=True)
        sections.append(Section(f"Axis {name}", file, command))
    return sections


def _strips(generator: Generator, name: str, found: Directions, out: Path) -> Section:
    file, settings = f"{name}.png", DISCOVERED[name]
    command = command_line("discover", GENERATOR, method=name, **settings, sheet_seeds=SEED, sheet=out / file)
    picture = sheet(generator, found, sample_seeds(generator, [SEED]), title=f"{generator.name}  {name}")
    pictures.save(picture, out / file, recipe={"version": 1, "command": command}, force=True)
    return Section(f"What {name} finds, within its limits", file, command, tuple(figures(found)))


def _page(generator: Generator, axes: Directions, sections: list[Section], alike: list[dict[str, Any]]) -> str:
    shown = "".join(
        f"<figure><figcaption>{escape(each.title)}</figcaption>"
        f'<a href="{each.file}"><img src="{each.file}" alt="{escape(each.title)}"></a>'
        f"{code_block(each.command)}{table(each.rows) if each.rows else ''}</figure>"
        for each in sections
    )
    body = _BODY.format(name=escape(generator.name), axes=table(_short(axes)), alike=table(alike), figures=shown)
    return page(f"{generator.name}: axes that mean something", body)


_BODY = """<h1>{name}</h1>
<p>An EigenGAN learns an orthonormal basis in every layer. Nobody told it what skin tone or a hair style is; the axes
below came out of the training. Each picture stands over the command that makes it again.</p>
{figures}
<h2>The axes in figures</h2>
<p>The effect is the mean change of a pixel (root mean square, in units of [-1, 1]) from -½σ to +½σ. The share of |L|
is what papers print as importance; beside it stands that share before training, from which it hardly moves.</p>
{axes}
<h2>How alike are the methods?</h2>
<p>Mean |cos| of the best matching between two sets of directions, and in brackets what random directions give.</p>
{alike}
"""
