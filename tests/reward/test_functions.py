"""Ready-made reward functions, by values worked out by hand."""

import pytest

from lite_c2f.reward import functions
from lite_c2f.reward.functions import RewardInputs, Row, last_number


def inputs(*responses, finish=None, rows=None, ids=None):
    count = len(responses)
    ids = ids or [list(range(len(text.split()))) for text in responses]
    rows = [Row(row) for row in rows or [{}] * count]
    return RewardInputs(["?"] * count, list(responses), ids, list(finish or ["eos"] * count), rows, [[]] * count)


def test_ended():
    assert functions.ended(inputs("a", "b", "c", finish=["eos", "stop", "limit"])) == [1.0, 1.0, 0.0]


def test_length_is_a_distance_to_a_target():
    assert functions.length(inputs("a b c", "a b c d e f", "a"), target=3, slope=0.5) == [0.0, -1.5, -1.0]


def test_tokens():
    assert functions.tokens(inputs("a b c", "")) == [3.0, 0.0]


def test_repetition_of_two_grams():
    """1 2 1 2 1 has the pairs 12, 21, 12, 21: two of four repeat; one token has none."""
    assert functions.repetition(inputs("x", "y", "z", ids=[[1, 2, 1, 2, 1], [7], [1, 2, 3]]), n=2) == [-0.5, 0.0, 0.0]
    with pytest.raises(ValueError, match="n=0"):
        functions.repetition(inputs("x"), n=0)


def test_format_finds_across_lines_and_can_be_anchored():
    texts = inputs("<think>\na\n</think> 5", "5", "so <think></think>")
    assert functions.format(texts, pattern="<think>.*</think>") == [1.0, 0.0, 1.0]
    assert functions.format(texts, pattern=r"^<think>.*</think> \d$") == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 + 3 = 5. The answer is 5.", 5.0),
        ("1,234.5 apples", 1234.5),
        ("it is -3", -3.0),
        ("none", None),
        ("7, 8", 8.0),
        ("x = \u22123", -3.0),
    ],
)
def test_the_last_number(text, number):
    assert last_number(text) == number


def test_number_matches_the_last_number_of_the_column():
    rows = [{"answer": 5}, {"answer": "2+2=4\n#### 1,000"}, {"answer": "who knows"}, {"answer": -3}]
    answers = inputs("5, no, 6", "It is 1000.0", "4", "-3", rows=rows)
    assert functions.number_matches(answers) == [0.0, 1.0, None, 1.0]
    assert functions.number_matches(inputs("4", rows=[{"n": 4}]), column="n") == [1.0]


def test_numbers_in_the_column_are_not_read_from_their_text():
    """1e+16 and 1e-05 in Python's spelling; an empty cell of some files is NaN."""
    rows = [{"answer": 1e16}, {"answer": 1e-5}, {"answer": 1e16}, {"answer": float("nan")}, {"answer": None}]
    answers = inputs("10,000,000,000,000,000", "0.00001", "16", "3", "3", rows=rows)
    assert functions.number_matches(answers) == [1.0, 1.0, 0.0, None, None]


def test_a_row_without_the_column_names_those_it_has():
    with pytest.raises(KeyError, match="no column 'answer', the row has level, topic"):
        functions.number_matches(inputs("4", rows=[{"topic": "sums", "level": 1}]))


def test_contains_a_text_or_that_of_a_column():
    assert functions.contains(inputs("It IS so", "no"), text="is") == [1.0, 0.0]
    assert functions.contains(inputs("a b", "a b", rows=[{"w": "B"}, {"w": "c"}]), column="w") == [1.0, 0.0]
    empty = inputs("none of it", "", "nan", rows=[{"w": None}, {"w": ""}, {"w": " "}])
    assert functions.contains(empty, column="w") == [None, None, None]
    for wrong in ({}, {"text": "a", "column": "w"}, {"text": ""}):
        with pytest.raises(ValueError, match="needs `text` or `column`"):
            functions.contains(inputs("a"), **wrong)
