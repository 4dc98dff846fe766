"""Unwritten: the notices of methods that answer without writing anything, so that nothing of the call is recorded."""

from __future__ import annotations

from collections.abc import Iterable

from ... import DurabilityError, Outbox
from ...log import Log

_log = Log("outbox.integrations")

_PREFIX = "unwritten:"


class Unwritten:
    """Those of one adapter.  Safe from any thread."""

    def __init__(self, outbox: Outbox, names: Iterable[str]) -> None:
        """`names`: the operations.  Notices of an earlier run are taken away: the method may be mended since."""
        self._outbox = outbox
        # Operations that were seen to write nothing: reported once, as a method may write sometimes.
        self._reported: set[str] = set()
        # Those of them that were not seen to write since.
        self._shown: set[str] = set()
        for notice in outbox.store.figures().notices.keys() & {_PREFIX + name for name in names}:
            outbox.notices.clear(notice)

    def answered(self, name: str) -> None:
        """Operation `name` answered, and wrote nothing.  Raises `DurabilityError`."""
        if name in self._reported:
            return
        self._reported.add(name)
        _log.warning("%(operation)s wrote nothing and was not recorded", operation=name)
        self._outbox.notices.put(_PREFIX + name, f"{name} answered without writing anything")
        self._shown.add(name)

    def wrote(self, name: str) -> None:
        """A call of operation `name` was recorded."""
        if name not in self._shown:
            return
        self._shown.discard(name)
        try:
            self._outbox.notices.clear(_PREFIX + name)
        except DurabilityError as exc:
            # The call is recorded, and must not seem to have failed.
            _log.warning("a notice could not be taken away: %(error)s", error=exc)
