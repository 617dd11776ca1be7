"""`bareku-door`: the SSH door of the one-machine shape, an SSH server on paramiko.

Public keys only; one exec request a channel, run as its key's forced command. No shell, pty,
subsystem, forwarding or environment. OpenSSH can stand in its place: both run the same command.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import IO

import paramiko
from msgspec import Struct
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_SUCCEEDED,
)

from bareku import config, listen, log
from bareku.daemon import Presence
from bareku.door import keys
from bareku.errors import BarekuError
from bareku.log import event
from bareku.paths import Root
from bareku.settings import address

logger = getLogger("bareku.door")

AUTH_S = 30  # time to log in, as OpenSSH's LoginGraceTime would be on a quiet machine
MAX_CONNECTIONS = 200
CHUNK = 256 * 1024
WINDOW = 16 * 2**20  # paramiko's 2 MiB window makes a slug wait for acknowledgements
ENV_ALLOWED = {"GIT_PROTOCOL": re.compile(rb"version=[0-9]{1,3}(:[a-z0-9=]{1,40})*")}


class DoorConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`listen` is host:port; `machines` maps a public key file to the command its owner may run."""

    root: str
    listen: str
    run: str
    host_key: str
    machines: dict[str, list[str]] = {}


def main() -> None:
    """Serve until TERM or INT."""
    parser = argparse.ArgumentParser(prog="bareku-door", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args()
    log.setup()
    paramiko.util.get_logger("paramiko").setLevel("CRITICAL")  # its tracebacks are clients' noise
    try:
        serve(config.load(options.config, DoorConfig))
    except BarekuError as exc:
        sys.exit(f"error: {exc.message}")


def serve(door: DoorConfig) -> None:
    """Accept connections, one thread each, until TERM or INT."""
    presence = Presence(Path(door.run), "door")
    host_key = load_host_key(Path(door.host_key))
    host, port = address(door.listen)
    listener, *_ = listen.inherited() or [listen.bind(host, port, what="the SSH door")]
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    presence.write("ok", listen=door.listen)
    logger.info(event("door opened", listen=door.listen))
    threading.Thread(target=_vouch, args=(presence, stopping), daemon=True).start()
    slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
    listener.settimeout(0.2)
    while not stopping.is_set():
        try:
            connection, peer = listener.accept()
        except TimeoutError:
            continue
        if not slots.acquire(blocking=False):
            connection.close()
            continue
        threading.Thread(
            target=_serve_one, args=(door, host_key, connection, peer[0], slots), daemon=True
        ).start()
    listener.close()
    logger.info("door closed")


def load_host_key(path: Path) -> paramiko.PKey:
    """The door's own key; made (ed25519, 0600) the first time."""
    if not path.exists():
        keys.make_pair(path, "bareku-door")
    return paramiko.Ed25519Key.from_private_key_file(str(path))


class Guard(paramiko.ServerInterface):
    """Says yes to known public keys and to exec, no to everything else."""

    def __init__(self, door: DoorConfig) -> None:
        self._door = door
        self._env: dict[int, dict[str, str]] = {}
        self.forced: list[str] = []
        self.who = ""

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        found = forced_command(self._door, username, key.asbytes())
        if found is None:
            logger.warning(event("key refused", user=username, key=_fingerprint(key)))
            return AUTH_FAILED
        self.who, self.forced = found
        return AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if kind == "session":
            return OPEN_SUCCEEDED
        return OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_env_request(
        self, channel: paramiko.Channel, name: bytes, value: bytes
    ) -> bool:
        pattern = ENV_ALLOWED.get(name.decode("ascii", "replace"))
        if pattern is None or not pattern.fullmatch(value):
            return False
        self._env.setdefault(channel.get_id(), {})[name.decode()] = value.decode()
        return True

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self._start(channel, command)
        return True

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        self._start(channel, b"")
        return True

    def _start(self, channel: paramiko.Channel, command: bytes) -> None:
        logger.info(event("command", who=self.who, command=command.decode(errors="replace")))
        env = {
            **os.environ,
            **self._env.pop(channel.get_id(), {}),
            "SSH_ORIGINAL_COMMAND": command.decode("utf-8", "surrogateescape").replace("\0", ""),
            "BAREKU_ROOT": self._door.root,
        }
        for name in ("LISTEN_FDS", "LISTEN_PID"):
            env.pop(name, None)
        arguments = (channel, self.forced, env)
        threading.Thread(target=run, args=arguments, daemon=True).start()


def forced_command(door: DoorConfig, username: str, blob: bytes) -> tuple[str, list[str]] | None:
    """Who shows this key and what he may run; None when the key is unknown.

    People log in as `git`, machines (which ship slugs) as `bareku`.
    """
    if username == "bareku":
        for path, argv in door.machines.items():
            with contextlib.suppress(BarekuError, OSError):
                if keys.parse(Path(path).read_text()).blob == blob:
                    return "bareku", argv
        return None
    user = keys.owner(Root(Path(door.root)), blob) if username == "git" else None
    return (user, [sys.executable, "-P", "-m", "bareku.door.shell", user]) if user else None


def run(channel: paramiko.Channel, forced: list[str], env: dict[str, str]) -> None:
    """Run the forced command with the channel as its stdin, stdout and stderr.

    When the client goes, the command keeps running to its end: a push is never half done.
    """
    with channel:
        try:
            child = subprocess.Popen(
                forced,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as exc:
            logger.error(event("command not started", error=exc))
            channel.send_exit_status(126)
            return
        assert child.stdin
        assert child.stdout
        assert child.stderr
        pumps = [
            threading.Thread(target=_out, args=(child.stdout.fileno(), channel.sendall)),
            threading.Thread(target=_out, args=(child.stderr.fileno(), channel.sendall_stderr)),
        ]
        feed = threading.Thread(target=_in, args=(channel, child.stdin), daemon=True)
        for pump in (*pumps, feed):
            pump.start()
        for pump in pumps:
            pump.join()
        status = child.wait()
        with contextlib.suppress(OSError, EOFError):
            channel.send_exit_status(status if status >= 0 else 128 - status)
            channel.shutdown_write()
        channel.close()
        feed.join()
        child.stdout.close()
        child.stderr.close()


def _out(fd: int, send: Callable[[bytes], object]) -> None:
    """Pipe -> channel; goes on reading when the client has gone, so that the command can end."""
    is_open = True
    while chunk := os.read(fd, CHUNK):
        if is_open:
            try:
                send(chunk)
            except (OSError, EOFError):
                is_open = False


def _in(channel: paramiko.Channel, pipe: IO[bytes]) -> None:
    """Channel -> pipe, until the client closes its side; then the command reads end of file."""
    is_open = True
    while chunk := channel.recv(CHUNK):
        view = memoryview(chunk)
        while is_open and view:
            try:
                view = view[pipe.write(view) :]
            except OSError:
                is_open = False
    pipe.close()


def _serve_one(
    door: DoorConfig,
    host_key: paramiko.PKey,
    connection: socket.socket,
    peer: str,
    slots: threading.BoundedSemaphore,
) -> None:
    transport = None
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = paramiko.Transport(
            connection, default_window_size=WINDOW, default_max_packet_size=2**18
        )
        transport.auth_timeout = AUTH_S
        transport.add_server_key(host_key)
        transport.start_server(server=Guard(door), event=threading.Event())
        transport.join()
    except (OSError, EOFError, paramiko.SSHException) as exc:
        logger.info(event("connection ended", peer=peer, error=exc))
    finally:
        if transport:
            transport.close()
        connection.close()
        slots.release()


def _fingerprint(key: paramiko.PKey) -> str:
    return keys.PublicKey(key.get_name(), key.asbytes(), "").fingerprint


def _vouch(presence: Presence, stopping: threading.Event) -> None:
    while not stopping.wait(5.0):
        presence.touch()


if __name__ == "__main__":
    main()
