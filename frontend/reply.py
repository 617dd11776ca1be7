"""A handler's reply on its way to the client: checked, framed, never out of step. Pure.

The bytes of a handler are trusted with nothing: a head that is not HTTP becomes a 502, a body
longer than its length is cut, a shorter one breaks the connection off, so that no client takes
half a reply for a whole one or the rest of one for the beginning of the next.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

from frontend.chunked import Chunked
from frontend.http import TOKEN, HttpError, phrase

MAX_HEAD = 65_536  # bytes; cookies and policies of real apps stay below 16 KiB
MAX_KEPT = 512  # heads remembered: an app answers with the same ones for the second

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: ([^\x00-\x08\x0a-\x1f\x7f]*))?\r\n")
_FIELD = re.compile(rb"(" + TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)\r\n")
_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade",
     b"te", b"trailer"}
)  # fmt: skip


class ReplyError(ValueError):
    """The handler's bytes are not a reply that may go to a client."""


class Mode(Enum):
    """Where in a reply we are."""

    HEAD = auto()
    NONE = auto()  # HEAD, 204, 304: whatever comes is dropped
    LENGTH = auto()
    CHUNKED = auto()  # the handler's chunks, taken off and put on anew
    WRAPPED = auto()  # no framing from the handler, chunks for the client
    RAW = auto()  # until the end of the connection
    TUNNEL = auto()
    DONE = auto()


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """A reply's status line and fields. `text` has neither hop-by-hop fields nor the last CR LF."""

    status: int
    text: bytes
    length: int | None
    is_chunked: bool
    close: bool
    upgrade: bytes

    @property
    def is_simple(self) -> bool:
        """Whether a body of `length` is all that follows."""
        return self.length is not None and self.status >= 200 and self.status not in (204, 304)


_heads: dict[bytes, ReplyHead] = {}
_simple: dict[bytes, ReplyHead] = {}  # those of them that are


def parse_reply_head(raw: bytes) -> ReplyHead:
    """Status line and fields, each line with its CR LF. Raises ReplyError."""
    if head := _heads.get(raw):
        return head
    line = _STATUS.match(raw)
    if line is None:
        raise ReplyError("no status line")
    at = line.end()
    hop = _HOP if line[1] != b"101" else frozenset()
    kept = [b"HTTP/1.1 %b %b\r\n" % (line[1], line[2] or phrase(int(line[1])).encode())]
    found: dict[bytes, list[bytes]] = {}
    while at < len(raw):
        field = _FIELD.match(raw, at)
        if field is None:
            raise ReplyError("bad header field")
        name, value = field[1].lower(), field[2].strip(b" \t")
        found.setdefault(name, []).append(value)
        if name not in hop and not (name == b"content-length" and len(found[name]) > 1):
            kept.append(field[0])
        at = field.end()
    head = _judged(int(line[1]), b"".join(kept), found)
    if len(raw) <= 2048:
        if len(_heads) >= MAX_KEPT:
            _heads.clear()
            _simple.clear()
        _heads[raw] = head
        if head.is_simple:
            _simple[raw] = head
    return head


def _judged(status: int, text: bytes, found: dict[bytes, list[bytes]]) -> ReplyHead:
    lengths = set(found.get(b"content-length", ()))
    length = None
    if lengths:
        value = lengths.pop()
        if lengths or not re.fullmatch(rb"[0-9]{1,18}", value):
            raise ReplyError("two or bad Content-Length")
        length = int(value)
    codings = found.get(b"transfer-encoding", [])
    if codings and (length is not None or [c.lower() for c in codings] != [b"chunked"]):
        raise ReplyError("bad Transfer-Encoding")
    tokens = {t.strip(b" \t").lower() for v in found.get(b"connection", ()) for t in v.split(b",")}
    upgrade = b", ".join(found.get(b"upgrade", ()))
    return ReplyHead(status, text, length, bool(codings), b"close" in tokens, upgrade)


def whole_reply(data: bytes, extra: bytes, *, heeds_close: bool) -> tuple[bytes, int, int] | None:
    """`(bytes, status, size of the body)` for a whole reply whose head was seen before, else None.

    Only for requests whose connection stays, and which are not HEAD, HTTP/1.0 or an upgrade.
    """
    stop = data.find(b"\r\n\r\n")
    head = _simple.get(data[: stop + 2])
    if head is None or head.length != len(data) - stop - 4 or (heeds_close and head.close):
        return None
    return b"%b%b\r\n%b" % (head.text, extra, data[stop + 4 :]), head.status, head.length


class Reply:
    """One reply as it passes. `feed` gives the bytes for the client."""

    __slots__ = (
        "_buffer", "_chunked", "_extra", "_heeds_close", "_is_head", "_is_http10", "_is_upgrade",
        "_left", "body_bytes", "close", "is_started", "mode", "status",
    )  # fmt: skip

    def __init__(
        self,
        *,
        is_head: bool,
        is_http10: bool,
        keeps_alive: bool,
        is_upgrade: bool = False,
        heeds_close: bool = False,
        extra: bytes = b"",
    ) -> None:
        """`heeds_close`: the handler's `Connection: close` means the client's connection."""
        self._is_head = is_head
        self._is_http10 = is_http10
        self._is_upgrade = is_upgrade
        self._heeds_close = heeds_close
        self._extra = extra  # header lines of ours
        self._buffer = b""
        self._chunked: Chunked | None = None
        self._left = 0
        self.close = not keeps_alive
        self.mode = Mode.HEAD
        self.status = 0
        self.body_bytes = 0
        self.is_started = False

    @property
    def is_done(self) -> bool:
        return self.mode is Mode.DONE

    def feed(self, data: bytes, end: bool) -> bytes:
        """Bytes of the handler, `end` when it says that they are the last. Raises ReplyError."""
        if self.mode is not Mode.HEAD:
            return self._body(data, end)
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        stop = data.find(b"\r\n\r\n", 0, MAX_HEAD)
        if stop < 0:
            if end or len(data) >= MAX_HEAD:
                raise ReplyError("no end of the head")
            self._buffer = data
            return b""
        head = parse_reply_head(data[: stop + 2])
        if head.status < 200 and head.status != 101:
            rest = data[stop + 4 :]  # 100 is ours to say, 103 a hint that may be dropped
            return self.feed(rest, end) if rest or end else b""
        return self._begin(head, data[stop + 4 :], end)

    def _begin(self, head: ReplyHead, body: bytes, end: bool) -> bytes:
        if head.status == 101:
            return self._upgraded(head, body, end)
        self.is_started = True
        self.status = head.status
        if head.close and self._heeds_close:
            self.close = True
        framing = b""
        if self._is_head or head.status in (204, 304):
            self.mode = Mode.NONE
        elif head.length is not None:
            self.mode, self._left = Mode.LENGTH, head.length
        elif head.is_chunked:
            self.mode, self._chunked = Mode.CHUNKED, Chunked()
            framing = self._chunks_or_close()
        elif end:
            self.mode, self._left = Mode.LENGTH, len(body)
            framing = b"Content-Length: %d\r\n" % len(body)
        else:
            self.mode = Mode.WRAPPED
            framing = self._chunks_or_close()
        if self.close:
            connection = b"Connection: close\r\n"
        else:
            connection = b"Connection: keep-alive\r\n" if self._is_http10 else b""
        out = b"%b%b%b%b\r\n" % (head.text, self._extra, framing, connection)
        if not body and not end and not self._is_complete():
            return out
        return out + self._body(body, end)

    def _is_complete(self) -> bool:
        """True when the head alone was everything."""
        return self.mode is Mode.NONE or (self.mode is Mode.LENGTH and not self._left)

    def _chunks_or_close(self) -> bytes:
        if self._is_http10:
            self.close = True
            if self.mode is Mode.WRAPPED:
                self.mode = Mode.RAW
            return b""
        return b"Transfer-Encoding: chunked\r\n"

    def _upgraded(self, head: ReplyHead, body: bytes, end: bool) -> bytes:
        if not self._is_upgrade or not head.upgrade:
            raise ReplyError("101 to a request without Upgrade")
        self.is_started = True
        self.status = head.status
        self.mode = Mode.TUNNEL
        self.close = True
        return b"%b%b\r\n" % (head.text, self._extra) + self._body(body, end)

    def _body(self, data: bytes, end: bool) -> bytes:
        mode = self.mode
        if mode is Mode.LENGTH:
            return self._length(data, end)
        if mode is Mode.CHUNKED:
            return self._rechunked(data, end)
        if mode is Mode.WRAPPED:
            self.body_bytes += len(data)
            out = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if end:
                self.mode = Mode.DONE
                return out + b"0\r\n\r\n"
            return out
        if mode is Mode.NONE:
            if not data or end:
                self.mode = Mode.DONE
            return b""
        if mode is Mode.DONE:
            return b""
        self.body_bytes += len(data)
        if end:
            self.mode = Mode.DONE
        return data

    def _length(self, data: bytes, end: bool) -> bytes:
        size = len(data)
        if size > self._left:
            data = data[: self._left]
            size = self._left
            self.close = True
        self._left -= size
        self.body_bytes += size
        if not self._left:
            self.mode = Mode.DONE
        elif end:
            raise ReplyError("shorter than its Content-Length")
        return data

    def _rechunked(self, data: bytes, end: bool) -> bytes:
        assert self._chunked is not None
        try:
            pieces, _ = self._chunked.feed(data)
        except HttpError as exc:
            raise ReplyError("bad chunk") from exc
        body = b"".join(pieces)
        self.body_bytes += len(body)
        is_raw = self._is_http10
        out = body if is_raw or not body else b"%x\r\n%b\r\n" % (len(body), body)
        if self._chunked.is_done:
            self.mode = Mode.DONE
            return out if is_raw else out + b"0\r\n\r\n"
        if end:
            raise ReplyError("ended within its chunks")
        return out
