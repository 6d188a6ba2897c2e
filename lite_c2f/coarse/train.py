"""The loop: sample, score, advantages, update, limit."""

import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from lite_c2f.backbone.adapters import load_into, save_critic, save_policy
from lite_c2f.backbone.load import load_model, load_tokenizer, pick_device, uses_checkpointing
from lite_c2f.backbone.roles import Roles
from lite_c2f.coarse.advantage import Advantages, gae, token_rewards
from lite_c2f.coarse.length import LengthState, advance, start
from lite_c2f.coarse.loss import adapt_kl, policy_loss, value_loss
from lite_c2f.coarse.rollout import Ends, Rollout, collect, micro_batches, response_logprobs
from lite_c2f.config import Config
from lite_c2f.data.encode import encode_prompt, stop_ids
from lite_c2f.errors import ModelError, RunError
from lite_c2f.inputs import Corpus, ModelPair, adapter_base
from lite_c2f.ops import explained_variance
from lite_c2f.reward.score import Normalizer
from lite_c2f.runs import Metrics, append_line, read_json, write_json
from lite_c2f.sampling import Sampling, sample

Progress = Callable[[int, int, dict[str, float]], None]
MEBIBYTE = 2**20


def train_coarse(
    config: Config,
    models: ModelPair,
    corpus: Corpus,
    run: Path,
    progress: Progress | None = None,
    tick: Callable[[int], None] | None = None,
    tracker: Any = None,
) -> dict:
    """PPO with Continuous Maximization on the base model; publishes RUN/coarse.

    Needs RUN/reward. Writes adapter/ (stock PEFT, CAUSAL_LM), critic/, samples.jsonl and metrics.json; appends a line
    an update to RUN/metrics.jsonl. progress(step, updates, line) is called after every update, tick(new tokens) while
    sampling. Returns the stage's metrics. Raises RunError without a reward model.
    """
    settings = config.coarse
    tokenizer = load_tokenizer(models.base)
    roles, normalizer = prepare_roles(config, models, run)
    ends = Ends(tokenizer.eos_token_id, tokenizer.pad_token_id, stop_ids(tokenizer, config.model.stop))
    stream = prompt_stream(config, corpus, tokenizer)
    shown = [_encode(config, tokenizer, prompt) for prompt in corpus.held_out_prompts[: settings.sample_prompts]]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "policy": torch.optim.AdamW(roles.trainable("policy"), lr=settings.lr, weight_decay=0.0),
        "critic": torch.optim.AdamW(roles.trainable("critic"), lr=settings.critic_lr, weight_decay=0.0),
    }
    shuffler = torch.Generator().manual_seed(config.run.seed)
    log, state, kl_coef, lines = Metrics(run, tracker), start(settings.length), settings.kl_coef, []
    samples_file = run / "coarse" / "samples.jsonl"
    samples_file.unlink(missing_ok=True)
    log.restart("coarse")

    for step in range(1, settings.updates + 1):
        began = time.perf_counter()
        # 1. sample, score and value
        prompts = [next(stream) for _ in range(settings.rollouts)]
        seed = config.run.seed * 1_000_003 + step
        rollout = collect(roles, prompts, settings, state.limit, ends, normalizer, seed, tick)
        sampled = time.perf_counter()
        # 2. rewards a token, advantages
        clipped = rollout.scores.clamp(-settings.reward_clip, settings.reward_clip)
        rewards = token_rewards(clipped, rollout.logprobs, rollout.reference, rollout.mask, kl_coef)
        advantages = gae(rewards, rollout.values, rollout.mask, settings.gamma, settings.gae_lambda)
        # 3. update policy and critic
        figures = update(roles, optimizers, rollout, advantages, config, shuffler, warm=step > settings.critic_warmup)
        # 4. log, then let the limit grow
        line = describe(rollout, advantages, figures, state, kl_coef)
        ended = time.perf_counter()
        line |= {
            "tokens_per_s": line["tokens"] * settings.rollouts / (ended - began),
            "sampling_seconds": sampled - began,
            "seconds": ended - began,
            "peak_memory_mib": peak_memory_mib(roles.device),
        }
        check_finite(step, line)
        lines.append(line)
        log.write("coarse", step, line)
        kl_coef = adapt_kl(kl_coef, rollout.kl, settings.kl_target, settings.rollouts)
        state = advance(state, settings.length, line["reward"], line["value_loss"], line["hit_limit"])
        if step == 1 or step % settings.sample_every == 0 or step == settings.updates:
            store_samples(roles, shown, tokenizer, config, ends, state.limit, step, samples_file)
        if progress:
            progress(step, settings.updates, line)

    return publish(roles, config, models, run, lines)


def prepare_roles(config: Config, models: ModelPair, run: Path) -> tuple[Roles, Normalizer]:
    """Policy, critic and reward model on one base. The critic starts as the reward model, on normalised rewards."""
    if not (run / "reward" / "metrics.json").is_file():
        raise RunError.because(f"'{run}' has no reward model", "RUN/reward", "train with --stage reward first")
    torch.manual_seed(config.run.seed)
    base = load_model(models.base, config)
    checkpointing = uses_checkpointing(config, pick_device(config))
    roles = Roles(base, config.lora, ("policy", "critic", "reward"), checkpointing=checkpointing)
    saved = read_json(run / "reward" / "metrics.json")
    normalizer = Normalizer(saved["mean"], saved["std"])
    head = load_into(roles, "reward", run / "reward" / "adapter")
    load_into(roles, "critic", run / "reward" / "adapter")
    if head is None:
        raise RunError.because(f"'{run}/reward/adapter' has no score head", "a reward model", "train it again")
    roles.add_head("reward", head)
    roles.add_head("critic", head.rescaled(normalizer.mean, normalizer.std))
    return roles, normalizer


def prompt_stream(config: Config, corpus: Corpus, tokenizer: Any) -> Iterator[list[int]]:
    """Training prompts without end, in an order shuffled anew for each pass."""
    rng = random.Random(config.run.seed)
    prompts = list(corpus.train_prompts)
    while True:
        rng.shuffle(prompts)
        for prompt in prompts:
            yield _encode(config, tokenizer, prompt)


def _encode(config: Config, tokenizer: Any, prompt: Any) -> list[int]:
    ids, _ = encode_prompt(
        tokenizer, prompt.turns, config.data.max_prompt_tokens, template=config.model.prompt_template
    )
    return ids


def update(
    roles: Roles,
    optimizers: dict[str, torch.optim.Optimizer],
    rollout: Rollout,
    advantages: Advantages,
    config: Config,
    shuffler: torch.Generator,
    *,
    warm: bool,
) -> dict[str, float]:
    """One PPO update: `epochs` passes of `minibatches` optimiser steps for critic and, once warm, policy.

    Losses are means over the tokens of a minibatch. Returns token-weighted means of the losses, the entropy and the
    clip fraction, and the mean gradient norms.
    """
    settings = config.coarse
    names = ("critic", "policy") if warm else ("critic",)
    sums = {"policy_loss": 0.0, "value_loss": 0.0, "entropy": 0.0, "clip_fraction": 0.0}
    norms: dict[str, list[float]] = {name: [] for name in ("critic", "policy")}
    counted = 0
    for _ in range(settings.epochs):
        order = torch.randperm(settings.rollouts, generator=shuffler).to(roles.device)
        for rows in order.chunk(settings.minibatches):
            tokens_in_minibatch = int(rollout.mask[rows].sum())
            counted += tokens_in_minibatch
            for name in names:
                with roles.use(name, train=True):
                    for group, width in micro_batches(rollout.mask, rows, settings.micro_batch):
                        loss = _loss(roles, name, rollout, advantages, group, width, config, sums)
                        (loss / tokens_in_minibatch).backward()
                norms[name].append(_step(optimizers[name], roles.trainable(name), settings.max_grad_norm))
    means = {name: total / counted for name, total in sums.items()}
    return means | {f"{name}_grad_norm": sum(found) / max(len(found), 1) for name, found in norms.items()}


def _loss(
    roles: Roles,
    name: str,
    rollout: Rollout,
    advantages: Advantages,
    rows: torch.Tensor,
    width: int,
    config: Config,
    sums: dict[str, float],
) -> torch.Tensor:
    """Summed loss of a micro-batch under the active role; its parts are added to `sums`."""
    settings = config.coarse
    tokens, mask = rollout.tokens[rows, :width], rollout.mask[rows, : width - 1]

    def kept(values: torch.Tensor) -> torch.Tensor:
        return values[rows, : width - 1][mask]

    if name == "critic":
        values = roles.value(tokens)[:, :-1][mask]
        loss = value_loss(values, kept(rollout.values), kept(advantages.returns), settings.value_clip).sum()
        sums["value_loss"] += float(loss.detach())
        return loss
    logprobs, entropy = response_logprobs(roles, tokens, mask, settings.temperature)
    losses, clipped = policy_loss(logprobs, kept(rollout.logprobs), kept(advantages.advantages), settings.clip)
    loss = losses.sum()
    sums["policy_loss"] += float(loss.detach())
    sums["entropy"] += float(entropy.detach().sum())
    sums["clip_fraction"] += float(clipped.sum())
    return loss


def _step(optimizer: torch.optim.Optimizer, parameters: list, max_norm: float) -> float:
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def describe(
    rollout: Rollout, advantages: Advantages, figures: dict[str, float], state: LengthState, kl_coef: float
) -> dict[str, float]:
    """One line of metrics.jsonl."""
    finish = rollout.responses.finish
    lengths = [len(tokens) for tokens in rollout.responses.tokens]
    return {
        "reward": float(rollout.scores.mean()),
        "reward_std": float(rollout.scores.std(unbiased=False)),
        "kl": rollout.kl,
        "kl_coef": kl_coef,
        "limit": state.limit,
        "hit_limit": finish.count("limit") / len(finish),
        "tokens": sum(lengths) / len(lengths),
        **figures,
        "explained_variance": explained_variance(rollout.values, advantages.returns, rollout.mask),
        "sampling_gap": rollout.sampling_gap,
        "gate": state.gate,
    }


def check_finite(step: int, line: dict[str, float]) -> None:
    """Raise ModelError naming the figure that is not finite: the run has diverged."""
    for name, value in line.items():
        if not math.isfinite(value):
            raise ModelError.because(
                f"update {step}: {name} is {value}", "finite numbers", "lower coarse.lr and coarse.critic_lr"
            )


@torch.no_grad()
def store_samples(
    roles: Roles, prompts: list, tokenizer: Any, config: Config, ends: Ends, limit: int, step: int, file: Path
) -> None:
    """Answer the same few held-out prompts and append the texts: means alone hide what a policy has learned to say."""
    with roles.use("policy"):
        said = sample(
            roles.model,
            prompts,
            Sampling(limit, config.coarse.temperature, seed=config.run.seed),
            eos_ids=[ends.eos_id],
            stop_ids=ends.stop_ids,
            pad_id=ends.pad_id,
        )
    for row, prompt in enumerate(prompts):
        record = {
            "step": step,
            "limit": limit,
            "prompt": tokenizer.decode(prompt, skip_special_tokens=True),
            "response": tokenizer.decode(said.text_tokens(row), skip_special_tokens=True),
            "finish": said.finish[row],
            "tokens": len(said.tokens[row]),
        }
        append_line(file, record)


def publish(roles: Roles, config: Config, models: ModelPair, run: Path, lines: list[dict[str, float]]) -> dict:
    """Write adapter, critic and, last, metrics.json: its presence says that the stage is finished."""
    base_name, revision = adapter_base(config, models), config.model.base_revision
    save_policy(roles, "policy", run / "coarse" / "adapter", base_name, revision)
    save_critic(roles, run / "coarse" / "critic", base_name, revision)
    metrics = {
        "updates": len(lines),
        "limit_first": int(lines[0]["limit"]),
        "limit_last": int(lines[-1]["limit"]),
        "reward_first": lines[0]["reward"],
        "reward_last": lines[-1]["reward"],
        "kl_last": lines[-1]["kl"],
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
