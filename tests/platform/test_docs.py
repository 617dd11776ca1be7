"""What the docs name exists, and what exists is in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from bareku.app import AppSettings, Checks
from bareku.settings import Settings
from tests.platform import cli_reference

TOP = Path(__file__).resolve().parents[2]
PAGES = sorted([TOP / "README.md", *(TOP / "docs").rglob("*.md")])


def test_command_line_reference_is_what_the_verbs_say() -> None:
    page = (TOP / "docs" / "reference" / "cli.md").read_text()
    assert page == cli_reference.render(), (
        "python -m tests.platform.cli_reference > docs/reference/cli.md"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(TOP)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_setting_is_in_the_reference() -> None:
    page = (TOP / "docs" / "reference" / "settings.md").read_text()
    names = {
        field.name for kind in (Settings, AppSettings) for field in msgspec.structs.fields(kind)
    }
    names = names - {"checks"} | {f"checks.{f.name}" for f in msgspec.structs.fields(Checks)}
    assert {name for name in names if f"`{name}`" not in page} == set()
