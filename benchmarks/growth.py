"""Growth benchmark: how the time of a PPO update with its rollout grows with the length of responses.

The same update as `ppo_step.py` (NF4, two epochs), with responses that all have 32, 64, 128, 256 or 480 tokens behind
prompts of 32. The exponent is the slope of log(seconds) over log(tokens of prompts and responses), over all lengths and
between the last two: 1 is linear, attention's part grows with 2. Prints one JSON line last.

    python benchmarks/growth.py [--shape smollm2] [--batch 4] [--updates 2] [--out FILE]
"""

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path

from models import machine, report, small_mistral
from ppo_step import EPOCHS, Work, child

LENGTHS = (32, 64, 128, 256, 480)  # with their prompts at most the 512 tokens of context that the toy shape has
PROMPT = 32
NEVER = 1e12  # tokens after which the model would end by itself


def slope(points: list[tuple[float, float]]) -> float:
    """Of log(y) over log(x), by least squares."""
    return statistics.linear_regression([math.log(x) for x, _ in points], [math.log(y) for _, y in points]).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=("toy", "smollm2"), default="toy")
    parser.add_argument("--batch", type=int, help="responses of an update (default: 32, or 4 at the larger shape)")
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    vocabulary = {"toy": 2048, "smollm2": 49152}[options.shape]
    batch = options.batch or {"toy": 32, "smollm2": 4}[options.shape]
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = small_mistral(Path(scratch), vocabulary, mean_length=NEVER, shape=options.shape)
        for length in LENGTHS:
            work = Work(vocabulary, batch, PROMPT, length, min(8, batch // 2), batch, 2, "nf4", options.updates)
            found = child("ours", folder, work, 0, [])
            assert found["mean_tokens"] == length, found
            seconds = statistics.median(found["seconds"])
            runs.append({"response_tokens": length, "seconds": round(seconds, 3), "parts": found["parts"]})
            print(length, round(seconds, 2), file=sys.stderr, flush=True)
    points = [(PROMPT + run["response_tokens"], run["seconds"]) for run in runs]
    result = {
        "benchmark": "growth",
        "command": "python benchmarks/growth.py " + " ".join(sys.argv[1:]),
        "unit": "exponent of the seconds of an update in the tokens of a prompt and its response",
        "exponent": round(slope(points), 3),
        "exponent_of_the_last_two": round(slope(points[-2:]), 3),
        "shape": options.shape,
        "batch": batch,
        "prompt_tokens": PROMPT,
        "epochs": EPOCHS,
        "runs": runs,
        **machine(),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
