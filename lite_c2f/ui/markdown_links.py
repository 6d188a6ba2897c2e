"""Links and images of a model's Markdown, shown as text with their address, which can be copied and leads nowhere.

Only what names another machine is read as one: `[0](x)` may be code, and `[a](javascript:x)` stays as it was written.
"""

import re
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from lite_c2f.ui.escaping import escape

# A label without brackets in it, an address, perhaps a title. All parts are bounded, none can match in two ways: a
# text of nothing but beginnings is read in linear time.
LINK = re.compile(
    r"""!?\[([^\[\]\n]{0,500})\]
    \(\ *( (?:https?://|ftp://|mailto:|www\.) (?:[^\s()<>]|\([^\s()<>]*\)){1,2000} )
    (?:\ +"([^"\n]{0,500})")?\ *\)""",
    re.IGNORECASE | re.VERBOSE,
)


def add_links(reader: MarkdownIt) -> None:
    """Let a Markdown reader show links as text."""
    reader.inline.ruler.push("address", _link)
    reader.add_render_rule("address_open", _open)
    reader.add_render_rule("address_close", _close)


def _link(state: Any, silent: bool) -> bool:
    """The rule: a label, whose own Markdown is read, between two tokens; the second one has address and title."""
    if state.src[state.pos] not in "![" or state.linkLevel or state.src[state.pos - 1 : state.pos] == "\\":
        return False
    link = LINK.match(state.src, state.pos, state.posMax)
    # A code span may go beyond the label; an address may have signs that are not seen or turn its direction.
    if link is None or link[1].count("`") % 2 or not link[2].isprintable():
        return False
    if not silent:
        most = state.posMax
        state.push("address_open", "", 1).meta["image"] = link[0].startswith("!")
        state.pos, state.posMax = link.span(1)
        state.linkLevel += 1
        state.md.inline.tokenize(state)
        state.linkLevel -= 1
        closing = state.push("address_close", "", -1)
        closing.info, closing.content = link[2], link[3] or ""
        closing.meta["alone"] = link[1] == link[2]
        state.posMax = most
    state.pos = link.end()
    return True


def _open(_: Any, tokens: list[Token], place: int, *__: Any) -> str:
    return '<span class="image">' if tokens[place].meta["image"] else "<span>"


def _close(_: Any, tokens: list[Token], place: int, *__: Any) -> str:
    """The address behind the label, unless the label is the address itself."""
    token = tokens[place]
    address = "" if token.meta["alone"] else f' <code class="address">{escape(token.info)}</code>'
    return f"</span>{address}" + (f" ({escape(token.content)})" if token.content else "")
