"""Whole benchmarks of a pico run: figures, resuming, refusals, what is shown; no network, no mocked model."""

import json
import socket
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pico_tasks import ANSWERS, CHOICES, DOCS

import lite_c2f
from lite_c2f.errors import C2FError
from lite_c2f.evaluation.extras import general, judgments
from lite_c2f.evaluation.lm_eval import model as harness
from lite_c2f.evaluation.page import as_html, as_markdown
from lite_c2f.runtime.progress import SilentSink

ACTORS = ("fine", "instruct", "coarse", "base", "fine@2")
PLAIN = ["model.quantization=none", "evaluation.batch=4"]


@pytest.fixture
def count(monkeypatch):
    """Which tasks were really run, by which actor; the model itself is as it is."""
    done, run_task = [], harness.run_task
    monkeypatch.setattr(harness, "run_task", lambda *given: done.append(given[1:3]) or run_task(*given))
    return done


def kept(run):
    lines = [json.loads(line) for line in (run / "evaluation" / "general.jsonl").read_text().splitlines()]
    return {line["name"].rsplit(" ", 1)[0]: line["value"] for line in lines[1:]}


def test_all_actors_without_a_network(pico_run, pico_tasks, monkeypatch):
    def refuse(*_):
        raise AssertionError("somebody wants the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    found = lite_c2f.benchmark(pico_run, pico_tasks, actors=ACTORS, overrides=PLAIN)
    assert json.loads((pico_run / "evaluation" / "general.json").read_text()) == found
    assert found["shown"] == ["pico_choices", "pico_answers"] and found["lm_eval"] and found["limit"] is None
    choices = found["tasks"]["pico_choices"]
    assert (choices["n"], choices["version"], choices["fewshot"]) == (10, "1.0", 0)
    assert list(choices["metrics"]) == ["acc", "acc_norm"]
    row, results = choices["metrics"]["acc"], kept(pico_run)
    for actor in ACTORS:  # the figure is the mean of its documents, its error that of a mean
        values = results[f"{actor} pico_choices"]["documents"]["acc,none"]
        mean = sum(values) / 10
        spread = (sum((value - mean) ** 2 for value in values) / 9) ** 0.5
        assert row["actors"][actor] == {"value": pytest.approx(mean), "se": pytest.approx(spread / 10**0.5)}
    assert set(row["differences"]) == set(ACTORS) - {"instruct"}
    assert all(gap["paired"] for gap in row["differences"].values())
    assert results["fine pico_choices"]["documents"] == results["fine@2 pico_choices"]["documents"]  # merged or not
    assert len({str(results[f"{actor} pico_choices"]["documents"]) for actor in ACTORS}) > 2


def test_right_choices_by_hand(pico_run, write_task):
    """The likelier of two continuations, by plain passes through the base."""
    from test_harness_model import next_token, plain_model

    plain, tokenizer = plain_model(pico_run, "coarse", "none")
    expected = []
    for doc in DOCS:
        sums = []
        for choice in (doc["right"], doc["wrong"]):
            ids, total = tokenizer.encode(doc["question"], add_special_tokens=False), 0.0
            for token in tokenizer.encode(choice, add_special_tokens=False):
                total, ids = total + float(next_token(plain, ids)[token]), [*ids, token]
            sums.append(total)
        expected.append(float(sums[0] > sums[1]))
    lite_c2f.benchmark(pico_run, [write_task(CHOICES)], actors=("coarse", "base"), baseline="base", overrides=PLAIN)
    results = kept(pico_run)
    assert results["coarse pico_choices"]["documents"]["acc,none"] == expected
    assert len(set(expected)) == 2


@pytest.mark.slow
def test_nothing_is_done_twice(pico_run, pico_tasks, write_task, count):
    first = lite_c2f.benchmark(pico_run, pico_tasks, actors=("fine", "instruct"), limit=4)
    assert len(count) == 4
    assert lite_c2f.benchmark(pico_run, pico_tasks, actors=("fine", "instruct"), limit=4) == first
    assert len(count) == 4
    lite_c2f.benchmark(pico_run, pico_tasks, actors=("coarse", "instruct"), limit=4)
    assert count[4:] == [("coarse", "pico_choices"), ("coarse", "pico_answers")]
    lite_c2f.benchmark(pico_run, pico_tasks[:1], actors=("instruct",), limit=5)
    assert count[6:] == [("instruct", "pico_choices")]
    write_task(CHOICES, [{**DOCS[0], "right": "w55"}, *DOCS[1:]])
    lite_c2f.benchmark(pico_run, pico_tasks, actors=("instruct",), limit=4)
    assert count[7:] == [("instruct", "pico_choices")]  # its data is not the same
    adapter = pico_run / "coarse" / "adapter" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-4] + bytes(4))
    lite_c2f.benchmark(pico_run, pico_tasks, actors=("instruct",), limit=4)
    assert count[8:] == [("instruct", "pico_choices"), ("instruct", "pico_answers")]  # another run than it was


def test_a_model_that_is_loaded_otherwise_is_measured_beside(pico_run, write_task, count):
    """4-bit results stay when the same actors are measured without quantisation, and each table says which it is."""
    task = write_task(CHOICES)
    found = lite_c2f.benchmark(pico_run, [task], actors=("instruct",), limit=4)
    other = lite_c2f.benchmark(pico_run, [task], actors=("instruct",), limit=4, overrides=PLAIN)
    assert [each["loaded"]["quantization"] for each in (found, other)] == ["nf4", "none"] and len(count) == 2
    assert lite_c2f.benchmark(pico_run, [task], actors=("instruct",), limit=4) == found and len(count) == 2


def test_a_task_that_cannot_take_an_answer_is_named(pico_run, tmp_path, write_task):
    """Its own code fails on the fourth document: after others were answered, in one line."""
    (tmp_path / "helper.py").write_text(
        "def score(doc, results):\n    return {'exact_match': 1 / (doc['question'] != 'w3 w4 w3 w3 w3')}\n"
    )
    file = write_task(ANSWERS)
    content = Path(file).read_text() + "process_results: !function helper.score\n"
    Path(file).write_text(content)
    with pytest.raises(C2FError, match=r"task 'pico_answers' failed on an answer of 'instruct' .ZeroDivisionError"):
        lite_c2f.benchmark(pico_run, [file], actors=("instruct",))
    assert not (pico_run / "evaluation" / "general.json").exists()


@pytest.mark.slow
def test_a_stop_in_the_middle_loses_no_finished_task(pico_run, pico_tasks, count):
    class Stopping(SilentSink):
        def on_step(self, done, values):
            if done == 3:
                raise KeyboardInterrupt

    whole = lite_c2f.benchmark(pico_run, pico_tasks, actors=("fine", "instruct", "base"), limit=4)
    (pico_run / "evaluation" / "general.jsonl").unlink()
    count.clear()
    with pytest.raises(KeyboardInterrupt):
        lite_c2f.benchmark(pico_run, pico_tasks, actors=("fine", "instruct", "base"), limit=4, sink=Stopping())
    assert len(count) == 3
    with (pico_run / "evaluation" / "general.jsonl").open("a") as file:
        file.write('{"name": "half a li')  # as a kill leaves it
    assert lite_c2f.benchmark(pico_run, pico_tasks, actors=("fine", "instruct", "base"), limit=4) == whole
    assert len(count) == len(set(count)) == 6


def test_every_actor_sees_the_same_prompts(pico_run, write_task, monkeypatch):
    """Two examples are drawn for every prompt: the same ones, whoever is asked, and in whatever order."""
    seen, before = [], harness.ActorLM.loglikelihood

    def record(speaker, requests, *more):
        seen.append([request.args for request in requests])
        return before(speaker, requests, *more)

    monkeypatch.setattr(harness.ActorLM, "loglikelihood", record)
    task = write_task(CHOICES, fewshot_split="test")
    lite_c2f.benchmark(pico_run, [task], actors=("fine", "instruct", "base"), fewshot=2, overrides=PLAIN)
    assert len(seen) == 3 and seen[0] == seen[1] == seen[2]
    assert len({context.split("\n\n")[0] for context, _ in seen[0]}) > 3  # drawn anew for every document


def test_as_conversations(pico_run, write_task, monkeypatch):
    seen, before = [], harness.ActorLM.generate_until

    def record(speaker, requests, *more):
        seen.append(requests[0].args[0])
        return before(speaker, requests, *more)

    monkeypatch.setattr(harness.ActorLM, "generate_until", record)
    task = write_task(ANSWERS)
    found = lite_c2f.benchmark(pico_run, [task], actors=("instruct", "base"), limit=2, chat_template=True)
    assert found["chat_template"] is True
    assert seen == ["[INST] w0 w1 [/INST]", "\n\nHuman: w0 w1\n\nAssistant:"]
    lite_c2f.benchmark(pico_run, [task], actors=("instruct",), limit=2)
    assert seen[2] == "w0 w1"


def test_descriptions_and_choices_reach_every_actor(pico_run, write_task, editable, edit_json, monkeypatch):
    """The instruct model's template refuses system turns, as Mistral-7B-Instruct-v0.1's does."""
    folder, seen, before = editable("instruct"), {}, harness.ActorLM._loglikelihood_tokens
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %}"
        " {{ m.content }}{{ eos_token }}{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
    )
    models = json.loads((pico_run / "run.json").read_text())["models"]
    edit_json(pico_run / "run.json", models=models | {"instruct": str(folder)})

    def record(speaker, requests, *more, **given):
        seen[speaker.template.opening] = requests[0]
        return before(speaker, requests, *more, **given)

    monkeypatch.setattr(harness.ActorLM, "_loglikelihood_tokens", record)
    task = write_task(CHOICES | {"description": "w7 w8\n\n"})
    lite_c2f.benchmark(pico_run, [task], actors=("instruct", "base"), limit=1, chat_template=True)
    (_, *instruct), (_, *base) = seen[" [/INST]"], seen["\n\nAssistant:"]
    # DOCS[0]: `w0 w1` with the choices `w20` and `w30`; word n is the token n + 3, all others are <unk>, 0.
    assert instruct == [[0, 10, 11, 3, 4, 0], [23]]  # [INST] w7 w8 w0 w1 [/INST] w20
    assert base == [[0, 10, 11, 3, 4, 0], [23]]  # Human: w7 w8 w0 w1 Assistant: w20


@pytest.mark.slow
def test_out_of_memory_halves_the_batch(pico_run, pico_tasks, monkeypatch):
    class Notes(SilentSink):
        def __init__(self):
            self.said = []

        def on_message(self, text):
            self.said.append(text)

    whole = lite_c2f.benchmark(pico_run, pico_tasks, actors=("instruct",), overrides=PLAIN)
    (pico_run / "evaluation" / "general.jsonl").unlink()
    call_model, rows, notes = harness.ActorLM._model_call, [], Notes()

    def short(speaker, tokens, *more):
        rows.append(len(tokens))
        if len(tokens) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call_model(speaker, tokens, *more)

    monkeypatch.setattr(harness.ActorLM, "_model_call", short)
    assert lite_c2f.benchmark(pico_run, pico_tasks, actors=("instruct",), overrides=PLAIN, sink=notes) == whole
    assert rows[:3] == [4, 2, 1] and set(rows[3:]) == {1}
    assert [note.split(",")[0] for note in notes.said] == [
        "out of memory: evaluation.batch 4 -> 2", "out of memory: evaluation.batch 2 -> 1",
    ]  # fmt: skip


def test_groups_have_a_figure_of_their_own(tmp_path, pico_run, write_task):
    """A group by its file, of tasks beside it: sizes 4 and 10."""
    write_task(CHOICES | {"task": "four"}, DOCS[:4])
    write_task(CHOICES)
    rule = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
    group = {"group": "both", "task": ["four", "pico_choices"], "aggregate_metric_list": [rule]}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(group | {"metadata": {"version": 2.0}}))
    found = lite_c2f.benchmark(
        pico_run, [str(tmp_path / "both.yaml")], actors=("coarse", "base"), baseline="base", overrides=PLAIN
    )
    assert found["shown"] == ["both"] and found["tasks"]["both"]["n"] == 14
    figures = {name: row["metrics"]["acc"]["actors"]["coarse"]["value"] for name, row in found["tasks"].items()}
    assert figures["both"] == pytest.approx((4 * figures["four"] + 10 * figures["pico_choices"]) / 14)
    assert figures["four"] != figures["pico_choices"] and found["tasks"]["both"]["version"] == "2.0"
    gap = found["tasks"]["both"]["metrics"]["acc"]["differences"]["coarse"]
    assert gap["paired"] and gap["se"] is not None


@pytest.mark.slow
def test_the_table_and_the_report(pico_run, pico_tasks, call):
    code, out, err = call("eval", pico_run, "--tasks", ",".join(pico_tasks), "--actors", "fine,instruct", "--limit", 4)
    assert code == 0, err
    assert "pico_choices" in out and "to instruct" in out and "±" in out and f"lite-c2f report {pico_run}" in out
    assert "it/s" not in err and "Running" not in err  # lm-eval's own bars
    code, out, err = call(
        "eval", pico_run, "--tasks", ",".join(pico_tasks), "--actors", "fine,instruct", "--limit", 4, "--json"
    )
    assert code == 0 and json.loads(out)["limit"] == 4
    blocks = general(pico_run)
    page, text = as_html("x", blocks), as_markdown("x", blocks)
    assert "General benchmarks" in page and "pico_choices, acc" in page and "At most 4 documents" in text
    fine = json.loads(out)["tasks"]["pico_choices"]["metrics"]["acc"]["actors"]["fine"]
    assert f"| {fine['value']:.3f} ± {fine['se']:.3f} |" in text


def test_judgments_are_in_the_report(tmp_path):
    assert general(tmp_path) == [] == judgments(tmp_path)
    row = {"win": 3, "tie": 1, "loss": 0, "unread": 0, "rate": 0.875, "se": 0.125}
    pairs = {"fine over instruct": {"categories": {"all": row}, "agreement": 0.75}}
    found = {"judge": "M <b>", "questions": 4, "mode": "pairwise", "pairs": pairs}
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "judge-pairwise.json").write_text(json.dumps(found))
    grades = {"judge": "M", "questions": 4, "mode": "single", "grades": {"fine": {"all": 7.25, "math": 6.0}}}
    (tmp_path / "evaluation" / "judge-single.json").write_text(json.dumps(grades))
    text = as_markdown("x", judgments(tmp_path))
    assert "| all | 3 | 1 | 0 | 0 | 0.875 | 0.125 |" in text and "75% of the pairs" in text
    assert "| fine | 7.25 | 6 |" in text and "M \\<b\\>" in text
    (tmp_path / "evaluation" / "general.json").write_text("{}")
    with pytest.raises(C2FError, match=r"general\.json' has another form.*run `lite-c2f eval --tasks` again"):
        general(tmp_path)
    (tmp_path / "evaluation" / "judge-single.json").write_text("{}")
    with pytest.raises(C2FError, match=r"judge-single\.json' has another form.*run `lite-c2f judge` again"):
        judgments(tmp_path)


def test_without_lm_eval_one_line_says_what_to_install(pico_run, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, out, err = call("eval", pico_run, "--tasks", "gsm8k")
    assert code == 2 and not out and err.count("\n") == 1
    assert 'lm-eval is not installed; expected lm-evaluation-harness; pip install "lite_c2f[eval]"' in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tasks", "{choices}", "--limit", "0"], "'--limit'"),
        (["--tasks", "{choices}", "--fewshot", "-1"], "'--fewshot'"),
        (["--tasks", "{choices}", "--actors", "best,instruct"], "actor 'best'"),
        (["--tasks", "{choices}", "--actors", "fine"], "--baseline instruct with --actors fine"),
        (["--tasks", "{choices}", "evaluation.nonsense=1"], "evaluation.nonsense"),
        (["--tasks", "{choices}", "lora.alpha=99"], "lora.alpha=99.0; expected the run's"),
        (["--tasks", "{choices}", "model.base=/other"], "model.base='/other'; expected the run's"),
        (
            ["--tasks", "{choices}", "--chat-template", "model.prompt_template=chat"],
            "model.prompt_template='chat'; exp",
        ),
        (["--tasks", "{choices}/gone.yaml"], "no such file"),
        (["--limit", "5"], "--limit without --tasks"),
        (["--chat-template"], "--chat-template without --tasks"),
    ],
)
def test_refusals_end_in_one_line_and_code_2(pico_run, write_task, call, monkeypatch, words, told):
    monkeypatch.setattr(harness, "load_actor", None)  # nothing is loaded before everything is checked
    choices = write_task(CHOICES)
    code, out, err = call("eval", pico_run, *(word.format(choices=choices) for word in words))
    assert code == 2 and not out and told in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ")
    assert not (pico_run / "evaluation" / "general.json").exists()


@pytest.mark.parametrize("given", [{"limit": 0}, {"fewshot": -1}])
def test_numbers_are_checked_in_python_too(pico_run, given):
    with pytest.raises(C2FError, match="expected a whole number from"):
        lite_c2f.benchmark(pico_run, ["gsm8k"], **given)
