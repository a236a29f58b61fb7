"""Directions for attributes that a reader sees in images: regression of its scores on codes (InterFaceGAN's job)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .. import runtime
from ..directions import Directions, standard_deviation, unit_norm
from ..errors import UserError
from ..generator import Generator
from ..method import check_layers, chosen_space, provenance
from ..reader import open_reader

Scorer = Callable[[Tensor], Tensor]
PENALTIES = torch.logspace(-6, 4, 21, dtype=torch.float64)
"""Ridge penalties to choose from, in units of the mean variance of a coordinate times the samples."""
LOGISTIC_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.2
MOST_CLASSES = 50


@dataclass(frozen=True)
class Supervised:
    """One direction for each attribute: the normal of the hyperplane that predicts it from the code.

    Numbers are fitted by ridge regression, its penalty chosen by generalised cross-validation; what is true or false,
    and each class of what is one of several, by penalised logistic regression, its penalty chosen on a part set aside.
    A direction points to where the attribute grows.

    `fields["held_out"]` is R² for numbers and, for the others, accuracy, on a fifth of the samples that no fit saw;
    `chance` is what guessing gets there, and `importance` the part of what chance leaves that the fit gets right.
    `split_half` compares fits to two halves of the samples.

    Source:
        Shen et al., InterFaceGAN, TPAMI 2020, section 3, with regression in place of support vectors; its conditional
        manipulation is `hold="others"`, here in the metric of the codes' covariance.
    """

    reader: Any = (
        "pixels"  # str | Scorer | Mapping[str, Scorer]; the shell, which has names alone, cannot read the others
    )
    """Name of a reader; or a function images [batch, channels, height, width] -> scores [batch] or
    [batch, attributes]; or a dict of them by name. Scores that are whole numbers are classes."""
    attributes: tuple[str, ...] = ()
    """Names of the attributes to fit; by default all."""
    hold: Literal["none", "others"] = "none"
    """`others`: each direction leaves the prediction of every other attribute as it is."""
    n_samples: int = 4000
    """Images to read."""
    penalty: float | None = None
    """Penalty, in units of the mean variance of a coordinate; by default chosen for each attribute."""
    layers: str = "all"
    """Layer range in which the directions act."""
    space: str | None = None
    """Space of the directions; by default the generator's own default."""
    truncation: float = 1.0
    """Of the samples."""
    label: int | str | None = None
    """Class of the samples; by default all classes."""
    name: ClassVar[str] = "supervised"

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Read images of codes of `seed`, and regress what was read on the codes.

        Raises:
            UserError: where an attribute is not known, or the same for all samples.
        """
        if self.hold not in ("none", "others"):
            raise UserError(f"hold {self.hold!r} is not known; allowed: none, others")
        if self.n_samples < 20 or (self.penalty is not None and self.penalty <= 0):
            raise UserError("n_samples is a whole number from 20, and penalty is positive")
        space = chosen_space(generator, self.space)
        space = generator.space(space.broadcast_of) if space.broadcast_of else space
        check_layers(generator, space, self.layers)
        latents, scores = self._read(generator, space.name, seed)
        slots = latents.shape[1]
        rows = latents.flatten(1).double()
        fits = [_fit(rows, score, self.penalty) for score in scores.values()]
        normals = torch.stack([fit.normal for fit in fits])  # [k, slots * dim]
        splits = [
            torch.stack(
                [
                    _fit(rows[half::2], score[half::2], fit.penalty).normal
                    for fit, score in zip(fits, scores.values(), strict=True)
                ]
            )
            for half in (0, 1)
        ]
        if self.hold == "others":
            normals, *splits = (held(each, rows) for each in (normals, *splits))
        cosines = torch.nn.functional.cosine_similarity(splits[0], splits[1], dim=1)
        vectors = unit_norm(normals.float().unflatten(1, (slots, space.dim)))
        held_out, chance = (torch.tensor([getattr(fit, name) for fit in fits]) for name in ("held_out", "chance"))
        return Directions(
            vectors,
            space.name,
            tuple(scores),
            layers=(self.layers,) * len(fits),
            sigma=standard_deviation(vectors, space),
            importance=((held_out - chance) / (1 - chance).clamp(min=1e-6)).clamp(min=0),
            split_half=cosines.abs(),
            fields={
                "held_out": held_out,
                "chance": chance,
                "penalty": torch.tensor([fit.penalty for fit in fits]),
            },
            provenance=provenance(self, generator, seed),
        )

    def _read(self, generator: Generator, space: str, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return latents [n, slots, dim] and, for each attribute, scores [n]: float, or bool where true or false."""
        label = "random" if self.label is None and generator.label_names else self.label
        readers = _scorers(self.reader)
        latents: list[Tensor] = []
        read: dict[str, list[Tensor]] = {name: [] for name in readers}
        steps = list(runtime.batches(self.n_samples, generator.batch_size))
        with torch.inference_mode():
            for start, stop in runtime.progress(steps, what="supervised", unit="batch"):
                codes = generator.sample(
                    stop - start, seed=seed, start=start, space=space, truncation=self.truncation, label=label
                )
                images = generator(codes)
                latents.append(codes.latent.cpu())
                for name, reader in readers.items():
                    read[name].append(reader(images).cpu())
        scores: dict[str, Tensor] = {}
        for name, pieces in read.items():
            scores |= _columns(name, _names(self.reader), torch.cat(pieces).clone())
        return torch.cat(latents).clone(), self._wanted(scores)

    def _wanted(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        unknown = [name for name in self.attributes if name not in scores]
        if unknown:
            raise UserError(f"the reader gives no {unknown[0]!r}; it gives {', '.join(scores)}")
        wanted = {name: scores[name] for name in self.attributes or scores}
        for name, score in wanted.items():
            if not bool(torch.isfinite(score).all()):
                raise UserError(f"some scores of {name!r} are NaN or infinite; no direction can be fitted to them")
            if bool((score == score[0]).all()):
                raise UserError(
                    f"{name!r} is {score[0].item():g} in all {len(score)} samples, so nothing tells how to change it; "
                    "leave it out with attributes, or draw more samples"
                )
        return wanted


# --- readers ----------------------------------------------------------------------------------------------------------


def _scorers(reader: str | Scorer | Mapping[str, Scorer]) -> dict[str, Scorer]:
    """Return functions by name; the name of a reader of several attributes is ``""``."""
    if isinstance(reader, Mapping):
        return dict(reader)
    return {"": open_reader(reader) if isinstance(reader, str) else reader}


def _names(reader: str | Scorer | Mapping[str, Scorer]) -> tuple[str, ...]:
    """Return the attribute names that a reader itself tells."""
    if isinstance(reader, Mapping):
        return ()
    return tuple(getattr(open_reader(reader) if isinstance(reader, str) else reader, "attributes", ()))


def _columns(name: str, told: tuple[str, ...], scores: Tensor) -> dict[str, Tensor]:
    """Split scores [n] or [n, attributes] into one attribute each, and classes into one truth a class."""
    table = scores.flatten(1) if scores.ndim > 1 else scores[:, None]
    if name and table.shape[1] == 1:
        names: tuple[str, ...] = (name,)
    elif not name and len(told) == table.shape[1]:
        names = told
    else:
        names = tuple(f"{name or 'attribute'}-{i}" for i in range(table.shape[1]))
    columns: dict[str, Tensor] = {}
    for label, column in zip(names, table.T, strict=True):
        columns |= _truths(label, column)
    return columns


def _truths(name: str, column: Tensor) -> dict[str, Tensor]:
    values = torch.unique(column)
    if column.dtype == torch.bool or (len(values) == 2 and values.tolist() == [0, 1]):
        return {name: column == 1}
    if column.is_floating_point():
        return {name: column.double()}
    if len(values) > MOST_CLASSES:
        raise UserError(f"{name!r} has {len(values)} classes, more than {MOST_CLASSES}; let the reader return floats")
    return {f"{name}={value}": column == value for value in values.tolist()}


# --- fits -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A linear fit of one attribute."""

    normal: Tensor
    """[dim]: how the prediction, or its log-odds, grows with each coordinate."""
    penalty: float
    """In units of the mean variance of a coordinate."""
    held_out: float
    """R², or accuracy, on samples that the fit did not see."""
    chance: float
    """What a constant guess gets: R² 0, or the share of the commoner answer."""


def _fit(rows: Tensor, score: Tensor, penalty: float | None) -> Fit:
    """Fit one attribute on rows [n, dim], and try it on the last fifth of them."""
    seen = len(rows) - max(1, round(HELD_OUT * len(rows)))
    solve = fit_logistic if score.dtype == torch.bool else fit_ridge
    offset, normal, penalty = solve(rows[:seen], score[:seen], penalty)
    predicted, truth = offset + rows[seen:] @ normal, score[seen:]
    if score.dtype == torch.bool:
        share = float(truth.double().mean())
        return Fit(normal, penalty, float(((predicted > 0) == truth).double().mean()), max(share, 1 - share))
    error = (truth - predicted).square().sum() / (truth - truth.mean()).square().sum().clamp(min=1e-30)
    return Fit(normal, penalty, float(1 - error), 0.0)


def fit_ridge(rows: Tensor, score: Tensor, penalty: float | None = None) -> tuple[float, Tensor, float]:
    """Fit numbers by ridge regression.

    Args:
        rows: float64 [n, dim].
        score: [n].
        penalty: in units of the mean variance of a coordinate, times n; by default that of `PENALTIES` with the least
            generalised cross-validation error.

    Returns:
        Offset, normal [dim] and the penalty.

    Source:
        Golub, Heath & Wahba, Generalized cross-validation, 1979.
    """
    n, mean = len(rows), rows.mean(0)
    centred, wanted = rows - mean, score.double() - score.double().mean()
    values, frame = torch.linalg.eigh(centred.T @ centred)  # [dim], [dim, dim]
    values = values.clamp(min=0)
    turned = frame.T @ (centred.T @ wanted)  # [dim]
    unit = values.mean().clamp(min=1e-30)
    if penalty is None:
        grid = PENALTIES[:, None] * unit
        is_seen = values > 1e-12 * values[-1]
        explained = torch.where(is_seen, turned.square() / values.clamp(min=1e-300), 0)  # by no penalty, [dim]
        beyond = (wanted.square().sum() - explained.sum()).clamp(min=0)
        # a sum, as a difference would leave rounding alone
        left = beyond + (grid / (values + grid)).square() @ explained
        freedom = (values / (values + grid)).sum(1)
        # with fewer rows than coordinates both go to 0 together, so a larger bound would favour the weakest penalty
        errors = left / (1 - (freedom + 1) / n).clamp(min=1e-12).square()
        penalty = float(PENALTIES[errors.argmin()])
    normal = frame @ (turned / (values + penalty * unit))
    return float(score.double().mean() - mean @ normal), normal, penalty


def fit_logistic(rows: Tensor, truth: Tensor, penalty: float | None = None) -> tuple[float, Tensor, float]:
    """Fit what is true or false by penalised logistic regression, with Newton's method.

    Args:
        rows: float64 [n, dim].
        truth: bool [n].
        penalty: in units of the mean variance of a coordinate, times n; by default that of `LOGISTIC_PENALTIES` with
            the least loss on a fifth of the rows that is set aside for the choice.

    Returns:
        Offset, normal [dim] and the penalty.
    """
    mean = rows.mean(0)
    centred, target = rows - mean, truth.double()
    if penalty is None:
        seen = len(rows) - max(1, len(rows) // 5)
        losses, weights = [], None
        for candidate in reversed(LOGISTIC_PENALTIES):  # from the strongest on, each begins at the last
            weights = _newton(centred[:seen], target[:seen], candidate, weights)
            odds = weights[0] + centred[seen:] @ weights[1:]
            losses.append(float(torch.nn.functional.binary_cross_entropy_with_logits(odds, target[seen:])))
        penalty = tuple(reversed(LOGISTIC_PENALTIES))[losses.index(min(losses))]
    weights = _newton(centred, target, penalty, None)
    return float(weights[0] - mean @ weights[1:]), weights[1:], penalty


def _newton(rows: Tensor, target: Tensor, penalty: float, weights: Tensor | None, *, most: int = 50) -> Tensor:
    """Minimise the penalised logistic loss; the offset, which comes first, bears no penalty."""
    full = torch.cat([torch.ones(len(rows), 1, dtype=rows.dtype), rows], dim=1)
    strength = torch.full((full.shape[1],), penalty * float(rows.square().mean()) * len(rows), dtype=rows.dtype)
    strength[0] = 1e-9  # nothing else holds the offset where all answers are alike
    weights = torch.zeros(full.shape[1], dtype=rows.dtype) if weights is None else weights

    def loss(at: Tensor) -> float:
        fit = torch.nn.functional.binary_cross_entropy_with_logits(full @ at, target, reduction="sum")
        return float(fit + 0.5 * (strength * at.square()).sum())

    now = loss(weights)
    for _ in range(most):
        chance = torch.sigmoid(full @ weights)
        gradient = full.T @ (chance - target) + strength * weights
        curvature = full.T @ (full * (chance * (1 - chance))[:, None]) + strength.diag()
        step = torch.linalg.solve(curvature, gradient)
        size, before = 1.0, now
        while (now := loss(weights - size * step)) > before and size > 1e-4:
            size /= 2
        if now > before:
            return weights
        weights = weights - size * step
        if before - now <= 1e-9 * max(1.0, abs(before)):
            break
    return weights


def held(normals: Tensor, rows: Tensor) -> Tensor:
    """Turn normals into directions that change one prediction each and leave the others as they are.

    Among all moves that do so, each is the one that changes its own prediction most for its length in σ: with C the
    covariance of the codes, C r, where r is the normal less its projection, in the metric of C, on the other normals.

    Args:
        normals: [k, dim].
        rows: codes, [n, dim].

    Returns:
        Directions [k, dim].

    Raises:
        UserError: where a normal depends on the others.
    """
    normals = torch.nn.functional.normalize(normals, dim=1)
    covariance = torch.cov(rows.T)
    directions = []
    for k, normal in enumerate(normals):
        others = torch.cat([normals[:k], normals[k + 1 :]])
        inner = others @ covariance @ others.T
        rest = normal
        if len(others):
            rest = normal - torch.linalg.lstsq(inner, others @ covariance @ normal).solution @ others
        if float(rest @ covariance @ rest) < 1e-8 * float(normal @ covariance @ normal):
            raise UserError(
                f"attribute number {k} follows from the others, so they cannot be held; fit fewer attributes"
            )
        directions.append(covariance @ rest)
    return torch.stack(directions)
