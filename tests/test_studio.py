"""The studio's server: what it answers, and what it refuses."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="the studio's extra is not installed")

from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from eigenlens import UserError
from eigenlens.directions import Directions
from eigenlens.edit import Edit, apply
from eigenlens.generator import Generator
from eigenlens.images import read_recipe, to_uint8
from eigenlens.method import METHODS
from eigenlens.studio.guard import LARGEST_BODY, Guard
from eigenlens.studio.jobs import Jobs
from eigenlens.studio.server import Studio, create_app
from eigenlens.studio.shelf import Shelf
from studios import make_studio

HERE = "http://127.0.0.1:7654"
SOCKET = "ws://127.0.0.1:7654/frames"


@pytest.fixture
def studio(tmp_path: Path, tiny: Callable[[str], Generator]) -> Studio:
    return make_studio(tmp_path / "work", {"tiny": tiny("eigengan"), "labelled": tiny("biggan")})


@pytest.fixture
def client(studio: Studio) -> Iterator[TestClient]:
    with TestClient(create_app(studio), base_url=HERE) as client:
        yield client


def edit(*moves: dict[str, Any], **codes: Any) -> dict[str, Any]:
    return {"version": 1, "generator": "tiny", "codes": codes, "moves": list(moves)}


def move(name: str, by: float, **about: Any) -> dict[str, Any]:
    return {"directions": "eigen", "name": name, "by": by, **about}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def frame(socket: Any, **request: Any) -> tuple[dict[str, Any], bytes]:
    socket.send_text(json.dumps(request))
    message = socket.receive()
    if message.get("bytes") is None:
        return json.loads(message["text"]), b""
    (length,) = struct.unpack("<I", message["bytes"][:4])
    return json.loads(message["bytes"][4 : 4 + length]), message["bytes"][4 + length :]


# --- what it answers --------------------------------------------------------------------------------------------------


def test_a_picture_is_what_the_edit_makes(client: TestClient, eigengan: Generator) -> None:
    wanted = edit(move("L2D1", 2.0), seed=5)
    reply = client.post("/api/picture", json={"edit": wanted})
    axes = METHODS["eigen"](measured=False).fit(eigengan)
    with torch.inference_mode():
        image = eigengan(apply(Edit.from_json(wanted), eigengan, lambda name: axes).after)
    assert np.array_equal(pixels(reply.content), to_uint8(image)[0])


def test_nine_pictures_are_tiles(client: TestClient) -> None:
    nine = pixels(client.post("/api/picture", json={"edit": edit(seed=2), "n": 9}).content)
    one = pixels(client.post("/api/picture", json={"edit": edit(seed=6)}).content)
    assert nine.shape == (48, 48, 3)
    assert np.abs(nine[16:32, 16:32].astype(int) - one).max() <= 1  # batches of nine and of one round differently


def test_large_tiles_shrink(client: TestClient) -> None:
    assert pixels(client.post("/api/picture", json={"edit": edit(), "largest": 8}).content).shape == (8, 8, 3)


def test_frames_come_over_the_socket(client: TestClient) -> None:
    with client.websocket_connect(SOCKET) as socket:
        about, picture = frame(socket, id=7, edit=edit(move("L1D1", 1.0)), n=4)
        assert (about["id"], about["n"], about["columns"], about["format"]) == (7, 4, 2, "png")
        assert pixels(picture).shape == (32, 32, 3)


def test_anatomy_and_tables(client: TestClient) -> None:
    told = client.get("/api/generator", params={"generator": "tiny"}).json()
    assert (told["resolution"], told["sets"], told["has_noise"]) == (16, ["eigen"], False)
    labelled = client.get("/api/generator", params={"generator": "labelled"}).json()
    assert len(labelled["labels"]) == 3
    table = client.get("/api/directions", params={"generator": "tiny", "source": "eigen"}).json()
    assert table["rows"][0]["name"] == "L1D1"
    assert table["rows"][0]["part"] == "layer1"
    assert (table["rows"][0]["low"], table["rows"][0]["is_measured"]) == (-4.0, False)


def test_a_strip_spans_the_limits(client: TestClient) -> None:
    reply = client.post("/api/strip", json={"edit": edit(), "directions": "eigen", "name": "L2D1", "n": 5})
    assert pixels(reply.content).shape == (16, 80, 3)
    assert [float(step) for step in reply.headers["x-steps"].split(",")] == [-3, -1.5, 0, 1.5, 3]


def test_an_exported_picture_knows_its_command(client: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "edit.png"
    path.write_bytes(client.post("/api/export", json={"edit": edit(move("L1D1", 1.0), seed=4)}).content)
    recipe = read_recipe(path)
    assert recipe is not None
    assert recipe["command"] == "eigenlens edit tiny --seed 4 --move 'eigen:L1D1 by 1' --out edit.png"


def test_recipe_and_coordinates(client: TestClient) -> None:
    told = client.post("/api/recipe", json={"edit": edit(move("L1D1", 1.0))}).json()
    assert told["shell"].startswith("eigenlens edit tiny --move")
    assert "load_generator" in told["python"]
    places = client.post("/api/coordinates", json={"edit": edit(), "directions": "eigen"}).json()
    assert len(places) == len(
        client.get("/api/directions", params={"generator": "tiny", "source": "eigen"}).json()["rows"]
    )


def test_the_page_is_there(client: TestClient) -> None:
    page = client.get("/")
    assert "eigenlens" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("main.js", "studio.css", "icon.svg"):
        assert client.get(f"/{name}").status_code == 200


def test_nothing_on_the_page_comes_from_elsewhere() -> None:
    folder = Path(__import__("eigenlens.studio").studio.__file__).parent / "static"
    for path in folder.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, path.name
        assert "https://" not in text, path.name


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"edit": {"version": 1, "generator": "/etc/passwd", "codes": {}, "moves": []}},
            "unknown generator of this studio",
        ),
        ({"edit": edit(file="../../etc/passwd")}, "is not in the workspace"),
        ({"edit": edit(file="/etc/passwd")}, "is not in the workspace"),
        ({"edit": edit({"directions": "/etc/passwd", "name": "0", "by": 1.0})}, "is not in the workspace"),
        ({"edit": edit({"directions": "supervised", "name": "0", "by": 1.0})}, "takes a while"),
        ({"edit": edit(move("L9D9", 1.0))}, "unknown direction"),
        ({"edit": edit(seed=-1)}, "negative"),
        ({"edit": edit(colour="red")}, "no 'colour'"),
        ({"edit": []}, "edit"),
        ({"edit": edit(), "n": 10_000}, "n"),
        ({"edit": edit(), "more": 1}, "more"),
        ([], "the body"),
    ],
)
def test_requests_that_make_no_sense(client: TestClient, body: Any, said: str) -> None:
    reply = client.post("/api/picture", json=body)
    assert reply.status_code in (400, 422)
    assert said in reply.json()["error"]


STRANGERS = [
    {"host": "evil.example"},
    {"host": ""},
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
]


@pytest.mark.parametrize("headers", STRANGERS)
def test_other_hosts_and_pages_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    assert client.get("/api/studio", headers=headers).status_code == 403
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(SOCKET, headers=headers) as socket:
        socket.receive()


def test_our_own_origin_is_welcome(client: TestClient) -> None:
    assert client.get("/api/studio", headers={"origin": HERE}).status_code == 200


def test_a_server_on_all_interfaces_answers_to_addresses_not_to_names() -> None:
    guard = Guard(None, hosts=("*",))  # type: ignore[arg-type]
    assert guard.complaint({b"host": b"192.168.1.7:7654"}) == ""
    assert guard.complaint({b"host": b"[fe80::1]:7654"}) == ""
    assert "does not answer" in guard.complaint({b"host": b"rebound.example:7654"})


def test_large_bodies_are_refused(client: TestClient) -> None:
    reply = client.post("/api/picture", content=b"[" * (LARGEST_BODY + 1))
    assert reply.status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * (1 << 16)

    assert client.post("/api/picture", content=pieces()).status_code in (400, 413, 422)
    assert client.get("/api/studio").status_code == 200


def test_links_do_not_lead_out_of_the_workspace(studio: Studio, tmp_path: Path, eigengan: Generator) -> None:
    outside = METHODS["eigen"](measured=False).fit(eigengan).save(tmp_path / "secret.safetensors")
    work = studio.shelf.workspace
    work.mkdir()
    (work / "link.safetensors").symlink_to(outside)
    (work / "up").symlink_to(tmp_path)
    for name in ("link.safetensors", "up/secret.safetensors", "../secret.safetensors", "a\0b", "x" * 5000):
        with pytest.raises(UserError, match="is not in the workspace"):
            studio.shelf.path(f"{work}/{name}")
    named = make_studio(work, {"tiny": eigengan}, files=[outside])
    assert len(named.shelf.directions("tiny", str(outside))) > 3  # the command line named it


BROKEN = [
    "",
    "no json",
    "[]",
    "{}",
    '{"id": 1}',
    '{"id": "x", "edit": 3}',
    '{"id": 1e400}',
    '{"id": 1, "edit": {"version": 1, "generator": "tiny", "codes": {"seed": 1e999}, "moves": []}}',
    "[" * 100_000,
    "9" * 300_000,
]


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_broken_messages_get_an_answer_and_the_next_is_served(client: TestClient, text: str) -> None:
    with client.websocket_connect(SOCKET) as socket:
        socket.send_text(text)
        assert json.loads(socket.receive()["text"])["error"]
        socket.send_bytes(b"\0\1")
        assert json.loads(socket.receive()["text"])["error"]
        about, picture = frame(socket, id=1, edit=edit())
        assert about["id"] == 1
        assert picture


def test_a_fault_of_the_program_is_answered_too(
    client: TestClient, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(body: Any) -> Any:
        raise RuntimeError("out of memory")

    with client.websocket_connect(SOCKET) as socket:
        monkeypatch.setattr(studio, "frame", break_down)
        assert "out of memory" in frame(socket, id=1, edit=edit())[0]["error"]
        monkeypatch.undo()
        assert frame(socket, id=2, edit=edit())[1]


def test_sockets_are_counted(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eigenlens.studio.server.MOST_SOCKETS", 1)
    with (
        client.websocket_connect(SOCKET),
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(SOCKET) as second,
    ):
        second.receive()
    with client.websocket_connect(SOCKET) as third:
        assert frame(third, id=1, edit=edit())[1]


# --- what it keeps ----------------------------------------------------------------------------------------------------


def test_the_generator_used_least_recently_gives_way(tmp_path: Path, tiny: Callable[[str], Generator]) -> None:
    loads: list[str] = []

    def load(source: str) -> Generator:
        loads.append(source)
        return tiny("eigengan")

    shelf = Shelf(("a", "b", "c"), workspace=tmp_path, load=load, most_bytes=1)
    shelf.preview("a")
    shelf.preview("b")
    assert list(shelf.opened) == ["b"]
    roomy = Shelf(("a", "b", "c"), workspace=tmp_path, load=load, most_bytes=2 * shelf.opened["b"])
    for source in ("a", "b", "a", "c"):
        roomy.preview(source)
    assert list(roomy.opened) == ["a", "c"]
    with pytest.raises(UserError, match="unknown generator"):
        roomy.preview("d")


def test_a_file_that_changed_is_read_again(studio: Studio, eigengan: Generator) -> None:
    path = studio.shelf.workspace / "mine.safetensors"
    axes: Directions = METHODS["eigen"](measured=False).fit(eigengan)
    axes.save(path)
    assert studio.shelf.directions("tiny", str(path)).names[0] == "L1D1"
    axes.renamed({"L1D1": "other"}).save(path, force=True)
    import os

    os.utime(path, (1, 1))
    assert studio.shelf.directions("tiny", str(path)).names[0] == "other"


def test_jobs_tell_how_far_they_are_and_stop_when_asked() -> None:
    import threading

    from eigenlens import runtime

    jobs, begun, go = Jobs(), threading.Event(), threading.Event()

    def work(job: Any) -> dict[str, Any]:
        for step in runtime.progress(range(3), what="steps"):
            if step == 0:
                begun.set()
                assert go.wait(10)
        return {"answer": 42}

    first = jobs.start("first", work)
    second = jobs.start("second", lambda job: {})
    assert begun.wait(10)
    assert (first.state, first.what, first.total) == ("running", "steps", 3)
    jobs.cancel(second.id)
    jobs.cancel(first.id)
    go.set()
    third = jobs.start("third", lambda job: {"answer": 43})
    failed = jobs.start("failed", lambda job: 1 / 0)
    last = jobs.start("last", lambda job: {})
    for _ in range(200):
        if last.state == "done":
            break
        threading.Event().wait(0.02)
    assert (first.state, second.state, third.state, failed.state) == ("cancelled", "cancelled", "done", "failed")
    assert "division by zero" in failed.error
    assert jobs[third.id].to_json()["result"] == {"answer": 43}
    with pytest.raises(UserError, match="no job"):
        jobs["99"]
    jobs.close()
