"""Listening sockets: taken over from the parent (sd_listen_fds(3)) or bound, with who is in the way."""

from __future__ import annotations

import errno
import os
import socket

from bareku.errors import BarekuError

FIRST_FD = 3


def inherited() -> list[socket.socket]:
    """The sockets that LISTEN_FDS and LISTEN_PID hand to this process; empty when none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    sockets = [socket.socket(fileno=fd) for fd in range(FIRST_FD, FIRST_FD + count)]
    for each in sockets:
        os.set_inheritable(each.fileno(), False)
    return sockets


def bind(host: str, port: int, *, what: str) -> socket.socket:
    """A listening TCP socket. Raises BarekuError naming the port and, when known, its holder."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as exc:
        listener.close()
        raise BarekuError(
            f"cannot listen on {host}:{port} for {what}: {_why(exc, port)}",
            hint="end that program, or choose another port in bareku.yml",
        ) from exc
    return listener


def _why(exc: OSError, port: int) -> str:
    if exc.errno == errno.EADDRINUSE:
        return f"the port is taken by {holder(port) or 'a program of another user'}"
    if exc.errno == errno.EACCES:
        return "ports below 1024 need root"
    return exc.strerror or str(exc)


def holder(port: int) -> str:
    """Program and pid that listen on a TCP port, empty when that cannot be known."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if address and address[1] == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid:
                    name = psutil.Process(connection.pid).name()
                    return f"{name} (pid {connection.pid})"
                return ""
    except psutil.Error:
        return ""
    return ""
