"""`bareku.yml`: the settings of one Bareku, read by its daemons, hooks and verbs."""

from __future__ import annotations

import socket

from msgspec import Struct

from bareku import config
from bareku.errors import BarekuError
from bareku.files import write_atomic
from bareku.paths import Root

SAMPLE = """\
# Settings of this Bareku. Change them, then `bareku down --keep-apps` and `bareku up`.
http: {http}    # visitors come in here
ssh: {ssh}    # git push and the verbs come in here
domain: {domain}    # an app answers at <app>.<domain>
node: {node}    # name of the app node on this machine
updates: {updates}    # diprocd: the master publishes here
stats: {stats}    # diprocd: the nodes report here
link: {link}    # the frontend gives requests to the handlers here
app_ports: [{app_ports[0]}, {app_ports[1]}]    # the processes listen on these
"""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Addresses are `host:port`; endpoints are ZeroMQ's `tcp://host:port`."""

    http: str = "127.0.0.1:8080"
    ssh: str = "127.0.0.1:2222"
    domain: str = "localhost"
    node: str = "node1"
    updates: str = "tcp://127.0.0.1:31124"
    stats: str = "tcp://127.0.0.1:31123"
    link: str = "tcp://127.0.0.1:31125"
    app_ports: tuple[int, int] = (31200, 32699)

    def url(self, app: str) -> str:
        """Where a browser finds the app."""
        port = address(self.http)[1]
        return (
            f"http://{app}.{self.domain}/" if port == 80 else f"http://{app}.{self.domain}:{port}/"
        )

    def remote(self, app: str) -> str:
        """What `git remote add bareku` takes."""
        host, port = address(self.ssh)
        return f"ssh://git@{host}:{port}/{app}.git"


def load(root: Root) -> Settings:
    """The settings of `root`. Raises BarekuError when there is no Bareku or a key is wrong."""
    if not root.settings.is_file():
        raise BarekuError(
            f"cannot find a Bareku in {root.path}: it has no {root.settings.name}",
            hint="start one with `bareku up`, or name another folder with --root",
        )
    settings = config.load(root.settings, Settings)
    for key in ("http", "ssh"):
        address(getattr(settings, key))
    return settings


def create(root: Root, settings: Settings) -> None:
    """Write `bareku.yml` for the first time, with comments."""
    values = {field: getattr(settings, field) for field in settings.__struct_fields__}
    width = max(len(str(value)) for key, value in values.items() if key != "app_ports")
    padded = {k: v if k == "app_ports" else str(v).ljust(width) for k, v in values.items()}
    write_atomic(root.settings, SAMPLE.format(**padded).encode())


def address(text: str) -> tuple[str, int]:
    """`127.0.0.1:8080` or `[::1]:8080` as host and port."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise BarekuError(f"cannot use {text!r} as an address: it must be host:port")
    return host.strip("[]"), int(port)


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """True when nobody listens on a TCP port just now."""
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
