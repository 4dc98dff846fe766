"""Every system call with which the library changes a file is once the last one, and once fails.

The scenarios are walked through step by step: the n-th victim meets its fate at its n-th call, until one comes to its
end unharmed.  Each call is somebody's last; `make test` lets every second one fail with one error after the other,
`make faults` every one with every error.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.drill import Drill, Report, Steps
from tests.faults.syscalls import KILL, SHORT, Decision, Step, describe, unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

_ALL = os.environ.get("FAULTS") == "all"
_STRIDE = 1 if _ALL else 2
_ERRORS: tuple[Decision, ...] = (
    errno.EIO,
    errno.ENOSPC,
    SHORT,
    errno.EDQUOT,
    errno.EROFS,
    errno.EFBIG,
    errno.EINTR,
)
_WRITES = ("write", "pwrite64", "writev", "pwritev")

# What came before, and what the victim does. It begins to be watched where it surrenders.
_ENQUEUE: Steps = [("enqueue", 20, 2), ("group", 24, 3)]
_SCENARIOS: dict[str, tuple[Steps, Steps]] = {
    "creation": ([], [("surrender",), ("open",), *_ENQUEUE]),
    "creation in a folder that exists": ([("make_folder",)], [("surrender",), ("open",), *_ENQUEUE]),
    "work": (
        [("open",), ("enqueue", 0, 3)],
        [("open",), ("surrender",), *_ENQUEUE, ("drain", 5.0), ("enqueue", 30, 2)],
    ),
    "vacuum": (
        [("open",), ("enqueue", 0, 6), ("drain",), ("enqueue", 10, 3)],
        [("open",), ("surrender",), ("vacuum",), *_ENQUEUE],
    ),
    "recovery": (
        [("open",), ("enqueue", 0, 6), ("arm", "before the ledger commit"), ("drain",)],
        [("surrender",), ("open",), *_ENQUEUE],
    ),
}


class Walk:
    """One scenario, over and over, each time on a store of its own."""

    def __init__(self, name: str, folder: Path, url: str) -> None:
        self._before, self._steps = _SCENARIOS[name]
        self._folder = folder
        self._drill = Drill(folder, url).create()
        self.rounds = 0

    def round(self, decide: Callable[[Step], Decision]) -> Report:
        """What became of one victim; afterwards all is delivered and checked."""
        self.rounds += 1
        # Numbers tell whose a row is.
        drill = Drill(self._folder / str(self.rounds) / "outbox", self._drill.url, offset=1000 * self.rounds)
        drill.directory.parent.mkdir()
        if self._before:
            drill.run(self._before)
        report = drill.run(self._steps, decide)
        try:
            drill.finish()
        except AssertionError as exc:
            struck = [(step, describe(decision)) for step, decision in report.interceptor.struck]
            raise AssertionError(f"after {struck}, which ended in {report.events[-3:]}") from exc
        return report


@pytest.mark.parametrize("name", _SCENARIOS)
def test_kill_at_each_system_call_loses_and_doubles_nothing(name: str, tmp_path: Path, postgres_url: str) -> None:
    walk = Walk(name, tmp_path, postgres_url)
    number = 1
    while True:

        def decide(step: Step, at: int = number) -> Decision:
            return KILL if step.number == at else None

        report = walk.round(decide)
        if not report.interceptor.struck:
            break
        assert report.killed
        number += 1
    # It came to its end, so all of its steps have been somebody's last.  A slow one before had a step more, since
    # a relay tells how it goes every second.
    assert report.exit_code == 0
    assert 15 < len(report.interceptor.steps) < number


@pytest.mark.parametrize("name", _SCENARIOS)
def test_failure_of_each_system_call_loses_and_doubles_nothing(name: str, tmp_path: Path, postgres_url: str) -> None:
    walk = Walk(name, tmp_path, postgres_url)
    number = 1
    while True:
        for error in _ERRORS if _ALL else (_ERRORS[number // _STRIDE % len(_ERRORS)],):

            def decide(step: Step, at: int = number, error: Decision = error) -> Decision:
                if step.number != at:
                    return None
                return errno.EIO if error == SHORT and (step.call not in _WRITES or step.size < 2) else error

            report = walk.round(decide)
            assert report.exit_code == 0
        if not report.interceptor.struck:
            break
        number += _STRIDE
    assert 15 < len(report.interceptor.steps) < number
