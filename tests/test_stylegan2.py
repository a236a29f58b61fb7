"""StyleGAN2: against the numbers of the original networks, against the paper's formulas, and across all layouts."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hostile
from eigenlens import Codes, UserError, load_generator
from eigenlens.generator import Generator, State
from eigenlens.generators import ops
from eigenlens.generators.lucidrains import enlarged

FIR = torch.tensor([1.0, 3.0, 3.0, 1.0])


def off(ours: Tensor, theirs: Tensor | np.ndarray) -> float:
    """Return the largest difference, in standard deviations of the reference."""
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.std())


# --- goldens ----------------------------------------------------------------------------------------------------------

GOLDENS = {
    "nv_sg2ada_64_fp16.pkl": "NVlabs/stylegan2-ada-pytorch",
    "nv_sg2ada_32_resnet.pkl": "NVlabs/stylegan2-ada-pytorch",
    "rosinality_sg2_64.pt": "rosinality/stylegan2-pytorch",
    "genforce_sg2_64.pth": "genforce/genforce (StyleGAN2)",
}


def layer_of(theirs: str) -> str:
    """Return our name of a layer of any of the originals."""
    for ending in (".affine", ".conv.modulation", ".style"):
        theirs = theirs.removesuffix(ending)
    kind, number = theirs.rstrip("0123456789").rstrip("."), int("0" + "".join(filter(str.isdigit, theirs)))
    if kind == "synthesis.layer":
        return f"b{4 * 2 ** ((number + 1) // 2)}.conv{1 - number % 2}"
    if kind == "convs":
        return f"b{8 * 2 ** (number // 2)}.conv{number % 2}"
    if kind in ("synthesis.output", "to_rgbs"):
        return f"b{(4 if kind == 'synthesis.output' else 8) * 2**number}.torgb"
    return {"conv1": "b4.conv1", "to_rgb1": "b4.torgb", "b4": "b4.conv1", "b8": "b8.conv1", "b16": "b16.conv1"}.get(
        theirs, theirs
    )


@pytest.mark.parametrize("name", GOLDENS)
def test_networks_give_the_numbers_of_the_originals(reference: Path, name: str) -> None:
    g = load_generator(reference / "goldens" / name, device="cpu")
    golden = dict(np.load(reference / "goldens" / f"{Path(name).stem}.npz"))
    assert (g.family, g.origin.layout) == ("stylegan2", GOLDENS[name])
    z = Codes(g.spaces["z"], torch.from_numpy(golden["z"])[:, None])
    with torch.inference_mode():
        w = g.lift(z, "w")
        assert (w.latent[:, 0] - torch.from_numpy(golden["w"])).abs().max() <= 1e-5
        assert off(g(z), golden["image"]) <= 1e-4
        s = g.lift(w, "s")
        assert off(g(s), golden["image"]) <= 1e-4
        styles = {part.name: s.latent[:, 0, part.start : part.stop] for part in g.spaces["s"].parts}
        for key, value in golden.items():
            kind, _, rest = key.partition("/")
            if kind == "style":
                assert off(styles[layer_of(rest)], value) <= 1e-4, key
            if kind == "feat" and "output" not in key and "early" not in key:
                assert off(g.features(w, layer_of(rest)), value) <= 1e-4, key
        check_truncation(g, z, golden)
        if "image_noise_none" in golden:
            silent = replace(w, noise_seeds=(-1,) * len(w))
            assert off(g(silent), golden["image_noise_none"]) <= 1e-4
            assert off(g(w), golden["image_noise_none"]) > 1e-2


def check_truncation(g: Generator, z: Codes, golden: dict[str, np.ndarray]) -> None:
    for key, psi, cutoff in (("ws_psi07", 0.7, None), ("ws_psi05_cut4", 0.5, 4), ("wp_psi07_l8", 0.7, 8)):
        if key in golden:
            codes = g.lift(z, "w+", truncation=psi, cutoff=cutoff)
            assert (codes.latent - torch.from_numpy(golden[key])).abs().max() <= 1e-5, key
            image = key.replace("ws", "image").replace("wp", "image")
            if image in golden:
                assert off(g(codes), golden[image]) <= 1e-4


def test_lucidrains_gives_the_numbers_of_the_original(reference: Path, tmp_path: Path) -> None:
    for theirs, ours in (("lucidrains_sg2_64.pt", "model_12.pt"), ("lucidrains_sg2_64_config.json", ".config.json")):
        (tmp_path / ours).write_bytes((reference / "goldens" / theirs).read_bytes())
    g = load_generator(tmp_path / "model_12.pt", device="cpu")
    golden = {key: torch.from_numpy(value) for key, value in np.load(
        reference / "goldens" / "lucidrains_sg2_64.npz"
    ).items()}  # fmt: skip
    w = g.lift(Codes(g.spaces["z"], golden["z"][:, None]), "w")
    assert (w.latent[:, 0] - golden["w"]).abs().max() <= 1e-5

    def run(codes: Codes) -> tuple[Tensor, dict[str, State]]:
        inputs, state, states = replace(g._inputs(codes), noise=golden["noise"][..., 0]), State(), {}
        for index, layer in enumerate(g.layers):
            states[layer.name] = state = g._layer(index, state, inputs)
        return (g._image(state) + 1) / 2, states  # theirs are in [0, 1]

    with torch.inference_mode():
        image, states = run(w)
        assert off(image, golden["image"]) <= 1e-4
        for level in range(4):
            size = 4 * 2**level
            assert off(states[f"b{size}.conv2"].features, golden[f"x/blocks.{level}"]) <= 1e-4
            assert off(enlarged(states[f"b{size}.torgb"].image), golden[f"rgb/blocks.{level}"]) <= 1e-4
        pulled = ops.truncated(w.latent, golden["w_av"][0], 0.6, None)
        assert off(run(w.with_latent(pulled))[0], golden["image_psi06"]) <= 1e-4
        mixed = torch.cat([w.latent.expand(-1, 2, -1), golden["w2"][:, None].expand(-1, 3, -1)], dim=1)
        assert off(run(Codes(g.spaces["w+"], mixed))[0], golden["image_mix"]) <= 1e-4


# --- the paper's formulas, literally ----------------------------------------------------------------------------------


def literal_upfirdn(x: Tensor, kernel: Tensor, up: int, down: int, padding: tuple[int, int, int, int]) -> Tensor:
    """Put in zeros, pad or crop, convolve, and leave out pixels."""
    n, c, h, w = x.shape
    zeros = x.new_zeros(n, c, h * up, w * up)
    zeros[:, :, ::up, ::up] = x
    x = F.pad(zeros, padding).flatten(0, 1)[:, None]
    return F.conv2d(x, kernel.flip(0, 1)[None, None]).unflatten(0, (n, c))[:, :, 0, ::down, ::down]


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2)])
@pytest.mark.parametrize("padding", [(3, 2, 4, 1), (-1, 2, 0, -2), (1, 1, 1, 1)])
@pytest.mark.parametrize("is_separable", [True, False])
def test_upfirdn_is_zeros_padding_convolution_and_strides(
    up: int, down: int, padding: tuple[int, int, int, int], is_separable: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 9, 7, generator=generator)
    taps = torch.randn(5, generator=generator) if is_separable else torch.randn(5, 5, generator=generator)
    kernel = torch.outer(taps, taps) if is_separable else taps  # neither is symmetric
    expected = literal_upfirdn(x, kernel * 3.0, up, down, padding)
    actual = ops.upfirdn(x, taps, up=up, down=down, padding=padding, gain=3.0)
    assert actual.shape == expected.shape
    assert torch.allclose(actual, expected, atol=1e-4)


def literal_convolution(x: Tensor, style: Tensor, weight: Tensor, *, up: int, demodulates: bool) -> Tensor:
    """Modulate and demodulate the weights of every sample, equations 1 and 3 of the paper."""
    weights = weight[None] * style[:, None, :, None, None]
    if demodulates:
        weights = weights * (weights.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    rows = []
    for sample, own in zip(x, weights, strict=True):
        if up == 1:
            rows.append(F.conv2d(sample[None], own, padding=own.shape[-1] // 2))
        else:
            grown = F.conv_transpose2d(sample[None], own.transpose(0, 1), stride=2)
            kernel = torch.outer(FIR, FIR) / 16
            rows.append(literal_upfirdn(grown, kernel, 1, 1, (1, 1, 1, 1)))
    return torch.cat(rows)


def literal_doubled(x: Tensor) -> Tensor:
    return literal_upfirdn(x, torch.outer(FIR, FIR) / 16, 2, 1, (2, 1, 2, 1))


def literal_w(raw: dict[str, Tensor], z: Tensor, labels: Tensor | None, lr: float) -> Tensor:
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    if labels is not None:
        y = labels @ raw["mapping.embed.weight"].T / math.sqrt(labels.shape[1]) + raw["mapping.embed.bias"]
        x = torch.cat([x, y / (y.square().mean(1, keepdim=True) + 1e-8).sqrt()], 1)
    for i in range(2):
        weight = raw[f"mapping.fc{i}.weight"] * lr / math.sqrt(x.shape[1])
        x = F.leaky_relu(x @ weight.T + raw[f"mapping.fc{i}.bias"] * lr, 0.2) * math.sqrt(2)
    return x


def literal_image(raw: dict[str, Tensor], ws: Tensor, architecture: str, clamp: float | None) -> Tensor:
    """Run NVIDIA's network as its report describes it, for w+ [batch, slots, dim]."""
    bound = lambda x, gain=1.0: x if clamp is None else x.clamp(-clamp * gain, clamp * gain)  # noqa: E731
    sizes = [4 * 2**i for i in range(8) if f"synthesis.b{4 * 2**i}.conv1.weight" in raw]
    x, image, slot = raw["synthesis.b4.const"].expand(len(ws), -1, -1, -1), None, 0
    for size in sizes:
        block, residual = f"synthesis.b{size}", None
        if architecture == "resnet" and size > 4:
            weight = raw[f"{block}.skip.weight"]
            residual = literal_doubled(F.conv2d(x, weight / math.sqrt(weight.shape[1]))) * math.sqrt(0.5)
        for conv in ("conv0", "conv1") if size > 4 else ("conv1",):
            key = f"{block}.{conv}"
            style = ws[:, slot] @ raw[f"{key}.affine.weight"].T / math.sqrt(ws.shape[2]) + raw[f"{key}.affine.bias"]
            up = 2 if conv == "conv0" else 1
            x = literal_convolution(x, style, raw[f"{key}.weight"], up=up, demodulates=True)
            x = x + raw[f"{key}.noise_const"] * raw[f"{key}.noise_strength"] + raw[f"{key}.bias"][:, None, None]
            gain = math.sqrt(0.5) if residual is not None and conv == "conv1" else 1.0
            x = bound(F.leaky_relu(x, 0.2) * math.sqrt(2) * gain, gain)
            slot += 1
        x = x if residual is None else x + residual
        if architecture == "skip" or size == sizes[-1]:
            key = f"{block}.torgb"
            style = ws[:, slot] @ raw[f"{key}.affine.weight"].T / math.sqrt(ws.shape[2]) + raw[f"{key}.affine.bias"]
            weight = raw[f"{key}.weight"]
            rgb = literal_convolution(x, style / math.sqrt(weight.shape[1]), weight, up=1, demodulates=False)
            rgb = bound(rgb + raw[f"{key}.bias"][:, None, None])
            image = rgb if image is None else literal_doubled(image) + rgb
    assert slot == ws.shape[1] - 1
    return image


# --- files of every layout --------------------------------------------------------------------------------------------


def raw_network(
    architecture: str = "skip",
    *,
    widths: tuple[int, ...] = (10, 8, 6),
    n_labels: int = 0,
    channels: int = 3,
    w: int = 7,
) -> dict[str, Tensor]:
    """Draw a network under NVIDIA's names: z of 5, two mapping layers of 9 and `w`."""
    generator = torch.Generator().manual_seed(3)
    raw: dict[str, Tensor] = {}

    def put(name: str, *shape: int, mean: float = 0.0, std: float = 1.0) -> None:
        raw[name] = mean + std * torch.randn(shape, generator=generator)

    def affine(name: str, outputs: int, inputs: int, mean: float = 0.0) -> None:
        put(f"{name}.weight", outputs, inputs)
        put(f"{name}.bias", outputs, mean=mean, std=0.3)

    put("mapping.w_avg", w)
    if n_labels:
        affine("mapping.embed", 6, n_labels)
    affine("mapping.fc0", 9, 5 + (6 if n_labels else 0))
    affine("mapping.fc1", w, 9)
    raw["mapping.fc0.weight"], raw["mapping.fc1.weight"] = (
        raw["mapping.fc0.weight"] * 50,
        raw["mapping.fc1.weight"] * 50,
    )
    for level, width in enumerate(widths):
        size, block = 4 * 2**level, f"synthesis.b{4 * 2**level}"
        if not level:
            put(f"{block}.const", width, 4, 4)
        for conv, inputs in (("conv0", widths[level - 1]), ("conv1", width)):
            if level or conv == "conv1":
                put(f"{block}.{conv}.weight", width, inputs, 3, 3)
                put(f"{block}.{conv}.bias", width)
                put(f"{block}.{conv}.noise_strength", std=0.5)
                put(f"{block}.{conv}.noise_const", size, size)
                affine(f"{block}.{conv}.affine", inputs, w, mean=1.0)
                if conv == "conv0":
                    raw[f"{block}.{conv}.resample_filter"] = torch.outer(FIR, FIR) / 64
        if architecture == "skip" or level == len(widths) - 1:
            put(f"{block}.torgb.weight", channels, width, 1, 1)
            put(f"{block}.torgb.bias", channels)
            affine(f"{block}.torgb.affine", width, w, mean=1.0)
        if architecture == "resnet" and level:
            put(f"{block}.skip.weight", width, widths[level - 1], 1, 1)
    return raw


BUFFERS = {"w_avg", "noise_const", "resample_filter", "freqs", "phases", "transform", "magnitude_ema"}
BUFFERS |= {"up_filter", "down_filter"}


def persistent(raw: dict[str, Tensor], attributes: dict[str, dict[str, Any]]) -> hostile.Persistent:
    """Build the tree of persistent modules whose state dict is `raw`, with plain attributes by module path."""
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
        state = hostile.module_state(parameters, buffers, below, **attributes.get(path, {}))
        return hostile.Persistent("Module", "raise SystemExit", **state)

    return module(tree, "")


def write_nvidia(raw: dict[str, Tensor], path: Path, *, clamp: float | None = None, lr: float = 0.01) -> Path:
    about: dict[str, dict[str, Any]] = {}
    for key, value in raw.items():
        name, _, leaf = key.rpartition(".")
        if leaf != "weight":
            continue
        if ".fc" in key or "embed" in key or "affine" in key:
            rate = lr if ".fc" in key else 1.0
            activation = "lrelu" if ".fc" in key else "linear"
            gain = np.float64(rate / np.sqrt(value.shape[1]))
            about[name] = {"weight_gain": gain, "bias_gain": rate, "activation": activation}
        elif name.endswith(("torgb", "skip")):
            about[name] = {"weight_gain": 1 / math.sqrt(value[0].numel()), "conv_clamp": clamp}
        else:
            about[name] = {"activation": "lrelu", "act_gain": np.sqrt(2), "conv_clamp": clamp}
    other = {key: torch.zeros_like(value) for key, value in raw.items()}
    with hostile.nvidia_modules():
        content = {"G": persistent(other, about), "D": None, "G_ema": persistent(raw, about), "augment_pipe": None}
        path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def write_tensorflow(raw: dict[str, Tensor], path: Path) -> Path:
    synthesis: dict[str, Any] = {}
    mapping: dict[str, Any] = {}
    for i in range(2):
        mapping[f"Dense{i}/weight"], mapping[f"Dense{i}/bias"] = (
            raw[f"mapping.fc{i}.weight"].T,
            raw[f"mapping.fc{i}.bias"],
        )
    synthesis["4x4/Const/const"] = raw["synthesis.b4.const"][None]
    for key in [key.removesuffix(".affine.weight") for key in raw if key.endswith(".affine.weight")]:
        block, name = key.removeprefix("synthesis.b").split(".")
        size = int(block)
        theirs = {"conv0": "Conv0_up", "conv1": "Conv1" if size > 4 else "Conv", "torgb": "ToRGB"}[name]
        at = f"{size}x{size}/{theirs}"
        weight = raw[f"{key}.weight"].permute(2, 3, 1, 0)
        synthesis[f"{at}/weight"] = weight.flip(0, 1) if name == "conv0" else weight
        synthesis[f"{at}/bias"] = raw[f"{key}.bias"]
        synthesis[f"{at}/mod_weight"] = raw[f"{key}.affine.weight"].T
        synthesis[f"{at}/mod_bias"] = raw[f"{key}.affine.bias"] - 1
        if name != "torgb":
            number = 2 * int(math.log2(size)) - (5 if name == "conv0" else 4)
            synthesis[f"noise{number}"] = raw[f"{key}.noise_const"][None, None]
            synthesis[f"{at}/noise_strength"] = np.float32(raw[f"{key}.noise_strength"])  # a scalar, not an array

    def network(variables: dict[str, Any], **components: Any) -> hostile.Network:
        pairs = [(k, v.numpy() if isinstance(v, Tensor) else v) for k, v in variables.items()]
        return hostile.Network(
            version=4,
            name="G",
            static_kwargs=hostile.EasyDict(mapping_lrmul=0.01, resample_kernel=[1, 3, 3, 1]),
            variables=pairs,
            components=hostile.EasyDict(components),
            build_module_src="raise SystemExit",
        )

    def whole(factor: float) -> hostile.Network:
        scaled = {k: v * factor for k, v in mapping.items()}
        return network({"dlatent_avg": raw["mapping.w_avg"]}, mapping=network(scaled), synthesis=network(synthesis))

    with hostile.nvidia_modules():
        path.write_bytes(pickle.dumps((whole(0.0), network({}), whole(1.0)), protocol=4))
    return path


def write_rosinality(raw: dict[str, Tensor], path: Path) -> Path:
    ours = {"input.input": raw["synthesis.b4.const"][None]}
    for i in range(2):
        for kind in ("weight", "bias"):
            ours[f"style.{i + 1}.{kind}"] = raw[f"mapping.fc{i}.{kind}"]
    for key in [key.removesuffix(".affine.weight") for key in raw if key.endswith(".affine.weight")]:
        block, name = key.removeprefix("synthesis.b").split(".")
        level = int(math.log2(int(block))) - 2
        if name == "torgb":
            at = f"to_rgbs.{level - 1}" if level else "to_rgb1"
            ours[f"{at}.bias"] = raw[f"{key}.bias"][None, :, None, None]
        else:
            at = f"convs.{2 * level - 2 + int(name[-1])}" if level else "conv1"
            ours[f"{at}.activate.bias"] = raw[f"{key}.bias"]
            ours[f"{at}.noise.weight"] = raw[f"{key}.noise_strength"][None]
            number = 2 * level - 1 + int(name[-1]) if level else 0
            ours[f"noises.noise_{number}"] = raw[f"{key}.noise_const"][None, None]
            if name == "conv0":
                ours[f"{at}.conv.blur.kernel"] = torch.outer(FIR, FIR) / 16
        ours[f"{at}.conv.weight"] = raw[f"{key}.weight"][None]
        for kind in ("weight", "bias"):
            ours[f"{at}.conv.modulation.{kind}"] = raw[f"{key}.affine.{kind}"]
    content = {"g": {k: v * 0 for k, v in ours.items()}, "g_ema": ours, "latent_avg": raw["mapping.w_avg"]}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def write_genforce(raw: dict[str, Tensor], path: Path) -> Path:
    ours = {"synthesis.early_layer.const": raw["synthesis.b4.const"][None], "truncation.w_avg": raw["mapping.w_avg"]}
    for i in range(2):
        for kind in ("weight", "bias"):
            ours[f"mapping.dense{i}.{kind}"] = raw[f"mapping.fc{i}.{kind}"]
    for key in [key.removesuffix(".affine.weight") for key in raw if key.endswith(".affine.weight")]:
        block, name = key.removeprefix("synthesis.b").split(".")
        level = int(math.log2(int(block))) - 2
        number = level if name == "torgb" else 2 * level - 1 + int(name[-1])
        at = f"synthesis.output{level}" if name == "torgb" else f"synthesis.layer{number}"
        ours[f"{at}.weight"] = raw[f"{key}.weight"].flip(2, 3) if name == "conv0" else raw[f"{key}.weight"]
        ours[f"{at}.bias"] = raw[f"{key}.bias"]
        ours[f"{at}.style.weight"], ours[f"{at}.style.bias"] = (
            raw[f"{key}.affine.weight"],
            raw[f"{key}.affine.bias"] - 1,
        )
        if name != "torgb":
            ours[f"{at}.noise_strength"] = raw[f"{key}.noise_strength"]
            ours[f"{at}.noise"] = raw[f"{key}.noise_const"][None, None]
            if name == "conv0":
                ours[f"{at}.filter.kernel"] = (torch.outer(FIR, FIR) / 16)[None, None]
    torch.save({"generator": {k: v * 0 for k, v in ours.items()}, "generator_smooth": ours}, path)
    return path


def check_contract(g: Generator, codes: Codes, folder: Path) -> Tensor:
    """Check what every loaded file must do; return the images of `codes`."""
    with torch.inference_mode():
        images = g(codes)
        assert images.shape == (len(codes), 3, g.resolution, g.resolution)
        for row in (0, len(codes) - 1):
            assert (g(codes[row]) - images[row]).abs().max() <= 1e-5 * images.std().clamp(min=1)
        for layer in g.layers:
            assert torch.equal(g.finish(codes, g.start(codes, layer.name)), images), layer.name
        g.save(folder)
        again = load_generator(folder, device="cpu")
        twin = Codes(again.spaces[codes.space.name], codes.latent, codes.labels)
        assert torch.equal(again(twin), images)
        pulled = [each.lift(code, "w+", truncation=0.5) for each, code in ((g, codes), (again, twin))]
        assert torch.equal(pulled[0].latent, pulled[1].latent)
    return images


@pytest.mark.parametrize(("architecture", "clamp"), [("skip", 0.8), ("resnet", 0.8), ("orig", None)])
def test_nvidia_pickles_of_other_shapes_follow_the_paper(
    tmp_path: Path, architecture: str, clamp: float | None
) -> None:
    raw = raw_network(architecture, n_labels=3)
    g = load_generator(write_nvidia(raw, tmp_path / "a.pkl", clamp=clamp, lr=0.02), device="cpu")
    assert (g.resolution, g.spaces["w+"].slots, g.spaces["z"].dim, g.spaces["w"].dim) == (16, 6, 5, 7)
    assert g.label_names == ("0", "1", "2")
    with pytest.raises(UserError, match="3 labels: 0, 1, 2"):
        g.sample(1)
    z = g.sample(3, seed=1, space="z", label=[0, 2, 1])
    images = check_contract(g, z, tmp_path / "ours")
    w = literal_w(raw, z.latent[:, 0], z.labels, 0.02)
    assert torch.allclose(g.lift(z, "w").latent[:, 0], w, atol=1e-5)
    assert off(images, literal_image(raw, w[:, None].expand(-1, 6, -1), architecture, clamp)) <= 1e-4
    varied = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(1))  # every slot must go where NVIDIA's goes
    assert off(g(Codes(g.spaces["w+"], varied)), literal_image(raw, varied, architecture, clamp)) <= 1e-4
    if clamp is not None:
        assert off(images, literal_image(raw, w[:, None].expand(-1, 6, -1), architecture, None)) > 1e-2


WRITERS = {
    "NVlabs/stylegan2 (TensorFlow)": write_tensorflow,
    "rosinality/stylegan2-pytorch": write_rosinality,
    "genforce/genforce (StyleGAN2)": write_genforce,
}


@pytest.mark.parametrize("layout", WRITERS)
def test_one_network_gives_the_same_images_in_every_layout(tmp_path: Path, layout: str) -> None:
    raw = raw_network(widths=(9, 7, 6, 5))
    g = load_generator(WRITERS[layout](raw, tmp_path / "a.file"), device="cpu")
    assert (g.family, g.origin.layout, g.resolution) == ("stylegan2", layout, 32)
    w = torch.randn(2, 8, 7, generator=torch.Generator().manual_seed(1))
    images = check_contract(g, Codes(g.spaces["w+"], w), tmp_path / "ours")
    assert off(images, literal_image(raw, w, "skip", None)) <= 1e-4
    z = g.sample(2, space="z")
    expected = literal_w(raw, z.latent[:, 0], None, 0.01)
    assert torch.allclose(g.lift(z, "w").latent[:, 0], expected, atol=1e-5)
    assert torch.allclose(g.truncation_centre, raw["mapping.w_avg"])


def test_a_bare_state_dict_takes_its_constants_from_options(tmp_path: Path) -> None:
    raw = raw_network()
    torch.save({"g_ema": {f"module.{key}": value for key, value in raw.items()}}, tmp_path / "a.pt")
    g = load_generator(tmp_path / "a.pt", device="cpu", clamp=0.8, lr_mlp=0.02)
    z = g.sample(2, space="z")
    w = literal_w(raw, z.latent[:, 0], None, 0.02)
    assert off(g(z), literal_image(raw, w[:, None].expand(-1, 6, -1), "skip", 0.8)) <= 1e-4
    with pytest.raises(UserError, match="unknown option"):
        load_generator(tmp_path / "a.pt", device="cpu", clmap=1.0)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    raw = raw_network()
    raw.pop("synthesis.b8.conv1.bias")
    torch.save(raw, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"lacks 'synthesis\.b8\.conv1\.bias'"):
        load_generator(tmp_path / "a.pt", device="cpu")
    raw = raw_network() | {"synthesis.b8.conv1.bias": torch.zeros(5)}
    torch.save(raw, tmp_path / "b.pt")
    with pytest.raises(UserError, match="do not fit"):
        load_generator(tmp_path / "b.pt", device="cpu")


# --- what the family adds ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    path = tmp_path_factory.mktemp("stylegan2") / "small.pkl"
    return load_generator(write_nvidia(raw_network(), path), device="cpu")


def test_slots_feed_the_layers_that_nvidia_numbers(small: Generator) -> None:
    fed = [part.layers for part in small.spaces["w+"].parts]
    assert fed[:3] == [("b4.conv1",), ("b4.torgb", "b8.conv0"), ("b8.conv1",)]
    assert fed[-1] == ("b16.torgb",)
    assert [part.name for part in small.spaces["s"].parts] == [layer.name for layer in small.layers]


def test_style_matrices_are_the_derivative_of_the_styles(small: Generator) -> None:
    w = small.sample(1, space="w+")
    matrices = small.style_matrices()
    assert list(matrices) == [layer.name for layer in small.layers]
    for part in small.spaces["s"].parts:
        matrix = matrices[part.name]
        step = torch.zeros_like(w.latent)
        step[:, matrix.part.slot] = torch.randn(7, generator=torch.Generator().manual_seed(part.number))
        moved = small.lift(w.with_latent(w.latent + step), "s").latent - small.lift(w, "s").latent
        expected = matrix.weight @ step[0, matrix.part.slot]
        assert torch.allclose(moved[0, 0, part.start : part.stop], expected, atol=1e-5)
    assert set(small.style_matrices("1")) == {"b4.torgb", "b8.conv0"}


def test_truncation_acts_in_w_alone(small: Generator) -> None:
    with pytest.raises(UserError, match="truncates w"):
        small.sample(1, space="z", truncation=0.7)
    with pytest.raises(UserError, match="ask for space 'w\\+'"):
        small.sample(1, space="w", truncation=0.7, cutoff=2)
    centre = small.sample(2, truncation=0.0).latent[:, 0]
    assert torch.allclose(centre, small.truncation_centre.expand(2, -1))
    cut = small.sample(1, space="w+", truncation=0.5, cutoff=2).latent
    whole = small.sample(1, space="w+").latent
    assert torch.equal(cut[:, 2:], whole[:, 2:])
    assert not torch.equal(cut[:, :2], whole[:, :2])


def test_noise_is_stored_random_or_off(small: Generator) -> None:
    stored, random, none = (small.sample(2, noise=mode) for mode in ("stored", "random", "none"))
    assert torch.equal(small(random), small(random))
    assert not torch.equal(small(random), small(stored))
    one_off = replace(random, noise_seeds=(random.noise_seeds[0], -1))
    assert torch.allclose(small(one_off)[1], small(none)[1], atol=1e-5)
    assert torch.allclose(small(one_off)[0], small(random)[0], atol=1e-5)


def test_codes_pass_derivatives_both_ways_even_after_a_render(small: Generator) -> None:
    codes = small.sample(1, space="w+")
    small.render(codes)
    latent = codes.latent.clone()
    direction = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    image = lambda x: small(codes.with_latent(x))  # noqa: E731
    _, forward = torch.func.jvp(image, (latent,), (direction,))
    probe = torch.randn(forward.shape, generator=torch.Generator().manual_seed(1))
    _, pull = torch.func.vjp(image, latent)
    assert torch.allclose((pull(probe)[0] * direction).sum(), (forward * probe).sum(), rtol=1e-3)
    step = (image(latent + 1e-2 * direction) - image(latent - 1e-2 * direction)) / 2e-2
    assert F.cosine_similarity(forward.flatten(), step.flatten(), dim=0) > 0.99  # not 1: leaky ReLUs have kinks


def test_moments_of_styles_follow_from_those_of_w(small: Generator) -> None:
    s = small.sample(4000, space="s", seed=0).latent[:, 0]
    assert torch.allclose(small.spaces["s"].mean, s.mean(0), atol=0.1)
    assert off(small.spaces["s"].covariance, s.T.cov()) < 0.5


# --- lucidrains -------------------------------------------------------------------------------------------------------


def write_lucidrains(path: Path, *, attention: bool) -> Path:
    """Write a training file of 16 px without a constant, with transparent images."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"GE.to_initial_block.weight": (6, 8, 4, 4)}
    for i in (0, 2, 4):
        shapes |= {f"SE.net.{i}.weight": (6, 6), f"SE.net.{i}.bias": (6,)}
    shapes |= {"GE.initial_conv.weight": (8, 8, 3, 3), "GE.initial_conv.bias": (8,)}
    before = 8
    for level, width in enumerate((8, 6, 4)):
        block = f"GE.blocks.{level}"
        for number, inputs in (("1", before), ("2", width)):
            shapes |= {f"{block}.to_style{number}.weight": (inputs, 6), f"{block}.to_style{number}.bias": (inputs,)}
            shapes |= {f"{block}.to_noise{number}.weight": (width, 1), f"{block}.to_noise{number}.bias": (width,)}
            shapes[f"{block}.conv{number}.weight"] = (width, inputs, 3, 3)
        shapes |= {f"{block}.to_rgb.to_style.weight": (width, 6), f"{block}.to_rgb.to_style.bias": (width,)}
        shapes[f"{block}.to_rgb.conv.weight"] = (4, width, 1, 1)
        before = width
    if attention:
        at = "GE.attns.1"
        for norm in ("0", "1"):
            shapes |= {f"{at}.{norm}.fn.norm.g": (1, 8, 1, 1), f"{at}.{norm}.fn.norm.b": (1, 8, 1, 1)}
        shapes |= {f"{at}.0.fn.fn.to_q.weight": (32, 8, 1, 1), f"{at}.0.fn.fn.to_kv.net.0.weight": (8, 1, 3, 3)}
        shapes |= {f"{at}.0.fn.fn.to_kv.net.1.weight": (64, 8, 1, 1), f"{at}.0.fn.fn.to_out.weight": (8, 32, 1, 1)}
        shapes |= {f"{at}.0.fn.fn.to_out.bias": (8,), f"{at}.1.fn.fn.0.weight": (16, 8, 1, 1)}
        shapes |= {f"{at}.1.fn.fn.0.bias": (16,), f"{at}.1.fn.fn.2.weight": (8, 16, 1, 1), f"{at}.1.fn.fn.2.bias": (8,)}
    tensors = {key: torch.randn(shape, generator=generator) * 0.5 for key, shape in shapes.items()}
    torch.save({"GAN": tensors, "version": "1.9.0"}, path)
    return path


@pytest.mark.parametrize("attention", [False, True])
def test_lucidrains_without_a_constant(tmp_path: Path, attention: bool) -> None:
    path = write_lucidrains(tmp_path / "model_3.pt", attention=attention)
    (tmp_path / ".config.json").write_text('{"lr_mlp": 0.5}')
    g = load_generator(path, device="cpu")
    assert (g.family, g.resolution, g.spaces["w+"].slots) == ("lucidrains", 16, 3)
    codes = g.sample(3, seed=1, space="w+")
    check_contract(g, codes, tmp_path / "ours")
    s = g.lift(codes, "s")
    assert torch.allclose(g(s), g(codes), atol=1e-5)
    raw = torch.load(path, weights_only=True)["GAN"]
    z = g.sample(2, space="z")
    w = F.normalize(z.latent[:, 0], dim=1)
    for i in (0, 2, 4):
        w = F.leaky_relu(F.linear(w, raw[f"SE.net.{i}.weight"] * 0.5, raw[f"SE.net.{i}.bias"] * 0.5), 0.2)
    assert torch.allclose(g.lift(z, "w").latent[:, 0], w, atol=1e-6)
    mixed = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    first = F.conv_transpose2d(mixed.mean(1)[:, :, None, None], raw["GE.to_initial_block.weight"])
    first = F.conv2d(first, raw["GE.initial_conv.weight"], raw["GE.initial_conv.bias"], padding=1)
    assert torch.allclose(g.features(Codes(g.spaces["w+"], mixed), "input"), first, atol=1e-5)
    assert g.first_layer_fed("2", g.spaces["w+"]) == "input"  # the mean of all slots makes the first map
    assert "input" not in g.style_matrices()
    still = load_generator(path, device="cpu", lr_mlp=0.1)
    assert not torch.allclose(still.lift(z, "w").latent, g.lift(z, "w").latent)


def test_where_no_mean_is_stored_truncation_pulls_to_that_of_many_codes(tmp_path: Path) -> None:
    g = load_generator(write_lucidrains(tmp_path / "a.pt", attention=False), device="cpu", lr_mlp=0.5)
    w = g.sample(20_000, seed=0).latent[:, 0]
    assert torch.allclose(g.truncation_centre, w.mean(0), atol=1e-5)
    assert torch.allclose(g.sample(1, truncation=0.0).latent[0, 0], w.mean(0), atol=1e-5)
