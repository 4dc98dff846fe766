"""Factory: whether a manager has a session factory, by its object, its class or its code."""

from __future__ import annotations

from ...records import attributes
from ..code.members import is_mapped_class
from ..code.method_code import facts_of, names_in
from ..manager.held import without_factory
from .evidence import Evidence


def lacking(evidence: Evidence) -> str | None:
    """What to say of a manager that certainly has no session factory."""
    if is_mapped_class(evidence.cls):
        name = evidence.cls.__name__
        return (
            f"{name} is a mapped class, and its objects are rows: write a class that has {name}'s session factory as "
            "session_factory, and a method for each change that the engine makes to them, and declare these methods"
        )
    manager = evidence.manager
    if manager is not None:
        own = attributes(manager)
        kinds = {name: kind for name, kind in evidence.held.items() if name in own}
        return None if hasattr(manager, "session_factory") else without_factory(kinds)
    made = made_by(evidence)
    return without_factory(evidence.held) if made is not None and not made else None


def is_named(evidence: Evidence) -> bool:
    """Whether the class has a session factory, or any code that was read names one."""
    if evidence.member("session_factory") is not None or evidence.member("__getattr__") is not None:
        return True
    functions = [function for _, function in evidence.code.everything()]
    if any("session_factory" in getattr(base, "__annotations__", {}) for base in evidence.cls.__mro__):
        return True
    return not functions or any("session_factory" in names_in(one) for one in functions)


def made_by(evidence: Evidence) -> set[str] | None:
    """Name what makes `session_factory`: empty if nothing does, None if unseen."""
    made: set[str] = set()
    if evidence.member("session_factory") is not None or evidence.member("__getattr__") is not None:
        return None
    for base in evidence.cls.__mro__[:-1]:
        if "__init__" in vars(base) and not facts_of(vars(base)["__init__"]).read:
            return None
    for _, function in evidence.code.everything():
        facts = facts_of(function)
        if not facts.read or None in facts.sets:
            return None
        calls = facts.assigned.get("session_factory", [])
        made |= {call.last for call in calls}
        if "session_factory" in facts.sets and not calls:
            return None
    # A base written in C, or generated fields.
    is_plain = all(type(base) is type for base in evidence.cls.__mro__)
    has_fields = any("session_factory" in getattr(base, "__annotations__", {}) for base in evidence.cls.__mro__)
    return made if is_plain and not has_fields else (made or None)
