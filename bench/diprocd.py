"""How fast diprocd starts, adopts, watches and publishes; supervisord and circus beside it.

The worker runs 200 sleeping processes without confinement, as the two others do. The thousand
nodes are sockets of one process that answer as clients do. supervisord and circus come from the
package index into a virtualenv that is thrown away.
usage: script/bench diprocd [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

PYTHON = [sys.executable, "-P", "-m", "diprocd.main"]
COUNT = 200
SECONDS = "4242"  # what the sleepers of this run sleep; nobody else's do


def until(holds: Callable[[], Any], timeout_s: float = 60.0, pause_s: float = 0.002) -> float:
    """Poll until `holds()`; the seconds that took."""
    begun = time.monotonic()
    while not holds():
        if time.monotonic() - begun > timeout_s:
            raise SystemExit(f"error: not within {timeout_s} s")
        time.sleep(pause_s)
    return time.monotonic() - begun


def write(path: Path, document: object) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(document))
    temporary.replace(path)


def read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def cpu_pct(pid: int, seconds: float) -> float:
    """Per cent of a core over so many seconds."""
    before, begun = cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    return 100 * (cpu_s(pid) - before) / (time.monotonic() - begun)


def sleepers(marker: str) -> list[int]:
    """The pids of the sleepers of this run."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                words = Path(entry.path, "cmdline").read_bytes()
            except OSError:
                continue
            if words == f"sleep\0{marker}\0".encode():
                found.append(int(entry.name))
    return found


def kill_sleepers(marker: str) -> None:
    for _ in range(50):
        left = sleepers(marker)
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


# the worker


class Worker:
    """A diprocd worker in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status_path = folder / "run" / "worker.json"
        self.document = folder / "diprocd-worker.json"
        self.config = folder / "diprocd-client.json"
        write(
            self.config,
            {
                "node_name": "n", "master_stats": "ipc:///nowhere", "run": str(folder / "run"),
                "master_updates": "ipc:///nowhere", "conf_file": str(self.document),
                "logs": str(folder / "logs"), "data": str(folder / "data"),
                "slugs": str(folder), "isolation": "none",
            },
        )  # fmt: skip
        self.version = 0
        self.popen: subprocess.Popen[bytes] | None = None

    def put(self, count: int) -> None:
        self.version += 1
        processes = [
            {"id": f"a.v1.w.{n}", "app": "a", "type": "w", "index": n, "release": 1,
             "cmd": ["sleep", SECONDS]}
            for n in range(1, count + 1)
        ]  # fmt: skip
        write(
            self.document,
            {"p": 1, "node": "n", "epoch": 1, "version": self.version, "processes": processes,
             "empty": not processes},
        )  # fmt: skip

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.popen = subprocess.Popen(
                [*PYTHON, "worker", "--config", str(self.config)], stderr=log, cwd=self.folder
            )

    def kill(self) -> None:
        assert self.popen
        self.popen.kill()
        self.popen.wait()

    @property
    def pid(self) -> int:
        assert self.popen
        return self.popen.pid

    def ready(self) -> int:
        status = read(self.status_path)
        if status.get("pid") != self.pid:
            return -1
        return sum(one["ready"] for one in status["processes"])

    def end(self) -> None:
        self.kill()
        subprocess.run(
            [*PYTHON, "worker", "--config", str(self.config), "--stop-all"],
            check=True, stderr=subprocess.DEVNULL, cwd=self.folder,
        )  # fmt: skip


def measure_worker(folder: Path, *, quick: bool) -> dict[str, float]:
    found: dict[str, float] = {}
    worker = Worker(folder)
    worker.put(COUNT)
    begun = time.monotonic()
    worker.start()
    try:
        until(lambda: worker.ready() == COUNT)
        found["cold_200_s"] = time.monotonic() - begun
        before = set(sleepers(SECONDS))
        adopted = []
        for _ in range(3 if quick else 9):
            worker.kill()
            begun = time.monotonic()
            worker.start()
            until(lambda: worker.ready() == COUNT, pause_s=0.001)
            adopted.append(1000 * (time.monotonic() - begun))
        found["adopt_200_ms"] = statistics.median(adopted)
        found["adopt_duplicates"] = len(set(sleepers(SECONDS)) ^ before)
        time.sleep(1)
        found["steady_cpu_pct_200"] = cpu_pct(worker.pid, 4 if quick else 30)
        found["rss_mib_200"] = psutil.Process(worker.pid).memory_info().rss / 2**20
        found["respawn_ms"] = statistics.median(
            _respawn_ms(worker) for _ in range(3 if quick else 9)
        )
        if not quick:
            begun = time.monotonic()
            worker.put(1000)
            until(lambda: worker.ready() == 1000)
            found["grow_to_1000_s"] = time.monotonic() - begun
            worker.kill()
            begun = time.monotonic()
            worker.start()
            until(lambda: worker.ready() == 1000)
            found["adopt_1000_ms"] = 1000 * (time.monotonic() - begun)
    finally:
        worker.end()
        kill_sleepers(SECONDS)
    return found


_victim = iter(range(COUNT))


def _respawn_ms(worker: Worker) -> float:
    """From the KILL of a healthy process until its successor runs its program."""
    time.sleep(0.1)
    before = read(worker.status_path)["processes"]
    victim = before[next(_victim)]
    while victim["uptime_s"] is not None and _age_s(victim["pid"]) < 10:
        time.sleep(0.2)  # a failure of a young process would wait for its backoff
    os.kill(victim["pid"], signal.SIGKILL)
    record = Path(victim["dir"]) / "pid"

    def is_back() -> bool:
        pid = record.read_text().partition(" ")[0]
        if pid in {"", str(victim["pid"])}:
            return False
        return Path("/proc", pid, "cmdline").read_bytes() == f"sleep\0{SECONDS}\0".encode()

    return 1000 * until(is_back, pause_s=0.0005)


def _age_s(pid: int) -> float:
    return time.time() - psutil.Process(pid).create_time()


# the master


def measure_master(folder: Path, nodes: int, *, quick: bool) -> dict[str, float]:
    """Publish to all and all acked, resync after a restart, processor use with beats each 5 s."""
    for name in ("updates", "stats"):
        (folder / name).unlink(missing_ok=True)
    desired = folder / "diprocd-master.json"
    names = [f"n{number}" for number in range(nodes)]
    document: dict[str, Any] = {
        "updates": f"ipc://{folder}/updates", "stats": f"ipc://{folder}/stats",
        "run": str(folder / "run"), "nodes": {name: {} for name in names}, "apps": {},
    }  # fmt: skip

    def put(release: int) -> None:
        template = {"cmd": ["sleep", SECONDS], "count": min(nodes, 10_000)}
        document["apps"] = {"a": {"releases": {str(release): {"processes": {"w": template}}}}}
        write(desired, document)

    put(1)
    log = (folder / "log").open("ab")
    start = [*PYTHON, "master", "--config", str(desired)]
    master = subprocess.Popen(start, stderr=log, cwd=folder)
    fleet = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("parts") / "fleet.py"), str(folder), str(nodes)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert fleet.stdin
    assert fleet.stdout

    def all_at(release: int) -> float:
        """Wait until every node has acked it; when the last did."""
        assert fleet.stdin
        assert fleet.stdout
        print(release, file=fleet.stdin, flush=True)
        return float(fleet.stdout.readline())

    found = {}
    try:
        all_at(1)
        times = []
        for release in range(2, 4 if quick else 8):
            time.sleep(0.7)
            begun = time.monotonic()
            put(release)
            times.append(all_at(release) - begun)
        found[f"publish_{nodes}_s"] = statistics.median(times)
        time.sleep(1)
        found[f"master_cpu_pct_{nodes}"] = cpu_pct(master.pid, 4 if quick else 30)
        found[f"master_rss_mib_{nodes}"] = psutil.Process(master.pid).memory_info().rss / 2**20
        master.kill()
        master.wait()
        put(100)
        master = subprocess.Popen(start, stderr=log, cwd=folder)
        begun = time.monotonic()
        found[f"resync_{nodes}_s"] = all_at(100) - begun
    finally:
        fleet.kill()
        fleet.communicate()
        master.kill()
        master.wait()
        log.close()
    return found


# the peers


@contextmanager
def peers(folder: Path) -> Iterator[Path | None]:
    """A virtualenv with supervisord and circus, None when the package index is out of reach."""
    venv = folder / "peers"
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    try:
        assert uv, "uv is not installed"
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(venv)], check=True)
        subprocess.run(
            [uv, "pip", "install", "-q", "--python", str(venv / "bin/python"),
             "supervisor", "circus", "setuptools<81"],
            check=True, timeout=120,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError, AssertionError) as exc:
        print(f"supervisord and circus cannot be had: {exc}", file=sys.stderr)
        yield None
    else:
        yield venv / "bin"
    shutil.rmtree(venv, ignore_errors=True)


def measure_peer(
    name: str, argv: list[str], folder: Path, marker: str, *, quick: bool
) -> dict[str, float]:
    """The same figures of a supervisor that runs in the foreground."""
    found: dict[str, float] = {}
    log = (folder / f"{name}.log").open("ab")

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(argv, stdout=log, stderr=log, cwd=folder)

    begun = time.monotonic()
    one = start()
    other = None
    try:
        until(lambda: len(sleepers(marker)) == COUNT, pause_s=0.01)
        found[f"{name}_cold_200_s"] = time.monotonic() - begun
        time.sleep(1)
        found[f"{name}_steady_cpu_pct_200"] = cpu_pct(one.pid, 2 if quick else 30)
        found[f"{name}_rss_mib_200"] = psutil.Process(one.pid).memory_info().rss / 2**20
        victim = sleepers(marker)[-1]
        before = set(sleepers(marker))
        begun = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        until(lambda: set(sleepers(marker)) - before, 20)
        found[f"{name}_respawn_ms"] = 1000 * (time.monotonic() - begun)
        until(lambda: len(sleepers(marker)) == COUNT, 20)
        before = set(sleepers(marker))
        one.kill()
        one.wait()
        other = start()
        found[f"{name}_adopt_duplicates"] = _settled(marker, before)
    finally:
        for each in (one, other):
            if each is not None and each.poll() is None:
                each.kill()
                each.wait()
        kill_sleepers(marker)
        log.close()
    return found


def _settled(marker: str, before: set[int]) -> int:
    """How many new sleepers there are, once some are and no more come for a while."""
    count, since_s = 0, time.monotonic()
    while count == 0 or time.monotonic() - since_s < 1.5:
        now = len(set(sleepers(marker)) - before)
        if now != count:
            count, since_s = now, time.monotonic()
        elif count == 0 and time.monotonic() - since_s > 15:
            return 0
        time.sleep(0.02)
    return count


def supervisord(bin_folder: Path, folder: Path) -> list[str]:
    config = folder / "supervisord.conf"
    config.write_text(
        "[supervisord]\nnodaemon=true\n"
        f"logfile={folder}/supervisord.out\npidfile={folder}/supervisord.pid\nchildlogdir={folder}\n"
        f"[program:s]\ncommand=sleep 4243\nnumprocs={COUNT}\nprocess_name=s%(process_num)d\n"
        "stdout_logfile=NONE\nstderr_logfile=NONE\n"
    )
    return [str(bin_folder / "supervisord"), "-c", str(config)]


def circus(bin_folder: Path, folder: Path) -> list[str]:
    config = folder / "circus.ini"
    config.write_text(
        f"[circus]\nendpoint = ipc://{folder}/c1\npubsub_endpoint = ipc://{folder}/c2\n"
        f"check_delay = 1\n[watcher:s]\ncmd = sleep 4244\nnumprocesses = {COUNT}\n"
        "warmup_delay = 0\n"
    )
    return [str(bin_folder / "circusd"), str(config)]


TARGETS = {
    "cold_200_s": 3, "adopt_200_ms": 150, "steady_cpu_pct_200": 0.5, "rss_mib_200": 30,
    "respawn_ms": 100, "publish_1000_s": 0.5, "resync_1000_s": 5, "master_cpu_pct_1000": 5,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter, with more noise")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bareku-bench-") as name:
        folder = Path(name)
        for part in ("worker", "master", "peers"):
            (folder / part).mkdir()
        found |= measure_worker(folder / "worker", quick=options.quick)
        for nodes in (1000,) if options.quick else (1000, 3000, 10_000):
            found |= measure_master(folder / "master", nodes, quick=options.quick)
        with peers(folder / "peers") as bin_folder:
            if bin_folder is not None:
                for peer, argv, marker in (
                    ("supervisord", supervisord(bin_folder, folder / "peers"), "4243"),
                    ("circus", circus(bin_folder, folder / "peers"), "4244"),
                ):
                    found |= measure_peer(peer, argv, folder / "peers", marker, quick=options.quick)
    found = {key: round(value, 3) for key, value in found.items()}
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for key, value in found.items():
        target = f"   (target {TARGETS[key]:g})" if key in TARGETS else ""
        print(f"{key:34} {value:10.3f}{target}")


if __name__ == "__main__":
    main()
