#!/usr/bin/env bash
# Decoding a SentencePiece-style vocabulary with byte fallback loses line breaks beside half a character.
#
# Guess: byte tokens are decoded as UTF-8 with replacement, so that only the byte that is no character becomes U+FFFD.
# Seen: where one byte of a run of byte tokens is not UTF-8, every byte of that run becomes U+FFFD, ASCII ones as well.
# Llama-2's and Mistral's vocabularies spell a line break as a byte token, so a stop text such as "\n\nHuman:" after half
# a character is not in the decoded text, although the model wrote it: look for stop texts in bytes, not in decoded text.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "tokenizers==0.23.3" >/dev/null 2>&1
"$folder/venv/bin/python" - <<'PYTHON'
import tokenizers
from tokenizers import Tokenizer, decoders, models

vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "Human": 257, ":": 258}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])


def decoded(data, *more):
    return tokenizer.decode([byte + 1 for byte in data] + list(more))


whole, half = decoded(b"\xc3\xa9\n\n", 257, 258), decoded(b"\xc3\n\n", 257, 258)
print("tokenizers", tokenizers.__version__)
print("a whole character, two line breaks, the marker:", repr(whole))
print("half a character, two line breaks, the marker: ", repr(half))
print("Python's own decoding of the latter:           ", repr(b"\xc3\n\nHuman:".decode("utf-8", "replace")))
assert whole == "é\n\nHuman:"
assert half == "\N{REPLACEMENT CHARACTER}" * 3 + "Human:", "the behaviour has changed"
PYTHON
