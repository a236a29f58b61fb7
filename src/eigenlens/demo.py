"""The first run: what the bundled generator's axes do, in pictures, films and one page that says how each was made."""

from __future__ import annotations

import html
import time
from pathlib import Path

import torch

from . import images as pictures
from . import runtime
from .commands.words import as_table, command_line, figures, sample_seeds, write_walk
from .directions import Directions
from .effect import traverse
from .errors import UserError
from .files import write_text
from .generator import Generator, load_generator
from .method import find_directions

GENERATOR = "toonfaces"
N_FILMS = 5
RANGE, STEPS, FRAMES = (-4.0, 4.0), 9, 33


def demo(*, out: Path = Path("demo"), threads: int | None = None, force: bool = False) -> None:
    """Show what the bundled generator can do: a sample grid, its axes, films of the five strongest, and a page.

    Args:
        out: the folder to write.
        threads: of the CPU.
        force: replace what is in the folder.
    """
    if (out / "index.html").exists() and not force:
        raise UserError(f"{out / 'index.html'} exists already; choose another folder with --out, or pass --force")
    began = time.monotonic()
    runtime.set_threads(threads)
    generator = load_generator(GENERATOR)
    print(f"{generator.name}: an EigenGAN of {generator.resolution} px; its own axes, the deepest layer first:\n")
    axes = find_directions("eigen", generator)
    print(as_table(_short(axes)))
    sections = [
        _samples(generator, out, force),
        _sheet(generator, axes, out, force),
        *_films(generator, axes, out, force),
    ]
    write_text(out / "index.html", _page(generator, axes, sections), force=force)
    print(f"\n{out / 'index.html'} shows it all ({time.monotonic() - began:.0f} s). Next:")
    print("  eigenlens traverse toonfaces --axis L3D1 --out strip.png          one axis on eight faces")
    print('  eigenlens edit toonfaces --seed 3 --move "L3D1 by 3" --before     one face, moved')
    print("  eigenlens train --data FOLDER_OF_IMAGES --preset cpu-64           an EigenGAN of your own images")


def _short(axes: Directions) -> list[dict[str, object]]:
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


def _samples(generator: Generator, out: Path, force: bool) -> tuple[str, str, str]:
    command = command_line("sample", GENERATOR, n=48, columns=12, out=out / "samples.png")
    codes = generator.sample(48, seed=0)
    picture = pictures.grid(generator.render(codes), columns=12)
    pictures.save(picture, out / "samples.png", recipe={"version": 1, "command": command}, force=force)
    return ("Samples", "samples.png", command)


def _sheet(generator: Generator, axes: Directions, out: Path, force: bool) -> tuple[str, str, str]:
    command = command_line("traverse", GENERATOR, axis="all", seeds=0, out=out / "axes.png")
    steps = torch.linspace(*RANGE, STEPS).tolist()
    codes = generator.sample(1, seed=0)
    images = torch.cat([traverse(generator, codes, axes, name, steps) for name in axes.names])
    title = f"{generator.name}  seed 0"
    write_walk(
        images, out / "axes.png", labels=list(axes.names), steps=steps, title=title, command=command, force=force
    )
    return ("Every axis, -4σ to +4σ", "axes.png", command)


def _films(generator: Generator, axes: Directions, out: Path, force: bool) -> list[tuple[str, str, str]]:
    strongest = [axes.names[k] for k in axes.effect.argsort(descending=True)[:N_FILMS].tolist()]
    steps = torch.linspace(*RANGE, FRAMES).tolist()
    codes = sample_seeds(generator, list(range(8)))
    sections = []
    for name in strongest:
        file = f"{name}.gif"
        command = command_line("traverse", GENERATOR, axis=name, seeds="0-7", out=out / file)
        images = traverse(generator, codes, axes, name, steps)
        write_walk(images, out / file, labels=[], steps=steps, title="", command=command, force=force)
        sections.append((f"Axis {name}", file, command))
    return sections


def _page(generator: Generator, axes: Directions, sections: list[tuple[str, str, str]]) -> str:
    rows = _short(axes)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row.values()) + "</tr>" for row in rows
    )
    figures = "".join(
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<a href="{file}"><img src="{file}" alt="{html.escape(title)}"></a>'
        f"<code>{html.escape(command)}</code></figure>"
        for title, file, command in sections
    )
    return _PAGE.format(name=html.escape(generator.name), head=head, body=body, figures=figures)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: axes that mean something</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
figure {{ margin: 2rem 0; }}
figcaption {{ font-weight: 600; margin-bottom: .5rem; }}
img {{ max-width: 100%; height: auto; display: block; image-rendering: pixelated; }}
code {{ display: block; margin-top: .5rem; padding: .5rem .75rem; overflow-x: auto; white-space: pre;
  background: color-mix(in srgb, currentColor 8%, transparent); border-radius: .3rem; font-size: .85rem; }}
.films {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 0 1.5rem; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .15rem 1rem .15rem 0; white-space: nowrap; }}
</style></head><body>
<h1>{name}</h1>
<p>An EigenGAN learns an orthonormal basis in every layer. Nobody told it what a beard or a hair style is; the axes
below came out of the training. Each picture stands over the command that makes it again.</p>
{figures}
<h2>The axes in figures</h2>
<p>The effect is the mean change of a pixel (root mean square, in units of [-1, 1]) from -½σ to +½σ. The share of |L|
is what papers print as importance; beside it stands that share before training, from which it hardly moves.</p>
<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
</body></html>
"""
