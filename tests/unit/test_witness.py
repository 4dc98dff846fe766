"""Which replays are looked at: each that the view asks for, until one of them has succeeded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.exc import OperationalError, ResourceClosedError

from outbox.integrations.operations import NOTES, TRADING_OPERATIONS, StoredCall
from outbox.integrations.replay.lesson import Lesson
from outbox.integrations.replay.replay_session import Watch
from outbox.integrations.replay.row_ids import SideIds
from outbox.integrations.replay.witness import Witness
from outbox.integrations.view.local_view import LocalView
from outbox.integrations.view.reads import Reads
from outbox.integrations.view.rows import ORDERS, POSITIONS, new_session
from outbox.integrations.view.seen import Seen

OPERATION: Any = SimpleNamespace(
    name="m", has_role=True, session=None, position=None, order=None, balance=None, success=lambda *_: True
)


@pytest.fixture
def view() -> LocalView:
    return LocalView()


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was looked at, in order."""
    found: list[str] = []

    def before(watched: Any, _: Any) -> None:
        watched.before = object()
        found.append("before")

    monkeypatch.setattr(Lesson, "look_before", before)
    monkeypatch.setattr(Lesson, "look_after", lambda _: found.append("after"))
    monkeypatch.setattr(Lesson, "look_at_session", lambda *_: None)
    monkeypatch.setattr(Lesson, "refused", lambda *_: None)
    return found


def replay(made: Witness, seq: int, error: type[Exception] | None = None) -> None:
    entry: Any = SimpleNamespace(seq=seq, args={NOTES: {"session": 1}})
    call, watch = StoredCall.of(OPERATION, entry), Watch()
    watch.committed = True
    with made.watching(call, None, watch, lambda: None, SideIds(None, lambda *_: None)):
        if error is not None:
            raise error


def follow(made: Witness, view: LocalView, seq: int) -> None:
    """As the keeper does where it is not sure."""
    seen = Seen(OPERATION, {}, {}, {})
    with view.lock:
        made.looks.want(seq, seen, sure=False)
        view.seq = seq


def test_replay_before_its_caller_followed_it_is_looked_at_once(view: LocalView, looked: list[str]) -> None:
    made = Witness(view, Reads(), lambda *_: None)
    replay(made, 1)
    assert looked == ["before", "after"]
    follow(made, view, 1)
    assert made.looks.wanted == {}


def test_replay_that_fails_is_looked_at_when_it_is_made_again(view: LocalView, looked: list[str]) -> None:
    made = Witness(view, Reads(), lambda *_: None)
    with pytest.raises(RuntimeError):
        replay(made, 1, RuntimeError)
    follow(made, view, 1)
    replay(made, 1)
    assert looked == ["before", "before", "after"]
    replay(made, 1)
    assert len(looked) == 3


@pytest.mark.parametrize(
    ("error", "warned"),
    [
        (OperationalError("SELECT 1", None, Exception("gone")), False),
        (ResourceClosedError("gone"), False),
        (KeyError("id"), True),
    ],
)
def test_lost_connection_is_no_defect_of_a_look(
    view: LocalView,
    looked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    warned: bool,
) -> None:
    """A batch that was cut off logged a traceback of a hundred lines for it."""

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Lesson, "look_before", fails)
    replay(Witness(view, Reads(), lambda *_: None), 1)
    assert ("could not be learned from" in caplog.text) is warned
    assert looked == []


def test_lost_connection_is_raised_as_it_is(view: LocalView, looked: list[str]) -> None:
    """Whoever asks the lost connection for its state gets another error, which is no outage."""
    lost: Any = OperationalError("SELECT 1", None, Exception("gone"))
    with pytest.raises(OperationalError):
        replay(Witness(view, Reads(), lambda *_: None), 1, lost)


def test_id_of_another_kind_than_the_callers_shows_no_open_row(view: LocalView) -> None:
    """A row that shows its number, where its caller has a UUID."""
    made = Witness(view, Reads(), lambda *_: None)
    view.sessions[1] = {**new_session(), "tables": {POSITIONS: {5: {"id": 5}}, ORDERS: {}}}
    entry: Any = SimpleNamespace(seq=1, args={NOTES: {"session": 1, "id": UUID(int=7)}})
    [opens] = [one for one in TRADING_OPERATIONS if one.name == "log_position"]
    assert not made.learn_addition(opens, entry, 5)
    assert not made.learn_addition(opens, entry, {"of": "another kind"})
