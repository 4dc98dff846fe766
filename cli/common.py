"""What the commands share: their options, and one sentence instead of a traceback."""

from __future__ import annotations

import functools
import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import IO, Any, NoReturn, ParamSpec, TypeVar

import click

from outbox import ConfigError, Outbox, OutboxConfig, OutboxError, OutboxStatus
from outbox.config import unknown_variables
from outbox.log import without_password as without_password

P = ParamSpec("P")
R = TypeVar("R")

_AGO = re.compile(r"(\d+)([mhd])\Z")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}

directory_option = click.option(
    "--dir", "directory", metavar="PATH", help="The store's directory; default: OUTBOX_DIR, else data/outbox."
)


def _seconds(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not 0 <= value < math.inf:
        raise click.BadParameter(f"{value} (allowed: a number of seconds, 0 or more)", context, parameter)
    return value


database_option = click.option(
    "--database-url", metavar="URL", help="PostgreSQL to deliver into; default: DATABASE_URL."
)
operations_option = click.option(
    "--operations",
    metavar="MODULE:NAME",
    envvar="OUTBOX_OPERATIONS",
    help="Where your program declares its operations: an iterable, or a callable that returns one.",
)
timeout_option = click.option(
    "--timeout",
    type=float,
    callback=_seconds,
    default=60.0,
    show_default=True,
    help="Give up after this many seconds in which nothing was delivered.",
)


def since_when(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """The moment of an option like 24h, 7d or a date in UTC."""
    if value is None:
        return None
    if ago := _AGO.match(value):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} (allowed: 90m, 24h, 7d, or 2026-11-27T08:00)", context, parameter
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Refused(click.ClickException):
    """An error that ends a command with exit code 2."""

    exit_code = 2


class Interrupted(click.ClickException):
    """Ctrl-C: exit code 130, as shells expect it."""

    exit_code = 130

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"interrupted: {self.message}", file=file, err=file is None)


class OneSentenceGroup(click.Group):
    """A group whose wrong options, here and in its commands, are one sentence instead of a usage text."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _brief_usage_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _brief_usage_errors():
            return super().invoke(ctx)


def settings(directory: str | None, **overrides: Any) -> OutboxConfig:
    """Settings from the environment, with the options that were given.  Raises `ConfigError`."""
    for name in unknown_variables(os.environ):
        click.echo(f"Warning: {name} is set, and no setting has this name: it is ignored", err=True)
    return logged_settings(directory, **overrides)


def logged_settings(directory: str | None, **overrides: Any) -> OutboxConfig:
    """The same for a command with a log: the library's own warnings are in it.  Raises `ConfigError`."""
    given = {name: value for name, value in {"dir": directory, **overrides}.items() if value is not None}
    return OutboxConfig.from_env(**given)


def database_of(box: Outbox) -> str:
    """The URL to deliver into.  Raises `ConfigError`."""
    url = box.config.database_url
    if url is None:
        raise ConfigError("DATABASE_URL is not set", hint="set it or give --database-url")
    # A callable that declares operations may read the same settings.
    os.environ["DATABASE_URL"] = url
    return url


def settled(now: OutboxStatus) -> int:
    """How many entries wait no more; it changes when a relay makes progress, and not when an engine enqueues."""
    return now.acknowledged - now.pending


def in_one_sentence(command: Callable[P, R]) -> Callable[P, R]:
    """Errors of the outbox and of the operating system become one sentence on stderr and exit code 2."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        # Without a handler the library's warnings go to stderr, where a command says the same in its own words.
        if not logging.getLogger("outbox").hasHandlers():
            logging.getLogger("outbox").addHandler(logging.NullHandler())
        try:
            return command(*args, **kwargs)
        except OutboxError as exc:
            _refuse(str(exc), exc)
        except BrokenPipeError:
            raise  # whoever read the output has seen enough
        except PermissionError as exc:
            where = exc.filename if exc.filename is not None else "the store"
            _refuse(f"no permission for {where}: run this as the user who owns the outbox", exc)
        except OSError as exc:
            where = f" ({exc.filename})" if exc.filename is not None else ""
            _refuse(f"{exc.strerror or exc}{where}", exc)
        except KeyboardInterrupt as exc:
            raise Interrupted("nothing is lost") from exc

    return guarded


def size(count: int) -> str:
    """Bytes for people."""
    amount, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.0f} {units[0]}" if units[0] == "B" else f"{amount:.1f} {units[0]}"


def _refuse(message: str, cause: Exception) -> NoReturn:
    raise Refused(without_password(message)) from cause


@contextmanager
def _brief_usage_errors() -> Iterator[None]:
    try:
        yield
    except click.UsageError as exc:
        if type(exc).show is not click.UsageError.show:
            raise  # the help text, shown where no command was given
        sentence = exc.format_message().rstrip(".")
        if exc.ctx is not None:
            sentence += f" (see '{exc.ctx.command_path} --help')"
        # Without a context click leaves out the usage text.
        raise click.UsageError(sentence) from exc
