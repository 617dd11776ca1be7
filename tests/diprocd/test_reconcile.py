from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from diprocd.lifecycle import ALIVE, Event, State, step
from diprocd.reconcile import Present, generation, plan
from diprocd.spec import Process

GENS = ["g1", "g2", "g3"]
IDS = ["a.v1.web.1", "a.v1.web.2"]
PRESENT = st.lists(
    st.builds(
        Present,
        st.sampled_from(IDS),
        st.sampled_from(GENS),
        st.sampled_from([state for state in State if state is not State.GONE]),
        st.booleans(),
    ),
    max_size=6,
    unique_by=lambda one: (one.id, one.gen),
)
DESIRED = st.dictionaries(
    st.sampled_from(IDS), st.tuples(st.sampled_from(GENS), st.booleans()), max_size=2
)


def entry(**fields: object) -> Process:
    return msgspec.convert(
        {"id": "a.v1.web.1", "app": "a", "type": "web", "index": 1, "release": 1, "cmd": ["x"]}
        | fields,
        Process,
    )


def test_the_generation_follows_what_a_process_is_made_of() -> None:
    assert generation(entry()) != generation(entry(cmd=["y"]))
    assert generation(entry()) != generation(entry(env={"A": "1"}))
    assert generation(entry()) == generation(entry(id="a.v1.web.2", index=2, priority=9))


@settings(max_examples=50)
@given(PRESENT)
def test_without_a_document_nothing_is_stopped(present: list[Present]) -> None:
    assert not plan(None, present).unwant


@settings(max_examples=50)
@given(PRESENT, DESIRED, st.booleans())
def test_nothing_is_wanted_and_unwanted(
    present: list[Present], desired: dict[str, tuple[str, bool]], has_lease: bool
) -> None:
    decided = plan(desired, present, has_lease=has_lease)
    assert not decided.want & decided.unwant
    assert decided.unwant <= {(one.id, one.gen) for one in present}
    assert all(gen == desired[id_][0] for id_, gen in decided.want)


@settings(max_examples=50)
@given(PRESENT, DESIRED)
def test_what_serves_goes_only_when_its_successor_is_ready_or_it_is_undesired(
    present: list[Present], desired: dict[str, tuple[str, bool]]
) -> None:
    decided = plan(desired, present)
    for id_ in IDS:
        here = [one for one in present if one.id == id_]
        serving = [one for one in here if one.state is State.RUNNING]
        if id_ not in desired or not serving:
            continue
        gen, exclusive = desired[id_]
        if exclusive or any(one.exclusive for one in here):
            continue
        assert any((id_, one.gen) not in decided.unwant for one in serving)
        assert (gen in {one.gen for one in serving}) or (id_, gen) not in decided.unwant


@settings(max_examples=50)
@given(PRESENT, DESIRED)
def test_an_exclusive_process_is_started_only_when_nothing_of_its_id_is_left(
    present: list[Present], desired: dict[str, tuple[str, bool]]
) -> None:
    decided = plan(desired, present)
    for id_, gen in decided.want - {(one.id, one.gen) for one in present}:
        here = [one for one in present if one.id == id_]
        if desired[id_][1] or any(one.exclusive for one in here):
            assert not here
        assert len(here) <= 1, gen


@settings(max_examples=50)
@given(PRESENT, DESIRED)
def test_without_a_lease_no_exclusive_process_is_wanted(
    present: list[Present], desired: dict[str, tuple[str, bool]]
) -> None:
    decided = plan(desired, present, has_lease=False)
    assert not any(desired[id_][1] for id_, _ in decided.want)
    barred = {(one.id, one.gen) for one in present if desired.get(one.id, ("", False))[1]}
    assert barred <= decided.unwant


class World:
    """The worker's use of plan and table, without processes."""

    def __init__(self) -> None:
        self.lives: dict[tuple[str, str], tuple[State, bool]] = {}
        self.desired: dict[str, tuple[str, bool]] = {}

    def feed(self, key: tuple[str, str], event: Event) -> None:
        state, exclusive = self.lives[key]
        after, _ = step(state, event)
        if after is State.GONE:
            del self.lives[key]
        else:
            self.lives[key] = (after, exclusive)

    def reconcile(self) -> None:
        present = [Present(*key, state, excl) for key, (state, excl) in self.lives.items()]
        decided = plan(self.desired, present)
        for key in sorted(decided.want):
            if key not in self.lives:
                self.lives[key] = (State.NEW, self.desired[key[0]][1])
            self.feed(key, Event.WANT)
        for key in sorted(decided.unwant):
            self.feed(key, Event.UNWANT)

    def check(self) -> None:
        for id_ in IDS:
            here = {key: life for key, life in self.lives.items() if key[0] == id_}
            assert len(here) <= 2, here
            alive = [life for life in here.values() if life[0] in ALIVE]
            assert len(alive) <= 1 or not any(exclusive for _, exclusive in alive), here


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("desire"), DESIRED),
        st.tuples(
            st.sampled_from([event for event in Event if event not in {Event.WANT, Event.UNWANT}]),
            st.integers(0, 5),
        ),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(STEPS)
def test_at_most_two_generations_of_an_id_and_one_of_an_exclusive_one(
    steps: list[tuple[object, object]],
) -> None:
    world = World()
    for what, which in steps:
        if what == "desire":
            world.desired = which  # type: ignore[assignment]
        elif world.lives:
            keys = sorted(world.lives)
            world.feed(keys[which % len(keys)], what)  # type: ignore[operator, arg-type]
        world.reconcile()
        world.check()


@settings(max_examples=50)
@given(STEPS, DESIRED)
def test_when_events_come_in_the_world_becomes_what_is_desired(
    steps: list[tuple[object, object]], desired: dict[str, tuple[str, bool]]
) -> None:
    world = World()
    for what, which in steps:
        if what == "desire":
            world.desired = which  # type: ignore[assignment]
        world.reconcile()
    world.desired = desired
    progress = {
        State.STARTING: Event.READY,
        State.DRAINING: Event.DRAINED,
        State.STOPPING: Event.EMPTY,
        State.FAILING: Event.EMPTY,
        State.CLEARING: Event.EMPTY,
        State.BACKOFF: Event.TIMER,
    }
    for _ in range(60):
        world.reconcile()
        for key, (state, _) in list(world.lives.items()):
            if state in progress:
                world.feed(key, progress[state])
    assert {key: state for key, (state, _) in world.lives.items()} == {
        (id_, gen): State.RUNNING for id_, (gen, _) in desired.items()
    }
