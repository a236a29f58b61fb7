"""Edits: their JSON, and what they do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eigenlens.codes import CODES_FORMAT, Codes, load_codes, save_codes
from eigenlens.course import find_attribute, region_mask, show, without_change
from eigenlens.directions import Directions, standard_deviation, unit_norm
from eigenlens.edit import Edit, Goal, Move, Start, apply, edit_codes, start_codes
from eigenlens.errors import UserError
from eigenlens.generator import Generator
from eigenlens.method import find_directions
from eigenlens.move import move_codes
from eigenlens.reader import READERS
from eigenlens.readers.pixels import Pixels
from families import TINY
from toy_spaces import SlotToy


@pytest.fixture(scope="module")
def toy() -> SlotToy:
    return SlotToy()


@pytest.fixture(scope="module")
def directions(toy: SlotToy) -> Directions:
    vectors = unit_norm(torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(5)))
    return Directions(vectors, "w", ("a", "b", "c"), sigma=standard_deviation(vectors, toy.space("w")))


WHOLE = {
    "version": 1,
    "generator": "toonfaces",
    "codes": {"space": "w", "seed": 7, "index": 3, "truncation": 0.7, "label": "tabby", "noise": "none"},
    "moves": [
        {"directions": "eigen", "name": "L2D1", "by": 2.0, "layers": "all", "unit": "sigma"},
        {"directions": "faces.safetensors", "name": 4, "to": 1.0},
    ],
}


def test_json_round_trip(tmp_path: Path) -> None:
    edit = Edit.from_json(WHOLE)
    assert edit.moves[1] == Move("faces.safetensors", 4, to=1.0)
    assert edit.codes == Start("w", 7, 3, 0.7, "tabby", "none")
    assert edit.to_json() == WHOLE
    path = tmp_path / "edit.json"
    path.write_text(json.dumps(edit.to_json()))
    assert Edit.load(path) == edit
    path.write_text(json.dumps(edit.to_json()), encoding="utf-8-sig")  # as Notepad and PowerShell save it
    assert Edit.load(path) == edit
    assert Edit.from_json({"version": 1, "generator": "g"}) == Edit("g")
    bounds = {"until": "pixels:brightness>0.625", "keep": ["contrast", "pixels:warmth"], "region": [0, 0.25, 0.5, 1]}
    bound = Edit.from_json(WHOLE | bounds)
    assert bound.until == Goal("pixels:brightness", 0.625)
    assert bound.region == (0, 0.25, 0.5, 1)
    assert bound.to_json() == WHOLE | bounds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2 came; this one reads version 1"),
        ({"version": None}, "version None"),
        ({"generator": 3}, "names its generator"),
        ({"seed": 3}, "an edit has no 'seed'; it takes codes, generator, keep, moves, region, until, version"),
        ({"moves": {}}, "a list of objects"),
        ({"moves": ["smile"]}, "a move is a JSON object; a str came"),
        ({"moves": [{"directions": "d", "name": "a"}]}, "needs either 'by'"),
        ({"moves": [{"directions": "d", "name": "a", "by": 1, "to": 1}]}, "needs either 'by'"),
        ({"moves": [{"name": "a", "by": 1}]}, "a move lacks 'directions'"),
        ({"moves": [{"directions": "d", "name": "a", "by": "2"}]}, "'by' of a move is '2'; float is wanted"),
        ({"moves": [{"directions": "d", "name": "a", "by": True}]}, "'by' of a move is True"),
        ({"moves": [{"directions": "d", "name": "a", "by": float("nan")}]}, "'by' of a move is nan"),
        ({"moves": [{"directions": "d", "name": "a", "to": float("inf")}]}, "'to' of a move is inf"),
        ({"moves": [{"directions": "d", "name": "a", "by": 10**400}]}, "'by' of a move is 1000"),
        ({"moves": [{"directions": "d", "name": "a", "by": 1, "unit": "metre"}]}, "unit 'metre'"),
        ({"moves": [{"directions": "d", "name": "a", "by": 1, "strength": 2}]}, "a move has no 'strength'"),
        ({"moves": [{"directions": "d", "name": None, "by": 1}]}, "'name' of a move is None"),
        ({"codes": {"seed": 1.5}}, "'seed' of codes is 1.5; int is wanted"),
        ({"codes": {"latent": []}}, "codes has no 'latent'"),
        ({"codes": []}, "codes is a JSON object"),
        ({"until": "beard"}, "'beard' is no goal; write ATTRIBUTE>NUMBER"),
        ({"until": ">3"}, "is no goal"),
        ({"until": "beard>nan"}, "is no goal"),
        ({"until": 3}, "'until' of an edit is 3; a text"),
        ({"keep": "pose"}, "'keep' of an edit is 'pose'; a list"),
        ({"keep": [1]}, "'keep' of an edit"),
        ({"region": [0, 1]}, "'region' of an edit"),
        ({"region": [0, 0, True, 1]}, "'region' of an edit"),
        ({"region": [0.5, 0, 0.5, 1]}, "the region 0.5, 0, 0.5, 1 is none"),
        ({"region": [0, 0, 1, float("nan")]}, "the region 0, 0, 1, nan is none"),
    ],
)
def test_what_is_no_edit(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Edit.from_json(WHOLE | change)


@pytest.mark.parametrize("text", ["", "{", "[" * 200_000, "3", '"\\ud800'])
def test_broken_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "edit.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"no edit|JSON object"):
        Edit.load(path)
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(UserError, match="no edit"):
        Edit.load(path)
    with pytest.raises(UserError, match="no edit"):
        Edit.load(tmp_path / "nothing.json")


def test_start_is_the_code_that_sample_gives(toy: SlotToy) -> None:
    start = Start(space="z", seed=3, index=5)
    assert torch.equal(start_codes(toy, start).latent, toy.sample(6, seed=3, space="z").latent[5:])


def test_several_to_are_reached_together_whatever_their_order(toy: SlotToy, directions: Directions) -> None:
    moves = (Move("d", "a", to=1.0), Move("d", "b", by=3.0), Move("d", "c", to=-2.0), Move("d", "b", to=0.5))
    edited = [
        apply(Edit("toy", Start(seed=2), tuple(order)), toy, lambda _: directions).after
        for order in (moves, moves[::-1])
    ]
    for name, wanted in (("a", 1.0), ("b", 0.5), ("c", -2.0)):
        assert float(directions.coordinates(edited[0], name)) == pytest.approx(wanted, abs=1e-4)
    assert torch.allclose(edited[0].latent, edited[1].latent, atol=1e-5)


def test_by_adds_up_and_to_comes_last(toy: SlotToy, directions: Directions) -> None:
    codes = toy.sample(2)
    both = move_codes(toy, codes, (Move("d", "a", to=1.0), Move("d", "a", by=9.0)), lambda _: directions)
    assert torch.allclose(both.latent, directions.move(codes, "a", to=1.0).latent, atol=1e-4)
    twice = move_codes(toy, codes, (Move("d", "a", by=1.0), Move("d", "a", by=2.0)), lambda _: directions)
    assert torch.allclose(twice.latent, directions.move(codes, "a", by=3.0).latent, atol=1e-5)


def test_to_on_several_layer_ranges(toy: SlotToy, directions: Directions) -> None:
    moves = (Move("d", "a", to=2.0, layers="0-1"), Move("d", "a", to=-2.0, layers="2-3"), Move("d", "b", to=1.0))
    codes = move_codes(toy, toy.sample(2), moves, lambda _: directions)
    assert codes.space.name == "w+"
    assert directions.coordinates(codes, "a", layers="0-1").tolist() == pytest.approx([2.0, 2.0], abs=1e-4)
    assert directions.coordinates(codes, "a", layers="2-3").tolist() == pytest.approx([-2.0, -2.0], abs=1e-4)
    assert directions.coordinates(codes, "b").tolist() == pytest.approx([1.0, 1.0], abs=1e-4)


def test_contradicting_coordinates(toy: SlotToy, directions: Directions) -> None:
    moves = (Move("d", "a", to=1.0), Move("d", "a", to=2.0))
    with pytest.raises(UserError, match="coordinates of a, a contradict each other"):
        move_codes(toy, toy.sample(1), moves, lambda _: directions)


def test_a_tiny_sigma_is_no_contradiction(toy: SlotToy, directions: Directions) -> None:
    uneven = directions.with_figures(sigma=directions.sigma * torch.tensor([1.0, 1e-4, 1.0]))
    moves = (Move("d", "a", to=1.0), Move("d", "b", to=2.0))
    codes = move_codes(toy, toy.sample(1), moves, lambda _: uneven)
    assert float(uneven.coordinates(codes, "a")) == pytest.approx(1, abs=1e-3)
    assert float(uneven.coordinates(codes, "b")) == pytest.approx(2, abs=0.1)


def test_units(toy: SlotToy, directions: Directions) -> None:
    raw, codes = directions.in_raw(), toy.sample(1)
    want = codes.latent + 2 * directions.vectors[0]
    for given in (directions, raw):
        moved = move_codes(toy, codes, (Move("d", "a", by=2.0, unit="raw"),), lambda _, given=given: given)
        assert torch.allclose(moved.latent, want, atol=1e-6)
        moved = move_codes(toy, codes, (Move("d", "a", by=2.0, unit="sigma"),), lambda _, given=given: given)
        assert torch.allclose(moved.latent, directions.move(codes, "a", by=2.0).latent, atol=1e-6)


def test_a_move_in_z_may_come_before_one_in_w(toy: SlotToy, directions: Directions) -> None:
    in_z = Directions(unit_norm(torch.ones(1, 1, 5)), "z", ("up",), sigma=torch.ones(1))
    find = {"z": in_z, "w": directions}.__getitem__
    codes = toy.sample(1, space="z")
    moved = move_codes(toy, codes, (Move("z", "up", by=1.0), Move("w", "a", by=1.0)), find)
    assert torch.allclose(moved.latent, directions.move(toy.lift(in_z.move(codes, 0, by=1.0), "w"), "a", by=1.0).latent)


def test_files_of_codes(toy: SlotToy, directions: Directions, tmp_path: Path) -> None:
    codes = toy.sample(3, seed=4)
    path = save_codes(codes, tmp_path / "photo.safetensors", toy)
    edit = Edit("toy", Start(file=str(path), index=2), (Move("d", "b", by=1.0),))
    assert torch.allclose(
        apply(edit, toy, lambda _: directions).after.latent, directions.move(codes[2], "b", by=1.0).latent, atol=1e-6
    )
    with pytest.raises(UserError, match="rows 0-2"):
        start_codes(toy, Start(file=str(path), index=3))
    with pytest.raises(UserError, match="holds codes of slots-0, not of slots-8"):
        start_codes(SlotToy(seed=8), Start(file=str(path)))


@pytest.mark.parametrize(
    "header", ["{}", "[]", "[" * 200_000, json.dumps({"format": CODES_FORMAT}), json.dumps({"format": CODES_FORMAT,
    "generator": 3, "space": "w", "noise_seeds": None, "truncation": 1.0})]
)  # fmt: skip
def test_broken_files_of_codes(toy: SlotToy, tmp_path: Path, header: str) -> None:
    path = tmp_path / "codes.safetensors"
    save_file({"latent": torch.zeros(1, 1, 5)}, path, metadata={"eigenlens": header})
    with pytest.raises(UserError, match="no file of codes"):
        start_codes(toy, Start(file=str(path)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_codes_of_every_precision_are_read_in_float32(
    tiny: Callable[[str], Generator], tmp_path: Path, dtype: torch.dtype
) -> None:
    g = tiny("stylegan2")
    codes = g.sample(2, seed=4, label=1)
    assert codes.labels is not None
    written = Codes(codes.space, codes.latent.to(dtype), codes.labels.to(dtype))
    read = load_codes(save_codes(written, tmp_path / "codes.safetensors", g), g)
    assert torch.allclose(g.render(read), g.render(codes), atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": torch.full((2, 1, 5), math.nan)}, "NaN or infinity"),
        ({"latent": torch.zeros(2, 1, 5, dtype=torch.int32)}, "codes are floating-point"),
        ({"latent": torch.zeros(())}, "no file of codes"),
        ({"labels": torch.ones(2, 7)}, r"labels of shape \[2, 7\]; tiny-stylegan2 takes \[2, 3\]"),
        ({"labels": torch.ones(())}, r"labels of shape \[\]"),
        ({"noise_seeds": ["a", "b"]}, "no file of codes"),
        ({"noise_seeds": 5}, "no file of codes"),
        ({"truncation": math.inf}, "NaN or infinity"),
        ({"space": "q"}, "unknown space"),
    ],
)
def test_damaged_codes_are_refused_by_name(
    tiny: Callable[[str], Generator], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    g = tiny("stylegan2")
    about = {"format": CODES_FORMAT, "generator": g.identity(), "space": "w", "noise_seeds": None, "truncation": 1.0}
    tensors = {"latent": torch.zeros(2, 1, 5), "labels": torch.ones(2, 3)}
    for key, value in change.items():
        (tensors if key in tensors else about)[key] = value
    path = tmp_path / "codes.safetensors"
    save_file(tensors, path, metadata={"eigenlens": json.dumps(about)})
    with pytest.raises(UserError, match=f"{path.name}.*{message}"):
        load_codes(path, g)


# --- bounds -----------------------------------------------------------------------------------------------------------


def brightness(toy: SlotToy, codes: Codes) -> float:
    return float(Pixels()(toy(codes))[0, 0])


def test_until_goes_just_far_enough(toy: SlotToy, directions: Directions) -> None:
    codes = toy.sample(1)
    low, high = brightness(toy, codes), brightness(toy, directions.move(codes, "a", by=4.0))
    sign = ">" if high > low else "<"
    goal = low + 0.3 * (high - low)
    moves = (Move("d", "a", by=4.0),)
    edit = Edit("toy", moves=moves, until=Goal.parse(f"brightness{sign}{goal}"))
    done = edit_codes(toy, codes, edit, lambda _: directions)
    assert done.share == pytest.approx(0.3, abs=1 / 1000)  # the toy is affine, and so is its brightness
    assert done.is_met
    assert done.score == pytest.approx(goal, abs=abs(high - low) / 1000)
    assert torch.allclose(done.after.latent, directions.move(codes, "a", by=4.0 * done.share).latent, atol=1e-5)
    other = Edit("toy", moves=moves, until=Goal.parse(f"brightness{'<' if sign == '>' else '>'}{goal}"))
    already = edit_codes(toy, codes, other, lambda _: directions)
    assert (already.share, already.is_met) == (0.0, True)
    assert torch.equal(already.images(toy)[0], already.images(toy)[1])
    too_far = edit_codes(toy, codes, Edit("toy", moves=moves, until=Goal("brightness", 9.0)), lambda _: directions)
    assert (too_far.share, too_far.is_met) == (1.0, False)
    assert too_far.score == pytest.approx(high, abs=1e-6)


def test_until_shares_out_moves_to_coordinates(toy: SlotToy, directions: Directions) -> None:
    codes = toy.sample(1, seed=3)
    moves = (Move("d", "b", by=2.0), Move("d", "a", to=3.0))
    whole = edit_codes(toy, codes, Edit("toy", moves=moves), lambda _: directions)
    assert torch.allclose(whole.after.latent, move_codes(toy, codes, moves, lambda _: directions).latent, atol=1e-6)
    halfway = brightness(toy, codes) / 2 + brightness(toy, whole.after) / 2
    goal = Goal("brightness", halfway, brightness(toy, whole.after) > halfway)
    half = edit_codes(toy, codes, Edit("toy", moves=moves, until=goal), lambda _: directions)
    assert half.share == pytest.approx(0.5, abs=1 / 1000)
    middle = torch.lerp(codes.latent, whole.after.latent, half.share)
    assert torch.allclose(half.after.latent, middle, atol=1e-5)


def test_keep_takes_out_what_a_reader_sees(toy: SlotToy, directions: Directions) -> None:
    codes = toy.sample(1)
    edit = Edit("toy", moves=(Move("d", "a", by=3.0),), keep=("brightness", "pixels:warmth"))
    done = edit_codes(toy, codes, edit, lambda _: directions)
    free = Pixels()(toy(directions.move(codes, "a", by=3.0)))[0, [0, 2]] - Pixels()(toy(codes))[0, [0, 2]]
    assert free.abs().min() > 1e-4
    for was, now in done.kept.values():
        assert now == pytest.approx(was, abs=1e-6)
    assert done.how == "gradients"
    bent = done.after.latent - codes.latent
    assert bent.norm() > 0.1 * (3.0 * directions.sigma[0])


def test_corrections_are_the_likeliest(toy: SlotToy) -> None:
    covariance = toy.space("w").covariance
    random = torch.Generator().manual_seed(1)
    step, slopes = torch.randn(1, 5, generator=random), torch.randn(2, 1, 5, generator=random)
    bent = without_change(step, slopes, covariance, torch.ones(1, 5))
    assert (slopes * bent).sum((1, 2)).abs().max() < 1e-5
    correction = (bent - step)[0].double()
    null = torch.linalg.svd(slopes[:, 0].double())[2][2:]  # other corrections that do the same differ by these
    assert (null @ torch.linalg.solve(covariance.double(), correction)).abs().max() < 1e-4
    mask = torch.tensor([[1.0, 1, 1, 0, 0]])
    assert torch.equal(without_change(step, slopes, covariance, mask)[0, 3:], step[0, 3:])
    twice = without_change(step, slopes[[0, 0]], covariance, torch.ones(1, 5))  # one score, asked for twice
    assert torch.allclose(twice, without_change(step, slopes[:1], covariance, torch.ones(1, 5)), atol=1e-5)


def test_keep_corrects_on_the_layers_that_the_moves_name(toy: SlotToy, directions: Directions) -> None:
    codes = toy.lift(toy.sample(1), "w+")
    edit = Edit("toy", moves=(Move("d", "a", by=2.0, layers="1-2"),), keep=("brightness",))
    done = edit_codes(toy, codes, edit, lambda _: directions)
    changed = (done.after.latent - codes.latent).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [False, True, True, False]
    assert done.kept["brightness"][1] == pytest.approx(done.kept["brightness"][0], abs=1e-6)


class Blind:
    """Reads brightness, but lets no gradient through."""

    name = "blind"
    attributes = ("blind_brightness",)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(Pixels()(images)[:, :1].detach().numpy().copy())


def test_keep_without_gradients(toy: SlotToy, directions: Directions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS.table, "blind", f"{__name__}:Blind")
    codes = toy.sample(1)
    moves = (Move("d", "a", by=3.0),)
    seen = edit_codes(toy, codes, Edit("toy", moves=moves, keep=("brightness",)), lambda _: directions)
    blind = edit_codes(toy, codes, Edit("toy", moves=moves, keep=("blind_brightness",)), lambda _: directions)
    assert (seen.how, blind.how) == ("gradients", "central differences")
    assert torch.allclose(seen.after.latent, blind.after.latent, atol=1e-3)


def test_keep_on_a_network(eigengan: Generator) -> None:
    axes = find_directions("eigen", eigengan, measured=False)
    codes = eigengan.sample(1, seed=4)
    moves = (Move("eigen", "L1D1", by=2.0), Move("eigen", "L2D2", by=-2.0))
    free = edit_codes(eigengan, codes, Edit("g", moves=moves), lambda _: axes)
    kept = edit_codes(eigengan, codes, Edit("g", moves=moves, keep=("brightness",)), lambda _: axes)
    was, now = kept.kept["brightness"]
    drift = abs(float(Pixels()(free.images(eigengan)[1:])[0, 0]) - was)
    assert abs(now - was) < 0.01 * drift


@pytest.mark.parametrize("family", list(TINY))
def test_a_region_keeps_every_pixel_outside(family: str, tiny: Callable[[str], Generator]) -> None:
    g = tiny(family)
    label = g.label_names[0] if g.label_names else None
    before, after = (g.sample(2, seed=seed, label=label) for seed in (0, 1))
    with torch.inference_mode():
        first, second = g(before), g(after)
        assert torch.allclose(g.blend(before, after, torch.ones(4, 4)), second, atol=1e-5)
        assert torch.equal(g.blend(before, after, torch.zeros(4, 4)), first)
        mixed = show(g, before, after, (0.0, 0.25, 0.5, 1.0))
    side = g.resolution
    outside = torch.ones(side, side, dtype=torch.bool)
    outside[side // 4 :, : side // 2] = False
    assert torch.equal(mixed[:, :, outside], first[:, :, outside])
    corner = (slice(None), slice(None), slice(3 * side // 4, None), slice(0, side // 4))
    assert (mixed - second)[corner].square().mean() < (mixed - first)[corner].square().mean()  # it shows the other


def test_region_mask() -> None:
    mask = region_mask((0.25, 0.0, 0.75, 1.0), 8)
    assert torch.equal(mask[:, :2], torch.zeros(8, 2))
    assert torch.equal(mask[:, 6:], torch.zeros(8, 2))
    assert torch.equal(mask[1:-1, 3:5], torch.ones(6, 2))
    assert mask.amax() == 1
    assert region_mask((0.0, 0.0, 1.0, 1.0), 64)[32, 32] == 1


def test_until_and_keep_look_through_the_region(toy: SlotToy, directions: Directions) -> None:
    codes = toy.sample(1)
    moves, region = (Move("d", "a", by=4.0),), (0.0, 0.0, 0.5, 1.0)
    whole = edit_codes(toy, codes, Edit("toy", moves=moves, region=region), lambda _: directions)
    before, after = (float(Pixels()(image[None])[0, 0]) for image in whole.images(toy))
    goal = Goal("brightness", before / 2 + after / 2, after > before)
    edit = Edit("toy", moves=moves, region=region, until=goal)
    done = edit_codes(toy, codes, edit, lambda _: directions)
    assert done.share == pytest.approx(0.5, abs=1 / 1000)
    kept = edit_codes(toy, codes, Edit("toy", moves=moves, region=region, keep=("brightness",)), lambda _: directions)
    assert kept.kept["brightness"][1] == pytest.approx(before, abs=1e-6)


def test_attributes_are_found_by_name() -> None:
    reader, column = find_attribute("pixels:warmth")
    assert reader.attributes[column] == "warmth"
    assert find_attribute("warmth")[1] == column
    with pytest.raises(UserError, match=r"unknown attribute 'pixels:warmt'. Did you mean 'pixels:warmth'"):
        find_attribute("pixels:warmt")
    with pytest.raises(UserError, match=r"unknown reader 'pixel'. Did you mean 'pixels'"):
        find_attribute("pixel:warmth")


def test_readers_that_share_a_name_must_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS.table, "twin", "eigenlens.readers.pixels:Pixels")
    with pytest.raises(UserError, match="pixels, twin all read 'warmth'; say which: pixels:warmth"):
        find_attribute("warmth")


def test_readers_decide_over_one_code(toy: SlotToy, directions: Directions) -> None:
    with pytest.raises(UserError, match="2 codes came; a reader decides over one"):
        edit_codes(toy, toy.sample(2), Edit("toy", keep=("warmth",)), lambda _: directions)
