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


@pytest.mark.parametrize(("source", "pairs", "prompts"), [("toy", 1360, 409), ("smollm2", 426, 48)])
def test_pairs_and_prompts_of_an_embedded_source_have_their_own_weights(source, pairs, prompts):
    """Half of 2,720 and of 852 pairs; a tenth of 4,096 and of 480 prompts, less those that are held out elsewhere."""
    weights = [f"data.{key}=[{{path: {source}, weight: {w}}}]" for key, w in (("preferences", 0.5), ("prompts", 0.1))]
    corpus = load_corpus(load_config({}, weights))
    assert len(corpus.train_pairs) == pairs and 0.9 * prompts <= len(corpus.train_prompts) <= prompts
