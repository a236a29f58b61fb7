"""The command line: what it writes, and that a mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eigenlens.cli import _parsed, main
from eigenlens.commands.discovery import discover
from eigenlens.commands.edits import parse_move
from eigenlens.commands.words import Machine, command_again, parse_range, parse_seeds
from eigenlens.directions import Directions
from eigenlens.errors import UserError
from eigenlens.generator import Generator
from eigenlens.images import read_recipe
from eigenlens.method import METHODS
from toy_spaces import SlotToy


@pytest.fixture
def model(eigengan: Generator, tmp_path: Path) -> str:
    """Give a folder with the small EigenGAN."""
    return str(eigengan.save(tmp_path / "model"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trverse"], "Did you mean 'traverse'?"),
        (["sample"], "eigenlens sample --help"),
        (["sample", "toonfacs"], "unknown generator 'toonfacs'. Did you mean 'toonfaces'?"),
        (["sample", "nowhere/model.pt"], "does not exist"),
        (["traverse", "MODEL", "--axs", "L1D1"], "did you mean --axis?"),
        (["traverse", "MODEL", "--axis", "L9D9", "--out", "OUT.png"], "unknown direction 'L9D9'"),
        (["traverse", "MODEL", "--axis", "L1D1", "--range", "4", "--out", "OUT.png"], "LOW:HIGH"),
        (["traverse", "MODEL", "--axis", "L1D1", "--seeds", "a", "--out", "OUT.png"], "are no seeds"),
        (["traverse", "MODEL", "--axis", "L1D1", "--layers", "7", "--out", "OUT.png"], "not in range"),
        (
            ["traverse", "MODEL", "--axis", "L1D1", "--directions", "sefaa", "--out", "OUT.png"],
            "unknown method or file",
        ),
        (["traverse", "MODEL", "--axis", "L1D1", "--out", "OUT.bmp"], ".png"),
        (["traverse", "MODEL", "--axis", "L9D9", "--out", "OUT.bmp"], ".jpeg, .webp, .gif, .mp4"),
        (["export", "explorer", "MODEL", "--which", "no", "--out", "OUT.bmp"], "an explorer is a page: .html"),
        (["edit", "MODEL", "--move", "L1D1 by 2", "--keep", "beart", "--out", "OUT.png"], "Did you mean 'beard'?"),
        (["sample", "MODEL", "--n", "many"], "sample --help"),
        (["sample", "MODEL", "--label", "3", "--out", "OUT.png"], "has no labels"),
        (["sample", "MODEL", "--device", "abacus", "--out", "OUT.png"], "unknown device"),
        (["edit", "MODEL", "--move", "L1D1 2", "--out", "OUT.png"], "is no move"),
        (["edit", "MODEL", "--move", "bob's hair by 2", "--out", "OUT.png"], "wants a backslash"),
        (["edit"], "name a generator"),
        (["edit", "MODEL", "--move", "L1D1 by 2", "--region", "1,2", "--out", "OUT.png"], "is no region"),
        (["edit", "MODEL", "--move", "L1D1 by 2", "--region", "0.5,0,0.2,1", "--out", "OUT.png"], "is none"),
        (["edit", "MODEL", "--move", "L1D1 by 2", "--until", "beard", "--out", "OUT.png"], "is no goal"),
        (["edit", "MODEL", "--move", "L1D1 by 2", "--keep", "poise", "--out", "OUT.png"], "unknown attribute 'poise'"),
        (["info", "nothing.png"], "does not exist"),
        (["train", "--data", "nowhere"], "nowhere"),
        (["train", "--data", "nowhere", "--preset", "cpu64"], "Did you mean 'cpu-64'?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], says: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"MODEL": model, "OUT.png": str(tmp_path / "out.png"), "OUT.bmp": str(tmp_path / "out.bmp")}
    assert main([places.get(word, word) for word in words]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith(f"eigenlens {words[0]}: ")
    assert says in output.err
    assert not (tmp_path / "out.png").exists()


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "commands:" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip().count(".") == 2


def test_sample_writes_a_grid_that_remembers_its_command(model: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "grid.png"
    assert main(["sample", model, "--n", "6", "--columns", "3", "--seed", "4", "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.width > picture.height
    capsys.readouterr()
    assert main(["info", str(out)]) == 0
    command = capsys.readouterr().out
    assert command.startswith(f"eigenlens sample {model}")
    assert "--seed 4" in command
    assert main(["sample", model, "--out", str(out)]) == 2  # never over an existing file
    assert "exists already" in capsys.readouterr().err
    assert main(["sample", model, "--out", str(out), "--force"]) == 0


def test_sample_shows_the_first_image_of_each_seed(model: str, tmp_path: Path) -> None:
    grid, one = tmp_path / "grid.png", tmp_path / "one.png"
    assert main(["sample", model, "--seeds", "3-4", "--columns", "1", "--out", str(grid)]) == 0
    assert main(["sample", model, "--seed", "4", "--n", "1", "--out", str(one)]) == 0
    with Image.open(grid) as both, Image.open(one) as alone:
        assert "--seeds 3-4" in both.info["eigenlens"]
        below = np.asarray(both)[-alone.height :, : alone.width]
        assert np.array_equal(below, np.asarray(alone))


@pytest.mark.parametrize("suffix", [".png", ".gif", ".webp"])
def test_traverse_writes_strips_and_films(model: str, suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"strip{suffix}"
    assert (
        main(
            [
                "traverse",
                model,
                "--axis",
                "L1D1",
                "--range",
                "-4:4",
                "--seeds",
                "0-1",
                "--steps",
                "3",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    with Image.open(out) as picture:
        assert getattr(picture, "n_frames", 1) == (1 if suffix == ".png" else 22)  # twelve steps, there and back


def test_traverse_shows_all_axes(model: str, tmp_path: Path) -> None:
    one, every = tmp_path / "one.png", tmp_path / "all.png"
    assert main(["traverse", model, "--axis", "L1D1", "--seeds", "0", "--out", str(one)]) == 0
    assert main(["traverse", model, "--axis", "all", "--seeds", "0", "--out", str(every)]) == 0
    with Image.open(one) as small, Image.open(every) as large:
        assert large.height > 4 * small.height


def test_edit_reads_the_edit_that_it_wrote(model: str, tmp_path: Path, capsys) -> None:
    first, second, saved = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "edit.json"
    words = ["--move", "L1D1 by 2", "--move", "L2D1 to -1", "--seed", "3"]
    assert main(["edit", model, *words, "--out", str(first), "--save-edit", str(saved)]) == 0
    assert json.loads(saved.read_text())["moves"][1]["to"] == -1
    assert main(["edit", "--edit", str(saved), "--out", str(second)]) == 0
    with Image.open(first) as a, Image.open(second) as b:
        assert a.tobytes() == b.tobytes()
    capsys.readouterr()
    main(["info", str(first)])
    recipe = capsys.readouterr().out
    assert "eigen:L1D1 by 2" in recipe
    assert main(["edit", "--edit", str(saved), "--move", "L1D1 by 2", "--out", str(tmp_path / "c.png")]) == 2


def test_the_precision_is_part_of_the_recipe(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"sample": ["--n", "2"], "traverse": ["--axis", "L1D1", "--seeds", "0"], "edit": ["--move", "L1D1 by 2"]}
    for command, how in words.items():
        pictures = {}
        for precision in ("fp32", "bf16"):
            out = tmp_path / f"{command}-{precision}.png"
            assert main([command, model, *how, "--precision", precision, "--out", str(out)]) == 0
            capsys.readouterr()
            main(["info", str(out)])
            assert ("--precision bf16" in capsys.readouterr().out) == (precision == "bf16"), command
            with Image.open(out) as picture:
                pictures[precision] = picture.tobytes()
        assert pictures["fp32"] != pictures["bf16"], command
    assert main(["sample", model, "--precision", "fp8", "--out", str(tmp_path / "a.png")]) == 2


def test_before_stands_beside_after(model: str, tmp_path: Path) -> None:
    out = tmp_path / "pair.png"
    assert main(["edit", model, "--move", "L1D1 by 4", "--before", "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.width > 1.5 * picture.height
    recipe = read_recipe(out)
    assert recipe is not None
    assert recipe["command"].endswith(f"--out {out} --before")  # it makes this picture, not the half of it


def test_edit_carries_its_bounds(model: str, tmp_path: Path, capsys) -> None:
    first, second, saved = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "edit.json"
    bounds = ["--until", "brightness > -1", "--keep", "contrast,pixels:warmth", "--region", "0,0.5,1,1"]
    words = ["edit", model, "--move", "L1D1 by 2", *bounds, "--difference"]
    assert main([*words, "--out", str(first), "--save-edit", str(saved)]) == 0
    said = capsys.readouterr().out
    assert "brightness>-1: so already" in said
    assert "kept contrast: " in said
    assert "(by gradients)" in said
    assert json.loads(saved.read_text())["until"] == "brightness>-1"
    main(["info", str(first)])
    recipe = capsys.readouterr().out
    assert "--until 'brightness>-1' --keep contrast,pixels:warmth --region 0,0.5,1,1" in recipe
    assert main(["edit", "--edit", str(saved), "--difference", "--out", str(second)]) == 0
    with Image.open(first) as a, Image.open(second) as b:
        assert a.tobytes() == b.tobytes()


def test_until_says_what_it_found(model: str, tmp_path: Path, capsys) -> None:
    words = ["edit", model, "--move", "L1D1 by 2", "--until", "pixels:brightness>9", "--out", str(tmp_path / "a.png")]
    assert main(words) == 0
    assert "not met; after all moves pixels:brightness is 0." in capsys.readouterr().out


def test_edited_codes_are_saved(model: str, tmp_path: Path, capsys) -> None:
    codes, first, second = tmp_path / "codes.safetensors", tmp_path / "a.png", tmp_path / "b.png"
    words = ["edit", model, "--move", "L1D1 by 2", "--save-codes", str(codes)]
    assert main([*words, "--out", str(first)]) == 0
    assert main(["edit", model, "--codes", str(codes), "--move", "L1D1 by 0", "--out", str(second)]) == 0
    with Image.open(first) as a, Image.open(second) as b:
        assert a.tobytes() == b.tobytes()
    assert main([*words, "--out", str(tmp_path / "c.png")]) == 2  # the codes exist
    assert "exists already" in capsys.readouterr().err


def test_info_tells_the_anatomy(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", model]) == 0
    text = capsys.readouterr().out
    assert "eigengan" in text
    assert "0 eps [0:8]" in text
    assert main(["info", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resolution"] == 16


def test_info_tells_directions(eigengan: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from eigenlens.method import find_directions

    path = find_directions("eigen", eigengan).save(tmp_path / "own.safetensors")
    assert main(["info", str(path)]) == 0
    text = capsys.readouterr().out
    assert "eigen" in text
    assert "L1D1" in text


def test_info_tells_an_encoder_and_no_command_takes_it_for_a_generator(
    eigengan: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eigenlens.encoder import Encoder, EncoderConfig, EncoderNetwork

    shape = EncoderConfig("z", 1, eigengan.spaces["z"].dim, resolution=16, width=4)
    path = Encoder(EncoderNetwork(shape), eigengan, {"kimg": 4.0}).save(tmp_path / "encoder.safetensors")
    assert main(["info", str(path)]) == 0
    text = capsys.readouterr().out
    assert "reads space z off images of 16 px" in text
    assert f"name {eigengan.name}, family eigengan" in text
    assert "{" not in text
    assert main(["sample", str(path), "--out", str(tmp_path / "x.png")]) == 2
    assert "is no generator: its format is 'eigenlens.encoder/1'" in capsys.readouterr().err


def test_list_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert "toonfaces" in text
    assert "cpu-64" in text


def test_words_are_parsed() -> None:
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    assert parse_range("-1:1", 3) == [-1, 0, 1]
    move = parse_move("faces.safetensors:smile to 1.5 layers 4-7", "eigen")
    assert (move.directions, move.name, move.to, move.layers) == ("faces.safetensors", "smile", 1.5, "4-7")
    assert parse_move("L1D1 by -2", "eigen").directions == "eigen"
    assert parse_move("fair hair by 2 layers 4", "eigen").name == "fair hair"
    assert parse_move("by by 2", "eigen").name == "by"
    for bad in ("5-3", "x", "1-", ""):
        with pytest.raises(UserError):
            parse_seeds(bad)
    with pytest.raises(UserError):
        parse_range("a:b", 3)


def test_discover_saves_what_others_read(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sheet, mixed = tmp_path / "sefa.safetensors", tmp_path / "sefa.png", tmp_path / "mixed.safetensors"
    words = ["discover", model, "--method", "sefa", "--n-directions", "4", "--measure", "effect"]
    assert main([*words, "--out", str(out), "--sheet", str(sheet)]) == 0
    table = capsys.readouterr().out
    assert "sefa-3" in table
    assert "sefa-4" not in table
    assert (
        main(["traverse", model, "--axis", "sefa-1", "--directions", str(out), "--out", str(tmp_path / "a.png")]) == 0
    )
    capsys.readouterr()
    words = ["directions", str(out), "eigen", "--generator", model, "--keep", "0-1,L2D1", "--rename", "sefa-0=shade"]
    assert main([*words, "--flip", "sefa-1", "--out", str(mixed)]) == 0
    assert "shade" in capsys.readouterr().out
    assert main(["similarity", str(mixed), "eigen", "--generator", model]) == 0
    assert "by chance" in capsys.readouterr().out
    assert main(["decompose", str(out), "--into", "eigen", "--generator", model, "--k", "2"]) == 0
    assert "share" in capsys.readouterr().out
    assert main(["codebook", str(out), "eigen", "--generator", model, "--n", "3"]) == 0
    assert "code-2" in capsys.readouterr().out
    words = ["directions", str(mixed), "--generator", model, "--compose", "both=0.5*shade+1*L2D1"]
    assert main([*words, "--out", str(tmp_path / "both.npz"), "--format", "ganspace"]) == 0
    capsys.readouterr()
    assert main(["directions", str(tmp_path / "both.npz"), "--generator", model]) == 0
    assert "both" in capsys.readouterr().out


def test_directions_of_w_with_layer_ranges_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, ranged, whole = "toy_spaces:SlotToy", str(tmp_path / "ranged.safetensors"), str(tmp_path / "w.safetensors")
    found = METHODS["axes"](n_directions=3).fit(SlotToy())
    found.save(whole)
    replace(found, layers=("1-2",) * 3).save(ranged)
    assert main(["similarity", ranged, whole, "--generator", source]) == 0
    assert "mean matched |cos| 0.707" in capsys.readouterr().out  # two of four slots
    assert main(["decompose", ranged, "--into", whole, "--generator", source, "--k", "1"]) == 0
    assert "0.50" in capsys.readouterr().out
    assert main(["codebook", whole, ranged, "--generator", source, "--n", "3"]) == 0
    assert "code-2" in capsys.readouterr().out
    words = ["directions", ranged, "--generator", source, "--out", str(tmp_path / "both.safetensors")]
    assert main([*words, "--compose", f"both=1*{found.names[0]}-1*{found.names[1]}"]) == 0
    assert Directions.load(tmp_path / "both.safetensors").layers == ("1-2",)


@pytest.mark.parametrize(
    ("words", "shows"),
    [
        (["help", "sample"], ["usage: eigenlens sample [-h] [OPTIONS] STR"]),
        (["sample", "toonfaces", "--help"], ["usage: eigenlens sample [-h] [OPTIONS] STR"]),
        (["encoder", "train", "--help"], ["{train}", "--kimg"]),
        (["saliency", "predict", "--help"], ["{predict}", "--soft"]),
        (["study", "score", "--help"], ["{score}", "--key"]),
        (["studio", "--help"], ["do not open the page"]),
    ],
    ids=" ".join,
)
def test_help_shows_the_whole_command(words: list[str], shows: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    page = capsys.readouterr().out
    assert all(text in page for text in shows), page


def test_options_of_an_action_are_those_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "score", "--keyy", "study/key.json"]) == 2
    assert "did you mean --key?" in capsys.readouterr().err


def test_help_into_a_pipe_that_ends_says_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "eigenlens", "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_discover_knows_the_flags_of_its_method(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["discover", model, "--method", "ganspace", "--n-samlpes", "9"]) == 2
    assert "did you mean --n-samples?" in capsys.readouterr().err
    assert main(["discover", model, "--method", "ganspac"]) == 2
    assert "Did you mean 'ganspace'?" in capsys.readouterr().err


def test_discover_takes_a_reader_and_some_of_its_attributes(model: str, tmp_path: Path, capsys) -> None:
    words = ["discover", model, "--method", "supervised", "--reader", "pixels", "--attributes", "warmth", "contrast"]
    out = tmp_path / "found.safetensors"
    assert main([*words, "--n-samples", "64", "--measure", "none", "--out", str(out)]) == 0
    assert "warmth" in capsys.readouterr().out
    assert main([*words[:3], "supervised", "--reader", "pixel"]) == 2
    assert "Did you mean 'pixels'?" in capsys.readouterr().err


def test_convert_writes_our_format(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", model, str(tmp_path / "ours")]) == 0
    assert main(["info", str(tmp_path / "ours"), "--json"]) == 0
    assert main(["convert", model, str(tmp_path / "ours")]) == 2
    assert main(["info", model, "--option", "activation"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err


RECORDED = {
    "sample": ["MODEL", "--n", "3", "--columns", "3", "--noise", "none"],
    "sample seeds": ["MODEL", "--seeds", "4,7", "--truncation", "0.5", "--precision", "bf16"],
    "traverse": ["MODEL", "--axis", "L1D1,L2D1", "--seeds", "2", "--steps", "3", "--range=-2:1", "--absolute"],
    "interpolate": ["MODEL", "--seeds", "1,2,5", "--steps", "4", "--loop", "--precision", "bf16", "--way", "linear"],
    "mix": ["MODEL", "--layers", "1", "--seeds", "3", "--others", "5,6", "--truncation", "0.6", "--precision", "bf16"],
    "edit": ["MODEL", "--move", "L1D1 by 2", "--seed", "4", "--index", "1", "--difference", "--precision", "bf16"],
}


@pytest.mark.parametrize("case", RECORDED)
def test_the_recorded_command_makes_the_picture_again(case: str, model: str, tmp_path: Path) -> None:
    words = [model if word == "MODEL" else word for word in RECORDED[case]]
    out = tmp_path / "a picture.png"
    assert main([case.split()[0], *words, "--threads", "1", "--out", str(out)]) == 0
    first = out.read_bytes()
    recipe = read_recipe(out)
    assert recipe is not None
    program, *again = shlex.split(recipe["command"])
    assert program == "eigenlens"
    assert "--threads" not in again
    assert main([*again, "--force"]) == 0
    assert out.read_bytes() == first


@pytest.mark.parametrize("name", METHODS)
def test_a_recorded_discovery_has_every_setting_of_its_method(name: str, tmp_path: Path) -> None:
    kind = METHODS[name]
    changed = {}
    for field in dataclasses.fields(kind):
        usual = getattr(kind(), field.name)
        if isinstance(usual, bool):
            changed[field.name] = not usual
        elif isinstance(usual, int) and field.name != "seed":
            changed[field.name] = usual + 1
        elif field.name == "layers":
            changed[field.name] = "1"
    try:
        settings = kind(**changed)
    except UserError:  # two of them do not go together
        changed = dict(list(changed.items())[:1])
        settings = kind(**changed)
    usual = {"method": "sefa", "preset": None, "seed": 0, "sheet_seeds": "0", "rows": 12, "measure": "all"}
    given = usual | {"generator": "toonfaces", "method": name, "machine": Machine(option=("a=1", "b=2")), "out": None}
    given |= {"sheet": tmp_path / "sheet.png", "sheet_label": None, "run": None, "force": True, "settings": settings}
    program, command, *words = shlex.split(command_again("discover", discover, given, settings=kind()))
    assert (program, command) == ("eigenlens", "discover")
    call = _parsed(discover.specialise(words), words, "eigenlens discover")
    assert call is not None
    assert call.keywords["settings"] == settings
    assert call.keywords["machine"].option == ("a=1", "b=2")
    assert call.keywords["sheet"] == tmp_path / "sheet.png"


def test_a_recorded_discovery_makes_its_sheet_again(model: str, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    words = ["--method", "sefa", "--n-directions", "3", "--measure", "none", "--rows", "2", "--sheet", str(sheet)]
    assert main(["discover", model, *words, "--out", str(tmp_path / "found.safetensors")]) == 0
    first, recipe = sheet.read_bytes(), read_recipe(sheet)
    assert recipe is not None
    assert "--out" not in recipe["command"]
    assert main([*shlex.split(recipe["command"])[1:], "--force"]) == 0
    assert sheet.read_bytes() == first


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["edit", "--edit", "EDIT", "--seed", "0"], "--edit says --seed itself; leave that out"),
        (["edit", "--edit", "EDIT", "--codes", "CODES", "--directions", "sefa"], "says --directions, --codes itself"),
        (["edit", "MODEL", "--move", "L1D1 by 1", "--codes", "CODES", "--label", "dog"], "--codes says --label itself"),
        (["traverse", "MODEL", "--axis", "L1D1", "--codes", "CODES", "--truncation", "1"], "--codes says --truncation"),
        (["interpolate", "MODEL", "--codes", "CODES", "--labels", "1"], "--codes says --labels itself"),
    ],
)
def test_what_would_be_ignored_is_refused(
    words: list[str], says: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, codes = tmp_path / "edit.json", tmp_path / "codes.safetensors"
    start = ["edit", model, "--move", "L1D1 by 2", "--out", str(tmp_path / "a.png")]
    assert main([*start, "--save-edit", str(saved), "--save-codes", str(codes)]) == 0
    places = {"EDIT": str(saved), "CODES": str(codes), "MODEL": model}
    capsys.readouterr()
    assert main([*(places.get(word, word) for word in words), "--out", str(tmp_path / "b.png")]) == 2
    assert says in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    for out, says in (("folder.png", "is a folder"), ("file/sub/a.png", "file is not a folder")):
        assert main(["sample", model, "--force", "--out", str(tmp_path / out)]) == 2
        assert says in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda path, mode: False)  # whoever runs the tests may write anywhere
    assert main(["sample", model, "--out", str(tmp_path / "a.png")]) == 2
    assert "lets you write nothing" in capsys.readouterr().err


def test_names_with_signs_are_composed_and_renamed(model: str, tmp_path: Path) -> None:
    found = tmp_path / "found.safetensors"
    words = ["directions", "sefa", "--generator", model]
    assert main([*words, "--compose", "new=0.5*sefa-0 - 2e-1*sefa-1", "--out", str(found)]) == 0
    assert main([*words, "--rename", "sefa-0=hair=bun", "--out", str(tmp_path / "bun.safetensors")]) == 0
    words = ["directions", str(tmp_path / "bun.safetensors"), "--generator", model]
    assert main([*words, "--rename", "hair=bun=a bun", "--out", str(tmp_path / "named.safetensors")]) == 0
    assert Directions.load(tmp_path / "named.safetensors").names[0] == "a bun"
    two = Directions.load(tmp_path / "bun.safetensors").vectors[:2].flatten(1)
    new = Directions.load(found).vectors.flatten()
    cosines = [float(torch.cosine_similarity(new, each, dim=0)) for each in two]
    assert cosines[0] > 0.5 > 0 > cosines[1]
