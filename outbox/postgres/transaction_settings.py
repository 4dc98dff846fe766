"""TransactionSettings: what the relay sets in PostgreSQL, for one transaction at a time.

Nothing is set for the session: a connection pooler gives the server's session to other programs between two
transactions, and gives the relay another one.  Each transaction sets what it depends on with its first statement, in
the same round trip, and looks whether it holds.  All other settings, the time zone first of all, are those of the
database and the role, as for any program that connects.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..errors import TargetMisconfigured


class Cursor(Protocol):
    """What is needed of a DB-API cursor inside the relay's transaction."""

    @property
    def rowcount(self) -> int: ...
    @property
    def connection(self) -> Any: ...
    def execute(self, query: str, parameters: Any = ..., /) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def fetchone(self) -> Any: ...


# SQL: whether the settings hold; to be returned by the first statement of a transaction.
HELD = """
current_setting('synchronous_commit') IN ('on', 'remote_apply') AND current_setting('statement_timeout') <> '0'"""

# An acknowledged commit must be on PostgreSQL's disk, whatever the server's default is.  A host that reads from a
# standby may have chosen to wait for more.
_SYNCHRONOUS = """
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') <> 'remote_apply'"""


# SQL: ends what outlasts a transaction, also one that is rolled back.  A handler that makes it again would find it.
LEFT_BEHIND = "DEALLOCATE ALL; SELECT pg_advisory_unlock_all()"

# The limits of a statement and of idle time, and the relay's own, end a transaction.  Another value than 0 would not
# move a limit that runs already.
_HAS_TRANSACTION_TIMEOUT = 170000
_NO_LIMIT = "SET LOCAL transaction_timeout = 0"


# By these a statement finds its tables, and reads naive times.
_KEPT = ("search_path", "role", "TimeZone")


def keeping(cursor: Cursor) -> str:
    """SQL that sets again for a transaction what decides which table a row goes to, and how it is read.

    A trigger that changes it, for its session too, must change neither the next entries nor the next transaction.
    """
    cursor.execute("SELECT " + ", ".join(f"quote_literal(current_setting('{name}'))" for name in _KEPT))
    # The driver would take a percent sign for a parameter.
    kept = [value.replace("%", "' || chr(37) || E'") for value in cursor.fetchone()]
    sets = ", ".join(f"set_config('{name}', {value}, true)" for name, value in zip(_KEPT, kept, strict=True))
    return f"; SET LOCAL SESSION AUTHORIZATION DEFAULT; SELECT {sets}"


def not_held() -> TargetMisconfigured:
    """What to raise where a transaction runs without what it has set."""
    return TargetMisconfigured(
        "PostgreSQL does not keep the settings of a transaction",
        hint="a connection pooler must keep a transaction on one server",
    )


class TransactionSettings:
    """The settings, as SQL."""

    def __init__(self, stall_timeout_s: float) -> None:
        limit_ms = max(1, int(stall_timeout_s * 1000))
        values = {
            "statement_timeout": limit_ms,
            # The statement's timeout bounds the wait for a lock.
            "lock_timeout": 0,
            # A server left alone by a dead relay must let go of its locks.
            "idle_in_transaction_session_timeout": 2 * limit_ms,
            # The driver writes UTF-8, and reads ISO dates only; the order of day and month stays the role's.
            "client_encoding": "'UTF8'",
            "datestyle": "'ISO'",
        }
        # To be sent with the first statement of a transaction.
        self._beginning = "; ".join([*(f"SET LOCAL {name} = {value}" for name, value in values.items()), _SYNCHRONOUS])
        # A temporary table hides one of the same name: rows would go into it, and be gone with the connection.
        undo = "SET TRANSACTION READ WRITE; RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; DISCARD TEMP; "
        self._undoing = f"{undo}UNLISTEN *; {LEFT_BEHIND}; "

    def beginning(self, version: int) -> str:
        """SQL for the first statement of a transaction; `version` as the driver numbers the server's."""
        return self._beginning if version < _HAS_TRANSACTION_TIMEOUT else f"{self._beginning}; {_NO_LIMIT}"

    def restoring(self, version: int) -> str:
        """SQL that undoes in the middle of a transaction what a handler has set for its session or transaction."""
        return self._undoing + self.beginning(version)
