"""System calls of another process, stopped one by one: let through, failed, cut short, or its last.

A seccomp filter in the child hands each call that changes files to us (seccomp_unotify(2), Linux 5.9; no privilege
needed).  `Interceptor` runs in the test's process, so that it counts and remembers what it did to whom, and a child
that is stopped in the middle of a commit is killed exactly there.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import select
import signal
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path

from tests.unit.fakes.waiting import LONG

_FD, _PATH, _AT, _AT_PAIR, _PAIR = range(5)
# Number on each machine, and how the file is named.
_CALLS: dict[str, dict[str, tuple[int, int]]] = {
    "x86_64": {
        "write": (1, _FD),
        "pwrite64": (18, _FD),
        "writev": (20, _FD),
        "fsync": (74, _FD),
        "fdatasync": (75, _FD),
        "ftruncate": (77, _FD),
        "truncate": (76, _PATH),
        "rename": (82, _PAIR),
        "mkdir": (83, _PATH),
        "rmdir": (84, _PATH),
        "unlink": (87, _PATH),
        "chmod": (90, _PATH),
        "fchmod": (91, _FD),
        "fchown": (93, _FD),
        "openat": (257, _AT),
        "unlinkat": (263, _AT),
        "renameat": (264, _AT_PAIR),
        "fallocate": (285, _FD),
        "pwritev": (296, _FD),
    },
    "aarch64": {
        "write": (64, _FD),
        "pwrite64": (68, _FD),
        "writev": (66, _FD),
        "fsync": (82, _FD),
        "fdatasync": (83, _FD),
        "ftruncate": (46, _FD),
        "truncate": (45, _PATH),
        "mkdirat": (34, _AT),
        "unlinkat": (35, _AT),
        "renameat": (38, _AT_PAIR),
        "fallocate": (47, _FD),
        "fchmod": (52, _FD),
        "fchmodat": (53, _AT),
        "fchown": (55, _FD),
        "openat": (56, _AT),
        "pwritev": (70, _FD),
    },
}
_MACHINES = {"x86_64": (0xC000003E, 317), "aarch64": (0xC00000B7, 277)}
_WRITES = frozenset({"write", "pwrite64", "writev", "pwritev"})

_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_LOAD, _EQUAL, _SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_NEW_LISTENER = 8  # SECCOMP_FILTER_FLAG_NEW_LISTENER
# SECCOMP_FILTER_FLAG_TSYNC, and TSYNC_ESRCH that a listener needs beside it: the store's writer runs already.
_ALL_THREADS = 1 | 16
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_RECV, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_AT_FDCWD = -100


def unavailable() -> str:
    """Why system calls cannot be intercepted here; empty where they can."""
    if platform.system() != "Linux" or platform.machine() not in _CALLS:
        return f"no interception of system calls on {platform.system()} {platform.machine()}"
    if tuple(int(part) for part in platform.release().split(".")[:2]) < (5, 9):
        return f"Linux {platform.release()} is older than 5.9"
    return ""


@dataclass(frozen=True)
class Step:
    """One system call that would change a file below the watched directory."""

    number: int
    call: str
    # Relative to the watched directory.
    path: str
    size: int
    # Whether the file was opened so that a write returns when it is on the disk.
    synchronous: bool


KILL = "kill"
SHORT = "short write"
# What to do to a step: None lets it through, a number is the errno it fails with.
Decision = int | str | None


def surrender(connection: Connection) -> None:
    """In the child: hand the file-changing calls of all its threads, and of what it starts, to the other end.

    Raises OSError where the kernel refuses.
    """
    architecture, seccomp = _MACHINES[platform.machine()]
    calls = _CALLS[platform.machine()]
    creating = [_instruction(_LOAD, 32), _instruction(_SET, os.O_CREAT, 0, 1), _instruction(_RETURN, _NOTIFY)]
    program = [
        _instruction(_LOAD, 4),
        _instruction(_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, _ALLOW),
        _instruction(_LOAD, 0),
    ]
    for name, (number, _) in calls.items():
        if name != "openat":
            program += [_instruction(_EQUAL, number, 0, 1), _instruction(_RETURN, _NOTIFY)]
    program += [_instruction(_EQUAL, calls["openat"][0], 0, 3), *creating, _instruction(_RETURN, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(program))
    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    if libc.prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "no_new_privs was refused")
    listener = libc.syscall(seccomp, 1, _ALL_THREADS | _NEW_LISTENER, header)  # SECCOMP_SET_MODE_FILTER
    if listener < 0:
        raise OSError(ctypes.get_errno(), "the seccomp filter was refused")
    # From here on our own writes are stopped too, so the answer must not be waited for by writing first.
    _send(connection, listener)
    os.close(listener)


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def _send(connection: Connection, handle: int) -> None:
    send_handle(connection, handle, os.getppid())


class Interceptor:
    """Decides about every file-changing call of a child below `root`.  A thread serves it until the child is gone."""

    def __init__(self, root: Path, decide: Callable[[Step], Decision]) -> None:
        self._root = os.path.realpath(root)
        self._decide = decide
        # Every step, and those that were not let through with what was done to them.
        self.steps: list[Step] = []
        self.struck: list[tuple[Step, Decision]] = []
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def attach(self, connection: Connection, group: int) -> None:
        """Take over from `surrender`; `group` is the process group to kill."""
        listener = recv_handle(connection)
        self._thread = threading.Thread(target=self._serve, args=(listener, group), name="interceptor", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """After the child's end.  Raises what went wrong in the thread."""
        if self._thread is not None:
            self._thread.join(LONG)
            assert not self._thread.is_alive(), "somebody still runs under the filter"
        if self._failure is not None:
            raise self._failure

    def _serve(self, listener: int, group: int) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        try:
            while True:
                [(_, events)] = poll.poll()
                if events & select.POLLIN:
                    self._answer(listener, group)
                elif events & (select.POLLHUP | select.POLLERR):
                    return
        except BaseException as exc:  # noqa: BLE001 - raised again by join, in the test's thread
            self._failure = exc
        finally:
            os.close(listener)

    def _answer(self, listener: int, group: int) -> None:
        data = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, _RECV, data)
        except FileNotFoundError:  # it was killed meanwhile
            return
        number, pid, _, call, _, _, *args = _NOTIFICATION.unpack(data)
        decision: Decision = None
        name = next(name for name, (nr, _) in _CALLS[platform.machine()].items() if nr == call)
        with suppress(FileNotFoundError, ProcessLookupError):
            step = self._step(pid, name, args)
            if step is not None:
                decision = self._decide(step)
                self.steps.append(step)
                if decision is not None:
                    self.struck.append((step, decision))
        if decision == KILL:
            os.killpg(group, signal.SIGKILL)
            return
        if decision == SHORT:
            response = _RESPONSE.pack(number, _write_half(pid, name, args), 0, 0)
        elif decision is not None:
            response = _RESPONSE.pack(number, 0, -int(decision), 0)
        else:
            response = _RESPONSE.pack(number, 0, 0, _CONTINUE)
        with suppress(FileNotFoundError):
            fcntl.ioctl(listener, _SEND, response)

    def _step(self, pid: int, name: str, args: list[int]) -> Step | None:
        """The call as a step, or None when it is about a file elsewhere."""
        kind = _CALLS[platform.machine()][name][1]
        if kind == _FD:
            paths = [os.readlink(f"/proc/{pid}/fd/{_signed(args[0])}")]
        elif kind == _PATH:
            paths = [_path(pid, _AT_FDCWD, args[0])]
        elif kind == _AT:
            paths = [_path(pid, _signed(args[0]), args[1])]
        elif kind == _PAIR:
            paths = [_path(pid, _AT_FDCWD, args[0]), _path(pid, _AT_FDCWD, args[1])]
        else:
            paths = [_path(pid, _signed(args[0]), args[1]), _path(pid, _signed(args[2]), args[3])]
        if not all(path == self._root or path.startswith(self._root + "/") for path in paths):
            return None
        size = _size(pid, name, args) if name in _WRITES else 0
        synchronous = name in _WRITES and bool(_open_flags(pid, _signed(args[0])) & os.O_DSYNC)
        shown = " -> ".join(os.path.relpath(path, self._root) for path in paths)
        return Step(len(self.steps) + 1, name, shown, size, synchronous)


def _signed(value: int) -> int:
    return int(ctypes.c_int(value & 0xFFFFFFFF).value)


def _memory(pid: int, address: int, size: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), size, address)


def _path(pid: int, folder: int, address: int) -> str:
    page = 4096
    text = b""
    while b"\0" not in text:
        text += _memory(pid, address + len(text), page - (address + len(text)) % page)
    name = os.fsdecode(text.partition(b"\0")[0])
    base = os.readlink(f"/proc/{pid}/cwd" if folder == _AT_FDCWD else f"/proc/{pid}/fd/{folder}")
    parent, last = os.path.split(os.path.join(base, name))
    return os.path.join(os.path.realpath(parent), last)


def _open_flags(pid: int, descriptor: int) -> int:
    lines = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines()
    return next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))


def _buffers(pid: int, name: str, args: list[int]) -> list[tuple[int, int]]:
    """`(address, size)` of what a call writes."""
    if name in ("write", "pwrite64"):
        return [(args[1], args[2])]
    vector = _memory(pid, args[1], 16 * args[2])
    return list(struct.iter_unpack("=QQ", vector))


def _size(pid: int, name: str, args: list[int]) -> int:
    return sum(size for _, size in _buffers(pid, name, args))


def _write_half(pid: int, name: str, args: list[int]) -> int:
    """Write the first half of what the child wants to write, to the very file it has open; returns how much."""
    data = b"".join(_memory(pid, address, size) for address, size in _buffers(pid, name, args))
    # Whole pages in page-aligned memory, where there are any: the file may be open for direct I/O.
    size = len(data) // 2 // mmap.PAGESIZE * mmap.PAGESIZE or len(data) // 2
    half = mmap.mmap(-1, size)
    half[:] = data[:size]
    [leader] = [line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "Tgid" in line]
    handle = os.pidfd_open(int(leader))
    try:
        file = ctypes.CDLL(None, use_errno=True).syscall(438, handle, _signed(args[0]), 0)  # pidfd_getfd
        if file < 0:
            raise OSError(ctypes.get_errno(), "the child's descriptor could not be copied")
        try:
            return os.pwrite(file, half, args[3]) if name.startswith("p") else os.write(file, half)
        finally:
            os.close(file)
    finally:
        os.close(handle)


def describe(decision: Decision) -> str:
    """A decision in words."""
    return errno.errorcode[decision] if isinstance(decision, int) else str(decision)
