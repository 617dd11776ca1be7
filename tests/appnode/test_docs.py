"""docs/reference/handler.md names every key and option, and its samples are valid."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml

from appnode.config import Config, Mongrel2, Pool, Timeouts
from appnode.link import Counts
from tests.frontend.rig import Frontend, route

TOP = Path(__file__).resolve().parents[2]
PAGE = (TOP / "docs" / "reference" / "handler.md").read_text()
SAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_sample_holds_every_key_with_its_default() -> None:
    sample = yaml.safe_load(SAMPLES[0])
    default = msgspec.to_builtins(Config(node="web1", frontends=["tcp://127.0.0.1:31125"]))
    assert sample == default
    assert set(sample["timeouts"]) == set(Timeouts.__struct_fields__)
    assert set(sample["pool"]) == set(Pool.__struct_fields__)
    msgspec.convert(sample, Config)


def test_sample_of_a_mongrel2_pair_holds_every_key() -> None:
    (pair,) = yaml.safe_load(SAMPLES[1])["mongrel2"]
    assert set(pair) == set(Mongrel2.__struct_fields__)
    assert msgspec.convert(pair, Mongrel2).hold_s == Mongrel2.__struct_defaults__[-1]


@pytest.mark.parametrize("name", Counts.__slots__)
def test_count_is_named(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.slow
def test_options_of_bareku_serve_are_named() -> None:
    command = [sys.executable, "-m", "appnode.serve", "--help"]
    usage = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"--[a-z0-9-]+", usage)) - {"--help"}
    assert len(options) >= 7
    for option in options:
        assert f"`{option}" in PAGE, option


@pytest.mark.slow
def test_sample_handler_answers(tmp_path: Path) -> None:
    page = (TOP / "docs" / "how-to" / "write-a-handler.md").read_text()
    (pair,) = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])["mongrel2"]
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for name in ("send_spec", "recv_spec"):
        here = f"ipc://{tmp_path}/{name[0]}"
        assert pair[name] in code
        code = code.replace(pair[name], here)
        pair[name] = here
    frontend = Frontend(tmp_path / "front", [route()], mongrel2=[pair]).start()
    handler = subprocess.Popen([sys.executable, "-c", code])
    try:
        frontend.wait_handlers(1)
        assert [frontend.get("/") for _ in range(3)] == [(200, b"Hello\n")] * 3
    finally:
        handler.kill()
        handler.wait()
        frontend.close()
