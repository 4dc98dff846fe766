"""Where another process has delivered a call, its caller gets what is declared, if the manager answered nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation

from .small import SmallManager, Trade, scene


class Remarking(SmallManager):
    def remark(self, text: str) -> None:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=text))


def test_declared_answer_is_given_for_a_delivery_elsewhere(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = (*TRADING_OPERATIONS, ManagerOperation("remark", returns="noted"))
    with scene(postgres_url, outbox_dir, Remarking, operations) as here:
        here.relay.start()
        # The answers of another process do not come here.
        monkeypatch.setattr(here.manager._adapter.delivery._answers, "take", lambda _: None)
        assert here.manager.remark("calm") == "noted"
