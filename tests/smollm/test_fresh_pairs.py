"""Pairs of answers sampled anew: where they are kept, and that a run is trained on them."""

import json
from pathlib import Path

from lite_c2f.cli import train as commands
from lite_c2f.config.loading import load_config
from lite_c2f.data.records import load_pairs
from lite_c2f.pipeline import own_answers
from lite_c2f.runs.corpus import load_corpus
from lite_c2f.runs.manifest import check_run
from lite_c2f.smollm import CONFIG
from lite_c2f.smollm.data import all_questions, pairs, read_answers


def test_a_run_begins_with_them(tmp_path, monkeypatch):
    """The sampling itself, an hour, gives the shipped answers here; all the rest is as `demo --fresh-pairs` does it."""
    monkeypatch.setattr(own_answers, "fresh_answers", lambda file, questions, sink: read_answers())
    monkeypatch.setattr(commands, "unpack", lambda *models: None)
    begun = []
    monkeypatch.setattr(commands, "_train", lambda file, settings, out, stages, **_: begun.append((settings, out)))
    commands.demo(tmp_path / "run", 3, commands.DemoModel.smollm2, True)
    ((settings, run),) = begun
    assert run == tmp_path / "run" and settings[0] == "run.seed=3"
    config = load_config(CONFIG, settings)
    check_run(run, config)  # a run's folder is empty before it begins
    fresh = load_pairs(config.data.preferences).items
    shipped = [*pairs(held_out=False), *pairs(held_out=True)]
    assert [pair._replace(source="") for pair in fresh] == shipped
    corpus = load_corpus(config)
    held = {question.text for question in all_questions()[1]}
    assert not held & {pair.turns[0].text for pair in corpus.train_pairs} and len(corpus.held_out_pairs) > 200


def test_the_run_may_be_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(own_answers, "fresh_pairs", lambda folder, sink: folder / "pairs.jsonl")
    monkeypatch.setattr(commands, "unpack", lambda *models: None)
    begun = []
    monkeypatch.setattr(commands, "_train", lambda file, settings, *_, **__: begun.append(settings))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    commands.demo(Path(), 0, commands.DemoModel.smollm2, True)
    assert begun[0][1] == f'data.preferences=["{tmp_path / "here-pairs" / "pairs.jsonl"}"]'


def test_they_are_kept(tmp_path, monkeypatch):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "?", "chosen": "a", "rejected": "b"}))
    monkeypatch.setattr(own_answers, "fresh_answers", lambda *_: 1 / 0)
    assert own_answers.fresh_pairs(tmp_path) == tmp_path / "pairs.jsonl"
