"""Page of a report: its blocks, as self-contained HTML (light and dark, no network) and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lite_c2f.evaluation.meanings import meaning_of, title_of
from lite_c2f.evaluation.overlap import marked_pieces
from lite_c2f.runtime.html import render


class Heading(NamedTuple):
    """The beginning of a section."""

    text: str


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Table(NamedTuple):
    """Rows by name, with their cells as text."""

    first: str  # header of the column of names
    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]
    bold: str | None = None  # name of the highlighted row or column
    meanings: Mapping[str, str] = {}  # of columns, or of rows


class Chart(NamedTuple):
    """An SVG made by lite_c2f.runtime.svg, which has escaped its text, and a caption."""

    svg: str
    caption: str


class AnswerBlock(NamedTuple):
    """Responses of several actors, or of one at several times, to one prompt."""

    prompt: str
    rows: Sequence[tuple[str, str, str]]  # (name, figures, response)


class Code(NamedTuple):
    """Preformatted text, collapsed under its name."""

    name: str
    text: str


WIDEST = 8  # columns of figures that fit beside each other


Block = Heading | Text | Table | Chart | AnswerBlock | Code


def figures_table(
    rows: Mapping[str, Mapping[str, Any]],
    first: str,
    bold: str | None = None,
    errors: Mapping[str, Mapping[str, float]] = {},
) -> Table:
    """A table of numbers with three decimals, with what they mean; its columns are all names in the rows, in order.

    With more than WIDEST columns, and fewer rows, it is turned round: a row per figure. The cell of a number that a row
    lacks is empty. errors: standard errors, by row and name, of figures that have one. Raises ValueError or TypeError
    for a value that is not a number, and ValueError for no rows.
    """
    if not rows:
        raise ValueError("no rows")
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = {
        key: [_figure(row.get(key), errors.get(name, {}).get(key)) if key in row else "" for name, row in rows.items()]
        for key in names
    }
    meanings = {title_of(key): meaning for key in names if (meaning := meaning_of(key))}
    if WIDEST < len(names) > len(rows):
        return Table(f"figure, by {first}", list(rows), {title_of(key): cells[key] for key in names}, bold, meanings)
    turned = dict(zip(rows, map(list, zip(*cells.values(), strict=True)), strict=True))
    return Table(first, [title_of(key) for key in names], turned, bold, meanings)


def _figure(value: Any, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """The page (templates/report.html). Everything that comes from data or models is escaped."""
    kinds = [(type(block).__name__, block) for block in blocks]
    headings = [block.text for block in blocks if isinstance(block, Heading)]
    names = {"title": title, "blocks": kinds, "headings": headings, "pieces": marked_pieces}
    return render("lite_c2f.evaluation", "report.html", **names)


def as_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The same as Markdown, without charts."""
    return (
        "\n\n".join(
            [f"# {_plain(title)}: lite\\_c2f report", *(text for block in blocks if (text := _markdown(block)))]
        )
        + "\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {_plain(text)}"
        case Text(text):
            return _plain(text)
        case Table(first, columns, rows, _, meanings):
            lines = [
                [first, *columns],
                ["---", *("---:" for _ in columns)],
                *([name, *row] for name, row in rows.items()),
            ]
            cells = ["| " + " | ".join(map(_plain, line)) + " |" for line in lines]
            notes = [f"- *{_plain(name)}*: {_plain(text)}" for name, text in meanings.items()]
            return "\n".join([*cells, *(["", *notes] if notes else [])])
        case Chart():
            return ""
        case AnswerBlock(prompt, responses):
            items = [f"- **{name}** ({figures}): {_plain(response)}" for name, figures, response in responses]
            return "\n".join([f"### {_plain(prompt)}", "", *items])
        case Code(name, text):
            return "\n".join([f"{_plain(name)}:", "", *(f"    {line}" for line in text.splitlines())])


def _plain(text: str) -> str:
    """The text on one line, with Markdown's special characters escaped."""
    line = " ".join(text.split())
    for character in "\\`*_<>[]|#":
        line = line.replace(character, f"\\{character}")
    return line
