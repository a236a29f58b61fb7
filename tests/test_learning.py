"""Learned directions: frames, free coordinates, the loop (resume, stop, flat, processes), and planted answers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import eigenlens
import families
from blobs import blobs
from devices import far_device
from eigenlens import Directions, UserError
from eigenlens.algebra import principal_angles
from eigenlens.cli import main
from eigenlens.generator import Generator
from eigenlens.methods.contrastive import Contrastive
from eigenlens.methods.learning import (
    STATE,
    LearnedFrame,
    Learner,
    Scene,
    channels_last,
    learn,
    read_state,
    seeded,
    twins,
    warn_of_confusion,
)
from eigenlens.methods.pairs import Pairs
from eigenlens.methods.voynov import Voynov
from eigenlens.methods.warped import Warped
from toy_spaces import SlotToy

TINY = Voynov(n_directions=3, n_steps=6, batch=4, learn_in="fp32", patience=0)
BLOBS = Voynov(
    learning_rate=3e-3, shift=3.0, shift_weight=1.0, noise=0.5, body="resnet", width=0.25, learn_in="fp32"
)  # fmt: skip
"""What finds the directions of `blobs` in few steps."""
pytestmark = pytest.mark.filterwarnings("ignore:recognised no better", "ignore:taken for each other")


def scene(generator: Generator, layers: str = "all", **how) -> Scene:
    return Scene(
        generator, **({"space": None, "layers": layers, "seed": 0, "stream": "test", "precision": "fp32"} | how)
    )


# --- frames and coordinates -------------------------------------------------------------------------------------------


def test_orthonormal_frame_stays_one_and_reaches_the_whole_space() -> None:
    frame = LearnedFrame(3, 8, "orthonormal", seed=0)
    start = frame().detach()
    assert (start.abs().amax(0) > 0.05).all()  # no coordinate is left out
    goal = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0][:3]
    optimiser = torch.optim.LBFGS(frame.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def miss() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (frame() - goal).square().sum()
        loss.backward()
        return loss

    optimiser.step(miss)  # type: ignore[arg-type]
    rows = frame().detach()
    assert torch.allclose(rows @ rows.T, torch.eye(3), atol=1e-5)
    assert torch.allclose(rows, goal, atol=0.02)


def test_frames_of_other_kinds() -> None:
    unit, free = (LearnedFrame(4, 6, kind, seed=0) for kind in ("unit", "free"))
    for frame in (unit, free):
        with torch.no_grad():
            frame.rows *= 3.0
    assert torch.allclose(unit().norm(dim=1), torch.ones(4))
    assert torch.allclose(free().norm(dim=1), torch.full((4,), 3.0))
    assert len(LearnedFrame(9, 6, "unit", seed=0)()) == 9
    with pytest.raises(UserError, match="give 1-6, or another frame"):
        LearnedFrame(7, 6, "orthonormal", seed=0)


@pytest.mark.parametrize("kind", ["orthonormal", "unit", "free"])
def test_frames_keep_at_right_angles_to_what_they_stand_beside(kind: str) -> None:
    beside = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    beside = torch.cat([beside, beside[:1] + beside[1:2]])  # rank 3
    frame = LearnedFrame(4, 8, kind, seed=0, beside=beside)
    with torch.no_grad():
        for weights in frame.parameters():
            weights.add_(0.3 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)))
    rows = frame().detach()
    assert (rows @ beside.T).abs().max() < 1e-5
    assert torch.linalg.matrix_rank(rows) == 4
    if kind != "free":
        assert torch.allclose(rows.norm(dim=1), torch.ones(4), atol=1e-5)
    with pytest.raises(UserError, match="give 1-5, or another frame"):
        LearnedFrame(6, 8, "orthonormal", seed=0, beside=beside)


def test_steps_are_one_sigma_long_and_keep_to_the_layers() -> None:
    g = SlotToy()
    rows = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    rows = rows / rows.norm(dim=1, keepdim=True)
    space = g.spaces["w"]
    sigma = torch.einsum("kd,de,ke->k", rows, space.covariance, rows).sqrt()
    assert torch.allclose(scene(g).steps(rows)[:, 0], rows * sigma[:, None], atol=1e-6)
    some = scene(g, "1-2").steps(rows)
    assert some.shape == (2, 4, 5)
    assert torch.equal(some[:, 0], torch.zeros(2, 5))
    assert torch.allclose(some[:, 2], rows * sigma[:, None], atol=1e-6)
    tripled = scene(g).steps(3 * rows)
    assert torch.allclose(tripled, 3 * scene(g).steps(rows), atol=1e-6)


def test_free_coordinates_of_parts(eigengan: Generator) -> None:
    some = scene(eigengan, "2")
    part = eigengan.spaces["z"].picked("2")[0]
    assert some.free.tolist() == list(range(part.start, part.stop))
    d = replace(TINY, layers="2").fit(eigengan)
    outside = torch.ones(eigengan.spaces["z"].dim, dtype=torch.bool)
    outside[part.start : part.stop] = False
    assert not d.vectors[:, 0, outside].any()
    assert torch.allclose(d.vectors.norm(dim=2), torch.ones(3, 1), atol=1e-5)


def test_pairs_share_labels_and_only_the_moved_image_has_a_graph(tiny) -> None:
    g = tiny("biggan")
    here = scene(g)
    codes = here.batch(6, step=0)
    assert codes.labels is not None
    moved = codes.latent.clone().requires_grad_()
    before, after = here.see(codes, moved)
    assert torch.allclose(before, after, atol=1e-5)  # the same labels and noise: an unmoved pair is one image twice
    assert not before.requires_grad
    after.sum().backward()
    assert moved.grad is not None
    assert all(p.grad is None for p in g.network.parameters())
    assert len({tuple(row) for row in codes.labels.tolist()}) > 1


def test_learning_and_testing_codes_are_nobody_elses(eigengan: Generator) -> None:
    here = scene(eigengan)
    batches = [here.batch(4, 0), here.batch(4, 1), here.held_out(4, 0), eigengan.sample(4, seed=0)]
    latents = torch.cat([codes.latent for codes in batches]).flatten(1)
    assert torch.cdist(latents, latents).add(torch.eye(16) * 9).min() > 0.1


@pytest.mark.parametrize("family", families.TINY)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_family_learns(tiny, family: str, precision: str) -> None:
    g = tiny(family)
    d = replace(TINY, n_steps=1, learn_in=precision).fit(g)
    codes = d.host(g, g.sample(2, seed=0, label="random" if g.label_names else None))
    assert not torch.equal(g(d.move(codes, 0, by=2.0)), g(codes))


def test_layer_ranges_of_w_plus(tiny) -> None:
    g = tiny("stylegan2")
    for space in ("w", "w+"):
        d = replace(TINY, space=space, layers="1-2").fit(g)
        assert d.space == "w"
        assert d.layers == ("1-2",) * 3


def test_features_take_the_place_of_pixels(eigengan: Generator) -> None:
    layer = eigengan.layers[1].name
    pixels, features = TINY.fit(eigengan), replace(TINY, at=layer).fit(eigengan)
    assert not torch.equal(pixels.vectors, features.vectors)


def test_layout_comes_back() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 1))
    network[1].weight.data = network[1].weight.data.contiguous(memory_format=torch.channels_last)
    x, before = torch.rand(2, 3, 8, 8), [p.stride() for p in network.parameters()]
    images = network(x)
    with channels_last(network):
        assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(network(x), images, atol=1e-5)
    assert [p.stride() for p in network.parameters()] == before
    assert torch.equal(network(x), images)


# --- the loop ---------------------------------------------------------------------------------------------------------


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_a_stopped_run_goes_on_bit_for_bit(eigengan: Generator, tmp_path: Path, monkeypatch) -> None:
    whole = TINY.fit(eigengan, seed=3, run=tmp_path / "whole")
    part = tmp_path / "part"
    replace(TINY, n_steps=2).fit(eigengan, seed=3, run=part)
    step = Learner.take_step

    def interrupted(self: Learner):
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Learner, "take_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match=f"stopped at step 5 of 6; .* --run {part}"):
        TINY.fit(eigengan, seed=3, run=part)
    monkeypatch.undo()
    again = TINY.fit(eigengan, seed=3, run=part)
    assert torch.equal(again.vectors, whole.vectors)
    assert torch.equal(again.importance, whole.importance)
    ends = [lines(run)[-1] | {"seconds": 0} for run in (tmp_path / "whole", part)]
    assert ends[0] == ends[1]
    finished = TINY.fit(eigengan, seed=3, run=part)
    assert torch.equal(finished.vectors, whole.vectors)


def test_runs_of_other_settings_are_refused(eigengan: Generator, tmp_path: Path) -> None:
    TINY.fit(eigengan, run=tmp_path)
    with pytest.raises(UserError, match=r"batch \(was 4, now 8\).*n_steps, patience may change"):
        replace(TINY, batch=8).fit(eigengan, run=tmp_path)
    with pytest.raises(UserError, match=r"seed \(was 0, now 1\)"):
        TINY.fit(eigengan, seed=1, run=tmp_path)
    (tmp_path / "last" / STATE).write_bytes(b"half a state")
    with pytest.raises(UserError, match="cannot be read"):
        TINY.fit(eigengan, run=tmp_path)


def test_it_learns_and_tells(eigengan: Generator, tmp_path: Path) -> None:
    target = torch.nn.Linear(1, 1, bias=False)
    learner = Learner(
        {"it": target},
        lambda step: (1 + (target.weight - 1).square().sum(), torch.tensor([float(step)])),
        ["step_seen"],
        learning_rate=0.1,
    )
    about = {"method": "toy", "arguments": {}, "seed": 0, "generator": {"weights": "0"}}
    where = {"device": torch.device("cpu"), "about": about, "run": tmp_path}
    learn(learner, n_steps=40, patience=0, tick=10, **where)
    told = lines(tmp_path)
    assert [line["step"] for line in told] == [10, 20, 30, 40]
    assert told[-1]["loss"] < told[0]["loss"]
    assert told[0]["step_seen"] == pytest.approx(4.5)  # the mean over the tick
    learn(learner, n_steps=4000, patience=3, tick=10, **where)
    assert learner.step < 4000  # flat
    assert "the loss is flat" in (tmp_path / "log.txt").read_text("utf-8")
    assert read_state(tmp_path / "last" / STATE, about)["step"] == learner.step


def test_a_loss_that_is_no_number_is_told() -> None:
    weight = torch.nn.Linear(1, 1)
    learner = Learner(
        {"w": weight}, lambda step: (weight.weight.sum() * torch.inf, torch.empty(0)), [], learning_rate=1
    )
    with pytest.raises(UserError, match="lower the learning rate"):
        learn(learner, n_steps=1, patience=0, about={"method": "x"}, run=None, device=torch.device("cpu"))


def test_a_run_stopped_within_a_tick_goes_on_on_another_device(tmp_path: Path) -> None:
    def step_on(device: torch.device, n_steps: int, run: Path) -> list[dict]:
        it = seeded(0, lambda: torch.nn.Linear(1, 1, bias=False)).to(device)
        seen = torch.zeros(1).to(device)
        learner = Learner({"it": it}, lambda step: (it.weight.square().sum(), seen + step), ["seen"], learning_rate=0.1)
        about = {"method": "toy", "arguments": {}, "seed": 0, "generator": {"weights": "0"}}
        learn(learner, n_steps=n_steps, patience=0, about=about, run=run, device=device)
        return [{**line, "seconds": 0} for line in lines(run)]

    whole = step_on(torch.device("cpu"), 5, tmp_path / "whole")
    step_on(torch.device("cpu"), 3, tmp_path / "part")
    with far_device() as device:
        again = step_on(device, 5, tmp_path / "part")
    assert again[-1] == pytest.approx(whole[-1])  # the figures of the whole tick


def test_rounds_stand_at_right_angles_and_go_on(eigengan: Generator, tmp_path: Path) -> None:
    method = replace(TINY, n_directions=5, rounds=2, frame="unit")
    d = method.fit(eigengan, run=tmp_path)
    assert len(d) == 5
    sizes = [torch.load(tmp_path / f"round-{i}" / "last" / STATE)["modules"]["directions.frame.rows"] for i in (1, 2)]
    assert [len(rows) for rows in sizes] == [3, 2]
    cosines = (d.vectors[:, 0] @ d.vectors[:, 0].T).abs()
    blocks = (cosines < 1e-5).sum(1)
    assert sorted(blocks.tolist()) == [2, 2, 2, 3, 3]  # each is at right angles to all of the other round
    again = method.fit(eigengan, run=tmp_path)  # both rounds are there
    assert torch.equal(again.vectors, d.vectors)
    assert torch.equal(again.importance, d.importance)
    for longer in (replace(method, n_steps=8), replace(method, patience=1)):  # round 2 would stand beside what has gone
        with pytest.raises(UserError, match=r"round-1 has other settings: .*; give the same ones, or another --run"):
            longer.fit(eigengan, run=tmp_path)
    assert torch.equal(method.fit(eigengan, run=tmp_path).vectors, d.vectors)  # nothing has moved
    with pytest.raises(UserError, match=r"rounds 6 is not possible; it is a number from 1 to 5"):
        replace(method, rounds=6).fit(eigengan)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (replace(TINY, batch=1), "batch 1 is not possible; it is a number from 2"),
        (replace(TINY, n_directions=0), "n_directions 0 is not possible; it is a number from 1"),
        (replace(TINY, learning_rate=-1.0), "learning_rate -1.0 is not possible"),
        (replace(TINY, patience=-1), "patience -1 is not possible"),
        (replace(TINY, see=0), "see 0 is not possible; it is a number of pixels from 1"),
        (replace(TINY, width=0.05), "width 0.05 leaves a layer without channels; give 0.1 or more"),
        (Warped(n_dipoles=0), "n_dipoles 0 is not possible; it is a number from 1"),
        (Pairs(batch=1), "batch 1 is not possible"),
        (Contrastive(temperature=0.0), "temperature 0.0 is not possible"),
        (Contrastive(hidden=0), "hidden 0 is not possible; it is a number from 1"),
        (replace(TINY, layers="2", at="layer1"), "layers '2' change nothing before layer2, so layer1 shows none of it"),
        (Contrastive(layers="2", at="base"), "give `at` as layer2 or later"),
    ],
)
def test_impossible_settings_are_refused(eigengan: Generator, method, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        method.fit(eigengan)


def test_pairs_want_other_samples_in_every_process(eigengan: Generator, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a batch of 2 has no other samples to compare; give 2 or more codes a process"):
        Pairs(batch=2).fit(eigengan)


def test_batch_that_cannot_be_shared_is_refused(eigengan: Generator, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="multiple of 3"):
        TINY.fit(eigengan)


def test_seeds_fix_weights_without_touching_the_global_state() -> None:
    before = torch.random.get_rng_state()
    a, b = (seeded(5, lambda: torch.nn.Linear(3, 3)).weight for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.random.get_rng_state(), before)


SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from families import TINY
from eigenlens.method import METHODS
torch.set_num_threads(1)
torch.manual_seed(0)
g = TINY["eigengan"]()
for name in sys.argv[5:]:
    method = METHODS[name](n_directions=3, n_steps=int(sys.argv[3]), batch=8, learn_in="fp32", patience=0)
    run = Path(sys.argv[2]) / name
    d = method.fit(g, run=run)
    torch.save(d.vectors, run / f"vectors{sys.argv[4]}.pt")
"""


def start(run: Path, n_steps: int, *methods: str, rank: str = "0", **environment: str) -> subprocess.Popen:
    source = str(Path(eigenlens.__file__).parent.parent)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source, "RANK": rank, "LOCAL_RANK": rank} | environment
    arguments = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(run), str(n_steps), rank, *methods]
    return subprocess.Popen(arguments, env=env, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_repeat_one(tmp_path: Path) -> None:
    methods = ("voynov", "pairs", "contrastive")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [start(tmp_path / "two", 5, *methods, rank=rank, **group) for rank in "01"]
    processes.append(start(tmp_path / "one", 5, *methods))
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    for method in methods:
        both = [torch.load(tmp_path / "two" / method / f"vectors{rank}.pt", weights_only=True) for rank in "01"]
        assert torch.equal(*both)
        states = [torch.load(tmp_path / n / method / "last" / STATE, weights_only=True) for n in ("one", "two")]
        for name, weight in states[0]["modules"].items():
            torch.testing.assert_close(weight, states[1]["modules"][name], rtol=1e-4, atol=1e-5, msg=f"{method} {name}")
        for a, b in zip(*(s["optimiser"]["state"].values() for s in states), strict=True):
            torch.testing.assert_close(a["exp_avg"], b["exp_avg"], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_sigterm_saves_and_ends(tmp_path: Path) -> None:
    run = tmp_path / "voynov"
    process = start(tmp_path, 10**6, "voynov")
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "to go on, give the same command" in said
    assert torch.load(run / "last" / STATE, weights_only=True)["step"] >= 50


# --- what is found ----------------------------------------------------------------------------------------------------


def test_twins_are_found() -> None:
    vectors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-0.99, 0.1, 0]])[:, None]
    assert twins(vectors) == [(0, 2)]


def test_duplicates_and_dead_directions_are_warned_of(tmp_path: Path) -> None:
    found = Directions(torch.eye(4)[:, None], "z", ("a", "b", "c", "d"))
    counts = torch.tensor([[28.0, 10, 2, 0], [25, 14, 0, 1], [0, 0, 38, 2], [12, 8, 10, 10]])
    with pytest.warns(UserWarning, match="b") as said:
        warn_of_confusion(found, counts, tmp_path)
    told = [str(each.message) for each in said]
    assert told == ["recognised no better than by chance: b, d", "taken for each other: a and b"]
    assert "WARNING: taken for each other: a and b" in (tmp_path / "log.txt").read_text("utf-8")
    alike = replace(found, vectors=torch.eye(4)[[0, 1, 2, 1], None])
    with pytest.warns(UserWarning, match="taken for each other: b and d"):
        warn_of_confusion(alike, torch.eye(4) * 40, None)


def test_noise_is_new_for_every_code_and_image_and_belongs_to_the_code(eigengan: Generator) -> None:
    game = replace(TINY, noise=0.5).game(eigengan, "orthonormal", 0)
    codes = eigengan.sample(4)
    blank = torch.zeros(4, 3, 8, 8)
    noise = game.look(blank, codes, "before")
    assert float(noise.std()) == pytest.approx(0.5, rel=0.1)
    assert torch.equal(game.look(blank[2:], codes[2:], "before"), noise[2:])
    assert not torch.allclose(game.look(blank, codes, "after"), noise)
    assert not torch.allclose(noise[0], noise[1])
    with pytest.raises(UserError, match=r"noise -1 is not possible; it is a number from 0"):
        replace(TINY, noise=-1).fit(eigengan)


def held(rows: torch.Tensor, axes: torch.Tensor) -> float:
    """Return how many dimensions of `axes` the span of rows holds: the sum of the squared cosines of their angles."""
    return float(torch.deg2rad(principal_angles(rows, axes)).cos().square().sum())


@pytest.mark.slow
def test_the_subspace_that_acts_is_found_beyond_chance() -> None:
    g, axes = blobs()
    method = replace(BLOBS, n_directions=6, n_steps=400)
    found = held(method.fit(g).vectors[:, 0], axes)
    chance = [held(LearnedFrame(6, 32, "orthonormal", seed)().detach(), axes) for seed in range(1000)]
    assert held(method.game(g, "orthonormal", 0).mover.frame().detach(), axes) < max(chance)
    assert found > max(chance), (found, max(chance))


@pytest.mark.slow
def test_what_plainer_changes_hide_is_found_beside_them() -> None:
    g, axes = blobs()
    method = replace(BLOBS, n_directions=4, n_steps=150)
    plain, hue = axes[[0, 1, 2, 4]], axes[[3]]
    game = method.game(g, "orthonormal", 0, beside=plain)
    (before,) = principal_angles(game.mover.frame().detach(), hue).tolist()
    game.play(method.n_steps, None)
    (after,) = principal_angles(game.mover.frame().detach(), hue).tolist()
    assert before > 45
    assert after < 25


# --- at the shell -----------------------------------------------------------------------------------------------------


def test_presets_at_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["discover", "--method", "voynov", "--preset", "cpu", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: 24)" in text
    assert main(["discover", "toonfaces", "--method", "voynov", "--preset", "cpus"]) == 2
    assert "Did you mean 'cpu'?" in capsys.readouterr().err
    assert main(["discover", "toonfaces", "--method", "sefa", "--preset", "cpu"]) == 2
    assert "unknown preset of sefa" in capsys.readouterr().err
