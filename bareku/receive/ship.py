"""Bring slugs to app nodes over SSH, and ask their `bareku-appnode` small things.

paramiko costs 190 ms to import, so it is imported when the first connection is made: open the
connections while the build still runs.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bareku.errors import BarekuError
from bareku.receive import delta
from bareku.receive.slug import Slug

if TYPE_CHECKING:
    import paramiko

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
_STALL_S = 30.0  # a node that takes no byte for so long is gone
_BLOCK = 1 << 18
_WINDOW = 16 * 2**20  # what a node may say before we have read it
_MAX_ANSWER = 16 * 2**20
_MAX_NODES_AT_ONCE = 32

# AES-GCM is several times as fast as the rest wherever the processor has AES
_CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """Where an app node's SSH answers."""

    name: str
    host: str
    port: int = 22
    user: str = "bareku"


@dataclass(frozen=True, slots=True)
class Delivery:
    """How it went on one node; `error` is None when the node holds the slug now."""

    node: str
    duration_s: float
    sent_bytes: int = 0
    error: BarekuError | None = None


class Connection:
    """An open SSH connection to one node."""

    def __init__(self, node: NodeAddress, client: paramiko.SSHClient) -> None:
        self.node = node
        self._client = client

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_alive(self) -> bool:
        transport = self._client.get_transport()
        return transport is not None and transport.is_active()

    def call(self, argv: Sequence[str], source: Iterator[bytes] | None = None) -> str:
        """What the node's command answers on stdout; raises BarekuError with what it complains of."""
        import paramiko

        what = f"cannot {argv[0]} on {self.node.name}"
        transport = self._client.get_transport()
        if transport is None or not transport.is_active():
            raise BarekuError(f"{what}: the connection is lost")
        try:
            with contextlib.closing(transport.open_session(timeout=ANSWER_TIMEOUT_S)) as channel:
                channel.settimeout(_STALL_S)
                channel.exec_command(shlex.join(argv))
                with contextlib.suppress(OSError):  # the node may refuse before it has read all
                    for block in source or ():
                        channel.sendall(block)
                    channel.shutdown_write()
                channel.settimeout(ANSWER_TIMEOUT_S)
                answer = _read(channel)
                complaint = channel.makefile_stderr("rb").read(_MAX_ANSWER).decode(errors="replace")
                code = channel.recv_exit_status()
        except TimeoutError as exc:
            raise BarekuError(f"{what}: no answer within {ANSWER_TIMEOUT_S:g} s") from exc
        except (paramiko.SSHException, OSError, EOFError) as exc:
            raise BarekuError(f"{what}: {str(exc) or 'the connection is lost'}") from exc
        if code != 0:
            raise _refusal(what, complaint, code)
        return answer.decode(errors="replace")


def connect(
    node: NodeAddress, key: Path, known_hosts: Path, *, timeout_s: float = CONNECT_TIMEOUT_S
) -> Connection:
    """Open a connection to a node whose host key is in `known_hosts`; nobody else is spoken to."""
    import paramiko

    what = f"cannot reach {node.name} ({node.host}:{node.port})"
    client = paramiko.SSHClient()
    try:
        client.load_host_keys(str(known_hosts))
    except OSError as exc:
        raise BarekuError(f"{what}: cannot read {known_hosts}: {exc.strerror}") from exc
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    try:
        client.connect(
            node.host, node.port, node.user, key_filename=str(key),
            timeout=timeout_s, banner_timeout=timeout_s, auth_timeout=timeout_s,
            channel_timeout=timeout_s, allow_agent=False, look_for_keys=False,
            transport_factory=_transport,  # type: ignore[arg-type]  # the stubs still know GSSAPI
        )  # fmt: skip
    except BaseException as exc:
        client.close()
        raise _connect_error(what, node, exc, known_hosts, timeout_s) from exc
    return Connection(node, client)


def run(connection: Connection, argv: Sequence[str]) -> str:
    """One small verb of `bareku-appnode`, and its answer without the newline."""
    return connection.call(argv).rstrip("\n")


def ship(
    connections: Sequence[Connection],
    slug: Slug,
    *,
    base: Slug | None = None,
    on_delivery: Callable[[Delivery], None] | None = None,
) -> list[Delivery]:
    """Bring a slug to all nodes at once; a node that has it gets nothing.

    A node that has `base`, the slug before, gets the difference when that is worth it.
    `on_delivery` hears each node as it is done, from a thread. The answer is in the order of
    `connections`; look at each one's `error`.
    """

    def deliver(connection: Connection) -> Delivery:
        delivery = _deliver(connection, slug, lacking[connection], difference)
        if on_delivery:
            on_delivery(delivery)
        return delivery

    if not connections:
        return []
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(
            ThreadPoolExecutor(1 + min(len(connections), _MAX_NODES_AT_ONCE))
        )
        asked = [slug.uuid, base.uuid] if base and base.uuid != slug.uuid else [slug.uuid]
        making = None  # while the nodes say what they lack
        if base and base.uuid != slug.uuid:
            making = pool.submit(lambda: stack.enter_context(delta.between(base, slug)))
        answers = pool.map(lambda connection: _lacking(connection, asked), connections)
        lacking = dict(zip(connections, answers, strict=True))
        difference = None
        if path := making.result() if making else None:
            assert base is not None
            difference = (base.uuid, path)
        return list(pool.map(deliver, connections))


def _lacking(connection: Connection, uuids: Sequence[str]) -> list[str] | BarekuError:
    try:
        return connection.call(["have", *uuids]).split()
    except BarekuError as exc:
        return exc


def _deliver(
    connection: Connection,
    slug: Slug,
    lacking: list[str] | BarekuError,
    difference: tuple[str, Path] | None,
) -> Delivery:
    started = time.monotonic()
    sent = 0
    error = None
    try:
        if isinstance(lacking, BarekuError):
            raise lacking
        if slug.uuid in lacking:
            patched = difference if difference and difference[0] not in lacking else None
            sent = _send(connection, slug, patched)
    except BarekuError as exc:
        error = exc
    return Delivery(connection.node.name, time.monotonic() - started, sent, error)


def _send(connection: Connection, slug: Slug, difference: tuple[str, Path] | None) -> int:
    """Send the difference, and whatever the node has against it, else the whole; bytes sent."""
    described = [slug.uuid, str(slug.size_bytes), slug.sha256]
    if difference:
        base, path = difference
        size = path.stat().st_size
        with contextlib.suppress(BarekuError):
            connection.call(["patch", *described, base, str(size)], _blocks(path))
            return size
    connection.call(["put", *described], _blocks(slug.path))
    return slug.size_bytes


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            yield block


def _read(channel: paramiko.Channel) -> bytes:
    answer = bytearray()
    while block := channel.recv(_BLOCK):
        answer += block
        if len(answer) > _MAX_ANSWER:
            raise EOFError("the answer is too long")
    return bytes(answer)


def _refusal(what: str, complaint: str, code: int) -> BarekuError:
    """The node's `error:` and `hint:` lines as an error of ours, its words kept to one line each."""
    lines = ["".join(c for c in line if c.isprintable()) for line in complaint.splitlines()]
    why = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hint = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    said = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
    return BarekuError(f"{what}: {why[0] if why else said}", hint=hint[0] if hint else "")


def _transport(
    sock: Any, *, disabled_algorithms: Mapping[str, Iterable[str]] | None = None
) -> paramiko.Transport:
    """A transport that prefers the fast ciphers and takes large windows."""
    import paramiko

    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # its last words are not ours
    transport = paramiko.Transport(
        sock, default_window_size=_WINDOW, disabled_algorithms=disabled_algorithms
    )
    offered = transport.get_security_options()
    offered.ciphers = tuple(cipher for cipher in _CIPHERS if cipher in offered.ciphers)
    return transport


def _connect_error(
    what: str, node: NodeAddress, exc: BaseException, known_hosts: Path, timeout_s: float
) -> BaseException:
    import paramiko
    from paramiko.ssh_exception import NoValidConnectionsError

    if isinstance(exc, paramiko.BadHostKeyException):
        return BarekuError(
            f"{what}: its host key is not the one we know; nothing was sent",
            hint=f"if the node was set up anew, replace its line in {known_hosts}",
        )
    if isinstance(exc, paramiko.AuthenticationException):
        return BarekuError(
            f"{what}: it refuses our key", hint=f"is our public key allowed for {node.user} there?"
        )
    if isinstance(exc, TimeoutError):
        return BarekuError(f"{what}: no answer within {timeout_s:g} s", hint="is the node up?")
    if isinstance(exc, NoValidConnectionsError):
        return BarekuError(f"{what}: connection refused", hint="does sshd run there?")
    if isinstance(exc, paramiko.SSHException) and "not found in known_hosts" in str(exc):
        return BarekuError(
            f"{what}: its host key is unknown", hint=f"add the node's host key to {known_hosts}"
        )
    if isinstance(exc, paramiko.SSHException | OSError | EOFError | ValueError):
        return BarekuError(f"{what}: {exc or 'the connection was closed'}")
    return exc
