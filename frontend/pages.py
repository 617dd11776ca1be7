"""Pages of an operator's own for our answers: `<status>.html`, for an app below its name."""

from __future__ import annotations

import re
import time
from pathlib import Path

MAX_PAGE = 1_048_576
FRESH_S = 1.0  # so soon an edited page is seen
_APP = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Pages:
    """The pages of one folder; without a folder there are none."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._kept: dict[tuple[str, str], bytes | None] = {}
        self._until = 0.0

    def find(self, app: str, name: str) -> bytes | None:
        """The app's page, else everybody's, else None. `name` is `404`, `503`, `maintenance`."""
        if self._folder is None:
            return None
        now = time.monotonic()
        if now >= self._until:
            self._kept.clear()
            self._until = now + FRESH_S
        key = (app, name)
        if key not in self._kept:
            folders = [self._folder / app] if _APP.fullmatch(app) else []
            pages = (_read(folder / f"{name}.html") for folder in [*folders, self._folder])
            self._kept[key] = next((page for page in pages if page is not None), None)
        return self._kept[key]


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PAGE)
    except OSError:
        return None
