"""An app's status, headers and body as the bytes of a reply. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus

from appnode.incoming import HOP_BY_HOP, Header

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_START: dict[int, bytes] = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}


class AnswerError(ValueError):
    """The app's answer cannot be said in HTTP; its text says why."""


class Writer:
    """The reply to one request: `start`, then `body` until its `last`."""

    __slots__ = (
        "_chunked",
        "_head",
        "_left",
        "_no_body",
        "http11",
        "is_done",
        "is_started",
        "method",
    )

    def __init__(self, method: bytes, *, http11: bool) -> None:
        self.method = method
        self.http11 = http11
        self._head = b""
        self._chunked = False
        self._no_body = False
        self._left: int | None = None
        self.is_started = False  # status and headers are known, though perhaps not sent
        self.is_done = False

    @property
    def is_whole(self) -> bool:
        """As much as was announced has gone out."""
        return self._left == 0 and not self._head and not self._no_body

    def start(self, status: int, headers: Iterable[Header], *, reason: bytes = b"") -> None:
        """Take status and headers; they go out with the first bytes of the body."""
        if self.is_started:
            raise AnswerError("the response was started twice")
        if not 200 <= status <= 599:
            raise AnswerError(f"status {status} is none of a response")
        self.is_started = True
        lines = [_START.get(status) or b"HTTP/1.1 %d\r\n" % status]
        if reason:
            if _BAD.search(reason):
                raise AnswerError("a control character in the reason")
            lines = [b"HTTP/1.1 %d %b\r\n" % (status, reason)]
        for name, value in headers:
            low = name.lower()
            if low in HOP_BY_HOP:
                continue
            if not _NAME.fullmatch(name) or _BAD.search(value):
                raise AnswerError(f"header {name!r} is malformed")
            if low == b"content-length":
                if not value.isdigit() or len(value) > 18 or self._left is not None:
                    raise AnswerError("bad content-length")
                self._left = int(value)
                if status == 204:
                    continue
            lines.append(b"%b: %b\r\n" % (name, value))
        self._head = b"".join(lines)
        self._no_body = self.method == b"HEAD" or status in (204, 304)

    def body(self, data: bytes, *, last: bool) -> bytes:
        """The bytes to send now. Raises AnswerError when there are more or fewer than announced."""
        if not self.is_started or self.is_done:
            raise AnswerError("a body without a start" if not self.is_done else "a second body")
        head, self._head = self._head, b""
        if last:
            self.is_done = True
        if self._no_body:
            return head + b"\r\n" if head else b""
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0 or (last and self._left):
                raise AnswerError("the body is not as long as its content-length")
            return head + b"\r\n" + data if head else data
        if head:
            if last:
                return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(data), data)
            self._chunked = self.http11
            head += b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"
            self._left = None
        if not self._chunked:
            return head + data
        out = b"%b%x\r\n%b\r\n" % (head, len(data), data) if data else head
        return out + b"0\r\n\r\n" if last else out


def plain(status: int, text: bytes = b"", *, close: bool = False) -> bytes:
    """A short page of our own."""
    start = _START[status]
    body = text or start[9:].strip() + b"\n"
    extra = b"Connection: close\r\n" if close else b""
    return b"%bContent-Type: text/plain\r\nContent-Length: %d\r\n%b\r\n%b" % (
        start,
        len(body),
        extra,
        body,
    )
