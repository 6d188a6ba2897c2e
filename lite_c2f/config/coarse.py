"""Settings of the coarse stage: PPO with Continuous Maximization, and DPO."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lite_c2f.config.data import Section
from lite_c2f.config.rewards import FIGURES, Rewards, RewardSource, Watched, Watches

Batch = Annotated[int, Field(ge=1)] | Literal["auto"]


class Length(Section):
    """Continuous Maximization: how the response limit grows. Coefficients are our own; the paper gives none."""

    mode: Literal["logistic", "linear", "fixed"] = Field("logistic", description="Rule; the others are ablations.")
    start: int = Field(
        128,
        ge=1,
        description="First limit, in tokens. If it is shorter than a usual good answer, the policy may first learn to "
        "ramble: docs/evidence.md.",
    )
    max: int = Field(1024, ge=1, description="Largest limit, in tokens.")
    step: int = Field(64, ge=1, description="Most tokens one update adds, before rounding.")
    multiple: int = Field(8, ge=1, description="Growth is rounded to a multiple of this, in tokens.")
    tau: float = Field(0.2, ge=0, le=1, description="Grow only while at least this share of responses hit the limit.")
    w_reward: float = Field(1.0, ge=0, description="Weight of the standardised batch reward in the gate.")
    w_value: float = Field(0.5, ge=0, description="Weight of the standardised critic loss in the gate.")
    bias: float = Field(0.0, description="Bias of the gate; 0 opens it half way when nothing has changed.")
    decay: float = Field(0.8, ge=0, lt=1, description="Memory of the running means and standard deviations.")

    @model_validator(mode="after")
    def _ordered(self) -> "Length":
        if self.mode != "fixed" and self.multiple > self.step:
            raise ValueError(
                f"coarse.length.multiple={self.multiple} is above coarse.length.step={self.step}: growth would "
                "round to nothing; raise step"
            )
        if self.mode != "fixed" and self.max < self.start:
            raise ValueError(f"coarse.length.max={self.max} is below coarse.length.start={self.start}; raise max")
        return self

    @property
    def largest(self) -> int:
        """The largest response limit a run can reach, in tokens."""
        return self.start if self.mode == "fixed" else self.max

    @property
    def largest_key(self) -> str:
        """The setting that `largest` comes from."""
        return "coarse.length.start" if self.mode == "fixed" else "coarse.length.max"


class Dpo(Section):
    """Direct Preference Optimization (Rafailov 2023, arXiv 2305.18290), on TRL's DPOTrainer."""

    beta: float = Field(0.1, gt=0, description="Weight of the log-ratio to the base; larger stays closer to it.")
    lr: float = Field(5e-5, gt=0, description="Learning rate of AdamW, decayed linearly.")
    epochs: float = Field(1.0, gt=0, description="Passes over the pairs.")
    batch: int = Field(32, ge=1, description="Pairs per optimiser step.")
    micro_batch: Batch = Field("auto", description="Pairs per forward and backward pass; auto: what fits.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps with a rising learning rate.")


class Coarse(Section):
    """Training of the Coarse Actor on the base model: PPO with Continuous Maximization, or DPO to compare it with."""

    algorithm: Literal["ppo", "dpo"] = Field(
        "ppo",
        description="ppo, with Continuous Maximization; dpo, on the reward model's own preference pairs, which reads "
        "`dpo` and `max_grad_norm` alone.",
    )
    dpo: Dpo = Field(Dpo(), description="Settings of algorithm=dpo.")
    updates: int = Field(200, ge=1, description="PPO updates.")
    token_budget: int | None = Field(
        None, ge=1, description="End after the update in which all responses together reach this many tokens."
    )
    rollouts: int = Field(64, ge=2, description="Responses per update.")
    sampling_batch: Batch = Field("auto", description="Responses sampled side by side; auto: what fits.")
    micro_batch: Batch = Field(
        "auto",
        description="Responses of full length per forward and backward pass; of shorter ones, as many as have the same "
        "number of tokens. auto: what fits, up to 16,384 tokens.",
    )
    minibatches: int = Field(2, ge=1, description="Optimiser steps per pass over the rollouts.")
    epochs: int = Field(2, ge=1, description="Passes over the rollouts per update.")
    lr: float = Field(2e-5, gt=0, description="Learning rate of the policy (AdamW).")
    critic_lr: float = Field(1e-4, gt=0, description="Learning rate of the critic (AdamW).")
    critic: Literal["reward_model", "zero", "shared"] = Field(
        "reward_model",
        description="What the critic starts as: a copy of the reward model; zero, a new adapter and "
        "head; shared, a head on the policy's own adapter, which learns from both losses.",
    )
    value_coef: float = Field(0.1, gt=0, description="Weight of the value loss in the policy's, with critic=shared.")
    critic_warmup: int = Field(3, ge=0, description="First updates that train the critic alone.")
    temperature: float = Field(1.0, ge=1e-3, description="Sampling temperature of the rollouts.")
    kl_coef: float = Field(0.05, ge=0, description="Weight of the per-token KL penalty (k1) in the reward.")
    kl_target: float | None = Field(None, gt=0, description="Adapt kl_coef towards this KL, in nats per response.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount per token.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="Lambda of generalised advantage estimation.")
    clip: float = Field(0.2, gt=0, description="Clip range of the probability ratio.")
    value_clip: float = Field(0.2, gt=0, description="Clip range of the value around its old estimate.")
    reward_clip: float = Field(5.0, gt=0, description="Normalised rewards are clipped to plus or minus this.")
    rewards: Rewards = Field(
        (RewardSource(model="trained"),),  # type: ignore[call-arg]
        min_length=1,
        description="Sources of reward, each {model: trained}, {adapter: DIR} or {function: FILE.py:NAME}, with name, "
        "weight, scale, clip, at_least, arguments, timeout, workers: docs/rewards.md. Without a reward model among "
        "them and `watch`, stage 1 is skipped.",
    )
    multiplier_lr: float = Field(
        0.1, gt=0, description="Step of the Lagrange multipliers of sources with at_least, per update."
    )
    multiplier_max: float = Field(10.0, gt=0, description="Largest Lagrange multiplier.")
    watch: Watches = Field(
        (), description="Sources that are not trained on, and only look at held-out answers: see evaluate_every."
    )
    evaluate_every: int | None = Field(
        None, ge=1, description="Answer held-out prompts every so many updates, scored by `rewards` and `watch`."
    )
    evaluate_prompts: int = Field(64, ge=2, description="How many held-out prompts, the same at every evaluation.")
    evaluate_temperature: float = Field(0.0, ge=0, description="Its sampling temperature, at a fixed seed; 0: greedy.")
    best_by: str = Field(
        "reward",
        description="Figure of these evaluations that says which policy is best: reward (the weighted sum), or a "
        "source's name. The best is kept as RUN/coarse/best/adapter.",
    )
    patience: int | None = Field(None, ge=1, description="End after so many evaluations in a row without a better one.")
    use: Literal["best", "last"] = Field(
        "last", description="Policy that becomes the Coarse Actor and is merged: last, or best where there is one."
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    sample_every: int = Field(5, ge=1, description="Store samples of the same few prompts every so many updates.")
    sample_prompts: int = Field(4, ge=1, description="How many prompts those are.")
    sample_tokens: int | None = Field(
        None, ge=1, description="Longest of these samples, in tokens (default: the current limit)."
    )
    length: Length = Field(Length(), description="Continuous Maximization.")

    @property
    def sampled_tokens(self) -> dict[str, int]:
        """{setting: tokens} of the settings that bound what the stage samples; DPO samples nothing."""
        if self.algorithm == "dpo":
            return {}
        return {self.length.largest_key: self.length.largest, "coarse.sample_tokens": self.sample_tokens or 0}

    @property
    def usual_rewards(self) -> bool:
        """Whether the reward is that of the trained reward model alone, as it is where nothing is set."""
        return self.rewards == type(self).model_fields["rewards"].default

    @property
    def judges(self) -> tuple[Watched, ...]:
        """All sources: those of the reward, then those that watch."""
        return (*self.rewards, *self.watch)

    @property
    def needs_reward_model(self) -> bool:
        """Whether a source is the reward model of stage 1."""
        return any(source.model is not None for source in self.judges)

    @model_validator(mode="after")
    def _sources_fit(self) -> "Coarse":
        names = [source.name for source in self.judges]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"coarse.rewards and coarse.watch: two sources named '{twice}'; give one another `name`")
        if sum(source.model is not None for source in self.judges) > 1:
            raise ValueError("coarse.rewards and coarse.watch: {model: trained} stands there twice; leave one out")
        if 0 < self.evaluate_temperature < 1e-3:
            raise ValueError("coarse.evaluate_temperature is below 0.001; write 0 for greedy answers")
        if all(source.at_least is not None for source in self.rewards):
            raise ValueError("coarse.rewards has constraints (at_least) alone; add a source to maximise")
        if self.algorithm == "dpo" and not (self.usual_rewards and not self.watch):
            raise ValueError("coarse.rewards and coarse.watch are for PPO: DPO learns from pairs; leave them out")
        if self.evaluate_every is None and (self.watch or self.patience or self.best_by != "reward"):
            key = "watch" if self.watch else "patience" if self.patience else "best_by"
            raise ValueError(f"coarse.{key} is of held-out evaluations; set coarse.evaluate_every, in updates")
        if self.best_by not in (*names, *FIGURES):
            known = ", ".join((*FIGURES, *names))
            raise ValueError(f"coarse.best_by={self.best_by!r}: expected one of {known}; correct it")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "Coarse":
        if self.updates <= self.critic_warmup:
            raise ValueError(
                f"coarse.updates={self.updates} is not above coarse.critic_warmup={self.critic_warmup}: the policy "
                "would never train; raise updates"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("coarse.kl_target needs a coarse.kl_coef above 0 to start from")
        if self.rollouts % self.minibatches:
            raise ValueError(
                f"coarse.rollouts={self.rollouts} is no multiple of coarse.minibatches={self.minibatches}; change one"
            )
        return self
