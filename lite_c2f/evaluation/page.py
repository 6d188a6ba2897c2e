"""Blocks of a report, as one self-contained HTML page (light and dark, no network) and as Markdown."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lite_c2f.evaluation.spans import marked


class Heading(NamedTuple):
    """A section begins."""

    text: str


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Table(NamedTuple):
    """Rows by name, their cells as text."""

    first: str  # what the names are
    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]
    bold: str | None = None  # this row


class Chart(NamedTuple):
    """An SVG, and what it shows."""

    svg: str
    caption: str


class Answers(NamedTuple):
    """What several actors (or one at several times) said to one prompt."""

    prompt: str
    said: Sequence[tuple[str, str, str]]  # (who, figures, response)


class Code(NamedTuple):
    """Text as it is, folded away under its name."""

    name: str
    text: str


Block = Heading | Text | Table | Chart | Answers | Code

STYLE = """
:root{color-scheme:light dark;--line:#8885;--soft:#8881;--mark:#f59e0b44}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.7rem;margin:0 0 .3rem}h2{font-size:1.25rem;margin:2.4rem 0 .6rem}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:.8rem 0;font-variant-numeric:tabular-nums}
td,th{padding:.3rem .8rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
td:first-child,th:first-child{text-align:left}th{font-weight:600}tr.bold td{font-weight:600;background:var(--soft)}
figure{margin:.8rem 0;overflow-x:auto}svg{width:100%;min-width:40rem;height:auto}summary{cursor:pointer}
figcaption{font-size:.85rem;opacity:.75}
.said{display:grid;grid-template-columns:11rem 1fr;gap:.2rem 1rem;margin:.5rem 0;padding:.5rem 0;
border-top:1px solid var(--line)}
.said small{display:block;opacity:.75}.said p{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
h3{font-size:1rem;font-weight:600;margin:1.6rem 0 .2rem;white-space:pre-wrap;overflow-wrap:anywhere}
mark{background:var(--mark);color:inherit}pre{background:var(--soft);padding:.8rem;overflow-x:auto;font-size:.85rem}
@media(max-width:40rem){.said{grid-template-columns:1fr}body{margin:1rem auto}}
"""


def cells(rows: Mapping[str, Mapping[str, Any]], first: str, bold: str | None = None) -> Table:
    """A table of figures: columns as the rows name them, three decimals; a figure that a row lacks stays empty.

    Raises ValueError or TypeError for what is no figure, StopIteration for no rows.
    """
    next(iter(rows))
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    told = {name: [f"{row[key]:.3f}" if key in row else "" for key in columns] for name, row in rows.items()}
    return Table(first, [column.replace("_", " ") for column in columns], told, bold)


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """The page. Everything that comes from data or models is escaped."""
    body = "".join(_html(block) for block in blocks)
    name = html.escape(title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{name}</title><style>{STYLE}</style></head><body><h1>{name}</h1>{body}</body></html>\n"
    )


def as_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The same without charts."""
    return "\n\n".join([f"# {_plain(title)}", *(text for block in blocks if (text := _markdown(block)))]) + "\n"


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Table(first, columns, rows, bold):
            head = "".join(f"<th>{html.escape(name)}</th>" for name in (first, *columns))
            body = "".join(
                f"<tr{' class=bold' if name == bold else ''}><td>{html.escape(name)}</td>"
                + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
                + "</tr>"
                for name, row in rows.items()
            )
            return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
        case Chart(svg, caption):
            told = html.escape(caption)
            named = svg.replace("<svg", f'<svg role="img" aria-label="{told}"', 1)
            return f"<figure>{named}<figcaption>{told}</figcaption></figure>"
        case Answers(prompt, said):
            answered = "".join(
                f'<div class="said"><div><b>{html.escape(who)}</b><small>{html.escape(figures)}</small></div>'
                f"<p>{marked(response)}</p></div>"
                for who, figures, response in said
            )
            return f"<h3>{html.escape(prompt)}</h3>{answered}"
        case Code(name, text):
            return f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(text)}</pre></details>"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {_plain(text)}"
        case Text(text):
            return _plain(text)
        case Table(first, columns, rows, _):
            lines = [
                [first, *columns],
                ["---", *("---:" for _ in columns)],
                *([name, *row] for name, row in rows.items()),
            ]
            return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)
        case Chart():
            return ""
        case Answers(prompt, said):
            told = "\n".join(f"- **{who}** ({figures}): {_plain(response)}" for who, figures, response in said)
            return f"### {_plain(prompt)}\n\n{told}"
        case Code(name, text):
            return "\n".join([f"{_plain(name)}:", "", *(f"    {line}" for line in text.splitlines())])


def _plain(text: str) -> str:
    """On one line, and nothing in it is taken for markup."""
    line = " ".join(text.split())
    for sign in "\\`*_<>[]|#":
        line = line.replace(sign, f"\\{sign}")
    return line
