"""The pages about buildpacks and slugs say what is there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from appnode import receive
from bareku import site
from bareku.receive import build, buildpack, contract, sandbox
from bareku.receive.checkout import Limits as TreeLimits

DOCS = Path(__file__).resolve().parents[2] / "docs"
REFERENCE = (DOCS / "reference" / "buildpacks.md").read_text()


def test_every_buildpack_is_in_the_reference_in_its_order() -> None:
    named = re.findall(r"^\| `([a-z]+)` \| ", REFERENCE, flags=re.MULTILINE)
    assert named == [path.name for path in build.ours()]


def test_what_detection_looks_for_is_in_the_reference() -> None:
    assert {n for n in buildpack.LOOKED_FOR if f"`{n}`" not in REFERENCE} == set()


def test_the_environment_of_a_build_is_in_the_reference(tmp_path: Path) -> None:
    box = sandbox.Sandbox(sandbox.Kind.NONE, tmp_path, sandbox.Quotas(), ())
    names = contract.environment(box, "0" * 40).keys() - site.variables(os.environ).keys()
    assert {name for name in names if f"`{name}" not in REFERENCE} == set()


def test_the_limits_of_a_build_are_in_the_reference() -> None:
    limits, tree = build.Limits(), TreeLimits()
    table = REFERENCE.partition("## Confinement")[2]
    assert f"| time | {limits.timeout_s / 60:.0f} min |" in table
    assert f"| disk | {limits.disk_bytes // 2**30} GiB |" in table
    assert f"| processes | {limits.quotas.processes:,} |".replace(",", " ") in table
    assert f"| one file | {limits.quotas.file_bytes // 2**30} GiB |" in table
    assert f"{tree.entries:,}".replace(",", " ") in table


def test_every_word_of_the_app_node_is_explained() -> None:
    page = (DOCS / "explanation" / "slugs.md").read_text()
    assert set(re.findall(r"^\| `([a-z]+) [A-Z]", page, flags=re.MULTILINE)) == set(receive.VERBS)
