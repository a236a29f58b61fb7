"""What every generator that was read from a file must do, checked at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eigenlens import load_generator
from eigenlens.codes import Codes
from eigenlens.generator import Generator


def check_loaded(g: Generator, folder: Path) -> None:
    """Check shapes, determinism, batch-size independence, partial synthesis, and our own files in an empty folder."""
    label = "random" if g.label_names else None
    codes = g.sample(2, seed=2, label=label)
    with torch.inference_mode():
        images = g(codes)
        assert images.shape == (2, g.channels, g.resolution, g.resolution)
        assert torch.isfinite(images).all()
        assert images.std(0).mean() > 1e-3
        assert torch.equal(g(codes), images)
        assert spread_error(g(codes[1]), images[1:2]) <= 1e-4
        for layer in (*g.layers[:-2:4], *g.layers[-2:]):  # each is a whole run; the contracts try every layer
            features = g.features(codes, layer.name)
            assert features.shape == (2, layer.channels, layer.resolution, layer.resolution), layer.name
            assert torch.equal(g.finish(codes, g.start(codes, layer.name)), images), layer.name
        g.save(folder / "saved")
        again = load_generator(folder / "saved", device="cpu")
        twin = Codes(again.spaces[codes.space.name], codes.latent, codes.labels, codes.noise_seeds)
        assert torch.equal(again(twin), images)
        assert again.config == g.config
        assert again.weight_hash == g.weight_hash


def check_styles(g: Generator) -> None:
    """Check that w, w+ and s give one image, and that style matrices move styles as they say."""
    codes = g.sample(2, seed=3, space="w", label="random" if g.label_names else None)
    with torch.inference_mode():
        images = g(codes)
        for space in ("w+", "s"):
            assert spread_error(g(g.lift(codes, space)), images) <= 1e-4, space
        styles = g.lift(codes, "s").latent[:, 0]
        step = torch.randn(g.spaces["w"].dim, generator=torch.Generator().manual_seed(0))
        moved = g.lift(codes.with_latent(codes.latent + step), "s").latent[:, 0]
        matrices = g.style_matrices()
        for part in g.spaces["s"].parts:
            rows = slice(part.start, part.stop)
            told = matrices[part.layers[0]].weight @ step
            assert spread_error((moved - styles)[:1, rows], told[None]) <= 1e-4, part.name


def check_noise(g: Generator) -> None:
    """Check that noise is stored, drawn by its seed, or off."""
    with torch.inference_mode():
        stored = g(g.sample(2, seed=1))
        drawn = g(g.sample(2, seed=1, noise="random"))
        off = g(g.sample(2, seed=1, noise="none"))
        assert not torch.equal(stored, drawn)
        assert not torch.equal(stored, off)
        assert not torch.equal(drawn, off)
        one = g(g.sample(1, seed=1, start=1, noise="random"))
        assert spread_error(one, drawn[1:]) <= 1e-4
        some = g.sample(2, seed=1, noise="random")
        mixed = Codes(some.space, some.latent, None, (some.noise_seeds[0], -1))  # type: ignore[index]
        assert spread_error(g(mixed), torch.stack([drawn[0], off[1]])) <= 1e-4


def spread_error(ours: Tensor, theirs: Tensor | np.ndarray) -> float:
    """Return the largest absolute difference over the standard deviation of the reference."""
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.std())
