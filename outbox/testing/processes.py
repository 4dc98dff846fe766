"""The processes of a private PostgreSQL server: found, frozen and killed, also when their parent is gone.

The file is also a program. Started as `python processes.py PARENT_PID DIRECTORY` it is the *guardian* of one server: it
waits until the parent process is gone, then kills the server and removes its files, so that not even a SIGKILL of the
parent leaves anything behind. So it imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

POLL_SECONDS = 0.01
# How long a hanging server hangs; on a loaded machine a sound one may take many times as long as on an idle one.
SETTLE_SECONDS = 120.0


def data_of(base: Path) -> Path:
    """Where in a server's folder the cluster's files are."""
    return base / "data"


def processes(data: Path) -> list[psutil.Process]:
    """Every living process that works in this cluster, zombies excluded.

    They are found by their working directory and not by their parent, because a crash makes orphans of them.
    """
    import psutil

    found = []
    for one in psutil.process_iter():
        # It may end meanwhile, or belong to a user whose processes are hidden.
        with contextlib.suppress(psutil.Error, OSError):
            if one.cwd() == str(data) and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal; no error if the process has ended."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def is_frozen(process: psutil.Process) -> bool:
    """Whether a process is stopped, or gone."""
    import psutil

    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return True


def wait_until(done: Callable[[], bool], aim: str) -> None:
    """Wait for what other processes do; raises RuntimeError after `SETTLE_SECONDS`."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError(f"could not {aim} within {SETTLE_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def kill_all(base: Path) -> None:
    """Kill whatever works in the cluster, then remove what a killed server leaves behind outside of its data."""
    data = data_of(base)

    def all_gone() -> bool:
        alive = processes(data)
        for one in alive:
            send(one, signal.SIGKILL)
        return not alive

    wait_until(all_gone, "kill every process of PostgreSQL")
    # The lock file of a crashed server names a process id that another process may get, and a System V segment that
    # would stay in the kernel for ever if the server is never started again. Both are ours: nothing of it is alive.
    lines = lock_file_lines(data)
    if len(lines) >= 7 and len(lines[6].split()) == 2:
        remove = 0  # IPC_RMID
        ctypes.CDLL(None).shmctl(int(lines[6].split()[1]), remove, None)
    (data / "postmaster.pid").unlink(missing_ok=True)


def lock_file_lines(data: Path) -> list[str]:
    """The lines of the main process's lock file; none when there is no such file."""
    try:
        return (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def guard(parent: int, base: Path) -> None:
    """Wait for the end of the parent process, then remove its server."""
    while os.getppid() == parent:
        time.sleep(0.1)
    kill_all(base)
    shutil.rmtree(base)


if __name__ == "__main__":
    guard(int(sys.argv[1]), Path(sys.argv[2]))
