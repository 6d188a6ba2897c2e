"""Reward modelling with QLoRA on TRL's RewardTrainer (Bradley-Terry loss)."""

import math
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from lite_c2f.data.encode import answer_end, encode_answer, encode_prompt, pad_right
from lite_c2f.data.records import Pair
from lite_c2f.errors import DataError, NonFiniteError
from lite_c2f.reward.checkpoints import RewardState, TrainerCheckpoints
from lite_c2f.reward.score import read_at_last_token
from lite_c2f.runs.corpus import Corpus, training_pairs
from lite_c2f.runs.models import ModelPair, adapter_base
from lite_c2f.runtime import distributed
from lite_c2f.runtime.batch_size import BatchSize, groups, retry_smaller
from lite_c2f.runtime.signals import Interruption, graceful
from lite_c2f.storage.checkpoints import ROLLBACKS, SLOWER, CheckpointStore, SaveSchedule
from lite_c2f.storage.files import publish_folder, read_json, write_json
from lite_c2f.storage.metrics import Metrics

Progress = Callable[[int, int, dict[str, float]], None]


class Encoded(NamedTuple):
    """Pairs as token ids, and what was done to them on the way."""

    rows: list[dict[str, list[int]]]  # {"chosen_ids", "rejected_ids"}
    report: dict[str, int]  # pairs, turns_dropped, prompts_truncated, answers_cut, cut_off_pairs_added
    sources: list[str]  # of each row
    by_source: dict[str, int]  # pairs of each source, without those added


def train_reward(
    config: Config,
    models: ModelPair,
    corpus: Corpus,
    run: Path,
    progress: Progress | None = None,
    tracker: Any = None,
    tell: Callable[[str], None] | None = None,
    *,
    force: bool = False,
) -> dict:
    """Train the reward model and publish RUN/reward.

    Writes adapter/ (stock PEFT, SEQ_CLS; loads with AutoPeftModelForSequenceClassification) and metrics.json with the
    held-out accuracy, also of each data source, and the mean and spread that later stages normalise rewards with.
    Returns those metrics. Goes on from the newest checkpoint in RUN/reward/checkpoints; force: also from one made with
    other settings of `reward`.
    Raises ModelError when it diverges again and again.
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
    say = tell or (lambda _: None)
    if note := padding_note(tokenizer):
        say(note)
    pairs_at_once = BatchSize("reward.micro_batch", min(resolved(config.reward.micro_batch), config.reward.batch), tell)
    standing = RewardState(config, run, force=force)
    for sentence in standing.damaged:
        say(sentence)
    distributed.wait()  # until everybody has read
    if standing.damaged and distributed.is_first():
        standing.store.set_aside()
    if standing.folder is not None:
        say(f"reward model: going on after step {standing.step}, from {standing.folder}")
    log = _Report(Metrics(run, tracker), progress, standing)
    with graceful(tell) as interruption:
        while True:
            try:
                model = retry_smaller(
                    pairs_at_once,
                    lambda size: fit(
                        config, models, tokenizer, train.rows, size, run, standing, log, interruption, say
                    ),
                )
                break
            except NonFiniteError as error:
                standing.look()
                standing.rollbacks += 1
                standing.failures = 0
                if standing.rollbacks > ROLLBACKS:
                    raise
                rate = config.reward.lr * SLOWER**standing.rollbacks
                say(f"{error}: going back to step {standing.step} with a learning rate of {rate:.2g}")
        if distributed.is_first():
            rows_at_once = BatchSize("reward.micro_batch (held-out pairs)", 4 * pairs_at_once.size, tell)
            metrics = measure(
                model, held_out.rows, padding_id(tokenizer), config, device, rows_at_once, held_out.sources
            )
            metrics |= {"pairs_by_source": train.by_source, "held_out_pairs_by_source": held_out.by_source}
            metrics |= {"pairs": train.report, "held_out_pairs": held_out.report, "skipped_rows": corpus.skipped}
            metrics |= {"skipped_first": dict(corpus.first), "not_read": list(corpus.notes)}
            metrics |= {"skipped_steps": standing.skipped, "rollbacks": standing.rollbacks}
            publish(model, tokenizer, config, models, run, metrics)
        interruption.asked = any(distributed.gather(interruption.asked))  # by now published: ends after this block
    return read_json(run / "reward" / "metrics.json")


def fit(
    config: Config,
    models: ModelPair,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, list[int]]],
    micro_batch: int,
    run: Path,
    standing: RewardState,
    log: "_Report",
    interruption: Interruption,
    tell: Callable[[str], None],
) -> Any:
    """Train from where `standing` says, or begin; returns the model. What was logged after that is forgotten.

    Raises NonFiniteError when too many steps in a row, the last one, or half of all are not finite.
    """
    device = pick_device(config)
    standing.look()  # after running out of memory, or into numbers that are not finite, there may be a newer one
    torch.manual_seed(config.run.seed)
    base = load_model(models.base, config, auto_class=AutoModelForSequenceClassification, num_labels=1)
    read_at_last_token(base)
    model = get_peft_model(base, lora_config(config.lora, "SEQ_CLS"))
    scratch = run / ".trainer"  # where RUN/reward does not exist yet
    rhythm = SaveSchedule(config.run.checkpoint_every, config.run.checkpoint_minutes)
    if distributed.is_first():
        log.metrics.put_back("reward", standing.lines)
    try:
        trainer = RewardTrainer(
            model=model,
            args=trainer_arguments(config, device, str(scratch), len(rows), micro_batch),
            train_dataset=Dataset.from_list(rows),
            data_collator=DataCollatorForPreference(padding_id(tokenizer)),
            processing_class=tokenizer,
            callbacks=[log, TrainerCheckpoints(standing, scratch, rhythm, interruption, config.reward.lr, tell)],
        )
        adapters_to_float32(model)
        trainer.remove_callback(_printer())
        trainer.train(resume_from_checkpoint=None if standing.folder is None else str(standing.folder))
        steps = trainer.state.global_step
    finally:
        if distributed.is_first():
            shutil.rmtree(scratch, ignore_errors=True)
    if standing.failures or 2 * standing.left_out > steps - standing.step:
        raise NonFiniteError.because(
            f"reward model: {standing.left_out} of {steps - standing.step} steps were not finite",
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


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, config: Config, truncated: float
) -> Encoded:
    """Token ids of both sides, plus a share `truncated` of extra pairs: a chosen answer over itself cut off."""
    rng = random.Random(config.run.seed)
    rows: list[dict[str, list[int]]] = []
    sources: list[str] = []
    by_source = dict.fromkeys(sorted({pair.source for pair in pairs}), 0)
    report = {"pairs": 0, "turns_dropped": 0, "prompts_truncated": 0, "answers_cut": 0, "cut_off_pairs_added": 0}
    template, variables = config.model.prompt_template, config.model.chat_template_kwargs
    end = answer_end(tokenizer, template, variables)

    def encoded(text: str, ended: bool) -> list[int]:
        longest = config.data.max_answer_tokens
        return encode_answer(
            tokenizer, text, ended=ended, max_tokens=longest, template=template, template_kwargs=variables
        )

    for pair in pairs:
        prompt, dropped = encode_prompt(tokenizer, pair.turns, config.data.max_prompt_tokens, template, variables)
        chosen, rejected = encoded(pair.chosen, pair.chosen_ended), encoded(pair.rejected, pair.rejected_ended)
        if chosen == rejected:  # sides that differ only beyond the cut say nothing
            report["sides_equal_after_cut"] = report.get("sides_equal_after_cut", 0) + 1
            continue
        rows.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected})
        sources.append(pair.source)
        by_source[pair.source] += 1
        report["turns_dropped"] += dropped
        report["prompts_truncated"] += dropped > 0 or len(prompt) == config.data.max_prompt_tokens
        report["answers_cut"] += (pair.chosen_ended and chosen[-1] != end) + (
            pair.rejected_ended and rejected[-1] != end
        )
        if rng.random() < truncated and len(chosen) > 4 and chosen[-1] == end:
            cut = chosen[: rng.randint(2, len(chosen) - 2)]
            rows.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + cut})
            sources.append(pair.source)
            report["cut_off_pairs_added"] += 1
    report["pairs"] = len(rows) - report["cut_off_pairs_added"]
    return Encoded(rows, report, sources, by_source)


def trainer_arguments(config: Config, device: torch.device, scratch: str, pairs: int, micro_batch: int) -> RewardConfig:
    """TRL's settings from ours. Raises DataError where there are fewer pairs than processes."""
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
        save_strategy="no",  # see saves.py
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
    """Held-out accuracy (share of pairs whose chosen side scores higher), mean and spread of all scores, margin.

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
        for group in groups(order, lengths, at_once * max(lengths)):
            tokens, mask = pad_right([sides[index] for index in group], pad_id)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                logits = model(input_ids=tokens.to(device), attention_mask=mask.long().to(device)).logits
            scores[group] = logits.squeeze(-1).float().cpu()
        return scores

    both = retry_smaller(batch, score_all)
    if not bool(both.isfinite().all()):  # float16 that overflows: its loss scaler then leaves out every step
        raise NonFiniteError.because(
            "reward model: scores of held-out pairs that are not finite",
            "finite scores",
            "set model.compute_dtype=float32 or bfloat16, or lower reward.lr",
        )
    chosen, rejected = both[: len(rows)], both[len(rows) :]
    right = chosen > rejected
    of_source = {source: torch.tensor([name == source for name in sources]) for source in sorted(set(sources))}
    return {
        "accuracy": round(float(right.float().mean()), 4),
        "accuracy_by_source": {name: round(float(right[own].float().mean()), 4) for name, own in of_source.items()},
        "margin": round(float((chosen - rejected).mean()), 4),
        "mean": float(both.mean()),
        "std": max(float(both.std(unbiased=False)), 1e-6),
    }


class _Report(TrainerCallback):
    """Hands the trainer's log lines to metrics.jsonl and the terminal."""

    def __init__(self, metrics: Metrics, progress: Progress | None, standing: RewardState) -> None:
        self.metrics, self.progress, self.standing = metrics, progress, standing

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs and not self.standing.failures:  # a step that was left out has no line
            line = {name: logs[name] for name in ("loss", "accuracy", "margin", "learning_rate") if name in logs}
            line = {name: float(value) for name, value in line.items() if math.isfinite(value)}
            self.standing.lines.append({"step": state.global_step, **line})
            if distributed.is_first():
                self.metrics.write("reward", state.global_step, line)
            if self.progress:
                self.progress(state.global_step, state.max_steps, line)


def _printer():
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback
