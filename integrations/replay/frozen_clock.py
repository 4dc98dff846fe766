"""The clock of a replay: the replayed code reads the time of the original call.

Python has no clock of a single thread.  So for the time of a replay the names that read the clock (`datetime`, `time`
and so on) stand, in the modules of the host, for objects that ask a context variable: in the context of the replay they
give the time of the call, everywhere else the real one.  What they give is always a plain object of the real classes.
Durations (`monotonic`, `perf_counter`) stay real.

In the same way `uuid4` gives the id that the caller was told, to a method that makes the UUID of its new row itself.
"""

from __future__ import annotations

import builtins
import datetime as datetime_module
import sys
import threading
import time as time_module
import uuid as uuid_module
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from .clock_readers import HostModules, Place, places_in, places_of

_current: ContextVar[FrozenClock | None] = ContextVar("outbox_frozen_clock", default=None)

# Makes the UUID that the caller was told; None where another one is to be made.
MakeUuid = Callable[[], uuid_module.UUID | None]
_making: ContextVar[MakeUuid | None] = ContextVar("outbox_told_uuid", default=None)

_Date = datetime_module.date
_DateTime = datetime_module.datetime
_UTC = datetime_module.UTC


# So often a call reads a clock that stands; then each reading moves it, since the call may wait for the next
# millisecond without sleeping.
_STANDS_FOR = 1000
_STEP = datetime_module.timedelta(microseconds=1)
# So often a call reads it before it waits for a time that is far ahead: that of an object which later calls have used.
_WAITS_FROM = 50_000


class FrozenClock:
    """The time of one call.  It moves while the replayed code sleeps or waits, so that waiting loops end."""

    def __init__(self, at: datetime_module.datetime) -> None:
        """`at` is aware."""
        self._at = at.astimezone(_UTC)
        self._reads = 0

    @property
    def at(self) -> datetime_module.datetime:
        """The time that the replayed code reads now."""
        self._reads += 1
        if self._reads <= _STANDS_FOR:
            return self._at
        if self._reads > _WAITS_FROM:
            return max(self._at, datetime_module.datetime.now(_UTC))
        return self._at + (self._reads - _STANDS_FOR) * _STEP

    @property
    def was_read(self) -> bool:
        """Whether the replayed code has read it."""
        return self._reads > 0

    def thaw(self) -> None:
        """Give the real time from now on."""
        _current.set(None)

    def slept(self, seconds: float) -> None:
        """Move by the time that was slept."""
        self._at += datetime_module.timedelta(seconds=seconds)

    def ns(self) -> int:
        """Nanoseconds since the epoch."""
        return (self.at - _DateTime(1970, 1, 1, tzinfo=_UTC)) // datetime_module.timedelta(microseconds=1) * 1000


def _now(tz: datetime_module.tzinfo | None = None) -> datetime_module.datetime:
    clock = _current.get()
    if clock is None:
        return datetime_module.datetime.now(tz)
    return _DateTime.fromtimestamp(clock.at.timestamp()) if tz is None else clock.at.astimezone(tz)


def _utcnow() -> datetime_module.datetime:
    return _now(_UTC).replace(tzinfo=None)


def _today() -> datetime_module.date:
    return _now().date()


class _StandIn(type):
    """The class of classes that stand for `datetime` and `date`: they are told apart from those by `is` only."""

    real: type

    def __new__(cls, name: str, bases: tuple[type, ...], members: dict[str, Any], **options: Any) -> Any:
        """A host's class that derives from a stand-in derives from the real class."""
        if any(isinstance(base, _StandIn) for base in bases):
            return type(name, tuple(getattr(base, "real", base) for base in bases), members, **options)
        return super().__new__(cls, name, bases, members)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass.real if isinstance(subclass, _StandIn) else subclass, cls.real)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.real

    def __hash__(cls) -> int:
        return hash(cls.real)


class _StandInDate(_Date, metaclass=_StandIn):
    real = _Date

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _Date(*args, **kwargs)

    @classmethod
    def today(cls) -> Any:
        return _today()


class _StandInDateTime(_DateTime, metaclass=_StandIn):
    real = _DateTime

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _DateTime(*args, **kwargs)

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return _now(tz)

    @classmethod
    def utcnow(cls) -> Any:
        return _utcnow()

    @classmethod
    def today(cls) -> Any:
        return _now()


for _made in (_StandInDate, _StandInDateTime):
    _made.__name__ = _made.__qualname__ = _made.real.__name__
    _made.__module__ = "datetime"


def _seconds(given: float | None) -> float | None:
    """`given`, or the time of the call where the clock would be read and stands."""
    clock = _current.get()
    return given if given is not None or clock is None else clock.at.timestamp()


def _time() -> float:
    seconds = _seconds(None)
    return time_module.time() if seconds is None else seconds


def _time_ns() -> int:
    clock = _current.get()
    return time_module.time_ns() if clock is None else clock.ns()


def _localtime(seconds: float | None = None) -> Any:
    return time_module.localtime(_seconds(seconds))


def _gmtime(seconds: float | None = None) -> Any:
    return time_module.gmtime(_seconds(seconds))


def _ctime(seconds: float | None = None) -> str:
    return time_module.ctime(_seconds(seconds))


def _asctime(parts: Any = None) -> str:
    return time_module.asctime(_localtime() if parts is None else parts)


def _strftime(form: str, parts: Any = None) -> str:
    return time_module.strftime(form, _localtime() if parts is None else parts)


def _clock_gettime(clock_id: int) -> float:
    return _time() if clock_id == time_module.CLOCK_REALTIME else time_module.clock_gettime(clock_id)


def _clock_gettime_ns(clock_id: int) -> int:
    return _time_ns() if clock_id == time_module.CLOCK_REALTIME else time_module.clock_gettime_ns(clock_id)


def _sleep(seconds: float) -> None:
    time_module.sleep(seconds)
    clock = _current.get()
    if clock is not None:
        clock.slept(seconds)


def _uuid4() -> uuid_module.UUID:
    make = _making.get()
    if make is None or str(sys._getframe(1).f_globals.get("__name__")).startswith("sqlalchemy"):
        # The default of a column, perhaps of another row's.
        return uuid_module.uuid4()
    return make() or uuid_module.uuid4()


_CLASSES: dict[int, Any] = {id(_Date): _StandInDate, id(_DateTime): _StandInDateTime}
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    _DateTime.now: _now,
    _DateTime.utcnow: _utcnow,
    _DateTime.today: _now,
    _Date.today: _today,
    time_module.time: _time,
    time_module.time_ns: _time_ns,
    time_module.localtime: _localtime,
    time_module.gmtime: _gmtime,
    time_module.ctime: _ctime,
    time_module.asctime: _asctime,
    time_module.strftime: _strftime,
    time_module.clock_gettime: _clock_gettime,
    time_module.clock_gettime_ns: _clock_gettime_ns,
    time_module.sleep: _sleep,
}


class _StandInModule(ModuleType):
    """`datetime`, `time` or `uuid`, as modules that import them see them."""

    def __init__(self, real: ModuleType) -> None:
        super().__init__(real.__name__, real.__doc__)
        self.__dict__["_real"] = real

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["_real"], name)
        made = stand_in_for(value)
        return value if made is None else made

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_real"], name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__dict__["_real"], name)

    def __dir__(self) -> list[str]:
        return dir(self.__dict__["_real"])


_MODULES: dict[int, Any] = {
    id(module): _StandInModule(module) for module in (datetime_module, time_module, uuid_module)
}


def stand_in_for(value: Any) -> Any:
    """What stands for `value` during a replay, or None where it does not read the clock and makes no UUID."""
    kind = type(value)
    if kind is FunctionType:
        return _uuid4 if value is uuid_module.uuid4 else None
    if kind is BuiltinFunctionType:
        return _FUNCTIONS.get(value)
    return _CLASSES.get(id(value)) if kind is type else _MODULES.get(id(value)) if kind is ModuleType else None


_real_import = builtins.__import__


def _import(name: str, names: Any = None, here: Any = None, *args: Any, **kwargs: Any) -> Any:
    """`import` within a replay: a function of the host's that imports `time` gets what stands for it.

    A module that is loaded meanwhile keeps the real one, and has its places like the others.
    """
    module = _real_import(name, names, here, *args, **kwargs)
    if _current.get() is None or names is None or names is here or not _places.hosts.have(names):
        return module
    _places.look()
    return _MODULES.get(id(module), module)


class _Places:
    """Where the host's modules name what reads the clock.  One for the process, thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._users: set[FrozenClock] = set()
        # Whether every stand-in is in its place.  An exception of a signal handler may come in between.
        self._ready = False
        self._found: list[Place] = []
        self._set: list[Place] = []
        self._seen: dict[int, Any] = {}
        self._modules = 0
        self._classes: set[type] = set()
        self.hosts = HostModules([])

    def enter(self, host: type, clock: FrozenClock) -> None:
        """Put the stand-ins into their places, unless another replay has."""
        with self._lock:
            if host not in self._classes:
                self._classes.add(host)
                self._modules = 0
            self._look()
            self._users.add(clock)
            if not self._ready:
                self._set.extend(place for place in self._found if place.put())
                self._ready = True
                if builtins.__import__ is _real_import:
                    builtins.__import__ = _import  # type: ignore[assignment]

    def look(self) -> None:
        """Look at modules that were loaded since."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        if len(sys.modules) == self._modules:
            return
        self._modules = len(sys.modules)
        self.hosts = HostModules(self._classes)
        found = places_of(self.hosts, stand_in_for, self._seen)
        self._found += found
        if self._users:
            self._set += [place for place in found if place.put()]

    def leave(self, clock: FrozenClock) -> None:
        """Put back what was there, when the last replay ends."""
        with self._lock:
            self._users.discard(clock)
            if not self._users:
                self._ready = False
                if builtins.__import__ is _import:
                    builtins.__import__ = _real_import
                for place in self._set:
                    place.put_back()
                self._set = []


_places = _Places()


@contextmanager
def frozen(at: datetime_module.datetime, manager: Any, make_uuid: MakeUuid | None = None) -> Iterator[FrozenClock]:
    """Within the block, for its context, for `manager` and the modules of its host, the clock stands at `at`.

    `make_uuid`: what `uuid4` gives there, unless that is None.
    """
    clock, around = FrozenClock(at), _current.get()
    with _standing(clock, manager, make_uuid):
        try:
            _current.set(clock)
            yield clock
        finally:
            if _current.get() is clock:
                _current.set(around)


@contextmanager
def making(manager: Any, make_uuid: MakeUuid) -> Iterator[None]:
    """As `frozen`, with the real clock."""
    with _standing(FrozenClock(datetime_module.datetime.now(_UTC)), manager, make_uuid):
        yield


@contextmanager
def _standing(user: FrozenClock, manager: Any, make_uuid: MakeUuid | None) -> Iterator[None]:
    """Within the block the stand-ins are in their places."""
    own, before = list[Place](), _making.get()
    # Before anything is set: an exception of a signal handler may come at any point.
    try:
        own.extend(place for place in places_in(manager, stand_in_for) if place.put())
        _places.enter(type(manager), user)
        _making.set(make_uuid)
        yield
    finally:
        _making.set(before)
        _places.leave(user)
        for place in own:
            place.put_back()
