"""Small tokenizers of the usual families, trained here in milliseconds: the same splitting, bytes and special tokens.

What differs between families is what trips programs: Llama-3's and Qwen's splitting joins a full stop with the line
breaks after it (`.\\n\\n` is one token), GPT-2's does not; SentencePiece puts a space before every text and spells rare
characters as bytes; GPT-NeoX and SmolLM2 use one token for beginning, end, unknown and padding; Qwen2.5 and Llama-3
have neither a padding nor an unknown token, and end a chat's turns with a token that is not the end of a text.
"""

import string
from collections.abc import Callable, Sequence
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "\n\nHuman: How many apples are left now?\n\nAssistant: Let us think step by step. It is 5.\n\n",
    'It is 5.\n\nHuman: Why?\n\nAssistant: Because 3 + 4 - 2 = 5.\n\n- First.\n- Second!\n\nThe answer is "seven".\n\n',
    "Ok...\n\nHuman: Naïve café, 東京?\n\nAssistant: Good (very good).\n\nHuman: And then?\n\n",
)
# The patterns by which Llama-3 and Qwen2 split a text before its bytes are merged; both are public in tokenizer.json.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
WORDS = ("<unk>", "<s>", "</s>", *(f"w{number}" for number in range(61)))
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(
    special: Sequence[str], split: str | None = None, texts: Sequence[str] = TEXTS, vocabulary: int = 480, **names
) -> PreTrainedTokenizerFast:
    """Byte-level BPE. split: a pattern as Llama-3's, None for GPT-2's own; names: bos_token, eos_token and so on."""
    tokenizer = Tokenizer(models.BPE())
    if split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(texts) * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


def neox() -> PreTrainedTokenizerFast:
    """GPT-2's splitting; one token is beginning, end, unknown and padding, as Pythia's and SmolLM2's."""
    end = "<|endoftext|>"
    return byte_level([end], bos_token=end, eos_token=end, unk_token=end, pad_token=end)


def gpt2() -> PreTrainedTokenizerFast:
    """GPT-2's splitting and its one special token, no padding."""
    end = "<|endoftext|>"
    return byte_level([end], bos_token=end, eos_token=end, unk_token=end)


def llama3() -> PreTrainedTokenizerFast:
    """Llama-3's splitting; beginning and end of a text, neither padding nor unknown."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_level(names, LLAMA3, bos_token=names[0], eos_token=names[1])


def qwen() -> PreTrainedTokenizerFast:
    """Qwen's splitting; its EOS ends a text, `<|im_end|>` ends a chat's turn; no beginning, no unknown, no padding."""
    tokenizer = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], QWEN, eos_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama-2's and Mistral's: a space before every text, spaces are pieces, rare characters fall back to bytes."""
    merges = [("H", "u"), ("Hu", "m"), ("Hum", "a"), ("Huma", "n"), ("▁", "Human"), ("▁", "a"), ("i", "s")]
    merges += [("▁", "is"), (".", "."), ("..", "."), ("n", ":")]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [*string.ascii_letters, *string.digits, *string.punctuation]
    pieces += [joined for joined in map("".join, merges) if joined not in pieces]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word between spaces, of the pico models: `w0` is 3, `w1` is 4, and so on."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def toy() -> PreTrainedTokenizerFast:
    """The toy world's own."""
    from lite_c2f.toy.build import make_tokenizer

    return make_tokenizer()


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt2": gpt2,
    "neox": neox,
    "llama3": llama3,
    "qwen": qwen,
    "sentencepiece": sentencepiece,
    "toy": toy,
}


@cache
def made(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of this kind, made once in a process; a test that changes one makes its own."""
    return KINDS[kind]()
