"""Mongrel2's messages: examples recorded from the real server, then what always holds."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend import mongrel2, tnetstring
from frontend.mongrel2 import MessageError, Protocol

IDENT = b"34f9ceee-cd52-4b7f-b197-88bf2f0ec378"
JSON = (
    IDENT + b' 2 / 167:{"PATH":"/","x-forwarded-for":"127.0.0.1","host":"localhost",'
    b'"METHOD":"GET","VERSION":"HTTP/1.1","URI":"/","PATTERN":"/","URL_SCHEME":"http",'
    b'"REMOTE_ADDR":"127.0.0.1"},0:,'
)
TNET = (
    IDENT + b" 2 / 169:11:REMOTE_ADDR,9:127.0.0.1,6:METHOD,3:GET,10:URL_SCHEME,4:http,"
    b"7:PATTERN,1:/,3:URI,1:/,7:VERSION,8:HTTP/1.1,4:PATH,1:/,4:host,9:localhost,"
    b"15:x-forwarded-for,9:127.0.0.1,}0:,"
)


@pytest.mark.parametrize(("message", "protocol"), [(JSON, "json"), (TNET, "tnetstring")])
def test_recorded_request_is_read_and_written_byte_for_byte(
    message: bytes, protocol: Protocol
) -> None:
    request = mongrel2.decode_request(message)
    assert (request.ident, request.id, request.path, request.body) == (IDENT, 2, "/", b"")
    assert request.header("METHOD") == "GET"
    assert request.header("host") == "localhost"
    again = mongrel2.encode_request(
        IDENT, 2, request.path, request.headers, request.body, protocol=protocol
    )
    assert again == message


def test_raw_bytes_in_the_json_of_a_real_server_are_read_as_they_are() -> None:
    message = IDENT + b' 2 / 11:{"a":"\xe9\t\x01"},0:,'
    assert mongrel2.decode_request(message).headers == {"a": "\xe9\t\x01"}


def test_disconnect_notice_is_the_real_servers() -> None:
    message = mongrel2.encode_disconnect(IDENT, 7, "json")
    assert message == IDENT + b' 7 @* 17:{"METHOD":"JSON"},21:{"type":"disconnect"},'
    assert mongrel2.decode_request(message).is_disconnect
    message = mongrel2.encode_disconnect(IDENT, 7)
    assert message == IDENT + b' 7 @* 16:6:METHOD,4:JSON,}21:{"type":"disconnect"},'


def test_reply_to_many_connections_is_read_with_its_ids() -> None:
    message = mongrel2.encode_reply(IDENT, [1, 22, 333], b"x")
    assert message == IDENT + b" 8:1 22 333, x"
    assert mongrel2.decode_reply(message) == mongrel2.Reply(IDENT, (1, 22, 333), b"x")
    assert mongrel2.decode_reply(b"u 03:1 2, ").ids == (1, 2)
    assert mongrel2.decode_reply(b"u 2:1 , y").body == b"y"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"u 1:1,x",
        b"u 2:1, x",
        b"u_x 1:1, x",
        b"u 0:, x",
        b"u 1:a, x",
        b"u 999:1, x",
        b"u 2:X , ",
    ],
)
def test_what_is_not_a_reply_is_refused(message: bytes) -> None:
    with pytest.raises(MessageError):
        mongrel2.decode_reply(message)


def test_control_message_is_the_real_servers() -> None:
    message = mongrel2.encode_control(b"u", [2], b"ctl", {b"credits": 32768})
    assert message == b"u 3:X 2, 28:3:ctl,18:7:credits,5:32768#}]"
    reply = mongrel2.decode_reply(message)
    assert reply.is_control
    assert mongrel2.decode_control(reply.body) == (b"ctl", {b"credits": 32768})
    with pytest.raises(MessageError):
        mongrel2.decode_control(b"3:ctl,")


text = st.text(st.characters(max_codepoint=255))
headers = st.dictionaries(text, st.one_of(text, st.lists(text, min_size=1, max_size=4)))
paths = st.text(st.characters(min_codepoint=33, max_codepoint=255), min_size=1)


@given(paths, headers, st.binary(), st.sampled_from(["json", "tnetstring"]))
def test_request_survives_the_way_to_the_handler(
    path: str, fields: mongrel2.Headers, body: bytes, protocol: Protocol
) -> None:
    message = mongrel2.encode_request(IDENT, 5, path, fields, body, protocol=protocol)
    assert mongrel2.decode_request(message) == mongrel2.Request(IDENT, 5, path, fields, body)


@given(st.binary(max_size=60))
def test_garbage_never_raises_anything_but_a_message_error(data: bytes) -> None:
    for decode in (
        mongrel2.decode_request,
        mongrel2.decode_reply,
        mongrel2.decode_control,
        lambda data: mongrel2.decode_request(b"u 1 / " + data),
    ):
        with contextlib.suppress(MessageError):
            decode(data)


values = st.recursive(
    st.one_of(st.binary(), st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.binary(), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(values)
def test_tnetstring_survives_the_round_trip(value: tnetstring.Value) -> None:
    assert tnetstring.decode(tnetstring.encode(value)) == value


@pytest.mark.parametrize(
    "data", [b"", b"1:", b"2:a,", b"01:a,", b"1:a?", b"1:a,x", b"-1:a,", b"1:x!"]
)
def test_what_is_not_a_tnetstring_is_refused(data: bytes) -> None:
    with pytest.raises(tnetstring.TnetstringError):
        tnetstring.decode(data)


def test_deep_tnetstring_is_refused_instead_of_exhausting_the_stack() -> None:
    data = b""
    for _ in range(40):
        data = b"%d:%b]" % (len(data), data)
    with pytest.raises(tnetstring.TnetstringError, match="deep"):
        tnetstring.decode(data)
