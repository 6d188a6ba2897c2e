"""Your own preference data: write JSONL, check it, train on it.

A row is {"prompt", "chosen", "rejected"}: plain text, or lists of {"role", "content"} messages; HH-RLHF transcripts
work as they are. CSV, JSON and Parquet are read too, each optionally .gz. Other forms: docs/data.md.

python examples/own_preferences.py [RUN]
"""

import json
import sys
from pathlib import Path

import lite_c2f
from lite_c2f.config.data import Source
from lite_c2f.data.records import load_pairs

run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own")
data = run.parent / "own-preferences.jsonl"
data.parent.mkdir(parents=True, exist_ok=True)

with data.open("w", encoding="utf-8") as file:
    for a in range(1, 21):
        for b in range(1, 11):
            row = {
                "prompt": f"What is {a} plus {b}?",
                "chosen": f"We add {b} to {a}. The answer is {a + b}.",
                "rejected": "I do not care." if (a + b) % 2 else f"The answer is {a + b + 1}.",
            }
            file.write(json.dumps(row) + "\n")

loaded = load_pairs([Source(path=str(data))])
print(f"{len(loaded.items)} pairs, skipped: {loaded.skipped or 'none'}")

config = lite_c2f.load_config(
    "configs/toy.yaml",
    [f"data.preferences=[{data}]", "coarse.updates=5", "coarse.rollouts=16", "evaluation.prompts=16", "fine.prompts=8"],
)
summary = lite_c2f.train(config, run)
print(json.dumps(summary["actors"], indent=2))
