"""A Mongrel2 request as the HTTP/1.1 request for an app. Pure.

The common case, tnetstring headers that are all strings, is read in one pass over the bytes;
everything else goes through the codec of the frontend.
"""

from __future__ import annotations

import re
from typing import Final

from appnode.response import HOP_BY_HOP
from frontend.mongrel2 import MessageError, Request, decode_request

# RFC 9110 §9.2.2: what may be sent twice
IDEMPOTENT = frozenset([b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"])

_START = re.compile(rb"([A-Za-z0-9-]+) ([0-9]{1,10}) [^ ]+ ([0-9]{1,9}):")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,40}")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
# hop-by-hop, or written anew; the frontend has answered an expectation already
_SPECIAL: Final = HOP_BY_HOP | {b"content-length", b"expect", b"http2-settings"}
# the sizes below 100 as they stand in a message, two bytes each; find and int cost three times more
_SIZES: Final = {b"%d:" % n: n for n in range(10)} | {b"%d" % n: n for n in range(10, 100)}
_WITH_BODY = frozenset([b"POST", b"PUT", b"PATCH"])


class Forward:
    """One request, ready for the app.

    `head` ends with its blank line. `length` is that of the body, None when it is unknown (then
    the body goes out chunked). `body` is what came with the request. `http11`: the client can
    take a chunked reply. `upgrade`: it asks for another protocol on this connection.
    """

    __slots__ = ("body", "head", "http11", "ident", "length", "method", "number", "upgrade")

    def __init__(self, ident: bytes, number: int) -> None:
        self.ident = ident
        self.number = number
        self.method = b""
        self.head = b""
        self.body = b""
        self.length: int | None = None
        self.http11 = True
        self.upgrade = False

    @property
    def is_idempotent(self) -> bool:
        return self.method in IDEMPOTENT


def read(message: bytes, *, more: bool = False) -> Forward:
    """Take a request message apart; `more`: its body follows. Raises MessageError."""
    start = _START.match(message)
    if start is None:
        raise MessageError("not a request")
    begin = start.end()
    end = begin + int(start[3])
    if message[end : end + 1] != b"}":
        return from_request(decode_request(message), more=more)
    forward = Forward(start[1], int(start[2]))
    try:
        server, special, lines = _pairs(message, begin, end)
        forward.body = _body(message, end + 1)
    except (ValueError, IndexError):  # lists inside, or nonsense: the careful reader decides
        return from_request(decode_request(message), more=more)
    return _finish(forward, server, special, lines, more=more)


def from_request(request: Request, *, more: bool = False) -> Forward:
    """The same from a decoded request. Raises MessageError."""
    forward = Forward(request.ident, request.id)
    forward.body = request.body
    server: dict[bytes, bytes] = {}
    special: list[tuple[bytes, bytes]] = []
    lines: list[bytes] = []
    for text, found in request.headers.items():
        name = text.encode("latin-1")
        for item in [found] if isinstance(found, str) else found:
            try:
                value = item.encode("latin-1")
            except UnicodeEncodeError as exc:
                raise MessageError("not a request: a header is not Latin-1") from exc
            _sort(name, value, server, special, lines)
    return _finish(forward, server, special, lines, more=more)


def _sort(
    name: bytes,
    value: bytes,
    server: dict[bytes, bytes],
    special: list[tuple[bytes, bytes]],
    lines: list[bytes],
) -> None:
    if b"A" <= name[:1] <= b"Z":
        server[name] = value
    elif name in _SPECIAL:
        special.append((name, value))
    else:
        lines.append(name + b": " + value)


def _pairs(
    data: bytes, at: int, end: int
) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]], list[bytes]]:
    """The server's headers, the special ones and lines of the rest. Raises ValueError."""
    server: dict[bytes, bytes] = {}
    special: list[tuple[bytes, bytes]] = []
    lines: list[bytes] = []
    size_of = _SIZES.get
    while at < end:
        size = size_of(data[at : at + 2], -1)
        name_at = at + 2 if size < 10 else at + 3
        stop = name_at + size
        name = data[name_at:stop]
        at = stop + 1
        if data[name_at - 1] != 58 or data[stop] != 44 or size < 1:  # a colon and a comma
            raise ValueError("not a string")
        size = size_of(data[at : at + 2], -1)
        value_at = at + 2 if size < 10 else at + 3
        if size < 0 or data[value_at - 1] != 58:
            size, value_at = _size(data, at)
        at = value_at + size
        if data[at] != 44:
            raise ValueError("not a string")
        if name[0] < 91:  # the server's are upper case, a client's never
            server[name] = data[value_at:at]
        elif name in _SPECIAL:
            special.append((name, data[value_at:at]))
        else:
            lines.append(name + b": " + data[value_at:at])
        at += 1
    if at != end:
        raise ValueError("pairs are longer than their size")
    return server, special, lines


def _size(data: bytes, at: int) -> tuple[int, int]:
    """A size of any length, and where what it measures begins. Raises ValueError."""
    colon = data.find(b":", at, at + 10)
    digits = data[at:colon]
    if not digits.isdigit() or (digits[0] == 48 and len(digits) > 1):
        raise ValueError("no size")
    return int(digits), colon + 1


def _body(data: bytes, at: int) -> bytes:
    size, start = _size(data, at)
    stop = start + size
    if stop + 1 != len(data) or data[stop] != 44:
        raise ValueError("bad body")
    return data[start:stop]


def _finish(
    forward: Forward,
    server: dict[bytes, bytes],
    special: list[tuple[bytes, bytes]],
    lines: list[bytes],
    *,
    more: bool,
) -> Forward:
    """Put the head together. Raises MessageError when it would not be exactly these lines."""
    method = forward.method = server.get(b"METHOD", b"")
    target = server.get(b"URI", b"")
    if not _METHOD.fullmatch(method) or not _TARGET.fullmatch(target) or method == b"CONNECT":
        raise MessageError("not a request: bad method or target")
    forward.http11 = server.get(b"VERSION") != b"HTTP/1.0"
    has_length = False
    if special:
        lines, has_length = _special(forward, special, lines)
    if not more:
        forward.length = len(forward.body)
        if forward.length or has_length or method in _WITH_BODY:
            lines.append(b"content-length: %d" % forward.length)
    elif forward.length is None:
        lines.append(b"transfer-encoding: chunked")
    else:
        lines.append(b"content-length: %d" % forward.length)
    text = b"\r\n".join(lines)
    breaks = len(lines) - 1 if lines else 0
    if text.count(b"\n") != breaks or text.count(b"\r") != breaks or b"\0" in text:
        raise MessageError("not a request: a header has a line break")
    forward.head = b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (method, target, text)
    return forward


def _special(
    forward: Forward, special: list[tuple[bytes, bytes]], lines: list[bytes]
) -> tuple[list[bytes], bool]:
    """Obey the hop-by-hop headers; the lines to send and whether a length was announced."""
    options: set[bytes] = set()
    upgrade = b""
    length: bytes | None = None
    for name, value in special:
        if name == b"connection":
            options |= {option.strip(b" \t") for option in value.lower().split(b",")}
        elif name == b"upgrade":
            upgrade = value
        elif name == b"content-length":
            length = value
    forward.length = _length(length)
    if upgrade and b"upgrade" in options:
        forward.upgrade = True
    nominated = options - {b"close", b"keep-alive", b"upgrade", b"host", b""}
    if nominated:
        lines = [line for line in lines if line[: line.index(b":")] not in nominated]
    if forward.upgrade:
        lines += [b"connection: upgrade", b"upgrade: " + upgrade]
    return lines, length is not None


def _length(text: bytes | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise MessageError("not a request: bad content-length")
    return int(text)
