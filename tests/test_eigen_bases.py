"""The true axes of a layer of an EigenGAN: in closed form where the answer is known, and against differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eigenlens import METHODS, Unsupported, UserError
from eigenlens.generators import eigengan
from eigenlens.generators.eigengan import EigenGAN, EigenGANConfig, EigenGANNetwork
from eigenlens.methods.eigen import Eigen, image_grams
from families import TINY


def identity_(layer: torch.nn.Module) -> None:
    """Make a convolution pass its input on; one of stride 2 puts it on every other pixel."""
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    middle = layer.kernel_size[0] // 2
    for channel in range(layer.in_channels):
        layer.weight.data[channel, channel, middle, middle] = 1.0


def planted(injection: str, importance: Tensor) -> EigenGANNetwork:
    """A 16 px network of three channels everywhere whose features come out as the image, 1000 times smaller."""
    config = EigenGANConfig(
        16, noise_dim=4, n_basis=len(importance), base_channels=3, max_channels=3, widths="relative",
        injection=injection, orthogonality="hard",
    )  # fmt: skip
    torch.manual_seed(0)
    network = EigenGANNetwork(config)
    for block in network.blocks:
        for layer in (block.conv1, block.conv2):
            identity_(layer)
        block.subspace.importance.data = importance.clone()
    identity_(network.rgb)
    network.rgb.weight.data *= 1e-3  # where tanh is linear
    return network


def test_on_a_linear_isometric_network_all_bases_are_the_principal_components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigengan, "SLOPE", 1.0)
    importance = torch.tensor([2.0, -5.0, 1.0, 3.0])
    g = EigenGAN(planted("add", importance), name="linear")
    order = importance.abs().argsort(descending=True)
    codes = g.sample(4000, seed=1)
    for part in g.space("z").parts[1:]:
        only = torch.zeros_like(codes.latent)
        only[..., part.start : part.stop] = codes.latent[..., part.start : part.stop]
        images = g.render(codes.with_latent(only)).flatten(1).double()
        components = torch.linalg.svd(images - images.mean(0), full_matrices=False)[2][: len(importance)]
        for basis in ("stored", "injected", "image"):
            found = Eigen(basis=basis, measured=False).fit(g)
            mine = found[[k for k, name in enumerate(found.names) if name.startswith(f"L{part.number}")]]
            if basis == "stored":
                mine = mine[[int(rank) for rank in mine.fields["rank"].argsort()]]
            assert torch.allclose(mine.vectors[:, 0, part.start : part.stop].abs(), torch.eye(4)[order], atol=1e-3)
            steps = g(codes[:1].with_latent(mine.vectors)) - g(
                codes[:1].with_latent(torch.zeros(1, 1, g.space("z").dim))
            )
            cosines = torch.nn.functional.normalize(steps.flatten(1).double(), dim=1) @ components.T
            assert torch.allclose(cosines.abs(), torch.eye(4).double(), atol=0.08), basis  # of 4000 samples
            if basis != "stored":
                ratios = mine.fields["singular_value"] / mine.fields["singular_value"][0]
                assert torch.allclose(ratios, torch.tensor([1.0, 0.6, 0.4, 0.2]), atol=1e-4)


def test_injected_axes_in_closed_form() -> None:
    network = planted("conv", torch.ones(2))
    block = network.blocks[0]
    one, other = torch.zeros(2, *block.subspace.shape)
    one[0, 0, 0], other[0, 0, 1] = 1.0, 1.0  # the same pixel in two channels
    block.subspace.basis.data = torch.stack([one + other, one - other]) / 2**0.5
    identity_(block.inject1)
    block.inject1.weight.data[0] *= 10.0  # the first channel enters ten times as strongly
    torch.nn.init.zeros_(block.inject2.weight)
    g = EigenGAN(network, name="planted")
    found = Eigen(basis="injected", measured=False).fit(g)
    assert found.names[:2] == ("L1-injected-1", "L1-injected-2")
    assert torch.allclose(found.fields["singular_value"][:2], torch.tensor([10.0, 1.0]), atol=1e-5)
    start = g.space("z").parts[1].start
    half = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
    cosines = (found.vectors[:2, 0, start : start + 2] * half).sum(1).abs()
    assert torch.allclose(cosines, torch.ones(2), atol=1e-5)
    assert torch.allclose(found.fields["stored_cosine"][:2], torch.full((2,), 0.5**0.5), atol=1e-5)
    assert (found.vectors[:2, 0, :start] == 0).all()
    assert (found.vectors[:2, 0, start + 2 :] == 0).all()


def test_the_second_injection_counts_as_well() -> None:
    network = planted("conv", torch.tensor([1.0, 2.0]))
    block = network.blocks[0]
    torch.nn.init.zeros_(block.inject1.weight)
    identity_(block.inject2)
    found = Eigen(basis="injected", measured=False).fit(EigenGAN(network, name="planted"))
    assert torch.allclose(found.fields["singular_value"][:2], torch.tensor([2.0, 1.0]), atol=1e-5)


def test_image_grams_are_those_of_differences() -> None:
    torch.manual_seed(3)
    config = EigenGANConfig(16, noise_dim=4, n_basis=(3, 2), base_channels=4, max_channels=8, widths="relative")
    network = EigenGANNetwork(config).double()
    g = EigenGAN(network, name="random")
    codes = g.sample(5, seed=2).to(torch.device("cpu"))
    codes = codes.with_latent(codes.latent.double())
    for part in g.space("z").parts[1:]:
        columns = []
        for place in range(part.start, part.stop):
            step = torch.zeros(1, 1, config.dim, dtype=torch.float64)
            step[..., place] = 1e-6
            ahead, behind = (network((codes.latent + sign * step)[:, 0]) for sign in (1, -1))
            columns.append((ahead - behind).flatten(1) / 2e-6)
        jacobian = torch.stack(columns, dim=1).detach()  # [codes, q, pixels]
        products = jacobian @ jacobian.mT / jacobian.shape[2]
        network.float()
        grams = image_grams(g, codes.with_latent(codes.latent.float()), part)
        network.double()
        for parity in (0, 1):
            assert torch.allclose(grams[parity], products[parity::2].mean(0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("basis", ["injected", "image"])
def test_directions_of_another_basis_are_whole(basis: str) -> None:
    g = TINY["eigengan"]()
    found = METHODS["eigen"](basis=basis, n_samples=4).fit(g, seed=1)
    stored = METHODS["eigen"]().fit(g)
    assert len(found) == len(stored)
    gram = found.vectors[:, 0] @ found.vectors[:, 0].T
    assert torch.allclose(gram, torch.eye(len(found)), atol=1e-5)
    assert found.provenance.arguments["basis"] == basis
    assert found.effect.isfinite().all()
    layers = [name.split("-")[0] for name in found.names]
    for layer in set(layers):
        rows = [k for k, each in enumerate(layers) if each == layer]
        assert float(found.importance[rows].sum()) == pytest.approx(1)
        assert (found.fields["singular_value"][rows].diff() <= 0).all()
        span = found.vectors[rows, 0].abs().amax(0) > 0
        assert torch.equal(span, stored.vectors[rows, 0].abs().amax(0) > 0)  # the same coordinates as stored
    assert found.split_half.isfinite().all() == (basis == "image")


def test_what_is_no_basis_is_said() -> None:
    with pytest.raises(UserError, match="basis 'pca' is not known; allowed: stored, injected, image"):
        Eigen(basis="pca").fit(TINY["eigengan"]())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="1 samples came"):
        Eigen(n_samples=1).fit(TINY["eigengan"]())
    with pytest.raises(Unsupported, match="only an EigenGAN"):
        TINY["dcgan"]().injected_matrices()
