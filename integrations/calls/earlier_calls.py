"""Earlier calls: those with the same identity as a call, in the store and in the same block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import AlreadyRejected, Entry, EntryStatus, IdempotencyConflict, Outbox
from ...codec import encode
from ...records import has_fields, with_field
from ..operations import ManagerOperation, call_of
from ..plain_data import plain
from ..replay.upgrades import upgraded
from .block import Block
from .stages import BoundCall, EncodedCall


def hash_of(outbox: Outbox, item: BoundCall) -> bytes | None:
    """The hash of what identifies a call, under which it is stored; None where nothing does."""
    return outbox.hash_of(item.operation.name, item.bound) if item.operation.alternatives else None


def stored(outbox: Outbox, item: BoundCall, hashed: bytes | None) -> Entry | None:
    """The entry of an earlier call with this hash, or None.

    Raises `IdempotencyConflict` where that one had other arguments, `AlreadyRejected` where it was rejected.
    """
    operation = item.operation
    first = None if hashed is None else outbox.find(hashed)
    if first is None:
        return None
    first = upgraded(operation, first)
    _must_be_same(operation, call_of(first), item.bound, f"entry {first.seq}")
    if first.status is EntryStatus.FAILED:
        retry = f"`atb outbox retry {first.seq}`, or " if outbox.store.is_dead(first.seq) else ""
        raise AlreadyRejected(
            f"{operation.name} with this identity is entry {first.seq}, which was refused: {first.error}",
            entry=first,
            hint=f"nothing delivers it: {retry}make the call with another identity",
        )
    return first


def in_block(group: Block | None, call: BoundCall) -> EncodedCall | None:
    """The call that waits in the same block.  Raises `IdempotencyConflict`."""
    operation = call.operation
    identity = operation.identity_of(call.bound) if group is not None and operation.alternatives else None
    if group is None or identity is None:
        return None
    for item in group.calls():
        if item.operation is operation and operation.identity_of(item.bound) == identity:
            _must_be_same(operation, item.bound, call.bound, "in this block")
            waiting: EncodedCall = item
            return waiting
    return None


def _must_be_same(operation: ManagerOperation, first: Mapping[str, Any], call: Mapping[str, Any], where: str) -> None:
    if encode(plain(_as_passed(operation, first)))[0] != encode(plain(_as_passed(operation, call)))[0]:
        raise IdempotencyConflict(
            f"{operation.name} with this identity is {where} already, with other arguments",
            hint="one intent, one identity: the first call stands",
        )


def _as_passed(operation: ManagerOperation, call: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call without the ids that the method leaves in its arguments: the first call had none."""
    found = dict(call)
    for name, field in operation.sets_id.items():
        given = found.get(name)
        if isinstance(given, dict):
            found[name] = {key: item for key, item in given.items() if key != field}
        elif has_fields(type(given)) and hasattr(given, field):
            found[name] = with_field(given, field, None)
    return found
