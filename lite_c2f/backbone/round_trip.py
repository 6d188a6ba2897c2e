"""Round trip check of a tokenizer: text that is encoded and decoded is the same text.

Several releases of 2026 broke it silently: a class named in tokenizer_config.json that rebuilds the tokenizer in
another way than tokenizer.json has it loses every space, a decoder of another kind writes `Ġ` or `<0x0A>` into answers.
A model trained on such ids is of no use to another program.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from transformers import __version__ as transformers_version
from transformers.utils import cached_file

from lite_c2f.errors import ModelError

PROBES = (
    " sum of 9 and 6: we need to add them.\n\nHuman: Why?\n\nAssistant: It is 15.",
    " two  spaces, three   of them, and one at the end ",
    "before a mark : x != y ? ( yes ) , don 't ! ' s .",
    "def f(a):\n    return a\n\n\tif b:\r\n\t\tc = [1, 22, 333]",
    "Zürich, naïve café, Straße 12; 東京は晴れ。한국 и Москва 🙂",
)
_ANCHOR = "a"  # behind it no space is the one that SentencePiece puts before, and takes from, every text
_WORDS = re.compile(r'"(WordLevel|WordPiece|Whitespace|BertPreTokenizer)"')  # tokens of words and marks, without spaces
_SPLIT = '"WhitespaceSplit"'  # how many spaces are between two words is lost, by design


class TextChange(NamedTuple):
    """A part of a text before and after the round trip, where they differ."""

    expected: str
    got: str


def check_round_trip(tokenizer: Any, model: str, revision: str | None = None) -> None:
    """Raise ModelError when the tokenizer of a model does not give a text back unchanged; says what to do.

    tokenizer: as `load_tokenizer` gives it; model: its folder or hub name. What the tokenizer cannot spell at all, and
    what its own normaliser changes (NFKC, double spaces), is left out of the comparison.
    """
    change = first_change(tokenizer)
    if change is None:
        return
    raise ModelError.because(
        f"model '{model}': its tokenizer ({type(tokenizer).__name__} of Transformers {transformers_version}) gives the "
        f"text {change.expected!r} back as {change.got!r}",
        "the same text",
        _remedy(model, revision),
    )


def first_change(tokenizer: Any) -> TextChange | None:
    """The first difference after encoding and decoding, with the text around it; None without one.

    Spaces always count; any other character only where the tokenizer can spell it on its own. None also for tokenizers
    of whole words, which have no tokens for spaces.
    """
    return _first_change(
        lambda text: tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"],
        lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        tokenizer.unk_token_id,
        getattr(tokenizer, "backend_tokenizer", None),
    )


def _first_change(
    encode: Callable[[str], list[int]], decode: Callable[[list[int]], str], unknown: int | None, backend: Any
) -> TextChange | None:
    """backend: of the `tokenizers` library, whose parts say what is changed by design; None where there is none."""
    normalizer, split = getattr(backend, "normalizer", None), getattr(backend, "pre_tokenizer", None)
    parts = f'"{type(getattr(backend, "model", None)).__name__}" {split and split.__getstate__().decode()}'
    if _WORDS.search(parts):
        return None

    def result(text: str) -> str | None:
        ids = encode(text)
        return None if unknown is not None and unknown in ids else compared(decode(ids))

    def expected(text: str) -> str:
        return compared(text if normalizer is None else normalizer.normalize_str(text).replace("▁", " "))

    def compared(text: str) -> str:
        return " ".join(text.split()) if _SPLIT in parts else text.lstrip(" ")

    alone = result(_ANCHOR)
    if alone is None or _ANCHOR not in alone:
        return None  # not even a letter: a vocabulary of a few words
    lost = {
        character: result(_ANCHOR + character) in (None, alone) for character in sorted(set("".join(PROBES)) - {" "})
    }
    for probe in PROBES:
        text = _ANCHOR + "".join(character for character in probe if not lost.get(character))
        got, correct = result(text), expected(text)
        if got is not None and got != correct:
            return _around(correct, got)
    return None


def _around(expected: str, got: str) -> TextChange:
    """Parts of the two texts around the first character that differs."""
    pairs = zip(expected, got, strict=False)
    place = next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(expected), len(got)))
    span = slice(max(0, place - 12), place + 12)
    return TextChange(expected[span], got[span])


def _remedy(model: str, revision: str | None) -> str:
    """What the user can do: tokenizer.json may be right where the class that rebuilds it is not."""
    again = "download the tokenizer's files of the original model again, or save them with the release that wrote them"
    try:
        file = Path(str(cached_file(model, "tokenizer.json", revision=revision)))
        own = Tokenizer.from_file(str(file))
        special = {token["id"] for token in json.loads(file.read_text(encoding="utf-8"))["added_tokens"]}
    except Exception:  # none, or one that the library cannot read: it raises plain Exception
        return again
    unknown = getattr(own.model, "unk_token", None)
    change = _first_change(
        lambda text: own.encode(text, add_special_tokens=False).ids,
        lambda ids: own.decode([id_ for id_ in ids if id_ not in special]),
        own.token_to_id(unknown) if unknown else None,
        own,
    )
    if change is not None:
        return again
    settings = file.with_name("tokenizer_config.json")
    return (
        f'set "tokenizer_class": "PreTrainedTokenizerFast" in \'{settings}\', so that tokenizer.json is read as it is'
    )
