"""Evaluation of the policy on held-out prompts while it trains: when it is due, and what becomes of its figures."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from lite_c2f.coarse.held_out import is_due, overoptimised, record
from lite_c2f.coarse.rollout import RolloutContext, RolloutRequest, sample_responses, source_scores
from lite_c2f.coarse.state import TrainState, encode
from lite_c2f.config.settings import Config
from lite_c2f.data.records import Prompt
from lite_c2f.errors import NonFiniteError
from lite_c2f.reward.calls import Scores
from lite_c2f.reward.sources import Judges
from lite_c2f.runs.corpus import Corpus, evaluated_prompts
from lite_c2f.runtime import distributed
from lite_c2f.runtime.batch_size import BatchSize
from lite_c2f.storage.metrics import Metrics


class HeldOutEvaluation:
    """Evaluations of a coarse stage: when they are due, in its state, in metrics.jsonl, and warnings about them."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        state: TrainState,
        context: RolloutContext,
        tokenizer: Any,
        metrics: Metrics,
        on_message: Callable[[str], None] | None = None,
    ) -> None:
        self._config, self._state, self._context, self._metrics = config, state, context, metrics
        self._on_message = on_message or (lambda _: None)
        self._rows = evaluated_prompts(corpus, config)
        self._prompts = [encode(config, tokenizer, prompt) for prompt in self._rows]
        self._left_out: tuple[int, int] | None = None  # step and rollbacks of a policy that could not be evaluated
        state.held_out.key = evaluation_key(config, self._prompts)

    def evaluate_if_due(self) -> None:
        """Evaluate the policy where that is due, and keep it where it is the best.

        One with numbers that are not finite is left out, with a message: where the policy itself is broken, the next
        update fails too, and is undone. Raises RewardError where a function fails; the state is then as before.
        """
        state, settings = self._state, self._config.coarse
        held_out, step = state.held_out, state.step
        policy = step, state.rollbacks
        if policy == self._left_out or not is_due(held_out, settings, step, last=state.finished(settings)):
            return
        judges = self._context.judges
        assert judges is not None
        try:
            scores = evaluate(self._context, judges, self._prompts, self._rows, self._config.run.seed)
        except NonFiniteError as error:
            self._left_out = policy
            self._on_message(f"warning: update {step}: no evaluation on held-out prompts, and the run goes on: {error}")
            return
        if record(held_out, judges.mix, settings, step, scores):
            held_out.best_weights = state.policy()
        figures = held_out.evaluations[-1]["figures"]
        if distributed.is_first():
            self._metrics.write("held_out", step, figures)
        shown = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        self._on_message(f"update {step}, held-out prompts: {shown}")
        watched = [source.name for source in judges.watch]
        message = overoptimised(held_out.evaluations, watched)
        if message is not None and overoptimised(held_out.evaluations[:-1], watched) is None:
            self._on_message(f"warning: {message}")


def evaluation_key(config: Config, prompts: Sequence[list[int]]) -> str:
    """Hash of all that evaluations have to share to be compared: prompts, sampling, and the sources maximised."""
    settings = config.coarse
    rewards = config.identity(("coarse",))["coarse"].get("rewards")
    parts = [prompts, settings.length.largest, settings.evaluate_temperature, config.run.seed, rewards]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def evaluate(
    context: RolloutContext, judges: Judges, prompts: Sequence[list[int]], rows: Sequence[Prompt], seed: int
) -> dict[str, Scores]:
    """Answer the prompts, at the largest limit, and score every answer by every source; with tokens and endings."""
    settings = context.settings
    request = RolloutRequest(
        prompts, settings.length.largest, seed, rows=rows, temperature=settings.evaluate_temperature
    )
    size = context.batches.sampling  # a copy of it, because sampling lowers it to the number of prompts
    batches = context.batches._replace(sampling=BatchSize(size.name, size.size))
    responses = sample_responses(context._replace(on_tokens=None, batches=batches), request)
    local_rows = distributed.share(range(len(prompts)), [len(prompt) for prompt in prompts])
    scores = source_scores(context, judges, tuple(judges), prompts, responses, rows, local_rows)
    lengths: Scores = [float(len(tokens)) for tokens in responses.tokens]
    ended: Scores = [float(finish != "limit") for finish in responses.finish]
    return scores | {"mean_tokens": lengths, "share_ended": ended}
