"""The command line: a table command -> function. It parses, calls and prints; it owns no behaviour.

This file imports neither torch nor tyro, so that `eigenlens --help` answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from . import __version__
from .errors import UserError
from .registry import Registry

SUMMARIES = {
    "demo": "make sample grids, traversal sheets and films of the bundled generator",
    "list": "list generators, families, methods, metrics and presets",
    "info": "tell what a generator, a file of directions or a picture is",
    "sample": "draw images in a grid",
    "traverse": "show what an axis does: a strip or a film",
    "edit": "move one image along directions",
    "discover": "find directions in a generator, with their figures and strips",
    "directions": "join, rename, combine and convert files of directions",
    "similarity": "compare two sets of directions",
    "decompose": "say what directions are made of",
    "codebook": "pool directions of several methods into primitives",
    "compare": "compare methods on generators, at equal strengths",
    "names": "propose names for directions from what they change",
    "study": "let people judge directions, blinded, and count their votes",
    "presets": "make published edits into named directions of a generator",
    "convert": "write a foreign generator in our format",
    "studio": "move images along directions in the browser",
    "project": "find the codes of photos, to edit them",
    "encoder": "train a network that reads codes off photos",
    "interpolate": "go from image to image, or from class to class",
    "mix": "give images what some layers read of others",
    "export": "write a generator as ONNX, or a page that runs it in the browser",
    "hub": "send a generator to the Hugging Face Hub, or fetch one",
    "saliency": "learn masks from a direction that changes the background",
    "train": "train an EigenGAN on images of your own",
    "anatomy": "write a page about the axes of an EigenGAN",
    "graft": "set the axes of one EigenGAN into another",
}
"""Command -> what it does, in the order of the help page."""

COMMANDS = Registry(
    "command",
    {
        "demo": "eigenlens.demo:demo",
        "list": "eigenlens.commands.files:list_names",
        "info": "eigenlens.commands.files:info",
        "sample": "eigenlens.commands.pictures:sample",
        "traverse": "eigenlens.commands.pictures:traverse",
        "edit": "eigenlens.commands.edits:edit",
        "discover": "eigenlens.commands.discovery:discover",
        "directions": "eigenlens.commands.discovery:directions",
        "similarity": "eigenlens.commands.discovery:similarity",
        "decompose": "eigenlens.commands.discovery:decompose",
        "codebook": "eigenlens.commands.discovery:codebook",
        "compare": "eigenlens.commands.comparison:compare",
        "names": "eigenlens.commands.comparison:names",
        "study": "eigenlens.commands.comparison:study",
        "presets": "eigenlens.commands.discovery:presets",
        "convert": "eigenlens.commands.files:convert",
        "studio": "eigenlens.commands.studio:studio",
        "project": "eigenlens.commands.projection:project",
        "encoder": "eigenlens.commands.projection:encoder",
        "interpolate": "eigenlens.commands.mixing:interpolate",
        "mix": "eigenlens.commands.mixing:mix",
        "export": "eigenlens.commands.exports:export",
        "hub": "eigenlens.commands.exports:hub",
        "saliency": "eigenlens.commands.saliency:saliency",
        "train": "eigenlens.commands.training:train",
        "anatomy": "eigenlens.commands.anatomy:anatomy",
        "graft": "eigenlens.commands.anatomy:graft",
    },
)
"""Command -> the function that does it; its signature gives the flags, its docstring their help."""


def help_text() -> str:
    """Return the page that `eigenlens --help` prints."""
    width = max(map(len, SUMMARIES))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in SUMMARIES.items()]
    return "\n".join(
        [
            "usage: eigenlens COMMAND [OPTIONS]",
            "",
            "Find, measure and use the interpretable controls of image generators.",
            "",
            "commands:",
            *lines,
            "",
            "eigenlens COMMAND --help explains a command; eigenlens --version prints the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `eigenlens`; those of this process by default.

    Returns:
        The exit code: 0, or 2 for a user's mistake, which is one line on stderr.
    """
    # On a busy machine threads that spin while they wait for each other cost several times the work; torch reads this
    # when it is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if words[0] == "help":
        words = [*words[1:], "--help"]  # `help edit` is `edit --help`
    try:
        if words[0] in ("-h", "--help", "--version"):
            print(__version__ if words[0] == "--version" else help_text(), flush=True)
            return 0
        return run(words[0], words[1:])
    except UserError as error:
        return _complain(words[0], str(error))
    except KeyboardInterrupt as stop:  # a method that keeps its state says where, and how to go on
        return _complain(words[0], str(stop) or "stopped", code=130)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run(name: str, words: list[str]) -> int:
    """Parse `words` for one command and call it.

    Raises:
        UserError: on a command, an option or a value that is not known.
    """
    command = COMMANDS[name]
    specialise: Callable[[list[str]], Any] | None = getattr(command, "specialise", None)
    if specialise is not None:  # the flags of `train` and `discover` depend on the preset or the method
        command = specialise(words)
    if {"-h", "--help"} & set(words):
        words = ["--help"]  # tyro leaves arguments that are there already out of the page
    call = _parsed(command, words, f"eigenlens {name}")
    if call is None:
        return 0
    result = call()
    return result if isinstance(result, int) else 0


def _parsed(command: Any, words: list[str], program: str) -> Callable[[], Any] | None:
    """Return the call that `words` ask for; None where they ask for help, which is then printed."""
    import functools

    import tyro

    @functools.wraps(command)
    def bound(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return functools.partial(command, *args, **kwargs)

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
            return tyro.cli(bound, args=words, prog=program, config=markers)
    except SystemExit as stop:
        if not stop.code:
            return None
        raise UserError(_one_line(complaint.getvalue(), words, program)) from None


def _one_line(complaint: str, words: list[str], program: str) -> str:
    """Fold the box that tyro draws into one line, and name the nearest option."""
    text = "".join(" " if ord(char) in range(0x2500, 0x2580) else char for char in complaint)
    pieces = [" ".join(line.split()) for line in text.splitlines()]
    text = " ".join(piece for piece in pieces if piece)
    text = text.split("For full helptext")[0].split("Perhaps you meant")[0].replace(f"from {program}", "").strip()
    text = text.removeprefix("Unrecognized options ").removeprefix("Required options ")  # the title of the box
    unknown = [word for word in words if word.startswith("--") and word in text and "nrecognized" in text]
    near = difflib.get_close_matches(unknown[0], _options(program, words), n=1) if unknown else []
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{text}{hint}; see {program} --help"


def _options(program: str, words: list[str]) -> list[str]:
    """Return the options of a command, those of its preset or method included."""
    import dataclasses
    import inspect
    import typing

    command = COMMANDS[program.split()[-1]]
    specialise = getattr(command, "specialise", None)
    command = specialise(words) if specialise else command
    hints = typing.get_type_hints(command)
    names = list(inspect.signature(command).parameters)
    for kind in hints.values():
        names += [each.name for each in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    return [f"--{name.replace('_', '-')}" for name in names]


def _complain(command: str, message: str, *, code: int = 2) -> int:
    print(f"eigenlens {command}: {' '.join(message.split())}", file=sys.stderr)
    return code
