"""Collections of further types are rebuilt from what is stored of them."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from itertools import count
from typing import Any

import pytest

from outbox.integrations.state.stored_types import can_be_rebuilt, rebuilt, types_in


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (deque([1, 2], maxlen=3), [1, 2]),
        (Counter(a=2), {"a": 2}),
        (OrderedDict(a=2), {"a": 2}),
        (defaultdict(int, a=2), {"a": 2}),
        ({1: [deque([2])]}, {1: [[2]]}),
        (defaultdict(Counter, a=Counter(b=1)), {"a": {"b": 1}}),
    ],
)
def test_collection_is_rebuilt_with_its_type_and_limits(value: Any, stored: Any) -> None:
    found = rebuilt(stored, types_in(value))
    assert repr(found) == repr(value)


def test_count_goes_on_where_it_was() -> None:
    assert next(rebuilt([5, 2], types_in(count(5, 2)))) == 5


@pytest.mark.parametrize("value", [[1], {"a": [1]}, (deque(),), {1}, None, 5])
def test_plain_value_needs_no_types(value: Any) -> None:
    assert types_in(value) is None


def test_unknown_factory_is_told_by_the_attribute_only() -> None:
    types = types_in(defaultdict(lambda: 0, a=1))
    assert types is not None
    assert not can_be_rebuilt(types, None)
    assert can_be_rebuilt(types, defaultdict(list))
