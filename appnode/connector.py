"""`bareku-handler`: one daemon a node; answers the frontends for the `$PORT` apps that run there.

It knows them from the worker's status file and changes nothing while that file is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from appnode.census import Key, Plan, Process, Worker, plan
from appnode.config import Config, Mongrel2, keys_for, load_config
from appnode.exchange import Exchange, Times
from appnode.incoming import Incoming
from appnode.link import Answer, Door, Handler, Link
from appnode.mongrel2 import Mongrel2Door, Pair
from appnode.routed import Routes
from appnode.upstream import Upstream
from appnode.watch import FileWatch
from bareku import config, log
from bareku.daemon import Health, Presence
from bareku.errors import BarekuError
from bareku.log import event
from frontend.link import Hello

FAREWELL_S = 2.0  # a frontend that owes us a farewell for longer is not waited for
STATUS_S = 5.0
STATUS_LEAST_S = 0.1  # between two writes, however much happens
STREAM_S = 2.0  # a reply that runs for longer than this is a stream, and no longer counts
MAX_STREAMS = 1000  # of one process, beside its capacity

logger = logging.getLogger("appnode.connector")


class Served:
    """A process that we answer for."""

    __slots__ = ("handler", "is_leaving", "left_at", "process", "streams", "upstream")

    def __init__(self, process: Process, handler: Handler, upstream: Upstream) -> None:
        self.process = process
        self.handler = handler
        self.upstream = upstream
        self.is_leaving = False
        self.left_at = 0.0
        self.streams = 0


class Connector:
    """The daemon: processes on one side, frontends on the other."""

    def __init__(self, conf: Config, presence: Presence) -> None:
        self._config = conf
        self._presence = presence
        self._loop = asyncio.get_running_loop()
        self._times = Times(
            conf.timeouts.connect_s, conf.timeouts.first_byte_s, conf.timeouts.idle_s
        )
        self._served: dict[Key, Served] = {}
        self._by_number: dict[int, Served] = {}
        self._exchanges: set[Exchange] = set()
        self._draining: dict[Key, Process] = {}
        self._drained: set[Key] = set()
        self._next_number = 1
        self._worker_error: str | None = "the worker's status file was not read yet"
        self._is_dirty = True
        self._is_scheduled = False
        self._written_at = 0.0
        self._writing: asyncio.Future[None] | None = None
        self.stopping = asyncio.Event()
        self.stopped = asyncio.Event()
        self._stop_by = 0.0
        self._links = [
            Link(endpoint, on_change=self._changed, keys=keys_for(conf, endpoint))
            for endpoint in conf.frontends
        ]
        self._routes = Routes()
        self._doors = [self._mongrel2(one) for one in conf.mongrel2]
        self._watch = FileWatch(Path(conf.worker), self._read_worker)
        self._ticker = self._loop.call_soon(self._tick)

    # the worker's word

    def _read_worker(self) -> None:
        try:
            worker = config.load(Path(self._config.worker), Worker)
        except BarekuError as exc:
            if self._worker_error != exc.message:
                self._worker_error = exc.message
                logger.warning(event("worker unheard", error=exc.message))
                self._changed()
            return
        if self._worker_error is not None:
            self._worker_error = None
            self._changed()
        if not self.stopping.is_set():
            self._apply(worker.processes)

    def _apply(self, processes: list[Process]) -> None:
        wanted = plan({key: one.is_leaving for key, one in self._served.items()}, processes)
        self._draining = {
            process.key: process for process in processes if process.state == "draining"
        }
        self._drained &= self._draining.keys()
        for key in wanted.remove:
            self._remove(key)
        for key in wanted.leave:
            self._leave(key)
        for process in wanted.add:
            self._add(process)
        self._report_drained(wanted)

    def _add(self, process: Process) -> None:
        number = self._next_number
        self._next_number += 1
        assert process.port is not None
        hello = Hello(
            app=process.app,
            release=process.release,
            process=f"{process.type}.{process.index}",
            node=self._config.node,
            capacity=self._config.capacity,
            token=process.token,
        )
        handler = Handler(number, hello, self._open)
        upstream = Upstream(
            "127.0.0.1",
            process.port,
            size=self._config.pool.size,
            idle_s=self._config.pool.idle_s,
            on_listening=self._say_capacities,
        )
        served = Served(process, handler, upstream)
        self._served[process.key] = self._by_number[number] = served
        logger.info(event("process served", id=process.id, port=process.port, handler=number))
        for link in self._links:
            link.add(handler)
        self._changed()

    def _leave(self, key: Key) -> None:
        served = self._served[key]
        served.is_leaving = True
        served.left_at = self._loop.time()
        logger.info(event("process leaves", id=served.process.id))
        for link in self._links:
            link.leave(served.handler.number)
        self._changed()

    def _remove(self, key: Key) -> None:
        served = self._served.pop(key)
        number = served.handler.number
        for link in self._links:
            link.remove(number, "the app's process is gone")
        self._routes.abandon(number, "the app's process is gone")
        self._by_number.pop(number, None)
        served.upstream.close()
        logger.info(event("process gone", id=served.process.id))
        self._changed()

    def _report_drained(self, wanted: Plan) -> None:
        """What we never forwarded to has nothing to wait for."""
        for process in wanted.drained:
            self._touch_drained(process)

    def _touch_drained(self, process: Process) -> None:
        if process.key in self._drained or process.dir is None:
            return
        self._drained.add(process.key)
        try:
            # the folder may belong to the app's user: never through a link of its making
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(Path(process.dir) / "drained", flags, 0o644))
        except FileExistsError:
            pass
        except OSError as exc:
            logger.warning(
                event("drained file not written", id=process.id, error=exc.strerror or exc)
            )
        else:
            logger.info(event("process drained", id=process.id))

    # requests

    def _open(self, door: Door, number: int, incoming: Incoming, more: bool) -> Exchange:
        served = self._by_number[number]
        return Exchange(door, number, incoming, served.upstream, self._times, more=more)

    def _mongrel2(self, conf: Mongrel2) -> Mongrel2Door:
        def choose() -> tuple[int, Callable[[Door, Incoming], Exchange]] | None:
            return self._choose(conf)

        def open_request(door: Door, incoming: Incoming) -> Answer:
            return self._routes.open(door, incoming, choose, conf.hold_s)

        pair = Pair(conf.send_spec, conf.recv_spec)
        return Mongrel2Door(pair, open_request, most=self._config.capacity)

    def _choose(self, conf: Mongrel2) -> tuple[int, Callable[[Door, Incoming], Exchange]] | None:
        """The process of the app's release that has the least to do."""
        fit = [
            served
            for served in self._served.values()
            if served.process.app == conf.app
            and served.process.release == (conf.release or served.process.release)
            and served.upstream.is_listening
            and (not served.is_leaving or self.stopping.is_set())
        ]
        if not fit:
            return None
        newest = max(served.process.release for served in fit)
        fit = [served for served in fit if served.process.release == newest]
        number = min((served.handler.number for served in fit), key=self._in_flight)
        self._by_number[number].handler.counts.requests += 1
        return number, lambda door, incoming: self._open(door, number, incoming, False)

    def _say_capacities(self) -> None:
        """What each process takes now: nothing while it does not listen; streams on top."""
        for served in self._served.values():
            capacity = 0
            if served.upstream.is_listening:
                capacity = self._config.capacity + min(served.streams, MAX_STREAMS)
            served.handler.capacity = capacity
            for link in self._links:
                link.say_capacity(served.handler.number, capacity)

    # time

    def _changed(self) -> None:
        """Something is different: act on it in this turn of the loop, once."""
        self._is_dirty = True
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        self._is_scheduled = False
        now = self._loop.time()
        for key, served in list(self._served.items()):
            if served.is_leaving and self._is_done(served, now):
                if key in self._draining:
                    self._touch_drained(self._draining[key])
                self._remove(key)  # if it takes requests again, it is a new handler
                self._loop.call_soon(self._read_worker)
        if self.stopping.is_set() and (not self._served or now >= self._stop_by):
            self.stopped.set()
        self._write_status(now)

    def _is_done(self, served: Served, now: float) -> bool:
        number = served.handler.number
        has_left = all(link.has_left(number) for link in self._links)
        if not has_left and now - served.left_at < FAREWELL_S:
            return False
        if self.stopping.is_set() and any(door.is_busy for door in self._doors):
            return False
        return not self._in_flight(number)

    def _in_flight(self, number: int) -> int:
        return self._routes.in_flight(number) + sum(link.in_flight(number) for link in self._links)

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(0.25, self._tick)
        for served in self._served.values():
            served.upstream.expire()
        self._count_streams()
        self._say_capacities()
        self._settle()

    def _count_streams(self) -> None:
        now = self._loop.time()
        for served in self._served.values():
            served.streams = 0
        for link in self._links:
            for answer in link.answers():
                if answer.handler in self._by_number and is_stream(answer, now):
                    self._by_number[answer.handler].streams += 1

    # status

    def _write_status(self, now: float) -> None:
        """The file is fsynced, which may take long: in a thread, one at a time."""
        since = now - self._written_at
        due = since >= STATUS_S or (self._is_dirty and since >= STATUS_LEAST_S)
        if not due or self._writing is not None:
            return
        self._is_dirty = False
        self._written_at = now
        health, error = self._health()
        self._writing = self._loop.run_in_executor(None, self._write, health, error, self._fields())
        self._writing.add_done_callback(self._written)

    def _write(self, health: Health, error: str | None, fields: dict[str, Any]) -> None:
        self._presence.write(health, error, **fields)

    def _written(self, done: asyncio.Future[None]) -> None:
        self._writing = None
        if not done.cancelled() and (exc := done.exception()):
            logger.warning(event("status not written", error=exc))

    def _health(self) -> tuple[Health, str | None]:
        if self._worker_error is not None:
            return "degraded", self._worker_error
        away = [link.endpoint for link in self._links if not link.is_up]
        if away:
            return "degraded", f"cannot reach the frontend {', '.join(away)}"
        return "ok", None

    def _fields(self) -> dict[str, Any]:
        return {
            "node": self._config.node,
            "frontends": [link.status() for link in self._links],
            "mongrel2": [door.status() for door in self._doors],
            "processes": [self._process_status(served) for served in self._served.values()],
        }

    def _process_status(self, served: Served) -> dict[str, Any]:
        process, number = served.process, served.handler.number
        return {
            "id": process.id,
            "app": process.app,
            "release": process.release,
            "process": f"{process.type}.{process.index}",
            "port": process.port,
            "handler": number,
            "state": "leaving" if served.is_leaving else "served",
            "listening": served.upstream.is_listening,
            "frontends": {link.endpoint: link.state_of(number) for link in self._links},
            "capacity": served.handler.capacity,
            "in_flight": self._in_flight(number),
            "connections_opened": served.upstream.opened,
            **msgspec.to_builtins(served.handler.counts),
        }

    # the end

    def stop(self) -> None:
        """Goodbye for everything; `stopped` is set when the last request is answered."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        self._stop_by = self._loop.time() + self._config.timeouts.drain_s
        logger.info(event("connector stopping", processes=len(self._served)))
        for door in self._doors:
            door.leave()
        for key, served in list(self._served.items()):
            if not served.is_leaving:
                self._leave(key)
        self._changed()

    async def close(self) -> None:
        self._ticker.cancel()
        self._watch.close()
        for key in list(self._served):
            self._remove(key)
        for link in self._links:
            link.close()
        for door in self._doors:
            door.close()
        while self._writing is not None:
            with contextlib.suppress(Exception):
                await self._writing
            await asyncio.sleep(0)


def is_stream(answer: object, now: float) -> bool:
    """True for an upgraded connection and for a reply that has been running for a while."""
    return (
        isinstance(answer, Exchange)
        and answer.is_replying
        and (answer.is_tunnel or now - answer.started_at > STREAM_S)
    )


async def serve(conf: Config, presence: Presence) -> None:
    """Run until TERM or INT, then drain."""
    connector = Connector(conf, presence)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, connector.stop)
    logger.info(event("connector started", node=conf.node, frontends=",".join(conf.frontends)))
    await connector.stopped.wait()
    await connector.close()
    logger.info(event("connector stopped"))


USAGE = "usage: bareku-handler --config FILE [--check-config] [--verbose]"


def main() -> int:
    """The command; its exit status."""
    arguments = sys.argv[1:]
    options = {"--config": "", "--check-config": "", "--verbose": ""}
    while arguments:
        word, *arguments = arguments
        name, _, value = word.partition("=")
        if name in ("-h", "--help"):
            sys.stdout.write(USAGE + "\n")
            return 0
        if name not in options or (name == "--config" and not value and not arguments):
            sys.stderr.write(f"error: cannot use {word!r}\n{USAGE}\n")
            return 2
        if name == "--config" and not value:
            value, *arguments = arguments
        options[name] = value or "yes"
    if not options["--config"]:
        sys.stderr.write(f"error: --config is missing\n{USAGE}\n")
        return 2
    log.setup(verbose=bool(options["--verbose"]))
    try:
        conf = load_config(Path(options["--config"]))
        if options["--check-config"]:
            return 0
        presence = Presence(Path(conf.run), "handler")
        try:
            uvloop.run(serve(conf, presence))
        finally:
            presence.close()
    except BarekuError as exc:
        sys.stderr.write(f"error: {exc.message}\n" + (f"hint: {exc.hint}\n" if exc.hint else ""))
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
