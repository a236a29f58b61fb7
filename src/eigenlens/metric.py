"""What a metric is, what it gives, and the table of metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from . import __version__
from .directions import Directions
from .generator import Generator
from .registry import Registry

METRICS = Registry(
    "metric",
    {
        "latent_orthogonality_v1": "eigenlens.metrics.orthogonality:LatentOrthogonality",
    },
)
"""Name -> the metric. A name pins its whole protocol; a changed protocol is a new name."""


@dataclass(frozen=True)
class Score:
    """One result, immutable, with all that is needed to get it again."""

    metric: str
    """Name of the metric, which pins its protocol."""
    value: float
    """The number; NaN where the metric does not apply."""
    n: int
    """How many samples, pairs or directions it rests on."""
    seed: int
    """Seed of the measurement."""
    generator: Mapping[str, str] = field(default_factory=dict)
    """Name, family and weight hash."""
    directions: Mapping[str, Any] = field(default_factory=dict)
    """Method, arguments and seed of the directions, and how many there are."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further numbers: intervals, values of each direction."""
    version: str = __version__
    """Version of eigenlens."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON; NaN becomes null."""
        plain = asdict(self)
        plain["value"] = None if math.isnan(self.value) else self.value
        return plain


@runtime_checkable
class Metric(Protocol):
    """A way to judge directions: a frozen dataclass of hyper-parameters, and `score`."""

    name: ClassVar[str]
    """The name in the table."""

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Judge `directions` of `generator`; `seed` fixes the number."""
        ...


def make_score(
    metric: Any, generator: Generator, directions: Directions, value: float, *, n: int, seed: int, **details: Any
) -> Score:
    """Build the Score of a metric, with what was judged."""
    made = directions.provenance
    judged = {"method": made.method, "arguments": dict(made.arguments), "seed": made.seed, "k": len(directions)}
    return Score(metric.name, value, n, seed, generator.identity(), judged, details)
