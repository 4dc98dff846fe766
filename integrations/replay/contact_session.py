"""Contact session: a session that reports each place where a call turns to the database.

A rehearsal ends at the first of them, and a replay takes its fingerprint there.  Both must find the same place, and
before the listeners of the host, of which none runs in a rehearsal: else sound values would seem to differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from ..sql_text import is_setting


class ContactSession(Session):
    """A session whose methods call `comes` before they turn to the database."""

    def comes(self, statement: Any = None, given: Any = None) -> None:
        """The call turns to the database, with a statement and the parameters beside it."""
        raise NotImplementedError

    def execute(self, statement: Any, params: Any = None, **kwargs: Any) -> Any:
        """See `Session`.  A setting of the transaction is no contact: a rehearsal goes on behind it."""
        if not is_setting(str(getattr(statement, "text", ""))):
            self.comes(statement, params)
        return super().execute(statement, params, **kwargs)

    def scalar(self, statement: Any, params: Any = None, **kwargs: Any) -> Any:
        """See `Session`."""
        self.comes(statement, params)
        return super().scalar(statement, params, **kwargs)

    def scalars(self, statement: Any, params: Any = None, **kwargs: Any) -> Any:
        """See `Session`."""
        self.comes(statement, params)
        return super().scalars(statement, params, **kwargs)


def _at_contact(name: str) -> Callable[..., Any]:
    def method(self: ContactSession, *args: Any, **kwargs: Any) -> Any:
        self.comes()
        return getattr(super(ContactSession, self), name)(*args, **kwargs)

    return method


for _name in (
    *("get", "get_one", "flush", "commit", "query", "merge", "refresh", "connection", "delete"),
    *("bulk_save_objects", "bulk_insert_mappings", "bulk_update_mappings"),
):
    setattr(ContactSession, _name, _at_contact(_name))
