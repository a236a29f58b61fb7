"""Tuning: weights move for some photos, in a file of their own, and the generator stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eigenlens.codes import Codes, load_codes, save_codes
from eigenlens.directions import Directions
from eigenlens.errors import Unsupported, UserError
from eigenlens.files import header_of
from eigenlens.generator import Generator, load_generator
from eigenlens.method import METHODS
from eigenlens.project import Projection, _toward_samples, noise_penalty, project, tune
from eigenlens.tuning import TUNING_FORMAT, Tuning


def projected(g: Generator) -> Projection:
    drawn = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1
    goals = torch.nn.functional.interpolate(drawn, g.resolution, mode="bilinear")
    return project(g, goals, steps=10, n_samples=4, label=1 if g.label_names else None)


@pytest.mark.parametrize("family", ["eigengan", "stylegan2", "mobilestylegan", "stylegan3", "biggan"])
def test_comes_closer_and_leaves_the_generator(tiny: Callable[[str], Generator], family: str) -> None:
    g = tiny(family)
    before = {key: value.clone() for key, value in g.network.state_dict().items()}
    found = projected(g)
    tuning, tuned = tune(g, found, steps=15, rank=1)
    assert (tuned.figures["pixels"] < found.figures["pixels"]).all()
    assert torch.equal(tuned.codes.latent, found.codes.latent)
    assert all(torch.equal(value, before[key]) for key, value in g.network.state_dict().items())
    assert tuning.about["steps"] == 15
    worked_on = g.moved_by(tuning.deltas())
    assert torch.allclose(worked_on(found.codes), tuned.images, atol=1e-5)


def test_file_opens_as_the_tuned_generator(eigengan: Generator, tmp_path: Path) -> None:
    eigengan.save(tmp_path / "base")
    g = load_generator(tmp_path / "base")
    found = projected(g)
    tuning, tuned = tune(g, found, steps=5, rank=1)
    path = tuning.save(tmp_path / "face.tuning.safetensors")
    assert header_of(path)["format"] == TUNING_FORMAT
    assert path.stat().st_size < 0.5 * (tmp_path / "base" / "model.safetensors").stat().st_size
    opened = load_generator(path)
    assert torch.allclose(opened(found.codes), tuned.images, atol=1e-5)
    codes = load_codes(save_codes(found.codes, tmp_path / "c.safetensors", g), opened)
    assert torch.equal(codes.latent, found.codes.latent)
    axes = METHODS["eigen"](measured=False).fit(g)
    axes.save(tmp_path / "d.safetensors")
    assert len(Directions.load(tmp_path / "d.safetensors", generator=opened)) == len(axes)


def test_a_run_that_is_called_as_a_bundled_one_is_opened_by_its_place(eigengan: Generator, tmp_path: Path) -> None:
    about = eigengan.save(tmp_path / "last")
    config = json.loads((about / "config.json").read_text("utf-8"))
    (about / "config.json").write_text(json.dumps(config | {"name": "toonfaces"}), "utf-8")
    g = load_generator(about)
    assert g.name == "toonfaces"
    tuning, tuned = tune(g, found := projected(g), steps=1, rank=1)
    path = tuning.save(tmp_path / "face.tuning.safetensors")
    assert torch.allclose(load_generator(path)(found.codes), tuned.images, atol=1e-5)


def test_subspaces_of_an_eigengan_stay(eigengan: Generator) -> None:
    tuning, _ = tune(eigengan, projected(eigengan), steps=2, rank=1)
    assert tuning.tensors
    assert not any("subspace" in name for name in tuning.tensors)


def test_bound_to_its_generator(eigengan: Generator, tiny: Callable[[str], Generator], tmp_path: Path) -> None:
    eigengan.save(tmp_path / "base")
    g = load_generator(tmp_path / "base")
    tuning, _ = tune(g, projected(g), steps=3, rank=1)
    with pytest.raises(UserError, match="has no weight"):
        tiny("sngan").moved_by(tuning.deltas())
    path = tuning.save(tmp_path / "t.safetensors")
    (tmp_path / "base").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="which is not at"):
        load_generator(path)
    other = tiny("eigengan").moved_by({"rgb.bias": torch.ones(3)})
    other.__dict__.pop("weight_hash")
    other.save(tmp_path / "base")
    with pytest.raises(UserError, match="moves another"):
        load_generator(path)


@pytest.mark.parametrize("source", ["", "os:getcwd", "hf://a/b", "t.safetensors"])
def test_source_is_data_alone(eigengan: Generator, tmp_path: Path, source: str) -> None:
    tuning = Tuning({"rgb.bias.whole": torch.ones(3)}, eigengan.identity(), source)
    with pytest.raises(UserError):
        load_generator(tuning.save(tmp_path / "t.safetensors"))


def test_damaged_files(eigengan: Generator, tmp_path: Path) -> None:
    tensors = {"rgb.weight.left": torch.zeros(3, 2), "rgb.weight.right": torch.zeros(2, 4)}
    path = Tuning(tensors, eigengan.identity(), "toonfaces").save(tmp_path / "t.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for bad in (
        {"rgb.weight.left": torch.zeros(3, 2)},
        {"rgb.weight.left": torch.zeros(3, 2), "rgb.weight.right": torch.zeros(3, 4)},
        {"rgb.weight": torch.zeros(3)},
        {"rgb.weight.left": torch.zeros(3), "rgb.weight.right": torch.zeros(3)},
    ):
        save_file(bad, tmp_path / "bad.safetensors", metadata=metadata)
        with pytest.raises(UserError, match="no whole tuning"):
            Tuning.load(tmp_path / "bad.safetensors")
    save_file(load_file(path), tmp_path / "bare.safetensors")
    assert header_of(tmp_path / "bare.safetensors") == {}
    with pytest.raises(UserError, match="is no tuning"):
        Tuning.load(tmp_path / "bare.safetensors")


def test_noise_maps_move_and_stay_white(tiny: Callable[[str], Generator]) -> None:
    g = tiny("mobilestylegan")
    found = projected(g)
    tuning, tuned = tune(g, found, steps=10, weights=False, noise=True, learning_rate=0.1)
    assert (tuned.figures["pixels"] < found.figures["pixels"]).all()
    assert all(name.endswith("noise.whole") for name in tuning.tensors)
    state = g.network.state_dict()
    for name, delta in tuning.deltas().items():
        after = state[name] + delta
        assert float(after.std()) == pytest.approx(float(state[name].std()), rel=1e-3, abs=1e-6)
    with pytest.raises(Unsupported, match="stores no noise"):
        tune(tiny("eigengan"), projected(tiny("eigengan")), steps=1, noise=True)


@pytest.mark.parametrize("noise", [True, False])
def test_the_file_shows_what_the_last_step_saw(tiny: Callable[[str], Generator], noise: bool) -> None:
    g, seen = tiny("stylegan2"), []
    found = projected(g)
    watch = lambda step, n_steps, distance: seen.append(distance)  # noqa: E731
    _, tuned = tune(g, found, steps=100, weights=not noise, noise=noise, locality=0.0, callback=watch)
    gained = seen[0] - seen[-1]
    assert gained > 0
    assert seen[0] - float(tuned.figures["pixels"].mean()) > 0.9 * gained  # the last step has a rate of 0


def test_every_photo_has_its_turn_in_what_stays_as_it_was(eigengan: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = projected(eigengan), []

    def seen(generator: Generator, codes: Codes, seed: int) -> Codes:
        asked.append(codes.latent)
        return _toward_samples(generator, codes, seed)

    monkeypatch.setattr("eigenlens.project._toward_samples", seen)
    tune(eigengan, found, steps=4, rank=1)
    assert torch.equal(asked[0], found.codes.latent[[0, 1, 0, 1]])


def test_noise_penalty_tells_white_from_smooth() -> None:
    white = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(white[None, None, :16, :16], 64, mode="bilinear")[0, 0]
    smooth = smooth / smooth.square().mean().sqrt()
    assert float(noise_penalty(white)) < 0.2
    assert float(noise_penalty(smooth)) > 1.0


def test_ctrl_c_ends_it_early(eigengan: Generator) -> None:
    def stop(step: int, n_steps: int, distance: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    tuning, _ = tune(eigengan, projected(eigengan), steps=50, rank=1, callback=stop)
    assert tuning.about["steps"] == 2


def test_seed_fixes_it(eigengan: Generator) -> None:
    found = projected(eigengan)
    first, again = (tune(eigengan, found, steps=3, rank=1)[0].tensors for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
