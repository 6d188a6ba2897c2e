"""Checkpoints of the reward stage: the trainer's own, published whole, and its steps that are not finite left out."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from lite_c2f import ranks
from lite_c2f.checkpoints import FORMAT, Checkpoints, Rhythm, refuse_other
from lite_c2f.errors import NonFiniteError
from lite_c2f.interrupts import Interruption
from lite_c2f.runs import read_json, write_json

OURS = "run.json"
SKIPS = 3  # steps given up in a row before going back to a checkpoint
ROLLBACKS = 3
SLOWER = 0.5  # learning rate after a rollback


class Standing:
    """Where the stage goes on: a checkpoint and its step, and how often it had to go back."""

    def __init__(self, store: Checkpoints, identity: dict[str, Any], *, force: bool = False) -> None:
        self.store, self.identity = store, identity
        self.step = self.rollbacks = self.skipped = 0
        self.damaged = self.look()
        if self.folder is None:
            return
        saved = read_json(self.folder / OURS)
        kept = {**identity, **{key: saved["identity"].get(key) for key in ("reward", "data", "processes")}}
        remedy = "set it back" + ("" if force else ", accept it with --force")
        remedy += f", or remove '{store.folder}' to begin the reward stage anew"
        refuse_other(self.folder, saved.get("format"), saved["identity"], kept if force else identity, remedy)
        self.rollbacks, self.skipped = saved["rollbacks"], saved["skipped"]

    def look(self) -> list[str]:
        """Find the newest checkpoint that is whole; returns a sentence for each newer one that is not."""
        self.folder, damaged = self.store.newest_folder()
        self.step = read_json(self.folder / OURS)["step"] if self.folder is not None else 0
        return damaged


class Saves(TrainerCallback):
    """Publishes what the trainer saves, when it is due, or when a signal asks for an end.

    scratch: the trainer's output folder, beside the checkpoints, so that a rename publishes.
    """

    def __init__(
        self, standing: Standing, scratch: Path, rhythm: Rhythm, interruption: Interruption, lr: float
    ) -> None:
        self._standing, self._scratch, self._rhythm, self._interruption = standing, scratch, rhythm, interruption
        self._lr, self._asked, self._skips = lr, False, 0

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **_):
        """A checkpoint brings the learning rate it was made with: after a rollback it has to be lower."""
        if not self._standing.rollbacks:
            return
        rate = self._lr * SLOWER**self._standing.rollbacks
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        schedule.base_lrs = [rate] * len(schedule.base_lrs)
        for group, shape in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
            group["initial_lr"] = rate
            group["lr"] = rate * shape(schedule.last_epoch)

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        """Leave out a step whose gradient is not finite; raises NonFiniteError after SKIPS in a row.

        float16 has a loss scaler, which does that by itself.
        """
        grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
        norms = torch.stack(torch._foreach_norm(grads)) if grads else torch.zeros(1)
        if args.fp16 or bool(norms.isfinite().all()):
            self._skips = 0
            return
        self._skips += 1
        self._standing.skipped += 1
        for weight in model.parameters():
            weight.grad = None  # AdamW leaves out weights without one
        if self._skips >= SKIPS:
            raise NonFiniteError.because(
                f"reward model, step {state.global_step + 1}: not finite {SKIPS} times in a row",
                "finite gradients",
                "lower reward.lr",
            )

    def on_step_end(self, args, state, control, **_):
        due = self._rhythm.due(state.global_step) and state.global_step < state.max_steps
        everyone = ranks.gather((self._interruption.asked, due))
        self._asked = any(asked for asked, _ in everyone)
        control.should_save = self._asked or everyone[0][1]

    def on_save(self, args, state, control, **_):
        ranks.wait()  # every process wrote the state of its generators
        saved = self._scratch / f"checkpoint-{state.global_step}"
        if ranks.is_first():
            shutil.rmtree(saved / "ref", ignore_errors=True)
            (saved / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing reads
            ours = {
                "format": FORMAT,
                "step": state.global_step,
                "rollbacks": self._standing.rollbacks,
                "skipped": self._standing.skipped,
                "identity": self._standing.identity,
            }
            write_json(saved / OURS, ours)
            self._standing.store.publish(state.global_step, lambda folder: _move(saved, folder))
            shutil.rmtree(saved, ignore_errors=True)
        ranks.wait()
        self._rhythm.saved()
        if self._asked:
            raise KeyboardInterrupt


def _move(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.move(path, target / path.name)
