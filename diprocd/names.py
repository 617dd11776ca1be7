"""The name of this node."""

from __future__ import annotations

import socket

from bareku.names import parse_node


def expand_name(text: str) -> str:
    """`%H` is the host name, `%%` a percent sign. Raises BarekuError when no node name results."""
    parts = text.split("%%")
    return parse_node("%".join(part.replace("%H", socket.gethostname()) for part in parts))
