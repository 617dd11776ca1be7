"""The client against a master of the test's own: what it takes, what it refuses, what it says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from bareku import curve
from diprocd import wire
from diprocd.spec import NodeDocument, Process, encode
from tests.diprocd.rig import Daemon, Node, wait

pytestmark = pytest.mark.slow


class Speaker:
    """The master's end of the two sockets."""

    def __init__(self, keys: curve.Keys | None = None) -> None:
        self._context = zmq.Context()
        self.out = self._context.socket(zmq.XPUB)
        self.inward = self._context.socket(zmq.PULL)
        for one in (self.out, self.inward):
            one.setsockopt(zmq.LINGER, 0)
            one.setsockopt(zmq.RCVTIMEO, 10_000)
            if keys is not None:
                keys.apply(one)
        self.out.setsockopt(zmq.XPUB_VERBOSE, 1)
        self.updates = f"tcp://127.0.0.1:{self.out.bind_to_random_port('tcp://127.0.0.1')}"
        self.stats = f"tcp://127.0.0.1:{self.inward.bind_to_random_port('tcp://127.0.0.1')}"

    def wait_for_subscription(self, topic: bytes) -> None:
        while self.out.recv() != b"\x01" + topic:
            pass

    def document(self, epoch: int, version: int, node: str = "web1", count: int = 0) -> bytes:
        processes = [
            Process(id=f"app.v1.web.{i}", app="app", type="web", index=i, release=1, cmd=["true"])
            for i in range(1, count + 1)
        ]
        return encode(
            NodeDocument(
                node=node,
                epoch=epoch,
                version=version,
                processes=processes,
                empty=not processes,
            )
        )

    def publish(
        self, epoch: int, version: int, *, body: bytes | None = None, count: int = 0
    ) -> None:
        body = self.document(epoch, version, count=count) if body is None else body
        header = wire.Header(t="desired", epoch=epoch, version=version, sha256=wire.digest(body))
        self.out.send_multipart(wire.frames(wire.node_topic("web1"), header, body))

    def beat(self, epoch: int, *silent: str) -> None:
        beat = wire.Beat(epoch=epoch, seq=1, silent=list(silent))
        self.out.send_multipart(wire.frames(wire.BEAT_TOPIC, beat))

    def hear(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 10) -> Any:
        """The first stats that fulfil it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = msgspec.json.decode(self.inward.recv())
            if condition(found):
                return found
        raise AssertionError("no such stats")

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def speaker() -> Iterator[Speaker]:
    one = Speaker()
    yield one
    one.close()


def start(make_node: Callable[..., Node], speaker: Speaker, **fields: Any) -> tuple[Node, Daemon]:
    node = make_node(
        master_updates=speaker.updates, master_stats=speaker.stats, interval_s=0.2, **fields
    )
    return node, node.start("client")


def test_only_the_greatest_epoch_and_version_counts(
    make_node: Callable[..., Node], speaker: Speaker
) -> None:
    node, _ = start(make_node, speaker)
    speaker.wait_for_subscription(wire.node_topic("web1"))
    for epoch, version in [(1, 3), (1, 1), (1, 3), (2, 1), (1, 9), (2, 2), (2, 1), (2, 2)]:
        speaker.publish(epoch, version)
    found = speaker.hear(lambda one: (one["epoch"], one["have"]) == (2, 2))
    assert node.conf_file.read_bytes() == speaker.document(2, 2)
    assert found["sha256"] == wire.digest(node.conf_file.read_bytes())


def test_master_of_an_older_epoch_is_ignored_and_reported(
    make_node: Callable[..., Node], speaker: Speaker
) -> None:
    node, _ = start(make_node, speaker)
    speaker.wait_for_subscription(wire.node_topic("web1"))
    speaker.publish(3, 1)
    speaker.hear(lambda one: one["epoch"] == 3)
    speaker.publish(2, 9)
    found = speaker.hear(lambda one: "stale_master" in (one["error"] or ""))
    assert (found["epoch"], found["have"]) == (3, 1)
    assert node.conf_file.read_bytes() == speaker.document(3, 1)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"node": "web1"}',
        b"\xff\xfe",
        encode(NodeDocument(node="web10", epoch=1, version=1, processes=[], empty=True)),
        encode(NodeDocument(node="web1", epoch=1, version=1, processes=[], empty=False)),
        encode(NodeDocument(node="web1", epoch=1, version=2, processes=[], empty=True)),
        b'{"node":"web1","epoch":1,"version":1,"empty":false,"processes":[{"id":"../x.v1.web.1",'
        b'"app":"../x","type":"web","index":1,"release":1,"cmd":["x"]}]}',
    ],
    ids=["nothing", "cut", "list", "half", "garbage", "foreign", "unsaid", "other", "path"],
)
def test_bad_publication_changes_nothing(
    make_node: Callable[..., Node], speaker: Speaker, body: bytes
) -> None:
    node, _ = start(make_node, speaker)
    speaker.wait_for_subscription(wire.node_topic("web1"))
    speaker.publish(1, 1, body=body)
    found = speaker.hear(lambda one: "cannot use" in (one["error"] or ""))
    assert found["have"] == 0
    assert not node.conf_file.exists()
    speaker.publish(1, 1)
    speaker.hear(lambda one: one["have"] == 1 and "cannot use" not in (one["error"] or ""))


def test_body_that_is_not_what_the_header_says_is_refused(
    make_node: Callable[..., Node], speaker: Speaker
) -> None:
    node, _ = start(make_node, speaker)
    speaker.wait_for_subscription(wire.node_topic("web1"))
    header = wire.Header(t="desired", epoch=1, version=1, sha256="0" * 64)
    speaker.out.send_multipart(wire.frames(wire.node_topic("web1"), header, speaker.document(1, 1)))
    speaker.hear(lambda one: "header says" in (one["error"] or ""))
    assert not node.conf_file.exists()


@pytest.mark.parametrize("is_edited", [False, True], ids=["damaged", "edited"])
def test_document_that_was_changed_on_disk_is_fetched_again(
    make_node: Callable[..., Node], speaker: Speaker, is_edited: bool
) -> None:
    node, _ = start(make_node, speaker)
    speaker.wait_for_subscription(wire.node_topic("web1"))
    speaker.publish(1, 5)
    speaker.hear(lambda one: one["have"] == 5)
    other = speaker.document(1, 9, count=1) if is_edited else b'{"node": "we'
    node.conf_file.write_bytes(other)
    speaker.hear(lambda one: one["have"] == 0)
    speaker.publish(1, 4)
    speaker.publish(1, 5)
    speaker.hear(lambda one: one["have"] == 5)
    assert node.conf_file.read_bytes() == speaker.document(1, 5)


def test_document_of_an_earlier_run_is_taken_at_its_word(
    make_node: Callable[..., Node], speaker: Speaker
) -> None:
    node = make_node(master_updates=speaker.updates, master_stats=speaker.stats, interval_s=0.2)
    node.conf_file.write_bytes(speaker.document(2, 7))
    node.start("client")
    speaker.wait_for_subscription(wire.node_topic("web1"))
    speaker.publish(2, 6)
    found = speaker.hear(lambda one: True)
    assert (found["epoch"], found["have"]) == (2, 7)
    speaker.publish(2, 8)
    speaker.hear(lambda one: one["have"] == 8)


def test_document_is_kept_private(make_node: Callable[..., Node], speaker: Speaker) -> None:
    node, _ = start(make_node, speaker)
    speaker.wait_for_subscription(wire.node_topic("web1"))
    speaker.publish(1, 1)
    speaker.hear(lambda one: one["have"] == 1)
    assert node.conf_file.stat().st_mode & 0o777 == 0o600


def test_lease_is_renewed_by_beats_and_not_by_those_that_call_the_node_silent(
    make_node: Callable[..., Node], speaker: Speaker
) -> None:
    node, _ = start(make_node, speaker)
    speaker.wait_for_subscription(wire.BEAT_TOPIC)
    lease = node.run / "lease"
    speaker.beat(1, "web2")
    wait(lease.exists)
    before = lease.read_text()
    speaker.beat(1, "web1")
    speaker.publish(1, 1)
    speaker.hear(lambda one: one["have"] == 1)  # the beat before it has been heard, too
    assert lease.read_text() == before
    speaker.beat(1)
    wait(lambda: lease.read_text() != before)


def test_status_of_the_worker_that_cannot_be_read_leaves_the_last_one(
    make_node: Callable[..., Node], speaker: Speaker
) -> None:
    node, _ = start(make_node, speaker)
    status = node.run / "worker.json"
    wait(node.run.exists)
    good = {"processes": [{"id": "a.v1.web.1", "gen": "1", "token": "s3cret"}], "applied": 0}
    status.write_bytes(msgspec.json.encode(good))
    found = speaker.hear(lambda one: bool(one["procs"]))
    assert "token" not in found["procs"][0]
    for bad in (b"", b"{", b"[]", b'{"processes": 7}', b"\xff" * 100):
        status.write_bytes(bad)
        speaker.inward.recv()
    seq = speaker.hear(lambda one: True)["seq"]
    later = speaker.hear(lambda one: one["seq"] > seq + 2)
    assert [one["id"] for one in later["procs"]] == ["a.v1.web.1"]


def test_wrong_key_hears_nothing_and_the_right_one_does(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    """A client whose master key is wrong never gets through."""
    master = curve.make(tmp_path / "master.key")
    other = curve.make(tmp_path / "other.key")
    curve.make(tmp_path / "node.key")
    speaker = Speaker(master)
    try:
        wrong, daemon = start(
            make_node,
            speaker,
            curve_key=str(tmp_path / "node.key"),
            curve_master=other.public,
        )
        wait(lambda: wrong.status("client").get("pid") == daemon.pid)
        assert wrong.status("client")["curve"]
        assert not speaker.inward.poll(1500)
        daemon.stop()
        wrong.config["curve_master"] = master.public
        wrong.save()
        wrong.start("client")
        speaker.wait_for_subscription(wire.node_topic("web1"))
        speaker.publish(1, 1)
        speaker.hear(lambda one: one["have"] == 1)
    finally:
        speaker.close()


def test_plain_text_never_leaves_the_machine(make_node: Callable[..., Node]) -> None:
    node = make_node(master_updates="tcp://192.0.2.1:31124")
    one = node.start("client")
    assert one.process.wait(10) == 1
    assert "no CURVE keys are configured" in node.log()
