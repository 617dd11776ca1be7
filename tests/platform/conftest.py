"""Fixtures: a whole one-machine Bareku in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bareku.door.keys import make_pair
from bareku.paths import Root
from tests.platform.rig import Bareku, Repository


@pytest.fixture(scope="module")
def bareku(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bareku]:
    root = Root(tmp_path_factory.mktemp("bareku"))
    running = Bareku(root)
    started = running.run("up", "--detach", "--free-ports")
    assert "diprocd/worker" in started.stdout
    try:
        yield running
    finally:
        running.run("down")
        left = [
            p for p in psutil.process_iter(["cmdline"]) if str(root.path) in str(p.info["cmdline"])
        ]
        assert not left, left


@pytest.fixture(scope="module")
def key(bareku: Bareku, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "id_ed25519"
    make_pair(path, "ada@laptop")
    bareku.run("keys:add", "ada", data=path.with_name("id_ed25519.pub").read_text())
    return path


@pytest.fixture
def new_repository(
    bareku: Bareku, key: Path, tmp_path: Path
) -> Iterator[Callable[[str], Repository]]:
    """Makes an app and a developer's repository for it; the apps are destroyed at the end."""
    made: list[str] = []

    def make(app: str) -> Repository:
        bareku.run("apps:create", app)
        made.append(app)
        path = tmp_path / app
        path.mkdir()
        repository = Repository(bareku, path, key, app)
        repository.git("init", "--quiet", "--initial-branch=master")
        repository.git("remote", "add", "bareku", bareku.settings.remote(app))
        return repository

    yield make
    for app in made:
        bareku.run("apps:destroy", app, "--confirm", app)
