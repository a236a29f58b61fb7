"""How much memory an MP4 of 1024 px needs, by its length: `python -m benchmarks.film`.

    python -m benchmarks.film [--frames 100 600] [--out benchmarks/results/film.json]

Each film is written by a process of its own, from frames that are made as it asks for them; the process's peak of
resident memory and its CPU time count. Forward and back, frames wait in a temporary file for the way back.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "film.json"
SIDE = 1024


def frames(n: int) -> Iterator[np.ndarray]:
    """Yield pictures [SIDE, SIDE, 3] of a pattern that moves."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    waves = 127 + 60 * np.sin(rows / 23) * np.cos(columns / 31) + 60 * np.sin((rows + columns) / 97)
    picture = np.stack([waves, waves.T, 255 - waves], axis=-1).astype(np.uint8)
    for shift in range(n):
        yield np.roll(picture, 4 * shift, axis=1)


def measured(n: int, pingpong: bool, answer: Any) -> None:
    """Write a film of `n` frames, and answer with what it cost."""
    from eigenlens.images import save_animation

    with tempfile.TemporaryDirectory() as folder:
        begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        path = save_animation(frames(n), Path(folder) / "film.mp4", fps=24, pingpong=pingpong)
        seconds, size = time.process_time() - begun, path.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shown = 2 * n - 2 if pingpong else n
    answer.put(
        {
            "frames": shown, "pingpong": pingpong, "peak_mb": round(peak / 1024), "imports_mb": round(before / 1024),
            "film_mb": round(size / 1e6, 1), "cpu_seconds": round(seconds, 1),
        }
    )  # fmt: skip


def main() -> None:
    """Write the films one after the other, and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 600])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    context, rows = multiprocessing.get_context("spawn"), []
    for n, pingpong in [*((n, False) for n in args.frames), (min(args.frames), True)]:
        answer = context.Queue()
        process = context.Process(target=measured, args=(n, pingpong, answer))
        process.start()
        rows.append(answer.get())
        process.join()
        print(json.dumps(rows[-1]))
    about = {"command": "python -m benchmarks.film", "side": SIDE, "machine": platform.machine()}
    args.out.write_text(json.dumps({**about, "films": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
