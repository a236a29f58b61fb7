"""What a comparison says: summaries of its cells, claims of order where they hold, and tables of all of it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from .compare import Comparison, address_key
from .files import write_text
from .grid import ORACLE, Cell, Grid
from .inference import Interval, crossed_bootstrap
from .profile import CALIBRATIONS

MIN_REPLICATES = 5
"""Networks, or else method seeds, below which no claim of order is made: with fewer, all of them fall on one side by
chance more often than one time in sixteen. Those that give the same numbers again, as a method does that has no use for
a seed, count once."""


# --- summaries --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Summary:
    """What is known of one method by one metric at one calibration, over all seeds."""

    group: str
    """Name of the generator in the grid."""
    method: str
    """The method's label."""
    metric: str
    """The metric's label."""
    calibration: str
    """At which strengths; `any` for a metric that no strength enters."""
    values: np.ndarray
    """[networks, method seeds, code seeds], NaN where there is none; one method seed where all give the same."""
    interval: Interval | None
    """Mean and interval; None where there is no number."""
    dead: float
    """Directions that do not reach the calibrated change, mean over seeds."""
    k: float
    """Directions judged, mean over seeds."""
    chance: float
    """What chance gives, where the metric says so; else NaN."""
    status: str
    """`done`, `n/a`, `failed`, or `missing`."""
    reason: str
    """Why there is no number."""
    command: str
    """What gives the first of the values again."""
    further: Mapping[str, float]
    """Further figures of the metric, mean over seeds."""

    @property
    def points(self) -> list[float]:
        """Every value that there is."""
        return [float(each) for each in self.values.flat if math.isfinite(each)]


def summarise(comparison: Comparison) -> list[Summary]:
    """Gather the cells of a grid: one summary for each generator, method, metric and calibration, in that order."""
    grid, known = comparison.grid, comparison.results.latest()
    cells: dict[tuple[str, str, str, str], list[tuple[tuple[int, int, int], Cell]]] = {}
    for cell in comparison.cells():
        fit = cell.fit
        place = (
            0 if fit.is_oracle else grid.generators[fit.group].index(fit.source),
            grid.seeds.index(fit.seed),
            grid.code_seeds.index(cell.seed),
        )
        where = (fit.group, fit.label, str(cell.metric), "any" if cell.is_free else cell.calibration)
        cells.setdefault(where, []).append((place, cell))
    return [_summary(where, group, grid, known, comparison.folder) for where, group in cells.items()]


def _summary(
    where: tuple[str, str, str, str],
    cells: Sequence[tuple[tuple[int, int, int], Cell]],
    grid: Grid,
    known: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> Summary:
    values = np.full((len(grid.generators[where[0]]), len(grid.seeds), len(grid.code_seeds)), math.nan)
    lines = [(place, known.get(address_key(cell.address(grid)))) for place, cell in cells]
    commands = {place: cell.command(grid, folder) for place, cell in cells}
    done = [(place, line) for place, line in lines if line is not None and line["status"] == "done"]
    for place, line in done:
        values[place] = line["value"]
    values = _once(values)
    others = [line for _, line in lines if line is not None and line["status"] != "done"]
    first = done[0][1] if done else (others[0] if others else {})
    mean = lambda numbers: float(np.mean(numbers)) if numbers else math.nan  # noqa: E731
    further: dict[str, list[float]] = {}
    for _, line in done:
        for name, value in further_figures(line).items():
            further.setdefault(name, []).append(value)
    return Summary(
        *where,
        values,
        crossed_bootstrap(values) if done else None,
        mean([line["dead"] for _, line in done]),
        mean([line["directions"]["k"] for _, line in done]),
        mean([chance for _, line in done if math.isfinite(chance := chance_of(line))]),
        "done" if done else first.get("status", "missing"),
        first.get("reason", "" if done else "not computed yet"),
        commands[done[0][0] if done else cells[0][0]],
        {name: mean(numbers) for name, numbers in further.items()},
    )


def _once(values: np.ndarray) -> np.ndarray:
    """Return [networks, 1, codes] of [networks, method seeds, codes] where every method seed gave the same number."""
    is_known = np.isfinite(values)
    first = np.take_along_axis(values, is_known.argmax(1)[:, None], axis=1)
    return first if (~is_known | (np.abs(values - first) <= 1e-9)).all() else values


def chance_of(line: Mapping[str, Any]) -> float:
    """Return what chance gives by a score's own account: its `chance` or `null`; NaN where it has none."""
    told = [line["details"].get(name) for name in ("chance", "null")]
    return next((float(each) for each in told if _is_number(each)), math.nan)


def further_figures(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among the details of a score: those that stand alone, and means of one a direction."""
    figures, k = {}, line["directions"]["k"]
    for name, value in line["details"].items():
        if _is_number(value):
            figures[name] = float(value)
        elif isinstance(value, list) and len(value) == k and all(each is None or _is_number(each) for each in value):
            finite = [each for each in value if each is not None]
            if finite:
                figures[f"mean {name}"] = float(np.mean(finite))
        elif isinstance(value, Mapping) and value and all(_is_number(each) for each in value.values()):
            last = list(value)[-1]
            figures[f"{name} {last}"] = float(value[last])
    return figures


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# --- claims of order --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What the comparison says of the order of two methods by one metric."""

    group: str
    """Name of the generator in the grid."""
    metric: str
    """The metric's label."""
    first: str
    """The method with the higher values, where the order holds."""
    second: str
    """The other."""
    verdict: str
    """`higher`: the order holds under all four calibrations. `depends on calibration`: under some alone. `not shown`:
    under none. `too few seeds`, `too few calibrations`: nothing can be claimed."""
    differences: Mapping[str, Interval]
    """Calibration -> first less second, paired by generator and seeds."""


def claims(
    summaries: Sequence[Summary], *, least: int = MIN_REPLICATES, calibrations: Sequence[str] = CALIBRATIONS
) -> list[Claim]:
    """Compare every two methods by every metric; an order is claimed only where it holds under all calibrations.

    It holds under one where the bootstrap interval of the paired difference lies on one side of 0. The oracle takes no
    part: it is another generator.

    Args:
        summaries: of one comparison.
        least: networks, or method seeds on one network, below which nothing is claimed.
        calibrations: those under which an order must hold.
    """
    made = []
    by_metric: dict[tuple[str, str], dict[str, dict[str, Summary]]] = {}
    for each in summaries:
        if each.interval is not None and each.method != ORACLE:
            methods = by_metric.setdefault((each.group, each.metric), {})
            methods.setdefault(each.method, {})[each.calibration] = each
    for (group, metric), methods in by_metric.items():
        names = list(methods)
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                made.append(_claim(group, metric, first, second, methods[first], methods[second], least, calibrations))
    return made


def _claim(
    group: str,
    metric: str,
    first: str,
    second: str,
    a: Mapping[str, Summary],
    b: Mapping[str, Summary],
    least: int,
    calibrations: Sequence[str],
) -> Claim:
    differences, paired = {}, []
    for calibration in a:
        if calibration in b:
            difference = a[calibration].values - b[calibration].values
            if np.isfinite(difference).any():
                differences[calibration] = crossed_bootstrap(difference)
                paired.append(difference)
    if not paired or min(map(_replicates, paired)) < least:
        return Claim(group, metric, first, second, "too few seeds", differences)
    if "any" not in a and not set(calibrations) <= set(a) | set(b):
        return Claim(group, metric, first, second, "too few calibrations", differences)
    signs = [math.copysign(1, each.mean) if each.excludes_zero else 0.0 for each in differences.values()]
    is_whole = set(a) == set(b) == set(differences)
    if is_whole and abs(sum(signs)) == len(signs):
        if signs[0] > 0:
            return Claim(group, metric, first, second, "higher", differences)
        turned = {name: Interval(-each.mean, -each.high, -each.low, each.levels) for name, each in differences.items()}
        return Claim(group, metric, second, first, "higher", turned)
    return Claim(group, metric, first, second, "depends on calibration" if any(signs) else "not shown", differences)


def _replicates(values: np.ndarray) -> int:
    """Return how many networks, or else method seeds, gave numbers of their own: [networks, method seeds, codes]."""
    networks, seeds = (np.round(np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1), 9) for axis in (0, 1))
    return max(len({row.tobytes() for row in rows if np.isfinite(row).any()}) for rows in (networks, seeds))


def in_words(claim: Claim) -> str:
    """Say what a claim says.

    Example:
        >>> in_words(Claim("faces", "mig_v1", "sefa", "random", "not shown", {}))
        'faces, mig_v1: no order of sefa and random is shown'
    """
    where = f"{claim.group}, {claim.metric}: "
    if claim.verdict == "higher":
        widest = "; ".join(
            f"{name} {each.mean:+.3g} [{each.low:.3g}, {each.high:.3g}]" for name, each in claim.differences.items()
        )
        return f"{where}{claim.first} is higher than {claim.second} ({widest})"
    if claim.verdict.startswith("too few"):
        return f"{where}{claim.verdict} for an order of {claim.first} and {claim.second}"
    if claim.verdict == "not shown":
        return f"{where}no order of {claim.first} and {claim.second} is shown"
    return f"{where}the order of {claim.first} and {claim.second} depends on calibration"


# --- tables -----------------------------------------------------------------------------------------------------------


def shown(value: float | None, digits: int = 3) -> str:
    """Write a number for a table; a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def cell_text(summary: Summary) -> str:
    """Write the number of a summary with its interval and the count of values and dead directions."""
    if summary.interval is None:
        return summary.status
    text = shown(summary.interval.mean)
    if math.isfinite(summary.interval.low):
        text += f" [{shown(summary.interval.low)}, {shown(summary.interval.high)}]"
    if len(summary.points) > 1:
        text += f" n={len(summary.points)}"
    return text + (f" ({summary.dead:.3g} dead)" if summary.dead else "")


def tables(summaries: Sequence[Summary]) -> dict[tuple[str, str], list[dict[str, str]]]:
    """Return a table for every generator and metric: a row a method, a column a calibration."""
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for each in summaries:
        rows = found.setdefault((each.group, each.metric), {})
        row = rows.setdefault(each.method, {"method": each.method, "k": shown(each.k, 0)})
        row[each.calibration] = cell_text(each)
    for (group, metric), rows in found.items():
        chances = [e.chance for e in summaries if (e.group, e.metric) == (group, metric) and math.isfinite(e.chance)]
        if chances:
            columns = [name for name in next(iter(rows.values())) if name not in ("method", "k")]
            rows["chance"] = {"method": "chance", "k": "-"} | {name: shown(float(np.mean(chances))) for name in columns}
    return {where: list(rows.values()) for where, rows in found.items()}


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Write a table in Markdown."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([row.get(name, "-") for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


_COLUMNS = (
    "generator", "method", "metric", "calibration", "status", "mean", "low", "high", "points", "dead", "k", "chance",
    "reason", "command",
)  # fmt: skip


def long_table(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Return one row a summary, all numbers in full, for a .csv file."""
    rows = []
    for each in summaries:
        numbers = each.interval or Interval(math.nan, math.nan, math.nan, ())
        figures = (numbers.mean, numbers.low, numbers.high)
        points = " ".join(f"{point:.6g}" for point in each.points)
        values = (
            each.group, each.method, each.metric, each.calibration, each.status, *figures, points, each.dead, each.k,
            each.chance, each.reason, each.command,
        )  # fmt: skip
        cells = ("" if isinstance(v, float) and not math.isfinite(v) else v for v in values)
        rows.append(dict(zip(_COLUMNS, cells, strict=True)))
    return rows


def write_tables(comparison: Comparison) -> list[Path]:
    """Write `tables/`: one Markdown and one .csv of all numbers, a Markdown a metric, and the claims in words."""
    summaries = summarise(comparison)
    folder = comparison.folder / "tables"
    again = f"`{comparison_command(comparison)}`"
    pages = []
    whole = [f"# Comparison\n\nMade by {again} with eigenlens {__version__}.\n"]
    for (group, metric), rows in tables(summaries).items():
        text = f"## {metric} on {group}\n\n{markdown(rows)}"
        whole.append(text)
        name = re.sub(r"[^\w.-]+", "-", f"{group}--{metric}").strip("-")
        pages.append(write_text(folder / f"{name}.md", f"{text}\nMade by {again}.\n", force=True))
    told = claims_text(claims(summaries))
    whole.append(f"## What can be said of order\n\n{told}")
    pages.append(write_text(folder / "all.md", "\n".join(whole), force=True))
    pages.append(write_text(folder / "all.csv", _csv(long_table(summaries)), force=True))
    return pages


_ORDER = {
    "depends on calibration": "the order depends on the calibration for",
    "not shown": "no order is shown of",
}


def claims_text(made: Sequence[Claim]) -> str:
    """Write the claims as a list in Markdown: orders that hold first, then the pairs that cannot be told apart."""
    lines = [f"- {in_words(claim)}" for claim in made if claim.verdict == "higher"]
    for verdict in ("depends on calibration", "not shown"):
        pairs: dict[tuple[str, str], list[str]] = {}
        for each in made:
            if each.verdict == verdict:
                pairs.setdefault((each.group, each.metric), []).append(f"{each.first} and {each.second}")
        lines += [
            f"- {group}, {metric}: {_ORDER[verdict]} {'; '.join(both)}" for (group, metric), both in pairs.items()
        ]
    few = sum(claim.verdict.startswith("too few") for claim in made)
    if few:
        lines.append(
            f"- Of {few} pairs nothing is said: an order is claimed from {MIN_REPLICATES} networks or method seeds on, "
            "and only where it holds under all four calibrations."
        )
    return "\n".join(lines or ["- Nothing was compared."]) + "\n"


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    import csv
    import io

    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def comparison_command(comparison: Comparison) -> str:
    """Return the command that makes the whole comparison again, from the grid that it wrote."""
    return shlex.join(
        ["eigenlens", "compare", "--config", str(comparison.folder / "grid.yaml"), "--out", str(comparison.folder)]
    )
