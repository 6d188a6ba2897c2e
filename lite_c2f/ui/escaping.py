"""Text of people and models in a page: shown, never read as markup, and nothing for the page's templates to fill in."""

import html

from lite_c2f.chat.prompts import clean

TEMPLATE_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "${}`"})


def escape(text: str) -> str:
    """Text as HTML that shows it and is nothing else; no template of the page finds anything to fill in either.

    >>> escape("<b>${x} {{y}}")
    '&lt;b&gt;&#36;&#123;x&#125; &#123;&#123;y&#125;&#125;'
    """
    return unfilled(html.escape(clean(text).replace("\x00", "\N{REPLACEMENT CHARACTER}"), quote=True))


def unfilled(markup: str) -> str:
    """HTML in which no template of the page finds anything to fill in: Gradio's reads ${} and {{}}."""
    return markup.translate(TEMPLATE_SIGNS)
