"""Profiles of directions whose answer is known, and the four calibrations read off them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from eigenlens.directions import Directions
from eigenlens.effect import calibrate, equal_change
from eigenlens.errors import UserError
from eigenlens.generator import Generator
from eigenlens.method import METHODS
from eigenlens.profile import CALIBRATIONS, Profile, measure_profile, measure_yardstick, recalibrated
from eigenlens.reader import open_reader
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
    with pytest.raises(UserError, match=f"'sigma' is not known; allowed: {', '.join(CALIBRATIONS)}"):
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
