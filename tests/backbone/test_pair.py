"""A base and an instruct model of one lineage pass; others are refused with the key and both values."""

import json
import subprocess
import sys

import pytest

from lite_c2f.backbone.pair import check_pair, lineage, read_vocabulary
from lite_c2f.errors import ModelError


def test_a_pair_passes(pico):
    check_pair(pico["base"], pico["instruct"])
    check_pair(str(pico["base"]), pico["sharded"])


@pytest.mark.parametrize(
    ("key", "value", "ours"),
    [
        ("architectures", ["LlamaForCausalLM"], "MistralForCausalLM"),
        ("hidden_size", 64, "32"),
        ("intermediate_size", 64, "48"),
        ("num_hidden_layers", 3, "2"),
        ("num_attention_heads", 8, "4"),
        ("num_key_value_heads", 4, "2"),
        ("head_dim", 16, "8"),
        ("vocab_size", 65, "64"),
        ("sliding_window", None, "4096"),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}, "default"),
    ],
)
def test_another_config_is_refused_with_both_values(pico, editable, edit_json, key, value, ours):
    other = editable("instruct")
    edit_json(other / "config.json", **{key: value})
    named = value["rope_type"] if isinstance(value, dict) else value[0] if isinstance(value, list) else value
    with pytest.raises(ModelError, match=f"'{key}' is .*{ours}.*{pico['base'].name}.* but .*{named}.*copy-of-instruct"):
        check_pair(pico["base"], other)


def test_rope_theta_is_seen_in_both_layouts(pico, editable, edit_json):
    other = editable("instruct")
    edit_json(other / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    with pytest.raises(ModelError, match=r"'rope_theta' is 10000\.0 .* but 1000000\.0"):
        check_pair(pico["base"], other)
    edit_json(other / "config.json", rope_parameters=..., rope_theta=1e6)
    with pytest.raises(ModelError, match=r"'rope_theta' is 10000\.0 .* but 1000000\.0"):
        check_pair(pico["base"], other)
    edit_json(other / "config.json", rope_theta=10000, rope_scaling=None)
    check_pair(pico["base"], other)


def test_mistral_v01_and_v02():
    """The published configs' own values: Instruct-v0.2 is not tuned from v0.1, Instruct-v0.1 is."""
    sizes = {"model_type": "mistral", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    base = {**sizes, "rope_theta": 10000.0, "sliding_window": 4096}
    assert lineage(base) == lineage({**sizes, "head_dim": 128})  # the defaults
    assert lineage(base) != lineage({**base, "rope_theta": 1000000.0})
    assert lineage(base) != lineage({**base, "sliding_window": None})


def test_two_ways_of_writing_the_same():
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "rope_type": "yarn", "factor": 4.0}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", "factor": 4.0}}
    assert lineage(old) == lineage(new)
    assert lineage(old) != lineage({**old, "rope_scaling": {"type": "yarn", "factor": 8.0}})
    assert lineage({"num_attention_heads": 8}) == lineage({"num_attention_heads": 8, "num_key_value_heads": 8})
    assert lineage({"text_config": {"hidden_size": 8}}) == lineage({"hidden_size": 8})
    assert lineage({"sliding_window": 99, "use_sliding_window": False}) == lineage({"sliding_window": None})


def test_another_vocabulary_is_refused_with_the_token(pico, editable):
    other = editable("instruct")
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["w7"], content["model"]["vocab"]["w8"] = 11, 10
    file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"'w7' is number 10 in .* but number 11"):
        check_pair(pico["base"], other)
    content = json.loads((pico["base"] / "tokenizer.json").read_text())
    content["added_tokens"].append({"id": 64, "content": "<|im_start|>"})
    file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"'<\|im_start\|>' is missing in .* but number 64"):
        check_pair(pico["base"], other)


def test_forms_of_vocabulary(tmp_path):
    unigram = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": [{"id": 2, "content": "<x>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    assert read_vocabulary(tmp_path) == {"a": 0, "b": 1, "<x>": 2}
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    assert read_vocabulary(tmp_path) == {"a": 0, "b": 1}
    (tmp_path / "added_tokens.json").write_text('{"<x>": 2}')
    assert read_vocabulary(tmp_path) == {"a": 0, "b": 1, "<x>": 2}


def test_missing_and_damaged_files_are_named(pico, editable, tmp_path):
    other = editable("instruct")
    with pytest.raises(ModelError, match="nowhere"):
        check_pair(tmp_path / "nowhere", other)
    for content in ("{", "[]", '{"model": {}}'):
        (other / "tokenizer.json").write_text(content)
        with pytest.raises(ModelError, match=r"tokenizer\.json"):
            check_pair(pico["base"], other)
    (other / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json in .*copy-of-instruct"):
        check_pair(pico["base"], other)
    (other / "config.json").write_text("nonsense")
    with pytest.raises(ModelError, match=r"copy-of-instruct/config\.json"):
        check_pair(pico["base"], other)
    (other / "config.json").unlink()
    with pytest.raises(ModelError, match=r"copy-of-instruct/config\.json"):
        check_pair(pico["base"], other)


def test_pair_and_shards_import_no_torch():
    code = "import sys, lite_c2f.backbone.pair, lite_c2f.fine.shards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
