"""The app nodes as a deploy meets them: connected to, shipped to, asked for logs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from bareku.app import Release
from bareku.errors import BarekuError
from bareku.paths import Root
from bareku.receive import ship
from bareku.receive.ship import Connection, Delivery, NodeAddress
from bareku.receive.slug import Slug
from bareku.receive.transcript import Transcript
from bareku.settings import Settings, address

LAST_LINES = 20


@contextlib.contextmanager
def connecting(root: Root, settings: Settings) -> Iterator[Future[list[Connection]]]:
    """Connections to the nodes, opened while the build runs; closed at the end."""
    host, port = address(settings.ssh)
    node = NodeAddress(name=host, host=host, port=port, user="bareku")
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(
            lambda: [ship.connect(node, root.ssh / "ship_ed25519", root.ssh / "known_hosts")]
        )
        try:
            yield opening
        finally:
            with contextlib.suppress(BarekuError):
                for connection in opening.result():
                    connection.close()


def deliver(
    connections: list[Connection], made: Slug, transcript: Transcript, *, base: Slug | None = None
) -> None:
    """Ship the slug to every node; those that have `base` need only what differs."""
    transcript.step("Deploying to the nodes.")

    def tell_node(delivery: Delivery) -> None:
        answer = "failed." if delivery.error else "OK."
        transcript.detail(f"{delivery.node} - {answer}")

    failed = [d for d in ship.ship(connections, made, base=base, on_delivery=tell_node) if d.error]
    if failed:
        reasons = "; ".join(f"{d.node}: {d.error.message}" for d in failed if d.error)
        raise BarekuError(
            f"cannot ship the slug, so nothing was changed: {reasons}",
            hint="push again when the node is well",
        )


def define(connections: list[Connection], app: str, uuid: str) -> None:
    """Note on the nodes which slug is the app's now."""
    for connection in connections:
        ship.run(connection, ["def", app, uuid])


@dataclass(frozen=True, slots=True)
class Console:
    """The deploy's view of the pusher and of the nodes' logs."""

    transcript: Transcript
    connections: list[Connection]
    release: Release

    def step(self, text: str) -> None:
        self.transcript.step(text)

    def detail(self, text: str) -> None:
        self.transcript.detail(text)

    def last_lines(self, process: str) -> list[str]:
        name = f"v{self.release.number}.{process}"
        for connection in self.connections:
            with contextlib.suppress(BarekuError):
                text = ship.run(connection, ["logs", self.release.app, name, "-n", str(LAST_LINES)])
                if text.strip():
                    return text.splitlines()
        return []


@dataclass(frozen=True, slots=True)
class LateConsole:
    """A console that connects to the nodes when a log is asked for, and not before."""

    root: Root
    settings: Settings
    release: Release
    transcript: Transcript

    def step(self, text: str) -> None:
        self.transcript.step(text)

    def detail(self, text: str) -> None:
        self.transcript.detail(text)

    def last_lines(self, process: str) -> list[str]:
        with connecting(self.root, self.settings) as opening:
            return Console(self.transcript, opening.result(), self.release).last_lines(process)
