"""Metrics of an update: its line of metrics.jsonl, samples of held-out prompts, warnings and progress."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lite_c2f.actors.answers import repeated_ngrams
from lite_c2f.coarse.advantage import Advantages
from lite_c2f.coarse.diagnostics import correlation, share_alike, warnings
from lite_c2f.coarse.rollout import Rollout, RolloutContext
from lite_c2f.coarse.state import TrainState
from lite_c2f.config.settings import Config
from lite_c2f.data.records import Prompt
from lite_c2f.errors import NonFiniteError
from lite_c2f.ops import explained_variance
from lite_c2f.reward.calls import RewardError
from lite_c2f.reward.mix import known
from lite_c2f.reward.score import scored_row
from lite_c2f.reward.sources import Judges, inputs_of
from lite_c2f.runtime import distributed
from lite_c2f.runtime.accelerators import peak_bytes
from lite_c2f.runtime.batch_size import BatchSize
from lite_c2f.sampling import Sampling, sample
from lite_c2f.storage.files import append_line
from lite_c2f.storage.metrics import Metrics

StepCallback = Callable[[int, int, dict[str, float]], None]  # (update, updates, line of metrics.jsonl)
MEBIBYTE = 2**20
log = logging.getLogger(__name__)


class Timer:
    """Seconds of an update, and of its sampling with scoring."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._sampled = self._updated = 0.0

    def end_sampling(self) -> None:
        self._sampled = time.perf_counter()

    def end_update(self) -> None:
        self._updated = time.perf_counter()

    def metrics(self, tokens: float) -> dict[str, float]:
        """Times of the update; tokens: sum over all responses."""
        seconds = self._updated - self._began
        return {
            "tokens_per_s": tokens / seconds,
            "sampling_seconds": self._sampled - self._began,
            "seconds": seconds,
        }


def update_metrics(
    rollout: Rollout, advantages: Advantages, losses: dict[str, float], state: TrainState
) -> dict[str, float]:
    """An update's line of metrics.jsonl, without its times. state: before the update.

    Raises NonFiniteError naming a number that is not finite.
    """
    lengths = [len(tokens) for tokens in rollout.responses.tokens]
    texts = [rollout.responses.text_tokens(row) for row in range(len(lengths))]
    line = {
        "reward": rollout.reward,
        "reward_std": float(rollout.scores.std(unbiased=False)),
        "kl": rollout.kl,
        "kl_coef": state.kl_coef,
        "limit": state.length.limit,
        "hit_limit": rollout.hit_limit,
        "tokens": sum(lengths) / len(lengths),
        **losses,
        "explained_variance": explained_variance(rollout.values, advantages.returns, rollout.mask),
        "gate": state.length.gate,
        "reward_length_correlation": correlation(rollout.scores.tolist(), lengths),
        "repeated_4gram": sum(map(repeated_ngrams, texts)) / len(texts),
        "same": share_alike(texts),
        "skipped": state.skipped,
        "sampling_gap": rollout.sampling_gap,
    }
    if state.judges is not None:
        line |= source_metrics(rollout, state.judges)
    for name, value in line.items():
        if not math.isfinite(value):
            raise NonFiniteError.because(f"{name} is {value}", "finite numbers", "lower the learning rates")
    return line


def source_metrics(rollout: Rollout, judges: Judges) -> dict[str, float]:
    """Of each source its mean score before scaling, and the share it applies to; multipliers; seconds of functions."""
    line: dict[str, float] = {}
    for name, scores in rollout.by_source.items():
        if values := known(scores):
            line[f"reward/{name}"] = sum(values) / len(values)
        if len(values) < len(scores):
            line[f"applies/{name}"] = len(values) / len(scores)
    line |= {f"multiplier/{name}": value for name, value in judges.mix.multipliers.items()}
    if any(source.function is not None for source in judges.rewards):
        line["function_seconds"] = judges.seconds
    return line


class UpdateLog:
    """Log of the coarse stage: metrics.jsonl and the tracker, samples.jsonl, warnings and progress.

    sample_prompts: token ids of the held-out prompts that samples.jsonl answers; sample_rows: the same with their data.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        state: TrainState,
        context: RolloutContext,
        tokenizer: Any,
        sample_prompts: list[list[int]],
        sample_rows: Sequence[Prompt],
        tracker: Any,
        progress: StepCallback | None,
        on_message: Callable[[str], None] | None,
    ) -> None:
        self._config, self._state, self._context, self._tokenizer = config, state, context, tokenizer
        self._sample_prompts, self._sample_rows = sample_prompts, sample_rows
        self._progress, self._on_message = progress, on_message
        self._samples_file = run / "coarse" / "samples.jsonl"
        self.metrics = Metrics(run, tracker)

    def resumed(self) -> None:
        """Report the step of a run that resumes from a checkpoint."""
        if self._progress and self._state.step:
            self._progress(self._state.step, self._state.total_updates(self._config.coarse), {})

    def log_update(self, line: dict[str, float], timer: Timer) -> None:
        """Record a finished update in the state, the files and the tracker, with its warnings and progress.

        line: as `update_metrics` returns it; the state is that after the update.
        """
        state, settings, batches = self._state, self._config.coarse, self._context.batches
        line = line | timer.metrics(line["tokens"] * settings.rollouts)
        line |= {
            "peak_memory_mib": peak_memory_mib(self._context.roles.device),
            "sampling_batch": batches.sampling.size,
            "micro_batch": batches.update.size,
        }
        state.lines.append(line)
        if distributed.is_first():
            self.metrics.write("coarse", state.step, line)
            if state.step == 1 or state.step % settings.sample_every == 0 or state.finished(settings):
                try:
                    self._write_samples()
                except (NonFiniteError, RewardError) as error:  # the next update raises the same, and handles it
                    log.warning("update %d: no samples: %s", state.step, error)
        if self._on_message:
            for warning in warnings(state.lines):
                self._on_message(f"warning: update {state.step}: {warning}")
        if self._progress:
            self._progress(state.step, state.total_updates(settings), line)

    @torch.no_grad()
    def _write_samples(self) -> None:
        """Answer the same few held-out prompts and append the texts with their rewards.

        Mean metrics alone do not show what a policy has learned to write.
        """
        roles, settings, ends, normalizer, batches, _, judges = self._context
        judges = judges or Judges.of_reward_model(normalizer)
        prompts = self._sample_prompts
        limit = settings.sample_tokens or self._state.length.limit
        with roles.sampling("policy"):
            responses = sample(
                roles.model,
                prompts,
                Sampling(limit, settings.temperature, seed=self._config.run.seed),
                eos_ids=ends.eos_ids,
                stops=ends.stops,
                pad_id=ends.pad_id,
                batch=BatchSize(
                    batches.sampling.name, batches.sampling.size
                ),  # a copy, because `sample` lowers its size
            )
        texts = [responses.text_tokens(row) for row in range(len(prompts))]
        rows = [
            scored_row(prompt, text, finish != "limit", ends.eos_id)
            for prompt, text, finish in zip(prompts, texts, responses.finish, strict=True)
        ]
        inputs = inputs_of(self._tokenizer, self._sample_rows, texts, responses.finish)
        seconds, sources = judges.seconds, tuple(judges)
        scores = judges.scores(roles, rows, inputs, self._sample_rows, ends.pad_id, batches.scoring, sources)
        judges.seconds = seconds  # those of an update are its own
        rewards = judges.mix.rewards(scores)
        for row, prompt in enumerate(prompts):
            record = {
                "step": self._state.step,
                "limit": limit,
                "prompt": self._tokenizer.decode(prompt, skip_special_tokens=True),
                "response": self._tokenizer.decode(texts[row], skip_special_tokens=True),
                "finish": responses.finish[row],
                "tokens": len(responses.tokens[row]),
                "reward": rewards[row],
            }
            if not settings.usual_rewards or settings.watch:
                record["rewards"] = {name: values[row] for name, values in scores.items()}
            append_line(self._samples_file, record)


def peak_memory_mib(device: torch.device) -> float:
    """Peak GPU memory allocated, or the process's peak resident set on a CPU, in MiB."""
    if device.type != "cpu":
        return peak_bytes(device) / MEBIBYTE
    import sys

    if sys.platform == "win32":  # has no module `resource`
        import psutil

        return psutil.Process().memory_info().peak_wset / MEBIBYTE
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBIBYTE if sys.platform == "darwin" else peak / 1024
