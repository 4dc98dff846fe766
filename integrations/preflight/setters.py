"""Setters: properties of a manager that write to the database when they are set.

No declaration names them, so that `manager.halted = True` is lost in an outage, or raises: a person should know.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from ..code.method_code import facts_of, layers
from . import ways_around
from .evidence import Evidence

WARNING = "setting it looks like a write, and is not durable: write a method for that, and declare it"


def that_write(evidence: Evidence, but: frozenset[str]) -> Iterator[str]:
    """The public properties whose setters show a write, their calls of methods in `but` left out."""
    for name in dir(evidence.cls):
        member = inspect.getattr_static(evidence.cls, name, None)
        if name.startswith("_") or name == "session_factory" or not isinstance(member, property):
            continue
        own = layers(member.fset)
        used = {one for function in own for one in facts_of(function).uses} - but
        further = (function for one in used for function, _ in evidence.code.reached(one, but=but))
        if ways_around.show_a_write([*own, *further], evidence):
            yield name
