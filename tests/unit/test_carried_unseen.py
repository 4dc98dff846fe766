"""What deliveries have changed in attributes, for calls that noted older values."""

from __future__ import annotations

from typing import Any

from outbox.integrations.state.carried import Unseen
from outbox.integrations.state.kept_state import Changes
from outbox.integrations.state.merging import Change


def changes(**values: tuple[Any, Any]) -> Changes:
    return Changes({name: Change(*value) for name, value in values.items()})


def seen(unseen: Unseen, mark: dict[str, int], seq: int, *names: str) -> list[Changes]:
    return list(unseen.since({"seen": mark}, names or ("last",), seq))


def test_change_behind_a_mark_is_unseen() -> None:
    unseen = Unseen(1)
    unseen.add(1, 1, changes(last=("a", "b")))
    mark = unseen.mark()
    assert seen(unseen, mark, 9) == []
    unseen.add(2, 1, changes(last=("b", "c"), other=(1, 2)))
    assert seen(unseen, mark, 9) == [changes(last=("b", "c"))]
    assert seen(unseen, mark, 9, "other") == [changes(other=(1, 2))]
    assert seen(unseen, mark, 2) == []


def test_changes_without_a_mark_between_them_are_joined() -> None:
    unseen = Unseen(1)
    mark = unseen.mark()
    for seq, pair in enumerate(["ab", "bc", "cd"], 1):
        unseen.add(seq, 1, changes(last=tuple(pair)))  # type: ignore[arg-type]
    assert seen(unseen, mark, 9) == [changes(last=("a", "d"))]
    later = unseen.mark()
    unseen.add(4, 1, changes(last=("d", "e")))
    assert seen(unseen, mark, 9) == [changes(last=("a", "d")), changes(last=("d", "e"))]
    assert seen(unseen, later, 9) == [changes(last=("d", "e"))]


def test_call_of_an_earlier_process_follows_its_own_calls_only() -> None:
    unseen = Unseen(7)
    unseen.add(2, 1, changes(last=("a", "b")))
    unseen.add(5, 4, changes(last=("c", "d")))
    unseen.add(7, 7, changes(last=("e", "f")))
    assert seen(unseen, {"process": 1, "at": 30}, 3) == [changes(last=("a", "b"))]
    assert seen(unseen, {"process": 4, "at": 30}, 6) == [changes(last=("c", "d"))]
    assert seen(unseen, {"process": 7, "at": 2}, 8) == [changes(last=("e", "f"))]


def test_notes_without_a_mark_have_seen_all() -> None:
    unseen = Unseen(1)
    unseen.add(1, 1, changes(last=("a", "b")))
    assert list(unseen.since({}, ("last",), 9)) == []
