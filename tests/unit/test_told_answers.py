"""An id is found in what a manager answers, whatever that is."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from outbox.integrations.replay.told_answers import id_in


@dataclass
class Unset:
    number: int = field(init=False)


class Vague:
    def __eq__(self, other: object) -> bool:
        raise ValueError("neither")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("answer", "id_"),
    [(7, 7), ((7, "x"), 7), ({"id": 7}, 7), ({"number": 9, "id": 7}, 9), (SimpleNamespace(id=7), 7), (2.5, None),
     (Unset(), None), ({"rows": Vague()}, None)],
)  # fmt: skip
def test_id_of_an_answer_is_found_or_is_none(answer: Any, id_: int | None) -> None:
    assert id_in(answer, 5, "number") == id_
