"""The finished toy run on tasks of our own and on GSM8K, from the command line, stopped and resumed."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lite_c2f.actors.models import InstructModel
from lite_c2f.data.records import Turn
from lite_c2f.runs.manifest import open_run
from lite_c2f.sampling import Sampling
from lite_c2f.toy import world

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k" / "test-300.jsonl"
COUNT = 60
NUMBER = {"function": "regex", "regex_pattern": "The answer is (-?\\d+)", "group_select": -1}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def toy_docs():
    """Held-out problems with four answers to choose from, the right one not always first."""
    rng = random.Random(5)
    source = world.problems(rng, held_out=True)
    docs = []
    for problem in (next(source) for _ in range(COUNT)):
        choices = [problem.answer + step for step in (0, 1, 2, 3)]
        rng.shuffle(choices)
        right = choices.index(problem.answer)
        answers = [f" The answer is {choice}." for choice in choices]
        docs.append({"question": problem.question, "answer": problem.answer, "choices": answers, "right": right})
    return docs


@pytest.fixture
def toy_tasks(tmp_path, toy_docs):
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in toy_docs))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "metadata": {"version": 1.0},
    }
    answers = {
        "task": "toy_answers",
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["[INST]"], "max_gen_toks": 96},
        "filter_list": [{"name": "last", "filter": [NUMBER, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    choices = {
        "task": "toy_choices",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{right}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    for task in (answers, choices):
        (tmp_path / f"{task['task']}.yaml").write_text(yaml.safe_dump(common | task))
    return f"{tmp_path / 'toy_answers.yaml'},{tmp_path / 'toy_choices.yaml'}"


@pytest.fixture
def run(toy_run, tmp_path):
    return shutil.copytree(toy_run, tmp_path / "run")


def kept(run):
    lines = [json.loads(line) for line in (run / "evaluation" / "general.jsonl").read_text().splitlines()]
    return {line["name"].rsplit(" ", 1)[0]: line["value"] for line in lines[1:]}


def test_the_residue_shows_in_a_benchmark(in_process, run, toy_tasks, toy_docs, monkeypatch):
    command = ("eval", run, "--tasks", toy_tasks, "--chat-template", "--actors", "fine,instruct,coarse,fine@1")
    done = in_process(*command, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    row = found["tasks"]["toy_answers"]["metrics"]["exact_match last"]
    gap = row["differences"]["fine"]
    assert gap["value"] > 0 and gap["clear"] and gap["paired"]
    assert row["differences"]["coarse"]["value"] > 0 and row["differences"]["fine@1"]["value"] > 0

    # by hand: our own sampler instead of lm-eval's batches through `generate`, our own reading of the answers
    config, models = open_run(run)
    asked = [(Turn("human", doc["question"]),) for doc in toy_docs]
    for actor, folder in (("fine", str(run / "fine" / "model")), ("instruct", models.instruct)):
        said = InstructModel(config, folder).answer(asked, Sampling(96, 0.0, seed=0), 20)
        right = [float(world.is_right(answer.text, doc["answer"])) for answer, doc in zip(said, toy_docs, strict=True)]
        theirs = kept(run)[f"{actor} toy_answers"]["documents"]["exact_match,last"]
        assert sum(a == b for a, b in zip(right, theirs, strict=True)) >= COUNT - 3  # ties may be broken otherwise
        assert sum(right) / COUNT == pytest.approx(row["actors"][actor]["value"], abs=3.5 / COUNT)

    # the same command again: nothing is loaded, everything is there
    before = (run / "evaluation" / "general.jsonl").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("lite_c2f.evaluation.lm_eval.model.load_actor", lambda *given: pytest.fail("a model is loaded"))
        again = in_process(*command)
    assert again.returncode == 0, again.stderr
    assert (run / "evaluation" / "general.jsonl").read_bytes() == before
    assert json.loads((run / "evaluation" / "general.json").read_text()) == found
    assert "toy_choices" in again.stdout and "to instruct" in again.stdout
    done = in_process("report", run)
    assert done.returncode == 0 and "General benchmarks" in (run / "report" / "report.md").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_it_goes_on(in_process, run, toy_tasks, number):
    command = ["eval", str(run), "--tasks", toy_tasks, "--chat-template", "--actors", "fine,instruct,coarse,base"]
    file = run / "evaluation" / "general.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "lite_c2f", *command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 900
    while process.poll() is None and (not file.is_file() or file.read_bytes().count(b"\n") < 4):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=900)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130), said
    if number == signal.SIGINT:
        assert said.splitlines()[-1] == "interrupted; what was done is saved. Continue with: the same command"
    whole = file.read_bytes()[: file.read_bytes().rindex(b"\n") + 1]
    assert 4 <= whole.count(b"\n") < 9 and not (run / "evaluation" / "general.json").exists()
    done = in_process(*command)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes().startswith(whole) and file.read_bytes().count(b"\n") == 1 + 8 == 1 + len(kept(run))


@pytest.mark.skipif(not GSM8K.is_file(), reason="the GSM8K sample is not here")
def test_gsm8k_from_a_local_file(in_process, run, tmp_path):
    """Real questions, in lm-eval's wording and with its two ways to read an answer; the toy models know no words."""
    file = tmp_path / "gsm8k_local.yaml"
    patterns = {
        "strict-match": {"regex_pattern": "#### (\\-?[0-9\\.\\,]+)"},
        "flexible-extract": {"regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)", "group_select": -1},
    }
    filters = [
        {"name": name, "filter": [{"function": "regex", **given}, {"function": "take_first"}]}
        for name, given in patterns.items()
    ]
    task = {
        "task": "gsm8k_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(GSM8K)}},
        "test_split": "test",
        "fewshot_split": "test",
        "num_fewshot": 2,
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer.split('#### ')[-1]}}",
        "generation_kwargs": {"until": ["Question:"], "max_gen_toks": 64},
        "filter_list": filters,
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "regexes_to_ignore": [","]}
        ],
        "metadata": {"version": 1.0},
    }
    file.write_text(yaml.safe_dump(task))
    done = in_process("eval", run, "--tasks", file, "--limit", 8, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["tasks"]["gsm8k_local"]
    assert found["n"] == 8 and found["fewshot"] == 2
    assert set(found["metrics"]) == {"exact_match strict-match", "exact_match flexible-extract"}
    for row in found["metrics"].values():
        assert set(row["actors"]) == {"fine", "instruct", "coarse", "base"}
        assert all(0 <= figure["value"] <= 1 and figure["se"] is not None for figure in row["actors"].values())
    assert "it/s" not in done.stderr and "Traceback" not in done.stderr
