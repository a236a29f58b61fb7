"""A real browser for tests: Chromium without a screen, and pages that remember what went wrong and what they asked for.

A test marked `browser` takes the fixture `open_page`:

    @pytest.mark.browser
    def test_page(open_page, tmp_path):
        watched = open_page((tmp_path / "page.html").as_uri(), width=390, dark=True)
        watched.page.get_by_role("slider").first.press("ArrowRight")
        watched.check_clean()
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--no-sandbox",  # a container's root has no sandbox
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--mute-audio",
)


def executable() -> str | None:
    """Return the browser that is installed here: `EIGENLENS_CHROMIUM`, or the first of `NAMES` on the path."""
    return os.environ.get("EIGENLENS_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Watched:
    """An open page and what was seen of it."""

    page: Any
    """Playwright's page."""
    errors: list[str] = field(default_factory=list)
    """Errors on the console and exceptions that nothing caught."""
    strangers: list[str] = field(default_factory=list)
    """Requests and sockets to anywhere but the page's own origin."""

    def check_clean(self) -> None:
        """Fail where there was an error, or a request left the page's own origin."""
        assert not self.errors, self.errors
        assert not self.strangers, self.strangers

    def overflow(self) -> int:
        """Return how many pixels the page is wider than its window; 0 where it fits."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@pytest.fixture(scope="module")  # a session's would leave an event loop in the way of tests that run their own
def chromium() -> Iterator[Any]:
    """Start Chromium, or skip."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser tests here")
    path = executable()
    if path is None:
        pytest.skip("no chromium on the path (apt-get install chromium): no browser tests here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Watched]]:
    """Give a function that opens a page: `open_page(url, width=1280, height=900, dark=False, **context)`."""
    contexts = []

    def open_(url: str, *, width: int = 1280, height: int = 900, dark: bool = False, **about: Any) -> Watched:
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **about
        )
        contexts.append(context)
        watched = Watched(context.new_page())
        page = watched.page
        page.set_default_timeout(30_000)
        page.on("console", lambda said: watched.errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: watched.errors.append(str(error)))
        note = lambda sent: None if _is_own(sent.url, url) else watched.strangers.append(sent.url)  # noqa: E731
        context.on("request", note)
        page.on("websocket", note)
        page.goto(url)
        return watched

    yield open_
    for context in contexts:
        context.close()


def _is_own(target: str, page: str) -> bool:
    there, here = urlsplit(target), urlsplit(page)
    if there.scheme in ("data", "blob"):
        return True
    if here.scheme == "file":
        return target.split("#")[0] == page.split("#")[0]
    same_kind = there.scheme.replace("ws", "http") == here.scheme.replace("ws", "http")
    return same_kind and there.netloc == here.netloc
