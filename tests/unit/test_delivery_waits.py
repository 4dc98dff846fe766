"""Vain waits: nobody waits again for the call that a caller has waited for in vain, and for no other reason."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from outbox.integrations.calls.delivery_waits import DeliveryWaits
from outbox.integrations.manager.host import Host
from outbox.integrations.outage import Outage
from outbox.worker import waited_for


def behind(next_calls: list[int], waits: list[float], *, delivering: bool | None = True) -> DeliveryWaits:
    """An adapter's delivery behind a relay that is at each wait as far as `next_calls`."""
    counters = SimpleNamespace(next_seq=100)

    def wait(reached: Callable[[], bool], timeout: float) -> bool:
        waits.append(timeout)
        del next_calls[:-1]
        return reached()

    progress = SimpleNamespace(acknowledged={}, delivering=delivering, wait=wait)
    relay = SimpleNamespace(alive=True, breaker="closed", stuck=False)
    outbox: Any = SimpleNamespace(
        progress=progress,
        store=SimpleNamespace(figures=lambda: SimpleNamespace(counters=counters), first_pending=lambda: next_calls[0]),
        clock=SimpleNamespace(monotonic=lambda: 0.0),
        status=lambda: SimpleNamespace(relay=relay, paused=None),
    )
    replayer: Any = SimpleNamespace(answers=None)
    outage = Outage(outbox, Host(SimpleNamespace, outbox.clock))
    return DeliveryWaits(outbox, outage, replayer, wait_s=2.0, refused=lambda entry: None)


@pytest.mark.parametrize("was_in_time", [False, True])
def test_call_that_was_waited_for_in_vain_is_waited_for_no_more(was_in_time: bool) -> None:
    """A parked call holds up no caller for hours; the first batch over a long line takes longer than one wait."""
    waits: list[float] = []
    delivery = behind([5], waits)
    delivery._was_in_time = was_in_time
    for _ in range(4):
        assert not delivery.wait_until_passed()
    assert waits == ([2.0] if was_in_time else [2.0, 2.0])


def test_call_that_came_next_during_a_vain_wait_is_waited_for() -> None:
    waits: list[float] = []
    delivery = behind([5, 6], waits)
    assert not delivery.wait_until_passed()
    assert not delivery.wait_until_passed()
    assert waits == [2.0, 2.0]


def test_read_with_another_answer_waits_for_no_late_call() -> None:
    waits: list[float] = []
    delivery = behind([5, 6], waits)
    assert not delivery.wait_until_passed()
    assert not delivery.wait_until_passed(once=True)
    assert waits == [2.0]


def test_own_thread_waits_for_no_relay_of_another_process() -> None:
    waits: list[float] = []
    delivery = behind([5], waits, delivering=None)
    with waited_for():
        assert not delivery.wait_until_passed()
    assert waits == []
    assert not delivery.wait_until_passed()
    assert waits == [2.0]
