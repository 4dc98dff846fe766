"""How long reads that PostgreSQL failed to answer are not asked again."""

from __future__ import annotations

from typing import Any

import psycopg2
from sqlalchemy.exc import OperationalError

from outbox.integrations.calls.asked_reads import RestingReads

AWAY = OperationalError("SELECT 1", None, psycopg2.OperationalError("timeout expired"))


class _Locked(psycopg2.OperationalError):
    pgcode = "55P03"


LOCKED = OperationalError("SELECT 1", None, _Locked("canceling statement due to lock timeout"))


class Scene:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.delivers: bool | None = True
        self.acknowledged: frozenset[int] = frozenset()
        self.reads = RestingReads(lambda: self.now_s, lambda: self.delivers, lambda: self.acknowledged)

    def fail(self, error: Any, took_s: float = 5.0) -> None:
        began_s = self.now_s
        self.now_s += took_s
        self.reads.fails("get_halt", error, began_s)


def test_all_reads_rest_in_an_outage() -> None:
    here = Scene()
    here.fail(AWAY)
    assert here.reads.why("get_halt") is AWAY
    assert here.reads.why("get_limits") is AWAY
    here.now_s += 26
    assert here.reads.why("get_limits") is None


def test_only_the_read_of_a_locked_table_rests() -> None:
    here = Scene()
    here.fail(LOCKED)
    assert here.reads.why("get_halt") is LOCKED
    assert here.reads.why("get_limits") is None


def test_reads_are_asked_when_a_delivery_has_succeeded() -> None:
    here = Scene()
    here.fail(AWAY)
    here.acknowledged = frozenset({7})
    assert here.reads.why("get_halt") is None


def test_reads_are_asked_when_the_relay_is_back() -> None:
    here = Scene()
    here.fail(AWAY)
    here.delivers = False
    assert here.reads.why("get_halt") is AWAY
    here.delivers = True
    assert here.reads.why("get_halt") is None
