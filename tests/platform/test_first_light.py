"""A push goes live on one machine over the real path, seen from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil
import pytest

from bareku import settings
from bareku.paths import Root
from bareku.settings import Settings
from tests.platform.rig import TOP, Bareku, Repository, Visitor, await_until

pytestmark = pytest.mark.slow

APP = """\
import os
from wsgiref.simple_server import WSGIRequestHandler, make_server

class Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        pass

def page(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%s"]

print("listening on", os.environ["PORT"], flush=True)
make_server("127.0.0.1", int(os.environ["PORT"]), page, handler_class=Quiet).serve_forever()
"""


def plain(page: str) -> dict[str, str]:
    """An app without packages: quick to build."""
    return {"app.py": APP % page, "requirements.txt": "", "Procfile": "web: python app.py\n"}


def test_two_versions_a_revert_and_a_broken_push_lose_no_request(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("shop")
    repository.commit(plain("one"))
    first = repository.push()
    assert bareku.get("shop") == (200, "one")
    with Visitor(bareku, "shop") as visitor:
        repository.commit(plain("two"), "Say two")
        repository.push()
        assert bareku.get("shop") == (200, "two")
        repository.commit({"app.py": "raise SystemExit('boom')\n"}, "Break it")
        refused = repository.push(check=False)
        assert bareku.get("shop") == (200, "two")
        repository.git("revert", "--no-edit", "HEAD")
        repository.git("revert", "--no-edit", "HEAD~2")
        repository.push()
        assert bareku.get("shop") == (200, "one")
    assert visitor.failures == []
    assert {"one", "two"} == set(visitor.answers)
    assert masked(first, bareku) == TRANSCRIPT
    assert "boom" in refused
    assert "web.1 on node1 exited with code 1; its last lines:" in refused
    assert (bareku.root.apps / "shop.ver").read_text() == "3\n"
    versions = (bareku.root.apps / "shop.versions").read_text().splitlines()
    head = repository.git("rev-parse", "HEAD").stdout.strip()
    assert [line.split()[0] for line in versions] == ["1", "2", "3"]
    assert versions[-1].split()[1] == head


TRANSCRIPT = """\
-----> shop app.
-----> Python project detected.
         Running with python-3.x.
-----> Building the slug file.
         Compiled slug size is 0KB.
         Build: 00000000-0000-0000-0000-000000000000
-----> Deploying to the nodes.
         127.0.0.1 - OK.
-----> Set application runtime configuration.
     Application version: 1
     Scale web to 1 process.
-----> Job done.
         http://shop.localhost:0/
         to go back: git revert --no-edit HEAD && git push bareku master"""


def masked(transcript: str, bareku: Bareku) -> str:
    """The transcript without what differs from machine to machine and the buildpack's own lines."""
    lines = transcript.splitlines()
    start = lines.index("-----> shop app.")
    end = next(n for n, line in enumerate(lines) if "to go back:" in line)
    text = "\n".join(lines[start : end + 1])
    text = re.sub(r"python-3\.\d+(\.\d+)?", "python-3.x", text)
    text = re.sub(r"size is [\d.]+[KM]B", "size is 0KB", text)
    text = re.sub(
        r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "0" * 8 + "-0000" * 3 + "-" + "0" * 12, text
    )
    text = re.sub(r"localhost:\d+/", "localhost:0/", text)
    head, _, rest = text.partition("-----> Building the slug file.")
    kept = head.splitlines()[:3]
    return "\n".join([*kept, "-----> Building the slug file." + rest])


def test_revert_builds_and_ships_nothing(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("again")
    repository.commit(plain("one"))
    first = repository.push()
    repository.commit(plain("two"))
    repository.push()
    repository.git("revert", "--no-edit", "HEAD")
    third = repository.push()
    assert "Taking the slug file that was built from the same tree before." in third
    assert re.findall("Build: (.*)", third) == re.findall("Build: (.*)", first)


@pytest.mark.parametrize(
    "daemon", ["door", "diprocd/master", "diprocd/client", "diprocd/worker", "handler", "frontend"]
)
def test_killed_daemon_comes_back_and_nothing_else_notices(
    bareku: Bareku, new_repository: Callable[[str], Repository], daemon: str
) -> None:
    repository = new_repository("alive")
    repository.commit(plain("alive"))
    repository.push()
    before = [process["pid"] for process in bareku.processes("alive")]
    others = {d["daemon"]: d["pid"] for d in bareku.status()["daemons"]}
    killed = others.pop(daemon)
    with Visitor(bareku, "alive") as visitor:
        await_until(lambda: len(visitor.answers) > 5, 10, "first answers")
        os.kill(killed, signal.SIGKILL)
        await_until(lambda: bareku.pid(daemon) not in {0, killed}, 2.0, f"{daemon} is back")
        seen = len(visitor.answers)
        await_until(lambda: len(visitor.answers) > seen + 20, 20, "answers afterwards")
    # a killed frontend takes the connections with it that it had open, and no other
    assert len(visitor.failures) <= (1 if daemon == "frontend" else 0), visitor.failures
    await_until(
        lambda: [process["pid"] for process in bareku.processes("alive")] == before,
        6.0,
        "the same processes as before",
    )
    now = {d["daemon"]: d["pid"] for d in bareku.status()["daemons"] if d["daemon"] != daemon}
    assert now == others


def test_process_that_is_killed_is_started_again(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("phoenix")
    repository.commit(plain("up"))
    repository.push()
    [before] = bareku.processes("phoenix")
    with Visitor(bareku, "phoenix") as visitor:
        await_until(lambda: len(visitor.answers) > 3, 10, "first answers")
        os.kill(before["pid"], signal.SIGKILL)
        await_until(
            lambda: (
                [p["pid"] for p in bareku.processes("phoenix") if p["ready"]]
                not in ([], [before["pid"]])
            ),
            10,
            "a new process",
        )
        seen = len(visitor.answers)
        await_until(lambda: len(visitor.answers) > seen + 5, 10, "answers afterwards")
    assert visitor.failures == []


def test_env_file_and_platform_variables_reach_the_process(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("envy")
    bareku.root.app_env("envy").write_text("GREETING=good day $HOME # yes\n")
    show = "import os, json\n" + APP.replace('b"%s"', "json.dumps(dict(os.environ)).encode()")
    commit = repository.commit({**plain(""), "app.py": show})
    repository.push()
    env = json.loads(bareku.get("envy")[1])
    assert env["GREETING"] == "good day $HOME # yes"
    assert env["BAREKU_APP"] == "envy"
    assert env["BAREKU_RELEASE"] == "1"
    assert env["BAREKU_PROCESS"] == env["DYNO"] == "web.1"
    assert env["GIT_REV"] == commit
    assert Path(env["DATA_DIR"]).is_absolute()
    assert not [name for name in env if name.startswith("LISTEN_")]


def test_formation_of_the_settings_is_run(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("many")
    bareku.root.app_settings("many").write_text("formation: {web: 2, clock: 1}\n")
    repository.commit(
        {
            **plain("many"),
            "Procfile": "web: python app.py\nclock: exec sleep 1000\nidle: exec sleep 1\n",
        }
    )
    text = repository.push()
    assert "Scale web to 2 processes." in text
    assert "Scale clock to 1 process." in text
    names = {f"{p['type']}.{p['index']}" for p in bareku.processes("many")}
    assert names == {"web.1", "web.2", "clock.1"}


def test_release_command_runs_before_the_release_and_its_failure_ends_the_push(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("migrator")
    line = "release: echo migrated to $BAREKU_RELEASE\n"
    repository.commit({**plain("one"), "Procfile": "web: python app.py\n" + line})
    assert "         migrated to 1" in repository.push()
    repository.commit(
        {**plain("two"), "Procfile": "web: python app.py\nrelease: echo no; exit 7\n"}
    )
    refused = repository.push(check=False)
    assert "release.1 on node1 exited with code 7" in refused
    assert bareku.get("migrator") == (200, "one")


# Bad input: one clear message, and nothing half made is left.


def leftovers(bareku: Bareku, app: str) -> list[object]:
    """What a refused first push may not leave behind."""
    root = bareku.root
    return [
        *bareku.processes(app),
        *(root.releases / app).glob("*"),
        *root.apps.glob(f"{app}.ver*"),
        *root.journal.glob(f"{app}.json"),
        *(root.path / "scratch").glob(f"{app}/*"),
        *root.repository(app).glob("refs/heads/*"),
    ]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"notes.txt": "x"}, "cannot "),
        ({**plain("x"), "Procfile": "worker: python app.py\n"}, "no `web` process type"),
        (
            {**plain("x"), "requirements.txt": "no-such-package-of-bareku==9\n"},
            "no-such-package-of-bareku",
        ),
        (
            {**plain("x"), "app.py": "raise RuntimeError('bad import')\n"},
            "RuntimeError: bad import",
        ),
        ({**plain("x"), "Procfile": "web: python app.py\nweb: again\n"}, "web"),
        ({**plain("x"), "Procfile": "<<<<<<< HEAD\n"}, "line 1"),
    ],
    ids=["nothing known", "no web", "unknown package", "crash at import", "duplicate", "no line"],
)
def test_bad_app_is_refused_with_a_reason_and_leaves_nothing(
    bareku: Bareku, new_repository: Callable[[str], Repository], files: dict[str, str], reason: str
) -> None:
    repository = new_repository("bad")
    repository.commit(files)
    text = repository.push(check=False)
    assert reason in text
    assert "error: cannot " in text
    assert "hint: " in text
    assert leftovers(bareku, "bad") == []


def test_app_that_never_listens_is_refused_and_the_version_before_serves(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("mute")
    repository.commit(plain("talks"))
    repository.push()
    bareku.root.app_settings("mute").write_text("checks: {timeout_s: 2}\n")
    repository.commit({"Procfile": "web: echo I only sleep; exec sleep 1000\n"})
    text = repository.push(check=False)
    assert "I only sleep" in text
    assert "error: cannot release mute v2: web.1" in text
    assert bareku.get("mute") == (200, "talks")
    assert [p["release"] for p in bareku.processes("mute")] == [1]


def test_unknown_app_is_named_and_not_made(bareku: Bareku, key: Path, tmp_path: Path) -> None:
    repository = Repository(bareku, tmp_path, key, "ghost")
    repository.git("init", "--quiet", "--initial-branch=master")
    repository.git("remote", "add", "bareku", bareku.settings.remote("ghost"))
    repository.commit(plain("x"))
    text = repository.push(check=False)
    assert "cannot find the app 'ghost'" in text
    assert "bareku apps:create ghost" in text
    assert not bareku.root.repository("ghost").exists()


def test_another_branch_is_kept_and_the_message_says_how_to_deploy_it(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("branchy")
    repository.commit(plain("main"))
    repository.git("branch", "-m", "main")
    text = repository.push("main")
    assert "refs/heads/main is not master" in text
    assert "git push bareku main:master" in text
    assert bareku.processes("branchy") == []
    repository.push("main:master")
    assert bareku.get("branchy") == (200, "main")


def test_branch_setting_chooses_what_is_deployed(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("trunk")
    bareku.root.app_settings("trunk").write_text("branch: main\n")
    repository.commit(plain("main"))
    repository.push("master:main")
    assert bareku.get("trunk") == (200, "main")


def test_deleting_master_is_refused(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("keeper")
    repository.commit(plain("stays"))
    repository.push()
    text = repository.push("--delete", "master", check=False)
    assert "cannot delete master" in text
    assert bareku.get("keeper") == (200, "stays")


def test_empty_tree_is_refused(bareku: Bareku, new_repository: Callable[[str], Repository]) -> None:
    repository = new_repository("empty")
    repository.commit({})
    text = repository.push(check=False)
    assert "error: cannot " in text
    assert leftovers(bareku, "empty") == []


@pytest.mark.parametrize("name", ["../x", "two words", "x" * 100, ""])
def test_bad_app_name_is_refused(bareku: Bareku, name: str) -> None:
    before = sorted(bareku.root.path.rglob("*.git"))
    done = bareku.run("apps:create", name, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot use ")
    assert sorted(bareku.root.path.rglob("*.git")) == before


def test_host_without_an_app_is_not_found(bareku: Bareku) -> None:
    assert bareku.get("nobody-here")[0] == 404


def test_second_up_says_that_it_is_up(bareku: Bareku) -> None:
    done = bareku.run("up", check=False)
    assert done.returncode == 1
    assert "already up" in done.stderr


@pytest.mark.parametrize(
    ("key", "daemon"),
    [("http", "frontend"), ("ssh", "door"), ("stats", "diprocd/master"), ("link", "frontend")],
)
def test_taken_port_is_named_with_its_holder(
    bareku: Bareku, tmp_path: Path, key: str, daemon: str
) -> None:
    taken = getattr(bareku.settings, key)
    free = Settings(
        http="127.0.0.1:19981",
        ssh="127.0.0.1:19982",
        link="tcp://127.0.0.1:19983",
        updates="tcp://127.0.0.1:19984",
        stats="tcp://127.0.0.1:19985",
    )
    settings.create(Root(tmp_path), msgspec.structs.replace(free, **{key: taken}))
    done = Bareku(Root(tmp_path)).run("up", check=False)
    assert done.returncode == 1
    where = taken.removeprefix("tcp://")
    assert f"cannot listen on {where} for {daemon}: the port is taken by " in done.stderr
    assert "(pid " in done.stderr
    assert not list(tmp_path.glob("run/diprocd/*.json"))


def test_down_keeps_the_apps_when_told_and_up_takes_them_back(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("steady")
    repository.commit(plain("steady"))
    repository.push()
    [before] = bareku.processes("steady")
    bareku.run("down", "--keep-apps")
    assert psutil.pid_exists(before["pid"])
    bareku.run("up", "--detach")
    await_until(lambda: bareku.get("steady") == (200, "steady"), 10, "the page again")
    [after] = bareku.processes("steady")
    assert after["pid"] == before["pid"]


def test_next_up_takes_over_daemons_whose_parent_was_killed(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("orphan")
    repository.commit(plain("orphan"))
    repository.push()
    before = {d["daemon"]: d["pid"] for d in bareku.status()["daemons"]}
    with Visitor(bareku, "orphan") as visitor:
        os.kill(before.pop("up"), signal.SIGKILL)
        await_until(lambda: bareku.pid("up") == 0, 5, "the parent is gone")
        bareku.run("up", "--detach")
        now = {d["daemon"]: d["pid"] for d in bareku.status()["daemons"]}
        assert {name: now[name] for name in before} == before
        os.kill(now["diprocd/worker"], signal.SIGKILL)
        await_until(
            lambda: bareku.pid("diprocd/worker") not in {0, now["diprocd/worker"]}, 3, "restarted"
        )
    assert visitor.failures == []


def test_start_that_fails_leaves_the_kept_apps_alone(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("kept")
    repository.commit(plain("kept"))
    repository.push()
    [before] = bareku.processes("kept")
    bareku.run("down", "--keep-apps")
    host, port = settings.address(bareku.settings.http)
    with socket.create_server((host, port)):
        done = bareku.run("up", check=False)
    assert "the port is taken by" in done.stderr
    assert psutil.pid_exists(before["pid"])
    bareku.run("up", "--detach")
    await_until(lambda: bareku.get("kept") == (200, "kept"), 10, "the page again")
    assert [p["pid"] for p in bareku.processes("kept")] == [before["pid"]]


def test_sample_app_is_what_script_up_pushes() -> None:
    names = {path.name for path in (TOP / "examples" / "hello").iterdir()}
    assert {"app.py", "requirements.txt", "Procfile"} <= names


# Whatever dies in the middle of a push, the next event makes the state whole.

SLOW = "import time; time.sleep(2)\n" + APP % "slow"


def hook_pid(bareku: Bareku, app: str) -> int:
    """The pid of the pre-receive hook that works on `app`, 0 when there is none."""
    folder = str(bareku.root.repository(app))
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            words = process.info["cmdline"] or []
            if words[-1:] == ["pre-receive"] and process.cwd() == folder:
                return process.pid
    return 0


def push_in_background(repository: Repository) -> threading.Thread:
    thread = threading.Thread(
        target=lambda: repository.git("push", "bareku", "master", check=False)
    )
    thread.start()
    return thread


def test_hook_that_is_killed_while_it_checks_leaves_the_old_release(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("victim")
    repository.commit(plain("old"))
    repository.push()
    repository.commit({"app.py": SLOW})
    with Visitor(bareku, "victim") as visitor:
        pushing = push_in_background(repository)
        journal = bareku.root.journal / "victim.json"
        await_until(journal.exists, 20, "the deploy is open")
        os.kill(hook_pid(bareku, "victim"), signal.SIGKILL)
        pushing.join(60)
        assert repository.git("ls-remote", "bareku", "master").stdout.startswith(
            repository.git("rev-parse", "HEAD~1").stdout.strip()
        )
        # the next change settles what was left open
        bareku.run("ps:restart", "victim")
        assert not journal.exists()
        await_until(
            lambda: {p["release"] for p in bareku.processes("victim")} == {2}, 15, "one release"
        )
    assert visitor.failures == []
    assert bareku.get("victim") == (200, "old")


def test_deploy_that_a_power_cut_left_open_is_settled_by_the_next_start(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("cut")
    repository.commit(plain("old"))
    repository.push()
    repository.commit({"app.py": SLOW})
    pushing = push_in_background(repository)
    journal = bareku.root.journal / "cut.json"
    await_until(journal.exists, 20, "the deploy is open")
    os.kill(hook_pid(bareku, "cut"), signal.SIGKILL)
    pushing.join(60)
    bareku.run("down")
    bareku.run("up", "--detach")
    assert not journal.exists()
    await_until(lambda: bareku.get("cut") == (200, "old"), 15, "the old page")
    assert [r.name for r in (bareku.root.releases / "cut").iterdir()] == ["1.json"]


def test_pusher_who_leaves_does_not_stop_the_deploy(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    """The client's connection is cut in the middle: all new or all old, never a mixture."""
    repository = new_repository("leaver")
    repository.commit(plain("old"))
    repository.push()
    commit = repository.commit({"app.py": SLOW})
    pushing = subprocess.Popen(
        ["git", "push", "bareku", "master"],
        cwd=repository.path,
        env=repository.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    await_until((bareku.root.journal / "leaver.json").exists, 20, "the deploy is open")
    os.killpg(pushing.pid, signal.SIGKILL)
    pushing.wait()
    await_until(
        lambda: not (bareku.root.journal / "leaver.json").exists(), 30, "the deploy is settled"
    )
    is_new = repository.git("ls-remote", "bareku", "master").stdout.startswith(commit)
    await_until(
        lambda: bareku.get("leaver") == (200, "slow" if is_new else "old"), 15, "page and ref agree"
    )
    assert (bareku.root.apps / "leaver.ver").read_text() == ("2\n" if is_new else "1\n")


def test_two_pushes_at_once_deploy_one_after_the_other(
    bareku: Bareku, new_repository: Callable[[str], Repository], tmp_path: Path
) -> None:
    repository = new_repository("busy")
    repository.commit(plain("one"))
    repository.push()
    repository.commit({"app.py": SLOW})
    pushing = push_in_background(repository)
    await_until((bareku.root.journal / "busy.json").exists, 20, "the first deploy is open")
    other = Repository(bareku, tmp_path / "other", repository.key, "busy")
    repository.git("clone", "-q", bareku.settings.remote("busy"), str(other.path))
    other.git("remote", "rename", "origin", "bareku")
    other.commit({"app.py": APP % "other"})
    text = other.push(check=False)
    pushing.join(60)
    assert "Waiting: ada is deploying busy" in text
    assert "someone else has pushed meanwhile" in text
    assert bareku.get("busy") == (200, "slow")


def test_several_apps_deploy_at_the_same_time(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repositories = [new_repository(f"twin-{number}") for number in range(3)]
    for page in ("one", "two"):
        for repository in repositories:
            repository.commit(plain(f"{repository.app} {page}"))
        with ThreadPoolExecutor(len(repositories)) as pool:
            texts = list(pool.map(lambda repository: repository.push(), repositories))
        assert all("-----> Job done." in text for text in texts)
        for repository in repositories:
            assert bareku.get(repository.app) == (200, f"{repository.app} {page}")
