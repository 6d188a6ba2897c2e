"""SmolLM2's own tokenizer, from its package: prompts, answers, ends and padding as training and chat use them."""

from importlib import metadata
from pathlib import Path

import pytest

from lite_c2f.backbone.load import load_tokenizer
from lite_c2f.backbone.padding import padding_id
from lite_c2f.backbone.round_trip import check_round_trip
from lite_c2f.config.settings import Model
from lite_c2f.data.encode import answer_end, encode_answer, encode_chat, encode_prompt
from lite_c2f.data.records import Turn
from lite_c2f.gguf.embedded import FILE, PACKAGE
from lite_c2f.sampling import Stops

QUESTION = [Turn("human", "What is 12 plus 3?")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    try:
        file = Path(str(metadata.distribution(PACKAGE).locate_file(FILE)))
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is not installed; `make check` installs it")
    folder = tmp_path_factory.mktemp("smollm2")
    AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(folder)
    return load_tokenizer(str(folder))


def test_a_plain_prompt_and_its_answer(tokenizer):
    prompt, _ = encode_prompt(tokenizer, QUESTION, 96)
    assert tokenizer.decode(prompt) == "\n\nHuman: What is 12 plus 3?\n\nAssistant:"  # no BOS: it adds none itself
    answer = encode_answer(tokenizer, "It is 15.", ended=True)
    assert tokenizer.decode(answer) == " It is 15.<|im_end|>"
    assert tokenizer.decode(encode_answer(tokenizer, "It is", ended=False)) == " It is"


def test_a_prompt_in_its_chat_template(tokenizer):
    text = tokenizer.decode(encode_chat(tokenizer, QUESTION, 96))
    assert text.endswith("<|im_start|>user\nWhat is 12 plus 3?<|im_end|>\n<|im_start|>assistant\n")
    assert text.startswith("<|im_start|>system\n")


def test_padding_ends_nothing(tokenizer):
    end = answer_end(tokenizer, Model().prompt_template)
    assert tokenizer.convert_ids_to_tokens(end) == "<|im_end|>" == tokenizer.eos_token
    assert tokenizer.convert_ids_to_tokens(padding_id(tokenizer)) == "<|endoftext|>"


def test_text_comes_back_and_the_next_turn_stops(tokenizer):
    check_round_trip(tokenizer, "smollm2")
    stops = Stops(tokenizer, Model().stop)
    stops.check()
    ids = tokenizer.encode(" It is 15.\n\nHuman: Thanks", add_special_tokens=False)
    cut = stops.cut(ids)
    assert cut.ending > 0 and tokenizer.decode(cut.text) == " It is 15."
