"""The house stands: imports point one way, the light doors stay light, names resolve, public things are documented."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import eigenlens
from eigenlens.cli import COMMANDS, SUMMARIES, help_text
from eigenlens.generator import GENERATORS
from eigenlens.method import METHODS
from eigenlens.metric import METRICS
from eigenlens.reader import READERS
from eigenlens.registry import Registry

PACKAGE = Path(eigenlens.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

RANKS = {
    0: ("distance", "errors", "files", "frozen", "images", "inference", "page", "registry", "repository", "runtime"),
    1: ("checkpoint", "codes", "curves", "passes", "photo", "tuning", "unpickle"),
    2: ("directions", "generator"),
    3: (
        "algebra", "course", "edit", "effect", "encoder", "exchange", "film", "method", "mixture", "metric", "move",
        "profile", "reader", "reconstructor", "sheet", "teach",
    ),
    4: ("generators", "methods", "metrics", "readers"),
    5: (
        "anatomy", "anatomy_page", "compare", "explorer", "export", "graft", "grid", "hub", "naming", "presets",
        "preview", "project", "recipe", "report", "saliency", "study", "training", "verdict", "widget",
    ),
    6: ("__main__", "cli", "commands", "demo", "studio"),
}  # fmt: skip
RANK = {name: rank for rank, names in RANKS.items() for name in names}
SHARED_IN_FOLDER = {
    "generators": ("ops",),
    "methods": ("learning", "linalg"),
    "metrics": ("features",),
    "readers": ("graphs", "packages"),
}
"""The files of a folder of leaves that its other files may import: methods compute in closed form, or learn;
readers find weights in packages, or in graphs."""
SAME_RANK = {
    ("checkpoint", "unpickle"), ("sheet", "effect"), ("film", "effect"), ("explorer", "export"),
    ("edit", "course"), ("edit", "move"), ("course", "move"), ("course", "reader"), ("widget", "explorer"),
    ("method", "exchange"), ("files", "errors"),
    ("images", "errors"), ("images", "files"), ("registry", "errors"), ("runtime", "errors"),
    ("inference", "errors"), ("inference", "runtime"), ("repository", "errors"),
    ("profile", "effect"), ("profile", "reader"),
    ("anatomy_page", "anatomy"), ("graft", "training"), ("compare", "grid"), ("verdict", "compare"),
    ("verdict", "grid"), ("report", "compare"), ("report", "grid"), ("report", "verdict"), ("report", "naming"),
    ("training", "saliency"),
}  # fmt: skip
"""(importer, imported) that stand side by side: a concept and the file split off from it."""


def name_of(path: Path) -> tuple[str, ...]:
    return path.relative_to(PACKAGE).with_suffix("").parts


def imported(path: Path) -> list[tuple[str, ...]]:
    """Return the modules of the package that a file imports at run time, as paths from its root."""
    here = name_of(path)
    found = []
    tree = ast.parse(path.read_text("utf-8"))
    typing_lines = {
        line
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for line in range(block.lineno, (block.end_lineno or block.lineno) + 1)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.lineno in typing_lines:
            continue
        if node.level:
            base = here[: len(here) - node.level]
            module = (*base, *((node.module or "").split(".") if node.module else ()))
        elif (node.module or "").split(".")[0] == "eigenlens":
            module = tuple((node.module or "").split(".")[1:])
        else:
            continue
        whole = PACKAGE.joinpath(*module)
        if whole.is_dir():
            found += [(*module, alias.name) for alias in node.names if (whole / f"{alias.name}.py").exists()]
            if not module:
                continue
        if not whole.is_dir():
            found.append(module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: "/".join(name_of(path)))
def test_imports_point_to_lower_ranks(path: Path) -> None:
    here = name_of(path)
    if here == ("__init__",):
        return
    assert here[0] in RANK, f"give {here[0]} a rank"
    for target in imported(path):
        mine, theirs = RANK[here[0]], RANK[target[0]]
        if mine == 4 and here[0] == target[0]:
            shared = SHARED_IN_FOLDER.get(here[0], ())
            assert target[1] in shared, f"{'/'.join(here)} imports its sibling {target[1]}; only {shared} are shared"
        elif here[0] == target[0] or (here[0], target[0]) in SAME_RANK or mine == 6:
            continue
        else:
            assert theirs < mine, f"{'/'.join(here)} (rank {mine}) imports {'/'.join(target)} (rank {theirs})"


def test_the_page_of_the_house_shows_the_ranks() -> None:
    page = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text("utf-8")
    drawn = page.split("## Who may import whom")[1].split("```")[1]
    lines = re.split(r"^(\d)  ", drawn, flags=re.MULTILINE)[1:]
    shown = {
        int(number): set(re.findall(r"\w+", text)) & RANK.keys()
        for number, text in zip(lines[::2], lines[1::2], strict=True)
    }
    assert shown == {number: set(names) for number, names in RANKS.items()}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: "/".join(name_of(path)))
def test_doors_reach_leaves_through_the_tables(path: Path) -> None:
    if name_of(path)[0] not in ("cli", "commands", "compare", "demo", "studio"):
        return
    leaves = {target[0] for target in imported(path)} & {"generators", "methods", "metrics", "readers"}
    assert not leaves, f"{path.name} imports {leaves} itself"


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_light() -> None:
    loaded = json.loads(python("import eigenlens, sys, json; dir(eigenlens); print(json.dumps(sorted(sys.modules)))"))
    assert not {"torch", "numpy", "PIL", "tyro"} & set(loaded)


def test_help_is_light_and_quick() -> None:
    code = (
        "import sys; from eigenlens.cli import main; main(['--help']);"
        "assert not {'torch', 'tyro', 'numpy'} & set(sys.modules)"
    )
    cheapest = 9.0
    for _ in range(5):
        before = os.times()
        assert "usage: eigenlens" in python(code)
        after = os.times()
        cheapest = min(
            cheapest, after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert cheapest <= 0.5, f"eigenlens --help took {cheapest:.2f} CPU s"


@pytest.mark.parametrize("table", [GENERATORS, METHODS, METRICS, READERS, COMMANDS], ids=lambda table: table.kind)
def test_table_strings_resolve(table: Registry) -> None:
    for name in table:
        assert callable(table[name]), name


def test_public_names_resolve() -> None:
    for name in eigenlens.__all__:
        assert getattr(eigenlens, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = eigenlens.nothing


def documented(module: object) -> list[str]:
    """Return the public functions, classes and methods of a module that have no docstring."""
    bare = []
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:  # type: ignore[attr-defined]
            continue
        if inspect.isfunction(thing) or inspect.isclass(thing):
            if not inspect.getdoc(thing):
                bare.append(name)
            if inspect.isclass(thing):
                for key, value in vars(thing).items():
                    function = value.fget if isinstance(value, property) else value
                    if (
                        not key.startswith("_")
                        and inspect.isfunction(function)
                        and not inspect.getdoc(getattr(thing, key))
                    ):
                        bare.append(f"{name}.{key}")
    return bare


@pytest.mark.parametrize("path", MODULES, ids=lambda path: "/".join(name_of(path)))
def test_public_things_are_documented(path: Path) -> None:
    parts = name_of(path)
    if parts == ("__main__",):
        return
    dotted = ".".join(("eigenlens", *(part for part in parts if part != "__init__")))
    module = importlib.import_module(dotted)
    assert module.__doc__, f"{dotted} has no docstring"
    assert not documented(module)


def undocumented_fields(kind: type) -> list[str]:
    """Return the fields of a dataclass that no string stands below: they would lack their help text."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    bare = []
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
            is_text = isinstance(following, ast.Expr) and isinstance(getattr(following, "value", None), ast.Constant)
            if not is_text:
                bare.append(ast.unparse(node.target))
    return bare


@pytest.mark.parametrize("name", [*METHODS, *METRICS])
def test_hyperparameters_are_frozen_and_documented(name: str) -> None:
    kind = (METHODS if name in METHODS else METRICS)[name]
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert kind.name == name
    assert not undocumented_fields(kind)


def test_help_page() -> None:
    assert set(SUMMARIES) == set(COMMANDS)
    page = help_text()
    assert page.splitlines()[0] == "usage: eigenlens COMMAND [OPTIONS]"
    assert all(f"  {name}" in page for name in COMMANDS)
    assert max(map(len, page.splitlines())) <= 100


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_explains_its_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from eigenlens.cli import main

    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: eigenlens {name}" in text
    flags = [line for line in text.splitlines() if line.lstrip("│ ").startswith("--")]
    for line in flags:  # a flag whose line is all there is has no help
        assert line.strip("│ ") != ""
