"""The last part of the bundled generator's training: faces drawn again as they were meant, and mended."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from eigenlens import load_generator
from eigenlens.generators.eigengan import EigenGAN, EigenGANConfig, EigenGANNetwork
from eigenlens.reader import open_reader

TOOL = Path(__file__).resolve().parents[1] / "tools" / "toonfaces"


@pytest.fixture(scope="module")
def tools() -> Iterator[tuple[ModuleType, ModuleType]]:
    sys.path.insert(0, str(TOOL))
    yield importlib.import_module("redraw"), importlib.import_module("relearn")
    sys.path.remove(str(TOOL))


@pytest.fixture
def small() -> EigenGAN:
    torch.manual_seed(0)
    config = EigenGANConfig(64, noise_dim=4, n_basis=2, base_channels=2, widths="relative")
    return EigenGAN(EigenGANNetwork(config), name="small")


def test_a_share_of_codes_has_one_axis_far_out(tools, small: EigenGAN) -> None:
    redraw, _ = tools
    codes = redraw.codes_of(small, 2000, edited=0.5, seed=1)
    assert codes.shape == (2000, small.network.config.dim)
    assert codes[:, :4].abs().max() < 5
    assert float(codes[:, 4:].abs().max()) <= 4.5
    far = (codes[:, 4:].abs() > 3).float().sum(1)
    assert float((far > 0).float().mean()) == pytest.approx(0.5 / 4, abs=0.04)  # uniform on ±4: a quarter beyond 3
    assert torch.equal(redraw.codes_of(small, 2000, edited=0.0, seed=1)[:, :4], codes[:, :4])


def test_factors_are_the_likeliest_and_beards_have_a_bar(tools) -> None:
    redraw, _ = tools
    rng = np.random.default_rng(0)
    scores = {name: rng.random(40) for name in open_reader("toonfaces").attributes}
    scores["beard"] = np.linspace(0, 1, 40)
    factors = redraw.factors_of(scores, least={"beard": 0.75})
    assert factors["beard"].tolist() == [0] * 30 + [1] * 10
    assert (factors["beard_style"] == -1).tolist() == [True] * 30 + [False] * 10
    eyes = np.stack([scores[f"eyes={category}"] for category in ("happy", "wide", "bow", "humble", "wink")])
    np.testing.assert_array_equal(factors["eyes"], eyes.argmax(0))
    bare = redraw.factors_of(scores, least={"beard": redraw.NEVER, "rear_hair": redraw.NEVER})
    assert bare["beard"].max() == bare["rear_hair"].max() == 0
    assert bare["beard_style"].max() == bare["rear_hair_style"].max() == -1


def test_a_ground_is_the_plane_around_the_avatar(tools) -> None:
    redraw, _ = tools
    places = (np.arange(32) + 0.5) / 32 - 0.5
    y, x = np.meshgrid(places, places, indexing="ij")
    plane = np.stack([0.5 + 0.3 * x, 0.4 - 0.2 * y, 0.6 + 0.1 * x + 0.1 * y], axis=-1)
    image, alpha = plane.copy(), np.zeros((32, 32))
    alpha[8:32, 8:24] = 1.0
    image[8:32, 8:24] = 0.9
    image[4:8, 10:14] = 0.05  # hair that the avatar lacks: no part of the ground either
    found = redraw.grounds(image[None], alpha[None])[0]
    assert float(np.abs(found - plane).max()) < 0.02


@pytest.mark.skipif(
    shutil.which("node") is None or not (TOOL / "node_modules").is_dir(), reason="the renderer is not installed"
)
def test_pairs_are_near_what_the_generator_draws(tools, tmp_path: Path) -> None:
    redraw, _ = tools
    out = tmp_path / "pairs.npz"
    assert redraw.main(["toonfaces", "--n", "12", "--edited", "0", "--threads", "1", "--out", str(out)]) == 0
    with np.load(out) as file:
        codes, images, pose = file["codes"], file["images"], file["pose"]
    assert images.shape == (len(codes), 64, 64, 3)
    assert pose.shape == (len(codes), 4)
    assert len(codes) >= 10
    with torch.inference_mode():
        drawn = load_generator("toonfaces", device="cpu").network(torch.from_numpy(codes))
    apart = (drawn.permute(0, 2, 3, 1).numpy() * 127.5 + 127.5) - images
    own, other = (float(np.sqrt(np.mean(each**2))) for each in (apart, apart + images - np.roll(images, 1, axis=0)))
    assert own < 0.5 * other


@pytest.mark.parametrize(("words", "told"), [(["fashion"], "redraw.py"), (["toonfaces", "--n", "0"], "--n 0")])
def test_a_wrong_request_is_one_line(tools, tmp_path: Path, capsys, words: list[str], told: str) -> None:
    redraw, _ = tools
    assert redraw.main([*words, "--out", str(tmp_path / "pairs.npz")]) == 2
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1


def test_what_is_mended_lies_in_the_face_and_differs_clearly(tools) -> None:
    _, relearn = tools
    drawn = torch.zeros(2, 3, 64, 64)
    pose = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.2, 0.0]])
    clean = drawn + 0.5
    found = relearn.mended(drawn, clean, pose)
    middle = int(relearn.MIDDLE[1])
    assert torch.equal(found[:, :, :20], drawn[:, :, :20]), "hair, above the face"
    assert float(found[0, :, 30:middle, 26:38].min()) == pytest.approx(0.5), "the face"
    assert float(found[0, :, : middle - 1, :16].abs().max()) == 0.0, "beside it"
    assert float(found[:, :, middle + 5 : 62, 2:62].min()) == pytest.approx(0.5), "below, to the border"
    shift = 13  # of 12.8 pixels
    above, moved = found[0, :, :middle, 20:44], found[1, :, :middle, 20 + shift : 44 + shift]
    torch.testing.assert_close(moved, above, atol=0.1, rtol=0)
    assert torch.equal(relearn.mended(drawn, drawn + 0.05, pose), drawn), "a shade of colour is no fault"


def test_places_in_a_face_turn_and_grow_with_it(tools) -> None:
    from eigenlens.readers.toonfaces import Window

    _, relearn = tools
    window = Window(-10, -9, 10, 13, 1)
    pose = torch.tensor([[12.0, 1.1, 0.05, -0.03]])
    right, down = relearn.placed(pose, 64)
    maps = torch.stack([right, down, torch.zeros_like(right)], dim=1)  # as an image: each pixel says where it lies
    seen = window.view(maps, pose)[0, :2]
    lies = torch.stack([torch.arange(-9.5, 10), torch.zeros(20)])[:, None] + torch.stack(
        [torch.zeros(22), torch.arange(-8.5, 13)]
    ).unsqueeze(2)
    torch.testing.assert_close(seen, lies - lies.mean((1, 2), keepdim=True), atol=1e-3, rtol=0)


def test_it_learns_what_is_mended_and_ends(tools, small: EigenGAN, tmp_path: Path, monkeypatch):
    _, relearn = tools
    small.save(tmp_path / "small")
    rng = np.random.default_rng(0)
    pairs = {
        "codes": rng.standard_normal((40, small.network.config.dim), np.float32),
        "images": np.full((40, 64, 64, 3), 220, np.uint8),
        "pose": np.tile(np.float32([0, 1, 0, 0]), (40, 1)),
    }
    np.savez(tmp_path / "pairs.npz", **pairs)
    short = {"HELD_OUT": 8, "TICK_KIMG": 0.128, "WARMUP_KIMG": 0.01, "HALF_LIFE_KIMG": 0.03}
    for name, value in short.items():
        monkeypatch.setattr(relearn, name, value)
    words = ["relearn.py", str(tmp_path / "small"), "--pairs", str(tmp_path / "pairs.npz"), "--threads", "1"]

    def run(folder: str, kimg: str) -> list[float]:
        monkeypatch.setattr(sys, "argv", [*words, "--run", str(tmp_path / folder), "--kimg", kimg])
        relearn.main()
        lines = (tmp_path / folder / "metrics.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line)["held_out"] for line in lines]

    whole = run("whole", "0.512")
    assert len(whole) == 4
    assert whole[-1] < whole[0]
    assert load_generator(tmp_path / "whole" / "last", device="cpu").family == "eigengan"
    assert run("whole", "0.512") == whole, "done is done"
