from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bareku.errors import BarekuError
from diprocd import wire
from diprocd.spec import NodeDocument, Process, encode

WEB = Process(id="a.v1.web.1", app="a", type="web", index=1, release=1, cmd=["x"])


def publication(
    node: str = "web1", epoch: int = 3, version: int = 41, *, processes: list[Process] | None = None
) -> list[bytes]:
    here = [WEB] if processes is None else processes
    document = NodeDocument(node=node, epoch=epoch, version=version, processes=here, empty=not here)
    body = encode(document)
    header = wire.Header(t="desired", epoch=epoch, version=version, sha256=wire.digest(body))
    return wire.frames(wire.node_topic(node), header, body)


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_publication_is_read_as_it_was_written(epoch: int, version: int) -> None:
    header, document = wire.open_document("web1", publication(epoch=epoch, version=version))
    assert (header.epoch, header.version) == (epoch, version)
    assert document.processes == [WEB]


def test_an_empty_list_says_so() -> None:
    assert wire.open_document("web1", publication(processes=[]))[1].empty
    silent = msgspec.structs.replace(
        NodeDocument(node="web1", epoch=1, version=1, processes=[]), empty=False
    )
    with pytest.raises(BarekuError, match="contradict"):
        wire.check_document(silent, "web1")


def test_another_nodes_topic_is_refused() -> None:
    with pytest.raises(BarekuError, match="another node"):
        wire.open_document("web1", publication("web10"))


def test_no_topic_is_the_beginning_of_another() -> None:
    names = ["web1", "web10", "web", "web1.example.org"]
    for one in names:
        for other in names:
            if one != other:
                assert not wire.node_topic(other).startswith(wire.node_topic(one))


def test_a_foreign_document_under_our_topic_is_refused() -> None:
    _, header, body = publication("web10")
    with pytest.raises(BarekuError, match="it is for web10"):
        wire.open_document("web1", [wire.node_topic("web1"), header, body])


@pytest.mark.parametrize("frame", [1, 2])
def test_a_changed_frame_is_refused(frame: int) -> None:
    parts = publication()
    other = publication(version=42)
    parts[frame] = other[frame]
    with pytest.raises(BarekuError, match="not what the header says"):
        wire.open_document("web1", parts)


def test_header_and_body_must_agree_on_the_version() -> None:
    topic, _, body = publication(version=41)
    lying = wire.Header(t="desired", epoch=3, version=42, sha256=wire.digest(body))
    with pytest.raises(BarekuError, match="differ in version"):
        wire.open_document("web1", wire.frames(topic, lying, body))


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_rubbish_is_refused_and_nothing_else(parts: list[bytes]) -> None:
    with pytest.raises(BarekuError):
        wire.open_document("web1", parts)
    with pytest.raises(BarekuError):
        wire.open_document("web1", [wire.node_topic("web1"), *parts[:2]])


@given(st.integers(0, 2000), st.binary(max_size=3))
def test_a_damaged_body_is_refused(at: int, other: bytes) -> None:
    topic, header, body = publication()
    at %= len(body)
    damaged = body[:at] + other + body[at + 1 :]
    if damaged != body:
        with pytest.raises(BarekuError):
            wire.open_document("web1", [topic, header, damaged])


@given(st.binary(max_size=200))
def test_rubbish_stats_are_refused_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(BarekuError):
        wire.decode_stats(data)


def test_stats_of_a_later_version_with_more_in_them_are_read() -> None:
    stats = {"p": 1, "t": "stats", "node": "n", "client": "c", "seq": 1, "epoch": 1, "have": 2,
             "applied": 2, "novel": [1], "procs": [{"id": "a", "gen": "g", "novel": 1}]}  # fmt: skip
    found = wire.decode_stats(msgspec.json.encode(stats))
    assert isinstance(found, wire.NodeStats)
    assert found.procs[0].id == "a"


def test_another_protocol_is_refused() -> None:
    stats = {"p": 2, "t": "stats", "node": "n", "client": "c", "seq": 1, "epoch": 1, "have": 2,
             "applied": 2}  # fmt: skip
    with pytest.raises(BarekuError, match="another protocol"):
        wire.decode_stats(msgspec.json.encode(stats))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "a.v1.web.2"},
        {"app": "../etc"},
        {"type": "we/b"},
        {"slug": "../../etc/passwd"},
        {"cmd": []},
    ],
    ids=str,
)
def test_an_entry_that_could_lead_astray_is_refused(change: dict[str, object]) -> None:
    bad = msgspec.structs.replace(WEB, **change)
    document = NodeDocument(node="web1", epoch=1, version=1, processes=[bad])
    with pytest.raises(BarekuError):
        wire.check_document(document, "web1")


def test_a_process_named_twice_is_refused() -> None:
    document = NodeDocument(node="web1", epoch=1, version=1, processes=[WEB, WEB])
    with pytest.raises(BarekuError, match="twice"):
        wire.check_document(document, "web1")


@given(st.text(max_size=20))
def test_topics_are_read_back(name: str) -> None:
    found = wire.parse_topic(wire.node_topic(name))
    assert found == (("n", name) if name and "/" not in name else None)
    assert wire.parse_topic(wire.BEAT_TOPIC) is None
