"""Storms: the worker and its processes are killed at random while the document changes.

The same storms are let loose on two mutants of the launcher, which must not survive them: a suite
that they pass would prove nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diprocd import launcher, procfs
from tests.diprocd.lone import Node, entry

pytestmark = pytest.mark.slow

IDS = 8
ROUNDS = 30
CONVERGE_S = 30.0  # what was killed six times in a row waits eight seconds


class BrokenError(AssertionError):
    """An invariant did not hold."""


class Storm:
    """One seed's worth of trouble for one node."""

    def __init__(self, node: Node, seed: int) -> None:
        self.node = node
        self.chance = random.Random(seed)
        self.desired: dict[str, dict[str, Any]] = {}

    def rage(self) -> None:
        self.rewrite()
        self.node.worker.start()
        acts = [self.kill_worker] * 4 + [self.kill_process] * 3 + [self.rewrite] * 2
        for _ in range(ROUNDS):
            self.chance.choice(acts)()
            pause_s = self.chance.choice([0, 0.02, 0.1, 0.25])
            until_s = time.monotonic() + pause_s
            self.check()
            while time.monotonic() < until_s:
                self.check()
        self.settle()
        self.desired = {}
        self.node.put()
        self.settle()

    def kill_worker(self) -> None:
        self.node.worker.kill()
        if self.chance.random() < 0.4:
            self.rewrite()
            self.node.worker.fail = self.chance.choice(["spawned=exit", "signalled=exit"])
            self.node.worker.start()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.node.worker.wait(0.4)
            self.node.worker.fail = ""
            self.node.worker.kill()
        self.node.worker.start()

    def kill_process(self) -> None:
        living = sorted(self.node.living(), key=lambda one: one.pid)
        for one in self.chance.sample(living, min(len(living), self.chance.randrange(1, 4))):
            pidfd = procfs.open_process(one.pid, one.start_ticks)
            if pidfd is not None:
                procfs.send(pidfd, signal.SIGKILL)
                os.close(pidfd)

    def rewrite(self) -> None:
        names = self.chance.sample(range(1, IDS + 1), self.chance.randrange(IDS // 2, IDS + 1))
        entries = [
            entry(f"web.{n}", env={"A": str(self.chance.randrange(2))}, stop={"grace_s": 1})
            for n in names
        ]
        self.desired = {one["id"]: one for one in entries}
        self.node.put(*entries)

    def counts(self) -> Counter[str]:
        """`id.gen` -> live processes that are past the launcher."""
        found: Counter[str] = Counter()
        for one in self.node.living():
            words = procfs.command_line(one.pid)
            if words and words[0] == b"sleep" and words[1] == b"600":
                for variable in procfs.environment(one.pid).split(b"\0"):
                    if variable.startswith(launcher.KEY.encode()):
                        key = variable.decode().partition("=")[2]
                        found[key.partition("@")[0]] += 1
        return found

    def check(self) -> None:
        for key, count in self.counts().items():
            if count > 1:
                raise BrokenError(f"{count} of {key}")

    def settle(self) -> None:
        """Until exactly what is desired runs."""
        deadline = time.monotonic() + CONVERGE_S
        while True:
            if self.node.worker.popen and self.node.worker.popen.poll() is not None:
                self.node.worker.start()  # it met its failpoint
            self.check()
            ids = sorted(key.rpartition(".")[0] for key in self.counts())
            if ids == sorted(self.desired) and len(self.node.living()) == len(ids):
                return
            if time.monotonic() > deadline:
                raise BrokenError(
                    f"{sorted(self.desired)} desired, {ids} run\n{self.node.status()}"
                )
            time.sleep(0.05)


@pytest.fixture
def new_node(tmp_path: Path) -> Iterator[Callable[[str], Node]]:
    made: list[Node] = []

    def make(altered: str) -> Node:
        node = Node(tmp_path / f"node{len(made)}")
        node.worker.altered = altered
        made.append(node)
        return node

    yield make
    for node in made:
        node.end()


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("altered", ["", "slow_launcher"], ids=["as it is", "slow launcher"])
def test_no_storm_doubles_or_loses_a_process(
    new_node: Callable[[str], Node], altered: str, seed: int
) -> None:
    Storm(new_node(altered), seed).rage()


@pytest.mark.parametrize("mutant", ["no_flock", "parent_writes_pid"])
def test_a_mutant_does_not_survive_the_storms(new_node: Callable[[str], Node], mutant: str) -> None:
    def storms() -> None:
        for seed in range(1, 7):
            node = new_node(mutant)
            Storm(node, seed).rage()
            node.end()

    with pytest.raises(BrokenError):
        storms()
