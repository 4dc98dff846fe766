"""Session state: what a session of PostgreSQL is like, whether one can become another, and the SQL that makes it so.

`theirs` is a session of the manager, `ours` one of the relay.  Everything is set for one transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import psycopg2.extensions

from ...errors import ConfigError
from ...postgres.rows import quote
from ...words import first_line

# They are the relay's to choose: they say how its transaction ends, how long it may take, and how its driver talks.
_OF_THE_RELAY = frozenset(
    {
        *("transaction_deferrable", "transaction_isolation", "transaction_read_only", "synchronous_commit"),
        *("default_transaction_deferrable", "default_transaction_isolation", "default_transaction_read_only"),
        *("idle_in_transaction_session_timeout", "idle_session_timeout", "lock_timeout", "statement_timeout"),
        *("client_connection_check_interval", "client_encoding", "tcp_keepalives_count", "tcp_keepalives_idle"),
        *("tcp_keepalives_interval", "tcp_user_timeout", "transaction_timeout", "seed"),
    }
)

# Settings that a session of a lesser role does not see are left alone, and those of libraries that are not loaded.
_SETTINGS = """
    SELECT name, setting FROM pg_settings WHERE context IN ('user', 'superuser')
        AND (position('.' IN name) = 0 OR source IN ('client', 'session', 'user', 'database', 'database user'))
"""
# An application's own variables are in no list: those count that the database or the connection's options name.
# What spells an expression out waits for the lock of its table, which a migration may hold for long: only those are
# that call current_setting by their stored form.
_VARIABLES = r"""
    WITH calls (pattern) AS (VALUES (format(
        $$:funcid (%s|%s)\y$$,
        'pg_catalog.current_setting(text)'::regprocedure::oid,
        'pg_catalog.current_setting(text, bool)'::regprocedure::oid
    )))
    SELECT DISTINCT lower(found[1]) FROM (
        SELECT coalesce(pg_get_expr(polqual, polrelid), '') || ' ' || coalesce(pg_get_expr(polwithcheck, polrelid), '')
            FROM pg_policy, calls WHERE polqual::text ~ pattern OR polwithcheck::text ~ pattern
        UNION ALL SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef, calls WHERE adbin::text ~ pattern
        UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint, calls
            WHERE contype = 'c' AND conbin::text ~ pattern
        UNION ALL SELECT pg_get_viewdef(ev_class) FROM pg_rewrite, calls
            WHERE ev_class >= 16384 AND rulename = '_RETURN' AND ev_action::text ~ pattern
        UNION ALL SELECT coalesce(prosrc, '') FROM pg_proc WHERE oid >= 16384
    ) AS t (body), regexp_matches(body, $$current_setting\s*\(\s*E?'(\w+(\.\w+)+|application_name)'$$, 'gi') AS found
"""
# For what is asked beside the manager's own calls: a lock that another holds for long must not stop the program.
WAIT_BRIEFLY = "SET LOCAL lock_timeout = '2s'"
_IDENTITY = """
    SELECT current_user, session_user, current_setting('is_superuser') = 'on',
        current_setting('transaction_isolation'), current_setting('transaction_read_only'), current_database(),
        (SELECT oid FROM pg_database WHERE datname = current_database()),
        CASE WHEN has_function_privilege('pg_control_system()', 'EXECUTE')
            THEN (SELECT system_identifier::text FROM pg_control_system()) END
"""
_NAME = "application_name"
# Names that mean the same and are written in no row.
_SAME = {"Etc/UTC": "UTC"}
HINT = "let the manager and DATABASE_URL use the same login, or grant the relay's what is missing"


@dataclass(frozen=True, slots=True)
class SessionState:
    """What a session of PostgreSQL is like."""

    user: str
    login: str
    superuser: bool
    isolation: str
    read_only: str
    database: str
    place: tuple[Any, ...]
    settings: dict[str, str]
    variables: dict[str, str | None] = field(default_factory=dict)


def state_of(raw: Any, variables: frozenset[str]) -> SessionState:
    """The state of the driver's connection `raw`, in the transaction that it is in."""
    with raw.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
        cursor.execute(_IDENTITY)
        user, login, superuser, isolation, read_only, database, oid, system = cursor.fetchone()
        cursor.execute(_SETTINGS)
        settings = {name: _SAME.get(value, value) for name, value in cursor if name not in _OF_THE_RELAY}
        values: dict[str, str | None] = {}
        for name in sorted(variables):
            cursor.execute("SELECT current_setting(%s, true)", (name,))
            values[name] = cursor.fetchone()[0]
        place = (oid, system)
        return SessionState(user, login, superuser, isolation, read_only, database, place, settings, values)


def variables_known(raw: Any) -> frozenset[str]:
    """Names of an application's own variables that can matter on the connection.

    Raises `psycopg2.OperationalError` where another transaction locks one of their tables for longer than two seconds.
    """
    with raw.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
        cursor.execute(WAIT_BRIEFLY)
        cursor.execute(_VARIABLES)
        found = {name for (name,) in cursor}
    options = (raw.info.options or "").replace("--", "-c ").split()
    named = {word.partition("=")[0].removeprefix("-c") for word in options if "=" in word}
    return frozenset(found | {name.lower() for name in named if "." in name})


def refused(exc: BaseException, theirs: SessionState, ours: SessionState) -> str:
    """Why one session cannot become the other, by PostgreSQL's own error."""
    what = first_line(exc)
    return f"the session of the manager ({theirs.user}) cannot be taken over by the relay's ({ours.user}): {what}"


def check(theirs: SessionState, ours: SessionState | None) -> None:
    """Raise `ConfigError` for what cannot be set within a transaction."""
    isolation = ours.isolation if ours is not None else "read committed"
    if theirs.isolation != isolation:
        raise ConfigError(
            f"the manager's transactions are {theirs.isolation}, the relay's {isolation}",
            hint="all calls of a batch share one transaction: lock rows instead",
        )
    # Where both are, the server is: a standby, or a primary on its way to be one.
    if theirs.read_only == "on" and (ours is None or ours.read_only != "on"):
        raise ConfigError("the manager's transactions are read-only", hint="make its engine without a read-only option")
    if ours is not None and theirs.place != ours.place:
        raise ConfigError(
            f"the manager writes to database {theirs.database!r}, the relay to another one ({ours.database!r})",
            hint="DATABASE_URL must lead to the manager's database",
        )


def take_over(raw: Any, theirs: SessionState, ours: SessionState) -> None:
    """Set what differs, for the transaction that `raw` is in.  Raises `psycopg2.Error`."""
    statement = difference(theirs, ours)
    if statement:
        with raw.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
            cursor.execute(statement)


def difference(theirs: SessionState, ours: SessionState) -> str:
    """SQL that makes a transaction of `ours` one of `theirs`; empty where they are alike."""
    quoted = psycopg2.extensions.adapt
    seen = {name: value for name, value in theirs.settings.items() if name in ours.settings or "." in name}
    changed = [(name, value) for name, value in seen.items() if ours.settings.get(name) != value]
    if _NAME not in theirs.variables:
        # A name that was neither set nor asked for needs no round trip.
        changed = [item for item in changed if item != (_NAME, "")]
    own = {name: value for name, value in theirs.variables.items() if name != _NAME}
    changed += [(name, value) for name, value in own.items() if value and value != ours.variables[name]]
    calls = [
        f"pg_catalog.set_config({_literal(quoted, name)}, {_literal(quoted, value)}, true)" for name, value in changed
    ]
    parts = [f"SELECT {', '.join(calls)}"] if calls else []
    if theirs.login != ours.login and ours.superuser:
        parts.append(f"SET LOCAL SESSION AUTHORIZATION {quote(theirs.login)}")
    if theirs.user != (theirs.login if theirs.login != ours.login and ours.superuser else ours.user):
        parts.append(f"SET LOCAL ROLE {quote(theirs.user)}")
    return "; ".join(parts)


def _literal(adapt: Callable[[Any], Any], value: str) -> str:
    made = adapt(value)
    made.encoding = "utf-8"
    text: str = made.getquoted().decode()
    # A percent sign is none of the driver's business: there are no parameters.
    return text
