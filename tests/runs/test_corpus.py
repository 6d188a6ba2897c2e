"""The corpus of a run: what it offers beside the split, which tests/data and tests/smollm look at."""

import pytest

from lite_c2f.config.loading import load_config
from lite_c2f.runs.corpus import example_questions, load_corpus


@pytest.mark.parametrize(("source", "count"), [("toy", 3), ("smollm2", 3), ("pairs.jsonl", 0)])
def test_example_questions_are_held_out_ones(source, count):
    questions = example_questions(load_config({}, [f"data.preferences=[{source}]"]))
    assert len(questions) == count
    if count:
        corpus = load_corpus(load_config({}, [f"data.preferences=[{source}]"]))
        trained = {prompt.turns[-1].text for prompt in corpus.train_prompts}
        assert not trained & set(questions)
