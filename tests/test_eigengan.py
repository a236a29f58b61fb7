"""EigenGAN: its shapes are the published ones, its subspaces do what the paper says, and its linear case is PCA."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eigenlens import UserError
from eigenlens.errors import Unsupported
from eigenlens.generator import load_generator
from eigenlens.generators.eigengan import (
    EigenGAN,
    EigenGANConfig,
    EigenGANNetwork,
    Subspace,
    initial_importance,
)
from eigenlens.method import METHODS


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (EigenGANConfig(), 22_994_951),  # 256 px as published
        (EigenGANConfig(64), 17_434_011),
        (EigenGANConfig(128), 19_314_657),
        (EigenGANConfig(32, base_channels=16, widths="relative"), 1_417_333),
        (EigenGANConfig(64, base_channels=16, widths="relative"), 3_601_147),
        (EigenGANConfig(64, noise_dim=128, base_channels=16, widths="relative"), 2_028_283),
        (EigenGANConfig(64, base_channels=32, max_channels=256, widths="relative"), 5_828_315),
        (EigenGANConfig(128, base_channels=16, widths="relative"), 10_262_529),
    ],
)
def test_parameter_counts_are_the_published_ones(config: EigenGANConfig, parameters: int) -> None:
    with torch.device("meta"):
        assert count(EigenGANNetwork(config)) == parameters


def published_block(block: torch.nn.Module, h: Tensor, z: Tensor) -> Tensor:
    """Compute a block as the paper draws it: φ for the whole batch, then its convolutions."""
    phi = block.subspace(z).permute(0, 3, 1, 2)
    h = h + (phi if block.is_direct else block.inject1(phi))
    h = block.conv1(F.leaky_relu(h, 0.2))
    h = h if block.is_direct else h + block.inject2(phi)
    return block.conv2(F.leaky_relu(h, 0.2))


@pytest.mark.parametrize("injection", ["conv", "add"])
@pytest.mark.parametrize("orthogonality", ["penalty", "hard"])
def test_convolving_the_basis_equals_convolving_the_batch(injection: str, orthogonality: str) -> None:
    config = EigenGANConfig(
        32, noise_dim=8, n_basis=(2, 3, 4), base_channels=4, widths="relative",
        injection=injection, orthogonality=orthogonality,
    )  # fmt: skip
    network = EigenGANNetwork(config).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    latent = torch.randn(5, config.dim, dtype=torch.float64)
    eps, *zs = network.split(latent)
    h = network.from_noise(eps)
    for block, z in zip(network.blocks, zs, strict=True):
        h = published_block(block, h, z)
    assert torch.allclose(network(latent), network.to_image(h), atol=1e-12)


def test_hard_orthogonality_is_gram_schmidt() -> None:
    subspace = Subspace((4, 4, 3), 5, orthogonality="hard").double()
    with torch.no_grad():
        subspace.basis.copy_(torch.randn_like(subspace.basis))
    rows = subspace.orthonormal_basis().flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(5, dtype=torch.float64), atol=1e-12)
    given = subspace.basis.flatten(1)
    assert torch.allclose(rows[0], given[0] / given[0].norm())  # the first keeps its direction
    residual = given[1] - (given[1] @ rows[0]) * rows[0]
    assert torch.allclose(rows[1], residual / residual.norm())


def test_initial_importance() -> None:
    assert initial_importance(6, "descending").tolist() == [18, 15, 12, 9, 6, 3]
    assert initial_importance(6, "ascending").tolist() == [3, 6, 9, 12, 15, 18]
    equal = initial_importance(6, "equal")
    assert equal.unique().numel() == 1
    assert math.isclose(float(equal.square().sum()), 819, rel_tol=1e-5)


def test_initial_scale_of_phi_is_the_measured_one() -> None:
    config = EigenGANConfig(64, base_channels=16, widths="relative")
    network = EigenGANNetwork(config)
    with torch.no_grad():  # Var φ, averaged over its elements, is the sum of the squared maps over their number
        stds = [
            subspace.maps()[:-1].square().sum().div(subspace.offset.numel()).sqrt() for subspace in network.subspaces()
        ]
    assert torch.stack(stds).tolist() == pytest.approx([0.457, 0.312, 0.216, 0.150], rel=0.06)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"resolution": 48}, "allowed: 16, 32, 64"),
        ({"resolution": 8}, "allowed: 16"),
        ({"channels": 2}, "allowed: 1, 3"),
        ({"resolution": 64, "n_basis": (6, 6)}, "64 px has 4 layers"),
        ({"injection": "sum"}, "allowed: conv, add"),
        ({"n_basis": -1}, "n_basis from 0"),
    ],
)
def test_impossible_shapes_are_refused(arguments: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        EigenGANConfig(**arguments)


@pytest.mark.parametrize("resolution", [16, 32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_resolution_has_its_layers(resolution: int, channels: int) -> None:
    config = EigenGANConfig(resolution, channels=channels, n_basis=2, base_channels=2, max_channels=8, noise_dim=4)
    config = EigenGANConfig(resolution, channels, 4, 2, 2, 8, "relative")
    with torch.device("meta"):
        network = EigenGANNetwork(config)
        assert network(torch.zeros(1, config.dim)).shape == (1, channels, resolution, resolution)
    assert len(network.subspaces()) == math.log2(resolution) - 2


def make(n_basis: int | tuple[int, ...] = 3) -> EigenGAN:
    config = EigenGANConfig(16, noise_dim=8, n_basis=n_basis, base_channels=4, max_channels=8, widths="relative")
    torch.manual_seed(3)
    return EigenGAN(EigenGANNetwork(config), name="small")


def test_own_axes_are_single_coordinates_in_stored_order() -> None:
    g = make((2, 4))
    axes = g.own_axes()
    assert axes.names == ("L1D1", "L1D2", "L2D1", "L2D2", "L2D3", "L2D4")
    assert axes.vectors[:, 0].nonzero()[:, 1].tolist() == [8, 9, 10, 11, 12, 13]
    assert axes.fields["importance"][:2].sum() == pytest.approx(1)
    assert axes.fields["importance_at_init"][:2].tolist() == pytest.approx([2 / 3, 1 / 3])


def test_axes_carry_the_names_that_the_file_of_the_generator_gives_them(tmp_path: Path) -> None:
    generator = make((2, 4))
    generator.axis_names = {"L2D1": "hair colour"}
    axes = METHODS["eigen"](measured=False).fit(load_generator(generator.save(tmp_path / "named")))
    assert axes.names[axes.index("hair colour")] == "L2D1 hair colour"
    assert axes.names[0] == "L1D1"


def test_rank_is_by_the_scale_of_the_axis_not_by_its_place() -> None:
    g = make()
    with torch.no_grad():
        first = g.network.subspaces()[0]
        first.importance.copy_(torch.tensor([-1.0, 5.0, 4.0]))
        first.basis[1] *= 0.5  # a longer L with a shorter u: |L|·‖u‖ is 2.5
    assert g.own_axes().fields["rank"][:3].tolist() == [3, 2, 1]


def test_measured_effect_sees_what_importance_does_not() -> None:
    g = make()
    with torch.no_grad():
        block = g.network.blocks[0]
        block.inject1.weight.zero_()
        block.inject2.weight.zero_()  # layer 1 is dead, though its |L| is as it was
    axes = METHODS["eigen"]().fit(g)
    assert axes.effect[:3].max() == 0
    assert axes.effect[3:].min() > 0
    assert axes.importance[:3].sum() == pytest.approx(1)
    assert axes.fields["effect_share_all"].sum() == pytest.approx(1)
    assert axes.fields["effect_share"][3:].sum() == pytest.approx(1)


def test_without_subspaces_all_of_the_code_enters_at_the_base(tmp_path) -> None:
    config = EigenGANConfig(16, noise_dim=8, n_basis=0, base_channels=4, widths="relative")
    network = EigenGANNetwork(config)
    generator = EigenGAN(network, name="twin")
    generator.save(tmp_path / "twin")
    loaded = load_generator(str(tmp_path / "twin"))
    codes = loaded.sample(4, seed=0)
    assert [(part.name, part.stop) for part in loaded.space("z").parts] == [("eps", 8)]
    assert torch.allclose(loaded(codes), network(codes.latent[:, 0]), atol=1e-5)
    with pytest.raises(Unsupported, match="without subspaces"):
        loaded.own_axes()
    assert torch.equal(loaded.style_matrices()["eps"].weight, network.base.weight)
    found = METHODS["sefa"](n_directions=3, normalise="none").fit(loaded).vectors[:, 0]
    expected = torch.linalg.svd(network.base.weight.double(), full_matrices=False).Vh[:3].float()
    assert torch.allclose((found * expected).sum(1).abs(), torch.ones(3), atol=1e-4)


def test_one_layer_may_go_without_a_subspace() -> None:
    generator = make((3, 0))
    assert [part.name for part in generator.space("z").parts] == ["eps", "layer1"]
    assert set(generator.own_axes().layers) == {"layer1"}
    assert generator(generator.sample(2, seed=0)).isfinite().all()


def test_a_loaded_network_is_refused_where_it_does_not_fit() -> None:
    g = make()
    tensors = g.network.state_dict()
    with pytest.raises(UserError, match="do not fit the config"):
        EigenGAN.from_config({**g.config, "noise_dim": 9}, tensors, name="x")


# --- theory: the linear case is PCA -----------------------------------------------------------------------------------


def log_likelihood(subspace: Subspace, log_noise: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Return the mean log-likelihood of x = U L z + μ + σ ε, up to a constant, from what it asks of the data.

    By Woodbury's identity no d x d matrix is inverted; mean [d] and covariance [d, d] are sufficient.
    """
    u, variance, noise = subspace.orthonormal_basis(), subspace.importance.square(), (2 * log_noise).exp()
    second = covariance + torch.outer(mean - subspace.offset, mean - subspace.offset)  # E[(x - μ)(x - μ)ᵀ]
    explained = ((u @ second) * u).sum(1) * (variance / (variance + noise))
    quadratic = (second.trace() - explained.sum()) / noise
    log_determinant = (variance + noise).log().sum() + (len(mean) - len(variance)) * noise.log()
    return -0.5 * (quadratic + log_determinant)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_linear_case_is_pca(seed: int) -> None:
    torch.manual_seed(100)
    d, q, n = 12, 4, 20_000
    frame = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]
    deviations = torch.tensor([4.0, 3.0, 2.2, 1.5] + [0.5] * (d - q), dtype=torch.float64)
    x = torch.randn(n, d, dtype=torch.float64) * deviations @ frame.T + torch.linspace(-2, 2, d, dtype=torch.float64)
    mean, covariance = x.mean(0), torch.cov(x.T, correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0), vectors.flip(1)  # eigh sorts ascending
    noise = values[q:].mean()

    torch.manual_seed(seed)
    subspace = Subspace((d,), q, orthogonality="hard").double()
    with torch.no_grad():
        subspace.basis.copy_(torch.randn(q, d))
        subspace.importance.copy_(1 + torch.rand(q))
    log_noise = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [*subspace.parameters(), log_noise], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-14
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -log_likelihood(subspace, log_noise, mean, covariance)
        loss.backward()
        return loss

    noisy = torch.optim.Adam([*subspace.parameters(), log_noise], lr=0.03)
    for _ in range(300):  # L_j = 0 is a saddle point, on which a quasi-Newton method alone may come to rest
        noisy.step(closure)
    optimiser.step(closure)
    order = subspace.importance.abs().argsort(descending=True)
    u, scale = subspace.orthonormal_basis()[order], subspace.importance[order]
    angles = torch.rad2deg(torch.acos((u * vectors[:, :q].T).sum(1).abs().clamp(max=1)))
    assert angles.max() < 2, f"U is {angles.max():.2f}° from the principal components"
    assert torch.allclose(scale.square(), values[:q] - noise, rtol=0.05)
    assert torch.allclose((2 * log_noise).exp(), noise, rtol=0.05)
    assert torch.allclose(subspace.offset, mean, atol=1e-3)


@pytest.mark.parametrize("law", ["descending", "equal", "ascending"])
def test_every_initial_importance_comes_back_from_a_file(law: str, tmp_path: Path) -> None:
    config = EigenGANConfig(16, noise_dim=4, n_basis=(3, 2), base_channels=4, widths="relative", importance_init=law)  # type: ignore[arg-type]
    made = EigenGAN(EigenGANNetwork(config), name=law)
    again = load_generator(made.save(tmp_path / law))
    assert torch.equal(again.own_axes().fields["importance_at_init"], made.own_axes().fields["importance_at_init"])
    assert float(initial_importance(3, law).square().mean()) == pytest.approx((9 + 36 + 81) / 3)
