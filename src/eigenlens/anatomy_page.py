"""The page of `eigenlens anatomy`: sheets, importances, hierarchy, true axes and stability of one's own EigenGAN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from . import images as pictures
from .anatomy import BASES, FAINT, FOUND, SILENT, Anatomy, Stability, spearman_within
from .directions import Directions
from .effect import sample_for, traverse
from .files import write_text
from .generator import Generator
from .page import asset, code_block, escape, heat_map, page, table

STEPS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
"""σ of a strip."""
STRIP_PIXELS = 64
"""Most pixels of a strip's picture across."""
STRIP_QUALITY = 70
STRIP_SEED = 1
STRIP_TRUNCATION = 0.7
HEAT_BOUND = 2.0
"""Standard deviations at which a heat map's colour is full."""


def write_page(
    anatomies: Sequence[Anatomy], path: str | Path, *, command: str, stability: Stability | None, force: bool = False
) -> Path:
    """Write the page of one EigenGAN, the first, and of its stability over the others: one file, nothing from outside.

    Args:
        anatomies: one or more.
        path: of the page.
        command: that makes it again.
        stability: of all of them; None where there is only one.
        force: replace a page that exists.
    """
    first = anatomies[0]
    body = "".join(
        [
            _overview(first, command, stability),
            _sheets(first),
            _importances(first),
            _hierarchy(first),
            _true_axes(first),
            _stability(stability),
        ]
    )
    title = f"Anatomy of {first.generator.name}"
    return write_text(path, page(title, body, style=asset("report.css") + asset("anatomy.css")), force=force)


# --- sections ---------------------------------------------------------------------------------------------------------


def _overview(anatomy: Anatomy, command: str, stability: Stability | None) -> str:
    g = anatomy.generator
    sizes = {layer.name: layer.resolution for layer in g.layers}
    links = [("sheets", "what each axis does"), ("importance", "importances"), ("hierarchy", "hierarchy")]
    links += [("true", "true axes")] + ([("stability", "stability")] if stability else [])
    listed = " · ".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in links)
    layers = ", ".join(f"{name} (to {sizes[name]} px, {len(anatomy.rows(name))} axes)" for name in anatomy.names)
    warnings = "".join(f'<p class="warning">{escape(each)}</p>' for each in warnings_of(anatomy))
    return f"""<h1>Anatomy of {escape(g.name)}</h1>
<p>An EigenGAN of {g.resolution} px. Layers with axes, deepest first: {escape(layers)}.</p>
{warnings}<p>{listed}</p>{code_block(command)}"""


def warnings_of(anatomy: Anatomy) -> list[str]:
    """Return what is wrong with layers, in words."""
    found = []
    for layer in anatomy.names:
        share = anatomy.strength_of(layer)
        if share < SILENT:
            found.append(
                f"{layer} has collapsed: its strongest axis does {100 * share:.2g} % of what the strongest of all "
                "does. Train with --effect-floor 0.15 to keep every layer alive."
            )
        elif share < FAINT:
            found.append(f"{layer} is faint: its strongest axis does {100 * share:.2g} % of the strongest of all.")
    return found


def _sheets(anatomy: Anatomy) -> str:
    stored = anatomy.stored
    pieces = []
    for layer in anatomy.names:
        rows = anatomy.rows(layer)
        items = "".join(_strip_item(anatomy.generator, stored, k, _caption(anatomy, k)) for k in rows)
        pieces.append(f"<h3>{escape(layer)}</h3><ul class=strips>{items}</ul>")
    return f"""<h2 id="sheets">What each axis does</h2>
<p>One sample with each stored axis set to {STEPS[0]:+g} … {STEPS[-1]:+g} σ; the number is the effect per σ (RMS of
pixels in [-1, 1]).</p>{"".join(pieces)}"""


def _caption(anatomy: Anatomy, k: int) -> str:
    main = f", {anatomy.main[k]}" if anatomy.main[k] else ""
    return f"{escape(anatomy.stored.names[k])} <small>{float(anatomy.stored.effect[k]):.3f}{escape(main)}</small>"


def _strip_item(generator: Generator, directions: Directions, which: int, caption: str) -> str:
    alt = f"{escape(directions.names[which])} from {STEPS[0]:+g} to {STEPS[-1]:+g} σ"
    url = strip(generator, directions, which)
    return f'<li><span>{caption}</span><img src="{url}" alt="{alt}"></li>'


def strip(generator: Generator, directions: Directions, which: int) -> str:
    """Return one sample with an axis set to each of `STEPS`, as a `data:` URL."""
    codes = sample_for(generator, directions, 1, seed=STRIP_SEED, truncation=STRIP_TRUNCATION)
    tiles = traverse(generator, codes, directions, which, STEPS, absolute=True)[0]
    if tiles.shape[-1] > STRIP_PIXELS:
        tiles = F.interpolate(tiles, size=(STRIP_PIXELS, STRIP_PIXELS), mode="area")
    row = torch.cat(list(tiles.expand(-1, 3, -1, -1)), dim=2)  # [3, height, steps * width]
    return pictures.data_url(pictures.to_pil(row), "webp", quality=STRIP_QUALITY)


def _importances(anatomy: Anatomy) -> str:
    stored = anatomy.stored
    figures = {
        "share of |L|·‖u‖": stored.importance,
        "that share at the start": stored.fields["importance_at_init"],
        "share of effect": stored.fields["effect_share"],
    }
    rows = []
    for k, name in enumerate(stored.names):
        row = {"axis": escape(name)}
        row |= {title: _bar(float(values[k]), float(values.max())) for title, values in figures.items()}
        row["effect per σ"] = f"{float(stored.effect[k]):.4f}"
        rows.append(row)
    pairs = {
        "|L| and effect": (stored.importance, stored.effect),
        "|L| at the start and effect": (stored.fields["importance_at_init"], stored.effect),
        "|L| and |L| at the start": (stored.importance, stored.fields["importance_at_init"]),
    }
    told = "; ".join(
        f"{escape(what)} {_number(spearman_within(a, b, anatomy.layers))}" for what, (a, b) in pairs.items()
    )
    return f"""<h2 id="importance">Importances</h2>
<p>Shares within each layer. |L| seldom leaves its initial value, so that it agrees with the effect where the start
decided what each axis became. Rank correlations within layers, mean: {told} (- where a figure does not vary).</p>
{table(rows, is_html=True)}"""


def _bar(share: float, largest: float) -> str:
    return f'<span class="share"><i style="width:{4 * share / max(largest, 1e-12):.2f}rem"></i>{share:.2f}</span>'


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _hierarchy(anatomy: Anatomy) -> str:
    effect = anatomy.stored.effect
    rows: list[dict[str, Any]] = []
    for layer in anatomy.names:
        own = anatomy.rows(layer)
        held = {anatomy.main[k]: max(float(anatomy.moved[j].max()) for j in own if anatomy.main[j] == anatomy.main[k])
                for k in own if anatomy.main[k]}  # fmt: skip
        names = [name for name, size in sorted(held.items(), key=lambda item: -item[1]) if size >= FOUND]
        rows.append(
            {
                "layer": layer,
                "share of effect": f"{float(effect[own].sum() / effect.sum().clamp(min=1e-12)):.2f}",
                "turning, degrees per σ": _number(float(anatomy.turning[own].nanmean())),
                "holds": ", ".join(str(each) for each in names) or "nothing that is read",
            }
        )
    drawn = heat_map(anatomy.stored.names, anatomy.factors, anatomy.moved.tolist(), bound=HEAT_BOUND)
    return f"""<h2 id="hierarchy">Hierarchy</h2>
<p>What the layers hold, as the reader “{escape(anatomy.reader)}” tells it: a layer holds what one of its axes changes
by {FOUND:g} standard deviations or more, and more than anything else, on the way from the middle to 2 σ. Turning is how
much the path of images bends: a colour that fades is nearly straight, a shape that moves is not.</p>
{table(rows)}
<p>How much each axis changes each factor, in standard deviations among samples; full colour from {HEAT_BOUND:g} on.</p>
{drawn}"""


def _true_axes(anatomy: Anatomy) -> str:
    rows = []
    for layer in anatomy.names:
        row: dict[str, Any] = {"layer": layer}
        for i, a in enumerate(BASES):
            for b in BASES[i + 1 :]:
                row[f"{a} and {b}"] = f"{anatomy.agreement(a, b, layer):.2f}"
        row["by chance"] = f"{anatomy.chance(layer):.2f}"
        rows.append(row)
    image = anatomy.bases["image"]
    pieces = []
    for layer in anatomy.names:
        own = anatomy.rows(layer)
        cosines = (anatomy.stored.vectors[own, 0] @ image.vectors[own, 0].T).tolist()
        drawn = heat_map([anatomy.stored.names[k] for k in own], [image.names[k] for k in own], cosines, bound=1.0)
        items = "".join(
            _strip_item(
                anatomy.generator,
                image,
                k,
                f"{escape(image.names[k])} <small>{float(image.fields['singular_value'][k]):.3f}</small>",
            )
            for k in own
        )
        pieces.append(
            f"<details><summary>{escape(layer)}</summary><div class=pair>{drawn}<ul class=strips>{items}</ul></div>"
            "</details>"
        )
    return f"""<h2 id="true">True axes</h2>
<p>Since convolutions follow a subspace, U and L are not identifiable alone. <b>injected</b> are the singular vectors
of all that z adds to the features; <b>image</b> those of what z does to the image (the mean of JᵀJ over codes), ranked
by the change per σ. Mean |cos| of the best matching within each layer:</p>
{table(rows)}
<p>The axes of <b>image</b>, and how they are made of the stored ones (orange +, blue −):</p>{"".join(pieces)}"""


def _stability(stability: Stability | None) -> str:
    if stability is None:
        return ""
    runs = stability.names
    rows = []
    for i, name in enumerate(runs):
        row: dict[str, Any] = {"": escape(name)}
        for j in range(len(runs)):
            pair = f"{float(stability.matched[i, j]):.2f} ({float(stability.null[i, j]):.2f})"
            row[str(j)] = "" if i == j else pair
        rows.append(row)
    counts = [
        {"factor": name, "runs that found it": f"{count} of {len(runs)}"}
        for name, count in sorted(stability.found.items(), key=lambda item: -item[1])
    ]
    return f"""<h2 id="stability">Stability</h2>
<p>Axes of each pair of runs, matched by |cos| of the mean change of images along them: {stability.mean:.2f}; with the
axes of one run turned at random within their layers: {stability.null_mean:.2f}. What is above that is owed to the axes
themselves. In brackets the same for each pair.</p>{table(rows, is_html=True)}
<p>Factors that an axis changes more than any other, by {FOUND:g} standard deviations or more:</p>{table(counts)}"""
