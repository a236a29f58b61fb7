"""A generator, or a network that reads codes, as one ONNX file that other runtimes execute, checked against torch."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import __version__
from .codes import Codes, Space
from .errors import Unsupported, UserError
from .files import refuse_existing, written_beside
from .generator import Generator

OPSET = 18
TOLERANCE = 1e-3
"""Largest difference from torch, in standard deviations of the results, at which a file in float32 is kept."""
HALF_TOLERANCE = 5e-2
"""The same for a file whose weights are stored in float16."""
SMALLEST_HALF = 256
"""Weights of fewer numbers stay in float32: they cost nothing."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from torch."""

    path: Path
    """The file."""
    inputs: dict[str, tuple[int | str, ...]]
    """Name -> shape, with `batch` where any number of rows goes."""
    output: tuple[int | str, ...]
    """Shape of `images`."""
    error: float
    """Largest difference from torch, in standard deviations of the images' pixels."""
    bytes: int
    """Size of the file."""


def in_float32(generator: Generator) -> Generator:
    """Return a generator of the same weights that computes as a file does; the given one goes on as it is."""
    made = copy.copy(generator)
    made.precision = "fp32"
    return made


class Images(nn.Module):
    """Latents of one space to images: what is exported of a generator.

    Args:
        generator: the generator; noise is as stored.
        space: of the latents.
        label: index or name of the class, which is then built in; without it a conditional generator takes `labels`.
        truncation: that codes carry, see `Codes`.
    """

    def __init__(self, generator: Generator, space: Space, label: Any = None, truncation: float = 1.0) -> None:
        super().__init__()
        self.network = generator.network
        self.generator = in_float32(generator)
        self.space, self.truncation = space, truncation
        self.label = generator.encode_labels(label, 1) if label is not None else None

    def forward(self, latent: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return images [batch, channels, height, width] for latents [batch, slots, dim]."""
        if self.label is not None:
            labels = self.label.expand(latent.shape[0], -1)
        return self.generator(Codes(self.space, latent, labels, truncation=self.truncation))


def export_onnx(
    generator: Generator,
    path: str | Path,
    *,
    space: str | None = None,
    label: Any = None,
    truncation: float = 1.0,
    half: bool = False,
    force: bool = False,
) -> Exported:
    """Write a generator as ONNX: `latent` [batch, slots, dim], and `labels` where it has classes, to `images`.

    The file is run with onnxruntime on codes of another seed, one and three at a time, before it is given its name.
    It computes in float32, whatever the generator does. Images are those of the stored noise. Its metadata say which
    generator and space it belongs to.

    Args:
        generator: the generator.
        path: ends in `.onnx`.
        space: of the latents; by default the prior, in which codes are drawn, so that the whole network is in the file.
        label: index or name of a class to build in.
        truncation: that codes carry to the network, see `Codes`: of Hugging Face's BigGAN, it chooses the batch
            statistics that are built in. Latents of other networks are truncated before they come.
        half: store weights in float16: half the size, for differences that the eye does not see.
        force: replace a file that exists.

    Raises:
        Unsupported: where the exporter cannot express the network, with its reason.
        UserError: for another suffix, a missing extra, or a file that does not give torch's images.
    """
    refuse_existing(path, force=force)
    where = generator.space(space or generator.prior)
    examples = [_inputs(generator, where, n, label, seed=seed) for n, seed in ((2, 0), (1, 1), (3, 1))]
    about = {
        "kind": "generator",
        "generator": generator.identity(),
        "space": where.name,
        "resolution": generator.resolution,
        "label": None if label is None else str(label),
        "truncation": truncation,
    }
    module = Images(generator, where, label, truncation)
    return write_onnx(module, examples, path, output="images", about=about, half=half, force=force, name=generator.name)


def _inputs(generator: Generator, space: Space, n: int, label: Any, *, seed: int) -> dict[str, Tensor]:
    drawn = label if label is not None else ("random" if generator.label_names else None)
    codes = generator.sample(n, seed=seed, space=space.name, label=drawn)
    latent = codes.latent.expand(-1, space.slots, -1).clone()
    return {"latent": latent} | ({"labels": codes.labels.clone()} if codes.labels is not None and label is None else {})


def write_onnx(
    module: nn.Module,
    examples: Sequence[dict[str, Tensor]],
    path: str | Path,
    *,
    output: str,
    about: dict[str, Any],
    half: bool = False,
    force: bool = False,
    name: str = "the network",
) -> Exported:
    """Write a module as ONNX and check it against torch.

    Args:
        module: takes tensors by name, gives one; it is put on the CPU.
        examples: inputs by name: those it is traced with, then those it is checked with.
        path: ends in `.onnx`.
        output: name of what it gives.
        about: plain JSON for the metadata entry `eigenlens`.
        half: store weights in float16.
        force: replace a file that exists.
        name: what errors call it.

    Raises:
        Unsupported: where the exporter cannot express the network.
        UserError: for another suffix, a missing extra, or a file that does not give torch's results.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise UserError(f"{path.name} has another suffix; networks are written as .onnx")
    _need_onnx()
    module = _on_cpu(module.eval())
    with torch.inference_mode():
        expected = [module(**each) for each in examples]  # the first run also fills what a network keeps
    model, is_any_batch = _traced(module, examples[0], output, name)
    for node in model.graph.all_nodes():  # where in the source each came from, with the paths of this machine
        node.metadata_props.clear()
        node.doc_string = None
    if half:
        store_half(model)
    model.metadata_props["eigenlens"] = json.dumps({"format": "eigenlens.onnx/1", "version": __version__, **about})
    with written_beside(path, force=force) as beside:
        _save(model, beside)
        error = _difference(beside, examples[1:], expected[1:], output, is_any_batch)
        limit = HALF_TOLERANCE if half else TOLERANCE
        if not error <= limit:  # true for NaN as well
            raise UserError(
                f"{name} was exported, but its file differs from torch by {error:.2g} standard deviations of its "
                f"results (at most {limit:g}); the file was not kept"
            )
        size = beside.stat().st_size
    first: int | str = "batch" if is_any_batch else 1
    shapes = {key: (first, *value.shape[1:]) for key, value in examples[0].items()}
    return Exported(path, shapes, (first, *expected[0].shape[1:]), error, size)


def _on_cpu(module: nn.Module) -> nn.Module:
    """Return a module, with the `generator` that it asks, on the CPU: a copy where it lies elsewhere.

    Others go on with the original where it is.
    """
    if all(each.device.type == "cpu" for each in (*module.parameters(), *module.buffers())):
        return module
    module = copy.deepcopy(module).cpu()
    if isinstance(module.generator, Generator):
        module.generator.to("cpu")
    return module


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX needs the package {error.name}, which is not installed: pip install 'eigenlens[onnx]'"
        ) from error


def _traced(module: nn.Module, example: dict[str, Tensor], output: str, name: str) -> tuple[Any, bool]:
    """Return the ONNX model, and whether it takes any number of rows; a network that loops over rows takes one."""
    reasons = []
    for is_any_batch, strict in ((True, True), (True, False), (False, False)):
        given = example if is_any_batch else {key: value[:1] for key, value in example.items()}
        shapes = {key: {0: torch.export.Dim.DYNAMIC} for key in given} if is_any_batch else None
        try:
            with _quiet(), torch.no_grad():
                # strict tracing keeps len() of a batch open, which the other kind fixes; the other takes more of Python
                traced = torch.export.export(module, (), kwargs=given, dynamic_shapes=shapes, strict=strict)
                program = torch.onnx.export(
                    traced, (), None, kwargs=given, dynamo=True, opset_version=OPSET, verbose=False,
                    input_names=list(given), output_names=[output],
                )  # fmt: skip
            assert program is not None
            return program.model, is_any_batch
        except Exception as error:  # tracing runs the network, which may raise anything
            reasons.append(" ".join(str(error).split())[:300])
    raise Unsupported(f"{name} cannot be written as ONNX: {reasons[-1]}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's progress and warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def store_half(model: Any) -> None:
    """Store the large float32 weights of a model as float16, each followed by a Cast that runtimes fold when they load.

    Arithmetic stays in float32; only what 10 bits of mantissa lose is lost.
    """
    import onnx_ir as ir

    graph = model.graph
    casts = []
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < SMALLEST_HALF:
            continue
        stored = ir.Value(
            name=f"{name}.half",
            type=ir.TensorType(ir.DataType.FLOAT16),
            shape=value.shape,
            const_value=ir.tensor(tensor.numpy().astype("float16"), name=f"{name}.half"),
        )
        cast = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)})
        widened = cast.outputs[0]
        widened.name, widened.type, widened.shape = f"{name}.wide", ir.TensorType(ir.DataType.FLOAT), value.shape
        ir.convenience.replace_all_uses_with(value, widened)
        del graph.initializers[name]
        graph.register_initializer(stored)
        casts.append(cast)
    if casts:
        graph.insert_before(graph[0], casts)


def _save(model: Any, path: Path) -> None:
    import onnx_ir as ir

    ir.save(model, path)


def _difference(
    path: Path, examples: Sequence[dict[str, Tensor]], expected: Sequence[Tensor], output: str, is_any_batch: bool
) -> float:
    """Return the largest difference between the file's results and torch's, in standard deviations of the latter."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every Cast that it folds
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    known = {each.name for each in session.get_inputs()}
    worst, spread = 0.0, float(torch.cat([each.flatten() for each in expected]).std())
    for given, wanted in zip(examples, expected, strict=True):
        for rows in [slice(None)] if is_any_batch else [slice(i, i + 1) for i in range(len(wanted))]:
            feed = {key: value[rows].numpy() for key, value in given.items() if key in known}
            (made,) = session.run([output], feed)
            worst = max(worst, float((torch.from_numpy(made) - wanted[rows]).abs().max()) / max(spread, 1e-12))
    return worst
