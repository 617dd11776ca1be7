"""A request as the HTTP/1.1 request for an app. Pure."""

from __future__ import annotations

import re
from typing import Final

from appnode.incoming import Header, Incoming
from appnode.response import HOP_BY_HOP
from frontend.mongrel2 import MessageError

# RFC 9110 §9.2.2: what may be sent twice
IDEMPOTENT = frozenset([b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"])

_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,40}")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
# hop-by-hop, or written anew; the frontend has answered an expectation already
_SPECIAL: Final = HOP_BY_HOP | {b"content-length", b"expect", b"http2-settings"}
_WITH_BODY = frozenset([b"POST", b"PUT", b"PATCH"])


class Forward:
    """One request, ready for the app.

    `head` ends with its blank line. `length` is that of the body, None when it is unknown (then
    the body goes out chunked). `body` is what came with the request. `http11`: the client can
    take a chunked reply. `upgrade`: it asks for another protocol on this connection.
    """

    __slots__ = ("body", "head", "http11", "length", "method", "upgrade")

    def __init__(self, incoming: Incoming, *, more: bool = False) -> None:
        """`more`: the body follows. Raises MessageError when it would not be one request."""
        server = incoming.server
        method = self.method = server.get(b"METHOD", b"")
        target = server.get(b"URI", b"")
        if not _METHOD.fullmatch(method) or not _TARGET.fullmatch(target) or method == b"CONNECT":
            raise MessageError("not a request: bad method or target")
        self.http11 = server.get(b"VERSION") != b"HTTP/1.0"
        self.upgrade = False
        self.length: int | None = None
        self.body = body = incoming.body
        special: list[Header] = []
        lines: list[bytes] = []
        for header in incoming.headers:
            if header[0] in _SPECIAL:
                special.append(header)
            else:
                lines.append(b"%b: %b" % header)
        if special:
            lines = self._obey(special, lines)
        if not self.http11 and incoming.header(b"host") is None:
            lines.insert(0, b"host: localhost")  # HTTP/1.1 requires one
        if more:
            if self.length is None:
                lines.append(b"transfer-encoding: chunked")
            else:
                lines.append(b"content-length: %d" % self.length)
        else:
            if body or self.length is not None or method in _WITH_BODY:
                lines.append(b"content-length: %d" % len(body))
            self.length = len(body)
        text = b"\r\n".join(lines)
        breaks = len(lines) - 1 if lines else 0
        if text.count(b"\n") != breaks or text.count(b"\r") != breaks or b"\0" in text:
            raise MessageError("not a request: a header has a line break")
        self.head = b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (method, target, text)

    @property
    def is_idempotent(self) -> bool:
        return self.method in IDEMPOTENT

    def _obey(self, special: list[Header], lines: list[bytes]) -> list[bytes]:
        """Obey the hop-by-hop headers; the lines to send."""
        options: set[bytes] = set()
        upgrade = b""
        for name, value in special:
            if name == b"connection":
                options |= {option.strip(b" \t") for option in value.lower().split(b",")}
            elif name == b"upgrade":
                upgrade = value
            elif name == b"content-length":
                self.length = _length(value)
        nominated = options - {b"close", b"keep-alive", b"upgrade", b"host", b""}
        if nominated:
            lines = [line for line in lines if line[: line.index(b":")] not in nominated]
        if upgrade and b"upgrade" in options:
            self.upgrade = True
            lines += [b"connection: upgrade", b"upgrade: " + upgrade]
        return lines


def _length(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise MessageError("not a request: bad content-length")
    return int(text)
