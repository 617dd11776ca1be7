"""The link as handlers and clients meet it: a real frontend, real sockets."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from frontend.link import INLINE, WINDOW, Kind
from frontend.mongrel2 import Request
from tests.frontend.rig import Frontend, Handler, ok, read_all, read_response, route, until

pytestmark = pytest.mark.slow

Start = Callable[..., Frontend]
Serve = Callable[..., Handler]


def silent(handler: Handler, request: Request) -> None:
    """An app that takes the request and says nothing."""


class Visitor(threading.Thread):
    """One request in the background."""

    def __init__(self, frontend: Frontend, *args: Any, **kwargs: Any) -> None:
        super().__init__(daemon=True)
        self._ask = lambda: frontend.get(*args, **kwargs)
        self.answer: tuple[int, bytes] = (0, b"")
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._ask()
        except (OSError, http.client.HTTPException) as exc:
            self.answer = (0, repr(exc).encode())

    def result(self) -> tuple[int, bytes]:
        self.join(15)
        assert not self.is_alive()
        return self.answer


def test_request_reaches_the_handler_whole_and_its_reply_the_client(
    start: Start, serve: Serve
) -> None:
    frontend = start()
    handler = serve(frontend)
    assert frontend.get("/a/b?c=%20d", "POST", b"hello", X_Test="1") == (200, b"web.1")
    request = handler.requests[0]
    assert (request.path, request.body) == ("/a/b", b"hello")
    wanted = {
        "METHOD": "POST", "URI": "/a/b?c=%20d", "QUERY": "c=%20d", "PATH": "/a/b", "PATTERN": "/",
        "VERSION": "HTTP/1.1", "URL_SCHEME": "http", "REMOTE_ADDR": "127.0.0.1", "x-test": "1",
        "x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "http", "content-length": "5",
    }  # fmt: skip
    assert wanted.items() <= request.headers.items()


def test_unknown_host_is_404_and_nothing_reaches_a_handler(start: Start, serve: Serve) -> None:
    frontend = start(route(host="shop.example"))
    handler = serve(frontend)
    assert frontend.get("/", Host="other.example")[0] == 404
    assert frontend.get("/", Host="SHOP.example.:80")[0] == 200
    assert len(handler.requests) == 1


def test_request_waits_for_a_handler_and_is_answered_by_it(start: Start, serve: Serve) -> None:
    frontend = start()
    visitor = Visitor(frontend)
    until(lambda: frontend.status()["held"] == 1, "request held")
    serve(frontend)
    assert visitor.result() == (200, b"web.1")


def test_request_that_waited_too_long_gets_503_with_retry_after(start: Start) -> None:
    frontend = start(timeouts={"hold_s": 0.3})
    answer = frontend.raw(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: " in answer


def test_hold_is_bounded_in_number(start: Start) -> None:
    frontend = start(limits={"held_requests": 2})
    visitors = [Visitor(frontend, timeout=3) for _ in range(2)]
    until(lambda: frontend.status()["held"] > 0, "requests held")
    until(lambda: frontend.get()[0] == 503, "no room")
    del visitors


def test_held_request_of_a_client_that_left_is_never_delivered(start: Start, serve: Serve) -> None:
    frontend = start()
    with frontend.connect() as sock:
        sock.sendall(b"GET /ghost HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: frontend.status()["held"] == 1, "request held")
    until(lambda: frontend.status()["held"] == 0, "request dropped")
    handler = serve(frontend)
    assert frontend.get("/real")[0] == 200
    assert [request.path for request in handler.requests] == ["/real"]


def test_client_that_leaves_cancels_its_request(start: Start, serve: Serve) -> None:
    frontend = start()
    handler = serve(frontend, silent)
    with frontend.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: handler.requests, "request")
    until(lambda: handler.cancelled == [handler.requests[0].id], "cancel")


def test_handler_with_the_fewest_requests_is_chosen(start: Start, serve: Serve) -> None:
    frontend = start()
    slow = serve(frontend, silent, process="web.1")
    Visitor(frontend, timeout=20)
    until(lambda: slow.requests, "the slow one is busy")
    quick = serve(frontend, process="web.2")
    frontend.wait_handlers(2)
    for _ in range(10):
        assert frontend.get() == (200, b"web.2")
    assert (len(slow.requests), len(quick.requests)) == (1, 10)


def test_handler_gets_no_more_than_its_capacity(start: Start, serve: Serve) -> None:
    frontend = start()
    handler = serve(frontend, silent, capacity=2)
    visitors = [Visitor(frontend) for _ in range(5)]
    until(lambda: frontend.status()["held"] == 3, "three wait")
    assert len(handler.requests) == 2
    handler.later(Kind.CAPACITY, 3)
    until(lambda: len(handler.requests) == 3, "one more")
    served: set[int] = set()
    while len(served) < 5:
        for request in list(handler.requests):
            if request.id not in served:
                served.add(request.id)
                handler.reply_later(request.id, ok(b"x"))
        time.sleep(0.01)
    assert [visitor.result()[0] for visitor in visitors] == [200] * 5


def test_get_of_a_vanished_handler_is_given_to_another_and_a_post_is_not(
    start: Start, serve: Serve
) -> None:
    frontend = start()
    first = serve(frontend, silent, process="web.1")
    visitors = {method: Visitor(frontend, "/", method) for method in ("GET", "PUT", "POST")}
    until(lambda: len(first.requests) == 3, "all with the first")
    second = serve(frontend, process="web.2")
    first.stop()
    answers = {method: visitor.result()[0] for method, visitor in visitors.items()}
    assert answers == {"GET": 200, "PUT": 200, "POST": 502}
    assert sorted(request.header("METHOD") or "" for request in second.requests) == ["GET", "PUT"]


def test_silent_handler_is_taken_for_dead(start: Start, serve: Serve) -> None:
    frontend = start()
    mute = serve(frontend, silent, process="web.1", beats=False)
    visitor = Visitor(frontend)
    until(lambda: mute.requests, "with the mute one")
    serve(frontend, process="web.2")
    assert visitor.result() == (200, b"web.2")
    frontend.wait_handlers(1)


def test_refused_post_goes_to_another_handler(start: Start, serve: Serve) -> None:
    def refuse(handler: Handler, request: Request) -> None:
        handler.say(Kind.REFUSE, request.id)

    frontend = start()
    serve(frontend, refuse, process="web.1")
    visitor = Visitor(frontend, "/", "POST", b"money")
    serve(frontend, process="web.2")
    assert visitor.result() == (200, b"web.2")


def test_handler_that_refuses_everything_is_not_asked_all_the_time(
    start: Start, serve: Serve
) -> None:
    frontend = start(timeouts={"hold_s": 1.5})
    handler = serve(frontend, lambda h, r: h.say(Kind.REFUSE, r.id))
    assert frontend.get("/", "POST", b"x")[0] == 503
    assert 1 <= len(handler.requests) <= 4  # once for each of its beats


def test_put_of_which_more_was_sent_on_is_not_repeated(start: Start, serve: Serve) -> None:
    frontend = start()
    first = serve(frontend, silent, process="web.1")
    visitor = Visitor(frontend, "/", "PUT", bytes(2 * INLINE))
    until(lambda: first.requests, "request")
    first.later(Kind.GRANT, first.requests[0].id, 1000)
    until(lambda: len(first.bodies[first.requests[0].id]) > INLINE, "more of the body")
    second = serve(frontend, process="web.2")
    first.stop()
    assert visitor.result()[0] == 502
    assert not second.requests


def test_put_of_which_only_the_first_part_was_sent_is_repeated(start: Start, serve: Serve) -> None:
    frontend = start()
    first = serve(frontend, silent, process="web.1")
    body = os.urandom(2 * INLINE)
    visitor = Visitor(frontend, "/", "PUT", body)
    until(lambda: first.requests, "request")
    second = serve(frontend, silent, process="web.2")
    first.stop()
    until(lambda: second.requests, "repeated")
    number = second.requests[0].id
    second.later(Kind.GRANT, number, len(body))
    until(lambda: number in second.ended, "whole body")
    assert second.bodies[number] == body
    second.reply_later(number, ok(b"stored"))
    assert visitor.result() == (200, b"stored")


def test_failed_get_is_repeated_and_a_failed_post_is_502(start: Start, serve: Serve) -> None:
    def fail(handler: Handler, request: Request) -> None:
        handler.say(Kind.FAIL, request.id, 502)

    frontend = start()
    failing = serve(frontend, fail, process="web.1")
    assert frontend.get("/", "POST", b"x")[0] == 502
    assert len(failing.requests) == 1
    assert frontend.get("/")[0] == 502
    assert len(failing.requests) == 1 + 3  # all its attempts
    serve(frontend, process="web.2")
    assert frontend.get("/") == (200, b"web.2")


def test_slow_app_is_504(start: Start, serve: Serve) -> None:
    frontend = start(timeouts={"first_byte_s": 0.3})
    handler = serve(frontend, silent)
    assert frontend.get()[0] == 504
    until(lambda: handler.cancelled, "cancel")
    failing = serve(frontend, lambda h, r: h.say(Kind.FAIL, r.id, 504), process="web.2")
    handler.later(Kind.GOODBYE)
    until(lambda: handler.said_farewell, "farewell")
    assert frontend.get()[0] == 504
    assert len(failing.requests) == 1


def test_goodbye_ends_new_requests_and_those_sent_are_answered(start: Start, serve: Serve) -> None:
    frontend = start()
    leaving = serve(frontend, silent, process="web.1")
    visitor = Visitor(frontend)
    until(lambda: leaving.requests, "request")
    leaving.later(Kind.GOODBYE)
    until(lambda: leaving.said_farewell, "farewell")
    serve(frontend, process="web.2")
    assert [frontend.get() for _ in range(5)] == [(200, b"web.2")] * 5
    leaving.reply_later(leaving.requests[0].id, ok(b"late"))
    assert visitor.result() == (200, b"late")


def test_only_the_release_that_the_table_names_is_served(start: Start, serve: Serve) -> None:
    frontend = start(route(release=1))
    serve(frontend, release=1, process="old")
    new = serve(frontend, release=2, process="new")
    frontend.wait_handlers(1, release=2)  # standby: counted, not served
    assert [frontend.get() for _ in range(4)] == [(200, b"old")] * 4
    assert not new.requests
    frontend.reroute(route(release=2))
    assert [frontend.get() for _ in range(4)] == [(200, b"new")] * 4


def test_held_request_goes_to_the_release_that_a_new_table_names(
    start: Start, serve: Serve
) -> None:
    frontend = start(route(release=1))
    serve(frontend, release=2, process="new")
    visitor = Visitor(frontend)
    until(lambda: frontend.status()["held"] == 1, "held for v1")
    frontend.route(route(release=2))
    assert visitor.result() == (200, b"new")


def test_hello_with_a_wrong_token_is_rejected(start: Start, serve: Serve) -> None:
    frontend = start(route(token="s3cret"))
    bad = serve(frontend, token="wrong")
    assert bad.rejected == ["the token is not this release's"]
    good = serve(frontend, token="s3cret", process="web.2")
    assert frontend.get() == (200, b"web.2")
    assert good.welcome["frontend"] == "front1"
    assert not bad.requests


def test_standby_with_the_wrong_token_is_rejected_when_the_table_names_its_release(
    start: Start, serve: Serve
) -> None:
    frontend = start(route(release=1))
    liar = serve(frontend, release=2, token="wrong")
    frontend.reroute(route(release=2, token="s3cret"))
    until(lambda: liar.rejected, "rejected")
    assert frontend.handlers(release=2) == 0


def test_reply_counts_only_from_the_handler_that_has_the_request(
    start: Start, serve: Serve
) -> None:
    frontend = start()
    victim = serve(frontend, silent, process="web.1", capacity=1)
    visitor = Visitor(frontend)
    until(lambda: victim.requests, "request")
    thief = serve(frontend, process="web.2")
    number = victim.requests[0].id
    thief.reply_later(number, ok(b"PWNED"))
    assert frontend.get() == (200, b"web.2")
    victim.reply_later(number, ok(b"right"))
    assert visitor.result() == (200, b"right")


def test_large_body_streams_within_its_grants(start: Start, serve: Serve) -> None:
    frontend = start()
    handler = serve(frontend, silent)
    body = os.urandom(3 * 2**20)
    visitor = Visitor(frontend, "/", "POST", body)
    until(lambda: handler.requests, "request")
    number = handler.requests[0].id
    assert len(handler.bodies[number]) == INLINE
    granted = INLINE
    while number not in handler.ended:
        handler.later(Kind.GRANT, number, 500_000)
        granted = min(granted + 500_000, len(body))
        until(lambda size=granted: len(handler.bodies[number]) >= size, "what was granted")
        assert len(handler.bodies[number]) == granted
    assert handler.bodies[number] == body
    handler.reply_later(number, ok(b"thanks"))
    assert visitor.result() == (200, b"thanks")


def test_client_is_not_read_while_the_handler_grants_nothing(start: Start, serve: Serve) -> None:
    frontend = start()
    serve(frontend, silent)
    with frontend.connect(timeout=1) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 50_000_000:
                sent += sock.send(bytes(65536))
        assert sent < 20_000_000


def test_reply_is_credited_as_the_client_reads(start: Start, serve: Serve) -> None:
    frontend = start()
    handler = serve(frontend, silent)
    size = 40 * 2**20
    with frontend.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: handler.requests, "request")
        number = handler.requests[0].id
        handler.reply_later(
            number, f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode(), end=False
        )
        piece = bytes(65536)
        sent, stalled = 0, False
        while not stalled:  # the client does not read: the credit must run dry
            if WINDOW + handler.credits.get(number, 0) - sent >= len(piece):
                handler.reply_later(number, piece, end=False)
                sent += len(piece)
            else:
                before = handler.credits.get(number, 0)
                time.sleep(0.5)
                stalled = handler.credits.get(number, 0) == before
        assert sent < size // 2
        received = 0
        while received < sent:
            received += len(sock.recv(2**20))
        until(lambda: handler.credits[number] >= sent - WINDOW, "credit again")


def test_chunked_bodies_pass_both_ways(start: Start, serve: Serve) -> None:
    def echo(handler: Handler, request: Request) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        handler.reply(request.id, head, end=False)
        handler.reply(request.id, b"5\r\nhello\r\n", end=False)
        handler.reply(request.id, b"%x\r\n%b\r\n0\r\n\r\n" % (len(request.body), request.body))

    frontend = start()
    handler = serve(frontend, echo)
    connection = http.client.HTTPConnection("127.0.0.1", frontend.port, timeout=5)
    for _ in range(2):  # keep-alive
        connection.request("POST", "/", iter([b"ab", b"cd"]), encode_chunked=True)
        assert connection.getresponse().read() == b"helloabcd"
    connection.close()
    assert handler.requests[0].header("transfer-encoding") is None


def test_unframed_reply_is_framed_for_the_client(start: Start, serve: Serve) -> None:
    def talk(handler: Handler, request: Request) -> None:
        handler.reply(request.id, b"HTTP/1.1 200 OK\r\n\r\n", end=False)
        handler.reply(request.id, b"one ", end=False)
        handler.reply(request.id, b"two", end=True)

    frontend = start()
    serve(frontend, talk)
    answer = frontend.raw(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n")
    answer = frontend.raw(b"GET / HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\none two")
    assert b"chunked" not in answer


def test_pipelined_requests_are_answered_in_order(start: Start, serve: Serve) -> None:
    def by_path(handler: Handler, request: Request) -> bytes:
        return ok(request.path.encode())

    frontend = start()
    serve(frontend, by_path)
    data = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(20))
    with frontend.connect() as sock:
        sock.sendall(data)
        rest = b""
        for n in range(20):
            _, body, rest = read_response(sock, rest)
            assert body == b"/%d" % n


def test_answer_to_head_has_no_body_even_when_the_app_sends_one(start: Start, serve: Serve) -> None:
    frontend = start()
    serve(frontend)
    with frontend.connect() as sock:
        sock.sendall(
            b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        head, _, rest = read_all(sock).partition(b"\r\n\r\n")
    assert b"Content-Length: 5" in head
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")


def test_options_of_the_server_itself_are_answered_here(start: Start, serve: Serve) -> None:
    frontend = start()
    handler = serve(frontend)
    with frontend.connect() as sock:
        sock.sendall(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        head, body, rest = read_response(sock)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nAllow: GET, " in head
        assert body == b""
        assert read_response(sock, rest)[1] == b"web.1"
    assert len(handler.requests) == 1


def test_expected_continue_is_said_before_the_body(start: Start, serve: Serve) -> None:
    frontend = start()
    handler = serve(frontend)
    with frontend.connect() as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hi")
        assert read_response(sock)[1] == b"web.1"
    assert handler.requests[0].body == b"hi"
    assert handler.requests[0].header("expect") is None


def test_upgraded_connection_is_a_tunnel(start: Start, serve: Serve) -> None:
    def upgrade(handler: Handler, request: Request) -> None:
        assert request.header("upgrade") == "websocket"
        head = (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        )
        handler.reply(request.id, head + b"welcome", end=False)
        handler.say(Kind.GRANT, request.id, 1000)

    frontend = start()
    handler = serve(frontend, upgrade)
    handler.on_body = lambda number, data: handler.reply(number, data.upper(), end=data == b"bye")
    with frontend.connect() as sock:
        sock.sendall(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly"
        )
        head, _, rest = sock.recv(1000).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        while rest != b"welcomeEARLY":
            rest += sock.recv(1000)
        sock.sendall(b"more")
        assert sock.recv(1000) == b"MORE"
        sock.sendall(b"bye")
        assert read_all(sock) == b"BYE"


def test_garbage_from_a_handler_is_502_and_stalls_nobody(start: Start, serve: Serve) -> None:
    replies = {
        "/none": b"hello",
        "/crlf": b"HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
        "/two": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "/both": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na",
        "/101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        "/empty": b"",
    }
    frontend = start()
    serve(frontend, lambda _, request: replies.get(request.path, ok(b"good")))
    began = time.monotonic()
    for path in replies:
        assert frontend.get(path)[0] == 502, path
        assert frontend.get("/fine") == (200, b"good")
    assert time.monotonic() - began < 2


def test_reply_longer_than_its_length_never_becomes_the_next_answer(
    start: Start, serve: Serve
) -> None:
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"
    frontend = start()
    serve(frontend, lambda *_: evil)
    with frontend.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_all(sock).endswith(b"\r\n\r\nok")


def test_reply_that_breaks_off_is_not_taken_for_a_whole_one(start: Start, serve: Serve) -> None:
    def half(handler: Handler, request: Request) -> None:
        handler.reply(request.id, b"HTTP/1.1 200 OK\r\n\r\nhalf of", end=False)
        handler.say(Kind.FAIL, request.id, 502)

    frontend = start()
    serve(frontend, half)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        frontend.get()


def test_term_finishes_what_is_in_flight_and_says_farewell(start: Start, serve: Serve) -> None:
    frontend = start()
    handler = serve(frontend, silent)
    visitor = Visitor(frontend)
    until(lambda: handler.requests, "request")
    port = frontend.port
    assert frontend.process is not None
    frontend.process.terminate()

    def is_closed() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            return True
        return False

    until(is_closed, "no new connections")
    handler.reply_later(handler.requests[0].id, ok(b"last"))
    assert visitor.result() == (200, b"last")
    assert frontend.process.wait(5) == 0
    until(lambda: handler.said_farewell, "farewell")


def test_restart_with_the_same_socket_refuses_no_connection(start: Start, serve: Serve) -> None:
    frontend = start()
    frontend.stop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        os.set_inheritable(listening.fileno(), True)

        def inherit() -> None:
            os.dup2(listening.fileno(), 3)
            os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))

        def start_again() -> None:
            frontend.start(close_fds=False, preexec_fn=inherit)
            assert frontend.port == port

        start_again()
        serve(frontend)
        assert frontend.get() == (200, b"web.1")
        frontend.stop()
        with socket.create_connection(("127.0.0.1", port)) as sock:  # nobody is there to accept
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            sock.settimeout(10)
            start_again()
            serve(frontend)
            assert read_response(sock)[1] == b"web.1"


def test_handler_of_a_frontend_that_restarted_says_hello_again(start: Start, serve: Serve) -> None:
    frontend = start()
    link = frontend.link
    handler = serve(frontend)
    frontend.stop(9)
    frontend.config["link"] = link
    (frontend.folder / "frontend.yml").write_text(yaml.safe_dump(frontend.config))
    frontend.start()
    assert frontend.get() == (200, b"web.1")
    assert handler.rejected
