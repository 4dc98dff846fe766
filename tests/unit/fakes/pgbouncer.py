"""A real PgBouncer in front of a server, on loopback, with a configuration of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

import psycopg2
import pytest

from .ports import held_port
from .waiting import until

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def find() -> str:
    """The program; the test is skipped, and says so, where it is not installed."""
    program = shutil.which("pgbouncer", path=_PATH)
    if program is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    return program


class PgBouncer:
    """Pools connections to the server of `url`; `self.url` goes through it.  Use it in a `with` block."""

    def __init__(self, url: str, mode: Literal["transaction", "session"], **settings: object) -> None:
        self._program = find()
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._held = held_port()
        self._port = self._held.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{self._port}"))
        self._console = urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{self._port}", path="/pgbouncer"))
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": self._port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": mode,
            "admin_users": parts.username,
            "server_round_robin": 1,
            **settings,
        }
        database = parts.path.lstrip("/")
        server = f"host={parts.hostname} port={parts.port} user={parts.username} dbname={database}"
        body = "\n".join(f"{name} = {value}" for name, value in lines.items())
        self._text = f"[databases]\n{database} = {server}\n[pgbouncer]\n{body}\n"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PgBouncer:
        self._folder = tempfile.TemporaryDirectory(prefix="outbox-pgbouncer-")
        path = Path(self._folder.name) / "pgbouncer.ini"
        path.write_text(self._text)
        command = [self._program, "-q", str(path)]
        if os.geteuid() == 0:
            # It refuses to run as root.
            nobody = pwd.getpwnam("nobody")
            os.chown(self._folder.name, nobody.pw_uid, nobody.pw_gid)
            command[1:1] = ["-u", "nobody"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._answers)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()
        self._held.close()

    def command(self, sql: str) -> None:
        """Run a command of its administration console, such as RECONNECT."""
        with closing(psycopg2.connect(self._console)) as connection:
            connection.autocommit = True
            connection.cursor().execute(sql)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "pgbouncer has ended"
        try:
            psycopg2.connect(self.url).close()
        except psycopg2.OperationalError:
            return False
        return True
