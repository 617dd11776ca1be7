from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.frontend.rig import Frontend, Handler, route


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Frontend]]:
    """Starts frontends; they are gone when the test ends."""
    started: list[Frontend] = []

    def start_one(*routes: dict[str, Any], **config: Any) -> Frontend:
        folder = tmp_path / f"f{len(started)}"
        frontend = Frontend(folder, list(routes) or [route()], **config)
        started.append(frontend)
        return frontend.start()

    yield start_one
    for frontend in started:
        frontend.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Handler]]:
    """Starts handlers; they are gone when the test ends."""
    started: list[Handler] = []

    def serve_one(frontend: Frontend, app: Any = None, **fields: Any) -> Handler:
        handler = Handler(frontend.link, app, **fields)
        started.append(handler)
        return handler.start()

    yield serve_one
    for handler in started:
        handler.stop()
