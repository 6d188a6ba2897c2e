"""All stages on SmolLM2 itself, a few steps of each; and its answers sampled anew."""

import json
from importlib import metadata

import pytest

from lite_c2f.gguf import unpacked
from lite_c2f.gguf.embedded import PACKAGE
from lite_c2f.pipeline.own_answers import fresh_answers
from lite_c2f.runtime.progress import SilentSink
from lite_c2f.smollm import CONFIG, SMOLLM
from lite_c2f.smollm.data import SAMPLING_GRID, all_questions, pairs

FEW = [
    "data.max_answer_tokens=32", "data.held_out=0.3", "data.max_held_out=8", "reward.batch=4",
    "reward.micro_batch=4", "coarse.updates=2", "coarse.rollouts=4", "coarse.epochs=1", "coarse.length.start=8",
    "coarse.length.max=16", "coarse.sample_prompts=1", "evaluation.prompts=4", "evaluation.max_tokens=16",
    "fine.max_tokens=16",
]  # fmt: skip


@pytest.fixture(autouse=True)
def installed():
    try:
        metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is not installed; `make test` installs it")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_all_stages(tmp_path, call):
    rows = [{"prompt": p.turns[0].text, "chosen": p.chosen, "rejected": p.rejected} for p in pairs(held_out=False)[:12]]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))  # fewer than the source's 287 held-out ones
    few = [*FEW, f"data.preferences=[{tmp_path / 'pairs.jsonl'}]"]
    code, out, err = call("train", CONFIG, *few, "--run-dir", tmp_path / "run")
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["actors"]) == {"base", "instruct", "coarse", "fine"}
    assert all({"accuracy", "analytic"} <= figures.keys() for figures in summary["actors"].values())
    assert summary["coarse"]["limit_first"] == 8 and "base" in out
    config = json.loads((tmp_path / "run" / "fine" / "model" / "config.json").read_text())
    assert config["tie_word_embeddings"] and config["hidden_size"] == 576


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_answers_sampled_anew_are_kept_and_not_sampled_again(tmp_path, monkeypatch):
    unpacked(SMOLLM)
    questions = all_questions()[0][:2]
    monkeypatch.setattr("lite_c2f.pipeline.own_answers.LIMIT", 8)
    first = fresh_answers(tmp_path / "answers.jsonl", questions, SilentSink())
    assert [(answer.form, answer.temperature) for answer in first[::2]] == list(SAMPLING_GRID)
    monkeypatch.setattr("lite_c2f.pipeline.own_answers._load", lambda: pytest.fail("nothing is left to sample"))
    assert fresh_answers(tmp_path / "answers.jsonl", questions, SilentSink()) == first
