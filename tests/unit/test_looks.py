"""A backlog is looked at as long as that teaches something: each look costs as much as a slow delivery."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from outbox.integrations.replay.looks import Looks
from outbox.integrations.view.local_view import LocalView


def call(kind: str) -> Any:
    return SimpleNamespace(kind=kind)


@pytest.fixture
def unknown(view: LocalView, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The kinds of which more is to be learned."""
    kinds: set[str] = set()
    monkeypatch.setattr(view.learning, "wants", lambda seen, *, sure: seen.kind in kinds or not sure)
    monkeypatch.setattr(view.learning, "explains", lambda seen: seen.kind not in kinds)
    return kinds


@pytest.fixture
def view() -> LocalView:
    return LocalView()


def backlog(view: LocalView, kind: str, calls: int) -> Looks:
    looks = Looks(view)
    with view.lock:
        for seq in range(1, calls + 1):
            looks.want(seq, call(kind), sure=False)
            view.seq = seq
    return looks


def replay(looks: Looks, seq: int, kind: str) -> bool:
    """Deliver a call that is of this kind beside the rows that are there; whether it was looked at."""
    if not looks.is_due(seq):
        looks.passed(seq)
        return False
    looks.taken(seq, call(kind))
    looks.done(seq)
    return True


def test_replay_is_passed_over_once_others_have_shown_it(view: LocalView, unknown: set[str]) -> None:
    unknown.add("fill")
    looks = backlog(view, "fill", 50)
    assert replay(looks, 1, "fill")
    unknown.clear()
    assert [seq for seq in range(2, 51) if replay(looks, seq, "fill")] == list(range(35, 51))
    assert looks.wanted == {}


def test_calls_near_the_view_are_all_looked_at(view: LocalView, unknown: set[str]) -> None:
    """A program that does not wait has learned in this way while PostgreSQL is up."""
    unknown.add("fill")
    looks = backlog(view, "fill", 16)
    assert all(replay(looks, seq, "fill of a row") for seq in range(1, 17))


def test_kind_that_hides_known_ones_is_looked_at_ever_less(view: LocalView, unknown: set[str]) -> None:
    """The view did not have the row that the calls name."""
    unknown.update(("fill", "fill of a row"))
    looks = backlog(view, "fill", 1000)
    assert [replay(looks, seq, "fill of a row") for seq in (1, 2, 3)] == [True] * 3
    unknown.remove("fill of a row")
    assert 5 <= sum(replay(looks, seq, "fill of a row") for seq in range(4, 985)) <= 15


def test_kind_that_hides_a_new_one_is_looked_at_again(view: LocalView, unknown: set[str]) -> None:
    unknown.add("fill")
    looks = backlog(view, "fill", 200)
    for seq in range(1, 100):
        replay(looks, seq, "fill of a row")
    unknown.add("fill of another")
    seen = [seq for seq in range(100, 201) if replay(looks, seq, "fill of another")]
    assert seen == list(range(seen[0], 201))
    assert seen[0] < 185


def test_each_call_that_teaches_something_is_looked_at(view: LocalView, unknown: set[str]) -> None:
    unknown.add("fill")
    looks = backlog(view, "fill", 30)
    assert all(replay(looks, seq, "fill") for seq in range(1, 31))


def test_wanted_looks_are_bounded_where_nothing_is_replayed(view: LocalView, unknown: set[str]) -> None:
    """The relay may be another process, and an engine may run for months."""
    unknown.add("fill")
    looks = backlog(view, "fill", 5000)
    assert len(looks.wanted) == 4096
    assert replay(looks, 5000, "fill")
