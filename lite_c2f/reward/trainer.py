"""Training of a stage on a TRL trainer: checkpoints, rollback, smaller micro-batches, log lines, a stop signal."""

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from lite_c2f.backbone.machine import pick_dtype, uses_checkpointing
from lite_c2f.config.settings import Config, Dpo, Reward
from lite_c2f.errors import DataError, NonFiniteError
from lite_c2f.reward.checkpoints import TrainerCheckpoints, TrainerStage, TrainerStageState
from lite_c2f.runtime import distributed
from lite_c2f.runtime.batch_size import BatchSize, retry_smaller
from lite_c2f.runtime.signals import Interruption
from lite_c2f.storage.checkpoints import LR_FACTOR, ROLLBACKS, SaveSchedule
from lite_c2f.storage.metrics import Metrics

StepCallback = Callable[[int, int, dict[str, float]], None]  # (step, steps, line of metrics.jsonl)
Build = Callable[[int, str], Trainer]  # (micro-batch, output folder) -> the trainer, on a new model


class LogCallback(TrainerCallback):
    """Callback that writes the trainer's log lines to metrics.jsonl and the terminal; holds the stage's state."""

    def __init__(
        self,
        stage: TrainerStage,
        config: Config,
        run: Path,
        tracker: Any,
        progress: StepCallback | None,
        on_message: Callable[[str], None],
        *,
        force: bool,
    ) -> None:
        self.metrics, self.progress, self.on_message = Metrics(run, tracker), progress, on_message
        self.stage, self.state, self._began = (
            stage,
            TrainerStageState(stage, config, run, force=force),
            time.perf_counter(),
        )
        self.state.resume(on_message)

    def on_step_begin(self, args, state, control, **_):
        self._began = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs and not self.state.failures:  # a skipped step has no line
            line = {name: float(logs[key]) for key, name in self.stage.fields.items() if key in logs}
            line = {name: value for name, value in line.items() if math.isfinite(value)}
            if self.stage.name == "coarse":
                line["seconds"] = round(time.perf_counter() - self._began, 3)
            self.state.lines.append({"step": state.global_step, **line})
            if distributed.is_first():
                self.metrics.write(self.stage.name, state.global_step, line)
            if self.progress:
                self.progress(state.global_step, state.max_steps, line)


def train_stage(
    log: LogCallback, build: Build, config: Config, run: Path, batch: BatchSize, interruption: Interruption
) -> Any:
    """Train from the newest checkpoint, or from the start; returns the model.

    Starts again with a smaller micro-batch when memory runs out, and from the last checkpoint with a lower learning
    rate when steps are not finite. Raises NonFiniteError when that happens more than ROLLBACKS times.
    """
    state, stage = log.state, log.stage
    lr = stage_settings(stage, config).lr
    while True:
        try:
            return retry_smaller(batch, lambda size: fit(log, build, config, run, size, interruption))
        except NonFiniteError as error:
            state.read_newest()
            state.rollbacks += 1
            state.failures = 0
            if state.rollbacks > ROLLBACKS:
                raise
            rate = lr * LR_FACTOR**state.rollbacks
            log.on_message(f"{error}: going back to step {state.step} with a learning rate of {rate:.2g}")


def fit(log: LogCallback, build: Build, config: Config, run: Path, micro_batch: int, interruption: Interruption) -> Any:
    """Train from the checkpoint of the state, or from the start; returns the model. Log lines after it are removed.

    Raises NonFiniteError when too many steps in a row, the last one, or half of all are not finite.
    """
    state, stage = log.state, log.stage
    state.read_newest()  # an earlier attempt, which ran out of memory or diverged, may have saved one
    torch.manual_seed(config.run.seed)
    scratch = run / ".trainer"  # where the stage's folder does not exist yet
    schedule = SaveSchedule(config.run.checkpoint_every, config.run.checkpoint_minutes)
    lr = stage_settings(stage, config).lr
    if distributed.is_first():
        log.metrics.put_back(stage.name, state.lines)
    try:
        trainer = build(micro_batch, str(scratch))
        model: Any = trainer.model
        adapters_to_float32(model)
        trainer.add_callback(log)
        trainer.add_callback(TrainerCheckpoints(state, scratch, schedule, interruption, lr, log.on_message))
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=None if state.folder is None else str(state.folder))
        steps = trainer.state.global_step
    finally:
        if distributed.is_first():
            shutil.rmtree(scratch, ignore_errors=True)
    if state.failures or 2 * state.skipped_since > steps - state.step:
        raise NonFiniteError.because(
            f"{stage.label}: {state.skipped_since} of {steps - state.step} steps were not finite",
            f"a {stage.label} that has learned",
            f"lower {stage.setting}.lr, and look at the data",
        )
    return model


def stage_settings(stage: TrainerStage, config: Config) -> Reward | Dpo:
    """The section of the configuration with the stage's learning rate and batch."""
    return config.reward if stage.name == "reward" else config.coarse.dpo


def shared_arguments(
    config: Config, settings: Reward | Dpo, device: torch.device, scratch: str, pairs: int, micro_batch: int
) -> dict[str, Any]:
    """Arguments of any TRL trainer on pairs. Raises DataError where there are fewer pairs than processes."""
    if pairs < distributed.world():
        raise DataError.because(
            f"{pairs} training pairs for {distributed.world()} processes",
            "at least one pair for each process",
            "add data, or start fewer processes",
        )
    batch = min(settings.batch, pairs) // distributed.world()  # of one process
    micro_batch = next(size for size in range(min(micro_batch, batch), 0, -1) if batch % size == 0)
    accumulation = batch // micro_batch
    steps = max(1, round(settings.epochs * pairs / (batch * distributed.world())))
    return {
        "output_dir": scratch,
        "max_steps": steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": settings.lr,
        "warmup_steps": round(settings.warmup * steps),
        "lr_scheduler_type": "linear",
        "max_length": None,
        "gradient_checkpointing": uses_checkpointing(config, device),
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": pick_dtype(config, device) == torch.bfloat16,
        "fp16": pick_dtype(config, device) == torch.float16,
        "use_cpu": device.type == "cpu",
        "ddp_find_unused_parameters": False,
        "seed": config.run.seed,
        "logging_steps": 1,  # its sums of several steps would not survive a checkpoint between them
        "save_strategy": "no",  # see checkpoints.py
        "report_to": "none",
        "disable_tqdm": True,
    }


def adapters_to_float32(model: torch.nn.Module) -> None:
    """Undo the trainer's cast of adapters to bfloat16.

    Under QLoRA TRL casts them, where an AdamW step at lr 1e-5 leaves most of lora_A unchanged, and a float32 CPU model
    then fails on mixed types.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
