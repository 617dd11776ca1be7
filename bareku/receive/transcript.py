"""What the pusher reads: `----->` steps, indented details, `error:` and `hint:` at the end.

Git shows each line behind `remote: ` and colours `error:` and `hint:` itself; we send no colours.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from bareku.errors import BarekuError


class Transcript:
    """Writes to the pusher and, from `keep` on, to the build's log as well."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._kept: TextIO | None = None

    def keep(self, path: Path) -> None:
        """Also write everything from now on to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._kept = path.open("w")

    def step(self, text: str) -> None:
        """`-----> Building the slug file.`"""
        self.write(f"-----> {text}")

    def detail(self, text: str) -> None:
        """A line under a step."""
        self.write(f"         {text}")

    def fact(self, text: str) -> None:
        """A line of the runtime configuration, indented as in the 2012 note."""
        self.write(f"     {text}")

    def build_line(self, text: str) -> None:
        """A line a buildpack printed: its own steps pass, everything else is indented."""
        own = text.startswith(("-----> ", "=====> ", "       ", " !     "))
        self.write(text if own else f"       {text}")

    def error(self, error: BarekuError) -> None:
        """The last lines of a rejected push."""
        self.write(f"error: {error.message}")
        for line in error.hint.splitlines():
            self.write(f"hint: {line}")

    def write(self, line: str) -> None:
        """One line, at once."""
        for stream in (self._out, self._kept):
            if stream is None:
                continue
            try:
                stream.write(line.rstrip() + "\n")
                stream.flush()
            except OSError:
                # the pusher has gone or the disk is full: the deploy does not depend on its story
                continue

    def close(self) -> None:
        """Finish the kept log."""
        if self._kept:
            self._kept.close()
            self._kept = None
