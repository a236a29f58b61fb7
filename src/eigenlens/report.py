"""The page of a comparison: every number over its command, charts, heat maps, and a passport for every direction."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from . import images as pictures
from . import runtime
from .algebra import similarity
from .compare import Comparison, address_key
from .directions import Directions, shared_space
from .effect import sample_for, traverse
from .files import write_text
from .generator import Generator
from .grid import Fit, Grid
from .naming import Proposal, propose, purities
from .page import (
    Dot,
    Series,
    asset,
    bars,
    breakable,
    code_block,
    data,
    dot_chart,
    escape,
    heat_map,
    line_chart,
    page,
    scatter_chart,
    table,
)
from .profile import CALIBRATIONS, KERNELS, Calibration, Profile, Strengths
from .sheet import spread
from .verdict import Summary, cell_text, claims, comparison_command, in_words, shown, summarise

STRIP_STEPS = 7
STRIP_PIXELS = 72
"""Most pixels of a strip's picture across."""
STRIP_QUALITY = 60
"""Of a strip's picture: a page holds a hundred of them."""
STRIP_SEED = 1
HEAT_BOUND = 2.0
"""Standard deviations at which a heat map's colour is full."""
SHOWN_PARTS = 6


@dataclass(frozen=True)
class Passport:
    """Everything that is known of one direction."""

    method: str
    """The method that found it."""
    index: int
    """Its place among the method's directions."""
    directions: Directions
    """All directions of the method."""
    file: Path
    """Where they are saved."""
    source: str
    """The generator."""
    strengths: Mapping[Calibration, Strengths]
    """Of all directions of the method."""
    proposal: Proposal
    """Its name, what it changes, and the p-value."""
    strip: str
    """`data:` URL of the picture."""

    grid: Grid
    """What it was measured by."""

    @property
    def commands(self) -> tuple[str, ...]:
        """Return the commands that draw its strip at full size, print its figures, and its name with the p-value."""
        low, high = self.directions.span(self.index)
        name, file, grid = self.directions.names[self.index], str(self.file), self.grid
        strip = [
            "eigenlens", "traverse", self.source, "--directions", file, "--axis", name,
            f"--range={low:.3g}:{high:.3g}", "--seeds", str(STRIP_SEED), "--out", "strip.png",
        ]  # fmt: skip
        names = [
            "eigenlens", "names", file, "--generator", self.source, "--reader", grid.reader,
            "--change", f"{grid.targets['change']:g}", "--n-codes", str(grid.profile_codes), "--null", str(grid.null),
        ]  # fmt: skip
        return tuple(map(shlex.join, (strip, ["eigenlens", "info", file], names)))


@dataclass(frozen=True)
class Found:
    """What one method found on one network, with all that the page shows of it."""

    fit: Fit
    """Which method and network."""
    generator: Generator
    """The network."""
    directions: Directions
    """What was found."""
    profile: Profile
    """What they do."""
    proposals: Sequence[Proposal]
    """Their names."""
    passports: Sequence[Passport]
    """One each."""


def write_report(comparison: Comparison, *, force: bool = True) -> Path:
    """Write `report/index.html` of a comparison whose cells are known: one file that asks nothing of any network.

    Passports and heat maps are of each method's first seed on the first network of each group.
    """
    summaries = summarise(comparison)
    numbers = Numbers()
    sections = [_overview(comparison, summaries)]
    for group in comparison.grid.generators:
        own = [each for each in summaries if each.group == group]
        with runtime.alone():
            found = _found(comparison, group)
        sections += [
            f'<h2 id="{_anchor(group)}">{escape(group)}</h2>',
            _metrics(own, numbers),
            _claims(own),
            _against_strength(found),
            _against_cost(own, found),
            _heat(found),
            _alike(found, numbers),
            _passports(found),
        ]
    body = "".join(sections) + _PANEL + data("numbers", numbers.kept)
    text = page("Which directions are good?", body, script=asset("report.js"), style=asset("report.css"))
    return write_text(comparison.folder / "report" / "index.html", text, force=force)


class Numbers:
    """The numbers of a page that can be asked for their command."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []

    def button(self, summary: Summary) -> str:
        """Return a number as a button that shows what is behind it."""
        self.kept.append(
            {
                "title": f"{summary.method}: {summary.metric}, {summary.calibration}",
                "text": cell_text(summary) if summary.interval else f"{summary.status}: {summary.reason}",
                "points": [float(f"{each:.4g}") for each in summary.points],
                "further": {name: float(f"{each:.4g}") for name, each in summary.further.items()},
                "command": summary.command,
            }
        )
        is_bad = "" if summary.interval else ' class="none"'
        mean, _, more = cell_text(summary).partition(" ")
        small = f"<small>{escape(more)}</small>" if more else ""
        return f"<button{is_bad} data-number={len(self.kept) - 1}>{escape(mean)}{small}</button>"

    def plain(self, text: str, title: str, command: str) -> str:
        """Return a text as a button that shows a command."""
        self.kept.append({"title": title, "text": text, "points": [], "further": {}, "command": command})
        return f"<button data-number={len(self.kept) - 1}>{escape(text)}</button>"


# --- sections ---------------------------------------------------------------------------------------------------------


def _overview(comparison: Comparison, summaries: Sequence[Summary]) -> str:
    known = comparison.results.latest()
    lines = [known[key] for each in comparison.cells() if (key := address_key(each.address(comparison.grid))) in known]
    counts = {status: sum(each["status"] == status for each in lines) for status in ("done", "n/a", "failed")}
    seconds = sum(each.get("cpu_seconds", 0) for each in lines)
    versions = ", ".join(sorted({each["version"] for each in lines if "version" in each}))
    links = " ".join(f'<a href="#{_anchor(each)}">{escape(each)}</a>' for each in comparison.grid.generators)
    targets = comparison.grid.targets
    failed = sorted({f"{e['cell']['method']}: {e['reason']}" for e in lines if e["status"] != "done"})
    reasons = "".join(f"<li>{escape(each)}</li>" for each in failed)
    return f"""<h1>Which directions are good?</h1>
<p>{counts["done"]} numbers, {counts["n/a"]} that do not apply, {counts["failed"]} that failed; {seconds:.0f} CPU
seconds of measuring by eigenlens {escape(versions)}. Touch a number to see the values behind it and the command that
gives it again. On this page: {links}.</p>
{code_block(comparison_command(comparison))}
{f"<details><summary>What is missing, and why</summary><ul>{reasons}</ul></details>" if reasons else ""}
<p>One σ shows little on one direction and much on another, so every metric measures at four strengths:
<b>native</b>, {targets["native"]:g} σ; <b>change</b>, where images have changed by {targets["change"]:g} of the mean
distance between two samples; <b>attribute</b>, where the attribute that a direction moves most has changed by
{targets["attribute"]:g} of its standard deviation; <b>realism</b>, where images have gone {targets["realism"]:g} of the
way to the edge of the generator's own range. A direction that does not get there within its limits is called
dead.</p>"""


def _metrics(summaries: Sequence[Summary], numbers: Numbers) -> str:
    pieces = []
    for metric in dict.fromkeys(each.metric for each in summaries):
        own = [each for each in summaries if each.metric == metric]
        rows: dict[str, dict[str, Any]] = {}
        dots: dict[str, dict[str, Dot]] = {}
        for each in own:
            row = rows.setdefault(each.method, {"method": breakable(each.method), "k": shown(each.k, 0)})
            row[each.calibration] = numbers.button(each)
            if each.interval is not None:
                interval = each.interval
                points = tuple(each.points)
                dots.setdefault(each.method, {})[each.calibration] = Dot(
                    interval.mean, interval.low, interval.high, points
                )
        chances = [each.chance for each in own if math.isfinite(each.chance)]
        chance = float(np.mean(chances)) if chances else math.nan
        note = f'<p class="note">By chance: {shown(chance)}.</p>' if chances else ""
        chart = dot_chart(dots, x_label=metric, reference=chance) if dots else ""
        pieces.append(
            f"<h3>{escape(metric)}</h3><div class=pair><div>{table(list(rows.values()), is_html=True)}{note}</div>"
            f"{chart}</div>"
        )
    return "".join(pieces)


def _claims(summaries: Sequence[Summary]) -> str:
    made = claims(summaries)
    kinds = ("higher", "depends on calibration", "not shown")
    items = "".join(f"<li>{escape(in_words(each))}</li>" for kind in kinds for each in made if each.verdict == kind)
    few = sum(each.verdict.startswith("too few") for each in made)
    note = f"<p>Of {few} pairs nothing is said: they have too few seeds or calibrations.</p>" if few else ""
    return f"<h3>What can be said of order</h3>{f'<ul>{items}</ul>' if items else ''}{note}"


def _against_strength(found: Sequence[Found]) -> str:
    if not found:
        return ""
    purity, cost = [], []
    for each in found:
        x, pure, dear = curves(each.profile)
        purity.append(Series(each.fit.label, x, pure))
        cost.append(Series(each.fit.label, x, dear))
    label = "image change (1: as two samples differ)"
    return f"""<h3>Quality against strength</h3>
<p>How much of all attribute change is in one attribute, and how far images have gone to the edge of the generator's own
range (1: at the edge), as images change more and more. Means over directions, each as far as its nearer limit.</p>
<div class="charts">{line_chart(purity, x_label=label, y_label="purity")}
{line_chart(cost, x_label=label, y_label="way to the edge")}</div>"""


def curves(profile: Profile, *, steps: int = 12) -> tuple[list[float], list[float], list[float]]:
    """Return image change, mean purity and mean way to the edge at it; a change that half the directions reach.

    Returns:
        Three lists: changes, ascending; the largest share that one attribute has in all change, at that change, mean
        over the directions that reach it; and how far images have gone to the edge of the generator's own range.
    """
    changes = [0.05 * 1.25**step for step in range(steps)]
    x, pure, dear = [], [], []
    for change in changes:
        strengths = profile.strengths_at("change", change)
        reached = [k for k in range(len(profile)) if strengths.reached[k]]
        if 2 * len(reached) < len(profile) or not reached:
            break
        shares, ways = [], []
        for k in reached:
            sigma = float(strengths.sigma[k])
            moved = np.abs(profile.moved(k, sigma))
            shares.append(moved.max() / max(moved.sum(), 1e-12))
            ways.append(float(profile.at("cost", k, sigma) + profile.at("cost", k, -sigma)) / 2)
        x.append(change)
        pure.append(float(np.mean(shares)))
        dear.append(float(np.mean(ways)))
    return x, pure, dear


def _against_cost(summaries: Sequence[Summary], found: Sequence[Found]) -> str:
    spent = {
        each.fit.label: float(each.directions.fields["fit_cpu_seconds"][0])
        for each in found
        if "fit_cpu_seconds" in each.directions.fields and not each.fit.is_oracle
    }
    charts = []
    for metric in dict.fromkeys(each.metric for each in summaries):
        at = next((name for name in ("change", "any", "native") if _has(summaries, metric, name)), None)
        points = [
            (each.method, max(spent[each.method], 1e-3), each.interval.mean)
            for each in summaries
            if each.metric == metric and each.calibration == at and each.interval and each.method in spent
        ]
        if points:
            drawn = scatter_chart(
                points,
                x_label="CPU seconds to find the directions",
                y_label="value" if at == "any" else f"value at {at}",
            )
            charts.append(f"<figure class=small><figcaption>{escape(metric)}</figcaption>{drawn}</figure>")
    return f'<h3>Quality against cost</h3><div class="charts">{"".join(charts)}</div>' if charts else ""


def _has(summaries: Sequence[Summary], metric: str, calibration: str) -> bool:
    return any(e.metric == metric and e.calibration == calibration and e.interval for e in summaries)


def _heat(found: Sequence[Found]) -> str:
    pieces = []
    for each in found:
        strengths = each.profile.strengths_at("change")
        values = [each.profile.moved(k, float(strengths.sigma[k])).tolist() for k in range(len(each.profile))]
        drawn = heat_map(each.profile.names, each.profile.attributes, values, bound=HEAT_BOUND)
        pieces.append(f"<details open><summary>{escape(each.fit.label)}</summary>{drawn}</details>")
    if not pieces:
        return ""
    return f"""<h3>Attributes and directions</h3>
<p>How much each attribute changes from one side to the other, at equal change of images, in its standard deviations
among samples. Orange: up; blue: down; full colour from {HEAT_BOUND:g} on.</p>
<div class="maps">{"".join(pieces)}</div>"""


def _alike(found: Sequence[Found], numbers: Numbers) -> str:
    straight = [each for each in found if each.directions.is_straight and not each.fit.is_oracle]
    spaces = [each.directions.space for each in straight]
    kept = [each for each in straight if each.directions.space == spaces[0]]
    if len(kept) < 2:
        return ""
    space = shared_space(kept[0].generator, [each.directions for each in kept])
    rows = []
    for a in kept:
        row: dict[str, Any] = {"": escape(a.fit.label)}
        for b in kept:
            if a is b:
                row[b.fit.label] = "1"
                continue
            result = similarity(a.directions, b.directions, space=space)
            files = [str(each.passports[0].file) for each in (a, b)]
            command = shlex.join(["eigenlens", "similarity", *files, "--generator", a.fit.source])
            text = f"{result.mean:.2f} ({result.null:.2f})"
            row[b.fit.label] = numbers.plain(text, f"{a.fit.label} and {b.fit.label}", command)
        rows.append(row)
    return f"""<h3>How alike are the methods?</h3>
<p>Mean |cos| of the best matching of their vectors; in brackets what random directions give.</p>
{table(rows, is_html=True)}"""


def _passports(found: Sequence[Found]) -> str:
    pieces = []
    for each in found:
        cards = "".join(_card(passport) for passport in each.passports)
        named = sum(passport.proposal.is_named for passport in each.passports)
        about = f"{len(each.passports)} directions" + (f", {named} named" if named else "")
        pieces.append(
            f"<details{' open' if each is found[0] else ''}><summary>{escape(each.fit.label)} <span class=note>{about}"
            f"</span></summary><div class=cards>{cards}</div></details>"
        )
    return f"<h3>Passports</h3>{''.join(pieces)}" if pieces else ""


def _card(passport: Passport) -> str:
    directions, k, proposal = passport.directions, passport.index, passport.proposal
    low, high = directions.limits[k].tolist()
    row = directions.table()[k]
    figures = [
        ("σ", shown(float(directions.sigma[k]))),
        ("limits", f"{low:+.2g} … {high:+.2g} σ" if math.isfinite(low) else "changes nothing"),
        ("effect", f"{shown(row['effect'])} per σ"),
        _reproducibility(directions, k),
        ("purity", shown(next((part.share for part in proposal.parts if part.is_sure), None), 2)),
        ("side effects", f"{sum(abs(part.change) for part in proposal.parts[1:]):.2f} SD"),
        ("p against random", shown(proposal.p)),
    ]
    for name, strengths in passport.strengths.items():
        if name != "native":
            text = f"{float(strengths.sigma[k]):.2f} σ" if strengths.reached[k] else "dead"
            figures.append((f"equal {name}", text))
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)
    parts = [part for part in proposal.parts[:SHOWN_PARTS] if abs(part.change) > 0.05]
    changes = bars([(part.attribute, part.change) for part in parts], bound=HEAT_BOUND) if parts else ""
    title = directions.names[k] + (f" → {proposal.name}" if proposal.is_named else "")
    return f"""<article><h4>{escape(title)}</h4>
<img src="{passport.strip}" alt="strip of {escape(directions.names[k])} across its limits" loading="lazy">
<p class="note">{escape(proposal.evidence)}</p><dl>{listed}</dl>{changes}
<details><summary>commands</summary>{"".join(map(code_block, passport.commands))}</details></article>"""


def _reproducibility(directions: Directions, which: int) -> tuple[str, str]:
    """Return how far a direction can be trusted, under the name of the figure that its method has."""
    for name, figure in (("split half", directions.split_half), ("agreement", directions.agreement)):
        if math.isfinite(float(figure[which])):
            return name, shown(float(figure[which]))
    return "split half", "-"


# --- gathering --------------------------------------------------------------------------------------------------------


def _found(comparison: Comparison, group: str) -> list[Found]:
    """Return what each method found with the first seed on the first network of a group; what failed is left out."""
    grid = comparison.grid
    first = grid.generators[group][0]
    gathered = []
    for fit in grid.fits():
        if fit.group != group or fit.seed != grid.seeds[0] or (fit.source != first and not fit.is_oracle):
            continue
        try:
            generator, directions, profile = comparison.found(fit)
        except Exception:
            continue
        null = [] if fit.is_oracle else null_purities(comparison, fit.source, directions.space)
        measured: tuple[Calibration, ...] = (*CALIBRATIONS, *(name for name in KERNELS if name in profile.kernels))
        strengths = {name: profile.strengths_at(name, grid.targets[name]) for name in measured}
        proposals = propose(directions, profile, strengths["change"], null=null)
        file = comparison.directions_file(fit)
        strips = [_strip(generator, directions, k) for k in range(len(directions))]
        passports = [
            Passport(fit.label, k, directions, file, fit.source, strengths, proposals[k], strips[k], grid)
            for k in range(len(directions))
        ]
        gathered.append(Found(fit, generator, directions, profile, proposals, passports))
    return gathered


def null_purities(comparison: Comparison, source: str, space: str) -> list[float]:
    """Return `purities` of the random directions that p-values are counted against; none where null is 0."""
    profile = comparison.null(source, space)
    if profile is None:
        return []
    return purities(profile, profile.strengths_at("change", comparison.grid.targets["change"]))


def _strip(generator: Generator, directions: Directions, which: int) -> str:
    """Return a strip of one face across the limits of a direction, as a `data:` URL."""
    codes = sample_for(generator, directions, 1, seed=STRIP_SEED)
    images = traverse(generator, codes, directions, which, spread(directions, which, STRIP_STEPS))[0]
    if images.shape[-1] > STRIP_PIXELS:
        images = F.interpolate(images, size=(STRIP_PIXELS, STRIP_PIXELS), mode="area")
    row = torch.cat(list(images.expand(-1, 3, -1, -1)), dim=2)  # [3, height, steps * width]
    return pictures.data_url(pictures.to_pil(row), "webp", quality=STRIP_QUALITY)


def _anchor(name: str) -> str:
    return re.sub(r"[^\w-]+", "-", name)


_PANEL = """<dialog id="panel"><form method="dialog"><h3></h3><p></p><p class="note"></p><code></code>
<button class="plain" type="button" id="copy">copy the command</button>
<button class="plain">close</button></form></dialog>"""
