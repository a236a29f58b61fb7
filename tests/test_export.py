"""Generators as ONNX: every family gives torch's images, in onnxruntime, for any number of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from devices import far_device
from eigenlens.cli import main
from eigenlens.errors import Unsupported, UserError
from eigenlens.export import export_onnx, write_onnx
from eigenlens.generator import Generator
from families import TINY, biggan

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")

ONE_ROW = {"lucidrains"}
"""Families that draw their noise with Python as they run, which fixes how many rows a file takes."""
OTHER_SPACE = {"stylegan2": "w+"}
BUILT_IN = {"stylegan2": 2}
"""Labels that are built in; of other conditional families they are an input."""


@pytest.mark.parametrize("family", list(TINY))
def test_every_family_exports(family: str, tiny: Callable[[str], Generator], tmp_path: Path) -> None:
    g = tiny(family)
    space, label = OTHER_SPACE.get(family), BUILT_IN.get(family)
    made = export_onnx(g, tmp_path / "g.onnx", space=space, label=label)
    where = g.spaces[space or g.prior]
    first = 1 if family in ONE_ROW else "batch"
    assert made.inputs["latent"] == (first, where.slots, where.dim)
    assert ("labels" in made.inputs) == (bool(g.label_names) and label is None)
    assert made.output == (first, g.channels, g.resolution, g.resolution)
    assert made.error < 1e-3

    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    n = 1 if family in ONE_ROW else 5
    drawn = label if label is not None else "random" if g.label_names else None
    codes = g.sample(n, seed=9, space=where.name, label=drawn)
    feed = {"latent": codes.latent.expand(-1, where.slots, -1).numpy()}
    feed |= {"labels": codes.labels.numpy()} if codes.labels is not None else {}
    known = {each.name for each in session.get_inputs()}
    (images,) = session.run(None, {key: value for key, value in feed.items() if key in known})
    with torch.inference_mode():
        wanted = g(codes)
    assert float((torch.from_numpy(images) - wanted).abs().max()) < 1e-3 * float(wanted.std())
    about = json.loads(session.get_modelmeta().custom_metadata_map["eigenlens"])
    assert about["generator"] == g.identity()
    assert about["space"] == where.name
    assert b"site-packages" not in made.path.read_bytes()
    assert str(Path(__file__).parent.parent).encode() not in made.path.read_bytes()


def test_a_generator_in_bfloat16_on_another_device_exports_and_stays_there(tmp_path: Path) -> None:
    with far_device() as device:
        g = TINY["eigengan"]().to(device)
        g.precision = "bf16"
        codes = g.sample(2, seed=3)
        before = g.render(codes)
        assert export_onnx(g, tmp_path / "g.onnx").error < 1e-3
        assert (g.device, g.precision) == (device, "bf16")
        assert torch.equal(g.render(codes), before)


def test_batch_statistics_are_those_of_the_truncation(tmp_path: Path) -> None:
    g = biggan(n_stats=5)
    codes = g.sample(2, seed=3, label=1, truncation=0.5)
    made = export_onnx(g, tmp_path / "g.onnx", label=1, truncation=0.5)
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    (images,) = session.run(None, {"latent": codes.latent.numpy()})
    assert torch.allclose(torch.from_numpy(images), g.render(codes), atol=1e-3)
    assert not torch.allclose(g.render(replace(codes, truncation=1.0)), g.render(codes), atol=1e-2)


def test_weights_in_half(tiny: Callable[[str], Generator], tmp_path: Path) -> None:
    g = tiny("dcgan")
    whole = export_onnx(g, tmp_path / "whole.onnx")
    half = export_onnx(g, tmp_path / "half.onnx", half=True)
    assert half.bytes < 0.75 * whole.bytes
    assert whole.error < half.error < 5e-2


class Choosy(nn.Module):
    """Does one thing or another, as the numbers have it, which no graph can hold."""

    def forward(self, latent: Tensor) -> Tensor:
        return latent.tanh() if latent.sum() > 0 else latent


def test_what_no_graph_can_hold(tmp_path: Path) -> None:
    example = {"latent": torch.randn(2, 4)}
    with pytest.raises(Unsupported, match="mine cannot be written as ONNX: "):
        write_onnx(Choosy(), [example, example], tmp_path / "a.onnx", output="images", about={}, name="mine")
    assert list(tmp_path.iterdir()) == []


class Moody(nn.Module):
    """Gives something else when it is traced."""

    def forward(self, latent: Tensor) -> Tensor:
        return latent + float(torch.compiler.is_exporting())


def test_a_file_that_differs_is_not_kept(tmp_path: Path) -> None:
    example = {"latent": torch.randn(2, 4)}
    with pytest.raises(UserError, match="differs from torch by"):
        write_onnx(Moody(), [example, example], tmp_path / "a.onnx", output="images", about={})
    assert list(tmp_path.iterdir()) == []


def test_at_the_shell(tiny: Callable[[str], Generator], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = str(tiny("dcgan").save(tmp_path / "model")), tmp_path / "g.onnx"
    assert main(["export", "onnx", model, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "latent ['batch', 1, 8]" in said
    assert "differs from torch by at most" in said
    assert main(["export", "onnx", model, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", "onnx", model, "--out", str(tmp_path / "g.bin")]) == 2
    assert ".onnx" in capsys.readouterr().err
