"""The explorer page as a notebook's widget: the same code, and the kernel hears of every Edit."""

from __future__ import annotations

from typing import Any

from .edit import Edit
from .errors import UserError
from .explorer import ASSETS, Explorer, script


def explorer_widget(explorer: Explorer) -> Any:
    """Return a widget that shows an explorer in Jupyter, Colab, VS Code or marimo.

    It runs in the browser like the page. Its trait `edit` is the Edit of what it shows, plain JSON, empty for a photo;
    `widget.observe(function, "edit")` hears of changes, and `current_edit(widget)` reads it.

    Args:
        explorer: of `make_explorer`.

    Raises:
        UserError: where the extra is not installed.
    """
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise UserError("a widget needs anywidget: pip install 'eigenlens[notebook]'") from error

    traits: dict[str, Any] = {name: traitlets.Bytes(data).tag(sync=True) for name, data in explorer.parts.items()}
    traits |= {
        "__module__": __name__,
        "_esm": script() + (ASSETS / "widget.js").read_text("utf-8"),
        "_css": (ASSETS / "explorer.css").read_text("utf-8"),
        "manifest": traitlets.Dict(dict(explorer.manifest)).tag(sync=True),
        "edit": traitlets.Dict().tag(sync=True),
    }
    return type("ExplorerWidget", (anywidget.AnyWidget,), traits)()


def current_edit(widget: Any) -> Edit | None:
    """Return the Edit of what a widget shows; None while it shows a photo, or nothing yet."""
    return Edit.from_json(widget.edit) if widget.edit else None
