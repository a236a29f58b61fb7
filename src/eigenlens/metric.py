"""What a metric is, what it gives, and the table of metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

from . import __version__
from .directions import Directions
from .generator import Generator
from .registry import Registry

METRICS = Registry(
    "metric",
    {
        "attribute_matrix_pixels_v1": "eigenlens.metrics.attributes:AttributeMatrix",
        "attribute_matrix_toonfaces_v1": "eigenlens.metrics.attributes:AttributeMatrixToonFaces",
        "beta_vae_toonfaces_v1": "eigenlens.metrics.encoded:BetaVae",
        "commutativity_v1": "eigenlens.metrics.reliability:Commutativity",
        "dci_pixels_3k_v1": "eigenlens.metrics.disentanglement:Dci",
        "dci_toonfaces_3k_v1": "eigenlens.metrics.disentanglement:DciToonFaces",
        "drift_v1": "eigenlens.metrics.reliability:Drift",
        "edit_distance_v1": "eigenlens.metrics.fidelity:EditDistance",
        "edit_kid_efficientnet_512_v1": "eigenlens.metrics.fidelity:EditKidEfficientNet",
        "edit_kid_pixels_512_v1": "eigenlens.metrics.fidelity:EditKid",
        "edit_lpips_vgg_v1": "eigenlens.metrics.fidelity:EditLpips",
        "effect_orthogonality_v1": "eigenlens.metrics.orthogonality:EffectOrthogonality",
        "factor_vae_toonfaces_v1": "eigenlens.metrics.encoded:FactorVae",
        "generator_stability_pixels_v1": "eigenlens.metrics.reliability:GeneratorStability",
        "identity_dlib_v1": "eigenlens.metrics.fidelity:Identity",
        "latent_orthogonality_v1": "eigenlens.metrics.orthogonality:LatentOrthogonality",
        "locality_v1": "eigenlens.metrics.locality:Locality",
        "mig_pixels_3k_v1": "eigenlens.metrics.disentanglement:Mig",
        "mig_toonfaces_3k_v1": "eigenlens.metrics.disentanglement:MigToonFaces",
        "path_evenness_v1": "eigenlens.metrics.smoothness:PathEvenness",
        "path_turning_v1": "eigenlens.metrics.smoothness:PathTurning",
        "ppl2_wend_v1": "eigenlens.metrics.smoothness:PerceptualPathLengthV1",
        "ppl2_wend_v2": "eigenlens.metrics.smoothness:PerceptualPathLength",
        "ppl_2k_v1": "eigenlens.metrics.smoothness:PerceptualPathLength2kV1",
        "ppl_2k_v2": "eigenlens.metrics.smoothness:PerceptualPathLength2k",
        "principal_closeness_v1": "eigenlens.metrics.principal:PrincipalCloseness",
        "recovery_200_v1": "eigenlens.metrics.recovery:RecoveryQuick",
        "recovery_2k_v1": "eigenlens.metrics.recovery:Recovery",
        "sap_pixels_3k_v1": "eigenlens.metrics.disentanglement:Sap",
        "sap_toonfaces_3k_v1": "eigenlens.metrics.disentanglement:SapToonFaces",
        "seed_stability_v1": "eigenlens.metrics.reliability:SeedStability",
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
    """A way to judge directions: a frozen dataclass of hyper-parameters, and `score`.

    One that no strength enters says so with a class variable, `uses_strength = False`; a comparison then measures it
    once instead of at every calibration.
    """

    name: ClassVar[str]
    """The name in the table."""

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Judge `directions` of `generator`; `seed` fixes the number."""
        ...


def make_score(
    metric: Any, generator: Generator, directions: Directions, value: float, *, n: int, seed: int, **details: Any
) -> Score:
    """Build the Score of a metric, with what was judged.

    Where fields of the metric differ from their defaults, `details["settings"]` says so: its name pins the protocol of
    the defaults alone.
    """
    given = {each.name: (getattr(metric, each.name), each.default) for each in fields(metric)}
    changed = {name: chosen for name, (chosen, usual) in given.items() if usual is not MISSING and chosen != usual}
    if changed:
        details["settings"] = {name: each if _is_plain(each) else repr(each) for name, each in changed.items()}
    made = directions.provenance
    judged = {"method": made.method, "arguments": dict(made.arguments), "seed": made.seed, "k": len(directions)}
    return Score(metric.name, value, n, seed, generator.identity(), judged, details)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, tuple, list))
