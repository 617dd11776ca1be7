"""What the frontend costs beside Mongrel2, nginx and haproxy, in one run on one machine.

usage: script/bench frontend [--quick] [--json]

CPU µs per request of the front process alone, from /proc, hello over 64 keep-alive connections,
rounds interleaved, medians. Every front has an equal handler or upstream: the two Mongrel2 doors
the same Python handler, nginx and haproxy the same nginx. The whole path is frontend and
connector against nginx in front of the same app.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop
import zmq

from bareku.files import write_json
from frontend.link import END, Hello, Kind, encode_head
from tests.frontend.rig import Frontend, route, until

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, World!"
IDENT = "34f9ceee-cd52-4b7f-b197-88bf2f0ec378"


# the handlers and apps, each a process of its own


def link_handler(endpoint: str) -> None:
    """A DEALER that answers at once."""
    sock = zmq.Context().socket(zmq.DEALER)
    sock.connect(endpoint)
    hello = msgspec.json.encode(Hello("shop", 1, "web.1", "n", 256))
    sock.send_multipart([encode_head(Kind.HELLO, 1), hello])
    reply, beat = encode_head(Kind.REPLY, 1, END), encode_head(Kind.BEAT, 1)
    ident, beat_at = b"", time.monotonic()
    while True:
        if time.monotonic() > beat_at:
            beat_at = time.monotonic() + 0.9
            sock.send_multipart([beat, b""])
        if not sock.poll(500):
            continue
        with contextlib.suppress(zmq.Again):
            while True:
                head, message = sock.recv_multipart(zmq.NOBLOCK)
                if head[:1] == Kind.REQUEST:
                    number = message.split(b" ", 2)[1]
                    answer = b"%b %d:%b, %b" % (ident, len(number), number, ANSWER)
                    sock.send_multipart([reply, answer])
                elif head[:1] == Kind.WELCOME:
                    ident = json.loads(message)["ident"].encode()


def pair_handler(send: str, recv: str) -> None:
    """A classic Mongrel2 handler."""
    context = zmq.Context()
    pull, pub = context.socket(zmq.PULL), context.socket(zmq.PUB)
    pull.connect(send)
    pub.connect(recv)
    while True:
        ident, number, _ = pull.recv().split(b" ", 2)
        pub.send(b"%b %d:%b, %b" % (ident, len(number), number, ANSWER))


class App(asyncio.Protocol):
    """An HTTP app: hello, `/big/N` gives N bytes, a POST is counted."""

    PIECE = bytes(65536)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.left = 0
        self.giving = 0
        self.is_paused = False
        transport.set_write_buffer_limits(262_144)

    def data_received(self, data: bytes) -> None:
        if self.left:
            self.took(len(data))
            return
        end = data.find(b"\r\n\r\n")
        if data.startswith(b"GET /big/"):
            self.giving = int(data[9 : data.index(b" ", 9)])
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self.giving)
            self.give()
        elif data.startswith(b"POST"):
            length = re.search(rb"(?i)content-length: *(\d+)", data)
            self.left = int(length[1]) if length else 0
            self.took(len(data) - end - 4)
        else:
            self.transport.write(ANSWER)

    def took(self, size: int) -> None:
        self.left -= size
        if self.left <= 0:
            self.left = 0
            self.transport.write(ANSWER)

    def give(self) -> None:
        while self.giving and not self.is_paused:
            size = min(self.giving, len(self.PIECE))
            self.giving -= size
            self.transport.write(self.PIECE[:size])

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self.give()


async def app() -> None:
    server = await asyncio.get_running_loop().create_server(App, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


# measuring


def cpu_s(pids: list[int]) -> float:
    """User and system seconds of processes so far."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wrk(url: str, seconds: float, connections: int) -> dict[str, float]:
    """Requests, rate and latency of a run of wrk."""
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--latency", url],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    requests = re.search(r"(\d+) requests in", done)
    if requests is None or "Non-2xx" in done:
        raise SystemExit(f"wrk failed against {url}:\n{done}")
    rate = re.search(r"Requests/sec: *([\d.]+)", done)
    found = {"requests": float(requests[1]), "per_s": float(rate[1]) if rate else 0.0}
    for percent in ("50", "99"):
        value = re.search(rf"^ +{percent}% +([\d.]+)(us|ms|s)", done, re.MULTILINE)
        assert value is not None, done
        found[f"p{percent}_us"] = float(value[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[value[2]]
    return found


class Front:
    """One front: where it listens, and which processes are it."""

    def __init__(self, url: str, pids: list[int]) -> None:
        self.url = url
        self.pids = pids
        self.us: list[float] = []
        self.p99: list[float] = []
        self.single: list[float] = []
        self.per_s: list[float] = []

    def round(self, seconds: float) -> None:
        """One measurement with 64 connections."""
        before = cpu_s(self.pids)
        run = wrk(self.url, seconds, 64)
        self.us.append((cpu_s(self.pids) - before) / run["requests"] * 1e6)
        self.p99.append(run["p99_us"])
        self.per_s.append(run["per_s"])

    def alone(self, seconds: float) -> None:
        """One measurement with one connection."""
        self.single.append(wrk(self.url, seconds, 1)["p50_us"])


class Bench:
    """All processes of the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[Any]] = []
        self.frontends: list[Frontend] = []

    def run(self, *argv: str, **popen: Any) -> subprocess.Popen[Any]:
        process = subprocess.Popen(argv, **{"stderr": subprocess.DEVNULL, **popen})
        self.started.append(process)
        return process

    def me(self, *words: str, **popen: Any) -> subprocess.Popen[Any]:
        return self.run(sys.executable, "-P", __file__, *words, **popen)

    def close(self) -> None:
        for process in reversed(self.started):
            process.terminate()
        for process in self.started:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
        for frontend in self.frontends:
            frontend.close()

    def frontend(self, name: str, **config: Any) -> Frontend:
        routes = [
            route("other", host="www.example.com"), route("other", host="*.example.org"),
            route("shop"), route("other", prefix="/admin"),
        ]  # fmt: skip
        frontend = Frontend(self.folder / name, routes, **config).start()
        self.frontends.append(frontend)
        return frontend

    def door_b(self, name: str = "door_b") -> Front:
        frontend = self.frontend(name)
        self.me("link", frontend.link)
        frontend.wait_handlers(1)
        return _front(frontend)

    def door_a(self) -> Front:
        door = {
            "app": "shop", "send_spec": "tcp://127.0.0.1:0", "recv_spec": "tcp://127.0.0.1:0",
            "protocol": "tnetstring", "window": 64,
        }  # fmt: skip
        frontend = self.frontend("door_a", mongrel2=[door])
        pair = frontend.status()["mongrel2"][0]
        self.me("pair", pair["send"], pair["recv"])
        frontend.wait_handlers(1)
        return _front(frontend)

    def mongrel2(self) -> Front:
        folder = self.folder / "mongrel2"
        for name in ("run", "logs", "tmp"):
            (folder / name).mkdir(parents=True)
        send, recv, port = (free_port() for _ in range(3))
        (folder / "m2.conf").write_text(
            f"h = Handler(send_spec='tcp://127.0.0.1:{send}', send_ident='{IDENT}',\n"
            f"  recv_spec='tcp://127.0.0.1:{recv}', recv_ident='', protocol='tnetstring')\n"
            f'main = Server(uuid="{IDENT}", access_log="/logs/access.log",\n'
            f'  error_log="/logs/error.log", chroot="{folder}", default_host="localhost",\n'
            f'  name="bench", pid_file="/run/mongrel2.pid", port={port},\n'
            '  hosts=[Host(name="localhost", routes={"/": h})])\n'
            'settings = {"server.daemonize": 0}\nservers = [main]\n'
        )
        subprocess.run(
            ["m2sh", "load", "-config", "m2.conf", "-db", "config.sqlite"],
            cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        server = self.run("mongrel2", "config.sqlite", IDENT, cwd=folder, stdout=subprocess.DEVNULL)
        self.me("pair", f"tcp://127.0.0.1:{send}", f"tcp://127.0.0.1:{recv}")
        _wait_port(port)
        time.sleep(0.5)  # a classic handler's PUB needs a moment, and has no way to say so
        return Front(f"http://127.0.0.1:{port}/", [server.pid])

    def nginx(self, name: str, upstream: int | None) -> Front:
        """A proxy in front of `upstream`, or the upstream itself."""
        folder = self.folder / name
        folder.mkdir()
        port = free_port()
        if upstream is None:
            place = 'default_type text/plain; return 200 "Hello, World!";'
            pool = ""
        else:
            place = (
                "proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection '';"
                "proxy_set_header Host $host; proxy_request_buffering off; proxy_buffering on;"
                "proxy_max_temp_file_size 0;"
            )
            pool = f"upstream up {{ server 127.0.0.1:{upstream}; keepalive 128; }}"
        log = f"{folder}/access.log combined" if upstream else "off"
        (folder / "nginx.conf").write_text(
            f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n"
            "events { worker_connections 8192; }\n"
            f"http {{ access_log {log}; keepalive_requests 100000000; client_max_body_size 0;\n"
            f"client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;\n"
            f"uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; {pool}\n"
            f"server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ {place} }} }} }}\n"
        )
        self.folder.chmod(0o755)  # for the worker, who is nobody
        server = self.run("nginx", "-c", f"{folder}/nginx.conf")
        _wait_port(port)
        until(lambda: children(server.pid), "nginx's worker")
        return Front(f"http://127.0.0.1:{port}/", children(server.pid))

    def haproxy(self, upstream: int) -> Front:
        folder = self.folder / "haproxy"
        folder.mkdir()
        port = free_port()
        (folder / "haproxy.cfg").write_text(
            "global\n nbthread 1\n maxconn 1000\ndefaults\n mode http\n timeout connect 5s\n"
            " timeout client 60s\n timeout server 60s\n option http-keep-alive\n http-reuse always\n"
            f"frontend f\n bind 127.0.0.1:{port}\n default_backend b\n"
            f"backend b\n server s 127.0.0.1:{upstream}\n"
        )
        server = self.run("haproxy", "-db", "-f", f"{folder}/haproxy.cfg")
        _wait_port(port)
        return Front(f"http://127.0.0.1:{port}/", [server.pid])

    def app(self) -> int:
        process = self.me("app", stdout=subprocess.PIPE, text=True)
        return int(process.stdout.readline())

    def path(self, port: int) -> tuple[Front, int]:
        """Frontend and connector in front of an app; and the frontend's pid."""
        frontend = self.frontend("path")
        folder = self.folder / "connector"
        folder.mkdir()
        process = {
            "id": "shop.v1.web.1", "gen": "g", "app": "shop", "type": "web", "index": 1,
            "release": 1, "state": "running", "ready": True, "pid": os.getpid(), "port": port,
        }  # fmt: skip
        write_json(folder / "worker.json", {"node": "n", "processes": [process]})
        config = {
            "node": "n", "frontends": [frontend.link], "worker": f"{folder}/worker.json",
            "run": str(folder),
        }  # fmt: skip
        (folder / "handler.yml").write_text(json.dumps(config))
        connector = self.run(
            sys.executable, "-m", "appnode.connector", "--config", f"{folder}/handler.yml"
        )
        frontend.wait_handlers(1)
        front = _front(frontend)
        return Front(front.url, [*front.pids, connector.pid]), front.pids[0]


def _front(frontend: Frontend) -> Front:
    assert frontend.process is not None
    return Front(f"http://127.0.0.1:{frontend.port}/", [frontend.process.pid])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_port(port: int) -> None:
    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    until(answers, f"port {port}")


# the parts of the run


def costs(
    fronts: dict[str, Front], rounds: int, seconds: float, *, alone: bool = True
) -> dict[str, float]:
    """CPU per request and latency of each, interleaved."""
    for front in fronts.values():
        wrk(front.url, 1, 64)
    for _ in range(rounds):
        for front in fronts.values():
            front.round(seconds)
    figures = {f"{name}_us": median(front.us) for name, front in fronts.items()}
    figures |= {f"p99_us_{name}": median(front.p99) for name, front in fronts.items()}
    figures |= {f"{name}_per_s": median(front.per_s) for name, front in fronts.items()}
    if not alone:
        return figures
    for front in fronts.values():
        front.alone(max(1, seconds // 2))
    return figures | {f"alone_us_{name}": median(front.single) for name, front in fronts.items()}


def median(values: list[float]) -> float:
    return round(statistics.median(values), 1)


def transfer_s(url: str, size: int, *, upload: bool) -> float:
    """Seconds for one body of `size` bytes."""
    host, port = re.match(r"http://([^:]+):(\d+)/", url).groups()  # type: ignore[union-attr]
    piece = memoryview(bytes(2**18))
    with socket.create_connection((host, int(port)), 60) as sock:
        began = time.perf_counter()
        if upload:
            head = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
            sock.sendall(head.encode())
            left = size
            while left:
                sock.sendall(piece[: min(left, len(piece))])
                left -= min(left, len(piece))
            answer = sock.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"upload failed: {answer[:200]!r}")
        else:
            sock.sendall(f"GET /big/{size} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            got = len(sock.recv(65536).partition(b"\r\n\r\n")[2])
            buffer = bytearray(2**18)
            while got < size:
                count = sock.recv_into(buffer)
                if not count:
                    raise SystemExit(f"download broke off after {got} bytes")
                got += count
        return time.perf_counter() - began


def bodies(ours: Front, nginx: Front, pid: int, size: int, rounds: int) -> dict[str, float]:
    """Throughput against nginx's, and how the frontend's memory grows."""
    figures: dict[str, float] = {}
    before = rss(pid)
    peak = [before]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], rss(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for name, upload in (("upload", True), ("download", False)):
        for scale, bytes_ in (("", size), ("_1mib", 2**20)):
            mine, theirs = [], []
            for _ in range(rounds if not scale else 9):
                mine.append(transfer_s(ours.url, bytes_, upload=upload))
                theirs.append(transfer_s(nginx.url, bytes_, upload=upload))
            ratio = statistics.median(theirs) / statistics.median(mine)
            figures[f"{name}_ratio{scale}"] = round(ratio, 2)
            figures[f"{name}_mib_per_s{scale}"] = round(bytes_ / 2**20 / statistics.median(mine))
    stop.set()
    watcher.join()
    return figures | {"body_rss_mib": round((peak[0] - before) / 2**20, 1)}


@contextlib.contextmanager
def idle(front: Front, count: int) -> Iterator[None]:
    """That many connections, each of which has had an answer."""
    host, port = re.match(r"http://([^:]+):(\d+)/", front.url).groups()  # type: ignore[union-attr]
    connections = []
    for start in range(0, count, 50):
        some = [socket.create_connection((host, int(port)), 10) for _ in range(start, start + 50)]
        for sock in some:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        for sock in some:
            if not sock.recv(1000).startswith(b"HTTP/1.1 200"):
                raise SystemExit("no answer on a connection that shall be idle")
        connections += some
    try:
        yield
    finally:
        for sock in connections:
            sock.close()


def idleness(front: Front, count: int, rounds: int, seconds: float) -> dict[str, float]:
    """Memory of idle connections, and what they cost the active ones."""
    pid = front.pids[0]
    with_, without = [], []
    sizes = []
    for _ in range(rounds):
        without.append(wrk(front.url, seconds, 64)["per_s"])
        before = rss(pid)
        with idle(front, count):
            sizes.append((rss(pid) - before) / count / 1024)
            with_.append(wrk(front.url, seconds, 64)["per_s"])
    slower = (1 - statistics.median(with_) / statistics.median(without)) * 100
    return {
        "idle_kib_per_connection": round(max(sizes), 2),
        "idle_slowdown_pct": round(slower, 1),
    }


def measure(bench: Bench, *, quick: bool) -> dict[str, float]:
    rounds, seconds = (1, 2) if quick else (5, 6)
    upstream = int(re.findall(r":(\d+)/", bench.nginx("upstream", None).url)[0])
    fronts = {
        "door_a": bench.door_a(),
        "door_b": bench.door_b(),
        "mongrel2": bench.mongrel2(),
        "nginx": bench.nginx("nginx", upstream),
        "haproxy": bench.haproxy(upstream),
    }
    figures = costs(fronts, rounds, seconds)
    app_port = bench.app()
    path, pid = bench.path(app_port)
    before_app = bench.nginx("nginx_app", app_port)
    paths = costs({"path": path, "nginx_path": before_app}, rounds, seconds, alone=False)
    figures |= {
        name: value for name, value in paths.items() if name in ("path_us", "nginx_path_us")
    }
    size = 2**26 if quick else 2**30
    figures |= bodies(path, before_app, pid, size, 1 if quick else 3)
    fresh = bench.door_b("idle")
    return figures | idleness(fresh, 5000, rounds=1 if quick else 3, seconds=seconds)


def table(figures: dict[str, float]) -> str:
    """The figures for people, with what they are measured against."""
    rows = [f"{'front':<10}{'CPU µs/request':>16}{'requests/s':>12}{'p99 µs':>10}{'alone µs':>10}"]
    for name in ("door_a", "door_b", "mongrel2", "nginx", "haproxy"):
        keys = (f"{name}_us", f"{name}_per_s", f"p99_us_{name}", f"alone_us_{name}")
        us, rate, p99, alone = (figures[key] for key in keys)
        rows.append(f"{name:<10}{us:>16.1f}{rate:>12.0f}{p99:>10.0f}{alone:>10.0f}")
    shown = [
        key for key in figures if not re.match(r"(door_|mongrel2_|nginx_|haproxy_|p99|alone)", key)
    ]
    rows += [f"{key:<28}{figures[key]:>10}" for key in ["nginx_path_us", *shown]]
    return "\n".join(rows)


def main() -> None:
    roles: dict[str, Callable[..., None]] = {
        "link": link_handler,
        "pair": pair_handler,
        "app": lambda: uvloop.run(app()),
    }
    if sys.argv[1:] and sys.argv[1] in roles:
        roles[sys.argv[1]](*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="everything within 45 s")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    missing = [name for name in ("wrk", "mongrel2", "nginx", "haproxy") if not shutil.which(name)]
    if missing:
        sys.exit(f"error: not installed: {', '.join(missing)}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16384)), hard))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        try:
            figures = measure(bench, quick=args.quick)
        finally:
            bench.close()
    print(json.dumps(figures) if args.json else table(figures))


if __name__ == "__main__":
    main()
