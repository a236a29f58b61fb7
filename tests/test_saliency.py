"""Masks for free: planted backgrounds, masks by hand, and a segmenter that learns a toy's object."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eigenlens.cli import main
from eigenlens.codes import Space
from eigenlens.directions import Directions
from eigenlens.errors import UserError
from eigenlens.images import read_recipe
from eigenlens.saliency import (
    MaskRule,
    Segmenter,
    SegmenterConfig,
    UNet,
    background_changes,
    border_of,
    centre_of,
    choose_background,
    difference_mask,
    fill_holes,
    intensity_mask,
    mask_sheet,
    pure_background,
    sample_masks,
    score_masks,
)
from eigenlens.training import segmenter as training
from eigenlens.training.segmenter import SegmenterTraining, Training, draw_ground, make_pool, train_segmenter
from toys import Toy

SIDE = 32


def disc(x: torch.Tensor, radius: float) -> torch.Tensor:
    """Return discs whose centres lie at x [n] of the width: bool [n, SIDE, SIDE]."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return (columns - SIDE * x[:, None, None]) ** 2 + (rows - SIDE / 2) ** 2 < radius**2


def scene() -> Toy:
    """Return a toy whose z is (shade of the ground, second shade, place of a disc, shade of the disc)."""

    def draw(latent: torch.Tensor) -> torch.Tensor:
        z = latent[:, 0]
        inside = disc(0.5 + 0.05 * z[:, 2].clamp(-2, 2), 9.0)[:, None]
        red, green = (torch.tanh(0.4 * z[:, k])[:, None, None, None] for k in (0, 1))
        ground = torch.cat([red, green, -red], dim=1).expand(-1, -1, SIDE, SIDE)
        thing = (-0.4 + 0.2 * torch.tanh(z[:, 3]))[:, None, None, None].expand(-1, 3, SIDE, SIDE)
        return torch.where(inside, thing, ground)

    return Toy(draw, Space("z", 1, 4))


def true_masks(toy: Toy, n: int, start: int = 0, seed: int = 0) -> torch.Tensor:
    return disc(0.5 + 0.05 * toy.sample(n, seed=seed, start=start).latent[:, 0, 2].clamp(-2, 2), 9.0)


def axes() -> Directions:
    return Directions(torch.eye(4)[:, None], "z", ("red", "green", "place", "thing"), layers=("all",) * 4)


# --- directions -------------------------------------------------------------------------------------------------------


def test_background_directions_are_those_that_were_planted() -> None:
    changes = background_changes(scene(), axes(), n=6)
    assert changes[0, 0] > 0.3
    assert changes[0, 1] < 0.01
    assert changes[3, 0] == 0
    assert changes[3, 1] > 0.1
    assert sorted(choose_background(changes)) == [0, 1]


def test_no_background_direction_is_told() -> None:
    with pytest.raises(UserError, match="try those of another"):
        choose_background(torch.tensor([[0.1, 0.2], [0.0, 0.0]]))
    with pytest.raises(UserError, match="none of these"):
        choose_background(torch.empty(0, 2))


def test_border_and_centre_keep_apart() -> None:
    border, centre = border_of(64, 48), centre_of(64, 48)
    assert not (border & centre).any()
    assert border[0].all()
    assert not border[8:-8, 8:-8].any()
    assert centre[32, 24]


def test_combined_directions_leave_the_object_alone() -> None:
    toy = scene()
    rows = torch.tensor([[1.0, 0.0, 0.0, -0.8], [0.0, 1.0, 0.1, 0.9], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    rows = torch.nn.functional.normalize(rows)[:, None]
    mixed = Directions(rows, "z", ("red and thing", "green and thing", "thing", "place"), layers=("all",) * 4)
    chosen = choose_background(background_changes(toy, mixed, n=6))
    assert sorted(chosen) == [0, 1]
    pure = pure_background(toy, mixed, chosen, MaskRule(smooth=1), n=8, strength=0.5)  # tanh bends further out
    assert pure.names == ("background-1", "background-2")
    assert pure.unit == "sigma"
    assert pure.vectors[:, 0, 2:].norm(dim=1).max() < 0.2 * rows[:2, 0, 2:].norm(dim=1).min()
    assert torch.linalg.matrix_rank(pure.vectors[:, 0, :2], tol=0.5) == 2
    of_mixed, of_pure = (background_changes(toy, each, n=6, strength=0.5) for each in (mixed[chosen], pure))
    assert of_pure[:, 1].max() < 0.2 * of_mixed[:, 1].min()


def test_nothing_is_combined_where_no_mask_is_likely() -> None:
    same = pure_background(scene(), axes(), [0], MaskRule(smooth=1, least=0.3, most=0.9), n=4)
    assert same.names == ("red",)


# --- masks ------------------------------------------------------------------------------------------------------------


def test_the_difference_rule_takes_what_changes_little_along_some_direction() -> None:
    changes = torch.full((1, 2, 20, 20), 0.5)
    changes[0, 0, 5:10, 5:15] = 0.05  # stands still along the first
    changes[0, 1, 10:15, 5:15] = 0.2  # along the second, by less than the threshold
    changes[0, 1, 15:18, 5:15] = 0.45  # changes nearly as the border does
    wanted = torch.zeros(20, 20, dtype=torch.bool)
    wanted[5:15, 5:15] = True
    assert torch.equal(difference_mask(changes, 0.7)[0], wanted)
    assert torch.equal(difference_mask(10 * changes, 0.7)[0], wanted)  # shares, not amounts


def test_smoothing_forgives_single_pixels() -> None:
    changes = torch.full((1, 1, 20, 20), 0.5)
    changes[0, 0, 10, 10] = 0.0
    assert difference_mask(changes, 0.7).sum() == 1
    assert difference_mask(changes, 0.7, smooth=3).sum() == 0


def test_the_intensity_rule_takes_what_stays_dark() -> None:
    moved = torch.ones(1, 1, 3, 8, 8)
    moved[0, 0, :, 2:6, 2:6] = torch.tensor([1.0, 0.9, 0.8])[:, None, None]  # mean 0.9
    moved[0, 0, 0, 7, 7] = 0.97  # mean 0.99
    mask = intensity_mask(moved, 0.95)[0]
    assert mask.sum() == 16
    assert mask[2:6, 2:6].all()


def test_holes_are_filled_and_bays_are_not() -> None:
    ring = torch.zeros(2, 9, 9, dtype=torch.bool)
    ring[:, 2:7, 2:7] = True
    ring[:, 4, 4] = False
    ring[1, 4, 4:] = False  # a way out
    filled = fill_holes(ring)
    assert filled[0].sum() == 25
    assert torch.equal(filled[1], ring[1])


@pytest.mark.parametrize(
    "rule", [MaskRule(smooth=1), MaskRule("intensity", 12.0, 0.2, least=0.1, most=0.6)], ids=["difference", "intensity"]
)
def test_masks_of_samples_are_those_of_the_scene(rule: MaskRule) -> None:
    toy, directions = scene(), axes()[[0, 1]] if rule.rule == "difference" else axes()[[1]]
    made = sample_masks(toy, directions, rule, 5, seed=3, start=2)
    truth = true_masks(toy, 5, start=2, seed=3)
    if rule.rule == "difference":
        assert torch.equal(made.masks, truth)
        assert made.images.shape == (5, 5, 3, SIDE, SIDE)
    else:
        assert made.images.shape == (5, 3, 3, SIDE, SIDE)
    assert made.kept.all()
    assert torch.equal(made.images[:, 0], toy(toy.sample(5, seed=3, start=2)).clamp(-1, 1))


def test_what_is_in_doubt_is_not_known() -> None:
    toy = scene()
    shy = Toy(lambda latent: _with_half_change(toy, latent), toy.spaces["z"])
    made = sample_masks(shy, axes()[[0]], MaskRule(smooth=1, threshold=0.6, doubt=0.2), 3)
    assert torch.equal(made.masks, true_masks(toy, 3))
    assert not made.known[:, 26:].any()
    assert made.known[:, :26].all()


def _with_half_change(toy: Toy, latent: torch.Tensor) -> torch.Tensor:
    """Return the scene with a foot that changes half as much as the ground."""
    images = toy.function(latent)
    images[:, :, 26:] /= 2
    return images


def test_relabelling_finds_what_labels_miss(trained: Path) -> None:
    pool = make_pool(scene(), axes()[[0, 1]], MaskRule(smooth=1), SMALL, SIDE)
    again = Training(SMALL, pool)
    again.network.load_state_dict(Segmenter.load(trained).network.state_dict())
    spoilt = pool.masks.clone()
    spoilt[0] = False
    again.pool = dataclasses.replace(pool, masks=spoilt)
    again.relabel()
    missed, left = ((masks[0] != pool.masks[0]).float().mean() for masks in (spoilt, again.pool.masks))
    assert left < missed / 6
    assert again.pool.known.float().mean() > 0.5


def test_unlikely_areas_are_left_out() -> None:
    made = sample_masks(scene(), axes()[[0]], MaskRule(smooth=1, least=0.3, most=0.9), 3)
    assert not made.kept.any()  # the disc takes a quarter
    with pytest.raises(UserError, match="not one of 3 samples has a mask that takes 30% to 90%"):
        make_pool(scene(), axes()[[0]], MaskRule(smooth=1, least=0.3, most=0.9), SegmenterTraining(n_samples=3), 32)


def test_wrong_rules_are_told() -> None:
    with pytest.raises(UserError, match="rule 'colour'"):
        MaskRule("colour")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="least < most"):
        MaskRule(least=0.5, most=0.2)
    with pytest.raises(UserError, match="doubt -1"):
        MaskRule(doubt=-1)
    with pytest.raises(UserError, match="odd number"):
        MaskRule(smooth=4)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_perfect_useless_and_half_masks_score_so() -> None:
    truth = np.zeros((4, 4), bool)
    truth[:2] = True
    perfect = score_masks([truth.astype(np.float32)], [truth])
    assert (perfect.max_f_beta, perfect.iou, perfect.accuracy, perfect.mae) == (1.0, 1.0, 1.0, 0.0)
    wrong = score_masks([1.0 - truth], [truth])
    assert (wrong.max_f_beta, wrong.iou, wrong.accuracy, wrong.mae) == (0.0, 0.0, 0.0, 1.0)
    whole = score_masks([np.ones((4, 4))], [truth])
    assert (whole.iou, whole.accuracy, whole.mae) == (0.5, 0.5, 0.5)
    assert whole.max_f_beta == pytest.approx(1.3 * 0.5 * 1.0 / (0.3 * 0.5 + 1.0))


def test_f_is_averaged_over_images_before_the_threshold_is_chosen() -> None:
    truth = np.array([[True, False]])
    first, second = np.array([[0.9, 0.6]]), np.array([[0.3, 0.1]])  # no threshold serves both
    both = score_masks([first, second], [truth, truth]).max_f_beta
    alone = 1.3 * 0.5 / (0.3 * 0.5 + 1)  # both pixels chosen
    assert score_masks([first], [truth]).max_f_beta == score_masks([second], [truth]).max_f_beta == 1.0
    assert both == pytest.approx((alone + 1.0) / 2)


def test_empty_truths_and_wrong_shapes() -> None:
    none = np.zeros((3, 3), bool)
    assert score_masks([none], [none]) == dataclasses.replace(score_masks([~none], [~none]))
    with pytest.raises(UserError, match="shape"):
        score_masks([np.zeros((3, 3))], [np.zeros((3, 4), bool)])
    with pytest.raises(UserError, match="at least one"):
        score_masks([], [])


# --- the segmenter ----------------------------------------------------------------------------------------------------

SMALL = SegmenterTraining(
    kimg=1.2, n_samples=24, batch=12, resolution=SIDE, width=4, learning_rate=1e-2, save_seconds=1e9, tick_kimg=0.6
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a segmenter that learnt the scene."""
    out = tmp_path_factory.mktemp("saliency") / "segmenter.safetensors"
    return train_segmenter(scene(), axes()[[0, 1]], SMALL, out=out, rule=MaskRule(smooth=1), precision="fp32")


def as_pictures(n: int, start: int) -> list[Image.Image]:
    toy = scene()
    images = toy(toy.sample(n, start=start))
    return [Image.fromarray(((image + 1) * 127.5).byte().permute(1, 2, 0).numpy()) for image in images]


def test_info_tells_what_a_segmenter_is(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(trained), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["segmenter"] == f"masks pictures at {Segmenter.load(trained).config.resolution} px"
    assert told["rule"]["rule"] == "difference"
    assert len(told["directions"].split(", ")) == 2
    assert main(["info", str(trained)]) == 0


def test_a_segmenter_learns_the_object_from_no_mask_of_ours(trained: Path) -> None:
    network = Segmenter.load(trained)
    likely = [network(picture) for picture in as_pictures(8, start=500)]
    scores = score_masks(likely, list(true_masks(scene(), 8, start=500).numpy()))
    assert scores.iou > 0.85
    assert network.about["directions"]["names"] == ["red", "green"]
    assert network.about["n_masks"] == 24


def test_pictures_of_any_size_get_masks_of_theirs(trained: Path) -> None:
    network = Segmenter.load(trained)
    picture = as_pictures(1, start=500)[0]
    usual = network(picture)
    for size in ((96, 96), (101, 67), (9, 40)):
        mask = network(picture.resize(size))
        assert mask.shape == size[::-1]
        assert 0 <= mask.min() <= mask.max() <= 1
    large = network(picture.resize((96, 96)))
    assert ((large[1::3, 1::3] > 0.5) == (usual > 0.5)).mean() > 0.95


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = dataclasses.replace(SMALL, kimg=0.12)
    args = (scene(), axes()[[0, 1]], short)
    whole = Segmenter.load(train_segmenter(*args, out=tmp_path / "whole.safetensors", precision="fp32"))
    out = tmp_path / "parts.safetensors"
    step, taken = Training.take_step, []

    def interrupted(self: Training) -> float:
        taken.append(self.step)
        if len(taken) == 4:
            training.runtime.signal.raise_signal(training.runtime.signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Training, "take_step", interrupted)
    train_segmenter(*args, out=out, precision="fp32")
    assert taken == [0, 1, 2, 3]
    train_segmenter(*args, out=out, precision="fp32")
    assert taken[4:] == list(range(4, 10))
    for name, value in Segmenter.load(out).network.state_dict().items():
        assert torch.equal(value, whole.network.state_dict()[name]), name


def test_a_state_of_other_settings_is_refused_and_nothing_is_lost(trained: Path) -> None:
    before, rule = trained.read_bytes(), MaskRule(smooth=1)
    with pytest.raises(UserError, match="another training \\(training differ"):
        train_segmenter(scene(), axes()[[0, 1]], dataclasses.replace(SMALL, width=5), out=trained, rule=rule)
    with pytest.raises(UserError, match="directions, rule differ"):
        train_segmenter(scene(), axes()[[0]], SMALL, out=trained)
    with pytest.raises(UserError, match="exists already"):
        train_segmenter(scene(), axes()[[0]], SMALL, out=trained, rule=rule, resume=False)
    assert trained.read_bytes() == before


def test_batches_depend_on_seed_and_step_alone() -> None:
    pool = make_pool(scene(), axes()[[0]], MaskRule(smooth=1), SMALL, SIDE)
    first, second = Training(SMALL, pool), Training(SMALL, pool)
    second.take_step()
    batch = first.draw_batch()
    second.step = 0
    assert all(torch.equal(*pair) for pair in zip(batch, second.draw_batch(), strict=True))
    second.step = 1
    assert not torch.equal(batch[0], second.draw_batch()[0])


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Training, "take_step", lambda self: float("nan"))
    with pytest.raises(UserError, match="the loss became NaN in step 0"):
        train_segmenter(scene(), axes()[[0]], SMALL, out=tmp_path / "s.safetensors", rule=MaskRule(smooth=1))
    assert not list(tmp_path.iterdir())


def test_drawn_grounds_differ_and_keep_the_range() -> None:
    chance = np.random.default_rng(0)
    grounds = np.stack([draw_ground(16, chance) for _ in range(40)])
    assert np.abs(grounds).max() <= 1
    assert grounds.std((0, 2, 3)).min() > 0.3
    assert (grounds.std((1, 2, 3)) > 0.01).all()


def test_files_that_are_no_segmenter_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="eigenlens saliency train"):
        Segmenter.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(UserError, match="no segmenter"):
        Segmenter.load(tmp_path / "text.safetensors")
    axes().save(tmp_path / "axes.safetensors")
    with pytest.raises(UserError, match=r"format 'eigenlens\.segmenter/1'"):
        Segmenter.load(tmp_path / "axes.safetensors")
    with pytest.raises(UserError, match="multiple of 8"):
        SegmenterConfig(20)
    path = Segmenter(UNet(SegmenterConfig(16, 2)), SegmenterConfig(16, 2)).save(tmp_path / "fresh.safetensors")
    assert Segmenter.load(path).config == SegmenterConfig(16, 2)


# --- the command ------------------------------------------------------------------------------------------------------


def test_masks_from_a_generator_to_a_score(
    eigengan: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(eigengan.save(tmp_path / "model"))  # type: ignore[attr-defined]
    out = str(tmp_path / "m.safetensors")
    small = ["--kimg", "0.02", "--batch", "4", "--n-samples", "6", "--width", "2", "--resolution", "16"]
    train = ["saliency", "train", model, "--out", out, "--background", "L1D1", "--least", "0", "--most", "1", *small]
    assert main([*train, "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").is_file()

    photos, masks = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    for name, size in (("a.png", (40, 30)), ("b.jpg", (20, 33))):
        Image.new("RGB", size, "red").save(photos / name)
    assert main(["saliency", "predict", out, str(photos), "--out", str(masks)]) == 0
    assert sorted(path.name for path in masks.iterdir()) == ["a.mask.png", "b.mask.png"]
    with Image.open(masks / "b.mask.png") as mask:
        assert mask.size == (20, 33)
        assert set(np.unique(np.asarray(mask.convert("L")))) <= {0, 255}
    assert main(["saliency", "predict", out, str(photos), "--out", str(masks)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["saliency", "predict", out, str(photos)]) == 0  # beside them; masks are no photos
    assert main(["saliency", "predict", out, str(photos), "--force"]) == 0
    assert len(list(photos.iterdir())) == 4
    beside = tmp_path / "beside.json"
    assert main(["saliency", "score", str(photos), str(photos), "--out", str(beside)]) == 0
    assert json.loads(beside.read_text())["n"] == 2  # the pictures are no masks of themselves
    (tmp_path / "twice").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "twice" / name)
    assert main(["saliency", "score", str(masks), str(tmp_path / "twice")]) == 2
    assert "have one name" in capsys.readouterr().err
    sheet = read_recipe(tmp_path / "sheet.png")
    assert sheet is not None
    for flag in ("--background L1D1", "--width 2", "--least 0.0", "--kimg 0.02"):
        assert flag in sheet["command"]

    figures = tmp_path / "figures.json"
    assert main(["saliency", "score", str(masks), str(masks), "--out", str(figures)]) == 0
    assert json.loads(figures.read_text()) == {"max_f_beta": 1.0, "iou": 1.0, "accuracy": 1.0, "mae": 0.0, "n": 2}
    assert main(["saliency", "score", str(photos), str(masks), "--segmenter", out]) == 0
    capsys.readouterr()
    assert main(["saliency", "score", str(photos), str(tmp_path / "model")]) == 2
    assert "no pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["saliency"], "eigenlens saliency --help"),
        (["saliency", "trian"], "train"),
        (["saliency", "train", "toonfacs"], "Did you mean 'toonfaces'"),
        (["saliency", "predict", "none.safetensors", "a.png"], "saliency train"),
    ],
)
def test_mistakes_at_the_shell(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert says in capsys.readouterr().err


def test_the_sheet_darkens_the_background() -> None:
    image = torch.full((3, 64, 64), 0.5)
    mask = np.zeros((64, 64), bool)
    mask[:, 32:] = True
    sheet = np.asarray(mask_sheet([image], [mask]))
    assert sheet[80, 10].max() < 60
    assert sheet[80, 60].min() > 180
