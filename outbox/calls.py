"""Calls: turns one call into a record for the store, or raises the reason why it cannot.

Everything that can be refused is refused here, before a write transaction begins.  A `Transaction` collects calls for
one LMDB commit, which are applied in one PostgreSQL transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from . import codec
from .clock import Clock
from .config import OutboxConfig
from .entry import Entry
from .errors import InvalidEntry
from .operation import (
    Operation,
    caller_key,
    check_operation_name,
    idempotency_hash,
    operations_by_name,
    ordering_key,
    payload_hash,
    shape_hash,
)
from .store.envelope import Record, to_us

_TEXT = {str}
# Stands for every operation of an outbox that was opened without declarations.
_ANY = Operation("any", table="any")
# A record without its sequence number, the caller's key to retry it with, its id, and its arguments if they need no
# decoding.
Prepared = tuple[Record, str | None, UUID, dict[str, Any] | None]


class Calls:
    """The declared operations of an outbox, and what makes records of their calls.  Thread-safe."""

    def __init__(self, operations: Iterable[Operation], *, namespace: str, config: OutboxConfig, clock: Clock) -> None:
        """Without `operations` it takes any name.  Raises `ConfigError` for two of one name."""
        self.operations = operations_by_name(operations)
        self._takes_any = not self.operations
        self._namespace, self._config, self._clock = namespace, config, clock
        self._max_entry_bytes = config.max_entry_kb << 10

    def declare(self, operations: Iterable[Operation]) -> None:
        """Add declarations; one of a known name replaces it."""
        self.operations = {**self.operations, **operations_by_name(operations)}

    def prepare(
        self,
        name: str,
        args: Mapping[str, Any],
        key: str | None,
        order_by: str | int | None,
        at: datetime | None,
        hashed: bytes | None = None,
    ) -> Prepared:
        """Validate and encode one call that was made `at`, by default now; `hashed`: what `hash_of` has told of it.

        Raises `InvalidEntry`, or what the operation's `validate` raises.
        """
        operation = self.declared(name)
        if not isinstance(args, (dict, Mapping)) or "" in args:
            raise _refused(name, args)
        args = operation.complete(args)
        own = dict(args)
        encoded = flat = codec.encode_flat(own)
        if encoded is None:
            if not {*map(type, own)} <= _TEXT:
                raise _refused(name, args)
            encoded = codec.encode_deep(own)
        plain, types = encoded
        if len(plain) + len(types) > self._max_entry_bytes:
            raise InvalidEntry(
                f"args of {name!r} take {(len(plain) + len(types)) >> 10} KiB",
                hint=f"at most {self._config.named('max_entry_kb')}={self._config.max_entry_kb}",
            )
        operation.check(args)
        order = ordering_key(operation.order_of(args) if order_by is None else order_by)
        uuid = self._clock.new_id()
        id_ = uuid.bytes
        hashed = hashed or self._hash_of(operation, name, args, key)
        if hashed is None:
            # A call without identity gets a fresh key, which the caller learns of if it must retry.
            key = id_.hex()
            hashed = idempotency_hash(self._namespace, name, "key", key.encode())
        record = Record(
            seq=0,
            key=hashed,
            id=id_,
            operation=name,
            order_by=order,
            payload_hash=payload_hash(name, plain, types),
            shape=shape_hash(args),
            args=plain,
            types=types,
            captured_us=to_us(at or self._clock.now()),
        )
        return record, key, uuid, None if flat is None else own

    def declared(self, name: str) -> Operation:
        """The declaration of an operation.  Raises `InvalidEntry` where there is none."""
        operation = self.operations.get(name) if isinstance(name, str) else None
        if operation is not None:
            return operation
        check_operation_name(name)
        if not self._takes_any:
            raise InvalidEntry(f"operation {name!r} is not declared", hint=f"declared: {', '.join(self.operations)}")
        return _ANY

    def hash_of(self, name: str, args: Mapping[str, Any], key: str | None) -> bytes | None:
        """The idempotency hash of a call, or None where nothing identifies it.  Raises `InvalidEntry`."""
        operation = self.declared(name)
        return self._hash_of(operation, name, operation.complete(args), key)

    def _hash_of(self, operation: Operation, name: str, args: Mapping[str, Any], key: str | None) -> bytes | None:
        if key is not None:
            return idempotency_hash(self._namespace, name, "key", caller_key(key))
        declared = operation.identity_of(args)
        if declared is None:
            return None
        return idempotency_hash(self._namespace, name, "identity", b"".join(codec.encode(declared, what="identity")))


def _refused(name: str, args: object) -> InvalidEntry:
    return InvalidEntry(f"args of {name!r} is {args!r:.200}", hint="allowed: a mapping with text keys")


_MAX_GROUP = 10_000


class Transaction:
    """Collects entries for one commit; see `Outbox.transaction`.  Use it on one thread."""

    def __init__(self, prepare: Callable[..., Prepared]) -> None:
        """`prepare` validates and encodes one call."""
        self._prepare = prepare
        self.prepared: list[Prepared] = []
        self._open = True
        self._stored: Iterator[Entry] = iter(())
        self._entries: list[Entry] = []

    def enqueue(
        self, operation: str, args: Mapping[str, Any], *, key: str | None = None, order_by: str | int | None = None
    ) -> None:
        """Add one call; validated now, stored when the block ends.  Raises `InvalidEntry`."""
        if not self._open:
            raise InvalidEntry("the transaction has ended", hint="enqueue inside its with block")
        if len(self.prepared) >= _MAX_GROUP:
            raise InvalidEntry(f"a transaction takes at most {_MAX_GROUP} entries", hint="use several")
        self.prepared.append(self._prepare(operation, args, key, order_by))

    @property
    def entries(self) -> list[Entry]:
        """The stored entries, in order, once the block has ended; none before."""
        self._entries += self._stored
        return self._entries

    def end(self) -> None:
        """Take no more calls."""
        self._open = False

    def keep(self, stored: Iterator[Entry]) -> None:
        """What was stored of them."""
        self._stored = stored
