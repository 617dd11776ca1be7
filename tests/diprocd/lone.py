"""A node with a real worker in a temporary folder, and looks at the processes it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diprocd import procfs

ALTERED = Path(__file__).with_name("altered.py")
SLEEP = ["sleep", "600"]


def await_until(holds: Callable[[], Any], timeout_s: float = 10.0, what: str = "") -> Any:
    """Poll until `holds()` is true; its value. Fails with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)
    return found


def entry(name: str = "web.1", cmd: list[str] | None = None, **fields: Any) -> dict[str, Any]:
    """An entry of a node document: `web.1` of release 1 of the app shop."""
    kind, _, index = name.partition(".")
    app, release = fields.pop("app", "shop"), fields.pop("release", 1)
    return {
        "id": f"{app}.v{release}.{kind}.{index}",
        "app": app,
        "type": kind,
        "index": int(index),
        "release": release,
        "cmd": cmd or SLEEP,
        **fields,
    }


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


@dataclass
class Daemon:
    """One run of a diprocd daemon as a child of the test."""

    verb: str
    config: Path
    log: Path
    altered: str = ""
    fail: str = ""
    popen: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        argv = [sys.executable, "-P"]
        argv += [str(ALTERED), self.altered] if self.altered else ["-m", "diprocd.main"]
        argv += [self.verb, "--config", str(self.config), *more]
        env = {**os.environ, "DIPROC_FAIL": self.fail}
        with self.log.open("ab") as out:
            self.popen = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                          env=env)  # fmt: skip

    @property
    def pid(self) -> int:
        assert self.popen
        return self.popen.pid

    def signal(self, number: int) -> None:
        if self.popen and self.popen.poll() is None:
            self.popen.send_signal(number)

    def kill(self) -> None:
        """As a power cut would, and reaped."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        self.signal(signal.SIGTERM)
        self.wait()

    def wait(self, timeout_s: float = 20.0) -> int:
        assert self.popen
        return self.popen.wait(timeout_s)


@dataclass
class Node:
    """The worker's world: its folders, its document, its status."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    version: int = 0

    def __post_init__(self) -> None:
        self.run = self.folder / "run"
        self.document = self.folder / "diprocd-worker.json"
        self.slugs = self.folder / "slugs"
        for one in (self.run, self.slugs):
            one.mkdir(parents=True, exist_ok=True)
        self.config = self.folder / "diprocd-client.json"
        self.config.write_text(
            json.dumps(
                {
                    "node_name": "web1",
                    "master_stats": f"ipc://{self.folder}/stats",
                    "master_updates": f"ipc://{self.folder}/updates",
                    "conf_file": str(self.document),
                    "run": str(self.run),
                    "slugs": str(self.slugs),
                    "logs": str(self.folder / "logs"),
                    "data": str(self.folder / "data"),
                    "isolation": "none",
                }
                | self.settings
            )
        )
        self.worker = Daemon("worker", self.config, self.folder / "worker.out")

    # what shall run

    def put(self, *entries: dict[str, Any], **fields: Any) -> None:
        """Tell the worker what shall run."""
        self.version += 1
        document = {
            "p": 1, "cluster": "bareku", "node": "web1", "epoch": 1, "version": self.version,
            "empty": not entries, "processes": list(entries),
        } | fields  # fmt: skip
        self.write(json.dumps(document).encode())

    def write(self, data: bytes) -> None:
        """Put these bytes in the place of the document."""
        temporary = self.document.with_name(".new")
        temporary.write_bytes(data)
        temporary.replace(self.document)

    def start(self, *entries: dict[str, Any]) -> None:
        """Start the worker with these, and wait until all are ready."""
        if entries:
            self.put(*entries)
        self.worker.start()
        self.await_ready(len(entries)) if entries else self.await_worker()

    # what is

    def status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.run / "worker.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return {"pid": 0, "processes": [], "events": []}
        return found

    def processes(self) -> list[dict[str, Any]]:
        return list(self.status()["processes"])

    def process(self, name: str = "web.1") -> dict[str, Any]:
        """The only generation of that process, `{}` when there is none."""
        found = [one for one in self.processes() if one["id"].endswith(f".{name}")]
        assert len(found) < 2, found
        return found[0] if found else {}

    def pids(self) -> dict[str, tuple[int, int]]:
        """id -> (pid, start time) of what the worker reports."""
        found = {one["id"]: one["pid"] for one in self.processes() if one["pid"]}
        stats = {id_: procfs.read_stat(pid) for id_, pid in found.items()}
        return {id_: (one.pid, one.start_ticks) for id_, one in stats.items() if one}

    def events(self, what: str) -> list[dict[str, Any]]:
        return [one for one in self.status()["events"] if one["event"] == what]

    def living(self) -> list[procfs.Stat]:
        """Every live process of this node, whether the worker knows it or not."""
        mark = f"@{self.run}\0".encode()
        return [one for one in procfs.everyone() if mark in procfs.environment(one.pid) + b"\0"]

    def await_worker(self) -> dict[str, Any]:
        """The status once the worker that runs has written it."""
        found: dict[str, Any] = self.until(lambda s: s["pid"] == self.worker.pid, what="a worker")
        return found

    def await_ready(self, count: int, timeout_s: float = 10.0) -> dict[str, Any]:
        def holds(status: dict[str, Any]) -> bool:
            ready = [one for one in status["processes"] if one["ready"]]
            applied = status.get("applied") == self.version and len(ready) == count
            return status["pid"] == self.worker.pid and applied

        return self.until(holds, timeout_s, f"{count} ready")

    def await_gone(self, timeout_s: float = 10.0) -> None:
        self.until(lambda s: not s["processes"], timeout_s, "nothing left")
        assert not self.living()

    def until(
        self, holds: Callable[[dict[str, Any]], Any], timeout_s: float = 10.0, what: str = ""
    ) -> dict[str, Any]:
        """The status as soon as it fits."""
        seen: list[dict[str, Any]] = [{}]

        def look() -> bool:
            seen[0] = self.status()
            return bool(holds(seen[0]))

        try:
            await_until(look, timeout_s, what)
        except AssertionError as exc:
            status = json.dumps(seen[0], indent=1)
            raise AssertionError(f"{exc}\n{status}\n{self.worker.log.read_text()[-4000:]}") from exc
        return seen[0]

    def log(self, name: str = "web.1") -> list[str]:
        """What the process has written, by lines."""
        path = self.folder / "logs" / "shop" / f"v1.{name}.log"
        return path.read_text().splitlines() if path.exists() else []

    def end(self) -> None:
        """Leave nothing behind, however the test went."""
        self.worker.signal(signal.SIGKILL)
        if self.worker.popen:
            self.worker.wait()
        deadline = time.monotonic() + 10
        while left := self.living():
            for one in left:
                pidfd = procfs.open_process(one.pid, one.start_ticks)
                if pidfd is not None:
                    procfs.send(pidfd, signal.SIGKILL)
                    os.close(pidfd)
            assert time.monotonic() < deadline, left
