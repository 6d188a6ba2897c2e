"""Loaded actors of a run: their models and tokenizers, the row of each answer, and the rewards of answers."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from lite_c2f.actors.answers import Answer
from lite_c2f.actors.models import load_coarse
from lite_c2f.actors.names import COARSE, FINE
from lite_c2f.backbone.context import context_length, sliding_window
from lite_c2f.backbone.device import free_bytes
from lite_c2f.backbone.load import end_tokens, load_model, load_tokenizer, window_of
from lite_c2f.backbone.multi_model import MultiModel, Residues, residue_of
from lite_c2f.chat.context import MAX_CONTEXT
from lite_c2f.chat.history import History, with_system
from lite_c2f.chat.other_residues import OtherResidues
from lite_c2f.chat.panes import ALL_PANES, BASE_MODEL_ACTORS, AnswerForm, ChatSettings, Pane, fine_ratio
from lite_c2f.chat.prompts import EncodedPrompt, encode_history
from lite_c2f.chat.remote_row import RemoteRow
from lite_c2f.chat.rows import AnswerRow
from lite_c2f.config.settings import CHAT
from lite_c2f.data.encode import encode_answer, turn_end
from lite_c2f.memory.sizes import GIBIBYTE
from lite_c2f.runs.manifest import open_run
from lite_c2f.runs.model_pair import TOY
from lite_c2f.runs.published import merged_ratio
from lite_c2f.runtime.batch_size import free
from lite_c2f.sampling import Sampling, Stops
from lite_c2f.sampling.cache import key_value_shape

CACHE_MEMORY_SHARE = 0.5  # of the memory that is free once the models are loaded, for keys and values
BASE_MODEL, INSTRUCT_MODEL, MERGED_MODEL = range(3)  # numbers of the models in `MultiModel`


class LoadedActors:
    """Models and tokenizers of a run. Not thread-safe, but for `caller_tokenizers` under a lock of their own.

    merged: also load RUN/fine/model, for the Fine Actor at the merged ratio. A merge with a ratio per layer corresponds
    to no single ratio of the residue: then that model is always loaded. on_step is told what is loaded next.
    """

    def __init__(self, run: Path, merged: bool, on_step: Callable[[str], None] = lambda _: None) -> None:
        on_step("base model")
        self.config, models = open_run(run)
        self.ratio, uniform = merged_ratio(run / "fine" / "merge.json")
        self.merged = merged or not uniform
        self.roles, self.reward_model = load_coarse(self.config, models, run)
        on_step("instruct model")
        self.tokenizer, self.instruct_tokenizer = self.reward_model.tokenizer, load_tokenizer(models.instruct)
        # Tokenizers are not thread-safe: those above are for the answering thread, these for its callers.
        self.caller_tokenizers = {
            actor: load_tokenizer(models.base if actor in BASE_MODEL_ACTORS else models.instruct) for actor in ALL_PANES
        }
        folders = [models.instruct, *([str(run / "fine" / "model")] if self.merged else [])]
        loaded = [self.roles.model, *(load_model(folder, self.config) for folder in folders)]
        self.multi_model = MultiModel(loaded, residue_of(self.roles.model, "policy"))
        self.others = OtherResidues(run, self.config, self.roles.model, self.multi_model)
        template, variables = self.config.model.prompt_template, self.config.model.chat_template_kwargs
        self._eos_ids = [end_tokens(loaded[0], self.tokenizer, turn_end(self.tokenizer, template, variables))]
        turn = turn_end(self.instruct_tokenizer, CHAT, variables)
        self._eos_ids += [end_tokens(model, self.instruct_tokenizer, turn) for model in loaded[1:]]
        self._stops = cached_stops(self.tokenizer, self.instruct_tokenizer)
        self.context = context_of(loaded, models.base)
        free()  # memory that only loading needed
        row_bytes = cache_bytes_per_token(self.multi_model) * self.context
        self.max_rows = int(CACHE_MEMORY_SHARE * _free_bytes(self.multi_model.device) // row_bytes)

    def max_prompt_tokens(self, max_tokens: int) -> int:
        """Most tokens of a prompt, earlier turns included."""
        if self.config.model.base == TOY:  # it was trained on no longer text
            return self.config.data.max_prompt_tokens
        return self.context - max_tokens

    def stop_texts(self, actor: str, form: AnswerForm) -> tuple[str, ...]:
        """Texts that end an actor's answer: those of the form and, for an actor on the base model, those of the run."""
        own = () if form.raw or actor not in BASE_MODEL_ACTORS else tuple(self.config.model.stop)
        return (*own, *(text for text in form.stop if text not in own))

    def row(
        self,
        pane: Pane,
        history: History,
        settings: ChatSettings,
        form: AnswerForm = AnswerForm(),
        residue: Residues | None = None,
    ) -> tuple[AnswerRow, EncodedPrompt]:
        """The row of an answer not yet started, and its prompt. Raises what encoding the prompt raises.

        residue: another than the run's own, of a pane with a source.

        An answer that is begun is encoded from its text, as answers of the data are: those are not always the tokens
        that were drawn (models can spell a text in unusual ones, and what was cut off within a character or a stop text
        is not shown). Where they are, it goes on as one long answer would, up to rounding; see `AnswerRow`.
        """
        ratio, on_base = fine_ratio(pane, settings, self.ratio), pane.actor in BASE_MODEL_ACTORS
        tokenizer = self.tokenizer if on_base else self.instruct_tokenizer
        template, variables = (
            self.config.model.prompt_template if on_base else CHAT,
            self.config.model.chat_template_kwargs,
        )
        begun = (
            encode_answer(tokenizer, form.begun, ended=False, template=template, template_kwargs=variables)
            if form.begun
            else []
        )
        prompt = encode_history(
            pane.actor,
            tokenizer,
            self.config,
            history,
            settings.system,
            self.max_prompt_tokens(settings.max_tokens),
            raw=form.raw,
        )
        if on_base:
            model, residue_ratio = BASE_MODEL, 1.0 if pane.actor == COARSE else 0.0
        elif pane.actor == FINE and self.merged and ratio == self.ratio and not pane.source:
            model, residue_ratio = MERGED_MODEL, 0.0
        else:
            model, residue_ratio = INSTRUCT_MODEL, ratio if pane.actor == FINE else 0.0
        row = AnswerRow(
            model,
            residue_ratio,
            prompt.ids,
            Sampling(settings.max_tokens, settings.temperature, settings.top_k, settings.top_p, settings.seed),
            residue=residue,
            penalty=settings.repetition_penalty,
            eos_ids=self._eos_ids[model],
            stops=self._stops(on_base, self.stop_texts(pane.actor, form)),
            alternatives=form.logprobs,
            begun=begun,
            drawn=form.drawn,
        )
        return row, prompt

    def text_ids(self, tokenizer: Any, text: str) -> list[int]:
        """Tokens of an answer that was not generated here, as the instruct model's; tokenizer: one of that model's."""
        variables = self.config.model.chat_template_kwargs
        return encode_answer(tokenizer, text, ended=False, template=CHAT, template_kwargs=variables) if text else []

    def rewards(
        self,
        histories: Mapping[str, History],
        rows: Mapping[str, AnswerRow | RemoteRow],
        settings: ChatSettings,
        texts: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, float]:
        """Normalised rewards (z-scores) of finished answers, by pane; {} for a run without a reward model.

        texts: of the answers that none of the run's models has generated, which are encoded here; one that is longer
        than this run's context has no reward.
        """
        answers = dict[str, Answer]()
        for key, row in rows.items():
            if isinstance(row, AnswerRow) and key not in texts:
                tokens, chat = row.text_tokens, row.model != BASE_MODEL
                answers[key] = Answer("", len(row.tokens), row.finish or "limit", tokens, chat)
            elif len(tokens := self.text_ids(self.instruct_tokenizer, texts[key])) < self.context:
                answers[key] = Answer("", len(tokens), row.finish or "limit", tokens, True)
        if not answers:
            return {}
        turns = [tuple(with_system(histories[key], settings.system)) for key in answers]
        return dict(zip(answers, self.reward_model(turns, list(answers.values())) or [], strict=False))


def cached_stops(base_tokenizer: Any, instruct_tokenizer: Any) -> Callable[[bool, tuple[str, ...]], Stops | None]:
    """The stops of (on the base model?, texts), made once for the texts used most recently."""

    @functools.lru_cache(32)
    def stops(on_base: bool, texts: tuple[str, ...]) -> Stops | None:
        return Stops(base_tokenizer if on_base else instruct_tokenizer, texts) if texts else None

    return stops


def context_of(models: Sequence[Any], base: str) -> int:
    """Largest context, in tokens, of models of one lineage: that of the smallest. base: folder of the first model."""
    limits = [context_length(model.config) for model in models]
    config = models[0].config
    if sliding_window(config) is None:  # loaded without the window: beyond it attention would differ from training
        limits.append(window_of(base))
    return min(MAX_CONTEXT, *(limit for limit in limits if limit))


def cache_bytes_per_token(multi_model: MultiModel) -> int:
    """Bytes of one token's keys and values in all layers."""
    config = multi_model.config
    heads, width = key_value_shape(config)
    return 2 * config.num_hidden_layers * heads * width * multi_model.dtype.itemsize


def _free_bytes(device: torch.device) -> float:
    free_memory = free_bytes(device)
    return 4 * GIBIBYTE if free_memory is None else free_memory
