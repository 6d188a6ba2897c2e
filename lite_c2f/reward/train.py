"""Reward modelling with QLoRA on TRL's RewardTrainer (Bradley-Terry loss)."""

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase, TrainerCallback
from trl import RewardConfig, RewardTrainer

from lite_c2f.backbone.adapters import write_adapter
from lite_c2f.backbone.load import load_model, load_tokenizer, pick_device, pick_dtype, uses_checkpointing
from lite_c2f.backbone.roles import lora_config
from lite_c2f.batches import BatchSize, fitting, groups
from lite_c2f.config import Config, settled
from lite_c2f.data.encode import encode_answer, encode_prompt, pad_right
from lite_c2f.data.records import Pair
from lite_c2f.errors import DataError
from lite_c2f.inputs import Corpus, ModelPair, adapter_base
from lite_c2f.runs import Metrics, publish_folder, write_json

Progress = Callable[[int, int, dict[str, float]], None]


class Encoded(NamedTuple):
    """Pairs as token ids, and what was done to them on the way."""

    rows: list[dict[str, list[int]]]  # {"chosen_ids", "rejected_ids"}
    report: dict[str, int]  # pairs, turns_dropped, prompts_truncated, answers_cut, cut_off_pairs_added


def train_reward(
    config: Config,
    models: ModelPair,
    corpus: Corpus,
    run: Path,
    progress: Progress | None = None,
    tracker: Any = None,
    tell: Callable[[str], None] | None = None,
) -> dict:
    """Train the reward model and publish RUN/reward.

    Writes adapter/ (stock PEFT, SEQ_CLS; loads with AutoPeftModelForSequenceClassification) and metrics.json with the
    held-out accuracy and the mean and spread that later stages normalise rewards with. Returns those metrics.
    """
    device = pick_device(config)
    torch.manual_seed(config.run.seed)
    tokenizer = load_tokenizer(models.base)
    train = encode_pairs(corpus.train_pairs[: config.reward.max_pairs], tokenizer, config, config.data.truncated)
    held_out = encode_pairs(corpus.held_out_pairs, tokenizer, config, truncated=0.0)
    for what, encoded in (("training", train), ("held-out", held_out)):
        if not encoded.rows:
            raise DataError.because(
                f"data: no {what} pair whose sides differ within {config.data.max_answer_tokens} tokens",
                "at least one",
                "raise data.max_answer_tokens",
            )
    pairs_at_once = BatchSize("reward.micro_batch", min(settled(config.reward.micro_batch), config.reward.batch), tell)

    def fit(micro_batch: int) -> Any:
        torch.manual_seed(config.run.seed)
        base = load_model(models.base, config, auto_class=AutoModelForSequenceClassification, num_labels=1)
        model = get_peft_model(base, lora_config(config.lora, "SEQ_CLS"))
        with tempfile.TemporaryDirectory() as scratch:
            trainer = RewardTrainer(
                model=model,
                args=trainer_arguments(config, device, scratch, len(train.rows), micro_batch),
                train_dataset=Dataset.from_list(train.rows),
                processing_class=tokenizer,
                callbacks=[_Report(Metrics(run, tracker), progress)],
            )
            adapters_to_float32(model)
            trainer.remove_callback(_printer())
            trainer.train()
        return model

    model = fitting(pairs_at_once, fit)
    rows_at_once = BatchSize("reward.micro_batch (held-out pairs)", 4 * pairs_at_once.size, tell)
    metrics = measure(model, held_out.rows, tokenizer.pad_token_id, config, device, rows_at_once)
    metrics |= {"pairs": train.report, "held_out_pairs": held_out.report, "skipped_rows": corpus.skipped}
    with publish_folder(run / "reward", replace=True) as folder:
        (folder / "adapter").mkdir()
        write_adapter(
            model,
            "default",
            folder / "adapter",
            adapter_base(config, models),
            config.model.base_revision,
            task_type="SEQ_CLS",
        )
        tokenizer.save_pretrained(folder / "adapter")
        write_json(folder / "metrics.json", metrics)
    return metrics


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, config: Config, truncated: float
) -> Encoded:
    """Token ids of both sides, plus a share `truncated` of extra pairs: a chosen answer over itself cut off."""
    rng = random.Random(config.run.seed)
    rows = []
    report = {"pairs": 0, "turns_dropped": 0, "prompts_truncated": 0, "answers_cut": 0, "cut_off_pairs_added": 0}
    longest = config.data.max_answer_tokens
    for pair in pairs:
        prompt, dropped = encode_prompt(
            tokenizer, pair.turns, config.data.max_prompt_tokens, template=config.model.prompt_template
        )
        chosen = encode_answer(tokenizer, pair.chosen, ended=pair.chosen_ended, max_tokens=longest)
        rejected = encode_answer(tokenizer, pair.rejected, ended=pair.rejected_ended, max_tokens=longest)
        if chosen == rejected:  # sides that differ only beyond the cut say nothing
            report["sides_equal_after_cut"] = report.get("sides_equal_after_cut", 0) + 1
            continue
        rows.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected})
        report["turns_dropped"] += dropped
        report["prompts_truncated"] += dropped > 0 or len(prompt) == config.data.max_prompt_tokens
        eos = tokenizer.eos_token_id
        report["answers_cut"] += (pair.chosen_ended and chosen[-1] != eos) + (
            pair.rejected_ended and rejected[-1] != eos
        )
        if rng.random() < truncated and len(chosen) > 4 and chosen[-1] == eos:
            cut = chosen[: rng.randint(2, len(chosen) - 2)]
            rows.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + cut})
            report["cut_off_pairs_added"] += 1
    report["pairs"] = len(rows) - report["cut_off_pairs_added"]
    return Encoded(rows, report)


def trainer_arguments(config: Config, device: torch.device, scratch: str, pairs: int, micro_batch: int) -> RewardConfig:
    """TRL's settings from ours."""
    batch = min(config.reward.batch, pairs)
    micro_batch = next(size for size in range(min(micro_batch, batch), 0, -1) if batch % size == 0)
    accumulation = batch // micro_batch
    steps = max(1, round(config.reward.epochs * pairs / (micro_batch * accumulation)))
    return RewardConfig(
        output_dir=scratch,
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=config.reward.lr,
        warmup_steps=round(config.reward.warmup * steps),
        lr_scheduler_type="linear",
        center_rewards_coefficient=config.reward.center or None,
        max_length=None,
        gradient_checkpointing=uses_checkpointing(config, device),
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=pick_dtype(config, device) == torch.bfloat16,
        fp16=pick_dtype(config, device) == torch.float16,
        use_cpu=device.type == "cpu",
        seed=config.run.seed,
        logging_steps=max(1, steps // 50),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def adapters_to_float32(model: torch.nn.Module) -> None:
    """Undo the trainer's cast of adapters to bfloat16.

    Under QLoRA TRL casts them, where an AdamW step at lr 1e-5 leaves most of lora_A unchanged, and a float32 CPU model
    then fails on mixed types.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def measure(
    model: Any,
    rows: Sequence[dict[str, list[int]]],
    pad_id: int,
    config: Config,
    device: torch.device,
    batch: BatchSize,
) -> dict:
    """Held-out accuracy (share of pairs whose chosen side scores higher), mean and spread of all scores, margin."""
    model.eval()
    dtype = pick_dtype(config, device)
    sides = [row[side] for side in ("chosen_ids", "rejected_ids") for row in rows]
    lengths = [len(side) for side in sides]

    @torch.no_grad()
    def score_all(at_once: int) -> torch.Tensor:
        scores = torch.empty(len(sides))
        order = sorted(range(len(sides)), key=lambda index: lengths[index])
        for group in groups(order, lengths, at_once * max(lengths)):
            tokens, mask = pad_right([sides[index] for index in group], pad_id)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                logits = model(input_ids=tokens.to(device), attention_mask=mask.long().to(device)).logits
            scores[group] = logits.squeeze(-1).float().cpu()
        return scores

    both = fitting(batch, score_all)
    chosen, rejected = both[: len(rows)], both[len(rows) :]
    return {
        "accuracy": round(float((chosen > rejected).float().mean()), 4),
        "margin": round(float((chosen - rejected).mean()), 4),
        "mean": float(both.mean()),
        "std": max(float(both.std(unbiased=False)), 1e-6),
    }


class _Report(TrainerCallback):
    """Hands the trainer's log lines to metrics.jsonl and the terminal."""

    def __init__(self, metrics: Metrics, progress: Progress | None) -> None:
        self.metrics, self.progress = metrics, progress
        metrics.restart("reward")

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs:
            line = {name: logs[name] for name in ("loss", "accuracy", "margin", "learning_rate") if name in logs}
            line = {name: float(value) for name, value in line.items()}
            self.metrics.write("reward", state.global_step, line)
            if self.progress:
                self.progress(state.global_step, state.max_steps, line)


def _printer():
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback
