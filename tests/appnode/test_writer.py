"""An app's answer as bytes."""

from __future__ import annotations

import pytest

from appnode.incoming import Header
from appnode.writer import AnswerError, Writer


def written(
    *pieces: bytes,
    method: bytes = b"GET",
    status: int = 200,
    headers: list[Header] | None = None,
    http11: bool = True,
) -> bytes:
    writer = Writer(method, http11=http11)
    writer.start(status, headers or [])
    out = [writer.body(piece, last=False) for piece in pieces[:-1]]
    return b"".join(out) + writer.body(pieces[-1], last=True)


def test_whole_answer_gets_its_length() -> None:
    assert written(b"abc") == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"


def test_answer_in_pieces_is_chunked_or_ends_with_the_connection() -> None:
    head = b"HTTP/1.1 200 OK\r\n"
    assert written(b"abc", b"", b"d", b"") == (
        head + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"
    )
    assert written(b"abc", b"d", http11=False) == head + b"\r\nabcd"


def test_announced_length_is_kept() -> None:
    length = [(b"Content-Length", b"4")]
    assert written(b"abc", b"d", headers=length) == (
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd"
    )
    for pieces in ([b"abcde"], [b"abc"], [b"abc", b"de"]):
        with pytest.raises(AnswerError):
            written(*pieces, headers=length)


def test_head_204_and_304_have_no_body() -> None:
    length = [(b"Content-Length", b"3")]
    assert written(b"abc", method=b"HEAD", headers=length).endswith(b"Length: 3\r\n\r\n")
    assert written(b"abc", status=304).endswith(b"Not Modified\r\n\r\n")
    assert written(b"", status=204, headers=length) == b"HTTP/1.1 204 No Content\r\n\r\n"


def test_hop_by_hop_headers_stay() -> None:
    headers = [(b"Connection", b"close"), (b"Transfer-Encoding", b"chunked"), (b"X", b"1")]
    assert written(b"a", headers=headers) == (
        b"HTTP/1.1 200 OK\r\nX: 1\r\ncontent-length: 1\r\n\r\na"
    )


@pytest.mark.parametrize(
    ("status", "header"),
    [
        (200, (b"X", b"a\r\nY: b")),
        (200, (b"X", b"a\nb")),
        (200, (b"X", b"a\0")),
        (200, (b"X Y", b"a")),
        (200, (b"", b"a")),
        (200, (b"X:", b"a")),
        (200, (b"Content-Length", b"1x")),
        (101, (b"X", b"a")),
        (99, (b"X", b"a")),
        (600, (b"X", b"a")),
    ],
)
def test_what_http_cannot_say_is_an_error(status: int, header: Header) -> None:
    with pytest.raises(AnswerError):
        written(b"", status=status, headers=[header])


def test_order_of_calls_is_checked() -> None:
    writer = Writer(b"GET", http11=True)
    with pytest.raises(AnswerError):
        writer.body(b"", last=True)
    writer.start(200, [])
    with pytest.raises(AnswerError):
        writer.start(200, [])
    writer.body(b"", last=True)
    with pytest.raises(AnswerError):
        writer.body(b"", last=True)
