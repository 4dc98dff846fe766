"""`atb outbox metrics`: the figures of a status in the text format of Prometheus."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from outbox import Outbox
from outbox.metrics import as_text

from .common import directory_option, in_one_sentence, naming, settings


@click.command()
@directory_option
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to FILE, in one rename, instead of printing: for the textfile collector of node_exporter.",
)
@in_one_sentence
def metrics(directory: str | None, output: Path | None) -> None:
    """Print the metrics of an outbox once, for Prometheus.

    Needs the extra `metrics`.  Exit code 0: done, whatever the health.  2: the store could not be read, or the metrics
    not be written; FILE is then unchanged.
    """
    with Outbox.attach(config=settings(directory), readonly=True) as box:
        text = as_text(box)
    if output is None:
        click.echo(text, nl=False)
    else:
        _replace(output, text)


def _replace(path: Path, text: str) -> None:
    """A reader sees the former file or this one, and may be another user.  Raises OSError."""
    # The collector reads what ends in .prom only.
    with naming(path):
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(number, 0o644)
        os.rename(name, path)
    except BaseException:
        os.unlink(name)
        raise
