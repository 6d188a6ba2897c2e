"""How verdicts and grades are read from a judge's text, by a table of examples."""

import pytest

from lite_c2f.config.loading import load_config
from lite_c2f.evaluation.llm_judge.judges import Local
from lite_c2f.evaluation.llm_judge.verdicts import opens_thinking, read_grade, read_verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        # as asked for
        ("... VERDICT: A", "A"),
        ("verdict: b", "B"),
        ("VERDICT: TIE", "tie"),
        # set in bold, in brackets, as a heading, in other words around it
        ("VERDICT: **TIE**", "tie"),
        ("**VERDICT: A**", "A"),
        ("**Verdict:** A", "A"),
        ("**Verdict**: __B__", "B"),
        ("VERDICT: [B]", "B"),
        ("VERDICT: [[A]]", "A"),
        ("VERDICT: (A)", "A"),
        ("VERDICT: `A`", "A"),
        ('VERDICT: "B"', "B"),
        ("A is shorter.\n[[A]]", "A"),
        ("B is right.\n\n**B**", "B"),
        ("B is right.\n**B**.\n", "B"),
        ("## Verdict\n\nA", "A"),
        ("VERDICT:\nB", "B"),
        ("Final verdict - B", "B"),
        ("My verdict is A.", "A"),
        ("VERDICT: Assistant A", "A"),
        ("VERDICT: Conversation B.", "B"),
        ("VERDICT: A. It is right.", "A"),
        ("VERDICT: B, although A is shorter", "B"),
        ("VERDICT: A (not a tie: B is wrong)", "A"),
        ("VERDICT: B is slightly better than A", "B"),
        ("VERDICT: A wins", "A"),
        ("VERDICT: A because it is right", "A"),
        # ties in the usual words
        ("VERDICT: A tie", "tie"),
        ("VERDICT: a tie.", "tie"),
        ("VERDICT: It's a tie", "tie"),
        ("VERDICT: tied", "tie"),
        ("VERDICT: Draw", "tie"),
        ("VERDICT: a draw", "tie"),
        ("VERDICT: equal", "tie"),
        ("VERDICT: Equally good", "tie"),
        ("VERDICT: C", "tie"),
        ("[[C]]", "tie"),
        ("VERDICT: both", "tie"),
        ("VERDICT: Both are wrong", "tie"),
        ("VERDICT: Both are good, but A is better", None),
        ("VERDICT: both assistants fail, A slightly less", None),
        ("VERDICT: neither", "tie"),
        ("VERDICT: the same", "tie"),
        ("VERDICT: A and B are equal", "tie"),
        ("VERDICT: A is as good as B", "tie"),
        ("**Tie**", "tie"),
        # the last counts
        ("VERDICT: A\nno, VERDICT: B", "B"),
        ("VERDICT: A, no: VERDICT: B", "B"),
        ("VERDICT: B\nThis verdict rests on the sum.", "B"),
        ("VERDICT: A\nVERDICT: undecided", None),
        ("VERDICT: A\nVERDICT:", None),
        # thinking is no verdict
        ("<think>VERDICT: A</think>VERDICT: B", "B"),
        ("<think>VERDICT: A</think>Hm.", None),
        ("<think>Perhaps VERDICT: A", None),
        ("<think>VERDICT: A</think> VERDICT: B <think>or VERDICT: A", None),
        ("VERDICT: B <think>VERDICT: A</think>", "B"),
        ("so VERDICT: A\n</think>\nVERDICT: B", "B"),  # opened by the template
        ("so VERDICT: A\n</think>\n", None),
        ("<thinking>VERDICT: A</thinking>\nVERDICT: TIE", "tie"),
        ("[THINK]VERDICT: A[/THINK]VERDICT: B", "B"),
        # no verdict
        ("VERDICT: Alice", None),
        ("VERDICT: A or B", None),
        ("VERDICT: A/B", None),
        ("VERDICT: A|B|TIE", None),
        ("VERDICT: not A", None),
        ("VERDICT: A good answer by B", None),
        ("VERDICT: not a tie", None),
        ("A is better", None),
        ("**A** is better", None),
        ("**Assistant A**", None),
        ("A", None),
        ("", None),
    ],
)
def test_verdicts(text, verdict):
    assert read_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("GRADE: 8", 8),
        ("grade: 7.5/10", 7.5),
        ("GRADE: 7.5.", 7.5),
        ("GRADE: 7,5", 7.5),
        ("GRADE: 7, since it is short", 7),
        ("GRADE: **10**", 10),
        ("**GRADE:** 9", 9),
        ("**Rating:** [[7]]", 7),
        ("Rating: [[7.5]]", 7.5),
        ("[[6]]", 6),
        ("Score: 7 / 10", 7),
        ("GRADE: 7 out of 10", 7),
        ("GRADE: (8)", 8),
        ("GRADE: 7 - clear", 7),
        ("## Grade\n8/10", 8),
        ("The grade is 4.", 4),
        ("Good.\n**8/10**", 8),
        ("GRADE: 3\nNo, GRADE: 4", 4),
        ("GRADE: 5\nThe grade reflects two mistakes.", 5),
        ("<think>GRADE: 3</think>GRADE: 8", 8),
        ("<think>GRADE: 3", None),
        ("GRADE: 11", None),
        ("GRADE: 0", None),
        ("GRADE: 0.5", None),
        ("GRADE: -7", None),
        ("GRADE: 4/5", None),
        ("GRADE: 70/100", None),
        ("GRADE: 7-8", None),
        ("GRADE: 7 or 8", None),
        ("GRADE: 7%", None),
        ("GRADE: 7th", None),
        ("GRADE: seven", None),
        ("GRADE: 7\nGRADE: none", None),
        ("8", None),
        ("", None),
    ],
)
def test_grades(text, grade):
    assert read_grade(text) == grade


def test_a_prompt_that_ends_within_a_thought():
    assert opens_thinking("<|user|>Hi<|assistant|><think>\n")
    assert not opens_thinking("<|user|>Hi<|assistant|><think>\n\n</think>\n\n")
    assert not opens_thinking("<|user|>Hi<|assistant|>")


@pytest.mark.parametrize(("opened", "begins"), [("<think>", True), ("", False)])
def test_the_thought_that_a_template_opens_is_marked_in_a_local_judge_s_text(editable, opened, begins):
    """The template ends with the opening tag, so that the model's own text lacks it."""
    folder = editable("instruct")
    words = folder / "tokenizer.json"
    words.write_text(words.read_text().replace('"w60"', '"<think>"'))
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message['content'] }}{% endfor %} " + opened
    )
    config = load_config({}, ["model.quantization=none", "data.max_prompt_tokens=24"])
    judge = Local(str(folder), config, max_tokens=8)
    (text,) = judge([[{"role": "user", "content": "w1 w2"}]])
    assert text.startswith("<think>") is begins
    if begins:
        assert read_verdict(text + " VERDICT: A") is None
        assert read_verdict(text + " VERDICT: A</think> VERDICT: B") == "B"
