"""`studio`: the page in the browser."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

from tyro.conf import Positional, UseAppendAction

from ..errors import UserError
from ..generator import NAMED, named_path
from .words import HERE, Machine

LOCAL = ("127.0.0.1", "localhost", "::1")


def studio(
    generators: Positional[tuple[str, ...]] = (),
    /,
    *,
    directions: UseAppendAction[tuple[str, ...]] = (),
    workspace: Path = Path("eigenlens-studio"),
    port: int = 7654,
    host: str = "127.0.0.1",
    memory: float = 4.0,
    no_browser: bool = False,
    machine: Machine = HERE,
) -> None:
    """Open a page in the browser: a slider for every direction, and all that one does with them.

    Args:
        generators: names, folders or files; by default those that are bundled or installed.
        directions: a file of directions, or a method, to show beside the generator's own; repeat it for more.
        workspace: the folder that the page reads from and writes to; it reaches no other.
        port: of the server; 0 takes any that is free.
        host: address to listen on. Any but the loopback lets everyone on the network use the studio.
        memory: GiB of weights to keep; the generator used least recently gives way.
        no_browser: print the address, and do not open the page.
        machine: how generators are opened.
    """
    try:
        from ..studio.server import Studio, create_app, serve
    except ImportError as error:
        raise UserError(f"the studio needs the extra 'studio': pip install 'eigenlens[studio]' ({error})") from error
    from ..studio.shelf import Shelf

    sources = generators or tuple(name for name in NAMED if _is_here(name))
    files = [Path(each) for each in directions if Path(each).suffix or Path(each).exists()]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} does not exist; --directions takes a file of directions, or a method")
    shelf = Shelf(sources, workspace=workspace, load=machine.open, files=files, most_bytes=int(memory * 2**30))
    shelf.preview(sources[0])  # a generator that does not open is said at once, and the first page need not wait
    for each in directions:
        shelf.directions(sources[0], each)
    if host not in LOCAL:
        print(
            f"warning: listening on {host}, so everyone who can reach this machine can use the studio and read and "
            f"write {workspace}; there is no password",
            file=sys.stderr,
        )
    app = create_app(Studio(shelf, directions=directions), hosts=("*",) if host in ("0.0.0.0", "::") else (host,))
    serve(app, host=host, port=port, when_ready=lambda url: _announce(url, opens=not no_browser))


def _is_here(name: str) -> bool:
    try:
        return named_path(name).exists()
    except UserError:
        return False


def _announce(url: str, *, opens: bool) -> None:
    print(f"eigenlens studio: {url}  (Ctrl-C ends it)", flush=True)
    has_screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if opens and has_screen:
        webbrowser.open(url)
