"""Task files of our own, and a whole run of pico models: nothing is downloaded, nothing is mocked."""

import json
import shutil

import pytest
import yaml
from pico_tasks import ANSWERS, CHOICES, DOCS
from safetensors.torch import load_file, save_file

import lite_c2f

pytest.importorskip("lm_eval", reason="lm-eval is not installed")


@pytest.fixture
def write_task(tmp_path):
    """A YAML file of a task and its documents beside it."""

    def write(task, docs=DOCS, **changes):
        data = tmp_path / f"{task['task']}.jsonl"
        data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        file = tmp_path / f"{task['task']}.yaml"
        file.write_text(yaml.safe_dump({**source, "metadata": {"version": 1.0}, **task, **changes}))
        return str(file)

    return write


@pytest.fixture
def pico_tasks(write_task):
    return [write_task(CHOICES), write_task(ANSWERS)]


@pytest.fixture(scope="session")
def finished_pico(pico, tmp_path_factory):
    """A run directory as the stages leave it: adapters made by PEFT, a model made by the merger."""
    run = tmp_path_factory.mktemp("harness") / "run"
    settings = ["lora.r=4", "lora.alpha=8", "data.max_prompt_tokens=16", "evaluation.max_tokens=16"]
    config = lite_c2f.load_config({"model": {"base": str(pico["base"]), "instruct": str(pico["instruct"])}}, settings)
    run.mkdir()
    (run / "config.yaml").write_text(config.to_yaml())
    models = {name: str(pico[name]) for name in ("base", "instruct")}
    (run / "run.json").write_text(json.dumps({"models": models, "seconds": {}}))
    for stage in ("coarse", "reward"):
        shutil.copytree(pico["adapter"], run / stage / "adapter")
    tensors = load_file(run / "reward" / "adapter" / "adapter_model.safetensors")
    head = next(tensor for name, tensor in tensors.items() if "lora_A" in name and tensor.shape[1] == 32)[:1]
    save_file(
        tensors | {"base_model.model.score.weight": head.clone()},
        run / "reward" / "adapter" / "adapter_model.safetensors",
    )
    (run / "reward" / "metrics.json").write_text(json.dumps({"mean": 0.0, "std": 1.0, "accuracy": 0.5}))
    (run / "coarse" / "metrics.json").write_text("{}")
    lite_c2f.merge(pico["adapter"], pico["base"], pico["instruct"], run / "fine" / "model", 2.0)
    shutil.copy(run / "fine" / "model" / "merge.json", run / "fine" / "merge.json")
    return run


@pytest.fixture
def pico_run(finished_pico, tmp_path):
    """A copy that a test may write to."""
    return shutil.copytree(finished_pico, tmp_path / "run")
