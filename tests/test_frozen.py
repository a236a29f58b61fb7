"""Convolutions whose algorithm depends on their size, and what frozen weights keep."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eigenlens.frozen import convolved, kept, suits_winograd, winograd, winograd_weight


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def features(*shape: int) -> Tensor:
    return drawn(*shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("batch", "inputs", "width", "height", "across", "padding"),
    [(1, 128, 130, 16, 16, 1), (3, 4, 5, 8, 12, 1), (2, 5, 4, 9, 7, 2), (1, 3, 2, 6, 5, 0)],
)
def test_winograd_is_the_convolution(
    batch: int, inputs: int, width: int, height: int, across: int, padding: int
) -> None:
    x, weight, bias = features(batch, inputs, height, across), drawn(width, inputs, 3, 3, seed=1), drawn(width, seed=2)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=padding)
    found = winograd(x, winograd_weight(weight), bias, padding=padding)
    assert found.shape == expected.shape
    assert found.permute(0, 2, 3, 1).stride(3) == 1  # channels-last
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (found - expected).square().mean().sqrt() <= 4e-6 * expected.square().mean().sqrt()


def test_winograd_is_for_many_channels_and_no_gradients() -> None:
    many, few = nn.Parameter(drawn(256, 256, 3, 3), requires_grad=False), drawn(128, 256, 3, 3)
    x = features(1, 256, 16, 16)
    assert suits_winograd(x, many)
    assert not suits_winograd(x, few)
    assert suits_winograd(features(2, 256, 16, 16), few)  # a batch shares the weights
    assert not suits_winograd(x.bfloat16(), many)
    assert not suits_winograd(features(1, 256, 8, 8), many)
    assert not suits_winograd(x.clone().requires_grad_(), many)
    assert torch.allclose(convolved(x, many, padding=1), F.conv2d(x, many, padding=1), atol=1e-3)
    assert "winograd" in many.__dict__["_kept"]


@pytest.mark.parametrize("side", [2, 4, 5, 8])
@pytest.mark.parametrize("fixed", [False, True])
def test_doubling_is_a_transposed_convolution(side: int, fixed: bool) -> None:
    weight = drawn(6, 5, 3, 3, seed=1)
    held = nn.Parameter(weight, requires_grad=False) if fixed else weight
    x, bias = features(2, 5, side, side), drawn(6, seed=2)
    expected = F.conv_transpose2d(x, weight.transpose(0, 1), bias, stride=2)
    assert torch.allclose(convolved(x, held, bias, up=2), expected, atol=1e-5)


@pytest.mark.parametrize("up", [1, 2])
def test_the_precision_is_that_of_the_features(up: int) -> None:
    weight = nn.Parameter(drawn(6, 5, 3, 3), requires_grad=False)
    x = features(1, 5, 8, 8)
    low, high = convolved(x.bfloat16(), weight, up=up), convolved(x, weight, up=up)
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), high, atol=0.2)
    assert not torch.equal(low.float(), high)


def test_what_is_kept_follows_its_weights() -> None:
    weight = nn.Parameter(torch.ones(3), requires_grad=False)
    calls = []

    def double() -> Tensor:
        calls.append(1)
        return 2 * weight

    assert kept(weight, "double", double, weight) is kept(weight, "double", double, weight)
    with torch.no_grad():
        weight += 1
    assert kept(weight, "double", double, weight).tolist() == [4, 4, 4]
    assert len(calls) == 2
    assert not hasattr(copy.deepcopy(weight), "_kept")
    with torch.no_grad():
        weight += 1
    with torch.inference_mode():
        assert not kept(weight, "double", double, weight).is_inference()  # or no gradient could pass it later
    weight.requires_grad_()
    found = kept(weight, "double", double, weight)
    assert found.requires_grad
    assert kept(weight, "double", double, weight) is not found
