"""ProgGAN: the references of two implementations, files of other shapes, and the traps of each layout."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eigenlens import Codes, UserError, load_generator
from eigenlens.generators.proggan import ProgGAN
from loaded import check_loaded, spread_error


def opened(path: Path, **options: Any) -> ProgGAN:
    g = load_generator(path, device="cpu", **options)
    assert isinstance(g, ProgGAN)
    return g


# --- references -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["genforce_pggan_64.pth", "ganzoo_pgan_64.pt"])
@torch.inference_mode()
def test_reference(reference: Path, name: str) -> None:
    g = opened(reference / "goldens" / name)
    with np.load(reference / "goldens" / f"{Path(name).stem}.npz") as told:
        codes = Codes(g.spaces["z"], torch.from_numpy(told["z"])[:, None])
        assert spread_error(g(codes), told["image"]) <= 1e-4
        for index in range(10 if "feat/layer0" in told.files else 0):
            assert spread_error(g.features(codes, f"layer{index}"), told[f"feat/layer{index}"]) <= 1e-4, index


# --- files of other shapes --------------------------------------------------------------------------------------------


def drawing(seed: int) -> Any:
    random = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=random)


def genforce_file(path: Path, *, widths: tuple[int, ...], lod: float = 0.0, fused: bool = False) -> dict[str, Tensor]:
    """Write random weights in genforce's layout, as the zoo's files hold them."""
    draw, z_dim = drawing(1), 12
    state = {"lod": torch.tensor(lod), "layer0.weight": draw(widths[0], z_dim, 4, 4), "layer0.bias": draw(widths[0])}
    for level, width in enumerate(widths):
        if level:
            shape = (widths[level - 1], width) if fused else (width, widths[level - 1])
            state[f"layer{2 * level}.weight"], state[f"layer{2 * level}.bias"] = draw(*shape, 3, 3), draw(width)
        state[f"layer{2 * level + 1}.weight"] = draw(width, width, 3, 3)
        state[f"layer{2 * level + 1}.bias"] = draw(width)
        state[f"output{level}.weight"], state[f"output{level}.bias"] = draw(1, width, 1, 1), draw(1)
    other = {key: value * 1.5 for key, value in state.items()}
    torch.save({"generator": other, "generator_smooth": state}, path)
    return state


def test_another_resolution_in_grey(tmp_path: Path) -> None:
    state = genforce_file(tmp_path / "g.pth", widths=(8, 6, 6, 4))
    g = opened(tmp_path / "g.pth")
    assert g.origin.entry == "generator_smooth"
    assert (g.resolution, g.channels, list(g.spaces)) == (32, 1, ["z"])
    assert [(layer.name, layer.resolution) for layer in g.layers[-3:]] == [("layer6", 32), ("layer7", 32), ("rgb", 32)]
    check_loaded(g, tmp_path)
    # the first layer is linear in the normalised z: a full convolution of one pixel
    codes = g.sample(2, seed=0)
    z = codes.latent[:, 0] * codes.latent[:, 0].square().mean(1, keepdim=True).rsqrt()
    told = F.conv2d(z[:, :, None, None], state["layer0.weight"] * math.sqrt(2 / (12 * 16)), padding=3)
    assert spread_error((z @ g.style_matrices()["layer0"].weight.T).view(2, 8, 4, 4), told) <= 1e-5


def test_fused_scale_is_an_option(tmp_path: Path) -> None:
    genforce_file(tmp_path / "g.pth", widths=(8, 6, 6), fused=True)
    with pytest.raises(UserError, match="do not fit"):
        opened(tmp_path / "g.pth")
    g = opened(tmp_path / "g.pth", fused_scale=True)
    check_loaded(g, tmp_path)
    genforce_file(tmp_path / "square.pth", widths=(8, 8, 8))  # nothing in such a file tells
    one, other = opened(tmp_path / "square.pth"), opened(tmp_path / "square.pth", fused_scale=True)
    assert spread_error(other(g.sample(2)), one(g.sample(2))) > 0.1


@torch.inference_mode()
def test_a_file_in_the_midst_of_growing(tmp_path: Path) -> None:
    genforce_file(tmp_path / "g.pth", widths=(8, 6, 6, 4), lod=1.25)
    g = opened(tmp_path / "g.pth")
    assert (g.resolution, g.network.config.alpha) == (16, 0.75)
    check_loaded(g, tmp_path)
    codes = g.sample(2, seed=0)
    whole, before = (opened(tmp_path / "g.pth", resolution=r, alpha=1.0) for r in (16, 8))
    blend = 0.75 * whole(codes) + 0.25 * F.interpolate(before(codes), scale_factor=2)
    assert spread_error(g(codes), blend) <= 1e-5


def zoo_file(path: Path, config: Any) -> dict[str, Tensor]:
    """Write random weights in the GAN zoo's layout, 16 px, with a raw and an averaged generator."""
    draw, widths = drawing(2), (8, 8, 6)
    shapes = {"formatLayer": (16 * widths[0], 10), "groupScale0.0": (widths[0], widths[0], 3, 3)}
    for level in (1, 2):
        shapes[f"scaleLayers.{level - 1}.0"] = (widths[level], widths[level - 1], 3, 3)
        shapes[f"scaleLayers.{level - 1}.1"] = (widths[level], widths[level], 3, 3)
    shapes |= {f"toRGBLayers.{level}": (3, width, 1, 1) for level, width in enumerate(widths)}
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.module.weight"], state[f"{name}.module.bias"] = draw(*shape), draw(shape[0])
    raw = {key: value * 1.5 for key, value in state.items()}
    torch.save({"config": config, "netG": raw, "avgG": {f"module.{k}": v for k, v in state.items()}}, path)
    return state


def test_the_zoo_files_average_and_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"leakyReluLeak": 0.1, "alpha": 0.25, "lossCriterion": "DCGAN"}
    home = ModuleType("models.utils.config")  # the zoo pickles its settings as an object of a class of its own
    home.BaseConfig = type("BaseConfig", (), {"__module__": home.__name__})  # type: ignore[attr-defined]
    config = home.BaseConfig()
    vars(config).update(settings)
    with monkeypatch.context() as patch:
        for name in ("models", "models.utils", home.__name__):
            patch.setitem(sys.modules, name, home)
        state = zoo_file(tmp_path / "g.pt", config)
    g = opened(tmp_path / "g.pt")
    config = g.network.config
    assert (g.origin.entry, g.resolution, config.slope, config.alpha) == ("avgG", 16, 0.1, 0.75)
    check_loaded(g, tmp_path)
    codes = g.sample(3, seed=0)
    assert g(codes).abs().max() <= 1.0  # a tanh bounds it
    # by hand: the factor multiplies the bias too
    z = codes.latent[:, 0] * codes.latent[:, 0].square().mean(1, keepdim=True).rsqrt()
    first = F.linear(z, state["formatLayer.module.weight"], state["formatLayer.module.bias"]) * math.sqrt(2 / 10)
    assert spread_error(g.features(codes, "layer0"), F.leaky_relu(first, 0.1).view(3, 8, 4, 4)) <= 1e-5


def test_the_zoo_files_that_are_refused(tmp_path: Path) -> None:
    zoo_file(tmp_path / "g.pt", {"categoryVectorDim": 4})
    with pytest.raises(UserError, match=r"conditional \(AC-GAN\)"):
        opened(tmp_path / "g.pt")
    zoo_file(tmp_path / "g.pt", {})
    with pytest.raises(UserError, match="unknown option of"):
        opened(tmp_path / "g.pt", fused_scale=True)
    with pytest.raises(UserError, match="resolution 32 is not in this file; it has 4, 8, 16"):
        opened(tmp_path / "g.pt", resolution=32)
