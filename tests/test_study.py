"""A study: what the page hides, and what hand-made votes say."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from eigenlens.cli import main
from eigenlens.effect import calibrate
from eigenlens.errors import UserError
from eigenlens.method import METHODS
from eigenlens.study import CONTROL, VOTES_FORMAT, Study, make_study, read_key, read_votes, score_study
from painted import painter


@pytest.fixture(scope="module")
def made() -> Study:
    g = painter()
    axes = calibrate(g, METHODS["axes"](n_directions=3).fit(g))
    random = calibrate(g, METHODS["random"](n_directions=2).fit(g, seed=9))
    return make_study(g, {"axes": axes}, random, n_codes=1)


def test_the_page_does_not_tell_whose_a_strip_is(made: Study) -> None:
    assert len(made.key["items"]) == 5
    held = made.page.split('id="study">')[1].split("</script>")[0]
    for word in ("axis", "axes", "random", "control"):
        assert word not in held
    assert made.page.count("data:image/webp") == 5
    assert "http" not in made.page.replace("http-equiv", "")
    owners = [each["method"] for each in made.key["items"].values()]
    assert sorted(owners) == ["axes"] * 3 + [CONTROL] * 2
    assert owners != ["axes"] * 3 + [CONTROL] * 2  # the order is drawn


def test_the_same_study_is_the_same_page(made: Study) -> None:
    g = painter()
    axes = calibrate(g, METHODS["axes"](n_directions=3).fit(g))
    random = calibrate(g, METHODS["random"](n_directions=2).fit(g, seed=9))
    assert make_study(g, {"axes": axes}, random, n_codes=1) == made
    with pytest.raises(UserError, match="is called 'control'"):
        make_study(g, {CONTROL: axes}, random)


KEY = {
    "format": "eigenlens.study-key/1",
    "study": "abc",
    "items": {
        "strip-001": {"method": "good", "direction": "a", "strength": 1.0},
        "strip-002": {"method": "good", "direction": "b", "strength": 1.0},
        "strip-003": {"method": CONTROL, "direction": "random-0", "strength": 1.0},
        "strip-004": {"method": CONTROL, "direction": "random-1", "strength": 1.0},
    },
}


def votes(rater: str, scores: dict[str, int], text: str = "") -> dict:
    given = [{"item": item, "score": score, "text": text} for item, score in scores.items()]
    return {"format": VOTES_FORMAT, "study": "abc", "rater": rater, "votes": given}


def test_opinions_stand_beside_those_of_the_controls() -> None:
    careful = {"strip-001": 5, "strip-002": 4, "strip-003": 1, "strip-004": 2}
    score = score_study([votes(name, careful, "beard") for name in ("ann", "bob", "cy")], KEY)
    assert score.methods["good"].mean == 4.5
    assert score.methods[CONTROL].mean == 1.5
    assert score.above_control["good"].mean == 3.0
    assert score.alpha == 1.0
    assert score.directions["good", "a"] == (5.0, 3)
    assert score.texts["good", "b"] == ("beard",) * 3
    assert score.n_votes == 12


def test_one_who_likes_everything_is_found_out() -> None:
    careful = {"strip-001": 5, "strip-002": 4, "strip-003": 1, "strip-004": 1}
    kind = dict.fromkeys(careful, 5)
    score = score_study([votes("careful", careful), votes("kind", kind)], KEY)
    assert score.raters["kind"] == 0.0
    assert score.raters["careful"] > 0
    assert score.above_control["good"].mean == pytest.approx(1.75)  # paired by rater: 3.5 and 0


def test_missing_votes_are_missing() -> None:
    score = score_study([votes("ann", {"strip-001": 5})], KEY)
    assert CONTROL not in score.methods
    assert score.above_control == {}
    assert math.isnan(score.alpha)
    assert math.isnan(score.raters["ann"])
    with pytest.raises(UserError, match="no vote came"):
        score_study([votes("ann", {})], KEY)
    with pytest.raises(UserError, match="a rater came twice"):
        score_study([votes("ann", {"strip-001": 5})] * 2, KEY)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "other"}, "holds no votes"),
        ({"study": "xyz"}, "of study xyz, and the key is of abc"),
        ({"rater": 3}, "whose votes"),
        ({"votes": [{"item": "strip-009", "score": 3}]}, "no vote on a strip of this study"),
        ({"votes": [{"item": "strip-001", "score": 6}]}, "no vote on a strip of this study"),
        ({"votes": ["x"]}, "no vote on a strip of this study"),
    ],
)
def test_strange_votes_are_refused(change: dict, says: str, tmp_path: Path) -> None:
    file = tmp_path / "votes.json"
    file.write_text(json.dumps(votes("ann", {"strip-001": 5}) | change))
    with pytest.raises(UserError, match=says):
        read_votes(file, KEY)


def test_the_commands_make_a_study_and_score_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    axes = METHODS["axes"](n_directions=4).fit(painter()).save(tmp_path / "axes.safetensors")
    words = ["study", "painted:painter", "--directions", str(axes), "--k", "2", "--controls", "2", "--out", str(out)]
    assert main(words) == 0
    key = read_key(out / "key.json")
    scores = {name: 5 if item["method"] == "axes" else 2 for name, item in key["items"].items()}
    for rater in ("ann", "bob"):
        given = votes(rater, scores) | {"study": key["study"]}
        (tmp_path / f"{rater}.json").write_text(json.dumps(given))
    capsys.readouterr()
    files = [str(tmp_path / f"{rater}.json") for rater in ("ann", "bob")]
    result = tmp_path / "score.json"
    assert main(["study", "score", *files, "--key", str(out / "key.json"), "--out", str(result)]) == 0
    told = capsys.readouterr().out
    assert "8 votes of 2 raters; Krippendorff's α 1.000" in told
    assert "3.00 [3.00, 3.00]" in told
    assert json.loads(result.read_text())["methods"]["axes"]["mean"] == 5.0
    assert main(words) == 2  # never over an existing study
    assert "exists already" in capsys.readouterr().err


def test_two_files_of_one_name_are_no_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second would take the place of the first, whose directions nobody would see."""
    axes = METHODS["axes"](n_directions=2).fit(painter())
    files = [tmp_path / f"seed{seed}" / "axes.safetensors" for seed in (0, 1)]
    for file in files:
        file.parent.mkdir()
        axes.save(file)
    words = ["study", "painted:painter", "--controls", "2", "--out", str(tmp_path / "study")]
    assert main([*words, "--directions", *map(str, files)]) == 2
    told = capsys.readouterr().err
    assert f"{files[0]} and {files[1]} came" in told
    assert "give each file a name of its own" in told
    assert main([*words, "--directions", "axes", str(files[0])]) == 2
    assert "called 'axes'" in capsys.readouterr().err


@pytest.mark.browser
def test_a_rater_can_stop_go_on_and_download(made: Study, open_page, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(made.page)
    watched = open_page(file.as_uri(), width=390)
    page = watched.page
    page.fill("#rater", "ann b.")
    page.click("text=begin")
    for score in (5, 1):
        page.keyboard.press(str(score))
        page.click("#next")
    page.reload()  # the browser was closed
    assert page.input_value("#rater") == "ann b."
    page.click("text=begin")
    for score in (2, 3, 4):
        page.click(f'[data-score="{score}"]')
        page.fill("#text", "a region")
        page.click("#next")
    with page.expect_download() as download:
        page.click("#save")
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    given = read_votes(saved, made.key)
    assert saved.name == "votes-ann-b-.json"
    assert [each["score"] for each in given["votes"]] == [5, 1, 2, 3, 4]
    assert given["votes"][2]["text"] == "a region"
    score = score_study([given], made.key)
    assert dataclasses.is_dataclass(score)
    watched.check_clean()
