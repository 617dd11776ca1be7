"""What may go wrong on a node, injected for real; each test names what must be true after it."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bareku.daemon import is_fresh
from diprocd import procfs
from tests.diprocd.lone import SLEEP, Daemon, Node, await_until, entry, sh

pytestmark = pytest.mark.slow

DEAF = sh("trap 'date +%s.%N' TERM; echo up; while :; do sleep 0.05; done")


@pytest.fixture
def new_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(**settings: Any) -> Node:
        node = Node(tmp_path / f"node{len(made)}", settings)
        made.append(node)
        return node

    yield make
    for node in made:
        node.end()


@pytest.fixture
def node(new_node: Callable[..., Node]) -> Node:
    """A node without confinement; its worker is not started."""
    return new_node()


@pytest.fixture
def confined(new_node: Callable[..., Node]) -> Node:
    """A node with all the confinement the machine has (for tests marked root)."""
    return new_node(isolation="auto")


def times(node: Node, name: str = "web.1") -> list[float]:
    return [float(line) for line in node.log(name) if line[:1].isdigit()]


def gone(pid: int, start_ticks: int) -> bool:
    found = procfs.read_stat(pid)
    return found is None or found.start_ticks != start_ticks or not found.is_alive


# 1-5: the worker dies


def test_a_killed_worker_leaves_every_process_and_the_next_adopts_them(node: Node) -> None:
    node.start(*(entry(f"web.{index}") for index in range(1, 21)))
    before = node.pids()
    node.worker.kill()
    node.worker.start()
    status = node.await_worker()
    assert status["counts"] == {"adopted": 20, "starts": 0, "locked": 0}
    assert node.pids() == before
    assert is_fresh(node.run / "worker.json")
    assert all(one["ready"] for one in status["processes"])


@pytest.mark.parametrize("where", ["delay_before_lock", "delay_after_lock"])
def test_a_worker_killed_between_spawn_and_record_starts_nothing_twice(
    node: Node, where: str
) -> None:
    node.put(*(entry(f"web.{index}") for index in range(1, 4)))
    node.worker.altered, node.worker.fail = where, "spawned=exit"
    node.worker.start()
    assert node.worker.wait() == -signal.SIGKILL
    node.worker.fail = ""
    node.worker.start()
    status = node.await_ready(3)
    assert all(one["fails"] == 0 for one in status["processes"])
    assert status["counts"]["locked"] == (1 if where == "delay_before_lock" else 0)
    time.sleep(0.3)  # a launcher that is late would show now
    assert sorted(one.pid for one in node.living()) == sorted(
        one["pid"] for one in status["processes"]
    )


def test_a_worker_killed_after_the_stop_signal_stops_the_process_again(node: Node) -> None:
    node.start(entry(cmd=DEAF, stop={"grace_s": 1}))
    await_until(lambda: node.log() == ["up"])
    node.worker.kill()
    node.worker.fail = "signalled=exit"
    node.put()
    node.worker.start()
    assert node.worker.wait() == -signal.SIGKILL
    node.worker.fail = ""
    begun = time.monotonic()
    node.worker.start()
    node.await_gone(2 * 1 + 1)
    assert time.monotonic() - begun >= 1, "the grace is given in full"
    assert len(times(node)) == 2, "TERM came twice"


@pytest.mark.parametrize("is_reaped", [True, False])
def test_what_died_while_the_worker_was_away_is_started_again_at_once(
    node: Node, is_reaped: bool
) -> None:
    node.start(entry(cmd=sh("trap 'exit 7' USR1; echo $$; while :; do sleep 0.01; done")))
    [(pid, start)] = node.pids().values()
    await_until(lambda: node.log())
    if is_reaped:
        node.worker.kill()
        os.kill(pid, signal.SIGUSR1)
        await_until(lambda: procfs.read_stat(pid) is None)
    else:  # a worker that hangs keeps its zombies
        node.worker.signal(signal.SIGSTOP)
        os.kill(pid, signal.SIGUSR1)
        await_until(lambda: gone(pid, start))
        node.worker.kill()
    node.worker.start()
    status = node.await_ready(1)
    one = status["processes"][0]
    assert status["counts"]["adopted"] == 0
    assert one["pid"] != pid
    assert (one["restarts"], one["fails"]) == (1, 0)
    seen = (one["exit"]["known"], one["exit"]["code"], one["exit"]["signal"])
    assert seen in {(True, 7, None), (False, None, None)}
    if is_reaped:
        assert seen == (False, None, None), "what nobody saw is not claimed"


def test_a_pid_file_that_names_a_stranger_leads_to_nobody(node: Node) -> None:
    node.start(entry())
    [(pid, start)] = node.pids().values()
    record = Path(node.process()["dir"]) / "pid"
    node.worker.kill()
    os.kill(pid, signal.SIGKILL)
    await_until(lambda: gone(pid, start))
    stranger = subprocess.Popen(SLEEP)
    try:
        record.write_text(f"{stranger.pid} {start}\n")
        node.worker.start()
        assert node.await_ready(1)["counts"]["adopted"] == 0
        assert node.process()["pid"] != stranger.pid
        node.put()
        node.await_gone()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.root
def test_a_pid_that_a_stranger_got_in_between_is_left_alone(tmp_path: Path) -> None:
    argv = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable,
            str(Path(__file__).with_name("reused_pid.py")), str(tmp_path)]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.stdout == "the stranger lives\n", done.stdout + done.stderr


# 6-11: processes that do not go as they should


def test_a_process_that_ignores_term_is_killed_at_grace(node: Node) -> None:
    node.start(entry(cmd=DEAF, stop={"grace_s": 0.5}))
    await_until(lambda: node.log() == ["up"])
    begun = time.monotonic()
    node.put()
    node.await_gone()
    assert 0.5 <= time.monotonic() - begun < 3
    assert node.events("killed")
    assert node.events("exited")[-1]["signal"] == 9


def test_a_stopped_process_is_continued_so_that_term_can_end_it(node: Node) -> None:
    node.start(entry(stop={"grace_s": 8}))
    os.kill(node.process()["pid"], signal.SIGSTOP)
    begun = time.monotonic()
    node.put()
    node.await_gone()
    assert time.monotonic() - begun < 4
    assert node.events("exited")[-1]["signal"] == signal.SIGTERM
    assert not node.events("killed")


ESCAPE = sh("(setsid sh -c 'trap : TERM; while :; do sleep 0.1; done' &) ; exec sleep 600")


@pytest.mark.parametrize("isolation", ["none", pytest.param("auto", marks=pytest.mark.root)])
def test_a_daemon_that_escaped_its_session_dies_with_its_process(
    new_node: Callable[..., Node], isolation: str
) -> None:
    node = new_node(isolation=isolation)
    node.start(entry(cmd=ESCAPE, user="root", stop={"grace_s": 0.5}))
    await_until(lambda: len({one.session for one in node.living()}) == 2)
    most = [0]

    def is_gone() -> bool:
        here = node.processes()
        most[0] = max(most[0], *(one["escaped"] for one in here), 0)
        return not here

    node.put()
    await_until(is_gone)
    assert not node.living()
    assert isolation != "none" or most[0] >= 1, "it was reported"


def test_children_that_outlive_their_parent_get_a_second_before_the_restart(node: Node) -> None:
    node.start(
        entry(cmd=sh('echo start; (trap "" TERM; exec sleep 600) & trap "exit 3" USR1; wait'))
    )
    await_until(lambda: node.log())
    first = node.process()["pid"]
    begun = time.monotonic()
    os.kill(first, signal.SIGUSR1)
    node.until(lambda s: s["processes"][0]["pid"] not in {None, first})
    assert 0.9 < time.monotonic() - begun < 4
    one = node.await_ready(1)["processes"][0]
    assert one["exit"]["code"] == 3
    assert {proc.session for proc in node.living()} == {one["pid"]}, "nothing is left of the first"


@pytest.mark.root
def test_a_fork_bomb_is_held_and_ends_within_a_second(confined: Node) -> None:
    bomb = sh("b() { b | b & }; while :; do b; sleep 0.05; done 2>/dev/null")
    confined.start(entry("web.1", bomb, pids=64), entry("web.2", sh("while :; do date; sleep 0.1; done")))  # fmt: skip
    if "pids" not in confined.status()["isolation"]["limits"]:
        pytest.skip("no pids controller here")
    group = next(Path("/sys/fs/cgroup").rglob(f"*/{Path(confined.process()['dir']).name}/pids.max"))
    await_until(lambda: int(group.with_name("pids.current").read_text()) >= 60)
    lines = len(confined.log("web.2"))
    await_until(lambda: len(confined.log("web.2")) > lines + 5, 5, "the other goes on")
    begun = time.monotonic()
    confined.put(entry("web.2", sh("while :; do date; sleep 0.1; done")))
    confined.until(lambda s: len(s["processes"]) == 1, 10)
    assert time.monotonic() - begun < 3
    assert len({proc.session for proc in confined.living()}) == 1


@pytest.mark.root
def test_a_process_that_eats_memory_dies_alone_and_is_started_again(confined: Node) -> None:
    eater = [sys.executable, "-c", "x = bytearray(200 << 20); print(len(x))"]
    confined.start(entry("web.2"))
    if "memory" not in confined.status()["isolation"]["limits"]:
        pytest.skip("no memory controller here")
    other = confined.process("web.2")["pid"]
    confined.put(entry("web.1", eater, memory_bytes=64 << 20, user="root"), entry("web.2"))
    confined.until(lambda s: any(one["fails"] >= 2 for one in s["processes"]))
    one = confined.process("web.1")
    assert one["exit"]["oom"]
    assert confined.events("oom")
    assert confined.process("web.2")["pid"] == other
    assert confined.log("web.1") == []


# 12-14: starts that fail, and that replace others


def test_a_crash_loop_is_slowed_and_reported_and_outlives_the_worker(node: Node) -> None:
    node.put(entry(cmd=sh("date +%s.%N; exit 1")))
    node.worker.start()
    node.until(lambda s: s["processes"] and s["processes"][0]["fails"] >= 4)
    assert not node.process()["crash_loop"]
    node.until(lambda s: s["processes"][0]["fails"] == 5)
    assert node.process()["crash_loop"]
    assert node.process()["exit"] == {"code": 1, "signal": None, "known": True, "oom": False}
    begun = psutil.Process(node.worker.pid).cpu_times()
    time.sleep(2)
    ended = psutil.Process(node.worker.pid).cpu_times()
    assert (ended.user + ended.system) - (begun.user + begun.system) < 0.1
    starts = times(node)
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    for gap, middle in zip(gaps, [0.25, 0.5, 1, 2], strict=False):
        assert 0.9 * middle <= gap < 1.1 * middle + 0.4
    node.worker.kill()
    node.worker.start()
    node.await_worker()
    assert node.process()["fails"] == 5
    assert node.process()["crash_loop"]
    assert len(times(node)) == 5, "the new worker waits as long as the old one would have"


def test_a_generation_that_never_gets_ready_never_displaces_the_old_one(node: Node) -> None:
    good = entry(cmd=sh("touch $DIPROC_READY; exec sleep 600"), ready={"file": True})
    node.start(good)
    before = node.pids()
    node.put(good | {"env": {"A": "1"}, "cmd": SLEEP, "ready": {"file": True, "timeout_s": 0.5}})
    node.until(lambda s: any(one["fails"] >= 2 for one in s["processes"]))
    bad = next(one for one in node.processes() if not one["ready"])
    assert bad["error"] == "not ready within 0.5 s"
    assert before.items() <= {**node.pids(), **before}.items()
    old = next(one for one in node.processes() if one["ready"])
    assert (old["id"], old["pid"]) == (good["id"], before[good["id"]][0])
    node.put(good)
    node.until(lambda s: len(s["processes"]) == 1)
    assert node.pids() == before


def test_a_good_replacement_never_leaves_fewer_ready_than_wanted(node: Node) -> None:
    cmd = sh(
        "trap 'echo term $(date +%s.%N); exit 0' TERM; sleep 0.2; touch $DIPROC_READY;"
        " echo ready $(date +%s.%N); while :; do sleep 0.01; done"
    )
    three = [entry(f"web.{index}", cmd, ready={"file": True}) for index in (1, 2, 3)]
    node.start(*three)
    node.put(*(one | {"env": {"A": "1"}} for one in three))

    def is_done(status: dict[str, Any]) -> bool:
        assert sum(one["ready"] for one in status["processes"]) >= 3
        return len(status["processes"]) == 3 and status["applied"] == 2

    node.until(is_done)
    for index in (1, 2, 3):
        said = [line.split() for line in node.log(f"web.{index}")]
        assert [word for word, _ in said] == ["ready", "ready", "term"]
        assert float(said[2][1]) > float(said[1][1])


# 15-20: files, disks, limits, clocks

GOOD = json.dumps({"p": 1, "node": "web1", "epoch": 1, "version": 9, "processes": [entry()]})
BAD = {
    "truncated": GOOD[:80].encode(),
    "garbage": b"\0\xff" * 50,
    "missing": None,
    "nothing in it": b"",
    "of another type": b'["a"]',
    "wrongly typed": GOOD.replace('"release": 1', '"release": "one"').encode(),
    "without the list": b'{"node": "web1", "epoch": 1, "version": 9}',
    "an empty list that does not say so": b'{"node": "web1", "epoch": 1, "version": 9, "processes": []}',
    "another node's": GOOD.replace("web1", "web10").encode(),
    "a way out of the folder": GOOD.replace('"app": "shop"', '"app": "../shop"').encode(),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_bad_document_changes_nothing_and_is_reported_until_a_good_one_comes(
    node: Node, data: bytes | None
) -> None:
    node.start(entry())
    before = node.pids()
    if data is None:
        node.document.unlink()
    else:
        node.write(data)
    status = node.until(lambda s: s["config_error"], 2.5, "config_error")
    assert status["health"] == "degraded"
    node.worker.kill()
    node.worker.start()
    assert node.await_worker()["config_error"]
    assert node.pids() == before
    node.put(entry())
    node.until(lambda s: not s["config_error"] and s["applied"] == node.version)
    assert node.pids() == before


def test_a_folder_or_an_enormous_file_in_the_documents_place_changes_nothing(node: Node) -> None:
    node.start(entry())
    before = node.pids()
    node.document.unlink()
    node.document.mkdir()
    node.until(lambda s: s["config_error"], 2.5)
    node.document.rmdir()
    with node.document.open("wb") as file:
        file.truncate(1 << 40)
    node.until(lambda s: "too large" in (s["config_error"] or ""), 2.5)
    node.document.unlink()
    node.put(entry())
    node.until(lambda s: not s["config_error"], 2.5)
    assert node.pids() == before


def test_a_damaged_state_folder_neither_stops_nor_doubles_anything(node: Node) -> None:
    node.start(*(entry(f"web.{index}") for index in (1, 2, 3)))
    before = node.pids()
    folders = [Path(one["dir"]) for one in node.processes()]
    node.worker.kill()
    (folders[0] / "spec.json").write_bytes(b"\0garbage")
    (folders[1] / "stat.json").write_bytes(b'{"phase": 7}')
    (folders[2] / "stat.json").unlink()
    (node.run / "worker.json").write_bytes(b"\xff")
    (node.run / "i" / "stranger").write_text("not a folder")
    node.worker.start()
    node.await_ready(3)
    assert len(node.living()) == 3
    assert {pid for pid, _ in before.values()} >= {node.pids()[f"shop.v1.web.{i}"][0] for i in (2, 3)}  # fmt: skip


def test_a_second_worker_ends_and_the_first_does_not_notice(node: Node) -> None:
    node.start(entry())
    second = Daemon("worker", node.config, node.folder / "second.out")
    second.start()
    assert second.wait() == 1
    assert "another worker holds the lock" in second.log.read_text()
    assert node.status()["pid"] == node.worker.pid
    assert len(node.living()) == 1


def test_workers_of_one_machine_never_take_each_others_processes(
    new_node: Callable[..., Node],
) -> None:
    one, other = new_node(), new_node()
    escape = sh("(setsid sleep 600 &); exec sleep 600")  # two processes that start no others
    for node in (one, other):
        node.start(entry(cmd=escape, stop={"grace_s": 0.3}))
        await_until(lambda node=node: len(node.living()) == 2)
    assert one.process()["gen"] == other.process()["gen"]
    before = {(proc.pid, proc.start_ticks) for proc in other.living()}
    one.put()
    one.await_gone()
    assert {(proc.pid, proc.start_ticks) for proc in other.living()} == before


def test_after_a_reboot_without_a_master_everything_is_started_a_few_at_once(node: Node) -> None:
    begin = sh("date +b%s.%N; sleep 0.9; touch $DIPROC_READY; exec sleep 600")
    node.start(*(entry(f"web.{index}", begin, ready={"file": True}) for index in range(1, 9)))
    node.worker.kill()
    node.end()
    shutil.rmtree(node.run)
    node.run.mkdir()
    shutil.rmtree(node.folder / "logs")
    node.worker.start()
    status = node.await_ready(8)
    assert status["counts"]["starts"] == 8
    assert status["counts"]["adopted"] == 0
    begun = sorted(float(node.log(f"web.{index}")[0][1:]) for index in range(1, 9))
    assert begun[4] - begun[0] > 0.8, "the fifth waited for one of the first four"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.root
def test_a_full_run_folder_harms_nothing_that_runs_and_heals(
    new_node: Callable[..., Node], small_disk: Path
) -> None:
    node = new_node(run=str(small_disk))
    node.run = small_disk
    node.start(entry())
    before = node.pids()
    record = Path(node.process()["dir"]) / "pid"
    text = record.read_text()
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(1 << 20))
    node.put(entry(), entry("web.2"))
    log = node.worker.log
    await_until(lambda: "ENOSPC" in log.read_text(), 5, "the error in the log")
    assert record.read_text() == text
    assert node.pids() == before
    filler.unlink()
    node.await_ready(2)
    assert node.pids().items() >= before.items()


@pytest.mark.root
def test_a_full_log_disk_harms_nothing_that_runs(
    new_node: Callable[..., Node], small_disk: Path
) -> None:
    node = new_node(logs=str(small_disk))
    node.start(entry(cmd=sh("while :; do echo line; sleep 0.05; done")))
    before = node.pids()
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(1 << 20))
    node.put(entry(cmd=sh("while :; do echo line; sleep 0.05; done")), entry("web.2", release=2))
    status = node.until(lambda s: len(s["processes"]) == 2)
    assert node.pids().items() >= before.items()
    (small_disk / "filler").unlink()
    node.await_ready(2)
    assert status["processes"][0]["pid"] == before["shop.v1.web.1"][0]


SLUG = "2765e91b-50c4-4d04-b92c-f38f82661b2a"


def test_what_cannot_be_started_says_why_and_harms_nobody(node: Node, tmp_path: Path) -> None:
    forbidden = tmp_path / "forbidden"
    forbidden.write_text("#!/bin/sh\n")
    forbidden.chmod(0o644)
    node.put(
        entry("web.1"),
        entry("missing.1", ["/no/such/program"]),
        entry("forbidden.1", [str(forbidden)]),
        entry("slug.1", slug=SLUG),
        entry("folder.1", cwd="/no/such/folder"),
    )
    node.worker.start()
    status = node.until(lambda s: sum(one["fails"] > 1 for one in s["processes"]) == 4)
    errors = {one["type"]: one["error"] for one in status["processes"]}
    assert errors["web"] is None
    assert errors["missing"] == "cannot run /no/such/program: ENOENT"
    assert str(forbidden) in errors["forbidden"]
    assert SLUG in errors["slug"]
    assert "/no/such/folder" in errors["folder"]
    assert node.process("web.1")["restarts"] == 0


def test_a_slug_that_comes_later_heals_at_once(node: Node) -> None:
    node.put(entry(cmd=["sh", "run.sh"], slug=SLUG))
    node.worker.start()
    node.until(lambda s: s["processes"] and s["processes"][0]["fails"] >= 4)
    coming = node.folder / "coming"
    coming.mkdir()
    (coming / "run.sh").write_text("exec sleep 600\n")
    begun = time.monotonic()
    coming.rename(node.slugs / SLUG)
    node.await_ready(1)
    assert time.monotonic() - begun < 1, "it did not wait for its backoff of two seconds"


def test_without_descriptors_what_runs_runs_on_and_the_rest_waits(node: Node) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    node.put(entry("web.1"))
    node.worker.start()
    node.await_ready(1)
    resource.prlimit(node.worker.pid, resource.RLIMIT_NOFILE, (12, limit[1]))
    before = node.pids()
    node.put(*(entry(f"web.{index}") for index in range(1, 13)))
    node.until(lambda s: any("EMFILE" in (one["error"] or "") for one in s["processes"]))
    assert node.pids().items() >= before.items()
    resource.prlimit(node.worker.pid, resource.RLIMIT_NOFILE, limit)
    node.await_ready(12, 20)
    assert node.pids().items() >= before.items()


def test_a_wall_clock_that_jumps_moves_no_timer(node: Node) -> None:
    node.worker.altered = "jumping_clock"
    node.start(entry("web.1"), entry("deaf.1", DEAF, stop={"grace_s": 1}),
               entry("late.1", ready={"after_s": 0.5}))  # fmt: skip
    await_until(lambda: node.log("deaf.1") == ["up"])
    before = node.pids()
    begun = time.monotonic()
    node.put(entry("web.1"), entry("late.1", ready={"after_s": 0.5}))
    node.until(lambda s: len(s["processes"]) == 2)
    assert 1 <= time.monotonic() - begun < 2.5
    assert all(one["restarts"] == 0 for one in node.processes())
    assert node.pids().items() <= before.items()
    at = [one["at"] for one in node.status()["events"]]
    assert any(abs(moment - time.time()) > 600 for moment in at), "the clock did jump"


# 26, 27: upgrade and logs


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_an_upgrade_in_place_keeps_the_children_and_their_exit_codes(
    node: Node, number: int
) -> None:
    node.start(entry(cmd=sh("trap 'exit 7' USR1; echo $$; while :; do sleep 0.01; done")))
    await_until(lambda: node.log())
    before = node.pids()
    started = node.status()["started_at"]
    node.worker.signal(number)
    status = node.until(lambda s: s["started_at"] != started)
    assert (status["pid"], status["counts"]["adopted"]) == (node.worker.pid, 1)
    assert node.pids() == before
    [(pid, _)] = before.values()
    os.kill(pid, signal.SIGUSR1)
    status = node.until(lambda s: s["processes"][0]["restarts"] == 1)
    assert status["processes"][0]["exit"]["code"] == 7
    assert status["processes"][0]["exit"]["known"]


def test_a_worker_told_to_stop_leaves_its_processes(node: Node) -> None:
    node.start(entry())
    before = node.pids()
    node.worker.stop()
    [(pid, start)] = before.values()
    assert not gone(pid, start)
    node.worker.start("--stop-all")
    assert node.worker.wait() == 0
    assert not node.living()
