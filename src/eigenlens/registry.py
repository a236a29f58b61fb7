"""Literal tables `"name": "module:attribute"` whose entries are imported when they are first used."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import unknown_name


class Registry(Mapping[str, Any]):
    """Map names to things that live in other modules, importing each on first use.

    Args:
        kind: what the names stand for; it appears in error messages.
        table: name -> `"module:attribute"`, written out where the registry is made.

    Raises:
        UnknownName: on a name that the table does not hold; it names the nearest.

    Example:
        >>> roots = Registry("root", {"sqrt": "math:sqrt"})
        >>> roots["sqrt"](9.0)
        3.0
        >>> roots["sqrrt"]
        Traceback (most recent call last):
        ...
        eigenlens.errors.UnknownName: unknown root 'sqrrt'. Did you mean 'sqrt'? Known: sqrt
    """

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self.table = dict(table)

    def __getitem__(self, name: str) -> Any:
        if name not in self.table:
            raise unknown_name(self.kind, name, self.table)
        module, _, attribute = self.table[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}, {', '.join(self.table)})"
