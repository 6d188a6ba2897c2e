r"""Formulas of a model's Markdown: which text is one, shown as its source, which page.js renders with KaTeX as MathML.

Delimiters are `$$..$$`, `\[..\]`, `\(..\)` and `$..$`. Text between them is a formula where it has a sign of
mathematics (`\ ^ _ = < > +`), or a letter and no word of two letters: `$n-1$` and `\(f(x)\)` are formulas, `\[note\]`
and `\[1\]` are text. Numbers alone are formulas in `\(..\)` and `$$..$$`. Dollars may be money or names of a shell:
`$..$` stands on one line, has no space inside its delimiters, no letter, digit or dollar beside them, and no `{` behind
one, so that `$5 and $7`, `$A/$B` and `${a=b}/$` are text.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from lite_c2f.ui.escaping import escape

LONGEST = 2000  # characters between the delimiters
MOST = 200  # formulas of an answer; the browser lays each of them out again with every token
# A search ends at the next delimiter of its kind, and each sign is read in one way: a text of nothing but beginnings is
# read in linear time. A backslash takes the sign behind it along: `\$` ends no formula, `\\[2pt]` begins none.
FORMS = tuple(
    re.compile(pattern % f"{{1,{LONGEST}}}", re.DOTALL)
    for pattern in (
        r"\$\$((?:[^$\\]|\\.)%s)\$\$(?!\$)",
        r"\\\[((?:[^\\]|\\[^\[\]])%s)\\\]",
        r"\\\(((?:[^\\]|\\[^()])%s)\\\)",
        r"\$(?![\s${])((?:[^$\\\n]|\\[^\n])%s)(?<!\s)\$(?![\w${])",
    )
)
DISPLAYED, NUMBERS = FORMS[:2], (FORMS[0], FORMS[2])  # on lines of their own; those that may hold numbers alone
SIGN, WORD, LETTER = re.compile(r"[\\^_=<>+]"), re.compile(r"[^\W\d_]{2}"), re.compile(r"[^\W\d_]")
# KaTeX limits how often a macro is expanded and not how much it grows: 2,000 characters can make millions of signs.
DEFINITION = re.compile(r"\\(?:[gex]?def|let|futurelet|(?:re)?newcommand|providecommand|global|long)(?![A-Za-z])")
BLANK = re.compile(r"\n[ \t]*\n")
ASSETS = Path("templates", "frontend", "assets")  # of Gradio's package, served as `assets`


@lru_cache(maxsize=1)
def katex_address() -> str:
    """Where Gradio's own copy of KaTeX is served, relative to the page; empty where this release has none.

    Its name has a hash that differs between releases.
    """
    import gradio

    found = sorted((Path(gradio.__file__).parent / ASSETS).glob("katex-*.js"))
    return f"assets/{found[0].name}" if found else ""


def add_formulas(reader: MarkdownIt) -> None:
    """Let a Markdown reader find formulas."""
    reader.inline.ruler.before("backticks", "formula", _inline)
    # Before lists: a line of a formula may begin with a sign that would begin an item.
    reader.block.ruler.before("fence", "formula_block", _block, {"alt": ["paragraph", "blockquote", "list"]})
    reader.add_render_rule("formula", _render)
    reader.add_render_rule("formula_block", lambda *given: f"<p>{_render(*given)}</p>\n")


def formula_at(text: str, start: int, end: int) -> str | None:
    """The formula that begins at a place of a text, with its delimiters, or None.

    >>> formula_at("So $x^2$.", 3, 9), formula_at("$5 and $7", 0, 9)
    ('$x^2$', None)
    """
    before = text[start - 1 : start]
    if before == "\\" or (text[start] == "$" and (before == "$" or before.isalnum() or before == "_")):
        return None
    for form in FORMS:
        if found := form.match(text, start, end):
            return found[0] if _is_formula(found[1], form in NUMBERS) else None
    return None


def _is_formula(content: str, numbers: bool) -> bool:
    # Signs that are not seen or turn the direction of the text could show another formula than what was written.
    if BLANK.search(content) or DEFINITION.search(content) or not "".join(content.split()).isprintable():
        return False
    if SIGN.search(content):
        return True
    has_number = numbers and any(map(str.isdigit, content))
    return not WORD.search(content) and (has_number or LETTER.search(content) is not None)


def _inline(state: Any, silent: bool) -> bool:
    """The rule for formulas in a line of text."""
    if state.src[state.pos] not in "$\\":
        return False
    source = formula_at(state.src, state.pos, state.posMax)
    if source is None or not _counted(state, silent):
        return False
    if not silent:
        state.push("formula", "", 0).content = source
    state.pos += len(source)
    return True


def _block(state: Any, line: int, last: int, silent: bool) -> bool:
    """The rule for formulas on lines of their own, which end with their second delimiter."""
    start = state.bMarks[line] + state.tShift[line]
    if state.is_code_block(line) or not state.src.startswith(("$$", "\\["), start):
        return False
    found = next((match for form in DISPLAYED if (match := form.match(state.src, start))), None)
    if found is None:
        return False
    end = line + found[0].count("\n") + 1
    if end > last or any(state.sCount[each] < state.blkIndent for each in range(line, end)):
        return False
    text = state.getLines(line, end, state.blkIndent, False).strip()  # without the signs of a quotation
    if formula_at(text, 0, len(text)) != text or not _counted(state, silent):
        return False
    if not silent:
        state.push("formula_block", "", 0).content = text
        state.line = end
    return True


def _counted(state: Any, silent: bool) -> bool:
    """Whether an answer may have one more formula."""
    number = state.env.get("formulas", 0)
    if not silent:
        state.env["formulas"] = number + 1
    return number < MOST


def _render(_: Any, tokens: Any, place: int, *__: Any) -> str:
    return f'<span class="formula">{escape(tokens[place].content)}</span>'
