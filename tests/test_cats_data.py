"""The renderer of cats: what it draws is what its factors say. It is tried on parts of our own, not on the pictures."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

TOOL = Path(__file__).resolve().parents[1] / "tools" / "robohash" / "render.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_cats", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Two kinds of each part: the first a square in the middle, of a colour that tells it; the second nothing."""
    for place, name in enumerate(("body", "fur", "eyes", "mouth", "accessories")):
        folder = tmp_path / "set4" / f"{place:03}#{place:02}{name}"
        folder.mkdir(parents=True)
        picture = Image.new("RGBA", (64, 64))
        picture.paste((40 * place, 0, 0, 255), (24 - 2 * place, 24, 40 - 2 * place, 40))
        picture.save(folder / f"000#{name}0.png")
        Image.new("RGBA", (64, 64)).save(folder / f"001#{name}1.png")
    return tmp_path / "set4"


def test_cat_i_depends_on_seed_and_i_alone(tool: ModuleType, parts: Path, tmp_path: Path) -> None:
    for n in (4, 9):
        out = str(tmp_path / f"{n}.npz")
        assert tool.main(["--n", str(n), "--resolution", "16", "--parts", str(parts), "--out", out]) == 0
    few, many = np.load(tmp_path / "4.npz"), np.load(tmp_path / "9.npz")
    assert many["images"].shape == (9, 16, 16, 3)
    assert (few["images"] == many["images"][:4]).all()
    assert json.loads(many["meta"].item())["licence"] == "CC BY 4.0"


def test_pictures_show_their_factors(tool: ModuleType, parts: Path) -> None:
    pictures = tool.read_parts(parts, size=64)
    number = dict.fromkeys(tool.NUMBERS, 0.0) | {"scale": 1.0, "background_green": 0.8}
    factors = {name: np.array([value] * 2) for name, value in number.items()}
    factors |= {part: np.array([1, 0]) for part in tool.PARTS} | {"shift_x": np.array([0.0, 0.25])}
    empty, whole = tool.render_cats(factors, pictures)
    assert (empty == [0, 204, 0]).all()  # no part shows: the ground alone
    assert (whole[8, 8:12] == [160, 0, 0]).all()  # the last part lies on top, a quarter of the picture to the right
    assert (whole[8, 13] == [20, 0, 0]).all()  # the second covers half of this pixel, the first all of it
    assert (whole[2] == [0, 204, 0]).all()


def test_what_is_missing_is_said(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tool.main(["--parts", str(tmp_path), "--out", str(tmp_path / "x.npz")]) == 2
    assert "has no folder of the part 'body'" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tool.main(["--out", str(tmp_path / "x.npz")]) == 2
    assert "pip install robohash" in capsys.readouterr().err
