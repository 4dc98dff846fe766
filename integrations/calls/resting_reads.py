"""Resting reads: a read that PostgreSQL failed to answer is not asked again at once, since a lock may be long.

In an outage all reads rest together: a silent server lets each of them wait for the whole time limit of a connection.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from ..manager.away import is_unreachable

# A read rests for this many times the wait.
_REST = 5
# The key of what holds for all reads.
_EVERY = ""


class RestingReads:
    """When reads are asked again.  Thread-safe."""

    def __init__(
        self,
        monotonic: Callable[[], float],
        delivers: Callable[[], bool | None],
        acknowledged: Callable[[], frozenset[int]],
    ) -> None:
        """`delivers()`: whether PostgreSQL takes deliveries, as far as a relay knows.

        `acknowledged()`: the entries of its newest batch that PostgreSQL has committed.
        """
        self._monotonic, self._delivers, self._acknowledged = monotonic, delivers, acknowledged
        # By read: until when it rests, and why.
        self._resting: dict[str, tuple[float, SQLAlchemyError]] = {}
        # What was acknowledged when an outage was met, and whether a relay has noticed that.
        self._before: frozenset[int] = frozenset()
        self._noticed = False

    def fails(self, name: str, error: Exception, began_s: float) -> None:
        """A read that began at `began_s` was not answered."""
        if isinstance(error, SQLAlchemyError):
            self._before, self._noticed = self._acknowledged(), self._delivers() is False
            ended_s = self._monotonic()
            self._resting[_EVERY if is_unreachable(error) else name] = ended_s + _REST * (ended_s - began_s), error

    def why(self, name: str) -> SQLAlchemyError | None:
        """The error for which a read rests; None where it is to be asked."""
        for key in (_EVERY, name):
            until_s, error = self._resting.get(key, (0.0, None))
            if error is not None and self._monotonic() < until_s and not (key == _EVERY and self._is_over()):
                return error
        return None

    def _is_over(self) -> bool:
        """Whether a delivery has shown since that PostgreSQL answers again."""
        delivers = self._delivers()
        self._noticed = self._noticed or delivers is False
        return bool(delivers) and (self._noticed or self._acknowledged() != self._before)
