"""A request as it comes through either door. Pure.

The common case, tnetstring headers that are all strings, is read in one pass over the bytes, and
what was read before is remembered; everything else goes through the codec of the frontend.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from frontend.mongrel2 import MessageError, decode_request

_START = re.compile(rb"([A-Za-z0-9-]+) ([0-9]{1,10}) ([^ ]+) ([0-9]{1,9}):")
# the sizes below 100 as they stand in a message, two bytes each; find and int cost three times more
_SIZES: Final = {b"%d:" % n: n for n in range(10)} | {b"%d" % n: n for n in range(10, 100)}
_KEPT = 1024  # blocks remembered: one client's headers are the same for each of its requests
_KEPT_BYTES = 2048
_REQUEST_ID = b"12:x-request-id,"
_N = rb"([1-9][0-9]{0,3}|0):"
_TEXT = rb"([^,\r\n\0]*),"
# what our frontend says of each request, when nothing in it has a comma
_OWN = re.compile(
    _REQUEST_ID + _N + _TEXT + rb"6:METHOD," + _N + _TEXT + rb"7:PATTERN," + _N + _TEXT
    + rb"(?:5:QUERY," + _N + _TEXT + rb")?3:URI," + _N + _TEXT
    + rb"7:VERSION,8:(HTTP/1\.[01]),4:PATH," + _N + _TEXT
)  # fmt: skip

Header = tuple[bytes, bytes]

# RFC 9110 §7.6.1; trailer goes because trailers do not pass
HOP_BY_HOP = frozenset(
    [
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ]
)
# hop-by-hop, or written anew; the frontend has answered an expectation already
SPECIAL: Final = HOP_BY_HOP | {b"content-length", b"expect", b"http2-settings"}


class Block:
    """Some headers that came together: the server's, the client's, and what an app gets of those.

    `lines` are the client's without the `special` ones, None when one of them has a line break.
    """

    __slots__ = ("headers", "lines", "server", "special")

    def __init__(self, server: dict[bytes, bytes], headers: list[Header]) -> None:
        self.server = server
        self.headers = headers
        self.special = [header for header in headers if header[0] in SPECIAL]
        self.lines: bytes | None = join(header for header in headers if header[0] not in SPECIAL)


def join(headers: Iterable[Header]) -> bytes | None:
    """Headers as lines; None when they would be other lines than these."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    text = b"".join(lines)
    count = len(lines)
    if text.count(b"\n") != count or text.count(b"\r") != count or b"\0" in text:
        return None
    return text


_NONE = Block({}, [])
_fronts: dict[bytes, Block] = {}
_backs: dict[bytes, Block] = {}


class Incoming:
    """One request: the server's headers (upper case), the client's in order, and the body.

    The client's stand in `blocks`; what they have in common with others is shared with those.
    """

    __slots__ = ("blocks", "body", "ident", "number", "path", "server")

    def __init__(
        self,
        ident: bytes,
        number: int,
        path: bytes,
        server: dict[bytes, bytes],
        blocks: tuple[Block, ...],
        body: bytes,
    ) -> None:
        self.ident = ident
        self.number = number
        self.path = path
        self.server = server
        self.blocks = blocks
        self.body = body

    @property
    def headers(self) -> list[Header]:
        """The client's, in order."""
        return [header for block in self.blocks for header in block.headers]

    def header(self, name: bytes) -> bytes | None:
        """The first value of a client's header."""
        for block in self.blocks:
            for found, value in block.headers:
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
    ident, number, path, size = start.groups()
    begin = start.end()
    end = begin + int(size)
    if message[end : end + 1] == b"}":
        try:
            server, blocks = _blocks(message, begin, end)
            body = _body(message, end + 1)
        except (ValueError, IndexError):
            pass  # lists inside, or nonsense: the careful reader decides
        else:
            return Incoming(ident, int(number), path, server, blocks, body)
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
    blocks = (Block({}, headers),)
    return Incoming(request.ident, request.id, path, server, blocks, request.body)


def _blocks(data: bytes, begin: int, end: int) -> tuple[dict[bytes, bytes], tuple[Block, ...]]:
    """All headers. Before the request's id stands what is true of the connection, after the path
    what the client said: both are the same for many requests. Raises ValueError or IndexError.
    """
    front = _NONE
    split = data.find(_REQUEST_ID, begin, end)
    if split > begin:
        front = _remembered(_fronts, data, begin, split)
        begin = split
    server = front.server.copy()
    match = _OWN.match(data, begin, end)
    own = _own(server, match.groups()) if match is not None else None
    if own is not None and match is not None:
        at = match.end()
    else:
        headers: list[Header] = []
        at = _pairs(data, begin, end, server, headers, until_path=True)
        own = Block({}, headers) if headers else _NONE
    if at == end:
        return server, (front, own)
    back = _remembered(_backs, data, at, end)
    if back.server:
        server |= back.server
    return server, (front, own, back)


def _own(server: dict[bytes, bytes], groups: tuple[bytes, ...]) -> Block | None:
    """The usual pairs, put into `server`; None when a size is not that of its text."""
    id_size, id, m, method, p, pattern, q, query, u, uri, version, t, path = groups
    if (
        int(id_size) != len(id)
        or int(m) != len(method)
        or int(p) != len(pattern)
        or int(u) != len(uri)
        or int(t) != len(path)
    ):
        return None
    if q is not None:
        if int(q) != len(query):
            return None
        server[b"QUERY"] = query
    server[b"METHOD"] = method
    server[b"PATTERN"] = pattern
    server[b"URI"] = uri
    server[b"VERSION"] = version
    server[b"PATH"] = path
    block = Block.__new__(Block)
    block.server = {}
    block.headers = [(b"x-request-id", id)]
    block.lines = b"x-request-id: %b\r\n" % id
    block.special = []
    return block


def _remembered(known: dict[bytes, Block], data: bytes, at: int, end: int) -> Block:
    raw = data[at:end]
    block = known.get(raw)
    if block is None:
        server: dict[bytes, bytes] = {}
        headers: list[Header] = []
        if _pairs(data, at, end, server, headers) != end:
            raise ValueError("pairs are longer than their size")
        block = Block(server, headers)
        if len(raw) <= _KEPT_BYTES:
            if len(known) >= _KEPT:
                del known[next(iter(known))]
            known[raw] = block
    return block


def _pairs(
    data: bytes,
    at: int,
    end: int,
    server: dict[bytes, bytes],
    headers: list[Header],
    *,
    until_path: bool = False,
) -> int:
    """Read pairs into `server` and `headers`; where it stopped. Raises ValueError or IndexError."""
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
            if until_path and name == b"PATH":
                return at + 1
        else:
            headers.append((name, data[value_at:at]))
        at += 1
    if at != end:
        raise ValueError("pairs are longer than their size")
    return at


def _size(data: bytes, at: int) -> tuple[int, int]:
    """A size of any length, and where what it measures begins. Raises ValueError."""
    colon = data.find(b":", at, at + 10)
    digits = data[at:colon]
    if not digits.isdigit() or (digits[0] == 48 and len(digits) > 1):
        raise ValueError("no size")
    return int(digits), colon + 1


def _body(data: bytes, at: int) -> bytes:
    if data[at:] == b"0:,":
        return b""
    size, start = _size(data, at)
    stop = start + size
    if stop + 1 != len(data) or data[stop] != 44:
        raise ValueError("bad body")
    return data[start:stop]
