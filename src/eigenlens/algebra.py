"""What one can compute with directions: compare, make orthogonal, combine, take apart, and find what many sets share.

Everything here works on the vectors alone; no image is made. Directions of w and of w+ compare: a vector with one row
stands for the same row in every slot. Layer ranges are ignored unless a `space` is given, which turns them into masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from . import __version__, runtime
from .codes import Space
from .directions import Directions, Provenance, fixed_signs, row_norm, standard_deviation, unit_norm
from .errors import UserError

NULL_DRAWS = 64
"""Pairs of random frames behind the null of `similarity`."""
VANISHED = 1e-4
"""Share of its length below which what is left of a direction is rounding."""


# --- rows in one frame ------------------------------------------------------------------------------------------------


def _flat(sets: Sequence[Directions], *, space: Space | None = None, covariance: Tensor | None = None) -> list[Tensor]:
    """Return the vectors of each set as float64 rows [k, slots * dim] of one common shape.

    With a covariance C the rows are √C v, so that their scalar products are uᵀCv.
    """
    dim = sets[0].vectors.shape[2]
    slots = {each.vectors.shape[1] for each in sets} | ({space.slots} if space else set())
    kinds = ", ".join(f"{each.space} {list(each.vectors.shape[1:])}" for each in sets)
    if any(each.vectors.shape[2] != dim for each in sets) or len(slots - {1}) > 1:
        raise UserError(f"directions of different widths came: {kinds}; only those of one space compare")
    if len({each.space.removesuffix("+") for each in sets}) > 1:
        raise UserError(f"directions of different spaces came: {kinds}; only those of one space compare")
    root = None if covariance is None else _square_root(covariance, dim)
    rows = []
    for each in sets:
        each.check_straight("comparing or combining vectors")
        vectors = each.vectors.double().expand(-1, max(slots), -1)
        if space is not None:
            each.check_space(space)
            vectors = vectors * torch.stack([space.mask(layers) for layers in each.layers])
        rows.append((vectors if root is None else vectors @ root).flatten(1))
    return rows


def _square_root(covariance: Tensor, dim: int) -> Tensor:
    if covariance.shape != (dim, dim):
        raise UserError(f"a covariance of shape {list(covariance.shape)} came for directions of length {dim}")
    values, frame = torch.linalg.eigh(covariance.double())
    return frame * values.clamp(min=0).sqrt() @ frame.T


def _unit(rows: Tensor) -> Tensor:
    norms = rows.norm(dim=1, keepdim=True)
    if (norms == 0).any():
        at = int((norms[:, 0] == 0).nonzero()[0])
        raise UserError(f"direction {at} is zero here (by its layers, or where codes do not vary); leave it out")
    return rows / norms


def _derived(directions: Directions, vectors: Tensor, operation: str, **arguments: object) -> Directions:
    """Return directions with other vectors and the operation as provenance; no figure of the old ones holds."""
    made = directions.provenance
    return Directions(
        vectors.to(directions.vectors),
        directions.space,
        directions.names,
        directions.layers,
        directions.unit,
        provenance=Provenance(made.generator, operation, {"of": _origin(directions), **arguments}, 0, __version__),
    )


def _origin(directions: Directions) -> dict[str, object]:
    made = directions.provenance
    return {"method": made.method, "arguments": dict(made.arguments), "seed": made.seed}


# --- compare ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Similarity:
    """How alike two sets of directions are, beside what chance alone gives."""

    cosines: Tensor
    """|cos| of each pair, [k_a, k_b]."""
    pairs: tuple[tuple[int, int], ...]
    """The matching, one to one, whose |cos| sum to the most; min(k_a, k_b) pairs, best first."""
    matched: Tensor
    """|cos| of those pairs."""
    angles: Tensor
    """Principal angles between the two spans in degrees, smallest first."""
    null: float
    """Mean matched |cos| of random orthonormal frames of the same sizes in the same number of dimensions."""
    null_95: float
    """95 % quantile of that mean over draws: a mean above it is more than chance."""
    null_pair_95: float
    """95 % quantile of the |cos| of a single pair in such a matching."""

    @property
    def mean(self) -> float:
        """Mean matched |cos|."""
        return float(self.matched.mean())


def similarity(
    a: Directions,
    b: Directions,
    *,
    space: Space | None = None,
    covariance: Tensor | None = None,
    draws: int = NULL_DRAWS,
    seed: int = 0,
) -> Similarity:
    """Compare two sets of directions; the order and the signs of neither matter.

    Args:
        a, b: of one space; w and w+ compare.
        space: where given, layer ranges count.
        covariance: [dim, dim]; where given, cosines are uᵀCv / (σ_u σ_v): for w, how strongly the coordinates of
            samples along u and v correlate. Without it they are those of the vectors.
        draws: how many pairs of random frames tell the null.
        seed: of those.

    Raises:
        UserError: where their spaces or widths differ.
    """
    if not len(a) or not len(b):
        raise UserError("a set without directions came; there is nothing to compare")
    rows = [_unit(each) for each in _flat([a, b], space=space, covariance=covariance)]
    cosines = (rows[0] @ rows[1].T).abs().clamp(max=1)
    pairs = sorted(match(-cosines.numpy()), key=lambda pair: -float(cosines[pair]))
    ranges = {*a.layers, *b.layers}
    if space is None:
        dim = rows[0].shape[1]
    elif space.broadcast_of and a.vectors.shape[1] == b.vectors.shape[1] == 1:
        dim = space.dim  # the rows of a direction repeat one
    else:
        dim = int(torch.stack([space.mask(each) for each in ranges]).amax(0).sum())
    null, null_95, null_pair_95 = matched_null(dim, len(a), len(b), draws=draws, seed=seed)
    matched = torch.tensor([float(cosines[pair]) for pair in pairs])
    angles = principal_angles(*rows)
    return Similarity(cosines.float(), tuple(pairs), matched, angles, null, null_95, null_pair_95)


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """Return the principal angles between the spans of two sets of rows, in degrees, smallest first.

    Source:
        Björck and Golub, Numerical methods for computing angles between linear subspaces, 1973.
    """
    frames = [_span(a), _span(b)]
    if len(frames[0]) < len(frames[1]):
        frames.reverse()
    larger, smaller = frames
    cosines = torch.linalg.svdvals(smaller @ larger.T)
    outside = smaller - smaller @ larger.T @ larger
    sines = torch.linalg.svdvals(outside).flip(0)  # smallest angle first, as the cosines are
    by_cosine = torch.arccos(cosines.clamp(max=1))
    by_sine = torch.arcsin(sines.clamp(max=1))
    # near 0 the cosine tells nothing in floating point, near 90 degrees the sine
    return torch.rad2deg(torch.where(cosines.square() > 0.5, by_sine, by_cosine)).float()


def _span(rows: Tensor) -> Tensor:
    """Return orthonormal rows with the same span; dependent rows add nothing."""
    _, values, frame = torch.linalg.svd(rows.double(), full_matrices=False)
    return frame[values > values[0] * 1e-9]


def match(cost: np.ndarray) -> list[tuple[int, int]]:
    """Return the pairs (row, column), one to one, min(n, m) of them, whose summed cost is least.

    Source:
        The Hungarian algorithm by shortest augmenting paths: Jonker and Volgenant, 1987; O(n² m).

    Example:
        >>> match(np.array([[4.0, 1.0], [2.0, 0.0], [3.0, 5.0]]))
        [(0, 1), (1, 0)]
    """
    cost = np.asarray(cost, dtype=np.float64)
    if cost.shape[0] > cost.shape[1]:
        return sorted((row, column) for column, row in match(cost.T))
    n, m = cost.shape
    row_price, column_price = np.zeros(n), np.zeros(m)
    owner = np.full(m, -1)  # the row that holds each column
    for new in range(n):
        shortest, came_from = np.full(m, np.inf), np.full(m, -1)
        is_open = np.ones(m, dtype=bool)
        row, column, length = new, -1, 0.0
        while True:  # grow the tree of alternating paths by its nearest column, until that one is free
            through = length + cost[row] - row_price[row] - column_price
            is_better = is_open & (through < shortest)
            shortest[is_better], came_from[is_better] = through[is_better], column
            column = int(np.where(is_open, shortest, np.inf).argmin())
            length, is_open[column] = float(shortest[column]), False
            if owner[column] < 0:
                break
            row = int(owner[column])
        closed = ~is_open
        closed[column] = False
        row_price[new] += length
        row_price[owner[closed]] += length - shortest[closed]
        column_price[closed] -= length - shortest[closed]
        while column >= 0:  # walk back along the path and hand each column on
            before = int(came_from[column])
            owner[column] = new if before < 0 else owner[before]
            column = before
    return sorted((int(owner[column]), int(column)) for column in range(m) if owner[column] >= 0)


def matched_null(dim: int, n_a: int, n_b: int, *, draws: int = NULL_DRAWS, seed: int = 0) -> tuple[float, float, float]:
    """Return what matching gives by chance: for random orthonormal frames of `n_a` and `n_b` vectors in `dim`.

    Returns:
        The mean matched |cos| over draws, the 95 % quantile of a draw's mean, and the 95 % quantile of single pairs.
    """
    n_a, n_b = sorted((min(n_a, dim), min(n_b, dim)))
    means, singles = [], []
    for draw in range(draws):
        # only the angle between the frames is random, so one of them may be the first axes
        columns = runtime.generator_for(seed, "similarity/null", draw).standard_normal((dim, n_b))
        cosines = np.abs(np.linalg.qr(columns)[0][:n_a])  # [n_a, n_b]
        matched = [cosines[pair] for pair in match(-cosines)]
        means.append(np.mean(matched))
        singles += matched
    return float(np.mean(means)), float(np.quantile(means, 0.95)), float(np.quantile(singles, 0.95))


# --- change -----------------------------------------------------------------------------------------------------------


def orthogonalise(
    directions: Directions, *, against: Directions | None = None, covariance: Tensor | None = None
) -> Directions:
    """Return directions without what they share with others, or, without `against`, with the ones before them.

    Args:
        directions: in the order that matters: without `against`, the first stays as it is (Gram-Schmidt).
        against: what to leave out, as a conditional edit does: age without glasses.
        covariance: [dim, dim] of the space. Where given, vectors end orthogonal as uᵀCv = 0: coordinates of
            samples along them are uncorrelated. Without it vᵀu = 0: a move along one leaves the coordinate along the
            other where it is.

    Returns:
        Directions of unit norm, with σ only where `covariance` is given; the rest is to be measured again.

    Raises:
        UserError: where nothing is left of a direction.
    """
    sets = [directions] if against is None else [directions, against]
    slots = max(each.vectors.shape[1] for each in sets)
    _flat(sets)  # refuses those that do not compare
    metric = torch.eye(directions.vectors.shape[2], dtype=torch.float64) if covariance is None else covariance.double()
    others = [] if against is None else list(against.vectors.double().expand(-1, slots, -1))
    frame: list[Tensor] = []  # orthonormal in the metric
    for other in others:
        left = _without(other, frame, metric)
        if _length(left, metric) > 1e-9 * _length(other, metric):
            frame.append(left / _length(left, metric))
    results = []
    for name, vector in zip(directions.names, directions.vectors.double().expand(-1, slots, -1), strict=True):
        left = _without(vector, frame, metric)
        if left.norm() <= VANISHED * vector.norm():
            raise UserError(f"{name!r} lies in the span of the others, so that nothing of it is left; leave it out")
        results.append(left)
        if against is None:
            frame.append(left / _length(left, metric))
    vectors = unit_norm(torch.stack(results)) if results else directions.vectors
    arguments = {"against": None if against is None else _origin(against), "by_covariance": covariance is not None}
    made = _derived(directions, vectors, "orthogonalise", **arguments)
    if covariance is None:
        return made
    space = Space(
        directions.space,
        slots,
        len(metric),
        moments=lambda: (torch.zeros(len(metric)), metric),
        broadcast_of=directions.space,
    )
    return replace(made, sigma=standard_deviation(vectors, space).float())


def _without(vector: Tensor, frame: Sequence[Tensor], metric: Tensor) -> Tensor:
    for _ in range(2):  # once more takes away what rounding left
        for each in frame:
            vector = vector - (vector @ metric * each).sum() * each
    return vector


def _length(vector: Tensor, metric: Tensor) -> Tensor:
    return (vector @ metric * vector).sum().clamp(min=0).sqrt()


def compose(
    directions: Directions,
    weights: Mapping[int | str, float] | Sequence[float],
    name: str,
    *,
    space: Space | None = None,
) -> Directions:
    """Return one direction that does several things at once.

    Args:
        directions: what it is made of.
        weights: how far along each, in their unit (σ): by index or name, or one for each.
        name: of the new one.
        space: needed where the directions act on different layers: it turns ranges into zero rows.

    Returns:
        One direction in raw units whose vector is the whole step: strength 1 is the recipe itself.
        `in_sigma(space)` brings it to σ; where `space` is given, the field `recipe` is the strength in σ that is the
        recipe then.

    Raises:
        UserError: where the weights do not fit, a σ is not known, or the sum is zero.
    """
    if not isinstance(weights, Mapping):
        if len(weights) != len(directions):
            raise UserError(
                f"{len(weights)} weights came for {len(directions)} directions; give one each, or name them"
            )
        weights = dict(enumerate(weights))
    amounts = torch.zeros(len(directions))
    for which, weight in weights.items():
        amounts[directions.index(which)] += weight
    used = [row for row in range(len(directions)) if amounts[row] != 0]
    if not used:
        raise UserError("all weights are zero, so the sum leads nowhere; give at least one that is not")
    layers = {directions.layers[row] for row in used}
    if len(layers) > 1 and space is None:
        raise UserError(
            f"directions of different layers ({', '.join(sorted(layers))}) make one only where the space is known; "
            "pass space=generator.space(...)"
        )
    steps = _steps(directions[used])
    if len(layers) > 1 and space is not None:
        directions.check_space(space)
        steps = steps * torch.stack([space.mask(directions.layers[row]) for row in used])
    vector = (amounts[used, None, None] * steps).sum(0, keepdim=True)
    length = row_norm(vector)  # refuses zero
    recipe = {directions.names[row]: float(amounts[row]) for row in used}
    origin = directions.provenance
    fields = {} if space is None else {"recipe": length / standard_deviation(unit_norm(vector), space).to(length)}
    return Directions(
        vector,
        directions.space if vector.shape[1] == directions.vectors.shape[1] or space is None else space.name,
        (name,),
        layers=(layers.pop() if len(layers) == 1 else "all",),
        unit="raw",
        fields=fields,
        provenance=Provenance(
            origin.generator, "compose", {"of": _origin(directions), "weights": recipe}, 0, __version__
        ),
    )


def _steps(directions: Directions) -> Tensor:
    """Return what one unit of strength adds, [k, slots, dim], before layer ranges."""
    directions.check_straight("comparing or combining vectors")
    if directions.unit == "raw":
        return directions.vectors
    if not directions.sigma.isfinite().all():
        at = int((~directions.sigma.isfinite()).nonzero()[0])
        raise UserError(
            f"the σ of {directions.names[at]!r} is not known; measure it with effect.calibrate(generator, directions)"
        )
    return directions.vectors * directions.sigma[:, None, None]


@dataclass(frozen=True, eq=False)
class Decomposition:
    """What directions are made of, in terms of others."""

    names: tuple[str, ...]
    """The directions that were taken apart."""
    parts: tuple[str, ...]
    """The directions they were taken apart into."""
    indices: Tensor
    """Which parts each is made of, most explained first, [n, k]."""
    weights: Tensor
    """How far along each of those one unit of the direction leads, in their unit, [n, k]."""
    share: Tensor
    """Share of the squared length that the first 1, 2, ..., k parts explain, [n, k]."""

    def recipe(self, which: int = 0) -> dict[str, float]:
        """Return weights by name for one direction, as `compose` takes them."""
        rows = zip(self.indices[which].tolist(), self.weights[which].tolist(), strict=True)
        return {self.parts[part]: weight for part, weight in rows if weight}


def decompose(directions: Directions, *, into: Directions, k: int = 3, space: Space | None = None) -> Decomposition:
    """Take directions apart into at most `k` of others (orthogonal matching pursuit).

    Args:
        directions: what to take apart; their σ is needed where they are in σ.
        into: the parts, of the same space.
        k: how many parts each may have.
        space: where given, layer ranges count.

    Source:
        Pati, Rezaiifar, Krishnaprasad, Orthogonal matching pursuit, 1993.
    """
    if not 1 <= k <= len(into):
        raise UserError(
            f"k = {k} parts were asked for; there are {len(into)} to choose from, so allowed are 1-{len(into)}"
        )
    whole = replace(directions, vectors=_steps(directions))
    parts = replace(into, vectors=_steps(into))
    rows, atoms = _flat([whole, parts], space=space)
    lengths = atoms.norm(dim=1)
    chosen, amounts, share = pursue(_unit(rows), _unit(atoms), k)
    weights = amounts * rows.norm(dim=1)[:, None] / lengths[chosen]
    return Decomposition(directions.names, into.names, chosen, weights.float(), share.float())


def pursue(rows: Tensor, atoms: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Write each row as a sum of `k` atoms by orthogonal matching pursuit.

    Args:
        rows: [n, d], of length 1.
        atoms: [m, d], of length 1.
        k: atoms a row, at most m.

    Returns:
        Indices [n, k] in the order of choice, amounts [n, k], and the share of the squared length explained after each
        choice [n, k].
    """
    cosines, along = atoms @ atoms.T, rows @ atoms.T  # [m, m], [n, m]
    lengths = rows.square().sum(1)
    chosen = torch.zeros(len(rows), 0, dtype=torch.long)
    rest, shares = rows, []
    amounts = torch.zeros(len(rows), 0, dtype=rows.dtype)
    for _ in range(k):
        scores = (rest @ atoms.T).abs().scatter(1, chosen, -1.0)  # what is chosen is not chosen again
        chosen = torch.cat([chosen, scores.argmax(1, keepdim=True)], dim=1)  # [n, j]
        gram = cosines[chosen[:, :, None], chosen[:, None, :]]  # [n, j, j]
        # the pseudo-inverse bears atoms that are the same
        inverse = torch.linalg.pinv(gram, rtol=1e-10, hermitian=True)
        amounts = (inverse @ along.gather(1, chosen)[:, :, None])[:, :, 0]  # [n, j]
        rest = rows - (amounts[:, None, :] @ atoms[chosen])[:, 0]
        shares.append((1 - rest.square().sum(1) / lengths).clamp(0, 1))
    return chosen, amounts, torch.stack(shares, dim=1)


# --- what many sets share ---------------------------------------------------------------------------------------------


def codebook(
    sets: Sequence[Directions],
    n: int,
    *,
    sparsity: int = 1,
    iterations: int = 30,
    seed: int = 0,
    space: Space | None = None,
) -> Directions:
    """Find `n` primitives from which the directions of all `sets` are made.

    With `sparsity` 1 each direction belongs to one primitive, whatever its sign, and a primitive is the axis closest
    to its members (k-means for lines). With more, each is a sum of so many: K-SVD.

    Args:
        sets: the directions of several methods, seeds or runs, all of one space.
        n: how many primitives.
        sparsity: of how many primitives a direction may be made.
        iterations: rounds of the search.
        seed: of its start; the best of 4 starts is kept.
        space: where given, layer ranges count.

    Returns:
        Primitives `code-0` ..., the most used first. `importance` is the share of the squared length of all
        directions that each explains; `fields`: `members`, how many directions use it, and `sets`, in how many sets
        it occurs. A primitive of one set only is that set's own view. σ is to be measured.

    Source:
        Aharon, Elad, Bruckstein, K-SVD, 2006.
    """
    if not sets:
        raise UserError("no sets of directions came; give at least one")
    rows = [_unit(each) for each in _flat(sets, space=space)]
    pooled = torch.cat(rows)
    if not 1 <= n <= len(pooled):
        raise UserError(f"{n} primitives were asked for; {len(pooled)} directions came, so allowed are 1-{len(pooled)}")
    if not 1 <= sparsity <= n:
        raise UserError(f"a sparsity of {sparsity} was asked for; with {n} primitives allowed are 1-{n}")
    fits = [_k_svd(pooled, n, sparsity, iterations, runtime.generator_for(seed, "codebook", i)) for i in range(4)]
    atoms, chosen, amounts, _ = max(fits, key=lambda fit: fit[3])
    explained, members, n_sets = _usage(pooled, atoms, chosen, amounts, [len(each) for each in rows])
    order = explained.argsort(descending=True, stable=True)
    first = next((each for each in sets if each.vectors.shape[1] > 1), sets[0])
    slots = pooled.shape[1] // first.vectors.shape[2]
    arguments = {"sets": [_origin(each) for each in sets], "n": n, "sparsity": sparsity}
    return Directions(
        unit_norm(fixed_signs(atoms[order].float().unflatten(1, (slots, -1)))),
        first.space if space is None or slots == first.vectors.shape[1] else space.name,
        tuple(f"code-{i}" for i in range(n)),
        importance=explained[order],
        fields={"members": members[order], "sets": n_sets[order]},
        provenance=Provenance(sets[0].provenance.generator, "codebook", arguments, seed, __version__),
    )


def _usage(
    rows: Tensor, atoms: Tensor, chosen: Tensor, amounts: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return of each atom the share of squared length that it explains, its users, and the sets that use it."""
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    explained, members, n_sets = [], [], []
    for j, atom in enumerate(atoms):
        is_used = (chosen == j) & (amounts != 0)  # [rows, sparsity]
        users = is_used.any(1)
        along = (amounts * is_used).sum(1) * (rows @ atom)  # what the atom adds to the fitted squared length
        explained.append(along[users].sum() / len(rows))
        members.append(users.sum())
        n_sets.append(owner[users].unique().numel())
    return torch.stack(explained).float(), torch.stack(members).float(), torch.tensor(n_sets).float()


def _k_svd(
    rows: Tensor, n: int, sparsity: int, iterations: int, random: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return atoms [n, d], and each row's choice and amounts [m, sparsity], and the share explained."""
    atoms = _spread_start(rows, n, random)
    last = -1.0
    for _ in range(iterations):
        chosen, amounts, share = pursue(rows, atoms, sparsity)
        total = float(share[:, -1].mean())
        if total <= last + 1e-9:
            break
        last, codes = total, torch.zeros(len(rows), n, dtype=rows.dtype).scatter_(1, chosen, amounts)
        for j in range(n):
            users = codes[:, j] != 0
            if not users.any():  # an idle atom takes the row that is explained worst
                atoms[j] = rows[int(share[:, -1].argmin())]
                continue
            without = rows[users] - codes[users] @ atoms + codes[users, j : j + 1] * atoms[j]
            left, value, right = torch.linalg.svd(without, full_matrices=False)
            atoms[j], codes[users, j] = right[0], left[:, 0] * value[0]
    chosen, amounts, share = pursue(rows, atoms, sparsity)
    return atoms, chosen, amounts, float(share[:, -1].mean())


def _spread_start(rows: Tensor, n: int, random: np.random.Generator) -> Tensor:
    """Choose `n` rows that lie apart: each with a chance that grows with 1 - cos² to the nearest chosen (k-means++)."""
    chosen = [int(random.integers(len(rows)))]
    for _ in range(n - 1):
        far = (1 - (rows @ rows[chosen].T).square().amax(1)).clamp(min=0)
        far[chosen] = 0
        chance = (far + 1e-12 * (far == 0)).numpy()
        chance[chosen] = 0
        chosen.append(int(random.choice(len(rows), p=chance / chance.sum())))
    return rows[chosen].clone()
