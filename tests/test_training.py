"""Training EigenGAN: published shapes and losses, one step against the plain one, resuming, stopping, processes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

import eigenlens
from eigenlens.errors import UserError
from eigenlens.generator import load_generator
from eigenlens.generators.eigengan import EigenGANConfig, EigenGANNetwork
from eigenlens.readers import efficientnet
from eigenlens.training import adversaries, distance
from eigenlens.training import eigengan as training_file
from eigenlens.training import run as run_file
from eigenlens.training.data import open_dataset
from eigenlens.training.eigengan import (
    PRESETS,
    Discriminator,
    TrainConfig,
    Training,
    augmented,
    collapsed_layers,
    configure,
    discriminator_loss,
    generator_loss,
    importance_chart,
    orthogonality_penalty,
    r1_penalty,
    train,
)
from eigenlens.training.run import FREE_ON_RESUME

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
QUIET = {"watch_kimg": 0, "distance_images": 0}


@pytest.fixture(autouse=True)
def one_thread():
    """Hold these tiny networks to one thread: a second one only waits, and on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Give 40 flat two-coloured pictures of 16 px."""
    colours = np.random.default_rng(0).integers(0, 256, (40, 2, 1, 1, 3), np.uint8)
    images = np.empty((40, 16, 16, 3), np.uint8)
    images[:, :8], images[:, 8:] = colours[:, 0], colours[:, 1]
    path = tmp_path_factory.mktemp("set") / "faces.npy"
    np.save(path, images)
    return path


def silent(line: str) -> None:
    """Take a line and say nothing."""


def state_of(run: Path) -> dict:
    return torch.load(run / "last" / "state.pt", weights_only=True)


def leaves(tree, path=""):
    """Walk nested dicts and lists as (path, leaf)."""
    if isinstance(tree, (dict, list)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{path}/{key}")
    else:
        yield path, tree


def assert_same_state(one: dict, other: dict, **tolerance) -> None:
    ignored = ("/seconds", "/config")
    a, b = ({path: leaf for path, leaf in leaves(state) if path not in ignored} for state in (one, other))
    assert a.keys() == b.keys()
    for path, leaf in a.items():
        if isinstance(leaf, torch.Tensor):
            torch.testing.assert_close(leaf, b[path], **(tolerance or {"rtol": 0, "atol": 0}), msg=path)
        else:
            assert leaf == b[path], path


# --- settings ---------------------------------------------------------------------------------------------------------


def test_paper_preset_is_the_authors_defaults():
    config = PRESETS["paper-256"]
    assert config.model == EigenGANConfig(256, 3, 512, 6, widths="absolute", importance_init="descending")
    assert (config.batch, config.learning_rate, config.betas) == (64, 1e-4, (0.5, 0.999))
    assert (config.generator_loss, config.orthogonality_reduction, config.orthogonality_weight) == (
        "hinged",
        "half-sum",
        1,
    )
    assert (config.r1_weight, config.r1_interval, config.r1_scaled) == (10, 3, True)
    assert config.ema_decay == pytest.approx(0.999, abs=1e-6)
    assert config.flip
    assert not config.augment


def test_other_presets_differ_where_they_say():
    assert PRESETS["celeba-64"].model.bases == (6, 6, 6, 6)
    assert PRESETS["celeba-64"].model.width(64) == 64
    assert PRESETS["celeba-64"].orthogonality_reduction == "mean"
    small = PRESETS["cpu-64"]
    assert (small.model.noise_dim, small.model.width(64), small.learning_rate, small.betas) == (
        128,
        16,
        2e-4,
        (0.0, 0.99),
    )
    assert small.ema_decay == pytest.approx(0.5 ** (64 / 5000))
    assert (PRESETS["fashion-32"].model.resolution, PRESETS["fashion-32"].model.channels) == (32, 1)


def test_overrides_reach_the_run_and_its_model():
    config = configure("cpu-64", kimg=480, n_basis=(2, 3, 4, 5), resolution=None)
    assert (config.kimg, config.model.bases, config.model.resolution) == (480, (2, 3, 4, 5), 64)
    assert configure("tiny-16", kimg=0.48).n_steps == 60


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"preset": "cpu64"}, "Did you mean 'cpu-64'"),
        ({"preset": "tiny-16", "bach": 4}, "Did you mean 'batch'"),
        ({"preset": "tiny-16", "generator_loss": "hinge"}, "hinged"),
        ({"preset": "tiny-16", "augment": ("colour",)}, "Did you mean 'color'"),
        ({"preset": "tiny-16", "learning_rate": math.nan}, "learning_rate nan"),
        ({"preset": "tiny-16", "batch": 0}, "batch 0"),
        ({"preset": "tiny-16", "betas": (0.9, 1.0)}, "betas"),
        ({"preset": "tiny-16", "resolution": 100}, "resolution 100"),
        ({"preset": "tiny-16", "stop_when_flat": True, "watch_kimg": 0.0}, "stop_when_flat needs distances"),
        ({"preset": "tiny-16", "stop_when_flat": True, "distance_images": 0}, "stop_when_flat needs distances"),
    ],
)
def test_impossible_settings_are_refused(given, expected):
    with pytest.raises(UserError, match=expected):
        configure(**given)


def test_every_setting_is_explained():
    source = "".join(Path(each.__file__).read_text("utf-8") for each in (training_file, adversaries))
    for field in dataclasses.fields(TrainConfig):
        after = source.split(f"\n    {field.name}: ", 1)[1].split("\n", 1)[1]
        assert after.lstrip().startswith('"""'), field.name


# --- the published network and losses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (EigenGANConfig(64, widths="relative"), 2_229_777),
        (EigenGANConfig(64), 13_608_001),
        (EigenGANConfig(32, widths="relative"), 557_841),
        (EigenGANConfig(256), 13_635_601),
    ],
)
def test_discriminator_has_the_published_size(config, expected):
    assert sum(p.numel() for p in Discriminator(config).parameters()) == expected


def test_discriminator_keeps_the_scale_and_sees_every_pixel():
    torch.manual_seed(0)
    network = Discriminator(EigenGANConfig(32, widths="relative"))
    images = torch.randn(16, 3, 32, 32).requires_grad_()
    scores = network(images)
    assert scores.shape == (16,)
    assert 0.1 < scores.std() < 10
    scores.sum().backward()
    assert (images.grad != 0).all()


def test_losses_are_the_published_ones():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.25])
    assert discriminator_loss(real, fake, "hinged") == pytest.approx((0 + 0.5) / 2 + (0 + 1.25) / 2)
    assert discriminator_loss(real, fake, "linear") == discriminator_loss(real, fake, "hinged")
    logistic = (
        math.log1p(math.exp(-2)) + math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-3)) + math.log1p(math.exp(0.25))
    ) / 2
    assert float(discriminator_loss(real, fake, "non-saturating")) == pytest.approx(logistic, abs=1e-6)
    assert generator_loss(fake, "hinged") == pytest.approx((4 + 0.75) / 2)
    assert generator_loss(fake, "linear") == pytest.approx(2.75 / 2)
    assert float(generator_loss(fake, "non-saturating")) == pytest.approx(
        (math.log1p(math.exp(3)) + math.log1p(math.exp(-0.25))) / 2, abs=1e-6
    )


def test_orthogonality_reductions_stand_in_their_proportions():
    network = EigenGANNetwork(PRESETS["tiny-16"].model).requires_grad_(False)  # two layers, q = 3
    assert float(orthogonality_penalty(network, "half-sum")) < 1e-9
    network.subspaces()[0].basis *= 2  # UᵀU = 4 I, ‖3 I‖² = 27
    assert float(orthogonality_penalty(network, "half-sum")) == pytest.approx(13.5, rel=1e-4)
    assert float(orthogonality_penalty(network, "mean")) == pytest.approx(27 / 9, rel=1e-4)
    assert float(orthogonality_penalty(network, "mean-of-layers")) == pytest.approx(27 / 18, rel=1e-4)


def test_r1_is_the_squared_gradient_without_a_half():
    weight = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    penalty = r1_penalty(lambda x: (x * weight).sum((1, 2, 3)), images)
    torch.testing.assert_close(penalty.detach(), weight.detach().square().sum())
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


def test_augmentations_do_what_they_say():
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    middle = torch.full((2, 7), 0.5)
    torch.testing.assert_close(augmented(images, ("color", "translation"), middle), images)
    brighter = middle.clone()
    brighter[:, 0] = 0.75
    torch.testing.assert_close(augmented(images, ("color",), brighter), images + 0.25)
    shifted = middle.clone()
    shifted[0, 3:5] = torch.tensor([0.0, 0.99])  # up to an eighth: 2 px
    moved = augmented(images, ("translation",), shifted)
    torch.testing.assert_close(moved[0, :, 2:, :-2], images[0, :, :-2, 2:])
    assert not moved[0, :, :2].any()
    torch.testing.assert_close(moved[1], images[1])
    holes = augmented(images, ("cutout",), middle) == 0
    assert holes[0, 0].sum() == 81
    assert holes[0, :, 8, 8].all()
    augmented(images, training_file.AUGMENTATIONS, torch.rand(2, 7)).square().sum().backward()
    assert images.grad.isfinite().all()


# --- one step ---------------------------------------------------------------------------------------------------------


def plain_training(like: Training):
    return importlib.import_module("benchmarks.train_step").PlainTraining(like)


@pytest.mark.parametrize(
    ("dtype", "n_steps", "tolerance", "model"),
    [
        (torch.float64, 50, 1e-9, {}),
        (torch.float32, 5, 1e-5, {}),
        (torch.float64, 5, 1e-9, {"injection": "add", "orthogonality": "hard", "n_basis": (2, 4), "channels": 1}),
    ],
)
def test_step_is_the_plain_step(dtype, n_steps, tolerance, model):
    # Adam's first steps are signs of gradients, rounding and all: a small rate keeps what they do to float32 small
    config = configure("tiny-16", r1_interval=4, learning_rate=5e-6 if dtype == torch.float32 else 2e-4, **model)
    training = Training(config, device=CPU)
    for network in (training.generator, training.discriminator, training.averaged):
        network.to(dtype)
    plain = plain_training(training)
    rng = torch.Generator().manual_seed(0)
    for _ in range(n_steps):
        real = torch.rand(8, config.model.channels, 16, 16, generator=rng, dtype=dtype) * 2 - 1
        latent = training.latents().to(dtype)
        ours = training.take_step(real, latent)[:3]
        theirs = plain.take_step(real, latent, latent)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance, equal_nan=True)
    for mine, other in zip(training.averaged.parameters(), plain.averaged.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize(
    "changed",
    [
        {"n_basis": (2, 4)},
        {"injection": "add"},
        {"orthogonality": "hard"},
        {"channels": 1},
        {"widths": "absolute", "max_channels": 8},
        {"augment": ("color", "translation", "cutout")},
        {"r1_interval": 0},
        {"generator_loss": "non-saturating"},
        {"effect_floor": 0.5},
        {"information_weight": 1.0, "augment": ("color",)},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_setting_takes_steps_that_change_all_weights(changed, precision):
    training = Training(configure("tiny-16", **changed), device=CPU, precision=precision)
    weights = dict(training.generator.named_parameters()) | dict(training.discriminator.named_parameters())
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    rng = torch.Generator().manual_seed(0)
    for _ in range(2):
        real = torch.rand(8, training.config.model.channels, 16, 16, generator=rng) * 2 - 1
        figures = training.take_step(real, training.latents())
        assert figures[[0, 1, 3, 4]].isfinite().all()
    unmoved = {name for name, weight in weights.items() if torch.equal(weight, before[name])}
    assert unmoved <= {"score.bias"}  # within the margins, real and generated images pull it with equal force
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert training.is_finite()


@pytest.fixture
def stand_in(monkeypatch):
    """Put random weights in the place of those of EfficientNet-Lite0, of its shapes, which may not be installed."""
    rng = torch.Generator().manual_seed(0)
    weights = {}

    def add(conv: str, norm: str, out: int, each: int, kernel: int) -> None:
        weights[f"{conv}.weight"] = torch.randn(out, each, kernel, kernel, generator=rng) / (each * kernel**2) ** 0.5
        for name in ("running_mean", "bias"):
            weights[f"{norm}.{name}"] = torch.zeros(out)
        for name in ("running_var", "weight"):
            weights[f"{norm}.{name}"] = torch.ones(out)

    add("_conv_stem", "_bn0", 32, 3, 3)
    width, block = 32, 0
    for (repeats, kernel, _), out in zip(efficientnet.STAGES, (16, 24, 40, 80, 112, 192, 320), strict=True):
        for _ in range(repeats):
            wide = width if block == 0 else 6 * width
            if wide != width:
                add(f"_blocks.{block}._expand_conv", f"_blocks.{block}._bn0", wide, width, 1)
            add(f"_blocks.{block}._depthwise_conv", f"_blocks.{block}._bn1", wide, 1, kernel)
            add(f"_blocks.{block}._project_conv", f"_blocks.{block}._bn2", out, wide, 1)
            width, block = out, block + 1
    add("_conv_head", "_bn1", 1280, 320, 1)
    monkeypatch.setattr(efficientnet, "package_file", lambda *_: Path("weights.pth"))
    monkeypatch.setattr(efficientnet, "tensors_of", lambda _: weights)
    return weights


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("judge", "channels", "places"),
    [
        ("features", 3, [16, 16, 16, 16]),
        ("features", 1, [16] * 4),
        ("toonfaces", 3, [25, 25]),
        ("toonfaces", 1, [25, 25]),
    ],
)
def test_a_second_discriminator_judges_from_its_beginning_to_its_end(stand_in, precision, judge, channels, places):
    gradients = {}
    for weight in (0.0, 1.0):
        changed = {"judge": judge, "judge_weight": weight, "judge_from_kimg": 0.008, "judge_until_kimg": 0.016}
        training = Training(configure("tiny-16", channels=channels, **changed), device=CPU, precision=precision)
        real = torch.linspace(-1, 1, 8 * channels * 256).view(8, channels, 16, 16)
        before = {name: value.clone() for name, value in training.discriminator.state_dict().items()}
        training.take_step(real, training.latents())
        state = training.discriminator.state_dict()
        assert all(torch.equal(value, before[name]) for name, value in state.items() if name.startswith("second."))
        training.take_step(real, training.latents())
        gradients[weight] = torch.cat([p.grad.flatten() for p in training.generator.parameters()])
    assert (gradients[1.0] - gradients[0.0]).norm() > 1e-3 * gradients[0.0].norm()
    second = training.discriminator.second
    moved = {
        name for name, value in training.discriminator.state_dict().items() if not torch.equal(value, before[name])
    }
    # within the margins, real and generated images pull the last biases with equal force
    weights = {name for name, _ in second.named_parameters(prefix="second") if not name.endswith("bias")}
    assert weights <= moved
    training.take_step(real, training.latents())  # after the end
    assert all(p.grad is None for p in second.parameters())
    assert not any(".across_" in name for name in moved)  # the random mixtures never learn,
    assert {name.split(".")[1] for name in before if name.startswith("second.")} <= {
        "critics",
        "across_channels",
        "across_depths",
    }
    assert {name.split(".")[0] for name, _ in second.named_parameters()} == {"critics"}  # nor what is known beforehand
    assert [each.shape for each in second(real)] == [(8, n) for n in places]


def test_a_run_with_a_second_discriminator_goes_on_bit_for_bit(faces, tmp_path):
    judged = {"judge": "toonfaces", "judge_weight": 0.1, "judge_from_kimg": 0.032}
    states = []
    for name, lengths in (("whole", (0.08,)), ("resumed", (0.048, 0.08))):
        for kimg in lengths:
            config = configure("tiny-16", kimg=kimg, **judged, **QUIET)
            train(config, data=faces, run=tmp_path / name, log=silent, device="cpu")
        states.append(state_of(tmp_path / name))
    for part in ("generator", "discriminator", "averaged"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), name


def test_a_judge_of_features_wants_its_package(monkeypatch):
    with pytest.raises(UserError, match=r"unknown judge 'featurs'\. Did you mean 'features'"):
        configure("tiny-16", judge="featurs")
    monkeypatch.setattr(efficientnet, "PACKAGE", "no-such-package")
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        Training(configure("tiny-16", judge="features"), device=CPU)


def silenced(training: Training) -> torch.nn.Parameter:
    """Multiply L of the deepest layer by a hundredth, and return it."""
    importance = training.generator.subspaces()[0].importance
    with torch.no_grad():
        importance *= 0.01
    return importance


def test_a_floor_lifts_a_layer_that_does_too_little_and_leaves_others_alone():
    real = torch.zeros(8, 3, 16, 16)
    gradients = {}
    for floor in (0.0, 1e-6, 0.5):
        training = Training(configure("tiny-16", effect_floor=floor), device=CPU)
        importance = silenced(training)
        training.take_step(real, training.latents())  # step 0 is the turn of the deepest layer
        gradients[floor] = importance.grad.clone()
    assert torch.equal(gradients[0.0], gradients[1e-6])  # above the floor it adds nothing at all
    assert (gradients[0.5] < gradients[0.0]).all()  # and below it asks for more of every axis


def test_a_floor_counts_every_layer_in_turn():
    training = Training(configure("tiny-16", effect_floor=5.0), device=CPU)
    latent = training.latents()
    images = training.generator(latent)
    touched = []
    for training.step in range(4):
        training.generator.zero_grad()
        training._missing_effect(images.detach(), latent).backward()
        touched.append(
            [bool(s.importance.grad is not None and s.importance.grad.any()) for s in training.generator.subspaces()]
        )
    # both layers' L act on the other image, but only the turn's own z differs from what `latent` holds
    assert all(all(row) for row in touched)
    with torch.no_grad():
        quiet = Training(configure("tiny-16", effect_floor=5.0), device=CPU)
        silenced(quiet)
        same = quiet.generator(latent)
        quiet.step = 0
        deep = float(quiet._missing_effect(same, latent))
        quiet.step = 1
        assert float(quiet._missing_effect(same, latent)) < deep


def test_an_informed_discriminator_learns_to_read_codes():
    config = configure("tiny-16", information_weight=1.0, learning_rate=2e-3)
    training = Training(config, device=CPU)
    assert training.discriminator.code.out_features == 6
    assert Training(configure("tiny-16"), device=CPU).discriminator.code is None
    real = torch.zeros(8, 3, 16, 16)
    for _ in range(400):  # at 200 it is on the edge of learning: 0.81 here on one processor, less on another
        training.take_step(real, training.latents())
    with torch.no_grad():
        latent = torch.cat([training.latents() for training.step in range(400, 416)])
        _, guess = training.discriminator.judged(training.generator(latent))
        z = latent[:, 8:]
        assert float((guess - z).square().mean()) < 0.8 * float(z.square().mean())


def test_hard_orthogonality_adds_no_penalty():
    soft, hard = (
        Training(configure("tiny-16", orthogonality=kind, orthogonality_weight=1e6), device=CPU)
        for kind in ("penalty", "hard")
    )
    for training in (soft, hard):
        with torch.no_grad():
            training.generator.subspaces()[0].basis *= 1.5
        training.take_step(torch.zeros(8, 3, 16, 16), training.latents())
    gradients = [float(t.generator.subspaces()[0].basis.grad.norm()) for t in (soft, hard)]
    assert gradients[0] > 1e5
    assert gradients[1] < 1e3


def test_it_learns_the_colours_of_flat_pictures(faces, tmp_path):
    """The generator's mean colour comes near that of the data: any sign error in a loss drives it away."""
    config = configure("tiny-16", kimg=1.2, learning_rate=4e-3, ema_half_life=0.1, flip=True)
    data = open_dataset(faces, resolution=16, channels=3, cache=tmp_path)
    dark = dataclasses.replace(data, images=data.images // 3)
    training = Training(config, device=CPU)
    while training.step < config.n_steps:
        training.take_step(training.reals(dark), training.latents())
    target = float(dark.images.mean()) / 127.5 - 1
    with torch.no_grad():
        found = float(training.averaged(training.latents()).mean())
    assert target < -0.6
    assert found == pytest.approx(target, abs=0.2)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_run_holds_all_that_it_promises(faces, tmp_path):
    said: list[str] = []
    config = configure("tiny-16", kimg=0.32, tick_kimg=0.08, watch_kimg=0.16)
    run = train(config, data=faces, runs=tmp_path / "runs", precision="fp32", log=said.append)
    assert run.name == "00000-eigengan-faces"
    assert (tmp_path / "runs" / "data").is_dir()
    about = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    assert about["config"]["model"]["noise_dim"] == 8
    assert about["config"]["betas"] == [0.0, 0.99]
    assert (about["data"]["n"], about["machine"]["precision"]) == (40, "fp32")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    ticks = [line for line in lines if "discriminator_loss" in line]
    watched = [line for line in lines if "effect" in line]
    assert [line["kimg"] for line in ticks] == [0.08, 0.16, 0.24, 0.32]
    assert [line["kimg"] for line in watched] == [0.16, 0.32]
    assert [len(line["importance"]) for line in ticks] == [2] * 4
    assert ticks[0]["importance"][0] == pytest.approx([9, 6, 3], abs=0.1)
    assert {"generator_loss", "r1", "orthogonality_error", "seconds", "generator_gradient"} < ticks[0].keys()
    assert set(watched[0]["effect"]) == {"L1D1", "L1D2", "L1D3", "L2D1", "L2D2", "L2D3"}
    assert watched[0]["sliced_wasserstein"]["mean"] > 0
    assert len(list((run / "samples").glob("*-sigma0.5.png"))) == 2
    assert len(list((run / "samples").glob("*-sigma1.0.png"))) == 2
    assert len(list((run / "traversals").glob("*.png"))) == 4
    assert any("kimg/s" in line and "left" in line for line in said)
    assert (run / "log.txt").read_text("utf-8").splitlines() == said

    generator = load_generator(run / "last")
    assert generator.name == "faces"
    codes = generator.sample(2)
    network = EigenGANNetwork(config.model)
    network.load_state_dict(state_of(run)["averaged"])
    with torch.no_grad():
        torch.testing.assert_close(generator(codes), network(codes.latent[:, 0]), rtol=1e-4, atol=1e-5)
    assert train(config, data=faces, runs=tmp_path / "runs", precision="fp32", log=silent).name.startswith("00001-")


def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(faces, tmp_path):
    config = configure("tiny-16", kimg=0.48, augment=("color", "translation"), **QUIET)  # 60 steps, 12 epochs
    whole = train(config, data=faces, run=tmp_path / "whole", log=silent)
    half = dataclasses.replace(config, kimg=0.24)
    run = train(half, data=faces, run=tmp_path / "halves", log=silent)
    assert state_of(run)["step"] == 30
    train(config, data=faces, run=run, log=silent)
    assert state_of(run)["step"] == 60
    assert_same_state(state_of(whole), state_of(run))


def test_run_may_branch_off_from_another(faces, tmp_path):
    config = configure("tiny-16", kimg=0.016, **QUIET)
    first = train(config, data=faces, run=tmp_path / "first", log=silent)
    longer = dataclasses.replace(config, kimg=0.032)
    branch = train(longer, data=faces, run=tmp_path / "branch", resume=str(first), log=silent)
    assert (state_of(branch)["step"], state_of(first)["step"]) == (4, 2)
    train(longer, data=faces, resume=str(first / "last" / "state.pt"), log=silent)
    assert_same_state(state_of(first), state_of(branch))


def test_resuming_cuts_figures_that_came_after_the_state(faces, tmp_path):
    config = configure("tiny-16", kimg=0.16, tick_kimg=0.08, r1_interval=0, **QUIET)
    run = train(config, data=faces, run=tmp_path / "run", log=silent)
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"kimg": 0.2}) + '\n{"kimg": 0.')
    train(dataclasses.replace(config, kimg=0.24), data=faces, run=run, log=silent)
    kimgs = [json.loads(line)["kimg"] for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [k for k in kimgs if k == 0.2] == []
    assert max(kimgs) == 0.24
    assert "NaN" not in (run / "metrics.jsonl").read_text("utf-8")  # no R1: no figure


def test_a_state_from_before_a_setting_existed_goes_on_with_its_default(faces, tmp_path):
    config = configure("tiny-16", kimg=0.016, **QUIET)
    run = train(config, data=faces, run=tmp_path / "run", log=silent)
    state = state_of(run)
    old = json.loads(state["config"])
    del old["effect_floor"], old["information_weight"]
    torch.save(state | {"config": json.dumps(old)}, run / "last" / "state.pt")
    with pytest.raises(UserError, match=r"effect_floor \(was 0.0, now 0.5\)"):
        train(configure("tiny-16", kimg=0.032, effect_floor=0.5, **QUIET), data=faces, run=run, log=silent)
    train(configure("tiny-16", kimg=0.032, **QUIET), data=faces, run=run, log=silent)
    assert state_of(run)["step"] == 4


def test_a_cooldown_takes_the_learning_rate_down_in_a_straight_line():
    config = configure("tiny-16", batch=8, kimg=0.08, cooldown_kimg=0.032)
    assert [config.pace(step) for step in range(config.n_steps)] == [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert configure("tiny-16").pace(10**6) == 1


def test_a_step_of_the_cooldown_moves_weights_by_its_share_of_a_full_one(faces, tmp_path):
    data = open_dataset(faces, resolution=16, channels=3, cache=tmp_path)
    moved = []  # of the discriminator, which moves first
    for cooldown in (0.0, 0.064):
        training = Training(configure("tiny-16", batch=8, kimg=0.032, cooldown_kimg=cooldown), device=CPU)
        before = torch.cat([p.detach().flatten().clone() for p in training.discriminator.parameters()])
        training.take_step(training.reals(data), training.latents())
        moved.append(torch.cat([p.detach().flatten() for p in training.discriminator.parameters()]) - before)
        assert [group["lr"] for group in training.discriminator_optimiser.param_groups] == [2e-4]
    torch.testing.assert_close(moved[1], moved[0] / 2, rtol=1e-3, atol=1e-7)


def test_a_stopped_cooldown_goes_on_to_the_same_bits_and_its_end_cannot_be_moved(faces, tmp_path):
    config = configure("tiny-16", kimg=0.064, cooldown_kimg=0.048, **QUIET)
    whole = train(config, data=faces, run=tmp_path / "whole", log=silent)
    early = train(dataclasses.replace(config, kimg=0.016, cooldown_kimg=0), data=faces, run=tmp_path / "a", log=silent)
    train(config, data=faces, run=early, log=silent)  # it had not begun: the end is still free
    assert_same_state(state_of(whole), state_of(early))
    with pytest.raises(UserError, match=r"kimg \(was 0.064, now 0.096\)"):
        train(dataclasses.replace(config, kimg=0.096), data=faces, run=whole, log=silent)
    with pytest.raises(UserError, match=r"cooldown_kimg \(was 0.048, now 0.0\)"):
        train(dataclasses.replace(config, cooldown_kimg=0.0), data=faces, run=whole, log=silent)


def test_resuming_with_other_settings_or_data_names_what_differs(faces, tmp_path):
    config = configure("tiny-16", kimg=0.016, **QUIET)
    run = train(config, data=faces, run=tmp_path / "run", log=silent)
    other = configure("tiny-16", kimg=0.08, r1_weight=3.0, noise_dim=9, **QUIET)
    with pytest.raises(UserError, match=r"r1_weight \(was 10.0, now 3.0\).*noise_dim \(was 8, now 9\)") as caught:
        train(other, data=faces, run=run, log=silent)
    assert "kimg (" not in str(caught.value)
    mirrored = np.load(faces)[:, :, ::-1]
    mirrored[0] = 7
    np.save(tmp_path / "other.npy", np.ascontiguousarray(mirrored))
    with pytest.raises(UserError, match="learnt from other images"):
        train(config, data=tmp_path / "other.npy", run=run, log=silent)
    with pytest.raises(UserError, match="holds a run already"):
        train(config, data=faces, run=run, resume="none", log=silent)
    with pytest.raises(UserError, match=r"holds no state\.pt"):
        train(config, data=faces, run=run, resume=str(tmp_path / "nothing"), log=silent)
    (run / "last" / "state.pt").write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be read"):
        train(config, data=faces, run=run, log=silent)
    assert "kimg" in FREE_ON_RESUME


class Exploit:
    """Run a command when unpickled."""

    def __reduce__(self):
        return os.system, ("exit 1",)


def test_state_that_holds_objects_is_never_run(faces, tmp_path):
    run = tmp_path / "run"
    (run / "last").mkdir(parents=True)
    torch.save({"format": run_file.STATE_FORMAT, "config": Exploit()}, run / "last" / "state.pt")
    with pytest.raises(UserError, match="cannot be read"):
        train(configure("tiny-16"), data=faces, run=run, log=silent)


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_divergence_stops_and_keeps_the_last_good_state(what, faces, tmp_path, monkeypatch):
    config = configure("tiny-16", kimg=0.08, **QUIET)
    run = train(config, data=faces, run=tmp_path / "run", log=silent)
    good = (run / "last" / "state.pt").read_bytes()
    real = Training.take_step

    def poisoned(self, images, latent):
        figures = real(self, images, latent)
        if self.step == 13 and what == "weight":
            with torch.no_grad():
                self.discriminator.score.bias.fill_(math.nan)
        if self.step == 13 and what == "loss":
            figures[1] = math.inf
        return figures

    monkeypatch.setattr(Training, "take_step", poisoned)
    # a weight is seen when the state is to be saved, even before it reaches a loss
    longer = dataclasses.replace(config, kimg=0.4, save_seconds=0.0 if what == "weight" else 60.0)
    match = {"loss": "the generator loss became NaN or infinite in step 13", "weight": "a weight became NaN"}[what]
    with pytest.raises(UserError, match=match) as caught:
        train(longer, data=faces, run=run, log=silent)
    assert str(run / "last" / "state.pt") in str(caught.value)
    assert state_of(run)["step"] == (12 if what == "weight" else 10)
    assert ((run / "last" / "state.pt").read_bytes() == good) == (what == "loss")


def test_flat_distance_is_told_and_may_stop_the_run(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(run_file, "multiscale_distance", lambda real, fake: {16: 5.0})
    said: list[str] = []
    config = configure("tiny-16", kimg=0.8, watch_kimg=0.08, patience=2, stop_when_flat=True)
    run = train(config, data=faces, run=tmp_path / "run", log=said.append)
    assert any("flat for 2 measurements" in line for line in said)
    assert state_of(run)["step"] == 30
    assert state_of(run)["distances"] == [5.0] * 3


def test_a_network_without_subspaces_trains_and_goes_on(faces, tmp_path):
    settings = {"n_basis": 0, "noise_dim": 17, "orthogonality_reduction": "mean", "distance_images": 0}
    first = train(configure("tiny-16", kimg=0.08, **settings), data=faces, run=tmp_path / "twin", log=silent)
    train(configure("tiny-16", kimg=0.16, **settings), data=faces, run=first, log=silent)
    straight = train(configure("tiny-16", kimg=0.16, **settings), data=faces, run=tmp_path / "whole", log=silent)
    assert_same_state(state_of(first), state_of(straight))
    assert not (first / "traversals").exists()
    assert load_generator(str(first / "last")).space("z").dim == 17


def test_collapsed_subspace_is_named(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(
        training_file, "measure_effect", lambda *args, **kw: torch.tensor([0.2, 0.1, 0.1, 0.001, 0, 0.001])
    )
    said: list[str] = []
    config = configure("tiny-16", kimg=0.016, watch_kimg=0.016, distance_images=0)
    train(config, data=faces, run=tmp_path / "run", log=said.append)
    assert [line for line in said if "WARNING" in line and "layer2" in line]
    assert collapsed_layers(torch.tensor([0.2, 0.003]), ["layer1", "layer2"]) == []


def test_importance_chart_draws_bars_in_proportion():
    chart = np.asarray(
        importance_chart(["L1D1", "L1D2"], {"a": torch.tensor([1.0, 0.5]), "b": torch.tensor([2.0, 0.0])})
    )
    first = (chart == np.asarray(Image.new("RGB", (1, 1), "#1f77b4"))[0, 0]).all(-1).sum(1)
    lengths = [int(n) for n in first if n > 20]
    assert min(lengths) == pytest.approx(max(lengths) / 2, abs=2)


def test_tensorboard_gets_the_figures(faces, tmp_path):
    pytest.importorskip("tensorboard")
    config = configure("tiny-16", kimg=0.016, **QUIET)
    run = train(config, data=faces, run=tmp_path / "run", tensorboard=True, log=silent)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run)).Reload()
    assert {"discriminator_loss", "importance/1/1", "orthogonality_error/2"} <= set(events.Tags()["scalars"])


# --- signals and processes --------------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
from eigenlens.training.eigengan import configure, train
torch.set_num_threads(1)
train(configure("tiny-16", kimg=float(sys.argv[3]), tick_kimg=0.08, watch_kimg=0, distance_images=0,
      save_seconds=float(sys.argv[4])), data=sys.argv[1], run=sys.argv[2], precision="fp32", threads=1)
"""


def start(faces: Path, run: Path, kimg: float, save_seconds: float, **environment: str) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(eigenlens.__file__).parent.parent)} | environment
    arguments = [sys.executable, "-c", SCRIPT, str(faces), str(run), str(kimg), str(save_seconds)]
    return subprocess.Popen(arguments, env=env, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_end_cleanly(number, faces, tmp_path):
    run = tmp_path / "run"
    process = start(faces, run, kimg=1e6, save_seconds=1e6)
    wait_for((run / "metrics.jsonl").exists, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "--resume auto" in said
    state = state_of(run)
    assert state["step"] > 0
    assert load_generator(run / "last").resolution == 16
    longer = configure("tiny-16", kimg=(state["step"] + 2) * 8 / 1000, save_seconds=60, **QUIET)
    train(longer, data=faces, run=run, precision="fp32", log=silent)
    assert state_of(run)["step"] == state["step"] + 2


@pytest.mark.slow
def test_killed_run_leaves_a_whole_state(faces, tmp_path):
    run = tmp_path / "run"
    process = start(faces, run, kimg=1e6, save_seconds=0)  # it saves all the time: the kill hits a save
    wait_for((run / "last" / "config.json").exists, process)
    time.sleep(0.3)
    process.kill()
    process.communicate(timeout=60)
    step = state_of(run)["step"]
    assert load_generator(run / "last").resolution == 16
    (run / "last" / ".state-killed.pt").write_bytes(b"half")
    train(configure("tiny-16", kimg=(step + 2) * 8 / 1000, **QUIET), data=faces, run=run, precision="fp32", log=silent)
    assert state_of(run)["step"] == step + 2
    assert not list((run / "last").glob(".state-*"))


@pytest.mark.slow
def test_two_processes_repeat_one(faces, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        start(faces, tmp_path / "two", 0.08, 60, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in (0, 1)
    ]
    config = configure("tiny-16", kimg=0.08, tick_kimg=0.08, **QUIET)
    one = train(config, data=faces, run=tmp_path / "one", precision="fp32", log=silent)
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    a, b = state_of(one), state_of(tmp_path / "two")
    for network in ("generator", "discriminator", "averaged"):
        for name, weight in a[network].items():
            torch.testing.assert_close(weight, b[network][name], rtol=0, atol=1e-5, msg=f"{network} {name}")
    for network in (
        "generator",
        "discriminator",
    ):  # Adam's steps hide the scale of a gradient; its first moment does not
        for mine, other in zip(*(s[f"{network}_optimiser"]["state"].values() for s in (a, b)), strict=True):
            torch.testing.assert_close(mine["exp_avg"], other["exp_avg"], rtol=1e-3, atol=1e-4)
    losses = [json.loads((tmp_path / n / "metrics.jsonl").read_text("utf-8").splitlines()[0]) for n in ("one", "two")]
    assert losses[0]["discriminator_loss"] == pytest.approx(losses[1]["discriminator_loss"], abs=1e-5)
    assert losses[0]["r1"] == pytest.approx(losses[1]["r1"], abs=1e-4)


def test_batch_that_cannot_be_shared_is_refused(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(run_file.runtime, "world_size", lambda: 3)
    monkeypatch.setattr(run_file.runtime, "join_processes", lambda device: CPU)
    with pytest.raises(UserError, match="multiple of 3"):
        train(configure("tiny-16"), data=faces, run=tmp_path / "run", log=silent)


# --- the distance -----------------------------------------------------------------------------------------------------


def test_pyramid_of_a_smooth_picture_has_no_detail_and_adds_up():
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    levels = distance.laplacian_pyramid(ramp)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    assert levels[0][..., 8:-8].abs().max() < 1e-5
    noise = torch.randn(2, 3, 64, 64)
    fine, middle, coarse = distance.laplacian_pyramid(noise)

    def up(image):
        spread = torch.zeros(*image.shape[:2], *(2 * s for s in image.shape[2:]))
        spread[..., ::2, ::2] = 4 * image
        return distance._blurred(spread)

    torch.testing.assert_close(fine + up(middle + up(coarse)), noise, rtol=1e-4, atol=1e-4)


def test_sliced_distance_of_shifted_sets_is_the_mean_projected_shift():
    points = torch.randn(400, 3)
    shift = torch.tensor([2.0, 0.0, 0.0])
    found = distance.sliced_wasserstein(points, points + shift, seed=0, projections=4096)
    assert found == pytest.approx(2 * 0.5, rel=0.03)  # E|cos| on the sphere of three dimensions is 1/2


def test_distance_is_small_for_the_same_law_and_grows_with_the_fault():
    rng = torch.Generator().manual_seed(0)
    smooth = lambda n: F.interpolate(torch.randn(n, 3, 8, 8, generator=rng), 32, mode="bicubic")  # noqa: E731
    real, same = smooth(64), smooth(64)
    base = distance.multiscale_distance(real, same)
    assert list(base) == [32, 16]
    noisy = distance.multiscale_distance(real, same + 0.3 * torch.randn(same.shape, generator=rng))
    noisier = distance.multiscale_distance(real, same + torch.randn(same.shape, generator=rng))
    assert base[32] < 0.5 * noisy[32]
    assert noisy[32] < noisier[32]
    assert distance.multiscale_distance(real, same) == base  # seeded
    shown = distance.multiscale_distance(real, 0.5 * same + 0.2)
    assert shown[16] == pytest.approx(base[16], rel=1e-3)  # each set is normalised by itself, as published


def test_distance_refuses_sets_that_do_not_compare():
    with pytest.raises(UserError, match="as many real"):
        distance.multiscale_distance(torch.zeros(4, 3, 32, 32), torch.zeros(5, 3, 32, 32))


def test_improvement_ends_when_the_last_values_do_not_beat_the_best():
    flat = distance.has_stopped_improving
    assert not flat([5.0, 4.0], patience=2)
    assert flat([5.0, 4.99, 4.98], patience=2)
    assert not flat([5.0, 4.9, 4.98], patience=2)
