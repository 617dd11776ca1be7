"""Connectors, apps and frontends that come, go and die."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from frontend.link import Kind

pytestmark = pytest.mark.slow


def ask(frontend: Any, **options: Any) -> bytes:
    return frontend.get("/", **options).partition(b"\r\n\r\n")[2]


def wait(what: Any, *frontends: Any, deadline_s: float = 10.0) -> Any:
    """Poll, and let the frontends speak meanwhile."""
    end = time.monotonic() + deadline_s
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        for frontend in frontends:
            frontend.pump(0.02)
    return found


def test_draining_process_gets_no_more_and_is_drained_after_its_last_answer(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend)
    connector.runs(app.entry)
    handler = frontend.handler()
    number = frontend.request("/sleep?s=0.6")
    wait(lambda: app.log() == ["GET /sleep?s=0.6"], frontend)
    connector.runs({**app.entry, "state": "draining"})
    frontend.wait(Kind.GOODBYE, handler)
    assert not (app.folder / "drained").exists()
    assert frontend.reply(number).endswith(b"slept")
    wait((app.folder / "drained").exists, frontend)


def test_drained_is_not_written_through_a_link_of_the_apps_making(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    victim = rig.folder / "victim"
    (app.folder / "drained").symlink_to(victim)
    connector = rig.connector(frontend)
    connector.runs({**app.entry, "state": "draining"}, rig.app("web.2").entry)
    assert ask(frontend, handler=frontend.handler("web.2")) == b"Hello, world\n"
    assert not victim.exists()


def test_silent_frontend_delays_draining_for_a_bounded_time(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend)
    connector.runs(app.entry)
    frontend.handler()
    connector.runs({**app.entry, "state": "draining"})
    began = time.monotonic()
    wait((app.folder / "drained").exists)
    assert time.monotonic() - began < 4


def test_draining_process_that_was_never_served_is_drained_at_once(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend)
    connector.runs({**app.entry, "state": "draining"})
    wait((app.folder / "drained").exists, frontend)
    assert not frontend.hellos


def test_workers_word_ends_the_requests_of_a_gone_process_at_once(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend)
    connector.runs(app.entry)
    number = frontend.request("/sleep?s=30")
    wait(lambda: app.log() == ["GET /sleep?s=30"], frontend)
    began = time.monotonic()
    connector.runs({**app.entry, "state": "backoff", "ready": False, "pid": None, "port": None})
    assert frontend.outcome(number) == ("fail", 502)
    assert time.monotonic() - began < 0.5
    frontend.wait(Kind.GOODBYE)


def test_restarted_process_is_another_handler(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend)
    connector.runs(app.entry)
    first = frontend.handler()
    other = rig.app()
    connector.runs({**other.entry})
    frontend.wait(Kind.GOODBYE, first)
    assert frontend.handler() != first
    assert ask(frontend) == b"Hello, world\n"


def test_missing_or_broken_worker_file_changes_nothing(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend)
    connector.runs(app.entry)
    assert ask(frontend) == b"Hello, world\n"
    connector.worker_path.write_text("{")
    wait(lambda: connector.status()["health"] == "degraded", frontend)
    assert ask(frontend) == b"Hello, world\n"
    connector.worker_path.unlink()
    wait(lambda: "No such file" in (connector.status()["error"] or ""), frontend)
    assert ask(frontend) == b"Hello, world\n"


def test_app_that_does_not_listen_is_refused_and_gets_nothing_until_it_does(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend, capacity=7)
    connector.runs(app.entry)
    assert ask(frontend) == b"Hello, world\n"
    app.kill()
    number = frontend.request("/", method="POST", headers={"content-length": "0"})
    assert frontend.outcome(number) in (("refuse", None), ("fail", 502))
    number = frontend.request("/", method="POST", headers={"content-length": "0"})
    assert frontend.outcome(number) == ("refuse", None)
    assert frontend.wait(Kind.CAPACITY)[1] == (0,)
    rig.app(port=app.port)
    assert frontend.wait(Kind.CAPACITY)[1] == (7,)
    assert ask(frontend) == b"Hello, world\n"


def test_app_that_dies_over_a_request_is_a_502(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend)
    connector.runs(app.entry)
    assert frontend.outcome(frontend.request("/die")) == ("fail", 502)


def test_upgraded_connections_and_streams_do_not_count(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend, capacity=2)
    connector.runs(app.entry)
    headers = {"connection": "upgrade", "upgrade": "websocket"}
    frontend.request("/ws", headers=headers)
    assert frontend.wait(Kind.CAPACITY, deadline_s=1.5)[1] == (3,)
    number = frontend.request("/chunked?n=2000&s=0.01")
    assert frontend.wait(Kind.CAPACITY)[1] == (4,)
    frontend.send(Kind.CANCEL, 0, number)
    assert frontend.wait(Kind.CAPACITY)[1] == (3,)


def test_term_says_goodbye_answers_what_is_there_and_ends_well(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend)
    connector.runs(app.entry)
    number = frontend.request("/sleep?s=0.5")
    wait(lambda: app.log(), frontend)
    connector.process.terminate()
    frontend.wait(Kind.GOODBYE)
    assert frontend.reply(number).endswith(b"slept")
    assert wait(lambda: connector.process.poll() is not None, frontend)
    assert connector.process.returncode == 0


def test_term_does_not_wait_for_ever(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend, timeouts={"drain_s": 0.5})
    connector.runs(app.entry)
    frontend.request("/sleep?s=30")
    wait(lambda: app.log(), frontend)
    began = time.monotonic()
    connector.process.terminate()
    wait(lambda: connector.process.poll() is not None, frontend)
    assert connector.process.returncode == 0
    assert time.monotonic() - began < 3


def test_killed_connector_serves_again_within_half_a_second_of_its_start(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend)
    connector.runs(app.entry)
    assert ask(frontend) == b"Hello, world\n"
    took: list[float] = []
    for _ in range(3):
        connector.kill()
        frontend.hellos.clear()
        connector.start()
        assert ask(frontend) == b"Hello, world\n"
        # of its own time: others may use this machine too
        spent = psutil.Process(connector.process.pid).cpu_times()
        took.append(spent.user + spent.system)
    assert min(took) < 0.5, took


def test_hello_is_said_again_when_the_frontend_restarts(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend)
    connector.runs(app.entry)
    assert ask(frontend) == b"Hello, world\n"
    assert frontend.outcome(frontend.request("/chunked?n=2000&s=0.01"))[0] == "reply"
    frontend.close()
    wait(lambda: app.log()[-1] == "closed")  # nobody can get that answer any more
    again = rig.frontend(frontend.endpoint)
    assert ask(again) == b"Hello, world\n"
    rig._first_ends.remove(frontend.close)


def test_hello_is_said_again_when_the_frontend_forgot_us(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend)
    connector.runs(app.entry)
    frontend.handler()
    frontend.hellos.clear()  # beats are now rejected
    assert ask(frontend) == b"Hello, world\n"


def test_rejected_hello_is_said_again(rig: Any) -> None:
    app, frontend = rig.app(), rig.frontend()
    frontend.accepts = False
    connector = rig.connector(frontend)
    connector.runs(app.entry)
    for _ in range(3):
        frontend.wait(Kind.HELLO)
    frontend.accepts = True
    assert ask(frontend) == b"Hello, world\n"


def test_every_frontend_is_served_and_a_missing_one_hurts_nobody(rig: Any) -> None:
    app, one, two, three = rig.app(), rig.frontend(), rig.frontend(), rig.frontend()
    three.close()
    rig._first_ends.remove(three.close)
    connector = rig.connector(one, two, three)
    connector.runs(app.entry, rig.app("web.2").entry)
    for frontend in (one, two):
        assert ask(frontend) == b"Hello, world\n"
        assert ask(frontend, handler=frontend.handler("web.2")) == b"Hello, world\n"
    states = ["connected", "connected", "away"]
    wait(lambda: [f["state"] for f in connector.status()["frontends"]] == states, one, two)
    wait(lambda: len(connector.status()["processes"]) == 2, one, two)
    status = connector.status()
    assert status["health"] == "degraded"
    assert three.endpoint in status["error"]


def test_second_connector_of_a_run_folder_does_not_start(rig: Any) -> None:
    connector = rig.connector(rig.frontend())
    wait(lambda: (connector.folder / "run" / "handler.json").exists())
    command = [sys.executable, "-m", "appnode.connector", "--config", str(connector.config_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 1
    assert f"holds the lock {connector.folder}/run/handler.lock" in done.stderr


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("node: web1\nfrontend: [tcp://127.0.0.1:1]\n", "did you mean 'frontends'?"),
        ("node: web1\nfrontends: []\n", "names no frontend"),
        ("node: web1\nfrontends: [http://x]\n", "'http://x' is not the endpoint of a frontend"),
        ("node: web1\nfrontends: [ipc://x, ipc://x]\n", "twice"),
        ("node: web1\nfrontends: [ipc://x]\ntimeouts: {connect_s: 0}\n", "connect_s"),
        ("node: web1\nfrontends: [tcp://192.0.2.1:1]\n", "no CURVE keys are configured"),
        ("node: web1\nfrontends: [ipc://x]\ncurve_frontends: {ipc://y: k}\n", "names 'ipc://y'"),
        (": :", "cannot read"),
        (None, "No such file"),
    ],
)
def test_bad_config_is_told(tmp_path: Path, text: str | None, error: str) -> None:
    path = tmp_path / "handler.yml"
    if text is not None:
        path.write_text(text)
    command = [sys.executable, "-m", "appnode.connector", "--check-config", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 1
    assert error in done.stderr
