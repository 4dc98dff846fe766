"""Patches: what a host's subclass, or a test, has changed in a durable class, for the plain managers behind it.

The plain manager is an object of the manager's own class, which knows nothing of that: its constructor and the copies
of a delivery are given it here.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from abc import ABCMeta
from collections.abc import Callable, Collection, Mapping
from types import FunctionType
from typing import Any

from sqlalchemy import Connection

from ..code.members import class_member, is_mock
from . import classes

# The modules whose objects take the place of others in a test.
_MOCKING = frozenset({"unittest.mock", "mock"})


def class_to_construct(plain: Any, durable_class: Any) -> Any:
    """The manager's class as `durable_class` has changed it, for its constructor to run in; None where nothing is.

    `super()` in the methods of a host's subclass finds what it finds in the durable object.
    """
    members: dict[str, Any] = {}
    if classes.stood_for(durable_class) is None:
        return None
    for base in reversed(durable_class.__mro__[: _first_made(durable_class)]):
        members |= {name: member for name, member in vars(base).items() if not name.startswith("__")}
    members = classes.patched(durable_class) | members
    # A class that chooses its objects itself, or keeps a list of its subclasses, is asked as it is.
    chooses = any(
        class_member(plain, name) is not class_member(object, name) for name in ("__new__", "__init_subclass__")
    )
    if not members or chooses or type(plain) not in (type, ABCMeta):
        return None
    members |= {"__slots__": (), "__class__": property(lambda _: durable_class)}
    members |= {name: getattr(plain, name) for name in ("__doc__", "__module__", "__qualname__")}
    return type(plain)(plain.__name__, (plain,), members)


def _first_made(cls: Any) -> int:
    return next(at for at, base in enumerate(cls.__mro__) if classes.STANDS_FOR in vars(base))


def construct(made: Callable[[], Any], changed: Any, early: Mapping[str, Any]) -> Any:
    """The object that `made` makes of the manager's class, constructed as one of class `changed`."""
    factory: Any = made
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    while isinstance(factory, functools.partial):
        args, kwargs, factory = (*factory.args, *args), {**factory.keywords, **kwargs}, factory.func
    manager: Any = object.__new__(changed)
    # A subclass's constructor may have set attributes before it calls this one.
    vars(manager).update(early)
    factory.__init__(manager, *args, **kwargs)
    # Past the property that lets `super()` find the methods of the subclass.
    vars(object)["__class__"].__set__(manager, factory)
    return manager


def show(replica: Any, durable_class: Any, hidden: Collection[str]) -> None:
    """Let a copy of the manager have what was patched in the durable class, but mocks and the methods `hidden`."""
    for name, member in classes.patched(durable_class).items():
        if name in hidden or is_mock(member) or isinstance(member, property):
            continue
        is_bound = inspect.isfunction(member) or isinstance(member, staticmethod | classmethod)
        vars(replica)[name] = member.__get__(replica, type(replica)) if is_bound else member


def is_apart(double: Any, durable_class: Any) -> bool:
    """Whether a function that was put in place of a method does without the durable manager, as far as is seen."""
    if not isinstance(double, FunctionType) or double.__dict__:
        return False
    held = [cell.cell_contents for cell in double.__closure__ or ()]
    held += [*(double.__defaults__ or ()), *(double.__kwdefaults__ or {}).values()]
    return not any(callable(one) or isinstance(getattr(one, "__self__", one), durable_class) for one in held)


def mocks_in(durable: Any, manager_class: Any) -> set[str]:
    """Names of the attributes of a durable manager, and of its classes, in whose place a test has put a mock.

    While a test runs also `session_factory`, where that is a function, or gives sessions in a transaction that the test
    rolls back.
    """
    factory = vars(durable).get("session_factory")
    is_double = isinstance(factory, FunctionType) or isinstance(getattr(factory, "kw", {}).get("bind"), Connection)
    # A program that traces its sessions by a function must stay durable, whatever else it has loaded.
    if is_double and _is_tested():
        return {"session_factory"}
    if sys.modules.keys().isdisjoint(_MOCKING):
        return set()
    of_class = (vars(base).items() for base in getattr(manager_class, "__mro__", ()))
    held = (vars(durable).items(), classes.patched(type(durable)).items(), *of_class)
    return {name for members in held for name, member in list(members) if is_mock(member)}


def _is_tested() -> bool:
    """Whether a test runs: of pytest, which says so in the environment, or of unittest, which has called this."""
    if "PYTEST_CURRENT_TEST" in os.environ:
        return True
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        if caller.f_globals.get("__name__") == "unittest.case":
            return True
        frame = caller
    return False
