"""What an app may say, and what never passes."""

from __future__ import annotations

import contextlib
from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appnode.response import MAX_HEAD, ResponseError, ResponseReader


def read(data: bytes, *, size: int = 0, eof: bool = False, **options: Any) -> ResponseReader:
    """A reader fed in pieces of `size`; its output is in `out`."""
    reader = ResponseReader(options.pop("method", b"GET"), **options)
    pieces = [data[at : at + size] for at in range(0, len(data), size)] if size else [data]
    out = b"".join(map(reader.feed, pieces))
    if eof:
        out += reader.eof()
    read.out = out  # type: ignore[attr-defined]
    return reader


def out(data: bytes, **options: Any) -> bytes:
    read(data, **options)
    return read.out  # type: ignore[attr-defined, no-any-return]


def test_keep_alive_follows_version_and_connection() -> None:
    body = b"Content-Length: 2\r\n\r\nok"
    for start, want in [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", True),
    ]:
        reader = read(start + body)
        assert reader.done
        assert reader.keep_alive is want, start


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
)
def test_bytes_after_the_end_spoil_the_connection(data: bytes) -> None:
    assert read(data).keep_alive
    assert not read(data + b"x").keep_alive
    reader = read(data)
    assert reader.feed(b"x") == b""
    assert not reader.keep_alive


def test_version_and_reason_are_kept_sane() -> None:
    assert out(b"HTTP/1.0 299 Fine by me\r\nContent-Length: 0\r\n\r\n").startswith(
        b"HTTP/1.1 299 Fine by me\r\n"
    )
    assert out(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n").startswith(b"HTTP/1.1 200\r\n")


def test_small_chunked_response_gets_a_length() -> None:
    data = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
    )
    assert out(data) == b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_chunked_in_small_pieces_is_the_same_body(size: int) -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: x\r\n\r\n"
    reader = read(data, size=size)
    assert reader.done
    assert reader.keep_alive
    assert unchunk(read.out.partition(b"\r\n\r\n")[2]) == b"abc0123456789"  # type: ignore[attr-defined]


def unchunk(data: bytes) -> bytes:
    body = b""
    while True:
        line, _, data = data.partition(b"\r\n")
        if not (size := int(line, 16)):
            assert data == b"\r\n"
            return body
        body += data[:size]
        assert data[size : size + 2] == b"\r\n"
        data = data[size + 2 :]


def test_connection_may_not_nominate_what_frames_the_message() -> None:
    data = (
        b"HTTP/1.1 200 OK\r\nConnection: content-length, x\r\nX: 1\r\nContent-Length: 2\r\n\r\nok"
    )
    assert out(data) == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_end_of_stream_ends_only_what_has_no_length() -> None:
    assert out(b"HTTP/1.1 200 OK\r\n\r\nabc", eof=True).endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    for short in (
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
    ):
        with pytest.raises(ResponseError):
            read(short, eof=True)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 19 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 17 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;" + b"x" * 5000,
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * MAX_HEAD,
        b"GET / HTTP/1.1\r\n",
    ],
)
@pytest.mark.parametrize("size", [0, 1])
def test_ambiguous_responses_are_errors_in_one_piece_and_byte_by_byte(
    data: bytes, size: int
) -> None:
    if size and len(data) > 5000:
        size = 997
    with pytest.raises(ResponseError):
        read(data, size=size)


_NAMES = st.sampled_from([b"Content-Type", b"ETag", b"X-A", b"Connection", b"Server"])
_VALUES = st.sampled_from([b"", b"close", b"keep-alive", b"a, b", b"\xe9\tx", b"keep-alive, X-A"])
_HEADERS = st.lists(st.tuples(_NAMES, _VALUES), max_size=5)


@given(
    _HEADERS,
    st.binary(max_size=300),
    st.integers(1, 50),
    st.sampled_from(["length", "chunked", "close"]),
)
def test_any_cut_gives_what_a_second_parser_reads(
    headers: list[tuple[bytes, bytes]], body: bytes, size: int, framing: str
) -> None:
    data = b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % header for header in headers)
    if framing == "length":
        data += b"Content-Length: %d\r\n\r\n" % len(body) + body
    elif framing == "chunked":
        chunks = [body[at : at + 40] for at in range(0, len(body), 40)]
        data += b"Transfer-Encoding: chunked\r\n\r\n"
        data += b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    else:
        data += b"\r\n" + body
    reply = out(data, size=size, eof=framing == "close")
    judge = Judge()
    parser = httptools.HttpResponseParser(judge)
    parser.feed_data(reply)
    assert judge.complete
    assert judge.body == body
    assert b"connection" not in judge.names


class Judge:
    """What httptools makes of our output."""

    def __init__(self) -> None:
        self.body = b""
        self.names: list[bytes] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.names.append(name.lower())

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


@given(st.binary(max_size=200))
def test_noise_never_passes(noise: bytes) -> None:
    reader = ResponseReader(b"GET")
    with contextlib.suppress(ResponseError):
        assert reader.feed(noise) == b"" or noise.startswith(b"HTTP/1.")
