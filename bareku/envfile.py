"""An app's env file: `KEY=value` lines, as people write them. Pure.

A value is the rest of the line, blanks at both ends dropped. In double quotes `\\n`, `\\t`, `\\"`
and `\\\\` are escapes and a value may span lines; in single quotes every character is itself.
`$` never means anything, and a ` #` inside an unquoted value belongs to the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bareku.errors import BarekuError

MAX_VALUE = 64 * 1024  # bytes; Linux refuses single environment strings above 128 KiB

_KEY = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"[ \t]*(?:#[^\n]*)?(?:\n|\Z)', re.DOTALL)
_SINGLE = re.compile(r"'([^']*)'[ \t]*(?:#[^\n]*)?(?:\n|\Z)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "$": "$"}


def parse(text: str, *, name: str = "env file") -> dict[str, str]:
    """Keys and values in file order. Raises BarekuError with the line number."""
    return {entry.key: entry.value for entry in _entries(text.replace("\r\n", "\n"), name)}


def change(text: str, env: Mapping[str, str], *, name: str = "env file") -> str:
    """The text after `env` became its content: lines of unchanged keys and notes stay as they are."""
    text = text.replace("\r\n", "\n")
    parts = []
    at = 0
    known = set()
    for entry in _entries(text, name):
        known.add(entry.key)
        parts.append(text[at : entry.start])
        if entry.key in env:
            same = env[entry.key] == entry.value
            line = render({entry.key: env[entry.key]})
            parts.append(text[entry.start : entry.end] if same else line)
        at = entry.end
    parts.append(text[at:])
    kept = "".join(parts)
    if kept and not kept.endswith("\n"):
        kept += "\n"
    return kept + render({key: value for key, value in env.items() if key not in known})


def check(key: str, value: str, *, name: str = "env file") -> None:
    """Raise BarekuError unless a process can be given this variable."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
        raise BarekuError(
            f"cannot set {key[:60]!r} in {name}: not a variable name",
            hint="use letters, digits and '_', not beginning with a digit",
        )
    if "\0" in value:
        raise BarekuError(f"cannot set {key} in {name}: its value holds a NUL byte")
    if len(value.encode("utf-8", "surrogateescape")) > MAX_VALUE:
        raise BarekuError(f"cannot set {key} in {name}: its value is over {MAX_VALUE} bytes")


def render(env: Mapping[str, str]) -> str:
    """The text that `parse` reads back to the same mapping."""
    return "".join(f"{key}={_quote(value)}\n" for key, value in env.items())


@dataclass(frozen=True, slots=True)
class _Entry:
    """A variable and the part of the text that sets it."""

    key: str
    value: str
    start: int
    end: int


def _entries(text: str, name: str) -> Iterator[_Entry]:
    seen = set()
    at = 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        line = text[at:end]
        if not line.strip() or line.lstrip().startswith("#"):
            at = end + 1
            continue
        number = text.count("\n", 0, at) + 1
        start = at
        found = _KEY.match(text, at + len(line) - len(line.lstrip()), end)
        if not found:
            raise BarekuError(
                f"cannot read {name}: line {number} is not KEY=value: {line.strip()[:60]!r}",
                hint="a key has letters, digits and '_' and does not begin with a digit",
            )
        key = found[1]
        if key in seen:
            raise BarekuError(f"cannot read {name}: line {number} sets {key} a second time")
        seen.add(key)
        value, at = _value(text, found.end(), end, name, number)
        check(key, value, name=name)
        yield _Entry(key, value, start, min(at, len(text)))


def _value(text: str, at: int, end: int, name: str, number: int) -> tuple[str, int]:
    """The value that begins at `at` and where the next line begins."""
    opening = text[at : at + 1]
    if opening in {'"', "'"}:
        found = (_DOUBLE if opening == '"' else _SINGLE).match(text, at)
        if found:
            if opening == "'":
                return found[1], found.end()
            unescaped = re.sub(
                r"\\(.)", lambda m: _ESCAPES.get(m[1], m[0]), found[1], flags=re.DOTALL
            )
            return unescaped, found.end()
        raise BarekuError(
            f"cannot read {name}: line {number} has text after or no closing {opening}"
        )
    return text[at:end].rstrip(), end + 1


def _quote(value: str) -> str:
    plain = value == value.strip() and not re.search(r"[\n\r]", value)
    if plain and value[:1] not in {'"', "'"}:
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + escaped.replace("\r", "\\r") + '"'
