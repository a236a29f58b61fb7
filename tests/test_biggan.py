"""BigGAN files of both homes give their own networks' images; classes, truncation and layers are at hand."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eigenlens import Codes, UserError, load_generator
from eigenlens.generator import Generator
from eigenlens.generators.biggan import BigGAN, between, truncated_variance
from eigenlens.method import METHODS


def error(ours: Tensor, theirs: np.ndarray | Tensor) -> float:
    """Return the largest difference over the spread of the reference."""
    reference = torch.as_tensor(theirs)
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.std())


def opened(path: Path, **options: object) -> BigGAN:
    generator = load_generator(path, device="cpu", **options)
    assert isinstance(generator, BigGAN)
    return generator


def codes_of(g: Generator, z: Tensor, labels: Tensor, truncation: float = 1.0) -> Codes:
    space = g.spaces["z"]
    return Codes(space, z.reshape(len(z), space.slots, space.dim), labels, truncation=truncation)


def assert_roundtrip(g: Generator, codes: Codes, folder: Path) -> None:
    """Our own files give the same images, bit for bit."""
    again = load_generator(g.save(folder), device="cpu")
    assert torch.equal(again(replace(codes, space=again.spaces[codes.space.name])), g(codes))
    assert again.weight_hash == g.weight_hash


# --- goldens ----------------------------------------------------------------------------------------------------------


def test_ajbrock_deep_gives_the_reference_images(reference: Path) -> None:
    g = opened(reference / "goldens" / "ajbrock_biggandeep_64.pth")
    assert (g.origin.layout, g.resolution, len(g.label_names)) == ("ajbrock/BigGAN-PyTorch", 64, 10)
    with np.load(reference / "goldens" / "ajbrock_biggandeep_64.npz") as arrays:
        codes = codes_of(g, torch.tensor(arrays["z"]), torch.eye(10)[torch.tensor(arrays["y"])])
        embedded = g.lift(codes, "zy")
        assert error(g.render(embedded), arrays["image"]) <= 1e-4
        assert torch.equal(g.features(codes, "block1"), g.features(embedded, "block1"))
        assert error(embedded.latent[:, 0, 32:], arrays["y_shared"]) <= 1e-6


@pytest.fixture(scope="module")
def hugging_face(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[BigGAN, dict[str, np.ndarray]]:
    """Give the golden as its home has it: a folder of config.json and pytorch_model.bin."""
    folder, golden = tmp_path_factory.mktemp("biggan"), reference / "goldens" / "hf_biggan_deep_128_w16"
    shutil.copy(golden.with_suffix(".bin"), folder / "pytorch_model.bin")
    shutil.copy(f"{golden}_config.json", folder / "config.json")
    with np.load(golden.with_suffix(".npz")) as arrays:
        return opened(folder), dict(arrays)


@pytest.mark.parametrize("truncation", ["0.4", "0.437", "1.0"])
def test_hugging_face_gives_the_reference_images_at_every_truncation(
    hugging_face: tuple[BigGAN, dict[str, np.ndarray]], truncation: str
) -> None:
    g, arrays = hugging_face
    codes = codes_of(g, torch.tensor(arrays["z"]), torch.tensor(arrays["y"]), float(truncation))
    assert error(g.render(codes), arrays[f"image_t{truncation}"]) <= 1e-4
    with torch.inference_mode():
        for i in range(5):
            assert error(g.features(codes, f"block{i + 1}"), arrays[f"feat_t{truncation}/layers.{i}"]) <= 1e-4


def test_the_bare_file_is_read_as_its_folder(
    reference: Path, hugging_face: tuple[BigGAN, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    g, _ = hugging_face
    alone = tmp_path / "weights.bin"  # no config beside it
    shutil.copy(reference / "goldens" / "hf_biggan_deep_128_w16.bin", alone)
    assert opened(alone).config == g.config
    assert opened(alone).weight_hash == g.weight_hash


def test_truncation_travels_in_the_codes_where_statistics_depend_on_it(
    hugging_face: tuple[BigGAN, dict[str, np.ndarray]],
) -> None:
    g, _ = hugging_face
    codes = g.sample(2, seed=1, truncation=0.5, label=[3, 4])
    assert codes.truncation == 0.5
    assert torch.allclose(codes.latent, 0.5 * g.sample(2, seed=1, label=3).latent)
    assert g.lift(codes, "z+").truncation == 0.5
    directly = g.sample(2, seed=1, truncation=0.5, label=[3, 4], space="z+")
    assert directly.truncation == 0.5
    assert torch.allclose(directly.latent, g.lift(codes, "z+").latent)
    other = replace(codes, truncation=1.0)
    assert not torch.allclose(g.features(codes, "block1"), g.features(other, "block1"), atol=1e-3)
    with pytest.raises(UserError, match="truncations from 0 to 1"):
        g.sample(1, truncation=1.2, label=0)


# --- files of other shapes, and what they mean ------------------------------------------------------------------------


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    chance = np.random.default_rng(seed)
    return {key: torch.tensor(chance.normal(size=shape), dtype=torch.float32) for key, shape in shapes.items()}


def sigma_of(weight: Tensor, u: Tensor) -> Tensor:
    """Return ‖W v‖ for v = Wᵀu / ‖Wᵀu‖."""
    matrix = weight.flatten(1)
    v = matrix.T @ u[0]
    return (matrix @ (v / v.norm())).norm()


def ajbrock_file(
    widths: list[int], *, is_hierarchical: bool, attention: int, chunk: int, y_dim: int
) -> dict[str, Tensor]:
    """Make a plain BigGAN of random weights, spectral norms and statistics, as ajbrock's G_ema.pth holds it."""
    n_blocks, condition = len(widths) - 1, y_dim + (chunk if is_hierarchical else 0)
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (5, y_dim)}

    def normed(key: str, *shape: int, bias: bool = True) -> None:
        shapes.update({f"{key}.weight": shape, f"{key}.u0": (1, shape[0]), f"{key}.sv0": (1,)})
        shapes.update({f"{key}.bias": shape[:1]} if bias else {})

    normed("linear", widths[0] * 16, chunk)
    for i in range(n_blocks):
        before, after, block = widths[i], widths[i + 1], f"blocks.{i}.0"
        normed(f"{block}.conv1", after, before, 3, 3)
        normed(f"{block}.conv2", after, after, 3, 3)
        normed(f"{block}.conv_sc", after, before, 1, 1)
        for name, width in (("bn1", before), ("bn2", after)):
            shapes |= {f"{block}.{name}.stored_mean": (width,), f"{block}.{name}.stored_var": (width,)}
            normed(f"{block}.{name}.gain", width, condition, bias=False)
            normed(f"{block}.{name}.bias", width, condition, bias=False)
    width = widths[attention + 1]
    for key, shape in (("theta", (width // 8, width)), ("phi", (width // 8, width)), ("g", (width // 2, width))):
        normed(f"blocks.{attention}.1.{key}", *shape, 1, 1, bias=False)
    normed(f"blocks.{attention}.1.o", width, width // 2, 1, 1, bias=False)
    shapes[f"blocks.{attention}.1.gamma"] = ()
    shapes |= {f"output_layer.0.{leaf}": (widths[-1],) for leaf in ("gain", "bias", "stored_mean", "stored_var")}
    normed("output_layer.2", 3, widths[-1], 3, 3)
    tensors = random_tensors(shapes, seed=1)
    return {key: value.exp() if key.endswith("var") else value for key, value in tensors.items()}


def ajbrock_images(t: dict[str, Tensor], z: Tensor, y: Tensor, *, is_hierarchical: bool, eps: float = 1e-5) -> Tensor:
    """Compute a plain BigGAN straight from its file."""
    w = lambda key: t[f"{key}.weight"] / sigma_of(t[f"{key}.weight"], t[f"{key}.u0"])  # noqa: E731
    n_blocks = 1 + max(int(key.split(".")[1]) for key in t if key.startswith("blocks."))
    chunks = z.chunk(n_blocks + 1, dim=1) if is_hierarchical else [z]
    h = F.linear(chunks[0], w("linear"), t["linear.bias"]).view(len(z), -1, 4, 4)

    def normed(x: Tensor, key: str, condition: Tensor) -> Tensor:
        x = F.batch_norm(x, t[f"{key}.stored_mean"], t[f"{key}.stored_var"], eps=eps)
        gain, bias = 1 + F.linear(condition, w(f"{key}.gain")), F.linear(condition, w(f"{key}.bias"))
        return F.relu(x * gain[:, :, None, None] + bias[:, :, None, None])

    for i in range(n_blocks):
        key = f"blocks.{i}.0"
        condition = torch.cat([y, chunks[i + 1]], dim=1) if is_hierarchical else y
        x = F.interpolate(normed(h, f"{key}.bn1", condition), scale_factor=2)
        x = F.conv2d(x, w(f"{key}.conv1"), t[f"{key}.conv1.bias"], padding=1)
        x = F.conv2d(normed(x, f"{key}.bn2", condition), w(f"{key}.conv2"), t[f"{key}.conv2.bias"], padding=1)
        h = x + F.conv2d(F.interpolate(h, scale_factor=2), w(f"{key}.conv_sc"), t[f"{key}.conv_sc.bias"])
        key = f"blocks.{i}.1"
        if f"{key}.gamma" in t:
            query = F.conv2d(h, w(f"{key}.theta")).flatten(2)
            keys = F.max_pool2d(F.conv2d(h, w(f"{key}.phi")), 2).flatten(2)
            values = F.max_pool2d(F.conv2d(h, w(f"{key}.g")), 2).flatten(2)
            attended = torch.einsum("bcn,bmn->bcm", values, torch.einsum("bcm,bcn->bmn", query, keys).softmax(-1))
            h = h + t[f"{key}.gamma"] * F.conv2d(attended.view(len(h), -1, *h.shape[2:]), w(f"{key}.o"))
    o = "output_layer.0"
    h = F.relu(F.batch_norm(h, t[f"{o}.stored_mean"], t[f"{o}.stored_var"], t[f"{o}.gain"], t[f"{o}.bias"], eps=eps))
    return torch.tanh(F.conv2d(h, w("output_layer.2"), t["output_layer.2.bias"], padding=1))


@pytest.fixture(scope="module")
def hierarchical(tmp_path_factory: pytest.TempPathFactory) -> tuple[BigGAN, dict[str, Tensor]]:
    """Give a BigGAN of 32 px with z in four chunks of 3, and its file."""
    tensors = ajbrock_file([16, 16, 8, 8], is_hierarchical=True, attention=0, chunk=3, y_dim=6)
    path = tmp_path_factory.mktemp("hier") / "G_ema.pth"
    torch.save({f"module.{key}": value for key, value in tensors.items()}, path)
    return opened(path), tensors


def test_a_hierarchical_file_of_32_px(hierarchical: tuple[BigGAN, dict[str, Tensor]], tmp_path: Path) -> None:
    g, tensors = hierarchical
    assert (g.resolution, g.spaces["z"].slots, g.spaces["z"].dim) == (32, 4, 3)
    z, labels = torch.randn(3, 12, generator=torch.Generator().manual_seed(0)), torch.eye(5)[[0, 4, 2]]
    codes = codes_of(g, z, labels)
    wanted = ajbrock_images(tensors, z, labels @ tensors["shared.weight"], is_hierarchical=True)
    assert error(g(codes), wanted) <= 1e-4
    assert error(g(g.lift(codes, "zy")), wanted) <= 1e-4
    assert_roundtrip(g, codes, tmp_path / "ours")


@pytest.mark.parametrize("bn_eps", [1e-5, 1e-2])
def test_a_flat_file_of_16_px_and_its_option(tmp_path: Path, bn_eps: float) -> None:
    tensors = ajbrock_file([8, 16, 8], is_hierarchical=False, attention=1, chunk=7, y_dim=4)
    torch.save(tensors, tmp_path / "G.pth")
    g = opened(tmp_path / "G.pth", **({} if bn_eps == 1e-5 else {"bn_eps": "0.01"}))
    z, labels = torch.randn(2, 7, generator=torch.Generator().manual_seed(0)), torch.eye(5)[[1, 3]]
    wanted = ajbrock_images(tensors, z, labels @ tensors["shared.weight"], is_hierarchical=False, eps=bn_eps)
    codes = codes_of(g, z, labels)
    assert error(g(codes), wanted) <= 1e-4
    assert list(g.style_matrices()) == ["base"]  # z enters nothing else
    assert g.first_layer_fed("y", g.spaces["zy"]) == "block1"
    uncut = opened(tmp_path / "G.pth", law="normal", label_names="a,b,c,d,e")
    assert float(uncut.sample(1000, label="b").latent.abs().max()) > 2.5
    assert torch.equal(uncut.spaces["z"].covariance, torch.eye(7))
    with pytest.raises(UserError, match=r"unknown option of a BigGAN file 'bn_epz'\. Did you mean 'bn_eps'"):
        opened(tmp_path / "G.pth", bn_epz=1.0)
    with pytest.raises(UserError, match=r"cannot be read: .*; give numbers"):
        opened(tmp_path / "G.pth", bn_eps="small")


def test_one_class_is_none(tmp_path: Path) -> None:
    tensors = ajbrock_file([8, 16, 8], is_hierarchical=False, attention=1, chunk=7, y_dim=4)
    tensors["shared.weight"] = tensors["shared.weight"][:1]
    torch.save(tensors, tmp_path / "G.pth")
    g = opened(tmp_path / "G.pth")
    assert list(g.spaces) == ["z"]
    codes = g.sample(2, seed=0)
    wanted = ajbrock_images(tensors, codes.latent[:, 0], tensors["shared.weight"].expand(2, -1), is_hierarchical=False)
    assert error(g(codes), wanted) <= 1e-4


def hugging_face_file(layers: list[list], width: int, dims: tuple[int, int, int]) -> dict[str, Tensor]:
    """Make a BigGAN-deep of random weights without attention, statistics for 5 truncations, as Hugging Face has it."""
    z_dim, y_dim, n_classes = dims
    shapes: dict[str, tuple[int, ...]] = {"embeddings.weight": (y_dim, n_classes)}

    def normed(key: str, *shape: int, bias: bool = True) -> None:
        fan_in = math.prod(shape[1:])
        shapes.update({f"{key}.weight_orig": shape, f"{key}.weight_u": shape[:1], f"{key}.weight_v": (fan_in,)})
        shapes.update({f"{key}.bias": shape[:1]} if bias else {})

    normed("generator.gen_z", 16 * width * layers[0][1], z_dim + y_dim)
    for i, (_, before, after) in enumerate(layers):
        hidden = width * before // 4
        for j, (norm, out, kernel) in enumerate(
            [(width * before, hidden, 1), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, width * after, 1)]
        ):
            place = f"generator.layers.{i}"
            shapes |= {f"{place}.bn_{j}.running_means": (5, norm), f"{place}.bn_{j}.running_vars": (5, norm)}
            normed(f"{place}.bn_{j}.scale", norm, z_dim + y_dim, bias=False)
            normed(f"{place}.bn_{j}.offset", norm, z_dim + y_dim, bias=False)
            normed(f"{place}.conv_{j}", out, norm, kernel, kernel)
    last = width * layers[-1][2]
    shapes |= {f"generator.bn.{leaf}": (last,) for leaf in ("weight", "bias")}
    shapes |= {f"generator.bn.{leaf}": (5, last) for leaf in ("running_means", "running_vars")}
    normed("generator.conv_to_rgb", last, last, 3, 3)
    tensors = random_tensors(shapes, seed=2)
    for key in [key for key in tensors if key.endswith("weight_u")]:  # singular vectors, as training leaves them
        name = key.removesuffix("_u")
        u, _, v = torch.linalg.svd(tensors[f"{name}_orig"].flatten(1), full_matrices=False)
        tensors[f"{name}_u"], tensors[f"{name}_v"] = u[:, 0].clone(), v[0].clone()
    return {key: value.exp() if key.endswith("vars") else value for key, value in tensors.items()}


def hugging_face_images(t: dict[str, Tensor], layers: list[list], z: Tensor, y: Tensor, truncation: float) -> Tensor:
    """Compute a BigGAN-deep without attention straight from its file."""

    def w(key: str) -> Tensor:  # u and v are the first singular vectors
        return t[f"{key}.weight_orig"] / torch.linalg.matrix_norm(t[f"{key}.weight_orig"].flatten(1), 2)

    def statistics(key: str) -> tuple[Tensor, Tensor]:
        place = truncation * 4
        below, share = int(place), place - int(place)
        above = min(below + 1, 4) if share else below
        share = share or 1.0
        pick = lambda rows: rows[below] * share + rows[above] * (1 - share)  # noqa: E731  the wrong way round
        return pick(t[f"{key}.running_means"]), pick(t[f"{key}.running_vars"])

    condition = torch.cat([z, y @ t["embeddings.weight"].T], dim=1)
    h = F.linear(condition, w("generator.gen_z"), t["generator.gen_z.bias"]).view(len(z), 4, 4, -1).permute(0, 3, 1, 2)
    for i, (is_growing, before, after) in enumerate(layers):
        x = h
        for j in range(4):
            key = f"generator.layers.{i}.bn_{j}"
            gain, bias = 1 + F.linear(condition, w(f"{key}.scale")), F.linear(condition, w(f"{key}.offset"))
            x = F.batch_norm(x, *statistics(key), eps=1e-3) * gain[:, :, None, None] + bias[:, :, None, None]
            x = F.interpolate(F.relu(x), scale_factor=2 if is_growing and j == 1 else 1)
            key = f"generator.layers.{i}.conv_{j}"
            x = F.conv2d(x, w(key), t[f"{key}.bias"], padding=1 if j in (1, 2) else 0)
        h = h[:, : h.shape[1] // 2] if before != after else h
        h = x + F.interpolate(h, scale_factor=2 if is_growing else 1)
    key = "generator.bn"
    h = F.relu(F.batch_norm(h, *statistics(key), t[f"{key}.weight"], t[f"{key}.bias"], eps=1e-3))
    key = "generator.conv_to_rgb"
    return torch.tanh(F.conv2d(h, w(key), t[f"{key}.bias"], padding=1)[:, :3])


@pytest.mark.parametrize("truncation", [0.3, 0.5, 1.0])
def test_a_hugging_face_folder_of_another_shape(tmp_path: Path, truncation: float) -> None:
    layers = [[False, 4, 4], [False, 4, 4], [True, 4, 2], [False, 2, 2], [False, 2, 2], [True, 2, 1]]  # 3 a resolution
    tensors = hugging_face_file(layers, 4, (5, 3, 7))
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"layers": layers, "eps": 1e-3, "z_dim": 5}))
    g = opened(tmp_path)
    assert (g.resolution, g.spaces["z+"].slots, len(g.label_names)) == (16, 7, 7)
    z, labels = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)), torch.eye(7)[[1, 6]]
    wanted = hugging_face_images(tensors, layers, z, labels, truncation)
    codes = codes_of(g, z, labels, truncation)
    assert error(g(codes), wanted) <= 1e-4
    assert_roundtrip(g, codes, tmp_path / "ours")
    (tmp_path / "config.json").unlink()  # the widths tell the depth as well
    assert opened(tmp_path, bn_eps=1e-3).config == g.config
    with pytest.raises(UserError, match=r"depth 2 does not fit 6 blocks of widths .*; allowed: 1, 3"):
        opened(tmp_path, depth=2)


# --- the anatomy ------------------------------------------------------------------------------------------------------


def test_the_prior_is_cut_at_two_and_has_its_own_variance(hierarchical: tuple[BigGAN, dict[str, Tensor]]) -> None:
    g, _ = hierarchical
    z = g.sample(4000, seed=0, label=0).latent
    assert 1.99 < float(z.abs().max()) <= 2.0
    assert abs(float(z.var()) - truncated_variance()) < 0.02
    assert torch.allclose(g.spaces["z"].covariance, torch.eye(3) * truncated_variance())
    assert torch.equal(g.sample(1, seed=0, start=77, label=0).latent[0], z[77])
    assert torch.allclose(g.sample(2, label=0, truncation=0.5).latent, z[:2] * 0.5)


def test_statistics_between_two_truncations_have_their_weights_swapped() -> None:
    rows = torch.tensor([[0.0], [10.0], [20.0]])
    assert between(rows, 0.5).item() == 10.0
    assert between(rows, 0.6).item() == pytest.approx(18.0)  # an interpolation would give 12
    assert between(rows, 1.0).item() == 20.0
    assert between(rows[:1], 0.3).item() == 0.0


def test_classes_mix_by_labels_and_in_their_space(hierarchical: tuple[BigGAN, dict[str, Tensor]]) -> None:
    g, tensors = hierarchical
    mixed = torch.tensor([0.5, 0.0, 0.5, 0.0, 0.0])
    by_labels = g.sample(2, seed=3, label=mixed)
    pure = [g.lift(g.sample(2, seed=3, label=label), "zy") for label in (0, 2)]
    between_them = pure[0].with_latent((pure[0].latent + pure[1].latent) / 2)
    assert torch.allclose(g(by_labels), g(between_them), atol=1e-5)
    assert not torch.allclose(g(pure[0]), g(pure[1]), atol=1e-2)
    embedding = tensors["shared.weight"]
    space = g.spaces["zy"]
    assert torch.allclose(space.mean[12:], embedding.mean(0), atol=1e-6)
    assert torch.allclose(space.covariance[12:, 12:], embedding.T.cov(correction=0), atol=1e-5)
    step = METHODS["random"](n_directions=1, space="zy").fit(g)
    moved = step.move(pure[0], 0, by=2.0, layers="y")
    assert torch.equal(moved.latent[..., :12], pure[0].latent[..., :12])
    assert not torch.equal(g(moved), g(pure[0]))
    with pytest.raises(UserError, match="no label came"):
        g.sample(1)
    with pytest.raises(UserError, match="have no labels; sample with label="):
        g(Codes(g.spaces["z"], torch.zeros(1, 4, 3)))


def test_chunks_and_slots_reach_their_own_layers_alone(hierarchical: tuple[BigGAN, dict[str, Tensor]]) -> None:
    g, _ = hierarchical
    codes = g.sample(1, seed=0, label=1)
    moved = codes.latent.clone()
    moved[:, 2] += 1.0
    changed = codes.with_latent(moved)
    assert torch.equal(g.features(changed, "block1.attention"), g.features(codes, "block1.attention"))
    assert not torch.equal(g.features(changed, "block2"), g.features(codes, "block2"))
    assert torch.equal(g.finish(changed, g.start(codes, "block2")), g(changed))
    assert g.first_layer_fed("2", codes.space) == "block2"


def test_style_matrices_are_what_z_is_multiplied_with(
    tiny: Callable[[str], Generator], hierarchical: tuple[BigGAN, dict[str, Tensor]]
) -> None:
    g, tensors = hierarchical
    matrices = g.style_matrices("0,2")
    assert list(matrices) == ["base", "block2"]
    assert matrices["block2"].part.slot == 2
    codes = g.sample(1, seed=0, label=1)
    moved = codes.latent.clone()
    moved[:, 0] += torch.tensor([1.0, 2.0, -1.0])
    step = (g.features(codes.with_latent(moved), "base") - g.features(codes, "base")).flatten()
    assert torch.allclose(step, matrices["base"].weight @ torch.tensor([1.0, 2.0, -1.0]), atol=1e-5)
    key = "blocks.1.0.bn1.gain"
    gain = (tensors[f"{key}.weight"] / sigma_of(tensors[f"{key}.weight"], tensors[f"{key}.u0"]))[:, 6:]  # after y
    assert torch.allclose(matrices["block2"].weight[: len(gain)], gain, atol=1e-6)
