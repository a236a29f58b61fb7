"""Whether a method finds the same again, and whether edits add up: stability, drift and commutativity."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import algebra
from ..codes import Codes
from ..directions import Directions
from ..effect import image_distance, sample_for
from ..errors import Unsupported
from ..generator import Generator, load_generator
from ..method import METHODS
from ..metric import Score, make_score
from ..reader import Reader, open_reader
from .features import collect, in_sigma, plain, read_samples, read_walk, spans

NULL_DRAWS = 32
"""Sets of random directions behind the null of effects."""


def method_of(directions: Directions) -> Any:
    """Return the method that made directions, with its settings on record; what else is on record, it does without.

    Raises:
        Unsupported: where no method of the table made them, or it does not take these settings.
    """
    made = directions.provenance
    if made.method not in METHODS:
        raise Unsupported(f"directions made by {made.method or 'nobody knows what'} cannot be found again")
    kind = METHODS[made.method]
    known = {each.name for each in dataclasses.fields(kind)}
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in made.arguments.items() if k in known})
    except TypeError as error:
        raise Unsupported(f"{made.method} cannot be run again with the arguments on record: {error}") from error


# --- over seeds of the method -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedStability:
    """Whether the same method finds the same directions under other seeds: the mean matched |cos|.

    The method is run again, with the arguments that the directions remember, under the seeds that follow theirs. The
    sets are matched one to one, signs and order ignored. `details` has the mean of each seed, each direction's mean
    |cos| with its match, and the null: what random frames of the same sizes give.

    It runs the method as often as there are seeds.
    """

    n_seeds: int = 2
    """Further seeds."""
    name: ClassVar[str] = "seed_stability_v1"
    uses_strength: ClassVar[bool] = False

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Run the method again and match; `seed` moves the further seeds, and fixes the null.

        Raises:
            Unsupported: where the directions do not come from a method of the table.
        """
        made, method = directions.provenance, method_of(directions)
        kept = torch.zeros(len(directions), dtype=torch.float64)
        means, null, null_95 = [], 0.0, 0.0
        for more in range(self.n_seeds):
            again = method.fit(generator, seed=made.seed + 1 + seed * self.n_seeds + more)
            found = algebra.similarity(directions, again, seed=seed)
            null, null_95 = found.null, found.null_95
            means.append(found.mean)
            for (row, _), value in zip(found.pairs, found.matched, strict=True):
                kept[row] += float(value) / self.n_seeds
        value = sum(means) / max(len(means), 1)
        details = {"seeds": means, "kept": kept, "null": null, "null_95": null_95, "names": list(directions.names)}
        return make_score(self, generator, directions, value, n=self.n_seeds, seed=seed, **plain(details))


# --- over seeds of the generator --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneratorStability:
    """Whether a method finds directions of the same effects in generators trained from other seeds.

    Latent spaces of two trainings have nothing in common, so what is compared is what a reader sees: the standardised
    change of each attribute from -s to +s. Rows are matched by |cos|, weighted by nothing. The null matches the
    directions with random ones of the other generator.
    """

    others: tuple[str, ...] = ()
    """The other generators, as `load_generator` takes them."""
    reader: str | Reader | Callable[[Tensor], Tensor] = "pixels"
    """Name of a reader, `package.module:function`, or a reader itself."""
    n: int = 32
    """Codes."""
    strength: float = 2.0
    """How far each way, in σ."""
    name: ClassVar[str] = "generator_stability_pixels_v1"

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Run the method on each other generator, read effects, and match them.

        Raises:
            Unsupported: where no other generator is given, or the directions come from no method of the table.
        """
        if not self.others:
            raise Unsupported("stability over generator seeds needs generators of other seeds: others=('PATH', ...)")
        made, method = directions.provenance, method_of(directions)
        reader = open_reader(self.reader)
        mine = effects_of(generator, directions, reader, n=self.n, strength=self.strength, seed=seed)
        means, nulls = [], []
        for path in self.others:
            other = load_generator(path)
            theirs = method.fit(other, seed=made.seed)
            means.append(
                matched_mean(mine, effects_of(other, theirs, reader, n=self.n, strength=self.strength, seed=seed))
            )
            dim = other.space(theirs.space).dim
            random = METHODS["random"](n_directions=min(len(theirs), dim), space=theirs.space)
            drawn = random.fit(other, seed=seed)
            nulls.append(
                matched_mean(mine, effects_of(other, drawn, reader, n=self.n, strength=self.strength, seed=seed))
            )
        details = {"others": list(self.others), "matched": means, "null": sum(nulls) / len(nulls)}
        value = sum(means) / len(means)
        return make_score(self, generator, directions, value, n=len(means), seed=seed, **plain(details))


def effects_of(
    generator: Generator, directions: Directions, reader: Reader, *, n: int, strength: float, seed: int
) -> Tensor:
    """Return the mean change of each attribute from -s to +s, in its spread over samples: [k, attributes]."""
    directions = in_sigma(generator, directions)
    _, reading = read_samples(generator, directions, reader, 128, seed=seed)
    scale = reading.scores.double().std(0)
    codes = sample_for(generator, directions, n, seed=seed)
    rows = []
    for k, reach in enumerate(spans(directions, strength)):
        scores = read_walk(generator, codes, directions, k, (-reach, reach), reader).scores.double()
        rows.append((scores[:, 1] - scores[:, 0]).mean(0))
    return torch.where(scale > 1e-9, torch.stack(rows) / scale.clamp(min=1e-9), 0.0)


def matched_mean(a: Tensor, b: Tensor) -> float:
    """Match rows of a [k, dim] and b [m, dim] one to one by |cos|, and return the mean |cos| of the pairs."""
    unit = lambda rows: rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)  # noqa: E731
    cosines = (unit(a) @ unit(b).T).abs()
    return float(torch.stack([cosines[pair] for pair in algebra.match(-cosines.numpy())]).mean())


# --- edits that add up ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drift:
    """How far several small edits end from one large one: their image distance over the distance of the large edit.

    0 by construction for straight directions; curved ones and those that depend on the code drift. Ours; no published
    score.
    """

    n: int = 16
    """Codes."""
    strength: float = 2.0
    """The large edit, in σ; less where limits are nearer."""
    n_steps: int = 8
    """Small edits."""
    name: ClassVar[str] = "drift_v1"

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Edit both ways and compare."""
        directions = in_sigma(generator, directions)
        codes = sample_for(generator, directions, self.n, seed=seed)
        values = []
        for k, reach in enumerate(spans(directions, self.strength)):
            small = codes
            for _ in range(self.n_steps):
                small = directions.move(small, k, by=reach / self.n_steps)
            large = directions.move(codes, k, by=reach)
            values.append(_ratio(generator, small, large, [(codes, large)]))
        value = sum(values) / max(len(values), 1)
        found = {"drift": values, "names": list(directions.names)}
        return make_score(self, generator, directions, value, n=self.n, seed=seed, **plain(found))


@dataclass(frozen=True)
class Commutativity:
    """How much the order of two edits matters: the image distance of both orders over the mean of the two edits' own.

    0 by construction for straight directions. The value is the mean over pairs of directions. Ours; no published score.
    """

    n: int = 8
    """Codes."""
    strength: float = 2.0
    """Both edits, in σ; less where limits are nearer."""
    n_directions: int = 8
    """First directions whose pairs are tried."""
    name: ClassVar[str] = "commutativity_v1"

    def score(self, generator: Generator, directions: Directions, *, seed: int = 0) -> Score:
        """Edit in both orders and compare."""
        directions = in_sigma(generator, directions)
        codes = sample_for(generator, directions, self.n, seed=seed)
        reach = spans(directions, self.strength)
        values = {}
        for i, j in itertools.combinations(range(min(len(directions), self.n_directions)), 2):
            first, second = (directions.move(codes, which, by=reach[which]) for which in (i, j))
            both = directions.move(first, j, by=reach[j]), directions.move(second, i, by=reach[i])
            values[f"{directions.names[i]} {directions.names[j]}"] = _ratio(
                generator, *both, [(codes, first), (codes, second)]
            )
        value = sum(values.values()) / len(values) if values else 0.0
        return make_score(self, generator, directions, value, n=self.n, seed=seed, pairs=plain(values))


def _ratio(generator: Generator, a: Codes, b: Codes, units: list[tuple[Codes, Codes]]) -> float:
    """Return the mean image distance of two batches over the mean of that of other pairs; 0 where those are alike."""
    images = lambda codes: collect(generator, codes, lambda x: x, what="")  # noqa: E731
    size = torch.stack([image_distance(images(one), images(other)).mean() for one, other in units]).mean()
    return float(image_distance(images(a), images(b)).mean() / size) if size > 1e-9 else 0.0
