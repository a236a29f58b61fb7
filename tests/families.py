"""A small generator of every family, for the contracts: one line a family."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from eigenlens.generator import Generator
from eigenlens.generators.biggan import BigGAN, BigGANConfig, BigGANNetwork
from eigenlens.generators.custom import from_module
from eigenlens.generators.dcgan import DCGAN, DCGANConfig, DCGANNetwork, Step
from eigenlens.generators.eigengan import EigenGAN, EigenGANConfig, EigenGANNetwork
from eigenlens.generators.lucidrains import Lucidrains, LucidrainsConfig, LucidrainsNetwork
from eigenlens.generators.mobilestylegan import MobileStyleGAN, MobileStyleGANConfig, MobileStyleGANNetwork
from eigenlens.generators.proggan import ProgGAN, ProgGANConfig, ProgGANNetwork
from eigenlens.generators.sngan import SNGAN, SNGANConfig, SNGANNetwork
from eigenlens.generators.stylegan1 import StyleGAN1, StyleGAN1Config, StyleGAN1Network
from eigenlens.generators.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Network
from eigenlens.generators.stylegan3 import LayerConfig, StyleGAN3, StyleGAN3Config, StyleGAN3Network


def eigengan() -> Generator:
    """Make an EigenGAN of 16 px with three basis vectors a layer."""
    config = EigenGANConfig(16, noise_dim=8, n_basis=3, base_channels=4, max_channels=8, widths="relative")
    return EigenGAN(EigenGANNetwork(config), name="tiny-eigengan")


def biggan(n_stats: int = 1) -> Generator:
    """Make a BigGAN of 16 px with three classes and z in chunks, whose variances grow with the truncation."""
    config = BigGANConfig(
        is_deep=False, z_dim=12, n_chunks=3, is_fed_everywhere=True, y_dim=5, n_classes=3, base=4, widths=(16, 16, 8),
        hidden=(16, 8), upsample=(True, True), attention=(1,), n_stats=n_stats,
    )  # fmt: skip
    network = randomised(BigGANNetwork(config))
    for name, statistics in network.named_buffers():
        if name.endswith("var"):
            statistics *= torch.arange(1, n_stats + 1)[:, None]
    return BigGAN(network, name="tiny-biggan")


def sngan() -> Generator:
    """Make an SNGAN of 16 px."""
    config = SNGANConfig(z_dim=8, base=4, widths=(8, 8, 4), bypass=(False, True))
    return SNGAN(SNGANNetwork(config), name="tiny-sngan")


def dcgan() -> Generator:
    """Make a DCGAN of 16 px."""
    steps = (
        Step("deconv", 8, 16, kernel=4, norm=16, size=4),
        Step("deconv", 16, 8, kernel=4, stride=2, padding=1, norm=8, size=8),
        Step("deconv", 8, 3, kernel=4, stride=2, padding=1, activation="none", size=16),
    )
    return DCGAN(randomised(DCGANNetwork(DCGANConfig(steps))), name="tiny-dcgan")


def custom() -> Generator:
    """Wrap a small decoder of 16 px."""
    net = nn.Sequential(
        nn.Linear(8, 128), nn.ReLU(), nn.Unflatten(1, (8, 4, 4)), nn.Upsample(scale_factor=4),
        nn.Conv2d(8, 3, 3, padding=1), nn.Tanh(),
    )  # fmt: skip
    return from_module(randomised(net), latent_dim=8, name="tiny-custom")


def stylegan2() -> Generator:
    """Make a StyleGAN2 of 16 px with residual blocks and three labels."""
    config = StyleGAN2Config((8, 8, 4), (6, 5), z_dim=4, n_labels=3, embed_dim=4, architecture="resnet", clamp=20.0)
    return StyleGAN2(with_buffers(randomised(StyleGAN2Network(config))), name="tiny-stylegan2")


def stylegan3() -> Generator:
    """Make a StyleGAN3 of 16 px with three layers."""
    about = {"gain": 1.4, "slope": 0.2, "is_demodulated": True, "clamp": 256.0}
    layers = (
        LayerConfig("L0_20_6", 6, 6, 20, 3, 2, 2, (9, 8, 9, 8), (12,), (12,), **about),
        LayerConfig("L1_16_4", 6, 4, 16, 1, 2, 2, (7, 6, 7, 6), (12,), (12, 12), **about),
        LayerConfig("L2_16_3", 4, 3, 16, 1, 1, 1, (0, 0, 0, 0), (), (), 1.0, 1.0, False, 256.0),
    )
    config = StyleGAN3Config(16, 20, 6, 16.0, 2.0, layers, (6, 5), z_dim=4)
    return StyleGAN3(with_buffers(randomised(StyleGAN3Network(config))), name="tiny-stylegan3")


def lucidrains() -> Generator:
    """Make a network of lucidrains of 16 px, without a constant, with attention and transparent images."""
    config = LucidrainsConfig((8, 8, 4), 5, 2, 8, channels=4, has_const=False, attention=(0, 16, 0))
    return Lucidrains(randomised(LucidrainsNetwork(config)), name="tiny-lucidrains")


def with_buffers(network: nn.Module) -> nn.Module:
    """Draw every buffer too."""
    for buffer in network.buffers():
        nn.init.normal_(buffer, std=0.3)
    return network


def stylegan1() -> Generator:
    """Make a StyleGAN of 16 px whose last level is fused."""
    config = StyleGAN1Config(widths=(8, 8, 6), mapping_widths=(12, 12, 10), z_dim=8, fused_from=16, has_w_avg=False)
    return StyleGAN1(with_noise(randomised(StyleGAN1Network(config))), name="tiny-stylegan1")


def proggan() -> Generator:
    """Make a ProgGAN of 16 px in the midst of growing."""
    config = ProgGANConfig(widths=(8, 8, 6), z_dim=8, alpha=0.75)
    return ProgGAN(randomised(ProgGANNetwork(config)), name="tiny-proggan")


def mobilestylegan() -> Generator:
    """Make a MobileStyleGAN of 32 px."""
    config = MobileStyleGANConfig(widths=(16, 16, 8), mapping_widths=(12, 12, 10), z_dim=8)
    return MobileStyleGAN(with_noise(randomised(MobileStyleGANNetwork(config))), name="tiny-mobilestylegan")


def with_noise(network: nn.Module) -> nn.Module:
    """Draw the stored noise."""
    for name, buffer in network.named_buffers():
        if name.endswith("noise"):
            buffer.normal_(std=0.3)
    return network


def randomised(network: nn.Module) -> nn.Module:
    """Draw every weight, so that no term is zero and images differ."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


TINY: dict[str, Callable[[], Generator]] = {
    "eigengan": eigengan,
    "biggan": biggan,
    "sngan": sngan,
    "custom": custom,
    "dcgan": dcgan,
    "stylegan1": stylegan1,
    "proggan": proggan,
    "mobilestylegan": mobilestylegan,
    "stylegan2": stylegan2,
    "stylegan3": stylegan3,
    "lucidrains": lucidrains,
}
