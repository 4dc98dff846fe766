"""A host that is checked with mypy --strict stays so when it names the durable class, with the installed package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.unit.fakes.waiting import LONG

ROOT = Path(__file__).resolve().parents[2]
BUILT_FROM = ("outbox", "cli", "integrations", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")

MODELS = """
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker


class DatabaseManager:
    LIMIT = 5

    def __init__(self, url: str, pool_size: int = 5) -> None:
        self.engine = create_engine(url, pool_size=pool_size)
        self.session_factory = sessionmaker(bind=self.engine)

    def log_trade(self, symbol: str, size: float) -> int:
        return 1
"""

HOST = """
import models
from models import DatabaseManager

from outbox.cli import atb, register
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager
from outbox.integrations.trading_engine import wire
from outbox.testing import InMemoryTarget

# mypy lets no name of a class be assigned to, whatever is assigned; the types are right afterwards.
DatabaseManager = DurableDatabaseManager.of(DatabaseManager)  # type: ignore[misc]


@DurableDatabaseManager.of
class Decorated(models.DatabaseManager):
    pass


class Mine(Decorated):
    def log_trade(self, symbol: str, size: float) -> int:
        return super().log_trade(symbol, size)


class Engine:
    def __init__(self, db_manager: DatabaseManager) -> None:
        self.db_manager: DatabaseManager = db_manager


Behind = DurableDatabaseManager.of(models.DatabaseManager, operations=TRADING_OPERATIONS, write_behind=True)
m: DatabaseManager = DatabaseManager("postgresql://", pool_size=DatabaseManager.LIMIT)
d: Decorated = Mine("postgresql://")
for manager in (m, d, Behind("postgresql://")):
    with wire(Engine(manager)) as wiring:
        reveal_type(manager.log_trade)
reveal_type(register)
reveal_type(atb.name)
reveal_type(InMemoryTarget([]).delivered[0].seq)
m.log_trade("BTC")
d.log_trade("BTC")
"""


def installed(folder: Path) -> Path:
    """The interpreter of a fresh environment in which the package is installed as its wheel would be."""
    source, built = folder / "source", folder / "built"
    source.mkdir()
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build", "--build-lib", str(built)]
    subprocess.run(build, cwd=source, check=True, capture_output=True, timeout=LONG)
    venv.create(folder / "host")
    (packages,) = (folder / "host").glob("lib/python*/site-packages")
    shutil.copytree(built, packages, dirs_exist_ok=True)
    # SQLAlchemy and the like are those of this interpreter; its own path to the source tree is not taken over.
    for found in Path(sysconfig.get_path("purelib")).iterdir():
        if found.name.startswith(("sqlalchemy", "SQLAlchemy", "typing_extensions", "lmdb", "click", "greenlet")):
            (packages / found.name).symlink_to(found)
    return folder / "host" / "bin" / "python"


def test_host_that_names_the_durable_class_passes_mypy_strict(tmp_path: Path) -> None:
    interpreter, work = installed(tmp_path), tmp_path / "work"
    work.mkdir()
    (work / "models.py").write_text(MODELS)
    (work / "host.py").write_text(HOST)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--python-executable",
            str(interpreter),
            "--config-file=",
            "host.py",
        ],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    # Only the two calls at the end, which the plain class would not allow either.
    assert said == [
        'note: Revealed type is "def (symbol: str, size: float) -> int"',
        'note: Revealed type is "def (subparsers: Any, name: str =) -> argparse.ArgumentParser"',
        'note: Revealed type is "str | None"',
        'note: Revealed type is "int"',
        'error: Missing positional argument "size" in call to "log_trade" of "DatabaseManager"  [call-arg]',
        'error: Missing positional argument "size" in call to "log_trade" of "DatabaseManager"  [call-arg]',
        "",
    ], done.stdout + done.stderr
