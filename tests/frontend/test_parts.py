"""The small pure parts: routes, replies, frames of two protocols, the wheel."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend import zmtp
from frontend.reply import Mode, Reply, ReplyError, parse_reply_head, whole_reply
from frontend.router import Route, Table, decode_document
from frontend.websocket import Frames, WebSocketError, accept_value, unmask
from frontend.wheel import Wheel

# routes

TABLE = Table(
    [
        Route("shop.example", "shop", 1),
        Route("shop.example", "api", 1, "/api/v2"),
        Route("*.shop.example", "tenants", 1),
        Route("*.example", "wild", 1, "/only"),
        Route("*", "rest", 1, "/static/"),
    ]
)


@pytest.mark.parametrize(
    ("host", "path", "app"),
    [
        ("shop.example", b"/", "shop"),
        ("shop.example", b"/api/v2", "api"),
        ("shop.example", b"/api/v2/x", "api"),
        ("shop.example", b"/api/v21", "shop"),
        ("shop.example", b"/api", "shop"),
        ("a.shop.example", b"/", "tenants"),
        ("a.b.shop.example", b"/", "tenants"),
        ("badshop.example", b"/", None),
        ("badshop.example", b"/only", "wild"),
        ("x.example", b"/static", "rest"),
        ("x.example", b"/static/a", "rest"),
        ("x.example", b"/stati", None),
        ("example", b"/only", None),
        (None, b"/static/", "rest"),
        (None, b"/", None),
        ("[::1]", b"/static/", "rest"),
    ],
)
def test_route_is_the_most_specific_that_fits(
    host: str | None, path: bytes, app: str | None
) -> None:
    target = TABLE.find(host, path)
    assert (target and target.route.app) == app


def test_table_needs_routes_and_prefixes_with_a_slash() -> None:
    with pytest.raises(ValueError, match="routes"):
        decode_document(b"{}")
    with pytest.raises(ValueError, match="does not begin"):
        decode_document(b'{"routes": [{"host": "a", "app": "b", "release": 1, "prefix": "x"}]}')
    document = decode_document(b'{"routes": [], "version": 3, "later": true}')
    assert (document.version, document.routes) == (3, [])


# replies


def reply(**fields: bool) -> Reply:
    return Reply(**{"is_head": False, "is_http10": False, "keeps_alive": True, **fields})  # type: ignore[arg-type]


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@given(st.integers(1, 60))
def test_reply_is_the_same_however_it_is_cut(step: int) -> None:
    for data in (LENGTH + b"hello", CHUNKS + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"):
        passing, out = reply(), b""
        for at in range(0, len(data), step):
            out += passing.feed(data[at : at + step], False)
        assert passing.mode is Mode.DONE
        assert passing.body_bytes == 5
        assert out.startswith(b"HTTP/1.1 200 OK\r\n")
        body = out.partition(b"\r\n\r\n")[2]
        if b"chunked" in data:
            body = b"".join(body.split(b"\r\n")[1:-1:2])
        assert body == b"hello"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n",
        b"HTTP/1.1 200 OK\r\nX y: z\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nb\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n",
        b"HTTP/1.1 200 O\nK\r\n",
        b"HTTP/1.1 099 No\r\n",
        b"HTTP/2 200\r\n",
        b"200 OK\r\n",
        b"",
    ],
)
def test_bad_reply_head_is_refused(head: bytes) -> None:
    with pytest.raises(ReplyError):
        parse_reply_head(head)


def test_two_equal_lengths_become_one() -> None:
    head = parse_reply_head(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\ncontent-length: 1\r\n")
    assert head.text == b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n"


def test_hop_by_hop_fields_of_a_handler_end_here() -> None:
    out = reply().feed(
        b"HTTP/1.0 200 OK\r\nConnection: close\r\nKeep-Alive: 5\r\nContent-Length: 0\r\nX: 1\r\n\r\n",
        True,
    )
    assert out == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: 1\r\n\r\n"


def test_interim_replies_are_not_the_answer() -> None:
    passing = reply()
    assert passing.feed(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", False) == b""
    assert passing.feed(LENGTH + b"hello", True).endswith(b"hello")
    assert passing.status == 200


def test_short_reply_is_an_error_and_a_long_one_is_cut() -> None:
    with pytest.raises(ReplyError):
        reply().feed(LENGTH + b"hell", True)
    passing = reply()
    assert passing.feed(LENGTH + b"hello and more", False).endswith(b"\r\n\r\nhello")
    assert passing.close


def test_endless_head_is_refused() -> None:
    passing = reply()
    assert passing.feed(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 60_000, False) == b""
    with pytest.raises(ReplyError):
        passing.feed(b"a" * 10_000, False)


def test_known_whole_reply_takes_the_short_way_with_the_same_bytes() -> None:
    data = b"HTTP/1.1 200 OK\r\nX-Once: 1\r\nContent-Length: 5\r\n\r\nhello"
    assert whole_reply(data, b"", heeds_close=False) is None
    long_way = reply().feed(data, True)
    assert whole_reply(data, b"", heeds_close=False) == (long_way, 200, 5)
    assert whole_reply(data + b"!", b"", heeds_close=False) is None
    assert whole_reply(data[:-1], b"", heeds_close=False) is None
    for odd in (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello",
                b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"):  # fmt: skip
        reply().feed(odd, True)
        assert whole_reply(odd, b"", heeds_close=False) is None


@given(st.binary(max_size=80), st.binary(max_size=40))
def test_garbage_of_a_handler_is_a_reply_error_or_nothing(data: bytes, more: bytes) -> None:
    passing = reply()
    try:
        passing.feed(data, False)
        passing.feed(b"HTTP/1.1 200 OK\r\n" + more, True)
    except ReplyError:
        assert not passing.is_done


# ZMTP


@given(
    st.lists(st.tuples(st.integers(0, 1), st.binary(max_size=600)), max_size=6), st.integers(1, 700)
)
def test_frames_come_out_however_they_are_cut(frames: list[tuple[int, bytes]], step: int) -> None:
    data = b"".join(zmtp.frame(body, flags) for flags, body in frames)
    splitter, found = zmtp.Splitter(1000), []
    for at in range(0, len(data), step):
        found += splitter.feed(data[at : at + step])
    assert [(flags & 1, body) for flags, body in found] == frames


@pytest.mark.parametrize(
    "data",
    [
        b"\x02" + b"\xff" * 8 + b"x",
        b"\x02" + (1001).to_bytes(8, "big"),
        b"\x08\x00",
        b"GET / HTTP/1.1",
    ],
)
def test_frame_too_large_or_unknown_is_refused_at_its_head(data: bytes) -> None:
    with pytest.raises(zmtp.ZmtpError):
        zmtp.Splitter(1000).feed(data)


def test_greeting_of_something_else_is_refused() -> None:
    zmtp.check_greeting(zmtp.greeting())
    for size in range(65):
        zmtp.check_greeting(zmtp.greeting()[:size])
    for bad in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 9 + b"\x7f\x01",
        zmtp.greeting().replace(b"NULL", b"CURVE"),
    ):
        with pytest.raises(zmtp.ZmtpError):
            zmtp.check_greeting(bad)


def test_ready_carries_the_type() -> None:
    _, body = zmtp.Splitter(1000).feed(zmtp.ready(b"ROUTER"))[0]
    assert zmtp.parse_ready(body) == {b"socket-type": b"ROUTER", b"identity": b""}
    for bad in (b"", b"\x05READY\x0bSocket", b"\x05READY\x01a\x00\x00\x00\x09x"):
        with pytest.raises(zmtp.ZmtpError):
            zmtp.parse_ready(bad)


# WebSocket


def masked(flags: int, payload: bytes, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes([flags, 0x80 | size])
    elif size < 65536:
        head = bytes([flags, 0xFE]) + size.to_bytes(2, "big")
    else:
        head = bytes([flags, 0xFF]) + size.to_bytes(8, "big")
    return head + mask + unmask(payload, mask)


@given(
    st.lists(st.binary(max_size=300), max_size=5),
    st.integers(1, 200),
    st.binary(min_size=4, max_size=4),
)
def test_fragments_are_joined_however_they_are_cut(
    parts: list[bytes], step: int, mask: bytes
) -> None:
    data = masked(0x01, b"", mask) + b"".join(masked(0x00, part, mask) for part in parts)
    data += masked(0x89, b"ping", mask) + masked(0x80, b"!", mask)
    frames, found = Frames(), []
    for at in range(0, len(data), step):
        found += frames.feed(data[at : at + step])
    assert found == [(0x89, b"ping"), (0x81, b"".join(parts) + b"!")]


@pytest.mark.parametrize(
    "data",
    [b"\x81\x01a", masked(0x80, b"x"), masked(0x01, b"a") + masked(0x81, b"b"), masked(0x09, b"x"),
     masked(0x89, b"x" * 126), b"\x82\xff" + (2**31).to_bytes(8, "big"), b"\x82\xfe\xff\xff" * 40],
)  # fmt: skip
def test_what_a_client_must_not_send_ends_it(data: bytes) -> None:
    frames = Frames(max_message=60_000)
    with pytest.raises(WebSocketError):
        frames.feed(data)


def test_accept_value_is_the_rfcs() -> None:
    assert accept_value("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


# the wheel


@dataclass(eq=False)
class Thing:
    deadline: float = 0.0
    due: float = 0.0
    slot: int = 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["set", "assign", "forget", "tick"]),
            st.integers(0, 3),
            st.floats(0.01, 20),
        ),
        max_size=40,
    )
)
def test_nothing_expires_early_or_more_than_two_ticks_late(
    acts: list[tuple[str, int, float]],
) -> None:
    now, wheel, things = 100.0, Wheel(100.0, 0.25), [Thing() for _ in range(4)]
    on: dict[int, float] = {}
    for act, index, amount in [*acts, *[("tick", 0, 0.25)] * 100]:
        thing = things[index]
        if act == "set":
            wheel.set(thing, now + amount)
            on[index] = now + amount
        elif act == "assign" and now + amount >= thing.due > 0:
            thing.deadline = on[index] = now + amount
        elif act == "forget":
            wheel.forget(thing)
            on.pop(index, None)
        elif act == "tick":
            now += min(amount, 0.25)
            for entry in wheel.expired(now):
                deadline = on.pop(next(i for i, t in enumerate(things) if t is entry))
                assert now - 0.55 <= deadline <= now
    assert not on
