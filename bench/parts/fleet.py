"""Many nodes as the sockets of one process, for bench/diprocd.py: each subscribes, acks, beats.

usage: fleet.py FOLDER COUNT. Reads a release number a line; answers with the monotonic time at
which the last node had a document of that release and its ack was sent. The first lines of a node
document name its release, so the bodies are not parsed.
"""

from __future__ import annotations

import re
import resource
import select
import sys
import time

import msgspec
import zmq

from diprocd.client import HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS

BEAT_S = 5.0
_VERSION = re.compile(rb'"epoch":(\d+),"version":(\d+)')
_RELEASE = re.compile(rb'"release":(\d+)')


class Node:
    """What the master sees of a client."""

    __slots__ = ("epoch", "have", "name", "release", "seq", "sha256", "stats", "updates")

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: str, name: str) -> None:
        self.name = name
        self.seq = self.epoch = self.have = self.release = 0
        self.sha256 = ""
        self.updates = context.socket(zmq.SUB)
        self.stats = context.socket(zmq.PUSH)
        self.stats.setsockopt(zmq.CONFLATE, 1)
        for socket in (self.updates, self.stats):
            socket.linger = 0
            socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS[socket.type])
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS[socket.type])
            socket.setsockopt(zmq.RECONNECT_IVL, 100)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        self.updates.subscribe(f"n/{name}/")
        self.updates.subscribe("hb/")
        self.updates.connect(f"ipc://{folder}/updates")
        self.stats.connect(f"ipc://{folder}/stats")

    def receive(self) -> bool:
        """Take what has come; True when the document changed."""
        changed = False
        while True:
            try:
                topic, header, body = self.updates.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return changed
            if topic == b"hb/":
                continue
            found = _VERSION.search(header)
            release = _RELEASE.search(body)
            assert found
            if (int(found[1]), int(found[2])) > (self.epoch, self.have):
                self.epoch, self.have = int(found[1]), int(found[2])
                self.sha256 = msgspec.json.decode(header)["sha256"]
                self.release = int(release[1]) if release else 0
                changed = True

    def send(self) -> None:
        self.seq += 1
        proc = {"id": f"a.v{self.release}.w.1", "gen": "0", "app": "a", "type": "w",
                "release": self.release, "state": "running", "ready": True}  # fmt: skip
        message = {
            "p": 1, "t": "stats", "node": self.name, "client": self.name, "seq": self.seq,
            "epoch": self.epoch, "have": self.have, "applied": self.have, "sha256": self.sha256,
            "procs": [proc] if self.release else [],
        }  # fmt: skip
        try:
            self.stats.send(msgspec.json.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return


def main(folder: str, count: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4 * count + 100)
    nodes = [Node(context, folder, f"n{number}") for number in range(count)]
    by_fd = {node.updates.getsockopt(zmq.FD): node for node in nodes}
    poll = select.epoll()
    poll.register(sys.stdin.fileno(), select.EPOLLIN)
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN | select.EPOLLET)
    wanted, behind = -1, 0
    turn_s = BEAT_S / count
    due_s, at = time.monotonic(), 0
    swept_s = 0.0
    while True:
        for fd, _ in poll.poll(max(0.0, min(0.05, due_s - time.monotonic()))):
            if fd == sys.stdin.fileno():
                line = sys.stdin.readline()
                if not line:
                    return
                wanted = int(line)
                behind = sum(node.release != wanted for node in nodes)
                if not behind:
                    print(time.monotonic(), flush=True)
            else:
                behind = _serve(by_fd[fd], wanted, behind)
        now = time.monotonic()
        if now - swept_s > 1:  # descriptors are edge-triggered
            swept_s = now
            for node in nodes:
                behind = _serve(node, wanted, behind)
        while due_s <= now:
            nodes[at].send()
            at = (at + 1) % count
            due_s += turn_s


def _serve(node: Node, wanted: int, behind: int) -> int:
    was_behind = node.release != wanted
    if node.receive():
        node.send()
        if was_behind and node.release == wanted:
            behind -= 1
            if behind == 0:
                print(time.monotonic(), flush=True)
    return behind


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
