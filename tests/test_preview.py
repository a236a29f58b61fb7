"""Frames are the generator's own images, whatever was rendered before them; codes of one Edit and its neighbours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from eigenlens import UserError
from eigenlens.directions import Directions
from eigenlens.edit import Edit, Move, Start, apply
from eigenlens.generator import Generator, State
from eigenlens.method import METHODS
from eigenlens.preview import Preview, is_same, neighbours


@pytest.fixture
def axes(eigengan: Generator) -> Directions:
    return METHODS["eigen"](measured=False).fit(eigengan)


def edit(*moves: tuple[str, float], seed: int = 3) -> Edit:
    return Edit("tiny", Start(seed=seed), tuple(Move("eigen", name, by=by) for name, by in moves))


def test_frames_equal_the_full_run_bit_for_bit(eigengan: Generator, axes: Directions) -> None:
    preview = Preview(eigengan, lambda name: axes)
    sequence = [
        edit(),
        edit(("L2D1", 1.0)),
        edit(("L2D1", 1.5)),
        edit(("L2D1", 1.5), ("L1D2", -2.0)),
        edit(("L2D1", 0.5), ("L1D2", -2.0)),
        edit(("L1D2", -2.0), seed=4),
        edit(("L2D1", 3.0)),
    ]
    for each in sequence:
        with torch.inference_mode():
            whole = eigengan(apply(each, eigengan, lambda name: axes).after)
        assert torch.equal(preview.images(each), whole)


def test_a_drag_of_a_late_layer_does_not_run_the_early_ones(
    eigengan: Generator, axes: Directions, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    run = eigengan._layer
    monkeypatch.setattr(
        eigengan, "_layer", lambda index, state, inputs: (ran.append(index), run(index, state, inputs))[1]
    )
    preview = Preview(eigengan, lambda name: axes)
    last = f"L{eigengan.layer_index('rgb') - 1}D1"
    for by in (0.0, 1.0, 2.0):
        ran.clear()
        preview.images(edit((last, by)))
    assert ran == [eigengan.layer_index("rgb") - 1, eigengan.layer_index("rgb")]


def test_the_same_edit_again_is_not_rendered(
    eigengan: Generator, axes: Directions, monkeypatch: pytest.MonkeyPatch
) -> None:
    preview = Preview(eigengan, lambda name: axes)
    first = preview.images(edit(("L1D1", 1.0)))
    monkeypatch.setattr(eigengan, "_layer", None)
    assert torch.equal(preview.images(edit(("L1D1", 1.0))), first)


def test_images_of_neighbours_are_those_of_their_own_seeds(eigengan: Generator, axes: Directions) -> None:
    preview = Preview(eigengan, lambda name: axes)
    four = preview.images(edit(("L1D1", 2.0), seed=7), n=4)
    assert four.shape[0] == 4
    alone = Preview(eigengan, lambda name: axes).images(edit(("L1D1", 2.0), seed=9))
    assert torch.allclose(four[2], alone[0], atol=1e-5)


@pytest.mark.parametrize("family", ["stylegan2", "biggan", "stylegan3", "custom"])
def test_every_kind_of_space(family: str, tiny: Callable[[str], Generator]) -> None:
    generator = tiny(family)
    label = 1 if generator.label_names else None
    found = METHODS["random"](n_directions=2).fit(generator)
    preview = Preview(generator, lambda name: found)
    for by, layers in ((0.0, None), (1.0, None), (2.0, None), (2.0, "0")):
        each = Edit("tiny", Start(seed=1, label=label), (Move("random", "0", by=by, layers=layers),))
        with torch.inference_mode():
            whole = generator(apply(each, generator, lambda name: found).after)
        assert torch.allclose(preview.images(each), whole, atol=1e-5)


def test_labels_and_noise_count_as_differences(tiny: Callable[[str], Generator]) -> None:
    generator = tiny("biggan")
    a, b = generator.sample(1, label=0), generator.sample(1, label=1)
    assert is_same(a, generator.sample(1, label=0))
    assert not is_same(a, b)
    noisy = tiny("stylegan2")
    assert not is_same(noisy.sample(1, label=0), noisy.sample(1, label=0, noise="random"))


def test_bounds_are_kept(eigengan: Generator, axes: Directions) -> None:
    preview = Preview(eigengan, lambda name: axes)
    plain = edit(("L2D1", 2.0))
    boxed = dataclasses.replace(plain, region=(0.0, 0.0, 0.5, 0.5))
    kept = dataclasses.replace(plain, keep=("pixels:brightness",))
    for each in (boxed, kept):
        done = apply(each, eigengan, lambda name: axes)
        assert torch.allclose(preview.images(each), done.images(eigengan)[1:], atol=1e-5)
    two = preview.images(kept, n=2)
    assert torch.allclose(two[:1], preview.images(kept), atol=1e-5)
    before = preview.images(edit())
    assert torch.equal(preview.images(boxed)[..., 10:, 10:], before[..., 10:, 10:])


def test_a_strip_stands_in_for_the_move_along_its_direction(eigengan: Generator, axes: Directions) -> None:
    preview = Preview(eigengan, lambda name: axes)
    moved = edit(("L1D1", 1.0), ("L2D2", 2.0))
    strip = preview.strip(moved, "eigen", "L1D1", (-1.0, 0.0, 1.0), None)
    assert torch.allclose(strip[2], preview.images(moved)[0], atol=1e-5)
    assert torch.allclose(strip[1], preview.images(edit(("L2D2", 2.0)))[0], atol=1e-5)


def test_coordinates_are_what_to_compares_with(eigengan: Generator, axes: Directions) -> None:
    preview = Preview(eigengan, lambda name: axes)
    before = preview.coordinates(edit(), "eigen")
    after = preview.coordinates(edit(("L1D2", 1.5)), "eigen")
    assert after[1] - before[1] == pytest.approx(1.5, abs=1e-4)
    assert after[0] == pytest.approx(before[0], abs=1e-4)


def test_memory_for_starts_is_bounded(eigengan: Generator, axes: Directions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eigenlens.preview.N_STARTS", 3)
    preview = Preview(eigengan, lambda name: axes)
    preview.starts(Start(seed=0), 5)
    assert len(preview._starts) == 3


def test_no_pictures_are_a_mistake() -> None:
    with pytest.raises(UserError, match="0 images were asked for"):
        neighbours(Start(), 0)


def test_what_is_held_begins_before_the_layer(eigengan: Generator, axes: Directions) -> None:
    preview = Preview(eigengan, lambda name: axes)
    for by in (0.0, 1.0):
        preview.images(edit(("L2D1", by)))
    [held] = preview._held.values()
    assert isinstance(held.state, State)
    assert held.layer == eigengan.layer_index("layer2")
    preview.forget()
    assert not preview._held


def test_quick_frames_are_near_and_leave_the_full_ones_alone(
    tiny: Callable[[str], Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eigenlens.preview.FULL_UP_TO", 8)
    monkeypatch.setattr("eigenlens.runtime.has_fast_bf16", lambda device: True)
    generator = tiny("stylegan2")
    found = METHODS["random"](n_directions=1).fit(generator)
    preview = Preview(generator, lambda name: found)
    for by in (0.0, 1.0, 2.0):
        each = Edit("tiny", Start(label=0), (Move("random", 0, by=by),))
        full, quick = preview.images(each), preview.images(each, quick=True)
        with torch.inference_mode():
            assert torch.equal(full, generator(apply(each, generator, lambda name: found).after))
        assert 0 < float((full - quick).abs().mean()) < 0.1 * float(full.std())
    assert generator.precision == "fp32"
