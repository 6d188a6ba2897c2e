"""merge.json and the model card; the comparison of instruct and base; verification by loading."""

import json
import math
import shutil
from itertools import pairwise

import pytest
import torch
import xxhash
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lite_c2f.errors import ModelError
from lite_c2f.fine import shards, stream
from lite_c2f.fine.merge import merge
from lite_c2f.fine.report import card_metadata, hub_name, warnings_of
from lite_c2f.fine.sparsify import Treatment

WEIGHT = "model.layers.0.self_attn.q_proj.weight"
STEM = WEIGHT.removesuffix(".weight")


@pytest.fixture
def by_hand(tmp_path, hand_adapter, hand_model, pico):
    """dW = [[3, 0], [0, 0]]; W_base = [[0, 4], [0, 3]], W_instruct = W_base + [[1, 0], [0, 1]]."""
    folders = []
    for name, weight in (("base", [[0.0, 4.0], [0.0, 3.0]]), ("instruct", [[1.0, 4.0], [0.0, 4.0]])):
        folders.append(hand_model(tmp_path / name, {WEIGHT: torch.tensor(weight)}))
        shutil.copy(pico["base"] / "tokenizer.json", folders[-1] / "tokenizer.json")
    factors = {f"{STEM}.lora_A.weight": torch.eye(2), f"{STEM}.lora_B.weight": torch.tensor([[3.0, 0], [0, 0]])}
    return hand_adapter(tmp_path / "adapter", factors), *folders, tmp_path / "out"


def test_figures_by_hand(by_hand):
    """T = diag(1, 1), |T| = sqrt 2, |W_base| = 5; change at ratio 2: 6 in one corner; cosine 6 / (6 * sqrt 2)."""
    report = merge(*by_hand, ratio=2.0)
    found = report.tensors[WEIGHT]
    assert found["drift"] == pytest.approx(math.sqrt(2) / 5, rel=1e-6)
    assert found["cosine"] == pytest.approx(1 / math.sqrt(2), rel=1e-6)
    assert found["relative_change"] == pytest.approx(6 / math.sqrt(33), rel=1e-6)
    assert (found["unchanged_share"], found["kept_share"], found["projection"]) == (0.75, 1.0, 1.0)
    assert report.warnings == [
        "the ratio is 2 and the change 1.04 of |W_instruct|; is that intended? 1 adds the whole residue"
    ]
    for part, folder in (("base", by_hand[1]), ("instruct", by_hand[2])):
        expected = xxhash.xxh3_128((folder / "model.safetensors").read_bytes()).hexdigest()
        assert report.inputs[part] == {"model.safetensors": expected}


def test_far_drift_is_told(by_hand):
    save_file({WEIGHT: torch.tensor([[9.0, 4.0], [0.0, 3.0]])}, by_hand[2] / "model.safetensors")
    told = []
    report = merge(*by_hand, notice=told.append)
    assert "1.80 of |W_base|" in report.warnings[0]
    assert told == [f"warning: {text}" for text in report.warnings]
    assert "**Warning:**" in (by_hand[3] / "README.md").read_text()


def test_large_weights_are_sampled_and_small_ones_counted_whole(tmp_path, pico, monkeypatch):
    whole = merge(pico["adapter"], pico["base"], pico["sharded"], tmp_path / "a")
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(stream, "CHUNK_ROWS", 2)  # 16 to 24 chunks a weight
    monkeypatch.setattr(stream, "COUNT_ALL", 16)
    monkeypatch.setattr(stream, "COUNT_EVERY", 8)
    part = merge(pico["adapter"], pico["base"], pico["sharded"], tmp_path / "b")
    gate = "model.layers.0.mlp.gate_proj.weight"  # 48 rows: 24 chunks, 3 of them counted
    assert whole.tensors[gate]["counted_share"] == 1.0 and part.tensors[gate]["counted_share"] == 3 / 24
    assert part.tensors[WEIGHT]["counted_share"] == 1.0  # 32 rows: 16 chunks
    assert part.tensors[WEIGHT]["cosine"] == pytest.approx(whole.tensors[WEIGHT]["cosine"], rel=1e-3)
    assert part.tensors[gate]["elements"] == 48 * 32
    assert part.tensors[gate]["relative_change"] == pytest.approx(whole.tensors[gate]["relative_change"], rel=0.5)


def test_a_change_in_chunks_that_are_not_counted_is_a_change(tmp_path, hand_adapter, hand_model, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(stream, "CHUNK_ROWS", 1)
    monkeypatch.setattr(stream, "COUNT_ALL", 1)
    up = torch.zeros(8, 2)
    up[7, 0] = 1.0
    instruct = hand_model(tmp_path / "m", {WEIGHT: torch.ones(8, 2)})
    factors = {f"{STEM}.lora_A.weight": torch.eye(2), f"{STEM}.lora_B.weight": up}
    report = merge(hand_adapter(tmp_path / "a", factors), None, instruct, tmp_path / "out")
    assert report.totals["unchanged_share"] == 1.0  # of those that were counted
    assert load_file(tmp_path / "out" / "model.safetensors")[WEIGHT][7].tolist() == [2.0, 1.0]


def test_nothing_changed_is_seen_where_not_all_is_counted(tmp_path, hand_adapter, hand_model, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(stream, "COUNT_ALL", 0)
    instruct = hand_model(tmp_path / "m", {WEIGHT: torch.full((64, 2), 256.0, dtype=torch.bfloat16)})
    factors = {f"{STEM}.lora_A.weight": torch.eye(2), f"{STEM}.lora_B.weight": torch.full((64, 2), 0.25)}
    with pytest.raises(ModelError, match="all equal to the instruct"):
        merge(hand_adapter(tmp_path / "a", factors), None, instruct, tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 5), (16, 7), (17, 9), (33, 2**15), (40, 2**20), (32001, 4096), (5, 0)]
)
def test_chunks_cover_the_rows_and_none_is_a_single_one(rows, columns):
    """A single row goes another way in BLAS, with other bits."""
    entry = shards.TensorEntry("w", "F32", (rows, columns), None, 0, 4 * rows * columns)
    chunks = stream.row_chunks(entry)
    if not columns:
        assert chunks == []
        return
    assert chunks[0].start == 0 and chunks[-1].stop == rows
    assert all(left.stop == right.start for left, right in pairwise(chunks))
    assert rows == 1 or min(chunk.stop - chunk.start for chunk in chunks) > 1


def test_model_card(tmp_path, pico, editable):
    instruct = editable("sharded")
    (instruct / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Its own card\n")
    merge(pico["adapter"], pico["base"], instruct, tmp_path / "out", 0.5, layer_ratios=[("*.mlp.*", [0.1, 0.9])])
    text = (tmp_path / "out" / "README.md").read_text()
    metadata = card_metadata(tmp_path / "out" / "README.md")
    assert metadata["license"] == "apache-2.0" and metadata["library_name"] == "transformers"
    assert "merge" in metadata["tags"] and yaml.safe_load(text.split("---")[1]) == metadata
    assert "| ratio | 0.1 to 0.9 by weight, see merge.json |" in text and "| treatment | none |" in text
    assert str(tmp_path) not in text and "Its own card" not in text
    settings = Treatment(sparsify="dare", density=0.5, seed=3, norm_cap=1e-6)
    merge(pico["adapter"], pico["base"], pico["instruct"], tmp_path / "b", treatment=settings)
    text = (tmp_path / "b" / "README.md").read_text()
    assert "| treatment | sparsify dare, density 0.5, seed 3, norm_cap 1e-06 |" in text and "F32" in text
    assert "| elements kept by the treatment | 0." in text
    assert "| scaled down by the norm cap | 14 of 14 weights |" in text


def test_hub_names():
    assert hub_name("/x/hub/models--mistralai--Mistral-7B-v0.1/snapshots/27d6") == "mistralai/Mistral-7B-v0.1"
    assert hub_name("mistralai/Mistral-7B-v0.1") == "mistralai/Mistral-7B-v0.1"
    assert hub_name("/home/me/model") is None and hub_name("model") is None and hub_name(None) is None


# -- verification


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_verified_against_the_unmerged_adapter(tmp_path, pico, dtype):
    out = tmp_path / "out"
    patterns = [("*.layers.0.*", 0.5)]
    report = merge(pico["adapter"], pico["base"], pico["sharded"], out, 2.0, patterns, dtype, verify="w1 w2 w3 w4")
    found = report.verified
    assert found["compared"] and found["prompt_tokens"] == 4 and found["dtype"] == "float32"
    assert found["error"] < (1e-5 if dtype else 0.1) * found["effect"] and found["effect"] > 0.01
    assert found["kl"] < 1e-3 and json.loads((out / "merge.json").read_text())["verified"] == found


def test_what_was_treated_has_no_counterpart(tmp_path, pico):
    settings = Treatment(sparsify="dare", density=0.5)
    report = merge(pico["adapter"], pico["base"], pico["instruct"], tmp_path / "o", verify="w1", treatment=settings)
    assert report.verified["compared"] is False and report.verified["effect"] > 0


def test_rounding_that_eats_the_residue_fails_verification(tmp_path, pico):
    """At a ratio of 0.0002 hardly a bfloat16 weight moves, and what does carries a tenth of the residue."""
    with pytest.raises(ModelError, match="verification failed"):
        merge(pico["adapter"], pico["base"], pico["sharded"], tmp_path / "out", 0.0002, verify="w1 w2 w3")
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.merging").exists()


def test_a_model_that_does_not_load_fails_verification(tmp_path, pico, editable):
    instruct = editable("instruct")
    (instruct / "config.json").write_text((instruct / "config.json").read_text().replace("mistral", "nonsense"))
    with pytest.raises(ModelError, match="does not load"):
        merge(pico["adapter"], None, instruct, tmp_path / "out", verify="w1")
    assert not (tmp_path / "out").exists()


def test_loads_like_any_model(tmp_path, pico):
    merge(pico["adapter"], pico["base"], pico["sharded"], tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.model_type == "mistral"


def test_a_change_that_rounding_swallows_is_said():
    """A hundredth of a step of bfloat16 is rounded away; float32 carries it whole."""
    totals = {"drift": None, "relative_change": 1e-5, "projection": 0.02}
    (warning,) = warnings_of(totals, 1.0)
    assert "only 2% of the change survived rounding" in warning
    assert warnings_of({**totals, "projection": 0.98}, 1.0) == warnings_of({**totals, "projection": None}, 1.0) == []
