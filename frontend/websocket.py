"""WebSocket frames of a client, as Mongrel2 hands them to handlers (RFC 6455 §5). Pure.

Frames are unmasked and fragments joined; control frames come at once, in between. What a client
must not send ends the connection, as there is no handler to ask.
"""

from __future__ import annotations

import base64
import hashlib

MAX_MESSAGE = 2**20  # bytes of one message, fragments together
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebSocketError(ValueError):
    """The client broke the protocol."""


def accept_value(key: str) -> str:
    """Sec-WebSocket-Accept for a client's key."""
    digest = hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


class Frames:
    """The frames of one client."""

    __slots__ = ("_buffer", "_first", "_max", "_parts", "_size")

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self._buffer = bytearray()
        self._first = 0  # flags of the first fragment; 0: no message is open
        self._parts: list[bytes] = []
        self._size = 0
        self._max = max_message

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """`(flags, payload)` of each message that is complete now; flags are its first byte with FIN.

        Raises WebSocketError.
        """
        self._buffer += data
        found: list[tuple[int, bytes]] = []
        while (frame := self._frame()) is not None:
            flags, payload = frame
            message = self._joined(flags, payload)
            if message is not None:
                found.append(message)
        return found

    def _frame(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        flags, size, start = buffer[0], buffer[1] & 0x7F, 2
        if not buffer[1] & 0x80:
            raise WebSocketError("frame without mask")
        if flags & 0x08 and (size > 125 or not flags & 0x80):
            raise WebSocketError("control frame too long or fragmented")
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(buffer) < start:
                return None
            size = int.from_bytes(buffer[2:start], "big")
        if size + self._size > self._max:
            raise WebSocketError("message too large")
        end = start + 4 + size
        if len(buffer) < end:
            return None
        payload = unmask(bytes(buffer[start + 4 : end]), bytes(buffer[start : start + 4]))
        del buffer[:end]
        return flags, payload

    def _joined(self, flags: int, payload: bytes) -> tuple[int, bytes] | None:
        opcode = flags & 0x0F
        if opcode & 0x08:
            return flags, payload
        if (opcode == 0) != bool(self._first):
            raise WebSocketError("fragment out of place")
        if opcode:
            self._first = flags
        self._parts.append(payload)
        self._size += len(payload)
        if not flags & 0x80:
            return None
        message = (self._first | 0x80, b"".join(self._parts))
        self._first, self._size = 0, 0
        self._parts.clear()
        return message


def unmask(data: bytes, mask: bytes) -> bytes:
    """`data` without (or with) its mask, at the speed of one big number."""
    size = len(data)
    pattern = (mask * (size // 4 + 1))[:size]
    mixed = int.from_bytes(data, "little") ^ int.from_bytes(pattern, "little")
    return mixed.to_bytes(size, "little")
