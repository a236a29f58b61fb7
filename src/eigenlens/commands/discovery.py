"""`discover` and what one does with files of directions: change, compare, take apart, pool, import and export."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional, UseAppendAction

from .. import algebra, runtime
from .. import images as pictures
from ..directions import Directions, concatenate, shared_space
from ..effect import calibrate
from ..errors import UserError, unknown_name
from ..exchange import export_directions
from ..files import refuse_existing
from ..generator import Generator
from ..method import METHODS, find_directions
from ..presets import load_presets, named_directions
from ..sheet import sheet as draw_sheet
from .words import (
    HERE,
    ExactMachine,
    Machine,
    as_table,
    command_again,
    figures,
    option,
    parse_seeds,
    sample_seeds,
    specialised,
)


def discover(
    generator: Positional[str],
    /,
    *,
    method: str = "sefa",
    preset: str | None = None,
    out: Path | None = None,
    sheet: Path | None = None,
    seed: int = 0,
    sheet_seeds: str = "0",
    rows: int = 12,
    measure: Literal["all", "effect", "none"] = "all",
    sheet_label: str | None = None,
    run: Path | None = None,
    machine: Machine = HERE,
    force: bool = False,
    settings: Any = None,
) -> None:
    """Find directions in a generator; print a table of them, save them, draw strips that span their limits.

    Args:
        generator: a name, a folder, a file, or package.module:function.
        method: how; `eigenlens list` names the methods. The flags below are the method's own.
        preset: settings of the method that belong together, such as `cpu`; its flags change single ones.
        out: a .safetensors file for the directions.
        sheet: a picture of their strips.
        seed: fixes what the method draws.
        sheet_seeds: the images on the sheet, such as 0-2.
        rows: how many directions the sheet shows, from the first.
        measure: `all` measures effect and limits of each, `effect` leaves out the limits, the dearer part.
        sheet_label: class of the images on the sheet.
        run: a folder for the progress of methods that take long; the same command goes on there after Ctrl-C.
        machine: how the generator is opened.
        force: replace files that exist.
        settings: of the method.
    """
    usual = _preset(type(settings), preset or "")
    again = command_again("discover", discover, locals() | {"out": None, "run": None}, settings=usual)
    for path in filter(None, (out, sheet)):
        refuse_existing(path, force=force)
    g = machine.open(generator)
    found = settings.fit(g, seed=seed, run=run)
    if runtime.rank() > 0:  # under torchrun the first process goes on alone
        return
    if measure != "none":
        found = calibrate(g, found, limits=measure == "all")
    print(as_table(figures(found)))
    if out is not None:
        print(found.save(out, force=force))
    if sheet is not None:
        codes = sample_seeds(g, parse_seeds(sheet_seeds), label=sheet_label or ("0" if g.label_names else None))
        picture = draw_sheet(g, found[:rows], codes, title=f"{g.name}  {method}")
        pictures.save(picture, sheet, recipe={"version": 1, "command": again}, force=force)
        print(sheet)


def _with_method(words: list[str]) -> Any:
    kind = METHODS[option(words, "--method", "sefa")]
    changed = {"settings": (kind, _preset(kind, option(words, "--preset", "")))}
    if any(each.name == "precision" for each in dataclasses.fields(kind)):
        changed["machine"] = (ExactMachine, ExactMachine())
    return specialised(discover, **changed)


def _preset(kind: Any, name: str) -> Any:
    """Return a method with the settings of a preset, or its usual ones where none is named."""
    presets = getattr(kind, "presets", {})
    if name and name not in presets:
        raise unknown_name(f"preset of {kind.name}", name, presets)
    return kind(**presets.get(name, {}))


discover.specialise = _with_method  # type: ignore[attr-defined]


def directions(
    sources: Positional[tuple[str, ...]],
    /,
    *,
    generator: str,
    out: Path | None = None,
    keep: str | None = None,
    rename: UseAppendAction[tuple[str, ...]] = (),
    flip: str | None = None,
    orthogonalise: bool = False,
    against: str | None = None,
    compose: UseAppendAction[tuple[str, ...]] = (),
    format: Literal["eigenlens", "ganspace", "e4e", "interfacegan", "rosinality", "npy"] = "eigenlens",
    measure: Literal["all", "effect", "none"] = "none",
    foreign: bool = False,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Join, cut, rename, turn round, orthogonalise, combine and convert directions, in that order, into a new file.

    Args:
        sources: files of directions, ours or another tool's (.safetensors, .pt, .npz, .npy), or names of methods.
        generator: the generator that they belong to.
        out: the file to write; without it the table is printed alone.
        keep: names, indices and ranges to keep, such as 0-4,smile.
        rename: OLD=NEW; repeat it for more.
        flip: names or indices to turn round, with commas between.
        orthogonalise: take from each what it shares with those before it, or with those of --against.
        against: directions to take out.
        compose: NEW=0.9*smile+0.4*age, in σ of each; repeat it for more. The result holds the composed ones alone.
        format: of the file.
        measure: measure effect, and limits with `all`.
        foreign: take directions made for another generator.
        machine: how the generator is opened.
        force: replace a file that exists.
    """
    if out is not None:
        refuse_existing(out, force=force)
    g = machine.open(generator)
    found = concatenate([find_directions(source, g, foreign=foreign) for source in sources])
    if keep is not None:
        found = found[_chosen(found, keep)]
    if rename:
        found = found.renamed(renamings(found, rename))
    if flip is not None:
        found = found.flipped([each.strip() for each in flip.split(",")])
    if orthogonalise or against:
        others = find_directions(against, g, foreign=foreign) if against else None
        found = algebra.orthogonalise(found, against=others)
    if compose:
        found = concatenate([_composed(found, each, g) for each in compose])
    if measure != "none":
        found = calibrate(g, found, limits=measure == "all")
    print(as_table(figures(found)))
    if out is None:
        return
    if format == "eigenlens":
        print(found.save(out, force=force))
    else:
        print(export_directions(found, out, format, generator=g, force=force))


def renamings(found: Directions, texts: Iterable[str]) -> dict[str, str]:
    """Read `OLD=NEW` several times; a name such as `hair_style=bun` holds the sign itself.

    Raises:
        UserError: where one is none.
    """
    read = {}
    for text in texts:
        ends = [place for place, sign in enumerate(text) if sign == "="]
        known = next((end for end in reversed(ends) if text[:end].strip() in found.names), None)
        old, new = pair(text) if known is None or not text[known + 1 :] else (text[:known], text[known + 1 :])
        read[old.strip()] = new.strip()
    return read


def pair(text: str) -> tuple[str, str]:
    """Read `OLD=NEW`.

    Raises:
        UserError: where it is none.
    """
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise UserError(f"{text!r} is no pair; write OLD=NEW")
    return left.strip(), right.strip()


def _chosen(found: Directions, text: str) -> list[int]:
    """Return the rows that `0-4,smile` means."""
    rows: list[int] = []
    for piece in (each.strip() for each in text.split(",")):
        low, dash, high = piece.partition("-")
        if piece not in found.names and dash and low.isdecimal() and high.isdecimal():
            rows += range(found.index(int(low)), found.index(int(high)) + 1)
        else:
            rows.append(found.index(piece))
    return rows


_TERMS = re.compile(r"(?<![\d.]e)(?=[+-]\s*[\d.]+(?:e[+-]?\d+)?\s*\*)")
"""Where a term begins: at a sign before a number times something, since names such as `sefa-0` have signs, too."""


def _composed(found: Directions, text: str, generator: Generator) -> Directions:
    """Return the direction that `NEW=0.9*smile+0.4*age` means, in σ."""
    name, recipe = pair(text)
    weights: dict[int | str, float] = {}
    for term in filter(str.strip, _TERMS.split(recipe)):
        weight, star, direction = term.partition("*")
        try:
            weights[direction.strip()] = float(weight.replace(" ", "")) if star else float("nan")
        except ValueError:
            star = ""
        if not star:
            raise UserError(f"{term!r} is no term; write NEW=0.9*smile+0.4*age")
    space = shared_space(generator, [found])
    return algebra.compose(found, weights, name, space=space).in_sigma(space)


def similarity(
    a: Positional[str],
    b: Positional[str],
    /,
    *,
    generator: str,
    rows: int = 20,
    foreign: bool = False,
    machine: Machine = HERE,
) -> None:
    """Compare two sets of directions: |cos| after the best matching, beside what chance alone gives.

    Args:
        a: a file of directions, or the name of a method.
        b: another.
        generator: the generator that they belong to.
        rows: how many matched pairs to print.
        foreign: take directions made for another generator.
        machine: how the generator is opened.
    """
    g = machine.open(generator)
    sets = [find_directions(source, g, foreign=foreign, measured=False) for source in (a, b)]
    result = algebra.similarity(*sets, space=shared_space(g, sets))
    pairs = [
        {a: sets[0].names[i], f"{b} ": sets[1].names[j], "|cos|": f"{float(result.cosines[i, j]):.3f}"}
        for i, j in result.pairs[:rows]
    ]
    print(as_table(pairs))
    print(
        f"mean matched |cos| {result.mean:.3f}; by chance {result.null:.3f}, 95 % of chances below {result.null_95:.3f}"
    )
    angles = ", ".join(f"{angle:.1f}" for angle in result.angles[:8].tolist())
    print(f"principal angles of the spans in degrees: {angles}{', ...' if len(result.angles) > 8 else ''}")


def decompose(
    source: Positional[str],
    /,
    *,
    into: str,
    generator: str,
    k: int = 3,
    foreign: bool = False,
    machine: Machine = HERE,
) -> None:
    """Say what directions are made of, in terms of at most k others.

    Args:
        source: a file of directions, or the name of a method.
        into: the directions to take them apart into.
        generator: the generator that they belong to.
        k: how many parts each may have.
        foreign: take directions made for another generator.
        machine: how the generator is opened.
    """
    g = machine.open(generator)
    found, parts = (find_directions(each, g, foreign=foreign, measured=False) for each in (source, into))
    space = shared_space(g, [found, parts])
    found, parts = found.in_sigma(space), parts.in_sigma(space)
    result = algebra.decompose(found, into=parts, k=k, space=space)
    rows = [
        {
            "direction": name,
            "made of": "  ".join(f"{weight:+.2f} {part}" for part, weight in result.recipe(row).items()),
            "share": f"{float(result.share[row, -1]):.2f}",
        }
        for row, name in enumerate(result.names)
    ]
    print(as_table(rows))


def codebook(
    sources: Positional[tuple[str, ...]],
    /,
    *,
    generator: str,
    n: int = 10,
    sparsity: int = 1,
    seed: int = 0,
    out: Path | None = None,
    foreign: bool = False,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Pool the directions of several methods into a few primitives that they are made of.

    Args:
        sources: files of directions, or names of methods.
        generator: the generator that they belong to.
        n: how many primitives.
        sparsity: of how many primitives a direction may be made.
        seed: of the search.
        out: a .safetensors file for the primitives.
        foreign: take directions made for another generator.
        machine: how the generator is opened.
        force: replace a file that exists.
    """
    if out is not None:
        refuse_existing(out, force=force)
    g = machine.open(generator)
    sets = [find_directions(source, g, foreign=foreign, measured=False) for source in sources]
    space = shared_space(g, sets)
    found = algebra.codebook([each.in_sigma(space) for each in sets], n, sparsity=sparsity, seed=seed, space=space)
    found = found.in_sigma(space)
    table = figures(found)
    for row, members, spread in zip(table, found.fields["members"], found.fields["sets"], strict=True):
        row |= {"members": int(members), "sets": int(spread)}
    print(as_table(table))
    if out is not None:
        print(found.save(out, force=force))


def presets(
    source: Positional[str],
    /,
    *,
    generator: str,
    components: str = "ganspace",
    out: Path | None = None,
    foreign: bool = False,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Make published edits (component, layer range, strength) into named directions of a generator.

    Args:
        source: the name of a bundled file of presets, such as ffhq_ganspace, or a JSON file.
        generator: the generator to use them with.
        components: a file of the components that the presets number; by default GANSpace is run, a minute or two.
        out: a .safetensors file for the named directions.
        foreign: take components made for another generator.
        machine: how the generator is opened.
        force: replace a file that exists.
    """
    if out is not None:
        refuse_existing(out, force=force)
    wanted = load_presets(source)
    g = machine.open(generator)
    if components in METHODS:
        most = max(preset.component for preset in wanted) + 1
        found = METHODS[components](n_directions=most).fit(g, seed=0)
    else:
        found = find_directions(components, g, foreign=foreign)
    named = named_directions(wanted, found, g)
    rows = [
        {"name": preset.name, "component": preset.component, "layers": layers, "published σ": preset.sigma}
        for preset, layers in zip(wanted, named.layers, strict=True)
    ]
    print(as_table(rows))
    if out is not None:
        print(named.save(out, force=force))
