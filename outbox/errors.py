"""Every error of this library, grouped by what the caller can do about it.

A leaf module: the whole line raises from here and nothing is imported here.  All errors share
`OutboxError`; each message names the thing, the value and the way out.

- *Rejected*, nothing was stored, correct the call: `InvalidEntry`, `IdempotencyConflict`, `AlreadyRejected`,
  `ConfigError`, `EntryNotFound`, `EntryInDelivery`, `StoreBusy`.
- *Halted*, stop opening positions: `DurabilityError` (in doubt: retry with the same key after a verified
  reopen) and `StoreFull` (certainly not stored).
- *Cannot open*: `StoreMissing`, `StoreLocked`, `StoreCorrupt`, `StoreFormatError`; `StoreUnavailable` and
  `StoreUnverified` are no verdict on the content: correct the system, or open again.
- *Delivery*, seen by the relay only: `TargetUnavailable` (retried for ever), `TargetMisconfigured` (retried for
  ever and alarmed), `HistoryRewound` (the same, until it is reconciled), `EntryRejected` (dead letter).
- *For handlers*: `Reject` and `RetryLater`.
"""

from __future__ import annotations

from typing import Any


class OutboxError(Exception):
    """Root of every error raised by this library.

    `hint` is the way out in one sentence; it is part of `str(error)`.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


class InvalidEntry(OutboxError, ValueError):
    """The operation, its arguments or its key cannot be recorded.  Nothing was written."""


class IdempotencyConflict(OutboxError):
    """The key is already used by an entry with other arguments.  Nothing was written."""


class AlreadyRejected(OutboxError):
    """The key belongs to an entry that was rejected or discarded, so nothing will deliver it.  Nothing was written.

    `entry` is that `Entry`.
    """

    def __init__(self, message: str, *, entry: Any, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.entry = entry

    @property
    def seq(self) -> int:
        """The sequence number of the entry."""
        return int(self.entry.seq)

    @property
    def key(self) -> str:
        """The idempotency key of the entry, as in `Entry.key`."""
        return str(self.entry.key)

    @property
    def reason(self) -> str:
        """Why it was rejected or discarded."""
        return str(self.entry.error or "unknown")


class ConfigError(OutboxError, ValueError):
    """A setting, an operation's declaration or an environment variable has a value that is not allowed."""


class Unrestorable(ConfigError):
    """Stored values cannot get their Python types back: a class was renamed, or the tree of types is malformed.

    `class_is_unknown`: the program knows no class of that name, so it may only have forgotten to register it.
    """

    def __init__(self, message: str, *, hint: str = "", class_is_unknown: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.class_is_unknown = class_is_unknown


class EntryNotFound(OutboxError, LookupError):
    """No entry of that sequence number is in the state that the call needs."""


class EntryInDelivery(OutboxError):
    """A relay is delivering the entry right now, so it cannot be discarded.  Nothing was changed."""


class DurabilityError(OutboxError):
    """The store cannot promise durability any more: trading must halt.

    Sticky: after the first failed durable write every later enqueue raises this until the store is closed and
    opened again (which verifies it).  The entry that met the failure is *in doubt*: it may be found after a
    restart, so a retry must use the same key.  `keys` has one for each entry of the failed call, in order: pass it as
    `key=` (None: repeat the call as it was, its declared identity is the key).
    """

    def __init__(self, message: str, *, hint: str = "", keys: tuple[str | None, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.keys = keys

    @property
    def key(self) -> str | None:
        """The key to retry a single entry with; see `keys`."""
        return self.keys[0] if self.keys else None


class StoreFull(DurabilityError):
    """The size quota or the free-space reserve is reached; the entry is certainly not stored.

    Not sticky: draining goes on, and enqueueing works again as soon as there is room.
    """


class StoreMissing(OutboxError):
    """There is no outbox store at the given path."""


class StoreLocked(OutboxError):
    """Another process (or another object of this one) holds the role that was asked for.

    `holder_pid` is the process that holds it, or None where that could not be read.
    """

    def __init__(self, message: str, *, hint: str = "", holder_pid: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.holder_pid = holder_pid


class StoreCorrupt(OutboxError):
    """Damage was found in the store's files, or one of them is missing; nothing was changed."""


class StoreUnavailable(OutboxError, OSError):
    """The system did not let the store be used: memory, descriptors, reader slots, permissions, a read-only disk.

    It has no bearing on the content, which was not looked at.  `errno` is the system's error number, or None.
    """

    def __init__(self, message: str, *, hint: str = "", errno: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class StoreUnverified(OutboxError):
    """The verification ended without a verdict, as when it was killed; the store may well be sound."""


class StoreFormatError(OutboxError):
    """The directory was written by another format version, or is not an outbox store at all."""


class StoreClosed(OutboxError):
    """The store was closed, or it is used in a forked child of the process that opened it."""


class StoreBusy(OutboxError):
    """A signal handler asked for an id while it interrupted a call that takes one, in the same thread.

    Nothing was written.  Waiting would be a deadlock: the other call continues only when the handler returns.
    """


class TargetUnavailable(OutboxError):
    """PostgreSQL cannot take writes now (away, starting, read-only, full, deadlock, timeout).

    An outage: it never consumes an entry's retries.  `stalled` is true where a batch took too long, or an entry's own
    statement failed, so that the relay tries a smaller one; `too_much` where a smaller one may pass too, but no entry
    is the cause; `conflict` where another transaction was in the way, so that the same one passes at another time.
    """

    def __init__(
        self, message: str, *, hint: str = "", stalled: bool = False, too_much: bool = False, conflict: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.stalled, self.too_much, self.conflict = stalled, too_much, conflict


class TargetMisconfigured(OutboxError):
    """PostgreSQL refuses for a reason that an operator must correct (login, schema, privileges, unknown operation).

    The line stops, or an operation is parked; no entry is rejected.
    """


class HistoryRewound(TargetMisconfigured):
    """PostgreSQL lost entries that it acknowledged, or this is another database.

    The line stops until the missing entries have been put back.  Everything up to sequence number `settled_seq` is
    there; `same_database` is false if the database never received anything of this store.  `of_a_copy`: PostgreSQL lost
    nothing; it has entries of a copy of this store, which was restored from a backup or has a copy beside it.
    """

    def __init__(
        self, message: str, *, settled_seq: int, same_database: bool, of_a_copy: bool = False, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.settled_seq, self.same_database, self.of_a_copy = settled_seq, same_database, of_a_copy


class ReceiptsGone(TargetMisconfigured):
    """The receipts table was dropped or emptied: entries that are delivered again would take effect twice."""


class EntryRejected(OutboxError):
    """One entry's data was refused.  `permanent` is false where a later try may succeed.

    `holds_back`: whether later entries of its ordering key wait for an operator's answer.
    """

    def __init__(self, message: str, *, permanent: bool, sqlstate: str | None = None, holds_back: bool = True) -> None:
        super().__init__(message)
        self.permanent, self.sqlstate, self.holds_back = permanent, sqlstate, holds_back


class Reject(OutboxError):
    """Raised by a handler: this entry can never be applied.  It becomes a dead letter at once.

    `holds_back = False` lets later entries of its ordering key go on, unless it is one of a group.
    """

    holds_back = True


class RetryLater(OutboxError):
    """Raised by a handler: this entry cannot be applied now.  It waits, and its retries are not counted."""
