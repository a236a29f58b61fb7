"""eigenlens turns an image generator into a set of sliders that mean something."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "load_generator": "eigenlens.generator",
    "from_module": "eigenlens.generators.custom",
    "Generator": "eigenlens.generator",
    "GENERATORS": "eigenlens.generator",
    "Codes": "eigenlens.codes",
    "Space": "eigenlens.codes",
    "Part": "eigenlens.codes",
    "Directions": "eigenlens.directions",
    "Edit": "eigenlens.edit",
    "Method": "eigenlens.method",
    "METHODS": "eigenlens.method",
    "Metric": "eigenlens.metric",
    "Score": "eigenlens.metric",
    "METRICS": "eigenlens.metric",
    "Unsupported": "eigenlens.errors",
    "UserError": "eigenlens.errors",
}

__all__ = [
    "GENERATORS",
    "METHODS",
    "METRICS",
    "Codes",
    "Directions",
    "Edit",
    "Generator",
    "Method",
    "Metric",
    "Part",
    "Score",
    "Space",
    "Unsupported",
    "UserError",
    "__version__",
    "from_module",
    "load_generator",
]

if TYPE_CHECKING:
    from .codes import Codes, Part, Space
    from .directions import Directions
    from .edit import Edit
    from .errors import Unsupported, UserError
    from .generator import GENERATORS, Generator, load_generator
    from .generators.custom import from_module
    from .method import METHODS, Method
    from .metric import METRICS, Metric, Score


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import eigenlens` stays light."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'eigenlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
