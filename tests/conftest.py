"""Fixtures for tests that need a store's folder or a real PostgreSQL."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

from outbox.testing import PostgresServer


def pytest_make_parametrize_id(val: object) -> str | None:
    """A test must be found by its name, and one with a backslash in it is not."""
    said = ascii(val) if isinstance(val, (str, bytes)) else ""
    return said.replace("\\", "") if "\\" in said else None


_SERVERS = {"postgres_server", "postgres_url", "own_postgres", "outbox_postgres_server"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test with a server is slow, whether marked or not."""
    for item in items:
        if _SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


# A run without the slow tests has a limit for each test, so that the whole stays short.
FAST_RUN = "not slow"
FAST_TEST_S = 0.25


def too_long(reports: Iterable[pytest.TestReport]) -> list[str]:
    """The tests whose fixtures and call took over 0.25 s, the longest first."""
    took: dict[str, float] = {}
    for report in reports:
        if report.when != "teardown":
            took[report.nodeid] = took.get(report.nodeid, 0.0) + report.duration
    return [f"{took[one]:.2f} s  {one}" for one in sorted(took, key=lambda one: -took[one]) if took[one] > FAST_TEST_S]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the tests that are too long for `make fast`; a busy machine makes it a hint, never a failure."""
    if config.option.markexpr != FAST_RUN:
        return
    reports = [one for kind in ("", "passed") for one in terminalreporter.stats.get(kind, [])]
    if long := too_long(one for one in reports if isinstance(one, pytest.TestReport)):
        terminalreporter.section(f"over {FAST_TEST_S} s: shorten or mark as slow, unless the machine is busy")
        for line in long:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def no_leftovers() -> Iterator[None]:
    """Fail the run if a server that it started, or a file of one, survives it."""
    yield
    mark = f"outbox-pg-{os.getpid()}-"
    alive = []
    for one in psutil.process_iter():
        try:
            if mark in one.cwd():
                alive.append(f"{one.pid} {one.name()}")
        except (psutil.Error, OSError):
            continue
    folders = [str(folder) for folder in Path(tempfile.gettempdir()).glob(f"{mark}*")]
    assert not alive, f"PostgreSQL processes survived the tests: {alive}"
    assert not folders, f"PostgreSQL left files behind: {folders}"


@pytest.fixture(scope="session")
def postgres_server(no_leftovers: None) -> Iterator[PostgresServer]:
    """A server for the whole session, one per xdist worker. It must not be stopped: see `own_postgres`."""
    with PostgresServer(fsync=False) as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database, which is dropped after the test."""
    name = f"test_{uuid.uuid4().hex}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture
def own_postgres(no_leftovers: None) -> Iterator[PostgresServer]:
    """A running server of the test's own, to be stopped, killed or paused as it likes."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def outbox_dir(tmp_path: Path) -> Path:
    """Where to create a store; does not exist yet."""
    return tmp_path / "outbox"
