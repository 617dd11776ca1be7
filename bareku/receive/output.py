"""What a build prints, made fit for a transcript: bounded lines, no control bytes. Pure.

The buildpack contract's forms (`-----> `, `=====> `, seven blanks, ` !`) pass as they are; every
other line is indented, so that no text of an app can begin like one of ours.
"""

from __future__ import annotations

import re

MAX_LINE = 1000  # characters; longer ones are progress bars or minified code
MAX_TOTAL = 4 * 2**20  # characters of one build; npm's longest logs are below 1 MB

_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~]?)"
    r"|\x9b[0-?]*[ -/]*[@-~]"
)
_FORM = re.compile(r"(?:-----> |=====> |       | !(?: |$))")
INDENT = "       "


def clean(line: str) -> str:
    """One line without escapes, control and invisible characters, in a form that the contract has."""
    line = _ESCAPE.sub("", line).rstrip("\r").rpartition("\r")[2].expandtabs(8)
    text = "".join(c for c in line if c.isprintable()).rstrip()
    if len(text) > MAX_LINE:
        text = text[:MAX_LINE] + "…"
    if not text or _FORM.match(text):
        return text
    return INDENT + text


class Lines:
    """Bytes in as they come, clean lines out; stops saying anything after MAX_TOTAL."""

    def __init__(self, max_total: int = MAX_TOTAL) -> None:
        self._rest = b""
        self._left = max_total
        self.is_cut = False

    def feed(self, block: bytes) -> list[str]:
        """The whole lines that `block` completes."""
        if self.is_cut:
            return []
        *whole, rest = (self._rest + block).split(b"\n")
        if len(rest) > 8 * MAX_LINE:  # nobody reads the middle of such a line
            whole.append(rest)
            rest = b""
        self._rest = rest
        return self._passed(whole)

    def close(self) -> list[str]:
        """The last line when it had no newline."""
        last, self._rest = self._rest, b""
        return self._passed([last]) if last else []

    def _passed(self, raws: list[bytes]) -> list[str]:
        lines: list[str] = []
        for raw in raws:
            if self.is_cut:
                break
            line = clean(raw[: 8 * MAX_LINE].decode(errors="replace"))
            self._left -= len(line) + 1
            if self._left < 0:
                self.is_cut = True
                line = " !     The build prints too much; the rest of its output is left out."
            lines.append(line)
        return lines
