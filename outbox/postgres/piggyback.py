"""Piggyback: a driver connection that sends small statements together with the next one, in the same round trip.

Savepoints and settings have no result, and nothing depends on when they are sent as long as they come before the next
statement.  Each cursor of the connection does that, also those of a handler.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from ..log import Log

_log = Log("outbox.postgres")

# Statements that may commit; a text that only looks like one is taken for one.
_COMMITS = re.compile(r"\b(COMMIT|END)\b", re.IGNORECASE)
# Statements by which savepoints or cursors can end that were made here.
_ENDS_SAVEPOINTS = re.compile(r"\b(SAVEPOINT|ROLLBACK|RELEASE|COMMIT|ABORT|CLOSE\s+ALL)\b|^\s*END\b", re.IGNORECASE)
_DECLARES = re.compile(r"\bDECLARE\b", re.IGNORECASE)
_CLOSES_ALL = re.compile(r"\bCLOSE\s+ALL\b", re.IGNORECASE)
# An INSERT of VALUES without a condition: it writes a row unless a trigger or a rule of the table keeps it out.
_IS_CONDITIONAL = re.compile(r"\b(SELECT|NOTHING|WHERE|TABLE)\b", re.IGNORECASE)
_INTO = re.compile(r"\bINTO\s+(\S+?)[\s(].*\bVALUES\b", re.IGNORECASE | re.DOTALL)
_LITERAL = re.compile(r"'[^']*'")
_NEXTVAL = re.compile(r"\bnextval\s*\(\s*'([^']+)'", re.IGNORECASE)
# So many sequences are remembered of a session.
_SEQUENCES = 100
_QUARTER = """
SAVEPOINT outbox_in_time;
SELECT set_config('statement_timeout', (setting::int / 4)::text, true) FROM pg_settings WHERE name = 'statement_timeout'
"""
# Without those of the relay, whose names begin like that.
_OPEN_CURSORS = "SELECT quote_ident(name) FROM pg_cursors WHERE name <> '' AND name !~ '^outbox_'"
# Longer statements are seldom repeated.
_CACHED_CHARS = 4096
# Libraries that replace threads, and how they are asked whether they have.
_GREENLETS = (("gevent.monkey", "is_module_patched", "threading"), ("eventlet.patcher", "is_monkey_patched", "thread"))
_BROKEN = psycopg2.extensions.TRANSACTION_STATUS_INERROR


class PiggybackConnection(psycopg2.extensions.connection):
    """A connection on which statements can be owed.  Used by one thread at a time."""

    def __init__(
        self,
        *args: Any,
        on_poll: Callable[[int], None] | None = None,
        on_failure: Callable[[Any], None] | None = None,
        **kwargs: Any,
    ) -> None:
        """Connect.  `on_poll` gets the descriptor of each socket that is tried, where the host's wait callback waits.

        `on_failure` gets the `info` of a connection that failed.  Raises `psycopg2.Error`.
        """
        self._on_poll = on_poll
        try:
            super().__init__(*args, **kwargs)
        except psycopg2.OperationalError:
            if on_failure is not None:
                on_failure(self.info)
            raise
        finally:
            self._on_poll = None
        # What is owed: the savepoint that a statement makes, or None, and the statement.
        self._owed: list[tuple[str | None, str]] = []
        # Savepoints that were made here and have not ended, oldest first.
        self._savepoints: list[str] = []
        # Those that ended with an outer one, before their maker has ended them.
        self._merged: set[str] = set()
        # Whether others make and end savepoints in this transaction, so that ours may be gone.
        self._shared = False
        # Whether a cursor must stay open: a statement that closes all is refused.
        self.keeps_cursors = False
        # How many statements have committed, or may have.
        self.commits = 0
        # Whether a cursor may have been declared, and whether a handler ran in a transaction that was not committed.
        self.declares = self.was_left = False
        # The table of which the first such row was kept out, until it is reset.
        self.kept_out: str | None = None
        # Called with each statement of a cursor before it is sent, but not for those that it sends itself.
        self.on_statement: Callable[[str], None] | None = None
        # Sequences that statements of this session have named, the newest last.
        self._sequences: dict[str, None] = {}

    def poll(self) -> int:
        """See psycopg2.  Called again and again by a wait callback of the host, which has no time limit of its own."""
        state: int = super().poll()
        if self._on_poll is not None and state != psycopg2.extensions.POLL_OK:
            self._on_poll(self.fileno())
        return state

    @property
    def is_broken(self) -> bool:
        """Whether a statement has failed since the last savepoint: then that one must be rolled back."""
        return bool(self.info.transaction_status == _BROKEN)

    def owe(self, statement: str) -> None:
        """Send `statement` before the next one.  It must have no result and no percent sign."""
        self._owed.append((None, statement))

    def owe_savepoint(self, name: str) -> bool:
        """Owe the savepoint `name`; False where the caller must make it at once."""
        if self._shared or self.is_broken:
            return False
        self._savepoints.append(name)
        self._owed.append((name, f"SAVEPOINT {name}"))
        return True

    def owe_release(self, name: str) -> bool:
        """Owe the end of savepoint `name`; False where the caller must release it at once, since that may fail."""
        if name in self._merged:
            self._merged.discard(name)
            return True
        if self._shared or name not in self._savepoints or self.is_broken:
            return False
        while (inner := self._savepoints.pop()) != name:
            self._merged.add(inner)
        if self._owed and self._owed[-1][0] == name:
            # Nothing was sent within it.
            self._owed.pop()
        else:
            self._owed.append((None, f"RELEASE SAVEPOINT {name}"))
        return True

    def is_merged(self, name: str) -> bool:
        """Whether savepoint `name` has ended with an outer one: a rollback to it is impossible."""
        return name in self._merged

    @contextmanager
    def rolling_back(self) -> Iterator[None]:
        """Within the block the caller rolls back to savepoints of its own: those that are owed stay as they are."""
        shared = self._shared
        try:
            yield
        finally:
            self._shared = shared

    def send_owed(self) -> None:
        """Send now what is owed.  Raises `psycopg2.Error`."""
        if self._owed:
            statement = self._take()
            with super().cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
                cursor.execute(statement)

    def _take(self) -> str:
        statement, self._owed = "; ".join(one for _, one in self._owed), []
        return statement

    def before(self, query: str) -> str:
        """What to send before `query`, together with it."""
        self._note(query)
        return self._take() + "; " if self._owed else ""

    def send_before(self, query: str) -> None:
        """Send what is owed before `query`, which takes nothing along."""
        self._note(query)
        self.send_owed()

    def _note(self, query: str) -> None:
        self.declares = self.declares or _declares(query)
        if _ends_savepoints(query):
            if self.keeps_cursors and _CLOSES_ALL.search(query):
                raise psycopg2.NotSupportedError("CLOSE ALL is refused in a batch: close cursors by their names")
            self._shared = True
            self.commits += _COMMITS.search(query) is not None
        heard, self.on_statement = self.on_statement, None
        if heard is not None:
            try:
                heard(query)
            finally:
                self.on_statement = heard

    def close_cursors(self) -> None:
        """Close the cursors that others have declared in PostgreSQL, so that they can be declared again.

        Raises `psycopg2.Error`.
        """
        if not self.declares:
            return
        with super().cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
            cursor.execute(self.before("") + _OPEN_CURSORS)
            closing = "; ".join(f"CLOSE {name}" for (name,) in cursor.fetchall())
            if closing:
                cursor.execute(closing)
        self.declares = False

    def note_no_row(self, query: Any, cursor: Any) -> None:
        """Note that the INSERT `query` of `cursor` wrote nothing, where it should have."""
        if isinstance(query, bytes):
            query = query.decode("latin-1")
        text = _LITERAL.sub("", query if isinstance(query, str) else query.as_string(cursor))
        if self.kept_out is None and not _IS_CONDITIONAL.search(text) and (into := _INTO.search(text)):
            self.kept_out = into[1]

    @property
    def sequences(self) -> list[str]:
        """Sequences of which a statement of this session has got a number by name: `nextval('...')`."""
        return list(self._sequences)

    def note_sequences(self, cursor: Any) -> None:
        """Note the sequences in what `cursor` has just sent, with the values in their places."""
        for name in _NEXTVAL.findall((cursor.query or b"").decode(errors="replace")):
            self._sequences.pop(name, None)
            self._sequences[name] = None
        for oldest in self.sequences[:-_SEQUENCES]:
            del self._sequences[oldest]

    @contextmanager
    def kept_as_it_is(self) -> Iterator[None]:
        """Undo at the end what the block sets on the connection object: its class of cursors and its type casters.

        The next user of the connection counts on its own.
        """
        factory, casters = self.cursor_factory, (self.string_types, self.binary_types)
        before = [dict(one) for one in casters]
        try:
            yield
        finally:
            self.cursor_factory = factory
            for one, kept in zip(casters, before, strict=True):
                if one != kept:
                    one.clear()
                    one.update(kept)

    def cursor(self, name: Any = None, cursor_factory: Any = None, *args: Any, **kwargs: Any) -> Any:
        """See psycopg2.  Every cursor sends first what is owed."""
        own: Any = self.cursor_factory
        factory = cursor_factory or own or psycopg2.extensions.cursor
        return super().cursor(name, _sending(factory), *args, **kwargs)

    def lobject(self, *args: Any, **kwargs: Any) -> Any:
        """See psycopg2."""
        self.send_owed()
        return super().lobject(*args, **kwargs)

    def commit(self) -> None:
        """See psycopg2.  The end of the transaction ends its savepoints; settings must have been sent."""
        self._end()
        self.commits += 1
        super().commit()
        # What undoes a handler's settings came before.
        self.was_left = False

    def rollback(self) -> None:
        """See psycopg2."""
        self._end()
        super().rollback()

    def _end(self) -> None:
        self._owed, self._savepoints, self._merged, self._shared = [], [], set(), False
        self.keeps_cursors = False


@cache
def warn_of_greenlets() -> None:
    """Warn once where greenlets have replaced threads and psycopg2 blocks them all; they need a wait callback."""
    if psycopg2.extensions.get_wait_callback() is None and any(_is_patched(*one) for one in _GREENLETS):
        _log.warning(
            "greenlets have replaced threads: a silent PostgreSQL stops the whole program (call psycogreen's "
            "patch_psycopg(), or run the relay as a process of its own)"
        )


def _is_patched(module: str, question: str, name: str) -> bool:
    asked = getattr(sys.modules.get(module), question, None)
    return asked is not None and bool(asked(name))


def tried_in_time(cursor: Any, query: str, *parameters: Any) -> Any:
    """The row that a query finds, or None where it takes more than a quarter of the time that a statement has.

    `cursor`: of a `PiggybackConnection`, in a transaction that goes on.
    """
    with cursor.connection.rolling_back():
        try:
            cursor.execute(_QUARTER)
            cursor.execute(query, parameters)
            return cursor.fetchone()
        except psycopg2.errors.QueryCanceled:
            return None
        finally:
            if not cursor.connection.closed:
                cursor.execute("ROLLBACK TO SAVEPOINT outbox_in_time; RELEASE SAVEPOINT outbox_in_time")


def tried(cursor: Any, query: str, *parameters: Any) -> Any:
    """The row that a query finds, or None where the server or the role cannot answer; the transaction goes on.

    `cursor`: of a `PiggybackConnection`.
    """
    with cursor.connection.rolling_back():
        try:
            cursor.execute(f"SAVEPOINT outbox_tried; {query}", parameters)
            return cursor.fetchone()
        except (psycopg2.ProgrammingError, psycopg2.NotSupportedError, psycopg2.errors.ObjectNotInPrerequisiteState):
            cursor.execute("ROLLBACK TO SAVEPOINT outbox_tried")
            return None
        finally:
            cursor.connection.owe("RELEASE SAVEPOINT outbox_tried")


def _names_a_sequence(query: Any) -> bool:
    if isinstance(query, str):
        return "nextval" in query or "NEXTVAL" in query
    return not isinstance(query, bytes) or b"nextval" in query or b"NEXTVAL" in query


def _ends_savepoints(query: str) -> bool:
    return _searched(query) if len(query) <= _CACHED_CHARS else _ENDS_SAVEPOINTS.search(query) is not None


def _declares(query: str) -> bool:
    return "DECLARE" in query or "declare" in query or _DECLARES.search(query) is not None


@lru_cache(maxsize=1024)
def _searched(query: str) -> bool:
    return _ENDS_SAVEPOINTS.search(query) is not None


class _Sending:
    """Mixed into the classes of cursors."""

    connection: PiggybackConnection
    name: str | None
    rowcount: int
    statusmessage: str | None

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        sent = query
        if self.name is None and isinstance(query, str):
            sent = self.connection.before(query) + query
        elif self.name is None and isinstance(query, bytes):
            sent = self.connection.before(query.decode("latin-1")).encode() + query
        else:
            self.connection.send_before(str(query))
            self.connection.declares |= self.name is not None
        try:
            result = super().execute(sent, *args, **kwargs)  # type: ignore[misc]
        finally:
            if _names_a_sequence(query):
                self.connection.note_sequences(self)
        if self.rowcount == 0 and self.statusmessage == "INSERT 0 0":
            self.connection.note_no_row(query, self)
        return result

    def executemany(self, query: Any, vars_list: Any) -> Any:
        self.connection.send_before(str(query))
        rows = list(vars_list)
        result = super().executemany(query, rows)  # type: ignore[misc]
        if 0 <= self.rowcount < len(rows) and (self.statusmessage or "").startswith("INSERT"):
            self.connection.note_no_row(query, self)
        return result


def _sends_first(method: str) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.connection.send_before(str(args[0]) if args else "")
        return getattr(super(_Sending, self), method)(*args, **kwargs)

    return call


for _method in ("callproc", "copy_expert", "copy_from", "copy_to"):
    setattr(_Sending, _method, _sends_first(_method))


@cache
def _sending(factory: Any) -> Any:
    """A class of cursors like `factory` that send first what is owed."""
    return type(factory.__name__, (_Sending, factory), {"__module__": factory.__module__})
