"""docs/explanation/process-lifecycle.md, from the table.

usage: python -m tests.diprocd.drawing >docs/explanation/process-lifecycle.md
"""

from __future__ import annotations

from diprocd.lifecycle import ALIVE, LEAVING, drawing

HEAD = """\
# The life of a process

Drawn from the table in `diprocd/lifecycle.py`, which is what the worker executes. An arrow reads: what happens / what the worker
does. What has no arrow changes nothing.

"""


def render() -> str:
    """The page."""
    alive = ", ".join(sorted(ALIVE))
    leaving = ", ".join(sorted(LEAVING))
    return (
        f"{HEAD}```mermaid\n{drawing()}\n```\n\n"
        f"With a process behind it, as far as anyone knows: {alive}. On its way out for good: {leaving}.\n"
    )


if __name__ == "__main__":
    print(render(), end="")
