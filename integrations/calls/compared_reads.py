"""Compared reads: while PostgreSQL answers a read, the local view's answer is compared with the manager's.

A read that differs behind a call is not answered in an outage until enough answers have been equal again.  What is
known of its session is taken from PostgreSQL then, as after what another program has changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ... import Outbox
from ...log import Log
from ..outage import Repeated
from ..upkeep.keeper import Keeper
from ..view.compared import WAY_BACK, is_equal
from ..view.local_view import UnknownLocally
from ..view.reads import BALANCE, LAST_BALANCE, READ_ORDERS, READ_POSITIONS, Reads
from .delivery_waits import DeliveryWaits

_log = Log("outbox.integrations")

# Those about sessions are compared when a session is looked at.
_COMPARED = (BALANCE, LAST_BALANCE, READ_POSITIONS, READ_ORDERS)
# Comparing takes at most this part of the time.
_SHARE = 0.05


class ComparedReads:
    """Compares the answers of one adapter.  Thread-safe."""

    def __init__(self, outbox: Outbox, keeper: Keeper, delivery: DeliveryWaits, reads: Reads) -> None:
        self._clock, self._keeper, self._delivery, self._reads = outbox.clock, keeper, delivery, reads
        self._repeated = Repeated(_log)
        # From when on a read is compared again, monotonic seconds; and the last call before its last equal answer.
        self._due_s: dict[str, float] = {}
        self._equal_seq: dict[str, int] = {}

    def begin(self, name: str) -> int | None:
        """The last call before a read that is to be compared; None for one that is not."""
        read, seq = self._reads.local(name), self._delivery.last_seq
        if read is None or read.standard not in _COMPARED or not self._delivery.passed(seq):
            return None
        if self._keeper.is_comparing:
            return None
        return seq if self._clock.monotonic() >= self._due_s.get(name, 0.0) else None

    def end(
        self,
        name: str,
        seq: int,
        answer: Any,
        signature: inspect.Signature,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        current: Any,
    ) -> None:
        """Compare what the manager has answered after call `seq`, if no other call was made meanwhile."""
        began, view = self._clock.monotonic(), self._keeper.view
        if inspect.isgenerator(answer):
            return
        with self._keeper.kept.order:
            if self._delivery.last_seq != seq or self._keeper.is_comparing:
                return
            try:
                own = self._reads.answer(name, signature, args, kwargs, view, current, self._clock.now())
                equal = is_equal(own, answer)
            except UnknownLocally:
                return
            except Exception as exc:  # noqa: BLE001 - the manager has answered; rows are objects of the host's
                self._repeated.warn(name, "an answer of %(read)s cannot be compared: %(error)s", read=name, error=exc)
                return
            # Where no call was made since, another program has changed what is shown, and no rule was put to the test.
            is_test = self._equal_seq.get(name) != seq
            was_trusted = is_test and self._note(name, equal=equal)
        ended = self._clock.monotonic()
        self._due_s[name] = ended + (ended - began) / _SHARE
        if equal:
            self._equal_seq[name] = seq
            return
        if was_trusted:
            _log.warning("the local view would have answered %(read)s otherwise than the manager", read=name)
        self._keeper.differed(self._reads.session(name, signature, args, kwargs, current))

    def _note(self, name: str, *, equal: bool) -> bool:
        """Take in a comparison; whether the read was answered until now."""
        view = self._keeper.view
        with view.lock:
            compared = view.learning.compared
            was_trusted = compared.distrusted(name) is None
            view.learning.version += compared.note(name, equal=equal)
        return was_trusted

    def check(self, name: str) -> None:
        """Raise `UnknownLocally` for a read whose answers have differed."""
        with self._keeper.view.lock:
            why = self._keeper.view.learning.compared.distrusted(name)
        if why is not None:
            raise UnknownLocally(f"{name} cannot be answered without PostgreSQL: {why}", hint=WAY_BACK)
