"""ZMTP 3.1 with the NULL mechanism, the server's side of a connection. Pure codec.

Speaking it directly over the event loop's own transports costs a third of what libzmq's thread
and its signalling cost for each message, tells at once when a peer goes, and joins all messages
of a turn of the loop into one write. (rfc.zeromq.org/spec/23; libzmq's DEALER, PULL and PUB are
the peers; CURVE is left to libzmq.)
"""

from __future__ import annotations

import struct

GREETING_BYTES = 64
MORE = 1
LONG = 2
COMMAND = 4

_LONG = struct.Struct(">BQ")


class ZmtpError(ValueError):
    """The peer does not speak ZMTP 3 with NULL, or says too much at once."""


def greeting(minor: int = 1) -> bytes:
    """Signature, version 3.`minor`, mechanism NULL, not a security server."""
    return b"\xff" + bytes(8) + b"\x7f\x03" + bytes([minor]) + b"NULL".ljust(20, b"\0") + bytes(32)


def check_greeting(data: bytes) -> None:
    """Refuse what is not ZMTP 3 with NULL. `data` may be only the beginning of a greeting."""
    if data[:1] != b"\xff"[: len(data)]:
        raise ZmtpError("no ZMTP greeting")
    if len(data) >= 10 and not data[9] & 1:
        raise ZmtpError("no ZMTP greeting")
    if len(data) >= 11 and data[10] < 3:
        raise ZmtpError(f"ZMTP {data[10]} is too old")
    if len(data) >= 32 and data[12:32].rstrip(b"\0") != b"NULL":
        raise ZmtpError(f"mechanism {data[12:32].rstrip(bytes(1))!r} on a socket without CURVE")


def frame(data: bytes, flags: int = 0) -> bytes:
    """One frame."""
    size = len(data)
    if size < 256:
        return b"%c%c%b" % (flags, size, data)
    return _LONG.pack(flags | LONG, size) + data


def long_head(size: int, flags: int = 0) -> bytes:
    """What stands before the `size` bytes of a long frame."""
    return _LONG.pack(flags | LONG, size)


def ready(socket_type: bytes, identity: bytes = b"") -> bytes:
    """The READY command."""
    body = b"\x05READY" + _property(b"Socket-Type", socket_type)
    if socket_type in (b"ROUTER", b"DEALER", b"REQ"):
        body += _property(b"Identity", identity)
    return frame(body, COMMAND)


def _property(name: bytes, value: bytes) -> bytes:
    return b"%c%b%b%b" % (len(name), name, struct.pack(">I", len(value)), value)


def parse_ready(body: bytes) -> dict[bytes, bytes]:
    """The properties of a READY command, names in lower case. Raises ZmtpError."""
    if not body.startswith(b"\x05READY"):
        raise ZmtpError("no READY")
    found: dict[bytes, bytes] = {}
    at = 6
    while at < len(body):
        name = body[at + 1 : at + 1 + body[at]]
        at += 1 + body[at]
        if at + 4 > len(body):
            raise ZmtpError("bad READY")
        (size,) = struct.unpack_from(">I", body, at)
        found[name.lower()] = body[at + 4 : at + 4 + size]
        at += 4 + size
    if at != len(body):
        raise ZmtpError("bad READY")
    return found


def ping(ttl_ds: int) -> bytes:
    """A PING command; the peer may close when it hears nothing for `ttl_ds` tenths of a second."""
    return frame(b"\x04PING" + struct.pack(">H", ttl_ds), COMMAND)


def pong(ping: bytes) -> bytes | None:
    """The answer to a PING command's body; None when it is another command."""
    if not ping.startswith(b"\x04PING") or len(ping) < 7:
        return None
    return frame(b"\x04PONG" + ping[7:23], COMMAND)


class Splitter:
    """Frames out of a stream of bytes."""

    __slots__ = ("_have", "_max", "_need", "_rest")

    def __init__(self, max_frame_bytes: int) -> None:
        self._max = max_frame_bytes
        self._rest: list[bytes] = []
        self._have = 0
        self._need = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """`(flags, body)` of each frame that is complete now. Raises ZmtpError."""
        if self._rest:
            self._rest.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._rest)
            self._rest.clear()
        found: list[tuple[int, bytes]] = []
        at, size = 0, len(data)
        self._need = 0
        while size - at >= 2:
            flags = data[at]
            if flags & LONG:
                if size - at < 9:
                    break
                length = int.from_bytes(data[at + 1 : at + 9], "big")
                start = at + 9
            else:
                length = data[at + 1]
                start = at + 2
            if flags > 7 or length > self._max:
                raise ZmtpError(f"frame of {length} bytes, flags {flags}")
            end = start + length
            if end > size:
                self._need = end - at
                break
            found.append((flags, data[start:end]))
            at = end
        if at < size:
            self._rest.append(data[at:] if at else data)
            self._have = size - at
        return found
