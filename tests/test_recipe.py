"""The command and the Python beside a picture make that picture again."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eigenlens import recipe
from eigenlens.cli import main
from eigenlens.edit import Edit, Goal, Move, Start
from eigenlens.generator import Generator
from eigenlens.method import METHODS


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eigengan: Generator) -> Path:
    monkeypatch.chdir(tmp_path)
    eigengan.save(tmp_path / "tiny")
    METHODS["eigen"](measured=False).fit(eigengan).renamed({"L1D1": "skin's tone: dark"}).save(
        Path("my axes.safetensors")
    )
    return tmp_path


EDITS = [
    Edit(
        "tiny",
        Start(seed=3, truncation=0.7),
        (Move("eigen", "L1D2", by=2.0), Move("eigen", "L2D1", to=-0.125, layers="2")),
    ),
    Edit("tiny", Start(seed=1), (Move("my axes.safetensors", "L1D2", by=1e-7),)),
    Edit("tiny", Start(seed=1), (Move("my axes.safetensors", "skin's tone: dark", by=1.0),)),
    Edit("tiny", Start(seed=2, index=5, noise="none"), (Move("eigen", 3, by=-1.5, unit="sigma"),)),
    Edit("tiny", Start(seed=2)),
    Edit(
        "tiny",
        Start(seed=2),
        (Move("eigen", "L1D2", by=1.0),),
        until=Goal.parse("pixels:brightness>0.9"),
        keep=("pixels:contrast", "pixels:warmth"),
        region=(0.25, 0.0, 1.0, 0.625),
    ),
]


@pytest.mark.parametrize("edit", EDITS, ids=range(len(EDITS)))
def test_shell_and_python_make_the_same_picture(edit: Edit, place: Path) -> None:
    line = recipe.shell(edit, "shell.png")
    written, _, command = line.rpartition(" && ")
    if written:  # printf '%s' JSON > edit.json
        words = shlex.split(written)
        assert words[:2] == ["printf", "%s"]
        assert words[3:] == [">", "edit.json"]
        Path("edit.json").write_text(words[2], "utf-8")
    assert main(shlex.split(command)[1:]) == 0
    exec(compile(recipe.python(edit, "python.png"), "recipe", "exec"), {})  # our own text
    a, b = (np.asarray(Image.open(place / name)) for name in ("shell.png", "python.png"))
    assert np.array_equal(a, b)


def test_flags_are_preferred() -> None:
    assert recipe.shell(EDITS[0]).startswith("eigenlens edit tiny --seed 3 --truncation 0.7 --move")
    assert "edit.json" in recipe.shell(EDITS[3])
