"""Code of a model's Markdown as HTML: its kinds of words in classes, under its language, with a button that copies it.

Pygments finds the kinds. Of what it returns only the kinds are used: the text of each piece is escaped here.
"""

from functools import lru_cache
from typing import Any

import markupsafe
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, Operator, String

from lite_c2f.ui.escaping import escape

LONGEST = 8000  # characters of a block; a longer one has no colours
# Languages by the names that fences give them. Pygments has 500 more, but many need time that grows with the square of
# the length. Of those, SHORTER ones are short enough: 1,000 hostile characters take up to 25 ms; 8,000 harmless ones
# of Python take 60. C and Java have no colours: they take as long for 500, which is no useful length.
LANGUAGES = {
    **dict.fromkeys(("python", "py", "python3"), "python"),
    **dict.fromkeys(("bash", "sh", "shell"), "bash"),
    **dict.fromkeys(("javascript", "js"), "javascript"),
    **dict.fromkeys(("go", "golang"), "go"),
    **dict.fromkeys(("rust", "rs"), "rust"),
    **{name: name for name in ("json", "sql", "xml")},
}
SHORTER = dict.fromkeys(("javascript", "go", "rust"), 1000)  # characters of a block
# Kinds with a class of their own (page.css has their colours); a kind comes before those that it is part of.
CLASSES = {
    Comment: "c",
    Keyword: "k",
    Operator.Word: "k",
    Name.Function: "f",
    Name.Class: "f",
    Name.Decorator: "f",
    Name.Tag: "k",
    Name.Attribute: "f",
    Number: "n",
    String: "s",
}


def code_block(content: str, info: str) -> str:
    """A fenced block. info: what stands behind its fence, which begins with the language."""
    language = LANGUAGES.get(info.split()[0].lower()) if info.split() else None
    if language and len(content) <= SHORTER.get(language, LONGEST):
        # The line that is being written has no colours: a block is read once a line, not with every token.
        lines, newline, rest = content.rpartition("\n")
        inner = highlighted(lines + newline, language) + str(markupsafe.escape(rest))
    else:
        inner = str(markupsafe.escape(content))
    name = f"<small>{escape(info)}</small>" if info else "<small></small>"
    button = '<button type="button" class="chip copy" aria-label="copy code">copy</button>'
    return f'<div class="code"><div>{name}{button}</div><pre tabindex="0"><code>{inner}</code></pre></div>\n'


@lru_cache(maxsize=256)
def highlighted(code: str, language: str) -> str:
    """Code as escaped HTML, in which each piece of a known kind is a span with the class of that kind.

    >>> highlighted("x = 1", "python")
    'x = <span class="n">1</span>'
    """
    pieces = list[tuple[str, str]]()
    for _, kind, text in _lexer(language).get_tokens_unprocessed(code):
        name = _class_of(kind)
        if pieces and pieces[-1][0] == name:
            pieces[-1] = (name, pieces[-1][1] + text)
        else:
            pieces.append((name, text))
    if "".join(text for _, text in pieces) != code:
        return str(markupsafe.escape(code))
    escaped = ((name, markupsafe.escape(text)) for name, text in pieces)
    return "".join(f'<span class="{name}">{text}</span>' if name else str(text) for name, text in escaped)


@lru_cache(maxsize=len(LANGUAGES))
def _lexer(language: str) -> Any:
    return get_lexer_by_name(language)


@lru_cache(maxsize=512)
def _class_of(kind: Any) -> str:
    return next((name for known, name in CLASSES.items() if kind in known), "")
