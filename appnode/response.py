"""An app's HTTP response, read byte by byte and framed anew. Pure.

What an app sends is not trusted to be HTTP: a response that two readers could cut at different
places never passes, it is a ResponseError, and whoever holds its connection closes it.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

from appnode.incoming import HOP_BY_HOP

MAX_HEAD: Final = 65_536  # Apache takes 8 KiB a line and 100 lines; cookies fill the rest
MAX_INTERIM: Final = 8  # 100, 102 and 103 before the response; more is junk
MAX_CHUNK_LINE: Final = 4_096  # size and extensions; llhttp allows 16 KiB
_KEPT: Final = 512  # heads remembered
_KEPT_BYTES: Final = 2_048
MAX_LENGTH_DIGITS: Final = 18  # below 2**63

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_VALUE = rb"[^\x00-\x08\x0a-\x1f\x7f]*+"
_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: " + _VALUE + rb")?\r\n"
    rb"(?:" + _TOKEN + rb":" + _VALUE + rb"\r\n)*+\r\n"
)
_BARE_LF = re.compile(rb"(?<!\r)\n")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;" + _VALUE + rb")?\r\n")
_START = b"HTTP/1."

# the line starts that make a head worth taking apart
_HOPS = re.compile(
    rb"\r\n(?:connection|keep-alive|proxy-connection|te|trailer|transfer-encoding|upgrade):"
)


class ResponseError(Exception):
    """What the app sent is no HTTP response, or an ambiguous one; its text says what."""


class _State(Enum):
    HEAD = auto()
    LENGTH = auto()
    CHUNK_LINE = auto()
    CHUNK_DATA = auto()
    CHUNK_END = auto()
    TRAILERS = auto()
    CLOSE = auto()
    TUNNEL = auto()
    DONE = auto()


class Head:
    """What matters of a response head; `fields` are its headers without the hop-by-hop ones."""

    __slots__ = (
        "chunked",
        "fields",
        "is_plain",
        "keep_alive",
        "length",
        "start",
        "status",
        "upgrade",
    )

    def __init__(self, raw: bytes) -> None:
        """Take apart `raw`, which ends with its blank line. Raises ResponseError."""
        match = _HEAD.fullmatch(raw)
        if match is None:
            raise ResponseError("malformed head")
        self.status = int(match[2])
        low = raw.lower()
        first = raw.index(b"\r\n")
        self.start = b"HTTP/1.1" + raw[8:first]
        self.length = _content_length(low)
        self.chunked = False
        self.upgrade = b""
        self.keep_alive = match[1] == b"1"
        if _HOPS.search(low) is None:
            self.fields = raw[first:-2]
        else:
            self._strip(raw, low, first)
        # it passes byte for byte, and so does its body
        self.is_plain = (
            self.length is not None
            and self.status >= 200
            and self.status not in (204, 304)
            and self.start + self.fields + b"\r\n" == raw
        )

    def _strip(self, raw: bytes, low: bytes, first: int) -> None:
        """Read the hop-by-hop headers and leave them out of `fields`."""
        lines = raw[first + 2 : -4].split(b"\r\n")
        names = [line[: line.index(b":")] for line in low[first + 2 : -4].split(b"\r\n")]
        connection: set[bytes] = set()
        codings: list[bytes] = []
        for name, line in zip(names, lines, strict=True):
            value = line[len(name) + 1 :].strip(b" \t")
            if name == b"connection":
                connection |= {option.strip(b" \t") for option in value.lower().split(b",")}
            elif name == b"transfer-encoding":
                codings.append(value.lower())
            elif name == b"upgrade":
                self.upgrade = value
        if codings:
            self._take_codings(codings)
        if b"close" in connection:
            self.keep_alive = False
        elif b"keep-alive" in connection:
            self.keep_alive = True
        # a response may not nominate what frames it
        dropped = HOP_BY_HOP | (connection - {b"content-length"})
        kept = [line for name, line in zip(names, lines, strict=True) if name not in dropped]
        self.fields = b"\r\n" + b"".join(line + b"\r\n" for line in kept)

    def _take_codings(self, codings: list[bytes]) -> None:
        if codings != [b"chunked"]:
            raise ResponseError("unknown transfer coding")
        if self.length is not None:
            raise ResponseError("both content-length and transfer-encoding")
        if not self.keep_alive:
            raise ResponseError("transfer-encoding in HTTP/1.0")
        self.chunked = True


_heads: dict[bytes, Head] = {}


def head_of(raw: bytes) -> Head:
    """The head that `raw` is; an app answers with the same one for the second. Raises
    ResponseError.
    """
    head = _heads.get(raw)
    if head is None:
        head = Head(raw)
        if len(raw) <= _KEPT_BYTES:
            if len(_heads) >= _KEPT:
                del _heads[next(iter(_heads))]
            _heads[raw] = head
    return head


def _content_length(low: bytes) -> int | None:
    at = low.find(b"\r\ncontent-length:")
    if at < 0:
        return None
    if low.find(b"\r\ncontent-length:", at + 17) >= 0:
        raise ResponseError("two content-lengths")
    value = low[at + 17 : low.index(b"\r\n", at + 17)].strip(b" \t")
    # bytes.isdigit is ASCII only
    if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
        raise ResponseError("bad content-length")
    return int(value)


class ResponseReader:
    """Bytes of one response in, bytes of the reply out.

    `done`: the response is whole. `tunnel`: it was a 101, from now on bytes pass as they are.
    `keep_alive` (once done): the connection may carry another request. `started`: the final
    head has been read, so bytes of the reply exist. `status`: of that head.
    """

    # defaults here, since most readers see one piece and change few of them
    _state = _State.HEAD
    _buffer = b""
    _left = 0
    _interim = 0
    done = False
    tunnel = False
    started = False
    keep_alive = False
    status = 0

    def __init__(self, method: bytes, *, http11: bool = True, upgrade: bool = False) -> None:
        """`http11`: the client understands chunked; `upgrade`: it asked for one."""
        self._body_less = method == b"HEAD"
        self._rechunk = http11
        self._is_upgrade = upgrade

    def feed(self, data: bytes) -> bytes:
        """What to send on now. Raises ResponseError; after it the reader is of no more use."""
        if self._state is _State.HEAD:
            return self._feed_head(data)
        if self._state is _State.LENGTH:
            return self._feed_length(data)
        if self._state in (_State.TUNNEL, _State.CLOSE):
            return self._frame(data) if self._state is _State.CLOSE else data
        if self._state is _State.DONE:
            self.keep_alive = False  # bytes that nobody asked for
            return b""
        return self._frame(self._feed_chunks(data)) + self._last_chunk()

    def eof(self) -> bytes:
        """The app closed its side. Raises ResponseError when the response is not whole."""
        self.keep_alive = False
        if self._state in (_State.TUNNEL, _State.DONE):
            self.done = True
            return b""
        if self._state is not _State.CLOSE:
            raise ResponseError("closed before the end of the response")
        self._finish()
        return self._last_chunk()

    def _feed_head(self, data: bytes) -> bytes:
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD:
            if not data.startswith(_START[: len(data)]):
                raise ResponseError("no HTTP/1 status line")
            if len(data) > MAX_HEAD:
                raise ResponseError("head too large")
            if _BARE_LF.search(data):
                raise ResponseError("malformed head")
            self._buffer = data
            return b""
        head = head_of(data[: end + 4])
        if head.is_plain and len(data) - end - 4 == head.length and not self._body_less:
            self.started = self.done = True
            self.status = head.status
            self.keep_alive = head.keep_alive
            self._rechunk = False
            self._state = _State.DONE
            return data
        rest = data[end + 4 :]
        if head.status < 200 and not self._take_interim(head):
            return self._feed_head(rest) if rest else b""
        self.started = True
        self.status = head.status
        return self._start(head, rest)

    def _take_interim(self, head: Head) -> bool:
        """Skip a 1xx; True for the 101 that answers an upgrade."""
        if head.status == 101:
            if not (self._is_upgrade and head.upgrade):
                raise ResponseError("101 without an upgrade")
            return True
        self._interim += 1
        if head.length or head.chunked or self._interim > MAX_INTERIM:
            raise ResponseError("junk before the response")
        return False

    def _start(self, head: Head, rest: bytes) -> bytes:
        """The reply's head and as much of its body as came with it."""
        opening = head.start + head.fields
        if head.status == 101:
            self.tunnel = True
            self._state = _State.TUNNEL
            return opening + b"Connection: Upgrade\r\nUpgrade: " + head.upgrade + b"\r\n\r\n" + rest
        if self._body_less or head.status in (204, 304):
            if head.status == 204 and head.length is not None:
                opening = without(opening, b"content-length")  # RFC 9110 §8.6
            self.keep_alive = head.keep_alive and not rest
            self._finish()
            return opening + b"\r\n"
        self.keep_alive = head.keep_alive
        if head.length is not None:
            self._rechunk = False
            self._left = head.length
            self._state = _State.LENGTH
            return opening + b"\r\n" + self._feed_length(rest)
        if head.chunked:
            self._state = _State.CHUNK_LINE
            body = self._feed_chunks(rest) if rest else b""
            if self.done:  # small and whole: cheaper for everyone with a length
                self._rechunk = False
                return opening + b"Content-Length: %d\r\n\r\n" % len(body) + body
        else:
            self.keep_alive = False
            self._state = _State.CLOSE
            body = rest
        coding = b"Transfer-Encoding: chunked\r\n\r\n" if self._rechunk else b"\r\n"
        return opening + coding + self._frame(body)

    def _feed_length(self, data: bytes) -> bytes:
        left = self._left - len(data)
        if left > 0:
            self._left = left
            return data
        if left < 0:
            self.keep_alive = False
            data = data[: self._left]
        self._finish()
        return data

    def _feed_chunks(self, data: bytes) -> bytes:
        """The body bytes in `data`, chunk headers and trailers taken off."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        at, out = 0, []
        while at < len(data):
            if self._state is _State.CHUNK_DATA:
                piece = data[at : at + self._left]
                out.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _State.CHUNK_END
                continue
            if self._state is _State.DONE:
                self.keep_alive = False
                break
            after = self._feed_line(data, at)
            if after < 0:
                self._buffer = data[at:]
                break
            at = after
        return out[0] if len(out) == 1 else b"".join(out)

    def _feed_line(self, data: bytes, at: int) -> int:
        """Take the line at `at`; the place after it, or -1 when it is not whole yet."""
        end = data.find(b"\n", at) + 1
        if not end:
            if len(data) - at > (2 if self._state is _State.CHUNK_END else MAX_CHUNK_LINE):
                raise ResponseError("malformed chunk")
            return -1
        if self._state is _State.CHUNK_END:
            if data[at:end] != b"\r\n":
                raise ResponseError("malformed chunk")
            self._state = _State.CHUNK_LINE
        elif self._state is _State.CHUNK_LINE:
            match = _CHUNK_LINE.fullmatch(data, at, end)
            if match is None:
                raise ResponseError("malformed chunk")
            self._left = int(match[1], 16)
            self._state = _State.CHUNK_DATA if self._left else _State.TRAILERS
        elif data[at:end] == b"\r\n":
            self._finish()
        else:
            self._interim += end - at
            if self._interim > MAX_HEAD or data[end - 2 : end - 1] != b"\r":
                raise ResponseError("malformed trailers")
        return end

    def _frame(self, body: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(body), body) if self._rechunk and body else body

    def _last_chunk(self) -> bytes:
        return b"0\r\n\r\n" if self._rechunk and self.done else b""

    def _finish(self) -> None:
        self._state = _State.DONE
        self.done = True


def without(head: bytes, name: bytes) -> bytes:
    """`head` (status line and headers, each with its line end) without the headers `name`."""
    lines = head.split(b"\r\n")
    return b"\r\n".join(line for line in lines if line.partition(b":")[0].lower() != name)
