"""Draws that depend on (seed, number) alone, files that are whole or absent, words that explain themselves."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from eigenlens import UserError, runtime
from eigenlens.errors import unknown_name
from eigenlens.files import refuse_existing, write_json, write_text, written_beside
from eigenlens.registry import Registry


def test_rows_depend_on_seed_and_number_alone() -> None:
    whole = runtime.draw(3000, 5, seed=7, stream="a")
    assert np.array_equal(runtime.draw(2, 5, seed=7, stream="a", start=1023), whole[1023:1025])  # across a block
    assert not np.array_equal(runtime.draw(2, 5, seed=8, stream="a"), whole[:2])
    assert not np.array_equal(runtime.draw(2, 5, seed=7, stream="b"), whole[:2])
    assert not np.array_equal(whole[:1024], whole[1024:2048])
    assert abs(float(whole.mean())) < 0.05
    assert abs(float(whole.std()) - 1) < 0.05


def test_drawn_rows_are_the_callers_own() -> None:
    rows = runtime.draw(3, 4, seed=1, stream="a")
    rows += 1
    assert not np.array_equal(runtime.draw(3, 4, seed=1, stream="a"), rows)


def test_uniform_rows() -> None:
    rows = runtime.draw(5000, 2, seed=0, stream="u", law="uniform")
    assert rows.min() >= 0
    assert rows.max() < 1
    assert abs(float(rows.mean()) - 0.5) < 0.02


@pytest.mark.parametrize(
    ("told", "cores"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", None), (None, None)]
)
def test_cores_end_at_the_quota_of_the_container(tmp_path: Path, told: str | None, cores: int | None) -> None:
    if told is not None:
        (tmp_path / "cpu.max").write_text(told)
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert runtime.available_cores(tmp_path / "cpu.max") == (cores or bound)


def test_batches_cover_all() -> None:
    assert list(runtime.batches(7, 3)) == [(0, 3), (3, 6), (6, 7)]
    assert list(runtime.batches(0, 3)) == []


@pytest.mark.parametrize("call", [
    lambda: runtime.draw(1, 1, seed=-1, stream="a"),
    lambda: runtime.draw(-1, 1, seed=0, stream="a"),
    lambda: runtime.resolve_device("abacus"),
    lambda: runtime.resolve_precision("fp8", torch.device("cpu")),  # type: ignore[arg-type]
    lambda: runtime.set_threads(0),
])  # fmt: skip
def test_mistakes_are_told(call) -> None:
    with pytest.raises(UserError):
        call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_told() -> None:
    with pytest.raises(UserError, match="--device cpu"):
        runtime.resolve_device("cuda")
    assert runtime.resolve_device("auto").type == "cpu"


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError), written_beside(tmp_path / "a.txt") as beside:
        beside.write_text("half \ud800", encoding="utf-8")
    assert list(tmp_path.iterdir()) == []
    write_text(tmp_path / "a.txt", "first")
    with pytest.raises(UserError, match="exists already"):
        write_text(tmp_path / "a.txt", "second")
    assert (tmp_path / "a.txt").read_text() == "first"
    write_text(tmp_path / "a.txt", "second", force=True)
    assert (tmp_path / "a.txt").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"σ": 1})
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "")
    with pytest.raises(UserError, match="is not a folder"):
        write_text(tmp_path / "a" / "b.txt", "")
    assert refuse_existing(tmp_path / "c") == tmp_path / "c"


def test_near_misses_are_named() -> None:
    table = Registry("method", {"sefa": "math:sqrt", "ganspace": "math:sqrt"})
    with pytest.raises(UserError, match=r"unknown method 'sefaa'. Did you mean 'sefa'\? Known: ganspace, sefa"):
        table["sefaa"]
    assert "sefaa" not in table
    assert list(table) == ["sefa", "ganspace"]
    assert "Did you mean" not in str(unknown_name("thing", "zzz", ["abc"]))
