"""Alarms stay until somebody has seen to them, and can be sounded also while enqueueing is halted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox import Health, Outbox
from outbox.monitoring.notices import Alarms


@pytest.fixture
def box(outbox_dir: Path) -> Iterator[Outbox]:
    with Outbox.open(outbox_dir) as box:
        yield box


def told(box: Outbox) -> dict[str, str]:
    return dict(box.status().alarms)


def test_an_alarm_sounds_until_it_is_acknowledged(box: Outbox) -> None:
    alarms = Alarms(box.store)
    assert not alarms.sounds("one")
    alarms.sound("one", "look at this")
    alarms.sound("other", "and at that")
    assert alarms.sounds("one")
    assert not alarms.sounds("third")
    assert told(box) == {"one": "look at this", "other": "and at that"}
    assert alarms.acknowledge("one")
    assert not alarms.acknowledge("one")
    assert told(box) == {"other": "and at that"}


def test_every_alarm_needs_an_operator_until_acknowledged(box: Outbox) -> None:
    Alarms(box.store).sound("one", "look at this")
    status = box.status()
    assert (status.health, status.needs_operator) == (Health.NEEDS_OPERATOR, ["one: look at this"])
    box.acknowledge("one")
    assert box.status().needs_operator == []


def test_the_first_message_of_an_alarm_stays(box: Outbox) -> None:
    alarms = Alarms(box.store)
    alarms.sound("one", "first")
    alarms.sound("one", "second")
    assert told(box) == {"one": "first"}


def test_an_alarm_of_any_length_and_content_can_be_sounded(box: Outbox) -> None:
    alarms = Alarms(box.store)
    alarms.sound("long", "x" * 2001)
    alarms.sound("broken", "bad \ud800 name")
    assert told(box) == {"long": "x" * 2000, "broken": "bad ? name"}


@pytest.mark.slow
def test_alarms_survive_a_restart_and_sound_while_halted(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.store._latch("enqueue", OSError("disk"))
        Alarms(box.store).sound("one", "look")
        Alarms(box.store).sound("other", "look")
        assert Alarms(box.store).acknowledge("other")
    with Outbox.open(outbox_dir) as box:
        assert told(box) == {"one": "look"}
