"""The Knowledge Residue Merger: right to the last bit, whole or not at all."""

import hashlib
import json
import math
import shutil
import warnings
from collections import namedtuple

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lite_c2f.errors import ConfigError, ModelError, RunError
from lite_c2f.fine import checks, stream
from lite_c2f.fine.merge import merge
from lite_c2f.fine.ratios import choose_ratios, read_layer_ratios
from lite_c2f.fine.shards import ITEM_BYTES, read_header

WEIGHT = "model.layers.0.self_attn.q_proj.weight"
STEM = WEIGHT.removesuffix(".weight")


def strict_merge(*args, **kwargs):
    """merge with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return merge(*args, **kwargs)


def weights_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def reference_deltas(adapter):
    """dW in float64 by NumPy, from the adapter's files alone (r and alpha without patterns)."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = {name: t.double().numpy() for name, t in load_file(adapter / "adapter_model.safetensors").items()}
    scaling = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    return {
        name.removeprefix("base_model.model.").replace("lora_A.", ""): scaling
        * (tensors[name.replace("lora_A", "lora_B")] @ tensor)
        for name, tensor in tensors.items()
        if "lora_A" in name
    }


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def tiny(tmp_path, hand_adapter, hand_model):
    """A 2 x 2 weight and a delta worked out by hand: A is the identity, alpha / r is 1, so dW is B."""

    def build(weight, delta, dtype=torch.float32, **config):
        extra = {"lm_head.weight": torch.ones(2, 2, dtype=dtype), "model.norm.weight": torch.ones(2, dtype=dtype)}
        instruct = hand_model(tmp_path / "instruct", {WEIGHT: torch.tensor(weight, dtype=dtype), **extra}, **config)
        factors = {f"{STEM}.lora_A.weight": torch.eye(2), f"{STEM}.lora_B.weight": torch.tensor(delta)}
        return hand_adapter(tmp_path / "adapter", factors), None, instruct, tmp_path / "out"

    return build


# -- the numbers


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "mlp.up_proj": 7}, "alpha_pattern": {"down_proj": 3}},
        {"use_rslora": True, "rank_pattern": {"layers.1.*": 2}, "alpha_pattern": {"q_proj": 1}},
        {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
    ],
)
def test_equal_to_peft_in_float32(tmp_path, pico, make_adapter, lora):
    adapter = make_adapter(tmp_path / "adapter", pico["base"], **lora)
    strict_merge(adapter, pico["base"], pico["instruct"], tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(pico["instruct"], dtype=torch.float32)
    expected = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    merged, before = weights_of(tmp_path / "out"), weights_of(pico["instruct"])
    assert merged.keys() == expected.keys()
    assert any(not torch.equal(merged[name], before[name]) for name in merged)
    for name, tensor in merged.items():
        # two ulps of the largest weight (2**-3): sums may be taken in another order
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2 * 2.0**-26)


@pytest.mark.parametrize("chunk", [1, 3 * 32, 10**9])
def test_float32_against_float64(tmp_path, pico, monkeypatch, chunk):
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", chunk)
    strict_merge(pico["adapter"], pico["base"], pico["instruct"], tmp_path / "out", ratio=0.3)
    merged, before, deltas = (
        weights_of(tmp_path / "out"),
        weights_of(pico["instruct"]),
        reference_deltas(pico["adapter"]),
    )
    assert len(deltas) == 14
    for name, tensor in merged.items():
        expected = before[name].double().numpy() + 0.3 * deltas.get(name, 0.0)
        np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=0, atol=3e-8)
        if name not in deltas:
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("ratio", [1.0, 0.02])
def test_bfloat16_is_rounded_once(tmp_path, pico, ratio):
    strict_merge(pico["adapter"], pico["base"], pico["sharded"], tmp_path / "out", ratio=ratio)
    merged, before, deltas = (
        weights_of(tmp_path / "out"),
        weights_of(pico["sharded"]),
        reference_deltas(pico["adapter"]),
    )
    wrong = elements = 0
    for name, delta in deltas.items():
        expected = torch.from_numpy(before[name].double().numpy() + ratio * delta).to(torch.bfloat16)
        assert merged[name].dtype == torch.bfloat16
        wrong += int((merged[name] != expected).sum())
        elements += delta.size
    # float32 and float64 may fall on two sides of a tie (about one in 2**16); a second rounding moves every tenth
    assert elements == 15360 and wrong <= 3
    for name in before.keys() - deltas.keys():
        assert torch.equal(merged[name], before[name])


def test_report_by_hand(tiny):
    """bfloat16 steps by 2 above 256, by 1 below: 256.5 -> 256, 259 -> 260 (tie, even), 257 -> 256, 255.5 -> 256."""
    adapter, base, instruct, out = tiny([[256.0, 256.0], [256.0, 256.0]], [[0.25, 1.5], [0.5, -0.25]], torch.bfloat16)
    report = strict_merge(adapter, base, instruct, out, ratio=2)
    assert weights_of(out)[WEIGHT].tolist() == [[256.0, 260.0], [256.0, 256.0]]
    intended = 0.25 + 9 + 1 + 0.25
    expected = {
        "ratio": 2.0,
        "dtype": "BF16",
        "elements": 4,
        "counted_share": 1.0,
        "kept_share": 1.0,
        "drift": None,
        "cosine": None,
        "relative_change": pytest.approx(math.sqrt(intended) / 512, rel=1e-12),
        "unchanged_share": 0.75,
        "projection": pytest.approx(4 * 3 / intended, rel=1e-12),
    }
    assert report.tensors == {WEIGHT: expected}
    # all weights: 3 tensors, 4 + 4 + 2 elements of 2 bytes
    assert report.totals == {
        "tensors": 1,
        "bytes": 20,
        **{k: v for k, v in expected.items() if k not in ("ratio", "dtype")},
    }
    written = json.loads((out / "merge.json").read_text(), parse_constant=pytest.fail)
    assert written["schema"] == 1 and written["tensors"] == report.tensors and written["ratio"] == 2.0
    sha256 = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert written["shards"] == {"model.safetensors": sha256}
    sha256 = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert written["adapter"] == {"name": "adapter", "sha256": sha256}
    assert (written["base"], written["instruct"], written["dtype"]) == (None, "instruct", "unchanged")


def test_a_zero_weight_gives_null_not_nan(tiny):
    report = strict_merge(*tiny([[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]))
    assert report.tensors[WEIGHT]["relative_change"] is None
    assert report.tensors[WEIGHT]["unchanged_share"] == 0.75 and report.tensors[WEIGHT]["projection"] == 1.0


def test_change_of_dtype_is_not_counted_as_residue(tiny):
    """0.1 is no bfloat16: its rounding is not the merge's doing."""
    adapter, base, instruct, out = tiny([[0.1, 0.1], [0.1, 1.0]], [[0.0, 0.0], [0.0, 1.0]], torch_dtype="float32")
    report = strict_merge(adapter, base, instruct, out, dtype="bfloat16")
    assert report.tensors[WEIGHT]["unchanged_share"] == 0.75 and report.tensors[WEIGHT]["projection"] == 1.0
    assert {tensor.dtype for tensor in weights_of(out).values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text()) == {"model_type": "mistral", "torch_dtype": "bfloat16"}


def test_weights_whose_squares_overflow_float32(tiny):
    report = strict_merge(*tiny([[1e30, 0.0], [0.0, 0.0]], [[1e30, 0.0], [0.0, 0.0]]))
    assert report.tensors[WEIGHT]["relative_change"] == report.tensors[WEIGHT]["projection"] == 1.0


def test_report_divides_by_the_stored_weight(tiny):
    """1.00390625 (1 + 2**-8) is a tie in bfloat16 and becomes 1.0 there: |W| is that of the file, not of the cast."""
    adapter, base, instruct, out = tiny([[1.00390625, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]])
    report = strict_merge(adapter, base, instruct, out, dtype="bfloat16")
    assert report.tensors[WEIGHT]["relative_change"] == pytest.approx(1 / 1.00390625, rel=1e-6)


def test_negative_ratio_subtracts(tiny):
    adapter, base, instruct, out = tiny([[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, -2.0]])
    strict_merge(adapter, base, instruct, out, ratio=-0.5, allow_negative=True)
    assert weights_of(out)[WEIGHT].tolist() == [[0.5, 2.0], [3.0, 5.0]]


def test_layer_ratios_first_match_wins(tmp_path, pico):
    file = tmp_path / "ratios.yaml"
    file.write_text("'*.layers.0.mlp.*': 0.5\n'*.layers.0.*': 0\n")
    report = strict_merge(
        pico["adapter"], pico["base"], pico["instruct"], tmp_path / "out", ratio=2.0, layer_ratios=file
    )
    assert report.layer_ratios == [["*.layers.0.mlp.*", 0.5], ["*.layers.0.*", 0.0]]
    merged, before, deltas = (
        weights_of(tmp_path / "out"),
        weights_of(pico["instruct"]),
        reference_deltas(pico["adapter"]),
    )
    for name, delta in deltas.items():
        ratio = 2.0 if ".layers.1." in name else 0.5 if ".mlp." in name else 0.0
        assert report.tensors[name]["ratio"] == ratio
        np.testing.assert_allclose(
            merged[name].double().numpy(), before[name].double().numpy() + ratio * delta, atol=3e-8
        )
    assert report.tensors[WEIGHT]["unchanged_share"] == 1.0 and report.tensors[WEIGHT]["projection"] is None


# -- the folder


def test_sharded_output_loads_with_its_tokenizer(tmp_path, pico):
    out = tmp_path / "RUN" / "fine" / "model"
    seen = []
    report = strict_merge(
        pico["adapter"],
        pico["base"],
        pico["sharded"],
        out,
        progress=lambda done, total: seen.append((done, total)),
        report=out.parent / "merge.json",
    )
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    merged = weights_of(out)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w1"}], tokenize=False) == "[INST] w1 [/INST]"
    assert model.generation_config.max_new_tokens == 7
    assert {path.name for path in out.iterdir()} == {"README.md", *(path.name for path in pico["sharded"].iterdir())}
    for path in out.iterdir():
        if path.name != "README.md" and path.suffix != ".safetensors" and not path.name.endswith("index.json"):
            assert path.read_bytes() == (pico["sharded"] / path.name).read_bytes()
    assert len(report.shards) > 3 and not (out / "merge.json").exists()
    assert json.loads((out.parent / "merge.json").read_text())["shards"] == report.shards
    total = sum(2 * tensor.numel() for tensor in merged.values())
    assert seen[-1] == (total, total) and [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize(
    ("before", "ends"),
    [({"eos_token_id": 2, "top_p": 0.9}, [2, 5]), ({"eos_token_id": [2, 3]}, [2, 3, 5]), (None, [2, 5])],
)
def test_an_end_token_that_the_instruct_model_lacks_is_published(tmp_path, pico, editable, before, ends):
    instruct = editable("instruct")
    (instruct / "generation_config.json").unlink()
    if before is not None:
        (instruct / "generation_config.json").write_text(json.dumps(before))
    report = merge(pico["adapter"], pico["base"], instruct, tmp_path / "out", end_token=5)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == ends
    assert model.generation_config.top_p == (before or {}).get("top_p")
    assert report.end_token == 5 and json.loads((tmp_path / "out" / "merge.json").read_text())["end_token"] == 5


def test_sharded_bfloat16_to_float32(tmp_path, pico):
    out = tmp_path / "out"
    out.mkdir()  # an empty folder may be used
    strict_merge(pico["adapter"], pico["base"], pico["sharded"], out, dtype="float32")
    before, deltas = weights_of(pico["sharded"]), reference_deltas(pico["adapter"])
    for name, tensor in weights_of(out).items():
        expected = before[name].double().numpy() + deltas.get(name, 0.0)
        assert tensor.dtype == torch.float32
        np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=0, atol=3e-8)
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float32
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in before.values())


def test_tensors_stay_aligned_in_another_dtype(tmp_path, tiny, hand_model):
    """Three float32 before an int32 are 6 bytes in bfloat16: in the old order the int32 would lie askew."""
    adapter, base, _, out = tiny([[1.0, 0], [0, 1]], [[1.0, 0], [0, 1]])
    mixed = {"a": torch.ones(3), "z": torch.tensor([7], dtype=torch.int32), WEIGHT: torch.ones(2, 2)}
    strict_merge(adapter, base, hand_model(tmp_path / "mixed", mixed), out, dtype="bfloat16")
    entries = read_header(out / "model.safetensors")
    assert {entry.name: entry.dtype for entry in entries} == {"z": "I32", "a": "BF16", WEIGHT: "BF16"}
    assert all(entry.start % ITEM_BYTES[entry.dtype] == 0 for entry in entries)
    assert weights_of(out)["z"].tolist() == [7] and weights_of(out)[WEIGHT].tolist() == [[2, 1], [1, 2]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ModelError])
def test_interrupted_publishes_nothing(tmp_path, pico, error):
    before = contents(pico["sharded"])
    calls = []

    def stop(done, total):
        calls.append(done)
        if done > total // 2:
            raise error

    with pytest.raises(RunError if error is OSError else error):
        merge(pico["adapter"], pico["base"], pico["sharded"], tmp_path / "out", progress=stop)
    assert len(calls) > 3
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([] if error is ModelError else [".out.merging"])  # what can be gone on with, hidden
    assert not list(tmp_path.rglob("config.json"))  # nothing loads it
    assert contents(pico["sharded"]) == before


# -- what is refused


def test_nothing_changed_is_refused(tmp_path, tiny):
    adapter, base, instruct, out = tiny([[256.0, 256.0], [256.0, 256.0]], [[0.5, 0.5], [0.5, 0.5]], torch.bfloat16)
    with pytest.raises(ModelError, match="all equal to the instruct model"):
        merge(adapter, base, instruct, out)
    assert not out.exists() and not list(tmp_path.glob(".out*"))


def test_overflow_and_nan_are_refused_with_the_weight(tmp_path, tiny, hand_model):
    adapter, base, instruct, out = tiny([[60000.0, 0.0], [0.0, 0.0]], [[10000.0, 0.0], [0.0, 0.0]], torch.float16)
    with pytest.raises(ModelError, match=WEIGHT):
        merge(adapter, base, instruct, out)
    with pytest.raises(ModelError, match=WEIGHT):
        merge(adapter, base, instruct, out, ratio=-100.0, allow_negative=True)
    instruct = hand_model(tmp_path / "nan", {WEIGHT: torch.full((2, 2), math.nan)})
    with pytest.raises(ModelError, match=WEIGHT):
        merge(adapter, base, instruct, out)
    instruct = hand_model(tmp_path / "big", {WEIGHT: torch.zeros(2, 2), "model.norm.weight": torch.tensor([1e5, 1.0])})
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        merge(adapter, base, instruct, out, dtype="float16")
    assert not out.exists()


@pytest.mark.parametrize("ratio", [math.nan, math.inf, -0.5, "0.5", True, None])
def test_bad_ratio(tiny, ratio):
    with pytest.raises(ConfigError, match="'ratio' is"):
        merge(*tiny([[1.0, 0], [0, 1]], [[1.0, 0], [0, 1]]), ratio=ratio)
    with pytest.raises(ConfigError, match=r"'layer_ratios: \*' is"):
        read_layer_ratios([("*", ratio)], allow_negative=False)


@pytest.mark.parametrize("text", ["", "3", "'*': half", "[['*']]", "- {'*': 1}", "'*': .nan", "a: [", "{1: 1}"])
def test_bad_layer_ratio_file(tmp_path, text):
    (tmp_path / "ratios.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"ratios\.yaml"):
        read_layer_ratios(tmp_path / "ratios.yaml", allow_negative=True)
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        read_layer_ratios(str(tmp_path / "gone.yaml"), allow_negative=True)


def test_pattern_that_fits_nothing(tiny):
    with pytest.raises(ConfigError, match=r"\*\.mpl\.\*"):
        merge(*tiny([[1.0, 0], [0, 1]], [[1.0, 0], [0, 1]]), layer_ratios=[("*.mpl.*", 1.0)])


def test_list_of_pairs_equals_the_mapping(tmp_path):
    (tmp_path / "a.yaml").write_text("- ['*.mlp.*', 0.5]\n- ['*', 1]\n")
    pairs = [("*.mlp.*", 0.5), ("*", 1.0)]
    assert read_layer_ratios(tmp_path / "a.yaml", False) == read_layer_ratios(pairs, False) == pairs
    assert choose_ratios(["a.mlp.weight", "a.norm.weight"], 3.0, pairs) == {"a.mlp.weight": 0.5, "a.norm.weight": 1.0}


def test_bad_dtype(tiny):
    with pytest.raises(ConfigError, match="'dtype' is 'int8'"):
        merge(*tiny([[1.0, 0], [0, 1]], [[1.0, 0], [0, 1]]), dtype="int8")


def test_out_in_the_way(tmp_path, tiny):
    adapter, base, instruct, _ = tiny([[1.0, 0], [0, 1]], [[1.0, 0], [0, 1]])
    shutil.copytree(instruct, tmp_path / "taken")
    before = contents(tmp_path)
    for place in (instruct, instruct / "fine", adapter / "fine", instruct / ".." / "instruct"):
        with pytest.raises(RunError, match="which is read"):
            merge(adapter, base, instruct, place)
    for place in (tmp_path / "taken", tmp_path / "taken" / "config.json"):
        with pytest.raises(RunError, match=f"'{place}' exists"):
            merge(adapter, base, instruct, place)
    assert contents(tmp_path) == before


def test_full_disk(tiny, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(RunError, match=r"0 MiB free"):
        merge(*tiny([[1.0, 0], [0, 1]], [[1.0, 0], [0, 1]]))


def test_no_permission(tiny, monkeypatch):
    monkeypatch.setattr(checks.os, "access", lambda path, mode: False)
    with pytest.raises(RunError, match="cannot write to"):
        merge(*tiny([[1.0, 0], [0, 1]], [[1.0, 0], [0, 1]]))


def test_weight_that_is_not_there(tmp_path, tiny, hand_adapter):
    _, base, instruct, out = tiny([[1.0, 0], [0, 1]], [[1.0, 0], [0, 1]])
    name = "model.layers.9.mlp.up_proj"
    factors = {f"{name}.lora_A.weight": torch.eye(2), f"{name}.lora_B.weight": torch.eye(2)}
    with pytest.raises(ModelError, match=f"{name}.weight"):
        merge(hand_adapter(tmp_path / "other", factors), base, instruct, out)


def test_weight_of_another_shape_or_kind(tmp_path, tiny, hand_model):
    adapter, base, _, out = tiny([[1.0, 0], [0, 1]], [[1.0, 0], [0, 1]])
    with pytest.raises(ModelError, match=rf"{WEIGHT}' is \(2, 2\).*\(2, 3\)"):
        merge(adapter, base, hand_model(tmp_path / "a", {WEIGHT: torch.ones(2, 3)}), out)
    with pytest.raises(ModelError, match=f"{WEIGHT}.* is I8"):
        merge(adapter, base, hand_model(tmp_path / "b", {WEIGHT: torch.ones(2, 2, dtype=torch.int8)}), out)


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
@pytest.mark.parametrize("untied_file", [True, False])
def test_tied_embeddings(tmp_path, hand_adapter, hand_model, module, untied_file):
    weights = {"model.embed_tokens.weight": torch.ones(2, 2)}
    config = {"tie_word_embeddings": True} if untied_file else {}
    instruct = hand_model(
        tmp_path / "m", weights | ({"lm_head.weight": torch.ones(2, 2)} if untied_file else {}), **config
    )
    factors = {f"{module}.lora_A.weight": torch.eye(2), f"{module}.lora_B.weight": torch.eye(2)}
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        merge(hand_adapter(tmp_path / "a", factors), None, instruct, tmp_path / "out")


def test_quantised_instruct_and_adapter_folder(tiny):
    adapter, base, instruct, out = tiny([[1.0, 0], [0, 1]], [[1.0, 0], [0, 1]], quantization_config={"bits": 4})
    with pytest.raises(ModelError, match="quantization_config"):
        merge(adapter, base, instruct, out)
    (instruct / "config.json").write_text("{}")
    (instruct / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        merge(adapter, base, instruct, out)


def test_another_lineage(tmp_path, pico, editable, edit_json):
    other = editable("instruct")
    edit_json(other / "config.json", sliding_window=None)
    with pytest.raises(ModelError, match=r"'sliding_window' is 4096 .* but None"):
        merge(pico["adapter"], pico["base"], other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    strict_merge(pico["adapter"], None, other, tmp_path / "out")  # base=None skips the comparison


def test_adapter_of_another_base(tmp_path, pico, editable, edit_json):
    adapter, other = editable("adapter"), editable("base")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(other))
    strict_merge(adapter, pico["base"], pico["instruct"], tmp_path / "same")
    edit_json(other / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    with pytest.raises(ModelError, match=r"'base_model_name_or_path' of the adapter .*'rope_theta'"):
        merge(adapter, pico["base"], pico["instruct"], tmp_path / "out")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="somebody/some-model")
    strict_merge(adapter, pico["base"], pico["instruct"], tmp_path / "hub")


def test_untrained_adapter_is_refused(tmp_path, pico, editable):
    adapter = editable("adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    zeros = {name: torch.zeros_like(t) if "lora_B" in name else t for name, t in tensors.items()}
    save_file(zeros, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="an untrained one is zero"):
        merge(adapter, pico["base"], pico["instruct"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncated_shard_is_refused_before_anything_is_written(tmp_path, pico, editable):
    instruct = editable("sharded")
    shard = max(instruct.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(ModelError, match=shard.name):
        merge(pico["adapter"], pico["base"], instruct, tmp_path / "out")
    assert not (tmp_path / "out").exists()
