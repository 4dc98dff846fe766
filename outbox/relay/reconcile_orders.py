"""Orders: an operator's order for a reconciliation, from any process, and its result as the ledger has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .. import codec
from ..box import Outbox
from ..errors import InvalidEntry, StoreCorrupt
from ..log import Log
from ..store.continuity import fingerprint
from ..store.ledger import RECONCILE, is_answer
from ..store.reads import ORDER as ORDER
from ..words import counted, entries

_log = Log("outbox.reconcile")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileOrder:
    """An operator's order.  `everything`: compare the whole ledger; `accept`: the reason to deliver nothing."""

    everything: bool = False
    accept: str | None = None
    # The loss that it was given for, by what the store remembered; None where the operator waits for the answer.
    marks: str | None = None

    def __post_init__(self) -> None:
        if self.accept is not None and not self.accept.strip():
            raise InvalidEntry(f"reason is {self.accept!r}", hint="say why PostgreSQL may stay as it is")


@dataclass(slots=True, kw_only=True)
class Reconciliation:
    """What a reconciliation did."""

    # Sequence number that it began behind: everything up to there is in PostgreSQL.
    settled_seq: int = 0
    compared: int = 0
    # First and last sequence number that was put back, and how many.
    put_back: int = 0
    first_seq: int | None = None
    last_seq: int | None = None
    # Entries that cannot be delivered again, because the ledger no longer has them, or not all of their transaction.
    gone: int = 0
    accepted: str | None = None

    # False: PostgreSQL has all that it acknowledged, and nothing was compared.
    needed: bool = True

    def sentence(self) -> str:
        """What there is to say of it."""
        if not self.needed:
            return "PostgreSQL has everything that it acknowledged"
        if self.accepted is not None:
            return f"PostgreSQL was accepted as it is: {self.accepted}"
        if not self.put_back:
            return f"compared {entries(self.compared)}, none was missing"
        lost, back = counted(self.put_back, "was", "were"), "was" if self.put_back == 1 else "were"
        return (
            f"compared {entries(self.compared)}, {lost} missing and {back} put back "
            f"(first {self.first_seq}, last {self.last_seq})"
        )


def place_order(box: Outbox, order: ReconcileOrder) -> bytes:
    """Tell the relay of another process to reconcile; it does so at its next try.  Raises `DurabilityError`.

    Returns what `withdraw_order` takes.
    """
    placed = codec.to_json(asdict(replace(order, marks=fingerprint(box.store.marks()))))
    box.store.put_meta(ORDER, placed, despite_halt=True)
    return placed


def ordered(box: Outbox) -> bool:
    """Whether an order waits to be carried out."""
    return box.store.get_meta(ORDER) is not None


def withdraw_order(box: Outbox, placed: bytes) -> None:
    """Undo `place_order`, or end an order that was carried out; a later one stays.  Raises `DurabilityError`."""
    box.store.delete_meta(ORDER, only=placed, despite_halt=True)


def given_order(box: Outbox) -> tuple[ReconcileOrder, bytes] | None:
    """What an operator ordered from another process, and what `withdraw_order` takes.

    An order with an option that only a newer version has is withdrawn: without the option it would be another order.
    Raises `DurabilityError`.
    """
    data = box.store.get_meta(ORDER)
    if data is None:
        return None
    given: dict[str, Any] = codec.from_json(data)
    options = {item.name: given.pop(item.name) for item in fields(ReconcileOrder) if item.name in given}
    if newer := sorted(name for name, value in given.items() if value):
        _log.error(
            "an order to reconcile is withdrawn, this version does not know its options: %(options)s",
            options=", ".join(newer),
        )
        withdraw_order(box, data)
        return None
    return ReconcileOrder(**options), data


def reconciliations(box: Outbox, *, after_seq: int) -> Iterator[Reconciliation]:
    """What was done, of the ledger's records after a sequence number."""
    names = [item.name for item in fields(Reconciliation)]
    for record in box.store.records("ledger", first=after_seq + 1, on_damage=say):
        if record.operation == RECONCILE and is_answer(record):
            args = record.entry().args
            yield Reconciliation(**{name: args[name] for name in names if name in args})


def say(seq: int, damage: StoreCorrupt) -> None:
    """Log a settled entry that cannot be read."""
    _log.error("settled entry %(seq)s cannot be read: %(why)s", seq=seq, why=damage)
