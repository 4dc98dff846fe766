"""Foreign: values of numpy, pandas and SQLAlchemy as the Python values that they stand for.

No library is imported: a value's class names the module that it comes from.
"""

from __future__ import annotations

from typing import Any

from .derived import can_be_registered
from .errors import InvalidEntry


def is_column_name(value: Any) -> bool:
    """Whether it is a text of a class of SQLAlchemy's, as the keys of a row are that a table without a class gives."""
    return isinstance(value, str) and type(value).__module__.startswith("sqlalchemy.")


def coerced(value: Any, path: str) -> Any:
    """numpy scalars, pandas times and column names become the Python value they stand for; others are refused."""
    module = type(value).__module__.partition(".")[0]
    if is_column_name(value):
        return str(value)
    if module == "numpy" and hasattr(value, "item") and not getattr(value, "shape", ()):
        item = value.item()
        temporal = type(value).__name__ in ("datetime64", "timedelta64")
        if type(item).__module__ != "numpy" and not (temporal and isinstance(item, int)) and item is not None:
            return item
    elif module == "pandas" and hasattr(value, "to_pydatetime") and value == value and not value.nanosecond:
        return value.to_pydatetime()  # value == value: not NaT
    elif module == "pandas" and hasattr(value, "to_pytimedelta") and value == value and not value.nanoseconds:
        return value.to_pytimedelta()
    raise InvalidEntry(
        f"{path} has type {type(value).__module__}.{type(value).__qualname__}, which cannot be stored exactly",
        hint="allowed: None, bool, int, float, str, Decimal, datetime, date, time, timedelta, UUID, bytes, "
        "registered Enums and classes, numpy scalars, and dict, list, tuple, set, frozenset of these"
        + ("; or register its class with outbox.register_record" if can_be_registered(type(value)) else ""),
    )
