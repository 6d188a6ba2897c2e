"""Code in answers: escaped whatever its language, in time that grows with its length alone, read once a line."""

import time
from html.parser import HTMLParser

import pytest

from lite_c2f.ui.code_blocks import LANGUAGES, LONGEST, code_block, highlighted

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


@pytest.mark.parametrize("language", sorted(set(LANGUAGES.values())))
@pytest.mark.parametrize(
    "part", ['"', "'", "`", "{", "(", "<", "\\", "/", "//", "a", "1", "\n", " ", "${", "<a ", "a=", '"\\', "'\\"]
)
def test_time_grows_with_the_length_and_no_faster(language, part):
    def seconds(characters):
        begin = time.process_time()
        highlighted.__wrapped__((part * characters)[:characters], language)
        return time.process_time() - begin

    seconds(10)
    assert min(seconds(4000), seconds(4000)) < 9 * max(seconds(1000), 0.003)
