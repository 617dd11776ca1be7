"""Logging of the daemons: one line per event, `event key=value ...`, to stderr."""

from __future__ import annotations

import logging
import sys


def setup(*, verbose: bool = False) -> None:
    """Log to stderr: INFO what an operator would do by hand, DEBUG frames and decisions."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s %(message)s",
    )


def event(what: str, /, **fields: object) -> str:
    """`process started app=shop pid=812`: values with blanks or control bytes are quoted."""
    return " ".join([what, *(f"{key}={_value(value)}" for key, value in fields.items())])


def _value(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and not any(c in text for c in ' "=')
    return text if plain and text else repr(text)
