"""docs/libraries.md says which releases were installed and tested; pyproject.toml promises no other ones."""

import sys
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import libraries  # noqa: E402

TABLE = libraries.read_table((ROOT / "docs" / "libraries.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("requirement", libraries.required(), ids=lambda requirement: requirement.name)
def test_every_floor_was_installed(requirement):
    """The release that `make floors` had is the bound itself; torch's is the constraint's, whatever the build."""
    (floor,) = (Version(part.version) for part in requirement.specifier if part.operator == ">=")
    cells = TABLE[requirement.name]
    assert Version(Version(cells["floors"]).public) == floor
    assert requirement.specifier.contains(cells["newest"])


def test_tests_passed_with_both():
    assert all(int(TABLE["tests passed"][column].split()[0]) > 2500 for column in libraries.COLUMNS)


@pytest.mark.parametrize(("failures", "errors", "tests"), [(1, 0, 9), (0, 1, 9), (0, 0, 0)])
def test_nothing_is_written_unless_all_passed(tmp_path, failures, errors, tests):
    file = tmp_path / "tests.xml"
    counts = f'tests="{tests}" failures="{failures}" errors="{errors}" skipped="0"'
    file.write_text(f"<testsuites><testsuite {counts}/></testsuites>")
    with pytest.raises(SystemExit, match="expected tests that pass"):
        libraries.tested(file)


def test_a_column_is_written_beside_the_other_one(tmp_path):
    file = tmp_path / "tests.xml"
    file.write_text('<testsuites><testsuite tests="12" failures="0" errors="0" skipped="2"/></testsuites>')
    before = {"tests passed": {"floors": "9 (0 skipped)", "newest": ""}, "trl": {"floors": "1.16.0"}}
    lines = libraries.table("newest", {"tests passed": libraries.tested(file), "trl": "1.17.0"}, before).splitlines()
    assert lines[2:] == [
        "| tests passed |  | 9 (0 skipped) | 10 (2 skipped) |",
        "| trl | <2,>=1.16 | 1.16.0 | 1.17.0 |",
    ]
    assert libraries.read_table("\n".join(lines))["trl"] == {"floors": "1.16.0", "newest": "1.17.0"}
