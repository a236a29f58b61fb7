"""Who may talk to the studio, and how much they may send: hosts, origins and sizes are checked before anything else."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_BODY = 1 << 20
"""Bytes of an ordinary request."""
LARGEST_UPLOAD = 32 << 20
"""Bytes of a photo or a file of directions."""

HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
        b"object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""Sent with every reply: nothing is fetched from elsewhere, and no other page may frame or read this one."""


class Guard:
    """Refuse requests whose Host is not ours, whose Origin is another page's, or whose body is too large.

    Without it any web page could talk to a server on this machine, by a form or by a name that resolves to 127.0.0.1.

    Args:
        app: what is guarded.
        hosts: names that the server is reached by, besides localhost; `"*"` among them lets every address (not every
            name) through, for a server that listens on all interfaces.
        uploads: paths whose bodies may be large.
    """

    def __init__(self, app: App, *, hosts: Iterable[str] = (), uploads: Iterable[str] = ()) -> None:
        self.app = app
        self.hosts = {"localhost", "127.0.0.1", "::1", *hosts}
        self.uploads = set(uploads)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            headers[name] = headers.get(name, b"") + value  # a second Host makes neither valid
        complaint = self.complaint(headers)
        if complaint:
            await _refuse(scope, receive, send, 403, complaint)
            return
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        limit = LARGEST_UPLOAD if scope["path"] in self.uploads else LARGEST_BODY
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            await _refuse(scope, receive, send, 413, f"the body is larger than {limit >> 20} MiB")
            return
        await self.app(scope, _limited(receive, limit), _with_headers(send))

    def complaint(self, headers: dict[bytes, bytes]) -> str:
        """Return why a request with these headers is refused; empty where it is not."""
        host = headers.get(b"host", b"").decode("latin-1")
        if not self.knows(_hostname(f"//{host}")):
            return f"the studio does not answer to the host {host[:80]!r}; open the address that it printed"
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and urlsplit(origin).netloc != host:
            return f"a page of {origin[:80]!r} may not talk to the studio"
        if headers.get(b"sec-fetch-site", b"none") == b"cross-site" and headers.get(b"sec-fetch-mode") != b"navigate":
            return "another page may not talk to the studio"
        return ""

    def knows(self, name: str) -> bool:
        """Tell whether `name` is one of ours."""
        if name in self.hosts:
            return True
        return "*" in self.hosts and _is_address(name)


def _hostname(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _limited(receive: Receive, limit: int) -> Receive:
    """Count what a chunked body brings; past the limit the client is as good as gone."""
    taken = 0

    async def counted() -> MutableMapping[str, Any]:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            return {"type": "http.disconnect"}
        return message

    return counted


def _with_headers(send: Send) -> Send:
    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await send(message)

    return sent


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await receive()  # the handshake
        await send({"type": "websocket.close", "code": 1008, "reason": reason[:120]})
        return
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
