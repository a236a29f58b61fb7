"""The explorer page: it carries everything, shows torch's pictures, and does in a browser what its buttons say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from browser import Watched
from eigenlens import images as pictures
from eigenlens.cli import main
from eigenlens.codes import Codes
from eigenlens.directions import Directions
from eigenlens.edit import Edit, apply
from eigenlens.encoder import Encoder, EncoderConfig, EncoderNetwork
from eigenlens.errors import UserError
from eigenlens.explorer import Explorer, export_explorer, make_explorer, script
from eigenlens.generator import Generator
from eigenlens.method import find_directions
from families import biggan

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")

NAME = 'pose & "grin" <1>'


@pytest.fixture(scope="module")
def g(tiny: Callable[[str], Generator]) -> Generator:
    return tiny("eigengan")


@pytest.fixture(scope="module")
def axes(g: Generator) -> Directions:
    found = find_directions("eigen", g, measured=False)
    k = len(found)
    effect = torch.ones(k)
    effect[-1] = 0.01
    limits = torch.tensor([[-4.0, 8.0]]).repeat(k, 1)
    return found.with_figures(effect=effect, limits=limits).renamed({"L1D2": NAME})


@pytest.fixture(scope="module")
def encoder(g: Generator) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = EncoderNetwork(EncoderConfig("z", 1, g.spaces["z"].dim, resolution=16, width=4))
    return Encoder(network, g)


@pytest.fixture(scope="module")
def explorer(g: Generator, axes: Directions, encoder: Encoder) -> Explorer:
    return make_explorer(
        g, axes, source="eigen", address="model", count=5, seed=2, encoder=encoder, title="A <b> title"
    )


@pytest.fixture(scope="module")
def page(explorer: Explorer, tmp_path_factory: pytest.TempPathFactory) -> str:
    return export_explorer(explorer, tmp_path_factory.mktemp("page") / "page.html").as_uri()


def test_the_page_carries_everything(explorer: Explorer) -> None:
    text = explorer.page()
    bare = re.sub(r"(<script[^>]*>).*?</script>", r"\1", text, flags=re.DOTALL)
    assert re.findall(r"""(?:src|href)=["']?([^"'> ]*)""", bare) == ["data:,"]
    assert "@import" not in text
    assert "sourceMappingURL" not in text
    assert set(explorer.parts) == {"runtime", "wasm", "model", "starts", "steps", "encoder"}
    assert "<title>A &lt;b&gt; title</title>" in text
    assert "</script" not in json.dumps(explorer.manifest["directions"])
    named = [each["name"] for each in explorer.manifest["directions"]]
    assert NAME in named
    groups = {each["group"] for each in explorer.manifest["directions"]}
    assert groups == {"layer1", "layer2"}
    assert [each["quiet"] for each in explorer.manifest["directions"]] == [False] * (len(named) - 1) + [True]


def test_the_network_is_that_of_the_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def export(generator: Generator, path: Path, **how: Any) -> None:
        asked.append(how)
        path.write_bytes(b"")

    monkeypatch.setattr("eigenlens.explorer.export_onnx", export)  # which test_export.py runs
    g = biggan(n_stats=5)
    vectors = torch.eye(g.spaces["z"].dim)[:1, None]
    make_explorer(g, Directions(vectors, "z", ("a",)), count=2, label=1, truncation=0.5)
    assert (asked[0]["truncation"], asked[0]["label"], asked[0]["space"]) == (0.5, 1, "z")


def test_the_script_is_one_module() -> None:
    assert not re.search(r"^(import|export) ", script(), flags=re.MULTILINE)


def test_what_is_no_page(explorer: Explorer, g: Generator, axes: Directions, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an explorer is a page"):
        export_explorer(explorer, tmp_path / "page.txt")
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export_explorer(explorer, tmp_path / "page.html")
    large = replace(explorer, parts={**explorer.parts, "model": bytes(20_000_000)})
    with pytest.raises(UserError, match="too large for a page"):
        export_explorer(large, tmp_path / "large.html")
    with pytest.raises(UserError, match="1 codes to start from"):
        make_explorer(g, axes, count=1)
    with pytest.raises(UserError, match="has no sliders"):
        make_explorer(g, axes[[]])


# --- in a browser -----------------------------------------------------------------------------------------------------


def opened(open_page: Callable[..., Watched], page: str, **about: object) -> Watched:
    watched = open_page(page, **about)
    watched.page.wait_for_selector("[data-starts=drawn]")
    return watched


def shown(watched: Watched) -> np.ndarray:
    """Return the picture on the page, once it stands still: [height, width, 3]."""
    read = """() => { const c = document.querySelector('[data-part=picture]');
        return [c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data] }"""
    before: list[int] = []
    for _ in range(50):
        watched.page.wait_for_timeout(60)
        now = watched.page.evaluate(read)
        if now == before:
            break
        before = now
    return np.array(before[1:], np.uint8).reshape(-1, before[0], 4)[..., :3]


def drawn(g: Generator, codes: Codes) -> np.ndarray:
    return pictures.to_uint8(g.render(codes))[0]


def is_near(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and int(np.abs(one.astype(int) - other.astype(int)).max()) <= 3  # float16 weights


def slider(watched: Watched, name: str):  # type: ignore[no-untyped-def]
    return watched.page.get_by_role("slider", name=name, exact=True)


@pytest.mark.browser
def test_it_shows_what_torch_shows(
    open_page: Callable[..., Watched], page: str, g: Generator, axes: Directions, tmp_path: Path
) -> None:
    watched = opened(open_page, page)
    start = g.sample(5, seed=2, truncation=0.7)
    assert is_near(shown(watched), drawn(g, start[0]))

    slider(watched, NAME).press("PageUp")  # five fortieths of the span of 12
    moved = axes.move(start[0], NAME, by=1.5)
    assert is_near(shown(watched), drawn(g, moved))
    assert not is_near(drawn(g, moved), drawn(g, start[0]))
    slider(watched, "L2D1").press("ArrowLeft")
    both = axes.move(moved, "L2D1", by=-0.3)
    assert is_near(shown(watched), drawn(g, both))

    watched.page.keyboard.press("Control+z")
    assert is_near(shown(watched), drawn(g, moved))
    watched.page.get_by_role("button", name="redo").click()
    assert is_near(shown(watched), drawn(g, both))
    watched.page.get_by_role("button", name="image 3", exact=True).click()  # the same move on another image
    assert is_near(shown(watched), drawn(g, both.with_latent(both.latent - start[0].latent + start[3].latent)))

    address = watched.page.url
    again = opened(open_page, address)
    assert is_near(shown(again), shown(watched))

    with watched.page.expect_download() as download:
        watched.page.get_by_role("button", name="PNG").click()
    saved = tmp_path / "saved.png"
    download.value.save_as(saved)
    recipe = pictures.read_recipe(saved)
    assert recipe is not None
    done = apply(Edit.from_json(recipe["edit"]), g, lambda _: axes)
    with Image.open(saved) as picture:
        factor = picture.width // g.resolution
        assert is_near(np.asarray(picture.convert("RGB"))[::factor, ::factor], drawn(g, done.after))

    watched.page.keyboard.press("r")
    assert is_near(shown(watched), drawn(g, start[3]))
    compare = watched.page.get_by_role("button", name="compare")
    slider(watched, "L1D1").press("PageDown")
    compare.focus()
    watched.page.keyboard.down(" ")
    assert is_near(shown(watched), drawn(g, start[3]))
    watched.page.keyboard.up(" ")
    assert is_near(shown(watched), drawn(g, axes.move(start[3], "L1D1", by=-1.5)))
    watched.check_clean()


@pytest.mark.browser
def test_the_edit_of_raw_directions_makes_the_picture_of_the_page(
    open_page: Callable[..., Watched], g: Generator, axes: Directions, tmp_path: Path
) -> None:
    raw = replace(axes.in_raw(), vectors=5 * axes.vectors)  # as published files tell strengths: in multiples of those
    path = export_explorer(make_explorer(g, raw, source="file", count=2), tmp_path / "page.html")
    watched = opened(open_page, path.as_uri())
    slider(watched, "L2D1").press("PageUp")
    with watched.page.expect_download() as download:
        watched.page.get_by_role("button", name="PNG").click()
    download.value.save_as(tmp_path / "saved.png")
    recipe = pictures.read_recipe(tmp_path / "saved.png")
    assert recipe is not None
    done = apply(Edit.from_json(recipe["edit"]), g, lambda _: raw)
    assert is_near(shown(watched), drawn(g, done.after))
    assert not is_near(drawn(g, done.before), drawn(g, done.after))
    watched.check_clean()


@pytest.mark.browser
def test_a_photo_is_inverted_in_the_page(
    open_page: Callable[..., Watched], page: str, g: Generator, encoder: Encoder, tmp_path: Path
) -> None:
    watched = opened(open_page, page)
    pixels = pictures.to_uint8(g.render(g.sample(1, seed=9)))[0]
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    watched.page.set_input_files("input[type=file]", tmp_path / "photo.png")
    watched.page.wait_for_selector("text=your photo")
    assert is_near(shown(watched), drawn(g, encoder(pictures.from_uint8(pixels)[None])))
    assert watched.page.get_by_role("button", name="command").is_disabled()  # its code is nowhere but in the page
    (tmp_path / "photo.txt").write_text("no picture")
    watched.page.set_input_files("input[type=file]", tmp_path / "photo.txt")
    watched.page.wait_for_selector("text=cannot be read as a picture")
    watched.check_clean()


@pytest.mark.browser
def test_a_photo_dropped_on_a_page_without_an_encoder_keeps_the_page(
    open_page: Callable[..., Watched], explorer: Explorer, tmp_path: Path
) -> None:
    bare = replace(explorer, manifest={**explorer.manifest, "encoder": None})
    watched = opened(open_page, export_explorer(bare, tmp_path / "page.html").as_uri())
    stopped = watched.page.evaluate("""() => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(4)], "photo.png", { type: "image/png" }));
        return ["dragover", "drop"].map((kind) => {
            const event = new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
            document.querySelector("[data-part=picture]").dispatchEvent(event);
            return event.defaultPrevented;
        });
    }""")
    assert stopped == [True, True]
    watched.page.wait_for_selector("text=this page takes no photos")
    watched.check_clean()


@pytest.mark.browser
def test_another_link_to_the_open_page_is_followed(open_page: Callable[..., Watched], page: str) -> None:
    watched = opened(open_page, f"{page}#image=2&L1D1=3")
    watched.page.evaluate("location.hash = '#image=1&L2D1=4'")
    watched.page.wait_for_selector("text=image 1")
    assert (slider(watched, "L1D1").input_value(), slider(watched, "L2D1").input_value()) == ("0", "4")
    watched.page.keyboard.press("Control+z")
    assert (slider(watched, "L1D1").input_value(), slider(watched, "L2D1").input_value()) == ("3", "0")
    watched.check_clean()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_it_fits_phone_and_desk(open_page: Callable[..., Watched], page: str, width: int, dark: bool) -> None:
    watched = opened(open_page, f"{page}#image=2&L1D1=3&nonsense=%E0%A4%A&L2D1=99", width=width, dark=dark)
    assert watched.overflow() == 0
    assert watched.page.evaluate("document.querySelector('h1').textContent") == "A <b> title"
    assert slider(watched, "L1D1").input_value() == "3"
    assert slider(watched, "L2D1").input_value() == "8"  # as far as the limits go
    paper = "getComputedStyle(document.querySelector('.explorer')).backgroundColor"
    before = watched.page.evaluate(paper)
    assert (sum(map(int, re.findall(r"\d+", before))) < 300) == dark
    watched.page.get_by_title("Light or dark").click()
    assert watched.page.evaluate(paper) != before
    box = watched.page.locator("[data-part=picture]").bounding_box()
    assert box is not None
    watched.page.mouse.wheel(0, 300)
    watched.page.wait_for_timeout(100)
    after = watched.page.locator("[data-part=picture]").bounding_box()
    assert after is not None
    assert after["y"] >= 0  # the picture stays in sight
    watched.check_clean()


def test_at_the_shell(g: Generator, axes: Directions, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, found = str(g.save(tmp_path / "model")), str(axes.save(tmp_path / "axes.safetensors"))
    out = tmp_path / "page.html"
    words = ["export", "explorer", model, "--directions", found, "--which", "L1D1,0", "--count", "3", "--out", str(out)]
    assert main(words) == 2  # the same axis twice
    words[words.index("L1D1,0")] = "L1D1,L2D1"
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 sliders, 3 codes to start from, takes no photos" in said
    assert out.stat().st_size < 25_000_000
