"""The one error a user can act on, and the nearest-word hint it often carries."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BarekuError(Exception):
    """Something the user can act on: `cannot <do what>: <why>`, and what to do next.

    `exit_code` is the process's exit status (docs/reference/exit-codes.md).
    Everything that is not a BarekuError is a bug and keeps its traceback.
    """

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like `word`, or None when nothing is near."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None
