"""A request as it comes through either door. Pure.

The common case, tnetstring headers that are all strings, is read in one pass over the bytes;
everything else goes through the codec of the frontend.
"""

from __future__ import annotations

import re
from typing import Final

from frontend.mongrel2 import MessageError, decode_request

_START = re.compile(rb"([A-Za-z0-9-]+) ([0-9]{1,10}) ([^ ]+) ([0-9]{1,9}):")
# the sizes below 100 as they stand in a message, two bytes each; find and int cost three times more
_SIZES: Final = {b"%d:" % n: n for n in range(10)} | {b"%d" % n: n for n in range(10, 100)}

Header = tuple[bytes, bytes]


class Incoming:
    """One request: the server's headers (upper case), the client's in order, and the body."""

    __slots__ = ("body", "headers", "ident", "number", "path", "server")

    def __init__(
        self,
        ident: bytes,
        number: int,
        path: bytes,
        server: dict[bytes, bytes],
        headers: list[Header],
        body: bytes,
    ) -> None:
        self.ident = ident
        self.number = number
        self.path = path
        self.server = server
        self.headers = headers
        self.body = body

    def header(self, name: bytes) -> bytes | None:
        """The first value of a client's header."""
        for found, value in self.headers:
            if found == name:
                return value
        return None

    @property
    def is_http11(self) -> bool:
        return self.server.get(b"VERSION") != b"HTTP/1.0"

    @property
    def wants_upgrade(self) -> bool:
        """True when the client asks for another protocol on this connection."""
        options = b",".join(value for name, value in self.headers if name == b"connection")
        named = {option.strip(b" \t") for option in options.lower().split(b",")}
        return b"upgrade" in named and bool(self.header(b"upgrade"))


def parse(message: bytes) -> Incoming:
    """Take a request message apart. Raises MessageError."""
    start = _START.match(message)
    if start is None:
        raise MessageError("not a request")
    begin = start.end()
    end = begin + int(start[4])
    if message[end : end + 1] == b"}":
        try:
            server, headers = _pairs(message, begin, end)
            body = _body(message, end + 1)
        except (ValueError, IndexError):
            pass  # lists inside, or nonsense: the careful reader decides
        else:
            return Incoming(start[1], int(start[2]), start[3], server, headers, body)
    return _carefully(message)


def _carefully(message: bytes) -> Incoming:
    request = decode_request(message)
    server: dict[bytes, bytes] = {}
    headers: list[Header] = []
    for text, found in request.headers.items():
        for item in [found] if isinstance(found, str) else found:
            try:
                name, value = text.encode("latin-1"), item.encode("latin-1")
            except UnicodeEncodeError as exc:
                raise MessageError("not a request: a header is not Latin-1") from exc
            if b"A" <= name[:1] <= b"Z":
                server[name] = value
            else:
                headers.append((name, value))
    path = request.path.encode("latin-1")
    return Incoming(request.ident, request.id, path, server, headers, request.body)


def _pairs(data: bytes, at: int, end: int) -> tuple[dict[bytes, bytes], list[Header]]:
    """The server's headers and the client's. Raises ValueError or IndexError."""
    server: dict[bytes, bytes] = {}
    headers: list[Header] = []
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
        if 64 < name[0] < 91:  # the server's are upper case, a client's never
            server[name] = data[value_at:at]
        else:
            headers.append((name, data[value_at:at]))
        at += 1
    if at != end:
        raise ValueError("pairs are longer than their size")
    return server, headers


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
