"""`eigenlens project` and `eigenlens encoder` at the shell: files written, photos spared, mistakes in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eigenlens.cli import main
from eigenlens.images import read_recipe

ASSETS = Path(__file__).parent.parent / "src" / "eigenlens" / "assets"


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write two toon faces into the working folder, and name them."""
    monkeypatch.chdir(tmp_path)
    images = np.load(ASSETS / "toonfaces.npz")["images"][:2]
    for number, image in enumerate(images):
        Image.fromarray(image).save(f"face{number}.png")
    return ["face0.png", "face1.png"]


def test_projects_and_edits(faces: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = [(tmp_path / name).read_bytes() for name in faces]
    words = ["project", *faces, "--generator", "toonfaces", "--steps", "2", "--samples", "8", "--start", "samples"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == faces
    assert lines[2:] == ["codes.safetensors", "codes.projection.png"]
    assert [(tmp_path / name).read_bytes() for name in faces] == before
    recipe = read_recipe("codes.projection.png")
    assert recipe is not None
    assert recipe["command"].startswith("eigenlens project face0.png face1.png --generator toonfaces")
    assert main(["info", "codes.safetensors", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["codes"] == 2
    assert [each["photo"] for each in about["photos"]] == faces
    edit = ["edit", "toonfaces", "--codes", "codes.safetensors", "--index", "1", "--move", "L4D2 by 2"]
    assert main(edit) == 0
    assert Image.open("edit.png").size == (64, 64)
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["face0.png", "--out", "face0.png", "--force"], "face0.png is one of the photos, which are never replaced"),
        (["face0.png", "--report", "./face0.png", "--force"], "never replaced"),
        (["none.png"], "none.png does not exist"),
        (["face0.png", "--landmarks", "1,2"], "are no landmarks"),
        (["face0.png", "face1.png", "--landmarks", "1,1 3,1 2,2 1,3 3,3"], "one set of landmarks came for 2 photos"),
        (["face0.png", "--align", "none", "--landmarks", "1,1 3,1 2,2 1,3 3,3"], "leave one of them out"),
        (["face0.png", "--distance", "lpipz"], "unknown distance 'lpipz'"),
        (["face0.png", "--encoder", "none.safetensors"], "none.safetensors does not exist"),
        (["face0.png", "--steps", "-3"], "-3 steps"),
    ],
)
def test_mistakes_are_one_line(faces: list[str], words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["project", *words, "--generator", "toonfaces", "--samples", "1"]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not Path("codes.safetensors").exists()


def test_ctrl_c_writes_the_best_so_far(faces: list[str], tmp_path: Path) -> None:
    words = ["project", "face0.png", "--generator", "toonfaces", "--steps", "100000", "--start", "mean"]
    process = subprocess.Popen(
        [sys.executable, "-c", _ANNOUNCING.format(words=words)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "step\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "the best so far is in codes.safetensors" in err
    assert (tmp_path / "codes.safetensors").exists()
    assert (tmp_path / "codes.projection.png").exists()


_ANNOUNCING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
from eigenlens import project
schedule = project.schedule
def announce(done):
    if done < 4e-5 and done > 2.5e-5:
        print("step", flush=True)
    return schedule(done)
project.schedule = announce
from eigenlens.cli import main
sys.exit(main({words}))
"""


def test_tunes_beside_the_codes(faces: list[str], capsys: pytest.CaptureFixture) -> None:
    words = ["--generator", "toonfaces", "--steps", "2", "--samples", "8", "--start", "samples", "--tune", "3"]
    assert main(["project", "face0.png", *words]) == 0
    out = capsys.readouterr().out
    assert "tuned" in out
    assert out.splitlines()[-1] == "codes.tuning.safetensors"
    edit = ["edit", "codes.tuning.safetensors", "--codes", "codes.safetensors", "--move", "L4D2 by 1"]
    assert main(edit) == 0


def test_trains_an_encoder(faces: list[str], capsys: pytest.CaptureFixture) -> None:
    settings = ["--kimg", "0.008", "--batch", "4", "--width", "8", "--out", "e.safetensors"]
    assert main(["encoder", "train", "toonfaces", *settings]) == 0
    assert main(["project", "face0.png", "--generator", "toonfaces", "--encoder", "e.safetensors", "--steps", "1"]) == 0
    capsys.readouterr()
    assert main(["encoder", "train", "toonfaces", *settings, "--batch", "0"]) == 2
    assert "batch 0 is not possible" in capsys.readouterr().err
    assert main(["encoder", "train", "toonfaces", *settings, "--seed", "1"]) == 2
    assert "e.state.pt has other settings" in capsys.readouterr().err
