"""The studio's server: what it answers, and what it refuses."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import os
import shlex
import socket
import struct
import threading
import time
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

from eigenlens import UserError, runtime
from eigenlens.cli import main
from eigenlens.codes import save_codes
from eigenlens.directions import Directions
from eigenlens.edit import Edit, apply
from eigenlens.generator import Generator
from eigenlens.images import read_recipe, to_uint8
from eigenlens.method import METHODS
from eigenlens.studio.guard import LARGEST_BODY, Guard
from eigenlens.studio.jobs import Jobs
from eigenlens.studio.server import Studio, create_app
from eigenlens.studio.shelf import Shelf
from studios import make_studio, served
from test_curves import curved, dipoles

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


def frame(tab: Any, **request: Any) -> tuple[dict[str, Any], bytes]:
    tab.send_text(json.dumps(request))
    message = tab.receive()
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
    with client.websocket_connect(SOCKET) as tab:
        about, picture = frame(tab, id=7, edit=edit(move("L1D1", 1.0)), n=4)
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
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(SOCKET, headers=headers) as tab:
        tab.receive()


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
    with client.websocket_connect(SOCKET) as tab:
        tab.send_text(text)
        assert json.loads(tab.receive()["text"])["error"]
        tab.send_bytes(b"\0\1")
        assert json.loads(tab.receive()["text"])["error"]
        about, picture = frame(tab, id=1, edit=edit())
        assert about["id"] == 1
        assert picture


def test_a_fault_of_the_program_is_answered_too(
    client: TestClient, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(body: Any) -> Any:
        raise RuntimeError("out of memory")

    with client.websocket_connect(SOCKET) as tab:
        monkeypatch.setattr(studio, "frame", break_down)
        assert "out of memory" in frame(tab, id=1, edit=edit())[0]["error"]
        monkeypatch.undo()
        assert frame(tab, id=2, edit=edit())[1]


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


def test_a_tab_that_never_reads_holds_little_and_stops_nobody(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("websockets.sync.client")
    made: list[int] = []

    def large(body: Any) -> tuple[dict[str, Any], bytes]:
        made.append(1)
        return {"format": "png"}, bytes(2 << 20)

    monkeypatch.setattr("eigenlens.studio.frames.PATIENCE", 0.5)
    monkeypatch.setattr(studio, "frame", large)
    request = json.dumps({"id": 1, "edit": edit()})
    with served(studio) as url:
        host = url.removeprefix("http://")
        silent = socket.socket()
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect((host.split(":")[0], int(host.split(":")[1])))
        silent.sendall(
            f"GET /frames HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        text = request.encode()
        message = b"\x81" + bytes([0x80 | len(text)]) + bytes(4) + text  # a text frame under a mask of zeros
        for _ in range(60):
            silent.sendall(message)
            time.sleep(0.02)
        assert 1 <= len(made) < 30, "frames piled up for a tab that does not read them"
        with client.connect(f"ws://{host}/frames", max_size=None) as other:
            other.send(request)
            assert len(other.recv(timeout=10)) > 2 << 20
        for _ in range(100):
            if studio.sockets == 0:
                break
            time.sleep(0.05)
        assert studio.sockets == 0, "the silent tab was not let go"
        silent.close()


def test_twenty_tabs(client: TestClient) -> None:
    with contextlib.ExitStack() as tabs:
        sockets = [tabs.enter_context(client.websocket_connect(SOCKET)) for _ in range(20)]
        for number, socket_ in enumerate(sockets):
            socket_.send_text(json.dumps({"id": number, "edit": edit(seed=number % 5)}))
        for number, socket_ in enumerate(sockets):
            (length,) = struct.unpack("<I", (data := socket_.receive()["bytes"])[:4])
            assert json.loads(data[4 : 4 + length])["id"] == number


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
    os.utime(path, (1, 1))
    assert studio.shelf.directions("tiny", str(path)).names[0] == "other"


def test_jobs_tell_how_far_they_are_and_stop_when_asked() -> None:
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


# --- tools ------------------------------------------------------------------------------------------------------------


def ask(client: TestClient, path: str, **body: Any) -> Any:
    reply = client.post(f"/api/{path}", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def finished(client: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    for _ in range(600):
        job = client.get(f"/api/jobs/{job['id']}").json()
        if job["state"] not in ("waiting", "running"):
            return job
        time.sleep(0.02)
    raise AssertionError(job)


def names(client: TestClient, source: str) -> list[str]:
    table = client.get("/api/directions", params={"generator": "tiny", "source": source}).json()
    return [row["name"] for row in table["rows"]]


def test_changes_leave_the_old_file_and_turn_what_they_say(client: TestClient, studio: Studio) -> None:
    first = ask(client, "directions/change", generator="tiny", source="eigen", rename={"L1D1": "tone"}, drop=["L1D2"])
    second = ask(client, "directions/change", generator="tiny", source=first["source"], flip=["tone"])
    assert names(client, first["source"])[:2] == names(client, second["source"])[:2] == ["tone", "L1D3"]
    one, two = (studio.shelf.directions("tiny", each["source"]) for each in (first, second))
    assert torch.equal(one.vectors[0], -two.vectors[0])
    assert ask(client, "directions/change", generator="tiny", source=first["source"], flip=["tone"]) == second
    reply = client.post("/api/directions/change", json={"generator": "tiny", "source": "eigen", "rename": {"L9": "x"}})
    assert "unknown direction 'L9'" in reply.json()["error"]


def test_curved_sets_move_by_a_distance(client: TestClient, studio: Studio) -> None:
    g = studio.shelf.generator("tiny")
    curve = dipoles(2, dim=g.spaces["z"].dim)
    curve = dataclasses.replace(curve, centre=torch.zeros_like(curve.centre))
    bent = curved(curve, g, "z")
    source = str(bent.save(studio.shelf.folder("tiny") / "bent.safetensors"))
    table = client.get("/api/directions", params={"generator": "tiny", "source": source}).json()
    assert [row["is_straight"] for row in table["rows"]] == [False, False]

    walked = edit({"directions": source, "name": "c1", "by": 3.0}, move("L1D1", 1.0), seed=5)
    shown = pixels(client.post("/api/picture", json={"edit": walked}).content)
    codes = METHODS["eigen"](measured=False).fit(g).move(bent.move(g.sample(1, seed=5), "c1", by=3.0), "L1D1", by=1.0)
    assert np.abs(shown.astype(int) - to_uint8(g(codes)[0]).astype(int)).max() <= 1
    strip = client.post("/api/strip", json={"edit": walked, "directions": source, "name": "c0", "n": 3})
    assert pixels(strip.content).shape == (16, 48, 3)

    turned = ask(client, "directions/change", generator="tiny", source=source, flip=["c1"], rename={"c1": "tone"})
    back = edit({"directions": turned["source"], "name": "tone", "by": -3.0}, move("L1D1", 1.0), seed=5)
    assert np.array_equal(pixels(client.post("/api/picture", json={"edit": back}).content), shown)
    reply = client.post("/api/coordinates", json={"edit": edit(), "directions": source})
    assert (reply.status_code, reply.json()["unsupported"]) == (400, True)
    reply = client.post(
        "/api/directions/join", json={"generator": "tiny", "pieces": [{"source": "eigen"}, {"source": source}]}
    )
    assert "straight and curved" in reply.json()["error"]


def test_sets_are_saved_loaded_and_not_overwritten(client: TestClient, tmp_path: Path) -> None:
    saved = ask(client, "directions/save", generator="tiny", source="eigen", name="../my axes")["source"]
    assert Path(saved).parent.parent == tmp_path / "work"
    assert saved in client.get("/api/files", params={"generator": "tiny"}).json()["directions"]
    again = client.post("/api/directions/save", json={"generator": "tiny", "source": "eigen", "name": "my axes"})
    assert "exists already" in again.json()["error"]
    data = client.get("/api/file", params={"source": saved}).content
    up = client.post("/api/directions/upload", params={"generator": "tiny", "name": "mine.safetensors"}, content=data)
    assert names(client, up.json()["source"]) == names(client, "eigen")
    wrong = client.post("/api/directions/upload", params={"generator": "tiny", "name": "x.safetensors"}, content=b"no")
    assert wrong.status_code == 400
    for name in ("x.pkl", "x", "x.exe"):
        reply = client.post("/api/directions/upload", params={"generator": "tiny", "name": name}, content=data)
        assert "is no file of directions" in reply.json()["error"]
    assert client.get("/api/file", params={"source": "/etc/passwd"}).status_code == 400


def test_moves_become_one_slider_that_does_the_same(client: TestClient) -> None:
    moved = edit(move("L1D1", 1.5), move("L2D2", -2.0), seed=3)
    made = ask(client, "directions/compose", edit=moved, name="both of them")
    one = edit({"directions": made["source"], "name": "both of them", "by": made["by"]}, seed=3)
    a, b = (pixels(client.post("/api/picture", json={"edit": each}).content).astype(int) for each in (moved, one))
    assert np.abs(a - b).max() <= 1
    joined = ask(client, "directions/join", generator="tiny", pieces=[{"source": "eigen"}, {"source": made["source"]}])
    assert names(client, joined["source"])[-1] == "both of them"
    reply = client.post("/api/directions/compose", json={"edit": edit(move("L1D1", 1.0)), "name": "x"})
    assert "two or more sliders" in reply.json()["error"]


def test_teach_gives_a_direction_and_a_question(client: TestClient) -> None:
    first = ask(client, "teach", edit=edit(), more=[1], candidates=[1, 2, 3])
    assert first["source"] is None
    assert first["ask"] in (2, 3)
    both = ask(client, "teach", edit=edit(), more=[1, 4], less=[2, 5], candidates=[1, 2, 3, 4, 5], name="wish")
    assert both["ask"] == 3
    assert names(client, both["source"]) == ["wish"]
    assert ask(client, "teach", edit=edit(), more=[1, 4], less=[2, 5], name="wish")["source"] == both["source"]


def test_discover_measure_and_similarity(client: TestClient) -> None:
    methods = client.get("/api/methods", params={"generator": "labelled"}).json()
    assert "no axes of its own" in next(each["reason"] for each in methods if each["name"] == "eigen")
    body = {"generator": "tiny", "method": "sefa", "settings": {"n_directions": 2}, "measure": "none"}
    done = finished(client, ask(client, "discover", **body))
    assert done["state"] == "done"
    source = done["result"]["source"]
    alike = ask(client, "similarity", generator="tiny", a="eigen", b=source)
    assert len(alike["cosines"][0]) == len(names(client, source))
    for wrong, said in (
        ({"method": "sefaa"}, "Did you mean 'sefa'"),
        ({"settings": {"directions": 3}}, "unknown setting"),
        ({"settings": {"n_directions": "many"}}, "int is wanted"),
        ({"generator": "labelled", "method": "eigen", "settings": {}}, "no axes of its own"),
    ):
        assert said in client.post("/api/discover", json=body | wrong).json()["error"]


def test_directions_of_a_box(client: TestClient) -> None:
    done = finished(client, ask(client, "region", edit=edit(seed=2), box=[0, 0, 0.5, 0.5], n_directions=2))
    assert names(client, done["result"]["source"]) == ["box-0", "box-1"]
    assert "is empty" in client.post("/api/region", json={"edit": edit(), "box": [0.5, 0, 0.5, 1]}).json()["error"]


def test_directions_of_a_box_are_those_of_the_picture_that_is_shown(client: TestClient, studio: Studio) -> None:
    def box(wanted: dict[str, Any]) -> torch.Tensor:
        done = finished(client, ask(client, "region", edit=wanted, box=[0, 0, 0.5, 0.5], n_directions=2))
        found = studio.shelf.directions("tiny", done["result"]["source"])
        assert found.provenance.arguments["edit"]["moves"] == wanted["moves"]
        return found.vectors

    moved = edit(move("L1D1", 3.0), seed=2)
    codes = studio.shelf.preview("tiny").codes(Edit.from_json(moved))
    path = save_codes(codes, studio.shelf.workspace / "moved.safetensors", studio.shelf.generator("tiny"))
    assert torch.equal(box(moved), box(edit(file=str(path))))
    assert not torch.allclose(box(moved), box(edit(seed=2)), atol=1e-2)


def test_children_are_codes_with_their_parents_beside_them(client: TestClient) -> None:
    made = ask(client, "breed", a=edit(seed=1), b=edit(move("L1D1", 2.0), seed=2), n=3)
    children = pixels(client.post("/api/picture", json={"edit": edit(file=made["file"], index=0), "n": 3}).content)
    assert children.shape == (16, 48, 3)
    assert client.get("/api/codes", params={"generator": "tiny", "source": made["file"]}).json() == {"n": 3}
    assert client.get("/api/codes", params={"generator": "tiny", "source": "/etc/passwd"}).status_code == 400
    gone = client.get("/api/codes", params={"generator": "tiny", "source": made["file"] + "x"})
    assert (gone.status_code, "x" in gone.json()["error"]) == (400, True)
    notes = client.get("/api/file", params={"source": made["file"].replace(".safetensors", ".json")}).json()
    assert [each["codes"]["seed"] for each in notes["parents"]] == [1, 2]
    again = ask(client, "breed", a=edit(file=made["file"], index=0), b=edit(file=made["file"], index=2))
    assert again["file"] != made["file"]


def test_a_photo_becomes_a_code(client: TestClient) -> None:
    picture = client.post("/api/picture", json={"edit": edit(seed=8)}).content
    where = {"generator": "tiny", "name": "../me.png", "steps": 3}
    done = finished(client, client.post("/api/photo", params=where, content=picture).json())
    assert done["state"] == "done", done
    assert done["result"]["figures"]["psnr"] > 5
    assert client.get(f"/api/jobs/{done['id']}/picture").status_code == 200
    assert client.post("/api/picture", json={"edit": edit(file=done["result"]["file"], index=0)}).status_code == 200
    for wrong in (b"", b"no picture", picture[:200]):
        reply = client.post("/api/photo", params=where, content=wrong)
        assert reply.status_code == 400
        assert "/tmp" not in reply.json()["error"]


def test_no_code_of_a_photo_replaces_another(tmp_path: Path, eigengan: Generator) -> None:
    retrained = copy.deepcopy(eigengan)
    retrained.__dict__.pop("weight_hash", None)
    with torch.no_grad():
        next(retrained.network.parameters()).mul_(1.5)
    assert retrained.name == eigengan.name
    app = create_app(make_studio(tmp_path / "work", {"tiny": eigengan, "retrained": retrained}))
    with TestClient(app, base_url=HERE) as client:
        picture = client.post("/api/picture", json={"edit": edit(seed=8)}).content

        def code(generator: str, steps: int) -> str:
            where = {"generator": generator, "name": "me.png", "steps": steps}
            done = finished(client, client.post("/api/photo", params=where, content=picture).json())
            return str(done["result"]["file"])

        first = code("tiny", 0)
        kept = Path(first).read_bytes()
        assert len({first, code("tiny", 3), code("retrained", 0)}) == 3
        assert code("tiny", 0) == first
        assert Path(first).read_bytes() == kept


def test_a_bomb_is_refused(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("1", (40_000, 40_000)).save(buffer, "PNG")  # 200 kB that would be 4.8 GB
    reply = client.post("/api/photo", params={"generator": "tiny", "name": "x.png"}, content=buffer.getvalue())
    assert reply.status_code == 400


@pytest.mark.parametrize(
    ("kind", "start"), [("strip", b"\x89PNG"), ("gif", b"GIF8"), ("webp", b"RIFF"), ("mp4", b"\0\0\0")]
)
def test_strips_and_films(client: TestClient, kind: str, start: bytes) -> None:
    moved = edit(move("L1D1", 2.0))
    way = client.post("/api/export", json={"edit": moved, "kind": kind, "n": 3})
    assert way.content.startswith(start)
    axis = client.post("/api/export", json={"edit": moved, "kind": kind, "n": 3, "directions": "eigen", "name": "L2D1"})
    assert axis.content.startswith(start)
    assert axis.content != way.content


def test_strips_and_films_know_the_command_that_makes_them(
    tmp_path: Path, eigengan: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    eigengan.save("g")
    place = str(tmp_path / "g")
    with TestClient(create_app(make_studio(tmp_path / "work", {place: eigengan})), base_url=HERE) as client:

        def exported(out: str, *moves: dict[str, Any], **body: Any) -> dict[str, Any]:
            wanted = {"version": 1, "generator": place, "codes": {"seed": 5, "truncation": 0.5}, "moves": list(moves)}
            reply = client.post("/api/export", json={"edit": wanted, "n": 5} | body)
            Path(out).write_bytes(reply.content)
            told = read_recipe(out)
            assert told is not None
            assert told["kind"] == body["kind"]
            return told

        axis = {"directions": "eigen", "name": "L2D1"}
        told = exported("ours.webp", move("L2D1", 1.0), kind="webp", fps=8, **axis)
        assert main(shlex.split(told["command"])[1:]) == 0
        with Image.open("ours.webp") as ours, Image.open("film.webp") as theirs:
            assert ours.n_frames == theirs.n_frames > 4
            for k in range(ours.n_frames):
                ours.seek(k)
                theirs.seek(k)
                pair = [np.asarray(each.convert("RGB")).astype(int) for each in (ours, theirs)]
                assert np.abs(pair[0] - pair[1]).max() <= 2
        strip = exported("ours.png", kind="strip", **axis)["command"]
        assert strip.startswith(f"eigenlens traverse {place} --axis L2D1 --directions eigen --range=-3:3 --steps 5")
        assert main(shlex.split(strip)[1:]) == 0
        elsewhere = exported("other.png", move("L1D1", 1.0), kind="strip", **axis)
        assert "command" not in elsewhere
        assert (elsewhere["directions"], elsewhere["name"], elsewhere["n"]) == ("eigen", "L2D1", 5)
        assert "command" not in exported("way.gif", move("L1D1", 1.0), kind="gif")


def test_what_a_reader_sees_is_held(client: TestClient) -> None:
    assert "brightness" in next(r["attributes"] for r in client.get("/api/readers").json() if r["name"] == "pixels")
    plain = edit(move("L2D1", 2.0), seed=1)
    shades = [
        (pixels(client.post("/api/picture", json={"edit": each}).content) @ (0.299, 0.587, 0.114)).mean()
        for each in (edit(seed=1), plain, plain | {"keep": ["pixels:brightness"]})
    ]
    assert abs(shades[2] - shades[0]) < 0.3 * abs(shades[1] - shades[0]) + 0.5


def test_names_are_proposed_and_old_ones_told(client: TestClient) -> None:
    made = ask(client, "directions/change", generator="tiny", source="eigen", drop=["L1D2", "L1D3", "L2D1", "L2D2"])
    done = finished(client, ask(client, "names", generator="tiny", source=made["source"]))
    assert done["state"] == "done", done
    old, new = names(client, made["source"]), names(client, done["result"]["source"])
    assert [done["result"]["rename"].get(name, name) for name in old] == new


@pytest.mark.slow
def test_an_explorer_page(client: TestClient) -> None:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    done = finished(client, ask(client, "explorer", edit=edit(seed=1), source="eigen"))
    assert done["state"] == "done", done
    page = client.get("/api/file", params={"source": done["result"]["file"]})
    assert page.text.lower().startswith("<!doctype html>")
    assert page.headers["content-disposition"].startswith("attachment")


def test_published_edits_name_components(
    tiny: Callable[[str], Generator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"name": "hair", "component": 1, "layers": [0, 2], "sigma": 2.0, "absolute": False, "invert": False}
    content = {"format": "eigenlens.presets/1", "slots": 4, "presets": [entry]}
    (tmp_path / "mine.json").write_text(json.dumps(content), "utf-8")
    monkeypatch.setattr("eigenlens.presets.FOLDER", tmp_path)
    app = create_app(make_studio(tmp_path / "work", {"tiny": tiny("stylegan2")}))
    body = {"generator": "tiny", "source": "sefa"}
    with TestClient(app, base_url=HERE) as client:
        made = ask(client, "directions/presets", **body, presets="mine")
        assert names(client, made["source"]) == ["hair"]
        for wrong in ("../mine", str(tmp_path / "mine.json"), "ours"):
            reply = client.post("/api/directions/presets", json=body | {"presets": wrong})
            assert "unknown file of presets" in reply.json()["error"]
