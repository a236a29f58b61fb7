"""Moves, coordinates, σ, layer ranges, files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from eigenlens.codes import Codes, Space
from eigenlens.directions import (
    Directions,
    Provenance,
    concatenate,
    fixed_signs,
    row_norm,
    standard_deviation,
    unit_norm,
)
from eigenlens.errors import UnknownName, UserError
from eigenlens.generator import Generator
from toy_spaces import SlotToy


def random_vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return unit_norm(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def of(toy: SlotToy, vectors: torch.Tensor, space: str = "w", **more: object) -> Directions:
    names = tuple(f"d{i}" for i in range(len(vectors)))
    return Directions(vectors, space, names, sigma=standard_deviation(vectors.float(), toy.space(space)), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def toy() -> SlotToy:
    return SlotToy()


# --- σ ----------------------------------------------------------------------------------------------------------------


def test_sigma_is_the_spread_of_coordinates(toy: SlotToy) -> None:
    directions = of(toy, random_vectors(3, 1, 5))
    codes = toy.sample(20_000, seed=1)
    for k in range(3):
        coordinates = directions.coordinates(codes, k)
        assert float(coordinates.std()) == pytest.approx(1, abs=0.02)
        assert float(coordinates.mean()) == pytest.approx(0, abs=0.03)


def test_sigma_of_one_row_repeated_is_that_of_the_row(toy: SlotToy) -> None:
    row = random_vectors(1, 1, 5)
    once = standard_deviation(row, toy.space("w"))
    again = standard_deviation(row.expand(-1, 4, -1), toy.space("w+"))
    some = row.expand(-1, 4, -1).clone()
    some[:, 2:] = 0
    assert torch.allclose(once, again)
    assert torch.allclose(once, standard_deviation(some, toy.space("w+")))
    assert torch.allclose(row_norm(unit_norm(some)), torch.ones(1))


def test_sigma_of_slots_drawn_one_by_one_is_the_spread_of_coordinates() -> None:
    chunks = Space("z", 3, 4)
    codes = Codes(chunks, torch.randn(20_000, 3, 4, generator=torch.Generator().manual_seed(0)))
    for vectors in (random_vectors(1, 3, 4), random_vectors(1, 1, 4)):
        directions = Directions(vectors, "z", ("d",), sigma=standard_deviation(vectors, chunks))
        assert float(directions.coordinates(codes, 0).std()) == pytest.approx(1, abs=0.02)
        assert float(directions.unit_step(chunks, 0).norm()) == pytest.approx(1, abs=1e-5)  # one σ of N(0, I)


def test_fixed_signs_and_unit_norm() -> None:
    vectors = torch.tensor([[[0.5, -2.0]], [[3.0, -1.0]]])
    assert torch.equal(fixed_signs(vectors), torch.tensor([[[-0.5, 2.0]], [[3.0, -1.0]]]))
    with pytest.raises(UserError, match="direction 1 is zero"):
        unit_norm(torch.tensor([[[1.0]], [[0.0]]]))


# --- moving -----------------------------------------------------------------------------------------------------------


def test_by_moves_so_many_sigma(toy: SlotToy) -> None:
    directions = of(toy, random_vectors(2, 1, 5))
    codes = toy.sample(4)
    moved = directions.move(codes, "d1", by=2.5)
    assert torch.allclose(moved.latent - codes.latent, 2.5 * directions.sigma[1] * directions.vectors[1], atol=1e-6)
    assert torch.allclose(directions.coordinates(moved, 1), directions.coordinates(codes, 1) + 2.5, atol=1e-5)


@pytest.mark.parametrize("layers", [None, "1-2", "3"])
@pytest.mark.parametrize("is_broadcast", [True, False])
@pytest.mark.parametrize("rows", [1, 4])
def test_to_reaches_the_coordinate(toy: SlotToy, layers: str | None, is_broadcast: bool, rows: int) -> None:
    codes = toy.sample(3)
    codes = codes.with_latent(codes.latent, toy.space("w+")) if is_broadcast else toy.lift(codes, "w+")
    directions = of(toy, random_vectors(2, rows, 5), "w+" if rows > 1 else "w")
    moved = directions.move(codes, 0, to=-1.5, layers=layers)
    assert torch.allclose(directions.coordinates(moved, 0, layers=layers), torch.full((3,), -1.5), atol=1e-5)


def test_one_slot_that_stands_for_all_has_the_coordinate_of_its_copies(toy: SlotToy) -> None:
    codes = toy.sample(3)
    narrow, wide = codes.with_latent(codes.latent, toy.space("w+")), toy.lift(codes, "w+")
    for directions in (of(toy, random_vectors(1, 1, 5)), of(toy, random_vectors(1, 4, 5), "w+")):
        assert torch.allclose(directions.coordinates(narrow, 0), directions.coordinates(wide, 0), atol=1e-5)
        assert torch.allclose(
            directions.move(narrow, 0, by=2.0).latent.expand(-1, 4, -1), directions.move(wide, 0, by=2.0).latent
        )


def test_a_layer_range_moves_its_slots_alone(toy: SlotToy) -> None:
    codes = toy.lift(toy.sample(2), "w+")
    change = of(toy, random_vectors(1, 1, 5)).move(codes, 0, by=1.0, layers="1,3").latent - codes.latent
    assert change[:, [0, 2]].abs().max() == 0
    assert (change[:, [1, 3]].norm(dim=2) > 0).all()
    with pytest.raises(UserError, match="not in range"):
        of(toy, random_vectors(1, 1, 5)).move(codes, 0, by=1.0, layers="2-9")


def test_by_and_to_exclude_each_other(toy: SlotToy) -> None:
    directions, codes = of(toy, random_vectors(1, 1, 5)), toy.sample(1)
    for given in ({}, {"by": 1.0, "to": 1.0}):
        with pytest.raises(UserError, match="either by="):
            directions.move(codes, 0, **given)


def test_walk_is_a_move_for_each_step(toy: SlotToy) -> None:
    directions, codes = of(toy, random_vectors(1, 1, 5)), toy.sample(3)
    for absolute in (False, True):
        walked = directions.walk(codes, 0, [-1.0, 2.0], absolute=absolute)
        assert len(walked) == 6
        for row in range(3):
            for j, step in enumerate([-1.0, 2.0]):
                one = directions.move(codes[row], 0, **{"to" if absolute else "by": step})
                assert torch.allclose(walked.latent[2 * row + j], one.latent[0], atol=1e-6)


def test_wrong_spaces_are_named(toy: SlotToy) -> None:
    z = Directions(random_vectors(1, 1, 5), "z", ("d",), sigma=torch.ones(1))
    with pytest.raises(UserError, match=r"space 'z' \[1, 5\] came for codes of space 'w' \[1, 5\]"):
        z.move(toy.sample(1), 0, by=1.0)
    with pytest.raises(UserError, match="no way from space 'w\\+' to 'z'"):
        z.host(toy, toy.lift(toy.sample(1), "w+"))


def test_unknown_sigma_and_zero_on_the_layers(toy: SlotToy) -> None:
    bare = Directions(random_vectors(1, 1, 5), "w", ("d",))
    with pytest.raises(UserError, match="σ of 'd' is not known; measure it"):
        bare.move(toy.sample(1), 0, by=1.0)
    vectors = torch.zeros(1, 4, 5)
    vectors[:, 0, 0] = 1
    first = of(toy, vectors, "w+")
    with pytest.raises(UserError, match="zero on the chosen layers"):
        first.move(toy.lift(toy.sample(1), "w+"), 0, to=1.0, layers="2-3")


def test_host_lifts_as_far_as_needed(toy: SlotToy) -> None:
    z = toy.sample(1, space="z")
    assert of(toy, random_vectors(1, 1, 5)).host(toy, z).space.name == "w"
    assert of(toy, random_vectors(1, 1, 5)).host(toy, z, layers="2").space.name == "w+"
    assert of(toy, random_vectors(1, 1, 5), layers=("1-2",)).host(toy, z).space.name == "w+"
    assert of(toy, random_vectors(1, 4, 5), "w+").host(toy, z).space.name == "w+"


# --- units ------------------------------------------------------------------------------------------------------------


def test_raw_strengths_are_multiples_of_the_vector(toy: SlotToy) -> None:
    published = Directions(3 * random_vectors(1, 1, 5), "w", ("d",), unit="raw", limits=torch.tensor([[-2.0, 4.0]]))
    codes = toy.sample(1)
    change = published.move(codes, 0, by=2.0).latent - codes.latent
    assert torch.allclose(change, 2 * published.vectors[:, 0], atol=1e-6)
    in_sigma = published.in_sigma(toy.space("w"))
    per_sigma = published.units_per_sigma(toy.space("w"))
    assert torch.allclose(row_norm(in_sigma.vectors), torch.ones(1))
    assert torch.allclose(
        in_sigma.move(codes, 0, by=1.0).latent, published.move(codes, 0, by=float(per_sigma)).latent, atol=1e-6
    )
    assert torch.allclose(in_sigma.limits * per_sigma, published.limits)
    codes = toy.sample(5000, seed=3)
    assert float(in_sigma.coordinates(codes, 0).std()) == pytest.approx(1, abs=0.04)


def test_in_raw_keeps_the_limits_where_they_are(toy: SlotToy) -> None:
    directions = of(toy, random_vectors(1, 1, 5), limits=torch.tensor([[-2.0, 4.0]]))
    codes, raw = toy.sample(1), directions.in_raw()
    for end in (0, 1):
        at = [float(each.limits[0, end]) for each in (directions, raw)]
        assert torch.allclose(directions.move(codes, 0, by=at[0]).latent, raw.move(codes, 0, by=at[1]).latent)


# --- choosing and changing --------------------------------------------------------------------------------------------


def some(toy: SlotToy) -> Directions:
    return of(
        toy,
        random_vectors(3, 1, 5),
        limits=torch.tensor([[-1.0, 2.0], [-3.0, 4.0], [-5.0, 6.0]]),
        importance=torch.tensor([3.0, 2.0, 1.0]),
        fields={"rank": torch.arange(3.0)},
        provenance=Provenance({"name": "slots-0", "weights": toy.weight_hash}, "made", {"n": 3}, 7, "0.1.0"),
    )


def test_indexing(toy: SlotToy) -> None:
    directions = some(toy)
    assert directions[["d2", 0]].names == ("d2", "d0")
    assert directions[["d2", 0]].fields["rank"].tolist() == [2, 0]
    assert directions[1:].limits.tolist() == [[-3, 4], [-5, 6]]
    assert directions.index("-1") == 2
    with pytest.raises(UnknownName, match=r"unknown direction 'd7'\. Known: d0, d1, d2"):
        directions.index("d7")
    with pytest.raises(UserError, match="numbered 0-2"):
        directions.index(3)
    with pytest.raises(UnknownName):
        directions.index("--1")


def test_the_first_or_last_words_of_one_name_are_enough(toy: SlotToy) -> None:
    directions = some(toy).renamed(["L1D1 hair colour", "L1D2 skin colour", "size 1"])
    assert [directions.index(words) for words in ("L1D2", "hair colour", "L1D1 hair", "size", "1")] == [1, 0, 0, 2, 1]
    with pytest.raises(UserError, match="'colour' may be 'L1D1 hair colour' or 'L1D2 skin colour'; give more"):
        directions.index("colour")
    with pytest.raises(UnknownName):
        directions.index("hair")


def test_flipped_turns_the_limits_too(toy: SlotToy) -> None:
    flipped = some(toy).flipped(["d0"])
    assert torch.equal(flipped.vectors[0], -some(toy).vectors[0])
    assert flipped.limits[0].tolist() == [-2, 1]
    assert torch.equal(flipped.vectors[1:], some(toy).vectors[1:])


def test_names_clash(toy: SlotToy) -> None:
    with pytest.raises(UserError, match="'smile' stands for more than one"):
        some(toy).renamed({"d0": "smile", "d2": "smile"})
    other = some(toy).with_figures(provenance=Provenance({}, "other"))
    both = concatenate([some(toy), other])
    assert both.names == ("made-d0", "made-d1", "made-d2", "other-d0", "other-d1", "other-d2")
    assert both.provenance.method == "made+other"
    with pytest.raises(UserError, match="came twice"):
        concatenate([some(toy), some(toy)])
    with pytest.raises(UserError, match="only one kind"):
        concatenate([some(toy), other.in_raw()])


def test_concatenate_broadcasts_w_beside_w_plus(toy: SlotToy) -> None:
    narrow = of(toy, random_vectors(1, 1, 5)).with_figures(space="w+")
    wide = of(toy, random_vectors(1, 4, 5), "w+").renamed(["wide"])
    both = concatenate([narrow, wide])
    assert both.vectors.shape == (2, 4, 5)
    assert torch.equal(both.vectors[0], narrow.vectors[0].expand(4, -1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": torch.ones(2, 5)}, r"vectors of shape \[2, 5\]"),
        ({"vectors": torch.full((2, 1, 5), math.nan)}, "NaN or infinity"),
        ({"names": ("a",)}, "1 names came for 2"),
        ({"names": ("a", 3)}, "texts that are not empty"),
        ({"sigma": torch.ones(2, 2)}, r"sigma of shape \[2, 2\]"),
        ({"limits": torch.ones(2, 3)}, r"limits of shape \[2, 3\]"),
        ({"fields": {"rank": torch.ones(3)}}, r"rank of shape \[3\]"),
        ({"unit": "metre"}, "unit 'metre' is not known"),
    ],
)
def test_what_is_no_directions(change: dict, message: str) -> None:
    good = {"vectors": torch.ones(2, 1, 5), "space": "w", "names": ("a", "b")}
    with pytest.raises(UserError, match=message):
        Directions(**(good | change))


def test_vectors_of_any_precision_move_codes(toy: SlotToy) -> None:
    for dtype in (torch.float64, torch.float16, torch.float8_e4m3fn):
        directions = of(toy, random_vectors(1, 1, 5).to(dtype))
        assert directions.move(toy.sample(1), 0, by=1.0).latent.dtype == torch.float32


def test_table_is_plain_data(toy: SlotToy) -> None:
    directions = some(toy).with_figures(split_half=torch.tensor([0.9, math.nan, math.nan]))
    directions = directions.with_figures(agreement=torch.tensor([0.5, 0.6, math.nan]))
    rows = json.loads(json.dumps(directions.table(), allow_nan=False))
    assert [row["name"] for row in rows] == ["d0", "d1", "d2"]
    assert [row["quality"] for row in rows] == [pytest.approx(0.9), pytest.approx(0.6), None]
    assert (rows[1]["low"], rows[1]["high"], rows[1]["effect"], rows[1]["layers"]) == (-3, 4, None, "all")


# --- files ------------------------------------------------------------------------------------------------------------


def test_round_trip(toy: SlotToy, tmp_path: Path) -> None:
    directions = some(toy)
    read = Directions.load(directions.save(tmp_path / "d.safetensors"), generator=toy)
    assert torch.equal(read.vectors, directions.vectors)
    assert torch.equal(read.limits, directions.limits)
    assert torch.equal(read.sigma, directions.sigma)
    assert torch.isnan(read.effect).all()
    assert torch.equal(read.fields["rank"], directions.fields["rank"])
    assert (read.names, read.layers, read.unit, read.space) == (directions.names, directions.layers, "sigma", "w")
    assert read.provenance == directions.provenance


def test_another_generator_is_refused(toy: SlotToy, tmp_path: Path) -> None:
    path = some(toy).save(tmp_path / "d.safetensors")
    other = SlotToy(seed=9)
    with pytest.raises(UserError, match=r"made for slots-0 .* not for slots-9 .*foreign=True"):
        Directions.load(path, generator=other)
    assert len(Directions.load(path, generator=other, foreign=True)) == 3
    unknown = some(toy).with_figures(provenance=Provenance())
    assert len(Directions.load(unknown.save(tmp_path / "e.safetensors"), generator=other)) == 3


def test_saving_overwrites_nothing(toy: SlotToy, tmp_path: Path) -> None:
    path = some(toy).save(tmp_path / "d.safetensors")
    with pytest.raises(UserError, match="exists already"):
        some(toy).save(path)
    some(toy)[["d0"]].save(path, force=True)
    assert len(Directions.load(path)) == 1
    with pytest.raises(UserError, match="another suffix"):
        some(toy).save(tmp_path / "d.npz")


def rewritten(path: Path, tensors: dict | None = None, **header: object) -> Path:
    """Return a copy of a file of directions with some of its header or tensors replaced; None leaves them out."""
    with safe_open(path, framework="pt") as file:
        old = json.loads(file.metadata()["eigenlens"])
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    held = {name: value for name, value in (held | (tensors or {})).items() if value is not None}
    new = {name: value for name, value in (old | header).items() if value is not None}
    changed = path.with_name("changed.safetensors")
    save_file(held, changed, metadata={"eigenlens": json.dumps(new)})
    return changed


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({}, {"format": "eigenlens.directions/9"}, "format 'eigenlens.directions/9'; this version reads"),
        ({}, {"names": 5}, "holds a int as 'names' where a list belongs"),
        ({}, {"names": [["a"], "b", "c"]}, "texts that are not empty"),
        ({}, {"names": None}, "lacks 'names'"),
        ({}, {"generator": "me"}, "a str as 'generator'"),
        ({}, {"unit": "metre"}, "unit 'metre'"),
        ({"sigma": None}, {}, "lacks 'sigma'"),
        ({"sigma": torch.ones(7)}, {}, r"sigma of shape \[7\]"),
        ({"vectors": torch.ones(3, 1, 5, dtype=torch.int64)}, {}, "type torch.int64"),
        ({"vectors": torch.full((3, 1, 5), math.inf)}, {}, "NaN or infinity"),
    ],
)
def test_hostile_files(toy: SlotToy, tmp_path: Path, tensors: dict, header: dict, message: str) -> None:
    path = rewritten(some(toy).save(tmp_path / "d.safetensors"), tensors, **header)
    with pytest.raises(UserError, match=message):
        Directions.load(path, generator=toy)


@pytest.mark.parametrize("length", [0, 7, 60, 700])
def test_truncated_files(toy: SlotToy, tmp_path: Path, length: int) -> None:
    path = some(toy).save(tmp_path / "d.safetensors")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="no file of directions"):
        Directions.load(path)
    with pytest.raises(UserError, match="does not exist"):
        Directions.load(tmp_path / "nothing.safetensors")


def test_a_header_nested_without_end_is_refused(toy: SlotToy, tmp_path: Path) -> None:
    path = tmp_path / "deep.safetensors"
    save_file({"vectors": torch.ones(1, 1, 5)}, path, metadata={"eigenlens": "[" * 200_000})
    with pytest.raises(UserError, match="no file of directions"):
        Directions.load(path)


def test_axes_of_an_eigengan_move_their_part_alone(eigengan: Generator) -> None:
    from eigenlens.methods.eigen import Eigen

    directions = Eigen(measured=False).fit(eigengan)
    codes = eigengan.sample(2)
    part = eigengan.space("z").parts[2]
    changed = directions.move(codes, "L2D1", by=1.0).latent - codes.latent
    assert changed[:, 0, part.start].tolist() == pytest.approx([1.0, 1.0])
    changed[:, 0, part.start] = 0
    assert changed.abs().max() == 0
