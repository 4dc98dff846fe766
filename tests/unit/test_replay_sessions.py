"""Sessions of rehearsals and replays: their class is made once, and the listeners of the host come before ours."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox.integrations.replay.sessions import apart, factory_like, session_class


class Ours(Session):
    """What is mixed in."""


def test_class_of_sessions_is_made_once() -> None:
    original = sessionmaker()
    first, second = (factory_like(original, Ours, info={"call": number}) for number in (1, 2))
    assert session_class(first) is session_class(second)
    assert (first().info, second().info) == ({"call": 1}, {"call": 2})


def test_listener_that_the_host_adds_later_still_comes_before_ours() -> None:
    heard: list[str] = []

    def listen(cls: type[Session]) -> None:
        event.listen(cls, "before_flush", lambda *_: heard.append("ours"))

    original = sessionmaker()
    factory_like(original, Ours, listen)

    def theirs(*_: Any) -> None:
        heard.append("the host's")

    event.listen(original, "before_flush", theirs)
    session = factory_like(original, Ours, listen)()
    session.dispatch.before_flush(session, None, None)
    assert heard == ["the host's", "ours"]


def test_sessions_apart_are_of_the_same_kind_of_factory() -> None:
    """A manager with a scoped_session calls its remove()."""
    scoped = scoped_session(sessionmaker(expire_on_commit=False))
    made = apart(scoped, {"call": 1})
    assert made() is made()
    assert made() is not scoped()
    assert (made().info, made().expire_on_commit) == ({"call": 1}, False)
    made.remove()
    assert isinstance(apart(sessionmaker(), {}), sessionmaker)
