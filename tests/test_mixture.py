"""What lies between two codes, and codes whose layers come from two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from eigenlens import images as pictures
from eigenlens.cli import main
from eigenlens.codes import save_codes
from eigenlens.errors import UserError
from eigenlens.generator import Generator
from eigenlens.mixture import interpolate, mix
from toy_spaces import SlotToy


@pytest.fixture(scope="module")
def toy() -> SlotToy:
    return SlotToy(dim=64)


def test_ways_keep_their_ends_and_the_sphere_its_radius(toy: SlotToy) -> None:
    a, b = toy.sample(3, seed=0, space="z"), toy.sample(3, seed=1, space="z")
    shares = [0.0, 0.25, 0.5, 1.0]
    for way in ("auto", "linear", "spherical"):
        walked = interpolate(a, b, shares, way=way).latent.unflatten(0, (3, 4))
        assert torch.allclose(walked[:, 0], a.latent, atol=1e-5)
        assert torch.allclose(walked[:, -1], b.latent, atol=1e-5)
    straight = interpolate(a, b, shares, way="linear").latent.unflatten(0, (3, 4))
    assert torch.allclose(straight[:, 2], (a.latent + b.latent) / 2, atol=1e-6)
    round_ = interpolate(a, b, shares).latent.unflatten(0, (3, 4))  # z is normal: auto is spherical
    lengths = round_.norm(dim=-1)
    assert torch.allclose(lengths[:, 2], (lengths[:, 0] + lengths[:, 3]) / 2, rtol=1e-5)
    assert (straight[:, 2].norm(dim=-1) < 0.9 * lengths[:, 2]).all()
    angle = lambda x, y: torch.cosine_similarity(x, y, dim=-1).acos()  # noqa: E731
    assert torch.allclose(angle(round_[:, 0], round_[:, 1]), angle(round_[:, 0], round_[:, 3]) / 4, atol=1e-4)
    w = [toy.sample(1, seed=seed, space="w") for seed in (0, 1)]
    assert torch.allclose(interpolate(*w, [0.5]).latent, (w[0].latent + w[1].latent) / 2, atol=1e-6)
    same = interpolate(a, a, [0.3])
    assert torch.allclose(same.latent, a.latent, atol=1e-5)
    opposite = interpolate(a, a.with_latent(-a.latent), [0.5])
    assert torch.isfinite(opposite.latent).all()


def test_what_has_no_way_between(toy: SlotToy) -> None:
    z, w = toy.sample(1, space="z"), toy.sample(1, space="w")
    with pytest.raises(UserError, match="1 codes of 'z' and 1 of 'w' came"):
        interpolate(z, w, [0.5])
    with pytest.raises(UserError, match="unknown way 'sideways'"):
        interpolate(z, z, [0.5], way="sideways")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="mixed row by row"):
        mix(z, toy.sample(2, space="z"), "0")


def test_classes_mix(tiny: Callable[[str], Generator]) -> None:
    g = tiny("biggan")
    a, b = g.sample(1, seed=0, label=0), g.sample(1, seed=0, label=2)
    halfway = interpolate(a, b, [0.0, 0.5, 1.0])
    assert halfway.labels is not None
    assert halfway.labels[1].tolist() == [0.5, 0.0, 0.5]
    with torch.inference_mode():
        first, middle, last = g(halfway)
        assert torch.allclose(first, g(a)[0], atol=1e-5)
        assert torch.allclose(last, g(b)[0], atol=1e-5)
        assert (middle - first).abs().max() > 1e-4
    with pytest.raises(UserError, match="with labels and codes without"):
        interpolate(a, a.__class__(a.space, a.latent), [0.5])


def test_mixed_layers_come_from_the_other(toy: SlotToy, tiny: Callable[[str], Generator]) -> None:
    a, b = (toy.sample(2, seed=seed, space="w+") for seed in (0, 1))
    mixed = mix(a, b, "1-2").latent
    assert torch.equal(mixed[:, [0, 3]], a.latent.expand(-1, 4, -1)[:, [0, 3]])
    assert torch.equal(mixed[:, [1, 2]], b.latent.expand(-1, 4, -1)[:, [1, 2]])
    g = tiny("eigengan")
    one, other = (g.sample(1, seed=seed) for seed in (0, 1))
    axes = mix(one, other, "layer1")
    part = g.spaces["z"].parts[1]
    inside = slice(part.start, part.stop)
    assert torch.equal(axes.latent[..., inside], other.latent[..., inside])
    assert torch.equal(axes.latent[..., part.stop :], one.latent[..., part.stop :])


@pytest.fixture
def model(eigengan: Generator, tmp_path: Path) -> str:
    return str(eigengan.save(tmp_path / "model"))


def test_interpolate_at_the_shell(model: str, eigengan: Generator, tmp_path: Path, capsys) -> None:
    strip, film = tmp_path / "strip.png", tmp_path / "film.webp"
    assert main(["interpolate", model, "--seeds", "0,3,5", "--steps", "4", "--out", str(strip)]) == 0
    capsys.readouterr()
    assert main(["info", str(strip)]) == 0
    command = capsys.readouterr().out
    assert command.startswith(f"eigenlens interpolate {model} --seeds 0,3,5")
    words = ["--seeds", "0,3", "--steps", "4", "--loop", "--easing", "smooth"]
    assert main(["interpolate", model, *words, "--out", str(film)]) == 0
    with Image.open(film) as picture:
        assert picture.n_frames == 7  # the image between the pairs once
    assert main(["interpolate", model, "--seeds", "0", "--out", str(tmp_path / "a.png")]) == 2
    assert "one image leads nowhere" in capsys.readouterr().err
    codes = save_codes(eigengan.sample(2, seed=8), tmp_path / "codes.safetensors", eigengan)
    assert main(["interpolate", model, "--codes", str(codes), "--seeds", "0-1", "--out", str(tmp_path / "b.png")]) == 0
    assert main(["interpolate", model, "--codes", str(codes), "--seeds", "0-2", "--out", str(tmp_path / "c.png")]) == 2
    assert "it has rows 0-1" in capsys.readouterr().err


def test_classes_at_the_shell(tiny: Callable[[str], Generator], tmp_path: Path, capsys) -> None:
    model = str(tiny("biggan").save(tmp_path / "model"))
    words = ["interpolate", model, "--seeds", "4", "--labels", "0,2", "--steps", "3"]
    assert main([*words, "--out", str(tmp_path / "classes.png")]) == 0
    words = ["mix", model, "--seeds", "0", "--others", "1-2", "--labels", "0", "--other-labels", "2", "--space", "zy"]
    assert main([*words, "--layers", "3", "--out", str(tmp_path / "mix.png")]) == 0
    assert main(["interpolate", model, "--seeds", "0-2", "--labels", "0,1", "--out", str(tmp_path / "a.png")]) == 2
    assert "2 labels came for 3 seeds" in capsys.readouterr().err


def test_mix_at_the_shell(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mix.png"
    words = ["mix", model, "--seeds", "0-1", "--others", "2-4", "--layers", "layer2"]
    assert main([*words, "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.width > picture.height  # four columns, three rows
    assert pictures.read_recipe(out)["command"].startswith(f"eigenlens mix {model} --layers layer2")  # type: ignore[index]
    assert main(["mix", model, "--layers", "9", "--out", str(tmp_path / "a.png")]) == 2
    assert "not in range" in capsys.readouterr().err
