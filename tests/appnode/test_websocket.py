"""WebSocket frames both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appnode.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    PING,
    TEXT,
    Message,
    Reader,
    WebSocketError,
    accept,
    close_code,
    close_frame,
    frame,
    masked,
)

MASK = b"\x01\x02\x03\x04"


def test_accept_is_that_of_the_rfc() -> None:
    assert accept(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_frames_are_those_of_the_rfc() -> None:
    assert frame(FIN | TEXT, b"Hello") == b"\x81\x05Hello"
    assert frame(FIN | TEXT, b"Hello", b"\x37\xfa\x21\x3d").hex() == "818537fa213d7f9f4d5158"
    assert frame(FIN | BINARY, bytes(256))[:4] == b"\x82\x7e\x01\x00"
    assert frame(FIN | BINARY, bytes(65536))[:10] == b"\x82\x7f" + (65536).to_bytes(8, "big")
    assert close_code(close_frame(4000, "bye")[2:]) == (4000, "bye")
    assert close_code(b"") == (1005, "")


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_mask_is_its_own_inverse(data: bytes, mask: bytes) -> None:
    assert masked(masked(data, mask), mask) == data
    assert masked(data, mask) == bytes(b ^ mask[i % 4] for i, b in enumerate(data))


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.integers(1, 60))
def test_any_cut_and_any_fragments_give_the_message(parts: list[bytes], size: int) -> None:
    data = b""
    for number, part in enumerate(parts):
        first = BINARY if number == 0 else CONTINUATION
        last = FIN if number == len(parts) - 1 else 0
        data += frame(first | last, part, MASK)
        if not last:
            data += frame(FIN | PING, b"?", MASK)
    reader = Reader()
    found: list[Message] = []
    for at in range(0, len(data), size):
        found += reader.feed(data[at : at + size])
    assert [m for m in found if m.kind == BINARY] == [Message(BINARY, b"".join(parts))]
    assert len(found) == len(parts)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(FIN | TEXT, b"x"), 1002),
        (frame(FIN | 0x40 | TEXT, b"x", MASK), 1002),
        (frame(FIN | 0x3, b"x", MASK), 1002),
        (frame(FIN | CONTINUATION, b"x", MASK), 1002),
        (frame(TEXT, b"x", MASK) + frame(FIN | TEXT, b"x", MASK), 1002),
        (frame(PING, b"x", MASK), 1002),
        (frame(FIN | CLOSE, bytes(126), MASK), 1002),
        (frame(FIN | TEXT, b"\xff", MASK), 1007),
        (b"\x82\xff" + (2**40).to_bytes(8, "big"), 1009),
        (frame(BINARY, bytes(600), MASK) + frame(FIN, bytes(600), MASK), 1009),
    ],
)
def test_breach_of_the_protocol_is_told_by_its_code(data: bytes, code: int) -> None:
    with pytest.raises(WebSocketError) as caught:
        Reader(max_message=1000).feed(data)
    assert caught.value.code == code
