"""What README.md, the docs and the docstrings print runs as printed."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest

import eigenlens
from eigenlens.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
PACKAGE = Path(eigenlens.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TAKES_LONG = ("demo", "train", "export")
"""Commands that have tests of their own."""


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def shell_lines(page: Path) -> list[list[str]]:
    """Return the eigenlens commands of a page, as words."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("eigenlens ")]


def test_the_two_commands_stand_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert "pip install -c constraints.txt '.[studio]' && eigenlens demo" in text
    assert "pip install -c constraints.txt -e '.[dev]' && pytest" in text


def test_readme_commands_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [words[1:] for words in shell_lines(ROOT / "README.md") if words[1] not in TAKES_LONG]
    assert len(lines) >= 8
    for words in lines:
        assert main(words) == 0, f"{shlex.join(words)}: {capsys.readouterr().err}"
    assert (tmp_path / "strip.png").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_commands_and_options_that_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in shell_lines(page):
        assert words[1] in COMMANDS, shlex.join(words)
        chosen = [f"{words[i]}={words[i + 1]}" for i in range(len(words) - 1) if words[i] in ("--method", "--preset")]
        assert main([words[1], *chosen, "--help"]) == 0
        known = capsys.readouterr().out
        for word in words[2:]:
            if word.startswith("--"):
                assert word.split("=")[0] in known, shlex.join(words)


def test_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "README.md", "python"):
        exec(compile(block, "README.md", "exec"), {})  # our own page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_docstring_examples_run(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] in ("__main__", "__init__"):
        return
    module = importlib.import_module(".".join(("eigenlens", *parts)))
    results = doctest.testmod(
        module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL | doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert results.failed == 0
