"""The answer to an applied call is taken from the code where only one is possible."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from outbox.integrations.code.answers import applied_answer
from outbox.integrations.code.class_code import ClassCode


class Manager:
    session: Any

    def always(self):  # type: ignore[no-untyped-def]
        self.session.commit()
        return True

    def false_means_refused(self, row: Any):  # type: ignore[no-untyped-def]
        if row is None:
            return False
        with self.session:
            row.x = 1
            return True

    def error_is_no_answer(self):  # type: ignore[no-untyped-def]
        try:
            self.session.commit()
            return "saved"
        except ValueError:
            return "failed"

    def tries_again(self):  # type: ignore[no-untyped-def]
        for _ in range(3):
            with contextlib.suppress(ValueError):
                self.session.commit()
                return True
        return False

    def counted(self) -> bool:
        changed: int = self.session.execute("UPDATE").rowcount
        return changed > 0

    def nothing(self):  # type: ignore[no-untyped-def]
        self.session.commit()

    def nothing_or_one(self, row: Any):  # type: ignore[no-untyped-def]
        if row:
            return True
        self.session.commit()
        return None

    def falls_off(self, row: Any):  # type: ignore[no-untyped-def]  # noqa: RET503
        if row:
            self.session.commit()
            return True

    def several(self, row: Any):  # type: ignore[no-untyped-def]
        return "new" if row else "old"

    def an_id(self) -> int:
        made: int = self.session.execute("INSERT").scalar()
        return made

    def pair_that_is_no_truth(self) -> bool:
        return True, None  # type: ignore[return-value]

    def of_a_helper(self):  # type: ignore[no-untyped-def]
        def inner() -> int:
            return 3

        self.session.run(inner)
        return True


@pytest.mark.parametrize(
    ("name", "answer"),
    [("always", (True,)), ("false_means_refused", (True,)), ("error_is_no_answer", ("saved",)),
     ("tries_again", (True,)), ("counted", (True,)), ("nothing", (None,)), ("nothing_or_one", None),
     ("falls_off", None), ("several", None), ("an_id", None), ("pair_that_is_no_truth", None), ("of_a_helper", (True,)),
     ("missing", None)],
)  # fmt: skip
def test_answer_of_an_applied_call_is_the_only_one(name: str, answer: tuple[Any] | None) -> None:
    assert applied_answer(ClassCode(Manager), name) == answer
