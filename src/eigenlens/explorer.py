"""One page that runs a generator in the browser: a slider for each direction, no server, nothing fetched."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
import string
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import __version__
from .codes import Codes, Space
from .directions import Directions
from .effect import calibrate
from .encoder import Encoder, fit_resolution
from .errors import UserError
from .export import export_onnx, in_float32, write_onnx
from .files import refuse_existing, write_text
from .generator import Generator

ASSETS = Path(__file__).parent / "assets" / "explorer"
SCRIPTS = ("png.js", "state.js", "engine.js", "explorer.js")
"""The page's modules, those that others import first."""
RUNTIME = "ort.wasm.bundle.min.mjs"
WASM = "ort-wasm-simd-threaded.wasm.gz"
LARGEST = 25_000_000
"""Bytes of a page that mail and chat still carry."""
QUIET = 0.1
"""An axis whose effect is below this share of the strongest one's is shown faintly."""


@dataclass(frozen=True)
class Explorer:
    """All that a page, or a widget, is made of."""

    manifest: Mapping[str, Any]
    """Names, limits and shapes, plain JSON."""
    parts: Mapping[str, bytes]
    """`runtime`, `wasm`, `model`, `starts`, `steps`, and `encoder` where there is one, each packed with gzip."""

    def page(self) -> str:
        """Return the page as HTML that needs no other file."""
        manifest = json.dumps(self.manifest, ensure_ascii=False).replace("<", "\\u003c")
        parts = (
            f'<script type="text/plain" id="{name}">{base64.b64encode(data).decode()}</script>'
            for name, data in self.parts.items()
        )
        template = string.Template((ASSETS / "page.html").read_text("utf-8"))
        return template.substitute(
            version=__version__,
            title=html.escape(str(self.manifest["title"])),
            css=(ASSETS / "explorer.css").read_text("utf-8"),
            manifest=manifest,
            parts="\n".join(parts),
            script=script(),
        )


def script() -> str:
    """Return the page's modules as one: what a file on disk, and a notebook, can load."""
    joined = "\n".join((ASSETS / name).read_text("utf-8") for name in SCRIPTS)
    return re.sub(r"^export ", "", re.sub(r"^import .*\n", "", joined, flags=re.MULTILINE), flags=re.MULTILINE)


def make_explorer(
    generator: Generator,
    directions: Directions,
    *,
    source: str = "",
    address: str | None = None,
    count: int = 64,
    seed: int = 0,
    truncation: float = 0.7,
    label: Any = None,
    encoder: Encoder | None = None,
    title: str = "",
) -> Explorer:
    """Pack a generator, some of its codes and directions for the browser.

    Args:
        generator: the generator; its weights are stored in float16 and computed with in float32.
        directions: one slider each, across its limits; what is not known of them is measured.
        source: how `--directions` names them, for the Edit that the page gives.
        address: how the shell names the generator; its name by default.
        count: codes to start from, 2 or more.
        seed: of those codes.
        truncation: of those codes.
        label: index or name of the class, for a conditional generator.
        encoder: reads the codes of photos that are dropped into the page; without one it takes none.
        title: above the page; the generator's name by default.

    Raises:
        Unsupported: where the generator cannot be written as ONNX, or the directions are curved.
        UserError: for fewer than two codes, or no directions.
    """
    if count < 2:
        raise UserError(f"{count} codes to start from; give 2 or more")
    if not len(directions):
        raise UserError("an explorer without directions has no sliders; give at least one")
    label = label if label is not None or not generator.label_names else 0
    directions.check_straight("a slider of a page")
    space = generator.space(directions.space)
    units = directions.units_per_sigma(space).tolist()
    directions = calibrate(generator, directions.in_sigma(space), limit_samples=256)
    drawn = generator.sample(count, seed=seed, truncation=truncation, label=label)
    codes = directions.host(generator, drawn)
    steps = torch.stack([directions.unit_step(codes.space, k) for k in range(len(directions))])  # [k, slots, dim]
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder) / "g.onnx"
        export_onnx(generator, network, space=codes.space.name, label=label, truncation=codes.truncation, half=True)
        model = network.read_bytes()
        reader = None if encoder is None else _write_encoder(encoder, generator, directions, Path(folder) / "e.onnx")
    manifest = {
        "format": "eigenlens.explorer/1",
        "name": generator.name,
        "generator": address or generator.name,
        "title": title or generator.name,
        "subtitle": f"{generator.family}, {generator.resolution} px, runs in this page",
        "resolution": generator.resolution,
        "side": min(generator.resolution, 64),
        "slots": codes.space.slots,
        "dim": codes.space.dim,
        "count": count,
        "source": source,
        "codes": {"seed": seed, "truncation": truncation} | ({} if label is None else {"label": label}),
        "directions": _sliders(directions, codes.space, steps, units),
        "encoder": None
        if encoder is None
        else {"side": encoder.network.config.resolution, "channels": encoder.network.config.channels},
    }
    parts = {
        "runtime": _packed(_without_source_map((ASSETS / RUNTIME).read_bytes())),
        "wasm": (ASSETS / WASM).read_bytes(),
        "model": _packed(model),
        "starts": _packed(_floats(codes.latent)),
        "steps": _packed(_floats(_narrowed(steps))),
    }
    parts |= {} if reader is None else {"encoder": _packed(reader)}
    return Explorer(manifest, parts)


class Latents(nn.Module):
    """Images to the latents that directions move: what is exported of an encoder."""

    def __init__(self, encoder: Encoder, generator: Generator, directions: Directions) -> None:
        super().__init__()
        self.network, self.space = encoder.network, encoder.space
        self.generator, self.directions = in_float32(generator), directions

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return latents [batch, slots, dim] of images [batch, channels, resolution, resolution]."""
        codes = Codes(self.space, self.space.colour(self.network(image)))
        hosted = self.directions.host(self.generator, codes)
        return hosted.latent.expand(-1, hosted.space.slots, -1)


def _write_encoder(encoder: Encoder, generator: Generator, directions: Directions, path: Path) -> bytes:
    config = encoder.network.config
    images = generator.render(generator.sample(4, label="random" if generator.label_names else None))
    examples = [{"image": fit_resolution(rows, config.resolution)} for rows in (images[:2], images[2:])]
    module = Latents(encoder, generator, directions)
    about = {"kind": "encoder", "generator": encoder.identity, "space": encoder.space.name}
    return write_onnx(
        module, examples, path, output="latent", about=about, half=True, name="the encoder"
    ).path.read_bytes()


def page_path(path: str | Path, *, force: bool = False) -> Path:
    """Return `path` if a page may be written there: to be asked before the work.

    Raises:
        UserError: for another suffix, and for a file that exists.
    """
    path = refuse_existing(path, force=force)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{path.name} has another suffix; an explorer is a page: .html")
    return path


def export_explorer(explorer: Explorer, path: str | Path, *, force: bool = False) -> Path:
    """Write the page.

    Raises:
        UserError: for another suffix, a file that exists, or a page too large to send to anyone.
    """
    path = page_path(path, force=force)
    page = explorer.page()
    if len(page.encode()) > LARGEST:
        raise UserError(
            f"the page would have {len(page.encode()) / 1e6:.0f} MB, more than {LARGEST / 1e6:.0f}: this generator is "
            "too large for a page; write it with `eigenlens export onnx` and serve it, or open it in the studio"
        )
    return write_text(path, page, force=force)


def _sliders(directions: Directions, space: Space, steps: torch.Tensor, units: Sequence[float]) -> list[dict[str, Any]]:
    """Describe a slider each; `units` is how much of the unit that moves along it are told in one σ is."""
    strongest = float(directions.effect.max())
    rows = []
    for k, row in enumerate(directions.table()):
        low, high = directions.span(k)
        rows.append(
            {
                "name": row["name"],
                "group": _group(space, steps[k]) or directions.provenance.method or "directions",
                "low": round(low, 3),
                "high": round(high, 3),
                "units": units[k],
                "effect": row["effect"],
                "quiet": bool(row["effect"] is not None and row["effect"] < QUIET * strongest),
            }
        )
    return rows


def _group(space: Space, step: torch.Tensor) -> str:
    """Say which parts of a space a step [slots, dim] moves; nothing where it moves all."""
    moved = [part for part in space.parts if step[part.slot, part.start : part.stop].any()]
    if len(moved) == len(space.parts):
        return ""
    return moved[0].name if len(moved) == 1 else f"{moved[0].name} to {moved[-1].name}"


def _narrowed(steps: torch.Tensor) -> torch.Tensor:
    """Return [k, 1, dim] where every direction moves all slots alike."""
    return steps[:, :1] if bool((steps == steps[:, :1]).all()) else steps


def _floats(values: torch.Tensor) -> bytes:
    return values.detach().cpu().numpy().astype("<f4").tobytes()


def _packed(data: bytes) -> bytes:
    return gzip.compress(data, 9, mtime=0)


def _without_source_map(script: bytes) -> bytes:
    """Drop the line that would make a browser's inspector ask for another file."""
    return re.sub(rb"//# sourceMappingURL=\S*\s*$", b"", script)
