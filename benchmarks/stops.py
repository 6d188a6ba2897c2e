"""Stop-text benchmark: what looking for stop texts costs in a sampling step, at a vocabulary of 152 thousand tokens.

The same slots take steps with a stop text and without, in turns; the middle of the ratios of neighbouring turns counts.
The model is small on purpose (hidden 256, 4 layers): in a larger one a step costs more and the look-up costs the same.
The tokenizer has a word for each of 150 thousand ids, so the table is as large as Qwen2.5's.

    python benchmarks/stops.py --out benchmarks/results/stops.json
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from models import SMALL, machine, report
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from lite_c2f.sampling import Sampling, Stops, schedule
from lite_c2f.sampling.slots import ResponseBuffer, SlotJob, Slots

VOCABULARY, SLOTS, PROMPT, STEPS = 151_936, 8, 32, 8
MARKER = "\n\nHuman:"


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with a word for each id, and the marker's letters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate([*letters, *(f"Ġw{id}" for id in range(VOCABULARY - 300))])}
    made = Tokenizer(models.BPE(words, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def slots_of(model: MistralForCausalLM, stops: Stops | None, turns: int) -> Slots:
    """Slots in flight; the first token is drawn."""
    prompts = [torch.randint(0, 255, (PROMPT,)).tolist() for _ in range(SLOTS)]
    limit = STEPS * (turns + 4)
    job = SlotJob(prompts, [limit] * SLOTS, Sampling(limit), [VOCABULARY - 1], stops, 0, range(SLOTS))
    decoder, head = schedule.decoder_and_head(model)
    slots = Slots(decoder, head, job, ResponseBuffer(job, range(SLOTS), model.device), SLOTS, PROMPT + limit)
    slots.start(range(SLOTS), range(SLOTS))
    return slots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = MistralForCausalLM(MistralConfig(vocab_size=VOCABULARY, **SMALL | {"max_position_embeddings": 2048}))
    model = model.to(device).eval()
    words = tokenizer()
    began = time.perf_counter()
    stops = Stops(words, [MARKER])
    built = time.perf_counter() - began
    with torch.no_grad():
        pair = [slots_of(model, stop, options.turns) for stop in (stops, None)]
        seconds: list[list[float]] = [[], []]
        for turn in range(options.turns + 2):
            for which in (0, 1) if turn % 2 else (1, 0):
                deepest = pair[which].snapshot().deepest
                began = time.perf_counter()
                pair[which].advance(STEPS, deepest)
                pair[which].snapshot()
                seconds[which].append((time.perf_counter() - began) / STEPS)
        table, state = stops.on(device, VOCABULARY), torch.zeros(SLOTS, dtype=torch.long, device=device)
        drawn = torch.randint(0, VOCABULARY, (SLOTS,), device=device)
        began = time.perf_counter()
        for _ in range(200):
            state = table[state, drawn].long()
        lookup = (time.perf_counter() - began) / 200
    ratios = [with_stops / without for with_stops, without in zip(seconds[0][2:], seconds[1][2:], strict=True)]
    report(
        {
            "benchmark": "stops",
            "vocabulary": VOCABULARY,
            "slots": SLOTS,
            "step_ratio": round(statistics.median(ratios), 4),
            "step_ratio_quartiles": [round(value, 4) for value in statistics.quantiles(ratios, n=4)[::2]],
            "step_ms": round(1e3 * statistics.median(seconds[1][2:]), 3),
            "lookup_ms": round(1e3 * lookup, 4),
            "table_mib": round(stops.table.nbytes / 2**20, 1),
            "seconds_to_build": round(built, 2),
            "machine": machine(),
        },
        options.out,
    )


if __name__ == "__main__":
    main()
