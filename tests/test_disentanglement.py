"""MIG, SAP and DCI: perfect, useless, mixed and duplicated directions, and figures computed by hand."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from eigenlens import Directions, UserError
from eigenlens.metrics.disentanglement import (
    Dci,
    Factor,
    Mig,
    Sampled,
    Sap,
    binned,
    concentration,
    entropy,
    factors_of,
    gap,
    histogram_bins,
    mig,
    mutual_information,
    sap,
)
from eigenlens.reader import Attribute
from toy_factors import DUPLICATED, MIXED, PERFECT, USELESS, Squares, factor_toy

N = 900


def score(kind: type, directions: Directions, **settings: object) -> object:
    return kind(Squares(), n=N, **settings).score(factor_toy(), directions)


def test_mig_in_threes() -> None:
    perfect, useless, mixed, duplicated = (score(Mig, each, n_null=5) for each in (PERFECT, USELESS, MIXED, DUPLICATED))
    assert perfect.value > 0.6  # codes have 20 bins of equal width, factors 20 of equal count: 1 cannot be reached
    assert useless.value < 0.03
    assert mixed.value < 0.05
    assert duplicated.value < 0.03  # the second best tells as much
    assert useless.value < useless.details["null_95"] < 0.05


def test_sap_in_threes() -> None:
    perfect, useless, mixed, duplicated = (score(Sap, each) for each in (PERFECT, USELESS, MIXED, DUPLICATED))
    assert perfect.value == pytest.approx(1, abs=0.02)
    assert useless.value < 0.02
    assert mixed.value < 0.1
    assert duplicated.value < 0.02


def test_dci_in_threes() -> None:
    pytest.importorskip("sklearn")
    perfect, useless, mixed, duplicated = (score(Dci, each) for each in (PERFECT, USELESS, MIXED, DUPLICATED))
    assert perfect.value > 0.9
    assert perfect.details["completeness"] > 0.9
    assert perfect.details["informativeness"] > 0.95
    assert useless.details["informativeness"] < 0.05
    assert useless.value < 0.2
    assert mixed.value < 0.2
    assert mixed.details["completeness"] < 0.2
    assert duplicated.details["informativeness"] < 0.3  # three of four factors are lost


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(Sap, MIXED)
    monkeypatch.setattr(type(factor_toy()), "batch_size", property(lambda self: 7))
    assert score(Sap, MIXED).value == pytest.approx(whole.value, abs=1e-6)


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'eigenlens\[metrics\]'"):
        score(Dci, PERFECT)


def test_a_reader_that_knows_nothing_is_told() -> None:
    constant = lambda images: torch.zeros(len(images))  # noqa: E731
    with pytest.raises(UserError, match="certain of no factor that varies"):
        Mig(constant, n=60).score(factor_toy(), PERFECT)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_information_by_hand() -> None:
    a = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    b = torch.tensor([0, 0, 1, 1])
    assert mutual_information(a, b).tolist() == pytest.approx([math.log(2), 0.0])
    assert entropy(b) == pytest.approx(math.log(2))
    assert gap(torch.tensor([0.2, 0.9, 0.5])) == pytest.approx(0.4)
    assert gap(torch.tensor([0.9])) == pytest.approx(0.9)


def test_mig_of_classes_by_hand() -> None:
    codes = torch.tensor([[-1.0, 0.0], [-1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(50, 1).double()
    which = (codes[:, 0] > 0).double()
    drawn = Sampled(codes, (Factor("side", which, False, torch.ones(200, dtype=torch.bool)),))
    found = mig(drawn, n_null=20)
    assert found["value"] == pytest.approx(1)
    assert found["null_95"] < 0.05


def test_sap_knows_numbers_alone() -> None:
    codes = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)).double()
    known = torch.ones(100, dtype=torch.bool)
    drawn = Sampled(codes, (Factor("side", (codes[:, 0] > 0).double(), False, known),))
    assert math.isnan(sap(drawn)["value"])


def test_bins() -> None:
    values = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 9.0, 9.5, 10.0]).double()
    assert histogram_bins(values, 2).tolist() == [0] * 7 + [1] * 3
    assert torch.bincount(binned(values, 5)).tolist() == [2] * 5


def test_concentration_is_that_of_disentanglement_lib() -> None:
    # 1 - H(p) with logarithms to the base of the number of columns, by hand for p = (3/4, 1/4, 0) and a uniform row
    rows = torch.tensor([[3.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 5.0, 0.0]]).double()
    expected = 1 + (0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(3)
    assert concentration(rows).tolist() == pytest.approx([expected, 0, 1], abs=1e-6)


def test_values_of_one_factor_are_joined() -> None:
    attributes = (
        Attribute("hair=a", "truth"),
        Attribute("hair=b", "truth"),
        Attribute("hat", "truth"),
        Attribute("age"),
    )
    scores = torch.rand(80, 4, generator=torch.Generator().manual_seed(0))
    certain = torch.ones(80, 4, dtype=torch.bool)
    certain[:60, 3] = False  # the age is known of 20 alone: left out
    hair, hat = factors_of(attributes, scores, certain)
    assert (hair.values == scores[:, :2].argmax(1)).all()
    assert (hat.values == (scores[:, 2] > 0.5)).all()
    assert not hair.is_number
