"""The studio's server: it parses requests, asks the library, keeps what it may need again, and replies."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from .. import __version__, recipe
from .. import images as pictures
from ..codes import Space
from ..directions import Directions
from ..effect import moved_parts
from ..errors import Unsupported, UserError
from ..method import METHODS, default_directions
from ..sheet import spread
from .frames import Frames
from .guard import Guard
from .jobs import Jobs
from .shelf import Shelf

STATIC = Path(__file__).parent / "static"
MOST_SOCKETS = 64
LOSSLESS_UP_TO = 128
"""Pixels: up to here a lossless frame costs no more than another."""
MOST_IMAGES = 64

T = TypeVar("T")
Source = Annotated[str, Field(min_length=1, max_length=1000)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
EditJson = Annotated[dict[str, Any], Field(description="An Edit, as `eigenlens edit --edit` reads it.")]


class Body(BaseModel):
    """What requests share: a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Problem(BaseModel):
    """What an error reply holds."""

    error: str
    unsupported: bool = False


class FrameBody(Body):
    """A picture of an Edit, and of the same done to its neighbours."""

    edit: EditJson
    n: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 1
    columns: Annotated[int, Field(ge=1, le=MOST_IMAGES)] | None = None
    largest: Pixels = 1024
    final: bool = True


class StripBody(Body):
    """A strip of one direction across its limits, for the image of an Edit."""

    edit: EditJson
    directions: Source
    name: Name
    layers: Annotated[str, Field(max_length=200)] | None = None
    n: Annotated[int, Field(ge=3, le=33)] = 7
    largest: Pixels = 128


class CoordinatesBody(Body):
    """Where the image of an Edit stands along a set of directions."""

    edit: EditJson
    directions: Source


class EditBody(Body):
    """An Edit alone."""

    edit: EditJson


class ExportBody(Body):
    """A file to take along."""

    edit: EditJson
    kind: Literal["png"] = "png"


class Studio:
    """What the routes share: the shelf, one thread for pictures, one for long work.

    Args:
        shelf: what may be opened.
        directions: sets that the page shows from the first, besides each generator's own.
    """

    def __init__(self, shelf: Shelf, *, directions: tuple[str, ...] = ()) -> None:
        self.shelf = shelf
        self.given = directions
        self.jobs = Jobs()
        self.sockets = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="studio-frames")

    async def soon(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run a function on the thread that makes pictures."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, functools.partial(function, *args, **kwargs))

    def close(self) -> None:
        """End both threads."""
        self.jobs.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    # what the page asks first

    def about(self) -> dict[str, Any]:
        """Return what there is to choose from."""
        return {
            "version": __version__,
            "workspace": str(self.shelf.workspace),
            "generators": list(self.shelf.sources),
            "opened": dict(self.shelf.opened),
        }

    def anatomy(self, source: str) -> dict[str, Any]:
        """Return what the page shows of a generator, and what it lacks."""
        g = self.shelf.generator(source)
        start = default_directions(g)
        sets = [start, *self.given]
        return {
            "source": source,
            "name": g.name,
            "family": g.family,
            "resolution": g.resolution,
            "channels": g.channels,
            "default_space": g.default_space,
            "spaces": [
                {
                    "name": space.name,
                    "slots": space.slots,
                    "dim": space.dim,
                    "parts": [{"number": part.number, "name": part.name} for part in space.parts],
                }
                for space in g.spaces.values()
            ],
            "labels": list(g.label_names),
            "has_noise": g.has_noise,
            "has_cutoff": any(space.broadcast_of for space in g.spaces.values()),
            "sets": sets,
        }

    def table(self, generator: str, source: str) -> dict[str, Any]:
        """Return a set of directions as rows of plain figures."""
        found = self.shelf.directions(generator, source)
        made = found.provenance
        space, g = self._space(generator, found), self.shelf.generator(generator)
        rows = found.table()
        for row in rows:
            low, high = found.span(row["index"], default=4.0)
            is_measured = row["low"] is not None and row["high"] is not None
            part = moved_parts(found, row["index"], space)
            row |= {"low": low, "high": high, "is_measured": is_measured, "part": _named_range(space, part)}
        return {
            "source": source,
            "title": source if source in METHODS else Path(source).stem,
            "space": found.space,
            "unit": found.unit,
            "method": made.method,
            "is_foreign": (made.generator.get("weights") or g.weight_hash) != g.weight_hash,
            "rows": rows,
        }

    def _space(self, generator: str, directions: Directions) -> Space:
        """Return the space whose layer ranges the directions' rows name: w+ for those of w."""
        spaces = self.shelf.generator(generator).spaces
        wider = [space for space in spaces.values() if space.broadcast_of == directions.space]
        return wider[0] if wider else spaces[directions.space]

    # pictures

    def frame(self, body: FrameBody) -> tuple[dict[str, Any], bytes]:
        """Return the picture of an Edit, and what the page must know to cut it up."""
        edit = self.shelf.edit(body.edit)
        preview = self.shelf.preview(edit.generator)
        images = preview.images(edit, body.n)
        columns = body.columns or {1: 1, 4: 2, 9: 3}.get(body.n, min(body.n, 8))
        is_small = preview.generator.resolution <= LOSSLESS_UP_TO
        format = "png" if body.final or is_small else "jpeg"
        picture = pictures.encode(images, columns=columns, largest=body.largest, format=format)
        return {"n": body.n, "columns": columns, "format": format}, picture

    def strip(self, body: StripBody) -> tuple[list[float], bytes]:
        """Return the strengths of a strip and its picture."""
        edit = self.shelf.edit(body.edit)
        found = self.shelf.directions(edit.generator, body.directions)
        steps = spread(found, body.name, body.n | 1)
        images = self.shelf.preview(edit.generator).strip(edit, body.directions, body.name, steps, body.layers)
        return steps, pictures.encode(images, largest=body.largest)

    def coordinates(self, body: CoordinatesBody) -> list[float]:
        """Return where an Edit's image stands along each direction."""
        edit = self.shelf.edit(body.edit)
        return self.shelf.preview(edit.generator).coordinates(edit, body.directions)

    def export(self, body: ExportBody) -> tuple[str, bytes]:
        """Return the type and the bytes of a file made of an Edit; a picture knows how it was made."""
        edit = self.shelf.edit(body.edit)
        preview = self.shelf.preview(edit.generator)
        about = {"version": 1, "edit": edit.to_json(), "command": recipe.shell(edit)}
        with tempfile.TemporaryDirectory() as folder:
            path = pictures.save(pictures.to_pil(preview.images(edit)[0]), Path(folder) / "edit.png", recipe=about)
            return "image/png", path.read_bytes()

    def recipe(self, value: Any) -> dict[str, Any]:
        """Return how an Edit's picture is made elsewhere."""
        edit = self.shelf.edit(value)
        return {"edit": edit.to_json(), "shell": recipe.shell(edit), "python": recipe.python(edit)}


def _named_range(space: Space, layers: str) -> str:
    """Shorten the names of parts: `all layers`, `layer3`, `layers 4-7`."""
    picked = space.picked(layers)
    if len(picked) == len(space.parts):
        return "all layers"
    if len(picked) == 1:
        return picked[0].name
    numbers = [part.number for part in picked]
    is_run = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"layers {numbers[0]}-{numbers[-1]}" if is_run else f"layers {','.join(map(str, numbers))}"


def create_app(studio: Studio, *, hosts: tuple[str, ...] = ()) -> FastAPI:
    """Return the application: a page, a socket for frames, and JSON for the rest.

    Args:
        studio: what it serves.
        hosts: names besides localhost that it is reached by.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        studio.close()

    problems: dict[int | str, dict[str, Any]] = {
        400: {"model": Problem, "description": "The request makes no sense here"},
        422: {"model": Problem, "description": "The request has another shape"},
    }
    app = FastAPI(
        title="eigenlens studio",
        version=__version__,
        description='What the studio\'s page asks. Errors are `{"error": ...}`.',
        docs_url=None,  # FastAPI's own page fetches its script from elsewhere; ours is /api.html
        redoc_url=None,
        lifespan=lifespan,
        responses=problems,
    )
    _add_errors(app)
    _add_pictures(app, studio)
    _add_socket(app, studio)
    app.mount("/", StaticFiles(directory=STATIC, html=True))
    app.add_middleware(Guard, hosts=hosts, uploads=("/api/photo", "/api/directions/upload"))
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    async def mistake(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error), "unsupported": isinstance(error, Unsupported)}, 400)

    @app.exception_handler(RequestValidationError)
    async def misshapen(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"] if each != "body")
        return JSONResponse({"error": f"{where or 'the body'}: {first['msg']}", "unsupported": False}, 422)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> JSONResponse:
        return JSONResponse({"error": "the body is larger than allowed, or did not come whole"}, 413)


PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "A picture"}}


def _add_pictures(app: FastAPI, studio: Studio) -> None:
    @app.get("/api/studio")
    async def about() -> dict[str, Any]:
        """Tell what there is to choose from."""
        return studio.about()

    @app.get("/api/generator")
    async def anatomy(generator: Source) -> dict[str, Any]:
        """Tell what a generator is, opening it where need be."""
        return await studio.soon(studio.anatomy, generator)

    @app.get("/api/directions")
    async def directions(generator: Source, source: Source) -> dict[str, Any]:
        """Tell what is known of a set of directions."""
        return await studio.soon(studio.table, generator, source)

    @app.post("/api/picture", response_class=Response, responses=PICTURE)
    async def picture(body: FrameBody) -> Response:
        """Render an Edit, and the same done to its neighbours, as tiles of one picture."""
        about, data = await studio.soon(studio.frame, body)
        return Response(data, media_type=f"image/{about['format']}")

    @app.post("/api/strip", response_class=Response, responses=PICTURE)
    async def strip(body: StripBody) -> Response:
        """Render one direction across its limits as tiles in a row; the header x-steps tells the strengths."""
        steps, data = await studio.soon(studio.strip, body)
        return Response(data, media_type="image/png", headers={"x-steps": ",".join(f"{step:.4g}" for step in steps)})

    @app.post("/api/export", response_class=Response, responses=PICTURE)
    async def export(body: ExportBody) -> Response:
        """Make a file of an Edit."""
        kind, data = await studio.soon(studio.export, body)
        return Response(data, media_type=kind)

    @app.post("/api/coordinates")
    async def coordinates(body: CoordinatesBody) -> list[float]:
        """Tell where the image of an Edit stands along each direction of a set."""
        return await studio.soon(studio.coordinates, body)

    @app.post("/api/recipe")
    async def recipe_of(body: EditBody) -> dict[str, Any]:
        """Tell how the picture of an Edit is made at the shell and in Python."""
        return studio.recipe(body.edit)


def _add_socket(app: FastAPI, studio: Studio) -> None:
    async def render(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        try:
            body = FrameBody.model_validate(request)
        except ValueError as error:
            raise UserError(f"a frame is asked for by edit, n, columns, largest, final: {error}") from error
        return await studio.soon(studio.frame, body)

    @app.websocket("/frames")
    async def frames(socket: WebSocket) -> None:
        if studio.sockets >= MOST_SOCKETS:
            await socket.close(1013, f"{MOST_SOCKETS} tabs are open already")
            return
        studio.sockets += 1
        try:
            await socket.accept()
            await Frames(socket, render).run()
        finally:
            studio.sockets -= 1


# --- serving ----------------------------------------------------------------------------------------------------------


def serve(
    app: FastAPI,
    *,
    host: str = "127.0.0.1",
    port: int = 7654,
    when_ready: Callable[[str], None] = lambda url: None,
    started: Callable[[Any], None] = lambda server: None,
) -> None:
    """Serve until interrupted.

    Args:
        app: what `create_app` gave.
        host: address to listen on.
        port: port; 0 takes any that is free.
        when_ready: called with the address once it answers.
        started: called with uvicorn's server, whose `should_exit` ends it from another thread.

    Raises:
        UserError: where the port is taken.
    """
    import uvicorn

    listener = _listen(host, port)
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    shown = f"[{shown}]" if ":" in shown else shown
    url = f"http://{shown}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        app, log_level="warning", ws_max_size=1 << 20, ws_per_message_deflate=False, timeout_graceful_shutdown=2,
        server_header=False, proxy_headers=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    started(server)

    async def run() -> None:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        if server.started:
            when_ready(url)
        await task

    asyncio.run(run())


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be listened on: {error.strerror}; choose another --port") from error
    listener.listen(128)
    listener.set_inheritable(True)
    return listener
