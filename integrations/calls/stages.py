"""Stages: a call on its way into the store: bound, rehearsed, prepared, encoded.

Each stage is frozen and has what the stages before it have, so that it can be given to whatever needs an earlier one.

What the method changes in the objects that its caller passed reaches the caller (`Passed`).  The method runs on copies:
what it changes in them, while the caller waits, is done to the caller's objects as well.  In an outage only the new
row's id is known: it goes where the method leaves it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from ...log import Log
from ...records import fields_of, has_fields
from ..ids.id_reserve import IdReserveEmpty
from ..operations import ManagerOperation
from ..replay.rehearsal import Rehearsal
from ..state.carried import Lent
from ..state.kept_state import Changes
from .block import Block

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


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundCall:
    """A call by the names of its arguments."""

    operation: ManagerOperation
    # Copies of what was given, and defaults of the method for the rest.
    bound: Mapping[str, Any]
    # The same by their standard names.
    standard: Mapping[str, Any]
    defaults: Mapping[str, Any]
    # What to note of the order of the keys in its arguments.
    orders: Mapping[str, Any]
    # The caller's own objects.
    passed: Passed
    # When the call was made; None for now.
    at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsedCall(BoundCall):
    """A call that was tried on a copy of the manager."""

    rehearsal: Rehearsal
    # The trading session in which it is made.
    session: Any
    # Attributes of the manager that get the changes of earlier calls only when those are delivered.
    outdated: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedCall(RehearsedCall):
    """A call with all that its replay needs."""

    notes: dict[str, Any]
    # What the manager gets now of what the rehearsal has changed; sums that it gets now, though its method adds them
    # after its write; and attributes that it gets only when the call is delivered.
    changes: Changes
    foreseen: Mapping[str, Any]
    uncounted: frozenset[str]
    # Set where the reserve was empty, and the call, an exit, is recorded without an id.
    unnumbered: IdReserveEmpty | None
    # Context variables and thread-local values that only this process can keep for the delivery.
    held: Mapping[Any, Any]
    # What the call returns where nobody waits for the manager's own answer.
    local_answer: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedCall(PreparedCall):
    """A call as the outbox stores it."""

    # Its idempotency hash, where its identity was looked up.
    hashed: bytes | None
    # What `Outbox.submit` takes.
    ready: Any
    # What the manager was given for it.
    lent: Lent


Stage = TypeVar("Stage", bound=BoundCall)
Rehearsed = TypeVar("Rehearsed", bound=RehearsedCall)


def advanced(stage: type[Stage], call: BoundCall, **more: Any) -> Stage:
    """The call at its next stage, of which `more` are the further fields."""
    return stage(**{one.name: getattr(call, one.name) for one in dataclasses.fields(call)}, **more)


def in_session(call: Rehearsed, session: Any) -> Rehearsed:
    """The call, made in this session."""
    return call if call.session == session else dataclasses.replace(call, session=session)


def take_back(calls: Sequence[EncodedCall]) -> None:
    """Take back what the manager was given at calls that are not recorded; may be called twice."""
    for call in reversed(calls):
        call.lent.take_back()


@contextmanager
def lent_until_recorded(block: Block) -> Iterator[None]:
    """Take back what the manager was given at the calls of a block that an exception ends."""
    try:
        yield
    except BaseException:
        take_back(block.end())
        raise
