"""The instruct model with any share of the residue: KL along its answers against the definition."""

import pytest
import torch
from safetensors.torch import load_file

from lite_c2f.actors import Instruct
from lite_c2f.answers import Answer
from lite_c2f.backbone.load import load_tokenizer
from lite_c2f.config import load_config
from lite_c2f.data.encode import encode_chat, encode_prompt
from lite_c2f.data.records import Turn
from lite_c2f.fine.merge import merge


@pytest.fixture
def instruct(pico):
    settings = ["model.quantization=none", "data.max_prompt_tokens=16", "evaluation.max_tokens=32"]
    return Instruct(load_config({}, settings), str(pico["instruct"]), pico["adapter"])


def logits(instruct, ids, ratio):
    with torch.no_grad(), instruct.ratio(ratio):
        return instruct.model(torch.tensor([ids])).logits[0].double()


@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_kl_along_answers_by_definition(instruct, ratio):
    turns = [(Turn("human", text),) for text in ("w1 w2", "w3", "w4 w5 w6")]
    answers = [
        Answer("", 4, "eos", [10, 11, 12]),
        Answer("", 1, "eos", []),
        Answer("", 5, "limit", [20, 21, 22, 23, 24]),
    ]
    total, count = 0.0, 0
    for asked, answer in zip(turns, answers, strict=True):
        prompt = encode_chat(instruct.tokenizer, asked, 16)
        p, q = (logits(instruct, prompt + answer.text_tokens, share).softmax(-1) for share in (ratio, 0.0))
        for place in range(len(answer.text_tokens)):
            row = len(prompt) - 1 + place  # what is said at a place is decided one before it
            total += float((p[row] * (p[row] / q[row]).log()).sum())
            count += 1
    assert total / count > 1e-4
    for batch in (1, 2, 64):
        assert instruct.kl(turns, answers, ratio, batch) == pytest.approx(total / count, rel=1e-3)
    assert instruct.kl(turns, answers, 0.0, 2) == 0.0
    assert instruct.kl(turns[1:2], answers[1:2], 1.0, 2) == 0.0  # nothing was said


def test_kl_of_the_coarse_actor_by_definition(quantized, pico):
    from lite_c2f.actors import kl_of_coarse
    from lite_c2f.backbone.roles import Roles
    from lite_c2f.batches import BatchSize
    from lite_c2f.config import Lora

    config = load_config({}, ["data.max_prompt_tokens=32", "model.prompt_template='{prompt}'"])
    roles = Roles(quantized(), Lora(r=4, alpha=8), ("policy",))
    with torch.no_grad():
        for parameter in roles.adapter_parameters("policy"):
            parameter.normal_(std=0.2)
    tokenizer = load_tokenizer(str(pico["base"]))
    turns = [(Turn("human", "w1 w2"),), (Turn("human", "w3"),)]
    answers = [Answer("", 3, "eos", [10, 11, 12]), Answer("", 2, "limit", [20, 21])]
    total = 0.0
    for asked, answer in zip(turns, answers, strict=True):
        ids = encode_prompt(tokenizer, asked, 32, template="{prompt}")[0]
        found = []
        for role in ("policy", "reference"):
            with roles.use(role):
                found.append(roles.lm_head(roles.hidden(torch.tensor([ids + answer.text_tokens])))[0].double())
        p, q = (logits.softmax(-1)[len(ids) - 1 : -1] for logits in found)
        total += float((p * (p / q).log()).sum())
    assert total > 1e-3
    for batch in (1, 2):
        size = BatchSize("batch", batch)
        assert kl_of_coarse(roles, tokenizer, config, turns, answers, size) == pytest.approx(total / 5, rel=1e-3)


def test_ratios_by_weight_are_what_a_merge_writes(tmp_path, pico, instruct):
    """Scaled at run time or merged: the same logits."""
    ratios = {name: 0.25 * (index % 5) for index, name in enumerate(instruct.weights)}
    assert sorted(ratios) == sorted(
        name.removeprefix("base_model.model.").replace("lora_A.", "")
        for name in load_file(pico["adapter"] / "adapter_model.safetensors")
        if "lora_A" in name
    )
    merge(pico["adapter"], pico["base"], pico["instruct"], tmp_path / "out", layer_ratios=list(ratios.items()))
    merged = Instruct(instruct.config, str(tmp_path / "out"))
    ids = [1, 10, 20, 30, 40]
    with torch.no_grad():
        expected = merged.model(torch.tensor([ids])).logits[0].double()
    torch.testing.assert_close(logits(instruct, ids, ratios), expected, rtol=0, atol=1e-6)
    assert (logits(instruct, ids, 1.0) - expected).abs().max() > 1e-3
    torch.testing.assert_close(logits(instruct, ids, 1.0), logits(instruct, ids, dict.fromkeys(ratios, 1.0)))
