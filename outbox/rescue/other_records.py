"""Other records: checks the records of relay sessions, late entries and acknowledgements in the main database."""

from __future__ import annotations

from ..errors import StoreCorrupt
from ..store import late, sessions
from ..store.continuity import Mark
from ..store.ledger import MARK_PREFIX


def check_other(key: bytes, value: bytes) -> None:
    """Raise `StoreCorrupt` where one of these records is damaged.  A record with another key passes."""
    if key.startswith(MARK_PREFIX) and Mark.unpack(value) is None:
        raise StoreCorrupt("what PostgreSQL last acknowledged is damaged: its checksum does not match")
    if key == sessions.KEY:
        sessions.RelaySessions.unpack(value)
    if key == late.KEY:
        late.unpack(value)
