"""Your own reward: a function in a file, prompts with columns, a bound, and a figure that only watches.

The function below pays for a style: an answer that reasons in the open and says no more than the row allows. `watch`
looks at whether answers are right, which the style does not ask for. docs/rewards.md explains all settings.

python examples/reward_functions.py [RUN]
"""

import json
import random
import sys
from pathlib import Path

import lite_c2f
from lite_c2f.reward.functions import RewardInputs


def style(inputs: RewardInputs, *, opening: str) -> list[float]:
    """1 for an answer that begins with `opening`, less 0.1 for each word above the row's column `words`."""
    scores = []
    for text, row in zip(inputs.responses, inputs.rows, strict=True):
        too_many = max(0, len(text.split()) - row["words"])
        scores.append(float(text.startswith(opening)) - 0.1 * too_many)
    return scores


def main(run: Path) -> None:
    """Write prompts with columns, train the Coarse Actor on them, and print what the evaluations found."""
    run.parent.mkdir(parents=True, exist_ok=True)
    data = run.parent / "sums.jsonl"
    rng = random.Random(0)
    with data.open("w", encoding="utf-8") as file:
        for _ in range(400):
            start, gain, loss = rng.randint(4, 9), rng.randint(1, 9), rng.randint(1, 4)
            prompt = f"Tom has {start} apples, first finds {gain}, second loses {loss}. How many now?"
            file.write(json.dumps({"prompt": prompt, "answer": start + gain - loss, "words": 40}) + "\n")
    rewards = [
        {"function": f"{__file__}:style", "arguments": {"opening": "Let us think"}},
        {"function": "lite_c2f.reward.functions:ended", "at_least": 0.95},  # a bound in place of a weight
    ]
    watch = [{"function": "lite_c2f.reward.functions:number_matches"}]
    config = lite_c2f.load_config(
        "configs/toy.yaml",
        [
            f"data.prompts=[{data}]",
            f"coarse.rewards={json.dumps(rewards)}",
            f"coarse.watch={json.dumps(watch)}",
            "coarse.evaluate_every=2",
            "coarse.evaluate_prompts=24",
            "coarse.evaluate_temperature=1",
            "coarse.updates=4",
            "coarse.critic_warmup=1",
            "coarse.rollouts=24",
            "coarse.length.start=40",
        ],
    )
    metrics = lite_c2f.train_coarse(config, run)
    for line in metrics["held_out"]["evaluations"]:
        print(json.dumps(line))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own-reward"))
