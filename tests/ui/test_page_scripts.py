"""Scripts of the page: a name that is declared twice in one scope keeps a whole script from running."""

import re
from collections import Counter
from pathlib import Path

import pytest

import lite_c2f.ui

SCRIPTS = sorted(Path(lite_c2f.ui.__file__).parent.glob("*.js"))
DECLARATION = re.compile(r"^  (?:let|const) ([^;]*)", re.MULTILINE)  # in the outermost function: two spaces
NAME = re.compile(r"(?:^|, )([A-Za-z]\w*)(?= =|,|$)")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_no_name_is_declared_twice(script):
    declared = [name for part in DECLARATION.findall(script.read_text(encoding="utf-8")) for name in names(part)]
    assert len(declared) > 5
    assert [name for name, count in Counter(declared).items() if count > 1] == []


def names(declaration: str) -> list[str]:
    """The names of one declaration: the first of its line, and those between it and a further `=` or `,`."""
    return NAME.findall(declaration.split("\n")[0].split(" => ")[0])


def test_names_of_a_declaration():
    assert names("focused = null, copied = null") == ["focused", "copied"]
    assert names("news = [], saying") == ["news", "saying"]
    assert names("katex, importing, next") == ["katex", "importing", "next"]
    assert names("copy = async (text) => {\n    const box = a") == ["copy"]
