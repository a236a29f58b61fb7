"""StyleGAN: the references of two implementations, files of other shapes, and the traps of each layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eigenlens import Codes, UserError, load_generator
from eigenlens.frozen import summed_taps
from eigenlens.generators.ops import truncated
from eigenlens.generators.stylegan1 import StyleGAN1
from loaded import check_loaded, check_noise, check_styles, spread_error


def opened(path: Path, **options: Any) -> StyleGAN1:
    g = load_generator(path, device="cpu", **options)
    assert isinstance(g, StyleGAN1)
    return g


def arrays(reference: Path, name: str) -> dict[str, Tensor]:
    with np.load(reference / "goldens" / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


# --- references -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_genforce_reference(reference: Path) -> None:
    g, told = opened(reference / "goldens/genforce_sg1_64.pth"), arrays(reference, "genforce_sg1_64")
    assert g.origin.entry == "models.generator_smooth"
    z = Codes(g.spaces["z"], told["z"][:, None])
    assert (g.lift(z, "w").latent[:, 0] - told["w"]).abs().max() <= 1e-5
    pulled = g.lift(z, "w+", truncation=0.7, cutoff=8)
    assert (pulled.latent - told["wp_psi07_l8"]).abs().max() <= 1e-5
    # instance norms of 16 pixels magnify what is left of w's rounding: images are compared from the same w
    w, wp = Codes(g.spaces["w"], told["w"][:, None]), Codes(g.spaces["w+"], told["wp_psi07_l8"])
    assert spread_error(g(w), told["image"]) <= 1e-4
    assert spread_error(g(wp), told["image_psi07_l8"]) <= 1e-4
    for index, layer in enumerate(g.layers[:-1]):
        theirs = told[f"feat/synthesis.layer{index}"][:2]
        assert spread_error(g.features(w[:2], layer.name), theirs) <= 1e-4, layer.name


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("image", {"resolution": 64}),
        ("image_alpha05", {"resolution": 64, "alpha": 0.5}),
        ("image_psi07", {"resolution": 64}),
        ("image_mix01", {"resolution": 64}),
        ("image_step0", {"resolution": 4}),
        ("image_step5", {"resolution": 128}),  # the first fused up-sampling
    ],
)
@torch.inference_mode()
def test_rosinality_reference(reference: Path, key: str, options: dict[str, Any]) -> None:
    g = opened(reference / "goldens/rosinality_sg1_64.model", **options)
    assert g.origin.entry == "g_running"
    told = arrays(reference, "rosinality_sg1_64")
    w, other = (g.lift(Codes(g.spaces["z"], told[name][:, None]), "w").latent for name in ("z", "z_mix"))
    assert (w[:, 0] - told["w"]).abs().max() <= 1e-5
    if key == "image_psi07":
        w = truncated(w, told["mean_style"][0], 0.7, None)
    if key == "image_mix01":
        w = torch.cat([other.expand(-1, 4, -1), w.expand(-1, 6, -1)], dim=1)
    codes = Codes(g.spaces["w" if w.shape[1] == 1 else "w+"], w)
    rows = []
    for row in range(len(codes)):
        for index, layer in enumerate(g.network.layers):
            layer.noise = told[f"noise{index // 2}"][row : row + 1]
        rows.append(g(codes[row]))
    assert spread_error(torch.cat(rows), told[key]) <= 1e-4


@torch.inference_mode()
def test_rosinality_features(reference: Path) -> None:
    g, told = (
        opened(reference / "goldens/rosinality_sg1_64.model", resolution=64),
        arrays(reference, "rosinality_sg1_64"),
    )
    for index, layer in enumerate(g.network.layers):
        layer.noise = told[f"noise{index // 2}"][:1]
    for level in range(4):
        features = g.features(Codes(g.spaces["w"], told["w"][:1, None]), f"b{4 * 2**level}.conv1")
        assert spread_error(features, told[f"feat/progression.{level}"][:1]) <= 1e-4


# --- files of other shapes --------------------------------------------------------------------------------------------


def genforce_file(
    path: Path, *, widths: tuple[int, ...], lod: float = 0.0, n_labels: int = 0, drop: str = ""
) -> dict[str, Tensor]:
    """Write random weights in genforce's layout, unwrapped, in float16 but for `lod`."""
    random = torch.Generator().manual_seed(1)
    z_dim, w_dim = 12, 20

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=random) * scale).half()

    sizes = [z_dim * (2 if n_labels else 1), 16, 16, w_dim]
    state = {"truncation.w_avg": draw(w_dim), "synthesis.lod": torch.tensor(lod)}
    if n_labels:
        state["mapping.label_weight"] = draw(n_labels, z_dim)
    for i in range(3):
        state[f"mapping.dense{i}.weight"] = draw(sizes[i + 1], sizes[i], scale=100.0)
        state[f"mapping.dense{i}.bias"] = draw(sizes[i + 1], scale=30.0)
    for index in range(2 * len(widths)):
        level, half = divmod(index, 2)
        name, width, before = f"synthesis.layer{index}.", widths[level], widths[max(level - 1, 0)]
        if index == 0:
            state[name + "const"] = draw(1, width, 4, 4)
        else:
            state[name + "weight"] = draw(width, width if half else before, 3, 3)
        if level and not half:
            state[name + "blur.kernel"] = torch.outer(*[torch.tensor([0.25, 0.5, 0.25])] * 2).expand(width, 1, 3, 3)
        state[name + "bias"] = draw(width, scale=0.3)
        state[name + "apply_noise.weight"] = draw(width, scale=0.3)
        state[name + "apply_noise.noise"] = draw(1, 1, 4 * 2**level, 4 * 2**level)
        state[name + "style.weight"], state[name + "style.bias"] = draw(2 * width, w_dim), draw(2 * width, scale=0.3)
    for level, width in enumerate(widths):
        state[f"synthesis.output{level}.weight"] = draw(1, width, 1, 1)
        state[f"synthesis.output{level}.bias"] = draw(1)
    state.pop(drop, None)
    torch.save(state, path)
    return state


def test_a_grey_conditional_file_with_fused_levels(tmp_path: Path) -> None:
    genforce_file(tmp_path / "g.pth", widths=(8, 6, 6, 4), n_labels=3)
    g = opened(tmp_path / "g.pth", fused_from=32)
    assert (g.resolution, g.channels, g.label_names) == (32, 1, ("0", "1", "2"))
    assert [layer.name for layer in g.layers[:3]] == ["b4.const", "b4.conv1", "b8.conv0"]
    assert [layer.is_fused for layer in g.network.layers] == [False] * 6 + [True, False]
    check_loaded(g, tmp_path)
    check_styles(g)
    assert not torch.equal(g(g.sample(1, label="0")), g(g.sample(1, label="2")))
    with pytest.raises(UserError, match="no label came"):
        g.sample(1)
    plain = opened(tmp_path / "g.pth")
    assert plain.network.config.fused_from == 128
    assert spread_error(plain(g.sample(1, label="0")), g(g.sample(1, label="0")).detach()) > 0.1


def test_a_repeated_pixel_and_a_kernel_are_the_fused_kernel() -> None:
    x, kernel = torch.randn(2, 3, 5, 5), torch.randn(3, 4, 3, 3)
    apart = F.conv2d(F.interpolate(x, scale_factor=2), kernel.flip(2, 3).transpose(0, 1), padding=1)
    fused = F.conv_transpose2d(x, summed_taps(kernel), stride=2, padding=1)
    assert torch.allclose(apart, fused, atol=1e-5)


@torch.inference_mode()
def test_a_file_in_the_midst_of_growing(tmp_path: Path) -> None:
    genforce_file(tmp_path / "g.pth", widths=(8, 8, 6, 4), lod=1.25)
    g = opened(tmp_path / "g.pth")  # the 32 px level has not begun; a quarter of the 16 px one's blend is missing
    assert g.resolution == 16
    assert g.network.config.alpha == 0.75
    check_loaded(g, tmp_path)
    codes = g.sample(2, seed=0)
    whole, before = (opened(tmp_path / "g.pth", resolution=r, alpha=1.0) for r in (16, 8))
    blend = 0.75 * whole(codes) + 0.25 * F.interpolate(before(codes), scale_factor=2)
    assert spread_error(g(codes), blend) <= 1e-5


def test_truncation_and_noise(tmp_path: Path) -> None:
    state = genforce_file(tmp_path / "g.pth", widths=(8, 6))
    g = opened(tmp_path / "g.pth")
    check_noise(g)
    assert torch.equal(
        g.sample(2, space="w", truncation=0.0).latent[0, 0], state["truncation.w_avg"].float()
    )  # the stored average
    full, half = g.sample(2, space="w+"), g.sample(2, space="w+", truncation=0.5, cutoff=3)
    middle = (full.latent + g.network.w_avg) / 2
    assert torch.allclose(half.latent[:, :3], middle[:, :3], atol=1e-6)
    assert torch.equal(half.latent[:, 3:], full.latent[:, 3:])
    with pytest.raises(UserError, match=r"ask for space 'w\+'"):
        g.sample(2, space="w", truncation=0.5, cutoff=3)
    with pytest.raises(UserError, match="no way"):
        g.lift(full, "z")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 12}, "resolution 12 is not in this file; it has 4, 8"),
        ({"alpha": 2.0}, "alpha 2 is not possible"),
        ({"resolution": 4, "alpha": 0.5}, "alpha 0.5 is not possible"),
        ({"alhpa": 0.5}, "Did you mean 'alpha'"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    genforce_file(tmp_path / "g.pth", widths=(8, 6))
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "g.pth", **options)


def test_a_file_that_lacks_a_tensor(tmp_path: Path) -> None:
    genforce_file(tmp_path / "g.pth", widths=(8, 6), drop="synthesis.layer2.style.bias")
    with pytest.raises(UserError, match=r"lacks the tensor 'synthesis\.layer2\.style\.bias'"):
        opened(tmp_path / "g.pth")


def rosinality_file(path: Path, *, widths: tuple[int, ...], trained: int) -> None:
    """Write the state dict alone, with levels beyond `trained` as they were made."""
    random = torch.Generator().manual_seed(2)
    dim = 10
    state = {}

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=random) * scale

    for i in (1, 3):
        state[f"style.{i}.linear.weight_orig"], state[f"style.{i}.linear.bias"] = draw(dim, dim), draw(dim)
    for level, width in enumerate(widths):
        name, before, on = f"generator.progression.{level}.", widths[max(level - 1, 0)], float(level < trained)
        kernel = torch.outer(*[torch.tensor([0.25, 0.5, 0.25])] * 2).expand(width, 1, 3, 3)
        if level == 0:
            state[name + "conv1.input"] = draw(1, width, 4, 4)
        elif level < 3:  # this repository's own change of levels lies elsewhere; the names tell
            state[name + "conv1.1.conv.weight_orig"] = draw(width, before, 3, 3)
            state[name + "conv1.1.conv.bias"], state[name + "conv1.2.weight"] = draw(width) * on, kernel
        else:
            state[name + "conv1.0.weight"], state[name + "conv1.0.bias"] = draw(before, width, 3, 3), draw(width) * on
            state[name + "conv1.1.weight"] = kernel
        state[name + "conv2.conv.weight_orig"], state[name + "conv2.conv.bias"] = (
            draw(width, width, 3, 3),
            draw(width) * on,
        )
        for k in (1, 2):
            state[name + f"noise{k}.weight_orig"] = draw(1, width, 1, 1) * on
            state[name + f"adain{k}.style.linear.weight_orig"] = draw(2 * width, dim, scale=0.3)
            state[name + f"adain{k}.style.linear.bias"] = torch.cat([torch.ones(width), torch.zeros(width)])
        state[f"generator.to_rgb.{level}.conv.weight_orig"] = draw(3, width, 1, 1)
        state[f"generator.to_rgb.{level}.conv.bias"] = draw(3) * on
    torch.save({f"module.{key}": value for key, value in state.items()}, path)


def test_levels_that_no_training_touched_are_left_out(tmp_path: Path) -> None:
    rosinality_file(tmp_path / "g.model", widths=(8, 8, 6, 4, 4), trained=4)
    g = opened(tmp_path / "g.model")
    assert g.resolution == 32
    assert g.network.config.fused_from == 32
    check_loaded(g, tmp_path)
    check_styles(g)
    check_noise(g)
    assert torch.equal(g.network.layers[4].noise, g.network.layers[5].noise)
    assert opened(tmp_path / "g.model", resolution=64).resolution == 64
    drawn = g.sample(4096, seed=9, space="w").latent[:, 0].mean(0)  # no average is stored: it is that of many codes
    assert (g.sample(1, space="w", truncation=0.0).latent[0, 0] - drawn).abs().max() < 0.1
