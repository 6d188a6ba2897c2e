"""HTML of the app: its templates filled in, and text outside them escaped.

Gradio reads an HTML component's value as a template of its own, in which ${...} and {{...}} are code: no `$`, brace or
backtick may be left in what it gets, whoever wrote it.
"""

from typing import Any

import markupsafe

from lite_c2f.chat.history import clean
from lite_c2f.runtime.html import render

REPLACED = {"\x00": "\N{REPLACEMENT CHARACTER}", **{sign: f"&#{ord(sign)};" for sign in "${}`"}}


def fill(template: str, **values: Any) -> str:
    """A file of ui/templates with its values, each escaped unless the template marks it as safe."""
    return unfilled(render("lite_c2f.ui", template, **values)).strip()


def escape(text: str) -> str:
    """Text as HTML that shows it and does nothing else, for what is no template, such as a notice.

    >>> escape("<b>${x} {{y}}")
    '&lt;b&gt;&#36;&#123;x&#125; &#123;&#123;y&#125;&#125;'
    """
    return unfilled(str(markupsafe.escape(text)))


def unfilled(markup: str) -> str:
    """HTML that is UTF-8 and in which Gradio's template finds nothing to fill in."""
    markup = clean(markup)
    for sign, replacement in REPLACED.items():
        markup = markup.replace(sign, replacement)
    return markup
