"""Encoders: files, resuming, and that they learn."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eigenlens.encoder import Encoder, EncoderConfig, EncoderNetwork, find_encoder, fit_resolution
from eigenlens.errors import UserError
from eigenlens.generator import Generator, load_generator
from eigenlens.generators.eigengan import EigenGAN, EigenGANNetwork
from eigenlens.project import project
from eigenlens.training.encoder import EncoderTraining, train_encoder

TINY = EncoderTraining(kimg=0.16, batch=8, width=8, tick_kimg=0.04)


def silent(line: str) -> None:
    pass


def trained(generator: Generator, out: Path, **changed: float) -> Encoder:
    config = dataclasses.replace(TINY, **changed)  # type: ignore[arg-type]
    return Encoder.load(train_encoder(generator, config, out=out, precision="fp32", log=silent), generator)


def test_learns_codes_of_samples(eigengan: Generator, tmp_path: Path) -> None:
    codes = eigengan.sample(32, seed=9)
    images = eigengan(codes)
    errors = []
    for kimg in (0.008, 6.0):
        encoder = trained(eigengan, tmp_path / f"{kimg}.safetensors", kimg=kimg, batch=32, tick_kimg=2.0)
        errors.append(float((eigengan(encoder(images)) - images).square().mean()))
    assert errors[1] < 0.4 * errors[0]


def test_resumed_run_is_the_uninterrupted_one(eigengan: Generator, tmp_path: Path) -> None:
    whole = trained(eigengan, tmp_path / "whole.safetensors")
    config, out = TINY, tmp_path / "parts.safetensors"

    def stop(line: str) -> None:
        if "distance" in line and "0.1 kimg" in line:
            os.kill(os.getpid(), signal.SIGINT)

    lines: list[str] = []
    train_encoder(eigengan, config, out=out, precision="fp32", log=lambda line: (lines.append(line), stop(line))[0])
    assert "stopped; the same command goes on" in lines[-1]
    assert out.exists()
    lines.clear()
    train_encoder(eigengan, config, out=out, precision="fp32", log=lines.append)
    assert lines[0].startswith("going on at 0.")
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, Encoder.load(out, eigengan).network.state_dict()[key]), key


def test_a_finished_encoder_keeps_its_figures(eigengan: Generator, tmp_path: Path) -> None:
    first, again = (trained(eigengan, tmp_path / "e.safetensors").about for _ in range(2))
    assert first["distance"] > 0
    assert again == first


def test_state_of_other_settings_is_refused(eigengan: Generator, tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    trained(eigengan, out, kimg=0.008)
    with pytest.raises(UserError, match=r"other settings: seed \(was 0, now 3\)"):
        trained(eigengan, out, seed=3)
    out.with_suffix(".state.pt").write_bytes(b"not a state")
    with pytest.raises(UserError, match="cannot be read"):
        trained(eigengan, out)
    out.with_suffix(".state.pt").unlink()
    with pytest.raises(UserError, match="exists already"):
        trained(eigengan, out)


def test_belongs_to_one_generator(eigengan: Generator, tiny: Callable[[str], Generator], tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    trained(eigengan, out, kimg=0.008)
    with pytest.raises(UserError, match=r"reads codes of tiny-eigengan \(weights \w+\), not of tiny-sngan"):
        Encoder.load(out, tiny("sngan"))


@pytest.mark.parametrize("content", [b"", b'\x08\0\0\0\0\0\0\0{"a": 3}', b"x" * 100])
def test_hostile_files(eigengan: Generator, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "e.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no encoder"):
        Encoder.load(path, eigengan)


def test_damaged_file(eigengan: Generator, tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    trained(eigengan, out, kimg=0.008)
    from safetensors import safe_open

    with safe_open(out, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(out)
    tensors.pop("out.bias")
    save_file(tensors, tmp_path / "short.safetensors", metadata=metadata)
    with pytest.raises(UserError, match="no encoder that can be read"):
        Encoder.load(tmp_path / "short.safetensors", eigengan)


def test_half_precision_file_gives_nearly_the_same_codes(eigengan: Generator, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder(EncoderNetwork(EncoderConfig("z", 1, 14, resolution=16, width=8)), eigengan)
    images = eigengan(eigengan.sample(2, seed=0))
    sizes = []
    for half in (True, False):
        path = encoder.save(tmp_path / f"{half}.safetensors", half=half)
        sizes.append(path.stat().st_size)
        assert torch.allclose(Encoder.load(path, eigengan)(images).latent, encoder(images).latent, atol=1e-2)
    assert sizes[0] < 0.55 * sizes[1]


def test_looks_at_its_own_resolution() -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(fit_resolution(images, 16), torch.nn.functional.avg_pool2d(images, 2))
    assert fit_resolution(images[..., :20, :20], 16).shape == (2, 3, 16, 16)
    assert fit_resolution(images, 64).shape == (2, 3, 64, 64)


def test_is_found_beside_a_generator(eigengan: Generator, tmp_path: Path) -> None:
    eigengan.save(tmp_path / "own")
    g = load_generator(tmp_path / "own")
    assert find_encoder(g) is None
    trained(g, tmp_path / "own" / "encoder.safetensors", kimg=0.008)
    assert find_encoder(g) == tmp_path / "own" / "encoder.safetensors"
    images = g(g.sample(2, seed=0)).clamp(-1, 1)
    start = project(g, images, steps=0)
    assert torch.equal(start.codes.latent, Encoder.load(tmp_path / "own" / "encoder.safetensors", g)(images).latent)


@pytest.mark.parametrize("family", ["stylegan2", "biggan", "dcgan", "proggan"])
def test_any_family(tiny: Callable[[str], Generator], family: str, tmp_path: Path) -> None:
    g = tiny(family)
    encoder = trained(g, tmp_path / "e.safetensors", kimg=0.016)
    label = 1 if g.label_names else None
    images = g(g.sample(2, seed=3, label=label)).clamp(-1, 1)
    found = project(g, images, start=encoder, steps=1, label=label)
    assert len(found.codes) == 2


def test_begins_with_the_encoder_of_another_generator(eigengan: Generator, tmp_path: Path) -> None:
    first = train_encoder(eigengan, TINY, out=tmp_path / "first.safetensors", precision="fp32", log=silent)
    network = EigenGANNetwork(eigengan.network.config)
    network.load_state_dict({name: 1.01 * weight for name, weight in eigengan.network.state_dict().items()})
    later = EigenGAN(network, name="later")
    assert later.weight_hash != eigengan.weight_hash
    with pytest.raises(UserError, match="--start"):
        Encoder.load(first, later)

    def begun(out: str, **how: object) -> Encoder:
        config = dataclasses.replace(TINY, kimg=0.008, learning_rate=0.0)
        path = train_encoder(later, config, out=tmp_path / out, precision="fp32", log=silent, **how)
        return Encoder.load(path, later)

    taken, drawn = begun("taken.safetensors", start=first), begun("drawn.safetensors")
    images = later(later.sample(4, seed=1))
    there = Encoder.load(first, eigengan)
    assert torch.equal(taken(images).latent, there(images).latent)
    assert not torch.equal(drawn(images).latent, there(images).latent)
    assert taken.about["start"] == {"from": str(first), "name": eigengan.name, "weights": eigengan.weight_hash}
    with pytest.raises(UserError, match="drawn weights"):
        begun("drawn.safetensors", start=first)
    config = dataclasses.replace(TINY, width=16)
    with pytest.raises(UserError, match="another shape: width"):
        train_encoder(later, config, out=tmp_path / "wide.safetensors", start=first, log=silent)
