"""In a pid namespace of its own: a process dies with the worker away, a stranger gets its pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.diprocd.lone import SLEEP, Node, await_until, entry


def main(folder: Path) -> None:
    node = Node(folder)
    node.start(entry())
    pid = node.process()["pid"]
    node.worker.kill()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)  # we are its init
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    stranger = subprocess.Popen(SLEEP)
    assert stranger.pid == pid, (stranger.pid, pid)
    node.worker.start()
    status = node.await_ready(1)
    assert status["counts"]["adopted"] == 0
    assert status["processes"][0]["pid"] != pid
    node.put()
    await_until(lambda: not node.processes())
    assert stranger.poll() is None
    node.worker.stop()
    stranger.kill()
    stranger.wait()
    print("the stranger lives")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
