"""Words: numbers, durations and errors as people read them."""

from __future__ import annotations

from contextlib import suppress

_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86_400
_YEAR_S = 365 * _DAY_S


def counted(count: int, one: str, more: str | None = None) -> str:
    """`count` and its noun: `1 entry`, `2 entries`.  Without `more` the plural takes an s."""
    return f"{count} {one if count == 1 else more or one + 's'}"


def entries(count: int) -> str:
    """`count` entries."""
    return counted(count, "entry", "entries")


def duration(seconds: float) -> str:
    """Seconds in the unit, or the two units, that matter."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < 2 * _HOUR_S:
        return f"{int(seconds // _MINUTE_S)} min"
    if seconds < 2 * _DAY_S:
        return f"{int(seconds // _HOUR_S)} h {int(seconds % _HOUR_S // _MINUTE_S)} min"
    if seconds < _YEAR_S:
        return f"{int(seconds // _DAY_S)} d {int(seconds % _DAY_S // _HOUR_S)} h"
    return "more than a year"


def rate(per_s: float) -> str:
    """So many a second, a minute or an hour, whichever makes a number that can be read."""
    if per_s <= 0:
        return "0/s"
    seconds, unit = (1, "s") if per_s >= 1 else (_MINUTE_S, "min") if per_s * _MINUTE_S >= 1 else (_HOUR_S, "h")
    amount = per_s * seconds
    return f"{amount:.0f}/{unit}" if amount >= 100 else f"{amount:.1f}/{unit}"


def printable(text: str) -> str:
    """`text` in one line that cannot move a terminal's cursor: other characters as Python's escapes."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def text_of(error: BaseException) -> str:
    """The text of an exception, also where its class raises when it is asked for one."""
    for say in (str, repr):
        with suppress(Exception):
            if text := say(error).strip():
                return text
    return type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's text, since drivers add statements and links; its class if it has no text."""
    return text_of(error).splitlines()[0]
