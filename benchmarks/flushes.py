"""Which flushes a piece of code makes, counted by the kernel.

A child process puts itself under a seccomp filter that reports every system call which flushes or writes a file to
its parent and lets it go on (user notification, Linux 5.5 or later, no privileges needed).  So the count does not
depend on what a library says of itself.  A write to a descriptor opened with O_DSYNC or O_SYNC flushes too: LMDB writes
its meta page that way.

It proves that each call returned only after a flush which began within it and came behind its last write.  It does not
prove that the disk keeps its word.  Flushes through io_uring would not be seen; no contender uses it.
"""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import os
import platform
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .measure import NotTheSameWork

# Numbers of system calls: flushes, and writes (which flush if the descriptor says so).
_CALLS: dict[str, tuple[int, dict[int, str], set[int]]] = {
    "x86_64": (
        317,
        {26: "msync", 74: "fsync", 75: "fdatasync", 162: "sync", 277: "sync_file_range", 306: "syncfs"},
        {1, 18, 20, 296, 328},
    ),
    "aarch64": (
        277,
        {81: "sync", 82: "fsync", 83: "fdatasync", 84: "sync_file_range", 227: "msync", 267: "syncfs"},
        {64, 66, 68, 70, 287},
    ),
}
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_NEW_LISTENER = 1 << 3
_NOTIFY, _ALLOW = 0x7FC0_0000, 0x7FFF_0000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_RECEIVE, _SEND = 0xC050_2100, 0xC018_2101
_NOTIFICATION = struct.Struct("=QII iIQ 6Q")
_ANSWER = struct.Struct("=QqiI")
_CONTINUE = 1
_SYNCHRONOUS = os.O_DSYNC | os.O_SYNC


class CannotCount(Exception):
    """This system does not let us count flushes; the message says why."""


@dataclass(frozen=True)
class Event:
    """A flush or a write that was about to begin.  `at` is monotonic seconds, the same clock in every process."""

    at: float
    flush: bool
    path: str


@dataclass(frozen=True)
class Audit:
    """What happened while `calls` (begin and end of each, monotonic seconds) were made."""

    calls: list[tuple[float, float]]
    events: list[Event]

    @property
    def flushes_per_call(self) -> float:
        first, last = min(begin for begin, _ in self.calls), max(end for _, end in self.calls)
        return sum(event.flush and first <= event.at <= last for event in self.events) / len(self.calls)

    def require_durable(self, who: str, *, alone: bool) -> None:
        """Raise `NotTheSameWork` unless each call returned after a flush that began within it.

        With `alone`, calls did not overlap, and nothing may have been written behind a call's last flush.
        """
        for number, (begin, end) in enumerate(self.calls):
            within = [event for event in self.events if begin <= event.at <= end]
            if not any(event.flush for event in within):
                raise NotTheSameWork(f"{who}: call {number} returned without a flush, {len(within)} writes seen")
            if alone and not within[-1].flush:
                raise NotTheSameWork(f"{who}: call {number} wrote {within[-1].path} and returned before flushing it")


# `run(*arguments)` of a child makes the calls and returns their begins and ends.
Run = Callable[..., list[tuple[float, float]]]


def audit(directory: Path, run: Run, *arguments: Any) -> Audit:
    """Call `run(*arguments)` in a child process and watch its flushes and writes of files below `directory`.

    `run` must be importable.  Raises `CannotCount`, or RuntimeError when `run` fails.
    """
    if platform.system() != "Linux" or platform.machine() not in _CALLS:
        raise CannotCount(f"system calls cannot be watched on {platform.system()} {platform.machine()}")
    ours, theirs = socket.socketpair()
    answers, sender = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_child, args=(theirs, sender, run, arguments), daemon=True)
    child.start()
    theirs.close()
    sender.close()
    watcher = _Watcher(ours, directory)
    try:
        watcher.start()
        calls = answers.recv()
    except EOFError:
        calls = RuntimeError("it ended without an answer")
    finally:
        child.join(30)
        if child.is_alive():
            child.kill()
            child.join()
        watcher.join()
        ours.close()
        answers.close()
    if isinstance(calls, Exception):
        raise calls if isinstance(calls, CannotCount) else RuntimeError(f"the audited run failed: {calls}")
    return Audit(calls, watcher.events)


def _child(parent: socket.socket, answers: Connection, run: Run, arguments: tuple[Any, ...]) -> None:
    try:
        listener = _watch_this_process()
        socket.send_fds(parent, [b"!"], [listener])
        os.close(listener)
        answers.send(run(*arguments))
    except Exception as exc:  # noqa: BLE001 - told to the parent, which raises it
        answers.send(exc if isinstance(exc, CannotCount) else RuntimeError(f"{type(exc).__name__}: {exc}"))


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("value", ctypes.c_uint),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction))]


def _watch_this_process() -> int:
    """Report this thread's system calls, and those of threads it starts, to the descriptor that is returned."""
    seccomp, flushes, writes = _CALLS[platform.machine()]
    numbers = sorted({*flushes, *writes})
    program = [_Instruction(_LOAD, 0, 0, 0)]  # the number of the call is the first field
    for index, number in enumerate(numbers):
        program.append(_Instruction(_JUMP_IF_EQUAL, len(numbers) - index, 0, number))
    program += [_Instruction(_RETURN, 0, 0, _ALLOW), _Instruction(_RETURN, 0, 0, _NOTIFY)]
    code = (_Instruction * len(program))(*program)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise CannotCount(f"prctl: {os.strerror(ctypes.get_errno())}")
    listener = libc.syscall(
        seccomp, _SECCOMP_SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(_Program(len(program), code))
    )
    if listener < 0:
        raise CannotCount(f"seccomp user notification: {os.strerror(ctypes.get_errno())}")
    return int(listener)


class _Watcher(threading.Thread):
    """Receives the reports, notes them, and lets each call go on."""

    def __init__(self, source: socket.socket, directory: Path) -> None:
        super().__init__(name="flush-watcher", daemon=True)
        self._source, self._below = source, os.path.realpath(directory) + os.sep
        self.events: list[Event] = []

    def run(self) -> None:
        _, descriptors, _, _ = socket.recv_fds(self._source, 1, 1)
        if not descriptors:
            return  # the child could not be watched, and says so itself
        (listener,) = descriptors
        try:
            poll = select.poll()
            poll.register(listener, select.POLLIN)
            while True:
                ((_, state),) = poll.poll()
                if not state & select.POLLIN:
                    return  # the child is gone
                self._answer(listener)
        finally:
            os.close(listener)

    def _answer(self, listener: int) -> None:
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, buffer)
        except FileNotFoundError:
            return  # the caller died meanwhile
        number, pid, _, call, *_, first, _, _, _, _, _ = _NOTIFICATION.unpack(buffer)
        self._note(pid, call, first)
        try:
            fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(number, 0, 0, _CONTINUE)))
        except FileNotFoundError:
            return

    def _note(self, pid: int, call: int, descriptor: int) -> None:
        _, flushes, _ = _CALLS[platform.machine()]
        name = flushes.get(call)
        try:
            path = "" if name in ("sync", "msync") else os.readlink(f"/proc/{pid}/fd/{descriptor}")
            flush = name is not None or bool(_flags(pid, descriptor) & _SYNCHRONOUS)
        except OSError:
            return
        # `sync` has no file, and `msync` an address: both count, wherever they point.
        if not path or path.startswith(self._below):
            self.events.append(Event(time.monotonic(), flush, path))


def _flags(pid: int, descriptor: int) -> int:
    for line in Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    return 0
