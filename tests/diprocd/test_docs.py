"""What the page on diprocd says is so."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import msgspec
import pytest

from diprocd.main import main
from diprocd.spec import NodeConfig
from tests.diprocd import drawing

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "reference" / "diprocd.md").read_text()


def test_the_drawing_is_what_the_table_says() -> None:
    page = DOCS / "explanation" / "process-lifecycle.md"
    assert page.read_text() == drawing.render(), (
        "python -m tests.diprocd.drawing > docs/explanation/process-lifecycle.md"
    )


def test_every_key_of_a_nodes_configuration_is_described() -> None:
    names = {field.name for field in msgspec.structs.fields(NodeConfig)}
    assert {name for name in names if f"`{name}`" not in PAGE} == set()


@pytest.mark.parametrize("verb", ["master", "client", "worker", "status"])
def test_every_option_is_described(verb: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        main([verb, "--help"])
    options = set(re.findall(r"--[a-z-]+", said.getvalue())) - {"--help"}
    line = next(line for line in PAGE.splitlines() if line.startswith(f"diprocd {verb} "))
    assert set(re.findall(r"--[a-z-]+", line)) == options
