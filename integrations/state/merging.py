"""Merging: what a call did to the value of one attribute, done to the manager's own value, or taken back from a copy.

Collections and objects are changed in place, since the host may hold them elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import count, islice
from typing import Any

from ...records import attributes, put
from ..plain_data import SCALARS, counter, is_of_the_host, is_state, same

NUMBERS = (int, float, Decimal)
# Stands for the value of an attribute that is not there.
MISSING: Any = object()


@dataclass(frozen=True, slots=True)
class Change:
    """What one call did to one attribute; `before` is `MISSING` for a new one.

    `is_other`: it has put another collection or object there, and has left the one before as it was.
    """

    before: Any
    after: Any
    is_other: bool = False


def merged(live: Any, before: Any, after: Any, done: dict[int, Any] | None = None) -> Any:
    """`live` with what was changed from `before` to `after`; collections and objects are changed in place.

    `done`: what has got its changes already, by `id()`: several attributes may hold it.
    """
    if type(live) is not type(after):
        return after
    if isinstance(live, NUMBERS) and not isinstance(live, bool):
        return after if same(live, before) or type(before) is not type(after) else live + (after - before)
    if isinstance(live, SCALARS):
        return after
    done = {} if done is None else done
    if id(live) in done:
        return live
    done[id(live)] = live
    if isinstance(live, list):
        grown = isinstance(before, list) and same(after[: len(before)], before)
        live[:] = [*live, *after[len(before) :]] if grown else after
    elif isinstance(live, deque):
        grown = isinstance(before, deque) and live.maxlen is None and same(list(after)[: len(before)], list(before))
        added = list(after)[len(before) :] if grown else list(after)
        if not grown:
            live.clear()
        live.extend(added)
    elif isinstance(live, dict):
        _merge_dict(live, before if isinstance(before, dict) else {}, after, done)
    elif isinstance(live, set):
        old = before if isinstance(before, set) else set()
        live -= old - after
        live |= after - old
    elif isinstance(live, count):
        # In place: one of the class is shared by all its objects.
        taken = _taken(before, after)
        if taken is None:
            return after
        deque(islice(live, taken), maxlen=0)
    elif is_of_the_host(live) and is_state(live):
        _merge_object(live, {} if before is MISSING else attributes(before), attributes(after), done)
    else:
        return after
    return live


def _taken(before: Any, after: count[Any]) -> int | None:
    """How many numbers a call has taken from a counter; None where it was set anew."""
    had, has = counter(before) if isinstance(before, count) else None, counter(after)
    if had is None or has is None or had[1] != has[1] or not had[1]:
        return None
    taken, rest = divmod(has[0] - had[0], had[1])
    return taken if taken >= 0 and not rest else None


def delta_of(change: Change) -> dict[str, Any] | None:
    """What a call did to a large collection of which most stays, for `take_back`; None for anything else.

    A call that empties a collection most likely writes what was in it, which a later value does not show.
    """
    before, after = change.before, change.after
    if isinstance(before, set) and isinstance(after, set):
        removed = before - after
        return {"added": list(after - before), "removed": list(removed)} if _is_little(removed, before) else None
    if isinstance(before, dict) and isinstance(after, dict):
        left = {key: before[key] for key in _removed(before, after)}
        changed = {key: before[key] for key, item in after.items() if key in before and not same(before[key], item)}
        gone = {**left, **changed}
        added = [key for key in after if key not in before]
        return {"added": added, "before": gone} if _is_little(gone, before) else None
    if isinstance(before, (list, deque)) and isinstance(after, (list, deque)):
        old, new = list(before), list(after)
        count = len(new) - len(old)
        if count >= 0 and same(new[: len(old)], old):
            return {"added": new[len(old) :]}
        if count > 0 and same(new[count:], old):
            return {"added": new[:count], "first": True}
        # Of limited length, it has lost as many as it got.
        if count == 0 and same(new[:-1], old[1:]):
            return {"added": new[-1:]}
        if count == 0 and same(new[1:], old[:-1]):
            return {"added": new[:1], "first": True}
    return None


def _is_little(gone: Collection[Any], before: Collection[Any]) -> bool:
    return 2 * len(gone) < len(before)


def take_back(value: Any, delta: Mapping[str, Any]) -> None:
    """Undo in a copy of a collection what `delta_of` has found."""
    added = delta.get("added", [])
    if isinstance(value, set):
        value.difference_update(added)
        value.update(delta.get("removed", []))
    elif isinstance(value, dict):
        for key in added:
            value.pop(key, None)
        value.update(delta.get("before", {}))
    elif isinstance(value, (list, deque)):
        first = delta.get("first", False)
        for item in added if first else reversed(added):
            places = range(len(value)) if first else range(len(value) - 1, -1, -1)
            at = next((at for at in places if same(value[at], item)), None)
            if at is not None:
                del value[at]


def _merge_dict(
    live: dict[Any, Any], before: Mapping[Any, Any], after: Mapping[Any, Any], done: dict[int, Any]
) -> None:
    for key in _removed(before, after):
        live.pop(key, None)
    for key, item in after.items():
        old = before.get(key, MISSING)
        if not same(old, item):
            live[key] = merged(live.get(key, MISSING), old, item, done)


def _merge_object(live: Any, before: Mapping[str, Any], after: Mapping[str, Any], done: dict[int, Any]) -> None:
    merged = attributes(live)
    had = dict(merged)
    _merge_dict(merged, before, after, done)
    for name in _removed(had, merged):
        object.__delattr__(live, name)
    for name, item in merged.items():
        if had.get(name, MISSING) is not item:
            put(live, name, item)


def _removed(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> Iterator[Any]:
    return (key for key in before if key not in after)
