"""Formulas in answers: which text is one, and that its source stays whole."""

from pathlib import Path

import gradio
import pytest

from lite_c2f.ui import formulas
from lite_c2f.ui.formulas import LONGEST, MOST, formula_at, katex_address
from lite_c2f.ui.guard import POLICY
from lite_c2f.ui.markdown import formatted
from lite_c2f.ui.paths import Kind, kind_of

ENTITIES = {"&#36;": "$", "&#123;": "{", "&#125;": "}", "&#96;": "`", "&lt;": "<", "&gt;": ">", "&amp;": "&"}


def found(text):
    """The formulas that a text has as HTML, as they were written."""
    sources = [part.split("</span>")[0] for part in formatted(text).split('<span class="formula">')[1:]]
    for entity, sign in ENTITIES.items():
        sources = [source.replace(entity, sign) for source in sources]
    return sources


@pytest.mark.parametrize(
    "formula",
    [
        *("$x$", "$n-1$", "$f(x)$", "$2^{10}$", "$a_1*b_2*c$", "$3 + 4$", r"$\text{price} = \$5$", "$a`b=`c$", "$é$"),
        *(r"\(x\)", r"\( 5 \)", r"\(f(x) = (1)\)", "$$5$$", "$$ x $$", r"\[ x = [1] \]", r"\[ a \\[2pt] b \]"),
        *("$a<b$", r"$\$a$", r"$\left(\longrightarrow\right)$"),
    ],
)
def test_these_are_formulas(formula):
    assert found(formula) == [formula]
    assert found(f"**So** ({formula}), and *{formula}*.") == [formula, formula]
    assert found(f"- {formula}\n\n# {formula}\n\n> {formula}\n\n|a|\n|-|\n|{formula}|") == [formula] * 4


@pytest.mark.parametrize(
    "text",
    [
        *(
            "$5 and $7",
            "$5/$7",
            "$5-$10",
            "US$5=$",
            "$ x=1$",
            "$x=1 $",
            "$HOME/bin:$PATH",
            "$5$",
            "$cost and more$",
            "${a=b} $",
            "${a=b}/$c",
            "$a=b${c}",
        ),
        *(
            "$x=1$2",
            "$x=1$a",
            "$x\n=1$",
            "$$$x=1$$$",
            r"\$x=1$",
            r"$x=1\$",
            "$",
            "$$",
            "$$$$",
            "$a=b",
            "$$a=b$",
            "$$a=b",
        ),
        *(r"\[note\]", r"\[1\]", r"\(a b c word\)", r"\\(x\\)", r"\(x", r"\[x=1\)", "\\(x=1\n\n2\\)", r"\(\)", r"\[\]"),
        *(
            "`$x$`",
            "```\n$x$\n```",
            "    $x$",
            "$a=\u202eb$",
            "\\(a=\u2066b\\)",
            "$$a=\u200bb$$",
            "[a](https://b.c/$x$)",
        ),
    ],
)
def test_these_are_text(text):
    assert found(text) == []


def test_a_formula_is_one_as_soon_as_it_is_whole():
    text = r"So $x^2$ is \(\frac{a}{b}\)."
    ends = {8: 1, 27: 2}  # after how many characters there is one formula more
    expected = 0
    for end in range(len(text) + 1):
        expected = ends.get(end, expected)
        assert len(found(text[:end])) == expected, text[:end]


def test_formulas_on_lines_of_their_own_are_no_lists():
    lines = "$$\na &= b \\\\\n- c &< d\n+ e\n# f\n1. g\n$$"
    assert found(f"so\n{lines}\nand") == [lines]
    assert found(f"- a\n\n  {lines.replace(chr(10), chr(10) + '  ')}") == [lines]
    assert found("\n".join(f"> {line}" for line in lines.split("\n"))) == [lines]
    assert "<li>" in formatted(lines[:-2])  # one that is half written is what it is without its end
    assert found("> $$\n> a=\n\n$$") == []  # the quotation ends before it


def test_long_formulas_and_those_after_many_are_text():
    inside = "x=" + "1" * (LONGEST - 2)
    for begin, end in (("$", "$"), ("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]")):
        assert found(begin + inside + end) == [begin + inside + end]
        assert found(begin + inside + "1" + end) == []
    assert found("$x$ " * (MOST + 5)) == ["$x$"] * MOST
    assert found("$$\nx\n$$\n" * (MOST + 5)) == ["$$\nx\n$$"] * MOST
    assert found("$x$") == ["$x$"]  # counted by answer


def test_a_place_inside_a_text():
    assert formula_at("a $x$ b", 2, 7) == "$x$"
    assert formula_at("a $x$ b", 4, 7) is None
    assert formula_at("a $x$ b", 2, 4) is None  # its end is beyond what is read


def test_katex_is_found_and_served(monkeypatch, tmp_path):
    address = katex_address()
    assert (Path(gradio.__file__).parent / "templates" / "frontend" / address).is_file()
    assert kind_of("GET", f"/{address}") is Kind.part
    assert "script-src 'self'" in POLICY
    monkeypatch.setattr(formulas, "ASSETS", tmp_path)
    assert katex_address.__wrapped__() == ""  # the source is shown then
