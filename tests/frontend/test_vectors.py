"""What a real Mongrel2 1.12.2 said, byte for byte, against our pair of sockets.

Each vector is a recorded conversation. Where we differ, the case stands in a table with the
reason and what we answer instead.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from frontend import mongrel2
from tests.frontend.rig import Frontend, route, until

pytestmark = pytest.mark.slow

DATA = Path(__file__).parent / "data" / "mongrel2-vectors.jsonl.gz"
IDENT = "34f9ceee-cd52-4b7f-b197-88bf2f0ec378"
SILENCE_S = 0.08

# parts of Mongrel2 that this frontend does not have, or that need another socket
ABSENT = re.compile(
    r"dir_|proxy_|tls_|chunked_upload|stream_chunked|flash_policy|jsonsocket|xmlsocket|ipv6"
)

# name -> (status, reason): what Mongrel2 passes on and we refuse
REFUSED = {
    "chunked_te_mixed": (501, "an unknown transfer coding leaves the length of the body open"),
    "cl_abc": (400, "a bad length is not zero: the body would become the next request"),
    "cl_and_te": (400, "two framings: request smuggling (RFC 9112 §6.1)"),
    "cl_dup_differ": (400, "two lengths: request smuggling"),
    "cl_neg": (400, "a bad length is not zero"),
    "cl_trailing": (400, "a bad length is not its first digits"),
    "hdr_ctl": (400, "no control bytes in values (RFC 9110 §5.5)"),
    "host_dup": (400, "more than one Host (RFC 9112 §3.2)"),
    "host_missing_11": (400, "Host is required in HTTP/1.1"),
    "relaxed_brace": (400, "{ } ^ have no place in a path; a query may have them"),
    "lf_only": (400, "bare LF is read differently by others"),
    "http12": (505, "505 says why, Mongrel2's 400 does not"),
    "http2_preface": (505, "505 says why, Mongrel2's 400 does not"),
    "connect_authority": (501, "501 says why, Mongrel2's 400 does not"),
}
# name -> reason: what Mongrel2 refuses and we pass on
ACCEPTED = {
    "chunked_nostore": "a small chunked body goes inline, no file is needed",
    "chunked_te_case": "codings are case-insensitive (RFC 9112 §7); Mongrel2 lost the body",
    "query_char_bracket": "PHP's x[]=1, which browsers send as it is",
    "relaxed_bracket": "PHP's x[]=1",
    "header_4096": "32 KiB of head are allowed, in any number of segments",
    "header_5000": "32 KiB of head are allowed, in any number of segments",
    "header_packets_4": "any number of segments",
    "header_packets_5": "any number of segments",
    "header_packets_6": "any number of segments",
    "header_packets_8": "any number of segments",
    "options_star": "answered by the frontend itself (RFC 9110 §9.3.7)",
}
# name -> (header fields that differ, reason)
FIELDS = {
    "hdr_dup7": ({"x-a", "x-dup", "x"}, "no value is dropped after the fifth"),
    "hdr_ws": ({"x-ws", "x-a", "x-b", "x-c"}, "blanks around a value are not the value"),
    "spoof_upload_done": (
        {"x-mongrel2-upload-start", "x-mongrel2-upload-done"},
        "the client's copies of internal fields are dropped",
    ),
    "xff_noclobber": ({"x-forwarded-for"}, "only trusted proxies may say for whom they speak"),
    "header_3000": ({"x-forwarded-for"}, "Mongrel2 forgot it in this recording"),
    "header_3900": ({"x-forwarded-for"}, "Mongrel2 forgot it in this recording"),
    "header_4000": ({"x-forwarded-for"}, "Mongrel2 forgot it in this recording"),
    "get_fragment": ({"FRAGMENT"}, "a fragment is the client's own affair (RFC 9110 §7.1)"),
    "pattern_route": ({"PATTERN"}, "routes are plain prefixes"),
}
# name -> reason; these are played by tests of their own, or have no counterpart
ELSEWHERE = {
    "absolute_uri": "the authority of an absolute target is the host, not the path",
    "cl_huge": "a length of any size is taken for what it says",
    "post_nocl": "the client's rest is refused after the answer, not before",
    "recvident_wrong_uuid": "a pair's prefix is tested with its own ident",
    "ws_frame_before_101": "frames wait for the handshake's answer",
    "pipeline3": "one request at a time, answered in order",
    "reply_2idents": "recorded without the clients' bytes",
    "post_expect100": "no 100 when the body is here already (RFC 9110 §10.1.1)",
    "get_http10_nohost": "without a Host only the route for any host is reached",
}


def vectors() -> list[dict[str, Any]]:
    with gzip.open(DATA, "rt") as file:
        return [json.loads(line) for line in file]


VECTORS = {vector["case"]: vector for vector in vectors()}
NAMES = [name for name in VECTORS if not ABSENT.search(name)]


class Stand:
    """A frontend with a pair for each format, and bare sockets as the handlers."""

    def __init__(self, frontend: Frontend, context: zmq.Context[Any]) -> None:
        self.frontend = frontend
        pairs = {pair["app"]: pair for pair in frontend.status()["mongrel2"]}
        self.pull = {}
        self.push = {}
        for app in ("json", "tnet"):
            self.pull[app] = context.socket(zmq.PULL)
            self.pull[app].connect(pairs[app]["send"])
            self.push[app] = context.socket(zmq.PUB)
            self.push[app].connect(pairs[app]["recv"])
        until(
            lambda: all(pair["ready"] for pair in frontend.status()["mongrel2"]), "handlers ready"
        )

    def request(self, app: str, timeout_s: float = 2.0) -> mongrel2.Request | None:
        """The next request that is not a notice; None when none comes."""
        while self.pull[app].poll(int(timeout_s * 1000)):
            request = mongrel2.decode_request(self.pull[app].recv())
            if request.path != "@*":
                return request
        return None

    def notices(self, app: str) -> list[int]:
        found = []
        while self.pull[app].poll(int(SILENCE_S * 1000)):
            request = mongrel2.decode_request(self.pull[app].recv())
            if request.is_disconnect:
                found.append(request.id)
        return found


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    doors = [
        {
            "app": app, "send_spec": "tcp://127.0.0.1:0", "recv_spec": "tcp://127.0.0.1:0",
            "send_ident": IDENT, "recv_ident": "", "protocol": protocol, "window": 8,
        }
        for app, protocol in (("json", "json"), ("tnet", "tnetstring"))
    ]  # fmt: skip
    frontend = Frontend(
        tmp_path_factory.mktemp("vectors"),
        [route("json"), route("tnet", host="tnet.example")],
        mongrel2=doors,
        request_id="",
        timeouts={"first_byte_s": 3},
    ).start()
    context: zmq.Context[Any] = zmq.Context()
    try:
        yield Stand(frontend, context)
    finally:
        frontend.close()
        context.destroy(linger=0)


def as_app(app: str, data: bytes) -> bytes:
    """The tnetstring pair is reached by its own host."""
    if app == "json":
        return data
    return re.sub(rb"(?i)(\r\nHost:)[^\r\n]*", rb"\1 tnet.example", data, count=0)


def renumbered(reply: bytes, old: int, new: int) -> bytes:
    """A recorded reply with today's connection id, its own mistakes kept."""
    match = re.match(rb"(\S+ )(0*)(\d+)(:)([^,]*)", reply)
    if not match:
        return reply.replace(b"%d" % old, b"%d" % new)
    ids = re.sub(rb"\b%d\b" % old, b"%d" % new, match[5])
    size = int(match[3]) + len(ids) - len(match[5])
    return b"%b%b%d:%b%b" % (match[1], match[2], size, ids, reply[match.end() :])


def drain(sock: socket.socket, wanted: int, timeout_s: float = 2.0) -> bytes:
    """What the client gets: `wanted` bytes and whatever follows at once, or what there is."""
    data = b""
    sock.settimeout(timeout_s)
    try:
        while True:
            piece = sock.recv(65536)
            if not piece:
                return data
            data += piece
            if len(data) >= wanted:
                sock.settimeout(SILENCE_S)
    except (TimeoutError, ConnectionResetError):
        return data


def status_of(data: bytes) -> int:
    return int(data[9:12]) if data else 0


def same_headers(ours: mongrel2.Request, theirs: mongrel2.Request, ignore: set[str]) -> None:
    ignore = ignore | {"x-forwarded-proto", "x-forwarded-port", "forwarded", "x-request-id"}
    ignore |= {"transfer-encoding", "expect", "host"}
    left = {name: value for name, value in ours.headers.items() if name not in ignore}
    right = {name: value for name, value in theirs.headers.items() if name not in ignore}
    assert left == right


def base_name(case: str) -> str:
    return case.partition("_")[2]


@pytest.mark.parametrize("case", [n for n in NAMES if base_name(n) in REFUSED])
def test_what_mongrel2_should_not_have_passed_on_is_refused(case: str, stand: Stand) -> None:
    vector = VECTORS[case]
    app = case[:4]
    status, _ = REFUSED[base_name(case)]
    with stand.frontend.connect() as sock:
        sock.sendall(as_app(app, base64.b64decode(vector["c2s"])))
        assert status_of(drain(sock, 10_000)) == status
    assert stand.request(app, SILENCE_S) is None


def plain(case: str) -> bool:
    name = base_name(case)
    return name not in REFUSED and name not in ELSEWHERE and not name.startswith("ws_")


@pytest.mark.parametrize("case", [n for n in NAMES if plain(n)])
def test_conversation_goes_as_recorded(case: str, stand: Stand) -> None:
    vector = VECTORS[case]
    app = case[:4]
    name = base_name(case)
    sent = base64.b64decode(vector["c2s"])
    expected = base64.b64decode(vector["s2c"])
    recorded = [mongrel2.decode_request(base64.b64decode(item)) for item in vector["req"]]
    recorded = [request for request in recorded if request.path != "@*"]
    replies = [base64.b64decode(item) for item in vector["rep"]]
    with stand.frontend.connect() as sock:
        pieces = [event[1] for event in vector["events"] if event[0] == "c2s"]
        while sent:
            size = pieces.pop(0) if len(pieces) > 1 else len(sent)
            sock.sendall(as_app(app, sent[:size]))
            sent = sent[size:]
        if name in ACCEPTED:
            play_accepted(name, stand, app, sock)
            return
        if not recorded:
            if vector["server_closed"] is not None:
                assert status_of(drain(sock, 10_000)) == status_of(expected)
            assert stand.request(app, SILENCE_S) is None
            return
        play(stand, app, sock, recorded, replies, vector, expected)


def play_accepted(name: str, stand: Stand, app: str, sock: socket.socket) -> None:
    if name != "options_star":
        request = stand.request(app)
        assert request is not None
        reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        stand.push[app].send(mongrel2.encode_reply(IDENT.encode(), [request.id], reply))
        if name.startswith("chunked"):
            assert request.body == b"hello"
    assert status_of(drain(sock, 40)) in (200, 204)


def play(
    stand: Stand, app: str, sock: socket.socket, recorded: list[mongrel2.Request],
    replies: list[bytes], vector: dict[str, Any], expected: bytes,
) -> None:  # fmt: skip
    name = base_name(vector["case"])
    got = b""
    for index, theirs in enumerate(recorded):
        ours = stand.request(app)
        assert ours is not None, stand.frontend.log()
        assert (ours.path, ours.body) == (theirs.path, theirs.body)
        same_headers(ours, theirs, FIELDS.get(name, (set(), ""))[0])
        if name == "client_gone":
            sock.close()
            assert stand.notices(app) == [ours.id]
        mine = replies[index : index + 1] if len(recorded) > 1 else replies
        for reply in mine:
            stand.push[app].send(renumbered(reply, theirs.id, ours.id))
        if name == "client_gone":
            assert stand.notices(app) == [ours.id]  # the late reply's id is unknown
            return
        if index < len(recorded) - 1:
            got += drain(sock, 1)
    got += drain(sock, len(expected) if vector["server_closed"] is None else 1)
    assert without_close(got) == one_reply_each(expected, len(recorded))
    if name == "rep_unknown_id":
        assert 999999 in stand.notices(app)


def without_close(data: bytes) -> bytes:
    """We say `Connection: close` when we close; Mongrel2 leaves it to the handler."""
    return data.replace(b"Connection: close\r\n", b"").replace(b"Connection: keep-alive\r\n", b"")


def one_reply_each(data: bytes, requests: int) -> bytes:
    """A second reply to one request is not passed on: it would answer the next one."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    start = interim if data.startswith(interim) else b""
    replies = re.split(rb"(?=HTTP/1\.1 2)", data.removeprefix(interim))
    return start + b"".join([reply for reply in replies if reply][:requests])


@pytest.mark.parametrize(
    "case", [n for n in NAMES if "_ws_" in n and base_name(n) not in ELSEWHERE]
)
def test_websocket_goes_as_recorded(case: str, stand: Stand) -> None:
    """Event by event: what the client sends, what the handler gets and says, what comes back."""
    vector = VECTORS[case]
    app = case[:4]
    sent = as_app(app, base64.b64decode(vector["c2s"]))
    shift = len(sent) - len(base64.b64decode(vector["c2s"]))
    expected = base64.b64decode(vector["s2c"])
    number, got = 0, b""
    with stand.frontend.connect() as sock:
        for event in vector["events"]:
            if event[0] == "c2s":
                size = event[1] + shift
                shift = 0
                sock.sendall(sent[:size])
                sent = sent[size:]
            elif event[0] == "zmq_req":
                theirs = mongrel2.decode_request(base64.b64decode(vector["req"][event[1]]))
                if theirs.is_disconnect:
                    is_answered = base_name(case) in ("ws_nokey", "ws_version_8")
                    assert is_answered or stand.notices(app) == [number]
                    continue
                ours = stand.request(app)
                assert ours is not None, stand.frontend.log()
                assert (ours.path, ours.body) == (theirs.path, theirs.body)
                same_headers(ours, theirs, set())
                assert number in (0, ours.id)  # one id for the whole connection
                number = ours.id
                old = theirs.id
            elif event[0] == "zmq_rep":
                reply = base64.b64decode(vector["rep"][event[1]])
                stand.push[app].send(renumbered(reply, old, number))
            elif event[0] == "s2c":
                got += drain(sock, event[1])
            elif event[0] == "client_close":
                sock.close()
    assert without_close(got) == without_close(expected)


def test_every_vector_is_played_or_named(stand: Stand) -> None:
    names = {base_name(name) for name in NAMES}
    for table in (REFUSED, ACCEPTED, FIELDS, ELSEWHERE):
        assert table.keys() <= names, table.keys() - names


def test_one_reply_reaches_many_connections(stand: Stand) -> None:
    clients = [stand.frontend.connect() for _ in range(8)]
    numbers = []
    for client in clients:
        client.sendall(b"GET /multi HTTP/1.1\r\nHost: a\r\n\r\n")
        request = stand.request("json")
        assert request is not None
        numbers.append(request.id)
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nall"
    ids = [*numbers, *range(1, 200)]  # more than Mongrel2's 128
    stand.push["json"].send(mongrel2.encode_reply(IDENT.encode(), ids, reply))
    assert [drain(client, len(reply)) for client in clients] == [reply] * 8
    for client in clients:
        client.close()
    stand.notices("json")


def test_pipelined_requests_are_answered_in_order(stand: Stand) -> None:
    with stand.frontend.connect() as sock:
        sock.sendall(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(10)))
        for n in range(10):
            request = stand.request("json")
            assert request is not None
            assert request.path == f"/{n}"
            reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n/%d" % n
            stand.push["json"].send(mongrel2.encode_reply(IDENT.encode(), [request.id], reply))
            assert drain(sock, len(reply)) == reply
