"""diprocd's worker, the connector, native handlers and a frontend together under load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.appnode.load import Load
from tests.diprocd.rig import Node, entry
from tests.frontend.rig import Frontend, route, until

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
TOKEN = "s3cret"


class Site:
    """One app node and one frontend."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.frontend = Frontend(folder / "front", [route(token=TOKEN)]).start()
        self.node = Node(folder / "web1")
        self.node.worker()
        config = {
            "node": "web1",
            "frontends": [self.frontend.link],
            "worker": str(self.node.run / "worker.json"),
            "run": str(folder / "run"),
        }
        (folder / "handler.yml").write_text(json.dumps(config))
        self.connector = self._connector()

    def _connector(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "appnode.connector", "--config"]
        with (self.folder / "handler.log").open("ab") as errors:
            return subprocess.Popen([*command, str(self.folder / "handler.yml")], stderr=errors)

    def port_app(self, index: int, release: int = 1) -> dict[str, Any]:
        """A process that listens on `$PORT`."""
        log = self.folder / f"app-{index}-v{release}.log"
        return entry(
            "shop", index=index, release=release, token=TOKEN, port=True,
            cmd=[sys.executable, str(HERE / "app.py"), str(log)],
            ready={"port": True}, stop={"grace_s": 5, "drain_s": 5},
        )  # fmt: skip

    def native(self, index: int) -> dict[str, Any]:
        """A process that is on the link itself."""
        return entry(
            "shop", index=index, token=TOKEN, port=False,
            cmd=[sys.executable, "-m", "appnode.serve", "apps:wsgi"],
            env={
                "PYTHONPATH": f"{HERE.parents[1]}:{HERE}",
                "BAREKU_LINK": self.frontend.link,
                "APP_LOG": str(self.folder / f"app-{index}-native.log"),
            },
            ready={"file": True}, stop={"grace_s": 10},
        )  # fmt: skip

    def logs(self) -> list[str]:
        paths = self.folder.glob("app-*.log")
        return [line for path in paths for line in path.read_text().splitlines()]

    def end(self) -> None:
        self.node.end()
        self.connector.kill()
        self.connector.wait()
        self.frontend.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.end()


def test_worker_starts_and_stops_them_and_nothing_is_lost(site: Site) -> None:
    """Port processes are drained by the connector's word, native ones by their own goodbye."""
    site.node.write(site.port_app(1), site.native(2))
    site.node.wait_ready(2)
    site.frontend.wait_handlers(2)
    with Load(site.frontend.port) as load:
        load.wait(100)
        site.node.write(site.port_app(1), site.native(2), site.port_app(3), site.native(4))
        site.frontend.wait_handlers(4)
        load.wait(100)
        site.node.write(site.port_app(3), site.native(4))
        until(lambda: set(site.node.processes()) == {"shop.v1.web.3", "shop.v1.web.4"}, "stopped")
        load.wait(100)
    posts = load.check(site.logs())
    assert set(posts) == {200}


def test_new_release_takes_over_under_load(site: Site) -> None:
    site.node.write(site.port_app(1), site.port_app(2))
    site.frontend.wait_handlers(2)
    with Load(site.frontend.port) as load:
        load.wait(100)
        old = [site.port_app(1), site.port_app(2)]
        new = [site.port_app(1, release=2), site.port_app(2, release=2)]
        site.node.write(*old, *new)
        site.frontend.wait_handlers(2, release=2)
        site.frontend.route(route(token=TOKEN, release=2))
        site.frontend.wait_handlers(2, release=2)
        load.wait(100)
        site.node.write(*new)
        until(lambda: len(site.node.processes()) == 2, "the old ones stopped")
        load.wait(100)
    assert set(load.check(site.logs())) == {200}


def test_killed_processes_are_started_again_and_no_get_is_lost(site: Site) -> None:
    site.node.write(site.port_app(1), site.native(2))
    site.frontend.wait_handlers(2)
    with Load(site.frontend.port) as load:
        for name in ("shop.v1.web.1", "shop.v1.web.2"):
            load.wait(100)
            pid = site.node.process(name)["pid"]
            os.kill(pid, signal.SIGKILL)
            site.node.wait_for(name, 20, ready=True, restarts=1)
            site.frontend.wait_handlers(2)
        load.wait(100)
    load.check(site.logs())


def test_killed_worker_is_not_noticed_by_a_visitor(site: Site) -> None:
    site.node.write(site.port_app(1))
    site.frontend.wait_handlers(1)
    with Load(site.frontend.port) as load:
        load.wait(50)
        site.node.daemons[0].kill()
        time.sleep(0.3)
        load.wait(50)
        site.node.worker()
        load.wait(50)
    assert set(load.check(site.logs())) == {200}
