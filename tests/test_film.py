"""Films: easing, axes in turn, and frames that are made, written and let go one by one."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eigenlens import images as pictures
from eigenlens.cli import main
from eigenlens.codes import concatenate, save_codes
from eigenlens.effect import traverse
from eigenlens.errors import UserError
from eigenlens.film import Shot, eased, in_turn, sweep, walk
from eigenlens.generator import Generator
from eigenlens.method import find_directions


def test_easing() -> None:
    assert eased(3, "linear") == [0.0, 0.5, 1.0]
    smooth = eased(9)
    assert (smooth[0], smooth[4], smooth[-1]) == (0.0, pytest.approx(0.5), pytest.approx(1.0))
    steps = np.diff(smooth)
    assert steps[0] < steps[3]
    assert np.allclose(steps, steps[::-1])
    assert [shot.strength for shot in sweep("a", -2.0, 4.0, 3, "linear")] == [-2.0, 1.0, 4.0]
    with pytest.raises(UserError, match="1 step came"):
        eased(1)
    with pytest.raises(UserError, match="unknown easing 'bouncy'"):
        eased(3, "bouncy")  # type: ignore[arg-type]


def test_axes_in_turn_begin_and_end_at_the_image() -> None:
    shots = in_turn(["a", "b"], -2.0, 3.0, 21)
    for name in "ab":
        own = [shot.strength for shot in shots if shot.which == name]
        assert (own[0], own[-1]) == (0.0, 0.0)
        assert (min(own), max(own)) == (-2.0, 3.0)
        assert len(own) == 21
    assert [shot.which for shot in shots] == ["a"] * 21 + ["b"] * 21
    assert [shot.strength for shot in in_turn(["a"], 0.0, 2.0, 5, "linear")] == [0.0, 1.0, 2.0, 1.0, 0.0]
    with pytest.raises(UserError, match="shows nothing"):
        in_turn(["a"], 0.0, 0.0, 9)
    with pytest.raises(UserError, match="3 frames came; from 0 to 3, to -2 and back takes 4 or more"):
        in_turn(["a"], -2.0, 3.0, 3)


@pytest.mark.parametrize("n", [4, 5, 8, 10, 24, 60, 90])
@pytest.mark.parametrize(("low", "high"), [(-3.0, 3.0), (-0.1, 3.0), (-1.5, 2.7), (0.0, 3.0), (1.0, 3.0)])
def test_axes_in_turn_have_the_frames_that_were_asked_for(n: int, low: float, high: float) -> None:
    strengths = [shot.strength for shot in in_turn(["a"], low, high, n)]
    assert len(strengths) == n
    assert (strengths[0], strengths[-1]) == (0.0, 0.0)
    assert all(any(each == pytest.approx(end) for each in strengths) for end in (low, high))


def test_a_walk_shows_what_traverse_shows_and_holds_one_frame(eigengan: Generator) -> None:
    axes = find_directions("eigen", eigengan, measured=False)
    codes = eigengan.sample(3, seed=2)
    shots = [*sweep("L1D1", -2.0, 2.0, 3, "linear"), Shot("L2D2", 1.5)]
    frames, seen = [], []
    held: list[weakref.ref] = []
    for images in walk(eigengan, codes, axes, shots):
        assert sum(ref() is not None for ref in held) <= 1  # the loop's own last one
        held.append(weakref.ref(images))
        frames.append(images.clone())
        seen.append(images.shape)
        del images
    wanted = traverse(eigengan, codes, axes, "L1D1", [-2.0, 0.0, 2.0])
    assert torch.allclose(torch.stack(frames[:3], dim=1), wanted, atol=1e-5)
    assert torch.allclose(frames[3], traverse(eigengan, codes, axes, "L2D2", [1.5])[:, 0], atol=1e-5)
    goal = next(walk(eigengan, codes, axes, [Shot("L1D1", 1.0)], absolute=True))
    assert torch.allclose(goal, traverse(eigengan, codes, axes, "L1D1", [1.0], absolute=True)[:, 0], atol=1e-5)


class Counting:
    """Makes frames of 1024 px and knows how many were asked for."""

    def __init__(self, n: int) -> None:
        self.n, self.made = n, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for number in range(self.n):
            self.made += 1
            yield np.full((1024, 1024, 3), 10 * number, np.uint8)


@pytest.mark.parametrize("pingpong", [False, True])
def test_an_mp4_of_1024_px_is_written_in_constant_memory(pingpong: bool, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="the extra 'video' is not installed")
    frames, one = Counting(14), 1024 * 1024 * 3
    tracemalloc.start()
    try:
        pictures.save_animation(frames, tmp_path / "film.mp4", fps=24, pingpong=pingpong, recipe={"command": "again"})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert frames.made == 14
    assert peak < 7 * one, f"{peak / one:.1f} frames were held"  # a frame, its copies for size and colour
    assert pictures.read_recipe(tmp_path / "film.mp4") == {"command": "again"}
    with av.open(str(tmp_path / "film.mp4")) as film:
        levels = [float(frame.to_ndarray(format="gray").mean()) for frame in film.decode(video=0)]
    forward = [10.0 * number for number in range(14)]
    wanted = forward + forward[-2:0:-1] if pingpong else forward
    assert len(levels) == len(wanted)
    assert np.abs(np.array(levels) - wanted).max() < 4


def test_a_broken_film(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the extra 'video' is not installed")
    (tmp_path / "film.mp4").write_bytes(b"no film")
    with pytest.raises(UserError, match="cannot be read as a film"):
        pictures.read_recipe(tmp_path / "film.mp4")


def test_captions_give_all_frames_one_size() -> None:
    batches = [torch.zeros(2, 3, 16, 16)] * 3
    texts = ["a", "a very long name of an axis that needs two lines or more, " + "w" * 60, "b"]
    made = list(pictures.frames(iter(batches), texts))
    assert {frame.width for frame in made} == {2 * 192 + 2}, "no caption makes a film wider"
    assert len({frame.height for frame in made}) == 1
    assert np.asarray(made[0])[:-192].min() < 128  # its caption stands there
    assert next(pictures.frames(iter(batches))).size == (130, 64)


def test_films_at_the_shell(eigengan: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(eigengan.save(tmp_path / "model"))
    words = ["traverse", model, "--seeds", "0-1", "--frames", "7", "--range", "-2:2"]

    def count(name: str) -> int:
        with Image.open(tmp_path / name) as picture:
            return picture.n_frames

    assert main([*words, "--axis", "L1D1", "--out", str(tmp_path / "there-and-back.webp")]) == 0
    assert count("there-and-back.webp") == 12
    assert main([*words, "--axis", "L1D1", "--once", "--easing", "linear", "--out", str(tmp_path / "once.webp")]) == 0
    assert count("once.webp") == 7
    assert main([*words, "--axis", "L1D1,L2D1", "--in-turn", "--fps", "12", "--out", str(tmp_path / "turn.gif")]) == 0
    recipe = pictures.read_recipe(tmp_path / "turn.gif")
    assert recipe is not None
    assert "--in-turn --frames 7 --fps 12" in recipe["command"]
    capsys.readouterr()
    assert main(["info", str(tmp_path / "turn.gif")]) == 0
    assert "--in-turn" in capsys.readouterr().out


def test_codes_of_a_file_are_walked(eigengan: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(eigengan.save(tmp_path / "model"))
    rows = concatenate([eigengan.sample(1, seed=seed) for seed in (3, 4)])
    codes = str(save_codes(rows, tmp_path / "c.safetensors", eigengan))
    words = ["traverse", model, "--axis", "L1D1", "--steps", "3"]
    assert main([*words, "--seeds", "1", "--codes", codes, "--out", str(tmp_path / "rows.png")]) == 0
    assert main([*words, "--seeds", "4", "--out", str(tmp_path / "seeds.png")]) == 0
    with Image.open(tmp_path / "rows.png") as rows, Image.open(tmp_path / "seeds.png") as seeds:
        box = (rows.width - 192, rows.height - 64, rows.width, rows.height)
        there = (seeds.width - 192, seeds.height - 64, seeds.width, seeds.height)
        assert rows.crop(box).tobytes() == seeds.crop(there).tobytes()
    assert f"--codes {codes}" in pictures.read_recipe(tmp_path / "rows.png")["command"]  # type: ignore[index]
    assert main([*words, "--seeds", "2", "--codes", codes, "--out", str(tmp_path / "a.png")]) == 2
    assert "it has rows 0-1" in capsys.readouterr().err
