"""What a model wrote as Markdown: nothing of it does anything, and nothing that can be read is lost."""

import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_c2f.ui import markdown
from lite_c2f.ui.markdown import LONGEST, formatted

TAGS = {
    *("p", "br", "strong", "em", "code", "pre", "small", "ul", "ol", "li", "blockquote", "hr"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
SIDES = ("left", "center", "right")
ATTRIBUTES = {
    ("p", "class", "plain"),
    *((tag, "style", f"text-align:{side}") for tag in ("th", "td") for side in SIDES),
    *(("li", "style", f"list-style-type:'{sign} '") for sign in "-+*"),
}


class Reader(HTMLParser):
    """Tags, and what can be read."""

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.tags, self.words = [], []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attributes):
        assert tag in TAGS, tag
        for name, value in attributes:
            number = (tag, name) in (("ol", "start"), ("li", "value")) and value.isdecimal()
            assert number or (tag, name, value) in ATTRIBUTES, (tag, name, value)
        self.tags.append(tag)
        self.words += [value for name, value in attributes if name == "value"]

    def handle_data(self, data):
        self.words.append(data)

    def handle_comment(self, data):
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


def letters(text):
    return [letter for letter in text if letter.isalnum()]


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt:alert(1) 'b')",
    "[a](data:text/html;base64,PHNjcmlwdD4=)",
    "![a](https://example.org/track.png)",
    "[a]() ![]()",
    "- 0\n\n+ 1\n\n* 2",
    "![a](data:image/svg+xml,<svg onload=alert(1)>)",
    "<https://example.org> https://example.org <a@example.org>",
    "[a][b]\n\n[b]: javascript:alert(1)",
    '```html" onmouseover=alert(1)\n</code></pre><script>alert(1)</script>\n```',
    '~~~"><img src=x onerror=alert(1)>\n~~~',
    "`</code><script>alert(1)</script>`",
    "**<svg/onload=alert(1)>**",
    "| <b> | [a](javascript:1) |\n|:--|--:|\n| <i> | ![b](c) |",
    "&lt;script&gt; &#60;img&#62; &colon;",
    "# <iframe srcdoc='<script>'>\n> <style>*{}</style>\n\n- <object data=x>\n1. <form action=//x>",
    "<!-- a --> <![CDATA[b]]> <?php c ?> <!DOCTYPE d>",
    "\\<script>\\</script>",
    "${alert(1)} {{alert(1)}} {{{value}}} `${1+1}`",
    "*a <b onclick='*x*'>",
    "a\x00<b>\ud800",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_markup_of_a_model_is_markup_of_the_page(text):
    markup = formatted(text)
    assert not set(markup) & set("${}`\x00")
    markup.encode()
    assert letters("".join(Reader(markup).words)) == letters(text.encode("utf-8", "replace").decode())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("ab1 \n\t*_`~#>-+|:[]()<>&;\\!\"'${}=.0\x00é"), max_size=60))
def test_whatever_is_written_is_harmless_and_can_be_read(text):
    markup = formatted(text)
    assert not set(markup) & set("${}`\x00")
    assert letters("".join(Reader(markup).words)) == letters(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**Bold**, *so* and `x <y`", "<p><strong>Bold</strong>, <em>so</em> and <code>x &lt;y</code></p>"),
        ("one\ntwo", "<p>one<br>\ntwo</p>"),
        ("2*3*4 = 24 and 2 * 3 * 4", "<p>2*3*4 = 24 and 2 * 3 * 4</p>"),
        ("2**3 + 4**2, x**2+y**2", "<p>2**3 + 4**2, x**2+y**2</p>"),
        ("2**x and y** is, **x and 2**y", "<p>2**x and y** is, **x and 2**y</p>"),
        ("(2+3)*(4+5)*(6), f(x)*g(x)*h[0]*i", "<p>(2+3)*(4+5)*(6), f(x)*g(x)*h[0]*i</p>"),
        ("(**a**), *b*: ***c***", "<p>(<strong>a</strong>), <em>b</em>: <em><strong>c</strong></em></p>"),
        ("**粗**体", "<p><strong>粗</strong>体</p>"),
        ("snake_case_name", "<p>snake_case_name</p>"),
        (r"\(x^2\) \*a\*", r"<p>\(x^2\) \*a\*</p>"),
        ("&lt;i&gt;", "<p>&amp;lt;i&amp;gt;</p>"),
        ("Sum\n---", "<p>Sum</p>\n<hr>"),
        ("- a\n- b", "<ul>\n<li>a</li>\n<li>b</li>\n</ul>"),
        ("- 5\n- b", "<ul>\n<li style=\"list-style-type:'- '\">5</li>\n<li>b</li>\n</ul>"),
        ("1. a\n1. b", '<ol>\n<li value="1">a</li>\n<li value="1">b</li>\n</ol>'),
        ("```py\nif a:\n    b\n```", "<pre><small>py</small><code>if a:\n    b\n</code></pre>"),
        ("```\na", "<pre><code>a</code></pre>"),  # one that is still being written
        ("", ""),
    ],
)
def test_what_it_looks_like(text, expected):
    assert formatted(text) == expected


@pytest.mark.parametrize("size", [72, 250, 1000, 10_000])
def test_tables_that_grow_with_the_square_are_not_read(size):
    text = "|a" * size + "|\n" + "|-" * size + "|\n" + "|\n" * size
    assert formatted(text).startswith('<p class="plain">')
    assert "<table>" in formatted("|a" * 20 + "|\n" + "|-" * 20 + "|\n" + "|b\n" * 100)


@pytest.mark.parametrize(
    "text",
    [
        "- " * 12 + "deep",  # the library goes no further than 20 levels, and drops what is in them
        "| a | b |\n|---|---|\n| 1 | 2 | three |",  # a cell more than the head has
        "| a | b |\n|---|---|\n| 1 | 2 | ✓ |",
        "007. Bond",
        "12345. long",
        "*a* " * (LONGEST // 4 + 1),
    ],
)
def test_where_something_would_be_lost_all_is_shown_as_it_is(text):
    assert formatted(text) == f'<p class="plain">{text}</p>'


def test_many_threads_may_read_the_first_text():
    text = "# a\n\n- *b*\n\n> c\n\n| d |\n|---|\n| e |\n"
    expected = formatted(text)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            markdown._reader.cache_clear()
            with ThreadPoolExecutor(8) as pool:
                assert set(pool.map(formatted, [text] * 8)) == {expected}
    finally:
        sys.setswitchinterval(before)


def test_headings_stand_below_the_heading_of_the_question():
    """The page's, a pane's and a question's are of levels 1 to 3; there is none beyond 6."""
    html = formatted("# a\n\n## b\n\n### c\n\n###### d")
    assert html == "<h4>a</h4>\n<h5>b</h5>\n<h6>c</h6>\n<h6>d</h6>"
