"""Rotary frequencies that change with the longest row of a batch: shown with tiny models, and refused by name."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from lite_c2f.backbone.context import context_length
from lite_c2f.backbone.pair import read_config
from lite_c2f.config.loading import load_config
from lite_c2f.errors import ConfigError
from lite_c2f.evaluation.llm_judge.conversations import with_longest_prompts
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runs.models import check_context

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.1,
}  # fmt: skip
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}


def phi3():
    """As Phi-3-mini-128k: made for 24 tokens, stretched to 96."""
    rope = {**LONGROPE, "rope_theta": 10000.0}
    return Phi3Config(
        **SIZES,
        max_position_embeddings=96,
        original_max_position_embeddings=24,
        rope_parameters=rope,
        sliding_window=96,
    )


def llama():
    rope = {"rope_type": "dynamic", "factor": 100.0, "rope_theta": 10000.0}
    return LlamaConfig(**SIZES, max_position_embeddings=24, rope_parameters=rope)


@pytest.mark.parametrize("make", [phi3, llama])
def test_a_row_is_the_same_beside_rows_of_up_to_the_context_and_another_beside_a_longer_one(make):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make(), attn_implementation="sdpa").eval()
    rows = torch.randint(3, 64, (2, 25))

    def logits(width):
        """Of the first 8 tokens of the first row, beside a neighbour of `width` tokens."""
        tokens = rows[:, :width].clone()
        tokens[0, 8:] = 0
        with torch.no_grad():
            return model(tokens).logits[0, :8]

    context = context_length(model.config)
    assert context == 24
    alone = logits(8)
    torch.testing.assert_close(logits(context), alone, atol=1e-5, rtol=0)
    assert (logits(context + 1) - alone).abs().max() > 1e-3
    torch.testing.assert_close(logits(8), alone, atol=1e-5, rtol=0)  # and the short ones come back


@pytest.mark.parametrize(
    ("written", "context"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({}, None),
        ({"max_position_embeddings": 96, "rope_scaling": {"type": "longrope"}}, 96),
        ({"max_position_embeddings": 96, "original_max_position_embeddings": 24}, 96),  # no longrope
        (
            {
                "max_position_embeddings": 96,
                "original_max_position_embeddings": 24,
                "rope_scaling": {"type": "su", "long_factor": [2.0]},
            },
            24,
        ),
        ({"max_position_embeddings": 96, "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 32}}, 32),
        (
            {
                "max_position_embeddings": 96,
                "rope_parameters": {
                    "full_attention": {**LONGROPE, "original_max_position_embeddings": 32},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            32,
        ),
        # fixed frequencies, whatever the row: yarn's and Llama 3's
        ({"max_position_embeddings": 96, "rope_scaling": {"type": "yarn", "original_max_position_embeddings": 24}}, 96),
        (
            {
                "max_position_embeddings": 96,
                "rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 24},
            },
            96,
        ),
        ({"max_position_embeddings": 96, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 96),
        ({"max_position_embeddings": 96, "rope_scaling": None}, 96),
    ],
)
def test_the_context_that_config_json_states(written, context):
    assert context_length(written) == context


@pytest.mark.parametrize("make", [phi3, llama])
def test_rows_beyond_it_are_refused_before_anything_is_loaded(tmp_path, make):
    """Prompts of 12 tokens and answers of 12 fit 24, answers of 13 do not."""
    make().save_pretrained(tmp_path)
    assert context_length(read_config(tmp_path)) == 24
    lengths = ["coarse.length.max=12", "coarse.length.start=8", "fine.max_tokens=12", "data.max_answer_tokens=12"]
    settings = [*lengths, "data.max_prompt_tokens=12"]
    models = ModelPair(str(tmp_path), str(tmp_path))
    check_context(load_config({}, [*settings, "evaluation.max_tokens=12"]), models)
    words = r"make 25 tokens; expected at most the base model's context of 24"
    words += r" \(of 96; beyond it rotary frequencies change with the longest row of a batch\)" if make is phi3 else ""
    words += r"; lower coarse\.length\.max, fine\.max_tokens, evaluation\.max_tokens or data\.max_answer_tokens"
    with pytest.raises(ConfigError, match=words):
        check_context(load_config({}, [*settings, "evaluation.max_tokens=13"]), models)


def test_a_judged_conversation_has_the_room_that_the_shorter_context_leaves(tmp_path):
    folders = [str(tmp_path / name) for name in ("phi3", "longer")]
    phi3().save_pretrained(folders[0])
    LlamaConfig(**SIZES, max_position_embeddings=80).save_pretrained(folders[1])
    config = load_config({}, ["evaluation.max_tokens=10"])
    for pair in (folders, folders[::-1]):
        assert with_longest_prompts(config, ModelPair(*pair)).data.max_prompt_tokens == 24 - 10


@pytest.mark.parametrize("name", ["max_position_embeddings", "n_positions", "max_seq_len"])
def test_the_context_by_each_familys_name(name):
    """GPT-2 and MPT call it otherwise, and their positions end there."""
    assert context_length({name: 512}) == 512
