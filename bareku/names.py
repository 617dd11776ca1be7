"""The one gate from outside text to app, user, node, process type and slug names.

Whatever later becomes a path, an argument, a topic or a host name passes here first.
"""

from __future__ import annotations

import re

from bareku.errors import BarekuError

MAX_APP_NAME = 40  # leaves room in a 63-octet DNS label
RESERVED_APPS = frozenset({"admin", "bareku", "git", "localhost", "www-data"})

_APP = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_USER = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_NODE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PROCESS_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_SLUG = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def parse_app(text: str) -> str:
    """An app name: lower-case letter first, then letters, digits, hyphens; a DNS label."""
    if len(text) > MAX_APP_NAME:
        raise BarekuError(
            f"cannot use {text[:20] + '…'!r} as an app name: it has {len(text)} characters, "
            f"at most {MAX_APP_NAME} are allowed",
            hint="choose a shorter name",
        )
    if not _APP.fullmatch(text):
        raise BarekuError(
            f"cannot use {text!r} as an app name: it must begin with a letter a-z and hold only "
            "a-z, 0-9 and inner hyphens",
            hint=f"try {_suggest(text)!r}",
        )
    if text in RESERVED_APPS:
        raise BarekuError(
            f"cannot use {text!r} as an app name: it is reserved", hint="choose another name"
        )
    return text


def parse_user(text: str) -> str:
    """A user name: `a-z` first, then `a-z 0-9 . _ -`, at most 64 characters."""
    return _parse(_USER, text, "a user name", "a-z first, then a-z, 0-9, '.', '_' and '-'")


def parse_node(text: str) -> str:
    """A node name: a host name."""
    return _parse(_NODE, text, "a node name", "a host name: letters, digits, '.' and '-'")


def parse_process_type(text: str) -> str:
    """A process type of a Procfile: `web`, `worker`, `release`."""
    return _parse(
        _PROCESS_TYPE, text, "a process type", "letters, digits, '_' and '-', at most 63 of them"
    )


def parse_slug(text: str) -> str:
    """A slug name: a lower-case uuid."""
    return _parse(_SLUG, text, "a slug", "a lower-case uuid")


def _parse(pattern: re.Pattern[str], text: str, what: str, rule: str) -> str:
    if not pattern.fullmatch(text):
        raise BarekuError(f"cannot use {text[:80]!r} as {what}: it must be {rule}")
    return text


def _suggest(text: str) -> str:
    """A valid name close to `text`."""
    kept = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-").lstrip("0123456789-")
    return kept[:MAX_APP_NAME].rstrip("-") or "myapp"
