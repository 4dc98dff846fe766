"""Time zones: keeps the named zones of times, which are stored with their offset: a day later the clock may be set."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from ..records import fields_of, has_fields, made_of
from .plain_data import PLAIN

# The name of a zone, or the zones of what is inside: by key, and of a list or tuple by position as text.
Zones = str | dict[str, Any]
# Zones whose clock is never set.
_EVEN = frozenset({"UTC", "Etc/UTC"})
_DEEPEST = 16


def zones_in(value: Any, depth: int = 0) -> Zones | None:
    """The named zones of the times in a value; None where there are none."""
    kind = type(value)
    if kind is datetime:
        zone = value.tzinfo
        return zone.key if type(zone) is ZoneInfo and zone.key not in _EVEN else None
    if kind in PLAIN or depth > _DEEPEST:
        return None
    items = ((name, one) for name, one in _parts(value).items() if isinstance(name, str))
    found = {name: zones for name, one in items if (zones := zones_in(one, depth + 1)) is not None}
    return found or None


def in_zones(value: Any, zones: Any) -> Any:
    """A value with its times in the zones that `zones_in` found; what does not fit is left as it is."""
    if isinstance(zones, str):
        return _in_zone(value, zones) if isinstance(value, datetime) else value
    parts = _parts(value)
    made = {name: in_zones(one, zones[name]) if name in zones else one for name, one in parts.items()}
    if isinstance(value, list):
        list.__setitem__(value, slice(None), list(made.values()))
    elif isinstance(value, dict):
        for name in zones.keys() & made.keys():
            dict.__setitem__(value, name, made[name])
    elif has_fields(type(value)):
        return made_of(type(value), made, made)
    elif isinstance(value, tuple):
        return tuple.__new__(type(value), list(made.values()))
    return value


def call_in_zones(call: dict[str, Any], notes: Mapping[str, Any]) -> dict[str, Any]:
    """A call with the times of its arguments as they were given."""
    zones = notes.get("zones")
    return call if not zones else in_zones(call, zones)


def _parts(value: Any) -> dict[Any, Any]:
    if isinstance(value, dict):
        return value
    if has_fields(type(value)):
        return dict(fields_of(value))
    if isinstance(value, list | tuple):
        return {str(index): one for index, one in enumerate(value)}
    return {}


def _in_zone(value: datetime, name: str) -> datetime:
    # The zones of this system may be others than those of the call.
    with suppress(KeyError, ValueError, OSError, OverflowError):
        zoned = value.astimezone(ZoneInfo(name))
        return zoned if zoned.utcoffset() == value.utcoffset() else value
    return value
