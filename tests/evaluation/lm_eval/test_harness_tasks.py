"""Tasks by name, file and folder; everything that is wrong with them is told before a model is loaded."""

import json
from pathlib import Path

import pytest
import yaml
from pico_tasks import ANSWERS, CHOICES, DOCS

from lite_c2f.errors import C2FError
from lite_c2f.evaluation.lm_eval.tasks import (
    GENERAL_11,
    check_answers_fit,
    load_tasks,
    task_hash,
    task_index,
    task_manager,
)


@pytest.mark.slow  # reads lm-eval's 14,000 files
def test_all_eleven_are_in_the_registry():
    registry = task_index(whole=True)
    assert len(set(GENERAL_11)) == 11
    kinds = {name: registry.task_index[name].kind.name for name in GENERAL_11}
    assert {name for name, kind in kinds.items() if kind == "GROUP"} == {"mmlu", "bbh", "agieval_en"}
    assert {kind for name, kind in kinds.items() if name not in ("mmlu", "bbh", "agieval_en")} == {"TASK"}


def test_files_and_folders(tmp_path, pico_tasks):
    (tmp_path / "_shared.yaml").write_text("output_type: multiple_choice\n")  # for others to include: no task
    by_folder, by_file = load_tasks([f"{tmp_path}/"]), load_tasks([*pico_tasks, pico_tasks[0]])
    assert by_file.shown == ["pico_choices", "pico_answers"] and by_folder.shown == ["pico_answers", "pico_choices"]
    assert by_file.tasks.keys() == by_folder.tasks.keys() and not by_file.groups
    assert len(by_file.tasks["pico_choices"].eval_docs) == 10


@pytest.mark.parametrize(
    ("names", "words"),
    [
        pytest.param(["hellaswagg"], "no task 'hellaswagg'.*did you mean hellaswag", marks=pytest.mark.slow),
        pytest.param(["general-12"], "did you mean general-11", marks=pytest.mark.slow),
        (["/nowhere/task.yaml"], "'/nowhere/task.yaml': no such file"),
        ([" ", ""], "--tasks is empty"),
        (["{folder}/nothing/"], "holds no task"),
        (["{folder}/broken.yaml"], "broken.yaml.*expected a YAML file of a task"),
        (["{folder}/list.yaml"], "list.yaml.*expected a YAML file of a task"),
        (["{folder}/notask.yaml"], "is no task"),
        (["{folder}/nodata.yaml"], "task '.*nodata.yaml' cannot be loaded .*nodata.jsonl"),
        (["{folder}/column.yaml"], "task '.*column.yaml' cannot be loaded .*'nothere' is undefined"),
        (["{folder}/empty.yaml"], "task '.*empty.*' (has no documents|cannot be loaded)"),
        (["{folder}/unsafe.yaml"], "task 'unsafe' runs code that a model wrote"),
    ],
)
def test_refusals_are_one_line(tmp_path, write_task, names, words):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "broken.yaml").write_text("task: [unclosed\n")
    (tmp_path / "list.yaml").write_text("- task\n")
    (tmp_path / "notask.yaml").write_text("output_type: multiple_choice\n")
    write_task(CHOICES | {"task": "nodata"})
    (tmp_path / "nodata.jsonl").unlink()
    write_task(CHOICES | {"task": "column", "doc_to_text": "{{nothere.a.b}}"})
    write_task(CHOICES | {"task": "empty"}, docs=[])
    write_task(CHOICES | {"task": "unsafe"}, unsafe_code=True)
    with pytest.raises(C2FError, match=words) as caught:
        load_tasks([name.format(folder=tmp_path) for name in names])
    assert "; expected " in str(caught.value) and "\n" not in str(caught.value)


def test_two_tasks_of_one_name(tmp_path, write_task):
    first = write_task(CHOICES)
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(yaml.safe_load(Path(first).read_text()) | {"doc_to_text": "say {{question}}"}))
    with pytest.raises(C2FError, match="two tasks are named 'pico_choices'"):
        load_tasks([first, str(other)])


def test_examples_in_a_prompt(write_task):
    """As in lm-eval: a number given replaces the task's own, but not a 0 that a task insists on."""
    free, fixed = write_task(CHOICES), write_task(ANSWERS, num_fewshot=0)
    shots = {name: task.get_config("num_fewshot") for name, task in load_tasks([free, fixed], 2).tasks.items()}
    assert shots == {"pico_choices": 2, "pico_answers": 0}
    assert load_tasks([free]).tasks["pico_choices"].get_config("num_fewshot") == 0


def test_answers_longer_than_the_context(write_task):
    tasks = load_tasks([write_task(ANSWERS)]).tasks
    check_answers_fit(tasks, 13)
    with pytest.raises(C2FError, match="generates up to 12 tokens; expected fewer than the context of 12"):
        check_answers_fit(tasks, 12)


def test_a_result_depends_on_what_it_was_made_from(tmp_path, write_task):
    """Settings, documents that are used, examples, and the code beside a task; not the folder it is in."""

    def told(limit=None, chat=False, version="0.4.13", docs=DOCS, shots=None, **changes):
        task = load_tasks([write_task(CHOICES, docs, **changes)], shots).tasks["pico_choices"]
        return task_hash(task, limit, chat, version)

    first = told()
    assert told() == first
    changed = [{**doc, "right": "w9"} if place == 5 else doc for place, doc in enumerate(DOCS)]
    different = [
        told(limit=5), told(chat=True), told(version="0.4.14"), told(docs=changed), told(docs=DOCS[:9]),
        told(shots=1), told(doc_to_text="{{question}} w1"), told(metadata={"version": 2.0}),
    ]  # fmt: skip
    assert len({first, *different}) == 9
    assert told(limit=5, docs=changed) == told(limit=5)  # the sixth document is not used
    (tmp_path / "utils.py").write_text("def process(docs):\n    return docs\n")
    assert told() != first


def test_a_task_without_a_metric_is_refused_before_any_model_is_loaded(write_task):
    nothing = write_task(CHOICES, metric_list=[{"metric": "nosuch", "aggregation": "mean", "higher_is_better": True}])
    with pytest.raises(C2FError, match="task 'pico_choices' has the metric 'nosuch'"):
        load_tasks([nothing])


def test_code_beside_a_task_is_run(tmp_path, write_task):
    (tmp_path / "helper.py").write_text("def text(doc):\n    return 'say ' + doc['question']\n")
    file = write_task(CHOICES)
    content = yaml.safe_load(Path(file).read_text())
    del content["doc_to_text"]
    (tmp_path / "pico_choices.yaml").write_text(yaml.safe_dump(content) + "doc_to_text: !function helper.text\n")
    task = load_tasks([file]).tasks["pico_choices"]
    assert task.doc_to_text(DOCS[0]) == "say w0 w1"
    assert json.dumps(task.dump_config(), default=str)


@pytest.mark.slow  # lm-eval's index is read twice
def test_a_group_of_one_s_own_may_name_lm_eval_s_tasks(tmp_path, write_task):
    """Beside it or not: a task that is nowhere is refused, one of lm-eval is looked for with its data."""
    write_task(CHOICES)
    for name, member in (("mine", "pico_choices"), ("theirs", "hellaswag"), ("nobodys", "nowhere_to_be_found")):
        rule = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
        (tmp_path / name).mkdir()
        group = {"group": name, "task": [member], "aggregate_metric_list": [rule]}
        (tmp_path / name / f"{name}.yaml").write_text(yaml.safe_dump(group))
    (tmp_path / "mine" / "pico_choices.yaml").write_text((tmp_path / "pico_choices.yaml").read_text())
    found = load_tasks([str(tmp_path / "mine" / "mine.yaml")])
    assert found.shown == ["mine"] and list(found.tasks) == ["pico_choices"] and list(found.groups) == ["mine"]
    manager = task_manager(["x/theirs.yaml"], [tmp_path / "theirs" / "theirs.yaml"])
    assert {"hellaswag", "theirs"} <= set(manager.task_index)
    with pytest.raises(C2FError, match="task 'nobodys' cannot be loaded"):
        load_tasks([str(tmp_path / "nobodys" / "nobodys.yaml")])
