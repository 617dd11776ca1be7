"""WSGI apps (PEP 3333) on the link, in a pool of threads; the link stays in its own."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any
from urllib.parse import unquote_to_bytes

from appnode.incoming import HOP_BY_HOP, Incoming
from appnode.link import Answer, Door
from appnode.native import Native, addresses
from appnode.writer import AnswerError, Writer, plain
from bareku.log import event
from frontend.link import WINDOW

log = logging.getLogger("appnode.serve")

_READ = 65_536
_PIECE = WINDOW // 2  # of a reply in one message


class Wsgi:
    """The app and its threads; `open` makes the answer to a request."""

    def __init__(self, app: Any, threads: int) -> None:
        self.app = app
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Request | None] = SimpleQueue()
        self._calls: deque[Callable[[], None]] = deque()
        self._is_waking = False
        self.is_many = threads > 1
        self.change = threading.Condition()  # of any request; few threads wait at a time
        self._threads = [
            threading.Thread(target=self._work, name=f"app-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def open(self, door: Door, handler: int, incoming: Incoming, more: bool) -> Answer:
        return _Request(self, door, handler, incoming, more=more)

    def put(self, request: _Request) -> None:
        self._jobs.put(request)

    def _work(self) -> None:
        while (request := self._jobs.get()) is not None:
            request.run()

    def call(self, function: Callable[[], None]) -> None:
        """Run it in the loop's thread, in order; one wake-up for many."""
        self._calls.append(function)
        # the flag is only down while no flush is to come, and flushing begins by lowering it
        if not self._is_waking:
            self._is_waking = True
            self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        self._is_waking = False
        while self._calls:
            self._calls.popleft()()

    def stop(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)


class _Request(Native):
    """A request that a thread answers."""

    def __init__(
        self, wsgi: Wsgi, door: Door, handler: int, incoming: Incoming, *, more: bool
    ) -> None:
        super().__init__(door, handler, incoming, more=more)
        self._wsgi = wsgi
        self._writer = Writer(incoming.server.get(b"METHOD", b""), http11=incoming.is_http11)
        self._is_sent = False
        self._is_ended = False
        self._sent_bytes = 0
        self._change = wsgi.change

    def start(self) -> None:
        self._wsgi.put(self)

    # from the door, in the loop's thread

    def body(self, data: bytes, *, end: bool) -> None:
        with self._change:
            super().body(data, end=end)
            self._change.notify_all()

    def credit(self, size: int) -> None:
        with self._change:
            self._credit += size
            self._change.notify_all()

    def cancel(self) -> None:
        with self._change:
            super().cancel()
            self._change.notify_all()

    # in the app's thread

    def run(self) -> None:
        if self.is_gone:
            return
        result: Iterable[bytes] | None = None
        try:
            result = self._wsgi.app(self._environ(), self._start_response)
            if isinstance(result, list | tuple):
                self._finish(b"".join(result))
            else:
                self._pass(result)
        except BaseException:
            log.exception(event("app failed", path=self.incoming.path.decode("latin-1")))
            self._break()
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                self._close(close)

    def _pass(self, result: Iterable[bytes]) -> None:
        for piece in result:
            if self.is_gone:
                return
            if piece:
                self._write(piece)
        self._finish(b"")

    def _close(self, close: Callable[[], object]) -> None:
        try:
            close()
        except Exception:
            log.exception(event("app failed to close its response"))

    def _break(self) -> None:
        if self._is_sent:
            self._wsgi.call(lambda: self.fail(502, "the app failed in the middle of its response"))
        else:
            self._reply(plain(500), end=True)

    def _environ(self) -> dict[str, Any]:
        incoming = self.incoming
        server = incoming.server
        remote, name, port = addresses(incoming)
        path, _, query = server.get(b"URI", b"/").partition(b"?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": server.get(b"METHOD", b"GET").decode("latin-1"),
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query.decode("latin-1"),
            "REQUEST_URI": server.get(b"URI", b"/").decode("latin-1"),
            "SERVER_NAME": name,
            "SERVER_PORT": str(port),
            "SERVER_PROTOCOL": "HTTP/1.1" if incoming.is_http11 else "HTTP/1.0",
            "REMOTE_ADDR": remote,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": server.get(b"URL_SCHEME", b"http").decode("latin-1"),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": self._wsgi.is_many,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
        }
        for key, found in incoming.headers:
            if key in HOP_BY_HOP:
                continue
            value = found.decode("latin-1")
            field = key.decode("latin-1").upper().replace("-", "_")
            if field not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                field = "HTTP_" + field
            if field in environ:
                value = f"{environ[field]}{'; ' if field == 'HTTP_COOKIE' else ','}{value}"
            environ[field] = value
        if self.body_ended:
            environ["wsgi.input"] = io.BytesIO(incoming.body)
            if incoming.body or "CONTENT_LENGTH" in environ:
                environ["CONTENT_LENGTH"] = str(len(incoming.body))
        else:
            environ["wsgi.input"] = io.BufferedReader(_Input(self), _READ)
        return environ

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info:
            if self._is_sent:
                raise exc_info[1].with_traceback(exc_info[2])
            self._writer = Writer(self._writer.method, http11=self._writer.http11)
        code, _, reason = status.partition(" ")
        try:
            fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
            self._writer.start(int(code), fields, reason=reason.encode("latin-1"))
        except ValueError as exc:
            raise AnswerError(str(exc)) from exc
        return self._write

    def _write(self, piece: bytes) -> None:
        """Send what the app yields at once, and the end as soon as its length is reached."""
        if self._is_ended:
            raise AnswerError("the body is longer than its content-length")
        data = self._writer.body(piece, last=False)
        self._reply(data, end=self._writer.is_whole)

    def _finish(self, piece: bytes) -> None:
        if not self._is_ended:
            self._reply(self._writer.body(piece, last=True), end=True)

    def _reply(self, data: bytes, *, end: bool) -> None:
        """Send within the client's window; blocks the app while it is closed."""
        self._is_sent = True
        self._is_ended = end
        while True:
            piece, data = data[:_PIECE], data[_PIECE:]
            if self._sent_bytes + len(piece) > self._credit and not self._may_send(len(piece)):
                return
            self._post(piece, end=end and not data)
            if not data:
                return

    def _may_send(self, size: int) -> bool:
        """Wait until so many bytes may be sent; False when nobody waits for them any more."""
        with self._change:
            while self._credit < self._sent_bytes + size and not self.is_gone:
                self._change.wait()
        return not self.is_gone

    def _post(self, data: bytes, *, end: bool) -> None:
        self._sent_bytes += len(data)
        self._wsgi.call(lambda: self._deliver(data, end))

    def _deliver(self, data: bytes, end: bool) -> None:
        if self.is_over:
            return
        if end:
            self.is_over = True
        if data or end:
            self.door.reply(self, data, end=end)

    def _grant_more(self) -> None:
        """In the loop's thread, and not while the app's counts what it took."""
        with self._change:
            self._grant()

    def read_some(self, size: int) -> bytes:
        """Up to `size` bytes of the body; blocks; empty at its end."""
        with self._change:
            if not self._pieces and not self.body_ended:
                self._wsgi.call(self._grant_more)
            while not self._pieces and not self.body_ended and not self.is_gone:
                self._change.wait()
            if self.is_gone:
                raise ConnectionResetError("the client has gone")
            if not self._pieces:
                return b""
            piece = self._pieces.popleft()
            if len(piece) > size:
                self._pieces.appendleft(piece[size:])
                piece = piece[:size]
            self._owed += len(piece)
            return piece


class _Input(io.RawIOBase):
    """The body of a request that is still coming in."""

    def __init__(self, request: _Request) -> None:
        self._request = request

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._request.read_some(len(buffer))
        buffer[: len(data)] = data
        return len(data)
