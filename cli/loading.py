"""Loading: Ctrl-C waits while modules are imported, and imports nothing of ours or of click itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupted_afterwards() -> Iterator[None]:
    """Ctrl-C within the block raises KeyboardInterrupt at its end.

    In the middle of an import it would be a traceback, and it crashes the interpreter (SIGSEGV) where an extension
    such as orjson imports modules itself.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
