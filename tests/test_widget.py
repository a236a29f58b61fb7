"""The explorer in a notebook: traits, and the same page code over a notebook's model."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from browser import Watched
from eigenlens.edit import Edit
from eigenlens.explorer import Explorer, make_explorer
from eigenlens.generator import Generator
from eigenlens.method import find_directions
from eigenlens.widget import current_edit, explorer_widget

pytest.importorskip("anywidget", reason="the extra 'notebook' is not installed")
pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")


@pytest.fixture(scope="module")
def explorer(tiny: Callable[[str], Generator]) -> Explorer:
    g = tiny("eigengan")
    axes = find_directions("eigen", g, measured=False)
    k = len(axes)
    axes = axes.with_figures(effect=torch.ones(k), limits=torch.tensor([[-4.0, 8.0]]).repeat(k, 1))
    return make_explorer(g, axes, source="eigen", address="model", count=3)


def test_traits(explorer: Explorer) -> None:
    widget = explorer_widget(explorer)
    assert widget.manifest["format"] == "eigenlens.explorer/1"
    assert widget.model == explorer.parts["model"]
    assert "export default" in widget._esm
    assert current_edit(widget) is None
    widget.edit = {"version": 1, "generator": "model", "codes": {"seed": 0, "index": 2}, "moves": []}
    edit = current_edit(widget)
    assert isinstance(edit, Edit)
    assert edit.codes.index == 2


HOST = """<!doctype html><link rel="icon" href="data:,"><style>{css}</style><div id="el"></div><script type="module">
const esm = await import(URL.createObjectURL(new Blob([{esm}], {{type: "text/javascript"}})));
const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const state = {{manifest: {manifest}, edit: {{}}}};
for (const [name, text] of Object.entries({parts})) state[name] = bytes(text);
window.saved = [];
const model = {{ get: (name) => state[name], set: (name, value) => {{ state[name] = value; }},
  save_changes: () => window.saved.push(JSON.stringify(state.edit)) }};
await esm.default.render({{ model, el: document.getElementById("el") }});
</script>"""
"""What a notebook does with a widget's code: loads it as a module and gives it a model."""


@pytest.mark.browser
def test_the_kernel_hears_of_every_edit(explorer: Explorer, open_page: Callable[..., Watched], tmp_path: Path) -> None:
    widget = explorer_widget(explorer)
    parts = {name: base64.b64encode(data).decode() for name, data in explorer.parts.items()}
    plain = lambda value: json.dumps(value).replace("<", "\\u003c")  # noqa: E731
    page = HOST.format(css=widget._css, esm=plain(widget._esm), manifest=plain(widget.manifest), parts=plain(parts))
    (tmp_path / "host.html").write_text(page, encoding="utf-8")
    watched = open_page((tmp_path / "host.html").as_uri())
    watched.page.wait_for_selector("[data-starts=drawn]")
    watched.page.get_by_role("slider", name="L2D1").press("PageUp")
    watched.page.get_by_role("button", name="image 2").click()
    saved = [json.loads(each) for each in watched.page.evaluate("window.saved")]
    widget.edit = saved[-1]
    edit = current_edit(widget)
    assert edit is not None
    assert (edit.codes.index, edit.moves[0].name, edit.moves[0].by) == (2, "L2D1", 1.5)
    assert "#" not in watched.page.url  # a notebook's address is its own
    watched.check_clean()
