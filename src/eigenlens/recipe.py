"""How to make the picture of an Edit again: as a command, and as Python."""

from __future__ import annotations

import dataclasses
import json
import shlex

from .edit import Edit, Move, Start


def shell(edit: Edit, out: str = "edit.png") -> str:
    """Return the command that makes the picture of an Edit: flags where they say all, else the Edit as a file.

    Example:
        >>> print(shell(Edit("toonfaces", Start(seed=3), (Move("eigen", "L3D1", by=2.0),))))
        eigenlens edit toonfaces --seed 3 --move 'eigen:L3D1 by 2' --out edit.png
    """
    simple = Start(
        seed=edit.codes.seed, index=edit.codes.index, truncation=edit.codes.truncation, label=edit.codes.label,
        file=edit.codes.file,
    )  # fmt: skip
    plain = dataclasses.replace(edit, codes=simple, moves=tuple(_plain(move) for move in edit.moves))
    is_sayable = plain == edit and edit.moves and not any(":" in str(move.name) for move in edit.moves)
    if not is_sayable:
        text = json.dumps(edit.to_json(), ensure_ascii=False)
        written = f"printf '%s' {shlex.quote(text)} > edit.json"
        return f"{written} && eigenlens edit --edit edit.json --out {shlex.quote(out)}"
    start = edit.codes
    words = ["eigenlens", "edit", edit.generator]
    words += ["--index", str(start.index)] if start.index else []
    words += ["--seed", str(start.seed)] if start.seed and not start.file else []
    words += _codes(start)
    for move in edit.moves:
        how = f"by {_number(move.by)}" if move.by is not None else f"to {_number(move.to or 0.0)}"
        layers = f" layers {shlex.quote(move.layers)}" if move.layers else ""
        words += ["--move", f"{shlex.quote(f'{move.directions}:{move.name}')} {how}{layers}"]
    words += ["--until", str(edit.until)] if edit.until else []
    words += ["--keep", ",".join(edit.keep)] if edit.keep else []
    words += ["--region", ",".join(_number(each) for each in edit.region)] if edit.region else []
    return shlex.join([*words, "--out", out])


def along(
    start: Start, generator: str, directions: str, name: str, limits: tuple[float, float], *, n: int, out: str,
    fps: float | None = None,
) -> str | None:  # fmt: skip
    """Return the command that shows one code along a direction: a strip, or with `fps` a film forward and back.

    Args:
        start: the code.
        generator: anything that `load_generator` opens.
        directions: a file or a method.
        name: of the direction.
        limits: the ends, in σ.
        n: pictures of the strip, or frames of the film one way.
        out: the file to write.
        fps: frames a second.

    Returns:
        None where flags cannot say it: the ends differ in size, the start has a space, cutoff, noise or number of its
        own, or the name has commas.

    Example:
        >>> along(Start(seed=3), "toonfaces", "eigen", "L3D1", (-2.0, 2.0), n=5, out="strip.png")
        'eigenlens traverse toonfaces --axis L3D1 --directions eigen --range=-2:2 --steps 5 --seeds 3 --out strip.png'
    """
    number = start.index if start.file else start.seed
    plain = Start(seed=start.seed, index=start.index if start.file else 0, truncation=start.truncation,
                  label=start.label, file=start.file)  # fmt: skip
    low, high = limits
    if plain != start or low != -high or name != name.strip() or "," in name or name == "all":
        return None
    axis = ["--axis", name] if not name.startswith("-") else [f"--axis={name}"]
    words = ["eigenlens", "traverse", generator, *axis, "--directions", directions]
    words += [f"--range={_number(low)}:{_number(high)}"]
    words += ["--steps", str(n)] if fps is None else ["--frames", str(n), "--fps", _number(fps), "--easing", "linear"]
    return shlex.join([*words, *_codes(start), "--seeds", str(number), "--out", out])


def python(edit: Edit, out: str = "edit.png") -> str:
    """Return the Python that makes the picture of an Edit."""
    text = json.dumps(edit.to_json(), indent=2, ensure_ascii=False)
    literal = json.dumps(text, ensure_ascii=False) if '"""' in text or "\\" in text else f'"""{text}"""'
    return f"""import json

import eigenlens
from eigenlens.edit import apply
from eigenlens.images import save, to_pil
from eigenlens.method import find_directions

edit = eigenlens.Edit.from_json(json.loads({literal}))
g = eigenlens.load_generator(edit.generator)
done = apply(edit, g, lambda name: find_directions(name, g, measured=False))
before, after = done.images(g)
save(to_pil(after), {out!r})
"""


def _codes(start: Start) -> list[str]:
    """Return the flags that say by which law codes are drawn; those of a file are there, however they were drawn."""
    if start.file:
        return ["--codes", start.file]
    words = ["--truncation", _number(start.truncation)] if start.truncation != 1.0 else []
    return words if start.label is None else [*words, "--label", str(start.label)]


def _plain(move: Move) -> Move:
    """Return the move with what flags can say of it alone."""
    return Move(move.directions, move.name, by=move.by, to=move.to, layers=move.layers)


def _number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
