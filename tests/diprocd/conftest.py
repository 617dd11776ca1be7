"""Whatever a test starts is ended with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.diprocd.rig import Cluster, Node


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(name: str = "web1", folder: str | None = None, **fields: Any) -> Node:
        made.append(Node(tmp_path / (folder or name), name, **fields))
        return made[-1]

    yield make
    for node in made:
        node.end()


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    return make_node()


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def make(*nodes: str, **fields: Any) -> Cluster:
        made.append(Cluster(tmp_path, *nodes, **fields))
        return made[-1]

    yield make
    for cluster in made:
        cluster.end()
