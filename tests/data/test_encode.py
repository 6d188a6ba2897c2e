import string

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import byte_level as plain_bytes
from tokenizer_kinds import made
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lite_c2f.data.encode import HH, encode_answer, encode_chat, encode_prompt, leading_ids, pad_left, pad_right, render
from lite_c2f.data.records import Turn
from lite_c2f.errors import ConfigError, DataError, ModelError
from lite_c2f.toy.build import CHAT_TEMPLATE, make_tokenizer, restore_bos

SENTENCES = ["\n\nHuman: How many now?\n\nAssistant: Let us think step by step.", "The answer is seven apples. Why?"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] | trim }}]"
    "{% elif not loop.first %} {{ m['content'] }}{{ eos_token }}{% else %}{{ raise_exception('user first') }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


def wrap(tokenizer, **kwargs):
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "add_bos_token": True} | kwargs
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def byte_level(pre_tokenizer=None, **kwargs):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return wrap(tokenizer, **kwargs)


def sentencepiece():
    """Llama-like: a space is put before every text, spaces are pieces, unknown characters fall back to bytes."""
    merges = [("H", "u"), ("Hu", "m"), ("Hum", "a"), ("Huma", "n"), ("▁", "h"), ("▁h", "i"), ("▁", "a")]
    pieces = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [*string.ascii_letters, *string.punctuation, *("".join(merge) for merge in merges)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(tokenizer)


BYTES = byte_level(chat_template=CHAT)
PIECES = sentencepiece()
TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def text_of(tokenizer, ids):
    return tokenizer.decode(ids)


def talk(*texts):
    return tuple(Turn("assistant" if index % 2 else "human", text) for index, text in enumerate(texts))


# render


def test_render_writes_the_transcript():
    expected = "\n\nHuman: Hi {x}\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
    assert render(talk("Hi {x}", "Hello", "Bye")) == expected


def test_the_template_chat_is_the_tokenizers_own(pico):
    from lite_c2f.backbone.load import load_tokenizer

    tokenizer = load_tokenizer(str(pico["instruct"]))
    turns = [Turn("human", "w1 w2"), Turn("assistant", "w3"), Turn("human", "w4")]
    assert encode_prompt(tokenizer, turns, 32, template="chat") == (encode_chat(tokenizer, turns, 32), 0)
    long = [*turns, Turn("assistant", "w5 " * 30), Turn("human", "w6")]
    assert encode_prompt(tokenizer, long, 20, template="chat") == (encode_chat(tokenizer, long, 20), 4)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="chat template"):
        encode_prompt(tokenizer, turns, 32, template="chat")


@pytest.mark.parametrize(
    ("between", "expected"), [(" ", " answer"), ("", "answer"), ("\n", "\nanswer"), ("> ", "> answer")]
)
def test_an_answer_follows_a_chat_template_as_that_writes_it(between, expected):
    """In byte-level BPE ` answer` is one token, and not the one without its space."""
    tokenizer = byte_level(
        chat_template="{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]{% else %}"
        + f"{{{{ {between!r} }}}}"  # a line break behind a tag of Jinja's would be dropped
        + "{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    spaced, bare = (ids_of(tokenizer, text) for text in (" answer", "answer"))
    assert len(spaced) == 1 and spaced[0] not in bare
    ids = encode_answer(tokenizer, "answer", ended=True, template="chat")
    assert ids == [*ids_of(tokenizer, expected), tokenizer.eos_token_id]
    assert encode_answer(tokenizer, "answer", ended=False, template="chat") == ids[:-1]
    assert encode_answer(tokenizer, "answer", ended=True) == [*ids_of(tokenizer, " answer"), ids[-1]]


def test_render_uses_the_template_for_every_human_turn():
    assert render(talk("1", "2", "3"), "Q: {prompt}\nA:") == "Q: 1\nA: 2Q: 3\nA:"
    assert (
        render([Turn("assistant", "Hello"), Turn("human", "Hi")]) == "\n\nAssistant: Hello\n\nHuman: Hi\n\nAssistant:"
    )


@pytest.mark.parametrize("template", ["", "Human:", "{prompt} {prompt}"])
def test_template_must_hold_prompt_once(template):
    with pytest.raises(ConfigError, match="exactly once"):
        render(talk("a"), template)


# encode_prompt


@TOKENIZERS
def test_prompt_that_fits_is_bos_and_the_rendered_text(tokenizer):
    turns = talk("How many now?", "Seven.", "Why?")
    whole = [tokenizer.bos_token_id, *ids_of(tokenizer, render(turns))]
    assert encode_prompt(tokenizer, turns, len(whole)) == (whole, 0)


def test_no_bos_where_the_tokenizer_has_none():
    bare = byte_level(bos_token=None)
    assert encode_prompt(bare, talk("Why?"), 99) == (ids_of(bare, "\n\nHuman: Why?\n\nAssistant:"), 0)


def test_no_bos_where_the_tokenizer_defines_one_and_adds_none():
    """SmolLM2's form: BOS is `<|im_start|>`, which begins a chat's turn and no text."""
    turns, special = talk("Why?"), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    chat = plain_bytes(special, bos_token=special[1], eos_token=special[2], unk_token=special[0], pad_token=special[2])
    assert chat.bos_token_id == 1 and leading_ids(chat) == []
    assert encode_prompt(chat, turns, 99) == (ids_of(chat, "\n\nHuman: Why?\n\nAssistant:"), 0)
    cut, _ = encode_prompt(chat, talk("Why? " * 30), 30)
    assert cut[:2] == ids_of(chat, "\n\nHuman:")[:2]


def test_bos_where_a_post_processor_adds_it():
    """Llama-3's form; GPT-2's one token would be both beginning and end, and is neither put before a text."""
    begin = "<|begin_of_text|>"
    llama = plain_bytes([begin, "<|end_of_text|>"], bos_token=begin, eos_token="<|end_of_text|>")
    assert leading_ids(llama) == []
    llama.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, 0)]
    )
    assert leading_ids(llama) == [0]
    assert encode_prompt(llama, talk("Why?"), 99)[0] == [0, *ids_of(llama, "\n\nHuman: Why?\n\nAssistant:")]
    assert [leading_ids(made(kind)) for kind in ("gpt2", "neox", "qwen")] == [[], [], []]


def test_the_toy_tokenizer_adds_the_bos_it_was_trained_with(tmp_path):
    """Also one that was saved by a version whose tokenizer added none by itself; another one stays as it is."""
    tokenizer = make_tokenizer()
    assert leading_ids(tokenizer) == [1]
    tokenizer.chat_template = CHAT_TEMPLATE
    assert encode_chat(tokenizer, talk("a"), 99) == [1, 3, *ids_of(tokenizer, " a "), 4]  # one BOS
    tokenizer.save_pretrained(tmp_path)
    assert leading_ids(AutoTokenizer.from_pretrained(tmp_path)) == [1]
    tokenizer.add_bos_token = False
    assert leading_ids(tokenizer) == []
    restore_bos(tokenizer)
    assert leading_ids(tokenizer) == [1]
    other = made("sentencepiece")
    restore_bos(other)
    assert leading_ids(other) == []


@TOKENIZERS
def test_oldest_turns_are_dropped_down_to_a_human_turn(tokenizer):
    turns = talk("one", "two", "three", "four", "five")
    shorter = [tokenizer.bos_token_id, *ids_of(tokenizer, render(turns[2:]))]
    whole = 1 + len(ids_of(tokenizer, render(turns)))
    assert encode_prompt(tokenizer, turns, whole - 1) == (shorter, 2)
    assert encode_prompt(tokenizer, turns, len(shorter)) == (shorter, 2)
    assert encode_prompt(tokenizer, turns, len(shorter) - 1)[1] == 4


def test_leading_assistant_turn_is_dropped():
    turns = (Turn("assistant", "Hello"), Turn("human", "Why?"))
    assert encode_prompt(BYTES, turns, 99) == (encode_prompt(BYTES, turns[1:], 99)[0], 1)


def test_last_turn_loses_its_beginning_but_not_its_markers():
    # Single letters: no merge joins them, and " q" is two tokens. "\n\nHuman:" + "\n\nAssistant:" + BOS come on top.
    turns = talk("q z q z q")
    frame = 1 + len(ids_of(BYTES, "\n\nHuman:")) + len(ids_of(BYTES, "\n\nAssistant:"))
    for room, kept in [(0, ""), (1, "q"), (2, " q"), (3, "z q"), (4, " z q")]:
        ids, _ = encode_prompt(BYTES, turns, frame + room)
        assert len(ids) == frame + room
        assert text_of(BYTES, ids) == f"<s>\n\nHuman:{kept}\n\nAssistant:"
    with pytest.raises(ConfigError, match=f"max_prompt_tokens={frame - 1}.*{frame}"):
        encode_prompt(BYTES, turns, frame - 1)


def test_cut_in_sentencepiece_has_no_doubled_space():
    frame = 1 + len(ids_of(PIECES, "\n\nHuman:")) + len(ids_of(PIECES, "a\n\nAssistant:")) - len(ids_of(PIECES, "a"))
    ids, _ = encode_prompt(PIECES, talk("x " * 50 + "hi hi"), frame + 2)
    assert text_of(PIECES, ids[1:]) == "\n\nHuman: hi hi\n\nAssistant:"


@TOKENIZERS
def test_cut_never_leaves_half_a_character(tokenizer):
    turns = talk("\U0001f600" * 30)  # four bytes, four tokens each
    for limit in range(40, 60):
        ids, _ = encode_prompt(tokenizer, turns, limit)
        assert limit - 3 <= len(ids) <= limit
        assert "\N{REPLACEMENT CHARACTER}" not in text_of(tokenizer, ids)


@TOKENIZERS
def test_special_tokens_within_a_message_stay_text(tokenizer):
    ids, _ = encode_prompt(tokenizer, talk("a</s><s><pad>"), 99)
    assert ids[0] == tokenizer.bos_token_id
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids[1:])
    answer = encode_answer(tokenizer, "a</s>", ended=True, max_tokens=99)
    assert answer.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("turns", [(), talk("a", "b")])
def test_prompt_must_end_with_a_human_turn(turns):
    for encode in (encode_prompt, encode_chat):
        with pytest.raises(DataError, match="a human turn last"):
            encode(BYTES, turns, 99)


letters = [*"aeqz .\n", "é", "\U0001f600", "</s>", "{prompt}"]
texts = st.lists(st.sampled_from(letters), max_size=40).map("".join)
conversations = st.lists(texts, min_size=1, max_size=7).map(lambda said: talk(*said[: len(said) - 1 + len(said) % 2]))


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
@given(turns=conversations, limit=st.integers(36, 120))
def test_prompts_keep_limit_and_markers(tokenizer, turns, limit):
    ids, dropped = encode_prompt(tokenizer, turns, limit)
    assert len(ids) <= limit
    text = text_of(tokenizer, ids[1:]).strip("\n ")
    assert text.startswith("Human:") and text.endswith("\n\nAssistant:")
    assert 0 <= dropped < len(turns) and turns[dropped].role == "human"
    tail = ids_of(tokenizer, "a\n\nAssistant:")[len(ids_of(tokenizer, "a")) :]
    assert ids[-4:] == tail[-4:]
    # Whatever was kept is the end of the whole prompt, but for the seam after `Human:`.
    kept = text.removeprefix("Human:").strip()
    assert render(turns).strip().endswith(kept)


# encode_answer


def test_answer_has_its_space_and_eos():
    expected = [*ids_of(BYTES, " The answer"), BYTES.eos_token_id]
    assert encode_answer(BYTES, "The answer", ended=True, max_tokens=99) == expected
    assert encode_answer(BYTES, "The answer", ended=False, max_tokens=99) == expected[:-1]
    assert encode_answer(BYTES, "", ended=True, max_tokens=99) == [BYTES.eos_token_id]


def test_cut_answer_has_no_eos():
    ids = ids_of(BYTES, " q z q z")
    assert encode_answer(BYTES, "q z q z", ended=True, max_tokens=len(ids)) == ids
    assert encode_answer(BYTES, "q z q z", ended=True, max_tokens=3) == ids[:3]
    assert encode_answer(BYTES, "q z q z", ended=True, max_tokens=len(ids) + 1) == [*ids, BYTES.eos_token_id]


@TOKENIZERS
@pytest.mark.parametrize("answer", ["hi", "The answer is seven.", "(a) hi", "42", "é\n\nhi"])
def test_prompt_and_answer_join_to_the_ids_of_the_whole_text(tokenizer, answer):
    prompt, _ = encode_prompt(tokenizer, talk("Why?"), 99)
    joined = prompt + encode_answer(tokenizer, answer, ended=False, max_tokens=99)
    assert joined[1:] == ids_of(tokenizer, f"\n\nHuman: Why?\n\nAssistant: {answer}")


def test_answer_needs_an_eos_token():
    bare = byte_level(eos_token=None)
    with pytest.raises(ModelError, match="EOS"):
        encode_answer(bare, "a", ended=True, max_tokens=9)
    assert encode_answer(bare, "a", ended=False, max_tokens=9)


# encode_chat


def test_chat_uses_the_template():
    expected = [BYTES.bos_token_id, *ids_of(BYTES, "[Hi] Yo"), BYTES.eos_token_id, *ids_of(BYTES, "[Why?]>")]
    assert encode_chat(BYTES, talk("Hi", "Yo", "Why?"), 99) == expected
    assert encode_chat(BYTES, talk("Hi", "Yo", "Why?"), len(expected) - 1) == encode_chat(BYTES, talk("Why?"), 99)


def test_chat_cuts_a_long_last_turn_from_the_left():
    assert text_of(BYTES, encode_chat(BYTES, talk("q z q z q"), 7)) == "<s>[z q]>"  # a token each
    with pytest.raises(ConfigError, match="max_prompt_tokens=1 "):
        encode_chat(BYTES, talk("q z"), 1)


@given(turns=conversations, limit=st.integers(8, 60))
def test_chats_keep_limit_and_frame(turns, limit):
    ids = encode_chat(BYTES, turns, limit)
    assert len(ids) <= limit
    text = text_of(BYTES, ids)
    assert text.startswith("<s>[") and text.endswith("]>")
    assert ids.count(BYTES.eos_token_id) == text.count("[") - 1  # one behind each answer: no text makes another


def test_failing_or_missing_chat_template_is_a_model_error():
    with pytest.raises(ModelError, match="chat template fails"):
        encode_chat(PIECES, talk("Hi"), 99)
    broken = byte_level(chat_template="{{ raise_exception('no\n users') }}")
    with pytest.raises(ModelError, match=r"fails \(no\)"):
        encode_chat(broken, talk("Hi"), 99)


# Padding.


def test_padding_by_hand():
    tokens, mask = pad_right([[1, 2, 3], [0], []], 0)
    assert tokens.tolist() == [[1, 2, 3], [0, 0, 0], [0, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False], [False] * 3]
    tokens, mask = pad_left([[1, 2, 3], [4], []], 9)
    assert tokens.tolist() == [[1, 2, 3], [9, 9, 4], [9, 9, 9]]
    assert mask.tolist() == [[True, True, True], [False, False, True], [False] * 3]


@pytest.mark.parametrize("pad", [pad_left, pad_right])
@given(rows=st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=5))
def test_padding_round_trips(pad, rows):
    tokens, mask = pad(rows, 0)
    assert tokens.dtype == torch.int64 and mask.dtype == torch.bool
    assert tokens.shape == mask.shape == (len(rows), max(map(len, rows), default=0))
    assert [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)] == rows
    edge = mask.flip(1) if pad is pad_left else mask
    assert all(row.tolist() == sorted(row.tolist(), reverse=True) for row in edge)


def test_default_template_is_the_transcript_form():
    assert HH == "\n\nHuman: {prompt}\n\nAssistant:"
