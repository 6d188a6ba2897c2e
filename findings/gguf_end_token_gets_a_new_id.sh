#!/usr/bin/env bash
# Transformers gives a byte-level end token whose name is not ASCII an id behind the vocabulary when it reads a GGUF file.
#
# Guess: a GGUF file lists its tokens with ids, and eos_token_id names one of them, so a loaded tokenizer has it there.
# Seen: in byte-level vocabularies ordinary tokens are spelt in the alphabet of GPT-2, special tokens as they are. DeepSeek's
# are called <｜end▁of▁sentence｜>, with characters that are not in that alphabet. Transformers takes such a name for text,
# does not find it, and adds it as a new token: eos_token_id is then the size of the vocabulary, an id that the model has no
# row for and never writes, so that generation does not end. <|end_of_sentence|> in the same place keeps its id.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0 >/dev/null 2>&1
"$folder/venv/bin/python" - "$folder" 2>/dev/null <<'PYTHON'
import sys

import gguf
import transformers
from transformers import AutoTokenizer

print("transformers", transformers.__version__)
folder, ids, sizes = sys.argv[1], {}, {}
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's alphabet: the other bytes are moved up
alphabet = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(256 - len(printable))]
NORMAL, CONTROL = 1, 3
for end in ("<|end_of_sentence|>", "<｜end▁of▁sentence｜>"):
    tokens = [end, *alphabet, "he", "ll"]
    writer = gguf.GGUFWriter(f"{folder}/tiny.gguf", "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL, *[NORMAL] * (len(tokens) - 1)])
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = AutoTokenizer.from_pretrained(folder, gguf_file="tiny.gguf")
    ids[end], sizes[end] = read.eos_token_id, len(tokens)
    print(f"{end}: id 0 of {len(tokens)} in the file; read as {read.eos_token_id}")
ascii, other = ids
assert ids[ascii] == 0 and ids[other] >= sizes[other], "the behaviour has changed"
PYTHON
