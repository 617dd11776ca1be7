"""CURVE on ZeroMQ sockets: key files, and the rule that nothing leaves the machine in plain text.

A key file holds `public secret` in Z85 and is readable by its owner only. Both ends know each
other's public key; whoever has none gets no answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from bareku.errors import BarekuError
from bareku.files import write_atomic


@dataclass(frozen=True, slots=True)
class Keys:
    """A key pair, and for a client the public key of its server."""

    public: str
    secret: str
    server: str | None = None

    def apply(self, socket: Any) -> None:
        """Make a socket, before bind or connect, speak CURVE only."""
        socket.curve_publickey = self.public.encode()
        socket.curve_secretkey = self.secret.encode()
        if self.server is None:
            socket.curve_server = True
        else:
            socket.curve_serverkey = self.server.encode()


def is_local(endpoint: str) -> bool:
    """True when the endpoint cannot be reached from another machine."""
    scheme, _, rest = endpoint.partition("://")
    if scheme in {"ipc", "inproc"}:
        return True
    host = rest.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def server_keys(path: str | None, endpoints: Iterable[str]) -> Keys | None:
    """The keys of the binding side; BarekuError when an endpoint needs them and there are none."""
    if path is not None:
        return load(Path(path))
    _check_local(endpoints)
    return None


def client_keys(path: str | None, server: str | None, endpoints: Iterable[str]) -> Keys | None:
    """The keys of the connecting side, with the server's public key."""
    if path is None or server is None:
        if (path is None) != (server is None):
            raise BarekuError("cannot use CURVE: own key and the server's key must both be given")
        _check_local(endpoints)
        return None
    own = load(Path(path))
    return Keys(own.public, own.secret, _checked(server))


def _check_local(endpoints: Iterable[str]) -> None:
    for endpoint in endpoints:
        if not is_local(endpoint):
            raise BarekuError(
                f"cannot use {endpoint}: it leaves this machine and no CURVE keys are configured",
                hint="make keys with: diprocd keys FILE",
            )


def make(path: Path) -> Keys:
    """Make a new pair, written to `path` (0600); a file that is there is not replaced."""
    import zmq

    if path.exists():
        raise BarekuError(f"cannot make keys: {path} exists")
    public, secret = zmq.curve_keypair()
    keys = Keys(public.decode(), secret.decode())
    write_atomic(path, f"{keys.public} {keys.secret}\n".encode(), mode=0o600)
    return keys


def load(path: Path) -> Keys:
    """Read a key file."""
    try:
        public, secret = path.read_text().split()
    except OSError as exc:
        raise BarekuError(f"cannot read the key file {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise BarekuError(f"cannot read the key file {path}: it is not `public secret`") from exc
    return Keys(_checked(public), _checked(secret))


def _checked(key: str) -> str:
    if len(key) != 40 or not key.isascii():
        raise BarekuError("cannot use a CURVE key: it must be 40 characters of Z85")
    return key
