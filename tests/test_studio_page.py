"""The studio's page in a real browser."""

from __future__ import annotations

import functools
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
from eigenlens.method import METHODS
from families import TINY
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


@pytest.fixture
def two(open_page: Open, tmp_path: Path) -> Iterator[Watched]:
    """Give a page of one generator under two names."""
    g = load_generator("toonfaces")
    with served(make_studio(tmp_path / "work", {"toonfaces": g, "again": g})) as url:
        opened = open_page(url)
        opened.page.wait_for_selector("html[data-ready] canvas[data-frame]")
        yield opened


@functools.cache
def called(place: str) -> str:
    """Return the name of an axis of the bundled generator, such as `L4D3 fair hair`, by its place."""
    shows = load_generator("toonfaces", device="cpu").axis_names.get(place, "")
    return f"{place} {shows}".strip()


def slider(watched: Watched, place: str) -> Any:
    return watched.page.get_by_role("slider", name=called(place), exact=True)


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
    assert move["name"] == called("L3D1")
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
    number = page.get_by_label(f"{called('L4D1')}, typed")
    number.fill("-1,5")
    number.press("Enter")
    assert state(watched)["moves"] == [{"directions": "eigen", "name": called("L4D1"), "by": -1.5}]
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
    page.keyboard.down("b")
    page.locator(".mark").wait_for()
    page.evaluate("dispatchEvent(new Event('blur'))")  # the key comes up over another window
    page.locator(".mark").wait_for(state="hidden")
    page.keyboard.up("b")


def test_the_focus_stays_where_a_menu_was_opened(watched: Watched) -> None:
    page = watched.page

    def check(button: str) -> None:
        page.wait_for_timeout(600)
        assert page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent") == button

    more = f"More about {called('L3D1')}"
    for entry in ("Pin to the top", "Turn round", "Set to zero"):
        menu(watched, more, entry)
        check(more)
    menu(watched, "+ Add", "axes")
    check("+ Add")


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
    assert state(watched)["seed"] == 2
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


def test_the_tabs_are_pinned_below_the_picture_on_a_phone(open_page: Open, tmp_path: Path) -> None:
    with served(make_studio(tmp_path / "work", {"tiny": TINY["stylegan2"]()})) as url:
        watched = open_page(url, width=390, height=420)
        page = watched.page
        page.wait_for_selector("html[data-ready] canvas[data-frame]")
        assert page.get_by_label("Noise").is_visible()
        page.get_by_role("slider").last.scroll_into_view_if_needed()
        page.wait_for_timeout(300)
        pinned, tabs = page.locator("#left").bounding_box(), page.locator("#tabs").bounding_box()
        assert pinned["y"] == 0
        assert tabs["y"] >= pinned["height"] - 1, "the tabs are not hidden"
        watched.check_clean()


# --- the tools --------------------------------------------------------------------------------------------------------


def open_tab(watched: Watched, name: str) -> None:
    watched.page.get_by_role("tab", name=name, exact=True).click()


def menu(watched: Watched, button: str, entry: str) -> None:
    watched.page.get_by_role("button", name=button, exact=True).first.click()
    watched.page.get_by_role("menuitem", name=entry).click()


def test_teach_a_slider(watched: Watched) -> None:
    page = watched.page
    open_tab(watched, "Teach")
    page.wait_for_selector(".teachcell:nth-child(24) canvas")
    page.get_by_label("Name of the slider").fill("warm")
    for seed, word in ((1, "More"), (2, "More"), (4, "Less"), (5, "Less"), (6, "More"), (7, "Less")):
        page.get_by_label(f"{word} like picture {seed}", exact=True).click()
    page.wait_for_selector(".taught .axis")
    page.wait_for_selector(".teachcell.asked")
    page.wait_for_selector("text=3 more, 3 less")
    before = picture(watched)
    page.locator(".taught input[type=range]").press("End")
    assert differs(before, picture(watched))
    [move] = state(watched)["moves"]
    assert move["name"] == "warm"
    open_tab(watched, "Axes")
    assert slider(watched, "warm").is_visible()


@pytest.mark.parametrize(
    ("tab", "last"), [("Teach", ".teachcell:nth-child(24) canvas"), ("Gallery", ".thumb:nth-child(48) canvas")]
)
def test_thumbnails_follow_what_is_drawn(watched: Watched, tab: str, last: str) -> None:
    page = watched.page
    open_tab(watched, tab)
    page.wait_for_selector(last)
    before = page.evaluate(f"document.querySelector('{last}').toDataURL()")
    page.get_by_label("Truncation").press("Home")
    page.wait_for_timeout(300)
    page.wait_for_selector(last)
    assert page.evaluate(f"document.querySelector('{last}').toDataURL()") != before
    assert state(watched)["truncation"] == 0


def test_rename_flip_delete_save_and_load(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    slider(watched, "L3D3").press("End")
    page.get_by_role("button", name=called("L3D3"), exact=True).press("F2")
    field = page.get_by_label(f"New name of {called('L3D3')}")
    field.fill("hair <b>tone</b>")
    field.press("Enter")
    page.wait_for_selector("text=hair <b>tone</b>")
    [move] = state(watched)["moves"]
    assert move["name"] == "hair <b>tone</b>"
    shown = picture(watched)
    menu(watched, "More about hair <b>tone</b>", "Turn round")
    page.wait_for_timeout(400)
    assert state(watched)["moves"][0]["by"] == -move["by"]
    assert not differs(shown, picture(watched)), "turned round and moved the other way is the same picture"
    menu(watched, f"More about {called('L1D1')}", "Delete from the set")
    page.wait_for_selector("text=23 of 23")
    page.keyboard.press("Control+z")
    page.wait_for_selector("text=24 of 24")
    page.locator(".sets .chip").first.click()
    page.get_by_role("menuitem", name="Save under a name").click()
    page.get_by_label("Save the set under the name").last.fill("faces")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=saved as")
    page.locator(".sets .chip").first.click()
    with page.expect_download() as coming:
        page.get_by_role("menuitem", name="Download").click()
    coming.value.save_as(tmp_path / "faces.safetensors")
    page.locator("input[aria-label='File of directions']").set_input_files(tmp_path / "faces.safetensors")
    page.wait_for_selector("text=48 of 48")


def test_sliders_work_after_a_set_of_the_same_names_has_taken_their_place(two: Watched) -> None:
    watched, page = two, two.page

    def check(source: str) -> None:
        slider(watched, "L3D1").press("End")
        page.wait_for_timeout(300)
        [move] = state(watched)["moves"]
        assert move["directions"] == source
        assert float(slider(watched, "L3D1").input_value()) == move["by"], "the slider shows where the state has it"
        page.keyboard.press("0")

    page.get_by_label("Generator", exact=True).select_option("again")
    page.wait_for_timeout(800)
    assert state(watched)["generator"] == "again"
    check("eigen")
    page.on("dialog", lambda question: question.accept())
    for _ in range(2):
        page.locator(".sets .chip").first.click()
        page.get_by_role("menuitem", name="Save under a name").click()
        page.get_by_label("Save the set under the name").last.fill("faces")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=saved as")
        page.wait_for_timeout(500)
        check(state(watched)["sets"][0])
    assert not watched.strangers


def test_names_that_come_late_are_kept_and_one_set_is_named_at_a_time(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    two = METHODS["eigen"](measured=False).fit(load_generator("toonfaces"))[:2].renamed(["one", "two"])
    page.locator("input[aria-label='File of directions']").set_input_files(two.save(tmp_path / "two.safetensors"))
    page.wait_for_selector("text=26 of 26")

    def suggest() -> None:
        page.locator(".sets .chip").nth(1).click()
        page.get_by_role("menuitem", name="Suggest names from pixels").click()

    page.route("**/api/jobs/*", lambda route: None)  # the page hears nothing of its job
    suggest()
    page.wait_for_selector(".job:visible")
    suggest()
    page.wait_for_selector("text=A set is being measured or named already")
    before = state(watched)["sets"]
    menu(watched, "More about two", "Turn round")
    page.wait_for_timeout(600)
    turned = state(watched)["sets"]
    assert turned[0] == before[0]
    assert turned[1] != before[1]
    page.unroute("**/api/jobs/*")  # lets go of those that are held
    page.wait_for_selector("text=28 of 28", timeout=60_000)
    assert state(watched)["sets"][:2] == turned


def test_pins_search_layers_and_coordinates(watched: Watched) -> None:
    page = watched.page
    menu(watched, f"More about {called('L4D4')}", "Pin to the top")
    assert page.locator(".group").first.get_attribute("aria-label") == "pinned"
    page.get_by_label("Search directions").fill("layer2")
    page.wait_for_selector("text=6 of 24")
    page.get_by_label("Search directions").fill("")
    page.wait_for_selector("text=24 of 24")
    menu(watched, f"More about {called('L4D1')}", "Move to a coordinate")
    page.wait_for_selector(".axis .tag:has-text('to')")
    assert "to" in state(watched)["moves"][0]
    page.get_by_role("button", name=f"More about {called('L4D1')}").click()
    page.get_by_label("Layers", exact=True).fill("4")
    page.get_by_label("Layers", exact=True).press("Enter")
    page.keyboard.press("Escape")
    assert state(watched)["moves"][0]["layers"] == "4"
    page.get_by_role("button", name="Changed", exact=True).click()
    page.wait_for_selector("text=1 of 24")
    page.get_by_role("button", name="Reset all").click()
    assert state(watched)["moves"] == []


def test_hold_what_a_reader_sees(watched: Watched) -> None:
    page = watched.page
    slider(watched, "L4D1").press("End")
    free = picture(watched)
    page.get_by_role("button", name="Hold", exact=True).click()
    page.get_by_role("menuitemcheckbox", name="brightness").click()
    page.keyboard.press("Escape")
    page.wait_for_timeout(900)
    assert state(watched)["keep"] == ["pixels:brightness"]
    assert differs(free, picture(watched))
    page.get_by_label("Let go of pixels:brightness").click()
    assert state(watched)["keep"] == []


def test_discover_compare_and_a_box(watched: Watched) -> None:
    page = watched.page
    open_tab(watched, "Discover")
    page.get_by_label("Method", exact=True).select_option("sefa")
    page.get_by_label("n directions").fill("3")
    page.locator("label:has-text('Measure') select").select_option("none")
    page.get_by_role("button", name="Find directions").click()
    page.wait_for_selector("text=27 of 27")
    open_tab(watched, "Discover")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_selector(".matrix .cell.matched")
    page.locator(".matrix .cell.matched").first.click()
    page.wait_for_selector(".pairs img")
    page.get_by_role("button", name="Draw a box").click()
    box = page.locator("#stage canvas").bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.9 * box["height"], steps=3)
    page.mouse.up()
    assert page.locator(".outline").is_visible()
    page.wait_for_selector("text=33 of 33", timeout=90_000)  # a Jacobian, on a machine that other tests share
    assert slider(watched, "box-0").is_visible()


def test_breed(watched: Watched) -> None:
    page = watched.page
    open_tab(watched, "Breed")
    page.get_by_role("button", name="This picture is A").click()
    page.keyboard.press("n")
    page.get_by_role("button", name="This picture is B").click()
    page.get_by_role("button", name="Breed", exact=True).click()
    page.get_by_role("button", name="Child 8").wait_for()
    page.get_by_role("button", name="Child 2").click()
    assert state(watched)["index"] == 1
    page.wait_for_selector(".generation .thumb:nth-child(2) canvas")
    page.get_by_role("button", name="Child 7").click()
    for title in ("4 pictures at once", "9 pictures at once"):
        assert page.get_by_title(title).count() == 0
    page.wait_for_timeout(300)
    for _ in range(3):
        page.keyboard.press("n")
    assert state(watched)["index"] == 7, "there is no ninth child"
    page.wait_for_selector(".generation .thumb:nth-child(2) canvas")
    page.get_by_label("Go to this forebear").nth(1).click()
    assert (state(watched)["file"], state(watched)["seed"]) == (None, 2)
    for seed in (2, 3):
        page.wait_for_selector(f"text=It was drawn: seed {seed}.")
        page.keyboard.press("n")


def test_a_photo_is_projected_and_edited(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    open_tab(watched, "Export")
    with page.expect_download() as coming:
        page.get_by_role("button", name="PNG", exact=True).click()
    coming.value.save_as(tmp_path / "me.png")
    open_tab(watched, "Photo")
    page.get_by_label("Steps").fill("8")
    page.locator("#photofile").set_input_files(tmp_path / "me.png")
    page.get_by_role("button", name="Edit it").click()
    assert "me" in state(watched)["file"]
    kept = state(watched)
    page.get_by_role("radio", name="4", exact=True).click(force=True)
    page.keyboard.press("n")
    assert state(watched) == kept, "there is one photo"
    before = picture(watched)
    slider(watched, "L4D2").press("End")
    assert differs(before, picture(watched))


def test_every_export(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    slider(watched, "L4D2").press("End")
    open_tab(watched, "Export")
    page.get_by_label("Pictures in the strip").fill("3")
    for name, start in (
        ("Strip", b"\x89PNG"),
        ("GIF", b"GIF8"),
        ("WebP", b"RIFF"),
        ("MP4", b"\0\0\0"),
        ("Edit (JSON)", b"{"),
    ):
        with page.expect_download() as coming:
            page.get_by_role("button", name=name, exact=True).click()
        coming.value.save_as(tmp_path / "file")
        assert (tmp_path / "file").read_bytes().startswith(start), name
    wanted = json.loads((tmp_path / "file").read_text("utf-8"))
    page.keyboard.press("0")
    assert state(watched)["moves"] == []
    (tmp_path / "edit.json").write_text(json.dumps(wanted), "utf-8")
    page.locator("input[aria-label='Edit to open']").set_input_files(tmp_path / "edit.json")
    page.wait_for_timeout(300)
    assert state(watched)["moves"] == wanted["moves"]


def test_edits_are_opened_whole_or_refused(two: Watched, tmp_path: Path) -> None:
    watched, page = two, two.page
    open_tab(watched, "Export")
    page.wait_for_selector("code:has-text('eigenlens')")

    def open_edit(**edit: Any) -> None:
        (tmp_path / "edit.json").write_text(json.dumps({"version": 1} | edit), "utf-8")
        page.locator("input[aria-label='Edit to open']").set_input_files(tmp_path / "edit.json")
        page.wait_for_timeout(800)

    first = state(watched)
    move = {"directions": "eigen", "name": called("L3D1"), "by": 1.0}
    for bound in ({"until": "pixels:brightness>0.5"}, {"codes": {"space": "z"}}):
        open_edit(generator="toonfaces", moves=[move], **bound)
        assert "which the studio cannot show" in page.locator("#notices").inner_text()
        assert state(watched) == first
        page.locator("#notices button").click()
    open_edit(generator="toonfaces")
    assert (state(watched)["seed"], state(watched)["truncation"], state(watched)["moves"]) == (0, 1, [])
    open_edit(generator="again", codes={"seed": 5}, moves=[move])
    assert (state(watched)["generator"], state(watched)["seed"]) == ("again", 5)
    assert page.get_by_label("Generator", exact=True).input_value() == "again"
    open_tab(watched, "Axes")
    assert float(slider(watched, "L3D1").input_value()) == 1
    watched.check_clean()


def test_snapshots(watched: Watched) -> None:
    page = watched.page
    slider(watched, "L4D2").press("End")
    kept = state(watched)
    page.keyboard.press("s")
    page.keyboard.press("0")
    open_tab(watched, "Gallery")
    page.get_by_role("button", name="Snapshot 1", exact=True).click()
    assert state(watched) == kept
    page.get_by_role("button", name="Forget snapshot 1").click()
    assert page.locator(".snapshot").count() == 0


def test_the_page_outlives_its_server(open_page: Open, tmp_path: Path) -> None:
    studio = make_studio(tmp_path / "work", {"toonfaces": load_generator("toonfaces")})
    with served(studio) as url:
        watched = open_page(url)
        page = watched.page
        page.wait_for_selector("html[data-ready] canvas[data-frame]")
        slider(watched, "L3D2").press("End")
        shown, kept = picture(watched), state(watched)
    page.wait_for_selector("text=the server is away")
    slider(watched, "L3D2").press("Home")
    with served(studio, port=int(url.rsplit(":", 1)[1])):
        page.wait_for_selector("#status:empty", state="attached")
        page.wait_for_timeout(300)
        assert differs(shown, picture(watched)), "what was asked while it was away is shown"
        page.keyboard.press("Control+z")
        assert state(watched) == kept
        assert not differs(shown, picture(watched))
    assert not watched.strangers
