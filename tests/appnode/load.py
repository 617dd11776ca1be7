"""Clients that ask without a pause, and what must be true of their answers."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections import Counter

from tests.frontend.rig import until


class Load:
    """Clients that ask without a pause; every POST has an id of its own."""

    def __init__(
        self,
        port: int,
        *,
        threads: int = 6,
        posts: bool = True,
        pause_s: float = 0.01,
        path: str = "/echo",
    ):
        self._port = port
        self._path = path
        self._posts = posts
        self._pause_s = pause_s
        self._ids = itertools.count()
        self._stop = threading.Event()
        self.results: list[tuple[str, int, object]] = []
        self.slowest_s = 0.0
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=40)
        while not self._stop.is_set():
            number = next(self._ids)
            method = "POST" if self._posts and number % 3 == 0 else "GET"
            began = time.monotonic()
            try:
                connection.request(
                    method, f"{self._path}?id={number}", b"x" if method == "POST" else None
                )
                response = connection.getresponse()
                response.read()
                status: object = response.status
            except (OSError, http.client.HTTPException) as exc:
                status = repr(exc)
                connection.close()  # the next request opens it again
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.results.append((method, number, status))
            time.sleep(self._pause_s)
        connection.close()

    def wait(self, more: int) -> None:
        """Until so many more requests were answered."""
        target = len(self.results) + more
        until(lambda: len(self.results) >= target, f"{more} answers", 40)

    def check(self, logs: list[str]) -> Counter[object]:
        """Every GET was answered; no POST ran twice, and each that was answered 200 ran."""
        lost = [result for result in self.results if result[0] == "GET" and result[2] != 200]
        assert not lost, lost[:10]
        odd = [r for r in self.results if r[0] == "POST" and r[2] not in (200, 502)]
        assert not odd, odd[:10]
        ran = Counter(line for line in logs if line.startswith(f"POST {self._path}?"))
        assert not [line for line, count in ran.items() if count > 1]
        for method, number, status in self.results:
            if method == "POST" and status == 200:
                assert f"POST {self._path}?id={number}" in ran
        return Counter(status for method, _, status in self.results if method == "POST")
