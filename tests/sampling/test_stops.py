"""Stops against a search in the decoded text, on the usual families of tokenizers."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, byte_level, made
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lite_c2f.chat.rows import AnswerRow
from lite_c2f.errors import ConfigError
from lite_c2f.sampling import Sampling, Stops, sample
from lite_c2f.sampling.stops import _BYTE_OF, before_stop, first_marker, token_bytes

HUMAN = "\n\nHuman:"
MARKERS = ((HUMAN,), ("an", "Human", HUMAN), ("\n\n", ".\n"), ("aab", "ab:", "b"), ("is 5", "5.\n\nHuman"))


def text_of(tokenizer, ids):
    """The text that ids stand for behind other text, by the tokenizer's own decoding."""
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
    whole = tokenizer.decode([*anchor, *ids])
    return whole.removeprefix(tokenizer.decode(anchor))


def searched(tokenizer, ids, stops):
    """(tokens until a stop text is complete, text before it), by decoding again after every token; None without."""
    for count in range(1, len(ids) + 1):
        text = text_of(tokenizer, ids[:count])
        ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
        if ends:
            end, size = min(ends)
            return count, text[: end + size]
    return None


def followed(stops, ids):
    """The same, by the table."""
    state = 0
    for count, token in enumerate(ids, 1):
        state = stops.follow(state, token)
        if state == stops.end:
            cut = stops.cut(ids[:count])
            return count, text_of(stops.tokenizer, cut.text)
    return None


def spelt(tokenizer, text, rng):
    """Ids of a text in any tokens that spell it, not those the tokenizer would take."""
    by_first = {}
    for token, part in enumerate(token_bytes(tokenizer)):
        if part:
            by_first.setdefault(part[0], []).append((token, part))
    rest, ids = text.encode(), []
    while rest:
        token, part = rng.choice([entry for entry in by_first[rest[0]] if rest.startswith(entry[1])])
        ids.append(token)
        rest = rest[len(part) :]
    return ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("markers", MARKERS, ids=range(len(MARKERS)))
def test_a_stop_is_seen_where_the_text_holds_it(kind, markers):
    tokenizer, rng = made(kind), random.Random(f"{kind} {markers}")
    stops, seen = Stops(tokenizer, markers), 0
    tokens = range(len(tokenizer))
    if kind == "sentencepiece":  # decoding writes all of a run of byte tokens as unknown where one of them is half a
        tokens = [
            token for token, part in enumerate(token_bytes(tokenizer)) if part.isascii()
        ]  # character: line breaks too
    for number in range(120):
        ids = [rng.choice(tokens) for _ in range(rng.randrange(12))]
        if number % 3:  # random tokens hold a marker too seldom
            text = rng.choice([" It is 5.", "é (b)", "Humaab\n", " a\n\n\n", "\n\nHum", ""])
            ids += spelt(tokenizer, text + rng.choice(markers) + rng.choice(["", " Why?"]), rng)
        expected = searched(tokenizer, ids, markers)
        assert followed(stops, ids) == expected, tokenizer.convert_ids_to_tokens(ids)
        seen += expected is not None
    assert seen >= 80


@settings(max_examples=60, deadline=None)
@given(
    markers=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4), text=st.text("ab\n", max_size=14)
)
def test_the_marker_that_ends_first_wins_and_of_several_the_longest(markers, text):
    places = [
        (begin + len(marker), begin)
        for marker in markers
        for begin in range(len(text))
        if text[begin:].startswith(marker)
    ]
    expected = min(places, default=None)
    assert first_marker(text, markers) == (expected and expected[::-1])
    assert before_stop(text, markers) == (text if expected is None else text[: expected[1]])
    tokenizer = made("gpt2")
    result = followed(Stops(tokenizer, markers), spelt(tokenizer, text, random.Random(text)))
    assert (result and result[1]) == (None if expected is None else text[: expected[1]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_stop_before_the_marker_stays(kind):
    tokenizer = made(kind)
    ids = tokenizer.encode(" It is 5.\n\nHuman:", add_special_tokens=False)
    cut = Stops(tokenizer, [HUMAN]).cut(ids)
    assert text_of(tokenizer, cut.text) == text_of(tokenizer, tokenizer.encode(" It is 5.", add_special_tokens=False))
    assert cut.text == tokenizer.encode(" It is 5.", add_special_tokens=False)
    joined = kind in ("llama3", "qwen")
    assert tokenizer.convert_tokens_to_ids(".ĊĊ") in ids if joined else len(cut.text) + cut.ending == len(ids)
    assert cut.ending == (3 if joined else 4)  # `.\n\n`, Human, : and otherwise each line break for itself


def test_text_that_shares_a_token_is_encoded_as_the_data_is():
    """`..` and `.` with line breaks: three dots, which the tokenizer joins."""
    tokenizer = byte_level(
        ["<|endoftext|>"], r"[\s\S]+", ["Ok...", "Ok..", ".\n\n", "Ok...\n\nHuman:"], 400, eos_token="<|endoftext|>"
    )
    dots, tail = tokenizer.convert_tokens_to_ids("Ok"), [tokenizer.convert_tokens_to_ids(part) for part in "..Ċ"]
    ids = [dots, tail[0], tail[0], *spelt(tokenizer, ".\n\nHuman:", random.Random(3))]
    cut = Stops(tokenizer, [".\n\nHuman:"]).cut(ids)
    assert cut.text == [dots, tail[0], tail[0]]  # nothing is shared: as it was sampled
    whole = next(token for token, part in enumerate(token_bytes(tokenizer)) if part == b".\n")
    shared = [dots, tail[0], tail[0], whole, *spelt(tokenizer, "\nHuman:", random.Random(3))]
    cut = Stops(tokenizer, [HUMAN]).cut(shared)
    assert cut.text == tokenizer.encode("Ok...", add_special_tokens=False) != shared[:3]


def test_special_tokens_before_a_shared_token_stay_special():
    tokenizer = made("qwen")
    special, dot = tokenizer.convert_tokens_to_ids(["<|im_start|>", ".ĊĊ"])
    ids = [special, dot, *tokenizer.encode("Human:", add_special_tokens=False)]
    assert Stops(tokenizer, [HUMAN]).cut(ids).text == [special, tokenizer.convert_tokens_to_ids(".")]


def test_a_marker_may_be_or_hold_a_special_token():
    tokenizer = made("qwen")
    end, letters = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.encode("Yes", add_special_tokens=False)
    for markers in (["<|im_end|>"], ["<|im_end|>\n"]):
        stops = Stops(tokenizer, markers)
        line = tokenizer.encode("\n", add_special_tokens=False)
        assert followed(stops, [*letters, end, *line])[1] == "Yes"
        literal = tokenizer.encode("Yes<|im_end|>\n", add_special_tokens=False, split_special_tokens=True)
        assert end not in literal and followed(stops, literal)[1] == "Yes"


def test_ids_beyond_the_tokenizer_have_no_text():
    tokenizer = made("gpt2")
    stops = Stops(tokenizer, ["ab"])
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    table = stops.on(torch.device("cpu"), len(tokenizer) + 7)
    assert table.shape == (len(stops.table), len(tokenizer) + 7)
    for token in range(len(tokenizer), len(tokenizer) + 7):
        assert [int(table[state, token]) for state in range(3)] == [0, 1, 2]
        assert followed(stops, [a, token, b]) == (3, "")
    assert stops.on(torch.device("cpu"), 300).shape[1] == 300  # a head smaller than its tokenizer


def test_ids_may_have_gaps():
    """`H` is 9, although there are four tokens."""
    letters = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "c": 2, "H": 9}, merges=[]))
    stops = Stops(PreTrainedTokenizerFast(tokenizer_object=letters), [" b H"])  # without a decoder, spaces between
    stops.check()
    assert followed(stops, [0, 1, 9, 2])[0] == 3


def test_bytes_of_tokens_are_what_they_add_to_a_text():
    assert set(_BYTE_OF) == set(ByteLevel.alphabet())
    for kind in KINDS:
        tokenizer = made(kind)
        for token, part in enumerate(token_bytes(tokenizer)):
            text = text_of(tokenizer, [token])
            if "\N{REPLACEMENT CHARACTER}" not in text:
                assert part.decode() == text, (kind, token)
    assert token_bytes(made("sentencepiece"))[3:6] == [b"\x00", b"\x01", b"\x02"]


def test_other_decoders_are_asked():
    from tokenizers import decoders

    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "c": 3}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece(cleanup=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=False)
    assert token_bytes(tokenizer)[1:] == [b" a", b"b", b" c"]


@pytest.mark.parametrize(("stops", "words"), [(["a", ""], "without text"), (["b", "#"], "'#' has no tokens")])
def test_stops_that_cannot_be(stops, words):
    letters = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters)
    with pytest.raises(ConfigError, match=words):
        Stops(tokenizer, stops).check()


@pytest.mark.parametrize("kind", ["llama3", "toy"])
def test_one_rule_in_sampler_and_chat(kind):
    """Responses with stops are the free ones up to the place where their text holds one; in the chat too."""
    torch.manual_seed(0)
    tokenizer = made(kind)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    prompts, sampling, markers = [[5, 9, 11]] * 24, Sampling(12, seed=4), ("s", "\n", ". ")
    free = sample(model, prompts, sampling, eos_ids=[], pad_id=0, batch=7)
    stops = Stops(tokenizer, markers)
    with_stops = sample(model, prompts, sampling, eos_ids=[], stops=stops, pad_id=0, batch=7)
    for row, tokens in enumerate(free.tokens):
        chat = AnswerRow(0, 0.0, prompts[row], sampling, eos_ids=[], stops=stops)
        for token in tokens:
            if chat.finish is None:
                chat.append(token, 0.0)
        expected = searched(tokenizer, tokens, markers)
        if expected is None:
            assert with_stops.finish[row] == free.finish[row] == chat.finish
            assert with_stops.text_tokens(row) == free.text_tokens(row) == chat.text_tokens
        else:
            assert (with_stops.finish[row], chat.finish) == ("stop", "stop")
            assert with_stops.tokens[row] == tokens[: expected[0]] == chat.tokens
            assert with_stops.text_tokens(row) == chat.text_tokens
            assert text_of(tokenizer, chat.text_tokens) == expected[1]
    assert 5 < with_stops.finish.count("stop") < 24
