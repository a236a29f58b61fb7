"""Generators on the Hugging Face Hub, or in any folder: card, config, weights, directions; no file that runs code."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .directions import Directions
from .encoder import FILE as ENCODER
from .encoder import find_encoder
from .errors import UserError
from .files import refuse_existing
from .generator import CONFIG, WEIGHTS, Generator, load_generator
from .repository import Repository

WELCOME = (CONFIG, WEIGHTS, ENCODER, "README.md", "directions/*.safetensors")
"""What is sent and fetched; nothing else that lies beside."""


def card(
    generator: Generator, directions: Sequence[tuple[str, Directions]], *, license: str = "", text: str = ""
) -> str:
    """Return the model card, with the front matter that the Hub reads.

    Args:
        generator: the generator.
        directions: those that travel along, by file name.
        license: as the Hub abbreviates it, such as `mit`; left out where not known.
        text: what the card says; a card that begins with front matter of its own is left as it is.
    """
    if text.startswith("---"):
        return text
    lines = ["---", "library_name: eigenlens", "pipeline_tag: unconditional-image-generation"]
    lines += [f"license: {license}"] if license else []
    lines += ["tags:", "- gan", f"- {generator.family}", "- interpretability", "---", ""]
    lines += [
        text.rstrip() or f"# {generator.name}\n\nA {generator.family} generator of {generator.resolution} px.",
        "",
    ]
    if directions:
        lines += ["## Directions", "", "| file | directions | method |", "|---|---|---|"]
        for name, each in directions:
            shown = ", ".join(each.names[:8]) + (", ..." if len(each) > 8 else "")
            lines.append(f"| `directions/{name}.safetensors` | {shown} | {each.provenance.method or '-'} |")
        lines.append("")
    lines += [
        "## Use",
        "",
        "```bash",
        "pip install eigenlens",
        f"eigenlens hub pull hf://USER/{generator.name} {generator.name}",
    ]
    lines += [f"eigenlens sample {generator.name} --n 16", "```", ""]
    return "\n".join(lines)


def push(
    generator: Generator,
    target: str,
    *,
    directions: Sequence[str | Path] = (),
    license: str = "",
    half: bool = False,
    private: bool = False,
    force: bool = False,
) -> str:
    """Write a generator, its encoder and directions into a folder, or into a repository of the Hub.

    Args:
        generator: the generator.
        target: a folder, or `hf://user/repo`, which is made where it does not exist.
        directions: files of directions that travel along; they must belong to the generator.
        license: of the weights, for the card.
        half: store weights in float16.
        private: of a repository that is made.
        force: replace files of a folder. A repository keeps every version.

    Returns:
        Where it is.

    Raises:
        UserError: for a missing extra, a Hub that refuses, directions of another generator or of one file name, or
            files that exist.
    """
    repository = Repository.parse(target)
    loaded = [(Path(each).stem, Directions.load(each, generator=generator)) for each in directions]
    names = [name for name, _ in loaded]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two files of directions are called {twice[0]!r} and would take one place; rename one of them")
    if repository is None:
        return str(_write(generator, Path(target), loaded, license, half, force))
    with tempfile.TemporaryDirectory() as folder:
        _write(generator, Path(folder), loaded, license, half, True)
        return repository.send(Path(folder), WELCOME, private=private)


def _write(
    generator: Generator,
    folder: Path,
    directions: Sequence[tuple[str, Directions]],
    license: str,
    half: bool,
    force: bool,
) -> Path:
    is_same = not half or all(_survives_half(each) for each in generator.network.state_dict().values())
    if directions and not is_same:
        raise UserError(
            "weights in float16 are other weights, and these directions belong to the present ones; leave --half or "
            "--directions out"
        )
    places = [folder / "directions" / f"{name}.safetensors" for name, _ in directions]
    encoder = find_encoder(generator) if is_same else None
    for place in [*places, *([folder / ENCODER] if encoder else [])]:
        refuse_existing(place, force=force)
    source = Path(generator.origin.source) / "README.md"
    text = source.read_text("utf-8") if source.is_file() and source.parent != folder else ""
    generator.save(folder, card=card(generator, directions, license=license, text=text), half=half, force=force)
    for place, (_, each) in zip(places, directions, strict=True):
        each.save(place, force=force)
    if encoder is not None:
        shutil.copyfile(encoder, folder / ENCODER)
    return folder


def _survives_half(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool((tensor.half().to(tensor.dtype) == tensor).all())


def pull(source: str, folder: str | Path, *, force: bool = False) -> Generator:
    """Fetch a generator of ours from the Hub, or from a folder, and open it.

    Args:
        source: `hf://user/repo`, or a folder.
        folder: where it is put.
        force: replace files that exist.

    Raises:
        UserError: for a missing extra, a Hub that refuses, an address without a generator of ours, or files that exist.
    """
    repository, folder = Repository.parse(source), Path(folder)
    origin = Path(source) if repository is None else repository.fetch(WELCOME)
    if not (origin / CONFIG).is_file() or not (origin / WEIGHTS).is_file():
        raise UserError(f"{source} holds no generator of eigenlens: {CONFIG} and {WEIGHTS} are missing")
    files = [each for pattern in WELCOME for each in sorted(origin.glob(pattern))]
    if folder.resolve() == origin.resolve():
        raise UserError(f"{source} is the folder that it would be put into; it is there already")
    for each in files:
        refuse_existing(folder / each.relative_to(origin), force=force)
    load_generator(origin, device="cpu")  # what does not open is not kept
    for each in files:
        place = folder / each.relative_to(origin)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(each, place)
    return load_generator(folder, device="cpu")
