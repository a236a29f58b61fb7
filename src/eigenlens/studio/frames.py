"""The socket that frames run through: the newest request wins, and one frame is in flight."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

from ..errors import UserError

LARGEST_MESSAGE = 256 << 10
"""Characters of a request."""
PATIENCE = 30.0
"""Seconds that a tab may take to accept a frame before its socket is closed."""

Render = Callable[[dict[str, Any]], Awaitable[tuple[dict[str, Any], bytes]]]


def packed(about: dict[str, Any], picture: bytes) -> bytes:
    """Return one binary message: the length of the JSON as four bytes, the JSON, the picture.

    Example:
        >>> packed({"id": 1}, b"...")
        b'\\x08\\x00\\x00\\x00{"id":1}...'
    """
    head = json.dumps(about, separators=(",", ":")).encode()
    return struct.pack("<I", len(head)) + head + picture


def parsed(text: str) -> dict[str, Any]:
    """Read a request: a JSON object that is not too long.

    Raises:
        UserError: where it is none.
    """
    if len(text) > LARGEST_MESSAGE:
        raise UserError(f"a request of {len(text):,} characters came; at most {LARGEST_MESSAGE:,}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"a request is a JSON object; this is none: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise UserError(f"a request is a JSON object; a {type(value).__name__} came")
    return value


class Frames:
    """One open socket: it remembers the newest request alone, so that a page can never make a queue.

    Args:
        socket: accepted.
        render: makes the picture of a request; raises UserError where it cannot.
    """

    def __init__(self, socket: WebSocket, render: Render) -> None:
        self.socket = socket
        self.render = render
        self._newest: str | None = None
        self._came = asyncio.Event()

    async def run(self) -> None:
        """Serve until the page goes, or stops reading."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write, tasks.cancel_scope)
            await self._read()
            tasks.cancel_scope.cancel()

    async def _read(self) -> None:
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            self._newest = message.get("text") or ""  # bytes are no request; the error says so
            self._came.set()

    async def _write(self, scope: anyio.CancelScope) -> None:
        try:
            while True:
                await self._came.wait()
                self._came.clear()
                text, self._newest = self._newest, None
                if text is not None:
                    await self._answer(text)
        except (WebSocketDisconnect, TimeoutError, RuntimeError):  # gone, or it has stopped reading
            scope.cancel()

    async def _answer(self, text: str) -> None:
        number: Any = None
        try:
            request = parsed(text)
            number = request.pop("id", None)
            number = number if isinstance(number, int) else None
            began = time.perf_counter()
            about, picture = await self.render(request)
            took = round(1000 * (time.perf_counter() - began), 2)
            sent = self.socket.send_bytes(packed({"id": number, **about, "ms": took}, picture))
        except Exception as error:  # whatever one request does to the program, the next is answered
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            sent = self.socket.send_text(json.dumps({"id": number, "error": said[:2000]}))
        with anyio.fail_after(PATIENCE):
            await sent
