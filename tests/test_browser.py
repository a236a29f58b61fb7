"""The browser that other tests look through sees what it must see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from browser import Watched, _is_own

PAGE = """<!doctype html><html><head><link rel="icon" href="data:,"><style>{style}</style></head><body><p>here</p>
<script>{script}</script></body></html>"""


def page(folder: Path, *, script: str = "", style: str = "") -> str:
    """Write a page and return its address."""
    path = folder / "page.html"
    path.write_text(PAGE.format(script=script, style=style), encoding="utf-8")
    return path.as_uri()


@pytest.mark.browser
def test_a_quiet_page_is_clean(open_page: Callable[..., Watched], tmp_path: Path) -> None:
    blob = "fetch(URL.createObjectURL(new Blob(['x']))); fetch('data:,y')"
    watched = open_page(page(tmp_path, script=blob, style="@media (prefers-color-scheme: dark) {p {color: red}}"))
    watched.check_clean()
    assert watched.overflow() == 0
    assert watched.page.evaluate("getComputedStyle(document.querySelector('p')).color") == "rgb(0, 0, 0)"
    dark = open_page(watched.page.url, width=390, dark=True)
    assert dark.page.evaluate("getComputedStyle(document.querySelector('p')).color") == "rgb(255, 0, 0)"
    assert dark.page.evaluate("innerWidth") == 390


@pytest.mark.browser
@pytest.mark.parametrize(
    ("script", "seen"),
    [
        ("console.error('lost')", "errors"),
        ("setTimeout(() => { throw new Error('thrown') })", "errors"),
        ("fetch('http://127.0.0.1:9/').catch(() => {})", "strangers"),
        ("try { new WebSocket('ws://127.0.0.1:9/') } catch {}", "strangers"),
    ],
)
def test_a_page_that_misbehaves_is_seen(
    script: str, seen: str, open_page: Callable[..., Watched], tmp_path: Path
) -> None:
    watched = open_page(page(tmp_path, script=script, style="p { width: 3000px }"))
    watched.page.wait_for_timeout(200)
    assert getattr(watched, seen)
    assert watched.overflow() > 0
    with pytest.raises(AssertionError):
        watched.check_clean()


def test_own_origin() -> None:
    home = "http://127.0.0.1:8000/"
    assert all(_is_own(url, home) for url in (home + "a?b", "ws://127.0.0.1:8000/live", "data:,x", "blob:null/1"))
    assert not any(_is_own(url, home) for url in ("http://127.0.0.1:8001/", "https://fonts.example/", "file:///etc"))
    assert _is_own("file:///tmp/page.html#seed", "file:///tmp/page.html")
    assert not _is_own("file:///tmp/other.js", "file:///tmp/page.html")
