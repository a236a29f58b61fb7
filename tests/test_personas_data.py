"""The renderer of the second style: what it asks for, what it makes of that, and the drawing where it is there."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "dicebear" / "render.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_personas", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_avatar_i_depends_on_seed_and_i_alone(tool: ModuleType) -> None:
    few, many = (tool.sample_numbers(n, seed=3) for n in (4, 9))
    assert all((few[name] == many[name][:4]).all() for name in tool.NUMBERS)
    later = {name: values[2:4] for name, values in many.items()}
    assert tool.looks(later, 2, seed=3) == tool.looks(few, 0, seed=3)[2:]
    assert len({look["seed"] for look in tool.looks(many, 0, seed=3)}) == 9


def test_avatars_lie_on_their_grounds(tool: ModuleType) -> None:
    avatars = np.zeros((2, 8, 8, 4), np.uint8)
    avatars[:, :4, :4] = (200, 0, 0, 255)  # a whole pixel of two by two
    avatars[:, 4:, 4:6] = (100, 0, 0, 255)  # half of one
    grounds = {f"background_{colour}": np.float32([0.2, 0.4]) for colour in ("red", "green", "blue")}
    images = tool.on_grounds(avatars, grounds)
    assert images.shape == (2, 2, 2, 3)
    assert images[0].tolist() == [[[200, 0, 0], [51, 51, 51]], [[51, 51, 51], [76, 26, 26]]]
    assert images[1, 0, 1].tolist() == [102, 102, 102]


def test_what_cannot_be_done_is_said(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "HERE", tmp_path)
    for words, told in (
        (["--n", "0", "--out", "x.npz"], "choose a whole number from 1"),
        (["--out", "x.png"], "try --out x.npz"),
        (["--out", "x.npz"], "npm ci"),
    ):
        assert tool.main(words) == 2
        assert told in capsys.readouterr().err


def test_the_set_is_written(tool: ModuleType, tmp_path: Path) -> None:
    if shutil.which("node") is None or not (TOOL.parent / "node_modules").is_dir():
        pytest.skip("the drawing packages are missing: npm ci --prefix tools/dicebear")
    out = tmp_path / "personas.npz"
    assert tool.main(["--n", "3", "--resolution", "16", "--out", str(out)]) == 0
    found = np.load(out)
    assert found["images"].shape == (3, 16, 16, 3)
    assert len(np.unique(found["images"].reshape(-1, 3), axis=0)) > 50  # faces, not grounds alone
    assert json.loads(found["meta"].item())["licence"] == "CC BY 4.0"
