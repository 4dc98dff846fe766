"""Waits: which entries and operations are tried again later, why, and when.

An entry waits after a passing refusal or a try that took too long.  An operation waits, with all its entries, while the
cause lies with it: it is parked.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from itertools import islice

from ..target import Target, Unit, is_best_effort

# So often an entry may fail by conflicts with other transactions before an operator is called.
_CONFLICTS = 10
# Of a reason's text, and how many parked operations and waiting entries are published.
_REASON_CHARS = 300
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Retry:
    """When an entry that waits is tried again (monotonic seconds), and whether its ordering key waits for it."""

    at: float
    holds: bool
    # When it was to be tried again before a caller hurried it; None where none has.
    due: float | None = None
    # Whether a caller may hurry it: not where each try takes long.
    hurries: bool = True


@dataclass(frozen=True, slots=True)
class Parked:
    """An operation whose entries wait: why, how often it was tried, when it is due, and whether their keys wait too."""

    reason: str
    times: int
    at: float
    holds: bool
    # Its oldest entry.
    first: int


class Waits:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(self, target: Target) -> None:
        """`target` has the operations."""
        self._target = target
        # By entry.
        self._retries: dict[int, Retry] = {}
        # Entries that are tried before they are due, by sequence number: when they are due.
        self._early: dict[int, float] = {}
        # Of units that took too long in PostgreSQL although they were alone, by their first entry: how often, whether
        # they need an operator, and what the last try failed with.
        self._slow: dict[int, tuple[int, bool, str]] = {}
        # Of units that wait though nothing is wrong with their data, by their first entry: how often, and why.
        self._blameless: dict[int, tuple[int, str]] = {}
        # Operations whose entries wait, and those of them that are being tried again.
        self._parked: dict[str, Parked] = {}
        self._tried: dict[str, Parked] = {}

    # -- what the walk asks

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, and nothing must be delivered alone."""
        return not (self._retries or self._slow or self._parked)

    def of(self, unit: Unit) -> tuple[bool, bool]:
        """Whether a unit must wait for itself or its operations, and whether its ordering keys wait with it."""
        retries = [self._retries[record.seq] for record in unit if record.seq in self._retries]
        parked = {record.operation for record in unit if record.operation in self._parked}
        critical = bool(parked) and not self._is_best_effort(unit)
        if critical:
            # A group holds back others also if one of its operations alone would not.
            self._parked |= {name: replace(self._parked[name], holds=True) for name in parked}
        return bool(retries or parked), critical or any(retry.holds for retry in retries)

    def is_slow(self, unit: Unit) -> bool:
        """Whether a unit must be alone: whatever shared its transaction would wait as long, each time."""
        return unit[0].seq in self._slow

    def take_due(self, now: float) -> tuple[bool, bool]:
        """Let what is due into the next batch; whether there are entries, and entries of parked operations."""
        due = [seq for seq, retry in self._retries.items() if retry.at <= now]
        for seq in due:
            retry = self._retries.pop(seq)
            if retry.due is not None and retry.due > now:
                self._early[seq] = retry.due
        operations = {name: parked for name, parked in self._parked.items() if parked.at <= now}
        self._tried |= operations
        for name in operations:
            del self._parked[name]
        return bool(due), bool(operations)

    def take_early(self, seq: int, now: float) -> float | None:
        """When an entry is due that was tried earlier for a caller; None where it was due."""
        due = self._early.pop(seq, None)
        return due if due is not None and due > now else None

    def forget_discarded(self, is_pending: Callable[[int], bool]) -> None:
        """Of what waits, some may have been discarded."""
        for waiting in (self._retries, self._early, self._slow, self._blameless):
            for seq in [seq for seq in waiting if not is_pending(seq)]:
                del waiting[seq]

    def passed(self, settled: Set[int], operations: Set[str], *, end: bool) -> bool:
        """Forget what is settled.  `operations` have settled entries; `end`: nothing lies behind the batch.

        Returns whether what is being tried again still fails, as far as is known.
        """
        for waiting in (self._early, self._slow, self._blameless):
            for seq in settled & waiting.keys():
                del waiting[seq]
        works = operations & self._tried.keys()
        if end:
            self._tried = {}
            # Of the others nothing is left: they were discarded.
            self._blameless = {seq: why for seq, why in self._blameless.items() if seq in self._retries}
        elif works:
            self._tried = {name: parked for name, parked in self._tried.items() if name not in works}
        return not (end or works)

    @property
    def is_trying(self) -> bool:
        """Whether an operation that was parked is being tried again."""
        return bool(self._tried)

    # -- what a step came to

    def retry(self, retries: dict[int, Retry]) -> None:
        """Try rejected entries again, by sequence number."""
        self._retries |= retries

    def park(self, operation: str, reason: str, first: int, due: Callable[[int], float]) -> None:
        """Let the entries of `operation` wait, of which `first` is the oldest.

        `due(n)` is when to try it again after the n-th failure.
        """
        before = self._tried.pop(operation, None) or self._parked.get(operation)
        times = before.times + 1 if before is not None else 1
        declared = self._target.operations.get(operation)
        holds = declared is None or not declared.best_effort or (before is not None and before.holds)
        self._parked[operation] = Parked(reason, times, due(times), holds, first)

    def wait(self, unit: Unit, reason: str, due: Callable[[int], float]) -> None:
        """Let a unit wait that failed though its data is not the cause; see `park`."""
        times = self._blameless.get(unit[0].seq, (0, ""))[0] + 1
        self._blameless[unit[0].seq] = (times, reason)
        self._retry_unit(unit, due(times))

    def waits_alone(self, unit: Unit) -> bool:
        """Whether this unit has been waiting while others of its operation were applied."""
        return unit[0].seq in self._blameless

    def stalled(self, unit: Unit, why: str, now: float, pause_s: float, *, conflict: bool = False) -> None:
        """Note a unit that took too long although it was alone: the next time others go first.

        It is tried again at once, then after `pause_s`, then after twice that, up to ten times that.
        A `conflict` with another transaction needs an operator only if it happens again and again.
        """
        times, stuck, _ = self._slow.get(unit[0].seq, (0, False, ""))
        times += 1
        self._slow[unit[0].seq] = times, stuck or times > (_CONFLICTS if conflict else 1), why
        if times > 1:
            self._retry_unit(unit, now + pause_s * min(10, 2 ** (times - 2)), hurries=False)

    def hurry(self, at: float) -> None:
        """Bring what waits forward to at most `at`: a caller is waiting for it."""
        for name, parked in self._parked.items():
            self._parked[name] = replace(parked, at=min(parked.at, at))
        for seq, retry in self._retries.items():
            if retry.at > at and retry.hurries:
                self._retries[seq] = replace(retry, at=at, due=retry.at if retry.due is None else retry.due)

    def _retry_unit(self, unit: Unit, at: float, *, hurries: bool = True) -> None:
        retry = Retry(at, holds=not self._is_best_effort(unit), hurries=hurries)
        self._retries |= {record.seq: retry for record in unit}

    def _is_best_effort(self, unit: Unit) -> bool:
        return is_best_effort(unit, self._target.operations)

    # -- what there is to say of it

    @property
    def next_retry(self) -> float | None:
        """When the first entry or operation that waits is due again (monotonic seconds), or None when none waits."""
        times = [retry.at for retry in self._retries.values()]
        return min(times + [parked.at for parked in self._parked.values()], default=None)

    @property
    def awaits(self) -> bool:
        """Whether something is left that will be tried again, and that others have to wait for."""
        return bool(self._retries or self._tried) or any(parked.holds for parked in self._parked.values())

    def waits_before(self, seq: int) -> bool:
        """Whether an entry older than `seq` may still be applied before it."""
        parked = [one.first for one in self.parked.values() if one.holds]
        return any(other < seq for other in (*self._retries, *parked))

    @property
    def parked(self) -> dict[str, Parked]:
        """Parked operations, those that are being tried again included."""
        return {**self._tried, **self._parked}

    @property
    def slow(self) -> int | None:
        """The oldest entry that took too long more than once, and still waits; None when there is none."""
        return min((seq for seq, (_, stuck, _) in self._slow.items() if stuck), default=None)

    def published(self) -> tuple[str | None, dict[str, object]]:
        """Why something waits that needs an operator, or None; and what waits, in the size of the relay's report."""
        parked, slow, reasons = self.parked, self.slow, self._reasons()
        needs = [one.reason for one in parked.values() if one.holds]
        shown = islice(sorted(parked.items()), _SHOWN)
        return next(iter([*needs, *reasons.values()]), None), {
            "slow": slow,
            "slow_why": None if slow is None else self._slow[slow][2][:_REASON_CHARS],
            "parked": {
                name: {"reason": one.reason[:_REASON_CHARS], "best_effort": not one.holds} for name, one in shown
            },
            "waiting": {seq: why[:_REASON_CHARS] for seq, why in islice(reasons.items(), _SHOWN)},
        }

    def _reasons(self) -> dict[str, str]:
        return {str(seq): why for seq, (_, why) in sorted(self._blameless.items())}
