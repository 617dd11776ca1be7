"""Several nodes under one master: what happens when some of them, or the wires, or it, go."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bareku import curve
from diprocd import wire
from diprocd.spec import NodeDocument
from tests.diprocd.rig import SLEEP, Cluster, Node, Wire, start_ticks, wait

pytestmark = pytest.mark.slow

SLACK = 3  # times a bound is stretched on a machine that does other things, too
QUICK = {"beat_s": 0.2, "suspect_s": 1.0, "lost_s": 5.0}


@pytest.fixture
def make_wires() -> Iterator[Callable[[Cluster, Node], list[Wire]]]:
    made: list[Wire] = []

    def make(cluster: Cluster, node: Node) -> list[Wire]:
        wires = [Wire(cluster.desired["updates"]), Wire(cluster.desired["stats"])]
        node.config |= {"master_updates": wires[0].endpoint, "master_stats": wires[1].endpoint}
        node.save()
        made.extend(wires)
        return wires

    yield make
    for one in made:
        one.close()


def pids(cluster: Cluster) -> dict[int, int | None]:
    """pid -> start time of everything that the workers run."""
    return {
        one["pid"]: start_ticks(one["pid"])
        for node in cluster.nodes.values()
        for one in node.processes().values()
        if one["pid"]
    }


def all_up(cluster: Cluster) -> bool:
    nodes = cluster.status().get("nodes", {})
    return bool(nodes) and all(one["state"] == "up" for one in nodes.values())


def test_master_that_is_killed_and_comes_back_touches_no_process(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("web1", "web2")
    cluster.app(4)
    cluster.start()
    wait(lambda: len(cluster.ready()) == 4, 20)
    before = pids(cluster)
    cluster.daemons[-1].kill()
    cluster.app(5)
    cluster.publish()
    cluster.master()
    begun_s = time.monotonic()
    wait(
        lambda: all(
            node.status("client")["have"] == 2
            for node in cluster.nodes.values()
            if node.name == new_home(cluster)
        ),
        20,
    )
    assert time.monotonic() - begun_s < 1 * SLACK
    wait(lambda: len(cluster.ready()) == 5, 20)
    after = pids(cluster)
    assert before.items() <= after.items()


def new_home(cluster: Cluster) -> str:
    """The node that the fifth process was given to."""
    assign = json.loads((cluster.folder / "diprocd-placement.json").read_text())["assign"]
    home: str = assign["app.v1.web.5"]
    return home


def test_wire_that_swallows_packets_is_noticed_and_left(
    make_cluster: Callable[..., Cluster],
    make_wires: Callable[[Cluster, Node], list[Wire]],
) -> None:
    """As after a power cut of the master: the connection is dead and no packet says so."""
    cluster = make_cluster("web1")
    cluster.app(1)
    wires = make_wires(cluster, cluster.nodes["web1"])
    cluster.start()
    wait(lambda: len(cluster.ready()) == 1, 20)
    before = pids(cluster)
    for one in wires:
        one.cut()
    cluster.daemons[-1].kill()
    cluster.app(2)
    cluster.publish()
    cluster.master()
    time.sleep(3.5)  # the outage itself: longer than a heartbeat's patience
    for one in wires:
        one.heal()
    wait(lambda: cluster.nodes["web1"].status("client")["have"] == 2, 5 * SLACK)
    assert before.items() <= pids(cluster).items()


SHIFT = """
import os, sys, time
path = sys.argv[1]
while True:
    with open(path, "a") as f: f.write(f"{time.monotonic():.3f} {os.environ['HOST_NODE']}\\n")
    time.sleep(0.05)
"""


def test_partitioned_node_goes_on_but_gives_up_what_is_exclusive(
    make_cluster: Callable[..., Cluster],
    make_wires: Callable[[Cluster, Node], list[Wire]],
    tmp_path: Path,
) -> None:
    """In small: suspect 1 s + lease 1 s + grace 1 s is less than lost 5 s."""
    cluster = make_cluster("n1", "n2", "n3", timing=QUICK)
    diary = tmp_path / "diary"
    shift = ["sh", "-c", f"echo $$ >> {diary}; exec sleep 1000"]
    cluster.desired["apps"] = {
        "app": {"releases": {"1": {"processes": {"web": {"cmd": SLEEP, "count": 3}}}}},
        "solo": {
            "releases": {
                "1": {
                    "processes": {"cron": {"cmd": shift, "exclusive": True, "stop": {"grace_s": 1}}}
                }
            }
        },
    }
    for node in cluster.nodes.values():
        node.config["lease_s"] = 1.0
        node.save()
    wires = {name: make_wires(cluster, node) for name, node in cluster.nodes.items()}
    cluster.start()
    wait(lambda: len(cluster.ready()) == 4, 20, cluster.log)
    away = cluster.ready()["solo.v1.cron.1"]
    web_there = next(id_ for id_, n in cluster.ready().items() if n == away and "web" in id_)
    cut = cluster.nodes[away]
    web_pid = cut.process(web_there)["pid"]
    cron_pid = cut.process("solo.v1.cron.1")["pid"]
    for one in wires[away]:
        one.cut()
    wait(lambda: start_ticks(cron_pid) is None, 4 * SLACK, "the exclusive one is given up")
    ended = wait(lambda: cluster.ready().get("solo.v1.cron.1") not in {None, away}, 15 * SLACK)
    assert ended
    assert start_ticks(cron_pid) is None
    wait(lambda: cluster.ready().get(web_there) not in {None, away}, 10 * SLACK)
    assert start_ticks(web_pid) is not None, "what is not exclusive goes on behind the cut"
    for one in wires[away]:
        one.heal()
    wait(lambda: start_ticks(web_pid) is None, 10 * SLACK, "the extra one goes after the heal")
    wait(lambda: all_up(cluster) and len(cluster.ready()) == 4, 15)
    pids_seen = diary.read_text().split()
    assert len(pids_seen) == len(set(pids_seen)) == 2


def test_outage_of_most_nodes_moves_nothing(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("n1", "n2", "n3", timing={**QUICK, "lost_s": 2.0})
    cluster.app(3)
    cluster.start()
    wait(lambda: len(cluster.ready()) == 3, 20)
    placed = cluster.ready()
    before = pids(cluster)
    for name in ("n1", "n2"):
        cluster.nodes[name].daemons[-1].kill()
    wait(lambda: cluster.status()["outage"], 10)
    assert cluster.status()["health"] == "degraded"
    versions = {name: one["version"] for name, one in cluster.status()["nodes"].items()}
    time.sleep(1.5)  # time enough for a move that must not come
    assert {n: one["version"] for n, one in cluster.status()["nodes"].items()} == versions
    assert pids(cluster) == before
    for name in ("n1", "n2"):
        cluster.nodes[name].start("client")
    wait(lambda: all_up(cluster) and cluster.ready() == placed, 15)
    assert pids(cluster) == before


def test_lost_node_is_replaced_and_has_nothing_left_to_do_when_it_returns(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("n1", "n2", "n3", timing={**QUICK, "lost_s": 2.0})
    cluster.app(3)
    cluster.start()
    wait(lambda: len(cluster.ready()) == 3, 20)
    cluster.nodes["n1"].daemons[-1].kill()
    wait(lambda: cluster.status()["nodes"]["n1"]["state"] == "lost", 10)
    wait(lambda: len(cluster.ready()) == 3 and "n1" not in cluster.ready().values(), 10)
    cluster.nodes["n1"].start("client")
    wait(lambda: not cluster.nodes["n1"].processes(), 10, "the returned node stops the extras")
    assert len(cluster.ready()) == 3


def test_drained_node_hands_over_before_it_stops(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("n1", "n2", timing=QUICK)
    cluster.app(2, ready={"after_s": 0.5})
    cluster.start()
    wait(lambda: sorted(cluster.ready().values()) == ["n1", "n2"], 20)
    cluster.desired["nodes"]["n1"] = {"drain": True}
    cluster.publish()
    fewest = 2

    def handed_over() -> bool:
        nonlocal fewest
        ready = {
            id_
            for node in cluster.nodes.values()
            for id_, one in node.processes().items()
            if one["ready"]
        }
        fewest = min(fewest, len(ready))
        return not cluster.nodes["n1"].processes()

    wait(handed_over, 15)
    assert fewest == 2
    wait(lambda: list(cluster.ready().values()) == ["n2", "n2"], 5)
    assert cluster.status()["moving"] == {}


def test_process_without_a_fitting_node_is_reported_with_the_reason(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("n1")
    cluster.desired["nodes"]["n1"] = {"memory_bytes": 1000, "labels": ["python"]}
    cluster.app(2, memory_bytes=600)
    cluster.desired["apps"]["php"] = {
        "releases": {"1": {"processes": {"web": {"cmd": SLEEP, "labels": ["php8.2"]}}}}
    }
    cluster.start()
    wait(lambda: len(cluster.ready()) == 1, 20)
    assert cluster.status()["unplaced"] == [
        {"id": "app.v1.web.2", "reason": "no node has 600 bytes of memory left"},
        {
            "id": "php.v1.web.1",
            "reason": "no node that takes new processes has the labels php8.2",
        },
    ]


def test_two_clients_of_one_name_are_flagged_and_the_first_is_kept(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("web1")
    cluster.app(1)
    cluster.start()
    wait(lambda: len(cluster.ready()) == 1, 20)
    first = cluster.nodes["web1"].status("client")["client"]
    twin = cluster.node("web1", folder="twin")
    cluster.nodes["twin"] = twin
    twin.start("client")
    wait(lambda: cluster.status()["nodes"]["web1"]["duplicate_node"], 10)
    status = cluster.status()
    assert status["nodes"]["web1"]["duplicate_node"] == twin.status("client")["client"] != first
    assert status["error"] == "duplicate_node: web1"
    assert len(cluster.ready()) == 1


def test_restarted_client_is_no_duplicate(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("web1")
    cluster.app(1)
    cluster.start()
    wait(lambda: len(cluster.ready()) == 1, 20)
    cluster.nodes["web1"].daemons[-1].kill()
    again = cluster.nodes["web1"].start("client")
    wait(lambda: cluster.nodes["web1"].status("client").get("pid") == again.pid, 10)
    cluster.app(2)
    cluster.publish()
    wait(lambda: len(cluster.ready()) == 2, 10)
    assert cluster.status()["nodes"]["web1"]["duplicate_node"] is None


def test_restored_backup_keeps_quiet_until_it_is_told_to_take_over(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("web1")
    cluster.app(1)
    cluster.start()
    wait(lambda: len(cluster.ready()) == 1, 20)
    kept = cluster.folder / "diprocd-placement.json"
    shutil.copy(kept, cluster.folder / "backup")
    cluster.app(2)
    cluster.publish()
    wait(lambda: len(cluster.ready()) == 2, 10)
    before = pids(cluster)
    cluster.daemons[-1].kill()
    shutil.copy(cluster.folder / "backup", kept)
    cluster.app(3)
    cluster.publish()
    old = cluster.master()
    wait(lambda: cluster.status()["conflict"], 10)
    time.sleep(1.0)  # in which it might publish
    assert cluster.nodes["web1"].status("client")["have"] == 2
    assert pids(cluster) == before
    old.stop()
    cluster.master("--takeover")
    wait(lambda: len(cluster.ready()) == 3, 10, cluster.log)
    assert cluster.status()["epoch"] == 2
    assert cluster.status()["conflict"] is None
    assert before.items() <= pids(cluster).items()


def test_master_of_a_lower_epoch_keeps_quiet(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("web1")
    cluster.app(1)
    cluster.publish()
    node = cluster.nodes["web1"]
    newer = NodeDocument(node="web1", epoch=3, version=7, processes=[], empty=True)
    node.conf_file.write_bytes(json.dumps(wire_form(newer)).encode())
    body = node.conf_file.read_bytes()
    node.start("worker")
    node.start("client")
    cluster.master()
    wait(lambda: cluster.status().get("conflict"), 10)
    assert "epoch 3" in cluster.status()["conflict"]
    assert node.conf_file.read_bytes() == body
    assert node.processes() == {}


def wire_form(document: NodeDocument) -> Any:
    import msgspec

    return msgspec.to_builtins(document)


def test_client_killed_at_any_moment_leaves_the_old_document_or_the_new(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("web1")
    cluster.app(0, env={"PADDING": "x" * 200_000})
    cluster.publish()
    cluster.master()
    node = cluster.nodes["web1"]
    seen = set()
    for turn in range(12):
        client = node.start("client")
        wait(lambda: node.status("client").get("pid") == client.pid, 10)  # noqa: B023
        for count in (1, 2):
            cluster.app(count, env={"PADDING": "x" * 200_000, "TURN": f"{turn}.{count}"})
            cluster.publish()
            time.sleep(0.003 * turn)
        client.kill()
        if node.conf_file.exists():
            body = node.conf_file.read_bytes()
            document = wire.decode(body, NodeDocument, "the file")
            wire.check_document(document, "web1")
            seen.add(document.version)
    assert seen
    final = node.start("client")
    wait(lambda: node.status("client").get("pid") == final.pid, 10)
    version = cluster.status()["nodes"]["web1"]["version"]
    wait(lambda: node.status("client")["have"] == version, 10)


def test_cluster_with_keys_works_and_a_node_with_a_foreign_key_is_left_out(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster("n1", "n2")
    keys = {name: curve.make(tmp_path / f"{name}.key") for name in ("master", "n1", "n2", "x")}
    cluster.desired["curve_key"] = str(tmp_path / "master.key")
    for name, node in cluster.nodes.items():
        cluster.desired["nodes"][name] = {"curve": keys[name].public}
        own = "x" if name == "n2" else name
        node.config |= {
            "curve_key": str(tmp_path / f"{own}.key"),
            "curve_master": keys["master"].public,
        }
        node.save()
    cluster.app(2)
    cluster.start()
    wait(lambda: list(cluster.ready().values()) == ["n1"], 20, cluster.log)
    assert cluster.status()["nodes"]["n2"]["state"] == "unknown"
    assert not cluster.nodes["n2"].conf_file.exists()
    cluster.desired["nodes"]["n2"]["curve"] = keys["x"].public
    cluster.publish()
    wait(lambda: len(cluster.ready()) == 2, 20, cluster.log)


def test_node_that_nobody_desires_is_named_and_gets_nothing(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("web1")
    cluster.app(1)
    cluster.start()
    stranger = cluster.node("web10")
    cluster.nodes["web10"] = stranger
    stranger.start("client")
    wait(lambda: cluster.status().get("strangers") == ["n/web10"], 10)
    assert not stranger.conf_file.exists()


def test_node_that_is_taken_out_is_told_to_run_nothing(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("n1", "n2")
    cluster.app(2)
    cluster.start()
    wait(lambda: len(cluster.ready()) == 2, 20)
    del cluster.desired["nodes"]["n1"]
    cluster.publish()
    wait(lambda: not cluster.nodes["n1"].processes(), 10)
    wait(lambda: list(cluster.ready().values()) == ["n2", "n2"], 10)


def test_change_is_known_to_be_ready_within_a_moment(
    make_cluster: Callable[..., Cluster],
) -> None:
    """File to master to client to worker to process and back, without waiting for any beat."""
    cluster = make_cluster("web1", timing={"beat_s": 60})
    cluster.nodes["web1"].config["interval_s"] = 60
    cluster.nodes["web1"].save()
    cluster.app(1)
    cluster.start()
    wait(lambda: len(cluster.ready()) == 1, 20)
    took_s = []
    for count in (2, 3, 4):
        cluster.app(count)
        begun_s = time.monotonic()
        cluster.publish()
        wait(lambda: len(cluster.ready()) == count, 10)  # noqa: B023
        took_s.append(time.monotonic() - begun_s)
    assert min(took_s) < 0.5
