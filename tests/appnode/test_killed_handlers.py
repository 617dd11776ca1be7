"""Handlers killed under load, through both doors: nothing is lost, no POST runs twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.appnode.load import Load
from tests.frontend.rig import Frontend, route, until

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
HANDLERS = 2
WORK_S = "0.016"  # two at a time, six clients: busy all the time


class Handlers:
    """Two handler processes of one app, one way or the other."""

    def __init__(
        self, folder: Path, command: Callable[[int], list[str]], frontend: Frontend
    ) -> None:
        self._command = command
        self._folder = folder
        self._frontend = frontend
        self.frontend = frontend
        self.processes = [self._start(number) for number in range(HANDLERS)]
        frontend.wait_handlers(HANDLERS)

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        environ = {
            **os.environ,
            "PYTHONPATH": f"{HERE.parents[1]}:{HERE}",
            "BAREKU_APP": "shop",
            "BAREKU_RELEASE": "1",
            "BAREKU_PROCESS": f"web.{number + 1}",
            "APP_LOG": str(self._folder / f"app-{number}.log"),
            "WORK_S": WORK_S,
        }
        with (self._folder / "handlers.log").open("ab") as errors:
            return subprocess.Popen(self._command(number), cwd=HERE, env=environ, stderr=errors)

    def replace(self, number: int, how: signal.Signals) -> None:
        self.processes[number].send_signal(how)
        self.processes[number].wait(20)
        self.processes[number] = self._start(number)

    def logs(self) -> list[str]:
        return [
            line
            for path in self._folder.glob("app-*.log")
            for line in path.read_text().splitlines()
        ]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self._frontend.close()


@pytest.fixture(params=["link", "native-pair", "plain-pair"])
def handlers(request: Any, tmp_path: Path) -> Iterator[Handlers]:
    pairs = [
        {
            "app": "shop",
            "process": f"web.{number + 1}",
            "send_spec": f"ipc://{tmp_path}/s{number}",
            "recv_spec": f"ipc://{tmp_path}/r{number}",
        }
        for number in range(HANDLERS)
    ]
    doors = [] if request.param == "link" else pairs
    frontend = Frontend(tmp_path / "front", [route()], mongrel2=doors).start()

    def command(number: int) -> list[str]:
        specs = [pairs[number]["send_spec"], pairs[number]["recv_spec"]]
        serve = [sys.executable, "-m", "appnode.serve", "apps:wsgi", "--threads", "1"]
        if request.param == "link":
            return [*serve, "--link", frontend.link]
        if request.param == "native-pair":
            return [*serve, "--mongrel2", *specs]
        return [sys.executable, "handlers/plain.py", *specs]

    handlers = Handlers(tmp_path, command, frontend)
    yield handlers
    handlers.close()


def test_four_kills_lose_no_get_and_run_no_post_twice(handlers: Handlers) -> None:
    with Load(handlers.frontend.port, path="/work", pause_s=0.002) as load:
        for number in range(4):
            load.wait(140)
            handlers.replace(number % HANDLERS, signal.SIGKILL)
            handlers.frontend.wait_handlers(HANDLERS)
        load.wait(140)
    posts = load.check(handlers.logs())
    assert posts[502] <= 4  # at most the one that each of the killed was working on
    assert len(load.results) >= 700


def test_four_stops_lose_nothing(handlers: Handlers, request: pytest.FixtureRequest) -> None:
    if "plain" in request.node.name:
        pytest.skip("a plain handler dies of TERM as of KILL")
    with Load(handlers.frontend.port, path="/work", pause_s=0.002) as load:
        for number in range(4):
            load.wait(100)
            handlers.replace(number % HANDLERS, signal.SIGTERM)
            until(lambda: handlers.frontend.handlers() == HANDLERS, "both back")
        load.wait(100)
    assert set(load.check(handlers.logs())) == {200}
