"""Arithmetic: how the caller's thread computes with Decimals: precision, rounding, traps.

Python keeps that for each thread.  A replay in the relay's thread would round in another way than its caller.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FIELDS = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
# As Python begins; the host may have changed the default since.
_TRAPS = ("DivisionByZero", "InvalidOperation", "Overflow")
_PLAIN: dict[str, Any] = {
    "prec": 28,
    "rounding": decimal.ROUND_HALF_EVEN,
    "Emin": -999999,
    "Emax": 999999,
    "capitals": 1,
    "clamp": 0,
    "traps": list(_TRAPS),
}


def noted() -> dict[str, Any] | None:
    """What to note of the arithmetic here; None for that with which Python begins."""
    here = decimal.getcontext()
    found = {name: getattr(here, name) for name in _FIELDS}
    found["traps"] = sorted(signal.__name__ for signal, is_set in here.traps.items() if is_set)
    return None if found == _PLAIN else found


@contextmanager
def restored(found: dict[str, Any] | None) -> Iterator[None]:
    """Within the block Decimals are computed as `noted` has found it."""
    known = _PLAIN if found is None else found
    traps = [getattr(decimal, name) for name in known["traps"]]
    with decimal.localcontext(decimal.Context(**{name: known[name] for name in _FIELDS}, traps=traps, flags=[])):
        yield
