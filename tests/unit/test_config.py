"""Every setting is checked at birth; an error names the field or variable, the value and what is allowed."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from outbox import ConfigError, OutboxConfig
from outbox.config import RECONCILE, check_database_url, variable_name

NUMBERS: dict[str, tuple[Any, Any, Any]] = {
    # Name: a good value, one below and one above what is allowed.
    "sync_interval": (0.5, 0.0, 3601),
    "max_retries": (0, -1, 1_000_001),
    "retention_hours": (0, -0.1, 24 * 3660 + 1),
    "alert_pending": (1, 0, 10**12 + 1),
    "min_free_mb": (0, -1, 10**9 + 1),
    "max_size_mb": (1, 0, 64 * 1024 + 1),
    "batch_size": (1, 0, 100_001),
    "busy_batch_size": (1, 0, 100_001),
    "lanes": (16, 0, 17),
    "connect_timeout": (1.5, 0.9, 3601),
    "stall_timeout": (0.05, 0.01, 86_401),
    "backoff_base": (0.001, 0.0, 3601),
    "backoff_cap": (86_400, 0.0, 86_401),
    "stuck_after": (0.01, 0.0, 86_401),
    "max_entry_kb": (65_536, 0, 65_537),
    "id_reserve": (10, 9, 10_000_001),
}
WHOLE = {
    "max_retries", "alert_pending", "min_free_mb", "max_size_mb", "batch_size", "busy_batch_size", "lanes",
    "max_entry_kb", "id_reserve",
}  # fmt: skip
OTHERS = {"python", "enabled", "dir", "database_url", "namespace", "namespace_change_from", "reconcile"}

URL = "postgresql://me:secret@h/d"


@pytest.mark.parametrize("value", RECONCILE)
def test_reconcile_takes_its_three_words(value: str) -> None:
    assert OutboxConfig(reconcile=value).reconcile == value
    assert OutboxConfig.from_env({"OUTBOX_RECONCILE": value}).reconcile == value


def test_another_word_for_reconcile_is_refused() -> None:
    with pytest.raises(ConfigError, match="OUTBOX_RECONCILE is 'always' .allowed: failover, auto, manual"):
        OutboxConfig.from_env({"OUTBOX_RECONCILE": "always"})


def test_every_setting_is_covered_here() -> None:
    assert {field.name for field in fields(OutboxConfig)} == NUMBERS.keys() | OTHERS


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_in_range_is_taken(name: str) -> None:
    good = NUMBERS[name][0]
    assert getattr(OutboxConfig(**{name: good}), name) == good


@pytest.mark.parametrize("name", NUMBERS)
def test_other_numbers_are_refused_by_name_value_and_range(name: str) -> None:
    _, low, high = NUMBERS[name]
    bad = [low, high, float("nan"), float("inf"), "5", None, True, *([1.5] if name in WHOLE else [])]
    for value in bad:
        kind = "a whole number" if name in WHOLE else "a number"
        with pytest.raises(ConfigError, match=rf"{name} is {re.escape(repr(value))} \(allowed: {kind} from .* to "):
            OutboxConfig(**{name: value})


@pytest.mark.parametrize("setting", [{"max_retries": 10**400}, {"namespace": 5}], ids=["huge", "namespace"])
def test_a_value_of_a_wild_size_or_type_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        OutboxConfig(**setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"enabled": "yes"}, "enabled is 'yes' .allowed: true or false"),
        ({"enabled": 1}, "enabled is 1 .allowed: true or false"),
        ({"dir": ""}, "dir is '' .allowed: a path"),
        ({"dir": None}, "dir is None .allowed: a path"),
        ({"dir": "a\0b"}, r"dir is 'a\\x00b'"),
        ({"namespace": ""}, "namespace is '' .allowed: 1 to 200 characters"),
        ({"namespace": "a" * 201}, "namespace is 'aaa.*allowed: 1 to 200 characters"),
        ({"namespace": "\udcff"}, "namespace is '.udcff' .allowed: 1 to 200 characters"),
        ({"namespace_change_from": ""}, "namespace_change_from is '' .allowed: 1 to 200 characters"),
        ({"database_url": "mysql://u@h/d"}, "database_url has scheme 'mysql' .allowed: postgresql://"),
        ({"database_url": "postgresql://"}, "database_url names no host and no database .allowed: postgresql://"),
        ({"database_url": ""}, "database_url has no scheme .allowed: postgresql://"),
        ({"backoff_base": 20.0}, r"backoff_base is 20.0 .allowed: at most backoff_cap \(15.0\)"),
    ],
)
def test_other_settings_are_refused_by_name_and_value(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OutboxConfig(**setting)


def test_a_path_is_taken_as_text(tmp_path: Path) -> None:
    assert OutboxConfig(dir=tmp_path).dir == str(tmp_path)  # type: ignore[arg-type]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        OutboxConfig().batch_size = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h/d",
        "postgres://u:p@h:1/d",
        "postgresql+psycopg2://h/d",
        "postgresql://u:p%40%2F@h/d",
        "postgresql://u:p@h1:1,h2:2/d",
        "postgresql://u:p@[::1]:5432/d",
        "postgresql:///d?host=/tmp",
        "postgresql://u@/d",
        "postgresql://h/d?user=a@b",
        "postgresql://h?user=a@b",
        "postgresql://h/d?options=x://y",
    ],
)
def test_postgresql_urls_are_taken(url: str) -> None:
    assert check_database_url(url) == url
    assert OutboxConfig(database_url=url).database_url == url


def test_a_password_is_not_shown() -> None:
    assert "s3cret" not in repr(OutboxConfig(database_url="postgresql://u:s3cret@h/d"))
    with pytest.raises(ConfigError) as caught:
        OutboxConfig(database_url="mysql://u:s3cret@h/d")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["u:s3cret@h/d", "host=h dbname=d password=s3cret"])
def test_a_password_in_a_value_without_scheme_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OutboxConfig.from_env({"DATABASE_URL": url})
    assert "s3cret" not in str(caught.value)


def test_a_password_before_a_separator_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        OutboxConfig.from_env({"DATABASE_URL": "u:s3cret@h/d?at=http://x"})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["u:s3cret@1@h/d", "u:s3cret/1@h/d", "u:12/s3cret@h/d", "u:1@s3cret:p:q/d", "h:s3cret/d"]
)
def test_a_password_that_would_be_read_as_a_host_is_refused_unseen(url: str) -> None:
    with pytest.raises(ConfigError, match="a host or port that cannot be read.*write @ as %40") as caught:
        OutboxConfig(database_url=f"postgresql://{url}")
    assert "s3cret" not in str(caught.value)


def test_defaults_hold_without_environment() -> None:
    config = OutboxConfig.from_env({})
    assert config == OutboxConfig()
    assert (config.enabled, config.dir, config.sync_interval) == (True, "data/outbox", 5.0)
    assert (config.max_retries, config.retention_hours, config.alert_pending) == (10, 168.0, 10_000)


def test_every_setting_has_its_variable() -> None:
    config = OutboxConfig.from_env(
        {
            "OUTBOX_ENABLED": "No",
            "OUTBOX_DIR": " /srv/outbox ",
            "OUTBOX_SYNC_INTERVAL": "2.5",
            "OUTBOX_MAX_RETRIES": "3",
            "OUTBOX_RETENTION_HOURS": "24",
            "OUTBOX_ALERT_PENDING": "99",
            "OUTBOX_MIN_FREE_MB": "7",
            "OUTBOX_MAX_SIZE_MB": "100",
            "OUTBOX_BATCH_SIZE": "50",
            "OUTBOX_NAMESPACE": "desk",
            "OUTBOX_CONNECT_TIMEOUT": "",
            "OUTBOX_OPERATIONS": "my.module:operations",
            "DATABASE_URL": "postgresql://h/d",
            "HOME": "/root",
        }
    )
    assert config == OutboxConfig(
        enabled=False,
        dir="/srv/outbox",
        sync_interval=2.5,
        max_retries=3,
        retention_hours=24.0,
        alert_pending=99,
        min_free_mb=7,
        max_size_mb=100,
        batch_size=50,
        namespace="desk",
        database_url="postgresql://h/d",
    )
    assert config.database_url == "postgresql://h/d"


def test_the_process_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_BATCH_SIZE", "77")
    assert OutboxConfig.from_env().batch_size == 77


@pytest.mark.parametrize("text", ["1", "true", "YES", "on"])
def test_word_for_true_enables_the_outbox(text: str) -> None:
    assert OutboxConfig.from_env({"OUTBOX_ENABLED": text}, enabled=True).enabled
    assert OutboxConfig.from_env({"OUTBOX_ENABLED": text}).enabled


@pytest.mark.parametrize("text", ["0", "False", "no", "OFF"])
def test_word_for_false_disables_the_outbox(text: str) -> None:
    assert not OutboxConfig.from_env({"OUTBOX_ENABLED": text}).enabled


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("OUTBOX_ENABLED", "maybe", "OUTBOX_ENABLED is 'maybe' .allowed: true or false"),
        ("OUTBOX_BATCH_SIZE", "many", "OUTBOX_BATCH_SIZE is 'many' .allowed: a whole number"),
        ("OUTBOX_BATCH_SIZE", "1.5", "OUTBOX_BATCH_SIZE is '1.5' .allowed: a whole number"),
        ("OUTBOX_BATCH_SIZE", "0", "OUTBOX_BATCH_SIZE is 0 .allowed: a whole number from 1 to 100000"),
        ("OUTBOX_SYNC_INTERVAL", "soon", "OUTBOX_SYNC_INTERVAL is 'soon' .allowed: a number"),
        ("OUTBOX_SYNC_INTERVAL", "nan", "OUTBOX_SYNC_INTERVAL is nan .allowed: a number from"),
        ("OUTBOX_RETENTION_HOURS", "-1", "OUTBOX_RETENTION_HOURS is -1.0 .allowed: a number from 0"),
        ("OUTBOX_BACKOFF_BASE", "16", r"OUTBOX_BACKOFF_BASE is 16.0 .allowed: at most OUTBOX_BACKOFF_CAP \(15.0"),
        ("OUTBOX_BACKOFF_CAP", "0.05", r"OUTBOX_BACKOFF_BASE is 0.1 .allowed: at most OUTBOX_BACKOFF_CAP \(0.05"),
        ("DATABASE_URL", "sqlite:///x", "DATABASE_URL has scheme 'sqlite' .allowed: postgresql://"),
        ("OUTBOX_BATCHSIZE", "5", "unknown setting OUTBOX_BATCHSIZE .did you mean OUTBOX_BATCH_SIZE.."),
        ("OUTBOX_DATABASE_URL", "postgresql://h/d", "unknown setting OUTBOX_DATABASE_URL .did you mean DATABASE_URL.."),
    ],
)
def test_a_bad_variable_is_refused_by_name_value_and_range(variable: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OutboxConfig.from_env({variable: text})


def test_an_override_wins_even_over_a_bad_variable() -> None:
    assert OutboxConfig.from_env({"OUTBOX_BATCH_SIZE": "many"}, batch_size=5).batch_size == 5


def test_a_bad_override_is_named_by_its_field() -> None:
    with pytest.raises(ConfigError, match="^batch_size is 0"):
        OutboxConfig.from_env({"OUTBOX_MAX_RETRIES": "5"}, batch_size=0)


def test_variable_of_a_setting_begins_with_outbox_except_the_url() -> None:
    assert variable_name("database_url") == "DATABASE_URL"
    assert variable_name("sync_interval") == "OUTBOX_SYNC_INTERVAL"


@pytest.mark.parametrize(
    ("url", "named"),
    [(None, "is None"), (5, "is of type int"), (b"postgresql://h/d", "is of type bytes"), (make_url(URL), "type URL")],
)
def test_url_that_is_no_text_is_refused_by_its_type(url: object, named: str) -> None:
    with pytest.raises(ConfigError, match=f"^database_url {named}|^database_url is of {named}") as caught:
        check_database_url(url)
    assert "allowed: a text postgresql://" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "setting", [{"namespace": "n"}, {"namespace": "n" * 200}, {"backoff_base": 2, "backoff_cap": 2}]
)
def test_settings_at_their_bounds_are_taken(setting: dict[str, Any]) -> None:
    config = OutboxConfig(**setting)
    assert {name: getattr(config, name) for name in setting} == setting


SERVICES = {
    "OUTBOX_SERVICE_HOST": "10.3.1.6",
    "OUTBOX_PORT": "tcp://10.3.1.6:80",
    "OUTBOX_RELAY_SERVICE_HOST": "10.3.1.7",
    "OUTBOX_RELAY_SERVICE_PORT": "9102",
    "OUTBOX_RELAY_SERVICE_PORT_METRICS": "9102",
    "OUTBOX_RELAY_PORT": "tcp://10.3.1.7:9102",
    "OUTBOX_RELAY_PORT_9102_TCP": "tcp://10.3.1.7:9102",
    "OUTBOX_RELAY_PORT_9102_TCP_PROTO": "tcp",
    "OUTBOX_RELAY_PORT_9102_TCP_PORT": "9102",
    "OUTBOX_RELAY_PORT_9102_TCP_ADDR": "10.3.1.7",
    "OUTBOX_DNS_PORT_53_UDP_ADDR": "10.3.1.8",
}


def test_variables_of_kubernetes_services_are_ignored() -> None:
    assert OutboxConfig.from_env(SERVICES) == OutboxConfig()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("OUTBOX_LANE", "OUTBOX_LANES"),
        ("OUTBOX_BATCH", "OUTBOX_BATCH_SIZE"),
        ("OUTBOX_RETENTION", "OUTBOX_RETENTION_HOURS"),
        ("OUTBOX_MAX_RETRY", "OUTBOX_MAX_RETRIES"),
        ("OUTBOX_OPERATION", "OUTBOX_OPERATIONS"),
        ("OUTBOX_DB_URL", "DATABASE_URL"),
        ("outbox_dir", "OUTBOX_DIR"),
    ],
)
def test_misspelt_setting_is_refused_with_the_one_that_was_meant(name: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OutboxConfig.from_env({**SERVICES, name: "s3cret"})
    assert str(caught.value) == f"unknown setting {name} (did you mean {meant}?)"


@pytest.mark.parametrize(
    "name",
    [
        "OUTBOX_PORT",
        "OUTBOX_RELAY_PORT",
        "OUTBOX_SUPPORT",
        "OUTBOX_SERVICE",
        "OUTBOX_LOG_LEVEL",
        "OUTBOX_TABLE",
        "OUTBOX_",
    ],
)
def test_unknown_variable_is_a_warning_without_its_value(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert OutboxConfig.from_env({**SERVICES, name: "s3cret"}) == OutboxConfig()
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} is set, and no setting has this name: it is ignored"
    ]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "psycopg2", "pg8000", "psycopg_async"])
@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_url_with_any_driver_of_sqlalchemy_is_taken(scheme: str, driver: str) -> None:
    url = f"{scheme}+{driver}://u:p@h/d"
    assert OutboxConfig.from_env({"DATABASE_URL": url}).database_url == url


@pytest.mark.parametrize("scheme", ["postgresql+", "postgresqlx", "mysql+asyncpg", "postgresql+a+b"])
def test_url_with_another_scheme_is_refused_unseen(scheme: str) -> None:
    with pytest.raises(ConfigError, match=f"DATABASE_URL has scheme {re.escape(repr(scheme))}") as caught:
        OutboxConfig.from_env({"DATABASE_URL": f"{scheme}://u:s3cret@h/d"})
    assert "s3cret" not in str(caught.value)


def test_variable_is_named_only_where_the_environment_was_read() -> None:
    assert OutboxConfig().named("max_size_mb") == "max_size_mb"
    read = OutboxConfig.from_env({}, max_size_mb=5)
    assert (read.named("max_size_mb"), read.named("lanes")) == ("max_size_mb", "OUTBOX_LANES")
    assert read == OutboxConfig(max_size_mb=5)
