"""WebSocket frames (RFC 6455), the server's side. Pure."""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import NamedTuple

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
CONTINUATION = 0x0
FIN, MASKED = 0x80, 0x80
MAX_MESSAGE = 16 * 2**20
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebSocketError(Exception):
    """The peer broke the protocol; `code` is what the close frame says (§7.4.1)."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Message(NamedTuple):
    """A whole message or a control frame. `data` is text for TEXT, bytes otherwise."""

    kind: int
    data: str | bytes


def accept(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept for a Sec-WebSocket-Key."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def frame(first: int, data: bytes, mask: bytes = b"") -> bytes:
    """One frame whose first byte (FIN, reserved bits, kind) is `first`."""
    bit = MASKED if mask else 0
    size = len(data)
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65536:
        head = struct.pack(">BBH", first, bit | 126, size)
    else:
        head = struct.pack(">BBQ", first, bit | 127, size)
    return head + mask + (masked(data, mask) if mask else data)


def masked(data: bytes, mask: bytes) -> bytes:
    """`data` with the four bytes of `mask` laid over it; its own inverse."""
    size = len(data)
    pad = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")


def close_frame(code: int = 1000, reason: str = "") -> bytes:
    return frame(FIN | CLOSE, struct.pack(">H", code) + reason.encode()[:123])


def close_code(data: bytes) -> tuple[int, str]:
    """Code and reason of a close frame's payload; 1005 when it has none."""
    if len(data) < 2:
        return 1005, ""
    return int.from_bytes(data[:2], "big"), data[2:].decode("utf-8", "replace")


class Reader:
    """Bytes from a client in, messages out."""

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self._max = max_message
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._kind = 0
        self._size = 0

    def feed(self, data: bytes) -> list[Message]:
        """What is whole now. Raises WebSocketError."""
        self._buffer += data
        found = []
        while (one := self._next()) is not None:
            message = self._take(*one)
            if message is not None:
                found.append(message)
        return found

    def _next(self) -> tuple[int, bytes] | None:
        """First byte and unmasked payload of the next frame, when it is all there."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        if first & 0x70:
            raise WebSocketError(1002, "reserved bits")
        if not second & MASKED:
            raise WebSocketError(1002, "an unmasked frame")
        size, start = second & 0x7F, 2
        if size == 126:
            size, start = int.from_bytes(buffer[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(buffer[2:10], "big"), 10
        if len(buffer) < start:
            return None
        if first & 0x08 and (size > 125 or not first & FIN):
            raise WebSocketError(1002, "a long or fragmented control frame")
        if size + self._size > self._max:
            raise WebSocketError(1009, "a message is too large")
        end = start + 4 + size
        if len(buffer) < end:
            return None
        mask = bytes(buffer[start : start + 4])
        payload = masked(bytes(buffer[start + 4 : end]), mask)
        del buffer[:end]
        return first, payload

    def _take(self, first: int, payload: bytes) -> Message | None:
        kind = first & 0x0F
        if kind in (CLOSE, PING, PONG):
            return Message(kind, payload)
        if kind == CONTINUATION:
            if not self._kind:
                raise WebSocketError(1002, "a continuation of nothing")
        elif kind not in (TEXT, BINARY) or self._kind:
            raise WebSocketError(1002, "an unknown kind or a message within a message")
        else:
            self._kind = kind
        self._parts.append(payload)
        self._size += len(payload)
        if not first & FIN:
            return None
        kind, data = self._kind, b"".join(self._parts)
        self._parts.clear()
        self._kind = self._size = 0
        if kind == BINARY:
            return Message(kind, data)
        try:
            return Message(kind, data.decode())
        except UnicodeDecodeError as exc:
            raise WebSocketError(1007, "text that is not UTF-8") from exc
