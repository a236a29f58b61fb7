"""MobileStyleGAN: the trained one of the package random_face, and networks of other shapes written here."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eigenlens import Codes, UserError, load_generator
from eigenlens.checkpoint import read_checkpoint
from eigenlens.generator import named_path
from eigenlens.generators.mobilestylegan import MobileStyleGAN
from loaded import check_loaded, check_noise, check_styles, spread_error

HAAR = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) * math.sqrt(0.5)  # low-pass, differences


def opened(source: Path | str, **options: Any) -> MobileStyleGAN:
    g = load_generator(source, device="cpu", **options)
    assert isinstance(g, MobileStyleGAN)
    return g


# --- the trained network ----------------------------------------------------------------------------------------------

NEEDS_FACES = pytest.mark.skipif(
    importlib.util.find_spec("random_face") is None,
    reason="the package random_face, which carries the trained network, is not installed",
)


@pytest.fixture(scope="module")
def faces() -> MobileStyleGAN:
    return opened("ffhq-mobile")


@pytest.mark.slow
@NEEDS_FACES
@torch.inference_mode()
def test_reference(faces: MobileStyleGAN, reference: Path) -> None:
    with np.load(reference / "goldens" / "mobilestylegan_ffhq1024.npz") as file:
        told = {key: torch.from_numpy(file[key]) for key in file.files}
    z, w = (Codes(faces.spaces[name], told[name][:, None]) for name in ("z", "w"))
    assert (faces.lift(z, "w").latent[:, 0] - told["w"]).abs().max() <= 1e-5
    image = faces(w)
    assert spread_error(F.avg_pool2d(image, 4), told["image_256"]) <= 1e-4
    assert spread_error(image[:, :, 384:640, 384:640], told["image_crop"]) <= 1e-4
    # one slot or the eighteen of its teacher, those without a layer moved away: the same image, but for the rounding
    # of another batch size, which this network magnifies
    latent = told["w"][:1, None].repeat(1, 18, 1)
    latent[:, 15:17] += 3.0
    assert spread_error(faces(Codes(faces.spaces["w+"], latent)), image[:1]) <= 1e-3


@pytest.mark.slow
@NEEDS_FACES
def test_the_mean_of_w(faces: MobileStyleGAN, reference: Path) -> None:
    with np.load(reference / "goldens" / "mobilestylegan_ffhq1024.npz") as told:
        mean = torch.from_numpy(told["w_avg_20k_seed0"])
    ours = faces.sample(4096, seed=1, space="w").latent[:, 0].mean(0)  # other draws: equal up to chance
    assert F.cosine_similarity(ours, mean, dim=0) > 0.998


@NEEDS_FACES
def test_slots_are_those_of_its_teacher(faces: MobileStyleGAN) -> None:
    assert (faces.resolution, faces.spaces["w+"].slots) == (1024, 18)
    fed = [part.layers for part in faces.spaces["w+"].parts]
    assert fed[:5] == [("b4.conv1",), ("b8.conv0",), ("b8.conv1",), ("b16.conv0",), ("b16.conv1",)]
    assert fed[14:] == [("b512.conv1",), (), (), ("b1024.torgb",)]


@NEEDS_FACES
def test_only_the_last_image_reads_the_style() -> None:
    network = read_checkpoint(named_path("ffhq-mobile")).content["weights"]["SynthesisNetwork"]
    (style,) = (layer["id"] for layer in network["layers"] if layer["type"] == "Parameter")
    names = {layer["id"]: layer["name"] for layer in network["layers"]}
    types = {layer["id"]: layer["type"] for layer in network["layers"]}
    products = {
        e["to_layer"] for e in network["edges"] if e["from_layer"] == style and types[e["to_layer"]] == "MatMul"
    }
    weights = {names[e["from_layer"]] for e in network["edges"] if e["to_layer"] in products} - {names[style]}
    pieces = [f"layers.{level}.{piece}" for level in range(7) for piece in ("up", "conv1.conv", "conv2.conv")]
    live = ["conv1.conv", *pieces, "layers.6.to_img.conv"]
    assert weights == {f"m.{piece}.modulation.weight" for piece in live}


# --- networks of other shapes -----------------------------------------------------------------------------------------


class Network:
    """An OpenVINO network in the making."""

    def __init__(self) -> None:
        self.layers: list[str] = []
        self.edges: list[str] = []
        self.numbers = b""

    def add(self, kind: str, *sources: int, name: str = "", **attributes: Any) -> int:
        number = len(self.layers)
        data = "".join(f' {key}="{value}"' for key, value in attributes.items())
        self.layers.append(f'<layer id="{number}" name="{name or number}" type="{kind}"><data{data}/></layer>')
        for port, source in enumerate(sources):
            self.edges.append(f'<edge from-layer="{source}" from-port="0" to-layer="{number}" to-port="{port}"/>')
        return number

    def constant(self, tensor: Tensor, name: str = "") -> int:
        raw, shape = tensor.float().contiguous().numpy().tobytes(), ",".join(map(str, tensor.shape))
        where = {"offset": len(self.numbers), "size": len(raw)}
        self.numbers += raw
        return self.add("Const", name=name, element_type="f32", shape=shape, **where)

    def write(self, path: Path) -> None:
        text = f'<net name="x" version="10"><layers>{"".join(self.layers)}</layers><edges>{"".join(self.edges)}</edges>'
        path.with_suffix(".xml").write_text(f"{text}</net>")
        path.with_suffix(".bin").write_bytes(self.numbers)


def draw_network(widths: tuple[int, ...], dim: int = 10, grey: bool = False) -> dict[str, Tensor]:
    """Draw the constants of a network, in the order of channels that the files have."""
    random = torch.Generator().manual_seed(4)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=random) * scale

    state = {"m.input.input": draw(1, widths[0], 4, 4)}

    def style(name: str, length: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = draw(length, dim, scale=0.3), draw(1, length) + 1.0

    def layer(name: str, inputs: int, width: int, size: int) -> None:
        style(f"{name}.conv.modulation", inputs)
        kernel = 3 if size == 4 else 1
        if size > 4:
            state[f"{name}.conv.weight_dw"] = draw(inputs, 1, 1, 3, 3)
        state[f"{name}.kernel"] = draw(width, inputs, kernel, kernel, scale=1.0 / math.sqrt(inputs))
        state[f"{name}.noise"] = draw(1, 1, size, size, scale=0.2)
        state[f"{name}.bias"] = draw(1, width, 1, 1, scale=0.3)

    layer("m.conv1", widths[0], widths[0], 4)
    for level, width in enumerate(widths[1:]):
        style(f"m.layers.{level}.up.modulation", widths[level])
        layer(f"m.layers.{level}.conv1", widths[level] // 4, width, 8 * 2**level)
        layer(f"m.layers.{level}.conv2", width, width, 8 * 2**level)
    last, colours = f"m.layers.{len(widths) - 2}.to_img", 4 if grey else 12
    style(f"{last}.conv.modulation", widths[-1])
    state[f"{last}.conv.weight"] = draw(colours, widths[-1], 1, 1)
    state[f"{last}.bias"] = draw(1, colours, 1, 1)
    return state


def write_networks(folder: Path, state: dict[str, Tensor], *, slope: float = 0.2) -> list[tuple[Tensor, Tensor]]:
    """Write both networks as far as a reader follows them; return the mapping's layers."""
    random = torch.Generator().manual_seed(5)
    shapes = [(12, 6), (10, 12)]
    mapping = [(torch.randn(s, generator=random) * 0.5, torch.randn(s[0], generator=random)) for s in shapes]
    net = Network()
    x = net.add("Parameter")
    for weight, bias in mapping:
        x = net.add("MatMul", x, net.constant(weight), transpose_b="true")
        x = net.add("Add", x, net.add("Reshape", net.constant(bias), x))
        x = net.add("PReLU", x, net.constant(torch.tensor([slope])))
        x = net.add("Multiply", x, net.constant(torch.tensor([[math.sqrt(2.0)]])))
    net.write(folder / "MappingNetwork")
    net = Network()
    style = net.add("Parameter")
    net.constant(state["m.input.input"], "m.input.input")
    net.add("GroupConvolutionBackpropData", style, net.constant(HAAR[1].view(1, 1, 1, 2, 1).expand(3, -1, -1, -1, -1)))
    for key in state:
        if key.endswith("modulation.weight"):
            name = key.removesuffix(".weight")
            product = net.add("MatMul", style, net.constant(state[key], key), transpose_b="true")
            total = net.add("Add", product, net.constant(state[f"{name}.bias"], f"{name}.bias"))
            sources = [net.add("Reshape", total, style)]
            if not name.endswith("up.modulation"):
                sources.append(net.constant(torch.full((1, 1, 1, 1), 0.5)))
            net.add("Multiply", *sources)
        if key.endswith(".kernel"):
            name = key.removesuffix(".kernel")
            x = net.add("Convolution", style, net.constant(state[key]))
            x = net.add("Add", x, net.constant(state[f"{name}.noise"]))
            net.add("Add", x, net.constant(state[f"{name}.bias"], f"{name}.bias"))
        if key.endswith("weight_dw") or "to_img.conv.weight" in key or "to_img.bias" in key:
            net.constant(state[key], key)
    net.write(folder / "SynthesisNetwork")
    return mapping


def by_hand(state: dict[str, Tensor], w: Tensor) -> Tensor:
    """Run the network step by step as the files describe it."""

    def style(name: str, gain: float) -> Tensor:
        affine = w @ state[f"{name}.modulation.weight"].T + state[f"{name}.modulation.bias"]
        return affine[:, :, None, None] * gain

    def rows(x: Tensor, taps: Tensor) -> Tensor:
        return F.conv_transpose2d(
            x, taps.view(1, 1, 2, 1).repeat(x.shape[1], 1, 1, 1), stride=(2, 1), groups=x.shape[1]
        )

    def haar(x: Tensor) -> Tensor:
        low, steps = x[:, : x.shape[1] // 4], x[:, x.shape[1] // 4 :].unflatten(1, (-1, 3))
        left = rows(low, HAAR[0]) + rows(steps[:, :, 0], HAAR[1])
        right = rows(steps[:, :, 1], HAAR[0]) + rows(steps[:, :, 2], HAAR[1])
        return (rows(left.mT, HAAR[0]) + rows(right.mT, HAAR[1])).mT

    def layer(x: Tensor, name: str) -> Tensor:
        x = x * style(f"{name}.conv", 0.5)
        if f"{name}.conv.weight_dw" in state:
            x = F.conv2d(x, state[f"{name}.conv.weight_dw"].flatten(1, 2), padding=1, groups=x.shape[1])
        kernel = state[f"{name}.kernel"]
        x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2) + state[f"{name}.noise"] + state[f"{name}.bias"]
        return F.leaky_relu(x, 0.2)

    x = layer(state["m.input.input"], "m.conv1")
    n = sum(key.endswith("up.modulation.weight") for key in state)
    for level in range(n):
        x = layer(haar(x * style(f"m.layers.{level}.up", 1.0)), f"m.layers.{level}.conv1")
        x = layer(x, f"m.layers.{level}.conv2")
    last = f"m.layers.{n - 1}.to_img"
    return haar(F.conv2d(x * style(f"{last}.conv", 0.5), state[f"{last}.conv.weight"]) + state[f"{last}.bias"])


@pytest.mark.parametrize(("widths", "grey"), [((16, 12, 8), False), ((8, 8), True)])
def test_networks_of_other_shapes(tmp_path: Path, widths: tuple[int, ...], grey: bool) -> None:
    state = draw_network(widths, grey=grey)
    mapping = write_networks(tmp_path, state)
    g = opened(tmp_path)
    assert g.resolution == 4 * 2 ** len(widths)
    assert g.channels == (1 if grey else 3)
    assert [(s.name, s.slots, s.dim) for s in g.spaces.values()][:3] == [
        ("z", 1, 6),
        ("w", 1, 10),
        ("w+", 2 * len(widths) + 2, 10),
    ]
    codes = g.sample(3, seed=0, space="z")
    x = codes.latent[:, 0] / codes.latent[:, 0].square().mean(1, keepdim=True).sqrt()
    for weight, bias in mapping:
        x = F.leaky_relu(x @ weight.T + bias, 0.2) * math.sqrt(2.0)
    w = g.lift(codes, "w")
    assert spread_error(w.latent[:, 0], x) <= 1e-5
    assert spread_error(g(w), by_hand(state, w.latent[:, 0])) <= 1e-4
    check_loaded(g, tmp_path)
    check_styles(g)
    check_noise(g)


def test_slots_without_a_layer_change_nothing(tmp_path: Path) -> None:
    write_networks(tmp_path, draw_network((16, 12, 8)))
    g = opened(tmp_path)
    codes = g.sample(1, seed=0, space="w+")
    changed = []
    for part in g.spaces["w+"].parts:
        latent = codes.latent.clone()
        latent[:, part.slot] += 1.0
        changed.append(not torch.equal(g(codes.with_latent(latent)), g(codes)))
        assert changed[-1] == bool(part.layers)
    assert changed == [True] * 5 + [False] * 2 + [True]


def test_networks_that_are_none(tmp_path: Path) -> None:
    state = draw_network((16, 12, 8))
    write_networks(tmp_path, state, slope=0.3)
    with pytest.raises(UserError, match="slope"):
        opened(tmp_path)
    del state["m.input.input"], state["m.conv1.kernel"]
    write_networks(tmp_path, {"m.input.input": torch.ones(1, 16, 4, 4), **state})
    with pytest.raises(UserError, match="no MobileStyleGAN that is known"):
        opened(tmp_path)
    write_networks(tmp_path, draw_network((16, 12, 8)))
    with pytest.raises(UserError, match="unknown option"):
        opened(tmp_path, resolution=64)
    for suffix in (".xml", ".bin"):
        (tmp_path / f"MappingNetwork{suffix}").unlink()
    with pytest.raises(UserError, match=r"mobilestylegan .* also needs MappingNetwork\.xml"):
        opened(tmp_path)
