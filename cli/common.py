"""What the commands share: their options, and one sentence instead of a traceback."""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click

from outbox import ConfigError, Outbox, OutboxConfig, OutboxError, OutboxStatus
from outbox.config import unknown_variables
from outbox.log import without_password as without_password

P = ParamSpec("P")
R = TypeVar("R")

_AGO = re.compile(r"(\d+)([mhd])\Z")
# Options that are named otherwise than the setting that they stand for.
_OPTIONS = {"sync_interval": "interval"}
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}

directory_option = click.option(
    "--dir", "directory", metavar="PATH", help="The store's directory; default: OUTBOX_DIR, else data/outbox."
)


if TYPE_CHECKING:
    _NumberType = click.ParamType[float]
else:
    _NumberType = click.ParamType  # not generic before click 8.2


class Number(_NumberType):
    """A number of an option.  What is allowed is said as for settings; NaN and infinity are not."""

    name = "number"

    def __init__(self, low: float = -math.inf, high: float = math.inf, *, whole: bool = False) -> None:
        self._low, self._high, self._whole = low, high, whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = int(value) if self._whole else float(value)
            if self._low <= number <= self._high and math.isfinite(number):
                return number
        except (ValueError, OverflowError):
            pass
        kind = "a whole number" if self._whole else "a number"
        if math.isfinite(self._high):
            kind += f" from {self._low} to {self._high}"
        elif math.isfinite(self._low):
            kind += f", {self._low} or more"
        raise click.BadParameter(f"{str(value)[:100]!r} (allowed: {kind})", ctx, param)


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
    type=Number(0),
    metavar="SECONDS",
    default=60.0,
    show_default=True,
    help="Give up after this many seconds in which nothing was delivered.",
)


def since_when(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """The moment of an option like 24h, 7d or a date in UTC."""
    if value is None:
        return None
    if ago := _AGO.match(value):
        with suppress(OverflowError):
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


class ReaderLeft(click.ClickException):
    """The output's reader has ended (`| head`): the code that shells give to a program that SIGPIPE ends.

    A health or a failure would be read into 1 or 2.
    """

    exit_code = 141

    def __init__(self) -> None:
        super().__init__("the reader of the output has ended")
        with suppress(AttributeError, OSError, ValueError):
            # Else the interpreter would complain when it flushes the rest at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def show(self, file: IO[Any] | None = None) -> None:
        del file


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
    try:
        return OutboxConfig.from_env(**given)
    except ConfigError as exc:
        name, _, rest = exc.message.partition(" ")
        if name not in given:
            raise
        option = _OPTIONS.get(name, name.replace("_", "-"))
        raise ConfigError(f"--{option} {rest}", hint=exc.hint) from None


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
        except BrokenPipeError as exc:
            raise ReaderLeft from exc
        except UnicodeEncodeError as exc:
            _refuse(f"{str(exc.object)[:100]!r} is not valid text", exc)
        except PermissionError as exc:
            where = exc.filename if exc.filename is not None else "the store"
            _refuse(f"no permission for {where}: run this as the user who owns the outbox", exc)
        except OSError as exc:
            where = f" ({exc.filename})" if exc.filename is not None else ""
            _refuse(f"{exc.strerror or exc}{where}", exc)
        except KeyboardInterrupt as exc:
            raise Interrupted("nothing is lost") from exc

    return guarded


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError within the block names `path`, not a temporary file beside it."""
    try:
        yield
    except OSError as exc:
        raise type(exc)(exc.errno, exc.strerror, str(path)) from exc


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
