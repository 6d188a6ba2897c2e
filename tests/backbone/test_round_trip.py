"""Tokenizers that give texts back unchanged, in all that they can spell, and ones that do not."""

import json
import re

import pytest
from tokenizer_kinds import KINDS, byte_level, llama3, made, sentencepiece, word_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from lite_c2f.backbone.load import load_tokenizer
from lite_c2f.backbone.round_trip import TextChange, check_round_trip, first_change
from lite_c2f.cli.doctor import tokenizer_problem
from lite_c2f.errors import ModelError

LETTERS = [*"abcdefghijklmnopqrstuvwxyzHWAI", *"0123456789.:,?", "▁"]


def letters(model, **names):
    """A tokenizer of some ASCII letters and `▁`: no line breaks, no umlauts, no bytes."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **names)


def unigram():
    """T5's: NFKC, runs of spaces and line breaks made one space, words split before `▁` is put before each."""
    pieces = [("<unk>", 0.0), *((letter, -1.0) for letter in [*LETTERS, "é", "ü"])]
    tokenizer = letters(models.Unigram(pieces, unk_id=0), unk_token="<unk>")
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(left=False, right=True)]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return tokenizer


def wordpiece():
    """BERT's: words and marks, between which its decoder puts spaces of its own."""
    letters = [*"abcdefghijklmnopqrstuvwxyzHWAI0123456789.:,?"]
    vocabulary = {piece: n for n, piece in enumerate(["[UNK]", *letters, *(f"##{letter}" for letter in letters)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[SEP]")


def lowercase():
    tokenizer = llama3()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    return tokenizer


SOUND = {
    **KINDS,
    "words": word_tokenizer,
    "letters": lambda: letters(models.BPE(vocab={letter: n for n, letter in enumerate(LETTERS)}, merges=[])),
    "letters or unknown": lambda: letters(
        models.BPE(vocab={letter: n for n, letter in enumerate([*LETTERS, "<unk>"])}, merges=[], unk_token="<unk>"),
        unk_token="<unk>",
    ),
    "unigram": unigram,
    "wordpiece": wordpiece,
    "lowercase": lowercase,
    "space before": lambda: sentencepiece_of(pre_tokenizers.ByteLevel(add_prefix_space=True)),
}


def sentencepiece_of(split):
    tokenizer = byte_level(["</s>"], eos_token="</s>")
    tokenizer.backend_tokenizer.pre_tokenizer = split
    return tokenizer


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_tokenizer_raises_no_alarm(kind):
    assert first_change(SOUND[kind]()) is None


def with_parts(tokenizer, **parts):
    for name, part in parts.items():
        setattr(tokenizer.backend_tokenizer, name, part)
    return tokenizer


BROKEN = {  # how a tokenizer is broken, and what is made of "sum of 9 an"
    "spaces dropped before bytes": (lambda: sentencepiece_of(pre_tokenizers.Metaspace()), "asumof9and"),
    "spaces left in letters": (lambda: with_parts(llama3(), decoder=decoders.Metaspace()), "aĠsum"),
    "no decoder": (lambda: with_parts(sentencepiece(), decoder=None), "▁a ▁ s"),
    "spaces stripped": (
        lambda: with_parts(sentencepiece(), decoder=decoders.Sequence([decoders.Replace("▁", ""), decoders.Fuse()])),
        "asumof9and",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_tokenizer_that_changes_texts_is_named(fault):
    make, got = BROKEN[fault]
    change = first_change(make())
    assert change.expected.startswith("a sum of 9 ") and change.got.startswith(got)


def test_bytes_that_are_left_in_letters():
    """SentencePiece without ByteFallback: spaces are right, line breaks are `<0x0A>`."""
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    change = first_change(with_parts(sentencepiece(), decoder=decoder))
    assert change == TextChange("to add them.\n\nHuman: Why", "to add them.<0x0A><0x0A>")


def saved(tokenizer, folder, **settings):
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return str(folder)


def test_a_class_that_rebuilds_the_tokenizer_wrongly_and_the_advice(tmp_path):
    """Followed: the class read from the message goes into the file that it names."""
    folder = saved(made("sentencepiece"), tmp_path, tokenizer_class="GPT2Tokenizer")
    with pytest.raises(
        ModelError, match=r"gives the text 'a sum of 9.*' back as 'asumof9.*'; expected the same text"
    ) as e:
        check_round_trip(load_tokenizer(folder), folder)
    assert tokenizer_problem(tmp_path) == str(e.value)
    (name, file) = re.search(r'set "tokenizer_class": "(\w+)" in \'(.+?)\'', str(e.value)).groups()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert file == str(tmp_path / "tokenizer_config.json")
    saved(made("sentencepiece"), tmp_path, **settings | {"tokenizer_class": name})
    check_round_trip(load_tokenizer(folder), folder)
    assert tokenizer_problem(tmp_path) is None


def test_a_tokenizer_that_is_wrong_itself(tmp_path):
    """No class would read it rightly."""
    folder = saved(with_parts(llama3(), decoder=decoders.Metaspace()), tmp_path)
    with pytest.raises(ModelError, match="download the tokenizer's files of the original model again"):
        check_round_trip(load_tokenizer(folder), folder)


def test_spaces_before_marks_stay_whatever_the_files_ask_for(tmp_path):
    """Llama-3's files have clean_up_tokenization_spaces; releases before 5.7, and this switch in later ones, obey."""
    settings = {"clean_up_tokenization_spaces": True}
    settings["clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"] = True
    folder = saved(made("llama3"), tmp_path, **settings)
    plain = AutoTokenizer.from_pretrained(folder)
    assert plain.decode(plain("x != y .")["input_ids"]) == "x!= y."
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer("x != y .")["input_ids"]) == "x != y ."
