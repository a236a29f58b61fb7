"""What a comparison compares with what: a grid of generators, methods, metrics and seeds, and the cells it has."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .method import METHODS
from .metric import METRICS
from .profile import CALIBRATIONS, PROFILE_CODES, TARGETS, Calibration, check_calibration
from .reader import digest_of, open_reader

ORACLE = "oracle"
"""Method of the oracle's row: the coordinate axes of a generator whose coordinates are the true factors."""


@dataclass(frozen=True)
class Entry:
    """A method or a metric with some of its arguments, under a name of its own."""

    name: str
    """Name in the table."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that are not the defaults."""

    def __str__(self) -> str:
        inside = ",".join(f"{key}={json.dumps(value).strip(chr(34))}" for key, value in self.arguments.items())
        return f"{self.name}({inside})" if inside else self.name

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Read `sefa` or `ganspace(at=layer3,n_samples=1500)`.

        Raises:
            UserError: where it is neither.

        Example:
            >>> Entry.parse("random(law=covariance,n_directions=5)").arguments
            {'law': 'covariance', 'n_directions': 5}
        """
        found = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", text)
        pairs = [pair for pair in _split(found[2] or "") if pair.strip()] if found else []
        if not found or not all("=" in pair for pair in pairs):
            raise UserError(f"{text!r} is no name with arguments; write sefa, or ganspace(at=layer3,n_samples=1500)")
        arguments = {}
        for pair in pairs:
            key, _, value = pair.partition("=")
            try:
                arguments[key.strip()] = json.loads(value)
            except ValueError:
                arguments[key.strip()] = value.strip()
        return cls(found[1], arguments)

    def make(self, table: Mapping[str, Any], **defaults: Any) -> Any:
        """Return the thing of `table` with these arguments, and those of `defaults` that it knows.

        Raises:
            UserError: on an unknown name or argument.
        """
        kind = table[self.name]
        known = {each.name for each in dataclasses.fields(kind)}
        unknown = sorted(set(self.arguments) - known)
        if unknown:
            raise UserError(f"{self.name} has no argument {unknown[0]!r}; it has {', '.join(sorted(known)) or 'none'}")
        given = {key: tuple(v) if isinstance(v, list) else v for key, v in self.arguments.items()}
        return kind(**{key: value for key, value in defaults.items() if key in known} | given)


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotes."""
    pieces, depth, quoted = [""], 0, False
    for char in text:
        quoted ^= char == '"'
        depth += (char in "[{(") - (char in ")}]") if not quoted else 0
        if char == "," and depth == 0 and not quoted:
            pieces.append("")
        else:
            pieces[-1] += char
    return pieces


@dataclass(frozen=True)
class Grid:
    """What is compared with what: every generator with every method, metric and seed."""

    generators: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"toonfaces": ("toonfaces",)})
    """Name -> the sources of networks that differ in their training seed alone."""
    methods: tuple[Entry, ...] = (Entry("random"), Entry("axes"))
    """What finds directions."""
    metrics: tuple[Entry, ...] = (Entry("latent_orthogonality_v1"),)
    """What judges them."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the methods."""
    code_seeds: tuple[int, ...] = (0,)
    """Seeds of the metrics."""
    calibrations: tuple[Calibration, ...] = CALIBRATIONS
    """The strengths at which metrics measure; see `eigenlens.profile`."""
    at: Mapping[str, tuple[Calibration, ...]] = field(default_factory=dict)
    """Metric -> the calibrations of that metric alone, where it is too dear to be measured at all of them."""
    k: int = 10
    """Directions of each method: those it finds most important."""
    reader: str = "pixels"
    """Reads attributes, for the calibration by attribute, passports and names."""
    oracle: str | None = None
    """A generator whose coordinates are the true factors, such as `toonface_oracle:renderer`: the ceiling."""
    targets: Mapping[str, float] = field(default_factory=lambda: dict(TARGETS))
    """What each calibration wants."""
    profile_codes: int = PROFILE_CODES
    """Codes of a profile."""
    null: int = 39
    """Random directions that p-values are counted against."""

    def __post_init__(self) -> None:
        if not self.generators or not self.methods or not self.metrics or not self.seeds or not self.code_seeds:
            raise UserError("a comparison needs at least one generator, method, metric and seed of each kind")
        counts = (self.k, self.profile_codes, self.null)
        if any(type(each) is not int for each in counts) or min(counts[:2]) < 1 or self.null < 0:
            raise UserError("k and profile_codes are whole numbers from 1, and null from 0")
        strange = [name for name, target in self.targets.items() if not 0 < target < math.inf]
        if strange:
            raise UserError(f"the target of {strange[0]} is {self.targets[strange[0]]:g}; give a number above 0")
        asked = (*self.calibrations, *self.targets, *(each for some in self.at.values() for each in some))
        for calibration in asked:
            check_calibration(calibration)
        for table, entries in ((METHODS, self.methods), (METRICS, self.metrics)):
            for entry in entries:
                entry.make(table)
            labels = [str(entry) for entry in entries]
            if len(set(labels)) < len(labels):
                raise UserError(f"a {table.kind} came twice: {', '.join(labels)}")
        strange = sorted(set(self.at) - {str(each) for each in self.metrics})
        if strange:
            raise UserError(
                f"at names {strange[0]!r}, which is no metric of the grid: {', '.join(map(str, self.metrics))}"
            )
        open_reader(self.reader)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Grid:
        """Read a grid out of plain data, as a YAML file holds it.

        Raises:
            UserError: on a key that is not known, or a value of the wrong kind.
        """
        known = {each.name for each in dataclasses.fields(cls)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise UserError(f"a grid has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
        values = dict(given)
        try:
            if "generators" in values:
                values["generators"] = _groups(values["generators"])
            for name in ("methods", "metrics"):
                if name in values:
                    values[name] = tuple(_entry(each) for each in values[name])
            for name in ("seeds", "code_seeds"):
                if name in values:
                    values[name] = tuple(int(each) for each in values[name])
            if "calibrations" in values:
                values["calibrations"] = tuple(values["calibrations"])
            if "at" in values:
                values["at"] = {str(metric): tuple(some) for metric, some in values["at"].items()}
            if "targets" in values:
                values["targets"] = dict(TARGETS) | {key: float(each) for key, each in values["targets"].items()}
            return cls(**values)
        except (TypeError, AttributeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"the grid cannot be read: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` reads."""
        plain = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        plain["generators"] = {name: list(sources) for name, sources in self.generators.items()}
        plain |= {name: [str(each) for each in plain[name]] for name in ("methods", "metrics")}
        plain |= {name: list(plain[name]) for name in ("seeds", "code_seeds", "calibrations")}
        plain["at"] = {metric: list(some) for metric, some in self.at.items()}
        return plain | {"targets": {name: float(each) for name, each in self.targets.items()}}

    def fits(self) -> Iterator[Fit]:
        """Give every fit of the grid: the groups of cells that share their directions."""
        for group, sources in self.generators.items():
            for source in sources:
                for seed in self.seeds:
                    for method in self.methods:
                        yield Fit(group, source, method, seed)
            if self.oracle is not None:
                yield Fit(group, self.oracle, Entry("axes"), self.seeds[0], is_oracle=True)

    def cells(self, fit: Fit) -> Iterator[Cell]:
        """Give the cells of a fit: one a metric, calibration and seed of codes."""
        for metric in self.metrics:
            applies = getattr(METRICS[metric.name], "uses_strength", True)
            chosen = self.at.get(str(metric), self.calibrations)
            for calibration in chosen if applies else ("native",):
                for seed in self.code_seeds:
                    yield Cell(fit, metric, calibration, seed)


def _groups(given: Any) -> dict[str, tuple[str, ...]]:
    if isinstance(given, str):
        given = [given]
    if isinstance(given, Mapping):
        return {str(name): (each,) if isinstance(each, str) else tuple(map(str, each)) for name, each in given.items()}
    sources = list(map(str, given))
    short = [Path(each).name if "/" in each else each for each in sources]
    named = zip(short, sources, strict=True) if len(set(short)) == len(short) else zip(sources, sources, strict=True)
    return {name: (source,) for name, source in named}


def _entry(given: Any) -> Entry:
    if isinstance(given, Mapping):
        name = given.get("name")
        if not isinstance(name, str):
            raise UserError(f"{given!r} has no name; write {{name: sefa, n_directions: 5}} or sefa(n_directions=5)")
        return Entry(name, {key: value for key, value in given.items() if key != "name"})
    return Entry.parse(str(given))


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        "generators": ["toonfaces"],
        "methods": [
            "eigen", "sefa", "ganspace(at=layer3,n_samples=1500)", "jacobian(n_samples=4)",
            "random", "random(law=covariance)", "axes", "supervised(n_samples=1500)",
        ],
        "metrics": [
            "attribute_matrix_toonfaces_v1", "effect_orthogonality_v1", "latent_orthogonality_v1", "recovery_200_v1",
        ],
        "reader": "toonfaces",
        "oracle": "toonface_oracle:renderer",
    },
}  # fmt: skip
"""Name -> a grid. `quick` takes no method that is trained, and one seed."""


def load_grid(preset: str | None = None, file: Path | None = None, **changes: Any) -> Grid:
    """Return a grid from a preset, a YAML file over it, and changes over both; those at None or empty change nothing.

    Raises:
        UserError: on an unknown preset, or a file that holds no grid.
    """
    given: dict[str, Any] = {}
    if preset is not None:
        if preset not in PRESETS:
            raise UserError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
        given |= PRESETS[preset]
    if file is not None:
        try:
            held = yaml.safe_load(Path(file).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
        if not isinstance(held, dict):
            raise UserError(f"{file} holds no grid; write generators:, methods:, metrics: and the rest, as in docs")
        given |= held
    changes = {key: value for key, value in changes.items() if value not in (None, ())}
    if "calibrations" in changes or "metrics" in changes:  # what is asked for outright, not what was set before
        given["at"] = {}
    return Grid.from_dict(given | changes)


# --- fits and cells ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """One method run once on one network."""

    group: str
    """The generator's name in the grid."""
    source: str
    """Where the network is opened."""
    method: Entry
    """What finds the directions."""
    seed: int
    """Of the method."""
    is_oracle: bool = False
    """Whether this is the ceiling, of which the group's own network takes no part."""

    @property
    def label(self) -> str:
        """The method's name in tables."""
        return ORACLE if self.is_oracle else str(self.method)

    def reads(self, reader: str) -> dict[str, str]:
        """Return the grid's reader by name where the method takes it, since it then is part of what is found."""
        takes_it = any(each.name == "reader" for each in dataclasses.fields(METHODS[self.method.name]))
        return {"method_reader": edition(reader)} if takes_it and "reader" not in self.method.arguments else {}

    def key(self, reader: str, **more: Any) -> str:
        """Return a short name for files, which tells everything that the fit depends on."""
        told = json.dumps([self.source, str(self.method), self.seed, more | self.reads(reader)], sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        plain = re.sub(r"[^\w.-]+", "-", f"{self.group}--{self.label}--{self.seed}").strip("-")
        return f"{plain[:80]}--{digest}"


@dataclass(frozen=True)
class Cell:
    """One number of the comparison."""

    fit: Fit
    """Whose directions are judged."""
    metric: Entry
    """By what."""
    calibration: Calibration
    """At which strengths."""
    seed: int
    """Of the metric."""

    @property
    def is_free(self) -> bool:
        """Tell whether no strength enters the metric."""
        return not getattr(METRICS[self.metric.name], "uses_strength", True)

    def address(self, grid: Grid) -> dict[str, Any]:
        """Return everything that its number depends on but the network's weights."""
        about: dict[str, Any] = {
            "group": self.fit.group,
            "source": self.fit.source,
            "method": self.fit.label,
            "method_seed": self.fit.seed,
            "metric": str(self.metric),
            "calibration": self.calibration,
            "seed": self.seed,
            "k": grid.k,
        } | self.fit.reads(grid.reader)
        fixed = getattr(self.metric.make(METRICS), "reader", None)
        if isinstance(fixed, str) and digest_of(fixed):
            about["metric_reader"] = edition(fixed)
        if self.calibration == "native":
            if not self.is_free and grid.targets["native"] != TARGETS["native"]:  # results do not name the default
                about["target"] = grid.targets["native"]
        else:
            about |= {
                "target": grid.targets[self.calibration],
                "reader": edition(grid.reader),
                "profile_codes": grid.profile_codes,
            }
        return about

    def command(self, grid: Grid, out: Path) -> str:
        """Return the command that gives this number again."""
        if self.fit.is_oracle:
            chosen = ["--oracle", self.fit.source]
        else:
            chosen = ["--methods", str(self.fit.method)]
        is_plain = dict(grid.targets) == dict(TARGETS) and grid.profile_codes == PROFILE_CODES
        rest = [] if is_plain else ["--config", str(out / "grid.yaml")]
        words = [
            "eigenlens", "compare", *rest, "--generators", self.fit.source, *chosen, "--metrics", str(self.metric),
            "--seeds", str(self.fit.seed), "--code-seeds", str(self.seed), "--calibrations", self.calibration,
            "--k", str(grid.k), "--reader", grid.reader, "--out", str(out),
        ]  # fmt: skip
        return shlex.join(words)


def edition(reader: str) -> str:
    """Return a reader's name with the digest of its weights, where it has any: learnt anew, it reads other numbers."""
    digest = digest_of(reader)
    return f"{reader}@{digest}" if digest else reader
