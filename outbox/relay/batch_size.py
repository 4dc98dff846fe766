"""Batch size: how many entries a step takes, by the program's activity and the target's speed."""

from __future__ import annotations

from ..config import OutboxConfig
from ..target import Target

# So long after an entry came the program counts as enqueueing: as long as a trading loop may pause.
_BUSY_S = 60.0


class BatchSize:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(self, config: OutboxConfig, target: Target) -> None:
        self._config, self._target = config, target
        self._limit = config.batch_size
        # The newest entry of the last look, and until when the program counts as enqueueing.
        self._newest_seq: int | None = None
        self._busy_until = 0.0
        # Whether to go easy on disk and interpreter, since the program enqueues and waits for both.  Then batches
        # are small, one step after the other: see `docs/explanation/decisions/011-busy-batches.md`.
        self.busy = False

    def entries(self, now: float) -> int:
        """How many entries to take at once; a single one where that is to show which one takes too long."""
        self.busy = now < self._busy_until and self._config.busy_batch_size < self._config.batch_size
        limit = min(self._limit, self._config.busy_batch_size) if self.busy else self._limit
        return limit * self._target.lanes if self._limit > 1 else 1

    def look(self, newest_seq: int, now: float) -> None:
        """Note the newest entry of the store: a later one than before was enqueued meanwhile."""
        if self._newest_seq is not None and newest_seq > self._newest_seq:
            self._busy_until = now + _BUSY_S
            self.busy = self._config.busy_batch_size < self._config.batch_size
        self._newest_seq = newest_seq

    def shrink(self) -> None:
        """A batch took too long."""
        self._limit = max(1, self._limit // 2)

    def grow(self) -> None:
        """A batch was delivered."""
        self._limit = min(self._config.batch_size, self._limit * 2)
