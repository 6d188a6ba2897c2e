"""Releases of the libraries that the fast tests passed with, as a column of docs/libraries.md.

`make floors` and `make newest` call it in the environment that they have made and tested:

    python benchmarks/libraries.py floors .venv-floors/tests.xml

Nothing is written unless tests ran and none failed.
"""

import platform
import re
import sys
import tomllib
from datetime import date
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "libraries.md"
COLUMNS = ("floors", "newest")
HEAD = "| library | required |"
Table = dict[str, dict[str, str]]  # first cell -> column -> cell


def required() -> list[Requirement]:
    """What pyproject.toml requires, without the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in project["dependencies"]]


def read_table(page: str) -> Table:
    """The cells of the page's table that were written before."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return {row[0]: dict(zip(COLUMNS, row[2:], strict=True)) for row in rows[2:]}


def tested(file: Path) -> str:
    """How many tests passed, read from pytest's XML. Exits unless there are some and none failed."""
    suite = next(ElementTree.parse(file).getroot().iter("testsuite"))
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    if count["failures"] or count["errors"] or not passed:
        sys.exit(f"{file}: {count}; expected tests that pass; nothing is written")
    return f"{passed} ({count['skipped']} skipped)"


def table(column: str, facts: dict[str, str], before: Table) -> str:
    """The table with this column anew."""
    specifiers = {requirement.name: str(requirement.specifier) for requirement in required()}
    lines = [f"{HEAD} `make floors` | `make newest` |", "|---|---|---|---|"]
    for name, fact in facts.items():
        cells = {**before.get(name, {}), column: fact}
        lines.append(f"| {name} | {specifiers.get(name, '')} | {' | '.join(cells.get(c, '') for c in COLUMNS)} |")
    return "\n".join(lines)


def main() -> None:
    column, file = sys.argv[1], Path(sys.argv[2])
    facts = {"tests passed": tested(file), "date": date.today().isoformat(), "Python": platform.python_version()}
    facts |= {requirement.name: version(requirement.name) for requirement in required()}
    page = PAGE.read_text(encoding="utf-8")
    text, rows = page[: page.index(HEAD)], page[page.index(HEAD) :]
    rest = re.sub(r"\A(\|.*\n?)+", "", rows)
    PAGE.write_text(f"{text}{table(column, facts, read_table(rows))}\n{rest}", encoding="utf-8")
    print(table(column, facts, read_table(rows)))


if __name__ == "__main__":
    main()
