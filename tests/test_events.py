import time
from dataclasses import FrozenInstanceError, fields

import pytest

from recparallel import events
from recparallel.events import Exchange, Phase, StepDone, TiedExchange, Transfer

EVENTS = [
    Phase("forward", 0.5),
    Transfer("send", 1, 4096, 0.1),
    Exchange(0, "top_k", 400, 8, 0.2),
    TiedExchange("rows", 400, 24, 0.1),
    StepDone(3, 0.7, 1.5, 64),
]


def test_every_subscriber_gets_every_event_in_order():
    first, second, order = [], [], []
    with (
        events.subscribe(lambda event: (first.append(event), order.append("first"))),
        events.subscribe(lambda event: (second.append(event), order.append("second"))),
    ):
        for event in EVENTS:
            events.emit(event)
    assert first == second == EVENTS
    assert order == ["first", "second"] * len(EVENTS)


def test_a_subscription_ends_with_its_block():
    seen = []
    with events.subscribe(seen.append):
        events.emit(EVENTS[0])
    events.emit(EVENTS[1])
    assert seen == EVENTS[:1]


def test_a_subscription_ends_with_an_error_too():
    seen = []
    with pytest.raises(RuntimeError, match="boom"), events.subscribe(seen.append):
        raise RuntimeError("boom")
    events.emit(EVENTS[0])
    assert seen == []


def test_one_can_ask_whether_anybody_listens():
    assert not events.observed()
    with events.subscribe(lambda event: None):
        assert events.observed()
    assert not events.observed()


def test_an_inner_subscription_leaves_the_outer_one():
    outer, inner = [], []
    with events.subscribe(outer.append):
        with events.subscribe(inner.append):
            events.emit(EVENTS[0])
        events.emit(EVENTS[1])
    assert (outer, inner) == (EVENTS[:2], EVENTS[:1])


def test_subscriptions_may_end_in_any_order():
    first, second = [], []
    outer, inner = events.subscribe(first.append), events.subscribe(second.append)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    events.emit(EVENTS[0])
    inner.__exit__(None, None, None)
    assert (first, second) == ([], EVENTS[:1])


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_are_frozen_facts(event):
    for field in fields(event):
        with pytest.raises(FrozenInstanceError):
            setattr(event, field.name, None)
    assert isinstance(event, events.Event)


def test_a_phase_is_timed_by_the_wall_clock():
    seen = []
    with events.subscribe(seen.append):
        before = time.perf_counter()
        with events.phase("load"):
            time.sleep(0.02)
        around = time.perf_counter() - before
    (event,) = seen
    assert event.name == "load"
    # Not shorter than what it slept, not longer than the clock around it.
    assert 0.02 <= event.seconds <= around


def test_phases_nest():
    seen = []
    with events.subscribe(seen.append), events.phase("outer"), events.phase("inner"):
        pass
    assert [event.name for event in seen] == ["inner", "outer"]
    assert seen[0].seconds <= seen[1].seconds


def test_a_phase_that_fails_is_no_measurement():
    seen = []
    with events.subscribe(seen.append), pytest.raises(ValueError, match="boom"), events.phase("forward"):
        raise ValueError("boom")
    assert seen == []


def test_without_subscribers_no_clock_is_read(monkeypatch):
    def clock():
        raise AssertionError("the clock was read although nobody listens")

    monkeypatch.setattr(events.time, "perf_counter", clock)
    ran = []
    with events.phase("forward"):
        ran.append(True)
    assert ran == [True]
