"""Training a StyleGAN2: the trained network is the frozen one, equalised rates, resuming, the command."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from eigenlens.cli import main
from eigenlens.codes import Codes
from eigenlens.errors import UserError
from eigenlens.generator import load_generator
from eigenlens.method import METHODS
from eigenlens.training import adversaries
from eigenlens.training import stylegan2 as training_file
from eigenlens.training.stylegan2 import (
    Discriminator,
    SmallStyleGAN2,
    Tensors,
    TrainConfig,
    Training,
    begin,
    configure,
    equalised_adam,
    of_generator,
    synthesise,
    train,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    """Give 64 dark flat pictures of 8 px."""
    values = np.random.default_rng(0).integers(0, 60, (64, 1, 1, 3), np.uint8)
    path = tmp_path_factory.mktemp("set") / "colours.npy"
    np.save(path, np.broadcast_to(values, (64, 8, 8, 3)))
    return path


def silent(line: str) -> None:
    """Take a line and say nothing."""


def state_of(run: Path) -> dict:
    return torch.load(run / "last" / "state.pt", weights_only=True)


def test_the_trained_network_draws_what_the_frozen_one_draws() -> None:
    training = Training(configure("stylegan2-tiny-8", resolution=16, channel_base=64), device=CPU)
    with torch.no_grad():
        for name, parameter in training.averaged.named_parameters():
            if name.endswith(("bias", "strength")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    frozen = training.as_generator("toy")
    z = torch.randn(5, 4)
    noise = [layer.noise[None, None] for layer in training._noisy()]
    images = synthesise(training.averaged, training.averaged.mapping(z), noise)
    assert torch.allclose(images, frozen(Codes(frozen.spaces["z"], z[:, None])), atol=1e-5)


def test_rates_of_finished_weights_are_equalised_learning_rates() -> None:
    target, scale = torch.linspace(-1, 1, 12).view(3, 4), 0.05
    raw = torch.nn.Parameter(torch.ones(3, 4))
    finished = torch.nn.Parameter(torch.full((3, 4), scale))
    of_raw = torch.optim.Adam([raw], 0.01, (0.0, 0.99))
    of_finished = equalised_adam([Tensors(finished, 1.0, 0.0, scale)], 0.01, (0.0, 0.99))
    for _ in range(20):
        for optimiser, weight in ((of_raw, raw * scale), (of_finished, finished)):
            optimiser.zero_grad()
            (weight - target).square().sum().backward()
            optimiser.step()
    assert not torch.allclose(finished, torch.full((3, 4), scale), atol=1e-3)
    assert torch.allclose(raw * scale, finished, atol=1e-6)


def test_w_begins_with_unit_variance_and_its_network_learns_slowly() -> None:
    training = Training(configure("stylegan2-32"), device=CPU)
    w = training.generator.mapping(torch.randn(256, 64))
    assert 0.5 < float(w.detach().square().mean()) < 2.0
    slow = [each for each in of_generator(training.generator, 0.01) if each.rate < 0.01]
    assert len(slow) == 2  # the weights of the mapping network
    begin(slow)
    assert float(slow[0].parameter.detach().std()) == pytest.approx(math.sqrt(2 / 64), rel=0.1)


def test_the_discriminator_sees_that_images_are_all_alike() -> None:
    torch.manual_seed(0)
    network = Discriminator(SmallStyleGAN2(8, channel_base=32, channel_max=8))
    one, others = torch.randn(1, 3, 8, 8), torch.randn(7, 3, 8, 8)
    among_others = network(torch.cat([one, others]))[0]
    among_copies = network(one.expand(8, -1, -1, -1))[0]
    assert not torch.allclose(among_others, among_copies, atol=1e-4)


def test_processes_share_a_batch_by_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(configure("stylegan2-tiny-8"), device=CPU)  # batch 8
    maps, latents = torch.randn(8, 3, 4, 4), training.latents()
    spread, rows = training_file._spread(maps), []
    monkeypatch.setattr(training_file.runtime, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(training_file.runtime, "rank", lambda rank=rank: rank)
        assert torch.equal(training.latents(), latents[training.mine])
        torch.testing.assert_close(training_file._spread(maps[training.mine]), spread[training.mine])
        rows += range(8)[training.mine]
    assert sorted(rows) == list(range(8))


def test_training_moves_towards_the_data_and_a_resumed_run_repeats_it(colours, tmp_path) -> None:
    def dark(kimg: float, run: str) -> Path:
        config = configure("stylegan2-tiny-8", kimg=kimg, watch_kimg=0, distance_images=0, ema_half_life=0.1)
        return train(config, data=colours, run=tmp_path / run, threads=1, precision="fp32", log=silent)

    dark(0.4, "stopped")
    resumed, straight = dark(0.8, "stopped"), dark(0.8, "straight")
    a, b = state_of(resumed), state_of(straight)
    for name in ("generator", "discriminator", "averaged"):
        for key, value in a[name].items():
            assert torch.equal(value, b[name][key]), key
    generator = load_generator(str(straight / "last"))
    codes = generator.sample(32, seed=0)
    at_first = Training(configure("stylegan2-tiny-8"), device=CPU).as_generator("fresh")
    data = np.load(colours).mean() / 127.5 - 1
    now = abs(float(generator(codes).mean()) - data)
    assert now < 0.5 * abs(float(at_first(at_first.sample(32, seed=0)).mean()) - data)
    assert float(generator.truncation_centre.norm()) > 0
    assert len(METHODS["sefa"](n_directions=3).fit(generator)) == 3


def test_the_command_trains_the_family_of_its_preset(colours, tmp_path, capsys) -> None:
    words = ["train", "--data", str(colours), "--preset", "stylegan2-tiny-8", "--kimg", "0.04", "--w-dim", "5"]
    assert main([*words, "--runs", str(tmp_path), "--distance-images", "0"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder.name == "00000-stylegan2-colours"
    assert load_generator(str(folder / "last")).spaces["w"].dim == 5
    assert (folder / "samples" / "000000.0-sigma1.0.png").exists()
    assert main(["train", "--data", str(colours), "--preset", "stylegan2-23"]) == 2
    assert "Did you mean 'stylegan2-32'" in capsys.readouterr().err
    assert main(["train", "--data", str(colours), "--preset", "stylegan2-32", "--n-basis", "3"]) == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"resolution": 20}, "resolution 20"),
        ({"channels": 2}, "channels 2"),
        ({"channel_base": 16}, "channel_base from the resolution"),
        ({"mapping_rate": -1.0}, "mapping_rate -1"),
        ({"betas": (0.0, 1.0)}, "betas"),
        ({"bach": 3}, "Did you mean 'batch'"),
    ],
)
def test_impossible_settings_are_refused(given, expected) -> None:
    with pytest.raises(UserError, match=expected):
        configure("stylegan2-32", **given)


def test_every_setting_is_explained() -> None:
    source = "".join(Path(each.__file__).read_text("utf-8") for each in (training_file, adversaries))
    for kind in (TrainConfig, SmallStyleGAN2):
        for field in dataclasses.fields(kind):
            after = source.split(f"\n    {field.name}: ", 1)[1].split("\n", 1)[1]
            assert after.lstrip().startswith('"""'), field.name


def test_compiling_is_refused(colours) -> None:
    with pytest.raises(UserError, match="leave --compile out"):
        train(configure("stylegan2-tiny-8"), data=colours, compile=True)
