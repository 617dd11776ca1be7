"""Finished requests: metrics and the access log, which a thread writes."""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from bareku.errors import BarekuError
from bareku.log import event
from frontend.exchange import Request
from frontend.http import Block, Head, HttpError
from frontend.metrics import Metrics

log = logging.getLogger("frontend")

MAX_WAITING = 100_000  # lines; a disk that does not keep up loses lines, not requests
_UNSAFE = re.compile(r'["\\\x00-\x1f\x7f-\xff]')

Render = Callable[[Request, int, float], str]


class Journal:
    """Counts requests and collects their log lines; `flush` hands them to the writer."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float], writer: Writer | None) -> None:
        self._metrics = metrics
        self._clock = clock
        self._writer = writer

    def finished(self, request: Request, status: int) -> None:
        """A request has been answered, or its client has left (499)."""
        seconds = self._clock() - request.started_at
        self._metrics.of(request.key).add(status, seconds, request.body_bytes, request.body_out)
        writer = self._writer
        if writer is not None:
            writer.lines.append(writer.render(request, status, seconds))

    def rejected(self, remote: str, error: HttpError) -> None:
        """A client sent what no handler shall see."""
        self._metrics.count("rejected_heads")
        log.debug(event("request rejected", remote=remote, status=error.status, reason=error))

    def flush(self) -> None:
        """Give the lines collected since the last time to the thread."""
        if self._writer is not None and not self._writer.flush():
            self._metrics.count("log_lines_dropped")


class Writer:
    """The access log's file and the thread that writes it: a slow disk holds up no request."""

    def __init__(self, path: Path | None, render: Render) -> None:
        """None is standard output."""
        self.render = render
        self.lines: list[str] = []
        self._path = path
        self._fd = os.dup(1) if path is None else _open(path)
        self._queue: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        self._waiting = 0
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def flush(self) -> bool:
        """False when lines had to be dropped."""
        if not self.lines:
            return True
        lines, self.lines = self.lines, []
        if self._waiting > MAX_WAITING:
            return False
        self._waiting += len(lines)
        self._queue.put(lines)
        return True

    def reopen(self) -> None:
        """Go on in a new file under the same name: the old one was rotated away."""
        if self._path is None:
            return
        fresh = _open(self._path)
        os.dup2(fresh, self._fd, inheritable=False)
        os.close(fresh)

    def close(self) -> None:
        """Write what is left."""
        self.flush()
        self._queue.put(None)
        self._thread.join(timeout=5)
        os.close(self._fd)

    def _run(self) -> None:
        while (lines := self._queue.get()) is not None:
            data = memoryview("".join(lines).encode("latin-1", "replace"))
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError as exc:
                log.error(event("access log not written", path=self._path, reason=exc.strerror))
            self._waiting -= len(lines)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as exc:
        raise BarekuError(f"cannot write the access log {path}: {exc.strerror}") from exc


class _Stamp:
    """The time as text, made once a second."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._second = 0
        self._text = ""

    def __call__(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._text = time.strftime(self._form, time.localtime(second))
        return self._text


_stamp = _Stamp("%d/%b/%Y:%H:%M:%S %z")
_iso = _Stamp("%Y-%m-%dT%H:%M:%S%z")


def combined(request: Request, status: int, seconds: float) -> str:
    """The combined format, then what only we know as `key=value`."""
    head = request.head
    handler = request.handler
    if not head.log_line:
        head.log_line = _line(head)
        head.block.log_tail = head.block.log_tail or _tail(head.block)
    return (
        f"{request.client.remote} - - [{_stamp()}] {head.log_line} {status} "
        f"{request.body_out} {head.block.log_tail}host={head.host or '-'}{request.target.log}"
        f"process={handler.process if handler else '-'} ms={seconds * 1000:.1f} id={request.id}\n"
    )


def _line(head: Head) -> str:
    """The request line, made once for each head."""
    uri = _safe(head.uri.decode("latin-1"))
    return f'"{head.method.decode()} {uri} HTTP/1.{0 if head.is_http10 else 1}"'


def _tail(block: Block) -> str:
    """Referer and user agent, made once for each block of fields."""
    return f'"{_safe(block.referer) or "-"}" "{_safe(block.user_agent) or "-"}" '


def json_line(request: Request, status: int, seconds: float) -> str:
    """One JSON object a line."""
    head = request.head
    handler = request.handler
    app, release = request.key
    line = {
        "time": _iso(),
        "remote": request.client.remote,
        "method": head.method.decode(),
        "uri": head.uri.decode("latin-1"),
        "host": head.host,
        "status": status,
        "bytes": request.body_out,
        "bytes_in": request.body_bytes,
        "ms": round(seconds * 1000, 2),
        "app": app,
        "release": release,
        "process": handler.process if handler else None,
        "id": request.id,
        "referer": head.block.referer,
        "user_agent": head.block.user_agent,
    }
    return msgspec.json.encode(line).decode() + "\n"


def _safe(text: str) -> str:
    if text.isalnum() or not _UNSAFE.search(text):
        return text
    return _UNSAFE.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
