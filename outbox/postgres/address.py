"""Address: where to connect and as whom, in the words of libpq."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import psycopg2
import psycopg2.extensions

from ..config import check_database_url
from ..errors import ConfigError, TargetMisconfigured, TargetUnavailable
from ..log import Log

_log = Log("outbox.postgres")

# One of several hosts as SQLAlchemy names them: `?host=one:5432&host=other:5433`.
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:/,]*):(\d*)")


class Address:
    """Where to connect, and as whom; callables are asked at each new connection, so that a password may change."""

    def __init__(self, url: str | Callable[[], str], password: Callable[[], str] | None = None) -> None:
        """Raises `ConfigError`, without repeating the URL, for a text that is none or has a password beside another."""
        self._url = url if callable(url) else libpq_url(url)
        self._password = password
        if isinstance(self._url, str) and password is not None and "password" in _parsed(self._url):
            raise ConfigError("the URL has a password, and password= gives another", hint="leave it out of the URL")

    def parameters(self) -> dict[str, Any]:
        """What libpq needs for a new connection.

        Raises `TargetUnavailable` where a callable raises OSError, and `TargetMisconfigured` where it raises anything
        else or answers with something that is of no use.
        """
        url = self._url
        if callable(url):
            try:
                url = libpq_url(_asked("URL of the database", url))
            except ConfigError as exc:
                raise TargetMisconfigured(f"the URL of the database is of no use: {exc}") from exc
        given = _parsed(url)
        if self._password is not None:
            given["password"] = _asked("password", self._password)
        return given


def _asked(what: str, ask: Callable[[], str]) -> str:
    try:
        answer: object = ask()
    except OSError as exc:  # what keeps it is away
        raise TargetUnavailable(f"the {what} cannot be had: {type(exc).__name__}: {exc}") from exc
    except Exception as exc:
        raise TargetMisconfigured(f"the {what} cannot be had: {type(exc).__name__}: {exc}") from exc
    if not isinstance(answer, str) or not answer:
        shown = "empty" if answer == "" else type(answer).__name__
        raise TargetMisconfigured(f"the {what} that was asked for is {shown}", hint="allowed: a text")
    return answer


def rotated(given: dict[str, Any], by: int) -> dict[str, Any]:
    """libpq's parameters with the first `by` hosts behind the others."""
    lists = {name: given[name].split(",") for name in ("host", "hostaddr", "port") if name in given}
    return given | {name: ",".join(one[by % len(one) :] + one[: by % len(one)]) for name, one in lists.items()}


def completed(given: Mapping[str, Any]) -> Mapping[str, str] | None:
    """`given` with what libpq takes from a service, the environment and its defaults; None where it does not show.

    The driver shows that of a living connection only: of one to a port of our own, which goes no further.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as here:
            where = {"host": "127.0.0.1", "hostaddr": "127.0.0.1", "port": here.getsockname()[1]}
            raw = psycopg2.connect(**{**given, **where}, async_=True)
            try:
                found: Mapping[str, str] = raw.info.dsn_parameters
                return found
            finally:
                raw.close()
    except (OSError, psycopg2.Error):
        return None


def places(tried: Mapping[str, str]) -> frozenset[str]:
    """The databases that libpq's parameters of a connection name: host, port and database of each host."""
    hosts = (tried.get("host") or tried.get("hostaddr") or "").split(",")
    ports = (tried.get("port") or "").split(",")
    ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
    return frozenset(f"{host}:{port}/{tried.get('dbname', '')}" for host, port in zip(hosts, ports, strict=True))


def _parsed(dsn: str) -> dict[str, Any]:
    parameters: dict[str, Any] = psycopg2.extensions.parse_dsn(dsn)
    return parameters


def libpq_url(url: str) -> str:
    """`url` as libpq takes it: without SQLAlchemy's driver.  Raises `ConfigError`, without repeating the URL."""
    scheme, _, rest = check_database_url(url).partition("://")
    driver = scheme.partition("+")[2]
    if driver not in ("", "psycopg2"):
        _log.info("the URL of the database names driver %(driver)s: the outbox connects with psycopg2", driver=driver)
    dsn = f"postgresql://{_with_lists_of_hosts(rest)}"
    try:
        psycopg2.extensions.parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        raise ConfigError(
            "database_url cannot be parsed",
            hint="allowed: postgresql://user:password@host:port/database?option=value, options as libpq names them",
        ) from None
    return dsn


def _with_lists_of_hosts(rest: str) -> str:
    """A URL behind its scheme, with several hosts as libpq names them: `?host=one,other&port=5432,5433`."""
    place, _, query = rest.partition("?")
    given = parse_qsl(query, keep_blank_values=True)
    hosts = [value for name, value in given if name == "host"]
    parts = [_HOST_AND_PORT.fullmatch(host) for host in hosts]
    if not any(parts) and len(hosts) < 2:
        return rest
    others = [(name, value) for name, value in given if name != "host"]
    names = [host if part is None else part[1].strip("[]") for host, part in zip(hosts, parts, strict=True)]
    lists = [("host", ",".join(names))]
    if any(parts):
        lists.append(("port", ",".join("" if part is None else part[2] for part in parts)))
    return f"{place}?{urlencode([*others, *lists], safe=',/:', quote_via=quote)}"
