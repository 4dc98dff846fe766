"""Annotations are read with what their aliases stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Optional, TypeVar, Union

import pytest
from typing_extensions import TypeAliasType

from outbox.integrations.code.signatures import hints_of

Item = TypeVar("Item")
# As `type OrderId = int` and `type Listed[Item] = list[Item]` make them since Python 3.12.
OrderId = TypeAliasType("OrderId", int)
Listed = TypeAliasType("Listed", list[Item], type_params=(Item,))
Nested = TypeAliasType("Nested", dict[str, Listed[OrderId]])


class _Json:
    """`type Json = dict[str, Json] | str`, which the backport cannot say."""

    __type_params__ = ()

    @property
    def __value__(self) -> Any:
        return dict[str, self] | str  # type: ignore[valid-type]


@pytest.mark.parametrize(
    ("hint", "meant"),
    [
        (OrderId, int),
        (Listed[str], list[str]),
        (Nested, dict[str, list[int]]),
        (OrderId | None, int | None),
        (Optional[OrderId], Optional[int]),  # noqa: UP045 - another class than the one above
        (Union[str, Listed[OrderId]], Union[str, list[int]]),  # noqa: UP007 - the same
        (dict[str, OrderId], dict[str, int]),
        (Callable[[OrderId], str], Callable[[int], str]),
        (Literal["buy"], Literal["buy"]),
        (int, int),
        (Any, Any),
    ],
)
def test_alias_stands_for_its_value(hint: Any, meant: Any) -> None:
    def annotated() -> None: ...

    annotated.__annotations__ = {"return": hint}
    assert hints_of(annotated) == {"return": meant}


def test_alias_within_its_own_value_is_anything() -> None:
    def annotated() -> None: ...

    annotated.__annotations__ = {"value": _Json()}
    assert hints_of(annotated) == {"value": dict[str, Any] | str}
