"""Pairs and prompts of the embedded real model, as they are shipped."""

import hashlib
from collections import Counter

import pytest

from lite_c2f.config.loading import load_config
from lite_c2f.runs.corpus import load_corpus
from lite_c2f.smollm import CONFIG, SMOLLM
from lite_c2f.smollm.data import (
    ANSWERS,
    SAMPLING_GRID,
    SampledAnswer,
    all_questions,
    pairs,
    pairs_of,
    prompts,
    read_answers,
)
from lite_c2f.smollm.questions import CheckedQuestion

SHA256 = "1944b0d1c573ce645de3bc6beea1d5d0c07152bf3a2e2d45e678089afbd0c9d8"


def test_the_answers_are_those_that_were_sampled():
    """Written by benchmarks/own_answers.py."""
    assert hashlib.sha256(ANSWERS.read_bytes()).hexdigest() == SHA256
    answers = read_answers()
    questions = [question.text for side in all_questions() for question in side]
    assert Counter((a.form, a.temperature) for a in answers) == dict.fromkeys(SAMPLING_GRID, len(questions))
    assert [answer.question for answer in answers] == questions * len(SAMPLING_GRID)


def test_no_question_is_on_both_sides():
    sides = [{row.turns[0].text for row in pairs(held_out=held)} for held in (False, True)]
    asked = [{row.turns[0].text for row in prompts(held_out=held)} for held in (False, True)]
    assert not asked[0] & asked[1] and sides[0] <= asked[0] and sides[1] <= asked[1]
    assert [len(side) for side in asked] == [480, 160] and min(map(len, sides)) > 100


def test_pairs_are_those_of_one_question():
    question, other = CheckedQuestion("stock", "How many pens?", "7"), CheckedQuestion("stock", "How many cups?", "2")
    answers = [
        SampledAnswer(question.text, "plain", 0.7, "It is 7 pens.", True),
        SampledAnswer(other.text, "plain", 0.7, "It is 9 cups.", True),
        SampledAnswer(question.text, "chat", 0.7, "It is 8 pens.", False),
    ]
    (pair,) = pairs_of([question, other], answers)
    assert (pair.turns[0].text, pair.chosen, pair.rejected, pair.rejected_ended) == (
        "How many pens?",
        "It is 7 pens.",
        "It is 8 pens.",
        False,
    )


@pytest.mark.parametrize(("weight", "count"), [(0.5, 240), (1.0, 480), (1.5, 720)])
def test_the_source_has_a_weight_and_its_own_split(weight, count):
    config = load_config(CONFIG, [f"data.prompts=[{{path: {SMOLLM}, weight: {weight}}}]"])
    corpus = load_corpus(config)
    held = {prompt.turns for prompt in corpus.held_out_prompts}
    assert len(corpus.train_prompts) == count and len(held) == 160
    assert not held & {pair.turns for pair in corpus.train_pairs} and {p.source for p in corpus.train_pairs} == {SMOLLM}
    assert not held & {prompt.turns for prompt in corpus.train_prompts}
