"""The page of a comparison, and the pieces that pages are made of."""

from __future__ import annotations

import html
import html.parser
import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch

from eigenlens.cli import main
from eigenlens.compare import Comparison
from eigenlens.generator import Generator
from eigenlens.grid import Entry, Grid
from eigenlens.page import Dot, Series, data, dot_chart, heat_map, line_chart, scatter_chart, table, ticks
from eigenlens.report import curves, write_report
from families import stylegan2

MATRIX = "attribute_matrix_pixels_v1(reader=painted:Regions)"
VOID = {"meta", "img", "input", "br", "path", "circle"}


class Balanced(html.parser.HTMLParser):
    """Raises where tags do not close in the order in which they opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        self.texts.append(text)


def balanced(text: str) -> Balanced:
    parser = Balanced()
    parser.feed(text)
    assert not parser.open
    return parser


def layered() -> Generator:
    """Make a StyleGAN2 of which SeFa finds directions of w that act on some layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return stylegan2()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    grid = Grid.from_dict(
        {
            "generators": {"painter <b>": ["painted:painter"]},
            "methods": ["axes", "random", "eigen"],
            "metrics": [MATRIX, "latent_orthogonality_v1"],
            "k": 3,
            "null": 6,
            "reader": "painted:Regions",
            "profile_codes": 8,
            "at": {"latent_orthogonality_v1": ["kid_pixels"]},  # by which a profile has it too
            "oracle": "painted:painter",
        }
    )
    comparison = Comparison(grid, tmp_path_factory.mktemp("report"))
    comparison.run()
    return comparison, write_report(comparison)


def test_methods_that_act_on_some_layers_of_w_are_compared(tmp_path: Path) -> None:
    methods = ["sefa(layers=1-2)", "random", "random(law=covariance)"]
    grid = Grid(
        {"layered": ("test_report:layered",)},
        tuple(map(Entry.parse, methods)),
        calibrations=("native",),
        k=2,
        null=2,
        profile_codes=4,
    )
    comparison = Comparison(grid, tmp_path)
    comparison.run()
    text = write_report(comparison).read_text("utf-8")
    assert text.count("random and sefa(layers=1-2)") == 1
    assert "How alike are the methods?" in text


def test_the_page_is_whole_and_asks_nothing_of_a_network(report) -> None:
    _, path = report
    text = path.read_text("utf-8")
    balanced(text)
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert "url(" not in text
    assert "@import" not in text
    assert "painter &lt;b&gt;" in text
    assert '<h2 id="painter-b-">' in text


def test_every_direction_has_a_passport(report) -> None:
    _, path = report
    text = path.read_text("utf-8")
    assert text.count("<article>") == 3 * 3  # axes, random and the oracle; eigen does not apply
    assert text.count("data:image/webp") == 9
    for word in (
        "σ",
        "limits",
        "effect",
        "p against random",
        "equal realism",
        "equal kid_pixels",
        "eigenlens traverse painted:painter",
        "eigenlens names ",
    ):
        assert word in text
    assert "axis-0 → region-0" in text
    assert "no axes of its own" in text  # why eigen is missing


def test_every_number_has_its_command(report) -> None:
    _, path = report
    text = path.read_text("utf-8")
    numbers = json.loads(re.search(r'id="numbers">(.*?)</script>', text)[1])
    assert len(numbers) == text.count("<button data-number=") + text.count('<button class="none" data-number=')
    kinds = ("eigenlens compare --config ", "eigenlens similarity ")
    assert all(each["command"].startswith(kinds) for each in numbers)
    assert any(each["text"].startswith("n/a: toy has no axes") for each in numbers)


def test_the_printed_commands_give_the_same_numbers(report, capsys: pytest.CaptureFixture[str]) -> None:
    _, path = report
    cards = path.read_text("utf-8").split("<article>")[1:]
    shown = re.findall(r"<dt>p against random</dt><dd>(.*?)</dd>", cards[0])[0]
    command = next(each for each in re.findall(r"<code>(.*?)</code>", cards[0]) if "names" in each)
    assert main(shlex.split(html.unescape(command))[1:]) == 0
    line = next(each for each in capsys.readouterr().out.splitlines() if each.startswith("axis-0"))
    assert shown in line.split()


def test_a_second_page_computes_nothing_again(report) -> None:
    comparison, _ = report
    files = {each: each.stat().st_mtime_ns for each in comparison.folder.rglob("*.safetensors")}
    write_report(Comparison(comparison.grid, comparison.folder))
    assert {each: each.stat().st_mtime_ns for each in comparison.folder.rglob("*.safetensors")} == files


def test_pure_axes_stay_pure_at_every_strength(report) -> None:
    comparison, _ = report
    fit = next(iter(comparison.grid.fits()))
    _, _, profile = comparison.found(fit)
    changes, purity, way = curves(profile)
    assert changes == sorted(changes)
    assert min(purity) > 0.99
    assert way[-1] > 2 * max(way[0], 0)


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_the_page_fits_and_shows_what_is_behind_a_number(report, open_page, width: int, dark: bool) -> None:
    _, path = report
    watched = open_page(path.as_uri(), width=width, dark=dark)
    page = watched.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("[data-number]").first.click()
    assert page.locator("dialog code").inner_text().startswith("eigenlens compare --config ")
    page.keyboard.press("Escape")
    watched.check_clean()


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((0, 1), (-0.3, 0.7), (0, 47), (1e-4, 3e-4), (-5, 1000)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 6
        assert low - 1e-9 <= found[0] < found[-1] <= high + 1e-9


def test_charts_are_whole_and_leave_out_what_is_not_finite() -> None:
    lines = line_chart([Series("a<b", [0, 1, 2], [0.0, math.nan, 1.0])], x_label="x", y_label="y")
    dots = {"sefa": {"native": Dot(0.5, 0.4, 0.6, (0.45, 0.55)), "change": Dot(math.nan)}}
    drawn = dot_chart(dots, x_label="purity", reference=0.1)
    points = scatter_chart([("one", 1.0, 0.5), ("two", 100.0, 0.7), ("gone", math.nan, 1.0)], x_label="x", y_label="y")
    heat = heat_map(["r"], ["c", "d"], [[1.5, math.nan]], bound=2.0)
    for text in (lines, drawn, points, heat):
        balanced(text)
        assert "nan" not in text
    assert "a&lt;b" in lines
    assert "gone" not in points
    assert "--s:75%" in heat
    assert scatter_chart([], x_label="x", y_label="y") == '<p class="note">There is nothing to draw yet.</p>'


def test_data_cannot_leave_its_element() -> None:
    text = data("a", {"x": "</script><b>"})
    assert text.count("</script>") == 1
    assert json.loads(text.split(">", 1)[1].removesuffix("</script>")) == {"x": "</script><b>"}


def test_tables_escape_texts_alone() -> None:
    assert "&lt;i&gt;" in table([{"a": "<i>"}])
    assert "<td><i></td>" in table([{"a": "<i>"}], is_html=True)
    assert "<td>-</td>" in table([{"a": None}])
