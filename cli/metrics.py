"""`atb outbox metrics`: the figures of a status in the text format of Prometheus."""

from __future__ import annotations

from pathlib import Path

import click

from outbox import Outbox
from outbox.metrics import as_text

from .common import directory_option, in_one_sentence, settings
from .replacing import replacing


@click.command()
@directory_option
@click.option(
    "--output",
    type=click.Path(path_type=Path),
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
        # The collector may be another user, and reads what ends in .prom only.
        with replacing(output, 0o644) as write:
            write(text.encode())
