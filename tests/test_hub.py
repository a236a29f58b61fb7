"""Generators sent to a folder and fetched from there, as the Hub has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from eigenlens import load_generator
from eigenlens.cli import main
from eigenlens.directions import Directions
from eigenlens.encoder import Encoder, EncoderConfig, EncoderNetwork
from eigenlens.errors import UserError
from eigenlens.generator import Generator
from eigenlens.hub import card, pull, push
from eigenlens.method import find_directions
from eigenlens.repository import Repository


@pytest.fixture
def own(eigengan: Generator, tmp_path: Path) -> Generator:
    """Give a generator on disk, with an encoder beside it."""
    g = load_generator(eigengan.save(tmp_path / "model"), device="cpu")
    Encoder(EncoderNetwork(EncoderConfig("z", 1, g.spaces["z"].dim, resolution=16, width=4)), g).save(
        tmp_path / "model" / "encoder.safetensors"
    )
    return g


def test_there_and_back(own: Generator, tmp_path: Path) -> None:
    axes = find_directions("eigen", own, measured=False).save(tmp_path / "axes.safetensors")
    there = tmp_path / "there"
    assert push(own, str(there), directions=[axes], license="mit") == str(there)
    assert sorted(path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()) == [
        "README.md", "config.json", "directions/axes.safetensors", "encoder.safetensors", "model.safetensors",
    ]  # fmt: skip
    (there / "evil.pkl").write_bytes(b"\x80")
    (there / "code.py").write_text("raise SystemExit")
    back = pull(str(there), tmp_path / "back")
    codes = own.sample(2)
    with torch.inference_mode():
        assert torch.equal(back(back.sample(2)), own(codes))
    assert not (tmp_path / "back" / "evil.pkl").exists()
    assert not (tmp_path / "back" / "code.py").exists()
    found = Directions.load(tmp_path / "back" / "directions" / "axes.safetensors", generator=back)
    assert found.names[0] == "L1D1"
    Encoder.load(tmp_path / "back" / "encoder.safetensors", back)
    with pytest.raises(UserError, match="exists already"):
        pull(str(there), tmp_path / "back")
    with pytest.raises(UserError, match="exists already"):
        push(own, str(there))
    pull(str(there), tmp_path / "back", force=True)


def test_the_card_has_front_matter(own: Generator) -> None:
    axes = find_directions("eigen", own, measured=False)
    text = card(own, [("axes", axes)], license="mit", text="# Mine\n\nTrained on clouds.")
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "eigenlens"
    assert front["license"] == "mit"
    assert {"gan", "eigengan"} <= set(front["tags"])
    assert "Trained on clouds." in text
    assert "| `directions/axes.safetensors` | L1D1, L1D2" in text
    assert card(own, [], text=text) == text
    assert "license" not in yaml.safe_load(card(own, []).split("---")[1])


def test_half_weights_are_other_weights(own: Generator, tmp_path: Path) -> None:
    axes = find_directions("eigen", own, measured=False).save(tmp_path / "axes.safetensors")
    with pytest.raises(UserError, match="float16 are other weights"):
        push(own, str(tmp_path / "there"), directions=[axes], half=True)
    push(own, str(tmp_path / "there"), half=True)
    assert not (tmp_path / "there" / "encoder.safetensors").exists()
    rounded = load_generator(tmp_path / "there", device="cpu")
    again = find_directions("eigen", rounded, measured=False).save(tmp_path / "again.safetensors")
    push(rounded, str(tmp_path / "fine"), directions=[again], half=True)


def test_two_files_of_one_name_and_one_folder_for_both_are_refused(own: Generator, tmp_path: Path) -> None:
    axes = find_directions("eigen", own, measured=False)
    files = [axes.save(tmp_path / "a" / "axes.safetensors"), axes.save(tmp_path / "b" / "axes.safetensors")]
    for target in (str(tmp_path / "there"), "hf://user/repo"):
        with pytest.raises(UserError, match="two files of directions are called 'axes'"):
            push(own, target, directions=files)
    assert not (tmp_path / "there").exists()
    with pytest.raises(UserError, match="it is there already"):
        pull(str(tmp_path / "model"), tmp_path / "a" / ".." / "model", force=True)


def test_what_is_no_generator_of_ours(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no generator of eigenlens"):
        pull(str(tmp_path), tmp_path / "back")
    for text in ("hf://", "hf://user", "hf://a/b/c"):
        with pytest.raises(UserError, match="is no address"):
            Repository.parse(text)
    assert Repository.parse("hf://user/repo") == Repository("user/repo")
    assert Repository.parse("some/folder") is None


def test_a_broken_generator_is_not_kept(own: Generator, tmp_path: Path) -> None:
    push(own, str(tmp_path / "there"))
    (tmp_path / "there" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        pull(str(tmp_path / "there"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_at_the_shell(own: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    assert main(["hub", "push", str(tmp_path / "model"), there, "--license", "mit"]) == 0
    assert main(["hub", "pull", there, back]) == 0
    assert "eigengan" in capsys.readouterr().out
    assert main(["hub", "pull", there, back]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_hub_that_is_not_reached_is_one_line(
    own: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra 'hub' is not installed")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    words = (["hub", "pull", "hf://a/b", str(tmp_path / "x")], ["sample", "hf://a/b"])
    for each in (["hub", "push", str(tmp_path / "model"), "hf://a/b"], *words):
        assert main(each) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "hf://a/b: " in told
        assert "hf auth login" in told
