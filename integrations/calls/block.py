"""Blocks: a call belongs to the balance block whose code makes it, in whichever thread or coroutine that code runs.

The current block follows contextvars: a coroutine that awaits inside its block does not lend it to others, and
`asyncio.to_thread` takes it along.  The blocks of one session are kept apart by a lock that has a limit.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import _GeneratorContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ... import OutboxError
from ...clock import Clock
from ...log import Log
from ..upkeep.kept_view import SessionBusy

_log = Log("outbox.integrations")

# How long a caller waits for another thread's block of the same session.
_LIMIT_S = 30.0
# A nested block gives up sooner, since two threads may wait for each other's session; it then goes on without the lock.
_NESTED_LIMIT_S = 1.0


class BlockMisused(OutboxError):
    """A balance block was left by another context than entered it, or before a block inside it; it recorded nothing."""


class Block:
    """The calls of one block, until it ends.  Thread-safe, since `asyncio.to_thread` and tasks share it."""

    def __init__(self, owner: object, session: Any, alive: Callable[[], bool] = lambda: True) -> None:
        """`owner`: the adapter; blocks of other adapters do not see this one's calls.

        `alive()`: whether the code that would record the calls can still run.  An exception that comes at any point, as
        from a signal handler, may end that code before it has ended the block.
        """
        self._alive = alive
        self.owner, self.session = owner, session
        # The block around this one, of whichever adapter, to be current again at the end; and that of the same adapter.
        self._before = _current.get()
        self.outer = current(owner)
        self._calls: list[Any] = []
        self._ended = False
        # Reentrant, since a signal handler may come while it is held.
        self._lock = threading.RLock()

    @property
    def ended(self) -> bool:
        """Whether the block was left."""
        return self._ended or not self._alive()

    def add(self, *calls: Any) -> bool:
        """Take calls up; False where the block has ended, and they are not part of it."""
        with self._lock:
            if self.ended:
                return False
            self._calls.extend(calls)
            return True

    def calls(self) -> list[Any]:
        """What was called inside so far, here and in the blocks around, oldest first."""
        around = [] if self.outer is None else self.outer.calls()
        with self._lock:
            return [*around, *self._calls]

    def made(self) -> list[Any]:
        """The calls that a plain manager has written by now: not those that entered the blocks, which still run."""
        around = [] if self.outer is None else self.outer.made()
        with self._lock:
            return [*around, *self._calls[1:]]

    def end(self) -> list[Any]:
        """Take no more calls; returns those of this block."""
        with self._lock:
            self._ended = True
            return self._calls


# The innermost block of the running context, of whichever adapter; it may have ended in another context.
_current: ContextVar[Block | None] = ContextVar("outbox_block", default=None)


def current(owner: object) -> Block | None:
    """The innermost open block of `owner` in the running context."""
    block = _current.get()
    while block is not None and (block.owner is not owner or block.ended):
        block = block._before
    return block


def has_called(owner: object) -> bool:
    """Whether the caller is in an open block of `owner` and has made a call there."""
    block = current(owner)
    # The first is the block's own.
    return block is not None and len(block.calls()) > 1


@contextmanager
def entered(block: Block) -> Iterator[None]:
    """Make `block` current.  Raises `BlockMisused` where it is not left as it was entered."""
    _current.set(block)
    try:
        yield
    except BaseException:
        block.end()
        if _current.get() is block:
            _current.set(block._before)
        raise
    innermost = _current.get()
    if innermost is block:
        _current.set(block._before)
        return
    block.end()
    raise BlockMisused(
        f"a balance block of session {block.session} was left out of turn, and none of its calls was recorded",
        hint="leave each block in the task or thread that entered it, the innermost first",
    )


@contextmanager
def logged_at_exit(block: Block) -> Iterator[None]:
    """Log the calls of a block that an exit of the program ends: none is recorded, and their callers have their ids."""
    try:
        yield
    except Exception:
        raise
    except BaseException as exc:
        _log.critical(
            "a balance block of session %(session)s was left by %(cause)s, and nothing of it is recorded: %(calls)s",
            session=block.session,
            cause=type(exc).__name__,
            calls=", ".join(f"{item.operation.name} ({item.local_answer})" for item in block.end()),
        )
        raise


class Entering(_GeneratorContextManager[Any]):
    """The context manager of a block.  An exception while it is entered ends the block.

    `name`: the method that made it.  A plain method that was declared as a context manager is called without `with`;
    the log names it then, because nothing of the call was recorded.  `failed(error)` is called where entering or ending
    it raises an error of its own.
    """

    def __init__(
        self,
        func: Any,
        args: Any,
        kwds: Any,
        name: str = "",
        failed: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        super().__init__(func, args, kwds)
        self._name, self._failed = name, failed

    def __call__(self, func: Any) -> Any:
        """As a decorator, each call of `func` enters a block of its own."""
        self._name = ""
        return super().__call__(func)

    def _recreate_cm(self) -> Entering:
        return Entering(self.func, self.args, self.kwds, failed=self._failed)

    def __del__(self) -> None:
        if getattr(self, "_name", "") and inspect.getgeneratorstate(self.gen) == inspect.GEN_CREATED:
            _log.critical(
                "%(method)s was called without `with`, and nothing of the call was recorded: use `with`, or declare it "
                "without context=True and without a like= that has it",
                method=self._name,
            )

    def __enter__(self) -> Any:
        """See the generator."""
        try:
            return super().__enter__()
        except BaseException as exc:
            # What is raised by a signal handler may come after the generator has stopped at its `yield`.
            self.gen.close()
            self._failed(exc)
            raise

    def __exit__(self, *error: Any) -> bool | None:
        """See the generator."""
        try:
            return super().__exit__(*error)
        except BaseException as exc:
            self._failed(exc)
            raise

    def is_alive(self) -> bool:
        """Whether the generator can still run."""
        return inspect.getgeneratorstate(self.gen) != inspect.GEN_CLOSED


@dataclass(slots=True)
class Turn:
    """A caller's turn to change the balance of a session."""

    thread: int
    name: str
    since: float
    # Whether no other caller was in a block of the session meanwhile: then the balance is still that which was yielded.
    alone: bool = True


class SessionLocks:
    """Keeps the balance blocks of a session apart.  Thread-safe; each wait has a limit."""

    def __init__(self, clock: Clock, *, limit_s: float = _LIMIT_S) -> None:
        self._clock, self._limit_s = clock, limit_s
        # Held by itself: `Condition.__exit__` is a function of Python, which an exception may end before it releases.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._holders: dict[Any, Turn] = {}

    @contextmanager
    def held(self, session: Any, *, inside: Block | None) -> Iterator[Turn]:
        """Hold the session's lock, or go on without it and not alone.

        A caller inside a block of the session needs no lock.  Nobody waits for a block that another coroutine of the
        same thread is in, since that one could not go on meanwhile.  Raises `SessionBusy` after the limit.
        """
        turn = Turn(threading.get_ident(), threading.current_thread().name, self._clock.monotonic())
        try:
            if not _is_in_block_of(session, inside):
                self._take(session, turn, nested=inside is not None)
            yield turn
        finally:
            with self._lock:
                if self._holders.get(session) is turn:
                    del self._holders[session]
                    self._changed.notify_all()

    def _take(self, session: Any, turn: Turn, *, nested: bool) -> None:
        deadline = turn.since + (min(_NESTED_LIMIT_S, self._limit_s) if nested else self._limit_s)
        with self._lock:
            while (holder := self._holders.get(session)) is not None:
                now = self._clock.monotonic()
                if holder.thread == turn.thread or (nested and now >= deadline):
                    holder.alone = turn.alone = False
                    return
                if now >= deadline:
                    raise SessionBusy(
                        f"session {session} is in a balance block of thread {holder.name!r} since "
                        f"{now - holder.since:.0f} s",
                        hint="keep slow work out of balance blocks, or let one thread change a session's balance",
                    )
                self._changed.wait(deadline - now)
            self._holders[session] = turn


def _is_in_block_of(session: Any, block: Block | None) -> bool:
    while block is not None:
        if block.session == session:
            return True
        block = block.outer
    return False
