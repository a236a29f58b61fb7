"""Whatever a request or a message holds, the studio answers, and goes on."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("schemathesis", reason="schemathesis is not installed: the API is not fuzzed here")
pytest.importorskip("fastapi", reason="the studio's extra is not installed")

import schemathesis
from fastapi.testclient import TestClient

from eigenlens.studio.server import create_app
from families import TINY
from studios import make_studio

SOCKET = "ws://127.0.0.1:7654/frames"
WORK = Path(tempfile.mkdtemp(prefix="studio-fuzz-"))
atexit.register(shutil.rmtree, WORK, ignore_errors=True)
STUDIO = make_studio(WORK / "work", {"tiny": TINY["eigengan"]()})
APP = create_app(STUDIO, hosts=("testserver",))
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)

QUIET = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


@SCHEMA.parametrize()
@QUIET
def test_no_request_is_a_fault_of_the_server(case: Any) -> None:
    response = case.call()
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert response.json()["error"]


numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans())
words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["tiny", "eigen", "L1D1", "L2D2", "all", "1-2", "../x", "/etc/passwd", "none"]),
)
leaves = st.one_of(st.none(), numbers, words)
anything = st.recursive(
    leaves, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3))
)
moves = st.fixed_dictionaries(
    {},
    optional={
        "directions": st.one_of(st.just("eigen"), leaves),
        "name": st.one_of(st.sampled_from(["L1D1", "L2D2", 0]), leaves),
        "by": st.one_of(st.floats(-5, 5), leaves),
        "to": leaves,
        "layers": st.one_of(st.none(), st.sampled_from(["1", "all"]), leaves),
        "unit": st.one_of(st.none(), leaves),
    },
)
codes = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.one_of(st.integers(0, 99), leaves),
        "index": st.one_of(st.integers(0, 99), leaves),
        "truncation": st.one_of(st.floats(0, 2), leaves),
        "space": leaves,
        "cutoff": leaves,
        "label": leaves,
        "noise": leaves,
        "file": st.one_of(st.none(), words),
    },
)
edits = st.fixed_dictionaries(
    {"version": st.just(1), "generator": st.just("tiny"), "codes": st.one_of(codes, anything)},
    optional={
        "moves": st.one_of(st.lists(moves, max_size=3), anything),
        "keep": st.one_of(st.just(["pixels:brightness"]), anything),
        "until": st.one_of(st.just("pixels:brightness>0.5"), leaves),
        "region": st.one_of(st.lists(st.floats(0, 1), min_size=4, max_size=4), anything),
    },
)
requests = st.fixed_dictionaries(
    {"edit": st.one_of(edits, edits, anything)},
    optional={
        "id": leaves,
        "n": st.one_of(st.integers(1, 4), leaves),
        "largest": leaves,
        "columns": leaves,
        "final": leaves,
        "x": leaves,
    },
)
messages = st.one_of(requests.map(json.dumps), anything.map(json.dumps), st.text(max_size=40))


@given(st.lists(messages, min_size=1, max_size=6))
@example(['{"edit": {"version": 1, "generator": "tiny", "codes": {"seed": 4611686018427387904}, "moves": []}}'])
@settings(QUIET, max_examples=40)
def test_no_message_ends_the_socket(texts: list[str]) -> None:
    with TestClient(APP) as client, client.websocket_connect(SOCKET) as socket:
        for text in texts:
            socket.send_text(text)
            reply = socket.receive()
            assert reply["type"] == "websocket.send"
            if reply.get("text") is not None:
                assert json.loads(reply["text"])["error"]
        socket.send_text(json.dumps({"id": 1, "edit": {"version": 1, "generator": "tiny", "codes": {}, "moves": []}}))
        assert socket.receive()["bytes"]
