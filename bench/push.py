"""From the start of a command to the first answer of the new release, on one machine.

A Flask app under gunicorn; the change is one line. Each figure is a median, in seconds, less the
app's own boot, which is measured alone. Piku is not run here: its figures are null.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bareku.door.keys import make_pair
from bareku.paths import Root
from tests.platform.rig import TOP, Bareku, Repository

APP = "hello"
GIVE_UP_S = 60.0


def main() -> None:
    """Print a table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = measure(3 if options.quick else 9)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<16}{'not run' if value is None else f'{value:.3f}'}")


def measure(rounds: int) -> dict[str, float | None]:
    """All figures; a Bareku of its own in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="bareku-bench."))
    folder.chmod(0o711)
    bareku = Bareku(Root(folder / "root"))
    bareku.run("up", "--detach", "--free-ports")
    try:
        repository = prepare(bareku, folder)
        boot_s = statistics.median(boot(folder) for _ in range(rounds))
        kinds: dict[str, list[float]] = {}
        for number in range(rounds):
            for kind, command in commands(bareku, repository, number).items():
                kinds.setdefault(kind, []).append(until_live(bareku, command))
        figures: dict[str, float | None] = {
            f"{kind}_live_s": round(statistics.median(times) - boot_s, 3)
            for kind, times in kinds.items()
        }
        return {
            **figures,
            "app_boot_s": round(boot_s, 3),
            "piku_push_s": None,
            "piku_outage_s": None,
        }
    finally:
        bareku.run("down")
        shutil.rmtree(folder)


def prepare(bareku: Bareku, folder: Path) -> Repository:
    """The sample app, pushed once."""
    make_pair(folder / "id", "bench")
    bareku.run("keys:add", "bench", data=(folder / "id.pub").read_text())
    bareku.run("apps:create", APP)
    shutil.copytree(TOP / "examples" / APP, folder / APP)
    repository = Repository(bareku, folder / APP, folder / "id", APP)
    repository.git("init", "--quiet", "--initial-branch=master")
    repository.git("remote", "add", "bareku", bareku.settings.remote(APP))
    repository.commit({})
    repository.push()
    return repository


def commands(
    bareku: Bareku, repository: Repository, number: int
) -> dict[str, Callable[[], object]]:
    """What is measured, in order; each makes one new release."""
    page = (repository.path / "app.py").read_text()

    def change() -> None:
        changed = page.replace("Hello from Bareku", f"Hello number {number}")
        (repository.path / "app.py").write_text(changed)
        repository.git("commit", "-qam", "Change a line")

    change()
    return {
        "push": repository.push,
        "revert": lambda: (repository.git("revert", "--no-edit", "HEAD"), repository.push()),
        "config": lambda: bareku.run("config:set", APP, f"ROUND={number}"),
        "scale": lambda: bareku.run("ps:scale", APP, f"web={2 - number % 2}"),
        "rollback": lambda: bareku.run("releases:rollback", APP),
    }


def until_live(bareku: Bareku, command: Callable[[], object]) -> float:
    """Seconds until another release answers."""
    before = bareku.get(APP)[1].split("This is v")[1]
    started_s = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(command)
        while bareku.get(APP)[1].split("This is v")[1] == before:
            if running.done():
                running.result()
            if time.monotonic() - started_s > GIVE_UP_S:
                raise TimeoutError("the change did not go live")
            time.sleep(0.005)
        took_s = time.monotonic() - started_s
        running.result()
    return took_s


def boot(folder: Path) -> float:
    """Seconds from the start of the app by itself to its first answer."""
    import socket

    venv = folder / "venv"
    if not venv.exists():
        uv = TOP / ".venv" / "bin" / "uv"
        subprocess.run([uv, "venv", "-q", "--python", "/usr/bin/python3", venv], check=True)
        subprocess.run(
            [uv, "pip", "install", "-q", "--compile-bytecode", "-r", "requirements.txt"],
            cwd=folder / APP,
            env={**os.environ, "VIRTUAL_ENV": str(venv)},
            check=True,
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started_s = time.monotonic()
    app = subprocess.Popen(
        [venv / "bin" / "gunicorn", "--workers", "1", "--threads", "8", "app:app"],
        cwd=folder / APP,
        env={"PORT": str(port), "PATH": "/usr/bin:/bin"},
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), 1) as asked:
                    asked.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    if asked.recv(12) == b"HTTP/1.0 200" or asked.recv(1):
                        return time.monotonic() - started_s
            except OSError:
                time.sleep(0.005)
    finally:
        app.terminate()
        app.wait()


if __name__ == "__main__":
    main()
