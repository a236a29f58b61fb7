"""Anyone's network becomes a generator in one call, and what cannot become one is refused with the reason."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eigenlens
from eigenlens import Unsupported, UserError, from_module
from eigenlens.effect import traverse
from eigenlens.generators.custom import Custom
from eigenlens.method import METHODS

EXAMPLES = Path(__file__).parents[1] / "examples"


def seeded(make: Any, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


class Inside(nn.Module):
    """A chain inside a module that reshapes the code first, as many DCGANs are written."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Sequential(nn.ConvTranspose2d(6, 8, 4), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
            nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z[:, :, None, None])


class Branched(nn.Module):
    """A residual network on a map of noise: no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.act, self.last = nn.ReLU(inplace=True), nn.Conv2d(6, 1, 1)

    def forward(self, noise: Tensor) -> Tensor:
        h = self.first(noise)
        return torch.tanh(self.last(h + self.act(self.second(h))))


class Centred(nn.Module):
    """Take the mean of the batch off every image."""

    def forward(self, images: Tensor) -> Tensor:
        return images - images.mean(0)


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 48), nn.ReLU(inplace=True), nn.Unflatten(1, (3, 4, 4)), nn.Tanh())


def pixels_first() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(6, 8, 4), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1))


NETS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "chain": (chain, {"latent_dim": 6}, ["0", "1", "2", "3"]),
    "pixels first": (pixels_first, {"latent_dim": 6}, ["0", "1", "2"]),
    "inside": (
        Inside, {"latent_dim": 6, "output_range": (0, 1)}, ["main.0.0", "main.0.1", "main.0.2", "main.1", "main.2"],
    ),
    "branched": (Branched, {"latent_shape": (2, 5, 5)}, ["first", "second", "last"]),
}  # fmt: skip


def net_and_generator(name: str) -> tuple[nn.Module, eigenlens.Generator]:
    make, arguments, _ = NETS[name]
    net = seeded(make).eval()
    return net, from_module(net, name=name, **arguments)


@pytest.mark.parametrize("name", NETS)
def test_a_wrapped_network_gives_its_own_images_and_features(name: str) -> None:
    net, g = net_and_generator(name)
    assert [layer.name for layer in g.layers] == NETS[name][2]
    assert isinstance(g, Custom)
    codes = g.sample(3, seed=2)
    wanted = net(codes.latent[:, 0].reshape(3, *g.latent_shape))
    assert torch.allclose(g(codes), 2 * wanted - 1 if "output_range" in NETS[name][1] else wanted, atol=1e-6)
    for layer in g.layers:
        kept: list[Tensor] = []
        hook = net.get_submodule(layer.name).register_forward_hook(lambda m, i, o, k=kept: k.append(o.clone()))
        g(codes)
        hook.remove()
        assert torch.equal(g.features(codes, layer.name), kept[0]), layer.name
    assert all(not parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NETS)
def test_a_network_of_any_precision_takes_our_codes(name: str, dtype: torch.dtype) -> None:
    make, arguments, _ = NETS[name]
    exact, g = from_module(seeded(make), **arguments), from_module(seeded(make).to(dtype), **arguments)
    codes = g.sample(3, seed=2)
    assert codes.latent.dtype == torch.float32
    images = g(codes)
    assert images.dtype == torch.float32
    assert torch.allclose(images, exact(codes), atol=0.03)
    for layer in g.layers:
        assert torch.equal(g.finish(codes, g.start(codes, layer.name)), images)
        assert g.features(codes, layer.name).dtype == torch.float32
    for layer, matrix in g.style_matrices().items():
        assert matrix.weight.dtype == torch.float32
        assert torch.allclose(matrix.weight, exact.style_matrices()[layer].weight, atol=0.01)
    assert METHODS["sefa"](n_directions=2).fit(g).vectors.dtype == torch.float32
    codes.latent.requires_grad_()
    g(codes).sum().backward()
    assert codes.latent.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roundings_of_a_coarse_network_are_no_meeting_of_codes(dtype: torch.dtype) -> None:
    def net() -> nn.Module:
        hidden = [nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 1024), nn.ReLU()]
        return nn.Sequential(*hidden, nn.Linear(1024, 3072), nn.Unflatten(1, (3, 32, 32))).to(dtype)

    for seed in range(4):
        assert from_module(seeded(net, seed), latent_dim=128).resolution == 32
    meeting = nn.Sequential(seeded(net), Centred())
    with pytest.raises(UserError, match="the codes of a batch meet"):
        from_module(meeting, latent_dim=128)


@pytest.mark.parametrize("name", NETS)
def test_a_state_serves_many_times_and_holds_what_was_run(name: str) -> None:
    _, g = net_and_generator(name)
    codes, other = g.sample(2, seed=1), g.sample(2, seed=9)
    for layer in g.layers[1:]:
        state = g.start(codes, layer.name)
        assert torch.equal(g.finish(codes, state), g(codes))
        assert torch.equal(g.finish(other, state), g(codes))  # only the first layer reads the code
    assert torch.equal(g.finish(other, g.start(codes, g.layers[0].name)), g(other))


def test_links_of_a_chain_run_from_where_the_state_stands() -> None:
    net, g = net_and_generator("inside")
    codes = g.sample(2)
    state = g.start(codes, "main.1")
    runs: list[str] = []
    for name, module in net.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: runs.append(name))
    g.finish(codes, state)
    assert runs == ["main.1", "main.2"]


@pytest.mark.parametrize("name", NETS)
def test_style_matrices_are_found_by_running(name: str) -> None:
    _, g = net_and_generator(name)
    ((layer, matrix),) = g.style_matrices().items()
    assert layer == g.layers[0].name
    a, b = g.sample(2, seed=4), g.sample(2, seed=5)
    wanted = (g.features(a, layer) - g.features(b, layer)).flatten(1)
    assert torch.allclose((a.latent - b.latent)[:, 0] @ matrix.weight.T, wanted, atol=1e-5)
    d = METHODS["sefa"](n_directions=3).fit(g)
    strip = traverse(g, a, d, 0, (-2.0, 2.0))
    assert not torch.equal(strip[:, 0], strip[:, 1])


def test_a_network_that_squashes_its_code_first_has_no_style_matrix() -> None:
    g = from_module(seeded(lambda: nn.Sequential(nn.Tanh(), chain())), latent_dim=6, name="squashed")
    with pytest.raises(Unsupported, match="squashed has no Linear or convolution that takes its code as it is"):
        g.style_matrices()


def test_a_uniform_law_is_drawn_and_has_its_moments() -> None:
    g = from_module(seeded(chain), latent_dim=6, law="uniform")
    z = g.sample(3000).latent
    assert 0.99 < float(z.abs().max()) <= 1.0
    assert torch.allclose(g.spaces["z"].covariance, torch.eye(6) / 3)


class Noisy(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.repeat(1, 3)[:, :, None, None] + torch.randn(1)


class Meeting(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return (z - z.mean(0))[:, :, None, None]


class Pair(nn.Module):
    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z, z


@pytest.mark.parametrize(
    ("net", "arguments", "message"),
    [
        (Noisy(), {"latent_dim": 1}, "another image for the same code each time: it draws noise"),
        (Meeting(), {"latent_dim": 3}, "another image in another batch: the codes of a batch meet"),
        (Pair(), {"latent_dim": 3}, "it gives a tuple, not a tensor"),
        (nn.Linear(3, 3), {"latent_dim": 3}, r"it gives \[2, 3\], not \[2, 1 or 3, size, size\]"),
        (nn.Linear(4, 3), {"latent_dim": 3}, "give latent_shape=, or wrap it in a module that fixes its other inputs"),
        (nn.Unflatten(1, (1, 2, 3)), {"latent_dim": 6}, "images of 2 x 3 pixels; only square ones"),
        (chain(), {}, "say how long a code is: latent_dim=64"),
        (chain(), {"latent_dim": 5, "latent_shape": (6,)}, "does not hold latent_dim 5 numbers"),
        (chain(), {"latent_dim": 6, "law": "cauchy"}, "law 'cauchy' is not known; allowed: normal, uniform"),
        (chain(), {"latent_dim": 6, "output_range": (1, 0)}, "give the lowest and the highest value"),
    ],
)
def test_what_is_no_generator_is_refused_with_the_reason(net: nn.Module, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_module(net, **arguments)


def test_code_is_not_saved(tmp_path: Path) -> None:
    _, g = net_and_generator("chain")
    with pytest.raises(Unsupported, match="whose code no file can hold; save its state_dict"):
        g.save(tmp_path / "folder")
    with pytest.raises(Unsupported, match=r"eigenlens\.from_module"):
        Custom.from_config(g.config, {}, name="chain")


@pytest.mark.parametrize("example", ["wrap_a_vae_decoder", "wrap_a_one_step_model"])
def test_examples_run(example: str, tmp_path: Path) -> None:
    functions = runpy.run_path(str(EXAMPLES / f"{example}.py"))
    strip = functions["main"](tmp_path / "strip.png", steps=20)
    assert (tmp_path / "strip.png").stat().st_size > 500
    assert strip.shape[1] == 5
    assert torch.isfinite(strip).all()
    assert not torch.allclose(strip[:, 0], strip[:, -1], atol=1e-3)
