"""Three panes of the chat against the slowest of them alone, on models that are loaded already; a part of gpu.py."""

import time
from statistics import median
from typing import Any

import torch
from gpu_run import GpuRun
from models import PAD

PANES = {"coarse": (0, 1.0), "fine": (1, 0.75), "baseline": (1, 0.0)}  # model, ratio of the residue


def chat_panes(gpu: GpuRun, roles: Any) -> None:
    """Tokens at equal lengths, in turn; the first round warms up. Two NF4 models are read in one pass."""
    from lite_c2f.backbone.load import load_model
    from lite_c2f.backbone.multi_model import MultiModel, residue_of
    from lite_c2f.chat.rows import AnswerRow, AnswerRows
    from lite_c2f.sampling import Sampling

    tokens, rounds = (16, 3) if gpu.tiny else (128, 4)
    prompt = torch.randint(3, gpu.vocabulary, (gpu.prompt,), generator=torch.Generator().manual_seed(4)).tolist()
    gpu.fresh()
    instruct = load_model(str(gpu.folder), gpu.config())
    model = MultiModel([roles.model, instruct], residue_of(roles.model, "policy"))

    def seconds(names: list[str]) -> tuple[float, float]:
        """(to the first token of all, to the last)."""
        rows = AnswerRows(model, PAD)
        began = time.perf_counter()
        rows.start([AnswerRow(*PANES[name], prompt, Sampling(tokens), eos_ids=[]) for name in names])
        first = time.perf_counter() - began
        while rows.rows:
            rows.step()
        return first, time.perf_counter() - began

    kinds = {name: [name] for name in PANES} | {"three": list(PANES)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, chosen in kinds.items():
            times[name].append(seconds(chosen))
    last = {name: median(whole for _, whole in pairs[1:]) for name, pairs in times.items()}
    gpu.note(
        "chat",
        {
            "three_panes_ratio": round(last["three"] / max(last[name] for name in PANES), 3),
            "seconds": {name: round(whole, 3) for name, whole in last.items()},
            "first_tokens_s": round(median(first for first, _ in times["three"][1:]), 3),
            "tokens_per_s_of_a_pane": round(tokens / last["three"], 1),
            "tokens": tokens,
            "peak_gib": gpu.peak_gib(),
        },
    )
