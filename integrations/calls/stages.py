"""Stages: a call on its way into the store: bound, rehearsed, prepared, encoded.

Each stage is frozen and has what the stages before it have, so that it can be given to whatever needs an earlier one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from ..ids.id_reserve import IdReserveEmpty
from ..operations import ManagerOperation
from ..replay.rehearsal import Rehearsal
from ..state.carried import Lent
from ..state.kept_state import Changes
from .arguments import Passed
from .block import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundCall:
    """A call by the names of its arguments."""

    operation: ManagerOperation
    # Copies of what was given, and defaults of the method for the rest.
    bound: Mapping[str, Any]
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


def advanced(stage: type[Stage], call: BoundCall, **more: Any) -> Stage:
    """The call at its next stage, of which `more` are the further fields."""
    return stage(**{one.name: getattr(call, one.name) for one in dataclasses.fields(call)}, **more)


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
