"""Mongrel2's messages: requests to handlers, their replies, control messages. Pure codec.

    request  IDENT SP ID SP PATH SP HEADERS BODY
             HEADERS = SIZE:{json},  or  SIZE:pairs}  (a tnetstring dictionary); BODY = SIZE:bytes,
    reply    IDENT SP LEN:ID [SP ID]..., SP BODY      an empty BODY closes the connection
    control  IDENT SP LEN:X SP ID..., SP [name, {…}]  (a tnetstring), to the server

Header text is `str` of Latin-1 characters, one a byte, as in WSGI: exact for both header formats,
since Mongrel2 writes raw bytes into its JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from frontend import tnetstring
from frontend.tnetstring import TnetstringError, Value

Protocol = Literal["json", "tnetstring"]
Headers = dict[str, str | list[str]]

MAX_TARGETS = 128  # ids a real Mongrel2 takes in one reply (`limits.handler_targets`)

_IDENT = re.compile(rb"[A-Za-z0-9-]+")
_REQUEST = re.compile(rb"([A-Za-z0-9-]+) ([0-9]{1,10}) ([^ ]+) ")
_REPLY = re.compile(rb"([A-Za-z0-9-]+) 0*([0-9]{1,9}):")
_TARGETS = re.compile(rb"(X )?([0-9]{1,10}(?: [0-9]{1,10})*) ?")
_ESCAPED = re.compile(r'["\\\x00-\x1f\x7f-\xff]')


class MessageError(ValueError):
    """The bytes are not a message of this protocol."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a server sends to a handler."""

    ident: bytes
    id: int
    path: str
    headers: Headers
    body: bytes

    @property
    def is_disconnect(self) -> bool:
        """True when the server says that connection `id` has gone."""
        return self.path == "@*" and b'"disconnect"' in self.body

    def header(self, name: str) -> str | None:
        """The header's only or first value; client headers are lower case, the server's upper."""
        value = self.headers.get(name)
        return value[0] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler sends to the server, for one or many connections."""

    ident: bytes
    ids: tuple[int, ...]
    body: bytes
    is_control: bool = False


def encode_request(
    ident: bytes,
    number: int,
    path: str,
    headers: Headers,
    body: bytes = b"",
    *,
    protocol: Protocol = "tnetstring",
) -> bytes:
    """A request message. `headers` are written in the order given.

    uWSGI builds its REQUEST_URI when it meets PATH, so QUERY must come before it.
    """
    encode = encode_json if protocol == "json" else encode_tnetstring
    return join_request(ident, number, path.encode("latin-1"), encode(headers), body)


def join_request(ident: bytes, number: int, path: bytes, headers: bytes, body: bytes) -> bytes:
    """A request message from headers already encoded."""
    return b"%b %d %b %b%d:%b," % (ident, number, path, headers, len(body), body)


def encode_tnetstring(headers: Headers) -> bytes:
    """The headers as a tnetstring dictionary."""
    return wrap_pairs(b"".join(encode_pair(name, value) for name, value in headers.items()))


def wrap_pairs(pairs: bytes) -> bytes:
    """Pairs of `encode_pair` as one dictionary."""
    return b"%d:%b}" % (len(pairs), pairs)


def encode_pair(name: str, value: str | list[str]) -> bytes:
    """One key and its value, as they stand inside a tnetstring dictionary."""
    key = name.encode("latin-1")
    if isinstance(value, str):
        text = value.encode("latin-1")
        return b"%d:%b,%d:%b," % (len(key), key, len(text), text)
    items = tnetstring.encode([item.encode("latin-1") for item in value])
    return b"%d:%b,%b" % (len(key), key, items)


def encode_json(headers: Headers) -> bytes:
    """The headers as a netstring of strict ASCII JSON: a byte above 0x7e becomes `\\u00XX`."""
    text = ",".join(f"{_quote(name)}:{_json(value)}" for name, value in headers.items())
    return b"%d:{%b}," % (len(text) + 2, text.encode("ascii"))


def _json(value: str | list[str]) -> str:
    if isinstance(value, str):
        return _quote(value)
    return f"[{','.join(map(_quote, value))}]"


def _quote(text: str) -> str:
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return f"\\{character}" if character in '"\\' else f"\\u{ord(character):04x}"


def encode_disconnect(ident: bytes, number: int, protocol: Protocol = "tnetstring") -> bytes:
    """The notice that connection `number` has gone, byte for byte Mongrel2's."""
    headers: Headers = {"METHOD": "JSON"}
    return encode_request(ident, number, "@*", headers, b'{"type":"disconnect"}', protocol=protocol)


def decode_request(message: bytes) -> Request:
    """A request message, whichever header format it has. Raises MessageError."""
    start = _REQUEST.match(message)
    if start is None:
        raise MessageError("not a request")
    try:
        data, tag, end = tnetstring.split(message, start.end())
        headers = _from_json(data) if tag == b"," else _from_pairs(data, tag)
        body, closing, last = tnetstring.split(message, end)
    except TnetstringError as exc:
        raise MessageError(f"not a request: {exc}") from exc
    if closing != b"," or last != len(message):
        raise MessageError("not a request: bad body")
    return Request(start[1], int(start[2]), start[3].decode("latin-1"), headers, body)


def _from_json(data: bytes) -> Headers:
    try:  # Mongrel2 writes control bytes and Latin-1 raw
        loaded = json.loads(data.decode("latin-1"), strict=False)
    except (ValueError, RecursionError) as exc:
        raise MessageError("not a request: headers are not JSON") from exc
    if not isinstance(loaded, dict) or not all(map(_is_header, loaded.values())):
        raise MessageError("not a request: headers are not a dictionary of strings")
    return loaded


def _is_header(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str) for item in value)
    return isinstance(value, str)


def _from_pairs(data: bytes, tag: bytes) -> Headers:
    """The pairs of a tnetstring dictionary; the common case, strings only, without recursion."""
    if tag != b"}":
        raise MessageError("not a request: headers are not a dictionary")
    headers: Headers = {}
    split = tnetstring.split
    at, size = 0, len(data)
    while at < size:
        name, tag, at = split(data, at)
        value, kind, at = split(data, at)
        if tag != b",":
            raise MessageError("not a request: a header name is not a string")
        if kind == b",":
            headers[name.decode("latin-1")] = value.decode("latin-1")
        elif kind == b"]":
            headers[name.decode("latin-1")] = _strings(value)
        else:
            raise MessageError("not a request: a header is not a string")
    return headers


def _strings(data: bytes) -> list[str]:
    found: list[str] = []
    at = 0
    while at < len(data):
        value, tag, at = tnetstring.split(data, at)
        if tag != b",":
            raise MessageError("not a request: a header is not a string")
        found.append(value.decode("latin-1"))
    if not found:
        raise MessageError("not a request: a header has no value")
    return found


def encode_reply(ident: bytes, ids: Sequence[int], body: bytes) -> bytes:
    """A reply; an empty `body` closes the connections."""
    targets = b" ".join(b"%d" % number for number in ids)
    return b"%b %d:%b, %b" % (ident, len(targets), targets, body)


def encode_control(ident: bytes, ids: Sequence[int], name: bytes, value: Value) -> bytes:
    """An X message: `ctl` with `keep-alive`, `credits` or `cancel`."""
    targets = b"X " + b" ".join(b"%d" % number for number in ids)
    body = tnetstring.encode([name, value])
    return b"%b %d:%b, %b" % (ident, len(targets), targets, body)


def decode_reply(message: bytes) -> Reply:
    """A reply. Raises MessageError; a real Mongrel2 would stall half a second instead."""
    start = _REPLY.match(message)
    if start is None:
        raise MessageError("not a reply")
    begin = start.end()
    end = begin + int(start[2])
    targets = _TARGETS.fullmatch(message, begin, end)
    if targets is None or message[end : end + 2] != b", ":
        raise MessageError("not a reply: bad list of connections")
    ids = tuple(map(int, targets[2].split()))
    return Reply(start[1], ids, message[end + 2 :], targets[1] is not None)


def decode_control(body: bytes) -> tuple[bytes, dict[bytes, Value]]:
    """Name and arguments of an X message's body; no arguments when they are no dictionary.

    Raises MessageError.
    """
    try:
        value = tnetstring.decode(body)
    except TnetstringError as exc:
        raise MessageError(f"not a control message: {exc}") from exc
    if not isinstance(value, list) or len(value) != 2:
        raise MessageError("not a control message: not a list of two")
    name, arguments = value
    if not isinstance(name, bytes):
        raise MessageError("not a control message: no name")
    return name, arguments if isinstance(arguments, dict) else {}


def is_ident(ident: bytes) -> bool:
    """True when `ident` can stand before a reply: `[A-Za-z0-9-]+`."""
    return _IDENT.fullmatch(ident) is not None


def targets_of(ids: Sequence[int], most: int = MAX_TARGETS) -> Iterable[Sequence[int]]:
    """`ids` in groups that a real Mongrel2 accepts in one reply."""
    for start in range(0, len(ids), most):
        yield ids[start : start + most]
