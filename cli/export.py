"""`atb outbox export`: everything that can be read of a store, as JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from outbox.transfer.exporting import export as export_store

from .common import OutputFails, Refused, directory_option, in_one_sentence, say, settings
from .replacing import replacing
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
        say(line, err=True, indent=16)
    if not found.sound:
        say(f"the store is damaged: {(found.problems or ['entries are lost'])[0]}", err=True)
    context.exit(0 if found.sound else 1)


def _write_to_stdout(data: bytes, *, flush: bool = False) -> None:
    try:
        sys.stdout.buffer.write(data)
        if flush:
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise OutputFails(exc) from exc


@contextmanager
def _target(file: Path, *, force: bool) -> Iterator[Callable[[bytes], object]]:
    """Where the lines go: a file appears only once it is complete and on the disk."""
    if str(file) == "-":
        if sys.stdout is None:
            raise Refused("the standard output is closed: name a file")
        yield _write_to_stdout
        _write_to_stdout(b"", flush=True)
        return
    # Arguments may be confidential: only the owner may read the file.
    with replacing(file, 0o600) as write:
        if file.exists() and not force:
            raise Refused(f"{file} exists (--force replaces it)")
        yield write
