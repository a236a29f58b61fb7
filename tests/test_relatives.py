"""The relatives of voynov: warped paths, contrasts of features, and pairs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blobs import blobs
from eigenlens import Directions, UserError
from eigenlens.generator import Generator
from eigenlens.methods.contrastive import Contrast, Contrastive, contrast
from eigenlens.methods.learning import LearnedFrame, StraightMover
from eigenlens.methods.pairs import PairGame, Pairs
from eigenlens.methods.warped import Warped

WARPED = Warped(n_directions=3, n_steps=3, batch=4, n_dipoles=4, learn_in="fp32", patience=0)
CONTRASTIVE = Contrastive(n_directions=3, n_steps=3, batch=4, learn_in="fp32", patience=0)
PAIRS = Pairs(n_directions=3, n_steps=3, batch=4, learn_in="fp32", patience=0)
pytestmark = pytest.mark.filterwarnings("ignore:recognised no better", "ignore:taken for each other")


# --- warped -----------------------------------------------------------------------------------------------------------


def test_warped_directions_are_walked_as_they_were_learned(eigengan: Generator, tmp_path: Path) -> None:
    game = WARPED.game(eigengan, seed=0)
    game.play(3, None)
    d = WARPED.fit(eigengan, run=tmp_path / "run")
    assert not d.is_straight
    assert len(d) == 3
    codes = game.scene.held_out(4, 0)
    order = game_order(game, d)
    amount = torch.tensor([1.5, -0.5, 2.0, 1.0])
    which = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        learned = game.mover(codes.latent, which, amount)
    for row in range(4):
        walked = d.move(codes[row], order[int(which[row])], by=float(amount[row])).latent[0]
        assert torch.allclose(walked, learned[row], atol=5e-3)


def game_order(game, d: Directions) -> dict[int, int]:
    """Return where each field of the game stands among the directions, which are ordered by accuracy."""
    assert d.curve is not None
    theirs, ours = d.curve.tensors()["poles"], game.mover.curve().poles.detach()
    return {i: int((theirs - ours[i]).abs().amax((1, 2, 3)).argmin()) for i in range(len(ours))}


def test_warped_keeps_to_its_layers(eigengan: Generator) -> None:
    d = replace(WARPED, layers="2").fit(eigengan)
    part = eigengan.spaces["z"].picked("2")[0]
    codes = eigengan.sample(2)
    change = (d.move(codes, 0, by=2.0).latent - codes.latent)[:, 0]
    assert change[:, part.start : part.stop].abs().sum() > 0
    assert not change[:, : part.start].any()
    assert not change[:, part.stop :].any()


def test_warped_in_w_of_a_stylegan(tiny) -> None:
    g = tiny("stylegan2")
    d = replace(WARPED, space="w", layers="1-2").fit(g)
    codes = d.host(g, g.sample(2, label="random"))
    moved = d.move(codes, 0, by=1.0).latent
    assert torch.equal(moved[:, 0], codes.latent[:, 0])
    assert not torch.equal(moved[:, 1], codes.latent[:, 1])


# --- contrastive ------------------------------------------------------------------------------------------------------


def test_contrast_of_hand_made_changes() -> None:
    axes = torch.eye(4)
    apart = axes[:2, None].repeat(1, 3, 1) * torch.tensor([1.0, -1.0, 1.0])[None, :, None]  # the sign is free
    loss, figures = contrast(apart, 0.5)
    assert figures.tolist() == pytest.approx([1.0, 0.0], abs=1e-5)
    assert float(loss) == pytest.approx(-2.0, abs=1e-5)  # -log(exp(1 / 0.5) / exp(0))
    loss, figures = contrast(axes[:1, None].repeat(2, 3, 1), 0.5)
    assert figures.tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert float(loss) == pytest.approx(0.0, abs=1e-5)
    swapped = torch.stack([axes[[0, 1]], axes[[0, 1]]])  # alike across directions, unlike within
    loss, figures = contrast(swapped, 0.5)
    assert figures.tolist() == pytest.approx([0.0, 0.5], abs=1e-5)
    assert float(loss) == pytest.approx(math.log((math.exp(2) + 1) / 2))


@pytest.mark.parametrize("kind", ["linear", "conditional"])
def test_contrastive_learns_both_kinds(eigengan: Generator, kind: str, tmp_path: Path) -> None:
    method = replace(CONTRASTIVE, directions=kind, n_steps=25, learning_rate=1e-2)
    game = Contrast(method, eigengan, seed=0)
    before = float(torch.stack([game.loss(step)[0].detach() for step in range(100, 104)]).mean())
    for _ in range(25):
        game.learner.take_step()
    after = float(torch.stack([game.loss(step)[0].detach() for step in range(100, 104)]).mean())
    assert after < before - 0.02
    d = method.fit(eigengan, run=tmp_path)
    assert d.is_straight == (kind == "linear")
    assert torch.allclose(d.importance, d.fields["same"] - d.fields["other"])
    assert (d.importance.diff() <= 0).all()
    loaded = Directions.load(d.save(tmp_path / "d.safetensors"))
    codes = eigengan.sample(2)
    assert torch.equal(loaded.move(codes, 1, by=1.3).latent, d.move(codes, 1, by=1.3).latent)


def test_contrastive_runs_no_layer_behind_the_one_it_sees(eigengan: Generator, monkeypatch) -> None:
    ran = []
    layer = type(eigengan)._layer

    def counted(self, index, state, inputs):
        ran.append(index)
        return layer(self, index, state, inputs)

    monkeypatch.setattr(type(eigengan), "_layer", counted)
    replace(CONTRASTIVE, at=eigengan.layers[1].name, n_steps=1).fit(eigengan)
    assert set(ran) == {0, 1}


def test_nothing_to_contrast_is_refused(eigengan: Generator) -> None:
    with pytest.raises(UserError, match="nothing to contrast"):
        replace(CONTRASTIVE, n_directions=1).fit(eigengan)
    with pytest.raises(UserError, match=r"Did you mean .linear."):
        replace(CONTRASTIVE, directions="lineal").fit(eigengan)  # type: ignore[arg-type]


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_edits_that_change_nothing_are_charged() -> None:
    g, axes = blobs(resolution=16)
    nothing = torch.linalg.svd(axes)[2][5:8]
    losses = []
    for rows in (axes[:3], nothing):
        scene = PAIRS.scene(g, 0)
        frame = LearnedFrame(3, len(scene.free), "unit", 0)
        with torch.no_grad():
            frame.rows.copy_(rows)
        loss, figures = PairGame(PAIRS, scene, StraightMover(scene, frame), 0).loss(0)
        losses.append(float(loss.detach()))
        assert (float(figures[1].detach()) > 0.1) == (rows is not nothing)
    assert losses[1] > losses[0] + 0.5


def test_pairs_are_known(eigengan: Generator, tmp_path: Path) -> None:
    d = replace(PAIRS, n_steps=30, batch=8, learning_rate=3e-3).fit(eigengan, run=tmp_path)
    assert d.is_straight
    assert d.importance.max() > 0.55
    assert torch.allclose(d.vectors[:, 0] @ d.vectors[:, 0].T, torch.eye(3), atol=1e-5)
