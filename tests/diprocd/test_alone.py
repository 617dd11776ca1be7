"""docs/how-to/diprocd-alone.md, done word for word in another folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.diprocd.rig import PROGRAM, TOP, free_port, start_ticks, wait

pytestmark = pytest.mark.slow

PAGE = (TOP / "docs/how-to/diprocd-alone.md").read_text()


class Page:
    """The page's files and commands, moved to a folder and ports of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = PAGE.replace("/tmp/diprocd-try", str(folder))
        text = text.replace("31124", str(free_port())).replace("31123", str(free_port()))
        for name, body in re.findall(r"^```json (\S+)\n(.*?)^```", text, re.S | re.M):
            (folder / name).write_text(body)
        self.commands = re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M)

    def run(self, number: int) -> str:
        """The output of the page's n-th block of commands."""
        bin_folder = Path(sys.executable).parent
        env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
        out = self.folder / "out"
        with out.open("w") as file:
            subprocess.run(
                ["sh", "-eu", "-c", self.commands[number]],
                stdout=file,
                stderr=file,
                env=env,
                check=True,
                timeout=60,
            )
        return out.read_text()

    def running(self) -> dict[str, str]:
        """id -> node of what the master knows to be ready."""
        try:
            status = json.loads((self.folder / "run/master.json").read_text())
        except (OSError, ValueError):
            return {}
        return {one["id"]: one["node"] for one in status["processes"] if one["ready"]}

    def worker(self, node: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / node / "run/worker.json").read_text())
        return found

    def pids(self) -> set[int]:
        return {one["pid"] for n in ("red", "blue") for one in self.worker(n)["processes"]}


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    one = Page(tmp_path)
    yield one
    for path in tmp_path.glob("**/run/*.lock"):
        pid = int(path.read_text() or 0)
        if pid and start_ticks(pid) and b"diprocd" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, 9)
            wait(lambda: start_ticks(pid) is None)  # noqa: B023
    for node in ("red", "blue"):
        if (tmp_path / node / "client.json").exists():
            subprocess.run(
                [
                    *PROGRAM,
                    "worker",
                    "--stop-all",
                    "--config",
                    str(tmp_path / node / "client.json"),
                ],
                cwd=TOP,
                check=False,
                capture_output=True,
                timeout=60,
            )


def test_page_does_what_it_says(page: Page) -> None:
    assert len(page.commands) == 5
    page.run(0)
    wait(lambda: len(page.running()) == 4, 20, page.running)
    assert sorted(page.running().values()) == ["blue", "blue", "red", "red"]
    shown = page.run(1)
    assert "node red: up" in shown
    assert "clock.v1.tick.4" in shown
    page.run(2)
    wait(lambda: len(page.running()) == 6, 10, page.running)
    before = page.pids()
    old = page.worker("red")["pid"]
    page.run(3)
    wait(lambda: page.worker("red")["pid"] != old, 10)
    wait(lambda: page.worker("red")["counts"]["adopted"] == 3, 10)
    assert page.pids() == before
    page.run(4)
    assert {start_ticks(pid) for pid in before} == {None}
