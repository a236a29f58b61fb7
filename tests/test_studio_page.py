"""The studio's page in a real browser."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the studio's extra is not installed")

from browser import Watched
from eigenlens.generator import load_generator
from studios import make_studio, served

pytestmark = pytest.mark.browser
Open = Callable[..., Watched]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    workspace = tmp_path_factory.mktemp("studio") / "work"
    with served(make_studio(workspace, {"toonfaces": load_generator("toonfaces")})) as url:
        yield url


@pytest.fixture
def watched(open_page: Open, address: str) -> Iterator[Watched]:
    opened = open_page(address)
    opened.page.wait_for_selector("html[data-ready] canvas[data-frame]")
    yield opened
    opened.check_clean()


def slider(watched: Watched, name: str) -> Any:
    return watched.page.get_by_role("slider", name=name, exact=True)


def picture(watched: Watched) -> np.ndarray:
    """Return what is on the stage once no frame is under way."""
    watched.page.wait_for_timeout(250)
    name = watched.page.locator("#stage canvas")
    return np.asarray(Image.open(io.BytesIO(name.screenshot())).convert("RGB")).astype(int)


def differs(a: np.ndarray, b: np.ndarray) -> bool:
    return float(np.abs(a - b).mean()) > 0.5


def state(watched: Watched) -> dict[str, Any]:
    return json.loads(watched.page.evaluate("JSON.stringify(window.studio.store.state)"))


def test_drag_keyboard_and_history(watched: Watched) -> None:
    page = watched.page
    first = picture(watched)
    axis = slider(watched, "L3D1")
    box = axis.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2, steps=6)
    page.mouse.up()
    moved = picture(watched)
    assert differs(first, moved)
    [move] = state(watched)["moves"]
    assert move["name"] == "L3D1"
    assert move["by"] > 1.5

    axis.press("ArrowRight")
    page.wait_for_timeout(350)
    assert state(watched)["moves"][0]["by"] > move["by"]
    axis.press("End")
    page.wait_for_timeout(350)
    for _ in range(2):
        page.keyboard.press("Control+z")
    assert state(watched)["moves"] == [move]
    assert not differs(picture(watched), moved)
    page.keyboard.press("Control+z")
    assert state(watched)["moves"] == []
    assert not differs(picture(watched), first)
    page.keyboard.press("Control+Shift+z")
    assert state(watched)["moves"] == [move]
    axis.dblclick()
    assert state(watched)["moves"] == []


def test_typed_numbers_wheel_and_zero(watched: Watched) -> None:
    page = watched.page
    number = page.get_by_label("L4D1, typed")
    number.fill("-1,5")
    number.press("Enter")
    assert state(watched)["moves"] == [{"directions": "eigen", "name": "L4D1", "by": -1.5}]
    axis = slider(watched, "L4D1")
    axis.focus()
    axis.hover()
    page.mouse.wheel(0, -100)
    page.wait_for_timeout(350)
    assert state(watched)["moves"][0]["by"] > -1.5
    axis.press("Delete")
    assert state(watched)["moves"] == []
    number.fill("plenty")
    number.press("Enter")
    assert "plenty is no number" in page.locator("#notices").inner_text()


def test_hold_to_compare(watched: Watched) -> None:
    page = watched.page
    first = picture(watched)
    slider(watched, "L4D2").press("End")
    moved = picture(watched)
    page.keyboard.down("b")
    assert not differs(picture(watched), first) or page.locator(".mark").is_visible()
    assert page.locator(".mark").is_visible()
    page.keyboard.up("b")
    assert not differs(picture(watched), moved)
    assert page.locator(".mark").is_hidden()


def test_a_link_restores_the_state(watched: Watched, open_page: Open) -> None:
    page = watched.page
    page.get_by_label("Seed", exact=True).fill("41")
    page.get_by_label("Seed", exact=True).press("Enter")
    slider(watched, "L3D2").press("End")
    page.get_by_title("4 pictures at once").click()
    page.wait_for_timeout(300)
    wanted, shown = state(watched), picture(watched)
    other = open_page(page.url)
    other.page.wait_for_selector("html[data-ready] canvas[data-frame]")
    assert state(other) == wanted
    assert (wanted["seed"], wanted["n"], len(wanted["moves"])) == (41, 4, 1)
    assert not differs(picture(other), shown)
    other.check_clean()


def test_gallery_and_seeds(watched: Watched) -> None:
    page = watched.page
    page.keyboard.press("n")
    assert state(watched)["seed"] == 1
    page.get_by_role("tab", name="Gallery").click()
    page.wait_for_selector(".thumb:nth-child(48) canvas")
    page.get_by_role("button", name="Seed 17", exact=True).click()
    assert state(watched)["seed"] == 17


def test_export_says_how(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    slider(watched, "L3D1").press("Home")
    page.get_by_role("tab", name="Export").click()
    page.wait_for_selector("code:has-text('eigenlens edit toonfaces')")
    with page.expect_download() as coming:
        page.get_by_role("button", name="PNG", exact=True).click()
    coming.value.save_as(tmp_path / "edit.png")
    assert Image.open(tmp_path / "edit.png").size == (64, 64)


@pytest.mark.parametrize("dark", [False, True])
def test_phone(open_page: Open, address: str, dark: bool) -> None:
    watched = open_page(address, width=390, height=780, dark=dark)
    page = watched.page
    page.wait_for_selector("html[data-ready] canvas[data-frame]")
    slider(watched, "L4D6").scroll_into_view_if_needed()
    stage = page.locator("#stage").bounding_box()
    assert stage["y"] >= 0, "the picture stays pinned"
    assert stage["y"] + stage["height"] < 200
    assert watched.overflow() == 0
    watched.check_clean()
