"""The doctor finds what is wrong, and says what to do."""

import json
import shutil

import bitsandbytes as bnb
import pytest
import torch

from lite_c2f.cli import doctor, model_check
from lite_c2f.errors import RunError
from lite_c2f.storage.checkpoints import Checkpoint, CheckpointStore
from lite_c2f.storage.lock import locked

WELL = {"4-bit": "works (relative error 0.09)", "gpu": "none", "torch": "2.13.0", "torch built for": "CPU"}


@pytest.fixture
def narrow(monkeypatch):
    """4-bit layers of one width alone, where they are not what a test is about."""
    monkeypatch.setattr(doctor, "WIDTHS", (64,))


def test_a_sound_machine_has_no_problems(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert doctor.problems(WELL, 100.0) == []
    found = doctor.system_report()
    assert found["4-bit"].startswith("works") and found["torch"] == torch.__version__
    assert json.loads(json.dumps(found)) == found
    required = {"torch", "transformers", "tokenizers", "PyYAML", "markdown-it-py"}
    assert required <= set(found) and "pytest" not in found and "missing" not in found.values()


@pytest.mark.parametrize(
    ("facts", "free", "words"),
    [
        ({"4-bit": "fails: no kernel"}, 100.0, "4-bit weights: fails: no kernel; reinstall bitsandbytes"),
        ({}, 1.5, "only 1.5 GiB free on this disk; make room"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch, facts, free, words):
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    told = doctor.problems(WELL | facts, free)
    assert len(told) == 1 and words in told[0]


def test_a_gpu_that_torch_does_not_see_is_noticed(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    (told,) = doctor.problems(WELL, 100.0)
    assert "there is an NVIDIA driver, but torch 2.13.0 (for CPU) sees no GPU" in told


def test_packages_are_held_against_what_is_required():
    assert doctor.requirement_problem("torch>=2.9") is None
    assert doctor.requirement_problem("torch>=99") == f"torch is {torch.__version__}; pip install 'torch>=99'"
    assert (
        doctor.requirement_problem("no-such-package>=1")
        == "no-such-package is missing; pip install 'no-such-package>=1'"
    )


def test_4bit_layers_that_are_wrong_are_a_problem(monkeypatch, narrow):
    right = bnb.nn.Linear4bit.forward
    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", lambda self, x: right(self, x) * (1 + (len(x) == 1)))
    found = doctor.system_report()
    assert found["4-bit"].startswith("wrong: 1 row of 64, ") and found["4-bit"] in found["problems"][0]


def test_tokenizers_of_model_folders_are_tried(pico, call, tmp_path, narrow):
    """One line for each; a folder without one is a problem, and exit code 2 says so."""
    (tmp_path / "config.json").write_text("{}")
    code, out, _ = call("doctor", pico["base"], "--json")
    found = json.loads(out)
    assert code == 0 and found["problems"] == []
    assert found[f"tokenizer of {pico['base']}"] == "gives texts back unchanged"
    assert found[f"to GGUF {pico['base']}"].startswith("ready: ")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    code, _, err = call("doctor", pico["base"], tmp_path / "run")
    assert code == 2 and "is a run, among several folders" in err
    code, out, _ = call("doctor", pico["base"], tmp_path)
    assert code == 2 and f"problem            model '{tmp_path}': cannot load its tokenizer" in out


def test_the_secret_itself_is_not_shown(monkeypatch, narrow):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    assert "abcdefghijklmnop" not in json.dumps(doctor.system_report())


def test_a_run_is_described(tmp_path):
    with pytest.raises(RunError, match="no run directory"):
        doctor.run_report(tmp_path)
    (tmp_path / "run.json").write_text('{"models": {"base": "b", "instruct": "i"}, "seconds": {}, "lite_c2f": "0.1.0"}')
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "metrics.json").write_text("{}")
    line = "2026-11-21 18:00:00,000 ERROR lite_c2f.run: it failed"
    (tmp_path / "log.txt").write_text(f"{line}\nTraceback\n  File\nError: bad\n")
    write_progress(tmp_path, state="failed", message="it failed")
    rewards = {1: 0.2, 2: 0.9, 3: 0.7, 4: 0.5}  # the policy after update 2 earned 0.7, the one after update 1 0.9
    lines = [{"stage": "coarse", "step": step, "reward": reward, "limit": 16} for step, reward in rewards.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.yaml").write_text("run: {checkpoint_every: 2}\ncoarse: {critic_warmup: 1}\n")
    store = CheckpointStore(tmp_path / "coarse" / "checkpoints")
    for step in (2, 4, 6):
        store.save(Checkpoint(step, {}, {"w": torch.ones(2)}), {2: 0.7})
    (tmp_path / "coarse" / "checkpoints" / "step-000006" / "state.json").write_text("{}")
    with locked(tmp_path):
        found = doctor.run_report(tmp_path)
        assert found["in use"].startswith("process ") and found["state"] == "running"
    assert (found["reward"], found["fine"], found["comparison"]) == ("published", "not begun", "not made")
    assert found["coarse"] == "4 steps done; reward +0.50, limit 16; goes on from step-000004, best step-000002"
    assert found["log ends"] == "2026-11-21 18:00:00,000 ERROR lite_c2f.run: it failed"
    assert len(found["problems"]) == 2 and "step-000006' is damaged" in found["problems"][0]
    assert "reward/metrics.json" in found["problems"][1]
    found = doctor.run_report(tmp_path)
    assert found["in use"] == "no" and found["state"] == "failed: it failed" and "continue with" not in found


def write_progress(run, **values):
    """RUN/progress.json of a process that is not there any more."""
    (run / "progress.json").write_text(json.dumps({"process": 0, "began": 1.0, "updated": 2.0, **values}))


def test_a_run_that_was_killed_is_told_how_to_go_on(tmp_path):
    models = {"base": str(tmp_path), "instruct": str(tmp_path)}
    (tmp_path / "run.json").write_text(json.dumps({"models": models, "seconds": {}}))
    (tmp_path / "config.yaml").write_text("run: {seed: 0}")
    for saved, state in (
        ({"state": "running"}, "stopped without a message"),
        ({"state": "stopped", "interrupted": True}, "stopped by a signal"),
        ({"state": "stopped"}, "the requested stages are done"),
    ):
        write_progress(tmp_path, **saved)
        found = doctor.run_report(tmp_path)
        assert state in found["state"]
        assert found["continue with"] == f"lite-c2f train {tmp_path}/config.yaml" and found["problems"] == []


def no_template(folder):
    (folder / "chat_template.jinja").unlink()
    (folder / "merge.json").write_text("{}")


def stale_index(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}')


def half_index(folder):
    index = {"weight_map": {"lm_head.weight": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def settings(**changes):
    def change(folder):
        content = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(content))

    return change


NOT_READY = {
    "no template": (
        no_template,
        "was merged into an instruct model and has no chat template; copy chat_template.jinja",
    ),
    "stale index": (
        stale_index,
        "has 'model.safetensors' beside 'model.safetensors.index.json', which names other files",
    ),
    "incomplete index": (half_index, "does not list the model's tensors; remove that file"),
    "stray shard": (
        lambda folder: shutil.copy(folder / "model.safetensors", folder / "model-00002-of-00002.safetensors"),
        "holds 'model-00002-of-00002.safetensors' beside the model's own files, and the converter may read it",
    ),
    "dtype": (settings(dtype="float16"), "says float16 and most weights are float32; correct 'dtype' there"),
    "architectures": (settings(architectures=None), "has no 'architectures'"),
    "quantised": (settings(quantization_config={"bits": 4}), "has 'quantization_config'; convert the model before"),
    "too many tokens": (settings(vocab_size=60), "has the id 63, and the model 60 rows"),
    "SentencePiece": (settings(model_type="gemma"), "has no 'tokenizer.model', from which the converter reads"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has neither 'tokenizer.json' nor"),
    "no settings": (lambda folder: (folder / "tokenizer_config.json").unlink(), "has no 'tokenizer_config.json'"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "no config": (lambda folder: (folder / "config.json").write_text("["), "is not a JSON object"),
}


@pytest.mark.parametrize("case", NOT_READY)
def test_what_is_in_the_way_of_a_gguf_file_is_named(editable, case):
    """Each alone, with its remedy; before it the folder is ready."""
    change, expected = NOT_READY[case]
    folder = editable("instruct")
    line, problems = model_check.conversion_report(folder)
    assert (line, problems) == ("ready: 1 file of float32, tokenizer.json, with a chat template", [])
    change(folder)
    line, problems = model_check.conversion_report(folder)
    assert line == "see problems" and len(problems) == 1 and expected in problems[0] and "\n" not in problems[0]


def test_packed_weights_are_a_problem(hand_model, tmp_path):
    hand_model(tmp_path / "m", {"w": torch.ones(4, dtype=torch.int8)}, architectures=["X"])
    _, problems = model_check.conversion_report(tmp_path / "m")
    assert any("has I8 weights; convert the model before it was quantised" in problem for problem in problems)
