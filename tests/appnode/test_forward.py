"""From a Mongrel2 request to the bytes that an app reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appnode import incoming
from appnode.forward import Forward
from frontend import mongrel2
from frontend.mongrel2 import Headers, MessageError

SERVER: Headers = {
    "METHOD": "GET",
    "PATTERN": "/",
    "QUERY": "b",
    "URI": "/a?b",
    "VERSION": "HTTP/1.1",
    "PATH": "/a",
}


def read(data: bytes, *, more: bool = False) -> Forward:
    return Forward(incoming.parse(data), more=more)


def message(headers: Headers | None = None, body: bytes = b"", **server: str) -> bytes:
    return mongrel2.encode_request(b"me", 7, "/a", SERVER | server | (headers or {}), body)


def head(headers: Headers | None = None, body: bytes = b"", **server: str) -> bytes:
    return read(message(headers, body, **server)).head


def test_request_line_and_headers_are_those_of_the_client() -> None:
    assert head({"host": "x", "accept": "*/*"}) == (
        b"GET /a?b HTTP/1.1\r\nhost: x\r\naccept: */*\r\n\r\n"
    )


def test_lists_of_values_are_lines_of_their_own() -> None:
    assert head({"cookie": ["a", "b"]}) == b"GET /a?b HTTP/1.1\r\ncookie: a\r\ncookie: b\r\n\r\n"


def test_length_is_that_of_the_body_not_what_the_header_says() -> None:
    assert b"content-length: 3\r\n" in head({"content-length": "99"}, b"abc", METHOD="POST")
    assert b"content-length: 0\r\n" in head(METHOD="POST")
    assert b"content-length" not in head()


def test_body_that_follows_has_the_announced_length_or_goes_out_chunked() -> None:
    found = read(message({"content-length": "99"}, b"abc"), more=True)
    assert (found.length, found.body) == (99, b"abc")
    assert b"content-length: 99\r\n" in found.head
    found = read(message({"transfer-encoding": "chunked"}), more=True)
    assert found.length is None
    assert found.head.endswith(b"\r\ntransfer-encoding: chunked\r\n\r\n") or (
        found.head == b"GET /a?b HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
    )


def test_upgrade_is_asked_for_only_when_connection_says_so() -> None:
    found = read(message({"upgrade": "websocket", "connection": "keep-alive, Upgrade"}))
    assert found.upgrade
    assert found.head.endswith(b"connection: upgrade\r\nupgrade: websocket\r\n\r\n")
    found = read(message({"upgrade": "h2c"}))
    assert not found.upgrade
    assert b"upgrade" not in found.head


@pytest.mark.parametrize("name", ["x-a", "x-b"])
@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\rb", "a\0b"])
def test_line_breaks_in_headers_never_pass(name: str, value: str) -> None:
    with pytest.raises(MessageError):
        head({name: value})


@pytest.mark.parametrize(
    "server",
    [
        {"URI": "/ HTTP/1.1\r\nx: y"},
        {"URI": "/a b"},
        {"URI": ""},
        {"METHOD": "G ET"},
        {"METHOD": "CONNECT"},
        {"METHOD": ""},
    ],
)
def test_request_line_is_three_words(server: dict[str, str]) -> None:
    with pytest.raises(MessageError):
        head(**server)


_TEXT = st.text(st.characters(max_codepoint=0xFF, exclude_characters="\r\n\0"), max_size=12)
_NAME = st.sampled_from(
    ["host", "accept", "connection", "te", "upgrade", "x-1", "cookie", "expect"]
)
_HEADERS: Any = st.dictionaries(_NAME, _TEXT | st.lists(_TEXT, min_size=1, max_size=3))


@given(
    _HEADERS,
    st.binary(max_size=50),
    st.sampled_from(["json", "tnetstring"]),
    st.none() | st.text("ab,:1\n", max_size=8),
    st.booleans(),
)
def test_quick_reading_is_the_careful_one(
    headers: Headers, body: bytes, protocol: mongrel2.Protocol, id: str | None, has_query: bool
) -> None:
    server = {k: v for k, v in SERVER.items() if has_query or k != "QUERY"}
    first: Headers = {} if id is None else {"REMOTE_ADDR": "127.0.0.1", "x-request-id": id}
    headers = first | server | headers
    data = mongrel2.encode_request(b"me", 7, "/a", headers, body, protocol=protocol)
    request = mongrel2.decode_request(data)
    found = incoming.parse(data)
    assert (found.ident, found.number, found.path) == (b"me", 7, b"/a")
    assert found.body == body
    want = [
        (name.encode(), value.encode("latin-1"))
        for name, values in request.headers.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    assert found.server == dict(pair for pair in want if pair[0].isupper())
    assert found.headers == [pair for pair in want if not pair[0].isupper()]


def test_remembered_headers_do_not_reach_other_requests() -> None:
    """The same beginning and end, told apart by what stands between and by the body."""
    front: Headers = {"REMOTE_ADDR": "127.0.0.1", "x-forwarded-for": "127.0.0.1"}
    for number in range(3):
        own = {"x-request-id": f"id-{number}", **SERVER, "URI": f"/{number}", "host": "x"}
        found = incoming.parse(
            mongrel2.encode_request(b"me", number, "/a", front | own, b"%d" % number)
        )
        assert found.server == {
            b"REMOTE_ADDR": b"127.0.0.1",
            **{key.encode(): str(value).encode() for key, value in own.items() if key.isupper()},
        }
        assert found.headers == [
            (b"x-forwarded-for", b"127.0.0.1"),
            (b"x-request-id", b"id-%d" % number),
            (b"host", b"x"),
        ]
        assert found.body == b"%d" % number
        found.server[b"METHOD"] = b"POST"  # a door may change what it got


@given(st.lists(st.tuples(_NAME, _TEXT), max_size=4), st.text("abc:,0123456789PATH", max_size=30))
def test_what_looks_like_a_boundary_in_a_value_is_none(
    headers: list[tuple[str, str]], text: str
) -> None:
    trap = f"{text}12:x-request-id,1:a,4:PATH,1:/,"
    given_headers: Headers = {"x-trap": trap, "x-request-id": trap, **SERVER, "x-2": trap}
    given_headers |= dict(headers)
    data = mongrel2.encode_request(b"me", 7, "/a", given_headers)
    for _ in range(2):  # the second time, what was read is remembered
        found = incoming.parse(data)
        assert dict(found.headers)[b"x-trap"] == trap.encode()
        want = {k.encode(): str(v).encode("latin-1") for k, v in given_headers.items()}
        assert found.server | dict(found.headers) == want


@given(st.binary(max_size=120), st.integers(0, 200), st.integers(0, 3))
def test_noise_is_an_error_or_a_request(noise: bytes, at: int, keep: int) -> None:
    whole = message({"host": "x", "accept": "*/*"}, b"abc")
    data = noise if not keep else whole[:at] + noise[: keep * 3] + whole[at + keep :]
    try:
        found = read(data)
    except MessageError:
        return
    assert found.head.count(b"\r\n\r\n") == 1


def test_sizes_that_lead_backwards_end() -> None:
    data = b"me 7 /a 17:-9:METHOD,3:GET,aa}0:,"
    with pytest.raises(MessageError):
        read(data)
