"""Embeddings saved beside an adapter, and models of different vocabularies."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lite_c2f.errors import ModelError
from lite_c2f.fine.merge import merge

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def weights_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def train(base, folder, tokens=None, save="auto", dtype=torch.float32, **lora):
    """A PEFT adapter on `base` whose every trainable value moved. tokens: what the vocabulary is resized to first."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", **lora}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        if tokens:
            plain.resize_token_embeddings(tokens, mean_resizing=False)
        torch.manual_seed(3)
        model = get_peft_model(plain, LoraConfig(**settings))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight) * 0.05)
        model.save_pretrained(folder, save_embedding_layers=save)
    return folder


def with_tokens(source, folder, added, rows=None):
    """A model folder with more tokens (`added`) and rows (a new one for each token, or `rows` in all)."""
    shutil.copytree(source, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for token in added:  # each call numbers its own
        tokenizer.add_tokens([token], special_tokens=True)
    tokenizer.save_pretrained(folder)
    tensors, size = weights_of(source), rows or 64 + len(added)
    for name in (EMBEDDING, HEAD):
        more = torch.full((max(0, size - 64), 32), 7.0)
        tensors[name] = torch.cat([tensors[name], more])[:size].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": size}))
    return folder


@pytest.fixture(scope="module")
def plain(pico, tmp_path_factory):
    """Adapters with one and the same LoRA: alone, and beside the base's embedding and head."""
    root = tmp_path_factory.mktemp("plain")
    return {
        "alone": train(pico["base"], root / "alone"),
        "beside": train(pico["base"], root / "beside", save=True),
        "larger": train(pico["base"], root / "larger", tokens=72),
        "smaller": train(pico["base"], root / "smaller", tokens=60),
    }


@pytest.fixture(scope="module")
def expected(plain, pico, tmp_path_factory):
    """What the LoRA alone makes of the instruct model."""
    merge(plain["alone"], pico["base"], pico["instruct"], out := tmp_path_factory.mktemp("merged") / "out")
    return weights_of(out)


def changed_file(source, folder, change, **config):
    """A copy of an adapter with changed tensors and configuration."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(content | config))
    return folder


def equal(left, right):
    assert set(left) == set(right)
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


# -- embeddings saved beside a plain LoRA


@pytest.mark.parametrize("how", ["beside", "larger", "smaller"])
def test_copies_of_the_bases_embeddings_are_left_out(tmp_path, pico, plain, expected, how):
    """PEFT saves them when asked, and always when the vocabulary was resized."""
    tensors, rows = load_file(plain[how] / WEIGHTS), {"beside": 64, "larger": 72, "smaller": 60}[how]
    assert all(tensors[f"base_model.model.{name}"].shape == (rows, 32) for name in (EMBEDDING, HEAD))
    said = []
    report = merge(plain[how], pico["base"], pico["instruct"], tmp_path / "out", notice=said.append)
    equal(weights_of(tmp_path / "out"), expected)
    assert len(report.notes) == 2 and [f"note: {note}" for note in report.notes] == said[:2]
    for name, note in zip(sorted((EMBEDDING, HEAD)), report.notes, strict=True):
        assert (
            name in note and "not merged" in note and (f"{rows} rows, of which {min(rows, 64)}" in note) == (rows != 64)
        )
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["notes"] == report.notes


def test_copies_are_compared_in_the_coarser_type(tmp_path, pico, plain, expected):
    """A base in float32 trained in bfloat16, one in bfloat16 trained in float16; but not a copy in a finer type."""

    def to(dtype, of):
        def change(tensors):
            own = weights_of(of)
            tensors.update({f"base_model.model.{name}": own[name].to(dtype) for name in (EMBEDDING, HEAD)})

        return change

    adapter = changed_file(plain["beside"], tmp_path / "a", to(torch.bfloat16, pico["base"]))
    assert len(merge(adapter, pico["base"], pico["instruct"], tmp_path / "out").notes) == 2
    half = shutil.copytree(pico["base"], tmp_path / "half")
    tensors = {name: tensor.bfloat16() for name, tensor in weights_of(half).items()}
    save_file(tensors, half / "model.safetensors", metadata={"format": "pt"})
    adapter = changed_file(plain["beside"], tmp_path / "b", to(torch.float16, half))
    assert len(merge(adapter, half, pico["instruct"], tmp_path / "out2").notes) == 3  # and another base, perhaps
    equal(weights_of(tmp_path / "out2"), expected)
    adapter = changed_file(plain["beside"], tmp_path / "c", lambda tensors: None)  # of the base before it was rounded
    with pytest.raises(ModelError, match="64 of 64 rows differ"):
        merge(adapter, half, pico["instruct"], tmp_path / "out3")


def test_a_changed_embedding_is_refused_and_the_advice_works(tmp_path, pico, plain, expected):
    def change(tensors):
        tensors[f"base_model.model.{EMBEDDING}"][5] += 0.5

    adapter = changed_file(plain["beside"], tmp_path / "a", change)
    with pytest.raises(ModelError, match=r"1 of 64 rows differ.*add 'embed_tokens' to modules_to_save") as error:
        merge(adapter, pico["base"], pico["instruct"], tmp_path / "out")
    assert EMBEDDING in str(error.value)
    content = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(content | {"modules_to_save": ["embed_tokens"]}))
    report = merge(adapter, pico["base"], pico["instruct"], tmp_path / "out", ratio=0.5)
    row = weights_of(pico["instruct"])[EMBEDDING].double()
    row[5] += 0.5 * 0.5
    np.testing.assert_allclose(weights_of(tmp_path / "out")[EMBEDDING].double(), row, rtol=0, atol=1e-7)
    assert EMBEDDING in report.tensors and len(report.notes) == 1  # the head is a copy still
    with pytest.raises(ModelError, match=r"64 of 64 rows differ.*give the base"):  # another base
        merge(plain["beside"], pico["instruct"], pico["instruct"], tmp_path / "out2")


@pytest.mark.parametrize(
    "lora", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"target_modules": ["embed_tokens"]}]
)
def test_a_resized_vocabulary_that_was_trained_is_refused(tmp_path, pico, lora):
    adapter = train(pico["base"], tmp_path / "a", tokens=72, **lora)
    with pytest.raises(ModelError, match=r"vocabulary has another size.*without the embedding and the head"):
        merge(adapter, pico["base"], pico["instruct"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_copies_of_tied_embeddings_are_left_out(tmp_path, pico):
    """As SmolLM2 and small Qwens are: PEFT saves a head that no file of the model has."""
    models = {}
    for name in ("base", "instruct"):
        models[name] = shutil.copytree(pico[name], tmp_path / name)
        tensors = weights_of(models[name])
        del tensors[HEAD]
        save_file(tensors, models[name] / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((models[name] / "config.json").read_text())
        (models[name] / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    adapters = [train(models["base"], tmp_path / "a", tokens=70), train(models["base"], tmp_path / "b", save=False)]
    assert load_file(adapters[0] / WEIGHTS)[f"base_model.model.{HEAD}"].shape == (70, 32)
    reports = [merge(adapter, *models.values(), tmp_path / f"out-{adapter.name}") for adapter in adapters]
    equal(weights_of(tmp_path / "out-a"), weights_of(tmp_path / "out-b"))
    assert [len(report.notes) for report in reports] == [2, 0]


def test_modules_trained_whole_beside_their_originals(tmp_path, pico):
    """With save_embedding_layers PEFT writes both, and the trained one twice."""
    settings = {"modules_to_save": ["embed_tokens", "lm_head"]}
    adapter = train(pico["base"], tmp_path / "a", save=True, **settings)
    tensors = load_file(adapter / WEIGHTS)
    stem = "base_model.model.lm_head"
    assert {f"{stem}.weight", f"{stem}.modules_to_save.weight", f"{stem}.original_module.weight"} < set(tensors)
    report = merge(adapter, pico["base"], pico["instruct"], tmp_path / "out")
    merge(
        train(pico["base"], tmp_path / "b", save=False, **settings), pico["base"], pico["instruct"], tmp_path / "out2"
    )
    equal(weights_of(tmp_path / "out"), weights_of(tmp_path / "out2"))
    assert len(report.notes) == 2
    adapter = changed_file(adapter, tmp_path / "c", lambda tensors: tensors[f"{stem}.modules_to_save.weight"].add_(1))
    with pytest.raises(ModelError, match=r"are both 'lm_head\.weight'"):
        merge(adapter, pico["base"], pico["instruct"], tmp_path / "out3")


def test_other_weights_saved_whole_lead_to_modules_to_save(tmp_path, pico, plain):
    norm = "model.layers.0.input_layernorm"

    def change(tensors):
        tensors[f"base_model.model.{norm}.weight"] = torch.full((32,), 1.5)

    adapter = changed_file(plain["alone"], tmp_path / "a", change)
    with pytest.raises(ModelError, match=rf"where '{norm}' was trained whole, add it to modules_to_save"):
        merge(adapter, pico["base"], pico["instruct"], tmp_path / "out")
    content = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(content | {"modules_to_save": [norm]}))
    merge(adapter, pico["base"], pico["instruct"], tmp_path / "out")
    assert torch.equal(weights_of(tmp_path / "out")[f"{norm}.weight"], torch.full((32,), 1.5))


# -- models of different vocabularies


def test_an_instruct_model_with_more_tokens(tmp_path, pico, plain, expected):
    instruct = with_tokens(pico["instruct"], tmp_path / "i", ["<|im_start|>", "<|im_end|>"])
    report = merge(plain["alone"], pico["base"], instruct, tmp_path / "out")
    merged, own = weights_of(tmp_path / "out"), weights_of(instruct)
    equal(merged, expected | {name: own[name] for name in (EMBEDDING, HEAD)})
    assert merged[HEAD].shape == (66, 32) and len(report.notes) == 1
    assert "2 only in the instruct model (such as '<|im_end|>')" in report.notes[0]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 66


def test_a_base_with_more_tokens_and_an_instruct_model_with_more_rows(tmp_path, pico, plain, expected):
    base = with_tokens(pico["base"], tmp_path / "b", ["<|im_start|>"])
    merge(plain["alone"], base, pico["instruct"], tmp_path / "out")
    equal(weights_of(tmp_path / "out"), expected)
    padded = with_tokens(pico["instruct"], tmp_path / "i", [], rows=80)
    report = merge(plain["alone"], pico["base"], padded, tmp_path / "out2")
    assert "vocab_size is 64 in the base and 80 in the instruct model" in report.notes[0]


def test_a_reserved_token_may_get_a_name_and_a_word_may_not(tmp_path, pico, plain):
    """As Llama 3's <|reserved_special_token_0|> in models that speak ChatML."""
    base = with_tokens(pico["base"], tmp_path / "b", ["<|reserved_0|>"])
    instruct = with_tokens(pico["instruct"], tmp_path / "i", ["<|im_end|>"])
    assert "'<|reserved_0|>'" in merge(plain["alone"], base, instruct, tmp_path / "out").notes[-1]
    file = instruct / "tokenizer.json"
    file.write_text(file.read_text().replace('"w7"', '"v7"'))
    with pytest.raises(ModelError, match=r"token 'w7' is number .* but missing"):
        merge(plain["alone"], base, instruct, tmp_path / "out2")
    moved = json.loads((pico["instruct"] / "tokenizer.json").read_text())
    words = moved["model"]["vocab"]
    words["w7"] = 64  # and its old number is nobody's
    shutil.copytree(pico["instruct"], tmp_path / "moved")
    (tmp_path / "moved" / "tokenizer.json").write_text(json.dumps(moved))
    with pytest.raises(ModelError, match="token 'w7' is number"):
        merge(plain["alone"], pico["base"], tmp_path / "moved", tmp_path / "out2")


def test_an_added_token_may_have_another_number(tmp_path, pico, plain):
    """A padding token added before ChatML's, or behind them."""
    base = with_tokens(pico["base"], tmp_path / "b", ["<pad>"])
    instruct = with_tokens(pico["instruct"], tmp_path / "i", ["<|im_start|>", "<|im_end|>", "<pad>"])
    note = merge(plain["alone"], base, instruct, tmp_path / "out").notes[-1]
    assert "2 only in the instruct model" in note and "1 of them under other numbers (such as '<pad>')" in note


@pytest.mark.parametrize(
    ("lora", "name"),
    [
        ({"modules_to_save": ["lm_head"]}, HEAD),
        ({"target_modules": ["embed_tokens", "q_proj"]}, EMBEDDING),
        ({"trainable_token_indices": [3]}, EMBEDDING),
    ],
)
def test_other_tokens_and_a_changed_embedding_are_refused(tmp_path, pico, plain, expected, lora, name):
    instruct = with_tokens(pico["instruct"], tmp_path / "i", ["<|im_end|>"])
    adapter = train(pico["base"], tmp_path / "a", **lora)
    with pytest.raises(ModelError, match=rf"changes '{name}'.*1 only in the instruct model.*train without"):
        merge(adapter, pico["base"], instruct, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = merge(plain["alone"], pico["base"], instruct, tmp_path / "out")  # the same without them
    assert report.tensors.keys() == {key for key in expected if "q_proj" in key or "up_proj" in key}
