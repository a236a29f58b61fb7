"""The bundled generator: it is there, small, honest about itself, and its axes live."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eigenlens
from eigenlens.cli import main
from eigenlens.effect import rms_change
from eigenlens.generator import Generator
from eigenlens.images import read_recipe

FOLDER = Path(eigenlens.__file__).parent / "assets" / "toonfaces"


@pytest.fixture(scope="module")
def toonfaces() -> Generator:
    return eigenlens.load_generator("toonfaces", device="cpu")


def test_it_is_small_and_says_how_it_was_trained() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 12e6
    config = json.loads((FOLDER / "config.json").read_text("utf-8"))
    assert config["network"]["resolution"] == 64
    assert config["network"]["noise_dim"] == 128
    card = (FOLDER / "README.md").read_text("utf-8")
    assert "CC BY 4.0" in card
    log = (FOLDER / "metrics.jsonl").read_text("utf-8").splitlines()
    assert max(json.loads(line).get("kimg", 0) for line in log) >= 300


def test_its_images_are_like_the_data(toonfaces: Generator) -> None:
    from eigenlens.images import from_uint8

    with np.load(FOLDER.parent / "toonfaces.npz") as file:
        real = from_uint8(file["images"][:512])
    fake = toonfaces.render(toonfaces.sample(512, seed=0))
    assert (real.mean(0) - fake.mean(0)).square().mean().sqrt() < 0.15
    assert float(fake.std(0).mean()) == pytest.approx(float(real.std(0).mean()), rel=0.25)
    noise = rms_change(fake[:-1], fake[1:]).mean()
    assert noise > 0.2, "samples hardly differ"


def test_ten_axes_live(toonfaces: Generator) -> None:
    axes = eigenlens.METHODS["eigen"]().fit(toonfaces)
    assert len(axes) == 24
    assert int((axes.effect > 0.02).sum()) >= 10
    assert torch.isfinite(axes.effect).all()


@pytest.mark.slow
def test_the_demo_makes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    page = (out / "index.html").read_text("utf-8")
    pictures = sorted(path.name for path in out.iterdir() if path.suffix in (".png", ".gif"))
    assert sum(name.endswith(".gif") for name in pictures) == 5
    assert {"samples.png", "axes.png", "methods.png", "sefa.png", "ganspace.png", "jacobian.png"} <= set(pictures)
    assert all(f'src="{name}"' in page for name in pictures)
    assert "eigenlens traverse toonfaces" in page
    assert "Next:" in capsys.readouterr().out
    films = sorted(out.glob("*.gif"))
    recipe = read_recipe(films[0])
    assert recipe is not None
    again = tmp_path / "again.gif"
    words = [word if word != str(films[0]) else str(again) for word in shlex.split(recipe["command"])[1:]]
    assert main(words) == 0
    with Image.open(films[0]) as film, Image.open(again) as other:
        assert film.n_frames == other.n_frames  # type: ignore[attr-defined]
        assert film.info["duration"] == other.info["duration"]
        assert film.tobytes() == other.tobytes()
    assert main(["demo", "--out", str(out)]) == 2  # it does not write over itself
    for file in ("index.html", "mixed.safetensors"):
        (out / file).unlink()
    assert main(["demo", "--out", str(out)]) == 2  # nor over what lies there
    assert "methods.png exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_supervised_directions_move_what_they_name(toonfaces: Generator) -> None:
    from eigenlens.reader import READERS

    reader = READERS["pixels"]()
    found = eigenlens.METHODS["supervised"](reader="pixels", n_samples=2000).fit(toonfaces, seed=0)
    codes = toonfaces.sample(64, seed=1)
    for name in ("brightness", "warmth"):  # those that a hyperplane predicts; `held_out` says so of the others
        row = next(k for k, each in enumerate(found.names) if name in each)
        scores = [reader(toonfaces.render(found.move(codes, row, by=by))) for by in (-1.5, 1.5)]
        spread = reader(toonfaces.render(codes)).std(0)
        change = ((scores[1] - scores[0]) / spread).mean(0)  # of every attribute, in its own standard deviations
        place = reader.attributes.index(name)
        assert change[place] > 0.8, f"{name} moved by {float(change[place]):.2f} standard deviations"
        assert float(found.fields["held_out"][row]) > 0.3


def test_its_encoder_reads_faces_better_than_many_samples_do(toonfaces: Generator) -> None:
    from eigenlens.encoder import find_encoder
    from eigenlens.images import from_uint8
    from eigenlens.project import project

    place = find_encoder(toonfaces)
    assert place is not None
    assert place.stat().st_size <= 6e6
    with np.load(FOLDER.parent / "toonfaces.npz") as file:
        faces = from_uint8(file["images"][:16])
    read, drawn = (project(toonfaces, faces, start=start, steps=0) for start in ("encoder", "samples"))
    assert read.figures["psnr"].mean() > drawn.figures["psnr"].mean() + 1.5
    assert "encoder" in (FOLDER / "README.md").read_text("utf-8")
