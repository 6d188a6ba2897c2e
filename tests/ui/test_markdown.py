"""What a model wrote as Markdown: nothing of it does anything, and nothing that can be read is lost."""

import math
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_c2f.ui import markdown
from lite_c2f.ui.markdown import LONGEST, formatted

TAGS = {
    *(
        "p",
        "br",
        "strong",
        "em",
        "s",
        "span",
        "div",
        "button",
        "code",
        "pre",
        "small",
        "ul",
        "ol",
        "li",
        "blockquote",
        "hr",
    ),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
SIDES = ("left", "center", "right")
ATTRIBUTES = {
    ("p", "class", "plain"),
    ("code", "class", "address"),
    ("div", "class", "code"),
    ("pre", "tabindex", "0"),
    ("button", "type", "button"),
    ("button", "class", "chip copy"),
    ("button", "aria-label", "copy code"),
    *(("span", "class", kind) for kind in "ckfns"),
    ("li", "class", "task"),
    ("span", "role", "img"),
    ("span", "class", "image"),
    ("span", "class", "formula"),
    *(("span", "aria-label", state) for state in ("done", "to do")),
    *((tag, "style", f"text-align:{side}") for tag in ("th", "td") for side in SIDES),
    *(("li", "style", f"list-style-type:'{sign} '") for sign in "-+*"),
}


OPEN = '<span role="img" aria-label="to do">\N{BALLOT BOX}</span>'
DONE = '<span role="img" aria-label="done">\N{BALLOT BOX WITH CHECK}</span>'
ADDRESS = '<code class="address">{}</code>'


CODE = (  # with its button
    '<div class="code"><div><small>{name}</small><button type="button" class="chip copy" '
    'aria-label="copy code">copy</button></div>'
    """<pre tabindex="0"><code>{code}</code></pre></div>"""
)


class Reader(HTMLParser):
    """Tags, and what can be read."""

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.tags, self.words, self.silent = [], [], False
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attributes):
        assert tag in TAGS, tag
        for name, value in attributes:
            number = (tag, name) in (("ol", "start"), ("li", "value")) and value.isdecimal()
            assert number or (tag, name, value) in ATTRIBUTES, (tag, name, value)
        self.tags.append(tag)
        self.silent = tag == "button"
        self.words += [value for name, value in attributes if name == "value"]
        self.words += ["x" for name, value in attributes if (name, value) == ("aria-label", "done")]

    def handle_endtag(self, tag):
        self.silent = False

    def handle_data(self, data):
        if self.silent:
            assert data == "copy"
        else:
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
    "~~<s onclick=alert(1)>~~ ~~a</s><script>b</script>~~",
    '- [x] <input onfocus=alert(1) autofocus>\n- [ ] [a](javascript:alert(1))\n- [x]"><b>',
    '[<b>](https://a.b/"onclick="alert(1)) [a](https://<script>) [a](https://a "<i>")',
    "![<img src=x onerror=alert(1)>](https://example.org/track.png) ![b](HTTPS://c.d)",
    "[a](https://b${alert(1)}{{c}}`d`) [`e](https://f) `g",
    "[a](vbscript:b) [a](//b.c) [a](\thttps://b) [a](https:javascript:b) [a](www.b\x00c)",
    "\\(<script>alert(1)</script>x^2\\) $<img/src=x/onerror=alert(1)>=2$ $$</span><b>=1$$",
    "\\[</p><svg onload=alert(1)>=\\]",
    "$\\href{javascript:alert(1)}{x}$ \\(\\url{https://a.b}\\) \\[\\includegraphics{https://a.b/c.png}\\]",
    "$$\\htmlClass{copy}{x}$$ $\\htmlStyle{position:fixed}{x}$ $\\htmlData{a=b}{x}$ $${x}=`y`{{z}}$$",
    "$\\def\\a{\\a\\a}\\a$ $$\\def\\b#1{\\b{#1#1}}\\b{x}$$ $\\rule{9999em}{9999em}$",
    "$x $$y $$$z$$$ \\(a\\] \\[b\\) \\(\\(c=d\\)\\) $$e$ $f$$ \\$g=h$",
    "> $$\n> - <b>=1\n> $$\n\n- \\[\n  # <i>\n  \\]\n\n$$\n<hr>=2\n\n$$",
    "$a=\u202eb$ \\(\u2066c=d\\) $$e\u200b=f$$",
    "[a\u202eb](https://c.d/\u202egnp.exe) [a](https://b\u2066c) ~~\u202ea~~",
]


# Forms that single signs seldom make.
PIECES = [
    *("$", "$$", "\\(", "\\)", "\\[", "\\]", "$x=1$", "\\href{b}"),
    "~~",
    "- [x] ",
    "- [ ] ",
    "](https://a.b",
    "[a](https://b.c)",
    "![",
    "](javascript:a)",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_markup_of_a_model_is_markup_of_the_page(text):
    markup = formatted(text)
    assert not set(markup) & set("${}`\x00")
    markup.encode()
    assert letters("".join(Reader(markup).words)) == letters(text.encode("utf-8", "replace").decode())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([*"ab1x \n\t*_`~#>-+|:[]()<>&;\\!\"'${}=.0\x00é", *PIECES]), max_size=30).map("".join))
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
        (r"\(x^2\) \*a\*", r'<p><span class="formula">\(x^2\)</span> \*a\*</p>'),
        ("&lt;i&gt;", "<p>&amp;lt;i&amp;gt;</p>"),
        ("Sum\n---", "<p>Sum</p>\n<hr>"),
        ("- a\n- b", "<ul>\n<li>a</li>\n<li>b</li>\n</ul>"),
        ("- 5\n- b", "<ul>\n<li style=\"list-style-type:'- '\">5</li>\n<li>b</li>\n</ul>"),
        ("~~Six~~ five, ~~~ \\~~a~~", "<p><s>Six</s> five, ~~~ \\~~a~~</p>"),
        (
            "- [ ] a [b]\n- [X] *c*",
            f'<ul>\n<li class="task">{OPEN} a [b]</li>\n<li class="task">{DONE} <em>c</em></li>\n</ul>',
        ),
        ("1. [x] a", f'<ol>\n<li value="1">{DONE} a</li>\n</ol>'),
        ("- [ ]\n- [x]a\n- [y] b", "<ul>\n<li>[ ]</li>\n<li>[x]a</li>\n<li>[y] b</li>\n</ul>"),
        ("[x] a", "<p>[x] a</p>"),
        (
            "[A *b*](https://c.d/e_(f)?g=1&h=2#i)",
            f"<p><span>A <em>b</em></span> {ADDRESS.format('https://c.d/e_(f)?g=1&amp;h=2#i')}</p>",
        ),
        ('[a](https://b.c "D e")', f"<p><span>a</span> {ADDRESS.format('https://b.c')} (D e)</p>"),
        ("![a](https://b.c/d.png)", f'<p><span class="image">a</span> {ADDRESS.format("https://b.c/d.png")}</p>'),
        ("[https://a.b](https://a.b)", "<p><span>https://a.b</span></p>"),
        ("https://a.b/c_d_e <https://f.g>", "<p>https://a.b/c_d_e &lt;https://f.g&gt;</p>"),
        ("f[0](x), [a](b.html), \\[c](https://d.e)", "<p>f[0](x), [a](b.html), \\[c](https://d.e)</p>"),
        ("`[a](https://b.c)` [a](https://b", "<p><code>[a](https://b.c)</code> [a](https://b</p>"),
        ("[a](https://b/\u202egnp.c)", "<p>[a](https://b/\u202egnp.c)</p>"),  # an address that would be read backwards
        ("1. a\n1. b", '<ol>\n<li value="1">a</li>\n<li value="1">b</li>\n</ol>'),
        ("```py\nif a:\n    b\n```", CODE.format(name="py", code='<span class="k">if</span> a:\n    b\n')),
        ("```\na", CODE.format(name="", code="a")),  # one that is still being written
        (
            "```python\nx = 1\ny = 2",
            CODE.format(name="python", code='x = <span class="n">1</span>\ny = 2'),
        ),  # its last line
        ("```c\nint a;\n```", CODE.format(name="c", code="int a;\n")),
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


@pytest.mark.parametrize(
    "part",
    [
        "[",
        "[a](https://",
        "![a](https://b(c)",
        '[a](https://b "',
        "[~~a",
        "~~a ",
        "a~~b",
        "- [ ] ",
        "[a](https://b.c) ",
        "$",
        "$$a=",
        "$a=",
        "\\[a\n",
        "\\(\\[",
        "$$\n",
        "$x$ ",
        "> \\[\n",
        "- \\[a=\n  \\] b\n",
    ],
)
def test_time_grows_with_the_length_and_no_faster(part):
    """Four times the text takes four times as long; sixteen times, if each beginning looked through all of the rest."""

    def seconds(characters):
        text = part * (characters // len(part))
        begin = time.process_time()
        formatted(text)
        return time.process_time() - begin

    # Other processes slow one try or the other: of the shortest of six each, both are at their own pace.
    short, long = math.inf, math.inf
    for _ in range(6):
        short, long = min(short, seconds(2000)), min(long, seconds(8000))
        if long < 9 * max(short, 0.002):
            return
    raise AssertionError(f"{short:.4f} s for 2,000 characters, {long:.4f} s for 8,000")


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


def test_headings_leave_out_no_level():
    html = formatted("### a\n# b\n### c\n##### d\n###### e\n## f")
    assert re.findall("<h(.)>(.)", html) == [("4", "a"), ("4", "b"), ("5", "c"), ("6", "d"), ("6", "e"), ("5", "f")]
