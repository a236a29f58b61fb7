"""GANSpace against planted principal components, an exact SVD, and sampling."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from eigenlens import runtime
from eigenlens.codes import Space
from eigenlens.directions import Directions
from eigenlens.errors import UserError
from eigenlens.generator import Generator
from eigenlens.generators.eigengan import EigenGAN, EigenGANConfig, EigenGANNetwork
from eigenlens.methods import ganspace
from eigenlens.methods.ganspace import GANSpace, fast_ica
from eigenlens.methods.linalg import (
    Moments,
    eigen_descending,
    leading_of_several,
    matched_cosines,
    nystrom,
    orthonormal,
    start_block,
)
from toys import MappedToy, Toy, linear_toy, orthonormal_rows, planted


def cosines(directions: Directions, truth: torch.Tensor) -> torch.Tensor:
    found = directions.vectors.flatten(1).double()
    truth = torch.nn.functional.normalize(truth.double(), dim=1)
    return (found * truth[: len(found)]).sum(1).abs() / found.norm(dim=1)


def mapped_toy(seed: int = 1) -> tuple[MappedToy, torch.Tensor, torch.Tensor]:
    """Return a toy whose w has known principal components and their standard deviations."""
    stdev = torch.tensor([4.0, 3.0, 2.0, 1.5, 1.0, 0.5]).double()
    axes = orthonormal_rows(6, 12, seed)
    return MappedToy(axes.T * stdev), axes, stdev


# --- w ----------------------------------------------------------------------------------------------------------------


def test_components_of_w_are_those_that_were_planted() -> None:
    toy, axes, stdev = mapped_toy()
    found = GANSpace(n_directions=6, n_samples=60_000).fit(toy, seed=2)
    assert found.space == "w"
    assert cosines(found, axes).min() > 0.999
    assert torch.allclose(found.sigma.double(), stdev, rtol=0.02)
    assert torch.allclose(found.importance.double(), stdev.square() / stdev.square().sum(), rtol=0.03)
    assert found.split_half.min() > 0.99
    flat = found.vectors.flatten(1)
    assert (flat.gather(1, flat.abs().argmax(1, keepdim=True)) > 0).all()


def test_components_of_w_are_exact_for_their_samples() -> None:
    toy, _, _ = mapped_toy()
    n = 20_001  # no multiple of any batch
    found = GANSpace(n_directions=6, n_samples=n).fit(toy, seed=3)
    w = toy.sample(n, seed=3, space="w").latent[:, 0].double()
    _, singular, right = torch.linalg.svd(w - w.mean(0), full_matrices=False)
    angles = torch.rad2deg(torch.arccos(cosines(found, right).clamp(max=1)))
    assert angles.max() <= 0.02  # float32 vectors; zero rows, or a mean left in, would turn them by degrees
    assert torch.allclose(found.sigma.double(), singular[:6] / (n - 1) ** 0.5, rtol=1e-5)


def test_samples_do_not_depend_on_how_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    toy, _, _ = mapped_toy()
    whole = GANSpace(n_directions=4, n_samples=5000).fit(toy)
    monkeypatch.setattr(ganspace, "CHUNK_ROWS", 700)
    cut = GANSpace(n_directions=4, n_samples=5000).fit(toy)
    assert (whole.vectors - cut.vectors).abs().max() < 1e-4
    assert torch.allclose(whole.sigma, cut.sigma, rtol=1e-5)


def test_the_layer_range_goes_into_the_directions() -> None:
    toy, _, _ = mapped_toy()
    found = GANSpace(n_directions=2, n_samples=500, layers="1-2").fit(toy)
    assert found.layers == ("1-2", "1-2")
    codes = found.host(toy, toy.sample(1, space="w"))
    moved = found.move(codes, 0, by=1.0).latent - codes.latent
    assert moved[0, 0].abs().max() == 0
    assert moved[0, 1].abs().max() > 0
    with pytest.raises(UserError, match="not in range"):
        GANSpace(n_samples=500, layers="1-7").fit(toy)


def test_few_samples_agree_less_than_many() -> None:
    axes = orthonormal_rows(40, 40, seed=4)
    toy = MappedToy(axes.T * torch.linspace(2.0, 1.0, 40).double())
    few = GANSpace(n_directions=10, n_samples=400).fit(toy).split_half.mean()
    many = GANSpace(n_directions=10, n_samples=30_000).fit(toy).split_half.mean()
    assert few < 0.7
    assert many > few + 0.15


def test_moments_keep_their_digits_far_from_zero() -> None:
    chance = np.random.default_rng(0)
    rows = torch.from_numpy(chance.standard_normal((4000, 5)).astype(np.float32)) * 0.01 + 100
    moments = Moments(5)
    for start, stop in runtime.batches(4000, 900):
        moments.add(rows[start:stop])
    exact = torch.from_numpy(np.cov(rows.double().numpy().T))
    assert (moments.covariance() - exact).abs().max() < 1e-6 * exact.abs().max()
    assert (moments.mean - rows.double().mean(0)).abs().max() < 1e-6


# --- features ---------------------------------------------------------------------------------------------------------


def test_a_linear_layer_needs_no_samples_and_agrees_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, right = planted(torch.tensor([5.0, 3.0, 2.0, 1.0]), 48, 12, seed=1)
    toy = linear_toy(matrix, (3, 4, 4))
    closed = GANSpace(at="first").fit(toy)
    assert len(closed) == 4
    assert cosines(closed, right).min() > 1 - 1e-6
    assert torch.allclose(closed.fields["component_stdev"], torch.tensor([5.0, 3.0, 2.0, 1.0]), rtol=1e-5)
    assert torch.isnan(closed.split_half).all()

    monkeypatch.setattr(ganspace._Source, "linear_map", lambda self: None)
    sampled = GANSpace(n_directions=4, at="first", n_samples=20_000).fit(toy)
    assert torch.allclose(sampled.fields["component_stdev"], closed.fields["component_stdev"], rtol=0.03)
    assert cosines(sampled, closed.vectors.flatten(1)).min() > 0.995
    assert sampled.split_half.min() > 0.98


def test_a_linear_layer_takes_the_covariance_of_the_latent() -> None:
    covariance = torch.diag(torch.tensor([9.0, 1.0, 0.25]))
    space = Space("z", 1, 3, moments=lambda: (torch.zeros(3), covariance))
    toy = Toy(lambda latent: latent[:, 0, :, None, None].expand(-1, -1, 2, 2), space)
    found = GANSpace(3).fit(toy)
    assert torch.allclose(found.vectors[:, 0], torch.eye(3), atol=1e-6)
    assert torch.allclose(found.fields["component_stdev"], torch.tensor([6.0, 2.0, 1.0]))  # four pixels each
    assert torch.allclose(found.sigma, torch.tensor([3.0, 1.0, 0.5]))


def test_the_first_layer_of_an_eigengan_is_found_to_be_linear() -> None:
    g = small_eigengan()
    found = GANSpace(5, at="base").fit(g)
    singular, right = torch.linalg.svd(g.network.base.weight.double(), full_matrices=False)[1:]
    assert cosines(found, torch.nn.functional.pad(right, (0, 6))).min() > 1 - 1e-5
    assert torch.allclose(found.fields["component_stdev"].double(), singular[:5], rtol=1e-4)


def small_eigengan() -> EigenGAN:
    torch.manual_seed(0)
    config = EigenGANConfig(16, noise_dim=8, n_basis=3, base_channels=4, max_channels=8, widths="relative")
    return EigenGAN(EigenGANNetwork(config), name="tiny")


def regression(generator: Generator, at: str, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return component stdevs and the regression of z on the components, by SVD and least squares in float64."""
    codes = generator.sample(n, seed=0)
    with torch.inference_mode():
        rows = (generator(codes) if at == "image" else generator.features(codes, at)).flatten(1).double()
    centred = rows - rows.mean(0)
    _, singular, right = torch.linalg.svd(centred, full_matrices=False)
    stdev = singular[:k] / (n - 1) ** 0.5
    scores = centred @ right[:k].T / stdev
    z = codes.latent.flatten(1).double()
    return stdev, torch.linalg.lstsq(scores, z - z.mean(0)).solution


def test_features_of_a_bent_layer_are_exact_and_regressed() -> None:
    g = small_eigengan()
    found = GANSpace(4, at="layer2", n_samples=1200).fit(g)
    stdev, truth = regression(g, "layer2", 1200, 4)
    assert torch.allclose(found.fields["component_stdev"].double(), stdev, rtol=1e-4)
    assert cosines(found, truth).min() > 1 - 1e-5
    assert torch.allclose(found.sigma, torch.ones(4))
    image = GANSpace(4, at="image", n_samples=900).fit(g)
    assert cosines(image, regression(g, "image", 900, 4)[1]).min() > 1 - 1e-5


@pytest.mark.parametrize("store", ["disk", "rerun"])
def test_long_features_are_iterated_to_the_same_result(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    g = small_eigengan()
    monkeypatch.setattr(ganspace, "CHUNK", 1024 * 300)  # both cut the samples into the same halves
    exact = GANSpace(5, at="layer2", n_samples=1500).fit(g)
    monkeypatch.setattr(ganspace, "EXACT", 100)
    block = GANSpace(5, at="layer2", n_samples=1500, store=store).fit(g)
    assert torch.allclose(block.fields["component_stdev"], exact.fields["component_stdev"], rtol=2e-3)
    assert cosines(block, exact.vectors.flatten(1)).min() > 0.9999
    assert torch.allclose(block.importance, exact.importance, rtol=2e-3)
    assert torch.allclose(block.split_half, exact.split_half, atol=0.03)


def test_long_features_of_few_dimensions_have_no_further_components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ganspace, "EXACT", 100)
    monkeypatch.setattr(ganspace._Source, "linear_map", lambda self: None)
    matrix, right = planted(torch.tensor([5.0, 3.0, 2.0]), 300, 12, seed=1)
    found = GANSpace(8, at="first", n_samples=900).fit(linear_toy(matrix, (3, 10, 10)))
    assert cosines(found[:3], right).min() > 0.99
    assert found.vectors.isfinite().all()
    assert found.importance[:3].sum() > 0.999


def test_a_fit_that_is_broken_off_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ganspace, "EXACT", 100)
    monkeypatch.setattr(ganspace, "_times_covariance", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        GANSpace(5, at="layer2", n_samples=300).fit(small_eigengan(), run=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exact", [True, False], ids=["moments", "rows"])
def test_a_stopped_fit_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exact: bool) -> None:
    monkeypatch.setattr(ganspace, "CHUNK", 1024 * 100)
    monkeypatch.setattr(ganspace, "EXACT", 4096 if exact else 100)
    g, method, read = small_eigengan(), GANSpace(5, at="layer2", n_samples=600), []
    whole = method.fit(g)

    def ctrl_c(what: str, done: int, total: int | None) -> None:
        read.append(done)
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with runtime.watching(ctrl_c), pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        method.fit(g, run=tmp_path)
    kept = {place.name for place in tmp_path.iterdir()}
    assert kept == ({"ganspace.safetensors"} if exact else {"ganspace.safetensors", "ganspace.rows"})
    with pytest.raises(UserError, match="belongs to another fit"):
        GANSpace(4, at="layer2", n_samples=600).fit(g, run=tmp_path)
    assert {place.name for place in tmp_path.iterdir()} == kept
    first, read[:] = max(read) + 1, []  # the chunk in hand when it was asked is finished
    with runtime.watching(lambda what, done, total: read.append(total)):
        resumed = method.fit(g, run=tmp_path)
    assert read[0] == 6 - first  # chunks that were read before are not made again
    assert torch.equal(resumed.vectors, whole.vectors)
    assert torch.equal(resumed.split_half, whole.split_half)
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ganspace, "EXACT", 100)
    monkeypatch.setattr(ganspace.shutil, "disk_usage", lambda _: ganspace.shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(UserError, match="store='rerun'"):
        GANSpace(5, at="layer2", n_samples=300).fit(small_eigengan())


def test_an_embedding_is_decomposed_instead() -> None:
    matrix, right = planted(torch.tensor([5.0, 3.0, 2.0]), 48, 12, seed=1)

    def embed(images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1) - 0.3) @ matrix.float()  # AᵀA z: the same vectors, singular values squared

    found = GANSpace(3, n_samples=20_000, embed=embed).fit(linear_toy(matrix, (3, 4, 4)))
    assert cosines(found, right).min() > 0.999
    assert torch.allclose(found.fields["component_stdev"], torch.tensor([25.0, 9.0, 4.0]), rtol=0.03)
    assert "embed" in found.provenance.arguments["embed"]


def test_ica_finds_what_is_independent(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mixing = torch.nn.functional.normalize(torch.randn(6, 4).double(), dim=0) * torch.tensor([4.0, 3.0, 2.0, 1.5])
    # a cube of a normal number has long tails; its variance is 15
    toy = MappedToy(mixing, sources=lambda z: z**3 / 15**0.5)
    turned = GANSpace(4, n_samples=30_000, rotation="ica").fit(toy)
    assert cosines(turned, mixing.T).min() > 0.99
    assert torch.allclose(turned.fields["component_stdev"], mixing.norm(dim=0).float(), rtol=0.1)
    codes = toy.sample(20_000, seed=1, space="w")
    assert torch.stack([turned.coordinates(codes, k).std() for k in range(4)]).tolist() == pytest.approx(
        [1] * 4, rel=0.1
    )
    # along a direction the others, which are not orthogonal to it, vary as well
    assert (turned.sigma > 1.05 * turned.fields["component_stdev"]).any()
    assert turned.fields["ica_change"].max() < 1e-4
    plain = GANSpace(4, n_samples=30_000).fit(toy)
    assert cosines(plain, mixing.T).min() < 0.95  # the mixing is not orthogonal, and principal components are
    turned.save(tmp_path / "d.safetensors")


def test_fast_ica_says_where_it_does_not_settle() -> None:
    gaussian = torch.from_numpy(np.random.default_rng(0).standard_normal((2000, 6)).astype(np.float32))
    assert fast_ica(gaussian, most=5)[1].max() > 1e-4


def test_classes_are_pooled_or_one() -> None:
    class Labelled(Toy):
        def _layer(self, index, state, inputs):  # type: ignore[no-untyped-def]
            return super()._layer(index, state, inputs)

        def _inputs(self, codes):  # type: ignore[no-untyped-def]
            return codes.latent * (1 + 2 * codes.labels[:, 1, None, None])

    space = Space("z", 1, 3)
    toy = Labelled(
        lambda latent: latent[:, 0, :, None, None].expand(-1, -1, 2, 2), space, label_names=("plain", "wide")
    )
    pooled, one = (GANSpace(2, at="image", n_samples=3000, label=label).fit(toy) for label in (None, "plain"))
    assert pooled.provenance.arguments["label"] is None
    assert one.provenance.arguments["label"] == "plain"
    assert pooled.fields["component_stdev"][0] > 1.5 * one.fields["component_stdev"][0]


def test_mistakes_are_told() -> None:
    toy, _, _ = mapped_toy()
    with pytest.raises(UserError, match="leave one of them out"):
        GANSpace(at="first", embed=lambda images: images).fit(toy)
    with pytest.raises(UserError, match="unknown layer"):
        GANSpace(at="layer9").fit(toy)
    with pytest.raises(UserError, match="'pca' is not known"):
        GANSpace(rotation="pca").fit(toy)  # type: ignore[arg-type]


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_large_matrices_are_iterated_to_the_same_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = orthonormal_rows(80, 80, seed=1)
    matrix = axes.T * (0.8 ** torch.arange(80.0)).double() @ axes
    monkeypatch.setattr("eigenlens.methods.linalg.DENSE", 10)
    values, rows = eigen_descending(matrix, 6)
    assert torch.allclose(values, (0.8 ** torch.arange(6.0)).double(), rtol=1e-8)
    assert (rows * axes[:6]).sum(1).abs().min() > 1 - 1e-8


def test_leading_eigenvectors_of_several_are_those_of_each() -> None:
    axes = orthonormal_rows(200, 200, seed=3)
    spectra = [(0.9 ** torch.arange(200.0)).double(), (0.85 ** torch.arange(200.0)).double()]
    chance = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 200, generator=chance, dtype=torch.float64)
    matrices = torch.stack([axes.T * each @ axes + 0.002 * (noise + noise.T) for each in spectra])
    guess = eigen_descending(matrices.sum(0), 60)[1]
    for k in (6, 12, 60):  # the last is decomposed whole
        values, rows = leading_of_several(matrices, guess[:k])
        for i, matrix in enumerate(matrices):
            exact, frame = eigen_descending(matrix, k)
            assert (values[i][:4] - exact[:4]).abs().max() < 1e-4
            assert (rows[i][:4] * frame[:4]).sum(1).abs().min() > 1 - 1e-4


def test_nystrom_beats_its_block() -> None:
    axes = orthonormal_rows(60, 60, seed=2)
    matrix = axes.T * (0.7 ** torch.arange(60.0)).double() @ axes
    block = orthonormal(matrix @ start_block(60, 12, seed=0))
    _, rows = nystrom(block, matrix @ block)
    ritz = torch.linalg.eigh(block.T @ matrix @ block)[1].flip(1).T @ block.T
    lost = [1 - (each[:6] * axes[:6]).sum(1).abs().min() for each in (rows, ritz)]
    assert lost[0] < 0.5 * lost[1]
    full = nystrom(torch.eye(60).double(), matrix)[1]
    assert (full[:6] * axes[:6]).sum(1).abs().min() > 1 - 1e-8


def test_matched_cosines_forgive_a_change_of_order() -> None:
    axes = torch.eye(4)
    swapped = axes[[1, 0, 2, 3]]
    assert torch.equal(matched_cosines(axes, axes, -swapped), torch.ones(4))
    assert torch.equal(matched_cosines(axes, axes, axes[:0]), torch.zeros(4))
    turned = axes.clone()
    turned[3] = torch.tensor([0.0, 0.0, 0.6, 0.8])
    assert torch.allclose(matched_cosines(axes, axes, turned), torch.tensor([1.0, 1.0, 1.0, 0.8]))
