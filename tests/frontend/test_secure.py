"""CURVE on the link and towards the master, TLS towards clients."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
import zmq

from bareku import curve
from bareku.curve import Keys
from frontend.link import END, Hello, Kind, encode_head
from frontend.mongrel2 import decode_request, encode_reply
from tests.frontend.rig import Frontend, Handler, ok, read_all, read_response, route, until

pytestmark = pytest.mark.slow

Start = Callable[..., Frontend]
Serve = Callable[..., Handler]


def test_handler_with_a_known_key_serves_and_another_gets_no_answer(
    start: Start, tmp_path: Path
) -> None:
    server, known, stranger = (curve.make(tmp_path / name) for name in ("front", "node", "other"))
    frontend = start(curve_key=str(tmp_path / "front"), link_curve={"node1": known.public})
    context: zmq.Context[Any] = zmq.Context()

    def dial(keys: Keys) -> Any:
        sock = context.socket(zmq.DEALER)
        Keys(keys.public, keys.secret, server.public).apply(sock)
        sock.connect(frontend.link)
        hello = msgspec.json.encode(Hello("shop", 1, "web.1", "node1", 5))
        sock.send_multipart([encode_head(Kind.HELLO, 1), hello])
        return sock

    try:
        good, bad = dial(known), dial(stranger)
        assert good.poll(5000)
        head, payload = good.recv_multipart()
        assert head[:1] == Kind.WELCOME
        ident = json.loads(payload)["ident"].encode()
        assert not bad.poll(300)
        frontend.wait_handlers(1)
        answers: list[tuple[int, bytes]] = []
        visitor = threading.Thread(target=lambda: answers.append(frontend.get("/", "POST", b"hi")))
        visitor.start()
        head, payload = good.recv_multipart()
        request = decode_request(payload)
        assert request.body == b"hi"
        reply = encode_reply(ident, [request.id], ok(b"secret"))
        good.send_multipart([encode_head(Kind.REPLY, 1, END), reply])
        visitor.join(5)
        assert answers == [(200, b"secret")]
        good.close()
        frontend.wait_handlers(0)  # by its silence
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize("extra", [{"link": "tcp://0.0.0.0:0"}, {"mongrel2": "0.0.0.0"}])
def test_no_door_leaves_the_machine_in_plain_text(tmp_path: Path, extra: dict[str, Any]) -> None:
    config: dict[str, Any] = {
        "listen": "127.0.0.1:0", "link": "tcp://127.0.0.1:0", "run": str(tmp_path / "run"),
        "routes": str(tmp_path / "routes.json"), **extra,
    }  # fmt: skip
    if "mongrel2" in extra:
        end = "tcp://0.0.0.0:0"
        config["mongrel2"] = [{"app": "shop", "send_spec": end, "recv_spec": end}]
    (tmp_path / "frontend.yml").write_text(yaml.safe_dump(config))
    argv = [sys.executable, "-m", "frontend.server", "--config", str(tmp_path / "frontend.yml")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "leaves this machine and no CURVE keys are configured" in done.stderr


def test_table_comes_from_a_master_with_curve(start: Start, tmp_path: Path) -> None:
    own, master = curve.make(tmp_path / "own"), curve.make(tmp_path / "master")
    context: zmq.Context[Any] = zmq.Context()
    try:
        pub = context.socket(zmq.XPUB)
        master.apply(pub)
        port = pub.bind_to_random_port("tcp://127.0.0.1")
        frontend = start(
            curve_key=str(tmp_path / "own"), curve_master=master.public,
            master_updates=f"tcp://127.0.0.1:{port}",
        )  # fmt: skip
        until(lambda: pub.poll(1000) and pub.recv() == b"\x01f/front1/", "subscription")
        body = json.dumps(
            {"p": 1, "frontend": "front1", "epoch": 5, "version": 9, "routes": [route()]}
        ).encode()
        header = {"p": 1, "t": "routes", "epoch": 5, "version": 9,
                  "sha256": hashlib.sha256(body).hexdigest()}  # fmt: skip
        pub.send_multipart([b"f/front1/", json.dumps(header).encode(), body])
        until(lambda: frontend.status()["have"] == 9, "table used")
        assert own.public != master.public
    finally:
        context.destroy(linger=0)


def certificate(folder: Path, file: str, name: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
         "-keyout", str(folder / f"{file}.key"), "-out", str(folder / f"{file}.crt")],
        check=True, capture_output=True,
    )  # fmt: skip


def test_tls_chooses_the_certificate_by_name_and_tells_the_scheme(
    start: Start, serve: Serve, tmp_path: Path
) -> None:
    folder = tmp_path / "certs"
    folder.mkdir()
    certificate(folder, "default", "default.example")
    certificate(folder, "shop.example", "shop.example")
    certificate(folder, "_.wild.example", "*.wild.example")
    frontend = start(tls={"listen": "127.0.0.1:0", "certificates": str(folder)})
    handler = serve(frontend)
    port = int(frontend.status()["listen"][1].rpartition(":")[2])

    def visit(name: str, file: str) -> bytes:
        context = ssl.create_default_context(cafile=str(folder / f"{file}.crt"))
        context.check_hostname = file != "default"
        with (
            socket.create_connection(("127.0.0.1", port), 5) as raw,
            context.wrap_socket(raw, server_hostname=name) as sock,
        ):
            sock.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            return read_response(sock)[1]

    assert visit("shop.example", "shop.example") == b"web.1"
    assert visit("a.wild.example", "_.wild.example") == b"web.1"
    assert visit("else.example", "default") == b"web.1"
    assert handler.requests[0].header("URL_SCHEME") == "https"
    assert handler.requests[0].header("x-forwarded-proto") == "https"
    certificate(folder, "shop.example", "shop.example")  # renewed while running
    assert visit("shop.example", "shop.example") == b"web.1"
    with socket.create_connection(("127.0.0.1", frontend.port), 5) as raw:  # the other way round
        context = ssl.create_default_context()
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(raw, server_hostname="shop.example")
    with socket.create_connection(("127.0.0.1", port), 5) as raw:  # plain HTTP on the TLS port
        raw.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert not read_all(raw).startswith(b"HTTP/1.1 2")
