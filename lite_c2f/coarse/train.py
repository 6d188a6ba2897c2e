"""Coarse stage: PPO with Continuous Maximization, a loop of sampling, scoring, updating and raising the limit."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lite_c2f.backbone.adapters import load_into, save_critic, save_policy
from lite_c2f.backbone.heads import ScalarHead
from lite_c2f.backbone.load import end_tokens, load_model, load_tokenizer
from lite_c2f.backbone.machine import pick_device, uses_checkpointing
from lite_c2f.backbone.padding import padding_id
from lite_c2f.backbone.roles import Roles
from lite_c2f.coarse.advantage import gae, token_rewards
from lite_c2f.coarse.checkpoints import CheckpointManager
from lite_c2f.coarse.evaluate import HeldOutEvaluation
from lite_c2f.coarse.length import advance, start
from lite_c2f.coarse.log_metrics import StepCallback, Timer, UpdateLog, update_metrics
from lite_c2f.coarse.loss import adapt_kl
from lite_c2f.coarse.loss_scale import LossScale
from lite_c2f.coarse.rollout import (
    ResponseEnds,
    Rollout,
    RolloutBatches,
    RolloutContext,
    RolloutRequest,
    sample_responses,
    score_responses,
)
from lite_c2f.coarse.state import PromptQueue, TrainState, encode
from lite_c2f.coarse.update import update
from lite_c2f.config.rewards import TRAINED
from lite_c2f.config.settings import Coarse, Config
from lite_c2f.data.encode import answer_end
from lite_c2f.errors import ConfigError, FollowerError, ModelError, NonFiniteError, RunError
from lite_c2f.reward.calls import RewardError
from lite_c2f.reward.files import Normalizer, adapter_folder
from lite_c2f.reward.sources import Judges, load_reward_models, reward_roles, role_of
from lite_c2f.runs.corpus import Corpus, sampled_prompts
from lite_c2f.runs.model_pair import ModelPair, adapter_base
from lite_c2f.runtime import distributed
from lite_c2f.runtime.signals import graceful
from lite_c2f.sampling import Stops
from lite_c2f.storage.files import write_json


def train_coarse(
    config: Config,
    models: ModelPair,
    corpus: Corpus,
    run: Path,
    progress: StepCallback | None = None,
    on_tokens: Callable[[int], None] | None = None,
    tracker: Any = None,
    on_message: Callable[[str], None] | None = None,
    *,
    force: bool = False,
) -> dict:
    """PPO with Continuous Maximization on the base model; publishes RUN/coarse.

    Needs RUN/reward. Writes adapter/ (stock PEFT, CAUSAL_LM), critic/, samples.jsonl and metrics.json; appends one
    line per update to RUN/metrics.jsonl. progress(step, updates, line) is called after every update, on_tokens(new
    tokens) while sampling, on_message(text) when a batch was halved, an update was skipped or a diagnostic
    warns. force: go on from checkpoints made with other settings of `coarse`. Returns the stage's metrics. Raises
    RunError without the reward stage's result, RewardError where a reward function fails (the state before that update
    is saved), MemoryFullError when one row is too much for the card, ModelError when it diverges repeatedly,
    ConfigError when the token budget ends it before the policy has trained.
    """
    settings = config.coarse
    tokenizer = load_tokenizer(models.base)
    roles, normalizers = prepare_roles(config, models, run)
    ends = response_ends(config, tokenizer, roles.model)
    rows = sampled_prompts(corpus, config)
    sample_prompts = [encode(config, tokenizer, prompt) for prompt in rows]
    state = initial_state(config, corpus, roles, tokenizer, on_message)
    judges = Judges.of(config, normalizers, tokenizer, on_message)
    state.judges = None if settings.usual_rewards and not settings.watch else judges
    own = normalizers.get(TRAINED) or Normalizer(0.0, 1.0)
    context = RolloutContext(roles, settings, ends, own, state.batches, on_tokens, judges)
    log = UpdateLog(config, run, state, context, tokenizer, sample_prompts, rows, tracker, progress, on_message)
    checkpoints = CheckpointManager(config, run, state, log.metrics, on_message, force=force)
    held_out = HeldOutEvaluation(config, corpus, state, context, tokenizer, log.metrics, on_message)
    checkpoints.resume()
    log.resumed()

    with graceful(on_message) as interruption, contextlib.closing(judges), checkpoints.saved_on_reward_error():
        while True:
            # 0. held-out judgement of the policy so far
            held_out.evaluate_if_due()
            if state.finished(settings):
                break
            timer, before, step = Timer(), state.snapshot(), state.step + 1
            judges.seconds, taken, mix = 0.0, state.prompts.taken, judges.mix.state()
            try:
                # 1. sample
                numbers, prompts = zip(*state.prompts.take(settings.rollouts), strict=True)
                seed = config.run.seed * 1_000_003 + step
                expected = state.response_lengths.expected(numbers)
                request = RolloutRequest(prompts, state.length.limit, seed, expected)
                responses = sample_responses(context, request)
                # 2. score
                rollout = score_responses(context, prompts, responses, state.prompts.rows(numbers))
                state.response_lengths.record(numbers, responses.tokens)
                timer.end_sampling()
                # 3. advantages
                scores = rollout.scores.clamp(-settings.reward_clip, settings.reward_clip)
                rewards = token_rewards(scores, rollout.logprobs, rollout.reference, rollout.mask, state.kl_coef)
                advantages = gae(rewards, rollout.values, rollout.mask, settings.gamma, settings.gae_lambda)
                # 4. update
                losses = update(
                    roles,
                    state.optimizers,
                    rollout,
                    advantages,
                    settings,
                    state.shuffler,
                    train_policy=step > settings.critic_warmup,
                    batches=state.batches,
                    loss_scales=state.loss_scales,
                )
                line = update_metrics(rollout, advantages, losses, state)
                check_models(roles, rollout)
                timer.end_update()
            except (RewardError, FollowerError):  # the update is not made; the state before it is saved
                state.prompts.go_to(taken)
                raise
            except NonFiniteError as error:
                state.restore_weights(before)
                judges.mix.restore(mix)
                checkpoints.after_failure(error, agree_to_stop(state, interruption.requested))
                continue
            # 5. limit
            state.length = advance(
                state.length, settings.length, rollout.reward, losses["value_loss"], rollout.hit_limit
            )
            state.kl_coef = adapt_kl(state.kl_coef, rollout.kl, settings.kl_target, settings.rollouts)
            state.step = step
            log.log_update(line, timer)
            checkpoints.after_update(agree_to_stop(state, interruption.requested))

        check_policy_trained(state, settings)
        metrics = publish(roles, config, models, run, state, checkpoints) if distributed.is_first() else {}
        checkpoints.clear()
        # All is published: a stop signal now takes effect at the end of this block.
        interruption.requested = agree_to_stop(state, interruption.requested)
    return metrics


def response_ends(config: Config, tokenizer: Any, model: Any) -> ResponseEnds:
    """End tokens of responses (the first is the one that the reward model reads), padding and stop texts."""
    end = answer_end(tokenizer, config.model.prompt_template, config.model.chat_template_kwargs)
    other_eos_ids = tuple(token for token in end_tokens(model, tokenizer, end) if token != end)
    return ResponseEnds(end, padding_id(tokenizer), Stops(tokenizer, config.model.stop), other_eos_ids)


def check_policy_trained(state: TrainState, settings: Coarse) -> None:
    """Raise ConfigError when the token budget was spent while the critic warmed up: the policy is still the base."""
    if state.step <= settings.critic_warmup:
        raise ConfigError.because(
            f"coarse.token_budget={settings.token_budget} is spent after {state.step} updates",
            f"more updates than coarse.critic_warmup={settings.critic_warmup}, in which the policy does not train",
            "raise it, or lower coarse.critic_warmup",
        )


@torch.no_grad()
def check_models(roles: Roles, rollout: Rollout) -> None:
    """Raise NonFiniteError when an update has left a policy or a critic whose forward pass is not finite.

    Checked on the shortest row of the rollout, so that no broken model becomes a checkpoint.
    """
    row = min(range(len(rollout.lengths)), key=rollout.lengths.__getitem__)
    tokens = rollout.tokens[row : row + 1, : rollout.lengths[row]]
    for role in ("policy", "critic"):
        with roles.use(role):
            outputs = roles.lm_head(roles.hidden(tokens)[:, -1]) if role == "policy" else roles.value(tokens)
        if not bool(outputs.isfinite().all()):
            raise NonFiniteError.because(
                f"the {role} after its update is not finite", "finite numbers", "lower its rate"
            )


def agree_to_stop(state: TrainState, stop_asked: bool) -> bool:
    """Whether any process received a stop signal. Raises ModelError when the processes' weights differ."""
    if distributed.world() == 1:
        return stop_asked
    replies = distributed.gather((stop_asked, state.checksum()))
    checksums = [checksum for _, checksum in replies]
    if len(set(checksums)) > 1:
        raise ModelError.because(
            f"update {state.step}: the processes' adapters differ ({checksums})",
            "the same weights everywhere",
            "start again from the last checkpoint, and use one kind of GPU and one software version",
        )
    return any(stop for stop, _ in replies)


def initial_state(
    config: Config, corpus: Corpus, roles: Roles, tokenizer: Any, on_message: Callable[[str], None] | None
) -> TrainState:
    """The state before the first update."""
    settings = config.coarse
    fused = roles.device.type == "cuda"  # the default there makes a temporary as large as the adapter
    rates = {"policy": settings.lr, "critic": settings.critic_lr}
    return TrainState(
        roles=roles,
        optimizers={
            name: torch.optim.AdamW(roles.trainable(name), lr=rate, weight_decay=0.0, fused=fused)
            for name, rate in rates.items()
        },
        shuffler=torch.Generator().manual_seed(config.run.seed),
        prompts=PromptQueue(config, corpus, tokenizer),
        batches=RolloutBatches.of(settings, on_message),
        length=start(settings.length),
        kl_coef=settings.kl_coef,
        learning_rates=rates,
        loss_scales={name: LossScale(roles.dtype) for name in rates},
    )


def prepare_roles(config: Config, models: ModelPair, run: Path) -> tuple[Roles, dict[str, Normalizer | None]]:
    """Policy, critic and reward models on one base, and the reward models' own means and deviations, by source.

    By default the critic starts as the first reward model that is maximised, on normalised rewards. A head that starts
    from zero, as without one, values everything at the mean reward.
    """
    if not (run / "reward" / "metrics.json").is_file():
        raise RunError.because(f"'{run}' has no reward model", "RUN/reward", "train with --stage reward first")
    torch.manual_seed(config.run.seed)
    base = load_model(models.base, config)
    checkpointing = uses_checkpointing(config, pick_device(config))
    shared = config.coarse.critic == "shared"
    roles = Roles(
        base,
        config.lora,
        ("policy", *(() if shared else ("critic",)), *reward_roles(config)),
        shares={"critic": "policy"} if shared else {},
        checkpointing=checkpointing,
    )
    normalizers = load_reward_models(roles, config, run)
    models_paid = (source for source in config.coarse.rewards if source.function is None and source.at_least is None)
    first = next((source for source in models_paid if source.weight > 0), None)
    if config.coarse.critic == "reward_model" and first is not None:
        load_into(roles, "critic", adapter_folder(first, run))
        mean, std = normalizers[first.name] or Normalizer(0.0, 1.0)
        roles.add_head("critic", roles.heads[role_of(first)].rescaled(mean, std))
    else:
        roles.add_head("critic", ScalarHead(roles.hidden_size))
    return roles, normalizers


def publish(
    roles: Roles, config: Config, models: ModelPair, run: Path, state: TrainState, checkpoints: CheckpointManager
) -> dict:
    """Write adapter, critic, the best earlier policy and, last, metrics.json, which says that the stage is finished."""
    lines = state.lines
    base_name, revision = adapter_base(config, models), config.model.base_revision
    save_policy(roles, "policy", run / "coarse" / "adapter", base_name, revision)
    save_critic(roles, run / "coarse" / "critic", base_name, revision)
    checkpoints.publish_best()
    metrics: dict[str, Any] = {
        "updates": len(lines),
        "limit_first": int(lines[0]["limit"]),
        "limit_last": int(lines[-1]["limit"]),
        "reward_first": lines[0]["reward"],
        "reward_last": lines[-1]["reward"],
        "kl_last": lines[-1]["kl"],
        "skipped": state.skipped,
        "rollbacks": state.rollbacks,
        "tokens_sampled": round(sum(line["tokens"] for line in lines) * config.coarse.rollouts),
    }
    if state.judges is not None:
        names = [source.name for source in config.coarse.rewards]
        metrics["rewards"] = {name: [line.get(f"reward/{name}") for line in (lines[0], lines[-1])] for name in names}
        metrics["mix"] = state.judges.mix.state()
    if state.held_out.evaluations:
        metrics["held_out"] = {"best_step": state.held_out.best_step, "evaluations": state.held_out.lines()}
        metrics["ended_early"] = state.held_out.exhausted(config.coarse.patience)
    write_json(run / "coarse" / "metrics.json", metrics)
    return metrics
