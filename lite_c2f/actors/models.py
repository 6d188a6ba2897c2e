"""Models of the actors: the base with or without the Coarse adapter, the instruct model with a share of the residue."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from lite_c2f.actors.answers import Answer
from lite_c2f.actors.kl import Hidden, mean_kl
from lite_c2f.backbone.copies import sampling_copies
from lite_c2f.backbone.lm_head import LanguageHead
from lite_c2f.backbone.load import end_tokens, load_model, load_tokenizer
from lite_c2f.backbone.padding import padding_id
from lite_c2f.backbone.roles import Roles
from lite_c2f.config.rewards import TRAINED
from lite_c2f.config.settings import CHAT, Config
from lite_c2f.data.encode import answer_end, encode_answer, encode_chat, encode_prompt, turn_end
from lite_c2f.data.records import Prompt, Turn
from lite_c2f.errors import ModelError
from lite_c2f.memory.stages import SCORED_ROWS
from lite_c2f.reward.calls import Scores
from lite_c2f.reward.files import Normalizer, adapter_folder, saved_mix, trained_normalizer
from lite_c2f.reward.score import score, scored_row
from lite_c2f.reward.sources import Judges, check_scores, inputs_of, load_reward_models, reward_roles
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runs.published import coarse_adapter
from lite_c2f.runtime.batch_size import BatchSize
from lite_c2f.sampling import Sampling, Stops, sample

Turns = tuple[Turn, ...]
Ratio = float | Mapping[str, float]  # of the residue: for all weights, or by the weight's name


def answer_base(
    roles: Roles,
    role: str,
    tokenizer: Any,
    config: Config,
    prompts: Sequence[Turns],
    sampling: Sampling,
    batch: int | BatchSize = 64,
) -> list[Answer]:
    """Answers of the base (`reference`) or the Coarse Actor (`policy`), in HH style, ended by the marker."""
    ids = prompts_of_base(tokenizer, config, prompts)
    turn = turn_end(tokenizer, config.model.prompt_template, config.model.chat_template_kwargs)
    with roles.sampling(role):
        eos_ids = end_tokens(roles.model, tokenizer, turn)
        return _answer(roles.model, tokenizer, ids, sampling, batch, Stops(tokenizer, config.model.stop), eos_ids)


def prompts_of_base(tokenizer: Any, config: Config, prompts: Sequence[Turns]) -> list[list[int]]:
    """Token ids of prompts in the base's form, which the reward model reads too."""
    model, limit = config.model, config.data.max_prompt_tokens
    template, variables = model.prompt_template, model.chat_template_kwargs
    return [encode_prompt(tokenizer, turns, limit, template, variables)[0] for turns in prompts]


def kl_of_coarse(
    roles: Roles, tokenizer: Any, config: Config, prompts: Sequence[Turns], answers: Sequence[Answer], batch: BatchSize
) -> float:
    """Mean KL(Coarse Actor || base) in nats per token, over whole distributions along the Coarse Actor's answers."""
    prompt_ids = prompts_of_base(tokenizer, config, prompts)

    def hidden(role: str) -> Hidden:
        def states(tokens: Tensor) -> Tensor:
            with roles.use(role):
                return roles.hidden(tokens)

        return states

    pad_id = padding_id(tokenizer)
    return mean_kl(
        prompt_ids, answers, hidden("policy"), hidden("reference"), roles.lm_head, pad_id, roles.device, batch
    )


class InstructModel:
    """An instruct model, and the residue at any ratio on top of it, unmerged.

    W_instruct + ratio * scaling * B @ A is what the merger would write; a ratio is a number in the forward pass, so
    another one needs no merge. The Coarse adapter keeps its stock name `default`.
    """

    def __init__(self, config: Config, model: str, adapter: Path | None = None, revision: str | None = None) -> None:
        self.config = config
        self.tokenizer = load_tokenizer(model, revision)
        if not self.tokenizer.chat_template:
            raise ModelError.because(
                f"instruct model '{model}': no chat template", "a tokenizer with one", "use an instruct model"
            )
        base = load_model(model, config, revision=revision)
        turn = turn_end(self.tokenizer, CHAT, config.model.chat_template_kwargs)
        self.eos_ids = end_tokens(base, self.tokenizer, turn)
        self.model: Any = base
        self._layers: dict[str, LoraLayer] = {}  # by the name of the weight
        if adapter is not None:
            self.model = PeftModel.from_pretrained(base, str(adapter)).eval()
            self._layers = {
                f"{name.removeprefix('base_model.model.')}.weight": module
                for name, module in self.model.named_modules()
                if isinstance(module, LoraLayer)
            }
        self._scaling = {name: dict(layer.scaling) for name, layer in self._layers.items()}

    @property
    def weights(self) -> list[str]:
        """The names of the weights that the residue changes, as in the model's files."""
        return list(self._layers)

    @contextlib.contextmanager
    def ratio(self, ratio: Ratio) -> Iterator[None]:
        """Multiply the residue by `ratio` inside the block; 0 is the instruct model itself.

        ratio: one for all weights, or one per weight by its name.
        """
        if ratio and not self._layers:
            raise ValueError("this instruct model was loaded without the residue")
        try:
            self._scale(ratio)
            yield
        finally:
            self._scale(1.0)

    def _scale(self, ratio: Ratio) -> None:
        for weight, layer in self._layers.items():
            factor = ratio[weight] if isinstance(ratio, Mapping) else ratio
            for name, scaling in self._scaling[weight].items():
                layer.scaling[name] = factor * scaling

    def kl(self, prompts: Sequence[Turns], answers: Sequence[Answer], ratio: Ratio, batch: int | BatchSize) -> float:
        """Mean KL(instruct with the residue || instruct) in nats per token, over whole distributions along the answers.

        prompts, answers: those of the model with the residue; only the text counts, not its ending.
        """
        prompt_ids = self._encoded(prompts)
        head, pad_id = LanguageHead.of(self.model), padding_id(self.tokenizer)

        def hidden(ratio: Ratio) -> Hidden:
            def states(tokens: Tensor) -> Tensor:
                model = self.model.get_base_model() if self._layers else self.model
                with self.ratio(ratio):
                    return model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state

            return states

        return mean_kl(prompt_ids, answers, hidden(ratio), hidden(0.0), head, pad_id, self.model.device, batch)

    def answer(
        self,
        prompts: Sequence[Turns],
        sampling: Sampling,
        batch: int | BatchSize = 64,
        expected: Sequence[float] | None = None,
    ) -> list[Answer]:
        """Answers through the model's own chat template, ended by EOS or a turn's end. expected: as for `sample`."""
        ids = self._encoded(prompts)
        with sampling_copies(self.model):
            answers = _answer(self.model, self.tokenizer, ids, sampling, batch, None, self.eos_ids, expected)
        return [answer._replace(chat=True) for answer in answers]

    def _encoded(self, prompts: Sequence[Turns]) -> list[list[int]]:
        limit, variables = self.config.data.max_prompt_tokens, self.config.model.chat_template_kwargs
        return [encode_chat(self.tokenizer, turns, limit, variables) for turns in prompts]


def _answer(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    sampling: Sampling,
    batch: int | BatchSize,
    stops: Stops | None,
    eos_ids: list[int],
    expected: Sequence[float] | None = None,
) -> list[Answer]:
    with torch.no_grad():
        responses = sample(
            model,
            prompts,
            sampling,
            eos_ids=eos_ids,
            stops=stops,
            pad_id=padding_id(tokenizer),
            batch=batch,
            expected=expected,
        )
    texts = [responses.text_tokens(row) for row in range(len(prompts))]
    return [
        Answer(tokenizer.decode(text, skip_special_tokens=True).strip(), len(tokens), finish, text)
        for text, tokens, finish in zip(texts, responses.tokens, responses.finish, strict=True)
    ]


class Judged(NamedTuple):
    """Rewards of some answers, one each, and the scores of every source before they are scaled and mixed."""

    rewards: list[float]
    by_source: dict[str, Scores]  # {} where the reward is the reward model's alone


class RewardModel:
    """Rewards of any actor's answers: the reward model's, in standard deviations from its mean, or the run's mix.

    normalizer: of the reward model, where that alone is the reward; judges: the sources of another reward, with the
    statistics that the coarse stage ended with.
    """

    def __init__(
        self, roles: Roles, tokenizer: Any, normalizer: Normalizer, config: Config, judges: Judges | None = None
    ) -> None:
        self.roles, self.tokenizer, self.normalizer, self.config = roles, tokenizer, normalizer, config
        self.judges = judges

    def __call__(
        self, prompts: Sequence[Turns], answers: Sequence[Answer], data_rows: Sequence[Prompt] | None = None
    ) -> list[float]:
        """One reward per answer, all read in the base's prompt style, which the reward model learned."""
        return self.judge(prompts, answers, data_rows).rewards

    def judge(
        self, prompts: Sequence[Turns], answers: Sequence[Answer], data_rows: Sequence[Prompt] | None = None
    ) -> Judged:
        """Rewards, and scores by source. data_rows: the prompts with the columns of their data, for functions.

        Without them, as for a person's question, the reward is that of the reward models alone; where there are none,
        no answer has a reward.
        """
        rows = self.rows(prompts, answers)
        batch, pad_id = self.config.evaluation.batch, padding_id(self.tokenizer)
        at_once = SCORED_ROWS if batch == "auto" else min(SCORED_ROWS, batch)
        if self.judges is None:
            raw = score(self.roles, rows, pad_id=pad_id, batch=at_once)
            rewards = [self.normalizer(float(value)) for value in raw]
            if data_rows is not None:  # not a visitor's question, which is answered without a reward
                check_scores({TRAINED: [*rewards]})
            return Judged(rewards, {})
        judges = self.judges
        if data_rows is None:
            models = [source for source in judges.rewards if source.function is None]
            scores = judges.model_scores(self.roles, rows, pad_id, at_once, models)
            return Judged(judges.mix.of_sources(scores) if scores else [], {})
        ids, finish, texts = zip(*((a.text_tokens, a.finish, a.text) for a in answers), strict=True)
        inputs = inputs_of(self.tokenizer, data_rows, ids, finish, texts)
        by_source = judges.scores(self.roles, rows, inputs, data_rows, pad_id, at_once, tuple(judges))
        return Judged(judges.mix.rewards(by_source), by_source)

    def rows(self, prompts: Sequence[Turns], answers: Sequence[Answer]) -> list[list[int]]:
        """Rows that the reward model reads: prompt and answer in the form it learned, with EOS where the answer ended.

        An answer under a chat template lacks the space before it that the base's form has, so its text is encoded
        again, as answers were in training. The base's own answers stay the sampled tokens.
        """
        model = self.config.model
        end = answer_end(self.tokenizer, model.prompt_template, model.chat_template_kwargs)
        rows = []
        prompt_ids = prompts_of_base(self.tokenizer, self.config, prompts)
        for prompt, answer in zip(prompt_ids, answers, strict=True):
            tokens = answer.text_tokens
            if answer.chat and model.prompt_template != CHAT:
                text = self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
                tokens = encode_answer(self.tokenizer, text, ended=False)
            rows.append(scored_row(prompt, tokens, answer.finish != "limit", end))
        return rows


def load_coarse(config: Config, models: ModelPair, run: Path) -> tuple[Roles, RewardModel]:
    """The base with the Coarse adapter as `policy` and the reward model as `reward`, and its normalised rewards.

    Raises RunError or ModelError naming the file that is missing or damaged, before the base is loaded.
    """
    from lite_c2f.backbone.adapters import check_adapter, load_into

    coarse = config.coarse
    normalizer = trained_normalizer(run) if coarse.needs_reward_model else Normalizer(0.0, 1.0)
    policy = coarse_adapter(run, coarse.use)
    for folder in (policy, *(adapter_folder(source, run) for source in coarse.judges if source.function is None)):
        check_adapter(folder)
    tokenizer = load_tokenizer(models.base)
    roles = Roles(load_model(models.base, config), config.lora, ("policy", *reward_roles(config)))
    load_into(roles, "policy", policy)
    normalizers = load_reward_models(roles, config, run)
    judges = None
    if not coarse.usual_rewards:
        judges = Judges.of(config, normalizers, tokenizer)
        judges.mix.restore(saved_mix(run))
    return roles, RewardModel(roles, tokenizer, normalizer, config, judges)
