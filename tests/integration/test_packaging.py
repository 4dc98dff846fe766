"""What a release consists of: its scripts, and a source archive from which the tests run."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from outbox.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("outbox", "cli", "integrations", "tests", "docs", "benchmarks", ".ci")
FILES = (
    "setup.cfg", "pyproject.toml", "MANIFEST.in", "Makefile", "README.md", "CHANGELOG.md", "LICENSE",
    ".pre-commit-config.yaml", "mkdocs.yml",
)  # fmt: skip
SDIST = "import setuptools; setuptools.setup(script_args=['-q', 'sdist', '--formats=gztar', '-d', 'dist'])"


def sources() -> set[str]:
    """Every file that belongs to the project."""
    found = {path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()}
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts} | set(FILES)


def test_source_archive_has_every_file_of_the_project(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in sources():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    done = subprocess.run([sys.executable, "-c", SDIST], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = (copy / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        packed = {member.name.partition("/")[2] for member in opened.getmembers() if member.isfile()}
    assert sorted(sources() - packed) == []
    made = {name for name in packed - sources() if not name.startswith("lmdb_outbox.egg-info/")}
    assert made == {"PKG-INFO"}


@pytest.mark.parametrize("script", ["atb", "lmdb-outbox"])
def test_both_scripts_are_the_same_program(script: str) -> None:
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name=script)
    assert entry.load() is main


def test_the_plugin_is_announced_to_pytest() -> None:
    (entry,) = importlib.metadata.entry_points(group="pytest11", name="lmdb-outbox")
    assert entry.value == "outbox.testing.plugin"
