"""Checkpoints of a stage on a TRL trainer: its own, published whole; steps that are not finite are skipped."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback

from lite_c2f.config.settings import Config
from lite_c2f.errors import NonFiniteError
from lite_c2f.runtime import distributed
from lite_c2f.runtime.signals import Interruption
from lite_c2f.storage.checkpoints import FORMAT, LR_FACTOR, SKIPS, CheckpointStore, SaveSchedule, check_identity
from lite_c2f.storage.files import read_json, write_json

STATE_FILE = "run.json"
REQUIRED_FILES = (STATE_FILE, "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


class TrainerStage(NamedTuple):
    """What tells the stages on a TRL trainer apart."""

    name: str  # of the folder and of the lines in metrics.jsonl
    label: str  # in messages
    setting: str  # section of the configuration with its learning rate
    sections: tuple[str, ...]  # of the configuration, which a checkpoint depends on
    fields: dict[str, str]  # the trainer's name of a figure: that in metrics.jsonl


REWARD = TrainerStage(
    "reward",
    "reward model",
    "reward",
    ("model", "data", "lora", "reward"),
    {name: name for name in ("loss", "accuracy", "margin", "learning_rate")},
)
DPO = TrainerStage(
    "coarse",
    "coarse actor",
    "coarse.dpo",
    ("model", "data", "lora", "reward", "coarse"),
    {
        "loss": "loss",
        "rewards/accuracies": "accuracy",
        "rewards/margins": "margin",
        "rewards/chosen": "chosen_reward",
        "rewards/rejected": "rejected_reward",
        "learning_rate": "learning_rate",
    },
)


class TrainerStageState:
    """State of the stage: the checkpoint to resume from, its step and log lines, and the steps skipped so far."""

    def __init__(self, stage: TrainerStage, config: Config, run: Path, *, force: bool = False) -> None:
        self.stage = stage
        self.store = CheckpointStore(run / stage.name / "checkpoints", config.run.keep_checkpoints, REQUIRED_FILES)
        self.identity = config.identity(stage.sections) | {"processes": distributed.world()}
        self.step = self.rollbacks = self.skipped = 0
        self.failures = self.skipped_since = 0  # steps skipped in a row, and since the checkpoint
        self.lines: list[dict[str, Any]] = []  # of metrics.jsonl
        self.damaged = self.read_newest()
        if self.folder is None:
            return
        saved, restart = (
            read_json(self.folder / STATE_FILE),
            f"remove '{self.store.folder}' to begin the {stage.name} stage anew",
        )
        before, file_format = saved.get("identity"), saved.get("format")
        forcible = (stage.name, "reward", "data", "processes")
        check_identity(self.folder, file_format, before, self.identity, restart, force=force, forcible=forcible)
        self.rollbacks, self.skipped = saved["rollbacks"], saved["skipped"]

    def resume(self, on_message: Callable[[str], None]) -> None:
        """Report the checkpoint to resume from, if there is one, and the damaged ones, which are set aside."""
        for message in self.damaged:
            on_message(message)
        distributed.wait()  # until all processes have read them
        if self.damaged and distributed.is_first():
            self.store.set_aside()
        if self.folder is not None:
            on_message(f"{self.stage.label}: going on after step {self.step}, from {self.folder}")

    def read_newest(self) -> list[str]:
        """Find the newest undamaged checkpoint; returns a message for each newer one that is damaged."""
        self.folder, damaged = self.store.newest_folder()
        saved: dict[str, Any] = read_json(self.folder / STATE_FILE) if self.folder is not None else {"step": 0}
        self.step, self.lines, self.skipped_since = saved["step"], saved.get("lines", []), 0
        return damaged


class TrainerCheckpoints(TrainerCallback):
    """Callback that publishes the trainer's checkpoints: when one is due, and after a stop signal.

    scratch: the trainer's output folder, on the same disk as the checkpoints, so that a rename publishes.
    """

    def __init__(
        self,
        state: TrainerStageState,
        scratch: Path,
        schedule: SaveSchedule,
        interruption: Interruption,
        lr: float,
        on_message: Callable[[str], None],
    ) -> None:
        self._state, self._scratch, self._schedule, self._interruption = state, scratch, schedule, interruption
        self._lr, self._stop_asked, self._on_message = lr, False, on_message

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **_):
        """Set the learning rate: a checkpoint brings the one it was made with, which a rollback or `force` changes."""
        rate = self._lr * LR_FACTOR**self._state.rollbacks
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        schedule.base_lrs = [rate] * len(schedule.base_lrs)
        for group, shape in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
            group["initial_lr"] = rate
            group["lr"] = rate * shape(schedule.last_epoch)

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        """Skip a step whose gradient is not finite; raises NonFiniteError after SKIPS in a row.

        In float16 the trainer's loss scaler skips such steps itself.
        """
        grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
        norms = torch.stack(torch._foreach_norm(grads)) if grads else torch.zeros(1)
        stage_state = self._state
        if args.fp16 or bool(norms.isfinite().all()):
            stage_state.failures = 0
            return
        stage_state.failures += 1
        stage_state.skipped += 1
        stage_state.skipped_since += 1
        self._on_message(
            f"{stage_state.stage.label}, step {state.global_step + 1} skipped "
            f"({stage_state.failures} in a row): not finite"
        )
        for weight in model.parameters():
            weight.grad = None  # AdamW skips weights without a gradient
        if stage_state.failures >= SKIPS:
            raise NonFiniteError.because(
                f"{self._state.stage.label}, step {state.global_step + 1}: not finite {SKIPS} times in a row",
                "finite gradients",
                f"lower {self._state.stage.setting}.lr, and look at the data",
            )

    def on_step_end(self, args, state, control, **_):
        last = state.global_step >= state.max_steps  # the stage is published next
        replies = distributed.gather((self._interruption.requested, self._schedule.due(state.global_step)))
        self._stop_asked = any(stop_asked for stop_asked, _ in replies)
        finite = self._state.failures == 0  # a checkpoint after a skipped step could hold what caused it
        control.should_save = (self._stop_asked or (replies[0][1] and finite)) and not last

    def on_save(self, args, state, control, **_):
        distributed.wait()  # every process wrote the state of its generators
        saved = self._scratch / f"checkpoint-{state.global_step}"
        if distributed.is_first():
            shutil.rmtree(saved / "ref", ignore_errors=True)
            (saved / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing reads
            stage_state = self._state
            content = {"format": FORMAT, "step": state.global_step, "rollbacks": stage_state.rollbacks}
            content |= {"skipped": stage_state.skipped, "lines": stage_state.lines, "identity": stage_state.identity}
            write_json(saved / STATE_FILE, content)
            stage_state.store.publish(state.global_step, lambda folder: _move(saved, folder))
            shutil.rmtree(saved, ignore_errors=True)
        distributed.wait()
        self._schedule.saved()
        if self._stop_asked:
            raise KeyboardInterrupt


def _move(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.move(path, target / path.name)
