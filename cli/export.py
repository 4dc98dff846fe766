"""`atb outbox export`: everything that can be read of a store, as JSON lines."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from outbox.transfer.exporting import export as export_store

from .common import Refused, directory_option, in_one_sentence, naming, settings
from .verify import summary


@click.command()
@directory_option
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.pass_context
@in_one_sentence
def export(context: click.Context, directory: str | None, file: Path, force: bool) -> None:
    """Write all readable entries of a store to FILE as JSON lines.

    `-` is the standard output.  Works beside a running engine, and on a damaged store.  Changes nothing.  Exit code
    0: the store is sound and was written completely.  1: it is damaged; the readable part was written.  2: nothing was
    written.
    """
    path = Path(settings(directory).dir).absolute()
    with _target(file, force=force) as write:
        found = export_store(path, write)
    for line in summary(found):
        click.echo(line, err=True)
    if not found.sound:
        click.echo(f"the store is damaged: {(found.problems or ['entries are lost'])[0]}", err=True)
    context.exit(0 if found.sound else 1)


@contextmanager
def _target(file: Path, *, force: bool) -> Iterator[Callable[[bytes], object]]:
    """Where the lines go: a file appears only once it is complete and on the disk."""
    if str(file) == "-":
        if sys.stdout is None:
            raise Refused("the standard output is closed: name a file")
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    if file.exists() and not force:
        raise FileExistsError(errno.EEXIST, "it exists; --force replaces it", str(file))
    # mkstemp gives 0600: arguments are nobody else's business.
    with naming(file):
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as target:
            yield target.write
            target.flush()
            os.fsync(target.fileno())
        os.replace(name, file)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)
