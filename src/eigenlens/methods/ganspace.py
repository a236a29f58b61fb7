"""GANSpace: principal components of what a generator makes of its codes (Härkönen et al., NeurIPS 2020, 2004.02546)."""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from .. import runtime
from ..codes import Codes, Space
from ..directions import Directions, fixed_signs, standard_deviation, unit_norm
from ..errors import UserError
from ..generator import Generator
from ..method import check_layers, chosen_space, provenance
from ..passes import Pass
from .linalg import (
    Moments,
    as_numpy,
    eigen_descending,
    gram,
    halved_moments,
    matched_cosines,
    nystrom,
    orthonormal,
)

LATENT_SAMPLES = 1_000_000
FEATURE_SAMPLES = 20_000
EXACT = 4096
"""Features up to this length are decomposed by their exact covariance; longer ones by iterating with a block."""
READINGS = 3
"""Times that long features are read."""
CHUNK = 2**23
"""Most numbers in a chunk of rows."""
CHUNK_ROWS = 16_384
ICA_SAMPLES = 50_000


@dataclass(frozen=True)
class GANSpace:
    """Principal components of w, or of a layer's features carried back to the latent by regression.

    Where w exists and no layer is named, w itself is decomposed: one pass over the samples keeps their moments, and the
    result is exact for them. A layer's features are decomposed by their exact covariance, or where they are long by
    a Krylov iteration that reads them three times; the direction of a component is the regression of the latent on
    it, from the same samples. A layer that is linear in the latent needs no samples: its components follow from its
    matrix and the covariance of the latent, classes left aside, as they only shift such a layer.

    `importance` is the share in the variance; σ along principal components of w is their standard deviation, and
    elsewhere that of the space along the direction; `split_half` compares two disjoint halves of the samples.

    Source:
        GANSpace, section 2. The authors estimate the components incrementally and regress on a second set of samples.
    """

    n_directions: int = 40
    """How many at most; fewer where the space has fewer dimensions."""
    n_samples: int | None = None
    """Samples; by default 1,000,000 of w and 20,000 of features."""
    at: str | None = None
    """Layer whose features to decompose, or `image`; by default w, and the first layer where there is no w."""
    layers: str = "all"
    """Layer range in which the directions act."""
    space: str | None = None
    """Space of the directions; by default the generator's own default."""
    label: int | str | None = None
    """Class to draw samples of; by default all classes, pooled."""
    rotation: Literal["none", "ica"] = "none"
    """`ica` turns the components until they are independent (FastICA) and orders them by variance again."""
    store: Literal["disk", "rerun"] = "disk"
    """Long features are read three times: `disk` keeps them as float16 in a temporary file, `rerun` makes them anew."""
    embed: Callable[[Tensor], Tensor] | None = None
    """A function images [batch, channels, height, width] -> [batch, dim] to decompose instead of a layer."""
    name: ClassVar[str] = "ganspace"

    def fit(self, generator: Generator, *, seed: int = 0, run: Path | None = None) -> Directions:
        """Decompose samples of `seed`; in `run`, where it is given, the pass is kept while it lasts, for going on.

        Raises:
            UserError: on settings that contradict each other or the generator, and where the disk is too small.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once what was read is kept.
        """
        self._check()
        space = chosen_space(generator, self.space)
        space = generator.space(space.broadcast_of) if space.broadcast_of else space
        check_layers(generator, space, self.layers)
        source = _Source(generator, space, self._place(generator, space), self.embed, self.label, seed)
        n = self.n_samples or (LATENT_SAMPLES if source.place is None else FEATURE_SAMPLES)
        matrix = source.linear_map()
        going = Pass(run, self.name, dataclasses.asdict(provenance(self, generator, seed)))
        if matrix is not None:
            found = _from_matrix(matrix, source, self.n_directions)
        elif source.dim <= EXACT:
            found = _exact(source, n, self.n_directions, going)
        else:
            found = _blocks(source, n, self.n_directions, seed, self.store, going)
        if self.rotation == "ica":
            found = _independent(found, source, min(n, ICA_SAMPLES), seed)
        return self._directions(found, source, generator, seed)

    def _check(self) -> None:
        if self.n_directions < 1 or (self.n_samples is not None and self.n_samples < 4):
            raise UserError("n_directions is a whole number from 1, and n_samples one from 4")
        if self.at is not None and self.embed is not None:
            raise UserError("either a layer (at) or an embedding (embed) is decomposed; leave one of them out")
        for value, allowed in ((self.rotation, ("none", "ica")), (self.store, ("disk", "rerun"))):
            if value not in allowed:
                raise UserError(f"{value!r} is not known; allowed: {', '.join(allowed)}")

    def _place(self, generator: Generator, space: Space) -> str | None:
        """Return the layer to decompose; None stands for the latent itself."""
        if self.embed is not None or self.at == "image":
            return "image"
        if self.at is not None:
            return generator.layers[generator.layer_index(self.at)].name
        return generator.layers[0].name if space.name == generator.prior else None

    def _directions(self, found: _Found, source: _Source, generator: Generator, seed: int) -> Directions:
        vectors = fixed_signs(unit_norm(source.latent_shape(found.loadings)))
        # a component that was turned varies along others too, so that its own deviation is not that along its vector
        is_principal = source.place is None and self.rotation == "none"
        sigma = found.stdev if is_principal else standard_deviation(vectors, source.space)
        agreed = torch.full((len(vectors),), math.nan)
        if found.halves is not None:
            agreed = matched_cosines(found.loadings, *found.halves)
        return Directions(
            vectors,
            source.space.name,
            tuple(f"ganspace-{i}" for i in range(len(vectors))),
            layers=(self.layers,) * len(vectors),
            sigma=sigma,
            importance=found.stdev.square() / found.variance,
            split_half=agreed,
            fields={"component_stdev": found.stdev.float(), **found.fields},
            provenance=provenance(self, generator, seed),
        )


# --- where the samples come from --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """Components, as every way of finding them gives them."""

    stdev: Tensor
    """Standard deviation of each component, [k]."""
    loadings: Tensor
    """Covariance of the latent with each component of standard deviation 1, [k, latent]: its regression on it."""
    variance: float
    """Of all features together."""
    mean: Tensor
    """Of the features, [dim]."""
    basis: Tensor
    """Components in the features, [k, dim], orthonormal."""
    halves: tuple[Tensor, Tensor] | None
    """Loadings from two disjoint halves of the samples."""
    fields: dict[str, Tensor]
    """Further figures, [k] each."""


class _Source:
    """The rows that are decomposed, and the latents that they come from."""

    def __init__(
        self,
        generator: Generator,
        space: Space,
        place: str | None,
        embed: Callable[[Tensor], Tensor] | None,
        label: int | str | None,
        seed: int,
    ) -> None:
        self.generator, self.space, self.place, self.embed, self.seed = generator, space, place, embed, seed
        self.label = "random" if label is None and generator.label_names else label
        latent, rows = self._batch(0, 1)
        self.dim, self.slots = rows.shape[1], latent.shape[1] // space.dim
        self.device = rows.device
        self.n_latent = latent.shape[1]

    def latent_shape(self, flat: Tensor) -> Tensor:
        """Return flat latents [k, slots * dim] as [k, slots, dim]."""
        return flat.float().unflatten(1, (self.slots, self.space.dim))

    def features(self, codes: Codes) -> Tensor:
        """Return the rows [batch, dim] of codes."""
        if self.place is None:
            return codes.latent.flatten(1)
        if self.place != "image":
            return self.generator.features(codes, self.place).flatten(1).float()
        images = self.generator(codes)
        return (images if self.embed is None else self.embed(images)).flatten(1).float()

    def _batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        codes = self.generator.sample(
            stop - start, seed=self.seed, start=start, space=self.space.name, label=self.label
        )
        if self.place is None:
            return codes.latent.flatten(1), codes.latent.flatten(1)
        with torch.inference_mode():
            return codes.latent.flatten(1), self.features(codes)

    def chunks(self, n: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Give latents [b, slots * dim] and rows [b, dim] of samples 0 to n, many at a time, from chunk `first` on.

        Rows may be overwritten by those that come next.
        """
        held: Tensor | None = None
        size = max(64, min(CHUNK_ROWS, CHUNK // self.dim))
        step = size if self.place is None else min(size, max(self.generator.batch_size, 2**20 // self.dim))
        for start, stop in runtime.progress(list(runtime.batches(n, size))[first:], what="ganspace", unit="chunk"):
            pieces = [self._batch(start + low, start + high) for low, high in runtime.batches(stop - start, step)]
            if len(pieces) == 1:
                yield pieces[0]
                continue
            latents, rows = zip(*pieces, strict=True)
            held = torch.cat(rows, out=held) if held is not None and len(held) == stop - start else torch.cat(rows)
            yield torch.cat(latents), held

    def linear_map(self) -> Tensor | None:
        """Return J [dim, slots * dim] where the rows are J latent + constant, and None where they are not.

        Five codes tell: f(a + b) and f(2a) are what they must be, and another class only shifts the rows.
        """
        wide = self.dim * self.n_latent > 2**26
        if self.place in (None, "image") or self.embed is not None or wide or self.space.law.startswith("mapped"):
            return None
        label = 0 if self.generator.label_names else None
        codes = self.generator.sample(2, seed=self.seed, space=self.space.name, label=label)
        a, b = codes.latent
        rows = torch.stack([torch.zeros_like(a), a, b, a + b, 2 * a])
        with torch.inference_mode():
            zero, at_a, at_b, at_sum, at_twice = self._at(rows, label).cpu().double()
            scale = max(float((at_a - zero).abs().max()), 1e-12)
            errors = [(at_sum - at_a - at_b + zero).abs().max(), (at_twice - 2 * at_a + zero).abs().max()]
            if self.generator.label_names:
                other = self._at(rows[:2], len(self.generator.label_names) - 1).cpu().double()
                errors.append((other[1] - other[0] - at_a + zero).abs().max())
            if max(float(error) for error in errors) > 1e-4 * scale:
                return None
            return self._matrix(a, zero, at_a)

    def _at(self, latents: Tensor, label: int | None) -> Tensor:
        labels = self.generator.encode_labels(label, len(latents))
        return self.features(Codes(self.space, latents, labels))

    def _matrix(self, a: Tensor, zero: Tensor, at_a: Tensor) -> Tensor:
        """Read J from the generator's style matrix where that is it, and from the unit codes otherwise."""
        for matrix in self._style_matrices():
            weight = matrix.weight.to(zero)
            inside = a[matrix.part.slot if self.slots > 1 else 0, matrix.part.start : matrix.part.stop].to(zero)
            if len(weight) != self.dim or not torch.allclose(weight @ inside, at_a - zero, rtol=1e-3, atol=1e-5):
                continue
            full = torch.zeros(self.dim, self.n_latent)
            start = matrix.part.start + (matrix.part.slot * self.space.dim if self.slots > 1 else 0)
            full[:, start : start + weight.shape[1]] = weight
            return full
        units = torch.eye(self.n_latent).unflatten(1, (self.slots, self.space.dim))
        label = 0 if self.generator.label_names else None
        pieces = [self._at(units[low:high], label) for low, high in runtime.batches(self.n_latent, 64)]
        return (torch.cat(pieces).cpu() - zero.cpu().float()).T

    def _style_matrices(self) -> list:
        from ..errors import Unsupported

        try:
            if self.generator.style_space.name != self.space.name:
                return []
            return list(self.generator.style_matrices("all").values())
        except Unsupported:
            return []


# --- the ways to find components --------------------------------------------------------------------------------------


def _from_matrix(matrix: Tensor, source: _Source, k: int) -> _Found:
    """Find the components of J z from J and the covariance of z."""
    root = torch.block_diag(*[_root(source.space.covariance)] * source.slots)  # [latent, latent]
    values, frame = eigen_descending(root @ gram(matrix.double()) @ root)  # of the covariance of J z, as z sees it
    k = min(k, int((values > 1e-10 * values[0]).sum()))
    stdev, frame = values[:k].sqrt(), frame[:k]
    basis = ((root @ frame.T / stdev).T.to(matrix) @ matrix.T).double()  # [k, dim]
    mean = source.space.mean.repeat(source.slots)
    return _Found(stdev, frame @ root, float(values.sum()), matrix @ mean, basis, None, {})


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric square root of a covariance."""
    if bool((covariance == covariance.diagonal().diag()).all()):
        return covariance.diagonal().double().sqrt().diag()
    values, frame = torch.linalg.eigh(covariance.double())
    return frame * values.clamp(min=0).sqrt() @ frame.T


def _components(moments: Moments, k: int, *, of_itself: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return stdev [k], basis [k, dim] and loadings [k, targets] of moments; `of_itself`: the rows are the targets."""
    values, basis = eigen_descending(moments.covariance(), k)
    stdev = values.sqrt()
    if of_itself:
        return stdev, basis, basis * stdev[:, None]
    return stdev, basis, basis @ moments.cross_covariance() / stdev.clamp(min=1e-30)[:, None]


def _exact(source: _Source, n: int, k: int, going: Pass) -> _Found:
    """Decompose the exact covariance of the samples, summed in one pass."""
    of_itself = source.place is None
    with going:
        halves = _unnamed(going.tensors) if going.done else None
        for latents, rows in source.chunks(n, going.done):
            halves = halved_moments(halves, rows.to(torch.float32), latents[:, :0] if of_itself else latents.to(rows))
            going.completed(partial(_named, halves))
    assert halves is not None
    both = halves[0] + halves[1]
    covariance = both.covariance()
    k = min(k, source.dim, source.n_latent, n - 1)
    stdev, basis, loadings = _components(both, k, of_itself=of_itself)
    split = tuple(_half_loadings(half, 2 * k, of_itself) for half in halves)
    return _Found(stdev, loadings, float(covariance.trace()), both.mean, basis, (split[0], split[1]), {})


def _named(halves: tuple[Moments, Moments]) -> dict[str, Tensor]:
    return {f"{number}.{name}": each for number in (0, 1) for name, each in halves[number].tensors().items()}


def _unnamed(tensors: Mapping[str, Tensor]) -> tuple[Moments, Moments]:
    first, second = (
        Moments.from_tensors({name[2:]: each for name, each in tensors.items() if name.startswith(f"{number}.")})
        for number in (0, 1)
    )
    return first, second


def _half_loadings(half: Moments, k: int, of_itself: bool) -> Tensor:
    values, basis = eigen_descending(
        half.covariance().float(), min(k, len(half.total))
    )  # float32 is enough for a cosine
    if of_itself:
        return basis
    return basis.double() @ half.cross_covariance() / values.double().sqrt().clamp(min=1e-30)[:, None]


def _blocks(source: _Source, n: int, k: int, seed: int, store: str, going: Pass) -> _Found:
    """Decompose long features without their covariance, from the Krylov space of a random block, in three readings.

    Each reading multiplies a block by the covariance: a random one, then what is new in the product of the one before.
    Nyström's approximation is taken of all three together, and the regression comes from the third reading.

    Source:
        Musco & Musco, Randomized block Krylov methods, 2015, algorithm 2; with Nyström's approximation in place of
        Rayleigh and Ritz's.
    """
    k = min(k, n - 1, source.n_latent)
    width = min(k + 20, n - 1, source.dim // READINGS)
    basis, images = torch.empty(2, source.dim, READINGS * width)  # three blocks each, beside one another
    with _Rows(source, n, store, going) as rows:
        for reading in range(READINGS):
            mine = slice(reading * width, (reading + 1) * width)
            basis[:, mine] = _new_block(basis[:, : mine.start], images[:, : mine.start], width, seed)
            read = basis if reading == READINGS - 1 else basis[:, mine]
            images[:, mine], halves = _times_covariance(rows, read, width)
    values, components = nystrom(basis, images, k)
    values = values[values > 1e-10 * values[0]] / (n - 1)  # features of few dimensions have no further components
    stdev, components = values.sqrt(), components[: len(values)]  # [k], [k, dim]
    both = halves[0] + halves[1]
    seen = (components.float() @ basis).double()  # [k, basis]
    loadings = seen @ both.cross_covariance() / stdev[:, None]
    split = (_half_loadings(halves[0], 2 * k, of_itself=False), _half_loadings(halves[1], 2 * k, of_itself=False))
    centre = rows.shift.cpu().double() + rows.scale * rows.mean
    return _Found(rows.scale * stdev, loadings, rows.scale**2 * rows.variance, centre, components, split, {})


class _Rows:
    """Rows that are read several times: kept in a temporary file that nobody sees, or made anew each time.

    They come less the mean of the first ones and divided by their standard deviation, so that float16 holds them: its
    rounding, 0.05 % of a number, is independent of the number and adds to every component alike.

    The file lies in the folder of the pass, where it has one, and what was written is read from it when a stopped pass
    goes on; rows that are made anew each time are not kept at all.
    """

    def __init__(self, source: _Source, n: int, store: str, going: Pass) -> None:
        self.source, self.n, self.store, self.going = source, n, store, going
        self.is_whole = False
        self.place: Path | None = None
        self.shift, self.scale = torch.zeros(source.dim), 1.0
        self.total, self.squares = torch.zeros(source.dim, dtype=torch.float64), 0.0
        self.file: Any = None
        self.sizes: list[int] = []
        self.scratch: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    @property
    def mean(self) -> Tensor:
        """Mean of the rows as they come, known after the first reading, float64 [dim]."""
        return self.total / self.n

    @property
    def variance(self) -> float:
        """Variance of the rows as they come, all features together."""
        return (self.squares - self.n * float(self.mean.square().sum())) / (self.n - 1)

    def __enter__(self) -> _Rows:
        if self.store == "disk":
            self.going.__enter__()
            self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.scratch.clear()
        if self.file is not None:
            self.file.close()  # an unnamed file ends with its last handle, also where the fit is broken off
            self.going.__exit__(kind, error, trace)
            if self.place is not None and (self.going.file is None or not self.going.file.exists()):
                self.place.unlink(missing_ok=True)  # nothing would go on from it

    def _open(self) -> None:
        if self.going.folder is None:
            self._check_room(Path(tempfile.gettempdir()))
            self.file = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
            return
        self.going.folder.mkdir(parents=True, exist_ok=True)
        self.place = self.going.folder / "ganspace.rows"
        if not self.going.done:
            self._check_room(self.going.folder)
        try:
            self.file = open(self.place, "r+b" if self.going.done else "w+b")  # noqa: SIM115
        except FileNotFoundError as error:
            raise UserError(f"{self.place} is missing; remove {self.going.file}, which would go on from it") from error
        if self.going.done:
            kept = self.going.tensors
            self.shift, self.total = kept["shift"].to(self.source.device), kept["total"]
            self.sizes = kept["sizes"].tolist()
            self.scale, self.squares = kept["scale_and_squares"].tolist()

    def _state(self) -> dict[str, Tensor]:
        self.file.flush()
        return {
            "shift": self.shift,
            "total": self.total,
            "sizes": torch.tensor(self.sizes),
            "scale_and_squares": torch.tensor([self.scale, self.squares], dtype=torch.float64),
        }

    def read(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give latents and rows, the same each time; what came before is overwritten by what comes next."""
        if self.file is not None:
            yield from self._kept()
            if self.is_whole:
                return
            self.file.seek(self.file.tell())  # from reading to writing
        for latents, made in self.source.chunks(self.n, 0 if self.is_whole else len(self.sizes)):
            if not self.sizes:
                self.shift = made.mean(0)
                self.scale = float((made - self.shift).square().mean().sqrt()) or 1.0
            rows = torch.sub(made, self.shift, out=self._scratch(len(made), torch.float32, made.device))
            rows.div_(self.scale)
            if self.file is not None:
                half = self._scratch(len(made), torch.float16, made.device).copy_(rows.clamp_(-65504, 65504))
                self.file.write(as_numpy(half).data.cast("B"))
                self.file.write(as_numpy(latents.float().contiguous()).data.cast("B"))
                rows.copy_(half)  # every reading sees the same numbers
            if not self.is_whole:
                self.sizes.append(len(rows))
                self.total += rows.sum(0).cpu()
                self.squares += float(torch.linalg.vector_norm(rows)) ** 2
            if self.file is not None:
                self.going.completed(self._state)
            yield latents, rows
        self.is_whole = True

    def _kept(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.file.seek(0)
        for size in self.sizes:
            half = self._filled(self._scratch(size, torch.float16, torch.device("cpu")))
            latents = self._filled(torch.empty(size, self.source.n_latent))
            yield latents, self._scratch(size, torch.float32, self.shift.device).copy_(half)

    def _filled(self, tensor: Tensor) -> Tensor:
        self.file.readinto(tensor.numpy().data.cast("B"))
        return tensor

    def _scratch(self, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory for n rows, the same each time: fresh pages cost more than what is done to them."""
        held = self.scratch.get((dtype, device))
        if held is None or len(held) < n:
            held = self.scratch[dtype, device] = torch.empty(n, self.source.dim, dtype=dtype, device=device)
        return held[:n]

    def _check_room(self, folder: Path) -> None:
        wanted, free = self.n * (2 * self.source.dim + 4 * self.source.n_latent), shutil.disk_usage(folder).free
        if wanted > 0.9 * free:
            raise UserError(
                f"{self.n} samples of {self.source.dim} features take {wanted / 2**30:.1f} GiB, and {folder} has "
                f"{free / 2**30:.1f} GiB left; take fewer samples, or store='rerun', which makes them three times"
            )


def _new_block(basis: Tensor, images: Tensor, width: int, seed: int) -> Tensor:
    """Return orthonormal columns for what the last image holds beyond the basis: random ones where there is none yet.

    Args:
        basis, images: [dim, blocks * width].
    """
    if not basis.shape[1]:
        chance = runtime.generator_for(seed, "ganspace/sketch")
        return orthonormal(torch.from_numpy(chance.standard_normal((len(basis), width), np.float32)))
    rest = images[:, -width:]
    for _ in range(2):  # once leaves as much of the basis as was lost to rounding
        rest = orthonormal(rest - basis @ (basis.T @ rest))
    return rest


def _times_covariance(rows: _Rows, basis: Tensor, width: int) -> tuple[Tensor, tuple[Moments, Moments]]:
    """Return XᵀX block of the centred rows X for the last `width` columns of a basis, and moments of X basis in halves.

    Centring comes last, as the mean is not known before the rows have been read once.

    Returns:
        [dim, width], and the moments of X basis with the latents.
    """
    halves: tuple[Moments, Moments] | None = None
    image: Tensor | None = None
    small: Tensor | None = None
    for latents, chunk in rows.read():
        if small is None:
            small = basis.to(chunk)
            image = torch.zeros_like(small[:, -width:])
        assert image is not None
        projected = chunk @ small  # [b, basis]
        image.addmm_(chunk.T, projected[:, -width:])
        halves = halved_moments(halves, projected, latents.to(projected))
    assert image is not None
    assert halves is not None
    mean = rows.mean.float()
    return image.cpu().addr_(mean, mean @ basis[:, -width:], alpha=-rows.n), halves


# --- independent components -------------------------------------------------------------------------------------------


def _independent(found: _Found, source: _Source, n: int, seed: int) -> _Found:
    """Turn the components until they are independent, and order them by variance.

    A direction is a column of the mixing matrix: it changes one independent component and leaves the others alone. (The
    authors take the rows of the unmixing matrix, which are those only where the mixing is orthogonal.)
    """
    scores = []
    for _, rows in source.chunks(n):
        centred = rows.cpu().double() - found.mean
        scores.append((centred @ found.basis.T / found.stdev).float())
    whitened = torch.cat(scores)
    rotation, change = fast_ica(whitened, seed=seed)  # [k, k]: one independent component a row
    variances = rotation.square() @ found.stdev.square()
    order = variances.argsort(descending=True)
    split = [fast_ica(whitened[half::2], seed=seed, start=rotation)[0] @ found.loadings for half in (0, 1)]
    return _Found(
        variances[order].sqrt(),
        (rotation @ found.loadings)[order],
        found.variance,
        found.mean,
        rotation[order] @ found.basis,
        (split[0], split[1]),
        {"ica_change": change[order].float()},
    )


def fast_ica(
    whitened: Tensor, *, seed: int = 0, start: Tensor | None = None, most: int = 200, tolerance: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Rotate whitened rows until their coordinates are independent.

    Args:
        whitened: [n, k], mean 0 and covariance 1.
        seed: of the first guess.
        start: a first guess [k, k] instead.
        most: most steps.
        tolerance: largest change, 1 - |cos|, at which to stop.

    Returns:
        The rotation [k, k], whose rows project onto the components, float64, and the last change of each row, [k]:
        where it is not small, that component did not settle, as those of Gaussian data never do.

    Source:
        Hyvärinen, Fast and robust fixed-point algorithms for ICA, 1999: symmetric, with tanh.
    """
    k = whitened.shape[1]
    if start is None:
        start = torch.from_numpy(runtime.generator_for(seed, "ganspace/ica").standard_normal((k, k)))
    rotation = _decorrelated(start.double())
    change = torch.ones(k, dtype=torch.float64)
    for _ in range(most):
        bent = torch.tanh(whitened @ rotation.T.to(whitened))  # [n, k]
        pulled = (bent.T @ whitened).double() / len(whitened)
        slope = 1 - bent.square().double().mean(0)
        turned = _decorrelated(pulled - slope[:, None] * rotation)
        change = 1 - (turned * rotation).sum(1).abs()
        rotation = turned
        if change.max() <= tolerance:
            break
    return rotation, change


def _decorrelated(rows: Tensor) -> Tensor:
    """Return the nearest orthonormal rows, (W Wᵀ)^(-1/2) W."""
    left, _, right = torch.linalg.svd(rows, full_matrices=False)
    return left @ right
