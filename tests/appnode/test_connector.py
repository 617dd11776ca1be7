"""The connector against a frontend's side of the link and a real app."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import Any

import pytest

from frontend.link import END, WINDOW, Kind
from tests.appnode.conftest import wait_for


def split(reply: bytes) -> tuple[bytes, bytes]:
    head, _, body = reply.partition(b"\r\n\r\n")
    return head, body


def raw(data: bytes, *, close: bool = False) -> str:
    return f"/raw?b={base64.urlsafe_b64encode(data).decode()}" + ("&close=1" if close else "")


def test_hello_says_who_the_handler_is(shop: Any) -> None:
    assert shop.hellos[shop.handler()] == {
        "p": 1,
        "app": "shop",
        "release": 1,
        "process": "web.1",
        "node": "web1",
        "capacity": 200,
        "token": "s3cret",
    }


def test_a_request_is_answered_by_the_app(shop: Any) -> None:
    head, body = split(shop.get("/"))
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b"Hello, world\n"


def test_hop_by_hop_headers_stay_and_the_others_pass_in_order(shop: Any) -> None:
    head, _ = split(shop.get("/"))
    names = re.findall(rb"\n([A-Za-z-]+):", head)
    assert names == [b"Content-Type", b"Content-Length", b"Set-Cookie", b"Set-Cookie"]


def test_the_apps_request_lacks_the_clients_hop_by_hop_headers(shop: Any) -> None:
    headers = {
        "connection": "close, X-Mine",
        "x-mine": "1",
        "te": "trailers",
        "expect": "100-continue",
        "accept": ["a", "b"],
        "x-forwarded-for": "192.0.2.7",
    }
    _, body = split(shop.get("/head", headers=headers))
    got = json.loads(body)["headers"]
    assert got == {"host": "shop.localhost", "accept": "b", "x-forwarded-for": "192.0.2.7"}


def test_head_204_and_304_have_no_body(shop: Any) -> None:
    head, body = split(shop.get("/", method="HEAD"))
    assert b"Content-Length: 13" in head
    assert body == b""
    head, body = split(shop.get("/empty"))
    assert (head, body) == (b"HTTP/1.1 204 No Content", b"")
    reply = shop.get(raw(b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 7\r\n\r\n"))
    assert split(reply) == (
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 7",
        b"",
    )


def test_chunked_reply_stays_chunked_without_extensions_and_trailers(shop: Any) -> None:
    head, body = split(shop.get("/chunked?n=3&s=0.01"))
    assert head == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"
    assert b"".join(re.findall(rb"piece\d\d", body)) == b"piece00piece01piece02"
    assert body.endswith(b"0\r\n\r\n")
    assert b"X-Sum" not in body


def test_client_of_http_1_0_gets_no_chunks(shop: Any) -> None:
    head, body = split(shop.get("/chunked?n=3&s=0.01", version="HTTP/1.0"))
    assert (head, body) == (b"HTTP/1.1 200 OK", b"piece00piece01piece02")


def test_reply_that_ends_with_the_connection_is_framed(shop: Any) -> None:
    head, body = split(shop.get("/until-close"))
    assert head == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"
    assert body == b"c\r\nall there is\r\n0\r\n\r\n"


def test_interim_responses_are_left_out(shop: Any) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    reply = shop.get(raw(early * 2 + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
    assert split(reply) == (b"HTTP/1.1 200 OK\r\nContent-Length: 2", b"ok")


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nA: b\rX: c\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000,
    ],
)
def test_what_is_no_plain_response_is_a_502(shop: Any, response: bytes) -> None:
    number = shop.request(raw(response))
    outcome, status = shop.outcome(number)
    if outcome == "reply":  # the head was right, the body was not
        outcome, status = shop.outcome(number)
    assert (outcome, status) == ("fail", 502)


def test_bytes_after_a_response_reach_nobody(shop: Any) -> None:
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
    for _ in range(3):
        assert split(shop.get(raw(good + evil)))[1] == b"good"
        assert split(shop.get("/"))[1] == b"Hello, world\n"


def test_half_a_response_is_broken_off(shop: Any) -> None:
    number = shop.request("/half")
    assert shop.outcome(number)[0] == "reply"
    assert shop.outcome(number) == ("fail", 502)


@pytest.mark.slow
def test_app_that_closes_without_a_byte_is_a_502_and_one_that_is_slow_a_504(shop: Any) -> None:
    began = time.monotonic()
    slow = shop.request("/sleep?s=3")
    assert shop.outcome(shop.request("/vanish")) == ("fail", 502)
    assert shop.outcome(slow) == ("fail", 504)
    assert 0.9 < time.monotonic() - began < 2.5


def test_small_bodies_reach_the_app(shop: Any) -> None:
    for method in ("POST", "PUT", "DELETE"):
        body = bytes(range(256)) * 8
        headers = {"content-length": str(len(body))}
        assert split(shop.get("/echo", method=method, headers=headers, body=body))[1] == body


def test_upload_of_unknown_length_is_chunked_and_granted_in_windows(shop: Any) -> None:
    body = bytes(range(256)) * 8192  # 2 MiB: eight windows
    number = shop.request("/echo", method="POST", body=body[:1000], more=True)
    at, granted = 1000, 0
    while at < len(body):
        whom, size = shop.wait(Kind.GRANT)[1]
        granted += size * (whom == number)
        while granted and at < len(body):
            piece = body[at : at + min(granted, 65536)]
            at += len(piece)
            granted -= len(piece)
            flags = END if at == len(body) else 0
            shop.send(Kind.BODY, 0, number, flags, payload=piece)
    assert split(shop.reply(number))[1] == body


@pytest.mark.slow
def test_upload_is_not_granted_faster_than_the_app_reads(shop: Any) -> None:
    size = 64 * 2**20
    headers = {"content-length": str(size)}
    number = shop.request("/drip?s=0.02", method="POST", headers=headers, more=True)
    sent = granted = 0
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        shop.pump(0.01)
        for message in [m for m in shop.seen if m[0] == Kind.GRANT and m[2][0] == number]:
            shop.seen.remove(message)
            granted += message[2][1]
        while granted - sent >= 65536:
            shop.send(Kind.BODY, 0, number, 0, payload=bytes(65536))
            sent += 65536
    # the app has read some 0.5 MiB; the rest is in the sockets' buffers
    assert WINDOW <= granted < 16 * 2**20
    shop.send(Kind.CANCEL, 0, number)


def test_more_body_than_granted_is_not_taken(shop: Any) -> None:
    headers = {"content-length": str(10 * WINDOW)}
    number = shop.request("/drip?s=0.5", method="POST", headers=headers, more=True)
    shop.send(Kind.BODY, 0, number, 0, payload=bytes(WINDOW + 1))
    assert shop.outcome(number) == ("fail", 502)


def test_app_may_answer_before_the_upload_ends(shop: Any) -> None:
    headers = {"content-length": "1000000"}
    number = shop.request("/early", method="POST", headers=headers, more=True)
    assert shop.reply(number).startswith(b"HTTP/1.1 413 ")
    assert split(shop.get("/"))[1] == b"Hello, world\n"


def test_reply_waits_for_credit(shop: Any) -> None:
    size = 8 * 2**20
    number = shop.request(f"/big?n={size}")
    got, data = 0, b""
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        shop.pump(0.02)
        for message in [m for m in shop.seen if m[0] == Kind.REPLY]:
            shop.seen.remove(message)
            data += message[3].partition(b", ")[2]
    got = len(data)
    assert got == WINDOW
    shop.send(Kind.CREDIT, 0, number, got)
    rest = shop.reply(number, deadline_s=20)
    assert len(split(data + rest)[1]) == size


def test_cancel_closes_the_apps_connection(shop: Any) -> None:
    number = shop.request("/chunked?n=1000&s=0.01")
    assert shop.outcome(number)[0] == "reply"
    closed = shop.app.log().count("closed")
    shop.send(Kind.CANCEL, 0, number)
    end = time.monotonic() + 5
    while shop.app.log().count("closed") == closed:
        assert time.monotonic() < end
        shop.pump(0.02)


def test_upgraded_connection_carries_raw_bytes_both_ways(shop: Any) -> None:
    headers = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-key": "x"}
    number = shop.request("/ws", headers=headers)
    outcome, head = shop.outcome(number)
    assert outcome == "reply"
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" in head
    while (granted := shop.wait(Kind.GRANT)[1])[0] != number:
        pass
    assert granted == (number, WINDOW)
    for text in (b"\x81\x05hello", b"\x00\xff" * 1000):
        shop.send(Kind.BODY, 0, number, 0, payload=text)
        got = b""
        while len(got) < len(text):
            got += shop.outcome(number)[1]
        assert got == text
    shop.send(Kind.BODY, 0, number, END)
    assert shop.outcome(number) == ("end", b"")


def test_stale_connection_is_no_failure(shop: Any) -> None:
    for _ in range(5):
        assert split(shop.get("/stale?s=0"))[1] == b"soon closed"
        assert split(shop.get("/"))[1] == b"Hello, world\n"
        closed = shop.app.log().count("closed")
        assert split(shop.get("/stale?s=0"))[1] == b"soon closed"
        # a close that crosses a POST cannot be told from a death over it; this one is there
        wait_for(lambda closed=closed: shop.app.log().count("closed") > closed)
        body = shop.get("/echo", method="POST", headers={"content-length": "2"}, body=b"hi")
        assert split(body)[1] == b"hi"


def test_post_whose_connection_breaks_is_sent_once(shop: Any) -> None:
    before = shop.app.log().count("POST /vanish")
    shop.get("/")  # an idle connection is there
    headers = {"content-length": "2"}
    number = shop.request("/vanish", method="POST", headers=headers, body=b"hi")
    assert shop.outcome(number) == ("fail", 502)
    assert shop.app.log().count("POST /vanish") == before + 1


def test_connections_are_kept_and_used_again(shop: Any) -> None:
    shop.get("/")
    before = shop.app.log().count("closed")
    for _ in range(50):
        shop.get("/")
    assert shop.app.log().count("closed") == before


@pytest.mark.slow
def test_garbage_is_dropped_and_counted(shop: Any) -> None:
    handler = shop.handler()
    before = shop.connector.status()["frontends"][0]["bad_messages"]
    for frames in ([b"?"], [b"r", b"x"], [b"", b""], [b"x" * 9, b"", b"y"], [b"rABCDE"], []):
        shop.socket.send_multipart([shop.peer, *frames])
    shop.send(Kind.REQUEST, handler, 0, payload=b"not a request")
    shop.send(Kind.BODY, handler, 4711, 0, payload=b"for nobody")
    shop.send(Kind.CREDIT, handler, 4711, 1)
    assert split(shop.get("/"))[1] == b"Hello, world\n"
    end = time.monotonic() + 8
    while shop.connector.status()["frontends"][0]["bad_messages"] < before + 6:
        assert time.monotonic() < end, shop.connector.status()
        shop.pump(0.05)


def test_request_for_an_unknown_handler_is_refused(shop: Any) -> None:
    assert shop.outcome(shop.request("/", handler=999)) == ("refuse", None)
