"""`atb outbox healthy` and `status --fail-on`: what a probe and an alert may act on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from outbox import Outbox
from outbox.cli import atb as group
from outbox.store.locks import Role, RoleLock
from outbox.store.own_files import StateFile

Atb = Callable[..., Result]


@pytest.fixture
def atb(monkeypatch: pytest.MonkeyPatch, outbox_dir: Path) -> Atb:
    for name in [name for name in os.environ if name.startswith(("OUTBOX_", "DATABASE_URL"))]:
        monkeypatch.delenv(name)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(group, ["outbox", *arguments, "--dir", str(outbox_dir)], prog_name="atb")

    return run


@pytest.fixture
def backlog(outbox_dir: Path) -> Path:
    """A store in which an entry waits."""
    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {})
    return outbox_dir


def test_an_outage_fails_no_probe_of_liveness(atb: Atb, backlog: Path) -> None:
    StateFile(backlog / "relay.state").write({"breaker": "open", "last_error": "connection refused", "stopped": True})
    lock = RoleLock(backlog, Role.RELAY)
    assert atb("status").exit_code == 2
    done = atb("healthy")
    lock.release()
    assert (done.exit_code, done.stdout) == (0, "healthy\n")


def test_a_relay_that_died_fails_it_until_another_one_runs(atb: Atb, backlog: Path) -> None:
    StateFile(backlog / "relay.state").write({"died": "RuntimeError: no more"})
    done = atb("healthy")
    assert (done.exit_code, done.stdout) == (1, "the relay died: RuntimeError: no more\n")
    lock = RoleLock(backlog, Role.RELAY)
    assert atb("healthy").exit_code == 0
    lock.release()


def test_a_halted_engine_fails_it(atb: Atb, backlog: Path) -> None:
    StateFile(backlog / "engine.state").write({"pid": os.getpid(), "halted": "could not be flushed"})
    lock = RoleLock(backlog, Role.ENGINE)
    done = atb("healthy")
    lock.release()
    assert (done.exit_code, done.stdout) == (1, "enqueueing is halted: the store could not be flushed\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--relay"], "no relay is running"),
        (["--max-lag", "0"], "more than 0 s"),
        (["--max-pending", "0"], "1 entry pending, more than 0"),
    ],
)
def test_readiness_is_asked_for_by_options(atb: Atb, backlog: Path, options: list[str], said: str) -> None:
    done = atb("healthy", *options)
    assert done.exit_code == 1
    assert said in done.stdout
    assert atb("healthy", "--max-lag", "3600", "--max-pending", "5", "--no-operator").exit_code == 0


def test_whatever_needs_an_operator_can_fail_it(atb: Atb, backlog: Path) -> None:
    StateFile(backlog / "relay.state").write({"stopped": True, "last_error": "no such table"})
    assert atb("healthy").exit_code == 0
    done = atb("healthy", "--no-operator")
    assert done.exit_code == 1
    assert "the line is stopped: no such table" in done.stdout


def test_an_alert_may_ask_for_what_needs_an_operator_only(atb: Atb, backlog: Path) -> None:
    assert atb("status").exit_code == 1
    assert atb("status", "--fail-on", "needs-operator").exit_code == 0
    StateFile(backlog / "relay.state").write({"stopped": True, "last_error": "no such table"})
    assert atb("status", "--fail-on", "needs-operator").exit_code == 2


def test_without_a_store_it_says_so_and_ends_with_two(atb: Atb) -> None:
    done = atb("healthy")
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
