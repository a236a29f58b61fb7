"""What the commands do: each reads its arguments, calls the library and prints.

Signatures and docstrings give the flags and their help.
"""

from __future__ import annotations

import functools
import inspect
import json as json_format
import shlex
import typing
from pathlib import Path
from typing import Any, Literal

import torch
from tyro.conf import Positional, UseAppendAction

from . import images as pictures
from . import runtime
from .directions import Directions
from .edit import Edit, Move, Start, move_codes, start_codes
from .effect import traverse as walk_images
from .errors import UserError
from .files import refuse_existing
from .generator import GENERATORS, NAMED, Generator, load_generator
from .method import METHODS, find_directions
from .metric import METRICS
from .reader import READERS

FILMS = (".gif", ".webp", ".mp4")


# --- words that commands share ----------------------------------------------------------------------------------------


def parse_seeds(text: str) -> list[int]:
    """Read seeds such as `0-7` or `3,5,8-10`.

    Raises:
        UserError: where a piece is none.
    """
    seeds: list[int] = []
    for piece in text.split(","):
        low, dash, high = piece.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()) or (dash and int(high) < int(low)):
            raise UserError(f"{text!r} are no seeds; write 0-7 or 3,5,8-10")
        seeds += range(int(low), int(high if dash else low) + 1)
    if len(seeds) > 10_000:
        raise UserError(f"{text!r} are {len(seeds)} seeds; at most 10,000 at once")
    return seeds


def parse_range(text: str, steps: int) -> list[float]:
    """Read a range of strengths such as `-4:4`, cut into `steps`.

    Raises:
        UserError: where it is none.
    """
    low, colon, high = text.partition(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        colon = ""
    if not colon or not all(abs(end) < 1e6 for end in ends):
        raise UserError(f"{text!r} is no range; write LOW:HIGH in σ, such as -4:4")
    if steps < 2:
        raise UserError(f"{steps} steps came; a range needs 2 or more")
    return torch.linspace(ends[0], ends[1], steps).tolist()


def command_line(name: str, *words: str, **flags: Any) -> str:
    """Return the command that does this again, for the recipe of a picture; flags at None or False are left out."""
    pieces = ["eigenlens", name, *words]
    for flag, value in flags.items():
        if value is None or value is False:
            continue
        pieces += [f"--{flag.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return shlex.join(pieces)


def sample_seeds(generator: Generator, seeds: list[int], **how: Any) -> Any:
    """Return one code a seed, each the first of its seed: what `--seeds 0-7` means everywhere."""
    from .codes import concatenate

    return concatenate([generator.sample(1, seed=seed, **how) for seed in seeds])


def default_directions(generator: Generator) -> str:
    """Return the directions that a generator has without asking: its own axes, else SeFa."""
    return "eigen" if generator.family == "eigengan" else "sefa"


def find(source: str | None, generator: Generator, *, foreign: bool = False) -> Directions:
    """Return the directions named by `--directions`, or the generator's default ones."""
    return find_directions(source or default_directions(generator), generator, foreign=foreign)


def is_film(path: Path) -> bool:
    """Tell whether the suffix is that of a film."""
    return path.suffix.lower() in FILMS


def write_walk(
    images: torch.Tensor,
    out: Path,
    *,
    labels: list[str],
    steps: list[float],
    title: str,
    command: str,
    force: bool = False,
) -> None:
    """Write walked images [rows, steps, c, h, w] as a labelled sheet, or as a film where the suffix is one."""
    about = {"version": 1, "command": command}
    if is_film(out):
        frames = (pictures.grid(images[:, k], columns=min(len(images), 4)) for k in range(images.shape[1]))
        pictures.save_animation(frames, out, fps=max(4.0, len(steps) / 2), pingpong=True, recipe=about, force=force)
        return
    columns = [f"{step:+.3g}σ" if abs(step) > 1e-9 else "0" for step in steps]
    picture = pictures.grid(
        images.flatten(0, 1), columns=images.shape[1], row_labels=labels, column_labels=columns, title=title
    )
    pictures.save(picture, out, recipe=about, force=force)


# --- commands ---------------------------------------------------------------------------------------------------------


def list_names() -> None:
    """List the names that commands take: generators, families, methods, metrics, readers and training presets."""
    from .training.eigengan import PRESETS

    rows = {
        "generators": NAMED,
        "families": GENERATORS,
        "methods": METHODS,
        "metrics": METRICS,
        "readers": READERS,
        "presets": PRESETS,
    }
    width = max(map(len, rows))
    for kind, names in rows.items():
        print(f"{kind:<{width}}  {', '.join(names)}")


def info(source: Positional[str], /, *, json: bool = False) -> None:
    """Tell what a generator, a file of directions or a picture made by eigenlens is.

    Args:
        source: a generator (a name, a folder or a file), a .safetensors file of directions, or a PNG.
        json: print JSON instead of text.
    """
    path = Path(source)
    if path.suffix.lower() == ".png" and path.exists():
        recipe = pictures.read_recipe(path)
        if recipe is None:
            raise UserError(f"{path} carries no recipe; only pictures that eigenlens wrote do")
        print(json_format.dumps(recipe, indent=2) if json else recipe.get("command", json_format.dumps(recipe)))
        return
    if path.suffix == ".safetensors" and path.is_file() and _holds_directions(path):
        about = describe_directions(Directions.load(path))
    else:
        about = describe_generator(load_generator(source, device="cpu"))
    print(json_format.dumps(about, indent=2, ensure_ascii=False) if json else as_text(about))


def _holds_directions(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return "eigenlens.directions" in (file.metadata() or {}).get("eigenlens", "")
    except (SafetensorError, OSError):
        return False


def describe_generator(generator: Generator) -> dict[str, Any]:
    """Return what `info` tells of a generator, as plain JSON."""
    weights = sum(tensor.numel() for tensor in generator.network.state_dict().values())
    return {
        "name": generator.name,
        "family": generator.family,
        "resolution": generator.resolution,
        "channels": generator.channels,
        "numbers": f"{weights:,}",
        "labels": len(generator.label_names) or "none",
        "layout": generator.origin.layout + (f", entry {generator.origin.entry}" if generator.origin.entry else ""),
        "container": generator.origin.container or "memory",
        "sha256": generator.origin.sha256 or "-",
        "weights": generator.weight_hash,
        "spaces": [
            {
                "name": space.name,
                "slots": space.slots,
                "dim": space.dim,
                "law": space.law,
                "parts": [f"{part.number} {part.name} [{part.start}:{part.stop}]" for part in space.parts],
            }
            for space in generator.spaces.values()
        ],
        "layers": [
            {"name": layer.name, "resolution": layer.resolution, "channels": layer.channels, "part": layer.part}
            for layer in generator.layers
        ],
    }


def describe_directions(directions: Directions) -> dict[str, Any]:
    """Return what `info` tells of directions, as plain JSON."""
    made = directions.provenance
    return {
        "directions": len(directions),
        "space": directions.space,
        "unit": directions.unit,
        "method": made.method,
        "arguments": dict(made.arguments),
        "seed": made.seed,
        "generator": dict(made.generator),
        "version": made.version,
        "table": direction_rows(directions),
    }


def direction_rows(directions: Directions) -> list[dict[str, Any]]:
    """Return one row of figures a direction; None where a figure is not known."""

    def number(value: torch.Tensor) -> float | None:
        return round(float(value), 4) if bool(value.isfinite()) else None

    return [
        {
            "index": k,
            "name": name,
            "layers": directions.layers[k],
            "σ": number(directions.sigma[k]),
            "effect": number(directions.effect[k]),
            "low": number(directions.limits[k, 0]),
            "high": number(directions.limits[k, 1]),
            "importance": number(directions.importance[k]),
            "split-half": number(directions.split_half[k]),
            "agreement": number(directions.agreement[k]),
        }
        for k, name in enumerate(directions.names)
    ]


def as_table(rows: list[dict[str, Any]]) -> str:
    """Lay rows out in columns; a column that is empty in every row is left out."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    cells = [[("-" if row[name] is None else str(row[name])) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in [names, *cells]) for i in range(len(names))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [names, *cells]]
    return "\n".join(line.rstrip() for line in lines)


def as_text(about: dict[str, Any]) -> str:
    """Lay out what `info` tells: a line an entry, a table for a list of objects."""
    width = max(len(name) for name, value in about.items() if not isinstance(value, list))
    lines = []
    for name, value in about.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = [{k: "; ".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in value]
            lines += ["", f"{name}:", as_table(rows)]
        else:
            lines.append(f"{name:<{width}}  {value}")
    return "\n".join(lines)


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
    device: str = "auto",
    threads: int | None = None,
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
        device: auto, cpu, cuda, ...
        threads: of the CPU.
        force: replace a file that exists.
    """
    refuse_existing(out, force=force)
    runtime.set_threads(threads)
    g = load_generator(generator, device=device)
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
    device: str = "auto",
    threads: int | None = None,
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
        device: auto, cpu, cuda, ...
        threads: of the CPU.
        force: replace a file that exists.
    """
    refuse_existing(out, force=force)
    strengths = parse_range(range, steps * 4 if is_film(out) else steps)
    numbers = parse_seeds(seeds)
    runtime.set_threads(threads)
    g = load_generator(generator, device=device)
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
    device: str = "auto",
    threads: int | None = None,
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
        device: auto, cpu, cuda, ...
        threads: of the CPU.
        force: replace files that exist.
    """
    for path in filter(None, (out, save_edit)):
        refuse_existing(path, force=force)
    if edit is not None and (move or generator):
        raise UserError("--edit says all itself; leave the generator and --move out")
    if edit is None and (generator is None or not move):
        raise UserError("name a generator and at least one --move 'NAME by 2', or give --edit FILE")
    runtime.set_threads(threads)
    if edit is not None:
        wanted = Edit.load(edit)
        g = load_generator(wanted.generator, device=device)
    else:
        assert generator is not None
        g = load_generator(generator, device=device)
        source = directions or default_directions(g)
        start = Start(seed=seed, index=index, truncation=truncation, label=label, file=str(codes) if codes else None)
        wanted = Edit(generator, start, tuple(parse_move(each, source) for each in move))
    start_code = start_codes(g, wanted.codes)
    cache: dict[str, Directions] = {}
    moved = move_codes(
        g, start_code, wanted.moves, lambda name: cache.setdefault(name, find_directions(name, g, foreign=foreign))
    )
    after = g.render(moved)
    shown = torch.cat([g.render(start_code), after]) if before else after
    labels = ("before", "after") if before else ()
    picture = pictures.grid(shown, columns=len(shown), column_labels=labels) if before else pictures.to_pil(after[0])
    recipe = {"version": 1, "edit": wanted.to_json(), "command": _edit_again(wanted, out)}
    pictures.save(picture, out, recipe=recipe, force=force)
    if save_edit is not None:
        from .files import write_json

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


def option(words: list[str], name: str, default: str) -> str:
    """Return the value of one option before the rest is parsed, since the other flags depend on it."""
    for place, word in enumerate(words):
        if word == name and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return default


def specialised(function: Any, **changed: tuple[Any, Any]) -> Any:
    """Return `function` with other types and defaults for some parameters: (type, default) by name.

    A command whose flags depend on one of its words (a preset, a method) asks for this before it is parsed.
    """

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    hints = typing.get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    parameters = []
    for name, parameter in signature.parameters.items():
        kind, default = changed.get(name, (hints[name], parameter.default))
        parameters.append(parameter.replace(annotation=kind, default=default))
        hints[name] = kind
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = hints
    return command


def train(
    *,
    data: Path,
    preset: str = "cpu-64",
    run: Path | None = None,
    resume: str = "auto",
    runs: Path = Path("runs"),
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    compile: bool = False,
    threads: int | None = None,
    tensorboard: bool = False,
    settings: Any = None,
) -> None:
    """Train an EigenGAN on images of your own; under torchrun, on several processes.

    Args:
        data: a folder of images (nested), a zip of them, .npz, .npy, or idx files of MNIST and Fashion-MNIST.
        preset: settings that belong together; the flags below change single ones. `eigenlens list` names the presets.
        run: folder of the run; by default the next free one in --runs.
        resume: `auto` goes on where --run holds a state; `none` wants a fresh folder; or a state to go on from.
        runs: where new runs go.
        device: auto, cpu, cuda, ...
        precision: bf16 is faster where the processor multiplies it itself; `auto` finds out.
        compile: compile the networks.
        threads: of the CPU.
        tensorboard: write TensorBoard's files too.
        settings: their defaults are those of the preset.
    """
    from .training.eigengan import train as run_training

    folder = run_training(
        settings,
        data=data,
        run=run,
        resume=resume,
        runs=runs,
        device=device,
        precision=precision,
        compile=compile,
        threads=threads,
        tensorboard=tensorboard,
    )
    print(folder)


def _train_with_preset(words: list[str]) -> Any:
    from .training.eigengan import TrainConfig, configure

    default = configure(option(words, "--preset", "cpu-64"))
    return specialised(train, settings=(TrainConfig, default))


train.specialise = _train_with_preset  # type: ignore[attr-defined]
