"""How codes and factors belong together, by the scores of the disentanglement literature: MIG, SAP and DCI.

The code of a sample is where it stands along each direction; its factors are what a reader sees in its image. All three
need codes that are random and factors that vary; none of them moves anything, so they also judge directions by
correlations that no edit causes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import runtime
from ..directions import Directions
from ..errors import UserError
from ..generator import Generator
from ..metric import Score, make_score
from ..reader import Attribute, Reader, describe, factor_of, open_reader
from .features import correlation, in_sigma, plain, read_samples, require

BINS = 20
"""Bins of codes and of continuous factors."""
FEWEST = 50
"""Certain readings below which a factor is left out."""
ReaderLike = str | Reader | Callable[[Tensor], Tensor]


# --- drawing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Factor:
    """One factor of the samples."""

    name: str
    values: Tensor
    """[n]: numbers as they are; classes as whole numbers."""
    is_number: bool
    known: Tensor
    """Where the reader is certain, bool [n]."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """Codes and factors of random samples."""

    codes: Tensor
    """Where each sample stands along each direction, in σ, [n, k]."""
    factors: tuple[Factor, ...]


def sample_factors(generator: Generator, directions: Directions, reader: Reader, n: int, *, seed: int = 0) -> Sampled:
    """Draw `n` samples; return where they stand along the directions, and what the reader sees.

    Factors that do not vary, or that the reader is certain of in fewer than 50 samples, are left out.

    Raises:
        UserError: where directions have no coordinates (curved ones), or no factor is left.
    """
    directions = in_sigma(generator, directions)
    codes, reading = read_samples(generator, directions, reader, n, seed=seed)
    places = torch.stack([directions.coordinates(codes, k) for k in range(len(directions))], dim=1)
    factors = factors_of(describe(reader), reading.scores, reading.certain)
    if not factors:
        raise UserError(
            f"the reader {reader.name!r} is certain of no factor that varies in samples of {generator.name}; "
            "choose a reader made for such images"
        )
    return Sampled(places.cpu().double(), factors)


def factors_of(attributes: tuple[Attribute, ...], scores: Tensor, certain: Tensor) -> tuple[Factor, ...]:
    """Join the attributes [n, attributes] of each factor: the likeliest of its values, true or false, or a number."""
    names = list(dict.fromkeys(factor_of(each.name) for each in attributes))
    found = []
    for name in names:
        columns = [i for i, each in enumerate(attributes) if factor_of(each.name) == name]
        is_number = attributes[columns[0]].kind == "number"
        if len(columns) > 1:
            values = scores[:, columns].argmax(1)
        else:
            values = scores[:, columns[0]] if is_number else scores[:, columns[0]] > 0.5
        known = certain[:, columns].all(1)
        seen = values[known]
        if len(seen) < FEWEST or bool((seen == seen[0]).all()):
            continue
        found.append(Factor(name, values.double(), is_number, known))
    return tuple(found)


def binned(values: Tensor, bins: int = BINS) -> Tensor:
    """Cut numbers [n] into bins of equal counts (quantiles): whole numbers [n]."""
    edges = values.quantile(torch.linspace(0, 1, bins + 1, dtype=values.dtype)[1:-1])
    return torch.searchsorted(edges, values.contiguous(), right=True)


def histogram_bins(values: Tensor, bins: int = BINS) -> Tensor:
    """Cut numbers [n] into bins of equal width from the least to the largest: whole numbers [n]."""
    low, high = values.min(), values.max()
    return ((values - low) / (high - low).clamp(min=1e-30) * bins).long().clamp(max=bins - 1)


# --- mutual information gap -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mig:
    """Mutual information gap: how much more the best direction tells of a factor than the second best.

    Codes are cut into 20 bins of equal width, continuous factors into 20 of equal count. The value is the mean over
    factors of (I₁ - I₂) / H. `details` has the gap of each factor, the informations, and a null: the same score of
    factors whose samples are shuffled, which is above 0 since few samples overstate information.

    Source:
        Chen et al., Isolating sources of disentanglement in VAEs, NeurIPS 2018, equation 6. Deviation: 3,000 samples
        (10,000 there), and the null.
    """

    reader: ReaderLike = "pixels"
    """Name of a reader, `package.module:function`, or a reader itself."""
    n: int = 3000
    """Samples."""
    n_null: int = 20
    """Shuffles that tell the null."""
    name: ClassVar[str] = "mig_pixels_3k_v1"
    uses_strength: ClassVar[bool] = False

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Draw samples, read them, and compute the gap."""
        drawn = sample_factors(generator, directions, open_reader(self.reader), self.n, seed=seed)
        found = mig(drawn, n_null=self.n_null, seed=seed)
        return make_score(self, generator, directions, found.pop("value"), n=self.n, seed=seed, **plain(found))


@dataclass(frozen=True)
class MigToonFaces(Mig):
    """The same with the reader of toon faces."""

    reader: ReaderLike = "toonfaces"
    """Name of a reader, `package.module:function`, or a reader itself."""
    name: ClassVar[str] = "mig_toonfaces_3k_v1"


def mutual_information(a: Tensor, b: Tensor) -> Tensor:
    """Return the mutual information in nats of each column of a with b, from counts.

    Args:
        a: whole numbers [n, k].
        b: whole numbers [n].

    Returns:
        [k].
    """
    n = len(b)
    other = torch.nn.functional.one_hot(b).double()
    each = torch.nn.functional.one_hot(a.T, int(a.max()) + 1).double()  # [k, n, bins]
    joint = each.mT @ other / n  # [k, bins, values]
    apart = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
    return torch.where(joint > 0, joint * (joint / apart.clamp(min=1e-30)).log(), 0.0).sum((1, 2))


def entropy(b: Tensor) -> float:
    """Return the entropy in nats of whole numbers [n], from counts."""
    share = torch.bincount(b).double() / len(b)
    return float(-(share[share > 0] * share[share > 0].log()).sum())


def mig(drawn: Sampled, *, n_null: int = 20, seed: int = 0) -> dict[str, Any]:
    """Compute the mutual information gap of samples.

    Returns:
        `value`; `factors`; `gap` and `information` [factors] and [factors, k]; `null` and `null_95`.
    """
    bins = torch.stack([histogram_bins(column) for column in drawn.codes.T], dim=1)
    random = runtime.generator_for(seed, "metrics/mig")
    gaps, informations, nulls = [], [], []
    for factor in drawn.factors:
        values = factor.values[factor.known]
        values = binned(values) if factor.is_number else values.long()
        some = bins[factor.known]
        information = mutual_information(some, values) / entropy(values)
        gaps.append(gap(information))
        informations.append(information)
        shuffled = [values[torch.from_numpy(random.permutation(len(values)))] for _ in range(n_null)]
        nulls.append(torch.stack([gap(mutual_information(some, each) / entropy(values)) for each in shuffled]))
    null = torch.stack(nulls).mean(0)  # [shuffles]
    return {
        "value": float(torch.stack(gaps).mean()),
        "factors": [factor.name for factor in drawn.factors],
        "gap": torch.stack(gaps),
        "information": torch.stack(informations),
        "null": float(null.mean()),
        "null_95": float(null.quantile(0.95)),
    }


def gap(scores: Tensor) -> Tensor:
    """Return the largest of the scores [k] less the second; the largest itself where there is one."""
    top = scores.topk(min(2, len(scores))).values
    return top[0] - (top[1] if len(top) > 1 else 0.0)


# --- separated attribute predictability -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sap:
    """Separated attribute predictability: squared correlation of the best direction with a factor less the second.

    Continuous factors alone are scored: the published score of classes is the accuracy of a linear classifier on one
    number, which is hardly above chance for a class in the middle.

    Source:
        Kumar, Sattigeri and Balakrishnan, DIP-VAE, ICLR 2018, section 3. Deviation: classes are left out.
    """

    reader: ReaderLike = "pixels"
    """Name of a reader, `package.module:function`, or a reader itself."""
    n: int = 3000
    """Samples."""
    name: ClassVar[str] = "sap_pixels_3k_v1"
    uses_strength: ClassVar[bool] = False

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Draw samples, read them, and compute the gap."""
        found = sap(sample_factors(generator, directions, open_reader(self.reader), self.n, seed=seed))
        return make_score(self, generator, directions, found.pop("value"), n=self.n, seed=seed, **plain(found))


@dataclass(frozen=True)
class SapToonFaces(Sap):
    """The same with the reader of toon faces."""

    reader: ReaderLike = "toonfaces"
    """Name of a reader, `package.module:function`, or a reader itself."""
    name: ClassVar[str] = "sap_toonfaces_3k_v1"


def sap(drawn: Sampled) -> dict[str, Any]:
    """Compute the score of samples.

    Returns:
        `value`, NaN where no factor is continuous; `factors`; `gap` [factors]; `r2` [factors, k].
    """
    numbers = [factor for factor in drawn.factors if factor.is_number]
    r2 = [correlation(drawn.codes[each.known].T, each.values[each.known]).square() for each in numbers]
    gaps = [gap(each) for each in r2]
    return {
        "value": float(torch.stack(gaps).mean()) if gaps else math.nan,
        "factors": [factor.name for factor in numbers],
        "gap": [float(each) for each in gaps],
        "r2": [each.tolist() for each in r2],
    }


# --- disentanglement, completeness, informativeness -------------------------------------------------------------------


@dataclass(frozen=True)
class Dci:
    """Disentanglement, completeness and informativeness, from the importances of boosted trees.

    The value is the disentanglement: 1 where each direction matters for one factor alone. `details` has completeness (1
    where each factor needs one direction alone), informativeness (R² of numbers and accuracy of classes on samples that
    the trees did not see, beside chance) and the importances.

    Source:
        Eastwood and Williams, A framework for the quantitative evaluation of disentangled representations, ICLR 2018,
        as disentanglement_lib computes it. Deviations: histogram gradient boosting, whose importances are the summed
        gains of its splits, with a sum of 1 for each factor; regression for continuous factors; 2,000 samples to fit
        and 1,000 to test (10,000 and 5,000 there). Read informativeness first: factors that no direction tells of
        have importances all the same, and they are noise.
    """

    reader: ReaderLike = "pixels"
    """Name of a reader, `package.module:function`, or a reader itself."""
    n: int = 3000
    """Samples, of which the last third tests."""
    name: ClassVar[str] = "dci_pixels_3k_v1"
    uses_strength: ClassVar[bool] = False

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Draw samples, read them, fit trees, and compute the three.

        Raises:
            UserError: where scikit-learn is not installed.
        """
        require("sklearn")
        found = dci(sample_factors(generator, directions, open_reader(self.reader), self.n, seed=seed), seed=seed)
        return make_score(self, generator, directions, found.pop("value"), n=self.n, seed=seed, **plain(found))


@dataclass(frozen=True)
class DciToonFaces(Dci):
    """The same with the reader of toon faces."""

    reader: ReaderLike = "toonfaces"
    """Name of a reader, `package.module:function`, or a reader itself."""
    name: ClassVar[str] = "dci_toonfaces_3k_v1"


def dci(drawn: Sampled, *, seed: int = 0) -> dict[str, Any]:
    """Compute the three scores of samples.

    Returns:
        `value` (disentanglement), `completeness`, `informativeness`, `factors`, `held_out` and `chance` [factors],
        `by_direction` (disentanglement) [k], `by_factor` (completeness) [factors], `importance` [factors, k].
    """
    codes = drawn.codes.numpy()
    seen = 2 * len(codes) // 3
    columns, held_out, chances = [], [], []
    for factor in runtime.progress(drawn.factors, what="dci"):
        known = factor.known.numpy()
        train, test = np.flatnonzero(known[:seen]), seen + np.flatnonzero(known[seen:])
        gains, right, chance = fit_trees(codes, factor, train, test, seed=seed)
        columns.append(gains)
        held_out.append(right)
        chances.append(chance)
    importance = torch.from_numpy(np.stack(columns))  # [factors, k]
    by_direction, by_factor = concentration(importance.T), concentration(importance)
    total = importance.sum().clamp(min=1e-30)
    return {
        "value": float((importance.sum(0) / total * by_direction).sum()),
        "completeness": float((importance.sum(1) / total * by_factor).sum()),
        "informativeness": float(np.mean(held_out)),
        "factors": [factor.name for factor in drawn.factors],
        "held_out": held_out,
        "chance": chances,
        "by_direction": by_direction,
        "by_factor": by_factor,
        "importance": importance,
    }


def fit_trees(
    codes: np.ndarray, factor: Factor, train: np.ndarray, test: np.ndarray, *, seed: int
) -> tuple[np.ndarray, float, float]:
    """Predict one factor from codes [n, k] by boosted trees.

    Returns:
        Importances [k], whose sum is 1; R² or accuracy on the rows `test`; and what a constant guess gets there.
    """
    ensemble = require("sklearn.ensemble")
    kind = ensemble.HistGradientBoostingRegressor if factor.is_number else ensemble.HistGradientBoostingClassifier
    values = factor.values.numpy()
    model = kind(max_iter=60, max_leaf_nodes=15, early_stopping=False, random_state=seed)
    model.fit(codes[train], values[train])
    importance = np.zeros(codes.shape[1])
    for stage in model._predictors:  # the public importances of histogram boosting do not exist
        for tree in stage:
            splits = tree.nodes[~tree.nodes["is_leaf"].astype(bool)]
            np.add.at(importance, splits["feature_idx"], np.maximum(splits["gain"], 0.0))
    right = float(model.score(codes[test], values[test]))
    chance = 0.0 if factor.is_number else float((values[test] == _commonest(values[train])).mean())
    return importance / max(importance.sum(), 1e-30), right, chance


def _commonest(values: np.ndarray) -> float:
    found, counts = np.unique(values, return_counts=True)
    return float(found[counts.argmax()])


def concentration(importance: Tensor) -> Tensor:
    """Return 1 - the entropy, in units of its maximum, of how each row is shared out: [rows].

    One column alone is wholly concentrated, 1; a row of zeros scores 0.
    """
    if importance.shape[1] == 1:
        return torch.ones(len(importance), dtype=importance.dtype)
    share = importance + 1e-11
    share = share / share.sum(1, keepdim=True)
    return 1 + (share * share.log()).sum(1) / math.log(importance.shape[1])
