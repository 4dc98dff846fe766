"""Rules of the database that refuse a call on purpose: a CHECK, a domain, WITH CHECK OPTION, RAISE in a function.

A manager that leaves such a refusal to PostgreSQL is as good as one that raises it itself, so it is learned alike.
Other errors of the data (a duplicate key, a missing parent) are none: they need not have to do with the limit that the
call goes beyond.
"""

from __future__ import annotations

from typing import Any

import psycopg2
import psycopg2.errors
from sqlalchemy.exc import DBAPIError

from ...registered import class_name, class_named

_CHECK = "23514"
_OF_TABLES = frozenset({_CHECK, "44000"})


def is_broken_by(error: BaseException | None) -> bool:
    """Whether an error of PostgreSQL says that a rule was broken.  A missing partition is a CHECK without a name."""
    origin = _origin(error)
    if origin is None or origin.pgcode not in _OF_TABLES:
        return is_raised(error)
    return origin.pgcode != _CHECK or origin.diag.constraint_name is not None


def is_raised(error: BaseException | None) -> bool:
    """Whether a function or a trigger raised it: an error of PL/pgSQL, or one with an SQLSTATE that is its author's."""
    origin = _origin(error)
    code = None if origin is None else origin.pgcode
    return code is not None and (code.startswith("P0") or _class_of(code) is None)


def _origin(error: BaseException | None) -> psycopg2.Error | None:
    origin = error.orig if isinstance(error, DBAPIError) else None
    return origin if isinstance(origin, psycopg2.Error) else None


def _class_of(sqlstate: str) -> Any:
    """The driver's class for an SQLSTATE of PostgreSQL's; None for others."""
    try:
        return psycopg2.errors.lookup(sqlstate)
    except KeyError:
        return None


def name_of(error: BaseException) -> str:
    """Under which name an error is learned; that of PostgreSQL has its SQLSTATE behind it."""
    name, origin = class_name(type(error)), _origin(error)
    return name if origin is None or not is_broken_by(error) else f"{name}#{origin.pgcode}"


def made_again(name: str, why: str) -> BaseException:
    """The error of that name, in a call that was not sent; a `ValueError` where its class has other arguments."""
    found, _, sqlstate = name.partition("#")
    cls = class_named(found)
    try:
        error = cls("(not sent)", {}, _of_driver(sqlstate, why)) if sqlstate else cls(why)
    except Exception:  # noqa: BLE001 - a class of the host's with arguments of its own
        return ValueError(why)
    return error if isinstance(error, Exception) else ValueError(why)


def _of_driver(sqlstate: str, why: str) -> Any:
    """An error of the driver's class, since callers look at that, and at `pgcode`, which only the driver can set."""
    cls = _class_of(sqlstate) or psycopg2.DatabaseError
    return type(cls.__name__, (cls,), {"__module__": cls.__module__, "pgcode": sqlstate})(why)
