"""The faces reader: graph models are read as data and run as TensorFlow.js runs them, and what is none is refused."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eigenlens import UserError
from eigenlens.reader import READERS, describe
from eigenlens.readers.faces import VARIABLE, Faces
from eigenlens.readers.graphs import read_graph
from painted import pictures

# Mean age, probability of a man and of a smile that TensorFlow.js 4.22 gives for the first two of `pictures()`, through
# the same resizing: mean of its age distribution, and its other two outputs as they are.
GOLDEN = ((30.050633, 0.832988, 0.001087267), (29.448154, 0.820229, 0.12589797))


@pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"{VARIABLE} names no folder of models")
def test_it_reads_what_tensorflow_js_reads() -> None:
    scores = READERS["faces"]()(pictures()[:2])
    assert torch.allclose(scores, torch.tensor(GOLDEN), rtol=1e-5, atol=1e-6)
    grey = READERS["faces"]()(pictures()[:1, :1])  # grey, as some generators draw
    assert grey.shape == (1, 3)


def test_missing_models_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UserError, match=r"npm install @vladmandic/human@3.3.6 and set EIGENLENS_HUMAN_MODELS"):
        Faces()(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match=f"needs faceres.json, and {tmp_path} was given"):
        Faces(str(tmp_path))(torch.zeros(1, 3, 32, 32))
    assert [each.unit for each in describe(Faces())] == ["years", "", ""]
    assert Faces().attributes == ("age", "gender=male", "smile")


# --- graphs -----------------------------------------------------------------------------------------------------------


def text(value: str) -> dict[str, str]:
    return {"s": base64.b64encode(value.encode()).decode()}


def whole(*values: int) -> dict[str, Any]:
    return {"list": {"i": [str(each) for each in values]}}


def node(name: str, op: str, *inputs: str, **attributes: Any) -> dict[str, Any]:
    return {"name": name, "op": op, "input": list(inputs), "attr": attributes}


def write_model(
    folder: Path, nodes: list[dict[str, Any]], weights: dict[str, np.ndarray], packed: dict[str, dict[str, Any]]
) -> Path:
    """Write a graph model; the arrays of `packed` are stored as they are, with how they are packed beside them."""
    listed, raw = [], b""
    for name, values in weights.items():
        entry = {"name": name, "shape": list(values.shape), "dtype": "int32" if values.dtype == np.int32 else "float32"}
        listed.append(entry | ({"quantization": packed[name]} if name in packed else {}))
        raw += values.tobytes()
    (folder / "small.bin").write_bytes(raw)
    nodes = [*nodes, *(node(name, "Const") for name in weights)]
    manifest = [{"paths": ["small.bin"], "weights": listed}]
    path = folder / "small.json"
    path.write_text(json.dumps({"modelTopology": {"node": nodes}, "weightsManifest": manifest}), "utf-8")
    return path


def small_model(folder: Path) -> Path:
    """Write a graph whose answers can be worked out by hand; its nodes stand in the wrong order."""
    same = {"padding": text("SAME"), "strides": whole(1, 2, 2, 1), "data_format": text("NHWC")}
    fused = {"list": {"s": [text("BiasAdd")["s"], text("Relu")["s"]]}}
    nodes = [
        node("answer", "Identity", "dense:0", "^sum"),
        node("dense", "_FusedMatMul", "flat", "matrix", "bias", fused_ops=fused),
        node("flat", "Mean", "sum", "axes", keep_dims={"b": False}),
        node("sum", "_FusedConv2D", "image", "ones", "two", fused_ops=fused, **same),
        node("image", "Placeholder"),
        node("apart", "DepthwiseConv2dNative", "image", "halves", **(same | {"padding": text("VALID")})),
        node("pooled", "MaxPool", "image", ksize=whole(1, 3, 3, 1), **same),
    ]
    weights = {
        "ones": np.ones((3, 3, 1, 2), np.float16),
        "two": np.array([2, -100], np.float32),
        "axes": np.array([1, 2], np.int32),
        "matrix": np.array([[255, 0], [0, 255]], np.uint8),
        "bias": np.array([0.5, -1], np.float32),
        "halves": np.array([0.5, 2], np.float32).reshape(1, 1, 1, 2),
    }
    packed = {"ones": {"dtype": "float16"}, "matrix": {"dtype": "uint8", "scale": 2 / 255, "min": -1.0}}
    return write_model(folder, nodes, weights, packed)


def test_a_graph_by_hand(tmp_path: Path) -> None:
    graph = read_graph(small_model(tmp_path))
    image = torch.arange(16.0).reshape(1, 4, 4, 1)
    answer, summed, apart, pooled = graph.run(image, ["answer", "sum", "apart", "pooled"])
    # SAME at stride 2 pads 4 px with one at the end alone, so windows begin at 0 and 2; 2 is added, and -100 clipped
    windows = windows_of(image)
    assert torch.equal(summed[..., 0], windows.sum(-1) + 2)
    assert torch.equal(pooled[..., 0], windows.amax(-1))
    assert torch.equal(summed[..., 1], (windows.sum(-1) - 100).clamp(min=0))
    assert torch.equal(apart[0, :, :, 0], image[0, ::2, ::2, 0] / 2)
    assert torch.equal(apart[0, :, :, 1], image[0, ::2, ::2, 0] * 2)
    flat = summed.mean((1, 2))
    expected = flat @ torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) + torch.tensor([0.5, -1.0])  # 255 and 0 unpacked
    assert torch.allclose(answer, expected.clamp(min=0), atol=1e-4)
    assert answer.min() == 0 < answer.max()  # so that the clipping was seen


def windows_of(image: torch.Tensor) -> torch.Tensor:
    """Return the pixels of each 3x3 window of a 4 px image at stride 2, zero past the end: [1, 2, 2, 9]."""
    padded = torch.nn.functional.pad(image[..., 0], (0, 1, 0, 1))
    return padded.unfold(1, 3, 2).unfold(2, 3, 2).flatten(3)


def changed(path: Path, change: Any) -> Path:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")
    return path


def first_node(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["modelTopology"]["node"][0]
    return found


HOSTILE = {
    "operation": (lambda c: first_node(c).update(op="PyFunc"), "operation 'PyFunc' is not known"),
    "circle": (lambda c: first_node(c).update(input=["answer"]), "goes in a circle"),
    "outside": (lambda c: c["weightsManifest"][0].update(paths=["../small.bin"]), "only files beside it are read"),
    "long": (lambda c: c["weightsManifest"][0]["weights"][0].update(shape=[9, 10**9]), "longer than the file"),
    "negative": (lambda c: c["weightsManifest"][0]["weights"][0].update(shape=[-1]), "longer than the file"),
    "kind": (lambda c: c["weightsManifest"][0]["weights"][1].update(dtype="string"), "is no graph model"),
    "inputs": (lambda c: first_node(c).update(op="Placeholder"), "takes 2 inputs"),
    "nothing": (lambda c: c.clear(), "is no graph model"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_graph_is_refused(name: str, tmp_path: Path) -> None:
    change, told = HOSTILE[name]
    path = changed(small_model(tmp_path), change)
    with pytest.raises(UserError, match=told):
        read_graph(path)


def test_a_graph_that_does_not_fit_is_told(tmp_path: Path) -> None:
    graph = read_graph(small_model(tmp_path))
    with pytest.raises(UserError, match=r"_FusedConv2D 'sum' cannot take \[1, 4, 4, 2\], \[3, 3, 1, 2\], \[2\]"):
        graph.run(torch.zeros(1, 4, 4, 2), ["answer"])
    with pytest.raises(UserError, match="gives no 'age'"):
        graph.run(torch.zeros(1, 4, 4, 1), ["age"])


def test_strange_layouts_are_refused(tmp_path: Path) -> None:
    path = changed(small_model(tmp_path), lambda c: c["modelTopology"]["node"][6]["attr"].update(padding=text("ODD")))
    with pytest.raises(UserError, match="padded ODD is not read"):
        read_graph(path).run(torch.zeros(1, 4, 4, 1), ["pooled"])
