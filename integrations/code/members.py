"""Members: the methods and attributes of a manager's class, found without running its code."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from typing import Any

from sqlalchemy import inspect as inspect_orm


def class_member(cls: Any, name: str) -> Any:
    """The member `name` of a class as it was defined, or None."""
    for base in cls.__mro__ if isinstance(cls, type) else ():
        if name in base.__dict__:
            return base.__dict__[name]
    return None


def is_mapped_class(value: Any) -> bool:
    """Whether a value is a class that SQLAlchemy maps."""
    return isinstance(value, type) and "__mapper__" in dir(value) and inspect_orm(value, raiseerr=False) is not None


def values_of(cls: type) -> dict[str, Any]:
    """The members of a class and its bases that are no functions, as they are now."""
    # Copies, since another thread may set one meanwhile.
    members = [vars(base).copy() for base in reversed(cls.__mro__[:-1])]
    return {name: value for own in members for name, value in own.items() if type(value) is not types.FunctionType}


def binds(member: Any) -> bool:
    """Whether a member of a class takes `self`, and any object that has the attributes will do."""
    native = (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType)
    return hasattr(type(member), "__get__") and not isinstance(member, (*native, staticmethod, classmethod, type))


def is_mock(member: Any) -> bool:
    """Whether it is of `unittest.mock`, or a function made by it, which a program in production does not load."""
    if isinstance(member, types.FunctionType):
        member = member.__dict__.get("mock")
    return any(base.__module__ in ("unittest.mock", "mock.mock") for base in type(member).__mro__)


@functools.cache
def names_set_by(cls: type) -> frozenset[str]:
    """The attributes that functions of the class set, of any object."""
    names: set[str] = set()
    for base in cls.__mro__:
        names |= vars(base).get("__annotations__", {}).keys()
        for member in vars(base).values():
            function = inspect.unwrap(member) if inspect.isfunction(member) else None
            todo = [function.__code__] if inspect.isfunction(function) else []
            while todo:
                code = todo.pop()
                names |= {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_ATTR"}
                names |= {"setattr", "__dict__"} & set(code.co_names)
                todo += [constant for constant in code.co_consts if inspect.iscode(constant)]
        if "__getattr__" in vars(base) or ("__getattribute__" in vars(base) and base is not object):
            names.add("__dict__")
    return frozenset(names)
