"""The reconstructor: shapes of both bodies, the law of shifts, the loss and the counts on hand-made arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eigenlens import UserError, runtime
from eigenlens.reconstructor import (
    Reconstructor,
    ShiftLaw,
    accuracies,
    balanced_signs,
    confusion,
    draw_shifts,
    duplicates,
    pooled,
    reconstruction_loss,
    settled,
    unrecognised,
)


def rng(index: int = 0) -> np.random.Generator:
    return runtime.generator_for(0, "test", index)


def test_shifts_are_uniform_with_a_minimum_and_as_many_up_as_down() -> None:
    which, amount = draw_shifts(40_000, 5, ShiftLaw(0.5, 6.0), rng())
    assert int((amount > 0).sum()) == 20_000
    sizes = amount.abs()
    assert sizes.min() == 0.5
    assert sizes.max() <= 6.0
    assert float((sizes == 0.5).float().mean()) == pytest.approx(0.5 / 6, abs=0.005)  # what was below is raised to it
    above = sizes[sizes > 0.5]
    assert float(above.mean()) == pytest.approx(3.25, abs=0.03)
    assert float(above.std()) == pytest.approx(5.5 / math.sqrt(12), abs=0.03)
    shares = torch.bincount(which, minlength=5) / len(which)
    assert torch.allclose(shares, torch.full((5,), 0.2), atol=0.01)
    assert abs(float(torch.corrcoef(torch.stack([which.float(), amount]))[0, 1])) < 0.02


@pytest.mark.parametrize("n", [1, 7, 8])
def test_signs_balance_in_every_batch(n: int) -> None:
    sums = [balanced_signs(n, rng(i)).sum() for i in range(200)]
    assert set(sums) == ({0.0} if n % 2 == 0 else {1.0, -1.0})
    firsts = [balanced_signs(n, rng(i))[0] for i in range(400)]
    assert abs(np.mean(firsts)) < 0.2  # no place has a sign of its own


def test_bodies_have_the_published_sizes() -> None:
    lenet = Reconstructor(64, channels=1, resolution=28)
    assert sum(p.numel() for p in lenet.body.parameters()) == (2 * 25 * 6 + 12) + (6 * 400 + 32) + (16 * 3000 + 240)
    resnet = Reconstructor(10, channels=3, resolution=64)
    stem_of_three = 11_689_512 - 513_000  # ResNet-18 without its last layer
    assert sum(p.numel() for p in resnet.body.parameters()) == stem_of_three + 3 * 64 * 49
    for network, size, k in ((lenet, 28, 64), (resnet, 64, 10), (Reconstructor(3, channels=5, resolution=8), 8, 3)):
        channels = {64: 1, 10: 3, 3: 5}[k]
        before, after = torch.rand(2, 4, channels, size, size).unbind(0)
        logits, amount = network(before, after)
        assert logits.shape == (4, k)
        assert amount.shape == (4,)
    with pytest.raises(UserError, match="allowed: auto, lenet, resnet"):
        Reconstructor(3, channels=1, resolution=8, body="vgg")  # type: ignore[arg-type]


def test_it_tells_the_order_of_a_pair() -> None:
    network = Reconstructor(3, channels=1, resolution=16).eval()
    a, b = torch.rand(2, 5, 1, 16, 16).unbind(0)
    assert not torch.allclose(network(a, b)[0], network(b, a)[0])


def test_norms_are_measured_anew_for_an_evaluation() -> None:
    network = Reconstructor(3, channels=1, resolution=64, width=0.1)
    batches = [torch.rand(2, 16, 1, 64, 64) * (1 + i) for i in range(3)]
    norm = network.body.stem[1]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)  # the running averages are those of other weights
        first = network.body.stem[0](torch.cat(list(torch.cat(batches, dim=1)), dim=1))
        with settled(network, [lambda pair=pair: network(*pair) for pair in batches]):
            assert not network.training
            assert torch.allclose(norm.running_mean, first.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
            calm = network(*batches[1])[0]
        assert network.training
        assert norm.momentum == 0.1
        network.body.stem[1].running_mean.fill_(100.0)
        assert not torch.allclose(network.eval()(*batches[1])[0], calm, atol=1e-2)


def test_loss_is_cross_entropy_and_a_quarter_of_the_error() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    loss = reconstruction_loss(logits, torch.tensor([1.0, -2.0]), torch.tensor([0, 1]), torch.tensor([2.0, -2.0]))
    assert float(loss) == pytest.approx((-math.log(0.75) - math.log(0.5)) / 2 + 0.25 * 0.5)


def test_counts() -> None:
    which = torch.tensor([0, 0, 1, 2, 2, 2])
    named = torch.tensor([0, 1, 1, 2, 0, 2])
    counts = confusion(torch.nn.functional.one_hot(named, 3).float(), which)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert accuracies(counts).tolist() == pytest.approx([0.5, 1.0, 2 / 3])


def test_dead_directions_are_those_at_chance() -> None:
    k, n = 8, 400
    perfect = torch.eye(k) * n
    assert unrecognised(perfect) == []
    useless = torch.full((k, k), n / k)
    assert unrecognised(useless) == list(range(k))
    one_dead = perfect.clone()
    one_dead[3] = n / k
    assert unrecognised(one_dead) == [3]


def test_duplicates_are_those_taken_for_each_other() -> None:
    k, n = 6, 100
    counts = torch.eye(k) * n
    assert duplicates(counts) == []
    counts[1] = counts[4] = 0
    counts[1, [1, 4]] = counts[4, [1, 4]] = n / 2
    assert duplicates(counts) == [(1, 4)]
    assert duplicates(torch.full((k, k), n / k)) == []  # all at chance: dead, not the same


def test_pooling_only_shrinks() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert pooled(images, None) is images
    assert pooled(images, 16) is images
    assert torch.allclose(pooled(images, 4)[0, 0, 0, 0], images[0, 0, :2, :2].mean())
