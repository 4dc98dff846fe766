"""OutboxConfig: every setting, validated at birth.  The environment is read by `from_env` and nowhere else."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from .errors import ConfigError
from .log import Log

_log = Log("outbox.config")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*\Z")
# With any driver of SQLAlchemy: an engine's own URL serves, and the relay connects with psycopg2 all the same.
_POSTGRESQL = re.compile(r"postgres(ql)?(\+[a-z0-9_]+)?\Z")
_HOST = r"(\[[0-9A-Fa-f:.%]*\]|[^:@\[\]]*)(:\d*)?"
_HOSTS = re.compile(rf"{_HOST}(,{_HOST})*\Z")

# What Kubernetes and Docker links put into the environment for each service.
_SERVICE = re.compile(
    r"OUTBOX_(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_\d+_(?:TCP|UDP|SCTP)"
    r"(?:_(?:PROTO|PORT|ADDR))?)\Z"
)
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)

# When to put back by itself entries that PostgreSQL lost: see `OutboxConfig.reconcile`.
RECONCILE = ("failover", "auto", "manual")

# Share of equal letters from which a name counts as misspelt: BATCH and RETENTION do, PORT and LOG_LEVEL do not.
_RESEMBLES = 0.65

# (lowest, highest) allowed, both included.
_RANGES: Mapping[str, tuple[float, float]] = {
    "sync_interval": (0.001, 3600),
    "max_retries": (0, 1_000_000),
    "retention_hours": (0, 24 * 3660),
    "alert_pending": (1, 10**12),
    "min_free_mb": (0, 10**9),
    "max_size_mb": (1, 64 * 1024),
    "batch_size": (1, 100_000),
    "busy_batch_size": (1, 100_000),
    "lanes": (1, 16),
    "connect_timeout": (1, 3600),
    "stall_timeout": (0.05, 86_400),
    "backoff_base": (0.001, 3600),
    "backoff_cap": (0.001, 86_400),
    "stuck_after": (0.01, 86_400),
    "max_entry_kb": (1, 65_536),
    "id_reserve": (10, 10_000_000),
}


@dataclass(frozen=True, kw_only=True)
class OutboxConfig:
    """All settings.  Each field is `OUTBOX_<NAME>` in the environment (`database_url` is `DATABASE_URL`).

    A value that is not allowed raises `ConfigError` with the field, the value and what is allowed.
    """

    # False: integrations leave the engine exactly as it was.
    enabled: bool = True
    # Directory of the store; made on first use, mode 0700.
    dir: str = "data/outbox"
    # Seconds: upper bound on noticing work that another process enqueued.
    sync_interval: float = 5.0
    # How often one entry may be rejected for a reason that could pass before it becomes a dead letter.
    max_retries: int = 10
    # Hours that settled entries stay in the ledger.
    retention_hours: float = 168.0
    # `status` is degraded above this many pending entries.
    alert_pending: int = 10_000
    # MiB: `status` is degraded below this much free disk; a sixteenth of it is kept for draining.
    min_free_mb: int = 256
    # MiB: quota of the store.  Enqueueing stops at 85 % of it, draining does not.
    max_size_mb: int = 8192
    # Entries per PostgreSQL transaction; a group is never split.
    batch_size: int = 1000
    # The same while the program enqueues, which then waits less; where it is not below batch_size, nothing changes.
    busy_batch_size: int = 50
    # Connections that deliver side by side, by ordering key: within a key the order is kept, across keys it is not.
    lanes: int = 1
    # libpq or SQLAlchemy URL of PostgreSQL.  Kept out of repr: it may hold a password.
    database_url: str | None = field(default=None, repr=False)
    # Scope of idempotency keys; None: the store's own id.  Stores that share it share their keys.
    namespace: str | None = None
    # The namespace that the store has so far, to confirm that `namespace` is another one now.
    namespace_change_from: str | None = None
    # Seconds for one connection attempt to one host.
    connect_timeout: float = 5.0
    # Seconds for one batch before the socket is shut: a stalled server can still acknowledge TCP.
    stall_timeout: float = 30.0
    # Seconds: full-jitter backoff after the n-th failure is uniform in [0, min(cap, base * 2**(n-1))].
    backoff_base: float = 0.1
    backoff_cap: float = 15.0
    # Seconds without progress, while entries wait and PostgreSQL answers, before the relay counts as stuck.
    stuck_after: float = 60.0
    # The interpreter that verifies a store, where this program's executable is no Python; None: it forks instead.
    python: str | None = None
    # KiB: largest encoded entry.
    max_entry_kb: int = 1024
    # Ids that a wrapped manager keeps in reserve for each table of which its callers get ids.
    id_reserve: int = 5000
    # When entries that PostgreSQL lost are delivered again.  auto: at once; manual: when an operator orders it;
    # failover: as auto where the URL names several hosts, else as manual.
    reconcile: str = "failover"

    # The settings that were read from the environment, where their variables count; not a setting itself.
    _read: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in _RANGES:
                self._check_number(item.name, value, whole=item.type == "int")
        if not isinstance(self.enabled, bool):
            raise ConfigError(f"enabled is {self.enabled!r:.100}", hint="allowed: true or false")
        if not isinstance(self.dir, (str, os.PathLike)) or not str(self.dir) or "\0" in str(self.dir):
            raise ConfigError(f"dir is {self.dir!r:.100}", hint="allowed: a path")
        object.__setattr__(self, "dir", os.fspath(self.dir))
        for name in ("namespace", "namespace_change_from"):
            value = getattr(self, name)
            if value is not None and not _is_name(value):
                raise ConfigError(f"{name} is {value!r:.100}", hint="allowed: 1 to 200 characters")
        if self.python is not None and not (isinstance(self.python, str) and self.python):
            raise ConfigError(f"python is {self.python!r:.100}", hint="allowed: the path of a Python interpreter")
        if self.reconcile not in RECONCILE:
            raise ConfigError(f"reconcile is {self.reconcile!r:.100}", hint=f"allowed: {', '.join(RECONCILE)}")
        if self.database_url is not None:
            check_database_url(self.database_url)
        if self.backoff_base > self.backoff_cap:
            raise ConfigError(
                f"backoff_base is {self.backoff_base}", hint=f"allowed: at most backoff_cap ({self.backoff_cap})"
            )

    def _check_number(self, name: str, value: Any, *, whole: bool) -> None:
        low, high = _RANGES[name]
        kind = "a whole number" if whole else "a number"
        right = isinstance(value, int) if whole else isinstance(value, (int, float))
        # Compared first: NaN is in no range, and an integer may be too large for a float.
        if not right or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{name} is {value!r:.100}", hint=f"allowed: {kind} from {low:g} to {high:g}")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> OutboxConfig:
        """Settings from the environment (`os.environ` unless given); `overrides` win.

        Unset and empty variables keep their default.  Raises `ConfigError` naming the variable, its value and what
        is allowed; also for an `OUTBOX_*` variable that resembles a setting's.  Others that no setting has are logged
        as a warning, unless Kubernetes made them of the name of a Service.
        """
        env = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for item in fields(cls):
            variable = variable_name(item.name)
            text = env.get(variable, "").strip()
            if text and item.name not in overrides:
                values[item.name] = _parse(variable, text, str(item.type))
        for name in unknown_variables(env):
            _log.warning("%(variable)s is set, and no setting has this name: it is ignored", variable=name)
        try:
            made = cls(**values, **overrides)
        except ConfigError as exc:
            name = exc.message.partition(" ")[0]
            if name in overrides:
                raise
            hint = exc.hint
            if "backoff_cap" not in overrides:
                hint = hint.replace("backoff_cap", variable_name("backoff_cap"))
            raise ConfigError(exc.message.replace(name, variable_name(name), 1), hint=hint) from None
        object.__setattr__(made, "_read", frozenset(item.name for item in fields(cls)) - overrides.keys())
        return made

    def named(self, setting: str) -> str:
        """A setting's name for messages: its variable where the environment was read, else its field."""
        return variable_name(setting) if setting in self._read else setting


def _is_name(value: object) -> bool:
    """Whether it is 1 to 200 characters that have bytes: lone surrogates have none."""
    return isinstance(value, str) and 0 < len(value) <= 200 and value == value.encode(errors="ignore").decode()


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """The `OUTBOX_*` variables that no setting has, nor resembles.

    Raises `ConfigError` for one that resembles a setting's: it is most likely misspelt.
    """
    # The commands read where the host declares its operations.
    known = {"OUTBOX_OPERATIONS", *(variable_name(item.name) for item in fields(OutboxConfig))}
    meant = {name.removeprefix("OUTBOX_"): name for name in known}
    unknown = []
    for name, value in sorted(environ.items()):
        if name in known or not name.upper().startswith("OUTBOX_") or _is_service(name, value):
            continue
        short = name.upper().removeprefix("OUTBOX_")
        # Typing errors are rare in the first letter: TABLE, of another library, is not ENABLED.
        alike = [one for one in meant if one[0] == short[:1]]
        near = difflib.get_close_matches(short, alike, 1, _RESEMBLES)
        if near:
            raise ConfigError(f"unknown setting {name}", hint=f"did you mean {meant[near[0]]}?")
        unknown.append(name)
    return unknown


def _is_service(name: str, value: str) -> bool:
    """Whether Kubernetes set the variable, for a Service whose name begins with `outbox`."""
    return bool(_SERVICE.match(name) or (name.endswith("_PORT") and _SERVICE_URL.match(value)))


def variable_name(setting: str) -> str:
    """The environment variable of a setting."""
    return "DATABASE_URL" if setting == "database_url" else f"OUTBOX_{setting.upper()}"


def check_database_url(url: object) -> str:
    """`url` if it names a PostgreSQL database; raises `ConfigError`, without repeating a password."""
    if not isinstance(url, str):
        raise ConfigError(
            "database_url is None" if url is None else f"database_url is of type {type(url).__qualname__}",
            hint="allowed: a text postgresql://user@host:port/database; "
            "of SQLAlchemy's URL: url.render_as_string(hide_password=False)",
        )
    scheme, separator, rest = url.partition("://")
    # Without a scheme the whole value may be a password.
    scheme = scheme if separator and _SCHEME.match(scheme) else ""
    if separator and _POSTGRESQL.match(scheme) and not rest:
        raise ConfigError(
            "database_url names no host and no database", hint="allowed: postgresql://user@host:port/database"
        )
    if not separator or not _POSTGRESQL.match(scheme):
        has = f"scheme {scheme!r:.100}" if scheme else "no scheme"
        raise ConfigError(f"database_url has {has}", hint="allowed: postgresql://user@host:port/database")
    # A password with these characters would be read as host or port, and then be quoted in the driver's errors.
    authority, _, path = rest.partition("?")[0].partition("/")
    hosts = authority.rpartition("@")[2]
    if "@" in path or authority.count("@") > 1 or not _HOSTS.match(hosts):
        raise ConfigError(
            "database_url has a host or port that cannot be read",
            hint="write @ as %40, / as %2F, : as %3A in user and password",
        )
    for port in re.findall(r":(\d+)(?:,|\Z)", hosts):
        if not 0 < int(port) <= 65_535:
            raise ConfigError(f"database_url has port {port}", hint="allowed: 1 to 65535")
    return url


def _parse(variable: str, text: str, kind: str) -> Any:
    if kind == "bool":
        if text.lower() not in _TRUE | _FALSE:
            raise ConfigError(f"{variable} is {text!r:.100}", hint="allowed: true or false")
        return text.lower() in _TRUE
    if kind in ("int", "float"):
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError:
            wanted = "a whole number" if kind == "int" else "a number"
            raise ConfigError(f"{variable} is {text!r:.100}", hint=f"allowed: {wanted}") from None
    return text
