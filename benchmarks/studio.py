"""How fast the studio answers: an input event to the painted picture, frames while dragging, the page after its server.

    python -m benchmarks studio [--rounds 5] [--out benchmarks/results/studio.json]

A server is started as `eigenlens studio` starts it, and headless Chromium opens its page. A round sets one slider of
the bundled generator 60 times, one event after the picture of the one before (the first five warm up), then drags for
four seconds with an event every 16 ms. Latency runs from the event to the first animation frame after the picture was
drawn on the canvas; a frame counts as distinct where its request differs. The page is ready when its first picture
stands, counted from the start of the navigation. A random StyleGAN2 of 256 px stands for late layers: its slider moves
layers 11 and later. The best of the rounds is printed, with the median of all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import machine

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import FLAGS, executable  # noqa: E402  the tests' browser

EVENTS, WARM_UP, DRAG_S = 60, 5, 4.0

STEADY = """async ({ name, events, values }) => {
  const slider = document.querySelector(`input[type=range][aria-label^="${name}"]`);
  const { stage, frames } = window.studio;
  const failed = new Promise((_, stop) => frames.addEventListener("failed", ({ detail }) => stop(detail.error)));
  const once = { once: true };
  const drawn = () => new Promise((done) => stage.addEventListener("painted", () => done(performance.now()), once));
  const frame = () => new Promise((done) => requestAnimationFrame(() => done(performance.now())));
  const times = [];
  for (let k = 0; k < events; k++) {
    await new Promise((done) => setTimeout(done, 12 + (k * 7) % 17));  // anywhere within a frame of the screen
    const began = performance.now();
    slider.value = values[k % values.length] + 0.001 * k;
    const coming = drawn();
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    const at = await Promise.race([coming, failed]);
    times.push([at - began, (await frame()) - began]);
  }
  slider.dispatchEvent(new Event("change", { bubbles: true }));
  return times;
}"""

DRAG = """async ({ name, seconds, low, high }) => {
  const slider = document.querySelector(`input[type=range][aria-label^="${name}"]`);
  const { stage } = window.studio;
  const seen = new Set();
  const note = (event) => seen.add(JSON.stringify(event.detail.request.edit.moves));
  stage.addEventListener("painted", note);
  const began = performance.now();
  let k = 0;
  while (performance.now() - began < 1000 * seconds) {
    slider.value = low + (high - low) * (0.5 + 0.5 * Math.sin(0.07 * k++)) + 1e-3 * (k % 9);
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await new Promise((done) => setTimeout(done, 16));
  }
  const spent = (performance.now() - began) / 1000;
  stage.removeEventListener("painted", note);
  slider.dispatchEvent(new Event("change", { bubbles: true }));
  return seen.size / spent;
}"""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "studio.json")
    parser.add_argument("--quick", action="store_true", help="leave the StyleGAN2 out")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources = ["toonfaces"]
        if not asked.quick:
            sources.append(str(random_stylegan2(Path(folder) / "stylegan2-256")))
        with served(sources, Path(folder)) as url, browser() as chromium:
            rounds = [one_round(chromium, url, sources) for _ in range(asked.rounds)]
    result = {
        "machine": machine(),
        "rounds": rounds,
        "best": best(rounds),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=2) + "\n")
    for name, value in result["best"].items():
        middle = statistics.median(each[name] for each in rounds)
        print(f"{name:<28} {value:8.1f}   median of {len(rounds)} rounds {middle:8.1f}")
    print(asked.out)


def best(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the best of each figure: the most frames a second, the least of all others."""
    return {name: (max if "fps" in name else min)(each[name] for each in rounds) for name in rounds[0]}


def one_round(chromium: Any, url: str, sources: list[str]) -> dict[str, float]:
    """Measure everything once, each generator on a page of its own."""
    page = chromium.new_page(viewport={"width": 1280, "height": 820})
    page.goto(url)
    page.wait_for_selector("html[data-ready] canvas[data-frame]")
    found = {"page_ready_ms": page.evaluate("performance.getEntriesByName('first picture')[0].startTime")}
    found |= latency(page, "toonfaces", "L3D4", [-2.0, -1.0, 1.0, 2.0])
    found["toonfaces_drag_fps"] = page.evaluate(DRAG, {"name": "L3D4", "seconds": DRAG_S, "low": -3, "high": 3})
    if len(sources) > 1:
        page.get_by_label("Generator").select_option(sources[1])
        page.wait_for_selector("input[type=range][aria-label='sefa-0']")
        page.wait_for_timeout(1500)
        late_layers(page)
        found |= latency(page, "stylegan2_late", "sefa-0", [-2.0, -1.0, 1.0, 2.0])
    page.close()
    return found


def late_layers(page: Any) -> None:
    """Bring the first slider to layers 11 and later."""
    page.get_by_role("button", name="More about sefa-0", exact=True).click()
    page.get_by_label("Layers", exact=True).fill("11-")
    page.get_by_label("Layers", exact=True).press("Enter")
    page.keyboard.press("Escape")
    page.wait_for_timeout(1000)


def latency(page: Any, what: str, name: str, values: list[float]) -> dict[str, float]:
    """Return median and 95 % quantile of the time from an event to its picture."""
    times = page.evaluate(STEADY, {"name": name, "events": EVENTS, "values": values})[WARM_UP:]
    shown = sorted(each[1] for each in times)
    return {
        f"{what}_drawn_median_ms": statistics.median(each[0] for each in times),
        f"{what}_median_ms": statistics.median(shown),
        f"{what}_p95_ms": shown[int(0.95 * (len(shown) - 1))],
    }


def random_stylegan2(folder: Path) -> Path:
    """Write a StyleGAN2 of 256 px with random weights, of the size of a published one."""
    from eigenlens.generators.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Network

    torch.manual_seed(0)
    widths = (512, 512, 512, 512, 256, 128, 64)  # 4 to 256 px: channel_base 16384
    network = StyleGAN2Network(StyleGAN2Config(widths, (512,) * 8, z_dim=512))
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith((".weight", ".const")):
                tensor.normal_(std=1.0 if name.endswith("const") else tensor[0].numel() ** -0.5)
            else:
                tensor.fill_(1.0 if name.endswith("affine.bias") else 0.0)
    return StyleGAN2(network, name="stylegan2-256").save(folder)


@contextlib.contextmanager
def served(sources: list[str], folder: Path) -> Iterator[str]:
    """Start the studio as its command does, and give its address."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    words = [sys.executable, "-m", "eigenlens", "studio", *sources, "--port", "0", "--no-browser"]
    words += ["--workspace", str(folder / "workspace")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found is not None
        yield found.group()
        server.terminate()


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Start Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable(), args=list(FLAGS))
        yield chromium
        chromium.close()


if __name__ == "__main__":
    main()
