"""Directions from Jacobians that are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eigenlens.codes import Codes, Part, Space
from eigenlens.directions import Directions
from eigenlens.errors import UserError
from eigenlens.generator import Generator
from eigenlens.generators.eigengan import EigenGAN, EigenGANConfig, EigenGANNetwork
from eigenlens.methods.jacobian import Derivative, Jacobian, region_channels, region_mask
from toys import MappedToy, Toy, linear_toy, orthonormal_rows, planted


def cosines(directions: Directions, truth: Tensor) -> Tensor:
    found = directions.vectors.flatten(1).double()
    truth = torch.nn.functional.normalize(truth.double(), dim=1)
    return (found * truth[: len(found)]).sum(1).abs() / found.norm(dim=1)


def test_a_linear_generator_gives_its_singular_vectors() -> None:
    values = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5])
    matrix, right = planted(values, 48, 12, seed=1)
    found = Jacobian(n_directions=4, n_samples=3).fit(linear_toy(matrix, (3, 4, 4)))
    assert cosines(found, right).min() > 1 - 1e-5
    assert torch.allclose(found.fields["eigenvalue"], values[:4].square(), rtol=1e-4)
    assert torch.allclose(found.importance, values[:4].square() / values.square().sum(), rtol=1e-4)
    assert found.split_half.min() > 1 - 1e-4


def test_iteration_finds_them_in_more_dimensions_than_the_block() -> None:
    values = 4.0 * 0.9 ** torch.arange(100.0)
    matrix, right = planted(values, 192, 100, seed=2)
    found = Jacobian(n_directions=5, n_samples=2, iterations=6).fit(linear_toy(matrix, (3, 8, 8)))
    assert cosines(found, right).min() > 0.999
    share = values[:5].square() / values.square().sum()
    assert torch.allclose(found.importance, share, rtol=0.3)  # what lies outside the block is estimated


def test_the_mean_is_over_the_square_of_the_jacobian_not_over_its_vectors() -> None:
    """x = B (z²/2) has J = B diag(z): JᵀJ = diag(z) BᵀB diag(z), with the mean diag(BᵀB) for z of N(0, 1)."""
    mixing = orthonormal_rows(5, 12, seed=3).T * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]).double()
    space = Space("z", 1, 5)

    def function(latent: Tensor) -> Tensor:
        return (latent[:, 0].square() / 2 @ mixing.float().T).unflatten(1, (3, 2, 2))

    toy = Toy(function, space)
    mean = Jacobian(n_directions=5, n_samples=400).fit(toy, seed=1)
    assert cosines(mean, torch.eye(5)).min() > 0.99
    one = Jacobian(n_directions=3, sample=7).fit(toy, seed=1)
    z = toy.sample(1, seed=1, start=7).latent[0, 0].double()
    assert (
        cosines(one, torch.eye(5)[(z * torch.tensor([5.0, 4, 3, 2, 1])).abs().argsort(descending=True)]).min() > 0.999
    )
    assert torch.isnan(one.split_half).all()


def test_codes_may_be_given(tiny: Callable[[str], Generator]) -> None:
    g = tiny("eigengan")
    drawn = Jacobian(3, sample=7, region=(0, 0, 0.5, 0.5)).fit(g, seed=1)
    with torch.inference_mode():
        codes = g.sample(1, seed=1, start=7)
    given = Jacobian(3, region=(0, 0, 0.5, 0.5)).fit(g, seed=1, codes=codes)
    assert torch.equal(given.vectors, drawn.vectors)
    assert torch.isnan(given.split_half).all()
    with pytest.raises(UserError, match="no codes came"):
        Jacobian(3).fit(g, codes=codes[[]])


@pytest.mark.parametrize("layers", ["all", "1-2"])
def test_codes_of_several_slots_move_alike_in_all_of_them(tiny: Callable[[str], Generator], layers: str) -> None:
    g = tiny("stylegan2")
    w = g.sample(1, seed=3, space="w", label=0)
    alike = Jacobian(3, layers=layers).fit(g, codes=w)
    wide = Jacobian(3, layers=layers).fit(g, codes=g.lift(w, "w+"))
    assert (alike.space, wide.space) == ("w", "w")
    assert cosines(wide, alike.vectors[:, 0]).min() > 1 - 1e-4
    mixed = g.lift(w, "w+")
    latent = mixed.latent.clone()
    latent[:, 1:] = g.sample(1, seed=4, space="w", label=0).latent
    elsewhere = Jacobian(3, layers=layers).fit(g, codes=mixed.with_latent(latent))
    assert cosines(elsewhere, alike.vectors[:, 0]).min() < 0.99


def test_products_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    config = EigenGANConfig(16, noise_dim=4, n_basis=2, base_channels=4, max_channels=8, widths="relative")
    g = EigenGAN(EigenGANNetwork(config), name="tiny")
    codes = g.sample(3, seed=0)
    g.render(codes)  # what the network keeps between calls must not come from inference mode
    images = lambda change, i: g(codes[i].with_latent(codes.latent[i : i + 1] + change)).flatten()  # noqa: E731
    exact = torch.stack([torch.func.jacfwd(images)(torch.zeros(8), i) for i in range(3)])  # [3, out, dim]
    for has_forward_mode in (True, False):
        problem = Derivative(g, codes, "all", "image", None)
        problem.has_forward_mode = has_forward_mode
        tangents = torch.randn(3, 8)
        rows = torch.arange(3)
        pushed = problem.push(rows, tangents)
        assert torch.allclose(pushed.flatten(1), torch.einsum("bod,bd->bo", exact, tangents), atol=1e-4)
        assert problem.has_forward_mode == has_forward_mode
        pulled = problem.pull(rows)(pushed)
        assert torch.allclose(pulled, torch.einsum("bod,bo->bd", exact, pushed.flatten(1)), rtol=1e-3, atol=1e-3)
    halves, _ = Derivative(g, codes, "all", "image", None).gram_times(torch.eye(8).double())
    grams = torch.einsum("bod,boe->bde", exact, exact).double()
    assert torch.allclose(halves[0], grams[[0, 2]].mean(0), rtol=1e-3, atol=1e-3)
    assert torch.allclose(halves[1], grams[1], rtol=1e-3, atol=1e-3)


def test_networks_without_forward_derivatives_go_backward_twice() -> None:
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x * 3

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            return gradient * 3

    toy = Toy(lambda latent: OneWay.apply(latent)[:, 0, :, None, None].expand(-1, -1, 2, 2), Space("z", 1, 3))
    found = Jacobian(3, n_samples=2).fit(toy)
    assert torch.allclose(found.fields["eigenvalue"], torch.full((3,), 36.0))


def test_a_layer_range_moves_and_carries_only_that() -> None:
    axes = orthonormal_rows(6, 12, seed=1)
    toy = MappedToy(axes.T * torch.tensor([4.0, 3.0, 2.0, 1.5, 1.0, 0.5]).double())
    found = Jacobian(2, n_samples=4, layers="1").fit(toy)
    assert found.space == "w"
    assert found.layers == ("1", "1")
    whole = Jacobian(2, n_samples=4).fit(toy)  # the image is the mean of three slots, so one slot moves it by a third
    assert torch.allclose(found.fields["eigenvalue"] * 9, whole.fields["eigenvalue"], rtol=1e-4)


def test_parts_outside_the_range_do_not_move() -> None:
    space = Space("z", 1, 6, (Part("a", 0, 0, 0, 3), Part("b", 1, 0, 3, 6)))
    toy = Toy(lambda latent: latent[:, 0].unflatten(1, (3, 1, 2)).expand(-1, -1, 2, -1), space)
    found = Jacobian(5, n_samples=2, layers="b").fit(toy)
    assert len(found) == 3
    assert found.vectors[:, 0, :3].abs().max() == 0


def two_regions() -> tuple[Toy, Tensor]:
    """x has four quarters; each direction v_i of four changes quarter 0 by inside[i] and the others by outside[i]."""
    inside, outside = torch.tensor([3.0, 2.0, 1.0, 0.5]), torch.tensor([6.0, 1.0, 1.0, 0.05])
    right = orthonormal_rows(4, 4, seed=5).float()

    def function(latent: Tensor) -> Tensor:
        amounts = latent[:, 0] @ right.T  # [batch, 4]
        image = torch.zeros(len(latent), 4, 4, 4)
        image[:, :, :2, :2] = (amounts * inside)[:, :, None, None]
        image[:, :, 2:, :] = (amounts * outside)[:, :, None, None]
        return image

    return Toy(function, Space("z", 1, 4)), right


@pytest.mark.parametrize("region", [(0, 0, 2, 2), (0.0, 0.0, 0.5, 0.5)])
def test_a_region_changes_and_the_rest_stays(region: tuple[float, float, float, float]) -> None:
    toy, right = two_regions()
    found = Jacobian(4, n_samples=2, region=region, regularisation=0.0).fit(toy)
    # four pixels inside, eight outside
    assert cosines(found, right[[3, 1, 2, 0]]).min() > 1 - 1e-4
    assert torch.allclose(found.importance, torch.tensor([10.0, 2.0, 1.0, 0.5]).square() / 2, rtol=1e-3)
    assert torch.allclose(found.fields["inside"][:2], torch.tensor([1.0, 4.0]), rtol=1e-3)
    assert torch.allclose(found.fields["outside"][:2], torch.tensor([0.05, 1.0]) * 8**0.5, rtol=1e-3)
    written = Jacobian(4, n_samples=2, region=",".join(map(str, region)), regularisation=0.0).fit(toy)
    assert torch.equal(written.vectors, found.vectors)
    careful = Jacobian(4, n_samples=2, region=region, regularisation=1.0).fit(toy)
    assert cosines(careful, right[[1, 3, 2, 0]])[0] > 1 - 1e-4  # a change that is hardly seen no longer comes first


def test_regions_are_checked() -> None:
    shape = torch.Size((1, 3, 8, 8))
    assert torch.equal(region_mask((0, 0, 32, 64), shape, 64), region_mask((0, 0, 0.5, 1), shape, 64))
    assert region_mask((0, 0, 32, 64), shape, 64).sum() == 32
    with pytest.raises(UserError, match="write x0,y0,x1,y1"):
        Jacobian(region="0,0,1").fit(linear_toy(torch.randn(48, 12), (3, 4, 4)))
    for wrong in ((0, 0, 70, 10), (5, 0, 5, 10), (-1, 0, 5, 10)):
        with pytest.raises(UserError, match="is no box"):
            region_mask(wrong, shape, 64)
    with pytest.raises(UserError, match="whole image"):
        region_mask((0, 0, 1, 1), shape, 64)
    with pytest.raises(UserError, match="unknown layer"):
        Jacobian(at="nowhere").fit(linear_toy(torch.randn(48, 12), (3, 4, 4)))
    with pytest.raises(UserError, match="from 1"):
        Jacobian(0).fit(linear_toy(torch.randn(48, 12), (3, 4, 4)))


def test_channels_are_ranked_by_their_share_in_a_region() -> None:
    scale = torch.tensor([1.0, 2.0, 3.0, 0.001])
    parts = (Part("b4.conv1", 0, 0, 0, 3), Part("b8.conv0", 1, 0, 3, 4))

    class Styled(Toy):
        def _draw(self, n: int, *, seed: int, start: int, truncation: float) -> Tensor:
            return super()._draw(n, seed=seed, start=start, truncation=truncation) * torch.tensor([1.0, 1.0, 2.0, 1.0])

    def function(latent: Tensor) -> Tensor:
        s = latent[:, 0] * scale
        image = torch.zeros(len(latent), 3, 4, 4)
        image[:, 0, :2, :2] = s[:, 0, None, None]  # all inside
        image[:, 1, :, :] = s[:, 1, None, None]  # a quarter inside
        image[:, 2, :, :2] = s[:, 2, None, None]  # half inside
        image[:, 2, 0, 0] += s[:, 3]  # all inside, but hardly seen
        return image

    toy = Styled(function, Space("s", 1, 4, parts))
    found = region_channels(toy, (0, 0, 2, 2), n_samples=64, n_probes=64)
    assert found.names == ("b4.conv1.0", "b4.conv1.2", "b4.conv1.1")
    assert torch.allclose(found.importance, torch.tensor([1.0, 0.5, 0.25]), atol=0.03)
    assert torch.allclose(found.sigma, torch.tensor([1.0, 2.0, 1.0]), rtol=0.1)
    assert torch.allclose(found.fields["inside"], torch.tensor([1.0, 6.0, 2.0]) / 3**0.5, rtol=0.1)
    assert isinstance(toy.sample(1), Codes)
