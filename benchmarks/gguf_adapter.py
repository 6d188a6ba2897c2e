"""An exported adapter in a real llama.cpp against Transformers: greedy tokens and log-probabilities of SmolLM2-135M.

The adapter is trained here for a few steps on the project's own answers. llama.cpp (npm's node-llama-cpp, CPU) gets
SmolLM2's GGUF file with float32 tensors and the same metadata, Transformers the folder with the same weights; both get
the adapter at each scale. `same` counts the held-out questions whose tokens are all llama.cpp's likeliest where it
reads Transformers' greedy text, which is the same as that both write the same text. `mean_difference` is that of the
mean log-probability of these tokens, `mean_error` the mean of the absolute differences, token by token; nats.
`others` has each token that differs, with how much likelier llama.cpp finds its own.

On the stock file (Q4_1) llama.cpp rounds activations to 8 bits: there the change of log-probabilities from scale 0 to
1 is compared, and texts of both scales are kept to be read.

    make .venv/.llama-cpp && python benchmarks/gguf_adapter.py --out benchmarks/results/gguf_adapter.json
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from models import machine, report
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lite_c2f.fine.gguf_adapter import export_adapter
from lite_c2f.gguf import packed_file, unpacked
from lite_c2f.smollm import SMOLLM
from lite_c2f.smollm.data import pairs, prompts

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from llama_cpp import changed_tokens, float32_copy, greedy, llama_cpp, log_probabilities

SCALES = [0.0, 0.5, 1.0]


def train(model: Any, tokenizer: Any, steps: int, folder: Path) -> Any:
    """A LoRA of rank 8 on all linear layers, by AdamW on chosen answers in the chat template; saved."""
    torch.manual_seed(0)
    settings = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    texts = [pair.chosen for pair in pairs(held_out=False)]
    questions = [pair.turns[-1].text for pair in pairs(held_out=False)]
    order = torch.randperm(len(texts)).tolist()
    for step in range(steps):
        for number in order[2 * step : 2 * step + 2]:
            chat = [{"role": "user", "content": questions[number]}, {"role": "assistant", "content": texts[number]}]
            ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"][:, :160]
            (adapted(input_ids=ids, labels=ids).loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(folder)
    return adapted.eval()


def compare(adapted: Any, file: Path, adapter: Path, questions: list[list[int]], count: int) -> dict[str, Any]:
    """Figures at each scale with float32 weights on both sides."""
    texts = {scale: greedy(adapted, scale, questions, count) for scale in SCALES}
    found = {}
    for scale in SCALES:
        sequences = [
            {"tokens": text, "prompt": len(question)} for text, question in zip(texts[scale], questions, strict=True)
        ]
        (result,) = llama_cpp(file, adapter, [scale], sequences=sequences)
        errors, others, same = [], [], 0
        for row, steps in zip(sequences, result["sequences"], strict=True):
            answer = row["tokens"][row["prompt"] :]
            expected = log_probabilities(adapted, scale, row["tokens"])[row["prompt"] - 1 : -1]
            errors += [
                step["nextLogp"] - float(line[token]) for step, line, token in zip(steps, expected, answer, strict=True)
            ]
            others += changed_tokens(steps, answer)
            same += not changed_tokens(steps, answer)
        found[str(scale)] = {
            "same": same,
            "mean_difference": sum(errors) / len(errors),
            "mean_error": sum(map(abs, errors)) / len(errors),
            "largest_error": max(map(abs, errors)),
            "others": others,
        }
    changed = sum(a != b for a, b in zip(texts[0.0], texts[1.0], strict=True))
    return {"prompts": len(questions), "tokens": count, "texts_that_the_adapter_changes": changed, "scales": found}


def stock(adapted: Any, tokenizer: Any, adapter: Path, questions: list[list[int]], count: int) -> dict[str, Any]:
    """The change from scale 0 to 1 on the file as it is shipped, on the text of scale 1, and texts to be read."""
    sequences = [
        {"tokens": text, "prompt": len(question)}
        for text, question in zip(greedy(adapted, 1.0, questions, count), questions, strict=True)
    ]
    generate = {"prompts": questions[:3], "count": 48}
    before, after = llama_cpp(packed_file(SMOLLM), adapter, [0.0, 1.0], sequences=sequences, generate=generate)
    ours, theirs = [], []
    for row, first, last in zip(sequences, before["sequences"], after["sequences"], strict=True):
        at = torch.tensor(row["tokens"][row["prompt"] :])[:, None]
        zero, one = (log_probabilities(adapted, s, row["tokens"])[row["prompt"] - 1 : -1] for s in (0.0, 1.0))
        theirs += (one.gather(1, at) - zero.gather(1, at))[:, 0].tolist()
        ours += [b["nextLogp"] - a["nextLogp"] for a, b in zip(first, last, strict=True)]
    change, got = torch.tensor(theirs), torch.tensor(ours)
    return {
        "prompts": len(questions),
        "mean_change": float(change.mean()),
        "mean_change_in_llama_cpp": float(got.mean()),
        "correlation": float(torch.corrcoef(torch.stack([change, got]))[0, 1]),
        "mean_error": float((change - got).abs().mean()),
        "texts": [
            {"scale_0": tokenizer.decode(a), "scale_1": tokenizer.decode(b)}
            for a, b in zip(before["generated"], after["generated"], strict=True)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40, help="of training")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = unpacked(SMOLLM)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory(prefix="lite-c2f-gguf-") as name:
        root = Path(name)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        adapted = train(model, tokenizer, options.steps, root / "adapter")
        adapter = export_adapter(root / "adapter", SMOLLM, root / "out" / "r.gguf").file
        float32_copy(packed_file(SMOLLM), root / "float32.gguf")
        questions = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt.turns[0].text}], add_generation_prompt=True, return_dict=True
            )["input_ids"]
            for prompt in prompts(held_out=True)[: options.prompts]
        ]
        result = {
            "benchmark": "gguf_adapter",
            "llama_cpp": "node-llama-cpp 3.21.1",
            "float32": compare(adapted, root / "float32.gguf", adapter, questions, options.tokens),
            "stock_q4_1": stock(adapted, tokenizer, adapter, questions[:16], options.tokens),
            "machine": machine(),
        }
    report(result, options.out)


if __name__ == "__main__":
    main()
