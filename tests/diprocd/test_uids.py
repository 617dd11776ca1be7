"""A user number for each app."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bareku.errors import BarekuError
from diprocd.uids import uid_of
from tests.diprocd.rig import Node, entry, wait


def test_app_keeps_its_number_and_others_get_another(tmp_path: Path) -> None:
    assert uid_of("a", 7000, tmp_path / "data") == 7000
    assert uid_of("b", 7000, tmp_path / "data") == 7001
    assert uid_of("a", 7000, tmp_path / "data") == 7000
    assert (tmp_path / "data/.uids.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": "x"}'])
def test_damaged_table_stops_the_start_rather_than_guess(tmp_path: Path, text: str) -> None:
    (tmp_path / ".uids.json").write_text(text)
    with pytest.raises(BarekuError, match="cannot read the users"):
        uid_of("a", 7000, tmp_path)


@pytest.mark.slow
@pytest.mark.root
def test_apps_of_a_node_with_uid_base_cannot_read_each_other(
    make_node: Callable[..., Node],
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: gives processes users of their own")
    node = make_node(isolation="auto", uid_base=70_000)
    secret = {"SECRET": "s3cret"}
    node.write(entry("alpha", env=secret), entry("beta", env=secret, cmd=["sleep", "999"]))
    node.worker()
    node.wait_ready(2)
    alpha, beta = node.process("alpha.v1.web.1"), node.process("beta.v1.web.1")
    owners = [Path(f"/proc/{one['pid']}").stat().st_uid for one in (alpha, beta)]
    assert sorted(owners) == [70_000, 70_001]
    spy = f"cat /proc/{alpha['pid']}/environ || echo refused; sleep 999"
    node.write(entry("alpha", env=secret), entry("beta", cmd=["sh", "-c", spy]))
    wait(lambda: "refused" in node.output("beta.v1.web.1"), 10, node.log)
    assert "s3cret" not in node.output("beta.v1.web.1")
