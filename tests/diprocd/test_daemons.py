"""The three daemons end to end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.diprocd.rig import Cluster, Node, entry, start_ticks, wait

pytestmark = pytest.mark.slow


def test_desired_state_reaches_the_process_and_its_readiness_the_master(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("web1")
    cluster.app(2)
    cluster.start()
    wait(lambda: len(cluster.ready()) == 2, 15, "2 ready")
    status = cluster.status()
    assert status["nodes"]["web1"]["applied"] == status["nodes"]["web1"]["version"]
    assert status["health"] == "ok"


def test_worker_that_is_killed_finds_its_processes_again(node: Node) -> None:
    node.write(entry(), entry(index=2))
    worker = node.worker()
    before = {id_: one["pid"] for id_, one in node.wait_ready(2).items()}
    ticks = {pid: start_ticks(pid) for pid in before.values()}
    worker.kill()
    node.worker()
    after = {id_: one["pid"] for id_, one in node.wait_ready(2).items()}
    assert after == before
    assert {pid: start_ticks(pid) for pid in after.values()} == ticks
    assert node.status()["counts"]["adopted"] == 2
    assert node.status()["counts"]["starts"] == 0
