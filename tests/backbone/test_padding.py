"""Padding is a token that ends nothing and has an embedding, and no text is encoded to an id without one."""

import json

import pytest
from tokenizer_kinds import CHATML, byte_level, made
from transformers import AddedToken, AutoTokenizer

from lite_c2f.backbone.load import load_tokenizer
from lite_c2f.backbone.padding import TokenLimits, choose_padding, padding_id, padding_note, with_padding_token
from lite_c2f.data.records import Turn
from lite_c2f.errors import ModelError

END = "<|endoftext|>"
ANY = TokenLimits(frozenset(), None)


def saved(tokenizer, folder, size=None, **generation):
    """A model folder without weights. size: rows of the embedding; as many as the tokenizer has where left out."""
    tokenizer.save_pretrained(folder)
    config = {"model_type": "llama", "vocab_size": size or len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    (folder / "config.json").write_text(json.dumps(config))
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return str(folder)


def chosen(tokenizer, limits=ANY):
    return tokenizer.convert_ids_to_tokens(choose_padding(tokenizer, limits))


@pytest.mark.parametrize(
    ("kind", "token"),
    [
        ("toy", "<pad>"),  # its own
        ("sentencepiece", "<unk>"),
        ("llama3", "<|begin_of_text|>"),
        ("gpt2", "ÿ"),  # nothing but the end is special: the byte 0xFF, which no text holds
        ("neox", "ÿ"),
        ("qwen", "ÿ"),  # its other special tokens are of the chat template, and one of them ends a turn
    ],
)
def test_the_padding_of_every_kind(kind, token):
    assert chosen(made(kind)) == token
    assert padding_id(made(kind)) == made(kind).convert_tokens_to_ids(token)


@pytest.mark.parametrize(
    "name", ["<|reserved_special_token_0|>", "<|finetune_right_pad_id|>", "<|vision_pad|>", "[UNUSED_1]"]
)
def test_a_special_token_made_for_it(name):
    assert chosen(byte_level(["<|begin|>", END, "<|other|>", name], bos_token="<|begin|>", eos_token=END)) == name


def test_end_tokens_are_never_padding():
    names = [END, "<|im_start|>", "<|im_end|>", "<pad>"]
    tokenizer = byte_level(names, bos_token=names[1], eos_token=END, unk_token=names[2], pad_token=names[3])
    assert chosen(tokenizer) == "<pad>"
    assert (
        chosen(tokenizer, TokenLimits(frozenset({3}), None)) == "<|im_end|>"
    )  # unknown; no template says that it ends
    tokenizer.chat_template = CHATML
    assert chosen(tokenizer, TokenLimits(frozenset({3}), None)) == "<|im_start|>"  # the beginning
    assert chosen(tokenizer, TokenLimits(frozenset({1, 3}), None)) == "ÿ"
    fewer = TokenLimits(frozenset({1, 3}), tokenizer.convert_tokens_to_ids("ÿ"))
    assert choose_padding(tokenizer, fewer) == 4  # the first that is no special token


def test_ordinary_padding_stays_an_ordinary_token(tmp_path):
    """A `pad_token` is a special token when it is read again: decoding would drop it from answers."""
    folder = saved(made("neox"), tmp_path)
    tokenizer, text = load_tokenizer(folder), "L'Haÿ, naïve! ÿ"
    ids = tokenizer(text)["input_ids"]
    assert padding_id(tokenizer) not in ids and tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids == made("neox")(text)["input_ids"]
    assert tokenizer.all_special_tokens == [END] and tokenizer.pad_token == END  # what other libraries pad with
    published = with_padding_token(tokenizer)
    published.save_pretrained(tmp_path / "published")
    assert AutoTokenizer.from_pretrained(tmp_path / "published").pad_token_id == padding_id(tokenizer)
    assert tokenizer.pad_token == END


def test_a_model_s_own_list_of_ends_counts(tmp_path):
    names = [END, "<|eot|>"]
    tokenizer = byte_level(names, eos_token=END, pad_token="<|eot|>")
    assert padding_id(load_tokenizer(saved(tokenizer, tmp_path))) == 1
    loaded = load_tokenizer(saved(tokenizer, tmp_path, eos_token_id=[0, 1]))
    assert loaded.convert_ids_to_tokens(padding_id(loaded)) == "ÿ"
    assert padding_note(loaded) == (
        f"padding: rows are filled up with 'ÿ' (id {loaded.convert_tokens_to_ids('ÿ')}), "
        "as the tokenizer's padding token '<|eot|>' ends a text"
    )


def test_a_padding_token_of_its_own_is_not_worth_a_word(tmp_path):
    assert padding_note(load_tokenizer(saved(made("toy"), tmp_path))) is None


def test_padding_beyond_the_embedding_is_not_used(tmp_path):
    """`[PAD]` added to a Llama-2 tokenizer, the model as it was."""
    tokenizer = AutoTokenizer.from_pretrained(saved(made("sentencepiece"), tmp_path / "plain"))
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == size
    loaded = load_tokenizer(saved(tokenizer, tmp_path / "padded", size))
    assert padding_id(loaded) == loaded.pad_token_id == loaded.unk_token_id == 0
    assert f"'[PAD]' (id {size}) is beyond the model's {size} embeddings" in padding_note(loaded)
    assert max(encode_all(loaded, "a [PAD] b")) < size


def encode_all(tokenizer, text):
    from lite_c2f.data.encode import encode_answer, encode_prompt

    answer = encode_answer(tokenizer, text, ended=True, max_tokens=99)
    return encode_prompt(tokenizer, [Turn("human", text)], 99)[0] + answer


@pytest.mark.parametrize(
    ("make", "token"),
    [
        (lambda one: one.add_tokens(AddedToken("<think>", special=False)), "<think>"),  # text would become it
        (lambda one: one.add_special_tokens({"eos_token": "<|end|>"}), "<|end|>"),
        (
            lambda one: one.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]}),
            "<|im_end|>",
        ),  # in template
    ],
)
def test_other_tokens_beyond_the_embedding_are_refused(make, token, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(saved(made("gpt2"), tmp_path / "plain"))
    size = len(tokenizer)
    make(tokenizer)
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "")
    assert load_tokenizer(saved(tokenizer, tmp_path / "resized", size + 1)) is not None
    with pytest.raises(ModelError) as caught:
        load_tokenizer(saved(tokenizer, tmp_path / "as it was", size))
    assert f"token '{token}' has id {size}, but the model has {size} embeddings" in str(caught.value)
