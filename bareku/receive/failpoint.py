"""Places where a test can break a deploy: `BAREKU_FAIL=step:kill`, `step:error`, `step:delay=0.5`.

The variable reaches a hook only from whoever runs git on this machine; the SSH door drops it.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Literal, get_args

from bareku.errors import BarekuError

Step = Literal[
    "exported",  # the tree is on disk
    "built",  # the slug is in the store
    "shipped",  # the nodes have it
    "recorded",  # the manifest is written
    "opened",  # the journal says that a deploy is under way
    "started",  # diprocd was told to run the new release
    "ready",  # its processes are up
    "switched",  # the journal says that the routes shall be new
    "routed",  # the frontends have the new routes
    "defined",  # the nodes' .def files name the new slug
    "accepted",  # the hook is done, git is about to move the ref
    "moved",  # git has moved the ref, the release is not current yet
    "current",  # the ledger names it
    "closed",  # the journal is gone, the old release still runs
]
STEPS: tuple[Step, ...] = get_args(Step)


def reached(step: Step) -> None:
    """Break here if BAREKU_FAIL says so."""
    wanted, _, action = os.environ.get("BAREKU_FAIL", "").partition(":")
    if wanted != step:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "error":
        raise BarekuError(f"cannot go on: told to fail at {step}")
    elif action.startswith("delay="):
        time.sleep(float(action.removeprefix("delay=")))
