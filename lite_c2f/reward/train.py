"""Reward stage: reward modelling with QLoRA on TRL's RewardTrainer (Bradley-Terry loss)."""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase, TrainerCallback
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from lite_c2f.backbone.adapters import write_adapter
from lite_c2f.backbone.load import load_model, load_tokenizer, pick_device, pick_dtype, uses_checkpointing
from lite_c2f.backbone.padding import padding_id, padding_note, with_padding_token
from lite_c2f.backbone.roles import lora_config
from lite_c2f.config.settings import Config, resolved
from lite_c2f.data.encode import pad_right
from lite_c2f.errors import DataError, NonFiniteError
from lite_c2f.reward.checkpoints import RewardState, TrainerCheckpoints
from lite_c2f.reward.encode_pairs import encode_pairs
from lite_c2f.reward.score import read_at_last_token
from lite_c2f.runs.corpus import Corpus, training_pairs
from lite_c2f.runs.models import ModelPair, adapter_base
from lite_c2f.runtime import distributed
from lite_c2f.runtime.batch_size import BatchSize, groups_by_length, retry_smaller
from lite_c2f.runtime.signals import Interruption, graceful
from lite_c2f.storage.checkpoints import LR_FACTOR, ROLLBACKS, CheckpointStore, SaveSchedule
from lite_c2f.storage.files import publish_folder, read_json, write_json
from lite_c2f.storage.metrics import Metrics

StepCallback = Callable[[int, int, dict[str, float]], None]  # (step, steps, line of metrics.jsonl)


def train_reward(
    config: Config,
    models: ModelPair,
    corpus: Corpus,
    run: Path,
    progress: StepCallback | None = None,
    tracker: Any = None,
    on_message: Callable[[str], None] | None = None,
    *,
    force: bool = False,
) -> dict:
    """Train the reward model and publish RUN/reward.

    Writes adapter/ (stock PEFT, SEQ_CLS; loads with AutoPeftModelForSequenceClassification) and metrics.json with the
    held-out accuracy, also of each data source, and the mean and standard deviation by which later stages normalise
    rewards. Returns those metrics. Goes on from the newest checkpoint in RUN/reward/checkpoints; force: also from one
    made with other settings of `reward`.
    Raises ModelError when it diverges repeatedly.
    """
    device = pick_device(config)
    torch.manual_seed(config.run.seed)
    tokenizer = load_tokenizer(models.base)
    train = encode_pairs(training_pairs(corpus, config), tokenizer, config, config.data.truncated)
    held_out = encode_pairs(corpus.held_out_pairs, tokenizer, config, truncated=0.0)
    for what, encoded in (("training", train), ("held-out", held_out)):
        if not encoded.rows:
            raise DataError.because(
                f"data: no {what} pair whose sides differ within {config.data.max_answer_tokens} tokens",
                "at least one",
                "raise data.max_answer_tokens",
            )
    on_message = on_message or (lambda _: None)
    if note := padding_note(tokenizer):
        on_message(note)
    pairs_at_once = BatchSize(
        "reward.micro_batch", min(resolved(config.reward.micro_batch), config.reward.batch), on_message
    )
    state = RewardState(config, run, force=force)
    state.resume(on_message)
    log = _LogCallback(Metrics(run, tracker), progress, state)
    with graceful(on_message) as interruption:
        while True:
            try:
                model = retry_smaller(
                    pairs_at_once,
                    lambda size: fit(
                        config, models, tokenizer, train.rows, size, run, state, log, interruption, on_message
                    ),
                )
                break
            except NonFiniteError as error:
                state.read_newest()
                state.rollbacks += 1
                state.failures = 0
                if state.rollbacks > ROLLBACKS:
                    raise
                rate = config.reward.lr * LR_FACTOR**state.rollbacks
                on_message(f"{error}: going back to step {state.step} with a learning rate of {rate:.2g}")
        if distributed.is_first():
            rows_at_once = BatchSize("reward.micro_batch (held-out pairs)", 4 * pairs_at_once.size, on_message)
            metrics = measure(
                model, held_out.rows, padding_id(tokenizer), config, device, rows_at_once, held_out.sources
            )
            metrics |= {"pairs_by_source": train.by_source, "held_out_pairs_by_source": held_out.by_source}
            metrics |= {"pairs": train.report, "held_out_pairs": held_out.report, "skipped_rows": corpus.skipped}
            metrics |= {"skipped_first": dict(corpus.first), "not_read": list(corpus.notes)}
            metrics |= {"skipped_steps": state.skipped, "rollbacks": state.rollbacks}
            publish(model, tokenizer, config, models, run, metrics)
        interruption.requested = any(
            distributed.gather(interruption.requested)
        )  # published by now: stops after this block
    return read_json(run / "reward" / "metrics.json")


def fit(
    config: Config,
    models: ModelPair,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, list[int]]],
    micro_batch: int,
    run: Path,
    state: RewardState,
    log: "_LogCallback",
    interruption: Interruption,
    on_message: Callable[[str], None],
) -> Any:
    """Train from the checkpoint of `state`, or from the start; returns the model. Log lines after it are removed.

    Raises NonFiniteError when too many steps in a row, the last one, or half of all are not finite.
    """
    device = pick_device(config)
    state.read_newest()  # an earlier attempt, which ran out of memory or diverged, may have saved one
    torch.manual_seed(config.run.seed)
    base = load_model(models.base, config, auto_class=AutoModelForSequenceClassification, num_labels=1)
    read_at_last_token(base)
    model = get_peft_model(base, lora_config(config.lora, "SEQ_CLS"))
    scratch = run / ".trainer"  # where RUN/reward does not exist yet
    schedule = SaveSchedule(config.run.checkpoint_every, config.run.checkpoint_minutes)
    if distributed.is_first():
        log.metrics.put_back("reward", state.lines)
    try:
        trainer = RewardTrainer(
            model=model,
            args=trainer_arguments(config, device, str(scratch), len(rows), micro_batch),
            train_dataset=Dataset.from_list(rows),
            data_collator=DataCollatorForPreference(padding_id(tokenizer)),
            processing_class=tokenizer,
            callbacks=[log, TrainerCheckpoints(state, scratch, schedule, interruption, config.reward.lr, on_message)],
        )
        adapters_to_float32(model)
        trainer.remove_callback(_printer())
        trainer.train(resume_from_checkpoint=None if state.folder is None else str(state.folder))
        steps = trainer.state.global_step
    finally:
        if distributed.is_first():
            shutil.rmtree(scratch, ignore_errors=True)
    if state.failures or 2 * state.skipped_since > steps - state.step:
        raise NonFiniteError.because(
            f"reward model: {state.skipped_since} of {steps - state.step} steps were not finite",
            "a reward model that has learned",
            "lower reward.lr, and look at the data",
        )
    return model


def publish(
    model: Any, tokenizer: PreTrainedTokenizerBase, config: Config, models: ModelPair, run: Path, metrics: dict
) -> None:
    """Write the adapter, then metrics.json, whose presence says that the stage is finished."""
    with publish_folder(run / "reward" / "adapter", replace=True) as folder:
        base, revision = adapter_base(config, models), config.model.base_revision
        write_adapter(model, "default", folder, base, revision, task_type="SEQ_CLS")
        with_padding_token(tokenizer).save_pretrained(folder)
    write_json(run / "reward" / "metrics.json", metrics)
    CheckpointStore(run / "reward" / "checkpoints").clear()


def trainer_arguments(config: Config, device: torch.device, scratch: str, pairs: int, micro_batch: int) -> RewardConfig:
    """TRL's settings for this configuration. Raises DataError where there are fewer pairs than processes."""
    if pairs < distributed.world():
        raise DataError.because(
            f"{pairs} training pairs for {distributed.world()} processes",
            "at least one pair for each process",
            "add data, or start fewer processes",
        )
    batch = min(config.reward.batch, pairs) // distributed.world()  # of one process
    micro_batch = next(size for size in range(min(micro_batch, batch), 0, -1) if batch % size == 0)
    accumulation = batch // micro_batch
    steps = max(1, round(config.reward.epochs * pairs / (batch * distributed.world())))
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
        ddp_find_unused_parameters=False,
        seed=config.run.seed,
        logging_steps=1,  # its sums of several steps would not survive a checkpoint between them
        save_strategy="no",  # see checkpoints.py
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
    sources: Sequence[str],
) -> dict:
    """Held-out accuracy (share of pairs whose chosen side scores higher), margin, mean and std of all scores.

    sources: of each row; `accuracy_by_source` has the accuracy of each.
    """
    model.eval()
    dtype = pick_dtype(config, device)
    sides = [row[side] for side in ("chosen_ids", "rejected_ids") for row in rows]
    lengths = [len(side) for side in sides]

    @torch.no_grad()
    def score_all(at_once: int) -> torch.Tensor:
        scores = torch.empty(len(sides))
        order = sorted(range(len(sides)), key=lambda index: lengths[index])
        for group in groups_by_length(order, lengths, at_once * max(lengths)):
            tokens, mask = pad_right([sides[index] for index in group], pad_id)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                logits = model(input_ids=tokens.to(device), attention_mask=mask.long().to(device)).logits
            scores[group] = logits.squeeze(-1).float().cpu()
        return scores

    both = retry_smaller(batch, score_all)
    if not bool(both.isfinite().all()):  # float16 overflow: the loss scaler then skips every step
        raise NonFiniteError.because(
            "reward model: scores of held-out pairs that are not finite",
            "finite scores",
            "set model.compute_dtype=float32 or bfloat16, or lower reward.lr",
        )
    chosen, rejected = both[: len(rows)], both[len(rows) :]
    correct = chosen > rejected
    by_source = {source: torch.tensor([name == source for name in sources]) for source in sorted(set(sources))}
    return {
        "accuracy": round(float(correct.float().mean()), 4),
        "accuracy_by_source": {
            name: round(float(correct[rows_of_source].float().mean()), 4) for name, rows_of_source in by_source.items()
        },
        "margin": round(float((chosen - rejected).mean()), 4),
        "mean": float(both.mean()),
        "std": max(float(both.std(unbiased=False)), 1e-6),
    }


class _LogCallback(TrainerCallback):
    """Callback that writes the trainer's log lines to metrics.jsonl and the terminal."""

    def __init__(self, metrics: Metrics, progress: StepCallback | None, state: RewardState) -> None:
        self.metrics, self.progress, self.state = metrics, progress, state

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs and not self.state.failures:  # a skipped step has no line
            line = {name: logs[name] for name in ("loss", "accuracy", "margin", "learning_rate") if name in logs}
            line = {name: float(value) for name, value in line.items() if math.isfinite(value)}
            self.state.lines.append({"step": state.global_step, **line})
            if distributed.is_first():
                self.metrics.write("reward", state.global_step, line)
            if self.progress:
                self.progress(state.global_step, state.max_steps, line)


def _printer():
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback
