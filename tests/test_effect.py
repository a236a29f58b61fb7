"""Effects, limits, equal change and strips, on generators whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from eigenlens import effect
from eigenlens.directions import Directions, standard_deviation, unit_norm
from eigenlens.errors import UserError
from eigenlens.generator import Generator, load_generator
from eigenlens.method import METHODS
from eigenlens.sheet import sheet, spread
from toy_spaces import FunctionToy, SlotToy


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep small matrices on one thread: on a busy machine the threads of a pool wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


PIXELS = 64  # of an 8x8 grey image: its features are its pixels, since no pyramid level fits


def gaussian_family(scale: float = 0.05) -> FunctionToy:
    """Make images whose 64 pixels are independent normal numbers."""
    return FunctionToy(lambda z: scale * z.view(-1, 1, 8, 8), PIXELS)


def saturating_family(gain: float = 1.5) -> FunctionToy:
    """Make images in which one pattern follows tanh(gain z_0), amid a little noise."""
    pattern = torch.linspace(-1, 1, PIXELS).view(1, 1, 8, 8)

    def function(z: torch.Tensor) -> torch.Tensor:
        return 0.5 * torch.tanh(gain * z[:, 0]).view(-1, 1, 1, 1) * pattern + 0.01 * z[:, 1:].view(-1, 1, 8, 8)

    return FunctionToy(function, PIXELS + 1)


def axes(*which: int, dim: int, **more: object) -> Directions:
    names = tuple(f"axis-{i}" for i in which)
    sigma = torch.ones(len(which))
    return Directions(torch.eye(dim)[list(which)][:, None], "z", names, sigma=sigma, **more)  # type: ignore[arg-type]


# --- effect -----------------------------------------------------------------------------------------------------------


def test_the_effect_of_an_affine_generator_is_exact() -> None:
    toy = SlotToy(slots=4, dim=5)
    vectors = unit_norm(torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(1)))
    sigma = standard_deviation(vectors, toy.space("w"))
    directions = Directions(vectors, "w", ("a", "b", "c"), ("all", "all", "1-2"), sigma=sigma)
    change = torch.einsum("spd,kd->ksp", toy.maps, vectors[:, 0]) * sigma[:, None, None]  # [k, slots, pixels]
    used = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]])
    expected = (change * used[:, :, None]).sum(1).square().mean(1).sqrt()
    assert torch.allclose(effect.measure_effect(toy, directions, n=8), expected, rtol=1e-4)
    assert torch.allclose(effect.measure_effect(toy, directions.in_raw(), n=8), expected, rtol=1e-4)


def test_traverse_is_walk_and_render_and_skips_what_does_not_move() -> None:
    toy = SlotToy(slots=4, dim=5)
    vectors = torch.zeros(1, 4, 5)
    vectors[0, 2, 1] = 1
    directions = Directions(vectors, "w+", ("late",), sigma=torch.ones(1))
    codes = toy.sample(3)
    toy.runs.clear()
    images = effect.traverse(toy, codes, directions, 0, (-1.0, 0.0, 2.0))
    assert toy.runs.count(0) == 1  # layers 0 and 1 run once for all steps
    assert toy.runs.count(3) == 1
    assert images.shape == (3, 3, 3, 16, 16)
    whole = toy(directions.walk(directions.host(toy, codes), 0, (-1.0, 0.0, 2.0)))
    assert torch.allclose(images.flatten(0, 1), whole, atol=1e-6)
    assert torch.allclose(images[:, 1], toy(codes), atol=1e-6)


def test_traverse_of_an_eigengan_is_walk_and_render(eigengan: Generator) -> None:
    from eigenlens.methods.eigen import Eigen

    directions = Eigen(measured=False).fit(eigengan)
    codes = eigengan.sample(2)
    for name in ("L1D1", directions.names[-1]):
        images = effect.traverse(eigengan, codes, directions, name, (-2.0, 2.0), absolute=True)
        whole = eigengan.render(directions.walk(codes, name, (-2.0, 2.0), absolute=True))
        assert torch.allclose(images.flatten(0, 1), whole, atol=1e-5)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_the_limit_of_a_gaussian_family_is_its_quantile() -> None:
    """Along one of 64 normal pixels, |x|² is χ²(64) plus what the step adds: its median leaves the 99 % quantile."""
    random = np.random.default_rng(0)
    drawn = random.standard_normal((40_000, PIXELS)) ** 2
    edge = np.quantile(drawn.sum(1), 0.99)
    rest = drawn[:, 1:].sum(1)
    first = random.standard_normal(len(rest))
    inside = [t for t in np.arange(4, 7, 0.05) if np.median(rest + (first + t) ** 2) < edge]
    limits = effect.measure_limits(gaussian_family(), axes(0, 9, dim=PIXELS), n=4000, n_codes=200)
    assert max(inside) == pytest.approx(5.4, abs=0.3)
    assert limits.abs().tolist() == [[pytest.approx(max(inside), rel=0.08)] * 2] * 2
    assert (limits[:, 0] < 0).all()
    assert (limits[:, 1] > 0).all()


def test_with_the_default_numbers_it_is_near() -> None:
    limits = effect.measure_limits(gaussian_family(), axes(0, dim=PIXELS))
    assert limits.abs().tolist() == [[pytest.approx(5.4, rel=0.3)] * 2]


def test_limits_scale_with_the_step() -> None:
    """A direction of √(1/2, 1/2) in one pixel and a pixel that is not there needs √2 the distance."""
    toy = FunctionToy(lambda z: 0.05 * z[:, :PIXELS].reshape(-1, 1, 8, 8), PIXELS + 1)
    vectors = torch.zeros(2, 1, PIXELS + 1)
    vectors[0, 0, 3] = 1
    vectors[1, 0, [3, PIXELS]] = 0.5**0.5
    directions = Directions(vectors, "z", ("whole", "half"), sigma=torch.ones(2))
    limits = effect.measure_limits(toy, directions, n=1000, n_codes=60)
    assert (limits[1] / limits[0]).tolist() == pytest.approx([2**0.5] * 2, rel=0.03)


def test_saturation_ends_a_walk() -> None:
    gain, sigmas = 1.5, [effect.LIMIT_CAP / effect.LIMIT_RATIO**power for power in reversed(range(effect.LIMIT_STEPS))]
    z = np.random.default_rng(0).standard_normal(200_000)
    at = [np.tanh(gain * (z + t)) for t in (0.0, *sigmas)]
    ends = [0.0, *sigmas]
    rates = [np.abs(at[i + 1] - at[i]).mean() / (ends[i + 1] - ends[i]) for i in range(len(sigmas))]
    expected = effect.saturation(ends, rates)
    assert 2 < expected < 8  # long before the cap
    limits = effect.measure_limits(saturating_family(gain), axes(0, dim=PIXELS + 1), n=1000, n_codes=200)
    assert limits.abs().tolist() == [[pytest.approx(expected, rel=0.15)] * 2]


def test_a_direction_without_effect_has_no_limits_and_a_gentle_one_ends_at_the_cap() -> None:
    toy = FunctionToy(lambda z: (0.05 * z[:, :PIXELS] + 1e-3 * z[:, -1:]).reshape(-1, 1, 8, 8), PIXELS + 2)
    limits = effect.measure_limits(toy, axes(PIXELS, PIXELS + 1, dim=PIXELS + 2), n=200, n_codes=4)
    assert torch.isnan(limits[0]).all()
    assert limits[1].tolist() == pytest.approx([-effect.LIMIT_CAP, effect.LIMIT_CAP])


def test_crossing() -> None:
    assert effect.crossing([0, 1, 2], [0, 1, 4], edge=9) == math.inf
    assert effect.crossing([0, 1, 2], [5, 6, 9], edge=7.25) == pytest.approx(math.sqrt(1 + 3 * 1.25 / 3))
    assert effect.crossing([0, 1, 2], [5, 8, 1], edge=6) == pytest.approx(math.sqrt(1 / 3))  # the first time


def test_saturation() -> None:
    assert effect.saturation([0, 1, 2, 3], [1.0, 0.9, 0.8]) == math.inf
    assert effect.saturation([0, 1, 2, 3], [1.0, 0.1, 0.025]) == pytest.approx(2.0)  # halfway in the logarithm
    assert effect.saturation([0, 1, 2], [1.0, 0.0]) < 1.5


def test_range_holds_the_share_that_it_says() -> None:
    mixing = torch.randn(40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.randn(9000, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64) @ mixing + 3
    inside = effect.Range.fit(rows[:3000], density=0.9)
    assert float((inside.distance(rows[3000:]) <= inside.edge).double().mean()) == pytest.approx(0.9, abs=0.02)
    few = effect.Range.fit(rows[:20])  # fewer samples than features
    assert math.isfinite(few.edge)
    with pytest.raises(UserError, match="at least 4"):
        effect.Range.fit(rows[:3])


def test_features_tell_blur_and_place_but_not_size() -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 64, generator=random) * 2 - 1
    features = effect.image_features(images)
    assert features.shape == (2, 3 * 64 + 3 * 4)
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    change = (effect.image_features(blurred) - features).abs()
    assert float(change[:, 192:196].min()) > 1  # the finest level has lost its energy
    assert float(change[:, :192].max()) < 0.2  # what is where stays
    assert effect.image_features(torch.zeros(1, 1, 28, 28)).shape == (1, 64 + 4)


def test_calibrate_fills_what_is_missing_in_the_unit_of_the_directions() -> None:
    toy = gaussian_family()
    fresh = axes(0, 1, dim=PIXELS).with_figures(sigma=torch.full((2,), math.nan))
    done = effect.calibrate(toy, fresh, limit_samples=200)
    assert done.sigma.tolist() == pytest.approx([1, 1])
    assert done.effect.tolist() == pytest.approx([0.05 / 8] * 2, rel=1e-4)
    raw = Directions(2 * fresh.vectors, "z", fresh.names, unit="raw")
    raw = effect.calibrate(toy, raw, limit_samples=200)
    assert torch.allclose(raw.limits * 2, done.limits, rtol=1e-4)
    assert torch.allclose(raw.effect, done.effect)
    assert torch.isnan(effect.calibrate(toy, fresh, limits=False).limits).all()
    known = done.with_figures(effect=torch.tensor([7.0, 7.0]), limits=torch.tensor([[-1.0, 1.0]] * 2))
    assert effect.calibrate(toy, known).effect.tolist() == [7, 7]
    assert effect.calibrate(toy, known).limits.tolist() == [[-1, 1]] * 2


# --- equal change -----------------------------------------------------------------------------------------------------


def test_image_distance() -> None:
    black, white = -torch.ones(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    assert effect.image_distance(black, 5 * white).tolist() == [2.0]  # as shown: clamped
    assert effect.image_distance(black, black).tolist() == [0.0]
    checks = torch.ones(64, 64)
    checks[::2, ::2] = checks[1::2, 1::2] = -1
    grey = torch.zeros(1, 3, 64, 64)
    assert effect.image_distance(grey, checks.expand(1, 3, -1, -1)).tolist() == [0.25]  # seen at 1 scale of 4


def test_equal_change_of_an_affine_generator() -> None:
    toy = gaussian_family()
    directions = axes(0, 5, dim=PIXELS)
    vectors = directions.vectors.clone()
    vectors[1, 0, :] = 1 / 8  # the same length in images, spread over all pixels
    directions = directions.with_figures(vectors=vectors, limits=torch.tensor([[-50.0, 50.0]] * 2))
    found = effect.equal_change(toy, directions, 0.25, n=400)
    distance = 0.05 * math.sqrt(2)  # the RMS difference of two samples
    assert found.distance == pytest.approx(distance, rel=0.02)
    assert found.strength.tolist() == pytest.approx([0.25 * distance / (0.05 / 8)] * 2, rel=0.04)
    assert found.reached.all()
    assert found.change.tolist() == pytest.approx([0.25] * 2, rel=0.02)


def test_equal_change_of_a_bent_generator_in_raw_units() -> None:
    toy = saturating_family(0.5)
    raw = Directions(4 * axes(0, dim=PIXELS + 1).vectors, "z", ("a",), unit="raw")
    wide = raw.with_figures(limits=torch.tensor([[-5.0, 5.0]]))
    found = effect.equal_change(toy, wide, 0.6)
    assert bool(found.reached[0])
    codes = effect.sample_for(toy, wide, effect.EQUAL_CODES)
    steps = effect.traverse(toy, codes, wide, 0, (0.0, -float(found.strength), float(found.strength)))
    change = (effect.image_distance(steps[:, 0], steps[:, 1]) + effect.image_distance(steps[:, 0], steps[:, 2])).mean()
    assert float(change) / 2 / found.distance == pytest.approx(0.6, rel=0.021)


def test_equal_change_stops_at_the_nearer_limit() -> None:
    directions = axes(0, dim=PIXELS, limits=torch.tensor([[-3.0, 1.5]]))
    found = effect.equal_change(gaussian_family(), directions, 0.25)
    assert found.strength.tolist() == [1.5]
    assert not found.reached.any()
    assert float(found.change) == pytest.approx(1.5 * 0.05 / 8 / found.distance, rel=1e-3)
    for fraction in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="above 0"):
            effect.equal_change(gaussian_family(), directions, fraction)


def test_equal_change_of_a_dead_direction_is_not_reached() -> None:
    toy = FunctionToy(lambda z: 0.05 * z[:, :PIXELS].reshape(-1, 1, 8, 8), PIXELS + 1)
    found = effect.equal_change(toy, axes(PIXELS, dim=PIXELS + 1, limits=torch.tensor([[-2.0, 2.0]])), 0.2)
    assert (found.strength.tolist(), found.reached.tolist(), found.change.tolist()) == ([2.0], [False], [0.0])


# --- strips -----------------------------------------------------------------------------------------------------------


def test_spread_puts_the_code_in_the_middle() -> None:
    directions = axes(0, 1, dim=3, limits=torch.tensor([[-2.0, 4.0], [math.nan, math.nan]]))
    assert spread(directions, 0, 5) == [-2, -1, 0, 2, 4]
    assert spread(directions, 1, 3) == [-3, 0, 3]
    for n in (1, 4):
        with pytest.raises(UserError, match="odd number"):
            spread(directions, 0, n)


def test_sheet_has_a_row_for_each_direction_and_code() -> None:
    toy = SlotToy()
    vectors = unit_norm(torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(1)))
    directions = Directions(vectors, "w", ("a", "b", "c"), sigma=torch.ones(3), limits=torch.tensor([[-2.0, 2.0]] * 3))
    tall = sheet(toy, directions, toy.sample(2), steps=5)
    short = sheet(toy, directions, toy.sample(2), which=["c"], steps=5)
    assert tall.height > 2.5 * short.height
    given = sheet(toy, directions, toy.sample(2), which=["c"], steps=(-1.0, 0.0, 1.0))
    assert given.width < short.width
    with pytest.raises(UserError, match="at least one of each"):
        sheet(toy, directions, toy.sample(2), which=[])


def test_the_bundled_axes_lie_measured_beside_their_generator() -> None:
    generator = load_generator("toonfaces")
    axes = METHODS["eigen"](measured=False).fit(generator)
    known = effect.with_known_figures(generator, axes)
    assert known.limits.isfinite().all()
    some = axes[["L2D1", "L4D5"]]
    assert torch.allclose(effect.measure_effect(generator, some), known[some.names].effect, rtol=0.01)
    assert effect.with_known_figures(generator, axes.flipped(["L1D1"])).effect.isnan().all()
    assert effect.with_known_figures(generator, some).effect.isnan().all()


def test_figures_of_another_generator_are_not_taken(eigengan: Generator, tmp_path: Path) -> None:
    axes = METHODS["eigen"](measured=False).fit(eigengan)
    eigengan.save(tmp_path)
    here = load_generator(tmp_path)
    axes.with_figures(effect=torch.ones(len(axes)), limits=torch.ones(len(axes), 2)).save(tmp_path / effect.KNOWN)
    assert effect.with_known_figures(here, axes).effect.tolist() == [1.0] * len(axes)
    with torch.no_grad():
        next(here.network.parameters()).add_(1.0)
    assert effect.with_known_figures(load_generator("toonfaces"), axes) is axes
    del here.weight_hash
    assert effect.with_known_figures(here, axes) is axes


def test_effects_are_remembered_by_what_they_depend_on(tiny) -> None:
    g = tiny("eigengan")
    d = METHODS["random"](n_directions=2).fit(g)
    rendered = []
    run = g._layer

    def counted(*args):
        rendered.append(1)
        return run(*args)

    g._layer = counted
    try:
        first = effect.measure_effect(g, d, n=4)
        assert rendered
        rendered.clear()
        again = effect.measure_effect(g, d, n=4)
        assert torch.equal(again, first)
        assert not rendered
        again.zero_()  # the caller's own
        assert torch.equal(effect.measure_effect(g, d, n=4), first)
        assert not torch.equal(effect.measure_effect(g, d, n=4, seed=1), first)
        assert not torch.equal(effect.measure_effect(g, d[[1, 0]], n=4), first)
        weight = g.network.rgb.weight
        kept = weight.clone()
        weight *= 0.5
        changed = effect.measure_effect(g, d, n=4)
        weight.copy_(kept)
        assert (changed < first).all()
        assert torch.equal(effect.measure_effect(g, d, n=4), first)
    finally:
        del g._layer
