"""What all tests share: quiet threads, and the small generators that the contracts run on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from browser import chromium, open_page  # noqa: F401  fixtures
from eigenlens.generator import Generator
from families import TINY

torch.set_num_threads(1)  # pytest runs one process a core; more threads than cores spin on each other


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Generator]:
    """Give a small generator of a family, random weights of seed 0, made once."""
    made: dict[str, Generator] = {}

    def get(family: str) -> Generator:
        if family not in made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                made[family] = TINY[family]()
        return made[family]

    return get


@pytest.fixture
def eigengan(tiny: Callable[[str], Generator]) -> Generator:
    """Give the small EigenGAN."""
    return tiny("eigengan")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Give the folder of reference files (goldens, published directions), or skip."""
    folder = os.environ.get("EIGENLENS_REFERENCE")
    if not folder:
        pytest.skip("EIGENLENS_REFERENCE is not set: no reference files here")
    return Path(folder)
