"""Chunked bodies, strictly (RFC 9112 §7.1). Pure."""

from __future__ import annotations

import re

from frontend.http import FIELD, TOKEN, HttpError

MAX_CHUNK_LINE = 256  # size and extensions; nobody sends extensions
MAX_EXTENSIONS = 4096  # bytes of extensions in one body
MAX_TRAILERS = 2048  # read anew with each byte of a slow sender
NOT_TRAILERS = frozenset({"host", "content-length", "transfer-encoding"})

_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_VALUE = rb"(?:" + TOKEN + rb"|" + _QUOTED + rb")"
_EXTENSION = rb";[ \t]{0,9}" + TOKEN + rb"(?:=" + _VALUE + rb")?"
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:" + _EXTENSION + rb")*\r\n")


class Chunked:
    """Takes the chunks off a request body, strictly (RFC 9112 §7.1); trailers are dropped."""

    __slots__ = ("_extensions", "_left", "_rest", "_trailers", "is_done")

    def __init__(self) -> None:
        self._rest = b""
        self._left = -1  # bytes of the current chunk and its CR LF; -1: a size line comes
        self._extensions = 0
        self._trailers = -1  # bytes of trailers seen; -1: not there yet
        self.is_done = False

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """`(pieces of the body, bytes after its end)`. Raises HttpError."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        pieces: list[bytes] = []
        at = 0
        while at < len(data) and not self.is_done:
            if self._trailers >= 0:
                step = self._trailer(data, at)
            elif self._left < 0:
                step = self._size(data, at)
            else:
                step = self._data(data, at, pieces)
            if step < 0:
                self._rest = data[at:]
                return pieces, b""
            at = step
        return pieces, data[at:]

    def _size(self, data: bytes, at: int) -> int:
        line = _CHUNK.match(data, at, at + MAX_CHUNK_LINE)
        if line is None:
            stop = data.find(b"\n", at, at + MAX_CHUNK_LINE)
            so_far = data[at : at + MAX_CHUNK_LINE]
            if stop >= 0 or len(so_far) == MAX_CHUNK_LINE or not _could_be_size(so_far):
                raise HttpError(400, "bad chunk")
            return -1
        self._extensions += line.end() - line.end(1) - 2
        if self._extensions > MAX_EXTENSIONS:
            raise HttpError(413, "too many chunk extensions")
        size = int(line[1], 16)
        if size:
            self._left = size + 2
        else:
            self._trailers = 0
        return line.end()

    def _data(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        body = min(self._left - 2, len(data) - at)
        if body > 0:
            pieces.append(data[at : at + body])
            self._left -= body
            at += body
        if self._left <= 2 and at < len(data):
            if data[at] != (0x0D if self._left == 2 else 0x0A):
                raise HttpError(400, "chunk longer than its size")
            self._left -= 1
            at += 1
            if not self._left:
                self._left = -1
        return at

    def _trailer(self, data: bytes, at: int) -> int:
        stop = data.find(b"\n", at)
        if stop < 0:
            if len(data) - at + self._trailers > MAX_TRAILERS:
                raise HttpError(431, "trailers too long")
            if not _could_be_field(data[at:]):
                raise HttpError(400, "bad trailer")
            return -1
        line = data[at : stop + 1]
        self._trailers += len(line)
        if self._trailers > MAX_TRAILERS:
            raise HttpError(431, "trailers too long")
        if line == b"\r\n":
            self.is_done = True
        else:
            field = FIELD.fullmatch(line)
            if field is None or field[1].decode("latin-1").lower() in NOT_TRAILERS:
                raise HttpError(400, "bad trailer")
        return stop + 1


def _could_be_size(start: bytes) -> bool:
    return re.fullmatch(rb"[0-9A-Fa-f]{1,15}(?:;[\t\x20-\x7e\x80-\xff]*)?\r?", start) is not None


def _could_be_field(start: bytes) -> bool:
    return (
        start == b"\r"
        or re.fullmatch(TOKEN + rb"(?::[^\x00-\x08\x0a-\x1f\x7f]*\r?)?", start) is not None
    )
