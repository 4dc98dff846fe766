"""Likeness: the trading operation that a method resembles by its name; used in hints only."""

from __future__ import annotations

_NEW = frozenset(
    {
        *("add", "append", "book", "create", "insert", "log", "open", "place"),
        *("put", "record", "register", "save", "start", "store", "submit", "write"),
    }
)
_CHANGED = frozenset({"change", "mark", "modify", "set", "update"})
_ENDED = frozenset({"close", "end", "finish", "flatten", "stop"})

_LIKE = (
    (_NEW, "trade", "log_trade"),
    (_NEW, "position", "log_position"),
    (_CHANGED, "position", "update_position"),
    (_ENDED, "position", "close_position"),
    (_NEW, "order", "create_order_journal_entry"),
    (_CHANGED, "order", "update_order_journal"),
    (_NEW, "session", "create_trading_session"),
    (_ENDED, "session", "end_trading_session"),
    (_CHANGED, "balance", "update_balance"),
    (_NEW, "event", "log_event"),
)


def like(name: str) -> str | None:
    """Name the trading operation with the same verb and noun; None where there is none."""
    verb, _, rest = name.partition("_")
    noun = rest.rpartition("_")[2]
    return next((operation for verbs, one, operation in _LIKE if verb in verbs and noun == one), None)


def declaration(names: list[str]) -> str:
    """Show how one of these methods would be declared."""
    for name in names:
        operation = like(name)
        if operation is not None:
            return f'ManagerOperation("{name}", like="{operation}")'
    return f'ManagerOperation("{names[0]}")'
