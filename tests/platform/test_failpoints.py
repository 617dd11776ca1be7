"""A deploy is broken at every step, by a kill and by an error: it is all old or all new."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from bareku.receive.failpoint import STEPS
from bareku.receive.push import ZERO
from bareku.receive.repository import resolve
from tests.platform.rig import Bareku, Repository, await_until
from tests.platform.test_first_light import APP, plain

pytestmark = pytest.mark.slow

# from here on git has moved the ref, so the push stands whatever breaks
AFTER_THE_REF = {"moved", "current", "closed"}


@pytest.fixture(scope="module")
def walked(bareku: Bareku, key: object, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    bareku.run("apps:create", "walked")
    path = tmp_path_factory.mktemp("walked")
    repository = Repository(bareku, path, key, "walked")  # type: ignore[arg-type]
    repository.git("init", "--quiet", "--initial-branch=master")
    # without the door, so that BAREKU_FAIL reaches the hook
    repository.git("remote", "add", "bareku", str(bareku.root.repository("walked")))
    repository.commit(plain("page 0"))
    repository.push()
    return repository


def state(bareku: Bareku) -> dict[str, object]:
    """Ref, ledger, running releases, page, and what should not be there."""
    root = bareku.root
    number = int((root.apps / "walked.ver").read_text())
    return {
        "ref": resolve(root.repository("walked"), "refs/heads/master") or ZERO,
        "ledger": (root.apps / "walked.versions").read_text().splitlines()[-1].split()[:2],
        "runs": sorted({p["release"] for p in bareku.processes("walked")}),
        "is_ready": all(p["ready"] for p in bareku.processes("walked")),
        "number": number,
        "page": bareku.get("walked"),
        "open": (root.journal / "walked.json").exists(),
        "manifests": max(int(p.stem) for p in (root.releases / "walked").glob("*.json")),
    }


@pytest.mark.parametrize("action", ["kill", "error"])
@pytest.mark.parametrize("step", STEPS)
def test_broken_deploy_is_all_old_or_all_new(
    bareku: Bareku, walked: Repository, step: str, action: str
) -> None:
    before = state(bareku)
    commit = walked.commit({"app.py": APP % f"{step} {action}"})
    done = subprocess.run(
        ["git", "push", "bareku", "master"],
        cwd=walked.path,
        env={**walked.environment(), "BAREKU_FAIL": f"{step}:{action}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    is_new = step in AFTER_THE_REF
    assert (done.returncode == 0) == is_new, done.stderr
    number = before["number"]
    assert isinstance(number, int)
    expected = {
        **before,
        **(
            {
                "ref": commit,
                "ledger": [str(number + 1), commit],
                "runs": [number + 1],
                "number": number + 1,
                "page": (200, f"{step} {action}"),
                "manifests": number + 1,
            }
            if is_new
            else {}
        ),
    }
    found: dict[str, object] = {}

    def is_whole() -> bool:
        found.update(state(bareku))
        return found == expected

    try:
        await_until(is_whole, 20, "a whole state")
    except AssertionError:
        assert found == expected, done.stderr + bareku.logs()
        raise
    finally:
        if not is_new:
            walked.git("reset", "--hard", "--quiet", "HEAD~1")


def test_walk_would_notice_a_deploy_that_is_not_taken_back(
    bareku: Bareku, walked: Repository, new_repository: Callable[[str], Repository]
) -> None:
    """The mutant: a journal that is lost in the middle leaves two releases running."""
    before = state(bareku)
    walked.commit({"app.py": APP % "mutant"})
    pushing = subprocess.Popen(
        ["git", "push", "bareku", "master"],
        cwd=walked.path,
        env={**walked.environment(), "BAREKU_FAIL": "routed:delay=2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    await_until(lambda: bareku.get("walked") == (200, "mutant"), 20, "switched")
    assert state(bareku) != before
    pushing.wait(60)
