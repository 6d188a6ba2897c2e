#!/usr/bin/env bash
# `transformers serve FOLDER` answers for FOLDER, and lists other models.
#
# Guess: a server with OpenAI's interface lists in GET /v1/models the model that it was started with, as others do.
# Seen: the list has the models of the hub's cache on that machine, never FOLDER, although every question is answered by
# it; with an empty cache the list is empty, and without a cache it is HTTP 500. A client that offers what is listed has
# nothing to offer: it needs the model's name from its user.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 "transformers[serving]==5.23.0" accelerate==1.15.0 httpx==0.28.1 >/dev/null 2>&1
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = ["<unk>", "<s>", "</s>", "hello", "there"]
tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
fast.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
fast.save_pretrained("tiny")
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LlamaForCausalLM(LlamaConfig(vocab_size=5, bos_token_id=1, eos_token_id=2, **sizes)).save_pretrained("tiny")
PYTHON
"$folder/venv/bin/transformers" serve "$folder/tiny" --port 8765 >"$folder/log" 2>&1 &
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
import time
from pathlib import Path

import httpx
import transformers

folder, url = Path(sys.argv[1]), "http://127.0.0.1:8765"
for _ in range(240):
    try:
        httpx.get(f"{url}/health", trust_env=False)
        break
    except httpx.TransportError:
        time.sleep(0.5)


def listed():
    return httpx.get(f"{url}/v1/models", trust_env=False)


def answer():
    body = {"model": str(folder / "tiny"), "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    return httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=120)


print("transformers", transformers.__version__)
without = listed()
print("without a cache: the list is HTTP", without.status_code)
asked = answer()
print("a question about the folder's model is HTTP", asked.status_code, repr(asked.json()["choices"][0]["message"]["content"]))
(folder / "home" / "hub").mkdir(parents=True, exist_ok=True)
empty = listed()
print("with an empty cache: HTTP", empty.status_code, empty.json())
assert without.status_code == 500 and asked.status_code == 200, "the behaviour has changed"
assert empty.status_code == 200 and empty.json()["data"] == [], "the behaviour has changed"
PYTHON
