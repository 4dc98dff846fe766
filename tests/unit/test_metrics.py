"""Metrics: every figure by its name, read when it is scraped, and nothing for those who do not ask."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import prometheus_client.parser
import pytest

from outbox import ConfigError, OutboxStatus, StoreLocked
from outbox.metrics import StatusCollector, as_text, parse_address, registry_of, start_metrics
from outbox.monitoring.figures import FIGURES
from outbox.store.reads import UNKNOWN_BYTES
from tests.unit.fakes.rig import Rig, permanent
from tests.unit.fakes.waiting import LONG, until

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "metrics.md"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path / "outbox") as rig:
        yield rig


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Values by name and labels, without the label that all have."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in prometheus_client.parser.text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "store"))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[f"lmdb_outbox_{name}"][tuple(sorted(labels.items()))]


def get(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=LONG) as answer:
        return str(answer.read().decode())


def test_the_figures_are_those_of_the_status(rig: Rig) -> None:
    rig.enqueue("a", "b", "c")
    rig.target.refuse[2] = permanent("refused")
    rig.settle()
    rig.enqueue("b", "d")
    rig.box.alarms.sound("ledger-damaged", "look")
    rig.box.notices.put("ids-in-reserve", "few", lasts_s=600.0)
    text, status = as_text(rig.box), rig.box.status()
    for name, expected in {
        "up": 1,
        "health": 2,
        "pending_entries": 2,
        "dead_letter_entries": 1,
        "completed_entries": 2,
        "acknowledged_entries_total": 5,
        "ledger_entries": status.ledger,
        "watermark_sequence": 3,
        "last_sequence": 5,
        "engine_running": 1,
        "relay_running": 1,
        "halted": 0,
        "live_bytes": status.live_bytes,
        "max_bytes": status.max_bytes,
    }.items():
        assert value(text, name) == expected, name
    assert value(text, "alarm", alarm="ledger-damaged") == 1
    assert value(text, "notice_lasts_seconds", notice="ids-in-reserve") == 600
    assert value(text, "relay_breaker", state="closed") == 1
    assert value(text, "relay_breaker", state="open") == 0
    assert status.relay.last_applied_at is not None
    assert value(text, "relay_last_applied_timestamp_seconds") == status.relay.last_applied_at.timestamp()
    assert next(iter(samples(text)["lmdb_outbox_info"]))[0] == ("store_id", status.store_id)


def test_every_series_names_its_store(rig: Rig) -> None:
    lines = [line for line in as_text(rig.box).splitlines() if not line.startswith("#")]
    assert lines
    assert [line for line in lines if f'store="{rig.box.path}"' not in line] == []


def test_unknown_figure_is_left_out(rig: Rig) -> None:
    unknown = replace(rig.box.status(), free_disk_bytes=UNKNOWN_BYTES)
    families = {family.name: family.samples for family in StatusCollector(lambda: unknown, "s").collect()}
    assert families["lmdb_outbox_free_disk_bytes"] == []
    assert families["lmdb_outbox_relay_idle_seconds"] == []
    assert families["lmdb_outbox_lag_seconds"] != []


def test_a_store_that_cannot_be_read_is_down() -> None:
    def look() -> OutboxStatus:
        raise StoreLocked("no slot is free")

    (family,) = StatusCollector(look, "s").collect()
    assert [(sample.name, sample.labels, sample.value) for sample in family.samples] == [
        ("lmdb_outbox_up", {"store": "s"}, 0)
    ]


def test_registering_does_not_read_the_store() -> None:
    def look() -> OutboxStatus:
        raise AssertionError("read")

    prometheus_client.CollectorRegistry().register(StatusCollector(look, "s"))


@pytest.mark.slow
def test_a_server_reads_the_status_when_it_is_scraped(rig: Rig) -> None:
    before = set(threading.enumerate())
    with start_metrics(rig.box, "127.0.0.1:0") as server:
        assert value(get(server.address), "pending_entries") == 0
        rig.enqueue("a", "b")
        assert value(get(server.address), "pending_entries") == 2
        with pytest.raises(ConfigError, match=f"metrics cannot be served at {server.address}"):
            start_metrics(rig.box, server.address)
    server.close()
    # The thread of a request may end after its answer.
    until(lambda: set(threading.enumerate()) <= before)
    with pytest.raises(OSError, match="refused"):
        get(server.address)


@pytest.mark.slow
def test_a_server_outlives_its_outbox_and_says_so(tmp_path: Path) -> None:
    with Rig(tmp_path / "outbox") as rig:
        server = start_metrics(rig.box, "127.0.0.1:0")
    with server:
        assert value(get(server.address), "up") == 0


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:80", ("::1", 80)), ("localhost:0", ("localhost", 0))],
)
def test_an_address_is_host_and_port(address: str, expected: tuple[str, int]) -> None:
    assert parse_address(address) == expected


@pytest.mark.parametrize("address", ["9464", ":9464", "host:", "host:x", "host:65536", "host:-1", ""])
def test_wrong_address_of_the_metrics_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"address of the metrics is {address!r}")):
        parse_address(address)


# -- names


def test_names_follow_the_conventions_of_prometheus() -> None:
    names = [figure.full_name for figure in FIGURES]
    assert len(names) == len(set(names))
    for figure in FIGURES:
        assert re.fullmatch(r"lmdb_outbox_[a-z]+(_[a-z]+)*", figure.full_name)
        assert (figure.kind == "counter") == figure.name.endswith("_total")
        assert not re.search(r"(_ms|_mb|_kb|_minutes|_count)$", figure.name), "base units only"


def test_the_table_of_metrics_is_complete() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(lmdb_outbox_\w+)(?:\{([\w, ]+)\})?` \| (.+) \|$", text, re.MULTILINE)
    assert rows == [(one.full_name, ", ".join(one.labels), f"{one.meaning}.") for one in FIGURES]
    assert re.findall(r"`(\w+)` is a counter, all others are gauges", text) == [
        one.full_name for one in FIGURES if one.kind == "counter"
    ]


# -- who does not ask


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_program_without_metrics_does_not_import_prometheus(tmp_path: Path) -> None:
    code = f"""
import sys, threading
import outbox, outbox.cli, outbox.integrations.trading_engine
from outbox.metrics import start_metrics
with outbox.Outbox.open({str(tmp_path / "outbox")!r}) as box:
    box.status()
    print([thread.name for thread in threading.enumerate()])
print([name for name in sys.modules if "prometheus" in name or "opentelemetry" in name or name == "http.server"])
"""
    assert run(code).stdout.splitlines() == ["['MainThread', 'outbox-writer']", "[]"]


@pytest.mark.slow
def test_without_the_package_the_way_out_is_named(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["prometheus_client"] = None
from outbox import ConfigError, Outbox
from outbox.metrics import start_metrics
with Outbox.open({str(tmp_path / "outbox")!r}) as box:
    try:
        start_metrics(box)
    except ConfigError as exc:
        print(exc)
"""
    said = run(code).stdout
    assert said == "metrics need the package prometheus-client (pip install 'lmdb-outbox[metrics]')\n"


def test_a_registry_of_the_host_takes_the_collector(rig: Rig) -> None:
    text = prometheus_client.generate_latest(registry_of(rig.box)).decode()
    look: Callable[[], OutboxStatus] = rig.box.status
    own = prometheus_client.CollectorRegistry()
    own.register(StatusCollector(look, str(rig.box.path)))
    assert set(samples(prometheus_client.generate_latest(own).decode())) == set(samples(text))
