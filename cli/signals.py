"""Signals: a command that is ended from outside leaves no copy of a store behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click


@contextmanager
def unwound_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, and then the process as they do by default.

    Without that, `timeout` or a service manager that ends an export or an import leaves all entries in a temporary
    directory.  A signal that is ignored, as under nohup, or has a handler stays as it is.
    """
    came: list[int] = []

    def end(signum: int, frame: FrameType | None) -> None:
        del frame
        came.append(signum)
        raise KeyboardInterrupt

    ours: list[int] = []
    if threading.current_thread() is threading.main_thread():
        ours = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    except click.ClickException as exc:
        if came:
            exc.show()
        raise
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        if came:
            os.kill(os.getpid(), came[0])
