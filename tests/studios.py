"""A studio over small generators, for tests: in-process, and as a server of its own for a browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eigenlens.errors import UserError
from eigenlens.generator import Generator
from eigenlens.studio.server import Studio, create_app, serve
from eigenlens.studio.shelf import Shelf


def make_studio(workspace: Path, generators: dict[str, Generator], **about: Any) -> Studio:
    """Return a studio of these generators."""

    def load(source: str) -> Generator:
        if source not in generators:
            raise UserError(f"{source} does not exist")
        return generators[source]

    return Studio(Shelf(tuple(generators), workspace=workspace, load=load, **about))


@contextmanager
def served(studio: Studio, *, port: int = 0) -> Iterator[str]:
    """Serve a studio from a thread of this process, and give its address."""
    ready, address, servers = threading.Event(), [], []

    def run() -> None:
        serve(
            create_app(studio),
            port=port,
            when_ready=lambda url: (address.append(url), ready.set()),
            started=servers.append,
        )

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(20)
    yield address[0]
    servers[0].should_exit = True
    thread.join(10)
