"""What methods compute with: second moments in one pass, leading eigenvectors, and how well two sets of them agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from .. import runtime

DENSE = 1536
"""Up to this size a symmetric matrix is decomposed whole; beyond, its leading eigenvectors are iterated for."""
SHIFT_ROWS = 1000
PIECE = 2**22
"""Most numbers that are shifted at once: more would leave the cache before they are multiplied."""
SUMS = ("total", "products", "target_total", "crossed")
SHIFTS = ("shift", "target_shift")


class Moments:
    """Sum the moments of rows, and their products with targets, in one pass.

    Products are float32 of rows from which the mean of the first 1000 has been taken, so that they keep their digits,
    and sums are float64. Memory is that of the matrices alone.

    Args:
        dim: length of a row.
        n_targets: length of a target; 0 where there are none.
    """

    def __init__(self, dim: int, n_targets: int = 0) -> None:
        self.n = 0
        self.total = torch.zeros(dim, dtype=torch.float64)
        self.products = torch.zeros(dim, dim, dtype=torch.float64)
        self.target_total = torch.zeros(n_targets, dtype=torch.float64)
        self.crossed = torch.zeros(dim, n_targets, dtype=torch.float64)
        self.shift: Tensor | None = None
        self.target_shift: Tensor | None = None
        self.scratch: Tensor | None = None  # memory, not a sum

    def sibling(self) -> Moments:
        """Return empty moments with the same shift, which may be added to these."""
        other = Moments(len(self.total), len(self.target_total))
        other.shift, other.target_shift, other.scratch = self.shift, self.target_shift, self.scratch
        return other

    def tensors(self) -> dict[str, Tensor]:
        """Return all that was summed, for `from_tensors`."""
        named = {name: getattr(self, name) for name in (*SUMS, *SHIFTS)}
        return {name: each for name, each in named.items() if each is not None} | {"n": torch.tensor(self.n)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Moments:
        """Go back to what `tensors` gave."""
        moments = cls(len(tensors["total"]), len(tensors["target_total"]))
        moments.n = int(tensors["n"])
        for name in (*SUMS, *SHIFTS):
            setattr(moments, name, tensors.get(name))
        return moments

    def add(self, rows: Tensor, targets: Tensor | None = None) -> None:
        """Take in rows [n, dim] and their targets [n, n_targets]."""
        if self.shift is None:
            self.shift = rows[:SHIFT_ROWS].mean(0)
            self.target_shift = None if targets is None else targets[:SHIFT_ROWS].mean(0)
        self.shift = self.shift.to(rows.device)  # what goes on from a file comes from the CPU
        if targets is not None and self.target_shift is not None:
            self.target_shift = self.target_shift.to(targets.device)
        self.n += len(rows)
        for low, high in runtime.batches(len(rows), max(1, PIECE // rows.shape[1])):
            shifted = self._shifted(rows[low:high])
            self.total += shifted.sum(0).cpu()
            self.products += gram(shifted).cpu()
            if targets is not None:
                assert self.target_shift is not None
                moved = targets[low:high] - self.target_shift
                self.target_total += moved.sum(0).cpu()
                self.crossed += (shifted.T @ moved).cpu()

    def _shifted(self, rows: Tensor) -> Tensor:
        """Return rows less the shift, in memory that the next ones take over: fresh pages cost as much as the sum."""
        assert self.shift is not None
        if self.scratch is None or len(self.scratch) < len(rows):
            self.scratch = torch.empty_like(rows)
        return torch.sub(rows, self.shift, out=self.scratch[: len(rows)])

    def __add__(self, other: Moments) -> Moments:
        both = self.sibling()
        both.n = self.n + other.n
        for name in SUMS:
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    @property
    def mean(self) -> Tensor:
        """Mean of the rows, float64 [dim]."""
        assert self.shift is not None
        return self.shift.cpu().double() + self.total / self.n

    def covariance(self) -> Tensor:
        """Return the covariance of the rows, float64 [dim, dim]."""
        return (self.products - torch.outer(self.total, self.total / self.n)) / (self.n - 1)

    def cross_covariance(self) -> Tensor:
        """Return the covariance of rows with targets, float64 [dim, n_targets]."""
        return (self.crossed - torch.outer(self.total, self.target_total / self.n)) / (self.n - 1)


def halved_moments(halves: tuple[Moments, Moments] | None, rows: Tensor, targets: Tensor) -> tuple[Moments, Moments]:
    """Add the first half of each batch to one of two disjoint moments, and the rest to the other.

    Args:
        halves: what the last batch gave; None at the first.
        rows, targets: [n, dim] and [n, n_targets]; where `n_targets` is 0 there are none.
    """
    if halves is None:
        first = Moments(rows.shape[1], targets.shape[1])
        first.shift = rows[:SHIFT_ROWS].mean(0)
        first.target_shift = targets[:SHIFT_ROWS].mean(0)
        first.scratch = torch.empty_like(rows[: PIECE // rows.shape[1]])
        halves = (first, first.sibling())
    middle = (len(rows) + 1) // 2
    for half, part in zip(halves, (slice(0, middle), slice(middle, None)), strict=True):
        half.add(rows[part], targets[part] if targets.shape[1] else None)
    return halves


def gram(rows: Tensor) -> Tensor:
    """Return rowsᵀ rows, [dim, dim]."""
    if rows.device.type == "cpu":
        plain = rows.detach().numpy()
        return torch.from_numpy(plain.T @ plain)  # NumPy sees the symmetry and does half the work; torch does not
    return rows.T @ rows


def eigen_descending(matrix: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
    """Decompose a symmetric matrix.

    Args:
        matrix: [dim, dim].
        k: how many of the leading eigenvectors; all by default.

    Returns:
        Eigenvalues [k], largest first, not below 0, and eigenvectors [k, dim], one a row, whose entries of largest
        magnitude are positive.
    """
    k = k or len(matrix)
    if len(matrix) > DENSE and 4 * k < len(matrix):
        return _iterated(matrix, k)
    with one_thread():
        values, columns = torch.linalg.eigh(matrix)  # ascending
    return values.flip(0)[:k].clamp(min=0), signed_rows(columns.T.flip(0)[:k])


def _iterated(matrix: Tensor, k: int, *, most: int = 100, tolerance: float = 1e-12) -> tuple[Tensor, Tensor]:
    """Find the leading eigenvectors of a large matrix by block subspace iteration until its eigenvalues stand still."""
    block = start_block(len(matrix), min(len(matrix), 2 * k + 20), seed=0).to(matrix)
    before = torch.zeros(k, dtype=matrix.dtype)
    for _ in range(most):
        image = matrix @ block
        values, rows = nystrom(block, image, k)
        if (values - before).abs().max() <= tolerance * values[0]:
            break
        before, block = values, orthonormal(image)
    return values, rows


def leading_of_several(matrices: Tensor, guess: Tensor, *, steps: int = 4) -> tuple[Tensor, Tensor]:
    """Find leading eigenvectors of symmetric matrices that resemble one another, from a guess at them all.

    Wide matrices are seen through the Krylov space of the guess: where an eigenvector stands clear of the rest, that is
    exact to 1e-4; where it hardly does, it comes out as some vector among its neighbours.

    Args:
        matrices: [m, dim, dim].
        guess: the leading eigenvectors of their sum, say, [k, dim].

    Returns:
        [m, k] and [m, k, dim], largest first.
    """
    k, dim = guess.shape
    if 2 * steps * k > dim:
        values, columns = torch.linalg.eigh(matrices)  # ascending
        return values.flip(1)[:, :k], columns.flip(2)[:, :, :k].mT
    basis = torch.linalg.qr(guess.T)[0].expand(len(matrices), -1, -1)
    images = matrices @ basis
    for _ in range(steps - 1):
        last = images[:, :, -k:]
        new = torch.linalg.qr(last - basis @ (basis.mT @ last))[0]
        basis, images = torch.cat([basis, new], dim=2), torch.cat([images, matrices @ new], dim=2)
    inner = basis.mT @ images
    values, frame = torch.linalg.eigh((inner + inner.mT) / 2)
    columns = images @ frame.flip(2)[:, :, :k]  # a step further than the basis
    return values.flip(1)[:, :k], torch.nn.functional.normalize(columns, dim=1).mT


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: a decomposition of this size gains nothing by more, and on a busy machine loses much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def signed_rows(rows: Tensor) -> Tensor:
    """Turn each row so that its entry of largest magnitude is positive."""
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * torch.where(largest < 0, -1.0, 1.0).to(rows)


def start_block(dim: int, width: int, *, seed: int) -> Tensor:
    """Return `width` random orthonormal columns, float64 [dim, width]; the unit matrix where `width` is `dim`."""
    if width >= dim:
        return torch.eye(dim, dtype=torch.float64)
    drawn = runtime.generator_for(seed, "methods/start").standard_normal((dim, width))
    return orthonormal(torch.from_numpy(drawn))


def orthonormal(columns: Tensor) -> Tensor:
    """Return orthonormal columns with the same span, [dim, width]."""
    return torch.linalg.qr(columns)[0]


def nystrom(block: Tensor, image: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
    """Approximate the leading eigenvectors of a positive semi-definite matrix A from its product with a block.

    Products are float64, of some rows at a time, so that blocks of float32 take no copy.

    Args:
        block: orthonormal columns, [dim, width].
        image: A block, [dim, width].
        k: how many eigenvectors; `width` by default.

    Returns:
        Eigenvalues [k], largest first, and eigenvectors [k, dim], one a row, float64: those of A Q (Qᵀ A Q)⁺ Qᵀ A,
        which are half a step of iteration more exact than Rayleigh and Ritz's.

    Source:
        Gittens & Mahoney, Revisiting the Nyström method, 2016; Halko et al., Finding structure with randomness, 2011,
        section 5.4.
    """
    rows = [slice(*ends) for ends in runtime.batches(len(block), 4096)]
    width = block.shape[1]
    inner = torch.zeros(width, width, dtype=torch.float64)
    for some in rows:
        inner += block[some].double().T @ image[some].double()
    with one_thread():
        values, frame = torch.linalg.eigh((inner + inner.T) / 2)
    kept = values > values.max().clamp(min=0) * torch.finfo(image.dtype).eps
    scaled = frame * torch.where(kept, values.clamp(min=1e-300).rsqrt(), torch.zeros(()).to(values))
    half = torch.cat([(image[some].double() @ scaled).to(image) for some in rows])  # [dim, width], half halfᵀ = A
    squared = torch.zeros(width, width, dtype=torch.float64)
    for some in rows:
        squared += gram(half[some].double())
    with one_thread():
        values, frame = torch.linalg.eigh(squared)  # ascending
    values, frame = values.flip(0)[:k].clamp(min=0), frame.flip(1)[:, :k]
    left = torch.cat([half[some].double() @ frame for some in rows])  # [dim, k], columns orthogonal
    return values, signed_rows(orthonormal(left).T)


def matched_cosines(reference: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Compare two estimates of the same directions, whose order may differ.

    Args:
        reference: the directions asked about, [k, dim].
        first, second: two estimates, [m, dim] each.

    Returns:
        For each reference |cos| between the row of `first` and the row of `second` that are nearest to it, [k]; 0 where
        an estimate is empty.
    """
    if not len(first) or not len(second):
        return torch.zeros(len(reference))  # nothing to be found in half of next to nothing
    reference, first, second = (
        torch.nn.functional.normalize(rows.double(), dim=1) for rows in (reference, first, second)
    )
    ours = first[(reference @ first.T).abs().argmax(1)]
    theirs = second[(reference @ second.T).abs().argmax(1)]
    return (ours * theirs).sum(1).abs().clamp(max=1).float()


def as_numpy(tensor: Tensor) -> np.ndarray:
    """Return the values of a tensor as an array on the CPU."""
    return tensor.detach().cpu().numpy()
