"""`atb outbox learned`: what the local view has learned of a wrapped manager, and a file of it for other stores."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import orjson
from rich.table import Column, Table
from rich.text import Text

from outbox import Outbox
from outbox.integrations.view.former_learning import Kind, content, kinds

from .common import directory_option, in_one_sentence, say, settings
from .replacing import replacing
from .screen import Lines

_NOTHING = "nothing was learned yet: a wrapped manager is learned from while PostgreSQL is up"


@click.command(short_help="Show what an outage can answer, as far as it was learned.")
@directory_option
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write it to FILE (- is the standard output), for learned_from= of an engine with another store.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each kind of call.")
@click.pass_context
@in_one_sentence
def learned(context: click.Context, directory: str | None, output: Path | None, as_json: bool) -> None:
    """Show which calls of a wrapped manager were seen, and what an outage answers after them.

    A call whose kind is missing is recorded all the same; only reads after it may be refused in an outage.  Changes
    nothing in the store.  Exit code 0: shown or written.  1: nothing was learned yet.  2: the store could not be read.
    """
    with Outbox.attach(config=settings(directory), readonly=True) as box:
        written, found = content(box), kinds(box)
    if written is None:
        say(_NOTHING, err=True)
        context.exit(1)
    if str(output) == "-":
        click.echo(written, nl=False)
    elif output is not None:
        with replacing(output, 0o644) as write:
            write(written)
    elif as_json:
        for one in found:
            click.echo(orjson.dumps(asdict(one)))
    else:
        _show(found)


def _show(found: list[Kind]) -> None:
    titles = ("method", "called with", "seen", "after it, an outage")
    table = Table(*(Column(title, overflow="fold", justify="right" if title == "seen" else "left") for title in titles))
    for before, one in zip([None, *found], found, strict=False):
        method = "" if before is not None and before.method == one.method else one.method
        answer = "does not answer " + ", ".join(one.unexplained) if one.unexplained else "answers"
        table.add_row(Text(method), Text(", ".join(one.decided_by)), Text(f"{one.seen:,}"), Text(answer))
    Lines(highlight=False).print(table)
