"""Verification in a child process: a damaged file can kill the process that maps it with SIGBUS or SIGABRT.

`check` is for the process that wants to open a store.  The child is another Python, or a fork where this program's
executable is none.  It lets a process of its own look, and prints what became of it in words, since a
host may lose the exit status of a child (SIGCHLD ignored, another thread reaping).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import (
    ConfigError,
    OutboxError,
    StoreCorrupt,
    StoreFormatError,
    StoreLocked,
    StoreMissing,
    StoreUnavailable,
    StoreUnverified,
)
from ..store.environment import forget_open_here
from . import soundness

# The child's program.  It makes the package without its `__init__`, which imports the PostgreSQL driver: an engine
# would wait most of a second for that.
_START = """
import sys, types
package = types.ModuleType("outbox")
package.__path__ = [sys.argv[1]]
sys.modules["outbox"] = package
from outbox.rescue import verify
verify.main(*sys.argv[2:])
"""
_PACKAGE = Path(__file__).resolve().parents[1]
_STDLIB = os.path.dirname(os.__file__)
# What to look at: see `soundness`.
ESSENTIALS, HISTORY, ALL = "essentials", "history", "all"
_MOST_PROBLEMS = 20
# The history is read beside a trading engine.
_NICE = 10
_PR_SET_PDEATHSIG = 1
_WAY_OUT = "nothing was changed; see `atb outbox verify`, restore a backup, or export and import"
_AGAIN = "nothing was changed and nothing is known to be damaged; open it again"
# What a process dies of that reads a damaged file through a map.  Every other signal came from outside.
_FATAL = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})
_PYTHON = re.compile(r"(python|pypy)[0-9.]*[a-z]*(\.exe)?\Z")
# The first word of each line that the child writes.
_SOUND, _PROBLEM, _UNABLE, _DIED = "sound", "problem", "unable", "died"
_ERRORS: dict[str, type[OutboxError]] = {
    kind.__name__: kind
    for kind in (ConfigError, StoreCorrupt, StoreFormatError, StoreLocked, StoreMissing, StoreUnverified)
}


@dataclass
class _Verdict:
    """The output of a child; `ended`: how it ended, as text for people."""

    sound: bool = False
    problems: list[str] = field(default_factory=list)
    unable: dict[str, Any] | None = None
    died: int = 0
    ended: str = ""

    @classmethod
    def parse(cls, said: bytes, ended: str) -> _Verdict:
        verdict = cls(ended=ended)
        for line in said.decode("utf-8", "replace").splitlines():
            word, _, rest = line.partition(" ")
            if word == _SOUND:
                verdict.sound = True
            elif word == _PROBLEM:
                verdict.problems.append(rest)
            elif word == _UNABLE:
                verdict.unable = json.loads(rest)
            elif word == _DIED:
                verdict.died = int(rest)
        return verdict


def check(directory: Path) -> None:
    """Verify, in a child process, what enqueueing and delivering need; no process may write to the store.

    Damage that the outbox can set aside by itself (a single pending record with a wrong checksum) passes: the relay
    quarantines and logs it.  Raises `StoreCorrupt` naming the first problems, or how the child died;
    `StoreUnverified` where there was no verdict; or what keeps the store from being read.
    """
    Child(directory, ESSENTIALS).raise_unless_sound()


def check_all(directory: Path, *, python: str | None = None) -> None:
    """The same of everything, the history included.  `python` is another interpreter to use."""
    Child(directory, ALL, python=python).raise_unless_sound()


def checker(python: str | None) -> Callable[[Path], None]:
    """`check`, with another interpreter where one is given."""
    if python is None:
        return check
    return lambda directory: Child(directory, ESSENTIALS, python=python).raise_unless_sound()


def _raise_unless_sound(directory: Path, verdict: _Verdict) -> None:
    found = verdict.problems
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise StoreCorrupt(f"{directory} is damaged: {'; '.join(found[:3])}{more}", hint=_WAY_OUT)
    if verdict.died in _FATAL:
        raise StoreCorrupt(f"{directory} is damaged: verifying it died of signal {verdict.died}", hint=_WAY_OUT)
    if verdict.unable is not None:
        raise _error_of(verdict.unable)
    if verdict.died:
        name = signal.Signals(verdict.died).name if verdict.died in list(signal.Signals) else str(verdict.died)
        memory = "; the system may be short of memory" if verdict.died == signal.SIGKILL else ""
        raise StoreUnverified(f"verifying {directory} was interrupted by {name}{memory}", hint=_AGAIN)
    if not verdict.sound:
        raise StoreUnverified(f"verifying {directory} ended without a verdict: {verdict.ended}", hint=_AGAIN)


def _error_of(told: dict[str, Any]) -> OutboxError:
    message, hint = str(told["message"]), str(told["hint"])
    if told["error"] in _ERRORS:
        return _ERRORS[told["error"]](message, hint=hint)
    return StoreUnavailable(message, hint=hint, errno=told["errno"])


# -- the process that asks


class Child:
    """A child process that looks at a store."""

    def __init__(self, directory: Path, what: str, *, python: str | None = None) -> None:
        """Start it.  `what` is one of `ESSENTIALS`, `HISTORY`, `ALL`.  Raises `StoreUnavailable`."""
        self._directory = directory
        self._mutex = threading.Lock()
        program = interpreter(python)
        self._process = _start_program(program, directory, what) if program else None
        self._pid, self._pipe = _start_fork(directory, what) if self._process is None else (self._process.pid, -1)
        self._ended = False

    def raise_unless_sound(self) -> None:
        """Wait for its verdict and raise what it means.  Raises as `check`."""
        try:
            verdict = self._verdict()
        except BaseException:  # as Ctrl-C: it must not go on looking
            self.kill()
            raise
        _raise_unless_sound(self._directory, verdict)

    def kill(self) -> None:
        """End it; may be called at any time, from another thread too."""
        with self._mutex:
            if not self._ended:
                try:
                    os.kill(self._pid, signal.SIGKILL)
                except ProcessLookupError:  # a host that reaps its children by itself was faster
                    self._ended = True

    def _verdict(self) -> _Verdict:
        if self._process is None:
            return self._verdict_of_fork()
        said, errors = self._process.communicate()
        with self._mutex:
            self._ended = True
        tail = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
        return _Verdict.parse(said, tail[0] if tail else f"exit status {self._process.returncode}")

    def _verdict_of_fork(self) -> _Verdict:
        with os.fdopen(self._pipe, "rb") as pipe:
            said = pipe.read()
        with self._mutex:
            self._ended = True
            try:
                status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            except ChildProcessError:
                status = 0  # the host reaps its children by itself
        return _Verdict.parse(said, f"exit status {status}")


def interpreter(python: str | None) -> str | None:
    """The interpreter to verify with: the given one or this program's; None where it must fork."""
    return python or _own_interpreter()


def _own_interpreter() -> str | None:
    """The interpreter that runs this program, or None where that is unknown.

    A frozen program, or one that embeds Python, has an executable of its own here: it would start a second time.
    """
    program = sys.executable
    if not program or getattr(sys, "frozen", False) or not _PYTHON.match(os.path.basename(program)):
        return None
    return program if os.access(program, os.X_OK) else None


def _start_program(program: str, directory: Path, what: str) -> subprocess.Popen[bytes]:
    # The host may have found this package by changing sys.path; the child must find the same one.  The standard library
    # comes first: the host has imported it before its own folder was added, and a module there may have such a name.
    standard = [path for path in sys.path if path == _STDLIB or os.path.basename(path) == "lib-dynload"]
    paths = [*standard, os.fspath(_PACKAGE.parent), *(path for path in sys.path if path and path not in standard)]
    try:
        return subprocess.Popen(
            # A host that turns warnings into errors must not make a sound store look damaged.
            [program, "-P", "-W", "ignore", "-c", _START, os.fspath(_PACKAGE), os.fspath(directory), what],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except OSError as exc:
        raise StoreUnavailable(
            f"{directory} cannot be verified: {program} cannot be run: {exc.strerror}",
            hint="set OUTBOX_PYTHON to a Python that has this package",
            errno=exc.errno,
        ) from exc


def _start_fork(directory: Path, what: str) -> tuple[int, int]:
    """Process id of the child and the pipe that it speaks into."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        # Of threads that are not there any more in the child: it takes no lock that they could hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        try:
            os.close(read)
            forget_open_here()
            _supervise(directory, write, what)
        finally:
            os._exit(0)
    os.close(write)
    return pid, read


# -- the process that is asked


def main(directory: str, what: str) -> None:
    """The child's program."""
    _supervise(Path(directory), 1, what)


def _supervise(directory: Path, out: int, what: str = ALL) -> None:
    """Let a process of its own look, and say how it ended if it could not do so itself."""
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    # Ctrl-C is for the program that asks, which ends its child if it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if what == HISTORY:
        os.nice(_NICE)
    _end_with_parent()
    pid = os.fork()
    if not pid:
        try:
            _end_with_parent()
            _look(directory, out, what)
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        _say(out, _DIED, str(-code))


def _end_with_parent() -> None:
    """Be killed when the thread ends that started this process: what it looks at is another's from then on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _look(directory: Path, out: int, what: str = ALL) -> None:
    """Look for damage and say what was found."""
    look: dict[str, Callable[[Path], Iterator[str]]] = {
        ALL: soundness.problems,
        ESSENTIALS: soundness.essentials,
        HISTORY: soundness.history,
    }
    count = 0
    try:
        for problem in islice(look[what](directory), _MOST_PROBLEMS):
            _say(out, _PROBLEM, problem)
            count += 1
    except (StoreCorrupt, StoreFormatError) as exc:
        _say(out, _PROBLEM, exc.message)
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is no verdict, and the asking process raises it
        _say(out, _UNABLE, json.dumps(_told(exc, directory)))
    else:
        if not count:
            _say(out, _SOUND, os.fspath(directory))


def _told(exc: Exception, directory: Path) -> dict[str, Any]:
    kind, message, hint = type(exc).__name__, str(exc), _AGAIN
    if isinstance(exc, OutboxError):
        message, hint = exc.message, exc.hint
    elif isinstance(exc, OSError):
        kind, message = StoreUnavailable.__name__, f"{directory} cannot be verified: {exc}"
    elif isinstance(exc, MemoryError):
        kind, message = StoreUnavailable.__name__, f"{directory} cannot be verified: there is not enough memory"
    else:
        kind, message = StoreUnverified.__name__, f"verifying {directory} failed by itself: {kind}: {exc}"
    return {"error": kind, "message": message, "hint": hint, "errno": getattr(exc, "errno", None)}


def _say(out: int, word: str, rest: str) -> None:
    os.write(out, f"{word} {' '.join(rest.splitlines())}\n".encode("utf-8", "replace"))
