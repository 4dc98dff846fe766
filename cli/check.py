"""`atb outbox check`: whether a manager can be made durable, method by method, before it is wired."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from typing import Any

import click
import psycopg2
from rich.table import Column, Table
from rich.text import Text
from sqlalchemy import Engine, create_engine

from outbox import ConfigError
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager, ManagerRead
from outbox.integrations.manager.classes import stood_for
from outbox.integrations.manager.host import class_made_by
from outbox.integrations.preflight.preflight import Fit, Kind, look
from outbox.postgres.address import libpq_url

from .common import in_one_sentence, redacted, without_password
from .declared import load, load_operations
from .screen import Lines

_STYLES = {Kind.REFUSED: "bold red", Kind.PASSES: "dim", Kind.DURABLE: "green", Kind.THROUGH: "green"}
_CONNECT_S = 5
_NO_CLASS = "name the manager's class; functions have no manager: docs/how-to/plain-sql.md"


@click.command()
@click.argument("manager")
@click.option(
    "--operations",
    metavar="MODULE:NAME",
    envvar="OUTBOX_OPERATIONS",
    help="Where your program declares its operations; default: OUTBOX_OPERATIONS, else TRADING_OPERATIONS.",
)
@click.option("--database-url", metavar="URL", help="Look for the tables in the catalog of this database, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.pass_context
@in_one_sentence
def check(
    context: click.Context, manager: str, operations: str | None, database_url: str | None, as_json: bool
) -> None:
    """Show whether MANAGER (MODULE:CLASS) can be wired, by method.

    Reads the class and its source; calls none of its methods and makes no object of it.  Exit code 0: it fits.  1: it
    fits with findings, such as undeclared methods that look like writes.  2: it is refused, or could not be loaded.
    """
    with redirect_stdout(sys.stderr):
        manager_class, made = _manager_at(manager)
        declared = TRADING_OPERATIONS if operations is None else load_operations(operations, also=(ManagerRead,))
    with _engine(database_url) as engine:
        fit = look(manager_class, declared, manager=made, engine=engine)
    if as_json:
        shown = {**asdict(fit), "fits": fit.fits, "warnings": fit.warnings, "summary": fit.summary}
        click.echo(json.dumps(redacted(shown), indent=2))
    else:
        _show(fit)
    context.exit(2 if not fit.fits else 1 if fit.warnings else 0)


def _manager_at(where: str) -> tuple[type, Any]:
    """A manager's class and, where the module made one, an object of it.  Raises `ConfigError`."""
    found = load(where, "MANAGER", "myengine.database:DatabaseManager")
    if hasattr(found, "session_factory") and not isinstance(found, type):
        return stood_for(type(found)) or type(found), found
    made = class_made_by(found)
    if made is None:
        raise ConfigError(f"MANAGER is {where!r}, which is no class", hint=_NO_CLASS)
    if issubclass(made, DurableDatabaseManager):
        stands_for = stood_for(made)
        if stands_for is None:
            raise ConfigError(f"MANAGER is {where!r}, which is durable already", hint="name the class that it wraps")
        return stands_for, None
    return made, None


@contextmanager
def _engine(url: str | None) -> Iterator[Engine | None]:
    """An engine that reads; None without a URL.  Raises `ConfigError`."""
    if url is None:
        yield None
        return
    try:
        target = libpq_url(url)
    except ConfigError as exc:
        raise ConfigError(exc.message.replace("database_url", "--database-url", 1), hint=exc.hint) from None
    # As the relay connects: SQLAlchemy reads URLs of several hosts in another way.
    engine = create_engine(
        "postgresql+psycopg2://",
        creator=lambda: psycopg2.connect(target, connect_timeout=_CONNECT_S),
        execution_options={"postgresql_readonly": True},
    )
    try:
        yield engine
    finally:
        engine.dispose()


def _show(fit: Fit) -> None:
    console = Lines(highlight=False)
    table = Table(Column("method", overflow="fold"), "its calls", Column("why, and what to do", overflow="fold"))
    for method in fit.methods:
        reason = "" if method.kind is Kind.THROUGH else method.reason
        said = "; ".join(part for part in (reason, method.warning) if part)
        # As Text, since a host's names may look like markup.
        table.add_row(method.name, Text(method.shown, _STYLES.get(method.kind, "")), Text(without_password(said)))
    console.print(table)
    for fault in fit.faults:
        console.print(Text(f"!! {without_password(fault)}", "red"), soft_wrap=True)
    for unseen in fit.unseen:
        console.print(Text(f"!  {without_password(unseen)}", "yellow"), soft_wrap=True)
    verdict = "refused" if not fit.fits else "fits, with warnings" if fit.warnings else "fits"
    console.print(Text(f"{verdict}: {without_password(fit.summary)}"), soft_wrap=True)
