"""The loop: sample, score, advantages, update, limit."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lite_c2f.actors.answers import repeated_ngrams
from lite_c2f.backbone.adapters import load_into, save_critic, save_policy
from lite_c2f.backbone.heads import ScalarHead
from lite_c2f.backbone.load import end_tokens, load_model, load_tokenizer, pick_device, uses_checkpointing
from lite_c2f.backbone.padding import padding_id
from lite_c2f.backbone.roles import Roles
from lite_c2f.coarse.advantage import Advantages, gae, token_rewards
from lite_c2f.coarse.checkpoints import CheckpointManager
from lite_c2f.coarse.diagnostics import correlation, share_alike, warnings
from lite_c2f.coarse.length import advance, start
from lite_c2f.coarse.loss import adapt_kl
from lite_c2f.coarse.loss_scale import LossScale
from lite_c2f.coarse.rollout import ResponseEnds, Rollout, RolloutBatches, collect
from lite_c2f.coarse.state import PromptQueue, TrainState, encode
from lite_c2f.coarse.update import update
from lite_c2f.config.settings import Coarse, Config
from lite_c2f.data.encode import answer_end
from lite_c2f.errors import ConfigError, ModelError, NonFiniteError, RunError
from lite_c2f.ops import explained_variance
from lite_c2f.reward.score import Normalizer, score, scored_row
from lite_c2f.runs.corpus import Corpus, sampled_prompts
from lite_c2f.runs.models import ModelPair, adapter_base
from lite_c2f.runtime import distributed
from lite_c2f.runtime.batch_size import BatchSize
from lite_c2f.runtime.signals import graceful
from lite_c2f.sampling import Sampling, Stops, sample
from lite_c2f.storage.files import append_line, read_json, write_json
from lite_c2f.storage.metrics import Metrics

Progress = Callable[[int, int, dict[str, float]], None]
MEBIBYTE = 2**20
log_ = logging.getLogger(__name__)


def train_coarse(
    config: Config,
    models: ModelPair,
    corpus: Corpus,
    run: Path,
    progress: Progress | None = None,
    on_tokens: Callable[[int], None] | None = None,
    tracker: Any = None,
    tell: Callable[[str], None] | None = None,
    *,
    force: bool = False,
) -> dict:
    """PPO with Continuous Maximization on the base model; publishes RUN/coarse.

    Needs RUN/reward. Writes adapter/ (stock PEFT, CAUSAL_LM), critic/, samples.jsonl and metrics.json; appends a line
    an update to RUN/metrics.jsonl. progress(step, updates, line) is called after every update, on_tokens(new tokens)
    while sampling, tell(text) when a batch had to shrink, an update was skipped or something looks wrong. force: go
    on from checkpoints made with other settings of `coarse`. Returns the stage's metrics. Raises RunError without a
    reward model, MemoryFullError when one row is too much for the card, ModelError when it diverges again and
    again, ConfigError when the token budget ends it before the policy has trained.
    """
    settings = config.coarse
    tokenizer = load_tokenizer(models.base)
    roles, normalizer = prepare_roles(config, models, run)
    ends = ends_of(config, tokenizer, roles.model)
    shown = [encode(config, tokenizer, prompt) for prompt in sampled_prompts(corpus, config)]
    standing = begin(config, corpus, roles, tokenizer, tell)
    optimizers, shuffler, batches, scales = standing.optimizers, standing.shuffler, standing.batches, standing.scales
    log, samples_file = Metrics(run, tracker), run / "coarse" / "samples.jsonl"
    saved = CheckpointManager(config, run, standing, log, tell, force=force)
    saved.resume()
    if progress and standing.step:
        progress(standing.step, standing.expected(settings), {})

    with graceful(tell) as interruption:
        while not standing.finished(settings):
            began = time.perf_counter()
            step, before = standing.step + 1, standing.snapshot()
            try:
                # 1. sample, score and value
                numbers, prompts = zip(*standing.prompts.take(settings.rollouts), strict=True)
                seed = config.run.seed * 1_000_003 + step
                limit, expected = standing.length.limit, standing.known.of(numbers)
                rollout = collect(roles, prompts, settings, limit, ends, normalizer, seed, batches, expected, on_tokens)
                standing.known.seen(numbers, rollout.responses.tokens)
                sampled = time.perf_counter()
                # 2. rewards a token, advantages
                clipped = rollout.scores.clamp(-settings.reward_clip, settings.reward_clip)
                kl_coef = standing.kl_coef
                rewards = token_rewards(clipped, rollout.old_logprobs, rollout.reference, rollout.mask, kl_coef)
                advantages = gae(rewards, rollout.values, rollout.mask, settings.gamma, settings.gae_lambda)
                # 3. update policy and critic
                warm = step > settings.critic_warmup
                figures = update(
                    roles,
                    optimizers,
                    rollout,
                    advantages,
                    settings,
                    shuffler,
                    warm=warm,
                    batches=batches,
                    scales=scales,
                )
                line = describe(rollout, advantages, figures, standing)
                check_models(roles, rollout)
            except NonFiniteError as error:
                standing.put_back(before)
                saved.after_failure(error, agree(standing, interruption.asked))
                continue
            # 4. log, then let the limit grow
            ended = time.perf_counter()
            line |= {
                "tokens_per_s": line["tokens"] * settings.rollouts / (ended - began),
                "sampling_seconds": sampled - began,
                "seconds": ended - began,
                "peak_memory_mib": peak_memory_mib(roles.device),
                "sampling_batch": batches.sampling.size,
                "micro_batch": batches.update.size,
            }
            standing.lines.append(line)
            standing.kl_coef = adapt_kl(standing.kl_coef, rollout.kl, settings.kl_target, settings.rollouts)
            standing.length = advance(
                standing.length, settings.length, line["reward"], line["value_loss"], line["hit_limit"]
            )
            standing.step = step
            if distributed.is_first():
                log.write("coarse", step, line)
                if step == 1 or step % settings.sample_every == 0 or standing.finished(settings):
                    try:
                        store_samples(standing, shown, tokenizer, config, ends, normalizer, samples_file)
                    except NonFiniteError as error:  # the next update will find out, and knows what to do
                        log_.warning("update %d: no samples: %s", step, error)
            if tell:
                for warning in warnings(standing.lines):
                    tell(f"update {step}: {warning}")
            if progress:
                progress(step, standing.expected(settings), line)
            # 5. a checkpoint, where one is due
            saved.after_update(agree(standing, interruption.asked))

        check_learned(standing, settings)
        metrics = publish(roles, config, models, run, standing, saved) if distributed.is_first() else {}
        saved.clear()
        interruption.asked = agree(standing, interruption.asked)  # by now published: ends after this block
    return metrics


def ends_of(config: Config, tokenizer: Any, model: Any) -> ResponseEnds:
    """What ends a response: the token that the reward model reads behind one, other end tokens, stop texts."""
    end = answer_end(tokenizer, config.model.prompt_template, config.model.chat_template_kwargs)
    others = tuple(token for token in end_tokens(model, tokenizer, end) if token != end)
    return ResponseEnds(end, padding_id(tokenizer), Stops(tokenizer, config.model.stop), others)


def check_learned(standing: TrainState, settings: Coarse) -> None:
    """Raise ConfigError when the token budget was spent while the critic warmed up: the policy is still the base."""
    if standing.step <= settings.critic_warmup:
        raise ConfigError.because(
            f"coarse.token_budget={settings.token_budget} is spent after {standing.step} updates",
            f"more updates than coarse.critic_warmup={settings.critic_warmup}, in which the policy does not train",
            "raise it, or lower coarse.critic_warmup",
        )


@torch.no_grad()
def check_models(roles: Roles, rollout: Rollout) -> None:
    """Raise NonFiniteError when an update has left a policy or a critic whose forward pass is not finite.

    By one row of the rollout, the shortest: what is broken must not become a checkpoint.
    """
    row = min(range(len(rollout.lengths)), key=rollout.lengths.__getitem__)
    tokens = rollout.tokens[row : row + 1, : rollout.lengths[row]]
    for role in ("policy", "critic"):
        with roles.use(role):
            found = roles.lm_head(roles.hidden(tokens)[:, -1]) if role == "policy" else roles.value(tokens)
        if not bool(found.isfinite().all()):
            raise NonFiniteError.because(
                f"the {role} after its update is not finite", "finite numbers", "lower its rate"
            )


def agree(standing: TrainState, asked: bool) -> bool:
    """Was any process asked to end? Raises ModelError when their weights have drifted apart."""
    if distributed.world() == 1:
        return asked
    found = distributed.gather((asked, standing.checksum()))
    if len({checksum for _, checksum in found}) > 1:
        raise ModelError.because(
            f"update {standing.step}: the processes' adapters differ ({[checksum for _, checksum in found]})",
            "the same weights everywhere",
            "start again from the last checkpoint, and use one kind of GPU and one software version",
        )
    return any(wanted for wanted, _ in found)


def begin(
    config: Config, corpus: Corpus, roles: Roles, tokenizer: Any, tell: Callable[[str], None] | None
) -> TrainState:
    """The loop before its first update."""
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
        batches=RolloutBatches.of(settings, tell),
        length=start(settings.length),
        kl_coef=settings.kl_coef,
        rates=rates,
        scales={name: LossScale(roles.dtype) for name in rates},
    )


def prepare_roles(config: Config, models: ModelPair, run: Path) -> tuple[Roles, Normalizer]:
    """Policy, critic and reward model on one base.

    By default the critic starts as the reward model, on normalised rewards. A head that starts from zero values
    everything at the mean reward.
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
        ("policy", "reward") if shared else ("policy", "critic", "reward"),
        shares={"critic": "policy"} if shared else {},
        checkpointing=checkpointing,
    )
    saved = read_json(run / "reward" / "metrics.json")
    normalizer = Normalizer(saved["mean"], saved["std"])
    head = load_into(roles, "reward", run / "reward" / "adapter")
    if head is None:
        raise RunError.because(f"'{run}/reward/adapter' has no score head", "a reward model", "train it again")
    roles.add_head("reward", head)
    if config.coarse.critic == "reward_model":
        load_into(roles, "critic", run / "reward" / "adapter")
        roles.add_head("critic", head.rescaled(normalizer.mean, normalizer.std))
    else:
        roles.add_head("critic", ScalarHead(head.linear.in_features))
    return roles, normalizer


def describe(
    rollout: Rollout, advantages: Advantages, figures: dict[str, float], standing: TrainState
) -> dict[str, float]:
    """One line of metrics.jsonl. Raises NonFiniteError naming a figure that is not finite."""
    finish = rollout.responses.finish
    lengths = [len(tokens) for tokens in rollout.responses.tokens]
    texts = [rollout.responses.text_tokens(row) for row in range(len(lengths))]
    gap = rollout.sampling_gap
    line = {
        "reward": float(rollout.scores.mean()),
        "reward_std": float(rollout.scores.std(unbiased=False)),
        "kl": rollout.kl,
        "kl_coef": standing.kl_coef,
        "limit": standing.length.limit,
        "hit_limit": finish.count("limit") / len(finish),
        "tokens": sum(lengths) / len(lengths),
        **figures,
        "explained_variance": explained_variance(rollout.values, advantages.returns, rollout.mask),
        "gate": standing.length.gate,
        "reward_length_correlation": correlation(rollout.scores.tolist(), lengths),
        "repeated_4gram": sum(map(repeated_ngrams, texts)) / len(texts),
        "same": share_alike(texts),
        "skipped": standing.skipped,
        **({} if gap is None else {"sampling_gap": gap}),
    }
    for name, value in line.items():
        if not math.isfinite(value):
            raise NonFiniteError.because(f"{name} is {value}", "finite numbers", "lower the learning rates")
    return line


@torch.no_grad()
def store_samples(
    standing: TrainState,
    prompts: list,
    tokenizer: Any,
    config: Config,
    ends: ResponseEnds,
    normalizer: Normalizer,
    file: Path,
) -> None:
    """Answer the same few held-out prompts and append the texts with their rewards.

    Means alone hide what a policy has learned to say.
    """
    roles, batches = standing.roles, standing.batches
    limit = config.coarse.sample_tokens or standing.length.limit
    with roles.sampling("policy"):
        said = sample(
            roles.model,
            prompts,
            Sampling(limit, config.coarse.temperature, seed=config.run.seed),
            eos_ids=ends.eos_ids,
            stops=ends.stops,
            pad_id=ends.pad_id,
            batch=BatchSize(batches.sampling.name, batches.sampling.size),  # its own: `sample` makes it smaller
        )
    rows = [
        scored_row(prompt, said.text_tokens(row), said.finish[row] != "limit", ends.eos_id)
        for row, prompt in enumerate(prompts)
    ]
    rewards = score(roles, rows, pad_id=ends.pad_id, batch=batches.scoring)
    for row, prompt in enumerate(prompts):
        record = {
            "step": standing.step,
            "limit": limit,
            "prompt": tokenizer.decode(prompt, skip_special_tokens=True),
            "response": tokenizer.decode(said.text_tokens(row), skip_special_tokens=True),
            "finish": said.finish[row],
            "tokens": len(said.tokens[row]),
            "reward": normalizer(float(rewards[row])),
        }
        append_line(file, record)


def publish(
    roles: Roles, config: Config, models: ModelPair, run: Path, standing: TrainState, saved: CheckpointManager
) -> dict:
    """Write adapter, critic, the best earlier policy and, last, metrics.json, which says that the stage is finished."""
    lines = standing.lines
    base_name, revision = adapter_base(config, models), config.model.base_revision
    save_policy(roles, "policy", run / "coarse" / "adapter", base_name, revision)
    save_critic(roles, run / "coarse" / "critic", base_name, revision)
    saved.publish_best()
    metrics = {
        "updates": len(lines),
        "limit_first": int(lines[0]["limit"]),
        "limit_last": int(lines[-1]["limit"]),
        "reward_first": lines[0]["reward"],
        "reward_last": lines[-1]["reward"],
        "kl_last": lines[-1]["kl"],
        "skipped": standing.skipped,
        "rollbacks": standing.rollbacks,
        "tokens_sampled": round(sum(line["tokens"] for line in lines) * config.coarse.rollouts),
    }
    write_json(run / "coarse" / "metrics.json", metrics)
    return metrics


def peak_memory_mib(device: torch.device) -> float:
    """Peak GPU memory allocated, or the process's peak resident set on a CPU, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MEBIBYTE
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBIBYTE if sys.platform == "darwin" else peak / 1024
