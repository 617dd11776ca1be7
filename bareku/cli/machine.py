"""The one-machine Bareku: its folders, its daemons and their config files."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bareku.door.keys import make_pair
from bareku.files import write_atomic, write_json
from bareku.paths import Root
from bareku.receive import desired
from bareku.receive.repository import configure
from bareku.settings import Settings


@dataclass(frozen=True, slots=True)
class Daemon:
    """One of the daemons: `name` is its status file's name under `run/`."""

    name: str
    argv: tuple[str, ...]
    address: str = ""  # host:port whose socket the parent keeps open for it
    endpoints: tuple[str, ...] = ()  # ZeroMQ endpoints that it binds itself


def daemons(root: Root, settings: Settings) -> list[Daemon]:
    """In the order in which they start."""
    python = (sys.executable, "-P")  # -P: the folder we are in holds no modules of ours
    node = str(root.node / "diprocd-client.json")
    return [
        Daemon(
            "door",
            (*python, "-m", "bareku.door.server", "--config", str(root.ssh / "door.yml")),
            settings.ssh,
        ),
        Daemon(
            "diprocd/master",
            (*python, "-m", "diprocd.main", "master", "--config", str(root.desired)),
            endpoints=(settings.updates, settings.stats),
        ),
        Daemon("diprocd/client", (*python, "-m", "diprocd.main", "client", "--config", node)),
        Daemon("diprocd/worker", (*python, "-m", "diprocd.main", "worker", "--config", node)),
        Daemon(
            "frontend",
            (*python, "-m", "frontend.server", "--config", str(root.frontend / "frontend.yml")),
            settings.http,
            endpoints=(settings.link,),
        ),
        Daemon(
            "handler",
            (*python, "-m", "appnode.connector", "--config", str(root.node / "handler.yml")),
        ),
    ]


def stop_apps_argv(root: Root) -> list[str]:
    """Stops every process of this node; the worker must not run."""
    node = str(root.node / "diprocd-client.json")
    return [sys.executable, "-P", "-m", "diprocd.main", "worker", "--config", node, "--stop-all"]


def prepare(root: Root, settings: Settings) -> None:
    """Make folders, keys, config files and the desired state what they shall be; repeatable."""
    for folder in (
        root.repositories, root.apps, root.releases, root.slugs, root.cache, root.builds,
        root.journal, root.keys, root.run / "diprocd", root.logs, root.node / "apps",
        root.node / "slugs", root.node / "log", root.node / "data", root.frontend,
    ):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
    root.ssh.mkdir(mode=0o700, exist_ok=True)
    for name in ("host_ed25519", "ship_ed25519"):
        if not (root.ssh / name).exists():
            make_pair(root.ssh / name, f"bareku-{name.partition('_')[0]}")
    host_key = (root.ssh / "host_ed25519.pub").read_text().rsplit(" ", 1)[0]
    host, _, port = settings.ssh.rpartition(":")
    write_atomic(root.ssh / "known_hosts", f"[{host.strip('[]')}]:{port} {host_key}\n".encode())
    for path, document in config_files(root, settings).items():
        if path.suffix == ".json":
            write_json(path, document)
        else:
            write_yaml(path, document)
    for repository in root.repositories.glob("*.git"):
        configure(repository)
    desired.publish(root)


def config_files(root: Root, settings: Settings) -> dict[Path, dict[str, Any]]:
    """The config of every daemon but the master, whose config is the desired state."""
    run = str(root.run)
    store = ["--slugs", str(root.node / "slugs"), "--defs", str(root.node / "apps")]
    return {
        root.ssh / "door.yml": {
            "root": str(root.path),
            "listen": settings.ssh,
            "run": run,
            "host_key": str(root.ssh / "host_ed25519"),
            "machines": {
                str(root.ssh / "ship_ed25519.pub"): [
                    sys.executable, "-P", "-m", "appnode.receive", "serve", *store,
                    "--logs", str(root.node / "log"),
                ]
            },
        },
        root.node / "diprocd-client.json": {
            "pid_file": str(root.run / "diprocd-client.pid"),
            "log_file": str(root.logs / "diprocd-client.log"),
            "master_stats": settings.stats,
            "master_updates": settings.updates,
            "node_name": settings.node,
            "conf_file": str(root.node / "diprocd-worker.json"),
            "run": str(root.run / "diprocd"),
            "slugs": str(root.node / "slugs"),
            "logs": str(root.node / "log"),
            "data": str(root.node / "data"),
            "ports": list(settings.app_ports),
        },
        root.node / "handler.yml": {
            "node": settings.node,
            "frontends": [settings.link],
            "worker": str(root.run / "diprocd" / "worker.json"),
            "run": run,
        },
        root.frontend / "frontend.yml": {
            "name": desired.FRONTEND,
            "listen": settings.http,
            "link": settings.link,
            "run": run,
            "routes": str(root.frontend / "routes.json"),
            "master_updates": settings.updates,
            "master_stats": settings.stats,
            "access_log": str(root.logs / "access.log"),
        },
    }  # fmt: skip


def write_yaml(path: Path, document: dict[str, Any]) -> None:
    """A config file that `bareku up` makes anew at each start."""
    import yaml

    head = "# Made by `bareku up` from bareku.yml; edit that one.\n"
    write_atomic(path, (head + yaml.safe_dump(document, sort_keys=False)).encode())


def is_root() -> bool:
    """With root, processes get a user, a mount namespace and limits of their own."""
    return os.geteuid() == 0
