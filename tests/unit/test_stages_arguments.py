"""The caller's objects follow what a method has changed in its copies of them, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pydantic
import pytest

from outbox.integrations.calls.stages import Passed


@dataclass
class Leg:
    symbol: str = "BTC"
    tags: list[str] = field(default_factory=list)


class Note:
    def __init__(self) -> None:
        self.legs, self.text = [Leg(), Leg("ETH")], "old"


class Model(pydantic.BaseModel, extra="allow"):
    symbol: str = "BTC"
    id: int | None = None


class Struct(msgspec.Struct):
    symbol: str = "BTC"
    id: int | None = None


def _forget(value: Any) -> None:
    del value.text


def _more(value: Any) -> None:
    value.venue = "X"


CHANGES: list[tuple[Any, Callable[[Any], Any]]] = [
    ({}, lambda value: value.update(a=1)),
    ({"a": {"b": [1]}, "c": 2}, lambda value: (value["a"]["b"].append(3), value.pop("c"))),
    ([3, 1, 2], lambda value: value.sort()),
    ([1, 2], lambda value: value.clear()),
    ([{"a": 1}, {"b": 2}], lambda value: value[1].update(b=3)),
    ({1, 2}, lambda value: value.add(3)),
    (Leg(), lambda value: value.tags.append("x")),
    (Note(), lambda value: setattr(value.legs[1], "symbol", "SOL")),
    (Note(), _forget),
    (Model(), lambda value: setattr(value, "id", 5)),
    (Model(), _more),
    (Struct(), lambda value: setattr(value, "id", 5)),
]


def state(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: state(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(state, value))
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(), value.model_fields_set
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    return {key: state(item) for key, item in vars(value).items()} if hasattr(value, "__dict__") else value


@pytest.mark.parametrize(("given", "change"), CHANGES)
def test_passed_object_follows_the_change(given: Any, change: Callable[[Any], Any]) -> None:
    wanted, before, after = copy.deepcopy(given), copy.deepcopy(given), copy.deepcopy(given)
    change(wanted)
    change(after)
    inner = given.legs[1] if isinstance(given, Note) else None
    Passed("save", {"it": given}, {"it": before}, {}).changed({"it": after})
    assert state(given) == state(wanted)
    assert inner is None or given.legs[1] is inner


def test_what_the_caller_changed_meanwhile_stays() -> None:
    given = {"a": 1, "b": 1}
    before = dict(given)
    given["b"] = 2
    Passed("save", {"it": given}, {"it": before}, {}).changed({"it": {"a": 5, "b": 1}})
    assert given == {"a": 5, "b": 2}


def test_id_goes_where_the_method_leaves_it() -> None:
    leg, item = Leg(), {"a": 1}
    passed = Passed("save", {"leg": leg, "item": item, "ids": [1]}, {}, {"leg": "id", "item": "row", "ids": "id"})
    passed.numbered(None)
    assert (vars(leg), item) == (vars(Leg()), {"a": 1})
    passed.numbered(7)
    assert (vars(leg)["id"], item) == (7, {"a": 1, "row": 7})
    passed.numbered(8)
    assert (vars(leg)["id"], item) == (7, {"a": 1, "row": 7})
