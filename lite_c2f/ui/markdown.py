"""Markdown of a model as HTML: emphasis, lists, headings, tables, code; never HTML, and no link that leads anywhere.

markdown-it-py parses it; which of its rules apply is decided here. Text stays as it was written where
Markdown would change it: `2*3*4` is a product, `2**3` a power, `&lt;` four characters, a line of
dashes below another no heading; and where a letter or digit would be lost all of it is shown as it is.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from string import ascii_letters, digits
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_inline import emphasis, strikethrough
from markdown_it.token import Token

from lite_c2f.chat.history import clean
from lite_c2f.ui.code_blocks import code_block
from lite_c2f.ui.escaping import escape, unfilled
from lite_c2f.ui.formulas import add_formulas
from lite_c2f.ui.markdown_links import add_links

LONGEST = 100_000  # characters; what is longer is shown as it is
MOST_CELLS = 5000  # so is a table that might have more: the library fills up short rows, 15 us a cell
MOST_DIGITS = 4  # so is a list whose numbers are longer, or begin with 0
# A star that stands behind the end of a term, or before the beginning of one, is a sign.
TERM_ENDS, TERM_BEGINS = (frozenset(f"{ascii_letters}{digits}_{signs}") for signs in (")]}", "([{"))
# Links and images would ask other machines or run scripts (markdown_links shows their addresses); entities, escapes and
# `lheading` change what was written.
TASK = re.compile(r"(\[[ xX]\]) +\S")
EVERYTHING = "# a\n\nb *c* `d` ~~e~~\n\n- e\n\n> f\n\n|g|\n|-|\n|h|\n\n```\ni\n```\n"
LEFT_OUT = ("autolink", "entity", "escape", "html_block", "html_inline", "image", "lheading", "link", "reference")


def formatted(text: str) -> str:
    """Text as HTML of a few harmless tags.

    >>> formatted("**Two** <b> [a](javascript:x)")
    '<p><strong>Two</strong> &lt;b&gt; [a](javascript:x)</p>'
    """
    if len(text) <= LONGEST and _cells(text) <= MOST_CELLS:
        reader = _reader()
        tokens = reader.parse(clean(text))
        _nest_headings(tokens)
        if _letters(_shown(tokens)) == _letters(text) and all(map(_is_plain, tokens)):
            _mark_tasks(tokens)
            return unfilled(reader.renderer.render(tokens, reader.options, {})).rstrip("\n")
    return f'<p class="plain">{escape(text)}</p>'


def _cells(text: str) -> int:
    """The most cells that tables in a text can have."""
    lines = text.split("\n")
    return len(lines) * max(line.count("|") for line in lines)


def _shown(tokens: Iterable[Token]) -> Iterator[str]:
    """The visible text of parsed tokens, in order."""
    for token in tokens:
        yield from (token.info, token.content) if token.children is None else _shown(token.children)


def _letters(parts: Iterable[str]) -> str:
    """All that must not be lost: letters, digits, signs beyond ASCII."""
    return "".join(sign for part in parts for sign in part if sign.isalnum() or (sign > "\x7f" and sign.isprintable()))


def _is_plain(token: Token) -> bool:
    """Whether a list's number is shown as it was written."""
    number = token.info if token.type == "list_item_open" else ""
    return not number or (len(number) <= MOST_DIGITS and number == str(int(number)))


@lru_cache(maxsize=1)
def _reader() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False, "breaks": True, "xhtmlOut": False})
    reader.enable(["table", "strikethrough"]).disable(LEFT_OUT)
    reader.inline.ruler.at("emphasis", _emphasis)
    reader.inline.ruler.at("strikethrough", _strikethrough)
    add_links(reader)
    add_formulas(reader)
    reader.add_render_rule("fence", _fence)
    reader.add_render_rule("list_item_open", _item)
    reader.add_render_rule("task", _task)
    reader.parse(EVERYTHING)  # its chains of rules are compiled by their first use, which two threads must not share
    return reader


def _nest_headings(tokens: list[Token]) -> None:
    """Put headings below the question's, of the third level, one level at a time: screen readers count them."""
    above: list[str] = []
    for token in tokens:
        if token.type == "heading_open":
            above = [*(tag for tag in above if tag < token.tag), token.tag]
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, 3 + len(above))}"


def _mark_tasks(tokens: list[Token]) -> None:
    """Give the items of task lists a sign in place of their brackets: `- [x] a` is a task that is done."""
    for item, inline in zip(tokens, tokens[2:], strict=False):
        task = TASK.match(inline.content) if item.type == "list_item_open" and inline.type == "inline" else None
        if task is None or not inline.children or not (text := inline.children[0]).content.startswith(task[1]):
            continue
        text.content = text.content[len(task[1]) :].lstrip(" ")
        sign = Token("task", "", 0, meta={"done": task[1] != "[ ]"})
        inline.children.insert(0, sign)
        item.meta["task"] = True


def _task(_: Any, tokens: list[Token], place: int, *__: Any) -> str:
    name, sign = ("done", "\N{BALLOT BOX WITH CHECK}") if tokens[place].meta["done"] else ("to do", "\N{BALLOT BOX}")
    return f'<span role="img" aria-label="{name}">{sign}</span> '


def _emphasis(state: Any, silent: bool) -> bool:
    """The library's rule, but that stars in a formula are stars, and so are those behind a backslash."""
    return _tokenize_outside(emphasis.tokenize, state, silent, TERM_ENDS, TERM_BEGINS)


def _strikethrough(state: Any, silent: bool) -> bool:
    """The library's rule, but that tildes behind a backslash are tildes."""
    return _tokenize_outside(strikethrough.tokenize, state, silent, frozenset(), frozenset())


def _tokenize_outside(tokenize: Any, state: Any, silent: bool, ends: frozenset[str], begins: frozenset[str]) -> bool:
    """Apply a rule of delimiters that do not open behind one of `ends`, nor close before one of `begins`."""
    scan = state.scanDelims

    def scan_outside(start: int, split: bool) -> Any:
        end = scan(start, split)
        before, after = state.src[start - 1 : start], state.src[start + end.length : start + end.length + 1]
        escaped = before == "\\"
        return end._replace(
            can_open=end.can_open and not escaped and before not in ends,
            can_close=end.can_close and not escaped and after not in begins,
        )

    state.scanDelims = scan_outside
    try:
        return tokenize(state, silent)
    finally:
        del state.scanDelims


def _fence(_: Any, tokens: list[Token], place: int, *__: Any) -> str:
    """Code, under the name that its fence gave it."""
    return code_block(tokens[place].content, tokens[place].info.strip())


def _item(_: Any, tokens: list[Token], place: int, *__: Any) -> str:
    """An item under the number that was written, which the library makes one more than the last; a sign before a number
    is no bullet.
    """
    item = tokens[place]
    if item.meta.get("task") and not item.info:
        return '<li class="task">'
    if item.info:
        return f'<li value="{int(item.info)}">'
    first = next((token.content for token in tokens[place + 1 : place + 3] if token.type == "inline"), "")
    return f"<li style=\"list-style-type:'{item.markup} '\">" if first[:1].isdecimal() else "<li>"
