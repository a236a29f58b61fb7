"""The anatomy of an EigenGAN: planted importances and matches are found, and the page needs nothing else."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eigenlens import UserError
from eigenlens.anatomy import Anatomy, compare_runs, examine, fitting_reader, spearman, spearman_within
from eigenlens.anatomy_page import warnings_of, write_page
from eigenlens.cli import main
from eigenlens.generator import load_generator
from eigenlens.generators.eigengan import EigenGAN, EigenGANConfig, EigenGANNetwork
from eigenlens.method import METHODS
from families import TINY
from test_report import balanced


def eigengan(seed: int = 0, **changed: object) -> EigenGAN:
    settings = {"noise_dim": 8, "n_basis": 3, "base_channels": 4, "max_channels": 8, "widths": "relative"}
    torch.manual_seed(seed)
    network = EigenGANNetwork(EigenGANConfig(16, **{**settings, **changed}))  # type: ignore[arg-type]
    network.rgb.weight.data *= 0.2  # away from where tanh saturates
    return EigenGAN(network, name=f"tiny {seed} <b>")


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return examine(eigengan(), n=6)


def test_everything_is_known_of_every_axis(anatomy: Anatomy) -> None:
    assert anatomy.layers == ("layer1",) * 3 + ("layer2",) * 3
    assert anatomy.reader == "pixels"
    assert anatomy.moved.shape == (6, len(anatomy.factors))
    assert anatomy.turning.isfinite().all()
    assert anatomy.stored.effect.isfinite().all()
    for layer in anatomy.names:
        for basis in ("injected", "image"):
            assert anatomy.chance(layer) < 1
            assert 0 < anatomy.agreement("stored", basis, layer) <= 1 + 1e-6
        assert anatomy.agreement("stored", "stored", layer) == pytest.approx(1)


def test_a_layer_that_does_nothing_is_called_collapsed() -> None:
    g = eigengan()
    g.network.blocks[0].subspace.importance.data *= 1e-4
    found = examine(g, n=6)
    assert found.strength_of("layer1") < 0.01
    assert found.strength_of("layer2") == 1
    assert found.is_alive.tolist() == [False] * 3 + [True] * 3
    (warning,) = warnings_of(found)
    assert warning.startswith("layer1 has collapsed")
    g.network.blocks[0].subspace.importance.data *= 1e4
    g.refresh()
    assert not warnings_of(examine(eigengan(), n=6))


def test_rank_correlations_by_hand() -> None:
    up, down, flat = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([3.0, 2.0, 0.0]), torch.ones(3)
    assert spearman(up, down) == pytest.approx(-1)
    assert spearman(torch.tensor([1.0, 1.0, 2.0]), up) == pytest.approx(3**0.5 / 2)
    assert math.isnan(spearman(flat, up))
    layers = ["a", "a", "a", "b", "b", "b"]
    assert spearman_within(torch.cat([up, up]), torch.cat([up, down]), layers) == pytest.approx(0)
    assert spearman_within(torch.cat([up, flat]), torch.cat([up, down]), layers) == pytest.approx(1)


def test_the_same_axes_in_another_order_are_matched_and_turned_ones_are_not(anatomy: Anatomy) -> None:
    twin = eigengan()
    for block in twin.network.blocks:
        subspace = block.subspace
        subspace.basis.data = -subspace.basis.data[[2, 0, 1]]
        subspace.importance.data = subspace.importance.data[[2, 0, 1]]
    found = compare_runs([anatomy, examine(twin, n=6)], n=256)
    assert found.mean > 0.95  # the codes differ by the order, so the means do a little
    assert found.null_mean < found.mean - 0.1
    assert set(found.found) == set(anatomy.factors)
    assert max(found.found.values(), default=0) <= 2


def test_runs_that_cannot_be_compared_are_refused(anatomy: Anatomy) -> None:
    with pytest.raises(UserError, match="1 run came"):
        compare_runs([anatomy])
    with pytest.raises(UserError, match="different sizes and channels"):
        compare_runs([anatomy, examine(eigengan(channels=1), n=6)])
    with pytest.raises(UserError, match="without subspaces"):
        examine(eigengan(n_basis=0))


def test_labels_are_read_where_the_reader_knows_the_pictures() -> None:
    toonfaces = load_generator("toonfaces")
    axes = METHODS["eigen"](measured=False).fit(toonfaces)
    assert fitting_reader(toonfaces, axes, n=16) == "toonfaces"
    tiny = TINY["eigengan"]()
    assert fitting_reader(tiny, METHODS["eigen"](measured=False).fit(tiny), n=16) == "pixels"


def test_the_page_is_whole_and_asks_nothing_of_a_network(tmp_path: Path) -> None:
    for seed in (0, 1):
        eigengan(seed).save(tmp_path / str(seed))
    out = tmp_path / "page.html"
    assert main(["anatomy", str(tmp_path / "0"), str(tmp_path / "1"), "--out", str(out)]) == 0
    text = out.read_text("utf-8")
    balanced(text)
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert "url(" not in text
    assert "http" not in text
    assert "Anatomy of tiny 0 &lt;b&gt;" in text
    assert text.count("data:image/webp") == 12  # a strip for every stored axis, and one for every axis of `image`
    for anchor in ("sheets", "importance", "hierarchy", "true", "stability"):
        assert text.count(f'id="{anchor}"') == text.count(f'href="#{anchor}"') == 1
    assert out.stat().st_size < 2e6


def test_names_in_a_strangers_file_are_texts_on_the_page(anatomy: Anatomy, tmp_path: Path) -> None:
    named = anatomy.stored.renamed({"L1D1": "L1D1 <script>alert(1)</script>"})
    hostile = replace(anatomy, bases={**anatomy.bases, "stored": named})
    text = write_page([hostile], tmp_path / "page.html", command="", stability=None).read_text("utf-8")
    assert "<script>" not in text
    assert "L1D1 &lt;script&gt;" in text


def test_one_run_has_no_stability_and_no_page_is_lost(
    anatomy: Anatomy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write_page([anatomy], tmp_path / "page.html", command="eigenlens anatomy it", stability=None)
    assert "stability" not in out.read_text("utf-8")
    with pytest.raises(UserError, match="exists already"):
        write_page([anatomy], out, command="", stability=None)
    TINY["dcgan"]().save(tmp_path / "dcgan")
    assert main(["anatomy", str(tmp_path / "dcgan"), "--out", str(tmp_path / "no.html")]) == 2
    assert "dcgan has no axes of its own" in capsys.readouterr().err
    assert not (tmp_path / "no.html").exists()
