"""Shared by the commands: their options, and errors in one sentence instead of a traceback."""

from __future__ import annotations

import functools
import logging
import math
import os
import pwd
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click

from outbox import ConfigError, Outbox, OutboxConfig, OutboxError, OutboxStatus, TargetUnavailable
from outbox.config import unknown_variables
from outbox.log import redacted as redacted
from outbox.log import without_password as without_password
from outbox.words import printable

from .signals import unwound_by_signals

P = ParamSpec("P")
R = TypeVar("R")

_LENGTH = re.compile(r"(\d+)([smhd])\Z")
# Options that are named otherwise than the setting that they stand for.
_OPTIONS = {"sync_interval": "interval"}
_PRINTERS = ("click", "rich")
_POSTGRESQL_AWAY = "start PostgreSQL or correct DATABASE_URL, then run it again; nothing is lost"
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
# What `length_of` reads, for people.
LENGTHS = "90s, 30m, 2h, 7d"

directory_option = click.option(
    "--dir", "directory", metavar="PATH", help="The store's directory; default: OUTBOX_DIR, else data/outbox."
)


if TYPE_CHECKING:
    _NumberType = click.ParamType[float]
    _TextType = click.ParamType[str]
else:
    _NumberType = _TextType = click.ParamType  # not generic before click 8.2


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


class Text(_TextType):
    """A text that is compared with entries, or kept: it is UTF-8, also under a locale that has no such characters."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        given = str(value)
        try:
            # What a locale lacks comes as the bytes themselves.
            return given.encode("utf-8", "surrogateescape").decode()
        except UnicodeError:
            raise click.BadParameter(f"{given[:100]!r} is not valid text (give it in UTF-8)", ctx, param) from None


database_option = click.option("--database-url", metavar="URL", help="PostgreSQL; default: DATABASE_URL.")
operations_option = click.option(
    "--operations",
    metavar="MODULE:NAME",
    envvar="OUTBOX_OPERATIONS",
    help="Where your program declares its operations: an iterable, or a callable that returns one; "
    "default: OUTBOX_OPERATIONS.",
)
timeout_option = click.option(
    "--timeout",
    type=Number(0),
    metavar="SECONDS",
    default=60.0,
    show_default=True,
    help="Give up after this many seconds in which nothing was delivered.",
)


def length_of(text: str) -> timedelta | None:
    """A length of time such as those in `LENGTHS`; None for anything else."""
    found = _LENGTH.match(text)
    if found is None or len(found[1]) > 18:
        return None
    try:
        return timedelta(**{_UNITS[found[2]]: int(found[1])})
    except OverflowError:
        return None


def since_when(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """The moment of an option like 2h, 7d or a date in UTC."""
    if value is None:
        return None
    if (ago := length_of(value)) is not None:
        with suppress(OverflowError):
            return datetime.now(UTC) - ago
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value[:100]!r} (allowed: {LENGTHS}, or 2026-11-27T08:00)", context, parameter
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def readable(text: str) -> str:
    """A line for people: without passwords, and without what an entry's text could do to a terminal."""
    return printable(without_password(text))


def say(sentence: str, *, err: bool = False, indent: int = 0, color: bool | None = None, **style: Any) -> None:
    """Print a line without passwords: on a terminal folded between words, elsewhere as it is."""
    say_redacted(without_password(sentence), err=err, indent=indent, color=color, **style)


def say_redacted(sentence: str, *, err: bool = False, indent: int = 0, color: bool | None = None, **style: Any) -> None:
    """The same for a line whose values are redacted already."""
    stream = sys.stderr if err else sys.stdout
    width = shutil.get_terminal_size().columns if stream is not None and stream.isatty() else None
    for part in _folded(printable(sentence), width, indent):
        # Without a style click would still add the code that ends one.
        click.echo(click.style(part, **style) if style else part, err=err, color=color)


def _folded(text: str, width: int | None, indent: int) -> list[str]:
    if width is None or len(text) <= width:
        return [text]
    import textwrap

    # A text of PostgreSQL may have lines of its own.  A path is copied in one piece.
    return textwrap.wrap(
        text,
        max(width, indent + 10),
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
        expand_tabs=False,
    )


class _Said(click.ClickException):
    """An error in one sentence, folded on a terminal."""

    def show(self, file: IO[Any] | None = None) -> None:
        if file is None:
            say(f"Error: {self.format_message()}", err=True)
        else:
            super().show(file)


class Refused(_Said):
    """An error that ends a command with exit code 2."""

    exit_code = 2


class WrongUse(_Said, click.UsageError):
    """A wrong option or argument."""


class Interrupted(click.ClickException):
    """Ctrl-C: exit code 130, as shells expect it."""

    exit_code = 130

    def show(self, file: IO[Any] | None = None) -> None:
        del file
        say(f"interrupted: {self.message}", err=True)


class ReaderLeft(click.ClickException):
    """The output's reader has ended (`| head`): the code that shells give to a program that SIGPIPE ends.

    A health or a failure would be read into 1 or 2.
    """

    exit_code = 141

    def __init__(self) -> None:
        super().__init__("the reader of the output has ended")
        _silence_stdout()

    def show(self, file: IO[Any] | None = None) -> None:
        del file


class OutputFails(Refused):
    """The standard output cannot be written, most likely since its disk is full; what the command did is done."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"the output cannot be written: {cause.strerror or cause} (send it elsewhere, or free space)")
        _silence_stdout()


def no_permission(error: PermissionError, user: int) -> str:
    """The sentence for what this user may not do, and who may."""
    if error.filename is None:
        return "no permission for the store (run it as the user who owns the store)"
    nearest = Path(os.fsdecode(error.filename)).absolute()
    while (owner := _owner_of(nearest)) is None and nearest != nearest.parent:
        nearest = nearest.parent
    if owner == user:
        folder = nearest if nearest.is_dir() else nearest.parent
        way_out = f"it is yours: chmod -R u+rwX {folder}"
    else:
        way_out = f"{nearest} belongs to {_name_of(owner)}: run it as that user"
    return f"no permission for {error.filename} ({way_out})"


def _owner_of(path: Path) -> int | None:
    """Whose it is; None where that cannot be seen."""
    try:
        return path.stat().st_uid
    except OSError:
        return None


def _name_of(user: int | None) -> str:
    if user is None:
        return "another user"
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


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
        # Without a handler the library's warnings go to stderr, where the command prints the same error.
        if not logging.getLogger("outbox").hasHandlers():
            logging.getLogger("outbox").addHandler(logging.NullHandler())
        try:
            return command(*args, **kwargs)
        except TargetUnavailable as exc:
            _refuse(f"{exc.message} ({exc.hint or _POSTGRESQL_AWAY})", exc)
        except OutboxError as exc:
            _refuse(str(exc), exc)
        except BrokenPipeError as exc:
            raise ReaderLeft from exc
        except UnicodeEncodeError as exc:
            _refuse(f"{str(exc.object)[:100]!r} is not valid text", exc)
        except PermissionError as exc:
            _refuse(no_permission(exc, os.geteuid()), exc)
        except OSError as exc:
            if is_of_the_output(exc):
                raise OutputFails(exc) from exc
            where = f" ({exc.filename})" if exc.filename is not None else ""
            _refuse(f"{exc.strerror or exc}{where}", exc)
        except KeyboardInterrupt as exc:
            raise Interrupted("nothing is lost") from exc

    return unwound_by_signals()(guarded)


def size(count: int) -> str:
    """Bytes for people."""
    amount, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.0f} {units[0]}" if units[0] == "B" else f"{amount:.1f} {units[0]}"


def is_of_the_output(error: OSError) -> bool:
    """Whether printing failed: a full disk's error does not say which disk it was, but who was writing."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = "" if frame is None else str(frame.tb_frame.f_globals.get("__name__"))
    return error.filename is None and module.partition(".")[0] in _PRINTERS


def print_any_text() -> None:
    """Let a locale without a character show its code: a command that has done its work must not end with an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _silence_stdout() -> None:
    """Drop the rest: else the interpreter would complain when it flushes it at its end."""
    with suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(message: str, cause: Exception) -> NoReturn:
    raise Refused(readable(message)) from cause
