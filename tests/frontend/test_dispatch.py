"""Leases and holding, without any socket."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from frontend.dispatch import Dispatcher, Handler, HoldLimits
from frontend.router import Key

SHOP: Key = ("shop", 1)
NEXT: Key = ("shop", 2)


@dataclass(eq=False)
class Ask:
    key: Key = SHOP
    size_bytes: int = 10
    is_gone: bool = False
    went: list[str] = field(default_factory=list)


Sent = list[tuple[str, int, Ask]]


def made(**limits: int) -> tuple[Dispatcher[Ask], Sent]:
    sent: Sent = []

    def send(handler: Handler[Ask], number: int, request: Ask) -> None:
        sent.append((handler.process, number, request))
        request.went.append(handler.process)

    return Dispatcher(send, HoldLimits(**limits) if limits else None, 100), sent


def handler(name: str, capacity: int = 1, key: Key = SHOP) -> Handler[Ask]:
    return Handler(key, capacity, process=name)


def test_the_handler_with_the_fewest_leases_is_chosen() -> None:
    dispatcher, sent = made()
    for name in "ab":
        dispatcher.add(handler(name, 3))
    for _ in range(4):
        dispatcher.submit(Ask())
    assert sorted(name for name, _, _ in sent) == ["a", "a", "b", "b"]


def test_numbers_are_never_the_same() -> None:
    dispatcher, sent = made()
    dispatcher.add(handler("a", 100))
    for _ in range(50):
        dispatcher.submit(Ask())
    assert len({number for _, number, _ in sent}) == 50


def test_held_requests_go_in_order_and_a_repeated_one_goes_first() -> None:
    dispatcher, sent = made()
    first, second, again = Ask(), Ask(), Ask()
    assert dispatcher.submit(first)
    assert dispatcher.submit(second)
    assert dispatcher.resubmit(again)
    assert dispatcher.held == 3
    dispatcher.add(handler("a", 3))
    assert [request for _, _, request in sent] == [again, first, second]
    assert (dispatcher.held, dispatcher.held_bytes) == (0, 0)


def test_hold_is_bounded_in_number_and_bytes() -> None:
    dispatcher, _ = made(requests=2, size_bytes=100)
    assert dispatcher.submit(Ask())
    assert not dispatcher.submit(Ask(size_bytes=95))
    assert dispatcher.submit(Ask())
    assert not dispatcher.submit(Ask())


def test_gone_requests_are_not_sent() -> None:
    dispatcher, sent = made()
    ghost, real = Ask(), Ask()
    dispatcher.submit(ghost)
    dispatcher.submit(real)
    ghost.is_gone = True
    dispatcher.add(handler("a", 5))
    assert [request for _, _, request in sent] == [real]
    assert dispatcher.held == 0


def test_a_handler_that_goes_gives_its_leases_back_in_order() -> None:
    dispatcher, _ = made()
    one = handler("a", 5)
    dispatcher.add(one)
    asked = [Ask() for _ in range(3)]
    for ask in asked:
        dispatcher.submit(ask)
    assert dispatcher.remove(one) == asked
    assert not dispatcher.pools


def test_draining_and_resting_handlers_get_nothing() -> None:
    dispatcher, sent = made()
    leaving, resting = handler("leaving", 5), handler("resting", 5)
    dispatcher.add(leaving)
    dispatcher.add(resting)
    dispatcher.drain(leaving)
    dispatcher.rest(resting)
    dispatcher.submit(Ask())
    assert not sent
    dispatcher.wake(resting)
    assert [name for name, _, _ in sent] == ["resting"]


def test_a_single_handler_obeys_its_limits_too() -> None:
    dispatcher, sent = made()
    one = handler("a", 2)
    dispatcher.add(one)
    for _ in range(4):
        dispatcher.submit(Ask())
    assert len(sent) == 2
    dispatcher.set_capacity(one, 3)
    assert len(sent) == 3
    dispatcher.rest(one)
    dispatcher.release(one, sent[0][1])
    assert len(sent) == 3
    dispatcher.wake(one)
    assert len(sent) == 4


def test_moving_a_handler_keeps_its_leases() -> None:
    dispatcher, sent = made()
    one = handler("a", 2)
    dispatcher.add(one)
    dispatcher.submit(Ask())
    dispatcher.submit(Ask(key=NEXT))
    dispatcher.move(one, NEXT)
    assert len(one.leases) == 2
    assert dispatcher.counts()[0] == {"shop": {"2": 1}}
    assert len(sent) == 2


def test_pause_holds_and_resume_sends() -> None:
    dispatcher, sent = made()
    dispatcher.pause("shop")
    dispatcher.add(handler("a", 5))
    dispatcher.submit(Ask())
    dispatcher.submit(Ask(key=("other", 1)))
    assert not sent
    dispatcher.resume("shop")
    assert len(sent) == 1


class Days(RuleBasedStateMachine):
    """Whatever happens in whatever order: bounds hold and nothing is lost or doubled."""

    @initialize()
    def begin(self) -> None:
        self.dispatcher, self.sent = made()
        self.handlers: list[Handler[Ask]] = []
        self.alive: list[Ask] = []

    @rule(capacity=st.integers(0, 3), key=st.sampled_from([SHOP, NEXT]))
    def join(self, capacity: int, key: Key) -> None:
        self.handlers.append(handler(f"h{len(self.sent)}", capacity, key))
        self.dispatcher.add(self.handlers[-1])

    @rule(key=st.sampled_from([SHOP, NEXT]))
    def ask(self, key: Key) -> None:
        ask = Ask(key)
        assert self.dispatcher.submit(ask)
        self.alive.append(ask)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.handlers:
            gone = data.draw(st.sampled_from(self.handlers))
            self.handlers.remove(gone)
            for ask in self.dispatcher.remove(gone):
                assert self.dispatcher.resubmit(ask)

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        busy = [(h, n) for h in self.handlers for n in h.leases]
        if busy:
            one, number = data.draw(st.sampled_from(busy))
            ask = self.dispatcher.release(one, number)
            assert ask is not None
            self.alive.remove(ask)
            assert self.dispatcher.release(one, number) is None

    @rule(data=st.data(), act=st.sampled_from(["drain", "rest", "wake"]))
    def change(self, data: st.DataObject, act: str) -> None:
        if self.handlers:
            getattr(self.dispatcher, act)(data.draw(st.sampled_from(self.handlers)))

    @rule(data=st.data(), capacity=st.integers(0, 4))
    def resize(self, data: st.DataObject, capacity: int) -> None:
        if self.handlers:
            self.dispatcher.set_capacity(data.draw(st.sampled_from(self.handlers)), capacity)

    @rule(act=st.sampled_from(["pause", "resume"]))
    def switch(self, act: str) -> None:
        getattr(self.dispatcher, act)("shop")

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if not hasattr(self, "dispatcher"):
            return
        leased = [ask for one in self.handlers for ask in one.leases.values()]
        held = [ask for pool in self.dispatcher.pools.values() for ask in pool.held]
        assert sorted(map(id, leased + held)) == sorted(map(id, self.alive))
        assert self.dispatcher.held == len(held)
        assert self.dispatcher.held_bytes == 10 * len(held)

    @invariant()
    def nobody_waits_for_a_free_handler(self) -> None:
        if not hasattr(self, "dispatcher"):
            return
        for key, pool in self.dispatcher.pools.items():
            free = [
                one for one in self.handlers
                if one.key == key and len(one.leases) < one.capacity
                and not one.is_draining and not one.is_resting
            ]  # fmt: skip
            assert pool.is_paused or not (free and pool.held)


TestDays = Days.TestCase
TestDays.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
