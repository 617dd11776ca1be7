"""A one-machine Bareku as its users see it, a developer's repository, a restless visitor."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bareku import settings as settings_file
from bareku.paths import Root
from bareku.settings import Settings, address

TOP = Path(__file__).resolve().parents[2]


@dataclass
class Bareku:
    """A running Bareku as its users see it."""

    root: Root

    @property
    def settings(self) -> Settings:
        return settings_file.load(self.root)

    def run(
        self, *words: str, data: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "bareku.cli.main", "--root", str(self.root.path), *words]
        done = subprocess.run(argv, input=data, capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run("status", "--json", check=False).stdout)
        return document

    def pid(self, daemon: str) -> int:
        """The daemon's pid, 0 while it does not run."""
        return next(d.get("pid", 0) for d in self.status()["daemons"] if d["daemon"] == daemon)

    def processes(self, app: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("ps", app, "--json").stdout)
        return found

    def get(self, app: str, path: str = "/") -> tuple[int, str]:
        host, port = address(self.settings.http)
        connection = http.client.HTTPConnection(host, port, timeout=30)
        try:
            connection.request("GET", path, headers={"Host": f"{app}.localhost:{port}"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def logs(self) -> str:
        """The end of every daemon's log, for a failing test."""
        texts = [
            f"\n== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-30:])
            for path in sorted(self.root.logs.glob("*.log"))
            if path.name != "access.log"
        ]
        return "".join(texts)


@dataclass
class Repository:
    """A developer's git repository with the remote `bareku`."""

    bareku: Bareku
    path: Path
    key: Path
    app: str

    def environment(self) -> dict[str, str]:
        """Git's environment: this developer's key and name, nothing of the machine's settings."""
        ssh = [
            "ssh", "-F", "none", "-i", str(self.key), "-o", "IdentitiesOnly=yes",
            "-o", f"UserKnownHostsFile={self.bareku.root.ssh / 'known_hosts'}",
            "-o", "BatchMode=yes",
        ]  # fmt: skip
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
            "GIT_SSH_COMMAND": " ".join(ssh),
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_AUTHOR_NAME": "Ada",
            "GIT_AUTHOR_EMAIL": "ada@example.org",
            "GIT_COMMITTER_NAME": "Ada",
            "GIT_COMMITTER_EMAIL": "ada@example.org",
        }

    def git(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["git", *words],
            cwd=self.path,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=180,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr + self.bareku.logs()
        return done

    def commit(self, files: dict[str, str], message: str = "Change") -> str:
        for name, text in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_text(text)
        self.git("add", "-A")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD").stdout.strip()

    def push(self, *words: str, check: bool = True) -> str:
        """What the pusher reads, without git's `remote: ` prefix."""
        done = self.git("push", "bareku", *(words or ("master",)), check=check)
        if not check:
            assert done.returncode != 0, done.stderr + "\n(the push was not refused)"
        lines = done.stderr.splitlines()
        return "\n".join(line.removeprefix("remote: ").rstrip() for line in lines)


def await_until(holds: Callable[[], object], timeout_s: float, what: str) -> None:
    """Poll until `holds()` is true; fail with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


@dataclass
class Visitor:
    """Asks an app for its page without a pause, over new and kept connections."""

    bareku: Bareku
    app: str
    answers: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Visitor:
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(60)

    def _ask(self) -> None:
        while not self._ending.wait(0.01):
            try:
                status, text = self.bareku.get(self.app)
            except OSError as exc:
                self.failures.append(repr(exc))
                continue
            if status == 200:
                self.answers.append(text)
            else:
                self.failures.append(f"{status} {text[:80]}")
