"""`bareku-serve MODULE:APP`: a WSGI or ASGI app straight on the link, without an HTTP hop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import inspect
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import uvloop

from appnode.asgi import Asgi
from appnode.greeting import State
from appnode.incoming import Incoming
from appnode.link import Answer, Door, Handler, Link
from appnode.mongrel2 import Mongrel2Door, Pair
from appnode.wsgi import Wsgi
from bareku import log
from bareku.curve import client_keys
from bareku.errors import BarekuError
from bareku.log import event
from frontend.link import Hello

READY_S = 0.05  # between two looks
FAREWELL_S = 2.0  # a frontend that owes us a farewell for longer is not waited for

logger = logging.getLogger("appnode.serve")


class Gateway(Protocol):
    """WSGI or ASGI."""

    def open(self, door: Door, handler: int, incoming: Incoming, more: bool) -> Answer: ...


def load_app(spec: str) -> Any:
    """The object that `module:name` says; `name` may have dots and be called as `make_app()`.

    Raises BarekuError when there is none.
    """
    module_name, _, name = spec.partition(":")
    name = name or "app"
    if (folder := str(os.curdir)) not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name != module_name.partition(".")[0] and exc.name != module_name:
            raise
        raise BarekuError(
            f"cannot serve {spec}: there is no module {module_name!r}",
            hint="write it as module:app and start where the module is",
        ) from exc
    call = name.endswith("()")
    for part in name.removesuffix("()").split("."):
        if not hasattr(found, part):
            raise BarekuError(f"cannot serve {spec}: {module_name} has no {part!r}")
        found = getattr(found, part)
    return found() if call else found


def is_asgi(app: Any) -> bool:
    """True for an app that is a coroutine function or has an asynchronous `__call__`."""
    if inspect.isclass(app):
        return hasattr(app, "__await__")
    return inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(
        getattr(app, "__call__", None)  # noqa: B004  # the method, not whether there is one
    )


class Serve:
    """One app, its doors, its end."""

    def __init__(self, options: argparse.Namespace, gateway: Gateway) -> None:
        environ = os.environ
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._drain_s: float = options.drain
        hello = Hello(
            app=environ.get("BAREKU_APP", "app"),
            release=_number("BAREKU_RELEASE", 0),
            process=environ.get("BAREKU_PROCESS", "web.1"),
            node=environ.get("BAREKU_NODE") or socket.gethostname(),
            capacity=options.capacity,
            token=environ.get("BAREKU_LINK_TOKEN") or environ.get("BAREKU_TOKEN", ""),
        )
        self._handler = Handler(1, hello, gateway.open)
        self._links = [
            Link(endpoint, on_change=self._news.set, keys=options.keys) for endpoint in options.link
        ]
        for link in self._links:
            link.add(self._handler)
        self._doors = [
            Mongrel2Door(pair, self._open(gateway), most=options.capacity)
            for pair in options.mongrel2
        ]

        self._ready_file = environ.get("DIPROC_READY")
        self._tell_when_ready()

    def _tell_when_ready(self) -> None:
        """Make the file that diprocd waits for, once somebody can send requests."""
        if not self._ready_file:
            return
        is_welcome = any(link.state_of(1) == State.WELCOME for link in self._links)
        if is_welcome or any(door.is_connected for door in self._doors):
            try:
                Path(self._ready_file).touch()
            except OSError as exc:
                logger.warning(event("ready file not written", error=exc.strerror or exc))
        else:
            self._loop.call_later(READY_S, self._tell_when_ready)

    def _open(self, gateway: Gateway) -> Callable[[Door, Incoming], Answer]:
        return lambda door, incoming: gateway.open(door, 1, incoming, False)

    async def until(self, stopping: asyncio.Event) -> None:
        """Serve until `stopping`, then answer what is there, for a bounded time."""
        await stopping.wait()
        logger.info(event("stopping"))
        for link in self._links:
            link.leave(1)
        for door in self._doors:
            door.leave()
        began = self._loop.time()
        while not self._is_done(self._loop.time() - began):
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self._news.wait()

    def _is_done(self, waited_s: float) -> bool:
        if waited_s >= self._drain_s:
            return True
        has_left = waited_s >= FAREWELL_S or all(link.has_left(1) for link in self._links)
        busy = any(link.in_flight(1) for link in self._links) or any(d.is_busy for d in self._doors)
        return has_left and not busy

    async def close(self) -> None:
        for link in self._links:
            link.close()
        for door in self._doors:
            door.close()
        await asyncio.sleep(0)


async def run(options: argparse.Namespace, app: Any) -> None:
    """Serve until TERM or INT, then drain."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    gateway: Asgi | Wsgi
    if is_asgi(app):
        gateway = Asgi(app)
        try:
            await gateway.start()
        except RuntimeError as exc:
            raise BarekuError(f"cannot serve {options.app}: {exc}") from exc
    else:
        gateway = Wsgi(app, options.threads)
        options.capacity = options.threads
    serve = Serve(options, gateway)
    logger.info(event("serving", app=options.app, kind=type(gateway).__name__.lower()))
    await serve.until(stopping)
    if isinstance(gateway, Asgi):
        await gateway.stop()
    else:
        gateway.stop()
    await serve.close()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "").removeprefix("v")
    if not text:
        return default
    if not text.isdigit():
        raise BarekuError(f"cannot use {name}={text!r}: it must be a number")
    return int(text)


def _words(name: str) -> list[str]:
    return os.environ.get(name, "").replace(",", " ").split()


def _pairs(options: argparse.Namespace) -> list[Pair]:
    """The Mongrel2 doors: `--mongrel2 SEND RECV`, else $BAREKU_PULL and $BAREKU_PUB."""
    pairs = [Pair(send, recv) for send, recv in options.mongrel2 or ()]
    if not pairs and os.environ.get("BAREKU_PULL") and os.environ.get("BAREKU_PUB"):
        pairs = [Pair(os.environ["BAREKU_PULL"], os.environ["BAREKU_PUB"])]
    return pairs


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, completed by the environment. Raises BarekuError."""
    environ = os.environ
    parser = argparse.ArgumentParser(prog="bareku-serve", description=__doc__)
    parser.add_argument(
        "app", metavar="MODULE:APP", help="a WSGI or ASGI app, told apart by itself"
    )
    parser.add_argument(
        "--link", action="append", metavar="ENDPOINT", help="of a frontend; else $BAREKU_LINK"
    )
    parser.add_argument(
        "--mongrel2", action="append", nargs=2, metavar=("SEND_SPEC", "RECV_SPEC"),
        help="serve a Mongrel2's handler too or instead; else $BAREKU_PULL and $BAREKU_PUB",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=8, metavar="N", help="of a WSGI app (default 8)"
    )
    parser.add_argument(
        "--capacity", type=int, default=100, metavar="N",
        help="requests at once for an ASGI app (default 100)",
    )  # fmt: skip
    parser.add_argument(
        "--drain", type=float, default=30.0, metavar="SECONDS",
        help="how long TERM waits for requests in flight (default 30)",
    )  # fmt: skip
    parser.add_argument(
        "--curve-key", metavar="FILE", default=environ.get("BAREKU_CURVE_KEY"),
        help="own key pair, for a frontend on another machine; else $BAREKU_CURVE_KEY",
    )  # fmt: skip
    parser.add_argument(
        "--curve-server", metavar="KEY", default=environ.get("BAREKU_CURVE_SERVER"),
        help="that frontend's public key; else $BAREKU_CURVE_SERVER",
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args(arguments)
    options.link = options.link or _words("BAREKU_LINK")
    options.mongrel2 = _pairs(options)
    if not options.link and not options.mongrel2:
        raise BarekuError(
            f"cannot serve {options.app}: no frontend is known",
            hint="give --link ENDPOINT or set BAREKU_LINK",
        )
    options.keys = client_keys(options.curve_key, options.curve_server, options.link)
    client_keys(None, None, [spec for pair in options.mongrel2 for spec in pair])
    if not 1 <= options.threads <= 1000 or not 1 <= options.capacity <= 10_000:
        raise BarekuError("cannot use --threads or --capacity: 1 to 1000 and 1 to 10000")
    return options


def main() -> int:
    """The command; its exit status."""
    try:
        options = parse()
        log.setup(verbose=options.verbose)
        uvloop.run(run(options, load_app(options.app)))
    except BarekuError as exc:
        sys.stderr.write(f"error: {exc.message}\n" + (f"hint: {exc.hint}\n" if exc.hint else ""))
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
