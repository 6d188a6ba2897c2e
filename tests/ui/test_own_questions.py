"""Questions of a visitor: lines of text and lines of JSON, and one line about what is refused."""

import json

import pytest

pytest.importorskip("gradio")

from lite_c2f.errors import DataError
from lite_c2f.ui.own_questions import questions_in


def test_a_line_is_a_question():
    assert questions_in("\n  Why? \r\n\nHow {x}?\u2028And?\nWhy?\n") == ["Why?", "How {x}?\u2028And?"]
    assert questions_in("{not json\n{}x") == ["{not json", "{}x"]
    assert questions_in('["a"]') == ['["a"]']  # JSON, and no object


def test_a_json_line_has_its_question_in_a_field():
    text = '\n{"question": "Two\\nlines", "id": 1}\n\n{"id": 2, "prompt": " P ", "question": "Q"}\n'
    assert questions_in(text) == ["Two\nlines", "P"]
    assert questions_in(json.dumps({"prompt": "a\ud800"})) == ["a?"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n\n", "no question; expected one per line"),
        ('{"prompt": "a"}\n\nb', "line 3 is no JSON object"),
        ('{"prompt": "a"}\n["b"]', "line 2 is no JSON object"),
        ('{"prompt": "a"}\n{"prompt": 3}', 'line 2 has no question; expected a text under "prompt" or "question"'),
        ('{"prompt": "a"}\n{"prompt": " "}', "line 2: an empty question"),
        ("a\n" + "b" * 32_769, "line 2: a question of 32,769 characters; expected at most 32,768"),
        ("\n\na\n" + "b" * 32_769, "line 4: a question of 32,769 characters"),  # as an editor counts
        ("\n".join(map(str, range(201))), "201 questions; expected at most 200"),
        ("a" * 200_001, "200,001 characters; expected at most 200,000"),
        ("[" * 100_000 + "\n" + "a", "line 1: a question of 100,000 characters"),  # too deep to be read as JSON
    ],
)
def test_what_is_refused_is_named_with_its_line(text, message):
    with pytest.raises(DataError) as refused:
        questions_in(text)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_as_many_and_as_long_as_they_may_be():
    assert len(questions_in("\n".join([*map(str, range(200)), "7"]))) == 200  # the same one twice counts once
    assert questions_in("b" * 32_768) == ["b" * 32_768]
