"""Tagged netstrings (tnetstrings.info): `SIZE:bytes` and a type byte. Pure codec, strict.

`,` bytes · `#` integer · `^` float · `!` boolean · `~` null · `]` list · `}` dictionary (byte keys).
"""

from __future__ import annotations

from typing import TypeAlias

Value: TypeAlias = "bytes | int | float | bool | list[Value] | dict[bytes, Value] | None"

MAX_DIGITS = 9  # of a size, as in the format's definition: at most 999 999 999 bytes
MAX_DEPTH = 16  # lists and dictionaries within each other; the messages we know need three


class TnetstringError(ValueError):
    """The bytes are not a tnetstring."""


def encode(value: Value) -> bytes:
    """`value` as one tnetstring."""
    match value:
        case bytes():
            return b"%d:%b," % (len(value), value)
        case bool():
            return b"4:true!" if value else b"5:false!"
        case int():
            return _tagged(b"%d" % value, b"#")
        case float():
            return _tagged(repr(value).encode(), b"^")
        case None:
            return b"0:~"
        case list():
            return _tagged(b"".join(map(encode, value)), b"]")
        case dict():
            pairs = (encode(key) + encode(item) for key, item in value.items())
            return _tagged(b"".join(pairs), b"}")


def _tagged(data: bytes, tag: bytes) -> bytes:
    return b"%d:%b%b" % (len(data), data, tag)


def decode(data: bytes) -> Value:
    """The one value that `data` is. Raises TnetstringError, also when bytes follow it."""
    value, end = decode_at(data, 0)
    if end != len(data):
        raise TnetstringError(f"{len(data) - end} bytes follow the value")
    return value


def decode_at(data: bytes, start: int, depth: int = 0) -> tuple[Value, int]:
    """The value that begins at `start`, and where it ends."""
    payload, tag, end = split(data, start)
    return _value(payload, tag, depth), end


def split(data: bytes, start: int) -> tuple[bytes, bytes, int]:
    """`(payload, type byte, end)` of the tnetstring (or netstring) at `start`."""
    colon = data.find(b":", start, start + MAX_DIGITS + 1)
    digits = data[start:colon]
    if colon < 0 or not digits.isdigit() or (digits[0] == 0x30 and len(digits) > 1):
        raise TnetstringError("no size")
    end = colon + 1 + int(digits)
    if end >= len(data):
        raise TnetstringError("shorter than its size says")
    return data[colon + 1 : end], data[end : end + 1], end + 1


def _value(payload: bytes, tag: bytes, depth: int) -> Value:
    if tag == b",":
        return payload
    if tag == b"#":
        return _number(payload, int)
    if tag == b"^":
        return _number(payload, float)
    if tag == b"!" and payload in (b"true", b"false"):
        return payload == b"true"
    if tag == b"~" and not payload:
        return None
    if depth >= MAX_DEPTH:
        raise TnetstringError("too deep")
    if tag == b"]":
        return _items(payload, depth)
    if tag == b"}":
        return _pairs(payload, depth)
    raise TnetstringError(f"unknown type {tag!r}")


def _number(payload: bytes, kind: type[int] | type[float]) -> int | float:
    if len(payload) > 40 or b"_" in payload:
        raise TnetstringError("not a number")
    try:
        return kind(payload)
    except ValueError as exc:
        raise TnetstringError("not a number") from exc


def _items(payload: bytes, depth: int) -> list[Value]:
    found: list[Value] = []
    at = 0
    while at < len(payload):
        value, at = decode_at(payload, at, depth + 1)
        found.append(value)
    return found


def _pairs(payload: bytes, depth: int) -> dict[bytes, Value]:
    found: dict[bytes, Value] = {}
    at = 0
    while at < len(payload):
        key, at = decode_at(payload, at, depth + 1)
        if not isinstance(key, bytes):
            raise TnetstringError("a key is not a string")
        found[key], at = decode_at(payload, at, depth + 1)
    return found
