"""Request heads and chunked bodies: what is refused, what passes, and that others agree."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import h11
import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from frontend.chunked import Chunked
from frontend.http import Head, HttpError, Limits, check_start, parse_head

LIMITS = Limits()
HOST = b"Host: shop.example\r\n"


def verdict(data: bytes) -> Head | int:
    """As a connection would judge it: the head, or the status of the refusal; 0: more is needed."""
    end = data.find(b"\r\n\r\n")
    try:
        if end < 0:
            check_start(data, 0, LIMITS)
            return 0
        return parse_head(data, end, LIMITS)
    except HttpError as exc:
        return exc.status


def verdict_bytewise(data: bytes) -> Head | int:
    """The same when it comes one byte at a time."""
    for size in range(1, len(data) + 1):
        answer = verdict(data[:size])
        if answer != 0:
            return answer
    return 0


def head(data: bytes) -> Head:
    found = verdict(data)
    assert isinstance(found, Head), found
    return found


BAD: list[tuple[int, bytes]] = [
    (400, b"GET / HTTP/1.1\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: u@localhost\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: localhost:99999\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: localhost:99999x\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: localhost:-1\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: ../etc\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a..b\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: " + b"a" * 300 + b"\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n"),
    (400, b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n"),
    (400, b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"GET ftp://a/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET a HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET * HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET /  HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n"),
    (400, b" GET / HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"get / HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"G(T / HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET /#x#y HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET /%zz HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET /% HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET /?a=% HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET /%2 HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET /a\x7fb HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET /a\\b HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b'GET /?a="b" HTTP/1.1\r\n' + HOST + b"\r\n"),
    (400, b"GET / http/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET / HTTP/1\r\n" + HOST + b"\r\n"),
    (400, b"GET / HTTP/11.1\r\n" + HOST + b"\r\n"),
    (400, b"GET / HTTP/1.10\r\n" + HOST + b"\r\n"),
    (400, b"GET /\r\n" + HOST + b"\r\n"),
    (505, b"GET / HTTP/1.2\r\n" + HOST + b"\r\n"),
    (505, b"GET / HTTP/0.9\r\n" + HOST + b"\r\n"),
    (505, b"GET / HTTP/2.0\r\n" + HOST + b"\r\n"),
    (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    (501, b"CONNECT a:443 HTTP/1.1\r\n" + HOST + b"\r\n"),
    (501, b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a\r\rX: b\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nX: a\rb\r\n" + HOST + b"\r\n"),
    (400, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\n X: a\r\n" + HOST + b"\r\n"),
    (400, b"GET / HTTP/1.1\r\n" + HOST + b"X : a\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\n" + HOST + b"X\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\n" + HOST + b": a\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\n" + HOST + b"X(: a\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\n" + HOST + b"X\xe9: a\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x01b\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x7fb\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 1\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x1\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1_0\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1 0\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: \xb2\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length:\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 9999999999999999999999\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, chunked\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding:\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: ,chunked\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: \x0bchunked\r\n\r\n"),
    (400, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n"),
    (501, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n"),
    (501, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n"),
    (501, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n"),
    (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    (411, b"POST / HTTP/1.0\r\n\r\n"),
    (417, b"GET / HTTP/1.1\r\n" + HOST + b"Expect: 200-ok\r\n\r\n"),
    (414, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"),
    (414, b"GET /" + b"a" * 9000),
    (431, b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 33_000 + b"\r\n\r\n"),
    (431, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 200 + b"\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "data"), BAD, ids=lambda v: repr(v)[:60])
def test_bad_request_is_refused(status: int, data: bytes) -> None:
    assert verdict(data) == status


@pytest.mark.parametrize(
    ("status", "data"), [bad for bad in BAD if len(bad[1]) < 400], ids=lambda v: repr(v)[:60]
)
def test_bad_request_is_refused_the_same_byte_by_byte(status: int, data: bytes) -> None:
    assert verdict_bytewise(data) == status


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"M-SEARCH /a HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /?x[]=1&y={a|b}^` HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /a%20b/%2e%2e/;p=1?q HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET //a//b/../c HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"X:\r\nY:\t b \t\r\nZ: \xe9\xff\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: Chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 007\r\n\r\n",
    ],
)
def test_good_request_is_accepted_whole_and_byte_by_byte(data: bytes) -> None:
    assert isinstance(verdict(data), Head)
    assert isinstance(verdict_bytewise(data), Head)


def test_head_is_read_into_its_parts() -> None:
    found = head(
        b"POST /a/b?c=d HTTP/1.1\r\nHost: Shop.Example.:8080\r\nContent-Length: 12\r\n"
        b"Connection: Keep-Alive, Close\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n"
    )
    assert (found.method, found.path, found.query) == (b"POST", b"/a/b", b"c=d")
    assert (found.host, found.block.length) == ("shop.example", 12)
    assert not found.keeps_alive
    assert found.block.fields["x-two"] == ["1", "2"]


def test_fragment_goes_no_further() -> None:
    found = head(b"GET /a?b#c HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (found.path, found.query, found.uri) == (b"/a", b"b", b"/a?b")


def test_absolute_target_names_the_host() -> None:
    found = head(b"GET http://Shop.example:80?x=1 HTTP/1.1\r\nHost: shop.example\r\n\r\n")
    assert (found.host, found.path, found.query) == ("shop.example", b"/", b"x=1")


def test_keep_alive_is_the_versions_default() -> None:
    assert head(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n").keeps_alive
    assert not head(b"GET / HTTP/1.0\r\n\r\n").keeps_alive
    assert head(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").keeps_alive


@pytest.mark.parametrize(
    "name",
    ["X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Bareku-App", "X-Mongrel2-Upload-Done", "Proxy",
     "X_Forwarded_For", "Content_Length", "Transfer_Encoding", "X_Request_Id", "x_bareku_x"],
)  # fmt: skip
def test_clients_copy_of_an_internal_field_is_dropped(name: str) -> None:
    found = head(b"GET / HTTP/1.1\r\n" + HOST + name.encode() + b": evil\r\nX_Ok: 1\r\n\r\n")
    assert set(found.block.fields) == {"host", "x_ok"}
    assert b"evil" not in found.block.pairs


def test_hop_by_hop_fields_end_here() -> None:
    found = head(
        b"GET / HTTP/1.1\r\n" + HOST + b"Connection: X-Mine, close\r\nX-Mine: 1\r\nTE: trailers\r\n"
        b"Keep-Alive: 5\r\nUpgrade: h2c\r\nX-Other: 2\r\n\r\n"
    )
    assert found.block.pairs == b"4:host,12:shop.example,7:x-other,1:2,"
    assert not found.is_upgrade


def test_connection_cannot_name_the_host_away() -> None:
    found = head(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: host, content-length\r\n\r\n")
    assert b"4:host," in found.block.pairs


def unchunk(data: bytes, step: int) -> tuple[bytes, bool, bytes]:
    """`(body, is it complete, the rest)` with the data cut into pieces of `step`."""
    decoder, body, at = Chunked(), b"", 0
    while at < len(data) and not decoder.is_done:
        pieces, rest = decoder.feed(data[at : at + step])
        body += b"".join(pieces)
        at += step
    return body, decoder.is_done, (rest if decoder.is_done else b"") + data[at:]


CHUNKED_BAD = [
    b"5\nhello\r\n0\r\n\r\n", b"5\r\nhello0\r\n\r\n", b"5\r\nhelloX\r\n0\r\n\r\n", b"-1\r\n", b"+5\r\nhello\r\n",
    b"0x5\r\nhello\r\n", b"5 \r\nhello\r\n", b" 5\r\nhello\r\n", b"5;\x01\r\nhello\r\n", b"5;\r\nhello\r\n", b"5;a=\"b\r\nhello\r\n", b"5 ;a\r\n", b"\r\n", b"g\r\n",
    b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello\r0\r\n\r\n", b"ffffffffffffffff5\r\n", b"0\r\nX : y\r\n\r\n", b"0\r\n\n",
    b"0\r\nX: a\n\r\n", b"0\r\nContent-Length: 5\r\n\r\n", b"0\r\nhost: a\r\n\r\n", b"0\r\nX\r\n\r\n", b"5\r\r\nhello\r\n", b"1_0\r\n", b"0;" + b"a" * 400, b"0\r\nX: a\r\n b\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("data", CHUNKED_BAD)
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_bad_chunk_is_refused_however_it_is_cut(data: bytes, step: int) -> None:
    with pytest.raises(HttpError):
        unchunk(data, step)


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    st.integers(1, 50),
    st.binary(max_size=9),
)
def test_chunks_come_off_however_they_are_cut(parts: list[bytes], step: int, rest: bytes) -> None:
    data = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in parts)
    data += b"0\r\nX-T: x\r\n\r\n" + rest
    assert unchunk(data, step) == (b"".join(parts), True, rest)


# differential: whatever we accept, h11 and llhttp accept and read the same

names = st.sampled_from(
    [b"Host", b"X-A", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Accept", b"Expect"]
)
values = st.one_of(
    st.sampled_from([b"a", b"shop.example", b"5", b"0", b"chunked", b"close", b"100-continue", b"identity"]),
    st.binary(max_size=6),
)  # fmt: skip
line_ends = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n ", b"\r\r\n"])
colons = st.sampled_from([b": "] * 8 + [b":", b" : ", b":\t", b" "])
field_lines = st.tuples(names, colons, values, line_ends).map(b"".join)
request_lines = st.tuples(
    st.sampled_from([b"GET", b"POST", b"OPTIONS", b"get", b"PUT", b"G\xc9T"]),
    st.sampled_from([b" "] * 8 + [b"  ", b"\t"]),
    st.sampled_from(
        [b"/", b"/a?b=c", b"/%41", b"*", b"http://shop.example/x", b"a", b"/a b", b"/\x80"]
    ),
    st.sampled_from(
        [b" HTTP/1.1"] * 6 + [b" HTTP/1.0", b" HTTP/1.2", b" HTTP/2.0", b"", b" http/1.1"]
    ),
    line_ends,
).map(b"".join)
requests = st.tuples(request_lines, st.lists(field_lines, max_size=5).map(b"".join)).map(
    lambda parts: b"".join(parts) + b"\r\n"
)


class Heard:
    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))


def by_h11(data: bytes) -> Any:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    return connection.next_event()


@given(requests)
@example(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n")
def test_what_we_accept_others_read_the_same(data: bytes) -> None:
    found = verdict(data)
    if not isinstance(found, Head):
        return
    event = by_h11(data)
    assert isinstance(event, h11.Request), data
    assert event.method == found.method
    if not event.target.startswith(b"http:"):
        assert event.target == found.uri
    heard = Heard()
    parser = httptools.HttpRequestParser(heard)
    with contextlib.suppress(httptools.HttpParserUpgrade):
        parser.feed_data(data)
    assert heard.url == event.target
    assert sorted(heard.fields) == sorted((name, value) for name, value in event.headers)
    length = dict(heard.fields).get(b"content-length")
    assert found.block.length == (None if length is None else int(length))
    assert found.block.is_chunked == (b"transfer-encoding" in dict(heard.fields))


@given(requests)
def test_verdict_is_the_same_byte_by_byte(data: bytes) -> None:
    whole, cut = verdict(data), verdict_bytewise(data)
    if isinstance(whole, Head):
        assert isinstance(cut, Head)
        assert (cut.method, cut.uri, cut.block.fields) == (
            whole.method,
            whole.uri,
            whole.block.fields,
        )
    else:
        assert cut == whole


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waited_for(data: bytes) -> None:
    answer = verdict(data)
    assert not isinstance(answer, Head)
    assert answer in (0, 400, 414, 431, 505)


def test_long_runs_of_blanks_cost_no_time() -> None:
    began = time.process_time()
    for start in (
        b"GET / HTTP/1.1\r\nHost: a\r\nX:",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:",
    ):
        assert verdict(start + b" " * 30_000 + b"\x00\r\n\r\n") == 400
        assert verdict(start + b"x, " * 10_000 + b"\r\n\r\n") != 0
    with pytest.raises(HttpError):
        unchunk(b"5;" + b"a=b;" * 60 + b"\x01\r\n", 1000)
    assert verdict(b"GET / HTTP/1.1\r\nHost: " + b"a." * 15_000 + b"!\r\n\r\n") == 400
    assert verdict(b"GET /" + b"%" * 8000 + b" HTTP/1.1\r\nHost: a\r\n\r\n") == 400
    assert time.process_time() - began < 0.2
