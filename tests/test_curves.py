"""Curved directions: tangents, arcs in σ, and that they are used, saved and measured like straight ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from eigenlens import Directions, Unsupported, UserError, algebra, curves
from eigenlens.codes import Codes
from eigenlens.curves import Dipoles, NetworkField
from eigenlens.directions import concatenate, unit_norm
from eigenlens.effect import calibrate, equal_change, traverse
from eigenlens.exchange import export_directions
from eigenlens.generator import Generator
from eigenlens.move import Move, move_codes
from eigenlens.sheet import sheet
from toy_spaces import SlotToy


def dipoles(k: int = 3, *, slots: int = 1, dim: int = 5, seed: int = 0) -> Dipoles:
    rng = torch.Generator().manual_seed(seed)
    return Dipoles(
        poles=torch.randn(k, 4, slots, dim, generator=rng),
        weights=torch.ones(k, 4),
        gammas=torch.rand(k, 4, generator=rng) + 0.1,
        centre=torch.linspace(-1, 1, dim),
        mask=torch.ones(slots, dim),
    )


def turning(dim: int = 5) -> NetworkField:
    """Make the field (-y, x) of the first two coordinates, by relu(a) - relu(-a) = a: its paths are circles."""
    inner = torch.zeros(1, 4, dim)
    outer = torch.zeros(1, dim, 4)
    for i, (see, move, sign) in enumerate([(0, 1, 1.0), (0, 1, -1.0), (1, 0, 1.0), (1, 0, -1.0)]):
        inner[0, i, see] = sign
        outer[0, move, i] = sign * (1.0 if move == 1 else -1.0)
    return NetworkField(
        inner, torch.zeros(1, 4), outer, torch.zeros(1, dim), torch.zeros(dim), torch.tensor(1.0), torch.ones(1, dim)
    )


def constant(vectors: torch.Tensor) -> NetworkField:
    """Make fields that are the same everywhere: [k, slots, dim]."""
    k, slots, dim = vectors.shape
    return NetworkField(
        torch.zeros(k, 1, slots * dim), torch.zeros(k, 1), torch.zeros(k, slots * dim, 1), vectors.flatten(1),
        torch.zeros(dim), torch.tensor(1.0), torch.ones(slots, dim),
    )  # fmt: skip


def curved(curve: curves.Curve, generator: Generator, space: str = "w") -> Directions:
    home = generator.spaces[space]
    at = home.mean.expand(len(curve), curve.shape[0], -1) + 1e-3
    vectors = unit_norm(curve.tangents(at, torch.arange(len(curve))))
    d = Directions(vectors, space, tuple(f"c{i}" for i in range(len(curve))), curve=curve)
    return d.with_figures(sigma=d.known_sigma(home))


# --- tangents and arcs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 3])
def test_tangents_are_unit_gradients_of_the_potential(slots: int) -> None:
    curve = dipoles(slots=slots)
    w = torch.randn(6, slots, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    which = torch.tensor([0, 1, 2, 2, 1, 0])
    away = w - curve.centre

    def radial(sign: float) -> torch.Tensor:
        squares = (away[:, None] - sign * curve.poles[which]).square().sum((2, 3))
        return (curve.weights[which] * (-curve.gammas[which] * squares).exp()).sum()

    (gradient,) = torch.autograd.grad(radial(1.0) - radial(-1.0), w)
    assert torch.allclose(curve.tangents(w.detach(), which), unit_norm(gradient), atol=1e-4)


def test_far_from_all_poles_the_tangent_is_still_one() -> None:
    far = torch.full((2, 1, 5), 60.0)
    tangents = dipoles().tangents(far, torch.tensor([0, 1]))
    assert torch.allclose(tangents.norm(dim=2), torch.ones(2, 1), atol=1e-4)


def test_a_constant_field_is_a_straight_direction() -> None:
    g = SlotToy()
    vectors = unit_norm(torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(2)))
    straight = Directions(vectors, "w", ("a", "b"))
    straight = straight.with_figures(sigma=straight.known_sigma(g.spaces["w"]))
    bent = replace(straight, curve=constant(vectors))
    for layers in ("all", "1-2"):
        codes = straight.host(g, g.sample(3), layers=layers)
        a, b = (d.walk(codes, "b", (-1.7, 0.0, 2.0), layers=layers).latent for d in (straight, bent))
        assert torch.allclose(a, b.expand_as(a), atol=1e-5)


def test_paths_run_along_the_field_and_are_as_long_as_told() -> None:
    g = SlotToy()
    space = replace(g.spaces["w"], moments=None)  # C = 1: σ is plain length
    d = Directions(torch.eye(5)[1:2, None], "w", ("turn",), curve=turning())
    start = Codes(space, torch.tensor([2.0, 0, 0, 0, 3.0]).expand(1, 1, 5))
    steps = [float(s) for s in torch.linspace(-6, 6, 49)]
    at = d.walk(start, 0, steps).latent[:, 0]
    assert torch.allclose(at[:, :2].norm(dim=1), torch.full((49,), 2.0), atol=5e-3)  # a circle
    angles = torch.tensor(steps) / 2.0
    assert torch.allclose(at[:, 0], 2 * angles.cos(), atol=2e-2)
    assert torch.allclose(at[:, 1], 2 * angles.sin(), atol=2e-2)
    assert torch.equal(at[24], start.latent[0, 0])


def test_length_is_measured_in_sigma_of_the_space() -> None:
    g = SlotToy()
    space = g.spaces["w"]
    d = curved(dipoles(), g)
    codes = g.sample(4)
    steps = [i / 16 for i in range(17)]
    points = d.walk(codes, 1, steps).latent.unflatten(0, (4, 17))[:, :, 0]
    chords = points.diff(dim=1)  # v σ(v) of length one σ: ‖Δ‖² / (Δ̂ᵀCΔ̂)
    unit = torch.nn.functional.normalize(chords, dim=2)
    sigmas = chords.norm(dim=2) / torch.einsum("bsd,de,bse->bs", unit, space.covariance, unit).sqrt()
    assert torch.allclose(sigmas.sum(1), torch.ones(4), atol=5e-3)


def test_points_do_not_depend_on_the_company() -> None:
    g = SlotToy()
    d, codes = curved(dipoles(), g), g.sample(3)
    many = d.walk(codes, 0, (3.1, -0.4, 0.0, 1.0, 2.0)).latent.unflatten(0, (3, 5))
    for place, step in enumerate((3.1, -0.4, 0.0, 1.0, 2.0)):
        assert torch.equal(many[:, place], d.move(codes, 0, by=step).latent), step
    twice = d.move(d.move(codes, 0, by=1.0), 0, by=1.0)
    assert torch.allclose(twice.latent, many[:, 4], atol=1e-6)
    back = d.move(d.move(codes, 0, by=1.0), 0, by=-1.0)
    assert torch.allclose(back.latent, codes.latent, atol=2e-3)
    one = d.move(codes[1], 0, by=2.0)
    assert torch.allclose(one.latent[0], many[1, 4], atol=1e-6)


def test_each_slot_goes_its_own_way_and_layers_hold_others() -> None:
    g = SlotToy()
    d = curved(dipoles(), g)
    wide = g.lift(g.sample(2), "w+")
    mixed = wide.with_latent(wide.latent + torch.arange(4.0)[None, :, None])
    moved = d.move(mixed, 1, by=1.5, layers="1-2").latent
    assert torch.equal(moved[:, [0, 3]], mixed.latent[:, [0, 3]])
    shifts = moved - mixed.latent
    assert not torch.allclose(shifts[:, 1], shifts[:, 2], atol=1e-3)


# --- used like straight ones ------------------------------------------------------------------------------------------


def test_picked_flipped_joined_saved_and_read(tmp_path: Path) -> None:
    g = SlotToy()
    d, codes = curved(dipoles(), g), g.sample(2)
    walked = lambda some, which: some.walk(codes, which, (-1.0, 2.0)).latent  # noqa: E731
    assert torch.equal(walked(d[["c2", "c0"]], "c2"), walked(d, "c2"))
    back = d.flipped(["c1"]).walk(codes, "c1", (1.0, -2.0)).latent
    assert torch.allclose(back, walked(d, "c1"), atol=1e-6)
    more = concatenate([d, curved(dipoles(2, seed=5), g).renamed(["x", "y"])])
    assert torch.equal(walked(more, "c1"), walked(d, "c1"))
    assert len(more) == len(more.curve) == 5  # type: ignore[arg-type]
    file = d.save(tmp_path / "d.safetensors")
    again = Directions.load(file)
    assert torch.equal(walked(again, 1), walked(d, 1))
    assert not again.is_straight
    assert "curved" in repr(again)
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["eigenlens"])["format"] == "eigenlens.directions/2"
    straight = Directions(d.vectors, "w", d.names, sigma=d.sigma)
    straight.save(tmp_path / "s.safetensors")
    with safe_open(tmp_path / "s.safetensors", framework="pt") as opened:
        assert json.loads(opened.metadata()["eigenlens"])["format"] == "eigenlens.directions/1"
    with pytest.raises(UserError, match="straight and curved"):
        concatenate([d, straight.renamed(["p", "q", "r"])])
    with pytest.raises(UserError, match="different kinds or sizes"):
        concatenate([d, curved(constant(d.vectors), g).renamed(["p", "q", "r"])])


def test_they_are_measured_and_drawn() -> None:
    g = SlotToy()
    d = calibrate(g, curved(dipoles(), g), n=8, limit_samples=16, limit_codes=2)
    assert (d.effect > 0).all()
    assert torch.isfinite(d.limits).all()
    images = traverse(g, g.sample(2), d, "c1", (-1.0, 0.0, 1.0))
    assert torch.allclose(images[:, 1], g(g.sample(2)), atol=1e-5)
    assert not torch.allclose(images[:, 0], images[:, 2], atol=1e-4)
    assert equal_change(g, d, 0.2, n=8, n_codes=2).strength.isfinite().all()
    assert sheet(g, d, g.sample(1), steps=3).width > 0
    moved = move_codes(g, g.sample(1), (Move("d", "c0", by=1.0),), lambda name: d)
    assert torch.equal(moved.latent, d.move(g.sample(1), "c0", by=1.0).latent)


def test_what_needs_one_vector_is_unsupported(tmp_path: Path) -> None:
    g = SlotToy()
    d, codes = curved(dipoles(), g), g.sample(1)
    space = g.spaces["w"]
    for attempt in (
        lambda: d.move(codes, 0, to=1.0),
        lambda: d.walk(codes, 0, (1.0,), absolute=True),
        lambda: d.coordinates(codes, 0),
        lambda: d.unit_step(space, 0),
        lambda: d.in_raw(),
        lambda: algebra.similarity(d, d),
        lambda: algebra.orthogonalise(d),
        lambda: algebra.compose(d, [1.0, 1.0, 0.0], "both", space=space),
        lambda: move_codes(g, codes, (Move("d", "c0", to=1.0),), lambda name: d),
        lambda: export_directions(d, tmp_path / "d.npy", "npy"),
    ):
        with pytest.raises(Unsupported, match="needs straight directions"):
            attempt()
    assert not list(tmp_path.iterdir())


def test_curves_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    g = SlotToy()
    d = curved(dipoles(), g)
    with pytest.raises(UserError, match="a field each"):
        Directions(d.vectors[:2], "w", ("a", "b"), curve=d.curve)
    with pytest.raises(UserError, match="strengths in sigma"):
        replace(d, unit="raw")
    file = d.save(tmp_path / "d.safetensors")
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for change, message in (
        ({"curve/gammas": torch.full((3, 4), torch.nan)}, "finite"),
        ({"curve/poles": torch.zeros(3, 4, 1, 4)}, "do not fit"),
        ({"curve/mask": torch.ones(7)}, "do not fit"),
        ({"curve/more": torch.ones(1)}, "has the tensors"),
    ):
        save_file({**tensors, **change}, tmp_path / "bad.safetensors", metadata=header)
        with pytest.raises(UserError, match=message):
            Directions.load(tmp_path / "bad.safetensors")
    about = json.loads(header["eigenlens"]) | {"curve": "spline"}
    save_file(tensors, tmp_path / "bad.safetensors", metadata={"eigenlens": json.dumps(about)})
    with pytest.raises(UserError, match="kind 'spline' are not known"):
        Directions.load(tmp_path / "bad.safetensors")
