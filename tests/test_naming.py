"""Names from hand-made profiles: what is pure, what is joint, what stays unnamed, and whose name wins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eigenlens.cli import main
from eigenlens.directions import Directions
from eigenlens.method import METHODS
from eigenlens.naming import is_automatic, parts_of, propose, purities, renamed
from eigenlens.profile import Profile
from eigenlens.reader import EXTRACTORS
from painted import painter

ATTRIBUTES = ("beard", "smile", "age", "hair=bun", "hair=spiky")
STRENGTHS = torch.tensor([-2.0, 0.0, 2.0])


def profile(rows: list[list[float]], error: float = 0.01) -> Profile:
    """Make the profile of directions that change attributes by these amounts from -1 σ to +1 σ, linearly."""
    k, moved = len(rows), torch.tensor(rows)
    attribute = moved[:, None, :] * (STRENGTHS / 2)[None, :, None]
    change = (STRENGTHS.abs() / 4).expand(k, -1)  # 0.25 at 1 σ
    names = tuple(f"sefa-{i}" for i in range(k))
    return Profile(
        names, ATTRIBUTES, STRENGTHS.expand(k, -1), change, change, attribute, torch.full_like(attribute, error)
    )


def proposals(rows: list[list[float]], *, names: tuple[str, ...] = (), null: tuple[float, ...] = (), error=0.01):
    made = profile(rows, error)
    directions = Directions(torch.eye(8)[: len(rows), None], "z", names or made.names)
    return propose(directions, made, made.strengths_at("change", 0.25), null=null)


def test_one_attribute_names_a_direction_with_its_sign_and_purity() -> None:
    up, down = proposals([[1.8, 0.6, 0, 0, 0], [0, 0, -2.0, 0, 0]])
    assert (up.name, up.evidence) == ("beard+", "beard +, 0.90 pure")
    assert down.name == "age-"
    assert up.is_named


def test_two_attributes_share_a_name() -> None:
    (joint,) = proposals([[0.1, -0.9, 1.0, 0.1, 0]])
    assert joint.name == "age+,smile-"
    assert joint.evidence == "age 55 % + smile - 44 %"


def test_what_nothing_explains_keeps_its_number() -> None:
    faint, many = proposals([[0.3, 0.1, 0, 0, 0], [0.7, 0.7, -0.7, 0.7, 0]])
    assert (faint.name, faint.is_named) == ("sefa-0", False)
    assert faint.evidence.startswith("changes no attribute by 0.5 standard deviations beyond doubt")
    assert many.name == "sefa-1"
    assert many.evidence.startswith("changes many things, most ")
    (noisy,) = proposals([[0.8, 0, 0, 0, 0]], error=0.5)
    assert not noisy.is_named


def test_values_of_one_factor_count_once() -> None:
    (swap,) = proposals([[0, 0, 0, 1.5, -1.5]])
    assert swap.name == "hair=bun+"
    assert swap.parts[0].share == 1.0


def test_what_random_directions_do_as_well_is_no_name() -> None:
    rows = [[0.9, 0.3, 0, 0, 0]]
    (common,) = proposals(rows, null=(0.5, 0.8, 0.95, 0.4))
    assert not common.is_named
    assert "random directions are as pure in 40 % of cases" in common.evidence
    (rare,) = proposals(rows, null=(0.1,) * 39)
    assert rare.name == "beard+"
    assert rare.p == 1 / 40


def test_names_that_someone_gave_win_and_all_names_differ() -> None:
    rows = [[2.0, 0, 0, 0, 0]] * 4
    made = proposals(rows, names=("sefa-0", "my beard", "beard+", "L2D1"))
    assert [each.name for each in made] == ["beard+2", "my beard", "beard+", "beard+3"]
    assert made[1].evidence == "given; beard +, 1.00 pure"


@pytest.mark.parametrize(
    "name",
    ["sefa-3", "L2D1", "L2-image-1", "L2-injected-3", "sefa-sefa-0", "eigen-L2D1", "0-sefa-3", "sefa+eigen-L1D2"],
)
def test_names_that_methods_give_are_free(name: str) -> None:
    assert is_automatic(name)


@pytest.mark.parametrize("name", ["smile", "sefa-smile", "hair-L2D1", "L2-hair-1", "sefa"])
def test_names_that_someone_gave_are_not(name: str) -> None:
    assert not is_automatic(name)


def test_a_file_of_named_directions_tells_why() -> None:
    made = profile([[2.0, 0, 0, 0, 0]])
    directions = Directions(torch.eye(8)[:1, None], "z", made.names)
    named = renamed(directions, propose(directions, made, made.strengths_at("change", 0.25)))
    assert named.names == ("beard+",)
    assert named.provenance.arguments["evidence"] == {"beard+": "beard +, 1.00 pure"}
    assert directions.names == ("sefa-0",)


def test_chance_is_taken_off_shares() -> None:
    """Many small changes that are all noise do not make a direction less pure."""
    noisy = profile([[2.0, 0.0, 0.3, 0.3, 0.0]], error=0.3)
    parts = {part.attribute: part for part in parts_of(noisy, 0, 1.0)}
    assert parts["beard"].share == 1.0
    assert purities(noisy, noisy.strengths_at("native", 1.0)) == [1.0]
    assert purities(profile([[0.1, 0, 0, 0, 0]]), noisy.strengths_at("native", 1.0)) == [0.0]


def test_the_command_names_by_reader_or_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    axes = METHODS["axes"](n_directions=2).fit(painter())
    file = axes.renamed({"axis-1": "mine"}).save(tmp_path / "axes.safetensors")
    words = ["names", str(file), "--generator", "painted:painter", "--null", "0", "--n-codes", "8"]
    out = tmp_path / "named.safetensors"
    assert main([*words, "--reader", "painted:Regions", "--out", str(out)]) == 0
    assert "region-0 +, 1.00 pure" in capsys.readouterr().out
    named = Directions.load(out)
    assert named.names == ("region-0+", "mine")
    assert named.provenance.arguments["evidence"]["mine"] == "given; region-1 +, 1.00 pure"
    monkeypatch.setitem(EXTRACTORS.table, "clip", "painted:Texts")
    assert main([*words, "--texts", "a bright corner", "a light middle"]) == 0
    assert "a-bright-corner+" in capsys.readouterr().out
    assert main([*words, "--texts", "a", "--rename", "axis-0"]) == 2
    assert "is no pair; write OLD=NEW" in capsys.readouterr().err
