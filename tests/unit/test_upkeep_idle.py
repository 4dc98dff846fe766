"""What an idle relay asks PostgreSQL is asked again until it is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from outbox.relay.reconcile import Reconciler
from outbox.relay.upkeep import IdleChecks


class Asked:
    """Stands for the reconciler: answers in turn whether it knows now."""

    def __init__(self, *answers: bool) -> None:
        self._answers: Iterator[bool] = iter(answers)

    def confirm_withdrawn(self) -> bool:
        return next(self._answers)


def test_question_behind_a_loss_is_asked_again() -> None:
    asked = Asked(False, True)
    idle = IdleChecks(cast(Reconciler, asked))
    for now in (0.0, 2.0, 4.0):
        # A third question would raise StopIteration.
        idle.confirm_withdrawn(now, releases=7)
    assert not list(asked._answers)


def test_answered_question_is_asked_again_after_a_release() -> None:
    asked = Asked(True, True)
    idle = IdleChecks(cast(Reconciler, asked))
    idle.confirm_withdrawn(0.0, releases=7)
    idle.confirm_withdrawn(2.0, releases=8)
    assert not list(asked._answers)
