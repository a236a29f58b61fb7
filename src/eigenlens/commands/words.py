"""Words that commands share: seeds, ranges, tables, the command that made a picture."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import shlex
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tyro.conf import Fixed, Suppress, UseAppendAction

from .. import images as pictures
from .. import runtime
from ..codes import Codes, concatenate, load_codes
from ..directions import Directions
from ..errors import UserError
from ..files import refuse_existing
from ..generator import Generator, load_generator
from ..method import default_directions, find_directions


@dataclass(frozen=True)
class Machine:
    """How generators are opened, on what machine."""

    device: str = "auto"
    """auto, cpu, cuda, ..."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """What generators compute in: fp32, bf16, or auto, which is bf16 where the device is faster at it."""
    threads: int | None = None
    """Threads of the CPU; as many as cores by default."""
    option: UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE that a foreign file cannot tell, such as activation=relu; repeat it for more."""

    def open(self, source: str) -> Generator:
        """Open a generator here.

        Raises:
            UserError: on an option that is no NAME=VALUE.
        """
        runtime.set_threads(self.threads)
        runtime.keep_freed_memory()
        options = {}
        for each in self.option:
            name, equals, value = each.partition("=")
            if not (name and equals):
                raise UserError(f"--option {each!r} is no NAME=VALUE; write --option activation=relu, say")
            try:
                options[name] = json.loads(value)
            except ValueError:
                options[name] = value
        return load_generator(source, device=self.device, precision=self.precision, **options)


@dataclass(frozen=True)
class ExactMachine(Machine):
    """A machine for methods whose own `--precision` is that of what they train: generators compute in fp32."""

    precision: Suppress[Fixed[Literal["fp32", "bf16", "auto"]]] = "fp32"
    """Not asked for."""


HERE = Machine()


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


UNRECORDED = ("force", "device", "threads")
"""Options that change where and how fast something is done, not what comes out."""


def command_line(name: str, *words: str, **flags: Any) -> str:
    """Return a command with flags as values say them; those at None or False are left out."""
    given = {flag: value for flag, value in flags.items() if value is not None and value is not False}
    return shlex.join(["eigenlens", name, *words, *(word for flag in given for word in _flag(flag, given[flag]))])


def command_again(name: str, function: Any, given: Mapping[str, Any], **settings: Any) -> str:
    """Return the command that calls `function` so again, for the recipe of what it makes.

    Args:
        name: of the command.
        function: what does it; its signature gives the flags, as for the command line itself.
        given: its arguments by name, such as `locals()` where it begins.
        settings: of a group of flags, what stands where none is given; by default what its type says.

    Returns:
        The command, with the options that differ from their defaults.
    """
    words, flags = [], []
    hints = typing.get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        key, value = parameter.name, given[parameter.name]
        if key in UNRECORDED or value is None:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            words += [str(each) for each in (value if isinstance(value, tuple) else (value,))]
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            usual = settings.get(key, type(value)() if parameter.default is None else parameter.default)
            flags += said(value, usual)
        elif value != parameter.default:
            flags += _flag(key, value, repeated=_is_repeated(hints[key]))
    return shlex.join(["eigenlens", name, *words, *flags])


def said(group: Any, usual: Any) -> list[str]:
    """Return the flags that make `group` out of `usual`."""
    hints = typing.get_type_hints(type(group), include_extras=True)
    names = [each.name for each in dataclasses.fields(group) if each.init and each.name not in UNRECORDED]
    changed = [name for name in names if getattr(group, name) != getattr(usual, name)]
    return [word for name in changed for word in _flag(name, getattr(group, name), repeated=_is_repeated(hints[name]))]


def _is_repeated(hint: Any) -> bool:
    return UseAppendAction in typing.get_args(hint)


def _flag(name: str, value: Any, *, repeated: bool = False) -> list[str]:
    """Return the words that give an option its value."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if not isinstance(value, (tuple, list)):
        return [f"--{flag}={value}"] if str(value).startswith("-") else [f"--{flag}", str(value)]
    values = [str(each) for each in value]
    return [word for each in values for word in (f"--{flag}", each)] if repeated else [f"--{flag}", *values]


def sample_seeds(generator: Generator, seeds: list[int], **how: Any) -> Codes:
    """Return one code a seed, each the first of its seed: what `--seeds 0-7` means everywhere."""
    return concatenate([generator.sample(1, seed=seed, **how) for seed in seeds])


def rows_of(path: Path, generator: Generator, numbers: list[int]) -> Codes:
    """Return rows of a file of codes: what `--seeds 0-3` means beside `--codes`.

    Raises:
        UserError: where it has no such row.
    """
    loaded = load_codes(path, generator)
    if max(numbers) >= len(loaded):
        raise UserError(f"row {max(numbers)} of {path} was asked for; it has rows 0-{len(loaded) - 1}")
    return loaded[numbers]


def find(source: str | None, generator: Generator, *, foreign: bool = False) -> Directions:
    """Return the directions named by `--directions`, or the generator's default ones."""
    return find_directions(source or default_directions(generator), generator, foreign=foreign, measured=False)


def is_film(path: Path) -> bool:
    """Tell whether the suffix is that of a film."""
    return path.suffix.lower() in pictures.FILMS


def check_picture(out: Path, *, films: bool = False, force: bool = False) -> None:
    """Refuse before the work what could not be written after it.

    Raises:
        UserError: where the file exists, or has the suffix of neither a picture nor, with `films`, a film.
    """
    refuse_existing(out, force=force)
    allowed = dict.fromkeys((*pictures.PICTURES, *(pictures.FILMS if films else ())))
    if out.suffix.lower() not in allowed:
        raise UserError(f"cannot write {out}: unknown suffix {out.suffix!r}; give one of {', '.join(allowed)}")


def refuse_beside(option: str, given: Any, others: Mapping[str, Any]) -> None:
    """Refuse options that another one, where it is given, leaves nothing to say.

    Raises:
        UserError: where one of them is given, too.
    """
    beside = [name for name, value in others.items() if value is not None]
    if given is not None and beside:
        raise UserError(f"{option} says {', '.join(beside)} itself; leave {'that' if len(beside) == 1 else 'them'} out")


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
    """Write walked images [rows, steps, c, h, w] as a labelled sheet."""
    columns = [f"{step:+.3g}σ" if abs(step) > 1e-9 else "0" for step in steps]
    picture = pictures.grid(
        images.flatten(0, 1), columns=images.shape[1], row_labels=labels, column_labels=columns, title=title
    )
    pictures.save(picture, out, recipe={"version": 1, "command": command}, force=force)


def write_film(
    frames: Iterable[Any],
    out: Path,
    *,
    count: int,
    fps: float | None,
    pingpong: bool,
    command: str,
    force: bool = False,
) -> None:
    """Write frames as a film, which by default takes two seconds for the `count` frames of one way."""
    recipe = {"version": 1, "command": command}
    pictures.save_animation(frames, out, fps=fps or max(4.0, count / 2), pingpong=pingpong, recipe=recipe, force=force)


def as_table(rows: list[dict[str, Any]]) -> str:
    """Lay rows out in columns; a column that is empty in every row is left out."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    cells = [[("-" if row[name] is None else str(row[name])) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in [names, *cells]) for i in range(len(names))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [names, *cells]]
    return "\n".join(line.rstrip() for line in lines)


def figures(directions: Directions) -> list[dict[str, Any]]:
    """Return the rows of the table of directions that people read: figures to four digits."""
    return [
        {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}
        for row in directions.table()
    ]


def as_text(about: dict[str, Any]) -> str:
    """Lay out what `info` tells: a line an entry, a table for a list of objects."""
    width = max(len(name) for name, value in about.items() if not isinstance(value, list))
    lines = []
    for name, value in about.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = [{k: "; ".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in value]
            lines += ["", f"{name}:", as_table(rows)]
        else:
            lines.append(f"{name:<{width}}  {_in_words(value)}")
    return "\n".join(lines)


def _in_words(value: Any) -> str:
    """Say a value without the signs of a programming language."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(each)}" for key, each in value.items()) or "-"
    return "-" if value is None else str(value)


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
