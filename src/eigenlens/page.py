"""Pages that need no other file: their frame, tables, and small charts drawn as SVG.

Everything is inline, nothing is asked of a network, and colours follow the reader's light or dark setting. Charts are
380 px wide, so that they are readable on a phone at their own size.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH = 380
"""Pixels of a chart across."""
COLOURS = 8
"""Colours that the style sheet holds; further series take them again with another dash."""
_DASHES = ("", "5 3", "2 2")
_SHAPES = ("circle", "square", "diamond", "triangle")


def escape(text: object) -> str:
    """Return a text as it stands in HTML, between tags and in attributes."""
    return html.escape(str(text))


def page(title: str, body: str, *, script: str = "", style: str = "") -> str:
    """Return a whole HTML page."""
    return _PAGE.format(title=escape(title), style=asset("page.css") + style, body=body, script=_scripted(script))


def asset(name: str) -> str:
    """Return the text of a style sheet or a script that pages carry inside them."""
    return (Path(__file__).parent / "assets" / "page" / name).read_text("utf-8")


def _scripted(script: str) -> str:
    return f"<script>{script}</script>" if script else ""


def data(name: str, value: Any) -> str:
    """Return a script element that keeps plain data; in the page, `JSON.parse` of its text gives it back."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f'<script type="application/json" id="{escape(name)}">{text.replace("<", chr(92) + "u003c")}</script>'


def code_block(text: str) -> str:
    """Return a command as a block of code."""
    return f"<code>{escape(text)}</code>"


def table(rows: Sequence[Mapping[str, Any]], *, is_html: bool = False) -> str:
    """Return a table of rows with the same keys; it scrolls by itself where it is wider than the page.

    Args:
        rows: column -> cell; None shows as a dash.
        is_html: whether cells are HTML already; headings are texts either way.
    """
    shown = (lambda cell: str(cell)) if is_html else escape
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{'-' if cell is None else shown(cell)}</td>" for cell in row.values()) + "</tr>"
        for row in rows
    )
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


# --- charts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    """What the legend calls it."""
    x: Sequence[float]
    """Ascending."""
    y: Sequence[float]
    """One each; what is not finite is left out."""


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers within [low, high], at most `most` of them.

    Example:
        >>> ticks(0.0, 1.0)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        >>> ticks(0.0, 47.0, most=4)
        [0.0, 20.0, 40.0]
    """
    span = max(high - low, 1e-12)
    size = 10.0 ** math.floor(math.log10(span / most))
    step = next(size * each for each in (1, 2, 5, 10, 20) if span / (size * each) <= most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(each * step, 12) for each in range(first, last + 1)]


@dataclass(frozen=True)
class _Frame:
    """Where numbers lie in a chart."""

    x: tuple[float, float]
    y: tuple[float, float]
    height: int
    is_log: bool = False
    left: int = 40
    top: int = 10
    right: int = 10
    bottom: int = 36

    def across(self, value: float) -> float:
        low, high = (math.log(end) for end in self.x) if self.is_log else self.x
        value = math.log(value) if self.is_log else value
        return self.left + (value - low) / max(high - low, 1e-12) * (WIDTH - self.left - self.right)

    def down(self, value: float) -> float:
        low, high = self.y
        return (
            self.height - self.bottom - (value - low) / max(high - low, 1e-12) * (self.height - self.top - self.bottom)
        )

    def axes(self, x_label: str, y_label: str) -> str:
        """Draw the grid, the numbers and the names of the axes."""
        base, pieces = self.height - self.bottom, []
        for value in _log_ticks(*self.x) if self.is_log else ticks(*self.x):
            place = self.across(value)
            pieces.append(f'<path class="grid" d="M{place:.1f} {self.top}V{base}"/>')
            pieces.append(f'<text x="{place:.1f}" y="{base + 14}" text-anchor="middle">{value:g}</text>')
        for value in ticks(*self.y):
            place = self.down(value)
            pieces.append(f'<path class="grid" d="M{self.left} {place:.1f}H{WIDTH - self.right}"/>')
            pieces.append(f'<text x="{self.left - 5}" y="{place + 4:.1f}" text-anchor="end">{value:g}</text>')
        middle = (self.left + WIDTH - self.right) / 2
        pieces.append(f'<text x="{middle}" y="{self.height - 5}" text-anchor="middle">{escape(x_label)}</text>')
        if y_label:
            height = (self.top + base) / 2
            pieces.append(
                f'<text transform="translate(10 {height}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
            )
        return "".join(pieces)


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [each * 10.0**power for power in powers for each in (1, 2, 5)]
    inside = [round(each, 12) for each in fine if low <= each <= high]
    coarse = [each for each in inside if round(math.log10(each), 9).is_integer()]
    return coarse if len(coarse) >= 3 else inside[:: max(1, len(inside) // 5)]


def _padded(values: Sequence[float], *, is_log: bool = False, floor: float | None = None) -> tuple[float, float]:
    """Return the ends of an axis that hold all values."""
    finite = [each for each in values if math.isfinite(each)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if is_log:
        low, high = max(low, 1e-9), max(high, 1e-9)
        return low / 1.3, high * 1.3
    low = low if floor is None else min(low, floor)
    room = 0.05 * (high - low) or max(abs(high) * 0.1, 0.05)
    return (low if floor is not None and low == floor else low - room), high + room


def _svg(content: str, height: int, label: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="{escape(label)}">{content}</svg>'
    )


def _legend(names: Sequence[str], shapes: bool = False) -> str:
    items = "".join(
        f'<li><svg width="22" height="12" aria-hidden="true">{_mark(11, 6, i, shapes, 4)}</svg>{escape(name)}</li>'
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def _mark(x: float, y: float, index: int, is_shape: bool, size: float) -> str:
    colour = f"var(--c{index % COLOURS})"
    if not is_shape:
        dash = _DASHES[(index // COLOURS) % len(_DASHES)]
        return f'<path d="M0 {y}H22" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"/>'
    shape = _SHAPES[index % len(_SHAPES)]
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"/>'
    outline = {
        "square": f"M{x - size:.1f} {y - size:.1f}h{2 * size}v{2 * size}h{-2 * size}z",
        "diamond": f"M{x:.1f} {y - 1.3 * size:.1f}l{1.3 * size} {1.3 * size}l{-1.3 * size} {1.3 * size}"
        f"l{-1.3 * size} {-1.3 * size}z",
        "triangle": f"M{x:.1f} {y - 1.2 * size:.1f}l{1.2 * size} {2.2 * size}h{-2.4 * size}z",
    }[shape]
    return f'<path d="{outline}" fill="{colour}"/>'


def line_chart(
    series: Sequence[Series], *, x_label: str, y_label: str, height: int = 250, y_floor: float | None = 0.0
) -> str:
    """Draw lines over a common x, with a legend below."""
    pairs = [
        (i, each, [(x, y) for x, y in zip(each.x, each.y, strict=True) if math.isfinite(x) and math.isfinite(y)])
        for i, each in enumerate(series)
    ]
    xs = [x for *_, points in pairs for x, _ in points]
    ys = [y for *_, points in pairs for _, y in points]
    frame = _Frame(_padded(xs, floor=min(xs, default=0.0)), _padded(ys, floor=y_floor), height)
    lines = "".join(
        f'<path class="line" stroke="var(--c{i % COLOURS})" stroke-dasharray="{_DASHES[i // COLOURS % len(_DASHES)]}" '
        f'd="M{"L".join(f"{frame.across(x):.1f} {frame.down(y):.1f}" for x, y in points)}">'
        f"<title>{escape(each.name)}</title></path>"
        for i, each, points in pairs
        if points
    )
    drawn = _svg(frame.axes(x_label, y_label) + lines, height, f"{y_label} against {x_label}")
    return f'<div class="plot">{drawn}{_legend([each.name for each in series])}</div>'


def scatter_chart(points: Sequence[tuple[str, float, float]], *, x_label: str, y_label: str, height: int = 250) -> str:
    """Draw points (name, x above 0, y) over a logarithmic x, with a legend below."""
    kept = [each for each in points if all(map(math.isfinite, each[1:])) and each[1] > 0]
    if not kept:
        return '<p class="note">There is nothing to draw yet.</p>'
    frame = _Frame(
        _padded([x for _, x, _ in kept], is_log=True), _padded([y for *_, y in kept], floor=0.0), height, is_log=True
    )
    marks = "".join(
        f"<g>{_mark(frame.across(x), frame.down(y), i, True, 4)}<title>{escape(name)} {y:.3g}</title></g>"
        for i, (name, x, y) in enumerate(kept)
    )
    drawn = _svg(frame.axes(x_label, y_label) + marks, height, f"{y_label} against {x_label}")
    return f'<div class="plot">{drawn}{_legend([name for name, *_ in kept], shapes=True)}</div>'


@dataclass(frozen=True)
class Dot:
    """A number with its interval and the values behind it."""

    value: float
    """The mean."""
    low: float = math.nan
    """Lower end of its interval; NaN where there is none."""
    high: float = math.nan
    """Upper end."""
    points: tuple[float, ...] = ()
    """The values behind it."""


def dot_chart(rows: Mapping[str, Mapping[str, Dot]], *, x_label: str, reference: float = math.nan) -> str:
    """Draw, under the name of each row, a dot with its interval and points for each of its kinds.

    Args:
        rows: row -> kind -> dot.
        x_label: name of the axis.
        reference: drawn as a line down the chart, such as what chance gives.
    """
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    step, head = 11, 15
    tall = head + step * max(len(kinds), 1)
    height = 10 + tall * len(rows) + 36
    numbers = [n for row in rows.values() for d in row.values() for n in (d.value, d.low, d.high, *d.points)]
    frame = _Frame(_padded([*numbers, reference], floor=0.0), (0, 1), height, left=12)
    base = height - frame.bottom
    pieces = []
    for value in ticks(*frame.x):
        place = frame.across(value)
        pieces.append(f'<path class="grid" d="M{place:.1f} 8V{base}"/>')
        pieces.append(f'<text x="{place:.1f}" y="{base + 14}" text-anchor="middle">{value:g}</text>')
    pieces.append(f'<text x="{WIDTH / 2}" y="{height - 5}" text-anchor="middle">{escape(x_label)}</text>')
    if math.isfinite(reference):
        pieces.append(f'<path class="reference" d="M{frame.across(reference):.1f} 8V{base}"/>')
    for number, (name, row) in enumerate(rows.items()):
        top = 10 + tall * number
        pieces.append(f'<text x="{frame.left}" y="{top + 10}" class="strong">{escape(name)}</text>')
        for place, kind in enumerate(kinds):
            if kind in row:
                pieces.append(_dot(row[kind], frame, top + head + step * place + 4, place))
    return f'<div class="plot">{_svg("".join(pieces), height, x_label)}{_legend(kinds, shapes=True)}</div>'


def _dot(dot: Dot, frame: _Frame, y: float, index: int) -> str:
    pieces = []
    if math.isfinite(dot.low) and math.isfinite(dot.high):
        pieces.append(
            f'<path stroke="var(--c{index % COLOURS})" stroke-width="2" '
            f'd="M{frame.across(dot.low):.1f} {y}H{frame.across(dot.high):.1f}"/>'
        )
    if len(dot.points) > 1:
        pieces += [f'<circle class="point" cx="{frame.across(each):.1f}" cy="{y}" r="2"/>' for each in dot.points]
    if math.isfinite(dot.value):
        pieces.append(_mark(frame.across(dot.value), y, index, True, 3.5))
    return "".join(pieces)


def heat_map(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], *, bound: float) -> str:
    """Draw a matrix as coloured cells: orange above 0, blue below, in full colour from ±`bound` on.

    Args:
        rows, columns: their names.
        values: [rows][columns]; what is not finite stays blank.
        bound: above 0; what is below a fiftieth of it stays plain.
    """
    head = "".join(f"<th><span>{escape(name)}</span></th>" for name in columns)
    body = "".join(
        f"<tr><th>{escape(row)}</th>"
        + "".join(_heat_cell(value, bound, f"{row} {column} {value:+.2f}") for column, value in cells)
        + "</tr>"
        for row, cells in ((name, zip(columns, line, strict=True)) for name, line in zip(rows, values, strict=True))
    )
    drawn = f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="table"><table class="heat">{drawn}</table></div>'


def _heat_cell(value: float, bound: float, tip: str) -> str:
    if not abs(value) >= bound / 50:  # true for NaN
        return "<td></td>"
    share = round(100 * min(1.0, abs(value) / bound))
    side = "up" if value > 0 else "down"
    return f'<td class="{side}" style="--s:{share}%" title="{escape(tip)}"></td>'


def breakable(label: str) -> str:
    """Return a label as HTML whose lines may break after brackets, commas, equals signs and underscores, and where a
    small letter meets a capital.

    Example:
        >>> breakable("hair_style=longWavy")
        'hair_<wbr>style=<wbr>long<wbr>Wavy'
    """
    return re.sub(r"([(,=_]|[a-z](?=[A-Z]))", r"\1<wbr>", escape(label))


def bars(parts: Sequence[tuple[str, float]], *, bound: float) -> str:
    """Draw signed amounts as bars to the right and left of a middle line."""
    rows = []
    for name, value in parts:
        width = round(50 * min(1.0, abs(value) / bound), 1)
        side = "up" if value > 0 else "down"
        bar = f'<i class="{side}" style="width:{width}%"></i>'
        rows.append(f"<li><span>{breakable(name)}</span><b>{bar}</b><em>{value:+.2f}</em></li>")
    return f'<ul class="bars">{"".join(rows)}</ul>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style></head><body>
{body}
{script}
</body></html>
"""
