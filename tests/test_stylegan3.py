"""StyleGAN3: against the numbers of NVIDIA's T, and T and R against the paper's operations taken literally."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hostile
from eigenlens import Codes, UserError, load_generator
from eigenlens.generator import Generator

BUFFERS = {"w_avg", "freqs", "phases", "transform", "magnitude_ema", "up_filter", "down_filter"}


def off(ours: Tensor, theirs: Tensor | np.ndarray) -> float:
    """Return the largest difference, in standard deviations of the reference."""
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.std())


def test_t_gives_nvidias_numbers(reference: Path) -> None:
    g = load_generator(reference / "goldens" / "nv_sg3t_64.pkl", device="cpu")
    golden = dict(np.load(reference / "goldens" / "nv_sg3t_64.npz"))
    assert (g.family, g.resolution, g.spaces["w+"].slots) == ("stylegan3", 64, 16)
    z = Codes(g.spaces["z"], torch.from_numpy(golden["z"])[:, None])
    with torch.inference_mode():
        w = g.lift(z, "w")
        assert (w.latent[:, 0] - torch.from_numpy(golden["w"])).abs().max() <= 1e-5
        s = g.lift(w, "s")
        images = g(s)
        assert off(images, golden["image"]) <= 1e-4
        assert (g(w[2])[0] - images[2]).abs().max() <= 1e-5
        for part in g.spaces["s"].parts:
            style = s.latent[:, 0, part.start : part.stop]
            assert off(style, golden[f"style/{part.name}.affine"]) <= 1e-4, part.name
        assert off(g.features(w, "L14_64_3"), golden["feat/L14_64_3"]) <= 1e-4
        pulled = g.lift(z, "w+", truncation=0.7)
        assert (pulled.latent - torch.from_numpy(golden["ws_psi07"])).abs().max() <= 1e-5
        assert off(g(pulled), golden["image_psi07"]) <= 1e-4
        cut = g.lift(z, "w+", truncation=0.5, cutoff=4)
        assert (cut.latent - torch.from_numpy(golden["ws_psi05_cut4"])).abs().max() <= 1e-5


# --- a small network, as NVIDIA's code would lay it out ---------------------------------------------------------------


def schedule(kind: str, resolution: int, n_layers: int) -> list[dict[str, Any]]:
    """Return NVIDIA's constants of every layer; section 3.2 and appendix F of the paper."""
    n_critical, first_cutoff, first_stopband = 2, 2.0, 2**2.1
    last_cutoff = resolution / 2
    exponents = np.minimum(np.arange(n_layers + 1) / (n_layers - n_critical), 1)
    cutoffs = first_cutoff * (last_cutoff / first_cutoff) ** exponents
    stopbands = first_stopband * (last_cutoff * 2**0.3 / first_stopband) ** exponents
    rates = 2 ** np.ceil(np.log2(np.minimum(stopbands * 2, resolution)))
    sizes = rates + 20
    sizes[-2:] = resolution
    widths = np.rint(np.minimum(64 / cutoffs, 9)).astype(int)
    widths[-1] = 3
    layers = []
    for i in range(n_layers + 1):
        before, is_torgb = max(i - 1, 0), i == n_layers
        kernel = 3 if kind == "T" and not is_torgb else 1
        between = max(rates[before], rates[i]) * (1 if is_torgb else 2)
        up, down = round(between / rates[before]), round(between / rates[i])
        up_taps, down_taps = (6 * f if f > 1 and not is_torgb else 1 for f in (up, down))
        total = (sizes[i] - 1) * down + 1 - (sizes[before] + kernel - 1) * up + up_taps + down_taps - 2
        low = int(total + up) // 2
        layers.append({
            "name": f"L{i}_{int(sizes[i])}_{widths[i]}", "inputs": int(widths[before]), "width": int(widths[i]),
            "size": int(sizes[i]), "kernel": kernel, "up": up, "down": down, "up_taps": up_taps,
            "down_taps": down_taps, "padding": [low, int(total) - low] * 2, "is_torgb": is_torgb,
            "is_radial": kind == "R" and i < n_layers - n_critical, "rate": float(rates[i]),
            "cutoff": float(cutoffs[i]),
        })  # fmt: skip
    return layers


def radial_filter(taps: int, cutoff: float, rate: float) -> Tensor:
    """Return a windowed jinc, the low-pass filter of R that is the same in every direction (appendix C)."""
    line = (np.arange(taps) - (taps - 1) / 2) / rate
    radius = torch.from_numpy(np.hypot(*np.meshgrid(line, line)))
    window = torch.from_numpy(np.outer(np.kaiser(taps, 6.0), np.kaiser(taps, 6.0)))
    kernel = torch.special.bessel_j1(2 * math.pi * cutoff * radius) / (math.pi * radius) * window
    return (kernel / kernel.sum()).float()


def raw_network(layers: list[dict[str, Any]], *, w: int = 6, n_labels: int = 0) -> dict[str, Tensor]:
    """Draw a network under NVIDIA's names: z of 5, two mapping layers."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    width = layers[0]["inputs"]
    raw = {"mapping.w_avg": draw(w)}
    if n_labels:
        raw |= {"mapping.embed.weight": draw(4, n_labels), "mapping.embed.bias": draw(4) * 0.3}
    raw |= {"mapping.fc0.weight": draw(8, 9 if n_labels else 5) * 100, "mapping.fc0.bias": draw(8)}
    raw |= {"mapping.fc1.weight": draw(w, 8) * 100, "mapping.fc1.bias": draw(w)}
    shift = torch.tensor([[0.8, -0.6, 0.1], [0.6, 0.8, -0.05], [0.0, 0.0, 1.0]])
    raw |= {
        "synthesis.input.weight": draw(width, width), "synthesis.input.transform": shift,
        "synthesis.input.freqs": draw(width, 2) * 2, "synthesis.input.phases": draw(width),
        "synthesis.input.affine.weight": draw(4, w) * 0.3,
        "synthesis.input.affine.bias": torch.tensor([1.0, 0.0, 0.0, 0.0]),
    }  # fmt: skip
    for layer in layers:
        key = f"synthesis.{layer['name']}"
        raw[f"{key}.weight"] = draw(layer["width"], layer["inputs"], layer["kernel"], layer["kernel"])
        raw[f"{key}.bias"] = draw(layer["width"]) * 0.3
        raw[f"{key}.magnitude_ema"] = draw().square() + 0.5
        raw[f"{key}.affine.weight"] = draw(layer["inputs"], w)
        raw[f"{key}.affine.bias"] = 1 + 0.3 * draw(layer["inputs"])
        if layer["up_taps"] > 1:
            taps = draw(layer["up_taps"]).square()
            raw[f"{key}.up_filter"] = taps / taps.sum()  # not symmetric: an orientation that is wrong shows
        if layer["down_taps"] > 1:
            taps = draw(layer["down_taps"]).square()
            between = layer["rate"] * layer["down"]
            raw[f"{key}.down_filter"] = (
                radial_filter(layer["down_taps"], layer["cutoff"], between) if layer["is_radial"] else taps / taps.sum()
            )
    return raw


def write(raw: dict[str, Tensor], layers: list[dict[str, Any]], resolution: int, path: Path, **about: Any) -> Path:
    """Write NVIDIA's pickle of it, with the attributes that its modules would have."""
    clamp, scale, rate = about["clamp"], about["scale"], about["lr"]
    named: dict[str, dict[str, Any]] = {"synthesis": {"img_resolution": resolution, "output_scale": scale}}
    size = layers[0]["size"]
    named["synthesis.input"] = {"size": np.array([size, size]), "sampling_rate": size - 20.0, "bandwidth": 2.0}
    for key, value in raw.items():
        if key.endswith("weight") and ("affine" in key or "mapping" in key):
            lr = rate if ".fc" in key else 1.0
            gains = {"weight_gain": np.float64(lr / np.sqrt(value.shape[1])), "bias_gain": lr}
            named[key.removesuffix(".weight")] = gains | {"activation": "lrelu" if ".fc" in key else "linear"}
    for layer in layers:
        named[f"synthesis.{layer['name']}"] = {
            "out_size": np.array([layer["size"]] * 2), "up_factor": layer["up"], "down_factor": layer["down"],
            "padding": layer["padding"], "is_torgb": layer["is_torgb"], "conv_clamp": clamp,
        }  # fmt: skip
    with hostile.nvidia_modules():
        content = {"G": persistent({k: v * 0 for k, v in raw.items()}, named), "G_ema": persistent(raw, named)}
        path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def persistent(raw: dict[str, Tensor], named: dict[str, dict[str, Any]]) -> hostile.Persistent:
    tree: dict[str, Any] = {}
    for key, value in raw.items():
        *path, leaf = key.split(".")
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        node[leaf] = value

    def module(node: dict[str, Any], path: str) -> hostile.Persistent:
        parameters = {k: torch.nn.Parameter(v) for k, v in node.items() if isinstance(v, Tensor) and k not in BUFFERS}
        buffers = {k: v for k, v in node.items() if isinstance(v, Tensor) and k in BUFFERS}
        below = {k: module(v, f"{path}.{k}".strip(".")) for k, v in node.items() if isinstance(v, dict)}
        state = hostile.module_state(parameters, buffers, below, **named.get(path, {}))
        return hostile.Persistent("Module", "raise SystemExit", **state)

    return module(tree, "")


# --- the paper's operations, literally --------------------------------------------------------------------------------


def literal_upfirdn(x: Tensor, taps: Tensor, up: int, down: int, padding: list[int]) -> Tensor:
    kernel = torch.outer(taps, taps) if taps.ndim == 1 else taps
    n, c, h, w = x.shape
    zeros = x.new_zeros(n, c, h * up, w * up)
    zeros[:, :, ::up, ::up] = x
    x = F.pad(zeros, padding).flatten(0, 1)[:, None]
    return F.conv2d(x, kernel.flip(0, 1)[None, None]).unflatten(0, (n, c))[:, :, 0, ::down, ::down]


def literal_input(raw: dict[str, Tensor], w: Tensor, size: int) -> Tensor:
    """Evaluate the Fourier features of one w pixel by pixel, after moving the pixels instead of the features."""
    key = "synthesis.input"
    cos, sin, x, y = (
        raw[f"{key}.affine.weight"] @ w / math.sqrt(len(w)) + raw[f"{key}.affine.bias"]
    ).tolist()  # fmt: skip
    length = math.hypot(cos, sin)
    cos, sin, x, y = cos / length, sin / length, x / length, y / length
    turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    shift = torch.tensor([[1.0, 0.0, -x], [0.0, 1.0, -y], [0.0, 0.0, 1.0]])
    transform = turn @ shift @ raw[f"{key}.transform"]
    rate = size - 20.0
    theta = torch.tensor([[0.5 * size / rate, 0.0, 0.0], [0.0, 0.5 * size / rate, 0.0]])
    places = F.affine_grid(theta[None], [1, 1, size, size], align_corners=False)[0]  # [size, size, 2]
    places = torch.cat([places, torch.ones(size, size, 1)], 2) @ transform.T
    freqs = raw[f"{key}.freqs"] @ transform[:2, :2]
    amplitudes = (1 - (freqs.norm(dim=1) - 2.0) / (rate / 2 - 2.0)).clamp(0, 1)
    waves = torch.sin(2 * math.pi * (places[..., :2] @ raw[f"{key}.freqs"].T + raw[f"{key}.phases"])) * amplitudes
    weight = raw[f"{key}.weight"]
    return (waves @ weight.T / math.sqrt(weight.shape[1])).permute(2, 0, 1)


def literal_image(
    raw: dict[str, Tensor], layers: list[dict[str, Any]], ws: Tensor, *, clamp: float, scale: float
) -> Tensor:
    rows = []
    for row in ws:
        x = literal_input(raw, row[0], layers[0]["size"])[None]
        for w, layer in zip(row[1:], layers, strict=True):
            key = f"synthesis.{layer['name']}"
            style = raw[f"{key}.affine.weight"] @ w / math.sqrt(len(w)) + raw[f"{key}.affine.bias"]
            weight = raw[f"{key}.weight"]
            if layer["is_torgb"]:
                weight = weight * style[:, None, None] / math.sqrt(weight[0].numel())
            else:
                weight = weight / weight.square().mean((1, 2, 3), keepdim=True).sqrt()
                weight = weight * (style / style.square().mean().sqrt())[:, None, None]
                weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
            weight = weight / raw[f"{key}.magnitude_ema"].sqrt()
            x = F.conv2d(x, weight, raw[f"{key}.bias"], padding=layer["kernel"] - 1)
            one = torch.ones(1)
            x = (
                literal_upfirdn(x, raw.get(f"{key}.up_filter", one), layer["up"], 1, layer["padding"])
                * layer["up"] ** 2
            )
            x = x if layer["is_torgb"] else F.leaky_relu(x, 0.2) * math.sqrt(2)
            x = literal_upfirdn(x.clamp(-clamp, clamp), raw.get(f"{key}.down_filter", one), 1, layer["down"], [0] * 4)
        rows.append(x * scale)
    return torch.cat(rows)


@pytest.mark.parametrize(("kind", "n_layers", "n_labels"), [("T", 6, 0), ("R", 14, 3)])
def test_both_kinds_follow_the_paper(tmp_path: Path, kind: str, n_layers: int, n_labels: int) -> None:
    layers = schedule(kind, 32, n_layers)
    assert {layer["up"] for layer in layers} == {1, 2, 4}  # the sampling rate doubles on the way
    raw = raw_network(layers, n_labels=n_labels)
    about: dict[str, Any] = {"clamp": 1.5, "scale": 0.5, "lr": 0.02}
    g = load_generator(write(raw, layers, 32, tmp_path / "a.pkl", **about), device="cpu")
    assert (g.family, g.resolution, g.spaces["w+"].slots) == ("stylegan3", 32, n_layers + 2)
    assert [layer.name for layer in g.layers] == ["input", *(layer["name"] for layer in layers)]
    z = g.sample(3, seed=1, space="z", label=[0, 2, 1] if n_labels else None)
    images = check_contract(g, z, tmp_path / "ours")
    w = literal_w(raw, z.latent[:, 0], z.labels, 0.02)
    assert torch.allclose(g.lift(z, "w").latent[:, 0], w, atol=1e-5)
    expected = literal_image(raw, layers, w[:, None].expand(-1, n_layers + 2, -1), clamp=1.5, scale=0.5)
    assert off(images, expected) <= 1e-4
    varied = torch.randn(2, n_layers + 2, 6, generator=torch.Generator().manual_seed(1))
    expected = literal_image(raw, layers, varied, clamp=1.5, scale=0.5)
    assert off(g(Codes(g.spaces["w+"], varied)), expected) <= 1e-4
    assert off(expected, literal_image(raw, layers, varied, clamp=1e9, scale=0.5)) > 1e-2


def literal_w(raw: dict[str, Tensor], z: Tensor, labels: Tensor | None, lr: float) -> Tensor:
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    if labels is not None:
        y = labels @ raw["mapping.embed.weight"].T / math.sqrt(labels.shape[1]) + raw["mapping.embed.bias"]
        x = torch.cat([x, y / (y.square().mean(1, keepdim=True) + 1e-8).sqrt()], 1)
    for i in range(2):
        weight = raw[f"mapping.fc{i}.weight"] * lr / math.sqrt(x.shape[1])
        x = F.leaky_relu(x @ weight.T + raw[f"mapping.fc{i}.bias"] * lr, 0.2) * math.sqrt(2)
    return x


def check_contract(g: Generator, codes: Codes, folder: Path) -> Tensor:
    """Check what every loaded file must do; return the images of `codes`."""
    with torch.inference_mode():
        images = g(codes)
        assert images.shape == (len(codes), 3, g.resolution, g.resolution)
        assert (g(codes[1]) - images[1]).abs().max() <= 1e-5 * images.std().clamp(min=1)
        for layer in g.layers[::3]:
            assert torch.equal(g.finish(codes, g.start(codes, layer.name)), images), layer.name
            shape = (len(codes), layer.channels, layer.resolution, layer.resolution)
            assert g.features(codes, layer.name).shape == shape
        g.save(folder)
        again = load_generator(folder, device="cpu")
        assert torch.equal(again(Codes(again.spaces["z"], codes.latent, codes.labels)), images)
    return images


def test_a_bare_state_dict_has_the_constants_of_its_sizes(tmp_path: Path) -> None:
    layers = schedule("R", 32, 14)
    raw = raw_network(layers)
    torch.save(raw, tmp_path / "a.pt")
    bare = load_generator(tmp_path / "a.pt", device="cpu")
    about: dict[str, Any] = {"clamp": 256, "scale": 0.25, "lr": 0.01}
    whole = load_generator(write(raw, layers, 32, tmp_path / "a.pkl", **about), device="cpu")
    assert bare.config == whole.config
    assert bare.weight_hash == whole.weight_hash


def test_turning_and_shifting_by_w_moves_the_whole_image(tmp_path: Path) -> None:
    layers = schedule("T", 32, 6)
    raw = raw_network(layers)
    raw["synthesis.input.transform"] = torch.eye(3)
    path = write(raw, layers, 32, tmp_path / "a.pkl", clamp=256, scale=0.25, lr=0.01)
    g = load_generator(path, device="cpu")
    s = g.sample(1, space="s")
    still, moved = s.latent.clone(), s.latent.clone()
    still[..., :4] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    moved[..., :4] = torch.tensor([3.0, 0.0, 3 * 2 / 16, 0.0])  # any length; 2 of the input's 16 pixels to the right
    features = [g.features(s.with_latent(each), "input") for each in (still, moved)]
    assert torch.allclose(features[1][..., 2:], features[0][..., :-2], atol=1e-5)


def test_every_matrix_is_the_derivative_of_its_styles(tmp_path: Path) -> None:
    layers = schedule("T", 32, 6)
    path = write(raw_network(layers), layers, 32, tmp_path / "a.pkl", clamp=256, scale=0.25, lr=0.01)
    g = load_generator(path, device="cpu")
    codes = g.sample(1, space="w+")
    matrices = g.style_matrices()
    assert list(matrices) == [layer.name for layer in g.layers]
    step = torch.randn(codes.latent.shape, generator=torch.Generator().manual_seed(0))
    moved = g.lift(codes.with_latent(codes.latent + step), "s").latent - g.lift(codes, "s").latent
    for part in g.spaces["s"].parts:
        matrix = matrices[part.name]
        expected = matrix.weight @ step[0, matrix.part.slot]
        assert torch.allclose(moved[0, 0, part.start : part.stop], expected, atol=1e-5)
    latent = codes.latent.clone().requires_grad_()
    g(codes.with_latent(latent)).sum().backward()
    assert (latent.grad.norm(dim=2) > 0).all()


def test_damaged_files_are_told(tmp_path: Path) -> None:
    raw = raw_network(schedule("T", 32, 6))
    raw.pop("synthesis.input.transform")
    torch.save(raw, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"lacks 'synthesis\.input\.transform'"):
        load_generator(tmp_path / "a.pt", device="cpu")
    with pytest.raises(UserError, match="unknown option"):
        load_generator(tmp_path / "a.pt", device="cpu", clamp=1.0)
