from __future__ import annotations

import pytest

from bareku.errors import BarekuError
from bareku.receive import push
from bareku.receive.push import ZERO, Update

A, B = "a" * 40, "b" * 40


def test_the_branch_that_deploys_is_found_among_others() -> None:
    text = f"{ZERO} {A} refs/heads/main\n{A} {B} refs/heads/master\n{ZERO} {A} refs/tags/v1\n"
    assert push.deploying(push.parse(text), "master") == Update(A, B, "refs/heads/master")


def test_a_branch_with_a_longer_name_does_not_deploy() -> None:
    assert push.deploying(push.parse(f"{ZERO} {A} refs/heads/master2\n"), "master") is None


def test_deleting_the_deploy_branch_is_refused() -> None:
    with pytest.raises(BarekuError, match="cannot delete master"):
        push.deploying([Update(A, ZERO, "refs/heads/master")], "master")


def test_deleting_another_branch_is_fine() -> None:
    assert push.deploying([Update(A, ZERO, "refs/heads/old")], "master") is None
