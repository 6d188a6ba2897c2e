"""Code in answers: escaped whatever its language, in time that grows with its length alone, read once a line."""

import time
from functools import cache
from html.parser import HTMLParser

import pytest

from lite_c2f.ui.code_blocks import LANGUAGES, LONGEST, SHORTER, code_block, highlighted

HOSTILE = """</code></pre><script>alert(1)</script> "<img src=x onerror='alert(1)'>" # <b> ${x} {{y}} `z`
<style>*{}</style><a href="javascript:alert(1)" onclick=alert(1)>\u202e</a> // <!-- --> /* </span> */ &lt;
"""


def text_of(markup):
    """The text of code in HTML; no other tag than spans with one of five classes, and those of the block."""
    reader, words, tags = HTMLParser(convert_charrefs=True), [], set()
    reader.handle_starttag = lambda tag, attributes: tags.add((tag, *attributes))
    reader.handle_data = words.append
    reader.feed(markup)
    reader.close()
    assert tags <= {("span", ("class", kind)) for kind in "ckfns"}, tags
    return "".join(words)


@pytest.mark.parametrize("language", sorted(set(LANGUAGES.values())))
def test_code_of_any_language_is_text(language):
    assert text_of(highlighted(HOSTILE, language)) == HOSTILE


@pytest.mark.parametrize(
    ("code", "language", "expected"),
    [
        ("def f(a): return 'b'  # c\n", "python", "kfksc"),
        ("SELECT 1 -- a\n", "sql", "knc"),
        ('{"a": 1}\n', "json", "n"),
        ("# a\necho 'b'\n", "bash", "cs"),
        ("let a = 'b' // c\n", "javascript", "ksc"),
        ('func f() string { return "b" } // c\n', "go", "kkksc"),
        ("fn f() -> u8 { 1 } // c\n", "rust", "kfknc"),
    ],
)
def test_kinds_of_words_have_classes(code, language, expected):
    classes = [piece[0] for piece in highlighted(code, language).split('<span class="')[1:]]
    assert [kind for kind in classes if kind in expected] == list(expected)


def test_a_growing_block_is_read_once_a_line():
    highlighted.cache_clear()
    code = "a = 1\nb = 2\nc = 3\n"
    for end in range(len(code) + 1):
        code_block(code[:end], "python")
    assert highlighted.cache_info().misses == 4  # none, one, two and three lines


def test_the_name_of_a_language_is_text_and_a_long_block_has_no_colours():
    assert "<b>" not in code_block("a", 'python"><b>') and "&lt;b&gt;" in code_block("a", 'python"><b>')
    assert "<span" in code_block("1\n" * (LONGEST // 2), "py") and "<span" not in code_block("1\n" * LONGEST, "py")


def test_some_languages_have_colours_in_shorter_blocks_alone():
    assert "c" not in LANGUAGES and "java" not in LANGUAGES
    for name in ("js", "golang", "rs"):
        most = SHORTER[LANGUAGES[name]]
        assert "<span" in code_block("1\n" * (most // 2), name) and "<span" not in code_block("1\n" * most, name)


def seconds(part, characters, language):
    begin = time.process_time()
    highlighted.__wrapped__((part * characters)[:characters], language)
    return time.process_time() - begin


PARTS = [
    '"',
    "'",
    "`",
    "{",
    "(",
    "<",
    "\\",
    "/",
    "//",
    "a",
    "1",
    "\n",
    " ",
    "${",
    "<a ",
    "a=",
    '"\\',
    "'\\",
    "a.",
    '\\"',
]


@pytest.mark.parametrize("language", sorted(set(LANGUAGES.values()) - set(SHORTER)))
@pytest.mark.parametrize("part", PARTS)
def test_time_grows_with_the_length_and_no_faster(language, part):
    seconds(part, 10, language)
    assert min(seconds(part, 4000, language) for _ in range(2)) < 9 * max(seconds(part, 1000, language), 0.003)


@cache
def harmless_seconds():
    return min(seconds("a = 1\n", LONGEST, "python") for _ in range(3))


@pytest.mark.parametrize("language", sorted(SHORTER))
@pytest.mark.parametrize("part", [*PARTS, "'\\\"", "#", 'r#"', "@a", 'a."', "/*", "a("])
def test_short_hostile_text_takes_no_longer_than_long_harmless_text(language, part):
    """25 ms at the most, and 60 ms, on one machine."""
    seconds(part, 10, language)
    assert min(seconds(part, SHORTER[language], language) for _ in range(3)) < harmless_seconds()
