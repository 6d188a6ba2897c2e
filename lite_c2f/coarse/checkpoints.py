"""Checkpoints of the PPO loop: when they are written, how a run resumes, and recovery from non-finite numbers."""

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lite_c2f.coarse.length import bounded
from lite_c2f.coarse.state import TrainState
from lite_c2f.config.loading import with_defaults
from lite_c2f.config.settings import Coarse, Config
from lite_c2f.errors import FollowerError, ModelError, NonFiniteError, RunError
from lite_c2f.reward.calls import RewardError
from lite_c2f.reward.files import content_hashes
from lite_c2f.runtime import distributed
from lite_c2f.storage.checkpoints import (
    FORMAT,
    LR_FACTOR,
    ROLLBACKS,
    SKIPS,
    STATE,
    TENSORS,
    Checkpoint,
    CheckpointStore,
    SaveSchedule,
    check_identity,
)
from lite_c2f.storage.files import filter_lines, hash_of, publish_folder, read_json, write_json
from lite_c2f.storage.metrics import Metrics

SECTIONS = ("model", "data", "lora", "reward", "coarse")
MIN_GAIN = 2.0  # standard errors by which an earlier policy has to be better than the last one measured


class CheckpointManager:
    """Checkpoints of a coarse stage: every so many updates and minutes, and after a stop signal.

    With several processes the first one writes, all of them read.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        state: TrainState,
        metrics: Metrics,
        on_message: Callable[[str], None] | None = None,
        *,
        force: bool = False,
    ) -> None:
        self._run, self._state, self._metrics, self._force = run, state, metrics, force
        self._on_message = on_message or (lambda _: None)
        self._store = store_of(run, config)
        self._schedule = SaveSchedule(config.run.checkpoint_every, config.run.checkpoint_minutes)
        self._config, self._settings = config, config.coarse
        self._identity = identity_of(config, run)
        self._failures = 0  # in a row
        self._rolled_back_at = 0  # the update that last failed and caused a rollback

    def resume(self) -> None:
        """Resume from the newest undamaged checkpoint, or start from the beginning; log lines after it are removed.

        Raises RunError naming the setting that is not what the checkpoint was made with, unless `force` is set.
        """
        checkpoint, damaged = self._store.newest()
        for message in damaged:
            self._on_message(message)
        if checkpoint is not None:
            check_newest(checkpoint, self._identity, self._settings, self._store.folder, force=self._force)
        distributed.wait()  # until all processes have read it
        if damaged and distributed.is_first():
            self._store.set_aside()
        self._restore(checkpoint)
        if checkpoint is not None:
            self._on_message(f"coarse: going on after update {checkpoint.step}, from {checkpoint.folder}")
        else:
            self._save()  # fails at once on a full disk, and the first rollback needs it

    def after_update(self, stop_asked: bool) -> None:
        """Save where a checkpoint is due. Raises KeyboardInterrupt, after saving, where `stop_asked`."""
        self._failures = 0
        if self._schedule.due(self._state.step) or stop_asked:
            self._save()
        if stop_asked:
            distributed.wait()
            raise KeyboardInterrupt

    def after_failure(self, error: NonFiniteError, stop_asked: bool) -> None:
        """Count a skipped update; after SKIPS in a row go back to a checkpoint with half the learning rates.

        When the same update fails again after a rollback, the checkpoint before is taken. Raises ModelError after
        ROLLBACKS rollbacks or without a checkpoint, and KeyboardInterrupt where `stop_asked`.
        """
        state = self._state
        self._failures += 1
        state.skipped += 1
        step = state.step + 1
        self._on_message(f"warning: update {step} skipped ({self._failures} in a row): {error}")
        if stop_asked:
            raise KeyboardInterrupt
        if self._failures < SKIPS:
            return
        self._failures = 0
        checkpoint, _ = self._store.newest()
        older = self._store.folders()[:-1]
        if checkpoint is not None and self._rolled_back_at == step and older:
            distributed.wait()  # until all processes have read it
            if distributed.is_first() and checkpoint.folder is not None:
                self._store.discard(checkpoint.folder)
            distributed.wait()
            checkpoint, _ = self._store.newest()
        self._rolled_back_at = step
        rollbacks, skipped = state.rollbacks + 1, state.skipped
        if checkpoint is None or rollbacks > ROLLBACKS:
            tried = f"after {ROLLBACKS} rollbacks" if checkpoint else "with no checkpoint to go back to"
            remedy = "lower coarse.lr and coarse.critic_lr, and see whether metrics.jsonl was odd before"
            if self._config.model.compute_dtype == "float16":
                remedy = f"set model.compute_dtype=float32 (float16 overflows in some models), or {remedy}"
            raise ModelError.because(
                f"update {step} is not finite {SKIPS} times in a row, {tried} ({error})",
                "finite numbers",
                remedy,
            )
        distributed.wait()
        self._restore(checkpoint)
        state.set_learning_rates(rollbacks)
        state.skipped = skipped
        rates = ", ".join(f"{name} {rate * LR_FACTOR**rollbacks:.2g}" for name, rate in state.learning_rates.items())
        where = f"going back to update {checkpoint.step}, with lower learning rates ({rates}) from there on"
        self._on_message(f"warning: {where}")

    def clear(self) -> None:
        """Remove all checkpoints, once the stage is published."""
        if distributed.is_first():
            self._store.clear()

    def publish_best(self) -> None:
        """Publish RUN/coarse/best/adapter, in stock PEFT format, with its step and figures in best.json.

        The best policy of the held-out evaluations where there are some; else one whose training reward was clearly
        better than that of the last one measured, if there is one.
        """
        held_out = self._state.held_out
        if held_out.best_step is not None:
            by, best_step = self._settings.best_by, held_out.best_step
            then, last = held_out.figures(best_step), held_out.evaluations[-1]
            content = {"step": best_step, "by": by, "figures": then, "last_step": last["step"]}
            self._write_best(held_out.best_weights, content | {"figures_last": last["figures"]})
            text = f"coarse: best by {by} on held-out prompts is that after update {best_step}, with "
            text += f"{then.get(by, math.nan):+.3g}"
            if last["step"] != best_step:
                text += f" (the last, after update {last['step']}, {last['figures'].get(by, math.nan):+.3g})"
            self._on_message(f"{text}: {self._run / 'coarse/best'}")
            return
        if self._state.judges is not None and self._state.judges.mix.running:
            return  # rewards of different updates are on different scales
        best = self._store.best(self._policy_rewards())
        if best is None:
            return
        lines = self._state.lines
        then, last, last_step = lines[best.step], lines[-1], len(lines) - 1
        gain = then["reward"] - last["reward"]
        error = math.sqrt((then["reward_std"] ** 2 + last["reward_std"] ** 2) / self._settings.rollouts)
        if gain <= MIN_GAIN * error:  # within what chance explains
            return
        weights = {
            key.removeprefix("policy."): value for key, value in best.tensors.items() if key.startswith("policy.")
        }
        figures = {"step": best.step, "reward": then["reward"]}
        self._write_best(weights, figures | {"reward_last": last["reward"], "reward_last_step": last_step})
        self._on_message(
            f"coarse: the policy after update {best.step} earned a mean reward of {then['reward']:+.2f}, the last one "
            f"that was measured (after update {last_step}) {last['reward']:+.2f}; the better adapter is in "
            f"{self._run / 'coarse' / 'best'}"
        )

    def _write_best(self, weights: dict[str, Tensor], figures: dict[str, Any]) -> None:
        coarse = self._run / "coarse"
        with publish_folder(coarse / "best", replace=True) as folder:
            shutil.copytree(coarse / "adapter", folder / "adapter")
            save_file(weights, folder / "adapter" / "adapter_model.safetensors")
            write_json(folder / "best.json", figures)

    @contextlib.contextmanager
    def saved_on_reward_error(self) -> Iterator[None]:
        """In the block, save the state where a reward function fails: nothing before that is lost."""
        try:
            yield
        except (RewardError, FollowerError):
            self._save()
            distributed.wait()  # a launcher ends the others when one has ended
            raise

    def _bound_limit(self) -> None:
        """Lower a checkpoint's limit to what the settings allow: under `force` that may be less."""
        before = self._state.length
        self._state.length = bounded(before, self._settings.length)
        if (now := self._state.length.limit) != before.limit:
            self._on_message(
                f"coarse: the response limit was {before.limit} tokens, now {now}, as coarse.length allows"
            )

    def _policy_rewards(self) -> dict[int, float]:
        return policy_rewards([line["reward"] for line in self._state.lines], self._config)

    def _save(self) -> None:
        if distributed.is_first():
            # else a removed run would come back with this stage alone
            if not (self._run / "reward" / "metrics.json").is_file():
                raise RunError.because(f"'{self._run}' was removed or emptied while it ran", "the run", "start it anew")
            checkpoint = self._state.checkpoint()
            checkpoint.state.update(format=FORMAT, identity=self._identity)
            self._store.save(checkpoint, self._policy_rewards())
        self._schedule.saved()

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        step = checkpoint.step if checkpoint is not None else 0
        if checkpoint is not None:
            try:
                for message in self._state.restore(checkpoint):
                    self._on_message(message)
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                got = f"'{checkpoint.folder}' does not fit this run ({type(error).__name__}: {str(error)[:120]})"
                remedy = f"remove '{self._store.folder}' to begin the coarse stage anew"
                raise RunError.because(got, "a checkpoint of it", remedy) from error
            self._bound_limit()
        if distributed.is_first():
            self._metrics.put_back("coarse", self._state.lines)
            self._metrics.put_back("held_out", self._state.held_out.lines())
            filter_lines(self._run / "coarse" / "samples.jsonl", lambda line: line["step"] <= step)
        distributed.wait()


def policy_rewards(rewards: Sequence[float], config: Config) -> dict[int, float]:
    """Mean reward of the policy in each regular checkpoint, by step. rewards: the mean reward of each update.

    Update t + 1 samples from the policy after update t, so its rewards measure the checkpoint after update t, and the
    last policy has none. Checkpoints written at a stop do not count, so that an interrupted run chooses the same best
    policy; nor do those of the critic's warm-up.

    >>> from lite_c2f.config.loading import load_config
    >>> policy_rewards([0.1, 0.5, -0.3], load_config({}, ["coarse.critic_warmup=0", "run.checkpoint_every=1"]))
    {1: 0.5, 2: -0.3}
    """
    every, warmup = config.run.checkpoint_every, config.coarse.critic_warmup
    return {step: reward for step, reward in enumerate(rewards) if step > warmup and step % every == 0}


def store_of(run: Path, config: Config) -> CheckpointStore:
    """The checkpoints of this stage on disk."""
    return CheckpointStore(run / "coarse" / "checkpoints", config.run.keep_checkpoints, (STATE, TENSORS))


def identity_of(config: Config, run: Path) -> dict[str, Any]:
    """Settings and files on which an update depends, apart from the updates before it."""
    identity = config.identity(SECTIONS)
    for key in ("updates", "token_budget"):  # no update depends on how many follow
        del identity["coarse"][key]
    numbers = read_json(run / "reward" / "metrics.json")
    file = run / "reward" / "adapter" / "adapter_model.safetensors"
    adapter = hash_of(file) if config.coarse.needs_reward_model else None
    if others := content_hashes(config.coarse.judges):
        identity["reward_sources"] = others
    return identity | {
        "processes": distributed.world(),
        "reward_model": {"adapter": adapter, "mean": numbers.get("mean"), "std": numbers.get("std")},
    }


def check_before(config: Config, run: Path, *, force: bool) -> None:
    """Raise RunError, before anything is loaded, when the newest checkpoint is of another run; see `refuse_other`."""
    store = store_of(run, config)
    folder, _ = store.newest_folder()
    if folder is not None:
        saved = json.loads((folder / STATE).read_text(encoding="utf-8"))
        checkpoint = Checkpoint(saved["step"], saved["state"], {}, folder)
        check_newest(checkpoint, identity_of(config, run), config.coarse, store.folder, force=force)


def check_newest(checkpoint: Checkpoint, now: dict[str, Any], settings: Coarse, folder: Path, *, force: bool) -> None:
    """Raise RunError unless a checkpoint is of this run and not after its last update. now: of `identity_of`."""
    restart = f"remove '{folder}' to begin the coarse stage anew"
    before, file_format = checkpoint.state.get("identity"), checkpoint.state.get("format")
    forcible = ("reward", "coarse", "data", "processes", "reward_model")  # not another model or shape of the adapters
    critic = ((with_defaults(before, now) if isinstance(before, dict) else {}).get("coarse") or {}).get("critic")
    # a shared critic has other tensors, so that `force` does not help
    if critic is not None and critic != settings.critic and "shared" in (critic, settings.critic):
        got = f"'{checkpoint.folder}' was made with coarse.critic={critic!r}, now {settings.critic!r}"
        raise RunError.because(got, "the same value", f"set it back, or {restart}")
    sources, place = before.get("reward_sources") if isinstance(before, dict) else None, checkpoint.folder or folder
    same_sources = {**now, "reward_sources": sources}
    check_identity(place, file_format, before, same_sources, restart, force=force, forcible=forcible)
    contents = now.get("reward_sources", {})
    changed = [name for name, content in (sources or {}).items() if content != contents.get(name, content)]
    if changed and not force:
        raise RunError.because(
            f"reward {', '.join(changed)}: its file is another than '{place}' was made with",
            "the same file",
            f"accept a corrected one with --force, set it back, or {restart}",
        )
    if checkpoint.step > settings.updates:
        raise RunError.because(
            f"'{checkpoint.folder}' is after {checkpoint.step} updates, coarse.updates={settings.updates}",
            "as many or more",
            f"set coarse.updates={checkpoint.step} to end there, or remove the newer ones in '{folder}'",
        )
    tokens = [line["tokens"] * settings.rollouts for line in checkpoint.state.get("lines", [])]
    if settings.token_budget is not None and sum(tokens[:-1]) >= settings.token_budget:
        raise RunError.because(
            f"'{checkpoint.folder}' is after {round(sum(tokens))} tokens, coarse.token_budget={settings.token_budget}",
            "as many or more",
            f"set coarse.token_budget={round(sum(tokens))} to end there, or remove the newer ones in '{folder}'",
        )
