"""Containers: takes the answers of a manager apart (dict, dataclass, row), and builds equal ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy import Row, RowMapping
from sqlalchemy import inspect as inspect_orm
from sqlalchemy.engine import result_tuple
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.ext.mutable import Mutable
from sqlalchemy.orm import InstanceState, Session, class_mapper, make_transient_to_detached
from sqlalchemy.orm.attributes import instance_state, set_committed_value
from sqlalchemy.orm.collections import InstrumentedList

from ...registered import class_name, class_named

# A container in a form that can be stored: its kind and what it needs.
Container = list[str]

SIMPLE = (str, int, float, Decimal, bool)


def taken_apart(value: Any) -> tuple[Container, dict[str, Any]]:
    """The container that a value is, and what is in it by name."""
    cls = type(value)
    if value is None:
        return ["none"], {}
    if isinstance(value, SIMPLE):
        return ["value"], {"": value}
    if cls in (tuple, list):
        return [cls.__name__], {str(index): item for index, item in enumerate(value)}
    if isinstance(value, Row | RowMapping):
        return ["row" if isinstance(value, Row) else "row mapping"], dict(
            value._mapping if isinstance(value, Row) else value
        )
    if isinstance(value, Mapping):
        kind = ["dict"] if cls is dict else ["mapping", class_name(cls)]
        return kind, {str(key): item for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return ["named", class_name(cls)], dict(value._asdict())
    state = _state_of(value)
    if state is not None:
        return ["mapped", class_name(cls)], {
            key: _plain(value)
            for key, value in state.dict.items()
            if key in state.mapper.attrs and not _is_back_reference(state, key, value)
        }
    if dataclasses.is_dataclass(value):
        return ["object", class_name(cls)], {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    slots = {name: getattr(value, name) for name in _slots(cls) if hasattr(value, name)}
    return ["object", class_name(cls)], slots | getattr(value, "__dict__", {})


def _is_back_reference(state: InstanceState[Any], key: str, value: Any) -> bool:
    """Whether it is another row that leads back here, such as the parent of this one; it is loaded when asked for."""
    relationship = state.mapper.relationships.get(key)
    return relationship is not None and bool(relationship._reverse_property) and _state_of(value) is not None


def _plain(value: Any) -> Any:
    """A value of a mapped object without the ORM's own collections, which it makes of plain ones."""
    if isinstance(value, InstrumentedList):
        return list(value)
    if isinstance(value, Mutable):
        return next((kind(value) for kind in (dict, list, set) if isinstance(value, kind)), value)  # type: ignore[call-overload]
    return value


def put_together(container: Container, values: dict[str, Any]) -> tuple[Any] | None:
    """The container again; None where its class cannot be found among those that are loaded."""
    kind, *names = container
    if kind in ("none", "value"):
        return (values.get(""),)
    if kind in ("tuple", "list"):
        items = [values[str(index)] for index in range(len(values))]
        return (tuple(items) if kind == "tuple" else items,)
    if kind == "dict":
        return (values,)
    if kind in ("row", "row mapping"):
        row = result_tuple(list(values))(list(values.values()))
        return (row if kind == "row" else row._mapping,)
    cls = class_named(names[0])
    if cls is None:
        return None
    if kind in ("mapping", "named"):
        return (cls(values) if kind == "mapping" else cls(**values),)
    return (_mapped(cls, values) if kind == "mapped" else _object(cls, values),)


def is_made_again(container: Container, values: Mapping[str, Any], shown: Any) -> bool:
    """Whether what is made from these values is like what was shown."""
    try:
        made = put_together(container, dict(values))
        if made is None or type(made[0]) is not type(shown) or taken_apart(made[0]) != (container, values):
            return False
        return "__eq__" not in _defined(type(shown)) or bool(made[0] == shown)
    except Exception:  # noqa: BLE001 - whatever a class of the manager's does when it is made in another way
        return False


def is_value(container: Container, values: Mapping[str, Any], shown: Any) -> bool:
    """Whether it is an object that is nothing but its values, as of attrs or pydantic: others may hold the program."""
    return bool(values) and "__eq__" in _defined(type(shown)) and is_made_again(container, values, shown)


def _defined(cls: type) -> set[str]:
    """The names that a class and its bases define, but for those of every object."""
    return {name for base in cls.__mro__[:-1] for name in vars(base)}


def _slots(cls: type) -> list[str]:
    """The names of the slots of a class and its bases, but for those that Python or a library uses itself."""
    found = ((base, vars(base).get("__slots__", ())) for base in cls.__mro__)
    names = ((base, name) for base, names in found for name in ([names] if isinstance(names, str) else names))
    return [_mangled(base, name) for base, name in names if not name.endswith("__")]


def _mangled(cls: type, name: str) -> str:
    """The name under which a class has its slot `name`."""
    return f"_{cls.__name__.lstrip('_')}{name}" if name.startswith("__") and cls.__name__.strip("_") else name


def _object(cls: Any, values: Mapping[str, Any]) -> Any:
    if hasattr(cls, "model_construct"):
        # A model of pydantic holds more than its values.
        return cls.model_construct(**values)
    try:
        made: Any = object.__new__(cls)
    except TypeError:
        # A class that is made in C, as a Struct of msgspec, which takes its values by their names.
        return cls(**values)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def _mapped(cls: Any, values: Mapping[str, Any]) -> Any:
    """An object of a mapped class as it is after the session that has loaded it."""
    # Mappers are configured by the first query, and after a restart in an outage there was none.
    manager = class_mapper(cls).class_manager
    made: Any = manager.new_instance()
    for name, value in values.items():
        set_committed_value(made, name, value)
    make_transient_to_detached(made)
    # What a load brings about: a `reconstructor`, and values that notice their changes.
    manager.dispatch.load(instance_state(made), None)
    return made


def taken_up(session: Session, value: Any) -> Any:
    """An answer whose mapped objects, which were made here, belong to `session`, as those of a query would."""
    if type(value) in (list, tuple):
        return type(value)(taken_up(session, one) for one in value)
    if type(value) is dict:
        return {key: taken_up(session, one) for key, one in value.items()}
    state = _state_of(value)
    if state is None or state.key is None or state.session is not None:
        return value
    known: Any = session.identity_map.get(state.key)
    for name in state.mapper.relationships.keys() & state.dict.keys():
        set_committed_value(value, name, taken_up(session, _plain(state.dict[name])))
    if known is None:
        session.add(value)
        return value
    for name, one in state.dict.items():
        # A query leaves changes of the caller's alone, too.
        if name in state.mapper.attrs and name not in inspect_orm(known).committed_state:
            set_committed_value(known, name, one)
    return known


def _state_of(value: Any) -> InstanceState[Any] | None:
    """What SQLAlchemy knows of an object of a mapped class; None for any other."""
    try:
        state = inspect_orm(value)
    except NoInspectionAvailable:
        return None
    return state if isinstance(state, InstanceState) else None
