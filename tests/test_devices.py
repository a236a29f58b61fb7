"""Codes, networks and all between them on a second device, as on a GPU."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from devices import FAR, far_device
from eigenlens import Codes, runtime
from eigenlens.edit import Edit, edit_codes
from eigenlens.encoder import Encoder, EncoderConfig, EncoderNetwork
from eigenlens.explorer import Latents
from eigenlens.export import Images, _on_cpu
from eigenlens.generator import Generator, _sent
from eigenlens.method import METHODS
from eigenlens.methods import ganspace
from eigenlens.methods.learning import Learner, learn
from eigenlens.move import Move
from families import TINY


@pytest.fixture(params=TINY)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Generator, Generator]]:
    """Give a small generator of each family on the CPU, and the same one on the second device."""
    made = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made.append(TINY[request.param]())
    with far_device() as device:
        yield made[0], made[1].to(device)


def draw(g: Generator, space: str, noise: str = "stored") -> Codes:
    return g.sample(2, seed=1, space=space, noise=noise, label="random" if g.label_names else None)


def test_the_second_device_refuses_tensors_of_the_first() -> None:
    with far_device() as device:
        there = torch.ones(2).to(device)
        assert there.device == FAR
        assert (there + there).sum().cpu() == 4
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(2)


def test_codes_are_drawn_on_the_cpu_for_every_device(pair: tuple[Generator, Generator]) -> None:
    here, there = pair
    for space in here.spaces:
        expected, drawn = draw(here, space), draw(there, space)
        assert drawn.latent.device.type == "cpu"
        assert torch.allclose(drawn.latent, expected.latent, atol=1e-6)


def test_lifted_codes_stay_on_their_device(pair: tuple[Generator, Generator]) -> None:
    _, g = pair
    codes = draw(g, g.prior)
    for space in g.spaces:
        for device in (torch.device("cpu"), FAR):
            assert g.lift(codes.to(device), space).latent.device == device


@pytest.mark.parametrize("noise", ["stored", "random", "none"])
def test_images_are_the_same_on_every_device(pair: tuple[Generator, Generator], noise: str) -> None:
    here, there = pair
    for space in here.spaces:
        codes = draw(here, space, noise)
        expected = here(codes)
        for device in (torch.device("cpu"), FAR):
            moved = codes.to(device)
            images = there(moved)
            assert images.device == FAR
            assert torch.allclose(images.cpu(), expected, atol=1e-5)


def test_partial_synthesis_takes_codes_of_every_device(pair: tuple[Generator, Generator]) -> None:
    here, there = pair
    codes = draw(here, here.default_space, "random")
    expected = here(codes)
    for layer in there.layers:
        state = there.start(codes, layer.name)
        assert torch.allclose(there.finish(codes, state).cpu(), expected, atol=1e-5)
        assert there.features(codes, layer.name).device == FAR


def test_directions_move_codes_of_every_device(pair: tuple[Generator, Generator]) -> None:
    here, there = pair
    directions = METHODS["axes"](n_directions=2).fit(there)
    codes = draw(here, directions.space)
    expected = here(directions.move(codes, 0, by=1.0))
    for device in (torch.device("cpu"), FAR):
        assert torch.allclose(there(directions.move(codes.to(device), 0, by=1.0)).cpu(), expected, atol=1e-5)


def test_keep_takes_codes_of_every_device(pair: tuple[Generator, Generator]) -> None:
    here, there = pair
    if here.family not in ("eigengan", "stylegan2"):
        pytest.skip("two families show it")
    directions = METHODS["axes"](n_directions=2).fit(here)
    edit = Edit("tiny", moves=(Move("d", 0, by=1.0),), keep=("pixels:saturation",))
    expected = edit_codes(here, draw(here, directions.space)[0], edit, lambda _: directions).after.latent
    for device in (torch.device("cpu"), FAR):
        codes = draw(there, directions.space)[0].to(device)
        moved = edit_codes(there, codes, edit, lambda _: directions).after.latent
        assert torch.allclose(moved.cpu(), expected, atol=1e-4)


@pytest.mark.parametrize("family", ["eigengan", "stylegan2"])
def test_a_device_without_float64_holds_reaches_and_decomposes(family: str) -> None:
    with far_device(has_float64=False) as device:
        g = TINY[family]().to(device)
        ganspace.GANSpace(2, n_samples=100).fit(g)
        directions = METHODS["axes"](n_directions=2).fit(g)
        codes = draw(g, directions.space)[0].to(device)
        for move, keep in ((Move("d", 0, by=1.0), ("pixels:saturation",)), (Move("d", 0, to=1.0), ())):
            moved = edit_codes(g, codes, Edit("tiny", moves=(move,), keep=keep), lambda _: directions).after
            assert moved.latent.device == device


def test_a_copy_is_awaited_on_the_gpu_that_made_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current GPU may be another one, and an event of that one would wait for nothing."""
    asked: list[torch.device] = []
    made, pinned = torch.empty, SimpleNamespace(record_event=lambda: "event")
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory, **about: made(*size, **about))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: asked.append(device) or pinned)
    with far_device() as device:
        images = torch.ones(2, 3).to(device)
        copy, event = _sent(images)
    assert asked == [FAR]
    assert event == "event"
    assert torch.equal(copy, torch.ones(2, 3))


def test_a_run_that_was_stopped_within_a_tick_goes_on_on_a_gpu(tmp_path: Path) -> None:
    def learner(device: torch.device) -> Learner:
        weight = torch.nn.Linear(1, 1, bias=False).to(device)
        loss: Callable[[int], tuple[Tensor, Tensor]] = lambda step: (weight.weight.square().sum(), weight.weight[0])  # noqa: E731
        return Learner({"it": weight}, loss, ["weight"], learning_rate=0.1)

    about = {"method": "toy", "arguments": {}, "seed": 0, "generator": {"weights": "0"}}
    with far_device() as device:
        for n_steps in (3, 10):
            learn(learner(device), n_steps=n_steps, patience=0, about=about, run=tmp_path, device=device, tick=10)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()] == [
        3,
        10,
    ]


@pytest.mark.parametrize("exact", [True, False], ids=["moments", "rows"])
def test_a_stopped_ganspace_goes_on_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exact: bool) -> None:
    monkeypatch.setattr(ganspace, "CHUNK", 1024 * 100)
    monkeypatch.setattr(ganspace, "EXACT", 4096 if exact else 100)
    method = ganspace.GANSpace(5, at="layer2", n_samples=600)

    def ctrl_c(what: str, done: int, total: int | None) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with far_device() as device:
        g = TINY["eigengan"]().to(device)
        whole = method.fit(g)
        with runtime.watching(ctrl_c), pytest.raises(KeyboardInterrupt):
            method.fit(g, run=tmp_path)
        resumed = method.fit(g, run=tmp_path)
    assert torch.equal(resumed.vectors, whole.vectors)


def test_what_is_exported_leaves_the_generator_where_it_lies(pair: tuple[Generator, Generator]) -> None:
    here, there = pair
    space = there.spaces[there.prior]
    codes = draw(here, space.name)
    exported = _on_cpu(Images(there, space))
    assert there.device == FAR
    assert torch.allclose(exported(codes.latent, codes.labels), here(codes), atol=1e-5)
    assert there(codes).device == FAR


def test_an_exported_encoder_leaves_both_where_they_lie(pair: tuple[Generator, Generator]) -> None:
    here, there = pair
    if "w+" not in here.spaces or here.label_names:
        pytest.skip("codes without a label that are lifted show it")
    network = EncoderNetwork(EncoderConfig("z", 1, here.spaces["z"].dim, 3, 16, 8))
    images, made = torch.rand(1, here.channels, 16, 16)[:, :3], []
    for g in (here, there):
        directions = METHODS["axes"](n_directions=2, space="w").fit(here)
        made.append(_on_cpu(Latents(Encoder(copy.deepcopy(network), g), g, directions))(images))
    assert there.device == FAR
    assert torch.allclose(*made, atol=1e-5)
