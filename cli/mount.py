"""Mounting the `outbox` commands into a host's own `atb` script."""

from __future__ import annotations

import argparse
from typing import Any

import click

from .group import outbox


def register(subparsers: Any, name: str = "outbox") -> argparse.ArgumentParser:
    """Add the whole group to an argparse CLI: `register(parser.add_subparsers())`.

    The parsed namespace gets `func`, which takes the namespace, runs the command and returns its exit code; hosts call
    it as they call those of their own commands.  Into a click CLI the group mounts itself: `cli.add_command(outbox)`.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help="look at the outbox, drain it, compact it", add_help=False, prefix_chars="\0"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def run(namespace: argparse.Namespace) -> int:
        return _run(list(namespace.arguments), f"{parser.prog}")

    parser.set_defaults(func=run)
    return parser


def _run(arguments: list[str], program: str) -> int:
    try:
        outbox.main(args=arguments, prog_name=program, standalone_mode=True)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except click.Abort:
        return 130
    return 0
