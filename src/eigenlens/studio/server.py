"""The studio's server: it parses requests, asks the library, keeps what it may need again, and replies."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .. import __version__, recipe
from .. import images as pictures
from ..codes import Space
from ..directions import Directions
from ..effect import moved_parts
from ..errors import Unsupported, UserError
from ..method import METHODS, default_directions, lacking
from ..presets import bundled_presets
from ..reader import READERS
from ..sheet import spread
from .bodies import (
    BreedBody,
    ChangeBody,
    ComposeBody,
    CoordinatesBody,
    DiscoverBody,
    EditBody,
    ExplorerBody,
    ExportBody,
    FrameBody,
    JoinBody,
    MeasureBody,
    Name,
    NamesBody,
    PresetsBody,
    Problem,
    RegionBody,
    SaveBody,
    SimilarityBody,
    Source,
    Steps,
    StripBody,
    TeachBody,
)
from .desk import Desk
from .frames import Frames
from .guard import Guard
from .jobs import Jobs
from .shelf import AT_ONCE, Shelf

STATIC = Path(__file__).parent / "static"
MOST_SOCKETS = 64
LOSSLESS_UP_TO = 128
"""Pixels: up to here a lossless frame costs no more than another."""

T = TypeVar("T")


class Studio:
    """What the routes share: the shelf, one thread for pictures, one for long work.

    Args:
        shelf: what may be opened.
        directions: sets that the page shows from the first, besides each generator's own.
    """

    def __init__(self, shelf: Shelf, *, directions: tuple[str, ...] = ()) -> None:
        self.shelf = shelf
        self.given = directions
        self.desk = Desk(shelf)
        self.sockets = 0
        self.open()

    def open(self) -> None:
        """Start the threads."""
        self.jobs = Jobs()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="studio-frames")
        self._aside = ThreadPoolExecutor(2, thread_name_prefix="studio-aside")
        self.is_open = True

    async def soon(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run a function on the thread that makes pictures."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, functools.partial(function, *args, **kwargs))

    async def aside(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function on a thread of its own, so that frames go on."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, functools.partial(function, *args))

    def close(self) -> None:
        """End all threads."""
        self.jobs.close()
        self.is_open = False
        for pool in (self._pool, self._aside):
            pool.shutdown(wait=False, cancel_futures=True)

    # what the page asks first

    def about(self) -> dict[str, Any]:
        """Return what there is to choose from, and of the first generator all that its page shows."""
        first = self.shelf.sources[0]
        anatomy = self.anatomy(first)
        return {
            "first": anatomy,
            "tables": [self.table(first, source) for source in anatomy["sets"]],
            "version": __version__,
            "workspace": str(self.shelf.workspace),
            "readers": list(READERS),
            "presets": bundled_presets(),
            "lacks": self.desk.lacking(),
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
            "offered": [name for name in AT_ONCE if not lacking(METHODS[name], g)],
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
            row["is_straight"] = found.is_straight
        return {
            "source": source,
            "title": source if source in METHODS else Path(source).stem.partition("~")[0],
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
        images = preview.images(edit, body.n, quick=not body.final)
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
        if not studio.is_open:
            studio.open()
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
    _add_sets(app, studio)
    _add_tools(app, studio)
    _add_jobs(app, studio)
    _add_socket(app, studio)
    _add_page(app)
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

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail), "unsupported": False}, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> JSONResponse:
        return JSONResponse({"error": "the body is larger than allowed, or did not come whole"}, 413)


BINARY = {"requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}}
PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "A picture"}}


def _add_pictures(app: FastAPI, studio: Studio) -> None:
    @app.get("/api/studio")
    async def about() -> dict[str, Any]:
        """Tell what there is to choose from."""
        return await studio.soon(studio.about)

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

    @app.post("/api/coordinates")
    async def coordinates(body: CoordinatesBody) -> list[float]:
        """Tell where the image of an Edit stands along each direction of a set."""
        return await studio.soon(studio.coordinates, body)

    @app.post("/api/recipe")
    async def recipe_of(body: EditBody) -> dict[str, Any]:
        """Tell how the picture of an Edit is made at the shell and in Python."""
        return studio.recipe(body.edit)


TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def _add_page(app: FastAPI) -> None:
    """Serve the page from memory: two dozen small files, all of which every visit asks for."""
    files = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in TYPES}
    tags = {name: f'"{hashlib.sha256(data).hexdigest()[:16]}"' for name, data in files.items()}

    @app.get("/{name}", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page(request: Request, name: str = "index.html") -> Response:
        if name not in files:
            return JSONResponse({"error": f"there is no {name[:80]!r} here"}, 404)
        headers = {"etag": tags[name], "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(files[name], media_type=f"{TYPES[Path(name).suffix]}; charset=utf-8", headers=headers)


def _add_sets(app: FastAPI, studio: Studio) -> None:
    desk = studio.desk

    @app.get("/api/files")
    async def files(generator: Source) -> dict[str, Any]:
        """List the files of the workspace that belong to a generator."""
        return await studio.aside(desk.files, generator)

    @app.get("/api/codes")
    async def codes(generator: Source, source: Source) -> dict[str, Any]:
        """Tell how many codes a file of the workspace holds."""
        return await studio.aside(desk.count, generator, source)

    @app.get("/api/file", response_class=FileResponse)
    async def file(source: Source) -> FileResponse:
        """Give a file of the workspace."""
        path = desk.file(source)
        return FileResponse(path, filename=path.name, media_type="application/octet-stream")

    @app.post("/api/directions/change")
    async def change(body: ChangeBody) -> dict[str, Any]:
        """Rename, turn round, and leave out directions; gives the file that holds the result."""
        return await studio.aside(desk.change, body)

    @app.post("/api/directions/join")
    async def join(body: JoinBody) -> dict[str, Any]:
        """Join sets of directions."""
        return await studio.aside(desk.join, body)

    @app.post("/api/directions/presets")
    async def presets(body: PresetsBody) -> dict[str, Any]:
        """Make published edits into named directions of a set of components."""
        return await studio.aside(desk.presets, body)

    @app.post("/api/directions/compose")
    async def compose(body: ComposeBody) -> dict[str, Any]:
        """Make one direction of an Edit's moves."""
        return await studio.aside(desk.compose, body)

    @app.post("/api/directions/save")
    async def save(body: SaveBody) -> dict[str, Any]:
        """Save a set under a name."""
        return await studio.aside(desk.save, body)

    @app.post("/api/directions/upload", openapi_extra=BINARY)
    async def upload(request: Request, generator: Source, name: Name) -> dict[str, Any]:
        """Take in a file of directions, ours or another tool's."""
        return await studio.aside(desk.upload, generator, name, await request.body())

    @app.post("/api/similarity")
    async def similarity(body: SimilarityBody) -> dict[str, Any]:
        """Compare two sets: |cos| of each pair, the best matching, and what chance gives."""
        return await studio.aside(desk.similarity, body)


def _add_tools(app: FastAPI, studio: Studio) -> None:
    desk = studio.desk

    @app.post("/api/teach")
    async def teach(body: TeachBody) -> dict[str, Any]:
        """Learn a direction from seeds that have more or less of it; `ask` is the most telling of the candidates."""
        return await studio.aside(desk.teach, body)

    @app.post("/api/breed")
    async def breed(body: BreedBody) -> dict[str, Any]:
        """Cross two pictures; gives a file of codes."""
        return await studio.aside(desk.breed, body)

    @app.get("/api/methods")
    async def methods(generator: Source) -> list[dict[str, Any]]:
        """List the methods and their settings, and why one cannot run on this generator."""
        return await studio.aside(desk.methods, generator)

    @app.get("/api/readers")
    async def readers() -> list[dict[str, Any]]:
        """List the readers, whose attributes an Edit can keep."""
        return await studio.aside(desk.readers)

    @app.post("/api/export", response_class=Response, responses=PICTURE)
    async def export(body: ExportBody) -> Response:
        """Make a picture, a strip or a film of an Edit."""
        kind, data = await studio.aside(desk.export, body)
        return Response(data, media_type=kind)


def _add_jobs(app: FastAPI, studio: Studio) -> None:
    desk = studio.desk

    @app.post("/api/discover")
    async def discover(body: DiscoverBody) -> dict[str, Any]:
        """Run a method; gives a job."""
        return studio.jobs.start(body.method, await studio.aside(desk.discovering, body)).to_json()

    @app.post("/api/measure")
    async def measure(body: MeasureBody) -> dict[str, Any]:
        """Measure effects and limits of a set; gives a job."""
        return studio.jobs.start("measure", await studio.aside(desk.measuring, body)).to_json()

    @app.post("/api/names")
    async def names(body: NamesBody) -> dict[str, Any]:
        """Propose names for a set from what a reader sees; gives a job."""
        return studio.jobs.start("names", await studio.aside(desk.naming, body)).to_json()

    @app.post("/api/explorer")
    async def explorer(body: ExplorerBody) -> dict[str, Any]:
        """Write a page that runs the generator in a browser, without a server; gives a job."""
        return studio.jobs.start("explorer", await studio.aside(desk.exploring, body)).to_json()

    @app.post("/api/region")
    async def region(body: RegionBody) -> dict[str, Any]:
        """Find directions that change a box of a picture; gives a job."""
        return studio.jobs.start("region", await studio.aside(desk.seeking, body)).to_json()

    @app.post("/api/photo", openapi_extra=BINARY)
    async def photo(request: Request, generator: Source, name: Name, steps: Steps = 120) -> dict[str, Any]:
        """Find the code of a photo; gives a job, whose picture shows the photo beside what stands for it."""
        work = await studio.aside(desk.projecting, generator, name, await request.body(), steps)
        return studio.jobs.start("photo", work).to_json()

    @app.get("/api/jobs/{number}")
    async def job(number: str) -> dict[str, Any]:
        """Tell how far a job is."""
        return studio.jobs[number].to_json()

    @app.delete("/api/jobs/{number}")
    async def cancel(number: str) -> dict[str, Any]:
        """Ask a job to stop."""
        return studio.jobs.cancel(number).to_json()

    @app.get("/api/jobs/{number}/picture", response_class=Response, responses=PICTURE)
    async def job_picture(number: str) -> Response:
        """Give the latest picture of a job."""
        if studio.jobs[number].picture is None:
            raise UserError(f"job {number} has no picture (yet)")
        return Response(studio.jobs[number].picture, media_type="image/png")


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
