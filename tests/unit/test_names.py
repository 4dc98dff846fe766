"""Tests and their files are named by the rules of CONTRIBUTING.md, and comments name their subjects."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("outbox", "integrations", "cli", "benchmarks")

# The length of a test's name without `test_`: it fits a line of the report.
LONGEST = 60
TEST = re.compile(r"^ *(?:async )?def test_(\w+)", re.MULTILINE)

# Words that stand for a subject without a name, or for a cause: name the caller, the relay, the operator, the data.
UNNAMED = re.compile(r"\b(somebody|someone|whoever|hears?|to blame|worth a word|knows? better)\b", re.IGNORECASE)

# Files of unit tests that judge the repository and no module.
NO_MODULE = {"layering", "names", "zoo"}


def module_names() -> set[str]:
    """The names of all modules; a package is named after its folder."""
    paths = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    return {path.parent.name if path.stem == "__init__" else path.stem for path in paths}


def is_named_after(part: str, modules: set[str]) -> bool:
    """Whether `part` is the name of a module, or begins with one and `_`."""
    words = part.split("_")
    return any("_".join(words[:count]) in modules for count in range(1, len(words) + 1))


def test_every_test_name_has_at_most_60_characters() -> None:
    paths = sorted((ROOT / "tests").rglob("*.py"))
    names = [(path, name) for path in paths for name in TEST.findall(path.read_text(encoding="utf-8"))]
    assert len(names) > 1000
    assert [f"{path.relative_to(ROOT)}: test_{name}" for path, name in names if len(name) > LONGEST] == []


def test_every_unit_test_file_is_named_after_a_module() -> None:
    modules = module_names()
    parts = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "unit").glob("test_*.py")}
    assert {part for part in parts if not is_named_after(part, modules)} == NO_MODULE


def test_comments_and_docstrings_name_their_subjects() -> None:
    found, read = [], 0
    for path in [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.startswith('"""')):
                read += 1
                found += [f"{path.relative_to(ROOT)}:{token.start[0]} {word}" for word in UNNAMED.findall(token.string)]
    assert read > 3000
    assert found == []
