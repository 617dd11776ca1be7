"""TLS by server name: `<host>.crt` and `.key` in a folder, `_.<parent>`, else `default`.

Files are looked at again when they change; a bad one is logged and the one before it stays.
"""

from __future__ import annotations

import logging
import re
import ssl
from pathlib import Path

from bareku.errors import BarekuError
from bareku.log import event

log = logging.getLogger("frontend")

_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?)*")


class Certificates:
    """The contexts of a folder, each loaded when its name is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, tuple[int, ssl.SSLContext]] = {}
        default = self._load("default")
        if default is None:
            raise BarekuError(
                f"cannot speak TLS: {folder}/default.crt and default.key are not usable",
                hint="put a certificate chain and its key there; they serve every other name",
            )
        self.context = default
        self.context.sni_callback = self._choose

    def _choose(
        self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext
    ) -> None:
        host = (name or "").lower().rstrip(".")
        candidates = ["default"]
        if len(host) < 254 and _HOST.fullmatch(host):
            candidates = [host, f"_.{host.partition('.')[2]}", "default"]
        for candidate in candidates:
            context = self._load(candidate)
            if context is not None:
                connection.context = context
                return

    def _load(self, name: str) -> ssl.SSLContext | None:
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        try:
            changed = max(certificate.stat().st_mtime_ns, key.stat().st_mtime_ns)
        except OSError:
            return None
        kept = self._kept.get(name)
        if kept is not None and kept[0] == changed:
            return kept[1]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as exc:
            log.error(event("certificate not used", name=name, reason=exc))
            return kept[1] if kept is not None else None
        self._kept[name] = (changed, context)
        return context
