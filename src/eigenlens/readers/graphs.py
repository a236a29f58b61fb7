"""Graph models of TensorFlow.js, read as data and run in torch.

Such a model is a JSON file, a graph in TensorFlow's terms with a list of its weights, beside files of raw numbers.
Nothing in it is executed: the operations below, those of plain convolutional classifiers, are all that is known, and a
graph with any other is refused.

Source:
    TensorFlow.js, tfjs-converter 4: `graph_executor` and `weights_loader`; names and meanings of operations and their
    attributes as in TensorFlow's `ops.pbtxt`.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

LARGEST_JSON = 8 << 20
"""Bytes of a graph's JSON that are read at most; that of a classifier has under a tenth of it."""
LARGEST_WEIGHTS = 1 << 30
MOST_NODES = 10_000
DTYPES = {"float32": "<f4", "int32": "<i4"}
QUANTISED = {"float16": "<f2", "uint8": "u1", "uint16": "<u2"}


@dataclass(frozen=True)
class Step:
    """One operation of a graph."""

    name: str
    """Of its result."""
    operation: str
    """TensorFlow's name of it."""
    inputs: tuple[str, ...]
    """Names of what it takes."""
    attributes: Mapping[str, Any]
    """Plain values: strings, numbers, truths and lists of them."""


@dataclass(frozen=True)
class Graph:
    """A network: constants, and steps in an order in which each finds what it takes."""

    placeholder: str
    """Name of the images that it takes."""
    constants: Mapping[str, Tensor]
    """Weights by name."""
    steps: tuple[Step, ...]
    """What is done, one after another."""

    def run(self, images: Tensor, outputs: Sequence[str]) -> list[Tensor]:
        """Run the graph.

        Args:
            images: as it takes them, [batch, height, width, channels].
            outputs: names of the results that are wanted.

        Returns:
            The results, each in the layout of TensorFlow, channels last.

        Raises:
            UserError: where a step does not fit what it takes, or a wanted result is not there.
        """
        known = {**self.constants, self.placeholder: images}
        missing = sorted(set(outputs) - set(known) - {step.name for step in self.steps})
        if missing:
            raise UserError(f"the graph gives no {missing[0]!r}; it is another model than the one that is read here")
        with torch.inference_mode():
            for step in self.steps:
                taken = [known[name] for name in step.inputs]
                try:
                    known[step.name] = OPERATIONS[step.operation](step.attributes, *taken)
                except (RuntimeError, TypeError, KeyError, IndexError) as error:
                    shapes = ", ".join(str(list(each.shape)) for each in taken)
                    raise UserError(f"{step.operation} {step.name!r} cannot take {shapes or 'nothing'}") from error
        return [known[name] for name in outputs]


@cache
def read_graph(path: Path) -> Graph:
    """Read a graph model: `<name>.json`, and the files of weights beside it that it names.

    Raises:
        UserError: where it is none, is larger than such models are, or takes more than this reads.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise UserError(f"{path} has over {LARGEST_JSON >> 20} MiB; the JSON of a graph model has far less")
        content = json.loads(path.read_text("utf-8"))
        weights: dict[str, Tensor] = {}
        for group in content["weightsManifest"]:
            weights |= _weights_of(path.parent, group)
        nodes = content["modelTopology"]["node"]
        return _graph_of(nodes, weights)
    except UserError as error:
        raise UserError(f"{path.name} cannot be read: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is no graph model of TensorFlow.js ({reason})") from error


# --- the file ---------------------------------------------------------------------------------------------------------


def _weights_of(folder: Path, group: Mapping[str, Any]) -> dict[str, Tensor]:
    raw = b""
    for name in group["paths"]:
        if name != Path(name).name or name in ("", ".", ".."):
            raise UserError(f"its weights lie at {name!r}, and only files beside it are read")
        file = folder / name
        if len(raw) + file.stat().st_size > LARGEST_WEIGHTS:
            raise UserError(f"its weights have over {LARGEST_WEIGHTS >> 20} MiB")
        raw += file.read_bytes()
    found, at = {}, 0
    for entry in group["weights"]:
        shape = tuple(int(size) for size in entry["shape"])
        packed = entry.get("quantization")
        stored = np.dtype(QUANTISED[packed["dtype"]] if packed else DTYPES[entry["dtype"]])
        if any(size < 0 for size in shape) or at + math.prod(shape) * stored.itemsize > len(raw):
            raise UserError(f"{entry['name']} of shape {list(shape)} is longer than the file")
        values = np.frombuffer(raw, stored, math.prod(shape), at).reshape(shape)
        at += values.nbytes
        if packed and "scale" in packed:
            values = values * float(packed["scale"]) + float(packed["min"])
        found[str(entry["name"])] = torch.from_numpy(values.astype(DTYPES[entry["dtype"]]))
    return found


def _graph_of(nodes: Sequence[Mapping[str, Any]], weights: Mapping[str, Tensor]) -> Graph:
    if len(nodes) > MOST_NODES:
        raise UserError(f"it has {len(nodes):,} operations, where at most {MOST_NODES:,} are read")
    placeholders = [str(node["name"]) for node in nodes if node["op"] == "Placeholder"]
    if len(placeholders) != 1:
        raise UserError(f"it takes {len(placeholders)} inputs, where graphs of one are read")
    strange = sorted({str(node["op"]) for node in nodes} - set(OPERATIONS) - {"Const", "Placeholder"})
    if strange:
        raise UserError(f"its operation {strange[0]!r} is not known here; known: {', '.join(sorted(OPERATIONS))}")
    constants = {str(node["name"]): weights[node["name"]] for node in nodes if node["op"] == "Const"}
    waiting = [
        Step(
            str(node["name"]),
            str(node["op"]),
            tuple(str(name).removesuffix(":0") for name in node.get("input", []) if not str(name).startswith("^")),
            {key: _plain(value) for key, value in node.get("attr", {}).items()},
        )
        for node in nodes
        if node["op"] not in ("Const", "Placeholder")
    ]
    known, ordered = {*constants, *placeholders}, []
    while waiting:
        ready = [step for step in waiting if known.issuperset(step.inputs)]
        if not ready:
            raise UserError(f"what {waiting[0].name!r} takes is nowhere, or goes in a circle")
        ordered += ready
        known.update(step.name for step in ready)
        waiting = [step for step in waiting if step.name not in known]
    return Graph(placeholders[0], constants, tuple(ordered))


def _plain(value: Mapping[str, Any]) -> Any:
    """Return an attribute as a plain value; strings travel in base64, and whole numbers as text."""
    kind, held = next(iter(value.items()))
    if kind == "list":
        kind, held = next(iter(held.items()), ("", []))
        return [_plain({kind: each}) for each in held]
    if kind == "s":
        return base64.b64decode(held).decode()
    return int(held) if kind == "i" else held


# --- what operations do -----------------------------------------------------------------------------------------------


def _padded(x: Tensor, attributes: Mapping[str, Any], size: Sequence[int], fill: float = 0.0) -> Tensor:
    """Pad [batch, height, width, channels] as TensorFlow's SAME does, so that what is left over lies at the end."""
    if attributes["padding"] == "VALID":
        return x
    strides = attributes["strides"][1:3]
    short = [
        max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
        for length, stride, kernel in zip(x.shape[1:3], strides, size, strict=True)
    ]
    sides = [0, 0, short[1] // 2, short[1] - short[1] // 2, short[0] // 2, short[0] - short[0] // 2]
    return F.pad(x, sides, value=fill)


def _convolved(attributes: Mapping[str, Any], x: Tensor, kernel: Tensor, *, groups: int = 1) -> Tensor:
    """Convolve [batch, height, width, channels] with a kernel [height, width, in, out]."""
    _check(attributes)
    y = _padded(x, attributes, kernel.shape[:2]).permute(0, 3, 1, 2)  # [batch, channels, height, width]
    y = F.conv2d(y, kernel.permute(3, 2, 0, 1), stride=tuple(attributes["strides"][1:3]), groups=groups)
    return y.permute(0, 2, 3, 1)


def _convolved_apart(attributes: Mapping[str, Any], x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve each channel with its own kernels [height, width, channels, many]."""
    height, width, channels, many = kernel.shape
    return _convolved(attributes, x, kernel.reshape(height, width, 1, channels * many), groups=channels)


def _largest(attributes: Mapping[str, Any], x: Tensor) -> Tensor:
    _check(attributes)
    size = attributes["ksize"][1:3]
    y = _padded(x, attributes, size, -math.inf).permute(0, 3, 1, 2)
    return F.max_pool2d(y, tuple(size), tuple(attributes["strides"][1:3])).permute(0, 2, 3, 1)


def _check(attributes: Mapping[str, Any]) -> None:
    layout, spread = attributes.get("data_format", "NHWC"), attributes.get("dilations", [1, 1, 1, 1])
    if layout != "NHWC" or any(each != 1 for each in spread) or attributes["padding"] not in ("SAME", "VALID"):
        raise UserError(
            f"an operation in layout {layout}, dilated {spread}, padded {attributes['padding']} is not read"
        )


def _fused(attributes: Mapping[str, Any], y: Tensor, bias: Tensor | None) -> Tensor:
    """Add the bias and apply the activation that a fused operation carries."""
    for each in attributes.get("fused_ops", []):
        if each == "BiasAdd" and bias is not None:
            y = y + bias
        elif each in ("Relu", "Relu6"):
            y = y.clamp(0, 6 if each == "Relu6" else math.inf)
        else:
            raise UserError(f"{each!r} is not known in a fused operation")
    return y


def _multiplied(attributes: Mapping[str, Any], a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    a, b = (x.T if attributes.get(f"transpose_{name}") else x for name, x in (("a", a), ("b", b)))
    return _fused(attributes, a @ b, bias)


def _mean(attributes: Mapping[str, Any], x: Tensor, axes: Tensor) -> Tensor:
    return x.mean(tuple(axes.reshape(-1).tolist()), keepdim=bool(attributes.get("keep_dims")))


OPERATIONS: Mapping[str, Callable[..., Tensor]] = {
    "Add": lambda attributes, a, b: a + b,
    "AddV2": lambda attributes, a, b: a + b,
    "Conv2D": _convolved,
    "DepthwiseConv2dNative": _convolved_apart,
    "Identity": lambda attributes, x: x,
    "MatMul": _multiplied,
    "MaxPool": _largest,
    "Maximum": lambda attributes, a, b: torch.maximum(a, b),
    "Mean": _mean,
    "Minimum": lambda attributes, a, b: torch.minimum(a, b),
    "Mul": lambda attributes, a, b: a * b,
    "Relu": lambda attributes, x: x.relu(),
    "Sigmoid": lambda attributes, x: x.sigmoid(),
    "Softmax": lambda attributes, x: x.softmax(-1),
    "Sub": lambda attributes, a, b: a - b,
    "_FusedConv2D": lambda attributes, x, kernel, bias: _fused(attributes, _convolved(attributes, x, kernel), bias),
    "_FusedMatMul": _multiplied,
}
"""TensorFlow's name -> what it does, from its attributes and what it takes."""
