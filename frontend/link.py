"""The link: frames between a frontend (ROUTER) and its handlers (DEALER). Pure codec.

Every message is two ZeroMQ frames after the routing id: a head of fixed size and a payload.
Head: kind (1 byte), handler (u32, big-endian; numbered by the connecting side, one number a
process it speaks for), then what the kind needs. Requests and replies carry the payload of the
Mongrel2 door byte for byte (docs/reference/formats.md), so one codec serves both doors.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum

PROTOCOL = 1
END = 1  # flag of REPLY and BODY: nothing follows for this request
MORE = 1  # flag of REQUEST: the body follows in BODY messages
WINDOW = 262_144  # bytes of a reply that may be sent before its first CREDIT; bodies have none
INLINE = 65_536  # bytes of the body that a REQUEST carries at most
SILENCE_S = 3.0  # a peer that was silent for so long is taken for dead; a handler beats each second


class Kind(bytes, Enum):
    """Upper case goes to the frontend, lower case comes from it."""

    HELLO = b"H"  # payload: JSON Hello
    REPLY = b"P"  # flags; payload: a Mongrel2 reply
    REFUSE = b"N"  # request; it was never given to the app: send it to another handler
    FAIL = b"F"  # request, status; the app took it and broke (502) or is too slow (504)
    GRANT = b"K"  # request, bytes; so much more of the request body may be sent
    CAPACITY = b"C"  # n: so many requests at once from now on
    GOODBYE = b"G"  # no new requests, please; those sent are still answered
    BEAT = b"B"
    WELCOME = b"w"  # payload: JSON {"ident": …, "frontend": …}
    REJECT = b"e"  # payload: JSON {"error": …}; the hello does not fit the route table
    REQUEST = b"r"  # flags; payload: a Mongrel2 request
    BODY = b"d"  # request, flags; payload: bytes of the request body
    CANCEL = b"x"  # request; the client has gone
    CREDIT = b"k"  # request, bytes; so much more of the reply may be sent
    FAREWELL = b"g"  # answer to GOODBYE: no request will follow
    ECHO = b"b"


_PLAIN = struct.Struct(">cI")
_FLAGS = struct.Struct(">cIB")
_REQUEST = struct.Struct(">cII")
_REQUEST_FLAGS = struct.Struct(">cIIB")
_REQUEST_NUMBER = struct.Struct(">cIII")
_NUMBER = struct.Struct(">cII")

_SHAPES: dict[bytes, struct.Struct] = {
    Kind.HELLO: _PLAIN,
    Kind.REPLY: _FLAGS,
    Kind.REFUSE: _REQUEST,
    Kind.FAIL: _REQUEST_NUMBER,
    Kind.GRANT: _REQUEST_NUMBER,
    Kind.CAPACITY: _NUMBER,
    Kind.GOODBYE: _PLAIN,
    Kind.BEAT: _PLAIN,
    Kind.WELCOME: _PLAIN,
    Kind.REJECT: _PLAIN,
    Kind.REQUEST: _FLAGS,
    Kind.BODY: _REQUEST_FLAGS,
    Kind.CANCEL: _REQUEST,
    Kind.CREDIT: _REQUEST_NUMBER,
    Kind.FAREWELL: _PLAIN,
    Kind.ECHO: _PLAIN,
}


@dataclass(frozen=True, slots=True)
class Hello:
    """What a handler says of itself; JSON in a HELLO's payload."""

    app: str
    release: int
    process: str
    node: str
    capacity: int
    token: str = ""
    p: int = PROTOCOL


def encode_head(kind: Kind, handler: int, *fields: int) -> bytes:
    """The head frame. `fields` are what the comment at the kind names, in that order."""
    return _SHAPES[kind].pack(kind.value, handler, *fields)


def decode_head(head: bytes) -> tuple[bytes, int, tuple[int, ...]] | None:
    """`(kind, handler, fields)`, or None when the frame is not a head of this protocol."""
    shape = _SHAPES.get(head[:1])
    if shape is None or len(head) != shape.size:
        return None
    kind, handler, *fields = shape.unpack(head)
    return kind, handler, tuple(fields)
