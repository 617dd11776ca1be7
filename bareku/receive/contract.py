"""The words of the classic buildpack contract: environment, ENV_DIR, the YAML of bin/release.

Runs nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from bareku import site
from bareku.errors import BarekuError
from bareku.names import parse_process_type
from bareku.receive.sandbox import Sandbox

STACK = "heroku-22"  # what third-party buildpacks ask for: its glibc 2.35 is older than Debian 12's
MAX_RELEASE_BYTES = 64 * 2**10

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def site_files() -> list[Path]:
    """The files that those variables name."""
    files = [Path(value) for value in site.variables(os.environ).values() if value.startswith("/")]
    return [file for file in files if file.is_file()]


def environment(box: Sandbox, revision: str) -> dict[str, str]:
    """The whole environment of a buildpack's script; config vars are not in it."""
    tools = box.inside(box.work / "bareku" / "bin")
    return {
        **site.variables(os.environ),
        "PATH": f"{tools}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": box.inside(box.work / "app"),
        "TMPDIR": box.inside(box.work / "tmp"),
        "STACK": STACK,
        "SOURCE_VERSION": revision,
        "REQUEST_ID": revision[:12] or "detect",
        "LANG": "C.UTF-8",
        # equal input, equal bytecode: hash pycs instead of time stamps, and no random order
        "SOURCE_DATE_EPOCH": "315532800",
        "PYC_INVALIDATION_MODE": "UNCHECKED_HASH",
        "PYTHONHASHSEED": "0",
        "CURL_CONNECT_TIMEOUT": "30",
        "CURL_TIMEOUT": "180",
    }


def write_vars(folder: Path, env: Mapping[str, str]) -> Path:
    """ENV_DIR: one file for each config var, its value as it is."""
    folder.mkdir(mode=0o700)
    for key, value in env.items():
        if _KEY.fullmatch(key):
            (folder / key).write_text(value)
    return folder


def parse_release(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """The YAML of bin/release as (default process types, config vars). Raises BarekuError."""
    import yaml

    what = "cannot read the output of bin/release"
    try:
        document = yaml.safe_load(text) if len(text) <= MAX_RELEASE_BYTES else text
    except yaml.YAMLError as exc:
        raise BarekuError(f"{what}: {' '.join(str(exc).split())}") from exc
    if not isinstance(document, dict | None):
        raise BarekuError(f"{what}: it is not a YAML mapping")
    types = _strings(document, "default_process_types")
    for name in types:
        parse_process_type(name)
    return types, _strings(document, "config_vars")


def _strings(document: Mapping[str, object] | None, key: str) -> dict[str, str]:
    values = (document or {}).get(key) or {}
    if not isinstance(values, dict) or not all(
        isinstance(value, str | int | float) for value in values.values()
    ):
        raise BarekuError(f"cannot read the output of bin/release: {key} is not a mapping of texts")
    return {str(name): str(value) for name, value in values.items()}
