"""Plain stacks are read from their weights alone: kinds, strides, paddings, norms and activations are the net's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eigenlens import Codes, UserError, load_generator
from eigenlens.generators.dcgan import DCGAN

Z = 12


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Draw weights that keep the spread, and statistics that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                for tensor, mean in ((module.weight, 1.0), (module.bias, 0.0), (module.running_mean, 0.0)):
                    nn.init.normal_(tensor, mean, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
            elif isinstance(module, (nn.Linear, nn.ConvTranspose2d, nn.Conv2d)):
                nn.init.normal_(module.weight, std=1.5 / module.weight[0].numel() ** 0.5)
    return net.eval()


def opened(path: Path, **options: Any) -> DCGAN:
    generator = load_generator(path, device="cpu", **options)
    assert isinstance(generator, DCGAN)
    return generator


def latents(net: nn.Module, n: int = 2) -> tuple[Tensor, Tensor]:
    """Return z as we hold it, [n, 1, Z], and as the net takes it."""
    z = torch.randn(n, Z, generator=torch.Generator().manual_seed(5))
    first = next(m for m in net.modules() if isinstance(m, (nn.Linear, nn.ConvTranspose2d)))
    return z[:, None], z if isinstance(first, nn.Linear) else z[:, :, None, None]


def assert_reads(net: nn.Module, tensors: Mapping[str, Tensor], path: Path, **options: Any) -> DCGAN:
    """The file of these tensors gives the net's own images."""
    torch.save(tensors, path)
    g = opened(path, **options)
    ours, theirs = latents(net)
    with torch.no_grad():
        wanted = net(theirs)
    wanted = wanted.reshape(2, g.channels, g.resolution, g.resolution)
    wanted = 2 * wanted - 1 if options.get("output") == "sigmoid" else wanted
    images = g(Codes(g.spaces["z"], ours))
    assert float((images - wanted).abs().max() / wanted.std()) <= 1e-4, g.config
    return g


def up(before: int, after: int, kernel: int = 4, stride: int = 2, padding: int = 1, extra: int = 0) -> nn.Module:
    return nn.ConvTranspose2d(before, after, kernel, stride, padding, extra, bias=False)


def act(*layers: nn.Module, width: int) -> list[nn.Module]:
    return [*layers, nn.BatchNorm2d(width), nn.ReLU()]


def classic(resolution: int) -> nn.Module:
    """4 px, then doubled, as the paper has it."""
    widths = [16, 12, 8, 8, 6, 6][: resolution.bit_length() - 3]
    steps = act(up(Z, 16, 4, 1, 0), width=16)
    for before, after in itertools.pairwise(widths):
        steps += act(up(before, after), width=after)
    return nn.Sequential(*steps, up(widths[-1], 3), nn.Tanh())


def from_linear(size: int, *steps: nn.Module, norm: nn.Module | None = None) -> nn.Module:
    between = [nn.Unflatten(1, (16, size, size))]
    return nn.Sequential(nn.Linear(Z, 16 * size * size), *([norm] if norm else []), nn.ReLU(), *between, *steps)


STACKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], int]] = {
    "classic 32": (lambda: classic(32), {}, 32),
    "classic 64": (lambda: classic(64), {}, 64),
    "classic 128": (lambda: classic(128), {}, 128),
    "28 from kernel 7": (
        lambda: nn.Sequential(*act(up(Z, 16, 7, 1, 0), width=16), *act(up(16, 8), width=8), up(8, 1), nn.Tanh()),
        {}, 28,
    ),
    "28 by a kernel of 3": (
        lambda: nn.Sequential(
            *act(up(Z, 16, 4, 1, 0), width=16), *act(up(16, 12, 3, 2, 1), width=12), *act(up(12, 8), width=8), up(8, 1),
            nn.Tanh(),
        ), {}, 28,
    ),
    "28 without padding": (
        lambda: nn.Sequential(
            *act(up(Z, 16, 3, 2, 0), width=16), *act(up(16, 12, 4, 1, 0), width=12), *act(up(12, 8, 3, 2, 0), width=8),
            up(8, 1, 4, 2, 0), nn.Tanh(),
        ), {}, 28,
    ),
    "28 from linear, kernels of 5": (
        lambda: from_linear(
            7, *act(up(16, 12, 5, 1, 2), width=12), *act(up(12, 8, 5, 2, 2, 1), width=8), up(8, 1, 5, 2, 2, 1),
            nn.Tanh(), norm=nn.BatchNorm1d(784),
        ), {}, 28,
    ),
    "28 with a sigmoid": (
        lambda: from_linear(7, up(16, 8), nn.ReLU(), up(8, 1), nn.Sigmoid()), {"output": "sigmoid"}, 28,
    ),
    "32 with a convolution inside": (
        lambda: from_linear(
            4, *act(up(16, 8), width=8), *act(nn.Conv2d(8, 8, 3, padding=1), width=8), *act(up(8, 6), width=6),
            up(6, 3), nn.Tanh(),
        ), {}, 32,
    ),
    "32 with kernels of 3": (
        lambda: from_linear(4, up(16, 8, 3, 2, 1, 1), nn.ReLU(), up(8, 8, 3, 2, 1, 1), nn.ReLU(), up(8, 3, 3, 2, 1, 1),
                            nn.Tanh()), {}, 32,
    ),
    "28 with a last convolution of 7": (
        lambda: from_linear(7, *act(up(16, 8), width=8), *act(up(8, 8), width=8), nn.Conv2d(8, 1, 7, padding=3),
                            nn.Tanh()), {}, 28,
    ),
    "32 by upsampling, norm first": (
        lambda: nn.Sequential(
            nn.Linear(Z, 16 * 64), nn.Unflatten(1, (16, 8, 8)), nn.BatchNorm2d(16, 0.8), nn.Upsample(scale_factor=2),
            nn.Conv2d(16, 12, 3, padding=1), nn.BatchNorm2d(12, 0.8), nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2),
            nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8, 0.8), nn.LeakyReLU(0.2),
            nn.Conv2d(8, 3, 3, padding=1), nn.Tanh(),
        ), {"activation": "leaky_relu", "bn_eps": "0.8"}, 32,
    ),
    "28 of linear layers": (
        lambda: nn.Sequential(nn.Linear(Z, 32), nn.ReLU(), nn.Linear(32, 784), nn.Tanh()), {}, 28,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_is_read_from_its_weights(name: str, tmp_path: Path) -> None:
    make, options, resolution = STACKS[name]
    net = randomised(make())
    g = assert_reads(net, net.state_dict(), tmp_path / "net.pth", **options)
    assert g.resolution == resolution
    again = opened(g.save(tmp_path / "ours"))
    codes = g.sample(2, seed=1)
    assert torch.equal(again(Codes(again.spaces["z"], codes.latent)), g(codes))


@pytest.mark.parametrize("prefix", ["main.", "module.", "module.gen.", "network.0."])
@pytest.mark.parametrize("entry", [None, "netG_state_dict", "g_ema"])
def test_prefixes_and_entries_do_not_matter(prefix: str, entry: str | None, tmp_path: Path) -> None:
    net = randomised(classic(32))
    tensors = {prefix + key: value for key, value in net.state_dict().items()}
    content = tensors if entry is None else {"epoch": 3, "netD": {"0.weight": torch.ones(4, 3, 4, 4)}, entry: tensors}
    assert_reads(net, content, tmp_path / "net.pth")


def test_norms_may_be_listed_after_all_convolutions(tmp_path: Path) -> None:
    net = randomised(classic(64))
    tensors = net.state_dict()
    is_norm = {
        key: "running_mean" in "".join(k for k in tensors if k.startswith(key.split(".")[0] + ".")) for key in tensors
    }
    names = {key: ("bn" if is_norm[key] else "conv") + key for key in tensors}  # attributes, not a Sequential
    listed = {names[key]: tensors[key] for wanted in (False, True) for key in tensors if is_norm[key] is wanted}
    assert_reads(net, listed, tmp_path / "net.pth")


def test_spectral_norm_is_divided_out(tmp_path: Path) -> None:
    net = randomised(classic(32))
    for module in list(net.modules()):
        if isinstance(module, nn.ConvTranspose2d):
            nn.utils.spectral_norm(module)
    net.train()
    for _ in range(3):
        net(latents(net)[1])  # moves u and v
    net.eval()
    assert_reads(net, net.state_dict(), tmp_path / "net.pth")


def test_geometry_that_no_rule_finds_is_told_by_options(tmp_path: Path) -> None:
    net = randomised(
        nn.Sequential(
            *act(up(Z, 16, 4, 1, 0), width=16), *act(up(16, 8, 4, 2, 1), width=8), up(8, 1, 4, 2, 3), nn.Tanh()
        )
    )  # 4, 8, 12 pixels
    told = {"strides": "1,2,2", "paddings": "0,1,3"}
    assert_reads(net, net.state_dict(), tmp_path / "a.pth", **told)
    assert (
        assert_reads(net, net.state_dict(), tmp_path / "b.pth", strides=[1, 2, 2], paddings=(0, 1, 3)).resolution == 12
    )
    with pytest.raises(UserError, match="strides has 2 numbers; give one for each of the 3 convolutions"):
        opened(tmp_path / "a.pth", strides="1,2")
    with pytest.raises(UserError, match="are not whole numbers"):
        opened(tmp_path / "a.pth", strides="1,2,two")
    odd = nn.Sequential(*act(up(Z, 16, 5, 1, 0), width=16), *act(up(16, 8), width=8), up(8, 3), nn.Tanh())  # 20 px
    torch.save(odd.state_dict(), tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"kernels \[5, 4, 4\] lead to an image in several ways, such as strides="):
        opened(tmp_path / "odd.pth")
    assert opened(tmp_path / "odd.pth", resolution="20").resolution == 20


def test_activations_may_be_told_one_by_one(tmp_path: Path) -> None:
    net = randomised(
        nn.Sequential(
            up(Z, 8, 4, 1, 0), nn.ELU(), up(8, 8), nn.LeakyReLU(0.2), up(8, 8), nn.Tanh(), up(8, 3), nn.Tanh()
        )
    )
    tensors = net.state_dict()
    g = assert_reads(net, tensors, tmp_path / "net.pth", activation="elu,leaky_relu,tanh")
    assert [step["activation"] for step in g.config["steps"]] == ["elu", "leaky_relu", "tanh", "none"]
    for options, message in (
        ({"activation": "mish"}, "unknown activation 'mish'"),
        ({"activation": "relu,relu"}, "activation has 2 names; give one, or one for each of the 3 hidden layers"),
        ({"output": "softmax"}, "unknown output 'softmax'"),
        ({"law": "cauchy"}, "unknown law 'cauchy'"),
        ({"active": "relu"}, "unknown option of a DCGAN file 'active'. Did you mean 'activation'"),
    ):
        with pytest.raises(UserError) as raised:
            opened(tmp_path / "net.pth", **options)
        assert message in str(raised.value)


def test_what_is_no_generator_is_refused_with_a_reason(tmp_path: Path) -> None:
    discriminator = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4, 1, 0))
    torch.save(discriminator.state_dict(), tmp_path / "netD.pth")
    with pytest.raises(UserError, match="A discriminator, an encoder or a network with labels or branches"):
        opened(tmp_path / "netD.pth")
    lstm = nn.LSTM(4, 4)
    torch.save(lstm.state_dict(), tmp_path / "lstm.pth")
    with pytest.raises(UserError, match="holds no generator that is known here"):
        opened(tmp_path / "lstm.pth")


def test_a_uniform_law_has_its_own_moments(tmp_path: Path) -> None:
    net = randomised(classic(32))
    g = assert_reads(net, net.state_dict(), tmp_path / "net.pth", law="uniform")
    z = g.sample(3000, seed=0).latent
    assert 0.99 < float(z.abs().max()) <= 1.0
    assert torch.allclose(z.var(dim=0)[0], g.spaces["z"].covariance.diagonal(), atol=0.03)
    assert torch.equal(g.sample(1, seed=0, start=2000).latent[0], z[2000])


@pytest.mark.parametrize("name", ["classic 32", "28 from linear, kernels of 5"])
def test_the_style_matrix_is_what_z_is_multiplied_with(name: str, tmp_path: Path) -> None:
    net = randomised(STACKS[name][0]())
    torch.save(net.state_dict(), tmp_path / "net.pth")
    g = opened(tmp_path / "net.pth")
    (matrix,) = g.style_matrices().values()
    stage = g.network.stages[0].layer
    a, b = torch.randn(2, Z, generator=torch.Generator().manual_seed(1))
    made = [stage(z[None] if isinstance(stage, nn.Linear) else z[None, :, None, None]).flatten() for z in (a, b)]
    assert torch.allclose(matrix.weight @ (a - b), made[0] - made[1], atol=1e-5)


def test_the_trained_digits_are_dark_with_bright_strokes(reference: Path) -> None:
    g = opened(reference / "checkpoints" / "mnist_dcgan.pth")
    assert (g.resolution, g.channels, g.spaces["z"].dim) == (28, 1, 64)
    images = g.render(g.sample(64, seed=0))
    border = torch.cat([images[..., :2].flatten(), images[..., -2:].flatten(), images[..., :2, :].flatten()])
    middle = images[..., 6:22, 6:22]
    assert (border < -0.9).float().mean() > 0.95  # another geometry or activation leaves texture there
    assert 0.15 < (middle > 0.5).float().mean() < 0.45
    assert (middle.abs() > 0.9).float().mean() > 0.65
