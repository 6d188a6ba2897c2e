"""The coarse stage with reward functions on a pico base: without a reward model, stopped by a bad function, resumed."""

import json
import math
import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lite_c2f.coarse.train as coarse_train
from lite_c2f.coarse import diagnostics, rollout
from lite_c2f.coarse.train import train_coarse
from lite_c2f.config.loading import load_config
from lite_c2f.data.records import Prompt, Turn
from lite_c2f.errors import NonFiniteError, RunError
from lite_c2f.reward.calls import RewardError
from lite_c2f.reward.files import publish_skipped
from lite_c2f.reward.sources import new_sources
from lite_c2f.runs.corpus import Corpus
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runs.published import coarse_adapter

SETTINGS = ["data.max_prompt_tokens=16", "data.max_answer_tokens=16", "evaluation.max_tokens=16", "fine.max_tokens=16",
            "lora.r=4", "model.quantization=none", "hardware.device=cpu", "coarse.rollouts=6", "coarse.minibatches=1",
            "coarse.epochs=1", "coarse.updates=6", "coarse.critic_warmup=1", "coarse.micro_batch=6",
            "coarse.sampling_batch=6", "coarse.length={mode: fixed, start: 8}", "coarse.lr=0.02", "coarse.kl_coef=0",
            "coarse.sample_prompts=2", "coarse.evaluate_every=2", "coarse.evaluate_prompts=6",
            "coarse.evaluate_temperature=1", "run.checkpoint_every=2"]  # fmt: skip
FUNCTIONS = """
from pathlib import Path
calls = Path(__file__).with_name("calls.txt")

def words(inputs):
    assert all(row["level"] == int(prompt[1:].split()[0]) for prompt, row in zip(inputs.prompts, inputs.rows))
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    return [sum(token % 2 for token in ids) / max(len(ids), 1) for ids in inputs.token_ids]

def fewer(inputs):
    return [-float(sum(ids)) for ids in inputs.token_ids]
"""
PROMPTS = [Prompt((Turn("human", f"w{n} w{n + 1}"),), {"level": n}, "a" if n % 2 else "b") for n in range(3, 15)]
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own


def train(folder, run, pico, *more, text=FUNCTIONS, force=False):
    file = folder / "mine.py"
    file.write_text(text)
    rewards = f"coarse.rewards=[{{function: '{file}:words'}}]", f"coarse.watch=[{{function: '{file}:fewer'}}]"
    publish_skipped(run)
    messages = []
    corpus = Corpus([], [], PROMPTS, PROMPTS, {})
    models = ModelPair(str(pico["base"]), str(pico["instruct"]))
    config = load_config({}, [*SETTINGS, *rewards, *more])
    metrics = train_coarse(config, models, corpus, run, on_message=messages.append, force=force)
    return metrics, messages


def lines(run, stage):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = {"seconds", "sampling_seconds", "tokens_per_s", "peak_memory_mib", "function_seconds"}
    return [{key: value for key, value in row.items() if key not in kept} for row in rows if row["stage"] == stage]


@pytest.fixture(scope="module")
def whole(pico, tmp_path_factory):
    """A run that nothing stopped."""
    run = tmp_path_factory.mktemp("whole")
    metrics, messages = train(run, run, pico)
    return run, metrics, messages


def test_it_learns_from_a_function_alone(whole):
    run, metrics, messages = whole
    updates, judged = lines(run, "coarse"), lines(run, "held_out")
    assert [line["step"] for line in judged] == [0, 2, 4, 6]
    assert len({line["words"] for line in judged}) > 1  # something was learned
    assert {"reward/words", "reward"} <= updates[0].keys() and "reward/fewer" not in updates[0]
    assert abs(updates[0]["reward"]) < 1e-6  # the first batch, by its own mean
    assert metrics["rewards"]["words"] == [updates[0]["reward/words"], updates[-1]["reward/words"]]
    assert metrics["mix"]["stats"]["words"][0] == 36  # six updates of six responses
    samples = [json.loads(line) for line in (run / "coarse" / "samples.jsonl").read_text().splitlines()]
    assert samples[0]["rewards"].keys() == {"words", "fewer"}
    assert any(message.startswith("update 4, held-out prompts: reward") for message in messages)
    # for the other sources of reward: 6 updates, 4 evaluations, samples after updates 1, 5 and 6
    assert len((run / "calls.txt").read_text()) == 6 + 4 + 3


def test_the_best_policy_is_that_of_its_evaluation(whole):
    """Its adapter is the one that a run of as many updates ends with."""
    run, metrics, messages = whole
    best = json.loads((run / "coarse" / "best" / "best.json").read_text())
    judged = {line["step"]: line["reward"] for line in lines(run, "held_out") if line["step"]}
    assert best["step"] == metrics["held_out"]["best_step"] == max(judged, key=lambda step: (judged[step], -step))
    assert best["figures"]["reward"] == judged[best["step"]]
    (message,) = [text for text in messages if text.startswith("coarse: best by reward on held-out prompts")]
    assert f"after update {best['step']}, with {judged[best['step']]:+.3g}" in message
    assert ("(the last, after update 6" in message) == (best["step"] != 6)
    kept = load_file(run / "coarse" / "best" / "adapter" / "adapter_model.safetensors")
    last = load_file(run / "coarse" / "adapter" / "adapter_model.safetensors")
    assert kept.keys() == last.keys()
    assert all(torch.equal(kept[key], last[key]) for key in kept) == (best["step"] == 6)
    assert coarse_adapter(run, "best").parent.name == "best" and coarse_adapter(run, "last").parent.name == "coarse"


def test_a_function_that_fails_loses_nothing(whole, pico, tmp_path):
    """It fails in the fourth update, is corrected, and the run ends with the same bytes as one that was not stopped."""
    run, _, _ = whole
    # six calls before it: an evaluation, an update and a sample of it, an update, an evaluation, the third update
    guard = "len(calls.read_text() if calls.exists() else '') < 6"
    bad = f"{FUNCTIONS}\ngood = words\ndef words(inputs): return good(inputs) if {guard} else ['no'] * 6\n"
    with pytest.raises(RewardError, match=r"reward 'words' .* gave 'no' for row 1 \(prompt 'w"):
        train(tmp_path, tmp_path, pico, text=bad)
    assert [line["step"] for line in lines(tmp_path, "coarse")] == [1, 2, 3]
    assert (tmp_path / "coarse" / "checkpoints" / "step-000003").is_dir()
    with pytest.raises(RunError, match=r"reward words, fewer: its file is another than '.*corrected one with --force"):
        train(tmp_path, tmp_path, pico)
    train(tmp_path, tmp_path, pico, force=True)
    assert lines(tmp_path, "coarse") == lines(run, "coarse") and lines(tmp_path, "held_out") == lines(run, "held_out")
    for name in ("coarse/adapter", "coarse/best/adapter", "coarse/critic"):
        files = [folder / name / "adapter_model.safetensors" for folder in (run, tmp_path)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_an_update_that_is_undone_counts_in_no_statistics(pico, tmp_path, monkeypatch):
    """Six updates of six responses are made, one more is undone: 36 scores, not 42."""
    calls = []

    def update(*given, **named):
        calls.append(1)
        if len(calls) == 3:
            raise NonFiniteError("a loss that is not finite")
        return real(*given, **named)

    real = coarse_train.update
    monkeypatch.setattr(coarse_train, "update", update)
    metrics, _ = train(tmp_path, tmp_path, pico)
    assert (metrics["updates"], metrics["skipped"], len(calls)) == (6, 1, 7)
    assert metrics["mix"]["stats"]["words"][0] == 36


def test_what_is_not_finite_loses_one_evaluation_or_one_update(pico, tmp_path, monkeypatch):
    """The evaluation after the second update is left out, and the third update is made at its second trial."""

    def scores(judges, inputs, prompts, sources):
        values = real(judges, inputs, prompts, sources)
        calls.append([source.name for source in sources])
        if len(calls) in (4, 5):  # an evaluation, two updates, an evaluation, an update
            values[sources[-1].name][2] = math.nan
        return values

    real, calls = rollout.function_scores, []
    monkeypatch.setattr(rollout, "function_scores", scores)
    metrics, messages = train(tmp_path, tmp_path, pico, "coarse.updates=4")
    assert calls == [["words", "fewer"], ["words"], ["words"], ["words", "fewer"], ["words"], ["words"], ["words"],
                     ["words", "fewer"]]  # fmt: skip
    said = "warning: update 2: no evaluation on held-out prompts, and the run goes on: reward 'fewer' is nan for row 3"
    assert any(message.startswith(said) for message in messages)
    assert any(
        message.startswith("warning: update 3 skipped (1 in a row): reward 'words' is nan for row 3")
        for message in messages
    )
    assert [line["step"] for line in lines(tmp_path, "held_out")] == [0, 4]
    assert metrics["skipped"] == 1 and metrics["mix"]["stats"]["words"][0] == 24


@pytest.fixture(scope="module")
def stopped(pico, tmp_path_factory):
    """A folder with a run that a function has ended in its third update, after evaluations at 0 and 2."""
    folder = tmp_path_factory.mktemp("stopped")
    guard = "len(calls.read_text() if calls.exists() else '') < 5"  # with the sample of the first update
    bad = f"{FUNCTIONS}\ngood = words\ndef words(inputs): return good(inputs) if {guard} else 1 / 0\n"
    with pytest.raises(RewardError, match="raised ZeroDivisionError"):
        train(folder, folder, pico, "coarse.updates=4", text=bad)
    assert [line["step"] for line in lines(folder, "held_out")] == [0, 2]
    return folder


ANEW = "which cannot be compared: their history and the best policy begin anew"


@pytest.mark.parametrize(
    ("other", "anew", "steps"),
    [("coarse.evaluate_prompts=4", 1, [2, 4]), ("coarse.evaluate_every=3", 0, [0, 2, 3, 4])],
)
def test_other_evaluations_begin_anew_where_they_cannot_be_compared(stopped, pico, tmp_path, other, anew, steps):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    _, messages = train(tmp_path, run, pico, "coarse.updates=4", other, force=True)
    assert sum(ANEW in message for message in messages) == anew
    assert [line["step"] for line in lines(run, "held_out")] == steps and len(lines(run, "coarse")) == 4


def test_other_sources_of_reward_go_on_with_the_statistics_that_there_are(stopped, pico, tmp_path):
    """Two updates of six scores were made with `words` alone; two more are made with both."""
    run, file = tmp_path / "run", tmp_path / "mine.py"
    shutil.copytree(stopped, run)
    both = f"coarse.rewards=[{{function: '{file}:words'}}, {{function: '{file}:fewer', at_least: 1, name: low}}]"
    more = "coarse.updates=4", "coarse.watch=[]", both
    with pytest.raises(RunError, match=r"made with coarse\.rewards=.*accept it with --force"):
        train(tmp_path, run, pico, *more)
    metrics, messages = train(tmp_path, run, pico, *more, force=True)
    begun = [message for message in messages if "statistics of" in message]
    assert begun == ["coarse.rewards: the statistics of low begin here"]
    assert sum(ANEW in message for message in messages) == 1
    assert {name: stats[0] for name, stats in metrics["mix"]["stats"].items()} == {"words": 24, "low": 12}
    assert metrics["mix"]["multipliers"]["low"] > 0
    # published now: what is new since then is named
    assert new_sources(load_config({}, [*SETTINGS, both]), run) is None
    config = load_config({}, [*SETTINGS, both.replace("name: low", "name: third")])
    assert "was trained without third, which has no statistics" in str(new_sources(config, run))


def test_processes_of_functions_end_with_the_run_however_it_ends(pico, tmp_path, monkeypatch):
    """After an error of the function, and after an interruption between two calls of it.

    Also while somebody holds the error, and with its traceback all that the run had.
    """
    more = f"coarse.rewards=[{{function: '{tmp_path / 'mine.py'}:words', workers: 1}}]", "coarse.watch=[]"
    bad = f"{FUNCTIONS}\ngood = words\ndef words(inputs): return 1 / 0 if calls.exists() else good(inputs)\n"
    with pytest.raises(RewardError, match="raised ZeroDivisionError"):
        train(tmp_path, tmp_path, pico, *more, text=bad)
    assert multiprocessing.active_children() == []

    def update(*given, **named):
        assert len(multiprocessing.active_children()) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(coarse_train, "update", update)
    with pytest.raises(KeyboardInterrupt) as held:
        train(tmp_path, tmp_path, pico, *more, force=True)
    assert multiprocessing.active_children() == [] and held.tb is not None


def test_time_of_functions_is_measured_and_shown(pico, tmp_path, monkeypatch):
    """At a share that an update on a busy machine has too; the usual one is tested with figures (test_diagnostics)."""
    monkeypatch.setattr(diagnostics, "FUNCTION_SHARE", 1e-4)
    slow = FUNCTIONS.replace("def words(inputs):", "def words(inputs):\n    __import__('time').sleep(0.02)")
    more = "coarse.updates=3", "coarse.watch=[]", "coarse.evaluate_every=null", "coarse.sample_every=9"
    _, messages = train(tmp_path, tmp_path, pico, *more, text=slow)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(0.02 <= row["function_seconds"] < row["seconds"] for row in rows)
    assert sum(message.startswith("warning: update 3: reward functions take") for message in messages) == 1


def test_patience_ends_it(pico, tmp_path):
    """A reward that is constant never improves: the first trained policy stays the best."""
    constant = FUNCTIONS.replace("sum(token % 2 for token in ids) / max(len(ids), 1)", "1.0")
    metrics, _ = train(tmp_path, tmp_path, pico, "coarse.patience=1", "coarse.updates=12", text=constant)
    assert metrics["updates"] == 4 and metrics["ended_early"] and metrics["held_out"]["best_step"] == 2


def test_sources_of_prompts_name_their_rewards(pico, tmp_path):
    """Rows of `a` are not given to the function, and earn its mean: 0."""
    more = "data.prompts=[{path: a, rewards: [other]}, {path: b, rewards: [words]}]"
    file = tmp_path / "mine.py"
    both = f"coarse.rewards=[{{function: '{file}:words'}}, {{function: '{file}:fewer', name: other}}]"
    train(tmp_path, tmp_path, pico, more, both, "coarse.watch=[]", "coarse.updates=2")
    for line in lines(tmp_path, "coarse"):
        assert line["applies/words"] == pytest.approx(1 - line["applies/other"])
        assert 0 < line["applies/words"] < 1


@pytest.mark.slow
def test_a_reward_for_length_alone_is_called_out(toy_models, in_process, tmp_path):
    """Short answers of the toy world are guesses: the first evaluation after one update of the policy says so."""
    functions = "lite_c2f.reward.functions"
    rewards = f"coarse.rewards=[{{function: '{functions}:length', arguments: {{target: 6}}}}]"
    watch = f"coarse.watch=[{{function: '{functions}:number_matches'}}]"
    more = ("data.prompts=[toy]", "coarse.updates=4", "coarse.rollouts=24", "coarse.critic_warmup=1", "coarse.lr=2e-3",
            "coarse.kl_coef=0", "coarse.length={mode: fixed, start: 72}", "coarse.evaluate_every=2",
            "coarse.evaluate_prompts=32", "coarse.patience=1")  # fmt: skip
    config = Path(__file__).parents[2] / "configs" / "toy.yaml"
    done = in_process("train", config, rewards, watch, *more, "--run-dir", tmp_path / "run", "--stage", "coarse")
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run" / "log.txt").read_text()
    judged = lines(tmp_path / "run", "held_out")
    assert "over-optimisation: from update 0" in log and "number_matches, which is not trained on, fell" in log
    assert len(judged) <= 3 and judged[-1]["length"] > judged[0]["length"] + 0.1
