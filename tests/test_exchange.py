"""Files of other tools: what is read from them, what is refused, and what comes back after writing."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from eigenlens import presets
from eigenlens.codes import Space
from eigenlens.directions import Directions, Provenance, concatenate, standard_deviation, unit_norm
from eigenlens.errors import UnknownName, Unsupported, UserError
from eigenlens.exchange import (
    FOREIGN_DISTANCE,
    ForeignDirections,
    distance_of_means,
    export_directions,
    import_directions,
)
from eigenlens.move import Move, move_codes
from toy_spaces import FunctionToy, SlotToy

DIM = 6


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def toy() -> SlotToy:
    return SlotToy(slots=4, dim=DIM)


@pytest.fixture(scope="module")
def stylegan() -> SlotToy:
    """Give a toy of the size of a StyleGAN2 of 1024 px."""
    return SlotToy(slots=18, dim=512, scale=0.001)


@pytest.fixture
def components(toy: SlotToy) -> Directions:
    vectors = unit_norm(normal(3, 1, DIM))
    return Directions(
        vectors,
        "w",
        ("age", "smile", "pose"),
        ("all", "1-2", "3"),
        sigma=standard_deviation(vectors, toy.space("w")) * 1.01,  # as measured on samples
        importance=torch.tensor([0.5, 0.3, 0.1]),
        provenance=Provenance(toy.identity(), "ganspace"),
    )


# --- plain arrays -----------------------------------------------------------------------------------------------------


def write(path: Path, value: torch.Tensor | np.ndarray) -> Path:
    if path.suffix == ".pt":
        torch.save(torch.as_tensor(value), path)
    elif path.suffix == ".npy":
        np.save(path, np.asarray(value))
    else:
        np.savez_compressed(path, anything=np.asarray(value))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_plain_arrays(toy: SlotToy, tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    vectors = (3 * normal(2, DIM)).to(dtype)
    read = import_directions(write(tmp_path / f"smile{suffix}", vectors), toy)
    assert (read.space, read.unit, read.names) == ("w", "raw", ("smile-0", "smile-1"))
    assert torch.equal(read.vectors, vectors.float()[:, None])  # published lengths stay
    assert read.provenance.arguments["file"] == f"smile{suffix}"
    codes = toy.sample(1)
    assert torch.allclose(read.move(codes, 0, by=2.0).latent, codes.latent + 2 * vectors[0].float(), atol=1e-5)


def test_order_of_axes_is_the_files(toy: SlotToy, tmp_path: Path) -> None:
    vectors = np.asfortranarray(normal(2, DIM).numpy()).astype(">f4")
    np.save(tmp_path / "a.npy", vectors)
    read = import_directions(tmp_path / "a.npy", toy, names=("x", "y"))
    assert read.names == ("x", "y")
    assert np.array_equal(read.vectors[:, 0].numpy(), vectors)


def test_rows_that_are_the_same_are_one_direction_of_w(toy: SlotToy, tmp_path: Path) -> None:
    same = normal(1, 1, DIM).expand(-1, 4, -1)
    read = import_directions(write(tmp_path / "pose.pt", same), toy)
    assert (read.space, list(read.vectors.shape), read.names) == ("w", [1, 1, DIM], ("pose",))
    differ = normal(2, 4, DIM)
    read = import_directions(write(tmp_path / "walk.npy", differ), toy)
    assert (read.space, list(read.vectors.shape)) == ("w+", [2, 4, DIM])


def test_an_array_that_could_be_either_is_asked_about(toy: SlotToy, tmp_path: Path) -> None:
    path = write(tmp_path / "rgb.npy", normal(4, DIM))
    with pytest.raises(UserError, match=r"may be 4 directions of 'w' or one of 'w\+' with a row for each slot"):
        import_directions(path, toy)
    assert import_directions(path, toy, space="w").vectors.shape == (4, 1, DIM)
    assert import_directions(path, toy, space="w+").vectors.shape == (1, 4, DIM)


def test_boundaries_say_their_space_in_their_name(toy: SlotToy, tmp_path: Path) -> None:
    assert import_directions(write(tmp_path / "sg_age_boundary.npy", normal(1, DIM)), toy).space == "z"
    assert import_directions(write(tmp_path / "sg_age_w_boundary.npy", normal(1, DIM)), toy).space == "w"
    assert import_directions(tmp_path / "sg_age_boundary.npy", toy, space="w").space == "w"


def test_a_z_in_chunks_laid_end_to_end(tmp_path: Path) -> None:
    chunked = FunctionToy(lambda z: z.view(-1, 1, 1, 6).expand(-1, 1, 8, 6), 6)
    chunked.spaces = {"z": Space("z", 3, 2)}
    read = import_directions(write(tmp_path / "voynov.pt", torch.eye(6)), chunked)
    assert list(read.vectors.shape) == [6, 3, 2]
    assert float(read.unit_step(chunked.space("z"), 0).norm()) == 1


@pytest.mark.parametrize(
    ("shape", "space", "message"),
    [
        ((2, 7), None, r"array \[2, 7\]; slots-0 has the spaces z \[1, 6\], w \[1, 6\], w\+ \[4, 6\]"),
        ((2, 5, 6), None, r"array \[2, 5, 6\]; slots-0 has the spaces"),
        ((2, 7), "w+", r"array \[2, 7\]; space 'w\+' of slots-0 takes \[k, 6\] or \[k, 4, 6\]"),
        ((2, 2, 2, 6), None, "holds no directions that are known here"),
        ((2, 6), "v", "unknown space"),
    ],
)
def test_wrong_widths_and_spaces_are_named(
    toy: SlotToy, tmp_path: Path, shape: tuple[int, ...], space: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        import_directions(write(tmp_path / "d.npy", normal(*shape)), toy, space=space)


# --- hostile files ----------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple:
        return (open, ("/tmp/never-written", "w"))


def npy(header: bytes, body: bytes = b"") -> bytes:
    padded = header + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + body


GIANT = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
NEGATIVE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -6), }"


def objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.npy", b""),
        ("a.npy", b"\x93NUMPY"),
        ("a.npy", b"no array"),
        ("a.npy", npy(GIANT, b"\0" * 64)),
        ("a.npy", npy(NEGATIVE, b"\0" * 48)),
        ("a.npy", npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 6), }", b"\0" * 47)),
        ("a.npy", npy(b"(" * 3000)),
        ("a.npy", npy(b"{'descr': '<c8', 'fortran_order': False, 'shape': (1, 6), }", b"\0" * 48)),
        ("a.npy", npy(b"__import__('os').abort()")),
        ("a.npy", objects()),
        ("a.npz", b"PK\x03\x04 not really"),
        ("a.npz", b""),
        ("a.pt", pickle.dumps(Bomb())),
        ("a.pt", b"PK\x03\x04"),
        ("a.safetensors", b"\xff" * 64),
    ],
)
def test_hostile_files_are_one_line(toy: SlotToy, tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        import_directions(path, toy)
    assert name in str(caught.value)
    assert not Path("/tmp/never-written").exists()


def test_hostile_entries_of_an_npz(toy: SlotToy, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lat_comp.npy", objects())
    with pytest.raises(UserError, match="values of type object; numbers are wanted"):
        import_directions(path, toy)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lat_comp.npy", npy(GIANT, b"\0" * 100))
    with pytest.raises(UserError, match="holds 100 bytes for an array"):
        import_directions(path, toy)
    with pytest.raises(UserError, match="does not exist"):
        import_directions(tmp_path / "b.npz", toy)


@pytest.mark.parametrize("length", [10, 200, 600])
@pytest.mark.parametrize("format", ["ganspace", "e4e", "npy"])
def test_truncated_files(toy: SlotToy, components: Directions, tmp_path: Path, format: str, length: int) -> None:
    suffix = {"ganspace": "npz", "e4e": "pt", "npy": "npy"}[format]
    path = export_directions(components, tmp_path / f"d.{suffix}", format, generator=toy)  # type: ignore[arg-type]
    whole = path.read_bytes()
    path.write_bytes(whole[: min(length, len(whole) - 4)])
    with pytest.raises(UserError):
        import_directions(path, toy)


# --- components -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["ganspace", "e4e"])
def test_round_trip_of_components(toy: SlotToy, components: Directions, tmp_path: Path, format: str) -> None:
    path = tmp_path / ("d.npz" if format == "ganspace" else "d.pt")
    export_directions(components, path, format, generator=toy)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ForeignDirections)
        read = import_directions(path, toy)
    assert torch.equal(read.vectors, components.vectors)
    assert torch.equal(read.sigma, components.sigma)
    assert torch.equal(read.importance, components.importance)
    assert (read.names, read.layers, read.unit, read.space) == (components.names, components.layers, "sigma", "w")
    assert read.provenance.generator == toy.identity()
    again = tmp_path / f"again{path.suffix}"
    export_directions(read, again, format, generator=toy)  # type: ignore[arg-type]
    if format == "ganspace":
        with np.load(path) as one, np.load(again) as two:
            assert {*one} == {*two}
            assert all(np.array_equal(one[key], two[key]) for key in one)
    else:
        one, two = (torch.load(each, weights_only=True) for each in (path, again))
        assert all(torch.equal(one[key], two[key]) for key in ("mean", "comp", "std"))


def test_ganspace_files_have_the_keys_and_shapes_of_the_original(
    toy: SlotToy, components: Directions, tmp_path: Path
) -> None:
    export_directions(components, tmp_path / "d.npz", "ganspace", generator=toy)
    with np.load(tmp_path / "d.npz", allow_pickle=False) as file:
        shapes = {key: file[key].shape for key in file}
    vectors = {"act_comp": (3, DIM), "act_mean": (1, DIM), "lat_comp": (3, 1, DIM), "lat_mean": (1, DIM)}
    figures = dict.fromkeys(("act_stdev", "lat_stdev", "var_ratio", "random_stdevs"), (3,))
    assert {key: shapes[key] for key in vectors | figures} == vectors | figures
    e4e = torch.load(export_directions(components, tmp_path / "d.pt", "e4e", generator=toy), weights_only=True)
    assert (e4e["mean"].shape, e4e["comp"].shape, e4e["std"].shape) == ((1, DIM), (3, 1, DIM), (3,))


def test_round_trip_of_plain_arrays(toy: SlotToy, tmp_path: Path) -> None:
    wide = Directions(normal(2, 4, DIM), "w+", ("a", "b"), unit="raw")
    read = import_directions(export_directions(wide, tmp_path / "d.npy", "npy"), toy)
    assert torch.equal(read.vectors, wide.vectors)
    assert read.space == "w+"
    ours = wide.save(tmp_path / "d.safetensors")
    assert import_directions(ours, toy).names == ("a", "b")
    with pytest.raises(UserError, match="live in 'w\\+', not in 'w'"):
        import_directions(ours, toy, space="w")


def test_what_cannot_be_written(toy: SlotToy, components: Directions, tmp_path: Path) -> None:
    wide = Directions(normal(2, 4, DIM), "w+", ("a", "b"), unit="raw")
    with pytest.raises(Unsupported, match="one row a direction, and these have 4"):
        export_directions(wide, tmp_path / "d.npz", "ganspace", generator=toy)
    with pytest.raises(UserError, match="pass generator="):
        export_directions(components, tmp_path / "d.pt", "e4e")
    with pytest.raises(UserError, match=r"files of format e4e end in \.pt"):
        export_directions(components, tmp_path / "d.npz", "e4e", generator=toy)
    with pytest.raises(UserError, match="format 'mat' is not known"):
        export_directions(components, tmp_path / "d.mat", "mat")  # type: ignore[arg-type]
    export_directions(components, tmp_path / "d.npy", "npy")
    with pytest.raises(UserError, match="exists already"):
        export_directions(components, tmp_path / "d.npy", "npy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lat_stdev": np.ones(2, np.float32)}, "holds 3 components and 2 standard deviations"),
        ({"lat_stdev": np.zeros(3, np.float32)}, "not above 0"),
        ({"act_stdev": np.ones(5, np.float32)}, "3 components and 5 act_stdev"),
        ({"lat_comp": np.full((3, 1, DIM), np.nan, np.float32)}, "NaN"),
    ],
)
def test_components_that_do_not_fit_together(
    toy: SlotToy, components: Directions, tmp_path: Path, change: dict, message: str
) -> None:
    path = export_directions(components, tmp_path / "d.npz", "ganspace", generator=toy)
    with np.load(path) as file:
        entries = dict(file)
    np.savez(path, **(entries | change))
    with pytest.raises(UserError, match=message):
        import_directions(path, toy)


# --- whose directions -------------------------------------------------------------------------------------------------


def test_components_of_another_generator_are_flagged(toy: SlotToy, components: Directions, tmp_path: Path) -> None:
    path = export_directions(components, tmp_path / "d.pt", "e4e", generator=toy)
    stranger = SlotToy(slots=4, dim=DIM, seed=3, mean=-2.0)
    with pytest.warns(ForeignDirections, match=r"d\.pt belongs to another generator than slots-3"):
        read = import_directions(path, stranger)
    assert read.provenance.arguments["distance_of_means"] > FOREIGN_DISTANCE
    saved = read.save(tmp_path / "read.safetensors")
    with pytest.raises(UserError, match="another generator"):
        Directions.load(saved, generator=stranger)
    assert len(Directions.load(saved, generator=stranger, foreign=True)) == 3


def test_distance_of_means(toy: SlotToy) -> None:
    w = toy.space("w")
    own = toy.sample(400, seed=9).latent[:, 0]
    assert distance_of_means(own.mean(0), w) == pytest.approx(400**-0.5, rel=0.6)
    alone = [distance_of_means(row, w) for row in own[:200]]
    assert float(np.sqrt(np.mean(np.square(alone)))) == pytest.approx(1, abs=0.1)  # a sample is one away from the mean
    assert distance_of_means(torch.zeros(DIM), w) is None
    assert distance_of_means(own[0], toy.space("z")) is None
    assert distance_of_means(own[0, :2], w) is None


# --- published files --------------------------------------------------------------------------------------------------


def test_published_directions(stylegan: SlotToy, reference: Path) -> None:
    read = [import_directions(reference / "directions" / f"{name}.pt", stylegan) for name in ("age", "smile", "pose")]
    for each, name in zip(read, ("age", "smile", "pose"), strict=True):
        assert (each.space, each.unit, each.names, list(each.vectors.shape)) == ("w", "raw", (name,), [1, 1, 512])
        assert float(each.vectors.norm()) == pytest.approx(1, abs=1e-4)
        assert each.provenance.generator == {}  # no mean, so nothing is known
    assert concatenate(read).names == ("age", "smile", "pose")


def test_published_components_of_cars_belong_to_another_generator(stylegan: SlotToy, reference: Path) -> None:
    with pytest.warns(ForeignDirections, match=r"cars_pca\.pt belongs to another generator"):
        cars = import_directions(reference / "directions" / "cars_pca.pt", stylegan)
    assert len(cars) == 80
    assert float(cars.sigma[0]) == pytest.approx(7.1482, abs=1e-3)
    rows = cars.vectors[:, 0]
    assert torch.allclose(rows @ rows.T, torch.eye(80), atol=1e-5)


# --- presets ----------------------------------------------------------------------------------------------------------


def test_bundled_presets_are_those_published() -> None:
    found = {preset.name: preset for preset in presets.load_presets("ffhq_ganspace")}
    assert len(found) == 44
    wrinkles = found["wrinkles"]
    assert (wrinkles.component, wrinkles.layers, wrinkles.sigma, wrinkles.is_absolute) == (20, "6", -18, True)
    assert found["white_hair"].layers == "7-9"  # [7, 10) as published
    assert found["pc4_background"].layers == "5-17"
    assert found["pc0_gender_keep_age"].move("pca.npz") == Move("pca.npz", 0, to=2.0, layers="1-6", unit="sigma")
    with pytest.raises(UnknownName, match="Did you mean 'ffhq_ganspace'"):
        presets.load_presets("ffhq_ganspaces")


GOOD = {"name": "a", "component": 1, "layers": [0, 2], "sigma": 3}


def test_presets_replay_as_the_formula_says(tmp_path: Path) -> None:
    """w[l] += (strength - <w - mean, v> / s) s v on layers start ... end - 1."""
    toy = SlotToy(slots=18, dim=DIM)
    vectors = unit_norm(normal(3, 1, DIM))
    pca = Directions(vectors, "w", ("c0", "c1", "c2"), sigma=torch.tensor([2.0, 1.0, 0.5]))
    path = tmp_path / "p.json"
    entries = [GOOD, GOOD | {"name": "b", "absolute": False}, GOOD | {"name": "c", "invert": True, "layers": [5, 6]}]
    path.write_text(json.dumps({"format": presets.FORMAT, "slots": 18, "presets": entries}))
    a, b, c = presets.load_presets(path)
    w = toy.sample(1, seed=4)
    v, coordinate = vectors[1, 0], float((w.latent[0, 0] - toy.space("w").mean) @ vectors[1, 0])
    for preset, amount, rows in (
        (a, 3 - coordinate, [0, 1]),
        (b, 3, [0, 1]),
        (c, -np.sign(coordinate) * 3 - coordinate, [5]),
    ):
        moved = move_codes(toy, w, (preset.move("pca", coordinate=coordinate),), lambda _: pca)
        want = toy.lift(w, "w+").latent.clone()
        want[0, rows] += amount * v
        assert torch.allclose(moved.latent, want, atol=1e-5)
    with pytest.raises(UserError, match="pass the code's coordinate"):
        c.move("pca")
    named = presets.named_directions([a, c], pca, toy)
    assert (named.names, named.layers, named.fields["published"].tolist()) == (("a", "c"), ("0-1", "5"), [3, 3])
    moved = named.move(toy.lift(w, "w+"), "a", to=3.0)
    assert torch.allclose(moved.latent, move_codes(toy, w, (a.move("pca"),), lambda _: pca).latent, atol=1e-5)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (GOOD | {"layers": [2, 2]}, r"layers \[2, 2\]; they are \[start, end\) within 0-18"),
        (GOOD | {"layers": [0, 19]}, "within 0-18"),
        (GOOD | {"layers": [0, 1.5]}, "within 0-18"),
        (GOOD | {"layers": 4}, "has layers 4; list is wanted"),
        (GOOD | {"component": True}, "has component True; int is wanted"),
        (GOOD | {"component": -1}, "component -1"),
        (GOOD | {"strength": 1}, "has no 'strength'"),
        ({"name": "a", "component": 1, "layers": [0, 2]}, "lacks 'sigma'"),
        ({"component": 1}, "a preset is a JSON object with a name"),
        ("wrinkles", "a preset is a JSON object with a name"),
    ],
)
def test_what_is_no_preset(tmp_path: Path, entry: object, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"format": presets.FORMAT, "slots": 18, "presets": [entry]}))
    with pytest.raises(UserError, match=message):
        presets.load_presets(path)
    path.write_text(json.dumps({"format": presets.FORMAT, "slots": 18, "presets": [GOOD, GOOD]}))
    with pytest.raises(UserError, match="two presets called 'a'"):
        presets.load_presets(path)
    path.write_text("[" * 200_000)
    with pytest.raises(UserError, match="no file of presets"):
        presets.load_presets(path)


def test_layers_of_a_network_with_other_slots() -> None:
    sizes = (4, 8, 8, 8, 16, 16, 16, 32, 32, 32)  # one slot at 4 px, then three a level
    thirds = SlotToy(slots=10, dim=2, resolutions=sizes)
    assert presets.fitted_layers("0", 18, thirds) == "0"
    assert presets.fitted_layers("1-2", 18, thirds) == "1,2,3"  # both convolutions at 8 px
    assert presets.fitted_layers("0-4", 18, thirds) == "0,1,2,3,4,5,6"
    assert presets.fitted_layers("3", 18, thirds) == "4"  # the first half at 16 px
    same = SlotToy(slots=18, dim=2)
    assert presets.fitted_layers("3-7", 18, same) == "3-7"
    twos = SlotToy(slots=5, dim=2, resolutions=(4, 8, 8, 16, 16))
    assert [presets.fitted_layers(str(slot), 18, twos) for slot in range(5)] == list("01234")
    with pytest.raises(UserError, match="no slots where layers 9-12"):
        presets.fitted_layers("9-12", 18, twos)
    with pytest.raises(UserError, match="one code for all layers"):
        presets.fitted_layers("1", 18, FunctionToy(lambda z: z.view(-1, 1, 1, 2).expand(-1, 1, 8, 2), 2))


def test_rosinality_and_interfacegan_read_what_is_written(tmp_path: Path) -> None:
    toy = SlotToy()
    vectors = unit_norm(torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(5)))
    found = Directions(vectors, "w", ("a", "b", "c"), sigma=standard_deviation(vectors, toy.space("w")))
    factor = export_directions(found, tmp_path / "factor.pt", "rosinality")
    told = torch.load(factor, weights_only=True)
    assert set(told) == {"ckpt", "eigvec"}
    assert torch.equal(told["eigvec"][:, 1].unsqueeze(0), vectors[1])  # as its apply_factor.py takes a direction
    again = import_directions(factor, toy)
    assert (again.unit, again.space) == ("raw", "w")
    assert torch.allclose(again.vectors, vectors)
    boundary = export_directions(found["b"], tmp_path / "b_w_boundary.npy", "interfacegan")
    assert np.load(boundary).shape == (1, 5)
    assert torch.allclose(import_directions(boundary, toy).vectors[0], vectors[1])
    with pytest.raises(UserError, match="holds one boundary, and 3 directions came"):
        export_directions(found, tmp_path / "c.npy", "interfacegan")
    wide = Directions(vectors.expand(-1, 4, -1) * torch.arange(1, 5)[:, None], "w+", ("a", "b", "c"))
    with pytest.raises(Unsupported, match="a rosinality file holds one row a direction"):
        export_directions(wide, tmp_path / "d.pt", "rosinality")
