"""The Procfile: process type -> command, and the argv that starts such a command. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bareku.errors import BarekuError
from bareku.names import parse_process_type

_LINE = re.compile(r"([^\s:]+):\s*(\S.*)")

# What a slug wants to say before its program starts: `.profile.d/*.sh` in order, then `.profile`.
_PROLOGUE = (
    'for file in "$HOME"/.profile.d/*.sh "$HOME"/.profile; do [ -r "$file" ] && . "$file"; done; '
    "unset file; "
)


def parse(text: str) -> dict[str, str]:
    """Process type -> command, in the order of the file.

    Blank lines and lines beginning with `#` are skipped; a `#` inside a command belongs to it.
    Raises BarekuError with the line number for a line that is neither, and for a type met twice.
    """
    types: dict[str, str] = {}
    for number, raw in enumerate(re.split(r"\r\n|\n|\r", text.removeprefix("\ufeff")), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if not match:
            raise _error(number, f"{line[:80]!r} is not `type: command`")
        try:
            name = parse_process_type(match[1])
        except BarekuError as exc:
            raise _error(number, exc.message) from exc
        if name in types:
            raise _error(number, f"the process type {name!r} is there twice")
        if "\0" in line:
            raise _error(number, "it holds a NUL byte")
        types[name] = match[2]
    return types


def render(types: Mapping[str, str]) -> str:
    """The Procfile text of these process types; `parse` gives them back."""
    return "".join(f"{name}: {command}\n" for name, command in types.items())


def start_argv(command: str) -> list[str]:
    """The argv that runs a Procfile command in a slug whose root is `$HOME`.

    The command goes to the shell as it stands: many are compound (`migrate && gunicorn ...`),
    so there is no `exec` before it and the shell stays as its parent.
    """
    return ["bash", "-c", _PROLOGUE + command]


def _error(number: int, why: str) -> BarekuError:
    return BarekuError(
        f"cannot read Procfile: line {number}: {why}",
        hint="each line is `type: command`, for example `web: gunicorn app:app`",
    )
