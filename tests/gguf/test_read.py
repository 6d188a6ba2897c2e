"""GGUF files as models: a tiny model's logits and tokens come back; anything else is refused by name."""

import json
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from families import FAMILIES, GATED, Family
from gguf_files import rewrite, write_gguf
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizer_kinds import made
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lite_c2f.backbone.round_trip import check_round_trip
from lite_c2f.cli import doctor
from lite_c2f.errors import ModelError
from lite_c2f.gguf import read
from lite_c2f.gguf.read import check_gguf, gguf_folder

TEXT = "How many  apples are left?\n\nHuman: 12 of 345.\n"
# What Transformers 5.23 leaves at its default is as published: Qwen3's head of 128, GPT-2's 1,024 positions.
CASES = {
    "Llama": ("llama", "llama3", {}),
    "Mistral": ("llama", "sentencepiece", {}),
    "Qwen2": ("qwen2", "qwen", {}),
    "Qwen3": ("qwen3", "qwen", {"head_dim": 128}),
    "Phi-3": ("phi3", "qwen", {}),
    "StableLM": ("stablelm", "qwen", {}),
    "GPT-2": ("gpt2", "gpt2", {"n_positions": 1024}),
}
TINY = Family("llama", {**GATED, "num_hidden_layers": 1, "tie_word_embeddings": True})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("LITE_C2F_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        yield tmp_path / "cache" / "gguf"


def write_family(file, name):
    architecture, kind, more = CASES[name]
    family = FAMILIES[name]._replace(config={**FAMILIES[name].config, **more})
    return write_gguf(file, family, architecture, tokenizer=kind)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_tokens_come_back(tmp_path, name):
    file = tmp_path / "model.gguf"
    model = write_family(file, name)
    folder = gguf_folder(file)
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[9, 30, 31, 7, 40, 41, 11, 55, 8, 60, 61, 62, 20, 21]])
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    tied = model.config.tie_word_embeddings
    assert (read.lm_head.weight is read.get_input_embeddings().weight) == tied
    tokenizer, original = AutoTokenizer.from_pretrained(folder), made(CASES[name][1])
    assert (
        tokenizer(TEXT, add_special_tokens=False)["input_ids"] == original(TEXT, add_special_tokens=False)["input_ids"]
    )
    check_round_trip(tokenizer, str(folder))
    assert tokenizer.eos_token == original.eos_token and tokenizer.chat_template == original.chat_template


WITHOUT_WARNING = [  # what Transformers 5.23 reads without a word, and wrongly
    ("Llama", {"llama.attention.head_count_kv": None}, "no llama.attention.head_count_kv; expected one positive"),
    ("Llama", {"llama.block_count": None}, "no llama.block_count"),
    ("Llama", {"llama.block_count": 0}, "llama.block_count = 0"),
    ("Llama", {"llama.attention.head_count": [4, 4]}, r"head_count = \[4, 4\]"),
    ("Llama", {"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon"),
    ("Llama", {"llama.rope.scaling.factor": 4.0}, "rotary frequencies"),
    ("Llama", {"llama.rope.scale_linear": 4.0}, "rotary frequencies"),
    ("Llama", {"tokenizer.ggml.eos_token_id": None}, "names no end token"),
    ("Llama", {"tokenizer.ggml.eos_token_id": 5000}, "eos_token_id = 5000; expected one of its 381 tokens"),
    ("Llama", {"tokenizer.ggml.token_type": None}, "without tokenizer.ggml.token_type"),
    ("Llama", {"tokenizer.ggml.merges": None}, "without tokenizer.ggml.merges"),
    ("Mistral", {"tokenizer.ggml.scores": None}, "without tokenizer.ggml.scores"),
    ("Mistral", {"tokenizer.ggml.add_space_prefix": False}, "puts no space before a text"),
    ("Phi-3", {"phi3.rope.dimension_count": 12}, "rotates 12 of 16 dimensions of a head; expected 16"),
    ("StableLM", {"stablelm.rope.dimension_count": None}, "rotates 16 of 16 dimensions of a head; expected 4"),
    ("StableLM", {"stablelm.rope.freq_base": 1e6}, r"base 1e\+06, .*expected 10000"),
    ("GPT-2", {"gpt2.attention.layer_norm_epsilon": None}, "no gpt2.attention.layer_norm_epsilon"),
]


@pytest.mark.parametrize(("name", "keys", "expected"), WITHOUT_WARNING)
def test_what_would_be_guessed_is_refused(tmp_path, name, keys, expected):
    file = tmp_path / "model.gguf"
    write_family(file, name)
    rewrite(file)
    check_gguf(file)  # as it is
    rewrite(file, keys)
    with pytest.raises(ModelError, match=expected) as caught:
        check_gguf(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("place", "token", "type_"),
    [
        (0, "<｜end▁of▁sentence｜>", 3),  # of a name outside the byte alphabet: Transformers gives it a new id
        (9, "<｜User｜>", 3),  # in the chat template
        (9, "  ", 4),
    ],
)
def test_special_tokens_keep_their_ids_or_are_refused(tmp_path, cache, place, token, type_):
    file = tmp_path / "model.gguf"
    write_family(file, "Qwen2")
    reader = gguf.GGUFReader(file)
    tokens, types = (reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    tokens[place], types[place] = token, type_
    keys = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    rewrite(file, {**keys, "tokenizer.chat_template": "{{ '<｜User｜>' + messages[0]['content'] }}"})
    with pytest.raises(ModelError, match=rf"has the token '{token}' with the id {place}, and Transformers reads it as"):
        gguf_folder(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]


UP, HEAD = "blk.0.ffn_up.weight", "output.weight"
ANY = np.ones((128, 64), np.float32)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({UP: None}, f"lacks the weight '{UP}'; expected all of 1 layers"),
        ({UP: None, "blk.0.ffn_uq.weight": ANY}, f"lacks the weight '{UP}'"),
        ({"blk.0.attn_q.bias": ANY[0, :64]}, "'blk.0.attn_q.bias', for which LlamaForCausalLM has no place"),
        ({"blk.1.ffn_up.weight": ANY}, "has the weight 'blk.1.ffn_up.weight'"),
        ({UP: ANY[:64]}, r"mlp.up_proj.weight of the shape \(64, 64\); expected \(128, 64\)"),
        ({HEAD: ANY}, r"lm_head.weight of the shape \(128, 64\); expected \(379, 64\)"),
        ({UP: ANY * np.nan}, f"{UP} has values that are not finite"),
        ({UP: ANY * 0}, f"all of {UP} is 0, as in a download"),
    ],
)
def test_weights_that_would_be_random_or_left_out_are_refused(tmp_path, cache, tensors, expected):
    file = tmp_path / "model.gguf"
    write_gguf(file, TINY, "llama")
    rewrite(file, tensors=tensors)
    with pytest.raises(ModelError, match=expected):
        gguf_folder(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_another_version_or_byte_order_is_named(tmp_path):
    file = tmp_path / "model.gguf"
    write_gguf(file, TINY, "llama")
    content, other = file.read_bytes(), tmp_path / "other.gguf"
    other.write_bytes(content[:4] + bytes([1, 0, 0, 0]) + content[8:])
    rewrite(file, big_endian=True)
    for one in (file, other):
        with pytest.raises(ModelError, match="expected version 2 or 3, little-endian"):
            check_gguf(one)


@pytest.mark.parametrize(("name", "window", "context"), [("Phi-3", 12, 128), ("Mistral", None, 12)])
def test_a_sliding_window_is_kept_or_bounds_the_context(tmp_path, name, window, context):
    file = tmp_path / "model.gguf"
    write_family(file, name)
    rewrite(file, {f"{CASES[name][0]}.attention.sliding_window": 12})
    config = json.loads((gguf_folder(file) / "config.json").read_text())
    assert (config.get("sliding_window"), config["max_position_embeddings"]) == (window, context)


def test_a_file_is_read_once_by_its_content(tmp_path, cache):
    file, copy, messages = tmp_path / "model.gguf", tmp_path / "renamed.gguf", []
    write_gguf(file, TINY, "llama")
    folder = gguf_folder(file, messages.append)
    made_at = (folder / "config.json").stat().st_mtime_ns
    shutil.copy(file, copy)
    assert gguf_folder(copy, messages.append) == folder and (folder / "config.json").stat().st_mtime_ns == made_at
    assert len(messages) == 1 and "model.gguf" in messages[0]
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [folder.name]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"general__type": "adapter"}, "LoRA adapter; expected a model"),
        ({"split__count": 2}, "one of 2 parts; expected one file; join"),
        ({"llama__expert_count": 8}, "experts; expected a dense model"),
        ({"tokenizer": None}, "no tokenizer"),
        ({"tokenizer__ggml__pre": "chatglm-bpe"}, "tokenizer of the kind 'chatglm-bpe'; expected SentencePiece"),
        ({"scaled_rope": True}, "rotary frequencies"),
        ({"llama__rope__scaling__type": "yarn"}, "rotary frequencies"),
    ],
)
def test_what_is_no_model_for_this_is_refused(tmp_path, cache, keys, expected):
    file = tmp_path / "model.gguf"
    write_gguf(file, TINY, "llama", **keys)
    with pytest.raises(ModelError, match=expected) as caught:
        gguf_folder(file)
    assert str(file) in str(caught.value) and not [path for path in cache.iterdir() if path.is_dir()]


def test_another_architecture_is_named(tmp_path):
    file = tmp_path / "model.gguf"
    write_gguf(file, FAMILIES["Gemma 2"], "gemma2")
    with pytest.raises(ModelError, match=r"architecture 'gemma2'; expected one of llama, .*; use the model's folder"):
        check_gguf(file)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.2, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, cache, share):
    file = tmp_path / "model.gguf"
    write_gguf(file, TINY, "llama")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match=r"no whole GGUF file.*download it again"):
        gguf_folder(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]


@pytest.mark.parametrize("text", [b"llama.block_count", b"<|endoftext|>"])
def test_a_damaged_text_is_refused(tmp_path, cache, text):
    file = tmp_path / "model.gguf"
    write_gguf(file, TINY, "llama")
    file.write_bytes(file.read_bytes().replace(text, b"\x80" + text[1:]))
    with pytest.raises(ModelError, match=r"no whole GGUF file.*download it again"):
        gguf_folder(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_file_that_vanishes_is_named(tmp_path, cache, monkeypatch):
    """While its content is hashed, and while it is read: it is not the cache that has failed."""
    file = tmp_path / "model.gguf"
    write_gguf(file, TINY, "llama")

    def vanish_then_check(file):
        reader = check_gguf(file)
        file.rename(tmp_path / "moved.gguf")
        return reader

    with monkeypatch.context() as patch:
        patch.setattr(read, "check_gguf", vanish_then_check)
        with pytest.raises(ModelError, match=r"model.gguf' cannot be read"):
            gguf_folder(file)
    with pytest.raises(ModelError, match=r"model.gguf' cannot be read \(No such file"):
        read._digest(file, 1, 1)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_another_file_is_no_gguf(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\x03\x04" + bytes(4000))
    with pytest.raises(ModelError, match="does not begin as one"):
        gguf_folder(file)
    with pytest.raises(ModelError, match="is not there"):
        gguf_folder(tmp_path / "missing.gguf")


def test_no_room_in_the_cache(tmp_path, cache, monkeypatch):
    file = tmp_path / "model.gguf"
    write_gguf(file, TINY, "llama")
    monkeypatch.setattr(read.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ModelError, match=r"GiB unpacked.*free some, or set LITE_C2F_CACHE"):
        gguf_folder(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written_to(tmp_path, cache, monkeypatch):
    """A full disk, as safetensors says it without an error number; a file where the cache should be."""
    file = tmp_path / "model.gguf"
    write_gguf(file, TINY, "llama")

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", full)
        with pytest.raises(ModelError, match=r"cannot be written to \(.*No space left.*set LITE_C2F_CACHE"):
            gguf_folder(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]
    shutil.rmtree(cache.parent)
    cache.parent.write_text("")
    with pytest.raises(ModelError, match="cannot be written to"):
        gguf_folder(file)


def test_a_file_that_changes_while_it_is_read_is_not_taken(tmp_path, cache, monkeypatch):
    """Its folder would be found again under the content that the file had before."""
    file = tmp_path / "model.gguf"
    write_gguf(file, TINY, "llama")

    def change_then_check(file):
        rewrite(file, tensors={UP: ANY})
        return check_gguf(file)

    monkeypatch.setattr(read, "check_gguf", change_then_check)
    with pytest.raises(ModelError, match="was changed while it was read"):
        gguf_folder(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_cached_folder_whose_weights_were_removed_is_made_again(tmp_path):
    file = tmp_path / "model.gguf"
    write_gguf(file, TINY, "llama")
    folder = gguf_folder(file)
    (folder / "model.safetensors").unlink()
    assert gguf_folder(file) == folder and (folder / "model.safetensors").is_file()


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    write_gguf(file, TINY, "llama")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match="pip install gguf"):
        gguf_folder(file)


@pytest.mark.slow
def test_two_processes_make_one_folder(tmp_path):
    file = tmp_path / "model.gguf"
    write_gguf(file, TINY, "llama")
    code = "import sys; from pathlib import Path; from lite_c2f.gguf.read import gguf_folder\n"
    code += "print(gguf_folder(Path(sys.argv[1]), lambda text: print('made')))"
    both = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, file], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate()[0].split() for process in both]
    assert printed[0][-1] == printed[1][-1] and [process.returncode for process in both] == [0, 0]
    assert sum("made" in words for words in printed) == 1


def test_the_doctor_takes_a_gguf_file(tmp_path, call, cache, monkeypatch):
    monkeypatch.setattr(doctor, "WIDTHS", (64,))
    file = tmp_path / "model.gguf"
    write_gguf(file, TINY, "llama")
    code, out, err = call("doctor", file, "--json")
    assert "unpacking model.gguf" in err and len(list(cache.glob("*/config.json"))) == 1
    assert str(next(cache.glob("*/config.json")).parent) in out, (code, out)
    code, _, err = call("doctor", tmp_path / "missing.gguf")
    assert code == 2 and "missing.gguf" in err and err.count("\n") == 1
