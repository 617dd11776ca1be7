"""Imports go down only, and pure modules do no I/O."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]

# package -> which of ours it may import; "bareku" is the vocabulary, the modules directly in bareku/
MAY_IMPORT = {
    "bareku": set(),
    "diprocd": {"bareku"},
    "frontend": {"bareku"},
    "appnode": {"bareku", "frontend"},
    "bareku.receive": {"bareku", "diprocd"},
    "bareku.door": {"bareku", "diprocd"},
    "bareku.services": {"bareku", "diprocd"},
    "bareku.cli": {
        "bareku",
        "diprocd",
        "frontend",
        "appnode",
        "bareku.receive",
        "bareku.door",
        "bareku.services",
    },
}

# values in, values out
PURE = {
    "appnode/census.py",
    "appnode/forward.py",
    "appnode/greeting.py",
    "appnode/incoming.py",
    "appnode/response.py",
    "appnode/websocket.py",
    "appnode/writer.py",
    "bareku/contents.py",
    "bareku/envfile.py",
    "bareku/names.py",
    "bareku/procfile.py",
    "diprocd/backoff.py",
    "diprocd/expand.py",
    "diprocd/fleet.py",
    "diprocd/health.py",
    "diprocd/lifecycle.py",
    "diprocd/placement.py",
    "diprocd/press.py",
    "diprocd/reconcile.py",
    "diprocd/spec.py",
    "diprocd/wire.py",
    "frontend/chunked.py",
    "frontend/dispatch.py",
    "frontend/payload.py",
    "frontend/websocket.py",
    "frontend/http.py",
    "frontend/link.py",
    "frontend/mongrel2.py",
    "frontend/router.py",
    "frontend/tnetstring.py",
    "frontend/zmtp.py",
    "frontend/wheel.py",
    "frontend/reply.py",
    "frontend/metrics.py",
}
IMPURE_IMPORTS = {
    "asyncio", "fcntl", "glob", "os", "pathlib", "random", "secrets", "select", "selectors",
    "shutil", "signal", "socket", "subprocess", "tempfile", "threading", "time", "uvloop", "zmq",
}  # fmt: skip

MODULES = sorted(
    path.relative_to(TOP)
    for package in ("bareku", "diprocd", "frontend", "appnode")
    for path in (TOP / package).rglob("*.py")
)


def package_of(name: str) -> str | None:
    """`bareku.receive.build` -> `bareku.receive`, `bareku.names` -> `bareku`, `zmq` -> None."""
    parts = name.split(".")
    for length in (2, 1):
        prefix = ".".join(parts[:length])
        if prefix in MAY_IMPORT:
            return prefix
    return None


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((TOP / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down_only(path: Path) -> None:
    mine = package_of(".".join(path.with_suffix("").parts))
    assert mine is not None
    for name in imports(path):
        other = package_of(name)
        assert other in {None, mine} | MAY_IMPORT[mine], f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_private_name_is_imported(path: Path) -> None:
    for name in imports(path):
        if package_of(name):
            last = name.rsplit(".", 1)[-1]
            assert not last.startswith("_") or last.startswith("__"), f"{path} imports {name}"


@pytest.mark.parametrize("path", [p for p in MODULES if str(p) in PURE], ids=str)
def test_pure_modules_do_no_io(path: Path) -> None:
    used = {name.split(".")[0] for name in imports(path)} & IMPURE_IMPORTS
    assert not used, f"{path} imports {used}"
