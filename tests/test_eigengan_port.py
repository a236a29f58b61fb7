"""EigenGAN files of the PyTorch port give the port's own images, feature points, traversals and penalty."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eigenlens import Codes, UserError, load_generator
from eigenlens.generators.eigengan import EigenGAN


def error(ours: Tensor, theirs: np.ndarray | Tensor) -> float:
    """Return the largest difference over the spread of the reference."""
    reference = torch.as_tensor(theirs)
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.std())


def joined(es: Tensor, zs: Tensor) -> Tensor:
    """Return our latents [batch, 1, dim] for eps [batch, noise_dim] and z [batch, n_layers, q]."""
    return torch.cat([es, zs.flatten(1)], dim=1)[:, None]


def opened(path: Path) -> EigenGAN:
    generator = load_generator(path, device="cpu")
    assert isinstance(generator, EigenGAN)
    return generator


@pytest.fixture(scope="module")
def golden(reference: Path) -> tuple[EigenGAN, dict[str, np.ndarray]]:
    path = reference / "goldens" / "eigengan_port_64.pt"
    with np.load(path.with_suffix(".npz")) as arrays:
        return opened(path), dict(arrays)


def test_the_averaged_copy_gives_the_reference_images(golden: tuple[EigenGAN, dict[str, np.ndarray]]) -> None:
    g, arrays = golden
    assert (g.origin.layout, g.origin.entry, g.resolution) == ("bryandlee/eigengan-pytorch", "g_ema", 64)
    latent = joined(torch.tensor(arrays["es"]), torch.tensor(arrays["zs"]))
    assert error(g.render(Codes(g.spaces["z"], latent)), arrays["image"]) <= 1e-4


def test_points_of_the_subspaces_are_the_reference_ones(golden: tuple[EigenGAN, dict[str, np.ndarray]]) -> None:
    g, arrays = golden
    zs = torch.tensor(arrays["zs"])
    for k, subspace in enumerate(g.network.subspaces()):
        phi = subspace(zs[:, k]).permute(0, 3, 1, 2).flatten(1)  # theirs are channels first and flat
        assert error(phi, arrays[f"phi{k}"]) <= 1e-4


@pytest.mark.parametrize(("block", "dimension"), [(0, 5), (3, 0)])
def test_traversals_are_the_reference_ones(
    golden: tuple[EigenGAN, dict[str, np.ndarray]], block: int, dimension: int
) -> None:
    g, arrays = golden
    es, zs = torch.tensor(arrays["es"])[:1].repeat(3, 1), torch.tensor(arrays["zs"])[:1].repeat(3, 1, 1)
    zs[:, block, dimension] = torch.tensor([-4.0, 0.0, 4.0])
    images = g.render(Codes(g.spaces["z"], joined(es, zs)))
    assert error(images, arrays[f"traverse_b{block}_d{dimension}"]) <= 1e-4
    axes = g.own_axes()
    axis = axes.vectors[axes.names.index(f"L{block + 1}D{dimension + 1}"), 0]
    assert torch.equal((joined(es, zs)[2, 0] - joined(es, zs)[1, 0]) / 4, axis)


def test_the_penalty_is_the_reference_one(golden: tuple[EigenGAN, dict[str, np.ndarray]]) -> None:
    g, arrays = golden
    # the port takes the mean over the q² entries and over the layers
    ours = torch.stack([s.orthogonality_error() / len(s.importance) ** 2 for s in g.network.subspaces()]).mean()
    assert abs(float(ours) / float(arrays["orth_reg"]) - 1) <= 1e-4


# --- a file of another shape ------------------------------------------------------------------------------------------


class Projection(nn.Module):
    def __init__(self, q: int, size: int) -> None:
        super().__init__()
        self.U = nn.Parameter(nn.init.orthogonal_(torch.empty(q, size)))
        self.L = nn.Parameter(torch.randn(q) * 5)
        self.mu = nn.Parameter(torch.randn(size) * 0.3)


class PortBlock(nn.Module):
    """A block as the port names and draws it; all its convolutions are transposed ones."""

    def __init__(self, before: int, after: int, size: int, q: int) -> None:
        super().__init__()
        self.shape = (before, size, size)
        self.projection = Projection(q, before * size * size)
        self.subspace_conv1 = nn.Sequential(nn.ConvTranspose2d(before, before, 1))
        self.subspace_conv2 = nn.Sequential(nn.ConvTranspose2d(before, after, 3, 2, 1, 1))
        self.feature_conv1 = nn.Sequential(nn.LeakyReLU(0.2), nn.ConvTranspose2d(before, after, 3, 2, 1, 1))
        self.feature_conv2 = nn.Sequential(nn.LeakyReLU(0.2), nn.ConvTranspose2d(after, after, 3, 1, 1))

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        p = self.projection
        phi = ((z * p.L) @ p.U + p.mu).view(-1, *self.shape)
        h = self.feature_conv1(h + self.subspace_conv1(phi))
        return self.feature_conv2(h + self.subspace_conv2(phi))


class PortGenerator(nn.Module):
    def __init__(self, widths: tuple[int, ...], q: int, noise_dim: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(noise_dim, 16 * widths[0])
        self.blocks = nn.ModuleList(PortBlock(widths[i], widths[i + 1], 4 * 2**i, q) for i in range(len(widths) - 1))
        self.to_rgb = nn.Sequential(nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], channels, 7, 1, 3)))

    def forward(self, es: Tensor, zs: Tensor) -> Tensor:
        h = self.fc(es).view(len(es), -1, 4, 4)
        for k, block in enumerate(self.blocks):
            h = block(h, zs[:, k])
        return torch.tanh(self.to_rgb(h))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_grey_file_of_32_px_and_three_axes_a_layer(tmp_path: Path, prefix: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = PortGenerator((12, 12, 8, 4), q=3, noise_dim=5, channels=1).eval()
        es, zs = torch.randn(2, 5), torch.randn(2, 3, 3)
    with torch.no_grad():
        wanted = net(es, zs)
    tensors = {prefix + key: value for key, value in net.state_dict().items()}
    raw = {key: value * 0.5 for key, value in tensors.items()}
    path = tmp_path / "port.pt"
    torch.save({"step": 7, "args": argparse.Namespace(size=32), "g": raw, "d": {}, "g_ema": tensors}, path)
    g = opened(path)
    assert (g.resolution, g.channels, g.spaces["z"].dim) == (32, 1, 5 + 9)
    codes = Codes(g.spaces["z"], joined(es, zs))
    assert error(g.render(codes), wanted) <= 1e-4
    again = opened(g.save(tmp_path / "ours"))
    assert torch.equal(again.render(Codes(again.spaces["z"], codes.latent)), g.render(codes))
    with pytest.raises(UserError, match="tells all itself"):
        load_generator(path, device="cpu", activation="relu")
