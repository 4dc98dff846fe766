"""Arguments: what a method changes in the objects that its caller passed reaches the caller.

The method runs on copies: what it changes in them, while the caller waits, is done to the caller's objects as well.
In an outage only the new row's id is known: it goes where the method leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any
from uuid import UUID

from ...log import Log
from ...records import fields_of, has_fields

_log = Log("outbox.integrations")


class Passed:
    """The objects that one caller passed, of which the method got copies.  For one thread."""

    def __init__(
        self, operation: str, given: Mapping[str, Any], copies: Mapping[str, Any], sets_id: Mapping[str, str]
    ) -> None:
        """`given`: by argument; `copies`: the arguments as the method gets them; `sets_id`: see `ManagerOperation`."""
        self._operation, self._given, self._copies, self._sets_id = operation, given, copies, sets_id

    def changed(self, call: Mapping[str, Any]) -> None:
        """The method has run, and has left its arguments so."""
        for name, passed in self._given.items():
            if name in call and type(call[name]) is type(passed):
                self._try(name, _catch_up, passed, self._copies[name], call[name])

    def numbered(self, id_: Any) -> None:
        """The method will run later, and its row will have this id."""
        for name, field in self._sets_id.items() if id_ is not None else ():
            passed = self._given.get(name)
            # An object that has an id may be saved once more, and keeps it.
            if (isinstance(passed, dict) or has_fields(type(passed))) and _held(passed, field) is None:
                self._try(name, _set, passed, field, id_)

    def id_kept(self, names: Collection[str]) -> Any:
        """The id that an object has, of those for which the method keeps it; None for an object that has none."""
        for name in names:
            passed = self._given.get(name)
            if isinstance(passed, dict) or has_fields(type(passed)):
                id_ = _held(passed, self._sets_id.get(name, ""))
                if isinstance(id_, int | str | UUID):
                    return id_
        return None

    def _try(self, name: str, change: Callable[..., None], *args: Any) -> None:
        """The call is recorded, so nothing may raise, such as an object that takes no change."""
        try:
            change(*args)
        except Exception:  # noqa: BLE001
            _log.warning(
                "%(operation)s changed its argument %(argument)r, and the object that was passed could not follow",
                operation=self._operation, argument=name, trace=True,
            )  # fmt: skip


def _catch_up(passed: Any, before: Any, after: Any) -> None:
    if isinstance(passed, set) and before != after:
        passed.clear()
        passed.update(after)
    elif _has_parts(passed):
        _follow(passed, _parts(before), _parts(after))


def _follow(owner: Any, before: Mapping[Any, Any], after: Mapping[Any, Any]) -> None:
    """Make the changes from `before` to `after` in what `owner` holds: a dict, a list or an object."""
    for key in before.keys() - after.keys():
        _take_away(owner, key)
    for key, item in after.items():
        if key not in before:
            _set(owner, key, item)
            continue
        was, held = before[key], _held(owner, key)
        if _has_parts(was) and type(was) is type(item) is type(held):
            _follow(held, _parts(was), _parts(item))
        elif was is not item and was != item:
            _set(owner, key, item)


def _has_parts(value: Any) -> bool:
    return isinstance(value, dict | list) or (has_fields(type(value)) and not isinstance(value, tuple))


def _parts(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, dict):
        return value
    return dict(enumerate(value)) if isinstance(value, list) else fields_of(value)


def _held(owner: Any, key: Any) -> Any:
    if isinstance(owner, dict):
        return owner.get(key)
    if isinstance(owner, list):
        return owner[key] if key < len(owner) else None
    return getattr(owner, key, None)


def _set(owner: Any, key: Any, item: Any) -> None:
    if isinstance(owner, dict):
        owner[key] = item
    elif isinstance(owner, list):
        owner[key : key + 1] = [item]
    elif key.startswith("__"):
        # What pydantic keeps beside the fields.
        object.__setattr__(owner, key, item)
    else:
        setattr(owner, key, item)


def _take_away(owner: Any, key: Any) -> None:
    if isinstance(owner, dict):
        owner.pop(key, None)
    elif isinstance(owner, list):
        del owner[key:]
    elif not key.startswith("__") and hasattr(owner, key):
        delattr(owner, key)
