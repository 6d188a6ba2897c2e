"""Coarse stage by DPO (Rafailov 2023, arXiv 2305.18290) on TRL's DPOTrainer, to compare PPO with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from lite_c2f.backbone.adapters import write_adapter
from lite_c2f.backbone.load import load_model, load_tokenizer
from lite_c2f.backbone.machine import pick_device
from lite_c2f.backbone.padding import padding_id
from lite_c2f.backbone.roles import lora_config
from lite_c2f.config.settings import Config, resolved
from lite_c2f.errors import DataError, RunError
from lite_c2f.reward.checkpoints import DPO
from lite_c2f.reward.encode_pairs import encode_pairs
from lite_c2f.reward.trainer import LogCallback, StepCallback, shared_arguments, train_stage
from lite_c2f.runs.corpus import Corpus, training_pairs
from lite_c2f.runs.model_pair import ModelPair, adapter_base
from lite_c2f.runtime import distributed
from lite_c2f.runtime.batch_size import BatchSize
from lite_c2f.runtime.signals import graceful
from lite_c2f.storage.checkpoints import CheckpointStore
from lite_c2f.storage.files import publish_folder, read_json, write_json

# The trainer always tokenises the dataset it is built with. It is built with this one; ours, tokenised, replaces it.
_PLACEHOLDER = {"prompt": ".", "chosen": ".", "rejected": "."}


def train_dpo(
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
    """DPO of the base model on the reward model's preference pairs; publishes RUN/coarse.

    loss = -log sigmoid(beta * ((log pi - log ref)(chosen) - (log pi - log ref)(rejected))), log-probabilities summed
    over the answer's tokens; the reference is the base with adapters off. Writes adapter/ (stock PEFT, CAUSAL_LM) and
    metrics.json, and returns those metrics. Raises RunError without a reward model, which later scores the comparison.
    """
    if not (run / "reward" / "metrics.json").is_file():
        raise RunError.because(f"'{run}' has no reward model", "RUN/reward", "train with --stage reward first")
    settings, device, on_message = config.coarse.dpo, pick_device(config), on_message or (lambda _: None)
    tokenizer = load_tokenizer(models.base)
    pairs = encode_pairs(training_pairs(corpus, config), tokenizer, config, config.data.truncated)
    rows = [split_prompt(row, length) for row, length in zip(pairs.rows, pairs.prompt_tokens, strict=True)]
    if not rows:
        raise DataError.because(
            f"data: no training pair whose sides differ within {config.data.max_answer_tokens} tokens",
            "at least one",
            "raise data.max_answer_tokens",
        )
    batch = BatchSize("coarse.dpo.micro_batch", min(resolved(settings.micro_batch), settings.batch), on_message)
    log = LogCallback(DPO, config, run, tracker, progress, on_message, force=force)

    def build(micro_batch: int, output_dir: str) -> DPOTrainer:
        shared = shared_arguments(config, settings, device, output_dir, len(rows), micro_batch)
        base: Any = load_model(models.base, config)
        trainer = DPOTrainer(
            model=base,  # not a PeftModel, to which it would add a second adapter
            args=DPOConfig(**shared, beta=settings.beta, max_grad_norm=config.coarse.max_grad_norm),
            train_dataset=Dataset.from_list([_PLACEHOLDER]),
            data_collator=DataCollatorForPreference(padding_id(tokenizer)),
            processing_class=tokenizer,
            peft_config=lora_config(config.lora, "CAUSAL_LM"),
        )
        trainer.train_dataset = Dataset.from_list(rows)
        return trainer

    with graceful(on_message) as interruption:
        model = train_stage(log, build, config, run, batch, interruption)
        if distributed.is_first():
            last, state = log.state.lines[-1], log.state
            metrics = {"algorithm": "dpo", "steps": len(state.lines)}
            metrics |= {f"{name}_last": last[name] for name in ("loss", "accuracy", "margin")}
            metrics |= {"pairs": pairs.report, "skipped": state.skipped, "rollbacks": state.rollbacks}
            with publish_folder(run / "coarse" / "adapter", replace=True) as folder:
                write_adapter(model, "default", folder, adapter_base(config, models), config.model.base_revision)
            write_json(run / "coarse" / "metrics.json", metrics)
            CheckpointStore(run / "coarse" / "checkpoints").clear()
        interruption.requested = any(distributed.gather(interruption.requested))
    return read_json(run / "coarse" / "metrics.json")


def split_prompt(row: dict[str, list[int]], length: int) -> dict[str, list[int]]:
    """The ids of the prompt, and both sides without it. length: of the prompt, in tokens.

    >>> split_prompt({"chosen_ids": [1, 2], "rejected_ids": [1, 3]}, 1)
    {'prompt_ids': [1], 'chosen_ids': [2], 'rejected_ids': [3]}
    """
    chosen, rejected = row["chosen_ids"], row["rejected_ids"]
    return {"prompt_ids": chosen[:length], "chosen_ids": chosen[length:], "rejected_ids": rejected[length:]}
