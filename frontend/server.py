"""`bareku-frontend`: the daemon, its sockets and its clockwork."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import random
import resource
import secrets
import signal
import socket
import ssl
import sys
import time
import uuid
from ipaddress import ip_network
from pathlib import Path
from typing import cast

import uvloop

from bareku import __version__, curve
from bareku.config import load
from bareku.daemon import Presence
from bareku.errors import BarekuError
from bareku.log import event, setup
from frontend.admin import AdminConnection
from frontend.client import Connection
from frontend.config import Config, Door
from frontend.control import Master, Routes
from frontend.curvelink import CurveRouter
from frontend.exchange import Exchange
from frontend.journal import Journal, Writer, combined, json_line
from frontend.linkdoor import Link
from frontend.listener import Listener, Visitor
from frontend.metrics import Metrics
from frontend.operator import Operator
from frontend.pages import Pages
from frontend.pairdoor import Pair
from frontend.peers import listen
from frontend.router import RouteDocument, Table
from frontend.tls import Certificates
from frontend.wheel import Wheel

log = logging.getLogger("frontend")

TICK_S = 0.25
TOGETHER_S = 0.005  # handlers and tables come in bursts: one report for all of them
STATUS_S = 5.0
BACKLOG = 4096


class Server:
    """All parts of a running frontend."""

    def __init__(self, config: Config, name: str) -> None:
        loop = asyncio.get_running_loop()
        self._config = config
        self._name = name
        self._loop = loop
        self._is_stopping = False
        self._wake = asyncio.Event()  # something has happened that shall not wait for the tick
        self.metrics = Metrics()
        self.exchange = Exchange(
            config, time.monotonic, random.SystemRandom().randrange(1, 2**30), self.metrics
        )
        self.exchange.on_news = self._wake.set
        self._wheel = Wheel(time.monotonic(), TICK_S)
        self._writer = _writer(config)
        self._journal = Journal(self.metrics, time.monotonic, self._writer)
        self.link = Link(self.exchange, str(uuid.uuid4()).encode(), name)
        self._routes = Routes(Path(config.routes), self._use)
        self._operator = Operator(
            self.exchange,
            Path(config.routes).with_name("switches.json"),
            self._document,
            self.open_pair,
            self._close_pair,
        )
        self._pages = Pages(Path(config.pages) if config.pages else None)
        self._presence = Presence(Path(config.run), "frontend")
        self._listeners: list[Listener] = []
        self._servers: list[asyncio.Server] = []
        self._link_server: asyncio.Server | None = None
        self._link_address: str | None = None
        self._curve_router: CurveRouter | None = None
        self._master: Master | None = None
        self.pairs: list[Pair] = []
        self._admin: list[asyncio.Server] = []
        self._reported: object = None
        self._report_at = 0.0
        self._status_at = 0.0

    def _use(self, document: RouteDocument) -> None:
        self.exchange.swap(Table(document.routes))
        self.link.recheck()
        for pair in self.pairs:
            pair.recheck()
        self._status_at = self._report_at = 0.0
        self._wake.set()

    def _stop(self) -> None:
        self._is_stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Serve until TERM or INT, then finish what is in flight."""
        self._presence.write("starting")
        try:
            self._operator.load()
            self._routes.poll()
            await self._open()
            await self._open_admin()
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._stop)
            self._loop.add_signal_handler(signal.SIGHUP, self._reopen)
            gc.collect()
            gc.freeze()  # what is here now stays; collections need not look at it again
            log.info(event("frontend started", name=self._name, listen=",".join(self._addresses())))
            while not self._is_stopping:
                self._tick()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), TICK_S)
                    await asyncio.sleep(TOGETHER_S)
                self._wake.clear()
            await self._drain()
        finally:
            await self._close()

    async def _open(self) -> None:
        inherited = inherited_sockets()
        config = self._config
        link = next((sock for name, sock in inherited if name == "link"), None)
        await self._open_link(link)
        for door in config.mongrel2:
            await self.open_pair(door)
        await self._listen(inherited)
        self._master = Master(
            self._name,
            config.master_updates,
            config.master_stats,
            self._routes,
            lambda: self.metrics.count("bad_updates"),
            curve.client_keys(
                config.curve_key if config.curve_master else None,
                config.curve_master,
                [end for end in (config.master_updates, config.master_stats) if end],
            ),
        )

    async def _listen(self, inherited: list[tuple[str, socket.socket]]) -> None:
        """Serve HTTP on every address, TLS on those that want it."""
        config = self._config
        web = [sock for name, sock in inherited if name not in ("link", "https")]
        for sock in web or [bind(address) for address in _list(config.listen)]:
            await self._listen_on(sock, None)
        if config.tls is not None:
            context = Certificates(Path(config.tls.certificates)).context
            secure = [sock for name, sock in inherited if name == "https"]
            for sock in secure or [bind(address) for address in _list(config.tls.listen)]:
                await self._listen_on(sock, context)

    async def _listen_on(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        port = sock.getsockname()[1] if sock.family != socket.AF_UNIX else 80
        scheme = "http" if context is None else "https"
        listener = Listener(self.exchange, self._wheel, self._journal, scheme=scheme, port=port)
        listener.id_prefix = secrets.token_hex(4) + "-"
        listener.pages = self._pages
        self._listeners.append(listener)
        self._servers.append(
            await self._loop.create_server(
                lambda: Connection(listener), sock=sock, backlog=BACKLOG, ssl=context
            )
        )

    async def _open_link(self, inherited: socket.socket | None) -> None:
        """Our own ZMTP on loopback; libzmq with CURVE for handlers of other machines."""
        config = self._config
        keys = curve.server_keys(config.curve_key if config.link_curve else None, [config.link])
        if keys is not None:
            self._curve_router = CurveRouter(self.link, keys, config.link_curve)
            self._link_address = self._curve_router.bind(config.link)
            return
        self._link_server = await _bound(
            config.link, listen(config.link, self.link.peer, inherited=inherited)
        )
        self._link_address = _address(self._link_server)

    async def _open_admin(self) -> None:
        """The Unix socket for whoever may enter the run folder's owner's files, and TCP to read."""
        path = Path(self._config.run) / "frontend.sock"
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            server = await self._loop.create_unix_server(
                lambda: AdminConnection(self._operator.ask, may_change=True), str(path)
            )
        finally:
            os.umask(mask)
        self._admin.append(server)
        if self._config.status is not None:
            sock = bind(self._config.status)
            server = await self._loop.create_server(
                lambda: AdminConnection(self._operator.ask, may_change=False), sock=sock
            )
            self._admin.append(server)

    async def open_pair(self, door: Door) -> Pair:
        """Bind a pair for Mongrel2 handlers. Raises BarekuError."""
        curve.server_keys(None, [door.send_spec, door.recv_spec])
        pair = Pair(self.exchange, door)
        await pair.open()
        self.pairs.append(pair)
        self._status_at = 0.0
        return pair

    def _addresses(self) -> list[str]:
        return [_address(server) for server in self._servers]

    def _connections(self) -> list[Visitor]:
        return [visitor for listener in self._listeners for visitor in listener.connections]

    # the clockwork

    def _tick(self) -> None:
        now = time.monotonic()
        for entry in list(self._wheel.expired(now)):
            cast("Connection", entry).expire()
        self.link.tick(now)
        for pair in self.pairs:
            pair.tick(now)
        self._journal.flush()
        self._routes.poll()
        if self._master is not None:
            self._master.tick(now)
        handlers, inflight = self.exchange.dispatcher.counts()
        self._report(now, handlers, inflight)
        held, error = self.exchange.dispatcher.held, self._routes.error
        seen = (handlers, error, self._routes.version, bool(held))
        if seen != self._reported or now >= self._status_at:
            self._reported = seen
            self._status_at = now + STATUS_S
            self._write_status(handlers, inflight)

    def _report(
        self, now: float, handlers: dict[str, dict[str, int]], inflight: dict[str, dict[str, int]]
    ) -> None:
        """Tell the master every 5 s, and at once when handlers, table or drained releases change."""
        busy = {(app, v): bool(n) for app, counts in inflight.items() for v, n in counts.items()}
        news = (handlers, busy, self._routes.version)
        if now >= self._report_at or news != self._news:
            self._news = news
            self._report_at = now + STATUS_S * random.uniform(0.9, 1.1)  # noqa: S311 # only spread
            if self._master is not None:
                self._master.report(handlers, inflight)

    _news: object = None

    def _write_status(
        self, handlers: dict[str, dict[str, int]], inflight: dict[str, dict[str, int]]
    ) -> None:
        error = self._routes.error
        self._presence.write(
            "degraded" if error else "ok", error, **self._facts(handlers, inflight)
        )

    def _document(self) -> dict[str, object]:
        """The status document as it would be written now."""
        error = self._routes.error
        facts = self._facts(*self.exchange.dispatcher.counts())
        return {"health": "degraded" if error else "ok", "error": error, **facts}

    def _facts(
        self, handlers: dict[str, dict[str, int]], inflight: dict[str, dict[str, int]]
    ) -> dict[str, object]:
        """The frontend's own part of its status document."""
        exchange = self.exchange
        return {
            "name": self._name,
            "listen": self._addresses(),
            "link": self._link_address,
            "status": _address(self._admin[1]) if len(self._admin) > 1 else None,
            "epoch": self._routes.epoch,
            "have": self._routes.version,
            "handlers": handlers,
            "inflight": inflight,
            "held": exchange.dispatcher.held,
            "mongrel2": [pair.status() for pair in self.pairs],
            "connections": len(self._connections()),
            "paused": sorted(exchange.dispatcher.paused),
            "maintenance": sorted(exchange.maintenance),
            "counters": self.metrics.counters,
        }

    async def _close_pair(self, app: str, process: str) -> int:
        """Close the pairs of a process; how many there were."""
        found = [p for p in self.pairs if (p.door.app, p.door.process) == (app, process)]
        for pair in found:
            self.pairs.remove(pair)
            await pair.close()
        self._status_at = 0.0
        return len(found)

    def _reopen(self) -> None:
        if self._writer is not None:
            try:
                self._writer.reopen()
            except BarekuError as exc:
                log.error(event("access log not reopened", reason=exc))

    # the end

    async def _drain(self) -> None:
        """Accept no more, answer what is here, tell the handlers."""
        self.exchange.is_closing = True
        for server in self._servers:
            server.close()
        for connection in self._connections():
            connection.end()
        deadline = time.monotonic() + self._config.timeouts.drain_s
        while left := len(self._connections()):
            if time.monotonic() >= deadline:
                log.warning(event("drain ended early", left=left))
                break
            self._tick()
            await asyncio.sleep(0.02)
        log.info(event("frontend stopped"))

    async def _close(self) -> None:
        self.link.close(farewell=True)
        if self._curve_router is not None:
            self._curve_router.close()
        for pair in self.pairs:
            await pair.close()
        for server in [
            *self._servers,
            *self._admin,
            *([self._link_server] if self._link_server else []),
        ]:
            server.close()
        for connection in self._connections():
            connection.kill()
        await asyncio.sleep(0)
        if self._master is not None:
            self._master.close()
        self._journal.flush()
        if self._writer is not None:
            self._writer.close()
        self._presence.close()


def _writer(config: Config) -> Writer | None:
    if config.access_log is None:
        return None
    path = None if config.access_log == "-" else Path(config.access_log)
    return Writer(path, json_line if config.access_format == "json" else combined)


def _list(addresses: str | list[str]) -> list[str]:
    return [addresses] if isinstance(addresses, str) else addresses


def bind(address: str) -> socket.socket:
    """A bound socket for `host:port`. Raises BarekuError naming the address."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host or not host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if host else 0)
        sock.bind((host or "::", int(port)))
    except (OSError, ValueError, OverflowError) as exc:
        sock.close()
        raise BarekuError(f"cannot listen on {address!r}: {exc}") from exc
    return sock


def inherited_sockets() -> list[tuple[str, socket.socket]]:
    """Listening sockets that whoever started us opened: `(name, socket)` (sd_listen_fds(3))."""
    environ = os.environ
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(environ.get("LISTEN_FDS", "0"))
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environ.pop(variable, None)
    sockets = []
    for index in range(count):
        sock = socket.socket(fileno=3 + index)
        sock.set_inheritable(False)
        sockets.append((names[index] if index < len(names) else "", sock))
    return sockets


async def _bound(endpoint: str, server: object) -> asyncio.Server:
    try:
        return await server  # type: ignore[misc, no-any-return]
    except (OSError, ValueError, OverflowError) as exc:
        raise BarekuError(f"cannot listen on {endpoint!r}: {exc}") from exc


def _address(server: asyncio.Server) -> str:
    name = server.sockets[0].getsockname() if server.sockets else ""
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
    return str(name)


def main() -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(prog="bareku-frontend", description=__doc__)
    parser.add_argument("--config", required=True, type=Path, help="the configuration file (YAML)")
    parser.add_argument("--check-config", action="store_true", help="check the file and exit")
    parser.add_argument("-v", "--verbose", action="store_true", help="log frames and decisions")
    parser.add_argument("--version", action="version", version=__version__)
    args = parser.parse_args()
    try:
        config = load(args.config, Config)
        for network in config.trusted_proxies:
            check_network(network)
        if args.check_config:
            print(f"{args.config} is fine.")
            return
        setup(verbose=args.verbose)
        _raise_limits()
        name = config.name.replace("%H", socket.gethostname())
        uvloop.run(_serve(config, name))
    except BarekuError as exc:
        sys.stderr.write(f"error: {exc.message}\n" + (f"hint: {exc.hint}\n" if exc.hint else ""))
        sys.exit(exc.exit_code)


def check_network(text: str) -> None:
    """Raise BarekuError when it is none."""
    try:
        ip_network(text)
    except ValueError as exc:
        raise BarekuError(f"cannot trust {text!r}: {exc}", hint="write it as 10.0.0.0/8") from exc


def _raise_limits() -> None:
    """As many open files as we may have: each client is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(config: Config, name: str) -> None:
    await Server(config, name).run()


if __name__ == "__main__":
    main()
