"""Ref lines of a push, and what each means. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from bareku.errors import BarekuError

ZERO = "0" * 40


@dataclass(frozen=True, slots=True)
class Update:
    """One ref of a push; `old` or `new` is ZERO when the ref is made or deleted."""

    old: str
    new: str
    ref: str

    @property
    def is_delete(self) -> bool:
        return self.new == ZERO


def parse(text: str) -> list[Update]:
    """The lines git gives to pre-receive: `old new ref`."""
    return [Update(*line.split(" ", 2)) for line in text.splitlines() if line]


def deploying(updates: list[Update], branch: str) -> Update | None:
    """The update that deploys. Raises BarekuError when the push would delete the branch."""
    ref = f"refs/heads/{branch}"
    for update in updates:
        if update.ref != ref:
            continue
        if update.is_delete:
            raise BarekuError(
                f"cannot delete {branch}: the running app is built from it",
                hint="to take the app down, use `bareku apps:destroy`;\n"
                "to go back to an earlier state, `git revert` and push",
            )
        return update
    return None


def short(ref: str) -> str:
    """`refs/heads/main` -> `main`"""
    return ref.removeprefix("refs/heads/").removeprefix("refs/tags/")
