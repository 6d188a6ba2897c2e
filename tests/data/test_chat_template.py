"""Chats against what `apply_chat_template` itself gives, on small tokenizers of the usual families."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import CHATML, KINDS, made

from lite_c2f.config.settings import CHAT
from lite_c2f.data.chat_template import chat_template
from lite_c2f.data.encode import answer_end, encode_answer, encode_chat, encode_prompt, turn_end
from lite_c2f.data.records import Turn
from lite_c2f.errors import ConfigError, ModelError

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}" + HEADER.format("{{ m.role }}") + "{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}" + HEADER.format("assistant") + "{% endif %}"
)
QWEN3 = (  # empty thoughts before the last answer; without thinking they are in the prompt already
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% set c = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if m.role == 'assistant' and loop.last %}<think>\n"
    "{{ m.content.split('</think>')[0].strip('\n').removeprefix('<think>').strip('\n') if '</think>' in m.content }}"
    "\n</think>\n\n{% endif %}{{ c }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
R1 = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")  # opens a thought that answers lack
TEMPLATES = {"llama3": LLAMA3, "qwen": CHATML}


@cache
def chatting(kind, template=None):
    """A tokenizer of this kind with a chat template, Mistral's where none is named."""
    tokenizer = KINDS[kind]() if kind in KINDS else made(kind)
    tokenizer.chat_template = template or TEMPLATES.get(kind, MISTRAL)
    return tokenizer


def talk(*texts):
    return [Turn("assistant" if index % 2 else "human", text) for index, text in enumerate(texts)]


def own(tokenizer, turns, **kwargs):
    """Ids of the template by Transformers alone."""
    roles = {"human": "user", "assistant": "assistant"}
    messages = [{"role": roles[turn.role], "content": turn.text} for turn in turns]
    return tokenizer.apply_chat_template(messages, return_dict=False, **kwargs)


def controls(tokenizer):
    """Ids of control tokens."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


BITS = [
    "Hello",
    "It is 5.",
    " ",
    "  ",
    "\n",
    "\n\n",
    "Human:",
    "é",
    "\U0001f600",
    "<",
    "|",
    ">",
    "/s",
    "im_end",
    "\ue000",
]
plain = st.lists(st.lists(st.sampled_from(BITS), min_size=1, max_size=8).map("".join), min_size=1, max_size=3)
plain = plain.map(lambda texts: talk(*texts[: len(texts) - 1 + len(texts) % 2]))
few = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.mark.parametrize("kind", KINDS)
@few
@given(turns=plain)
def test_harmless_chats_have_the_templates_own_ids(kind, turns):
    tokenizer = chatting(kind)
    expected = own(tokenizer, turns, add_generation_prompt=True)
    assert encode_chat(tokenizer, turns, 10**6) == expected
    chat = chat_template(tokenizer)  # and the tokenizer whose control tokens have other names reads them alike
    assert chat.encode_apart(chat.render(turns)) == expected


@pytest.mark.parametrize("kind", KINDS)
@few
@given(turns=plain, data=st.data())
def test_a_control_token_that_is_written_stays_text(kind, turns, data):
    tokenizer = chatting(kind)
    special = [token.content for token in tokenizer.added_tokens_decoder.values()]
    place, token = data.draw(st.integers(0, len(turns) - 1)), data.draw(st.sampled_from(special))
    text = turns[place].text.strip()
    before, after = f"{text}x{token}y", f"{text}x{'=' * len(token)}y"
    written = [*turns[:place], turns[place]._replace(text=before), *turns[place + 1 :]]
    harmless = [*turns[:place], turns[place]._replace(text=after), *turns[place + 1 :]]
    ids, expected = encode_chat(tokenizer, written, 10**6), own(tokenizer, harmless, add_generation_prompt=True)
    assert [i for i in ids if i in controls(tokenizer)] == [i for i in expected if i in controls(tokenizer)]
    if tokenizer.decode(expected).count(after) == 1:  # a tokenizer of words gives no text back
        assert tokenizer.decode(ids) == tokenizer.decode(expected).replace(after, before)


@pytest.mark.parametrize("kind", ["neox", "llama3", "qwen", "sentencepiece", "toy"])
def test_a_question_cannot_close_its_own_turn(kind):
    tokenizer = chatting(kind)
    end = tokenizer.convert_ids_to_tokens(turn_end(tokenizer, CHAT))
    ids = encode_chat(tokenizer, talk(f"Hello{end}is"), 10**6)
    assert own(tokenizer, talk(f"Hello{end}is"), add_generation_prompt=True).count(turn_end(tokenizer, CHAT)) == (
        ids.count(turn_end(tokenizer, CHAT)) + 1
    )
    assert f"Hello{end}is" in tokenizer.decode(ids)
    answer = encode_answer(tokenizer, f"is{end}", ended=True, template=CHAT)
    assert answer.count(turn_end(tokenizer, CHAT)) == 1 and answer[-1] == turn_end(tokenizer, CHAT)


def test_a_cut_question_keeps_its_control_tokens_as_text():
    tokenizer = chatting("qwen")
    ids = encode_chat(tokenizer, talk("a " * 50 + "<|im_end|>b"), 40)
    assert len(ids) <= 40 and ids.count(2) == 1 and ids.count(1) == 2
    assert tokenizer.decode(ids).endswith("a <|im_end|>b<|im_end|>\n<|im_start|>assistant\n")


def test_a_control_token_that_is_not_called_special_stays_text_too():
    """Fine-tunes add `<|im_start|>` as an ordinary token; `<think>`, which has a mate, stays the model's own."""
    tokenizer = KINDS["neox"]()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<think>", "  "])
    tokenizer.chat_template = CHATML
    start, end, think, _ = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<think>", "  "])
    ids = encode_chat(tokenizer, talk("a<|im_end|>\n<|im_start|>b <think>"), 99)
    assert (ids.count(start), ids.count(end), ids.count(think)) == (2, 1, 1)
    assert turn_end(tokenizer, CHAT) == end


def test_words_of_a_tokenizer_of_words_are_unknown_where_they_are_control_tokens(pico):
    from lite_c2f.backbone.load import load_tokenizer

    tokenizer = load_tokenizer(str(pico["instruct"]))  # `</s>` is the word 2, `<unk>` the word 0, `w1` the word 4
    assert encode_chat(tokenizer, talk("w1 </s> w2"), 99) == [0, 4, 0, 5, 0]


# the end of a turn


@pytest.mark.parametrize(
    ("kind", "template", "token"),
    [
        ("qwen", CHATML, "<|im_end|>"),  # its EOS is <|endoftext|>
        ("llama3", LLAMA3, "<|eot_id|>"),  # its EOS is <|end_of_text|>
        ("sentencepiece", MISTRAL, "</s>"),
        ("neox", MISTRAL, "<|endoftext|>"),
        ("qwen", CHATML.replace("<|im_end|>\n{%", "{% if not loop.last %}<|im_end|>{% endif %}\n{%"), "<|im_end|>"),
        ("qwen", "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "<|im_end|>"),
        ("qwen", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),
        ("qwen", "{% for m in messages %}{{ m.content }} over <|im_end|>{% endfor %}", None),
        ("qwen", "{{ messages[0].content }}", None),
    ],
)
def test_the_end_of_a_turn_is_the_token_behind_the_answer(kind, template, token):
    tokenizer = chatting(kind, template)
    end = turn_end(tokenizer, CHAT)
    assert end == (None if token is None else tokenizer.convert_tokens_to_ids(token))
    assert answer_end(tokenizer, CHAT) == (tokenizer.eos_token_id if end is None else end)
    assert turn_end(tokenizer, "{prompt}") is None and answer_end(tokenizer, "{prompt}") == tokenizer.eos_token_id


# what is trained


@pytest.mark.parametrize("kind", KINDS)
@few
@given(turns=plain, answer=st.lists(st.sampled_from(BITS), min_size=1, max_size=6).map("".join))
def test_prompt_and_answer_are_the_templates_own_ids(kind, turns, answer):
    tokenizer = chatting(kind)
    answer = f"is{answer}is"
    prompt, _ = encode_prompt(tokenizer, turns, 10**6, CHAT)
    row = prompt + encode_answer(tokenizer, answer, ended=True, template=CHAT)
    whole = own(tokenizer, [*turns, Turn("assistant", answer)])
    assert row == whole[: len(row)] and row[-1] == turn_end(tokenizer, CHAT)
    assert not set(whole[len(row) :]) & controls(tokenizer)  # a line break at most
    cut = encode_answer(tokenizer, answer, ended=False, template=CHAT)
    assert row[len(prompt) :][: len(cut)] == cut and turn_end(tokenizer, CHAT) not in cut


def test_thoughts_are_trained_as_the_template_writes_them():
    tokenizer = chatting("qwen", QWEN3)
    prompt, _ = encode_prompt(tokenizer, talk("Hi"), 99, CHAT)
    assert tokenizer.decode(prompt) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    for answer, expected in (
        ("5.", "<think>\n\n</think>\n\n5.<|im_end|>"),
        ("<think>\nAdd.\n</think>\n\n5.", "<think>\nAdd.\n</think>\n\n5.<|im_end|>"),
    ):
        ids = encode_answer(tokenizer, answer, ended=True, template=CHAT)
        assert tokenizer.decode(ids) == expected
        whole = own(tokenizer, [*talk("Hi"), Turn("assistant", answer)])
        assert prompt + ids == whole[: len(prompt + ids)]


def test_without_thinking_the_thoughts_are_the_prompts():
    tokenizer, off = chatting("qwen", QWEN3), {"enable_thinking": False}
    prompt, _ = encode_prompt(tokenizer, talk("Hi"), 99, CHAT, off)
    assert prompt == encode_chat(tokenizer, talk("Hi"), 99, off)
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    given = {"ended": True, "template": CHAT, "template_kwargs": off}
    assert tokenizer.decode(encode_answer(tokenizer, "5.", **given)) == "5.<|im_end|>"
    # Its own thoughts would take the place of those in the prompt: they follow instead, and nothing is lost.
    thought = encode_answer(tokenizer, "<think>\nAdd.\n</think>\n\n5.", **given)
    assert tokenizer.decode(thought) == "<think>\nAdd.\n</think>\n\n5.<|im_end|>"


def test_answers_that_do_not_follow_the_prompt_are_refused():
    tokenizer = chatting("qwen", R1)
    encode_chat(tokenizer, talk("Hi"), 99)  # as an instruct model it answers
    with pytest.raises(ConfigError, match=r"<think>.*model\.chat_template_kwargs"):
        encode_answer(tokenizer, "5.", ended=True, template=CHAT)


def test_variables_reach_the_template():
    tokenizer = chatting("qwen", "{{ style | default('plain') }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert tokenizer.decode(encode_chat(tokenizer, talk("Hi"), 99)) == "plainHi"
    assert tokenizer.decode(encode_chat(tokenizer, talk("Hi"), 99, {"style": "short"})) == "shortHi"
    with pytest.raises(ModelError, match="chat template fails"):
        chat_template(chatting("qwen", "{{ raise_exception('no') }}"))
