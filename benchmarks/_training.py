"""Trainings inside benchmarks: one that was asked to stop ends the command, since it would pass for a whole one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def trained_kimg(run: Path) -> float:
    """Return for how many thousands of images the network of a run was trained; 0 where there is none."""
    config = run / "last" / "config.json"
    return float(json.loads(config.read_text("utf-8"))["training"]["kimg"]) if config.exists() else 0.0


def train_whole(train: Callable[..., Path], config: Any, *, data: str | Path, run: Path, threads: int | None) -> None:
    """Train by the `train` of a family of networks, to the end.

    Raises:
        SystemExit: where Ctrl-C or SIGTERM stopped it, once its state is saved.
    """
    train(config, data=data, run=run, threads=threads)
    end_if_stopped(trained_kimg(run), config.kimg)


def end_if_stopped(done: float, asked: float) -> None:
    """End the command where a training returned before its end.

    Args:
        done: thousands of images that it was trained with.
        asked: thousands of images that it should have been trained with.

    Raises:
        SystemExit: with a line for stderr and exit code 1.
    """
    if done < asked - 1e-6:
        raise SystemExit(f"the training was stopped at {done:.4g} of {asked:.4g} kimg; the same command goes on")
