"""Real daemons in a folder of their own, and how to wait for what they do."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
SLEEP = ["sleep", "1000"]
PROGRAM = [sys.executable, "-m", "diprocd.main"]


def wait(
    condition: Callable[[], Any], timeout_s: float = 10.0, what: str | Callable[[], object] = ""
) -> Any:
    """Poll until `condition` gives something true; that."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() >= deadline:
            text = what() if callable(what) else what
            raise AssertionError(f"not within {timeout_s} s: {text or condition}")
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ticks(pid: int) -> int | None:
    """The start time of a process that runs, None of one that does not (or is a zombie)."""
    try:
        tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if tail[0] in "ZX" else int(tail[19])


def entry(
    app: str = "app", kind: str = "web", index: int = 1, release: int = 1, **fields: Any
) -> dict[str, Any]:
    """A process of a node document."""
    return {
        "id": f"{app}.v{release}.{kind}.{index}",
        "app": app,
        "type": kind,
        "index": index,
        "release": release,
        "cmd": SLEEP,
        **fields,
    }


class Daemon:
    """A daemon of ours as a child process, its log in a file."""

    def __init__(self, name: str, argv: list[str], log: Path, env: dict[str, str]) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(argv, stdout=out, stderr=out, cwd=TOP, env=env)

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(10)


class Node:
    """A folder with client and worker of one node."""

    def __init__(self, folder: Path, name: str = "web1", **fields: Any) -> None:
        self.folder = folder
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        self.run = folder / "run"
        self.conf_file = folder / "diprocd-worker.json"
        self.config_path = folder / "diprocd-client.json"
        self.daemons: list[Daemon] = []
        self.version = 0
        self.config: dict[str, Any] = {
            "master_stats": "tcp://127.0.0.1:1",
            "master_updates": "tcp://127.0.0.1:1",
            "node_name": name,
            "conf_file": str(self.conf_file),
            "run": str(self.run),
            "slugs": str(folder / "slugs"),
            "logs": str(folder / "logs"),
            "data": str(folder / "data"),
            "isolation": "none",
            "ports": [20000, 29999],
            **fields,
        }
        (folder / "slugs").mkdir(exist_ok=True)
        self.save()

    def save(self) -> None:
        self.config_path.write_text(json.dumps(self.config))

    def write(self, *processes: dict[str, Any], version: int | None = None) -> None:
        """Replace the worker's document, as the client does."""
        self.version = self.version + 1 if version is None else version
        document = {
            "p": 1,
            "cluster": "bareku",
            "node": self.name,
            "epoch": 1,
            "version": self.version,
            "empty": not processes,
            "processes": list(processes),
        }
        fresh = self.conf_file.with_suffix(".new")
        fresh.write_text(json.dumps(document))
        fresh.replace(self.conf_file)

    def start(self, daemon: str, *options: str, program: list[str] | None = None) -> Daemon:
        argv = program or PROGRAM
        argv = [*argv, daemon, "--config", str(self.config_path), *options]
        one = Daemon(daemon, argv, self.folder / f"{daemon}.stderr", {**os.environ})
        self.daemons.append(one)
        return one

    def worker(self, **fields: Any) -> Daemon:
        """Start the worker and wait until it vouches for its status."""
        one = self.start("worker", **fields)
        wait(lambda: self.status("worker").get("pid") == one.pid, 20, self.log)
        return one

    def status(self, daemon: str = "worker") -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.run / f"{daemon}.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def processes(self) -> dict[str, dict[str, Any]]:
        return {one["id"]: one for one in self.status().get("processes", [])}

    def process(self, id_: str = "app.v1.web.1") -> dict[str, Any]:
        return self.processes().get(id_, {})

    def wait_for(self, id_: str = "app.v1.web.1", timeout_s: float = 10, **fields: Any) -> Any:
        """Wait until the process is reported with these values."""

        def fits() -> dict[str, Any] | None:
            one = self.process(id_)
            return one if one and all(one[key] == value for key, value in fields.items()) else None

        return wait(fits, timeout_s, f"{id_} {fields}; now {self.process(id_)}")

    def wait_ready(self, count: int, timeout_s: float = 15) -> dict[str, dict[str, Any]]:
        """Wait until exactly `count` processes are there and all are ready."""

        def fits() -> Any:
            found = self.processes()
            return (
                found if len(found) == count and all(p["ready"] for p in found.values()) else None
            )

        return wait(fits, timeout_s, f"{count} ready")

    def output(self, id_: str = "app.v1.web.1") -> str:
        app, _, rest = id_.partition(".")
        path = Path(self.config["logs"]) / app / f"{rest}.log"
        return path.read_text() if path.exists() else ""

    def log(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("*.stderr")))

    def end(self) -> None:
        """End the daemons, then every process they left."""
        for one in self.daemons:
            if one.process.poll() is None:
                one.kill()
        if not any((self.run / "i").glob("*")):
            return
        done = subprocess.run(
            [*PROGRAM, "worker", "--stop-all", "--config", str(self.config_path)],
            cwd=TOP,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()


class Cluster:
    """A master in a folder, and nodes that speak with it."""

    def __init__(self, folder: Path, *nodes: str, **fields: Any) -> None:
        self.folder = folder
        self.path = folder / "diprocd-master.json"
        self.daemons: list[Daemon] = []
        self.desired: dict[str, Any] = {
            "run": str(folder / "run"),
            "updates": f"tcp://127.0.0.1:{free_port()}",
            "stats": f"tcp://127.0.0.1:{free_port()}",
            "nodes": {name: {} for name in nodes},
            **fields,
        }
        self.nodes = {name: self.node(name) for name in nodes}

    def node(self, name: str, folder: str | None = None, **fields: Any) -> Node:
        return Node(
            self.folder / (folder or name),
            name,
            master_updates=self.desired["updates"],
            master_stats=self.desired["stats"],
            **{"interval_s": 0.5, **fields},
        )

    def app(self, count: int = 1, release: int = 1, **fields: Any) -> None:
        """Desire one app with one process type."""
        template = {"cmd": SLEEP, "count": count, **fields}
        self.desired["apps"] = {
            "app": {"releases": {str(release): {"processes": {"web": template}}}}
        }

    def publish(self) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self.desired))
        fresh.replace(self.path)

    def master(self, *options: str) -> Daemon:
        argv = [*PROGRAM, "master", "--config", str(self.path)]
        one = Daemon("master", [*argv, *options], self.folder / "master.stderr", {**os.environ})
        self.daemons.append(one)
        wait(lambda: self.status().get("pid") == one.pid, 10, "master's status")
        return one

    def start(self) -> None:
        """Everything, each node with client and worker."""
        self.publish()
        self.master()
        for node in self.nodes.values():
            node.start("worker")
            node.start("client")

    def status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / "run/master.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def ready(self, release: int = 1) -> dict[str, str]:
        """id -> node of what is ready, as the master knows it."""
        return {
            one["id"]: one["node"]
            for one in self.status().get("processes", [])
            if one["ready"] and one["release"] == release
        }

    def log(self) -> str:
        text = (self.folder / "master.stderr").read_text()[-3000:]
        return text + "".join(node.log() for node in self.nodes.values())

    def end(self) -> None:
        for one in self.daemons:
            if one.process.poll() is None:
                one.kill()
        for node in self.nodes.values():
            node.end()


class Wire:
    """A TCP connection's way that can be cut: packets vanish, nobody is told."""

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("tcp://").split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._is_cut = self._is_closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        self._is_cut = True

    def heal(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self._is_closed = True
        self._thread.join()
        for end in (self._listener, *self._pairs):
            end.close()

    def _run(self) -> None:
        while not self._is_closed:
            if self._is_cut:
                time.sleep(0.01)
                continue
            readable, _, _ = select.select([self._listener, *self._pairs], [], [], 0.02)
            for end in readable:
                if end is self._listener:
                    self._join(self._listener.accept()[0])
                elif end in self._pairs:
                    self._pass(end)

    def _join(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._target, 1)
        except OSError:
            near.close()
            return
        self._pairs[near], self._pairs[far] = far, near

    def _pass(self, end: socket.socket) -> None:
        other = self._pairs[end]
        try:
            data = end.recv(65536)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        for one in (end, other):
            del self._pairs[one]
            one.close()
