"""A request as the HTTP/1.1 request for an app. Pure."""

from __future__ import annotations

import re

from appnode.incoming import SPECIAL, Header, Incoming, join
from frontend.mongrel2 import MessageError

# RFC 9110 §9.2.2: what may be sent twice
IDEMPOTENT = frozenset([b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"])

_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,40}")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
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
        text = b""
        special: list[Header] = []
        for block in incoming.blocks:
            if block.lines is None:
                raise MessageError("not a request: a header has a line break")
            text += block.lines
            if block.special:
                special += block.special
        if special:
            text = self._obey(incoming, special, text)
        if not self.http11 and incoming.header(b"host") is None:
            text = b"host: localhost\r\n" + text  # HTTP/1.1 requires one
        if more:
            if self.length is None:
                text += b"transfer-encoding: chunked\r\n"
            else:
                text += b"content-length: %d\r\n" % self.length
        else:
            if body or self.length is not None or method in _WITH_BODY:
                text += b"content-length: %d\r\n" % len(body)
            self.length = len(body)
        self.head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, text)

    def _obey(self, incoming: Incoming, special: list[Header], text: bytes) -> bytes:
        """Obey the hop-by-hop headers; the lines to send. Raises MessageError."""
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
            text = join(h for h in incoming.headers if h[0] not in SPECIAL | nominated) or b""
        if upgrade and b"upgrade" in options:
            self.upgrade = True
            line = join([(b"upgrade", upgrade)])
            if line is None:
                raise MessageError("not a request: a header has a line break")
            text += b"connection: upgrade\r\n" + line
        return text


def _length(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise MessageError("not a request: bad content-length")
    return int(text)
