"""Adapters: the right rank and alpha, and nothing that cannot be merged."""

import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lite_c2f.errors import ModelError
from lite_c2f.fine.adapter import rank_and_scaling, read_adapter

Q, GATE, DOWN = (f"model.layers.0.{part}" for part in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"))


def dense(delta, rows=slice(0, None), base=None):
    """dW, or some rows of it."""
    return delta.open()(slice(*rows.indices(delta.shape[0])[:2]), base)


def factors(**changes):
    """lora_A (2, 3) and lora_B (4, 2) of one module; None leaves a tensor out."""
    tensors = {f"{Q}.lora_A.weight": torch.ones(2, 3), f"{Q}.lora_B.weight": torch.ones(4, 2), **changes}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def test_delta_by_hand(tmp_path, hand_adapter):
    down, up = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]]), torch.tensor([[1.0, 0], [0, 2], [3, 4], [-1, 1]])
    tensors = {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up}
    adapter = read_adapter(hand_adapter(tmp_path / "a", tensors, lora_alpha=6, base_model_name_or_path="hub/name"))
    assert adapter.base_model_name == "hub/name"
    low_rank = adapter.deltas[f"{Q}.weight"]
    # alpha / r = 3; B @ A worked out on paper
    expected = 3 * torch.tensor([[1.0, 2, 0], [0, 2, -2], [3, 10, -4], [-1, -1, -1]])
    assert low_rank.scaling == 3.0 and low_rank.shape == (4, 3)
    assert torch.equal(dense(low_rank), expected)
    assert torch.equal(dense(low_rank, slice(1, 3)), expected[1:3])


def test_factors_come_out_in_float32(tmp_path, hand_adapter):
    tensors = {name: tensor.bfloat16() for name, tensor in factors().items()}
    low_rank = read_adapter(hand_adapter(tmp_path / "a", tensors)).deltas[f"{Q}.weight"]
    assert low_rank.down.read().dtype == low_rank.up.read().dtype == dense(low_rank).dtype == torch.float32


@pytest.mark.parametrize("rslora", [False, True])
def test_patterns_as_peft_scales_them(tmp_path, pico, make_adapter, rslora):
    folder = make_adapter(
        tmp_path / "a",
        pico["base"],
        use_rslora=rslora,
        rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6},
        alpha_pattern={"^model.layers.0.mlp.gate_proj": 32, "q_proj": 5},
    )
    deltas = read_adapter(folder).deltas
    root = math.sqrt if rslora else lambda rank: rank
    assert len(deltas) == 14
    assert deltas[f"{Q}.weight"].down.shape == (2, 32)
    assert deltas[f"{Q}.weight"].scaling == pytest.approx(5 / root(2), rel=1e-12)
    assert deltas["model.layers.1.mlp.up_proj.weight"].scaling == pytest.approx(8 / root(6), rel=1e-12)
    assert deltas["model.layers.0.mlp.up_proj.weight"].scaling == pytest.approx(8 / root(4), rel=1e-12)
    assert deltas[f"{GATE}.weight"].scaling == pytest.approx(32 / root(4), rel=1e-12)
    assert deltas["model.layers.1.mlp.gate_proj.weight"].scaling == pytest.approx(8 / root(4), rel=1e-12)
    # every delta against float64 NumPy on the file's own tensors
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, low_rank in deltas.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        down, up = (tensors[f"{stem}.lora_{letter}.weight"].double().numpy() for letter in "AB")
        np.testing.assert_allclose(dense(low_rank).numpy(), low_rank.scaling * (up @ down), rtol=0, atol=1e-6)


def test_pattern_matches_whole_name_parts_and_the_first_wins():
    config = {"r": 4, "lora_alpha": 4, "rank_pattern": {"proj": 9, "q_proj": 2, ".*proj": 3}}
    assert rank_and_scaling(config, Q) == (2, 2.0)
    assert rank_and_scaling(config, DOWN) == (3, 4 / 3)
    assert rank_and_scaling(config, "model.norm") == (4, 1.0)


def test_embedding_factors_are_turned(tmp_path, hand_adapter):
    down, up = torch.arange(10.0).view(2, 5), torch.arange(6.0).view(3, 2)  # A (r, vocabulary), B (hidden, r)
    tensors = {"model.embed_tokens.lora_embedding_A": down, "model.embed_tokens.lora_embedding_B": up}
    low_rank = read_adapter(hand_adapter(tmp_path / "a", tensors)).deltas["model.embed_tokens.weight"]
    assert low_rank.shape == (5, 3)
    assert torch.equal(dense(low_rank, slice(2, 4)), (up @ down).T[2:4])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "LOHA"),
        ("task_type", "SEQ_CLS"),
        ("use_dora", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "mica"),
        ("loftq_config", {"loftq_bits": 4}),
        ("eva_config", {"rho": 2.0}),
        ("corda_config", {"corda_method": "kpm"}),
        ("lora_ga_config", {"scale": "stable"}),
        ("alora_invocation_tokens", [1, 2]),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [3]),
        ("bias", "some"),
        ("lora_bias", True),
        ("target_parameters", "experts.gate_up_proj"),
        ("fan_in_fan_out", "yes"),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("velora_config", {"scale": 1.0}),
        ("kasa_config", {"beta": 1.0}),
        ("monteclora_config", {"num_samples": 2}),
        ("arrow_config", {"top_k": 2}),
        ("megatron_config", {"a": 1}),
        ("ensure_weight_tying", 1.5),
        ("a_key_of_tomorrow", 0.5),
        ("use_rslora", "yes"),
        ("r", "8"),
        ("lora_alpha", float("nan")),
        ("rank_pattern", {"(": 4}),
        ("alpha_pattern", [1]),
    ],
)
def test_refused_config_names_the_key(tmp_path, hand_adapter, key, value):
    folder = hand_adapter(tmp_path / "a", factors(), **{key: value})
    with pytest.raises(ModelError, match=f"'{key}'"):
        read_adapter(folder)


def test_every_key_peft_writes_by_default_is_accepted(pico):
    assert len(read_adapter(pico["adapter"]).deltas) == 14


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva"])
def test_inits_that_leave_the_base_alone_are_accepted(tmp_path, hand_adapter, init):
    assert read_adapter(hand_adapter(tmp_path / "a", factors(), init_lora_weights=init)).deltas


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({f"{Q}.lora_B.weight": None}, f"{Q}.lora_B.weight"),
        ({f"{Q}.lora_A.weight": None}, f"{Q}.lora_A.weight"),
        ({f"{Q}.lora_A.weight": torch.tensor([[1.0, 2, math.nan], [0, 0, 0]])}, f"{Q}.lora_A.weight"),
        ({f"{Q}.lora_B.weight": torch.full((4, 2), -math.inf)}, f"{Q}.lora_B.weight"),
        ({f"{Q}.lora_A.weight": torch.ones(3, 3)}, "rank 2"),
        ({f"{Q}.lora_B.weight": torch.ones(4, 3)}, "rank 2"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 3, 1, 1)}, "rank 2"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 3, dtype=torch.int32)}, "I32"),
        ({"score.weight": torch.ones(1, 3)}, "score.weight' .* classifier"),
        ({f"{Q}.lora_magnitude_vector": torch.ones(4)}, "lora_magnitude_vector"),
        ({f"{Q}.lora_A.default.weight": torch.ones(2, 3)}, "lora_A.default.weight.* are both"),
    ],
)
def test_refused_tensors_are_named(tmp_path, hand_adapter, changes, named):
    folder = hand_adapter(tmp_path / "a", factors(**changes))
    with pytest.raises(ModelError, match=named):
        read_adapter(folder)


def test_refused_files_are_named(tmp_path, hand_adapter):
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        read_adapter(tmp_path / "nowhere")
    folder = hand_adapter(tmp_path / "a", factors())
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-1], whole[:20], b"", whole + b"x"):
        weights.write_bytes(content)
        with pytest.raises(ModelError, match=re.escape(str(weights))):
            read_adapter(folder)
    save_file({f"{Q}.lora_A.weight": torch.ones(2, 3)}, weights)
    with pytest.raises(ModelError, match="save_pretrained"):
        read_adapter(folder)
    save_file({}, weights)
    with pytest.raises(ModelError, match="no tensors"):
        read_adapter(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"pickle '.*adapter_model\.bin'"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        read_adapter(folder)
