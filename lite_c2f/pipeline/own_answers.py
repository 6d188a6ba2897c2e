"""Answers of SmolLM2 to the embedded questions, sampled anew; preference pairs are made of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lite_c2f.backbone.load import load_tokenizer
from lite_c2f.backbone.padding import padding_id
from lite_c2f.config.settings import Model
from lite_c2f.data.encode import encode_chat, encode_prompt
from lite_c2f.data.records import Turn
from lite_c2f.gguf import unpacked
from lite_c2f.runtime.progress import ProgressSink, SilentSink
from lite_c2f.sampling import Sampling, Stops, sample
from lite_c2f.smollm import SMOLLM
from lite_c2f.smollm.data import CHAT, LIMIT, SAMPLING_GRID, SampledAnswer, all_questions, pairs_of
from lite_c2f.smollm.questions import CheckedQuestion
from lite_c2f.storage.files import write_jsonl
from lite_c2f.storage.results import ResultCache

PROMPT_TOKENS = 512
PART = 64  # questions that are answered, and stored, at once


def fresh_pairs(folder: Path, sink: ProgressSink | None = None) -> Path:
    """Preference pairs of newly sampled answers, as FOLDER/pairs.jsonl; an hour on two cores.

    folder: its own, since a run directory has to be empty before a run begins. Answers are stored in
    FOLDER/answers.jsonl, from which an interrupted call resumes.
    """
    file = folder / "pairs.jsonl"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        trained, held_out = all_questions()
        answers = fresh_answers(folder / "answers.jsonl", [*trained, *held_out], sink or SilentSink())
        rows = []
        for pair in pairs_of([*trained, *held_out], answers):
            row = pair._asdict()
            rows.append({"prompt": row.pop("turns")[0].text, **{k: v for k, v in row.items() if k != "source"}})
        write_jsonl(file, rows)
    return file


def fresh_answers(file: Path, questions: Sequence[CheckedQuestion], sink: ProgressSink) -> list[SampledAnswer]:
    """One answer to each question for each form and temperature of `SAMPLING_GRID`. file: stores them meanwhile."""
    cache = ResultCache(file, {"questions": [question.text for question in questions], "limit": LIMIT})
    parts = [(*how, start) for how in SAMPLING_GRID for start in range(0, len(questions), PART)]
    sink.on_stage("answers", len(parts), "parts")
    model = None
    answers: list[SampledAnswer] = []
    for number, (form, temperature, start) in enumerate(parts, 1):
        name = f"{form} {temperature} {start}"
        if cache.get(name) is None:
            model = model or _load()
            numbers = range(start, min(start + PART, len(questions)))
            part = sample_answers(model, questions, numbers, form, temperature, sink.on_tokens)
            cache.put(name, [list(answer) for answer in part])
        answers += [SampledAnswer(*values) for values in cache.get(name)]
        sink.on_step(number, {})
    return answers


def _load() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    folder = str(unpacked(SMOLLM))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    return model.to(device).eval(), load_tokenizer(folder)


@torch.no_grad()
def sample_answers(
    loaded: tuple[Any, Any],
    questions: Sequence[CheckedQuestion],
    numbers: Sequence[int],
    form: str,
    temperature: float,
    on_tokens: Callable[[int], None] | None = None,
) -> list[SampledAnswer]:
    """One answer to each of the questions of these numbers, by the model's unquantised weights in float32.

    form: `plain` (`Human:`, `Assistant:`) or `chat` (its own template). An answer's random numbers follow from its
    question's number and the temperature.
    """
    model, tokenizer = loaded
    turns = [[Turn("human", questions[number].text)] for number in numbers]
    encode = encode_chat if form == CHAT else lambda *of: encode_prompt(*of)[0]
    responses = sample(
        model,
        [encode(tokenizer, question, PROMPT_TOKENS) for question in turns],
        Sampling(LIMIT, temperature, seed=int(100 * temperature)),
        eos_ids=[tokenizer.eos_token_id],
        stops=None if form == CHAT else Stops(tokenizer, Model().stop),
        pad_id=padding_id(tokenizer),
        batch=PART,
        row_ids=numbers,
        on_tokens=on_tokens,
    )
    texts = (tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in responses.text)
    return [
        SampledAnswer(questions[number].text, form, temperature, text, finish != "limit")
        for number, text, finish in zip(numbers, texts, responses.finish, strict=True)
    ]
