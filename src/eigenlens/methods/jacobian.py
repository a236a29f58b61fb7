"""Directions from the generator's Jacobian: what changes an image, a layer or a region of it most."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import runtime
from ..codes import Codes, Space
from ..directions import Directions, fixed_signs, standard_deviation, unit_norm
from ..errors import UserError
from ..generator import Generator
from ..method import check_layers, chosen_space, provenance
from .linalg import eigen_descending, matched_cosines, nystrom, orthonormal, start_block

Region = tuple[float, float, float, float]


@dataclass(frozen=True)
class Jacobian:
    """Eigenvectors of the mean of JᵀJ, with J the derivative of the image, or of a layer, by the latent.

    They are found by subspace iteration with Jacobian-vector and vector-Jacobian products; J is never made. Mean is
    over codes, and over JᵀJ: singular vectors of single codes have no common sign or order to be averaged in. With
    `region` they maximise the change inside over the change outside, vᵀAv / vᵀ(B + λI)v, among the directions that
    change the inside most.

    `importance` is the share in the trace of the mean JᵀJ, or with a region the ratio of inside to outside;
    `split_half` compares the two halves of the codes.

    Source:
        Wang & Ponce, The geometry of deep generative image models, ICLR 2021; with a region Zhu et al., Region-based
        semantic factorization in GANs, ICML 2022, equations 4 to 6.
    """

    n_directions: int = 10
    """How many at most; fewer where the space has fewer dimensions."""
    at: str = "image"
    """Layer whose features are derived, or `image`."""
    n_samples: int = 32
    """Codes in the mean."""
    sample: int | None = None
    """Number of one code of the seed: directions at that code alone instead of the mean."""
    region: tuple[float, float, float, float] | str | None = None
    """Box x0,y0,x1,y1, in pixels of the image, or in fractions of its width and height where all are at most 1."""
    regularisation: float = 0.01
    """λ with a region, in units of the mean eigenvalue of B."""
    iterations: int = 4
    """Steps of the subspace iteration."""
    layers: str = "all"
    """Layer range that moves, and in which the directions act."""
    space: str | None = None
    """Space of the directions; by default the generator's own default."""
    truncation: float = 1.0
    """Of the codes."""
    label: int | str | None = None
    """Class of the codes; by default all classes."""
    name: ClassVar[str] = "jacobian"

    def fit(
        self, generator: Generator, *, seed: int = 0, run: Path | None = None, codes: Codes | None = None
    ) -> Directions:
        """Find the directions at codes of `seed`, or at codes that are given.

        Args:
            generator: any generator.
            seed: of the codes, and of the block that the iteration begins with.
            run: of no use here.
            codes: [n, slots, dim]: where, in place of codes that are drawn; `n_samples`, `sample`, `truncation` and
                `label` then say nothing. Without a `space` the directions are those of the codes' own, of w for w+.

        Raises:
            UserError: on a layer, region or range that is not there, no codes, or codes that cannot reach `space`.
        """
        self._check()
        codes = self._drawn(generator, seed) if codes is None else self._given(generator, codes)
        space = _repeated(generator, codes.space)
        check_layers(generator, space, self.layers)
        n = len(codes)
        region = parse_region(self.region)
        problem = Derivative(generator, codes, self.layers, self.at, region)
        dim = len(problem.free)
        k = min(self.n_directions, dim)
        width = min(dim, max(4 * k, 64) if region else k + max(k // 2, 10))
        block = start_block(dim, width, seed=seed)
        for _ in runtime.progress(range(self.iterations - 1 if width < dim else 0), what="jacobian", unit="step"):
            block = orthonormal(problem.gram_times(block)[0].mean(0))
        inside, outside = problem.gram_times(block, outside=region is not None)  # [2, dim, width] each
        if outside is None:
            vectors, figures = _leading(problem, block, inside, k, seed)
        else:
            vectors, figures = _quotient(block, inside, outside, k, self.regularisation)
        final = fixed_signs(unit_norm(problem.shaped(vectors)))
        return Directions(
            final,
            space.name,
            tuple(f"jacobian-{i}" for i in range(len(final))),
            layers=(self.layers,) * len(final),
            sigma=standard_deviation(final, space),
            importance=figures.pop("importance"),
            split_half=figures.pop("split_half") * (1.0 if n > 1 else math.nan),  # one code has no halves
            fields=figures,
            provenance=provenance(self, generator, seed),
        )

    def _drawn(self, generator: Generator, seed: int) -> Codes:
        label = "random" if self.label is None and generator.label_names else self.label
        start, n = (0, self.n_samples) if self.sample is None else (self.sample, 1)
        space = _repeated(generator, chosen_space(generator, self.space))
        return generator.sample(n, seed=seed, start=start, space=space.name, truncation=self.truncation, label=label)

    def _given(self, generator: Generator, codes: Codes) -> Codes:
        if not len(codes):
            raise UserError("no codes came; give one or more, or none at all to have them drawn")
        codes = codes if self.space is None else generator.lift(codes, self.space)
        # tensors made in inference mode have no derivative, their copies do
        labels = None if codes.labels is None else codes.labels.clone()
        return replace(codes, latent=codes.latent.clone(), labels=labels)

    def _check(self) -> None:
        if self.n_directions < 1 or self.n_samples < 1 or self.iterations < 1 or self.regularisation < 0:
            raise UserError(
                "n_directions, n_samples and iterations are whole numbers from 1, and regularisation is not negative"
            )
        if self.sample is not None and self.sample < 0:
            raise UserError(f"sample {self.sample} came; codes are numbered from 0")


def _repeated(generator: Generator, space: Space) -> Space:
    """Return the space whose codes `space` repeats in every slot, such as w of w+; else `space` itself."""
    return generator.space(space.broadcast_of) if space.broadcast_of else space


def _leading(problem: Derivative, block: Tensor, halves: Tensor, k: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the leading eigenvectors [k, dim] from the products [2, dim, width] of both halves, and their figures."""
    values, vectors = nystrom(block, halves.mean(0))
    values, vectors = values[:k], vectors[:k]
    trace = float((block * halves.mean(0)).sum()) + problem.trace_outside(block, seed)
    split = [nystrom(block, half)[1][: 2 * k] for half in halves]
    return vectors, {
        "importance": values / trace,
        "split_half": matched_cosines(vectors, *split),
        "eigenvalue": values.float(),
    }


def _quotient(
    block: Tensor, inside: Tensor, outside: Tensor, k: int, regularisation: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Maximise vᵀAv / vᵀ(B + λI)v within a block: unit vectors [k, dim], largest quotient first, and their figures."""

    def solve(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = block.T @ a, block.T @ b  # [width, width]
        b = b + regularisation * b.diagonal().mean() * torch.eye(len(b), dtype=b.dtype)
        factor = torch.linalg.cholesky((b + b.T) / 2 + 1e-12 * a.diagonal().mean() * torch.eye(len(b), dtype=b.dtype))
        half = torch.linalg.solve_triangular(factor, (a + a.T) / 2, upper=False)
        quotients, frame = eigen_descending(torch.linalg.solve_triangular(factor, half.T, upper=False))
        return quotients, torch.linalg.solve_triangular(factor.T, frame.T, upper=True).T @ block.T

    a, b = inside.mean(0), outside.mean(0)
    quotients, vectors = solve(a, b)
    vectors = torch.nn.functional.normalize(vectors[:k], dim=1)
    split = [solve(*pair)[1][: 2 * k] for pair in zip(inside, outside, strict=True)]
    seen = vectors @ block  # [k, width]
    return vectors, {
        "importance": quotients[:k],
        "split_half": matched_cosines(vectors, *split),
        "inside": _quadratic(seen, block.T @ a).sqrt().float(),
        "outside": _quadratic(seen, block.T @ b).sqrt().float(),
    }


def _quadratic(rows: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("ki,ij,kj->k", rows, matrix, rows).clamp(min=0)


class Derivative:
    """The derivative of an image, or of a layer's features, by the coordinates of the latent that may move.

    Args:
        generator: whose.
        codes: [n, ...]: where; those of w+ move alike in all slots of the range.
        layers: layer range that moves.
        at: a layer, or `image`.
        region: box to tell inside from outside; None is everywhere.
    """

    def __init__(self, generator: Generator, codes: Codes, layers: str, at: str, region: Region | None) -> None:
        self.generator, self.at = generator, at if at == "image" else generator.layers[generator.layer_index(at)].name
        space = _repeated(generator, codes.space)
        self.slots, self.dim = codes.latent.shape[1:] if space is codes.space else (space.slots, space.dim)
        wider = [each for each in generator.spaces.values() if each.broadcast_of == codes.space.name]
        host: Space = wider[0] if wider and layers != "all" else codes.space
        mask = host.mask(layers)  # [slots, dim]
        if not bool((mask == 1).all()):
            codes = codes.with_latent(codes.latent.expand(-1, host.slots, -1), host)
        else:
            mask = mask[:1]
        self.codes, self.mask = codes.to(generator.device), mask.to(generator.device)
        moves = mask.amax(0) if self.slots == 1 else mask.expand(self.slots, -1).flatten()
        self.free = moves.nonzero()[:, 0]
        with torch.no_grad():  # also fills what the network keeps between calls, with tensors that carry no derivative
            shape = self._outputs(torch.zeros(1, dtype=torch.long), torch.zeros(1, len(self.free))).shape
        self.inside = torch.ones(()) if region is None else region_mask(region, shape, generator.resolution)
        self.inside = self.inside.to(generator.device)
        self.has_forward_mode = True

    def shaped(self, vectors: Tensor) -> Tensor:
        """Return vectors [k, free] as [k, slots, dim], 0 where nothing moves."""
        flat = torch.zeros(len(vectors), self.slots * self.dim, dtype=vectors.dtype, device=vectors.device)
        flat = flat.index_copy(1, self.free.to(vectors.device), vectors)
        return flat.unflatten(1, (self.slots, self.dim))

    def _outputs(self, rows: Tensor, change: Tensor) -> Tensor:
        """Return features or images of the codes `rows` changed by [batch, free]."""
        some = self.codes[rows.tolist()]
        moved = some.latent + self.shaped(change.to(some.latent)) * self.mask
        if self.at == "image":
            return self.generator(some.with_latent(moved))
        return self.generator.features(some.with_latent(moved), self.at)

    def push(self, rows: Tensor, tangents: Tensor) -> Tensor:
        """Return J t of each of the codes `rows` and its tangent t, [batch, free] -> the shape of the outputs."""
        zero = torch.zeros_like(tangents)
        if self.has_forward_mode:
            try:
                with forward_ad.dual_level():
                    outputs = self._outputs(rows, forward_ad.make_dual(zero, tangents))
                    primal, tangent = forward_ad.unpack_dual(outputs)
                    return torch.zeros_like(primal) if tangent is None else tangent.detach().clone()
            except (RuntimeError, NotImplementedError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self.has_forward_mode = (
                    False  # an operation of the network has no forward derivative: go backward twice
                )
        return torch.autograd.functional.jvp(lambda change: self._outputs(rows, change), zero, tangents)[1].detach()

    def pull(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function that gives Jᵀ u, [batch, free], for u of the shape of the outputs."""
        change = torch.zeros(len(rows), len(self.free), device=self.generator.device, requires_grad=True)
        with torch.enable_grad():
            outputs = self._outputs(rows, change)
        return lambda u: torch.autograd.grad(outputs, change, u, retain_graph=True)[0]

    def gram_times(self, block: Tensor, *, outside: bool = False) -> tuple[Tensor, Tensor | None]:
        """Multiply a block by the mean JᵀJ of the inside, and of the outside where asked for.

        Args:
            block: [free, width].
            outside: whether to do the same for the rest of the outputs.

        Returns:
            Float64 [2, free, width] each, one for the even codes and one for the odd; of one code, twice the same.
        """
        n, width = len(self.codes), block.shape[1]
        totals = torch.zeros(2 if outside else 1, 2 * width, len(self.free), dtype=torch.float64)
        for rows, columns in self._pairs(n, width):
            tangents = block.T[columns].float().to(self.generator.device)
            pushed = self.push(rows, tangents)
            pull = self.pull(rows)
            places = rows % 2 * width + columns
            totals[0].index_add_(0, places, pull(pushed * self.inside).cpu().double())
            if outside:
                totals[1].index_add_(0, places, pull(pushed * (1 - self.inside)).cpu().double())
        halves = totals.unflatten(1, (2, width)).transpose(2, 3)  # [1 or 2, 2, free, width]
        if n == 1:
            halves = halves[:, :1].expand(-1, 2, -1, -1)
        else:
            halves = halves / torch.tensor([(n + 1) // 2, n // 2], dtype=torch.float64)[:, None, None]
        return halves[0], halves[1] if outside else None

    def _pairs(self, n: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
        for low, high in runtime.batches(n * width, self.generator.batch_size):
            pairs = torch.arange(low, high)
            yield pairs // width, pairs % width

    def trace_outside(self, block: Tensor, seed: int) -> float:
        """Estimate the trace of the mean JᵀJ outside the span of a block, by one random tangent a code.

        Source:
            Meyer et al., Hutch++: optimal stochastic trace estimation, 2021.
        """
        if block.shape[0] == block.shape[1]:
            return 0.0
        drawn = runtime.draw(len(self.codes), len(self.free), seed=seed, stream="jacobian/trace", law="uniform")
        signs = torch.from_numpy(drawn >= 0.5).double() * 2 - 1
        signs = signs - signs @ block @ block.T
        total = 0.0
        for low, high in runtime.batches(len(self.codes), self.generator.batch_size):
            pushed = self.push(torch.arange(low, high), signs[low:high].float().to(self.generator.device))
            total += float((pushed * self.inside).cpu().double().square().sum())
        return total / len(self.codes)


def parse_region(region: Region | str | None) -> Region | None:
    """Return the box that `x0,y0,x1,y1` means; a box stays what it is.

    Raises:
        UserError: where it is none.

    Example:
        >>> parse_region("0.25,0,0.75,1")
        (0.25, 0.0, 0.75, 1.0)
    """
    if not isinstance(region, str):
        return region
    try:
        x0, y0, x1, y1 = (float(each) for each in region.split(","))
    except ValueError as error:
        raise UserError(f"{region!r} is no region; write x0,y0,x1,y1, such as 0.2,0.5,0.8,1") from error
    return x0, y0, x1, y1


def region_mask(region: Region, shape: torch.Size, resolution: int) -> Tensor:
    """Return 1 inside a box and 0 outside it, [height, width] of outputs of this shape.

    Args:
        region: (x0, y0, x1, y1), in pixels of the image, or in fractions where all are at most 1.
        shape: [batch, channels, height, width].
        resolution: of the image.

    Raises:
        UserError: where the box is empty, leaves the image, or fills it.
    """
    x0, y0, x1, y1 = region
    whole = 1.0 if max(region) <= 1 else float(resolution)
    if not (0 <= x0 < x1 <= whole and 0 <= y0 < y1 <= whole) or len(shape) != 4:
        raise UserError(
            f"the region {region} is no box (x0, y0, x1, y1) inside an image of {resolution} pixels; give pixels, "
            "or fractions of the width and height from 0 to 1"
        )
    mask = torch.zeros(shape[2:])
    left, right = (round(x / whole * shape[3]) for x in (x0, x1))
    top, bottom = (round(y / whole * shape[2]) for y in (y0, y1))
    mask[top : max(bottom, top + 1), left : max(right, left + 1)] = 1.0
    if bool(mask.all()):
        raise UserError(f"the region {region} is the whole image, and nothing is left outside; leave it out")
    return mask


def region_channels(
    generator: Generator,
    region: Region,
    *,
    n_directions: int = 10,
    space: str = "s",
    n_samples: int = 32,
    n_probes: int = 8,
    truncation: float = 1.0,
    label: int | str | None = None,
    seed: int = 0,
) -> Directions:
    """Rank the channels of StyleSpace by how much of what they change lies in a region.

    The squared change that each coordinate makes inside is the diagonal of the mean JᵀJ there, which random signs in
    the image estimate for all channels at once. Channels that change the inside less than a tenth of the strongest one
    are left out, since their share means nothing.

    Args:
        generator: with a space of channels.
        region: box (x0, y0, x1, y1) in pixels, or in fractions where all are at most 1.
        n_directions: how many at most.
        space: the space whose coordinates are ranked.
        n_samples: codes in the mean.
        n_probes: random sign images a code.
        truncation, label, seed: of the codes.

    Returns:
        One axis of the space each, largest share of the change inside first (`importance`); `inside` and `outside` in
        `fields` are the root mean square changes of one σ.

    Source:
        After Wu, Lischinski & Shechtman, StyleSpace analysis, CVPR 2021, section 4, who use gradients in masks too.
    """
    channels = generator.space(space)
    label = "random" if label is None and generator.label_names else label
    codes = generator.sample(n_samples, seed=seed, space=space, truncation=truncation, label=label)
    problem = Derivative(generator, codes, "all", "image", region)
    squares = torch.zeros(2, len(problem.free), dtype=torch.float64)
    chance = runtime.generator_for(seed, "jacobian/probes")
    batches = list(runtime.batches(n_samples, max(1, generator.batch_size // 4)))
    for low, high in runtime.progress(batches, what="channels", unit="batch"):
        pull = problem.pull(torch.arange(low, high))
        shape = (high - low, generator.channels, generator.resolution, generator.resolution)
        for _ in range(n_probes):
            signs = torch.from_numpy(chance.integers(0, 2, shape).astype("float32") * 2 - 1).to(generator.device)
            for side, mask in enumerate((problem.inside, 1 - problem.inside)):
                squares[side] += pull(signs * mask).cpu().double().square().sum(0)
    sigma = _channel_sigma(generator, space, truncation, label, seed)
    squares = squares / (n_samples * n_probes) * sigma.square()
    pixels = torch.stack([problem.inside.sum(), (1 - problem.inside).sum()]).cpu().double() * generator.channels
    share = squares[0] / squares.sum(0).clamp(min=1e-30)
    share = torch.where(squares[0] >= 0.01 * squares[0].max(), share, -1.0)  # a tenth of the change
    order = share.argsort(descending=True)[:n_directions]
    order = order[share[order] >= 0]
    changes = (squares / pixels[:, None]).sqrt()
    axes = torch.nn.functional.one_hot(order, len(problem.free)).float()
    return Directions(
        problem.shaped(axes),
        space,
        tuple(_channel_name(channels, int(i)) for i in order),
        sigma=sigma[order],
        importance=share[order],
        fields={"inside": changes[0, order].float(), "outside": changes[1, order].float()},
    )


def _channel_sigma(generator: Generator, space: str, truncation: float, label: int | str | None, seed: int) -> Tensor:
    """Measure the standard deviation of each coordinate over 1000 codes, float64 [slots * dim]."""
    with torch.inference_mode():
        codes = generator.sample(1000, seed=seed, space=space, truncation=truncation, label=label)
        return codes.latent.flatten(1).double().std(0).cpu().clone()


def _channel_name(space: Space, index: int) -> str:
    slot, place = divmod(index, space.dim)
    part = next((p for p in space.parts if p.slot == slot and p.start <= place < p.stop), None)
    return f"{space.name}{index}" if part is None else f"{part.name}.{place - part.start}"
