"""Training that begins with a generator's weights, and with the discriminator of another run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from eigenlens.__main__ import main
from eigenlens.errors import UserError
from eigenlens.generator import load_generator
from eigenlens.readers.toonfaces import load_ensemble
from eigenlens.training import stylegan2
from eigenlens.training.eigengan import Training, configure, train
from eigenlens.training.run import load_state
from eigenlens.training.start import start_from

CPU = torch.device("cpu")
QUIET = {"watch_kimg": 0, "distance_images": 0}


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Give 40 pictures of 16 px."""
    path = tmp_path_factory.mktemp("set") / "faces.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8))
    return path


@pytest.fixture(scope="module")
def first(faces, tmp_path_factory) -> Path:
    """Give a run of four steps."""
    run = tmp_path_factory.mktemp("runs") / "first"
    return train(configure("tiny-16", kimg=0.032, **QUIET), data=faces, run=run, log=silent)


def silent(line: str) -> None:
    """Take a line and say nothing."""


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_the_generator_rests_then_warms_up():
    config = configure("tiny-16", generator_from_kimg=0.016, warmup_kimg=0.032)  # 8 images a step: 2 and 4 steps
    assert [config.warmth(step) for step in range(8)] == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [configure("tiny-16").warmth(step) for step in range(2)] == [1, 1]
    assert [configure("tiny-16", generator_from_kimg=0.008).warmth(step) for step in range(3)] == [0, 1, 1]


@pytest.mark.parametrize("family", [configure, stylegan2.configure], ids=["eigengan", "stylegan2"])
def test_while_it_rests_the_discriminator_alone_learns(family):
    preset, module = ("tiny-16", Training) if family is configure else ("stylegan2-32", stylegan2.Training)
    config = family(preset, batch=8, generator_from_kimg=0.008, warmup_kimg=0.016)
    training = module(config, device=CPU)
    real = torch.zeros(8, 3, config.model.resolution, config.model.resolution)
    weights = {name: value.clone() for name, value in training.generator.named_parameters()}
    judging = {name: value.clone() for name, value in training.discriminator.named_parameters()}
    training.take_step(real, training.latents())
    assert_equal(dict(training.generator.named_parameters()), weights)
    assert any(not torch.equal(value, judging[name]) for name, value in training.discriminator.named_parameters())
    training.take_step(real, training.latents())
    moved = [name for name, value in training.generator.named_parameters() if not torch.equal(value, weights[name])]
    assert len(moved) > len(weights) / 2


def test_a_run_starts_from_a_generator_and_the_discriminator_of_another(faces, first, tmp_path):
    begun = train(
        configure("tiny-16", kimg=0.008, generator_from_kimg=1, seed=7, **QUIET),
        data=faces, run=tmp_path / "run", start=first / "last", start_discriminator=first, log=silent,
    )  # fmt: skip
    before, after = load_state(first), load_state(begun)
    assert after["step"] == 1
    assert_equal(after["averaged"], before["averaged"])
    assert_equal(after["generator"], before["averaged"])  # the one that is kept is the one that goes on
    steps = {float(each["step"]) for each in after["discriminator_optimiser"]["state"].values()}
    assert steps == {5.0}  # its moments came along
    far = Training(configure("tiny-16", seed=7), device=CPU).discriminator.state_dict()
    for name, value in after["discriminator"].items():
        if value.dim() > 1:
            old = before["discriminator"][name]
            assert (value - old).norm() < 0.1 * (far[name] - old).norm(), name
    told = json.loads((begun / "last" / "config.json").read_text("utf-8"))["training"]["start"]
    asked = {"from": str(first / "last"), "discriminator": str(first)}
    assert told == load_generator(first / "last").identity() | asked
    assert yaml.safe_load((begun / "config.yaml").read_text("utf-8"))["start"] == told


def test_a_stylegan2_starts_from_another(tmp_path):
    data = tmp_path / "faces.npy"
    np.save(data, np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8))
    config = stylegan2.configure("stylegan2-32", batch=8, kimg=0.016, **QUIET)
    one = stylegan2.train(config, data=data, run=tmp_path / "one", log=silent)
    resting = dataclasses.replace(config, kimg=0.008, generator_from_kimg=1.0, seed=3)
    two = stylegan2.train(
        resting, data=data, run=tmp_path / "two", start=one / "last", start_discriminator=one, log=silent
    )
    before, after = load_state(one), load_state(two)
    for name, _ in stylegan2.Training(config, device=CPU).generator.named_parameters():  # a mean of w goes on moving
        assert torch.equal(after["generator"][name], before["averaged"][name]), name
    assert {float(each["step"]) for each in after["discriminator_optimiser"]["state"].values()} == {3.0}


def test_without_one_the_discriminator_is_drawn(first):
    training, fresh = (Training(configure("tiny-16"), device=CPU) for _ in range(2))
    start_from(training, load_generator(first / "last"))
    assert_equal(training.generator.state_dict(), load_state(first)["averaged"])
    assert_equal(training.discriminator.state_dict(), fresh.discriminator.state_dict())


def test_a_judge_may_join_the_discriminator_of_a_run_without_one(faces, first, tmp_path):
    config = configure("tiny-16", judge="toonfaces", information_weight=0.1)
    training, fresh = (Training(config, device=CPU) for _ in range(2))
    start_from(training, load_generator(first / "last"), load_state(first))
    old, drawn = load_state(first), fresh.discriminator.state_dict()
    assert_equal(training.discriminator.state_dict(), drawn | old["discriminator"])
    optimiser = training.discriminator_optimiser
    for name, parameter in training.discriminator.named_parameters():
        assert (parameter in optimiser.state) == (name in old["discriminator"]), name
        if parameter in optimiser.state:
            assert optimiser.state[parameter]["exp_avg_sq"].shape == parameter.shape
    training.take_step(torch.zeros(8, 3, 16, 16), training.latents())
    judged = train(dataclasses.replace(config, kimg=0.008, **QUIET), data=faces, run=tmp_path / "judged", log=silent)
    with pytest.raises(UserError, match=r"to start from does not fit: its \S+ has the shape .* of this run -"):
        start_from(Training(configure("tiny-16"), device=CPU), load_generator(first / "last"), load_state(judged))


def test_what_a_judge_draws_hangs_on_the_seed_alone():
    drawn = []
    for is_loaded in (False, True):
        if not is_loaded:
            load_ensemble.cache_clear()
        drawn.append(Training(configure("tiny-16", judge="toonfaces"), device=CPU).discriminator.state_dict())
    assert_equal(*drawn)


@torch.no_grad()
def test_a_wider_network_begins_as_the_narrow_one(faces, first, tmp_path):
    """Same images, scores and readings to rounding, bases orthonormal as before; and new channels learn."""
    reads = {"information_weight": 0.1, "seed": 5}
    narrow = Training(configure("tiny-16", **reads), device=CPU)
    for weight in narrow.discriminator.parameters():
        weight.add_(0.05)  # so that no zero of a bias hides a mistake
    wide = Training(configure("tiny-16", base_channels=6, max_channels=20, **reads), device=CPU)
    state = {"discriminator": narrow.discriminator.state_dict(), "discriminator_optimiser": {"state": {}}}
    start_from(wide, load_generator(first / "last"), state)
    start_from(narrow, load_generator(first / "last"))
    for key, config in (("narrow", narrow.config.model), ("wide", wide.config.model)):
        assert [config.width(size) for size in (4, 8, 16)] == {"narrow": [8, 8, 4], "wide": [20, 12, 6]}[key]
    latent = torch.randn(6, narrow.config.model.dim, generator=torch.Generator().manual_seed(0))
    images = narrow.generator(latent)
    assert images.std() > 0.1
    for network in (wide.generator, wide.averaged):
        torch.testing.assert_close(network(latent), images)
    for ours, theirs in zip(wide.discriminator.judged(images), narrow.discriminator.judged(images), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(wide.generator.subspaces(), narrow.generator.subspaces(), strict=True):
        torch.testing.assert_close(ours.orthogonality_error(), theirs.orthogonality_error())
    assert not wide.discriminator_optimiser.state
    fresh = {name: value.clone() for name, value in wide.generator.named_parameters()}
    with torch.enable_grad():
        for _ in range(3):
            wide.take_step(torch.zeros(8, 3, 16, 16), wide.latents())
    for name, value in wide.generator.named_parameters():
        assert (value != fresh[name]).float().mean() > 0.9, name  # no part of a weight stays where it was


def test_a_run_starts_from_a_narrower_generator(faces, first, tmp_path, capsys):
    words = ["train", "--data", str(faces), "--preset", "tiny-16", "--run", str(tmp_path / "run"), "--kimg", "0.016"]
    words += ["--watch-kimg", "0", "--distance-images", "0", "--max-channels", "12"]
    assert main([*words, "--start", str(first / "last"), "--start-discriminator", str(first)]) == 0
    assert load_generator(tmp_path / "run" / "last").config["max_channels"] == 12
    words[-1], words[6] = "6", str(tmp_path / "narrower")
    assert main([*words, "--start", str(first / "last")]) == 2
    assert "does not fit" in capsys.readouterr().err


def test_a_started_run_goes_on_as_itself(faces, first, tmp_path):
    states = []
    for name, lengths in (("whole", (0.048,)), ("halves", (0.024, 0.048))):
        for kimg in lengths:
            config = configure("tiny-16", kimg=kimg, warmup_kimg=0.032, **QUIET)
            how = {"start": first / "last", "start_discriminator": first, "log": silent}
            run = train(config, data=faces, run=tmp_path / name, **how)
        states.append(load_state(run))
    for part in ("generator", "discriminator", "averaged"):
        assert_equal(states[0][part], states[1][part])
    assert states[0]["start"] == states[1]["start"] != {}


def test_what_does_not_fit_is_refused(faces, first, tmp_path, capsys):
    with pytest.raises(UserError, match=r"another shape: noise_dim \(8, here 9\); give settings that fit it"):
        start_from(Training(configure("tiny-16", noise_dim=9), device=CPU), load_generator(first / "last"))
    words = ["train", "--data", str(faces), "--preset", "tiny-16", "--run", str(tmp_path / "run")]
    assert main([*words, "--start-discriminator", str(first)]) == 2
    assert "give --start too" in capsys.readouterr().err
    assert main([*words, "--start", str(first / "last"), "--start-discriminator", str(tmp_path)]) == 2
    assert "holds no state.pt" in capsys.readouterr().err
    assert main([*words, "--start", str(first / "last"), "--resume", str(first)]) == 2
    assert "give one of the two" in capsys.readouterr().err
    assert main([*words, "--start", "toonfaces"]) == 2
    assert "give settings that fit" in capsys.readouterr().err
    words[-2:] = ["--runs", str(tmp_path / "runs")]
    assert main([*words, "--start", "no such"]) == 2
    assert not (tmp_path / "runs").exists()  # nothing was made for nothing


def test_another_start_of_a_run_that_is_there_is_refused(faces, first, tmp_path):
    config = configure("tiny-16", kimg=0.008, **QUIET)
    drawn = train(config, data=faces, run=tmp_path / "drawn", log=silent)
    with pytest.raises(UserError, match="began otherwise: drawn; give the same --start"):
        train(config, data=faces, run=drawn, start=first / "last", log=silent)
    begun = train(config, data=faces, run=tmp_path / "begun", start=first / "last", log=silent)
    train(config, data=faces, run=begun, start=first / "last", log=silent)
    train(config, data=faces, run=begun, log=silent)
    with pytest.raises(UserError, match=r"began otherwise: .*'discriminator': 'drawn'"):
        train(config, data=faces, run=begun, start=first / "last", start_discriminator=first, log=silent)


def test_a_discriminator_of_another_depth_is_refused(first):
    """Its first layers have the names and shapes of one that is deeper."""
    shallow = load_state(first)
    del shallow["discriminator"]["convolutions.4.weight"]
    with pytest.raises(UserError, match=r"its convolutions\.4\.weight has the shape -"):
        start_from(Training(configure("tiny-16"), device=CPU), load_generator(first / "last"), shallow)


def test_a_rest_is_no_flat_distance(faces, first, tmp_path):
    rest = {"generator_from_kimg": 0.056, "patience": 2, "stop_when_flat": True}  # all steps but the last
    config = configure("tiny-16", kimg=0.064, watch_kimg=0.008, distance_images=16, **rest)
    told = []
    state = load_state(train(config, data=faces, run=tmp_path / "run", start=first / "last", log=told.append))
    assert (state["step"], len(state["distances"])) == (8, 1)
    assert not any("has been flat" in line for line in told)
