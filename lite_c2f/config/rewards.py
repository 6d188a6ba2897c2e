"""Settings of the sources of reward: reward models and functions, what they count for, and those that only watch."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from lite_c2f.config.data import Section

TRAINED = "reward_model"  # name of the source `{model: trained}` where it has none of its own
FIGURES = ("reward", "mean_tokens", "share_ended")  # figures of a held-out evaluation that are of no single source
RESERVED = (*FIGURES, "stage", "step")  # keys of a line of metrics.jsonl
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_KINDS = ("model", "adapter", "function")


class Watched(Section):
    """A source that scores responses: exactly one of `model`, `adapter` and `function`."""

    model: Literal["trained"] | None = Field(None, description="trained: the reward model of stage 1.")
    adapter: str | None = Field(
        None,
        description="Folder of another reward adapter on the same base, as RUN/reward/adapter of another run; the "
        "metrics.json beside it has its mean and standard deviation.",
    )
    function: str | None = Field(
        None, description="FILE.py:NAME or package.module:NAME; what it gets and gives: docs/rewards.md."
    )
    name: str = Field(description="Name in metrics, samples and messages; a function's own by default.")
    arguments: dict[str, JsonValue] = Field({}, description="Further keyword arguments of the function.")
    timeout: float = Field(
        60.0, gt=0, le=86_400, description="Most seconds that the function may take for one batch, at most a day."
    )
    workers: int = Field(
        0,
        ge=0,
        le=256,
        description="Processes that the function runs in, each with a part of the batch, ended at the time limit; 0: "
        "in this process, with the whole batch.",
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kinds = [kind for kind in _KINDS if values.get(kind) is not None]
        if len(kinds) != 1:
            got = f"{' and '.join(kinds) or 'none of them'} in {sorted(values)}"
            raise ValueError(f"a source of reward is one of model, adapter and function, got {got}; name exactly one")
        if values.get("name") is None:
            reference = str(values.get("function"))
            usual = {"model": TRAINED, "function": reference.rpartition(":")[2] if ":" in reference else "function"}
            if kinds[0] not in usual:
                raise ValueError(f"adapter={values['adapter']!r} has no name; add one, such as `name: harmless`")
            values = {**values, "name": usual[kinds[0]]}
        return values

    @model_validator(mode="after")
    def _valid(self) -> "Watched":
        if self.function is not None:
            place, _, attribute = self.function.rpartition(":")
            if not place or not attribute.isidentifier():
                raise ValueError(
                    f"function {self.function!r}: expected FILE.py:NAME or package.module:NAME; correct it"
                )
        elif self.arguments or self.workers:
            raise ValueError(f"source '{self.name}' is no function, and takes no arguments or workers; leave them out")
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r}: expected letters, digits, - and _, at most 40; choose another")
        if self.name in RESERVED:
            raise ValueError(f"name {self.name!r} is that of another figure; choose another")
        return self


class RewardSource(Watched):
    """A source of reward that PPO maximises."""

    weight: float = Field(1.0, description="Weight in the sum; negative to minimise.")
    scale: Literal["auto", "running", "none"] = Field(
        "auto",
        description="running: standardised by the mean and standard deviation of all scores so far; none: as it is; "
        "auto: running for a function, a reward model's own mean and standard deviation on held-out pairs.",
    )
    clip: float | None = Field(None, gt=0, description="Clip the scaled score to plus or minus this, unweighted.")
    at_least: float | None = Field(
        None,
        description="Constraint in place of a weight: keep the batch's mean score, before scaling, above this; the "
        "weight is then a Lagrange multiplier (coarse.multiplier_lr).",
    )

    @model_validator(mode="after")
    def _counts(self) -> "RewardSource":
        if self.weight == 0:
            raise ValueError(f"source '{self.name}' has weight 0; to look at it only, move it to coarse.watch")
        if self.at_least is not None and self.weight != 1:
            raise ValueError(f"source '{self.name}' has at_least, by which its weight follows; leave weight out")
        return self


def _as_list(value: Any) -> Any:
    values = [value] if isinstance(value, dict | str) else value
    if isinstance(values, list | tuple) and (text := next((one for one in values if isinstance(one, str)), None)):
        kind = f"{{function: {text!r}}}" if ":" in text else "{model: trained}"
        raise ValueError(f"a source of reward is a mapping, got the text {text!r}; write {kind}")
    return values


Rewards = Annotated[tuple[RewardSource, ...], BeforeValidator(_as_list)]
Watches = Annotated[tuple[Watched, ...], BeforeValidator(_as_list)]
