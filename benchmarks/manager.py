"""Scenario `manager`: what a critical call of an engine's manager costs, and how fast a backlog of such calls drains.

Contenders take turns call by call, each with a database of its own on the same server.  The one of the outage reaches
it through a proxy that refuses; the slow ones through a proxy that delays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg2

from outbox import Outbox, PostgresTarget, Relay
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.paper.manager import DatabaseManager
from tests.integration.foreign.classic_manager import ClassicManager
from tests.unit.fakes.proxy import Proxy

from .measure import Goal, Line, Result, Setting, clock, line, median, require_same, timed, turns
from .trading import Day, classic, paper
from .workload import TRADE, config, execute, trade

_PLAIN, _DURABLE, _BEHIND, _OUTAGE = "plain", "durable, PostgreSQL up", "write_behind", "in an outage"
_MODES = (_PLAIN, _DURABLE, _BEHIND, _OUTAGE)
_BARE = "bare durable enqueue"
_MANAGERS: dict[str, tuple[Any, Callable[[Any, str], Day]]] = {
    "paper": (DatabaseManager, paper),
    "classic": (ClassicManager, classic),
}
_LEARN = 4
# So many calls of a backlog against so many direct ones, in turns.
_SLICES = 5
_DELAYS_MS = (0, 1, 5)
_DRAIN_S = 600.0


def run(setting: Setting) -> Result:
    lines, goals, notes = [], [], []
    for name in _MANAGERS:
        found = _calls(setting, name)
        lines += found[0]
        goals += found[1]
    for name in _MANAGERS:
        for delay_ms in _DELAYS_MS if name == "paper" else (0,):
            for what in ("mix", "one insert") if delay_ms <= 1 else ("mix",):
                made, goal, note = _backlog(setting, name, what, delay_ms)
                lines += made
                goals.append(goal)
                notes.append(note)
    return Result(
        scenario="manager",
        title="Critical calls of an engine's manager",
        reference="the plain manager",
        lines=lines,
        goals=goals,
        notes=notes,
        tabled=False,
    )


class _Contender:
    """A manager in a database of its own, plain or durable."""

    def __init__(self, setting: Setting, stack: ExitStack, kind: str, mode: str, *, delay_ms: float = 0) -> None:
        self._setting, self._stack = setting, stack
        made, day = _MANAGERS[kind]
        self.url = _database(setting, stack)
        self.proxy: Proxy | None = None
        reached = self.url
        if mode == _OUTAGE or delay_ms:
            self.proxy = stack.enter_context(Proxy(self.url))
            reached = self.proxy.url
        plain = made(reached)
        stack.callback(plain.engine.dispose)
        self.box: Outbox | None = None
        self.relay: Relay | None = None
        manager: Any = plain
        if mode != _PLAIN:
            self.box = stack.enter_context(Outbox.open(setting.folder("manager") / "outbox", config()))
            manager = DurableDatabaseManager(plain, self.box, write_behind=mode == _BEHIND)
            stack.callback(manager.detach_outbox)
            target = PostgresTarget(reached, manager.outbox_operations, config=self.box.config)
            self.relay = Relay(self.box, target)
            self.relay.start()
            stack.callback(self.relay.stop)
        self.day = day(manager, "day")
        # Each kind of call has been seen, so that nothing is learned while it is timed.
        for _ in range(_LEARN):
            for _, call in self.day.trade():
                call()
            self.catch_up()
        if self.proxy is not None and mode == _OUTAGE:
            self.proxy.refuse()
            self.proxy.disconnect()
            self._fail()
        if self.proxy is not None and delay_ms:
            self.proxy.delay_s = delay_ms / 1000

    def _fail(self) -> None:
        """Let the relay find out: from now on no call waits for it."""
        assert self.box is not None
        for _, call in self.day.trade():
            call()
        while self.box.progress.delivering is not False:
            self.box.progress.wait(lambda: False, 0.05)

    def catch_up(self) -> None:
        if self.relay is not None and not self.relay.drain(timeout=_DRAIN_S):
            raise RuntimeError("the backlog was not delivered")

    def rows(self) -> int:
        return sum(
            execute(self.url, f"SELECT count(*) FROM {table}")[0][0]
            for table in ("orders", "positions", "trades", "account_balances")
        )


def _database(setting: Setting, stack: ExitStack) -> str:
    name = f"bench_{os.urandom(6).hex()}"
    execute_alone(setting.url, f"CREATE DATABASE {name}")
    stack.callback(execute_alone, setting.url, f"DROP DATABASE {name} WITH (FORCE)")
    return urlunsplit(urlsplit(setting.url)._replace(path=f"/{name}"))


def execute_alone(url: str, sql: str) -> None:
    """Run a statement that must not be in a transaction."""
    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
    finally:
        connection.close()


# -- calls


def _calls(setting: Setting, kind: str) -> tuple[list[Line], list[Goal]]:
    samples: dict[tuple[str, str], list[float]] = {}
    bare: list[float] = []
    with ExitStack() as stack:
        made = {mode: _Contender(setting, stack, kind, mode) for mode in _MODES}
        box = stack.enter_context(Outbox.open(setting.folder("bare") / "outbox", config(), [TRADE]))
        number = 0
        for round_ in range(setting.sizes.manager_rounds):
            setting.say(f"{kind}: calls, round {round_ + 1} of {setting.sizes.manager_rounds}")
            for calls in zip(*(made[mode].day.trade() for mode in _MODES), strict=True):
                for mode in turns_of(round_, _MODES):
                    name, call = calls[_MODES.index(mode)]
                    samples.setdefault((name, mode), []).append(timed(call))
                bare.append(timed(lambda: box.enqueue(TRADE.name, trade(number))))  # noqa: B023 - called at once
                number += 1
            made[_BEHIND].catch_up()
    lines = [line(f"{kind}: {_BARE}", bare)]
    goals: list[Goal] = []
    kinds = dict.fromkeys(name for name, _ in samples)
    for name in kinds:
        plain = median(samples[name, _PLAIN])
        for mode in _MODES:
            own = samples[name, mode]
            lines.append(line(f"{kind} {name}: {mode}", own, ratio=median(own) / plain))
    judged = setting.sizes.judges
    up = [median(samples[name, _DURABLE]) / median(samples[name, _PLAIN]) for name in kinds]
    text = f"{kind}: PostgreSQL up / plain"
    answer = "{value:.1f} times the plain manager's"
    question = f"A critical call, PostgreSQL up ({kind} engine)"
    goals.append(Goal(text=text, value=median(up), limit=1.5, judged=judged, question=question, answer=answer))
    for mode in (_OUTAGE, _BEHIND):
        over = [(median(samples[name, mode]) * 1e3 - 0.3) / (median(bare) * 1e3) for name in kinds]
        text = f"{kind}: {mode}, less 0.3 ms / {_BARE}"
        asked = f"A critical call in an outage ({kind} engine)" if mode == _OUTAGE else ""
        answer = "{value:.2f} bare durable enqueues and 0.3 ms"
        goals.append(Goal(text=text, value=median(over), limit=1.3, judged=judged, question=asked, answer=answer))
    return lines, goals


def turns_of(round_: int, modes: tuple[str, ...]) -> Iterator[str]:
    """Each mode once, beginning with another one in each round."""
    shift = round_ % len(modes)
    yield from (*modes[shift:], *modes[:shift])


# -- a backlog


def _backlog(setting: Setting, kind: str, what: str, delay_ms: float) -> tuple[list[Line], Goal, str]:
    calls = max(9, setting.sizes.manager_backlog // (_SLICES * 9) * 9)
    if delay_ms:
        calls = max(9, calls // 9 // 4 * 9)
    took: dict[str, list[float]] = {_PLAIN: [], _BEHIND: []}
    used: dict[str, list[float]] = {_PLAIN: [], _BEHIND: []}
    with ExitStack() as stack:
        made = {mode: _Contender(setting, stack, kind, mode, delay_ms=delay_ms) for mode in took}
        behind = made[_BEHIND]
        assert behind.relay is not None
        for mode in turns(_SLICES, list(took)):
            setting.say(f"{kind}: a backlog of the {what}, {delay_ms} ms")
            if mode == _BEHIND:
                behind.relay.stop()
                _make(behind.day, what, calls)
            cpu, begin = _cpu(), clock()
            if mode == _PLAIN:
                _make(made[_PLAIN].day, what, calls)
            else:
                behind.catch_up()
            took[mode].append((clock() - begin) / calls)
            used[mode].append((_cpu() - cpu) / calls)
            if mode == _BEHIND:
                behind.relay.start()
        require_same(f"{kind}: rows of the {what}", behind.rows(), made[_PLAIN].rows())
    name = f"{kind}: backlog of the {what}" + (f", {delay_ms:g} ms each way" if delay_ms else "")
    ratios = [one / other for one, other in zip(took[_PLAIN], took[_BEHIND], strict=True)]
    rates = {mode: 1 / median(times) for mode, times in took.items()}
    lines = [
        line(f"{name}, {said}", took[mode], per_second=rates[mode], ratio=rates[mode] / rates[_PLAIN])
        for mode, said in ((_PLAIN, "made directly"), (_BEHIND, "drained"))
    ]
    limit = 3.0 if what != "mix" or delay_ms else 1.5
    goal = Goal(
        text=f"{name}: drained / made directly",
        value=median(ratios), limit=limit, at_most=False, judged=setting.sizes.judges,
        question=f"A backlog of calls after an outage ({kind} engine)" if what == "mix" and not delay_ms else "",
        answer="{value:.2f} times as fast as the plain manager makes them",
    )  # fmt: skip
    cpu_ms = {mode: median(times) * 1e3 for mode, times in used.items()}
    note = (
        f"{name}: {calls} calls a turn, ratio {min(ratios):.2f} to {max(ratios):.2f} over {_SLICES} turns; "
        f"CPU of this process {cpu_ms[_PLAIN]:.2f} ms a call directly, {cpu_ms[_BEHIND]:.2f} ms drained"
    )
    return lines, goal, note


def _make(day: Day, what: str, calls: int) -> None:
    if what == "mix":
        for _ in range(calls // 9):
            for _, call in day.trade():
                call()
    else:
        for _ in range(calls):
            day.one_insert()[1]()


def _cpu() -> float:
    times = os.times()
    return times.user + times.system
