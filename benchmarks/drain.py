"""Scenario `drain`: how fast a backlog of trades with 25 typed columns gets into PostgreSQL."""

from __future__ import annotations

from dataclasses import fields

from outbox import Operation, Outbox, OutboxConfig, PostgresTarget, Relay

from .loaders import COPY, LOADERS, ORM, ROW_BY_ROW, SLOW, rows
from .measure import Goal, NotTheSameWork, Result, Setting, line, median, require_same, timed, turns
from .workload import WIDE_COLUMNS, config, create_table, execute, fill, wide

_TIMEOUT_S = 3600.0


def lanes_offered() -> list[int]:
    """The numbers of connections that this version of the library can drain on."""
    return [1, 2] if any(item.name == "lanes" for item in fields(OutboxConfig)) else [1]


def run(setting: Setting) -> Result:
    sizes = setting.sizes
    names = {f"outbox, {lanes} connection{'s' * (lanes > 1)}": lanes for lanes in lanes_offered()}
    samples: dict[str, list[float]] = {name: [] for name in (*LOADERS, *names)}
    for name in turns(sizes.drain_rounds, list(samples)):
        count = sizes.slow_rows if name in SLOW else sizes.drain_rows
        setting.say(f"draining {count} rows: {name}")
        seconds = _outbox(setting, names[name], count) if name in names else _loader(setting, name, count)
        samples[name].append(seconds / count)
    rate = {name: 1 / median(times) for name, times in samples.items()}
    first, *others = names
    goals = [
        Goal(text=f"{first} / COPY, rows per second", value=rate[first] / rate[COPY], limit=0.20, at_most=False,
             judged=sizes.judges, question="Rows of table operations, drained",
             answer="{value:.0%} of COPY, with receipts and ledger"),
        *(Goal(text=f"{name} / {first}, rows per second", value=rate[name] / rate[first], limit=1.1, at_most=False,
               judged=sizes.judges) for name in others),
    ]  # fmt: skip
    goals += [
        Goal(text=f"outbox / {slow}, rows per second", value=rate[first] / rate[slow], limit=limit, at_most=False,
             judged=sizes.judges)
        for slow, limit in ((ROW_BY_ROW, 35), (ORM, 100))
    ]  # fmt: skip
    return Result(
        scenario="drain",
        title=f"Draining {sizes.drain_rows:,} trades of 25 typed columns",
        reference=COPY,
        tabled=False,
        lines=[
            line(
                name,
                times,
                per_second=rate[name],
                ratio=rate[name] / rate[COPY],
                note="with receipts and ledger" if name in names else "",
            )
            for name, times in samples.items()
        ],
        goals=goals,
        notes=[
            "times are microseconds per row; a sample is a whole round, so p99 is the slowest round",
            f"row by row and ORM are measured on {sizes.slow_rows:,} rows",
            *([] if len(names) > 1 else ["this version drains on one connection only"]),
        ],
    )


def _begin_afresh(setting: Setting) -> None:
    """Empty tables for everybody, and nobody pays for the checkpoint that another one's rows made due."""
    create_table(setting.url, "wide_trades", WIDE_COLUMNS)
    execute(setting.url, "DROP TABLE IF EXISTS outbox_receipts, outbox_watermarks")
    execute(setting.url, "CHECKPOINT")


def _loader(setting: Setting, name: str, count: int) -> float:
    _begin_afresh(setting)
    loader = LOADERS[name]()
    loader.prepare(setting.url, "wide_trades", rows(count))
    try:
        seconds = timed(loader.load)
    finally:
        loader.close()
    _require_all_rows(setting.url, name, count)
    return seconds


def _outbox(setting: Setting, lanes: int, count: int) -> float:
    _begin_afresh(setting)
    operations = [Operation("log_trade", table="wide_trades", identity="client_order_id", order_by="symbol")]
    settings = config(**({"lanes": lanes} if lanes > 1 else {}))
    with Outbox.open(setting.folder("drain") / "outbox", settings, operations) as box:
        fill(box, operations[0], (wide(number) for number in range(count)))
        relay = Relay(box, PostgresTarget(setting.url, operations, config=settings))
        drained: list[bool] = []
        seconds = timed(lambda: drained.append(relay.drain(timeout=_TIMEOUT_S)))
        status = box.status()
        if drained != [True] or status.pending or status.completed != count or status.ledger != count:
            raise NotTheSameWork(f"outbox: {status.completed} of {count} completed, {status.pending} pending")
        store_id = status.store_id
    _require_all_rows(setting.url, "outbox", count)
    sql = "SELECT count(*) FROM outbox_receipts WHERE store_id = %s"
    require_same("outbox: receipts", execute(setting.url, sql, store_id)[0][0], count)
    return seconds


def _require_all_rows(url: str, who: str, count: int) -> None:
    """Every row once, with what was in it."""
    found = execute(url, "SELECT count(*), count(DISTINCT client_order_id), sum(price), sum(id) FROM wide_trades")[0]
    expected = (count, count, sum(wide(number)["price"] for number in range(count)), count * (count - 1) // 2)
    if found != expected:
        raise NotTheSameWork(f"{who}: the table holds {found}, expected {expected}")
