"""The link's ROUTER over libzmq with CURVE, for handlers on other machines.

The same peers as `frontend.peers` to their owner. libzmq does not say whose connection ended: a
peer that went is noticed by its silence, or by the next message that cannot reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping

import zmq
from zmq.utils import z85

from bareku.curve import Keys
from bareku.errors import BarekuError
from bareku.log import event
from frontend.peers import MAX_FRAME, Peer, PeerOwner

log = logging.getLogger("frontend")

BURST = 200  # messages taken per wake-up
FAREWELL_MS = 300


class CurvePeer(Peer):
    """A handler's connection, known by the routing id that libzmq gave it."""

    def __init__(self, router: CurveRouter, routing_id: bytes) -> None:
        super().__init__(router.owner, b"ROUTER", frozenset())
        self._router = router
        self.routing_id = routing_id
        self.is_open = True
        self.name = routing_id.hex()

    def send_two(self, head: bytes, payload: bytes) -> None:
        self._router.send(self, head, payload)

    def beat(self, now: float, every_s: float, dead_s: float) -> None:
        """libzmq's own heartbeats do this."""

    def abort(self) -> None:
        self._router.forget(self)

    def close(self) -> None:
        self._router.forget(self)


class CurveRouter:
    """The socket, and the ZAP answers that decide whose key is known."""

    def __init__(self, owner: PeerOwner, keys: Keys, allowed: Mapping[str, str]) -> None:
        self.owner = owner
        self.rejected = 0
        self._allowed = {key: name for name, key in allowed.items()}
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._peers: dict[bytes, CurvePeer] = {}
        self._zap = self._context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind("inproc://zeromq.zap.01")
        self._loop.add_reader(self._zap.fileno(), self._check_keys)
        self._router = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, FAREWELL_MS),
            (zmq.SNDHWM, 0),  # credits bound what is queued
            (zmq.RCVHWM, 0),
            (zmq.MAXMSGSIZE, MAX_FRAME),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.HEARTBEAT_IVL, 1000),
            (zmq.HEARTBEAT_TIMEOUT, 3000),
            (zmq.HEARTBEAT_TTL, 3000),
            (zmq.HANDSHAKE_IVL, 5000),
            (zmq.IPV6, 1),
        ):
            self._router.setsockopt(option, value)
        keys.apply(self._router)

    def bind(self, endpoint: str) -> str:
        """Bind; returns the endpoint with the port that was chosen. Raises BarekuError."""
        try:
            self._router.bind(endpoint)
        except zmq.ZMQError as exc:
            raise BarekuError(f"cannot listen on {endpoint!r}: {exc}") from exc
        self._loop.add_reader(self._router.fileno(), self._drain)
        self._loop.call_soon(self._drain)
        return str(self._router.getsockopt_string(zmq.LAST_ENDPOINT)).removeprefix("tcp://")

    def _drain(self) -> None:
        for _ in range(BURST):
            if self._router.closed:
                return
            try:
                routing_id, *parts = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            peer = self._peers.get(routing_id)
            if peer is None:
                peer = self._peers[routing_id] = CurvePeer(self, routing_id)
                self.owner.on_open(peer)
            peer.heard()
            self.owner.on_message(peer, parts)
        self._loop.call_soon(self._drain)

    def send(self, peer: CurvePeer, head: bytes, payload: bytes) -> None:
        if self._router.closed:
            return
        try:
            self._router.send_multipart([peer.routing_id, head, payload], zmq.NOBLOCK)
        except zmq.ZMQError:  # not connected any more; never in the middle of a dispatch
            self._loop.call_soon(self.forget, peer)
        self._loop.call_soon(self._drain)  # sending may have taken the descriptor's edge

    def forget(self, peer: CurvePeer) -> None:
        """The peer is gone."""
        if self._peers.pop(peer.routing_id, None) is not None:
            peer.is_open = False
            self.owner.on_gone(peer)

    def _check_keys(self) -> None:
        """ZAP (RFC 27): version, request, domain, address, identity, mechanism, client key."""
        while not self._zap.closed:
            try:
                parts = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            name = None
            if len(parts) == 7 and parts[5] == b"CURVE":
                name = self._allowed.get(z85.encode(parts[6]).decode())
            if name is None:
                self.rejected += 1
                log.warning(event("key refused", address=parts[3].decode(errors="replace")))
                answer = [b"400", b"unknown key", b""]
            else:
                answer = [b"200", b"OK", name.encode()]
            self._zap.send_multipart([b"1.0", parts[1], *answer, b""])

    def close(self) -> None:
        """Close the sockets after what was said."""
        for socket in (self._router, self._zap):
            with contextlib.suppress(ValueError, OSError):
                self._loop.remove_reader(socket.fileno())
        self._router.close()
        self._zap.close()
        self._context.term()
