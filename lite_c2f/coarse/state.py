"""State of the PPO loop between two updates: what a checkpoint holds, and how it is restored."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from lite_c2f.backbone.roles import Roles
from lite_c2f.coarse.held_out import HeldOutState
from lite_c2f.coarse.length import LengthState, RunningStats
from lite_c2f.coarse.loss_scale import LossScale
from lite_c2f.coarse.rollout import RolloutBatches
from lite_c2f.config.settings import Coarse, Config
from lite_c2f.data.encode import encode_prompt
from lite_c2f.data.records import Prompt
from lite_c2f.reward.sources import Judges
from lite_c2f.runs.corpus import Corpus
from lite_c2f.storage.checkpoints import (
    LR_FACTOR,
    Checkpoint,
    generator_states,
    optimizer_tensors,
    restore_generators,
    restore_optimizer,
)

TRAINED = ("policy", "critic")


class PromptQueue:
    """Endless queue of training prompts, shuffled again for each pass over the corpus; counts the prompts taken.

    A pass keeps the corpus's sequence of sources and shuffles within each source, so that any part of a pass holds
    every source in proportion, to within one prompt.
    """

    def __init__(self, config: Config, corpus: Corpus, tokenizer: Any) -> None:
        self._config, self._prompts, self._tokenizer = config, list(corpus.train_prompts), tokenizer
        self._positions: dict[str, list[int]] = {}
        for position, prompt in enumerate(self._prompts):
            self._positions.setdefault(prompt.source, []).append(position)
        self.go_to(0)

    def take(self, count: int) -> list[tuple[int, list[int]]]:
        """The next prompts: (number in the corpus, token ids)."""
        return [(index, encode(self._config, self._tokenizer, self._prompts[index])) for index in self._next(count)]

    def rows(self, numbers: Sequence[int]) -> list[Prompt]:
        """The prompts of these numbers in the corpus, with the columns of their data."""
        return [self._prompts[number] for number in numbers]

    def go_to(self, taken: int) -> None:
        """Move to where `taken` prompts have been taken."""
        self._rng, self._order = random.Random(self._config.run.seed), list(range(len(self._prompts)))
        self._within = {source: list(positions) for source, positions in self._positions.items()}
        self.taken = 0
        self._next(taken)

    def _next(self, count: int) -> list[int]:
        numbers = []
        for _ in range(count):
            position = self.taken % len(self._order)
            if position == 0:
                self._shuffle()
            numbers.append(self._order[position])
            self.taken += 1
        return numbers

    def _shuffle(self) -> None:
        for source, positions in self._positions.items():
            self._rng.shuffle(self._within[source])
            for position, index in zip(positions, self._within[source], strict=True):
                self._order[position] = index


def encode(config: Config, tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt in the base's style."""
    model = config.model
    ids, _ = encode_prompt(
        tokenizer, prompt.turns, config.data.max_prompt_tokens, model.prompt_template, model.chat_template_kwargs
    )
    return ids


class ResponseLengths:
    """Length of the last response to each prompt, by which the sampler starts the longest first."""

    def __init__(self) -> None:
        self.lengths: dict[int, int] = {}  # tokens, by the prompt's number in the corpus

    def expected(self, prompts: Sequence[int]) -> list[float]:
        """Tokens to expect for each prompt; for one that was never answered, the mean over those that were."""
        mean = sum(self.lengths.values()) / max(len(self.lengths), 1)
        return [self.lengths.get(prompt, mean) for prompt in prompts]

    def record(self, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> None:
        """Store these responses' lengths."""
        for prompt, response in zip(prompts, responses, strict=True):
            self.lengths[prompt] = len(response)


@dataclass
class TrainState:
    """State of the PPO loop between two updates, apart from the models' own tensors."""

    roles: Roles
    optimizers: dict[str, torch.optim.Optimizer]
    shuffler: torch.Generator
    prompts: PromptQueue
    batches: RolloutBatches
    length: LengthState
    kl_coef: float
    response_lengths: ResponseLengths = field(default_factory=ResponseLengths)
    learning_rates: dict[str, float] = field(default_factory=dict)  # as configured, by optimiser
    loss_scales: dict[str, LossScale] = field(default_factory=dict)  # of the losses, in float16
    step: int = 0  # updates done
    skipped: int = 0  # updates undone because a number was not finite
    rollbacks: int = 0  # returns to a checkpoint after skipped updates, each with half the learning rates
    lines: list[dict[str, float]] = field(default_factory=list)  # of metrics.jsonl, one per update
    judges: Judges | None = None  # where the reward is more than the reward model's
    held_out: HeldOutState = field(default_factory=HeldOutState)

    def weights(self) -> dict[str, Tensor]:
        """Tensors that an update changes: adapters, the critic's head, both optimisers; not copied."""
        tensors: dict[str, Tensor] = {}
        for name in self._adapters():
            adapter = get_peft_model_state_dict(self.roles.model, adapter_name=name, save_embedding_layers=False)
            tensors |= {f"{name}.{key}": value for key, value in adapter.items()}
        for name in TRAINED:
            tensors |= optimizer_tensors(f"optimizer.{name}", self.optimizers[name])
        return tensors | {f"head.critic.{key}": v for key, v in self.roles.heads["critic"].state_dict().items()}

    def restore_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors of `weights` or `snapshot` back into the models and optimisers."""
        for name in self._adapters():
            set_peft_model_state_dict(self.roles.model, _with_prefix(name, tensors), adapter_name=name)
        for name in TRAINED:
            restore_optimizer(f"optimizer.{name}", self.optimizers[name], tensors)
        self.roles.heads["critic"].load_state_dict(_with_prefix("head.critic", tensors))

    def _adapters(self) -> list[str]:
        return [name for name in TRAINED if name in self.roles.adapters]

    def finished(self, settings: Coarse) -> bool:
        """Whether all updates are done, the token budget is spent, or patience with evaluations is at an end."""
        if self.held_out.exhausted(settings.patience):
            return True
        spent = sum(line["tokens"] for line in self.lines) * settings.rollouts
        return self.step >= settings.updates or (settings.token_budget is not None and spent >= settings.token_budget)

    def total_updates(self, settings: Coarse) -> int:
        """Number of updates in all: as configured, or what the token budget allows at the last response length."""
        if settings.token_budget is None or not self.lines:
            return settings.updates
        left = settings.token_budget / settings.rollouts - sum(line["tokens"] for line in self.lines)
        return min(settings.updates, self.step + max(0, math.ceil(left / self.lines[-1]["tokens"])))

    def policy(self) -> dict[str, Tensor]:
        """A copy of the policy's adapter in main memory, under the names that PEFT saves."""
        adapter = get_peft_model_state_dict(self.roles.model, adapter_name="policy", save_embedding_layers=False)
        return {key: value.detach().to("cpu", copy=True) for key, value in adapter.items()}

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the weights in main memory (960 MiB on Mistral-7B), to undo an update with."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self.weights().items()}

    def checkpoint(self) -> Checkpoint:
        """The whole state, for `restore`."""
        state, tensors = generator_states({"shuffler": self.shuffler})
        lengths = torch.tensor(list(self.response_lengths.lengths.items()), dtype=torch.int64).view(-1, 2)
        return Checkpoint(
            self.step,
            {
                "generators": state,
                "taken": self.prompts.taken,
                "shrunk": {name: batch.size for name, batch in self.batches._asdict().items() if batch.halved},
                "length": [self.length.limit, list(self.length.reward), list(self.length.value_loss), self.length.gate],
                "kl_coef": self.kl_coef,
                "loss_scales": {
                    name: [scale.value, scale.steps] for name, scale in self.loss_scales.items() if scale.active
                },
                "skipped": self.skipped,
                "rollbacks": self.rollbacks,
                "lines": self.lines,
                "mix": None if self.judges is None else self.judges.mix.state(),
                "held_out": self.held_out.state(),
            },
            {
                **tensors,
                **self.weights(),
                **{f"best.{key}": value for key, value in self.held_out.best_weights.items()},
                "known_lengths": lengths,
            },
        )

    def restore(self, checkpoint: Checkpoint) -> list[str]:
        """Restore the state of a checkpoint; returns messages on parts that other settings do not allow to go on."""
        state, tensors = checkpoint.state, checkpoint.tensors
        self.restore_weights(tensors)
        self.prompts.go_to(state["taken"])
        for name, size in state["shrunk"].items():  # halved before the checkpoint
            batch = getattr(self.batches, name)
            batch.size = min(batch.size, size)
        limit, reward, value_loss, gate = state["length"]
        self.length = LengthState(limit, RunningStats(*reward), RunningStats(*value_loss), gate)
        self.kl_coef = state["kl_coef"]
        for name, (value, steps) in state.get("loss_scales", {}).items():
            self.loss_scales[name].value, self.loss_scales[name].steps = value, steps
        self.response_lengths.lengths = dict(map(tuple, tensors["known_lengths"].tolist()))
        self.skipped = state["skipped"]
        self.step = checkpoint.step
        self.set_learning_rates(state["rollbacks"])
        self.lines = [dict(line) for line in state["lines"]]
        restore_generators(state["generators"], tensors, {"shuffler": self.shuffler})
        messages = []
        if self.judges is not None and (new := self.judges.mix.restore(state["mix"] or {})):
            messages.append(f"coarse.rewards: the statistics of {', '.join(new)} begin here")
        if not self.held_out.restore(state.get("held_out", {}), _with_prefix("best", tensors)):
            messages.append(
                "coarse: the held-out prompts, their sampling or the rewards are not those of the evaluations so far, "
                "which cannot be compared: their history and the best policy begin anew"
            )
        return messages

    def set_learning_rates(self, rollbacks: int) -> None:
        """Set the learning rates to their values after `rollbacks` rollbacks."""
        self.rollbacks = rollbacks
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rates[name] * LR_FACTOR**rollbacks

    def checksum(self) -> float:
        """A number that differs when two processes no longer hold the same weights."""
        return sum(
            float(weight.detach().cpu().double().abs().sum())
            for name in TRAINED
            for weight in self.roles.trainable(name)
        )


def _with_prefix(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
