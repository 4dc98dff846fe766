"""Look: what a manager answers about one session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ...log import Log
from ..view.explanations import alike
from ..view.reads import BALANCE, MISSING, READ_ORDERS, READ_POSITIONS
from ..view.row_forms import RowForms
from ..view.rows import ORDERS, POSITIONS, Tables

_log = Log("outbox.integrations")

_READS = {POSITIONS: READ_POSITIONS, ORDERS: READ_ORDERS}


class Look:
    """What a manager answers about one session; what it cannot answer is None.  Raises `SQLAlchemyError`."""

    def __init__(
        self,
        ask: Callable[..., Any],
        session_id: Any,
        forms: RowForms,
        more: Mapping[str, Mapping[str, Any]] = {},
    ) -> None:
        """`more`: the arguments of other questions, whose answers are in `answers`."""
        balance = ask(BALANCE, session_id)
        found = {asked: ask(asked.partition("(")[0], **given) for asked, given in more.items()}
        self.answers = {name: answer for name, answer in found.items() if answer is not MISSING}
        asked = {table: _rows(ask, name, session_id) for table, name in _READS.items()}
        rows = {table: shown for table, shown in asked.items() if shown is not MISSING}
        # By table; of one that is missing there, why its rows cannot be understood.
        self.tables: Tables
        self.tables, self.unknown = forms.tables_of(**rows)
        self.shows_balance = balance is not MISSING
        self.balance = balance if self.shows_balance else None

    def shows(self, later: Look) -> bool:
        """Whether a later look shows a change."""
        return not (alike(self.balance, later.balance) and alike(self.tables, later.tables))


def _rows(ask: Callable[..., Any], read: str, session_id: Any) -> Any:
    """What a manager answers to a read of rows; the error where it fails for the manager's callers too."""
    try:
        return ask(read, session_id)
    except SQLAlchemyError:
        raise
    except Exception as exc:  # noqa: BLE001
        _log.warning("the rows of %(read)s cannot be understood", read=read, trace=True)
        return exc
