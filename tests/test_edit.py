"""Edits: their JSON, and what they do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eigenlens.codes import CODES_FORMAT, save_codes
from eigenlens.directions import Directions, standard_deviation, unit_norm
from eigenlens.edit import Edit, Move, Start, apply, move_codes, start_codes
from eigenlens.errors import UserError
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
    assert Edit.from_json({"version": 1, "generator": "g"}) == Edit("g")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2 came; this one reads version 1"),
        ({"version": None}, "version None"),
        ({"generator": 3}, "names its generator"),
        ({"seed": 3}, "an edit has no 'seed'; it takes codes, generator, moves, version"),
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
        apply(Edit("toy", Start(seed=2), tuple(order)), toy, lambda _: directions) for order in (moves, moves[::-1])
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
        apply(edit, toy, lambda _: directions).latent, directions.move(codes[2], "b", by=1.0).latent, atol=1e-6
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
