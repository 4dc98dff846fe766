"""The checker can fail: each way of breaking a promise is reported, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.faults.invariants import Applied, Call, Observation, Place, Reopened, Stored, Told, check

SOUND = Observation(
    history=[
        Call(key="a", told=Told.ACKNOWLEDGED, seq=1, order_by="x"),
        Call(key="b", told=Told.ACKNOWLEDGED, seq=2, order_by="x", group=1),
        Call(key="c", told=Told.ACKNOWLEDGED, seq=3, order_by="y", group=1),
        Call(key="d", told=Told.REFUSED),
        Call(key="e", told=Told.ACKNOWLEDGED, seq=4, order_by="z"),
        Call(key="f", told=Told.IN_DOUBT, halted=True),
        Call(key="g", told=Told.IN_DOUBT, halted=True),
        Reopened(),
        Call(key="f", told=Told.ACKNOWLEDGED, seq=5),
        Call(key="f", told=Told.ACKNOWLEDGED, seq=5),
    ],
    stored=[
        Stored(seq=1, key="a", place=Place.COMPLETED),
        Stored(seq=2, key="b", place=Place.COMPLETED),
        Stored(seq=3, key="c", place=Place.COMPLETED),
        Stored(seq=4, key="e", place=Place.DEAD, reason="22003: out of range"),
        Stored(seq=5, key="f", place=Place.PENDING),
    ],
    effects=[Applied(key="a", order_by="x"), Applied(key="b", order_by="x"), Applied(key="c", order_by="y")],
    receipts=["a", "b", "c"],
    counters={"acknowledged": 5, "pending": 1, "completed": 3, "dead": 1, "discarded": 0, "quarantined": 0},
    refusable={"e"},
)


def acknowledged(key: str, seq: int, **more: Any) -> Call:
    return Call(key=key, told=Told.ACKNOWLEDGED, seq=seq, **more)


def without(key: str) -> list[Stored]:
    return [entry for entry in SOUND.stored if entry.key != key]


def test_sound_evidence_has_no_violation() -> None:
    assert check(SOUND) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"stored": without("f"), "counters": None}, "f was acknowledged and is nowhere"),
        ({"stored": without("a"), "counters": None}, "1 entries have no ledger copy, and the store says 0"),
        (
            {"stored": [*SOUND.stored, Stored(seq=6, key="a", place=Place.PENDING)], "counters": None},
            "a is in the store 2 times",
        ),
        (
            {"stored": [*SOUND.stored, Stored(seq=6, key="d", place=Place.PENDING)], "counters": None},
            "d is in the store and was refused",
        ),
        (
            {"stored": [*SOUND.stored, Stored(seq=6, key="z", place=Place.PENDING)], "counters": None},
            "z is in the store and was never enqueued",
        ),
        (
            {"history": [*SOUND.history, acknowledged("f", 6)]},
            "f was acknowledged under several sequence numbers: [5, 6]",
        ),
        (
            {"stored": [*without("f"), Stored(seq=6, key="f", place=Place.PENDING)]},
            "f was acknowledged as 5 and is stored as 6",
        ),
        (
            {"stored": [*without("f"), Stored(seq=4, key="f", place=Place.PENDING)]},
            "sequence number 4 is in the store 2 times",
        ),
        ({"effects": SOUND.effects[:2], "receipts": ["a", "b"]}, "of transaction 1 only 1 of 2 entries are applied"),
        ({"stored": without("c"), "counters": None}, "of transaction 1 only 1 of 2 entries are stored"),
        ({"counters": {**SOUND.counters, "completed": 2}}, "the store counts 2 completed and has 3"),  # type: ignore[dict-item]
        ({"counters": {**SOUND.counters, "acknowledged": 6}}, "the store counts 6 acknowledged and accounts for 5"),  # type: ignore[dict-item]
        ({"effects": SOUND.effects[1:]}, "a is completed and has 0 effects and 1 receipts"),
        ({"receipts": ["b", "c"]}, "a is completed and has 1 effects and 0 receipts"),
        ({"receipts": ["b", "c"]}, "a took effect without a receipt"),
        ({"effects": SOUND.effects[1:]}, "a has a receipt and no effect"),
        ({"effects": [*SOUND.effects, Applied(key="a", order_by="x")]}, "a took effect 2 times"),
        ({"receipts": [*SOUND.receipts, "a"]}, "a has 2 receipts"),
        (
            {"effects": [*SOUND.effects, Applied(key="e")], "receipts": ["a", "b", "c", "e"]},
            "e is dead and has 1 effects and 1 receipts",
        ),
        (
            {"effects": [*SOUND.effects, Applied(key="d")], "receipts": ["a", "b", "c", "d"]},
            "d took effect and was never enqueued",
        ),
        (
            {"effects": [SOUND.effects[1], SOUND.effects[0], SOUND.effects[2]]},
            "x: a took effect after b, and was enqueued before it",
        ),
        (
            {"history": [*SOUND.history[:7], acknowledged("f", 5), Reopened()]},
            "f was acknowledged although g had failed before",
        ),
        (
            {"history": [*SOUND.history[:7], Reopened(verified=False), *SOUND.history[8:]]},
            "the store was opened again after g failed and was not verified",
        ),
        ({"refusable": ()}, "e is dead and nothing was wrong with it: 22003: out of range"),
        (
            {"stored": [*without("e"), Stored(seq=4, key="e", place=Place.DISCARDED)], "counters": None},
            "e is discarded without a reason",
        ),
        ({"calm": True}, "f still waits although all is calm"),
        (
            {"relay_runs": False, "findings": ["the disk is red"]},
            "no relay runs, 1 entries wait, and the status says only: ['the disk is red']",
        ),
    ],
)
def test_each_violation_is_reported(change: dict[str, Any], problem: str) -> None:
    assert problem in check(replace(SOUND, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"stored": without("a"), "counters": {**(SOUND.counters or {}), "completed": 3}, "unledgered": 1},
        {"calm": True, "held_back": {"f"}},
        {"effects": SOUND.effects[:0], "receipts": (), "alarmed": {"a", "b", "c"}},
        {"relay_runs": False, "findings": ["no relay is running and 1 entry waits; start the engine or its relay"]},
        # Applied and not settled yet.
        {"effects": [*SOUND.effects, Applied(key="f")], "receipts": ["a", "b", "c", "f"]},
        # A halted call that is repeated after the store was opened again.
        {"history": [*SOUND.history[:4], SOUND.history[4], Reopened(verified=False), acknowledged("f", 5)]},
    ],
)
def test_allowed_difference_from_sound_evidence_is_not_reported(change: dict[str, Any]) -> None:
    assert check(replace(SOUND, **change)) == []
