"""Which files hold a model's weights: GGUF alone, and a model.safetensors beside an index that names other files."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import MistralForCausalLM

from lite_c2f.backbone.folder import check_weights
from lite_c2f.backbone.pair import check_pair, read_config
from lite_c2f.backbone.weights import INDEX, SINGLE, weight_files
from lite_c2f.config.loading import load_config
from lite_c2f.errors import ModelError
from lite_c2f.fine.merge import merge
from lite_c2f.memory.sizes import model_shape
from lite_c2f.runs.models import check_models, resolve_models

SHORT = [  # rows that fit the pico models, whose tokenizer cannot spell the default stop
    "model.stop=[]",
    *("data.max_prompt_tokens=24", "data.max_answer_tokens=8", "coarse.length.start=8", "coarse.length.max=8"),
    *("fine.max_tokens=8", "evaluation.max_tokens=8"),
]
GGUF = r"GGUF, quantised weights in llama\.cpp.*; expected .*safetensors, or the .gguf file itself; name the file"
BOTH = r"'model\.safetensors' beside 'model\.safetensors\.index\.json'.*'model-00001-of-.*remove the one"


@pytest.fixture
def stale(editable, pico):
    """A model in shards, and beside it the model.safetensors of another."""
    folder = editable("sharded")
    shutil.copy(pico["base"] / SINGLE, folder / SINGLE)
    return folder


def test_transformers_takes_the_single_file_and_the_index_names_others(stale, pico):
    """The reason for the refusal: Transformers loads the base's weights from the folder of the instruct model."""
    loaded, base = (MistralForCausalLM.from_pretrained(folder, dtype="float32") for folder in (stale, pico["base"]))
    assert loaded.lm_head.weight.equal(base.lm_head.weight)
    assert SINGLE not in json.loads((stale / INDEX).read_text())["weight_map"].values()


def test_a_single_file_beside_an_index_of_other_files_is_refused(stale, pico, tmp_path):
    with pytest.raises(ModelError, match=BOTH):
        check_weights(stale, "all-linear")
    with pytest.raises(ModelError, match=BOTH):
        merge(pico["adapter"], pico["base"], stale, tmp_path / "out", ratio=1.0)
    with pytest.raises(ModelError, match=BOTH):
        merge(pico["adapter"], stale, pico["instruct"], tmp_path / "out", ratio=1.0)
    assert not (tmp_path / "out").exists()


def test_an_index_that_names_the_single_file_alone_is_that_file(editable, pico, tmp_path):
    folder = editable("instruct")
    names = json.loads((pico["sharded"] / INDEX).read_text())["weight_map"]
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, SINGLE)}))
    assert weight_files(folder) == [folder / SINGLE]
    check_weights(folder, "all-linear")
    merge(pico["adapter"], pico["base"], folder, tmp_path / "out", ratio=1.0)
    assert (tmp_path / "out" / SINGLE).is_file()


def test_an_index_that_names_the_single_file_among_others_is_refused(editable):
    folder = editable("instruct")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": SINGLE, "b": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(ModelError, match=r"beside .*'model-00002-of-00002\.safetensors'"):
        weight_files(folder)


def gguf_alone(folder):
    """As llama.cpp's converters leave it."""
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "model.Q4_K_M.gguf").write_bytes(b"GGUF")
    return folder


def gguf_with_config(folder):
    (folder / SINGLE).rename(folder / "model.Q4_K_M.gguf")
    return folder


@pytest.mark.parametrize("left", [gguf_alone, gguf_with_config])
def test_a_folder_of_a_gguf_says_what_it_is(editable, pico, tmp_path, left):
    folder = left(editable("instruct"))
    config = load_config({}, [*SHORT, f"model.base={pico['base']}", f"model.instruct={folder}"])
    with pytest.raises(ModelError, match=GGUF):
        resolve_models(config)
    with pytest.raises(ModelError, match=GGUF):
        merge(pico["adapter"], pico["base"], folder, tmp_path / "out", ratio=1.0)
    with pytest.raises(ModelError, match=GGUF):
        weight_files(folder)


def test_a_gguf_is_named_before_anything_else_is_read(editable):
    folder = gguf_alone(editable("base"))
    with pytest.raises(ModelError, match=GGUF):
        model_shape(str(folder))
    for read in (model_shape, lambda model: check_pair(Path(model), folder)):
        with pytest.raises(ModelError, match="no whole GGUF file"):
            read(str(folder / "model.Q4_K_M.gguf"))
        with pytest.raises(ModelError, match="not there"):
            read("/nowhere/x.GGUF")
    with pytest.raises(ModelError, match=GGUF):
        read_config(folder)


def test_a_gguf_beside_safetensors_is_of_no_concern(editable):
    folder = editable("instruct")
    (folder / "model.gguf").write_bytes(b"GGUF")
    assert weight_files(folder) == [folder / SINGLE]


def test_a_hub_model_of_ggufs_alone_says_what_it_is(pico, tmp_path, monkeypatch):
    """The hub gives what matches: of such a model neither config.json nor safetensors."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "empty"))
    names = ["README.md", "x-Q4_0.gguf"]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *_, **__: names)
    config = load_config({}, ["model.base=somebody/x-GGUF", f"model.instruct={pico['instruct']}"])
    with pytest.raises(ModelError, match=rf"model 'somebody/x-GGUF' has no config\.json on the hub: it is a {GGUF}"):
        check_models(config)
    names.remove("x-Q4_0.gguf")
    with pytest.raises(ModelError, match="no folder"):
        check_models(config)
