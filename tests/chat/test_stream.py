"""State of a question's answers, without models: what has ended, and what is still to be stopped."""

from types import SimpleNamespace

from lite_c2f.chat import AnswerStream, ChatSettings, Pane
from lite_c2f.chat.stream import PendingQuestion


def test_a_pane_is_unfinished_until_its_answer_has_ended():
    question = PendingQuestion([Pane(name, "fine") for name in "abc"], {}, ChatSettings(), score=True)
    stream = AnswerStream(question, lambda *_: None, lambda _: 0, 0.0)
    assert stream.unfinished == {"a", "b", "c"}  # none has a row yet
    question.not_started["a"] = ("error", "no memory")
    question.rows["b"] = SimpleNamespace(finish=None)
    question.rows["c"] = SimpleNamespace(finish="eos")
    assert stream.unfinished == {"b"} and not question.finished
    question.rows["b"].finish = "limit"
    assert stream.unfinished == set() and not question.finished  # scores are still to come
    question.scoring_done = True
    assert question.finished
