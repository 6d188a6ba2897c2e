"""Reward stage: reward modelling with QLoRA on TRL's RewardTrainer (Bradley-Terry loss)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from lite_c2f.backbone.adapters import write_adapter
from lite_c2f.backbone.load import load_model, load_tokenizer
from lite_c2f.backbone.machine import pick_device, pick_dtype
from lite_c2f.backbone.padding import padding_id, padding_note, with_padding_token
from lite_c2f.backbone.roles import lora_config
from lite_c2f.config.settings import Config, resolved
from lite_c2f.data.encode import pad_right
from lite_c2f.errors import DataError, NonFiniteError
from lite_c2f.reward.checkpoints import REWARD
from lite_c2f.reward.encode_pairs import encode_pairs
from lite_c2f.reward.score import read_at_last_token
from lite_c2f.reward.trainer import LogCallback, StepCallback, shared_arguments, train_stage
from lite_c2f.runs.corpus import Corpus, training_pairs
from lite_c2f.runs.model_pair import ModelPair, adapter_base
from lite_c2f.runtime import distributed
from lite_c2f.runtime.batch_size import BatchSize, groups_by_length, retry_smaller
from lite_c2f.runtime.signals import graceful
from lite_c2f.storage.checkpoints import CheckpointStore
from lite_c2f.storage.files import publish_folder, read_json, write_json


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
    log = LogCallback(REWARD, config, run, tracker, progress, on_message, force=force)

    def build(micro_batch: int, scratch: str) -> RewardTrainer:
        base = load_model(models.base, config, auto_class=AutoModelForSequenceClassification, num_labels=1)
        read_at_last_token(base)
        return RewardTrainer(
            model=get_peft_model(base, lora_config(config.lora, "SEQ_CLS")),
            args=trainer_arguments(config, device, scratch, len(train.rows), micro_batch),
            train_dataset=Dataset.from_list(train.rows),
            data_collator=DataCollatorForPreference(padding_id(tokenizer)),
            processing_class=tokenizer,
        )

    with graceful(on_message) as interruption:
        model = train_stage(log, build, config, run, pairs_at_once, interruption)
        state = log.state
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
    shared = shared_arguments(config, config.reward, device, scratch, pairs, micro_batch)
    return RewardConfig(**shared, center_rewards_coefficient=config.reward.center or None)


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
