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
from lite_c2f.smollm.questions import CheckedQuestion, is_right
from lite_c2f.smollm.rules import conclusion, grade

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


@pytest.mark.parametrize(
    ("held_out", "count", "against"), [pytest.param(False, 852, 11, marks=pytest.mark.slow), (True, 287, 3)]
)
def test_pairs_follow_the_rules_but_for_those_that_docs_smollm2_md_counts(held_out, count, against):
    """Those prefer an answer that repeats itself over its own last sentence."""
    asked, rows = {question.text: question for question in all_questions()[held_out]}, pairs(held_out=held_out)
    broken = Counter[str]()
    for pair in rows:
        question = asked[pair.turns[0].text]
        better = grade(question, pair.chosen, ended=pair.chosen_ended)
        worse = grade(question, pair.rejected, ended=pair.rejected_ended)
        first = next((name for name, a, b in zip(better._fields, better, worse, strict=True) if a != b), "equal")
        if first == "equal" or not getattr(better, first):
            broken[first if pair.rejected == conclusion(pair.chosen) else f"{first}, best over worst"] += 1
        elif first == "analysis":
            assert better.analysis > worse.analysis
    assert len(rows) == len({(row.turns, row.chosen, row.rejected) for row in rows}) == count
    assert broken == {"once": against}


def test_what_is_right_is_mostly_a_choice():
    """The figures of docs/smollm2.md; chance is a half for two options and a third for three."""
    asked = {question.text: question for side in all_questions() for question in side}
    right: dict[bool, list[bool]] = {True: [], False: []}
    chance = []
    for answer in read_answers():
        question = asked[answer.question]
        if (verdict := is_right(question, answer.text)) is not None:
            right[bool(question.options)].append(verdict)
            chance += [1 / len(question.options)] if question.options else []
    assert [(sum(each), len(each)) for each in right.values()] == [(338, 932), (33, 1504)]
    assert round(sum(chance) / len(chance), 2) == 0.44


@pytest.mark.parametrize(("weight", "count"), [(0.5, 240), (1.0, 480), (1.5, 720)])
def test_the_source_has_a_weight_and_its_own_split(weight, count):
    config = load_config(CONFIG, [f"data.prompts=[{{path: {SMOLLM}, weight: {weight}}}]"])
    corpus = load_corpus(config)
    held = {prompt.turns for prompt in corpus.held_out_prompts}
    assert len(corpus.train_prompts) == count and len(held) == 160
    assert not held & {pair.turns for pair in corpus.train_pairs} and {p.source for p in corpus.train_pairs} == {SMOLLM}
    assert not held & {prompt.turns for prompt in corpus.train_prompts}
