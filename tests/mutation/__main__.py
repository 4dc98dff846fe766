"""Changes the library in thousands of small ways and counts which of them its tests notice.

`python -m tests.mutation [--keep FOLDER] [--sample N] [MODULES]`: all modules that have tests below, or the named ones.
With `--keep` the work stays in that folder, and the next call with it tries only what survived there, with the tests
as they are by then.  With `--sample` at most N changes of each module are tried, always the same ones.  Texts of errors
and logs are not changed; mutmut changes neither constants of a module or class nor functions that have a decorator.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.zoo.__main__ import ROOT, copy_project

from .plan import PLAN, source

# The one test is left out because mutmut cannot be told its settings in a process that runs in another folder.
_SETTINGS = """
[mutmut]
source_paths=outbox
only_mutate=
    {source}
also_copy=
    outbox/cli
    outbox/integrations
    README.md
    docs
do_not_mutate_patterns=
    \\b_log\\.\\w+\\(
    ^\\s*fields = \\{{
    ^\\s*raise\\b
pytest_add_cli_args_test_selection=
    {tests}
pytest_add_cli_args=
    --disable-warnings
    -pno:cacheprovider
    -pno:xdist
    -pno:pytest_cov
    --deselect=tests/unit/test_verify.py::test_child_finds_a_package_through_the_sys_path_of_its_host
timeout_multiplier=2.0
timeout_constant=3.0
"""
_RUN = "from mutmut.__main__ import cli; cli()"
_MAKE = """
from mutmut import __main__ as mutmut
mutmut.set_mutant_under_test("mutant_generation")
mutmut.copy_src_dir()
mutmut.copy_also_copy_files()
mutmut.setup_source_paths()
mutmut.create_mutants(1)
"""
_SHOW = """
import sys
from mutmut.mutation.diff_apply import get_diff_for_mutant
print(*("\\0" + get_diff_for_mutant(name) for name in sys.argv[1:]), sep="")
"""
# What the tests store need not be flushed to a disk a hundred thousand times.
_IN_MEMORY = {"TMPDIR": "/dev/shm"} if os.access("/dev/shm", os.W_OK) else {}  # noqa: S108 - pytest makes folders there
# A changed line of a diff, and not the names of its files.
_CHANGE = re.compile(r"[-+](?![-+]{2})")
# As mutmut notes it: the exit code of the tests. Any other is a process that was ended by a signal.
_VERDICTS = {0: "survived", 1: "killed", 3: "killed", 5: "no tests", 33: "no tests", None: "not run"}
_VERDICTS |= dict.fromkeys((36, 24, -24, 152, 255), "timeout")
_COLUMNS = ("killed", "crashed", "timeout", "survived", "no tests", "not run")
_CAUGHT = ("killed", "crashed", "timeout")


def verdicts(folder: Path, module: str) -> dict[str, str]:
    """The verdict on each mutant of `module`, by its name."""
    path = folder / "mutants" / f"{source(module)}.meta"
    codes = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"] if path.exists() else {}
    return {name: _VERDICTS.get(code, "crashed") for name, code in codes.items()}


def mutmut(folder: Path, program: str, *arguments: str) -> str:
    """What a program that uses mutmut prints in `folder`."""
    command = [sys.executable, "-c", program, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder / "mutants"), "PYTHONDONTWRITEBYTECODE": "1", **_IN_MEMORY}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"mutmut failed:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
    return done.stdout


def prepare(folder: Path, module: str) -> None:
    """A copy of the project in `folder`, with mutmut's settings for `module`; only its tests if it is there already."""
    if folder.exists():
        shutil.copytree(ROOT / "tests", folder / "tests", dirs_exist_ok=True)
    else:
        copy_project(folder)
        (folder / "mutants").mkdir()  # before Python starts with it in its path, or Python overlooks it
    settings = _SETTINGS.format(source=source(module), tests="\n    ".join(f"tests/{name}" for name in PLAN[module]))
    own = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    (folder / "setup.cfg").write_text(own + settings, encoding="utf-8")


def run(folder: Path, module: str, most: int | None = None) -> tuple[dict[str, str], int]:
    """Try the mutants of `module`, at most so many; those that no test has noticed, where some were tried before.

    Returns the verdicts on them, and how many mutants there are.
    """
    prepare(folder, module)
    if not verdicts(folder, module):
        mutmut(folder, _MAKE)
    names = sorted(verdicts(folder, module))
    total = len(names)
    if most is not None and most < total:
        names = random.Random(module).sample(names, most)
    for _ in range(2):
        said = verdicts(folder, module)
        again = [name for name in names if said[name] not in _CAUGHT]
        if again:
            mutmut(folder, _RUN, "run", "--max-children", "1", *again)
        said = verdicts(folder, module)
        if all(said[name] != "not run" for name in names):
            break  # mutmut forgets everything where the tests are others than before
    return {name: said[name] for name in names}, total


def changes(folder: Path, names: list[str]) -> list[str]:
    """What each mutant changes, in one line."""
    said = mutmut(folder, _SHOW, *names).split("\0")[1:]
    return [" ".join(" ".join(line.split()) for line in one.splitlines() if _CHANGE.match(line)) for one in said]


def row(title: str, counts: Counter[str], total: int) -> str:
    """One line of the table; `total` is the number of mutants, tried or not."""
    tried = counts.total()
    share = sum(counts[one] for one in _CAUGHT) / tried if tried else 1.0
    of = f"{tried}" if tried == total else f"{tried} of {total}"
    return f"{title:14} {of:>12} " + " ".join(f"{counts[one]:8}" for one in _COLUMNS) + f" {100 * share:7.1f} %"


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, whatever survives."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.mutation")
    parser.add_argument("--keep", type=Path, help="the folder to work in, and to go on in later")
    parser.add_argument("--sample", type=int, metavar="N", help="how many changes of each module to try at most")
    parser.add_argument("modules", nargs="*", choices=[[], *PLAN], metavar="MODULES")
    options = parser.parse_args(arguments)
    rows, survivors, sums, total = [], [], Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="outbox-mutants-") as name:
        base = options.keep.resolve() if options.keep else Path(name)
        for module in options.modules or PLAN:
            found, of = run(base / module, module, options.sample)
            counts = Counter(found.values())
            sums, total = sums + counts, total + of
            rows.append(row(module, counts, of))
            print(rows[-1], flush=True)  # noqa: T201
            missed = [name for name, said in found.items() if said not in _CAUGHT]
            said = changes(base / module, missed)
            survivors += [f"{name} ({found[name]}): {one}" for name, one in zip(missed, said, strict=True)]
    print(*survivors, sep="\n")  # noqa: T201
    head = f"{'module':14} {'mutants':>12} " + " ".join(f"{one:>8}" for one in _COLUMNS) + f" {'caught':>9}"
    print("", head, *rows, row("total", sums, total), sep="\n")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
