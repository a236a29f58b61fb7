"""SNGAN folders give their own network's images and features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eigenlens import Codes, UserError, load_generator
from eigenlens.generators.sngan import SNGAN


def error(ours: Tensor, theirs: np.ndarray | Tensor) -> float:
    """Return the largest difference over the spread of the reference."""
    reference = torch.as_tensor(theirs)
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.std())


def opened(path: Path, **options: object) -> SNGAN:
    generator = load_generator(path, device="cpu", **options)
    assert isinstance(generator, SNGAN)
    return generator


def test_the_golden_folder_gives_the_reference_images_and_features(reference: Path) -> None:
    g = opened(reference / "goldens" / "sngan_32")
    assert (g.origin.layout, g.resolution, g.channels) == ("anvoynov/GANLatentDiscovery", 32, 1)
    with np.load(reference / "goldens" / "sngan_32.npz") as arrays:
        codes = Codes(g.spaces["z"], torch.tensor(arrays["z"])[:, None])
        shifted = codes.latent.clone()
        shifted[:, :, 5] += 3.0
        assert error(g(codes), arrays["image"]) <= 1e-4
        assert error(g(codes.with_latent(shifted)), arrays["image_shift_dim5_3"]) <= 1e-4
        assert error(g.features(codes, "base").flatten(1), arrays["feat/model.0"]) <= 1e-4
        assert error(g.features(codes, "block1"), arrays["feat/model.2"]) <= 1e-4
        assert error(g.features(codes, "block2"), arrays["feat/model.3"]) <= 1e-4


class TheirBlock(nn.Module):
    """A residual block as GANLatentDiscovery names and draws it."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        up = nn.Upsample(scale_factor=2)
        self.model = nn.Sequential(
            nn.BatchNorm2d(before), nn.ReLU(), up, self.conv1, nn.BatchNorm2d(after), nn.ReLU(), self.conv2
        )
        bypass = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1))
        self.bypass = nn.Upsample(scale_factor=2) if before == after else bypass

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) + self.bypass(x)


def their_network(widths: tuple[int, ...], z_dim: int, channels: int) -> nn.ModuleDict:
    blocks = [TheirBlock(widths[i], widths[i + 1]) for i in range(len(widths) - 1)]
    model = nn.Sequential(
        nn.Linear(z_dim, 16 * widths[0]), nn.Unflatten(1, (widths[0], 4, 4)), *blocks,
        nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.Conv2d(widths[-1], channels, 3, padding=1), nn.Tanh(),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.2, 2.0)
    return nn.ModuleDict({"model": model}).eval()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_folder_of_64_px_with_narrowing_blocks(tmp_path: Path, prefix: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, z = their_network((24, 12, 12, 8, 4), z_dim=10, channels=3), torch.randn(2, 10)
    torch.save({prefix + key: value for key, value in net.state_dict().items()}, tmp_path / "generator.pt")
    (tmp_path / "args.json").write_text(json.dumps({"model": "sn_resnet64", "latent_dim": 10}))
    g = opened(tmp_path)
    assert [(layer.name, layer.resolution, layer.channels) for layer in g.layers] == [
        ("base", 4, 24), ("block1", 8, 12), ("block2", 16, 12), ("block3", 32, 8), ("block4", 64, 4), ("rgb", 64, 3),
    ]  # fmt: skip
    codes = Codes(g.spaces["z"], z[:, None])
    with torch.no_grad():
        assert error(g(codes), net["model"](z)) <= 1e-4
        assert error(g.features(codes, "block2"), net["model"][:4](z)) <= 1e-4
        assert torch.equal(g.style_matrices()["base"].weight, net["model"][0].weight)
    again = opened(g.save(tmp_path / "ours"))
    assert torch.equal(again(Codes(again.spaces["z"], codes.latent)), g(codes))
    assert torch.allclose(g.sample(3, truncation=0.5).latent, 0.5 * g.sample(3).latent)


def test_a_folder_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    net = their_network((4, 4), z_dim=6, channels=1)
    torch.save(net.state_dict(), tmp_path / "generator.pt")
    (tmp_path / "args.json").write_text(json.dumps({"model": "sn_resnet32", "latent_dim": 128}))
    with pytest.raises(UserError, match=r"args\.json says latent_dim 128, but the weights take 6"):
        opened(tmp_path)
    with pytest.raises(UserError, match="unknown option of an SNGAN file 'resolution'"):
        opened(tmp_path, resolution=64)
