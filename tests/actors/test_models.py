"""The instruct model with any share of the residue: KL along its answers against the definition."""

import pytest
import torch
from safetensors.torch import load_file
from tokenizer_kinds import made
from transformers import AddedToken, AutoTokenizer

from lite_c2f.actors.answers import Answer
from lite_c2f.actors.models import InstructModel, RewardModel
from lite_c2f.backbone.load import load_tokenizer
from lite_c2f.config.loading import load_config
from lite_c2f.data.encode import encode_chat, encode_prompt
from lite_c2f.data.records import Turn
from lite_c2f.fine.merge import merge
from lite_c2f.reward.files import Normalizer
from lite_c2f.sampling import Sampling


@pytest.fixture
def instruct(pico):
    settings = ["model.quantization=none", "data.max_prompt_tokens=16", "evaluation.max_tokens=32"]
    return InstructModel(load_config({}, settings), str(pico["instruct"]), pico["adapter"])


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
    for conversation, answer in zip(turns, answers, strict=True):
        prompt = encode_chat(instruct.tokenizer, conversation, 16)
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
    from lite_c2f.actors.models import kl_of_coarse
    from lite_c2f.backbone.roles import Roles
    from lite_c2f.config.settings import Lora
    from lite_c2f.runtime.batch_size import BatchSize

    config = load_config({}, ["data.max_prompt_tokens=32", "model.prompt_template='{prompt}'"])
    roles = Roles(quantized(), Lora(r=4, alpha=8), ("policy",))
    with torch.no_grad():
        for parameter in roles.adapter_parameters("policy"):
            parameter.normal_(std=0.2)
    tokenizer = load_tokenizer(str(pico["base"]))
    turns = [(Turn("human", "w1 w2"),), (Turn("human", "w3"),)]
    answers = [Answer("", 3, "eos", [10, 11, 12]), Answer("", 2, "limit", [20, 21])]
    total = 0.0
    for conversation, answer in zip(turns, answers, strict=True):
        ids = encode_prompt(tokenizer, conversation, 32, template="{prompt}")[0]
        result = []
        for role in ("policy", "reference"):
            with roles.use(role):
                result.append(roles.lm_head(roles.hidden(torch.tensor([ids + answer.text_tokens])))[0].double())
        p, q = (logits.softmax(-1)[len(ids) - 1 : -1] for logits in result)
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
    merged = InstructModel(instruct.config, str(tmp_path / "out"))
    ids = [1, 10, 20, 30, 40]
    with torch.no_grad():
        expected = merged.model(torch.tensor([ids])).logits[0].double()
    torch.testing.assert_close(logits(instruct, ids, ratios), expected, rtol=0, atol=1e-6)
    assert (logits(instruct, ids, 1.0) - expected).abs().max() > 1e-3
    torch.testing.assert_close(logits(instruct, ids, 1.0), logits(instruct, ids, dict.fromkeys(ratios, 1.0)))


def test_the_end_of_a_turn_ends_answers(pico, editable):
    """The token that ends a turn in the chat template is no end token of the model's files."""
    settings = ["model.quantization=none", "data.max_prompt_tokens=16", "evaluation.max_tokens=32"]
    conversation, greedy = [(Turn("human", "w1 w2"),)], Sampling(12, temperature=0.0)
    (before,) = InstructModel(load_config({}, settings), str(pico["instruct"])).answer(conversation, greedy)
    words = before.text.split()
    end = next(word for place, word in enumerate(words[3:], 3) if word not in words[:place] and word.startswith("w"))
    folder = editable("instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(end, special=True)], special_tokens=True)
    tokenizer.chat_template = (  # the same prompt as before; answers end with that word
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} " + end + "{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    actor = InstructModel(load_config({}, settings), str(folder))
    number = tokenizer.convert_tokens_to_ids(end)
    assert actor.eos_ids == sorted([2, number])  # `</s>` is 2
    (answer,) = actor.answer(conversation, greedy)
    place = words.index(end)
    assert answer == Answer(" ".join(words[:place]), place + 1, "eos", before.text_tokens[:place], chat=True)


def test_variables_reach_the_chat_template_of_an_actor(pico, editable):
    folder = editable("instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ style }} {% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    settings = ["data.max_prompt_tokens=16", "evaluation.max_tokens=32", "model.chat_template_kwargs.style=w7"]
    actor = InstructModel(load_config({}, settings), str(folder))
    seen = []
    actor.model.model.embed_tokens.register_forward_pre_hook(lambda module, args: seen.append(args[0].tolist()))
    actor.answer([(Turn("human", "w1"),)], Sampling(1, temperature=0.0))
    assert seen[0] == [[10, 4]]  # w7 w1


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen", "sentencepiece"])
def test_answers_of_all_actors_are_read_in_one_form(kind):
    """An instruct model's `It is 5.` behind its template and a base's ` It is 5.` are the same answer: the same row."""
    tokenizer = made(kind)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    prompt = "\n\nHuman: Why?\n\nAssistant:"
    spaced = ids(f"{prompt} It is 5.")[len(ids(prompt)) :]
    judge = RewardModel(None, tokenizer, Normalizer(0.0, 1.0), load_config({}))
    base = Answer("It is 5.", len(spaced) + 1, "stop", spaced)
    instruct = Answer("It is 5.", 5, "eos", ids("It is 5."), chat=True)
    cut = instruct._replace(finish="limit")
    rows = judge.rows([(Turn("human", "Why?"),)] * 3, [base, instruct, cut])
    assert rows[0][-len(spaced) - 1 :] == [*spaced, tokenizer.eos_token_id]
    assert rows[1] == rows[0] and rows[2] == rows[0][:-1]
    if kind != "sentencepiece":  # there a text has its space anyway
        assert ids("It is 5.") != spaced


def test_in_its_own_template_the_reward_model_reads_the_end_of_a_turn():
    tokenizer = made("qwen")  # EOS is 0, <|im_end|> 2
    judge = RewardModel(None, tokenizer, Normalizer(0.0, 1.0), load_config({}, ["model.prompt_template=chat"]))
    answer = Answer("5", 2, "eos", [23], chat=True)
    (row,) = judge.rows([(Turn("human", "Why?"),)], [answer])
    assert row == [*encode_chat(tokenizer, [Turn("human", "Why?")], 99), 23, 2]
