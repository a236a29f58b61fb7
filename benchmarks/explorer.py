"""How large the explorer page of the bundled generator is, and how fast in headless Chromium.

    python -m benchmarks.explorer [--out benchmarks/results/explorer.json]

The page is what `eigenlens export explorer toonfaces` writes: all axes, 64 codes, and the encoder for photos. A slider
of the page, opened from disk, gets an input event every 4 ms for four seconds; frames that were rendered and painted
are counted. Five rounds; the median and the best are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

SECONDS, ROUNDS = 4.0, 5

DRAG = """async ([k, seconds]) => {
  const slider = document.querySelector(`input[data-k="${k}"]`), root = document.querySelector(".explorer");
  const [low, high] = [Number(slider.min), Number(slider.max)];
  const first = Number(root.dataset.frames), began = performance.now(), times = [];
  let last = first;
  for (let i = 0; performance.now() - began < 1000 * seconds; i++) {
    slider.value = (low + high) / 2 + ((high - low) / 4) * Math.sin(i / 20);
    slider.dispatchEvent(new Event("input"));
    await new Promise((resolve) => setTimeout(resolve, 4));
    if (Number(root.dataset.frames) === last) continue;
    last = Number(root.dataset.frames);
    times.push(Number(root.dataset.milliseconds));
  }
  return [(last - first) / ((performance.now() - began) / 1000), times];
}"""


def main() -> None:
    """Make the page, drag a slider, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/explorer.json"))
    arguments = parser.parse_args()

    from playwright.sync_api import sync_playwright

    from browser import FLAGS, executable
    from eigenlens import load_generator
    from eigenlens.encoder import Encoder, find_encoder
    from eigenlens.explorer import LARGEST, export_explorer, make_explorer
    from eigenlens.method import find_directions

    generator = load_generator("toonfaces")
    axes = find_directions("eigen", generator)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        reader = find_encoder(generator)
        made = make_explorer(
            generator, axes, source="eigen", encoder=Encoder.load(reader, generator) if reader else None
        )
        page = export_explorer(made, Path(folder) / "page.html")
        browser = driver.chromium.launch(executable_path=executable(), args=list(FLAGS))
        tab = browser.new_page()
        began = time.monotonic()
        tab.goto(page.as_uri())
        tab.wait_for_selector("[data-frames]")
        ready = time.monotonic() - began
        tab.wait_for_selector("[data-starts=drawn]", timeout=120_000)
        strongest = int(axes.effect.argmax())
        rounds = [tab.evaluate(DRAG, [strongest, SECONDS]) for _ in range(ROUNDS)]
        version = browser.version
        browser.close()
        size = page.stat().st_size
    rates = [rate for rate, _ in rounds]
    times = [each for _, some in rounds for each in some]
    result = {
        "command": "python -m benchmarks.explorer",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Chromium {version}",
        "load": round(os.getloadavg()[0], 1),
        "page_bytes": size,
        "page_bytes_allowed": LARGEST,
        "takes_photos": reader is not None,
        "seconds_to_first_picture": round(ready, 2),
        "frames_per_second": {"median": round(statistics.median(rates), 1), "best": round(max(rates), 1)},
        "milliseconds_a_picture": {"median": round(statistics.median(times), 1), "best": round(min(times), 1)},
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
