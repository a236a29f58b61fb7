"""Directions of other tools: reading their files as data, and writing files that they read.

Formats, told apart by what a file holds:

- encoder4editing `.pt`: `{mean [1, d], comp [k, 1, d], std [k]}`, strengths in its std; or a bare tensor.
- GANSpace `.npz`: `lat_comp [k, 1, d]`, `lat_mean`, `lat_stdev [k]`, `var_ratio [k]`, ...; strengths in its stdev.
- rosinality's closed_form_factorization `.pt`: `{ckpt, eigvec [d, k]}`, a direction a column; strengths are multiples.
- InterFaceGAN boundaries and other plain arrays, `.npy`, `.npz` or `.pt`: [k, d] or [k, slots, d]; strengths are
  multiples of the vector (`unit="raw"`).
- our own `.safetensors`.

Nothing in a file is executed: torch files are read by `checkpoint.read_checkpoint`, arrays by a parser that refuses
objects and checks every length before it allocates.
"""

from __future__ import annotations

import ast
import math
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from . import __version__
from .checkpoint import read_checkpoint
from .codes import Space
from .directions import Directions, Provenance
from .errors import Unsupported, UserError
from .generator import Generator

FOREIGN_DISTANCE = 0.25
"""Distance of a file's mean from the generator's own, in typical distances of a sample from it, above which the file
belongs to another generator. The mean of n own samples lies at about 1/√n: 0.02 and less in practice, and FFHQ and car
networks of one architecture lie 1.9 apart."""
MAX_ENTRY = 1 << 30
"""Most bytes of one array that is read."""

_LONGEST_HEADER = 10_000  # characters of a .npy header; numpy's own limit

Format = Literal["ganspace", "e4e", "interfacegan", "rosinality", "npy"]


class ForeignDirections(UserWarning):
    """Warn that a file of directions was made for another generator than the one it is loaded for."""


# --- reading ----------------------------------------------------------------------------------------------------------


def import_directions(
    path: str | Path, generator: Generator, *, space: str | None = None, names: Sequence[str] | None = None
) -> Directions:
    """Read a file of directions that another tool, or this one, wrote.

    A file that holds a mean is compared with the generator: where its mean is far from the mean of the space
    (`FOREIGN_DISTANCE`), it was made for another generator. It is read all the same, with a `ForeignDirections`
    warning, and its provenance names no generator that is known, so that a saved copy loads with `foreign=True` only.
    Files without a mean, and spaces that are N(0, 1) for every generator, allow no such test.

    Args:
        path: the file.
        generator: the one to use them with.
        space: where they live; by default told by the width: w before z, and rows that differ from slot to slot
            mean w+. It is needed where the width fits several spaces that are not one another's.
        names: one each; by default those in the file, or the file's name and a number.

    Returns:
        Directions in σ where the file tells standard deviations, else in raw units.

    Raises:
        UserError: where the file is damaged, holds no directions, or fits no space of the generator.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a file of directions: .pt, .npz, .npy or .safetensors")
    if path.suffix == ".safetensors":
        ours = Directions.load(path, generator=generator)
        if ours.space not in generator.spaces:
            raise UserError(f"{path} holds directions of space {ours.space!r}; {_spaces(generator)}")
        if space not in (None, ours.space):
            raise UserError(
                f"{path} says that its directions live in {ours.space!r}, not in {space!r}; leave space out"
            )
        return ours if names is None else ours.renamed(names)
    content = _read(path)
    arrays = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    vectors, figures = _parts(arrays, path)
    if not vectors.isfinite().all():
        raise UserError(f"{path} holds vectors with NaN or infinity; a direction is finite")
    vectors, where = _placed(vectors, generator, space or _space_by_name(path, generator), path)
    read = Directions(
        vectors,
        where.name,
        tuple(names) if names is not None else _names(content, path, len(vectors)),
        layers=_texts(content, "layers", len(vectors)) or (),
        unit="raw" if figures.sigma is None else "sigma",
        sigma=figures.sigma,  # type: ignore[arg-type]
        importance=figures.importance,  # type: ignore[arg-type]
        fields=figures.fields,
        provenance=Provenance(method=figures.format, arguments={"file": path.name}, version=__version__),
    )
    return _attributed(read, figures.mean, generator, where, path)


class _Figures:
    """What a foreign file tells beside the vectors."""

    def __init__(self, format: str) -> None:
        self.format = format
        self.mean: Tensor | None = None
        self.sigma: Tensor | None = None
        self.importance: Tensor | None = None
        self.fields: dict[str, Tensor] = {}


_GANSPACE_FIELDS = ("act_stdev", "var_ratio", "random_stdevs")


def _parts(arrays: Mapping[str, Tensor], path: Path) -> tuple[Tensor, _Figures]:
    """Tell the format by the arrays, and return the vectors as they are, in float32, with what else it says."""
    if {"lat_comp", "lat_stdev"} <= set(arrays):
        figures, vectors, sigma = _Figures("ganspace"), arrays["lat_comp"], arrays["lat_stdev"]
        figures.mean, figures.importance = arrays.get("lat_mean"), arrays.get("var_ratio")
        figures.fields = {name: arrays[name].float().flatten() for name in _GANSPACE_FIELDS if name in arrays}
    elif {"comp", "std"} <= set(arrays):
        figures, vectors, sigma = _Figures("encoder4editing"), arrays["comp"], arrays["std"]
        figures.mean = arrays.get("mean")
    elif "eigvec" in arrays and arrays["eigvec"].ndim == 2:
        return arrays["eigvec"].float().T, _Figures("rosinality")
    else:
        found = {name: value for name, value in arrays.items() if value.ndim in (1, 2, 3) and value.numel()}
        chosen = (
            found if len(found) == 1 else {name: found[name] for name in ("vectors", "directions") if name in found}
        )
        if not chosen:
            listed = ", ".join(
                f"{name or 'a bare array'} {list(value.shape)}" for name, value in list(arrays.items())[:8]
            )
            raise UserError(
                f"{path} holds no directions that are known here. Found: {listed or 'no arrays'}. Known: GANSpace's "
                "lat_comp and lat_stdev, encoder4editing's comp and std, or one array [k, d] or [k, slots, d]"
            )
        return next(iter(chosen.values())).float(), _Figures("array")
    count = len(vectors) if vectors.ndim else 0
    figures.sigma = sigma.float().flatten()
    for name, figure in [("standard deviations", figures.sigma), *figures.fields.items()]:
        if len(figure) != count:
            raise UserError(f"{path} holds {count} components and {len(figure)} {name}; it was not written whole")
    if not (figures.sigma > 0).all():
        raise UserError(f"{path} holds standard deviations that are not above 0; it was not written whole")
    figures.importance = arrays.get("importance", figures.importance)
    figures.importance = None if figures.importance is None else figures.importance.float().flatten()
    return vectors.float(), figures


def _placed(vectors: Tensor, generator: Generator, name: str | None, path: Path) -> tuple[Tensor, Space]:
    """Return the vectors as [k, slots, dim] and the space where they live."""
    wanted = [generator.space(name)] if name else sorted(generator.spaces.values(), key=_preference)
    came = f"{path} holds an array {list(vectors.shape)}"
    if vectors.ndim == 1:
        vectors = vectors[None]
    if vectors.ndim == 2:
        layered = [each for each in wanted if each.slots > 1 and tuple(vectors.shape) == (each.slots, each.dim)]
        if layered and name is None:
            base = layered[0].broadcast_of or layered[0].name
            raise UserError(
                f"{came}, which may be {layered[0].slots} directions of {base!r} or one of {layered[0].name!r} with a "
                f"row for each slot; say which: space={base!r} or space={layered[0].name!r}"
            )
        if layered:
            return vectors[None], layered[0]
    if vectors.ndim == 2:
        for each in wanted:
            if vectors.shape[1] == each.dim:
                return vectors[:, None], each
            if vectors.shape[1] == each.dim * each.slots:  # a z in chunks, laid end to end
                return vectors.unflatten(1, (each.slots, each.dim)), each
    if vectors.ndim == 3:
        is_same = bool((vectors == vectors[:, :1]).all())
        single = vectors[:, :1] if is_same else vectors
        for each in wanted:
            if single.shape[2] == each.dim and single.shape[1] in (1, each.slots):
                return single, each
    asked = f"space {wanted[0].name!r} of {generator.name} takes [k, {wanted[0].dim}]" if name else _spaces(generator)
    wide = f" or [k, {wanted[0].slots}, {wanted[0].dim}]" if name and wanted[0].slots > 1 else ""
    raise UserError(f"{came}; {asked}{wide}")


def _space_by_name(path: Path, generator: Generator) -> str | None:
    """Return the space that InterFaceGAN's names tell: `..._w_boundary` is of w, `..._boundary` of z."""
    if not path.stem.endswith("_boundary"):
        return None
    name = "w" if path.stem.endswith("_w_boundary") else "z"
    return name if name in generator.spaces else None


def _preference(space: Space) -> tuple[bool, bool]:
    """Sort w before w+ before what is drawn itself: published files of these formats are of w wherever there is one."""
    return space.moments is None, space.broadcast_of is not None


def _spaces(generator: Generator) -> str:
    listed = ", ".join(f"{each.name} [{each.slots}, {each.dim}]" for each in generator.spaces.values())
    return f"{generator.name} has the spaces {listed}"


def _names(content: Mapping[str, Any], path: Path, count: int) -> tuple[str, ...]:
    inside = _texts(content, "names", count)
    if inside:
        return inside
    return (path.stem,) if count == 1 else tuple(f"{path.stem}-{i}" for i in range(count))


def _texts(content: Mapping[str, Any], key: str, count: int) -> tuple[str, ...] | None:
    value = content.get(key)
    value = value.tolist() if isinstance(value, np.ndarray) else value
    is_texts = isinstance(value, (list, tuple)) and len(value) == count and all(isinstance(v, str) for v in value)
    return tuple(value) if is_texts and value is not None else None


def _attributed(read: Directions, mean: Tensor | None, generator: Generator, space: Space, path: Path) -> Directions:
    """Note whose directions they are, as far as the file's mean tells, and warn where they are another's."""
    distance = None if mean is None else distance_of_means(mean, space)
    if distance is None:
        return read
    arguments = {**read.provenance.arguments, "distance_of_means": round(distance, 4)}
    if distance <= FOREIGN_DISTANCE:
        return replace(read, provenance=replace(read.provenance, generator=generator.identity(), arguments=arguments))
    warnings.warn(
        f"{path} belongs to another generator than {generator.name}: its mean is {distance:.2f} typical distances of a "
        f"sample away from that of {space.name} (its own lie within {FOREIGN_DISTANCE}). What its directions "
        "do here is chance",
        ForeignDirections,
        stacklevel=3,
    )
    stranger = {"name": f"another generator ({path.name})", "family": "", "weights": "unknown"}
    return replace(read, provenance=replace(read.provenance, generator=stranger, arguments=arguments))


def distance_of_means(mean: Tensor, space: Space) -> float | None:
    """Return how far a file's mean is from the space's, in typical distances of a sample; None where it tells nothing.

    It is the Mahalanobis distance over √dim, with 1 % of the mean variance added to every variance, lest a direction in
    which codes hardly vary decide alone. A mean of zeros is what tools write that know none.
    """
    flat = mean.double().flatten()
    if space.moments is None or flat.numel() != space.dim or not flat.isfinite().all() or not flat.any():
        return None
    covariance = space.covariance.double()
    ridge = 0.01 * covariance.trace() / space.dim * torch.eye(space.dim, dtype=torch.float64)
    offset = flat - space.mean.double()
    return math.sqrt(float(offset @ torch.linalg.solve(covariance + ridge, offset)) / space.dim)


# --- containers -------------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    """Return what a file holds: float tensors and lists of texts by name; a bare array stands under `""`."""
    with open(path, "rb") as file:
        magic = file.read(6)
    try:
        if magic == b"\x93NUMPY":
            return {"": _array(path.read_bytes())}
        if path.suffix == ".npz":
            return _read_npz(path)
    except (ValueError, OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read: {error}; get it again") from error
    if path.suffix == ".npy":
        raise UserError(f"{path} is no .npy file, whatever its name says")
    return {
        name: value.detach().float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in read_checkpoint(path).content.items()
    }


def _read_npz(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name.startswith("act_") and name != "act_stdev":
                continue  # feature maps of a whole layer, which no direction in the latent needs
            if entry.file_size > MAX_ENTRY:
                raise ValueError(f"its entry {name!r} claims {entry.file_size:,} bytes; at most {MAX_ENTRY:,} are read")
            with archive.open(entry) as file:
                found[name] = _array(file.read(MAX_ENTRY + 1))
    return found


def _array(data: bytes) -> Tensor | np.ndarray:
    """Read one .npy: numbers as a float tensor, texts as an array; anything else is refused.

    Raises:
        ValueError: where it is damaged or holds objects.
    """
    shape, is_fortran, dtype, start = _npy_header(data)
    if dtype.kind not in "fiubU":
        raise ValueError(f"it holds values of type {dtype}; numbers are wanted")
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"it holds {len(data) - start:,} bytes for an array {list(shape)} of {dtype}")
    array = np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if is_fortran else "C")
    return array if dtype.kind == "U" else torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


def _npy_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return shape, order, type and the place of the numbers; numpy's own parser lets strange errors through."""
    major = data[6] if len(data) > 10 and data[:6] == b"\x93NUMPY" else 0
    if major not in (1, 2, 3):
        raise ValueError("it is no .npy array that is known")
    first = 10 if major == 1 else 12
    start = first + int.from_bytes(data[8:first], "little")
    if not first < start <= min(len(data), first + _LONGEST_HEADER):
        raise ValueError("its header is cut off")
    try:
        header = ast.literal_eval(data[first:start].decode("utf-8").strip())
        shape, is_fortran, dtype = header["shape"], header["fortran_order"], np.dtype(header["descr"])
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ValueError("its header is damaged") from error
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape) or len(shape) > 32:
        raise ValueError("its header is damaged")
    return shape, bool(is_fortran), dtype, start


# --- writing ----------------------------------------------------------------------------------------------------------


def export_directions(
    directions: Directions,
    path: str | Path,
    format: Format,
    *,
    generator: Generator | None = None,
    force: bool = False,
) -> Path:
    """Write directions in a format that other tools read.

    Names and layer ranges go into entries of their own, which other tools ignore and `import_directions` reads back.
    A plain array has no room for anything but the vectors.

    Args:
        directions: those to write.
        path: `.npz` for ganspace, `.pt` for e4e and rosinality, `.npy` for interfacegan and npy.
        format: `ganspace`; `e4e`; `rosinality`, what its apply_factor.py reads; `interfacegan`, the boundary [1, d] of
            one direction; or `npy`, the vectors [k, slots or 1, d] as they are.
        generator: gives the mean that ganspace and e4e files hold, and σ where it is not known yet.
        force: replace a file that exists.

    Raises:
        Unsupported: where the format has no room for directions that differ from slot to slot.
        UserError: for another format or suffix, a file that exists, or a missing generator.
    """
    from .files import written_beside

    suffixes = {"ganspace": ".npz", "e4e": ".pt", "rosinality": ".pt", "interfacegan": ".npy", "npy": ".npy"}
    path = Path(path)
    if format not in suffixes:
        raise UserError(f"format {format!r} is not known; allowed: {', '.join(suffixes)}")
    if path.suffix != suffixes[format]:
        raise UserError(f"{path.name} has another suffix; files of format {format} end in {suffixes[format]}")
    directions.check_straight(f"a file of format {format}")
    if format in ("ganspace", "e4e"):
        entries = _components(directions, format, generator)
    elif format == "rosinality":
        entries = {"ckpt": "", "eigvec": _rows(directions, format).T.contiguous()}
    if format == "interfacegan" and len(directions) != 1:
        raise UserError(f"an interfacegan file holds one boundary, and {len(directions)} directions came; choose one")
    with written_beside(path, force=force) as beside:
        if format == "npy":
            np.save(beside, directions.vectors.numpy(), allow_pickle=False)
        elif format == "interfacegan":
            np.save(beside, _rows(directions, format).numpy(), allow_pickle=False)
        elif format in ("e4e", "rosinality"):
            torch.save(entries, beside)
        else:
            arrays = {name: np.asarray(value) for name, value in entries.items()}
            np.savez(beside, **arrays)  # type: ignore[arg-type]
    return path


def _rows(directions: Directions, format: str) -> Tensor:
    """Return the vectors as [k, d], for formats that know one row a direction."""
    if directions.vectors.shape[1] > 1:
        raise Unsupported(
            f"a {format} file holds one row a direction, and these have {directions.vectors.shape[1]} (one a slot of "
            f"{directions.space}); write them as npy"
        )
    return directions.vectors[:, 0].float().cpu().clone()


def _components(directions: Directions, format: str, generator: Generator | None) -> dict[str, Any]:
    """Return the entries of a GANSpace or encoder4editing file."""
    _rows(directions, format)
    if generator is None:
        raise UserError(f"a {format} file holds the mean of the space, which the generator knows; pass generator=")
    space = generator.space(directions.space)
    directions = directions.in_sigma(space)
    vectors, mean = directions.vectors.float().cpu().clone(), space.mean.float().cpu()[None]
    extra: dict[str, Any] = {"names": list(directions.names), "layers": list(directions.layers)}
    if directions.importance.isfinite().all():
        extra["importance"] = directions.importance.clone()
    if format == "e4e":
        return {"mean": mean, "comp": vectors, "std": directions.sigma.clone(), **extra}
    shares = directions.fields.get("var_ratio", directions.sigma.square() / space.covariance.trace())
    return {
        "act_comp": vectors[:, 0],
        "act_mean": mean,
        "act_stdev": directions.fields.get("act_stdev", directions.sigma),
        "lat_comp": vectors,
        "lat_mean": mean,
        "lat_stdev": directions.sigma,
        "var_ratio": shares,
        "random_stdevs": directions.fields.get("random_stdevs", _random_deviations(space, len(directions))),
        **extra,
    }


def _random_deviations(space: Space, count: int) -> Tensor:
    """Return σ of random unit directions: all near √(tr C / dim), which stands for them."""
    return (space.covariance.trace() / space.dim).sqrt().float().expand(count).clone()
