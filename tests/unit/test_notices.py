"""Notices are shown by every status, renewed in place, and degrade the status only where they say so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox import Health, Outbox
from outbox.monitoring.notices import Notice
from outbox.store.reads import NOTICE_PREFIX
from tests import atb as command_line
from tests.unit.fakes.rig import FakeClock


@pytest.fixture
def box(outbox_dir: Path) -> Iterator[Outbox]:
    with Outbox.open(outbox_dir) as box:
        yield box


def test_notice_is_renewed_in_place_and_cleared(box: Outbox) -> None:
    box.notices.put("ids", "100 ids are left")
    box.notices.put("ids", "90 ids are left")
    assert {name: notice.message for name, notice in box.status().notices.items()} == {"ids": "90 ids are left"}
    box.notices.clear("ids")
    box.notices.clear("never there")
    assert box.status().notices == {}


def test_notice_degrades_the_status_only_where_it_says_so(box: Outbox) -> None:
    box.notices.put("manager", "17 methods are durable")
    assert box.status().health is Health.HEALTHY
    box.notices.put("ids", "10 ids are left", degraded=True)
    assert box.status().health is Health.DEGRADED
    assert "10 ids are left" in box.status().degraded


def test_notice_that_calls_are_refused_needs_an_operator(box: Outbox) -> None:
    box.notices.put("ids", "no id is left", refuses=True)
    status = box.status()
    assert (status.needs_operator, status.degraded) == (["no id is left"], [])


@pytest.mark.parametrize(("lasts_s", "shown"), [(None, "more than a year"), (600.0, "10 min")])
def test_command_names_the_shortest_runway(outbox_dir: Path, lasts_s: float | None, shown: str) -> None:
    with Outbox.open(outbox_dir, clock=FakeClock()) as box:
        box.enqueue("log", {})
        box.notices.put("ids", "ids are left", lasts_s=lasts_s)
        box.notices.put("more ids", "more ids are left", lasts_s=None if lasts_s is None else lasts_s + 1)
    output = command_line.invoke("status", "--dir", str(outbox_dir)).output
    assert f"an outage may last {shown}" in output
    assert ("in reserve below" in output) is (lasts_s == 600)


def test_unchanged_notice_costs_no_commit(box: Outbox) -> None:
    box.notices.put("manager", "17 methods are durable")
    before = box.store.figures().counters
    last = box.store._environment
    assert last is not None
    transaction = last.env.info()["last_txnid"]
    box.notices.put("manager", "17 methods are durable")
    assert last.env.info()["last_txnid"] == transaction
    assert box.store.figures().counters == before


def test_notice_with_a_field_of_a_newer_version_is_shown(box: Outbox) -> None:
    """After a downgrade a status that fails would hide everything else."""
    said = {"message": "17 methods are durable", "degraded": True, "colour": "red"}
    box.store.put_meta(NOTICE_PREFIX + "manager", json.dumps(said).encode())
    assert box.status().notices == {"manager": Notice("17 methods are durable", degraded=True)}


def test_notice_of_any_length_can_be_put_also_while_halted(box: Outbox) -> None:
    box.store._latch("enqueue", OSError("disk"))
    box.notices.put("long", "x" * 2001)
    assert box.status().notices["long"].message == "x" * 2000


def test_command_prints_notices_and_json_has_them(box: Outbox) -> None:
    box.notices.put("manager", "17 methods are durable")
    box.notices.put("ids", "10 ids are left", degraded=True)
    box.close()
    shown = command_line.invoke("status", "--dir", str(box.path))
    assert "-  17 methods are durable" in shown.output
    assert shown.output.count("10 ids are left") == 1
    as_json = command_line.invoke("status", "--dir", str(box.path), "--json")
    assert '"message": "17 methods are durable"' in as_json.output
