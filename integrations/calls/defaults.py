"""Defaults: values of arguments that a call leaves out, stored with it, since a new version may have others."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from ... import InvalidEntry
from ...codec import encode

_IMMUTABLE = (type(None), bool, int, float, str, bytes, Decimal, Enum, datetime, date, time, timedelta, UUID)
_GROUPS = (tuple, frozenset)


def is_kept_default(value: Any) -> bool:
    """Whether a default is stored with a call: one that never changes, and that the store can hold.

    The caller has not given it, so one such as NaN refuses no call, and is that of the version that delivers.
    """
    if value is None or type(value) is bool:
        return True
    return _is_immutable(value) and all(map(_can_be_stored, _inside(value)))


def _is_immutable(value: Any) -> bool:
    return isinstance(value, _IMMUTABLE) or (type(value) in _GROUPS and all(map(_is_immutable, value)))


def _inside(value: Any) -> list[Any]:
    return [one for inner in value for one in _inside(inner)] if type(value) in _GROUPS else [value]


def _can_be_stored(value: Any) -> bool:
    if value is None or isinstance(value, bool | Enum):
        # The class of an enum is allowed later.
        return True
    try:
        encode(value)
    except InvalidEntry:
        return False
    return True
