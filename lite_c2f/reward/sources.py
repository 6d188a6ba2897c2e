"""Sources of reward of a run, ready to score: reward models as roles on the base, and functions."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lite_c2f.backbone.adapters import load_into
from lite_c2f.backbone.roles import Roles
from lite_c2f.config.rewards import TRAINED, RewardSource, Watched
from lite_c2f.config.settings import Config
from lite_c2f.data.records import Prompt
from lite_c2f.data.sources import name_of
from lite_c2f.errors import ModelError, NonFiniteError
from lite_c2f.reward.calls import RewardError, RewardFunction, Scores
from lite_c2f.reward.files import Normalizer, adapter_folder, own_normalizer, saved_mix, trained_normalizer
from lite_c2f.reward.functions import RewardInputs, Row
from lite_c2f.reward.mix import RewardMix
from lite_c2f.reward.score import score
from lite_c2f.runtime.batch_size import BatchSize

REWARD_ROLE = "reward"  # of the reward model of stage 1


class Judges:
    """All sources that score responses, and the mix of those that are trained on.

    normalizers: of the reward models among them, by name; None: no mean and standard deviation of its own. applies:
    {source of prompts: names of the rewards for them}; those that it does not list get all.
    """

    def __init__(
        self,
        rewards: Sequence[RewardSource],
        watch: Sequence[Watched],
        normalizers: Mapping[str, Normalizer | None],
        tokenizer: Any = None,
        applies: Mapping[str, Sequence[str]] | None = None,
        multipliers: tuple[float, float] = (0.1, 10.0),
        on_message: Callable[[str], None] | None = None,
    ) -> None:
        self.rewards, self.watch, self.tokenizer = tuple(rewards), tuple(watch), tokenizer
        self.mix = RewardMix(rewards, [name for name, own in normalizers.items() if own is not None], *multipliers)
        self.seconds = 0.0  # that functions took, since it was last set to 0
        self._normalizers, self._applies, self._on_message = dict(normalizers), dict(applies or {}), on_message
        self._functions: dict[str, RewardFunction] = {}

    @classmethod
    def of_reward_model(cls, normalizer: Normalizer) -> "Judges":
        """The trained reward model alone."""
        return cls((RewardSource(model="trained"),), (), {TRAINED: normalizer})  # type: ignore[call-arg]

    @classmethod
    def of(
        cls,
        config: Config,
        normalizers: Mapping[str, Normalizer | None],
        tokenizer: Any,
        on_message: Callable[[str], None] | None = None,
    ) -> "Judges":
        """The sources of a configuration."""
        coarse = config.coarse
        applies = {name_of(source): source.rewards for source in config.data.prompts if source.rewards is not None}
        limits = coarse.multiplier_lr, coarse.multiplier_max
        return cls(coarse.rewards, coarse.watch, normalizers, tokenizer, applies, limits, on_message)

    def __iter__(self):
        return iter((*self.rewards, *self.watch))

    def model_scores(
        self,
        roles: Roles,
        rows: Sequence[list[int]],
        pad_id: int,
        batch: int | BatchSize,
        sources: Sequence[Watched],
    ) -> dict[str, Scores]:
        """Scores of `scored_row`s by the reward models, standardised by their own mean and deviation, by name."""
        scores: dict[str, Scores] = {}
        for source in sources:
            if source.function is None:
                raw: Any = score(roles, rows, pad_id=pad_id, batch=batch, role=role_of(source)) if rows else []
                own = self._normalizers[source.name] or Normalizer(0.0, 1.0)
                scores[source.name] = [own(float(value)) for value in raw]
        return scores

    def function_scores(
        self, inputs: RewardInputs | None, prompts: Sequence[Prompt], sources: Sequence[Watched]
    ) -> dict[str, Scores]:
        """Scores by the functions among the sources, by name; each gets the rows that it applies to.

        Raises RewardError naming the function, the row and what it gave.
        """
        functions = [source for source in sources if source.function is not None]
        if not functions:
            return {}
        if inputs is None:
            raise RewardError(f"reward '{functions[0].name}' is a function and needs rows of data")
        began = time.perf_counter()
        try:
            scores = {source.name: self._call(source, inputs, prompts) for source in functions}
        except BaseException:  # an interruption too
            self.close()
            raise
        self.seconds += time.perf_counter() - began
        return scores

    def scores(
        self,
        roles: Roles,
        rows: Sequence[list[int]],
        inputs: RewardInputs | None,
        prompts: Sequence[Prompt],
        pad_id: int,
        batch: int | BatchSize,
        sources: Sequence[Watched],
    ) -> dict[str, Scores]:
        """Scores of responses by all these sources, by name, in this process alone. rows: `scored_row`s.

        Raises RewardError where a function fails, NonFiniteError where a reward model gives no finite number.
        """
        scores = self.function_scores(inputs, prompts, sources)
        for name, values in self.model_scores(roles, rows, pad_id, batch, sources).items():
            scores[name] = self.where_applicable(name, values, prompts)
        check_scores(scores)
        return scores

    def applicable(self, name: str, prompts: Sequence[Prompt]) -> list[bool]:
        """Whether a source of reward applies to each prompt, by `data.prompts`; those that watch always do."""
        if not any(source.name == name for source in self.rewards):
            return [True] * len(prompts)
        return [name in self._applies.get(prompt.source, (name,)) for prompt in prompts]

    def where_applicable(self, name: str, values: Sequence[float | None], prompts: Sequence[Prompt]) -> Scores:
        """The values, None where the source does not apply; without prompts it applies everywhere."""
        applies = self.applicable(name, prompts) if prompts else [True] * len(values)
        return [value if there else None for value, there in zip(values, applies, strict=True)]

    def close(self) -> None:
        """End the processes of functions that have some."""
        for function in self._functions.values():
            function.close()

    def _call(self, source: Watched, inputs: RewardInputs, prompts: Sequence[Prompt]) -> Scores:
        if source.name not in self._functions:
            self._functions[source.name] = RewardFunction(source, self._on_message)
        rows = [row for row, applies in enumerate(self.applicable(source.name, prompts)) if applies]
        scores: Scores = [None] * len(prompts)
        values = self._functions[source.name](inputs.part(rows), [row + 1 for row in rows])
        for row, value in zip(rows, values, strict=True):
            scores[row] = value
        return scores


def role_of(source: Watched) -> str:
    """The role of a reward model among the adapters on the base."""
    return REWARD_ROLE if source.model is not None else f"{REWARD_ROLE}_{source.name}"


def reward_roles(config: Config) -> tuple[str, ...]:
    """The roles of all reward models of a configuration, in the order of its sources; that of stage 1 first."""
    roles = [role_of(source) for source in config.coarse.judges if source.function is None]
    return tuple(sorted(roles, key=lambda role: role != REWARD_ROLE))


def load_reward_models(roles: Roles, config: Config, run: Path) -> dict[str, Normalizer | None]:
    """Load adapter and head of every reward model into its role; returns their own means and deviations, by name."""
    normalizers: dict[str, Normalizer | None] = {}
    for source in config.coarse.judges:
        if source.function is not None:
            continue
        folder = adapter_folder(source, run)
        head = load_into(roles, role_of(source), folder)
        if head is None:
            raise ModelError.because(f"'{folder}' has no score head", "a reward model", "train it again")
        roles.add_head(role_of(source), head)
        if getattr(source, "scale", "auto") != "auto":  # raw scores: as they are, or by running statistics
            normalizers[source.name] = None
        else:
            normalizers[source.name] = trained_normalizer(run) if source.model is not None else own_normalizer(source)
    return normalizers


def new_sources(config: Config, run: Path) -> str | None:
    """A message where the coarse stage was trained without some of the sources, which then have no statistics."""
    rewards = config.coarse.rewards
    if config.coarse.usual_rewards:
        return None
    models = [source for source in rewards if source.function is None and source.scale == "auto"]
    own = [source.name for source in models if source.adapter is None or own_normalizer(source)]
    if not (names := RewardMix(rewards, own).restore(saved_mix(run))):
        return None
    return (
        f"coarse.rewards: the coarse stage was trained without {', '.join(names)}, which has no statistics and counts "
        "nothing in comparison and ratios; to use it, train that stage again"
    )


def check_scores(scores: Mapping[str, Scores]) -> None:
    """Raise NonFiniteError naming source and row of a score that is not finite: those of reward models may be."""
    for name, values in scores.items():
        for row, value in enumerate(values, 1):
            if value is not None and not math.isfinite(value):
                got = f"reward '{name}' is {value} for row {row}"
                raise NonFiniteError.because(got, "a finite number", "where that recurs, train its adapter again")


def row_of(prompt: Prompt) -> Row:
    """The other columns of a prompt's row; the toy world's right answer under the usual name too."""
    toy = {"answer": prompt.extra["toy_answer"]} if "toy_answer" in prompt.extra else {}
    return Row(toy | prompt.extra)


def inputs_of(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    token_ids: Sequence[list[int]],
    finish: Sequence[str],
    texts: Sequence[str] | None = None,
) -> RewardInputs:
    """What reward functions get of responses. token_ids: of each response, without its ending.

    texts: the responses where they are decoded already, as those of another tokenizer's model.
    """
    if texts is None:
        texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in token_ids]
    return RewardInputs(
        [prompt.turns[-1].text for prompt in prompts],
        list(texts),
        [list(ids) for ids in token_ids],
        list(finish),
        [row_of(prompt) for prompt in prompts],
        [[(turn.role, turn.text) for turn in prompt.turns] for prompt in prompts],
    )
