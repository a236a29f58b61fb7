"""What every entry of every table must do, run on a small generator of each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenlens import Codes, Directions, Unsupported, UserError, load_generator
from eigenlens.generator import GENERATORS, Generator
from eigenlens.generators import ops
from eigenlens.generators.ops import StyleBased
from eigenlens.method import METHODS, Method
from eigenlens.metric import METRICS, Metric, Score
from eigenlens.reader import EXTRACTORS, READERS, Extractor, Reader
from eigenlens.training.judge import JUDGES, Judge
from families import TINY

Tiny = Callable[[str], Generator]
QUICK: dict[str, dict[str, Any]] = {
    "axes": {"n_directions": 3},
    "contrastive": {"n_directions": 3, "n_steps": 3, "batch": 4},
    "ganspace": {"n_directions": 3, "n_samples": 200},
    "jacobian": {"n_directions": 3, "n_samples": 2, "iterations": 1},
    "pairs": {"n_directions": 3, "n_steps": 3, "batch": 4},
    "random": {"n_directions": 3},
    "sefa": {"n_directions": 3},
    "supervised": {"n_samples": 60},
    "voynov": {"n_directions": 3, "n_steps": 3, "batch": 4},
    "warped": {"n_directions": 3, "n_steps": 3, "batch": 4, "n_dipoles": 4},
}
"""Hyper-parameters that make a method quick; its defaults are for real work."""
QUICK_METRICS: dict[str, dict[str, Any]] = {
    "attribute_matrix_pixels_v1": {"n": 8, "n_samples": 32},
    "attribute_matrix_toonfaces_v1": {"n": 8, "n_samples": 32},
    "beta_vae_toonfaces_v1": {"n_samples": 200, "n_train": 100, "n_test": 50},
    "dci_pixels_3k_v1": {"n": 150},
    "dci_toonfaces_3k_v1": {"n": 90},
    "edit_kid_efficientnet_512_v1": {"n": 8},
    "edit_kid_pixels_512_v1": {"n": 16},
    "edit_lpips_vgg_v1": {"n": 2},
    "factor_vae_toonfaces_v1": {"n_samples": 200, "n_train": 100, "n_test": 50},
    "identity_dlib_v1": {"n": 1},
    "mig_pixels_3k_v1": {"n": 150},
    "mig_toonfaces_3k_v1": {"n": 90},
    "ppl2_wend_v1": {"n": 4},
    "ppl2_wend_v2": {"n": 4},
    "ppl_2k_v1": {"n": 4},
    "ppl_2k_v2": {"n": 4},
    "recovery_200_v1": {"n_codes": 8, "n_tests": 4, "n_epochs": 1},
    "recovery_2k_v1": {"n_codes": 8, "n_tests": 4, "n_epochs": 1},
    "sap_pixels_3k_v1": {"n": 150},
    "sap_toonfaces_3k_v1": {"n": 90},
}
"""The same for metrics."""


def label_for(generator: Generator) -> str | None:
    return "random" if generator.label_names else None


# --- families ---------------------------------------------------------------------------------------------------------


def test_every_family_has_a_small_generator() -> None:
    assert set(GENERATORS) <= set(TINY)


@pytest.mark.parametrize("family", TINY)
def test_samples_depend_on_seed_and_number_alone(tiny: Tiny, family: str) -> None:
    g = tiny(family)
    many = g.sample(5, seed=3, label=label_for(g))
    one = g.sample(1, seed=3, start=4, label=label_for(g))
    assert torch.allclose(many.latent[4], one.latent[0], atol=1e-5)  # mapped codes pass a matrix product
    assert not torch.equal(many.latent[3], many.latent[4])
    assert not torch.equal(
        g.sample(1, seed=4, label=label_for(g)).latent, g.sample(1, seed=3, label=label_for(g)).latent
    )


@pytest.mark.parametrize("family", TINY)
def test_a_row_is_the_same_image_in_every_batch(tiny: Tiny, family: str) -> None:
    g = tiny(family)
    codes = g.sample(4, seed=1, label=label_for(g))
    images = g(codes)
    assert images.shape == (4, g.channels, g.resolution, g.resolution)
    assert torch.isfinite(images).all()
    assert (g(codes[2]) - images[2]).abs().max() <= 1e-5
    assert images.std() > 1e-3  # a grey picture would pass all that


@pytest.mark.parametrize("family", TINY)
def test_partial_synthesis_equals_the_whole(tiny: Tiny, family: str) -> None:
    g = tiny(family)
    codes = g.sample(2, seed=1, label=label_for(g))
    whole = g(codes)
    for layer in g.layers:
        assert torch.equal(g.finish(codes, g.start(codes, layer.name)), whole), layer.name


@pytest.mark.parametrize("family", TINY)
def test_what_moves_later_parts_goes_on_from_a_shared_state(tiny: Tiny, family: str) -> None:
    g = tiny(family)
    drawn = g.sample(2, seed=1, space=g.prior, label=label_for(g))
    for space in g.spaces.values():
        codes = g.lift(drawn, space.name)
        codes = codes.with_latent(codes.latent.expand(-1, space.slots, -1).clone())
        for part in space.parts:
            latent = codes.latent.clone()
            latent[:, part.slot, part.start : part.stop] += 0.5
            moved = codes.with_latent(latent)
            assert g.first_layer_moved(codes, moved) == g.first_layer_fed(part.name, space)
            state = g.start(codes, g.first_layer_fed(part.name, space))
            for _ in range(2):  # a state serves many edits, so nothing may write into it
                assert torch.equal(g.finish(moved, state), g(moved)), (space.name, part.name)


@pytest.mark.parametrize("family", [name for name in TINY if issubclass(GENERATORS[name], StyleBased)])
def test_large_features_run_row_by_row(tiny: Tiny, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = tiny(family)
    codes = g.sample(3, seed=1, space="w+", label=label_for(g), noise="random")
    together = g(codes)
    monkeypatch.setattr(ops, "ROWS_FROM", 8)
    alone = g(codes)
    assert torch.allclose(alone, together, atol=1e-5)
    for layer in g.layers:
        assert torch.equal(g.finish(codes, g.start(codes, layer.name)), alone), layer.name
        assert len(g.features(codes, layer.name)) == 3


@pytest.mark.parametrize("family", TINY)
def test_bf16_is_near_and_leaves_no_trace(tiny: Tiny, family: str) -> None:
    g = tiny(family)
    codes = g.sample(2, seed=1, label=label_for(g))
    exact = g(codes)
    g.precision = "bf16"
    try:
        rough = g(codes)
        assert rough.dtype == torch.float32
        assert g.features(codes, g.layers[1].name).dtype == torch.float32
        assert torch.equal(g.finish(codes, g.start(codes, g.layers[1].name)), rough)
    finally:
        g.precision = "fp32"
    error = (rough - exact).square().mean().sqrt()
    assert 0 < error <= 0.1 * exact.std()
    assert torch.equal(g(codes), exact)


@pytest.mark.parametrize("family", [name for name in TINY if issubclass(GENERATORS[name], StyleBased)])
def test_codes_mapped_in_bf16_are_float32_and_those_of_float32(tiny: Tiny, family: str) -> None:
    g = tiny(family)
    drawn = g.sample(2, seed=20 + len(family), space="z", label=label_for(g))  # not yet remembered
    g.precision = "bf16"
    try:
        g(drawn)
        with torch.autocast("cpu", torch.bfloat16):
            mapped = g.lift(drawn, "w").latent
    finally:
        g.precision = "fp32"
    assert mapped.dtype == torch.float32
    assert torch.equal(g.lift(drawn, "w").latent, mapped)
    mapping = g.network.mapping
    assert torch.equal(mapped[:, 0], mapping(drawn.latent[:, 0], drawn.labels))  # type: ignore[operator]


@pytest.mark.parametrize("family", TINY)
def test_codes_that_differ_otherwise_share_nothing(tiny: Tiny, family: str) -> None:
    g = tiny(family)
    codes = g.sample(2, seed=1, label=label_for(g))
    assert g.first_layer_moved(codes, codes) == g.layers[-1].name
    noisy = g.sample(2, seed=1, label=label_for(g), noise="random")
    assert g.first_layer_moved(codes, noisy) == g.layers[0].name
    if codes.labels is not None:
        other = g.sample(2, seed=1, label=1 - codes.labels[0].argmax() % 2)
        assert g.first_layer_moved(codes, other) == g.layers[0].name


@pytest.mark.parametrize("family", TINY)
def test_anatomy_is_as_told(tiny: Tiny, family: str) -> None:
    g = tiny(family)
    codes = g.sample(2, seed=1, label=label_for(g))
    for layer in g.layers:
        features = g.features(codes, layer.name)
        assert features.shape[:2] == (2, layer.channels), layer.name
    with pytest.raises(UserError, match="unknown layer of"):
        g.features(codes, "nothing")
    names = {layer.name for layer in g.layers}
    for space in g.spaces.values():
        assert all(set(part.layers) <= names for part in space.parts)
        assert space.mask("all").sum() > 0
        assert space.mean.shape == (space.dim,)
        assert space.covariance.shape == (space.dim, space.dim)


@pytest.mark.parametrize("family", TINY)
def test_images_have_gradients_and_weights_have_none(tiny: Tiny, family: str) -> None:
    g = tiny(family)
    codes = g.sample(1, seed=1, label=label_for(g))
    latent = codes.latent.clone().requires_grad_()
    g(codes.with_latent(latent)).square().sum().backward()
    assert latent.grad is not None
    assert latent.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in g.network.parameters())


@pytest.mark.parametrize("family", TINY)
def test_our_own_files_give_the_same_images(tiny: Tiny, family: str, tmp_path: Path) -> None:
    g = tiny(family)
    try:
        g.save(tmp_path / "model")
    except Unsupported:
        return
    again = load_generator(tmp_path / "model", device="cpu")
    codes = g.sample(2, seed=5, label=label_for(g))
    twin = Codes(again.spaces[codes.space.name], codes.latent, codes.labels)
    assert torch.equal(again(twin), g(codes))
    assert again.weight_hash == g.weight_hash
    with pytest.raises(UserError, match="exists already"):
        g.save(tmp_path / "model")


@pytest.mark.parametrize("family", TINY)
def test_style_matrices_fit_their_parts(tiny: Tiny, family: str) -> None:
    g = tiny(family)
    try:
        matrices = g.style_matrices()
    except Unsupported as reason:
        assert g.name in str(reason)  # noqa: PT017  the reason is what is tested
        return
    assert matrices
    for name, matrix in matrices.items():
        assert matrix.weight.shape[1] == matrix.part.stop - matrix.part.start, name


# --- methods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_methods_keep_their_contract(tiny: Tiny, name: str, tmp_path: Path) -> None:
    g = tiny("eigengan")
    method = METHODS[name](**QUICK.get(name, {}))
    assert isinstance(method, Method)
    d = method.fit(g, seed=1)
    assert isinstance(d, Directions)
    assert len(d) >= 1
    space = g.space(d.space)
    assert d.vectors.shape[2] == space.dim
    norms = d.vectors.norm(dim=2)
    active = (norms > 0).sum(1)
    assert torch.allclose((norms.square().sum(1) / active).sqrt(), torch.ones(len(d)), atol=1e-4)
    assert torch.isfinite(d.sigma).all()
    made = d.provenance
    assert made.method == name
    assert made.seed == 1
    assert made.generator["weights"] == g.weight_hash
    again = METHODS[name](**QUICK.get(name, {})).fit(g, seed=1)
    assert torch.equal(again.vectors, d.vectors)
    d.save(tmp_path / "d.safetensors")
    loaded = Directions.load(tmp_path / "d.safetensors", generator=g)
    assert torch.equal(loaded.vectors, d.vectors)
    assert loaded.names == d.names
    codes = d.host(g, g.sample(2, seed=0))
    moved = d.move(codes, 0, by=2.0)
    assert not torch.equal(g(moved), g(codes))


# --- metrics and readers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_metrics_keep_their_contract(tiny: Tiny, name: str) -> None:
    g = tiny("eigengan")
    metric = METRICS[name](**QUICK_METRICS.get(name, {}))
    assert isinstance(metric, Metric)
    d = METHODS["random"](n_directions=3).fit(g)
    try:
        score = metric.score(g, d, seed=2)
    except UserError as reason:  # an extra or an organ is missing: the reason says what to do
        pytest.skip(str(reason))
    assert isinstance(score, Score)
    assert (score.metric, score.seed) == (name, 2)
    assert score.directions["method"] == "random"
    assert metric.score(g, d, seed=2) == score


@pytest.mark.parametrize("name", READERS)
def test_readers_keep_their_contract(name: str) -> None:
    reader = READERS[name]()
    assert isinstance(reader, Reader)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    try:
        scores = reader(images)
    except UserError as reason:  # its models are missing: the reason says how to get them
        pytest.skip(str(reason))
    assert scores.shape == (3, len(reader.attributes))
    rounding = 1e-6 * max(10.0, float(scores.abs().max()))  # lightness goes to 100, and so does its rounding
    assert torch.allclose(reader(images[1:2]), scores[1:2], atol=rounding)


@pytest.mark.parametrize("name", JUDGES)
def test_judges_keep_their_contract(name: str) -> None:
    try:
        judge = JUDGES[name]()
    except UserError as reason:  # what it knows beforehand is missing: the reason says how to get it
        pytest.skip(str(reason))
    assert isinstance(judge, Judge)
    learning = dict(judge.named_parameters())
    assert learning
    assert all(parameter.requires_grad for parameter in learning.values())
    for channels in (1, 3):
        images = torch.rand(3, channels, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        images.requires_grad_()
        scores = judge(images)
        assert all(each.ndim == 2 and len(each) == 3 for each in scores)
        torch.stack([each.mean() for each in scores]).sum().backward()
        assert images.grad is not None
        assert images.grad.any()


@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractors_keep_their_contract(name: str) -> None:
    extractor = EXTRACTORS[name]()
    assert isinstance(extractor, Extractor)
    assert extractor.licence
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    try:
        features = extractor(images)
    except UserError as reason:  # a package is missing: the reason says how to install it
        pytest.skip(str(reason))
    assert features.shape[0] == 3
    assert torch.allclose(extractor(images[1:2]), features[1:2], atol=1e-5, equal_nan=True)
