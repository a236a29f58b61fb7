"""A small generator of every family, for the contracts: one line a family."""

from __future__ import annotations

from collections.abc import Callable

from eigenlens.generator import Generator
from eigenlens.generators.eigengan import EigenGAN, EigenGANConfig, EigenGANNetwork


def eigengan() -> Generator:
    """Make an EigenGAN of 16 px with three basis vectors a layer."""
    config = EigenGANConfig(16, noise_dim=8, n_basis=3, base_channels=4, max_channels=8, widths="relative")
    return EigenGAN(EigenGANNetwork(config), name="tiny-eigengan")


TINY: dict[str, Callable[[], Generator]] = {
    "eigengan": eigengan,
}
