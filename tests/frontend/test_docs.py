"""Every key, counter and status of the frontend is in its reference page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from frontend.config import Bounds, Config, Door, Timeouts
from frontend.metrics import COUNTERS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "frontend.md").read_text()


@pytest.mark.parametrize("kind", [Config, Bounds, Timeouts, Door])
def test_every_key_is_documented_with_its_default(kind: Any) -> None:
    for field in msgspec.structs.fields(kind):
        rows = [row.split("|") for row in PAGE.splitlines() if row.startswith("| `")]
        line = next(("|".join(row) for row in rows if f"`{field.name}`" in row[1]), "")
        assert line, field.name
        if isinstance(field.default, int | float) and field.default is not True:
            assert f"{field.default:g}" in line or str(field.default) in line, line


def test_every_counter_is_documented() -> None:
    for name in COUNTERS:
        assert f"`{name}`" in PAGE, name
